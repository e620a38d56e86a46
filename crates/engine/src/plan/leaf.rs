//! What all leaves of a plan have in common: no children, no expressions, one order of rows.

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

/// Where a leaf has its rows from.
pub trait Rows: fmt::Debug + Send + Sync + 'static {
    /// The operator's name.
    const NAME: &'static str;

    /// What follows the name in EXPLAIN.
    fn describe(&self, schema: &SchemaRef) -> String;

    /// The rows of one partition, each batch of this schema (see [`conform`]).
    ///
    /// # Errors
    /// The rows cannot be had.
    fn rows(&self, partition: usize, schema: SchemaRef) -> Result<SendableRecordBatchStream>;
}

/// A leaf of a physical plan. Its rows come in batches and end.
#[derive(Debug)]
pub struct LeafExec<R> {
    rows: R,
    properties: Arc<PlanProperties>,
}

impl<R: Rows> LeafExec<R> {
    pub fn new(rows: R, schema: SchemaRef, partitions: usize) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Self { rows, properties }
    }
}

/// A batch with these of its columns, under the plan's schema with the metadata that the plan relies on, whatever the
/// source's batches say.
///
/// # Errors
/// The columns are not those of the schema.
pub fn conform(batch: RecordBatch, columns: Option<&[usize]>, schema: &SchemaRef) -> Result<RecordBatch> {
    let batch = match columns {
        Some(columns) => batch.project(columns)?,
        None => batch,
    };
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options)?)
}

impl<R: Rows> DisplayAs for LeafExec<R> {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", R::NAME, self.rows.describe(&self.schema()))
    }
}

impl<R: Rows> ExecutionPlan for LeafExec<R> {
    fn name(&self) -> &str {
        R::NAME
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.rows.rows(partition, self.schema())
    }
}
