//! What a broker is started with.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use caudal_cluster::config::{Properties, StaticConfig, StaticConfigError};

use crate::group::GroupConfig;

/// A broker's settings, checked and typed. Names in the comments are Kafka's; the whole list is the table in
/// `caudal_cluster::config`.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `node.id`
    pub node_id: i32,
    /// `listeners`: where to accept connections.
    pub listen: Vec<SocketAddr>,
    /// `advertised.listeners`: what clients are told to connect to; where they connected to for `None`.
    pub advertised: Option<(String, u16)>,
    /// `log.dirs`
    pub log_dir: PathBuf,
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
    /// All broker configs that were set; topics inherit from them.
    pub properties: Arc<StaticConfig>,
}

/// What connections may cost.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// `socket.request.max.bytes`: largest frame.
    pub request_max_bytes: usize,
    /// `max.connections`
    pub max_connections: usize,
    /// `max.connections.per.ip`
    pub max_connections_per_ip: usize,
    /// `connections.max.idle.ms`
    pub max_idle: Duration,
    /// A frame that was begun must go on arriving within this time.
    pub max_stall: Duration,
    /// Requests of one connection that are worked on at a time; more wait in the socket.
    pub max_in_flight: usize,
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
const MAX_IN_FLIGHT: usize = 64;
const MAX_IN_FLIGHT_BYTES: usize = 8 * 1024 * 1024;
const DEFAULT_PORT: u16 = 9092;

impl BrokerConfig {
    /// Kafka's defaults, on 127.0.0.1:9092, formatting a new directory.
    pub fn new(log_dir: impl Into<PathBuf>) -> BrokerConfig {
        let defaults = StaticConfig::default();
        let listen = vec![SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT))];
        let mut config = BrokerConfig::with(defaults, listen, None, log_dir.into());
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
        let controller_names: Vec<&str> =
            values.value("controller.listener.names").unwrap_or("CONTROLLER").split(',').collect();
        let listeners = values.get("listeners").unwrap_or("PLAINTEXT://127.0.0.1:9092");
        let mut listen = Vec::new();
        for text in listeners.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let (name, host, port) = split_listener(text).map_err(|reason| refuse("listeners", listeners, reason))?;
            if controller_names.iter().any(|n| n.trim() == name) {
                continue;
            }
            check_protocol(&values, name).map_err(|reason| refuse("listeners", listeners, reason))?;
            listen.push(resolve(host, port).map_err(|reason| refuse("listeners", listeners, reason))?);
        }
        if listen.is_empty() {
            return Err(refuse("listeners", listeners, "it names no listener for clients".to_owned()));
        }
        let advertised = match values.get("advertised.listeners") {
            None => advertised_by(listeners, &controller_names),
            Some(all) => {
                let first = all.split(',').map(str::trim).find(|t| !t.is_empty()).unwrap_or_default();
                let (_, host, port) = split_listener(first).map_err(|r| refuse("advertised.listeners", all, r))?;
                Some((host.to_owned(), port))
            }
        };
        let dirs = values.get("log.dirs").or_else(|| values.get("log.dir")).unwrap_or("/tmp/kafka-logs").to_owned();
        if dirs.contains(',') {
            return Err(refuse("log.dirs", &dirs, "one directory is served, not several".to_owned()));
        }
        let (buffer, threads) = (values.int("log.cleaner.dedupe.buffer.size"), values.int("log.cleaner.threads"));
        if values.bool("log.cleaner.enable") && buffer / threads.max(1) <= 1 << 20 {
            let reason = format!("it must be more than 1048576 for each of the {threads} log.cleaner.threads");
            return Err(refuse("log.cleaner.dedupe.buffer.size", &buffer.to_string(), reason));
        }
        let node_id = i32::try_from(values.int("node.id")).unwrap_or(-1);
        let mut config = BrokerConfig::with(values, listen, advertised, PathBuf::from(dirs));
        config.node_id = if node_id < 0 { 1 } else { node_id };
        Ok((config, warnings))
    }

    fn with(
        values: StaticConfig,
        listen: Vec<SocketAddr>,
        advertised: Option<(String, u16)>,
        log_dir: PathBuf,
    ) -> BrokerConfig {
        let size = |name: &str| usize::try_from(values.int(name)).unwrap_or(usize::MAX);
        let millis = |name: &str| Duration::from_millis(u64::try_from(values.int(name)).unwrap_or(u64::MAX / 2));
        BrokerConfig {
            node_id: 1,
            listen,
            advertised,
            log_dir,
            format_if_empty: false,
            allow_insecure: values.bool("caudal.allow.insecure"),
            flush_before_ack: values.bool("caudal.flush.before.ack"),
            fetch_max_bytes: size("fetch.max.bytes"),
            fetch_sessions: size("max.incremental.fetch.session.cache.slots"),
            retention_check_interval: millis("log.retention.check.interval.ms"),
            limits: ConnectionLimits {
                request_max_bytes: size("socket.request.max.bytes"),
                max_connections: size("max.connections"),
                max_connections_per_ip: size("max.connections.per.ip"),
                max_idle: millis("connections.max.idle.ms"),
                max_stall: MAX_STALL,
                max_in_flight: MAX_IN_FLIGHT,
                max_in_flight_bytes: MAX_IN_FLIGHT_BYTES,
            },
            groups: group_config(&values),
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
    }
}

/// Without `advertised.listeners` clients are told what `listeners` says, unless that names no host or port to go to.
fn advertised_by(listeners: &str, controller_names: &[&str]) -> Option<(String, u16)> {
    let mut all = listeners.split(',').filter_map(|text| split_listener(text.trim()).ok());
    let (_, host, port) = all.find(|(name, ..)| !controller_names.iter().any(|n| n.trim() == *name))?;
    let names_none = host.is_empty() || port == 0 || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    (!names_none).then(|| (host.to_owned(), port))
}

/// `NAME://host:port`
fn split_listener(text: &str) -> Result<(&str, &str, u16), String> {
    let wanted = || format!("'{text}' is not NAME://host:port");
    let (name, address) = text.split_once("://").ok_or_else(wanted)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(wanted)?;
    let port = port.parse().map_err(|_| format!("'{port}' is not a port, 0 to 65535"))?;
    Ok((name, host.trim_start_matches('[').trim_end_matches(']'), port))
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
