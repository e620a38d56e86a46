//! Configs of topics and brokers, changed while they are in use (KIP-339 and its predecessor).

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    alter_configs_response, incremental_alter_configs_response,
};
use caudal_protocol::records::metadata::{ClearElrRecord, ConfigRecord};

use super::{ApiError, Decision, Node, outcome};
use crate::config::{
    ConfigDef, ConfigType, TOPIC_CONFIGS, Update, broker_config, broker_configs, check_client_metrics_configs,
    check_group_configs, check_topic_configs, client_metrics_config, connection_overrides, group_config, nearest_name,
    topic_config,
};
use crate::image::{ConfigResource, ConfigResourceType, MetadataImage};
use crate::record::MetadataRecord;

/// What is done to one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Set,
    Delete,
    Append,
    Subtract,
}

impl Operation {
    fn from_code(code: i8) -> Option<Operation> {
        match code {
            0 => Some(Operation::Set),
            1 => Some(Operation::Delete),
            2 => Some(Operation::Append),
            3 => Some(Operation::Subtract),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Operation::Set => "SET",
            Operation::Delete => "DELETE",
            Operation::Append => "APPEND",
            Operation::Subtract => "SUBTRACT",
        }
    }
}

/// Decides an IncrementalAlterConfigs request, resource by resource.
pub fn incremental_alter_configs(
    image: &MetadataImage,
    node: &Node<'_>,
    request: &IncrementalAlterConfigsRequest,
) -> Decision<IncrementalAlterConfigsResponse> {
    let mut records = Vec::new();
    let mut responses = Vec::new();
    let repeated = repeated(request.resources.iter().map(|r| (r.resource_type, r.resource_name.as_str())));
    for resource in &request.resources {
        let names = resource.configs.iter().map(|c| c.name.as_str());
        let nulls = resource.configs.iter().filter(|c| c.value.is_none() && c.config_operation != 1);
        let result = once(&repeated, (resource.resource_type, resource.resource_name.as_str()))
            .and_then(|()| check_keys(names, nulls.map(|c| c.name.as_str())))
            .and_then(|()| target(image, node, resource.resource_type, &resource.resource_name))
            .and_then(|target| {
                let current = image.configs(&target).cloned().unwrap_or_default();
                let mut wanted = current.clone();
                let mut touched = BTreeSet::new();
                for config in &resource.configs {
                    let operation = Operation::from_code(config.config_operation).ok_or_else(|| {
                        let message = format!("Unknown operations type {}", config.config_operation);
                        ApiError::new(ErrorCode::InvalidRequest, message)
                    })?;
                    let value = config.value.as_deref().unwrap_or_default();
                    operate(node, &target, &mut wanted, &config.name, operation, value)?;
                    touched.insert(config.name.clone());
                }
                change(image, node, &target, &current, &wanted, &touched)
            })
            .map(|new| records.extend(new));
        let (error_code, error_message) = outcome(&result);
        responses.push(incremental_alter_configs_response::AlterConfigsResourceResponse {
            error_code,
            error_message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name.clone(),
        });
    }
    if request.validate_only {
        records.clear();
    }
    Decision { records, response: IncrementalAlterConfigsResponse { throttle_time_ms: 0, responses } }
}

/// Decides an AlterConfigs request: the configs given replace all that were set on the resource.
pub fn alter_configs(
    image: &MetadataImage,
    node: &Node<'_>,
    request: &AlterConfigsRequest,
) -> Decision<AlterConfigsResponse> {
    let mut records = Vec::new();
    let mut responses = Vec::new();
    let repeated = repeated(request.resources.iter().map(|r| (r.resource_type, r.resource_name.as_str())));
    for resource in &request.resources {
        let names = resource.configs.iter().map(|c| c.name.as_str());
        let nulls = resource.configs.iter().filter(|c| c.value.is_none());
        let result = once(&repeated, (resource.resource_type, resource.resource_name.as_str()))
            .and_then(|()| check_keys(names, nulls.map(|c| c.name.as_str())))
            .and_then(|()| target(image, node, resource.resource_type, &resource.resource_name))
            .and_then(|target| {
                let current = image.configs(&target).cloned().unwrap_or_default();
                let wanted: BTreeMap<String, String> =
                    resource.configs.iter().filter_map(|c| Some((c.name.clone(), c.value.clone()?))).collect();
                let touched = current.keys().chain(wanted.keys()).cloned().collect();
                change(image, node, &target, &current, &wanted, &touched)
            })
            .map(|new| records.extend(new));
        let (error_code, error_message) = outcome(&result);
        responses.push(alter_configs_response::AlterConfigsResourceResponse {
            error_code,
            error_message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name.clone(),
        });
    }
    if request.validate_only {
        records.clear();
    }
    Decision { records, response: AlterConfigsResponse { throttle_time_ms: 0, responses } }
}

