//! CreatePartitions (37), versions 0-3: more partitions for topics that exist.

use caudal_cluster::controller;
use caudal_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use caudal_protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: CreatePartitionsRequest,
    _version: i16,
) -> CreatePartitionsResponse {
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
