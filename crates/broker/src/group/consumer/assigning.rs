//! Computing a target assignment. That of a large group takes its time: it is done from a copy of what it depends on, while
//! the group and its neighbours go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_protocol::Uuid;
use caudal_protocol::records::group::ConsumerGroupTargetAssignmentMetadataValue;

use super::assignor::{self, Subscriber, Subscribers};
use super::group::{ConsumerGroup, target_record};
use super::heartbeat::{Changes, Env};
use super::topics::subscribed_ids;
use super::{Clock, ConsumerRecord, Partitions};

/// A member as the computation needs it.
#[derive(Debug, Clone, PartialEq)]
struct Input {
    id: String,
    instance_id: Option<String>,
    topics: Arc<BTreeSet<String>>,
    /// What its regular expression stands for.
    matched: Option<Arc<BTreeSet<String>>>,
    /// Its part of the last target.
    assigned: Arc<Partitions>,
}

/// An assignment to compute.
#[derive(Debug, Clone)]
pub struct AssignJob {
    pub group: String,
    /// The epoch that it is the target of.
    epoch: i32,
    /// Tells it from the group's other computations.
    serial: u64,
    assignor: String,
    members: Vec<Input>,
    image: Arc<MetadataImage>,
}

impl PartialEq for AssignJob {
    fn eq(&self, other: &AssignJob) -> bool {
        (&self.group, self.epoch, self.serial) == (&other.group, other.epoch, other.serial)
    }
}

impl AssignJob {
    pub fn run(&self) -> BTreeMap<String, Partitions> {
        let subscriber = |member: &Input| {
            let subscriber = Subscriber {
                instance_id: member.instance_id.clone(),
                topics: subscribed_ids(&self.image, &member.topics, member.matched.as_deref()),
                assigned: (*member.assigned).clone(),
            };
            (member.id.clone(), subscriber)
        };
        let subscribers: Subscribers = self.members.iter().map(subscriber).collect();
        let topics: BTreeSet<Uuid> = subscribers.values().flat_map(|member| &member.topics).copied().collect();
        let count = |id: Uuid| Some((id, self.image.topic_by_id(&id)?.partition_count()));
        let counts = topics.into_iter().filter_map(count).collect();
        assignor::assign(&self.assignor, &subscribers, &counts)
    }
}

/// The computation that a group waits for.
#[derive(Debug, Clone, PartialEq)]
pub struct Assigning {
    serial: u64,
    /// Static members that came back under another id meanwhile, by the id that the computation knows.
    renamed: BTreeMap<String, String>,
}

impl ConsumerGroup {
    fn assign_job(&mut self, env: Env<'_>) -> AssignJob {
        self.assignments_begun += 1;
        let input = |member: &super::member::Member| Input {
            id: member.id.clone(),
            instance_id: member.instance_id.clone(),
            topics: member.topics.clone(),
            matched: self.matched(member).cloned(),
            assigned: self.target_of(&member.id).cloned().unwrap_or_default(),
        };
        AssignJob {
            group: self.id.clone(),
            epoch: self.epoch,
            serial: self.assignments_begun,
            assignor: self.preferred_assignor(env.config).to_owned(),
            members: self.members().map(input).collect(),
            image: env.image.clone(),
        }
    }

    /// Computes a target assignment where the group has moved on, unless the last one is too fresh or is being computed.
    pub(super) fn maybe_retarget(&mut self, env: Env<'_>, changes: &mut Changes) {
        let interval_ms = env.times.assignment_interval_ms;
        let is_due =
            self.target_wall_ms == 0 || interval_ms == 0 || env.clock.wall_ms >= self.target_wall_ms + interval_ms;
        if self.target_epoch >= self.epoch || !is_due || self.assigning.is_some() {
            return;
        }
        let count = |name: &String| env.image.topic(name).map_or(0, |topic| topic.partitions.len());
        let partitions: usize = self.subscribed_names().map(count).sum();
        let job = self.assign_job(env);
        if partitions.saturating_mul(self.members().len()) <= env.config.assign_at_once_most {
            self.retarget(&job, job.run(), env.clock, &mut changes.records);
        } else {
            self.assigning = Some(Assigning { serial: job.serial, renamed: BTreeMap::new() });
            changes.assign = Some(job);
        }
    }

    /// Takes over a target. It may be that of an earlier epoch: then the next one follows.
    fn retarget(
        &mut self,
        job: &AssignJob,
        found: BTreeMap<String, Partitions>,
        clock: Clock,
        records: &mut Vec<ConsumerRecord>,
    ) {
        for (member, partitions) in found {
            if self.member(&member).is_some() && self.target(&member) != Some(&partitions) {
                self.put(target_record(&member, &partitions), records);
            }
        }
        let value = ConsumerGroupTargetAssignmentMetadataValue {
            assignment_epoch: job.epoch,
            assignment_timestamp: clock.wall_ms,
        };
        self.put(ConsumerRecord::TargetEpoch(Some(value)), records);
        tracing::debug!(group = self.id, epoch = job.epoch, job.assignor, "computed a target assignment");
    }

    /// A target was computed beside the coordinator.
    pub fn assigned(
        &mut self,
        clock: Clock,
        job: &AssignJob,
        found: BTreeMap<String, Partitions>,
        changes: &mut Changes,
    ) {
        // Otherwise the group is not any more what it was computed for: a change was taken back.
        let Some(assigning) = self.assigning.take_if(|assigning| assigning.serial == job.serial) else { return };
        let renamed = |(id, partitions): (String, Partitions)| match assigning.renamed.get(&id) {
            Some(now) => (now.clone(), partitions),
            None => (id, partitions),
        };
        self.retarget(job, found.into_iter().map(renamed).collect(), clock, &mut changes.records);
    }

    /// A static member is another id from here on.
    pub(super) fn renamed(&mut self, old: &str, fresh: &str) {
        let Some(assigning) = &mut self.assigning else { return };
        match assigning.renamed.values_mut().find(|now| *now == old) {
            Some(now) => fresh.clone_into(now),
            None => drop(assigning.renamed.insert(old.to_owned(), fresh.to_owned())),
        }
    }
}
