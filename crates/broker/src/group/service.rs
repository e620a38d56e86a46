//! The coordinator at work: requests wait here for their answers, changes are stored before they are told.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caudal_cluster::MetadataImage;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::leave_group_response::MemberResponse;
use caudal_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};
use caudal_protocol::{ErrorCode, Uuid};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::consumer::heartbeat::Client;
use super::consumer::{Clock, RegexJob};
use super::coordinator::Committer;
use super::machine::Joiner;
use super::record::{CommittedOffset, partition_for};
use super::transactional::TransactionalWrite;
use super::{Coordinator, GroupConfig, GroupRecord, Outcome, Reply, Waiter};
use crate::clock::wall_ms;

/// Told once the records are as durable as the broker promises, or with the reason why not.
pub type Stored = Box<dyn FnOnce(ErrorCode) + Send>;

/// `__consumer_offsets`, as far as groups need it.
pub trait OffsetsLog: Send + Sync {
    /// Number of partitions; `None` while the topic does not exist.
    fn partitions(&self) -> Option<i32>;

    /// Appends records in this order as one batch and calls `stored` once they are durable.
    fn append(&self, partition: i32, records: Vec<(Bytes, Option<Bytes>)>, stored: Stored);

    /// Appends what a transaction writes, or refuses it, and calls `stored` once it is durable.
    fn append_in_transaction(&self, _partition: i32, _write: TransactionalWrite, stored: Stored) {
        stored(ErrorCode::NotCoordinator);
    }
}

enum Sender {
    Join(oneshot::Sender<JoinGroupResponse>),
    Sync(oneshot::Sender<SyncGroupResponse>),
    Consumer(oneshot::Sender<ConsumerGroupHeartbeatResponse>),
}

impl Sender {
    /// A requester that went away meanwhile does not get its answer; its session runs out like any other.
    fn send(self, reply: Reply, error: ErrorCode) {
        match (self, reply) {
            (Sender::Join(tx), Reply::Join(mut r)) => {
                if error.is_error() {
                    r = JoinGroupResponse {
                        error_code: error.code(),
                        generation_id: -1,
                        member_id: r.member_id,
                        ..Default::default()
                    };
                }
                let _ = tx.send(r);
            }
            (Sender::Sync(tx), Reply::Sync(mut r)) => {
                if error.is_error() {
                    r = SyncGroupResponse { error_code: error.code(), ..Default::default() };
                }
                let _ = tx.send(r);
            }
            (Sender::Consumer(tx), Reply::Consumer(mut r)) => {
                if error.is_error() {
                    *r = consumer_error(error);
                }
                let _ = tx.send(*r);
            }
            _ => tracing::error!("a group request was answered with the response of another kind"),
        }
    }
}

fn consumer_error(error: ErrorCode) -> ConsumerGroupHeartbeatResponse {
    ConsumerGroupHeartbeatResponse {
        error_code: error.code(),
        error_message: Some(error.message().to_owned()),
        ..Default::default()
    }
}

/// How long the coordinator listens before it takes a silent member for gone.
const LISTEN: Duration = Duration::from_millis(200);
/// With this the broker is not held up.
const LISTEN_LATE_MS: i64 = 300;
/// How long before a deadline the timers get up to see whether the broker is held up; the rest over [`LISTEN`] is for waking.
const UP_BEFORE_MS: i64 = 400;
/// Who gets up later than this is held up.
const WAKE_LATE_MS: i64 = 100;
/// A machine that is too busy for that over so many tries in a row does not keep the dead in their groups for ever.
const LISTEN_MOST: u32 = 50;

/// Whether the timers have been up for long enough to know that requests had their turn. They rarely are when a deadline comes
/// by surprise, or the process was stopped; then the coordinator listens, which makes the end of a session late.
#[derive(Default)]
struct Awake {
    since_ms: i64,
}

impl Awake {
    /// Takes note of a sleep that was to end at `until_ms`.
    fn woke(&mut self, from_ms: i64, until_ms: i64, now_ms: i64) {
        if now_ms - until_ms > WAKE_LATE_MS || now_ms - from_ms > UP_BEFORE_MS + WAKE_LATE_MS {
            self.since_ms = now_ms;
        }
    }

