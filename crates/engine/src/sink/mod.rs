//! Where results go. A sink is idempotent by batch id, or transactional: a replayed batch leaves the same content.

pub mod console;
pub mod file;
pub mod kafka;
pub mod memory;
pub mod noop;

use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use crate::error::EngineError;

/// Spark's output modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputMode {
    Append,
    Update,
    Complete,
}

/// What a sink is told before the first batch of a run.
#[derive(Debug, Clone, Copy)]
pub struct SinkStart<'a> {
    /// A directory inside the query's checkpoint that is this sink's own, where it may keep a log. It need not exist.
    pub state_dir: &'a Path,
    /// The id of the query, the same for all runs on one checkpoint.
    pub query_id: &'a str,
    /// The newest batch that the checkpoint has as done: the sink took it.
    pub committed: Option<i64>,
    /// The newest batch that the checkpoint knows of: no sink was given a later one.
    pub planned: Option<i64>,
}

/// Where the rows of each micro-batch go.
#[async_trait]
pub trait Sink: Send {
    /// What `StreamingQueryProgress.sink.description` shows.
    fn description(&self) -> String;

    /// Refuses an output mode that this sink cannot honour, before the query starts.
    fn check_mode(&self, mode: OutputMode) -> Result<(), EngineError>;

    /// Called once before the first batch. Not called when there is no checkpoint.
    async fn start(&mut self, _start: SinkStart<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    /// Takes the whole result of batch `batch_id`. When it returns, the rows are there for good; the same id again
    /// (after a crash, and then perhaps several ids that were taken before it) must not double them. `batches` may be
    /// empty. Returns the number of rows written.
    async fn add_batch(
        &mut self,
        batch_id: i64,
        mode: OutputMode,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<u64, EngineError>;

    /// Called once when the query ends in order, after its last batch is committed for good.
    async fn stop(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}
