//! `kafka-configs`: the configurations of topics, brokers, groups and client metrics, quotas and SCRAM credentials.

mod quota;
mod scram;

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs as _};

use caudal_client::admin::ConfigResourceType;
use caudal_protocol::messages::describe_configs_response::DescribeConfigsResourceResult as ConfigEntry;

use super::cluster::{CallError, Cluster};
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, connect, exclude, load_properties, run_async, say, tell};

/// The types of `--entity-type`, in the order in which the original lists them.
const TYPES: &[&str] = &["topics", "clients", "users", "brokers", "ips", "client-metrics", "groups", "broker-loggers"];
/// Options that name a type and an entity at once.
const SHORTHANDS: &[(&str, &str)] = &[
    ("topic", "topics"),
    ("client", "clients"),
    ("user", "users"),
    ("broker", "brokers"),
    ("broker-logger", "broker-loggers"),
    ("ip", "ips"),
    ("client-metrics", "client-metrics"),
    ("group", "groups"),
];
/// Options that name the defaults of a type.
const DEFAULTS: &[(&str, &str)] = &[
    ("client-defaults", "clients"),
    ("user-defaults", "users"),
    ("broker-defaults", "brokers"),
    ("ip-defaults", "ips"),
];
/// Types whose entities have defaults.
const WITH_DEFAULTS: &[&str] = &["users", "clients", "brokers", "ips"];

pub static TOOL: Tool = Tool {
    name: "kafka-configs",
    about: "This tool helps to manipulate and describe entity config for a topic, client, user, broker, ip, client-metrics \
            or group",
    options: OPTIONS,
    run,
};

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    value("add-config", "", "What to set: 'k1=v1,k2=[v1,v2,v2],k3=v3', brackets around values with commas. A topic's names are in the documentation under topic configs, a broker's under broker configs (those that can change while it runs)."),
    value("add-config-file", "", "A properties file with what to set."),
    flag("all", "With --describe: all entries, not only those that were set on the entity itself."),
    flag("alter", "Change the configuration of the entity."),
    value("bootstrap-controller", "controller to connect to", "Controllers to connect to first."),
    value("bootstrap-server", "server to connect to", "Brokers to connect to first, HOST:PORT[,HOST:PORT...]."),
    value("broker", "", "The broker's id."),
    flag("broker-defaults", "The defaults of all brokers."),
    value("broker-logger", "", "The broker's id, for its log levels."),
    value("client", "", "The client's id."),
    flag("client-defaults", "The defaults of all clients."),
    value("client-metrics", "", "The name of the client metrics subscription."),
    value("command-config", "command config property file", "Properties file for the admin client."),
    value("delete-config", "", "The names to remove 'k1,k2'").list(),
    flag("describe", "Show the configuration of the entity."),
    flag("entity-default", "The defaults of the type, of clients, users, brokers or ips."),
    value("entity-name", "", "Which entity: topic, client id, user, broker id, ip, subscription or group."),
    value("entity-type", "", "Type of entity (topics/clients/users/brokers/broker-loggers/ips/client-metrics/groups)"),
    value("group", "", "The group's id."),
    flag("help", "Print this."),
    value("ip", "", "The IP address."),
    flag("ip-defaults", "The defaults of all IPs."),
    value("topic", "", "The topic's name."),
    value("user", "", "The user's principal name."),
    flag("user-defaults", "The defaults of all users."),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
    gone("zk-tls-config-file", true, NO_ZOOKEEPER),
    gone("force", false, "force is not a recognized option: kafka-configs no longer asks before it acts"),
];

/// The entities of a command line: types, and names where `""` stands for the defaults.
#[derive(Debug)]
struct Entities {
    types: Vec<String>,
    names: Vec<String>,
}

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args)?;
    tool.help_or_version(&parsed)?;
    let entities = entities(&parsed)?;
    check(&parsed, &entities)?;
    let changes = changes(&parsed)?;
    if entities.types.first().is_some_and(|t| has_quotas(t)) {
        quota::check_changes(&changes, &entities)?;
    }
    run_async(async {
        let cluster = connect(&parsed, "command-config").await?;
        let acted = if parsed.has("alter") {
            alter(&cluster, &changes, &entities).await
        } else {
            describe(&cluster, &parsed, &entities).await
        };
        if let Err(Stop::Failed(sentence)) = acted {
            tell!("Error while executing config command with args '{}'", args.join(" "));
            return Err(Stop::Failed(sentence));
        }
        acted
    })
}

