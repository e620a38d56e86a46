//! From a file to columns.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray, StringBuilder, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::FileFormat;
use super::compressed::read_text;
use super::json;
use super::path::partition_values;
use crate::error::EngineError;
use crate::file_log::io_error;
use crate::format::csv::CsvDialect;
use crate::function::ddl::type_name;
use crate::function::json::decode::JsonOptions;
use crate::options::{Options, invalid};

/// Rows per batch.
pub(super) const BATCH_ROWS: usize = 8192;

/// What happens to rows that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParseMode {
    /// Nulls instead.
    Permissive,
    DropMalformed,
    FailFast,
}

/// Reads files of one format as columns of one schema.
#[derive(Debug, Clone)]
pub(super) struct FileReader {
    format: FileFormat,
    schema: SchemaRef,
    base: PathBuf,
    zone: Tz,
    mode: ParseMode,
    csv: CsvDialect,
    json: JsonOptions,
    infer_types: bool,
    /// `enforceSchema`: the header of a CSV file is skipped, not held against the schema.
    enforce_schema: bool,
    whole_text: bool,
}

impl FileReader {
    pub(super) fn new(format: FileFormat, options: &Options, base: PathBuf, zone: Tz) -> Result<Self, EngineError> {
        let mode = match options.get("mode").map(str::to_uppercase).as_deref() {
            None | Some("PERMISSIVE") => ParseMode::Permissive,
            Some("DROPMALFORMED") => ParseMode::DropMalformed,
            Some("FAILFAST") => ParseMode::FailFast,
            Some(other) => {
                return Err(invalid(format!(
                    "Invalid value '{other}' for option 'mode', must be PERMISSIVE, DROPMALFORMED or FAILFAST"
                )));
            }
        };
        Ok(FileReader {
            format,
            schema: Arc::new(Schema::empty()),
            base,
            zone,
            mode,
            csv: CsvDialect::from_options(options)?,
            json: json::options(options)?,
            infer_types: options.bool("inferSchema")?.unwrap_or(false),
            enforce_schema: options.bool("enforceSchema")?.unwrap_or(true),
            whole_text: options.bool("wholetext")?.unwrap_or(false),
        })
    }

    pub(super) fn format(&self) -> FileFormat {
        self.format
    }

    pub(super) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    pub(super) fn set_schema(&mut self, schema: SchemaRef) {
        self.schema = schema;
    }

    /// Finds the columns by looking into the files; partition columns come last.
    pub(super) fn infer_schema(&mut self, files: &[PathBuf]) -> Result<(), EngineError> {
        let mut fields: Vec<Field> = match self.format {
            FileFormat::Text => vec![Field::new("value", DataType::Utf8, true)],
            FileFormat::Parquet => self.infer_parquet(files)?,
            FileFormat::Json => self.infer_json(files)?,
            FileFormat::Csv => self.infer_csv(files)?,
        };
        let mut partitions: Vec<(String, Candidates)> = Vec::new();
        for file in files {
            for (name, value) in partition_values(&self.base, file) {
                let known = partitions.iter().position(|(n, _)| *n == name).unwrap_or(partitions.len());
                if known == partitions.len() {
                    partitions.push((name, Candidates::new(false)));
                }
                if let (Some((_, candidates)), Some(value)) = (partitions.get_mut(known), value) {
                    candidates.look(&value);
                }
            }
        }
        for (name, candidates) in partitions {
            fields.retain(|f| !f.name().eq_ignore_ascii_case(&name));
            fields.push(Field::new(name, candidates.narrowest(), true));
        }
        self.schema = Arc::new(Schema::new(fields));
        Ok(())
    }

