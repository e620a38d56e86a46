//! Files of JSON lines, decoded as `from_json` decodes them: what is wrong with one field makes that field null, what
//! is no JSON makes the whole row null (PERMISSIVE, with the line in the corrupt-record column), drops it
//! (DROPMALFORMED) or ends the query (FAILFAST).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use serde_json::Value;

use super::compressed::read_text;
use super::read::{BATCH_ROWS, ParseMode, malformed, without_bom};
use crate::error::EngineError;
use crate::function::json::decode::{JsonOptions, decode_records};
use crate::options::{Options, invalid};

/// The options of JSON beside `mode`.
pub(super) const OPTIONS: [&str; 3] = ["columnNameOfCorruptRecord", "timestampFormat", "dateFormat"];

/// Reads the options of [`OPTIONS`].
pub(super) fn options(options: &Options) -> Result<JsonOptions, EngineError> {
    let given = OPTIONS.iter().filter_map(|name| options.get(name).map(|value| (*name, value)));
    JsonOptions::parse(given).map_err(|e| invalid(e.strip_backtrace()))
}

fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    without_bom(text)
        .split(|b| *b == b'\n')
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim_ascii()))
        .filter(|(_, l)| !l.is_empty())
}

/// The rows of a file; `schema` has the columns to decode.
pub(super) fn read(
    path: &Path,
    schema: &SchemaRef,
    mode: ParseMode,
    options: &JsonOptions,
) -> Result<Vec<RecordBatch>, EngineError> {
    let text = read_text(path)?;
    let all: Vec<(usize, &[u8])> = lines(&text).collect();
    let fields: Fields = schema.fields().iter().map(|f| Arc::new(f.as_ref().clone().with_nullable(true))).collect();
    let schema = Arc::new(Schema::new(fields.clone()));
    let record = DataType::Struct(fields);
    let mut batches = Vec::new();
    for chunk in all.chunks(BATCH_ROWS) {
        let texts = StringArray::from_iter_values(chunk.iter().map(|(_, line)| String::from_utf8_lossy(line)));
        let (decoded, good) = decode_records(&texts, &record, options)?;
        if mode == ParseMode::FailFast
            && let Some((_, (number, _))) = good.iter().zip(chunk).find(|(good, _)| !**good)
        {
            return Err(malformed(path, *number, "the line does not fit the schema"));
        }
        let columns: Vec<ArrayRef> = decoded.as_struct().columns().to_vec();
        let rows = RecordBatchOptions::new().with_row_count(Some(decoded.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &rows)?;
        batches.push(if mode == ParseMode::DropMalformed && good.contains(&false) {
            filter_record_batch(&batch, &BooleanArray::from(good))?
        } else {
            batch
        });
    }
    Ok(batches)
}

/// The columns of files, by name as Spark orders them; lines that are no JSON add the corrupt-record column.
pub(super) fn infer(files: &[PathBuf], mode: ParseMode, options: &JsonOptions) -> Result<Vec<Field>, EngineError> {
    let mut corrupt = false;
    let mut columns: BTreeMap<String, Kind> = BTreeMap::new();
    for path in files {
        let text = read_text(path)?;
        for (number, line) in lines(&text) {
            match serde_json::from_slice::<Value>(line) {
                Ok(Value::Object(record)) => take_record(&mut columns, record),
                _ if mode == ParseMode::FailFast => return Err(malformed(path, number, "the line is no JSON object")),
                _ => corrupt = true,
            }
        }
    }
    let mut fields = known(&columns);
    if corrupt && mode == ParseMode::Permissive {
        fields.push(Field::new(&options.corrupt_column, DataType::Utf8, true));
    }
    fields.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(fields)
}

/// What the values of a column have been so far. What two of them do not have in common is text, as in Spark's
/// `JsonInferSchema`.
#[derive(Debug)]
enum Kind {
    Null,
    Boolean,
    Long,
    /// Integers beyond 64 bits with a sign.
    Large,
    Double,
    Text,
    Array(Box<Kind>),
    Record(BTreeMap<String, Kind>),
}

fn take_record(columns: &mut BTreeMap<String, Kind>, record: serde_json::Map<String, Value>) {
    for (name, value) in record {
        match columns.get_mut(&name) {
            Some(kind) => kind.take(value),
            None => {
                columns.entry(name).or_insert(Kind::Null).take(value);
            }
        }
    }
}

impl Kind {
    fn take(&mut self, value: Value) {
        let next = match (&mut *self, value) {
            (_, Value::Null) | (Kind::Text, _) => return,
            (Kind::Array(items), Value::Array(values)) => {
                values.into_iter().for_each(|value| items.take(value));
                return;
            }
            (Kind::Record(columns), Value::Object(record)) => return take_record(columns, record),
            (Kind::Null, Value::Array(values)) => {
                let mut items = Kind::Null;
                values.into_iter().for_each(|value| items.take(value));
                Kind::Array(Box::new(items))
            }
            (Kind::Null, Value::Object(record)) => {
                let mut columns = BTreeMap::new();
                take_record(&mut columns, record);
                Kind::Record(columns)
            }
            (Kind::Null | Kind::Boolean, Value::Bool(_)) => Kind::Boolean,
            (Kind::Null | Kind::Long, Value::Number(n)) if n.is_i64() => Kind::Long,
            (Kind::Null | Kind::Long | Kind::Large, Value::Number(n)) if n.is_i64() || n.is_u64() => Kind::Large,
            (Kind::Null | Kind::Long | Kind::Large | Kind::Double, Value::Number(_)) => Kind::Double,
            _ => Kind::Text,
        };
        *self = next;
    }

    /// `None` for a record without fields, which no column can hold.
    fn data_type(&self) -> Option<DataType> {
        Some(match self {
            // Of what was only ever null nothing is known: Spark takes it for text.
            Kind::Null | Kind::Text => DataType::Utf8,
            Kind::Boolean => DataType::Boolean,
            Kind::Long => DataType::Int64,
            Kind::Large => DataType::Decimal128(20, 0),
            Kind::Double => DataType::Float64,
            Kind::Array(items) => DataType::List(Arc::new(Field::new("item", items.data_type()?, true))),
            Kind::Record(columns) => {
                let fields = known(columns);
                if fields.is_empty() {
                    return None;
                }
                DataType::Struct(fields.into())
            }
        })
    }
}

fn known(columns: &BTreeMap<String, Kind>) -> Vec<Field> {
    columns.iter().filter_map(|(name, kind)| Some(Field::new(name, kind.data_type()?, true))).collect()
}
