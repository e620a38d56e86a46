//! One classic group as a state machine. Follows Kafka's `ClassicGroup` and its coordinator's rules; pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use caudal_protocol::messages::join_group_response::JoinGroupResponseMember;
use caudal_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse};
use caudal_protocol::records::group::GroupMetadataValue;

use super::consumer::classic::{CONSUMER, read_subscription};
use super::member::Member;
use super::record::{GroupRecord, stored_member};
use super::{Outcome, Reply, Waiter};

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    Stable,
}

impl State {
    /// The name that DescribeGroups and ListGroups show.
    pub fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::PreparingRebalance => "PreparingRebalance",
            State::CompletingRebalance => "CompletingRebalance",
            State::Stable => "Stable",
        }
    }
}

/// Who joins, beside the request itself.
#[derive(Debug, Clone)]
pub struct Joiner {
    pub waiter: Waiter,
    pub client_id: String,
    pub client_host: String,
    /// The id that a new member gets.
    pub fresh_member_id: String,
    /// From version 4 on a new dynamic member must come back with its id (KIP-394).
    pub requires_known_id: bool,
    /// Version 9: a static member that replaces itself may be told to skip its assignment.
    pub supports_skipping_assignment: bool,
}

/// A group and its members.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub id: String,
    pub state: State,
    pub generation: i32,
    pub protocol_type: Option<String>,
    pub protocol_name: Option<String>,
    pub leader: Option<String>,
    pub members: BTreeMap<String, Member>,
    /// How many members know a protocol.
    supported: BTreeMap<String, usize>,
    /// Instance id of a static member to its member id.
    pub statics: BTreeMap<String, String>,
    /// Ids handed out whose owner has not come back yet, with the time they lapse.
    pub pending: BTreeMap<String, i64>,
    /// When a rebalance ends whoever is missing (PreparingRebalance), or when members that have not asked for their
    /// assignment are dropped (CompletingRebalance).
    pub deadline_ms: Option<i64>,
    /// While the first members gather: the rebalance ends no later than this.
    initial_until_ms: Option<i64>,
    /// The generation whose assignment is being stored: nobody gets theirs before that is done.
    storing: Option<i32>,
    /// Wall clock of the last change of state, for expiring the offsets of empty groups.
    pub state_since_ms: i64,
}

pub(super) fn join_error(error: ErrorCode, member_id: &str) -> Reply {
    Reply::Join(JoinGroupResponse {
        error_code: error.code(),
        generation_id: -1,
        protocol_name: Some(String::new()),
        member_id: member_id.to_owned(),
        ..JoinGroupResponse::default()
    })
}

pub(super) fn sync_error(error: ErrorCode) -> Reply {
    Reply::Sync(SyncGroupResponse { error_code: error.code(), ..SyncGroupResponse::default() })
}

impl Group {
    pub fn new(id: &str, wall_ms: i64) -> Group {
        Group {
            id: id.to_owned(),
            state: State::Empty,
            generation: 0,
            protocol_type: None,
            protocol_name: None,
            leader: None,
            members: BTreeMap::new(),
            supported: BTreeMap::new(),
            statics: BTreeMap::new(),
            pending: BTreeMap::new(),
            deadline_ms: None,
            initial_until_ms: None,
            storing: None,
            state_since_ms: wall_ms,
        }
    }

