//! The cluster's metadata on this node: the image that everybody reads, and the one way to change it.
//!
//! A change is decided on the current image, written to `__cluster_metadata-0`, made durable, applied to the image, and
//! carried out on the disk (logs created, configured, removed) before it is answered; changes follow one another.

use std::sync::Arc;

use caudal_cluster::controller::Decision;
use caudal_cluster::{MetadataImage, MetadataRecord};
use caudal_protocol::ErrorCode;
use parking_lot::RwLock;
use tokio::sync::Mutex;

use crate::replicas::Replicas;

/// Writes records behind the ones that are there and makes them durable; the image that results.
pub trait MetadataStore: Send + std::fmt::Debug {
    /// # Errors
    /// A sentence for the log. Nothing may be written after that.
    fn commit(&mut self, records: Vec<MetadataRecord>) -> Result<Arc<MetadataImage>, String>;

    /// Writes a snapshot if enough has been written since the last one.
    fn maybe_snapshot(&mut self, image: &MetadataImage);
}

/// The metadata of a running broker.
#[derive(Debug)]
pub struct Metadata {
    image: Arc<RwLock<Arc<MetadataImage>>>,
    store: Arc<Mutex<Box<dyn MetadataStore>>>,
    replicas: Arc<Replicas>,
}

impl Metadata {
    pub fn new(image: Arc<MetadataImage>, store: Box<dyn MetadataStore>, replicas: Arc<Replicas>) -> Metadata {
        Metadata { image: Arc::new(RwLock::new(image)), store: Arc::new(Mutex::new(store)), replicas }
    }

    /// The current image; stays as it is while it is held.
    pub fn image(&self) -> Arc<MetadataImage> {
        self.image.read().clone()
    }

    /// Changes the metadata: `decide` gets the current image and returns the records and the answer.
    /// No records: nothing happens. Returns when the change is durable and in effect.
    ///
    /// # Errors
    /// KAFKA_STORAGE_ERROR: the change could not be written and did not happen.
    pub async fn change<T>(&self, decide: impl FnOnce(&MetadataImage) -> Decision<T>) -> Result<T, ErrorCode> {
        let mut store = self.store.clone().lock_owned().await;
        let before = self.image();
        let Decision { records, response } = decide(&before);
        if records.is_empty() {
            return Ok(response);
        }
        let current = self.image.clone();
        let replicas = self.replicas.clone();
        // Not cancelled when the connection that asked goes away: the records and their effect belong together.
        let done = tokio::task::spawn_blocking(move || {
            let image = store.commit(records).map_err(|error| {
                tracing::error!("failed to change the metadata: {error}");
                ErrorCode::KafkaStorageError
            })?;
            *current.write() = image.clone();
            replicas.follow(Some(&before), &image);
            store.maybe_snapshot(&image);
            Ok(())
        });
        done.await.unwrap_or(Err(ErrorCode::UnknownServerError))?;
        Ok(response)
    }
}
