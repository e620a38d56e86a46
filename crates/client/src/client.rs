//! The connections to a cluster's brokers, its metadata, and typed requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use caudal_protocol::messages::api_versions_response::ApiVersionsResponse;
use caudal_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use caudal_protocol::messages::find_coordinator_response::Coordinator;
use caudal_protocol::messages::metadata_request::MetadataRequestTopic;
use caudal_protocol::messages::metadata_response::{MetadataResponse, MetadataResponseBroker};
use caudal_protocol::messages::{DescribeClusterRequest, FindCoordinatorRequest, MetadataRequest};
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};

use crate::config::ClientConfig;
use crate::connection::{ConnectOptions, Connection};
use crate::error::{Error, Result, check};
use crate::metadata::{Cluster, Node, TopicMetadata};
use crate::outage::{Outage, Stall};
use crate::request::Request;

/// The endpoint type of brokers, and that of controllers (KIP-919).
pub(crate) const BROKERS: i8 = 1;
pub(crate) const CONTROLLERS: i8 = 2;

/// No cap on the version of a request.
pub(crate) const ANY_VERSION: i16 = i16::MAX;

/// Which of the connections to a broker a request goes over. A broker may work on one request of a connection at a
/// time (Apache Kafka does), so that a long poll would hold up all that follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Requests that are answered at once.
    General,
    Produce,
    /// Fetches that ask for data which is there.
    Fetch,
    /// Fetches of large ranges, over several connections so that several cores receive.
    Read(usize),
    /// Fetches that wait for data.
    Wait,
    /// Joins and syncs, which wait for other members.
    Join,
    /// What else goes to a group's coordinator.
    Group,
}

/// A client of a cluster: connections, metadata, typed requests. Clones share everything.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    options: ConnectOptions,
    bootstrap: Vec<(String, u16)>,
    reconnect: Backoff,
    outage: Outage,
    cluster: RwLock<Cluster>,
    slots: Mutex<HashMap<(i32, Lane), Arc<Slot>>>,
    coordinators: Mutex<HashMap<(String, i8), i32>>,
    next: AtomicUsize,
    /// One metadata request at a time; the value is when the last one was answered.
    refreshing: tokio::sync::Mutex<()>,
}

/// The place of one connection.
#[derive(Debug, Default)]
struct Slot {
    current: Mutex<Option<Arc<Connection>>>,
    connecting: tokio::sync::Mutex<Failures>,
}

impl Slot {
    /// The connection, unless it is closed or leads to where the broker was before.
    fn open(&self, host: &str, port: u16) -> Option<Arc<Connection>> {
        let current = self.current.lock();
        current.as_ref().filter(|c| !c.is_closed() && c.leads_to(host, port)).cloned()
    }
}

#[derive(Debug, Default)]
struct Failures {
    count: u32,
    retry_at: Option<Instant>,
}

/// Exponential waits with jitter, as KIP-580 has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
}

impl Backoff {
    /// The wait after failure number `failures`, counted from 1.
    pub(crate) fn wait(&self, failures: u32) -> Duration {
        let exponential = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16));
        exponential.min(self.max.max(self.first)).mul_f64(rand::random_range(0.8..1.2))
    }
}

/// Counts the tries of one call until its deadline.
#[derive(Debug)]
pub(crate) struct Attempts {
    what: String,
    backoff: Backoff,
    retries: u32,
    timeout: Duration,
    deadline: Instant,
    failures: u32,
    stall: Stall,
}

impl Attempts {
    /// Only the deadline ends them, whatever `retries` says.
    pub(crate) fn unlimited(self) -> Attempts {
        Attempts { retries: u32::MAX, ..self }
    }

    /// Waits before the next try; fails when `error` does not call for one or when no time is left.
    pub(crate) async fn pause(&mut self, error: Error) -> Result<()> {
        if !error.is_retriable() {
            return Err(error);
        }
        self.wait(error).await
    }

