//! Prints every micro-batch as a table, as Spark's console sink does.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::array::timezone::Tz;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use super::{OutputMode, Sink};
use crate::error::EngineError;
use crate::format::show::{ShowOptions, show_string};
use crate::options::Options;

/// Writes `Batch: N` and the rows to a terminal or any other writer.
pub struct ConsoleSink<W> {
    out: W,
    options: ShowOptions,
}

impl<W: Write + Send> ConsoleSink<W> {
    /// Options: `numRows` (20) and `truncate` (true: cells of 20 characters).
    pub fn new(out: W, options: &Options, zone: Tz) -> Result<Self, EngineError> {
        options.check_known("console", &["numRows", "truncate"], &[])?;
        let num_rows = options.parse("numRows", "an integer")?.unwrap_or(20);
        let truncate = if options.bool("truncate")?.unwrap_or(true) { 20 } else { 0 };
        Ok(ConsoleSink { out, options: ShowOptions { num_rows, truncate, zone } })
    }

    /// The writer, for tests and for callers that show the text themselves.
    pub fn into_inner(self) -> W {
        self.out
    }
}

#[async_trait]
impl<W: Write + Send> Sink for ConsoleSink<W> {
    fn description(&self) -> String {
        "org.apache.spark.sql.execution.streaming.ConsoleTable$".to_owned()
    }

    fn check_mode(&self, _mode: OutputMode) -> Result<(), EngineError> {
        Ok(())
    }

    async fn add_batch(
        &mut self,
        batch_id: i64,
        _mode: OutputMode,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<u64, EngineError> {
        let rule = "-------------------------------------------";
        let table = show_string(&schema, &batches, &self.options);
        write!(self.out, "{rule}\nBatch: {batch_id}\n{rule}\n{table}\n")
            .and_then(|()| self.out.flush())
            .map_err(|source| EngineError::Io { action: "print a batch to", path: "the console".to_owned(), source })?;
        Ok(batches.iter().map(|b| b.num_rows() as u64).sum())
    }
}
