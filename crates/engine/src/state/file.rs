//! The layout of state files and of the frames in files of changes (integers little-endian):
//!
//! | bytes | field |
//! | --- | --- |
//! | 8 | magic `CDLSTATE` |
//! | 2 | format version: 2, or 1 |
//! | 1 | kind: 0 changes, 1 snapshot |
//! | 1 | flags: bit 0 = a watermark follows |
//! | 8 | state version |
//! | 8 | watermark in ms: after the rows, groups that it has passed are removed (0 without the flag) |
//! | 4 | length of the signature |
//! | 8 | length of the body; 0 in snapshots, whose body ends where the file does |
//! | n | signature, UTF-8: the operator's keys and functions |
//! | m | body |
//! | 4 | CRC-32C of everything before (of the frame) |
//!
//! The body of a snapshot is an Arrow IPC stream, or nothing. The body of changes has, for each partition that changed, its
//! number (4 bytes), a length (8 bytes) and an Arrow IPC stream. A file of changes is such frames one after the other, of
//! consecutive versions. In format 1 a file holds one partition and version, the stream has one record batch, and snapshots
//! name the length of their body.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Cursor, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use super::{Restored, io_error};
use crate::error::EngineError;

const MAGIC: &[u8; 8] = b"CDLSTATE";
const FORMAT_VERSION: u16 = 2;
const HEADER_BYTES: usize = 8 + 2 + 1 + 1 + 8 + 8 + 4 + 8;
const CHECKSUM_BYTES: usize = 4;
const FLAG_WATERMARK: u8 = 1;
const KIND_CHANGES: u8 = 0;
const KIND_SNAPSHOT: u8 = 1;
const IO_BYTES: usize = 1 << 18;
/// No operator has that many keys and functions: a longer signature is damage.
const MAX_SIGNATURE_BYTES: u32 = 1 << 24;

/// What a version changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub version: i64,
    pub evict_ms: Option<i64>,
    pub signature: String,
    /// By partition, those with changes only: rows as [`encode_rows`] makes them.
    pub sections: Vec<(u32, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    kind: u8,
    version: i64,
    evict_ms: Option<i64>,
    signature_len: u32,
    body_len: u64,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.push(self.kind);
        bytes.push(if self.evict_ms.is_some() { FLAG_WATERMARK } else { 0 });
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.evict_ms.unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&self.signature_len.to_le_bytes());
        bytes.extend_from_slice(&self.body_len.to_le_bytes());
        bytes
    }

    /// `None` for what is no header: damage. A format from the future is an error: it is not to be taken for damage.
    fn decode(mut bytes: &[u8], path: &Path) -> Result<Option<Self>, EngineError> {
        let bytes = &mut bytes;
        if split::<8>(bytes) != Some(*MAGIC) {
            return Ok(None);
        }
        let format = split(bytes).map_or(0, u16::from_le_bytes);
        if format > FORMAT_VERSION {
            return Err(EngineError::Invalid {
                class: "STATE_STORE_UNSUPPORTED_FORMAT",
                message: format!(
                    "failed to read the state in {}: its format version is {format}, this program reads up to \
                     {FORMAT_VERSION}; go on with the program that wrote it, or use a new checkpoint location",
                    path.display()
                ),
            });
        }
        let parse = |bytes: &mut &[u8]| {
            let [kind] = split(bytes)?;
            let [flags] = split(bytes)?;
            let version = i64::from_le_bytes(split(bytes)?);
            let watermark_ms = i64::from_le_bytes(split(bytes)?);
            let signature_len = u32::from_le_bytes(split(bytes)?);
            let body_len = u64::from_le_bytes(split(bytes)?);
            let evict_ms = (flags & FLAG_WATERMARK != 0).then_some(watermark_ms);
            let sane = format > 0 && kind <= KIND_SNAPSHOT && signature_len <= MAX_SIGNATURE_BYTES;
            sane.then_some(Self { kind, version, evict_ms, signature_len, body_len })
        };
        Ok(parse(bytes))
    }
}

/// Cuts `N` bytes off the front.
fn split<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (front, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*front)
}

fn signature_len(signature: &str) -> Result<u32, EngineError> {
    u32::try_from(signature.len()).ok().filter(|len| *len <= MAX_SIGNATURE_BYTES).ok_or_else(|| EngineError::External {
        action: "write the state".to_owned(),
        message: format!("the operator's signature is longer than {MAX_SIGNATURE_BYTES} bytes"),
    })
}

/// Rows as an Arrow IPC stream; empty without rows.
pub fn encode_rows(batches: impl Iterator<Item = Result<RecordBatch, EngineError>>) -> Result<Vec<u8>, EngineError> {
    write_rows(Vec::new(), batches)
}

fn write_rows<W: Write>(
    mut target: W,
    mut batches: impl Iterator<Item = Result<RecordBatch, EngineError>>,
) -> Result<W, EngineError> {
    let Some(first) = batches.next().transpose()? else { return Ok(target) };
    let mut writer = StreamWriter::try_new(&mut target, &first.schema())?;
    writer.write(&first)?;
    // Freed before the next one is made.
    drop(first);
    for batch in batches {
        writer.write(&batch?)?;
    }
    writer.finish()?;
    drop(writer);
    Ok(target)
}

