//! The formats of data files and the split of a batch into Hive partitions.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, RecordBatch, UInt64Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use flate2::write::GzEncoder;
use hashbrown::HashMap;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::error::EngineError;
use crate::file_log::io_error;
use crate::format::cell::{CellStyle, write_value};
use crate::format::csv::CsvDialect;
use crate::format::json;
use crate::options::{Options, invalid};
use crate::source::file::path::escape_partition;

/// Spark's name for the partition of null.
pub const DEFAULT_PARTITION: &str = "__HIVE_DEFAULT_PARTITION__";

/// What a data file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    Parquet,
    Json,
    Csv,
    Text,
}

impl FileFormat {
    /// By Spark's short name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_lowercase().as_str() {
            "parquet" => Some(FileFormat::Parquet),
            "json" => Some(FileFormat::Json),
            "csv" => Some(FileFormat::Csv),
            "text" => Some(FileFormat::Text),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            FileFormat::Parquet => "parquet",
            FileFormat::Json => "json",
            FileFormat::Csv => "csv",
            FileFormat::Text => "text",
        }
    }
}

/// Writes data files of one format.
#[derive(Debug)]
pub(super) struct FileWriter {
    pub(super) format: FileFormat,
    pub(super) zone: Tz,
    /// Of Parquet files.
    compression: Compression,
    /// Of all others.
    text: TextCodec,
    csv: CsvDialect,
}

/// How a file of text is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextCodec {
    None,
    Gzip,
    Zstd,
}

impl TextCodec {
    /// By Spark's name.
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "none" | "uncompressed" => Some(TextCodec::None),
            "gzip" => Some(TextCodec::Gzip),
            "zstd" => Some(TextCodec::Zstd),
            _ => None,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            TextCodec::None => "",
            TextCodec::Gzip => ".gz",
            TextCodec::Zstd => ".zst",
        }
    }
}

/// A file of text that is being written.
enum TextFile {
    Plain(BufWriter<File>),
    Gzip(GzEncoder<File>),
    Zstd(zstd::stream::write::Encoder<'static, File>),
}

impl TextFile {
    fn new(file: File, codec: TextCodec) -> std::io::Result<Self> {
        Ok(match codec {
            TextCodec::None => TextFile::Plain(BufWriter::with_capacity(1 << 16, file)),
            TextCodec::Gzip => TextFile::Gzip(GzEncoder::new(file, flate2::Compression::default())),
            TextCodec::Zstd => TextFile::Zstd(zstd::stream::write::Encoder::new(file, 0)?),
        })
    }

    fn write(&mut self, text: &str) -> std::io::Result<()> {
        match self {
            TextFile::Plain(out) => out.write_all(text.as_bytes()),
            TextFile::Gzip(out) => out.write_all(text.as_bytes()),
            TextFile::Zstd(out) => out.write_all(text.as_bytes()),
        }
    }

    fn finish(self) -> std::io::Result<File> {
        match self {
            TextFile::Plain(out) => out.into_inner().map_err(std::io::IntoInnerError::into_error),
            TextFile::Gzip(out) => out.finish(),
            TextFile::Zstd(out) => out.finish(),
        }
    }
}

/// The rows of one partition directory.
pub(super) struct Part {
    /// Relative to the output directory; empty without partitioning.
    pub(super) directory: PathBuf,
    pub(super) schema: SchemaRef,
    pub(super) batches: Vec<RecordBatch>,
}

impl FileWriter {
    pub(super) fn new(format: FileFormat, options: &Options, zone: Tz) -> Result<Self, EngineError> {
        let mut known = vec!["path", "compression"];
        if format == FileFormat::Csv {
            known.extend(CsvDialect::OPTIONS);
        }
        options.check_known(format.name(), &known, &[])?;
        let codec = options.get("compression").map(str::to_lowercase);
        let codec = codec.as_deref();
        let parquet = match codec.unwrap_or("snappy") {
            "snappy" => Some(Compression::SNAPPY),
            "zstd" => Some(Compression::ZSTD(ZstdLevel::default())),
            "none" | "uncompressed" => Some(Compression::UNCOMPRESSED),
            _ => None,
        };
        let text = TextCodec::from_name(codec.unwrap_or("none"));
        let known = if format == FileFormat::Parquet { parquet.is_some() } else { text.is_some() };
        if !known {
            let own = if format == FileFormat::Parquet { "snappy" } else { "gzip" };
            return Err(invalid(format!(
                "the codec '{}' is not available for {}; available: none, uncompressed, {own}, zstd",
                codec.unwrap_or_default(),
                format.name()
            )));
        }
        let (compression, text) = (parquet.unwrap_or(Compression::UNCOMPRESSED), text.unwrap_or(TextCodec::None));
        Ok(FileWriter { format, zone, compression, text, csv: CsvDialect::from_options(options)? })
    }

