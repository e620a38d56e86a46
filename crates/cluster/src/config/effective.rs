//! Which value counts: the topic's own, a broker's dynamic one, the file's, or the default; and all of them in order.

use std::collections::BTreeMap;

use super::{ConfigDef, ConfigType, InvalidValue, Properties, Property, Update, broker_synonyms};
use crate::image::{ConfigResource, MetadataImage};

/// Where a value was set (`DescribeConfigsResponse.ConfigSource`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConfigSource {
    Topic,
    DynamicBroker,
    DynamicDefaultBroker,
    StaticBroker,
    Default,
    ClientMetrics,
    Group,
}

impl ConfigSource {
    /// The number in a response.
    pub fn code(self) -> i8 {
        match self {
            ConfigSource::Topic => 1,
            ConfigSource::DynamicBroker => 2,
            ConfigSource::DynamicDefaultBroker => 3,
            ConfigSource::StaticBroker => 4,
            ConfigSource::Default => 5,
            ConfigSource::ClientMetrics => 7,
            ConfigSource::Group => 8,
        }
    }
}

/// One of the values that a config could take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synonym {
    pub name: String,
    pub value: String,
    pub source: ConfigSource,
}

/// A config's value, where it comes from, and what it would be otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    pub def: &'static ConfigDef,
    pub value: Option<String>,
    pub source: ConfigSource,
    /// As Kafka lists them: the value that counts first.
    pub synonyms: Vec<Synonym>,
}

/// A topic config that is refused; prints Kafka's sentence where Kafka refuses it too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicConfigError {
    #[error("Unknown topic config name: {0}")]
    Unknown(String),
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    #[error("conflict topic config setting min.compaction.lag.ms ({min}) > max.compaction.lag.ms ({max})")]
    CompactionLag { min: i64, max: i64 },
    #[error(
        "Tiered Storage functionality is disabled in the broker. Topic cannot be configured with remote log storage."
    )]
    RemoteStorage,
}

/// Checks all configs that a topic would have. `default`: the number that one has which the topic does not set. What only matters to
/// tiered storage is kept, as by a Kafka without it.
///
/// # Errors
/// The first config that is unknown or not allowed.
pub fn check_topic_configs(
    configs: &BTreeMap<String, String>,
    default: impl Fn(&str) -> Option<i64>,
) -> Result<(), TopicConfigError> {
    for (name, value) in configs {
        let def = super::topic_config(name).ok_or_else(|| TopicConfigError::Unknown(name.clone()))?;
        let value = def.check(value)?;
        if name == "remote.storage.enable" && value == "true" {
            return Err(TopicConfigError::RemoteStorage);
        }
    }
    let own = |name: &str| configs.get(name).and_then(|value| value.trim().parse().ok());
    let [min, max] = ["min.compaction.lag.ms", "max.compaction.lag.ms"].map(|name| (own(name), name));
    // What is wrong with the broker's own settings is not the topic's fault.
    if min.0.or(max.0).is_none() {
        return Ok(());
    }
    let min = min.0.or_else(|| default(min.1)).unwrap_or(0);
    let max = max.0.or_else(|| default(max.1)).unwrap_or(i64::MAX);
    if min > max { Err(TopicConfigError::CompactionLag { min, max }) } else { Ok(()) }
}

/// The broker configs that were set at start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StaticConfig {
    values: BTreeMap<String, String>,
}

impl StaticConfig {
    /// Takes the known keys of a file, each checked. The second value are warnings: unknown keys with the nearest known name,
    /// and keys on which nothing here acts with another value than their default. Keys of listeners (`listener.name.*`)
    /// and of plugins may be anything.
    ///
    /// # Errors
    /// A value that is not allowed: origin, key, value, what is allowed.
    pub fn from_properties(properties: &Properties) -> Result<(StaticConfig, Vec<String>), Box<StaticConfigError>> {
        let mut config = StaticConfig::default();
        let mut warnings = Vec::new();
        for property in properties.iter() {
            let Some(def) = super::broker_config(&property.key) else {
                warnings.push(unknown_key(&property.origin, &property.key));
                continue;
            };
            let value = def.check(&property.value).map_err(|e| {
                Box::new(StaticConfigError {
                    origin: property.origin.clone(),
                    key: property.key.clone(),
                    value: if def.is_sensitive() { "[hidden]".to_owned() } else { property.value.clone() },
                    reason: e.reason,
                    kind: def.kind,
                    allowed: def.validator.to_string(),
                })
            })?;
            if !def.acts && !value.is_empty() && def.default_form().as_deref() != Some(&value) {
                warnings.push(no_effect(property, def, &value));
            }
            config.values.insert(property.key.clone(), value);
        }
        // node.id and broker.id are one setting; Kafka lists both.
        for (from, to) in [("node.id", "broker.id"), ("broker.id", "node.id")] {
            if let Some(id) = config.values.get(from).cloned() {
                config.values.entry(to.to_owned()).or_insert(id);
            }
        }
        Ok((config, warnings))
    }

