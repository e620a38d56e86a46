//! Integration tests of the log.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are outside of test functions"
)]

mod absent;
mod append;
mod clean;
mod clean_crash;
mod clean_model;
mod clean_transactions;
mod compression;
mod crash;
mod damage;
mod group_commit;
mod in_flight;
mod kafka;
mod lookup;
mod missing;
mod records;
mod refusal;
mod retention;
mod support;
mod transactions;
