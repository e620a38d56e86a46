//! What the tools ask of a cluster: the admin client's calls for one thing at a time, with errors in the words that the
//! brokers chose, as Kafka's tools print them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use caudal_client::admin::{ConfigResourceType, OffsetAndMetadata};
use caudal_client::{Admin, ClientConfig, Error, Isolation, ListedOffset, OUTAGE_TARGET, OffsetSpec};
use caudal_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use caudal_protocol::messages::create_topics_request::CreatableTopic;
use caudal_protocol::messages::create_topics_response::CreatableTopicResult;
use caudal_protocol::messages::describe_configs_request::DescribeConfigsResource;
use caudal_protocol::messages::describe_configs_response::DescribeConfigsResourceResult;
use caudal_protocol::messages::describe_topic_partitions_response::DescribeTopicPartitionsResponseTopic;
use caudal_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use caudal_protocol::messages::list_partition_reassignments_response::OngoingPartitionReassignment;
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};

/// How long a tool waits for a broker that does not answer yet, as Kafka's admin client does by default.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a broker is waited for without a word.
const SILENCE: Duration = Duration::from_secs(2);

/// Why a call failed: the sentence that Kafka's tools print, and the code when a broker gave one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    pub code: Option<ErrorCode>,
    pub message: String,
}

impl CallError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> CallError {
        CallError { code: Some(code), message: message.into() }
    }

    /// The error with its Java class, as an `ExecutionException` shows its cause.
    pub fn java(&self) -> String {
        match self.code {
            Some(code) => format!("org.apache.kafka.common.errors.{}: {}", code.exception(), self.message),
            None => self.message.clone(),
        }
    }

    /// Whether the name of a broker's host is unknown: no wait helps.
    pub fn is_lookup(&self) -> bool {
        self.code.is_none() && self.message.contains(LOOKUP)
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> CallError {
        match error {
            // The client drops the full stop of a code's own sentence.
            Error::Server { code, message, .. } if code.message().trim_end_matches('.') == message => {
                CallError::new(code, code.message())
            }
            Error::Server { code, message, .. } => CallError::new(code, message),
            other => CallError { code: other.code(), message: other.to_string() },
        }
    }
}

/// What the system says of a host's name that nobody knows.
const LOOKUP: &str = "lookup address";

fn is_lookup(error: &Error) -> bool {
    matches!(error, Error::Unreachable { reason, .. } if reason.contains(LOOKUP))
}

/// `Ok` for code 0; else the broker's sentence, or Kafka's own for the code.
pub fn check(code: i16, message: Option<&str>) -> Result<(), CallError> {
    match ErrorCode::from_code(code) {
        ErrorCode::None => Ok(()),
        code => Err(CallError::new(code, message.filter(|m| !m.is_empty()).unwrap_or(code.message()))),
    }
}

/// Committed or planned offsets by partition.
pub type Offsets = BTreeMap<TopicPartition, OffsetAndMetadata>;

/// A connection to a cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub admin: Admin,
}

