//! What an append will cost, as far as that can be told beforehand: who must not block asks first.

use std::sync::atomic::{AtomicUsize, Ordering};

use caudal_protocol::batch::{BatchHeader, HEADER_LEN};
use caudal_protocol::compression::{self, Codec};

use super::append::must_roll;
use super::check::DECOMPRESSED_LIMIT;
use super::{AppendOrigin, Log, wall_clock_ms};

/// How long an append takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AppendCost {
    /// A short write into the page cache.
    #[default]
    Quick,
    /// It has to sync files first (the first batch of a segment or of a leader epoch), or to wait for somebody who holds
    /// the log for long.
    Syncs,
    /// It decompresses or compresses batches, which takes time and memory.
    Unfolds {
        /// As large as they are decompressed, or larger.
        bytes: usize,
    },
}

impl AppendCost {
    /// Of both appends.
    pub fn and(self, other: AppendCost) -> AppendCost {
        match (self, other) {
            (AppendCost::Unfolds { bytes }, AppendCost::Unfolds { bytes: more }) => {
                AppendCost::Unfolds { bytes: bytes.saturating_add(more) }
            }
            (one, other) => one.max(other),
        }
    }
}

/// While it lives, appends are told that they may have to wait.
#[derive(Debug)]
pub(super) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Log {
    /// What [`Log::append`] of the same would cost now. It looks at the first batch only, and takes no lock that is held for
    /// long; another append that comes in between can prove it wrong.
    pub fn append_cost(&self, batches: &[u8], leader_epoch: i32, origin: AppendOrigin) -> AppendCost {
        // What cannot be read is refused, and quickly.
        let Ok(header) = BatchHeader::parse(batches) else { return AppendCost::Quick };
        let config = self.config();
        let folds = config.compression.is_some_and(|codec| codec != Codec::None);
        if origin == AppendOrigin::Client && (folds || header.codec() != Some(Codec::None)) {
            let records = batches.get(HEADER_LEN..).filter(|_| batches.len() <= config.max_message_bytes);
            let bytes = |records| Some(compression::decompresses_to_at_most(header.codec()?, records));
            // What is refused before that is not decompressed, and no more than the limit is.
            return AppendCost::Unfolds { bytes: records.and_then(bytes).unwrap_or(0).min(DECOMPRESSED_LIMIT) };
        }
        if self.is_busy() || self.epochs.lock().latest() != Some(leader_epoch) {
            return AppendCost::Syncs;
        }
        let times = (header.max_timestamp_ms, wall_clock_ms());
        // The jitter of this segment is the writer's secret: at most it is this.
        let jitter_ms = config.segment_jitter_ms.clamp(0, config.roll_ms().max(0));
        let rolls = |active: &crate::segment::Segment| {
            let last_offset = self.log_end_offset() + i64::from(header.last_offset_delta);
            !active.can_hold(last_offset) || must_roll(active, &config, batches.len() as u64, times, jitter_ms)
        };
        if self.snapshot().last().is_none_or(|active| rolls(active)) { AppendCost::Syncs } else { AppendCost::Quick }
    }

    /// Whether somebody holds the log for long, so that what changes it has to wait.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0
    }

    pub(super) fn busy(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::AcqRel);
        Busy(&self.busy)
    }
}
