//! DeleteGroups (42), versions 0-2: groups without members, with all their offsets.

use caudal_protocol::messages::delete_groups_response::DeletableGroupResult;
use caudal_protocol::messages::{DeleteGroupsRequest, DeleteGroupsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DeleteGroupsRequest,
    _version: i16,
) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for id in request.groups_names {
        let mut error = ctx.groups.readiness(&id);
        if !error.is_error() {
            error = ctx.groups.change(&id, |c| c.delete(&id)).await;
        }
        results.push(DeletableGroupResult { group_id: id, error_code: error.code() });
    }
    DeleteGroupsResponse { results, ..Default::default() }
}
