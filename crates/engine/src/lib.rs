//! Streaming queries with the semantics of Spark Structured Streaming on DataFusion's vectorised operators.
//!
//! Start reading at [`source`] and [`sink`], the two edges of a query, then [`query`], the loop between them.

mod blocking;
pub mod checkpoint;
pub mod error;
pub mod file_log;
pub mod format;
pub mod function;
pub mod operator;
pub mod options;
pub mod plan;
pub mod pool;
pub mod query;
pub mod sink;
pub mod source;
pub mod sql;
pub mod state;
