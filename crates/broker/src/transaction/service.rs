//! The transaction coordinator at work: decisions are stored before they are told, and what was decided is carried out
//! however often the broker is stopped meanwhile.
//!
//! A request is answered when its record is durable. From then on a task writes the markers of a decided transaction into
//! its partitions, and when all of them are durable, the record that says that it is over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_protocol::{ErrorCode, TopicPartition};
use caudal_storage::{AppendOrigin, EndMarker, TransactionMarker, Verification};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use super::machine::{End, Entry, Init, Producer, Step};
use super::record;
use super::{STATE_TOPIC, State, Transaction, TransactionConfig};
use crate::clock::wall_ms;
use crate::coordinator_log::{DECOMPRESSED_MAX_BYTES, replay};
use crate::group::offsets_log::OFFSETS_TOPIC;
use crate::group::record::partition_for;
use crate::group::service::GroupService;
use crate::partition::Partition;
use crate::topics::Topics;

/// Between tries to write markers, and to store that a transaction is over, while the disk is full: at first, and at most.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Inner {
    loaded: bool,
    /// The partitions of `__transaction_state` that could not be read.
    unreadable: BTreeSet<i32>,
    entries: HashMap<String, Entry>,
    /// Transactions that are decided and not carried out yet.
    decided: Vec<String>,
}

/// What the callbacks of the log need. Not the log itself: its threads must not be what keeps it open.
#[derive(Debug, Default)]
struct Core {
    inner: Mutex<Inner>,
    /// Something was decided.
    decided: Notify,
    /// A state was stored, or could not be.
    settled: Notify,
}

/// Where the last step of a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The state that is stored now, or stood already.
    Done(Producer),
    /// To be asked again with a new producer id.
    NeedsProducerId,
}

/// A marker for one partition.
#[derive(Debug, Clone, Copy)]
pub struct Marking {
    pub producer: Producer,
    pub marker: EndMarker,
    /// The `transaction.version` that the transaction was made with.
    pub version: i16,
}

/// Tells the cluster's `transaction.version`.
pub type Version = Box<dyn Fn() -> i16 + Send + Sync>;

/// The transaction coordinator of this broker.
pub struct TransactionService {
    pub config: TransactionConfig,
    core: Arc<Core>,
    topics: Arc<Topics>,
    groups: Arc<GroupService>,
    /// The cluster's `transaction.version`.
    version: Version,
}

/// What a failed append means to a producer, as Kafka's coordinator has it.
fn answered_as(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::UnknownTopicOrPartition | ErrorCode::NotEnoughReplicas | ErrorCode::RequestTimedOut => {
            ErrorCode::CoordinatorNotAvailable
        }
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge => ErrorCode::UnknownServerError,
        other => other,
    }
}

impl Core {
    /// A state is stored, or could not be.
    fn settle(&self, id: &str, target: Option<Transaction>, error: ErrorCode) {
        let is_decided = self.take_note(id, target, error);
        if is_decided {
            self.decided.notify_one();
        }
        self.settled.notify_waiters();
    }

    /// True when there is a transaction to carry out now.
    fn take_note(&self, id: &str, target: Option<Transaction>, error: ErrorCode) -> bool {
        let mut inner = self.inner.lock();
        let Some(entry) = inner.entries.get_mut(id) else { return false };
        let Some(target) = target.filter(|_| !error.is_error()) else {
            entry.give_up();
            if !error.is_error() {
                inner.entries.remove(id);
            }
            return false;
        };
        let is_decided = target.state.is_prepared();
        entry.complete(target);
        if is_decided {
            inner.decided.push(id.to_owned());
        }
        is_decided
    }
}

impl TransactionService {
    pub fn new(
        config: TransactionConfig,
        topics: Arc<Topics>,
        groups: Arc<GroupService>,
        version: Version,
    ) -> TransactionService {
        TransactionService { config, core: Arc::default(), topics, groups, version }
    }

    fn version(&self) -> i16 {
        (self.version)()
    }

