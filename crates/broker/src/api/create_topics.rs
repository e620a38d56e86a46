//! CreateTopics (19), versions 2-7. Answered when the topics are durable in the metadata log and their logs exist.

use caudal_cluster::controller::{self, Node};
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::create_topics_request::CreatableTopic;
use caudal_protocol::messages::create_topics_response::CreatableTopicResult;
use caudal_protocol::messages::{CreateTopicsRequest, CreateTopicsResponse};

use super::RequestHeader;
use crate::context::Context;
use crate::metadata::ChangeError;
use crate::quota::Admitted;

/// From this version on clients know THROTTLING_QUOTA_EXCEEDED.
const STRICT_FROM: i16 = 6;

pub async fn handle(
    ctx: &Context,
    header: &RequestHeader,
    mut request: CreateTopicsRequest,
    version: i16,
) -> CreateTopicsResponse {
    let (image, validate_only) = (ctx.metadata.image(), request.validate_only);
    let partitions = |topic: &CreatableTopic| match usize::try_from(topic.num_partitions) {
        _ if validate_only || image.topic(&topic.name).is_some() => 0,
        _ if !topic.assignments.is_empty() => topic.assignments.len(),
        Ok(count) => count,
        Err(_) => usize::try_from(ctx.broker_number("num.partitions")).unwrap_or(1),
    };
    let topics = std::mem::take(&mut request.topics);
    let Admitted { admitted, refused, throttle_ms } =
        ctx.quotas.admit(header, version >= STRICT_FROM, topics, partitions);
    request.topics = admitted;
    let mut response = create(ctx, request).await;
    let exceeded = refused.into_iter().map(|topic| CreatableTopicResult {
        name: topic.name,
        error_code: ErrorCode::ThrottlingQuotaExceeded.code(),
        error_message: Some(ErrorCode::ThrottlingQuotaExceeded.message().to_owned()),
        ..CreatableTopicResult::default()
    });
    response.topics.extend(exceeded);
    response.throttle_time_ms = throttle_ms;
    response
}

async fn create(ctx: &Context, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let node = Node { node_id: ctx.node_id(), config: &ctx.config.properties };
    let decided = ctx.metadata.change(|image| controller::create_topics(image, &node, &request)).await;
    decided.unwrap_or_else(|error| failed(request, error))
}

fn failed(request: CreateTopicsRequest, error: ChangeError) -> CreateTopicsResponse {
    let topics = request.topics.into_iter().map(|topic| CreatableTopicResult {
        name: topic.name,
        error_code: error.code.code(),
        error_message: Some(error.message.clone()),
        ..CreatableTopicResult::default()
    });
    CreateTopicsResponse { throttle_time_ms: 0, topics: topics.collect() }
}
