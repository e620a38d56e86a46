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
use caudal_protocol::batch::BatchHeader;
use caudal_protocol::{TopicPartition, Uuid};
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
    /// There is no space.
    Waits,
    /// It failed, and had been asked for again meanwhile.
    Again,
}

/// Keeps a log from being compacted while it is copied.
#[derive(Debug)]
struct Uncleaned(Arc<Log>);

impl Uncleaned {
    fn new(log: &Arc<Log>) -> Uncleaned {
        log.pause_cleaning();
        Uncleaned(log.clone())
    }
}

impl Drop for Uncleaned {
    fn drop(&mut self) {
        self.0.resume_cleaning();
    }
}

/// A log that is to take the place of another. While it is empty it stands for a move that has not begun to copy.
#[derive(Debug)]
struct Replacement {
    log: Arc<Log>,
    /// Since something was copied.
    source: Option<Uncleaned>,
}

/// A move under way.
#[derive(Debug)]
struct Move {
    topic_id: Uuid,
    to: Arc<LogDir>,
    given_up: AtomicBool,
    /// Since the last try began. Whoever asked was answered that the move is under way, and is owed a try.
    asked_again: AtomicBool,
    /// Held while the exchange is made, so that a move is given up before it or finds the partition moved.
    replacement: Mutex<Option<Replacement>>,
}

