//! What a heartbeat, a leave or a time-out does to a consumer group. Follows Kafka's `GroupMetadataManager`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::consumer_group_heartbeat_request::TopicPartitions as Owned;
use caudal_protocol::messages::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use caudal_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::group::{ConsumerGroup, regex_record};
use super::member::{LEAVE_STATIC_EPOCH, Member, MemberState, OwnedPartitions, Target, is_subset};
use super::topics::{RegexJob, ResolvedRegex, check_regex, metadata_hash};
use super::{AssignJob, Clock, ConsumerConfig, ConsumerRecord, GroupTimes, Refusal, check_description};

/// Expressions of a group are not matched with all topics more often than this.
const REGEX_REFRESH_LEAST_MS: i64 = 10_000;

/// What a step looks at beside the group.
#[derive(Debug, Clone, Copy)]
pub struct Env<'a> {
    pub image: &'a Arc<MetadataImage>,
    /// Offset of the last image that brought new topics.
    pub new_topics_at: i64,
    pub config: &'a ConsumerConfig,
    pub times: GroupTimes,
    pub clock: Clock,
}

/// What a step adds: records to store, expressions to match, an assignment to compute.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    pub records: Vec<ConsumerRecord>,
    pub regexes: Option<RegexJob>,
    pub assign: Option<AssignJob>,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    pub id: &'a str,
    pub host: &'a str,
    /// The id that a member without one gets.
    pub fresh_member_id: &'a str,
}

/// What became of a member's subscription by expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RegexChange {
    None,
    Changed,
    /// What the new one stands for is known.
    ChangedAndResolved,
}

/// Checks a request before any group is looked at.
///
/// # Errors
/// INVALID_REQUEST, INVALID_REGULAR_EXPRESSION or UNSUPPORTED_ASSIGNOR, in Kafka's words.
pub fn check(request: &ConsumerGroupHeartbeatRequest, version: i16, assignors: &[String]) -> Result<(), Refusal> {
    let invalid = |message: &str| Err(Refusal::new(ErrorCode::InvalidRequest, message));
    let epoch = request.member_epoch;
    let is_empty = |text: &Option<String>| text.as_deref().is_some_and(|text| text.trim().is_empty());
    if (version >= 1 || epoch > 0 || epoch == -1) && request.member_id.trim().is_empty() {
        return invalid("MemberId can't be empty.");
    }
    if request.group_id.trim().is_empty() {
        return invalid("GroupId can't be empty.");
    }
    if is_empty(&request.instance_id) {
        return invalid("InstanceId can't be empty.");
    }
    if is_empty(&request.rack_id) {
        return invalid("RackId can't be empty.");
    }
    match epoch {
        0 if request.rebalance_timeout_ms == -1 => {
            return invalid("RebalanceTimeoutMs must be provided in first request.");
        }
        0 if request.topic_partitions.as_ref().is_none_or(|owned| !owned.is_empty()) => {
            return invalid("TopicPartitions must be empty when (re-)joining.");
        }
        0 if request.subscribed_topic_names.is_none() && request.subscribed_topic_regex.is_none() => {
            return invalid("Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.");
        }
        LEAVE_STATIC_EPOCH if request.instance_id.is_none() => return invalid("InstanceId can't be null."),
        ..LEAVE_STATIC_EPOCH => return invalid("MemberEpoch is invalid."),
        _ => {}
    }
    let names = request.subscribed_topic_names.iter().flatten().map(|name| name.len() + 1);
    check_description(names.sum::<usize>() + request.subscribed_topic_regex.as_ref().map_or(0, String::len))?;
    match &request.server_assignor {
        Some(name) if !assignors.contains(name) => {
            let known = assignors.join(", ");
            let message = format!("ServerAssignor {name} is not supported. Supported assignors: {known}.");
            Err(Refusal::new(ErrorCode::UnsupportedAssignor, message))
        }
        _ => match request.subscribed_topic_regex.as_deref() {
            Some(regex) if !regex.is_empty() => check_regex(regex),
            _ => Ok(()),
        },
    }
}