    /// The number of partitions of `__transaction_state`; `None` while it does not exist.
    fn partitions(&self) -> Option<i32> {
        i32::try_from(self.topics.view().by_name(STATE_TOPIC)?.partitions.len()).ok()
    }

    fn partition_of(&self, id: &str) -> Option<Arc<Partition>> {
        let partition = partition_for(id, self.partitions()?);
        self.topics.view().partition(STATE_TOPIC, partition).cloned()
    }

    /// Replays what an earlier run stored; blocks. Returns the partitions that cannot be read, with the reason: their
    /// transactional ids are not served.
    pub fn load(&self) -> BTreeMap<i32, String> {
        let view = self.topics.view();
        let topic = view.by_name(STATE_TOPIC);
        let mut unreadable: BTreeMap<i32, String> = topic.map(|topic| topic.offline.clone()).unwrap_or_default();
        for partition in topic.iter().flat_map(|topic| topic.partitions.iter().flatten()) {
            match read_partition(partition) {
                Ok(transactions) => {
                    let mut inner = self.core.inner.lock();
                    for (id, transaction) in transactions {
                        if transaction.state.is_prepared() {
                            inner.decided.push(id.clone());
                        }
                        inner.entries.insert(id, Entry::new(transaction));
                    }
                }
                Err(reason) => _ = unreadable.insert(partition.name.partition, reason),
            }
        }
        let mut inner = self.core.inner.lock();
        inner.unreadable = unreadable.keys().copied().collect();
        inner.loaded = true;
        drop(inner);
        self.core.decided.notify_one();
        unreadable
    }

    /// The partitions of [`STATE_TOPIC`] whose transactional ids are not served.
    pub fn unreadable(&self) -> BTreeSet<i32> {
        self.core.inner.lock().unreadable.clone()
    }

    /// `COORDINATOR_LOAD_IN_PROGRESS` or `NOT_COORDINATOR` while a transactional id cannot be served.
    fn check_ready(&self, inner: &Inner, id: &str) -> Result<(), ErrorCode> {
        if !inner.loaded {
            return Err(ErrorCode::CoordinatorLoadInProgress);
        }
        let partitions = self.partitions().ok_or(ErrorCode::NotCoordinator)?;
        if inner.unreadable.contains(&partition_for(id, partitions)) {
            return Err(ErrorCode::NotCoordinator);
        }
        Ok(())
    }

    /// Lets `step` decide about a transactional id, stores what it decided and waits until that is durable.
    async fn run(
        &self,
        id: &str,
        step: impl FnOnce(Option<&mut Entry>) -> Result<Step, ErrorCode>,
    ) -> Result<Outcome, ErrorCode> {
        let target = {
            let mut inner = self.core.inner.lock();
            self.check_ready(&inner, id)?;
            match step(inner.entries.get_mut(id))? {
                Step::Answer(answer) => return answer.map(Outcome::Done),
                Step::NeedsProducerId => return Ok(Outcome::NeedsProducerId),
                Step::Store(target) => target,
            }
        };
        let producer = (target.producer_id, target.producer_epoch);
        let error = self.store(id, Some(target)).await;
        if error.is_error() { Err(error) } else { Ok(Outcome::Done(producer)) }
    }

    /// Appends a state (`None`: that there is none), and has it take effect when it is durable, whether or not somebody waits.
    async fn store(&self, id: &str, target: Option<Transaction>) -> ErrorCode {
        let (done, stored) = oneshot::channel();
        let (core, name, version) = (self.core.clone(), id.to_owned(), self.version());
        let encoded = record::encode(id, target.as_ref(), version);
        let settle = move |error: ErrorCode| {
            let error = answered_as(error);
            if error.is_error() {
                tracing::warn!(transactional_id = %name, error = error.name(), "a transaction's state was not stored");
            }
            core.settle(&name, target, error);
            let _ = done.send(error);
        };
        let batch = encoded.map_err(|error| error.to_string()).and_then(|(key, value)| {
            let mut builder = BatchBuilder::new(Codec::None);
            builder.append(wall_ms(), Some(&key), value.as_deref(), &[]);
            builder.build().map_err(|error| error.to_string())
        });
        match (self.partition_of(id), batch) {
            (Some(partition), Ok(batch)) => {
                partition.append_then(&batch, AppendOrigin::Coordinator, Verification::None, settle);
            }
            (None, _) => settle(ErrorCode::NotCoordinator),
            (_, Err(error)) => {
                tracing::error!(transactional_id = id, "failed to write a transaction's state: {error}");
                settle(ErrorCode::UnknownServerError);
            }
        }
        stored.await.unwrap_or(ErrorCode::CoordinatorNotAvailable)
    }

