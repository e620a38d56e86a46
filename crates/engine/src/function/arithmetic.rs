//! Division with Spark's types and errors: `/` is double (or decimal), `DIV` is whole, `%` keeps the sign of the left.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::compute::{cast, kernels::numeric};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ScalarUDF;

use super::udf::{Arguments, Call, Function};

/// `a / b`.
pub(crate) fn divide() -> Arc<ScalarUDF> {
    Function { name: "__divide", aliases: &[], arity: (2, 2), coerce: None, returns: divide_type, run: run_divide }
        .udf()
}

/// `a DIV b`.
pub(crate) fn div() -> Arc<ScalarUDF> {
    let returns = |_: &Arguments<'_>| Ok(DataType::Int64);
    Function { name: "div", aliases: &[], arity: (2, 2), coerce: None, returns, run: run_div }.udf()
}

/// `a % b` and `mod(a, b)`.
pub(crate) fn remainder() -> Arc<ScalarUDF> {
    Function { name: "mod", aliases: &[], arity: (2, 2), coerce: None, returns: remainder_type, run: run_remainder }
        .udf()
}

fn is_decimal(ty: &DataType) -> bool {
    matches!(ty, DataType::Decimal128(_, _))
}

fn decimal_parts(ty: &DataType) -> Option<(u8, i8)> {
    match ty {
        DataType::Decimal128(p, s) => Some((*p, *s)),
        DataType::Int8 => Some((3, 0)),
        DataType::Int16 => Some((5, 0)),
        DataType::Int32 => Some((10, 0)),
        DataType::Int64 => Some((20, 0)),
        _ => None,
    }
}

/// Spark's result type of a decimal division: at least six digits after the point, at most 38 in all.
fn divide_type(args: &Arguments<'_>) -> Result<DataType> {
    let (left, right) = (args.ty(0)?, args.ty(1)?);
    if let (true, Some((p1, s1)), Some((p2, s2))) =
        (is_decimal(left) || is_decimal(right), decimal_parts(left), decimal_parts(right))
    {
        let (p1, s1, p2, s2) = (i16::from(p1), i16::from(s1), i16::from(p2), i16::from(s2));
        let scale = (s1 + p2 + 1).max(6);
        let precision = p1 - s1 + s2 + scale;
        let (precision, scale) = if precision > 38 {
            let whole = precision - scale;
            (38, (38 - whole).max(scale.min(6)))
        } else {
            (precision, scale)
        };
        return Ok(DataType::Decimal128(
            u8::try_from(precision).unwrap_or(38),
            i8::try_from(scale.min(37)).unwrap_or(6),
        ));
    }
    Ok(DataType::Float64)
}

fn doubles(array: &ArrayRef) -> Result<Float64Array> {
    Ok(cast(array, &DataType::Float64)?.as_primitive::<Float64Type>().clone())
}

fn zero<T>() -> Result<T> {
    exec_err!(
        "[DIVIDE_BY_ZERO] Division by zero. Use `try_divide` to tolerate divisor being 0 and return NULL instead. SQLSTATE: 22012"
    )
}

fn run_divide(call: &Call) -> Result<ArrayRef> {
    let (left, right) = (doubles(call.arg(0)?)?, doubles(call.arg(1)?)?);
    let valid = arrow::buffer::NullBuffer::union(left.nulls(), right.nulls());
    let by_zero = |i: usize| right.value(i) == 0.0 && valid.as_ref().is_none_or(|v| v.is_valid(i));
    if right.values().contains(&0.0) && (0..right.len()).any(by_zero) {
        return zero();
    }
    if let DataType::Decimal128(_, scale) = call.return_type {
        return divide_decimals(call, scale);
    }
    let quotient: Float64Array = arrow::compute::binary(&left, &right, |a, b| a / b)?;
    Ok(Arc::new(quotient))
}

