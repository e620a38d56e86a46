//! `current_timestamp()` in a query that is planned once: it is the time of the micro-batch, not that of the planning.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

/// Returns the running batch's time.
#[derive(Debug)]
struct BatchTimestamp {
    signature: Signature,
    epoch_ms: Arc<AtomicI64>,
}

impl PartialEq for BatchTimestamp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.epoch_ms, &other.epoch_ms)
    }
}

impl Eq for BatchTimestamp {}

impl Hash for BatchTimestamp {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.epoch_ms).hash(state);
    }
}

impl ScalarUDFImpl for BatchTimestamp {
    fn name(&self) -> &str {
        "current_timestamp"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let micros = self.epoch_ms.load(Ordering::Acquire).saturating_mul(1_000);
        Ok(ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()))))
    }
}

/// Replaces `now()`, `current_timestamp()` and `current_date()` in `plan` by the time in `epoch_ms`.
pub fn pin_current_timestamp(plan: LogicalPlan, epoch_ms: &Arc<AtomicI64>) -> Result<LogicalPlan> {
    let function = Arc::new(ScalarUDF::from(BatchTimestamp {
        signature: Signature::nullary(Volatility::Volatile),
        epoch_ms: Arc::clone(epoch_ms),
    }));
    let pinned = plan.transform_up_with_subqueries(|node| {
        let schema = datafusion::common::DFSchema::empty();
        let node = node.map_expressions(|expr| {
            let name = expr.schema_name().to_string();
            let replaced = expr.transform_up(|expr| {
                let Expr::ScalarFunction(call) = &expr else { return Ok(Transformed::no(expr)) };
                if !call.args.is_empty() || !matches!(call.name(), "now" | "current_timestamp" | "current_date") {
                    return Ok(Transformed::no(expr));
                }
                let wanted = expr.get_type(&schema)?;
                let time = Expr::ScalarFunction(datafusion::logical_expr::expr::ScalarFunction::new_udf(
                    Arc::clone(&function),
                    Vec::new(),
                ));
                Ok(Transformed::yes(time.cast_to(&wanted, &schema)?))
            })?;
            // Columns keep the names by which the nodes above refer to them.
            let transformed = replaced.transformed;
            let expr = replaced.data;
            let renamed = transformed && expr.schema_name().to_string() != name;
            let expr = if renamed { expr.alias(name) } else { expr };
            Ok(Transformed::new(expr, transformed, replaced.tnr))
        })?;
        if node.transformed { node.map_data(|node| node.recompute_schema()) } else { Ok(node) }
    })?;
    Ok(pinned.data)
}
