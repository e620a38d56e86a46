//! Opening a log: what a clean stop left is trusted, what lies behind the recovery point is scanned.
//!
//! A scan that meets an invalid batch has to tell three cases apart:
//! - nothing valid follows: a torn tail, cut off;
//! - valid batches follow, and the gap looks like writes that never reached the disk (zeros): a power loss let later
//!   unsynced writes through but not earlier ones. Acknowledgements wait for all earlier bytes, so nothing from the
//!   gap on was acknowledged: cut off;
//! - valid batches follow damage of another kind: a medium error in what may be acknowledged. Nothing is cut; reads of
//!   the damaged offsets fail.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use caudal_protocol::batch::{self, BatchHeader, HEADER_LEN};
use caudal_protocol::{TopicPartition, Uuid};
use parking_lot::{Mutex, RwLock};

use super::append::roll_jitter_ms;
use super::gaps::{Orphan, check_end, check_first_batch, orphan, remove_orphans};
use super::in_flight::complete_batches;
use super::marker::EndMarker;
use super::replace::finish_interrupted;
use super::transactions::{AbortedTransaction, IndexFiles, Unstable};
use super::{DirHealth, Log, LogEnd, Writer, wall_clock_ms};
use crate::checkpoint;
use crate::config::LogConfig;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{OpenError, is_disk_full};
use crate::flusher::{FlushQueue, Waiters};
use crate::index::{IndexFile, OffsetEntry, TimeEntry};
use crate::leader_epoch::LeaderEpochs;
use crate::producer_state::{EndedTransaction, ProducerState, snapshot_path};
use crate::scan::{BatchScan, HeaderScan, ScanError};
use crate::segment::{
    CorruptRange, INDEX_SUFFIX, LOG_SUFFIX, MissingRange, Segment, TIME_INDEX_SUFFIX, TRANSACTION_INDEX_SUFFIX,
    file_path,
};

/// What opening a log found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRecovery {
    /// Bytes that were read and checked.
    pub bytes_scanned: u64,
    /// Bytes removed at the end: writes that a crash had torn, and what followed them.
    pub bytes_cut: u64,
    /// Segments whose indexes were missing or damaged and were rebuilt.
    pub indexes_rebuilt: usize,
    /// Damaged bytes in front of valid batches; kept, but not readable.
    pub corrupt: Vec<CorruptRange>,
    /// Offsets that are in no file although later ones are: segments that were removed or cut.
    pub missing: Vec<MissingRange>,
}

/// What all logs of a directory share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub disk: Arc<dyn Disk>,
    pub health: Arc<DirHealth>,
    pub queue: Arc<FlushQueue>,
    pub flush_before_ack: bool,
}

/// What the checkpoints say about a log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checkpoints {
    pub clean_shutdown: bool,
    pub recovery_point: Option<i64>,
    pub log_start_offset: Option<i64>,
    /// What was durable when the checkpoints were written. Above the recovery point where damage holds that back.
    pub high_watermark: Option<i64>,
    /// The log was compacted: there may be gaps between its batches.
    pub compacted: bool,
}

impl Checkpoints {
    /// The offset (exclusive) below which everything is known to have been on disk.
    fn durable(&self) -> i64 {
        self.recovery_point.max(self.high_watermark).unwrap_or(0)
    }
}

/// A log as far as it is opened.
struct Opening<'a> {
    shared: &'a Shared,
    log: &'a TopicPartition,
    dir: &'a Path,
    compacted: bool,
    /// Indexes that have lost their log.
    orphans: Vec<Orphan>,
    now_ms: i64,
    index_interval_bytes: u64,
    /// See [`Checkpoints::durable`].
    durable: i64,
    epochs: LeaderEpochs,
    aborted: Vec<AbortedTransaction>,
    report: LogRecovery,
}

impl Log {
    /// Opens the log in its directory, which exists.
    pub(crate) fn open(
        shared: &Shared,
        topic_partition: TopicPartition,
        config: LogConfig,
        checkpoints: Checkpoints,
    ) -> Result<(Arc<Log>, LogRecovery), OpenError> {
        let dir = shared.health.dir().join(topic_partition.to_string());
        Log::open_in(shared, dir, topic_partition, config, checkpoints)
    }

