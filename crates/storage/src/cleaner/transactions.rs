//! Which transactions were aborted: their records are no values of their keys, and go.
//!
//! The cleaner never comes beyond the last stable offset, so the end of each transaction that it meets is in the log.

use std::collections::HashMap;
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
