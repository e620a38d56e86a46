//! Appending: check, number, stamp, one write.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use caudal_protocol::batch::{self, BatchError, BatchHeader, HEADER_LEN, TimestampType};

use super::marker::EndMarker;
use super::{Log, LogEnd, Writer, wall_clock_ms};
use crate::config::LogConfig;
use crate::error::{AppendError, is_disk_full, is_exhausted};
use crate::producer_state::{EndedTransaction, Verification, snapshot_path};
use crate::segment::{INDEX_SUFFIX, LOG_SUFFIX, Segment, TIME_INDEX_SUFFIX, file_path};

/// Who appends; clients are trusted least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOrigin {
    /// A produce request: everything is checked.
    Client,
    /// A coordinator of this broker, or the metadata log's writer.
    Coordinator,
    /// A copy from the leader: offsets and epochs stay as they are.
    Replication,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendInfo {
    pub base_offset: i64,
    /// Inclusive.
    pub last_offset: i64,
    /// -1 unless the topic has `message.timestamp.type=LogAppendTime`.
    pub log_append_time_ms: i64,
    pub log_start_offset: i64,
    /// The batch had been appended before; the offsets are those of that time.
    pub duplicate: bool,
}

/// What the first pass over the batches found, outside the lock.
pub(super) struct Checked {
    first: BatchHeader,
    count: usize,
    now_ms: i64,
    /// The time of the newest record where the first batch's header gives another.
    max_timestamp_ms: Option<i64>,
    /// What to write instead of what came; `first` is of it.
    rewritten: Option<Vec<u8>>,
}

impl Log {
    /// Appends the batches in `batches` (whole ones, nothing else) as they are, but for the base offset, the leader
    /// epoch and, where the topic says so, the time and, of clients' batches, the codec.
    ///
    /// The records are readable at once up to [`Log::log_end_offset`]; whoever acknowledges them waits for
    /// [`Flusher::notify_durable`](crate::Flusher::notify_durable) with `last_offset + 1`.
    pub fn append(
        self: &Arc<Self>,
        batches: &[u8],
        leader_epoch: i32,
        origin: AppendOrigin,
    ) -> Result<AppendInfo, AppendError> {
        self.append_verified(batches, leader_epoch, origin, Verification::None)
    }

    /// As [`Log::append`], with what is known of the transaction that the batches belong to: the first of a producer's in
    /// a transaction needs a guard, see [`Log::start_verification`].
    pub fn append_verified(
        self: &Arc<Self>,
        batches: &[u8],
        leader_epoch: i32,
        origin: AppendOrigin,
        verification: Verification,
    ) -> Result<AppendInfo, AppendError> {
        let mut checked = self.check_batches(batches, origin, &self.config())?;
        let rewritten = checked.rewritten.take();
        let batches = rewritten.as_deref().unwrap_or(batches);
        self.append_checked(batches, &checked, leader_epoch, origin, |writer| {
            self.check_producer(writer, batches, &checked, origin, verification)
        })
    }

