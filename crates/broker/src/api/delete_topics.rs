//! DeleteTopics (20), versions 1-6. Answered when the topics are gone from the metadata and their logs from the disk.

use caudal_cluster::controller::{self, Decision};
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::delete_topics_response::DeletableTopicResult;
use caudal_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DeleteTopicsRequest,
    version: i16,
) -> DeleteTopicsResponse {
    if !ctx.config.properties.bool("delete.topic.enable") {
        let error = if version < 3 { ErrorCode::InvalidRequest } else { ErrorCode::TopicDeletionDisabled };
        return failed(&request, error, None);
    }
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