fn entities(parsed: &Parsed) -> Result<Entities, Stop> {
    let given = |options: &[(&'static str, &'static str)]| -> Vec<(&'static str, &'static str)> {
        options.iter().filter(|(option, _)| parsed.has(option)).copied().collect()
    };
    let (shorthands, defaults) = (given(SHORTHANDS), given(DEFAULTS));
    let mut types = parsed.all("entity-type").to_vec();
    types.extend(shorthands.iter().chain(&defaults).map(|(_, kind)| (*kind).to_owned()));
    let mut named = parsed.all("entity-name").iter();
    let mut names = Vec::new();
    for option in &parsed.order {
        match *option {
            "entity-name" => names.extend(named.next().cloned()),
            "entity-default" => names.push(String::new()),
            _ => {}
        }
    }
    for (option, _) in &shorthands {
        names.extend(parsed.text(option)?.map(str::to_owned));
    }
    names.extend(defaults.iter().map(|_| String::new()));
    Ok(Entities { types, names })
}

fn check(parsed: &Parsed, entities: &Entities) -> Result<(), Stop> {
    if parsed.has("alter") == parsed.has("describe") {
        return Err(Stop::Usage("Command must include exactly one action: --describe, --alter".to_owned()));
    }
    exclude(parsed, "describe", &["add-config", "delete-config"])?;
    let fail = |sentence: String| Err(Stop::Failed(sentence));
    let types = &entities.types;
    let mut seen: Vec<&String> = Vec::new();
    let twice: Vec<&str> = types
        .iter()
        .filter(|t| {
            seen.contains(t) || {
                seen.push(t);
                false
            }
        })
        .map(String::as_str)
        .collect();
    if !twice.is_empty() {
        return fail(format!("Duplicate entity type(s) specified: {}", twice.join(",")));
    }
    if !parsed.has("bootstrap-server") && !parsed.has("bootstrap-controller") {
        return fail("Either --bootstrap-server or --bootstrap-controller must be specified.".to_owned());
    }
    if let Some(unknown) = types.iter().find(|t| !TYPES.contains(&t.as_str())) {
        return fail(format!(
            "Invalid entity type {unknown}, the entity type must be one of {} with a --bootstrap-server or \
             --bootstrap-controller argument",
            TYPES.join(", ")
        ));
    }
    if types.is_empty() {
        return fail("At least one entity type must be specified".to_owned());
    }
    if types.len() > 1 && !types.iter().all(|t| matches!(t.as_str(), "users" | "clients")) {
        return fail("Only 'users' and 'clients' entity types may be specified together".to_owned());
    }
    let has_long = ["entity-name", "entity-type", "entity-default"].iter().any(|o| parsed.has(o));
    if has_long && SHORTHANDS.iter().chain(DEFAULTS).any(|(o, _)| parsed.has(o)) {
        let sentence = "--entity-{type,name,default} should not be used in conjunction with specific entity flags";
        return fail(sentence.to_owned());
    }
    if parsed.has("bootstrap-server") && parsed.has("bootstrap-controller") {
        return fail("Only one of --bootstrap-server or --bootstrap-controller can be specified".to_owned());
    }
    if parsed.has("bootstrap-controller") {
        return fail("bootstrap-controller is not supported: ask the brokers, with --bootstrap-server".to_owned());
    }
    check_names(parsed, entities)
}

/// Whether the entities of a type have quotas and credentials in place of configurations.
fn has_quotas(entity_type: &str) -> bool {
    matches!(entity_type, "users" | "clients" | "ips")
}

