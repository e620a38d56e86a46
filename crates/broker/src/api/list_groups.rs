//! ListGroups (16), versions 0-5, with filters on states (4) and types (5).

use caudal_protocol::messages::{ListGroupsRequest, ListGroupsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: ListGroupsRequest,
    _version: i16,
) -> ListGroupsResponse {
    let ready = ctx.groups.readiness_to_list();
    if ready.is_error() {
        return ListGroupsResponse { error_code: ready.code(), ..Default::default() };
    }
    let mut groups = ctx.groups.all(|c| c.list(&request.states_filter, &request.types_filter));
    groups.sort_by(|a, b| a.group_id.cmp(&b.group_id));
    ListGroupsResponse { groups, ..Default::default() }
}
