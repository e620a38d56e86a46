//! Decoding records into columns by a schema, as Spark's `JacksonParser` does.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Result, exec_err, plan_err};

use super::column::{Column, Lists, Maps, Structs};
use super::scan::{Bad, Scanner, append, begins_with, parse_float, parse_int, plain_float, unescape};
use crate::format::cell::write_double;
use crate::format::json::write_text;
use crate::function::time;

/// What to do with a malformed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Permissive,
    FailFast,
}

/// `from_json`'s options.
#[derive(Debug, Clone)]
pub(crate) struct JsonOptions {
    pub mode: Mode,
    pub corrupt_column: String,
    /// Patterns of `chrono`; none for the ISO forms.
    pub timestamp_format: Option<String>,
    pub date_format: Option<String>,
}

impl Default for JsonOptions {
    fn default() -> Self {
        JsonOptions {
            mode: Mode::Permissive,
            corrupt_column: "_corrupt_record".to_owned(),
            timestamp_format: None,
            date_format: None,
        }
    }
}

impl JsonOptions {
    /// Reads Spark's options; unknown ones are ignored, as Spark does.
    pub(crate) fn parse<'a>(options: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut parsed = JsonOptions::default();
        let pattern = |value: &str| match time::chrono_pattern(value) {
            Some(pattern) => Ok(Some(pattern)),
            None => plan_err!("[INVALID_DATETIME_PATTERN] The datetime pattern '{value}' is not supported."),
        };
        for (key, value) in options {
            match key.to_ascii_lowercase().as_str() {
                "mode" => {
                    parsed.mode = match value.to_ascii_uppercase().as_str() {
                        "PERMISSIVE" => Mode::Permissive,
                        "FAILFAST" => Mode::FailFast,
                        other => {
                            return plan_err!(
                                "[PARSE_MODE_UNSUPPORTED] The function `from_json` doesn't support the {other} mode. Acceptable modes are PERMISSIVE and FAILFAST."
                            );
                        }
                    }
                }
                "columnnameofcorruptrecord" => value.clone_into(&mut parsed.corrupt_column),
                "timestampformat" => parsed.timestamp_format = pattern(value)?,
                "dateformat" => parsed.date_format = pattern(value)?,
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// Decodes each text into a value of type `ty` (a struct, an array or a map).
pub(crate) fn decode(texts: &StringArray, ty: &DataType, options: &JsonOptions) -> Result<ArrayRef> {
    let (array, good) = decode_records(texts, ty, options)?;
    if options.mode == Mode::FailFast
        && let Some(row) = good.iter().position(|good| !good)
    {
        let text = texts.value(row);
        return exec_err!(
            "[MALFORMED_RECORD_IN_PARSING.WITHOUT_SUGGESTION] Malformed records are detected in record parsing: {text}. Parse Mode: FAILFAST. To process malformed records as null result, try setting the option 'mode' as 'PERMISSIVE'. SQLSTATE: 22023"
        );
    }
    Ok(array)
}

/// The decoded values, whatever the mode, and which of the texts were well formed and fit the type.
pub(crate) fn decode_records(
    texts: &StringArray,
    ty: &DataType,
    options: &JsonOptions,
) -> Result<(ArrayRef, Vec<bool>)> {
    let (decoded_type, corrupt) = without_corrupt_column(ty, &options.corrupt_column);
    let mut decoder = Decoder { options, partial: false };
    let mut column = Column::new(&decoded_type)?;
    column.reserve(texts.len());
    let mut good = Vec::with_capacity(texts.len());
    for row in 0..texts.len() {
        if texts.is_null(row) {
            column.push_null();
            good.push(true);
            continue;
        }
        decoder.partial = false;
        good.push(decoder.record(texts.value(row).as_bytes(), &mut column, row));
    }
    let array = column.finish()?;
    let (Some(index), DataType::Struct(fields)) = (corrupt, ty) else { return Ok((array, good)) };
    let corrupted: StringArray = texts.iter().zip(&good).map(|(text, good)| text.filter(|_| !good)).collect();
    Ok((with_corrupt_column(&array, index, fields, Arc::new(corrupted))?, good))
}

fn without_corrupt_column(ty: &DataType, name: &str) -> (DataType, Option<usize>) {
    if let DataType::Struct(fields) = ty
        && let Some((index, field)) = fields.find(name)
        && field.data_type() == &DataType::Utf8
    {
        let rest: Fields = fields.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, f)| Arc::clone(f)).collect();
        return (DataType::Struct(rest), Some(index));
    }
    (ty.clone(), None)
}

fn with_corrupt_column(array: &ArrayRef, index: usize, fields: &Fields, corrupt: ArrayRef) -> Result<ArrayRef> {
    use arrow::array::{AsArray, StructArray};
    let structs = array.as_struct();
    let mut columns = structs.columns().to_vec();
    columns.insert(index, corrupt);
    let fields: Fields = fields.iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<Field>>().into();
    Ok(Arc::new(StructArray::try_new(fields, columns, structs.nulls().cloned())?))
}

struct Decoder<'a> {
    options: &'a JsonOptions,
    /// A field of the record was not of its type and became null.
    partial: bool,
}

