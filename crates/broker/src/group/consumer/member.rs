//! One member of a consumer group, and its way to the target assignment: it gives up what it is to lose, then gets what it
//! is to have as far as nobody else has it still (KIP-848, "Member Assignment / Reconciliation").

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use caudal_protocol::Uuid;
use caudal_protocol::messages::consumer_group_heartbeat_request::TopicPartitions as Owned;
use caudal_protocol::records::group::consumer_group_current_member_assignment_value::TopicPartitions as StoredPartitions;
use caudal_protocol::records::group::consumer_group_member_metadata_value::ClassicMemberMetadata;
use caudal_protocol::records::group::{ConsumerGroupCurrentMemberAssignmentValue, ConsumerGroupMemberMetadataValue};

use super::Partitions;
use super::record::ConsumerRecord;

/// Partitions by topic, each with the epoch from which on its owner may commit for it.
pub type OwnedPartitions = BTreeMap<Uuid, BTreeMap<i32, i32>>;

/// The epoch with which a member leaves.
pub const LEAVE_EPOCH: i32 = -1;
/// The epoch with which a static member leaves for a while.
pub const LEAVE_STATIC_EPOCH: i32 = -2;

/// Where a member stands on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// Has all of its target, or has yet to be told of a newer one.
    Stable,
    /// Has to give up partitions before it moves on.
    Unrevoked,
    /// Waits for partitions that others have to give up.
    Unreleased,
    /// Stored by a later release: it has to begin anew.
    Unknown,
}

impl MemberState {
    fn code(self) -> i8 {
        match self {
            MemberState::Stable => 0,
            MemberState::Unrevoked => 1,
            MemberState::Unreleased => 2,
            MemberState::Unknown => 127,
        }
    }

    fn from_code(code: i8) -> MemberState {
        match code {
            0 => MemberState::Stable,
            1 => MemberState::Unrevoked,
            2 => MemberState::Unreleased,
            _ => MemberState::Unknown,
        }
    }
}

/// A member as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub id: String,
    pub epoch: i32,
    pub previous_epoch: i32,
    pub state: MemberState,
    pub instance_id: Option<String>,
    pub rack_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    /// Topics subscribed to by name.
    pub topics: Arc<BTreeSet<String>>,
    /// Topics subscribed to by a regular expression; an empty one is none.
    pub regex: Option<String>,
    pub rebalance_timeout_ms: i32,
    /// The server-side assignor that it would like.
    pub assignor: Option<String>,
    pub assigned: OwnedPartitions,
    /// What it has been told to give up and may still have.
    pub revoking: OwnedPartitions,
    /// Set where the member speaks the classic protocol.
    pub classic: Option<ClassicMemberMetadata>,
}

/// What a member is led towards.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub epoch: i32,
    pub partitions: &'a Partitions,
    /// The topics that it subscribes to and that exist; nothing else is assigned.
    pub subscribed: &'a BTreeSet<Uuid>,
    /// The subscription has just changed.
    pub subscription_changed: bool,
}

/// The member is in a state of a later release, and must begin anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MustRejoin;

impl Member {
    pub fn new(id: &str) -> Member {
        Member {
            id: id.to_owned(),
            epoch: 0,
            previous_epoch: -1,
            state: MemberState::Stable,
            instance_id: None,
            rack_id: None,
            client_id: String::new(),
            client_host: String::new(),
            topics: Arc::default(),
            regex: Some(String::new()),
            rebalance_timeout_ms: -1,
            assignor: None,
            assigned: OwnedPartitions::new(),
            revoking: OwnedPartitions::new(),
            classic: None,
        }
    }

    pub fn is_classic(&self) -> bool {
        self.classic.is_some()
    }

    /// The regular expression, where there is one.
    pub fn pattern(&self) -> Option<&str> {
        self.regex.as_deref().filter(|regex| !regex.is_empty())
    }

    pub fn is_reconciled_to(&self, target_epoch: i32) -> bool {
        self.state == MemberState::Stable && self.epoch == target_epoch
    }

    /// The protocols of the classic protocol that a member knows; none for one that speaks the new one.
    pub fn classic_protocols(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        let known = self.classic.iter().flat_map(|classic| &classic.supported_protocols);
        known.map(|protocol| (protocol.name.as_str(), &protocol.metadata))
    }

