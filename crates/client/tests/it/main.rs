//! Integration tests of the client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cluster;
mod delivery;
mod fake;
mod heartbeats;
mod numbering;
mod offsets;
mod peer;
mod peer_consumer;
mod peer_consumer_protocol;
mod peer_producer;
