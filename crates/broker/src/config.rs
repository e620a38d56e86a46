//! What a broker is started with.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use caudal_cluster::config::{Properties, StaticConfig, StaticConfigError, connection_overrides};

use crate::group::GroupConfig;
use crate::group::consumer::config::{check_consumer_groups, consumer_config};
use crate::transaction::TransactionConfig;

/// A broker's settings, checked and typed. Names in the comments are Kafka's; the whole list is the table in
/// `caudal_cluster::config`.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `node.id`
    pub node_id: i32,
    /// `listeners`: where to accept connections.
    pub listen: Vec<SocketAddr>,
    /// The names of the addresses in `listen`, in the same order; PLAINTEXT where there is none.
    pub listener_names: Vec<String>,
    /// `advertised.listeners`: what clients of a listener are told to connect to; where they connected to, when it is not
    /// among these.
    pub advertised: Vec<Advertised>,
    /// `caudal.http.listeners`: where metrics and health checks are served.
    pub http_listen: Vec<SocketAddr>,
    /// The hosts that it names.
    pub http_hosts: Vec<String>,
    /// Do without those where one of their addresses is taken.
    pub http_optional: bool,
    /// `metadata.log.dir`, or else the first of `log.dirs`: where the metadata log lies.
    pub log_dir: PathBuf,
    /// `log.dirs`: where partitions lie; empty: in `log_dir` alone.
    pub log_dirs: Vec<PathBuf>,
    /// Format a directory that has no `meta.properties` yet, as `caudal up` does; otherwise refuse it, as Kafka does.
    pub format_if_empty: bool,
    /// `caudal.allow.insecure`: bind other than loopback although nobody has to authenticate.
    pub allow_insecure: bool,
    /// `caudal.flush.before.ack`: no acknowledgement before fsync.
    pub flush_before_ack: bool,
    /// `fetch.max.bytes`
    pub fetch_max_bytes: usize,
    /// `max.incremental.fetch.session.cache.slots`
    pub fetch_sessions: usize,
    /// `log.retention.check.interval.ms`
    pub retention_check_interval: Duration,
    pub limits: ConnectionLimits,
    pub groups: GroupConfig,
    pub transactions: TransactionConfig,
    /// All broker configs that were set; topics inherit from them.
    pub properties: Arc<StaticConfig>,
}

/// The address of a listener as clients reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised {
    /// The listener's name.
    pub listener: String,
    pub host: String,
    pub port: u16,
}

/// What connections may cost.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// `socket.request.max.bytes`: largest frame.
    pub request_max_bytes: usize,
    /// `socket.send.buffer.bytes`, `socket.receive.buffer.bytes`; `None`: -1, what the system gives.
    pub send_buffer_bytes: Option<usize>,
    pub receive_buffer_bytes: Option<usize>,
    /// As many connections as the system has descriptors for; `max.connections` may be less.
    pub open_files: usize,
    /// `connections.max.idle.ms`
    pub max_idle: Duration,
    /// A frame that was begun must go on arriving within this time.
    pub max_stall: Duration,
    /// How long a large request may keep memory that others wait for, beside a second for each MiB of it that has arrived.
    pub max_slow: Duration,
    /// Requests of one connection that are worked on at a time; more wait in the socket.
    pub max_in_flight: usize,
    /// `queued.max.request.bytes`: bytes of large requests of all connections, from when they begin to arrive until they
    /// are answered.
    pub queued_max_bytes: usize,
    /// Bytes of requests that one connection may have in work; more wait in the socket.
    pub max_in_flight_bytes: usize,
}

/// Settings that cannot work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Value(#[from] Box<StaticConfigError>),
    #[error("failed to read {origin}: {key}={value} is not allowed: {reason}")]
    Setting { origin: String, key: &'static str, value: String, reason: String },
}

const MAX_STALL: Duration = Duration::from_secs(30);
const MAX_SLOW: Duration = Duration::from_secs(5);
const MAX_IN_FLIGHT: usize = 64;
const MAX_IN_FLIGHT_BYTES: usize = 8 * 1024 * 1024;
/// `queued.max.request.bytes` where it is not set: unlike Kafka's, the memory of a broker of ours is bounded.
const QUEUED_MAX_BYTES: usize = 256 * 1024 * 1024;
const DEFAULT_PORT: u16 = 9092;
pub(crate) const AUTHORIZER: &str = "authorizer.class.name";

