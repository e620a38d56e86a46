//! Consumer groups among all groups of the coordinator: which group a request is for, what becomes of the records, who
//! commits for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_cluster::image::{ConfigResource, ConfigResourceType};
use caudal_protocol::messages::consumer_group_describe_response::{
    Assignment, DescribedGroup, Member as DescribedMember, TopicPartitions,
};
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::leave_group_response::MemberResponse;
use caudal_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};
use caudal_protocol::{ErrorCode, Uuid};

use super::super::coordinator::{Committer, Coordinator};
use super::super::machine::{Joiner, State};
use super::super::record::{CommittedOffset, GroupRecord};
use super::super::undo::Undo;
use super::super::{Job, Outcome, Reply, Waiter};
use super::group::{ConsumerGroup, ConsumerState};
use super::heartbeat::{Changes, Client, Env};
use super::member::{LEAVE_EPOCH, LEAVE_STATIC_EPOCH, Member};
use super::topics::{RegexJob, ResolvedRegex};
use super::{AssignJob, Clock, ConsumerRecord, GroupTimes, Partitions, Refusal};

/// The name that ListGroups shows for the type.
pub const CONSUMER_TYPE: &str = "consumer";

/// The first release of OffsetCommit that knows of member epochs.
const COMMIT_VERSION_OF_EPOCHS: i16 = 9;

impl Coordinator {
    /// The metadata as it is from now on.
    pub fn follow(&mut self, image: Arc<MetadataImage>) {
        if Arc::ptr_eq(&self.image, &image) {
            return;
        }
        let is_new = |topic: &Arc<caudal_cluster::image::Topic>| self.image.topic_by_id(&topic.id).is_none();
        if self.image.offset < 0 || image.topics().any(is_new) {
            self.new_topics_at = image.offset;
        }
        self.image = image;
    }

    /// All records are replayed: the clocks of the members start.
    pub fn start_consumer_clocks(&mut self, now_ms: i64) {
        let ids: Vec<String> = self.consumers.keys().cloned().collect();
        ids.iter().for_each(|id| self.start_clocks_of(id, now_ms));
    }

    /// Starts the clocks of a group that do not run.
    pub(in super::super) fn start_clocks_of(&mut self, id: &str, now_ms: i64) {
        let session_timeout_ms = self.times(id).session_timeout_ms;
        if let Some(group) = self.consumers.get_mut(id) {
            group.start_clocks(now_ms, session_timeout_ms);
        }
        self.reschedule(id);
    }

    /// What a group obeys: its own dynamic configs, held to the broker's limits, over the broker's.
    fn times(&self, group: &str) -> GroupTimes {
        let config = &self.config.consumer;
        let resource = ConfigResource { kind: ConfigResourceType::Group, name: group.to_owned() };
        let own = |name: &str, (min, max): (i32, i32)| {
            let value: i32 = self.image.config(&resource, name)?.trim().parse().ok()?;
            Some(value.clamp(min, max.max(min)))
        };
        let session = own("consumer.session.timeout.ms", config.session_timeout_range_ms);
        let heartbeat = own("consumer.heartbeat.interval.ms", config.heartbeat_interval_range_ms);
        let assignment = own("consumer.assignment.interval.ms", config.assignment_interval_range_ms);
        // The only one of the three that can be changed while the broker runs.
        let dynamic = |resource: ConfigResource| {
            self.image.config(&resource, "group.consumer.assignment.interval.ms")?.trim().parse::<i32>().ok()
        };
        let assignment = assignment
            .or_else(|| dynamic(ConfigResource::broker(config.node_id)))
            .or_else(|| dynamic(ConfigResource::all_brokers()));
        GroupTimes {
            session_timeout_ms: i64::from(session.unwrap_or(config.session_timeout_ms)),
            heartbeat_interval_ms: heartbeat.unwrap_or(config.heartbeat_interval_ms),
            assignment_interval_ms: i64::from(assignment.unwrap_or(config.assignment_interval_ms)),
        }
    }

    /// Applies one stored record while loading.
    pub(in super::super) fn replay_consumer(&mut self, id: &str, record: &ConsumerRecord) {
        if *record == ConsumerRecord::Group(None) {
            self.consumers.remove(id);
            self.forget_without_offsets(id);
            return;
        }
        if is_tombstone(record) {
            if let Some(group) = self.consumers.get_mut(id) {
                group.apply(record);
            }
            return;
        }
        self.groups.remove(id);
        self.consumers.entry(id.to_owned()).or_insert_with(|| ConsumerGroup::new(id)).apply(record);
    }

