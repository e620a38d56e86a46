//! ConsumerGroupDescribe (69), versions 0-1 (KIP-848): groups of the consumer protocol with their members, what these have and
//! what they are to have. From version 1 on with the protocol that each member speaks.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::consumer_group_describe_response::DescribedGroup;
use caudal_protocol::messages::{ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse};

use super::consumer_group_heartbeat::is_enabled;
use super::describe_groups::GROUP_OPERATIONS;
use super::{RequestHeader, once};
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: ConsumerGroupDescribeRequest,
    _version: i16,
) -> ConsumerGroupDescribeResponse {
    let refuse = |group_id: String, code: ErrorCode, message: Option<String>| DescribedGroup {
        group_id,
        error_code: code.code(),
        error_message: message,
        ..DescribedGroup::default()
    };
    let enabled = is_enabled(ctx);
    let describe = |id: String| {
        let ready = match (id.is_empty(), enabled) {
            (_, false) => ErrorCode::UnsupportedVersion,
            (true, true) => ErrorCode::InvalidGroupId,
            (false, true) => ctx.groups.readiness(&id),
        };
        if ready.is_error() {
            return refuse(id, ready, None);
        }
        let mut group = match ctx.groups.view(&id, |c| c.describe_consumer(&id)) {
            Ok(group) => group,
            Err(refusal) => refuse(id, refusal.code, Some(refusal.message)),
        };
        if request.include_authorized_operations {
            group.authorized_operations = GROUP_OPERATIONS;
        }
        group
    };
    let groups = once(request.group_ids, String::clone);
    ConsumerGroupDescribeResponse { groups: groups.into_iter().map(describe).collect(), ..Default::default() }
}