impl ConsumerGroup {
    /// ConsumerGroupHeartbeat of a member that stays or joins. Nothing is changed where it is refused.
    ///
    /// # Errors
    /// What the member is to be told, in Kafka's words.
    pub fn heartbeat(
        &mut self,
        env: Env<'_>,
        client: Client<'_>,
        request: &ConsumerGroupHeartbeatRequest,
        changes: &mut Changes,
    ) -> Result<ConsumerGroupHeartbeatResponse, Refusal> {
        let instance = request.instance_id.as_deref();
        self.check_size(&request.member_id, instance, env.config.max_size)?;
        let id = if request.member_id.is_empty() { client.fresh_member_id } else { request.member_id.as_str() };
        let owned = request.topic_partitions.as_deref();
        let (member, replaces) = match instance {
            None => (self.dynamic_member(id, request.member_epoch, owned)?, None),
            Some(instance) => self.static_joiner(id, instance, request.member_epoch, owned)?,
        };
        if member.state == MemberState::Unknown && owned.is_none_or(|owned| !owned.is_empty()) {
            return Err(must_rejoin());
        }
        let mut updated = member.clone();
        updated.take_over(client, request);
        if let Some(old) = replaces {
            self.replace(&old, &member, changes);
        }
        let names_changed = self.describe(&member, &updated, changes);
        let regex_change = self.change_regex(env, &member, &updated, changes);
        let subscription_changed = names_changed || regex_change != RegexChange::None;
        self.refresh_metadata(env, names_changed || regex_change == RegexChange::ChangedAndResolved, changes);
        self.maybe_retarget(env, changes);
        let updated = self.reconcile(env, id, owned, subscription_changed, changes)?;
        let session_ms = env.clock.now_ms + env.times.session_timeout_ms;
        self.deadlines.change(id, |deadlines| deadlines.session_ms = Some(session_ms));
        let is_full_request = request.rebalance_timeout_ms != -1
            && (request.subscribed_topic_names.is_some() || request.subscribed_topic_regex.is_some())
            && owned.is_some();
        let shows_assignment = request.member_epoch == 0
            || is_full_request
            || member.assigned_partitions() != updated.assigned_partitions();
        Ok(ConsumerGroupHeartbeatResponse {
            member_id: Some(updated.id.clone()),
            member_epoch: updated.epoch,
            heartbeat_interval_ms: env.times.heartbeat_interval_ms,
            assignment: shows_assignment.then(|| shown(&updated.assigned)),
            ..ConsumerGroupHeartbeatResponse::default()
        })
    }

    pub(super) fn check_size(&self, member: &str, instance: Option<&str>, max_size: usize) -> Result<(), Refusal> {
        let is_in = self.member(member).is_some() || instance.is_some_and(|i| self.static_member(i).is_some());
        if is_in || self.members().len() < max_size {
            return Ok(());
        }
        let message = format!("The consumer group has reached its maximum capacity of {max_size} members.");
        Err(Refusal::new(ErrorCode::GroupMaxSizeReached, message))
    }

    fn dynamic_member(&self, id: &str, epoch: i32, owned: Option<&[Owned]>) -> Result<Member, Refusal> {
        let Some(member) = self.member(id) else {
            return if epoch == 0 { Ok(Member::new(id)) } else { Err(self.unknown_member(id)) };
        };
        check_epoch(member, epoch, owned)?;
        Ok(member.clone())
    }

    /// The static member as it stands, and the id of the one it replaces.
    fn static_joiner(
        &self,
        id: &str,
        instance: &str,
        epoch: i32,
        owned: Option<&[Owned]>,
    ) -> Result<(Member, Option<String>), Refusal> {
        let existing = self.static_member(instance);
        if epoch != 0 {
            let member = self.check_instance(id, instance, existing)?;
            check_epoch(member, epoch, owned)?;
            return Ok((member.clone(), None));
        }
        let Some(existing) = existing else { return Ok((Member::new(id), None)) };
        if !existing.is_classic() && existing.epoch != LEAVE_STATIC_EPOCH {
            let message = format!(
                "Static member {id} with instance id {instance} cannot join the group because the instance id is owned \
                 by {} member.",
                existing.id
            );
            return Err(Refusal::new(ErrorCode::UnreleasedInstanceId, message));
        }
        Ok((existing.under(id), Some(existing.id.clone())))
    }

