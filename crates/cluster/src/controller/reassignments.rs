//! Moving partitions to other replicas (KIP-455).
//!
//! A move that needs no new replica is complete at once. One that does begins as in Kafka: the new replicas are listed, and it
//! ends when they have caught up or when it is cancelled.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::alter_partition_reassignments_request::ReassignablePartition;
use caudal_protocol::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use caudal_protocol::messages::{AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse};
use caudal_protocol::records::metadata::PartitionChangeRecord;

use super::{ApiError, Decision, outcome, placement};
use crate::image::{MetadataImage, NO_LEADER, Partition, Topic};
use crate::record::MetadataRecord;

/// "Leader unchanged" in a PartitionChangeRecord.
const NO_LEADER_CHANGE: i32 = -2;

/// Decides an AlterPartitionReassignments request, partition by partition.
pub fn alter_partition_reassignments(
    image: &MetadataImage,
    request: &AlterPartitionReassignmentsRequest,
) -> Decision<AlterPartitionReassignmentsResponse> {
    let mut records = Vec::new();
    let mut responses = Vec::new();
    for topic in &request.topics {
        let decide = |partition: &ReassignablePartition| {
            let result = alter(image, &topic.name, partition, request.allow_replication_factor_change);
            let result = result.map(|record| records.extend(record));
            let (error_code, error_message) = outcome(&result);
            ReassignablePartitionResponse { partition_index: partition.partition_index, error_code, error_message }
        };
        let partitions = topic.partitions.iter().map(decide).collect();
        responses.push(ReassignableTopicResponse { name: topic.name.clone(), partitions });
    }
    let response = AlterPartitionReassignmentsResponse {
        allow_replication_factor_change: request.allow_replication_factor_change,
        responses,
        ..AlterPartitionReassignmentsResponse::default()
    };
    Decision { records, response }
}

fn alter(
    image: &MetadataImage,
    topic_name: &str,
    request: &ReassignablePartition,
    allow_replication_factor_change: bool,
) -> Result<Option<MetadataRecord>, ApiError> {
    let unknown = |message: String| ApiError::new(ErrorCode::UnknownTopicOrPartition, message);
    let index = request.partition_index;
    let topic =
        image.topic(topic_name).ok_or_else(|| unknown(format!("Unable to find a topic named {topic_name}.")))?;
    let partition = topic
        .partitions
        .get(&index)
        .ok_or_else(|| unknown(format!("Unable to find partition {topic_name}:{index}.")))?;
    let change = match &request.replicas {
        None => Some(cancel(topic, index, partition)?),
        Some(target) => {
            placement::check_replicas(image, target)?;
            if !allow_replication_factor_change {
                check_replication_factor(partition, target)?;
            }
            reassign(partition, target)
        }
    };
    let record = |change| PartitionChangeRecord { partition_id: index, topic_id: topic.id, ..change };
    Ok(change.map(record).map(MetadataRecord::from))
}

/// Against the replicas that the partition has once what is under way is complete (KIP-860).
fn check_replication_factor(partition: &Partition, target: &[i32]) -> Result<(), ApiError> {
    let current = partition.replicas.len() - partition.removing_replicas.len();
    if current == target.len() {
        return Ok(());
    }
    let message = format!("The replication factor is changed from {current} to {}", target.len());
    Err(ApiError::new(ErrorCode::InvalidReplicationFactor, message))
}

/// Takes back the replicas that were to be added.
fn cancel(topic: &Topic, index: i32, partition: &Partition) -> Result<PartitionChangeRecord, ApiError> {
    if partition.adding_replicas.is_empty() && partition.removing_replicas.is_empty() {
        return Err(ApiError::of(ErrorCode::NoReassignmentInProgress));
    }
    let replicas = without(&partition.replicas, &partition.adding_replicas);
    let isr = without(&partition.isr, &partition.adding_replicas);
    if isr.is_empty() && !partition.isr.is_empty() {
        let message = format!(
            "Unable to revert partition assignment for {}:{index} because it would require an unclean leader election.",
            topic.name
        );
        return Err(ApiError::new(ErrorCode::InvalidReplicaAssignment, message));
    }
    Ok(PartitionChangeRecord {
        leader: leader_among(partition, &isr),
        isr: (isr != partition.isr).then_some(isr),
        replicas: (replicas != partition.replicas).then_some(replicas),
        removing_replicas: (!partition.removing_replicas.is_empty()).then(Vec::new),
        adding_replicas: (!partition.adding_replicas.is_empty()).then(Vec::new),
        ..PartitionChangeRecord::default()
    })
}

/// The change towards `target`; `None`: it is so already.
fn reassign(partition: &Partition, target: &[i32]) -> Option<PartitionChangeRecord> {
    let adding = without(target, &partition.replicas);
    // What an earlier reassignment was adding and this one wants too is still being added.
    let kept: Vec<i32> = partition.adding_replicas.iter().copied().filter(|id| target.contains(id)).collect();
    let adding: Vec<i32> = adding.into_iter().chain(kept).collect();
    let removing = without(&partition.replicas, target);
    let staying = without(&partition.isr, &removing);
    let (replicas, isr, adding, removing) = if adding.is_empty() && !staying.is_empty() {
        (target.to_vec(), staying, Vec::new(), Vec::new())
    } else {
        let all = target.iter().chain(&removing).copied().collect();
        (all, partition.isr.clone(), adding, removing)
    };
    let changed = |new: Vec<i32>, old: &Vec<i32>| (new != *old).then_some(new);
    let change = PartitionChangeRecord {
        leader: leader_among(partition, &isr),
        isr: changed(isr, &partition.isr),
        replicas: changed(replicas, &partition.replicas),
        removing_replicas: changed(removing, &partition.removing_replicas),
        adding_replicas: changed(adding, &partition.adding_replicas),
        ..PartitionChangeRecord::default()
    };
    (change != PartitionChangeRecord { leader: NO_LEADER_CHANGE, ..PartitionChangeRecord::default() }).then_some(change)
}

/// The leader as it is written: the present one for as long as it stays in the ISR.
fn leader_among(partition: &Partition, isr: &[i32]) -> i32 {
    if partition.leader == NO_LEADER || isr.contains(&partition.leader) {
        return NO_LEADER_CHANGE;
    }
    isr.first().copied().unwrap_or(NO_LEADER)
}

fn without(all: &[i32], these: &[i32]) -> Vec<i32> {
    all.iter().copied().filter(|id| !these.contains(id)).collect()
}