    /// As [`Log::open`], in a directory of another name.
    pub(crate) fn open_in(
        shared: &Shared,
        dir: PathBuf,
        topic_partition: TopicPartition,
        config: LogConfig,
        checkpoints: Checkpoints,
    ) -> Result<(Arc<Log>, LogRecovery), OpenError> {
        let disk = shared.disk.as_ref();
        let topic_id = checkpoint::read_partition_metadata(disk, &dir).unwrap_or_else(|error| {
            // A crash before the first flush of a new log leaves it so; whoever knows the id puts it back.
            tracing::warn!(log = %topic_partition, %error, "topic id unknown");
            None
        });
        let epochs = LeaderEpochs::read(disk, &dir).unwrap_or_else(|error| {
            tracing::warn!(log = %topic_partition, %error, "leader epochs are rebuilt from the log");
            LeaderEpochs::default()
        });
        let mut opening = Opening {
            shared,
            log: &topic_partition,
            dir: &dir,
            compacted: checkpoints.compacted,
            orphans: Vec::new(),
            now_ms: wall_clock_ms(),
            index_interval_bytes: config.index_interval_bytes,
            durable: checkpoints.durable(),
            epochs,
            aborted: Vec::new(),
            report: LogRecovery::default(),
        };
        let parts = opening.open(checkpoints, &config);
        let parts =
            parts.map_err(|source| OpenError::Log { log: topic_partition.clone(), dir: dir.clone(), source })?;
        let report = opening.report;
        if report.bytes_cut > 0 {
            tracing::warn!(log = %topic_partition, bytes = report.bytes_cut, end = parts.next_offset, "cut a torn tail");
        }
        // Below the start of the log nobody reads.
        for range in report.corrupt.iter().filter(|range| range.next_offset > parts.log_start_offset) {
            tracing::error!(
                log = %topic_partition, from = range.first_offset, to = range.next_offset, position = range.start_position,
                "damaged batches cannot be read: fetches of these offsets (the last exclusive) are answered with \
                 CORRUPT_MESSAGE. Valid ones behind them are kept. Stop the broker and restore the segment from a backup, or \
                 let consumers go on behind them"
            );
        }
        for range in &report.missing {
            tracing::error!(
                log = %topic_partition, from = range.first_offset, to = range.next_offset, dir = %dir.display(),
                "the records of these offsets (the last exclusive) are in no file: a segment is missing, was cut, or begins \
                 behind the offset in its name. Readers go on behind them. Stop the broker and restore the files from a \
                 backup if these records are needed. Nothing is wrong if the topic was compacted in the past"
            );
        }
        let log = Log::assemble(shared, topic_partition, topic_id, dir.clone(), config, parts);
        Ok((log, report))
    }

    pub(super) fn assemble(
        shared: &Shared,
        topic_partition: TopicPartition,
        topic_id: Option<Uuid>,
        dir: PathBuf,
        config: LogConfig,
        mut parts: Parts,
    ) -> Arc<Log> {
        let end = parts.segments.last().map_or(
            LogEnd { offset: parts.next_offset, segment_base: 0, position: 0 },
            |active| LogEnd { offset: parts.next_offset, segment_base: active.base_offset, position: active.size() },
        );
        parts.writer.roll_jitter_ms = roll_jitter_ms(&config);
        Arc::new(Log {
            topic_partition,
            topic_id: topic_id.map_or_else(OnceLock::new, OnceLock::from),
            dir,
            disk: Arc::clone(&shared.disk),
            health: Arc::clone(&shared.health),
            config: RwLock::new(Arc::new(config)),
            segments: RwLock::new(Arc::new(parts.segments)),
            end: Mutex::new(end),
            durable: Mutex::new(end),
            log_end_offset: AtomicI64::new(end.offset),
            durable_end_offset: AtomicI64::new(end.offset),
            synced_offset: AtomicI64::new(end.offset),
            log_start_offset: AtomicI64::new(parts.log_start_offset),
            recovery_point: AtomicI64::new(parts.recovery_point),
            grown_bytes: AtomicU64::new(parts.scanned_bytes),
            unstable: Unstable::new(parts.writer.producers.first_unstable_offset()),
            aborted: RwLock::new(parts.aborted),
            writer: Mutex::new(parts.writer),
            busy: AtomicUsize::new(0),
            epochs: Mutex::new(parts.epochs),
            cleaning: Mutex::new(()),
            closing: AtomicBool::new(false),
            copiers: AtomicUsize::new(0),
            uncleanable: AtomicBool::new(false),
            flushing: Mutex::new(()),
            upkeep: Mutex::new(()),
            last_flush: Mutex::new(Instant::now()),
            names_dirty: AtomicBool::new(parts.recovery_point < 0),
            deleted: AtomicBool::new(false),
            flush_before_ack: shared.flush_before_ack,
            waiters: Mutex::new(Waiters::default()),
            queue: Arc::clone(&shared.queue),
        })
    }
}

