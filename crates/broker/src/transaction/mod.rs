//! Transactions (KIP-98, KIP-890): the coordinator of all transactional ids, kept in `__transaction_state`.
//!
//! [`machine`] decides, purely, what a request does to one transactional id; [`record`] is what is persisted; [`service`]
//! stores decisions, writes the markers that end a transaction into its partitions, and answers; [`participation`] is how
//! written partitions get into one; [`timers`] ends what takes too long and forgets what nobody uses.

pub mod machine;
pub mod participation;
pub mod record;
pub mod service;
#[cfg(test)]
mod tests;
pub mod timers;

use std::collections::BTreeSet;
use std::time::Duration;

use caudal_protocol::TopicPartition;

/// The topic that holds the state of transactions.
pub const STATE_TOPIC: &str = "__transaction_state";

/// No producer id, no epoch.
pub const NO_ID: i64 = -1;
pub const NO_EPOCH: i16 = -1;
/// From this `transaction.version` on each transaction has an epoch of its own.
pub const EPOCH_BUMPS_FROM: i16 = 2;

/// What a transactional id is doing. The numbers are persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Empty,
    Ongoing,
    PrepareCommit,
    PrepareAbort,
    CompleteCommit,
    CompleteAbort,
    Dead,
    PrepareEpochFence,
}

const STATES: [(State, &str); 8] = [
    (State::Empty, "Empty"),
    (State::Ongoing, "Ongoing"),
    (State::PrepareCommit, "PrepareCommit"),
    (State::PrepareAbort, "PrepareAbort"),
    (State::CompleteCommit, "CompleteCommit"),
    (State::CompleteAbort, "CompleteAbort"),
    (State::Dead, "Dead"),
    (State::PrepareEpochFence, "PrepareEpochFence"),
];

impl State {
    pub fn id(self) -> i8 {
        STATES.iter().position(|(state, _)| *state == self).and_then(|at| i8::try_from(at).ok()).unwrap_or(-1)
    }

    pub fn from_id(id: i8) -> Option<State> {
        STATES.get(usize::try_from(id).ok()?).map(|(state, _)| *state)
    }

    pub fn name(self) -> &'static str {
        STATES.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    pub fn from_name(name: &str) -> Option<State> {
        STATES.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }

    /// Whether the outcome is decided and its markers are being written.
    pub fn is_prepared(self) -> bool {
        matches!(self, State::PrepareCommit | State::PrepareAbort)
    }

    /// Whether there is nothing that could be lost.
    pub fn is_at_rest(self) -> bool {
        matches!(self, State::Empty | State::CompleteCommit | State::CompleteAbort)
    }
}

/// A transactional id as it is persisted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub producer_id: i64,
    /// The id before the last change.
    pub previous_producer_id: i64,
    /// The id that follows when the transaction is over, where the epochs of this one are used up.
    pub next_producer_id: i64,
    pub producer_epoch: i16,
    /// The epoch before, where the producer that has it may go on. Not persisted.
    pub last_producer_epoch: i16,
    pub timeout_ms: i32,
    pub state: State,
    pub partitions: BTreeSet<TopicPartition>,
    /// Wall clock, milliseconds since 1970; -1 without a transaction.
    pub start_ms: i64,
    /// Wall clock, milliseconds since 1970.
    pub last_update_ms: i64,
    /// The `transaction.version` that the client speaks.
    pub client_version: i16,
}

/// The broker's `transaction.*` properties that matter here.
#[derive(Debug, Clone)]
pub struct TransactionConfig {
    /// `transaction.max.timeout.ms`
    pub max_timeout_ms: i64,
    /// `transactional.id.expiration.ms`
    pub id_expiration_ms: i64,
    /// `transaction.abort.timed.out.transaction.cleanup.interval.ms`
    pub abort_interval: Duration,
    /// `add.partitions.to.txn.retry.backoff.max.ms`: how long a write waits for the transaction before to be over.
    pub patience: Duration,
    /// `transaction.remove.expired.transaction.cleanup.interval.ms`
    pub remove_interval: Duration,
}

impl Default for TransactionConfig {
    fn default() -> Self {
        TransactionConfig {
            max_timeout_ms: 900_000,
            id_expiration_ms: 604_800_000,
            abort_interval: Duration::from_secs(10),
            patience: Duration::from_millis(100),
            remove_interval: Duration::from_secs(3600),
        }
    }
}
