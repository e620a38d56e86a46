//! Streaming queries with the semantics of Spark Structured Streaming on DataFusion's vectorised operators.
//!
//! Start reading at [`source`] and [`sink`], the two edges of a query, then [`query`], the loop between them.

pub mod error;
pub mod plan;
pub mod query;
pub mod sink;
pub mod source;
