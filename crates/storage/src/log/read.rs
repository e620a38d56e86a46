//! Reading: which bytes of which file a fetch gets, and lookups by time.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use caudal_protocol::batch::Batch;

use super::{Log, LogEnd};
use crate::disk::DiskFile;
use crate::error::ReadError;
use crate::scan::HeaderScan;
use crate::segment::{Found, LookupError, Segment};

/// A range of a segment file: whole batches from the one that holds the offset asked for, the last one possibly cut
/// off where `max_bytes` ended, as in Kafka. Stays readable when the segment is deleted meanwhile.
#[derive(Clone, Debug)]
pub struct LogSlice {
    pub file: Arc<dyn DiskFile>,
    /// Where the range begins in the file.
    pub position: u64,
    pub len: usize,
    /// The base offset of the first batch; the offset asked for when the range is empty.
    pub base_offset: i64,
}

impl LogSlice {
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The offset behind the last whole batch of the range, or of a batch that begins in it; `None` when that cannot be told.
    pub(super) fn end_offset(&self) -> Option<i64> {
        let end = self.position + self.len as u64;
        let mut scan = HeaderScan::new(self.file.as_ref(), self.position, self.file.size().ok()?);
        let mut next = None;
        while scan.position() < end {
            next = Some(scan.next().ok()??.1.next_offset());
        }
        next
    }

    /// The descriptor for `sendfile`; `None` when there is no file behind it.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_fd()
    }

    /// Reads the range into memory.
    pub fn to_bytes(&self) -> io::Result<Bytes> {
        let mut buffer = BytesMut::zeroed(self.len);
        let read = self.file.read_at(&mut buffer, self.position)?;
        buffer.truncate(read);
        Ok(buffer.freeze())
    }
}

/// An offset with the time of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampedOffset {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub leader_epoch: Option<i32>,
}

/// Bounds the memory that a lookup in one compressed batch may take.
const DECOMPRESSED_LIMIT: usize = 256 << 20;

impl Log {
    /// The bytes from the batch that holds `offset` up to `upper_bound_offset` (exclusive; the log end if that is
    /// lower), at most `max_bytes` of them. When the first batch alone is larger: that batch with `min_one_batch`,
    /// nothing without. Reading at the bound yields an empty range.
    pub fn read(
        &self,
        offset: i64,
        max_bytes: usize,
        upper_bound_offset: i64,
        min_one_batch: bool,
    ) -> Result<LogSlice, ReadError> {
        self.health.check()?;
        let end = self.end();
        let start = self.log_start_offset();
        let out_of_range =
            || ReadError::OffsetOutOfRange { log: self.topic_partition.clone(), offset, start, end: end.offset };
        if offset < start || offset > end.offset {
            return Err(out_of_range());
        }
        let segments = self.snapshot();
        let first = segments.partition_point(|segment| segment.base_offset <= offset).checked_sub(1);
        let first = first.ok_or_else(out_of_range)?;
        if offset < upper_bound_offset.min(end.offset) {
            for segment in segments.get(first..).unwrap_or_default() {
                let limit = self.readable_len(segment, upper_bound_offset, end)?;
                let found = segment.find(offset, limit).map_err(|error| self.lookup_failed(segment, offset, error))?;
                if let Some(found) = found {
                    let limit = self.end_of_file(segment, offset, &found, limit)?;
                    return Ok(slice(segment, found, limit, max_bytes, min_one_batch));
                }
                if limit < segment.size() {
                    break;
                }
            }
        }
        let file = segments.get(first).map(|segment| Arc::clone(&segment.file)).ok_or_else(out_of_range)?;
        Ok(LogSlice { file, position: 0, len: 0, base_offset: offset })
    }

    /// `limit`, or where the file ends if somebody has cut it: what is left is served, what is gone is told.
    fn end_of_file(&self, segment: &Segment, offset: i64, found: &Found, limit: u64) -> Result<u64, ReadError> {
        let size = segment.file.size().map_err(|e| self.lookup_failed(segment, offset, LookupError::Io(e)))?;
        if size < limit && size < found.position + found.header.size_bytes() as u64 {
            return Err(self.lookup_failed(segment, offset, LookupError::Corrupt { position: found.position }));
        }
        Ok(limit.min(size))
    }

