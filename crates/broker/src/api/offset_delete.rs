//! OffsetDelete (47), version 0: single committed offsets, unless a member of the group subscribes to the topic.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use caudal_protocol::messages::{OffsetDeleteRequest, OffsetDeleteResponse};

use super::{RequestHeader, once};
use crate::context::Context;
use crate::group::Coordinator;

/// What is forgotten in one batch, about.
const BATCH_BYTES: usize = 256 * 1024;
/// Of a record beside the names in its key.
const RECORD_BYTES: usize = 32;

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
    for topic in once(request.topics, |topic| topic.name.clone()) {
        let all = once(topic.partitions, |p| p.partition_index).into_iter().map(|p| p.partition_index);
        let (known, unknown): (Vec<i32>, Vec<i32>) = all.partition(|index| ctx.has_partition(&topic.name, *index));
        let answer = |error: ErrorCode| {
            move |index: &i32| OffsetDeleteResponsePartition { partition_index: *index, error_code: error.code() }
        };
        let mut partitions: Vec<_> = unknown.iter().map(answer(ErrorCode::UnknownTopicOrPartition)).collect();
        let at_once = BATCH_BYTES / (request.group_id.len() + topic.name.len() + RECORD_BYTES);
        for known in known.chunks(at_once.max(1)) {
            let forget = |c: &mut Coordinator| match c.is_subscribed_to(&request.group_id, &topic.name) {
                true => (ErrorCode::GroupSubscribedToTopic, Vec::new()),
                false => {
                    let of = |index: &i32| c.delete_offsets(&request.group_id, &topic.name, *index);
                    (ErrorCode::None, known.iter().flat_map(of).collect())
                }
            };
            let error = ctx.groups.change(&request.group_id, forget).await;
            partitions.extend(known.iter().map(answer(error)));
        }
        topics.push(OffsetDeleteResponseTopic { name: topic.name, partitions });
    }
    OffsetDeleteResponse { topics, ..Default::default() }
}
