//! Brokers, configurations, log directories.

use caudal_protocol::TopicPartition;
use caudal_protocol::messages as m;
use caudal_protocol::messages::api_versions_response::ApiVersionsResponse;
use caudal_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use caudal_protocol::messages::describe_configs_request::DescribeConfigsResource;
use caudal_protocol::messages::describe_configs_response::DescribeConfigsResult;
use caudal_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use caudal_protocol::messages::describe_log_dirs_response::DescribeLogDirsResult;
use caudal_protocol::messages::find_coordinator_response::Coordinator;
use caudal_protocol::messages::incremental_alter_configs_request::AlterConfigsResource;
use caudal_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use caudal_protocol::messages::list_config_resources_response::ConfigResource;
use caudal_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use caudal_protocol::messages::list_partition_reassignments_response::OngoingTopicReassignment;

use super::Admin;
use crate::client::{BROKERS, CONTROLLERS};
use crate::error::{Error, Result, check};
use crate::metadata::Node;

/// What a configuration belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i8)]
pub enum ConfigResourceType {
    Topic = 2,
    Broker = 4,
    BrokerLogger = 8,
    ClientMetrics = 16,
    Group = 32,
}

impl ConfigResourceType {
    /// The value on the wire.
    pub fn id(self) -> i8 {
        self as i8
    }
}

impl Admin {
    /// The cluster's id, brokers and controller, or with `bootstrap.controllers` the controllers; `include_fenced_brokers` also those that are down (from 4.0 on).
    pub async fn describe_cluster(&self, include_fenced_brokers: bool) -> Result<m::DescribeClusterResponse> {
        let node = self.any_node()?;
        match self.client.version_of::<m::DescribeClusterRequest>(node).await {
            Ok(_) => {
                let endpoint_type = if self.client.config().is_to_controllers() { CONTROLLERS } else { BROKERS };
                let request = m::DescribeClusterRequest { endpoint_type, include_fenced_brokers, ..Default::default() };
                let response = self.to_node(node, "describe the cluster", &request).await?;
                let what = || "describe the cluster".to_owned();
                check(response.error_code, response.error_message.as_deref(), what)?;
                Ok(response)
            }
            Err(Error::UnsupportedApi { .. }) => self.describe_cluster_by_metadata().await,
            Err(error) => Err(error),
        }
    }

    async fn describe_cluster_by_metadata(&self) -> Result<m::DescribeClusterResponse> {
        let request =
            m::MetadataRequest { topics: Some(Vec::new()), allow_auto_topic_creation: false, ..Default::default() };
        let response = self.client.send_any(&request).await?;
        let broker = |b: m::metadata_response::MetadataResponseBroker| DescribeClusterBroker {
            broker_id: b.node_id,
            host: b.host,
            port: b.port,
            rack: b.rack,
            ..Default::default()
        };
        Ok(m::DescribeClusterResponse {
            endpoint_type: BROKERS,
            cluster_id: response.cluster_id.unwrap_or_default(),
            controller_id: response.controller_id,
            brokers: response.brokers.into_iter().map(broker).collect(),
            ..Default::default()
        })
    }

    /// Configurations of topics, brokers, groups; one result per resource. Those of a broker are asked of that broker.
    pub async fn describe_configs(
        &self,
        resources: Vec<DescribeConfigsResource>,
        include_synonyms: bool,
        include_documentation: bool,
    ) -> Result<Vec<DescribeConfigsResult>> {
        let mut results = Vec::new();
        for (node, resources) in self.by_node(resources, |r| (r.resource_type, r.resource_name.as_str()))? {
            let request = m::DescribeConfigsRequest { resources, include_synonyms, include_documentation };
            results.extend(self.to_node(node, "describe configurations", &request).await?.results);
        }
        Ok(results)
    }

    /// Sets, deletes, appends to and subtracts from configurations (KIP-339: operations 0, 1, 2, 3).
    pub async fn incremental_alter_configs(
        &self,
        resources: Vec<AlterConfigsResource>,
        validate_only: bool,
    ) -> Result<Vec<AlterConfigsResourceResponse>> {
        let mut results = Vec::new();
        for (node, resources) in self.by_node(resources, |r| (r.resource_type, r.resource_name.as_str()))? {
            let request = m::IncrementalAlterConfigsRequest { resources, validate_only };
            results.extend(self.to_node(node, "alter configurations", &request).await?.responses);
        }
        Ok(results)
    }

