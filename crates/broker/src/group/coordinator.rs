//! All groups of this broker with their committed offsets: a fold over [`GroupRecord`]s plus the volatile side of
//! rebalances. Pure: time comes in, records and answers go out.

use std::collections::{BTreeMap, HashMap};

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::leave_group_response::MemberResponse;
use caudal_protocol::messages::list_groups_response::ListedGroup;
use caudal_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse};

use super::machine::{Group, Joiner, State};
use super::record::{CommittedOffset, GroupRecord};
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
}

impl Default for GroupConfig {
    fn default() -> Self {
        GroupConfig {
            session_timeout_ms: (6_000, 1_800_000),
            initial_rebalance_delay_ms: 3_000,
            max_size: i32::MAX as usize,
            metadata_max_bytes: 4096,
            offsets_retention_ms: 7 * 24 * 3_600_000,
        }
    }
}

type Offsets = BTreeMap<String, BTreeMap<i32, CommittedOffset>>;

/// Groups, offsets and their configuration. `now_ms` is a monotonic clock, `wall_ms` milliseconds since 1970.
#[derive(Debug)]
pub struct Coordinator {
    pub config: GroupConfig,
    groups: HashMap<String, Group>,
    offsets: HashMap<String, Offsets>,
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
    pub fn new(config: GroupConfig) -> Coordinator {
        Coordinator { config, groups: HashMap::new(), offsets: HashMap::new() }
    }

    /// Applies one stored record while loading.
    pub fn replay(&mut self, record: GroupRecord, now_ms: i64) {
        match record {
            GroupRecord::Offset { group, topic, partition, value } => self.put_offset(&group, &topic, partition, value),
            GroupRecord::Group { group, value: Some(value) } => {
                let loaded = Group::from_record(&group, &value, now_ms);
                self.groups.insert(group, loaded);
            }
            GroupRecord::Group { group, value: None } => {
                self.groups.remove(&group);
            }
        }
    }

