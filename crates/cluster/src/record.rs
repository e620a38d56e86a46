//! Metadata records: the changes that the metadata log holds.
//!
//! A record's value is: unsigned varint frame version (1), unsigned varint type, unsigned varint version, then the body
//! in the flexible form of its schema (Kafka's `MetadataRecordSerde`).

use bytes::Bytes;
use caudal_protocol::records::metadata::*;
use caudal_protocol::wire::{DecodeError, EncodeError, Message, Reader, Writer};

/// The only frame version there is.
const FRAME_VERSION: u32 = 1;

/// A value in the metadata log that is not one of the records this version knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordDecodeError {
    #[error("failed to read a metadata record: {0}")]
    Malformed(#[from] DecodeError),
    #[error("failed to read a metadata record: frame version {0} is not supported, only {FRAME_VERSION}")]
    Frame(u32),
    #[error(
        "failed to read a metadata record: type {api_key} (version {version}) is not known; a newer Apache Kafka \
         or Caudal wrote it, open the directory with that one"
    )]
    UnknownType { api_key: u32, version: u32 },
    #[error("failed to read a {name}: version {version} is not supported")]
    UnknownVersion { name: &'static str, version: u32 },
    #[error("failed to read a {name}: {left} bytes follow it")]
    Trailing { name: &'static str, left: usize },
}

macro_rules! metadata_records {
    ($($variant:ident($type:ident), write $version:expr;)*) => {
        /// One change of the cluster's metadata.
        #[derive(Debug, Clone, PartialEq)]
        pub enum MetadataRecord {
            $($variant($type),)*
        }

        $(impl From<$type> for MetadataRecord {
            fn from(record: $type) -> MetadataRecord {
                MetadataRecord::$variant(record)
            }
        })*

        impl MetadataRecord {
            /// The schema's name.
            pub fn name(&self) -> &'static str {
                match self { $(MetadataRecord::$variant(_) => $type::NAME,)* }
            }

            /// The record as a value of the metadata log, in the lowest version that carries all of its fields, as
            /// Kafka writes it at metadata.version 4.3-IV0.
            pub fn encode(&self) -> Result<Bytes, EncodeError> {
                match self {
                    $(MetadataRecord::$variant(record) => {
                        let version: fn(&$type) -> i16 = $version;
                        encode_framed(record, version(record))
                    })*
                }
            }

            /// Reads a value of the metadata log.
            pub fn decode(value: Bytes) -> Result<MetadataRecord, RecordDecodeError> {
                let mut reader = Reader::new(value);
                let frame = reader.uvarint()?;
                if frame != FRAME_VERSION {
                    return Err(RecordDecodeError::Frame(frame));
                }
                let api_key = reader.uvarint()?;
                let version = reader.uvarint()?;
                match i16::try_from(api_key) {
                    $(Ok($type::API_KEY) => Ok(MetadataRecord::$variant(decode_body(&mut reader, version)?)),)*
                    _ => Err(RecordDecodeError::UnknownType { api_key, version }),
                }
            }
        }
    };
}

metadata_records! {
    RegisterBroker(RegisterBrokerRecord), write |_| 4;
    UnregisterBroker(UnregisterBrokerRecord), write |_| 0;
    Topic(TopicRecord), write |_| 0;
    Partition(PartitionRecord), write |_| 2;
    Config(ConfigRecord), write |_| 0;
    PartitionChange(PartitionChangeRecord), write |_| 2;
    FenceBroker(FenceBrokerRecord), write |_| 0;
    UnfenceBroker(UnfenceBrokerRecord), write |_| 0;
    RemoveTopic(RemoveTopicRecord), write |_| 0;
    DelegationToken(DelegationTokenRecord), write |_| 0;
    UserScramCredential(UserScramCredentialRecord), write |_| 0;
    FeatureLevel(FeatureLevelRecord), write |_| 0;
    ClientQuota(ClientQuotaRecord), write |_| 0;
    ProducerIds(ProducerIdsRecord), write |_| 0;
    BrokerRegistrationChange(BrokerRegistrationChangeRecord), write |r| {
        if r.cordoned_log_dirs.is_some() { 3 } else if !r.log_dirs.is_empty() { 2 } else { i16::from(r.in_controlled_shutdown != 0) }
    };
    AccessControlEntry(AccessControlEntryRecord), write |_| 0;
    RemoveAccessControlEntry(RemoveAccessControlEntryRecord), write |_| 0;
    NoOp(NoOpRecord), write |_| 0;
    RemoveUserScramCredential(RemoveUserScramCredentialRecord), write |_| 0;
    BeginTransaction(BeginTransactionRecord), write |_| 0;
    EndTransaction(EndTransactionRecord), write |_| 0;
    AbortTransaction(AbortTransactionRecord), write |_| 0;
    RemoveDelegationToken(RemoveDelegationTokenRecord), write |_| 0;
    RegisterController(RegisterControllerRecord), write |_| 0;
    ClearElr(ClearElrRecord), write |_| 0;
}

fn encode_framed<M: Message>(record: &M, version: i16) -> Result<Bytes, EncodeError> {
    let number = |n: i16| u32::try_from(n).map_err(|_| EncodeError::Version { message: M::NAME, version });
    let mut writer = Writer::new();
    writer.uvarint(FRAME_VERSION);
    writer.uvarint(number(M::API_KEY)?);
    writer.uvarint(number(version)?);
    record.encode(&mut writer, version)?;
    writer.finish().into_bytes()
}

fn decode_body<M: Message>(reader: &mut Reader, version: u32) -> Result<M, RecordDecodeError> {
    let unknown = RecordDecodeError::UnknownVersion { name: M::NAME, version };
    let version = i16::try_from(version).map_err(|_| unknown.clone())?;
    if !(M::MIN_VERSION..=M::MAX_VERSION).contains(&version) {
        return Err(unknown);
    }
    let record = M::decode(reader, version)?;
    match reader.remaining() {
        0 => Ok(record),
        left => Err(RecordDecodeError::Trailing { name: M::NAME, left }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_record_has_kafkas_bytes() {
        let id: caudal_protocol::Uuid = "5VcJll0wR22TTRwqt6VkeA".parse().unwrap();
        let record: MetadataRecord = TopicRecord { name: "t1".into(), topic_id: id }.into();
        let value = record.encode().unwrap();
        assert_eq!(value.len(), 23, "the size that Kafka 4.3.1 writes");
        assert_eq!(value.get(..6), Some(&[1, 2, 0, 3, b't', b'1'][..]));
        assert_eq!(MetadataRecord::decode(value), Ok(record));
    }

    #[test]
    fn unknown_types_versions_and_frames_are_refused() {
        let decode = |bytes: &'static [u8]| MetadataRecord::decode(Bytes::from_static(bytes)).unwrap_err();
        assert_eq!(decode(&[2, 2, 0]), RecordDecodeError::Frame(2));
        assert_eq!(decode(&[1, 99, 0]), RecordDecodeError::UnknownType { api_key: 99, version: 0 });
        assert_eq!(decode(&[1, 2, 9]), RecordDecodeError::UnknownVersion { name: "TopicRecord", version: 9 });
        assert_eq!(decode(&[1, 20, 0, 0, 7]), RecordDecodeError::Trailing { name: "NoOpRecord", left: 1 });
    }
}