    /// As [`Attempts::pause`], whatever the error is.
    pub(crate) async fn wait(&mut self, error: Error) -> Result<()> {
        self.failures += 1;
        let wait = self.backoff.wait(self.failures);
        if self.failures > self.retries || Instant::now() + wait >= self.deadline {
            return Err(self.gave_up(error));
        }
        tracing::debug!(%error, attempt = self.failures, "trying again to {}", self.what);
        self.stall.failed(&error);
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// What a call fails with that has no tries or no time left.
    pub(crate) fn gave_up(&self, cause: Error) -> Error {
        if self.failures > self.retries {
            return cause;
        }
        Error::Timeout {
            what: self.what.clone(),
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
            cause: Some(Box::new(cause)),
        }
    }
}

impl Client {
    /// Connects to the first broker of `bootstrap.servers` that answers. Fails at once when none does.
    pub async fn connect(config: ClientConfig) -> Result<Client> {
        let client = Client::new(config)?;
        client.refresh_metadata(Some(Vec::new()), false).await?;
        Ok(client)
    }

    fn new(config: ClientConfig) -> Result<Client> {
        let buffer = |name: &str| usize::try_from(config.int(name)).ok().filter(|bytes| *bytes > 0);
        let options = ConnectOptions {
            client_id: config.get("client.id").to_owned(),
            connect_timeout: config.duration("socket.connection.setup.timeout.ms"),
            request_timeout: config.duration("request.timeout.ms"),
            send_buffer_bytes: buffer("send.buffer.bytes"),
            receive_buffer_bytes: buffer("receive.buffer.bytes"),
        };
        let reconnect = Backoff {
            first: config.duration("reconnect.backoff.ms"),
            max: config.duration("reconnect.backoff.max.ms"),
        };
        let bootstrap = config.bootstrap_servers()?;
        Ok(Client {
            inner: Arc::new(Inner {
                config,
                options,
                bootstrap,
                reconnect,
                outage: Outage::default(),
                cluster: RwLock::default(),
                slots: Mutex::default(),
                coordinators: Mutex::default(),
                next: AtomicUsize::new(0),
                refreshing: tokio::sync::Mutex::default(),
            }),
        })
    }

    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// A client of the same cluster with other settings and connections of its own.
    pub fn with_config(&self, config: ClientConfig) -> Result<Client> {
        Client::new(config)
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.inner.options.request_timeout
    }

    /// The tries of a call that completes "failed to `what`", within `timeout`.
    pub(crate) fn attempts(&self, what: impl Into<String>, timeout: Duration) -> Attempts {
        let config = &self.inner.config;
        Attempts {
            what: what.into(),
            backoff: self.retry_backoff(),
            retries: u32::try_from(config.int("retries")).unwrap_or(u32::MAX),
            timeout,
            deadline: Instant::now() + timeout,
            failures: 0,
            stall: Stall::default(),
        }
    }

    /// The tries of an ordinary call: within `default.api.timeout.ms`.
    pub(crate) fn api_attempts(&self, what: impl Into<String>) -> Attempts {
        self.attempts(what, self.inner.config.duration("default.api.timeout.ms"))
    }

    pub(crate) fn retry_backoff(&self) -> Backoff {
        let config = &self.inner.config;
        Backoff { first: config.duration("retry.backoff.ms"), max: config.duration("retry.backoff.max.ms") }
    }

    /// Sends a request to a broker and awaits its answer, once. Error codes inside of the answer are the caller's.
    pub async fn send<R: Request>(&self, node_id: i32, request: &R) -> Result<R::Response> {
        self.send_on(node_id, Lane::General, request, ANY_VERSION, self.request_timeout()).await
    }

    /// As [`Client::send`], with the newest version that may be used: for fields that later versions dropped.
    pub async fn send_capped<R: Request>(&self, node_id: i32, request: &R, max_version: i16) -> Result<R::Response> {
        self.send_on(node_id, Lane::General, request, max_version, self.request_timeout()).await
    }

