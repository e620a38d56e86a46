//! Taking back what could not be stored, so that a group is what the log says of it: each step of a group says how it is
//! undone. What members do in a classic group is not part of that, as in Kafka: it is only stored when a rebalance ends.

use std::sync::Arc;

use caudal_protocol::ErrorCode;

use super::Outcome;
use super::consumer::topics::ResolvedRegex;
use super::consumer::{Clock, ConsumerGroup, ConsumerRecord, Partitions};
use super::coordinator::Coordinator;
use super::machine::Group;
use super::member::Member;

/// How a step is undone.
#[derive(Debug, Clone, PartialEq)]
pub enum Undo {
    /// What a consumer group was before its changes, in the order of these.
    Consumer(Vec<Before>),
    /// A consumer group came to be, in the place of a classic one where there was one.
    Created(Option<Box<Group>>),
    /// A consumer group gave way to a classic one.
    GaveWay(Box<ConsumerGroup>),
    /// A static member came back under the id `fresh`.
    StaticReplaced { fresh: String, former: Box<Member> },
}

/// What one record of a consumer group changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Before {
    Record(ConsumerRecord),
    Target(String, Option<Arc<Partitions>>),
    Regex(String, Option<ResolvedRegex>),
}

impl Coordinator {
    /// A step of a group could not be stored.
    pub fn roll_back(&mut self, clock: Clock, id: &str, undo: Vec<Undo>) -> Outcome {
        let mut out = Outcome::default();
        for undo in undo.into_iter().rev() {
            match undo {
                Undo::Consumer(before) => {
                    if let Some(group) = self.consumers.get_mut(id) {
                        group.roll_back(before);
                    }
                }
                Undo::Created(former) => {
                    self.consumers.remove(id);
                    if let Some(mut former) = former {
                        former.members.values_mut().for_each(|member| member.touch(clock.now_ms));
                        self.groups.insert(id.to_owned(), *former);
                    }
                }
                Undo::GaveWay(group) => {
                    if let Some(mut classic) = self.groups.remove(id) {
                        classic.answer_all(ErrorCode::NotCoordinator, &mut out);
                    }
                    self.consumers.insert(id.to_owned(), *group);
                }
                Undo::StaticReplaced { fresh, former } => {
                    if let Some(group) = self.groups.get_mut(id) {
                        group.restore_static(&fresh, *former, clock.now_ms, &mut out);
                    }
                }
            }
        }
        self.start_clocks_of(id, clock.now_ms);
        out
    }
}