    /// Every record that rebuilds the present state: what a compacted log would hold.
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
        groups.chain(offsets).collect()
    }

    fn put_offset(&mut self, group: &str, topic: &str, partition: i32, value: Option<CommittedOffset>) {
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
                if let Some(topics) = self.offsets.get_mut(group) {
                    if let Some(partitions) = topics.get_mut(topic) {
                        partitions.remove(&partition);
                    }
                    topics.retain(|_, partitions| !partitions.is_empty());
                    if topics.is_empty() {
                        self.offsets.remove(group);
                    }
                }
            }
        }
    }

    /// JoinGroup.
    pub fn join(&mut self, now_ms: i64, wall_ms: i64, request: &JoinGroupRequest, joiner: Joiner) -> Outcome {
        let mut out = Outcome::default();
        let (lowest, highest) = self.config.session_timeout_ms;
        let error = if request.group_id.is_empty() {
            ErrorCode::InvalidGroupId
        } else if request.session_timeout_ms < lowest || request.session_timeout_ms > highest {
            ErrorCode::InvalidSessionTimeout
        } else if !request.member_id.is_empty() && !self.groups.contains_key(&request.group_id) {
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
        let group =
            self.groups.entry(request.group_id.clone()).or_insert_with(|| Group::new(&request.group_id, wall_ms));
        group.join(now_ms, wall_ms, &self.config, request, joiner, &mut out);
        out
    }

    /// SyncGroup.
    pub fn sync(&mut self, now_ms: i64, wall_ms: i64, request: &SyncGroupRequest, waiter: Waiter) -> Outcome {
        let mut out = Outcome::default();
        match self.groups.get_mut(&request.group_id) {
            Some(group) => group.sync(now_ms, wall_ms, waiter, request, &mut out),
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
        (answers, out)
    }

    /// Whether a commit is allowed. Kafka's rules: outsiders only while the group is empty, members only in their generation.
    pub fn check_commit(&mut self, now_ms: i64, who: Committer<'_>) -> ErrorCode {
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

    /// Takes offsets that [`Coordinator::check_commit`] allowed; returns what to store.
    pub fn commit(&mut self, group: &str, offsets: Vec<(String, i32, CommittedOffset)>) -> Vec<GroupRecord> {
        let mut records = Vec::with_capacity(offsets.len());
        for (topic, partition, value) in offsets {
            self.put_offset(group, &topic, partition, Some(value.clone()));
            records.push(GroupRecord::Offset { group: group.to_owned(), topic, partition, value: Some(value) });
        }
        records
    }

    /// A committed offset.
    pub fn offset(&self, group: &str, topic: &str, partition: i32) -> Option<&CommittedOffset> {
        self.offsets.get(group)?.get(topic)?.get(&partition)
    }

    /// All committed offsets of a group, by topic and partition.
    pub fn offsets(&self, group: &str) -> impl Iterator<Item = (&String, &BTreeMap<i32, CommittedOffset>)> {
        self.offsets.get(group).into_iter().flatten()
    }

    /// DescribeGroups for one id. `None`: there is no such group.
    pub fn describe(&self, id: &str) -> Option<DescribedGroup> {
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

    /// ListGroups. Empty filters take everything; names compare without case.
    pub fn list(&self, states: &[String], types: &[String]) -> Vec<ListedGroup> {
        let wanted =
            |filter: &[String], name: &str| filter.is_empty() || filter.iter().any(|f| f.eq_ignore_ascii_case(name));
        if !wanted(types, "classic") {
            return Vec::new();
        }
        let only_offsets =
            self.offsets.keys().filter(|id| !self.groups.contains_key(*id)).map(|id| (id, "", State::Empty));
        let groups = self.groups.values().map(|g| (&g.id, g.protocol_type.as_deref().unwrap_or_default(), g.state));
        let mut list: Vec<ListedGroup> = groups
            .chain(only_offsets)
            .filter(|(_, _, state)| wanted(states, state.name()))
            .map(|(id, protocol_type, state)| ListedGroup {
                group_id: id.clone(),
                protocol_type: protocol_type.to_owned(),
                group_state: state.name().to_owned(),
                group_type: "classic".to_owned(),
            })
            .collect();
        list.sort_by(|a, b| a.group_id.cmp(&b.group_id));
        list
    }

    /// DeleteGroups for one id: the error, and the tombstones to store.
    pub fn delete(&mut self, id: &str) -> (ErrorCode, Vec<GroupRecord>) {
        let group = self.groups.get(id);
        if group.is_none() && !self.offsets.contains_key(id) {
            return (ErrorCode::GroupIdNotFound, Vec::new());
        }
        if group.is_some_and(|g| !g.is_empty() || !g.pending.is_empty() || g.state != State::Empty) {
            return (ErrorCode::NonEmptyGroup, Vec::new());
        }
        let mut records = self.tombstones(id, |_, _, _| true);
        if self.groups.remove(id).is_some() {
            records.push(GroupRecord::Group { group: id.to_owned(), value: None });
        }
        (ErrorCode::None, records)
    }

    /// Forgets the offsets of a group that `which(topic, partition, offset)` names.
    fn tombstones(&mut self, group: &str, which: impl Fn(&str, i32, &CommittedOffset) -> bool) -> Vec<GroupRecord> {
        let mut gone: Vec<(String, i32)> = Vec::new();
        for (topic, partitions) in self.offsets(group) {
            gone.extend(partitions.iter().filter(|(p, v)| which(topic, **p, v)).map(|(p, _)| (topic.clone(), *p)));
        }
        gone.into_iter()
            .map(|(topic, partition)| {
                self.put_offset(group, &topic, partition, None);
                GroupRecord::Offset { group: group.to_owned(), topic, partition, value: None }
            })
            .collect()
    }

    /// Whether members of the group may be reading; then single offsets cannot be deleted.
    pub fn has_members(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(|g| !g.is_empty())
    }

    /// The topics that members of a group subscribe to, where the group speaks the consumer protocol.
    pub fn subscriptions(&self, group: &str) -> Vec<(String, bytes::Bytes)> {
        let Some(group) = self.groups.get(group) else { return Vec::new() };
        let protocol = group.protocol_name.clone().unwrap_or_default();
        group.members.values().map(|m| (m.id.clone(), m.metadata(&protocol))).collect()
    }

    pub fn exists(&self, group: &str) -> bool {
        self.groups.contains_key(group) || self.offsets.contains_key(group)
    }

    /// OffsetDelete: forgets single offsets.
    pub fn delete_offsets(&mut self, group: &str, topic: &str, partition: i32) -> Vec<GroupRecord> {
        self.tombstones(group, |t, p, _| t == topic && p == partition)
    }

    /// Forgets the offsets of topics that are gone.
    pub fn topic_deleted(&mut self, topic: &str) -> Vec<GroupRecord> {
        let groups: Vec<String> =
            self.offsets.iter().filter(|(_, t)| t.contains_key(topic)).map(|(g, _)| g.clone()).collect();
        groups.iter().flat_map(|g| self.tombstones(g, |t, _, _| t == topic)).collect()
    }

    /// Forgets offsets of groups that have had no members for the retention time (KIP-211), and groups that have neither
    /// members nor offsets, as console consumers leave them.
    pub fn expire_offsets(&mut self, wall_ms: i64) -> Vec<GroupRecord> {
        let retention_ms = self.config.offsets_retention_ms;
        let mut records = Vec::new();
        let ids: Vec<String> = self.offsets.keys().cloned().collect();
        for id in ids {
            let since = match self.groups.get(&id) {
                Some(g) if !g.is_empty() => continue,
                Some(g) => g.state_since_ms,
                None => i64::MIN,
            };
            records.extend(self.tombstones(&id, |_, _, v| v.commit_timestamp_ms.max(since) + retention_ms <= wall_ms));
        }
        let idle: Vec<String> = self
            .groups
            .values()
            .filter(|g| g.is_empty() && g.pending.is_empty() && !self.offsets.contains_key(&g.id))
            .map(|g| g.id.clone())
            .collect();
        for id in idle {
            self.groups.remove(&id);
            records.push(GroupRecord::Group { group: id, value: None });
        }
        records
    }

    /// When [`Coordinator::tick`] has to be called next, if ever.
    pub fn next_deadline_ms(&self) -> Option<i64> {
        self.groups.values().filter_map(Group::next_deadline_ms).min()
    }

    /// Ends sessions and rebalances that have timed out. Nobody is taken for gone whose deadline is later than `heard_ms`:
    /// every request that came before that moment has been worked on. It lies behind `now_ms` where the broker itself was
    /// held up, with heartbeats waiting for it.
    pub fn tick(&mut self, now_ms: i64, heard_ms: i64, wall_ms: i64) -> Outcome {
        let mut out = Outcome::default();
        for group in self.groups.values_mut() {
            if group.next_deadline_ms().is_some_and(|d| d <= now_ms) {
                group.tick((now_ms, heard_ms), wall_ms, &self.config, &mut out);
            }
        }
        out
    }
}
