//! What the sink needs of a Kafka cluster: a seam where tests put a script that crashes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use caudal_client::{Client, ClientConfig, Error, Fetcher, OffsetRange, OffsetSpec, Producer, Topics};
use caudal_protocol::batch::Batch;
use caudal_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use caudal_protocol::messages::{InitProducerIdRequest, ProduceRequest};
use caudal_protocol::wire::Records;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::failed;
use super::readback::READ_BACK;
use crate::error::EngineError;

/// What became of one batch: the offset of its first record, or a broker's code with its text.
pub type Produced = Result<i64, (ErrorCode, String)>;

/// Looks at one batch.
pub type Visit<'a> = dyn FnMut(Batch) -> Result<(), EngineError> + Send + 'a;

/// Writing access to a cluster, at the level of numbered batches.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// The number of partitions; the broker may create the topic.
    async fn partitions(&self, topic: &str) -> Result<usize, Error>;
    /// A new producer id and its epoch.
    async fn producer_id(&self) -> Result<(i64, i16), Error>;
    async fn offsets(
        &self,
        partitions: &[TopicPartition],
        spec: OffsetSpec,
    ) -> Result<Vec<(TopicPartition, i64)>, Error>;
    /// Hands every batch of the range to `visit`, in order, as it arrives: what lies in the range need not fit in memory.
    async fn read(&self, range: OffsetRange, visit: &mut Visit<'_>) -> Result<(), EngineError>;
    /// Sends one batch to each of some partitions, once. An `Err` of the whole means that nothing is known of any.
    async fn produce(&self, batches: Vec<(TopicPartition, Bytes)>) -> Vec<(TopicPartition, Produced)>;
}

/// A real cluster.
pub(super) struct ClientCluster {
    client: Client,
    fetcher: Fetcher,
    acks: i16,
    /// What the leader may wait for its followers, as Kafka's producers ask.
    request_timeout_ms: i32,
}

impl ClientCluster {
    pub(super) async fn connect(config: ClientConfig) -> Result<Self, Error> {
        let acks = config.get("acks").parse().unwrap_or(-1);
        let request_timeout_ms = config.get("request.timeout.ms").parse().unwrap_or(30_000);
        let client = Client::connect(config).await?;
        Ok(ClientCluster { fetcher: Fetcher::new(client.clone()), client, acks, request_timeout_ms })
    }

    async fn leader(&self, tp: &TopicPartition) -> Result<i32, Error> {
        let topic = self.client.topic(&tp.topic).await?;
        let leader = topic.partition(tp.partition).and_then(|p| p.leader);
        leader.ok_or_else(|| Error::NoLeader { partition: tp.clone() })
    }

    /// One request to one leader.
    async fn produce_to(&self, leader: i32, batches: Vec<(TopicPartition, Bytes)>) -> Vec<(TopicPartition, Produced)> {
        let mut topics: BTreeMap<String, TopicProduceData> = BTreeMap::new();
        let asked: Vec<TopicPartition> = batches.iter().map(|(tp, _)| tp.clone()).collect();
        for (tp, bytes) in batches {
            let id = self.client.topic(&tp.topic).await.map(|t| t.id).unwrap_or_default();
            let topic = topics.entry(tp.topic.clone()).or_insert_with(|| TopicProduceData {
                name: tp.topic.clone(),
                topic_id: id,
                partition_data: Vec::new(),
            });
            topic
                .partition_data
                .push(PartitionProduceData { index: tp.partition, records: Some(Records::Bytes(bytes)) });
        }
        let ids: Vec<_> = topics.values().map(|t| (t.topic_id, t.name.clone())).collect();
        let request = ProduceRequest {
            transactional_id: None,
            acks: self.acks,
            timeout_ms: self.request_timeout_ms,
            topic_data: topics.into_values().collect(),
        };
        let response = match self.client.send(leader, &request).await {
            Ok(response) => response,
            Err(error) => {
                // The request may or may not have had its effect: the numbers of the batches will tell.
                let code = error.code().unwrap_or(ErrorCode::NetworkException);
                let code = if error.is_retriable() { ErrorCode::NetworkException } else { code };
                return asked.into_iter().map(|tp| (tp, Err((code, error.to_string())))).collect();
            }
        };
        let mut results = Vec::with_capacity(asked.len());
        for topic in response.responses {
            let by_id = || ids.iter().find(|(id, _)| *id == topic.topic_id).map(|(_, name)| name.clone());
            let name = if topic.name.is_empty() { by_id().unwrap_or_default() } else { topic.name.clone() };
            for partition in topic.partition_responses {
                let code = ErrorCode::from_code(partition.error_code);
                let result = match code {
                    ErrorCode::None => Ok(partition.base_offset),
                    code => Err((code, partition.error_message.unwrap_or_else(|| code.message().to_owned()))),
                };
                results.push((TopicPartition::new(name.clone(), partition.index), result));
            }
        }
        results
    }
}

#[async_trait]
impl Cluster for ClientCluster {
    async fn partitions(&self, topic: &str) -> Result<usize, Error> {
        match self.client.topic(topic).await {
            Ok(topic) => Ok(topic.partitions.len()),
            Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => {
                Producer::new(self.client.clone())?.partitions(topic).await
            }
            Err(error) => Err(error),
        }
    }

    async fn producer_id(&self) -> Result<(i64, i16), Error> {
        let request =
            InitProducerIdRequest { transactional_id: None, transaction_timeout_ms: i32::MAX, ..Default::default() };
        let response = self.client.send_any(&request).await?;
        match ErrorCode::from_code(response.error_code) {
            ErrorCode::None => Ok((response.producer_id, response.producer_epoch)),
            code => {
                Err(Error::Server { what: "get a producer id".to_owned(), code, message: code.message().to_owned() })
            }
        }
    }

    async fn offsets(
        &self,
        partitions: &[TopicPartition],
        spec: OffsetSpec,
    ) -> Result<Vec<(TopicPartition, i64)>, Error> {
        let listed = self.fetcher.offsets(partitions, spec).await?;
        Ok(listed.into_iter().map(|(tp, listed)| (tp, listed.offset)).collect())
    }

    async fn read(&self, range: OffsetRange, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        let mut chunks = self.fetcher.read(vec![range]);
        while let Some(chunk) = chunks.next().await.map_err(|e| failed(READ_BACK, &e))? {
            chunk.batches.into_iter().try_for_each(&mut *visit)?;
        }
        Ok(())
    }

    async fn produce(&self, batches: Vec<(TopicPartition, Bytes)>) -> Vec<(TopicPartition, Produced)> {
        let mut results = Vec::new();
        let mut by_leader: BTreeMap<i32, Vec<(TopicPartition, Bytes)>> = BTreeMap::new();
        for (tp, bytes) in batches {
            match self.leader(&tp).await {
                Ok(leader) => by_leader.entry(leader).or_default().push((tp, bytes)),
                Err(error) => {
                    let code = error.code().unwrap_or(ErrorCode::LeaderNotAvailable);
                    results.push((tp, Err((code, error.to_string()))));
                }
            }
        }
        let sends = by_leader.into_iter().map(|(leader, batches)| self.produce_to(leader, batches));
        results.extend(futures::future::join_all(sends).await.into_iter().flatten());
        if results.iter().any(|(_, result)| result.is_err()) {
            let mut names: Vec<String> = results.iter().map(|(tp, _)| tp.topic.clone()).collect();
            names.dedup();
            // Leaders may have moved: ask anew before the next try. A failure shows there.
            drop(self.fetcher.topics(&Topics::Names(names)).await);
        }
        results
    }
}
