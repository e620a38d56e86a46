//! What the request handlers share.

use std::net::SocketAddr;

use crate::config::BrokerConfig;

/// The parts of a running broker that requests work on.
#[derive(Debug)]
pub struct Context {
    pub config: BrokerConfig,
    /// Where the broker really listens (the configured port may be 0).
    pub bound: Vec<SocketAddr>,
}
