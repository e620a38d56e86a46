//! The conversation of the consumer group protocol (KIP-848): one heartbeat after the other, by which a member joins, says
//! what it wants and has, and hears what it is to have. It runs as a task; what an assignment leads to is decided in
//! [`super::membership`].

use std::collections::BTreeMap;
use std::time::Duration;

use caudal_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use caudal_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};
use tokio::sync::watch;

use super::group::{GroupConfig, GroupMember, HeartbeatEnd, Identity, PollClock, leave_if_idle};
use crate::client::{ANY_VERSION, Client, Lane};
use crate::error::{Error, Result, check};

/// The epochs by which a member joins, leaves for good, and leaves to come back under its `group.instance.id`.
const JOIN: i32 = 0;
const LEAVE: i32 = -1;
const LEAVE_FOR_NOW: i32 = -2;

/// Partitions, each with the id of its topic: the protocol knows topics by id only.
pub(super) type Assignment = BTreeMap<TopicPartition, Uuid>;

/// What a member says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Statement {
    pub topics: Vec<String>,
    pub owned: Assignment,
    /// How many assignments were taken: the group waits to hear of each, also of one that brings nothing new.
    pub taken: u64,
}

/// The member's side of the conversation.
struct Conversation<'a> {
    client: &'a Client,
    config: &'a GroupConfig,
    identity: &'a Identity,
    /// What the coordinator has heard; `None` when that is not certain: the next heartbeat says everything.
    heard: Option<Statement>,
    /// An assignment with topics whose names are not known yet, as those that were created a moment ago.
    unnamed: BTreeMap<Uuid, Vec<i32>>,
}

/// Joins and stays in the group until the member is given up. `told` is called when it is in, and for each assignment.
pub(super) async fn converse(
    client: &Client,
    config: &GroupConfig,
    identity: &Identity,
    mut statement: watch::Receiver<Statement>,
    clock: &PollClock,
    told: impl Fn(Option<Assignment>),
) -> HeartbeatEnd {
    let mut conversation = Conversation { client, config, identity, heard: None, unnamed: BTreeMap::new() };
    let (mut wait, mut failures) = (Duration::ZERO, 0);
    loop {
        let until_idle = config.max_idle().saturating_sub(clock.idle()) + Duration::from_millis(1);
        tokio::select! {
            () = tokio::time::sleep(wait.min(until_idle)) => {}
            // The group waits for what has changed; not so after a failure, whose wait is there to spare the coordinator.
            Ok(()) = statement.changed(), if failures == 0 => {}
        }
        let member = identity.lock().clone();
        if leave_if_idle(client, config, &member, clock).await {
            return HeartbeatEnd::Idle;
        }
        let now = statement.borrow_and_update().clone();
        let error = match conversation.beat(now).await {
            Ok(response) => {
                wait = Duration::from_millis(u64::try_from(response.heartbeat_interval_ms).unwrap_or(0));
                failures = 0;
                told(conversation.take(response, wait).await);
                continue;
            }
            Err(error) => error,
        };
        conversation.heard = None;
        match error.code() {
            Some(ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMemberId) => return HeartbeatEnd::Lost(error),
            _ if !error.is_retriable() => return HeartbeatEnd::Fatal(error),
            _ => {}
        }
        client.forget_coordinator(&config.group_id, 0);
        failures += 1;
        wait = client.retry_backoff().wait(failures);
        tracing::debug!(%error, failures, "a heartbeat of group '{}' failed", config.group_id);
    }
}

