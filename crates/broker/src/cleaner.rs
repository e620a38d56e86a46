//! The log cleaner's settings: what the broker's configs say now, those set while it runs included.

use std::time::Duration;

use caudal_cluster::MetadataImage;
use caudal_cluster::config::{StaticConfig, broker_config};
use caudal_storage::{Cleaner, CleanerConfig};

use crate::log_dirs::LogDirs;

/// `log.cleaner.*` as they are in effect on a node.
/// `directories`: among how many memory and bandwidth are divided.
pub fn cleaner_config(values: &StaticConfig, image: &MetadataImage, node_id: i32, directories: usize) -> CleanerConfig {
    let share = |whole: usize| whole / directories.max(1);
    let text = |name: &str| broker_config(name).and_then(|def| values.resolve_broker(image, node_id, def).value);
    let size = |name: &str| text(name).and_then(|value| value.parse::<usize>().ok()).unwrap_or(0);
    let number = |name: &str| text(name).and_then(|value| value.parse::<f64>().ok());
    CleanerConfig {
        threads: size("log.cleaner.threads").div_ceil(directories.max(1)),
        dedupe_buffer_bytes: share(size("log.cleaner.dedupe.buffer.size")),
        dedupe_load_factor: number("log.cleaner.io.buffer.load.factor").unwrap_or(0.9),
        io_buffer_bytes: share(size("log.cleaner.io.buffer.size")),
        io_max_bytes_per_second: number("log.cleaner.io.max.bytes.per.second").unwrap_or(f64::MAX)
            / directories.max(1) as f64,
        backoff: Duration::from_millis(size("log.cleaner.backoff.ms") as u64),
    }
}

/// Starts a cleaner for each log directory; none with `log.cleaner.enable=false`.
///
/// # Errors
/// No thread can be made.
pub fn start(
    log_dirs: &LogDirs,
    values: &StaticConfig,
    image: &MetadataImage,
    node_id: i32,
) -> std::io::Result<Vec<Cleaner>> {
    if !values.bool("log.cleaner.enable") {
        tracing::info!("the log cleaner is off (log.cleaner.enable=false): compacted topics grow");
        return Ok(Vec::new());
    }
    let config = cleaner_config(values, image, node_id, log_dirs.iter().count());
    log_dirs.iter().map(|dir| Cleaner::start(&dir.log_dir, config.clone())).collect()
}
