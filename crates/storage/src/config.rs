//! The topic configurations that a log obeys, under Kafka's names.

use std::collections::HashMap;

use caudal_protocol::batch::TimestampType;
use caudal_protocol::compression::Codec;

/// Settings of one log. Durations are in milliseconds, sizes in bytes, -1 stands for "no limit" where Kafka has it so.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    pub segment_bytes: u64,
    pub segment_ms: i64,
    pub segment_jitter_ms: i64,
    pub segment_index_bytes: u64,
    pub index_interval_bytes: u64,
    pub max_message_bytes: usize,
    pub retention_ms: i64,
    pub retention_bytes: i64,
    pub delete_retention_ms: i64,
    pub file_delete_delay_ms: i64,
    pub flush_messages: i64,
    pub flush_ms: i64,
    pub cleanup_delete: bool,
    pub cleanup_compact: bool,
    pub timestamp_type: TimestampType,
    pub timestamp_before_max_ms: i64,
    pub timestamp_after_max_ms: i64,
    pub min_compaction_lag_ms: i64,
    pub max_compaction_lag_ms: i64,
    pub min_cleanable_dirty_ratio: f64,
    /// What clients' batches are stored with (`compression.type`); `None`: as they come.
    pub compression: Option<Codec>,
    /// Sets the space of a new segment aside.
    pub preallocate: bool,
    pub gzip_level: i32,
    pub lz4_level: i32,
    pub zstd_level: i32,
}

/// zlib's own choice.
const GZIP_DEFAULT: i32 = -1;
/// Stands for the fast compressor, as in Kafka; every other level searches.
const LZ4_DEFAULT: i32 = 9;

impl Default for LogConfig {
    /// Kafka's defaults.
    fn default() -> LogConfig {
        const WEEK_MS: i64 = 7 * 24 * 60 * 60 * 1000;
        LogConfig {
            segment_bytes: 1 << 30,
            segment_ms: WEEK_MS,
            segment_jitter_ms: 0,
            segment_index_bytes: 10 << 20,
            index_interval_bytes: 4096,
            max_message_bytes: 1_048_588,
            retention_ms: WEEK_MS,
            retention_bytes: -1,
            delete_retention_ms: 24 * 60 * 60 * 1000,
            file_delete_delay_ms: 60_000,
            flush_messages: i64::MAX,
            flush_ms: i64::MAX,
            cleanup_delete: true,
            cleanup_compact: false,
            timestamp_type: TimestampType::CreateTime,
            timestamp_before_max_ms: i64::MAX,
            timestamp_after_max_ms: 60 * 60 * 1000,
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: i64::MAX,
            min_cleanable_dirty_ratio: 0.5,
            compression: None,
            preallocate: false,
            gzip_level: GZIP_DEFAULT,
            lz4_level: LZ4_DEFAULT,
            zstd_level: 3,
        }
    }
}

/// A topic configuration whose value is not one that Kafka takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to set {name}: '{value}' is not allowed, it takes {allowed}")]
pub struct ConfigError {
    pub name: String,
    pub value: String,
    pub allowed: &'static str,
}

impl LogConfig {
    /// These settings with the topic's own on top. Names that do not concern the log (`min.insync.replicas`, ...) are left
    /// to others.
    pub fn with_overrides(&self, overrides: &HashMap<String, String>) -> Result<LogConfig, ConfigError> {
        let mut config = self.clone();
        for (name, value) in overrides {
            config.set(name, value)?;
        }
        Ok(config)
    }

    /// After which time a new segment is begun: the active one is not compacted, and no record may wait for that longer than
    /// `max.compaction.lag.ms`.
    pub(crate) fn roll_ms(&self) -> i64 {
        if self.cleanup_compact { self.segment_ms.min(self.max_compaction_lag_ms) } else { self.segment_ms }
    }

    /// The level for a codec, `None` for its default.
    pub(crate) fn level(&self, codec: Codec) -> Option<i32> {
        match codec {
            Codec::Gzip => Some(self.gzip_level).filter(|&level| level != GZIP_DEFAULT),
            Codec::Lz4 => Some(self.lz4_level).filter(|&level| level != LZ4_DEFAULT),
            Codec::Zstd => Some(self.zstd_level),
            Codec::None | Codec::Snappy => None,
        }
    }

