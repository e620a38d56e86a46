//! Keeps what can fail from rows that do not ask for it.
//!
//! Spark evaluates row by row: in `x = 0 OR y / x < 1` the division is not made where `x` is 0. DataFusion evaluates
//! both sides of `AND` and `OR` over whole batches. Its `CASE` evaluates a branch over the rows that reach it only, so
//! that, last before physical planning, `AND` and `OR` with a right side that can fail become `CASE`. Not earlier:
//! the optimiser would turn them back.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::{conjunction, merge_schema, split_conjunction_owned};
use datafusion::logical_expr::{BinaryExpr, Case, Expr, ExprSchemable, LogicalPlan, Operator, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};

use super::recursion::{SessionConf, bounded};
use crate::function;
use crate::function::constant::check_constants;

/// Guards every expression of an optimised plan.
pub fn guard(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        let names = NamePreserver::new(&node);
        let filter = matches!(node, LogicalPlan::Filter(_));
        let node = if filter { harmless_first(node, &schema) } else { node };
        node.map_expressions(|expr| {
            let saved = names.save(&expr);
            let guarded = guard_expression(expr, &schema, filter)?.transform_data(check_constants)?;
            Ok(guarded.update_data(|e| saved.restore(e)))
        })
    })
    .map(|done| done.data)
}

/// Merging filters, the optimiser puts the outer one first. What cannot fail goes before what can.
fn harmless_first(node: LogicalPlan, schema: &DFSchema) -> LogicalPlan {
    let LogicalPlan::Filter(mut filter) = node else { return node };
    if can_fail(&filter.predicate, schema) {
        let (mut ordered, fallible): (Vec<Expr>, Vec<Expr>) =
            split_conjunction_owned(filter.predicate.clone()).into_iter().partition(|e| !can_fail(e, schema));
        ordered.extend(fallible);
        if let Some(predicate) = conjunction(ordered) {
            filter.predicate = predicate;
        }
    }
    LogicalPlan::Filter(filter)
}

/// Guards one expression; in a `filter` null counts as false.
pub fn guard_expression(expr: Expr, schema: &DFSchema, filter: bool) -> Result<Transformed<Expr>> {
    // Most expressions hold nothing that can fail.
    if !can_fail(&expr, schema) {
        return Ok(Transformed::no(expr));
    }
    if filter && matches!(&expr, Expr::BinaryExpr(BinaryExpr { op: Operator::And | Operator::Or, .. })) {
        return guard_condition(expr, schema);
    }
    expr.transform_up(|e| match e {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right })
            if can_fail(&right, schema) =>
        {
            let and = op == Operator::And;
            let undecided = if and { Expr::IsNotFalse(left.clone()) } else { Expr::IsNotTrue(left.clone()) };
            let both = Expr::BinaryExpr(BinaryExpr { left, op, right });
            Ok(Transformed::yes(case(undecided, both, lit(!and))))
        }
        other => Ok(Transformed::no(other)),
    })
}

/// Where null counts as false, the left side need not be looked at again.
fn guard_condition(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) = expr else {
        return guard_expression(expr, schema, false);
    };
    let fallible = can_fail(&right, schema);
    let (left, right) = (guard_condition(*left, schema)?.data, guard_condition(*right, schema)?.data);
    Ok(Transformed::yes(match (fallible, op) {
        (true, Operator::And) => case(left, right, lit(false)),
        (true, _) => case(left, lit(true), right),
        (false, op) => Expr::BinaryExpr(BinaryExpr { left: Box::new(left), op, right: Box::new(right) }),
    }))
}

fn case(when: Expr, then: Expr, otherwise: Expr) -> Expr {
    Expr::Case(Case {
        expr: None,
        when_then_expr: vec![(Box::new(when), Box::new(then))],
        else_expr: Some(Box::new(otherwise)),
    })
}

/// Whether some row may have no value of the expression.
fn can_fail(expr: &Expr, schema: &DFSchema) -> bool {
    let mut found = false;
    let visited = expr.apply(|e| {
        found |= match e {
            Expr::ScalarFunction(call) => match (call.func.name(), call.args.as_slice()) {
                ("__cast", [_, Expr::Literal(to, _)]) => !to.to_string().eq_ignore_ascii_case("STRING"),
                (name, _) => function::can_fail(name),
            },
            Expr::Cast(cast) => match cast.expr.get_type(schema) {
                Ok(from) => narrows(&from, cast.field.data_type()),
                Err(_) => true,
            },
            _ => false,
        };
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found || visited.is_err()
}

/// Whether a cast loses some values.
fn narrows(from: &DataType, to: &DataType) -> bool {
    let widens = from == to
        || to.is_string()
        || matches!((from, to), (DataType::Null, _))
        || (from.is_numeric() && to.is_floating())
        || (from.is_integer() && to.is_integer() && from.primitive_width() <= to.primitive_width())
        || (from.is_integer() && matches!(to, DataType::Decimal128(20.., 0)))
        || (from.is_temporal() && to.is_temporal());
    !widens
}

/// Plans queries after guarding their expressions.
#[derive(Debug)]
pub struct GuardedPlanner;

#[async_trait]
impl QueryPlanner for GuardedPlanner {
    async fn create_physical_plan(
        &self,
        logical_plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let guarded = guard(logical_plan.clone())?;
        let plan = DefaultPhysicalPlanner::default().create_physical_plan(&guarded, session).await?;
        bounded(plan, session.config().get_extension::<SessionConf>().as_deref())
    }
}
