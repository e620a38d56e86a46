//! OffsetDelete (47), version 0: single committed offsets, unless a member of the group subscribes to the topic.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use caudal_protocol::messages::{OffsetDeleteRequest, OffsetDeleteResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: OffsetDeleteRequest,
    _version: i16,
) -> OffsetDeleteResponse {
    let mut error = ctx.groups.readiness(&request.group_id);
    if !error.is_error() {
        error = ctx.groups.view(&request.group_id, |c| c.check_offset_delete(&request.group_id));
    }
    if error.is_error() {
        return OffsetDeleteResponse { error_code: error.code(), ..Default::default() };
    }
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for p in topic.partitions {
            let in_use = ctx.groups.view(&request.group_id, |c| c.is_subscribed_to(&request.group_id, &topic.name));
            let error = if in_use {
                ErrorCode::GroupSubscribedToTopic
            } else if !ctx.has_partition(&topic.name, p.partition_index) {
                ErrorCode::UnknownTopicOrPartition
            } else {
                let forget = |c: &mut crate::group::Coordinator| {
                    (ErrorCode::None, c.delete_offsets(&request.group_id, &topic.name, p.partition_index))
                };
                ctx.groups.change(&request.group_id, forget).await
            };
            partitions
                .push(OffsetDeleteResponsePartition { partition_index: p.partition_index, error_code: error.code() });
        }
        topics.push(OffsetDeleteResponseTopic { name: topic.name, partitions });
    }
    OffsetDeleteResponse { topics, ..Default::default() }
}
