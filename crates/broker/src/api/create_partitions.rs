//! CreatePartitions (37), versions 0-3: more partitions for topics that exist.

use caudal_cluster::controller;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use caudal_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use caudal_protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse};

use super::RequestHeader;
use crate::context::Context;
use crate::quota::Admitted;

/// From this version on clients know THROTTLING_QUOTA_EXCEEDED.
const STRICT_FROM: i16 = 3;

pub async fn handle(
    ctx: &Context,
    header: &RequestHeader,
    mut request: CreatePartitionsRequest,
    version: i16,
) -> CreatePartitionsResponse {
    let (image, validate_only) = (ctx.metadata.image(), request.validate_only);
    let partitions = |topic: &CreatePartitionsTopic| match image.topic(&topic.name) {
        Some(known) if !validate_only => {
            usize::try_from(topic.count.saturating_sub(known.partition_count())).unwrap_or(0)
        }
        _ => 0,
    };
    let topics = std::mem::take(&mut request.topics);
    let Admitted { admitted, refused, throttle_ms } =
        ctx.quotas.admit(header, version >= STRICT_FROM, topics, partitions);
    request.topics = admitted;
    let mut response = create(ctx, request).await;
    let exceeded = refused.into_iter().map(|topic| CreatePartitionsTopicResult {
        name: topic.name,
        error_code: ErrorCode::ThrottlingQuotaExceeded.code(),
        error_message: Some(ErrorCode::ThrottlingQuotaExceeded.message().to_owned()),
    });
    response.results.extend(exceeded);
    response.throttle_time_ms = throttle_ms;
    response
}

async fn create(ctx: &Context, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let decided = ctx.metadata.change(|image| controller::create_partitions(image, &request)).await;
    decided.unwrap_or_else(|error| {
        let results = request.topics.into_iter().map(|topic| CreatePartitionsTopicResult {
            name: topic.name,
            error_code: error.code.code(),
            error_message: Some(error.message.clone()),
        });
        CreatePartitionsResponse { throttle_time_ms: 0, results: results.collect() }
    })
}
