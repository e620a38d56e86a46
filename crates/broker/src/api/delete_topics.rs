//! DeleteTopics (20), versions 1-6. Answered when the topics are gone from the metadata and their logs from the disk.

use std::sync::Arc;

use caudal_cluster::controller::{self, Decision};
use caudal_cluster::image::Topic;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::delete_topics_response::DeletableTopicResult;
use caudal_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse};

use super::RequestHeader;
use crate::context::Context;

/// From this version on clients know THROTTLING_QUOTA_EXCEEDED.
const STRICT_FROM: i16 = 5;

pub async fn handle(
    ctx: &Context,
    header: &RequestHeader,
    mut request: DeleteTopicsRequest,
    version: i16,
) -> DeleteTopicsResponse {
    if !ctx.config.properties.bool("delete.topic.enable") {
        let error = if version < 3 { ErrorCode::InvalidRequest } else { ErrorCode::TopicDeletionDisabled };
        return failed(&request, error, None);
    }
    let (image, strict) = (ctx.metadata.image(), version >= STRICT_FROM);
    let count = |topic: Option<&Arc<Topic>>| topic.map_or(0, |topic| topic.partitions.len());
    let names = std::mem::take(&mut request.topic_names);
    let names = ctx.quotas.admit(header, strict, names, |name| count(image.topic(name)));
    let topics = ctx.quotas.admit(header, strict, std::mem::take(&mut request.topics), |topic| match &topic.name {
        Some(name) => count(image.topic(name)),
        None => count(image.topic_by_id(&topic.topic_id)),
    });
    (request.topic_names, request.topics) = (names.admitted, topics.admitted);
    let mut response = delete(ctx, request, version).await;
    let exceeded =
        DeleteTopicsRequest { topic_names: names.refused, topics: topics.refused, ..DeleteTopicsRequest::default() };
    let error = ErrorCode::ThrottlingQuotaExceeded;
    response.responses.extend(failed(&exceeded, error, Some(error.message().to_owned())).responses);
    response.throttle_time_ms = names.throttle_ms.max(topics.throttle_ms);
    response
}

async fn delete(ctx: &Context, request: DeleteTopicsRequest, version: i16) -> DeleteTopicsResponse {
    let decided = ctx.metadata.change(|image| {
        let Decision { records, mut response } = controller::delete_topics(image, &request);
        // Before version 6 there are only names, and an error message would have no field.
        if version < 5 {
            response.responses.iter_mut().for_each(|r| r.error_message = None);
        }
        Decision { records, response }
    });
    decided.await.unwrap_or_else(|error| failed(&request, error.code, (version >= 5).then_some(error.message)))
}

fn failed(request: &DeleteTopicsRequest, error: ErrorCode, message: Option<String>) -> DeleteTopicsResponse {
    let named = request.topic_names.iter().map(|name| (Some(name.clone()), Default::default()));
    let given = request.topics.iter().map(|topic| (topic.name.clone(), topic.topic_id));
    let responses = named.chain(given).map(|(name, topic_id)| DeletableTopicResult {
        name,
        topic_id,
        error_code: error.code(),
        error_message: message.clone(),
    });
    DeleteTopicsResponse { throttle_time_ms: 0, responses: responses.collect() }
}
