//! The metadata log, `__cluster_metadata-0`: read at start, written by one voter that leads itself.
//!
//! Loading is the newest snapshot and the log behind it. A change is appended in one batch (or, when it is too long for
//! one, within a record transaction), flushed, and only then applied to the image. What every file looks like:
//! docs/formats/metadata-log.md.

mod control;
mod quorum;
pub mod snapshot;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use caudal_protocol::batch::Batches;
use caudal_protocol::compression::CompressionError;
use caudal_protocol::records::control::{KRaftVersionRecord, VotersRecord};
use caudal_protocol::records::metadata::{AbortTransactionRecord, BeginTransactionRecord, EndTransactionRecord};
use caudal_protocol::wire::{DecodeError, EncodeError};
use caudal_protocol::{TopicPartition, Uuid};
use caudal_storage::error::is_disk_full;
use caudal_storage::{
    AppendError, AppendOrigin, FlushError, Log, LogConfig, LogDir, OpenError, ReadError, TopicLog, wall_clock_ms,
};

pub use quorum::single_voter;
pub use snapshot::{SnapshotContents, SnapshotId};

use crate::image::{ApplyError, MetadataImage};
use crate::record::MetadataRecord;
use control::{Contents, Control, MAX_BATCH_RECORDS, control_batch, data_batches, read_batch};

/// The topic of the metadata log.
pub const METADATA_TOPIC: &str = "__cluster_metadata";

const READ_BYTES: usize = 1024 * 1024;

