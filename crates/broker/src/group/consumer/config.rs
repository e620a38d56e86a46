//! The broker's `group.consumer.*` properties, read and checked.

use caudal_cluster::config::StaticConfig;

use super::assignor::ASSIGNORS;
use super::{ASSIGN_AT_ONCE_MOST, ConsumerConfig, MigrationPolicy};

fn list(values: &StaticConfig, name: &str) -> Vec<String> {
    let items = values.value(name).unwrap_or_default().split(',').map(str::trim);
    items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// Reads them.
pub fn consumer_config(values: &StaticConfig) -> ConsumerConfig {
    let int = |name: &str| i32::try_from(values.int(&format!("group.consumer.{name}"))).unwrap_or(i32::MAX);
    let range = |name: &str| (int(&format!("min.{name}")), int(&format!("max.{name}")));
    ConsumerConfig {
        assign_at_once_most: ASSIGN_AT_ONCE_MOST,
        node_id: 1,
        enabled: list(values, "group.coordinator.rebalance.protocols").iter().any(|protocol| protocol == "consumer"),
        session_timeout_ms: int("session.timeout.ms"),
        session_timeout_range_ms: range("session.timeout.ms"),
        heartbeat_interval_ms: int("heartbeat.interval.ms"),
        heartbeat_interval_range_ms: range("heartbeat.interval.ms"),
        assignment_interval_ms: int("assignment.interval.ms"),
        assignment_interval_range_ms: range("assignment.interval.ms"),
        max_size: usize::try_from(values.int("group.consumer.max.size")).unwrap_or(usize::MAX),
        assignors: list(values, "group.consumer.assignors"),
        migration: MigrationPolicy::of(values.value("group.consumer.migration.policy").unwrap_or_default()),
        regex_refresh_ms: values.int("group.consumer.regex.refresh.interval.ms"),
    }
}

/// What Kafka refuses to start with: the times of consumer groups must lie within their limits, and the assignors exist.
///
/// # Errors
/// The property, and why it cannot be served.
pub fn check_consumer_groups(values: &StaticConfig) -> Result<(), (&'static str, String)> {
    const TIMES: [[&str; 3]; 3] = [
        ["heartbeat.interval.ms", "group.consumer.heartbeat.interval.ms", "group.consumer.max.heartbeat.interval.ms"],
        ["session.timeout.ms", "group.consumer.session.timeout.ms", "group.consumer.max.session.timeout.ms"],
        [
            "assignment.interval.ms",
            "group.consumer.assignment.interval.ms",
            "group.consumer.max.assignment.interval.ms",
        ],
    ];
    for [suffix, key, max_key] in TIMES {
        let min_key = format!("group.consumer.min.{suffix}");
        let (min, value, max) = (values.int(&min_key), values.int(key), values.int(max_key));
        if max < min {
            return Err((max_key, format!("{max_key} must be greater than or equal to {min_key}")));
        }
        if value < min {
            return Err((key, format!("{key} must be greater than or equal to {min_key}, {min}")));
        }
        if value > max {
            return Err((key, format!("{key} must be less than or equal to {max_key}, {max}")));
        }
    }
    let (heartbeat, session) = ("group.consumer.heartbeat.interval.ms", "group.consumer.session.timeout.ms");
    if values.int(heartbeat) >= values.int(session) {
        return Err((heartbeat, format!("{heartbeat} must be less than {session}")));
    }
    let assignors = list(values, "group.consumer.assignors");
    if assignors.is_empty() || assignors.iter().any(|name| !ASSIGNORS.contains(&name.as_str())) {
        let reason = format!("the assignors are {}; classes of Java cannot be loaded", ASSIGNORS.join(" and "));
        return Err(("group.consumer.assignors", reason));
    }
    if !list(values, "group.coordinator.rebalance.protocols").iter().any(|protocol| protocol == "classic") {
        return Err(("group.coordinator.rebalance.protocols", "it must contain 'classic'".to_owned()));
    }
    Ok(())
}
