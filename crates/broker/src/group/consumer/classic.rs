//! Members of the classic protocol in a consumer group, and groups that change over from the one protocol to the other
//! while they are in use (KIP-848, "Online Migration").
//!
//! A member of the classic protocol takes part by JoinGroup, SyncGroup, Heartbeat and LeaveGroup: the epoch of the member
//! is its generation, and it is told to rejoin for every step that a member of the new protocol would take by heartbeats.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use caudal_cluster::MetadataImage;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::consumer_group_heartbeat_request::TopicPartitions as Owned;
use caudal_protocol::messages::consumer_protocol_assignment::TopicPartition;
use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::{
    ConsumerProtocolAssignment, ConsumerProtocolSubscription, JoinGroupRequest, JoinGroupResponse, SyncGroupRequest,
    SyncGroupResponse,
};
use caudal_protocol::records::group::consumer_group_member_metadata_value::{ClassicMemberMetadata, ClassicProtocol};
use caudal_protocol::records::group::{ConsumerGroupMetadataValue, ConsumerGroupTargetAssignmentMetadataValue};
use caudal_protocol::wire::{DecodeError, Message, Reader, Writer};

use super::super::machine::{Group, State};
use super::super::member::Member as ClassicMember;
use super::group::{ConsumerGroup, target_record};
use super::heartbeat::{Changes, Client, Env};
use super::member::{Member, MemberState, OwnedPartitions};
use super::topics::metadata_hash;
use super::{Clock, ConsumerConfig, ConsumerRecord, Partitions, Refusal, check_description};

/// The protocol type of consumers.
pub const CONSUMER: &str = "consumer";

/// What a JoinGroup of a classic member comes to.
#[derive(Debug, PartialEq)]
pub struct Joined {
    pub response: JoinGroupResponse,
    /// The group is to become one of the classic protocol: nobody else is left in it. True: with a rebalance.
    pub downgrade: Option<bool>,
}

fn inconsistent(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::InconsistentGroupProtocol, message)
}

impl ConsumerGroup {
    fn classic_count(&self) -> usize {
        self.members().filter(|member| member.is_classic()).count()
    }

    /// Whether a classic member knows an assignor that all other ones know, as they would have to agree on one.
    fn takes_protocols(&self, request: &JoinGroupRequest) -> bool {
        let everybody_knows = |name: &str| {
            let mut classic = self.members().filter(|member| member.is_classic());
            classic.all(|member| member.classic_protocols().any(|(known, _)| known == name))
        };
        request.protocol_type == CONSUMER && request.protocols.iter().any(|protocol| everybody_knows(&protocol.name))
    }