    /// A record that was decided on is stored.
    pub(in super::super) fn stored_consumer(&mut self, id: &str, record: &ConsumerRecord) {
        let Some(group) = self.consumers.get(id) else { return };
        // Somebody may have joined meanwhile; that is stored behind the deletion.
        if *record == ConsumerRecord::Group(None) && group.is_empty() {
            self.consumers.remove(id);
            self.forget_without_offsets(id);
            self.reschedule(id);
        }
    }

    /// ConsumerGroupHeartbeat that [`super::heartbeat::check`] allowed: stays, joins, or leaves.
    pub fn consumer_heartbeat(
        &mut self,
        clock: Clock,
        request: &ConsumerGroupHeartbeatRequest,
        client: Client<'_>,
        waiter: Waiter,
    ) -> Outcome {
        let mut out = Outcome::default();
        let result = match request.member_epoch {
            LEAVE_EPOCH | LEAVE_STATIC_EPOCH => self.consumer_leave(clock, request, &mut out),
            _ => self.consumer_stay(clock, request, client, &mut out),
        };
        let response = result.unwrap_or_else(Refusal::response);
        out.reply(waiter, Reply::Consumer(Box::new(response)));
        self.reschedule(&request.group_id);
        out
    }

    fn consumer_stay(
        &mut self,
        clock: Clock,
        request: &ConsumerGroupHeartbeatRequest,
        client: Client<'_>,
        out: &mut Outcome,
    ) -> Result<ConsumerGroupHeartbeatResponse, Refusal> {
        let id = request.group_id.as_str();
        let (image, times) = (self.image.clone(), self.times(id));
        let config = self.config.clone();
        let new_topics_at = self.new_topics_at;
        let env = Env { image: &image, new_topics_at, config: &config.consumer, times, clock };
        let mut changes = Changes::default();
        if let Some(group) = self.consumers.get_mut(id) {
            let response = group.heartbeat(env, client, request, &mut changes)?;
            self.keep(id, changes, out);
            return Ok(response);
        }
        if request.member_epoch != 0 {
            return Err(self.no_consumer_group(id, "Consumer group"));
        }
        let classic = self.groups.get(id).filter(|group| group.state != State::Empty);
        let (mut group, records) = match classic {
            Some(classic) => ConsumerGroup::of_classic(classic, env, &config.consumer)?,
            None => (ConsumerGroup::new(id), Vec::new()),
        };
        changes.records = records;
        let response = group.heartbeat(env, client, request, &mut changes)?;
        let mut classic = self.groups.remove(id);
        if let Some(classic) = &mut classic {
            tracing::info!(group = id, "the classic group becomes a consumer group");
            classic.answer_all(ErrorCode::RebalanceInProgress, out);
            out.records.push(GroupRecord::Group { group: id.to_owned(), value: None });
        }
        out.undo.push(Undo::Created(classic.map(Box::new)));
        self.consumers.insert(id.to_owned(), group);
        self.keep(id, changes, out);
        Ok(response)
    }

    /// Nothing goes under this id, or a group of another type.
    fn no_consumer_group(&self, id: &str, what: &str) -> Refusal {
        let message = match self.exists(id) {
            true => format!("Group {id} is not a consumer group."),
            false => format!("{what} {id} not found."),
        };
        Refusal::new(ErrorCode::GroupIdNotFound, message)
    }

    /// Sends a group's changes on their way.
    fn keep(&mut self, id: &str, changes: Changes, out: &mut Outcome) {
        let Some(group) = self.consumers.get_mut(id) else { return };
        let before = group.take_before();
        if !before.is_empty() {
            out.undo.push(Undo::Consumer(before));
        }
        let records = changes.records.into_iter();
        out.records.extend(records.map(|record| GroupRecord::Consumer { group: id.to_owned(), record }));
        out.jobs.extend(changes.regexes.map(Job::Regexes));
        out.jobs.extend(changes.assign.map(Job::Assign));
    }

    fn consumer_leave(
        &mut self,
        clock: Clock,
        request: &ConsumerGroupHeartbeatRequest,
        out: &mut Outcome,
    ) -> Result<ConsumerGroupHeartbeatResponse, Refusal> {
        let id = request.group_id.as_str();
        let Some(group) = self.consumers.get_mut(id) else {
            return Err(self.no_consumer_group(id, "Group"));
        };
        let mut changes = Changes::default();
        match group.leave(request, &mut changes)? {
            Some(member) => self.fence(clock, id, &BTreeSet::from([member]), out),
            None => self.keep(id, changes, out),
        }
        Ok(ConsumerGroupHeartbeatResponse {
            member_id: Some(request.member_id.clone()),
            member_epoch: request.member_epoch,
            ..ConsumerGroupHeartbeatResponse::default()
        })
    }

