//! Keeps to a number of records per second, as Kafka's `ThroughputThrottler` does: it sleeps a little when it is ahead.

use std::time::{Duration, Instant};

/// Sleeps shorter than this are put together.
const SLEEP_MIN: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub struct Throttle {
    start: Instant,
    per_second: f64,
    owed: Duration,
}

impl Throttle {
    /// Below 0: no limit. 0: nothing after the first record.
    pub fn new(per_second: f64) -> Throttle {
        Throttle { start: Instant::now(), per_second, owed: Duration::ZERO }
    }

    /// How long to wait after that many records; `None`: not at all.
    pub fn pause(&mut self, records: i64) -> Option<Duration> {
        if self.per_second < 0.0 {
            return None;
        }
        let elapsed = self.start.elapsed().as_secs_f64();
        // The first millisecond counts too: a quick start would be a burst.
        if super::float(records) <= self.per_second * elapsed {
            return None;
        }
        if self.per_second == 0.0 {
            return Some(Duration::MAX);
        }
        self.owed += Duration::from_secs_f64(1.0 / self.per_second);
        (self.owed >= SLEEP_MIN).then(|| std::mem::take(&mut self.owed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_ahead_waits() {
        assert_eq!(Throttle::new(-1.0).pause(i64::MAX), None);
        let mut slow = Throttle::new(1e-3);
        slow.start = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(slow.pause(0), None);
        assert_eq!(slow.pause(1), Some(Duration::from_secs(1000)));
        let mut none = Throttle::new(0.0);
        none.start = slow.start;
        assert_eq!(none.pause(1), Some(Duration::MAX));
        let mut fast = Throttle::new(1000.0);
        fast.start = slow.start;
        assert_eq!((fast.pause(5000), fast.pause(5000)), (None, Some(Duration::from_millis(2))));
        let mut begun = Throttle::new(1000.0);
        assert_eq!((begun.pause(1000), begun.pause(1001)), (None, Some(Duration::from_millis(2))), "no burst");
    }
}
