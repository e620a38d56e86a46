//! Files of JSON lines, decoded as `from_json` decodes them: what is wrong with one field makes that field null, what
//! is no JSON makes the whole row null (PERMISSIVE, with the line in the corrupt-record column), drops it
//! (DROPMALFORMED) or ends the query (FAILFAST).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::reader::infer_json_schema_from_iterator;

use super::compressed::read_text;
use super::read::{BATCH_ROWS, ParseMode, malformed};
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
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    text.split(|b| *b == b'\n').enumerate().map(|(i, line)| (i + 1, line.trim_ascii())).filter(|(_, l)| !l.is_empty())
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
    let mut schemas = Vec::new();
    for path in files {
        let text = read_text(path)?;
        let mut values = Vec::new();
        for (number, line) in lines(&text) {
            match serde_json::from_slice::<serde_json::Value>(line) {
                Ok(value @ serde_json::Value::Object(_)) => values.push(Ok::<_, ArrowError>(value)),
                _ if mode == ParseMode::FailFast => return Err(malformed(path, number, "the line is no JSON object")),
                _ => corrupt = true,
            }
        }
        schemas.push(infer_json_schema_from_iterator(values.into_iter())?);
    }
    let mut fields: Vec<Field> = Schema::try_merge(schemas)?.fields().iter().map(|f| without_null(f)).collect();
    if corrupt && mode == ParseMode::Permissive {
        fields.push(Field::new(&options.corrupt_column, DataType::Utf8, true));
    }
    fields.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(fields)
}

/// Of a field that was only ever null nothing is known: Spark takes it for text.
fn without_null(field: &Field) -> Field {
    fn known(ty: &DataType) -> DataType {
        match ty {
            DataType::Null => DataType::Utf8,
            DataType::List(item) => DataType::List(Arc::new(without_null(item))),
            DataType::Struct(fields) => DataType::Struct(fields.iter().map(|f| Arc::new(without_null(f))).collect()),
            other => other.clone(),
        }
    }
    field.clone().with_data_type(known(field.data_type()))
}