/// The resources that a request lists more than once.
fn repeated<'a>(resources: impl Iterator<Item = (i8, &'a str)>) -> BTreeSet<(i8, &'a str)> {
    let mut seen = BTreeSet::new();
    resources.filter(|resource| !seen.insert(*resource)).collect()
}

fn once(repeated: &BTreeSet<(i8, &str)>, resource: (i8, &str)) -> Result<(), ApiError> {
    match repeated.contains(&resource) {
        false => Ok(()),
        true => Err(ApiError::new(ErrorCode::InvalidRequest, "Each resource must appear at most once.")),
    }
}

fn check_keys<'a>(names: impl Iterator<Item = &'a str>, nulls: impl Iterator<Item = &'a str>) -> Result<(), ApiError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ApiError::new(ErrorCode::InvalidRequest, "Error due to duplicate config keys"));
        }
    }
    let nulls: Vec<&str> = nulls.collect();
    match nulls.is_empty() {
        true => Ok(()),
        false => {
            let message = format!("Null value not supported for : {}", nulls.join(", "));
            Err(ApiError::new(ErrorCode::InvalidRequest, message))
        }
    }
}

/// The resource, if its configs can be changed here.
fn target(image: &MetadataImage, node: &Node<'_>, kind: i8, name: &str) -> Result<ConfigResource, ApiError> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidRequest, message);
    match ConfigResourceType::from_code(kind) {
        Some(ConfigResourceType::Topic) if name.is_empty() => {
            Err(invalid("Default topic resources are not allowed.".to_owned()))
        }
        Some(ConfigResourceType::Topic) => {
            super::check_topic_name(name)?;
            match image.topic(name) {
                Some(_) => Ok(ConfigResource::topic(name)),
                None => Err(ApiError::new(
                    ErrorCode::UnknownTopicOrPartition,
                    format!("The topic '{name}' does not exist."),
                )),
            }
        }
        Some(ConfigResourceType::Broker) if name.is_empty() => Ok(ConfigResource::all_brokers()),
        Some(ConfigResourceType::Broker) => match name.parse::<i32>() {
            Ok(id) if id == node.node_id => Ok(ConfigResource::broker(id)),
            Ok(id) => Err(invalid(format!("Unexpected broker id, expected {}, but received {id}", node.node_id))),
            Err(_) => Err(invalid(format!("Node id must be an integer, but it is: {name}"))),
        },
        Some(ConfigResourceType::Group) if name.is_empty() => {
            Err(invalid("Default group resources are not allowed.".to_owned()))
        }
        Some(ConfigResourceType::Group) => {
            Ok(ConfigResource { kind: ConfigResourceType::Group, name: name.to_owned() })
        }
        Some(ConfigResourceType::ClientMetrics) if name.is_empty() => {
            Err(invalid("Subscription name can't be empty".to_owned()))
        }
        Some(ConfigResourceType::ClientMetrics) => {
            Ok(ConfigResource { kind: ConfigResourceType::ClientMetrics, name: name.to_owned() })
        }
        Some(other) => Err(invalid(format!("{} configs are not supported by this broker", other.name()))),
        None => Err(invalid(format!("Unknown resource type {kind}"))),
    }
}

fn definition(target: &ConfigResource, name: &str) -> Option<&'static ConfigDef> {
    match target.kind {
        ConfigResourceType::Topic => topic_config(name),
        ConfigResourceType::Group => group_config(name),
        ConfigResourceType::ClientMetrics => client_metrics_config(name),
        _ => broker_config(name),
    }
}