    pub(crate) async fn send_on<R: Request>(
        &self,
        node_id: i32,
        lane: Lane,
        request: &R,
        max_version: i16,
        timeout: Duration,
    ) -> Result<R::Response> {
        let connection = self.connection(node_id, lane).await?;
        let answer = connection.submit(request, max_version)?.answer(timeout).await;
        self.note(&connection, answer)
    }

    /// Sends to whichever broker answers first in turn; for requests that any broker can serve.
    pub async fn send_any<R: Request>(&self, request: &R) -> Result<R::Response> {
        let mut attempts = self.api_attempts(format!("send {}", R::NAME));
        loop {
            let connection = match self.any_connection().await {
                Ok(connection) => connection,
                Err(error) => {
                    attempts.pause(error).await?;
                    continue;
                }
            };
            let answer = connection.submit(request, ANY_VERSION)?.answer(self.request_timeout()).await;
            match self.note(&connection, answer) {
                Err(error) if error.is_retriable() => attempts.pause(error).await?,
                done => return done,
            }
        }
    }

    /// A broker that let a request time out is stuck: its connection is closed, so that the next request makes a new
    /// one, as Kafka's clients do.
    pub(crate) fn note<T>(&self, connection: &Connection, answer: Result<T>) -> Result<T> {
        if matches!(answer, Err(Error::RequestTimeout { .. })) {
            connection.close();
        }
        answer
    }

    /// The open connection to a broker, made if need be.
    pub(crate) async fn connection(&self, node_id: i32, lane: Lane) -> Result<Arc<Connection>> {
        let (host, port) = self.address_of(node_id)?;
        let slot = Arc::clone(self.inner.slots.lock().entry((node_id, lane)).or_default());
        if let Some(connection) = slot.open(&host, port) {
            return Ok(connection);
        }
        let mut failures = slot.connecting.lock().await;
        if let Some(connection) = slot.open(&host, port) {
            return Ok(connection);
        }
        if let Some(at) = failures.retry_at {
            tokio::time::sleep_until(at.into()).await;
        }
        let address = format!("{host}:{port}");
        let opening = Connection::open(&host, port, &self.inner.options);
        match self.inner.outage.watch(&address, opening).await {
            Ok(connection) => {
                *failures = Failures::default();
                self.inner.outage.is_over(&address);
                let connection = Arc::new(connection);
                *slot.current.lock() = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) => {
                failures.count += 1;
                self.inner.outage.failed(&error);
                failures.retry_at = Some(Instant::now() + self.inner.reconnect.wait(failures.count));
                Err(error)
            }
        }
    }

    /// The open connection to a broker, if there is one.
    pub(crate) fn open_connection(&self, node_id: i32, lane: Lane) -> Option<Arc<Connection>> {
        let (host, port) = self.address_of(node_id).ok()?;
        let slot = Arc::clone(self.inner.slots.lock().get(&(node_id, lane))?);
        slot.open(&host, port)
    }

    fn address_of(&self, node_id: i32) -> Result<(String, u16)> {
        // Bootstrap servers are nodes -1, -2, ... until the cluster has told their ids.
        if node_id < 0 {
            let at = usize::try_from(-1 - i64::from(node_id)).unwrap_or(usize::MAX);
            return self.inner.bootstrap.get(at).cloned().ok_or(Error::UnknownNode { node_id });
        }
        let cluster = self.inner.cluster.read();
        let node = cluster.nodes.get(&node_id).ok_or(Error::UnknownNode { node_id })?;
        Ok((node.host.clone(), node.port))
    }

