//! What is remembered of clients: a bounded number, and a bounded size of each.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Clients that are told apart; of more, those who use nothing are forgotten, or the new ones counted together.
const MOST: usize = 100_000;
/// A full table is swept no more often than this.
const SWEEP_MS: i64 = 1000;
/// Longer client ids are remembered by their hash.
const LONG_ID_BYTES: usize = 128;

/// Something of each client.
#[derive(Debug)]
pub(super) struct Clients<K, V> {
    known: HashMap<K, V>,
    swept_ms: i64,
}

impl<K, V> Default for Clients<K, V> {
    fn default() -> Clients<K, V> {
        Clients { known: HashMap::new(), swept_ms: i64::MIN }
    }
}

impl<K: Eq + Hash, V> Clients<K, V> {
    /// What is known of a client, begun with `new`. `quota` is whom his quota is set for: himself, for whom there is always room,
    /// or many, who are counted under it together where there is none. The second value: whether he is.
    pub fn get(
        &mut self,
        client: K,
        quota: K,
        now_ms: i64,
        new: impl FnOnce() -> V,
        is_idle: impl Fn(&mut V) -> bool,
    ) -> (&mut V, bool) {
        let (mut counted, mut together) = (client, false);
        if self.known.len() >= MOST && !self.known.contains_key(&counted) {
            if now_ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
                self.swept_ms = now_ms;
                self.known.retain(|_, value| !is_idle(value));
            }
            if self.known.len() >= MOST {
                together = counted != quota;
                counted = quota;
            }
        }
        (self.known.entry(counted).or_insert_with(new), together)
    }
}

/// The client id as it is remembered: any client may call itself by tens of kilobytes, another time by others.
pub(super) fn remembered_id(client_id: &str) -> String {
    if client_id.len() <= LONG_ID_BYTES {
        return client_id.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    client_id.hash(&mut hasher);
    format!("{} bytes {:016x}", client_id.len(), hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_room_is_counted_with_the_others() {
        const ALL: usize = usize::MAX;
        let mut clients: Clients<usize, usize> = Clients::default();
        let mut uses = |client: usize, quota: usize, now_ms: i64| {
            let (count, together) = clients.get(client, quota, now_ms, || 0, |_| false);
            *count += 1;
            (*count, together, clients.known.len())
        };
        for client in 0..MOST {
            assert_eq!(uses(client, ALL, 0), (1, false, client + 1));
        }
        assert_eq!(uses(MOST, ALL, 0), (1, true, MOST + 1));
        assert_eq!(uses(MOST + 1, ALL, SWEEP_MS - 1), (2, true, MOST + 1));
        assert_eq!(uses(1, ALL, SWEEP_MS - 1), (2, false, MOST + 1), "who was known before is told apart");
        // A quota of his own.
        assert_eq!(uses(MOST + 2, MOST + 2, SWEEP_MS - 1), (1, false, MOST + 2));
        assert_eq!(uses(MOST + 3, ALL, SWEEP_MS), (3, true, MOST + 2));
    }

    #[test]
    fn who_uses_nothing_makes_room() {
        let mut clients: Clients<usize, bool> = Clients::default();
        for client in 0..MOST {
            clients.get(client, MOST, 0, || client % 2 == 0, |idle| *idle);
        }
        clients.get(MOST + 1, MOST, 0, || false, |idle| *idle);
        assert_eq!(clients.known.len(), MOST / 2 + 1);
        assert!(clients.known.contains_key(&(MOST + 1)));
    }

    #[test]
    fn long_ids_are_told_apart_all_the_same() {
        let [one, other] = ["a", "b"].map(|end| remembered_id(&format!("{}{end}", "x".repeat(30_000))));
        assert!(one != other && one.len() < 64, "{one} {other}");
        assert_eq!(remembered_id("app-1"), "app-1");
    }
}
