//! OffsetFetch (9), versions 1-10: one group up to version 7, several after that (KIP-709), topic ids from 10 on.
//! A partition without a committed offset is answered with offset -1, and with UNSTABLE_OFFSET_COMMIT where a transaction is
//! about to commit one and only stable offsets are wanted (KIP-447).

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use caudal_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use caudal_protocol::messages::{OffsetFetchRequest, OffsetFetchResponse};

use super::{RequestHeader, once};
use crate::context::Context;
use crate::group::Coordinator;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: OffsetFetchRequest,
    version: i16,
) -> OffsetFetchResponse {
    if version >= 8 {
        let groups = once(request.groups, |group| group.group_id.clone());
        let stable = request.require_stable;
        let groups = groups.into_iter().map(|g| fetch(ctx, g, version, stable)).collect();
        return OffsetFetchResponse { groups, ..Default::default() };
    }
    let topics = request.topics.map(|topics| {
        let convert = |t: caudal_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic| {
            OffsetFetchRequestTopics { name: t.name, partition_indexes: t.partition_indexes, ..Default::default() }
        };
        topics.into_iter().map(convert).collect()
    });
    let group = OffsetFetchRequestGroup { group_id: request.group_id, topics, ..Default::default() };
    let group = fetch(ctx, group, version, request.require_stable);
    let mut answer = OffsetFetchResponse { error_code: group.error_code, ..Default::default() };
    answer.topics = group.topics.into_iter().map(|t| classic_topic(t, version, group.error_code)).collect();
    if version < 2 {
        // Version 1 has no error of its own for the group: it stands at each partition.
        answer.error_code = 0;
    }
    answer
}

fn classic_topic(topic: OffsetFetchResponseTopics, version: i16, error_code: i16) -> OffsetFetchResponseTopic {
    let partitions = topic.partitions.into_iter().map(|p| OffsetFetchResponsePartition {
        partition_index: p.partition_index,
        committed_offset: p.committed_offset,
        committed_leader_epoch: p.committed_leader_epoch,
        metadata: p.metadata,
        error_code: if version < 2 && error_code != 0 { error_code } else { p.error_code },
    });
    OffsetFetchResponseTopic { name: topic.name, partitions: partitions.collect() }
}

fn fetch(ctx: &Context, group: OffsetFetchRequestGroup, version: i16, stable: bool) -> OffsetFetchResponseGroup {
    let mut error = ctx.groups.readiness(&group.group_id);
    if !error.is_error() {
        let check = |c: &Coordinator| c.check_fetch(&group.group_id, group.member_id.as_deref(), group.member_epoch);
        error = ctx.groups.view(&group.group_id, check);
    }
    let mut answer =
        OffsetFetchResponseGroup { group_id: group.group_id.clone(), error_code: error.code(), ..Default::default() };
    if error.is_error() {
        if version < 2 {
            answer.topics = group.topics.unwrap_or_default().iter().map(|t| unknown(&t.name, t)).collect();
        }
        return answer;
    }
    let Some(topics) = group.topics else {
        answer.topics = all(ctx, &group.group_id, version, stable);
        return answer;
    };
    for topic in topics {
        let name = if version >= 10 { ctx.topic_name(&topic.topic_id) } else { Some(topic.name.clone()) };
        let mut shown = unknown(&topic.name, &topic);
        match name {
            None => shown.partitions.iter_mut().for_each(|p| p.error_code = ErrorCode::UnknownTopicId.code()),
            Some(name) => ctx.groups.view(&group.group_id, |c| {
                for p in &mut shown.partitions {
                    if stable && c.is_unstable(&group.group_id, &name, p.partition_index) {
                        p.error_code = ErrorCode::UnstableOffsetCommit.code();
                    } else if let Some(found) = c.offset(&group.group_id, &name, p.partition_index) {
                        p.committed_offset = found.offset;
                        p.committed_leader_epoch = found.leader_epoch;
                        p.metadata = Some(found.metadata.clone());
                    }
                }
            }),
        }
        answer.topics.push(shown);
    }
    answer
}

fn unknown(name: &str, topic: &OffsetFetchRequestTopics) -> OffsetFetchResponseTopics {
    let partitions = topic.partition_indexes.iter().map(|p| OffsetFetchResponsePartitions {
        partition_index: *p,
        committed_offset: -1,
        committed_leader_epoch: -1,
        metadata: Some(String::new()),
        error_code: 0,
    });
    OffsetFetchResponseTopics { name: name.to_owned(), topic_id: topic.topic_id, partitions: partitions.collect() }
}

fn all(ctx: &Context, group: &str, version: i16, stable: bool) -> Vec<OffsetFetchResponseTopics> {
    let found: Vec<OffsetFetchResponseTopics> = ctx.groups.view(group, |c| {
        c.offsets(group)
            .map(|(topic, partitions)| OffsetFetchResponseTopics {
                name: topic.clone(),
                partitions: partitions
                    .iter()
                    .map(|(p, v)| match stable && c.is_unstable(group, topic, *p) {
                        true => OffsetFetchResponsePartitions {
                            partition_index: *p,
                            committed_offset: -1,
                            committed_leader_epoch: -1,
                            metadata: Some(String::new()),
                            error_code: ErrorCode::UnstableOffsetCommit.code(),
                        },
                        false => OffsetFetchResponsePartitions {
                            partition_index: *p,
                            committed_offset: v.offset,
                            committed_leader_epoch: v.leader_epoch,
                            metadata: Some(v.metadata.clone()),
                            error_code: 0,
                        },
                    })
                    .collect(),
                ..Default::default()
            })
            .collect()
    });
    if version < 10 {
        return found;
    }
    // With topic ids, offsets of topics that are gone cannot be named.
    found
        .into_iter()
        .filter_map(|t| {
            let topic_id = ctx.topic_id(&t.name)?;
            Some(OffsetFetchResponseTopics { name: String::new(), topic_id, ..t })
        })
        .collect()
}
