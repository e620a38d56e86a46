//! ListPartitionReassignments (46), version 0: the partitions whose replicas are being moved.

use caudal_cluster::image::{Partition, Topic};
use caudal_protocol::messages::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use caudal_protocol::messages::{ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse};

use super::{RequestHeader, once};
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: ListPartitionReassignmentsRequest,
    _version: i16,
) -> ListPartitionReassignmentsResponse {
    let image = ctx.metadata.image();
    let mut topics = Vec::new();
    match request.topics {
        None => topics.extend(image.topics().filter_map(|topic| ongoing(topic, topic.partitions.iter()))),
        Some(wanted) => {
            for wanted in once(wanted, |topic| topic.name.clone()) {
                let Some(topic) = image.topic(&wanted.name) else { continue };
                let indexes = once(wanted.partition_indexes, |index| *index);
                let partitions = indexes.iter().filter_map(|index| topic.partitions.get_key_value(index));
                topics.extend(ongoing(topic, partitions));
            }
        }
    }
    ListPartitionReassignmentsResponse { error_message: None, topics, ..ListPartitionReassignmentsResponse::default() }
}

fn ongoing<'i>(
    topic: &Topic,
    partitions: impl Iterator<Item = (&'i i32, &'i Partition)>,
) -> Option<OngoingTopicReassignment> {
    let moving = partitions.filter(|(_, p)| !p.adding_replicas.is_empty() || !p.removing_replicas.is_empty());
    let partitions: Vec<OngoingPartitionReassignment> = moving
        .map(|(index, partition)| OngoingPartitionReassignment {
            partition_index: *index,
            replicas: partition.replicas.clone(),
            adding_replicas: partition.adding_replicas.clone(),
            removing_replicas: partition.removing_replicas.clone(),
        })
        .collect();
    (!partitions.is_empty()).then(|| OngoingTopicReassignment { name: topic.name.clone(), partitions })
}