/// Why the metadata log cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetadataLogError {
    #[error("failed to access {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "failed to read {}: {reason}. Restore the file from a backup, or move it away: the log beside it, with an older \
         snapshot if there is one, stands for it as long as it is whole, and the next start says if it is not",
        path.display()
    )]
    Snapshot { path: PathBuf, reason: String },
    #[error(
        "failed to read {}: {reason}. Remove the file: the epoch is found again in the log beside it",
        path.display()
    )]
    QuorumState { path: PathBuf, reason: String },
    #[error(
        "failed to write {}: the disk is full. Free space there: changes are taken again as soon as there is some",
        path.display()
    )]
    DiskFull { path: PathBuf },
    #[error("failed to read the metadata log at offset {offset}: {error}")]
    Record { offset: i64, error: String },
    #[error("failed to apply the metadata record at offset {offset}: {source}")]
    Apply { offset: i64, source: ApplyError },
    #[error(
        "failed to read the metadata log in {}: it begins at offset {start}, and no snapshot reaches that far. Restore the \
         missing segments or snapshots (OFFSET-EPOCH.checkpoint) from a backup; or start once with {ACCEPT_LOSS}=true to go on without \
         what they say: the partitions of topics that are then unknown are set aside, under names that end in -stray",
        dir.display()
    )]
    Gap { dir: PathBuf, start: i64 },
    #[error(
        "failed to read the metadata log in {}: the records from offset {from} to {to} (exclusive) were on disk and are \
         missing or damaged. Restore the directory from a backup; or start once with {ACCEPT_LOSS}=true to go on as \
         of offset {from}: what was created, deleted or configured behind it is then forgotten",
        dir.display()
    )]
    Lost { dir: PathBuf, from: i64, to: i64 },
    #[error(
        "failed to lead the metadata quorum: its voters are {voters:?}, but only node {node_id} alone is supported. \
         Start this data directory with Apache Kafka, or shrink the quorum to this node first"
    )]
    Voters { voters: Vec<i32>, node_id: i32 },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Flush(#[from] FlushError),
    #[error("failed to write a metadata record: {0}")]
    Encode(#[from] EncodeError),
    #[error("failed to read a metadata record: {0}")]
    Decode(#[from] DecodeError),
    #[error("failed to build a metadata batch: {0}")]
    Build(#[from] CompressionError),
    #[error("failed to write the metadata log: an earlier write failed, its outcome is unknown. Restart the broker")]
    Failed,
}

impl MetadataLogError {
    /// A file that could not be written.
    fn write(path: PathBuf, source: std::io::Error) -> MetadataLogError {
        if is_disk_full(&source) { MetadataLogError::DiskFull { path } } else { MetadataLogError::Io { path, source } }
    }

    /// Whether nothing but space is missing: the same may succeed later.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, MetadataLogError::DiskFull { .. } | MetadataLogError::Append(AppendError::DiskFull { .. }))
    }
}

/// The property that lets a broker start without metadata records that were durable and are gone.
pub const ACCEPT_LOSS: &str = "caudal.metadata.accept.loss";

/// When snapshots are written, and what is accepted when the log is read.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotPolicy {
    /// `metadata.log.max.record.bytes.between.snapshots`
    pub max_bytes: u64,
    /// `metadata.log.max.snapshot.interval.ms`; zero: never by age.
    pub max_interval: Duration,
    /// `metadata.max.retention.bytes`: above it, what the older of two snapshots covers is deleted from the log.
    pub retention_bytes: u64,
    /// [`ACCEPT_LOSS`]: records that are missing are given up.
    pub accept_loss: bool,
}

impl Default for SnapshotPolicy {
    fn default() -> SnapshotPolicy {
        SnapshotPolicy {
            max_bytes: 20 * 1024 * 1024,
            max_interval: Duration::from_secs(3600),
            retention_bytes: 100 * 1024 * 1024,
            accept_loss: false,
        }
    }
}

/// The metadata log while it is open.
#[derive(Debug)]
pub struct MetadataLog {
    log: Arc<Log>,
    dir: Arc<LogDir>,
    node_id: i32,
    image: Arc<MetadataImage>,
    epoch: i32,
    kraft_version: i16,
    voters: Option<VotersRecord>,
    /// Whether the log (or a later snapshot) says the voters, beside the bootstrap snapshot.
    voters_logged: bool,
    last_timestamp_ms: i64,
    last_snapshot: Option<SnapshotId>,
    bytes_since_snapshot: u64,
    snapshot_time: Instant,
    policy: SnapshotPolicy,
    /// The log ends within a transaction of records, whose writer is gone.
    unended: bool,
    /// [`MetadataLog::begin_epoch`] succeeded.
    leads: bool,
    failed: bool,
}

impl MetadataLog {
    /// Reads the metadata log of a log directory; an empty one is created where there is none.
    pub fn load(dir: Arc<LogDir>, node_id: i32, policy: SnapshotPolicy) -> Result<MetadataLog, MetadataLogError> {
        let log = dir.create_log(TopicLog {
            topic_partition: TopicPartition::new(METADATA_TOPIC, 0),
            topic_id: Some(Uuid::METADATA_TOPIC),
            config: log_config(),
        })?;
        log.set_config(log_config());
        let mut loaded = MetadataLog {
            log,
            dir,
            node_id,
            image: Arc::new(MetadataImage::empty()),
            epoch: 0,
            kraft_version: 0,
            voters: None,
            voters_logged: false,
            last_timestamp_ms: 0,
            last_snapshot: None,
            bytes_since_snapshot: 0,
            snapshot_time: Instant::now(),
            policy,
            unended: false,
            leads: false,
            failed: false,
        };
        let mut image = MetadataImage::empty();
        loaded.load_snapshot(&mut image)?;
        let replayed = loaded.replay(&mut image);
        let state = quorum::read(loaded.dir.disk().as_ref(), loaded.log.dir())?;
        loaded.epoch = loaded.epoch.max(state.epoch);
        loaded.image = Arc::new(image);
        match replayed {
            Err(MetadataLogError::Lost { from, to, .. }) if policy.accept_loss => loaded.give_up(from, to)?,
            replayed => replayed?,
        }
        loaded.check_voters(&state.nodes)?;
        Ok(loaded)
    }

    fn load_snapshot(&mut self, image: &mut MetadataImage) -> Result<(), MetadataLogError> {
        let disk = self.dir.disk();
        let start = self.log.log_start_offset();
        let Some(newest) = snapshot::list(disk.as_ref(), self.log.dir())?.pop() else {
            return if start == 0 || self.policy.accept_loss { Ok(()) } else { Err(self.gap(start)) };
        };
        if newest.end_offset < start && !self.policy.accept_loss {
            return Err(self.gap(start));
        }
        let contents = snapshot::read(disk.as_ref(), self.log.dir(), newest)?;
        let end = self.log.log_end_offset();
        if newest.end_offset > end {
            // Everything that is missing is in the snapshot; Kafka goes on behind it too.
            tracing::warn!(
                dir = %self.log.dir().display(), end, snapshot = newest.file_name(),
                "the metadata log ends before its newest snapshot: the snapshot stands for it"
            );
            self.restart_at(newest.end_offset)?;
        }
        for record in &contents.records {
            image.apply(record).map_err(|source| MetadataLogError::Apply { offset: newest.end_offset - 1, source })?;
        }
        image.offset = newest.end_offset - 1;
        image.epoch = newest.epoch;
        self.epoch = newest.epoch;
        self.kraft_version = contents.kraft_version;
        self.voters_logged = contents.voters.is_some() && newest != SnapshotId::BOOTSTRAP;
        self.voters = contents.voters;
        self.last_snapshot = (newest != SnapshotId::BOOTSTRAP).then_some(newest);
        Ok(())
    }

    fn gap(&self, start: i64) -> MetadataLogError {
        MetadataLogError::Gap { dir: self.log.dir().to_owned(), start }
    }

    /// Makes the log go on at an offset at or above its end that a snapshot covers.
    fn restart_at(&self, offset: i64) -> Result<(), MetadataLogError> {
        self.log.skip_to(offset)?;
        self.log.roll()?;
        self.log.flush()?;
        self.log.delete_records_before(offset)?;
        Ok(())
    }

    /// Puts a snapshot of what was read in the place of records that cannot be. Their offsets are not given out again.
    fn give_up(&mut self, from: i64, to: i64) -> Result<(), MetadataLogError> {
        tracing::warn!(
            dir = %self.log.dir().display(), from, to,
            "{ACCEPT_LOSS}=true: the metadata goes on without the records of these offsets. Set it back to false"
        );
        let mut image = MetadataImage::clone(&self.image);
        image.offset = to - 1;
        image.epoch = self.epoch;
        self.image = Arc::new(image);
        self.unended = false;
        self.snapshot()?;
        self.restart_at(to)
    }

    /// Applies the log behind the image. A transaction of records that was not ended is dropped.
    fn replay(&mut self, image: &mut MetadataImage) -> Result<(), MetadataLogError> {
        let end = self.log.log_end_offset();
        let mut offset = image.offset + 1;
        let mut open: Option<Vec<(i64, MetadataRecord)>> = None;
        if offset < self.log.log_start_offset() {
            return Err(MetadataLogError::Lost { dir: self.log.dir().to_owned(), from: offset, to: end });
        }
        while offset < end {
            let dir = self.log.dir().to_owned();
            let lost = |from: i64| MetadataLogError::Lost { dir: dir.clone(), from, to: end };
            let slice = match self.log.read(offset, READ_BYTES, end, true) {
                Err(ReadError::Corrupt { .. }) => return Err(lost(offset)),
                slice => slice?,
            };
            let path = || self.log.dir().to_owned();
            let bytes = slice.to_bytes().map_err(|source| MetadataLogError::Io { path: path(), source })?;
            let from = offset;
            for batch in Batches::new(bytes) {
                let Ok(batch) = batch else { return Err(lost(offset)) };
                let next = batch.header.next_offset();
                if next <= offset {
                    continue;
                }
                // A record with a bit turned over may still be one, of another meaning.
                if batch.header.base_offset > offset || !batch.is_intact() {
                    return Err(lost(offset));
                }
                self.bytes_since_snapshot += batch.header.size_bytes() as u64;
                self.last_timestamp_ms = batch.header.max_timestamp_ms;
                self.epoch = batch.header.partition_leader_epoch;
                match read_batch(&batch)? {
                    Contents::Control(records) => self.note_control(records),
                    Contents::Data(records) => {
                        let numbered = (batch.header.base_offset..).zip(records).filter(|(at, _)| *at >= offset);
                        fold(image, numbered, &mut open)?;
                    }
                }
                image.offset = next - 1;
                image.epoch = self.epoch;
                offset = next;
            }
            if offset == from {
                return Err(lost(offset));
            }
        }
        self.unended = open.is_some();
        Ok(())
    }

    fn note_control(&mut self, records: Vec<Control>) {
        for record in records {
            match record {
                Control::KRaftVersion(v) => self.kraft_version = v.k_raft_version,
                Control::Voters(voters) => {
                    self.voters = Some(voters);
                    self.voters_logged = true;
                }
                Control::LeaderChange(_) | Control::SnapshotHeader(_) | Control::SnapshotFooter(_) => {}
            }
        }
    }

    /// `last_known`: of the quorum, as `quorum-state` has it. It stands where the quorum is static.
    fn check_voters(&self, last_known: &[i32]) -> Result<(), MetadataLogError> {
        let voters: Vec<i32> = match &self.voters {
            Some(record) => record.voters.iter().map(|v| v.voter_id).collect(),
            None => last_known.to_vec(),
        };
        if voters == [self.node_id] || (voters.is_empty() && self.voters.is_none()) {
            return Ok(());
        }
        Err(MetadataLogError::Voters { voters, node_id: self.node_id })
    }

    /// Whether nothing was ever written into it: it was created just now, or formatted and not used yet.
    pub fn is_new(&self) -> bool {
        self.last_snapshot.is_none() && self.log.log_end_offset() == 0
    }

    /// The `kraft.version` of the quorum.
    pub fn kraft_version(&self) -> i16 {
        self.kraft_version
    }

    /// The image of all that is written.
    pub fn image(&self) -> &Arc<MetadataImage> {
        &self.image
    }

    /// Whether the voters are known: the quorum is dynamic.
    pub fn has_voters(&self) -> bool {
        self.voters.is_some()
    }

    /// The log itself.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Whether an epoch was begun, so that changes can be written.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// Elects this node: the next epoch, remembered in `quorum-state`, and the control records that begin it. Where the
    /// disk is full it can be called again later; what was loaded can be read meanwhile.
    pub fn begin_epoch(&mut self) -> Result<Arc<MetadataImage>, MetadataLogError> {
        let epoch = self.epoch + 1;
        quorum::write(self.dir.disk().as_ref(), self.log.dir(), self.node_id, epoch, self.kraft_version)?;
        self.epoch = epoch;
        let mut records = vec![Control::LeaderChange(quorum::leader_change(self.node_id))];
        if let (Some(voters), false) = (&self.voters, self.voters_logged) {
            let version = KRaftVersionRecord { version: 0, k_raft_version: self.kraft_version };
            records.push(Control::KRaftVersion(version));
            records.push(Control::Voters(voters.clone()));
        }
        let now_ms = wall_clock_ms();
        let batch = control_batch(&records, self.log.log_end_offset(), epoch, now_ms)?;
        self.append(&batch, now_ms)?;
        self.voters_logged = self.voters.is_some();
        if self.unended {
            let abort = AbortTransactionRecord { reason: Some("its writer stopped".to_owned()) };
            let mut batch = BytesMut::new();
            data_batches(&[abort.into()], self.log.log_end_offset(), epoch, now_ms, &mut batch)?;
            self.append(&batch, now_ms)?;
            self.unended = false;
        }
        let mut image = MetadataImage::clone(&self.image);
        self.publish(&mut image);
        self.leads = true;
        Ok(Arc::clone(&self.image))
    }

    /// Raises `kraft.version` to 1: from now on the log says who the voters are (KIP-853). The image that results.
    pub fn raise_kraft_version(&mut self, voters: VotersRecord) -> Result<Arc<MetadataImage>, MetadataLogError> {
        let version = KRaftVersionRecord { version: 0, k_raft_version: 1 };
        let records = [Control::KRaftVersion(version), Control::Voters(voters.clone())];
        let now_ms = wall_clock_ms();
        let batch = control_batch(&records, self.log.log_end_offset(), self.epoch, now_ms)?;
        self.append(&batch, now_ms)?;
        (self.kraft_version, self.voters, self.voters_logged) = (1, Some(voters), true);
        let mut image = MetadataImage::clone(&self.image);
        self.publish(&mut image);
        Ok(Arc::clone(&self.image))
    }

    /// Writes records behind the ones that are there, all or none of them, and makes them durable; the image that
    /// results.
    ///
    /// # Errors
    /// A record does not fit the image: nothing was written. Anything else: nothing further can be written.
    pub fn commit(&mut self, records: &[MetadataRecord]) -> Result<Arc<MetadataImage>, MetadataLogError> {
        if records.is_empty() {
            return Ok(Arc::clone(&self.image));
        }
        let base_offset = self.log.log_end_offset();
        let mut image = MetadataImage::clone(&self.image);
        let open = &mut None;
        fold(&mut image, (base_offset..).zip(records.iter().cloned()), open)?;
        let now_ms = wall_clock_ms();
        let mut batches = BytesMut::new();
        data_batches(records, base_offset, self.epoch, now_ms, &mut batches)?;
        let in_one_batch = records.len() <= MAX_BATCH_RECORDS && Batches::new(batches.clone().freeze()).count() == 1;
        if !in_one_batch {
            let begin = BeginTransactionRecord { name: Some("Long change".to_owned()) };
            let mut wrapped: Vec<MetadataRecord> = vec![begin.into()];
            wrapped.extend_from_slice(records);
            wrapped.push(EndTransactionRecord::default().into());
            batches.clear();
            data_batches(&wrapped, base_offset, self.epoch, now_ms, &mut batches)?;
        }
        self.append(&batches, now_ms)?;
        self.publish(&mut image);
        Ok(Arc::clone(&self.image))
    }

    fn append(&mut self, batches: &[u8], now_ms: i64) -> Result<(), MetadataLogError> {
        if self.failed {
            return Err(MetadataLogError::Failed);
        }
        // Whatever goes wrong from here on: what is on disk may differ from the image.
        self.failed = true;
        let appended = self.log.append(batches, self.epoch, AppendOrigin::Coordinator);
        if let Err(AppendError::DiskFull { .. } | AppendError::Exhausted { .. }) = &appended {
            // Nothing of it was stored.
            self.failed = false;
        }
        appended?;
        self.log.flush()?;
        self.failed = false;
        self.bytes_since_snapshot += batches.len() as u64;
        self.last_timestamp_ms = now_ms;
        Ok(())
    }

    fn publish(&mut self, image: &mut MetadataImage) {
        image.offset = self.log.log_end_offset() - 1;
        image.epoch = self.epoch;
        self.image = Arc::new(std::mem::take(image));
    }

    /// Writes a snapshot if enough was written, or enough time has gone by, since the last one.
    pub fn snapshot_if_due(&mut self) -> Result<Option<SnapshotId>, MetadataLogError> {
        let by_age = !self.policy.max_interval.is_zero() && self.snapshot_time.elapsed() >= self.policy.max_interval;
        if self.bytes_since_snapshot < self.policy.max_bytes && !(by_age && self.bytes_since_snapshot > 0) {
            return Ok(None);
        }
        self.snapshot().map(Some)
    }

    /// Writes a snapshot of the present image and deletes what has become superfluous: snapshots but the last two, and
    /// the log below the older one when the log is over its retention.
    pub fn snapshot(&mut self) -> Result<SnapshotId, MetadataLogError> {
        let id = SnapshotId { end_offset: self.image.offset + 1, epoch: self.image.epoch };
        let contents = SnapshotContents {
            records: self.image.to_records(),
            kraft_version: self.kraft_version,
            voters: self.voters.clone(),
        };
        let disk = Arc::clone(self.dir.disk());
        let dir = self.log.dir().to_owned();
        snapshot::write(disk.as_ref(), &dir, id, &contents, self.last_timestamp_ms, wall_clock_ms())?;
        self.bytes_since_snapshot = 0;
        self.snapshot_time = Instant::now();
        self.last_snapshot = Some(id);
        let mut kept = snapshot::list(disk.as_ref(), &dir)?;
        kept.retain(|s| *s != SnapshotId::BOOTSTRAP);
        let superfluous = kept.len().saturating_sub(2);
        for old in kept.drain(..superfluous) {
            let path = dir.join(old.file_name());
            disk.remove_file(&path).map_err(|source| MetadataLogError::Io { path, source })?;
        }
        if let (Some(oldest), true) = (kept.first(), self.log.size_bytes() > self.policy.retention_bytes) {
            self.log.delete_records_before(oldest.end_offset)?;
        }
        Ok(id)
    }
}

/// Applies records in order; those between the begin and the end of a transaction when it ends.
fn fold(
    image: &mut MetadataImage,
    records: impl Iterator<Item = (i64, MetadataRecord)>,
    open: &mut Option<Vec<(i64, MetadataRecord)>>,
) -> Result<(), MetadataLogError> {
    for (offset, record) in records {
        match (&record, open.as_mut()) {
            (MetadataRecord::BeginTransaction(_), _) => *open = Some(Vec::new()),
            (MetadataRecord::AbortTransaction(_), _) => *open = None,
            (MetadataRecord::EndTransaction(_), _) => {
                for (offset, record) in open.take().unwrap_or_default() {
                    image.apply(&record).map_err(|source| MetadataLogError::Apply { offset, source })?;
                }
            }
            (_, Some(pending)) => pending.push((offset, record)),
            (_, None) => image.apply(&record).map_err(|source| MetadataLogError::Apply { offset, source })?,
        }
    }
    Ok(())
}

/// The log is never cleaned by age or size: snapshots decide what may go.
fn log_config() -> LogConfig {
    LogConfig {
        retention_ms: -1,
        retention_bytes: -1,
        segment_ms: i64::MAX,
        max_message_bytes: i32::MAX as usize,
        cleanup_delete: false,
        ..LogConfig::default()
    }
}
