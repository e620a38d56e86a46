//! The consumer protocol (KIP-848): the coordinator decides who reads what, members follow by heartbeats.
//!
//! [`group`] is the state of one group, a fold over [`record`]s. [`heartbeat`] decides what a heartbeat, a leave or a time-out
//! adds to it; [`member`] holds the steps of one member towards its target, [`assignor`] computes the targets, [`topics`]
//! looks at the metadata. [`classic`] lets members of the classic protocol take part, and turns groups of the one protocol
//! into groups of the other. [`coordinator`] is where the [`super::Coordinator`] of all groups calls these. All of it is pure.
//!
//! A change is applied when it is decided on, before it is stored; its answer waits until it is stored. When it cannot be
//! stored, it is taken back: members come again with the epoch they know. Of large groups the target is computed beside the
//! coordinator ([`assigning`]): members go on with what they have meanwhile.

pub mod assigning;
pub mod assignor;
pub mod classic;
#[cfg(test)]
mod classic_tests;
pub mod config;
pub mod coordinator;
pub mod deadlines;
pub mod group;
pub mod heartbeat;
pub mod member;
pub mod record;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
pub mod topics;

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::messages::ConsumerGroupHeartbeatResponse;
use caudal_protocol::{ErrorCode, Uuid};

pub use assigning::AssignJob;
pub use group::ConsumerGroup;
pub use record::ConsumerRecord;
pub use topics::RegexJob;

/// What a member may say of itself in bytes: it is stored, and one batch of `__consumer_offsets` takes as much in Kafka.
const DESCRIPTION_MOST_BYTES: usize = 1024 * 1024;

/// Members times partitions up to which a target is computed at once: that takes a millisecond or so.
const ASSIGN_AT_ONCE_MOST: usize = 50_000;

/// Partitions by topic.
pub type Partitions = BTreeMap<Uuid, BTreeSet<i32>>;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }

    pub fn response(self) -> ConsumerGroupHeartbeatResponse {
        ConsumerGroupHeartbeatResponse {
            error_code: self.code.code(),
            error_message: Some(self.message),
            ..ConsumerGroupHeartbeatResponse::default()
        }
    }
}

/// Refuses a member that says too much of itself, as Kafka does when it cannot store that.
fn check_description(bytes: usize) -> Result<(), Refusal> {
    if bytes <= DESCRIPTION_MOST_BYTES {
        return Ok(());
    }
    let message =
        format!("the subscription of the member has {bytes} bytes; at most {DESCRIPTION_MOST_BYTES} are stored");
    Err(Refusal::new(ErrorCode::UnknownServerError, message))
}

/// The time of a step: a monotonic clock, and milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    pub now_ms: i64,
    pub wall_ms: i64,
}

/// Which online conversions `group.consumer.migration.policy` allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationPolicy {
    pub upgrade: bool,
    pub downgrade: bool,
}

impl MigrationPolicy {
    /// Reads the config's value; its case does not matter.
    pub fn of(text: &str) -> MigrationPolicy {
        let is = |name: &str| text.eq_ignore_ascii_case(name);
        MigrationPolicy {
            upgrade: is("upgrade") || is("bidirectional"),
            downgrade: is("downgrade") || is("bidirectional"),
        }
    }

    /// Members of the classic protocol are not even let into a consumer group.
    pub fn is_disabled(self) -> bool {
        !self.upgrade && !self.downgrade
    }
}

/// The broker's `group.consumer.*` properties.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// `node.id`: whose dynamic configs count.
    pub node_id: i32,
    /// The protocol is among `group.coordinator.rebalance.protocols`.
    pub enabled: bool,
    pub session_timeout_ms: i32,
    /// `group.consumer.min.session.timeout.ms` and its `max`, inclusive: what a group's own config is held to.
    pub session_timeout_range_ms: (i32, i32),
    pub heartbeat_interval_ms: i32,
    pub heartbeat_interval_range_ms: (i32, i32),
    /// How long a target assignment stands at least; members that come together are assigned together.
    pub assignment_interval_ms: i32,
    pub assignment_interval_range_ms: (i32, i32),
    pub max_size: usize,
    /// The first one is the default.
    pub assignors: Vec<String>,
    pub migration: MigrationPolicy,
    pub regex_refresh_ms: i64,
    /// Members times partitions up to which a target is computed at once.
    pub assign_at_once_most: usize,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        ConsumerConfig {
            node_id: 1,
            enabled: true,
            session_timeout_ms: 45_000,
            session_timeout_range_ms: (45_000, 60_000),
            heartbeat_interval_ms: 5_000,
            heartbeat_interval_range_ms: (5_000, 15_000),
            assignment_interval_ms: 1_000,
            assignment_interval_range_ms: (0, 15_000),
            max_size: i32::MAX as usize,
            assignors: assignor::ASSIGNORS.iter().map(|name| (*name).to_owned()).collect(),
            migration: MigrationPolicy { upgrade: true, downgrade: true },
            regex_refresh_ms: 600_000,
            assign_at_once_most: ASSIGN_AT_ONCE_MOST,
        }
    }
}

impl ConsumerConfig {
    pub fn default_assignor(&self) -> &str {
        self.assignors.first().map_or("uniform", String::as_str)
    }
}

/// What a group obeys: its own configs over the broker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupTimes {
    pub session_timeout_ms: i64,
    pub heartbeat_interval_ms: i32,
    pub assignment_interval_ms: i64,
}
