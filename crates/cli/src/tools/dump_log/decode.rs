//! What the keys and values of records are read as.

use std::io::Write;

use bytes::Bytes;
use caudal_protocol::record::RecordRef;
use caudal_protocol::schema::{self, CONSUMER, GROUP, METADATA, SHARE, Schema, Struct, TRANSACTION, Value};
use caudal_protocol::wire::{DecodeError, Reader};

use super::super::Stop;
use super::super::options::Parsed;
use super::{Out, json, remote};

pub const STRING_DECODER: &str = "org.apache.kafka.tools.api.StringDecoder";
pub const VALUE_CLASSES: &str = "If set, used to deserialize the messages: StringDecoder, IntegerDecoder, LongDecoder or DefaultDecoder of org.apache.kafka.tools.api. Classes of your own cannot be loaded.";
pub const KEY_CLASSES: &str = "If set, used to deserialize the keys: StringDecoder, IntegerDecoder, LongDecoder or DefaultDecoder of org.apache.kafka.tools.api. Classes of your own cannot be loaded.";

/// The decoders of Kafka's `tools-api`.
#[derive(Debug, Clone, Copy)]
pub enum Class {
    Text,
    Int,
    Long,
    Hex,
}

impl Class {
    fn of(parsed: &Parsed, option: &str) -> Result<Class, Stop> {
        let name = parsed.text(option)?.unwrap_or(STRING_DECODER);
        match name.strip_prefix("org.apache.kafka.tools.api.").unwrap_or(name) {
            "StringDecoder" => Ok(Class::Text),
            "IntegerDecoder" => Ok(Class::Int),
            "LongDecoder" => Ok(Class::Long),
            "DefaultDecoder" => Ok(Class::Hex),
            _ => Err(Stop::Failed(format!(
                "--{option} {name} cannot be loaded: classes of Java do not run here; use StringDecoder, IntegerDecoder, \
                 LongDecoder or DefaultDecoder of org.apache.kafka.tools.api"
            ))),
        }
    }

    fn put(self, out: &mut Out<'_>, bytes: &[u8]) -> Result<(), Stop> {
        let short = |need: usize| Stop::Failed(format!("failed to decode {} bytes: {need} are needed", bytes.len()));
        match self {
            Class::Text => write!(out, "{}", String::from_utf8_lossy(bytes))?,
            Class::Int => {
                let first = bytes.first_chunk().ok_or_else(|| short(4))?;
                write!(out, "{}", i32::from_be_bytes(*first))?;
            }
            Class::Long => {
                let first = bytes.first_chunk().ok_or_else(|| short(8))?;
                write!(out, "{}", i64::from_be_bytes(*first))?;
            }
            Class::Hex => {
                for byte in bytes {
                    write!(out, "{byte:02x}")?;
                }
            }
        }
        Ok(())
    }
}

/// What records are taken for.
#[derive(Debug, Clone, Copy)]
pub enum Decoder {
    Plain {
        key: Class,
        value: Class,
    },
    /// Records of a coordinator: type and key, version and value.
    Coordinator(&'static [Schema]),
    Metadata,
    RemoteLog,
}

impl Decoder {
    pub fn choose(parsed: &Parsed) -> Result<Decoder, Stop> {
        Ok(if parsed.has("offsets-decoder") {
            Decoder::Coordinator(GROUP)
        } else if parsed.has("transaction-log-decoder") {
            Decoder::Coordinator(TRANSACTION)
        } else if parsed.has("cluster-metadata-decoder") {
            Decoder::Metadata
        } else if parsed.has("remote-log-metadata-decoder") {
            Decoder::RemoteLog
        } else if parsed.has("share-group-state-decoder") {
            Decoder::Coordinator(SHARE)
        } else {
            Decoder::Plain {
                key: Class::of(parsed, "key-decoder-class")?,
                value: Class::of(parsed, "value-decoder-class")?,
            }
        })
    }

