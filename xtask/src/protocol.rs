//! Turns Kafka's message schemas into `crates/protocol/src/generated`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::schema::{Field, Kind, Schema, Struct, Versions};
use crate::tables;

/// Where a message goes and which are taken: jar prefix, folder in the jar, module, names (`*Request` implies its response).
const GROUPS: &[(&str, &str, &[&str])] = &[
    (
        "kafka-clients",
        "messages",
        &[
            "Produce",
            "Fetch",
            "ListOffsets",
            "Metadata",
            "OffsetCommit",
            "OffsetFetch",
            "FindCoordinator",
            "JoinGroup",
            "Heartbeat",
            "LeaveGroup",
            "SyncGroup",
            "DescribeGroups",
            "ListGroups",
            "ApiVersions",
            "CreateTopics",
            "DeleteTopics",
            "DeleteRecords",
            "InitProducerId",
            "OffsetForLeaderEpoch",
            "DescribeConfigs",
            "AlterConfigs",
            "DescribeLogDirs",
            "CreatePartitions",
            "DeleteGroups",
            "ElectLeaders",
            "IncrementalAlterConfigs",
            "ListPartitionReassignments",
            "OffsetDelete",
            "DescribeQuorum",
            "DescribeCluster",
            "DescribeProducers",
            "DescribeTopicPartitions",
            "ListConfigResources",
            "DescribeAcls",
            "ConsumerGroupHeartbeat",
            "ConsumerGroupDescribe",
            "AddPartitionsToTxn",
            "AddOffsetsToTxn",
            "EndTxn",
            "WriteTxnMarkers",
            "TxnOffsetCommit",
            "DescribeTransactions",
            "ListTransactions",
            "AlterReplicaLogDirs",
            "AlterPartitionReassignments",
            "DescribeClientQuotas",
            "AlterClientQuotas",
            "DescribeUserScramCredentials",
            "AlterUserScramCredentials",
            "UpdateFeatures",
            "UnregisterBroker",
            "AddRaftVoter",
            "RemoveRaftVoter",
            "CreateAcls",
            "DeleteAcls",
            "CreateDelegationToken",
            "RenewDelegationToken",
            "ExpireDelegationToken",
            "DescribeDelegationToken",
            "SaslHandshake",
            "SaslAuthenticate",
            "RequestHeader",
            "ResponseHeader",
            "ConsumerProtocolSubscription",
            "ConsumerProtocolAssignment",
        ],
    ),
    (
        "kafka-clients",
        "control",
        &[
            "LeaderChangeMessage",
            "SnapshotHeaderRecord",
            "SnapshotFooterRecord",
            "KRaftVersionRecord",
            "VotersRecord",
            "EndTxnMarker",
        ],
    ),
    (
        "kafka-metadata",
        "metadata",
        &[
            "RegisterBrokerRecord",
            "UnregisterBrokerRecord",
            "TopicRecord",
            "PartitionRecord",
            "ConfigRecord",
            "PartitionChangeRecord",
            "FenceBrokerRecord",
            "UnfenceBrokerRecord",
            "RemoveTopicRecord",
            "FeatureLevelRecord",
            "ClientQuotaRecord",
            "ProducerIdsRecord",
            "BrokerRegistrationChangeRecord",
            "NoOpRecord",
            "RegisterControllerRecord",
            "BeginTransactionRecord",
            "EndTransactionRecord",
            "AbortTransactionRecord",
            "AccessControlEntryRecord",
            "RemoveAccessControlEntryRecord",
            "UserScramCredentialRecord",
            "RemoveUserScramCredentialRecord",
            "ClearElrRecord",
            "DelegationTokenRecord",
            "RemoveDelegationTokenRecord",
        ],
    ),
    (
        "kafka-group-coordinator",
        "group",
        &[
            "OffsetCommitKey",
            "OffsetCommitValue",
            "GroupMetadataKey",
            "GroupMetadataValue",
            "ConsumerGroupMetadataKey",
            "ConsumerGroupMetadataValue",
            "ConsumerGroupPartitionMetadataKey",
            "ConsumerGroupPartitionMetadataValue",
            "ConsumerGroupMemberMetadataKey",
            "ConsumerGroupMemberMetadataValue",
            "ConsumerGroupTargetAssignmentMetadataKey",
            "ConsumerGroupTargetAssignmentMetadataValue",
            "ConsumerGroupTargetAssignmentMemberKey",
            "ConsumerGroupTargetAssignmentMemberValue",
            "ConsumerGroupCurrentMemberAssignmentKey",
            "ConsumerGroupCurrentMemberAssignmentValue",
            "ConsumerGroupRegularExpressionKey",
            "ConsumerGroupRegularExpressionValue",
        ],
    ),
    ("kafka-storage", "producer", &["ProducerSnapshot"]),
    ("kafka-transaction-coordinator", "transaction", &["TransactionLogKey", "TransactionLogValue"]),
];

