//! What both group protocols have in common: a member's settings, who it is, the watch over its polls, its goodbye.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use caudal_protocol::ErrorCode;
use parking_lot::Mutex;

use super::assignor::Assignor;
use super::{classic, heartbeat};
use crate::client::Client;
use crate::config::{ClientConfig, ConfigError};
use crate::error::{Error, Result};

/// Settings of a member.
#[derive(Debug, Clone)]
pub(super) struct GroupConfig {
    pub group_id: String,
    pub instance_id: Option<String>,
    /// `max.poll.interval.ms`: how long others wait for this member to join, or to give up what it is to give up.
    pub rebalance_timeout_ms: i32,
    pub rack_id: String,
    /// `group.protocol=consumer` (KIP-848) in place of the classic protocol.
    pub is_next_generation: bool,
    /// `group.remote.assignor`; only of the consumer protocol, as the rest is only of the classic one.
    pub remote_assignor: Option<String>,
    pub session_timeout_ms: i32,
    pub heartbeat_interval: Duration,
    pub assignors: Vec<Assignor>,
}

impl GroupConfig {
    /// `None` without a `group.id`.
    pub(super) fn from_config(config: &ClientConfig) -> Result<Option<GroupConfig>> {
        let is_next_generation = config.get("group.protocol").eq_ignore_ascii_case("consumer");
        let foreign: &[&str] = if is_next_generation {
            &["partition.assignment.strategy", "heartbeat.interval.ms", "session.timeout.ms"]
        } else {
            &["group.remote.assignor"]
        };
        let set: Vec<&str> = foreign.iter().copied().filter(|name| config.is_set(name)).collect();
        if !set.is_empty() {
            let protocol = if is_next_generation { "consumer" } else { "classic" };
            return Err(ConfigError::OtherProtocol { names: set.join(", "), protocol }.into());
        }
        let Some(group_id) = config.non_empty("group.id") else { return Ok(None) };
        Ok(Some(GroupConfig {
            group_id: group_id.to_owned(),
            instance_id: config.non_empty("group.instance.id").map(str::to_owned),
            rebalance_timeout_ms: config.int32("max.poll.interval.ms"),
            rack_id: config.get("client.rack").to_owned(),
            is_next_generation,
            remote_assignor: config.non_empty("group.remote.assignor").map(str::to_owned),
            session_timeout_ms: config.int32("session.timeout.ms"),
            heartbeat_interval: config.duration("heartbeat.interval.ms"),
            assignors: Assignor::parse_list(config.get("partition.assignment.strategy"))?,
        }))
    }

    /// Cooperative only when every strategy is: members of a group must agree.
    pub(super) fn is_cooperative(&self) -> bool {
        self.assignors.iter().all(|a| a.is_cooperative())
    }

    /// For how long nobody may call poll.
    pub(super) fn max_idle(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.rebalance_timeout_ms).unwrap_or(0))
    }
}

/// Who this consumer is to the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// With the classic protocol empty until the coordinator gave one.
    pub member_id: String,
    /// The group's generation, or with the consumer protocol the member's epoch; -1 outside of the group.
    pub generation: i32,
}

impl Default for GroupMember {
    fn default() -> Self {
        GroupMember { member_id: String::new(), generation: -1 }
    }
}

/// What the group said last of who this consumer is: one for each time that it joins.
pub(super) type Identity = Arc<Mutex<GroupMember>>;

/// The number of partitions of each topic that exists, freshly asked for.
pub(super) async fn topic_sizes(client: &Client, names: &[String]) -> Result<BTreeMap<String, usize>> {
    let create = client.config().flag("allow.auto.create.topics");
    let failed =
        if names.is_empty() { Vec::new() } else { client.refresh_metadata(Some(names.to_vec()), create).await? };
    for (topic, code) in &failed {
        let code = ErrorCode::from_code(*code);
        if code == ErrorCode::InvalidTopicException {
            // No topic will ever have this name.
            return Err(Error::of_topic(topic, code));
        }
        tracing::warn!(topic, code = code.name(), "a topic that is subscribed to cannot be read yet");
    }
    let size = |name: &String| client.cached_topic(name).map(|t| (name.clone(), t.partitions.len()));
    Ok(names.iter().filter(|n| !failed.iter().any(|(f, _)| f == *n)).filter_map(size).collect())
}

/// Why heartbeats ended.
#[derive(Debug, Clone)]
pub(super) enum HeartbeatEnd {
    /// The group does not know this member any more: partitions are lost.
    Lost(Error),
    /// Nobody called poll for `max.poll.interval.ms`; the group was left.
    Idle,
    Fatal(Error),
}

/// When the consumer last polled, for its heartbeats.
#[derive(Debug)]
pub(super) struct PollClock {
    start: Instant,
    last_ms: AtomicU64,
}

impl Default for PollClock {
    fn default() -> Self {
        PollClock { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }
}

impl PollClock {
    pub(super) fn touch(&self) {
        let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    pub(super) fn idle(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }
}

/// Leaves the group when nobody has called poll for too long, so that others read what this member only holds. Returns
/// whether it did.
pub(super) async fn leave_if_idle(
    client: &Client,
    config: &GroupConfig,
    member: &GroupMember,
    clock: &PollClock,
) -> bool {
    if clock.idle() <= config.max_idle() {
        return false;
    }
    tracing::warn!(
        "leaving group '{}': poll was not called for max.poll.interval.ms = {} ms; raise it or lower max.poll.records",
        config.group_id,
        config.rebalance_timeout_ms
    );
    leave(client, config, member).await;
    true
}

/// Tells the coordinator that this member goes; it matters to nobody here whether that succeeds.
pub(super) async fn leave(client: &Client, config: &GroupConfig, member: &GroupMember) {
    if member.member_id.is_empty() {
        return;
    }
    let left = if config.is_next_generation {
        heartbeat::leave(client, config, member).await
    } else {
        classic::leave(client, config, member).await
    };
    if let Err(error) = left {
        tracing::debug!(%error, "the group did not hear the goodbye");
    }
}