    fn first<'a>(&self, files: &'a [PathBuf]) -> Result<&'a PathBuf, EngineError> {
        files.first().ok_or_else(|| EngineError::Invalid {
            class: "UNABLE_TO_INFER_SCHEMA",
            message: format!(
                "Unable to infer schema for {}. It must be specified manually: there is no file in {}.",
                self.format.name(),
                self.base.display()
            ),
        })
    }

    fn infer_parquet(&self, files: &[PathBuf]) -> Result<Vec<Field>, EngineError> {
        let path = self.first(files)?;
        let reader = open_parquet(path)?;
        Ok(reader.schema().fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect())
    }

    fn infer_json(&self, files: &[PathBuf]) -> Result<Vec<Field>, EngineError> {
        self.first(files)?;
        json::infer(files, self.mode, &self.json)
    }

    fn infer_csv(&self, files: &[PathBuf]) -> Result<Vec<Field>, EngineError> {
        let mut names: Vec<String> = Vec::new();
        let mut columns: Vec<Candidates> = Vec::new();
        self.first(files)?;
        for (i, path) in files.iter().enumerate() {
            if i > 0 && !self.infer_types {
                break;
            }
            let text = read_text(path)?;
            let mut record = Vec::new();
            let mut rest = without_bom(&text);
            let mut first = true;
            while let Some(after) = self.csv.read_record(rest, &mut record) {
                rest = after;
                if first && names.is_empty() {
                    let name = |(i, f): (usize, &Option<Vec<u8>>)| match f {
                        Some(f) if self.csv.header => String::from_utf8_lossy(f).into_owned(),
                        _ => format!("_c{i}"),
                    };
                    names = record.iter().enumerate().map(name).collect();
                    columns = vec![Candidates::new(true); names.len()];
                }
                if !(first && self.csv.header) && self.infer_types {
                    for (column, value) in columns.iter_mut().zip(record.iter()) {
                        value.iter().for_each(|value| column.look(&String::from_utf8_lossy(value)));
                    }
                } else if !self.infer_types {
                    break;
                }
                first = false;
            }
        }
        let types = columns.iter().map(|c| if self.infer_types { c.narrowest() } else { DataType::Utf8 });
        Ok(names.iter().zip(types).map(|(name, data_type)| Field::new(name, data_type, true)).collect())
    }

    /// The rows of one file; `columns` narrows the schema to these.
    pub(super) fn read(&self, path: &Path, columns: Option<&[usize]>) -> Result<Vec<RecordBatch>, EngineError> {
        let schema = match columns {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        let partitions = partition_values(&self.base, path);
        let is_partition = |name: &str| partitions.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        // What the file itself holds, all of it: CSV goes by position.
        let data: Vec<Arc<Field>> = self.schema.fields().iter().filter(|f| !is_partition(f.name())).cloned().collect();
        let data = Arc::new(Schema::new(data));
        let wanted: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let batches = match self.format {
            FileFormat::Parquet => read_parquet(path, &wanted)?,
            FileFormat::Json => self.read_json(path, &data, &wanted)?,
            FileFormat::Csv => return self.read_csv(path, &data, &schema, &partitions),
            FileFormat::Text => self.read_text(path, &data)?,
        };
        let conform = |batch: &RecordBatch| self.conform(batch, &schema, &partitions, self.mode != ParseMode::FailFast);
        batches.iter().map(|batch| conform(batch).map_err(|error| in_file(path, error))).collect()
    }

    /// The schema's columns out of those of a file and of its partition directories; what is missing is null.
    fn conform(
        &self,
        batch: &RecordBatch,
        schema: &SchemaRef,
        partitions: &[(String, Option<String>)],
        lenient: bool,
    ) -> Result<RecordBatch, EngineError> {
        let rows = batch.num_rows();
        let columns = schema
            .fields()
            .iter()
            .map(|field| {
                if let Some((_, value)) = partitions.iter().find(|(n, _)| n.eq_ignore_ascii_case(field.name())) {
                    let one = StringArray::from(vec![value.as_deref()]);
                    let one = self.cast(&(Arc::new(one) as ArrayRef), field.data_type(), lenient)?;
                    return Ok(arrow::compute::take(&one, &arrow::array::UInt32Array::from(vec![0; rows]), None)?);
                }
                let own = batch.schema_ref().fields().iter().position(|f| f.name().eq_ignore_ascii_case(field.name()));
                match own {
                    Some(index) => self.cast(batch.column(index), field.data_type(), lenient),
                    None => Ok(new_null_array(field.data_type(), rows)),
                }
            })
            .collect::<Result<Vec<ArrayRef>, EngineError>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
    }

    /// Values that cannot be converted become null when `lenient`.
    fn cast(&self, column: &ArrayRef, data_type: &DataType, lenient: bool) -> Result<ArrayRef, EngineError> {
        if column.data_type() == data_type {
            return Ok(Arc::clone(column));
        }
        let options = CastOptions { safe: lenient, ..CastOptions::default() };
        // Text without an offset is in the session's time zone.
        if let (DataType::Utf8, DataType::Timestamp(unit, Some(zone))) = (column.data_type(), data_type) {
            let session = DataType::Timestamp(*unit, Some(Arc::from(self.zone.to_string())));
            let local = cast_with_options(column, &session, &options)?;
            return Ok(cast_with_options(&local, &DataType::Timestamp(*unit, Some(Arc::clone(zone))), &options)?);
        }
        Ok(cast_with_options(column, data_type, &options)?)
    }

    fn read_json(&self, path: &Path, schema: &SchemaRef, wanted: &[&str]) -> Result<Vec<RecordBatch>, EngineError> {
        let keep: Vec<usize> =
            (0..schema.fields().len()).filter(|i| wanted.contains(&schema.field(*i).name().as_str())).collect();
        json::read(path, &Arc::new(schema.project(&keep)?), self.mode, &self.json)
    }

    fn read_csv(
        &self,
        path: &Path,
        schema: &SchemaRef,
        wanted: &SchemaRef,
        partitions: &[(String, Option<String>)],
    ) -> Result<Vec<RecordBatch>, EngineError> {
        let text = read_text(path)?;
        let mut records = CsvRecords { rest: without_bom(&text), number: 0 };
        let mut batches = Vec::new();
        loop {
            let (texts, numbers) = self.csv_texts(path, schema, &mut records)?;
            // One batch at least.
            if numbers.is_empty() && !batches.is_empty() {
                return Ok(batches);
            }
            let last = numbers.len() < BATCH_ROWS;
            batches.push(self.csv_batch(path, &texts, &numbers, wanted, partitions)?);
            if last {
                return Ok(batches);
            }
        }
    }

    /// Records as texts, as values.
    fn csv_batch(
        &self,
        path: &Path,
        texts: &RecordBatch,
        numbers: &[usize],
        wanted: &SchemaRef,
        partitions: &[(String, Option<String>)],
    ) -> Result<RecordBatch, EngineError> {
        let batch = self.conform(texts, wanted, partitions, true).map_err(|error| in_file(path, error))?;
        if self.mode == ParseMode::Permissive {
            return Ok(batch);
        }
        // A text without a value could not be converted. Of the columns that are asked for only, as in Spark.
        let mut good = vec![true; batch.num_rows()];
        for (field, column) in wanted.fields().iter().zip(batch.columns()) {
            let Some(text) = texts.column_by_name(field.name()) else { continue };
            for (row, good) in good.iter_mut().enumerate() {
                let bad = column.is_null(row) && text.is_valid(row);
                if bad && self.mode == ParseMode::FailFast {
                    let value = text.as_string::<i32>().value(row);
                    let expected = type_name(field.data_type());
                    let why = format!("the value '{value}' of the column `{}` is no {expected}", field.name());
                    return Err(malformed(path, numbers.get(row).copied().unwrap_or_default(), &why));
                }
                *good &= !bad;
            }
        }
        Ok(if good.contains(&false) { filter_record_batch(&batch, &BooleanArray::from(good))? } else { batch })
    }

    /// The next records as texts, [`BATCH_ROWS`] unless they are the last ones, with the number of each in the file.
    fn csv_texts(
        &self,
        path: &Path,
        schema: &SchemaRef,
        records: &mut CsvRecords<'_>,
    ) -> Result<(RecordBatch, Vec<usize>), EngineError> {
        let width = schema.fields().len();
        let mut builders: Vec<StringBuilder> = (0..width).map(|_| StringBuilder::new()).collect();
        let mut record = Vec::new();
        let mut numbers = Vec::new();
        while numbers.len() < BATCH_ROWS
            && let Some(after) = self.csv.read_record(records.rest, &mut record)
        {
            records.rest = after;
            records.number += 1;
            let number = records.number;
            if number == 1 && self.csv.header {
                if !self.enforce_schema {
                    check_header(path, &record, schema)?;
                }
                continue;
            }
            if record.len() != width {
                match self.mode {
                    ParseMode::Permissive => {}
                    ParseMode::DropMalformed => continue,
                    ParseMode::FailFast => {
                        let found = format!("{} fields where the schema has {width}", record.len());
                        return Err(malformed(path, number, &found));
                    }
                }
            }
            numbers.push(number);
            let mut fields = record.iter();
            for builder in &mut builders {
                match fields.next().and_then(|f| f.as_ref()) {
                    Some(field) => builder.append_value(String::from_utf8_lossy(field)),
                    None => builder.append_null(),
                }
            }
        }
        let columns = builders.iter_mut().map(|b| Arc::new(b.finish()) as ArrayRef).collect();
        let texts: Vec<Field> = schema.fields().iter().map(|f| Field::new(f.name(), DataType::Utf8, true)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(numbers.len()));
        Ok((RecordBatch::try_new_with_options(Arc::new(Schema::new(texts)), columns, &options)?, numbers))
    }

    fn read_text(&self, path: &Path, schema: &SchemaRef) -> Result<Vec<RecordBatch>, EngineError> {
        let text = read_text(path)?;
        let name = schema.fields().first().map_or("value", |f| f.name().as_str());
        let schema = Arc::new(Schema::new(vec![Field::new(name, DataType::Utf8, true)]));
        if self.whole_text && i32::try_from(text.len()).is_err() {
            let size = text.len();
            return Err(invalid(format!("the file {} has {size} bytes, more than fit into one value", path.display())));
        }
        let lines: Vec<&[u8]> = match text.strip_suffix(b"\n").unwrap_or(&text) {
            _ if self.whole_text => vec![&text],
            _ if text.is_empty() => Vec::new(),
            body => body.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect(),
        };
        let batch = |lines: &[&[u8]]| {
            let values = StringArray::from_iter_values(lines.iter().map(|line| String::from_utf8_lossy(line)));
            Ok(RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(values)])?)
        };
        lines.chunks(BATCH_ROWS).map(batch).collect()
    }
}

