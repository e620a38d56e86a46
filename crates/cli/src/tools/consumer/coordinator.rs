//! Formatters of `__consumer_offsets` and `__transaction_state`: their records as JSON, one object per line (the original writes no line ends).

use bytes::Bytes;
use caudal_protocol::records::group::{GroupMetadataKey, GroupMetadataValue, OffsetCommitKey, OffsetCommitValue};
use caudal_protocol::records::transaction::{TransactionLogKey, TransactionLogValue};
use caudal_protocol::wire::{DecodeError, Message, Reader};
use serde_json::{Value, json};

use super::formatter::Shown;

/// Shows a committed offset; other records are passed over.
pub fn write_offset(record: &Shown, out: &mut Vec<u8>) -> Result<(), String> {
    write(
        record,
        out,
        &[0, 1],
        |key| {
            let key = OffsetCommitKey::decode(key, 0)?;
            Ok(json!({"group": key.group, "topic": key.topic, "partition": key.partition}))
        },
        |value, version| {
            let value = OffsetCommitValue::decode(value, version)?;
            let mut data = json!({"offset": value.offset});
            set(&mut data, version >= 3, "leaderEpoch", json!(value.leader_epoch));
            set(&mut data, true, "metadata", json!(value.metadata));
            set(&mut data, true, "commitTimestamp", json!(value.commit_timestamp));
            set(&mut data, version == 1, "expireTimestamp", json!(value.expire_timestamp));
            set(&mut data, version >= 4, "topicId", json!(value.topic_id.to_string()));
            Ok(data)
        },
    )
}

/// Shows a group; other records are passed over.
pub fn write_group(record: &Shown, out: &mut Vec<u8>) -> Result<(), String> {
    write(
        record,
        out,
        &[2],
        |key| {
            let key = GroupMetadataKey::decode(key, 0)?;
            Ok(json!({"group": key.group}))
        },
        |value, version| {
            let value = GroupMetadataValue::decode(value, version)?;
            let mut data = json!({
                "protocolType": value.protocol_type,
                "generation": value.generation,
                "protocol": value.protocol,
                "leader": value.leader,
            });
            set(&mut data, version >= 2, "currentStateTimestamp", json!(value.current_state_timestamp));
            let members = value.members.into_iter().map(|m| {
                let mut member = json!({"memberId": m.member_id});
                set(&mut member, version >= 3, "groupInstanceId", json!(m.group_instance_id));
                set(&mut member, true, "clientId", json!(m.client_id));
                set(&mut member, true, "clientHost", json!(m.client_host));
                set(&mut member, version >= 1, "rebalanceTimeout", json!(m.rebalance_timeout));
                set(&mut member, true, "sessionTimeout", json!(m.session_timeout));
                set(&mut member, true, "subscription", json!(base64(&m.subscription)));
                set(&mut member, true, "assignment", json!(base64(&m.assignment)));
                member
            });
            let members: Vec<Value> = members.collect();
            set(&mut data, true, "members", json!(members));
            Ok(data)
        },
    )
}

/// Shows a transactional id and its transaction.
pub fn write_transaction(record: &Shown, out: &mut Vec<u8>) -> Result<(), String> {
    write(
        record,
        out,
        &[0],
        |key| {
            let key = TransactionLogKey::decode(key, 0)?;
            Ok(json!({"transactionalId": key.transactional_id}))
        },
        |value, version| {
            let value = TransactionLogValue::decode(value, version)?;
            let partitions = value.transaction_partitions.map(|topics| {
                let topics = topics.into_iter().map(|t| json!({"topic": t.topic, "partitionIds": t.partition_ids}));
                topics.collect::<Vec<Value>>()
            });
            let mut data = json!({"producerId": value.producer_id});
            set(&mut data, value.previous_producer_id != -1, "previousProducerId", json!(value.previous_producer_id));
            set(&mut data, value.next_producer_id != -1, "nextProducerId", json!(value.next_producer_id));
            set(&mut data, true, "producerEpoch", json!(value.producer_epoch));
            set(&mut data, value.next_producer_epoch != -1, "nextProducerEpoch", json!(value.next_producer_epoch));
            set(&mut data, true, "transactionTimeoutMs", json!(value.transaction_timeout_ms));
            set(&mut data, true, "transactionStatus", json!(value.transaction_status));
            set(&mut data, true, "transactionPartitions", json!(partitions));
            set(&mut data, true, "transactionLastUpdateTimestampMs", json!(value.transaction_last_update_timestamp_ms));
            set(&mut data, true, "transactionStartTimestampMs", json!(value.transaction_start_timestamp_ms));
            let client = value.client_transaction_version;
            set(&mut data, client != 0, "clientTransactionVersion", json!(client));
            Ok(data)
        },
    )
}

