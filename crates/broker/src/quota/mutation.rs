//! `controller_mutation_rate`: partitions that a client may create and delete per second (KIP-599), from a bucket of tokens.
//!
//! Requests of newer clients are refused topic by topic while the bucket is overdrawn (THROTTLING_QUOTA_EXCEEDED); those of older
//! ones are carried out, and the client has to pause. As in Kafka a single request may overdraw the bucket.

use super::{Kind, Quotas, Share, Windows, client_id};
use crate::api::RequestHeader;
use crate::clock;

/// What a client may still do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f64,
    refilled_ms: i64,
    /// When it will be full, and is as good as a new one.
    full_ms: i64,
}

impl Bucket {
    /// A full one.
    fn new(limit: f64, windows: Windows, now_ms: i64) -> Bucket {
        Bucket { tokens: most(limit, windows), refilled_ms: now_ms, full_ms: now_ms }
    }

    fn refill(&mut self, limit: f64, windows: Windows, now_ms: i64) {
        let elapsed_s = (now_ms - self.refilled_ms).max(0) as f64 / 1000.0;
        self.tokens = (self.tokens + limit * elapsed_s).min(most(limit, windows));
        self.refilled_ms = now_ms;
    }

    fn take(&mut self, tokens: f64, limit: f64, windows: Windows) {
        self.tokens -= tokens;
        // Saturates.
        let missing_ms = ((most(limit, windows) - self.tokens) / limit * 1000.0).ceil() as i64;
        self.full_ms = self.refilled_ms.saturating_add(missing_ms);
    }

    /// Milliseconds until it is no longer overdrawn.
    fn pause_ms(&self, limit: f64) -> i32 {
        if self.tokens >= 0.0 {
            return 0;
        }
        // Saturates.
        (-self.tokens / limit * 1000.0).round() as i32
    }
}

fn most(limit: f64, windows: Windows) -> f64 {
    limit * windows.all_ms() as f64 / 1000.0
}

/// What became of the parts of a request.
#[derive(Debug)]
pub struct Admitted<T> {
    pub admitted: Vec<T>,
    /// They would overdraw the bucket further.
    pub refused: Vec<T>,
    /// For how long the client has to pause.
    pub throttle_ms: i32,
}

impl Quotas {
    /// Takes leave for each part of a request that changes some number of partitions. `strict`: the client knows
    /// THROTTLING_QUOTA_EXCEEDED.
    pub fn admit<T>(
        &self,
        header: &RequestHeader,
        strict: bool,
        items: Vec<T>,
        partitions: impl Fn(&T) -> usize,
    ) -> Admitted<T> {
        let mut all = Admitted { admitted: Vec::new(), refused: Vec::new(), throttle_ms: 0 };
        let mut inner = self.inner.lock();
        let share = if self.is_set(Kind::Mutation) { inner.share(Kind::Mutation, client_id(header)) } else { None };
        let Some(Share { limit, client, quota }) = share else {
            all.admitted = items;
            return all;
        };
        let now_ms = clock::monotonic_ms();
        let windows = self.mutation_windows;
        let full = || Bucket::new(limit, windows, now_ms);
        let (bucket, together) = inner.buckets.get(client, quota, now_ms, full, |bucket| bucket.full_ms <= now_ms);
        bucket.refill(limit, windows, now_ms);
        for item in items {
            let count = partitions(&item);
            if count > 0 && strict && bucket.tokens < 0.0 {
                all.refused.push(item);
                continue;
            }
            bucket.take(count as f64, limit, windows);
            all.admitted.push(item);
        }
        if together {
            // Nobody pays for what others did long ago.
            bucket.tokens = bucket.tokens.max(-most(limit, windows));
        }
        if !strict || !all.refused.is_empty() {
            all.throttle_ms = bucket.pause_ms(limit);
        }
        drop(inner);
        header.connection.mute(all.throttle_ms);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_up_to_its_windows() {
        let windows = Windows { window_ms: 1000, samples: 10 };
        let mut bucket = Bucket::new(2.0, windows, 0);
        assert_eq!(bucket.tokens, 20.0);
        bucket.take(30.0, 2.0, windows);
        assert_eq!((bucket.pause_ms(2.0), bucket.full_ms), (5000, 15_000));
        bucket.refill(2.0, windows, 4000);
        assert_eq!(bucket.pause_ms(2.0), 1000);
        bucket.refill(2.0, windows, 60_000);
        assert_eq!((bucket.pause_ms(2.0), bucket.tokens), (0, 20.0));
    }
}