    /// The group as its record describes it. Members get a fresh session, as they cannot have reached a broker that was down.
    pub fn from_record(id: &str, value: &GroupMetadataValue, now_ms: i64) -> Group {
        let mut group = Group::new(id, value.current_state_timestamp);
        group.generation = value.generation;
        group.protocol_type = Some(value.protocol_type.clone()).filter(|t| !t.is_empty());
        group.protocol_name = value.protocol.clone();
        group.leader = value.leader.clone();
        for m in &value.members {
            let protocol = JoinGroupRequestProtocol {
                name: value.protocol.clone().unwrap_or_default(),
                metadata: m.subscription.clone(),
            };
            let mut member = Member {
                id: m.member_id.clone(),
                instance_id: m.group_instance_id.clone(),
                client_id: m.client_id.clone(),
                client_host: m.client_host.clone(),
                session_timeout_ms: m.session_timeout,
                rebalance_timeout_ms: if m.rebalance_timeout < 0 { m.session_timeout } else { m.rebalance_timeout },
                protocols: vec![protocol],
                assignment: m.assignment.clone(),
                session_deadline_ms: 0,
                waiting_join: None,
                waiting_sync: None,
                synced: true,
            };
            member.touch(now_ms);
            group.add(member);
        }
        group.state = if group.members.is_empty() { State::Empty } else { State::Stable };
        group
    }

    pub(super) fn add(&mut self, member: Member) {
        if let Some(instance) = &member.instance_id {
            self.statics.insert(instance.clone(), member.id.clone());
        }
        self.pending.remove(&member.id);
        self.leader.get_or_insert_with(|| member.id.clone());
        self.count(&member, true);
        if let Some(old) = self.members.insert(member.id.clone(), member) {
            self.count(&old, false);
        }
    }

    pub(super) fn take(&mut self, id: &str) -> Option<Member> {
        let member = self.members.remove(id)?;
        self.count(&member, false);
        Some(member)
    }

    /// Counts the protocols that a member knows.
    fn count(&mut self, member: &Member, add: bool) {
        let names: BTreeSet<&str> = member.protocols.iter().map(|protocol| protocol.name.as_str()).collect();
        for name in names {
            let count = self.supported.entry(name.to_owned()).or_default();
            *count = if add { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.supported.remove(name);
            }
        }
    }