impl BrokerConfig {
    /// Kafka's defaults, on 127.0.0.1:9092, formatting a new directory.
    pub fn new(log_dir: impl Into<PathBuf>) -> BrokerConfig {
        let defaults = StaticConfig::default();
        let listen = vec![SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT))];
        let mut config = BrokerConfig::with(defaults, listen, log_dir.into());
        config.node_id = 1;
        config.format_if_empty = true;
        config
    }

    /// Reads a broker's properties. The second value are warnings: unknown keys with the nearest known name.
    ///
    /// # Errors
    /// A value that is not allowed, or that cannot be served: where it stands, key, value, why.
    pub fn from_properties(properties: &Properties) -> Result<(BrokerConfig, Vec<String>), ConfigError> {
        let (values, warnings) = StaticConfig::from_properties(properties)?;
        let refuse = |key: &'static str, value: &str, reason: String| ConfigError::Setting {
            origin: properties.entry(key).map_or_else(|| "the default".to_owned(), |p| p.origin.clone()),
            key,
            value: value.to_owned(),
            reason,
        };
        check_plugins(properties, &values).map_err(|(key, value, reason)| refuse(key, &value, reason))?;
        let controller_names: Vec<&str> =
            values.value("controller.listener.names").unwrap_or("CONTROLLER").split(',').collect();
        let listeners = values.get("listeners").unwrap_or("PLAINTEXT://127.0.0.1:9092");
        let (mut listen, mut listener_names) = (Vec::new(), Vec::new());
        for text in listeners.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let (name, host, port) = split_listener(text).map_err(|reason| refuse("listeners", listeners, reason))?;
            if controller_names.iter().any(|n| n.trim() == name) {
                continue;
            }
            check_protocol(&values, name).map_err(|reason| refuse("listeners", listeners, reason))?;
            listen.push(resolve(host, port).map_err(|reason| refuse("listeners", listeners, reason))?);
            listener_names.push(name.to_owned());
        }
        if listen.is_empty() {
            return Err(refuse("listeners", listeners, "it names no listener for clients".to_owned()));
        }
        let advertised = match values.get("advertised.listeners") {
            None => advertised_by(listeners),
            Some(all) => advertised_as(all, &listener_names, &controller_names)
                .map_err(|reason| refuse("advertised.listeners", all, reason))?,
        };
        let dirs = values.get("log.dirs").or_else(|| values.get("log.dir")).unwrap_or("/tmp/kafka-logs").to_owned();
        let (log_dir, log_dirs) =
            directories(&dirs, values.get("metadata.log.dir")).map_err(|reason| refuse("log.dirs", &dirs, reason))?;
        let (buffer, threads) = (values.int("log.cleaner.dedupe.buffer.size"), values.int("log.cleaner.threads"));
        if values.bool("log.cleaner.enable") && buffer / threads.max(1) <= 1 << 20 {
            let reason = format!("it must be more than 1048576 for each of the {threads} log.cleaner.threads");
            return Err(refuse("log.cleaner.dedupe.buffer.size", &buffer.to_string(), reason));
        }
        let overrides = values.value("max.connections.per.ip.overrides").unwrap_or_default();
        connection_overrides(overrides)
            .map_err(|reason| refuse("max.connections.per.ip.overrides", overrides, reason))?;
        let (queued, largest) = (values.int("queued.max.request.bytes"), values.int("socket.request.max.bytes"));
        if (1..largest).contains(&queued) {
            let reason = format!("it must be at least socket.request.max.bytes={largest}");
            return Err(refuse("queued.max.request.bytes", &queued.to_string(), reason));
        }
        let node_id = i32::try_from(values.int("node.id")).ok().filter(|id| *id >= 0).unwrap_or(1);
        check_quorum(&values, node_id).map_err(|(key, reason)| refuse(key, values.get(key).unwrap_or(""), reason))?;
        check_bounds(&values).map_err(|(key, reason)| refuse(key, values.value(key).unwrap_or_default(), reason))?;
        check_consumer_groups(&values)
            .map_err(|(key, reason)| refuse(key, values.value(key).unwrap_or_default(), reason))?;
        let http = values.get("caudal.http.listeners").unwrap_or_default();
        let (http_listen, http_hosts) =
            http_addresses(http).map_err(|reason| refuse("caudal.http.listeners", http, reason))?;
        let mut config = BrokerConfig::with(values, listen, log_dir);
        config.http_listen = http_listen;
        config.http_hosts = http_hosts;
        config.log_dirs = log_dirs;
        config.node_id = node_id;
        config.groups.consumer.node_id = node_id;
        config.listener_names = listener_names;
        config.advertised = advertised;
        Ok((config, warnings))
    }

    /// Where partitions lie.
    pub fn partition_dirs(&self) -> &[PathBuf] {
        if self.log_dirs.is_empty() { std::slice::from_ref(&self.log_dir) } else { &self.log_dirs }
    }

    /// What clients of a listener are told to connect to.
    pub fn advertised_on(&self, listener: &str) -> Option<&Advertised> {
        self.advertised.iter().find(|advertised| advertised.listener == listener)
    }

    /// The name of an address in `listen`, by its place.
    pub fn listener_name(&self, at: usize) -> &str {
        self.listener_names.get(at).map_or("PLAINTEXT", String::as_str)
    }

    fn with(values: StaticConfig, listen: Vec<SocketAddr>, log_dir: PathBuf) -> BrokerConfig {
        let size = |name: &str| usize::try_from(values.int(name)).unwrap_or(usize::MAX);
        let millis = |name: &str| Duration::from_millis(u64::try_from(values.int(name)).unwrap_or(u64::MAX / 2));
        BrokerConfig {
            node_id: 1,
            listen,
            listener_names: Vec::new(),
            advertised: Vec::new(),
            http_listen: Vec::new(),
            http_hosts: Vec::new(),
            http_optional: false,
            log_dirs: Vec::new(),
            log_dir,
            format_if_empty: false,
            allow_insecure: values.bool("caudal.allow.insecure"),
            flush_before_ack: values.bool("caudal.flush.before.ack"),
            fetch_max_bytes: size("fetch.max.bytes"),
            fetch_sessions: size("max.incremental.fetch.session.cache.slots"),
            retention_check_interval: millis("log.retention.check.interval.ms"),
            limits: ConnectionLimits {
                request_max_bytes: size("socket.request.max.bytes"),
                send_buffer_bytes: usize::try_from(values.int("socket.send.buffer.bytes")).ok(),
                receive_buffer_bytes: usize::try_from(values.int("socket.receive.buffer.bytes")).ok(),
                open_files: usize::MAX,
                max_idle: millis("connections.max.idle.ms"),
                max_stall: MAX_STALL,
                max_slow: MAX_SLOW,
                queued_max_bytes: match values.int("queued.max.request.bytes") {
                    ..=0 => QUEUED_MAX_BYTES.max(size("socket.request.max.bytes")),
                    bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
                },
                max_in_flight: MAX_IN_FLIGHT,
                max_in_flight_bytes: MAX_IN_FLIGHT_BYTES,
            },
            groups: group_config(&values),
            transactions: TransactionConfig {
                max_timeout_ms: values.int("transaction.max.timeout.ms"),
                id_expiration_ms: values.int("transactional.id.expiration.ms"),
                abort_interval: millis("transaction.abort.timed.out.transaction.cleanup.interval.ms"),
                patience: millis("add.partitions.to.txn.retry.backoff.max.ms").min(millis("request.timeout.ms")),
                remove_interval: millis("transaction.remove.expired.transaction.cleanup.interval.ms"),
            },
            properties: Arc::new(values),
        }
    }
}

