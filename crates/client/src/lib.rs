//! An asynchronous Kafka client: [`Producer`], [`Consumer`], [`Admin`], and a [`Fetcher`] that hands out raw record
//! batches. Works against Apache Kafka 2.1 and later. Settings have Kafka's names ([`ClientConfig`]).
//!
//! ```no_run
//! # async fn example() -> caudal_client::Result<()> {
//! use std::time::Duration;
//! use caudal_client::{ClientConfig, Consumer, Producer, Record, Topics};
//!
//! let config = ClientConfig::new("127.0.0.1:9092").set("group.id", "readers")?.set("auto.offset.reset", "earliest")?;
//! let producer = Producer::connect(config.clone()).await?;
//! let delivery = producer.send(Record::new("greetings", Some(b"key"), Some(b"hello"))).await?;
//! println!("written at {:?}", delivery.await?.offset);
//! producer.close().await;
//!
//! let mut consumer = Consumer::connect(config).await?;
//! consumer.subscribe(Topics::names(["greetings"]))?;
//! for record in consumer.poll(Duration::from_secs(1)).await? {
//!     println!("{}: {:?}", record.offset, record.value);
//! }
//! consumer.close().await
//! # }
//! ```

pub mod admin;
mod client;
pub mod config;
mod connection;
pub mod consumer;
pub mod error;
mod fetch;
mod metadata;
mod offsets;
mod outage;
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
pub use outage::{OUTAGE_TARGET, SILENT, WAITING_TARGET};
pub use producer::{Delivery, Producer, Record, RecordMetadata};
pub use request::Request;
pub use subscription::{TopicPattern, Topics};