fn operate(
    node: &Node<'_>,
    target: &ConfigResource,
    configs: &mut BTreeMap<String, String>,
    name: &str,
    operation: Operation,
    value: &str,
) -> Result<(), ApiError> {
    match operation {
        Operation::Set => {
            configs.insert(name.to_owned(), value.to_owned());
        }
        Operation::Delete => {
            configs.remove(name);
        }
        Operation::Append | Operation::Subtract => {
            let def = definition(target, name).filter(|def| def.kind == ConfigType::List).ok_or_else(|| {
                let message = format!("Can't {} to key {name} because its type is not LIST.", operation.name());
                ApiError::new(ErrorCode::InvalidConfig, message)
            })?;
            let synonym = def.synonyms.first().and_then(|s| node.config.value(s.name));
            let start = configs.get(name).map(String::as_str).or(synonym).or(def.default_value());
            let mut items: Vec<&str> =
                start.unwrap_or_default().split(',').map(str::trim).filter(|i| !i.is_empty()).collect();
            let given = value.split(',').map(str::trim);
            if operation == Operation::Append {
                let mut seen: BTreeSet<&str> = items.iter().copied().collect();
                items.extend(given.filter(|item| seen.insert(item)));
            } else {
                let gone: BTreeSet<&str> = given.collect();
                items.retain(|item| !gone.contains(item));
            }
            let joined = items.join(",");
            configs.insert(name.to_owned(), joined);
        }
    }
    Ok(())
}

/// Records that bring a resource from `current` to `wanted`, if that is allowed.
fn change(
    image: &MetadataImage,
    node: &Node<'_>,
    target: &ConfigResource,
    current: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
    touched: &BTreeSet<String>,
) -> Result<Vec<MetadataRecord>, ApiError> {
    if let Some((name, _)) = wanted.iter().find(|(_, value)| value.len() > i16::MAX as usize) {
        let message = format!(
            "The configuration value of {name} cannot be added because it exceeds the maximum value size of 32767 bytes."
        );
        return Err(ApiError::new(ErrorCode::InvalidConfig, message));
    }
    match target.kind {
        ConfigResourceType::Topic => {
            check_topic_configs(wanted, node.topic_default(image))
                .map_err(|e| ApiError::new(ErrorCode::InvalidConfig, e.to_string()))?;
        }
        ConfigResourceType::Group => {
            check_group_configs(wanted, node.config)
                .map_err(|e| ApiError::new(ErrorCode::InvalidConfig, e.to_string()))?;
        }
        ConfigResourceType::ClientMetrics => {
            check_client_metrics_configs(wanted).map_err(|error| {
                let code = match error.is_invalid_request() {
                    true => ErrorCode::InvalidRequest,
                    false => ErrorCode::InvalidConfig,
                };
                ApiError::new(code, error.to_string())
            })?;
        }
        _ => {
            check_broker_configs(node, target, wanted, touched)?;
            check_min_insync_replicas(image, target, wanted, touched)?;
            check_cleaner_configs(image, node, wanted)?;
            check_thread_configs(image, node, wanted)?;
        }
    }
    let mut records = Vec::new();
    for name in touched {
        let value = wanted.get(name);
        // A record that changes nothing is left out; a broker's makes it load the value again (KAFKA-14136).
        if value == current.get(name) && (target.kind != ConfigResourceType::Broker || value.is_none()) {
            continue;
        }
        records.push(MetadataRecord::Config(ConfigRecord {
            resource_type: target.kind.code(),
            resource_name: target.name.clone(),
            name: name.clone(),
            value: value.cloned(),
        }));
        if name == "min.insync.replicas" {
            let topic_name = if target.kind == ConfigResourceType::Topic { target.name.clone() } else { String::new() };
            records.push(ClearElrRecord { topic_name }.into());
        }
    }
    Ok(records)
}

/// Broker configs that the log cleaner follows while it runs.
const CLEANER_CONFIGS: &[&str] = &[
    "log.cleaner.backoff.ms",
    "log.cleaner.dedupe.buffer.size",
    "log.cleaner.io.buffer.load.factor",
    "log.cleaner.io.buffer.size",
    "log.cleaner.io.max.bytes.per.second",
    "log.cleaner.threads",
];

/// Broker configs that are looked up whenever they matter.
const LIVE_CONFIGS: &[&str] = &[
    "group.consumer.assignment.interval.ms",
    "max.connection.creation.rate",
    "max.connections",
    "max.connections.per.ip",
    "max.connections.per.ip.overrides",
    "producer.id.expiration.ms",
    "replica.alter.log.dirs.io.max.bytes.per.second",
    "transaction.partition.verification.enable",
    // There is nothing that they could slow down.
    "follower.replication.throttled.rate",
    "leader.replication.throttled.rate",
];

/// Sizes of Kafka's thread pools, which change by half or double at most.
const THREAD_CONFIGS: &[&str] = &[
    "background.threads",
    "num.io.threads",
    "num.network.threads",
    "num.recovery.threads.per.data.dir",
    "num.replica.fetchers",
];