    /// Removes members. A group in which only classic members are left then becomes a classic group.
    fn fence(&mut self, clock: Clock, id: &str, leaving: &BTreeSet<String>, out: &mut Outcome) {
        let Some(group) = self.consumers.get_mut(id).filter(|_| !leaving.is_empty()) else { return };
        let staying = group.members().len().saturating_sub(leaving.len());
        if self.config.consumer.migration.downgrade
            && staying <= self.config.max_size
            && group.is_classic_without(leaving)
        {
            return self.downgrade(clock, id, leaving, true, out);
        }
        let mut changes = Changes::default();
        group.remove(&self.image, leaving, &mut changes);
        self.keep(id, changes, out);
    }

    fn downgrade(&mut self, clock: Clock, id: &str, leaving: &BTreeSet<String>, rebalance: bool, out: &mut Outcome) {
        let Some(group) = self.consumers.remove(id) else { return };
        tracing::info!(
            group = id,
            "the consumer group becomes a classic group: its members speak the classic protocol"
        );
        let tombstones = group.tombstones().into_iter();
        out.records.extend(tombstones.map(|record| GroupRecord::Consumer { group: id.to_owned(), record }));
        let mut classic = group.to_classic(leaving, &self.image, clock);
        out.records.push(classic.record());
        if rebalance {
            classic.prepare_rebalance(clock.now_ms, clock.wall_ms, &self.config, out);
        }
        self.groups.insert(id.to_owned(), classic);
        out.undo.push(Undo::GaveWay(Box::new(group)));
    }

    /// Takes note of what expressions stand for.
    pub fn regexes_resolved(
        &mut self,
        clock: Clock,
        job: &RegexJob,
        found: BTreeMap<String, ResolvedRegex>,
    ) -> Outcome {
        let mut out = Outcome::default();
        let id = job.group.as_str();
        let (image, times) = (self.image.clone(), self.times(id));
        let config = &self.config.consumer;
        let env = Env { image: &image, new_topics_at: self.new_topics_at, config, times, clock };
        let mut changes = Changes::default();
        if let Some(group) = self.consumers.get_mut(id) {
            group.resolved(env, found, &mut changes);
            self.keep(id, changes, &mut out);
        }
        out
    }

    /// Takes over a target that was computed beside the coordinator.
    pub fn assigned(&mut self, clock: Clock, job: &AssignJob, found: BTreeMap<String, Partitions>) -> Outcome {
        let mut out = Outcome::default();
        let mut changes = Changes::default();
        if let Some(group) = self.consumers.get_mut(&job.group) {
            group.assigned(clock, job, found, &mut changes);
            self.keep(&job.group, changes, &mut out);
        }
        out
    }

    /// Ends the sessions of those who have not been heard of.
    pub(in super::super) fn tick_consumer(&mut self, clock: Clock, heard_ms: i64, id: &str, out: &mut Outcome) {
        let Some(group) = self.consumers.get_mut(id) else { return };
        let overdue = group.overdue(heard_ms);
        for (member, reason) in &overdue {
            tracing::info!(group = id, member, "removed from the group because {reason}");
        }
        let leaving = overdue.into_iter().map(|(member, _)| member).collect();
        self.fence(clock, id, &leaving, out);
        if let Some(group) = self.consumers.get_mut(id) {
            group.deadlines.looked();
        }
    }

    /// JoinGroup for a consumer group. `false`: it is not one, or nobody is in it, so that it gives way to a classic one.
    pub(in super::super) fn join_consumer(
        &mut self,
        clock: Clock,
        request: &JoinGroupRequest,
        joiner: &Joiner,
        out: &mut Outcome,
    ) -> bool {
        let id = request.group_id.as_str();
        let (image, times) = (self.image.clone(), self.times(id));
        let Some(group) = self.consumers.get_mut(id) else { return false };
        if group.is_empty() {
            let tombstones = group.tombstones().into_iter();
            out.records.extend(tombstones.map(|record| GroupRecord::Consumer { group: id.to_owned(), record }));
            out.undo.extend(self.consumers.remove(id).map(|group| Undo::GaveWay(Box::new(group))));
            return false;
        }
        let config = &self.config.consumer;
        let env = Env { image: &image, new_topics_at: self.new_topics_at, config, times, clock };
        let client =
            Client { id: &joiner.client_id, host: &joiner.client_host, fresh_member_id: &joiner.fresh_member_id };
        let mut changes = Changes::default();
        let joins = (request, joiner.requires_known_id);
        let response = match group.classic_join(env, client, self.config.max_size, joins, &mut changes) {
            Ok(joined) => {
                self.keep(id, changes, out);
                if let Some(rebalance) = joined.downgrade {
                    self.downgrade(clock, id, &BTreeSet::new(), rebalance, out);
                }
                joined.response
            }
            Err(refusal) => {
                let is_id = refusal.code == ErrorCode::MemberIdRequired;
                JoinGroupResponse {
                    error_code: refusal.code.code(),
                    generation_id: -1,
                    protocol_name: Some(String::new()),
                    member_id: if is_id { refusal.message } else { request.member_id.clone() },
                    ..JoinGroupResponse::default()
                }
            }
        };
        out.reply(joiner.waiter, Reply::Join(response));
        true
    }

