//! Counts and latencies of a producer's run.

use super::super::{Stop, say};
use super::{fixed, float, megabytes, now_ms};

/// Latencies that are kept for percentiles; of longer runs every nth record is one.
const SAMPLES_MAX: i64 = 500_000;

/// What was written so far, and since the last line.
#[derive(Debug)]
pub struct Stats {
    start_ms: i64,
    latencies_ms: Vec<i32>,
    sampling: i64,
    interval_ms: i64,
    all: Sums,
    window_start_ms: i64,
    window: Sums,
    is_steady: bool,
    pub is_quiet: bool,
}

#[derive(Debug, Default)]
struct Sums {
    count: i64,
    bytes: i64,
    latency_ms: i64,
    latency_max_ms: i64,
}

impl Sums {
    fn add(&mut self, latency_ms: i64, bytes: i64) {
        self.count += 1;
        self.bytes += bytes;
        self.latency_ms += latency_ms;
        self.latency_max_ms = self.latency_max_ms.max(latency_ms);
    }

    fn average_ms(&self) -> f64 {
        float(self.latency_ms) / float(self.count)
    }
}

impl Stats {
    /// Of `records` records, with a line every `interval_ms`. `is_steady`: those after the warm-up.
    pub fn new(records: i64, interval_ms: i64, is_steady: bool) -> Stats {
        let now = now_ms();
        Stats {
            start_ms: now,
            latencies_ms: Vec::new(),
            sampling: records / records.clamp(1, SAMPLES_MAX),
            interval_ms,
            all: Sums::default(),
            window_start_ms: now,
            window: Sums::default(),
            is_steady,
            is_quiet: false,
        }
    }

    /// A record was written at `now_ms`.
    pub fn record(&mut self, latency_ms: i64, bytes: i64, now_ms: i64) -> Result<(), Stop> {
        if self.all.count % self.sampling.max(1) == 0 {
            self.latencies_ms.push(i32::try_from(latency_ms).unwrap_or(i32::MAX));
        }
        self.all.add(latency_ms, bytes);
        self.window.add(latency_ms, bytes);
        if now_ms - self.window_start_ms >= self.interval_ms {
            self.end_window()?;
        }
        Ok(())
    }

    fn end_window(&mut self) -> Result<(), Stop> {
        if self.is_steady && self.all.count == self.window.count {
            say!("In steady state.")?;
        }
        let now = now_ms();
        if !self.is_quiet {
            let seconds = float(now - self.window_start_ms) / 1000.0;
            say!(
                "{} records sent, {} records/sec ({} MB/sec), {} ms avg latency, {} ms max latency.",
                self.window.count,
                fixed(float(self.window.count) / seconds, 1),
                fixed(megabytes(self.window.bytes) / seconds, 2),
                fixed(self.window.average_ms(), 1),
                fixed(float(self.window.latency_max_ms), 1)
            )?;
        }
        self.window_start_ms = now;
        self.window = Sums::default();
        Ok(())
    }

    /// The line at the end.
    pub fn print_total(&mut self) -> Result<(), Stop> {
        let seconds = float(now_ms() - self.start_ms) / 1000.0;
        let percentiles = percentiles(&mut self.latencies_ms, &[0.5, 0.95, 0.99, 0.999]);
        let [p50, p95, p99, p999] = *percentiles.as_array().unwrap_or(&[0; 4]);
        say!(
            "{}{} records sent, {} records/sec ({} MB/sec), {} ms avg latency, {} ms max latency, {p50} ms 50th, {p95} ms 95th, \
             {p99} ms 99th, {p999} ms 99.9th.",
            self.all.count,
            if self.is_steady { " steady state" } else { "" },
            fixed(float(self.all.count) / seconds, 6),
            fixed(megabytes(self.all.bytes) / seconds, 2),
            fixed(self.all.average_ms(), 2),
            fixed(float(self.all.latency_max_ms), 2),
        )
    }
}

/// The latency below which each share of the records lies, as the original takes it: the element at `share * count` of the
/// sorted ones, 0 where there are none.
fn percentiles(latencies: &mut [i32], shares: &[f64]) -> Vec<i32> {
    latencies.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the original rounds down as well")]
    let at = |share: &f64| (share * latencies.len() as f64) as usize;
    shares.iter().map(|share| latencies.get(at(share)).copied().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_original_s() {
        assert_eq!(percentiles(&mut [], &[0.5, 0.999]), [0, 0]);
        assert_eq!(percentiles(&mut [7], &[0.5, 0.999]), [7, 7]);
        let mut latencies: Vec<i32> = (0..1000).rev().collect();
        assert_eq!(percentiles(&mut latencies, &[0.5, 0.95, 0.99, 0.999]), [500, 950, 990, 999]);
    }

    #[test]
    fn long_runs_are_sampled() {
        let mut stats = Stats::new(5_000_000, i64::MAX, false);
        (0..1000).for_each(|n| stats.record(n, 1, 0).unwrap());
        assert_eq!((stats.latencies_ms.len(), stats.all.count, stats.all.latency_max_ms), (100, 1000, 999));
    }
}
