//! The columns that become records, with Spark's checks and words (`KafkaWriter`).

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Schema};
use caudal_client::producer::partition_of_key;
use caudal_protocol::TopicPartition;

use crate::error::EngineError;

/// A header's name and value.
pub(super) type HeaderBytes<'a> = (&'a [u8], Option<&'a [u8]>);

fn analysis(message: String) -> EngineError {
    EngineError::Invalid { class: "KAFKA_SINK", message }
}

/// Refuses rows that cannot be records.
pub(super) fn check_schema(schema: &Schema, topic_option: Option<&str>) -> Result<(), EngineError> {
    let text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let binary = |t: &DataType| matches!(t, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    let headers = |t: &DataType| match t {
        DataType::List(item) => match item.data_type() {
            DataType::Struct(fields) => {
                matches!(fields.as_ref(), [key, value] if text(key.data_type()) && binary(value.data_type()))
            }
            _ => false,
        },
        _ => false,
    };
    let column = |name: &str| schema.fields().iter().find(|f| f.name().eq_ignore_ascii_case(name));
    let check = |name: &str, allowed: &str, accept: &dyn Fn(&DataType) -> bool| match column(name) {
        Some(field) if !accept(field.data_type()) => Err(analysis(format!(
            "{name} attribute unsupported type {}. {name} must be a(n) {allowed}",
            field.data_type()
        ))),
        _ => Ok(()),
    };
    if topic_option.is_none() && column("topic").is_none() {
        return Err(analysis(
            "topic option required when no 'topic' attribute is present. Use the topic option for setting a topic."
                .to_owned(),
        ));
    }
    if column("value").is_none() {
        return Err(analysis("Required attribute 'value' not found".to_owned()));
    }
    check("topic", "string", &text)?;
    check("key", "string or binary", &|t| text(t) || binary(t))?;
    check("value", "string or binary", &|t| text(t) || binary(t))?;
    check("headers", "array<struct<key:string,value:binary>>", &headers)?;
    check("partition", "int", &|t| *t == DataType::Int32)
}

/// One batch of rows as records.
pub(super) struct Rows {
    topics: Option<ArrayRef>,
    keys: Option<ArrayRef>,
    values: ArrayRef,
    partitions: Option<ArrayRef>,
    headers: Option<ArrayRef>,
    pub(super) len: usize,
}

impl Rows {
    pub(super) fn new(batch: &RecordBatch) -> Result<Self, EngineError> {
        let column = |name: &str, to: &DataType| -> Result<Option<ArrayRef>, EngineError> {
            let index = batch.schema_ref().fields().iter().position(|f| f.name().eq_ignore_ascii_case(name));
            index.map(|i| cast(batch.column(i), to).map_err(EngineError::from)).transpose()
        };
        let headers = batch.schema_ref().fields().iter().position(|f| f.name().eq_ignore_ascii_case("headers"));
        Ok(Rows {
            topics: column("topic", &DataType::Utf8)?,
            keys: column("key", &DataType::Binary)?,
            values: column("value", &DataType::Binary)?
                .ok_or_else(|| analysis("Required attribute 'value' not found".to_owned()))?,
            partitions: column("partition", &DataType::Int32)?,
            headers: headers.map(|i| cast_headers(batch.column(i))).transpose()?,
            len: batch.num_rows(),
        })
    }

    /// The option's topic wins over the column, as in Spark.
    pub(super) fn topic<'a>(&'a self, row: usize, option: Option<&'a str>) -> Result<&'a str, EngineError> {
        let from_column = || {
            let column = self.topics.as_ref().filter(|c| !c.is_null(row))?;
            Some(column.as_string::<i32>().value(row))
        };
        option.or_else(from_column).ok_or_else(|| {
            analysis("null topic present in the data. Use the topic option for setting a default topic.".to_owned())
        })
    }

    pub(super) fn key(&self, row: usize) -> Option<&[u8]> {
        self.keys.as_ref().filter(|c| !c.is_null(row)).map(|c| c.as_binary::<i32>().value(row))
    }

    pub(super) fn value(&self, row: usize) -> Option<&[u8]> {
        (!self.values.is_null(row)).then(|| self.values.as_binary::<i32>().value(row))
    }

    pub(super) fn headers(&self, row: usize) -> Vec<HeaderBytes<'_>> {
        let Some(column) = self.headers.as_ref().filter(|c| !c.is_null(row)) else { return Vec::new() };
        let list = column.as_list::<i32>();
        let offsets = list.value_offsets();
        let entries = list.values().as_struct();
        let (keys, values) = (entries.column(0).as_string::<i32>(), entries.column(1).as_binary::<i32>());
        let bound = |at: usize| offsets.get(at).and_then(|o| usize::try_from(*o).ok()).unwrap_or_default();
        (bound(row)..bound(row + 1))
            .map(|i| (keys.value(i).as_bytes(), (!values.is_null(i)).then(|| values.value(i))))
            .collect()
    }

    /// The partition by column, by key, or `keyless`.
    pub(super) fn partition(
        &self,
        row: usize,
        topic: &str,
        count: usize,
        keyless: i32,
    ) -> Result<TopicPartition, EngineError> {
        let explicit = self.partitions.as_ref().filter(|c| !c.is_null(row));
        let partition = match (explicit, self.key(row)) {
            (Some(column), _) => column.as_primitive::<Int32Type>().value(row),
            (None, Some(key)) => partition_of_key(key, count),
            (None, None) => keyless,
        };
        if usize::try_from(partition).is_ok_and(|p| p < count) {
            return Ok(TopicPartition::new(topic, partition));
        }
        Err(analysis(format!(
            "the row's partition {partition} does not exist: topic '{topic}' has partitions 0 to {}",
            count.saturating_sub(1)
        )))
    }
}

fn cast_headers(column: &ArrayRef) -> Result<ArrayRef, EngineError> {
    use arrow::datatypes::{Field, Fields};
    let fields: Fields =
        vec![Field::new("key", DataType::Utf8, true), Field::new("value", DataType::Binary, true)].into();
    let list = column.as_list::<i32>();
    let entries = list.values().as_struct();
    let columns =
        entries.columns().iter().zip(&fields).map(|(c, f)| cast(c, f.data_type())).collect::<Result<Vec<_>, _>>()?;
    let entries = arrow::array::StructArray::try_new(fields.clone(), columns, entries.nulls().cloned())?;
    let item = std::sync::Arc::new(Field::new("item", DataType::Struct(fields), true));
    let list = arrow::array::ListArray::try_new(
        item,
        list.offsets().clone(),
        std::sync::Arc::new(entries),
        list.nulls().cloned(),
    )?;
    Ok(std::sync::Arc::new(list))
}

/// A record's content as one key for comparing: what it says, not when or where it was written.
pub(super) fn fingerprint(
    topic: &str,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[HeaderBytes<'_>],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(topic.len() + key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + 24);
    let mut put = |part: Option<&[u8]>| {
        let len = part.map_or(u64::MAX, |p| p.len() as u64);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(part.unwrap_or_default());
    };
    put(Some(topic.as_bytes()));
    put(key);
    put(value);
    for (name, value) in headers {
        put(Some(name));
        put(*value);
    }
    out
}
