//! Moving partitions between the log directories of this node (AlterReplicaLogDirs) while they are read and written: a copy
//! beside, brought up to the end, then exchanged for the log in one short pause.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use caudal_cluster::MetadataImage;
use caudal_protocol::TopicPartition;
use caudal_protocol::batch::BatchHeader;
use caudal_storage::{AppendError, AppendOrigin, FlushError, Log, LogConfig, LogDir, OpenError, ReadError, TopicLog};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::context::Context;
use crate::partition::Partition;

/// What is copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// What all moves together may copy per second; no limit where it is not set.
const MOST_PER_SECOND: &str = "replica.alter.log.dirs.io.max.bytes.per.second";
/// A move that has to wait looks this often whether it still has to.
const PAUSE: Duration = Duration::from_millis(50);

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
    /// What is copied stays for the next run.
    stopping: AtomicBool,
    ahead: Mutex<Ahead>,
}

/// What was copied beyond what may be copied in the time.
#[derive(Debug)]
struct Ahead {
    bytes: f64,
    at: Instant,
}

impl Ahead {
    /// What is left of it at a rate per second.
    fn at_rate(&mut self, rate: f64) -> f64 {
        let now = Instant::now();
        self.bytes = (self.bytes - rate * now.duration_since(self.at).as_secs_f64()).max(0.0);
        self.at = now;
        self.bytes
    }
}

impl Moves {
    pub fn new(at_a_time: usize) -> Moves {
        let permits = Arc::new(Semaphore::new(at_a_time.max(1)));
        let ahead = Mutex::new(Ahead { bytes: 0.0, at: Instant::now() });
        Moves { running: Mutex::default(), permits, stopping: AtomicBool::new(false), ahead }
    }

    /// Goes on with what an earlier run left.
    pub fn resume(&self, ctx: &Arc<Context>) {
        let view = ctx.topics.view();
        for dir in ctx.replicas.log_dirs.iter() {
            for left in dir.log_dir.futures() {
                let name = left.topic_partition();
                // Without its log it waits for that one's directory.
                if let Ok(partition) = view.find(&name.topic, name.partition) {
                    self.begin(ctx, partition, &dir.log_dir, Some(left));
                }
            }
        }
    }

    /// Begins to move a partition, unless it is there or on its way there. A move to elsewhere ends. `left`: what an earlier run
    /// has copied.
    pub fn begin(&self, ctx: &Arc<Context>, partition: &Arc<Partition>, to: &Arc<LogDir>, left: Option<Arc<Log>>) {
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
        running.insert(name, moving.clone());
        drop(running);
        let (ctx, partition, permits) = (ctx.clone(), partition.clone(), self.permits.clone());
        tokio::spawn(async move {
            // It is never closed.
            let _permit = permits.acquire_owned().await;
            let moved = tokio::task::spawn_blocking(move || ctx.moves.run(&ctx, &partition, &moving, left));
            if let Err(error) = moved.await {
                tracing::error!("a move between log directories failed: {error}");
            }
        });
    }

    fn run(&self, ctx: &Context, partition: &Partition, moving: &Arc<Move>, left: Option<Arc<Log>>) {
        let result = carry_out(ctx, partition, moving, left);
        let mut running = self.running.lock();
        if running.get(&partition.name).is_some_and(|current| Arc::ptr_eq(current, moving)) {
            running.remove(&partition.name);
        }
        drop(running);
        let (partition, to) = (&partition.name, moving.to.path().display());
        match result {
            Ok(true) => tracing::info!(%partition, %to, "moved"),
            _ if self.is_stopping() => tracing::info!(%partition, %to, "the next start goes on with the move"),
            Ok(false) => tracing::info!(%partition, %to, "not moved: something else was asked for"),
            Err(error) => {
                tracing::error!(%partition, %to, "failed to move: {error}. The partition stays where it was");
            }
        }
    }