fn check_names(parsed: &Parsed, Entities { types, names }: &Entities) -> Result<(), Stop> {
    let fail = |sentence: String| Err(Stop::Failed(sentence));
    let first = types.first().map_or("", String::as_str);
    let joined = types.join(",");
    let has_name = names.iter().any(|n| !n.is_empty());
    let has_default = names.iter().any(String::is_empty);
    let takes_default = types.iter().any(|t| WITH_DEFAULTS.contains(&t.as_str()));
    if matches!(first, "brokers" | "broker-loggers")
        && let Some(bad) = names.iter().find(|n| !n.is_empty() && n.parse::<i32>().is_err())
    {
        return fail(format!("The entity name for {first} must be a valid integer broker id, but it is: {bad}"));
    }
    let is_address = |name: &str| name.parse::<IpAddr>().is_ok() || (name, 0).to_socket_addrs().is_ok();
    if first == "ips"
        && let Some(bad) = names.iter().find(|n| !n.is_empty() && !is_address(n))
    {
        return fail(format!("The entity name for ips must be a valid IP or resolvable host, but it is: {bad}"));
    }
    if parsed.has("describe") {
        if !takes_default && parsed.has("entity-default") {
            return fail(format!("--entity-default must not be specified with --describe of {joined}"));
        }
        if first == "broker-loggers" && !has_name {
            return fail(format!("An entity name must be specified with --describe of {joined}"));
        }
        return Ok(());
    }
    if takes_default && !has_name && !has_default {
        let sentence =
            "An entity-name or default entity must be specified with --alter of users, clients, brokers or ips";
        return fail(sentence.to_owned());
    }
    if !takes_default && !has_name {
        return fail(format!("An entity name must be specified with --alter of {joined}"));
    }
    match (parsed.has("add-config"), parsed.has("add-config-file"), parsed.has("delete-config")) {
        (true, true, _) => fail("Only one of --add-config or --add-config-file must be specified".to_owned()),
        (false, false, false) => fail(
            "At least one of --add-config, --add-config-file, or --delete-config must be specified with --alter"
                .to_owned(),
        ),
        _ if names.len() != types.len() => fail("An entity name must be specified for every entity type".to_owned()),
        _ => Ok(()),
    }
}

fn resource_type(entity_type: &str) -> ConfigResourceType {
    match entity_type {
        "brokers" => ConfigResourceType::Broker,
        "broker-loggers" => ConfigResourceType::BrokerLogger,
        "client-metrics" => ConfigResourceType::ClientMetrics,
        "groups" => ConfigResourceType::Group,
        _ => ConfigResourceType::Topic,
    }
}

/// `topics` -> `topic`
fn singular(entity_type: &str) -> &str {
    // The original cuts the last letter off whatever it is: "client-metric".
    entity_type.get(..entity_type.len().saturating_sub(1)).unwrap_or_default()
}

