//! Groups with their committed offsets, those of one partition of `__consumer_offsets` in a broker: a fold over
//! [`GroupRecord`]s plus the volatile side of rebalances. Pure: time comes in, records and answers go out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::leave_group_response::MemberResponse;
use caudal_protocol::messages::list_groups_response::ListedGroup;
use caudal_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse};

use super::consumer::classic::CONSUMER;
use super::consumer::coordinator::CONSUMER_TYPE;
use super::consumer::{Clock, ConsumerConfig, ConsumerGroup};
use super::machine::{Group, Joiner, State};
use super::record::{CommittedOffset, GroupRecord};
use super::transactional::PendingOffsets;
use super::{Outcome, Reply, Waiter};

/// The broker's `group.*` and `offsets.*` properties that matter here.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// `group.min.session.timeout.ms`, `group.max.session.timeout.ms`, inclusive.
    pub session_timeout_ms: (i32, i32),
    /// `group.initial.rebalance.delay.ms`.
    pub initial_rebalance_delay_ms: i64,
    /// `group.max.size`.
    pub max_size: usize,
    /// `offset.metadata.max.bytes`.
    pub metadata_max_bytes: usize,
    /// `offsets.retention.minutes`, in milliseconds.
    pub offsets_retention_ms: i64,
    /// `group.consumer.*`.
    pub consumer: ConsumerConfig,
    /// `group.coordinator.background.threads`.
    pub background_threads: usize,
}

impl Default for GroupConfig {
    fn default() -> Self {
        GroupConfig {
            session_timeout_ms: (6_000, 1_800_000),
            initial_rebalance_delay_ms: 3_000,
            max_size: i32::MAX as usize,
            metadata_max_bytes: 4096,
            offsets_retention_ms: 7 * 24 * 3_600_000,
            consumer: ConsumerConfig::default(),
            background_threads: 2,
        }
    }
}

pub(super) type Offsets = BTreeMap<String, BTreeMap<i32, CommittedOffset>>;

/// The name that ListGroups shows for the type.
const CLASSIC_TYPE: &str = "classic";

/// Assignment strategies that a member may offer. Clients have a handful; each is compared with those of all others.
const MAX_PROTOCOLS: usize = 100;

/// Groups, offsets and their configuration. `now_ms` is a monotonic clock, `wall_ms` milliseconds since 1970.
#[derive(Debug)]
pub struct Coordinator {
    pub config: Arc<GroupConfig>,
    /// Groups of the classic protocol.
    pub(super) groups: HashMap<String, Group>,
    /// Groups of the consumer protocol; none of them is among the classic ones.
    pub(super) consumers: HashMap<String, ConsumerGroup>,
    /// Also of groups that have none any more: whoever commits makes a group, which stays until [`Coordinator::expire_offsets`].
    pub(super) offsets: HashMap<String, Offsets>,
    /// Offsets of open transactions.
    pub(super) pending: PendingOffsets,
    /// The metadata as it was last looked at.
    pub(super) image: Arc<MetadataImage>,
    /// Offset of the last image with new topics.
    pub(super) new_topics_at: i64,
    /// When to look at which group: no later than its next deadline. Heartbeats put deadlines off without telling.
    deadlines: BTreeSet<(i64, String)>,
    /// The entry of each group in `deadlines`.
    scheduled: HashMap<String, i64>,
}

/// Who commits: what fences a zombie.
#[derive(Debug, Clone, Copy)]
pub struct Committer<'a> {
    pub group: &'a str,
    pub member_id: &'a str,
    pub instance_id: Option<&'a str>,
    /// Negative: not a member (a plain consumer or an admin tool).
    pub generation: i32,
}

impl Coordinator {
    pub fn new(config: impl Into<Arc<GroupConfig>>) -> Coordinator {
        Coordinator {
            config: config.into(),
            groups: HashMap::new(),
            consumers: HashMap::new(),
            image: Arc::new(MetadataImage::empty()),
            new_topics_at: -1,
            offsets: HashMap::new(),
            pending: PendingOffsets::default(),
            deadlines: BTreeSet::new(),
            scheduled: HashMap::new(),
        }
    }