    /// Appends what was found good; `check` has the last word under the lock, or the answer.
    pub(super) fn append_checked(
        self: &Arc<Self>,
        batches: &[u8],
        checked: &Checked,
        leader_epoch: i32,
        origin: AppendOrigin,
        check: impl FnOnce(&Writer) -> Result<Option<AppendInfo>, AppendError>,
    ) -> Result<AppendInfo, AppendError> {
        let config = self.config();
        let mut writer = self.writer.lock();
        self.health.check()?;
        if writer.closed {
            return Err(AppendError::Closed { log: self.topic_partition.clone() });
        }
        if let Some(info) = check(&writer)? {
            return Ok(info);
        }
        let end = self.end();
        let first_offset = if origin == AppendOrigin::Replication { checked.first.base_offset } else { end.offset };
        if first_offset < end.offset {
            return Err(self.invalid(format!("offset {first_offset} is below the log end {}", end.offset)));
        }
        let len = batches.len() as u64;
        let last_offset = self.last_offset(batches, first_offset, origin)?;
        let timestamp_ms = match config.timestamp_type {
            TimestampType::CreateTime => checked.max_timestamp_ms.unwrap_or(checked.first.max_timestamp_ms),
            TimestampType::LogAppendTime => checked.now_ms,
        };
        let segment = self.segment_for(&mut writer, &config, len, last_offset, timestamp_ms, checked.now_ms)?;
        let epoch =
            if origin == AppendOrigin::Replication { checked.first.partition_leader_epoch } else { leader_epoch };
        self.assign_epoch(epoch, first_offset)?;
        let position = segment.size();
        let stamps = (first_offset, leader_epoch);
        if checked.count == 1 {
            let ended = self.write_one(&mut writer, &segment, batches, checked, stamps, origin, &config)?;
            self.note_transactions(&mut writer, ended.as_slice());
        } else {
            let ended = self.write_many(&mut writer, &segment, batches, checked, stamps, origin, &config)?;
            self.note_transactions(&mut writer, &ended);
        }
        self.publish(LogEnd { offset: last_offset + 1, segment_base: segment.base_offset, position: position + len });
        drop(writer);
        self.grown_bytes.fetch_add(len, Ordering::Relaxed);
        self.health.note_written();
        self.flush_if_due(&config, last_offset + 1);
        let log_append_time_ms =
            if config.timestamp_type == TimestampType::LogAppendTime { checked.now_ms } else { -1 };
        Ok(AppendInfo {
            base_offset: first_offset,
            last_offset,
            log_append_time_ms,
            log_start_offset: self.log_start_offset(),
            duplicate: false,
        })
    }

    /// Checks every batch, CRC included. Runs outside the writer's lock.
    pub(super) fn check_batches(
        &self,
        batches: &[u8],
        origin: AppendOrigin,
        config: &LogConfig,
    ) -> Result<Checked, AppendError> {
        let now_ms = wall_clock_ms();
        let mut rest = batches;
        let mut first = None;
        let mut accepted = None;
        let mut count = 0;
        while first.is_none() || !rest.is_empty() {
            let header = if origin == AppendOrigin::Client { batch::validate(rest)? } else { batch::check_crc(rest)? };
            let size = header.size_bytes();
            let (bytes, tail) = rest.split_at_checked(size).unwrap_or((rest, &[]));
            if origin == AppendOrigin::Client {
                accepted = Some(self.check_client_batch(&header, bytes, config, now_ms)?);
            }
            first.get_or_insert(header);
            count += 1;
            rest = tail;
        }
        let (max_timestamp_ms, rewritten) = accepted.map_or((None, None), |a| (a.max_timestamp_ms, a.rewritten));
        let size_bytes = rewritten.as_deref().unwrap_or(batches).len();
        let len = size_bytes as u64;
        if len > config.segment_bytes || len > i32::MAX as u64 {
            let (log, segment_bytes) = (self.topic_partition.clone(), config.segment_bytes);
            return Err(AppendError::LargerThanSegment { log, size_bytes, segment_bytes });
        }
        let first = match &rewritten {
            Some(rewritten) => Some(BatchHeader::parse(rewritten)?),
            None => first,
        };
        let first = first.ok_or(BatchError::Truncated { have_bytes: 0, need_bytes: HEADER_LEN })?;
        if origin == AppendOrigin::Client && count > 1 {
            return Err(self.invalid("a client sends one batch at a time".to_owned()));
        }
        Ok(Checked { first, count, now_ms, max_timestamp_ms, rewritten })
    }

    /// The answer for a batch that was appended before, or whether its producer may append it now.
    fn check_producer(
        &self,
        writer: &Writer,
        batches: &[u8],
        checked: &Checked,
        origin: AppendOrigin,
        verification: Verification,
    ) -> Result<Option<AppendInfo>, AppendError> {
        if origin == AppendOrigin::Replication {
            return Ok(None);
        }
        let mut rest = batches;
        while !rest.is_empty() {
            let header = BatchHeader::parse(rest)?;
            if header.has_producer_id() {
                if origin == AppendOrigin::Client
                    && let Some(known) = writer.producers.duplicate_of(&header)
                {
                    return Ok(Some(AppendInfo {
                        base_offset: known.first_offset(),
                        last_offset: known.last_offset,
                        log_append_time_ms: match self.config.read().timestamp_type {
                            TimestampType::CreateTime => -1,
                            TimestampType::LogAppendTime => known.timestamp_ms,
                        },
                        log_start_offset: self.log_start_offset(),
                        duplicate: true,
                    }));
                }
                writer.producers.check(&header, origin, verification)?;
            }
            if checked.count == 1 {
                break;
            }
            rest = rest.get(header.size_bytes()..).unwrap_or_default();
        }
        Ok(None)
    }

