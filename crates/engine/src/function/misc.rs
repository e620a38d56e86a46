//! `typeof`, `months_between`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Builder, StringArray};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use chrono::{DateTime, Datelike};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::ScalarUDF;

use super::cast::convert;
use super::ddl::{catalog_name, timestamp};
use super::udf::{Call, Function};

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function {
            name: "typeof",
            aliases: &[],
            arity: (1, 1),
            coerce: None,
            returns: |_| Ok(DataType::Utf8),
            run: type_of,
        }
        .udf(),
        Function {
            name: "months_between",
            aliases: &[],
            arity: (2, 3),
            coerce: None,
            returns: |_| Ok(DataType::Float64),
            run: months_between,
        }
        .udf(),
    ]
}

fn type_of(call: &Call) -> Result<ArrayRef> {
    let argument = call.arg(0)?;
    let name = catalog_name(argument.data_type());
    Ok(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(name, argument.len()))))
}

const DAY_MICROS: i64 = 86_400_000_000;

/// Whole months where both days of the month are the same or the last ones, else months of 31 days.
fn months_between(call: &Call) -> Result<ArrayRef> {
    let (left, right) = (convert(call.arg(0)?, &timestamp(), false)?, convert(call.arg(1)?, &timestamp(), false)?);
    let round_off: Option<BooleanArray> = match call.args.get(2).map(|flag| flag.as_boolean_opt()) {
        Some(Some(flag)) => Some(flag.clone()),
        Some(None) => {
            return plan_err!("[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] roundOff of months_between is a BOOLEAN");
        }
        None => None,
    };
    let (left, right) =
        (left.as_primitive::<TimestampMicrosecondType>(), right.as_primitive::<TimestampMicrosecondType>());
    let mut builder = Float64Builder::with_capacity(left.len());
    for row in 0..left.len() {
        let round = round_off.as_ref().is_none_or(|r| r.is_valid(row) && r.value(row));
        if left.is_null(row) || right.is_null(row) || round_off.as_ref().is_some_and(|r| r.is_null(row)) {
            builder.append_null();
        } else {
            builder.append_option(months(left.value(row), right.value(row), round));
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn months(left: i64, right: i64, round: bool) -> Option<f64> {
    let (a, b) =
        (DateTime::from_timestamp_micros(left)?.naive_utc(), DateTime::from_timestamp_micros(right)?.naive_utc());
    let month = |t: &chrono::NaiveDateTime| i64::from(t.year()) * 12 + i64::from(t.month());
    let last = |t: &chrono::NaiveDateTime| t.date().succ_opt().is_none_or(|next| next.month() != t.month());
    let whole = (month(&a) - month(&b)) as f64;
    if a.day() == b.day() || (last(&a) && last(&b)) {
        return Some(whole);
    }
    let of_day = |micros: i64| micros.rem_euclid(DAY_MICROS) / 1_000_000;
    let seconds = (i64::from(a.day()) - i64::from(b.day())) * 86_400 + of_day(left) - of_day(right);
    let months = whole + seconds as f64 / (31.0 * 86_400.0);
    Some(if round { (months * 1e8).round() / 1e8 } else { months })
}