/// Kafka takes these of one listener only.
const LISTENER_SECURITY_CONFIGS: &[&str] = &[
    "ssl.key.password",
    "ssl.keystore.certificate.chain",
    "ssl.keystore.key",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.keystore.type",
    "ssl.truststore.certificates",
    "ssl.truststore.location",
    "ssl.truststore.password",
    "ssl.truststore.type",
];

/// What stands for something that Kafka does without as well, unless it was started with it: security, tiered storage.
const ABSENT_PREFIXES: &[&str] = &["sasl.", "ssl.", "remote.", "log.local.retention.", "follower.fetch.last.tiered."];

/// Whether a broker config takes effect as soon as it is changed: those from which topics take their defaults do, those of
/// the log cleaner, and those of [`LIVE_CONFIGS`]. Others are kept and shown as in Kafka: what stands for something that is
/// not there, and sizes of pools, which are Kafka's way to do what is done here in another.
fn is_taken_while_running(name: &str) -> bool {
    let lists = [CLEANER_CONFIGS, LIVE_CONFIGS, THREAD_CONFIGS];
    lists.iter().any(|list| list.contains(&name))
        || ABSENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || TOPIC_CONFIGS.iter().any(|topic| topic.acts && topic.synonyms.iter().any(|s| s.name == name))
}

/// Whether a config is set for each broker of its own in Kafka, not for all at once.
fn is_per_broker(name: &str) -> bool {
    name.starts_with("sasl.") || name.starts_with("ssl.") || name == "principal.builder.class"
}

/// What a broker says where a config is one of several that it refuses for one reason.
fn refused_together(names: &[&str], reason: &str) -> Result<(), ApiError> {
    match names.is_empty() {
        true => Ok(()),
        false => Err(ApiError::new(ErrorCode::InvalidRequest, format!("{reason}: [{}]", names.join(", ")))),
    }
}

/// Kafka keeps names that it does not know, for the sake of plugins; nobody is told whose name is mistyped.
fn tell_unknown(name: &str) {
    match nearest_name(name, broker_configs().map(|def| def.name)) {
        Some(near) => {
            tracing::warn!("a broker config was set that has no effect: {name} is unknown; did you mean {near}?")
        }
        None => tracing::warn!("a broker config was set that has no effect: {name} is unknown"),
    }
}

/// Of what Kafka takes of one listener only.
const LISTENER_PREFIX: &str = "listener.name.";

const OVERRIDES: &str = "max.connections.per.ip.overrides";

fn check_broker_configs(
    node: &Node<'_>,
    target: &ConfigResource,
    wanted: &BTreeMap<String, String>,
    touched: &BTreeSet<String>,
) -> Result<(), ApiError> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidRequest, message);
    let (mut fixed, mut of_listeners, mut of_brokers) = (Vec::new(), Vec::new(), Vec::new());
    for name in touched {
        let Some(value) = wanted.get(name) else { continue };
        let Some(def) = broker_config(name) else {
            if name.starts_with(LISTENER_PREFIX) {
                return Err(invalid(format!("Listeners have no configs of their own on this broker: {name}")));
            }
            tell_unknown(name);
            continue;
        };
        if def.update != Update::Dynamic {
            fixed.push(name.as_str());
            continue;
        }
        if LISTENER_SECURITY_CONFIGS.contains(&name.as_str()) {
            of_listeners.push(name.as_str());
            continue;
        }
        if target.name.is_empty() && is_per_broker(name) {
            of_brokers.push(name.as_str());
        }
        let value = def.check(value).map_err(|e| invalid(e.to_string()))?;
        if name == "group.consumer.assignment.interval.ms" {
            check_assignment_interval(node, name, &value)?;
        }
        let overrides = || wanted.get(OVERRIDES).map(String::as_str).or_else(|| node.config.value(OVERRIDES));
        if name == "max.connections.per.ip" && value == "0" && overrides().is_none_or(|text| text.trim().is_empty()) {
            let message = format!("{name} can be set to zero only if {OVERRIDES} property is set.");
            return Err(invalid(message));
        }
        if name == OVERRIDES {
            connection_overrides(&value)
                .map_err(|why| invalid(format!("Invalid value {value} for configuration {name}: {why}")))?;
        }
        if !is_taken_while_running(name) && node.config.value(name) != Some(value.as_str()) {
            let reason = match def.acts {
                true => "this broker takes it at start only; set it in the properties file and restart".to_owned(),
                false => format!("this broker does not act on {name} and takes only its present value"),
            };
            return Err(invalid(format!("Invalid value {value} for configuration {name}: {reason}")));
        }
    }
    refused_together(&fixed, "Cannot update these configs dynamically")?;
    refused_together(
        &of_listeners,
        "These security configs can be dynamically updated only per-listener using the listener prefix",
    )?;
    refused_together(&of_brokers, "Cannot update these configs at default cluster level, broker id must be specified")?;
    Ok(())
}

