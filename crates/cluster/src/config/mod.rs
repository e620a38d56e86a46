//! Every config there is, once: the broker, the command line and the reference all read these tables.

mod broker_table_core;
mod broker_table_other;
mod client_metrics_table;
mod definition;
mod effective;
mod group_table;
mod properties;
#[cfg(test)]
mod tests;
mod topic_table;

use std::net::IpAddr;

pub use client_metrics_table::{
    CLIENT_METRICS_CONFIGS, ClientMetricsConfigError, check_client_metrics_configs, client_metrics_config,
};
pub use definition::{BrokerSynonym, ConfigDef, ConfigType, DefaultValue, Importance, InvalidValue, Update, Validator};
pub use effective::{
    ConfigSource, Resolved, StaticConfig, StaticConfigError, Synonym, TopicConfigError, check_topic_configs,
};
pub use group_table::{GROUP_CONFIGS, GroupConfigError, check_group_configs, group_config};
pub use properties::{Properties, PropertiesError, Property, env_properties};
pub use topic_table::TOPIC_CONFIGS;

/// The topic config of this name.
pub fn topic_config(name: &str) -> Option<&'static ConfigDef> {
    TOPIC_CONFIGS.iter().find(|def| def.name == name)
}

/// All broker configs, internal ones too; not in the order of their names.
pub fn broker_configs() -> impl Iterator<Item = &'static ConfigDef> {
    broker_table_core::BROKER_CONFIGS_CORE.iter().chain(broker_table_other::BROKER_CONFIGS_OTHER)
}

/// Broker configs that are listed only where they are set.
pub fn unlisted_broker_configs() -> &'static [ConfigDef] {
    broker_table_core::BROKER_CONFIGS_UNLISTED
}

/// The broker config of this name.
pub fn broker_config(name: &str) -> Option<&'static ConfigDef> {
    broker_configs().chain(unlisted_broker_configs()).find(|def| def.name == name)
}

/// The broker configs that stand in for one that is not set, itself first; in Kafka's order.
pub fn broker_synonyms(name: &str) -> &'static [&'static str] {
    const GROUPS: &[&[&str]] = &[
        &["log.roll.ms", "log.roll.hours"],
        &["log.roll.jitter.ms", "log.roll.jitter.hours"],
        &["log.retention.ms", "log.retention.minutes", "log.retention.hours"],
        &["log.flush.interval.ms", "log.flush.scheduler.interval.ms"],
    ];
    for group in GROUPS {
        if let Some(at) = group.iter().position(|n| *n == name) {
            return if at == 0 { group } else { group.get(at..=at).unwrap_or_default() };
        }
    }
    broker_config(name).map_or(&[], |def| std::slice::from_ref(&def.name))
}

/// Reads `max.connections.per.ip.overrides`: `ADDRESS:COUNT,...`. Unlike Kafka's it takes no names of hosts.
///
/// # Errors
/// A sentence that names the item at fault.
pub fn connection_overrides(text: &str) -> Result<Vec<(IpAddr, usize)>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let read = |item: &str| {
        let (address, count) = item.rsplit_once(':').ok_or_else(|| format!("'{item}' is not ADDRESS:COUNT"))?;
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let ip: IpAddr = address.parse().map_err(|_| format!("'{address}' is not an IP address"))?;
        let count = count.trim().parse().map_err(|_| format!("'{count}' is not a number of connections"))?;
        Ok((ip.to_canonical(), count))
    };
    items.map(read).collect()
}

/// The known name that is nearest to a mistyped one, when one is near enough to be meant.
pub fn nearest_name<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 4).clamp(1, 6);
    let near = known.into_iter().map(|candidate| (edit_distance(name, candidate), candidate)).min()?;
    (near.0 <= limit).then_some(near.1)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let changed = diagonal + usize::from(ca != *cb);
            diagonal = *cell;
            left = changed.min(*cell + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}
