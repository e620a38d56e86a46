//! The log of one partition: its segments, one writer at a time, readers that never wait for it.
//!
//! Readers take a snapshot of the segment list and of the end offset; the writer publishes bytes by moving the end
//! after they are in the file. `check.rs` judges what clients send, `cost.rs` tells whether an append would block, `append.rs` writes, `read.rs` reads, `flush.rs` makes
//! durable, `recover.rs` opens, `retention.rs` deletes, `replace.rs` puts compacted segments in the place of others.

mod append;
mod check;
mod compare;
mod cost;
mod create;
mod flush;
mod gaps;
mod in_flight;
mod marker;
mod read;
pub(crate) mod recover;
pub(crate) mod replace;
mod retention;
pub(crate) mod transactions;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use caudal_protocol::{TopicPartition, Uuid};
use parking_lot::{Mutex, RwLock};

pub use append::{AppendInfo, AppendOrigin};
pub use cost::AppendCost;
pub use marker::{EndMarker, TransactionMarker};
pub use read::{LogSlice, TimestampedOffset};
pub use recover::LogRecovery;
pub use transactions::AbortedTransaction;

use crate::checkpoint;
use crate::config::LogConfig;
use crate::disk::Disk;
use crate::error::Offline;
use crate::flusher::{FlushQueue, Waiters};
use crate::leader_epoch::LeaderEpochs;
use crate::producer_state::{ActiveProducer, LastBatch, ProducerState, Verification};
use crate::segment::{CorruptRange, Segment};

/// The log directory's health, shared by its logs.
#[derive(Debug)]
pub(crate) struct DirHealth {
    dir: PathBuf,
    offline: OnceLock<Offline>,
    /// When writes found no space, the last time; until one succeeds.
    full: Mutex<Option<Instant>>,
    is_full: AtomicBool,
}

impl DirHealth {
    pub fn new(dir: PathBuf) -> DirHealth {
        DirHealth { dir, offline: OnceLock::new(), full: Mutex::new(None), is_full: AtomicBool::new(false) }
    }

    /// Tells once that the disk is full, however many writes find it so.
    pub fn note_full(&self) {
        *self.full.lock() = Some(Instant::now());
        if !self.is_full.swap(true, Ordering::Relaxed) {
            tracing::error!(
                dir = %self.dir.display(),
                "the disk of the log directory is full: writes are refused with KAFKA_STORAGE_ERROR, reads go on. Free space \
                 there (retention still deletes): writes are taken again as soon as there is some"
            );
        }
    }

    pub fn note_written(&self) {
        if self.is_full.load(Ordering::Relaxed) && self.is_full.swap(false, Ordering::Relaxed) {
            tracing::info!(dir = %self.dir.display(), "there is space in the log directory again: writes are taken");
        }
    }

    /// When a write found no space, if none has succeeded since.
    pub fn found_full(&self) -> Option<Instant> {
        (*self.full.lock()).filter(|_| self.is_full.load(Ordering::Relaxed))
    }

    pub fn check(&self) -> Result<(), Offline> {
        self.offline.get().map_or(Ok(()), |offline| Err(offline.clone()))
    }

