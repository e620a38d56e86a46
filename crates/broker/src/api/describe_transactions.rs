//! DescribeTransactions (65), version 0: the state of transactional ids (KIP-664).

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_transactions_request::DescribeTransactionsRequest;
use caudal_protocol::messages::describe_transactions_response::{
    DescribeTransactionsResponse, TopicData, TransactionState,
};

use super::{RequestHeader, once};
use crate::context::Context;
use crate::transaction::Transaction;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DescribeTransactionsRequest,
    _version: i16,
) -> DescribeTransactionsResponse {
    let ids = once(request.transactional_ids, String::clone);
    let transaction_states = ids.into_iter().map(|id| match ctx.transactions.describe(&id) {
        Ok(transaction) => state(id, transaction),
        Err(error) => failed(id, error),
    });
    DescribeTransactionsResponse {
        transaction_states: transaction_states.collect(),
        ..DescribeTransactionsResponse::default()
    }
}

fn failed(transactional_id: String, error: ErrorCode) -> TransactionState {
    TransactionState { transactional_id, error_code: error.code(), ..TransactionState::default() }
}

fn state(transactional_id: String, transaction: Transaction) -> TransactionState {
    let mut topics: Vec<TopicData> = Vec::new();
    for partition in transaction.partitions {
        match topics.last_mut().filter(|topic| topic.topic == partition.topic) {
            Some(topic) => topic.partitions.push(partition.partition),
            None => topics.push(TopicData { topic: partition.topic, partitions: vec![partition.partition] }),
        }
    }
    TransactionState {
        error_code: ErrorCode::None.code(),
        transactional_id,
        transaction_state: transaction.state.name().to_owned(),
        transaction_timeout_ms: transaction.timeout_ms,
        transaction_start_time_ms: transaction.start_ms,
        producer_id: transaction.producer_id,
        producer_epoch: transaction.producer_epoch,
        topics,
    }
}