pub(super) struct Parts {
    pub segments: Vec<Arc<Segment>>,
    pub epochs: LeaderEpochs,
    pub aborted: Vec<AbortedTransaction>,
    pub writer: Writer,
    pub next_offset: i64,
    pub log_start_offset: i64,
    pub recovery_point: i64,
    /// What the next start would scan again if nothing were written down before.
    pub scanned_bytes: u64,
}

impl Opening<'_> {
    fn disk(&self) -> &dyn Disk {
        self.shared.disk.as_ref()
    }

    fn open(&mut self, checkpoints: Checkpoints, config: &LogConfig) -> io::Result<Parts> {
        finish_interrupted(self.disk(), self.dir)?;
        let bases = self.list_segments()?;
        let bases = self.drop_overtaken(bases)?;
        // After a clean stop without a checkpoint of its own a log has nothing to recover.
        let trusted = match checkpoints.recovery_point {
            Some(point) => point,
            None if checkpoints.clean_shutdown => i64::MAX,
            None => 0,
        };
        let epochs_on_disk = self.epochs.clone();
        let mut segments = Vec::with_capacity(bases.len());
        let mut next_offset = bases.first().copied().unwrap_or(0);
        let mut scanned = false;
        for (at, &base) in bases.iter().enumerate() {
            let following = bases.get(at + 1).copied();
            let (segment, outcome) = self.open_segment(base, following, trusted)?;
            next_offset = outcome.next_offset.max(base);
            scanned |= outcome.scanned;
            if !outcome.cut {
                check_end(next_offset, following, self.compacted, &mut self.report);
            }
            check_first_batch(&segment, (following, next_offset), self.compacted, &mut self.report)?;
            segments.push(Arc::new(segment));
            if outcome.cut {
                self.drop_segments(bases.get(at + 1..).unwrap_or_default())?;
                break;
            }
        }
        let log_start = checkpoints.log_start_offset.unwrap_or(0).max(bases.first().copied().unwrap_or(0));
        self.report.settle_missing(log_start);
        next_offset = self.skip_lost(&mut segments, next_offset)?;
        if segments.is_empty() || next_offset < log_start {
            let gone: Vec<i64> = segments.iter().map(|segment| segment.base_offset).collect();
            self.drop_segments(&gone)?;
            next_offset = next_offset.max(log_start);
            segments = vec![Arc::new(Segment::create(&self.shared.disk, self.dir, next_offset, self.now_ms)?)];
        }
        remove_orphans(self.disk(), self.dir, &self.orphans, &segments)?;
        self.epochs.truncate_from_end(next_offset);
        if self.epochs != epochs_on_disk {
            match self.epochs.write(self.disk(), self.dir).map_err(io::Error::from) {
                // They are found again by the next start, which scans the same batches.
                Err(error) if is_disk_full(&error) => {
                    tracing::warn!(dir = %self.dir.display(), %error, "leader epochs not written");
                }
                written => written?,
            }
        }
        let writer = self.load_producers(&segments, next_offset, config)?;
        let recovery_point = if scanned { -1 } else { next_offset };
        let epochs = std::mem::take(&mut self.epochs);
        let aborted = std::mem::take(&mut self.aborted);
        let log_start_offset = log_start.max(segments.first().map_or(0, |segment| segment.base_offset));
        let scanned_bytes = self.report.bytes_scanned;
        Ok(Parts { segments, epochs, aborted, writer, next_offset, log_start_offset, recovery_point, scanned_bytes })
    }

    /// Where the log goes on: not below offsets that were given out, whatever became of their records.
    fn skip_lost(&self, segments: &mut Vec<Arc<Segment>>, next_offset: i64) -> io::Result<i64> {
        let (first, last) = (segments.first(), segments.last());
        let (first, last) = (first.map_or(0, |s| s.base_offset), last.map_or(-1, |s| s.base_offset));
        for orphan in self.orphans.iter().filter(|orphan| orphan.base_offset >= first) {
            if orphan.base_offset > last || self.compacted {
                tracing::error!(
                    log = %self.log, from = orphan.base_offset, known_to = orphan.next_offset,
                    file = %file_path(self.dir, orphan.base_offset, LOG_SUFFIX).display(),
                    "a segment is gone: its indexes are there, its log is not. Records from its first offset on are lost, at \
                     least up to the offset that the indexes know. Stop the broker and restore the file from a backup if they are \
                     needed. Nothing is lost if the power failed while the segment was begun"
                );
            }
        }
        // A segment is begun when all before it is durable. That its index knows more proves nothing: it may have reached the
        // disk before the records. What only the names of files say is remembered by a new segment.
        let named = self.orphans.iter().map(|orphan| orphan.base_offset).chain(self.epochs.latest_start()).max();
        let named = named.max(self.newest_snapshot()?).unwrap_or(0);
        let given_out = self.durable.max(named);
        if given_out <= next_offset {
            return Ok(next_offset);
        }
        tracing::error!(
            log = %self.log, dir = %self.dir.display(), from = next_offset, to = given_out,
            "records that were written are missing at the end of the log. Offsets below `to` are not given out again; there were \
             more if the broker did not stop cleanly. Stop it and restore the directory from a backup if they are needed"
        );
        if named >= given_out && !segments.is_empty() {
            segments.push(Arc::new(Segment::create(&self.shared.disk, self.dir, given_out, self.now_ms)?));
            self.disk().sync_dir(self.dir)?;
        }
        Ok(given_out)
    }

    /// The largest offset of a producer snapshot: what lies below it was written.
    fn newest_snapshot(&self) -> io::Result<Option<i64>> {
        let entries = self.disk().list(self.dir)?;
        Ok(entries.iter().filter_map(|entry| entry.name.strip_suffix(".snapshot")?.parse().ok()).max())
    }

    /// The base offsets of the segments, ascending. Removes what interrupted work left behind.
    fn list_segments(&mut self) -> io::Result<Vec<i64>> {
        let entries = self.disk().list(self.dir)?;
        let base_of =
            |name: &str, suffix: &str| -> Option<i64> { name.strip_suffix(suffix)?.strip_suffix('.')?.parse().ok() };
        let bases: BTreeSet<i64> = entries.iter().filter_map(|entry| base_of(&entry.name, LOG_SUFFIX)).collect();
        let mut orphans = BTreeSet::new();
        for entry in entries.iter().filter(|entry| !entry.is_dir) {
            let name = entry.name.as_str();
            let of_index = [INDEX_SUFFIX, TIME_INDEX_SUFFIX, TRANSACTION_INDEX_SUFFIX];
            orphans.extend(of_index.iter().filter_map(|suffix| base_of(name, suffix)).filter(|b| !bases.contains(b)));
            if [".deleted", ".tmp"].iter().any(|suffix| name.ends_with(suffix)) {
                self.disk().remove_file(&self.dir.join(name))?;
            }
        }
        let orphans: io::Result<Vec<Orphan>> =
            orphans.into_iter().map(|base| orphan(&self.shared.disk, self.dir, base)).collect();
        self.orphans = orphans?;
        Ok(bases.into_iter().collect())
    }

    /// Drops empty segments that are not where the one before ends: rolling failed half-way, and the log went on in the old
    /// segment.
    fn drop_overtaken(&mut self, mut bases: Vec<i64>) -> io::Result<Vec<i64>> {
        let mut at = 1;
        while let (Some(&before), Some(&base)) = (bases.get(at - 1), bases.get(at)) {
            let open = |base| self.disk().open(&file_path(self.dir, base, LOG_SUFFIX), OpenMode::Read);
            if open(base)?.size()? == 0 && reaches(open(before)?.as_ref(), base)? {
                tracing::warn!(dir = %self.dir.display(), base, "an empty segment is removed: the one before goes on behind it");
                self.drop_segments(&[base])?;
                bases.remove(at);
            } else {
                at += 1;
            }
        }
        Ok(bases)
    }

    fn drop_segments(&mut self, bases: &[i64]) -> io::Result<()> {
        for &base in bases {
            let path = file_path(self.dir, base, LOG_SUFFIX);
            self.report.bytes_cut += self.disk().open(&path, OpenMode::Read)?.size()?;
            remove_segment_files(self.disk(), self.dir, base)?;
        }
        if bases.is_empty() { Ok(()) } else { self.disk().sync_dir(self.dir) }
    }

    fn open_segment(&mut self, base: i64, following: Option<i64>, trusted: i64) -> io::Result<(Segment, Outcome)> {
        let path = file_path(self.dir, base, LOG_SUFFIX);
        let file = self.shared.disk.open(&path, OpenMode::Create)?;
        let len = file.size()?;
        let paths = (file_path(self.dir, base, INDEX_SUFFIX), file_path(self.dir, base, TIME_INDEX_SUFFIX));
        let below_recovery_point = following.is_some_and(|following| following <= trusted);
        let mut salvageable = true;
        if below_recovery_point || trusted == i64::MAX || (following.is_none() && (trusted > base || len == 0)) {
            let offsets = IndexFile::open(Arc::clone(&self.shared.disk), paths.0.clone())?;
            let times = IndexFile::open(Arc::clone(&self.shared.disk), paths.1.clone())?;
            // A segment that was closed has its largest timestamp in the time index.
            let complete = |offsets: &IndexFile<OffsetEntry>, times: &IndexFile<TimeEntry>| {
                offsets.last().is_none_or(|last| u64::from(last.position) < len)
                    && (len == 0 || times.last().is_some() || (following.is_none() && offsets.last().is_none()))
            };
            if let (Some(offsets), Some(times)) = (offsets, times)
                && complete(&offsets, &times)
            {
                let segment =
                    Segment::assemble(base, path.clone(), Arc::clone(&file), len, offsets, times, self.now_ms);
                // The log may go on behind the recovery point; then the rest is scanned below.
                if let Some(next_offset) = resume(&segment, following)?
                    && (below_recovery_point || next_offset <= trusted)
                {
                    return Ok((segment, Outcome { next_offset, scanned: false, cut: false }));
                }
            } else if below_recovery_point || trusted == i64::MAX {
                self.report.indexes_rebuilt += 1;
                salvageable = false;
            }
        }
        let relative_limit = if salvageable { trusted.saturating_sub(base) } else { 0 };
        let mut offsets = IndexFile::salvage(Arc::clone(&self.shared.disk), paths.0.clone(), |entry: &OffsetEntry| {
            i64::from(entry.relative_offset) < relative_limit && entry.position > 0 && u64::from(entry.position) < len
        })?;
        let mut resume_at = offsets.last();
        if let Some(last) = resume_at {
            let fits = HeaderScan::new(file.as_ref(), u64::from(last.position), len).next();
            let expected = base + i64::from(last.relative_offset);
            if !matches!(fits, Ok(Some((_, header))) if header.last_offset() == expected) {
                resume_at = None;
                offsets = IndexFile::create(Arc::clone(&self.shared.disk), paths.0)?;
            }
        }
        let time_limit = resume_at.map_or(0, |entry| i64::from(entry.relative_offset) + 1);
        let times = IndexFile::salvage(Arc::clone(&self.shared.disk), paths.1, |entry: &TimeEntry| {
            i64::from(entry.relative_offset) < time_limit && entry.timestamp_ms >= 0
        })?;
        let segment = Segment::assemble(base, path, file, len, offsets, times, self.now_ms);
        resume_times(&segment);
        segment.mark_index_dirty();
        let from = resume_at.map_or(0, |entry| u64::from(entry.position));
        let outcome = self.scan(&segment, from, len, following, trusted)?;
        Ok((segment, outcome))
    }

    /// Checks the batches of a segment from `from` on, rebuilds its indexes behind it, and cuts or marks what is bad.
    fn scan(
        &mut self,
        segment: &Segment,
        from: u64,
        len: u64,
        following: Option<i64>,
        trusted: i64,
    ) -> io::Result<Outcome> {
        let mut scan = BatchScan::new(segment.file.as_ref(), from, len);
        let mut next_offset = segment.base_offset;
        let mut end = from;
        let mut cut = false;
        loop {
            match scan.next() {
                Ok(None) => break,
                Ok(Some((position, header)))
                    if fits(segment, &header, next_offset)
                        && following.is_none_or(|following| header.next_offset() <= following)
                        && !is_misplaced(&mut scan, &header, next_offset)? =>
                {
                    segment.note(position, &header, self.index_interval_bytes);
                    let epoch = header.partition_leader_epoch;
                    if self.epochs.latest().is_none_or(|latest| epoch > latest) {
                        self.epochs.assign(epoch, header.base_offset);
                    }
                    next_offset = header.next_offset();
                    end = position + header.size_bytes() as u64;
                }
                Ok(Some(_)) | Err(ScanError::Batch { .. }) => {
                    let found = next_valid_batch(segment, &mut scan, end, next_offset, len)?;
                    match behind_damage(segment, (end, len), next_offset, found, following, self.durable.max(trusted))?
                    {
                        Some(range) => {
                            segment.add_corrupt_range(range);
                            self.report.corrupt.push(range);
                            next_offset = range.next_offset;
                            end = range.end_position;
                            scan.seek(end);
                        }
                        None => {
                            cut = true;
                            break;
                        }
                    }
                }
                Err(ScanError::Io(error)) => return Err(error),
            }
        }
        self.report.bytes_scanned += end - from;
        if cut {
            self.report.bytes_cut += len - end;
            segment.file.set_len(end)?;
            segment.set_size(end);
        }
        // What was read may still be in memory only; from here on it counts as durable.
        if end > 0 || cut {
            segment.file.sync()?;
        }
        Ok(Outcome { next_offset, scanned: true, cut })
    }

    /// Producer state from the newest usable snapshot and the batch headers behind it.
    fn load_producers(&mut self, segments: &[Arc<Segment>], end: i64, config: &LogConfig) -> io::Result<Writer> {
        let mut snapshots: Vec<i64> = Vec::new();
        for entry in self.disk().list(self.dir)? {
            if let Some(offset) = entry.name.strip_suffix(".snapshot").and_then(|name| name.parse().ok()) {
                snapshots.push(offset);
            }
        }
        snapshots.sort_unstable();
        let mut producers = ProducerState::default();
        let mut from = segments.first().map_or(0, |segment| segment.base_offset);
        let indexes = IndexFiles::read(&self.shared.disk, self.dir, segments)?;
        // What an index should tell from there on is found again by the markers.
        let newest = end.min(indexes.damaged_from);
        for &offset in snapshots.iter().rev() {
            let path = snapshot_path(self.dir, offset);
            if offset <= end {
                match ProducerState::read_snapshot(self.disk(), &path) {
                    Ok(_) if offset > newest => continue,
                    Ok(state) => {
                        producers = state;
                        from = from.max(offset);
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        tracing::warn!(path = %path.display(), %error, "damaged producer snapshot removed");
                    }
                    Err(error) => return Err(error),
                }
            }
            // Above the log end it describes batches that are gone.
            self.disk().remove_file(&path)?;
            self.disk().sync_dir(self.dir)?;
        }
        snapshots
            .retain(|&offset| offset <= end && self.disk().exists(&snapshot_path(self.dir, offset)).unwrap_or(true));
        complete_batches(segments, from, end, &mut producers)?;
        let mut ended = Vec::new();
        for segment in segments.iter().filter(|_| from < end) {
            replay_producers(segment, from, &mut producers, &mut ended)?;
        }
        self.aborted = indexes.keep_below(&self.shared.disk, self.dir, from)?;
        let unindexed: Vec<AbortedTransaction> = ended.iter().filter_map(EndedTransaction::aborted).collect();
        self.aborted.extend_from_slice(&unindexed);
        let roll_jitter_ms = roll_jitter_ms(config);
        Ok(Writer { producers, snapshots, unindexed, roll_jitter_ms, replacing: None, closed: false })
    }
}

