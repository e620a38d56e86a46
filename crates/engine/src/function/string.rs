//! Text functions where Spark differs from DataFusion, or DataFusion has none.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, BooleanArray, Int32Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ScalarUDF;

use super::cast::convert;
use super::output::TextOutput;
use super::udf::{Arguments, Call, Function};

type Returns = fn(&Arguments<'_>) -> Result<DataType>;

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function =
        |name, arity, returns: Returns, run| Function { name, aliases: &[], arity, coerce: None, returns, run }.udf();
    let text: Returns = |_| Ok(DataType::Utf8);
    let flag: Returns = |_| Ok(DataType::Boolean);
    let int: Returns = |_| Ok(DataType::Int32);
    vec![
        function("chr", (1, 1), text, chr),
        function("initcap", (1, 1), text, |c| map_texts(c, initcap)),
        function("left", (2, 2), text, |c| side(c, true)),
        function("right", (2, 2), text, |c| side(c, false)),
        function("__locate", (2, 3), int, locate),
        function("split_part", (3, 3), text, split_part),
        function("replace", (2, 3), text, replace),
        function("levenshtein", (2, 3), int, levenshtein),
        function("startswith", (2, 2), flag, |c| compare(c, |text, part| text.starts_with(part))),
        function("endswith", (2, 2), flag, |c| compare(c, |text, part| text.ends_with(part))),
        function("contains", (2, 2), flag, |c| compare(c, |text, part| text.contains(part))),
        function("decode", (2, 2), text, decode),
        function("encode", (2, 2), |_| Ok(DataType::Binary), encode),
    ]
}

pub(super) fn texts(call: &Call, index: usize) -> Result<StringArray> {
    Ok(convert(call.arg(index)?, &DataType::Utf8, false)?.as_string::<i32>().clone())
}

pub(super) fn numbers(call: &Call, index: usize) -> Result<Int64Array> {
    Ok(convert(call.arg(index)?, &DataType::Int64, false)?.as_primitive::<Int64Type>().clone())
}

fn map_texts(call: &Call, write: fn(&str, &mut String)) -> Result<ArrayRef> {
    let texts = texts(call, 0)?;
    let mut output = TextOutput::new(call.name, texts.len());
    let mut written = String::new();
    for text in &texts {
        written.clear();
        match text {
            Some(text) => {
                write(text, &mut written);
                output.push(&written)?;
            }
            None => output.push_null(),
        }
    }
    Ok(output.finish())
}

/// The character of the code's lowest byte; nothing for negative codes.
fn chr(call: &Call) -> Result<ArrayRef> {
    let codes = numbers(call, 0)?;
    let result: StringArray = codes
        .iter()
        .map(|code| {
            let code = code?;
            let byte = u8::try_from(code.rem_euclid(256)).unwrap_or(0);
            Some(if code < 0 { String::new() } else { char::from(byte).to_string() })
        })
        .collect();
    Ok(Arc::new(result))
}

