//! DescribeTopicPartitions (75), version 0: topics and partitions page by page, with their eligible leaders (KIP-966).

use std::collections::BTreeSet;

use caudal_cluster::controller::check_topic_name;
use caudal_cluster::image::{NO_LEADER, Partition, Topic};
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_topic_partitions_request::TopicRequest;
use caudal_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use caudal_protocol::messages::{DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse};

use super::metadata::{ALL_TOPIC_OPERATIONS, is_internal};
use super::{RequestHeader, once};
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DescribeTopicPartitionsRequest,
    _version: i16,
) -> DescribeTopicPartitionsResponse {
    let image = ctx.metadata.image();
    if request.cursor.as_ref().is_some_and(|cursor| cursor.partition_index < 0) {
        let refused = |topic: &TopicRequest| DescribeTopicPartitionsResponseTopic {
            error_code: ErrorCode::InvalidRequest.code(),
            name: Some(topic.name.clone()),
            is_internal: is_internal(&topic.name),
            ..DescribeTopicPartitionsResponseTopic::default()
        };
        let topics = once(request.topics, |topic| topic.name.clone()).iter().map(refused).collect();
        return DescribeTopicPartitionsResponse { topics, ..DescribeTopicPartitionsResponse::default() };
    }
    let (first_topic, first_partition) = match &request.cursor {
        Some(cursor) => (cursor.topic_name.as_str(), cursor.partition_index),
        None => ("", 0),
    };
    let mut names: BTreeSet<&str> = match request.topics.is_empty() {
        true => image.topics().map(|topic| topic.name.as_str()).collect(),
        false => request.topics.iter().map(|topic| topic.name.as_str()).collect(),
    };
    names.retain(|name| *name >= first_topic);
    let most = ctx.config.properties.int("max.request.partition.size.limit");
    let limit = i64::from(request.response_partition_limit).min(most).max(1);
    let mut left = usize::try_from(limit).unwrap_or(1);
    let mut response = DescribeTopicPartitionsResponse::default();
    for name in names {
        let Some(topic) = image.topic(name) else {
            response.topics.push(unknown(name));
            continue;
        };
        let from = if name == first_topic { first_partition } else { 0 };
        if left == 0 {
            response.next_cursor = Some(Cursor { topic_name: name.to_owned(), partition_index: from });
            return response;
        }
        let page: Vec<_> = topic.partitions.range(from..).take(left).map(|(i, p)| describe(*i, p)).collect();
        left -= page.len();
        let next = page.last().map_or(from, |p| p.partition_index + 1);
        response.topics.push(page_of(topic, page));
        if topic.partitions.range(next..).next().is_some() {
            response.next_cursor = Some(Cursor { topic_name: name.to_owned(), partition_index: next });
            return response;
        }
    }
    response
}

fn page_of(
    topic: &Topic,
    partitions: Vec<DescribeTopicPartitionsResponsePartition>,
) -> DescribeTopicPartitionsResponseTopic {
    DescribeTopicPartitionsResponseTopic {
        error_code: ErrorCode::None.code(),
        name: Some(topic.name.clone()),
        topic_id: topic.id,
        is_internal: is_internal(&topic.name),
        partitions,
        topic_authorized_operations: ALL_TOPIC_OPERATIONS,
    }
}

fn unknown(name: &str) -> DescribeTopicPartitionsResponseTopic {
    let error = match check_topic_name(name) {
        Ok(()) => ErrorCode::UnknownTopicOrPartition,
        Err(_) => ErrorCode::InvalidTopicException,
    };
    DescribeTopicPartitionsResponseTopic {
        error_code: error.code(),
        name: Some(name.to_owned()),
        is_internal: is_internal(name),
        ..DescribeTopicPartitionsResponseTopic::default()
    }
}

fn describe(partition_index: i32, partition: &Partition) -> DescribeTopicPartitionsResponsePartition {
    DescribeTopicPartitionsResponsePartition {
        error_code: match partition.leader {
            NO_LEADER => ErrorCode::LeaderNotAvailable.code(),
            _ => ErrorCode::None.code(),
        },
        partition_index,
        leader_id: partition.leader,
        leader_epoch: partition.leader_epoch,
        replica_nodes: partition.replicas.clone(),
        isr_nodes: partition.isr.clone(),
        eligible_leader_replicas: Some(partition.eligible_leader_replicas.clone()),
        last_known_elr: Some(partition.last_known_elr.clone()),
        offline_replicas: match partition.leader {
            NO_LEADER => partition.replicas.clone(),
            _ => Vec::new(),
        },
    }
}