    /// Checks a static member's claim to its name.
    pub(super) fn check_instance<'m>(
        &self,
        id: &str,
        instance: &str,
        existing: Option<&'m Member>,
    ) -> Result<&'m Member, Refusal> {
        let Some(existing) = existing else {
            return Err(Refusal::new(ErrorCode::UnknownMemberId, format!("Instance id {instance} is unknown.")));
        };
        if existing.id != id {
            let message =
                format!("Static member {id} with instance id {instance} was fenced by member {}.", existing.id);
            return Err(Refusal::new(ErrorCode::FencedInstanceId, message));
        }
        Ok(existing)
    }

    pub(super) fn unknown_member(&self, id: &str) -> Refusal {
        let message = format!("Member {id} is not a member of group {}.", self.id);
        Refusal::new(ErrorCode::UnknownMemberId, message)
    }

    /// `fresh` takes the place of a static member under another id.
    pub(super) fn replace(&mut self, old: &str, fresh: &Member, changes: &mut Changes) {
        let target = self.target(old).cloned().unwrap_or_default();
        self.renamed(old, &fresh.id);
        let records = &mut changes.records;
        self.put_removal(old, records);
        self.put(fresh.record(), records);
        self.put(super::group::target_record(&fresh.id, &target), records);
        self.put(fresh.current_record(), records);
    }

    /// Stores what a member says of itself, where that is news. True: it subscribes to other topics by name.
    pub(super) fn describe(&mut self, member: &Member, updated: &Member, changes: &mut Changes) -> bool {
        if self.member(&updated.id).is_some() && member == updated {
            return false;
        }
        self.put(updated.record(), &mut changes.records);
        member.topics != updated.topics
    }

    /// Looks after the regular expressions. The member is already described as `updated`.
    fn change_regex(&mut self, env: Env<'_>, member: &Member, updated: &Member, changes: &mut Changes) -> RegexChange {
        let (old, new) = (member.pattern(), updated.pattern());
        let mut change = RegexChange::None;
        let mut is_new = false;
        if old != new {
            change = RegexChange::Changed;
            if let Some(old) = old
                && !self.regex_counts().contains_key(old)
                && self.regexes().contains_key(old)
            {
                self.put(ConsumerRecord::Regex { regex: old.to_owned(), value: None }, &mut changes.records);
            }
            match new {
                Some(new) if self.regexes().contains_key(new) => change = RegexChange::ChangedAndResolved,
                Some(new) => is_new = self.regex_counts().get(new) == Some(&1),
                None => change = RegexChange::ChangedAndResolved,
            }
        }
        changes.regexes = changes.regexes.take().or_else(|| self.due_regexes(env, is_new));
        change
    }

    /// The expressions to match now: when there are new ones, new topics, or it is long ago; but not all the time.
    fn due_regexes(&mut self, env: Env<'_>, is_new: bool) -> Option<RegexJob> {
        if self.regex_counts().is_empty() || self.resolving {
            return None;
        }
        let last = self.regexes().values().next();
        let last_ms = last.map_or(i64::MIN, |resolved| resolved.timestamp_ms);
        let now_ms = env.clock.wall_ms;
        if now_ms <= last_ms.saturating_add(REGEX_REFRESH_LEAST_MS) {
            return None;
        }
        let is_due = is_new
            || self.regex_counts().len() != self.regexes().len()
            || last.map_or(0, |resolved| resolved.version) < env.new_topics_at
            || now_ms > last_ms.saturating_add(env.config.regex_refresh_ms);
        if !is_due {
            return None;
        }
        self.resolving = true;
        Some(RegexJob { group: self.id.clone(), regexes: self.regex_counts().keys().cloned().collect() })
    }

    /// Takes note of what expressions stand for.
    pub fn resolved(&mut self, env: Env<'_>, found: BTreeMap<String, ResolvedRegex>, changes: &mut Changes) {
        self.resolving = false;
        let mut is_news = false;
        for (regex, resolved) in found {
            if !self.regex_counts().contains_key(&regex) {
                continue;
            }
            let known = self.regexes().get(&regex).map(|known| &known.topics);
            is_news |=
                known.is_some_and(|known| *known != resolved.topics) || known.is_none() && !resolved.topics.is_empty();
            self.put(regex_record(&regex, &resolved), &mut changes.records);
        }
        if is_news || metadata_hash(env.image, self.subscribed_names()) != self.metadata_hash {
            self.bump(env.image, &mut changes.records);
        }
    }

    /// Begins an epoch where the subscriptions changed (`changed`) or the topics they name did.
    pub(super) fn refresh_metadata(&mut self, env: Env<'_>, changed: bool, changes: &mut Changes) {
        if !changed && self.compared_with == Some(env.image.offset) {
            return;
        }
        self.compared_with = Some(env.image.offset);
        if changed || metadata_hash(env.image, self.subscribed_names()) != self.metadata_hash {
            self.bump(env.image, &mut changes.records);
        }
        if self.has_partition_metadata {
            self.put(ConsumerRecord::PartitionMetadata(None), &mut changes.records);
        }
    }

    /// Leads a member towards the target. Returns it as it is then.
    pub(super) fn reconcile(
        &mut self,
        env: Env<'_>,
        id: &str,
        owned: Option<&[Owned]>,
        subscription_changed: bool,
        changes: &mut Changes,
    ) -> Result<Member, Refusal> {
        let Some(member) = self.member(id).cloned() else { return Err(self.unknown_member(id)) };
        if !subscription_changed && member.is_reconciled_to(self.target_epoch) {
            return Ok(member);
        }
        let none = Default::default();
        let subscribed = self.subscribed_ids(&member, env.image);
        let partitions = self.target(id).unwrap_or(&none);
        let target = Target { epoch: self.target_epoch, partitions, subscribed: &subscribed, subscription_changed };
        let mut stepped = member.clone();
        let is_free = |topic: &_, partition| self.is_free(topic, partition);
        stepped.step(target, owned, is_free).map_err(|_| must_rejoin())?;
        if stepped == member {
            return Ok(member);
        }
        self.put(stepped.current_record(), &mut changes.records);
        if !stepped.is_classic() {
            let until_ms = env.clock.now_ms + i64::from(stepped.rebalance_timeout_ms.max(0));
            let is_revoking = stepped.state == MemberState::Unrevoked;
            let revoke = is_revoking.then_some((until_ms, stepped.epoch));
            self.deadlines.change(id, |deadlines| deadlines.revoke = revoke);
        }
        Ok(stepped)
    }

    /// A member leaves, for good or (static ones) for a while. `Some`: who is to be removed for good.
    ///
    /// # Errors
    /// UNKNOWN_MEMBER_ID or FENCED_INSTANCE_ID.
    pub fn leave(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest,
        changes: &mut Changes,
    ) -> Result<Option<String>, Refusal> {
        let id = request.member_id.as_str();
        let Some(instance) = &request.instance_id else {
            return if self.member(id).is_some() { Ok(Some(id.to_owned())) } else { Err(self.unknown_member(id)) };
        };
        let member = self.check_instance(id, instance, self.static_member(instance))?;
        if request.member_epoch != LEAVE_STATIC_EPOCH {
            return Ok(Some(id.to_owned()));
        }
        let mut leaving = member.clone();
        leaving.leave_for_a_while();
        self.put(leaving.current_record(), &mut changes.records);
        Ok(None)
    }

    /// Removes members for good, and begins an epoch without them.
    pub fn remove(&mut self, image: &MetadataImage, ids: &BTreeSet<String>, changes: &mut Changes) {
        for id in ids {
            self.put_removal(id, &mut changes.records);
        }
        let unused: Vec<String> =
            self.regexes().keys().filter(|regex| !self.regex_counts().contains_key(*regex)).cloned().collect();
        for regex in unused {
            self.put(ConsumerRecord::Regex { regex, value: None }, &mut changes.records);
        }
        self.bump(image, &mut changes.records);
    }

    /// When to look next for somebody to be taken for gone: no later than the first deadline.
    pub fn next_deadline_ms(&self) -> Option<i64> {
        self.deadlines.look_ms()
    }

    /// Who is to be taken for gone by `heard_ms`, with the reason.
    pub fn overdue(&mut self, heard_ms: i64) -> Vec<(String, &'static str)> {
        let epochs: BTreeMap<&str, i32> = self.members().map(|m| (m.id.as_str(), m.epoch)).collect();
        let is_due = |deadline: Option<i64>| deadline.is_some_and(|deadline| deadline <= heard_ms);
        let mut overdue = Vec::new();
        for (id, deadlines) in self.deadlines.iter() {
            let Some(epoch) = epochs.get(id.as_str()) else { continue };
            let revokes = deadlines.revoke.filter(|(_, of_epoch)| of_epoch == epoch).map(|(until, _)| until);
            let reason = if is_due(deadlines.session_ms) {
                "the member session expired"
            } else if is_due(revokes) {
                "it failed to give up partitions within its rebalance timeout"
            } else if is_due(deadlines.join_ms) {
                "the classic member failed to join within the rebalance timeout"
            } else if is_due(deadlines.sync_ms) {
                "the member failed to sync within timeout"
            } else {
                continue;
            };
            overdue.push((id.clone(), reason));
        }
        // A time to give up partitions that has passed for an epoch that the member has left.
        self.deadlines.forget_revocations(heard_ms);
        overdue
    }

    /// Starts the clocks that do not run, as after loading: nobody could reach a broker that was down.
    pub fn start_clocks(&mut self, now_ms: i64, session_timeout_ms: i64) {
        let without = |member: &&Member| !self.deadlines.contains(&member.id);
        let members: Vec<Member> = self.members().filter(without).cloned().collect();
        for member in members {
            let until_ms = now_ms + i64::from(member.rebalance_timeout_ms.max(0));
            self.deadlines.change(&member.id, |deadlines| {
                deadlines.session_ms = Some(now_ms + session_timeout_ms);
                if member.state == MemberState::Unrevoked {
                    deadlines.revoke = Some((until_ms, member.epoch));
                }
            });
        }
    }
}