/// `--add-config`: pairs separated by commas outside of brackets.
fn pairs(text: &str) -> Result<BTreeMap<String, String>, Stop> {
    let mut parts = vec![String::new()];
    let mut is_inside = false;
    for c in text.chars() {
        match c {
            '[' => is_inside = true,
            ']' => is_inside = false,
            _ => {}
        }
        match parts.last_mut() {
            Some(part) if c != ',' || is_inside => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    let pair = |part: &String| {
        let (name, value) = part.split_once('=')?;
        let is_bracketed = value.trim_start().starts_with('[');
        if value.contains('=') && !is_bracketed {
            return None;
        }
        Some((name.trim().to_owned(), value.replace(['[', ']'], "").trim().to_owned()))
    };
    parts.iter().map(pair).collect::<Option<_>>().ok_or_else(|| {
        let sentence = "requirement failed: Invalid entity config: all configs to be added must be in the format \
                        \"key=val\" or  \"key=[val1,val2]\" to group values which contain commas.";
        Stop::Failed(sentence.to_owned())
    })
}

/// What `--delete-config`, `--add-config-file` and `--add-config` say; `None` deletes.
fn changes(parsed: &Parsed) -> Result<Vec<(String, Option<String>)>, Stop> {
    let mut added = match parsed.text("add-config-file")? {
        Some(path) => load_properties(path)?,
        None => BTreeMap::new(),
    };
    if let Some(text) = parsed.text("add-config")? {
        added.extend(pairs(text)?);
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "$._-".contains(c);
    if let Some(bad) = added.keys().find(|k| !k.chars().all(is_plain)) {
        return Err(Stop::Failed(format!("Invalid character found for config key: {bad}")));
    }
    let deleted = parsed.all("delete-config").iter().map(|k| (k.trim().to_owned(), None));
    Ok(deleted.chain(added.into_iter().map(|(k, v)| (k, Some(v)))).collect())
}

async fn alter(cluster: &Cluster, changes: &[(String, Option<String>)], entities: &Entities) -> Result<(), Stop> {
    let (Some(kind), Some(name)) = (entities.types.first(), entities.names.first()) else { return Ok(()) };
    if kind == "broker-loggers" {
        check_loggers(cluster, name, changes).await?;
    }
    if has_quotas(kind) {
        quota::alter(cluster, changes, entities).await?;
    } else {
        cluster.alter_configs(resource_type(kind), name, changes).await.map_err(|e| Stop::Failed(e.java()))?;
    }
    if name.is_empty() {
        say!("Completed updating default config for {kind} in the cluster.")
    } else {
        say!("Completed updating config for {} {name}.", singular(kind))
    }
}

async fn check_loggers(cluster: &Cluster, name: &str, changes: &[(String, Option<String>)]) -> Result<(), Stop> {
    let known = cluster.configs(ConfigResourceType::BrokerLogger, name).await?;
    let unknown = |(logger, _): &&(String, Option<String>)| !known.iter().any(|k| k.name == *logger);
    let invalid: Vec<&str> = changes.iter().filter(unknown).map(|(logger, _)| logger.as_str()).collect();
    if invalid.is_empty() {
        return Ok(());
    }
    tell!("Invalid broker logger(s): {}", invalid.join(","));
    Err(Stop::Exit(1))
}

async fn describe(cluster: &Cluster, parsed: &Parsed, entities: &Entities) -> Result<(), Stop> {
    let Some(kind) = entities.types.first() else { return Ok(()) };
    if has_quotas(kind) {
        return quota::describe(cluster, entities).await;
    }
    let all = parsed.has("all");
    let names = match entities.names.first() {
        Some(name) => {
            if !all && !exists(cluster, kind, name).await? {
                return say!("The {} '{name}' doesn't exist and doesn't have dynamic config.", singular(kind));
            }
            vec![name.clone()]
        }
        None => every(cluster, kind).await?,
    };
    for name in names {
        if name.is_empty() {
            say!("Default configs for {kind} in the cluster are:")?;
        } else {
            let which = if all { "All" } else { "Dynamic" };
            say!("{which} configs for {} {name} are:", singular(kind))?;
        }
        let mut entries = cluster.configs(resource_type(kind), &name).await.map_err(|e| Stop::Failed(e.java()))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let source = own_source(kind, &name);
        entries.retain(|e| all || source.is_none_or(|s| e.config_source == s));
        entries.iter().try_for_each(|e| say!("{}", line(e)))?;
    }
    Ok(())
}

/// Whether an entity is there, as far as the original looks.
async fn exists(cluster: &Cluster, kind: &str, name: &str) -> Result<bool, Stop> {
    Ok(match kind {
        "brokers" | "broker-loggers" => {
            name.is_empty() || cluster.brokers().await?.iter().any(|id| id.to_string() == name)
        }
        _ => every(cluster, kind).await?.iter().any(|n| n == name),
    })
}

/// All entities of a type; for brokers also their defaults.
async fn every(cluster: &Cluster, kind: &str) -> Result<Vec<String>, Stop> {
    Ok(match kind {
        "brokers" | "broker-loggers" => {
            let mut names: Vec<String> = cluster.brokers().await?.iter().map(i32::to_string).collect();
            names.push(String::new());
            names
        }
        "client-metrics" => cluster.config_resources(ConfigResourceType::ClientMetrics).await?.unwrap_or_default(),
        "groups" => {
            let listed = cluster.admin.list_groups(&[], &[]).await.map_err(CallError::from)?;
            let mut names: Vec<String> = listed.into_iter().map(|g| g.group_id).collect();
            names.extend(cluster.config_resources(ConfigResourceType::Group).await?.unwrap_or_default());
            names.sort();
            names.dedup();
            names
        }
        _ => cluster.topic_names().await?,
    })
}

/// The source of the entries that were set on the entity itself.
fn own_source(kind: &str, name: &str) -> Option<i8> {
    match kind {
        "topics" => Some(1),
        "brokers" if name.is_empty() => Some(3),
        "brokers" => Some(2),
        "client-metrics" => Some(7),
        "groups" => Some(8),
        _ => None,
    }
}

fn source_name(source: i8) -> &'static str {
    match source {
        1 => "DYNAMIC_TOPIC_CONFIG",
        2 => "DYNAMIC_BROKER_CONFIG",
        3 => "DYNAMIC_DEFAULT_BROKER_CONFIG",
        4 => "STATIC_BROKER_CONFIG",
        5 => "DEFAULT_CONFIG",
        6 => "DYNAMIC_BROKER_LOGGER_CONFIG",
        7 => "DYNAMIC_CLIENT_METRICS_CONFIG",
        8 => "DYNAMIC_GROUP_CONFIG",
        _ => "UNKNOWN",
    }
}

fn line(entry: &ConfigEntry) -> String {
    let value = |v: &Option<String>| v.clone().unwrap_or_else(|| "null".to_owned());
    let synonyms = entry.synonyms.iter().map(|s| format!("{}:{}={}", source_name(s.source), s.name, value(&s.value)));
    let synonyms = synonyms.collect::<Vec<_>>().join(", ");
    let (name, is_sensitive) = (&entry.name, entry.is_sensitive);
    format!("  {name}={} sensitive={is_sensitive} synonyms={{{synonyms}}}", value(&entry.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_with_brackets() {
        let found = pairs("a=1, b.c=[x,y] ,d=").unwrap();
        let expected = [("a", "1"), ("b.c", "x,y"), ("d", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(found, BTreeMap::from(expected));
        assert!(pairs("a").is_err() && pairs("a=b=c").is_err());
    }

    #[test]
    fn command_lines() {
        let checked = |line: &str| -> Result<(), Stop> {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let parsed = TOOL.parse(&args)?;
            check(&parsed, &entities(&parsed)?)
        };
        let cases = [
            ("--alter --describe", "Command must include exactly one action: --describe, --alter"),
            ("--describe --topic t", "Either --bootstrap-server or --bootstrap-controller must be specified."),
            ("--bootstrap-server a:1 --describe", "At least one entity type must be specified"),
            (
                "--bootstrap-server a:1 --describe --entity-type topics --topic t",
                "Duplicate entity type(s) specified: topics",
            ),
            (
                "--bootstrap-server a:1 --describe --broker x",
                "The entity name for brokers must be a valid integer broker id, but it is: x",
            ),
            (
                "--bootstrap-server a:1 --alter --topic t",
                "At least one of --add-config, --add-config-file, or --delete-config must be specified with --alter",
            ),
            (
                "--bootstrap-server a:1 --alter --entity-type topics --add-config a=1",
                "An entity name must be specified with --alter of topics",
            ),
        ];
        for (line, sentence) in cases {
            assert_eq!(checked(line).unwrap_err().to_string(), sentence, "{line}");
        }
        let args = ["--entity-type", "brokers", "--entity-default"].map(str::to_owned);
        let found = entities(&TOOL.parse(&args).unwrap()).unwrap();
        assert_eq!((found.types, found.names), (vec!["brokers".to_owned()], vec![String::new()]));
    }

    #[test]
    fn singulars_are_the_originals() {
        assert_eq!(singular("topics"), "topic");
        assert_eq!(singular("client-metrics"), "client-metric");
    }
}