    /// Sets a value without checking it.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.values.insert(name.into(), value.into());
    }

    /// The value that was set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The value that was set, or the default.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.get(name).or_else(|| super::broker_config(name)?.default_value())
    }

    /// A number that was set, or the default; 0 if the config has none.
    pub fn int(&self, name: &str) -> i64 {
        self.value(name).and_then(|v| v.parse().ok()).unwrap_or(0)
    }

    /// A boolean that was set, or the default.
    pub fn bool(&self, name: &str) -> bool {
        self.value(name) == Some("true")
    }

    /// All that was set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Values of one broker config under one name, the one that counts first.
    fn values_of(&self, image: &MetadataImage, node_id: i32, name: &str, source: ConfigSource) -> Option<String> {
        let dynamic = |resource: ConfigResource| image.config(&resource, name).map(str::to_owned);
        match source {
            ConfigSource::Topic | ConfigSource::Group | ConfigSource::ClientMetrics => None,
            ConfigSource::DynamicBroker => dynamic(ConfigResource::broker(node_id)),
            ConfigSource::DynamicDefaultBroker => dynamic(ConfigResource::all_brokers()),
            ConfigSource::StaticBroker => self.get(name).map(str::to_owned),
            ConfigSource::Default => super::broker_config(name)?.default_value().map(str::to_owned),
        }
    }

    fn synonyms(&self, image: &MetadataImage, node_id: i32, names: &[&str]) -> Vec<Synonym> {
        const SOURCES: [ConfigSource; 4] = [
            ConfigSource::DynamicBroker,
            ConfigSource::DynamicDefaultBroker,
            ConfigSource::StaticBroker,
            ConfigSource::Default,
        ];
        let mut all = Vec::new();
        for source in SOURCES {
            for name in names {
                if let Some(value) = self.values_of(image, node_id, name, source) {
                    all.push(Synonym { name: (*name).to_owned(), value, source });
                }
            }
        }
        all
    }

    /// A broker config as DescribeConfigs shows it.
    pub fn resolve_broker(&self, image: &MetadataImage, node_id: i32, def: &'static ConfigDef) -> Resolved {
        let names = broker_synonyms(def.name);
        let all = self.synonyms(image, node_id, names);
        let synonyms: Vec<Synonym> = all.into_iter().skip_while(|s| s.name != def.name).collect();
        let first = synonyms.iter().find(|s| s.name == def.name);
        let value = first.map(|s| def.check(&s.value).unwrap_or_else(|_| s.value.clone()));
        let source = synonyms.first().map_or(ConfigSource::Default, |s| s.source);
        Resolved { def, value, source, synonyms }
    }

    /// A topic config as DescribeConfigs shows it. `own`: what is set on the topic.
    pub fn resolve_topic(
        &self,
        image: &MetadataImage,
        node_id: i32,
        own: Option<&BTreeMap<String, String>>,
        def: &'static ConfigDef,
    ) -> Resolved {
        self.resolve_own(image, node_id, own, def, ConfigSource::Topic)
    }

    /// A group config as DescribeConfigs shows it. `own`: what is set on the group.
    pub fn resolve_group(
        &self,
        image: &MetadataImage,
        node_id: i32,
        own: Option<&BTreeMap<String, String>>,
        def: &'static ConfigDef,
    ) -> Resolved {
        let mut resolved = self.resolve_own(image, node_id, own, def, ConfigSource::Group);
        if let (true, Some(default)) = (def.synonyms.is_empty(), def.default_value()) {
            let (name, value) = (def.name.to_owned(), default.to_owned());
            resolved.synonyms.push(Synonym { name, value, source: ConfigSource::Default });
        }
        resolved
    }

    /// A config of a client metrics subscription as DescribeConfigs shows it. `own`: what is set on the subscription.
    pub fn resolve_client_metrics(
        &self,
        image: &MetadataImage,
        node_id: i32,
        own: Option<&BTreeMap<String, String>>,
        def: &'static ConfigDef,
    ) -> Resolved {
        self.resolve_own(image, node_id, own, def, ConfigSource::ClientMetrics)
    }

    fn resolve_own(
        &self,
        image: &MetadataImage,
        node_id: i32,
        own: Option<&BTreeMap<String, String>>,
        def: &'static ConfigDef,
        source: ConfigSource,
    ) -> Resolved {
        let mut synonyms = match def.synonyms.first() {
            None => Vec::new(),
            Some(first) => {
                let all = self.synonyms(image, node_id, broker_synonyms(first.name));
                all.into_iter().skip_while(|s| s.name != first.name).collect()
            }
        };
        let own = own.and_then(|configs| configs.get(def.name));
        let value = match own {
            Some(value) => Some(def.check(value).unwrap_or_else(|_| value.clone())),
            None => self.topic_default(image, node_id, def),
        };
        if let (Some(_), Some(value)) = (own, &value) {
            let (name, value) = (def.name.to_owned(), value.clone());
            synonyms.insert(0, Synonym { name, value, source });
        }
        let source = synonyms.first().map_or(ConfigSource::Default, |s| s.source);
        Resolved { def, value, source, synonyms }
    }

    /// The value that a topic without its own has.
    fn topic_default(&self, image: &MetadataImage, node_id: i32, def: &ConfigDef) -> Option<String> {
        for synonym in def.synonyms {
            if let Some(found) = self.synonyms(image, node_id, &[synonym.name]).into_iter().next() {
                return match (synonym.factor, found.value.trim().parse::<i64>()) {
                    // A negative retention stands for none, in any unit.
                    (factor, Ok(n)) if factor != 1 => {
                        Some(if n < 0 { -1 } else { n.saturating_mul(factor) }.to_string())
                    }
                    _ => Some(def.check(&found.value).unwrap_or(found.value)),
                };
            }
        }
        def.default_value().map(str::to_owned)
    }

    /// The values of all topic configs for a topic, by name; what the log is configured with.
    pub fn topic_values(&self, image: &MetadataImage, node_id: i32, topic: &str) -> BTreeMap<String, String> {
        let own = image.configs(&ConfigResource::topic(topic));
        let value = |def: &'static ConfigDef| {
            let value = self.resolve_topic(image, node_id, own, def).value?;
            Some((def.name.to_owned(), value))
        };
        super::TOPIC_CONFIGS.iter().filter_map(value).collect()
    }
}

/// A bad value in a broker's settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to read {origin}: {key}={value} is not allowed: {reason} (a {} of {allowed})", kind.name())]
pub struct StaticConfigError {
    pub origin: String,
    pub key: String,
    pub value: String,
    pub reason: String,
    pub kind: ConfigType,
    pub allowed: String,
}

fn no_effect(property: &Property, def: &ConfigDef, value: &str) -> String {
    let (origin, key) = (&property.origin, &property.key);
    match def.default_value() {
        _ if def.is_sensitive() => format!("{origin}: {key} has no effect: this broker does not act on it"),
        None | Some("") => format!("{origin}: {key}={value} has no effect: this broker does not act on it"),
        Some(default) => {
            format!(
                "{origin}: {key}={value} has no effect: this broker does not act on it and goes by its default, {default}"
            )
        }
    }
}

fn unknown_key(origin: &str, key: &str) -> String {
    let known = super::broker_configs().filter(|def| def.update != Update::Internal).map(|def| def.name);
    match super::nearest_name(key, known) {
        Some(near) => format!("{origin}: unknown key {key} is ignored; did you mean {near}?"),
        None => format!("{origin}: unknown key {key} is ignored"),
    }
}
