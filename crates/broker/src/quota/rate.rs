//! How much came of something per second lately, in Kafka's way of counting: samples of one window each, of which the newest
//! `samples` count, and a rate over at least all but one of the windows.

/// `quota.window.size.seconds` and `quota.window.num`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    pub window_ms: i64,
    pub samples: usize,
}

impl Windows {
    /// The time of all of them.
    pub fn all_ms(self) -> i64 {
        self.window_ms.saturating_mul(i64::try_from(self.samples).unwrap_or(i64::MAX))
    }
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    start_ms: i64,
    last_ms: i64,
    value: f64,
}

/// A rate over sliding windows.
#[derive(Debug, Clone)]
pub struct Rate {
    windows: Windows,
    /// The newest last.
    samples: Vec<Sample>,
}

impl Rate {
    pub fn new(windows: Windows) -> Rate {
        Rate { windows, samples: Vec::new() }
    }

    pub fn record(&mut self, value: f64, now_ms: i64) {
        self.purge(now_ms);
        match self.samples.last_mut() {
            Some(sample) if now_ms - sample.start_ms < self.windows.window_ms => {
                sample.value += value;
                sample.last_ms = now_ms;
            }
            _ => self.samples.push(Sample { start_ms: now_ms, last_ms: now_ms, value }),
        }
        // One more than count, for the one that the windows overlap in part.
        if self.samples.len() > self.windows.samples + 1 {
            self.samples.remove(0);
        }
    }

    /// How long whoever caused this has to pause so that the rate over the whole time is `limit` per second; 0 when it is no
    /// more than that.
    pub fn throttle_ms(&mut self, limit: f64, now_ms: i64) -> i64 {
        self.purge(now_ms);
        let elapsed_ms = self.elapsed_ms(now_ms);
        let rate = self.samples.iter().map(|sample| sample.value).sum::<f64>() / (elapsed_ms / 1000.0);
        if rate <= limit {
            return 0;
        }
        // Saturates where it is beyond all measure.
        ((rate - limit) / limit * elapsed_ms).round() as i64
    }

    /// Whether nothing of it counts any more.
    pub fn is_idle(&mut self, now_ms: i64) -> bool {
        self.purge(now_ms);
        self.samples.is_empty()
    }

    fn purge(&mut self, now_ms: i64) {
        let age_ms = self.windows.all_ms();
        self.samples.retain(|sample| now_ms - sample.last_ms < age_ms);
    }

    /// The time that the samples stand for: never less than all windows but one, or a rate would begin far too high.
    fn elapsed_ms(&self, now_ms: i64) -> f64 {
        let window_ms = self.windows.window_ms.max(1);
        let elapsed_ms = self.samples.first().map_or(0, |oldest| now_ms - oldest.start_ms).max(0);
        let least = i64::try_from(self.windows.samples.saturating_sub(1)).unwrap_or(i64::MAX);
        let missing = (least - elapsed_ms / window_ms).max(0);
        elapsed_ms.saturating_add(missing.saturating_mul(window_ms)).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: Windows = Windows { window_ms: 1000, samples: 11 };

    #[test]
    fn a_burst_is_paid_for_over_the_windows() {
        let mut rate = Rate::new(WINDOWS);
        rate.record(1000.0, 0);
        // Over ten seconds that is 100 per second.
        assert_eq!(rate.throttle_ms(100.0, 0), 0);
        assert_eq!(rate.throttle_ms(50.0, 0), 10_000);
        rate.record(1000.0, 500);
        assert_eq!(rate.throttle_ms(100.0, 500), 9_500);
        rate.record(-1000.0, 500);
        assert_eq!(rate.throttle_ms(100.0, 500), 0);
    }

    #[test]
    fn a_steady_rate_is_measured_and_what_is_old_forgotten() {
        let mut rate = Rate::new(WINDOWS);
        for second in 0..30 {
            rate.record(100.0, second * 1000);
        }
        assert_eq!(rate.throttle_ms(121.0, 29_000), 0);
        assert!(rate.throttle_ms(50.0, 29_000) > 0);
        assert!(!rate.is_idle(39_000));
        assert!(rate.is_idle(60_000));
        assert_eq!(rate.throttle_ms(1.0, 60_000), 0);
    }
}