    /// How many bytes of a segment lie below `bound` (exclusive).
    fn readable_len(&self, segment: &Segment, bound: i64, end: LogEnd) -> Result<u64, ReadError> {
        let at = |end: LogEnd| match segment.base_offset.cmp(&end.segment_base) {
            std::cmp::Ordering::Less => segment.size(),
            std::cmp::Ordering::Equal => end.position,
            std::cmp::Ordering::Greater => 0,
        };
        if bound >= end.offset {
            return Ok(at(end));
        }
        let durable = *self.durable.lock();
        if bound == durable.offset {
            return Ok(at(durable));
        }
        let limit = at(end);
        if bound <= segment.base_offset {
            return Ok(0);
        }
        let found = segment.find(bound, limit).map_err(|error| self.lookup_failed(segment, bound, error))?;
        Ok(found.map_or(limit, |found| found.position))
    }

    fn lookup_failed(&self, segment: &Segment, offset: i64, error: LookupError) -> ReadError {
        match error {
            LookupError::Io(source) => ReadError::Io { log: self.topic_partition.clone(), source },
            LookupError::Corrupt { position } => {
                ReadError::Corrupt { log: self.topic_partition.clone(), offset, file: segment.path.clone(), position }
            }
        }
    }

    /// The first record at or after the log start whose timestamp is `timestamp_ms` or later (ListOffsets with a
    /// time); `None` when all are earlier.
    pub fn offset_for_timestamp(&self, timestamp_ms: i64) -> Result<Option<TimestampedOffset>, ReadError> {
        self.health.check()?;
        let (start, end) = (self.log_start_offset(), self.end());
        for segment in self.snapshot().iter() {
            if segment.max_timestamp_ms() < timestamp_ms {
                continue;
            }
            let limit = self.readable_len(segment, i64::MAX, end)?;
            let wanted = |offset: i64, timestamp: i64| timestamp >= timestamp_ms && offset >= start;
            let mut from = start;
            // The late record of a batch may lie below the log start: then the search goes on behind it.
            while let Some(found) = segment
                .find_by_time(timestamp_ms, from, limit)
                .map_err(|error| self.lookup_failed(segment, from, error))?
            {
                if let Some(offset) = self.record_in(segment, found, wanted)? {
                    return Ok(Some(offset));
                }
                from = found.header.next_offset();
            }
        }
        Ok(None)
    }

    /// The first of the records with the largest timestamp (ListOffsets with -3, KIP-734); `None` when no record has
    /// one.
    pub fn offset_of_max_timestamp(&self) -> Result<Option<TimestampedOffset>, ReadError> {
        self.health.check()?;
        let segments = self.snapshot();
        let latest = segments.iter().map(|segment| segment.max_timestamp_ms()).max().unwrap_or(-1);
        if latest < 0 {
            return Ok(None);
        }
        self.offset_for_timestamp(latest)
    }

    /// The first record of a batch that satisfies `wanted`.
    fn record_in(
        &self,
        segment: &Segment,
        found: Found,
        wanted: impl Fn(i64, i64) -> bool,
    ) -> Result<Option<TimestampedOffset>, ReadError> {
        let corrupt = || ReadError::Corrupt {
            log: self.topic_partition.clone(),
            offset: found.header.base_offset,
            file: segment.path.clone(),
            position: found.position,
        };
        let whole = slice(segment, found, segment.size(), found.header.size_bytes(), true);
        let bytes = whole.to_bytes().map_err(|source| ReadError::Io { log: self.topic_partition.clone(), source })?;
        let batch = Batch::parse(&bytes).map_err(|_| corrupt())?;
        for record in batch.records(DECOMPRESSED_LIMIT).map_err(|_| corrupt())?.iter() {
            let record = record.map_err(|_| corrupt())?;
            if wanted(record.offset, record.timestamp_ms) {
                let epoch = found.header.partition_leader_epoch;
                return Ok(Some(TimestampedOffset {
                    offset: record.offset,
                    timestamp_ms: record.timestamp_ms,
                    leader_epoch: (epoch >= 0).then_some(epoch),
                }));
            }
        }
        Ok(None)
    }
}

fn slice(segment: &Segment, found: Found, limit: u64, max_bytes: usize, min_one_batch: bool) -> LogSlice {
    let first_len = found.header.size_bytes();
    // Damaged bytes are never served: the range ends before them.
    let limit = segment.next_corrupt_position(found.position).map_or(limit, |corrupt| corrupt.min(limit));
    let available = usize::try_from(limit.saturating_sub(found.position)).unwrap_or(usize::MAX);
    let len = match max_bytes.min(available) {
        len if len >= first_len => len,
        _ if min_one_batch => first_len.min(available),
        _ => 0,
    };
    LogSlice { file: Arc::clone(&segment.file), position: found.position, len, base_offset: found.header.base_offset }
}