impl Conversation<'_> {
    /// One heartbeat and its answer.
    async fn beat(&mut self, now: Statement) -> Result<ConsumerGroupHeartbeatResponse> {
        let member = self.identity.lock().clone();
        let epoch = member.generation.max(JOIN);
        let mut request = heartbeat(self.config, &member, epoch);
        let (config, heard) = (self.config, self.heard.as_ref());
        if heard.is_none() {
            request.rebalance_timeout_ms = config.rebalance_timeout_ms;
            request.server_assignor.clone_from(&config.remote_assignor);
            request.rack_id = Some(config.rack_id.clone()).filter(|rack| epoch == JOIN && !rack.is_empty());
        }
        if heard.is_none_or(|heard| heard.topics != now.topics) {
            request.subscribed_topic_names = Some(now.topics.clone());
        }
        if heard.is_none_or(|heard| heard.taken != now.taken) {
            request.topic_partitions = Some(by_topic(&now.owned));
        }
        let response = send(self.client, config, &request).await?;
        let what = || {
            let what = if epoch == JOIN { "join" } else { "stay in" };
            format!("{what} group '{}'", config.group_id)
        };
        check(response.error_code, response.error_message.as_deref(), what)?;
        self.heard = Some(now);
        Ok(response)
    }

    /// Takes note of an answer; the assignment that it brings, or the rest of an earlier one.
    async fn take(&mut self, response: ConsumerGroupHeartbeatResponse, interval: Duration) -> Option<Assignment> {
        {
            let mut member = self.identity.lock();
            member.generation = response.member_epoch;
            // From version 1 on it is the member that makes its id, before that it may be the coordinator.
            if let Some(id) = response.member_id.filter(|id| !id.is_empty()) {
                member.member_id = id;
            }
        }
        if let Some(assignment) = response.assignment {
            self.unnamed = assignment.topic_partitions.into_iter().map(|t| (t.topic_id, t.partitions)).collect();
        } else if self.unnamed.is_empty() {
            return None;
        }
        let ids: Vec<Uuid> = self.unnamed.keys().copied().collect();
        let mut names = self.client.topic_names(&ids);
        if names.len() < ids.len() {
            // Never for longer than until the next heartbeat is due.
            let asked = tokio::time::timeout(interval, self.client.refresh_topics(&ids)).await;
            if let Ok(Err(error)) = asked {
                tracing::warn!(%error, "cannot find the names of topics that group '{}' assigned", self.config.group_id);
            }
            names = self.client.topic_names(&ids);
        }
        let mut assignment = Assignment::new();
        for (id, partitions) in &self.unnamed {
            let Some(name) = names.get(id) else { continue };
            assignment.extend(partitions.iter().map(|p| (TopicPartition::new(name.clone(), *p), *id)));
        }
        if names.len() == ids.len() {
            self.unnamed.clear();
        }
        Some(assignment)
    }
}

fn by_topic(partitions: &Assignment) -> Vec<TopicPartitions> {
    let mut topics: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
    for (tp, id) in partitions {
        topics.entry(*id).or_default().push(tp.partition);
    }
    topics.into_iter().map(|(topic_id, partitions)| TopicPartitions { topic_id, partitions }).collect()
}

fn heartbeat(config: &GroupConfig, member: &GroupMember, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest {
        group_id: config.group_id.clone(),
        member_id: member.member_id.clone(),
        member_epoch: epoch,
        instance_id: config.instance_id.clone(),
        ..Default::default()
    }
}

async fn send(
    client: &Client,
    config: &GroupConfig,
    request: &ConsumerGroupHeartbeatRequest,
) -> Result<ConsumerGroupHeartbeatResponse> {
    let node = client.coordinator(&config.group_id, 0).await?;
    let sent = client.send_on(node, Lane::Group, request, ANY_VERSION, client.request_timeout()).await;
    let unsupported = ErrorCode::UnsupportedVersion;
    match sent {
        Err(Error::UnsupportedApi { .. }) => {}
        Ok(response) if response.error_code == unsupported.code() => {}
        other => return other,
    }
    let hint = "the cluster does not serve the consumer group protocol; set group.protocol=classic until it does";
    Err(Error::server(format!("join group '{}'", config.group_id), unsupported.code(), Some(hint)))
}

/// Tells the coordinator that this member goes.
pub(super) async fn leave(client: &Client, config: &GroupConfig, member: &GroupMember) -> Result<()> {
    let epoch = if config.instance_id.is_some() { LEAVE_FOR_NOW } else { LEAVE };
    let response = send(client, config, &heartbeat(config, member, epoch)).await?;
    check(response.error_code, response.error_message.as_deref(), || format!("leave group '{}'", config.group_id))
}