/// Regenerates the code from the jars in `libs`, or with `check` compares it with what is committed.
pub fn run(libs: &Path, check: bool) -> Result<(), String> {
    let out = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/protocol/src/generated");
    let mut files: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut root = String::from(HEADER);
    let mut every = String::new();
    for group in ["messages", "control", "metadata", "group", "producer", "transaction"] {
        let mut index = String::from(HEADER);
        for (jar, module, names) in GROUPS.iter().filter(|(_, module, _)| *module == group) {
            let schemas = read_jar(libs, jar)?;
            for name in names.iter() {
                let found: Vec<&Schema> = [(*name).to_owned(), format!("{name}Request"), format!("{name}Response")]
                    .iter()
                    .filter_map(|n| schemas.get(n))
                    .collect();
                if found.is_empty() {
                    return Err(format!("no schema {name} in {jar}"));
                }
                for schema in found {
                    let file = snake(&schema.name);
                    let top = type_name(&schema.name);
                    let _ = writeln!(index, "pub mod {file};\npub use {file}::{top};");
                    let _ = writeln!(every, "$check::<$crate::generated::{module}::{top}>();");
                    files.insert(out.join(module).join(format!("{file}.rs")), emit(schema)?);
                }
            }
        }
        files.insert(out.join(group).join("mod.rs"), index);
        let _ = writeln!(root, "pub mod {group};");
    }
    root.push_str("pub mod api_table;\npub mod tables;\n");
    let _ = writeln!(
        root,
        "\n/// Calls a function for each message type.\n#[cfg(test)]\nmacro_rules! for_each_message {{ ($check:ident) => {{ {every} }}; }}\n#[cfg(test)]\npub(crate) use for_each_message;"
    );
    files.insert(out.join("mod.rs"), root);
    files.insert(out.join("api_table.rs"), api_table(&read_jar(libs, "kafka-clients")?));
    let mut tables = format!("{HEADER}use crate::schema::{{Field, Kind, NONE, Schema}};\n");
    for (name, doc, jar, prefixes) in tables::TABLES {
        tables.push_str(&tables::emit(name, doc, &read_jar(libs, jar)?, prefixes)?);
    }
    files.insert(out.join("tables.rs"), tables);
    for (path, content) in &files {
        let formatted = rustfmt(content)?;
        if check {
            if std::fs::read_to_string(path).unwrap_or_default() != formatted {
                return Err(format!("{} differs from its schema; run `cargo xtask protocol`", path.display()));
            }
            continue;
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| e.to_string())?;
        }
        std::fs::write(path, formatted).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

const HEADER: &str = "// Generated by `cargo xtask protocol` from Apache Kafka's message schemas. Do not edit.\n\n";

fn read_jar(libs: &Path, prefix: &str) -> Result<BTreeMap<String, Schema>, String> {
    let entries = std::fs::read_dir(libs).map_err(|e| format!("{}: {e}", libs.display()))?;
    let jar = entries
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| {
            let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.strip_prefix(prefix).is_some_and(|rest| {
                rest.ends_with(".jar")
                    && rest.strip_prefix('-').is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
            })
        })
        .ok_or(format!("no {prefix} jar in {}", libs.display()))?;
    let list = unzip(&["-Z1"], &jar, &[])?;
    let mut schemas = BTreeMap::new();
    for name in list.lines().filter(|n| n.ends_with(".json") && n.contains("message/") | n.contains("metadata/")) {
        let schema = Schema::parse(&unzip(&["-p"], &jar, &[name])?).map_err(|e| format!("{name}: {e}"))?;
        schemas.insert(schema.name.clone(), schema);
    }
    Ok(schemas)
}

fn unzip(flags: &[&str], jar: &Path, names: &[&str]) -> Result<String, String> {
    let out = Command::new("unzip")
        .args(flags)
        .arg(jar)
        .args(names)
        .output()
        .map_err(|e| format!("failed to run unzip: {e}"))?;
    String::from_utf8(out.stdout).map_err(|e| e.to_string())
}

