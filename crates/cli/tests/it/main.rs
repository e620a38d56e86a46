//! The binary end to end: a broker of its own on a free port, and the tools and commands against it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod admin_tools;
mod broker;
mod commands;
mod console;
mod consumer_groups;
mod dump_log;
#[cfg(feature = "engine")]
mod football;
mod operations;
mod perf;
mod server;
#[cfg(feature = "engine")]
mod sql;
mod topics;
mod waiting;
