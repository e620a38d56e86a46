//! Rows for other programs, as the shell prints them with `-o json` and `-o csv`: every column is there, nulls included,
//! and timestamps have all their digits.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringBuilder};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::error::ArrowError;

use super::cell::{CellStyle, timestamp_micros, utc, write_far_clock, write_value};
use super::json::{write_json, write_text};

/// Appends row `row` as one JSON object, without an end of line. NaN and infinities, which JSON has not, are strings.
pub fn write_json_row(out: &mut String, fields: &Fields, columns: &[ArrayRef], row: usize) {
    out.push('{');
    for (i, (field, column)) in fields.iter().zip(columns).enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_text(out, field.name());
        out.push(':');
        write_cell(out, column.as_ref(), row);
    }
    out.push('}');
}

fn write_cell(out: &mut String, array: &dyn Array, row: usize) {
    if array.is_null(row) {
        out.push_str("null");
        return;
    }
    match array.data_type() {
        DataType::Struct(fields) => write_json_row(out, fields, array.as_struct().columns(), row),
        DataType::List(_) => write_items(out, &array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => write_items(out, &array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(_, _) => write_items(out, &array.as_fixed_size_list().value(row)),
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            out.push('{');
            for i in 0..entries.len() {
                if i > 0 {
                    out.push(',');
                }
                let mut key = String::new();
                write_value(&mut key, entries.column(0).as_ref(), i, &CellStyle::cast(utc()));
                write_text(out, &key);
                out.push(':');
                write_cell(out, entries.column(1).as_ref(), i);
            }
            out.push('}');
        }
        DataType::Timestamp(_, _) => {
            out.push('"');
            write_instant(out, array, row);
            out.push('"');
        }
        DataType::Binary => write_hex(out, array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => write_hex(out, array.as_binary::<i64>().value(row)),
        DataType::BinaryView => write_hex(out, array.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => write_hex(out, array.as_fixed_size_binary().value(row)),
        _ => write_json(out, array, row, utc()),
    }
}

fn write_items(out: &mut String, items: &dyn Array) {
    out.push('[');
    for i in 0..items.len() {
        if i > 0 {
            out.push(',');
        }
        write_cell(out, items, i);
    }
    out.push(']');
}

fn write_hex(out: &mut String, bytes: &[u8]) {
    out.push('"');
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out.push('"');
}

/// `2020-01-02T03:04:05.6Z` (RFC 3339), without the `Z` for wall clocks.
fn write_instant(out: &mut String, array: &dyn Array, row: usize) {
    let Some((micros, zoned)) = timestamp_micros(array, row) else { return };
    match chrono::DateTime::from_timestamp_micros(micros) {
        Some(time) => {
            super::cell::write_date(out, time.date_naive());
            let _ = write!(out, "{}", time.format("T%H:%M:%S%.f"));
        }
        None => {
            let fraction = write_far_clock(out, micros, 'T');
            let _ = write!(out, ".{fraction:06}");
        }
    }
    if zoned {
        out.push('Z');
    }
}

/// The columns that a CSV writer takes: arrays, maps and structs as JSON, dates and times as text.
pub fn flat(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let write: fn(&mut String, &dyn Array, usize) = match field.data_type() {
            ty if ty.is_nested() => write_cell,
            DataType::Timestamp(_, _) => write_instant,
            DataType::Date32 | DataType::Date64 | DataType::Interval(_) | DataType::Duration(_) => write_plain,
            _ => {
                fields.push(Arc::clone(field));
                columns.push(Arc::clone(column));
                continue;
            }
        };
        fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        columns.push(texts(column.as_ref(), write));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

fn write_plain(out: &mut String, array: &dyn Array, row: usize) {
    let zone: Tz = utc();
    write_value(out, array, row, &CellStyle::cast(zone));
}

fn texts(column: &dyn Array, write: fn(&mut String, &dyn Array, usize)) -> ArrayRef {
    let mut builder = StringBuilder::new();
    let mut text = String::new();
    for row in 0..column.len() {
        if column.is_null(row) {
            builder.append_null();
            continue;
        }
        text.clear();
        write(&mut text, column, row);
        builder.append_value(&text);
    }
    Arc::new(builder.finish())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, ListArray, TimestampMicrosecondArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    #[test]
    fn every_value_has_a_text() {
        let times = TimestampMicrosecondArray::from(vec![Some(1_500_000), Some(i64::MAX), Some(i64::MIN), None]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("t", Arc::new(times.with_timezone("UTC"))),
            ("f", Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.5]))),
            ("d", Arc::new(arrow::array::Date32Array::from(vec![0, i32::MAX, i32::MIN, -719_529]))),
            (
                "l",
                Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([
                    Some(vec![Some(1), None]),
                    None,
                    Some(vec![]),
                    None,
                ])),
            ),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let rows: Vec<String> = (0..4)
            .map(|row| {
                let mut out = String::new();
                write_json_row(&mut out, batch.schema_ref().fields(), batch.columns(), row);
                out
            })
            .collect();
        assert_eq!(
            rows,
            [
                r#"{"t":"1970-01-01T00:00:01.500Z","f":"NaN","d":"1970-01-01","l":[1,null]}"#,
                r#"{"t":"+294247-01-10T04:00:54.775807Z","f":"Infinity","d":"+5881580-07-11","l":null}"#,
                r#"{"t":"-290308-12-21T19:59:05.224192Z","f":"-Infinity","d":"-5877641-06-23","l":[]}"#,
                r#"{"t":null,"f":0.5,"d":"-0001-12-31","l":null}"#,
            ]
        );
        let flat = flat(&batch).unwrap();
        let text = |column: &str, row| flat[column].as_string::<i32>().value(row).to_owned();
        assert_eq!(text("t", 1), "+294247-01-10T04:00:54.775807Z");
        assert_eq!((text("d", 2), text("l", 0)), ("-5877641-06-23".to_owned(), "[1,null]".to_owned()));
        assert!(flat["l"].is_null(1));
    }
}