fn rustfmt(code: &str) -> Result<String, String> {
    use std::io::Write;
    let config = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(config)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .map_err(|e| format!("failed to run rustfmt: {e}"))?;
    let mut stdin = child.stdin.take().ok_or("rustfmt takes no input")?;
    stdin.write_all(code.as_bytes()).map_err(|e| e.to_string())?;
    drop(stdin);
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    if !out.status.success() {
        return Err(format!("rustfmt refused:\n{code}"));
    }
    String::from_utf8(out.stdout).map_err(|e| e.to_string())
}

fn snake(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (i, c) in chars.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|j| chars.get(j)).copied().unwrap_or('_');
        let after = chars.get(i + 1).copied().unwrap_or('_');
        if c.is_uppercase()
            && before != '_'
            && (before.is_lowercase() || before.is_ascii_digit() || after.is_lowercase())
        {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    match out.as_str() {
        "type" | "match" | "ref" | "move" | "self" => out + "_",
        "k_raft_version_record" => "kraft_version_record".into(),
        _ => out,
    }
}

fn type_name(name: &str) -> String {
    name.to_owned()
}

struct Emitter<'a> {
    schema: &'a Schema,
}

fn emit(schema: &Schema) -> Result<String, String> {
    let emitter = Emitter { schema };
    let mut out = String::from(HEADER);
    out.push_str("#![allow(clippy::all, unused)]\n\nuse bytes::Bytes;\n\nuse crate::wire::{DecodeError, EncodeError, Message, Reader, Records, Writer};\nuse crate::uuid::Uuid;\n\n");
    let Versions { lo, hi } = schema.valid;
    let flexible = if schema.flexible.is_empty() { i16::MAX } else { schema.flexible.lo };
    let top = type_name(&schema.name);
    let _ = writeln!(
        out,
        "impl Message for {top} {{
            const NAME: &'static str = \"{top}\";
            const API_KEY: i16 = {};
            const MIN_VERSION: i16 = {lo};
            const MAX_VERSION: i16 = {hi};
            const FLEXIBLE_FROM: i16 = {flexible};
            fn decode(r: &mut Reader, version: i16) -> Result<Self, DecodeError> {{
                if version < {lo} || version > {hi} {{ return Err(DecodeError::Version {{ message: Self::NAME, version }}); }}
                Self::read(r, version)
            }}
            fn encode(&self, w: &mut Writer, version: i16) -> Result<(), EncodeError> {{
                if version < {lo} || version > {hi} {{ return Err(EncodeError::Version {{ message: Self::NAME, version }}); }}
                self.write(w, version)
            }}
        }}\n",
        schema.api_key.unwrap_or(-1)
    );
    for item in &schema.structs {
        emitter.structure(&mut out, item)?;
    }
    Ok(out)
}

