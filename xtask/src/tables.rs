//! Turns Kafka's schemas of persisted records into tables that `caudal_protocol::schema` reads records by.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::schema::{Field, Kind, Schema, Versions};

/// Which schemas make which table: its name, what its doc says, the jar, and a name each of its schemas begins with.
pub const TABLES: &[(&str, &str, &str, &[&str])] = &[
    (
        "CONTROL",
        "Records of control batches.",
        "kafka-clients",
        &["LeaderChangeMessage", "SnapshotHeaderRecord", "SnapshotFooterRecord", "KRaftVersionRecord", "VotersRecord"],
    ),
    (
        "CONSUMER",
        "What the members of a classic group of consumers say to each other.",
        "kafka-clients",
        &["ConsumerProtocolSubscription", "ConsumerProtocolAssignment"],
    ),
    ("METADATA", "Records of `__cluster_metadata`.", "kafka-metadata", &[""]),
    ("GROUP", "Keys and values of `__consumer_offsets`.", "kafka-group-coordinator", &[""]),
    ("TRANSACTION", "Keys and values of `__transaction_state`.", "kafka-transaction-coordinator", &[""]),
    ("SHARE", "Keys and values of `__share_group_state`.", "kafka-share-coordinator", &[""]),
    ("REMOTE_LOG", "Records of `__remote_log_metadata`.", "kafka-storage", &["Remote"]),
];

/// The table `name` of those of `schemas` that begin with one of `prefixes`.
pub fn emit(name: &str, doc: &str, schemas: &BTreeMap<String, Schema>, prefixes: &[&str]) -> Result<String, String> {
    let mut out = format!("\n/// {doc}\n#[rustfmt::skip]\npub static {name}: &[Schema] = &[\n");
    let mut wanted: Vec<&Schema> =
        schemas.values().filter(|s| prefixes.iter().any(|p| s.name.starts_with(p))).collect();
    wanted.sort_by_key(|s| (s.api_key, &s.name));
    if wanted.is_empty() {
        return Err(format!("no schemas for the table {name}"));
    }
    for schema in wanted {
        let fields = &schema.structs.first().ok_or("a schema without a struct")?.fields;
        let _ = writeln!(
            out,
            "    Schema {{ name: \"{}\", api_key: {}, versions: {}, flexible: {}, fields: &[",
            schema.name,
            schema.api_key.unwrap_or(-1),
            range(schema.valid),
            range(schema.flexible)
        );
        put_fields(&mut out, schema, fields, 2)?;
        out.push_str("    ] },\n");
    }
    out.push_str("];\n");
    Ok(out)
}

fn range(versions: Versions) -> String {
    if versions.is_empty() { "NONE".to_owned() } else { format!("({}, {})", versions.lo, versions.hi) }
}

fn put_fields(out: &mut String, schema: &Schema, fields: &[Field], depth: usize) -> Result<(), String> {
    let indent = "    ".repeat(depth);
    for field in fields.iter().filter(|f| !f.versions.intersect(schema.valid).is_empty()) {
        if field.flexible.is_some() {
            return Err(format!("field {} of {}: tables know no flexibleVersions of a field", field.name, schema.name));
        }
        let mut chars = field.name.chars();
        let first = chars.next().map(|c| c.to_ascii_lowercase());
        let name: String = first.into_iter().chain(chars).collect();
        let tag = match field.tag {
            Some((tag, versions)) => format!("Some(({tag}, {}))", range(versions)),
            None => "None".to_owned(),
        };
        let _ = writeln!(
            out,
            "{indent}Field {{ name: \"{name}\", versions: {}, nullable: {}, tag: {tag}, default: {:?}, kind: {} }},",
            range(field.versions),
            range(field.nullable),
            field.default.as_deref().unwrap_or_default(),
            kind(schema, &field.kind, depth)?,
        );
    }
    Ok(())
}

fn kind(schema: &Schema, kind_: &Kind, depth: usize) -> Result<String, String> {
    Ok(match kind_ {
        Kind::Array(inner) => format!("Kind::Array(&{})", kind(schema, inner, depth)?),
        Kind::Struct(name) => {
            let found = schema.structs.iter().find(|s| s.name == *name).ok_or(format!("no struct {name}"))?;
            let mut fields = String::new();
            put_fields(&mut fields, schema, &found.fields, depth + 1)?;
            format!("Kind::Struct(&[\n{fields}{}])", "    ".repeat(depth))
        }
        plain => format!("Kind::{plain:?}"),
    })
}
