//! Kafka's protocol: messages, persisted records, record batches. No I/O.
//!
//! [`messages`] are the requests and responses, [`records`] what is kept in internal topics; both are generated from
//! Apache Kafka's schemas (`cargo xtask protocol`), over the guarded primitives of [`wire`].

pub mod api;
pub mod batch;
pub mod compression;
pub mod error;
mod generated;
mod lz4;
#[cfg(test)]
mod message_tests;
pub mod record;
pub mod schema;
pub mod topic;
pub mod uuid;
pub mod wire;
mod zstd_frames;

pub use api::ApiKey;
pub use error::ErrorCode;
pub use generated::messages;
pub use topic::TopicPartition;
pub use uuid::Uuid;

/// Records with a schema of their own that Kafka persists.
pub mod records {
    pub use crate::generated::{control, group, metadata, producer, transaction};
}
