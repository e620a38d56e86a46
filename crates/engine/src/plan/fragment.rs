//! A stateless piece of a query: planned once, executed for every micro-batch.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::execution_plan::{ExecutionPlanProperties, reset_plan_states};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use futures::StreamExt;

use super::batch_input::read_slot;
use super::guard::guard;
use super::nodes::EventTimeWatermark;
use super::split::StageOutput;
use super::watermark::EventTimeWatermarkExec;
use crate::error::EngineError;
use crate::pool::{CpuPool, join_error};
use crate::source::bounded::ReadWhenPlanned;

/// A session in which plans have no more partitions than their leaves: the parallelism of a fragment is that of the
/// slots it reads, so that a small batch costs no exchange between threads. Tables that a stream is joined with are read
/// once, when the query starts.
pub fn fragment_session(session: &SessionState) -> SessionState {
    // Changed in place: a session built anew would replace the default catalog that both share.
    let mut session = session.clone();
    session.config_mut().set_extension(Arc::new(ReadWhenPlanned));
    let options = session.config_mut().options_mut();
    options.execution.target_partitions = 1;
    options.optimizer.enable_round_robin_repartition = false;
    session
}

/// A physical plan over [`super::batch_input::BatchSlot`]s.
#[derive(Debug)]
pub struct Fragment {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    schema: SchemaRef,
    partitions: usize,
}

impl Fragment {
    /// Optimises and plans `logical` in a session made by [`fragment_session`].
    pub async fn plan(logical: &LogicalPlan, session: &SessionState) -> Result<Self, EngineError> {
        let optimised = guard(session.optimize(logical)?)?;
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(StreamPlanner)]);
        let plan = planner.create_physical_plan(&optimised, session).await?;
        Ok(Self {
            context: session.task_ctx(),
            schema: plan.schema(),
            partitions: plan.output_partitioning().partition_count(),
            plan,
        })
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Executes the plan over what its slots hold and hands every batch to `each`, on the pool's threads. Partitions
    /// run side by side when `parallel`; the results come in the order of the partitions either way.
    pub async fn run<T, F>(&self, pool: &'static CpuPool, parallel: bool, each: F) -> Result<Vec<T>, EngineError>
    where
        T: Send + 'static,
        F: Fn(RecordBatch) -> Result<T, EngineError> + Clone + Send + Sync + 'static,
    {
        // Fresh instances: metrics and join builds of the last batch are not carried over.
        let plan = reset_plan_states(Arc::clone(&self.plan))?;
        if !parallel || self.partitions == 1 {
            let (context, partitions) = (Arc::clone(&self.context), self.partitions);
            return pool
                .run(async move {
                    let mut results = Vec::new();
                    for partition in 0..partitions {
                        drain(&plan, partition, &context, &each, &mut results).await?;
                    }
                    Ok(results)
                })
                .await;
        }
        let tasks: Vec<_> = (0..self.partitions)
            .map(|partition| {
                let (plan, context, each) = (Arc::clone(&plan), Arc::clone(&self.context), each.clone());
                pool.spawn(async move {
                    let mut results = Vec::new();
                    drain(&plan, partition, &context, &each, &mut results).await?;
                    Ok(results)
                })
            })
            .collect();
        let mut results = Vec::new();
        for task in tasks {
            results.extend(task.await.map_err(join_error)??);
        }
        Ok(results)
    }
}

async fn drain<T, F>(
    plan: &Arc<dyn ExecutionPlan>,
    partition: usize,
    context: &Arc<TaskContext>,
    each: &F,
    results: &mut Vec<T>,
) -> Result<(), EngineError>
where
    F: Fn(RecordBatch) -> Result<T, EngineError>,
{
    let mut stream = plan.execute(partition, Arc::clone(context))?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if batch.num_rows() > 0 {
            results.push(each(batch)?);
        }
    }
    Ok(())
}

/// Plans the engine's own logical nodes.
#[derive(Debug)]
struct StreamPlanner;

#[async_trait]
impl ExtensionPlanner for StreamPlanner {
    async fn plan_extension(
        &self,
        _planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        _session: &dyn Session,
        _planning: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let Some(stage) = node.as_any().downcast_ref::<StageOutput>() {
            let schema = Arc::new(node.schema().as_arrow().clone());
            return Ok(Some(read_slot("state", &schema, Arc::clone(stage.slot()), None)?));
        }
        let Some(watermark) = node.as_any().downcast_ref::<EventTimeWatermark>() else { return Ok(None) };
        let [input] = physical_inputs else {
            return Err(DataFusionError::Internal("EventTimeWatermark needs one input".to_owned()));
        };
        let schema = Arc::new(node.schema().as_arrow().clone());
        let probe = watermark.probe().cloned().unwrap_or_default();
        let exec = EventTimeWatermarkExec::new(Arc::clone(input), schema, watermark.column_index()?, probe);
        Ok(Some(Arc::new(exec)))
    }
}

/// Evaluates expressions over a batch, each to a full column.
pub fn evaluate_all(expressions: &[Arc<dyn PhysicalExpr>], batch: &RecordBatch) -> Result<Vec<arrow::array::ArrayRef>> {
    expressions.iter().map(|expression| expression.evaluate(batch)?.into_array(batch.num_rows())).collect()
}