    /// Takes the directory out of use for good. The first reason stands.
    pub fn fail(&self, reason: String) -> Offline {
        let offline = self.offline.get_or_init(|| {
            tracing::error!(dir = %self.dir.display(), %reason, "log directory goes offline");
            Offline { dir: self.dir.clone(), reason }
        });
        offline.clone()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Where a log ends: an offset (exclusive) and the byte in the segment with that base offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogEnd {
    pub offset: i64,
    pub segment_base: i64,
    pub position: u64,
}

/// What only the writer touches.
#[derive(Debug, Default)]
struct Writer {
    producers: ProducerState,
    /// Offsets of the snapshot files on disk, ascending.
    snapshots: Vec<i64>,
    /// Aborted transactions that are in no index file yet, by their markers.
    unindexed: Vec<AbortedTransaction>,
    /// Subtracted from `segment.ms` for the active segment, so that partitions do not all roll at once.
    roll_jitter_ms: i64,
    replacing: Option<replace::Replacing>,
    closed: bool,
}

pub(crate) type Segments = Arc<Vec<Arc<Segment>>>;

/// The log of one partition.
pub struct Log {
    topic_partition: TopicPartition,
    topic_id: OnceLock<Uuid>,
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    health: Arc<DirHealth>,
    config: RwLock<Arc<LogConfig>>,
    segments: RwLock<Segments>,
    end: Mutex<LogEnd>,
    /// How far readers and acknowledgements may go.
    durable: Mutex<LogEnd>,
    log_end_offset: AtomicI64,
    durable_end_offset: AtomicI64,
    /// How far fsync came; equals the durable end unless acknowledgements do not wait for it.
    synced_offset: AtomicI64,
    log_start_offset: AtomicI64,
    /// The offset behind which nothing needs recovery, as of the last checkpoint.
    recovery_point: AtomicI64,
    /// Bytes that were appended since the last checkpoint.
    grown_bytes: AtomicU64,
    writer: Mutex<Writer>,
    /// How many hold the writer for as long as it takes to sync or remove files, or are about to.
    busy: AtomicUsize,
    unstable: transactions::Unstable,
    /// By the offsets of their markers.
    aborted: RwLock<Vec<AbortedTransaction>>,
    epochs: Mutex<LeaderEpochs>,
    /// Held by the one that compacts.
    pub(crate) cleaning: Mutex<()>,
    /// Asks the one that compacts to end, and keeps others from it.
    closing: AtomicBool,
    /// How many copy the log, which keeps from compacting it, too.
    copiers: AtomicUsize,
    /// Compaction failed in a way that another try does not mend.
    uncleanable: AtomicBool,
    /// Held by the one that flushes.
    flushing: Mutex<()>,
    /// Held while files are written or removed outside of appends: a log is not deleted meanwhile. Taken before `writer`.
    upkeep: Mutex<()>,
    /// When the last flush ended, for `flush.ms`.
    last_flush: Mutex<Instant>,
    /// Names were created that a power loss might take away.
    names_dirty: AtomicBool,
    deleted: AtomicBool,
    flush_before_ack: bool,
    pub(crate) waiters: Mutex<Waiters>,
    pub(crate) queue: Arc<FlushQueue>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("topic_partition", &self.topic_partition)
            .field("start", &self.log_start_offset())
            .field("durable", &self.durable_end_offset())
            .field("end", &self.log_end_offset())
            .finish_non_exhaustive()
    }
}

/// Milliseconds since the epoch.
pub fn wall_clock_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl Log {
    pub fn topic_partition(&self) -> &TopicPartition {
        &self.topic_partition
    }

    /// The id in `partition.metadata`.
    pub fn topic_id(&self) -> Option<Uuid> {
        self.topic_id.get().copied()
    }

    /// Gives the log of a topic whose id never reached the disk its id.
    pub(crate) fn adopt_topic_id(&self, topic_id: Uuid) -> io::Result<()> {
        if *self.topic_id.get_or_init(|| topic_id) == topic_id {
            checkpoint::write_partition_metadata(self.disk.as_ref(), &self.dir, topic_id)?;
            self.names_dirty.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The directory of the partition.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn config(&self) -> Arc<LogConfig> {
        Arc::clone(&self.config.read())
    }

    /// Replaces the configuration; the next append obeys it.
    pub fn set_config(&self, config: LogConfig) {
        *self.config.write() = Arc::new(config);
    }

    /// The first offset that can be read.
    pub fn log_start_offset(&self) -> i64 {
        self.log_start_offset.load(Ordering::Acquire)
    }

    /// The offset that the next record gets.
    pub fn log_end_offset(&self) -> i64 {
        self.log_end_offset.load(Ordering::Acquire)
    }

    /// The offset (exclusive) up to which records survive a power loss. With `flush_before_ack` off: the log end.
    pub fn durable_end_offset(&self) -> i64 {
        self.durable_end_offset.load(Ordering::Acquire)
    }

    /// The offset (exclusive) up to which fsync came.
    pub fn synced_offset(&self) -> i64 {
        self.synced_offset.load(Ordering::Acquire)
    }

    /// Bytes of all segment files, indexes not counted.
    pub fn size_bytes(&self) -> u64 {
        self.snapshot().iter().map(|segment| segment.size()).sum()
    }

    /// The number of segments.
    pub fn segment_count(&self) -> usize {
        self.segments.read().len()
    }

    pub(crate) fn first_segment_base(&self) -> Option<i64> {
        self.segments.read().first().map(|segment| segment.base_offset)
    }

    /// Damaged bytes with valid batches behind them, found when the log was opened.
    pub fn corrupt_ranges(&self) -> Vec<CorruptRange> {
        self.snapshot().iter().flat_map(|segment| segment.corrupt_ranges()).collect()
    }

    /// The epoch of the newest records; `None` when the log never had a leader.
    pub fn latest_epoch(&self) -> Option<i32> {
        self.epochs.lock().latest()
    }

    /// The epoch in which the record at `offset` was written.
    pub fn epoch_for_offset(&self, offset: i64) -> Option<i32> {
        self.epochs.lock().epoch_for_offset(offset)
    }

    /// The largest known epoch that is not above `epoch`, with the offset behind its last record; -1 and -1 when that
    /// cannot be told. Source: KIP-101, KIP-279.
    pub fn end_offset_for_epoch(&self, epoch: i32) -> (i32, i64) {
        let end = self.log_end_offset();
        self.epochs.lock().end_offset_for(epoch, end)
    }

    /// The producers whose state the log keeps.
    pub fn active_producers(&self) -> Vec<ActiveProducer> {
        self.writer.lock().producers.active()
    }

    /// Forgets producers that wrote nothing since `before_ms` (`producer.id.expiration.ms`).
    pub fn expire_producers(&self, before_ms: i64) {
        self.writer.lock().producers.expire(before_ms);
    }

    /// Whether the log directory is in use, and if not, why.
    pub fn check_online(&self) -> Result<(), Offline> {
        self.health.check()
    }

    /// Begins to find out whether a producer's transaction is open before its first batch here is appended: the guard is to
    /// be handed to [`Log::append_verified`] once the coordinator has said so. `None`: the transaction has batches here
    /// already. `bumps_epoch`: each transaction has an epoch of its own (`transaction.version` 2).
    pub fn start_verification(&self, producer: (i64, i16), sequence: i32, bumps_epoch: bool) -> Option<Verification> {
        self.writer.lock().producers.start_verification(producer, sequence, bumps_epoch, wall_clock_ms())
    }

    pub(crate) fn snapshot(&self) -> Segments {
        Arc::clone(&self.segments.read())
    }

    pub(crate) fn end(&self) -> LogEnd {
        *self.end.lock()
    }

    /// Publishes bytes that are in the file.
    fn publish(&self, end: LogEnd) {
        *self.end.lock() = end;
        self.log_end_offset.store(end.offset, Ordering::Release);
        if !self.flush_before_ack {
            *self.durable.lock() = end;
            self.durable_end_offset.store(end.offset, Ordering::Release);
            self.settle_transactions(end.offset);
        }
    }

    /// See [`ProducerState::last_batches`].
    pub(crate) fn last_batches(&self) -> HashMap<i64, LastBatch> {
        self.writer.lock().producers.last_batches()
    }

    pub(crate) fn is_uncleanable(&self) -> bool {
        self.uncleanable.load(Ordering::Relaxed)
    }

    pub(crate) fn set_uncleanable(&self) {
        self.uncleanable.store(true, Ordering::Relaxed);
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn recovery_point(&self) -> i64 {
        self.recovery_point.load(Ordering::Acquire)
    }

    /// About as many bytes would a start after a crash have to read and check.
    pub(crate) fn grown_bytes(&self) -> u64 {
        self.grown_bytes.load(Ordering::Relaxed)
    }
}