    /// Prints ` key: ... payload: ...`; `lead` stands before the first of them.
    pub fn put(&self, out: &mut Out<'_>, record: &RecordRef<'_>, lead: &str) -> Result<(), Stop> {
        match self {
            Decoder::Plain { key, value } => put_plain(out, record, lead, *key, *value),
            Decoder::Coordinator(table) => {
                let Some(key) = record.key else {
                    return Err(Stop::Failed(format!(
                        "Failed to decode message at offset {} using the specified decoder (message had a missing key)",
                        record.offset
                    )));
                };
                let (key, value) = coordinator(table, record.offset, key, record.value);
                write!(out, "{lead}key: {key}")?;
                if let Some(value) = value {
                    write!(out, " payload: {value}")?;
                }
                Ok(())
            }
            Decoder::Metadata => {
                let text = metadata(record.value)
                    .unwrap_or_else(|reason| format!("Error at {}, skipping. {reason}", record.offset));
                Ok(write!(out, "{lead}payload: {text}")?)
            }
            Decoder::RemoteLog => {
                let text = remote::text(record.value)
                    .unwrap_or_else(|reason| format!("Error at offset {}, skipping. {reason}", record.offset));
                Ok(write!(out, "{lead}payload: {text}")?)
            }
        }
    }
}

fn put_plain(out: &mut Out<'_>, record: &RecordRef<'_>, mut lead: &str, key: Class, value: Class) -> Result<(), Stop> {
    if let Some(bytes) = record.key {
        write!(out, "{lead}key: ")?;
        key.put(out, bytes)?;
        lead = " ";
    }
    if let Some(bytes) = record.value {
        write!(out, "{lead}payload: ")?;
        value.put(out, bytes)?;
    }
    Ok(())
}

/// Key and value of a coordinator's record; for what cannot be read a sentence in place of the key.
fn coordinator(table: &'static [Schema], offset: i64, key: &[u8], value: Option<&[u8]>) -> (String, Option<String>) {
    let mut reader = Reader::new(Bytes::copy_from_slice(key));
    let error = |reason: String| (format!("Error at offset {offset}, skipping. {reason}"), None);
    let Ok(kind) = reader.i16() else { return error("Could not read version from key's buffer.".to_owned()) };
    let (Some(key_schema), Some(value_schema)) = (schema::find(table, kind, "Key"), schema::find(table, kind, "Value"))
    else {
        return (format!("Unknown record type {kind} at offset {offset}, skipping."), None);
    };
    let unread = |version: i16, part: &str, e: &DecodeError| {
        error(format!("Could not read record with version {version} from {part}'s buffer due to: {e}."))
    };
    let key = match key_schema.read(&mut reader, 0) {
        Ok(key) => key,
        Err(e) => return unread(kind, "key", &e),
    };
    let key = json::object(&[("type", json::quoted(&kind.to_string())), ("data", json::text(&Value::Struct(key)))]);
    let Some(value) = value else { return (key, Some("<DELETE>".to_owned())) };
    let mut reader = Reader::new(Bytes::copy_from_slice(value));
    let Ok(version) = reader.i16() else { return error("Could not read version from value's buffer.".to_owned()) };
    match value_schema.read(&mut reader, version) {
        Ok(mut data) => {
            if value_schema.name == "GroupMetadataValue" {
                open_members(&mut data);
            }
            let data = json::text(&Value::Struct(data));
            (key, Some(json::object(&[("version", json::quoted(&version.to_string())), ("data", data)])))
        }
        Err(DecodeError::Version { .. }) => error(format!("Found an unknown record version {version} for {kind} type")),
        Err(e) => unread(version, "value", &e),
    }
}

/// Shows what the members of a group of consumers said to each other instead of its bytes.
fn open_members(group: &mut Struct) {
    if group.get("protocolType") != Some(&Value::Text("consumer".to_owned())) {
        return;
    }
    let Some(Value::Array(members)) = group.get_mut("members") else { return };
    for member in members {
        let Value::Struct(member) = member else { continue };
        for (field, name) in
            [("subscription", "ConsumerProtocolSubscription"), ("assignment", "ConsumerProtocolAssignment")]
        {
            let Some(Value::Bytes(bytes)) = member.get(field) else { continue };
            let mut reader = Reader::new(bytes.clone());
            let read = reader.i16().and_then(|version| match schema::named(CONSUMER, name) {
                Some(schema) => schema.read(&mut reader, version),
                None => Ok(Struct::default()),
            });
            // What is no such message stays bytes.
            if let (Ok(read), Some(place)) = (read, member.get_mut(field)) {
                *place = Value::Struct(read);
            }
        }
    }
}

/// The schema and the version that a framed record (KIP-630) names, and its fields.
pub fn framed(table: &'static [Schema], value: Option<&[u8]>) -> Result<(&'static Schema, i16, Struct), String> {
    let value = value.ok_or("it has no value")?;
    let mut reader = Reader::new(Bytes::copy_from_slice(value));
    let mut number = |what: &str| {
        let n = reader.uvarint().map_err(|_| format!("Error while reading {what}"))?;
        i16::try_from(n).map_err(|_| format!("Value for {what} was too large."))
    };
    match number("frame version")? {
        1 => {}
        0 => {
            return Err(
                "Could not deserialize metadata record with frame version 0. Note that upgrades from the preview \
                 release of KRaft in 2.8 to newer versions are not supported."
                    .to_owned(),
            );
        }
        n => {
            return Err(format!(
                "Could not deserialize metadata record due to unknown frame version {n}(only frame version 1 is supported)"
            ));
        }
    }
    let (kind, version) = (number("type")?, number("version")?);
    let schema = schema::find(table, kind, "").ok_or_else(|| {
        format!("org.apache.kafka.common.errors.UnsupportedVersionException: Unknown metadata id {kind}")
    })?;
    let data =
        schema.read(&mut reader, version).map_err(|_| format!("Failed to deserialize record with type {kind}"))?;
    match reader.remaining() {
        0 => Ok((schema, version, data)),
        left => Err(format!("Found {left} byte(s) of garbage after {kind}")),
    }
}

fn metadata(value: Option<&[u8]>) -> Result<String, String> {
    let (schema, version, data) = framed(METADATA, value)?;
    Ok(json::object(&[
        ("type", json::quoted(&constant(schema.name))),
        ("version", version.to_string()),
        ("data", json::text(&Value::Struct(data))),
    ]))
}

/// `TopicRecord` as `TOPIC_RECORD`.
fn constant(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use caudal_protocol::records::group::{OffsetCommitKey, OffsetCommitValue};
    use caudal_protocol::wire::Message;

    use super::*;

    #[test]
    fn records_that_cannot_be_read_say_why() {
        assert_eq!(coordinator(GROUP, 4, &[0, 99], None).0, "Unknown record type 99 at offset 4, skipping.");
        assert_eq!(
            coordinator(GROUP, 4, &[0], None).0,
            "Error at offset 4, skipping. Could not read version from key's buffer."
        );
        let key = OffsetCommitKey { group: "g".into(), topic: "t".into(), partition: 1 };
        let key = [&[0, 1][..], &key.to_bytes(0).unwrap()].concat();
        assert_eq!(
            coordinator(GROUP, 4, &key, None),
            (r#"{"type":"1","data":{"group":"g","topic":"t","partition":1}}"#.to_owned(), Some("<DELETE>".to_owned()))
        );
        let (sentence, rest) = coordinator(GROUP, 4, &key, Some(&[0, 9]));
        assert_eq!(sentence, "Error at offset 4, skipping. Found an unknown record version 9 for 1 type");
        assert_eq!(rest, None);
        let value = [&[0, 3][..], &OffsetCommitValue::default().to_bytes(3).unwrap()].concat();
        assert_eq!(
            coordinator(GROUP, 4, &key, Some(&value)).1.unwrap(),
            r#"{"version":"3","data":{"offset":0,"leaderEpoch":-1,"metadata":"","commitTimestamp":0}}"#
        );
    }

    #[test]
    fn metadata_records() {
        assert_eq!(metadata(Some(&[1, 20, 0, 0])).unwrap(), r#"{"type":"NO_OP_RECORD","version":0,"data":{}}"#);
        assert_eq!(metadata(Some(&[1, 20, 0, 0, 7])).unwrap_err(), "Found 1 byte(s) of garbage after 20");
        assert_eq!(metadata(Some(&[1, 3, 0])).unwrap_err(), "Failed to deserialize record with type 3");
        assert!(metadata(Some(&[0])).unwrap_err().contains("frame version 0"));
        assert!(metadata(Some(&[1, 99, 0])).unwrap_err().contains("99"));
    }
}