impl Decoder<'_> {
    /// Decodes one record into one value; false when it was malformed.
    fn record(&mut self, text: &[u8], column: &mut Column, row: usize) -> bool {
        let mut scanner = Scanner::new(text);
        let Some(first) = scanner.peek() else {
            column.push_null();
            return true;
        };
        let result = if !matches!(column, Column::Struct(_)) {
            self.container(&mut scanner, column, first)
        } else if first == b'n' && scanner.word(b"null").is_ok() {
            if let Column::Struct(structs) = column {
                structs.columns.iter_mut().for_each(Column::push_null);
                structs.validity.push(true);
            }
            return true;
        } else {
            match column {
                Column::Struct(structs) if first == b'{' => self.object(&mut scanner, structs),
                _ => Err(Bad::Type),
            }
        };
        if result.is_ok() {
            return !self.partial;
        }
        column.truncate(row);
        match column {
            Column::Struct(structs) => {
                structs.columns.iter_mut().for_each(Column::push_null);
                structs.validity.push(true);
            }
            other => other.push_null(),
        }
        false
    }

    /// A record that is a list or a map; one object is a list of it alone.
    fn container(&mut self, s: &mut Scanner<'_>, column: &mut Column, first: u8) -> std::result::Result<(), Bad> {
        if let (Column::List(lists), b'{') = (&mut *column, first)
            && let Column::Struct(structs) = lists.values.as_mut()
        {
            self.object(s, structs)?;
            return lists.end();
        }
        self.value(s, column)
    }

    /// One value into one column; a value of the wrong type fails before anything is read. Of a list or a map, something may
    /// be pushed by then, of which [`Column::truncate`] rids the column.
    #[inline]
    fn value(&mut self, s: &mut Scanner<'_>, column: &mut Column) -> std::result::Result<(), Bad> {
        let Some(first) = s.peek() else { return Err(Bad::Syntax) };
        if first == b'n' {
            s.word(b"null")?;
            column.push_null();
            return Ok(());
        }
        match column {
            Column::Float { values, validity, .. } => {
                values.push(float(s, first)?);
                validity.push(true);
            }
            Column::Text(texts) => {
                text(s, first, &mut texts.bytes)?;
                texts.end(true);
            }
            Column::Int(ints) => {
                if !(first == b'-' || first.is_ascii_digit()) {
                    return Err(Bad::Type);
                }
                let start = s.at;
                let number = s.number()?;
                let value = if number.whole { parse_int(number.text) } else { None };
                match value.filter(|v| (ints.least..=ints.most).contains(v)) {
                    Some(value) => {
                        ints.values.push(value);
                        ints.validity.push(true);
                    }
                    None => {
                        s.at = start;
                        return Err(Bad::Type);
                    }
                }
            }
            Column::Timestamp { zoned, values, validity } => {
                values.push(self.timestamp(s, first, *zoned)?);
                validity.push(true);
            }
            Column::Bool(values, validity) => {
                values.push(boolean(s, first)?);
                validity.push(true);
            }
            Column::Struct(structs) if first == b'{' => return self.object(s, structs),
            Column::List(lists) if first == b'[' => return self.list(s, lists),
            Column::Map(maps) if first == b'{' => return self.map(s, maps),
            Column::Date(values, validity) => {
                values.push(self.date(s, first)?);
                validity.push(true);
            }
            Column::Decimal { precision, scale, values, validity } => {
                values.push(decimal(s, first, *precision, *scale)?);
                validity.push(true);
            }
            Column::Null(len) => {
                s.skip()?;
                *len += 1;
            }
            Column::Struct(_) | Column::List(_) | Column::Map(_) => return Err(Bad::Type),
        }
        Ok(())
    }

    /// An array; when one element is of the wrong type, so is the whole.
    fn list(&mut self, s: &mut Scanner<'_>, lists: &mut Lists) -> std::result::Result<(), Bad> {
        let (at, depth) = (s.at, s.depth);
        let result = self.elements(s, lists);
        if result == Err(Bad::Type) {
            (s.at, s.depth) = (at, depth);
        }
        result
    }

    fn elements(&mut self, s: &mut Scanner<'_>, lists: &mut Lists) -> std::result::Result<(), Bad> {
        s.enter()?;
        s.at += 1;
        if !s.eat(b']') {
            loop {
                self.value(s, &mut lists.values)?;
                if !s.eat(b',') {
                    s.expect(b']')?;
                    break;
                }
            }
        }
        s.depth -= 1;
        lists.end()
    }

    /// As [`Self::value`] for a column of `before` values; a value of the wrong type is skipped, becomes null and marks the record.
    #[inline]
    fn tolerant(&mut self, s: &mut Scanner<'_>, column: &mut Column, before: usize) -> std::result::Result<(), Bad> {
        match self.value(s, column) {
            Err(Bad::Type) => {
                self.partial = true;
                column.truncate(before);
                column.push_null();
                s.skip()
            }
            other => other,
        }
    }

    /// An object into a struct. Fields usually come in the schema's order, so the next one is guessed first.
    fn object(&mut self, s: &mut Scanner<'_>, structs: &mut Structs) -> std::result::Result<(), Bad> {
        s.enter()?;
        s.at += 1;
        let row = structs.validity.len();
        let mut guess = 0;
        if !s.eat(b'}') {
            loop {
                if !matches!(s.peek(), Some(b'"' | b'\'')) {
                    return Err(Bad::Syntax);
                }
                let guessed =
                    structs.quoted.get(guess).is_some_and(|q| s.text.get(s.at..).is_some_and(|t| begins_with(t, q)));
                let index = if guessed {
                    s.at += structs.quoted.get(guess).map_or(0, Vec::len);
                    Some(guess)
                } else {
                    field_index(s, structs)?
                };
                s.expect(b':')?;
                match index.and_then(|i| structs.columns.get_mut(i)) {
                    Some(column) => {
                        // The last of several fields of one name counts.
                        if column.len() > row {
                            column.truncate(row);
                        }
                        self.tolerant(s, column, row)?;
                        guess = index.map_or(guess, |i| i + 1);
                    }
                    None => s.skip()?,
                }
                if !s.eat(b',') {
                    s.expect(b'}')?;
                    break;
                }
            }
        }
        s.depth -= 1;
        for column in &mut structs.columns {
            if column.len() == row {
                column.push_null();
            }
        }
        structs.validity.push(true);
        Ok(())
    }

    /// An object as a map; when one value is of the wrong type, so is the whole.
    fn map(&mut self, s: &mut Scanner<'_>, maps: &mut Maps) -> std::result::Result<(), Bad> {
        let (at, depth) = (s.at, s.depth);
        let result = self.entries(s, maps);
        if result == Err(Bad::Type) {
            (s.at, s.depth) = (at, depth);
        }
        result
    }

    fn entries(&mut self, s: &mut Scanner<'_>, maps: &mut Maps) -> std::result::Result<(), Bad> {
        s.enter()?;
        s.at += 1;
        if !s.eat(b'}') {
            loop {
                let Some(quote @ (b'"' | b'\'')) = s.peek() else { return Err(Bad::Syntax) };
                text(s, quote, &mut maps.keys.bytes)?;
                maps.keys.end(true);
                s.expect(b':')?;
                self.value(s, &mut maps.values)?;
                if !s.eat(b',') {
                    s.expect(b'}')?;
                    break;
                }
            }
        }
        s.depth -= 1;
        maps.ends.push(i32::try_from(maps.values.len()).map_err(|_| Bad::Syntax)?);
        maps.validity.push(true);
        Ok(())
    }

    /// A time as text in the wanted format, or, when it is an instant, a whole number of seconds, which wraps around.
    fn timestamp(&self, s: &mut Scanner<'_>, first: u8, zoned: bool) -> std::result::Result<i64, Bad> {
        let start = s.at;
        let parsed = match first {
            b'"' | b'\'' => {
                let raw = string(s)?;
                match &self.options.timestamp_format {
                    None if zoned => time::parse_timestamp(&raw),
                    None => time::parse_zoneless(&raw),
                    Some(format) => time::parse_with_format(&raw, format),
                }
            }
            b'-' | b'0'..=b'9' if zoned => {
                let number = s.number()?;
                if number.whole { parse_int(number.text).map(|v| v.wrapping_mul(1_000_000)) } else { None }
            }
            _ => None,
        };
        parsed.ok_or_else(|| {
            s.at = start;
            Bad::Type
        })
    }

    /// A date as text in the wanted format, or as text that counts the days since 1970.
    fn date(&self, s: &mut Scanner<'_>, first: u8) -> std::result::Result<i32, Bad> {
        let start = s.at;
        let parsed = match first {
            b'"' | b'\'' => {
                let raw = string(s)?;
                match &self.options.date_format {
                    None => time::parse_date(&raw).or_else(|| std::str::from_utf8(&raw).ok()?.parse().ok()),
                    Some(format) => time::parse_with_format(&raw, format)
                        .and_then(|t| i32::try_from(t.div_euclid(86_400_000_000)).ok()),
                }
            }
            _ => None,
        };
        parsed.ok_or_else(|| {
            s.at = start;
            Bad::Type
        })
    }
}

