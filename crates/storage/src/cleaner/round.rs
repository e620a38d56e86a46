//! One cleaning of one log: the newest offset of each key in the part that was never cleaned, then every segment up to
//! there written anew without the records that have a newer one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use caudal_protocol::batch::{Batch, BatchHeader};

use super::choose::{Candidate, floor};
use super::destination::Destination;
use super::offset_map::OffsetMap;
use super::throttle::Throttle;
use super::transactions::{Aborted, MarkerFate, Observed};
use super::{CleanError, Cleaned, CleanerConfig, DECOMPRESSED_LIMIT};
use crate::config::LogConfig;
use crate::log::Log;
use crate::producer_state::LastBatch;
use crate::scan::BatchScan;
use crate::segment::Segment;

/// What a thread cleans with.
pub(super) struct Tools<'a> {
    pub config: &'a CleanerConfig,
    pub throttle: &'a Throttle,
    /// Asked often.
    pub is_stopped: &'a dyn Fn() -> bool,
    /// Sleeps for at most so long, less when the cleaner is stopped.
    pub pause: &'a dyn Fn(Duration),
    pub now_ms: i64,
}

/// How long a throttled cleaner does not look whether it should end.
const PAUSE: Duration = Duration::from_millis(100);

impl Tools<'_> {
    /// Waits until `bytes` more may be read or written.
    fn spend(&self, log: &Log, bytes: usize) -> Result<(), CleanError> {
        let begin = Instant::now();
        let wait = self.throttle.take(bytes, begin);
        loop {
            if (self.is_stopped)() || log.is_closing() {
                return Err(CleanError::Interrupted);
            }
            match wait.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
                None => return Ok(()),
                Some(left) => (self.pause)(left.min(PAUSE)),
            }
        }
    }

    fn io_buffer_bytes(&self) -> usize {
        (self.config.io_buffer_bytes / self.config.threads.max(1) / 2).max(4096)
    }
}

/// A log while it is cleaned.
pub(super) struct Round<'a> {
    tools: &'a Tools<'a>,
    log: &'a Arc<Log>,
    config: Arc<LogConfig>,
    candidate: &'a Candidate,
    keys: OffsetMap,
    /// The last offset that `keys` knows of.
    latest: i64,
    aborted: Aborted,
    observed: Observed,
    report: Cleaned,
}

impl<'a> Round<'a> {
    /// Cleans; the caller holds the log's `cleaning` lock. The report's `end_offset` is where the next round begins.
    pub fn run(tools: &'a Tools<'a>, candidate: &'a Candidate) -> Result<Cleaned, CleanError> {
        let begin = Instant::now();
        let log = &candidate.log;
        let snapshot = log.snapshot();
        let closed = snapshot.partition_point(|segment| segment.base_offset < candidate.first_uncleanable);
        let segments = snapshot.get(..closed.min(snapshot.len().saturating_sub(1))).unwrap_or_default();
        if let Some((segment, range)) =
            segments.iter().find_map(|segment| Some((segment, segment.corrupt_ranges().first().copied()?)))
        {
            let reason = "it was damaged when the log was opened".to_owned();
            return Err(CleanError::Damaged { path: segment.path.clone(), position: range.start_position, reason });
        }
        let most_keys = candidate.first_uncleanable.saturating_sub(candidate.first_dirty).unsigned_abs();
        let memory = (tools.config.dedupe_buffer_bytes / tools.config.threads.max(1)).min(i32::MAX as usize);
        let mut round = Round {
            tools,
            log,
            config: log.config(),
            candidate,
            keys: OffsetMap::new(memory, tools.config.dedupe_load_factor, most_keys),
            latest: candidate.first_dirty - 1,
            aborted: Aborted::below(log, candidate.first_uncleanable),
            observed: Observed::default(),
            report: Cleaned::of(candidate),
        };
        let dirty = segments.get(floor(segments, candidate.first_dirty)..).unwrap_or_default();
        round.index(dirty)?;
        let end = round.latest + 1;
        let cleaned = segments.get(..segments.partition_point(|segment| segment.base_offset < end));
        for group in groups(cleaned.unwrap_or_default(), &round.config, candidate.first_uncleanable) {
            round.clean(group)?;
        }
        round.report.end_offset = end;
        round.report.buffer_utilization = round.keys.utilization();
        round.report.elapsed = begin.elapsed();
        Ok(round.report)
    }

