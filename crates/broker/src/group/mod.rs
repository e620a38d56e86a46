//! Groups and committed offsets, kept in `__consumer_offsets`: the classic protocol (KIP-62, KIP-345, KIP-394) here, the
//! consumer protocol (KIP-848) in [`consumer`].
//!
//! [`machine`] is one classic group as a pure state machine: calls in, [`Outcome`] out. [`coordinator`] holds the groups of
//! one partition of `__consumer_offsets`, their offsets and timers, still pure. [`record`] is what is persisted; the
//! coordinator's state is a fold over it, and [`undo`] takes back what could not be persisted. [`service`], with a [`shard`]
//! for each partition and the [`timers`], is the only part that knows about logs, time and tasks.

pub mod consumer;
pub mod coordinator;
pub mod machine;
pub mod member;
pub mod offsets_log;
pub mod overview;
pub mod record;
pub mod service;
#[cfg(test)]
mod service_tests;
mod shard;
mod statics;
#[cfg(test)]
mod tests;
mod timers;
pub mod transactional;
pub mod undo;

use caudal_protocol::messages::{ConsumerGroupHeartbeatResponse, JoinGroupResponse, SyncGroupResponse};

pub use coordinator::{Coordinator, GroupConfig};
pub use record::GroupRecord;

/// Names a request that waits for its answer; the caller chooses it and gets it back with the answer.
pub type Waiter = u64;

/// An answer to a request that may have had to wait.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Join(JoinGroupResponse),
    Sync(SyncGroupResponse),
    Consumer(Box<ConsumerGroupHeartbeatResponse>),
    /// Members are out of their group.
    Left,
}

/// What takes its time and is not to hold up anybody meanwhile.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// Regular expressions to match with all topics: [`Coordinator::regexes_resolved`] is to be told.
    Regexes(consumer::RegexJob),
    /// An assignment to compute: [`Coordinator::assigned`] is to be told.
    Assign(consumer::AssignJob),
}

/// What a step asks its caller to do: store `records`, then hand out `replies`.
///
/// Replies of a step that has records must wait until these are as durable as the broker promises.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub records: Vec<GroupRecord>,
    pub replies: Vec<(Waiter, Reply)>,
    /// The group and generation whose assignment is among the records: [`Coordinator::assignment_stored`] is to be told.
    pub assigned: Option<(String, i32)>,
    pub jobs: Vec<Job>,
    /// What is undone where the records cannot be stored, in the order of the steps that it was decided in.
    pub undo: Vec<undo::Undo>,
}

impl Outcome {
    pub(crate) fn reply(&mut self, waiter: Waiter, reply: Reply) {
        self.replies.push((waiter, reply));
    }
}