/// Decides about an invalid batch at `start` of a segment of `len` bytes: the damaged range when it must be kept, `None`
/// when it is cut off with all that follows.
fn behind_damage(
    segment: &Segment,
    (start, len): (u64, u64),
    expected: i64,
    next_valid: Option<(u64, BatchHeader)>,
    following: Option<i64>,
    durable: i64,
) -> io::Result<Option<CorruptRange>> {
    let was_durable = expected < durable && durable < i64::MAX;
    if following.is_none() && expected >= durable && is_torn_batch(segment, (start, len), expected, next_valid)? {
        return Ok(None);
    }
    let (end_position, next_offset) = match (next_valid, following) {
        (Some((position, header)), _) => (position, header.base_offset),
        // The next segment was created after this one was synced: this is no torn tail.
        (None, Some(following)) => (len, following),
        // What was durable at the last checkpoint is lost, but its offsets must not be given to other records.
        (None, None) if was_durable => (len, durable),
        (None, None) => return Ok(None),
    };
    if expected >= durable && is_lost_write(segment, start, end_position)? {
        return Ok(None);
    }
    Ok(Some(CorruptRange { start_position: start, end_position, first_offset: expected, next_offset }))
}

/// Whether a batch that goes on behind the end of the file begins at `start`. What looks like a batch behind its header is a
/// part of its records then, unless it continues the log where this one would end: in that case the length is damaged.
fn is_torn_batch(
    segment: &Segment,
    (start, len): (u64, u64),
    expected: i64,
    next_valid: Option<(u64, BatchHeader)>,
) -> io::Result<bool> {
    let mut bytes = [0; HEADER_LEN];
    let read = segment.file.read_at(&mut bytes, start)?;
    let Ok(header) = BatchHeader::parse(bytes.get(..read).unwrap_or_default()) else { return Ok(false) };
    let plausible = header.base_offset == expected
        && fits(segment, &header, expected)
        && i64::from(header.record_count) == i64::from(header.last_offset_delta) + 1;
    let continued = next_valid.is_some_and(|(_, next)| next.base_offset == header.next_offset());
    Ok(plausible && header.size_bytes() as u64 > len - start && !continued)
}

