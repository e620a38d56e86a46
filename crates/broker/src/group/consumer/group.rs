//! A consumer group: what its records add up to, and the clocks that run for its members.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_protocol::Uuid;
use caudal_protocol::records::group::consumer_group_target_assignment_member_value::TopicPartition;
use caudal_protocol::records::group::{
    ConsumerGroupMetadataValue, ConsumerGroupRegularExpressionValue, ConsumerGroupTargetAssignmentMemberValue,
    ConsumerGroupTargetAssignmentMetadataValue,
};

use super::assigning::Assigning;
use super::deadlines::Schedule;
use super::member::{LEAVE_EPOCH, Member, MemberState, OwnedPartitions};
use super::topics::{ResolvedRegex, metadata_hash, subscribed_ids};
use super::{ConsumerConfig, ConsumerRecord, Partitions};
use crate::group::undo::Before;

/// The epoch of a group of which nothing is stored yet.
const FIRST_EPOCH: i32 = 1;

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumerState {
    Empty,
    /// The target assignment is older than the group's epoch.
    Assigning,
    /// Members are on their way to the target.
    Reconciling,
    Stable,
}

impl ConsumerState {
    /// The name that ConsumerGroupDescribe and ListGroups show.
    pub fn name(self) -> &'static str {
        match self {
            ConsumerState::Empty => "Empty",
            ConsumerState::Assigning => "Assigning",
            ConsumerState::Reconciling => "Reconciling",
            ConsumerState::Stable => "Stable",
        }
    }
}

/// A group and its members.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsumerGroup {
    pub id: String,
    pub epoch: i32,
    pub metadata_hash: i64,
    pub target_epoch: i32,
    /// Wall clock of the target assignment; 0: not known.
    pub target_wall_ms: i64,
    members: BTreeMap<String, Member>,
    /// Instance id of a static member to its member id.
    statics: BTreeMap<String, String>,
    target: BTreeMap<String, Arc<Partitions>>,
    /// The epoch of the member that has a partition.
    owners: OwnedPartitions,
    regexes: BTreeMap<String, ResolvedRegex>,
    /// How many members subscribe to a topic by name.
    topic_counts: BTreeMap<String, usize>,
    /// How many expressions stand for a topic.
    matched_counts: BTreeMap<String, usize>,
    /// How many members subscribe by a regular expression.
    regex_counts: BTreeMap<String, usize>,
    /// There is a record that only older releases want.
    pub(super) has_partition_metadata: bool,
    /// Offset of the image that the metadata hash was last compared with.
    pub(super) compared_with: Option<i64>,
    /// Regular expressions are being matched.
    pub(super) resolving: bool,
    pub(super) deadlines: Schedule,
    /// A target assignment is being computed.
    pub(super) assigning: Option<Assigning>,
    pub(super) assignments_begun: u64,
    /// What the group was before the changes of the present step.
    before: Vec<Before>,
}

impl ConsumerGroup {
    pub fn new(id: &str) -> ConsumerGroup {
        ConsumerGroup {
            id: id.to_owned(),
            epoch: FIRST_EPOCH,
            metadata_hash: 0,
            target_epoch: 0,
            target_wall_ms: 0,
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            target: BTreeMap::new(),
            owners: OwnedPartitions::new(),
            regexes: BTreeMap::new(),
            topic_counts: BTreeMap::new(),
            matched_counts: BTreeMap::new(),
            regex_counts: BTreeMap::new(),
            has_partition_metadata: false,
            compared_with: None,
            resolving: false,
            deadlines: Schedule::default(),
            assigning: None,
            assignments_begun: 0,
            before: Vec::new(),
        }
    }

