//! Refuses, before a query starts, what Spark's `UnsupportedOperationChecker` refuses, in its words.

use datafusion::common::JoinType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Aggregate, Distinct, Expr, LogicalPlan};

use super::nodes::watermark_delay_ms;
use super::split::is_streaming;
use crate::error::EngineError;
use crate::sink::OutputMode;

/// Spark's lower-case name of an output mode.
pub fn mode_name(mode: OutputMode) -> &'static str {
    match mode {
        OutputMode::Append => "append",
        OutputMode::Update => "update",
        OutputMode::Complete => "complete",
    }
}

fn unsupported_mode(mode: OutputMode, operation: &str) -> EngineError {
    EngineError::Invalid {
        class: "STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION",
        message: format!(
            "Invalid streaming output mode: {}. This output mode is not supported for {operation} on streaming \
             DataFrames/DataSets. SQLSTATE: 42KDE",
            mode_name(mode)
        ),
    }
}

fn unsupported(message: impl Into<String>) -> EngineError {
    EngineError::Invalid { class: "UNSUPPORTED_STREAMING_OPERATION", message: message.into() }
}

/// Checks an analysed plan against an output mode.
pub fn check_streaming(plan: &LogicalPlan, mode: OutputMode) -> Result<(), EngineError> {
    if !is_streaming(plan) {
        return Err(unsupported("Queries without streaming sources cannot be executed with writeStream.start()"));
    }
    let mut aggregates = 0usize;
    let mut failure = None;
    plan.apply(|node| {
        let is_aggregate = is_streaming_aggregate(node);
        if is_aggregate {
            aggregates += 1;
        }
        failure = check_node(node, mode).err();
        Ok(if failure.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    if mode == OutputMode::Complete && aggregates == 0 {
        return Err(unsupported_mode(mode, "no streaming aggregations"));
    }
    if mode != OutputMode::Append && aggregates > 1 {
        return Err(unsupported(
            "Detected pattern of possible 'correctness' issue due to global watermark. The query contains stateful \
             operation which can emit rows older than the current watermark plus allowed late record delay, which are \
             \"late rows\" in downstream stateful operations and these rows can be discarded. Several aggregations in \
             one query need append mode",
        ));
    }
    Ok(())
}

fn is_streaming_aggregate(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Aggregate(aggregate) => is_streaming(&aggregate.input),
        LogicalPlan::Distinct(Distinct::All(input)) => is_streaming(input),
        _ => false,
    }
}

fn check_node(node: &LogicalPlan, mode: OutputMode) -> Result<(), EngineError> {
    match node {
        LogicalPlan::Aggregate(aggregate) if is_streaming(&aggregate.input) => check_aggregate(aggregate, mode),
        LogicalPlan::Distinct(Distinct::All(input)) if is_streaming(input) => {
            let marked = input.schema().fields().iter().any(|field| watermark_delay_ms(field).is_some());
            if mode == OutputMode::Append && !marked {
                // Spark deduplicates here with state that grows for ever; that operator is not part of this engine yet.
                return Err(unsupported(
                    "DISTINCT without a watermarked column is not supported in append mode; use update mode or add a watermark",
                ));
            }
            Ok(())
        }
        LogicalPlan::Distinct(Distinct::On(on)) if is_streaming(&on.input) => {
            Err(unsupported("DISTINCT ON is not supported on streaming DataFrames/Datasets"))
        }
        LogicalPlan::Sort(sort) if is_streaming(&sort.input) => {
            let complete = mode == OutputMode::Complete && contains_aggregate(&sort.input);
            if complete {
                return Ok(());
            }
            Err(unsupported(
                "Sorting is not supported on streaming DataFrames/Datasets, unless it is on aggregated \
                 DataFrame/Dataset in Complete output mode",
            ))
        }
        LogicalPlan::Limit(limit) if is_streaming(&limit.input) => {
            if mode == OutputMode::Complete && contains_aggregate(&limit.input) {
                return Ok(());
            }
            Err(unsupported(format!(
                "Limits are not supported on streaming DataFrames/Datasets in {} output mode",
                match mode {
                    OutputMode::Append => "Append",
                    OutputMode::Update => "Update",
                    OutputMode::Complete => "Complete",
                }
            )))
        }
        LogicalPlan::Window(window) if is_streaming(&window.input) => Err(EngineError::Invalid {
            class: "NON_TIME_WINDOW_NOT_SUPPORTED_IN_STREAMING",
            message: format!(
                "Window function is not supported in {} on streaming DataFrames/Datasets. Structured Streaming only \
                 supports time-window aggregation using the WINDOW function.",
                window.window_expr.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            ),
        }),
        LogicalPlan::Union(union) => {
            let streaming = union.inputs.iter().filter(|input| is_streaming(input)).count();
            if streaming != 0 && streaming != union.inputs.len() {
                return Err(unsupported("Union between streaming and batch DataFrames/Datasets is not supported"));
            }
            Ok(())
        }
        LogicalPlan::Join(join) => check_join(join.join_type, is_streaming(&join.left), is_streaming(&join.right)),
        _ => Ok(()),
    }
}

fn check_aggregate(aggregate: &Aggregate, mode: OutputMode) -> Result<(), EngineError> {
    let keys = aggregate.group_expr.len();
    let marked = aggregate.schema.fields().iter().take(keys).any(|field| watermark_delay_ms(field).is_some());
    if mode == OutputMode::Append && !marked {
        return Err(unsupported_mode(mode, "streaming aggregations without watermark"));
    }
    for expr in &aggregate.aggr_expr {
        let distinct =
            expr.exists(|expr| Ok(matches!(expr, Expr::AggregateFunction(function) if function.params.distinct)))?;
        if distinct {
            return Err(unsupported(
                "Distinct aggregations are not supported on streaming DataFrames/Datasets. Consider using \
                 approx_count_distinct() instead.",
            ));
        }
    }
    Ok(())
}

fn contains_aggregate(plan: &LogicalPlan) -> bool {
    plan.exists(|node| Ok(is_streaming_aggregate(node))).unwrap_or(false)
}

fn check_join(join: JoinType, left: bool, right: bool) -> Result<(), EngineError> {
    match (left, right) {
        (false, false) => Ok(()),
        (true, true) => Err(unsupported("joins of two streams are not supported by this engine yet")),
        (true, false) => match join {
            JoinType::Inner | JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => Ok(()),
            _ => Err(unsupported(format!(
                "{join} join with a streaming DataFrame/Dataset on the left and a static DataFrame/Dataset on the \
                 right is not supported"
            ))),
        },
        (false, true) => match join {
            JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                Ok(())
            }
            _ => Err(unsupported(format!(
                "{join} join with a streaming DataFrame/Dataset on the right and a static DataFrame/Dataset on the \
                 left is not supported"
            ))),
        },
    }
}
