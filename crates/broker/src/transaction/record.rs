//! Records of `__transaction_state` in Kafka's layout: key = type (int16, 0) + transactional id, value = version (int16) +
//! fields. Version 1, with tagged fields, from `transaction.version` 1 on.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use caudal_protocol::TopicPartition;
use caudal_protocol::records::transaction::transaction_log_value::PartitionsSchema;
use caudal_protocol::records::transaction::{TransactionLogKey, TransactionLogValue};
use caudal_protocol::wire::{DecodeError, EncodeError, Message, Reader};

use super::{NO_EPOCH, State, Transaction};

/// A record whose bytes are not understood, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TransactionRecordError {
    #[error("failed to decode a record of __transaction_state: {0}")]
    Decode(#[from] DecodeError),
    #[error("failed to encode a record of __transaction_state: {0}")]
    Encode(#[from] EncodeError),
    #[error("failed to decode a record of __transaction_state: transaction status {0} is unknown")]
    Status(i8),
}

/// A stored record: a transactional id with its state, or without one.
pub type TransactionRecord = (String, Option<Transaction>);

fn framed(prefix: i16, body: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + body.len());
    out.put_i16(prefix);
    out.put_slice(body);
    out.freeze()
}

/// Key and value as stored. `version`: the cluster's `transaction.version`.
///
/// # Errors
/// A name is too long for its field.
pub fn encode(
    id: &str,
    transaction: Option<&Transaction>,
    version: i16,
) -> Result<(Bytes, Option<Bytes>), TransactionRecordError> {
    let key = TransactionLogKey { transactional_id: id.to_owned() };
    let key = framed(TransactionLogKey::API_KEY, &key.to_bytes(0)?);
    let Some(transaction) = transaction else { return Ok((key, None)) };
    let value_version = i16::from(version >= 1);
    let mut value = value_of(transaction);
    if value_version == 0 {
        (value.previous_producer_id, value.next_producer_id, value.client_transaction_version) = (-1, -1, 0);
    }
    Ok((key, Some(framed(value_version, &value.to_bytes(value_version)?))))
}

fn value_of(transaction: &Transaction) -> TransactionLogValue {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for partition in &transaction.partitions {
        topics.entry(&partition.topic).or_default().push(partition.partition);
    }
    let partitions = topics
        .into_iter()
        .map(|(topic, partition_ids)| PartitionsSchema { topic: topic.to_owned(), partition_ids })
        .collect();
    TransactionLogValue {
        producer_id: transaction.producer_id,
        previous_producer_id: transaction.previous_producer_id,
        next_producer_id: transaction.next_producer_id,
        producer_epoch: transaction.producer_epoch,
        transaction_timeout_ms: transaction.timeout_ms,
        transaction_status: transaction.state.id(),
        transaction_partitions: (transaction.state != State::Empty).then_some(partitions),
        transaction_last_update_timestamp_ms: transaction.last_update_ms,
        transaction_start_timestamp_ms: transaction.start_ms,
        client_transaction_version: transaction.client_version,
        ..TransactionLogValue::default()
    }
}

/// Reads a stored record; `None` for one of a type or version that a later release wrote.
///
/// # Errors
/// The bytes are no such record.
pub fn decode(key: Bytes, value: Option<Bytes>) -> Result<Option<TransactionRecord>, TransactionRecordError> {
    let mut key = Reader::new(key);
    if key.i16()? != TransactionLogKey::API_KEY {
        return Ok(None);
    }
    let id = TransactionLogKey::decode(&mut key, 0)?.transactional_id;
    let Some(value) = value else { return Ok(Some((id, None))) };
    let mut value = Reader::new(value);
    let version = value.i16()?;
    if !(TransactionLogValue::MIN_VERSION..=TransactionLogValue::MAX_VERSION).contains(&version) {
        return Ok(None);
    }
    let value = TransactionLogValue::decode(&mut value, version)?;
    let status = value.transaction_status;
    let state = State::from_id(status).ok_or(TransactionRecordError::Status(status))?;
    let topics = value.transaction_partitions.unwrap_or_default();
    let partitions = topics.iter().flat_map(|topic| {
        topic.partition_ids.iter().map(|partition| TopicPartition::new(topic.topic.as_str(), *partition))
    });
    let transaction = Transaction {
        producer_id: value.producer_id,
        previous_producer_id: value.previous_producer_id,
        next_producer_id: value.next_producer_id,
        producer_epoch: value.producer_epoch,
        last_producer_epoch: NO_EPOCH,
        timeout_ms: value.transaction_timeout_ms,
        state,
        partitions: if state == State::Empty { Default::default() } else { partitions.collect() },
        start_ms: value.transaction_start_timestamp_ms,
        last_update_ms: value.transaction_last_update_timestamp_ms,
        client_version: value.client_transaction_version,
    };
    Ok(Some((id, Some(transaction))))
}
