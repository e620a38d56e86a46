//! Stateful operators: they keep state between micro-batches, drop late rows and honour the output mode.

pub mod aggregate;
pub mod bucket;
pub mod column;
pub mod exchange;
pub mod groups;
mod normal;
mod persist;
mod primitive;

pub use aggregate::{Aggregation, AggregationBatch, AggregationMetrics};
