//! Records of `__consumer_offsets`, in Kafka's layout: key = type (int16) + key fields, value = version (int16) + fields.

use bytes::{BufMut, Bytes, BytesMut};
use caudal_protocol::records::group::group_metadata_value::MemberMetadata;
use caudal_protocol::records::group::{GroupMetadataKey, GroupMetadataValue, OffsetCommitKey, OffsetCommitValue};
use caudal_protocol::wire::{DecodeError, EncodeError, Message, Reader};

use super::consumer::ConsumerRecord;
use super::transactional::TransactionChange;

/// The version of offsets with an expiry of their own; it has no leader epoch.
const EXPIRING_VERSION: i16 = 1;
/// Version in which values are written: what Kafka 4.x writes, without tagged extensions.
const VALUE_VERSION: i16 = 3;
/// Older brokers wrote offset keys as type 0 too; fields are the same.
const OFFSET_KEY_TYPE_OLD: i16 = 0;

const NO_EXPIRY: i64 = -1;

/// An offset as committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    pub offset: i64,
    pub leader_epoch: i32,
    pub metadata: String,
    /// Wall clock, milliseconds since 1970.
    pub commit_timestamp_ms: i64,
    /// When it expires, wall clock, where the committer said so (OffsetCommit up to version 4); else `offsets.retention.minutes`
    /// after the group was last in use.
    pub expire_timestamp_ms: Option<i64>,
}

/// One persisted change; no value is a tombstone.
#[derive(Debug, Clone, PartialEq)]
pub enum GroupRecord {
    Offset {
        group: String,
        topic: String,
        partition: i32,
        value: Option<CommittedOffset>,
    },
    Group {
        group: String,
        value: Option<GroupMetadataValue>,
    },
    /// Of a group of the consumer protocol.
    Consumer {
        group: String,
        record: ConsumerRecord,
    },
    /// Stored as part of a transactional batch, or as its marker.
    Transaction(TransactionChange),
}

