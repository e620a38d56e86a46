//! Heartbeat (12), versions 0-4.

use caudal_protocol::messages::{HeartbeatRequest, HeartbeatResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: HeartbeatRequest,
    _version: i16,
) -> HeartbeatResponse {
    let mut error = ctx.groups.readiness(&request.group_id);
    if !error.is_error() {
        let instance = request.group_instance_id.as_deref();
        error = ctx.groups.heartbeat(&request.group_id, &request.member_id, instance, request.generation_id);
    }
    HeartbeatResponse { error_code: error.code(), ..Default::default() }
}
