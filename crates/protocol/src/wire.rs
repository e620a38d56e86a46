//! Kafka's primitive types on the wire (KIP-482 for the compact forms), read without trusting any length.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::uuid::Uuid;

/// Payloads at least this long are handed on by reference instead of being copied into the frame.
const SPLICE_MIN_BYTES: usize = 4096;
/// The longest string, in both forms.
const STRING_MAX_BYTES: usize = i16::MAX as usize;

/// A request, response or persisted record with a schema of its own.
pub trait Message: Sized + Default {
    const NAME: &'static str;
    /// API key of a request, type of a metadata or coordinator record; -1 where the schema has none.
    const API_KEY: i16;
    const MIN_VERSION: i16;
    const MAX_VERSION: i16;
    /// First version with compact lengths and tagged fields; `i16::MAX`: none.
    const FLEXIBLE_FROM: i16;

    fn decode(r: &mut Reader, version: i16) -> Result<Self, DecodeError>;
    fn encode(&self, w: &mut Writer, version: i16) -> Result<(), EncodeError>;

    /// The encoded message in one piece.
    fn to_bytes(&self, version: i16) -> Result<Bytes, EncodeError> {
        let mut w = Writer::new();
        self.encode(&mut w, version)?;
        w.finish().into_bytes()
    }
}

/// Bytes that do not form the message they should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("failed to read {wanted} bytes: only {left} are left")]
    Short { wanted: usize, left: usize },
    #[error("failed to read {what}: length {length} is impossible with {left} bytes left")]
    Length { what: &'static str, length: i64, left: usize },
    #[error("failed to read {what}: null where a value is required")]
    Null { what: &'static str },
    #[error("failed to read a varint: longer than its type allows")]
    Varint,
    #[error("failed to read a string: not UTF-8")]
    Utf8,
    #[error("failed to read a string of {0} bytes: longer than the protocol allows")]
    StringTooLong(usize),
    #[error("failed to read {message}: no version {version}")]
    Version { message: &'static str, version: i16 },
    #[error(
        "failed to read the message: its arrays would take more memory than a frame of {frame_bytes} bytes may ask for"
    )]
    Budget { frame_bytes: usize },
}

