//! The consumer's part in its group: when to join, what to give up before and take after.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_protocol::{ErrorCode, TopicPartition, Uuid};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::classic::{JoinPlan, Joined, heartbeats, join};
use super::group::{GroupConfig, GroupMember, HeartbeatEnd, Identity, PollClock, leave, topic_sizes};
use super::heartbeat::{Assignment, Statement, converse};
use super::{Consumer, Event, Subscription};
use crate::error::{Error, Result};
use crate::outage::Stall;
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
    identity: Identity,
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
    /// A topic that is subscribed to does not exist.
    missing: Stall,
    /// Join again, although the generation is in force.
    rejoin: bool,
    next_generation: Reconciliation,
}

/// Where a member by the consumer protocol is on the way from what it has to what it is to have.
#[derive(Debug, Default)]
struct Reconciliation {
    /// What the conversation says of this member; `None` outside of one.
    statement: Option<watch::Sender<Statement>>,
    /// The assignment that the group told last.
    told: Option<Assignment>,
    /// It is still to be taken.
    is_due: bool,
    /// Offsets of partitions that were given up are being committed: others must not read them yet.
    is_releasing: bool,
}

impl Membership {
    pub(super) fn member(&self) -> GroupMember {
        match self.phase {
            Phase::Stable(_) => self.identity.lock().clone(),
            _ => GroupMember { generation: -1, ..self.identity.lock().clone() },
        }
    }

    /// Who this consumer is, also of later: an epoch may change while a commit is under way.
    pub(super) fn identity(&self) -> Identity {
        Arc::clone(&self.identity)
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
        self.next_generation = Reconciliation::default();
        self.round += 1;
    }

    /// The group does not know this member any more.
    fn forget(&mut self, config: Option<&GroupConfig>) {
        let mut member = self.identity.lock();
        member.generation = -1;
        // By the consumer protocol an id is for life.
        if !config.is_some_and(|config| config.is_next_generation) {
            member.member_id.clear();
        }
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
        self.reconcile();
    }

    /// A topic that is read has gone, perhaps for one of the same name with other partitions: the group is to know.
    pub(super) fn look_again(&mut self) {
        let soon = Instant::now() + self.client.retry_backoff().wait(1);
        self.membership.look_at = self.membership.look_at.map(|at| at.min(soon));
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
            Topics::Names(names) => names.iter().find(|name| !sizes.contains_key(*name)),
            Topics::Pattern(_) => None,
        };
        let interval = if let Some(name) = missing {
            let code = ErrorCode::UnknownTopicOrPartition.code();
            let why = Some("it does not exist, and nobody has made it yet");
            self.membership.missing.failed(&Error::server(format!("read topic '{name}'"), code, why));
            MISSING_TOPIC_INTERVAL
        } else {
            self.membership.missing.is_over("all topics that are subscribed to exist");
            self.client.config().duration("metadata.max.age.ms")
        };
        self.membership.look_at = Some(now + interval);
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

    /// Joins, or tells a group that this is a member of already what has changed.
    fn begin_join(&mut self) {
        let (Some(config), Some(seen)) = (self.group_config.clone(), self.membership.seen.clone()) else { return };
        let Subscription::Topics(topics) = &self.subscription else { return };
        let names = match topics {
            Topics::Names(names) => names.clone(),
            Topics::Pattern(_) => seen.into_keys().collect(),
        };
        if config.is_next_generation {
            self.begin_conversation(config, names);
        } else {
            self.begin_classic_join(config, names);
        }
    }

    /// Enters the group by the consumer protocol; a member in force only says what it wants now.
    fn begin_conversation(&mut self, config: Arc<GroupConfig>, topics: Vec<String>) {
        self.membership.rejoin = false;
        if !self.membership.lost
            && let Some(statement) = &self.membership.next_generation.statement
        {
            statement.send_if_modified(|s| std::mem::replace(&mut s.topics, topics) != s.topics);
            return;
        }
        self.lose_partitions();
        self.stop_auto_commit();
        self.membership.forget(Some(&config));
        self.membership.stop();
        self.membership.lost = false;
        let mut member = self.membership.member();
        if member.member_id.is_empty() {
            member.member_id = Uuid::random().to_string();
        }
        let identity = Arc::new(Mutex::new(member));
        self.membership.identity = Arc::clone(&identity);
        let (sender, statement) = watch::channel(Statement { topics, ..Default::default() });
        self.membership.next_generation.statement = Some(sender);
        let (client, round, clock) = (self.client.clone(), self.membership.round, Arc::clone(&self.membership.clock));
        let events = self.events.clone();
        let task = self.tasks.spawn(async move {
            let told = |assignment| drop(events.send(Event::Told(round, assignment)));
            let ended = converse(&client, &config, &identity, statement, &clock, told).await;
            Event::HeartbeatsEnded(round, ended)
        });
        self.membership.phase = Phase::Joining(task);
    }

