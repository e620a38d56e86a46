//! The cluster's metadata on this node: the image that everybody reads, and the one way to change it.
//!
//! A change is decided on the current image, written to `__cluster_metadata-0`, made durable, applied to the image, and
//! carried out on the disk (logs created, configured, removed) before it is answered; changes follow one another.
//!
//! On a full disk a node cannot write that it is there. It serves what it has all the same: its registration is applied
//! to the image in memory and written as soon as there is space, before any other change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI16, Ordering};

use caudal_cluster::controller::Decision;
use caudal_cluster::image::ApplyError;
use caudal_cluster::{MetadataImage, MetadataLog, MetadataLogError, MetadataRecord};
use caudal_protocol::ErrorCode;
use caudal_protocol::records::control::VotersRecord;
use parking_lot::RwLock;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::quota::Quotas;
use crate::registration::Registrar;
use crate::replicas::Replicas;

/// A change that did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ChangeError {
    pub code: ErrorCode,
    /// For the operator who asked for it: the cause, and what to do.
    pub message: String,
}

impl ChangeError {
    fn storage(error: &impl std::fmt::Display) -> ChangeError {
        ChangeError { code: ErrorCode::KafkaStorageError, message: error.to_string() }
    }

    fn crashed(error: &tokio::task::JoinError) -> ChangeError {
        let message = format!("failed to change the metadata: {error}");
        ChangeError { code: ErrorCode::UnknownServerError, message }
    }
}

/// Why a node could not take its place in the metadata.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("failed to register the broker in the metadata log: {0}")]
    Log(#[from] MetadataLogError),
    #[error("failed to apply the broker's registration: {0}")]
    Apply(#[from] ApplyError),
    #[error("failed to register the broker in the metadata log: {0}")]
    Crashed(#[from] tokio::task::JoinError),
}

/// The metadata of a running broker.
#[derive(Debug)]
pub struct Metadata {
    shared: Arc<Shared>,
    log: Arc<Mutex<MetadataLog>>,
    kraft_version: Arc<AtomicI16>,
}

#[derive(Debug)]
struct Shared {
    image: RwLock<Arc<MetadataImage>>,
    replicas: Arc<Replicas>,
    quotas: Arc<Quotas>,
    registrar: Registrar,
    /// The registration is in the image but not in the log.
    unwritten: AtomicBool,
}

impl Metadata {
    pub fn new(log: MetadataLog, replicas: Arc<Replicas>, quotas: Arc<Quotas>, registrar: Registrar) -> Metadata {
        let image = RwLock::new(log.image().clone());
        let shared = Shared { image, replicas, quotas, registrar, unwritten: AtomicBool::new(true) };
        let kraft_version = Arc::new(AtomicI16::new(log.kraft_version()));
        Metadata { shared: Arc::new(shared), log: Arc::new(Mutex::new(log)), kraft_version }
    }

    /// The current image; stays as it is while it is held.
    pub fn image(&self) -> Arc<MetadataImage> {
        self.shared.image.read().clone()
    }

    /// Tells the current image for as long as somebody asks.
    pub fn images(&self) -> impl Fn() -> Arc<MetadataImage> + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.image.read().clone()
    }

    /// The `kraft.version` of the quorum; no record of the image tells it.
    pub fn kraft_version(&self) -> i16 {
        self.kraft_version.load(Ordering::Acquire)
    }

    /// Raises `kraft.version` to 1; `voters`: this node alone. Returns when it is durable.
    ///
    /// # Errors
    /// KAFKA_STORAGE_ERROR: it could not be written and did not happen.
    pub async fn raise_kraft_version(&self, voters: VotersRecord) -> Result<(), ChangeError> {
        let mut log = self.log.clone().lock_owned().await;
        let (shared, kraft_version) = (self.shared.clone(), self.kraft_version.clone());
        let done = tokio::task::spawn_blocking(move || {
            if log.kraft_version() == 0 {
                let after = log.raise_kraft_version(voters).map_err(|error| ChangeError::storage(&error))?;
                shared.publish(after);
                kraft_version.store(log.kraft_version(), Ordering::Release);
            }
            Ok(())
        });
        done.await.unwrap_or_else(|error| Err(ChangeError::crashed(&error)))
    }

    /// The feature levels of the cluster, for those who do not know the rest.
    pub fn features(&self) -> Features {
        Features(self.shared.clone())
    }

    /// Elects this node, registers it and makes it lead its partitions; in memory only where the disk is full.
    ///
    /// # Errors
    /// The metadata log cannot be written for another reason, or there is no cluster yet that could be served from it.
    pub async fn register(&self) -> Result<(), RegisterError> {
        let mut log = self.log.clone().lock_owned().await;
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || match shared.write_registration(&mut log) {
            Err(error) if error.is_disk_full() && !log.image().features().is_empty() => {
                tracing::error!(
                    "{error}. Until then the broker serves what it has and refuses changes of the metadata with \
                     KAFKA_STORAGE_ERROR"
                );
                shared.assume_registration(&log)?;
                Ok(())
            }
            written => Ok(written?),
        });
        done.await?
    }

    /// Writes what a full disk kept from being written. True when nothing is left to write.
    pub async fn catch_up(&self) -> bool {
        let log = self.log.clone().lock_owned().await;
        let (_log, caught_up) = self.write_unwritten(log).await;
        caught_up.is_ok()
    }

    async fn write_unwritten(
        &self,
        mut log: OwnedMutexGuard<MetadataLog>,
    ) -> (Option<OwnedMutexGuard<MetadataLog>>, Result<(), ChangeError>) {
        if !self.shared.unwritten.load(Ordering::Acquire) {
            return (Some(log), Ok(()));
        }
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || {
            let written = shared.write_registration(&mut log).map_err(|error| ChangeError::storage(&error));
            if written.is_ok() {
                tracing::info!("there is space for the metadata log again: the broker is registered in it");
            }
            (log, written)
        });
        match done.await {
            Ok((log, written)) => (Some(log), written),
            Err(error) => (None, Err(ChangeError::crashed(&error))),
        }
    }

    /// Changes the metadata: `decide` gets the current image and returns the records and the answer. No records: nothing
    /// happens. Returns when the change is durable and in effect.
    ///
    /// # Errors
    /// KAFKA_STORAGE_ERROR: the change could not be written and did not happen.
    pub async fn change<T>(&self, decide: impl FnOnce(&MetadataImage) -> Decision<T>) -> Result<T, ChangeError> {
        let log = self.log.clone().lock_owned().await;
        let (log, caught_up) = self.write_unwritten(log).await;
        let before = self.image();
        let Decision { mut records, response } = decide(&before);
        if records.is_empty() {
            return Ok(response);
        }
        self.shared.replicas.place(&before, &mut records);
        caught_up?;
        let Some(mut log) = log else { return Ok(response) };
        let shared = self.shared.clone();
        // Not cancelled when the connection that asked goes away: the records and their effect belong together.
        let done = tokio::task::spawn_blocking(move || {
            shared.commit(&mut log, &records)?;
            match log.snapshot_if_due() {
                Ok(Some(id)) => tracing::info!(?id, "wrote a snapshot of the metadata"),
                Ok(None) => {}
                Err(error) => tracing::warn!("failed to write a snapshot of the metadata: {error}"),
            }
            Ok(())
        });
        done.await.unwrap_or_else(|error| Err(ChangeError::crashed(&error)))?;
        Ok(response)
    }

    /// Does something with the partitions that is noted in the metadata before, while no other change comes in between. Blocks.
    /// Where it cannot be noted it is done all the same: the records are to be such as come later by themselves.
    pub fn noted<T>(
        &self,
        records: impl FnOnce(&MetadataImage) -> Vec<MetadataRecord>,
        work: impl FnOnce(&Replicas) -> T,
    ) -> T {
        let mut log = self.log.blocking_lock();
        let records = records(&self.image());
        if !records.is_empty() && !self.shared.unwritten.load(Ordering::Acquire) {
            // It is told why not.
            _ = self.shared.commit(&mut log, &records);
        }
        work(&self.shared.replicas)
    }

    /// Creates the logs that could not be created when their topics were, for want of space. Blocks.
    pub fn create_missing_logs(&self) {
        let _no_changes = self.log.blocking_lock();
        let image = self.image();
        if self.shared.replicas.is_missing_some(&image) {
            self.shared.replicas.follow(Some(&image), &image);
        }
    }
}