    /// InitProducerId: the producer that may go on. An open transaction is aborted first and the request to be sent again
    /// (CONCURRENT_TRANSACTIONS).
    ///
    /// # Errors
    /// The code for the client.
    pub async fn init(&self, id: &str, init: Init) -> Result<Outcome, ErrorCode> {
        let mut fences = false;
        let outcome = self
            .run(id, |entry| {
                let inner_entry = match entry {
                    Some(entry) => entry,
                    None => return Err(ErrorCode::UnknownProducerId),
                };
                fences = inner_entry.current.state == State::Ongoing;
                Ok(inner_entry.init(init))
            })
            .await?;
        match outcome {
            Outcome::Done(_) if fences => Err(ErrorCode::ConcurrentTransactions),
            outcome => Ok(outcome),
        }
    }

    /// Makes a transactional id known. False: it is, or it cannot be served.
    pub fn introduce(&self, id: &str, producer_id: i64, timeout_ms: i32) {
        let mut inner = self.core.inner.lock();
        if self.check_ready(&inner, id).is_ok() {
            inner.entries.entry(id.to_owned()).or_insert_with(|| Entry::unused(producer_id, timeout_ms, wall_ms()));
        }
    }

    /// Whether a transactional id is known.
    ///
    /// # Errors
    /// It cannot be served.
    pub fn knows(&self, id: &str) -> Result<bool, ErrorCode> {
        let inner = self.core.inner.lock();
        self.check_ready(&inner, id)?;
        Ok(inner.entries.contains_key(id))
    }

    /// Makes partitions part of the transaction, which begins with it where none is open.
    ///
    /// # Errors
    /// The code for the client.
    pub async fn add(
        &self,
        id: &str,
        producer: Producer,
        partitions: &BTreeSet<TopicPartition>,
        version: i16,
    ) -> Result<(), ErrorCode> {
        if id.is_empty() {
            return Err(ErrorCode::InvalidRequest);
        }
        let add = |entry: Option<&mut Entry>| {
            let entry = entry.ok_or(ErrorCode::InvalidProducerIdMapping)?;
            Ok(entry.add(producer, partitions, version, wall_ms()))
        };
        self.run(id, add).await.map(|_| ())
    }

    /// As [`TransactionService::add`], waiting for up to `patience` for what is under way: the end of the transaction before, or
    /// other partitions that are being added.
    ///
    /// # Errors
    /// The code for the client.
    pub async fn add_patiently(
        &self,
        id: &str,
        producer: Producer,
        partitions: &BTreeSet<TopicPartition>,
        version: i16,
    ) -> Result<(), ErrorCode> {
        let deadline = tokio::time::Instant::now() + self.config.patience;
        loop {
            let settled = self.core.settled.notified();
            let added = self.add(id, producer, partitions, version).await;
            if added != Err(ErrorCode::ConcurrentTransactions)
                || tokio::time::timeout_at(deadline, settled).await.is_err()
            {
                return added;
            }
        }
    }

    /// Whether a partition is part of the open transaction.
    ///
    /// # Errors
    /// See [`Entry::verify`].
    pub fn verify(&self, id: &str, producer: Producer, partition: &TopicPartition) -> Result<(), ErrorCode> {
        if id.is_empty() {
            return Err(ErrorCode::InvalidRequest);
        }
        let inner = self.core.inner.lock();
        self.check_ready(&inner, id)?;
        let entry = inner.entries.get(id).ok_or(ErrorCode::InvalidProducerIdMapping)?;
        entry.verify(producer, partition)
    }

