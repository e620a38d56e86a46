//! The sending task: one owner of all batches on their way, driven by events.
//!
//! Order within a partition, with several requests in flight: batches carry sequence numbers that the broker insists
//! on. A batch that failed for a passing reason goes back to the front with its number, and while it is there, it is
//! alone in flight for its partition.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_protocol::TopicPartition;
use caudal_protocol::compression::Codec;
use caudal_protocol::messages as m;
use caudal_protocol::messages::ProduceResponse;
use caudal_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use caudal_protocol::wire::Records;
use tokio::task::JoinSet;

use super::Shared;
use super::batch::{Batch, Outcome};
use super::numbering::{Numbering, ProducerId, add_sequence};
use super::transaction::produce_version;
use crate::client::{ANY_VERSION, Backoff, Lane};
use crate::config::{ClientConfig, ConfigError};
use crate::connection::Connection;
use crate::error::{Error, Result, check};

#[derive(Debug, Clone)]
pub(super) struct SenderConfig {
    pub acks: i16,
    pub idempotent: bool,
    pub max_in_flight: usize,
    pub max_request_bytes: usize,
    pub delivery_timeout: Duration,
    pub metadata_max_age: Duration,
    pub retries: u32,
    pub codec: Codec,
}

impl SenderConfig {
    pub(super) fn from_config(config: &ClientConfig) -> Result<SenderConfig, ConfigError> {
        let acks = match config.get("acks") {
            "0" => 0,
            "1" => 1,
            _ => -1,
        };
        let max_in_flight = config.size("max.in.flight.requests.per.connection");
        let asked_for = config.is_set("enable.idempotence") && config.flag("enable.idempotence");
        let refuse = |name: &str, allowed: &str| {
            let value = config.get(name).to_owned();
            Err(ConfigError::BadValue { name: name.to_owned(), value, allowed: allowed.to_owned() })
        };
        if asked_for && acks != -1 {
            return refuse("acks", "enable.idempotence=true needs acks=all");
        }
        if asked_for && max_in_flight > 5 {
            return refuse("max.in.flight.requests.per.connection", "enable.idempotence=true needs at most 5");
        }
        if asked_for && config.int("retries") == 0 {
            return refuse("retries", "enable.idempotence=true needs at least 1");
        }
        let fits = acks == -1 && max_in_flight <= 5 && config.int("retries") > 0;
        Ok(SenderConfig {
            acks,
            idempotent: config.flag("enable.idempotence") && fits,
            max_in_flight,
            max_request_bytes: config.size("max.request.size"),
            delivery_timeout: config.duration("delivery.timeout.ms"),
            metadata_max_age: config.duration("metadata.max.age.ms"),
            retries: u32::try_from(config.int("retries")).unwrap_or(u32::MAX),
            codec: Codec::from_name(&config.get("compression.type").to_ascii_lowercase()).unwrap_or_default(),
        })
    }
}

/// What the sender knows of a partition.
#[derive(Debug, Default)]
pub(super) struct PartitionState {
    /// Under which its batches are numbered; of its own once it has begun a new epoch.
    pub producer: Option<ProducerId>,
    /// Of the next batch that is sent for the first time.
    pub next_sequence: i32,
    pub numbering: Numbering,
    /// The broker has taken a batch of this numbering.
    pub acknowledged: bool,
    /// Ids of the batches on the wire, in the order they were sent.
    pub in_flight: Vec<u64>,
    /// Batches to send again, by sequence number.
    pub retries: VecDeque<Batch>,
}

/// What the sender's own tasks report.
#[derive(Debug)]
pub(super) enum Event {
    Connected {
        node: i32,
        result: Result<()>,
    },
    Refreshed(Result<()>),
    GotProducerId(Result<ProducerId>),
    /// Partitions were added to the transaction.
    Added {
        partitions: Vec<TopicPartition>,
        result: Result<()>,
    },
    Answered {
        node: i32,
        ids: Vec<u64>,
        result: Result<ProduceResponse>,
    },
    /// With `acks=0`: the request has gone to the socket.
    Gone {
        node: i32,
        ids: Vec<u64>,
        result: Result<()>,
    },
}

pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    pub(super) config: SenderConfig,
    pub(super) partitions: HashMap<(usize, i32), PartitionState>,
    pub(super) in_flight: HashMap<u64, Batch>,
    tasks: JoinSet<Event>,
    requests_in_flight: HashMap<i32, usize>,
    connecting: HashMap<i32, Option<Instant>>,
    pub(super) producer_id: Option<ProducerId>,
    asking_id: bool,
    /// Why there is no producer id yet.
    pub(super) id_error: Option<Error>,
    /// It was said that records wait.
    pub(super) told_waiting: bool,
    id_retry_at: Option<Instant>,
    refreshing: bool,
    pub(super) refresh_wanted: bool,
    refreshed_at: Instant,
    refresh_failures: u32,
    refresh_at: Instant,
    pub(super) backoff: Backoff,
}

