//! Transactions and the producers behind them (KIP-664, KIP-939).

use caudal_protocol::messages as m;
use caudal_protocol::messages::describe_producers_request::TopicRequest;
use caudal_protocol::messages::describe_producers_response::{PartitionResponse, ProducerState};
use caudal_protocol::messages::describe_transactions_response::TransactionState as DescribedTransaction;
use caudal_protocol::messages::list_transactions_response::TransactionState as ListedTransaction;
use caudal_protocol::messages::write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic};
use caudal_protocol::{ErrorCode, TopicPartition};

use super::{Admin, TRANSACTION};
use crate::client::ANY_VERSION;
use crate::error::{Error, Result, check};

/// A transaction in one partition, by its producer: what is needed to end it without its coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HangingTransaction {
    pub partition: TopicPartition,
    pub producer_id: i64,
    pub producer_epoch: i16,
    /// At most that of the coordinator that wrote to the partition last; 0 is never too high.
    pub coordinator_epoch: i32,
}

impl Admin {
    /// Transactional ids of all brokers with their states, by coordinator. A `duration_filter` of at least 0 needs brokers
    /// of 3.8, a `transactional_id_pattern` those of 4.1.
    pub async fn list_transactions(
        &self,
        request: &m::ListTransactionsRequest,
    ) -> Result<Vec<(i32, Vec<ListedTransaction>)>> {
        self.client.refresh_metadata(Some(Vec::new()), false).await?;
        let mut listed = Vec::new();
        for node in self.client.nodes() {
            let what = format!("list the transactions of broker {}", node.id);
            let mut attempts = self.client.api_attempts(&what);
            loop {
                let response = self.to_node(node.id, &what, request).await?;
                match check(response.error_code, None, || what.clone()) {
                    Ok(()) => {
                        listed.push((node.id, response.transaction_states));
                        break;
                    }
                    Err(error) => attempts.pause(error).await?,
                }
            }
        }
        Ok(listed)
    }

    /// The transaction of a transactional id, and the id of its coordinator. An id that is not known has an error code.
    pub async fn describe_transaction(&self, transactional_id: &str) -> Result<(i32, DescribedTransaction)> {
        let request = m::DescribeTransactionsRequest { transactional_ids: vec![transactional_id.to_owned()] };
        let what = format!("describe the transaction of '{transactional_id}'");
        let code = |r: &m::DescribeTransactionsResponse| r.transaction_states.first().map_or(0, |t| t.error_code);
        let key = (transactional_id, TRANSACTION);
        let response = self.to_coordinator_of(key, &what, &request, ANY_VERSION, code).await?;
        let state = response.transaction_states.into_iter().next().unwrap_or_default();
        Ok((self.client.coordinator(transactional_id, TRANSACTION).await?, state))
    }

    /// Producers that have written to partitions, as their leaders know them, or as `broker` does, which then must have
    /// a replica. A partition that fails has its error code.
    pub async fn describe_producers(
        &self,
        partitions: &[TopicPartition],
        broker: Option<i32>,
    ) -> Result<Vec<(TopicPartition, PartitionResponse)>> {
        let what = "describe producers";
        let mut attempts = self.client.api_attempts(what);
        let mut left: Vec<TopicPartition> = partitions.to_vec();
        let mut described = Vec::new();
        loop {
            let mut moved = None;
            for (tp, found) in self.describe_producers_once(&left, broker).await? {
                let has_moved = found.error_code == ErrorCode::NotLeaderOrFollower.code() && broker.is_none();
                if has_moved {
                    self.client.forget_topic(&tp.topic);
                    moved = Some(found.error_code);
                } else {
                    left.retain(|l| *l != tp);
                    described.push((tp, found));
                }
            }
            let Some(code) = moved else { return Ok(described) };
            attempts.pause(Error::server(what, code, None)).await?;
        }
    }

