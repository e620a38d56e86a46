//! What a log checks of a batch from a client, beyond the header's own sense: its size, its times and its records.
//!
//! Uncompressed records are walked, as Kafka's `LogValidator` does: lengths, counts, offset deltas, times, and keys where
//! the topic is compacted. Offset deltas that do not count up are refused, where Kafka keeps them for uncompressed
//! batches and hands readers offsets that repeat. Compressed records stay compressed, unless the topic is compacted and
//! needs their keys: decompressing costs more than all the rest of an append. That they begin as their codec has it is
//! checked; readers find out about nonsense behind that.

use caudal_protocol::batch::{BatchError, BatchHeader, HEADER_LEN, NO_TIMESTAMP, TimestampType};
use caudal_protocol::compression::{self, Codec};
use caudal_protocol::record::{self, RecordSketch};

use super::Log;
use crate::config::LogConfig;
use crate::error::AppendError;

/// Bounds the memory that checking the keys of a compressed batch may take.
pub(super) const DECOMPRESSED_LIMIT: usize = 256 << 20;
/// How many records at fault are told apart. A batch can hold a hundred thousand, and each is named in the answer.
const NAMED_MOST: usize = 100;

/// What the walk over a batch's records noticed.
struct Noticed {
    max_timestamp_ms: i64,
    out_of_range: Vec<i32>,
    out_of_range_ms: i64,
    without_key: Vec<i32>,
}

impl Log {
    /// Checks a client's batch. `batch` is exactly the batch, whose header and CRC were found good.
    ///
    /// Returns the time of its newest record when that is known and not what the header says.
    pub(super) fn check_client_batch(
        &self,
        header: &BatchHeader,
        batch: &[u8],
        config: &LogConfig,
        now_ms: i64,
    ) -> Result<Option<i64>, AppendError> {
        if batch.len() > config.max_message_bytes {
            return Err(AppendError::BatchTooLarge {
                log: self.topic_partition.clone(),
                size_bytes: batch.len(),
                max_bytes: config.max_message_bytes,
            });
        }
        if header.is_control() {
            return Err(self.invalid("clients are not allowed to write control records".to_owned()));
        }
        if header.timestamp_type() == TimestampType::LogAppendTime {
            return Err(AppendError::TimestampTypeFromClient { log: self.topic_partition.clone() });
        }
        let times = (config.timestamp_type == TimestampType::CreateTime).then(|| {
            now_ms.saturating_sub(config.timestamp_before_max_ms)..=now_ms.saturating_add(config.timestamp_after_max_ms)
        });
        let is_wrong = |timestamp_ms: i64| {
            timestamp_ms != NO_TIMESTAMP && times.as_ref().is_some_and(|times| !times.contains(&timestamp_ms))
        };
        let bad_time = |records: Vec<i32>, timestamp_ms: i64| AppendError::InvalidTimestamp {
            log: self.topic_partition.clone(),
            timestamp_ms,
            from_ms: times.as_ref().map_or(i64::MIN, |times| *times.start()),
            to_ms: times.as_ref().map_or(i64::MAX, |times| *times.end()),
            records,
        };
        let Some(noticed) = self.walk(header, batch, config, is_wrong)? else {
            let wrong = [header.base_timestamp_ms, header.max_timestamp_ms].into_iter().find(|&t| is_wrong(t));
            return wrong.map_or(Ok(None), |timestamp_ms| Err(bad_time(Vec::new(), timestamp_ms)));
        };
        if !noticed.out_of_range.is_empty() {
            return Err(bad_time(noticed.out_of_range, noticed.out_of_range_ms));
        }
        if !noticed.without_key.is_empty() {
            return Err(AppendError::KeyMissing { log: self.topic_partition.clone(), records: noticed.without_key });
        }
        Ok((times.is_some() && noticed.max_timestamp_ms != header.max_timestamp_ms).then_some(noticed.max_timestamp_ms))
    }

    /// `None` when the records stay compressed.
    fn walk(
        &self,
        header: &BatchHeader,
        batch: &[u8],
        config: &LogConfig,
        is_wrong: impl Fn(i64) -> bool,
    ) -> Result<Option<Noticed>, AppendError> {
        let codec = header
            .codec()
            .ok_or(BatchError::UnknownCodec { base_offset: header.base_offset, id: header.codec_id() })?;
        let section = batch.get(HEADER_LEN..).unwrap_or_default();
        let decompressed;
        let records = match codec {
            Codec::None => section,
            _ if !config.cleanup_compact => {
                compression::check_start(codec, section).map_err(|error| self.invalid(error.to_string()))?;
                return Ok(None);
            }
            _ => {
                decompressed = compression::decompress(codec, section, DECOMPRESSED_LIMIT)
                    .map_err(|error| self.invalid(error.to_string()))?;
                &decompressed
            }
        };
        let mut noticed = Noticed {
            max_timestamp_ms: NO_TIMESTAMP,
            out_of_range: Vec::new(),
            out_of_range_ms: NO_TIMESTAMP,
            without_key: Vec::new(),
        };
        let count = u32::try_from(header.record_count).unwrap_or(0);
        record::check_records(records, count, header.base_offset, header.base_timestamp_ms, |record| {
            noticed.max_timestamp_ms = noticed.max_timestamp_ms.max(record.timestamp_ms);
            if is_wrong(record.timestamp_ms) {
                if noticed.out_of_range.is_empty() {
                    noticed.out_of_range_ms = record.timestamp_ms;
                }
                note(&mut noticed.out_of_range, record);
            }
            if config.cleanup_compact && !record.has_key {
                note(&mut noticed.without_key, record);
            }
        })
        .map_err(|error| self.invalid(error.to_string()))?;
        Ok(Some(noticed))
    }

    pub(super) fn invalid(&self, reason: String) -> AppendError {
        AppendError::InvalidRecord { log: self.topic_partition.clone(), reason }
    }
}

#[cold]
fn note(records: &mut Vec<i32>, record: RecordSketch) {
    if records.len() < NAMED_MOST {
        records.extend(i32::try_from(record.index));
    }
}