    /// A connection to any broker: the known ones in turn, then the bootstrap servers.
    async fn any_connection(&self) -> Result<Arc<Connection>> {
        let mut ids: Vec<i32> = self.inner.cluster.read().nodes.keys().copied().collect();
        if !ids.is_empty() {
            let first = self.inner.next.load(Ordering::Relaxed) % ids.len();
            ids.rotate_left(first);
        }
        let bootstrap = i32::try_from(self.inner.bootstrap.len()).unwrap_or(i32::MAX);
        ids.extend((0..bootstrap).map(|i| -1 - i));
        let mut failure = Error::UnknownNode { node_id: -1 };
        for id in ids {
            match self.connection(id, Lane::General).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
            self.inner.next.fetch_add(1, Ordering::Relaxed);
        }
        Err(failure)
    }

    /// Asks the cluster once. `topics`: `None` all topics, else these. Returns the topics that could not be described.
    pub(crate) async fn refresh_metadata(
        &self,
        topics: Option<Vec<String>>,
        allow_auto_topic_creation: bool,
    ) -> Result<Vec<(String, i16)>> {
        let _one_at_a_time = self.inner.refreshing.lock().await;
        let connection = self.any_connection().await?;
        if self.inner.config.is_to_controllers() {
            let response = self.describe_controllers(&connection).await?;
            return Ok(self.inner.cluster.write().update(response, Instant::now()));
        }
        let topics = topics.map(|names| {
            let topic = |name| MetadataRequestTopic { name: Some(name), ..Default::default() };
            names.into_iter().map(topic).collect()
        });
        self.ask_metadata(&connection, topics, allow_auto_topic_creation).await
    }

    /// Asks the cluster once for topics by their ids.
    pub(crate) async fn refresh_topics(&self, ids: &[Uuid]) -> Result<()> {
        let _one_at_a_time = self.inner.refreshing.lock().await;
        let connection = self.any_connection().await?;
        let topic = |id: &Uuid| MetadataRequestTopic { topic_id: *id, name: None };
        self.ask_metadata(&connection, Some(ids.iter().map(topic).collect()), false).await.map(drop)
    }

    async fn ask_metadata(
        &self,
        connection: &Connection,
        topics: Option<Vec<MetadataRequestTopic>>,
        allow_auto_topic_creation: bool,
    ) -> Result<Vec<(String, i16)>> {
        let request = MetadataRequest { topics, allow_auto_topic_creation, ..Default::default() };
        // Version 4 is the first that can forbid the creation of topics; no broker since 0.11 lacks it.
        let answer = connection.submit(&request, ANY_VERSION)?.answer(self.request_timeout()).await;
        let response = self.note(connection, answer)?;
        check(response.error_code, None, || "read the cluster's metadata".to_owned())?;
        Ok(self.inner.cluster.write().update(response, Instant::now()))
    }

    /// The controllers as metadata, which they do not serve themselves (KIP-919).
    async fn describe_controllers(&self, connection: &Connection) -> Result<MetadataResponse> {
        let request = DescribeClusterRequest { endpoint_type: CONTROLLERS, ..Default::default() };
        let answer = connection.submit(&request, ANY_VERSION)?.answer(self.request_timeout()).await;
        let response = self.note(connection, answer)?;
        let what = || format!("describe the controllers; {} may be a broker's address", connection.address());
        check(response.error_code, response.error_message.as_deref(), what)?;
        let node = |c: DescribeClusterBroker| MetadataResponseBroker {
            node_id: c.broker_id,
            host: c.host,
            port: c.port,
            rack: c.rack,
        };
        Ok(MetadataResponse {
            brokers: response.brokers.into_iter().map(node).collect(),
            cluster_id: Some(response.cluster_id),
            controller_id: response.controller_id,
            ..Default::default()
        })
    }

