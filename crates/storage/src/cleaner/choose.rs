//! Which part of a log may be cleaned, and which log needs it most.

use std::sync::Arc;

use crate::log::Log;
use crate::segment::Segment;

/// A log and what there is to clean in it.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub log: Arc<Log>,
    /// Where the part that was never cleaned begins.
    pub first_dirty: i64,
    /// Exclusive; the base offset of a segment.
    pub first_uncleanable: i64,
    /// Size of the cleanable part, and of it with all before it.
    pub cleanable_bytes: u64,
    pub total_bytes: u64,
    /// A record waited for longer than `max.compaction.lag.ms`.
    pub overdue: bool,
}

impl Candidate {
    /// `cleaned`: the checkpoint of the log, where it has one.
    pub fn of(log: &Arc<Log>, cleaned: Option<i64>, now_ms: i64) -> Option<Candidate> {
        let config = log.config();
        let segments = log.snapshot();
        let (active, closed) = segments.split_last()?;
        let start = log.log_start_offset();
        let first_dirty = match cleaned {
            Some(point) if (start..=log.log_end_offset()).contains(&point) => point,
            // Deleted from the start, or cut off at the end by a recovery: then everything counts as new.
            _ => start,
        };
        let dirty = closed.get(floor(closed, first_dirty)..).unwrap_or_default();
        let mut uncleanable = log.last_stable_offset().min(log.durable_end_offset()).min(active.base_offset);
        if config.min_compaction_lag_ms > 0 {
            let horizon_ms = now_ms.saturating_sub(config.min_compaction_lag_ms);
            if let Some(young) = dirty.iter().find(|segment| segment.max_timestamp_ms() > horizon_ms) {
                uncleanable = uncleanable.min(young.base_offset);
            }
        }
        // Whole segments only.
        let uncleanable = uncleanable.max(first_dirty);
        let first_uncleanable = match uncleanable < active.base_offset {
            true => closed.get(floor(closed, uncleanable)).map_or(active.base_offset, |segment| segment.base_offset),
            false => active.base_offset,
        };
        let size = |segments: &[Arc<Segment>]| segments.iter().map(|segment| segment.size()).sum::<u64>();
        let below = |offset: i64| closed.partition_point(|segment| segment.base_offset < offset);
        let cleanable = closed.get(floor(closed, first_dirty)..below(first_uncleanable)).unwrap_or_default();
        let clean = closed.get(..below(first_dirty)).unwrap_or_default();
        let cleanable_bytes = if first_uncleanable > first_dirty { size(cleanable) } else { 0 };
        let total_bytes = size(clean) + cleanable_bytes;
        let overdue = config.max_compaction_lag_ms < i64::MAX && {
            let due_ms = now_ms.saturating_sub(config.max_compaction_lag_ms);
            let oldest_ms = dirty.iter().map(|segment| segment.first_timestamp_ms()).filter(|&ms| ms > 0).min();
            oldest_ms.is_some_and(|oldest_ms| oldest_ms < due_ms)
        };
        let log = Arc::clone(log);
        Some(Candidate { log, first_dirty, first_uncleanable, cleanable_bytes, total_bytes, overdue })
    }

    /// The share of the log that was not cleaned yet, of what may be cleaned.
    pub fn dirty_ratio(&self) -> f64 {
        if self.total_bytes == 0 { 0.0 } else { self.cleanable_bytes as f64 / self.total_bytes as f64 }
    }

    /// Whether it is time.
    pub fn is_due(&self) -> bool {
        self.cleanable_bytes > 0 && (self.overdue || self.dirty_ratio() > self.log.config().min_cleanable_dirty_ratio)
    }
}

/// The place of the segment that holds an offset, or of the first one.
pub(super) fn floor(segments: &[Arc<Segment>], offset: i64) -> usize {
    segments.partition_point(|segment| segment.base_offset <= offset).saturating_sub(1)
}
