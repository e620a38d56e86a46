//! The nodes by which a logical plan says that it is a stream: [`StreamRelation`] at the leaves and
//! [`EventTimeWatermark`] above them. They are the edge between whoever builds plans (SQL, Spark Connect) and the runtime.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Column, DFSchema, DFSchemaRef, DataFusionError, Result, plan_err};
use datafusion::datasource::TableType;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::physical_plan::ExecutionPlan;

use super::watermark::EventTimeProbe;
use crate::error::EngineError;
use crate::source::Source;

/// Field metadata that marks an event-time column; the value is the watermark's delay in milliseconds, as in Spark
/// (`EventTimeWatermark.delayKey`).
pub const WATERMARK_DELAY_KEY: &str = "spark.watermarkDelayMs";

/// Field metadata that marks the `struct<start, end>` column made by `window(...)` (Spark's `TimeWindow.marker`).
pub const TIME_WINDOW_KEY: &str = "spark.timeWindow";

/// Opens a source for one query. A table is a description; each query that reads it opens a source of its own.
#[async_trait]
pub trait SourceFactory: Send + Sync + fmt::Debug {
    /// Opens the source. `checkpoint_dir` is the source's own directory inside the query's checkpoint
    /// (`<checkpoint>/sources/<index>`), where it may keep a log of its own; `None` when it has nowhere to keep one.
    async fn open(&self, checkpoint_dir: Option<&Path>) -> Result<Box<dyn Source>, EngineError>;

    /// The schema of the rows that the opened source yields.
    fn schema(&self) -> SchemaRef;

    /// What error messages call this source, e.g. `KafkaV2[Subscribe[t]]`.
    fn description(&self) -> String;
}

/// A table that is a stream. It stands in plans as the leaf of a streaming query and is never scanned by itself: the
/// runtime replaces it by each micro-batch's rows.
#[derive(Debug)]
pub struct StreamRelation {
    name: String,
    factory: Arc<dyn SourceFactory>,
}

impl StreamRelation {
    pub fn new(name: impl Into<String>, factory: Arc<dyn SourceFactory>) -> Self {
        Self { name: name.into(), factory }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn factory(&self) -> &Arc<dyn SourceFactory> {
        &self.factory
    }
}

#[async_trait]
impl TableProvider for StreamRelation {
    fn schema(&self) -> SchemaRef {
        self.factory.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        _projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan_err!("queries with streaming sources must be started as a streaming query; {} is a stream", self.name)
    }
}

/// `WATERMARK column DELAY OF INTERVAL ...`: marks `column` as event time and has the runtime watch its maximum.
#[derive(Debug, Clone)]
pub struct EventTimeWatermark {
    pub input: LogicalPlan,
    pub column: Column,
    /// How far the watermark stays behind the maximum event time, in milliseconds.
    pub delay_ms: i64,
    schema: DFSchemaRef,
    probe: Option<Arc<EventTimeProbe>>,
}

impl EventTimeWatermark {
    /// Fails when `column` is not in the input or is neither a timestamp nor a `window(...)` column.
    pub fn try_new(input: LogicalPlan, column: Column, delay_ms: i64) -> Result<Self> {
        let index = input.schema().index_of_column(&column)?;
        let input_schema = Arc::clone(input.schema());
        let mut fields: Vec<(Option<datafusion::common::TableReference>, FieldRef)> =
            input_schema.iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
        let Some((_, field)) = fields.get_mut(index) else {
            return plan_err!("failed to find the event time column {column}");
        };
        if !is_event_time_type(field) {
            return plan_err!(
                "[EVENT_TIME_IS_NOT_ON_TIMESTAMP_TYPE] The event time `{}` has the invalid type {}, but expected \"TIMESTAMP\".",
                field.name(),
                field.data_type()
            );
        }
        *field = Arc::new(with_metadata(field, WATERMARK_DELAY_KEY, &delay_ms.to_string()));
        let schema = DFSchema::new_with_metadata(fields, input_schema.metadata().clone())?
            .with_functional_dependencies(input_schema.functional_dependencies().clone())?;
        Ok(Self { input, column, delay_ms, schema: Arc::new(schema), probe: None })
    }

    /// The position of the event-time column in the input (and the output) schema.
    pub fn column_index(&self) -> Result<usize> {
        self.input.schema().index_of_column(&self.column)
    }

    /// Gives a running query's instance of the node the place where it leaves the event times it sees.
    pub(crate) fn with_probe(mut self, probe: Arc<EventTimeProbe>) -> Self {
        self.probe = Some(probe);
        self
    }

    pub(crate) fn probe(&self) -> Option<&Arc<EventTimeProbe>> {
        self.probe.as_ref()
    }

    /// This node as a plan.
    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(datafusion::logical_expr::Extension { node: Arc::new(self) })
    }
}

/// Whether a field may carry a watermark: a timestamp, or a `window(...)` struct.
fn is_event_time_type(field: &Field) -> bool {
    match field.data_type() {
        DataType::Timestamp(_, _) => true,
        DataType::Struct(fields) => {
            matches!(fields.find("end"), Some((_, end)) if matches!(end.data_type(), DataType::Timestamp(_, _)))
        }
        _ => false,
    }
}

/// The watermark delay, in milliseconds, that a field's metadata carries.
pub fn watermark_delay_ms(field: &Field) -> Option<i64> {
    field.metadata().get(WATERMARK_DELAY_KEY)?.parse().ok()
}

/// Whether a field is the struct made by `window(...)`.
pub fn is_time_window(field: &Field) -> bool {
    field.metadata().get(TIME_WINDOW_KEY).is_some_and(|value| value == "true")
}

/// A copy of `field` with one more metadata entry.
pub fn with_metadata(field: &Field, key: &str, value: &str) -> Field {
    let mut metadata: BTreeMap<String, String> =
        field.metadata().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    metadata.insert(key.to_owned(), value.to_owned());
    field.clone().with_metadata(metadata.into_iter().collect())
}

impl PartialEq for EventTimeWatermark {
    fn eq(&self, other: &Self) -> bool {
        self.input == other.input && self.column == other.column && self.delay_ms == other.delay_ms
    }
}

impl Eq for EventTimeWatermark {}

impl Hash for EventTimeWatermark {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.input.hash(state);
        self.column.hash(state);
        self.delay_ms.hash(state);
    }
}

impl PartialOrd for EventTimeWatermark {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match self.input.partial_cmp(&other.input)? {
            Ordering::Equal => Some(self.column.cmp(&other.column).then(self.delay_ms.cmp(&other.delay_ms))),
            unequal => Some(unequal),
        }
    }
}

impl UserDefinedLogicalNodeCore for EventTimeWatermark {
    fn name(&self) -> &str {
        "EventTimeWatermark"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![Expr::Column(self.column.clone())]
    }

    /// Filters on other columns may be pushed below, as in Spark; one on the event time would change its maximum.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        HashSet::from([self.column.flat_name(), self.column.name.clone()])
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "EventTimeWatermark: {}, delay {} ms", self.column, self.delay_ms)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let column = match exprs.into_iter().next() {
            Some(Expr::Column(column)) => column,
            _ => self.column.clone(),
        };
        let input =
            inputs.pop().ok_or_else(|| DataFusionError::Plan("EventTimeWatermark needs an input".to_owned()))?;
        let mut node = Self::try_new(input, column, self.delay_ms)?;
        node.probe.clone_from(&self.probe);
        Ok(node)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let mut columns = output_columns.to_vec();
        columns.push(self.column_index().ok()?);
        columns.sort_unstable();
        columns.dedup();
        Some(vec![columns])
    }
}
