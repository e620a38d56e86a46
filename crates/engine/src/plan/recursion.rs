//! `WITH RECURSIVE` ends: the 101st level is an error, as with Spark's `spark.sql.cteRecursionLevelLimit`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, exec_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::ReplaceChildrenOptions;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

/// How often the recursive part may run.
const MOST_LEVELS: u32 = 100;

/// Limits every recursion of a physical plan.
pub(super) fn limit(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let limited = plan.transform_up(|node| {
        let Some(query) = node.downcast_ref::<RecursiveQueryExec>() else { return Ok(Transformed::no(node)) };
        let levels = Arc::new(AtomicU32::new(0));
        let part = |input: &Arc<dyn ExecutionPlan>, recursive| {
            Arc::new(LevelExec { input: Arc::clone(input), levels: Arc::clone(&levels), recursive })
        };
        let (first, next) = (part(query.static_term(), false), part(query.recursive_term(), true));
        let counted =
            RecursiveQueryExec::try_new(query.name().to_owned(), query.schema(), first, next, query.is_distinct())?;
        Ok(Transformed::yes(Arc::new(counted) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(limited.data)
}

/// One of the two parts of a recursion; passes its rows on.
#[derive(Debug)]
struct LevelExec {
    input: Arc<dyn ExecutionPlan>,
    /// Of the running query.
    levels: Arc<AtomicU32>,
    recursive: bool,
}

impl DisplayAs for LevelExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.name())
    }
}

impl ExecutionPlan for LevelExec {
    fn name(&self) -> &'static str {
        if self.recursive { "RecursionLevelExec" } else { "RecursionStartExec" }
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
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().unwrap_or_else(|| Arc::clone(&self.input));
        Ok(Arc::new(LevelExec { input, levels: Arc::clone(&self.levels), recursive: self.recursive }))
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().unwrap_or_else(|| Arc::clone(&self.input));
        Ok(Arc::new(LevelExec { input, levels: Arc::clone(&self.levels), recursive: self.recursive }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if !self.recursive {
            self.levels.store(0, Ordering::Relaxed);
        } else if self.levels.fetch_add(1, Ordering::Relaxed) >= MOST_LEVELS {
            return exec_err!(
                "[RECURSION_LEVEL_LIMIT_EXCEEDED] Recursion level limit {MOST_LEVELS} reached but query has not exhausted. SQLSTATE: 42836"
            );
        }
        self.input.execute(partition, context)
    }
}
