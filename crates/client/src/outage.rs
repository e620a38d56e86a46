//! Says what is waited for while no broker can be reached: calls try again for as long as their timeouts allow, and a
//! program that is silent for minutes looks stuck.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Error;

/// The `tracing` target of what is said: a warning when an outage has lasted, an info when it is over.
pub const OUTAGE_TARGET: &str = "caudal::outage";

/// The `tracing` target of a producer whose records are not written although brokers answer: as [`OUTAGE_TARGET`].
pub const WAITING_TARGET: &str = "caudal::outage::records";

/// How long a broker may be away before anything is said: longer than a restart takes.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
struct Running {
    since: Instant,
    told: bool,
}

/// The failures to connect since the last success.
#[derive(Debug, Default)]
pub(crate) struct Outage(Mutex<Option<Running>>);

impl Outage {
    pub(crate) fn failed(&self, error: &Error) {
        let mut running = self.0.lock();
        let running = running.get_or_insert(Running { since: Instant::now(), told: false });
        if !running.told && running.since.elapsed() >= PATIENCE {
            running.told = true;
            tracing::warn!(target: OUTAGE_TARGET, "{error}");
        }
    }

    pub(crate) fn is_over(&self) {
        if self.0.lock().take().is_some_and(|running| running.told) {
            tracing::info!(target: OUTAGE_TARGET, "a broker answers again");
        }
    }
}