impl Emitter<'_> {
    fn structure(&self, out: &mut String, item: &Struct) -> Result<(), String> {
        let name = type_name(&item.name);
        let fields: Vec<&Field> = item.fields.iter().filter(|f| !self.live(f).is_empty()).collect();
        let _ = writeln!(out, "#[derive(Debug, Clone, PartialEq)]\npub struct {name} {{");
        for f in &fields {
            let _ = writeln!(out, "pub {}: {},", snake(&f.name), self.rust_type(f));
        }
        let _ = writeln!(out, "}}\n\nimpl Default for {name} {{ fn default() -> Self {{ {name} {{");
        for f in &fields {
            let _ = writeln!(out, "{}: {},", snake(&f.name), self.default_value(f)?);
        }
        let _ = writeln!(out, "}} }} }}\n\nimpl {name} {{");
        self.reader(out, &fields);
        self.writer(out, &fields)?;
        out.push_str("}\n\n");
        Ok(())
    }

    /// The versions of this message in which the field exists.
    fn live(&self, f: &Field) -> Versions {
        f.versions.intersect(self.schema.valid)
    }

    fn optional(&self, f: &Field) -> bool {
        !f.nullable.intersect(self.schema.valid).is_empty() || f.kind == Kind::Records
    }

    fn base_type(kind: &Kind) -> String {
        match kind {
            Kind::Bool => "bool".into(),
            Kind::Int8 => "i8".into(),
            Kind::Int16 => "i16".into(),
            Kind::Uint16 => "u16".into(),
            Kind::Int32 => "i32".into(),
            Kind::Uint32 => "u32".into(),
            Kind::Int64 => "i64".into(),
            Kind::Float64 => "f64".into(),
            Kind::String => "String".into(),
            Kind::Bytes => "Bytes".into(),
            Kind::Records => "Records".into(),
            Kind::Uuid => "Uuid".into(),
            Kind::Struct(name) => type_name(name),
            Kind::Array(inner) => format!("Vec<{}>", Self::base_type(inner)),
        }
    }

    fn rust_type(&self, f: &Field) -> String {
        let base = Self::base_type(&f.kind);
        if self.optional(f) { format!("Option<{base}>") } else { base }
    }

    fn default_value(&self, f: &Field) -> Result<String, String> {
        let text = f.default.as_deref();
        if text == Some("null") || f.kind == Kind::Records {
            return Ok("None".into());
        }
        let number = |t: &str| -> Result<String, String> {
            let parsed = match t.strip_prefix("0x") {
                Some(hex) => i64::from_str_radix(hex, 16),
                None => t.parse::<i64>(),
            };
            parsed.map(|n| n.to_string()).map_err(|_| format!("bad default '{t}' of {}", f.name))
        };
        let value = match (&f.kind, text) {
            (Kind::Bool, t) => (t == Some("true")).to_string(),
            (Kind::Float64, t) => format!("{}f64", t.unwrap_or("0.0")),
            (Kind::String, t) => match t {
                None | Some("") => "String::new()".into(),
                Some(t) => format!("{t:?}.to_owned()"),
            },
            (Kind::Bytes, _) => "Bytes::new()".into(),
            (Kind::Uuid, _) => "Uuid::ZERO".into(),
            (Kind::Array(_), _) => "Vec::new()".into(),
            (Kind::Struct(name), _) => format!("{}::default()", type_name(name)),
            (_, t) => number(t.unwrap_or("0"))?,
        };
        Ok(if self.optional(f) { format!("Some({value})") } else { value })
    }

    fn is_default(&self, f: &Field) -> Result<String, String> {
        let name = snake(&f.name);
        let default = self.default_value(f)?;
        Ok(match (&f.kind, default.as_str()) {
            (_, "None") => format!("self.{name}.is_none()"),
            (Kind::Array(_) | Kind::String | Kind::Bytes, "Vec::new()" | "String::new()" | "Bytes::new()") => {
                format!("self.{name}.is_empty()")
            }
            (Kind::Bool, "false") => format!("!self.{name}"),
            _ => format!("self.{name} == {default}"),
        })
    }

    fn range(versions: Versions, within: Versions) -> Option<String> {
        if versions.contains(within) {
            return None;
        }
        let mut parts = Vec::new();
        if versions.lo > within.lo {
            parts.push(format!("version >= {}", versions.lo));
        }
        if versions.hi < within.hi {
            parts.push(format!("version <= {}", versions.hi));
        }
        Some(parts.join(" && "))
    }

    fn flexible_expr(&self, f: Option<&Field>) -> String {
        let flexible = f.and_then(|f| f.flexible).unwrap_or(self.schema.flexible).intersect(self.schema.valid);
        if flexible.is_empty() {
            return "false".into();
        }
        Self::range(flexible, self.schema.valid).map_or("true".into(), |r| format!("({r})"))
    }

    fn read_one(kind: &Kind, flex: &str) -> String {
        match kind {
            Kind::Bool => "r.bool()?".into(),
            Kind::Int8 => "r.i8()?".into(),
            Kind::Int16 => "r.i16()?".into(),
            Kind::Uint16 => "r.u16()?".into(),
            Kind::Int32 => "r.i32()?".into(),
            Kind::Uint32 => "r.u32()?".into(),
            Kind::Int64 => "r.i64()?".into(),
            Kind::Float64 => "r.f64()?".into(),
            Kind::String => format!("r.string({flex})?"),
            Kind::Bytes => format!("r.bytes({flex})?"),
            Kind::Records => format!("r.records({flex})?"),
            Kind::Uuid => "r.uuid()?".into(),
            Kind::Struct(name) => format!("{}::read(r, version)?", type_name(name)),
            Kind::Array(inner) => format!("r.array({flex}, |r| Ok({}))?", Self::read_one(inner, flex)),
        }
    }

    fn read_field(&self, f: &Field, flex: &str) -> String {
        if f.kind == Kind::Records {
            return format!("r.records({flex})?");
        }
        let plain = Self::read_one(&f.kind, flex);
        if !self.optional(f) {
            return plain;
        }
        let nullable = match &f.kind {
            Kind::String => format!("r.nullable_string({flex})?"),
            Kind::Bytes => format!("r.nullable_bytes({flex})?"),
            Kind::Array(inner) => format!("r.nullable_array({flex}, |r| Ok({}))?", Self::read_one(inner, flex)),
            _ => format!("if r.i8()? < 0 {{ None }} else {{ Some({plain}) }}"),
        };
        match Self::range(f.nullable.intersect(self.live(f)), self.live(f)) {
            None => nullable,
            Some(condition) => format!("if {condition} {{ {nullable} }} else {{ Some({plain}) }}"),
        }
    }

    fn reader(&self, out: &mut String, fields: &[&Field]) {
        out.push_str("pub(crate) fn read(r: &mut Reader, version: i16) -> Result<Self, DecodeError> {\nlet mut m = Self::default();\n");
        for f in fields {
            let live = self.live(f);
            let flex = self.flexible_expr(Some(f));
            let mut conditions: Vec<String> = Self::range(live, self.schema.valid).into_iter().collect();
            if let Some((_, tagged)) = f.tag {
                let tagged = tagged.intersect(self.schema.valid);
                if tagged.contains(live) {
                    continue;
                }
                conditions.push(format!("version < {}", tagged.lo));
            }
            let set = format!("m.{} = {};", snake(&f.name), self.read_field(f, &flex));
            if conditions.is_empty() {
                let _ = writeln!(out, "{set}");
            } else {
                let _ = writeln!(out, "if {} {{ {set} }}", conditions.join(" && "));
            }
        }
        if !self.schema.flexible.intersect(self.schema.valid).is_empty() {
            let _ = writeln!(out, "if {} {{ r.tags(|tag, r| {{ match tag {{", self.flexible_expr(None));
            for f in fields {
                let Some((tag, tagged)) = f.tag else { continue };
                let guard = Self::range(tagged, self.schema.valid).map_or(String::new(), |r| format!(" if {r}"));
                // A nullable struct in a tag begins with a varint, 0 for none, and not with a signed byte as elsewhere.
                let read = self.read_field(f, "true").replace("r.i8()? < 0", "r.uvarint()? == 0");
                let _ = writeln!(out, "{tag}{guard} => m.{} = {read},", snake(&f.name));
            }
            out.push_str("_ => r.skip(),\n} Ok(()) })?; }\n");
        }
        out.push_str("Ok(m)\n}\n\n");
    }

    fn write_one(kind: &Kind, flex: &str, place: &str) -> String {
        match kind {
            Kind::Bool => format!("w.bool(*{place})"),
            Kind::Int8 => format!("w.i8(*{place})"),
            Kind::Int16 => format!("w.i16(*{place})"),
            Kind::Uint16 => format!("w.u16(*{place})"),
            Kind::Int32 => format!("w.i32(*{place})"),
            Kind::Uint32 => format!("w.u32(*{place})"),
            Kind::Int64 => format!("w.i64(*{place})"),
            Kind::Float64 => format!("w.f64(*{place})"),
            Kind::String => format!("w.string({flex}, {place})?"),
            Kind::Bytes => format!("w.bytes({flex}, {place})"),
            Kind::Records => format!("w.records({flex}, {place})"),
            Kind::Uuid => format!("w.uuid({place})"),
            Kind::Struct(_) => format!("{place}.write(w, version)?"),
            Kind::Array(inner) => {
                format!("w.array({flex}, {place}, |w, item| {{ {}; Ok(()) }})?", Self::write_one(inner, flex, "item"))
            }
        }
    }

    fn write_field(&self, f: &Field, flex: &str) -> String {
        let name = snake(&f.name);
        if f.kind == Kind::Records {
            return format!("w.nullable_records({flex}, self.{name}.as_ref());");
        }
        if !self.optional(f) {
            return format!("{};", Self::write_one(&f.kind, flex, &format!("(&self.{name})")));
        }
        let some = Self::write_one(&f.kind, flex, "value");
        let (null, before) = match &f.kind {
            Kind::String => (format!("w.null_string({flex})"), ""),
            Kind::Bytes => (format!("w.null_bytes({flex})"), ""),
            Kind::Array(_) => (format!("w.null_array({flex})"), ""),
            _ => ("w.i8(-1)".to_owned(), "w.i8(1); "),
        };
        let refuse = format!("return Err(EncodeError::Null {{ field: \"{}\", version }})", f.name);
        let when = Self::range(f.nullable.intersect(self.live(f)), self.live(f));
        let none = match &when {
            None => null,
            Some(condition) => format!("if {condition} {{ {null} }} else {{ {refuse} }}"),
        };
        let before = match (&when, before) {
            (_, "") => String::new(),
            (None, b) => b.to_owned(),
            (Some(condition), b) => format!("if {condition} {{ {b} }} "),
        };
        format!("match &self.{name} {{ None => {{ {none}; }} Some(value) => {{ {before}{some}; }} }}")
    }

    fn writer(&self, out: &mut String, fields: &[&Field]) -> Result<(), String> {
        out.push_str("pub(crate) fn write(&self, w: &mut Writer, version: i16) -> Result<(), EncodeError> {\n");
        for f in fields {
            let live = self.live(f);
            let flex = self.flexible_expr(Some(f));
            let mut conditions: Vec<String> = Self::range(live, self.schema.valid).into_iter().collect();
            let present = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" && ") };
            let refuse = format!("return Err(EncodeError::Field {{ field: \"{}\", version }})", f.name);
            if !f.ignorable && present != "true" {
                let _ = writeln!(out, "if !({present}) && !({}) {{ {refuse}; }}", self.is_default(f)?);
            }
            if let Some((_, tagged)) = f.tag {
                let tagged = tagged.intersect(self.schema.valid);
                if tagged.contains(live) {
                    continue;
                }
                conditions.push(format!("version < {}", tagged.lo));
            }
            if conditions.is_empty() {
                let _ = writeln!(out, "{}", self.write_field(f, &flex));
            } else {
                let _ = writeln!(out, "if {} {{ {} }}", conditions.join(" && "), self.write_field(f, &flex));
            }
        }
        if !self.schema.flexible.intersect(self.schema.valid).is_empty() {
            let mut tagged: Vec<(&Field, u32, Versions)> =
                fields.iter().filter_map(|f| f.tag.map(|(tag, v)| (*f, tag, v))).collect();
            tagged.sort_by_key(|(_, tag, _)| *tag);
            let _ = writeln!(out, "if {} {{", self.flexible_expr(None));
            if tagged.is_empty() {
                out.push_str("w.uvarint(0);\n");
            } else {
                out.push_str("let mut tags = w.tags();\n");
                for (f, tag, versions) in tagged {
                    // A struct that is left out reads as an empty one in Apache Kafka, whatever default its schema names.
                    let is_struct = matches!(f.kind, Kind::Struct(_)) && self.optional(f);
                    let mut condition = if is_struct { "true".into() } else { format!("!({})", self.is_default(f)?) };
                    if let Some(range) = Self::range(versions, self.schema.valid) {
                        condition = format!("{range} && {condition}");
                    }
                    let write = self.write_field(f, "true");
                    let write = write.replace("w.i8(-1)", "w.uvarint(0)").replace("w.i8(1); ", "w.uvarint(1); ");
                    let _ = writeln!(out, "if {condition} {{ let w = tags.field({tag}); {write} }}");
                }
                out.push_str("w.put_tags(tags);\n");
            }
            out.push_str("}\n");
        }
        out.push_str("Ok(())\n}\n");
        Ok(())
    }
}

