//! Quotas of clients (KIP-13, KIP-124, KIP-546): who uses more than his share has to pause, as in Kafka.
//!
//! A client belongs to the most exact of the quotas that are set for his user and his client id; those that it stands for share
//! it. What they use is counted over `quota.window.num` windows. Beyond the quota the answer says for how long to pause
//! (`throttle_time_ms`), and nothing more is read from the connection meanwhile.

mod clients;
mod connection;
mod mutation;
mod rate;

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use caudal_cluster::MetadataImage;
use caudal_cluster::config::StaticConfig;
use caudal_cluster::controller::{CLIENT_ID, IP, USER};
use caudal_cluster::image::QuotaKey;
use parking_lot::Mutex;

use crate::api::RequestHeader;
use crate::clock;
use crate::context::ANONYMOUS;

use clients::{Clients, remembered_id};
pub use connection::Admission;
pub use mutation::Admitted;
pub use rate::{Rate, Windows};

/// What there are quotas of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes of produce requests per second.
    Produce,
    /// Bytes of fetched records per second.
    Fetch,
    /// Percent of a thread's time.
    Request,
    /// Partitions created and deleted per second.
    Mutation,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Produce, "producer_byte_rate"),
    (Kind::Fetch, "consumer_byte_rate"),
    (Kind::Request, "request_percentage"),
    (Kind::Mutation, "controller_mutation_rate"),
];

/// A name, or the default of all that have none of their own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    Of(String),
    Default,
}

/// Whom a quota is set for: user and client id.
type Entity = (Option<Name>, Option<Name>);

#[derive(Debug, Default)]
struct Inner {
    /// What the limits were made of.
    image: Arc<BTreeMap<QuotaKey, f64>>,
    limits: HashMap<(Kind, Entity), f64>,
    /// By whom a quota is for, with the names of who uses it for [`Name::Default`].
    rates: Clients<(Kind, Entity), Rate>,
    /// Of [`Kind::Mutation`], by the same.
    buckets: Clients<Entity, mutation::Bucket>,
    connections: connection::Connections,
}

/// The quotas that are in effect, and what was used of them.
#[derive(Debug)]
pub struct Quotas {
    windows: Windows,
    /// Of [`Kind::Mutation`].
    mutation_windows: Windows,
    /// Whether anybody has one, by kind.
    set: [AtomicBool; KINDS.len()],
    inner: Mutex<Inner>,
}

/// The quota that a client belongs to.
struct Share {
    limit: f64,
    /// As he is counted.
    client: Entity,
    /// Whom it is set for: the same if he has one of his own.
    quota: Entity,
}

impl Quotas {
    pub fn new(config: &StaticConfig) -> Quotas {
        let windows = |seconds: &str, number: &str| Windows {
            window_ms: config.int(seconds).saturating_mul(1000),
            samples: usize::try_from(config.int(number)).unwrap_or(1),
        };
        Quotas {
            windows: windows("quota.window.size.seconds", "quota.window.num"),
            mutation_windows: windows("controller.quota.window.size.seconds", "controller.quota.window.num"),
            set: Default::default(),
            inner: Mutex::default(),
        }
    }

    /// Takes over the quotas of an image.
    pub fn follow(&self, image: &MetadataImage) {
        if Arc::ptr_eq(&self.inner.lock().image, image.quotas()) {
            return;
        }
        // It may take a while.
        let of_addresses = connection::limits_of(image.quotas());
        let mut inner = self.inner.lock();
        inner.image = image.quotas().clone();
        inner.limits = limits_of(image.quotas());
        inner.connections.limits = of_addresses;
        for ((kind, _), set) in KINDS.iter().zip(&self.set) {
            let any = inner.limits.keys().any(|(of, _)| of == kind);
            set.store(any, Ordering::Release);
        }
    }

    /// Whether anybody has a quota of this kind.
    pub fn is_set(&self, kind: Kind) -> bool {
        KINDS.iter().zip(&self.set).any(|((of, _), set)| *of == kind && set.load(Ordering::Acquire))
    }