/// A value that its version of the message cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("failed to write {message}: no version {version}")]
    Version { message: &'static str, version: i16 },
    #[error("failed to write field {field}: version {version} has no such field")]
    Field { field: &'static str, version: i16 },
    #[error("failed to write field {field}: version {version} does not allow null")]
    Null { field: &'static str, version: i16 },
    #[error("failed to write a string of {0} bytes: longer than the protocol allows")]
    StringTooLong(usize),
    #[error("failed to write the message in one piece: it refers to file contents")]
    External,
}

/// Record batches inside a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Records {
    Bytes(Bytes),
    /// `len` bytes that the writer's owner puts in place when it sends the frame, e.g. a range of a log file.
    External {
        id: usize,
        len: usize,
    },
}

impl Records {
    pub fn len(&self) -> usize {
        match self {
            Records::Bytes(b) => b.len(),
            Records::External { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads primitives off a received frame. Nothing is allocated before its size was checked against what has arrived.
#[derive(Debug, Clone)]
pub struct Reader {
    buf: Bytes,
    frame_bytes: usize,
    /// Bytes of memory that arrays of this frame may still take.
    budget: usize,
}

impl Reader {
    pub fn new(buf: Bytes) -> Reader {
        let frame_bytes = buf.len();
        // Decoded structs are larger than their wire form (a one-byte empty string takes 24); honest requests stay below
        // a factor of ten, so 32 leaves room and keeps a hostile frame from multiplying.
        let budget = 64 * 1024 + frame_bytes.saturating_mul(32).min(256 * 1024 * 1024);
        Reader { buf, frame_bytes, budget }
    }

    pub fn remaining(&self) -> usize {
        self.buf.len()
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &Bytes {
        &self.buf
    }

    fn need(&self, wanted: usize) -> Result<(), DecodeError> {
        if self.buf.len() < wanted {
            return Err(DecodeError::Short { wanted, left: self.buf.len() });
        }
        Ok(())
    }

    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        Ok(self.i8()? != 0)
    }

    pub fn i8(&mut self) -> Result<i8, DecodeError> {
        self.need(1)?;
        Ok(self.buf.get_i8())
    }

    pub fn i16(&mut self) -> Result<i16, DecodeError> {
        self.need(2)?;
        Ok(self.buf.get_i16())
    }

    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.need(2)?;
        Ok(self.buf.get_u16())
    }

    pub fn i32(&mut self) -> Result<i32, DecodeError> {
        self.need(4)?;
        Ok(self.buf.get_i32())
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.need(4)?;
        Ok(self.buf.get_u32())
    }

    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        self.need(8)?;
        Ok(self.buf.get_i64())
    }

    pub fn f64(&mut self) -> Result<f64, DecodeError> {
        self.need(8)?;
        Ok(self.buf.get_f64())
    }

    pub fn uuid(&mut self) -> Result<Uuid, DecodeError> {
        self.need(16)?;
        let mut bytes = [0; 16];
        self.buf.copy_to_slice(&mut bytes);
        Ok(Uuid(bytes))
    }

    /// An unsigned varint of at most 32 bits.
    pub fn uvarint(&mut self) -> Result<u32, DecodeError> {
        let mut value: u32 = 0;
        for shift in [0u32, 7, 14, 21, 28] {
            self.need(1)?;
            let byte = self.buf.get_u8();
            if shift == 28 && byte > 0x0f {
                return Err(DecodeError::Varint);
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Varint)
    }

    /// A length prefix; `None` is null. `fixed` is the width of the classic form: 2 or 4 bytes.
    fn length(&mut self, flexible: bool, fixed: usize, what: &'static str) -> Result<Option<usize>, DecodeError> {
        let length = match (flexible, fixed) {
            (true, _) => i64::from(self.uvarint()?) - 1,
            (false, 2) => i64::from(self.i16()?),
            (false, _) => i64::from(self.i32()?),
        };
        match usize::try_from(length) {
            Ok(n) if n <= self.buf.len() => Ok(Some(n)),
            Err(_) if length == -1 => Ok(None),
            _ => Err(DecodeError::Length { what, length, left: self.buf.len() }),
        }
    }

    pub fn nullable_string(&mut self, flexible: bool) -> Result<Option<String>, DecodeError> {
        let Some(n) = self.length(flexible, 2, "a string")? else { return Ok(None) };
        // Kafka reads no longer one in the compact form either, and would not read what we stored of it.
        if n > STRING_MAX_BYTES {
            return Err(DecodeError::StringTooLong(n));
        }
        let raw = self.buf.split_to(n);
        let text = std::str::from_utf8(&raw).map_err(|_| DecodeError::Utf8)?;
        Ok(Some(text.to_owned()))
    }

    pub fn string(&mut self, flexible: bool) -> Result<String, DecodeError> {
        self.nullable_string(flexible)?.ok_or(DecodeError::Null { what: "a string" })
    }

    pub fn nullable_bytes(&mut self, flexible: bool) -> Result<Option<Bytes>, DecodeError> {
        Ok(self.length(flexible, 4, "bytes")?.map(|n| self.buf.split_to(n)))
    }

    pub fn bytes(&mut self, flexible: bool) -> Result<Bytes, DecodeError> {
        self.nullable_bytes(flexible)?.ok_or(DecodeError::Null { what: "bytes" })
    }

    pub fn records(&mut self, flexible: bool) -> Result<Option<Records>, DecodeError> {
        Ok(self.nullable_bytes(flexible)?.map(Records::Bytes))
    }

    pub fn nullable_array<T>(
        &mut self,
        flexible: bool,
        mut item: impl FnMut(&mut Reader) -> Result<T, DecodeError>,
    ) -> Result<Option<Vec<T>>, DecodeError> {
        let Some(n) = self.length(flexible, 4, "an array")? else { return Ok(None) };
        let memory = n.saturating_mul(size_of::<T>());
        self.budget = self.budget.checked_sub(memory).ok_or(DecodeError::Budget { frame_bytes: self.frame_bytes })?;
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(item(self)?);
        }
        Ok(Some(items))
    }

    pub fn array<T>(
        &mut self,
        flexible: bool,
        item: impl FnMut(&mut Reader) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        self.nullable_array(flexible, item)?.ok_or(DecodeError::Null { what: "an array" })
    }

    /// Skips all that is left (an unknown tagged field).
    pub fn skip(&mut self) {
        self.buf.clear();
    }

    /// Reads the tagged fields at the end of a flexible struct; `field` gets a reader over one field's bytes.
    pub fn tags(
        &mut self,
        mut field: impl FnMut(u32, &mut Reader) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let count = self.uvarint()?;
        for _ in 0..count {
            let tag = self.uvarint()?;
            let size = self.uvarint()? as usize;
            self.need(size)?;
            let mut inner = Reader { buf: self.buf.split_to(size), frame_bytes: self.frame_bytes, budget: self.budget };
            field(tag, &mut inner)?;
            self.budget = inner.budget;
        }
        Ok(())
    }
}

/// A piece of a finished frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Bytes(Bytes),
    /// See [`Records::External`].
    External {
        id: usize,
        len: usize,
    },
}

/// An encoded message as the list of its parts, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    pub parts: Vec<Part>,
}

impl Frame {
    /// Total size in bytes.
    pub fn len(&self) -> usize {
        self.parts
            .iter()
            .map(|p| match p {
                Part::Bytes(b) => b.len(),
                Part::External { len, .. } => *len,
            })
            .sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One buffer; fails if a part lies outside of the frame.
    pub fn into_bytes(self) -> Result<Bytes, EncodeError> {
        if let [Part::Bytes(only)] = self.parts.as_slice() {
            return Ok(only.clone());
        }
        let mut all = BytesMut::with_capacity(self.len());
        for part in self.parts {
            match part {
                Part::Bytes(b) => all.extend_from_slice(&b),
                Part::External { .. } => return Err(EncodeError::External),
            }
        }
        Ok(all.freeze())
    }
}

/// Collects an encoded message. Small values are copied into a buffer, large payloads kept by reference.
#[derive(Debug, Default)]
pub struct Writer {
    buf: BytesMut,
    parts: Vec<Part>,
}

impl Writer {
    pub fn new() -> Writer {
        Writer::default()
    }

    /// The parts written, in order.
    pub fn finish(mut self) -> Frame {
        self.seal();
        Frame { parts: self.parts }
    }

    fn seal(&mut self) {
        if !self.buf.is_empty() {
            self.parts.push(Part::Bytes(self.buf.split().freeze()));
        }
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        let sealed: usize = self
            .parts
            .iter()
            .map(|p| match p {
                Part::Bytes(b) => b.len(),
                Part::External { len, .. } => *len,
            })
            .sum();
        sealed + self.buf.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bool(&mut self, value: bool) {
        self.buf.put_u8(u8::from(value));
    }

    pub fn i8(&mut self, value: i8) {
        self.buf.put_i8(value);
    }

    pub fn i16(&mut self, value: i16) {
        self.buf.put_i16(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.buf.put_u16(value);
    }

    pub fn i32(&mut self, value: i32) {
        self.buf.put_i32(value);
    }

    pub fn u32(&mut self, value: u32) {
        self.buf.put_u32(value);
    }

    pub fn i64(&mut self, value: i64) {
        self.buf.put_i64(value);
    }

    pub fn f64(&mut self, value: f64) {
        self.buf.put_f64(value);
    }

    pub fn uuid(&mut self, value: &Uuid) {
        self.buf.put_slice(&value.0);
    }

    pub fn uvarint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.buf.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.buf.put_u8(value as u8);
    }

    /// A length prefix. Lengths over 2 GiB cannot arise: every buffer here is bounded by a frame or a segment.
    fn length(&mut self, flexible: bool, n: usize) {
        if flexible {
            self.uvarint(u32::try_from(n + 1).unwrap_or(u32::MAX));
        } else {
            self.i32(i32::try_from(n).unwrap_or(i32::MAX));
        }
    }

    pub fn string(&mut self, flexible: bool, value: &str) -> Result<(), EncodeError> {
        let length = i16::try_from(value.len()).map_err(|_| EncodeError::StringTooLong(value.len()))?;
        if flexible {
            self.length(true, value.len());
        } else {
            self.i16(length);
        }
        self.buf.put_slice(value.as_bytes());
        Ok(())
    }

    pub fn null_string(&mut self, flexible: bool) {
        if flexible { self.uvarint(0) } else { self.i16(-1) }
    }

    /// Raw bytes, without a length; large ones by reference.
    pub fn raw(&mut self, value: &Bytes) {
        if value.len() < SPLICE_MIN_BYTES {
            self.buf.put_slice(value);
        } else {
            self.seal();
            self.parts.push(Part::Bytes(value.clone()));
        }
    }

    pub fn bytes(&mut self, flexible: bool, value: &Bytes) {
        self.length(flexible, value.len());
        self.raw(value);
    }

    pub fn null_bytes(&mut self, flexible: bool) {
        if flexible { self.uvarint(0) } else { self.i32(-1) }
    }

    pub fn nullable_records(&mut self, flexible: bool, value: Option<&Records>) {
        match value {
            None => self.null_bytes(flexible),
            Some(Records::Bytes(b)) => self.bytes(flexible, b),
            Some(Records::External { id, len }) => {
                self.length(flexible, *len);
                self.seal();
                self.parts.push(Part::External { id: *id, len: *len });
            }
        }
    }

    pub fn array<T>(
        &mut self,
        flexible: bool,
        items: &[T],
        mut item: impl FnMut(&mut Writer, &T) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        self.length(flexible, items.len());
        for value in items {
            item(self, value)?;
        }
        Ok(())
    }

    pub fn null_array(&mut self, flexible: bool) {
        if flexible { self.uvarint(0) } else { self.i32(-1) }
    }

    /// Starts the tagged fields of a struct; hand them to [`Writer::put_tags`] when complete, in ascending order.
    pub fn tags(&self) -> Tags {
        Tags { fields: Vec::new() }
    }

    pub fn put_tags(&mut self, tags: Tags) {
        self.uvarint(u32::try_from(tags.fields.len()).unwrap_or(u32::MAX));
        for (tag, field) in tags.fields {
            self.uvarint(tag);
            self.uvarint(u32::try_from(field.len()).unwrap_or(u32::MAX));
            let frame = field.finish();
            for part in frame.parts {
                match part {
                    Part::Bytes(b) => self.raw(&b),
                    external => {
                        self.seal();
                        self.parts.push(external);
                    }
                }
            }
        }
    }
}

/// The tagged fields of a struct while they are written.
#[derive(Debug)]
pub struct Tags {
    fields: Vec<(u32, Writer)>,
}

impl Tags {
    /// A writer for one field's content.
    pub fn field(&mut self, tag: u32) -> &mut Writer {
        self.fields.push((tag, Writer::new()));
        let last = self.fields.len() - 1;
        #[expect(clippy::indexing_slicing, reason = "pushed just above")]
        &mut self.fields[last].1
    }
}