fn group_config(values: &StaticConfig) -> GroupConfig {
    let int = |name: &str| i32::try_from(values.int(name)).unwrap_or(i32::MAX);
    let size = |name: &str| usize::try_from(values.int(name)).unwrap_or(usize::MAX);
    GroupConfig {
        session_timeout_ms: (int("group.min.session.timeout.ms"), int("group.max.session.timeout.ms")),
        initial_rebalance_delay_ms: values.int("group.initial.rebalance.delay.ms"),
        max_size: size("group.max.size"),
        metadata_max_bytes: size("offset.metadata.max.bytes"),
        offsets_retention_ms: values.int("offsets.retention.minutes").saturating_mul(60_000),
        consumer: consumer_config(values),
        background_threads: size("group.coordinator.background.threads"),
    }
}

/// A broker of ours is its own controller, and no other's: told otherwise it would begin a cluster beside the one that is meant.
fn check_quorum(values: &StaticConfig, node_id: i32) -> Result<(), (&'static str, String)> {
    let list = |key: &str| -> Vec<String> {
        let text = values.get(key).unwrap_or_default();
        text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
    };
    let roles = list("process.roles");
    let has = |wanted: &str| roles.is_empty() || roles.iter().any(|role| role == wanted);
    if !has("broker") || !has("controller") {
        let reason = "this node is broker and controller in one; a node for one of the two is not served".to_owned();
        return Err(("process.roles", reason));
    }
    let voters = list("controller.quorum.voters");
    let is_me = |voter: &String| voter.split('@').next().and_then(|id| id.parse().ok()) == Some(node_id);
    if voters.len() > 1 || !voters.iter().all(is_me) {
        let reason = format!("a quorum of one is served, this node: {node_id}@HOST:PORT");
        return Err(("controller.quorum.voters", reason));
    }
    Ok(())
}