struct Outcome {
    next_offset: i64,
    scanned: bool,
    cut: bool,
}

/// Whether a valid batch may follow what was read so far.
fn fits(segment: &Segment, header: &BatchHeader, next_offset: i64) -> bool {
    header.base_offset >= next_offset && header.last_offset_delta >= 0 && segment.can_hold(header.last_offset())
}

/// Sets the segment's largest timestamp from its time index.
fn resume_times(segment: &Segment) {
    let mut index = segment.index.write();
    if let Some(last) = index.times.last() {
        index.max_timestamp_ms = last.timestamp_ms;
        index.max_timestamp_offset = segment.base_offset + i64::from(last.relative_offset);
    }
}

/// Finds the end of a segment whose indexes are sound, by its last batch headers. `None` when they do not fit.
fn resume(segment: &Segment, following: Option<i64>) -> io::Result<Option<i64>> {
    resume_times(segment);
    let last = segment.index.read().offsets.last();
    // A batch of that offset begins at the entry's position, or behind it where several were appended at once.
    let indexed = last.map(|entry| segment.base_offset + i64::from(entry.relative_offset));
    let from = last.map_or(0, |entry| u64::from(entry.position));
    let mut next_offset = segment.base_offset;
    let mut is_indexed = indexed.is_none();
    let mut bytes = 0;
    let mut scan = HeaderScan::new(segment.file.as_ref(), from, segment.size());
    loop {
        match scan.next() {
            Ok(None) => break,
            Ok(Some((_, header))) if fits(segment, &header, next_offset) => {
                next_offset = header.next_offset();
                is_indexed |= indexed == Some(header.last_offset());
                bytes += header.size_bytes() as u64;
                let mut index = segment.index.write();
                if header.max_timestamp_ms > index.max_timestamp_ms {
                    index.max_timestamp_ms = header.max_timestamp_ms;
                    index.max_timestamp_offset = header.last_offset();
                }
            }
            Ok(Some(_)) | Err(ScanError::Batch { .. }) => return Ok(None),
            Err(ScanError::Io(error)) => return Err(error),
        }
    }
    if !is_indexed {
        return Ok(None);
    }
    segment.index.write().bytes_since_entry = bytes;
    Ok(following.is_none_or(|following| next_offset <= following).then_some(next_offset))
}