    /// Whether every request that came before `now_ms` has been worked on.
    fn heard_all(&self, now_ms: i64) -> bool {
        u128::try_from(now_ms - self.since_ms).is_ok_and(|up_ms| up_ms >= LISTEN.as_millis())
    }
}

pub(super) struct Inner {
    pub(super) coordinator: Coordinator,
    waiting: HashMap<Waiter, Sender>,
    next_waiter: Waiter,
    loaded: bool,
    /// The partitions of `__consumer_offsets` that could not be read.
    unreadable: BTreeSet<i32>,
    /// What was decided on and is not known to be stored, by partition and in the log's order.
    unsettled: HashMap<i32, VecDeque<(u64, Vec<GroupRecord>)>>,
    next_ticket: u64,
    /// Regular expressions that are to be matched with all topics.
    regexes: Vec<RegexJob>,
    /// When the timer will look again by itself.
    armed_ms: Option<i64>,
}

/// What is written into a partition at once.
pub(super) enum Writing {
    Records(Vec<(Bytes, Option<Bytes>)>),
    InTransaction(TransactionalWrite),
}

/// Records on their way to a partition.
struct Outgoing {
    /// Or why they cannot even be written.
    writing: Result<Writing, ErrorCode>,
    stored: Stored,
}

#[derive(Default)]
struct Outbox {
    queue: VecDeque<Outgoing>,
    /// Somebody appends from this box; it is left to them, for the sake of the order.
    busy: bool,
}

/// What the callbacks of the log need. Not the log itself: its threads must not be what keeps it open.
pub(super) struct Core {
    inner: Mutex<Inner>,
    /// Decided under the lock of `inner`, in this order, and appended without it.
    outboxes: Mutex<HashMap<i32, Outbox>>,
    /// Wakes the timer when an earlier deadline has come up, or when something is left to append.
    timer: Notify,
    started: Instant,
}

/// The metadata of the cluster as it is now.
pub type Images = Arc<dyn Fn() -> Arc<MetadataImage> + Send + Sync>;

/// The group coordinator of this broker.
#[derive(Clone)]
pub struct GroupService {
    pub(super) core: Arc<Core>,
    pub(super) log: Arc<dyn OffsetsLog>,
    images: Images,
}

/// What a failed append means to a member, as Kafka's coordinator has it: one that looks for the coordinator again finds
/// it where it can be served.
fn answered_as(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::UnknownTopicOrPartition | ErrorCode::NotEnoughReplicas | ErrorCode::RequestTimedOut => {
            ErrorCode::CoordinatorNotAvailable
        }
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge | ErrorCode::InvalidFetchSize => {
            ErrorCode::UnknownServerError
        }
        other => other,
    }
}

impl Core {
    fn now_ms(&self) -> i64 {
        self.started.elapsed().as_millis() as i64
    }

    /// Hands out an outcome's replies, once its records are stored if there are any.
    fn settle(self: &Arc<Core>, inner: &mut Inner, partitions: Option<i32>, outcome: Outcome) {
        let Outcome { records, replies, assigned, regexes } = outcome;
        inner.regexes.extend(regexes);
        let replies: Vec<(Sender, Reply)> =
            replies.into_iter().filter_map(|(w, r)| inner.waiting.remove(&w).map(|s| (s, r))).collect();
        let deliver = move |error: ErrorCode| replies.into_iter().for_each(|(sender, reply)| sender.send(reply, error));
        if records.is_empty() {
            return deliver(ErrorCode::None);
        }
        let groups: BTreeSet<String> = records.iter().map(|record| record.group().to_owned()).collect();
        let core = self.clone();
        let stored = move |error: ErrorCode| {
            deliver(error);
            if assigned.is_some() || error.is_error() {
                core.told(partitions, assigned.as_ref(), &groups, error);
            }
        };
        self.store(inner, partitions, records, Box::new(stored));
    }

