//! `round` (half away from zero), `bround` (half to even), `ceil` and `floor`, with Spark's types.

use std::sync::Arc;

use arrow::array::{ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, PrimitiveBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::ScalarUDF;

use super::ddl::type_name;
use super::udf::{Arguments, Call, Function};

/// What becomes of the digits that are cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    HalfUp,
    HalfEven,
    Ceiling,
    Floor,
}

/// All functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function = |name, returns: fn(&Arguments<'_>) -> Result<DataType>, run| {
        Function { name, aliases: &[], arity: (1, 2), coerce: None, returns, run }.udf()
    };
    vec![
        function("round", returns, |c| run(c, Mode::HalfUp)),
        function("bround", returns, |c| run(c, Mode::HalfEven)),
        function("ceil", returns_whole, |c| run_whole(c, Mode::Ceiling)),
        function("floor", returns_whole, |c| run_whole(c, Mode::Floor)),
    ]
}

/// The decimal as which `ceil(x, digits)` takes a number.
fn as_decimal(ty: &DataType) -> DataType {
    match ty {
        DataType::Decimal128(_, _) => ty.clone(),
        DataType::Int8 => DataType::Decimal128(3, 0),
        DataType::Int16 => DataType::Decimal128(5, 0),
        DataType::Int32 => DataType::Decimal128(10, 0),
        DataType::Float32 => DataType::Decimal128(14, 7),
        DataType::Float64 => DataType::Decimal128(30, 15),
        ty if ty.is_integer() => DataType::Decimal128(20, 0),
        _ => DataType::Decimal128(38, 18),
    }
}

/// `ceil(x)` is a BIGINT, of decimals a decimal without digits behind the point; `ceil(x, digits)` is a decimal.
fn returns_whole(args: &Arguments<'_>) -> Result<DataType> {
    returns(args)?;
    let digits = if args.fields.len() > 1 { Some(args.integer(1)?) } else { None };
    match (args.ty(0)?, digits) {
        (ty, Some(digits)) => match as_decimal(ty) {
            DataType::Decimal128(precision, scale) => Ok(decimal(precision, scale, digits)),
            other => Ok(other),
        },
        (DataType::Decimal128(precision, 0), None) => Ok(DataType::Decimal128(*precision, 0)),
        (DataType::Decimal128(precision, scale), None) => Ok(decimal(*precision, *scale, 0)),
        _ => Ok(DataType::Int64),
    }
}

fn run_whole(call: &Call, mode: Mode) -> Result<ArrayRef> {
    let array = call.arg(0)?;
    if let DataType::Decimal128(precision, scale) = call.return_type {
        let digits = i32::try_from(call.integer(1).unwrap_or(0).clamp(-400, 400)).unwrap_or(0);
        let decimal = super::cast::convert(array, &as_decimal(array.data_type()), false)?;
        return decimals(&decimal, precision, scale, digits, mode);
    }
    if array.data_type().is_integer() {
        return Ok(cast(array, &DataType::Int64)?);
    }
    let numbers = super::cast::convert(array, &DataType::Float64, false)?;
    #[expect(clippy::cast_possible_truncation, reason = "Spark's result is the nearest BIGINT, too")]
    let whole: PrimitiveArray<Int64Type> = numbers
        .as_primitive::<Float64Type>()
        .unary(|v| if mode == Mode::Ceiling { v.ceil() as i64 } else { v.floor() as i64 });
    Ok(Arc::new(whole))
}

fn returns(args: &Arguments<'_>) -> Result<DataType> {
    let digits = if args.fields.len() > 1 { args.integer(1)? } else { 0 };
    match args.ty(0)? {
        DataType::Decimal128(precision, scale) => Ok(decimal(*precision, *scale, digits)),
        ty @ (DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64) => Ok(ty.clone()),
        ty @ (DataType::Float32 | DataType::Float64) => Ok(ty.clone()),
        ty if ty.is_integer() => Ok(DataType::Int64),
        ty if ty.is_string() || *ty == DataType::Null => Ok(DataType::Float64),
        other => plan_err!(
            "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve \"{}\" due to data type mismatch: the first parameter requires the \"NUMERIC\" type, however it has the type \"{}\". SQLSTATE: 42K09",
            args.name,
            type_name(other)
        ),
    }
}

