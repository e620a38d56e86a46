//! LeaveGroup (13), versions 0-5: one member (up to version 2) or several, static ones by their instance id (KIP-345).

use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::{LeaveGroupRequest, LeaveGroupResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: LeaveGroupRequest,
    version: i16,
) -> LeaveGroupResponse {
    let error = ctx.groups.readiness(&request.group_id);
    if error.is_error() {
        return LeaveGroupResponse { error_code: error.code(), ..Default::default() };
    }
    let only = MemberIdentity { member_id: request.member_id, ..Default::default() };
    let leaving = if version >= 3 { request.members } else { vec![only] };
    match ctx.groups.leave(&request.group_id, &leaving).await {
        Err(error) => LeaveGroupResponse { error_code: error.code(), ..Default::default() },
        Ok(members) if version >= 3 => LeaveGroupResponse { members, ..Default::default() },
        Ok(members) => {
            let error_code = members.first().map_or(0, |member| member.error_code);
            LeaveGroupResponse { error_code, ..Default::default() }
        }
    }
}