    /// SyncGroup for a consumer group; `None`: it is not one.
    pub(in super::super) fn sync_consumer(
        &mut self,
        clock: Clock,
        request: &SyncGroupRequest,
    ) -> Option<SyncGroupResponse> {
        let times = self.times(&request.group_id);
        let (image, config) = (self.image.clone(), &self.config.consumer);
        let env = Env { image: &image, new_topics_at: self.new_topics_at, config, times, clock };
        let group = self.consumers.get_mut(&request.group_id)?;
        let refuse = |error: ErrorCode| SyncGroupResponse { error_code: error.code(), ..Default::default() };
        Some(group.classic_sync(env, request).unwrap_or_else(refuse))
    }

    /// LeaveGroup for a consumer group: one answer for each member that leaves; `None`: it is not one.
    pub(in super::super) fn leave_consumer(
        &mut self,
        clock: Clock,
        id: &str,
        members: &[MemberIdentity],
        out: &mut Outcome,
    ) -> Option<Vec<MemberResponse>> {
        let group = self.consumers.get(id)?;
        let mut leaving = BTreeSet::new();
        let answer = |who: &MemberIdentity| {
            let error = match group.classic_leaver(who) {
                Ok(member) => {
                    leaving.insert(member);
                    ErrorCode::None
                }
                Err(error) => error,
            };
            MemberResponse {
                member_id: who.member_id.clone(),
                group_instance_id: who.group_instance_id.clone(),
                error_code: error.code(),
            }
        };
        let answers = members.iter().map(answer).collect();
        self.fence(clock, id, &leaving, out);
        Some(answers)
    }

    /// Whether a commit to a consumer group is allowed, but for the partitions; `None`: it is not one.
    pub(in super::super) fn check_consumer_commit(&self, who: Committer<'_>) -> Option<ErrorCode> {
        let group = self.consumers.get(who.group)?;
        if who.generation < 0 && group.is_empty() {
            return Some(ErrorCode::None);
        }
        let Some(member) = group.member(who.member_id) else { return Some(ErrorCode::UnknownMemberId) };
        let is_ahead = who.generation > member.epoch;
        Some(if is_ahead { stale(member) } else { ErrorCode::None })
    }

    /// Whether a commit is allowed: also that the group is there, and that a member that has moved on had the partitions in
    /// the epoch that it commits in. `version`: that of OffsetCommit.
    pub fn check_commit_of(
        &mut self,
        now_ms: i64,
        who: Committer<'_>,
        version: i16,
        offsets: &[(String, i32, CommittedOffset)],
    ) -> ErrorCode {
        let error = self.check_commit(now_ms, who);
        let Some(group) = self.consumers.get(who.group) else {
            let is_gone = !self.groups.contains_key(who.group);
            return match error {
                ErrorCode::IllegalGeneration if is_gone && self.offsets.contains_key(who.group) => {
                    ErrorCode::UnknownMemberId
                }
                ErrorCode::IllegalGeneration if is_gone && version >= COMMIT_VERSION_OF_EPOCHS => {
                    ErrorCode::GroupIdNotFound
                }
                other => other,
            };
        };
        let Some(member) = group.member(who.member_id).filter(|_| !error.is_error()) else { return error };
        if !member.is_classic() && version < COMMIT_VERSION_OF_EPOCHS {
            return ErrorCode::UnsupportedVersion;
        }
        self.check_commit_epochs(who, offsets)
    }

    /// Whether a member of a consumer group that has moved on had the partitions in the epoch that it commits in, where
    /// [`Coordinator::check_commit`] allowed the rest.
    pub(in super::super) fn check_commit_epochs(
        &self,
        who: Committer<'_>,
        offsets: &[(String, i32, CommittedOffset)],
    ) -> ErrorCode {
        let Some(member) = self.consumers.get(who.group).and_then(|group| group.member(who.member_id)) else {
            return ErrorCode::None;
        };
        let had = |(topic, partition, _): &(String, i32, CommittedOffset)| {
            let from = self.image.topic(topic).and_then(|topic| member.commit_epoch(&topic.id, *partition));
            from.is_some_and(|from| who.generation >= from)
        };
        if who.generation == member.epoch || offsets.iter().all(had) { ErrorCode::None } else { stale(member) }
    }