/// The feature levels of the current image.
#[derive(Debug, Clone)]
pub struct Features(Arc<Shared>);

impl Features {
    /// The level of a feature; 0 when it is off.
    pub fn level(&self, name: &str) -> i16 {
        self.0.image.read().features().get(name).copied().unwrap_or(0)
    }
}

impl Shared {
    fn write_registration(&self, log: &mut MetadataLog) -> Result<(), MetadataLogError> {
        if !log.leads() {
            log.begin_epoch()?;
        }
        if log.image().features().is_empty() {
            log.commit(&self.registrar.first_records())?;
        }
        let records = self.registrar.start_records(log.image());
        let after = log.commit(&records)?;
        self.publish(after);
        self.unwritten.store(false, Ordering::Release);
        Ok(())
    }

    /// As if it had been written. Whatever was loaded stays; nothing but this node's place is made up.
    fn assume_registration(&self, log: &MetadataLog) -> Result<(), ApplyError> {
        let mut image = MetadataImage::clone(log.image());
        for record in self.registrar.start_records(log.image()) {
            image.apply(&record)?;
        }
        self.publish(Arc::new(image));
        Ok(())
    }

    fn commit(&self, log: &mut MetadataLog, records: &[MetadataRecord]) -> Result<(), ChangeError> {
        let after = log.commit(records).map_err(|error| {
            if error.is_disk_full() {
                tracing::debug!("failed to change the metadata: {error}");
            } else {
                tracing::error!("failed to change the metadata: {error}");
            }
            ChangeError::storage(&error)
        })?;
        self.publish(after);
        Ok(())
    }

    fn publish(&self, after: Arc<MetadataImage>) {
        let before = self.image.read().clone();
        self.quotas.follow(&after);
        self.replicas.follow(Some(&before), &after);
        // Last: who hears of a new topic can write to it.
        *self.image.write() = after;
    }
}
