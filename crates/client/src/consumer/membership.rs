//! The consumer's part in its group: when to join, what to give up before and take after.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_protocol::{ErrorCode, TopicPartition};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::group::{GroupMember, HeartbeatEnd, JoinPlan, Joined, PollClock, heartbeats, join, leave, topic_sizes};
use super::{Consumer, Event, Subscription};
use crate::error::{Error, Result};
use crate::subscription::Topics;

/// How often topics that do not exist yet are looked for.
const MISSING_TOPIC_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
enum Phase {
    /// Not in a generation; the next poll joins.
    #[default]
    Outside,
    Joining(AbortHandle),
    Stable(AbortHandle),
}

/// The state of membership.
#[derive(Debug, Default)]
pub(super) struct Membership {
    phase: Phase,
    member: GroupMember,
    /// The id that a first join was given and has not come back with yet.
    given_id: Arc<Mutex<String>>,
    /// Tells answers of an abandoned task from those of the present one.
    round: u64,
    clock: Arc<PollClock>,
    /// Partitions were taken by the group already: they are lost instead of revoked.
    lost: bool,
    is_leader: bool,
    /// Topics and sizes that the last join went by; `None` before the first look.
    seen: Option<BTreeMap<String, usize>>,
    /// The next look is taken as it is: the group's leader has just looked.
    adopt: bool,
    looking: bool,
    look_at: Option<Instant>,
    /// Join again, although the generation is in force.
    rejoin: bool,
}

impl Membership {
    pub(super) fn member(&self) -> GroupMember {
        match self.phase {
            Phase::Stable(_) => self.member.clone(),
            _ => GroupMember { generation: -1, ..self.member.clone() },
        }
    }

    pub(super) fn clock(&self) -> &PollClock {
        &self.clock
    }

    /// A join is under way: positions and commits wait for it.
    pub(super) fn is_settling(&self) -> bool {
        matches!(self.phase, Phase::Joining(_))
    }

    /// The topics changed: look at them, join with them.
    pub(super) fn resubscribe(&mut self) {
        self.seen = None;
        self.look_at = None;
        self.rejoin = true;
    }

    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        self.look_at.filter(|at| *at > now && !self.looking)
    }

    /// A commit that the group refused says that this generation is over.
    pub(super) fn on_commit_error(&mut self, error: &Error) {
        match error.code() {
            Some(ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration) => {
                self.lost = true;
                self.rejoin = true;
            }
            Some(ErrorCode::RebalanceInProgress) => self.rejoin = true,
            _ => {}
        }
    }

    fn stop(&mut self) {
        match std::mem::take(&mut self.phase) {
            Phase::Joining(task) | Phase::Stable(task) => task.abort(),
            Phase::Outside => {}
        }
        self.round += 1;
    }
}

impl Consumer {
    /// Looks at the topics when that is due, and joins when there is a reason to.
    pub(super) fn drive_membership(&mut self, now: Instant) {
        let Subscription::Topics(topics) = self.subscription.clone() else { return };
        let due = self.membership.look_at.is_none_or(|at| at <= now);
        if due && !self.membership.looking {
            self.look_at_topics(topics);
        }
        let joins = match self.membership.phase {
            Phase::Outside => true,
            Phase::Stable(_) => self.membership.rejoin,
            Phase::Joining(_) => false,
        };
        if joins && self.membership.seen.is_some() {
            self.begin_join();
        }
    }

    fn look_at_topics(&mut self, topics: Topics) {
        self.membership.looking = true;
        let client = self.client.clone();
        self.tasks.spawn(async move {
            let sizes = match topics {
                Topics::Names(names) => topic_sizes(&client, &names).await,
                Topics::Pattern(pattern) => client.all_topics().await.map(|all| {
                    let matching = all.iter().filter(|t| !t.is_internal && pattern.matches(&t.name));
                    matching.map(|t| (t.name.clone(), t.partitions.len())).collect()
                }),
            };
            Event::Topics(sizes)
        });
    }

