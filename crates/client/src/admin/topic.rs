//! Topics, their partitions and records.

use std::collections::BTreeMap;
use std::sync::Arc;

use caudal_protocol::TopicPartition;
use caudal_protocol::messages as m;
use caudal_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use caudal_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use caudal_protocol::messages::create_topics_request::CreatableTopic;
use caudal_protocol::messages::create_topics_response::CreatableTopicResult;
use caudal_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use caudal_protocol::messages::delete_topics_request::DeleteTopicState;
use caudal_protocol::messages::delete_topics_response::DeletableTopicResult;
use caudal_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use caudal_protocol::messages::describe_topic_partitions_response::{
    DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use caudal_protocol::messages::metadata_request::MetadataRequestTopic;

use super::Admin;
use crate::error::{Error, Result};
use crate::metadata::TopicMetadata;
use crate::offsets::{Isolation, ListedOffsets, OffsetSpec};

/// Partitions per answer of DescribeTopicPartitions; brokers allow no more.
const DESCRIBE_PARTITION_LIMIT: i32 = 2000;

impl Admin {
    /// Creates topics. `num_partitions` and `replication_factor` of -1 take the broker's defaults.
    pub async fn create_topics(
        &self,
        topics: Vec<CreatableTopic>,
        validate_only: bool,
    ) -> Result<Vec<CreatableTopicResult>> {
        let request = m::CreateTopicsRequest { topics, timeout_ms: self.timeout_ms(), validate_only };
        let codes = |r: &m::CreateTopicsResponse| r.topics.iter().map(|t| t.error_code).collect();
        Ok(self.to_controller("create topics", &request, codes).await?.topics)
    }

    /// Creates one topic with the broker's default settings; partitions of `None` too.
    pub async fn create_topic(&self, name: &str, partitions: Option<i32>) -> Result<CreatableTopicResult> {
        let topic = CreatableTopic {
            name: name.to_owned(),
            num_partitions: partitions.unwrap_or(-1),
            replication_factor: -1,
            ..Default::default()
        };
        let result = self.create_topics(vec![topic], false).await?.into_iter().next().unwrap_or_default();
        let what = || format!("create topic '{name}'");
        crate::error::check(result.error_code, result.error_message.as_deref(), what)?;
        Ok(result)
    }

    pub async fn delete_topics(&self, names: &[String]) -> Result<Vec<DeletableTopicResult>> {
        let mut request = m::DeleteTopicsRequest { timeout_ms: self.timeout_ms(), ..Default::default() };
        let controller = self.client.controller().await?;
        if self.client.version_of::<m::DeleteTopicsRequest>(controller).await? >= 6 {
            let state = |name: &String| DeleteTopicState { name: Some(name.clone()), ..Default::default() };
            request.topics = names.iter().map(state).collect();
        } else {
            request.topic_names = names.to_vec();
        }
        let codes = |r: &m::DeleteTopicsResponse| r.responses.iter().map(|t| t.error_code).collect();
        let response = self.to_controller("delete topics", &request, codes).await?;
        for name in names {
            self.client.forget_topic(name);
        }
        Ok(response.responses)
    }

    pub async fn create_partitions(
        &self,
        topics: Vec<CreatePartitionsTopic>,
        validate_only: bool,
    ) -> Result<Vec<CreatePartitionsTopicResult>> {
        let request = m::CreatePartitionsRequest { topics, timeout_ms: self.timeout_ms(), validate_only };
        let codes = |r: &m::CreatePartitionsResponse| r.results.iter().map(|t| t.error_code).collect();
        let response = self.to_controller("add partitions", &request, codes).await?;
        for result in &response.results {
            self.client.forget_topic(&result.name);
        }
        Ok(response.results)
    }

    /// All topics, internal ones too, by name.
    pub async fn list_topics(&self) -> Result<Vec<Arc<TopicMetadata>>> {
        self.client.all_topics().await
    }

    /// Topics with their partitions; `None`: all. Unknown ones come with error code 3. Asks DescribeTopicPartitions
    /// page by page (KIP-966), and Metadata where a broker is too old for it.
    pub async fn describe_topics(&self, names: Option<&[String]>) -> Result<Vec<DescribeTopicPartitionsResponseTopic>> {
        if names.is_some_and(<[String]>::is_empty) {
            return Ok(Vec::new());
        }
        let node = self.any_node()?;
        match self.client.version_of::<m::DescribeTopicPartitionsRequest>(node).await {
            Ok(_) => self.describe_by_pages(node, names).await,
            Err(Error::UnsupportedApi { .. }) => self.describe_by_metadata(names).await,
            Err(error) => Err(error),
        }
    }

    async fn describe_by_pages(
        &self,
        node: i32,
        names: Option<&[String]>,
    ) -> Result<Vec<DescribeTopicPartitionsResponseTopic>> {
        let mut names = names.unwrap_or_default().to_vec();
        // The cursor walks the topics in order of their names.
        names.sort();
        names.dedup();
        let topics = names.into_iter().map(|name| TopicRequest { name }).collect();
        let mut request = m::DescribeTopicPartitionsRequest {
            topics,
            response_partition_limit: DESCRIBE_PARTITION_LIMIT,
            cursor: None,
        };
        let mut described: Vec<DescribeTopicPartitionsResponseTopic> = Vec::new();
        loop {
            let response = self.to_node(node, "describe topics", &request).await?;
            for topic in response.topics {
                match described.last_mut().filter(|last| last.name == topic.name && topic.error_code == 0) {
                    Some(last) => last.partitions.extend(topic.partitions),
                    None => described.push(topic),
                }
            }
            let Some(next) = response.next_cursor else { return Ok(described) };
            request.topics.retain(|t| t.name >= next.topic_name);
            request.cursor = Some(Cursor { topic_name: next.topic_name, partition_index: next.partition_index });
        }
    }

    async fn describe_by_metadata(
        &self,
        names: Option<&[String]>,
    ) -> Result<Vec<DescribeTopicPartitionsResponseTopic>> {
        let topic = |name: &String| MetadataRequestTopic { name: Some(name.clone()), ..Default::default() };
        let request = m::MetadataRequest {
            topics: names.map(|names| names.iter().map(topic).collect()),
            allow_auto_topic_creation: false,
            ..Default::default()
        };
        let response = self.client.send_any(&request).await?;
        let convert = |t: m::metadata_response::MetadataResponseTopic| DescribeTopicPartitionsResponseTopic {
            error_code: t.error_code,
            name: t.name,
            topic_id: t.topic_id,
            is_internal: t.is_internal,
            partitions: t
                .partitions
                .into_iter()
                .map(|p| DescribeTopicPartitionsResponsePartition {
                    error_code: p.error_code,
                    partition_index: p.partition_index,
                    leader_id: p.leader_id,
                    leader_epoch: p.leader_epoch,
                    replica_nodes: p.replica_nodes,
                    isr_nodes: p.isr_nodes,
                    offline_replicas: p.offline_replicas,
                    ..Default::default()
                })
                .collect(),
            topic_authorized_operations: t.topic_authorized_operations,
        };
        Ok(response.topics.into_iter().map(convert).collect())
    }

    /// Deletes the records before an offset (-1: all) of each partition. The result is the partition's new first
    /// offset.
    pub async fn delete_records(&self, before: &[(TopicPartition, i64)]) -> Result<Vec<(TopicPartition, Result<i64>)>> {
        let offsets: BTreeMap<&TopicPartition, i64> = before.iter().map(|(tp, offset)| (tp, *offset)).collect();
        let leaders = self.client.by_leader(offsets.keys().copied()).await?;
        let mut results = Vec::new();
        for (node, partitions) in leaders {
            let mut topics: Vec<DeleteRecordsTopic> = Vec::new();
            for tp in &partitions {
                let offset = offsets.get(tp).copied().unwrap_or(0);
                let partition = DeleteRecordsPartition { partition_index: tp.partition, offset };
                match topics.iter_mut().find(|t| t.name == tp.topic) {
                    Some(topic) => topic.partitions.push(partition),
                    None => topics.push(DeleteRecordsTopic { name: tp.topic.clone(), partitions: vec![partition] }),
                }
            }
            let request = m::DeleteRecordsRequest { topics, timeout_ms: self.timeout_ms() };
            let response = self.to_node(node, "delete records", &request).await?;
            for topic in response.topics {
                for p in topic.partitions {
                    let tp = TopicPartition::new(topic.name.clone(), p.partition_index);
                    let what = || format!("delete records of {tp}");
                    let result = crate::error::check(p.error_code, None, what).map(|()| p.low_watermark);
                    results.push((tp, result));
                }
            }
        }
        Ok(results)
    }

    /// Offsets by position or time, see [`Client::list_offsets`](crate::Client::list_offsets).
    pub async fn list_offsets(
        &self,
        wanted: &[(TopicPartition, OffsetSpec)],
        isolation: Isolation,
    ) -> Result<ListedOffsets> {
        self.client.list_offsets(wanted, isolation).await
    }

    /// The id of some broker of the cluster.
    pub(super) fn any_node(&self) -> Result<i32> {
        let nodes = self.client.nodes();
        nodes.first().map(|n| n.id).ok_or(Error::UnknownNode { node_id: -1 })
    }
}