    /// Sets one topic configuration by its Kafka name. True when the log has such a setting.
    pub fn set(&mut self, name: &str, value: &str) -> Result<bool, ConfigError> {
        let refuse = |allowed| ConfigError { name: name.to_owned(), value: value.to_owned(), allowed };
        let at_least = |minimum: i64, allowed: &'static str| match value.trim().parse::<i64>() {
            Ok(number) if number >= minimum => Ok(number),
            _ => Err(refuse(allowed)),
        };
        let size = |minimum: i64, allowed: &'static str| at_least(minimum, allowed).map(i64::unsigned_abs);
        const POSITIVE: &str = "an integer of at least 1";
        const NATURAL: &str = "an integer of at least 0";
        match name {
            name if name.starts_with("compression.") => return self.set_compression(name, value),
            // Kafka 4 refuses less than 1 MiB for the public name and keeps the internal one for tests.
            "segment.bytes" => self.segment_bytes = size(1 << 20, "an integer of at least 1048576")?,
            "internal.segment.bytes" => self.segment_bytes = size(1, POSITIVE)?,
            "segment.ms" => self.segment_ms = at_least(1, POSITIVE)?,
            "segment.jitter.ms" => self.segment_jitter_ms = at_least(0, NATURAL)?,
            "segment.index.bytes" => self.segment_index_bytes = size(4, "an integer of at least 4")?,
            "index.interval.bytes" => self.index_interval_bytes = size(0, NATURAL)?,
            "max.message.bytes" => {
                self.max_message_bytes = usize::try_from(size(0, NATURAL)?).unwrap_or(usize::MAX);
            }
            "preallocate" => {
                self.preallocate = value.trim().parse().map_err(|_| refuse("true or false"))?;
            }
            "retention.ms" => self.retention_ms = at_least(-1, "-1 (no limit) or more")?,
            "retention.bytes" => self.retention_bytes = at_least(i64::MIN, "an integer, negative for no limit")?,
            "delete.retention.ms" => self.delete_retention_ms = at_least(0, NATURAL)?,
            "file.delete.delay.ms" => self.file_delete_delay_ms = at_least(0, NATURAL)?,
            "flush.messages" => self.flush_messages = at_least(1, POSITIVE)?,
            "flush.ms" => self.flush_ms = at_least(0, NATURAL)?,
            "message.timestamp.before.max.ms" => self.timestamp_before_max_ms = at_least(0, NATURAL)?,
            "message.timestamp.after.max.ms" => self.timestamp_after_max_ms = at_least(0, NATURAL)?,
            "min.compaction.lag.ms" => self.min_compaction_lag_ms = at_least(0, NATURAL)?,
            "max.compaction.lag.ms" => self.max_compaction_lag_ms = at_least(1, POSITIVE)?,
            "min.cleanable.dirty.ratio" => {
                const RATIO: &str = "a number between 0 and 1";
                let ratio = value.trim().parse::<f64>().map_err(|_| refuse(RATIO))?;
                if !(0.0..=1.0).contains(&ratio) {
                    return Err(refuse(RATIO));
                }
                self.min_cleanable_dirty_ratio = ratio;
            }
            "message.timestamp.type" => {
                self.timestamp_type = match value.trim() {
                    "CreateTime" => TimestampType::CreateTime,
                    "LogAppendTime" => TimestampType::LogAppendTime,
                    _ => return Err(refuse("CreateTime or LogAppendTime")),
                };
            }
            "cleanup.policy" => {
                let (mut delete, mut compact) = (false, false);
                for policy in value.split(',').map(str::trim).filter(|policy| !policy.is_empty()) {
                    match policy {
                        "delete" => delete = true,
                        "compact" => compact = true,
                        _ => return Err(refuse("delete, compact, or both separated by a comma")),
                    }
                }
                self.cleanup_delete = delete;
                self.cleanup_compact = compact;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_compression(&mut self, name: &str, value: &str) -> Result<bool, ConfigError> {
        let value = value.trim();
        let refuse = |allowed| ConfigError { name: name.to_owned(), value: value.to_owned(), allowed };
        let level = |from: i32, to: i32, allowed: &'static str| match value.parse::<i32>() {
            Ok(level) if (from..=to).contains(&level) => Ok(level),
            _ => Err(refuse(allowed)),
        };
        const CODECS: &str = "uncompressed, zstd, lz4, snappy, gzip or producer";
        match name {
            "compression.type" => {
                self.compression = match value {
                    "producer" => None,
                    "uncompressed" => Some(Codec::None),
                    "none" => return Err(refuse(CODECS)),
                    codec => Some(Codec::from_name(codec).ok_or_else(|| refuse(CODECS))?),
                };
            }
            "compression.gzip.level" if value == "-1" => self.gzip_level = GZIP_DEFAULT,
            "compression.gzip.level" => self.gzip_level = level(1, 9, "1 to 9, or -1")?,
            "compression.lz4.level" => self.lz4_level = level(1, 17, "1 to 17")?,
            "compression.zstd.level" => self.zstd_level = level(-131_072, 22, "-131072 to 22")?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_configurations_take_effect_and_bad_ones_are_named() {
        let overrides =
            [("segment.bytes", "1048576"), ("cleanup.policy", "compact, delete"), ("min.insync.replicas", "2")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = LogConfig::default().with_overrides(&HashMap::from(overrides)).unwrap();
        assert_eq!((config.segment_bytes, config.cleanup_compact, config.cleanup_delete), (1 << 20, true, true));
        for (name, value) in [
            ("segment.bytes", "1048575"),
            ("retention.ms", "-2"),
            ("cleanup.policy", "shrink"),
            ("message.timestamp.type", "createtime"),
            ("min.cleanable.dirty.ratio", "1.1"),
            ("flush.messages", "many"),
            ("compression.type", "none"),
            ("compression.gzip.level", "0"),
            ("compression.lz4.level", "18"),
        ] {
            let error = LogConfig::default().set(name, value).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }
}
