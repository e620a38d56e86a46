//! Blocking file work called from async code.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work` on this thread; on a runtime with several, tells it first that this one is going to block.
pub(crate) fn block<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