    pub fn member(&self, id: &str) -> Option<&Member> {
        self.members.get(id)
    }

    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.values()
    }

    /// The member that goes by an instance id.
    pub fn static_member(&self, instance: &str) -> Option<&Member> {
        self.members.get(self.statics.get(instance)?)
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What a member is to have in the end.
    pub fn target(&self, member: &str) -> Option<&Partitions> {
        self.target_of(member).map(|partitions| &**partitions)
    }

    pub(super) fn target_of(&self, member: &str) -> Option<&Arc<Partitions>> {
        self.target.get(member)
    }

    pub fn state(&self) -> ConsumerState {
        if self.members.is_empty() {
            ConsumerState::Empty
        } else if self.epoch > self.target_epoch {
            ConsumerState::Assigning
        } else if self.members.values().all(|member| member.is_reconciled_to(self.target_epoch)) {
            ConsumerState::Stable
        } else {
            ConsumerState::Reconciling
        }
    }

    /// Whether nobody has a partition.
    pub fn is_free(&self, topic: &Uuid, partition: i32) -> bool {
        self.owners.get(topic).is_none_or(|partitions| !partitions.contains_key(&partition))
    }

    /// The topics that somebody subscribes to, by name or by expression, whether they exist or not.
    pub fn subscribed_names(&self) -> impl Iterator<Item = &String> {
        self.topic_counts.keys().chain(self.matched_counts.keys().filter(|name| !self.topic_counts.contains_key(*name)))
    }

    pub fn is_subscribed_to(&self, topic: &str) -> bool {
        self.topic_counts.contains_key(topic) || self.matched_counts.contains_key(topic)
    }

    pub fn regexes(&self) -> &BTreeMap<String, ResolvedRegex> {
        &self.regexes
    }

    /// The expressions by which members subscribe, with their number.
    pub fn regex_counts(&self) -> &BTreeMap<String, usize> {
        &self.regex_counts
    }

    /// The assignor that most members ask for, if any does.
    pub fn preferred_assignor<'a>(&'a self, config: &'a ConsumerConfig) -> &'a str {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for name in self.members.values().filter_map(|member| member.assignor.as_deref()) {
            *votes.entry(name).or_default() += 1;
        }
        let known = config.assignors.iter().rev().filter(|name| votes.contains_key(name.as_str()));
        let best = known.max_by_key(|name| votes.get(name.as_str()));
        best.map_or(config.default_assignor(), String::as_str)
    }

    /// The ids of a member's topics that exist.
    pub fn subscribed_ids(&self, member: &Member, image: &MetadataImage) -> BTreeSet<Uuid> {
        subscribed_ids(image, &member.topics, self.matched(member).map(|topics| &**topics))
    }

    /// What a member's regular expression stands for, as far as that is known.
    pub(super) fn matched(&self, member: &Member) -> Option<&Arc<BTreeSet<String>>> {
        let resolved = member.pattern().and_then(|regex| self.regexes.get(regex));
        resolved.map(|resolved| &resolved.topics)
    }

    /// Whether a member still waits for a partition that another one has.
    pub fn waits_for_others(&self, member: &Member) -> bool {
        let target = self.target.get(&member.id);
        member.state == MemberState::Unreleased
            && target.into_iter().flat_map(|target| &**target).any(|(topic, partitions)| {
                let assigned = member.assigned.get(topic);
                let lacks = |partition: &i32| assigned.is_none_or(|assigned| !assigned.contains_key(partition));
                partitions.iter().any(|partition| lacks(partition) && !self.is_free(topic, *partition))
            })
    }

    /// Applies a record that was decided on, and puts it down as one to be stored.
    pub(super) fn put(&mut self, record: ConsumerRecord, records: &mut Vec<ConsumerRecord>) {
        self.before.extend(self.before(&record));
        self.apply(&record);
        records.push(record);
    }

    /// What takes back a record that is about to be applied.
    fn before(&self, record: &ConsumerRecord) -> Option<Before> {
        let record = match record {
            ConsumerRecord::Group(_) => self.group_record(),
            ConsumerRecord::PartitionMetadata(_) => {
                ConsumerRecord::PartitionMetadata(self.has_partition_metadata.then(Default::default))
            }
            ConsumerRecord::TargetEpoch(_) => self.target_epoch_record(),
            ConsumerRecord::Target { member, .. } => {
                return Some(Before::Target(member.clone(), self.target.get(member).cloned()));
            }
            ConsumerRecord::Regex { regex, .. } => {
                return Some(Before::Regex(regex.clone(), self.regexes.get(regex).cloned()));
            }
            ConsumerRecord::Member { member: id, value } => match self.members.get(id) {
                Some(member) => member.record(),
                None => value.as_ref().map(|_| ConsumerRecord::Member { member: id.clone(), value: None })?,
            },
            ConsumerRecord::Current { member: id, value } => match self.members.get(id) {
                Some(member) => member.current_record(),
                None => value.as_ref().map(|_| ConsumerRecord::Member { member: id.clone(), value: None })?,
            },
        };
        Some(Before::Record(record))
    }

    /// How the changes since this was last asked are undone.
    pub(super) fn take_before(&mut self) -> Vec<Before> {
        std::mem::take(&mut self.before)
    }

    /// Undoes changes.
    pub fn roll_back(&mut self, before: Vec<Before>) {
        for before in before.into_iter().rev() {
            match before {
                Before::Record(record) => self.apply(&record),
                Before::Target(member, Some(target)) => drop(self.target.insert(member, target)),
                Before::Target(member, None) => drop(self.target.remove(&member)),
                Before::Regex(regex, resolved) => self.set_regex(&regex, resolved),
            }
        }
        self.compared_with = None;
        self.assigning = None;
    }

    fn set_regex(&mut self, regex: &str, resolved: Option<ResolvedRegex>) {
        let fresh = resolved.as_ref().map(|resolved| resolved.topics.clone()).unwrap_or_default();
        let old = match resolved {
            Some(resolved) => self.regexes.insert(regex.to_owned(), resolved),
            None => self.regexes.remove(regex),
        };
        let old = old.map(|old| old.topics).unwrap_or_default();
        for name in fresh.difference(&old) {
            *self.matched_counts.entry(name.clone()).or_default() += 1;
        }
        for name in old.difference(&fresh) {
            let Some(count) = self.matched_counts.get_mut(name) else { continue };
            *count -= 1;
            if *count == 0 {
                self.matched_counts.remove(name);
            }
        }
    }

    /// Applies a record.
    pub fn apply(&mut self, record: &ConsumerRecord) {
        match record {
            ConsumerRecord::Group(Some(value)) => {
                self.epoch = value.epoch;
                self.metadata_hash = value.metadata_hash;
            }
            // The end of the group, which is its owner's to carry out.
            ConsumerRecord::Group(None) => {}
            ConsumerRecord::PartitionMetadata(value) => self.has_partition_metadata = value.is_some(),
            ConsumerRecord::Member { member: id, value: Some(value) } => {
                let mut member = self.members.get(id).cloned().unwrap_or_else(|| Member::new(id));
                member.describe_as(value);
                self.set_member(member);
            }
            ConsumerRecord::Member { member: id, value: None } => self.remove_member(id),
            ConsumerRecord::TargetEpoch(value) => {
                self.target_epoch = value.as_ref().map_or(-1, |value| value.assignment_epoch);
                self.target_wall_ms = value.as_ref().map_or(0, |value| value.assignment_timestamp);
            }
            ConsumerRecord::Target { member, value: Some(value) } => {
                let mut target = Partitions::new();
                for topic in &value.topic_partitions {
                    target.entry(topic.topic_id).or_default().extend(&topic.partitions);
                }
                self.target.insert(member.clone(), Arc::new(target));
            }
            ConsumerRecord::Target { member, value: None } => {
                self.target.remove(member);
            }
            ConsumerRecord::Current { member: id, value: Some(value) } => {
                let mut member = self.members.get(id).cloned().unwrap_or_else(|| Member::new(id));
                member.own_as(value);
                self.set_member(member);
            }
            ConsumerRecord::Current { member: id, value: None } => {
                if let Some(mut member) = self.members.get(id).cloned() {
                    member.epoch = LEAVE_EPOCH;
                    member.previous_epoch = LEAVE_EPOCH;
                    member.assigned.clear();
                    member.revoking.clear();
                    self.set_member(member);
                }
            }
            ConsumerRecord::Regex { regex, value: Some(value) } => {
                let topics = Arc::new(value.topics.iter().cloned().collect());
                let resolved = ResolvedRegex { topics, version: value.version, timestamp_ms: value.timestamp };
                self.set_regex(regex, Some(resolved));
            }
            ConsumerRecord::Regex { regex, value: None } => self.set_regex(regex, None),
        }
    }

    fn set_member(&mut self, member: Member) {
        let old = self.members.get(&member.id).cloned();
        if let Some(old) = &old {
            self.disown(old);
            self.count(old, false);
        }
        for (topic, partitions) in member.assigned.iter().chain(&member.revoking) {
            let owners = self.owners.entry(*topic).or_default();
            for partition in partitions.keys() {
                match owners.get(partition) {
                    Some(epoch) if *epoch >= member.epoch => tracing::error!(
                        group = self.id, member = member.id, %topic, partition, epoch,
                        "a partition is assigned that another member has"
                    ),
                    _ => drop(owners.insert(*partition, member.epoch)),
                }
            }
        }
        self.count(&member, true);
        if let Some(instance) = &member.instance_id {
            self.statics.insert(instance.clone(), member.id.clone());
        }
        self.members.insert(member.id.clone(), member);
    }

    fn remove_member(&mut self, id: &str) {
        let Some(old) = self.members.remove(id) else { return };
        self.disown(&old);
        self.count(&old, false);
        if let Some(instance) = &old.instance_id
            && self.statics.get(instance).is_some_and(|owner| owner == id)
        {
            self.statics.remove(instance);
        }
        self.deadlines.remove(id);
    }

    fn disown(&mut self, member: &Member) {
        for (topic, partitions) in member.assigned.iter().chain(&member.revoking) {
            let Some(owners) = self.owners.get_mut(topic) else { continue };
            for partition in partitions.keys() {
                // Another epoch is another owner's: records of a compacted log overlap.
                if owners.get(partition) == Some(&member.epoch) {
                    owners.remove(partition);
                }
            }
            if owners.is_empty() {
                self.owners.remove(topic);
            }
        }
    }

    fn count(&mut self, member: &Member, add: bool) {
        let regex = member.pattern().map(str::to_owned);
        for (counts, names) in [
            (&mut self.topic_counts, member.topics.iter().cloned().collect::<Vec<_>>()),
            (&mut self.regex_counts, regex.into_iter().collect()),
        ] {
            for name in names {
                let count = counts.entry(name.clone()).or_default();
                *count = if add { *count + 1 } else { count.saturating_sub(1) };
                if *count == 0 {
                    counts.remove(&name);
                }
            }
        }
    }

    /// Begins the next epoch. What topics there are is compared again only when the metadata changes.
    pub(super) fn bump(&mut self, image: &MetadataImage, records: &mut Vec<ConsumerRecord>) {
        let value = ConsumerGroupMetadataValue {
            epoch: self.epoch + 1,
            metadata_hash: metadata_hash(image, self.subscribed_names()),
        };
        self.put(ConsumerRecord::Group(Some(value)), records);
        tracing::debug!(group = self.id, epoch = self.epoch, "began an epoch");
    }

    fn group_record(&self) -> ConsumerRecord {
        ConsumerRecord::Group(Some(ConsumerGroupMetadataValue { epoch: self.epoch, metadata_hash: self.metadata_hash }))
    }

    fn target_epoch_record(&self) -> ConsumerRecord {
        ConsumerRecord::TargetEpoch(Some(ConsumerGroupTargetAssignmentMetadataValue {
            assignment_epoch: self.target_epoch,
            assignment_timestamp: self.target_wall_ms,
        }))
    }

    /// Every record that rebuilds the present state.
    pub fn live_records(&self) -> Vec<ConsumerRecord> {
        let mut records: Vec<ConsumerRecord> = self.members.values().map(Member::record).collect();
        records.extend(self.regexes.iter().map(|(regex, resolved)| regex_record(regex, resolved)));
        records.push(self.group_record());
        records.extend(self.target.iter().map(|(member, target)| target_record(member, target)));
        records.push(self.target_epoch_record());
        records.extend(self.members.values().map(Member::current_record));
        records
    }

    /// What ends the group in the log, in Kafka's order.
    pub fn tombstones(&self) -> Vec<ConsumerRecord> {
        let members = || self.members.keys().cloned();
        let mut records: Vec<ConsumerRecord> =
            members().map(|member| ConsumerRecord::Current { member, value: None }).collect();
        records.extend(members().map(|member| ConsumerRecord::Target { member, value: None }));
        records.push(ConsumerRecord::TargetEpoch(None));
        records.extend(members().map(|member| ConsumerRecord::Member { member, value: None }));
        records.extend(self.regexes.keys().map(|regex| ConsumerRecord::Regex { regex: regex.clone(), value: None }));
        records.push(ConsumerRecord::PartitionMetadata(None));
        records.push(ConsumerRecord::Group(None));
        records
    }

    /// Removes a member.
    pub(super) fn put_removal(&mut self, id: &str, records: &mut Vec<ConsumerRecord>) {
        self.put(ConsumerRecord::Current { member: id.to_owned(), value: None }, records);
        self.put(ConsumerRecord::Target { member: id.to_owned(), value: None }, records);
        self.put(ConsumerRecord::Member { member: id.to_owned(), value: None }, records);
    }
}

pub(super) fn target_record(member: &str, partitions: &Partitions) -> ConsumerRecord {
    let topic = |(topic_id, partitions): (&Uuid, &BTreeSet<i32>)| TopicPartition {
        topic_id: *topic_id,
        partitions: partitions.iter().copied().collect(),
    };
    let value = ConsumerGroupTargetAssignmentMemberValue { topic_partitions: partitions.iter().map(topic).collect() };
    ConsumerRecord::Target { member: member.to_owned(), value: Some(value) }
}

pub(super) fn regex_record(regex: &str, resolved: &ResolvedRegex) -> ConsumerRecord {
    let value = ConsumerGroupRegularExpressionValue {
        topics: resolved.topics.iter().cloned().collect(),
        version: resolved.version,
        timestamp: resolved.timestamp_ms,
    };
    ConsumerRecord::Regex { regex: regex.to_owned(), value: Some(value) }
}
