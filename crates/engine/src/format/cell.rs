//! One value as Spark prints it: `CAST(x AS STRING)` and the cells of `show()` (Spark's `ToStringBase`).

use std::fmt::Write as _;

use arrow::array::timezone::Tz;
use arrow::array::{Array, AsArray, MapArray, StructArray};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Decimal128Type, Decimal256Type, DurationMicrosecondType, DurationMillisecondType,
    DurationNanosecondType, DurationSecondType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType,
    Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, TimeZone, Timelike};

/// How binary values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryStyle {
    /// `[61 62]`, as `show()` does.
    Hex,
    /// The bytes as UTF-8 text, as a cast to string does.
    Utf8,
}

/// What differs between a cast to string and the cells of a table.
#[derive(Debug, Clone, Copy)]
pub struct CellStyle {
    /// What a null is written as, also inside arrays, maps and structs.
    pub null: &'static str,
    pub binary: BinaryStyle,
    /// `spark.sql.session.timeZone`.
    pub zone: Tz,
}

impl CellStyle {
    /// As `show()` writes cells.
    pub fn show(zone: Tz) -> Self {
        CellStyle { null: "NULL", binary: BinaryStyle::Hex, zone }
    }

    /// As `CAST(x AS STRING)` does.
    pub fn cast(zone: Tz) -> Self {
        CellStyle { null: "null", binary: BinaryStyle::Utf8, zone }
    }
}

/// The time zone `UTC`, which always exists.
pub fn utc() -> Tz {
    "+00:00".parse().unwrap_or_else(|_| unreachable!("+00:00 is an offset"))
}