    fn last_offset(&self, batches: &[u8], first_offset: i64, origin: AppendOrigin) -> Result<i64, AppendError> {
        let mut rest = batches;
        let mut next = first_offset;
        while !rest.is_empty() {
            let header = BatchHeader::parse(rest)?;
            if origin == AppendOrigin::Replication {
                if header.base_offset < next {
                    return Err(self.invalid(format!("offset {} is out of order", header.base_offset)));
                }
                next = header.next_offset();
            } else {
                next += i64::from(header.last_offset_delta) + 1;
            }
            rest = rest.get(header.size_bytes()..).unwrap_or_default();
        }
        Ok(next - 1)
    }

    /// One batch goes out as it lies in the network's buffer, behind a stamped copy of its header.
    #[expect(clippy::too_many_arguments, reason = "the parts of one append, split for its two shapes")]
    fn write_one(
        &self,
        writer: &mut Writer,
        segment: &Segment,
        bytes: &[u8],
        checked: &Checked,
        (base_offset, leader_epoch): (i64, i32),
        origin: AppendOrigin,
        config: &LogConfig,
    ) -> Result<Option<EndedTransaction>, AppendError> {
        let mut header = checked.first;
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::Truncated { have_bytes: bytes.len(), need_bytes: HEADER_LEN }.into());
        };
        let mut head = *head;
        stamp(&mut head, rest, &mut header, (base_offset, leader_epoch), origin, config, checked.now_ms);
        if let Some(max_timestamp_ms) = checked.max_timestamp_ms {
            // Retention and lookups by time go by the header.
            batch::stamp_max_timestamp_parts(&mut head, rest, max_timestamp_ms);
            header.max_timestamp_ms = max_timestamp_ms;
        }
        let position = segment.size();
        let buffers = &mut [IoSlice::new(&head), IoSlice::new(rest)];
        segment.write(buffers, bytes.len() as u64).map_err(|error| self.write_failed(error.source, error.cut_back))?;
        segment.note(position, &header, config.index_interval_bytes);
        Ok(writer.producers.update(&header, EndMarker::of_bytes(&header, bytes)))
    }

    /// Several batches (coordinators, replication) are stamped in a copy.
    #[expect(clippy::too_many_arguments, reason = "the parts of one append, split for its two shapes")]
    fn write_many(
        &self,
        writer: &mut Writer,
        segment: &Segment,
        bytes: &[u8],
        checked: &Checked,
        (base_offset, leader_epoch): (i64, i32),
        origin: AppendOrigin,
        config: &LogConfig,
    ) -> Result<Vec<EndedTransaction>, AppendError> {
        let mut copy = bytes.to_vec();
        let mut headers = Vec::with_capacity(checked.count);
        let mut rest = copy.as_mut_slice();
        let mut next = base_offset;
        while !rest.is_empty() {
            let mut header = BatchHeader::parse(rest)?;
            let (batch, tail) = rest
                .split_at_mut_checked(header.size_bytes())
                .ok_or(BatchError::Truncated { have_bytes: 0, need_bytes: header.size_bytes() })?;
            stamp(batch, &[], &mut header, (next, leader_epoch), origin, config, checked.now_ms);
            if origin == AppendOrigin::Replication {
                self.assign_epoch(header.partition_leader_epoch, header.base_offset)?;
            }
            next = header.next_offset();
            headers.push(header);
            rest = tail;
        }
        let mut position = segment.size();
        let written = segment.write(&mut [IoSlice::new(&copy)], copy.len() as u64);
        written.map_err(|error| self.write_failed(error.source, error.cut_back))?;
        let mut rest = copy.as_slice();
        let mut ended = Vec::new();
        for header in &headers {
            segment.note(position, header, config.index_interval_bytes);
            position += header.size_bytes() as u64;
            ended.extend(writer.producers.update(header, EndMarker::of_bytes(header, rest)));
            rest = rest.get(header.size_bytes()..).unwrap_or_default();
        }
        Ok(ended)
    }

    /// A failed write leaves nothing behind when the file could be cut back: a full disk refuses and recovers.
    fn write_failed(&self, source: io::Error, cut_back: bool) -> AppendError {
        if !cut_back {
            let reason = format!("a write to {} failed ({source}) and could not be undone", self.dir.display());
            return self.health.fail(reason).into();
        }
        self.io_failed(source)
    }

    pub(super) fn io_failed(&self, source: io::Error) -> AppendError {
        if is_disk_full(&source) {
            self.health.note_full();
            let dir = self.health.dir().to_owned();
            return AppendError::DiskFull { log: self.topic_partition.clone(), dir };
        }
        if is_exhausted(&source) {
            return AppendError::Exhausted { log: self.topic_partition.clone(), reason: source.to_string() };
        }
        self.health.fail(format!("a write to {} failed: {source}", self.dir.display()));
        AppendError::Io { log: self.topic_partition.clone(), source }
    }

    fn assign_epoch(&self, epoch: i32, start_offset: i64) -> Result<(), AppendError> {
        let mut epochs = {
            let epochs = self.epochs.lock();
            if epochs.latest() == Some(epoch) {
                return Ok(());
            }
            epochs.clone()
        };
        if !epochs.assign(epoch, start_offset) {
            return Ok(());
        }
        // Only who holds the writer changes them, so readers need not wait for the file. On an error the next append tries
        // again.
        let _busy = self.busy();
        epochs.write(self.disk.as_ref(), &self.dir).map_err(|error| self.io_failed(error.into()))?;
        *self.epochs.lock() = epochs;
        Ok(())
    }

    /// The active segment, or a new one when that has to be rolled.
    fn segment_for(
        &self,
        writer: &mut Writer,
        config: &LogConfig,
        len: u64,
        last_offset: i64,
        timestamp_ms: i64,
        now_ms: i64,
    ) -> Result<Arc<Segment>, AppendError> {
        let segments = self.snapshot();
        let Some(active) = segments.last() else {
            return Err(AppendError::Closed { log: self.topic_partition.clone() });
        };
        let times = (timestamp_ms, now_ms);
        if must_roll(active, config, len, times, writer.roll_jitter_ms) || !active.can_hold(last_offset) {
            return self.roll_segment(writer, now_ms).map_err(|error| self.io_failed(error));
        }
        Ok(Arc::clone(active))
    }

    /// Lets the log go on at `offset`, in a new segment. An offset below the log end changes nothing. What lies between
    /// must be superfluous: readers find nothing there.
    pub fn skip_to(&self, offset: i64) -> Result<(), AppendError> {
        let mut writer = self.writer.lock();
        self.health.check()?;
        let end = self.end();
        if offset <= end.offset {
            return Ok(());
        }
        self.publish(LogEnd { offset, ..end });
        self.roll_segment(&mut writer, wall_clock_ms()).map_err(|error| self.io_failed(error))?;
        Ok(())
    }

    /// Starts a new segment at the log end. A segment without records stays as it is.
    pub fn roll(&self) -> Result<(), AppendError> {
        let mut writer = self.writer.lock();
        self.health.check()?;
        if writer.closed {
            return Err(AppendError::Closed { log: self.topic_partition.clone() });
        }
        if self.end().position > 0 {
            self.roll_segment(&mut writer, wall_clock_ms()).map_err(|error| self.io_failed(error))?;
        }
        Ok(())
    }

    fn roll_segment(&self, writer: &mut Writer, now_ms: i64) -> io::Result<Arc<Segment>> {
        let _busy = self.busy();
        let end = self.end();
        let segments = self.snapshot();
        if let Some(active) = segments.last() {
            active.retire_index()?;
            if self.flush_before_ack {
                // Nothing follows a segment that could still lose its tail or its name; recovery counts on that.
                active.file.sync().map_err(|error| {
                    self.health.fail(format!("fsync of {} failed: {error}", active.path.display()));
                    error
                })?;
                self.disk.sync_dir(&self.dir).map_err(|error| {
                    self.health.fail(format!("fsync of {} failed: {error}", self.dir.display()));
                    error
                })?;
            }
        }
        self.write_producer_snapshot(writer, end.offset)?;
        let created = Segment::create(&self.disk, &self.dir, end.offset, now_ms);
        let segment = Arc::new(created.inspect_err(|_| {
            // The log goes on in the old segment: an empty one must not be found behind it.
            if segments.iter().all(|old| old.base_offset != end.offset) {
                self.remove_half_made(end.offset);
            }
        })?);
        let config = self.config();
        if let Some(active) = segments.last() {
            active.release(&config);
        }
        segment.reserve(&config);
        self.names_dirty.store(true, Ordering::Release);
        let mut list = Vec::with_capacity(segments.len() + 1);
        // An empty segment at the same offset (its offsets would overflow) gives way to the new one.
        list.extend(segments.iter().filter(|old| old.base_offset != end.offset).cloned());
        list.push(Arc::clone(&segment));
        *self.segments.write() = Arc::new(list);
        writer.roll_jitter_ms = roll_jitter_ms(&config);
        let end = LogEnd { offset: end.offset, segment_base: end.offset, position: 0 };
        self.publish(end);
        Ok(segment)
    }

    fn remove_half_made(&self, base_offset: i64) {
        for suffix in [LOG_SUFFIX, INDEX_SUFFIX, TIME_INDEX_SUFFIX] {
            let path = file_path(&self.dir, base_offset, suffix);
            match self.disk.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "an empty file stays behind; the next start removes it");
                }
                _ => {}
            }
        }
    }

    fn write_producer_snapshot(&self, writer: &mut Writer, offset: i64) -> io::Result<()> {
        // What lies in front of a snapshot is not looked at again.
        self.write_transaction_indexes(writer)?;
        if !self.wants_snapshot(writer, offset) {
            return Ok(());
        }
        let path = snapshot_path(&self.dir, offset);
        writer.producers.write_snapshot(self.disk.as_ref(), &path)?;
        self.names_dirty.store(true, Ordering::Release);
        writer.snapshots.push(offset);
        Ok(())
    }

    /// Whether the producers as of `offset`, the log end, are to be written down and are not.
    pub(super) fn wants_snapshot(&self, writer: &Writer, offset: i64) -> bool {
        // An empty log needs none: there is nothing to replay.
        let nothing = writer.producers.is_empty() && self.first_segment_base() == Some(offset);
        writer.snapshots.last() != Some(&offset) && !nothing
    }
}