    /// The records of an outcome were stored, or could not be.
    fn told(
        self: &Arc<Core>,
        partitions: Option<i32>,
        assigned: Option<&(String, i32)>,
        groups: &BTreeSet<String>,
        error: ErrorCode,
    ) {
        let mut inner = self.inner.lock();
        let (now_ms, wall_ms) = (self.now_ms(), wall_ms());
        if let Some(assigned) = assigned {
            let outcome = inner.coordinator.assignment_stored(now_ms, wall_ms, assigned, error);
            self.settle(&mut inner, partitions, outcome);
        }
        if error.is_error() {
            for group in groups {
                let outcome = inner.coordinator.not_stored(now_ms, wall_ms, group);
                self.settle(&mut inner, partitions, outcome);
            }
        }
        drop(inner);
        // Deadlines changed, and there may be more to append.
        self.timer.notify_one();
    }

    /// Sends records to the partitions of their groups; `done` is called once, without the lock, with the first error if
    /// there was one. What they say of offsets and deletions takes effect when they are stored.
    fn store(self: &Arc<Core>, inner: &mut Inner, partitions: Option<i32>, records: Vec<GroupRecord>, done: Stored) {
        let mut by_partition: BTreeMap<i32, Vec<GroupRecord>> = BTreeMap::new();
        for record in records {
            let partition = partitions.map_or(-1, |count| partition_for(record.group(), count));
            by_partition.entry(partition).or_default().push(record);
        }
        let pending = Arc::new(Mutex::new((by_partition.len(), ErrorCode::None, Some(done))));
        for (partition, records) in by_partition {
            let writing = match partitions {
                None => Err(ErrorCode::CoordinatorNotAvailable),
                Some(_) => records.iter().map(GroupRecord::encode).collect::<Result<Vec<_>, _>>().map_err(|error| {
                    tracing::error!(partition, %error, "the records of a group cannot be stored");
                    ErrorCode::UnknownServerError
                }),
            };
            let pending = pending.clone();
            let stored = move |error: ErrorCode| {
                let mut state = pending.lock();
                state.0 -= 1;
                if error.is_error() {
                    state.1 = error;
                }
                if state.0 == 0
                    && let Some(done) = state.2.take()
                {
                    let outcome = state.1;
                    drop(state);
                    done(outcome);
                }
            };
            self.send(inner, partition, records, writing.map(Writing::Records), Box::new(stored));
        }
    }

    /// Sends a write to a partition; `records` take effect, in the log's order, when it is stored.
    pub(super) fn send(
        self: &Arc<Core>,
        inner: &mut Inner,
        partition: i32,
        records: Vec<GroupRecord>,
        writing: Result<Writing, ErrorCode>,
        done: Stored,
    ) {
        self.send_raw(inner, partition, records, writing, Box::new(|error| done(answered_as(error))));
    }

    /// As [`Core::send`], with the log's own error.
    pub(super) fn send_raw(
        self: &Arc<Core>,
        inner: &mut Inner,
        partition: i32,
        records: Vec<GroupRecord>,
        writing: Result<Writing, ErrorCode>,
        done: Stored,
    ) {
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        inner.unsettled.entry(partition).or_default().push_back((ticket, records));
        let core = self.clone();
        let stored = move |error: ErrorCode| {
            core.inner.lock().settled(partition, ticket, error);
            done(error);
        };
        let outgoing = Outgoing { writing, stored: Box::new(stored) };
        self.outboxes.lock().entry(partition).or_default().queue.push_back(outgoing);
    }

    /// The next records to append, from a partition that nobody is busy with.
    fn take_outgoing(&self) -> Option<(i32, Outgoing)> {
        let mut outboxes = self.outboxes.lock();
        let (partition, outbox) = outboxes.iter_mut().find(|(_, outbox)| !outbox.busy && !outbox.queue.is_empty())?;
        outbox.busy = true;
        Some((*partition, outbox.queue.pop_front()?))
    }
}

/// Gives a partition's outbox back when dropped, also by a panic.
struct Busy<'a> {
    core: &'a Core,
    partition: i32,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(outbox) = self.core.outboxes.lock().get_mut(&self.partition) {
            outbox.busy = false;
        }
    }
}

impl Inner {
    fn wait(&mut self, sender: Sender) -> Waiter {
        self.next_waiter += 1;
        self.waiting.insert(self.next_waiter, sender);
        self.next_waiter
    }