impl Move {
    fn new(topic_id: Uuid, to: &Arc<LogDir>, replacement: Option<Replacement>) -> Arc<Move> {
        let replacement = Mutex::new(replacement);
        let [given_up, asked_again] = [false; 2].map(AtomicBool::new);
        Arc::new(Move { topic_id, to: to.clone(), given_up, asked_again, replacement })
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Nothing of it is found by the next start, even after a crash.
    fn give_up(&self) {
        let mut replacement = self.replacement.lock();
        self.given_up.store(true, Ordering::Release);
        if let Some(Replacement { log, .. }) = replacement.take() {
            self.to.abandon_future(&log);
        }
    }

    /// Begins with an empty log, which tells whoever asks, and the next start, that the partition is on its way; what was copied
    /// before is removed.
    fn start_anew(&self, source: &Log) -> Result<(), MoveError> {
        let mut replacement = self.replacement.lock();
        if let Some(Replacement { log, .. }) = replacement.take() {
            self.to.abandon_future(&log);
            self.to.remove_doomed();
        }
        if !self.is_given_up() {
            let log = self.to.create_future(copy_of(source), first_offset(source)?)?;
            *replacement = Some(Replacement { log, source: None });
        }
        Ok(())
    }

    /// What is to be filled from a log, which is not compacted from here on; `None`: given up.
    fn begin_copy(&self, source: &Arc<Log>) -> Result<Option<Arc<Log>>, MoveError> {
        if self.replacement.lock().is_none() {
            self.start_anew(source)?;
        }
        let mut replacement = self.replacement.lock();
        Ok(replacement.as_mut().map(|replacement| {
            replacement.source.get_or_insert_with(|| Uncleaned::new(source));
            replacement.log.clone()
        }))
    }
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
            for log in dir.log_dir.futures() {
                let name = log.topic_partition().clone();
                // Without its log it waits for that one's directory.
                if let Ok(partition) = view.find(&name.topic, name.partition) {
                    // It has not been compacted since the two were compared.
                    let source = Some(Uncleaned(partition.log.clone()));
                    let moving = Move::new(partition.topic_id, &dir.log_dir, Some(Replacement { log, source }));
                    self.running.lock().insert(name, moving.clone());
                    tokio::spawn(keep_trying(ctx.clone(), partition.clone(), moving));
                }
            }
        }
    }

    /// Begins to move a partition, unless it is there or on its way there; a move to elsewhere is given up. A crash after this
    /// does not change what is asked for.
    ///
    /// # Errors
    /// The directory cannot be written, other than for want of space.
    pub fn begin(&self, ctx: &Arc<Context>, wanted: &Partition, to: &Arc<LogDir>) -> Result<(), MoveError> {
        let name = &wanted.name;
        let mut running = self.running.lock();
        if let Some(other) = running.get(name) {
            if Arc::ptr_eq(&other.to, to) && other.topic_id == wanted.topic_id {
                other.asked_again.store(true, Ordering::Release);
                return Ok(());
            }
            other.give_up();
            running.remove(name);
        }
        // The other may have come to its end just before.
        let Some(partition) = current(ctx, wanted) else { return Ok(()) };
        if Arc::ptr_eq(&partition.log_dir, to) {
            return Ok(());
        }
        let moving = Move::new(partition.topic_id, to, None);
        match moving.start_anew(&partition.log) {
            Err(error) if !error.is_for_space(to) => return Err(error),
            // It waits.
            Err(error) => tracing::debug!(partition = %name, %error, "nothing stands for a move"),
            Ok(()) => {}
        }
        running.insert(name.clone(), moving.clone());
        drop(running);
        tokio::spawn(keep_trying(ctx.clone(), partition, moving));
        Ok(())
    }

    fn run(&self, ctx: &Context, wanted: &Partition, moving: &Arc<Move>) -> Tried {
        moving.asked_again.store(false, Ordering::Release);
        let result = carry_out(ctx, wanted, moving);
        let source = current(ctx, wanted).map(|partition| partition.log.clone());
        if let (Err(error), Some(source)) = (&result, &source)
            && !self.is_over(moving)
            && error.is_for_space(&moving.to)
        {
            tracing::warn!(
                partition = %wanted.name, to = %moving.to.path().display(),
                "no space for the partition that is to be moved: {error}. It stays where it is, and moves when there is room for \
                 all of it; until then kafka-log-dirs shows it as on its way. To give the move up, ask for the directory that \
                 the partition is in"
            );
            if let Err(error) = moving.start_anew(source) {
                tracing::debug!(partition = %wanted.name, %error, "nothing stands for a move");
            }
            return Tried::Waits;
        }
        let was_given_up = moving.is_given_up();
        let (partition, to) = (&wanted.name, moving.to.path().display());
        let is_over = result.is_ok() || source.is_none();
        let is_kept = source.as_ref().is_some_and(|source| source.check_online().is_err());
        if !self.end(partition, moving, is_over, is_kept) {
            if let (Err(error), Some(source)) = (result, source) {
                tracing::warn!(%partition, %to, "failed to move: {error}. It was asked for again meanwhile, and begins anew");
                if let Err(error) = moving.start_anew(&source) {
                    tracing::debug!(%partition, %error, "nothing stands for a move");
                }
            }
            return Tried::Again;
        }
        if moving.is_given_up() {
            moving.to.remove_doomed();
        }
        match result {
            Ok(true) => tracing::info!(%partition, %to, "moved"),
            _ if was_given_up => tracing::info!(%partition, %to, "not moved: something else was asked for"),
            _ if self.is_stopping() => tracing::info!(%partition, %to, "the next start goes on with the move"),
            Ok(false) => tracing::info!(%partition, %to, "not moved: the partition is gone"),
            Err(error) => {
                tracing::error!(%partition, %to, "failed to move: {error}. The partition stays where it was");
            }
        }
        Tried::Ended
    }

    /// Takes a move off the list. Not where it was asked for again before it failed: then it is to be tried again, and the answer
    /// is `false`. Under one lock with [`Moves::begin`], so that who asks later finds it gone. `is_kept`: what was copied stays for
    /// the next start to go on with, as it does when the broker stops.
    fn end(&self, name: &TopicPartition, moving: &Arc<Move>, is_over: bool, is_kept: bool) -> bool {
        let mut running = self.running.lock();
        let is_listed = running.get(name).is_some_and(|current| Arc::ptr_eq(current, moving));
        if is_listed && !is_over && !is_kept && moving.asked_again.load(Ordering::Acquire) {
            return false;
        }
        if !is_kept && !self.is_stopping() {
            moving.give_up();
        }
        if is_listed {
            running.remove(name);
        }
        true
    }

    /// Ends all moves: the broker stops.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.running.lock().clear();
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

    fn is_over(&self, moving: &Move) -> bool {
        self.is_stopping() || moving.is_given_up()
    }
}