/// Rounding may need one more digit before the point (Spark's `RoundBase`).
fn decimal(precision: u8, scale: i8, digits: i64) -> DataType {
    let whole = i64::from(precision) - i64::from(scale) + 1;
    let (precision, scale) = if digits < 0 {
        (whole.max(digits.saturating_neg().saturating_add(1)), 0)
    } else {
        let scale = i64::from(scale).min(digits);
        (whole + scale, scale)
    };
    DataType::Decimal128(u8::try_from(precision.min(38)).unwrap_or(38), i8::try_from(scale).unwrap_or(0))
}

fn run(call: &Call, mode: Mode) -> Result<ArrayRef> {
    let digits = call.integer(1).unwrap_or(0).clamp(-400, 400);
    let digits = i32::try_from(digits).unwrap_or(0);
    let array = call.arg(0)?;
    match &call.return_type {
        DataType::Int8 => whole::<Int8Type>(array, digits, mode),
        DataType::Int16 => whole::<Int16Type>(array, digits, mode),
        DataType::Int32 => whole::<Int32Type>(array, digits, mode),
        DataType::Int64 => whole::<Int64Type>(&cast(array, &DataType::Int64)?, digits, mode),
        DataType::Decimal128(precision, scale) => decimals(array, *precision, *scale, digits, mode),
        DataType::Float32 => {
            let rounded = array.as_primitive::<Float32Type>();
            #[expect(clippy::cast_possible_truncation, reason = "a float's rounded digits are a float's again")]
            let rounded: PrimitiveArray<Float32Type> =
                rounded.unary(|v| round_text(&v.to_string(), f64::from(v), digits, mode) as f32);
            Ok(Arc::new(rounded))
        }
        _ => {
            let numbers = super::cast::convert(array, &DataType::Float64, false)?;
            let rounded: PrimitiveArray<Float64Type> =
                numbers.as_primitive::<Float64Type>().unary(|v| round_double(v, digits, mode));
            Ok(Arc::new(rounded))
        }
    }
}

/// `value / 10^places`, rounded.
fn divide(value: i128, places: u32, mode: Mode) -> i128 {
    let Some(divisor) = 10i128.checked_pow(places) else {
        return match mode {
            Mode::Ceiling if value > 0 => 1,
            Mode::Floor if value < 0 => -1,
            _ => 0,
        };
    };
    let (quotient, rest) = (value / divisor, value % divisor);
    let twice = rest.unsigned_abs().saturating_mul(2);
    let away = match (mode, twice.cmp(&divisor.unsigned_abs())) {
        (Mode::Ceiling, _) => rest > 0,
        (Mode::Floor, _) => rest < 0,
        (_, std::cmp::Ordering::Less) => false,
        (_, std::cmp::Ordering::Greater) => true,
        (mode, std::cmp::Ordering::Equal) => mode == Mode::HalfUp || quotient % 2 != 0,
    };
    quotient + i128::from(away) * value.signum()
}

