//! The consumer: reads assigned partitions, or those that its group gives it, by the classic group protocol or by that of
//! KIP-848 (`group.protocol`).
//!
//! One owner, the caller of [`Consumer::poll`], holds all state; whatever waits for a broker runs as a task and comes
//! back as an [`Event`].

mod assignor;
mod classic;
mod fetching;
mod group;
mod heartbeat;
mod membership;
mod offsets;
mod partition;
mod session;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_protocol::{ErrorCode, TopicPartition};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use self::classic::Joined;
use self::fetching::{Fetched, Fetching};
use self::group::{GroupConfig, HeartbeatEnd};
use self::heartbeat::Assignment;
use self::membership::Membership;
use self::offsets::{Found, ResetPolicy, commit, commit_once, fetch_committed, find_positions};
use self::partition::{PartitionState, Wanted};
use crate::admin::{CommittedOffset, OffsetAndMetadata};
use crate::client::Client;
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::offsets::{Isolation, ListedOffset, OffsetSpec};
use crate::outage::Stall;
use crate::subscription::Topics;

pub use self::assignor::Assignor;
pub use self::classic::decode_assignment;
pub use self::group::GroupMember;
pub use self::partition::ConsumerRecord;

/// Told when the group gives or takes partitions, from within [`Consumer::poll`].
pub trait RebalanceListener: Send {
    /// The group gave these partitions (with cooperative strategies: these in addition).
    fn on_assigned(&mut self, _partitions: &[TopicPartition]) {}

    /// These go to others in a moment. What is returned is committed first, beside what auto commit commits.
    fn on_revoked(&mut self, _partitions: &[TopicPartition]) -> Vec<(TopicPartition, OffsetAndMetadata)> {
        Vec::new()
    }

    /// These were given to others already: this member had been given up by its group.
    fn on_lost(&mut self, partitions: &[TopicPartition]) {
        drop(self.on_revoked(partitions));
    }
}

/// Where the partitions come from.
#[derive(Debug, Clone)]
enum Subscription {
    None,
    Assigned,
    Topics(Topics),
}

/// Settings of a consumer.
#[derive(Debug)]
struct Settings {
    isolation: Isolation,
    reset: ResetPolicy,
    max_poll_records: usize,
    auto_commit: Option<Duration>,
}

/// What tasks report.
#[derive(Debug)]
enum Event {
    Fetched(Fetched),
    Leaders(Result<Vec<(String, i16)>>),
    /// Where to begin to read a partition.
    Position(Found),
    /// A task has told all that it had to tell.
    Done,
    Joined(u64, Result<Joined>),
    Rebalances(u64),
    HeartbeatsEnded(u64, HeartbeatEnd),
    /// An answer to a heartbeat of the consumer protocol.
    Told(u64, Option<Assignment>),
    AutoCommitted(Result<()>),
    /// What was read of partitions that were given up is committed.
    Released(u64, Result<()>),
    Topics(Result<BTreeMap<String, usize>>),
}

/// Reads records. Needs a tokio runtime.
pub struct Consumer {
    client: Client,
    settings: Settings,
    group_config: Option<Arc<GroupConfig>>,
    subscription: Subscription,
    partitions: BTreeMap<TopicPartition, PartitionState>,
    /// Epochs of partition states, never used twice.
    next_epoch: u64,
    /// The partition that is served first in the next poll.
    first: Option<TopicPartition>,
    fetching: Fetching,
    /// Where to begin to read a partition cannot be told: it does not exist, or has no leader.
    unplaced: Stall,
    membership: Membership,
    listener: Option<Box<dyn RebalanceListener>>,
    tasks: JoinSet<Event>,
    /// For tasks that report more than once.
    events: mpsc::UnboundedSender<Event>,
    reported: mpsc::UnboundedReceiver<Event>,
    auto_commit_at: Instant,
    /// The automatic commit under way.
    auto_committing: Option<AbortHandle>,
    /// Found while serving events, told by the next poll.
    failure: Option<Error>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("subscription", &self.subscription)
            .field("partitions", &self.partitions.keys())
            .finish_non_exhaustive()
    }
}

