//! Kafka's message schemas: JSON with `//` comments, as `org.apache.kafka.message` defines them.

use serde_json::Value;

/// An inclusive range of versions; `hi < lo` is the empty range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    pub lo: i16,
    pub hi: i16,
}

impl Versions {
    pub const NONE: Versions = Versions { lo: 0, hi: -1 };

    /// Parses `none`, `3`, `3+` and `1-4`.
    pub fn parse(text: &str) -> Result<Versions, String> {
        let number = |t: &str| t.trim().parse::<i16>().map_err(|_| format!("bad version range '{text}'"));
        if text == "none" {
            return Ok(Versions::NONE);
        }
        if let Some(lo) = text.strip_suffix('+') {
            return Ok(Versions { lo: number(lo)?, hi: i16::MAX });
        }
        match text.split_once('-') {
            Some((lo, hi)) => Ok(Versions { lo: number(lo)?, hi: number(hi)? }),
            None => Ok(Versions { lo: number(text)?, hi: number(text)? }),
        }
    }

    pub fn is_empty(self) -> bool {
        self.hi < self.lo
    }

    pub fn intersect(self, other: Versions) -> Versions {
        Versions { lo: self.lo.max(other.lo), hi: self.hi.min(other.hi) }
    }

    pub fn contains(self, other: Versions) -> bool {
        other.is_empty() || (self.lo <= other.lo && self.hi >= other.hi)
    }
}

/// A wire type.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    Struct(String),
    Array(Box<Kind>),
}

impl Kind {
    fn parse(text: &str) -> Kind {
        match text {
            "bool" => Kind::Bool,
            "int8" => Kind::Int8,
            "int16" => Kind::Int16,
            "uint16" => Kind::Uint16,
            "int32" => Kind::Int32,
            "uint32" => Kind::Uint32,
            "int64" => Kind::Int64,
            "float64" => Kind::Float64,
            "string" => Kind::String,
            "bytes" => Kind::Bytes,
            "records" => Kind::Records,
            "uuid" => Kind::Uuid,
            _ => match text.strip_prefix("[]") {
                Some(inner) => Kind::Array(Box::new(Kind::parse(inner))),
                None => Kind::Struct(text.to_owned()),
            },
        }
    }
}

/// One field of a struct.
#[derive(Debug, Clone)]
pub struct Field {
    pub name: String,
    pub kind: Kind,
    pub versions: Versions,
    pub nullable: Versions,
    pub flexible: Option<Versions>,
    pub tag: Option<(u32, Versions)>,
    pub default: Option<String>,
    pub ignorable: bool,
}

/// A struct, top-level or nested.
#[derive(Debug, Clone)]
pub struct Struct {
    pub name: String,
    pub versions: Versions,
    pub fields: Vec<Field>,
}

/// One schema file.
#[derive(Debug, Clone)]
pub struct Schema {
    pub api_key: Option<i16>,
    pub name: String,
    pub valid: Versions,
    pub flexible: Versions,
    /// The top-level struct first.
    pub structs: Vec<Struct>,
}

/// Removes `//` comments outside of strings.
fn strip_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let (mut in_string, mut previous, mut end) = (false, ' ', line.len());
        for (at, c) in line.char_indices() {
            if c == '"' && previous != '\\' {
                in_string = !in_string;
            }
            if !in_string && c == '/' && previous == '/' {
                end = at - 1;
                break;
            }
            previous = c;
        }
        out.push_str(line.get(..end).unwrap_or_default());
        out.push('\n');
    }
    out
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn versions(value: &Value, key: &str) -> Result<Option<Versions>, String> {
    text(value, key).map(Versions::parse).transpose()
}

impl Schema {
    /// Parses one schema file.
    pub fn parse(source: &str) -> Result<Schema, String> {
        let json: Value = serde_json::from_str(&strip_comments(source)).map_err(|e| format!("bad schema: {e}"))?;
        let name = text(&json, "name").ok_or("a schema without a name")?.to_owned();
        let valid = versions(&json, "validVersions")?.ok_or("no validVersions")?;
        let flexible = versions(&json, "flexibleVersions")?.unwrap_or(Versions::NONE);
        let mut structs = vec![Struct { name: name.clone(), versions: valid, fields: Vec::new() }];
        let fields = parse_fields(json.get("fields"), &mut structs)?;
        if let Some(top) = structs.first_mut() {
            top.fields = fields;
        }
        if let Some(common) = json.get("commonStructs").and_then(Value::as_array) {
            for item in common {
                let name = text(item, "name").ok_or("a common struct without a name")?.to_owned();
                let fields = parse_fields(item.get("fields"), &mut structs)?;
                structs.push(Struct { name, versions: valid, fields });
            }
        }
        let api_key = json.get("apiKey").and_then(Value::as_i64).and_then(|k| i16::try_from(k).ok());
        Ok(Schema { api_key, name, valid, flexible, structs })
    }
}

fn parse_fields(list: Option<&Value>, structs: &mut Vec<Struct>) -> Result<Vec<Field>, String> {
    let mut fields = Vec::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        let name = text(item, "name").ok_or("a field without a name")?.to_owned();
        let kind = Kind::parse(text(item, "type").ok_or("a field without a type")?);
        let range =
            versions(item, "versions")?.or(versions(item, "taggedVersions")?).ok_or("a field without versions")?;
        if item.get("fields").is_some() {
            let inner = match &kind {
                Kind::Array(inner) => (**inner).clone(),
                other => other.clone(),
            };
            let Kind::Struct(struct_name) = inner else {
                return Err(format!("field {name} has fields but is no struct"));
            };
            let nested = parse_fields(item.get("fields"), structs)?;
            structs.push(Struct { name: struct_name, versions: range, fields: nested });
        }
        let default = match item.get("default") {
            Some(Value::String(s)) => Some(s.clone()),
            Some(other) => Some(other.to_string()),
            None => None,
        };
        let tag = match (item.get("tag").and_then(Value::as_u64), versions(item, "taggedVersions")?) {
            (Some(tag), Some(tagged)) => Some((u32::try_from(tag).map_err(|e| e.to_string())?, tagged)),
            _ => None,
        };
        fields.push(Field {
            name,
            kind,
            versions: range,
            nullable: versions(item, "nullableVersions")?.unwrap_or(Versions::NONE),
            flexible: versions(item, "flexibleVersions")?,
            tag,
            default,
            ignorable: match item.get("ignorable") {
                Some(Value::Bool(b)) => *b,
                Some(Value::String(s)) => s == "true",
                _ => false,
            },
        });
    }
    Ok(fields)
}