/// A record whose bytes are not understood.
#[derive(Debug, thiserror::Error)]
pub enum GroupRecordError {
    #[error("failed to decode a record of __consumer_offsets: {0}")]
    Decode(#[from] DecodeError),
    #[error("failed to encode a record of __consumer_offsets: {0}")]
    Encode(#[from] EncodeError),
    #[error("failed to encode a record of __consumer_offsets: it belongs to a transaction")]
    InTransaction,
}

impl GroupRecord {
    pub fn group(&self) -> &str {
        match self {
            GroupRecord::Offset { group, .. }
            | GroupRecord::Group { group, .. }
            | GroupRecord::Consumer { group, .. }
            | GroupRecord::Transaction(TransactionChange::Offset { group, .. }) => group,
            GroupRecord::Transaction(TransactionChange::Over { .. }) => "",
        }
    }

    /// Key and value as stored.
    pub fn encode(&self) -> Result<(Bytes, Option<Bytes>), GroupRecordError> {
        match self {
            GroupRecord::Offset { group, topic, partition, value } => {
                let key = OffsetCommitKey { group: group.clone(), topic: topic.clone(), partition: *partition };
                let value = value.as_ref().map(|v| OffsetCommitValue {
                    offset: v.offset,
                    leader_epoch: v.leader_epoch,
                    metadata: v.metadata.clone(),
                    commit_timestamp: v.commit_timestamp_ms,
                    expire_timestamp: v.expire_timestamp_ms.unwrap_or(NO_EXPIRY),
                    ..OffsetCommitValue::default()
                });
                let expires = value.as_ref().is_some_and(|v| v.expire_timestamp != NO_EXPIRY);
                pair(&key, value.as_ref(), if expires { EXPIRING_VERSION } else { VALUE_VERSION })
            }
            GroupRecord::Group { group, value } => {
                pair(&GroupMetadataKey { group: group.clone() }, value.as_ref(), VALUE_VERSION)
            }
            GroupRecord::Consumer { group, record } => record.encode(group),
            // The transaction's producer writes these.
            GroupRecord::Transaction(_) => Err(GroupRecordError::InTransaction),
        }
    }

    /// Reads a stored record; `None` for a type that belongs to another protocol (share and streams groups).
    pub fn decode(key: Bytes, value: Option<Bytes>) -> Result<Option<GroupRecord>, GroupRecordError> {
        let mut key = Reader::new(key);
        match key.i16()? {
            OFFSET_KEY_TYPE_OLD | OffsetCommitKey::API_KEY => {
                let key = OffsetCommitKey::decode(&mut key, 0)?;
                let value = read_value::<OffsetCommitValue>(value)?.map(|v| CommittedOffset {
                    offset: v.offset,
                    leader_epoch: v.leader_epoch,
                    metadata: v.metadata,
                    commit_timestamp_ms: v.commit_timestamp,
                    expire_timestamp_ms: Some(v.expire_timestamp).filter(|at| *at != NO_EXPIRY),
                });
                Ok(Some(GroupRecord::Offset { group: key.group, topic: key.topic, partition: key.partition, value }))
            }
            GroupMetadataKey::API_KEY => {
                let key = GroupMetadataKey::decode(&mut key, 0)?;
                Ok(Some(GroupRecord::Group { group: key.group, value: read_value(value)? }))
            }
            other => {
                let found = ConsumerRecord::decode(other, &mut key, value)?;
                Ok(found.map(|(group, record)| GroupRecord::Consumer { group, record }))
            }
        }
    }
}

pub(super) fn pair<K: Message, V: Message>(
    key: &K,
    value: Option<&V>,
    version: i16,
) -> Result<(Bytes, Option<Bytes>), GroupRecordError> {
    let key = framed(K::API_KEY, &key.to_bytes(0)?);
    let value = match value {
        Some(v) => Some(framed(version, &v.to_bytes(version)?)),
        None => None,
    };
    Ok((key, value))
}

fn framed(prefix: i16, body: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + body.len());
    out.put_i16(prefix);
    out.put_slice(body);
    out.freeze()
}

pub(super) fn read_value<V: Message>(value: Option<Bytes>) -> Result<Option<V>, DecodeError> {
    let Some(value) = value else { return Ok(None) };
    let mut r = Reader::new(value);
    let version = r.i16()?;
    V::decode(&mut r, version).map(Some)
}

/// The partition of `__consumer_offsets` that holds a group: Java's `abs(hashCode) % partitions`.
pub fn partition_for(group: &str, partitions: i32) -> i32 {
    let hash = group.encode_utf16().fold(0i32, |h, c| h.wrapping_mul(31).wrapping_add(i32::from(c)));
    // `Utils.abs`: the sign bit is dropped, not the value negated.
    (hash & i32::MAX) % partitions.max(1)
}

/// A member as stored with its group.
pub(crate) fn stored_member(m: &super::member::Member, protocol: &str) -> MemberMetadata {
    MemberMetadata {
        member_id: m.id.clone(),
        group_instance_id: m.instance_id.clone(),
        client_id: m.client_id.clone(),
        client_host: m.client_host.clone(),
        rebalance_timeout: m.rebalance_timeout_ms,
        session_timeout: m.session_timeout_ms,
        subscription: m.metadata(protocol),
        assignment: m.assignment.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let offset = GroupRecord::Offset {
            group: "g".into(),
            topic: "t".into(),
            partition: 3,
            value: Some(CommittedOffset {
                offset: 42,
                leader_epoch: 1,
                metadata: "m".into(),
                commit_timestamp_ms: 7,
                expire_timestamp_ms: None,
            }),
        };
        let group = GroupRecord::Group {
            group: "g".into(),
            value: Some(GroupMetadataValue {
                generation: 4,
                members: vec![MemberMetadata::default()],
                ..Default::default()
            }),
        };
        let gone = GroupRecord::Group { group: "g".into(), value: None };
        for record in [offset, group, gone] {
            let (key, value) = record.encode().unwrap();
            assert_eq!(GroupRecord::decode(key, value).unwrap(), Some(record));
        }
        assert!(GroupRecord::decode(Bytes::from_static(&[0]), None).is_err());
        assert_eq!(GroupRecord::decode(Bytes::from_static(&[0, 9]), None).unwrap(), None);
    }

    #[test]
    fn partitions_are_javas() {
        // "console-consumer-1".hashCode() and friends, from a JVM.
        assert_eq!(partition_for("", 50), 0);
        assert_eq!(partition_for("a", 50), 47);
        assert_eq!(partition_for("group", 50), 98_629_247 % 50);
    }
}