    /// A broker's own resources go to it, all others to any broker.
    fn by_node<T>(&self, resources: Vec<T>, key: impl Fn(&T) -> (i8, &str)) -> Result<Vec<(i32, Vec<T>)>> {
        let any = self.any_node()?;
        let mut groups: Vec<(i32, Vec<T>)> = Vec::new();
        for resource in resources {
            let (kind, name) = key(&resource);
            let own = kind == ConfigResourceType::Broker.id() || kind == ConfigResourceType::BrokerLogger.id();
            let node = if own && !name.is_empty() { name.parse().unwrap_or(any) } else { any };
            match groups.iter_mut().find(|(id, _)| *id == node) {
                Some((_, group)) => group.push(resource),
                None => groups.push((node, vec![resource])),
            }
        }
        Ok(groups)
    }

    /// Names of the resources that have configurations (KIP-1142); empty `types`: all that the broker supports.
    pub async fn list_config_resources(&self, types: &[ConfigResourceType]) -> Result<Vec<ConfigResource>> {
        let request = m::ListConfigResourcesRequest { resource_types: types.iter().map(|t| t.id()).collect() };
        let response = self.client.send_any(&request).await?;
        check(response.error_code, None, || "list configuration resources".to_owned())?;
        Ok(response.config_resources)
    }

    /// The coordinator of a group (`key_type` 0) or a transactional id (1), without the cache.
    pub async fn find_coordinator(&self, key: &str, key_type: i8) -> Result<Coordinator> {
        let mut attempts = self.client.api_attempts(format!("find the coordinator of '{key}'"));
        loop {
            let found = self.client.find_coordinator(key, key_type).await.and_then(|c| {
                let what = || format!("find the coordinator of '{key}'");
                check(c.error_code, c.error_message.as_deref(), what).map(|()| c)
            });
            match found {
                Ok(coordinator) => return Ok(coordinator),
                Err(error) => attempts.pause(error).await?,
            }
        }
    }

    /// What each broker of the cluster serves; a broker that does not answer has its error.
    pub async fn api_versions(&self) -> Result<Vec<(Node, Result<ApiVersionsResponse>)>> {
        self.client.refresh_metadata(Some(Vec::new()), false).await?;
        let mut answers = Vec::new();
        for node in self.client.nodes() {
            let answer = self.client.api_versions(node.id).await;
            answers.push((node, answer));
        }
        Ok(answers)
    }

    /// Log directories per broker, with the sizes of the partitions in them. Empty `nodes`: all brokers; `topics` of
    /// `None`: all.
    pub async fn describe_log_dirs(
        &self,
        nodes: &[i32],
        topics: Option<Vec<DescribableLogDirTopic>>,
    ) -> Result<Vec<(i32, Vec<DescribeLogDirsResult>)>> {
        let nodes = match nodes {
            [] => self.client.nodes().into_iter().map(|n| n.id).collect(),
            some => some.to_vec(),
        };
        let request = m::DescribeLogDirsRequest { topics };
        let mut results = Vec::new();
        for node in nodes {
            let response = self.to_node(node, "describe log directories", &request).await?;
            check(response.error_code, None, || format!("describe the log directories of broker {node}"))?;
            results.push((node, response.results));
        }
        Ok(results)
    }

    /// Reassignments under way; `None`: of all partitions.
    pub async fn list_partition_reassignments(
        &self,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<Vec<OngoingTopicReassignment>> {
        let mut request = m::ListPartitionReassignmentsRequest { timeout_ms: self.timeout_ms(), topics: None };
        if let Some(partitions) = partitions {
            let mut topics: Vec<ListPartitionReassignmentsTopics> = Vec::new();
            for tp in partitions {
                match topics.iter_mut().find(|t| t.name == tp.topic) {
                    Some(topic) => topic.partition_indexes.push(tp.partition),
                    None => topics.push(ListPartitionReassignmentsTopics {
                        name: tp.topic.clone(),
                        partition_indexes: vec![tp.partition],
                    }),
                }
            }
            request.topics = Some(topics);
        }
        let codes = |r: &m::ListPartitionReassignmentsResponse| vec![r.error_code];
        let response = self.to_controller("list partition reassignments", &request, codes).await?;
        let what = || "list partition reassignments".to_owned();
        check(response.error_code, response.error_message.as_deref(), what)?;
        Ok(response.topics)
    }
}
