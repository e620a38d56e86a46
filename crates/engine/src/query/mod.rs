//! Running streaming queries.

pub mod spec;

pub use spec::{StreamingQuerySpec, Trigger};
