//! What fetches need beside the logs: incremental sessions ([`session`]) and waiting for data ([`waiters`]).

pub mod session;
pub mod waiters;
