//! Rows as JSON lines, as Spark's `to_json` and JSON writer put them: null fields left out, timestamps ISO 8601.

use std::fmt::Write as _;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Fields};
use chrono::{DateTime, Offset, TimeZone};

use super::cell::{CellStyle, timestamp_micros, write_value};

/// Appends row `row` of the columns as one JSON object, without an end of line.
pub fn write_row(out: &mut String, fields: &Fields, columns: &[ArrayRef], row: usize, zone: Tz) {
    out.push('{');
    let mut first = true;
    for (field, column) in fields.iter().zip(columns) {
        if column.is_null(row) || column.data_type() == &DataType::Null {
            continue;
        }
        if !first {
            out.push(',');
        }
        first = false;
        write_text(out, field.name());
        out.push(':');
        write_json(out, column.as_ref(), row, zone);
    }
    out.push('}');
}

/// Appends one value; nulls inside arrays and maps are `null`.
pub fn write_json(out: &mut String, array: &dyn Array, row: usize, zone: Tz) {
    if array.is_null(row) {
        out.push_str("null");
        return;
    }
    match array.data_type() {
        DataType::Null => out.push_str("null"),
        DataType::Utf8 => write_text(out, array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => write_text(out, array.as_string::<i64>().value(row)),
        DataType::Utf8View => write_text(out, array.as_string_view().value(row)),
        DataType::Binary => write_base64(out, array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => write_base64(out, array.as_binary::<i64>().value(row)),
        DataType::BinaryView => write_base64(out, array.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => write_base64(out, array.as_fixed_size_binary().value(row)),
        DataType::Struct(fields) => write_row(out, fields, array.as_struct().columns(), row, zone),
        DataType::List(_) => write_list(out, &array.as_list::<i32>().value(row), zone),
        DataType::LargeList(_) => write_list(out, &array.as_list::<i64>().value(row), zone),
        DataType::FixedSizeList(_, _) => write_list(out, &array.as_fixed_size_list().value(row), zone),
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            out.push('{');
            for i in 0..entries.len() {
                if i > 0 {
                    out.push(',');
                }
                let mut key = String::new();
                write_value(&mut key, entries.column(0).as_ref(), i, &CellStyle::cast(zone));
                write_text(out, &key);
                out.push(':');
                write_json(out, entries.column(1).as_ref(), i, zone);
            }
            out.push('}');
        }
        DataType::Timestamp(_, _) => {
            out.push('"');
            write_timestamp(out, array, row, zone);
            out.push('"');
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let mut text = String::new();
            write_value(&mut text, array, row, &CellStyle::cast(zone));
            // NaN and infinities have no number in JSON.
            if text.ends_with(|c: char| c.is_ascii_digit()) { out.push_str(&text) } else { write_text(out, &text) }
        }
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Decimal128(_, _)
        | DataType::Decimal256(_, _) => write_value(out, array, row, &CellStyle::cast(zone)),
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let key = dictionary.normalized_keys().get(row).copied().unwrap_or_default();
            write_json(out, dictionary.values().as_ref(), key, zone);
        }
        _ => {
            let mut text = String::new();
            write_value(&mut text, array, row, &CellStyle::cast(zone));
            write_text(out, &text);
        }
    }
}

fn write_list(out: &mut String, items: &dyn Array, zone: Tz) {
    out.push('[');
    for i in 0..items.len() {
        if i > 0 {
            out.push(',');
        }
        write_json(out, items, i, zone);
    }
    out.push(']');
}

/// `yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX]`, Spark's default `timestampFormat`: milliseconds always, the offset (`Z` for UTC)
/// for instants only.
pub fn write_timestamp(out: &mut String, array: &dyn Array, row: usize, zone: Tz) {
    let Some((micros, zoned)) = timestamp_micros(array, row) else { return };
    let Some(utc) = DateTime::from_timestamp_micros(micros).map(|t| t.naive_utc()) else {
        let fraction = super::cell::write_far_clock(out, micros, 'T');
        let _ = write!(out, ".{:03}{}", fraction / 1_000, if zoned { "Z" } else { "" });
        return;
    };
    let local = if zoned { zone.from_utc_datetime(&utc).naive_local() } else { utc };
    super::cell::write_date(out, local.date());
    let _ = write!(out, "{}", local.format("T%H:%M:%S%.3f"));
    if zoned {
        let seconds = zone.offset_from_utc_datetime(&utc).fix().local_minus_utc();
        if seconds == 0 {
            out.push('Z');
        } else {
            let (sign, minutes) = (if seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs() / 60);
            let _ = write!(out, "{sign}{:02}:{:02}", minutes / 60, minutes % 60);
        }
    }
}

/// A JSON string with its quotes.
pub fn write_text(out: &mut String, text: &str) {
    out.push('"');
    let mut plain_from = 0;
    for (i, byte) in text.bytes().enumerate() {
        let escaped = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0x08 => "\\b",
            0x0c => "\\f",
            0x00..=0x1f => "",
            _ => continue,
        };
        out.push_str(text.get(plain_from..i).unwrap_or_default());
        plain_from = i + 1;
        if escaped.is_empty() {
            let _ = write!(out, "\\u{byte:04X}");
        } else {
            out.push_str(escaped);
        }
    }
    out.push_str(text.get(plain_from..).unwrap_or_default());
    out.push('"');
}

fn write_base64(out: &mut String, bytes: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.push('"');
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |acc, b| acc << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            if i <= chunk.len() {
                let index = (group >> (18 - 6 * i)) & 63;
                out.push(char::from(ALPHABET.get(index as usize).copied().unwrap_or(b'=')));
            } else {
                out.push('=');
            }
        }
    }
    out.push('"');
}
