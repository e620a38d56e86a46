//! Which transactions were aborted: their records are no values of their keys, and go. And which markers end a transaction
//! that is all gone: they go too, when readers have had the time to see them.
//!
//! The cleaner never comes beyond the last stable offset, so the end of each transaction that it meets is in the log.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use caudal_protocol::batch::{Batch, BatchHeader};

use super::CleanError;
use crate::scan::HeaderScan;
use crate::segment::Segment;

/// Offsets of aborted transactions by producer, both ends inclusive, ascending.
#[derive(Debug, Default)]
pub(super) struct Aborted(HashMap<i64, Vec<(i64, i64)>>);

/// The second half of the key of a control record (`ControlRecordType`).
const ABORT: &[u8] = &[0, 0];

impl Aborted {
    /// Looks for markers from `from_offset` on; a transaction that was begun earlier counts from there.
    pub fn find(segments: &[Arc<Segment>], from_offset: i64) -> Result<Aborted, CleanError> {
        let mut aborted = Aborted::default();
        let mut open: HashMap<i64, i64> = HashMap::new();
        for segment in segments {
            let damaged = |error| CleanError::from_scan(error, segment);
            let mut scan = HeaderScan::new(segment.file.as_ref(), 0, segment.size());
            while let Some((position, header)) = scan.next().map_err(damaged)? {
                if header.last_offset() < from_offset {
                    continue;
                }
                let producer_id = header.producer_id;
                if !header.is_control() {
                    if header.is_transactional() {
                        open.entry(producer_id).or_insert(header.base_offset);
                    }
                    continue;
                }
                let first = open.remove(&producer_id).unwrap_or(from_offset);
                if is_abort(segment, position, &header)? {
                    aborted.0.entry(producer_id).or_default().push((first, header.last_offset()));
                }
            }
        }
        Ok(aborted)
    }

    pub fn contains(&self, header: &BatchHeader) -> bool {
        header.is_transactional()
            && !header.is_control()
            && self.0.get(&header.producer_id).is_some_and(|ranges| {
                let at = ranges.partition_point(|(_, last)| *last < header.base_offset);
                ranges.get(at).is_some_and(|(first, _)| *first <= header.base_offset)
            })
    }
}

/// What becomes of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MarkerFate {
    /// There are batches of its transaction.
    Kept,
    /// There are none any more: from now on it has a horizon.
    BeginsHorizon,
    /// Its time has come.
    Gone,
}

/// The transactions that have batches, as a walk from the beginning of the log meets them.
///
/// Source: `CleanedTransactionMetadata` of Kafka, KIP-534.
#[derive(Debug, Default)]
pub(super) struct Observed {
    producers: HashSet<i64>,
    /// Markers of transactions without batches.
    superfluous: HashSet<i64>,
}

impl Observed {
    pub fn batch(&mut self, header: &BatchHeader) {
        if header.is_transactional() {
            self.producers.insert(header.producer_id);
        }
    }

    pub fn marker(&mut self, header: &BatchHeader, now_ms: i64) -> MarkerFate {
        let is_emptied = header.record_count == 0;
        if !is_emptied && self.producers.remove(&header.producer_id) {
            return MarkerFate::Kept;
        }
        self.superfluous.insert(header.last_offset());
        match header.delete_horizon_ms() {
            None if is_emptied => MarkerFate::Gone,
            None => MarkerFate::BeginsHorizon,
            Some(horizon_ms) if horizon_ms <= now_ms => MarkerFate::Gone,
            Some(_) => MarkerFate::Kept,
        }
    }

    /// Whether the transaction that the marker at an offset ended has no batches left.
    pub fn is_superfluous(&self, marker_offset: i64) -> bool {
        self.superfluous.contains(&marker_offset)
    }
}

fn is_abort(segment: &Segment, position: u64, header: &BatchHeader) -> Result<bool, CleanError> {
    let mut bytes = vec![0; header.size_bytes()];
    segment.file.read_at(&mut bytes, position)?;
    let damaged = |reason: String| CleanError::Damaged { path: segment.path.clone(), position, reason };
    let batch = Batch::parse(&Bytes::from(bytes)).map_err(|e| damaged(e.to_string()))?;
    let records = batch.records(super::DECOMPRESSED_LIMIT).map_err(|e| damaged(e.to_string()))?;
    let first = records.iter().next().transpose().map_err(|e| damaged(e.to_string()))?;
    // version i16, type i16
    Ok(first.and_then(|record| record.key).and_then(|key| key.get(2..4)) == Some(ABORT))
}