    fn index(&mut self, dirty: &[Arc<Segment>]) -> Result<(), CleanError> {
        let from = self.candidate.first_dirty;
        for (at, segment) in dirty.iter().enumerate() {
            let start = match segment.base_offset < from {
                false => 0,
                true => {
                    let found = segment.find(from, segment.size()).map_err(|e| CleanError::from_lookup(e, segment))?;
                    found.map_or(segment.size(), |found| found.position)
                }
            };
            let mut scan =
                BatchScan::with_chunk(segment.file.as_ref(), start, segment.size(), self.tools.io_buffer_bytes());
            while let Some((position, header)) = scan.next().map_err(|e| CleanError::from_scan(e, segment))? {
                self.tools.spend(self.log, header.size_bytes())?;
                if !self.index_batch(segment, (position, &header), scan.batch(position, &header))? {
                    return Ok(());
                }
            }
            let next = dirty.get(at + 1).map_or(self.candidate.first_uncleanable, |next| next.base_offset);
            self.latest = self.latest.max(next - 1);
        }
        Ok(())
    }

    /// False when the map is full.
    fn index_batch(
        &mut self,
        segment: &Segment,
        (position, header): (u64, &BatchHeader),
        bytes: &[u8],
    ) -> Result<bool, CleanError> {
        let from = self.candidate.first_dirty;
        if !header.is_control() && !self.aborted.contains(header) {
            let damaged = |reason: String| CleanError::Damaged { path: segment.path.clone(), position, reason };
            let batch = Batch { header: *header, bytes: Bytes::copy_from_slice(bytes) };
            let records = batch.records(DECOMPRESSED_LIMIT).map_err(|e| damaged(e.to_string()))?;
            for record in records.iter() {
                let record = record.map_err(|e| damaged(e.to_string()))?;
                let Some(key) = record.key.filter(|_| record.offset >= from) else { continue };
                if !self.keys.put(key, record.offset) {
                    return Ok(false);
                }
                self.latest = self.latest.max(record.offset);
            }
        }
        self.latest = self.latest.max(header.last_offset());
        Ok(true)
    }

    /// Writes a group of segments into one and puts it in their place.
    fn clean(&mut self, group: &[Arc<Segment>]) -> Result<(), CleanError> {
        let Some(first) = group.first() else { return Ok(()) };
        let copied = self.copy(group);
        let cleaned =
            copied.and_then(|destination| Ok(destination.finish(group, |at| !self.observed.is_superfluous(at))?));
        let replaced = cleaned.and_then(|cleaned| Ok(self.log.replace_segments(group, cleaned)?));
        if replaced.is_err() && self.log.check_online().is_ok() {
            self.log.remove_cleaned_files(first.base_offset);
        }
        replaced?;
        // Without its marker it would never end for readers.
        self.log.forget_aborted(|marker| self.observed.is_superfluous(marker));
        Ok(())
    }

    fn copy(&mut self, group: &[Arc<Segment>]) -> Result<Destination, CleanError> {
        let producers = self.log.last_batches();
        let interval = self.config.index_interval_bytes;
        let mut destination = Destination::create(self.log, group, interval, self.tools.io_buffer_bytes())?;
        for segment in group {
            let mut scan =
                BatchScan::with_chunk(segment.file.as_ref(), 0, segment.size(), self.tools.io_buffer_bytes());
            while let Some((position, header)) = scan.next().map_err(|e| CleanError::from_scan(e, segment))? {
                let before = destination.size();
                let bytes = scan.batch(position, &header);
                self.copy_batch(segment, (position, &header), bytes, &producers, &mut destination)?;
                let written = usize::try_from(destination.size() - before).unwrap_or(usize::MAX);
                self.report.bytes_read += bytes.len() as u64;
                self.report.bytes_written += written as u64;
                self.tools.spend(self.log, bytes.len() + written)?;
            }
        }
        Ok(destination)
    }