/// Names the file of an error that does not.
fn in_file(path: &Path, error: EngineError) -> EngineError {
    match error {
        EngineError::Invalid { .. } | EngineError::Io { .. } => error,
        other => EngineError::External { action: format!("read {}", path.display()), message: other.to_string() },
    }
}

pub(super) fn malformed(path: &Path, line: usize, why: &str) -> EngineError {
    EngineError::Invalid {
        class: "MALFORMED_RECORD_IN_PARSING",
        message: format!(
            "Malformed records are detected in record parsing: {}, line {line}: {why}. Parse Mode: FAILFAST. \
             To process malformed records as null result, set the option 'mode' to 'PERMISSIVE'.",
            path.display()
        ),
    }
}

/// Spark's check of `enforceSchema=false`: by position, case aside.
fn check_header(path: &Path, header: &[Option<Vec<u8>>], schema: &Schema) -> Result<(), EngineError> {
    let found: Vec<String> =
        header.iter().map(|name| String::from_utf8_lossy(name.as_deref().unwrap_or_default()).into_owned()).collect();
    let expected: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let same = found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| a.eq_ignore_ascii_case(b));
    if same {
        return Ok(());
    }
    Err(EngineError::Invalid {
        class: "CSV_HEADER_MISMATCH",
        message: format!(
            "CSV header does not conform to the schema.\n Header: {}\n Schema: {}\nCSV file: {}\n\
             To read by position whatever the header says, set the option 'enforceSchema' to 'true'.",
            found.join(", "),
            expected.join(", "),
            path.display()
        ),
    })
}