impl Cluster {
    /// Connects by Kafka's client properties. While no broker answers it tries again for `patience`, so that a tool may be
    /// started together with the broker; when that lasts, it tells so as the client tells of outages.
    pub async fn connect(config: ClientConfig, patience: Duration) -> Result<Cluster, CallError> {
        let start = Instant::now();
        let deadline = start + patience;
        // Whoever gives up soon says it all then.
        let mut is_told = patience < SILENCE * 2;
        loop {
            match Admin::connect(config.clone()).await {
                Ok(admin) => {
                    tracing::info!(target: OUTAGE_TARGET, "the broker answers");
                    return Ok(Cluster { admin });
                }
                // A name that nobody knows is more likely a typo than a host to come.
                Err(error) if error.is_retriable() && !is_lookup(&error) && Instant::now() < deadline => {
                    if !is_told && start.elapsed() >= SILENCE {
                        let seconds = patience.as_secs();
                        tracing::warn!(target: OUTAGE_TARGET, "{error} ({seconds} seconds at most)");
                        is_told = true;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(CallError::from(error)),
            }
        }
    }

    /// The names of all topics, sorted.
    pub async fn topic_names(&self) -> Result<Vec<String>, CallError> {
        let mut names: Vec<String> = self.admin.list_topics().await?.iter().map(|t| t.name.clone()).collect();
        names.sort();
        Ok(names)
    }

    /// The name of the topic with an id.
    pub async fn topic_with_id(&self, id: Uuid) -> Result<Option<String>, CallError> {
        let topics = self.admin.list_topics().await?;
        Ok(topics.iter().find(|t| t.id == id).map(|t| t.name.clone()))
    }

    /// Describes topics, sorted by name, partitions in order; one that is not there is an error.
    pub async fn describe_topics(
        &self,
        names: &[String],
    ) -> Result<Vec<DescribeTopicPartitionsResponseTopic>, CallError> {
        let mut topics = self.admin.describe_topics(Some(names)).await?;
        for topic in &mut topics {
            check(topic.error_code, None)?;
            topic.partitions.sort_by_key(|p| p.partition_index);
        }
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// All partitions of topics, in order.
    pub async fn partitions(&self, names: &[String]) -> Result<Vec<TopicPartition>, CallError> {
        let topics = self.describe_topics(names).await?;
        let all = topics.iter().flat_map(|t| {
            let name = t.name.clone().unwrap_or_default();
            t.partitions.iter().map(move |p| TopicPartition::new(name.clone(), p.partition_index))
        });
        Ok(all.collect())
    }

    pub async fn create_topic(&self, topic: CreatableTopic) -> Result<CreatableTopicResult, CallError> {
        let result = self.admin.create_topics(vec![topic], false).await?.pop().unwrap_or_default();
        check(result.error_code, result.error_message.as_deref()).map(|()| result)
    }

    pub async fn create_partitions(&self, topics: Vec<CreatePartitionsTopic>) -> Result<(), CallError> {
        let results = self.admin.create_partitions(topics, false).await?;
        results.iter().try_for_each(|r| check(r.error_code, r.error_message.as_deref()))
    }

    pub async fn delete_topics(&self, names: &[String]) -> Result<(), CallError> {
        let results = self.admin.delete_topics(names).await?;
        results.iter().try_for_each(|r| check(r.error_code, r.error_message.as_deref()))
    }

    /// The configuration of one resource, entries in the broker's order, with synonyms.
    pub async fn configs(
        &self,
        resource_type: ConfigResourceType,
        name: &str,
    ) -> Result<Vec<DescribeConfigsResourceResult>, CallError> {
        let resource = DescribeConfigsResource {
            resource_type: resource_type.id(),
            resource_name: name.to_owned(),
            configuration_keys: None,
        };
        let result = self.admin.describe_configs(vec![resource], true, false).await?.pop().unwrap_or_default();
        check(result.error_code, result.error_message.as_deref()).map(|()| result.configs)
    }

    /// Sets and deletes (`None`) entries of the configuration of one resource.
    pub async fn alter_configs(
        &self,
        resource_type: ConfigResourceType,
        name: &str,
        changes: &[(String, Option<String>)],
    ) -> Result<(), CallError> {
        const SET: i8 = 0;
        const DELETE: i8 = 1;
        let change = |(name, value): &(String, Option<String>)| AlterableConfig {
            name: name.clone(),
            config_operation: if value.is_some() { SET } else { DELETE },
            value: Some(value.clone().unwrap_or_default()),
        };
        let resource = AlterConfigsResource {
            resource_type: resource_type.id(),
            resource_name: name.to_owned(),
            configs: changes.iter().map(change).collect(),
        };
        let results = self.admin.incremental_alter_configs(vec![resource], false).await?;
        results.iter().try_for_each(|r| check(r.error_code, r.error_message.as_deref()))
    }

    /// The names of all resources of a type that have a configuration of their own; `None` when the broker cannot say.
    pub async fn config_resources(&self, resource_type: ConfigResourceType) -> Result<Option<Vec<String>>, CallError> {
        match self.admin.list_config_resources(&[resource_type]).await {
            Err(Error::UnsupportedApi { .. }) => Ok(None),
            found => Ok(Some(found?.into_iter().map(|r| r.resource_name).collect())),
        }
    }

    /// Ids of the brokers, ascending.
    pub async fn brokers(&self) -> Result<Vec<i32>, CallError> {
        let cluster = self.admin.describe_cluster(false).await?;
        let mut ids: Vec<i32> = cluster.brokers.iter().map(|b| b.broker_id).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reassignments under way, by partition; none when the cluster does not say.
    pub async fn reassignments(&self) -> Result<BTreeMap<TopicPartition, OngoingPartitionReassignment>, CallError> {
        let topics = match self.admin.list_partition_reassignments(None).await {
            Err(Error::UnsupportedApi { .. }) => return Ok(BTreeMap::new()),
            Err(e) if e.code() == Some(ErrorCode::ClusterAuthorizationFailed) => return Ok(BTreeMap::new()),
            found => found?,
        };
        let partitions = topics.into_iter().flat_map(|t| {
            let name = t.name;
            t.partitions.into_iter().map(move |p| (TopicPartition::new(name.clone(), p.partition_index), p))
        });
        Ok(partitions.collect())
    }

    /// One offset per partition, by position or time; a partition that fails has its error.
    pub async fn list_offsets(
        &self,
        partitions: &[TopicPartition],
        spec: OffsetSpec,
    ) -> Result<BTreeMap<TopicPartition, Result<ListedOffset, CallError>>, CallError> {
        let wanted: Vec<_> = partitions.iter().map(|tp| (tp.clone(), spec)).collect();
        let found = self.admin.list_offsets(&wanted, Isolation::ReadUncommitted).await?;
        Ok(found.into_iter().map(|(tp, listed)| (tp, listed.map_err(CallError::from))).collect())
    }

    /// What a group has committed.
    pub async fn committed(&self, group: &str) -> Result<Offsets, CallError> {
        let mut offsets = Offsets::new();
        for found in self.admin.group_offsets(group, None).await? {
            if let Some(committed) = found.committed? {
                offsets.insert(found.partition, committed);
            }
        }
        Ok(offsets)
    }

    /// Commits offsets for a group without members.
    pub async fn commit(&self, group: &str, offsets: &Offsets) -> Result<(), CallError> {
        if offsets.is_empty() {
            return Ok(());
        }
        let offsets: Vec<_> = offsets.iter().map(|(tp, o)| (tp.clone(), o.clone())).collect();
        let results = self.admin.commit_group_offsets(group, &offsets).await?;
        Ok(results.into_iter().try_for_each(|(_, result)| result)?)
    }
}
