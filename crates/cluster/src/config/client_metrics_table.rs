//! The configs of client metrics subscriptions (KIP-714). Nothing here receives what clients would push, so that, as with a Kafka
//! without a receiver, no client is asked to; the subscriptions are kept for a broker that has one.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use super::InvalidValue;
use super::definition::{ConfigDef, config_table};

config_table! {
    /// In the order of their names.
    CLIENT_METRICS_CONFIGS:
    "interval.ms" Int "300000" Any Medium dynamic acts []
        "Milliseconds between two pushes of a client.";
    "match" List "" Any Medium dynamic acts []
        "Which clients are meant: KEY=PATTERN for client_id, client_instance_id, client_software_name, client_software_version, client_source_address or client_source_port.";
    "metrics" List "" Any Medium dynamic acts []
        "Prefixes of the names of the metrics that are wanted; * for all.";
}

const MATCH_KEYS: [&str; 6] = [
    "client_instance_id",
    "client_id",
    "client_software_name",
    "client_software_version",
    "client_source_address",
    "client_source_port",
];

/// A subscription that is refused; prints Kafka's sentence where Kafka refuses it too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientMetricsConfigError {
    #[error("Unknown client metrics configuration: {0}")]
    Unknown(String),
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    #[error("Invalid value {0} for interval.ms, interval must be between 100 and 3600000 (1 hour)")]
    Interval(i64),
    #[error("Illegal client matching pattern: {0}")]
    Pattern(String),
    #[error("Configuration '{0}' values must not be duplicated.")]
    Repeated(String),
}

impl ClientMetricsConfigError {
    /// Whether the request makes no sense, rather than a value.
    pub fn is_invalid_request(&self) -> bool {
        matches!(self, ClientMetricsConfigError::Unknown(_) | ClientMetricsConfigError::Interval(_))
    }
}

/// The config of a subscription of this name.
pub fn client_metrics_config(name: &str) -> Option<&'static ConfigDef> {
    CLIENT_METRICS_CONFIGS.iter().find(|def| def.name == name)
}

/// Checks all configs that a subscription would have.
///
/// # Errors
/// The first config that is unknown or not allowed.
pub fn check_client_metrics_configs(configs: &BTreeMap<String, String>) -> Result<(), ClientMetricsConfigError> {
    for (name, value) in configs {
        let def = client_metrics_config(name).ok_or_else(|| ClientMetricsConfigError::Unknown(name.clone()))?;
        let value = def.check(value)?;
        if name == "interval.ms" {
            let interval_ms = value.parse().unwrap_or(0);
            if !(100..=3_600_000).contains(&interval_ms) {
                return Err(ClientMetricsConfigError::Interval(interval_ms));
            }
            continue;
        }
        let mut seen = BTreeSet::new();
        let items = value.split(',').filter(|item| !item.is_empty());
        for item in items {
            if !seen.insert(item) {
                return Err(ClientMetricsConfigError::Repeated(name.clone()));
            }
            if name == "match" && !is_pattern(item) {
                return Err(ClientMetricsConfigError::Pattern(item.to_owned()));
            }
        }
    }
    Ok(())
}

/// `KEY=PATTERN`. Of the patterns of Java those are refused that look around or back.
fn is_pattern(text: &str) -> bool {
    let Some((key, pattern)) = text.split_once('=') else { return false };
    MATCH_KEYS.contains(&key.trim())
        && !pattern.contains('=')
        && !pattern.is_empty()
        && Regex::new(pattern.trim()).is_ok()
}
