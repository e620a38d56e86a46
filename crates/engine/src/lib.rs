//! Streaming queries with the semantics of Spark Structured Streaming on DataFusion's vectorised operators.
//!
//! Start reading at [`source`] and [`sink`], the two edges of a query, then the query loop between them.

pub mod error;
pub mod sink;
pub mod source;
