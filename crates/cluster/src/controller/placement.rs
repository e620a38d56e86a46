//! Where replicas go, and whether a placement that somebody asked for is possible.

use caudal_protocol::records::metadata::PartitionRecord;
use caudal_protocol::{ErrorCode, Uuid};

use super::ApiError;
use crate::image::MetadataImage;

/// "Any directory of the broker" (KIP-858).
const UNASSIGNED_DIRECTORY: Uuid = Uuid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Replicas of `count` new partitions, the first of which has the number `start`: spread over the active brokers.
pub(super) fn place(
    image: &MetadataImage,
    start: i32,
    count: i32,
    replication_factor: i16,
) -> Result<Vec<Vec<i32>>, ApiError> {
    let refuse = |message: String| {
        ApiError::new(
            ErrorCode::InvalidReplicationFactor,
            format!("Unable to replicate the partition {replication_factor} time(s): {message}"),
        )
    };
    let registered: Vec<i32> = image.brokers().map(|b| b.broker_id).collect();
    let active: Vec<i32> = registered.iter().copied().filter(|id| image.is_active(*id)).collect();
    if active.is_empty() {
        return Err(refuse("All brokers are currently fenced, or have all their log directories cordoned.".to_owned()));
    }
    let wanted = usize::try_from(replication_factor).unwrap_or(0);
    if wanted > registered.len() {
        return Err(refuse(format!(
            "The target replication factor of {replication_factor} cannot be reached because only {} broker(s) are \
             registered or some brokers have all their log directories cordoned.",
            registered.len()
        )));
    }
    let start = usize::try_from(start).unwrap_or(0);
    let count = usize::try_from(count).unwrap_or(0);
    Ok((start..start + count)
        .map(|p| active.iter().cycle().skip(p % active.len()).take(wanted.min(active.len())).copied().collect())
        .collect())
}

/// Checks that a list of replicas that a request names can be one: each of them a registered broker, and once.
pub(super) fn check_replicas(image: &MetadataImage, replicas: &[i32]) -> Result<(), ApiError> {
    let refuse = |message: String| ApiError::new(ErrorCode::InvalidReplicaAssignment, message);
    if replicas.is_empty() {
        return Err(refuse("The manual partition assignment includes an empty replica list.".to_owned()));
    }
    let mut sorted = replicas.to_vec();
    sorted.sort_unstable();
    let mut previous = None;
    for id in &sorted {
        if image.broker(*id).is_none() {
            return Err(refuse(format!(
                "The manual partition assignment includes broker {id}, but no such broker is registered."
            )));
        }
        if previous == Some(id) {
            return Err(refuse(format!("The manual partition assignment includes the broker {id} more than once.")));
        }
        previous = Some(id);
    }
    Ok(())
}

/// Checks the replicas of one new partition that a request names.
pub(super) fn check_manual(
    image: &MetadataImage,
    partition: i32,
    replicas: &[i32],
    expected_replicas: Option<usize>,
) -> Result<(), ApiError> {
    check_replicas(image, replicas)?;
    let refuse = |message: String| ApiError::new(ErrorCode::InvalidReplicaAssignment, message);
    if let Some(expected) = expected_replicas.filter(|n| *n != replicas.len()) {
        return Err(refuse(format!(
            "The manual partition assignment includes a partition with {} replica(s), but this is not consistent \
             with previous partitions, which have {expected} replica(s).",
            replicas.len()
        )));
    }
    if !replicas.iter().any(|id| image.is_active(*id)) {
        return Err(refuse(format!(
            "All brokers specified in the manual partition assignment for partition {partition} are fenced or in \
             controlled shutdown."
        )));
    }
    Ok(())
}

/// The record of a new partition: its first active replica leads.
pub(super) fn new_partition(
    image: &MetadataImage,
    topic_id: Uuid,
    partition_id: i32,
    replicas: Vec<i32>,
) -> PartitionRecord {
    let isr: Vec<i32> = replicas.iter().copied().filter(|id| image.is_active(*id)).collect();
    let directory = |id: &i32| match image.broker(*id).map(|b| b.log_dirs.as_slice()) {
        Some([only]) => *only,
        _ => UNASSIGNED_DIRECTORY,
    };
    PartitionRecord {
        partition_id,
        topic_id,
        directories: replicas.iter().map(directory).collect(),
        leader: isr.first().copied().unwrap_or(crate::image::NO_LEADER),
        isr,
        replicas,
        leader_epoch: 0,
        partition_epoch: 0,
        ..PartitionRecord::default()
    }
}
