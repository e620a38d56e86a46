//! Constants as large as `sequence(1, 1000000)`: written out for every row of a batch they would take all memory.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::output::{MAX_BYTES, check_bytes};

/// Rows of a batch, as sessions have them.
const BATCH_ROWS: usize = 8192;
const NAME: &str = "__constant";

static CONSTANT: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| {
    // A constant of no kind that a later pass would fold.
    Arc::new(ScalarUDF::new_from_impl(Constant { signature: Signature::any(1, Volatility::Volatile) }))
});

/// Has large constants looked at, when they are used, for whether there is room for them in every row. Those that
/// higher-order functions take stay: they work on some rows at a time.
pub(crate) fn check_constants(expr: Expr) -> Result<Transformed<Expr>> {
    let mut found = false;
    expr.apply(|e| {
        found |= is_large(e);
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if !found {
        return Ok(Transformed::no(expr));
    }
    expr.transform_up(|e| match e {
        e if is_large(&e) => Ok(Transformed::yes(CONSTANT.call(vec![e]))),
        Expr::HigherOrderFunction(mut call) => {
            call.args = call.args.into_iter().map(unchecked).collect();
            Ok(Transformed::yes(Expr::HigherOrderFunction(call)))
        }
        other => Ok(Transformed::no(other)),
    })
}

fn is_large(expr: &Expr) -> bool {
    let Expr::Literal(value, _) = expr else { return false };
    let varies = value.data_type().is_nested() || matches!(value.data_type(), DataType::Utf8 | DataType::Binary);
    varies && value.size() > MAX_BYTES / BATCH_ROWS
}

fn unchecked(expr: Expr) -> Expr {
    match expr {
        Expr::ScalarFunction(ScalarFunction { func, mut args }) if func.name() == NAME && args.len() == 1 => {
            args.remove(0)
        }
        other => other,
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    signature: Signature,
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &'static str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        plan_err!("{NAME} types its result from its fields")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        match args.arg_fields {
            [field] => Ok(Arc::clone(field)),
            _ => plan_err!("{NAME} takes one argument"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(value) = args.args.into_iter().next() else { return plan_err!("{NAME} takes one argument") };
        if let ColumnarValue::Scalar(scalar) = &value {
            check_bytes("constant", scalar.size().saturating_mul(args.number_rows))?;
        }
        Ok(value)
    }
}