/// Every request schema, also those that have no code here: names and versions are what tools print.
fn api_table(schemas: &BTreeMap<String, Schema>) -> String {
    let mut apis: Vec<(i16, &str, &Schema)> =
        schemas.values().filter_map(|s| Some((s.api_key?, s.name.strip_suffix("Request")?, s))).collect();
    apis.sort_by_key(|(key, ..)| *key);
    let mut out = String::from(HEADER);
    out.push_str("/// Kafka's request types.\n#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]\n#[repr(i16)]\npub enum ApiKey {\n");
    for (key, name, _) in &apis {
        let _ = writeln!(out, "{name} = {key},");
    }
    out.push_str("}\n\n/// What Apache Kafka's schemas say of one request type.\n#[derive(Debug, Clone, Copy)]\npub struct ApiSchema {\npub key: ApiKey,\npub name: &'static str,\npub min_version: i16,\npub max_version: i16,\n/// First version with compact strings and tagged fields; `i16::MAX`: none.\npub flexible_from: i16,\n}\n\n/// Sorted by key.\n#[rustfmt::skip]\npub const APIS: &[ApiSchema] = &[\n");
    for (_, name, s) in &apis {
        let flexible = if s.flexible.is_empty() { "i16::MAX".into() } else { s.flexible.lo.to_string() };
        let _ = writeln!(
            out,
            "    ApiSchema {{ key: ApiKey::{name}, name: \"{name}\", min_version: {}, max_version: {}, flexible_from: {flexible} }},",
            s.valid.lo, s.valid.hi
        );
    }
    out.push_str("];\n");
    out
}
