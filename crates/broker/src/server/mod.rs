//! Listeners and connections.

mod connection;
mod frame;
mod listener;
mod memory;
mod outgoing;

pub use connection::{Aside, ConnectionInfo, Notes};
pub use frame::{FrameError, FrameReader};
pub use listener::{BindError, Listener, Serving, bind, bind_all};
pub use memory::RequestMemory;
pub use outgoing::{FileRange, Response};
