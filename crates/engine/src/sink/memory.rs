//! The memory sink: a table in this process that holds what a query has put out.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;

use super::{OutputMode, Sink};
use crate::error::EngineError;

/// The rows of a memory sink, to be registered as a table: a scan sees the batches finished by then.
#[derive(Debug, Clone)]
pub struct MemoryRows {
    schema: SchemaRef,
    batches: Arc<Mutex<BTreeMap<i64, Vec<RecordBatch>>>>,
}

impl MemoryRows {
    pub fn new(schema: SchemaRef) -> Self {
        Self { schema, batches: Arc::default() }
    }

    /// All rows, in the order of the batches that brought them.
    pub fn snapshot(&self) -> Vec<RecordBatch> {
        self.batches.lock().values().flatten().cloned().collect()
    }

    /// Forgets all rows.
    pub fn clear(&self) {
        self.batches.lock().clear();
    }

    /// The rows that batch `batch_id` brought; `None` when it has not (or when complete mode has replaced it).
    pub fn batch(&self, batch_id: i64) -> Option<Vec<RecordBatch>> {
        self.batches.lock().get(&batch_id).cloned()
    }
}

#[async_trait]
impl TableProvider for MemoryRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let table = MemTable::try_new(Arc::clone(&self.schema), vec![self.snapshot()])?;
        table.scan(state, projection, filters, limit).await
    }
}

/// Writes to a [`MemoryRows`]: appends, or in complete mode replaces.
#[derive(Debug)]
pub struct MemorySink {
    rows: MemoryRows,
}

impl MemorySink {
    pub fn new(rows: MemoryRows) -> Self {
        Self { rows }
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn description(&self) -> String {
        "MemorySink".to_owned()
    }

    fn check_mode(&self, _: OutputMode) -> Result<(), EngineError> {
        Ok(())
    }

    async fn add_batch(
        &mut self,
        batch_id: i64,
        mode: OutputMode,
        _: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<u64, EngineError> {
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let batches: Vec<RecordBatch> = batches
            .into_iter()
            .map(|batch| {
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                RecordBatch::try_new_with_options(Arc::clone(&self.rows.schema), batch.columns().to_vec(), &options)
            })
            .collect::<Result<_, _>>()?;
        let mut held = self.rows.batches.lock();
        if mode == OutputMode::Complete {
            held.clear();
        }
        held.insert(batch_id, batches);
        Ok(rows)
    }
}