/// What goes to one broker in one request.
struct Plan {
    connection: Arc<Connection>,
    batches: Vec<Batch>,
    bytes: usize,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>, config: SenderConfig) -> Sender {
        let now = Instant::now();
        Sender {
            backoff: shared.client.retry_backoff(),
            shared,
            config,
            partitions: HashMap::new(),
            in_flight: HashMap::new(),
            tasks: JoinSet::new(),
            requests_in_flight: HashMap::new(),
            connecting: HashMap::new(),
            producer_id: None,
            asking_id: false,
            id_error: None,
            told_waiting: false,
            id_retry_at: None,
            refreshing: false,
            refresh_wanted: false,
            refreshed_at: now,
            refresh_failures: 0,
            refresh_at: now,
        }
    }

    /// Runs until the producer is closed and nothing is left.
    pub(super) async fn run(mut self) {
        loop {
            let now = Instant::now();
            self.expire(now);
            self.tell_waiting(now);
            let wake_at = self.work(now);
            {
                let accumulator = self.shared.accumulator.lock();
                if accumulator.closing && accumulator.is_idle() {
                    break;
                }
            }
            let far = now + Duration::from_secs(3600);
            tokio::select! {
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep_until(wake_at.unwrap_or(far).into()) => {}
                Some(event) = self.tasks.join_next() => {
                    if let Ok(event) = event { self.on(event); }
                    while let Some(Ok(event)) = self.tasks.try_join_next() { self.on(event); }
                }
            }
        }
    }

    fn on(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Connected { node, result } => {
                self.connecting.remove(&node);
                if let Err(error) = result {
                    tracing::debug!(node, %error, "cannot connect to send records");
                    self.connecting.insert(node, Some(now + self.backoff.wait(1)));
                    self.refresh_wanted = true;
                }
            }
            Event::Refreshed(result) => {
                self.refreshing = false;
                self.refreshed_at = now;
                self.refresh_failures = if result.is_ok() { 0 } else { self.refresh_failures + 1 };
                // Even a good answer may not name a leader yet: never ask in a tight loop.
                self.refresh_at = now + self.backoff.wait(self.refresh_failures + 1);
                if let Err(error) = result {
                    tracing::debug!(%error, "cannot refresh the metadata of the topics written to");
                    self.refresh_wanted = true;
                }
            }
            Event::GotProducerId(result) => {
                self.asking_id = false;
                match result {
                    Ok(id) => {
                        self.producer_id = Some(id);
                        self.id_error = None;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "cannot get a producer id");
                        if !error.is_retriable() {
                            self.fail_waiting(&error);
                        }
                        self.id_error = Some(error);
                        self.id_retry_at = Some(now + self.backoff.wait(1));
                    }
                }
            }
            Event::Added { partitions, result } => {
                if let Some(transactions) = &self.shared.transactions {
                    transactions.added(partitions, &result);
                }
            }
            Event::Answered { node, ids, result } => {
                self.request_done(node);
                self.on_answer(ids, result, now);
            }
            Event::Gone { node, ids, result } => {
                self.request_done(node);
                match result {
                    Ok(()) => self.on_gone(ids),
                    Err(error) => self.on_unanswered(ids, &error, true, now),
                }
            }
        }
    }

    fn request_done(&mut self, node: i32) {
        if let Some(count) = self.requests_in_flight.get_mut(&node) {
            *count = count.saturating_sub(1);
        }
    }

    /// Sends what can be sent. Returns when there may be more to do without an event.
    fn work(&mut self, now: Instant) -> Option<Instant> {
        let mut wake_at: Option<Instant> = None;
        let mut sooner = |at: Instant| wake_at = Some(wake_at.map_or(at, |w: Instant| w.min(at)));
        if now.duration_since(self.refreshed_at) >= self.config.metadata_max_age {
            self.refresh_wanted = true;
        }
        if let Some(transactions) = &self.shared.transactions {
            self.producer_id = transactions.producer();
            if let Some(error) = transactions.failure() {
                self.fail_waiting(&error);
            }
        }
        loop {
            self.settle();
            let plans = self.plan(now, &mut sooner);
            if plans.is_empty() {
                break;
            }
            for (node, plan) in plans {
                self.send(node, plan);
            }
        }
        self.add_to_transaction();
        let by_itself = self.config.idempotent && self.shared.transactions.is_none();
        if by_itself && self.producer_id.is_none() && !self.asking_id {
            let anything = !self.shared.accumulator.lock().is_idle();
            match self.id_retry_at.filter(|at| *at > now) {
                _ if !anything => {}
                Some(at) => sooner(at),
                None => self.ask_producer_id(),
            }
        }
        if self.refresh_wanted {
            self.start_refresh(now, &mut sooner);
        }
        self.deadlines(&mut sooner);
        wake_at
    }

    /// The partitions that have something to send, in turn, for fairness.
    fn candidates(&self) -> Vec<(usize, i32)> {
        let mut candidates: Vec<(usize, i32)> =
            self.partitions.iter().filter(|(_, p)| !p.retries.is_empty()).map(|(at, _)| *at).collect();
        let accumulator = self.shared.accumulator.lock();
        for active in accumulator.active() {
            if !candidates.contains(active) {
                candidates.push(*active);
            }
        }
        candidates
    }

    fn plan(&mut self, now: Instant, sooner: &mut impl FnMut(Instant)) -> BTreeMap<i32, Plan> {
        let mut plans: BTreeMap<i32, Plan> = BTreeMap::new();
        for (topic, partition) in self.candidates() {
            let shared = Arc::clone(&self.shared);
            let state = self.partitions.entry((topic, partition)).or_default();
            let mut accumulator = shared.accumulator.lock();
            let (size, due) = match state.retries.front() {
                // Alone in flight, so that what comes behind it cannot overtake it.
                Some(_) if !state.in_flight.is_empty() || state.numbering == Numbering::Broken => continue,
                Some(batch) => (batch.size_bytes(), batch.retry_at),
                None if self.config.idempotent && !state.takes_new(self.producer_id) => continue,
                None => match accumulator.ready_at(topic, partition, now) {
                    Some(at) => (accumulator.front(topic, partition).map_or(0, Batch::size_bytes), at),
                    None => continue,
                },
            };
            if due > now {
                sooner(due);
                continue;
            }
            let Some(name) = accumulator.topic_name(topic).cloned() else { continue };
            if shared.transactions.as_ref().is_some_and(|transactions| !transactions.admits(&name, partition)) {
                continue;
            }
            let Ok((leader, _)) = shared.client.leader(&name, partition) else {
                self.refresh_wanted = true;
                continue;
            };
            if self.requests_in_flight.get(&leader).copied().unwrap_or(0) >= self.config.max_in_flight {
                continue;
            }
            let plan = match plans.entry(leader) {
                Entry::Occupied(plan) => plan.into_mut(),
                Entry::Vacant(place) => match shared.client.open_connection(leader, Lane::Produce) {
                    Some(connection) => place.insert(Plan { connection, batches: Vec::new(), bytes: 0 }),
                    None => {
                        self.start_connecting(leader, now, sooner);
                        continue;
                    }
                },
            };
            if plan.bytes > 0 && plan.bytes + size > self.config.max_request_bytes {
                continue;
            }
            let batch = state.retries.pop_front().or_else(|| accumulator.take(topic, partition));
            if let Some(batch) = batch {
                plan.bytes += size;
                plan.batches.push(batch);
            }
        }
        plans.retain(|_, plan| !plan.batches.is_empty());
        plans
    }

    fn send(&mut self, node: i32, plan: Plan) {
        let mut topics: Vec<TopicProduceData> = Vec::new();
        let mut ids = Vec::with_capacity(plan.batches.len());
        for mut batch in plan.batches {
            if let Err(error) = self.seal(&mut batch) {
                self.finish(&batch, Outcome::Failed(error));
                continue;
            }
            let data =
                PartitionProduceData { index: batch.partition, records: Some(Records::Bytes(batch.bytes.clone())) };
            match topics.iter_mut().find(|t| t.name == *batch.state.topic) {
                Some(topic) => topic.partition_data.push(data),
                None => topics.push(TopicProduceData {
                    name: batch.state.topic.to_string(),
                    topic_id: self.shared.client.topic_id(&batch.state.topic),
                    partition_data: vec![data],
                }),
            }
            ids.push(batch.id);
            batch.attempts += 1;
            self.partitions.entry((batch.topic, batch.partition)).or_default().in_flight.push(batch.id);
            self.in_flight.insert(batch.id, batch);
        }
        if ids.is_empty() {
            return;
        }
        let timeout = self.shared.client.request_timeout();
        let transactional = self.shared.transactions.as_ref();
        let version = produce_version(transactional.is_some());
        let request = m::ProduceRequest {
            transactional_id: transactional.map(|transactions| transactions.id().to_owned()),
            acks: self.config.acks,
            timeout_ms: i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX),
            topic_data: topics,
        };
        let client = self.shared.client.clone();
        let connection = plan.connection;
        let unsent = if self.config.acks == 0 {
            match connection.submit_one_way(&request, ANY_VERSION) {
                Ok(leaving) => {
                    self.tasks.spawn(async move {
                        let result = client.note(&connection, leaving.gone(timeout).await);
                        Event::Gone { node, ids, result }
                    });
                    None
                }
                Err(error) => Some((ids, error)),
            }
        } else {
            match connection.submit(&request, version) {
                Ok(waiting) => {
                    self.tasks.spawn(async move {
                        let answer = waiting.answer(timeout).await;
                        let result = client.note(&connection, answer);
                        Event::Answered { node, ids, result }
                    });
                    None
                }
                Err(error) => Some((ids, error)),
            }
        };
        match unsent {
            None => *self.requests_in_flight.entry(node).or_default() += 1,
            Some((ids, error)) => self.on_unanswered(ids, &error, false, Instant::now()),
        }
    }

    /// Numbers a batch and puts it into its final form.
    fn seal(&mut self, batch: &mut Batch) -> Result<()> {
        let Some(mut builder) = batch.builder.take() else { return Ok(()) };
        let state = self.partitions.entry((batch.topic, batch.partition)).or_default();
        let number = state.next_sequence;
        if self.config.idempotent {
            state.producer = state.producer.or(self.producer_id);
            if let Some(producer) = state.producer {
                builder.set_producer(producer.id, producer.epoch, number);
                builder = builder.transactional(self.shared.transactions.is_some());
                batch.sequence = Some(number);
                state.next_sequence = add_sequence(number, batch.count);
            }
        }
        let before = builder.uncompressed_size_bytes();
        match builder.build() {
            Ok(bytes) => {
                batch.bytes = bytes.freeze();
                if self.config.codec != Codec::None {
                    self.shared.accumulator.lock().compressed(batch.topic, before, batch.bytes.len());
                }
                Ok(())
            }
            Err(error) => {
                // The number never left: the next batch takes it.
                state.next_sequence = number;
                Err(Error::Misuse {
                    what: format!("send records to {}-{}", batch.state.topic, batch.partition),
                    reason: error.to_string(),
                })
            }
        }
    }

    /// Begins to connect to a broker unless that is under way or has failed a moment ago.
    fn start_connecting(&mut self, node: i32, now: Instant, sooner: &mut impl FnMut(Instant)) {
        match self.connecting.get(&node) {
            Some(None) => return,
            Some(Some(at)) if *at > now => {
                sooner(*at);
                return;
            }
            _ => {}
        }
        self.connecting.insert(node, None);
        let client = self.shared.client.clone();
        self.tasks.spawn(async move {
            let result = client.connection(node, Lane::Produce).await.map(drop);
            Event::Connected { node, result }
        });
    }

    fn start_refresh(&mut self, now: Instant, sooner: &mut impl FnMut(Instant)) {
        if self.refreshing {
            return;
        }
        if self.refresh_at > now {
            sooner(self.refresh_at);
            return;
        }
        (self.refreshing, self.refresh_wanted) = (true, false);
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let names = shared.accumulator.lock().topic_names();
            let result = shared.client.refresh_metadata(Some(names.clone()), true).await.map(drop);
            for name in names {
                if let Some(topic) = shared.client.cached_topic(&name) {
                    shared.accumulator.lock().set_topic(&topic);
                }
            }
            Event::Refreshed(result)
        });
    }

    /// Adds the partitions that batches wait for.
    fn add_to_transaction(&mut self) {
        let Some(transactions) = &self.shared.transactions else { return };
        let partitions = transactions.take_wanted();
        if partitions.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let result = match &shared.transactions {
                Some(transactions) => transactions.add(shared.client.clone(), &partitions).await,
                None => Ok(()),
            };
            Event::Added { partitions, result }
        });
    }

    fn ask_producer_id(&mut self) {
        self.asking_id = true;
        let client = self.shared.client.clone();
        self.tasks.spawn(async move {
            let request = m::InitProducerIdRequest {
                transactional_id: None,
                transaction_timeout_ms: i32::MAX,
                ..Default::default()
            };
            let result = client.send_any(&request).await.and_then(|r| {
                check(r.error_code, None, || "get a producer id".to_owned())?;
                Ok(ProducerId { id: r.producer_id, epoch: r.producer_epoch })
            });
            Event::GotProducerId(result)
        });
    }
}
