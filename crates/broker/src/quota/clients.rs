//! What is remembered of clients: a bounded number, and a bounded size of each.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Clients of which something is remembered; of more, those who use nothing are forgotten, or the new ones not counted.
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
    /// What is known of a client, begun with `new`; `None`: there are too many of whom something has to be remembered.
    pub fn get(
        &mut self,
        client: K,
        now_ms: i64,
        new: impl FnOnce() -> V,
        is_idle: impl Fn(&mut V) -> bool,
    ) -> Option<&mut V> {
        if self.known.len() >= MOST && !self.known.contains_key(&client) {
            if now_ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
                self.swept_ms = now_ms;
                self.known.retain(|_, value| !is_idle(value));
            }
            if self.known.len() >= MOST {
                return None;
            }
        }
        Some(self.known.entry(client).or_insert_with(new))
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
    fn as_many_are_remembered_as_there_is_room_for() {
        let mut clients: Clients<usize, bool> = Clients::default();
        // Every second one uses nothing any more.
        for client in 0..MOST {
            assert!(clients.get(client, 0, || client % 2 == 0, |idle| *idle).is_some());
        }
        assert!(clients.get(MOST, 0, || false, |_| false).is_none());
        assert!(clients.get(MOST, SWEEP_MS - 1, || false, |idle| *idle).is_none(), "it was swept a moment ago");
        assert!(clients.get(1, SWEEP_MS - 1, || false, |idle| *idle).is_some());
        assert!(clients.get(MOST, SWEEP_MS, || false, |idle| *idle).is_some());
        assert_eq!(clients.known.len(), MOST / 2 + 1);
    }

    #[test]
    fn long_ids_are_told_apart_all_the_same() {
        let [one, other] = ["a", "b"].map(|end| remembered_id(&format!("{}{end}", "x".repeat(30_000))));
        assert!(one != other && one.len() < 64, "{one} {other}");
        assert_eq!(remembered_id("app-1"), "app-1");
    }
}