    /// Refuses what the format cannot hold, in Spark's words.
    pub(super) fn check_schema(&self, schema: &Schema, partition_by: &[String]) -> Result<(), EngineError> {
        for name in partition_by {
            if schema.index_of(name).is_err() {
                let columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
                return Err(EngineError::Invalid {
                    class: "COLUMN_NOT_DEFINED_IN_TABLE",
                    message: format!("Partition column {name} not found in existing columns ({}).", columns.join(", ")),
                });
            }
        }
        let data = || schema.fields().iter().filter(|f| !partition_by.contains(f.name()));
        if !partition_by.is_empty() && data().next().is_none() {
            return Err(EngineError::Invalid {
                class: "ALL_PARTITION_COLUMNS_NOT_ALLOWED",
                message: "Cannot use all columns for partition columns.".to_owned(),
            });
        }
        if self.format == FileFormat::Text {
            let count = data().count();
            if count != 1 {
                return Err(EngineError::Invalid {
                    class: "UNSUPPORTED_TEXT_COLUMNS",
                    message: format!("Text data source supports only a single column, and you have {count} columns."),
                });
            }
        }
        for field in data() {
            let supported = match self.format {
                FileFormat::Text => {
                    matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
                }
                FileFormat::Csv => !field.data_type().is_nested(),
                FileFormat::Parquet | FileFormat::Json => true,
            };
            if !supported {
                return Err(EngineError::Invalid {
                    class: "UNSUPPORTED_DATA_TYPE_FOR_DATASOURCE",
                    message: format!(
                        "The {} datasource doesn't support the column `{}` of the type \"{}\".",
                        self.format.name(),
                        field.name(),
                        field.data_type()
                    ),
                });
            }
        }
        Ok(())
    }

    pub(super) fn suffix(&self) -> String {
        match (self.format, self.compression) {
            (FileFormat::Parquet, Compression::SNAPPY) => ".snappy.parquet".to_owned(),
            (FileFormat::Parquet, Compression::ZSTD(_)) => ".zstd.parquet".to_owned(),
            (FileFormat::Parquet, _) => ".parquet".to_owned(),
            (FileFormat::Text, _) => format!(".txt{}", self.text.suffix()),
            (format, _) => format!(".{}{}", format.name(), self.text.suffix()),
        }
    }

    /// Writes one file; it is not synced yet.
    pub(super) fn write(&self, path: &Path, part: &Part) -> Result<File, EngineError> {
        let file = File::create_new(path).map_err(|e| io_error("create", path, e))?;
        if self.format == FileFormat::Parquet {
            return self.write_parquet(file, path, part);
        }
        let failed = |e| io_error("write", path, e);
        let mut out = TextFile::new(file, self.text).map_err(failed)?;
        let mut text = String::new();
        if self.format == FileFormat::Csv && self.csv.header {
            self.csv.write_header(&mut text, part.schema.fields().iter().map(|f| f.name().as_str()));
        }
        for batch in &part.batches {
            for row in 0..batch.num_rows() {
                match self.format {
                    FileFormat::Json => {
                        json::write_row(&mut text, part.schema.fields(), batch.columns(), row, self.zone);
                    }
                    FileFormat::Csv => self.csv.write_row(&mut text, batch.columns(), row, self.zone),
                    _ => {
                        if let Some(column) = batch.columns().first().filter(|c| !c.is_null(row)) {
                            write_value(&mut text, column.as_ref(), row, &CellStyle::cast(self.zone));
                        }
                    }
                }
                text.push('\n');
                if text.len() > 1 << 16 {
                    out.write(&text).map_err(failed)?;
                    text.clear();
                }
            }
        }
        out.write(&text).map_err(failed)?;
        out.finish().map_err(failed)
    }