impl Member {
    /// Takes over what a heartbeat says of the member.
    fn take_over(&mut self, client: Client<'_>, request: &ConsumerGroupHeartbeatRequest) {
        let update = |mine: &mut Option<String>, theirs: &Option<String>| {
            if theirs.is_some() {
                mine.clone_from(theirs);
            }
        };
        update(&mut self.instance_id, &request.instance_id);
        update(&mut self.rack_id, &request.rack_id);
        update(&mut self.assignor, &request.server_assignor);
        update(&mut self.regex, &request.subscribed_topic_regex);
        if request.rebalance_timeout_ms != -1 {
            self.rebalance_timeout_ms = request.rebalance_timeout_ms;
        }
        if let Some(names) = &request.subscribed_topic_names {
            self.topics = Arc::new(names.iter().cloned().collect());
        }
        self.client_id = client.id.to_owned();
        self.client_host = client.host.to_owned();
        self.classic = None;
    }

    /// The member as a newcomer that takes its place under another id.
    pub(super) fn under(&self, id: &str) -> Member {
        Member { id: id.to_owned(), epoch: 0, previous_epoch: 0, ..self.clone() }
    }
}

/// Whether a member is in the epoch it is known to be in, or has only missed the last answer.
fn check_epoch(member: &Member, epoch: i32, owned: Option<&[Owned]>) -> Result<(), Refusal> {
    let than = if epoch > member.epoch { "greater" } else { "smaller" };
    let missed_answer = epoch == member.previous_epoch && is_subset(owned, &member.assigned);
    if epoch == 0 || epoch == member.epoch || epoch < member.epoch && missed_answer {
        return Ok(());
    }
    let message = format!(
        "The consumer group member has a {than} member epoch ({epoch}) than the one known by the group coordinator \
         ({}). The member must abandon all its partitions and rejoin.",
        member.epoch
    );
    Err(Refusal::new(ErrorCode::FencedMemberEpoch, message))
}

fn must_rejoin() -> Refusal {
    let message =
        "The consumer group member is in a unknown state. The member must abandon all its partitions and rejoin.";
    Refusal::new(ErrorCode::FencedMemberEpoch, message)
}

fn shown(assigned: &OwnedPartitions) -> Assignment {
    let topic = |(topic_id, partitions): (&_, &BTreeMap<i32, i32>)| TopicPartitions {
        topic_id: *topic_id,
        partitions: partitions.keys().copied().collect(),
    };
    Assignment { topic_partitions: assigned.iter().map(topic).collect() }
}