async fn keep_trying(ctx: Arc<Context>, partition: Arc<Partition>, moving: Arc<Move>) {
    let mut pause = FIRST_PAUSE;
    loop {
        // It is never closed.
        let permit = ctx.moves.permits.clone().acquire_owned().await;
        let (here, wanted, to) = (ctx.clone(), partition.clone(), moving.clone());
        match tokio::task::spawn_blocking(move || here.moves.run(&here, &wanted, &to)).await {
            Ok(Tried::Waits) => {}
            Ok(Tried::Again) => continue,
            Ok(Tried::Ended) => return,
            Err(error) => {
                ctx.moves.end(&partition.name, &moving, true, true);
                return tracing::error!("a move between log directories failed: {error}");
            }
        }
        drop(permit);
        let until = Instant::now() + pause;
        while is_to_wait(&ctx, &partition, &moving, until) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        if ctx.moves.is_stopping() {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether nothing has changed yet for a move that found no room.
fn is_to_wait(ctx: &Context, wanted: &Partition, moving: &Move, until: Instant) -> bool {
    let Some(partition) = current(ctx, wanted).filter(|_| !ctx.moves.is_over(moving)) else { return false };
    Instant::now() < until || !has_room(moving.to.path(), partition.log.size_bytes())
}

/// The partition as it is now, wherever.
fn current(ctx: &Context, wanted: &Partition) -> Option<Arc<Partition>> {
    ctx.topics.view().by_id(&wanted.topic_id)?.partition(wanted.name.partition).cloned()
}

/// Whether the partition was moved; `false`: the move is over, or the partition is gone.
fn carry_out(ctx: &Context, wanted: &Partition, moving: &Move) -> Result<bool, MoveError> {
    loop {
        let partition = current(ctx, wanted);
        let Some(partition) = partition.filter(|_| !ctx.moves.is_over(moving)) else { return Ok(false) };
        let Some(copied) = moving.begin_copy(&partition.log)? else { return Ok(false) };
        // What is copied would only take the space from those who write there.
        let bytes = partition.log.size_bytes().saturating_sub(copied.size_bytes());
        if !has_room(moving.to.path(), bytes) {
            return Err(MoveError::NoRoom { bytes });
        }
        if complete(ctx, &partition, moving, &copied)? {
            return Ok(true);
        }
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

/// Brings the copy up to the end of the log and puts it in its place. `false`: the move is over, or the log is not the partition's
/// any more.
fn complete(ctx: &Context, partition: &Arc<Partition>, moving: &Move, future: &Arc<Log>) -> Result<bool, MoveError> {
    let is_over = || ctx.moves.is_over(moving);
    let source = &partition.log;
    // What an earlier run copied may not have been compacted.
    let is_new = future.log_start_offset() == future.log_end_offset();
    let cleaned = partition.log_dir.cleaned_offset(&partition.name).filter(|_| is_new);
    let copied = |bytes| ctx.moves.keep_to_rate(ctx, bytes, &is_over);
    // What comes in meanwhile is copied in the pause.
    while future.log_end_offset() < source.durable_end_offset() {
        copy(source, future, source.durable_end_offset(), &is_over, &copied)?;
        if is_over() {
            return Ok(false);
        }
    }
    future.flush()?;
    let mut replacement = moving.replacement.lock();
    if is_over() {
        return Ok(false);
    }
    let note = |image: &MetadataImage| ctx.replicas.whereabouts_in(partition, &moving.to, image).into_iter().collect();
    let moved = ctx.metadata.noted(note, |replicas| replicas.exchange(partition, &moving.to, future, cleaned));
    if matches!(moved, Ok(true)) {
        *replacement = None;
    }
    // What was noted is put right.
    ctx.replicas.log_dirs.note_moved();
    moved
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