    /// Puts a group's next deadline in its place; to be called whenever the group changed. Forgets a group that nobody ever
    /// was in.
    pub(super) fn reschedule(&mut self, id: &str) {
        if self.groups.get(id).is_some_and(Group::is_void) {
            self.groups.remove(id);
        }
        let of_consumers = self.consumers.get(id).and_then(ConsumerGroup::next_deadline_ms);
        let next = self.groups.get(id).and_then(Group::next_deadline_ms).or(of_consumers);
        let known = self.scheduled.get(id).copied();
        if next == known {
            return;
        }
        if let Some(known) = known {
            self.deadlines.remove(&(known, id.to_owned()));
            self.scheduled.remove(id);
        }
        if let Some(next) = next {
            self.deadlines.insert((next, id.to_owned()));
            self.scheduled.insert(id.to_owned(), next);
        }
    }

    /// Applies one stored record while loading.
    pub fn replay(&mut self, record: GroupRecord, now_ms: i64) {
        match record {
            GroupRecord::Offset { group, topic, partition, value } => {
                self.pending.overtake(&group, &topic, partition, value.is_none());
                self.put_offset(&group, &topic, partition, value);
            }
            GroupRecord::Transaction(change) => self.apply_transaction(change),
            GroupRecord::Group { group, value: Some(value) } => {
                let loaded = Group::from_record(&group, &value, now_ms);
                self.consumers.remove(&group);
                self.groups.insert(group.clone(), loaded);
                self.reschedule(&group);
            }
            GroupRecord::Group { group, value: None } => {
                self.groups.remove(&group);
                self.forget_without_offsets(&group);
                self.reschedule(&group);
            }
            GroupRecord::Consumer { group, record } => self.replay_consumer(&group, &record),
        }
    }

    /// Takes out what was loaded of the groups that `which` names.
    pub fn forget(&mut self, which: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.groups.keys().filter(|id| which(id)).cloned().collect();
        for id in gone {
            self.groups.remove(&id);
            self.reschedule(&id);
        }
        self.consumers.retain(|id, _| !which(id));
        self.offsets.retain(|id, _| !which(id));
        self.pending.forget(which);
    }

    /// Takes note of a record that was decided on and is now stored: commits and deletions take effect here. What members
    /// do takes effect at once.
    pub fn apply_stored(&mut self, record: GroupRecord) {
        match record {
            GroupRecord::Offset { group, topic, partition, value } => {
                self.pending.overtake(&group, &topic, partition, value.is_none());
                self.put_offset(&group, &topic, partition, value);
            }
            GroupRecord::Transaction(change) => self.apply_transaction(change),
            GroupRecord::Group { value: Some(_), .. } => {}
            GroupRecord::Consumer { group, record } => self.stored_consumer(&group, &record),
            GroupRecord::Group { group, value: None } => {
                // Somebody may have joined meanwhile; that is stored behind the deletion.
                if self.groups.get(&group).is_some_and(|g| g.state == State::Empty && g.pending.is_empty()) {
                    self.groups.remove(&group);
                    self.reschedule(&group);
                }
                self.forget_without_offsets(&group);
            }
        }
    }

    /// A group is no more, unless it has offsets.
    pub(super) fn forget_without_offsets(&mut self, group: &str) {
        if !self.has_group(group) && self.offsets.get(group).is_some_and(BTreeMap::is_empty) {
            self.offsets.remove(group);
        }
    }

    /// The assignment of a generation was stored, or could not be.
    pub fn assignment_stored(
        &mut self,
        now_ms: i64,
        wall_ms: i64,
        (id, generation): &(String, i32),
        error: ErrorCode,
    ) -> Outcome {
        let mut out = Outcome::default();
        if let Some(group) = self.groups.get_mut(id) {
            group.assignment_stored(now_ms, wall_ms, &self.config, (*generation, error), &mut out);
            self.reschedule(id);
        }
        out
    }

    /// Every record that rebuilds the present state: what a compacted log would hold.
    #[cfg(test)]
    pub fn live_records(&self) -> Vec<GroupRecord> {
        let groups = self.groups.values().filter(|g| g.generation > 0).map(Group::record);
        let offsets = self.offsets.iter().flat_map(|(group, topics)| {
            topics.iter().flat_map(move |(topic, partitions)| {
                partitions.iter().map(move |(partition, value)| GroupRecord::Offset {
                    group: group.clone(),
                    topic: topic.clone(),
                    partition: *partition,
                    value: Some(value.clone()),
                })
            })
        });
        let consumers = self.consumers.iter().flat_map(|(id, group)| {
            let records = group.live_records().into_iter();
            records.map(|record| GroupRecord::Consumer { group: id.clone(), record })
        });
        groups.chain(consumers).chain(offsets).collect()
    }

