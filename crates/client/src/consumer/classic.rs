//! The classic group protocol's conversations: join and sync, heartbeats, leaving. They run as a task; what to do with the
//! outcome is decided in [`super::membership`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use caudal_protocol::messages as m;
use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use caudal_protocol::messages::{JoinGroupResponse, consumer_protocol_assignment, consumer_protocol_subscription};
use caudal_protocol::wire::{Message, Reader};
use caudal_protocol::{ErrorCode, TopicPartition};

use super::assignor::{Assignor, Subscriber};
use super::group::{GroupConfig, GroupMember, HeartbeatEnd, Identity, PollClock, leave_if_idle, topic_sizes};
use super::offsets::commit;
use crate::admin::OffsetAndMetadata;
use crate::client::{ANY_VERSION, Client, Lane};
use crate::error::{Error, Result};

const PROTOCOL_TYPE: &str = "consumer";
/// A join may take as long as the slowest member, and the broker a moment more to say so.
const JOIN_GRACE: Duration = Duration::from_secs(5);

/// What a join brings along.
#[derive(Debug, Clone, Default)]
pub(super) struct JoinPlan {
    pub member: GroupMember,
    pub topics: Vec<String>,
    /// Told to the group by cooperative members.
    pub owned: Vec<TopicPartition>,
    /// Committed before the join, while the old generation is still in force.
    pub commit: Vec<(TopicPartition, OffsetAndMetadata)>,
    /// Told the id that the group gives on the way, for a goodbye before the join is through.
    pub identity: Identity,
}

/// A generation that this consumer is part of.
#[derive(Debug, Clone)]
pub(super) struct Joined {
    pub member: GroupMember,
    pub assignor: Assignor,
    pub assignment: Vec<TopicPartition>,
    pub is_leader: bool,
    /// Sizes of the topics as the assignment saw them.
    pub topics: BTreeMap<String, usize>,
}

/// Commits, joins and syncs until there is a generation with an assignment, or an error that will not pass.
pub(super) async fn join(client: &Client, config: &GroupConfig, plan: &JoinPlan) -> Result<Joined> {
    if !plan.commit.is_empty() {
        let committed = commit(client, config, &plan.identity, &plan.commit).await;
        if let Err(error) = committed {
            tracing::warn!(%error, "offsets were not committed before the rebalance; records may come again");
        }
    }
    let mut member = plan.member.clone();
    let group = &config.group_id;
    let mut attempts = client.attempts(format!("join group '{group}'"), Duration::from_secs(86_400));
    loop {
        let error = match try_join(client, config, plan, &mut member).await {
            Ok(joined) => return Ok(joined),
            Err(error) => error,
        };
        match error.code() {
            Some(ErrorCode::MemberIdRequired | ErrorCode::RebalanceInProgress) => continue,
            Some(ErrorCode::UnknownMemberId) => {
                member = GroupMember::default();
                continue;
            }
            Some(ErrorCode::IllegalGeneration) => {
                member.generation = -1;
                continue;
            }
            _ => {}
        }
        client.forget_coordinator(group, 0);
        attempts.pause(error).await?;
    }
}

async fn try_join(client: &Client, config: &GroupConfig, plan: &JoinPlan, member: &mut GroupMember) -> Result<Joined> {
    let node = client.coordinator(&config.group_id, 0).await?;
    let mut protocols = Vec::with_capacity(config.assignors.len());
    for assignor in &config.assignors {
        let metadata = subscription(plan, *assignor, member.generation, &config.rack_id)?;
        protocols.push(JoinGroupRequestProtocol { name: assignor.name().to_owned(), metadata });
    }
    let request = m::JoinGroupRequest {
        group_id: config.group_id.clone(),
        session_timeout_ms: config.session_timeout_ms,
        rebalance_timeout_ms: config.rebalance_timeout_ms,
        member_id: member.member_id.clone(),
        group_instance_id: config.instance_id.clone(),
        protocol_type: PROTOCOL_TYPE.to_owned(),
        protocols,
        reason: None,
    };
    let rebalance = Duration::from_millis(u64::try_from(config.rebalance_timeout_ms).unwrap_or(0));
    let timeout = (rebalance + JOIN_GRACE).max(client.request_timeout());
    let response = client.send_on(node, Lane::Join, &request, ANY_VERSION, timeout).await?;
    if response.error_code == ErrorCode::MemberIdRequired.code() {
        member.member_id.clone_from(&response.member_id);
        plan.identity.lock().member_id.clone_from(&response.member_id);
    }
    crate::error::check(response.error_code, None, || format!("join group '{}'", config.group_id))?;
    member.member_id.clone_from(&response.member_id);
    member.generation = response.generation_id;
    sync(client, config, node, response).await
}

