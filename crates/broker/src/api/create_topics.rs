//! CreateTopics (19), versions 2-7. Answered when the topics are durable in the metadata log and their logs exist.

use caudal_cluster::controller::{self, Node};
use caudal_protocol::messages::create_topics_response::CreatableTopicResult;
use caudal_protocol::messages::{CreateTopicsRequest, CreateTopicsResponse};

use super::RequestHeader;
use crate::context::Context;
use crate::metadata::ChangeError;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: CreateTopicsRequest,
    _version: i16,
) -> CreateTopicsResponse {
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
