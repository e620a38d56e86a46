//! From record batches to the columns of Spark's Kafka source.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, ListBuilder, RecordBatch, RecordBatchOptions, StringArray,
    StringBuilder, StructBuilder, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use caudal_protocol::batch::{Batch, TimestampType};
use caudal_protocol::compression::Codec;
use caudal_protocol::record::{HeadersRef, RecordError, RecordRef};

use crate::error::EngineError;

/// Length, attributes, two deltas, two sizes and the number of headers, a byte each.
const MIN_RECORD_BYTES: usize = 7;
/// What a batch may grow to when it is decompressed.
const BATCH_LIMIT_BYTES: usize = 1 << 30;

/// The columns in the order of [`full_schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Key,
    Value,
    Topic,
    Partition,
    Offset,
    Timestamp,
    TimestampType,
    Headers,
}

pub(super) const COLUMNS: [Column; 8] = [
    Column::Key,
    Column::Value,
    Column::Topic,
    Column::Partition,
    Column::Offset,
    Column::Timestamp,
    Column::TimestampType,
    Column::Headers,
];

fn header_fields() -> Fields {
    vec![Field::new("key", DataType::Utf8, true), Field::new("value", DataType::Binary, true)].into()
}

/// The schema of Spark's Kafka source; `headers` only with `includeHeaders`.
pub fn full_schema(include_headers: bool) -> SchemaRef {
    let item = Field::new("item", DataType::Struct(header_fields()), true);
    let mut fields = vec![
        Field::new("key", DataType::Binary, true),
        Field::new("value", DataType::Binary, true),
        Field::new("topic", DataType::Utf8, true),
        Field::new("partition", DataType::Int32, true),
        Field::new("offset", DataType::Int64, true),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))), true),
        Field::new("timestampType", DataType::Int32, true),
    ];
    if include_headers {
        fields.push(Field::new("headers", DataType::List(Arc::new(item)), true));
    }
    Arc::new(Schema::new(fields))
}

/// Which columns are built, and their schema.
#[derive(Debug, Clone)]
pub(super) struct Projection {
    pub(super) columns: Vec<Column>,
    pub(super) schema: SchemaRef,
}

impl Projection {
    pub(super) fn all(include_headers: bool) -> Self {
        let count = if include_headers { COLUMNS.len() } else { COLUMNS.len() - 1 };
        Projection { columns: COLUMNS.into_iter().take(count).collect(), schema: full_schema(include_headers) }
    }

    /// These columns of this projection; `None` when one is not there.
    pub(super) fn narrow(&self, indexes: &[usize]) -> Option<Self> {
        let columns = indexes.iter().map(|i| self.columns.get(*i).copied()).collect::<Option<Vec<_>>>()?;
        Some(Projection { columns, schema: Arc::new(self.schema.project(indexes).ok()?) })
    }

    fn has(&self, column: Column) -> bool {
        self.columns.contains(&column)
    }
}

/// The columns of records that are being gathered. Only the projected ones are filled.
struct Builders {
    rows: usize,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    offsets: Vec<i64>,
    timestamps_us: Vec<i64>,
    timestamp_types: Vec<i32>,
    headers: ListBuilder<StructBuilder>,
}

/// Rows after which a batch of columns is closed, and bytes of keys and values: with one more Kafka batch
/// ([`BATCH_LIMIT_BYTES`]) they must stay below the 2 GiB of 32-bit offsets.
const MAX_ROWS: usize = 1 << 16;
const MAX_BYTES: usize = 1 << 29;

/// The records of `batches` with offsets in `range` (end exclusive), as columns.
pub(super) fn to_columns(
    projection: &Projection,
    topic: &str,
    partition: i32,
    batches: &[Batch],
    range: (i64, i64),
) -> Result<Vec<RecordBatch>, EngineError> {
    let mut done = Vec::new();
    let mut left = batches;
    while !left.is_empty() {
        let mut builders = Builders::with_capacity(projection, left);
        while let Some((batch, rest)) = left.split_first() {
            append_batch(projection, &mut builders, batch, range)
                .map_err(|e| malformed(topic, partition, batch, &e.to_string()))?;
            left = rest;
            if builders.rows >= MAX_ROWS || builders.size_bytes() >= MAX_BYTES {
                break;
            }
        }
        if builders.rows > 0 {
            done.push(finish(projection, builders, topic, partition)?);
        }
    }
    Ok(done)
}

