//! Number literals: Spark's types (`1` is an INT, `2147483648` a BIGINT, `1.5` a DECIMAL(2,1), `1e3` a DOUBLE) and
//! suffixes (`L`, `S`, `Y`, `D`, `F`, `BD`).
//!
//! DataFusion's planner would make every whole literal a BIGINT. A literal therefore travels to it as an array of one
//! text, which Spark's SQL does not have, and [`value`] is what the planner's hook makes of it. The flag of
//! `sqlparser`'s numbers marks those that stay as they are: ordinals, limits, bounds of frames.

use arrow::datatypes::{Decimal128Type, DecimalType};
use datafusion::common::ScalarValue;
use sqlparser::ast::{Array, Expr, Value};

use super::error::SqlError;

/// The expression that carries a number literal through the planner.
pub(crate) fn carry(text: &str) -> Expr {
    let text = Expr::Value(Value::SingleQuotedString(text.to_owned()).into());
    Expr::Array(Array { elem: vec![text], named: false })
}

/// The text of a carried literal.
pub(crate) fn text_of(expr: &Expr) -> Option<&str> {
    let Expr::Array(array) = expr else { return None };
    match array.elem.as_slice() {
        [Expr::Value(value)] => match &value.value {
            Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Keeps a number of the syntax, such as an ordinal, from becoming a literal of Spark's types.
pub(crate) fn keep(expr: &mut Expr) {
    if let Expr::Value(value) = expr
        && let Value::Number(text, kept) = &mut value.value
    {
        *kept = true;
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len();
        text.truncate(digits);
    }
}

/// Undoes [`keep`], for what reads numbers without the flag only.
pub(crate) fn plain(expr: &mut Expr) {
    if let Expr::Value(value) = expr
        && let Value::Number(_, kept) = &mut value.value
    {
        *kept = false;
    }
}

/// Digits and suffix.
fn split(text: &str) -> (&str, String) {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text.get(digits.len()..).unwrap_or_default().to_ascii_uppercase();
    (digits, suffix)
}

/// The value of a literal, as Spark types it.
pub(crate) fn value(text: &str) -> Result<ScalarValue, SqlError> {
    let (digits, suffix) = split(text);
    let double = || digits.parse::<f64>().map_err(|_| SqlError::parse(format!("{text} is no number.")));
    match suffix.as_str() {
        "Y" => whole(digits, "tinyint", i8::MIN, i8::MAX, |v| ScalarValue::Int8(Some(v))),
        "S" => whole(digits, "smallint", i16::MIN, i16::MAX, |v| ScalarValue::Int16(Some(v))),
        "L" => whole(digits, "bigint", i64::MIN, i64::MAX, |v| ScalarValue::Int64(Some(v))),
        "D" => Ok(ScalarValue::Float64(Some(double()?))),
        #[expect(clippy::cast_possible_truncation, reason = "F asks for a single-precision number")]
        "F" => Ok(ScalarValue::Float32(Some(double()? as f32))),
        "BD" => decimal(digits),
        "" if digits.contains(['e', 'E']) => Ok(ScalarValue::Float64(Some(double()?))),
        "" => match (digits.parse::<i32>(), digits.parse::<i64>()) {
            (Ok(v), _) => Ok(ScalarValue::Int32(Some(v))),
            (_, Ok(v)) => Ok(ScalarValue::Int64(Some(v))),
            _ => decimal(digits),
        },
        _ => Err(SqlError::parse(format!("{text} is no number."))),
    }
}

fn whole<N: std::str::FromStr + std::fmt::Display>(
    digits: &str,
    ty: &str,
    least: N,
    most: N,
    make: impl Fn(N) -> ScalarValue,
) -> Result<ScalarValue, SqlError> {
    digits.parse().map(make).map_err(|_| {
        SqlError::new(
            "INVALID_NUMERIC_LITERAL_RANGE",
            format!(
                "Numeric literal {digits} is outside the valid range for {ty} with minimum value of {least} and maximum value of {most}. Please adjust the value accordingly. SQLSTATE: 22003"
            ),
        )
    })
}

fn decimal(text: &str) -> Result<ScalarValue, SqlError> {
    let wrong = || SqlError::parse(format!("{text} is no number."));
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().map_err(|_| wrong())?),
        None => (text, 0),
    };
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, mantissa),
    };
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = format!("{before}{after}").trim_start_matches('0').to_owned();
    let mut scale = i64::try_from(after.len()).unwrap_or(i64::MAX).saturating_sub(exponent);
    while scale < 0 && digits.len() <= 38 {
        digits.push('0');
        scale += 1;
    }
    let precision = i64::try_from(digits.len()).unwrap_or(i64::MAX).max(scale).max(1);
    let value = if digits.is_empty() { Ok(0) } else { digits.parse::<i128>() };
    match (value, u8::try_from(precision), i8::try_from(scale)) {
        (Ok(value), Ok(precision @ ..=38), Ok(scale)) => {
            Ok(ScalarValue::Decimal128(Some(sign * value), precision, scale))
        }
        _ => Err(SqlError::new(
            "DECIMAL_PRECISION_EXCEEDS_MAX_PRECISION",
            format!("Decimal precision {precision} exceeds max precision 38. SQLSTATE: 22003"),
        )),
    }
}

/// A whole literal beside a decimal is a decimal of its own digits: `1.5 * 2` multiplies by a DECIMAL(1,0).
pub(crate) fn narrow_decimal(value: &ScalarValue) -> Option<ScalarValue> {
    let whole = match value {
        ScalarValue::Int8(Some(v)) => i128::from(*v),
        ScalarValue::Int16(Some(v)) => i128::from(*v),
        ScalarValue::Int32(Some(v)) => i128::from(*v),
        ScalarValue::Int64(Some(v)) => i128::from(*v),
        _ => return None,
    };
    let digits = whole.unsigned_abs().to_string().len();
    Some(ScalarValue::Decimal128(Some(whole), u8::try_from(digits).ok()?, 0))
}

/// How a literal reads in the name of a column.
pub(crate) fn shown(text: &str) -> String {
    match value(text) {
        Ok(ScalarValue::Float64(Some(v))) => {
            let mut text = String::new();
            crate::format::cell::write_double(&mut text, v);
            text
        }
        Ok(ScalarValue::Float32(Some(_))) => split(text).0.to_owned(),
        Ok(ScalarValue::Decimal128(Some(v), _, scale)) => Decimal128Type::format_decimal(v, 38, scale),
        _ => split(text).0.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_have_the_types_of_spark() {
        let ty = |text: &str| value(text).unwrap().data_type().to_string();
        assert_eq!([ty("1"), ty("-2147483648"), ty("2147483648")], ["Int32", "Int32", "Int64"]);
        assert_eq!(
            [ty("9223372036854775808"), ty("1.50"), ty("0.001")],
            ["Decimal128(19, 0)", "Decimal128(3, 2)", "Decimal128(3, 3)"]
        );
        assert_eq!(
            [ty("5S"), ty("5y"), ty("5L"), ty("1e3"), ty("1.5F")],
            ["Int16", "Int8", "Int64", "Float64", "Float32"]
        );
        assert_eq!([ty("1e3BD"), ty("5BD")], ["Decimal128(4, 0)", "Decimal128(1, 0)"]);
        assert_eq!(value("300Y").unwrap_err().class, "INVALID_NUMERIC_LITERAL_RANGE");
    }

    #[test]
    fn literals_name_columns_without_their_suffix() {
        assert_eq!([shown("5S"), shown("1e3"), shown("1.50"), shown("1e3BD")], ["5", "1000.0", "1.50", "1000"]);
    }
}
