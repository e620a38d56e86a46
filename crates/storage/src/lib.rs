//! The log: segments and their indexes in Apache Kafka's on-disk format, producer state, leader epochs, group commit,
//! recovery, retention and compaction. No async, no network.
//!
//! Start at [`LogDir::open`]; a partition is a [`Log`], [`Flusher`] makes appends durable for all that wait at once, and
//! [`Cleaner`] compacts, and [`Disk`] is the seam at which tests cut the power ([`crash`]). Layouts: docs/formats/log-directory.md.

pub mod checkpoint;
mod cleaner;
pub mod config;
pub mod crash;
pub mod disk;
pub mod error;
mod flusher;
mod histogram;
mod index;
mod leader_epoch;
mod log;
mod log_dir;
mod producer_state;
mod scan;
mod segment;

pub use cleaner::{CleanError, Cleaned, Cleaner, CleanerConfig, CleanerStanding, clean_due};
pub use config::{ConfigError, LogConfig};
pub use disk::{Disk, DiskFile, RealDisk};
pub use error::{AppendError, FlushError, Offline, OpenError, ReadError, Unusable};
pub use flusher::{DurableCallback, Flusher};
pub use histogram::Histogram;
pub use leader_epoch::{UNDEFINED_EPOCH, UNDEFINED_OFFSET};
pub use log::{
    AbortedTransaction, AppendCost, AppendInfo, AppendOrigin, EndMarker, Log, LogRecovery, LogSlice, TimestampedOffset,
    TransactionMarker, wall_clock_ms,
};
pub use log_dir::{LogDir, LogDirConfig, RecoveryReport, TopicLog, is_set_aside};
pub use producer_state::{ActiveProducer, Verification};
pub use segment::{CorruptRange, MissingRange};
