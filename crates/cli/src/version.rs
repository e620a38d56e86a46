//! What `--version` prints.

/// The release of Apache Kafka whose tools these are, and ours.
pub const KAFKA: &str = concat!("4.3.1 (Caudal ", env!("CARGO_PKG_VERSION"), ")");