fn whole<T: ArrowPrimitiveType>(array: &ArrayRef, digits: i32, mode: Mode) -> Result<ArrayRef>
where
    T::Native: Into<i128> + TryFrom<i128>,
{
    if digits >= 0 {
        return Ok(Arc::clone(array));
    }
    let places = digits.unsigned_abs();
    let mut builder = PrimitiveBuilder::<T>::with_capacity(array.len());
    for value in array.as_primitive::<T>() {
        let Some(value) = value else {
            builder.append_null();
            continue;
        };
        let rounded = divide(value.into(), places, mode);
        let rounded = 10i128.checked_pow(places).and_then(|p| rounded.checked_mul(p)).unwrap_or(0);
        match T::Native::try_from(rounded) {
            Ok(rounded) => builder.append_value(rounded),
            Err(_) => return exec_err!("[ARITHMETIC_OVERFLOW] Overflow. SQLSTATE: 22003"),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn decimals(array: &ArrayRef, precision: u8, scale: i8, digits: i32, mode: Mode) -> Result<ArrayRef> {
    let DataType::Decimal128(_, from) = array.data_type() else {
        return exec_err!("{} is no decimal", array.data_type());
    };
    let (from, to) = (i32::from(*from), i32::from(scale));
    let bound = 10i128.checked_pow(u32::from(precision)).unwrap_or(i128::MAX);
    let round = |value: i128| {
        let kept = digits.min(from);
        let rounded = divide(value, (from - kept).unsigned_abs(), mode);
        10i128.checked_pow((to - kept).unsigned_abs()).and_then(|p| rounded.checked_mul(p))
    };
    let mut builder = PrimitiveBuilder::<Decimal128Type>::with_capacity(array.len())
        .with_data_type(DataType::Decimal128(precision, scale));
    for value in array.as_primitive::<Decimal128Type>() {
        match value.map(round) {
            None => builder.append_null(),
            Some(Some(rounded)) if rounded.abs() < bound => builder.append_value(rounded),
            Some(_) => {
                return exec_err!(
                    "[NUMERIC_VALUE_OUT_OF_RANGE.WITH_SUGGESTION] The rounded value cannot be represented as Decimal({precision}, {scale}). SQLSTATE: 22003"
                );
            }
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn round_double(value: f64, digits: i32, mode: Mode) -> f64 {
    if !value.is_finite() || (digits >= 0 && value.fract() == 0.0) {
        return value + 0.0;
    }
    round_text(&value.to_string(), value, digits, mode)
}

/// What `BigDecimal` has no negative zero for, has none here: adding 0.0 makes -0.0 to 0.0.
fn round_text(text: &str, value: f64, digits: i32, mode: Mode) -> f64 {
    round_digits(text, value, digits, mode) + 0.0
}

/// Rounds the shortest digits that stand for a double, as Java's `BigDecimal` does: 0.285 becomes 0.29.
fn round_digits(text: &str, value: f64, digits: i32, mode: Mode) -> f64 {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    let (before, after) = text.split_once('.').unwrap_or((text, ""));
    let scale = i32::try_from(after.len()).unwrap_or(i32::MAX);
    let significant = format!("{before}{after}");
    let significant = significant.trim_start_matches('0');
    if digits >= scale {
        return value;
    }
    // Digits beyond those that i128 holds lie far below what is rounded to, but for their being there.
    let (head, dropped) = match significant.len().checked_sub(37) {
        Some(extra) if extra > 0 => (significant.get(..37).unwrap_or(significant), i32::try_from(extra).unwrap_or(0)),
        _ => (significant, 0),
    };
    let Ok(number) = head.parse::<i128>() else { return 0.0 };
    let places = scale - digits - dropped;
    let rounded = if places > 0 { divide(number, places.unsigned_abs(), mode) } else { number };
    let exponent = if places > 0 { -digits } else { dropped - scale };
    format!("{sign}{rounded}e{exponent}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_rounded_by_their_decimal_digits() {
        assert_eq!(
            [
                round_double(0.285, 2, Mode::HalfUp),
                round_double(2.5, 0, Mode::HalfUp),
                round_double(-2.5, 0, Mode::HalfUp)
            ],
            [0.29, 3.0, -3.0]
        );
        assert_eq!(
            [
                round_double(2.5, 0, Mode::HalfEven),
                round_double(3.5, 0, Mode::HalfEven),
                round_double(1250.0, -2, Mode::HalfEven)
            ],
            [2.0, 4.0, 1200.0]
        );
        assert_eq!([round_double(1e300, -299, Mode::HalfUp), round_double(1.5e-10, 3, Mode::HalfUp)], [1e300, 0.0]);
    }
}
