//! Why an operation on a log failed. A type per operation; [`AppendError::error_code`] and
//! [`ReadError::error_code`] give the code for the wire.

use std::io;
use std::path::PathBuf;

use caudal_protocol::batch::BatchError;
use caudal_protocol::{ErrorCode, TopicPartition};

use crate::checkpoint::CheckpointError;

/// A log directory that is out of use after a failed fsync or another I/O error, until the broker is restarted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log directory {dir} is offline: {reason}. Check the disk and restart")]
pub struct Offline {
    pub dir: PathBuf,
    pub reason: String,
}

/// What lies where a log should cannot be used: a file in place of its directory, a link that leads nowhere, a directory in
/// place of a segment, or something that must not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to open the log of {log}: {path} cannot be used ({reason}). It is left alone. Put it right, or restore what was there \
     from a backup; or move it away, and the log goes on without it, empty if that was all. Then restart"
)]
pub struct Unusable {
    pub log: TopicPartition,
    pub path: PathBuf,
    pub reason: String,
}

/// Whether an operation failed for what bears a name, as opposed to a fault of the disk.
pub(crate) fn is_unusable(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory, PermissionDenied};
    let is_loop = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    is_loop || matches!(error.kind(), AlreadyExists | IsADirectory | NotADirectory | PermissionDenied)
}

/// Whether an operation failed because the process has no file descriptors or memory left: it did not reach the disk, and
/// may succeed the next time.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(|errno| Some(errno.raw_os_error()));
    exhausted.contains(&error.raw_os_error())
}

/// Whether an operation failed for want of space, which comes and goes, as opposed to a fault of the disk.
pub fn is_disk_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Why an append was refused. Nothing of it was stored.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("failed to append to {log}: a batch of {size_bytes} bytes exceeds max.message.bytes={max_bytes}")]
    BatchTooLarge { log: TopicPartition, size_bytes: usize, max_bytes: usize },
    #[error(
        "failed to append to {log}: decompressed the batch exceeds {limit_bytes} bytes. Send smaller batches, or raise \
         max.message.bytes where the topic has compression.type=uncompressed"
    )]
    UnfoldsTooLarge { log: TopicPartition, limit_bytes: usize },
    #[error("failed to append to {log}: {size_bytes} bytes exceed segment.bytes={segment_bytes}")]
    LargerThanSegment { log: TopicPartition, size_bytes: usize, segment_bytes: u64 },
    /// `timestamp_ms` is the first one at fault; `records`: the places in the batch of the first hundred, where known.
    #[error(
        "failed to append to {log}: timestamp {timestamp_ms} is out of range. It should be within [{from_ms}, {to_ms}]"
    )]
    InvalidTimestamp { log: TopicPartition, timestamp_ms: i64, from_ms: i64, to_ms: i64, records: Vec<i32> },
    #[error("failed to append to {log}: producers must not set the timestamp type LogAppendTime")]
    TimestampTypeFromClient { log: TopicPartition },
    #[error("failed to append to {log}: {reason}")]
    InvalidRecord { log: TopicPartition, reason: String },
    /// `records`: the places in the batch of the first hundred.
    #[error("failed to append to {log}: it is compacted, and record {} of the batch has no key", .records.first().unwrap_or(&0))]
    KeyMissing { log: TopicPartition, records: Vec<i32> },
    #[error(
        "failed to append for producer {producer_id}: out of order sequence number {sequence}, the last one was {last_sequence}"
    )]
    OutOfOrderSequence { producer_id: i64, sequence: i32, last_sequence: i32 },
    #[error("failed to append for producer {producer_id}: epoch {epoch} is older than the last seen {current_epoch}")]
    InvalidProducerEpoch { producer_id: i64, epoch: i16, current_epoch: i16 },
    #[error("failed to append for producer {producer_id}: a transaction is open, but the batch is not part of one")]
    InvalidTransactionState { producer_id: i64 },
    #[error("failed to append for producer {producer_id}: the batch is not part of an open transaction")]
    NotInTransaction { producer_id: i64 },
    #[error(
        "failed to end the transaction of producer {producer_id}: coordinator epoch {epoch} is older than the last seen {current_epoch}"
    )]
    CoordinatorFenced { producer_id: i64, epoch: i32, current_epoch: i32 },
    #[error("failed to end the transaction of producer {producer_id}: {reason}")]
    Marker { producer_id: i64, reason: String },
    #[error(
        "failed to append to {log}: the disk of {dir} is full. Free space there: writes are taken again as soon as there is some"
    )]
    DiskFull { log: TopicPartition, dir: PathBuf },
    #[error(
        "failed to append to {log}: the process has no memory or file descriptors left ({reason}). Raise `ulimit -n`"
    )]
    Exhausted { log: TopicPartition, reason: String },
    #[error("failed to append to {log}: {source}")]
    Io { log: TopicPartition, source: io::Error },
    #[error("failed to append: {0}")]
    Offline(#[from] Offline),
    #[error("failed to append to {log}: the log was closed or deleted")]
    Closed { log: TopicPartition },
}

