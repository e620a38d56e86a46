//! IncrementalAlterConfigs (44), versions 0-1 (KIP-339): configs of topics and of this broker, one by one. A config that
//! nothing here acts on is refused by name instead of being stored without effect.

use caudal_cluster::controller::{self, Node};
use caudal_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use caudal_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: IncrementalAlterConfigsRequest,
    _version: i16,
) -> IncrementalAlterConfigsResponse {
    let node = Node { node_id: ctx.node_id(), config: &ctx.config.properties };
    let decided = ctx.metadata.change(|image| controller::incremental_alter_configs(image, &node, &request)).await;
    decided.unwrap_or_else(|error| {
        let responses = request.resources.into_iter().map(|resource| AlterConfigsResourceResponse {
            error_code: error.code.code(),
            error_message: Some(error.message.clone()),
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
        });
        IncrementalAlterConfigsResponse { throttle_time_ms: 0, responses: responses.collect() }
    })
}
