//! The leaf that a cached physical plan reads: whatever the current micro-batch put into its slot.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::TableType;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use parking_lot::Mutex;

use super::leaf::{LeafExec, Rows, conform};

/// Where the query loop leaves a micro-batch's rows for the plan that reads them, by partition of the plan.
#[derive(Debug)]
pub struct BatchSlot {
    partitions: Mutex<Vec<Vec<RecordBatch>>>,
    count: usize,
    /// The columns that planned scans read, of the table's schema.
    used: Mutex<BTreeSet<usize>>,
    /// The columns that the batches in the slot have, when the source was narrowed.
    narrowed: OnceLock<Vec<usize>>,
}

impl BatchSlot {
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            partitions: Mutex::new(vec![Vec::new(); count]),
            count,
            used: Mutex::default(),
            narrowed: OnceLock::new(),
        })
    }

    /// The columns of the table's schema that the plans made so far read, ascending.
    pub fn used_columns(&self) -> Vec<usize> {
        self.used.lock().iter().copied().collect()
    }

    /// From now on the slot is filled with these columns of the table's schema only.
    pub fn narrow(&self, columns: Vec<usize>) {
        // Sources are narrowed once, before their first read.
        let _ = self.narrowed.set(columns);
    }

    /// Where the table's columns are in the batches of the slot.
    fn locate(&self, columns: &[usize]) -> Result<Vec<usize>> {
        let Some(narrowed) = self.narrowed.get() else { return Ok(columns.to_vec()) };
        let place = |column| {
            narrowed.binary_search(column).map_err(|_| {
                DataFusionError::Internal(format!("column {column} of a stream is read but was not asked for"))
            })
        };
        columns.iter().map(place).collect()
    }

    /// Fills the slot for the next execution. The rows keep their order; each partition gets a contiguous share of
    /// about the same number of rows (the first one everything when there are fewer than `min_rows` for each).
    pub fn fill(&self, batches: impl IntoIterator<Item = RecordBatch>, min_rows: usize) {
        let batches: Vec<RecordBatch> = batches.into_iter().filter(|batch| batch.num_rows() > 0).collect();
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let share = rows.div_ceil(self.count.max(1)).max(min_rows).max(1);
        let mut partitions: Vec<Vec<RecordBatch>> = vec![Vec::new(); self.count];
        let mut targets = partitions.iter_mut();
        let mut target = targets.next();
        let mut room = share;
        for mut batch in batches {
            while batch.num_rows() > 0 {
                if room == 0 {
                    target = targets.next();
                    room = share;
                }
                let Some(partition) = target.as_mut() else { break };
                let take = room.min(batch.num_rows());
                partition.push(batch.slice(0, take));
                batch = batch.slice(take, batch.num_rows() - take);
                room -= take;
            }
        }
        *self.partitions.lock() = partitions;
    }

    fn take(&self, partition: usize) -> Vec<RecordBatch> {
        self.partitions.lock().get_mut(partition).map(std::mem::take).unwrap_or_default()
    }
}

/// The table that stands for a streaming source inside a fragment's logical plan.
#[derive(Debug)]
pub struct BatchTable {
    name: String,
    schema: SchemaRef,
    slot: Arc<BatchSlot>,
}

impl BatchTable {
    pub fn new(name: impl Into<String>, schema: SchemaRef, slot: Arc<BatchSlot>) -> Self {
        Self { name: name.into(), schema, slot }
    }
}

#[async_trait]
impl TableProvider for BatchTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        read_slot(&self.name, &self.schema, Arc::clone(&self.slot), projection.cloned())
    }
}

/// A leaf that reads a slot whose table has this schema.
///
/// # Errors
/// The projection names columns that are not there.
pub fn read_slot(
    name: &str,
    schema: &SchemaRef,
    slot: Arc<BatchSlot>,
    projection: Option<Vec<usize>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = match &projection {
        Some(columns) => {
            slot.used.lock().extend(columns);
            Arc::new(schema.project(columns)?)
        }
        None => {
            slot.used.lock().extend(0..schema.fields().len());
            Arc::clone(schema)
        }
    };
    let partitions = slot.count;
    Ok(Arc::new(LeafExec::new(SlotRows { name: name.to_owned(), slot, projection }, schema, partitions)))
}

/// Yields what the slot holds, projected.
#[derive(Debug)]
struct SlotRows {
    name: String,
    slot: Arc<BatchSlot>,
    projection: Option<Vec<usize>>,
}

impl Rows for SlotRows {
    const NAME: &'static str = "BatchSourceExec";

    fn describe(&self, _: &SchemaRef) -> String {
        self.name.clone()
    }

    fn rows(&self, partition: usize, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        let columns = self.projection.as_ref().map(|columns| self.slot.locate(columns)).transpose()?;
        let output = Arc::clone(&schema);
        let batches = self.slot.take(partition).into_iter().map(move |b| conform(b, columns.as_deref(), &output));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches))))
    }
}
