//! Parts of dates, times and intervals (`date_part`, `extract`, `year` and its like), and the days between dates.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, DurationSecondArray, Int32Array};
use arrow::compute::{DatePart, date_part};
use arrow::datatypes::{DataType, Date32Type, Int32Type, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::ScalarUDF;

use super::cast::convert;
use super::ddl::{timestamp, type_name};
use super::udf::{Arguments, Call, Function};

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function =
        |name, returns, run| Function { name, aliases: &[], arity: (2, 2), coerce: None, returns, run }.udf();
    vec![
        function("date_part", part_type, part),
        function("__date_field", |_| Ok(DataType::Int32), field),
        days_between(),
    ]
}

/// `date - date`: an interval of days.
pub(crate) fn days_between() -> Arc<ScalarUDF> {
    let returns = |_: &Arguments<'_>| Ok(DataType::Duration(TimeUnit::Second));
    Function { name: "__days_between", aliases: &[], arity: (2, 2), coerce: None, returns, run: count_days }.udf()
}

/// An interval of days is a duration of whole seconds.
const DAY_SECONDS: i64 = 86_400;

/// What is taken out of a time, and what is added to Arrow's count of it.
enum Part {
    Whole(DatePart, i32),
    /// Seconds with their fraction.
    Seconds,
}

fn parse(name: &str) -> Option<Part> {
    let whole = |part| Some(Part::Whole(part, 0));
    match name.to_ascii_lowercase().as_str() {
        "year" | "y" | "years" | "yr" | "yrs" => whole(DatePart::Year),
        "yearofweek" => whole(DatePart::YearISO),
        "quarter" | "qtr" => whole(DatePart::Quarter),
        "month" | "mon" | "mons" | "months" => whole(DatePart::Month),
        "week" | "w" | "weeks" => whole(DatePart::WeekISO),
        "day" | "d" | "days" => whole(DatePart::Day),
        "dayofweek" | "dow" => Some(Part::Whole(DatePart::DayOfWeekSunday0, 1)),
        "dayofweek_iso" | "dow_iso" => Some(Part::Whole(DatePart::DayOfWeekMonday0, 1)),
        "doy" => whole(DatePart::DayOfYear),
        "hour" | "h" | "hours" | "hr" | "hrs" => whole(DatePart::Hour),
        "minute" | "m" | "min" | "mins" | "minutes" => whole(DatePart::Minute),
        "second" | "s" | "sec" | "seconds" | "secs" => Some(Part::Seconds),
        _ => None,
    }
}

fn unknown<T>(name: &str, ty: &DataType) -> Result<T> {
    plan_err!(
        "[INVALID_EXTRACT_FIELD] Cannot extract `{name}` from a value of the type \"{}\". SQLSTATE: 42601",
        type_name(ty)
    )
}

fn part_type(args: &Arguments<'_>) -> Result<DataType> {
    let name = args.text(0)?;
    match parse(&name) {
        Some(Part::Seconds) => Ok(DataType::Decimal128(8, 6)),
        Some(Part::Whole(..)) => Ok(DataType::Int32),
        None => unknown(&name, args.ty(1)?),
    }
}

fn part(call: &Call) -> Result<ArrayRef> {
    extract(call, true)
}

/// `second` without its fraction.
fn field(call: &Call) -> Result<ArrayRef> {
    extract(call, false)
}

fn extract(call: &Call, fraction: bool) -> Result<ArrayRef> {
    let (name, array) = (call.text(0).unwrap_or_default(), call.arg(1)?);
    let time = match array.data_type() {
        ty if ty.is_string() || *ty == DataType::Null => convert(array, &timestamp(), false)?,
        _ => Arc::clone(array),
    };
    match parse(&name) {
        Some(Part::Seconds) if fraction => seconds(&time),
        Some(Part::Seconds) => Ok(date_part(&time, DatePart::Second)?),
        Some(Part::Whole(part, 0)) => Ok(date_part(&time, part)?),
        Some(Part::Whole(part, more)) => {
            let counted: Int32Array = date_part(&time, part)?.as_primitive::<Int32Type>().unary(|n| n + more);
            Ok(Arc::new(counted))
        }
        None => unknown(&name, array.data_type()),
    }
}

fn seconds(time: &ArrayRef) -> Result<ArrayRef> {
    let micros: Vec<Option<i128>> = match time.data_type() {
        DataType::Timestamp(_, _) | DataType::Date32 => {
            let times = convert(time, &timestamp(), false)?;
            let times = times.as_primitive::<TimestampMicrosecondType>();
            times.iter().map(|t| t.map(|t| i128::from(t.rem_euclid(60_000_000)))).collect()
        }
        _ => {
            let (whole, micros) = (date_part(time, DatePart::Second)?, date_part(time, DatePart::Microsecond)?);
            let (whole, micros) = (whole.as_primitive::<Int32Type>(), micros.as_primitive::<Int32Type>());
            let both = whole.iter().zip(micros);
            both.map(|(s, m)| Some(i128::from(s?) * 1_000_000 + i128::from(m?) % 1_000_000)).collect()
        }
    };
    Ok(Arc::new(Decimal128Array::from(micros).with_data_type(DataType::Decimal128(8, 6))))
}

fn count_days(call: &Call) -> Result<ArrayRef> {
    let date = |index| convert(call.arg(index)?, &DataType::Date32, false);
    let (left, right) = (date(0)?, date(1)?);
    let days: DurationSecondArray =
        arrow::compute::binary(left.as_primitive::<Date32Type>(), right.as_primitive::<Date32Type>(), |a, b| {
            (i64::from(a) - i64::from(b)) * DAY_SECONDS
        })?;
    Ok(Arc::new(days))
}
