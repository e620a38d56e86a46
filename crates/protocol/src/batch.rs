//! Record batches (magic 2) without decoding their records: the header view, the checks that an append makes, the
//! fields a broker stamps in place, and the builder.
//!
//! ```text
//! offset  size  field
//!      0     8  baseOffset               not covered by the CRC
//!      8     4  batchLength              bytes after this field
//!     12     4  partitionLeaderEpoch     not covered by the CRC
//!     16     1  magic                    2
//!     17     4  crc                      CRC-32C of everything from `attributes` to the end
//!     21     2  attributes               0..=2 codec, 3 timestamp type, 4 transactional, 5 control, 6 delete horizon
//!     23     4  lastOffsetDelta
//!     27     8  baseTimestamp            of the first record (or the delete horizon)
//!     35     8  maxTimestamp
//!     43     8  producerId               -1 when not idempotent
//!     51     2  producerEpoch
//!     53     4  baseSequence
//!     57     4  recordCount
//!     61        records, compressed as a whole
//! ```
//! All integers are big endian. Source: "Record Batch" in Kafka's protocol guide, KIP-98.

mod rewrite;

use bytes::{Bytes, BytesMut};

use crate::compression::{self, Codec, CompressionError};
use crate::record::{self, BatchRecords, RecordError};

pub use rewrite::{recompress, renumber, rewrite};

/// Bytes of a batch before its records.
pub const HEADER_LEN: usize = 61;
/// Bytes that `batchLength` does not count: base offset and the length itself.
pub const LOG_OVERHEAD: usize = 12;
/// The only supported magic.
pub const MAGIC: i8 = 2;
/// `producerId`, `producerEpoch`, `baseSequence` and timestamps that are not set.
pub const NO_PRODUCER_ID: i64 = -1;
pub const NO_PRODUCER_EPOCH: i16 = -1;
pub const NO_SEQUENCE: i32 = -1;
pub const NO_TIMESTAMP: i64 = -1;

const EPOCH_AT: usize = 12;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;
const PRODUCER_ID_AT: usize = 43;

const CODEC_MASK: i16 = 7;
/// Bit 3 of the attributes.
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
const DELETE_HORIZON: i16 = 1 << 6;

/// What is wrong with the bytes of a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("failed to read a record batch: {have_bytes} bytes are there, {need_bytes} are needed")]
    Truncated { have_bytes: usize, need_bytes: usize },
    #[error("failed to read the record batch at offset {base_offset}: its length field is {batch_length}")]
    BadLength { base_offset: i64, batch_length: i32 },
    #[error("failed to read the record batch at offset {base_offset}: magic {magic} is not supported, only 2 is")]
    BadMagic { base_offset: i64, magic: i8 },
    #[error(
        "failed to read the record batch at offset {base_offset}: its CRC-32C is {stored:#010x} but the bytes give {computed:#010x}"
    )]
    BadCrc { base_offset: i64, stored: u32, computed: u32 },
    #[error("failed to read the record batch at offset {base_offset}: it lies where offset {expected} belongs")]
    Misplaced { base_offset: i64, expected: i64 },
    #[error("failed to accept the record batch at offset {base_offset}: compression codec {id} is unknown")]
    UnknownCodec { base_offset: i64, id: i16 },
    #[error(
        "failed to accept the record batch at offset {base_offset}: {record_count} records but a last offset delta of {last_offset_delta}"
    )]
    BadCount { base_offset: i64, record_count: i32, last_offset_delta: i32 },
    #[error("failed to accept the record batch at offset {base_offset}: {reason}")]
    Invalid { base_offset: i64, reason: &'static str },
}

/// The fields of a batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: i64,
    pub batch_length: i32,
    pub partition_leader_epoch: i32,
    pub magic: i8,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp_ms: i64,
    pub max_timestamp_ms: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

/// Whose time a batch carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    CreateTime,
    LogAppendTime,
}

