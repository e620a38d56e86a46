//! Metadata (3), versions 0-13: brokers, topics, partitions and their leaders. A topic that is asked for by name and does
//! not exist is created when the client and `auto.create.topics.enable` allow it.
//!
//! As on Apache Kafka the answer for a topic that is only being created is UNKNOWN_TOPIC_OR_PARTITION, and the client asks
//! again ([`crate::wanted_topics`]).

use std::collections::BTreeSet;

use caudal_cluster::MetadataImage;
use caudal_cluster::controller;
use caudal_cluster::image::{NO_LEADER, Topic};
use caudal_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use caudal_protocol::messages::{MetadataRequest, MetadataResponse};
use caudal_protocol::{ErrorCode, Uuid};

use super::{RequestHeader, once};
use crate::context::Context;

/// Topics that belong to the broker itself (`Topic.INTERNAL_TOPICS`).
const INTERNAL_TOPICS: [&str; 3] = ["__consumer_offsets", "__transaction_state", "__share_group_state"];

/// All operations that exist on a topic, as a bit field: without an authorizer everybody may do all of them.
pub(super) const ALL_TOPIC_OPERATIONS: i32 = 0b1101_1111_1000;
/// All operations on the cluster.
pub(super) const ALL_CLUSTER_OPERATIONS: i32 = 0b1_1111_1010_0000;

pub(super) fn is_internal(topic: &str) -> bool {
    INTERNAL_TOPICS.contains(&topic)
}

pub async fn handle(ctx: &Context, header: &RequestHeader, request: MetadataRequest, version: i16) -> MetadataResponse {
    // Version 0 has no null: there, no topics means all of them.
    let wanted = request.topics.filter(|topics| version > 0 || !topics.is_empty());
    let operations = request.include_topic_authorized_operations.then_some(ALL_TOPIC_OPERATIONS);
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    let mut topics: Vec<MetadataResponseTopic> = Vec::new();
    for topic in wanted.iter().flatten() {
        match &topic.name {
            _ if !topic.topic_id.is_zero() && version >= 12 => ids.push(topic.topic_id),
            Some(name) => names.push(name.as_str()),
            None => topics.push(failed(None, Uuid::ZERO, ErrorCode::InvalidRequest)),
        }
    }
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    let ids = once(ids, |id| *id);
    let image = ctx.metadata.image();
    if request.allow_auto_topic_creation && wanted.is_some() {
        want_missing(ctx, &image, &names);
    }
    if wanted.is_none() {
        topics.extend(image.topics().map(|topic| describe(topic)));
    }
    topics.extend(ids.into_iter().map(|id| match image.topic_by_id(&id) {
        Some(topic) => describe(topic),
        None => failed(None, id, ErrorCode::UnknownTopicId),
    }));
    topics.extend(names.into_iter().map(|name| match image.topic(name) {
        Some(topic) => describe(topic),
        None if controller::check_topic_name(name).is_err() => {
            failed(Some(name), Uuid::ZERO, ErrorCode::InvalidTopicException)
        }
        None => failed(Some(name), Uuid::ZERO, ErrorCode::UnknownTopicOrPartition),
    }));
    if let Some(operations) = operations {
        topics.iter_mut().for_each(|topic| topic.topic_authorized_operations = operations);
    }
    let mut response = MetadataResponse {
        brokers: vec![this_broker(ctx, header)],
        cluster_id: Some(ctx.cluster_id.clone()),
        controller_id: ctx.node_id(),
        topics,
        ..MetadataResponse::default()
    };
    if request.include_cluster_authorized_operations && (8..=10).contains(&version) {
        response.cluster_authorized_operations = ALL_CLUSTER_OPERATIONS;
    }
    response
}

/// Has the topics among `names` created that do not exist and may be.
fn want_missing(ctx: &Context, image: &MetadataImage, names: &[&str]) {
    if ctx.config.properties.bool("auto.create.topics.enable") {
        let creatable = |name: &&&str| image.topic(name).is_none() && controller::check_topic_name(name).is_ok();
        ctx.wanted_topics.want(names.iter().filter(creatable));
    }
}

fn this_broker(ctx: &Context, header: &RequestHeader) -> MetadataResponseBroker {
    let (host, port) = ctx.advertised(header);
    let rack = ctx.config.properties.get("broker.rack").map(str::to_owned);
    MetadataResponseBroker { node_id: ctx.node_id(), host, port: i32::from(port), rack }
}

fn describe(topic: &Topic) -> MetadataResponseTopic {
    let partitions = topic.partitions.iter().map(|(index, partition)| MetadataResponsePartition {
        error_code: match partition.leader {
            NO_LEADER => ErrorCode::LeaderNotAvailable.code(),
            _ => ErrorCode::None.code(),
        },
        partition_index: *index,
        leader_id: partition.leader,
        leader_epoch: partition.leader_epoch,
        replica_nodes: partition.replicas.clone(),
        isr_nodes: partition.isr.clone(),
        offline_replicas: match partition.leader {
            NO_LEADER => partition.replicas.clone(),
            _ => Vec::new(),
        },
    });
    MetadataResponseTopic {
        error_code: ErrorCode::None.code(),
        name: Some(topic.name.clone()),
        topic_id: topic.id,
        is_internal: is_internal(&topic.name),
        partitions: partitions.collect(),
        ..MetadataResponseTopic::default()
    }
}

fn failed(name: Option<&str>, topic_id: Uuid, error: ErrorCode) -> MetadataResponseTopic {
    MetadataResponseTopic {
        error_code: error.code(),
        name: name.map(str::to_owned),
        topic_id,
        is_internal: name.is_some_and(is_internal),
        ..MetadataResponseTopic::default()
    }
}

/// The image's brokers other than this one are registrations of former lives; this node serves alone.
pub(super) fn broker_ids(image: &MetadataImage) -> impl Iterator<Item = i32> + '_ {
    image.brokers().map(|broker| broker.broker_id)
}
