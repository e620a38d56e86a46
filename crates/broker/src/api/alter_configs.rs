//! AlterConfigs (33), versions 0-2: replaces all configs of a topic or of this broker; old clients only. A config that
//! nothing here acts on is refused by name instead of being stored without effect.

use caudal_cluster::controller::{self, Node};
use caudal_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use caudal_protocol::messages::{AlterConfigsRequest, AlterConfigsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: AlterConfigsRequest,
    _version: i16,
) -> AlterConfigsResponse {
    let node = Node { node_id: ctx.node_id(), config: &ctx.config.properties };
    let decided = ctx.metadata.change(|image| controller::alter_configs(image, &node, &request)).await;
    decided.unwrap_or_else(|error| {
        let responses = request.resources.into_iter().map(|resource| AlterConfigsResourceResponse {
            error_code: error.code.code(),
            error_message: Some(error.message.clone()),
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
        });
        AlterConfigsResponse { throttle_time_ms: 0, responses: responses.collect() }
    })
}