    /// The coordinator answered a heartbeat.
    pub(super) fn on_told(&mut self, round: u64, assignment: Option<Assignment>) {
        if round != self.membership.round {
            return;
        }
        if let Phase::Joining(task) | Phase::Stable(task) = std::mem::take(&mut self.membership.phase) {
            self.membership.phase = Phase::Stable(task);
        }
        let state = &mut self.membership.next_generation;
        if assignment.is_some() && assignment != state.told {
            state.told = assignment;
            state.is_due = true;
        }
    }

    /// Takes what the group assigned: gives up and commits first, says so with what is new.
    fn reconcile(&mut self) {
        let state = &self.membership.next_generation;
        if !state.is_due || state.is_releasing {
            return;
        }
        let Some(target) = state.told.clone() else { return };
        let gone: Vec<TopicPartition> = self.partitions.keys().filter(|tp| !target.contains_key(tp)).cloned().collect();
        if self.release(&gone) {
            self.membership.next_generation.is_releasing = true;
            return;
        }
        let new: Vec<TopicPartition> = target.keys().filter(|tp| !self.partitions.contains_key(tp)).cloned().collect();
        for tp in &new {
            self.add_partition(tp);
        }
        if let Some(listener) = self.listener.as_mut() {
            listener.on_assigned(&new);
        }
        let state = &mut self.membership.next_generation;
        state.is_due = false;
        if let Some(statement) = &state.statement {
            statement.send_modify(|s| {
                s.owned = target;
                s.taken += 1;
            });
        }
    }

    /// Gives up what is to be given up before a join, and starts it.
    fn begin_classic_join(&mut self, config: Arc<GroupConfig>, names: Vec<String>) {
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
        let identity = Arc::new(Mutex::new(member.clone()));
        self.membership.identity = Arc::clone(&identity);
        let plan = JoinPlan { member, topics: names, owned: self.assignment(), commit, identity };
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
                self.membership.forget(self.group_config.as_deref());
                self.membership.seen = None;
                self.membership.look_at = None;
                self.lose_partitions();
                self.failure = Some(error);
                return;
            }
        };
        self.membership.identity = Arc::new(Mutex::new(joined.member.clone()));
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
            self.release(&gone);
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

    /// Gives partitions up, in ascending order. Returns whether a commit of what was read of them is under way.
    fn release(&mut self, partitions: &[TopicPartition]) -> bool {
        let Some(config) = self.group_config.clone() else { return false };
        let read = self.positions().into_iter().filter(|(tp, _)| partitions.binary_search(tp).is_ok());
        let mut offsets: Vec<_> = read.filter(|_| self.settings.auto_commit.is_some()).collect();
        offsets.extend(self.revoke(partitions));
        if offsets.is_empty() {
            return false;
        }
        self.stop_auto_commit();
        let (client, identity, round) = (self.client.clone(), self.membership.identity(), self.membership.round);
        let commit = async move { super::offsets::commit(&client, &config, &identity, &offsets).await };
        self.tasks.spawn(async move { Event::Released(round, commit.await) });
        true
    }

    /// The offsets of partitions that were given up are committed, or never will be.
    pub(super) fn on_released(&mut self, round: u64, committed: Result<()>) {
        if let Err(error) = committed {
            tracing::warn!(%error, "offsets of partitions that were given up were not committed");
        }
        if round == self.membership.round {
            self.membership.next_generation.is_releasing = false;
        }
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
                self.membership.forget(self.group_config.as_deref());
            }
            HeartbeatEnd::Idle => {
                self.membership.lost = true;
                self.membership.forget(self.group_config.as_deref());
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
        let in_group = !matches!(self.membership.phase, Phase::Outside);
        self.stop_auto_commit();
        self.membership.stop();
        self.membership.seen = None;
        if let Some(config) = self.group_config.clone().filter(|_| in_group) {
            let (commit, identity) = (self.revoke(&self.assignment()), self.membership.identity());
            if !commit.is_empty()
                && let Err(error) = super::offsets::commit(&self.client, &config, &identity, &commit).await
            {
                tracing::warn!(%error, "offsets were not committed on leaving the group");
            }
            // Also while a join is under way: a member that has an id holds up the others until its session ends.
            let member = identity.lock().clone();
            leave(&self.client, &config, &member).await;
        }
        self.membership.forget(self.group_config.as_deref());
    }
}