#[inline]
fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    // The offsets are constants below HEADER_LEN, so the default never appears and the check folds away.
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).unwrap_or([0; N])
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`. Checks that the length and the magic make sense and nothing else; the
    /// rest of the batch need not be there.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(raw) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::Truncated { have_bytes: bytes.len(), need_bytes: HEADER_LEN });
        };
        let header = BatchHeader {
            base_offset: i64::from_be_bytes(field(raw, 0)),
            batch_length: i32::from_be_bytes(field(raw, 8)),
            partition_leader_epoch: i32::from_be_bytes(field(raw, EPOCH_AT)),
            magic: i8::from_be_bytes(field(raw, 16)),
            crc: u32::from_be_bytes(field(raw, CRC_AT)),
            attributes: i16::from_be_bytes(field(raw, ATTRIBUTES_AT)),
            last_offset_delta: i32::from_be_bytes(field(raw, 23)),
            base_timestamp_ms: i64::from_be_bytes(field(raw, 27)),
            max_timestamp_ms: i64::from_be_bytes(field(raw, MAX_TIMESTAMP_AT)),
            producer_id: i64::from_be_bytes(field(raw, 43)),
            producer_epoch: i16::from_be_bytes(field(raw, 51)),
            base_sequence: i32::from_be_bytes(field(raw, 53)),
            record_count: i32::from_be_bytes(field(raw, 57)),
        };
        if header.magic != MAGIC {
            return Err(BatchError::BadMagic { base_offset: header.base_offset, magic: header.magic });
        }
        if header.batch_length < (HEADER_LEN - LOG_OVERHEAD) as i32 {
            return Err(BatchError::BadLength { base_offset: header.base_offset, batch_length: header.batch_length });
        }
        Ok(header)
    }

    /// The bytes of the whole batch.
    #[inline]
    pub fn size_bytes(&self) -> usize {
        // `parse` refused lengths that do not cover the header.
        usize::try_from(self.batch_length).unwrap_or(0) + LOG_OVERHEAD
    }

    /// The offset of the last record, inclusive.
    #[inline]
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// The offset that follows the batch.
    #[inline]
    pub fn next_offset(&self) -> i64 {
        self.last_offset().saturating_add(1)
    }

    /// The sequence number of the last record; sequences wrap from `i32::MAX` to 0.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence == NO_SEQUENCE {
            return NO_SEQUENCE;
        }
        let sum = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        i32::try_from(sum & i64::from(i32::MAX)).unwrap_or(NO_SEQUENCE)
    }

    pub fn codec_id(&self) -> i16 {
        self.attributes & CODEC_MASK
    }

    /// The codec; `None` when the id is not one that Kafka defines.
    pub fn codec(&self) -> Option<Codec> {
        Codec::from_id(self.codec_id())
    }

    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }

    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// The time after which a compactor may drop the batch's tombstones; kept in the base timestamp.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp_ms)
    }

    #[inline]
    pub fn has_producer_id(&self) -> bool {
        self.producer_id > NO_PRODUCER_ID
    }
}

/// Computes the CRC-32C that the batch at the start of `bytes` should carry. `bytes` ends where the batch ends.
#[inline]
fn compute_crc(batch: &[u8]) -> u32 {
    crc32c::crc32c(batch.get(ATTRIBUTES_AT..).unwrap_or_default())
}

/// Checks that the batch at the start of `bytes` is whole and that its CRC fits, and returns its header.
pub fn check_crc(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(bytes)?;
    let size = header.size_bytes();
    let Some(batch) = bytes.get(..size) else {
        return Err(BatchError::Truncated { have_bytes: bytes.len(), need_bytes: size });
    };
    let computed = compute_crc(batch);
    if computed != header.crc {
        return Err(BatchError::BadCrc { base_offset: header.base_offset, stored: header.crc, computed });
    }
    Ok(header)
}

/// What a broker checks of the header before it appends the batch at the start of `bytes`: size, magic, CRC-32C, codec,
/// the record count against the last offset delta, timestamps and the producer's fields. The records are looked at by
/// [`record::check_records`].
pub fn validate(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = check_crc(bytes)?;
    let base_offset = header.base_offset;
    if header.codec().is_none() {
        return Err(BatchError::UnknownCodec { base_offset, id: header.codec_id() });
    }
    if header.record_count <= 0 || header.last_offset_delta != header.record_count - 1 {
        return Err(BatchError::BadCount {
            base_offset,
            record_count: header.record_count,
            last_offset_delta: header.last_offset_delta,
        });
    }
    let invalid = |reason| Err(BatchError::Invalid { base_offset, reason });
    // A record takes at least seven bytes; compressed ones may take a fraction of a byte.
    if header.codec_id() == 0 && header.size_bytes() - HEADER_LEN < 7 * header.record_count.unsigned_abs() as usize {
        return invalid("it counts more records than it has bytes for");
    }
    if header.max_timestamp_ms < NO_TIMESTAMP || header.base_timestamp_ms < NO_TIMESTAMP {
        return invalid("a timestamp is negative");
    }
    if header.producer_id < NO_PRODUCER_ID {
        return invalid("its producer id is below -1");
    }
    if header.has_producer_id() && !header.is_control() && header.base_sequence < 0 {
        return invalid("it has a producer id but no sequence number");
    }
    if header.has_producer_id() && header.producer_epoch < 0 {
        return invalid("it has a producer id but no producer epoch");
    }
    Ok(header)
}

/// Stamps the base offset and the leader epoch. The CRC does not cover them. `batch` starts at the batch.
#[inline]
pub fn stamp_offset(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    if let Some(target) = batch.first_chunk_mut::<8>() {
        *target = base_offset.to_be_bytes();
    }
    put(batch, EPOCH_AT, &leader_epoch.to_be_bytes());
}

/// Stamps the broker's time (`message.timestamp.type=LogAppendTime`) and recomputes the CRC. `head` holds at least the header,
/// `rest` what follows it.
pub fn stamp_log_append_time_parts(head: &mut [u8], rest: &[u8], now_ms: i64) {
    let attributes = head.get(ATTRIBUTES_AT..ATTRIBUTES_AT + 2).and_then(|b| b.try_into().ok());
    let attributes = i16::from_be_bytes(attributes.unwrap_or_default()) | LOG_APPEND_TIME;
    put(head, ATTRIBUTES_AT, &attributes.to_be_bytes());
    put(head, MAX_TIMESTAMP_AT, &now_ms.to_be_bytes());
    let crc = crc32c::crc32c_append(compute_crc(head), rest);
    put(head, CRC_AT, &crc.to_be_bytes());
}

/// Stamps the producer's fields and recomputes the CRC: a producer numbers a built batch anew after it took a new
/// producer id. `batch` is exactly the batch.
pub fn stamp_producer(batch: &mut [u8], producer_id: i64, producer_epoch: i16, base_sequence: i32) {
    put(batch, PRODUCER_ID_AT, &producer_id.to_be_bytes());
    put(batch, PRODUCER_ID_AT + 8, &producer_epoch.to_be_bytes());
    put(batch, PRODUCER_ID_AT + 10, &base_sequence.to_be_bytes());
    let crc = compute_crc(batch);
    put(batch, CRC_AT, &crc.to_be_bytes());
}

/// Stamps the time of the newest record where a producer gave another, and recomputes the CRC. `head` holds at least the
/// header, `rest` what follows it.
pub fn stamp_max_timestamp_parts(head: &mut [u8], rest: &[u8], max_timestamp_ms: i64) {
    put(head, MAX_TIMESTAMP_AT, &max_timestamp_ms.to_be_bytes());
    let crc = crc32c::crc32c_append(compute_crc(head), rest);
    put(head, CRC_AT, &crc.to_be_bytes());
}

#[inline]
fn put(batch: &mut [u8], at: usize, value: &[u8]) {
    if let Some(target) = batch.get_mut(at..at + value.len()) {
        target.copy_from_slice(value);
    }
}

/// A whole batch: its header and its bytes, shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub header: BatchHeader,
    /// Exactly the batch, header included.
    pub bytes: Bytes,
}

impl Batch {
    /// The batch at the start of `bytes`. The CRC is not checked here, see [`check_crc`].
    pub fn parse(bytes: &Bytes) -> Result<Batch, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let size = header.size_bytes();
        if bytes.len() < size {
            return Err(BatchError::Truncated { have_bytes: bytes.len(), need_bytes: size });
        }
        Ok(Batch { header, bytes: bytes.slice(..size) })
    }

    /// Whether the CRC fits.
    pub fn is_intact(&self) -> bool {
        compute_crc(&self.bytes) == self.header.crc
    }

    /// The records: borrowed as they are when not compressed, decompressed to at most `limit_bytes` otherwise.
    pub fn records(&self, limit_bytes: usize) -> Result<BatchRecords, RecordError> {
        let base_offset = self.header.base_offset;
        let failed = |reason: String| RecordError::Compression { base_offset, reason };
        let codec = self.header.codec().ok_or_else(|| failed("unknown codec".to_owned()))?;
        let section = self.bytes.slice(HEADER_LEN.min(self.bytes.len())..);
        let data = match codec {
            Codec::None => section,
            _ => compression::decompress(codec, &section, limit_bytes).map_err(|e| failed(e.to_string()))?.into(),
        };
        Ok(BatchRecords {
            data,
            base_offset,
            base_timestamp_ms: self.header.base_timestamp_ms,
            log_append_time_ms: match self.header.timestamp_type() {
                TimestampType::CreateTime => None,
                TimestampType::LogAppendTime => Some(self.header.max_timestamp_ms),
            },
            count: u32::try_from(self.header.record_count).unwrap_or(0),
        })
    }
}

/// Iterates over the whole batches in a buffer, such as the records field of a fetch response. A batch that is cut off
/// at the end is not an error there: the iteration ends before it, and [`Batches::remaining`] tells what is left.
#[derive(Clone, Debug)]
pub struct Batches {
    rest: Bytes,
    failed: bool,
}

impl Batches {
    pub fn new(bytes: Bytes) -> Batches {
        Batches { rest: bytes, failed: false }
    }

    /// What has not been iterated over yet.
    pub fn remaining(&self) -> &Bytes {
        &self.rest
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.rest.is_empty() {
            return None;
        }
        match Batch::parse(&self.rest) {
            Ok(batch) => {
                self.rest = self.rest.slice(batch.bytes.len()..);
                Some(Ok(batch))
            }
            Err(BatchError::Truncated { .. }) => None,
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

/// Builds one batch.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    codec: Codec,
    base_offset: i64,
    leader_epoch: i32,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    flags: i16,
    first_timestamp_ms: i64,
    max_timestamp_ms: i64,
    count: i32,
    /// The header's place, then the records uncompressed.
    buffer: Vec<u8>,
}

impl BatchBuilder {
    pub fn new(codec: Codec) -> BatchBuilder {
        BatchBuilder {
            codec,
            base_offset: 0,
            leader_epoch: -1,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            base_sequence: NO_SEQUENCE,
            flags: 0,
            first_timestamp_ms: NO_TIMESTAMP,
            max_timestamp_ms: NO_TIMESTAMP,
            count: 0,
            buffer: vec![0; HEADER_LEN],
        }
    }

    /// The offset of the first record. Brokers overwrite it, so producers leave it 0.
    pub fn base_offset(mut self, base_offset: i64) -> Self {
        self.base_offset = base_offset;
        self
    }

    pub fn leader_epoch(mut self, leader_epoch: i32) -> Self {
        self.leader_epoch = leader_epoch;
        self
    }

    pub fn producer(mut self, producer_id: i64, producer_epoch: i16, base_sequence: i32) -> Self {
        self.set_producer(producer_id, producer_epoch, base_sequence);
        self
    }

    /// As [`BatchBuilder::producer`], for a sequence that is known only when the batch is sent.
    pub fn set_producer(&mut self, producer_id: i64, producer_epoch: i16, base_sequence: i32) {
        self.producer_id = producer_id;
        self.producer_epoch = producer_epoch;
        self.base_sequence = base_sequence;
    }

    pub fn transactional(mut self, yes: bool) -> Self {
        self.flags = if yes { self.flags | TRANSACTIONAL } else { self.flags & !TRANSACTIONAL };
        self
    }

    pub fn control(mut self, yes: bool) -> Self {
        self.flags = if yes { self.flags | CONTROL } else { self.flags & !CONTROL };
        self
    }

    /// Marks the times as the broker's.
    pub fn log_append_time(mut self) -> Self {
        self.flags |= LOG_APPEND_TIME;
        self
    }

    /// Adds a record. Header names may repeat. `timestamp_ms` is -1 for none.
    pub fn append(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) {
        if self.count == 0 {
            self.first_timestamp_ms = timestamp_ms;
        }
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        let timestamp_delta = timestamp_ms.wrapping_sub(self.first_timestamp_ms);
        let body_len = record_body_len(timestamp_delta, self.count, key, value, headers);
        let out = &mut self.buffer;
        record::put_varint(out, len_i32(body_len));
        out.push(0);
        record::put_varlong(out, timestamp_delta);
        record::put_varint(out, self.count);
        put_nullable(out, key);
        put_nullable(out, value);
        record::put_varint(out, len_i32(headers.len()));
        for (name, value) in headers {
            put_nullable(out, Some(name));
            put_nullable(out, *value);
        }
        self.count += 1;
    }

    pub fn len(&self) -> usize {
        self.count.unsigned_abs() as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The size of the batch if it were not compressed.
    pub fn uncompressed_size_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The size to which a further record would bring the batch if it were not compressed.
    pub fn size_with(
        &self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) -> usize {
        let first = if self.count == 0 { timestamp_ms } else { self.first_timestamp_ms };
        let body = record_body_len(timestamp_ms.wrapping_sub(first), self.count, key, value, headers);
        self.buffer.len() + record::varlong_len(i64::from(len_i32(body))) + body
    }

    /// The finished batch, with its CRC.
    pub fn build(self) -> Result<BytesMut, CompressionError> {
        let mut batch = match self.codec {
            Codec::None => self.buffer,
            codec => {
                let mut out = Vec::with_capacity(self.buffer.len() / 2 + HEADER_LEN);
                out.resize(HEADER_LEN, 0);
                compression::compress(codec, self.buffer.get(HEADER_LEN..).unwrap_or_default(), &mut out)?;
                out
            }
        };
        let batch_length = len_i32(batch.len() - LOG_OVERHEAD);
        let attributes = self.codec.id() | self.flags;
        let mut header = Vec::with_capacity(HEADER_LEN);
        header.extend_from_slice(&self.base_offset.to_be_bytes());
        header.extend_from_slice(&batch_length.to_be_bytes());
        header.extend_from_slice(&self.leader_epoch.to_be_bytes());
        header.extend_from_slice(&MAGIC.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&attributes.to_be_bytes());
        header.extend_from_slice(&(self.count - 1).to_be_bytes());
        header.extend_from_slice(&self.first_timestamp_ms.to_be_bytes());
        header.extend_from_slice(&self.max_timestamp_ms.to_be_bytes());
        header.extend_from_slice(&self.producer_id.to_be_bytes());
        header.extend_from_slice(&self.producer_epoch.to_be_bytes());
        header.extend_from_slice(&self.base_sequence.to_be_bytes());
        header.extend_from_slice(&self.count.to_be_bytes());
        put(&mut batch, 0, &header);
        let crc = compute_crc(&batch);
        put(&mut batch, CRC_AT, &crc.to_be_bytes());
        // A Vec becomes Bytes without a copy, and unique Bytes become BytesMut without one.
        Ok(BytesMut::from(Bytes::from(batch)))
    }
}

fn len_i32(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX)
}

fn nullable_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| record::varlong_len(i64::from(len_i32(bytes.len()))) + bytes.len())
}

fn record_body_len(
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[(&[u8], Option<&[u8]>)],
) -> usize {
    let headers_len: usize = headers.iter().map(|(name, value)| nullable_len(Some(name)) + nullable_len(*value)).sum();
    1 + record::varlong_len(timestamp_delta)
        + record::varlong_len(i64::from(offset_delta))
        + nullable_len(key)
        + nullable_len(value)
        + record::varlong_len(i64::from(len_i32(headers.len())))
        + headers_len
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => record::put_varint(out, -1),
        Some(bytes) => {
            record::put_varint(out, len_i32(bytes.len()));
            out.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
