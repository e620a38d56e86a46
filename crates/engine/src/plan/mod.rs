//! Streaming plans: the nodes that mark them, the checks on them, how they are cut at stateful operators, and the
//! fragments between the cuts, which are planned once and executed per micro-batch.

pub mod batch_input;
pub mod check;
pub mod fragment;
pub mod guard;
pub mod leaf;
pub mod nodes;
pub mod recursion;
pub mod split;
pub mod timestamp;
pub mod watermark;

pub use nodes::{EventTimeWatermark, SourceFactory, StreamRelation};
