//! The options of the Kafka source, with Spark's names, defaults and refusals.

use std::collections::BTreeMap;

use caudal_client::{ClientConfig, Topics};
use caudal_protocol::TopicPartition;

use super::offsets::{EARLIEST, KafkaOffsets};
use crate::error::EngineError;
use crate::options::{Options, invalid};

const KNOWN: [&str; 22] = [
    "subscribe",
    "subscribePattern",
    "assign",
    "startingOffsets",
    "startingTimestamp",
    "startingOffsetsByTimestamp",
    "startingOffsetsByTimestampStrategy",
    "endingOffsets",
    "endingTimestamp",
    "endingOffsetsByTimestamp",
    "failOnDataLoss",
    "maxOffsetsPerTrigger",
    "minOffsetsPerTrigger",
    "maxTriggerDelay",
    "minPartitions",
    "groupIdPrefix",
    "includeHeaders",
    "checkpointLocation",
    // Tuning of Spark's own consumer pool, which does not exist here.
    "kafkaConsumer.pollTimeoutMs",
    "fetchOffset.numRetries",
    "fetchOffset.retryIntervalMs",
    // The topic of a table that is both read and written.
    "topic",
];

/// Which partitions are read.
#[derive(Debug, Clone)]
pub(super) enum Subscription {
    Subscribe(Vec<String>),
    Pattern(String, Topics),
    Assign(Vec<TopicPartition>),
}

/// Where reading starts or ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Limit {
    Earliest,
    Latest,
    Offsets(KafkaOffsets),
    /// Milliseconds since the epoch, for every partition.
    Timestamp(i64),
    Timestamps(KafkaOffsets),
}

/// Everything the user chose.
#[derive(Debug, Clone)]
pub(super) struct KafkaOptions {
    pub(super) client: ClientConfig,
    pub(super) subscription: Subscription,
    pub(super) start: Limit,
    pub(super) end: Limit,
    /// A start time after the last record means the end, rather than an error.
    pub(super) late_start_is_latest: bool,
    pub(super) fail_on_data_loss: bool,
    pub(super) max_offsets: Option<u64>,
    pub(super) min_offsets: Option<u64>,
    pub(super) max_trigger_delay_ms: u64,
    pub(super) min_partitions: Option<u64>,
    pub(super) group_id: Option<String>,
    pub(super) group_id_prefix: Option<String>,
    pub(super) include_headers: bool,
}

impl KafkaOptions {
    /// `bounded`: for a batch read, with an end; its start defaults to the earliest offset.
    pub(super) fn new(options: &Options, bounded: bool) -> Result<Self, EngineError> {
        options.check_known("kafka", &KNOWN, &["kafka."])?;
        let subscription = subscription(options)?;
        let start = limit(options, "starting", if bounded { Limit::Earliest } else { Limit::Latest })?;
        let end = limit(options, "ending", Limit::Latest)?;
        if bounded && start == Limit::Latest {
            return Err(invalid("starting offset can't be latest for batch queries on Kafka"));
        }
        if bounded && end == Limit::Earliest {
            return Err(invalid("ending offset can't be earliest for batch queries on Kafka"));
        }
        let ending = ["endingOffsets", "endingTimestamp", "endingOffsetsByTimestamp"];
        if !bounded && ending.iter().any(|name| options.get(name).is_some()) {
            return Err(invalid("ending offset not valid in streaming queries"));
        }
        let strategy = options.get("startingOffsetsByTimestampStrategy").unwrap_or("error").to_lowercase();
        if !["error", "latest"].contains(&strategy.as_str()) {
            return Err(invalid(format!(
                "Invalid value '{strategy}' for option 'startingOffsetsByTimestampStrategy', must be error or latest"
            )));
        }
        let max_offsets = options.positive("maxOffsetsPerTrigger")?;
        let min_offsets = options.positive("minOffsetsPerTrigger")?;
        if let (Some(min), Some(max)) = (min_offsets, max_offsets)
            && min > max
        {
            return Err(invalid(format!(
                "The value of minOffsetPerTrigger({min}) is higher than the maxOffsetsPerTrigger({max})."
            )));
        }
        let min_partitions =
            options.positive("minPartitions").map_err(|_| invalid("minPartitions must be positive"))?;
        Ok(KafkaOptions {
            client: client_config(options)?,
            subscription,
            start,
            end,
            late_start_is_latest: strategy == "latest",
            fail_on_data_loss: options.bool("failOnDataLoss")?.unwrap_or(true),
            max_offsets,
            min_offsets,
            max_trigger_delay_ms: options.duration_ms("maxTriggerDelay")?.unwrap_or(900_000),
            min_partitions,
            group_id: options.get("kafka.group.id").map(str::to_owned),
            group_id_prefix: options.get("groupIdPrefix").map(str::to_owned),
            include_headers: options.bool("includeHeaders")?.unwrap_or(false),
        })
    }

    pub(super) fn topics(&self) -> Topics {
        match &self.subscription {
            Subscription::Subscribe(names) => Topics::Names(names.clone()),
            Subscription::Pattern(_, topics) => topics.clone(),
            Subscription::Assign(partitions) => {
                let mut names: Vec<String> = partitions.iter().map(|tp| tp.topic.clone()).collect();
                names.dedup();
                Topics::Names(names)
            }
        }
    }