/// Words begin after blanks only.
fn initcap(text: &str, out: &mut String) {
    let mut first = true;
    for c in text.chars() {
        if first {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        first = c == ' ';
    }
}

/// The first or last characters of a text; none for a negative number.
fn side(call: &Call, left: bool) -> Result<ArrayRef> {
    let (texts, counts) = (texts(call, 0)?, numbers(call, 1)?);
    let result: StringArray = texts
        .iter()
        .zip(&counts)
        .map(|(text, count)| {
            let (text, count) = (text?, usize::try_from(count?).unwrap_or(0));
            let boundary = |n| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
            let part = if left {
                text.get(..boundary(count))
            } else {
                text.get(boundary(text.chars().count().saturating_sub(count))..)
            };
            part.map(str::to_owned)
        })
        .collect();
    Ok(Arc::new(result))
}

/// `__locate(part, text[, from])`: the place of the first occurrence, counted from 1; 0 when there is none.
fn locate(call: &Call) -> Result<ArrayRef> {
    let (parts, texts) = (texts(call, 0)?, texts(call, 1)?);
    let from = if call.args.len() > 2 { Some(numbers(call, 2)?) } else { None };
    let result: Int32Array = (0..texts.len())
        .map(|row| {
            let start = match &from {
                Some(from) if from.is_null(row) => return Some(0),
                Some(from) => from.value(row),
                None => 1,
            };
            if texts.is_null(row) || parts.is_null(row) {
                return None;
            }
            let Some(skipped) = usize::try_from(start).ok().and_then(|s| s.checked_sub(1)) else { return Some(0) };
            Some(find(texts.value(row), parts.value(row), skipped))
        })
        .collect();
    Ok(Arc::new(result))
}

fn find(text: &str, part: &str, skipped: usize) -> i32 {
    if part.is_empty() {
        return 1;
    }
    let start = text.char_indices().nth(skipped).map_or(text.len(), |(at, _)| at);
    let found = text.get(start..).and_then(|rest| rest.find(part));
    let place = found.and_then(|at| text.get(..start + at)).map(|before| before.chars().count() + 1);
    place.and_then(|p| i32::try_from(p).ok()).unwrap_or(0)
}

/// `split_part(text, delimiter, n)`: the n-th part from the beginning, or from the end; empty when there is none.
fn split_part(call: &Call) -> Result<ArrayRef> {
    let (texts, delimiters, places) = (texts(call, 0)?, texts(call, 1)?, numbers(call, 2)?);
    let mut output = TextOutput::new(call.name, texts.len());
    for row in 0..texts.len() {
        if texts.is_null(row) || delimiters.is_null(row) || places.is_null(row) {
            output.push_null();
            continue;
        }
        let (text, delimiter, place) = (texts.value(row), delimiters.value(row), places.value(row));
        if place == 0 {
            return exec_err!(
                "[INVALID_INDEX_OF_ZERO] The index 0 is invalid. An index shall be either < 0 or > 0 (the first element has index 1). SQLSTATE: 22003"
            );
        }
        let nth = usize::try_from(place.unsigned_abs() - 1).unwrap_or(usize::MAX);
        let part = match (delimiter.is_empty(), place > 0) {
            (true, _) => (nth == 0).then_some(text),
            (false, true) => text.split(delimiter).nth(nth),
            (false, false) => text.rsplit(delimiter).nth(nth),
        };
        output.push(part.unwrap_or_default())?;
    }
    Ok(output.finish())
}

fn replace(call: &Call) -> Result<ArrayRef> {
    let (texts, searched) = (texts(call, 0)?, texts(call, 1)?);
    let replacements = if call.args.len() > 2 { Some(self::texts(call, 2)?) } else { None };
    let mut output = TextOutput::new(call.name, texts.len());
    for row in 0..texts.len() {
        if texts.is_null(row) || searched.is_null(row) || replacements.as_ref().is_some_and(|r| r.is_null(row)) {
            output.push_null();
            continue;
        }
        let (text, searched) = (texts.value(row), searched.value(row));
        let replacement = replacements.as_ref().map_or("", |r| r.value(row));
        if searched.is_empty() {
            output.push(text)?;
            continue;
        }
        if replacement.len() > searched.len() {
            output
                .check(text.len().saturating_add(text.matches(searched).count().saturating_mul(replacement.len())))?;
        }
        output.push(&text.replace(searched, replacement))?;
    }
    Ok(output.finish())
}

/// The edit distance; -1 when it is greater than the third argument.
fn levenshtein(call: &Call) -> Result<ArrayRef> {
    let (left, right) = (texts(call, 0)?, texts(call, 1)?);
    let bounds = if call.args.len() > 2 { Some(numbers(call, 2)?) } else { None };
    let result: Int32Array = (0..left.len())
        .map(|row| {
            if left.is_null(row) || right.is_null(row) || bounds.as_ref().is_some_and(|b| b.is_null(row)) {
                return None;
            }
            let distance = distance(left.value(row), right.value(row));
            let beyond = bounds.as_ref().is_some_and(|b| i64::from(distance) > b.value(row));
            Some(if beyond { -1 } else { distance })
        })
        .collect();
    Ok(Arc::new(result))
}

fn distance(left: &str, right: &str) -> i32 {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<i32> = (0..).take(right.len() + 1).collect();
    for (i, x) in (1..).zip(left.chars()) {
        let mut diagonal = std::mem::replace(row.first_mut().unwrap_or(&mut 0), i);
        let mut before = i;
        for (cell, y) in row.iter_mut().skip(1).zip(&right) {
            let cost = (diagonal + i32::from(x != *y)).min(*cell + 1).min(before + 1);
            diagonal = std::mem::replace(cell, cost);
            before = cost;
        }
    }
    row.last().copied().unwrap_or(0)
}

fn compare(call: &Call, holds: fn(&str, &str) -> bool) -> Result<ArrayRef> {
    let (texts, parts) = (texts(call, 0)?, texts(call, 1)?);
    let result: BooleanArray = texts.iter().zip(&parts).map(|(text, part)| Some(holds(text?, part?))).collect();
    Ok(Arc::new(result))
}

/// The character sets of `encode` and `decode`.
#[derive(Clone, Copy)]
enum Charset {
    Utf8,
    Ascii,
    Latin1,
    Utf16Be,
    Utf16Le,
    /// With a byte order mark.
    Utf16,
}

fn charset(call: &Call) -> Result<Charset> {
    let name = call.text(1).unwrap_or_default();
    match name.to_ascii_uppercase().as_str() {
        "UTF-8" => Ok(Charset::Utf8),
        "US-ASCII" => Ok(Charset::Ascii),
        "ISO-8859-1" => Ok(Charset::Latin1),
        "UTF-16BE" => Ok(Charset::Utf16Be),
        "UTF-16LE" => Ok(Charset::Utf16Le),
        "UTF-16" => Ok(Charset::Utf16),
        _ => exec_err!(
            "[INVALID_PARAMETER_VALUE.CHARSET] The value of parameter(s) `charset` in `{}` is invalid: expects one of the UTF-8, US-ASCII, ISO-8859-1, UTF-16BE, UTF-16LE and UTF-16, but got {name}. SQLSTATE: 22023",
            call.name
        ),
    }
}

fn unmappable<T>(call: &Call) -> Result<T> {
    let what = if call.name == "encode" { "CONVERSION" } else { "DECODING" };
    exec_err!(
        "[MALFORMED_CHARACTER_CODING] Invalid value found when performing `{}` with the given charset ({what}). SQLSTATE: 22000",
        call.name
    )
}

fn encode(call: &Call) -> Result<ArrayRef> {
    let (texts, charset) = (texts(call, 0)?, charset(call)?);
    let mut builder = BinaryBuilder::new();
    for text in &texts {
        let Some(text) = text else {
            builder.append_null();
            continue;
        };
        let narrow = |limit: u32| -> Option<Vec<u8>> {
            text.chars().map(|c| u8::try_from(u32::from(c)).ok().filter(|b| u32::from(*b) < limit)).collect()
        };
        let wide =
            |bytes: fn(u16) -> [u8; 2]| -> Option<Vec<u8>> { Some(text.encode_utf16().flat_map(bytes).collect()) };
        let encoded = match charset {
            Charset::Utf8 => Some(text.as_bytes().to_vec()),
            Charset::Ascii => narrow(128),
            Charset::Latin1 => narrow(256),
            Charset::Utf16Be => wide(u16::to_be_bytes),
            Charset::Utf16Le => wide(u16::to_le_bytes),
            Charset::Utf16 if text.is_empty() => Some(Vec::new()),
            Charset::Utf16 => wide(u16::to_be_bytes).map(|bytes| [vec![0xFE, 0xFF], bytes].concat()),
        };
        match encoded {
            Some(bytes) => builder.append_value(bytes),
            None => return unmappable(call),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn decode(call: &Call) -> Result<ArrayRef> {
    let (bytes, charset) = (convert(call.arg(0)?, &DataType::Binary, false)?, charset(call)?);
    let mut output = TextOutput::new(call.name, bytes.len());
    for bytes in bytes.as_binary::<i32>() {
        let Some(bytes) = bytes else {
            output.push_null();
            continue;
        };
        let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
            let (pairs, rest) = bytes.as_chunks::<2>();
            let units: Vec<u16> = pairs.iter().copied().map(unit).collect();
            if rest.is_empty() { String::from_utf16(&units).ok() } else { None }
        };
        let decoded = match (charset, bytes) {
            (Charset::Utf8, bytes) => String::from_utf8(bytes.to_vec()).ok(),
            (Charset::Ascii, bytes) if !bytes.is_ascii() => None,
            (Charset::Ascii | Charset::Latin1, bytes) => Some(bytes.iter().copied().map(char::from).collect()),
            (Charset::Utf16, [0xFF, 0xFE, rest @ ..]) => wide(rest, u16::from_le_bytes),
            (Charset::Utf16, [0xFE, 0xFF, rest @ ..]) => wide(rest, u16::from_be_bytes),
            (Charset::Utf16Le, bytes) => wide(bytes, u16::from_le_bytes),
            (Charset::Utf16Be | Charset::Utf16, bytes) => wide(bytes, u16::from_be_bytes),
        };
        match decoded {
            Some(text) => output.push(&text)?,
            None => return unmappable(call),
        }
    }
    Ok(output.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_levenshtein() {
        assert_eq!([distance("kitten", "sitting"), distance("", "abc"), distance("abc", "")], [3, 3, 3]);
    }

    #[test]
    fn places_are_counted_in_characters() {
        assert_eq!([find("äbäb", "b", 0), find("äbäb", "b", 2), find("äbäb", "x", 0), find("a", "a", 5)], [2, 4, 0, 0]);
    }
}
