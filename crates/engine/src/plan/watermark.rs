//! Watching event time: the operator that [`super::EventTimeWatermark`] becomes, and the watermark that follows from it.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute;
use arrow::datatypes::{
    DataType, SchemaRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{ExecutionPlanProperties, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;
use parking_lot::Mutex;

/// The event times seen in one micro-batch, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EventTimeStats {
    pub count: u64,
    pub max_ms: i64,
    pub min_ms: i64,
    pub sum_ms: f64,
}

impl EventTimeStats {
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        self.count += other.count;
        self.max_ms = self.max_ms.max(other.max_ms);
        self.min_ms = self.min_ms.min(other.min_ms);
        self.sum_ms += other.sum_ms;
    }

    /// The mean event time; 0 without rows.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a mean for display")]
    pub fn avg_ms(&self) -> i64 {
        if self.count == 0 { 0 } else { (self.sum_ms / self.count as f64) as i64 }
    }
}

/// The meeting place of a watermark operator and the query loop.
#[derive(Debug, Default)]
pub struct EventTimeProbe {
    stats: Mutex<EventTimeStats>,
}

impl EventTimeProbe {
    /// What was seen since the last call.
    pub fn take(&self) -> EventTimeStats {
        std::mem::take(&mut self.stats.lock())
    }
}

/// How Spark combines the watermarks of several inputs (`spark.sql.streaming.multipleWatermarkPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WatermarkPolicy {
    #[default]
    Min,
    Max,
}

/// The watermark of a query: per watermarked column the maximum event time minus its delay, combined by the policy.
/// It never goes back.
#[derive(Debug)]
pub struct WatermarkTracker {
    policy: WatermarkPolicy,
    delays_ms: Vec<i64>,
    columns_ms: Vec<i64>,
    global_ms: i64,
}

impl WatermarkTracker {
    pub fn new(policy: WatermarkPolicy, delays_ms: Vec<i64>) -> Self {
        Self { policy, columns_ms: vec![0; delays_ms.len()], delays_ms, global_ms: 0 }
    }

    /// Continues from a watermark read from the checkpoint.
    pub fn restore(&mut self, watermark_ms: i64) {
        self.global_ms = watermark_ms;
    }

    pub fn current_ms(&self) -> i64 {
        self.global_ms
    }

    pub fn is_defined(&self) -> bool {
        !self.delays_ms.is_empty()
    }

    /// Takes in the statistics of one finished batch, one entry per watermarked column.
    pub fn advance(&mut self, stats: &[EventTimeStats]) {
        for ((seen, delay_ms), column) in stats.iter().zip(&self.delays_ms).zip(&mut self.columns_ms) {
            if seen.count > 0 {
                *column = (*column).max(seen.max_ms.saturating_sub(*delay_ms));
            }
        }
        let combined = match self.policy {
            WatermarkPolicy::Min => self.columns_ms.iter().min(),
            WatermarkPolicy::Max => self.columns_ms.iter().max(),
        };
        if let Some(&combined) = combined {
            self.global_ms = self.global_ms.max(combined);
        }
    }
}

/// Passes its input on and notes the event times in it.
#[derive(Debug)]
pub struct EventTimeWatermarkExec {
    input: Arc<dyn ExecutionPlan>,
    column: usize,
    probe: Arc<EventTimeProbe>,
    properties: Arc<PlanProperties>,
}

impl EventTimeWatermarkExec {
    pub fn new(input: Arc<dyn ExecutionPlan>, schema: SchemaRef, column: usize, probe: Arc<EventTimeProbe>) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        ));
        Self { input, column, probe, properties }
    }
}

impl DisplayAs for EventTimeWatermarkExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "EventTimeWatermarkExec: column {}", self.column)
    }
}

