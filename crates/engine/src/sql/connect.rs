//! From `USING format OPTIONS (...)` to sources and sinks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::datatypes::SchemaRef;

use super::catalog::{OpenSource, Reading, Table, with_options};
use super::error::{SqlError, did_you_mean};
use crate::error::EngineError;
use crate::options::Options;
use crate::plan::SourceFactory;
use crate::sink::file::{FileFormat, FileSink};
use crate::source::file::FileTable;
use crate::source::kafka::KafkaTable;
use crate::source::rate::{RateFactory, RateOptions};

/// What `USING` may name when a table is read.
const READABLE: [&str; 6] = ["kafka", "json", "csv", "parquet", "text", "rate"];

fn options_of(options: &BTreeMap<String, String>) -> Options {
    options.iter().collect()
}

/// A statement's options with its `LOCATION`.
pub(super) fn located<'a>(
    options: impl IntoIterator<Item = &'a (String, String)>,
    location: Option<&String>,
) -> Result<BTreeMap<String, String>, SqlError> {
    let mut options = with_options(BTreeMap::new(), options);
    let Some(location) = location else { return Ok(options) };
    match options.insert("path".to_owned(), location.clone()) {
        Some(path) if path != *location => {
            let message = format!(
                "Duplicated table paths found: '{path}' and '{location}'. LOCATION and the option 'path' both say where the table is; one of them has to go."
            );
            Err(SqlError::parse(message))
        }
        _ => Ok(options),
    }
}

/// A table over something outside.
pub(super) fn table(
    format: &str,
    options: BTreeMap<String, String>,
    schema: Option<SchemaRef>,
    zone: Tz,
) -> Result<Table, SqlError> {
    let name = format.to_owned();
    let given = schema.clone();
    let open: Arc<OpenSource> = Arc::new(move |options, reading| source(&name, options, reading, given.clone(), zone));
    if !READABLE.contains(&format) {
        return Err(unknown_format(format));
    }
    let fixed = ["rate", "kafka"].contains(&format);
    let schema = match schema {
        Some(_) if fixed => {
            let message = format!("The data source {format} has columns of its own; the table cannot name others.");
            return Err(
                SqlError::new("USER_SPECIFIED_SCHEMA_UNSUPPORTED", message).hint("Leave the list of columns out.")
            );
        }
        Some(schema) => schema,
        // Opened once now, so that a wrong option or a missing path is the fault of this statement.
        None if fixed => {
            let stream = open(&options, Reading::Stream);
            // `endingOffsets` are for tables only.
            stream.or_else(|error| open(&options, Reading::Batch).map_err(|_| error))?.schema()
        }
        None => open(&options, Reading::Batch)?.schema(),
    };
    Ok(Table::External { format: format.to_owned(), options, schema, open })
}

/// Options of Spark's Kafka source that tune parts which Caudal does not have: its pool of consumers, and the retries of
/// its offset reader. The client's own timeouts are `kafka.*` options.
const WITHOUT_EFFECT: [&str; 3] =
    ["kafkaConsumer.pollTimeoutMs", "fetchOffset.numRetries", "fetchOffset.retryIntervalMs"];

/// What is to be said about options that do nothing.
pub(super) fn warnings<'a>(format: &str, names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let idle = |name: &&String| format == "kafka" && WITHOUT_EFFECT.iter().any(|w| w.eq_ignore_ascii_case(name));
    let warning = |name| {
        format!(
            "warning: the option {name} tunes Spark's Kafka consumers; it has no effect in Caudal. Timeouts and retries of the client are options such as 'kafka.request.timeout.ms' and 'kafka.retry.backoff.ms'."
        )
    };
    names.into_iter().filter(idle).map(warning).collect()
}

/// Options of Kafka's producer about the records that it gathers on the way to a request. A micro-batch is there at once,
/// goes out in requests of up to `max.request.size`, one in flight per partition, and is always idempotent.
const WITHOUT_EFFECT_ON_SINK: [&str; 6] = [
    "kafka.linger.ms",
    "kafka.batch.size",
    "kafka.buffer.memory",
    "kafka.max.block.ms",
    "kafka.max.in.flight.requests.per.connection",
    "kafka.enable.idempotence",
];

/// What is to be said about options of a streaming table that do nothing.
pub(super) fn sink_warnings<'a>(format: &str, names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let idle =
        |name: &&String| format == "kafka" && WITHOUT_EFFECT_ON_SINK.iter().any(|w| w.eq_ignore_ascii_case(name));
    let warning = |name| {
        format!(
            "warning: the option {name} has no effect: a micro-batch is written at once, in requests of up to kafka.max.request.size, by an idempotent producer. kafka.request.timeout.ms, kafka.delivery.timeout.ms and kafka.retries are heeded."
        )
    };
    names.into_iter().filter(idle).map(warning).collect()
}

fn unknown_format(format: &str) -> SqlError {
    let error = SqlError::new(
        "DATA_SOURCE_NOT_FOUND",
        format!("Failed to find the data source: {format}. Make sure the provider name is correct. SQLSTATE: 42K02"),
    );
    let known = format!("Caudal has: {}.", READABLE.join(", "));
    error.hint(match did_you_mean(format, READABLE) {
        Some(near) => format!("Did you mean {near}? {known}"),
        None => known,
    })
}

fn source(
    format: &str,
    options: &BTreeMap<String, String>,
    reading: Reading,
    schema: Option<SchemaRef>,
    zone: Tz,
) -> Result<Arc<dyn SourceFactory>, EngineError> {
    let given = options_of(options);
    if format == "kafka" {
        let table = match reading {
            Reading::Batch => KafkaTable::table(&given)?,
            Reading::Stream => KafkaTable::stream(&given)?,
        };
        return Ok(Arc::new(table));
    }
    if let Some(file) = FileFormat::from_name(format) {
        let table = match reading {
            Reading::Batch => FileTable::table(file, &given, schema, zone)?,
            // A table's schema is known, inferred if need be, which Spark asks for only of streams made by hand.
            Reading::Stream if schema.is_some() => FileTable::stream(file, &given, schema, zone)?,
            Reading::Stream => {
                let inferred = FileTable::table(file, &given, None, zone)?.schema();
                FileTable::stream(file, &given, Some(inferred), zone)?
            }
        };
        return Ok(Arc::new(table));
    }
    match format {
        "rate" => Ok(Arc::new(RateFactory::new(RateOptions::parse(given.iter())?))),
        other => {
            Err(EngineError::Invalid { class: "DATA_SOURCE_NOT_FOUND", message: format!("no data source {other}") })
        }
    }
}

/// With which options files are read that were written with these: how they are compressed stands in them.
pub(super) fn reading_options(mut writing: BTreeMap<String, String>) -> BTreeMap<String, String> {
    writing.retain(|name, _| !name.eq_ignore_ascii_case("compression"));
    writing
}

/// The file sink of a streaming table.
pub(super) fn file_sink(
    format: FileFormat,
    options: &BTreeMap<String, String>,
    partitioned_by: &[String],
    directory: &Path,
    zone: Tz,
) -> Result<FileSink, SqlError> {
    let mut options = options_of(options);
    if options.get("path").is_none() {
        options.set("path", directory.display().to_string());
    }
    Ok(FileSink::new(format, &options, partitioned_by, zone)?)
}
