//! Blocking file work called from async code.

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::error::EngineError;
use crate::pool::join_error;

/// Runs `work` on this thread; on a runtime with several, tells it first that this one is going to block.
pub(crate) fn block<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Runs `work` on a thread that may block. It goes on when the caller gives up, its result is then dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.map_err(join_error)?
}