    /// JoinGroup by a classic member, of a group that is not empty. Nothing is changed where it is refused.
    ///
    /// # Errors
    /// What the member is to be told.
    pub fn classic_join(
        &mut self,
        env: Env<'_>,
        client: Client<'_>,
        classic_max_size: usize,
        (request, requires_known_id): (&JoinGroupRequest, bool),
        changes: &mut Changes,
    ) -> Result<Joined, Refusal> {
        if env.config.migration.is_disabled() {
            return Err(inconsistent("group migration is disabled"));
        }
        check_description(request.protocols.iter().map(|p| p.name.len() + p.metadata.len()).sum())?;
        let is_unknown = request.member_id.is_empty();
        let id = if is_unknown { client.fresh_member_id } else { request.member_id.as_str() };
        let instance = request.group_instance_id.as_deref();
        self.check_size(id, instance, env.config.max_size)?;
        if !self.takes_protocols(request) {
            return Err(inconsistent(format!("Member {id}'s protocols are not supported.")));
        }
        if is_unknown && instance.is_none() && requires_known_id {
            return Err(Refusal::new(ErrorCode::MemberIdRequired, id));
        }
        let existing = instance.and_then(|instance| self.static_member(instance)).cloned();
        let (member, replaces) = match (instance, &existing) {
            (None, _) => (self.member(id).cloned().unwrap_or_else(|| Member::new(id)), None),
            (Some(_), None) if is_unknown => (Member::new(id), None),
            (Some(_), Some(existing)) if is_unknown => (existing.under(id), Some(existing.id.clone())),
            (Some(instance), existing) => (self.check_instance(id, instance, existing.as_ref())?.clone(), None),
        };
        let first = request.protocols.first().map(|protocol| protocol.metadata.clone()).unwrap_or_default();
        let subscription =
            read_subscription(first).map_err(|_| inconsistent("Malformed embedded consumer protocol."))?;
        let others_are_classic = self.classic_count() + 1 == self.members().len();
        let downgrades = existing.is_some_and(|existing| !existing.is_classic())
            && others_are_classic
            && env.config.migration.downgrade
            && self.members().len() <= classic_max_size;

        let mut updated = member.clone();
        updated.join_as_classic(client, request, &subscription);
        if let Some(old) = replaces {
            self.replace(&old, &member, changes);
        }
        let names_changed = self.describe(&member, &updated, changes);
        let regex_changed = self.drop_regex(&member, changes);
        let subscription_changed = names_changed || regex_changed;
        self.refresh_metadata(env, subscription_changed, changes);
        let owned = owned_by(&subscription, env.image);
        let rebalance = self.target_epoch < self.epoch;
        if !downgrades {
            self.maybe_retarget(env, changes);
        }
        if !downgrades || !rebalance {
            updated = self.reconcile(env, id, Some(&owned), subscription_changed, changes)?;
        }
        let (now_ms, patience_ms) = (env.clock.now_ms, i64::from(updated.rebalance_timeout_ms.max(0)));
        self.deadlines.change(id, |deadlines| {
            deadlines.join_ms = None;
            deadlines.session_ms = Some(now_ms + i64::from(request.session_timeout_ms));
            deadlines.sync_ms = Some(now_ms + patience_ms);
        });
        let response = JoinGroupResponse {
            member_id: id.to_owned(),
            generation_id: updated.epoch,
            protocol_type: Some(CONSUMER.to_owned()),
            protocol_name: updated.classic_protocols().next().map(|(name, _)| name.to_owned()),
            ..JoinGroupResponse::default()
        };
        Ok(Joined { response, downgrade: downgrades.then_some(rebalance) })
    }

    /// A member that came by an expression stays by names: the classic protocol has no expressions.
    fn drop_regex(&mut self, member: &Member, changes: &mut Changes) -> bool {
        let Some(old) = member.pattern() else { return false };
        if !self.regex_counts().contains_key(old) && self.regexes().contains_key(old) {
            self.put(ConsumerRecord::Regex { regex: old.to_owned(), value: None }, &mut changes.records);
        }
        true
    }

