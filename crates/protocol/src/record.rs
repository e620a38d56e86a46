//! Records inside a v2 batch: reading them without allocation, and writing them.
//!
//! ```text
//! length: varint  attributes: i8  timestampDelta: varlong  offsetDelta: varint
//! keyLength: varint (-1 null)  key  valueLength: varint (-1 null)  value
//! headerCount: varint  { keyLength: varint  key  valueLength: varint (-1 null)  value }*
//! ```
//! varint and varlong are zigzag encoded. Source: "Record" in Kafka's protocol guide (KIP-98).

use bytes::Bytes;

/// Why the records of a batch could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("failed to read record {index} of the batch at offset {base_offset}: {reason}")]
    Malformed { base_offset: i64, index: u32, reason: &'static str },
    #[error("failed to read the batch at offset {base_offset}: {left_bytes} bytes follow its last record")]
    TrailingBytes { base_offset: i64, left_bytes: usize },
    #[error("failed to read the batch at offset {base_offset}: {reason}")]
    Compression { base_offset: i64, reason: String },
}

/// One record, borrowed from the records section of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    pub offset: i64,
    /// Milliseconds since the epoch; -1 when the producer gave none.
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: HeadersRef<'a>,
}

/// The headers of a record, not yet parsed. Names may repeat and keep their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadersRef<'a> {
    count: u32,
    data: &'a [u8],
}

/// A header, borrowed. The name is meant to be UTF-8; nothing on the way enforces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderRef<'a> {
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
}

/// One record as slices of the shared (decompressed) batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub key: Bytes,
    pub value: Option<Bytes>,
}

impl<'a> HeadersRef<'a> {
    /// The number of headers that the record claims; at most half of its bytes.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers in order. Malformed bytes end the iteration with an error.
    pub fn iter(&self) -> HeaderIter<'a> {
        HeaderIter { left: self.count, cursor: Cursor(self.data) }
    }
}

impl<'a> IntoIterator for HeadersRef<'a> {
    type Item = Result<HeaderRef<'a>, &'static str>;
    type IntoIter = HeaderIter<'a>;
    fn into_iter(self) -> HeaderIter<'a> {
        self.iter()
    }
}

/// Iterator over [`HeadersRef`]; the error says what is malformed.
#[derive(Clone, Debug)]
pub struct HeaderIter<'a> {
    left: u32,
    cursor: Cursor<'a>,
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = Result<HeaderRef<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.cursor.0.is_empty() {
                return None;
            }
            self.cursor.0 = &[];
            return Some(Err("bytes follow the last header"));
        }
        self.left -= 1;
        let header = self.cursor.header();
        if header.is_err() {
            self.left = 0;
            self.cursor.0 = &[];
        }
        Some(header)
    }
}

/// The records section of one batch, decompressed.
#[derive(Clone, Debug)]
pub struct BatchRecords {
    pub(crate) data: Bytes,
    pub(crate) base_offset: i64,
    pub(crate) base_timestamp_ms: i64,
    /// Set when the broker stamped its own time: it replaces the time of every record.
    pub(crate) log_append_time_ms: Option<i64>,
    pub(crate) count: u32,
}

impl BatchRecords {
    /// The number of records that the batch header claims. Do not allocate by it: it is checked only by iterating.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The decompressed bytes that the records borrow from.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The records in order, allocating nothing. Malformed bytes end the iteration with an error.
    pub fn iter(&self) -> RecordIter<'_> {
        RecordIter {
            cursor: Cursor(&self.data),
            base_offset: self.base_offset,
            base_timestamp_ms: self.base_timestamp_ms,
            log_append_time_ms: self.log_append_time_ms,
            index: 0,
            count: self.count,
        }
    }

    /// A borrowed part of a record as shared bytes: no copy, one reference count.
    pub fn share(&self, part: &[u8]) -> Bytes {
        if part.is_empty() { Bytes::new() } else { self.data.slice_ref(part) }
    }

    /// A record with its key, value and headers as shared bytes.
    pub fn share_record(&self, record: &RecordRef<'_>) -> Result<Record, RecordError> {
        let mut headers = Vec::new();
        for header in record.headers {
            let header = header.map_err(|reason| RecordError::Malformed {
                base_offset: self.base_offset,
                index: u32::try_from(record.offset.saturating_sub(self.base_offset)).unwrap_or(0),
                reason,
            })?;
            headers.push(Header { key: self.share(header.key), value: header.value.map(|v| self.share(v)) });
        }
        Ok(Record {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(|k| self.share(k)),
            value: record.value.map(|v| self.share(v)),
            headers,
        })
    }

    /// All records as shared bytes.
    pub fn to_records(&self) -> Result<Vec<Record>, RecordError> {
        self.iter().map(|record| self.share_record(&record?)).collect()
    }
}

