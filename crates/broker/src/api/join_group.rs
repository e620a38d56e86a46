//! JoinGroup (11), versions 0-9: a member enters or re-enters its group; answered when the rebalance is through.
//!
//! From version 4 on a new member is first given an id and comes back with it (KIP-394).

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{JoinGroupRequest, JoinGroupResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    header: &RequestHeader,
    request: JoinGroupRequest,
    version: i16,
) -> JoinGroupResponse {
    let error = ctx.groups.readiness(&request.group_id);
    let error = if error.is_error() {
        error
    } else if request.group_instance_id.is_some() && version < 5 {
        ErrorCode::UnsupportedVersion
    } else {
        ErrorCode::None
    };
    if error.is_error() {
        return JoinGroupResponse {
            error_code: error.code(),
            generation_id: -1,
            protocol_name: Some(String::new()),
            member_id: request.member_id,
            ..Default::default()
        };
    }
    ctx.groups.join(&request, header.client_id.as_deref().unwrap_or_default(), &header.client_host(), version).await
}