async fn sync(client: &Client, config: &GroupConfig, node: i32, joined: JoinGroupResponse) -> Result<Joined> {
    let protocol = joined.protocol_name.clone().unwrap_or_default();
    let assignor = Assignor::from_name(&protocol).ok_or_else(|| Error::Misuse {
        what: format!("join group '{}'", config.group_id),
        reason: format!("its members agreed on the strategy '{protocol}', which this client does not have"),
    })?;
    let is_leader = joined.leader == joined.member_id;
    let mut topics = BTreeMap::new();
    let mut assignments = Vec::new();
    if is_leader && !joined.skip_assignment {
        (assignments, topics) = assign(client, &joined, assignor).await?;
    }
    let request = m::SyncGroupRequest {
        group_id: config.group_id.clone(),
        generation_id: joined.generation_id,
        member_id: joined.member_id.clone(),
        group_instance_id: config.instance_id.clone(),
        protocol_type: Some(PROTOCOL_TYPE.to_owned()),
        protocol_name: Some(protocol),
        assignments,
    };
    let rebalance = Duration::from_millis(u64::try_from(config.rebalance_timeout_ms).unwrap_or(0));
    let timeout = (rebalance + JOIN_GRACE).max(client.request_timeout());
    let response = client.send_on(node, Lane::Join, &request, ANY_VERSION, timeout).await?;
    crate::error::check(response.error_code, None, || format!("synchronise with group '{}'", config.group_id))?;
    let assignment =
        decode_assignment(&response.assignment).map_err(|e| Error::decode("the group's leader", "SyncGroup", &e))?;
    let member = GroupMember { member_id: joined.member_id, generation: joined.generation_id };
    Ok(Joined { member, assignor, assignment, is_leader, topics })
}

type Assigned = (Vec<SyncGroupRequestAssignment>, BTreeMap<String, usize>);