impl Consumer {
    pub async fn connect(config: ClientConfig) -> Result<Consumer> {
        Consumer::new(Client::connect(config).await?)
    }

    /// Over the connections and with the configuration of a client.
    pub fn new(client: Client) -> Result<Consumer> {
        let config = client.config();
        let interval = config.duration("auto.commit.interval.ms");
        let group_config = GroupConfig::from_config(config)?.map(Arc::new);
        let settings = Settings {
            isolation: Isolation::from_name(config.get("isolation.level")),
            reset: ResetPolicy::from_name(config.get("auto.offset.reset")),
            max_poll_records: config.size("max.poll.records"),
            auto_commit: (config.flag("enable.auto.commit") && group_config.is_some()).then_some(interval),
        };
        let (events, reported) = mpsc::unbounded_channel();
        Ok(Consumer {
            fetching: Fetching::from_config(config),
            unplaced: Stall::default(),
            settings,
            group_config,
            subscription: Subscription::None,
            partitions: BTreeMap::new(),
            next_epoch: 0,
            first: None,
            membership: Membership::default(),
            listener: None,
            tasks: JoinSet::new(),
            events,
            reported,
            auto_commit_at: Instant::now() + interval,
            auto_committing: None,
            failure: None,
            client,
        })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Reads what the group gives of these topics. Replaces an earlier subscription or assignment.
    pub fn subscribe(&mut self, topics: Topics) -> Result<()> {
        if self.group_config.is_none() {
            return Err(Error::Misuse {
                what: "subscribe".to_owned(),
                reason: "group.id is not set; set it, or assign partitions instead".to_owned(),
            });
        }
        if matches!(self.subscription, Subscription::Assigned) {
            self.partitions.clear();
        }
        self.subscription = Subscription::Topics(topics);
        self.membership.resubscribe();
        Ok(())
    }

    /// Who is told of rebalances.
    pub fn set_rebalance_listener(&mut self, listener: Box<dyn RebalanceListener>) {
        self.listener = Some(listener);
    }

    /// Reads exactly these partitions, outside of any group's rebalances. Positions of partitions that were assigned
    /// before are kept.
    pub async fn assign(&mut self, partitions: &[TopicPartition]) {
        if matches!(self.subscription, Subscription::Topics(_)) {
            self.unsubscribe().await;
        }
        self.subscription = Subscription::Assigned;
        self.partitions.retain(|tp, _| partitions.contains(tp));
        for tp in partitions {
            self.add_partition(tp);
        }
    }

    /// Gives everything up; a member of a group leaves it.
    pub async fn unsubscribe(&mut self) {
        self.leave_group().await;
        self.partitions.clear();
        self.subscription = Subscription::None;
    }

    fn add_partition(&mut self, tp: &TopicPartition) {
        self.next_epoch += 1 << 20;
        let (epoch, topic) = (self.next_epoch, tp.topic.as_str());
        let state = || PartitionState::new(Arc::from(topic), tp.partition, epoch);
        self.partitions.entry(tp.clone()).or_insert_with(state);
    }

    /// The partitions that are read at present.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.partitions.keys().cloned().collect()
    }

    /// This consumer's id and generation in its group.
    pub fn group_member(&self) -> GroupMember {
        self.membership.member()
    }