fn open_parquet(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, EngineError> {
    let file = File::open(path).map_err(|e| io_error("open", path, e))?;
    ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(|e| io_error("read the Parquet file", path, std::io::Error::other(e)))
}

fn read_parquet(path: &Path, wanted: &[&str]) -> Result<Vec<RecordBatch>, EngineError> {
    let builder = open_parquet(path)?;
    let roots = builder.schema().fields().iter().enumerate();
    let keep: Vec<usize> =
        roots.filter(|(_, f)| wanted.iter().any(|w| w.eq_ignore_ascii_case(f.name()))).map(|(i, _)| i).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), keep);
    let reader = builder
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|e| io_error("read the Parquet file", path, std::io::Error::other(e)))?;
    Ok(reader.collect::<Result<_, _>>()?)
}

/// What of a CSV file is still to be read.
struct CsvRecords<'a> {
    rest: &'a [u8],
    /// Of the last record that was read.
    number: usize,
}

/// The types that all values of a column have had so far, as Spark's inference finds them.
#[derive(Debug, Clone, Copy)]
struct Candidates {
    empty: bool,
    int: bool,
    long: bool,
    double: bool,
    date: bool,
    boolean: bool,
    timestamp: bool,
}

impl Candidates {
    fn new(booleans_and_times: bool) -> Self {
        let more = booleans_and_times;
        Candidates { empty: true, int: true, long: true, double: true, date: true, boolean: more, timestamp: more }
    }

    fn look(&mut self, value: &str) {
        self.empty = false;
        self.int = self.int && value.parse::<i32>().is_ok();
        self.long = self.long && value.parse::<i64>().is_ok();
        self.double = self.double && value.parse::<f64>().is_ok();
        self.date = self.date && value.len() == 10 && chrono::NaiveDate::parse_from_str(value, "%Y-%m-%d").is_ok();
        self.boolean = self.boolean && (value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false"));
        self.timestamp = self.timestamp
            && value.len() > 10
            && arrow::compute::kernels::cast_utils::string_to_timestamp_nanos(value).is_ok();
    }

    fn narrowest(self) -> DataType {
        match self {
            Candidates { empty: true, .. } => DataType::Utf8,
            Candidates { int: true, .. } => DataType::Int32,
            Candidates { long: true, .. } => DataType::Int64,
            Candidates { double: true, .. } => DataType::Float64,
            Candidates { date: true, .. } => DataType::Date32,
            Candidates { boolean: true, .. } => DataType::Boolean,
            Candidates { timestamp: true, .. } => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
            _ => DataType::Utf8,
        }
    }
}

/// What follows the byte order mark that some programs begin a text with.
pub(super) fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}