    /// The topic's metadata: from the cache unless older than `metadata.max.age.ms`. An unknown topic is an error.
    pub async fn topic(&self, name: &str) -> Result<Arc<TopicMetadata>> {
        if let Some(topic) = self.cached_topic(name) {
            return Ok(topic);
        }
        let mut attempts = self.api_attempts(format!("describe topic '{name}'"));
        loop {
            match self.fresh_topic(name, false).await {
                Ok(topic) => return Ok(topic),
                Err(error) if error.is_network() => attempts.pause(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn cached_topic(&self, name: &str) -> Option<Arc<TopicMetadata>> {
        let cluster = self.inner.cluster.read();
        let (topic, at) = cluster.topic(name)?;
        (at.elapsed() < self.inner.config.duration("metadata.max.age.ms")).then(|| Arc::clone(topic))
    }

    /// Asks the cluster for one topic, once.
    pub(crate) async fn fresh_topic(&self, name: &str, create: bool) -> Result<Arc<TopicMetadata>> {
        let failed = self.refresh_metadata(Some(vec![name.to_owned()]), create).await?;
        if let Some((_, code)) = failed.first() {
            return Err(Error::of_topic(name, ErrorCode::from_code(*code)));
        }
        let cluster = self.inner.cluster.read();
        let topic = cluster.topic(name).map(|(topic, _)| Arc::clone(topic));
        topic.ok_or_else(|| Error::of_topic(name, ErrorCode::UnknownTopicOrPartition))
    }

    /// All topics of the cluster, freshly asked for, by name.
    pub async fn all_topics(&self) -> Result<Vec<Arc<TopicMetadata>>> {
        let mut attempts = self.api_attempts("list the topics");
        while let Err(error) = self.refresh_all_topics().await {
            attempts.pause(error).await?;
        }
        let mut topics: Vec<_> = self.inner.cluster.read().topics().cloned().collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    async fn refresh_all_topics(&self) -> Result<()> {
        let before = Instant::now();
        self.refresh_metadata(None, false).await?;
        // Whatever this answer did not mention is gone.
        let mut cluster = self.inner.cluster.write();
        let gone: Vec<String> = cluster
            .topics()
            .filter(|t| cluster.topic(&t.name).is_some_and(|(_, at)| at < before))
            .map(|t| t.name.clone())
            .collect();
        for name in gone {
            cluster.forget_topic(&name);
        }
        Ok(())
    }

    /// Makes the next use of the topic ask the cluster: after an error that says the cache is out of date.
    pub(crate) fn forget_topic(&self, name: &str) {
        self.inner.cluster.write().forget_topic(name);
    }

    /// The cached id of a topic; zero when not known.
    pub(crate) fn topic_id(&self, name: &str) -> Uuid {
        self.inner.cluster.read().topic(name).map(|(topic, _)| topic.id).unwrap_or_default()
    }

    /// The cached names of topics by their ids, which ascend; without those that are not known.
    pub(crate) fn topic_names(&self, ids: &[Uuid]) -> HashMap<Uuid, String> {
        let cluster = self.inner.cluster.read();
        cluster.topics().filter(|topic| ids.binary_search(&topic.id).is_ok()).map(|t| (t.id, t.name.clone())).collect()
    }

    /// The cached leader of a partition and its epoch.
    pub(crate) fn leader(&self, topic: &str, partition: i32) -> Result<(i32, i32)> {
        self.inner.cluster.read().leader(topic, partition)
    }

    pub(crate) fn set_leader(&self, topic: &str, partition: i32, leader: i32, epoch: i32) -> bool {
        self.inner.cluster.write().set_leader(topic, partition, leader, epoch)
    }

    /// Groups partitions by the broker that leads them, asking for the metadata of topics that are not known.
    pub(crate) async fn by_leader<'a>(
        &self,
        partitions: impl IntoIterator<Item = &'a TopicPartition>,
    ) -> Result<BTreeMap<i32, Vec<TopicPartition>>> {
        let mut groups: BTreeMap<i32, Vec<TopicPartition>> = BTreeMap::new();
        for tp in partitions {
            let topic = self.topic(&tp.topic).await?;
            if topic.partition(tp.partition).is_none() {
                self.forget_topic(&tp.topic);
                return Err(Error::no_partition(tp, topic.partitions.len()));
            }
            let leader = self.leader(&tp.topic, tp.partition).inspect_err(|_| self.forget_topic(&tp.topic))?;
            groups.entry(leader.0).or_default().push(tp.clone());
        }
        Ok(groups)
    }

    /// The brokers of the cluster, as last told.
    pub fn nodes(&self) -> Vec<Node> {
        self.inner.cluster.read().nodes.values().cloned().collect()
    }

    /// The id of the cluster, as last told.
    pub fn cluster_id(&self) -> Option<String> {
        self.inner.cluster.read().cluster_id.clone()
    }

    /// The broker that takes changes of the cluster. A KRaft cluster names one that forwards them.
    pub async fn controller(&self) -> Result<i32> {
        let known = self.inner.cluster.read().controller_id;
        if let Some(id) = known {
            return Ok(id);
        }
        self.refresh_metadata(Some(Vec::new()), false).await?;
        let cluster = self.inner.cluster.read();
        cluster.controller_id.or_else(|| cluster.nodes.keys().next().copied()).ok_or(Error::UnknownNode { node_id: -1 })
    }

    pub(crate) fn forget_controller(&self) {
        self.inner.cluster.write().controller_id = None;
    }

    /// The coordinator of a group (`key_type` 0) or of a transactional id (1); cached until
    /// [`Client::forget_coordinator`].
    pub(crate) async fn coordinator(&self, key: &str, key_type: i8) -> Result<i32> {
        if let Some(id) = self.inner.coordinators.lock().get(&(key.to_owned(), key_type)) {
            return Ok(*id);
        }
        let found = self.find_coordinator(key, key_type).await?;
        let what = || format!("find the coordinator of '{key}'");
        check(found.error_code, found.error_message.as_deref(), what)?;
        {
            let mut cluster = self.inner.cluster.write();
            let port = u16::try_from(found.port).unwrap_or(0);
            // It may have moved since the metadata was told.
            let rack = cluster.nodes.get(&found.node_id).and_then(|node| node.rack.clone());
            cluster.nodes.insert(found.node_id, Node { id: found.node_id, host: found.host.clone(), port, rack });
        }
        self.inner.coordinators.lock().insert((key.to_owned(), key_type), found.node_id);
        Ok(found.node_id)
    }

    pub(crate) fn forget_coordinator(&self, key: &str, key_type: i8) {
        self.inner.coordinators.lock().remove(&(key.to_owned(), key_type));
    }

    pub(crate) async fn find_coordinator(&self, key: &str, key_type: i8) -> Result<Coordinator> {
        let connection = self.any_connection().await?;
        let mut request = FindCoordinatorRequest { key_type, ..Default::default() };
        let batched = connection.version_of::<FindCoordinatorRequest>(ANY_VERSION)? >= 4;
        if batched {
            request.coordinator_keys.push(key.to_owned());
        } else {
            key.clone_into(&mut request.key);
        }
        let answer = connection.submit(&request, ANY_VERSION)?.answer(self.request_timeout()).await;
        let response = self.note(&connection, answer)?;
        if batched {
            let missing = || Error::BadAnswer {
                address: connection.address().to_owned(),
                request: "FindCoordinator",
                reason: "it names no coordinator".to_owned(),
            };
            return response.coordinators.into_iter().next().ok_or_else(missing);
        }
        Ok(Coordinator {
            key: key.to_owned(),
            node_id: response.node_id,
            host: response.host,
            port: response.port,
            error_code: response.error_code,
            error_message: response.error_message,
        })
    }

    /// What a broker said of itself when the connection was made: its APIs with versions, its features.
    pub async fn api_versions(&self, node_id: i32) -> Result<ApiVersionsResponse> {
        Ok(self.connection(node_id, Lane::General).await?.api_versions.clone())
    }

    /// The version of a request that this client would use with the broker; an error if it serves none that fits.
    pub async fn version_of<R: Request>(&self, node_id: i32) -> Result<i16> {
        self.connection(node_id, Lane::General).await?.version_of::<R>(ANY_VERSION)
    }
}
