//! One member of a classic group.

use bytes::Bytes;
use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;

use super::Waiter;

/// A member as its last JoinGroup described it. Times are milliseconds on the caller's monotonic clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout_ms: i32,
    pub rebalance_timeout_ms: i32,
    /// Assignors in order of preference, each with the member's subscription in that assignor's form.
    pub protocols: Vec<JoinGroupRequestProtocol>,
    pub assignment: Bytes,
    /// The member is gone unless it is heard of before this.
    pub session_deadline_ms: i64,
    pub waiting_join: Option<Waiter>,
    pub waiting_sync: Option<Waiter>,
    /// Has sent SyncGroup in this generation.
    pub synced: bool,
}

impl Member {
    /// The subscription under one assignor; empty if the member does not know it.
    pub fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols.iter().find(|p| p.name == protocol).map(|p| p.metadata.clone()).unwrap_or_default()
    }

    /// Notes a sign of life.
    pub fn touch(&mut self, now_ms: i64) {
        self.session_deadline_ms = now_ms + i64::from(self.session_timeout_ms);
    }
}