    /// EndTxn: the producer that may go on, once the outcome is decided for good.
    ///
    /// # Errors
    /// The code for the client.
    pub async fn end(&self, id: &str, end: End) -> Result<Outcome, ErrorCode> {
        if id.is_empty() {
            return Err(ErrorCode::InvalidRequest);
        }
        let mut next = None;
        let outcome = self
            .run(id, |entry| {
                let step = entry.ok_or(ErrorCode::InvalidProducerIdMapping)?.end(end);
                if let Step::Store(target) = &step {
                    // With the epochs used up it goes on as another producer.
                    next = (target.next_producer_id >= 0).then_some((target.next_producer_id, 0));
                }
                Ok(step)
            })
            .await?;
        Ok(match (outcome, next) {
            (Outcome::Done(_), Some(next)) => Outcome::Done(next),
            (outcome, _) => outcome,
        })
    }

    /// Aborts the open transaction of an id that took too long; `now_ms` as of [`TransactionService::timed_out`].
    ///
    /// # Errors
    /// The code why not.
    pub async fn abort_timed_out(&self, id: &str, fresh_id: Option<i64>, now_ms: i64) -> Result<Outcome, ErrorCode> {
        let version = self.version();
        let abort = |entry: Option<&mut Entry>| match entry {
            Some(entry) if entry.is_timed_out(now_ms) => Ok(entry.fence(version, fresh_id, wall_ms())),
            _ => Err(ErrorCode::ConcurrentTransactions),
        };
        self.run(id, abort).await
    }

    /// The ids whose transaction has been open for too long. `now_ms` is a clock that does not leap ahead.
    pub fn timed_out(&self, now_ms: i64) -> Vec<String> {
        let inner = self.core.inner.lock();
        inner.entries.iter().filter(|(_, entry)| entry.is_timed_out(now_ms)).map(|(id, _)| id.clone()).collect()
    }

    /// Forgets ids that nobody used for `transactional.id.expiration.ms`. `now_ms` is a clock that does not leap ahead.
    pub async fn remove_expired(&self, now_ms: i64) {
        let before_ms = now_ms.saturating_sub(self.config.id_expiration_ms);
        let expired: Vec<String> = {
            let mut inner = self.core.inner.lock();
            let expired = inner.entries.iter_mut().filter(|(_, entry)| entry.is_expired(before_ms));
            expired
                .map(|(id, entry)| {
                    entry.pending = Some(State::Dead);
                    id.clone()
                })
                .collect()
        };
        for id in expired {
            tracing::info!(transactional_id = %id, "forgetting a transactional id that nobody uses");
            self.store(&id, None).await;
        }
    }

    /// Looks at all transactional ids.
    ///
    /// # Errors
    /// They are not loaded yet.
    pub fn view<T>(&self, look: impl FnOnce(&mut dyn Iterator<Item = (&String, &Entry)>) -> T) -> Result<T, ErrorCode> {
        let inner = self.core.inner.lock();
        if inner.loaded { Ok(look(&mut inner.entries.iter())) } else { Err(ErrorCode::CoordinatorLoadInProgress) }
    }

    /// The state of a transactional id.
    ///
    /// # Errors
    /// It is not known, or cannot be served.
    pub fn describe(&self, id: &str) -> Result<Transaction, ErrorCode> {
        if id.is_empty() {
            return Err(ErrorCode::InvalidRequest);
        }
        let inner = self.core.inner.lock();
        self.check_ready(&inner, id)?;
        let known = inner.entries.get(id).filter(|entry| entry.pending != Some(State::Dead));
        known.map(|entry| entry.current.clone()).ok_or(ErrorCode::TransactionalIdNotFound)
    }

    /// Carries out what is decided; runs until it is dropped.
    pub async fn carry_out(self: Arc<Self>) {
        let mut work = JoinSet::new();
        loop {
            tokio::select! {
                () = self.core.decided.notified() => {}
                Some(_) = work.join_next() => continue,
            }
            let decided = std::mem::take(&mut self.core.inner.lock().decided);
            for id in decided {
                let service = self.clone();
                work.spawn(async move { service.finish(&id).await });
            }
        }
    }

