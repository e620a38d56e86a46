//! The controller's decisions: from an image and a request to records and a response. Nothing here is carried out; the
//! caller writes the records and answers when they are durable.

#[cfg(test)]
mod admin_tests;
mod configs;
mod elections;
mod features;
mod partitions;
mod placement;
mod quotas;
mod reassignments;
mod registration;
mod scram;
#[cfg(test)]
mod tests;
mod topics;

use caudal_protocol::{ErrorCode, Uuid};

pub use configs::{alter_configs, incremental_alter_configs};
pub use elections::elect_leaders;
pub use registration::{
    Endpoint, FEATURES, Registration, SupportedFeature, bootstrap_records, elected, leaderless, start_records,
    stop_records, unregister_records,
};
pub use topics::{auto_create_request, check_topic_name, create_topics, delete_topics};

pub use features::{KRAFT_VERSION, update_features};
pub use partitions::create_partitions;
pub use quotas::{CLIENT_ID, IP, USER, alter_client_quotas};
pub use reassignments::alter_partition_reassignments;
pub use scram::{ScramMechanism, alter_user_scram_credentials};

use crate::config::{StaticConfig, topic_config};
use crate::image::MetadataImage;
use crate::record::MetadataRecord;

/// How many producer ids a broker takes at a time.
pub const PRODUCER_ID_BLOCK_SIZE: i64 = 1000;

/// Why a part of a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: String,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into() }
    }

    /// An error with its code's own text.
    pub fn of(code: ErrorCode) -> ApiError {
        ApiError::new(code, code.message())
    }
}

/// Error code and message as a response carries them.
pub(crate) fn outcome(result: &Result<(), ApiError>) -> (i16, Option<String>) {
    match result {
        Ok(()) => (ErrorCode::None.code(), None),
        Err(error) => (error.code.code(), Some(error.message.clone())),
    }
}

/// What a decision may look at beside the image.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    pub node_id: i32,
    pub config: &'a StaticConfig,
}

impl Node<'_> {
    /// Tells the numbers that topics have which do not set them.
    fn topic_default(&self, image: &MetadataImage) -> impl Fn(&str) -> Option<i64> {
        move |name| {
            let resolved = self.config.resolve_topic(image, self.node_id, None, topic_config(name)?);
            resolved.value?.parse().ok()
        }
    }
}

/// A decision: what to write, and what to answer once it is durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision<R> {
    pub records: Vec<MetadataRecord>,
    pub response: R,
}

/// Takes the next block of producer ids for a broker: `first` and the number of ids (KIP-730).
pub fn allocate_producer_ids(image: &MetadataImage, broker_id: i32) -> Decision<(i64, i64)> {
    let first = image.producer_ids().map_or(0, |next| next.first_id);
    let record = caudal_protocol::records::metadata::ProducerIdsRecord {
        broker_id,
        broker_epoch: image.broker(broker_id).map_or(-1, |b| b.broker_epoch),
        next_producer_id: first + PRODUCER_ID_BLOCK_SIZE,
    };
    Decision { records: vec![record.into()], response: (first, PRODUCER_ID_BLOCK_SIZE) }
}

/// A topic id that no topic has; its text does not begin with a dash.
fn new_topic_id(image: &MetadataImage) -> Uuid {
    loop {
        let id = Uuid::random();
        if image.topic_by_id(&id).is_none() {
            return id;
        }
    }
}