    /// Records of a partition are stored, and with them all that were appended there before; or they could not be.
    fn settled(&mut self, partition: i32, ticket: u64, error: ErrorCode) {
        let Some(unsettled) = self.unsettled.get_mut(&partition) else { return };
        if error.is_error() {
            return unsettled.retain(|(other, _)| *other != ticket);
        }
        while let Some((_, records)) = unsettled.pop_front_if(|(other, _)| *other <= ticket) {
            records.into_iter().for_each(|record| self.coordinator.apply_stored(record));
        }
    }
}

impl GroupService {
    pub fn new(config: GroupConfig, log: Arc<dyn OffsetsLog>, images: Images) -> GroupService {
        let inner = Inner {
            coordinator: Coordinator::new(config),
            waiting: HashMap::new(),
            next_waiter: 0,
            loaded: false,
            unreadable: BTreeSet::new(),
            unsettled: HashMap::new(),
            next_ticket: 0,
            regexes: Vec::new(),
            armed_ms: None,
        };
        let core = Core {
            inner: Mutex::new(inner),
            outboxes: Mutex::default(),
            timer: Notify::new(),
            started: Instant::now(),
        };
        GroupService { core: Arc::new(core), log, images }
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.core.now_ms()
    }

    /// Changes something with the lock held, then appends what was decided without it.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        let image = (self.images)();
        let mut inner = self.core.inner.lock();
        inner.coordinator.follow(image);
        let result = work(&mut inner);
        let regexes = std::mem::take(&mut inner.regexes);
        let next_ms = inner.coordinator.next_deadline_ms();
        let earlier = next_ms.is_some_and(|next| inner.armed_ms.is_none_or(|armed| next < armed));
        drop(inner);
        if earlier {
            self.core.timer.notify_one();
        }
        self.append_outgoing();
        regexes.into_iter().for_each(|job| self.resolve(job));
        result
    }

    /// Matches regular expressions with all topics, while the coordinator goes on.
    fn resolve(&self, job: RegexJob) {
        let service = self.clone();
        let run = move || {
            let found = job.run(&(service.images)(), wall_ms());
            let partitions = service.log.partitions();
            service.with(|inner| {
                let outcome = inner.coordinator.regexes_resolved(service.clock(), &job, found);
                service.core.settle(inner, partitions, outcome);
            });
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(run)),
            Err(_) => run(),
        }
    }

    fn clock(&self) -> Clock {
        Clock { now_ms: self.now_ms(), wall_ms: wall_ms() }
    }

    /// Appends what is on its way, partition by partition in the order of the decisions.
    fn append_outgoing(&self) {
        while let Some((partition, Outgoing { writing, stored })) = self.core.take_outgoing() {
            let _busy = Busy { core: &self.core, partition };
            match writing {
                Ok(Writing::Records(pairs)) => self.log.append(partition, pairs, stored),
                Ok(Writing::InTransaction(write)) => self.log.append_in_transaction(partition, write, stored),
                Err(error) => stored(error),
            }
        }
    }

    /// Replays what an earlier run stored. Until [`GroupService::loaded`] requests are told that the coordinator is loading.
    pub fn replay(&self, record: GroupRecord) {
        let now_ms = self.now_ms();
        self.core.inner.lock().coordinator.replay(record, now_ms);
    }

    /// All is replayed but for the groups of some partitions, which are not served.
    pub fn loaded(&self, unreadable: BTreeSet<i32>) {
        let partitions = self.log.partitions().unwrap_or(1);
        let mut inner = self.core.inner.lock();
        if !unreadable.is_empty() {
            inner.coordinator.forget(|group| unreadable.contains(&partition_for(group, partitions)));
        }
        inner.coordinator.follow((self.images)());
        inner.coordinator.start_consumer_clocks(self.now_ms());
        inner.unreadable = unreadable;
        inner.loaded = true;
        drop(inner);
        self.core.timer.notify_one();
    }

    /// `COORDINATOR_LOAD_IN_PROGRESS`, `COORDINATOR_NOT_AVAILABLE` or `NOT_COORDINATOR` while a group cannot be served.
    pub fn readiness(&self, group: &str) -> ErrorCode {
        let inner = self.core.inner.lock();
        match self.log.partitions() {
            _ if !inner.loaded => ErrorCode::CoordinatorLoadInProgress,
            None => ErrorCode::CoordinatorNotAvailable,
            Some(partitions) if inner.unreadable.contains(&partition_for(group, partitions)) => {
                ErrorCode::NotCoordinator
            }
            Some(_) => ErrorCode::None,
        }
    }

    /// As [`GroupService::readiness`], but a broker that never had a group can list that it has none.
    pub fn readiness_to_list(&self) -> ErrorCode {
        if self.core.inner.lock().loaded { ErrorCode::None } else { ErrorCode::CoordinatorLoadInProgress }
    }

    /// JoinGroup: answers when the rebalance is through.
    pub async fn join(
        &self,
        request: &JoinGroupRequest,
        client_id: &str,
        client_host: &str,
        version: i16,
    ) -> JoinGroupResponse {
        let (tx, rx) = oneshot::channel();
        let name = request.group_instance_id.as_deref().unwrap_or(client_id);
        let fresh_member_id = format!("{name}-{}", random_uuid_text());
        let partitions = self.log.partitions();
        self.with(|inner| {
            let joiner = Joiner {
                waiter: inner.wait(Sender::Join(tx)),
                client_id: client_id.to_owned(),
                client_host: client_host.to_owned(),
                fresh_member_id,
                requires_known_id: version >= 4,
                supports_skipping_assignment: version >= 9,
            };
            let outcome = inner.coordinator.join(self.now_ms(), wall_ms(), request, joiner);
            self.core.settle(inner, partitions, outcome);
        });
        rx.await.unwrap_or_else(|_| JoinGroupResponse {
            error_code: ErrorCode::NotCoordinator.code(),
            ..Default::default()
        })
    }

    /// SyncGroup: answers when the leader's assignment is stored.
    pub async fn sync(&self, request: &SyncGroupRequest) -> SyncGroupResponse {
        let (tx, rx) = oneshot::channel();
        let partitions = self.log.partitions();
        self.with(|inner| {
            let waiter = inner.wait(Sender::Sync(tx));
            let outcome = inner.coordinator.sync(self.now_ms(), wall_ms(), request, waiter);
            self.core.settle(inner, partitions, outcome);
        });
        rx.await.unwrap_or_else(|_| SyncGroupResponse {
            error_code: ErrorCode::NotCoordinator.code(),
            ..Default::default()
        })
    }

    pub fn heartbeat(&self, group: &str, member: &str, instance: Option<&str>, generation: i32) -> ErrorCode {
        self.with(|inner| inner.coordinator.heartbeat(self.now_ms(), group, member, instance, generation))
    }

    /// ConsumerGroupHeartbeat: answers when what it changed is stored.
    pub async fn consumer_heartbeat(
        &self,
        request: &ConsumerGroupHeartbeatRequest,
        client_id: &str,
        client_host: &str,
        version: i16,
    ) -> ConsumerGroupHeartbeatResponse {
        let (tx, rx) = oneshot::channel();
        let partitions = self.log.partitions();
        self.with(|inner| {
            let waiter = inner.wait(Sender::Consumer(tx));
            let fresh_member_id = Uuid::random().to_string();
            let client = Client { id: client_id, host: client_host, fresh_member_id: &fresh_member_id };
            let outcome = inner.coordinator.consumer_heartbeat(self.clock(), request, client, (waiter, version));
            self.core.settle(inner, partitions, outcome);
        });
        rx.await.unwrap_or_else(|_| consumer_error(ErrorCode::NotCoordinator))
    }

    pub fn leave(&self, group: &str, members: &[MemberIdentity]) -> Vec<MemberResponse> {
        let partitions = self.log.partitions();
        self.with(|inner| {
            let (answers, outcome) = inner.coordinator.leave(self.now_ms(), wall_ms(), group, members);
            self.core.settle(inner, partitions, outcome);
            answers
        })
    }

    /// Commits offsets, all or none: returns the error once they are durable. `version`: that of OffsetCommit.
    pub async fn commit(
        &self,
        who: Committer<'_>,
        version: i16,
        offsets: Vec<(String, i32, CommittedOffset)>,
    ) -> ErrorCode {
        let change = |coordinator: &mut Coordinator| {
            let error = coordinator.check_commit_of(self.now_ms(), who, version, &offsets);
            let records = if error.is_error() { Vec::new() } else { coordinator.commit(who.group, offsets) };
            (error, records)
        };
        match self.change(change).await {
            (ErrorCode::None, stored) => stored,
            (refused, _) => refused,
        }
    }

    /// Runs `change` on the coordinator and waits until the records that it returns are durable and in effect.
    pub async fn change<T>(&self, change: impl FnOnce(&mut Coordinator) -> (T, Vec<GroupRecord>)) -> (T, ErrorCode) {
        let (tx, rx) = oneshot::channel();
        let partitions = self.log.partitions();
        let (result, unchanged) = self.with(|inner| {
            let (result, records) = change(&mut inner.coordinator);
            let unchanged = records.is_empty();
            if !unchanged {
                self.core.store(inner, partitions, records, Box::new(move |error| _ = tx.send(error)));
            }
            (result, unchanged)
        });
        if unchanged {
            return (result, ErrorCode::None);
        }
        (result, rx.await.unwrap_or(ErrorCode::CoordinatorNotAvailable))
    }

    /// Looks at the coordinator.
    pub fn view<T>(&self, look: impl FnOnce(&Coordinator) -> T) -> T {
        look(&self.core.inner.lock().coordinator)
    }

    /// Waits until the requests that had come when it was called have been worked on, and returns that moment: when a short
    /// sleep ends on time and nobody keeps the coordinator busy, neither the process nor the machine is held up, and
    /// connections had their turn.
    async fn listen(&self) -> i64 {
        let mut asked_ms = self.now_ms();
        for _ in 0..LISTEN_MOST {
            tokio::time::sleep(LISTEN).await;
            drop(self.core.inner.lock());
            let now_ms = self.now_ms();
            if now_ms - asked_ms <= LISTEN_LATE_MS {
                break;
            }
            tracing::debug!(late_ms = now_ms - asked_ms, "the broker is held up; sessions are not ended yet");
            asked_ms = now_ms;
        }
        asked_ms
    }

    /// Ends sessions and rebalances on time and expires offsets; runs until it is dropped. Sleeps while nothing is due.
    /// `retention_ms` is a clock as [`wall_ms`] that does not leap ahead.
    pub async fn run_timers(&self, offsets_check_interval: Duration, retention_ms: impl Fn() -> i64) {
        let mut next_expiry = Instant::now() + offsets_check_interval;
        let mut heard_ms = 0;
        let mut awake = Awake::default();
        loop {
            // What callbacks of the log decided.
            self.append_outgoing();
            let deadline = {
                let mut inner = self.core.inner.lock();
                inner.armed_ms = inner.coordinator.next_deadline_ms();
                inner.armed_ms
            };
            let from_ms = self.now_ms();
            let wake_ms = deadline.map(|ms| if ms - UP_BEFORE_MS > from_ms { ms - UP_BEFORE_MS } else { ms });
            let due = wake_ms.map(|ms| self.core.started + Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
            let until = due.map_or(next_expiry, |d| d.min(next_expiry));
            let slept = tokio::select! {
                () = tokio::time::sleep_until(until) => true,
                () = self.core.timer.notified() => false,
            };
            drop(self.core.inner.lock());
            let now_ms = self.now_ms();
            awake.woke(from_ms, until.duration_since(self.core.started).as_millis() as i64, now_ms);
            if !slept {
                continue;
            }
            if awake.heard_all(now_ms) {
                heard_ms = now_ms;
            }
            if self.end_what_is_due(heard_ms) {
                // Their heartbeat may be waiting, where the broker itself was held up.
                heard_ms = self.listen().await;
                continue;
            }
            if Instant::now() >= next_expiry {
                next_expiry = Instant::now() + offsets_check_interval;
                self.expire_offsets(retention_ms());
            }
        }
    }

    /// True when somebody is to be taken for gone who may have said something behind `heard_ms`.
    fn end_what_is_due(&self, heard_ms: i64) -> bool {
        let partitions = self.log.partitions();
        self.with(|inner| {
            let now_ms = self.now_ms();
            let outcome = inner.coordinator.tick(now_ms, heard_ms, wall_ms());
            self.core.settle(inner, partitions, outcome);
            inner.coordinator.next_deadline_ms().is_some_and(|deadline| deadline <= now_ms)
        })
    }

    fn expire_offsets(&self, now_ms: i64) {
        let partitions = self.log.partitions();
        self.with(|inner| {
            let records = inner.coordinator.expire_offsets(now_ms);
            if records.is_empty() {
                return;
            }
            tracing::info!(records = records.len(), "forgetting expired offsets and empty groups");
            let report = |error: ErrorCode| {
                if error.is_error() {
                    tracing::warn!(error = error.name(), "expired offsets could not be removed");
                }
            };
            self.core.store(inner, partitions, records, Box::new(report));
        });
    }
}

