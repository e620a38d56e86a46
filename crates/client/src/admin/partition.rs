//! Where partitions are: leaders, replicas, log directories.

use std::collections::BTreeMap;

use caudal_protocol::messages as m;
use caudal_protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use caudal_protocol::messages::alter_partition_reassignments_response::ReassignablePartitionResponse;
use caudal_protocol::messages::alter_replica_log_dirs_request::{AlterReplicaLogDir, AlterReplicaLogDirTopic};
use caudal_protocol::messages::elect_leaders_request::TopicPartitions;
use caudal_protocol::messages::elect_leaders_response::PartitionResult;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::Admin;
use crate::error::{Result, check};

/// How a leader is chosen (KIP-460).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum ElectionType {
    /// The first replica, when it is in sync.
    Preferred = 0,
    /// Any live replica, also one that lacks records.
    Unclean = 1,
}

impl Admin {
    /// Elects leaders; `None`: of all partitions that need it, and only those have a result.
    pub async fn elect_leaders(
        &self,
        election: ElectionType,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<Vec<(TopicPartition, PartitionResult)>> {
        let topic_partitions = partitions.map(|partitions| {
            let mut topics: Vec<TopicPartitions> = Vec::new();
            for tp in partitions {
                match topics.iter_mut().find(|t| t.topic == tp.topic) {
                    Some(topic) => topic.partitions.push(tp.partition),
                    None => topics.push(TopicPartitions { topic: tp.topic.clone(), partitions: vec![tp.partition] }),
                }
            }
            topics
        });
        let request =
            m::ElectLeadersRequest { election_type: election as i8, topic_partitions, timeout_ms: self.timeout_ms() };
        let codes = |r: &m::ElectLeadersResponse| {
            let partitions = r.replica_election_results.iter().flat_map(|t| &t.partition_result);
            std::iter::once(r.error_code).chain(partitions.map(|p| p.error_code)).collect()
        };
        let response = self.to_controller("elect leaders", &request, codes).await?;
        check(response.error_code, None, || "elect leaders".to_owned())?;
        let results = response.replica_election_results.into_iter().flat_map(|t| {
            let name = t.topic;
            t.partition_result.into_iter().map(move |p| (TopicPartition::new(name.clone(), p.partition_id), p))
        });
        Ok(results.collect())
    }

    /// Starts reassignments of partitions to replicas, and cancels (`None`) those under way.
    pub async fn alter_partition_reassignments(
        &self,
        reassignments: &BTreeMap<TopicPartition, Option<Vec<i32>>>,
        allow_replication_factor_change: bool,
    ) -> Result<Vec<(TopicPartition, ReassignablePartitionResponse)>> {
        let mut topics: Vec<ReassignableTopic> = Vec::new();
        for (tp, replicas) in reassignments {
            let partition = ReassignablePartition { partition_index: tp.partition, replicas: replicas.clone() };
            match topics.iter_mut().find(|t| t.name == tp.topic) {
                Some(topic) => topic.partitions.push(partition),
                None => topics.push(ReassignableTopic { name: tp.topic.clone(), partitions: vec![partition] }),
            }
        }
        let timeout_ms = self.timeout_ms();
        let request = m::AlterPartitionReassignmentsRequest { timeout_ms, allow_replication_factor_change, topics };
        let what = "alter partition reassignments";
        let codes = |r: &m::AlterPartitionReassignmentsResponse| vec![r.error_code];
        let response = self.to_controller(what, &request, codes).await?;
        check(response.error_code, response.error_message.as_deref(), || what.to_owned())?;
        let results = response.responses.into_iter().flat_map(|t| {
            let name = t.name;
            t.partitions.into_iter().map(move |p| (TopicPartition::new(name.clone(), p.partition_index), p))
        });
        Ok(results.collect())
    }

    /// Starts moving a broker's replicas to other log directories of that broker, given by absolute path.
    pub async fn alter_replica_log_dirs(
        &self,
        broker: i32,
        moves: &BTreeMap<TopicPartition, String>,
    ) -> Result<Vec<(TopicPartition, ErrorCode)>> {
        let mut dirs: Vec<AlterReplicaLogDir> = Vec::new();
        for (tp, path) in moves {
            let at = dirs.iter().position(|d| d.path == *path).unwrap_or_else(|| {
                dirs.push(AlterReplicaLogDir { path: path.clone(), topics: Vec::new() });
                dirs.len() - 1
            });
            let Some(dir) = dirs.get_mut(at) else { continue };
            match dir.topics.iter_mut().find(|t| t.name == tp.topic) {
                Some(topic) => topic.partitions.push(tp.partition),
                None => {
                    dir.topics.push(AlterReplicaLogDirTopic { name: tp.topic.clone(), partitions: vec![tp.partition] })
                }
            }
        }
        let request = m::AlterReplicaLogDirsRequest { dirs };
        let response = self.to_node(broker, "move replicas to other log directories", &request).await?;
        let results = response.results.into_iter().flat_map(|t| {
            let name = t.topic_name;
            let result = move |p: &m::alter_replica_log_dirs_response::AlterReplicaLogDirPartitionResult| {
                (TopicPartition::new(name.clone(), p.partition_index), ErrorCode::from_code(p.error_code))
            };
            t.partitions.iter().map(result).collect::<Vec<_>>()
        });
        Ok(results.collect())
    }
}