/// The leader's part: spreads the partitions of all topics that any member wants.
async fn assign(client: &Client, joined: &JoinGroupResponse, assignor: Assignor) -> Result<Assigned> {
    let mut members = Vec::with_capacity(joined.members.len());
    for member in &joined.members {
        let mut subscriber = decode_subscription(&member.metadata)
            .map_err(|e| Error::decode("a member of the group", "JoinGroup", &e))?;
        subscriber.member_id.clone_from(&member.member_id);
        subscriber.instance_id.clone_from(&member.group_instance_id);
        members.push(subscriber);
    }
    let mut names: Vec<String> = members.iter().flat_map(|m| m.topics.iter().cloned()).collect();
    names.sort();
    names.dedup();
    let topics = topic_sizes(client, &names).await?;
    let assigned = assignor.assign(&members, &topics);
    let assignments = assigned
        .into_iter()
        .map(|(member_id, partitions)| {
            Ok(SyncGroupRequestAssignment { member_id, assignment: encode_assignment(&partitions)? })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((assignments, topics))
}

fn encode<M: Message>(message: &M, version: i16) -> Result<Bytes> {
    let failed = |source| Error::Encode { request: M::NAME, source };
    let body = message.to_bytes(version).map_err(failed)?;
    let mut bytes = BytesMut::with_capacity(2 + body.len());
    bytes.put_i16(version);
    bytes.put_slice(&body);
    Ok(bytes.freeze())
}

fn subscription(plan: &JoinPlan, assignor: Assignor, generation: i32, rack_id: &str) -> Result<Bytes> {
    let mut owned: Vec<consumer_protocol_subscription::TopicPartition> = Vec::new();
    // Eager members hold nothing while they join.
    for tp in plan.owned.iter().filter(|_| assignor.is_cooperative()) {
        match owned.iter_mut().find(|t| t.topic == tp.topic) {
            Some(topic) => topic.partitions.push(tp.partition),
            None => owned.push(consumer_protocol_subscription::TopicPartition {
                topic: tp.topic.clone(),
                partitions: vec![tp.partition],
            }),
        }
    }
    let message = m::ConsumerProtocolSubscription {
        topics: plan.topics.clone(),
        user_data: None,
        owned_partitions: owned,
        generation_id: generation,
        rack_id: Some(rack_id.to_owned()).filter(|rack| !rack.is_empty()),
    };
    encode(&message, m::ConsumerProtocolSubscription::MAX_VERSION)
}

fn decode_subscription(bytes: &Bytes) -> Result<Subscriber, caudal_protocol::wire::DecodeError> {
    let mut reader = Reader::new(bytes.clone());
    // A newer version begins as the newest that is known here does.
    let version = reader.i16()?.min(m::ConsumerProtocolSubscription::MAX_VERSION);
    let decoded = m::ConsumerProtocolSubscription::decode(&mut reader, version)?;
    let flatten = |t: consumer_protocol_subscription::TopicPartition| {
        let topic = t.topic;
        t.partitions.into_iter().map(move |p| TopicPartition::new(topic.clone(), p))
    };
    Ok(Subscriber {
        topics: decoded.topics,
        owned: decoded.owned_partitions.into_iter().flat_map(flatten).collect(),
        generation: decoded.generation_id,
        ..Default::default()
    })
}

fn encode_assignment(partitions: &[TopicPartition]) -> Result<Bytes> {
    let mut topics: Vec<consumer_protocol_assignment::TopicPartition> = Vec::new();
    for tp in partitions {
        match topics.iter_mut().find(|t| t.topic == tp.topic) {
            Some(topic) => topic.partitions.push(tp.partition),
            None => topics.push(consumer_protocol_assignment::TopicPartition {
                topic: tp.topic.clone(),
                partitions: vec![tp.partition],
            }),
        }
    }
    let message = m::ConsumerProtocolAssignment { assigned_partitions: topics, user_data: None };
    encode(&message, m::ConsumerProtocolAssignment::MAX_VERSION)
}

/// The partitions in an assignment; none when it is empty, as for a member that the leader did not know.
pub fn decode_assignment(bytes: &Bytes) -> Result<Vec<TopicPartition>, caudal_protocol::wire::DecodeError> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let mut reader = Reader::new(bytes.clone());
    let version = reader.i16()?.min(m::ConsumerProtocolAssignment::MAX_VERSION);
    let decoded = m::ConsumerProtocolAssignment::decode(&mut reader, version)?;
    let flatten = |t: consumer_protocol_assignment::TopicPartition| {
        let topic = t.topic;
        t.partitions.into_iter().map(move |p| TopicPartition::new(topic.clone(), p))
    };
    Ok(decoded.assigned_partitions.into_iter().flat_map(flatten).collect())
}

/// Keeps a member alive until it is given up. `rebalances` is called when the group rebalances; until the consumer joins
/// again, the member goes on to show that it lives.
pub(super) async fn heartbeats(
    client: &Client,
    config: &GroupConfig,
    member: &GroupMember,
    clock: &PollClock,
    rebalances: impl Fn(),
) -> HeartbeatEnd {
    let session = Duration::from_millis(u64::try_from(config.session_timeout_ms).unwrap_or(0));
    let mut heard = Instant::now();
    let mut wait = config.heartbeat_interval;
    loop {
        tokio::time::sleep(wait).await;
        wait = config.heartbeat_interval;
        if leave_if_idle(client, config, member, clock).await {
            return HeartbeatEnd::Idle;
        }
        let error = match heartbeat(client, config, member).await {
            Ok(()) => {
                heard = Instant::now();
                continue;
            }
            Err(error) => error,
        };
        match error.code() {
            Some(ErrorCode::RebalanceInProgress) => {
                heard = Instant::now();
                rebalances();
                continue;
            }
            Some(ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration) => return HeartbeatEnd::Lost(error),
            _ if !error.is_retriable() => return HeartbeatEnd::Fatal(error),
            _ => {}
        }
        client.forget_coordinator(&config.group_id, 0);
        if heard.elapsed() > session {
            return HeartbeatEnd::Lost(error);
        }
        wait = client.retry_backoff().wait(1).min(config.heartbeat_interval);
    }
}

async fn heartbeat(client: &Client, config: &GroupConfig, member: &GroupMember) -> Result<()> {
    let node = client.coordinator(&config.group_id, 0).await?;
    let request = m::HeartbeatRequest {
        group_id: config.group_id.clone(),
        generation_id: member.generation,
        member_id: member.member_id.clone(),
        group_instance_id: config.instance_id.clone(),
    };
    let session = Duration::from_millis(u64::try_from(config.session_timeout_ms).unwrap_or(0));
    let timeout = client.request_timeout().min(session);
    let response = client.send_on(node, Lane::Group, &request, ANY_VERSION, timeout).await?;
    crate::error::check(response.error_code, None, || format!("stay in group '{}'", config.group_id))
}

/// Tells the coordinator that this member goes.
pub(super) async fn leave(client: &Client, config: &GroupConfig, member: &GroupMember) -> Result<()> {
    // A static member keeps its place until its session times out (KIP-345).
    if config.instance_id.is_some() {
        return Ok(());
    }
    let node = client.coordinator(&config.group_id, 0).await?;
    let connection = client.connection(node, Lane::General).await?;
    let mut request = m::LeaveGroupRequest { group_id: config.group_id.clone(), ..Default::default() };
    if connection.version_of::<m::LeaveGroupRequest>(ANY_VERSION)? >= 3 {
        request.members.push(MemberIdentity {
            member_id: member.member_id.clone(),
            group_instance_id: None,
            reason: None,
        });
    } else {
        request.member_id.clone_from(&member.member_id);
    }
    let response = connection.submit(&request, ANY_VERSION)?.answer(client.request_timeout()).await?;
    crate::error::check(response.error_code, None, || format!("leave group '{}'", config.group_id))
}