    /// Spark's description of the source.
    pub(super) fn description(&self) -> String {
        let what = match &self.subscription {
            Subscription::Subscribe(names) => format!("Subscribe[{}]", names.join(", ")),
            Subscription::Pattern(pattern, _) => format!("SubscribePattern[{pattern}]"),
            Subscription::Assign(partitions) => {
                let names: Vec<String> = partitions.iter().map(ToString::to_string).collect();
                format!("Assign[{}]", names.join(", "))
            }
        };
        format!("KafkaV2[{what}]")
    }
}

fn subscription(options: &Options) -> Result<Subscription, EngineError> {
    const WAYS: &str = "subscribe, subscribepattern, assign. See the docs for more details.";
    let given: Vec<(&str, &str)> = ["subscribe", "subscribePattern", "assign"]
        .iter()
        .filter_map(|name| options.get(name).map(|value| (*name, value)))
        .collect();
    let (name, value) = match given.as_slice() {
        [one] => *one,
        [] => {
            return Err(invalid(format!("One of the following options must be specified for Kafka source: {WAYS}")));
        }
        _ => {
            return Err(invalid(format!(
                "Only one of the following options can be specified for Kafka source: {WAYS}"
            )));
        }
    };
    match name {
        "subscribe" => {
            let mut topics: Vec<String> =
                value.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect();
            topics.sort();
            topics.dedup();
            if topics.is_empty() {
                return Err(invalid(format!(
                    "No topics to subscribe to as specified value for option 'subscribe' is '{value}'"
                )));
            }
            Ok(Subscription::Subscribe(topics))
        }
        "subscribePattern" => {
            let topics =
                Topics::pattern(value.trim()).map_err(|e| invalid(format!("option 'subscribePattern': {e}")))?;
            Ok(Subscription::Pattern(value.trim().to_owned(), topics))
        }
        _ => {
            let none = || {
                invalid(format!(
                    "No topicpartitions to assign as specified value for option 'assign' is '{value}'; \
                     expected e.g. {{\"topicA\":[0,1],\"topicB\":[2]}}"
                ))
            };
            let topics: BTreeMap<String, Vec<i32>> = serde_json::from_str(value).map_err(|_| none())?;
            let mut partitions: Vec<TopicPartition> = topics
                .into_iter()
                .flat_map(|(topic, ids)| ids.into_iter().map(move |id| TopicPartition::new(topic.clone(), id)))
                .collect();
            partitions.sort();
            partitions.dedup();
            if partitions.is_empty() { Err(none()) } else { Ok(Subscription::Assign(partitions)) }
        }
    }
}

/// `startingTimestamp` before `startingOffsetsByTimestamp` before `startingOffsets`, as Spark ranks them.
fn limit(options: &Options, prefix: &str, default: Limit) -> Result<Limit, EngineError> {
    let timestamp = format!("{prefix}Timestamp");
    if let Some(ms) = options.parse::<i64>(&timestamp, "a time in milliseconds since the epoch")? {
        return Ok(Limit::Timestamp(ms));
    }
    let by_timestamp = format!("{prefix}OffsetsByTimestamp");
    if let Some(json) = options.get(&by_timestamp) {
        return Ok(Limit::Timestamps(KafkaOffsets::from_json(json, &format!("option '{by_timestamp}'"))?));
    }
    let name = format!("{prefix}Offsets");
    match options.get(&name).map(|text| (text, text.trim().to_lowercase())) {
        None => Ok(default),
        Some((_, word)) if word == "earliest" => Ok(Limit::Earliest),
        Some((_, word)) if word == "latest" => Ok(Limit::Latest),
        Some((json, _)) if json.trim_start().starts_with('{') => {
            let offsets = KafkaOffsets::from_json(json, &format!("option '{name}'"))?;
            if let Some((tp, offset)) = offsets.0.iter().find(|(_, offset)| **offset < EARLIEST) {
                return Err(invalid(format!(
                    "option '{name}' has offset {offset} for {tp}; use -2 (earliest), -1 (latest) or an offset"
                )));
            }
            if prefix == "ending" && offsets.0.values().any(|o| *o == EARLIEST) {
                return Err(invalid("ending offset can't be earliest (-2) for a partition"));
            }
            Ok(Limit::Offsets(offsets))
        }
        Some((text, _)) => Err(invalid(format!(
            "Invalid value '{text}' for option '{name}', must be earliest, latest or JSON such as {{\"topicA\":{{\"0\":23,\"1\":-2}}}}"
        ))),
    }
}

/// The `kafka.*` options as the client's properties.
pub(crate) fn client_config(options: &Options) -> Result<ClientConfig, EngineError> {
    let refused = [
        ("auto.offset.reset", "Set the source option 'startingOffsets' to 'earliest' or 'latest' instead."),
        ("key.deserializer", "Keys are read as byte arrays; use column expressions to deserialize them."),
        ("value.deserializer", "Values are read as byte arrays; use column expressions to deserialize them."),
        ("enable.auto.commit", "Progress is kept in the checkpoint."),
        ("interceptor.classes", "There are no interceptors."),
    ];
    if options.get("kafka.bootstrap.servers").is_none() {
        return Err(invalid("Option 'kafka.bootstrap.servers' must be specified for configuring Kafka consumer"));
    }
    let mut config = ClientConfig::default();
    for (name, value) in options.iter() {
        let lower = name.to_lowercase();
        let Some(property) = lower.strip_prefix("kafka.") else { continue };
        if let Some((_, instead)) = refused.iter().find(|(r, _)| *r == property) {
            return Err(invalid(format!("Kafka option '{property}' is not supported. {instead}")));
        }
        config.put(property, value.to_owned()).map_err(|e| invalid(format!("option '{name}': {e}")))?;
    }
    Ok(config)
}
