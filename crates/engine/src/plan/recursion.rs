//! Ends recursive queries that do not end by themselves, at the limits that Spark has.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::ReplaceChildrenOptions;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;
use parking_lot::RwLock;

/// The keys of the limits with their defaults; -1 for none.
pub const LEVEL_LIMIT: (&str, i64) = ("spark.sql.cteRecursionLevelLimit", 100);
pub const ROW_LIMIT: (&str, i64) = ("spark.sql.cteRecursionRowLimit", 1_000_000);

/// In a DataFusion session's configuration: the SQL session's, which may change.
#[derive(Debug)]
pub struct SessionConf(pub Arc<RwLock<BTreeMap<String, String>>>);

impl SessionConf {
    fn limit(&self, (key, default): (&str, i64)) -> Option<u64> {
        let value = self.0.read().get(key).and_then(|value| value.trim().parse().ok()).unwrap_or(default);
        u64::try_from(value).ok()
    }
}

/// What a recursion may do, and what it has done.
#[derive(Debug)]
struct Bounds {
    levels: Option<u64>,
    rows: Option<u64>,
    levels_done: AtomicU64,
    rows_done: AtomicU64,
}

impl Bounds {
    fn level(&self) -> Result<()> {
        match self.levels {
            Some(limit) if self.levels_done.fetch_add(1, Ordering::Relaxed) >= limit => {
                exceeded("LEVEL", limit, LEVEL_LIMIT.0)
            }
            _ => Ok(()),
        }
    }

    fn count(&self, rows: usize) -> Result<()> {
        let rows = rows as u64;
        match self.rows {
            Some(limit) if self.rows_done.fetch_add(rows, Ordering::Relaxed).saturating_add(rows) > limit => {
                exceeded("ROW", limit, ROW_LIMIT.0)
            }
            _ => Ok(()),
        }
    }
}

fn exceeded(what: &str, limit: u64, key: &str) -> Result<()> {
    let lower = what.to_lowercase();
    Err(DataFusionError::Execution(format!(
        "[RECURSION_{what}_LIMIT_EXCEEDED] Recursion {lower} limit {limit} reached but query has not exhausted, try increasing it: SET {key}={}. SQLSTATE: 42836",
        limit.saturating_mul(10)
    )))
}

/// Puts the session's limits on every recursion of a plan.
pub fn bounded(plan: Arc<dyn ExecutionPlan>, conf: Option<&SessionConf>) -> Result<Arc<dyn ExecutionPlan>> {
    let limit = |limit: (&str, i64)| conf.map_or(u64::try_from(limit.1).ok(), |conf| conf.limit(limit));
    plan.transform_up(|node| {
        let Some(recursive) = node.downcast_ref::<RecursiveQueryExec>() else { return Ok(Transformed::no(node)) };
        let bounds = Arc::new(Bounds {
            levels: limit(LEVEL_LIMIT),
            rows: limit(ROW_LIMIT),
            levels_done: AtomicU64::new(0),
            rows_done: AtomicU64::new(0),
        });
        let bound = |input: &Arc<dyn ExecutionPlan>, begins| -> Arc<dyn ExecutionPlan> {
            Arc::new(BoundExec { input: Arc::clone(input), bounds: Arc::clone(&bounds), begins })
        };
        let (first, next) = (bound(recursive.static_term(), true), bound(recursive.recursive_term(), false));
        let name = recursive.name().to_owned();
        let plan = RecursiveQueryExec::try_new(name, node.schema(), first, next, recursive.is_distinct())?;
        Ok(Transformed::yes(Arc::new(plan)))
    })
    .map(|done| done.data)
}

/// Counts how often a term of a recursion runs, and its rows.
#[derive(Debug)]
struct BoundExec {
    input: Arc<dyn ExecutionPlan>,
    bounds: Arc<Bounds>,
    /// The term that the recursion begins with.
    begins: bool,
}

impl DisplayAs for BoundExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let text = |limit: Option<u64>| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
        write!(f, "BoundExec: levels={}, rows={}", text(self.bounds.levels), text(self.bounds.rows))
    }
}

impl ExecutionPlan for BoundExec {
    fn name(&self) -> &'static str {
        "BoundExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.into_iter().next().unwrap_or_else(|| Arc::clone(&self.input));
        Ok(Arc::new(BoundExec { input, bounds: Arc::clone(&self.bounds), begins: self.begins }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.into_iter().next().unwrap_or_else(|| Arc::clone(&self.input));
        Ok(Arc::new(BoundExec { input, bounds: Arc::clone(&self.bounds), begins: self.begins }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if self.begins {
            self.bounds.levels_done.store(0, Ordering::Relaxed);
            self.bounds.rows_done.store(0, Ordering::Relaxed);
        } else {
            self.bounds.level()?;
        }
        let bounds = Arc::clone(&self.bounds);
        let rows = self.input.execute(partition, context)?;
        let schema = rows.schema();
        let counted = rows.map(move |batch| {
            let batch = batch?;
            bounds.count(batch.num_rows())?;
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, counted)))
    }
}
