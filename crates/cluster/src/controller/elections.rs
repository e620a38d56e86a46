//! Elections that somebody asks for (KIP-460): of the preferred replica, or of any that is alive. One node can elect itself.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use caudal_protocol::messages::{ElectLeadersRequest, ElectLeadersResponse};
use caudal_protocol::records::metadata::PartitionChangeRecord;

use super::{ApiError, Decision, outcome};
use crate::image::{MetadataImage, NO_LEADER, Topic};
use crate::record::MetadataRecord;

/// The sentences of one answer; beyond that the code says it. Each is much larger than what asks for it.
const MAX_SENTENCES_BYTES: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Election {
    /// The first replica, where another one leads.
    Preferred,
    /// Also one that lacks records, where none leads.
    Unclean,
}

/// Decides an ElectLeaders request, partition by partition; each is listed once. `has_log`: whether the log of a partition is in use
/// on this node, which has the id `node_id`.
pub fn elect_leaders(
    image: &MetadataImage,
    node_id: i32,
    request: ElectLeadersRequest,
    has_log: impl Fn(&str, i32) -> bool,
) -> Decision<ElectLeadersResponse> {
    let election = match request.election_type {
        0 => Election::Preferred,
        1 => Election::Unclean,
        _ => {
            let error_code = ErrorCode::InvalidRequest.code();
            let response = ElectLeadersResponse { error_code, ..ElectLeadersResponse::default() };
            return Decision { records: Vec::new(), response };
        }
    };
    let mut records = Vec::new();
    let mut sentences_bytes = 0;
    let mut elect = |name: &str, partition_id: i32| {
        let result = elect(image, node_id, election, (name, partition_id), &has_log);
        let result = result.map(|change| records.push(MetadataRecord::from(change)));
        let (error_code, mut error_message) = outcome(&result);
        sentences_bytes += error_message.as_ref().map_or(0, String::len);
        if sentences_bytes > MAX_SENTENCES_BYTES {
            error_message = None;
        }
        PartitionResult { partition_id, error_code, error_message }
    };
    let results = match request.topic_partitions {
        Some(topics) => topics
            .into_iter()
            .map(|topic| {
                let partition_result = topic.partitions.iter().map(|index| elect(&topic.topic, *index)).collect();
                ReplicaElectionResult { topic: topic.topic, partition_result }
            })
            .collect(),
        None => {
            let of_topic = |topic: &std::sync::Arc<Topic>| {
                let results = topic.partitions.keys().map(|index| elect(&topic.name, *index));
                let needed = results.filter(|result| result.error_code != ErrorCode::ElectionNotNeeded.code());
                let partition_result: Vec<_> = needed.collect();
                let topic = topic.name.clone();
                (!partition_result.is_empty()).then_some(ReplicaElectionResult { topic, partition_result })
            };
            image.topics().filter_map(of_topic).collect()
        }
    };
    let response = ElectLeadersResponse { replica_election_results: results, ..ElectLeadersResponse::default() };
    Decision { records, response }
}

fn elect(
    image: &MetadataImage,
    node_id: i32,
    election: Election,
    (name, index): (&str, i32),
    has_log: &impl Fn(&str, i32) -> bool,
) -> Result<PartitionChangeRecord, ApiError> {
    let unknown = |message: String| ApiError::new(ErrorCode::UnknownTopicOrPartition, message);
    let topic = image.topic(name).ok_or_else(|| unknown(format!("No such topic as {name}")))?;
    let found = topic.partitions.get(&index);
    let partition = found.ok_or_else(|| unknown(format!("No such partition as {name}-{index}")))?;
    let preferred = partition.replicas.first().copied();
    let (is_needed, candidate, none) = match election {
        Election::Preferred => {
            let is_in_sync = partition.isr.contains(&node_id) || partition.eligible_leader_replicas.contains(&node_id);
            let candidate = preferred == Some(node_id) && is_in_sync;
            (preferred != Some(partition.leader), candidate, ErrorCode::PreferredLeaderNotAvailable)
        }
        Election::Unclean => {
            let candidate = partition.replicas.contains(&node_id);
            (partition.leader == NO_LEADER, candidate, ErrorCode::EligibleLeadersNotAvailable)
        }
    };
    if !is_needed {
        return Err(ApiError::of(ErrorCode::ElectionNotNeeded));
    }
    if !(candidate && image.is_active(node_id) && has_log(name, index)) {
        return Err(ApiError::of(none));
    }
    let has_elr = !partition.eligible_leader_replicas.is_empty() || !partition.last_known_elr.is_empty();
    Ok(PartitionChangeRecord {
        partition_id: index,
        topic_id: topic.id,
        leader: node_id,
        isr: (!partition.isr.contains(&node_id)).then(|| vec![node_id]),
        eligible_leader_replicas: has_elr.then(Vec::new),
        last_known_elr: has_elr.then(Vec::new),
        ..PartitionChangeRecord::default()
    })
}