/// Values that Kafka does not start with although each is allowed by itself.
fn check_bounds(values: &StaticConfig) -> Result<(), (&'static str, String)> {
    // The first that is set counts.
    let retention = ["log.retention.ms", "log.retention.minutes", "log.retention.hours"];
    if let Some(key) = retention.into_iter().find(|key| values.get(key).is_some())
        && values.int(key) == 0
    {
        return Err((key, "it must be at least 1, or -1 for unlimited: no record would be kept".to_owned()));
    }
    let (min, max) = ("log.cleaner.min.compaction.lag.ms", "log.cleaner.max.compaction.lag.ms");
    if values.int(min) > values.int(max) {
        return Err((min, format!("it must be at most {max}, which is {}", values.int(max))));
    }
    let (count, overrides) = ("max.connections.per.ip", "max.connections.per.ip.overrides");
    if values.int(count) == 0 && values.value(overrides).is_none_or(|text| text.trim().is_empty()) {
        return Err((count, format!("it can be 0 only if {overrides} is set: nobody could connect")));
    }
    Ok(())
}

/// What decides over requests cannot be left out in silence.
fn check_plugins(properties: &Properties, values: &StaticConfig) -> Result<(), (&'static str, String, String)> {
    for key in ["create.topic.policy.class.name", "alter.config.policy.class.name"] {
        if let Some(class) = values.get(key).filter(|class| !class.is_empty()) {
            let reason = "policies are not served; everything would be allowed that it refuses".to_owned();
            return Err((key, class.to_owned(), reason));
        }
    }
    let key = AUTHORIZER;
    let Some(class) = values.get(key).filter(|class| !class.is_empty()) else { return Ok(()) };
    // There are no ACLs here, and none can be made: who lets everyone in without ACLs has what is served.
    let lets_all_in = properties.get("allow.everyone.if.no.acl.found").is_some_and(|v| v.trim() == "true");
    if lets_all_in && class.rsplit('.').next() == Some("StandardAuthorizer") {
        return Ok(());
    }
    let reason =
        "no authorizer is served: everyone would be allowed everything. Leave it out if that is meant".to_owned();
    Err((key, class.to_owned(), reason))
}

/// The directory of the metadata log, and all of `log.dirs`.
fn directories(dirs: &str, metadata: Option<&str>) -> Result<(PathBuf, Vec<PathBuf>), String> {
    let dirs: Vec<&str> = dirs.split(',').map(str::trim).filter(|dir| !dir.is_empty()).collect();
    let first = dirs.first().ok_or_else(|| "it names no directory".to_owned())?;
    for (at, dir) in dirs.iter().enumerate() {
        if dirs.iter().take(at).any(|other| is_same_dir(dir, other)) {
            return Err(format!("it names {dir} twice"));
        }
    }
    let metadata = match metadata.filter(|dir| !dir.is_empty()) {
        None => *first,
        Some(metadata) => dirs.iter().copied().find(|dir| is_same_dir(dir, metadata)).unwrap_or(metadata),
    };
    Ok((PathBuf::from(metadata), dirs.iter().map(PathBuf::from).collect()))
}

