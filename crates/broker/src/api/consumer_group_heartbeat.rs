//! ConsumerGroupHeartbeat (68), versions 0-1 (KIP-848): a consumer joins, stays in or leaves its group, and learns what it is to
//! read. From version 1 on the client makes its member id (KIP-1082) and may subscribe by a regular expression.
//!
//! Not served where `group.coordinator.rebalance.protocols` leaves `consumer` out, or with `group.version` 0.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    header: &RequestHeader,
    request: ConsumerGroupHeartbeatRequest,
    version: i16,
) -> ConsumerGroupHeartbeatResponse {
    let error = if is_enabled(ctx) { ctx.groups.readiness(&request.group_id) } else { ErrorCode::UnsupportedVersion };
    if error.is_error() {
        return ConsumerGroupHeartbeatResponse {
            error_code: error.code(),
            error_message: Some(error.message().to_owned()),
            ..Default::default()
        };
    }
    let client_id = header.client_id.as_deref().unwrap_or_default();
    ctx.groups.consumer_heartbeat(&request, client_id, &header.client_host(), version).await
}

/// Whether the consumer protocol is served.
pub(super) fn is_enabled(ctx: &Context) -> bool {
    ctx.config.groups.consumer.enabled && ctx.metadata.image().feature("group.version") > 0
}