    /// Writes the markers of a decided transaction, then that it is over.
    async fn finish(&self, id: &str) {
        let Some(coordinator) = self.partition_of(id) else { return };
        let Some(decided) = self.core.inner.lock().entries.get_mut(id).map(|entry| entry.current.clone()) else {
            return;
        };
        let marker = match decided.state {
            State::PrepareCommit => TransactionMarker::Commit,
            State::PrepareAbort => TransactionMarker::Abort,
            _ => return,
        };
        let marking = Marking {
            producer: (decided.producer_id, decided.producer_epoch),
            marker: EndMarker { marker, coordinator_epoch: coordinator.leader_epoch() },
            version: decided.client_version,
        };
        let mut left: Vec<TopicPartition> = decided.partitions.into_iter().collect();
        let mut retry = RETRY;
        let mut pause = async || {
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(RETRY_MOST);
        };
        while !left.is_empty() {
            left = self.mark_all(id, marking, left).await;
            if !left.is_empty() {
                pause().await;
            }
        }
        loop {
            let target = match self.core.inner.lock().entries.get_mut(id) {
                Some(entry) => entry.finish(wall_ms()),
                None => return,
            };
            if target.is_none() || !self.store(id, target).await.is_error() {
                return;
            }
            pause().await;
        }
    }

    /// Writes markers into partitions; those where that is to be tried again.
    async fn mark_all(&self, id: &str, marking: Marking, partitions: Vec<TopicPartition>) -> Vec<TopicPartition> {
        let appended: Vec<_> =
            partitions.into_iter().map(|partition| (self.mark(&partition, marking), partition)).collect();
        let mut again = Vec::new();
        for (marked, partition) in appended {
            match marked.await {
                // The topic may have been deleted meanwhile.
                Ok(ErrorCode::None | ErrorCode::UnknownTopicOrPartition) => {}
                Ok(error @ (ErrorCode::InvalidProducerEpoch | ErrorCode::TransactionCoordinatorFenced)) => {
                    tracing::error!(
                        transactional_id = id, %partition, error = error.name(),
                        "a partition saw a later transaction of this producer: it gets no marker"
                    );
                }
                Ok(error) => {
                    tracing::debug!(transactional_id = id, %partition, error = error.name(), "no marker written yet");
                    again.push(partition);
                }
                Err(_) => again.push(partition),
            }
        }
        again
    }

    /// Appends a marker to a partition of this broker; tells when it is durable.
    pub fn mark(&self, partition: &TopicPartition, marking: Marking) -> oneshot::Receiver<ErrorCode> {
        let (done, marked) = oneshot::channel();
        let told = move |error: ErrorCode| _ = done.send(error);
        let found = match self.topics.view().find(&partition.topic, partition.partition) {
            Ok(found) => found.clone(),
            Err(error) => {
                told(error);
                return marked;
            }
        };
        if partition.topic == OFFSETS_TOPIC {
            self.groups.end_transaction(partition.partition, marking, Box::new(told));
        } else {
            found.append_marker(marking, told);
        }
        marked
    }
}

impl std::fmt::Debug for TransactionService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransactionService").field("config", &self.config).finish_non_exhaustive()
    }
}

fn read_partition(partition: &Partition) -> Result<HashMap<String, Transaction>, String> {
    let mut transactions = HashMap::new();
    replay(&partition.log, |batch| {
        if batch.header.is_control() {
            return Ok(());
        }
        for record in batch.records(DECOMPRESSED_MAX_BYTES).map_err(|e| e.to_string())?.iter() {
            let record = record.map_err(|e| e.to_string())?;
            let Some(key) = record.key.map(Bytes::copy_from_slice) else { continue };
            let value = record.value.map(Bytes::copy_from_slice);
            match record::decode(key, value).map_err(|e| e.to_string())? {
                Some((id, Some(transaction))) => _ = transactions.insert(id, transaction),
                Some((id, None)) => _ = transactions.remove(&id),
                None => tracing::warn!(partition = %partition.name, offset = record.offset, "unknown record ignored"),
            }
        }
        Ok(())
    })?;
    Ok(transactions)
}
