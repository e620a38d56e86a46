//! Streaming plans: the nodes that mark them, and how they are cut at stateful operators.

pub mod nodes;

pub use nodes::{EventTimeWatermark, SourceFactory, StreamRelation};
