//! DescribeGroups (15), versions 0-6. An unknown group is "Dead" up to version 5 and an error from 6 on (KIP-1043).

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_groups_response::DescribedGroup;
use caudal_protocol::messages::{DescribeGroupsRequest, DescribeGroupsResponse};

use super::{RequestHeader, once};
use crate::context::Context;

/// All operations on a group that an unsecured broker allows: READ, DELETE, DESCRIBE and the two for configurations, as
/// a bit for each code of Kafka's `AclOperation`.
pub(super) const GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DescribeGroupsRequest,
    version: i16,
) -> DescribeGroupsResponse {
    let groups = once(request.groups, String::clone);
    let describe = |id: &String| {
        let ready = ctx.groups.readiness(id);
        if ready.is_error() {
            return DescribedGroup { group_id: id.clone(), error_code: ready.code(), ..Default::default() };
        }
        let mut group = ctx.groups.view(id, |c| c.describe(id)).unwrap_or_else(|| DescribedGroup {
            group_id: id.clone(),
            group_state: "Dead".to_owned(),
            error_code: if version >= 6 { ErrorCode::GroupIdNotFound.code() } else { 0 },
            error_message: (version >= 6).then(|| match ctx.groups.view(id, |c| c.is_consumer_group(id)) {
                true => format!("Group {id} is not a classic group."),
                false => format!("Group {id} not found."),
            }),
            ..Default::default()
        });
        if request.include_authorized_operations && version >= 3 {
            group.authorized_operations = GROUP_OPERATIONS;
        }
        group
    };
    DescribeGroupsResponse { groups: groups.iter().map(describe).collect(), ..Default::default() }
}
