//! Logarithms and roots with Spark's answers outside their domains: null for logarithms, NaN for roots.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::ScalarUDF;

use super::cast::convert;
use super::ddl::type_name;
use super::udf::{Arguments, Call, Function};

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function = |name, arity, run| Function { name, aliases: &[], arity, coerce: None, returns, run }.udf();
    vec![
        function("ln", (1, 1), |c| logarithm(c, 0.0, f64::ln)),
        function("log10", (1, 1), |c| logarithm(c, 0.0, f64::log10)),
        function("log2", (1, 1), |c| logarithm(c, 0.0, f64::log2)),
        function("log1p", (1, 1), |c| logarithm(c, -1.0, f64::ln_1p)),
        function("log", (1, 2), log),
        function("sqrt", (1, 1), |c| Ok(Arc::new(doubles(c, 0)?.unary::<_, Float64Type>(f64::sqrt)))),
        function("acosh", (1, 1), |c| Ok(Arc::new(doubles(c, 0)?.unary::<_, Float64Type>(f64::acosh)))),
        function("asin", (1, 1), |c| Ok(Arc::new(doubles(c, 0)?.unary::<_, Float64Type>(f64::asin)))),
        function("acos", (1, 1), |c| Ok(Arc::new(doubles(c, 0)?.unary::<_, Float64Type>(f64::acos)))),
        function("atanh", (1, 1), |c| Ok(Arc::new(doubles(c, 0)?.unary::<_, Float64Type>(f64::atanh)))),
    ]
}

fn returns(args: &Arguments<'_>) -> Result<DataType> {
    for field in args.fields {
        let ty = field.data_type();
        if !(ty.is_numeric() || ty.is_string() || *ty == DataType::Null) {
            return plan_err!(
                "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve \"{}\" due to data type mismatch: the parameter requires the \"DOUBLE\" type, however it has the type \"{}\". SQLSTATE: 42K09",
                args.name,
                type_name(ty)
            );
        }
    }
    Ok(DataType::Float64)
}

fn doubles(call: &Call, index: usize) -> Result<Float64Array> {
    Ok(convert(call.arg(index)?, &DataType::Float64, false)?.as_primitive::<Float64Type>().clone())
}

/// Null for numbers up to `bound`.
fn logarithm(call: &Call, bound: f64, of: fn(f64) -> f64) -> Result<ArrayRef> {
    let numbers = doubles(call, 0)?;
    let result: Float64Array = numbers.iter().map(|v| v.filter(|v| v.is_nan() || *v > bound).map(of)).collect();
    Ok(Arc::new(result))
}

/// `log(x)` is natural, `log(base, x)` not.
fn log(call: &Call) -> Result<ArrayRef> {
    if call.args.len() == 1 {
        return logarithm(call, 0.0, f64::ln);
    }
    let (bases, numbers) = (doubles(call, 0)?, doubles(call, 1)?);
    let positive = |v: Option<f64>| v.filter(|v| v.is_nan() || *v > 0.0);
    let result: Float64Array =
        bases.iter().zip(&numbers).map(|(base, number)| Some(positive(number)?.ln() / positive(base)?.ln())).collect();
    Ok(Arc::new(result))
}