    /// Counts what a client uses; how many milliseconds it has to pause for it.
    pub fn record(&self, kind: Kind, header: &RequestHeader, amount: f64) -> i32 {
        let now_ms = clock::monotonic_ms();
        let throttle_ms = self.with_rate(kind, header, now_ms, |rate, limit, together| {
            rate.record(amount, now_ms);
            let most_ms = match kind {
                // A short pause does for a thread's time: it is none that could be saved up.
                Kind::Request => self.windows.window_ms,
                // By then nothing counts any more of what the others used.
                _ if together => self.windows.all_ms(),
                _ => i64::MAX,
            };
            rate.throttle_ms(limit, now_ms).min(most_ms)
        });
        i32::try_from(throttle_ms.unwrap_or(0)).unwrap_or(i32::MAX)
    }

    /// Takes back what was counted and did not happen.
    pub fn unrecord(&self, kind: Kind, header: &RequestHeader, amount: f64) {
        let now_ms = clock::monotonic_ms();
        self.with_rate(kind, header, now_ms, |rate, _, _| rate.record(-amount, now_ms));
    }

    /// Counts the time that a request took; how many milliseconds the client has to pause for it.
    pub fn record_time(&self, header: &RequestHeader, busy: Duration) -> i32 {
        if self.is_set(Kind::Request) { self.record(Kind::Request, header, busy.as_secs_f64() * 100.0) } else { 0 }
    }

    /// The most that may be fetched at once: more could never be paid for.
    pub fn most_bytes(&self, header: &RequestHeader) -> usize {
        if !self.is_set(Kind::Fetch) {
            return usize::MAX;
        }
        let windows_s = self.windows.samples.saturating_sub(1) as f64 * self.windows.window_ms as f64 / 1000.0;
        let share = self.inner.lock().share(Kind::Fetch, client_id(header));
        // Saturates.
        share.map_or(usize::MAX, |share| (share.limit * windows_s) as usize)
    }

    fn with_rate<T>(
        &self,
        kind: Kind,
        header: &RequestHeader,
        now_ms: i64,
        act: impl FnOnce(&mut Rate, f64, bool) -> T,
    ) -> Option<T> {
        if !self.is_set(kind) {
            return None;
        }
        let mut inner = self.inner.lock();
        let Share { limit, client, quota } = inner.share(kind, client_id(header))?;
        let begun = || Rate::new(self.windows);
        let (rate, together) =
            inner.rates.get((kind, client), (kind, quota), now_ms, begun, |rate| rate.is_idle(now_ms));
        Some(act(rate, limit, together))
    }
}

impl Inner {
    /// The most exact quota, in Kafka's order. Who has none is not counted.
    fn share(&self, kind: Kind, client_id: &str) -> Option<Share> {
        // Who did not say who he is has a user's name all the same.
        let (user, client) = (Name::Of(ANONYMOUS.to_owned()), Name::Of(client_id.to_owned()));
        let order = [
            (Some(user.clone()), Some(client.clone())),
            (Some(user.clone()), Some(Name::Default)),
            (Some(user), None),
            (Some(Name::Default), Some(client.clone())),
            (Some(Name::Default), Some(Name::Default)),
            (Some(Name::Default), None),
            (None, Some(client)),
            (None, Some(Name::Default)),
        ];
        // Nobody has the empty client id: no quota is for it.
        let matching = order.into_iter().filter(|(_, client)| client.is_none() || !client_id.is_empty());
        let ((_, quota), limit) = matching.into_iter().find_map(|quota| self.limits.get_key_value(&(kind, quota)))?;
        let named = |part: &Option<Name>, name: &str| match part {
            Some(Name::Default) => Some(Name::Of(name.to_owned())),
            part => part.clone(),
        };
        let client = (named(&quota.0, ANONYMOUS), named(&quota.1, &remembered_id(client_id)));
        Some(Share { limit: *limit, client, quota: quota.clone() })
    }
}

fn client_id(header: &RequestHeader) -> &str {
    header.client_id.as_deref().unwrap_or_default()
}

fn limits_of(quotas: &BTreeMap<QuotaKey, f64>) -> HashMap<(Kind, Entity), f64> {
    let mut limits = HashMap::new();
    for ((entity, key), value) in quotas {
        let Some((kind, _)) = KINDS.iter().find(|(_, name)| name == key) else { continue };
        if entity.contains_key(IP) {
            continue;
        }
        let part = |of: &str| entity.get(of).map(|name| name.clone().map_or(Name::Default, Name::Of));
        limits.insert((*kind, (part(USER), part(CLIENT_ID))), *value);
    }
    limits
}