fn is_same_dir(a: &str, b: &str) -> bool {
    let whole = |dir: &str| {
        let path = std::fs::canonicalize(dir).or_else(|_| std::path::absolute(dir));
        path.unwrap_or_else(|_| PathBuf::from(dir)).components().collect::<PathBuf>()
    };
    whole(a) == whole(b)
}

/// Without `advertised.listeners` clients are told what `listeners` says, unless that names no host or port to go to.
fn advertised_by(listeners: &str) -> Vec<Advertised> {
    let all = listeners.split(',').filter_map(|text| split_listener(text.trim()).ok());
    all.filter(|(_, host, port)| is_reachable(host, *port)).map(Advertised::of).collect()
}

/// Reads `advertised.listeners`. Those of controllers are not for clients.
fn advertised_as(text: &str, listeners: &[String], controllers: &[&str]) -> Result<Vec<Advertised>, String> {
    let mut all = Vec::new();
    for text in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let (name, host, port) = split_listener(text)?;
        if controllers.iter().any(|controller| controller.trim() == name) {
            continue;
        }
        if !listeners.iter().any(|listener| listener == name) {
            return Err(format!("listener {name} is not in listeners, which has {}", listeners.join(", ")));
        }
        if !is_reachable(host, port) {
            return Err(format!("'{text}' names no host and port that a client could connect to"));
        }
        all.push(Advertised::of((name, host, port)));
    }
    if all.is_empty() {
        return Err("it names no listener for clients".to_owned());
    }
    Ok(all)
}

fn is_reachable(host: &str, port: u16) -> bool {
    !host.is_empty() && port != 0 && !host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

impl Advertised {
    fn of((listener, host, port): (&str, &str, u16)) -> Advertised {
        Advertised { listener: listener.to_owned(), host: host.to_owned(), port }
    }
}

/// `NAME://host:port`
fn split_listener(text: &str) -> Result<(&str, &str, u16), String> {
    let wanted = || format!("'{text}' is not NAME://host:port");
    let (name, address) = text.split_once("://").ok_or_else(wanted)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(wanted)?;
    let port = port.parse().map_err(|_| format!("'{port}' is not a port, 0 to 65535"))?;
    Ok((name, host.trim_start_matches('[').trim_end_matches(']'), port))
}

/// Reads `caudal.http.listeners`: `http://host:port`, as browsers have it, or in capitals, as Kafka's listeners. The addresses,
/// and the hosts as they stand there.
fn http_addresses(text: &str) -> Result<(Vec<SocketAddr>, Vec<String>), String> {
    let (mut all, mut hosts) = (Vec::new(), Vec::new());
    for text in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let (scheme, host, port) = split_listener(text.trim_end_matches('/'))?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(format!("'{scheme}' is not served, only http"));
        }
        all.push(resolve(host, port)?);
        hosts.push(host.to_owned());
    }
    Ok((all, hosts))
}

/// Only PLAINTEXT is served: a listener that promises more must not be opened without it.
fn check_protocol(values: &StaticConfig, name: &str) -> Result<(), String> {
    let map = values.value("listener.security.protocol.map").unwrap_or_default();
    let protocol = map.split(',').filter_map(|entry| entry.trim().split_once(':')).find(|(n, _)| *n == name);
    match protocol.map_or(name, |(_, protocol)| protocol) {
        "PLAINTEXT" => Ok(()),
        other => {
            Err(format!("listener {name} has security protocol {other}; this broker serves PLAINTEXT only so far"))
        }
    }
}

/// An empty host is all interfaces, as in Kafka.
fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    if host.is_empty() {
        return Ok(SocketAddr::from(([0, 0, 0, 0], port)));
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let mut found = (host, port).to_socket_addrs().map_err(|e| format!("host {host} is not known: {e}"))?;
    // Clients that are told a name try IPv4 first.
    let all: Vec<SocketAddr> = found.by_ref().collect();
    let best = all.iter().find(|a| a.is_ipv4()).or(all.first());
    best.copied().ok_or_else(|| format!("host {host} has no address"))
}
