//! Makes state durable behind the back of the query loop.
//!
//! `offsets/N` is durable before batch N runs, so a state version that power loss takes can be made again by running the
//! batches since the last durable one: the ranges are known, and the sink knows the ids. That is why state files may wait
//! for their fsync, for at most [`SYNC_INTERVAL`]; sources are told that rows are done with only after it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::execution::SourceRun;
use crate::checkpoint::Checkpoint;
use crate::error::EngineError;
use crate::operator::Aggregation;
use crate::pool::{CpuPool, join_error};
use crate::source::SourceOffset;
use crate::state::io_error;

/// The longest that state waits for its fsync.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

/// The state files that are not durable yet.
pub(super) struct StateSync {
    pool: &'static CpuPool,
    checkpoint: Arc<Checkpoint>,
    operators: Vec<Arc<Aggregation>>,
    /// `spark.sql.streaming.minBatchesToRetain`.
    retain: i64,
    pending: Vec<PathBuf>,
    /// The last batch whose state is in `pending`, with the sources' positions after it.
    pending_batch: Option<(i64, Vec<SourceOffset>)>,
    since: Option<Instant>,
    running: Option<Round>,
    cleaned: i64,
}

/// A round of fsyncs under way, and the sources' positions that it makes good.
type Round = (JoinHandle<Result<(), EngineError>>, Vec<SourceOffset>);

impl StateSync {
    pub fn new(
        pool: &'static CpuPool,
        checkpoint: Arc<Checkpoint>,
        operators: Vec<Arc<Aggregation>>,
        retain: i64,
    ) -> Self {
        Self {
            pool,
            checkpoint,
            operators,
            retain: retain.max(1),
            pending: Vec::new(),
            pending_batch: None,
            since: None,
            running: None,
            cleaned: 0,
        }
    }

    /// Notes what batch `id` wrote, and starts a round when one is due and none is running.
    pub async fn batch_done(
        &mut self,
        id: i64,
        written: Vec<PathBuf>,
        sources: &mut [SourceRun],
    ) -> Result<(), EngineError> {
        self.pending.extend(written);
        self.pending_batch = Some((id, sources.iter().map(|source| source.position.clone()).collect()));
        let since = *self.since.get_or_insert_with(Instant::now);
        self.collect(sources, false).await?;
        if since.elapsed() >= SYNC_INTERVAL && self.running.is_none() {
            self.start();
        }
        Ok(())
    }

    /// When [`StateSync::flush`] should be called, should no further batch come.
    pub fn deadline(&self) -> Option<Instant> {
        match (&self.running, self.since) {
            (Some(_), _) => Some(Instant::now()),
            (None, since) => since.map(|since| since + SYNC_INTERVAL),
        }
    }

    /// Makes everything durable that was written so far.
    pub async fn flush(&mut self, sources: &mut [SourceRun]) -> Result<(), EngineError> {
        self.collect(sources, true).await?;
        if self.pending_batch.is_some() {
            self.start();
            self.collect(sources, true).await?;
        }
        Ok(())
    }

    /// The last flush of a query.
    pub async fn finish(&mut self, sources: &mut [SourceRun]) -> Result<(), EngineError> {
        self.flush(sources).await
    }

    /// Takes the result of the running round, if it is there (or waits for it).
    async fn collect(&mut self, sources: &mut [SourceRun], wait: bool) -> Result<(), EngineError> {
        let Some((task, _)) = &self.running else { return Ok(()) };
        if !wait && !task.is_finished() {
            return Ok(());
        }
        let Some((task, positions)) = self.running.take() else { return Ok(()) };
        task.await.map_err(join_error)??;
        for (source, position) in sources.iter_mut().zip(&positions) {
            source.source.commit(position).await?;
        }
        Ok(())
    }

    fn start(&mut self) {
        let Some((batch, positions)) = self.pending_batch.take() else { return };
        let files = std::mem::take(&mut self.pending);
        self.since = None;
        let oldest = batch - self.retain + 1;
        // Listing directories is not free: only after some batches.
        let clean = oldest > 0 && oldest - self.cleaned >= (self.retain / 4).max(1);
        if clean {
            self.cleaned = oldest;
        }
        let (checkpoint, operators) = (Arc::clone(&self.checkpoint), self.operators.clone());
        let task = self.pool.spawn_blocking(move || {
            sync_files(&files)?;
            if clean {
                // Batch `oldest` can still be run again: its start is the end of the batch before it.
                operators.iter().try_for_each(|operator| operator.clean(oldest))?;
                checkpoint.remove_before(oldest - 1)?;
            }
            Ok(())
        });
        self.running = Some((task, positions));
    }
}

/// Fsyncs files and the directories that name them.
fn sync_files(files: &[PathBuf]) -> Result<(), EngineError> {
    let mut directories: Vec<PathBuf> = Vec::new();
    for path in files {
        match File::open(path) {
            Ok(file) => file.sync_data().map_err(|source| io_error("make durable", path, source))?,
            Err(source) => return Err(io_error("open", path, source)),
        }
        directories.extend(path.parent().map(PathBuf::from));
    }
    directories.sort_unstable();
    directories.dedup();
    for path in &directories {
        File::open(path)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| io_error("make durable", path, source))?;
    }
    Ok(())
}