impl Builders {
    fn with_capacity(projection: &Projection, batches: &[Batch]) -> Self {
        let counted: usize = batches.iter().map(|b| usize::try_from(b.header.record_count).unwrap_or(0)).sum();
        // The counts come from the network, the bytes have arrived: a record takes at least 7 of them, decompressed.
        let bytes: usize = batches.iter().map(|b| b.bytes.len()).sum();
        let rows = counted.min(bytes).min(MAX_ROWS);
        let room = |column| if projection.has(column) { rows } else { 0 };
        let bytes = bytes.min(MAX_BYTES);
        Builders {
            rows: 0,
            keys: BinaryBuilder::with_capacity(room(Column::Key), if room(Column::Key) > 0 { bytes / 8 } else { 0 }),
            values: BinaryBuilder::with_capacity(room(Column::Value), if room(Column::Value) > 0 { bytes } else { 0 }),
            offsets: Vec::with_capacity(room(Column::Offset)),
            timestamps_us: Vec::with_capacity(room(Column::Timestamp)),
            timestamp_types: Vec::with_capacity(room(Column::TimestampType)),
            headers: ListBuilder::new(StructBuilder::from_fields(header_fields(), 0)),
        }
    }

    fn size_bytes(&self) -> usize {
        self.keys.values_slice().len() + self.values.values_slice().len()
    }
}

fn malformed(topic: &str, partition: i32, batch: &Batch, reason: &str) -> EngineError {
    let (first, next) = (batch.header.base_offset, batch.header.last_offset().saturating_add(1));
    let own = format!("failed to read the batch at offset {first}: ");
    let reason = reason.strip_prefix(&own).unwrap_or(reason);
    let deletion = format!(
        "{{\"partitions\":[{{\"topic\":\"{topic}\",\"partition\":{partition},\"offset\":{next}}}],\"version\":1}}"
    );
    EngineError::External {
        action: format!("read the batch at offset {first} of topic {topic}, partition {partition}"),
        message: format!(
            "{reason}. No consumer can read its records, offsets {first} to {}. To go on behind them, delete them, and all \
             before them, with kafka-delete-records and {deletion}, and run the query with the option \
             failOnDataLoss=false; or start with a new checkpoint and startingOffsets \
             {{\"{topic}\":{{\"{partition}\":{next}}}}}",
            next - 1
        ),
    }
}

fn append_batch(
    projection: &Projection,
    out: &mut Builders,
    batch: &Batch,
    (start, end): (i64, i64),
) -> Result<(), RecordError> {
    let header = &batch.header;
    let whole = header.base_offset >= start && header.last_offset() < end;
    let needs_records = projection
        .columns
        .iter()
        .any(|c| matches!(c, Column::Key | Column::Value | Column::Offset | Column::Timestamp | Column::Headers));
    let timestamp_type = match header.timestamp_type() {
        TimestampType::CreateTime => 0,
        TimestampType::LogAppendTime => 1,
    };
    let uncompressed = header.codec() == Some(Codec::None);
    let counted = usize::try_from(header.record_count).unwrap_or(0);
    // A record takes at least this many bytes, so that what has arrived bounds the count.
    if whole && !needs_records && uncompressed && counted <= batch.bytes.len() / MIN_RECORD_BYTES {
        out.rows += counted;
    } else {
        // A count of compressed records is a claim until they were walked over.

        let records = batch.records(BATCH_LIMIT_BYTES)?;
        for record in records.iter() {
            let record = record?;
            if whole || (record.offset >= start && record.offset < end) {
                append_record(projection, out, &record)?;
            }
        }
    }
    if projection.has(Column::TimestampType) {
        out.timestamp_types.resize(out.rows, timestamp_type);
    }
    Ok(())
}

#[inline]
fn append_record(projection: &Projection, out: &mut Builders, record: &RecordRef<'_>) -> Result<(), RecordError> {
    out.rows += 1;
    for column in &projection.columns {
        match column {
            Column::Key => out.keys.append_option(record.key),
            Column::Value => out.values.append_option(record.value),
            Column::Offset => out.offsets.push(record.offset),
            Column::Timestamp => out.timestamps_us.push(record.timestamp_ms.saturating_mul(1_000)),
            Column::Headers => append_headers(&mut out.headers, record)?,
            Column::Topic | Column::Partition | Column::TimestampType => {}
        }
    }
    Ok(())
}

/// Null when there are none, as in Spark.
fn append_headers(out: &mut ListBuilder<StructBuilder>, record: &RecordRef<'_>) -> Result<(), RecordError> {
    let headers: HeadersRef<'_> = record.headers;
    if headers.is_empty() {
        out.append_null();
        return Ok(());
    }
    for header in headers.iter() {
        let header =
            header.map_err(|reason| RecordError::Malformed { base_offset: record.offset, index: 0, reason })?;
        let entry = out.values();
        if let Some(keys) = entry.field_builder::<StringBuilder>(0) {
            keys.append_value(String::from_utf8_lossy(header.key));
        }
        if let Some(values) = entry.field_builder::<BinaryBuilder>(1) {
            values.append_option(header.value);
        }
        entry.append(true);
    }
    out.append(true);
    Ok(())
}

