//! The clocks of the broker.

use std::sync::OnceLock;
use std::time::Instant;

/// Milliseconds since 1970; may leap.
pub use caudal_storage::wall_clock_ms as wall_ms;

/// Milliseconds since some moment of this process; never goes back.
pub fn monotonic_ms() -> i64 {
    static START: OnceLock<Instant> = OnceLock::new();
    i64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(i64::MAX)
}