/// Whether a batch behind a gap names offsets that the batch behind it has: its base offset, which the CRC does not cover, is
/// damaged.
fn is_misplaced(scan: &mut BatchScan<'_>, header: &BatchHeader, expected: i64) -> io::Result<bool> {
    if header.base_offset == expected {
        return Ok(false);
    }
    scan.fill(HEADER_LEN)?;
    let Ok(next) = BatchHeader::parse(scan.bytes()) else { return Ok(false) };
    if !(expected..header.next_offset()).contains(&next.base_offset) {
        return Ok(false);
    }
    scan.fill(next.size_bytes())?;
    Ok(batch::check_crc(scan.bytes()).is_ok())
}

/// The first valid batch behind a damaged one at `start`.
fn next_valid_batch(
    segment: &Segment,
    scan: &mut BatchScan<'_>,
    start: u64,
    expected: i64,
    len: u64,
) -> io::Result<Option<(u64, BatchHeader)>> {
    let mut position = start + 1;
    while position + HEADER_LEN as u64 <= len {
        scan.seek(position);
        scan.fill(HEADER_LEN)?;
        let bytes = scan.bytes();
        // Magic 2 at its place is cheap to look for; everything else is checked only there.
        let Some(skip) = bytes.get(16..).and_then(|rest| rest.iter().position(|&byte| byte == 2)) else {
            position += (bytes.len() as u64).saturating_sub(16).max(1);
            continue;
        };
        position += skip as u64;
        if position + HEADER_LEN as u64 > len {
            return Ok(None);
        }
        scan.seek(position);
        scan.fill(HEADER_LEN)?;
        if let Ok(header) = BatchHeader::parse(scan.bytes())
            && fits(segment, &header, expected)
            && header.size_bytes() as u64 <= len - position
        {
            scan.fill(header.size_bytes())?;
            if batch::check_crc(scan.bytes()).is_ok() {
                return Ok(Some((position, header)));
            }
        }
        position += 1;
    }
    Ok(None)
}