    /// Finds a classic member, by its instance id where it has one, and checks its generation.
    fn classic_member(
        &self,
        id: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Result<(&Member, &ClassicMemberMetadata), ErrorCode> {
        let found = match instance {
            None => self.member(id),
            Some(instance) => self.static_member(instance),
        };
        let member = found.ok_or(ErrorCode::UnknownMemberId)?;
        if member.id != id {
            return Err(ErrorCode::FencedInstanceId);
        }
        let classic = member.classic.as_ref().ok_or(ErrorCode::UnknownMemberId)?;
        if member.epoch != generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        Ok((member, classic))
    }

    /// SyncGroup by a classic member: its part of the assignment.
    ///
    /// # Errors
    /// As in Kafka; REBALANCE_IN_PROGRESS where it should join again.
    pub fn classic_sync(&mut self, env: Env<'_>, request: &SyncGroupRequest) -> Result<SyncGroupResponse, ErrorCode> {
        let instance = request.group_instance_id.as_deref();
        let (member, classic) = self.classic_member(&request.member_id, instance, request.generation_id)?;
        let (name, metadata) = member.classic_protocols().next().unwrap_or(("", &EMPTY));
        let differs = |claimed: &Option<String>, ours: &str| claimed.as_deref().is_some_and(|claimed| claimed != ours);
        if differs(&request.protocol_type, CONSUMER) || differs(&request.protocol_name, name) {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        let must_rejoin = self.target_epoch > member.epoch && member.state != MemberState::Unrevoked;
        let version = protocol_version(metadata);
        let assignment = write_assignment(&member.assigned_partitions(), version, env.image);
        let (id, session_ms) = (member.id.clone(), i64::from(classic.session_timeout_ms));
        let join_ms = env.clock.now_ms + i64::from(member.rebalance_timeout_ms.max(0));
        self.deadlines.change(&id, |deadlines| {
            if must_rejoin {
                deadlines.join_ms.get_or_insert(join_ms);
                return Err(ErrorCode::RebalanceInProgress);
            }
            deadlines.sync_ms = None;
            deadlines.session_ms = Some(env.clock.now_ms + session_ms);
            Ok(())
        })?;
        Ok(SyncGroupResponse {
            protocol_type: request.protocol_type.clone(),
            protocol_name: request.protocol_name.clone(),
            assignment,
            ..SyncGroupResponse::default()
        })
    }

    /// Heartbeat of a classic member: the error code to answer.
    pub fn classic_heartbeat(&mut self, now_ms: i64, id: &str, instance: Option<&str>, generation: i32) -> ErrorCode {
        let (member, classic) = match self.classic_member(id, instance, generation) {
            Ok(found) => found,
            Err(error) => return error,
        };
        let must_rejoin = member.epoch < self.target_epoch
            || member.state == MemberState::Unrevoked
            || member.state == MemberState::Unreleased && !self.waits_for_others(member);
        let session_ms = now_ms + i64::from(classic.session_timeout_ms);
        let join_ms = now_ms + i64::from(member.rebalance_timeout_ms.max(0));
        self.deadlines.change(id, |deadlines| {
            deadlines.session_ms = Some(session_ms);
            if must_rejoin {
                deadlines.join_ms.get_or_insert(join_ms);
                return ErrorCode::RebalanceInProgress;
            }
            ErrorCode::None
        })
    }

    /// LeaveGroup for one of its members: the member that goes.
    ///
    /// # Errors
    /// UNKNOWN_MEMBER_ID or FENCED_INSTANCE_ID.
    pub fn classic_leaver(&self, who: &MemberIdentity) -> Result<String, ErrorCode> {
        let id = who.member_id.as_str();
        let found = match &who.group_instance_id {
            None => self.member(id).ok_or(ErrorCode::UnknownMemberId)?,
            Some(instance) => {
                let member = self.static_member(instance).ok_or(ErrorCode::UnknownMemberId)?;
                if !id.is_empty() && member.id != id {
                    return Err(ErrorCode::FencedInstanceId);
                }
                member
            }
        };
        Ok(found.id.clone())
    }

    /// Whether the group is one of the classic protocol without the members that leave.
    pub fn is_classic_without(&self, leaving: &BTreeSet<String>) -> bool {
        let mut staying = self.members().filter(|member| !leaving.contains(&member.id)).peekable();
        staying.peek().is_some() && staying.all(Member::is_classic)
    }

    /// The group as one of the classic protocol, without the members that leave.
    pub fn to_classic(&self, leaving: &BTreeSet<String>, image: &MetadataImage, clock: Clock) -> Group {
        let mut group = Group::new(&self.id, clock.wall_ms);
        group.generation = self.epoch;
        group.protocol_type = Some(CONSUMER.to_owned());
        for member in self.members().filter(|member| !leaving.contains(&member.id)) {
            let Some(classic) = &member.classic else { continue };
            let protocol = |(name, metadata): (&str, &Bytes)| JoinGroupRequestProtocol {
                name: name.to_owned(),
                metadata: metadata.clone(),
            };
            let mut joined = ClassicMember {
                id: member.id.clone(),
                instance_id: member.instance_id.clone(),
                client_id: member.client_id.clone(),
                client_host: member.client_host.clone(),
                session_timeout_ms: classic.session_timeout_ms,
                rebalance_timeout_ms: member.rebalance_timeout_ms,
                protocols: member.classic_protocols().map(protocol).collect(),
                assignment: Bytes::new(),
                session_deadline_ms: 0,
                waiting_join: None,
                waiting_sync: None,
                synced: true,
            };
            joined.touch(clock.now_ms);
            group.add(joined);
        }
        group.protocol_name = group.choose_protocol();
        let protocol = group.protocol_name.clone().unwrap_or_default();
        let none = Partitions::new();
        for member in group.members.values_mut() {
            let version = protocol_version(&member.metadata(&protocol));
            member.assignment = write_assignment(self.target(&member.id).unwrap_or(&none), version, image);
        }
        group.state = State::Stable;
        group
    }

    /// A group of the classic protocol that a member of the new one joins, as a consumer group; and the records of it.
    ///
    /// # Errors
    /// GROUP_ID_NOT_FOUND where it cannot be one, in Kafka's words.
    pub fn of_classic(
        group: &Group,
        env: Env<'_>,
        config: &ConsumerConfig,
    ) -> Result<(ConsumerGroup, Vec<ConsumerRecord>), Refusal> {
        let refuse = |reason: &str| {
            let message = format!("Cannot upgrade classic group {} to consumer group because {reason}.", group.id);
            Err(Refusal::new(ErrorCode::GroupIdNotFound, message))
        };
        if !config.migration.upgrade {
            return refuse("online upgrade is disabled");
        }
        if group.protocol_type.as_deref() != Some(CONSUMER) {
            return refuse("the group does not use the consumer embedded protocol");
        }
        if group.members.len() > config.max_size {
            return refuse("the group size exceeds the consumer group maximum size");
        }
        let protocol = group.protocol_name.clone().or_else(|| group.choose_protocol()).unwrap_or_default();
        let mut members = Vec::new();
        for member in group.members.values() {
            let Ok(subscription) = read_subscription(member.metadata(&protocol)) else {
                return refuse("the embedded consumer protocol is malformed");
            };
            let assignment = match member.assignment.is_empty() {
                true => ConsumerProtocolAssignment::default(),
                false => match read_assignment(member.assignment.clone()) {
                    Ok(assignment) => assignment,
                    Err(_) => return refuse("the embedded consumer protocol is malformed"),
                },
            };
            if assignment.user_data.as_ref().is_some_and(|data| !data.is_empty()) {
                return refuse(
                    "an unsupported custom assignor is in use. Please refer to the documentation or switch to a default \
                     assignor before re-attempting the upgrade",
                );
            }
            members.push(upgraded(member, group.generation, &subscription, &assignment, env.image));
        }
        Ok(ConsumerGroup::of_members(group, members, env))
    }

    fn of_members(classic: &Group, members: Vec<Member>, env: Env<'_>) -> (ConsumerGroup, Vec<ConsumerRecord>) {
        let mut group = ConsumerGroup::new(&classic.id);
        let mut records = Vec::new();
        for member in &members {
            group.put(member.record(), &mut records);
        }
        let value = ConsumerGroupMetadataValue {
            epoch: classic.generation,
            metadata_hash: metadata_hash(env.image, group.subscribed_names()),
        };
        group.put(ConsumerRecord::Group(Some(value)), &mut records);
        for member in &members {
            group.put(target_record(&member.id, &member.assigned_partitions()), &mut records);
        }
        let value = ConsumerGroupTargetAssignmentMetadataValue {
            assignment_epoch: classic.generation,
            assignment_timestamp: 0,
        };
        group.put(ConsumerRecord::TargetEpoch(Some(value)), &mut records);
        for member in &members {
            group.put(member.current_record(), &mut records);
            let session_ms = member.classic.as_ref().map_or(0, |classic| i64::from(classic.session_timeout_ms));
            let session_ms = env.clock.now_ms + session_ms;
            group.deadlines.change(&member.id, |deadlines| deadlines.session_ms = Some(session_ms));
        }
        (group, records)
    }
}

impl Member {
    fn join_as_classic(
        &mut self,
        client: Client<'_>,
        request: &JoinGroupRequest,
        subscription: &ConsumerProtocolSubscription,
    ) {
        if request.group_instance_id.is_some() {
            self.instance_id.clone_from(&request.group_instance_id);
        }
        if subscription.rack_id.is_some() {
            self.rack_id.clone_from(&subscription.rack_id);
        }
        if request.rebalance_timeout_ms != -1 {
            self.rebalance_timeout_ms = request.rebalance_timeout_ms;
        } else if self.rebalance_timeout_ms == -1 {
            // Version 0 of JoinGroup has one time for both.
            self.rebalance_timeout_ms = request.session_timeout_ms;
        }
        self.topics = Arc::new(subscription.topics.iter().cloned().collect());
        self.regex = Some(String::new());
        self.client_id = client.id.to_owned();
        self.client_host = client.host.to_owned();
        self.classic = Some(classic_metadata(request.session_timeout_ms, &request.protocols));
    }
}

fn classic_metadata(session_timeout_ms: i32, protocols: &[JoinGroupRequestProtocol]) -> ClassicMemberMetadata {
    let stored = |p: &JoinGroupRequestProtocol| ClassicProtocol { name: p.name.clone(), metadata: p.metadata.clone() };
    ClassicMemberMetadata { session_timeout_ms, supported_protocols: protocols.iter().map(stored).collect() }
}

fn upgraded(
    member: &ClassicMember,
    generation: i32,
    subscription: &ConsumerProtocolSubscription,
    assignment: &ConsumerProtocolAssignment,
    image: &MetadataImage,
) -> Member {
    let mut assigned = OwnedPartitions::new();
    for topic in &assignment.assigned_partitions {
        if let Some(found) = image.topic(&topic.topic) {
            assigned.insert(found.id, topic.partitions.iter().map(|partition| (*partition, generation)).collect());
        }
    }
    Member {
        epoch: generation,
        previous_epoch: generation,
        instance_id: member.instance_id.clone(),
        rack_id: subscription.rack_id.clone(),
        client_id: member.client_id.clone(),
        client_host: member.client_host.clone(),
        topics: Arc::new(subscription.topics.iter().cloned().collect()),
        rebalance_timeout_ms: member.rebalance_timeout_ms,
        assigned,
        classic: Some(classic_metadata(member.session_timeout_ms, &member.protocols)),
        ..Member::new(&member.id)
    }
}

static EMPTY: Bytes = Bytes::new();

fn owned_by(subscription: &ConsumerProtocolSubscription, image: &MetadataImage) -> Vec<Owned> {
    let topic = |owned: &caudal_protocol::messages::consumer_protocol_subscription::TopicPartition| {
        let topic_id = image.topic(&owned.topic)?.id;
        Some(Owned { topic_id, partitions: owned.partitions.clone() })
    };
    subscription.owned_partitions.iter().filter_map(topic).collect()
}

/// The version in which a consumer wrote its subscription; it reads assignments of that version.
fn protocol_version(metadata: &Bytes) -> i16 {
    let version = Reader::new(metadata.clone()).i16().unwrap_or(0);
    version.clamp(ConsumerProtocolAssignment::MIN_VERSION, ConsumerProtocolAssignment::MAX_VERSION)
}

/// Consumers of later versions only add to the end.
fn read_versioned<M: Message>(bytes: Bytes) -> Result<M, DecodeError> {
    let mut reader = Reader::new(bytes);
    let version = reader.i16()?.min(M::MAX_VERSION);
    M::decode(&mut reader, version)
}

/// A consumer's subscription as it stands in its JoinGroup.
pub fn read_subscription(metadata: Bytes) -> Result<ConsumerProtocolSubscription, DecodeError> {
    read_versioned(metadata)
}

fn read_assignment(assignment: Bytes) -> Result<ConsumerProtocolAssignment, DecodeError> {
    read_versioned(assignment)
}

fn write_assignment(partitions: &Partitions, version: i16, image: &MetadataImage) -> Bytes {
    let topic = |(id, partitions): (&_, &BTreeSet<i32>)| {
        let topic = image.topic_by_id(id)?.name.clone();
        Some(TopicPartition { topic, partitions: partitions.iter().copied().collect() })
    };
    let assigned_partitions = partitions.iter().filter_map(topic).collect();
    let assignment = ConsumerProtocolAssignment { assigned_partitions, user_data: None };
    let mut writer = Writer::new();
    let encoded = assignment.encode(&mut writer, version).and_then(|()| writer.finish().into_bytes());
    let body = encoded.unwrap_or_else(|error| {
        tracing::error!("failed to write an assignment: {error}");
        Bytes::new()
    });
    let mut out = BytesMut::with_capacity(2 + body.len());
    out.put_i16(version);
    out.put_slice(&body);
    out.freeze()
}