/// Iterator over [`BatchRecords`].
#[derive(Clone, Debug)]
pub struct RecordIter<'a> {
    cursor: Cursor<'a>,
    base_offset: i64,
    base_timestamp_ms: i64,
    log_append_time_ms: Option<i64>,
    index: u32,
    count: u32,
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<RecordRef<'a>, RecordError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.count {
            let left_bytes = self.cursor.0.len();
            if left_bytes == 0 {
                return None;
            }
            self.cursor.0 = &[];
            return Some(Err(RecordError::TrailingBytes { base_offset: self.base_offset, left_bytes }));
        }
        let record = self.cursor.record(self.base_offset, self.base_timestamp_ms);
        let index = self.index;
        self.index += 1;
        match record {
            Ok(mut record) => {
                if let Some(timestamp_ms) = self.log_append_time_ms {
                    record.timestamp_ms = timestamp_ms;
                }
                Some(Ok(record))
            }
            Err(reason) => {
                self.index = self.count;
                self.cursor.0 = &[];
                Some(Err(RecordError::Malformed { base_offset: self.base_offset, index, reason }))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    #[inline]
    fn byte(&mut self) -> Result<u8, &'static str> {
        let (first, rest) = self.0.split_first().ok_or("it ends early")?;
        self.0 = rest;
        Ok(*first)
    }

    #[inline]
    fn varint(&mut self) -> Result<i32, &'static str> {
        let first = self.byte()?;
        let mut value = u32::from(first & 0x7f);
        if first >= 0x80 {
            let mut shift = 7;
            loop {
                let byte = self.byte()?;
                value |= u32::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
                shift += 7;
                if shift > 28 {
                    return Err("a varint is longer than 5 bytes");
                }
            }
        }
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    #[inline]
    fn varlong(&mut self) -> Result<i64, &'static str> {
        let first = self.byte()?;
        let mut value = u64::from(first & 0x7f);
        if first >= 0x80 {
            let mut shift = 7;
            loop {
                let byte = self.byte()?;
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
                shift += 7;
                if shift > 63 {
                    return Err("a varlong is longer than 10 bytes");
                }
            }
        }
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("a length reaches beyond its end")?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    fn nullable(&mut self) -> Result<Option<&'a [u8]>, &'static str> {
        match usize::try_from(self.varint()?) {
            Ok(len) => self.take(len).map(Some),
            Err(_) => Ok(None),
        }
    }

    #[inline]
    fn header(&mut self) -> Result<HeaderRef<'a>, &'static str> {
        let len = usize::try_from(self.varint()?).map_err(|_| "a header has a null key")?;
        Ok(HeaderRef { key: self.take(len)?, value: self.nullable()? })
    }

    #[inline]
    fn record(&mut self, base_offset: i64, base_timestamp_ms: i64) -> Result<RecordRef<'a>, &'static str> {
        let len = usize::try_from(self.varint()?).map_err(|_| "its length is negative")?;
        let mut body = Cursor(self.take(len)?);
        body.byte()?; // attributes: none are defined
        let timestamp_ms = base_timestamp_ms.wrapping_add(body.varlong()?);
        let offset = base_offset.wrapping_add(i64::from(body.varint()?));
        let key = body.nullable()?;
        let value = body.nullable()?;
        let count = u32::try_from(body.varint()?).map_err(|_| "its header count is negative")?;
        if count as usize > body.0.len() / 2 {
            return Err("it counts more headers than it has bytes for");
        }
        if count == 0 && !body.0.is_empty() {
            return Err("it is longer than its contents");
        }
        Ok(RecordRef { offset, timestamp_ms, key, value, headers: HeadersRef { count, data: body.0 } })
    }
}

/// Appends a zigzag varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, value: i32) {
    put_varlong(out, i64::from(value));
}

/// Appends a zigzag varlong. For values of 32 bits the bytes are those of the varint.
pub(crate) fn put_varlong(out: &mut Vec<u8>, value: i64) {
    let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while left >= 0x80 {
        out.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

pub(crate) fn varlong_len(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
    let bits = 64 - zigzag.leading_zeros().min(63) as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varlongs_round_trip(value: i64) {
            let mut out = Vec::new();
            put_varlong(&mut out, value);
            prop_assert_eq!(out.len(), varlong_len(value));
            prop_assert_eq!(Cursor(&out).varlong(), Ok(value));
        }

        #[test]
        fn varints_round_trip(value: i32) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varlong_len(i64::from(value)));
            prop_assert_eq!(Cursor(&out).varint(), Ok(value));
        }

        #[test]
        fn random_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..300), count in 0u32..40) {
            let records = BatchRecords {
                data: data.into(), base_offset: i64::MAX, base_timestamp_ms: i64::MAX, log_append_time_ms: None, count,
            };
            let _ = records.to_records();
        }
    }

    #[test]
    fn overlong_varints_are_refused() {
        assert!(Cursor(&[0x80; 6]).varint().is_err());
        assert!(Cursor(&[0x80; 11]).varlong().is_err());
        assert!(Cursor(&[0x80; 3]).varint().is_err());
    }
}
