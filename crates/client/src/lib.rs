//! An asynchronous Kafka client: producer, consumer, [`Admin`], and a [`Fetcher`] that hands out raw
//! record batches. Works against Apache Kafka 2.1 and later.

pub mod admin;
mod client;
pub mod config;
mod connection;
pub mod consumer;
pub mod error;
mod fetch;
mod metadata;
mod offsets;
pub mod producer;
mod request;
mod subscription;

pub use admin::Admin;
pub use client::Client;
pub use config::{ClientConfig, ConfigError};
pub use consumer::{Consumer, ConsumerRecord, RebalanceListener};
pub use error::{Error, Result};
pub use fetch::{Available, Chunk, ChunkStream, Fetcher, OffsetRange};
pub use metadata::{Node, PartitionMetadata, TopicMetadata};
pub use offsets::{Isolation, ListedOffset, ListedOffsets, OffsetSpec};
pub use producer::{Delivery, Producer, Record, RecordMetadata};
pub use request::Request;
pub use subscription::{TopicPattern, Topics};
