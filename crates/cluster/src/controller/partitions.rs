//! More partitions for existing topics.

use std::collections::BTreeSet;

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use caudal_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use caudal_protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse};

use super::{ApiError, Decision, outcome, placement};
use crate::image::MetadataImage;
use crate::record::MetadataRecord;

/// Most partitions that one request may add.
const MAX_NEW_PARTITIONS: i32 = 10_000;

/// Decides a CreatePartitions request, topic by topic.
pub fn create_partitions(
    image: &MetadataImage,
    request: &CreatePartitionsRequest,
) -> Decision<CreatePartitionsResponse> {
    let mut records = Vec::new();
    let mut results = Vec::new();
    let mut seen = BTreeSet::new();
    let names = request.topics.iter().map(|topic| topic.name.as_str());
    let twice: BTreeSet<&str> = names.filter(|name| !seen.insert(*name)).collect();
    for topic in &request.topics {
        let result = if twice.contains(topic.name.as_str()) {
            Err(ApiError::new(ErrorCode::InvalidRequest, "Duplicate topic name."))
        } else {
            add_partitions(image, topic).map(|new| records.extend(new))
        };
        let (error_code, error_message) = outcome(&result);
        results.push(CreatePartitionsTopicResult { name: topic.name.clone(), error_code, error_message });
    }
    if request.validate_only {
        records.clear();
    }
    Decision { records, response: CreatePartitionsResponse { throttle_time_ms: 0, results } }
}

fn add_partitions(image: &MetadataImage, request: &CreatePartitionsTopic) -> Result<Vec<MetadataRecord>, ApiError> {
    let unknown = || ApiError::of(ErrorCode::UnknownTopicOrPartition);
    let topic = image.topic(&request.name).ok_or_else(unknown)?;
    let current = topic.partition_count();
    let invalid = |message: String| Err(ApiError::new(ErrorCode::InvalidPartitions, message));
    if request.count == current {
        return invalid(format!("Topic already has {current} partition(s)."));
    }
    if request.count < current {
        return invalid(format!(
            "The topic {} currently has {current} partition(s); {} would not be an increase.",
            request.name, request.count
        ));
    }
    let additional = request.count - current;
    if additional > MAX_NEW_PARTITIONS {
        return Err(ApiError::new(ErrorCode::PolicyViolation, "Excessively large number of partitions per request."));
    }
    let replication_factor = topic.replication_factor();
    let replicas = match &request.assignments {
        None => placement::place(image, current, additional, replication_factor)?,
        Some(assignments) => {
            if i32::try_from(assignments.len()) != Ok(additional) {
                return Err(ApiError::new(
                    ErrorCode::InvalidReplicaAssignment,
                    format!(
                        "Attempted to add {additional} additional partition(s), but only {} assignment(s) were \
                         specified.",
                        assignments.len()
                    ),
                ));
            }
            let expected = usize::try_from(replication_factor).ok();
            for (partition, assignment) in (current..).zip(assignments) {
                placement::check_manual(image, partition, &assignment.broker_ids, expected)?;
            }
            assignments.iter().map(|a| a.broker_ids.clone()).collect()
        }
    };
    let record = |(partition, replicas)| placement::new_partition(image, topic.id, partition, replicas).into();
    Ok((current..).zip(replicas).map(record).collect())
}
