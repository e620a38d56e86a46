//! Server-side assignors: who of a group's members is to have which partitions. Plain functions of the members'
//! subscriptions and what they had; the same as Apache Kafka's of these names, but for the order in which Java's hash
//! tables would list members and topics: here it is that of their ids.

mod heterogeneous;
mod range;
mod uniform;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::Uuid;

use super::Partitions;

/// The assignors by name, in the order of `group.consumer.assignors`' default.
pub const ASSIGNORS: &[&str] = &["uniform", "range"];

/// A member as the assignors see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscriber {
    pub instance_id: Option<String>,
    /// The topics that it subscribes to and that exist.
    pub topics: BTreeSet<Uuid>,
    /// Its part of the last target assignment.
    pub assigned: Partitions,
}

/// Members by id.
pub type Subscribers = BTreeMap<String, Subscriber>;

/// What everybody is to have: every partition of every topic that somebody subscribes to is with exactly one member.
/// `partition_count` of each of those topics.
pub fn assign(
    assignor: &str,
    members: &Subscribers,
    partition_count: &BTreeMap<Uuid, i32>,
) -> BTreeMap<String, Partitions> {
    let Some(first) = members.values().next() else { return BTreeMap::new() };
    let homogeneous = members.values().all(|member| member.topics == first.topics);
    match assignor {
        "range" => range::assign(members, partition_count),
        _ if homogeneous => uniform::assign(members, &first.topics, partition_count),
        _ => heterogeneous::assign(members, partition_count),
    }
}