impl AppendError {
    pub fn error_code(&self) -> ErrorCode {
        match self {
            AppendError::Batch(BatchError::UnknownCodec { .. }) => ErrorCode::UnsupportedCompressionType,
            AppendError::Batch(BatchError::BadCount { .. } | BatchError::Invalid { .. }) => ErrorCode::InvalidRecord,
            AppendError::Batch(BatchError::BadMagic { .. }) => ErrorCode::InvalidRecord,
            AppendError::Batch(_) => ErrorCode::CorruptMessage,
            AppendError::BatchTooLarge { .. } | AppendError::UnfoldsTooLarge { .. } => ErrorCode::MessageTooLarge,
            AppendError::LargerThanSegment { .. } => ErrorCode::RecordListTooLarge,
            AppendError::InvalidTimestamp { .. } | AppendError::TimestampTypeFromClient { .. } => {
                ErrorCode::InvalidTimestamp
            }
            AppendError::InvalidRecord { .. } | AppendError::KeyMissing { .. } => ErrorCode::InvalidRecord,
            AppendError::OutOfOrderSequence { .. } => ErrorCode::OutOfOrderSequenceNumber,
            AppendError::InvalidProducerEpoch { .. } => ErrorCode::InvalidProducerEpoch,
            AppendError::InvalidTransactionState { .. } | AppendError::NotInTransaction { .. } => {
                ErrorCode::InvalidTxnState
            }
            AppendError::CoordinatorFenced { .. } => ErrorCode::TransactionCoordinatorFenced,
            AppendError::Marker { .. } => ErrorCode::UnknownServerError,
            AppendError::DiskFull { .. }
            | AppendError::Exhausted { .. }
            | AppendError::Io { .. }
            | AppendError::Offline(_) => ErrorCode::KafkaStorageError,
            AppendError::Closed { .. } => ErrorCode::NotLeaderOrFollower,
        }
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("failed to read {log} at offset {offset}: it holds {start} to {end} (exclusive)")]
    OffsetOutOfRange { log: TopicPartition, offset: i64, start: i64, end: i64 },
    #[error(
        "failed to read {log} at offset {offset}: {file} is damaged at byte {position}. Restore it from a replica or a backup, \
         or skip to a later offset"
    )]
    Corrupt { log: TopicPartition, offset: i64, file: PathBuf, position: u64 },
    #[error("failed to read {log}: {source}")]
    Io { log: TopicPartition, source: io::Error },
    #[error("failed to read {log}: the log was deleted")]
    Closed { log: TopicPartition },
    #[error("failed to read: {0}")]
    Offline(#[from] Offline),
}

impl ReadError {
    pub fn error_code(&self) -> ErrorCode {
        match self {
            ReadError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            ReadError::Corrupt { .. } => ErrorCode::CorruptMessage,
            ReadError::Closed { .. } => ErrorCode::NotLeaderOrFollower,
            ReadError::Io { .. } | ReadError::Offline(_) => ErrorCode::KafkaStorageError,
        }
    }
}

/// Why appended records could not be made durable. The log directory is offline from then on: the kernel may have
/// dropped the pages that it failed to write, so a second fsync would succeed without them.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlushError {
    #[error("failed to flush: {0}")]
    Offline(#[from] Offline),
    #[error("failed to flush {log}: the log was closed or deleted")]
    Closed { log: TopicPartition },
    /// Nothing is lost; the next flush makes up for it.
    #[error("failed to flush {log}: the process has no memory or file descriptors left ({reason}). Raise `ulimit -n`")]
    Exhausted { log: TopicPartition, reason: String },
}

impl FlushError {
    pub fn error_code(&self) -> ErrorCode {
        match self {
            FlushError::Offline(_) | FlushError::Exhausted { .. } => ErrorCode::KafkaStorageError,
            FlushError::Closed { .. } => ErrorCode::NotLeaderOrFollower,
        }
    }
}

/// Why a log directory or a log in it could not be opened, created or closed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("failed to open log directory {dir}: {source}")]
    Dir { dir: PathBuf, source: io::Error },
    #[error("failed to lock {dir}: another broker is using it. Stop that one, or choose another directory")]
    Locked { dir: PathBuf },
    #[error(
        "failed to open log directory {dir}: it cannot be written to ({source}). Check its owner and permissions, or choose \
         another directory (log.dirs in a properties file, --data-dir of `caudal up`)"
    )]
    NotWritable { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("failed to open the log of {log} in {dir}: {source}")]
    Log { log: TopicPartition, dir: PathBuf, source: io::Error },
    #[error("failed to open the log in {dir}: {reason}")]
    Layout { dir: PathBuf, reason: String },
    #[error(
        "failed to open the log of {log}: {file} says that its topic has the id {found}, but the topic of that name has \
         {expected}. The partition is not served and nothing in its directory is touched. If the records are this topic's, the \
         file is damaged: write the lines 'version: 0' and 'topic_id: {expected}' into it. If they are those of an earlier topic \
         of that name, move the directory away. Then restart"
    )]
    TopicIdMismatch {
        file: PathBuf,
        log: TopicPartition,
        found: caudal_protocol::Uuid,
        expected: caudal_protocol::Uuid,
    },
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error(transparent)]
    Offline(#[from] Offline),
}

impl OpenError {
    /// Whether there is no space.
    pub fn is_disk_full(&self) -> bool {
        self.io().is_some_and(is_disk_full)
    }

    /// Whether the process has no file descriptors or memory left: that says nothing of the disk.
    pub fn is_exhausted(&self) -> bool {
        self.io().is_some_and(is_exhausted)
    }

    fn io(&self) -> Option<&io::Error> {
        match self {
            OpenError::Dir { source, .. } | OpenError::Log { source, .. } => Some(source),
            OpenError::Checkpoint(CheckpointError::Io { source, .. }) => Some(source),
            _ => None,
        }
    }
}
