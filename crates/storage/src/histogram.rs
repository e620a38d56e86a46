//! How long something takes: a count, a sum, and quantiles of the last minutes. Recording is a few relaxed additions.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Steps within a doubling: a quantile is at most a sixteenth off.
const STEPS: u64 = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Times are told apart up to this many microseconds, 36 minutes.
const LONGEST_US: u64 = (1 << 31) - 1;
const BUCKETS: usize = ((31 - STEP_BITS as usize) + 1) * STEPS as usize;
/// Quantiles cover the present window and the one before it.
const WINDOW: Duration = Duration::from_secs(150);

type Window = [AtomicU32; BUCKETS];

/// Times of one kind, of which many threads take note.
#[derive(Debug)]
pub struct Histogram {
    count: AtomicU64,
    sum_us: AtomicU64,
    windows: [Window; 2],
    /// The number of the window that is being filled.
    turn: AtomicU64,
    born: Instant,
}

impl Default for Histogram {
    fn default() -> Histogram {
        let window = || std::array::from_fn(|_| AtomicU32::new(0));
        Histogram {
            count: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
            windows: [window(), window()],
            turn: AtomicU64::new(0),
            born: Instant::now(),
        }
    }
}

fn bucket_of(us: u64) -> usize {
    let us = us.min(LONGEST_US);
    if us < STEPS {
        return us as usize;
    }
    let shift = us.ilog2() - STEP_BITS;
    ((u64::from(shift) * STEPS) + (us >> shift)) as usize
}

/// The middle of a bucket, in microseconds.
fn middle_of(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket as f64;
    }
    let shift = bucket / STEPS - 1;
    let low = (bucket % STEPS + STEPS) << shift;
    low as f64 + ((1_u64 << shift) as f64 - 1.0) / 2.0
}

impl Histogram {
    /// Takes note of a time that ended at `now`.
    pub fn record(&self, took: Duration, now: Instant) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        let window = self.windows.get(self.turn_at(now) as usize % 2);
        if let Some(bucket) = window.and_then(|window| window.get(bucket_of(us))) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many times there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// All times together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us.load(Ordering::Relaxed))
    }

    /// The times, of those of the last minutes, below which these parts of them lie, in milliseconds; 0 where there were none.
    pub fn quantiles_ms<const N: usize>(&self, parts: [f64; N], now: Instant) -> [f64; N] {
        self.turn_at(now);
        let sums = std::array::from_fn::<u64, BUCKETS, _>(|at| {
            let of = |window: &Window| window.get(at).map_or(0, |bucket| u64::from(bucket.load(Ordering::Relaxed)));
            self.windows.iter().map(of).sum()
        });
        let all: u64 = sums.iter().sum();
        parts.map(|part| {
            let wanted = (part * all as f64).ceil().max(1.0);
            let mut seen = 0_u64;
            let at = sums.iter().position(|here| {
                seen += here;
                all > 0 && seen as f64 >= wanted
            });
            at.map_or(0.0, |bucket| middle_of(bucket) / 1000.0)
        })
    }

    /// The window of a moment; empties those that come into use again. Threads that meet there may lose a few times.
    fn turn_at(&self, now: Instant) -> u64 {
        let turn = now.saturating_duration_since(self.born).as_secs() / WINDOW.as_secs();
        let last = self.turn.load(Ordering::Relaxed);
        if turn <= last || self.turn.compare_exchange(last, turn, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return last.max(turn);
        }
        for (at, window) in self.windows.iter().enumerate() {
            if turn > last + 1 || turn % 2 == at as u64 {
                window.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
            }
        }
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bucket_close_to_it() {
        let mut last = 0;
        for us in (0..100_000).chain((100_000..LONGEST_US).step_by(999_983)).chain([LONGEST_US, u64::MAX]) {
            let bucket = bucket_of(us);
            assert!(bucket >= last && bucket < BUCKETS, "{us}: {bucket}");
            last = bucket;
            let (middle, us) = (middle_of(bucket), us.min(LONGEST_US) as f64);
            assert!((middle - us).abs() <= us / 16.0 + 0.5, "{us}: {middle}");
        }
        assert_eq!(last, BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_of_the_last_minutes() {
        let times = Histogram::default();
        let start = Instant::now();
        assert_eq!(times.quantiles_ms([0.5, 0.99], start), [0.0, 0.0]);
        for ms in 1..=100 {
            times.record(Duration::from_millis(ms), start);
        }
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() <= wanted / 16.0, "{found}, not {wanted}");
        let [half, most] = times.quantiles_ms([0.5, 0.99], start);
        near(half, 50.0);
        near(most, 99.0);
        let next = start + WINDOW + Duration::from_secs(1);
        for _ in 0..900 {
            times.record(Duration::from_millis(1), next);
        }
        let [half, most] = times.quantiles_ms([0.5, 0.99], next);
        near(half, 1.0);
        near(most, 90.0);
        assert_eq!(times.quantiles_ms([0.5], start + 3 * WINDOW), [0.0]);
        assert_eq!((times.count(), times.sum()), (1000, Duration::from_millis(5050 + 900)));
    }
}
