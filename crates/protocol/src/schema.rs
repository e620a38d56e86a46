//! Persisted records read by their schemas rather than into structs of their own: every field, under its name in the
//! schema, for tools that print records. The tables are generated from Apache Kafka's schemas.

use bytes::Bytes;

use crate::uuid::Uuid;
use crate::wire::{DecodeError, Reader};

pub use crate::generated::tables::{CONSUMER, CONTROL, GROUP, METADATA, REMOTE_LOG, SHARE, TRANSACTION};

/// First and last version, inclusive.
pub type Versions = (i16, i16);

/// No version.
pub const NONE: Versions = (0, -1);

/// One schema.
#[derive(Debug)]
pub struct Schema {
    pub name: &'static str,
    /// Type of a metadata or coordinator record; -1 where the schema has none.
    pub api_key: i16,
    pub versions: Versions,
    /// Versions with compact lengths and tagged fields.
    pub flexible: Versions,
    pub fields: &'static [Field],
}

/// One field of a schema or of a struct in it.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub versions: Versions,
    pub nullable: Versions,
    /// The tag, and in which versions the field is a tagged one.
    pub tag: Option<(u32, Versions)>,
    /// As the schema writes it; empty: the zero of the type.
    pub default: &'static str,
    pub kind: Kind,
}

