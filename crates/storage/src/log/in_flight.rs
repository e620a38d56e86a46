//! What snapshots of producer state leave out: they hold the last batch of each producer, and a producer that got no
//! answer sends up to five again. The headers in front of the snapshot tell of the others.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::producer_state::{EarlierBatches, ProducerState};
use crate::scan::{HeaderScan, ScanError};
use crate::segment::Segment;

/// How far to look back at first, in bytes of the log, ...
const FIRST_LOOK: u64 = 256 << 10;
/// ... and at most: five requests of the largest size that clients send by default.
const LONGEST_LOOK: u64 = 8 << 20;

/// Adds the batches in front of `snapshot_offset` to a state that was read from the snapshot there.
pub(super) fn complete_batches(
    segments: &[Arc<Segment>],
    snapshot_offset: i64,
    log_end_offset: i64,
    producers: &mut ProducerState,
) -> io::Result<()> {
    // At the end nothing has to be looked up.
    let end = if snapshot_offset >= log_end_offset { i64::MAX } else { snapshot_offset };
    let mut look = FIRST_LOOK;
    while !producers.is_empty() {
        let (first_offset, earlier) = batches_before(segments, end, look)?;
        let complete = producers.add_earlier(&earlier, first_offset);
        if complete || look >= LONGEST_LOOK {
            break;
        }
        look *= 4;
    }
    Ok(())
}

/// The batches of producers in the last `look` bytes or so in front of `end`, and the offset where these bytes begin;
/// `i64::MIN` when the log does.
fn batches_before(segments: &[Arc<Segment>], end: i64, look: u64) -> io::Result<(i64, EarlierBatches)> {
    let mut left = look;
    let mut ranges = Vec::new();
    for segment in segments.iter().rev().filter(|segment| segment.base_offset < end) {
        let end_position = match if end == i64::MAX { Ok(None) } else { segment.find(end, segment.size()) } {
            Ok(Some(found)) => found.position,
            Ok(None) => segment.size(),
            // A damaged batch in the way: what lies in front of it is not worth guessing.
            Err(_) => break,
        };
        let start = match end_position.checked_sub(left) {
            Some(target) => segment.floor_of_position(target)?,
            None => 0,
        };
        ranges.push((segment, start, end_position));
        left = left.saturating_sub(end_position - start);
        if left == 0 {
            break;
        }
    }
    let mut first_offset = if left > 0 { Some(i64::MIN) } else { None };
    let mut earlier: EarlierBatches = HashMap::new();
    for (segment, start, end_position) in ranges.into_iter().rev() {
        let mut scan = HeaderScan::new(segment.file.as_ref(), start, end_position);
        loop {
            match scan.next() {
                Ok(Some((_, header))) => {
                    first_offset.get_or_insert(header.base_offset);
                    if header.has_producer_id() && !header.is_control() {
                        earlier.entry(header.producer_id).or_default().push(header);
                    }
                }
                Ok(None) | Err(ScanError::Batch { .. }) => break,
                Err(ScanError::Io(error)) => return Err(error),
            }
        }
    }
    Ok((first_offset.unwrap_or(i64::MIN), earlier))
}
