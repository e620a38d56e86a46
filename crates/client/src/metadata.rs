//! What the cluster looks like: brokers, and the topics that were asked for, with the leaders of their partitions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use caudal_protocol::messages::metadata_response::{MetadataResponse, MetadataResponseTopic};
use caudal_protocol::{TopicPartition, Uuid};
use hashbrown::HashMap;

use crate::error::{Error, Result};

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: i32,
    pub host: String,
    pub port: u16,
    pub rack: Option<String>,
}

/// A topic as it stands in the cluster's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMetadata {
    pub name: String,
    /// Zero when the broker is older than topic ids (before Kafka 2.8).
    pub id: Uuid,
    pub is_internal: bool,
    /// Ascending by partition.
    pub partitions: Vec<PartitionMetadata>,
}

/// A partition as it stands in the cluster's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionMetadata {
    pub partition: i32,
    /// `None` when the partition is offline.
    pub leader: Option<i32>,
    /// -1 when the broker did not say.
    pub leader_epoch: i32,
    pub replicas: Vec<i32>,
    pub isr: Vec<i32>,
    pub offline_replicas: Vec<i32>,
}

impl TopicMetadata {
    pub fn partition(&self, partition: i32) -> Option<&PartitionMetadata> {
        let at = self.partitions.binary_search_by_key(&partition, |p| p.partition).ok()?;
        self.partitions.get(at)
    }

    fn from_response(topic: MetadataResponseTopic) -> TopicMetadata {
        let mut partitions: Vec<PartitionMetadata> = topic
            .partitions
            .into_iter()
            .map(|p| PartitionMetadata {
                partition: p.partition_index,
                leader: Some(p.leader_id).filter(|id| *id >= 0),
                leader_epoch: p.leader_epoch,
                replicas: p.replica_nodes,
                isr: p.isr_nodes,
                offline_replicas: p.offline_replicas,
            })
            .collect();
        partitions.sort_by_key(|p| p.partition);
        TopicMetadata {
            name: topic.name.unwrap_or_default(),
            id: topic.topic_id,
            is_internal: topic.is_internal,
            partitions,
        }
    }
}

/// The cache of what brokers said about the cluster.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub cluster_id: Option<String>,
    pub controller_id: Option<i32>,
    pub nodes: BTreeMap<i32, Node>,
    topics: HashMap<String, (Arc<TopicMetadata>, Instant)>,
}

impl Cluster {
    /// Takes a response over. Returns the topics it could not describe, with their error codes.
    pub(crate) fn update(&mut self, response: MetadataResponse, now: Instant) -> Vec<(String, i16)> {
        self.cluster_id = response.cluster_id.or(self.cluster_id.take());
        self.controller_id = Some(response.controller_id).filter(|id| *id >= 0);
        if !response.brokers.is_empty() {
            self.nodes = response
                .brokers
                .into_iter()
                .map(|b| {
                    let port = u16::try_from(b.port).unwrap_or(0);
                    (b.node_id, Node { id: b.node_id, host: b.host, port, rack: b.rack })
                })
                .collect();
        }
        let mut failed = Vec::new();
        for topic in response.topics {
            let name = topic.name.clone().unwrap_or_default();
            // A topic whose partitions have no leader yet carries that error beside a full description.
            if topic.error_code != 0 && topic.partitions.is_empty() {
                self.topics.remove(&name);
                failed.push((name, topic.error_code));
            } else {
                self.topics.insert(name, (Arc::new(TopicMetadata::from_response(topic)), now));
            }
        }
        failed
    }

    /// The topic and when it was last described.
    pub(crate) fn topic(&self, name: &str) -> Option<(&Arc<TopicMetadata>, Instant)> {
        self.topics.get(name).map(|(topic, at)| (topic, *at))
    }

    pub(crate) fn topics(&self) -> impl Iterator<Item = &Arc<TopicMetadata>> {
        self.topics.values().map(|(topic, _)| topic)
    }

    /// Makes the next look at the topic ask the cluster.
    pub(crate) fn forget_topic(&mut self, name: &str) {
        self.topics.remove(name);
    }

    /// The leader and its epoch.
    pub(crate) fn leader(&self, topic: &str, partition: i32) -> Result<(i32, i32)> {
        let missing = || Error::NoLeader { partition: TopicPartition::new(topic, partition) };
        let (topic, _) = self.topics.get(topic).ok_or_else(missing)?;
        let partition = topic.partition(partition).ok_or_else(missing)?;
        Ok((partition.leader.ok_or_else(missing)?, partition.leader_epoch))
    }

    /// Records a leader that an error response named (KIP-951). Returns whether that is news.
    pub(crate) fn set_leader(&mut self, topic: &str, partition: i32, leader: i32, epoch: i32) -> bool {
        let Some((known, _)) = self.topics.get_mut(topic) else { return false };
        let topic = Arc::make_mut(known);
        let found = topic.partitions.iter_mut().find(|p| p.partition == partition);
        let Some(found) = found.filter(|p| p.leader_epoch < epoch) else { return false };
        found.leader = Some(leader).filter(|id| *id >= 0);
        found.leader_epoch = epoch;
        true
    }
}
