//! Offsets that should be in a log and are in none of its files: a segment that was removed or cut behind the broker's
//! back. Nothing can bring them back, so reads go on behind them, as in Kafka; but whoever operates the broker has to hear
//! of it, and what was given out once is not given out again.
//!
//! Only the ends of segments are looked at. Compaction leaves gaps everywhere, between segments too, so of a compacted log
//! only a batch that contradicts its neighbours and a segment whose indexes have lost their log say anything.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::recover::LogRecovery;
use crate::disk::Disk;
use crate::index::{IndexEntry, IndexFile, OffsetEntry, TimeEntry};
use crate::scan::{HeaderScan, ScanError};
use crate::segment::{
    CorruptRange, INDEX_SUFFIX, MissingRange, Segment, TIME_INDEX_SUFFIX, TRANSACTION_INDEX_SUFFIX, file_path,
};

/// Indexes without the log they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    pub base_offset: i64,
    /// The offset behind the last record that the indexes know; the base offset when they are empty.
    pub next_offset: i64,
}

const SUFFIXES: [&str; 3] = [INDEX_SUFFIX, TIME_INDEX_SUFFIX, TRANSACTION_INDEX_SUFFIX];

/// What the indexes of a segment without a log tell of it.
pub(super) fn orphan(disk: &Arc<dyn Disk>, dir: &Path, base_offset: i64) -> io::Result<Orphan> {
    let offsets = last::<OffsetEntry>(disk, dir, base_offset, INDEX_SUFFIX)?.map(|entry| entry.relative_offset);
    let times = last::<TimeEntry>(disk, dir, base_offset, TIME_INDEX_SUFFIX)?.map(|entry| entry.relative_offset);
    let known = [offsets, times].into_iter().flatten().filter(|&relative| i32::try_from(relative).is_ok()).max();
    let next_offset = known.map_or(base_offset, |relative| base_offset.saturating_add(i64::from(relative) + 1));
    Ok(Orphan { base_offset, next_offset })
}

fn last<E: IndexEntry>(disk: &Arc<dyn Disk>, dir: &Path, base_offset: i64, suffix: &str) -> io::Result<Option<E>> {
    let index = IndexFile::<E>::open(Arc::clone(disk), file_path(dir, base_offset, suffix))?;
    Ok(index.and_then(|index| index.last()))
}

/// Removes the indexes of segments that have no log. A segment that took the place of one has indexes of its own.
pub(super) fn remove_orphans(
    disk: &dyn Disk,
    dir: &Path,
    orphans: &[Orphan],
    segments: &[Arc<Segment>],
) -> io::Result<()> {
    for orphan in orphans {
        let replaced = segments.iter().any(|segment| segment.base_offset == orphan.base_offset);
        for suffix in SUFFIXES.iter().filter(|&&suffix| !replaced || suffix == TRANSACTION_INDEX_SUFFIX) {
            match disk.remove_file(&file_path(dir, orphan.base_offset, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Compares the first batch of a segment with the segment's name and with the batch behind it.
pub(super) fn check_first_batch(
    segment: &Segment,
    (following, end): (Option<i64>, i64),
    compacted: bool,
    report: &mut LogRecovery,
) -> io::Result<()> {
    if segment.corrupt_ranges().iter().any(|range| range.start_position == 0) {
        return Ok(());
    }
    let base = segment.base_offset;
    let mut scan = HeaderScan::new(segment.file.as_ref(), 0, segment.size());
    let mut next = || match scan.next() {
        Ok(found) => Ok(found),
        // Whoever reads there is told.
        Err(ScanError::Batch { .. }) => Ok(None),
        Err(ScanError::Io(error)) => Err(error),
    };
    let Some((_, first)) = next()?.filter(|(_, first)| first.base_offset != base) else { return Ok(()) };
    let second = next()?;
    let behind = second.map(|(_, second)| second.base_offset).or(following);
    let contradicts = first.base_offset < base || behind.is_some_and(|behind| behind < first.next_offset());
    if contradicts {
        let range = CorruptRange {
            start_position: 0,
            end_position: second.map_or_else(|| segment.size(), |(position, _)| position),
            first_offset: base,
            next_offset: behind.unwrap_or(end).max(base),
        };
        segment.add_corrupt_range(range);
        report.corrupt.push(range);
    } else if !compacted {
        report.missing.push(MissingRange { first_offset: base, next_offset: first.base_offset });
    }
    Ok(())
}

/// Notes that a segment ends before the next one begins.
pub(super) fn check_end(end: i64, following: Option<i64>, compacted: bool, report: &mut LogRecovery) {
    if let Some(following) = following.filter(|&following| end < following && !compacted) {
        report.missing.push(MissingRange { first_offset: end, next_offset: following });
    }
}

impl LogRecovery {
    /// Forgets what is missing below the start of the log, and joins what is missing in one piece.
    pub(super) fn settle_missing(&mut self, log_start: i64) {
        let mut settled: Vec<MissingRange> = Vec::new();
        for range in std::mem::take(&mut self.missing) {
            let first_offset = range.first_offset.max(log_start);
            match settled.last_mut() {
                _ if range.next_offset <= first_offset => {}
                Some(before) if before.next_offset >= first_offset => before.next_offset = range.next_offset,
                _ => settled.push(MissingRange { first_offset, next_offset: range.next_offset }),
            }
        }
        self.missing = settled;
    }
}