/// Exact where the intermediate fits 128 bits, by way of doubles otherwise.
fn divide_decimals(call: &Call, scale: i8) -> Result<ArrayRef> {
    let parts = |array: &ArrayRef| -> Result<(arrow::array::Decimal128Array, i8)> {
        let (precision, scale) = decimal_parts(array.data_type()).unwrap_or((38, 0));
        let decimal = cast(array, &DataType::Decimal128(precision, scale))?;
        Ok((decimal.as_primitive::<arrow::datatypes::Decimal128Type>().clone(), scale))
    };
    let ((left, s1), (right, s2)) = (parts(call.arg(0)?)?, parts(call.arg(1)?)?);
    let shift = u32::try_from(i16::from(scale) + i16::from(s2) - i16::from(s1)).unwrap_or(0);
    let factor = 10i128.checked_pow(shift);
    let mut values = Vec::with_capacity(left.len());
    for i in 0..left.len() {
        if left.is_null(i) || right.is_null(i) {
            values.push(None);
            continue;
        }
        let (numerator, divisor) = (factor.and_then(|f| left.value(i).checked_mul(f)), right.value(i));
        let Some(numerator) = numerator else {
            return exec_err!("[NUMERIC_VALUE_OUT_OF_RANGE] The decimal quotient does not fit 38 digits.");
        };
        let (quotient, rest) = (numerator / divisor, numerator % divisor);
        let up = i128::from(rest.unsigned_abs() * 2 >= divisor.unsigned_abs());
        values.push(Some(quotient + up * (numerator.signum() * divisor.signum())));
    }
    let array = arrow::array::Decimal128Array::from(values).with_data_type(call.return_type.clone());
    Ok(Arc::new(array))
}

fn run_div(call: &Call) -> Result<ArrayRef> {
    if [call.arg(0)?, call.arg(1)?].iter().all(|a| a.data_type().is_integer()) {
        let ints =
            |a: &ArrayRef| -> Result<Int64Array> { Ok(cast(a, &DataType::Int64)?.as_primitive::<Int64Type>().clone()) };
        let (left, right) = (ints(call.arg(0)?)?, ints(call.arg(1)?)?);
        let quotient: Int64Array = arrow::compute::try_binary(&left, &right, |a, b| match (a, b) {
            (_, 0) => Err(arrow::error::ArrowError::DivideByZero),
            (a, b) => a.checked_div(b).ok_or_else(|| {
                arrow::error::ArrowError::ArithmeticOverflow(
                    "[ARITHMETIC_OVERFLOW] Overflow in integral divide.".into(),
                )
            }),
        })?;
        return Ok(Arc::new(quotient));
    }
    let quotient = run_divide(&Call {
        args: call.args.clone(),
        scalars: Vec::new(),
        rows: call.rows,
        return_type: DataType::Float64,
    })?;
    let whole: Int64Array = quotient.as_primitive::<Float64Type>().unary(|q| q.trunc() as i64);
    Ok(Arc::new(whole))
}

fn remainder_type(args: &Arguments<'_>) -> Result<DataType> {
    let (left, right) = (args.ty(0)?, args.ty(1)?);
    if left == right {
        return Ok(left.clone());
    }
    if left.is_integer() && right.is_integer() {
        return Ok(DataType::Int64);
    }
    Ok(DataType::Float64)
}

fn run_remainder(call: &Call) -> Result<ArrayRef> {
    let left = cast(call.arg(0)?, &call.return_type)?;
    let right = cast(call.arg(1)?, &call.return_type)?;
    let divisors = doubles(&right)?;
    let left_nulls = left.nulls();
    let by_zero =
        |i: usize| divisors.is_valid(i) && divisors.value(i) == 0.0 && left_nulls.is_none_or(|n| n.is_valid(i));
    if (0..divisors.len()).any(by_zero) {
        return exec_err!(
            "[REMAINDER_BY_ZERO] Remainder by zero. Use `try_mod` to tolerate divisor being 0 and return NULL instead. SQLSTATE: 22012"
        );
    }
    Ok(numeric::rem(&left, &right)?)
}
