//! The groups of one partition of `__consumer_offsets`: their lock, who waits for an answer, and what is on its way to the
//! log. What happens in one does not hold up the others.
//!
//! A step takes effect when it is decided on, and is told when it is stored. Where it cannot be stored the group becomes
//! what it was before, and so it does for every step that was decided on top of it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{ConsumerGroupHeartbeatResponse, JoinGroupResponse, SyncGroupResponse};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::consumer::Clock;
use super::transactional::TransactionalWrite;
use super::undo::Undo;
use super::{Coordinator, GroupConfig, GroupRecord, Job, Outcome, Reply, Waiter};
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

/// Where an answer goes.
pub(super) enum Sender {
    Join(oneshot::Sender<JoinGroupResponse>),
    Sync(oneshot::Sender<SyncGroupResponse>),
    Consumer(oneshot::Sender<ConsumerGroupHeartbeatResponse>),
    Left(oneshot::Sender<ErrorCode>),
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
            (Sender::Left(tx), Reply::Left) => drop(tx.send(error)),
            _ => tracing::error!("a group request was answered with the response of another kind"),
        }
    }
}

pub(super) fn consumer_error(error: ErrorCode) -> ConsumerGroupHeartbeatResponse {
    ConsumerGroupHeartbeatResponse {
        error_code: error.code(),
        error_message: Some(error.message().to_owned()),
        ..Default::default()
    }
}

/// What a failed append means to a member, as Kafka's coordinator has it: one that looks for the coordinator again finds
/// it where it can be served.
pub(super) fn answered_as(error: ErrorCode) -> ErrorCode {
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

/// A group, and how it becomes what it was.
pub(super) type UndoOf = (String, Vec<Undo>);

/// What was decided on and is not known to be stored.
struct Unsettled {
    ticket: u64,
    /// What they say of offsets and deletions takes effect when they are stored.
    records: Arc<Vec<GroupRecord>>,
    undo: Option<UndoOf>,
    /// Answers that tell of it without adding anything.
    then: Vec<Stored>,
    /// Set where it must not be written any more: what it was decided on top of could not be stored.
    cancelled: Arc<OnceLock<ErrorCode>>,
}

/// What a shard's lock guards.
pub(super) struct Inner {
    pub(super) coordinator: Coordinator,
    waiting: HashMap<Waiter, Sender>,
    next_waiter: Waiter,
    /// In the log's order.
    unsettled: VecDeque<Unsettled>,
    next_ticket: u64,
    /// What takes its time and is done without the lock.
    pub(super) jobs: Vec<Job>,
}

/// What is written at once.
pub(super) enum Writing {
    Records(Arc<Vec<GroupRecord>>),
    InTransaction(TransactionalWrite),
}

/// Records on their way.
struct Outgoing {
    writing: Writing,
    cancelled: Arc<OnceLock<ErrorCode>>,
    stored: Stored,
}

#[derive(Default)]
struct Outbox {
    queue: VecDeque<Outgoing>,
    /// Somebody appends from this box; it is left to them, for the sake of the order.
    busy: bool,
}

/// The groups of a partition. Not the log itself: callbacks have this, and the log's threads must not be what keeps it open.
pub(super) struct Shard {
    pub(super) partition: i32,
    pub(super) inner: Mutex<Inner>,
    /// Decided under the lock of `inner`, in this order, and appended without it.
    outbox: Mutex<Outbox>,
    /// Wakes the timers when an earlier deadline has come up, or when something is left to append.
    timers: Arc<Notify>,
    started: Instant,
}

impl Inner {
    pub(super) fn wait(&mut self, sender: Sender) -> Waiter {
        self.next_waiter += 1;
        self.waiting.insert(self.next_waiter, sender);
        self.next_waiter
    }

    /// Records are stored, and with them all that were appended before; or they could not be.
    fn settled(&mut self, clock: Clock, ticket: u64, error: ErrorCode) -> Vec<(String, Outcome)> {
        if !error.is_error() {
            while let Some(stored) = self.unsettled.pop_front_if(|other| other.ticket <= ticket) {
                let records = Arc::try_unwrap(stored.records).unwrap_or_else(|shared| (*shared).clone());
                records.into_iter().for_each(|record| self.coordinator.apply_stored(record));
                stored.then.into_iter().for_each(|then| then(ErrorCode::None));
            }
            return Vec::new();
        }
        let Some(at) = self.unsettled.iter().position(|other| other.ticket == ticket) else { return Vec::new() };
        let Some(failed) = self.unsettled.remove(at) else { return Vec::new() };
        let group = failed.undo.as_ref().map(|(group, _)| group.clone());
        let mut undone = vec![failed];
        let mut place = at;
        while let Some(later) = self.unsettled.get(place) {
            let builds_on_it = group.is_some() && later.undo.as_ref().map(|(group, _)| group) == group.as_ref();
            match if builds_on_it { self.unsettled.remove(place) } else { None } {
                Some(later) => undone.push(later),
                None => place += 1,
            }
        }
        let mut outcomes = Vec::new();
        for step in undone.into_iter().rev() {
            // Whoever is told first; set once.
            let _ = step.cancelled.set(error);
            step.then.into_iter().for_each(|then| then(answered_as(error)));
            if let Some((group, undo)) = step.undo {
                let outcome = self.coordinator.roll_back(clock, &group, undo);
                outcomes.push((group, outcome));
            }
        }
        outcomes
    }
}

/// Gives a shard's outbox back when dropped, also by a panic.
struct Busy<'a>(&'a Shard);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.outbox.lock().busy = false;
    }
}

