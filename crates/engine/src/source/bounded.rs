//! A source read once, as a table: `SELECT ... FROM t` without `STREAM`.
//!
//! The rows between the source's start and its end at the time of the execution are read in pieces while the plan above
//! works on those before: neither planning nor a plan that stops early (`LIMIT`) reads them all, and memory holds a few.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use futures::TryStreamExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

use super::ReadLimit;
use crate::error::EngineError;
use crate::plan::SourceFactory;
use crate::plan::leaf::{LeafExec, Rows, conform};

/// Bytes of the first piece: enough for a `LIMIT`. The next ones grow up to [`PIECE_BYTES`].
const FIRST_PIECE_BYTES: usize = 1024 * 1024;
const PIECE_BYTES: usize = 32 * 1024 * 1024;
const GROWTH: usize = 4;
/// Batches that are read ahead of the plan.
const BATCHES_AHEAD: usize = 4;

/// In a session's configuration: tables are read when a plan is made, for plans that are executed again and again.
#[derive(Debug)]
pub struct ReadWhenPlanned;

/// A table over everything between a source's initial and latest offset.
pub struct BoundedTable {
    factory: Arc<dyn SourceFactory>,
}

impl BoundedTable {
    pub fn new(factory: Arc<dyn SourceFactory>) -> Self {
        BoundedTable { factory }
    }
}

impl fmt::Debug for BoundedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoundedTable({})", self.factory.description())
    }
}

fn external(error: EngineError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

#[async_trait]
impl TableProvider for BoundedTable {
    fn schema(&self) -> SchemaRef {
        self.factory.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.factory.schema().project(columns)?),
            None => self.factory.schema(),
        };
        let runtime = Handle::try_current().ok();
        let rows = BoundedRows { factory: Arc::clone(&self.factory), projection: projection.cloned(), runtime };
        let plan = LeafExec::new(rows, Arc::clone(&schema), 1);
        if state.config().get_extension::<ReadWhenPlanned>().is_none() {
            return Ok(Arc::new(plan));
        }
        let batches: Vec<RecordBatch> = plan.execute(0, state.task_ctx())?.try_collect().await?;
        Ok(MemorySourceConfig::try_new_exec(&[batches], schema, None)?)
    }
}

/// Reads a source from its start to what is its end then. One partition, so that rows come in the source's order; plans
/// that gain by it share its batches among all cores above it.
struct BoundedRows {
    factory: Arc<dyn SourceFactory>,
    projection: Option<Vec<usize>>,
    /// Where the reading runs: that of the planner has the network.
    runtime: Option<Handle>,
}

impl fmt::Debug for BoundedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoundedRows({})", self.factory.description())
    }
}

impl Rows for BoundedRows {
    const NAME: &'static str = "BoundedExec";

    fn describe(&self, schema: &SchemaRef) -> String {
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        format!("{}, columns=[{}]", self.factory.description(), columns.join(", "))
    }

    fn rows(&self, _partition: usize, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        let mut stream = RecordBatchReceiverStreamBuilder::new(Arc::clone(&schema), BATCHES_AHEAD);
        let pieces = read_pieces(Arc::clone(&self.factory), self.projection.clone(), schema, stream.tx());
        match &self.runtime {
            Some(runtime) => stream.spawn_on(pieces, runtime),
            None => stream.spawn(pieces),
        }
        Ok(stream.build())
    }
}

/// Sends all rows; ends early when nobody takes them any more.
async fn read_pieces(
    factory: Arc<dyn SourceFactory>,
    projection: Option<Vec<usize>>,
    schema: SchemaRef,
    rows: Sender<Result<RecordBatch>>,
) -> Result<()> {
    let mut source = factory.open(None).await.map_err(external)?;
    let left = projection.filter(|columns| !source.project(columns));
    let mut at = source.initial_offset().await.map_err(external)?;
    source.prepare_available_now().await.map_err(external)?;
    let mut piece_bytes = FIRST_PIECE_BYTES;
    loop {
        let end = source.next_offset(&at, ReadLimit::Bytes(piece_bytes)).await.map_err(external)?.end;
        if end == at {
            return Ok(());
        }
        for batch in source.read(&at, &end).await.map_err(external)?.into_iter().flatten() {
            if batch.num_rows() == 0 {
                continue;
            }
            let batch = conform(batch, left.as_deref(), &schema)?;
            if rows.send(Ok(batch)).await.is_err() {
                return Ok(());
            }
        }
        at = end;
        piece_bytes = piece_bytes.saturating_mul(GROWTH).min(PIECE_BYTES);
    }
}