/// The unit in which disks and page caches lose writes.
const SECTOR: u64 = 512;
/// Zeros at the edges of a damaged range that count as lost rather than as somebody's data.
const ZEROS_AT_EDGE: u64 = 16;

/// Whether damaged bytes look like writes that never reached the disk: such places read as zeros, in whole sectors, from
/// the beginning or up to the end of the range.
fn is_lost_write(segment: &Segment, start: u64, end: u64) -> io::Result<bool> {
    let is_zero = |position: u64, len: u64| -> io::Result<bool> {
        let mut bytes = [0; SECTOR as usize];
        let wanted = bytes.get_mut(..usize::try_from(len).unwrap_or(usize::MAX)).unwrap_or_default();
        let read = segment.file.read_at(wanted, position)?;
        Ok(bytes.iter().take(read).all(|&byte| byte == 0))
    };
    let edge = ZEROS_AT_EDGE.min(end - start);
    if is_zero(start, edge)? || is_zero(end - edge, edge)? {
        return Ok(true);
    }
    let mut sector = start.next_multiple_of(SECTOR);
    while sector + SECTOR <= end {
        if is_zero(sector, SECTOR)? {
            return Ok(true);
        }
        sector += SECTOR;
    }
    Ok(false)
}

/// Whether a file of batches holds one that begins at `offset` or behind it.
fn reaches(file: &dyn DiskFile, offset: i64) -> io::Result<bool> {
    let mut scan = HeaderScan::new(file, 0, file.size()?);
    loop {
        match scan.next() {
            Ok(Some((_, header))) if header.base_offset >= offset => return Ok(true),
            Ok(Some(_)) => {}
            Ok(None) | Err(ScanError::Batch { .. }) => return Ok(false),
            Err(ScanError::Io(error)) => return Err(error),
        }
    }
}