impl Change {
    pub(super) fn encode(&self) -> Result<Vec<u8>, EngineError> {
        let body_len = self.sections.iter().map(|(_, rows)| 12 + rows.len()).sum::<usize>();
        let header = Header {
            kind: KIND_CHANGES,
            version: self.version,
            evict_ms: self.evict_ms,
            signature_len: signature_len(&self.signature)?,
            body_len: body_len as u64,
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.signature.len() + body_len + CHECKSUM_BYTES);
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(self.signature.as_bytes());
        for (partition, rows) in &self.sections {
            bytes.extend_from_slice(&partition.to_le_bytes());
            bytes.extend_from_slice(&(rows.len() as u64).to_le_bytes());
            bytes.extend_from_slice(rows);
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        Ok(bytes)
    }
}

/// Counts and checksums what goes through.
struct Checksummed<T> {
    inner: T,
    crc: u32,
    bytes: u64,
}

impl<T> Checksummed<T> {
    fn new(inner: T) -> Self {
        Self { inner, crc: 0, bytes: 0 }
    }

    fn saw(&mut self, bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<T: Write> Write for Checksummed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.saw(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the snapshot of a partition, batch by batch and without fsync. Returns the file's size in bytes.
pub fn write_snapshot(
    path: &Path,
    version: i64,
    evict_ms: Option<i64>,
    signature: &str,
    batches: impl Iterator<Item = Result<RecordBatch, EngineError>>,
) -> Result<u64, EngineError> {
    let fail = |source| io_error("write the state to", path, source);
    let header =
        Header { kind: KIND_SNAPSHOT, version, evict_ms, signature_len: signature_len(signature)?, body_len: 0 };
    let file = File::create(path).map_err(fail)?;
    let mut target = Checksummed::new(BufWriter::with_capacity(IO_BYTES, file));
    target.write_all(&header.encode()).and_then(|()| target.write_all(signature.as_bytes())).map_err(fail)?;
    let mut target = write_rows(target, batches)?;
    let checksum = target.crc;
    target.write_all(&checksum.to_le_bytes()).and_then(|()| target.flush()).map_err(fail)?;
    Ok(target.bytes)
}

/// Where a frame stands.
#[derive(Debug, Clone)]
pub(super) struct FramePlace {
    pub path: PathBuf,
    offset: u64,
    pub len: u64,
    pub version: i64,
}

/// A frame that was read.
#[derive(Debug)]
pub(super) struct Frame {
    header: Header,
    bytes: Vec<u8>,
}

impl Frame {
    /// Reads a frame; `None` at the end of the file or where it is damaged.
    fn next(source: &mut impl Read, left: u64, path: &Path) -> Result<Option<Self>, EngineError> {
        let mut bytes = vec![0; HEADER_BYTES];
        match source.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(io_error("read the state in", path, error)),
        }
        let Some(header) = Header::decode(&bytes, path)? else { return Ok(None) };
        let rest =
            u64::from(header.signature_len).saturating_add(header.body_len).saturating_add(CHECKSUM_BYTES as u64);
        let Some(rest) = usize::try_from(rest).ok().filter(|_| rest <= left.saturating_sub(HEADER_BYTES as u64)) else {
            return Ok(None);
        };
        bytes.resize(HEADER_BYTES + rest, 0);
        let Some(target) = bytes.get_mut(HEADER_BYTES..) else { return Ok(None) };
        source.read_exact(target).map_err(|error| io_error("read the state in", path, error))?;
        let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else { return Ok(None) };
        let whole = crc32c::crc32c(body) == u32::from_le_bytes(*checksum);
        Ok((whole && header.kind == KIND_CHANGES).then_some(Self { header, bytes }))
    }

    pub(super) fn visit(
        &self,
        place: &FramePlace,
        partitions: &BTreeSet<usize>,
        visit: &mut dyn FnMut(Restored<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let path = place.path.as_path();
        let cut = || corrupt(path, "a section of it is cut off");
        let end = self.bytes.len().saturating_sub(CHECKSUM_BYTES);
        let content = self.bytes.get(HEADER_BYTES..end).ok_or_else(cut)?;
        let (signature, mut sections) = content.split_at_checked(self.header.signature_len as usize).ok_or_else(cut)?;
        let signature = std::str::from_utf8(signature).map_err(|error| corrupt(path, &error.to_string()))?;
        while !sections.is_empty() {
            let partition = u32::from_le_bytes(split(&mut sections).ok_or_else(cut)?) as usize;
            let len = u64::from_le_bytes(split(&mut sections).ok_or_else(cut)?);
            let len = usize::try_from(len).map_err(|_| cut())?;
            let (rows, rest) = sections.split_at_checked(len).ok_or_else(cut)?;
            sections = rest;
            if partitions.contains(&partition) {
                visit(Restored::Begins { partition, signature, path })?;
                visit_rows(Cursor::new(rows), partition, path, visit)?;
            }
        }
        let evict_ms = self.header.evict_ms;
        partitions.iter().try_for_each(|&partition| visit(Restored::Ends { partition, evict_ms }))
    }
}

impl FramePlace {
    pub(super) fn read(&self) -> Result<Frame, EngineError> {
        let fail = |error| io_error("read the state in", &self.path, error);
        let mut file = File::open(&self.path).map_err(fail)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(fail)?;
        Frame::next(&mut file, self.len, &self.path)?.ok_or_else(|| corrupt(&self.path, "it changed while it was read"))
    }

    /// Ends the file before this frame, for good.
    pub(super) fn cut(&self) -> Result<(), EngineError> {
        File::options()
            .write(true)
            .open(&self.path)
            .and_then(|file| file.set_len(self.offset).and_then(|()| file.sync_all()))
            .map_err(|source| io_error("cut the state in", &self.path, source))
    }
}

/// The frames of a file of changes that begins with version `first`, up to the first that is damaged.
pub(super) fn frames(path: &Path, first: i64) -> Result<Vec<FramePlace>, EngineError> {
    let fail = |error| io_error("read the state in", path, error);
    let file = File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let mut source = BufReader::with_capacity(IO_BYTES, file);
    let (mut places, mut offset, mut version) = (Vec::new(), 0, first);
    while let Some(frame) = Frame::next(&mut source, size - offset, path)?.filter(|f| f.header.version == version) {
        let len = frame.bytes.len() as u64;
        places.push(FramePlace { path: path.to_owned(), offset, len, version });
        offset += len;
        version += 1;
    }
    if offset < size {
        tracing::warn!(path = %path.display(), offset, size, "the end of a state file is damaged; its batches run again");
    }
    Ok(places)
}

/// Whether a file of one partition is there with this version and undamaged.
pub(super) fn is_whole(path: &Path, version: i64) -> Result<bool, EngineError> {
    let fail = |error| io_error("read the state in", path, error);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(fail(error)),
    };
    let size = file.metadata().map_err(fail)?.len();
    let mut header = Vec::with_capacity(HEADER_BYTES);
    (&mut file).take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(fail)?;
    let decoded = Header::decode(&header, path)?;
    let content = size.checked_sub((HEADER_BYTES + CHECKSUM_BYTES) as u64);
    let (Some(decoded), Some(mut left)) = (decoded, content) else {
        tracing::warn!(path = %path.display(), "state file is damaged");
        return Ok(false);
    };
    let mut crc = crc32c::crc32c(&header);
    let mut buffer = vec![0; IO_BYTES];
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(IO_BYTES);
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        file.read_exact(part).map_err(fail)?;
        crc = crc32c::crc32c_append(crc, part);
        left -= wanted as u64;
    }
    let mut checksum = [0; CHECKSUM_BYTES];
    file.read_exact(&mut checksum).map_err(fail)?;
    let whole = crc == u32::from_le_bytes(checksum) && decoded.version == version;
    if !whole {
        tracing::warn!(path = %path.display(), "state file is damaged");
    }
    Ok(whole)
}

/// Reads a file of one partition, which is whole, batch by batch.
pub(super) fn read_rows(
    path: &Path,
    partition: usize,
    visit: &mut dyn FnMut(Restored<'_>) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let fail = |error| io_error("read the state in", path, error);
    let file = File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let mut source = BufReader::with_capacity(IO_BYTES, file);
    let mut header = [0; HEADER_BYTES];
    source.read_exact(&mut header).map_err(fail)?;
    let header = Header::decode(&header, path)?.ok_or_else(|| corrupt(path, "it is no state file"))?;
    let mut signature = vec![0; header.signature_len as usize];
    source.read_exact(&mut signature).map_err(fail)?;
    let signature = String::from_utf8(signature).map_err(|error| corrupt(path, &error.to_string()))?;
    visit(Restored::Begins { partition, signature: &signature, path })?;
    let around = (HEADER_BYTES + CHECKSUM_BYTES) as u64 + u64::from(header.signature_len);
    let body = size.checked_sub(around).ok_or_else(|| corrupt(path, "its rows are cut off"))?;
    if body > 0 {
        visit_rows(source.take(body), partition, path, visit)?;
    }
    visit(Restored::Ends { partition, evict_ms: header.evict_ms })
}

fn visit_rows(
    source: impl Read,
    partition: usize,
    path: &Path,
    visit: &mut dyn FnMut(Restored<'_>) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let reader = StreamReader::try_new(source, None).map_err(|error| corrupt(path, &error.to_string()))?;
    for rows in reader {
        let rows = rows.map_err(|error| corrupt(path, &error.to_string()))?;
        visit(Restored::Rows { partition, rows })?;
    }
    Ok(())
}

fn corrupt(path: &Path, reason: &str) -> EngineError {
    EngineError::External { action: format!("read the state in {}", path.display()), message: reason.to_owned() }
}