    fn copy_batch(
        &mut self,
        segment: &Segment,
        (position, header): (u64, &BatchHeader),
        bytes: &[u8],
        producers: &HashMap<i64, LastBatch>,
        destination: &mut Destination,
    ) -> Result<(), CleanError> {
        let count = u64::from(header.record_count.unsigned_abs());
        self.report.records_read += count;
        // A producer's last batch tells its last sequence number; the last batch of the round where the log goes on.
        let stays = producers.get(&header.producer_id).is_some_and(|last| last.is(header))
            || header.next_offset() == self.candidate.first_uncleanable;
        if header.is_control() {
            return self.copy_marker(segment, (position, header), bytes, stays, destination);
        }
        self.observed.batch(header);
        let damaged = |reason: String| CleanError::Damaged { path: segment.path.clone(), position, reason };
        let is_aborted = self.aborted.contains(header);
        let batch = Batch { header: *header, bytes: Bytes::copy_from_slice(bytes) };
        let records = batch.records(DECOMPRESSED_LIMIT).map_err(|e| damaged(e.to_string()))?;
        let mut kept = Vec::new();
        let mut tombstones = false;
        let mut dropped = is_aborted;
        for record in records.iter().take_while(|_| !is_aborted) {
            let record = record.map_err(|e| damaged(e.to_string()))?;
            if self.keeps(header, record.offset, record.key, record.value.is_none()) {
                tombstones |= record.value.is_none();
                kept.push(record);
            } else {
                dropped = true;
            }
        }
        self.report.records_kept += kept.len() as u64;
        if kept.is_empty() && !stays {
            return Ok(());
        }
        let begins_horizon = tombstones && header.delete_horizon_ms().is_none();
        if !dropped && !begins_horizon {
            return Ok(destination.write(bytes, header)?);
        }
        let horizon_ms = begins_horizon.then(|| self.tools.now_ms.saturating_add(self.config.delete_retention_ms));
        let rewritten = caudal_protocol::batch::rewrite(header, &kept, horizon_ms);
        let rewritten = rewritten.map_err(|e| damaged(e.to_string()))?;
        let header = BatchHeader::parse(&rewritten).map_err(|e| damaged(e.to_string()))?;
        Ok(destination.write(&rewritten, &header)?)
    }

    fn copy_marker(
        &mut self,
        segment: &Segment,
        (position, header): (u64, &BatchHeader),
        bytes: &[u8],
        stays: bool,
        destination: &mut Destination,
    ) -> Result<(), CleanError> {
        let damaged = |reason: String| CleanError::Damaged { path: segment.path.clone(), position, reason };
        let count = u64::from(header.record_count.unsigned_abs());
        let fate = self.observed.marker(header, self.tools.now_ms);
        let mut kept = Vec::new();
        let mut horizon_ms = None;
        let batch = Batch { header: *header, bytes: Bytes::copy_from_slice(bytes) };
        let records = batch.records(DECOMPRESSED_LIMIT).map_err(|e| damaged(e.to_string()))?;
        match fate {
            MarkerFate::Gone if !stays => return Ok(()),
            MarkerFate::Gone if count > 0 => {}
            MarkerFate::BeginsHorizon => {
                horizon_ms = Some(self.tools.now_ms.saturating_add(self.config.delete_retention_ms));
                let all: Result<Vec<_>, _> = records.iter().collect();
                kept = all.map_err(|e| damaged(e.to_string()))?;
                self.report.records_kept += count;
            }
            MarkerFate::Gone | MarkerFate::Kept => {
                self.report.records_kept += count;
                return Ok(destination.write(bytes, header)?);
            }
        }
        let rewritten = caudal_protocol::batch::rewrite(header, &kept, horizon_ms);
        let rewritten = rewritten.map_err(|e| damaged(e.to_string()))?;
        let header = BatchHeader::parse(&rewritten).map_err(|e| damaged(e.to_string()))?;
        Ok(destination.write(&rewritten, &header)?)
    }

    /// Whether a record is its key's newest value, or the mark of a deletion that is not to be forgotten yet.
    fn keeps(&self, header: &BatchHeader, offset: i64, key: Option<&[u8]>, is_tombstone: bool) -> bool {
        if offset > self.latest {
            return true;
        }
        let Some(key) = key else { return false };
        let newest = self.keys.get(key).is_none_or(|newest| offset >= newest);
        newest && (!is_tombstone || header.delete_horizon_ms().is_none_or(|horizon_ms| self.tools.now_ms < horizon_ms))
    }
}

/// Neighbours that fit into one segment together, so that segments do not shrink to nothing over time.
fn groups<'s>(segments: &'s [Arc<Segment>], config: &LogConfig, first_uncleanable: i64) -> Vec<&'s [Arc<Segment>]> {
    let mut groups = Vec::new();
    let mut rest = segments;
    while let Some(first) = rest.first() {
        let mut total = (0, 0, 0);
        let mut count = 0;
        for (at, segment) in rest.iter().enumerate() {
            let (offsets, times) = segment.index_sizes();
            total = (total.0 + segment.size(), total.1 + offsets, total.2 + times);
            let end = rest.get(at + 1).map_or(first_uncleanable, |next| next.base_offset);
            let fits = total.0 <= config.segment_bytes.min(i32::MAX as u64)
                && total.1 <= config.segment_index_bytes
                && total.2 <= config.segment_index_bytes
                && (segment.size() == 0 || first.can_hold(end - 1));
            if at > 0 && !fits {
                break;
            }
            count = at + 1;
        }
        let (group, others) = rest.split_at(count);
        groups.push(group);
        rest = others;
    }
    groups
}