/// A wire type.
#[derive(Debug)]
pub enum Kind {
    Bool,
    Int8,
    Int16,
    Uint16,
    Int32,
    Uint32,
    Int64,
    Float64,
    String,
    Bytes,
    Records,
    Uuid,
    Struct(&'static [Field]),
    Array(&'static Kind),
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Bytes),
    Uuid(Uuid),
    Array(Vec<Value>),
    Struct(Struct),
}

/// Fields in the order of the schema. Tagged fields that hold their default are left out, as Kafka's JSON has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Struct(pub Vec<(&'static str, Value)>);

impl Struct {
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        self.0.iter_mut().find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}

fn holds(versions: Versions, version: i16) -> bool {
    (versions.0..=versions.1).contains(&version)
}

/// The schema of that type and name: coordinator records have a key and a value of the same type.
pub fn find(table: &'static [Schema], api_key: i16, suffix: &str) -> Option<&'static Schema> {
    table.iter().find(|s| s.api_key == api_key && s.name.ends_with(suffix))
}

/// The schema of that name.
pub fn named(table: &'static [Schema], name: &str) -> Option<&'static Schema> {
    table.iter().find(|s| s.name == name)
}

impl Schema {
    /// Reads a record of this schema; what follows it stays in the reader.
    pub fn read(&self, r: &mut Reader, version: i16) -> Result<Struct, DecodeError> {
        if !holds(self.versions, version) {
            return Err(DecodeError::Version { message: self.name, version });
        }
        read_struct(self.fields, r, version, holds(self.flexible, version))
    }
}

fn read_struct(fields: &'static [Field], r: &mut Reader, version: i16, flexible: bool) -> Result<Struct, DecodeError> {
    let is_tagged = |f: &Field| f.tag.is_some_and(|(_, versions)| holds(versions, version));
    let live: Vec<&Field> = fields.iter().filter(|f| holds(f.versions, version)).collect();
    let mut values = Vec::with_capacity(live.len());
    for field in &live {
        values.push(if is_tagged(field) { None } else { Some(read_field(field, r, version, flexible, false)?) });
    }
    if flexible {
        r.tags(|tag, r| {
            let known = live.iter().position(|f| is_tagged(f) && f.tag.is_some_and(|(t, _)| t == tag));
            match known.and_then(|at| Some((live.get(at)?, values.get_mut(at)?))) {
                Some((field, slot)) => {
                    *slot = Some(read_field(field, r, version, true, true)?).filter(|v| !is_default(field, v));
                }
                None => r.skip(),
            }
            Ok(())
        })?;
    }
    Ok(Struct(live.iter().zip(values).filter_map(|(f, value)| Some((f.name, value?))).collect()))
}

fn read_field(
    field: &Field,
    r: &mut Reader,
    version: i16,
    flexible: bool,
    is_tagged: bool,
) -> Result<Value, DecodeError> {
    let nullable = holds(field.nullable, version);
    if nullable && matches!(field.kind, Kind::Struct(_)) {
        // A tagged struct says by a varint whether it is there, any other by a signed byte.
        let is_null = if is_tagged { r.uvarint()? == 0 } else { r.i8()? < 0 };
        if is_null {
            return Ok(Value::Null);
        }
    }
    match read(&field.kind, r, version, flexible)? {
        Value::Null if !nullable => Err(DecodeError::Null { what: field.name }),
        value => Ok(value),
    }
}

fn read(kind: &Kind, r: &mut Reader, version: i16, flexible: bool) -> Result<Value, DecodeError> {
    Ok(match kind {
        Kind::Bool => Value::Bool(r.bool()?),
        Kind::Int8 => Value::Int(r.i8()?.into()),
        Kind::Int16 => Value::Int(r.i16()?.into()),
        Kind::Uint16 => Value::Int(r.u16()?.into()),
        Kind::Int32 => Value::Int(r.i32()?.into()),
        Kind::Uint32 => Value::Int(r.u32()?.into()),
        Kind::Int64 => Value::Int(r.i64()?),
        Kind::Float64 => Value::Float(r.f64()?),
        Kind::String => r.nullable_string(flexible)?.map_or(Value::Null, Value::Text),
        Kind::Bytes | Kind::Records => r.nullable_bytes(flexible)?.map_or(Value::Null, Value::Bytes),
        Kind::Uuid => Value::Uuid(r.uuid()?),
        Kind::Struct(fields) => Value::Struct(read_struct(fields, r, version, flexible)?),
        Kind::Array(item) => {
            r.nullable_array(flexible, |r| read(item, r, version, flexible))?.map_or(Value::Null, Value::Array)
        }
    })
}

fn is_default(field: &Field, value: &Value) -> bool {
    match value {
        // The default of a struct is the empty one, whatever the schema says.
        Value::Null => field.default == "null" && !matches!(field.kind, Kind::Struct(_)),
        Value::Bool(b) => *b == (field.default == "true"),
        Value::Int(n) => *n == field.default.parse().unwrap_or(0),
        Value::Float(x) => *x == field.default.parse().unwrap_or(0.0),
        Value::Text(text) => *text == field.default,
        Value::Bytes(bytes) => bytes.is_empty() && field.default.is_empty(),
        Value::Uuid(id) => id.is_zero(),
        Value::Array(items) => items.is_empty() && field.default.is_empty(),
        Value::Struct(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{group, metadata};
    use crate::wire::Message;

    fn read_back(table: &'static [Schema], name: &str, bytes: Bytes, version: i16) -> Struct {
        let mut r = Reader::new(bytes);
        let found = named(table, name).unwrap().read(&mut r, version).unwrap();
        assert_eq!(r.remaining(), 0);
        found
    }

    #[test]
    fn what_structs_write_is_read_by_the_tables() {
        let value = group::OffsetCommitValue { offset: 7, metadata: "m".into(), ..Default::default() };
        let read = read_back(GROUP, "OffsetCommitValue", value.to_bytes(1).unwrap(), 1);
        let names: Vec<&str> = read.0.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["offset", "metadata", "commitTimestamp", "expireTimestamp"]);
        assert_eq!(read.get("offset"), Some(&Value::Int(7)));
        let read = read_back(GROUP, "OffsetCommitValue", value.to_bytes(4).unwrap(), 4);
        assert_eq!(read.get("topicId"), None, "a tagged field with its default is left out");
        let change =
            metadata::PartitionChangeRecord { partition_id: 3, isr: Some(vec![1, 2]), leader: 2, ..Default::default() };
        let read = read_back(METADATA, "PartitionChangeRecord", change.to_bytes(2).unwrap(), 2);
        assert_eq!(read.get("isr"), Some(&Value::Array(vec![Value::Int(1), Value::Int(2)])));
        assert_eq!((read.get("leader"), read.get("replicas")), (Some(&Value::Int(2)), None));
    }

    #[test]
    fn damaged_records_are_errors() {
        let schema = named(GROUP, "GroupMetadataValue").unwrap();
        assert!(schema.read(&mut Reader::new(Bytes::from_static(&[0; 3])), 3).is_err());
        let version = schema.read(&mut Reader::new(Bytes::new()), 99).unwrap_err();
        assert_eq!(version, DecodeError::Version { message: "GroupMetadataValue", version: 99 });
    }
}