fn finish(
    projection: &Projection,
    mut builders: Builders,
    topic: &str,
    partition: i32,
) -> Result<RecordBatch, EngineError> {
    let rows = builders.rows;
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(projection.columns.len());
    for (column, field) in projection.columns.iter().zip(projection.schema.fields()) {
        columns.push(match column {
            Column::Key => Arc::new(builders.keys.finish_cloned()),
            Column::Value if projection.columns.iter().filter(|c| **c == Column::Value).count() > 1 => {
                Arc::new(builders.values.finish_cloned())
            }
            Column::Value => Arc::new(builders.values.finish()),
            Column::Topic => Arc::new(repeated(topic, rows)?),
            Column::Partition => Arc::new(Int32Array::from(vec![partition; rows])),
            Column::Offset => Arc::new(Int64Array::from(std::mem::take(&mut builders.offsets))),
            Column::Timestamp => Arc::new(
                TimestampMicrosecondArray::from(std::mem::take(&mut builders.timestamps_us)).with_timezone("UTC"),
            ),
            Column::TimestampType => Arc::new(Int32Array::from(std::mem::take(&mut builders.timestamp_types))),
            Column::Headers => arrow::compute::cast(&builders.headers.finish(), field.data_type())?,
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(&projection.schema), columns, &options)?)
}

/// A column of one text.
fn repeated(text: &str, rows: usize) -> Result<StringArray, EngineError> {
    let len = i32::try_from(text.len()).unwrap_or(i32::MAX);
    if rows.saturating_mul(text.len()) > i32::MAX as usize {
        return Err(EngineError::External {
            action: format!("name the topic {text} beside each of its records"),
            message: format!("one of its batches holds {rows} records, more than a column has room for"),
        });
    }
    let offsets: Vec<i32> = (0..=i32::try_from(rows).unwrap_or(i32::MAX)).map(|i| i.saturating_mul(len)).collect();
    let data = Buffer::from_vec(text.as_bytes().repeat(rows));
    Ok(StringArray::try_new(OffsetBuffer::new(ScalarBuffer::from(offsets)), data, None)?)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use caudal_protocol::batch::{BatchBuilder, HEADER_LEN};

    use super::*;

    #[test]
    fn a_batch_that_cannot_be_read_says_where_it_is_and_how_to_go_on() {
        let mut builder = BatchBuilder::new(Codec::Gzip).base_offset(7);
        (0..3).for_each(|n| builder.append(n, None, Some(b"value"), &[]));
        let mut bytes = builder.build().unwrap();
        bytes[HEADER_LEN..].fill(0);
        let batch = Batch::parse(&bytes.freeze()).unwrap();
        let error = to_columns(&Projection::all(false), "t", 4, &[batch], (7, 10)).unwrap_err().to_string();
        assert!(
            error.starts_with("failed to read the batch at offset 7 of topic t, partition 4: failed to decompress"),
            "{error}"
        );
        for part in ["offsets 7 to 9", r#""partition":4,"offset":10"#, r#"startingOffsets {"t":{"4":10}}"#] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    /// A batch of three records that claims to hold `count`, with a CRC that fits.
    fn batch(codec: Codec, count: i32) -> Batch {
        let mut builder = BatchBuilder::new(codec);
        for value in [b"a", b"b", b"c"] {
            builder.append(0, None, Some(&value[..]), &[]);
        }
        let mut bytes = builder.build().unwrap().to_vec();
        bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        Batch::parse(&Bytes::from(bytes)).unwrap()
    }

    #[test]
    fn a_count_from_the_network_is_believed_when_it_was_counted() {
        let projections: [&[usize]; 4] = [&[], &[2], &[3], &[6]];
        for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            for columns in projections {
                let projection = Projection::all(false).narrow(columns).unwrap();
                let read = |count| to_columns(&projection, "t", 0, &[batch(codec, count)], (0, i64::MAX));
                assert_eq!(read(3).unwrap()[0].num_rows(), 3);
                for count in [2, 4, 1_000, i32::MAX] {
                    // The few bytes of an uncompressed batch bound what it may claim.
                    let small = codec == Codec::None && count <= 4;
                    match read(count) {
                        Err(error) => {
                            assert!(error.to_string().contains("offset 0 of topic t, partition 0"), "{error}")
                        }
                        Ok(rows) => assert!(small, "{codec:?} {count}: {} rows", rows[0].num_rows()),
                    }
                }
            }
        }
    }
}
