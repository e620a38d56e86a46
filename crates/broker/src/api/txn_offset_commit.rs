//! TxnOffsetCommit (28), versions 0-5: commits offsets of a group within a transaction. They count when its marker is written.
//!
//! Up to version 4 the group was made part of the transaction by AddOffsetsToTxn, which is verified here; from 5 on this request
//! does it (KIP-890).

use std::collections::BTreeSet;

use caudal_protocol::ErrorCode;
use caudal_protocol::batch::NO_SEQUENCE;
use caudal_protocol::messages::txn_offset_commit_request::{TxnOffsetCommitRequest, TxnOffsetCommitRequestPartition};
use caudal_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponse, TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use caudal_storage::Verification;

use super::{RequestHeader, once};
use crate::clock::wall_ms;
use crate::context::Context;
use crate::group::coordinator::Committer;
use crate::group::offsets_log::OFFSETS_TOPIC;
use crate::group::record::CommittedOffset;
use crate::transaction::participation::{Client, Participant};

type Offsets = Vec<(String, i32, CommittedOffset)>;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    mut request: TxnOffsetCommitRequest,
    version: i16,
) -> TxnOffsetCommitResponse {
    request.topics = once(request.topics, |topic| topic.name.clone());
    for topic in &mut request.topics {
        topic.partitions = once(std::mem::take(&mut topic.partitions), |partition| partition.partition_index);
    }
    let mut offsets: Offsets = Vec::new();
    let mut verdicts = Vec::new();
    for topic in &request.topics {
        for partition in &topic.partitions {
            let verdict = check(ctx, &topic.name, partition);
            if verdict == ErrorCode::None {
                offsets.push((topic.name.clone(), partition.partition_index, committed(partition)));
            }
            verdicts.push(verdict);
        }
    }
    let stored = if offsets.is_empty() { ErrorCode::None } else { commit(ctx, &request, version, offsets).await };
    let mut verdicts = verdicts.into_iter();
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().zip(verdicts.by_ref()).map(|(p, verdict)| {
            let error = if verdict == ErrorCode::None { answered_as(stored, version) } else { verdict };
            TxnOffsetCommitResponsePartition { partition_index: p.partition_index, error_code: error.code() }
        });
        TxnOffsetCommitResponseTopic { partitions: partitions.collect(), name: topic.name }
    });
    TxnOffsetCommitResponse { topics: topics.collect(), ..TxnOffsetCommitResponse::default() }
}

/// Clients before version 2 do not know that a coordinator may be loading.
fn answered_as(error: ErrorCode, version: i16) -> ErrorCode {
    if error == ErrorCode::CoordinatorLoadInProgress && version < 2 {
        ErrorCode::CoordinatorNotAvailable
    } else {
        error
    }
}

fn check(ctx: &Context, topic: &str, partition: &TxnOffsetCommitRequestPartition) -> ErrorCode {
    if !ctx.has_partition(topic, partition.partition_index) {
        return ErrorCode::UnknownTopicOrPartition;
    }
    let most = ctx.config.groups.metadata_max_bytes;
    if partition.committed_metadata.as_ref().is_some_and(|metadata| metadata.len() > most) {
        return ErrorCode::OffsetMetadataTooLarge;
    }
    ErrorCode::None
}

fn committed(partition: &TxnOffsetCommitRequestPartition) -> CommittedOffset {
    CommittedOffset {
        offset: partition.committed_offset,
        leader_epoch: partition.committed_leader_epoch,
        metadata: partition.committed_metadata.clone().unwrap_or_default(),
        commit_timestamp_ms: wall_ms(),
        expire_timestamp_ms: None,
    }
}

async fn commit(ctx: &Context, request: &TxnOffsetCommitRequest, version: i16, offsets: Offsets) -> ErrorCode {
    let ready = ctx.groups.readiness(&request.group_id);
    if ready.is_error() {
        return ready;
    }
    if request.group_id.is_empty() {
        return ErrorCode::InvalidGroupId;
    }
    let verification = match verify(ctx, request, version).await {
        Ok(verification) => verification,
        Err(error) => return error,
    };
    let who = Committer {
        group: &request.group_id,
        member_id: &request.member_id,
        instance_id: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let producer = (request.producer_id, request.producer_epoch);
    ctx.groups.commit_in_transaction(who, producer, verification, offsets).await
}

async fn verify(ctx: &Context, request: &TxnOffsetCommitRequest, version: i16) -> Result<Verification, ErrorCode> {
    let partition = ctx.groups.partition_of(&request.group_id).ok_or(ErrorCode::CoordinatorNotAvailable)?;
    let view = ctx.topics.view();
    let partition = view.partition(OFFSETS_TOPIC, partition).ok_or(ErrorCode::NotCoordinator)?;
    let participant = Participant {
        id: &request.transactional_id,
        producer: (request.producer_id, request.producer_epoch),
        client: Client::of_txn_offset_commit(version),
    };
    let Some(guard) = participant.begin(ctx, partition, NO_SEQUENCE) else { return Ok(Verification::None) };
    if guard != Verification::Off {
        let refused = participant.join(ctx, &BTreeSet::from([partition.name.clone()])).await;
        if let Some(error) = refused.into_values().next() {
            return Err(error);
        }
    }
    Ok(guard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_clients_are_not_told_of_loading() {
        assert_eq!(answered_as(ErrorCode::CoordinatorLoadInProgress, 1), ErrorCode::CoordinatorNotAvailable);
        assert_eq!(answered_as(ErrorCode::CoordinatorLoadInProgress, 2), ErrorCode::CoordinatorLoadInProgress);
    }
}