/// Adds the transactions that ended to `ended`.
fn replay_producers(
    segment: &Segment,
    from: i64,
    producers: &mut ProducerState,
    ended: &mut Vec<EndedTransaction>,
) -> io::Result<()> {
    if segment.size() == 0 {
        return Ok(());
    }
    let corrupt = segment.corrupt_ranges();
    let start = match segment.find(from, segment.size()) {
        Ok(Some(found)) => found.position,
        Ok(None) => return Ok(()),
        Err(_) => 0,
    };
    let mut scan = HeaderScan::new(segment.file.as_ref(), start, segment.size());
    loop {
        if let Some(range) =
            corrupt.iter().find(|range| (range.start_position..range.end_position).contains(&scan.position()))
        {
            scan.seek(range.end_position);
        }
        match scan.next() {
            Ok(Some((position, header))) if header.base_offset >= from => {
                ended.extend(producers.update(&header, EndMarker::read(segment, position, &header)?));
            }
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(ScanError::Io(error)) => return Err(error),
            Err(ScanError::Batch { position, error }) => {
                tracing::warn!(path = %segment.path.display(), position, %error, "producer state ends early");
                return Ok(());
            }
        }
    }
}

/// Removes all files of a segment. The log goes last: indexes without a log are those of a segment that somebody else removed.
pub(super) fn remove_segment_files(disk: &dyn Disk, dir: &Path, base: i64) -> io::Result<()> {
    let suffixes = [INDEX_SUFFIX, TIME_INDEX_SUFFIX, TRANSACTION_INDEX_SUFFIX, LOG_SUFFIX];
    let paths = suffixes.iter().map(|suffix| file_path(dir, base, suffix)).chain([snapshot_path(dir, base)]);
    for path in paths {
        match disk.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
