//! Cluster metadata: the image, the controller's decisions, and the metadata log they live in.
//!
//! Everything that a cluster knows about itself is a record in `__cluster_metadata-0`; [`MetadataImage`] is what the
//! records add up to. The [`controller`] decides purely: from an image and a request to records and a response. No
//! async here and no network.

pub mod config;
pub mod controller;
pub mod format;
pub mod image;
pub mod log;
pub mod record;

pub use image::MetadataImage;
pub use log::{MetadataLog, MetadataLogError, SnapshotPolicy};
pub use record::MetadataRecord;
