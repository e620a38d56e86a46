//! AddPartitionsToTxn (24), versions 0-5: makes partitions part of a transaction, all or none. Versions 4 and 5 are for brokers:
//! several transactions at once, and asking whether partitions are part of one (KIP-890). This broker's own produce requests
//! do not come this way.

use std::collections::BTreeSet;

use caudal_protocol::messages::add_partitions_to_txn_request::{
    AddPartitionsToTxnRequest, AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction,
};
use caudal_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResponse, AddPartitionsToTxnResult,
    AddPartitionsToTxnTopicResult,
};
use caudal_protocol::{ErrorCode, TopicPartition};

use super::{RequestHeader, once};
use crate::context::Context;
use crate::transaction::EPOCH_BUMPS_FROM;

/// From this version on a request holds several transactions.
const BATCHED: i16 = 4;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: AddPartitionsToTxnRequest,
    version: i16,
) -> AddPartitionsToTxnResponse {
    let mut response = AddPartitionsToTxnResponse::default();
    if version < BATCHED {
        let transaction = AddPartitionsToTxnTransaction {
            transactional_id: request.v3_and_below_transactional_id,
            producer_id: request.v3_and_below_producer_id,
            producer_epoch: request.v3_and_below_producer_epoch,
            verify_only: false,
            topics: request.v3_and_below_topics,
        };
        response.results_by_topic_v3_and_below = add(ctx, transaction, version).await.topic_results;
        return response;
    }
    for transaction in once(request.transactions, |transaction| transaction.transactional_id.clone()) {
        response.results_by_transaction.push(add(ctx, transaction, version).await);
    }
    response
}

async fn add(ctx: &Context, transaction: AddPartitionsToTxnTransaction, version: i16) -> AddPartitionsToTxnResult {
    let AddPartitionsToTxnTransaction { transactional_id: id, producer_id, producer_epoch, verify_only, topics } =
        transaction;
    let producer = (producer_id, producer_epoch);
    let is_unknown = |topic: &AddPartitionsToTxnTopic, partition: i32| !ctx.has_partition(&topic.name, partition);
    if topics.iter().any(|topic| topic.partitions.iter().any(|p| is_unknown(topic, *p))) {
        return answer(id, topics, |topic, partition| match is_unknown(topic, partition) {
            true => ErrorCode::UnknownTopicOrPartition,
            false => ErrorCode::OperationNotAttempted,
        });
    }
    if verify_only {
        let verify = |topic: &AddPartitionsToTxnTopic, partition: i32| {
            let partition = TopicPartition::new(topic.name.as_str(), partition);
            ctx.transactions.verify(&id, producer, &partition).err().unwrap_or(ErrorCode::None)
        };
        return answer(id.clone(), topics, verify);
    }
    let mut partitions = BTreeSet::new();
    for topic in &topics {
        partitions.extend(topic.partitions.iter().map(|p| TopicPartition::new(topic.name.as_str(), *p)));
    }
    let client_version = if version >= BATCHED { EPOCH_BUMPS_FROM } else { 0 };
    let added = ctx.transactions.add(&id, producer, &partitions, client_version).await;
    let error = super::fenced_error(added.err().unwrap_or(ErrorCode::None), version < 2);
    answer(id, topics, |_, _| error)
}

fn answer(
    transactional_id: String,
    topics: Vec<AddPartitionsToTxnTopic>,
    error: impl Fn(&AddPartitionsToTxnTopic, i32) -> ErrorCode,
) -> AddPartitionsToTxnResult {
    let topic_results = topics.into_iter().map(|topic| {
        let results = topic.partitions.iter().map(|&partition_index| AddPartitionsToTxnPartitionResult {
            partition_index,
            partition_error_code: error(&topic, partition_index).code(),
        });
        AddPartitionsToTxnTopicResult { results_by_partition: results.collect(), name: topic.name }
    });
    AddPartitionsToTxnResult { transactional_id, topic_results: topic_results.collect() }
}
