//! What the request handlers share.

use std::net::SocketAddr;
use std::sync::Arc;

use caudal_cluster::config::broker_config;
use caudal_cluster::controller::{Decision, Node, auto_create_request, create_topics};
use caudal_protocol::{ErrorCode, Uuid};

use crate::api::RequestHeader;
use crate::config::BrokerConfig;
use crate::fetch::session::Sessions;
use crate::group::service::GroupService;
use crate::metadata::Metadata;
use crate::metrics::Metrics;
use crate::moves::Moves;
use crate::producer_ids::ProducerIds;
use crate::quota::Quotas;
use crate::replicas::Replicas;
use crate::server::RequestMemory;
use crate::topics::Topics;
use crate::transaction::service::TransactionService;
use crate::unfolding::{Turn, Unfolding};
use crate::wanted_topics::WantedTopics;

/// The parts of a running broker that requests work on.
#[derive(Debug)]
pub struct Context {
    pub config: BrokerConfig,
    pub metrics: Metrics,
    /// Where the page of metrics and the health checks are.
    pub http_bound: Vec<SocketAddr>,
    /// Where the broker really listens (the configured port may be 0).
    pub bound: Vec<SocketAddr>,
    /// `meta.properties`: the id of the cluster.
    pub cluster_id: String,
    /// `meta.properties`: the id of the directory with the metadata log.
    pub directory_id: Uuid,
    /// What every node knows: topics, configs, brokers. Changed only through [`Metadata::change`].
    pub metadata: Metadata,
    /// The partitions on this broker.
    pub topics: Arc<Topics>,
    pub replicas: Arc<Replicas>,
    pub moves: Moves,
    pub groups: Arc<GroupService>,
    /// What clients may use, and have used.
    pub quotas: Arc<Quotas>,
    pub transactions: Arc<TransactionService>,
    pub fetch_sessions: Sessions,
    /// What large requests may take of the memory.
    pub request_memory: RequestMemory,
    pub producer_ids: ProducerIds,
    pub wanted_topics: WantedTopics,
    pub unfolding: Unfolding,
}

/// The name of who did not say who he is: everybody on a PLAINTEXT listener.
pub const ANONYMOUS: &str = "ANONYMOUS";

impl Context {
    /// Does work that may block off the threads that carry sockets. `turn`: of [`Context::unfolding`], if it may decompress
    /// batches.
    pub async fn blocking<T: Send + 'static>(&self, turn: Turn, work: impl FnOnce() -> T + Send + 'static) -> T {
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        match done.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is being shut down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    pub fn node_id(&self) -> i32 {
        self.config.node_id
    }

    /// The address that a client is told for this broker: what `advertised.listeners` has for the listener that it
    /// connected to, or else where it connected to.
    pub fn advertised(&self, header: &RequestHeader) -> (String, u16) {
        let local = header.connection.local;
        match self.config.advertised_on(self.listener(header)) {
            Some(advertised) => (advertised.host.clone(), advertised.port),
            None => (local.ip().to_canonical().to_string(), local.port()),
        }
    }

    /// The name of the listener that a client connected to.
    pub fn listener(&self, header: &RequestHeader) -> &str {
        let local = header.connection.local;
        let on_port = |bound: &SocketAddr| bound.port() == local.port();
        let ip = local.ip().to_canonical();
        let exact = self.bound.iter().position(|bound| on_port(bound) && bound.ip().to_canonical() == ip);
        // An address of all interfaces otherwise.
        let at = exact.or_else(|| self.bound.iter().position(|bound| on_port(bound) && bound.ip().is_unspecified()));
        self.config.listener_name(at.unwrap_or(0))
    }

    pub fn topic_name(&self, id: &Uuid) -> Option<String> {
        self.topics.view().by_id(id).map(|topic| topic.name.to_string())
    }

    pub fn topic_id(&self, name: &str) -> Option<Uuid> {
        self.topics.view().by_name(name).map(|topic| topic.id)
    }

    /// Whether there is such a partition, offline or not.
    pub fn has_partition(&self, topic: &str, partition: i32) -> bool {
        !matches!(self.topics.view().find(topic, partition), Err(ErrorCode::UnknownTopicOrPartition))
    }

    /// An id for an idempotent producer, never given out before.
    ///
    /// # Errors
    /// The metadata log cannot be written.
    pub async fn next_producer_id(&self) -> Result<i64, ErrorCode> {
        self.producer_ids.next(&self.metadata, self.node_id()).await.map_err(|error| {
            tracing::debug!("failed to claim producer ids: {error}");
            error.code
        })
    }

    /// Makes sure that one of the topics that coordinators keep their state in exists.
    pub async fn ensure_internal_topic(&self, name: &str) -> ErrorCode {
        if self.topics.view().by_name(name).is_some() {
            return ErrorCode::None;
        }
        let created = self.metadata.change(|image| {
            let unchanged = Decision { records: Vec::new(), response: ErrorCode::None };
            if image.topic(name).is_some() {
                return unchanged;
            }
            let Some(mut request) = auto_create_request(&self.config.properties, name) else {
                return unchanged;
            };
            // One broker is all there can be; Kafka's default of three replicas would never be met.
            request.topics.iter_mut().for_each(|topic| topic.replication_factor = 1);
            let Decision { records, response } = create_topics(image, &self.node(), &request);
            let error = response.topics.first().map_or(0, |topic| topic.error_code);
            Decision { records, response: ErrorCode::from_code(error) }
        });
        created.await.unwrap_or_else(|error| {
            tracing::debug!("failed to create {name}: {error}");
            error.code
        })
    }

    /// The cluster's `transaction.version`.
    pub fn transaction_version(&self) -> i16 {
        self.metadata.features().level("transaction.version")
    }

    /// A broker config of type boolean as it is in effect now.
    pub fn is_broker_flag_set(&self, name: &str) -> bool {
        self.broker_text(name) == "true"
    }

    /// A broker config that is a number as it is in effect now; 0 where it has none.
    pub fn broker_number(&self, name: &str) -> i64 {
        self.broker_text(name).parse().unwrap_or(0)
    }

    /// A broker config as it is in effect now; empty where it has no value.
    pub fn broker_text(&self, name: &str) -> String {
        let resolve = |def| self.config.properties.resolve_broker(&self.metadata.image(), self.node_id(), def).value;
        broker_config(name).and_then(resolve).unwrap_or_default()
    }

    /// What the controller's decisions look at beside the image.
    pub fn node(&self) -> Node<'_> {
        Node { node_id: self.node_id(), config: &self.config.properties }
    }
}