fn set(object: &mut Value, is_present: bool, name: &str, value: Value) {
    if let (true, Some(object)) = (is_present, object.as_object_mut()) {
        object.insert(name.to_owned(), value);
    }
}

/// Both key and value begin with a number of two bytes: the kind of record, and the value's version.
fn write(
    record: &Shown,
    out: &mut Vec<u8>,
    kinds: &[i16],
    key: impl Fn(&mut Reader) -> Result<Value, DecodeError>,
    value: impl Fn(&mut Reader, i16) -> Result<Value, DecodeError>,
) -> Result<(), String> {
    let Some(bytes) = record.key else { return Ok(()) };
    let decoded = || -> Result<Option<Value>, DecodeError> {
        let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
        let kind = reader.i16()?;
        if !kinds.contains(&kind) {
            return Ok(None);
        }
        let data = key(&mut reader)?;
        let value = match record.value {
            None => Value::Null,
            Some(bytes) => {
                let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
                let version = reader.i16()?;
                json!({"version": version, "data": value(&mut reader, version)?})
            }
        };
        Ok(Some(json!({"key": {"type": kind, "data": data}, "value": value})))
    };
    let shown = decoded().map_err(|e| format!("Could not read record at offset {} due to: {e}", record.offset))?;
    if let Some(shown) = shown {
        out.extend_from_slice(shown.to_string().as_bytes());
        out.push(b'\n');
    }
    Ok(())
}

/// Standard base64 with padding, as Jackson writes bytes.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0u32, |group, i| group << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = ALPHABET.get((group >> (18 - 6 * i)) as usize & 63).copied().unwrap_or(b'A');
            text.push(if i > chunk.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_committed_offset() {
        // Key: type 1, "g1", "t2", 1. Value: version 3, offset 5, epoch -1, "", time 9.
        let key = [0, 1, 0, 2, b'g', b'1', 0, 2, b't', b'2', 0, 0, 0, 1];
        let mut value = vec![0, 3];
        value.extend(5i64.to_be_bytes());
        value.extend((-1i32).to_be_bytes());
        value.extend([0, 0]);
        value.extend(9i64.to_be_bytes());
        let record = Shown { key: Some(&key), value: Some(&value), ..Shown::default() };
        let mut out = Vec::new();
        write_offset(&record, &mut out).unwrap();
        let expected = r#"{"key":{"type":1,"data":{"group":"g1","topic":"t2","partition":1}},"value":{"version":3,"data":{"offset":5,"leaderEpoch":-1,"metadata":"","commitTimestamp":9}}}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
        let mut out = Vec::new();
        write_group(&record, &mut out).unwrap();
        assert!(out.is_empty());
        let tombstone = Shown { key: Some(&key), value: None, ..Shown::default() };
        write_offset(&tombstone, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().ends_with("\"value\":null}\n"));
    }

    /// The fields and their order are those of Kafka 4.3.1's `TransactionLogMessageFormatter`.
    #[test]
    fn a_transaction() {
        let key = [0, 0, 0, 1, b'x'];
        let mut value = vec![0, 0];
        value.extend(4000i64.to_be_bytes());
        value.extend(7i16.to_be_bytes());
        value.extend(60_000i32.to_be_bytes());
        value.extend([1, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 2]);
        value.extend(5i64.to_be_bytes());
        value.extend(4i64.to_be_bytes());
        let mut out = Vec::new();
        write_transaction(&Shown { key: Some(&key), value: Some(&value), ..Shown::default() }, &mut out).unwrap();
        let expected = r#"{"key":{"type":0,"data":{"transactionalId":"x"}},"value":{"version":0,"data":{"producerId":4000,"producerEpoch":7,"transactionTimeoutMs":60000,"transactionStatus":1,"transactionPartitions":[{"topic":"t","partitionIds":[2]}],"transactionLastUpdateTimestampMs":5,"transactionStartTimestampMs":4}}}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }
}