    fn write_parquet(&self, file: File, path: &Path, part: &Part) -> Result<File, EngineError> {
        let failed = |e: ParquetError| io_error("write", path, plain_io(e));
        let schema = Arc::new(Schema::new(
            part.schema
                .fields()
                .iter()
                .map(|f| Arc::new(Field::new(f.name(), spark_type(f.data_type()), f.is_nullable())))
                .collect::<Vec<_>>(),
        ));
        let properties = WriterProperties::builder()
            .set_compression(self.compression)
            .set_created_by(concat!("caudal version ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let mut writer = ArrowWriter::try_new_with_options(file, Arc::clone(&schema), options).map_err(failed)?;
        for batch in &part.batches {
            let columns = batch
                .columns()
                .iter()
                .zip(schema.fields())
                .map(|(column, field)| cast(column, field.data_type()))
                .collect::<Result<Vec<ArrayRef>, _>>()?;
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?).map_err(failed)?;
        }
        writer.into_inner().map_err(failed)
    }
}

/// The I/O error inside an error of the Parquet writer.
fn plain_io(error: ParquetError) -> std::io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(own) => *own,
            Err(other) => std::io::Error::other(other),
        },
        other => std::io::Error::other(other),
    }
}

/// The type that Spark can read back: its timestamps have microseconds, its integers a sign.
fn spark_type(data_type: &DataType) -> DataType {
    let field = |f: &Arc<Field>| Arc::new(f.as_ref().clone().with_data_type(spark_type(f.data_type())));
    match data_type {
        DataType::Timestamp(_, zone) => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.as_ref().map(|_| Arc::from("UTC")))
        }
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Date64 => DataType::Date32,
        DataType::Float16 => DataType::Float32,
        DataType::Dictionary(_, values) => spark_type(values),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::List(item) => DataType::List(field(item)),
        DataType::LargeList(item) => DataType::LargeList(field(item)),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        other => other.clone(),
    }
}

/// The rows by partition directory (`a=1/b=x`), without the partition columns; one part, maybe without rows, when
/// nothing is partitioned.
pub(super) fn split_by_partition(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    partition_by: &[String],
    zone: Tz,
) -> Result<Vec<Part>, EngineError> {
    if partition_by.is_empty() {
        let batches: Vec<RecordBatch> = batches.iter().filter(|b| b.num_rows() > 0).cloned().collect();
        let none = batches.is_empty();
        let part = Part { directory: PathBuf::new(), schema: Arc::clone(schema), batches };
        return Ok(if none { Vec::new() } else { vec![part] });
    }
    let keys: Vec<usize> = partition_by.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>()?;
    let kept: Vec<usize> = (0..schema.fields().len()).filter(|i| !keys.contains(i)).collect();
    let data_schema = Arc::new(schema.project(&kept)?);
    let mut parts: Vec<Part> = Vec::new();
    let mut index_of: HashMap<String, usize> = HashMap::new();
    for batch in batches {
        let mut rows: Vec<Vec<u64>> = vec![Vec::new(); parts.len()];
        for row in 0..batch.num_rows() {
            let directory = partition_directory(batch, &keys, partition_by, row, zone);
            let part = *index_of.entry(directory).or_insert_with_key(|directory| {
                parts.push(Part {
                    directory: PathBuf::from(directory),
                    schema: Arc::clone(&data_schema),
                    batches: Vec::new(),
                });
                rows.push(Vec::new());
                parts.len() - 1
            });
            if let Some(rows) = rows.get_mut(part) {
                rows.push(row as u64);
            }
        }
        let data = batch.project(&kept)?;
        for (part, rows) in parts.iter_mut().zip(rows) {
            if !rows.is_empty() {
                part.batches.push(take_record_batch(&data, &UInt64Array::from(rows))?);
            }
        }
    }
    Ok(parts)
}

fn partition_directory(batch: &RecordBatch, keys: &[usize], names: &[String], row: usize, zone: Tz) -> String {
    let mut directory = String::new();
    for (key, name) in keys.iter().zip(names) {
        if !directory.is_empty() {
            directory.push('/');
        }
        directory.push_str(&escape_partition(name));
        directory.push('=');
        let column = batch.column(*key);
        let mut text = String::new();
        if !column.is_null(row) {
            write_value(&mut text, column.as_ref(), row, &CellStyle::cast(zone));
        }
        // Spark writes an empty string as null, too: a directory name cannot hold it.
        if text.is_empty() {
            directory.push_str(DEFAULT_PARTITION);
        } else {
            directory.push_str(&escape_partition(&text));
        }
    }
    directory
}
