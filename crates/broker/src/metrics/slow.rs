//! Requests that take long are logged, with where the time went. What a request means to wait for does not count: a fetch
//! for records, a join for the other members.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use caudal_protocol::ApiKey;

use super::Timing;
use crate::clock;
use crate::server::{ConnectionInfo, Notes};

/// Of requests that are slow within the same second as many are logged: a disk that stalls makes all of them slow.
const MOST_A_SECOND: u64 = 5;

/// The log of slow requests.
#[derive(Debug)]
pub struct SlowRequests {
    /// `None`: off.
    threshold: Option<Duration>,
    second: AtomicI64,
    within_second: AtomicU64,
    /// All that were slow.
    count: AtomicU64,
}

impl SlowRequests {
    /// Negative: off.
    pub fn new(threshold_ms: i64) -> SlowRequests {
        SlowRequests {
            threshold: u64::try_from(threshold_ms).ok().map(Duration::from_millis),
            second: AtomicI64::new(0),
            within_second: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Looks at a request that is done.
    pub fn check(&self, timing: &Timing, notes: Notes, info: &ConnectionInfo) {
        let took = timing.queue + timing.local + timing.remote.saturating_sub(notes.wait);
        let Some(threshold) = self.threshold.filter(|threshold| took >= *threshold) else { return };
        self.count.fetch_add(1, Ordering::Relaxed);
        let second = clock::monotonic_ms() / 1000;
        if self.second.swap(second, Ordering::Relaxed) != second {
            let left_out = self.within_second.swap(0, Ordering::Relaxed).saturating_sub(MOST_A_SECOND);
            if left_out > 0 {
                tracing::warn!(left_out, "more slow requests were not logged one by one");
            }
        }
        if self.within_second.fetch_add(1, Ordering::Relaxed) >= MOST_A_SECOND {
            return;
        }
        let is = |key: ApiKey| timing.asked.name() == key.name();
        let ms = |part: Duration| u64::try_from(part.as_millis()).unwrap_or(u64::MAX);
        let (topics, partitions) = if is(ApiKey::Fetch) { (None, notes.named) } else { (notes.named, None) };
        let remote = Some(ms(timing.remote));
        let check_ms = Some(ms(timing.unfolding)).filter(|_| !timing.unfolding.is_zero());
        let (flush_ms, waited_ms) = if is(ApiKey::Produce) { (remote, None) } else { (None, remote) };
        tracing::warn!(
            api = timing.asked.name(),
            version = timing.asked.version,
            client = info.client_id(),
            peer = %info.peer,
            connection = info.id,
            topics,
            partitions,
            queue_ms = ms(timing.queue),
            local_ms = ms(timing.local - timing.unfolding),
            check_ms,
            flush_ms,
            waited_ms,
            "slow request: {} ms are more than caudal.slow.request.ms={}",
            ms(took),
            ms(threshold)
        );
    }
}