impl ExecutionPlan for EventTimeWatermarkExec {
    fn name(&self) -> &str {
        "EventTimeWatermarkExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children
            .pop()
            .ok_or_else(|| DataFusionError::Internal("EventTimeWatermarkExec needs an input".to_owned()))?;
        Ok(Arc::new(Self::new(input, self.schema(), self.column, Arc::clone(&self.probe))))
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children
            .pop()
            .ok_or_else(|| DataFusionError::Internal("EventTimeWatermarkExec needs an input".to_owned()))?;
        Ok(Arc::new(Self::new(input, self.schema(), self.column, Arc::clone(&self.probe))))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let output_schema = Arc::clone(&schema);
        let probe = Arc::clone(&self.probe);
        let column = self.column;
        let input = self.input.execute(partition, context)?;
        let output = input.map(move |batch| {
            let batch = batch?;
            let seen = event_time_stats(&batch, column)?;
            probe.stats.lock().merge(&seen);
            RecordBatch::try_new(Arc::clone(&output_schema), batch.columns().to_vec()).map_err(DataFusionError::from)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, output)))
    }
}

fn event_time_stats(batch: &RecordBatch, column: usize) -> Result<EventTimeStats> {
    let Some(column) = batch.columns().get(column) else {
        return Err(DataFusionError::Internal("failed to find the event time column in a batch".to_owned()));
    };
    let (raw, unit) = raw_event_time(column)?;
    let (Some(max), Some(min)) = (compute::max(&raw), compute::min(&raw)) else {
        return Ok(EventTimeStats::default());
    };
    let count = (raw.len() - raw.null_count()) as u64;
    // In i128 first: the sum of 64-bit nanoseconds of a large batch would overflow.
    let sum: i128 = raw.iter().flatten().map(i128::from).sum();
    #[expect(clippy::cast_precision_loss, reason = "a mean for display")]
    let sum_ms = sum as f64 / units_per_ms(unit);
    Ok(EventTimeStats { count, max_ms: to_ms(max, unit), min_ms: to_ms(min, unit), sum_ms })
}

/// The event times of a timestamp column, or of the `end` of a window column, as raw integers with their unit.
pub fn raw_event_time(column: &ArrayRef) -> Result<(Int64Array, TimeUnit)> {
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            Ok((column.as_primitive::<TimestampSecondType>().reinterpret_cast(), TimeUnit::Second))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            Ok((column.as_primitive::<TimestampMillisecondType>().reinterpret_cast(), TimeUnit::Millisecond))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Ok((column.as_primitive::<TimestampMicrosecondType>().reinterpret_cast(), TimeUnit::Microsecond))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            Ok((column.as_primitive::<TimestampNanosecondType>().reinterpret_cast(), TimeUnit::Nanosecond))
        }
        DataType::Struct(_) => match column.as_struct().column_by_name("end") {
            Some(end) => raw_event_time(end),
            None => Err(DataFusionError::Internal("a window column without an end".to_owned())),
        },
        other => Err(DataFusionError::Internal(format!("{other} is no event time"))),
    }
}

fn units_per_ms(unit: TimeUnit) -> f64 {
    match unit {
        TimeUnit::Second => 0.001,
        TimeUnit::Millisecond => 1.0,
        TimeUnit::Microsecond => 1_000.0,
        TimeUnit::Nanosecond => 1_000_000.0,
    }
}

/// Milliseconds, rounded down as Spark does.
pub fn to_ms(raw: i64, unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => raw.saturating_mul(1_000),
        TimeUnit::Millisecond => raw,
        TimeUnit::Microsecond => raw.div_euclid(1_000),
        TimeUnit::Nanosecond => raw.div_euclid(1_000_000),
    }
}

/// The largest raw value that a watermark has passed: event times up to and including it are late.
pub fn from_ms(ms: i64, unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => ms.div_euclid(1_000),
        TimeUnit::Millisecond => ms,
        TimeUnit::Microsecond => ms.saturating_mul(1_000),
        TimeUnit::Nanosecond => ms.saturating_mul(1_000_000),
    }
}