/// Whether `len` more bytes, whose newest record is of the first of the two times, belong into a new segment.
pub(super) fn must_roll(
    active: &Segment,
    config: &LogConfig,
    len: u64,
    (timestamp_ms, now_ms): (i64, i64),
    jitter_ms: i64,
) -> bool {
    let size = active.size();
    let first_timestamp_ms = active.first_timestamp_ms();
    let waited_ms = if first_timestamp_ms >= 0 {
        timestamp_ms.saturating_sub(first_timestamp_ms)
    } else {
        now_ms.saturating_sub(active.created_ms)
    };
    let most = config.segment_bytes.min(i32::MAX as u64);
    size > 0
        && (size + len > most
            || waited_ms > config.roll_ms().saturating_sub(jitter_ms)
            || active.is_index_full(config.segment_index_bytes))
}

pub(super) fn roll_jitter_ms(config: &LogConfig) -> i64 {
    let most = config.segment_jitter_ms.min(config.roll_ms());
    if most <= 0 { 0 } else { rand::random_range(0..=most) }
}

/// Stamps a batch whose header lies at the start of `head`, and `header` with it.
fn stamp(
    head: &mut [u8],
    rest: &[u8],
    header: &mut BatchHeader,
    (base_offset, leader_epoch): (i64, i32),
    origin: AppendOrigin,
    config: &LogConfig,
    now_ms: i64,
) {
    if origin == AppendOrigin::Replication {
        return;
    }
    batch::stamp_offset(head, base_offset, leader_epoch);
    header.base_offset = base_offset;
    header.partition_leader_epoch = leader_epoch;
    if config.timestamp_type == TimestampType::LogAppendTime {
        batch::stamp_log_append_time_parts(head, rest, now_ms);
        header.max_timestamp_ms = now_ms;
    }
}
