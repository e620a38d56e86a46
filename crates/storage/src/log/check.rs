//! What a log checks of a batch from a client, beyond the header's own sense: its size, its times and its records.
//!
//! The records are walked, as Kafka's `LogValidator` does: lengths, counts, offset deltas, times, and keys where the topic
//! is compacted. Compressed ones are decompressed for that, in bounded memory: readers must never meet a batch that they
//! cannot read or that counts wrong. They are stored as they came, unless `compression.type` wants another codec.
//! Offset deltas that do not count up are refused in uncompressed batches, where Kafka keeps them and hands readers offsets
//! that repeat; compressed batches are numbered anew, as Kafka does.

use caudal_protocol::batch::{self, BatchError, BatchHeader, HEADER_LEN, NO_TIMESTAMP, TimestampType};
use caudal_protocol::compression::{self, Codec, CompressionError};
use caudal_protocol::record::{self, RecordError, RecordSketch};
use parking_lot::Mutex;

use super::Log;
use crate::config::LogConfig;
use crate::error::AppendError;

/// Bounds the memory that checking a compressed batch may take.
pub(super) const DECOMPRESSED_LIMIT: usize = 256 << 20;
/// Buffers for what is decompressed, no longer than [`KEPT_BYTES`] and no more than [`KEPT_BUFFERS`]: the first touch of new
/// memory costs more than a fast codec.
static BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
const KEPT_BYTES: usize = 2 << 20;
const KEPT_BUFFERS: usize = 4;
/// How many records at fault are told apart. A batch can hold a hundred thousand, and each is named in the answer.
const NAMED_MOST: usize = 100;

/// What becomes of a batch that was found good.
pub(super) struct Accepted {
    /// The time of its newest record when that is not what the header says.
    pub max_timestamp_ms: Option<i64>,
    /// The batch to store in its place.
    pub rewritten: Option<Vec<u8>>,
}

/// What the walk over a batch's records noticed.
struct Noticed {
    max_timestamp_ms: i64,
    out_of_range: Vec<i32>,
    out_of_range_ms: i64,
    without_key: Vec<i32>,
}

/// A buffer that goes back to [`BUFFERS`].
struct Unfolded(Vec<u8>);

impl Drop for Unfolded {
    fn drop(&mut self) {
        if self.0.capacity() <= KEPT_BYTES {
            self.0.clear();
            let mut buffers = BUFFERS.lock();
            if buffers.len() < KEPT_BUFFERS {
                buffers.push(std::mem::take(&mut self.0));
            }
        }
    }
}

impl Log {
    /// Checks a client's batch. `batch` is exactly the batch, whose header and CRC were found good.
    pub(super) fn check_client_batch(
        &self,
        header: &BatchHeader,
        batch: &[u8],
        config: &LogConfig,
        now_ms: i64,
    ) -> Result<Accepted, AppendError> {
        self.check_size(batch, config)?;
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
        let (noticed, rewritten) = self.walk(header, batch, config, is_wrong)?;
        if !noticed.out_of_range.is_empty() {
            return Err(bad_time(noticed.out_of_range, noticed.out_of_range_ms));
        }
        if !noticed.without_key.is_empty() {
            return Err(AppendError::KeyMissing { log: self.topic_partition.clone(), records: noticed.without_key });
        }
        if let Some(rewritten) = &rewritten {
            self.check_size(rewritten, config)?;
        }
        let differs = times.is_some() && noticed.max_timestamp_ms != header.max_timestamp_ms;
        Ok(Accepted { max_timestamp_ms: differs.then_some(noticed.max_timestamp_ms), rewritten })
    }

    fn check_size(&self, batch: &[u8], config: &LogConfig) -> Result<(), AppendError> {
        if batch.len() <= config.max_message_bytes {
            return Ok(());
        }
        Err(AppendError::BatchTooLarge {
            log: self.topic_partition.clone(),
            size_bytes: batch.len(),
            max_bytes: config.max_message_bytes,
        })
    }

    /// The second value: the batch to store instead.
    fn walk(
        &self,
        header: &BatchHeader,
        batch: &[u8],
        config: &LogConfig,
        is_wrong: impl Fn(i64) -> bool,
    ) -> Result<(Noticed, Option<Vec<u8>>), AppendError> {
        let codec = header
            .codec()
            .ok_or(BatchError::UnknownCodec { base_offset: header.base_offset, id: header.codec_id() })?;
        let target = config.compression.unwrap_or(codec);
        let section = batch.get(HEADER_LEN..).unwrap_or_default();
        let unfolded;
        let records = match codec {
            Codec::None => section,
            codec => {
                unfolded = self.unfold(codec, section, target, config)?;
                &unfolded.0
            }
        };
        let noticed = match notice(header, records, config, &is_wrong) {
            Err(error) if error.is_misnumbered() && codec != Codec::None => {
                let renumbered = batch::renumber(header, records).map_err(|error| self.invalid(error.to_string()))?;
                let noticed = notice(header, &renumbered, config, &is_wrong);
                return self.rewritten(header, &renumbered, target, config, noticed);
            }
            noticed => noticed,
        };
        if target != codec {
            return self.rewritten(header, records, target, config, noticed);
        }
        noticed.map(|noticed| (noticed, None)).map_err(|error| self.invalid(error.to_string()))
    }

    fn rewritten(
        &self,
        header: &BatchHeader,
        records: &[u8],
        target: Codec,
        config: &LogConfig,
        noticed: Result<Noticed, RecordError>,
    ) -> Result<(Noticed, Option<Vec<u8>>), AppendError> {
        let noticed = noticed.map_err(|error| self.invalid(error.to_string()))?;
        let rewritten = batch::recompress(header, records, target, config.level(target));
        Ok((noticed, Some(rewritten.map_err(|error| self.invalid(error.to_string()))?)))
    }

    fn unfold(&self, codec: Codec, section: &[u8], target: Codec, config: &LogConfig) -> Result<Unfolded, AppendError> {
        compression::check_for_kafka(codec, section).map_err(|error| self.invalid(error.to_string()))?;
        // What is stored decompressed must not be larger than a batch may be.
        let most = if target == Codec::None { config.max_message_bytes } else { usize::MAX };
        let limit = DECOMPRESSED_LIMIT.min(most);
        // Who let it in went by this.
        let told = compression::decompresses_to_at_most(codec, section);
        let mut unfolded = Unfolded(BUFFERS.lock().pop().unwrap_or_default());
        let done = compression::decompress_into(codec, section, limit.min(told), &mut unfolded.0);
        done.map(|()| unfolded).map_err(|error| match error {
            CompressionError::LimitExceeded { .. } if told < limit => {
                self.invalid(format!("the {codec} data holds more than the {told} bytes that it says"))
            }
            CompressionError::LimitExceeded { .. } => {
                AppendError::UnfoldsTooLarge { log: self.topic_partition.clone(), limit_bytes: limit }
            }
            error => self.invalid(error.to_string()),
        })
    }

    pub(super) fn invalid(&self, reason: String) -> AppendError {
        AppendError::InvalidRecord { log: self.topic_partition.clone(), reason }
    }
}

fn notice(
    header: &BatchHeader,
    records: &[u8],
    config: &LogConfig,
    is_wrong: impl Fn(i64) -> bool,
) -> Result<Noticed, RecordError> {
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
    })?;
    Ok(noticed)
}

#[cold]
fn note(records: &mut Vec<i32>, record: RecordSketch) {
    if records.len() < NAMED_MOST {
        records.extend(i32::try_from(record.index));
    }
}