    /// The epoch from which on the member may commit for a partition: as long as it has it or gives it up.
    pub fn commit_epoch(&self, topic: &Uuid, partition: i32) -> Option<i32> {
        let find = |owned: &OwnedPartitions| owned.get(topic)?.get(&partition).copied();
        find(&self.assigned).or_else(|| find(&self.revoking))
    }

    /// The partitions it has, without their epochs.
    pub fn assigned_partitions(&self) -> Partitions {
        self.assigned.iter().map(|(topic, partitions)| (*topic, partitions.keys().copied().collect())).collect()
    }

    fn enter(&mut self, epoch: i32) {
        self.previous_epoch = self.epoch;
        self.epoch = epoch;
    }

    /// Takes over what a stored record says of the member.
    pub fn describe_as(&mut self, value: &ConsumerGroupMemberMetadataValue) {
        self.instance_id = value.instance_id.clone();
        self.rack_id = value.rack_id.clone();
        self.client_id = value.client_id.clone();
        self.client_host = value.client_host.clone();
        self.topics = Arc::new(value.subscribed_topic_names.iter().cloned().collect());
        self.regex = value.subscribed_topic_regex.clone();
        self.rebalance_timeout_ms = value.rebalance_timeout_ms;
        self.assignor = value.server_assignor.clone();
        self.classic = value.classic_member_metadata.clone();
    }

    /// What is stored of the member's description.
    pub fn record(&self) -> ConsumerRecord {
        let value = ConsumerGroupMemberMetadataValue {
            instance_id: self.instance_id.clone(),
            rack_id: self.rack_id.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            subscribed_topic_names: self.topics.iter().cloned().collect(),
            subscribed_topic_regex: self.regex.clone(),
            rebalance_timeout_ms: self.rebalance_timeout_ms,
            server_assignor: self.assignor.clone(),
            classic_member_metadata: self.classic.clone(),
        };
        ConsumerRecord::Member { member: self.id.clone(), value: Some(value) }
    }

    /// Takes over what a stored record says the member has.
    pub fn own_as(&mut self, value: &ConsumerGroupCurrentMemberAssignmentValue) {
        self.epoch = value.member_epoch;
        self.previous_epoch = value.previous_member_epoch;
        self.state = MemberState::from_code(value.state);
        self.assigned = loaded(&value.assigned_partitions, value.member_epoch);
        self.revoking = loaded(&value.partitions_pending_revocation, value.member_epoch);
    }

    /// What is stored of what the member has.
    pub fn current_record(&self) -> ConsumerRecord {
        let value = ConsumerGroupCurrentMemberAssignmentValue {
            member_epoch: self.epoch,
            previous_member_epoch: self.previous_epoch,
            state: self.state.code(),
            assigned_partitions: stored(&self.assigned),
            partitions_pending_revocation: stored(&self.revoking),
        };
        ConsumerRecord::Current { member: self.id.clone(), value: Some(value) }
    }

    /// A static member leaves for a while: its partitions stay with it, for whoever comes next under its name.
    pub fn leave_for_a_while(&mut self) {
        self.epoch = LEAVE_STATIC_EPOCH;
        self.revoking.clear();
        self.assigned.values_mut().flat_map(BTreeMap::values_mut).for_each(|epoch| *epoch = 0);
    }

    /// Takes the next step towards the target, if one can be taken. `owned`: what the member says it has, if it said so;
    /// `is_free`: nobody has the partition.
    ///
    /// # Errors
    /// The member's state is not known here.
    pub fn step(
        &mut self,
        target: Target<'_>,
        owned: Option<&[Owned]>,
        is_free: impl Fn(&Uuid, i32) -> bool,
    ) -> Result<(), MustRejoin> {
        match self.state {
            MemberState::Stable if self.epoch != target.epoch => self.advance(target, owned, is_free),
            MemberState::Stable if target.subscription_changed => self.drop_unsubscribed(target, owned),
            MemberState::Stable => {}
            MemberState::Unrevoked if has_any(owned, &self.revoking) => {
                if target.subscription_changed {
                    self.drop_unsubscribed(target, owned);
                }
            }
            MemberState::Unrevoked | MemberState::Unreleased => self.advance(target, owned, is_free),
            MemberState::Unknown => {
                if owned.is_none_or(|owned| !owned.is_empty()) {
                    return Err(MustRejoin);
                }
                self.epoch = target.epoch;
                self.advance(target, owned, is_free);
            }
        }
        Ok(())
    }

