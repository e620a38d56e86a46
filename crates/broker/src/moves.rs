//! Moving partitions between the log directories of this node (AlterReplicaLogDirs) while they are read and written: a copy
//! beside, brought up to the end, then exchanged for the log in one short pause.
//!
//! Where there is no room for the copy the move waits for it. Kafka takes a directory out of use that it found full; here it goes
//! on serving, and what was copied is removed at once so that it can. An empty copy tells whoever asks, and the next start, that
//! the partition is on its way.

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
use crate::log_dirs::has_room;
use crate::partition::Partition;

/// What is copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// What all moves together may copy per second; no limit where it is not set.
const MOST_PER_SECOND: &str = "replica.alter.log.dirs.io.max.bytes.per.second";
/// A move that has to wait looks this often whether it still has to.
const PAUSE: Duration = Duration::from_millis(50);

/// Between the tries of a move that found no room, each pause twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a move that waits looks whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

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
    #[error("there is no room for {bytes} bytes")]
    NoRoom { bytes: u64 },
}

impl MoveError {
    /// Whether it may succeed when there is space in `to`.
    fn is_for_space(&self, to: &LogDir) -> bool {
        match self {
            MoveError::NoRoom { .. } => true,
            MoveError::Open(error) if error.is_disk_full() => true,
            _ => to.check_online().is_ok() && to.found_full().is_some(),
        }
    }
}

/// What became of a try to move.
enum Tried {
    Ended,
    /// There is no space. With the empty copy that stands for the move, if it could be made.
    Waits(Option<Arc<Log>>),
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
        tokio::spawn(keep_trying(ctx.clone(), partition.clone(), moving, left));
    }

    fn run(&self, ctx: &Context, partition: &Partition, moving: &Arc<Move>, left: Option<Arc<Log>>) -> Tried {
        let result = carry_out(ctx, partition, moving, left);
        let is_over = self.is_stopping() || moving.cancelled.load(Ordering::Acquire);
        if let Err(error) = &result
            && !is_over
            && error.is_for_space(&moving.to)
        {
            tracing::warn!(
                partition = %partition.name, to = %moving.to.path().display(),
                "no space for the partition that is to be moved: {error}. It stays where it is, and moves when there is room for \
                 all of it; until then kafka-log-dirs shows it as on its way. To give the move up, ask for the directory that \
                 the partition is in"
            );
            return Tried::Waits(stand_in(ctx, partition, moving));
        }
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
        Tried::Ended
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

async fn keep_trying(ctx: Arc<Context>, partition: Arc<Partition>, moving: Arc<Move>, mut left: Option<Arc<Log>>) {
    let mut pause = FIRST_PAUSE;
    loop {
        // It is never closed.
        let permit = ctx.moves.permits.clone().acquire_owned().await;
        let (here, wanted, to) = (ctx.clone(), partition.clone(), moving.clone());
        let copied = left.take();
        let tried = tokio::task::spawn_blocking(move || here.moves.run(&here, &wanted, &to, copied));
        let waits = match tried.await {
            Ok(Tried::Waits(waits)) => waits,
            Ok(Tried::Ended) => return,
            Err(error) => return tracing::error!("a move between log directories failed: {error}"),
        };
        drop(permit);
        let until = Instant::now() + pause;
        while is_to_wait(&ctx, &partition, &moving, until) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        if ctx.moves.is_stopping() {
            return;
        }
        if let Some(stand_in) = waits {
            let moving = moving.clone();
            // A failure to remove it is told, and the next try replaces it.
            _ = tokio::task::spawn_blocking(move || moving.to.abandon_future(&stand_in)).await;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether nothing has changed yet for a move that found no room.
fn is_to_wait(ctx: &Context, wanted: &Partition, moving: &Move, until: Instant) -> bool {
    let is_over = ctx.moves.is_stopping() || moving.cancelled.load(Ordering::Acquire);
    let Some(partition) = current(ctx, wanted).filter(|_| !is_over) else { return false };
    let is_there = Arc::ptr_eq(&partition.log_dir, &moving.to);
    !is_there && (Instant::now() < until || !has_room(moving.to.path(), partition.log.size_bytes()))
}

/// An empty copy: the next start goes on with it, and DescribeLogDirs tells of it.
fn stand_in(ctx: &Context, wanted: &Partition, moving: &Move) -> Option<Arc<Log>> {
    let source = &current(ctx, wanted)?.log;
    let created = first_offset(source).and_then(|first| Ok(moving.to.create_future(copy_of(source), first)?));
    created.inspect_err(|error| tracing::debug!(partition = %wanted.name, %error, "no stand-in for a move")).ok()
}

/// The partition as it is now, wherever.
fn current(ctx: &Context, wanted: &Partition) -> Option<Arc<Partition>> {
    ctx.topics.view().by_id(&wanted.topic_id)?.partition(wanted.name.partition).cloned()
}

/// Whether the partition was moved; `false`: it was cancelled, or the partition is gone.
fn carry_out(ctx: &Context, wanted: &Partition, moving: &Move, mut left: Option<Arc<Log>>) -> Result<bool, MoveError> {
    loop {
        let partition = current(ctx, wanted);
        let Some(partition) = partition.as_ref().filter(|_| !moving.cancelled.load(Ordering::Acquire)) else {
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
                // What is copied would only take the space from those who write there.
                let bytes = partition.log.size_bytes();
                if !has_room(moving.to.path(), bytes) {
                    return Err(MoveError::NoRoom { bytes });
                }
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
