//! DeleteRecords (21), versions 0-2: moves the start of a log up (KIP-107). Offset -1 stands for the high watermark.
//!
//! Refused for internal topics, and for topics that are only compacted (POLICY_VIOLATION), as in Kafka; one with neither
//! policy (an empty `cleanup.policy`) has its records deleted.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsRequest};
use caudal_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsResponse, DeleteRecordsTopicResult,
};

use super::RequestHeader;
use crate::context::Context;
use crate::topics::TopicsView;

const TO_HIGH_WATERMARK: i64 = -1;
const UNKNOWN: i64 = -1;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DeleteRecordsRequest,
    _version: i16,
) -> DeleteRecordsResponse {
    let view = ctx.topics.view();
    ctx.blocking(None, move || delete_all(&view, request)).await
}

fn delete_all(view: &TopicsView, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|wanted| {
            let deleted = delete(view, &topic.name, wanted);
            DeleteRecordsPartitionResult {
                partition_index: wanted.partition_index,
                low_watermark: *deleted.as_ref().unwrap_or(&UNKNOWN),
                error_code: deleted.err().unwrap_or(ErrorCode::None).code(),
            }
        });
        let partitions = partitions.collect();
        DeleteRecordsTopicResult { name: topic.name, partitions }
    });
    DeleteRecordsResponse { topics: topics.collect(), ..DeleteRecordsResponse::default() }
}

fn delete(view: &TopicsView, topic: &str, wanted: &DeleteRecordsPartition) -> Result<i64, ErrorCode> {
    let partition = view.find(topic, wanted.partition_index)?;
    if topic.starts_with("__") && ["__consumer_offsets", "__transaction_state", "__share_group_state"].contains(&topic)
    {
        return Err(ErrorCode::InvalidTopicException);
    }
    let config = partition.log.config();
    if config.cleanup_compact && !config.cleanup_delete {
        return Err(ErrorCode::PolicyViolation);
    }
    let high_watermark = partition.high_watermark();
    let offset = if wanted.offset == TO_HIGH_WATERMARK { high_watermark } else { wanted.offset };
    if !(0..=high_watermark).contains(&offset) {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    partition.log.delete_records_before(offset).map_err(|error| {
        let code = error.error_code();
        if code == ErrorCode::KafkaStorageError {
            tracing::error!(partition = %partition.name, offset, "failed to delete records: {error}");
        }
        code
    })?;
    partition.wake();
    Ok(partition.log.log_start_offset())
}