    /// Records, as soon as there are any, at most `max.poll.records`; none when `timeout` has passed. Takes part in the
    /// group's rebalances, resets positions, commits automatically if so configured. Call it at least every
    /// `max.poll.interval.ms`. Cancel safe: what is not returned is returned by the next call.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Vec<ConsumerRecord>> {
        let deadline = Instant::now() + timeout;
        self.membership.clock().touch();
        if matches!(self.subscription, Subscription::None) {
            return Err(Error::Misuse {
                what: "poll".to_owned(),
                reason: "the consumer is not subscribed to any topics or assigned any partitions".to_owned(),
            });
        }
        loop {
            while let Ok(event) = self.reported.try_recv() {
                self.on(event);
            }
            while let Some(ended) = self.tasks.try_join_next() {
                if let Ok(event) = ended {
                    self.on(event);
                }
            }
            let now = Instant::now();
            self.drive_membership(now);
            if let Some(error) = self.failure.take() {
                return Err(error);
            }
            self.auto_commit(now);
            self.look_positions_up(now);
            let records = self.take_records();
            self.send_fetches(now);
            if records.is_empty() && self.failure.is_some() {
                // A partition that cannot be read fails every poll: fetches of the others must get their turn.
                tokio::task::yield_now().await;
            }
            if records.is_empty()
                && let Some(error) = self.failure.take()
            {
                return Err(error);
            }
            if !records.is_empty() || now >= deadline {
                return Ok(records);
            }
            let wake_at = self.wake_at(now).min(deadline);
            tokio::select! {
                Some(event) = self.reported.recv() => self.on(event),
                Some(event) = self.tasks.join_next() => if let Ok(event) = event { self.on(event); },
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    /// When there may be something to do without an event.
    fn wake_at(&self, now: Instant) -> Instant {
        let far = now + Duration::from_secs(60);
        let retries = self.partitions.values().filter_map(|p| p.retry_at).filter(|at| *at > now);
        let mut at = retries.min().unwrap_or(far).min(self.membership.wake_at(now).unwrap_or(far));
        if self.settings.auto_commit.is_some() && self.auto_commit_at > now {
            at = at.min(self.auto_commit_at);
        }
        at.min(self.fetching.wake_at(now).unwrap_or(far))
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Fetched(fetched) => self.on_fetched(fetched),
            Event::Leaders(described) => self.on_leaders(described),
            Event::Position(found) => self.on_position(found),
            Event::Done => {}
            Event::Joined(round, result) => self.on_joined(round, result),
            Event::Rebalances(round) => self.on_rebalances(round),
            Event::Told(round, assignment) => self.on_told(round, assignment),
            Event::Released(round, committed) => self.on_released(round, committed),
            Event::HeartbeatsEnded(round, end) => self.on_heartbeats_ended(round, end),
            Event::Topics(result) => self.on_topics(result),
            Event::AutoCommitted(result) => {
                self.auto_committing = None;
                if let Err(error) = result {
                    if error.is_retriable() || is_passing(&error) {
                        self.auto_commit_at =
                            self.auto_commit_at.min(Instant::now() + self.client.retry_backoff().wait(1));
                    }
                    tracing::warn!(%error, "offsets were not committed automatically");
                }
            }
        }
    }

    /// Up to `max.poll.records`, from one partition after the other; the next poll begins with another one.
    fn take_records(&mut self) -> Vec<ConsumerRecord> {
        let mut records = Vec::new();
        let max = self.settings.max_poll_records;
        let mut order: Vec<TopicPartition> =
            self.partitions.iter().filter(|(_, p)| p.has_records()).map(|(tp, _)| tp.clone()).collect();
        if let Some(at) = self.first.as_ref().and_then(|first| order.iter().position(|tp| tp >= first)) {
            order.rotate_left(at);
        }
        for (i, tp) in order.iter().enumerate() {
            if let Some(partition) = self.partitions.get_mut(tp) {
                if let Err(error) = partition.take(max, &mut records) {
                    // The next poll tells, unless this one has nothing else to tell; the other partitions go on.
                    self.failure = Some(error);
                }
                if records.len() >= max {
                    // A partition that has more goes to the end of the line.
                    self.first = order.get((i + 1) % order.len()).cloned();
                    break;
                }
            }
        }
        records
    }

    fn look_positions_up(&mut self, now: Instant) {
        if self.membership.is_settling() {
            return;
        }
        let lookups: Vec<_> = self.partitions.iter_mut().filter_map(|(tp, p)| p.lookup(tp, now)).collect();
        if lookups.is_empty() {
            if self.unplaced.lasts() && self.partitions.values().all(|p| p.position.is_some()) {
                self.unplaced.is_over("every partition can be read now");
            }
            return;
        }
        let group = self.group_config.clone().map(|config| (config, self.membership.identity()));
        let (client, policy, isolation) = (self.client.clone(), self.settings.reset, self.settings.isolation);
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let found = |found| drop(events.send(Event::Position(found)));
            find_positions(client, group, lookups, policy, isolation, found).await;
            Event::Done
        });
    }

    fn on_position(&mut self, (tp, epoch, result): Found) {
        let Some(partition) = self.partitions.get_mut(&tp).filter(|p| p.epoch == epoch) else { return };
        match result {
            Ok(offset) => partition.seek(offset),
            Err(error) if error.is_retriable() || is_passing(&error) => {
                self.unplaced.failed(&error);
                tracing::warn!(%error, "cannot tell yet where to begin to read {tp}");
                partition.looking_up = false;
                partition.retry_at = Some(Instant::now() + Duration::from_secs(1));
            }
            Err(error) => {
                partition.looking_up = false;
                self.failure = Some(error);
            }
        }
    }

    /// Positions of all partitions that have one, as offsets to commit.
    fn positions(&self) -> Vec<(TopicPartition, OffsetAndMetadata)> {
        let offset = |p: &PartitionState| {
            let leader_epoch = p.leader_epoch;
            p.position.map(|offset| OffsetAndMetadata { offset, leader_epoch, metadata: String::new() })
        };
        self.partitions.iter().filter_map(|(tp, p)| Some((tp.clone(), offset(p)?))).collect()
    }

    fn auto_commit(&mut self, now: Instant) {
        let (Some(interval), Some(config)) = (self.settings.auto_commit, self.group_config.clone()) else { return };
        if now < self.auto_commit_at || self.auto_committing.is_some() || !self.may_commit() {
            return;
        }
        self.auto_commit_at = now + interval;
        let offsets = self.positions();
        if offsets.is_empty() {
            return;
        }
        let (client, member) = (self.client.clone(), self.membership.member());
        // Tried once: the next one brings newer positions.
        let task = async move { Event::AutoCommitted(commit_once(&client, &config, &member, &offsets).await) };
        self.auto_committing = Some(self.tasks.spawn(task));
    }

    /// Whether the group knows this consumer. A subscriber outside of its generation would pass as a stranger, of whom an
    /// empty group takes any commit, also one that is older than what others committed meanwhile.
    fn may_commit(&self) -> bool {
        !matches!(self.subscription, Subscription::Topics(_)) || self.membership.member().generation >= 0
    }

    /// Before another commit: the automatic one under way must not come behind it. What it has sent already stays in
    /// front, for commits share a connection.
    fn stop_auto_commit(&mut self) {
        if let Some(task) = self.auto_committing.take() {
            task.abort();
        }
    }

    fn needs_group(&self, what: &str) -> Result<Arc<GroupConfig>> {
        let missing = || Error::Misuse { what: what.to_owned(), reason: "group.id is not set".to_owned() };
        self.group_config.clone().ok_or_else(missing)
    }

    /// Commits the positions of all partitions: what the last poll returned counts as done.
    pub async fn commit(&mut self) -> Result<()> {
        let offsets = self.positions();
        self.commit_offsets(&offsets).await
    }

    /// Commits these offsets: of each partition the next one to read.
    pub async fn commit_offsets(&mut self, offsets: &[(TopicPartition, OffsetAndMetadata)]) -> Result<()> {
        let config = self.needs_group("commit offsets")?;
        if offsets.is_empty() {
            return Ok(());
        }
        if !self.may_commit() {
            let what = format!("commit offsets of group '{}'", config.group_id);
            let hint = "this consumer is not in the group's present generation; poll until it is and commit then";
            return Err(Error::server(what, ErrorCode::RebalanceInProgress.code(), Some(hint)));
        }
        self.stop_auto_commit();
        let result = commit(&self.client, &config, &self.membership.identity(), offsets).await;
        if let Err(error) = &result {
            self.membership.on_commit_error(error);
        }
        result
    }

    /// What the group has committed for these partitions.
    pub async fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<CommittedOffset>> {
        let config = self.needs_group("read committed offsets")?;
        fetch_committed(&self.client, &config, &self.membership.identity(), Some(partitions)).await
    }

    /// The offset of the next record that poll returns for the partition, if that is known already.
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.partitions.get(partition)?.position
    }

    /// How many records are behind the position, as of the last fetch.
    pub fn lag(&self, partition: &TopicPartition) -> Option<i64> {
        let state = self.partitions.get(partition)?;
        Some((state.high_watermark? - state.position?).max(0))
    }

    fn assigned(&mut self, what: &str, partition: &TopicPartition) -> Result<&mut PartitionState> {
        let missing = || Error::Misuse {
            what: format!("{what} {partition}"),
            reason: "it is not assigned to this consumer".to_owned(),
        };
        self.partitions.get_mut(partition).ok_or_else(missing)
    }

    /// The next poll continues at this offset.
    pub fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        if offset < 0 {
            let what = format!("seek in {partition}");
            return Err(Error::Misuse { what, reason: format!("offset {offset} is negative") });
        }
        self.assigned("seek in", partition)?.seek(offset);
        Ok(())
    }

    /// The next poll continues at the first or the last offset, or at a time.
    pub fn seek_to(&mut self, partition: &TopicPartition, spec: OffsetSpec) -> Result<()> {
        self.assigned("seek in", partition)?.look_up(Wanted::At(spec));
        Ok(())
    }

    /// Reads nothing of the partition until it is resumed; it stays assigned.
    pub fn pause(&mut self, partition: &TopicPartition) -> Result<()> {
        self.assigned("pause", partition)?.paused = true;
        Ok(())
    }

    pub fn resume(&mut self, partition: &TopicPartition) -> Result<()> {
        self.assigned("resume", partition)?.paused = false;
        Ok(())
    }

    /// For each partition the first offset whose record has at least this time (milliseconds since the epoch); `None`
    /// when there is no such record.
    pub async fn offsets_for_times(
        &self,
        times: &[(TopicPartition, i64)],
    ) -> Result<Vec<(TopicPartition, Option<ListedOffset>)>> {
        let wanted: Vec<_> = times.iter().map(|(tp, ms)| (tp.clone(), OffsetSpec::Timestamp(*ms))).collect();
        let listed = self.client.list_offsets(&wanted, self.settings.isolation).await?;
        listed.into_iter().map(|(tp, found)| Ok((tp, Some(found?).filter(|o| o.offset >= 0)))).collect()
    }

    /// The end (or beginning) offsets of partitions, as this consumer's isolation level sees them.
    pub async fn offsets(
        &self,
        partitions: &[TopicPartition],
        spec: OffsetSpec,
    ) -> Result<Vec<(TopicPartition, ListedOffset)>> {
        self.client.offsets(partitions, spec, self.settings.isolation).await
    }

    /// Commits if auto commit is on, and leaves the group.
    pub async fn close(mut self) -> Result<()> {
        let mut result = Ok(());
        if self.settings.auto_commit.is_some() && self.may_commit() {
            result = self.commit().await;
        }
        self.leave_group().await;
        result
    }
}

/// Whether what failed now may be well in a moment: a member that has heard of its new epoch, or has joined anew, asks
/// again.
fn is_passing(error: &Error) -> bool {
    let of_membership = [ErrorCode::UnknownMemberId, ErrorCode::StaleMemberEpoch];
    matches!(error, Error::Timeout { .. }) || error.code().is_some_and(|code| of_membership.contains(&code))
}
