//! Running streaming queries: [`QueryManager::start`] turns a [`StreamingQuerySpec`] into a running [`StreamingQuery`].
//! The loop itself is in `execution`.

mod durability;
mod execution;
mod handle;
mod manager;
pub mod progress;
pub mod spec;
mod start;

pub use handle::StreamingQuery;
pub use manager::QueryManager;
pub use progress::{StreamingQueryProgress, StreamingQueryStatus};
pub use spec::{StreamingQuerySpec, Trigger};
pub use start::start;
