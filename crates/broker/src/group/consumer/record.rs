//! What `__consumer_offsets` keeps of a consumer group, in Kafka's layout. [`super::group::ConsumerGroup`] is a fold over
//! these.

use bytes::Bytes;
use caudal_protocol::records::group::{
    ConsumerGroupCurrentMemberAssignmentKey, ConsumerGroupCurrentMemberAssignmentValue, ConsumerGroupMemberMetadataKey,
    ConsumerGroupMemberMetadataValue, ConsumerGroupMetadataKey, ConsumerGroupMetadataValue,
    ConsumerGroupPartitionMetadataKey, ConsumerGroupPartitionMetadataValue, ConsumerGroupRegularExpressionKey,
    ConsumerGroupRegularExpressionValue, ConsumerGroupTargetAssignmentMemberKey,
    ConsumerGroupTargetAssignmentMemberValue, ConsumerGroupTargetAssignmentMetadataKey,
    ConsumerGroupTargetAssignmentMetadataValue,
};
use caudal_protocol::wire::{DecodeError, Message, Reader};

use super::super::record::{GroupRecordError, pair, read_value};

/// The only version of each of the values so far.
const VERSION: i16 = 0;

/// One persisted change of a consumer group; no value is a tombstone.
#[derive(Debug, Clone, PartialEq)]
pub enum ConsumerRecord {
    /// The group's epoch with the hash of the topics that it subscribes to.
    Group(Option<ConsumerGroupMetadataValue>),
    /// The topics that a group subscribed to, as Kafka 4.0 wrote them; newer ones only remove it.
    PartitionMetadata(Option<ConsumerGroupPartitionMetadataValue>),
    /// What a member said of itself.
    Member { member: String, value: Option<ConsumerGroupMemberMetadataValue> },
    /// The epoch of the target assignment.
    TargetEpoch(Option<ConsumerGroupTargetAssignmentMetadataValue>),
    /// What a member is to have in the end.
    Target { member: String, value: Option<ConsumerGroupTargetAssignmentMemberValue> },
    /// What a member has, and its epoch.
    Current { member: String, value: Option<ConsumerGroupCurrentMemberAssignmentValue> },
    /// The topics that a regular expression stands for.
    Regex { regex: String, value: Option<ConsumerGroupRegularExpressionValue> },
}

/// Key and value as stored.
type Pair = (Bytes, Option<Bytes>);

impl ConsumerRecord {
    /// Key and value as stored.
    pub fn encode(&self, group: &str) -> Result<Pair, GroupRecordError> {
        let group_id = group.to_owned();
        match self {
            ConsumerRecord::Group(value) => pair(&ConsumerGroupMetadataKey { group_id }, value.as_ref(), VERSION),
            ConsumerRecord::PartitionMetadata(value) => {
                pair(&ConsumerGroupPartitionMetadataKey { group_id }, value.as_ref(), VERSION)
            }
            ConsumerRecord::Member { member, value } => {
                let key = ConsumerGroupMemberMetadataKey { group_id, member_id: member.clone() };
                pair(&key, value.as_ref(), VERSION)
            }
            ConsumerRecord::TargetEpoch(value) => {
                pair(&ConsumerGroupTargetAssignmentMetadataKey { group_id }, value.as_ref(), VERSION)
            }
            ConsumerRecord::Target { member, value } => {
                let key = ConsumerGroupTargetAssignmentMemberKey { group_id, member_id: member.clone() };
                pair(&key, value.as_ref(), VERSION)
            }
            ConsumerRecord::Current { member, value } => {
                let key = ConsumerGroupCurrentMemberAssignmentKey { group_id, member_id: member.clone() };
                pair(&key, value.as_ref(), VERSION)
            }
            ConsumerRecord::Regex { regex, value } => {
                let key = ConsumerGroupRegularExpressionKey { group_id, regular_expression: regex.clone() };
                pair(&key, value.as_ref(), VERSION)
            }
        }
    }

    /// Reads a stored record of the given type, behind which `key` stands: the group and the record. `None`: the type belongs
    /// to another protocol (share and streams groups).
    pub fn decode(
        record_type: i16,
        key: &mut Reader,
        value: Option<Bytes>,
    ) -> Result<Option<(String, ConsumerRecord)>, DecodeError> {
        let found = match record_type {
            ConsumerGroupMetadataKey::API_KEY => {
                let key = ConsumerGroupMetadataKey::decode(key, VERSION)?;
                (key.group_id, ConsumerRecord::Group(read_value(value)?))
            }
            ConsumerGroupPartitionMetadataKey::API_KEY => {
                let key = ConsumerGroupPartitionMetadataKey::decode(key, VERSION)?;
                (key.group_id, ConsumerRecord::PartitionMetadata(read_value(value)?))
            }
            ConsumerGroupMemberMetadataKey::API_KEY => {
                let key = ConsumerGroupMemberMetadataKey::decode(key, VERSION)?;
                (key.group_id, ConsumerRecord::Member { member: key.member_id, value: read_value(value)? })
            }
            ConsumerGroupTargetAssignmentMetadataKey::API_KEY => {
                let key = ConsumerGroupTargetAssignmentMetadataKey::decode(key, VERSION)?;
                (key.group_id, ConsumerRecord::TargetEpoch(read_value(value)?))
            }
            ConsumerGroupTargetAssignmentMemberKey::API_KEY => {
                let key = ConsumerGroupTargetAssignmentMemberKey::decode(key, VERSION)?;
                (key.group_id, ConsumerRecord::Target { member: key.member_id, value: read_value(value)? })
            }
            ConsumerGroupCurrentMemberAssignmentKey::API_KEY => {
                let key = ConsumerGroupCurrentMemberAssignmentKey::decode(key, VERSION)?;
                (key.group_id, ConsumerRecord::Current { member: key.member_id, value: read_value(value)? })
            }
            ConsumerGroupRegularExpressionKey::API_KEY => {
                let key = ConsumerGroupRegularExpressionKey::decode(key, VERSION)?;
                (key.group_id, ConsumerRecord::Regex { regex: key.regular_expression, value: read_value(value)? })
            }
            _ => return Ok(None),
        };
        Ok(Some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Apache Kafka 4.3.1 wrote it when a static member came back: a tag for a classic member, which says that it is none.
    /// Without the tag Kafka would take it for a classic one.
    #[test]
    fn a_member_of_kafka_is_read_and_written() {
        let stored = b"\0\0\x03i0\0\x08rdkafka\x0b/127.0.0.1\x02\x03xt\x01\0\x04\x93\xe0\0\x01\0\x01\0";
        let value: Option<ConsumerGroupMemberMetadataValue> = read_value(Some(Bytes::from_static(stored))).unwrap();
        let value = value.unwrap();
        assert_eq!(value.to_bytes(0).unwrap(), stored[2..]);
        assert_eq!((value.instance_id.as_deref(), value.rebalance_timeout_ms), (Some("i0"), 300_000));
        assert_eq!((value.subscribed_topic_names, value.classic_member_metadata), (vec!["xt".to_owned()], None));
    }
}