/// What `future` gives, and for how long it kept its thread busy; not measured unless that is wanted.
pub async fn timed<F: Future>(measured: bool, future: F) -> (F::Output, Duration) {
    let mut future = std::pin::pin!(future);
    let mut busy = Duration::ZERO;
    let output = poll_fn(|cx| {
        let start = measured.then(Instant::now);
        let polled = future.as_mut().poll(cx);
        busy += start.map_or(Duration::ZERO, |start| start.elapsed());
        polled
    });
    (output.await, busy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ConnectionInfo;

    type Quota<'a> = (&'a [(&'a str, Option<&'a str>)], f64);

    fn inner(quotas: &[Quota<'_>]) -> Inner {
        let quota = |(entity, value): &Quota<'_>| {
            let entity = entity.iter().map(|(k, n)| ((*k).to_owned(), n.map(str::to_owned))).collect();
            ((entity, "producer_byte_rate".to_owned()), *value)
        };
        let image = Arc::new(quotas.iter().map(quota).collect());
        Inner { limits: limits_of(&image), image, ..Inner::default() }
    }

    #[test]
    fn the_most_exact_quota_counts() {
        let me = ("user", Some(ANONYMOUS));
        let all: [Quota<'_>; 8] = [
            (&[me, ("client-id", Some("c"))], 1.0),
            (&[me, ("client-id", None)], 2.0),
            (&[me], 3.0),
            (&[("user", None), ("client-id", Some("c"))], 4.0),
            (&[("user", None), ("client-id", None)], 5.0),
            (&[("user", None)], 6.0),
            (&[("client-id", Some("c"))], 7.0),
            (&[("client-id", None)], 8.0),
        ];
        for (from, (_, expected)) in all.iter().enumerate() {
            let quotas = inner(&all[from..]);
            let share = quotas.share(Kind::Produce, "c").unwrap();
            assert_eq!(share.limit, *expected);
            let of_user = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].contains(expected);
            assert_eq!(share.client.0.is_none(), !of_user);
            assert_eq!(share.client.1.is_none(), [3.0, 6.0].contains(expected));
            assert_eq!(share.client == share.quota, [1.0, 3.0, 7.0].contains(expected));
            assert!(quotas.share(Kind::Fetch, "c").is_none());
        }
        assert!(inner(&all[6..7]).share(Kind::Produce, "d").is_none());
        assert_eq!(inner(&all).share(Kind::Produce, "").unwrap().limit, 3.0);
        assert!(inner(&[(&[("user", Some("other"))], 1.0)]).share(Kind::Produce, "c").is_none());
    }

    #[test]
    fn however_many_there_are_each_is_limited() {
        let quotas = Quotas::new(&StaticConfig::default());
        *quotas.inner.lock() = inner(&[(&[("client-id", None)], 1_000.0), (&[("client-id", Some("own"))], 2_000.0)]);
        quotas.set.iter().for_each(|set| set.store(true, Ordering::Release));
        let address = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let connection = Arc::new(ConnectionInfo::new(0, address, address));
        let pause_ms = |client_id: &str, bytes: f64| {
            let header = RequestHeader {
                api: caudal_protocol::ApiKey::Produce,
                version: 12,
                correlation_id: 0,
                client_id: Some(client_id.to_owned()),
                size_bytes: 0,
                connection: connection.clone(),
            };
            quotas.record(Kind::Produce, &header, bytes)
        };
        for client in 0..100_000 {
            assert_eq!(pause_ms(&client.to_string(), 1.0), 0);
        }
        assert_eq!(pause_ms("new", 9_000.0), 0);
        assert!(pause_ms("another", 9_000.0) > 0, "they share what one may use");
        assert!(pause_ms("a third", 1e9) <= 11_000, "what counts now is forgotten then");
        assert_eq!(pause_ms("0", 9_000.0), 0);
        // His own quota is for him alone.
        assert_eq!(pause_ms("own", 19_000.0), 0);
        assert!(pause_ms("own", 9_000.0) > 0);
    }
}
