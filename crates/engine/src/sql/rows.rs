//! The rows of a statement, as they come.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

use super::duplicate;
use super::error::SqlError;
use super::resolve;

/// Rows that are computed while they are taken. Dropping it ends the computation.
pub struct RowStream {
    stream: SendableRecordBatchStream,
}

impl RowStream {
    /// The rows of a plan, with the names of columns that are shown.
    pub(super) fn new(stream: SendableRecordBatchStream) -> Self {
        let Some(schema) = duplicate::shown_schema(&stream.schema()) else { return RowStream { stream } };
        let shown = Arc::clone(&schema);
        let rows = stream.map(move |batch| {
            let columns = batch?.columns().to_vec();
            Ok(RecordBatch::try_new(Arc::clone(&shown), columns)?)
        });
        RowStream { stream: Box::pin(RecordBatchStreamAdapter::new(schema, rows)) }
    }

    /// Rows that are there.
    pub(super) fn ready(batch: RecordBatch) -> Self {
        let schema = batch.schema();
        let rows = futures::stream::iter([Ok(batch)]);
        RowStream { stream: Box::pin(RecordBatchStreamAdapter::new(schema, rows)) }
    }

    pub fn schema(&self) -> SchemaRef {
        self.stream.schema()
    }

    /// The next rows; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, SqlError> {
        self.stream.next().await.transpose().map_err(|e| resolve::runtime_error(&e))
    }

    /// All rows, however many there are.
    pub async fn collect(self) -> Result<(SchemaRef, Vec<RecordBatch>), SqlError> {
        self.collect_within(usize::MAX).await
    }

    /// All rows, if they take no more than `most_bytes` of memory.
    pub async fn collect_within(mut self, most_bytes: usize) -> Result<(SchemaRef, Vec<RecordBatch>), SqlError> {
        let (mut batches, mut left, mut rows) = (Vec::new(), most_bytes, 0usize);
        while let Some(batch) = self.next().await? {
            rows += batch.num_rows();
            left = left.checked_sub(size_bytes(&batch)).ok_or_else(|| {
                SqlError::new(
                    "RESULT_TOO_LARGE",
                    format!(
                        "The result has more than {rows} rows, which take more than the {} that are kept for a table: \
                         its columns are as wide as its widest cells, so that all rows must be known before the first is shown.",
                        shown_bytes(most_bytes)
                    ),
                )
                .hint("Add LIMIT, or print rows as they come: --output csv or --output json.")
            })?;
            batches.push(batch);
        }
        Ok((self.schema(), batches))
    }
}

/// What the rows of a batch take, of buffers that they may share with others.
pub(super) fn size_bytes(batch: &RecordBatch) -> usize {
    let column = |column: &Arc<dyn Array>| {
        column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
    };
    batch.columns().iter().map(column).sum()
}

fn shown_bytes(bytes: usize) -> String {
    match bytes >> 20 {
        0 => format!("{bytes} bytes"),
        mebibytes => format!("{mebibytes} MiB"),
    }
}
