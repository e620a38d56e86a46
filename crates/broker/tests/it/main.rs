//! The broker over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod admin;
mod administration;
mod bad_dirs;
mod compaction;
mod connection;
mod consumer_groups;
mod damage;
mod fetch;
mod full_disk;
mod fuzz;
mod hostile;
mod leftovers;
mod limits;
mod log_dirs;
mod metrics;
mod produce;
mod quotas;
mod raw;
mod restart;
mod settings;
mod transactions;
