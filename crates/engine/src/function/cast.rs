//! `CAST` and `TRY_CAST` with Spark's rules (ANSI on): what cannot be converted is an error, or null for `TRY_CAST`.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray, StringBuilder, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ScalarUDF;

use super::ddl::{parse_type, timestamp, type_name};
use super::time;
use super::udf::{Arguments, Call, Function};
use crate::format::cell::{CellStyle, utc, write_value};

/// `__cast(value, 'type')`.
pub(crate) fn cast() -> Arc<ScalarUDF> {
    Function { name: "__cast", aliases: &[], arity: (2, 2), coerce: None, returns: cast_type, run: |c| run(c, false) }
        .udf()
}

/// `__try_cast(value, 'type')`.
pub(crate) fn try_cast() -> Arc<ScalarUDF> {
    Function {
        name: "__try_cast",
        aliases: &[],
        arity: (2, 2),
        coerce: None,
        returns: cast_type,
        run: |c| run(c, true),
    }
    .udf()
}

fn cast_type(args: &Arguments<'_>) -> Result<DataType> {
    let target = args.text(1)?;
    let ty = match parse_type(&target) {
        Ok(ty) => ty,
        Err(_) => {
            return exec_err!("[UNSUPPORTED_DATATYPE] Unsupported data type \"{}\".", target.to_uppercase());
        }
    };
    let from = args.ty(0)?;
    let impossible = matches!(
        (from, &ty),
        (DataType::List(_) | DataType::Struct(_) | DataType::Map(_, _), to) if !to.is_nested() && *to != DataType::Utf8
    ) || matches!((from, &ty), (from, to) if to.is_nested() && !from.is_nested() && *from != DataType::Null);
    if impossible {
        return exec_err!(
            "[DATATYPE_MISMATCH.CAST_WITHOUT_SUGGESTION] cannot cast \"{}\" to \"{}\".",
            type_name(from),
            type_name(&ty)
        );
    }
    Ok(ty)
}

fn run(call: &Call, lenient: bool) -> Result<ArrayRef> {
    convert(call.arg(0)?, &call.return_type, lenient)
}

/// Casts `array` to `to`; what cannot be converted is null when `lenient`, else an error.
pub(crate) fn convert(array: &ArrayRef, to: &DataType, lenient: bool) -> Result<ArrayRef> {
    let from = array.data_type();
    if from == to {
        return Ok(Arc::clone(array));
    }
    if *from == DataType::Null {
        return Ok(new_null_array(to, array.len()));
    }
    let result = match (from, to) {
        (_, DataType::Utf8) => to_text(array)?,
        (DataType::Utf8, DataType::Timestamp(_, _) | DataType::Date32) => text_to_time(array.as_string(), to),
        (DataType::Utf8View | DataType::LargeUtf8, _) => {
            let text = arrow::compute::cast(array, &DataType::Utf8)?;
            return convert(&text, to, lenient);
        }
        (DataType::Utf8, _) => {
            let trimmed: StringArray = array.as_string::<i32>().iter().map(|s| s.map(str::trim)).collect();
            safe(&(Arc::new(trimmed) as ArrayRef), to)?
        }
        (from, DataType::Timestamp(_, _)) if from.is_numeric() => {
            arrow::compute::cast(&number_to_time(array)?.with_timezone("UTC"), to)?
        }
        (DataType::Timestamp(_, _), to) if to.is_numeric() => {
            let micros = arrow::compute::cast(array, &timestamp())?;
            let micros = micros.as_primitive::<TimestampMicrosecondType>();
            if to.is_integer() {
                let seconds: Int64Array = micros.unary(|t| t.div_euclid(1_000_000));
                safe(&(Arc::new(seconds) as ArrayRef), to)?
            } else {
                let seconds: Float64Array = micros.unary(|t| t as f64 / 1e6);
                safe(&(Arc::new(seconds) as ArrayRef), to)?
            }
        }
        _ => safe(array, to)?,
    };
    if !lenient && result.null_count() > array.null_count() {
        return first_failure(array, &result, to);
    }
    Ok(result)
}

fn safe(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    Ok(cast_with_options(array, to, &CastOptions { safe: true, ..CastOptions::default() })?)
}