    pub(super) fn put_offset(&mut self, group: &str, topic: &str, partition: i32, value: Option<CommittedOffset>) {
        match value {
            Some(value) => {
                let topics = self.offsets.entry(group.to_owned()).or_default();
                match topics.get_mut(topic) {
                    Some(partitions) => {
                        partitions.insert(partition, value);
                    }
                    None => {
                        topics.insert(topic.to_owned(), BTreeMap::from([(partition, value)]));
                    }
                }
            }
            None => {
                let Some(topics) = self.offsets.get_mut(group) else { return };
                let Some(partitions) = topics.get_mut(topic) else { return };
                partitions.remove(&partition);
                if partitions.is_empty() {
                    topics.remove(topic);
                }
            }
        }
    }

    /// JoinGroup.
    pub fn join(&mut self, now_ms: i64, wall_ms: i64, request: &JoinGroupRequest, joiner: Joiner) -> Outcome {
        let mut out = Outcome::default();
        let (lowest, highest) = self.config.session_timeout_ms;
        let is_classic = self.consumers.get(&request.group_id).is_none_or(ConsumerGroup::is_empty);
        let error = if request.group_id.is_empty() {
            ErrorCode::InvalidGroupId
        } else if request.protocols.len() > MAX_PROTOCOLS {
            ErrorCode::InvalidRequest
        } else if request.session_timeout_ms < lowest || request.session_timeout_ms > highest {
            ErrorCode::InvalidSessionTimeout
        } else if is_classic && !request.member_id.is_empty() && !self.groups.contains_key(&request.group_id) {
            ErrorCode::UnknownMemberId
        } else {
            ErrorCode::None
        };
        if error.is_error() {
            let reply = JoinGroupResponse {
                error_code: error.code(),
                generation_id: -1,
                protocol_name: Some(String::new()),
                member_id: request.member_id.clone(),
                ..JoinGroupResponse::default()
            };
            out.reply(joiner.waiter, Reply::Join(reply));
            return out;
        }
        if self.join_consumer(Clock { now_ms, wall_ms }, request, &joiner, &mut out) {
            self.reschedule(&request.group_id);
            return out;
        }
        let group =
            self.groups.entry(request.group_id.clone()).or_insert_with(|| Group::new(&request.group_id, wall_ms));
        group.join(now_ms, wall_ms, &self.config, request, joiner, &mut out);
        self.reschedule(&request.group_id);
        out
    }

    /// SyncGroup.
    pub fn sync(&mut self, now_ms: i64, wall_ms: i64, request: &SyncGroupRequest, waiter: Waiter) -> Outcome {
        let mut out = Outcome::default();
        if let Some(response) = self.sync_consumer(Clock { now_ms, wall_ms }, request) {
            out.reply(waiter, Reply::Sync(response));
            self.reschedule(&request.group_id);
            return out;
        }
        match self.groups.get_mut(&request.group_id) {
            Some(group) => {
                group.sync(now_ms, wall_ms, waiter, request, &mut out);
                self.reschedule(&request.group_id);
            }
            None => {
                let error =
                    if request.group_id.is_empty() { ErrorCode::InvalidGroupId } else { ErrorCode::UnknownMemberId };
                out.reply(
                    waiter,
                    Reply::Sync(SyncGroupResponse { error_code: error.code(), ..SyncGroupResponse::default() }),
                );
            }
        }
        out
    }

