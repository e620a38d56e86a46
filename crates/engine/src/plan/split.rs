//! Cuts a streaming plan at its aggregates: stateless fragment -> aggregate -> stateless fragment -> ...

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::catalog::default_table_source::{DefaultTableSource, source_as_provider};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchemaRef, Result};
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, Extension, LogicalPlan, LogicalPlanBuilder, UserDefinedLogicalNodeCore,
};

use super::batch_input::{BatchSlot, BatchTable};
use super::nodes::{EventTimeWatermark, SourceFactory, StreamRelation};
use super::watermark::EventTimeProbe;

/// One streaming leaf of the query.
pub struct SourceInput {
    pub name: String,
    pub factory: Arc<dyn SourceFactory>,
    pub slot: Arc<BatchSlot>,
}

/// One watermarked column of the query.
pub struct WatermarkInput {
    pub delay_ms: i64,
    pub probe: Arc<EventTimeProbe>,
}

/// One stateful operator: the fragment that feeds it, and where its result goes.
pub struct Stage {
    pub input: LogicalPlan,
    pub aggregate: Aggregate,
    pub slot: Arc<BatchSlot>,
}

/// A query cut into the pieces that run one after the other in every micro-batch.
pub struct SplitPlan {
    pub sources: Vec<SourceInput>,
    pub watermarks: Vec<WatermarkInput>,
    /// In order of execution: a stage reads sources and earlier stages only.
    pub stages: Vec<Stage>,
    pub output: LogicalPlan,
}

/// The provider behind a scan, when that is a stream.
pub fn with_stream_relation<T>(plan: &LogicalPlan, f: impl FnOnce(&StreamRelation) -> T) -> Option<T> {
    let LogicalPlan::TableScan(scan) = plan else { return None };
    let provider = source_as_provider(&scan.source).ok()?;
    provider.downcast_ref::<StreamRelation>().map(f)
}

/// Whether rows keep coming out of `plan`.
pub fn is_streaming(plan: &LogicalPlan) -> bool {
    let mut found = false;
    // The closure cannot fail, so neither can the walk.
    let _ = plan.apply(|node| {
        found = match node {
            LogicalPlan::TableScan(scan) => source_as_provider(&scan.source).is_ok_and(|provider| {
                provider.downcast_ref::<StreamRelation>().is_some() || provider.downcast_ref::<BatchTable>().is_some()
            }),
            LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref::<StageOutput>().is_some(),
            _ => false,
        };
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found
}

/// Cuts `plan`. Every slot that is made holds `partitions` partitions.
pub fn split(plan: LogicalPlan, partitions: usize) -> Result<SplitPlan> {
    let mut parts =
        SplitPlan { sources: Vec::new(), watermarks: Vec::new(), stages: Vec::new(), output: LogicalPlan::default() };
    let output = plan.transform_up(|node| replace(node, partitions, &mut parts))?.data;
    parts.output = output;
    Ok(parts)
}

fn replace(node: LogicalPlan, partitions: usize, parts: &mut SplitPlan) -> Result<Transformed<LogicalPlan>> {
    let stream = with_stream_relation(&node, |relation| (relation.name().to_owned(), Arc::clone(relation.factory())));
    match node {
        LogicalPlan::TableScan(mut scan) => {
            let Some((name, factory)) = stream else { return Ok(Transformed::no(LogicalPlan::TableScan(scan))) };
            let slot = BatchSlot::new(partitions);
            let table = BatchTable::new(&name, factory.schema(), Arc::clone(&slot));
            scan.source = Arc::new(DefaultTableSource::new(Arc::new(table)));
            parts.sources.push(SourceInput { name, factory, slot });
            Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
        }
        LogicalPlan::Extension(extension) => {
            let Some(watermark) = extension.node.as_any().downcast_ref::<EventTimeWatermark>() else {
                return Ok(Transformed::no(LogicalPlan::Extension(extension)));
            };
            if !is_streaming(&watermark.input) {
                // A watermark on a table that does not grow means nothing, as in Spark.
                return Ok(Transformed::no(LogicalPlan::Extension(extension)));
            }
            let probe = Arc::new(EventTimeProbe::default());
            parts.watermarks.push(WatermarkInput { delay_ms: watermark.delay_ms, probe: Arc::clone(&probe) });
            Ok(Transformed::yes(watermark.clone().with_probe(probe).into_plan()))
        }
        LogicalPlan::Distinct(Distinct::All(input)) if is_streaming(&input) => {
            let keys: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
            let aggregate = Aggregate::try_new(input, keys, Vec::new())?;
            cut(aggregate, partitions, parts)
        }
        LogicalPlan::Aggregate(aggregate) if is_streaming(&aggregate.input) => cut(aggregate, partitions, parts),
        other => Ok(Transformed::no(other)),
    }
}

fn cut(aggregate: Aggregate, partitions: usize, parts: &mut SplitPlan) -> Result<Transformed<LogicalPlan>> {
    let input = prune(&aggregate)?;
    let slot = BatchSlot::new(partitions);
    let output =
        StageOutput { index: parts.stages.len(), schema: Arc::clone(&aggregate.schema), slot: Arc::clone(&slot) };
    parts.stages.push(Stage { input, aggregate, slot });
    Ok(Transformed::yes(LogicalPlan::Extension(Extension { node: Arc::new(output) })))
}

/// The aggregate's input, reduced to the columns that it reads, so that the optimiser can prune down to the source.
fn prune(aggregate: &Aggregate) -> Result<LogicalPlan> {
    let schema = aggregate.input.schema();
    let mut used: HashSet<&Column> = HashSet::new();
    for expr in aggregate.group_expr.iter().chain(&aggregate.aggr_expr) {
        used.extend(expr.column_refs());
    }
    let indices: BTreeSet<usize> =
        used.into_iter().map(|column| schema.index_of_column(column)).collect::<Result<_>>()?;
    if indices.len() == schema.fields().len() {
        return Ok(aggregate.input.as_ref().clone());
    }
    let columns = indices.into_iter().map(|index| Expr::Column(Column::from(schema.qualified_field(index))));
    LogicalPlanBuilder::from(aggregate.input.as_ref().clone()).project(columns)?.build()
}

/// The leaf that stands for a stage's result in the fragment above it.
#[derive(Debug, Clone)]
pub struct StageOutput {
    index: usize,
    schema: DFSchemaRef,
    slot: Arc<BatchSlot>,
}

impl StageOutput {
    pub fn slot(&self) -> &Arc<BatchSlot> {
        &self.slot
    }
}

impl PartialEq for StageOutput {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}

impl Eq for StageOutput {}

impl Hash for StageOutput {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.index.hash(state);
    }
}

impl PartialOrd for StageOutput {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.index.cmp(&other.index))
    }
}

impl UserDefinedLogicalNodeCore for StageOutput {
    fn name(&self) -> &str {
        "StageOutput"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        Vec::new()
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StageOutput: {}", self.index)
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, _: Vec<LogicalPlan>) -> Result<Self> {
        Ok(self.clone())
    }
}