    /// The member stays in its epoch, but nothing is left with it that it does not subscribe to any more.
    fn drop_unsubscribed(&mut self, target: Target<'_>, owned: Option<&[Owned]>) {
        let (kept, dropped): (OwnedPartitions, OwnedPartitions) =
            self.assigned.clone().into_iter().partition(|(topic, _)| target.subscribed.contains(topic));
        if dropped.is_empty() {
            return;
        }
        let mut revoking = self.revoking.clone();
        for (topic, partitions) in dropped {
            revoking.entry(topic).or_default().extend(partitions);
        }
        self.assigned = kept;
        self.enter(self.epoch);
        if has_any(owned, &revoking) {
            self.state = MemberState::Unrevoked;
            self.revoking = revoking;
        }
    }

    fn advance(&mut self, target: Target<'_>, owned: Option<&[Owned]>, is_free: impl Fn(&Uuid, i32) -> bool) {
        let none = BTreeSet::new();
        let mut assigned = OwnedPartitions::new();
        let mut revoking = OwnedPartitions::new();
        let mut fresh = OwnedPartitions::new();
        let mut unreleased = false;
        let topics: BTreeSet<Uuid> = target.partitions.keys().chain(self.assigned.keys()).copied().collect();
        for topic in topics {
            let wanted = target.partitions.get(&topic).filter(|_| target.subscribed.contains(&topic)).unwrap_or(&none);
            let current = self.assigned.get(&topic);
            for (&partition, &epoch) in current.into_iter().flatten() {
                let side = if wanted.contains(&partition) { &mut assigned } else { &mut revoking };
                side.entry(topic).or_default().insert(partition, epoch);
            }
            for &partition in wanted.iter().filter(|p| current.is_none_or(|current| !current.contains_key(*p))) {
                // What the member itself has just given up is not with anybody else.
                let own = self.revoking.get(&topic).is_some_and(|revoking| revoking.contains_key(&partition));
                if own || is_free(&topic, partition) {
                    fresh.entry(topic).or_default().insert(partition, target.epoch);
                } else {
                    unreleased = true;
                }
            }
        }
        if !revoking.is_empty() && has_any(owned, &revoking) {
            self.enter(self.epoch);
            self.state = MemberState::Unrevoked;
            self.assigned = assigned;
            self.revoking = revoking;
            return;
        }
        for (topic, partitions) in fresh {
            assigned.entry(topic).or_default().extend(partitions);
        }
        self.enter(target.epoch);
        self.state = if unreleased { MemberState::Unreleased } else { MemberState::Stable };
        self.assigned = assigned;
        self.revoking.clear();
    }
}

/// Whether a member may have some of `partitions`: it says so, or says nothing.
fn has_any(owned: Option<&[Owned]>, partitions: &OwnedPartitions) -> bool {
    let Some(owned) = owned else { return true };
    owned.iter().any(|topic| {
        let of_topic = partitions.get(&topic.topic_id);
        of_topic.is_some_and(|of_topic| topic.partitions.iter().any(|partition| of_topic.contains_key(partition)))
    })
}

/// Whether all that a member says it has is among what it was given. One that says nothing is not believed.
pub fn is_subset(owned: Option<&[Owned]>, assigned: &OwnedPartitions) -> bool {
    let Some(owned) = owned else { return false };
    owned.iter().all(|topic| {
        let of_topic = assigned.get(&topic.topic_id);
        of_topic.is_some_and(|of_topic| topic.partitions.iter().all(|partition| of_topic.contains_key(partition)))
    })
}

fn stored(partitions: &OwnedPartitions) -> Vec<StoredPartitions> {
    let one = |(topic, partitions): (&Uuid, &BTreeMap<i32, i32>)| StoredPartitions {
        topic_id: *topic,
        partitions: partitions.keys().copied().collect(),
        assignment_epochs: Some(partitions.values().copied().collect()),
    };
    partitions.iter().map(one).collect()
}

/// Before release 4.3 partitions had no epochs of their own: they have the member's.
fn loaded(stored: &[StoredPartitions], member_epoch: i32) -> OwnedPartitions {
    let mut partitions = OwnedPartitions::new();
    for topic in stored {
        let epochs = topic.assignment_epochs.as_ref().filter(|epochs| epochs.len() == topic.partitions.len());
        let of_topic = partitions.entry(topic.topic_id).or_default();
        for (i, partition) in topic.partitions.iter().enumerate() {
            let epoch = epochs.and_then(|epochs| epochs.get(i)).copied();
            of_topic.insert(*partition, epoch.unwrap_or(member_epoch.max(0)));
        }
    }
    partitions
}
