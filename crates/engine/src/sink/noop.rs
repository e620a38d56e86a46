//! The noop sink: takes everything, keeps nothing. For measurements.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use super::{OutputMode, Sink};
use crate::error::EngineError;

#[derive(Debug, Default)]
pub struct NoopSink;

#[async_trait]
impl Sink for NoopSink {
    fn description(&self) -> String {
        "NoopTable".to_owned()
    }

    fn check_mode(&self, _: OutputMode) -> Result<(), EngineError> {
        Ok(())
    }

    async fn add_batch(
        &mut self,
        _: i64,
        _: OutputMode,
        _: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<u64, EngineError> {
        Ok(batches.iter().map(|batch| batch.num_rows() as u64).sum())
    }
}