    /// Whether a member of a consumer group may fetch offsets: in its epoch. Others may, without an epoch.
    pub fn check_fetch(&self, group: &str, member_id: Option<&str>, epoch: i32) -> ErrorCode {
        let Some(group) = self.consumers.get(group) else { return ErrorCode::None };
        if member_id.is_none() && epoch < 0 {
            return ErrorCode::None;
        }
        match group.member(member_id.unwrap_or_default()) {
            None => ErrorCode::UnknownMemberId,
            Some(member) if member.epoch != epoch => stale(member),
            Some(_) => ErrorCode::None,
        }
    }

    pub fn is_consumer_group(&self, id: &str) -> bool {
        self.consumers.contains_key(id)
    }

    /// Whether a member of a consumer group subscribes to a topic.
    pub fn is_subscribed(&self, id: &str, topic: &str) -> bool {
        self.consumers.get(id).is_some_and(|group| group.is_subscribed_to(topic))
    }

    /// ConsumerGroupDescribe for one id.
    ///
    /// # Errors
    /// GROUP_ID_NOT_FOUND.
    pub fn describe_consumer(&self, id: &str) -> Result<DescribedGroup, Refusal> {
        let Some(group) = self.consumers.get(id) else {
            return Err(self.no_consumer_group(id, "Group"));
        };
        Ok(DescribedGroup {
            group_id: id.to_owned(),
            group_state: group.state().name().to_owned(),
            group_epoch: group.epoch,
            assignment_epoch: group.target_epoch,
            assignor_name: group.preferred_assignor(&self.config.consumer).to_owned(),
            members: group.members().map(|member| self.describe_member(group, member)).collect(),
            ..DescribedGroup::default()
        })
    }

    fn describe_member(&self, group: &ConsumerGroup, member: &Member) -> DescribedMember {
        let topic = |id: &Uuid, partitions: Vec<i32>| {
            let topic_name = self.image.topic_by_id(id)?.name.clone();
            Some(TopicPartitions { topic_id: *id, topic_name, partitions })
        };
        let mut has = member.assigned_partitions();
        for (id, partitions) in &member.revoking {
            has.entry(*id).or_default().extend(partitions.keys());
        }
        let shown = |partitions: &Partitions| {
            let topics = partitions.iter().filter_map(|(id, of_topic)| topic(id, of_topic.iter().copied().collect()));
            Assignment { topic_partitions: topics.collect() }
        };
        DescribedMember {
            member_id: member.id.clone(),
            instance_id: member.instance_id.clone(),
            rack_id: member.rack_id.clone(),
            member_epoch: member.epoch,
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            subscribed_topic_names: member.topics.iter().cloned().collect(),
            subscribed_topic_regex: member.regex.clone(),
            assignment: shown(&has),
            target_assignment: group.target(&member.id).map(shown).unwrap_or_default(),
            member_type: i8::from(!member.is_classic()),
        }
    }

    /// DeleteGroups of a consumer group: the error, and the tombstones beside those of its offsets; `None`: it is not one.
    pub(in super::super) fn delete_consumer(&self, id: &str) -> Option<(ErrorCode, Vec<GroupRecord>)> {
        let group = self.consumers.get(id)?;
        if group.state() != ConsumerState::Empty {
            return Some((ErrorCode::NonEmptyGroup, Vec::new()));
        }
        let tombstones = group.tombstones().into_iter();
        let records = tombstones.map(|record| GroupRecord::Consumer { group: id.to_owned(), record });
        Some((ErrorCode::None, records.collect()))
    }
}

fn stale(member: &Member) -> ErrorCode {
    if member.is_classic() { ErrorCode::IllegalGeneration } else { ErrorCode::StaleMemberEpoch }
}

fn is_tombstone(record: &ConsumerRecord) -> bool {
    match record {
        ConsumerRecord::Group(value) => value.is_none(),
        ConsumerRecord::PartitionMetadata(value) => value.is_none(),
        ConsumerRecord::TargetEpoch(value) => value.is_none(),
        ConsumerRecord::Member { value, .. } => value.is_none(),
        ConsumerRecord::Target { value, .. } => value.is_none(),
        ConsumerRecord::Current { value, .. } => value.is_none(),
        ConsumerRecord::Regex { value, .. } => value.is_none(),
    }
}