/// Appends the value at `row` of `array`.
pub fn write_value(out: &mut String, array: &dyn Array, row: usize, style: &CellStyle) {
    if array.is_null(row) || array.data_type() == &DataType::Null {
        out.push_str(style.null);
        return;
    }
    match array.data_type() {
        DataType::Boolean => out.push_str(if array.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Utf8 => out.push_str(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => out.push_str(array.as_string::<i64>().value(row)),
        DataType::Utf8View => out.push_str(array.as_string_view().value(row)),
        DataType::Binary => write_binary(out, array.as_binary::<i32>().value(row), style.binary),
        DataType::LargeBinary => write_binary(out, array.as_binary::<i64>().value(row), style.binary),
        DataType::BinaryView => write_binary(out, array.as_binary_view().value(row), style.binary),
        DataType::FixedSizeBinary(_) => write_binary(out, array.as_fixed_size_binary().value(row), style.binary),
        DataType::Struct(_) => write_struct(out, array.as_struct(), row, style),
        DataType::List(_) => write_list(out, &array.as_list::<i32>().value(row), style),
        DataType::LargeList(_) => write_list(out, &array.as_list::<i64>().value(row), style),
        DataType::FixedSizeList(_, _) => write_list(out, &array.as_fixed_size_list().value(row), style),
        DataType::Map(_, _) => write_map(out, array.as_map(), row, style),
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let key = dictionary.normalized_keys().get(row).copied().unwrap_or_default();
            write_value(out, dictionary.values().as_ref(), key, style);
        }
        DataType::Timestamp(_, _) | DataType::Date32 | DataType::Date64 | DataType::Time64(_) => {
            write_time(out, array, row, style.zone);
        }
        DataType::Interval(_) | DataType::Duration(_) => write_interval(out, array, row),
        _ => write_number(out, array, row),
    }
}

fn write_number(out: &mut String, array: &dyn Array, row: usize) {
    // Writing to a String cannot fail.
    let _ = match array.data_type() {
        DataType::Int8 => write!(out, "{}", array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => write!(out, "{}", array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => write!(out, "{}", array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => write!(out, "{}", array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => write!(out, "{}", array.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => write!(out, "{}", array.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => write!(out, "{}", array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => write!(out, "{}", array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float16 => {
            write_float(out, array.as_primitive::<Float16Type>().value(row).to_f32());
            Ok(())
        }
        DataType::Float32 => {
            write_float(out, array.as_primitive::<Float32Type>().value(row));
            Ok(())
        }
        DataType::Float64 => {
            write_double(out, array.as_primitive::<Float64Type>().value(row));
            Ok(())
        }
        DataType::Decimal128(_, _) => {
            out.push_str(&array.as_primitive::<Decimal128Type>().value_as_string(row));
            Ok(())
        }
        DataType::Decimal256(_, _) => {
            out.push_str(&array.as_primitive::<Decimal256Type>().value_as_string(row));
            Ok(())
        }
        _ => match ArrayFormatter::try_new(array, &FormatOptions::default()) {
            Ok(formatter) => write!(out, "{}", formatter.value(row)),
            Err(_) => Ok(()),
        },
    };
}

fn write_binary(out: &mut String, bytes: &[u8], style: BinaryStyle) {
    match style {
        BinaryStyle::Utf8 => out.push_str(&String::from_utf8_lossy(bytes)),
        BinaryStyle::Hex => {
            out.push('[');
            for (i, byte) in bytes.iter().enumerate() {
                let _ = write!(out, "{}{byte:02X}", if i > 0 { " " } else { "" });
            }
            out.push(']');
        }
    }
}

fn write_struct(out: &mut String, array: &StructArray, row: usize, style: &CellStyle) {
    out.push('{');
    for (i, column) in array.columns().iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write_value(out, column.as_ref(), row, style);
    }
    out.push('}');
}

fn write_list(out: &mut String, items: &dyn Array, style: &CellStyle) {
    out.push('[');
    for i in 0..items.len() {
        if i > 0 {
            out.push_str(", ");
        }
        write_value(out, items, i, style);
    }
    out.push(']');
}

fn write_map(out: &mut String, array: &MapArray, row: usize, style: &CellStyle) {
    let entries = array.value(row);
    out.push('{');
    for i in 0..entries.len() {
        if i > 0 {
            out.push_str(", ");
        }
        write_value(out, entries.column(0).as_ref(), i, style);
        out.push_str(" -> ");
        write_value(out, entries.column(1).as_ref(), i, style);
    }
    out.push('}');
}

/// The instant at `row` in microseconds since the epoch, and whether the column has a time zone. `None` for other types.
pub fn timestamp_micros(array: &dyn Array, row: usize) -> Option<(i64, bool)> {
    let DataType::Timestamp(unit, zone) = array.data_type() else { return None };
    let micros = match unit {
        TimeUnit::Second => array.as_primitive::<TimestampSecondType>().value(row).saturating_mul(1_000_000),
        TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().value(row).saturating_mul(1_000),
        TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().value(row),
        TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().value(row).div_euclid(1_000),
    };
    Some((micros, zone.is_some()))
}

/// The wall clock that `micros` since the epoch shows in `zone`.
pub fn wall_clock(micros: i64, zone: Tz) -> Option<NaiveDateTime> {
    let utc = DateTime::from_timestamp_micros(micros)?.naive_utc();
    Some(zone.from_utc_datetime(&utc).naive_local())
}

fn write_time(out: &mut String, array: &dyn Array, row: usize, zone: Tz) {
    if let Some((micros, zoned)) = timestamp_micros(array, row) {
        let clock = if zoned {
            wall_clock(micros, zone)
        } else {
            DateTime::from_timestamp_micros(micros).map(|t| t.naive_utc())
        };
        if let Some(clock) = clock {
            write_date(out, clock.date());
            let _ = write!(out, " {:02}:{:02}:{:02}", clock.hour(), clock.minute(), clock.second());
            write_fraction(out, i64::from(clock.nanosecond() / 1_000));
        } else {
            let fraction = write_far_clock(out, micros, ' ');
            write_fraction(out, fraction);
        }
        return;
    }
    match array.data_type() {
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>().value(row);
            match NaiveDate::from_num_days_from_ce_opt(days.saturating_add(719_163)) {
                Some(date) => write_date(out, date),
                None => write_far_date(out, i64::from(days)),
            }
        }
        DataType::Date64 => {
            let millis = array.as_primitive::<Date64Type>().value(row);
            match DateTime::from_timestamp_millis(millis) {
                Some(time) => write_date(out, time.date_naive()),
                None => write_far_date(out, millis.div_euclid(86_400_000)),
            }
        }
        DataType::Time64(unit) => {
            let micros = match unit {
                TimeUnit::Nanosecond => array.as_primitive::<Time64NanosecondType>().value(row) / 1_000,
                _ => array.as_primitive::<Time64MicrosecondType>().value(row),
            };
            let seconds = micros / 1_000_000;
            let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
            write_fraction(out, micros % 1_000_000);
        }
        _ => {}
    }
}

/// `yyyy-MM-dd`; years outside 0..=9999 carry a sign, as in `java.time`.
pub fn write_date(out: &mut String, date: NaiveDate) {
    let year = date.year();
    let sign = if year > 9_999 {
        "+"
    } else if year < 0 {
        "-"
    } else {
        ""
    };
    let _ = write!(out, "{sign}{:04}-{:02}-{:02}", year.unsigned_abs(), date.month(), date.day());
}

/// As [`write_date`], for days since 1970-01-01 in years that `chrono` does not have (Hinnant's `civil_from_days`).
fn write_far_date(out: &mut String, days: i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let _ = write!(out, "{}{:04}-{month:02}-{day:02}", if year < 0 { '-' } else { '+' }, year.unsigned_abs());
}

/// Date and time of a timestamp in years that `chrono` does not have, in UTC; returns the microseconds behind them.
pub(super) fn write_far_clock(out: &mut String, micros: i64, between: char) -> i64 {
    let seconds = micros.div_euclid(1_000_000);
    let of_day = seconds.rem_euclid(86_400);
    write_far_date(out, seconds.div_euclid(86_400));
    let _ = write!(out, "{between}{:02}:{:02}:{:02}", of_day / 3_600, of_day / 60 % 60, of_day % 60);
    micros.rem_euclid(1_000_000)
}

/// `.ffffff` without trailing zeros; nothing for 0.
fn write_fraction(out: &mut String, micros: i64) {
    if micros != 0 {
        let digits = format!("{micros:06}");
        out.push('.');
        out.push_str(digits.trim_end_matches('0'));
    }
}

fn write_interval(out: &mut String, array: &dyn Array, row: usize) {
    let micros = match array.data_type() {
        // What the days between two dates are.
        DataType::Duration(TimeUnit::Second) => {
            let days = array.as_primitive::<DurationSecondType>().value(row) / 86_400;
            let _ = write!(out, "INTERVAL '{days}' DAY");
            return;
        }
        DataType::Duration(TimeUnit::Millisecond) => {
            array.as_primitive::<DurationMillisecondType>().value(row).saturating_mul(1_000)
        }
        DataType::Duration(TimeUnit::Microsecond) => array.as_primitive::<DurationMicrosecondType>().value(row),
        DataType::Duration(TimeUnit::Nanosecond) => array.as_primitive::<DurationNanosecondType>().value(row) / 1_000,
        DataType::Interval(IntervalUnit::DayTime) => {
            let value = array.as_primitive::<IntervalDayTimeType>().value(row);
            i64::from(value.days) * 86_400_000_000 + i64::from(value.milliseconds) * 1_000
        }
        DataType::Interval(IntervalUnit::YearMonth) => {
            let months = array.as_primitive::<IntervalYearMonthType>().value(row);
            let sign = if months < 0 { "-" } else { "" };
            let months = months.unsigned_abs();
            let _ = write!(out, "INTERVAL '{sign}{}-{}' YEAR TO MONTH", months / 12, months % 12);
            return;
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let value = array.as_primitive::<IntervalMonthDayNanoType>().value(row);
            write_calendar_interval(out, value.months, value.days, value.nanoseconds / 1_000);
            return;
        }
        _ => return,
    };
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    let seconds = micros / 1_000_000;
    let _ = write!(
        out,
        "INTERVAL '{sign}{} {:02}:{:02}:{:02}",
        seconds / 86_400,
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60
    );
    write_fraction(out, i64::try_from(micros % 1_000_000).unwrap_or_default());
    out.push_str("' DAY TO SECOND");
}

/// Spark's `CalendarInterval.toString`: `1 years 2 months 3 days 4 hours 5 minutes 6.5 seconds`.
fn write_calendar_interval(out: &mut String, months: i32, days: i32, micros: i64) {
    let start = out.len();
    let units = [
        (i64::from(months / 12), "years"),
        (i64::from(months % 12), "months"),
        (i64::from(days), "days"),
        (micros / 3_600_000_000, "hours"),
        (micros / 60_000_000 % 60, "minutes"),
    ];
    for (count, unit) in units {
        if count != 0 {
            let _ = write!(out, "{count} {unit} ");
        }
    }
    let rest = micros % 60_000_000;
    if rest != 0 {
        let sign = if rest < 0 { "-" } else { "" };
        let _ = write!(out, "{sign}{}", rest.unsigned_abs() / 1_000_000);
        write_fraction(out, (rest % 1_000_000).abs());
        out.push_str(" seconds ");
    }
    if out.len() == start {
        out.push_str("0 seconds");
    } else {
        out.pop();
    }
}

/// As Java's `Double.toString`: `1.0`, `1.0E10`, `1.0E-5`, `NaN`, `Infinity`.
pub fn write_double(out: &mut String, value: f64) {
    if write_special(out, value) {
        return;
    }
    let mut text = format!("{value:e}");
    if !text.contains('.') {
        // Java considers at least two digits and takes the closest of them: Double.MIN_VALUE is 4.9E-324, not 5E-324.
        let two = format!("{value:.1e}");
        if two.parse::<f64>() == Ok(value) {
            text = two;
        }
    }
    write_java_digits(out, &text, (1e-3..1e7).contains(&value.abs()));
}

/// As Java's `Float.toString`.
pub fn write_float(out: &mut String, value: f32) {
    if write_special(out, f64::from(value)) {
        return;
    }
    let mut text = format!("{value:e}");
    if !text.contains('.') {
        let two = format!("{value:.1e}");
        if two.parse::<f32>() == Ok(value) {
            text = two;
        }
    }
    write_java_digits(out, &text, (1e-3..1e7).contains(&value.abs()));
}

fn write_special(out: &mut String, value: f64) -> bool {
    let text = if value.is_nan() {
        "NaN"
    } else if value == f64::INFINITY {
        "Infinity"
    } else if value == f64::NEG_INFINITY {
        "-Infinity"
    } else if value == 0.0 {
        if value.is_sign_negative() { "-0.0" } else { "0.0" }
    } else {
        return false;
    };
    out.push_str(text);
    true
}

/// Turns Rust's shortest scientific digits (`-1.25e-7`) into Java's form.
fn write_java_digits(out: &mut String, scientific: &str, plain: bool) {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    if !plain {
        out.push_str(mantissa);
        if !mantissa.contains('.') {
            out.push_str(".0");
        }
        out.push('E');
        out.push_str(exponent);
        return;
    }
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    let digits = match digits.trim_end_matches('0') {
        "" => "0",
        trimmed => trimmed,
    };
    out.push_str(sign);
    if exponent < 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', usize::try_from(-exponent - 1).unwrap_or_default()));
        out.push_str(digits);
        return;
    }
    let whole = usize::try_from(exponent).unwrap_or_default() + 1;
    if digits.len() <= whole {
        out.push_str(digits);
        out.extend(std::iter::repeat_n('0', whole - digits.len()));
        out.push_str(".0");
    } else {
        let (before, after) = digits.split_at(whole);
        out.push_str(before);
        out.push('.');
        out.push_str(after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_look_as_java_prints_them() {
        // Printed by java.lang.Double.toString.
        for (value, text) in [
            (1.0, "1.0"),
            (1.5, "1.5"),
            (100.0, "100.0"),
            (-0.0, "-0.0"),
            (1e10, "1.0E10"),
            (1e21, "1.0E21"),
            (9_999_999.0, "9999999.0"),
            (1e7, "1.0E7"),
            (12_345_678.9, "1.23456789E7"),
            (123_456_789.125, "1.23456789125E8"),
            (1e-3, "0.001"),
            (2e-3, "0.002"),
            (1e-5, "1.0E-5"),
            (-1.25e-7, "-1.25E-7"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::from_bits(1), "4.9E-324"),
            (f64::MAX, "1.7976931348623157E308"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            let mut out = String::new();
            write_double(&mut out, value);
            assert_eq!(out, text);
        }
        let mut out = String::new();
        write_float(&mut out, f32::MAX);
        assert_eq!(out, "3.4028235E38");
    }
}
