//! `log.cleaner.io.max.bytes.per.second`: what all cleaner threads read and write together.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[derive(Debug)]
pub(super) struct Throttle {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes_per_second: f64,
    /// When the bytes taken so far are paid for.
    paid_at: Option<Instant>,
}

impl Throttle {
    pub fn new(bytes_per_second: f64) -> Throttle {
        Throttle { state: Mutex::new(State { bytes_per_second, paid_at: None }) }
    }

    pub fn set_rate(&self, bytes_per_second: f64) {
        let mut state = self.state.lock();
        if state.bytes_per_second != bytes_per_second {
            *state = State { bytes_per_second, paid_at: None };
        }
    }

    /// Takes `bytes` and tells how long to wait before the next are taken.
    pub fn take(&self, bytes: usize, now: Instant) -> Duration {
        let mut state = self.state.lock();
        let seconds = bytes as f64 / state.bytes_per_second.max(1.0);
        // Unlimited is the largest number there is.
        if seconds < 1e-9 {
            return Duration::ZERO;
        }
        let from = state.paid_at.map_or(now, |paid| paid.max(now));
        let paid = from + Duration::from_secs_f64(seconds.min(3600.0));
        state.paid_at = Some(paid);
        paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_paid_for_with_time() {
        let now = Instant::now();
        let throttle = Throttle::new(1000.0);
        assert_eq!(throttle.take(500, now), Duration::from_millis(500));
        assert_eq!(throttle.take(1000, now), Duration::from_millis(1500));
        let later = now + Duration::from_secs(10);
        assert_eq!(throttle.take(100, later), Duration::from_millis(100), "idle time is not saved up");
        throttle.set_rate(f64::MAX);
        assert_eq!(throttle.take(usize::MAX, later), Duration::ZERO);
    }
}
