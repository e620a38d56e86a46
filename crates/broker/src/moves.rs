//! Moving partitions between the log directories of this node (AlterReplicaLogDirs) while they are read and written: a copy
//! beside, brought up to the end, then exchanged for the log in one short pause.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use caudal_protocol::TopicPartition;
use caudal_protocol::batch::BatchHeader;
use caudal_storage::{AppendError, AppendOrigin, FlushError, Log, LogDir, OpenError, ReadError, TopicLog};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::context::Context;
use crate::partition::Partition;

/// What is copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Why a partition stayed where it is.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Flush(#[from] FlushError),
    #[error("failed to read {0}: {1}")]
    Io(TopicPartition, std::io::Error),
}

/// A move under way.
#[derive(Debug)]
struct Move {
    to: Arc<LogDir>,
    cancelled: AtomicBool,
}

/// The moves of this node.
#[derive(Debug)]
pub struct Moves {
    running: Mutex<HashMap<TopicPartition, Arc<Move>>>,
    /// `num.replica.alter.log.dirs.threads`, or as many as there are directories.
    permits: Arc<Semaphore>,
}

impl Moves {
    pub fn new(at_a_time: usize) -> Moves {
        Moves { running: Mutex::default(), permits: Arc::new(Semaphore::new(at_a_time.max(1))) }
    }

    /// Begins to move a partition, unless it is there or on its way there. A move to elsewhere ends.
    pub fn begin(&self, ctx: &Arc<Context>, partition: &Arc<Partition>, to: &Arc<LogDir>) {
        let name = partition.name.clone();
        let mut running = self.running.lock();
        if let Some(other) = running.get(&name) {
            if Arc::ptr_eq(&other.to, to) {
                return;
            }
            other.cancelled.store(true, Ordering::Release);
            running.remove(&name);
        }
        if Arc::ptr_eq(&partition.log_dir, to) {
            return;
        }
        let moving = Arc::new(Move { to: to.clone(), cancelled: AtomicBool::new(false) });
        running.insert(name.clone(), moving.clone());
        drop(running);
        let (ctx, partition, permits) = (ctx.clone(), partition.clone(), self.permits.clone());
        tokio::spawn(async move {
            // It is never closed.
            let _permit = permits.acquire_owned().await;
            let at = ctx.clone();
            let moved = tokio::task::spawn_blocking(move || {
                let result = carry_out(&at, &partition, &moving);
                if !matches!(result, Ok(true)) {
                    moving.to.abandon_future(&partition.name);
                }
                let mut running = at.moves.running.lock();
                if running.get(&partition.name).is_some_and(|current| Arc::ptr_eq(current, &moving)) {
                    running.remove(&partition.name);
                }
                drop(running);
                (partition, moving, result)
            });
            let Ok((partition, moving, result)) = moved.await else { return };
            let (partition, to) = (&partition.name, moving.to.path().display());
            match result {
                Ok(true) => tracing::info!(%partition, %to, "moved"),
                Ok(false) => tracing::info!(%partition, %to, "not moved: something else was asked for"),
                Err(error) => {
                    tracing::error!(%partition, %to, "failed to move: {error}. The partition stays where it was")
                }
            }
        });
    }

    /// Ends all moves: the broker stops.
    pub fn cancel_all(&self) {
        self.running.lock().drain().for_each(|(_, moving)| moving.cancelled.store(true, Ordering::Release));
    }
}

/// Whether the partition was moved; `false`: it was cancelled, or the partition is gone.
fn carry_out(ctx: &Context, partition: &Arc<Partition>, moving: &Move) -> Result<bool, MoveError> {
    let is_cancelled = || moving.cancelled.load(Ordering::Acquire);
    let source = &partition.log;
    if is_cancelled() {
        return Ok(false);
    }
    // Before anything is copied: what is compacted from now on may be copied as it was.
    let cleaned = partition.log_dir.cleaned_offset(&partition.name);
    let wanted = TopicLog {
        topic_partition: partition.name.clone(),
        topic_id: Some(partition.topic_id),
        config: caudal_storage::LogConfig::clone(&source.config()),
    };
    let future = moving.to.create_future(wanted, first_offset(source)?)?;
    loop {
        copy(source, &future, source.durable_end_offset(), &is_cancelled)?;
        if is_cancelled() {
            return Ok(false);
        }
        // What comes in meanwhile is copied in the pause.
        if future.log_end_offset() >= source.durable_end_offset() {
            future.flush()?;
            return ctx.metadata.without_changes(|replicas| replicas.exchange(partition, &moving.to, &future, cleaned));
        }
    }
}

/// The base offset of the batch that the log begins with.
fn first_offset(source: &Log) -> Result<i64, MoveError> {
    let start = source.log_start_offset();
    if source.durable_end_offset() <= start {
        return Ok(start);
    }
    let slice = source.read(start, 1, source.durable_end_offset(), true)?;
    let bytes = slice.to_bytes().map_err(|error| MoveError::Io(source.topic_partition().clone(), error))?;
    Ok(BatchHeader::parse(&bytes).map_or(start, |header| header.base_offset))
}

/// A read that is bounded by bytes may end within a batch; the first is whole.
fn whole_batches(bytes: &[u8]) -> &[u8] {
    let mut end = 0;
    while let Some(Ok(header)) = bytes.get(end..).map(BatchHeader::parse) {
        if end + header.size_bytes() > bytes.len() {
            break;
        }
        end += header.size_bytes();
    }
    bytes.get(..end).unwrap_or(bytes)
}

/// Copies batches up to `end`.
pub fn copy(source: &Log, future: &Arc<Log>, end: i64, is_cancelled: &dyn Fn() -> bool) -> Result<(), MoveError> {
    let most = COPY_BYTES.min(usize::try_from(source.config().segment_bytes / 2).unwrap_or(COPY_BYTES));
    while future.log_end_offset() < end && !is_cancelled() {
        let next = future.log_end_offset().max(source.log_start_offset());
        let slice = source.read(next, most, end, true)?;
        if slice.len == 0 {
            // Compaction left nothing there.
            future.skip_to(end)?;
            break;
        }
        let bytes = slice.to_bytes().map_err(|error| MoveError::Io(source.topic_partition().clone(), error))?;
        future.append(whole_batches(&bytes), 0, AppendOrigin::Replication)?;
    }
    Ok(())
}