    pub(super) fn on_topics(&mut self, result: Result<BTreeMap<String, usize>>) {
        let now = Instant::now();
        self.membership.looking = false;
        let Subscription::Topics(topics) = &self.subscription else { return };
        let sizes = match result {
            Ok(sizes) => sizes,
            Err(error) if error.is_retriable() || matches!(error, Error::Timeout { .. }) => {
                tracing::warn!(%error, "cannot look at the topics that are subscribed to");
                self.membership.look_at = Some(now + MISSING_TOPIC_INTERVAL);
                return;
            }
            Err(error) => {
                self.failure = Some(error);
                self.membership.look_at = Some(now + MISSING_TOPIC_INTERVAL);
                return;
            }
        };
        let missing = match topics {
            Topics::Names(names) => names.iter().any(|name| !sizes.contains_key(name)),
            Topics::Pattern(_) => false,
        };
        let interval = self.client.config().duration("metadata.max.age.ms");
        self.membership.look_at = Some(now + if missing { MISSING_TOPIC_INTERVAL } else { interval });
        let adopt = std::mem::take(&mut self.membership.adopt);
        let changed = match &self.membership.seen {
            None => true,
            // The leader answers for sizes, every member for the topics that it reads.
            Some(seen) if self.membership.is_leader => *seen != sizes,
            Some(seen) => !adopt && !seen.keys().eq(sizes.keys()),
        };
        if adopt {
            self.membership.seen = Some(sizes.clone());
        }
        if changed {
            self.membership.rejoin = true;
            self.membership.seen = Some(sizes);
        }
    }

    /// Gives up what has to be given up before a join, and starts it.
    fn begin_join(&mut self) {
        let (Some(config), Some(seen)) = (self.group_config.clone(), self.membership.seen.clone()) else { return };
        let Subscription::Topics(topics) = &self.subscription else { return };
        let names = match topics {
            Topics::Names(names) => names.clone(),
            Topics::Pattern(_) => seen.into_keys().collect(),
        };
        let member = self.membership.member();
        let mut commit = Vec::new();
        if self.membership.lost {
            self.lose_partitions();
        } else if member.generation >= 0 {
            if self.settings.auto_commit.is_some() {
                commit = self.positions();
            }
            if !config.is_cooperative() {
                commit.extend(self.revoke(&self.assignment()));
            }
        }
        self.stop_auto_commit();
        self.membership.stop();
        self.membership.lost = false;
        self.membership.rejoin = false;
        let given_id = Arc::new(Mutex::new(member.member_id.clone()));
        self.membership.given_id = Arc::clone(&given_id);
        let plan = JoinPlan { member, topics: names, owned: self.assignment(), commit, given_id };
        let (client, round, clock) = (self.client.clone(), self.membership.round, Arc::clone(&self.membership.clock));
        let events = self.events.clone();
        // One task for both, so that heartbeats begin even when the next poll is long in coming. The receiver lives as
        // long as the consumer.
        let task = self.tasks.spawn(async move {
            let joined = match join(&client, &config, &plan).await {
                Ok(joined) => joined,
                Err(error) => return Event::Joined(round, Err(error)),
            };
            let member = joined.member.clone();
            drop(events.send(Event::Joined(round, Ok(joined))));
            let rebalances = || drop(events.send(Event::Rebalances(round)));
            Event::HeartbeatsEnded(round, heartbeats(&client, &config, &member, &clock, rebalances).await)
        });
        self.membership.phase = Phase::Joining(task);
    }

    /// Tells the listener and lets go of partitions. Returns what it wants to be committed first.
    fn revoke(&mut self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, crate::admin::OffsetAndMetadata)> {
        if partitions.is_empty() {
            return Vec::new();
        }
        let commit = self.listener.as_mut().map(|listener| listener.on_revoked(partitions)).unwrap_or_default();
        for tp in partitions {
            self.partitions.remove(tp);
        }
        commit
    }

    fn lose_partitions(&mut self) {
        let lost = self.assignment();
        self.partitions.clear();
        if let (Some(listener), false) = (self.listener.as_mut(), lost.is_empty()) {
            listener.on_lost(&lost);
        }
    }

