//! Integration tests of the engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod file_sink;
mod file_source;
mod kafka_peer;
mod kafka_sink;
mod kafka_source;
mod runtime;
mod show;
mod sql;
mod sql_files;
mod sql_functions;
mod sql_large;
mod sql_streaming;
mod sql_tables;
