//! The cluster's metadata on this node: the image that everybody reads, and the one way to change it.
//!
//! A change is decided on the current image, written to `__cluster_metadata-0`, made durable, applied to the image, and
//! carried out on the disk (logs created, configured, removed) before it is answered; changes follow one another.

use std::sync::Arc;

use caudal_cluster::controller::Decision;
use caudal_cluster::{MetadataImage, MetadataLog};
use caudal_protocol::ErrorCode;
use parking_lot::RwLock;
use tokio::sync::Mutex;

use crate::replicas::Replicas;

/// The metadata of a running broker.
#[derive(Debug)]
pub struct Metadata {
    image: Arc<RwLock<Arc<MetadataImage>>>,
    log: Arc<Mutex<MetadataLog>>,
    replicas: Arc<Replicas>,
}

impl Metadata {
    pub fn new(log: MetadataLog, replicas: Arc<Replicas>) -> Metadata {
        let image = log.image().clone();
        Metadata { image: Arc::new(RwLock::new(image)), log: Arc::new(Mutex::new(log)), replicas }
    }

    /// The current image; stays as it is while it is held.
    pub fn image(&self) -> Arc<MetadataImage> {
        self.image.read().clone()
    }

    /// Changes the metadata: `decide` gets the current image and returns the records and the answer. No records: nothing
    /// happens. Returns when the change is durable and in effect.
    ///
    /// # Errors
    /// KAFKA_STORAGE_ERROR: the change could not be written and did not happen.
    pub async fn change<T>(&self, decide: impl FnOnce(&MetadataImage) -> Decision<T>) -> Result<T, ErrorCode> {
        let mut log = self.log.clone().lock_owned().await;
        let before = self.image();
        let Decision { records, response } = decide(&before);
        if records.is_empty() {
            return Ok(response);
        }
        let current = self.image.clone();
        let replicas = self.replicas.clone();
        // Not cancelled when the connection that asked goes away: the records and their effect belong together.
        let done = tokio::task::spawn_blocking(move || {
            let after = log.commit(&records).map_err(|error| {
                tracing::error!("failed to change the metadata: {error}");
                ErrorCode::KafkaStorageError
            })?;
            *current.write() = after.clone();
            replicas.follow(Some(&before), &after);
            match log.snapshot_if_due() {
                Ok(Some(id)) => tracing::info!(?id, "wrote a snapshot of the metadata"),
                Ok(None) => {}
                Err(error) => tracing::warn!("failed to write a snapshot of the metadata: {error}"),
            }
            Ok(())
        });
        done.await.unwrap_or(Err(ErrorCode::UnknownServerError))?;
        Ok(response)
    }
}