    /// The topics that its members say they read. `None`: it is no group of consumers, or somebody's subscription cannot be
    /// read, so that any topic may be in use.
    pub fn subscribed_topics(&self) -> Option<BTreeSet<String>> {
        let protocol = self.protocol_name.as_deref().filter(|_| self.protocol_type.as_deref() == Some(CONSUMER))?;
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            topics.extend(read_subscription(member.metadata(protocol)).ok()?.topics);
        }
        Some(topics)
    }

    /// What is persisted of the group now.
    pub fn record(&self) -> GroupRecord {
        let protocol = self.protocol_name.clone().unwrap_or_default();
        GroupRecord::Group {
            group: self.id.clone(),
            value: Some(GroupMetadataValue {
                protocol_type: self.protocol_type.clone().unwrap_or_default(),
                generation: self.generation,
                protocol: self.protocol_name.clone(),
                leader: self.leader.clone(),
                current_state_timestamp: self.state_since_ms,
                members: self.members.values().map(|m| stored_member(m, &protocol)).collect(),
            }),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn enter(&mut self, state: State, wall_ms: i64) {
        self.state = state;
        self.state_since_ms = wall_ms;
    }

    /// Checks a member's claim to its id. `UNKNOWN_MEMBER_ID`, `FENCED_INSTANCE_ID` or nothing.
    pub fn check_member(&self, member_id: &str, instance_id: Option<&str>) -> ErrorCode {
        if let Some(instance) = instance_id {
            return match self.statics.get(instance) {
                None => ErrorCode::UnknownMemberId,
                Some(id) if id != member_id => ErrorCode::FencedInstanceId,
                Some(_) => ErrorCode::None,
            };
        }
        if self.members.contains_key(member_id) { ErrorCode::None } else { ErrorCode::UnknownMemberId }
    }

    fn protocols_agree(&self, request: &JoinGroupRequest) -> bool {
        if self.members.is_empty() {
            return !request.protocol_type.is_empty() && !request.protocols.is_empty();
        }
        let own = self.members.get(&request.member_id);
        let others = self.members.len() - usize::from(own.is_some());
        let all_others_know = |name: &str| {
            let mine = own.is_some_and(|member| member.protocols.iter().any(|protocol| protocol.name == name));
            self.supported.get(name).is_some_and(|count| count - usize::from(mine) == others)
        };
        self.protocol_type.as_deref() == Some(request.protocol_type.as_str())
            && (others == 0 || request.protocols.iter().any(|protocol| all_others_know(&protocol.name)))
    }

    /// JoinGroup. The answer may come at once or with the end of the rebalance.
    pub fn join(
        &mut self,
        now_ms: i64,
        wall_ms: i64,
        config: &super::GroupConfig,
        request: &JoinGroupRequest,
        joiner: Joiner,
        out: &mut Outcome,
    ) {
        let refuse =
            |out: &mut Outcome, error: ErrorCode| out.reply(joiner.waiter, join_error(error, &request.member_id));
        let instance = request.group_instance_id.as_deref();
        if !self.protocols_agree(request) {
            return refuse(out, ErrorCode::InconsistentGroupProtocol);
        }
        let full = self.members.len() >= config.max_size;
        if request.member_id.is_empty() {
            if let Some(old) = instance.and_then(|i| self.statics.get(i)).cloned() {
                return self.replace_static(now_ms, wall_ms, config, &old, request, joiner, out);
            }
            if full {
                return refuse(out, ErrorCode::GroupMaxSizeReached);
            }
            if instance.is_none() && joiner.requires_known_id {
                self.pending.insert(joiner.fresh_member_id.clone(), now_ms + i64::from(request.session_timeout_ms));
                return out.reply(joiner.waiter, join_error(ErrorCode::MemberIdRequired, &joiner.fresh_member_id));
            }
            let id = joiner.fresh_member_id.clone();
            return self.admit(now_ms, wall_ms, config, id, request, joiner, out);
        }
        if instance.is_none() && self.pending.contains_key(&request.member_id) {
            if full {
                return refuse(out, ErrorCode::GroupMaxSizeReached);
            }
            return self.admit(now_ms, wall_ms, config, request.member_id.clone(), request, joiner, out);
        }
        match self.check_member(&request.member_id, instance) {
            ErrorCode::None => self.rejoin(now_ms, wall_ms, config, request, joiner, out),
            error => refuse(out, error),
        }
    }

    pub(super) fn new_member(&self, now_ms: i64, id: String, request: &JoinGroupRequest, joiner: &Joiner) -> Member {
        let rebalance =
            if request.rebalance_timeout_ms < 0 { request.session_timeout_ms } else { request.rebalance_timeout_ms };
        let mut member = Member {
            id,
            instance_id: request.group_instance_id.clone(),
            client_id: joiner.client_id.clone(),
            client_host: joiner.client_host.clone(),
            session_timeout_ms: request.session_timeout_ms,
            rebalance_timeout_ms: rebalance,
            protocols: request.protocols.clone(),
            assignment: Bytes::new(),
            session_deadline_ms: 0,
            waiting_join: Some(joiner.waiter),
            waiting_sync: None,
            synced: false,
        };
        member.touch(now_ms);
        member
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request; a struct would only rename them")]
    fn admit(
        &mut self,
        now_ms: i64,
        wall_ms: i64,
        config: &super::GroupConfig,
        id: String,
        request: &JoinGroupRequest,
        joiner: Joiner,
        out: &mut Outcome,
    ) {
        let member = self.new_member(now_ms, id, request, &joiner);
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type.clone());
            self.leader = None;
        }
        self.add(member);
        // Newcomers extend the first wait, so that a group that starts together is assigned once.
        if self.state == State::PreparingRebalance
            && let Some(until) = self.initial_until_ms
        {
            self.deadline_ms = Some((now_ms + config.initial_rebalance_delay_ms).min(until));
        }
        self.prepare_rebalance(now_ms, wall_ms, config, out);
    }

    fn update(&mut self, now_ms: i64, request: &JoinGroupRequest, waiter: Waiter, out: &mut Outcome) {
        let Some(mut member) = self.take(&request.member_id) else { return };
        member.protocols = request.protocols.clone();
        member.session_timeout_ms = request.session_timeout_ms;
        if request.rebalance_timeout_ms >= 0 {
            member.rebalance_timeout_ms = request.rebalance_timeout_ms;
        }
        member.touch(now_ms);
        // A second join on another connection takes the place of the first.
        if let Some(old) = member.waiting_join.replace(waiter) {
            out.reply(old, join_error(ErrorCode::UnknownMemberId, &request.member_id));
        }
        self.add(member);
    }

    fn rejoin(
        &mut self,
        now_ms: i64,
        wall_ms: i64,
        config: &super::GroupConfig,
        request: &JoinGroupRequest,
        joiner: Joiner,
        out: &mut Outcome,
    ) {
        let Some(member) = self.members.get_mut(&request.member_id) else { return };
        let same = member.protocols == request.protocols;
        let is_leader = self.leader.as_deref() == Some(request.member_id.as_str());
        match self.state {
            State::Empty => out.reply(joiner.waiter, join_error(ErrorCode::UnknownMemberId, &request.member_id)),
            State::CompletingRebalance if same => {
                member.touch(now_ms);
                let reply = self.join_reply(&request.member_id, false);
                out.reply(joiner.waiter, reply);
            }
            State::Stable if same && !is_leader => {
                member.touch(now_ms);
                let reply = self.join_reply(&request.member_id, false);
                out.reply(joiner.waiter, reply);
            }
            _ => {
                self.update(now_ms, request, joiner.waiter, out);
                self.prepare_rebalance(now_ms, wall_ms, config, out);
            }
        }
    }

    pub(super) fn join_reply(&self, member_id: &str, skip_assignment: bool) -> Reply {
        let protocol = self.protocol_name.clone().unwrap_or_default();
        let is_leader = self.leader.as_deref() == Some(member_id);
        let members = if !is_leader {
            Vec::new()
        } else {
            let show = |m: &Member| JoinGroupResponseMember {
                member_id: m.id.clone(),
                group_instance_id: m.instance_id.clone(),
                metadata: m.metadata(&protocol),
            };
            self.members.values().map(show).collect()
        };
        Reply::Join(JoinGroupResponse {
            generation_id: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol_name: Some(protocol),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment,
            member_id: member_id.to_owned(),
            members,
            ..JoinGroupResponse::default()
        })
    }

    pub(super) fn prepare_rebalance(
        &mut self,
        now_ms: i64,
        wall_ms: i64,
        config: &super::GroupConfig,
        out: &mut Outcome,
    ) {
        match self.state {
            State::PreparingRebalance => {}
            State::Empty => {
                self.enter(State::PreparingRebalance, wall_ms);
                let longest = self.longest_rebalance_ms();
                self.initial_until_ms = Some(now_ms + longest);
                self.deadline_ms = Some(now_ms + config.initial_rebalance_delay_ms.min(longest));
                if config.initial_rebalance_delay_ms <= 0 {
                    self.initial_until_ms = None;
                    self.deadline_ms = Some(now_ms + longest);
                }
            }
            State::CompletingRebalance | State::Stable => {
                for member in self.members.values_mut() {
                    if self.state == State::CompletingRebalance {
                        member.assignment = Bytes::new();
                    }
                    if let Some(waiter) = member.waiting_sync.take() {
                        out.reply(waiter, sync_error(ErrorCode::RebalanceInProgress));
                    }
                }
                self.storing = None;
                self.enter(State::PreparingRebalance, wall_ms);
                self.deadline_ms = Some(now_ms + self.longest_rebalance_ms());
            }
        }
        self.try_complete_join(now_ms, wall_ms, out);
    }

    fn longest_rebalance_ms(&self) -> i64 {
        self.members.values().map(|m| i64::from(m.rebalance_timeout_ms)).max().unwrap_or(0)
    }

    /// Ends the gathering when everybody is there, unless the group still waits for its first members.
    fn try_complete_join(&mut self, now_ms: i64, wall_ms: i64, out: &mut Outcome) {
        let gathering = self.state == State::PreparingRebalance && self.initial_until_ms.is_none();
        if gathering && self.pending.is_empty() && self.members.values().all(|m| m.waiting_join.is_some()) {
            self.complete_join(now_ms, wall_ms, out);
        }
    }

    pub(super) fn choose_protocol(&self) -> Option<String> {
        let first = self.members.values().next()?;
        let wishes = || first.protocols.iter().map(|p| p.name.as_str());
        let all = Some(self.members.len());
        let common: BTreeSet<&str> = wishes().filter(|name| self.supported.get(*name).copied() == all).collect();
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some(vote) = member.protocols.iter().find(|p| common.contains(p.name.as_str())) {
                *votes.entry(vote.name.as_str()).or_default() += 1;
            }
        }
        // Of those with as many votes, the one that the first member likes best.
        let candidates = wishes().enumerate().filter(|(_, name)| common.contains(name));
        let best = candidates.max_by_key(|(place, name)| (votes.get(name).copied(), std::cmp::Reverse(*place)));
        best.map(|(_, name)| name.to_owned())
    }

    fn complete_join(&mut self, now_ms: i64, wall_ms: i64, out: &mut Outcome) {
        // Dynamic members that did not come back are out; static ones keep their place until their session ends.
        let missing: Vec<String> = self
            .members
            .values()
            .filter(|m| m.waiting_join.is_none() && m.instance_id.is_none())
            .map(|m| m.id.clone())
            .collect();
        for id in missing {
            self.take(&id);
        }
        self.initial_until_ms = None;
        self.deadline_ms = None;
        self.generation += 1;
        if self.members.is_empty() {
            self.protocol_name = None;
            self.leader = None;
            self.enter(State::Empty, wall_ms);
            out.records.push(self.record());
            return;
        }
        if self.members.values().all(|m| m.waiting_join.is_none()) {
            // Only absent static members are left: wait on until their sessions end.
            self.generation -= 1;
            self.deadline_ms = Some(now_ms + self.longest_rebalance_ms());
            return;
        }
        let leader_present =
            self.leader.as_ref().and_then(|l| self.members.get(l)).is_some_and(|m| m.waiting_join.is_some());
        if !leader_present {
            self.leader = self.members.values().find(|m| m.waiting_join.is_some()).map(|m| m.id.clone());
        }
        self.protocol_name = self.choose_protocol();
        self.enter(State::CompletingRebalance, wall_ms);
        self.deadline_ms = Some(now_ms + self.longest_rebalance_ms());
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let reply = self.join_reply(&id, false);
            if let Some(member) = self.members.get_mut(&id) {
                member.synced = false;
                member.touch(now_ms);
                if let Some(waiter) = member.waiting_join.take() {
                    out.reply(waiter, reply);
                }
            }
        }
    }

    /// SyncGroup. Members wait for the leader's assignment, which is stored before anybody gets it.
    pub fn sync(&mut self, now_ms: i64, wall_ms: i64, waiter: Waiter, request: &SyncGroupRequest, out: &mut Outcome) {
        let mut error = self.check_member(&request.member_id, request.group_instance_id.as_deref());
        if !error.is_error() && request.generation_id != self.generation {
            error = ErrorCode::IllegalGeneration;
        }
        let differs = |claimed: &Option<String>, ours: &Option<String>| claimed.is_some() && claimed != ours;
        if !error.is_error()
            && (differs(&request.protocol_type, &self.protocol_type)
                || differs(&request.protocol_name, &self.protocol_name))
        {
            error = ErrorCode::InconsistentGroupProtocol;
        }
        if !error.is_error() {
            error = match self.state {
                State::Empty => ErrorCode::UnknownMemberId,
                State::PreparingRebalance => ErrorCode::RebalanceInProgress,
                State::CompletingRebalance | State::Stable => ErrorCode::None,
            };
        }
        if error.is_error() {
            return out.reply(waiter, sync_error(error));
        }
        if let Some(member) = self.members.get_mut(&request.member_id) {
            member.touch(now_ms);
            member.synced = true;
            if let Some(old) = member.waiting_sync.replace(waiter) {
                out.reply(old, sync_error(ErrorCode::UnknownMemberId));
            }
        }
        if self.state == State::Stable {
            return self.hand_out_assignments(out);
        }
        if self.leader.as_deref() == Some(request.member_id.as_str()) && self.storing.is_none() {
            for member in self.members.values_mut() {
                let found = request.assignments.iter().find(|a| a.member_id == member.id);
                member.assignment = found.map(|a| a.assignment.clone()).unwrap_or_default();
            }
            self.state_since_ms = wall_ms;
            self.storing = Some(self.generation);
            out.records.push(self.record());
            out.assigned = Some((self.id.clone(), self.generation));
        }
    }

    /// The assignment of a generation was stored, or could not be: then the group begins anew, as in Kafka.
    pub fn assignment_stored(
        &mut self,
        now_ms: i64,
        wall_ms: i64,
        config: &super::GroupConfig,
        (generation, error): (i32, ErrorCode),
        out: &mut Outcome,
    ) {
        if self.state != State::CompletingRebalance || self.storing != Some(generation) {
            return;
        }
        self.storing = None;
        if !error.is_error() {
            self.state = State::Stable;
            return self.hand_out_assignments(out);
        }
        for member in self.members.values_mut() {
            member.synced = false;
            if let Some(waiter) = member.waiting_sync.take() {
                out.reply(waiter, sync_error(error));
            }
        }
        self.prepare_rebalance(now_ms, wall_ms, config, out);
    }

    /// The group comes to its end: whoever waits for it is told.
    pub(super) fn answer_all(&mut self, error: ErrorCode, out: &mut Outcome) {
        for member in self.members.values_mut() {
            if let Some(waiter) = member.waiting_join.take() {
                out.reply(waiter, join_error(error, &member.id));
            }
            if let Some(waiter) = member.waiting_sync.take() {
                out.reply(waiter, sync_error(error));
            }
        }
    }

    /// Whether nothing would be lost with the group: no member ever was in it, and none is on the way.
    pub fn is_void(&self) -> bool {
        self.generation == 0 && self.members.is_empty() && self.pending.is_empty()
    }

    fn hand_out_assignments(&mut self, out: &mut Outcome) {
        for member in self.members.values_mut() {
            if let Some(waiter) = member.waiting_sync.take() {
                out.reply(
                    waiter,
                    Reply::Sync(SyncGroupResponse {
                        protocol_type: self.protocol_type.clone(),
                        protocol_name: self.protocol_name.clone(),
                        assignment: member.assignment.clone(),
                        ..SyncGroupResponse::default()
                    }),
                );
            }
        }
        if self.members.values().all(|m| m.synced) {
            self.deadline_ms = None;
        }
    }

    /// Heartbeat: the error code to answer.
    pub fn heartbeat(&mut self, now_ms: i64, member_id: &str, instance_id: Option<&str>, generation: i32) -> ErrorCode {
        let error = self.check_member(member_id, instance_id);
        if error.is_error() {
            return error;
        }
        if generation != self.generation {
            return ErrorCode::IllegalGeneration;
        }
        let Some(member) = self.members.get_mut(member_id) else { return ErrorCode::UnknownMemberId };
        member.touch(now_ms);
        match self.state {
            State::Empty => ErrorCode::UnknownMemberId,
            State::PreparingRebalance => ErrorCode::RebalanceInProgress,
            State::CompletingRebalance | State::Stable => ErrorCode::None,
        }
    }

    /// One member leaves, by member id or (static members) by instance id.
    pub fn leave(
        &mut self,
        now_ms: i64,
        wall_ms: i64,
        config: &super::GroupConfig,
        member_id: &str,
        instance_id: Option<&str>,
        out: &mut Outcome,
    ) -> ErrorCode {
        let id = match instance_id {
            Some(instance) => match self.statics.get(instance) {
                None => return ErrorCode::UnknownMemberId,
                Some(id) if !member_id.is_empty() && id != member_id => return ErrorCode::FencedInstanceId,
                Some(id) => id.clone(),
            },
            None if self.pending.remove(member_id).is_some() => {
                self.try_complete_join(now_ms, wall_ms, out);
                return ErrorCode::None;
            }
            None => member_id.to_owned(),
        };
        if !self.members.contains_key(&id) {
            return ErrorCode::UnknownMemberId;
        }
        self.remove(now_ms, wall_ms, config, &id, out);
        ErrorCode::None
    }

    fn remove(&mut self, now_ms: i64, wall_ms: i64, config: &super::GroupConfig, id: &str, out: &mut Outcome) {
        let Some(member) = self.take(id) else { return };
        if let Some(waiter) = member.waiting_join {
            out.reply(waiter, join_error(ErrorCode::UnknownMemberId, id));
        }
        if let Some(waiter) = member.waiting_sync {
            out.reply(waiter, sync_error(ErrorCode::UnknownMemberId));
        }
        if let Some(instance) = &member.instance_id {
            self.statics.remove(instance);
        }
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
        match self.state {
            State::Stable | State::CompletingRebalance => self.prepare_rebalance(now_ms, wall_ms, config, out),
            State::PreparingRebalance => self.try_complete_join(now_ms, wall_ms, out),
            State::Empty => {}
        }
        // The last one to go while the first members still gather: nothing is left to wait for.
        if self.members.is_empty() && self.state == State::PreparingRebalance {
            self.complete_join(now_ms, wall_ms, out);
        }
    }

    /// When [`Group::tick`] has to be called next.
    pub fn next_deadline_ms(&self) -> Option<i64> {
        let sessions = self.members.values().filter(|m| m.waiting_join.is_none()).map(|m| m.session_deadline_ms);
        sessions.chain(self.pending.values().copied()).chain(self.deadline_ms).min()
    }

    /// Ends what has timed out by `now_ms`.
    pub fn tick(
        &mut self,
        (now_ms, heard_ms): (i64, i64),
        wall_ms: i64,
        config: &super::GroupConfig,
        out: &mut Outcome,
    ) {
        self.pending.retain(|_, until| *until > heard_ms);
        // A member whose join waits is kept: it cannot send heartbeats meanwhile.
        let expired: Vec<String> = self
            .members
            .values()
            .filter(|m| m.waiting_join.is_none() && m.session_deadline_ms <= heard_ms)
            .map(|m| m.id.clone())
            .collect();
        for id in expired {
            self.remove(now_ms, wall_ms, config, &id, out);
        }
        self.try_complete_join(now_ms, wall_ms, out);
        // A rebalance that waits only for its delay ends on time; one that would go on without somebody, when it is sure that
        // they said nothing.
        let all_came = match self.state {
            State::PreparingRebalance => self.members.values().all(|m| m.waiting_join.is_some()),
            State::CompletingRebalance | State::Stable => self.members.values().all(|m| m.synced),
            State::Empty => true,
        };
        if self.deadline_ms.is_some_and(|d| d <= if all_came { now_ms } else { heard_ms }) {
            match self.state {
                State::PreparingRebalance => self.complete_join(now_ms, wall_ms, out),
                State::CompletingRebalance | State::Stable => {
                    self.deadline_ms = None;
                    let late: Vec<String> = self.members.values().filter(|m| !m.synced).map(|m| m.id.clone()).collect();
                    for id in late {
                        self.remove(now_ms, wall_ms, config, &id, out);
                    }
                }
                State::Empty => self.deadline_ms = None,
            }
        }
    }
}
