//! The group configs of Apache Kafka 4.3 (KIP-848, KIP-932, KIP-1071): what a single group can be given, with the broker
//! config that is its default. Share and streams groups are not served, so what belongs to them does not act.

use std::collections::BTreeMap;

use super::definition::{ConfigDef, config_table};
use super::{InvalidValue, StaticConfig};

config_table! {
    /// In the order of their names.
    GROUP_CONFIGS:
    "consumer.assignment.interval.ms" Int "1000" AtLeast(0) Medium dynamic acts ["group.consumer.assignment.interval.ms" * 1]
        "Milliseconds between two assignments of the group at the least.";
    "consumer.heartbeat.interval.ms" Int "5000" AtLeast(1) Medium dynamic acts ["group.consumer.heartbeat.interval.ms" * 1]
        "Milliseconds between the heartbeats of a member.";
    "consumer.session.timeout.ms" Int "45000" AtLeast(1) Medium dynamic acts ["group.consumer.session.timeout.ms" * 1]
        "Milliseconds after which a silent member is taken for gone.";
    "share.assignment.interval.ms" Int "1000" AtLeast(0) Medium dynamic idle ["group.share.assignment.interval.ms" * 1]
        "";
    "share.auto.offset.reset" String "latest" Any Medium dynamic idle []
        "";
    "share.delivery.count.limit" Int "5" AtLeast(2) Medium dynamic idle ["group.share.delivery.count.limit" * 1]
        "";
    "share.heartbeat.interval.ms" Int "5000" AtLeast(1) Medium dynamic idle ["group.share.heartbeat.interval.ms" * 1]
        "";
    "share.isolation.level" String "read_uncommitted" OneOf(&["read_committed", "read_uncommitted"]) Medium dynamic idle []
        "";
    "share.partition.max.record.locks" Int "2000" AtLeast(100) Medium dynamic idle ["group.share.partition.max.record.locks" * 1]
        "";
    "share.record.lock.duration.ms" Int "30000" AtLeast(1000) Medium dynamic idle ["group.share.record.lock.duration.ms" * 1]
        "";
    "share.renew.acknowledge.enable" Boolean "true" Any Medium dynamic idle []
        "";
    "share.session.timeout.ms" Int "45000" AtLeast(1) Medium dynamic idle ["group.share.session.timeout.ms" * 1]
        "";
    "streams.assignment.interval.ms" Int "1000" AtLeast(0) Medium dynamic idle ["group.streams.assignment.interval.ms" * 1]
        "";
    "streams.heartbeat.interval.ms" Int "5000" AtLeast(1) Medium dynamic idle ["group.streams.heartbeat.interval.ms" * 1]
        "";
    "streams.initial.rebalance.delay.ms" Int "3000" AtLeast(0) Medium dynamic idle ["group.streams.initial.rebalance.delay.ms" * 1]
        "";
    "streams.num.standby.replicas" Int "0" AtLeast(0) Medium dynamic idle ["group.streams.num.standby.replicas" * 1]
        "";
    "streams.session.timeout.ms" Int "45000" AtLeast(1) Medium dynamic idle ["group.streams.session.timeout.ms" * 1]
        "";
}

/// A group config that is refused; prints Kafka's sentence where Kafka refuses it too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupConfigError {
    #[error("Unknown group config name: {0}")]
    Unknown(String),
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    #[error("{name} must be {relation} {limit}")]
    Limit { name: String, relation: &'static str, limit: String },
    #[error(
        "Invalid value {value} for configuration {name}: this broker does not act on {name} and takes only {default}"
    )]
    NoEffect { name: &'static str, value: String, default: String },
}

/// The group config of this name.
pub fn group_config(name: &str) -> Option<&'static ConfigDef> {
    GROUP_CONFIGS.iter().find(|def| def.name == name)
}

/// Checks all configs that a group would have; `broker` sets the limits.
///
/// # Errors
/// The first config that is unknown, not allowed, or would have no effect here.
pub fn check_group_configs(configs: &BTreeMap<String, String>, broker: &StaticConfig) -> Result<(), GroupConfigError> {
    for (name, value) in configs {
        let def = group_config(name).ok_or_else(|| GroupConfigError::Unknown(name.clone()))?;
        let value = def.check(value)?;
        let default = default_of(def, broker);
        if !def.acts && value != default {
            return Err(GroupConfigError::NoEffect { name: def.name, value, default });
        }
    }
    for name in ["consumer.heartbeat.interval.ms", "consumer.session.timeout.ms", "consumer.assignment.interval.ms"] {
        let Some(value) = configs.get(name).and_then(|value| value.trim().parse::<i64>().ok()) else { continue };
        let suffix = name.trim_start_matches("consumer.");
        let (min, max) = (format!("group.consumer.min.{suffix}"), format!("group.consumer.max.{suffix}"));
        let outside = |relation, limit| Err(GroupConfigError::Limit { name: name.to_owned(), relation, limit });
        if value < broker.int(&min) {
            return outside("greater than or equal to", min);
        }
        if value > broker.int(&max) {
            return outside("less than or equal to", max);
        }
    }
    let effective = |name: &str, default: &str| {
        let own = configs.get(name).and_then(|value| value.trim().parse().ok());
        own.unwrap_or_else(|| broker.int(default))
    };
    let heartbeat = effective("consumer.heartbeat.interval.ms", "group.consumer.heartbeat.interval.ms");
    if effective("consumer.session.timeout.ms", "group.consumer.session.timeout.ms") <= heartbeat {
        return Err(GroupConfigError::Limit {
            name: "consumer.session.timeout.ms".to_owned(),
            relation: "greater than",
            limit: "consumer.heartbeat.interval.ms".to_owned(),
        });
    }
    Ok(())
}

fn default_of(def: &ConfigDef, broker: &StaticConfig) -> String {
    let synonym = def.synonyms.first().and_then(|synonym| broker.value(synonym.name));
    synonym.or(def.default_value()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_configs_are_held_to_the_brokers_limits() {
        let broker = StaticConfig::default();
        let check = |configs: &[(&str, &str)]| {
            let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            check_group_configs(&configs, &broker).map_err(|error| error.to_string())
        };
        assert_eq!(
            check(&[("consumer.session.timeout.ms", "50000"), ("consumer.heartbeat.interval.ms", "6000")]),
            Ok(())
        );
        assert_eq!(
            check(&[("consumer.session.timeout.ms", "30000")]).unwrap_err(),
            "consumer.session.timeout.ms must be greater than or equal to group.consumer.min.session.timeout.ms"
        );
        assert_eq!(
            check(&[("consumer.heartbeat.interval.ms", "20000")]).unwrap_err(),
            "consumer.heartbeat.interval.ms must be less than or equal to group.consumer.max.heartbeat.interval.ms"
        );
        assert_eq!(check(&[("x", "1")]).unwrap_err(), "Unknown group config name: x");
        assert!(check(&[("consumer.session.timeout.ms", "soon")]).unwrap_err().contains("Not a number of type INT"));
        assert!(check(&[("share.session.timeout.ms", "50000")]).unwrap_err().contains("does not act on"));
        assert_eq!(check(&[("share.session.timeout.ms", "45000")]), Ok(()));
    }

    #[test]
    fn defaults_are_the_brokers() {
        for def in GROUP_CONFIGS {
            if let Some(synonym) = def.synonyms.first() {
                let broker = super::super::broker_config(synonym.name).unwrap_or_else(|| panic!("{}", synonym.name));
                assert_eq!(broker.default_value(), def.default_value(), "{}", def.name);
            }
        }
    }
}
