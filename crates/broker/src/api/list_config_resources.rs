//! ListConfigResources (74), versions 0-1 (KIP-1142). Version 0 asks for client metrics subscriptions.

use caudal_cluster::image::ConfigResourceType;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::list_config_resources_response::ConfigResource;
use caudal_protocol::messages::{ListConfigResourcesRequest, ListConfigResourcesResponse};

use super::metadata::broker_ids;
use super::{RequestHeader, once};
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: ListConfigResourcesRequest,
    version: i16,
) -> ListConfigResourcesResponse {
    use ConfigResourceType::*;
    let image = ctx.metadata.image();
    let mut types = Vec::new();
    for code in &once(request.resource_types, |code| *code) {
        match ConfigResourceType::from_code(*code) {
            Some(kind) => types.push(kind),
            None => {
                return ListConfigResourcesResponse {
                    error_code: ErrorCode::UnsupportedVersion.code(),
                    ..ListConfigResourcesResponse::default()
                };
            }
        }
    }
    if version == 0 {
        types = vec![ClientMetrics];
    } else if types.is_empty() {
        types = vec![Topic, Broker, BrokerLogger, ClientMetrics, Group];
    }
    let mut config_resources = Vec::new();
    for kind in types {
        let mut add = |resource_name: String| {
            config_resources.push(ConfigResource { resource_name, resource_type: kind.code() });
        };
        match kind {
            Topic => image.topics().for_each(|topic| add(topic.name.clone())),
            Broker | BrokerLogger => broker_ids(&image).for_each(|id| add(id.to_string())),
            ClientMetrics | Group => {
                let set = image.config_resources().filter(|r| r.kind == kind);
                set.for_each(|resource| add(resource.name.clone()));
            }
        }
    }
    ListConfigResourcesResponse { config_resources, ..ListConfigResourcesResponse::default() }
}