fn first_failure(array: &ArrayRef, result: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let row = (0..array.len()).find(|i| array.is_valid(*i) && result.is_null(*i)).unwrap_or(0);
    let mut value = String::new();
    write_value(&mut value, array.as_ref(), row, &CellStyle::cast(utc()));
    let (from, to) = (type_name(array.data_type()), type_name(to));
    let finite = !["NaN", "Infinity", "-Infinity"].contains(&value.as_str());
    if array.data_type().is_numeric() && finite {
        return exec_err!(
            "[CAST_OVERFLOW] The value {value} of the type \"{from}\" cannot be cast to \"{to}\" due to an overflow. Use `try_cast` to tolerate overflow and return NULL instead. SQLSTATE: 22003"
        );
    }
    exec_err!(
        "[CAST_INVALID_INPUT] The value '{value}' of the type \"{from}\" cannot be cast to \"{to}\" because it is malformed. Correct the value as per the syntax, or change its target type. Use `try_cast` to tolerate malformed input and return NULL instead. SQLSTATE: 22018"
    )
}

/// `CAST(x AS STRING)`; binary values are taken as UTF-8, without a copy when they are valid.
fn to_text(array: &ArrayRef) -> Result<ArrayRef> {
    match array.data_type() {
        DataType::Binary => {
            let binary = array.as_binary::<i32>();
            if let Ok(text) = StringArray::try_from_binary(binary.clone()) {
                return Ok(Arc::new(text));
            }
            let text: StringArray = binary.iter().map(|b| b.map(String::from_utf8_lossy)).collect();
            Ok(Arc::new(text))
        }
        DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => Ok(arrow::compute::cast(array, &DataType::Utf8)?),
        _ => {
            let style = CellStyle::cast(utc());
            let mut builder = StringBuilder::with_capacity(array.len(), array.len() * 8);
            let mut cell = String::new();
            for row in 0..array.len() {
                if array.is_null(row) {
                    builder.append_null();
                    continue;
                }
                cell.clear();
                write_value(&mut cell, array.as_ref(), row, &style);
                builder.append_value(&cell);
            }
            Ok(Arc::new(builder.finish()))
        }
    }
}

fn text_to_time(text: &StringArray, to: &DataType) -> ArrayRef {
    match to {
        DataType::Date32 => {
            let days: arrow::array::PrimitiveArray<Date32Type> =
                text.iter().map(|s| s.and_then(|s| time::parse_date(s.as_bytes()))).collect();
            Arc::new(days)
        }
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) => {
            let micros: TimestampMicrosecondArray =
                text.iter().map(|s| s.and_then(|s| time::parse_timestamp(s.trim().as_bytes()))).collect();
            Arc::new(micros.with_timezone(Arc::clone(zone)))
        }
        _ => {
            let micros: TimestampMicrosecondArray =
                text.iter().map(|s| s.and_then(|s| time::parse_wall_clock(s.trim().as_bytes()))).collect();
            Arc::new(micros)
        }
    }
}

/// Seconds as microseconds with Spark's rules: whole numbers end at the ends of the range, decimals wrap around, and other
/// numbers that are out of it have no time.
fn number_to_time(array: &ArrayRef) -> Result<TimestampMicrosecondArray> {
    if let DataType::Decimal128(_, scale) = array.data_type() {
        let scale = i32::from(*scale);
        let factor = 10i128.wrapping_pow((scale - 6).unsigned_abs());
        let micros = |v: i128| if scale > 6 { v / factor } else { v.wrapping_mul(factor) };
        return Ok(array.as_primitive::<Decimal128Type>().unary(|v| micros(v) as i64));
    }
    if array.data_type().is_integer() {
        let seconds = safe(array, &DataType::Int64)?;
        return Ok(seconds.as_primitive::<Int64Type>().unary(|s| s.saturating_mul(1_000_000)));
    }
    let seconds = safe(array, &DataType::Float64)?;
    // As a double, the greatest i64 is one more than it is.
    let fits = |micros: &f64| (i64::MIN as f64..=i64::MAX as f64).contains(micros);
    Ok(seconds.as_primitive::<Float64Type>().unary_opt(|s| Some(s * 1e6).filter(fits).map(|micros| micros as i64)))
}