/// A string without its quotes and escapes.
#[inline]
fn string<'a>(s: &mut Scanner<'a>) -> std::result::Result<Cow<'a, [u8]>, Bad> {
    let (raw, escaped) = s.raw_string()?;
    if !escaped {
        return Ok(Cow::Borrowed(raw));
    }
    let mut unescaped = Vec::new();
    unescape(raw, &mut unescaped)?;
    Ok(Cow::Owned(unescaped))
}

/// The column of the field whose name comes next; none when the schema does not have it.
fn field_index(s: &mut Scanner<'_>, structs: &Structs) -> std::result::Result<Option<usize>, Bad> {
    let name = string(s)?;
    Ok(structs.fields.iter().position(|f| f.name().as_bytes() == name.as_ref()))
}

fn boolean(s: &mut Scanner<'_>, first: u8) -> std::result::Result<bool, Bad> {
    match first {
        b't' => s.word(b"true").map(|()| true),
        b'f' => s.word(b"false").map(|()| false),
        _ => Err(Bad::Type),
    }
}

#[inline]
fn float(s: &mut Scanner<'_>, first: u8) -> std::result::Result<f64, Bad> {
    let start = s.at;
    if let Some((value, used)) = s.text.get(start..).and_then(plain_float) {
        s.at += used;
        return Ok(value);
    }
    let value = match first {
        b'-' | b'0'..=b'9' | b'N' | b'I' => parse_float(s.number()?.text),
        b'"' | b'\'' => match s.raw_string()?.0 {
            b"NaN" => Some(f64::NAN),
            b"Infinity" | b"+Infinity" | b"+INF" | b"INF" => Some(f64::INFINITY),
            b"-Infinity" | b"-INF" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    };
    value.ok_or_else(|| {
        s.at = start;
        Bad::Type
    })
}

/// A string, or the text of any other value.
#[inline]
fn text(s: &mut Scanner<'_>, first: u8, out: &mut Vec<u8>) -> std::result::Result<(), Bad> {
    if first == b'"' || first == b'\'' {
        let (raw, escaped) = s.raw_string()?;
        if escaped {
            return unescape(raw, out);
        }
        let end = s.at - 1;
        append(out, s.text, end - raw.len(), end);
        return Ok(());
    }
    other_text(s, first, out)
}

/// The text of a value that is no string: numbers with a fraction or an exponent as doubles, as Spark writes them.
fn other_text(s: &mut Scanner<'_>, first: u8, out: &mut Vec<u8>) -> std::result::Result<(), Bad> {
    match first {
        b'{' | b'[' => {
            let start = s.at;
            s.skip()?;
            rewrite(s.text.get(start..s.at).unwrap_or_default(), out)
        }
        b't' | b'f' => {
            let start = s.at;
            s.skip()?;
            out.extend_from_slice(s.text.get(start..s.at).unwrap_or_default());
            Ok(())
        }
        _ => number_text(s, out),
    }
}

fn number_text(s: &mut Scanner<'_>, out: &mut Vec<u8>) -> std::result::Result<(), Bad> {
    let number = s.number()?;
    if number.whole {
        out.extend_from_slice(if number.text == b"-0" { b"0" } else { number.text });
        return Ok(());
    }
    let value = parse_float(number.text).ok_or(Bad::Syntax)?;
    let mut text = String::new();
    write_double(&mut text, value);
    // NaN and infinities have no number in JSON.
    let quotes: &[u8] = if value.is_finite() { b"" } else { b"\"" };
    out.extend_from_slice(quotes);
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(quotes);
    Ok(())
}

/// Copies an object or an array that is known to be JSON: without blanks, with strings and numbers as Spark writes them.
fn rewrite(value: &[u8], out: &mut Vec<u8>) -> std::result::Result<(), Bad> {
    let mut s = Scanner::new(value);
    while let Some(first) = s.peek() {
        match first {
            b'"' | b'\'' => {
                let (raw, escaped) = s.raw_string()?;
                if first == b'"' && !escaped {
                    out.push(b'"');
                    out.extend_from_slice(raw);
                    out.push(b'"');
                    continue;
                }
                let mut bytes = Vec::new();
                unescape(raw, &mut bytes)?;
                let mut quoted = String::new();
                write_text(&mut quoted, &String::from_utf8_lossy(&bytes));
                out.extend_from_slice(quoted.as_bytes());
            }
            b'-' | b'0'..=b'9' | b'N' | b'I' => number_text(&mut s, out)?,
            other => {
                out.push(other);
                s.at += 1;
            }
        }
    }
    Ok(())
}

fn decimal(s: &mut Scanner<'_>, first: u8, precision: u8, scale: i8) -> std::result::Result<i128, Bad> {
    let start = s.at;
    let text = match first {
        b'-' | b'0'..=b'9' => s.number()?.text,
        b'"' | b'\'' => s.raw_string()?.0,
        _ => return Err(Bad::Type),
    };
    let parsed = std::str::from_utf8(text).ok().and_then(|t| parse_decimal(t, precision, scale));
    parsed.ok_or_else(|| {
        s.at = start;
        Bad::Type
    })
}

/// The unscaled value, rounded half up; none when it has too many digits.
fn parse_decimal(text: &str, precision: u8, scale: i8) -> Option<i128> {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(i) => (text.get(..i)?, text.get(i + 1..)?.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let negative = mantissa.starts_with('-');
    let (whole, fraction) = mantissa
        .trim_start_matches(['-', '+'])
        .split_once('.')
        .unwrap_or((mantissa.trim_start_matches(['-', '+']), ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let shift = i32::from(scale) + exponent - i32::try_from(fraction.len()).ok()?;
    let value = if shift >= 0 {
        digits.checked_mul(10i128.checked_pow(u32::try_from(shift).ok()?)?)?
    } else {
        let divisor = 10i128.checked_pow(shift.unsigned_abs())?;
        (digits + divisor / 2) / divisor
    };
    let limit = 10i128.checked_pow(u32::from(precision))?;
    (value < limit).then_some(if negative { -value } else { value })
}
