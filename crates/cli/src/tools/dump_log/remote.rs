//! Records of `__remote_log_metadata`, as `toString` of Kafka's classes shows them.

use std::collections::BTreeMap;

use caudal_protocol::schema::{REMOTE_LOG, Struct, Value};

use super::decode::framed;

const SEGMENT_STATES: [&str; 4] =
    ["COPY_SEGMENT_STARTED", "COPY_SEGMENT_FINISHED", "DELETE_SEGMENT_STARTED", "DELETE_SEGMENT_FINISHED"];
const PARTITION_STATES: [&str; 3] =
    ["DELETE_PARTITION_MARKED", "DELETE_PARTITION_STARTED", "DELETE_PARTITION_FINISHED"];

pub fn text(value: Option<&[u8]>) -> Result<String, String> {
    let (schema, _, data) = framed(REMOTE_LOG, value)?;
    let n = |name: &str| number(&data, name);
    let state = |names: &[&str], field: &str| {
        let id = n(field);
        let name = usize::try_from(id).ok().and_then(|id| names.get(id)).map(|name| (*name).to_owned());
        name.ok_or_else(|| format!("state {id} is unknown"))
    };
    let segment_state = || state(&SEGMENT_STATES, "remoteLogSegmentState");
    Ok(match schema.name {
        "RemoteLogSegmentMetadataRecord" => format!(
            "RemoteLogSegmentMetadata{{remoteLogSegmentId={}, startOffset={}, endOffset={}, brokerId={}, maxTimestampMs={}, \
             eventTimestampMs={}, segmentLeaderEpochs={}, segmentSizeInBytes={}, customMetadata={}, state={}, txnIdxEmpty={}}}",
            segment(&data),
            n("startOffset"),
            n("endOffset"),
            n("brokerId"),
            n("maxTimestampMs"),
            n("eventTimestampMs"),
            epochs(&data),
            n("segmentSizeInBytes"),
            custom(&data),
            segment_state()?,
            is_set(&data, "txnIndexEmpty"),
        ),
        "RemoteLogSegmentMetadataUpdateRecord" => format!(
            "RemoteLogSegmentMetadataUpdate{{remoteLogSegmentId={}, customMetadata={}, state={}, eventTimestampMs={}, brokerId={}}}",
            segment(&data),
            custom(&data),
            segment_state()?,
            n("eventTimestampMs"),
            n("brokerId"),
        ),
        "RemotePartitionDeleteMetadataRecord" => format!(
            "RemotePartitionDeleteMetadata{{topicPartition={}, state={}, eventTimestampMs={}, brokerId={}}}",
            partition(&data),
            state(&PARTITION_STATES, "remotePartitionDeleteState")?,
            n("eventTimestampMs"),
            n("brokerId"),
        ),
        _ => format!(
            "RemoteLogSegmentMetadataSnapshot{{segmentId={}, startOffset={}, endOffset={}, maxTimestampMs={}, \
             segmentLeaderEpochs={}, segmentSizeInBytes={}, customMetadata={}, state={}, txnIdxEmpty={}}}",
            id(&data, "segmentId"),
            n("startOffset"),
            n("endOffset"),
            n("maxTimestampMs"),
            epochs(&data),
            n("segmentSizeInBytes"),
            custom(&data),
            segment_state()?,
            is_set(&data, "txnIndexEmpty"),
        ),
    })
}

fn number(data: &Struct, name: &str) -> i64 {
    if let Some(Value::Int(n)) = data.get(name) { *n } else { 0 }
}

fn is_set(data: &Struct, name: &str) -> bool {
    data.get(name) == Some(&Value::Bool(true))
}

fn id(data: &Struct, name: &str) -> String {
    if let Some(Value::Uuid(id)) = data.get(name) { id.to_string() } else { String::new() }
}

fn custom(data: &Struct) -> String {
    match data.get("customMetadata") {
        Some(Value::Bytes(bytes)) => format!("Optional[CustomMetadata{{{} bytes}}]", bytes.len()),
        _ => "Optional.empty".to_owned(),
    }
}

fn epochs(data: &Struct) -> String {
    let Some(Value::Array(items)) = data.get("segmentLeaderEpochs") else { return "{}".to_owned() };
    let pairs = items.iter().filter_map(|item| match item {
        Value::Struct(entry) => Some((number(entry, "leaderEpoch"), number(entry, "offset"))),
        _ => None,
    });
    let sorted: BTreeMap<i64, i64> = pairs.collect();
    let texts: Vec<String> = sorted.iter().map(|(epoch, offset)| format!("{epoch}={offset}")).collect();
    format!("{{{}}}", texts.join(", "))
}

fn partition(data: &Struct) -> String {
    let Some(Value::Struct(tp)) = data.get("topicIdPartition") else { return String::new() };
    let name = if let Some(Value::Text(name)) = tp.get("name") { name } else { "" };
    format!("{}:{name}-{}", id(tp, "id"), number(tp, "partition"))
}

fn segment(data: &Struct) -> String {
    let Some(Value::Struct(segment)) = data.get("remoteLogSegmentId") else { return String::new() };
    format!("RemoteLogSegmentId{{topicIdPartition={}, id={}}}", partition(segment), id(segment, "id"))
}