/// With eligible leader replicas `min.insync.replicas` is a matter of the whole cluster (KIP-966), and always set.
fn check_min_insync_replicas(
    image: &MetadataImage,
    target: &ConfigResource,
    wanted: &BTreeMap<String, String>,
    touched: &BTreeSet<String>,
) -> Result<(), ApiError> {
    const NAME: &str = "min.insync.replicas";
    if image.feature(super::features::ELR_VERSION) == 0 {
        return Ok(());
    }
    let refuse = |sentence: &str| Err(ApiError::new(ErrorCode::InvalidConfig, sentence));
    match (target.name.is_empty(), wanted.contains_key(NAME)) {
        (true, false) if touched.contains(NAME) => {
            refuse("Cluster-level min.insync.replicas cannot be removed while ELR is enabled.")
        }
        (false, true) => refuse("Broker-level min.insync.replicas cannot be altered while ELR is enabled."),
        _ => Ok(()),
    }
}

fn check_assignment_interval(node: &Node<'_>, name: &str, value: &str) -> Result<(), ApiError> {
    let limit = |name: &str| node.config.int(name);
    let (min, max) = ("group.consumer.min.assignment.interval.ms", "group.consumer.max.assignment.interval.ms");
    let number = value.parse().unwrap_or(0);
    let message = if number < limit(min) {
        format!("{name} must be greater than or equal to {min}")
    } else if number > limit(max) {
        format!("{name} must be less than or equal to {max}")
    } else {
        return Ok(());
    };
    Err(ApiError::new(ErrorCode::InvalidRequest, message))
}

/// The number that is in effect on a node.
fn present_number(image: &MetadataImage, node: &Node<'_>, name: &str) -> i64 {
    let value = broker_config(name).and_then(|def| node.config.resolve_broker(image, node.node_id, def).value);
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Kafka's pools take half or double of their present size at most.
fn check_thread_configs(
    image: &MetadataImage,
    node: &Node<'_>,
    wanted: &BTreeMap<String, String>,
) -> Result<(), ApiError> {
    for name in THREAD_CONFIGS {
        let Some(threads) = wanted.get(*name).and_then(|value| value.trim().parse::<i64>().ok()) else { continue };
        let current = present_number(image, node, name);
        let reason = match threads {
            n if n < current / 2 => format!("value should be at least half the current value {current}"),
            n if n > current * 2 => format!("value should not be greater than double the current value {current}"),
            _ => continue,
        };
        let message = format!("Dynamic thread count update validation failed for {name}={threads}, {reason}");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    Ok(())
}

/// What Kafka's cleaner refuses while it runs: a number of threads that is less than half or more than double of the
/// present one, and too little memory for each.
fn check_cleaner_configs(
    image: &MetadataImage,
    node: &Node<'_>,
    wanted: &BTreeMap<String, String>,
) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::new(ErrorCode::InvalidRequest, message));
    let present = |name: &str| present_number(image, node, name);
    let number = |name: &str| wanted.get(name).and_then(|value| value.trim().parse::<i64>().ok());
    let (threads, buffer) = (number("log.cleaner.threads"), number("log.cleaner.dedupe.buffer.size"));
    if let Some(threads) = threads {
        let current = present("log.cleaner.threads");
        let reason = match threads {
            ..1 => "Log cleaner threads should be at least 1".to_owned(),
            n if n < current / 2 => {
                format!("Log cleaner threads cannot be reduced to less than half the current value {current}")
            }
            n if n > current * 2 => {
                format!("Log cleaner threads cannot be increased to more than double the current value {current}")
            }
            _ => String::new(),
        };
        if !reason.is_empty() {
            return invalid(reason);
        }
    }
    if threads.or(buffer).is_some() {
        let threads = threads.unwrap_or_else(|| present("log.cleaner.threads")).max(1);
        let buffer = buffer.unwrap_or_else(|| present("log.cleaner.dedupe.buffer.size"));
        if buffer / threads <= 1024 * 1024 {
            return invalid("log.cleaner.dedupe.buffer.size must be at least 1MB per cleaner thread.".to_owned());
        }
    }
    Ok(())
}