    /// Ends all moves: the broker stops.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.running.lock().drain().for_each(|(_, moving)| moving.cancelled.store(true, Ordering::Release));
    }

    /// Waits until what was copied is no more than may be. What is allowed may change meanwhile.
    fn keep_to_rate(&self, ctx: &Context, copied_bytes: usize, is_cancelled: &dyn Fn() -> bool) {
        let rate = || ctx.broker_text(MOST_PER_SECOND).parse::<f64>().ok();
        let Some(now) = rate() else { return };
        let mut ahead = self.ahead.lock();
        ahead.at_rate(now);
        ahead.bytes += copied_bytes as f64;
        drop(ahead);
        while let Some(rate) = rate().filter(|_| !is_cancelled()) {
            if self.ahead.lock().at_rate(rate) <= 0.0 {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// Whether the partition was moved; `false`: it was cancelled, or the partition is gone.
fn carry_out(ctx: &Context, wanted: &Partition, moving: &Move, mut left: Option<Arc<Log>>) -> Result<bool, MoveError> {
    loop {
        let view = ctx.topics.view();
        let topic = view.by_id(&wanted.topic_id);
        let partition = topic.and_then(|topic| topic.partition(wanted.name.partition));
        let Some(partition) = partition.filter(|_| !moving.cancelled.load(Ordering::Acquire)) else {
            if let Some(left) = left.filter(|_| !ctx.moves.is_stopping()) {
                moving.to.abandon_future(&left);
                wanted.log.resume_cleaning();
            }
            return Ok(false);
        };
        if Arc::ptr_eq(&partition.log_dir, &moving.to) {
            return Ok(true);
        }
        let future = match left.take() {
            // Nothing was compacted since it was looked at.
            Some(left) => left,
            None => {
                let future = moving.to.create_future(copy_of(&partition.log), first_offset(&partition.log)?)?;
                partition.log.pause_cleaning();
                future
            }
        };
        let moved = complete(ctx, partition, moving, &future);
        partition.log.resume_cleaning();
        // What stays is gone on with by the next start.
        let stays = ctx.moves.is_stopping() || partition.log.check_online().is_err();
        if !matches!(moved, Ok(true)) && !stays {
            moving.to.abandon_future(&future);
        }
        if moved? {
            return Ok(true);
        }
        // Cancelled, or a move to elsewhere that was to be ended came to its end just before this one.
    }
}

/// What a copy of a log is to be.
pub fn copy_of(source: &Log) -> TopicLog {
    TopicLog {
        topic_partition: source.topic_partition().clone(),
        topic_id: source.topic_id(),
        config: LogConfig::clone(&source.config()),
    }
}

/// Brings the copy up to the end of the log and puts it in its place. `false`: cancelled, or the log is not the partition's any
/// more.
fn complete(ctx: &Context, partition: &Arc<Partition>, moving: &Move, future: &Arc<Log>) -> Result<bool, MoveError> {
    let is_cancelled = || moving.cancelled.load(Ordering::Acquire);
    let source = &partition.log;
    // What an earlier run copied may not have been compacted.
    let is_new = future.log_start_offset() == future.log_end_offset();
    let cleaned = partition.log_dir.cleaned_offset(&partition.name).filter(|_| is_new);
    loop {
        let copied = |bytes| ctx.moves.keep_to_rate(ctx, bytes, &is_cancelled);
        copy(source, future, source.durable_end_offset(), &is_cancelled, &copied)?;
        if is_cancelled() {
            return Ok(false);
        }
        // What comes in meanwhile is copied in the pause.
        if future.log_end_offset() >= source.durable_end_offset() {
            future.flush()?;
            let note =
                |image: &MetadataImage| ctx.replicas.whereabouts_in(partition, &moving.to, image).into_iter().collect();
            let moved = ctx.metadata.noted(note, |replicas| replicas.exchange(partition, &moving.to, future, cleaned));
            // What was noted is put right.
            ctx.replicas.log_dirs.note_moved();
            return moved;
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

/// Copies batches up to `end`; `copied` is told of the bytes of each piece.
pub fn copy(
    source: &Log,
    future: &Arc<Log>,
    end: i64,
    is_cancelled: &dyn Fn() -> bool,
    copied: &dyn Fn(usize),
) -> Result<(), MoveError> {
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
        let whole = whole_batches(&bytes);
        future.append(whole, 0, AppendOrigin::Replication)?;
        copied(whole.len());
    }
    Ok(())
}
