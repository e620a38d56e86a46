//! OffsetCommit (8), versions 2-10 (topic ids from 10 on). Answered once the offsets are durable. Up to version 4 a client says how
//! long they are kept, if not as long as `offsets.retention.minutes`.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use caudal_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use caudal_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse};

use super::RequestHeader;
use crate::clock::wall_ms;
use crate::context::Context;
use crate::group::coordinator::Committer;
use crate::group::record::CommittedOffset;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: OffsetCommitRequest,
    version: i16,
) -> OffsetCommitResponse {
    let ready = ctx.groups.readiness(&request.group_id);
    let mut accepted = Vec::new();
    // Per topic and partition: the error found before anything is stored.
    let mut verdicts: Vec<(OffsetCommitResponseTopic, Vec<(i32, ErrorCode)>)> = Vec::new();
    let keep_ms = Some(request.retention_time_ms).filter(|keep_ms| *keep_ms >= 0);
    for topic in &request.topics {
        let name = if version >= 10 { ctx.topic_name(&topic.topic_id) } else { Some(topic.name.clone()) };
        let partitions = topic.partitions.iter().map(|p| {
            let verdict = check(ctx, name.as_deref(), p);
            if let (ErrorCode::None, Some(name)) = (verdict, &name) {
                accepted.push((name.clone(), p.partition_index, committed(p, keep_ms)));
            }
            (p.partition_index, verdict)
        });
        let partitions = partitions.collect();
        verdicts.push((answer_topic(topic, version), partitions));
    }
    let who = Committer {
        group: &request.group_id,
        member_id: &request.member_id,
        instance_id: request.group_instance_id.as_deref(),
        generation: request.generation_id_or_member_epoch,
    };
    let stored = if ready.is_error() { ready } else { ctx.groups.commit(who, version, accepted).await };
    let topics = verdicts.into_iter().map(|(topic, partitions)| OffsetCommitResponseTopic {
        partitions: partitions
            .into_iter()
            .map(|(partition_index, verdict)| OffsetCommitResponsePartition {
                partition_index,
                error_code: if stored.is_error() { stored } else { verdict }.code(),
            })
            .collect(),
        ..topic
    });
    OffsetCommitResponse { topics: topics.collect(), ..Default::default() }
}

fn answer_topic(topic: &OffsetCommitRequestTopic, version: i16) -> OffsetCommitResponseTopic {
    let name = if version >= 10 { String::new() } else { topic.name.clone() };
    OffsetCommitResponseTopic { name, topic_id: topic.topic_id, partitions: Vec::new() }
}

fn check(ctx: &Context, topic: Option<&str>, p: &OffsetCommitRequestPartition) -> ErrorCode {
    let Some(topic) = topic else { return ErrorCode::UnknownTopicId };
    if !ctx.has_partition(topic, p.partition_index) {
        return ErrorCode::UnknownTopicOrPartition;
    }
    if p.committed_metadata.as_ref().is_some_and(|m| m.len() > ctx.config.groups.metadata_max_bytes) {
        return ErrorCode::OffsetMetadataTooLarge;
    }
    ErrorCode::None
}

fn committed(p: &OffsetCommitRequestPartition, keep_ms: Option<i64>) -> CommittedOffset {
    let now_ms = wall_ms();
    CommittedOffset {
        offset: p.committed_offset,
        leader_epoch: p.committed_leader_epoch,
        metadata: p.committed_metadata.clone().unwrap_or_default(),
        commit_timestamp_ms: now_ms,
        expire_timestamp_ms: keep_ms.map(|keep_ms| now_ms.saturating_add(keep_ms)),
    }
}
