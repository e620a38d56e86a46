//! What a broker is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A broker's settings, checked and typed. Names in the comments are Kafka's.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `node.id`
    pub node_id: i32,
    /// `listeners`: where to accept connections.
    pub listen: Vec<SocketAddr>,
    /// `advertised.listeners`: what clients are told to connect to; the bound address where `None`.
    pub advertised: Option<(String, u16)>,
    /// `log.dirs`
    pub log_dir: PathBuf,
    /// `caudal.allow.insecure`: bind other than loopback although nobody has to authenticate.
    pub allow_insecure: bool,
    /// `caudal.flush.before.ack`: no acknowledgement before fsync.
    pub flush_before_ack: bool,
    pub limits: ConnectionLimits,
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

impl Default for ConnectionLimits {
    fn default() -> Self {
        ConnectionLimits {
            request_max_bytes: 100 * 1024 * 1024,
            max_connections: i32::MAX as usize,
            max_connections_per_ip: i32::MAX as usize,
            max_idle: Duration::from_secs(600),
            max_stall: Duration::from_secs(30),
            max_in_flight: 64,
            max_in_flight_bytes: 8 * 1024 * 1024,
        }
    }
}

impl BrokerConfig {
    /// Kafka's defaults, on 127.0.0.1:9092.
    pub fn new(log_dir: impl Into<PathBuf>) -> BrokerConfig {
        BrokerConfig {
            node_id: 1,
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 9092))],
            advertised: None,
            log_dir: log_dir.into(),
            allow_insecure: false,
            flush_before_ack: true,
            limits: ConnectionLimits::default(),
        }
    }
}