    pub(super) fn on_joined(&mut self, round: u64, result: Result<Joined>) {
        if round != self.membership.round {
            return;
        }
        let joined = match result {
            Ok(joined) => joined,
            Err(error) => {
                self.membership.phase = Phase::Outside;
                self.membership.member = GroupMember::default();
                self.membership.seen = None;
                self.membership.look_at = None;
                self.lose_partitions();
                self.failure = Some(error);
                return;
            }
        };
        self.membership.member = joined.member.clone();
        self.membership.is_leader = joined.is_leader;
        if !joined.is_leader {
            self.membership.adopt = true;
            self.membership.look_at = None;
        }
        tracing::debug!(member = joined.member.member_id, generation = joined.member.generation, "joined");
        if let Phase::Joining(task) = std::mem::take(&mut self.membership.phase) {
            self.membership.phase = Phase::Stable(task);
        }
        self.take_assignment(&joined);
    }

    fn take_assignment(&mut self, joined: &Joined) {
        let held = self.assignment();
        let gone: Vec<TopicPartition> = held.iter().filter(|tp| !joined.assignment.contains(tp)).cloned().collect();
        if !gone.is_empty() {
            // Only cooperative members still hold any. Others wait for these: join again at once.
            let read = self.positions().into_iter().filter(|(tp, _)| gone.contains(tp));
            let mut commit: Vec<_> = read.filter(|_| self.settings.auto_commit.is_some()).collect();
            commit.extend(self.revoke(&gone));
            if !commit.is_empty() {
                self.spawn_commit(commit);
            }
            self.membership.rejoin = joined.assignor.is_cooperative();
        }
        let new: Vec<TopicPartition> = joined.assignment.iter().filter(|tp| !held.contains(tp)).cloned().collect();
        for tp in &new {
            self.add_partition(tp);
        }
        if let Some(listener) = self.listener.as_mut() {
            listener.on_assigned(&new);
        }
        if joined.is_leader && self.reads_all(joined) {
            self.membership.seen = Some(joined.topics.clone());
        }
    }

    /// Whether the topics of the whole group are those of this member; a leader may hear of more than it reads.
    fn reads_all(&self, joined: &Joined) -> bool {
        match &self.subscription {
            Subscription::Topics(Topics::Names(names)) => joined.topics.keys().all(|t| names.contains(t)),
            Subscription::Topics(Topics::Pattern(p)) => joined.topics.keys().all(|t| p.matches(t)),
            _ => false,
        }
    }

    fn spawn_commit(&mut self, offsets: Vec<(TopicPartition, crate::admin::OffsetAndMetadata)>) {
        let Some(config) = self.group_config.clone() else { return };
        let (client, member) = (self.client.clone(), self.membership.member());
        self.tasks
            .spawn(async move { Event::Committed(super::offsets::commit(&client, &config, &member, &offsets).await) });
    }

    pub(super) fn on_rebalances(&mut self, round: u64) {
        if round == self.membership.round {
            self.membership.rejoin = true;
        }
    }

    pub(super) fn on_heartbeats_ended(&mut self, round: u64, end: HeartbeatEnd) {
        if round != self.membership.round {
            return;
        }
        self.membership.rejoin = true;
        match end {
            HeartbeatEnd::Lost(error) => {
                tracing::warn!(%error, "this member was given up by its group; joining anew");
                self.membership.lost = true;
                self.membership.member = GroupMember::default();
            }
            HeartbeatEnd::Idle => {
                self.membership.lost = true;
                self.membership.member = GroupMember::default();
            }
            HeartbeatEnd::Fatal(error) => {
                self.membership.stop();
                self.membership.lost = true;
                self.failure = Some(error);
            }
        }
    }

    /// Says goodbye to the group, if there is one.
    pub(super) async fn leave_group(&mut self) {
        let mut member = self.membership.member.clone();
        let in_group = !matches!(self.membership.phase, Phase::Outside);
        if matches!(self.membership.phase, Phase::Joining(_)) {
            // A member that has an id holds up the others' rebalance until its session ends.
            member.member_id.clone_from(&self.membership.given_id.lock());
        }
        self.stop_auto_commit();
        self.membership.stop();
        self.membership.seen = None;
        if let Some(config) = self.group_config.clone().filter(|_| in_group) {
            let commit = self.revoke(&self.assignment());
            if !commit.is_empty()
                && let Err(error) = super::offsets::commit(&self.client, &config, &member, &commit).await
            {
                tracing::warn!(%error, "offsets were not committed on leaving the group");
            }
            leave(&self.client, &config, &member).await;
        }
        self.membership.member = GroupMember::default();
    }
}
