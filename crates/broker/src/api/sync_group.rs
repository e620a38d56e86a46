//! SyncGroup (14), versions 0-5: the leader hands in the assignment, everybody gets theirs once it is stored.

use caudal_protocol::messages::{SyncGroupRequest, SyncGroupResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: SyncGroupRequest,
    _version: i16,
) -> SyncGroupResponse {
    let error = ctx.groups.readiness(&request.group_id);
    if error.is_error() {
        return SyncGroupResponse { error_code: error.code(), ..Default::default() };
    }
    ctx.groups.sync(&request).await
}
