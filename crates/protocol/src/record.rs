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

const MISNUMBERED: &str = "its offset delta is not its place in the batch";

impl RecordError {
    /// Whether a record can be read, but has another offset than its place in the batch.
    pub fn is_misnumbered(&self) -> bool {
        matches!(self, RecordError::Malformed { reason, .. } if *reason == MISNUMBERED)
    }
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

    /// How many there are, and their bytes as they are stored.
    pub(crate) fn encoded(&self) -> (u32, &'a [u8]) {
        (self.count, self.data)
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
        self.iter_from(RecordPosition::default())
    }

    /// As [`BatchRecords::iter`], from where an earlier iteration over the same records stood.
    pub fn iter_from(&self, position: RecordPosition) -> RecordIter<'_> {
        RecordIter {
            cursor: Cursor(self.data.get(position.byte..).unwrap_or_default()),
            base_offset: self.base_offset,
            base_timestamp_ms: self.base_timestamp_ms,
            log_append_time_ms: self.log_append_time_ms,
            index: position.index,
            count: self.count,
        }
    }

    /// Where an iteration over these records stands.
    pub fn position(&self, iter: &RecordIter<'_>) -> RecordPosition {
        RecordPosition { byte: self.data.len().saturating_sub(iter.cursor.0.len()), index: iter.index }
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

/// A place between two records of [`BatchRecords`]: iterations borrow, a place can be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordPosition {
    byte: usize,
    index: u32,
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

impl<'a> RecordIter<'a> {
    /// Over the uncompressed records section of a batch.
    pub(crate) fn plain(section: &'a [u8], base_offset: i64, base_timestamp_ms: i64, count: u32) -> RecordIter<'a> {
        let cursor = Cursor(section);
        RecordIter { cursor, base_offset, base_timestamp_ms, log_append_time_ms: None, index: 0, count }
    }
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

/// What [`check_records`] tells of each record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordSketch {
    /// The record's place in its batch; also its offset delta, which was checked.
    pub index: u32,
    /// Milliseconds since the epoch; -1 when the producer gave none.
    pub timestamp_ms: i64,
    pub has_key: bool,
}

/// Walks the uncompressed records of a batch that a stranger built: every length fits, there are exactly `count`
/// records with nothing behind them, and their offset deltas count up from 0. Keys and values are stepped over;
/// nothing is copied or allocated.
///
/// # Errors
/// [`RecordError::Malformed`] with the first record at fault, or [`RecordError::TrailingBytes`].
#[inline]
pub fn check_records(
    records: &[u8],
    count: u32,
    base_offset: i64,
    base_timestamp_ms: i64,
    mut visit: impl FnMut(RecordSketch),
) -> Result<(), RecordError> {
    let mut cursor = Cursor(records);
    for index in 0..count {
        if let Some(sketch) = cursor.sketch_plain(index, base_timestamp_ms) {
            visit(sketch);
            continue;
        }
        match cursor.sketch(index, base_timestamp_ms) {
            Ok(sketch) => visit(sketch),
            Err(reason) => return Err(RecordError::Malformed { base_offset, index, reason }),
        }
    }
    match cursor.0.len() {
        0 => Ok(()),
        left_bytes => Err(RecordError::TrailingBytes { base_offset, left_bytes }),
    }
}

/// The next eight bytes, taken from the low end.
struct Word {
    bits: u64,
    /// Bytes taken; above [`Word::BYTES`] what came last is not to be trusted.
    used: usize,
}

impl Word {
    const BYTES: usize = 8;

    #[inline(always)]
    fn at(data: &[u8], position: usize) -> Option<Word> {
        let bytes = data.get(position..)?.first_chunk::<8>()?;
        Some(Word { bits: u64::from_le_bytes(*bytes), used: 0 })
    }

    #[inline(always)]
    fn skip(&mut self, bytes: u32) {
        self.bits >>= 8 * bytes;
        self.used += bytes as usize;
    }

    /// A varint of at most three bytes, still zigzag encoded.
    #[inline(always)]
    fn varint(&mut self) -> Option<u64> {
        let bits = self.bits;
        if bits & 0x80 == 0 {
            self.skip(1);
            Some(bits & 0x7f)
        } else if bits & 0x8000 == 0 {
            self.skip(2);
            Some(bits & 0x7f | (bits >> 1) & 0x3f80)
        } else if bits & 0x80_0000 == 0 {
            self.skip(3);
            Some(bits & 0x7f | (bits >> 1) & 0x3f80 | (bits >> 2) & 0x1f_c000)
        } else {
            None
        }
    }

    /// A length that is not negative.
    #[inline(always)]
    fn len(&mut self) -> Option<usize> {
        let value = self.varint()?;
        (value & 1 == 0).then_some((value >> 1) as usize)
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

    #[inline(always)]
    fn varint(&mut self) -> Result<i32, &'static str> {
        // One and two bytes are what nearly all lengths and deltas take.
        let value = match *self.0 {
            [a, ref rest @ ..] if a < 0x80 => {
                self.0 = rest;
                u32::from(a)
            }
            [a, b, ref rest @ ..] if b < 0x80 => {
                self.0 = rest;
                u32::from(a & 0x7f) | u32::from(b) << 7
            }
            _ => u32::try_from(self.long_varint(5)?).map_err(|_| "a varint is longer than 32 bits")?,
        };
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    #[inline(always)]
    fn varlong(&mut self) -> Result<i64, &'static str> {
        let value = match *self.0 {
            [a, ref rest @ ..] if a < 0x80 => {
                self.0 = rest;
                u64::from(a)
            }
            [a, b, ref rest @ ..] if b < 0x80 => {
                self.0 = rest;
                u64::from(a & 0x7f) | u64::from(b) << 7
            }
            _ => self.long_varint(10)?,
        };
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    #[inline(never)]
    fn long_varint(&mut self, most_bytes: u32) -> Result<u64, &'static str> {
        let mut value = 0;
        for at in 0..most_bytes {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a varint is longer than its type")
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

    /// As [`Cursor::sketch`], for what most records are: short lengths and deltas, no headers, nothing wrong. Reads words
    /// instead of bytes. `None` leaves the cursor where it is.
    ///
    /// Where the next record begins follows from the length of this one alone: the processor looks into the next while it is
    /// not yet through with this.
    #[inline(always)]
    fn sketch_plain(&mut self, index: u32, base_timestamp_ms: i64) -> Option<RecordSketch> {
        let data = self.0;
        let mut head = Word::at(data, 0)?;
        let len = head.len()?;
        let body_at = head.used;
        let next = body_at + len;
        let rest = data.get(next..)?;
        let mut body = Word::at(data, body_at)?;
        body.skip(1);
        let delta = body.varint()?;
        if body.varint()? != u64::from(index) << 1 {
            return None;
        }
        let key = body.varint()?;
        if body.used > Word::BYTES {
            return None;
        }
        let key_len = if key & 1 == 0 { key >> 1 } else { 0 };
        let value_at = body_at + body.used + key_len as usize;
        let mut value = Word::at(data, value_at)?;
        let value_len = value.len()?;
        let end = value_at + value.used + value_len;
        if end + 1 != next || *data.get(end)? != 0 {
            return None;
        }
        self.0 = rest;
        let delta = (delta >> 1).cast_signed() ^ -((delta & 1).cast_signed());
        Some(RecordSketch { index, timestamp_ms: base_timestamp_ms.wrapping_add(delta), has_key: key & 1 == 0 })
    }

    #[inline]
    fn sketch(&mut self, index: u32, base_timestamp_ms: i64) -> Result<RecordSketch, &'static str> {
        let len = usize::try_from(self.varint()?).map_err(|_| "its length is negative")?;
        let mut body = Cursor(self.take(len)?);
        body.byte()?; // attributes: none are defined
        let timestamp_ms = base_timestamp_ms.wrapping_add(body.varlong()?);
        if body.varint()?.cast_unsigned() != index {
            return Err(MISNUMBERED);
        }
        let has_key = body.nullable()?.is_some();
        body.nullable()?;
        let headers = u32::try_from(body.varint()?).map_err(|_| "its header count is negative")?;
        for _ in 0..headers {
            body.header()?;
        }
        if !body.0.is_empty() {
            return Err("it is longer than its contents");
        }
        Ok(RecordSketch { index, timestamp_ms, has_key })
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
            let _ = check_records(&records.data, count, i64::MAX, i64::MAX, |_| {});
        }

        /// The walk accepts nothing that the reader would not read, and no other number of records.
        #[test]
        fn what_was_checked_can_be_read(
            flips in proptest::collection::vec(any::<(u16, u8)>(), 0..3), headers in 0usize..4, count in 0u32..7,
        ) {
            let mut batch = crate::batch::BatchBuilder::new(crate::compression::Codec::None);
            for n in 0..5u8 {
                let header: (&[u8], Option<&[u8]>) = (b"name", (n > 1).then_some(b"value"));
                batch.append(i64::from(n), (n > 2).then_some(&[n]), Some(&[n; 100]), &vec![header; headers]);
            }
            let mut data = batch.build().unwrap().split_off(crate::batch::HEADER_LEN).to_vec();
            for (at, mask) in &flips {
                let len = data.len();
                data[usize::from(*at) % len] ^= mask;
            }
            let mut seen = Vec::new();
            let checked = check_records(&data, count, 0, 0, |record| seen.push(record));
            let records = BatchRecords {
                data: data.into(), base_offset: 0, base_timestamp_ms: 0, log_append_time_ms: None, count,
            };
            match checked {
                Err(_) => prop_assert!(!flips.is_empty() || count != 5),
                Ok(()) => {
                    let read = records.to_records();
                    prop_assert!(read.is_ok(), "{read:?}");
                    for (n, (record, sketch)) in (0..).zip(read.unwrap().iter().zip(&seen)) {
                        prop_assert_eq!(record.offset, n);
                        prop_assert_eq!(
                            (record.timestamp_ms, record.key.is_some()), (sketch.timestamp_ms, sketch.has_key)
                        );
                    }
                }
            }
        }
    }

    /// The walk over words knows what the walk over bytes knows, whatever the widths.
    #[test]
    fn both_walks_agree_at_all_widths() {
        let widths = [0, 1, 63, 64, 300, 8191, 8192, 70_000, 1 << 20, 1 << 21, 1 << 28];
        for (index, delta, len) in
            widths.iter().flat_map(|i| widths.iter().flat_map(move |d| [0, 1, 100, 9000].map(|l| (*i, *d, l))))
        {
            let mut body = vec![0];
            for value in [delta, index, -1, len] {
                put_varlong(&mut body, value);
            }
            body.resize(body.len() + len as usize + 1, 0);
            let mut record = Vec::new();
            put_varlong(&mut record, body.len() as i64);
            record.extend(&body);
            let (len, spare) = (record.len(), [7; 8]);
            record.extend(spare);
            for expected in [index as u32, index as u32 ^ 1] {
                let (mut words, mut bytes) = (Cursor(&record), Cursor(&record));
                let sketch = bytes.sketch(expected, 5);
                assert_eq!(sketch.is_ok(), i64::from(expected) == index);
                match words.sketch_plain(expected, 5) {
                    Some(plain) => assert_eq!((Ok(plain), words.0.len()), (sketch, spare.len())),
                    None => assert_eq!(words.0.len(), len + spare.len()),
                }
            }
        }
    }

    #[test]
    fn overlong_varints_are_refused() {
        assert!(Cursor(&[0x80; 6]).varint().is_err());
        assert!(Cursor(&[0x80; 11]).varlong().is_err());
        assert!(Cursor(&[0x80; 3]).varint().is_err());
    }
}