    /// Heartbeat.
    pub fn heartbeat(
        &mut self,
        now_ms: i64,
        group: &str,
        member: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> ErrorCode {
        if let Some(consumers) = self.consumers.get_mut(group) {
            let error = consumers.classic_heartbeat(now_ms, member, instance, generation);
            self.reschedule(group);
            return error;
        }
        match self.groups.get_mut(group) {
            _ if group.is_empty() => ErrorCode::InvalidGroupId,
            Some(g) => g.heartbeat(now_ms, member, instance, generation),
            None => ErrorCode::UnknownMemberId,
        }
    }

    /// LeaveGroup: one answer for each member that leaves.
    pub fn leave(
        &mut self,
        now_ms: i64,
        wall_ms: i64,
        group: &str,
        members: &[MemberIdentity],
    ) -> (Vec<MemberResponse>, Outcome) {
        let mut out = Outcome::default();
        if let Some(answers) = self.leave_consumer(Clock { now_ms, wall_ms }, group, members, &mut out) {
            self.reschedule(group);
            return (answers, out);
        }
        let answers = members
            .iter()
            .map(|m| {
                let error = match self.groups.get_mut(group) {
                    Some(g) => {
                        g.leave(now_ms, wall_ms, &self.config, &m.member_id, m.group_instance_id.as_deref(), &mut out)
                    }
                    None => ErrorCode::UnknownMemberId,
                };
                MemberResponse {
                    member_id: m.member_id.clone(),
                    group_instance_id: m.group_instance_id.clone(),
                    error_code: error.code(),
                }
            })
            .collect();
        self.reschedule(group);
        (answers, out)
    }

    /// Whether a commit is allowed. Kafka's rules: outsiders only while the group is empty, members only in their generation.
    pub fn check_commit(&mut self, now_ms: i64, who: Committer<'_>) -> ErrorCode {
        if let Some(error) = self.check_consumer_commit(who) {
            return error;
        }
        let Some(group) = self.groups.get_mut(who.group) else {
            return if who.generation < 0 { ErrorCode::None } else { ErrorCode::IllegalGeneration };
        };
        if who.generation < 0 && group.is_empty() {
            return ErrorCode::None;
        }
        if who.generation < 0 && who.member_id.is_empty() {
            return ErrorCode::UnknownMemberId;
        }
        let error = group.check_member(who.member_id, who.instance_id);
        if error.is_error() {
            return error;
        }
        if who.generation != group.generation {
            return ErrorCode::IllegalGeneration;
        }
        if group.state == State::CompletingRebalance {
            return ErrorCode::RebalanceInProgress;
        }
        if let Some(member) = group.members.get_mut(who.member_id) {
            member.touch(now_ms);
        }
        ErrorCode::None
    }

    /// What to store for offsets that [`Coordinator::check_commit`] allowed.
    pub fn commit(&self, group: &str, offsets: Vec<(String, i32, CommittedOffset)>) -> Vec<GroupRecord> {
        let record = |(topic, partition, value): (String, i32, CommittedOffset)| GroupRecord::Offset {
            group: group.to_owned(),
            topic,
            partition,
            value: Some(value),
        };
        offsets.into_iter().map(record).collect()
    }

    /// A committed offset.
    pub fn offset(&self, group: &str, topic: &str, partition: i32) -> Option<&CommittedOffset> {
        self.offsets.get(group)?.get(topic)?.get(&partition)
    }

    /// Whether an open transaction has an offset for a partition, which may become the committed one.
    pub fn is_unstable(&self, group: &str, topic: &str, partition: i32) -> bool {
        self.pending.contains(group, topic, partition)
    }

    /// All committed offsets of a group, by topic and partition.
    pub fn offsets(&self, group: &str) -> impl Iterator<Item = (&String, &BTreeMap<i32, CommittedOffset>)> {
        self.offsets.get(group).into_iter().flatten()
    }

    /// DescribeGroups for one id. `None`: there is no such group.
    pub fn describe(&self, id: &str) -> Option<DescribedGroup> {
        if self.consumers.contains_key(id) {
            return None;
        }
        let Some(group) = self.groups.get(id) else {
            // Offsets without members: a group that only ever committed.
            return self.offsets.contains_key(id).then(|| DescribedGroup {
                group_id: id.to_owned(),
                group_state: State::Empty.name().to_owned(),
                ..DescribedGroup::default()
            });
        };
        let settled = group.state == State::Stable;
        let protocol = if settled { group.protocol_name.clone().unwrap_or_default() } else { String::new() };
        let members = group.members.values().map(|m| DescribedGroupMember {
            member_id: m.id.clone(),
            group_instance_id: m.instance_id.clone(),
            client_id: m.client_id.clone(),
            client_host: m.client_host.clone(),
            member_metadata: if settled { m.metadata(&protocol) } else { Default::default() },
            member_assignment: if settled { m.assignment.clone() } else { Default::default() },
        });
        Some(DescribedGroup {
            group_id: id.to_owned(),
            group_state: group.state.name().to_owned(),
            protocol_type: group.protocol_type.clone().unwrap_or_default(),
            protocol_data: protocol.clone(),
            members: members.collect(),
            ..DescribedGroup::default()
        })
    }

    /// ListGroups, in any order: those whose state and type are wanted.
    pub fn list(&self, is_wanted: impl Fn(&str, &str) -> bool) -> Vec<ListedGroup> {
        let empty = State::Empty.name();
        let only_offsets = self.offsets.keys().filter(|id| !self.has_group(id)).map(|id| (id, "", empty, CLASSIC_TYPE));
        let groups = self.groups.values().map(|g| {
            let protocol_type = g.protocol_type.as_deref().unwrap_or_default();
            (&g.id, protocol_type, g.state.name(), CLASSIC_TYPE)
        });
        let consumers = self.consumers.values().map(|g| (&g.id, "consumer", g.state().name(), CONSUMER_TYPE));
        groups
            .chain(only_offsets)
            .chain(consumers)
            .filter(|(_, _, state, kind)| is_wanted(state, kind))
            .map(|(id, protocol_type, state, kind)| ListedGroup {
                group_id: id.clone(),
                protocol_type: protocol_type.to_owned(),
                group_state: state.to_owned(),
                group_type: kind.to_owned(),
            })
            .collect()
    }

    /// DeleteGroups for one id: the error, and the tombstones to store.
    pub fn delete(&self, id: &str) -> (ErrorCode, Vec<GroupRecord>) {
        if let Some((error, of_group)) = self.delete_consumer(id) {
            let mut records = if error.is_error() { Vec::new() } else { self.all_tombstones(id) };
            records.extend(of_group);
            return (error, records);
        }
        let group = self.groups.get(id);
        if group.is_none() && !self.offsets.contains_key(id) {
            return (ErrorCode::GroupIdNotFound, Vec::new());
        }
        if group.is_some_and(|g| !g.is_empty() || !g.pending.is_empty() || g.state != State::Empty) {
            return (ErrorCode::NonEmptyGroup, Vec::new());
        }
        let mut records = self.all_tombstones(id);
        records.push(GroupRecord::Group { group: id.to_owned(), value: None });
        (ErrorCode::None, records)
    }

    /// Tombstones for the offsets of a group that `which(topic, partition, offset)` names.
    fn tombstones(&self, group: &str, which: impl Fn(&str, i32, &CommittedOffset) -> bool) -> Vec<GroupRecord> {
        let mut records = Vec::new();
        for (topic, partitions) in self.offsets(group) {
            let gone = partitions.iter().filter(|(p, v)| which(topic, **p, v));
            records.extend(gone.map(|(partition, _)| tombstone(group, topic, *partition)));
        }
        records
    }

    /// Tombstones for all offsets of a group, those of open transactions too.
    fn all_tombstones(&self, group: &str) -> Vec<GroupRecord> {
        let mut records = self.tombstones(group, |_, _, _| true);
        let pending = self.pending.of_group(group);
        let alone = pending.filter(|(topic, partition)| self.offset(group, topic, *partition).is_none());
        records.extend(alone.map(|(topic, partition)| tombstone(group, topic, partition)));
        records
    }

    /// Whether members of the group may be reading; then single offsets cannot be deleted.
    pub fn has_members(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(|g| !g.is_empty())
            || self.consumers.get(group).is_some_and(|g| !g.is_empty())
    }

    /// Whether single offsets of a group may be deleted at all: not while members of a protocol of their own are in it.
    pub fn check_offset_delete(&self, group: &str) -> ErrorCode {
        if !self.exists(group) {
            return ErrorCode::GroupIdNotFound;
        }
        let in_use = self.groups.get(group).filter(|g| !g.is_empty());
        let is_consumers = in_use.is_none_or(|g| g.protocol_type.as_deref() == Some(CONSUMER));
        if is_consumers { ErrorCode::None } else { ErrorCode::NonEmptyGroup }
    }

    /// Whether members of a group read a topic, or may: their subscriptions cannot be read.
    pub fn is_subscribed_to(&self, group: &str, topic: &str) -> bool {
        let classic = self.groups.get(group).filter(|g| !g.is_empty());
        self.is_subscribed(group, topic)
            || classic.is_some_and(|g| g.subscribed_topics().is_none_or(|topics| topics.contains(topic)))
    }

    pub fn exists(&self, group: &str) -> bool {
        self.has_group(group) || self.offsets.contains_key(group)
    }

    /// Whether there is more to a group than offsets.
    pub(super) fn has_group(&self, group: &str) -> bool {
        self.groups.contains_key(group) || self.consumers.contains_key(group)
    }

    /// OffsetDelete: what to store to forget a single offset.
    pub fn delete_offsets(&self, group: &str, topic: &str, partition: i32) -> Vec<GroupRecord> {
        let is_there = self.offset(group, topic, partition).is_some() || self.pending.contains(group, topic, partition);
        is_there.then(|| tombstone(group, topic, partition)).into_iter().collect()
    }

    /// What to store to forget the offsets of a topic that is gone.
    pub fn topic_deleted(&self, topic: &str) -> Vec<GroupRecord> {
        let of_group = |(group, topics): (&String, &Offsets)| -> Vec<GroupRecord> {
            let partitions = topics.get(topic).into_iter().flat_map(BTreeMap::keys);
            partitions.map(|partition| tombstone(group, topic, *partition)).collect()
        };
        let mut records: Vec<GroupRecord> = self.offsets.iter().flat_map(of_group).collect();
        let pending = self.pending.of_topic(topic);
        let alone = pending.filter(|(group, partition)| self.offset(group, topic, *partition).is_none());
        records.extend(alone.map(|(group, partition)| tombstone(group, topic, partition)));
        records
    }

    /// What to store to forget offsets of groups that have had no members for the retention time (KIP-211), and groups that
    /// have neither members nor offsets, as console consumers leave them and as deletions of offsets do.
    pub fn expire_offsets(&self, wall_ms: i64) -> Vec<GroupRecord> {
        let ids: BTreeSet<&String> =
            self.offsets.keys().chain(self.groups.keys()).chain(self.consumers.keys()).collect();
        let mut records = Vec::new();
        for id in ids {
            let gone = self.expired(id, wall_ms);
            let all = gone.len() == self.offsets(id).map(|(_, partitions)| partitions.len()).sum::<usize>()
                && !self.pending.contains_group(id);
            records.extend(gone);
            let is_unused = match self.groups.get(id) {
                Some(group) => group.is_empty() && group.pending.is_empty(),
                None => !self.consumers.contains_key(id),
            };
            if all && is_unused {
                records.push(GroupRecord::Group { group: id.clone(), value: None });
            }
            if let Some((ErrorCode::None, tombstones)) = self.delete_consumer(id).filter(|_| all) {
                records.extend(tombstones);
            }
        }
        records
    }

    /// Tombstones for the offsets of a group that nobody has used for the retention time, counted from when its last member
    /// left or they were committed, whichever was later. While there are members, that is only said of topics that they do
    /// not subscribe to.
    fn expired(&self, id: &str, wall_ms: i64) -> Vec<GroupRecord> {
        let (mut since, mut used) = (i64::MIN, BTreeSet::new());
        if let Some(group) = self.groups.get(id) {
            if group.is_empty() {
                since = group.state_since_ms;
            } else if let Some(topics) = group.subscribed_topics().filter(|_| group.state == State::Stable) {
                used = topics;
            } else {
                return Vec::new();
            }
        }
        let retention_ms = self.config.offsets_retention_ms;
        let by_use = |v: &CommittedOffset| v.commit_timestamp_ms.max(since).saturating_add(retention_ms);
        let is_over = |v: &CommittedOffset| v.expire_timestamp_ms.unwrap_or_else(|| by_use(v)) <= wall_ms;
        self.tombstones(id, |topic, partition, v| {
            let is_used = used.contains(topic) || self.is_subscribed(id, topic);
            is_over(v) && !is_used && !self.pending.contains(id, topic, partition)
        })
    }

    /// When [`Coordinator::tick`] has to be called next, if ever.
    pub fn next_deadline_ms(&self) -> Option<i64> {
        self.deadlines.first().map(|(due, _)| *due)
    }

    /// Ends sessions and rebalances that have timed out. Nobody is taken for gone whose deadline is later than `heard_ms`:
    /// every request that came before that moment has been worked on. It lies behind `now_ms` where the broker itself was
    /// held up, with heartbeats waiting for it. What comes of it, group by group.
    pub fn tick(&mut self, clock: Clock, heard_ms: i64) -> Vec<(String, Outcome)> {
        let Clock { now_ms, wall_ms } = clock;
        let due: Vec<String> =
            self.deadlines.iter().take_while(|(due, _)| *due <= now_ms).map(|(_, id)| id.clone()).collect();
        let end = |id: String| {
            let mut out = Outcome::default();
            self.tick_consumer(clock, heard_ms, &id, &mut out);
            if let Some(group) = self.groups.get_mut(&id)
                && group.next_deadline_ms().is_some_and(|deadline| deadline <= now_ms)
            {
                group.tick((now_ms, heard_ms), wall_ms, &self.config, &mut out);
            }
            self.reschedule(&id);
            (id, out)
        };
        due.into_iter().map(end).collect()
    }
}

fn tombstone(group: &str, topic: &str, partition: i32) -> GroupRecord {
    GroupRecord::Offset { group: group.to_owned(), topic: topic.to_owned(), partition, value: None }
}