impl Shard {
    pub(super) fn new(partition: i32, config: Arc<GroupConfig>, timers: Arc<Notify>, started: Instant) -> Shard {
        let inner = Inner {
            coordinator: Coordinator::new(config),
            waiting: HashMap::new(),
            next_waiter: 0,
            unsettled: VecDeque::new(),
            next_ticket: 0,
            jobs: Vec::new(),
        };
        Shard { partition, inner: Mutex::new(inner), outbox: Mutex::default(), timers, started }
    }

    pub(super) fn clock(&self) -> Clock {
        Clock { now_ms: self.started.elapsed().as_millis() as i64, wall_ms: wall_ms() }
    }

    /// Hands out the replies of a step of a group, once its records are stored if there are any. A reply that adds nothing
    /// waits for what it tells of.
    pub(super) fn settle(self: &Arc<Shard>, inner: &mut Inner, group: &str, outcome: Outcome) {
        let Outcome { records, replies, assigned, jobs, undo } = outcome;
        inner.jobs.extend(jobs);
        let replies: Vec<(Sender, Reply)> =
            replies.into_iter().filter_map(|(w, r)| inner.waiting.remove(&w).map(|s| (s, r))).collect();
        let told = !replies.is_empty();
        let deliver = move |error: ErrorCode| replies.into_iter().for_each(|(sender, reply)| sender.send(reply, error));
        if records.is_empty() {
            let of_group = |other: &&mut Unsettled| other.undo.as_ref().is_some_and(|(name, _)| name == group);
            return match inner.unsettled.iter_mut().rev().find(of_group).filter(|_| told) {
                Some(before) => before.then.push(Box::new(deliver)),
                None => deliver(ErrorCode::None),
            };
        }
        let shard = self.clone();
        let stored = move |error: ErrorCode| {
            deliver(error);
            if let Some(assigned) = assigned {
                shard.assignment_stored(&assigned, error);
            }
        };
        let undo = (!undo.is_empty()).then(|| (group.to_owned(), undo));
        self.store(inner, records, undo, Box::new(stored));
    }

    /// The assignment of a generation was stored, or could not be.
    fn assignment_stored(self: &Arc<Shard>, assigned: &(String, i32), error: ErrorCode) {
        let Clock { now_ms, wall_ms } = self.clock();
        let mut inner = self.inner.lock();
        let outcome = inner.coordinator.assignment_stored(now_ms, wall_ms, assigned, error);
        self.settle(&mut inner, &assigned.0, outcome);
        drop(inner);
        // Deadlines changed, and there may be more to append.
        self.timers.notify_one();
    }

    /// Sends records on their way; `done` is called once, without the lock.
    pub(super) fn store(
        self: &Arc<Shard>,
        inner: &mut Inner,
        records: Vec<GroupRecord>,
        undo: Option<UndoOf>,
        done: Stored,
    ) {
        let records = Arc::new(records);
        let writing = Writing::Records(records.clone());
        self.send(inner, (records, undo), writing, Box::new(move |error| done(answered_as(error))));
    }

    /// Sends a write on its way. What is `decided` takes effect, in the log's order, when it is stored, and is taken back
    /// where it cannot be. `done` is told the log's own error.
    pub(super) fn send(
        self: &Arc<Shard>,
        inner: &mut Inner,
        (records, undo): (Arc<Vec<GroupRecord>>, Option<UndoOf>),
        writing: Writing,
        done: Stored,
    ) {
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        let cancelled = Arc::new(OnceLock::new());
        inner.unsettled.push_back(Unsettled { ticket, records, undo, then: Vec::new(), cancelled: cancelled.clone() });
        let (shard, flag) = (self.clone(), cancelled.clone());
        let stored = move |error: ErrorCode| {
            shard.settled(ticket, error);
            done(flag.get().copied().unwrap_or(error));
        };
        self.outbox.lock().queue.push_back(Outgoing { writing, cancelled, stored: Box::new(stored) });
    }

    fn settled(self: &Arc<Shard>, ticket: u64, error: ErrorCode) {
        let clock = self.clock();
        let mut inner = self.inner.lock();
        let taken_back = inner.settled(clock, ticket, error);
        for (group, outcome) in taken_back {
            tracing::warn!(group, error = error.name(), "a change of the group could not be stored, and is taken back");
            self.settle(&mut inner, &group, outcome);
        }
        drop(inner);
        if error.is_error() {
            self.timers.notify_one();
        }
    }

    /// The next to append, unless somebody is busy with it.
    fn take_outgoing(&self) -> Option<Outgoing> {
        let mut outbox = self.outbox.lock();
        let next = if outbox.busy { None } else { outbox.queue.pop_front() }?;
        outbox.busy = true;
        Some(next)
    }

    /// Appends what is on its way, in the order of the decisions.
    pub(super) fn append_outgoing(&self, log: &dyn OffsetsLog) {
        while let Some(Outgoing { writing, cancelled, stored }) = self.take_outgoing() {
            let _busy = Busy(self);
            if let Some(error) = cancelled.get() {
                stored(*error);
                continue;
            }
            match writing {
                Writing::Records(records) => {
                    let pairs = records.iter().map(GroupRecord::encode).collect::<Result<Vec<_>, _>>();
                    drop(records);
                    match pairs {
                        Ok(pairs) => log.append(self.partition, pairs, stored),
                        Err(error) => {
                            let partition = self.partition;
                            tracing::error!(partition, %error, "the records of a group cannot be stored");
                            stored(ErrorCode::UnknownServerError);
                        }
                    }
                }
                Writing::InTransaction(write) => log.append_in_transaction(self.partition, write, stored),
            }
        }
    }
}