    async fn describe_producers_once(
        &self,
        partitions: &[TopicPartition],
        broker: Option<i32>,
    ) -> Result<Vec<(TopicPartition, PartitionResponse)>> {
        let by_node = match broker {
            Some(id) => [(id, partitions.to_vec())].into(),
            None => self.client.by_leader(partitions).await?,
        };
        let mut described = Vec::new();
        for (node, partitions) in by_node {
            let mut topics: Vec<TopicRequest> = Vec::new();
            for tp in partitions {
                match topics.iter_mut().find(|t| t.name == tp.topic) {
                    Some(topic) => topic.partition_indexes.push(tp.partition),
                    None => topics.push(TopicRequest { name: tp.topic, partition_indexes: vec![tp.partition] }),
                }
            }
            let request = m::DescribeProducersRequest { topics };
            let response = self.to_node(node, "describe producers", &request).await?;
            described.extend(response.topics.into_iter().flat_map(|t| {
                let name = t.name;
                t.partitions.into_iter().map(move |p| (TopicPartition::new(name.clone(), p.partition_index), p))
            }));
        }
        Ok(described)
    }

    /// Writes an abort marker to one partition, past the coordinator: for a transaction that its coordinator no longer
    /// knows and that holds up the last stable offset.
    pub async fn abort_transaction(&self, transaction: &HangingTransaction) -> Result<()> {
        let tp = &transaction.partition;
        let marker = WritableTxnMarker {
            producer_id: transaction.producer_id,
            producer_epoch: transaction.producer_epoch,
            transaction_result: false,
            topics: vec![WritableTxnMarkerTopic { name: tp.topic.clone(), partition_indexes: vec![tp.partition] }],
            coordinator_epoch: transaction.coordinator_epoch,
            ..Default::default()
        };
        let request = m::WriteTxnMarkersRequest { markers: vec![marker] };
        let what = format!("abort the transaction of producer {} in {tp}", transaction.producer_id);
        let mut attempts = self.client.api_attempts(&what);
        loop {
            let leaders = self.client.by_leader([tp]).await?;
            let Some(leader) = leaders.into_keys().next() else {
                return Err(Error::NoLeader { partition: tp.clone() });
            };
            let response = self.to_node(leader, &what, &request).await?;
            let results = response.markers.iter().flat_map(|m| &m.topics).flat_map(|t| &t.partitions);
            let code = results.map(|p| p.error_code).find(|c| *c != 0).unwrap_or(0);
            match check(code, None, || what.clone()) {
                Err(error) if ErrorCode::from_code(code).is_retriable() => {
                    self.client.forget_topic(&tp.topic);
                    attempts.pause(error).await?;
                }
                done => return done,
            }
        }
    }

    /// Fences the producers of a transactional id, which aborts a transaction that is under way.
    pub async fn fence_producer(&self, transactional_id: &str) -> Result<()> {
        let request = m::InitProducerIdRequest {
            transactional_id: Some(transactional_id.to_owned()),
            transaction_timeout_ms: self.timeout_ms(),
            producer_id: -1,
            producer_epoch: -1,
            ..Default::default()
        };
        let what = format!("fence the producers of '{transactional_id}'");
        let mut attempts = self.client.api_attempts(&what);
        loop {
            let code = |r: &m::InitProducerIdResponse| r.error_code;
            let key = (transactional_id, TRANSACTION);
            let response = self.to_coordinator_of(key, &what, &request, ANY_VERSION, code).await?;
            match check(response.error_code, None, || what.clone()) {
                Err(error) if ErrorCode::from_code(response.error_code) == ErrorCode::ConcurrentTransactions => {
                    attempts.pause(error).await?;
                }
                done => return done,
            }
        }
    }
}

impl HangingTransaction {
    /// The transaction that a producer has open in a partition.
    pub fn of(partition: TopicPartition, producer: &ProducerState) -> HangingTransaction {
        HangingTransaction {
            partition,
            producer_id: producer.producer_id,
            producer_epoch: i16::try_from(producer.producer_epoch).unwrap_or(i16::MAX),
            coordinator_epoch: producer.coordinator_epoch.max(0),
        }
    }
}
