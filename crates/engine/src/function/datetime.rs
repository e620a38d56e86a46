//! Functions between times and texts or numbers.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Float64Array, Int64Array, StringBuilder, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Date32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use chrono::DateTime;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ScalarUDF;

use super::cast::convert;
use super::ddl::timestamp;
use super::time::{chrono_pattern, parse_with_format};
use super::udf::{Arguments, Call, Function};

fn returns_timestamp(_: &Arguments<'_>) -> Result<DataType> {
    Ok(timestamp())
}

fn returns_long(_: &Arguments<'_>) -> Result<DataType> {
    Ok(DataType::Int64)
}

fn returns_text(_: &Arguments<'_>) -> Result<DataType> {
    Ok(DataType::Utf8)
}

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function = |name, arity, returns, run| Function { name, aliases: &[], arity, coerce: None, returns, run }.udf();
    vec![
        function("to_timestamp", (1, 2), returns_timestamp, |c| to_timestamp(c, false)),
        function("try_to_timestamp", (1, 2), returns_timestamp, |c| to_timestamp(c, true)),
        function("to_date", (1, 2), |_| Ok(DataType::Date32), to_date),
        function("date_format", (2, 2), returns_text, date_format),
        function("timestamp_seconds", (1, 1), returns_timestamp, timestamp_seconds),
        function("timestamp_millis", (1, 1), returns_timestamp, |c| timestamp_of(c.arg(0)?, 1_000)),
        function("timestamp_micros", (1, 1), returns_timestamp, |c| timestamp_of(c.arg(0)?, 1)),
        function("unix_seconds", (1, 1), returns_long, |c| unix(c.arg(0)?, 1_000_000)),
        function("unix_millis", (1, 1), returns_long, |c| unix(c.arg(0)?, 1_000)),
        function("unix_micros", (1, 1), returns_long, |c| unix(c.arg(0)?, 1)),
        function("unix_timestamp", (1, 2), returns_long, |c| unix(&to_timestamp(c, false)?, 1_000_000)),
        function("date_add", (2, 2), |_| Ok(DataType::Date32), |c| shift_days(c, 1)),
        function("date_sub", (2, 2), |_| Ok(DataType::Date32), |c| shift_days(c, -1)),
        function("from_unixtime", (1, 2), returns_text, from_unixtime),
    ]
}

fn cast_up(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    Ok(cast(array, to)?)
}

fn shift_days(call: &Call, sign: i32) -> Result<ArrayRef> {
    let dates = convert(call.arg(0)?, &DataType::Date32, false)?;
    let days = cast(call.arg(1)?, &DataType::Int32)?;
    let shifted: Date32Array =
        arrow::compute::binary(dates.as_primitive::<Date32Type>(), days.as_primitive::<Int32Type>(), |date, days| {
            date.saturating_add(days.saturating_mul(sign))
        })?;
    Ok(Arc::new(shifted))
}

fn pattern(call: &Call, index: usize) -> Result<Option<String>> {
    if call.args.len() <= index {
        return Ok(None);
    }
    let Some(text) = call.text(index) else {
        return exec_err!("[DATATYPE_MISMATCH.NON_FOLDABLE_INPUT] the datetime pattern must be a constant");
    };
    match chrono_pattern(&text) {
        Some(pattern) => Ok(Some(pattern)),
        None => exec_err!("[INVALID_DATETIME_PATTERN.WITH_SUGGESTION] Unrecognized datetime pattern: {text}."),
    }
}

/// A text in Spark's forms, or in a given pattern, as a timestamp.
fn to_timestamp(call: &Call, lenient: bool) -> Result<ArrayRef> {
    let array = call.arg(0)?;
    let (Some(format), DataType::Utf8) = (pattern(call, 1)?, array.data_type()) else {
        return convert(array, &timestamp(), lenient);
    };
    let mut micros = Vec::with_capacity(array.len());
    for text in array.as_string::<i32>() {
        let parsed = text.and_then(|t| parse_with_format(t.as_bytes(), &format));
        if let (Some(text), None, false) = (text, parsed, lenient) {
            return exec_err!(
                "[CANNOT_PARSE_TIMESTAMP] Text '{text}' could not be parsed. Use `try_to_timestamp` to tolerate invalid input string and return NULL instead. SQLSTATE: 22007"
            );
        }
        micros.push(parsed);
    }
    Ok(Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")))
}

fn to_date(call: &Call) -> Result<ArrayRef> {
    if call.args.len() == 1 {
        return convert(call.arg(0)?, &DataType::Date32, false);
    }
    cast_up(&to_timestamp(call, false)?, &DataType::Date32)
}

fn micros_of(array: &ArrayRef) -> Result<TimestampMicrosecondArray> {
    Ok(convert(array, &timestamp(), false)?.as_primitive::<TimestampMicrosecondType>().clone())
}

fn format_times(times: &TimestampMicrosecondArray, format: &str) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(times.len(), times.len() * 20);
    for time in times {
        match time.and_then(DateTime::from_timestamp_micros) {
            Some(time) => builder.append_value(time.format(format).to_string()),
            None => builder.append_null(),
        }
    }
    Arc::new(builder.finish())
}

fn date_format(call: &Call) -> Result<ArrayRef> {
    let format = pattern(call, 1)?.unwrap_or_default();
    Ok(format_times(&micros_of(call.arg(0)?)?, &format))
}

fn from_unixtime(call: &Call) -> Result<ArrayRef> {
    let format = pattern(call, 1)?.unwrap_or_else(|| "%Y-%m-%d %H:%M:%S".to_owned());
    let seconds = cast(call.arg(0)?, &DataType::Int64)?;
    let micros = timestamp_of(&seconds, 1_000_000)?;
    Ok(format_times(micros.as_primitive(), &format))
}

fn timestamp_of(array: &ArrayRef, unit: i64) -> Result<ArrayRef> {
    let values = cast(array, &DataType::Int64)?;
    let values = values.as_primitive::<Int64Type>();
    let micros: TimestampMicrosecondArray = values.try_unary::<_, TimestampMicrosecondType, _>(|v| {
        v.checked_mul(unit).ok_or_else(|| {
            arrow::error::ArrowError::ArithmeticOverflow("[ARITHMETIC_OVERFLOW] long overflow".to_owned())
        })
    })?;
    Ok(Arc::new(micros.with_timezone("UTC")))
}

fn timestamp_seconds(call: &Call) -> Result<ArrayRef> {
    let array = call.arg(0)?;
    if array.data_type().is_integer() {
        return timestamp_of(array, 1_000_000);
    }
    let seconds: Float64Array = cast(array, &DataType::Float64)?.as_primitive::<Float64Type>().clone();
    let micros: TimestampMicrosecondArray = seconds.unary(|s| (s * 1e6).round() as i64);
    Ok(Arc::new(micros.with_timezone("UTC")))
}

fn unix(array: &ArrayRef, unit: i64) -> Result<ArrayRef> {
    if array.data_type() == &DataType::Date32 {
        let days = array.as_primitive::<Date32Type>();
        let result: Int64Array = days.unary(|d| i64::from(d) * (86_400_000_000 / unit));
        return Ok(Arc::new(result));
    }
    let result: Int64Array = micros_of(array)?.unary(|t| t.div_euclid(unit));
    Ok(Arc::new(result))
}
