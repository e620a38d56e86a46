//! Says what is waited for while no broker can be reached, or none that can answer: calls try again for as long as their
//! timeouts allow, and a program that is silent for minutes looks stuck.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Error;

/// The `tracing` target of what is said: a warning when an outage has lasted, an info when it is over.
pub const OUTAGE_TARGET: &str = "caudal::outage";

/// The `tracing` target of what does not go on although brokers answer: a partition without a leader, a group without a
/// coordinator, records that are refused. As [`OUTAGE_TARGET`], but the end of a call's wait is not said: its result is.
pub const WAITING_TARGET: &str = "caudal::outage::records";

/// Why a broker that accepts a connection and says nothing is not reachable.
pub const SILENT: &str = "it does not answer";

/// How long a broker may be away before anything is said: longer than a restart takes.
const PATIENCE: Duration = Duration::from_secs(2);

/// Failures since a moment, and whether they were told.
#[derive(Debug, Default)]
struct Failing(Option<Running>);

#[derive(Debug, Clone, Copy)]
struct Running {
    since: Instant,
    told: bool,
}

impl Failing {
    /// Notes a failure of something that was begun at `since`. Returns whether it is time to tell.
    fn failed(&mut self, since: Instant) -> bool {
        let running = self.0.get_or_insert(Running { since, told: false });
        let is_due = !running.told && running.since.elapsed() >= PATIENCE;
        running.told |= is_due;
        is_due
    }

    /// Returns whether the failures that end here were told.
    fn is_over(&mut self) -> bool {
        self.0.take().is_some_and(|running| running.told)
    }
}

/// The failures to connect since the last success.
#[derive(Debug, Default)]
pub(crate) struct Outage(Mutex<Failing>);

impl Outage {
    pub(crate) fn failed(&self, error: &Error) {
        self.failed_since(Instant::now(), error);
    }

    fn failed_since(&self, since: Instant, error: &Error) {
        if self.0.lock().failed(since) {
            tracing::warn!(target: OUTAGE_TARGET, "{error}");
        }
    }

    /// `address`: of the broker that answers, not always the one that did not.
    pub(crate) fn is_over(&self, address: &str) {
        if self.0.lock().is_over() {
            tracing::info!(target: OUTAGE_TARGET, "broker {address} answers");
        }
    }

    /// Awaits a connection that is being made: a broker that keeps silent fails only when the time for it has run out.
    pub(crate) async fn watch<T>(&self, address: &str, opening: impl Future<Output = T>) -> T {
        let since = Instant::now();
        let mut opening = std::pin::pin!(opening);
        if let Ok(opened) = tokio::time::timeout(PATIENCE, opening.as_mut()).await {
            return opened;
        }
        self.failed_since(since, &Error::Unreachable { address: address.to_owned(), reason: SILENT.to_owned() });
        opening.await
    }
}

/// A wait for what brokers that answer do not have yet: a leader, a coordinator.
#[derive(Debug, Default)]
pub(crate) struct Stall(Failing);

impl Stall {
    /// To be called as long as it lasts.
    pub(crate) fn failed(&mut self, error: &Error) {
        // That none answers is told by who connects.
        if !error.is_network() && self.0.failed(Instant::now()) {
            tracing::warn!(target: WAITING_TARGET, "{error}");
        }
    }

    pub(crate) fn lasts(&self) -> bool {
        self.0.0.is_some()
    }

    pub(crate) fn is_over(&mut self, message: &str) {
        if self.0.is_over() {
            tracing::info!(target: WAITING_TARGET, "{message}");
        }
    }
}
