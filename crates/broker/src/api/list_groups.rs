//! ListGroups (16), versions 0-5, with filters on states (4) and types (5).

use std::collections::HashSet;

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
    // Names compare without case, and an empty filter takes everything.
    let set = |names: Vec<String>| names.into_iter().map(|name| name.to_ascii_lowercase()).collect::<HashSet<String>>();
    let (states, types) = (set(request.states_filter), set(request.types_filter));
    let has = |filter: &HashSet<String>, name: &str| filter.is_empty() || filter.contains(&name.to_ascii_lowercase());
    let mut groups = ctx.groups.all(|c| c.list(|state, kind| has(&states, state) && has(&types, kind)));
    groups.sort_by(|a, b| a.group_id.cmp(&b.group_id));
    ListGroupsResponse { groups, ..Default::default() }
}