impl std::fmt::Debug for GroupService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupService").finish_non_exhaustive()
    }
}

/// A random UUID in its usual form, as it ends Kafka's member ids.
fn random_uuid_text() -> String {
    let n: u128 = rand::random::<u128>() & !(0xf << 76) | (0x4 << 76);
    let n = n & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{n:032x}");
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|r| hex.get(r).unwrap_or_default()).join("-")
}

#[cfg(test)]
mod tests {
    use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;

    use super::*;

    struct NoLog;

    impl OffsetsLog for NoLog {
        fn partitions(&self) -> Option<i32> {
            Some(1)
        }

        fn append(&self, _: i32, _: Vec<(Bytes, Option<Bytes>)>, stored: Stored) {
            stored(ErrorCode::None);
        }
    }

    fn joining(session_timeout_ms: i32) -> JoinGroupRequest {
        JoinGroupRequest {
            group_id: "g".into(),
            session_timeout_ms,
            rebalance_timeout_ms: 60_000,
            protocol_type: "consumer".into(),
            protocols: vec![JoinGroupRequestProtocol { name: "range".into(), metadata: Bytes::new() }],
            ..JoinGroupRequest::default()
        }
    }

    /// The process is held up for longer than the session: timers and heartbeats are late alike.
    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_that_waits_while_the_process_is_held_up_counts() {
        let config =
            GroupConfig { session_timeout_ms: (1, 60_000), initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
        let service = Arc::new(GroupService::new(config, Arc::new(NoLog), Arc::new(Default::default)));
        service.loaded(BTreeSet::new());
        let timers = service.clone();
        let timers = tokio::spawn(async move { timers.run_timers(Duration::from_secs(3600), wall_ms).await });
        let joined = service.join(&joining(100), "c", "/127.0.0.1", 3).await;
        assert_eq!(joined.error_code, 0);
        // The timer comes first: it is due, the heartbeat has yet to be read.
        tokio::time::advance(Duration::from_millis(400)).await;
        let member = joined.member_id.as_str();
        let code = service.heartbeat("g", member, None, joined.generation_id);
        assert_ne!(code, ErrorCode::UnknownMemberId);
        // Who says nothing more is out in the end.
        let deadline = Instant::now() + Duration::from_secs(20);
        while service.view(|coordinator| coordinator.has_members("g")) {
            assert!(Instant::now() < deadline, "a silent member stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        timers.abort();
    }

    /// While nothing holds the process up, a session ends when it is over, and not later.
    #[tokio::test(start_paused = true)]
    async fn a_silent_member_is_out_on_time() {
        let config = GroupConfig { initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
        let service = Arc::new(GroupService::new(config, Arc::new(NoLog), Arc::new(Default::default)));
        service.loaded(BTreeSet::new());
        let timers = service.clone();
        let timers = tokio::spawn(async move { timers.run_timers(Duration::from_secs(3600), wall_ms).await });
        let joined = service.join(&joining(6000), "c", "/127.0.0.1", 3).await;
        assert_eq!(joined.error_code, 0);
        let last_heard_ms = service.now_ms();
        while service.view(|coordinator| coordinator.has_members("g")) {
            assert!(service.now_ms() < last_heard_ms + 20_000, "a silent member stays");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let late_ms = service.now_ms() - last_heard_ms - 6000;
        assert!((0..5).contains(&late_ms), "{late_ms} ms late");
        timers.abort();
    }
}
