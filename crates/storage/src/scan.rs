//! Walking over the batches of a segment file: headers only for lookups, whole batches with their CRC for recovery.

use std::io;

use caudal_protocol::batch::{self, BatchError, BatchHeader, HEADER_LEN};

use crate::disk::DiskFile;

/// What a walk meets where no (valid) batch begins.
#[derive(Debug)]
pub(crate) enum ScanError {
    Io(io::Error),
    Batch { position: u64, error: BatchError },
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> ScanError {
        ScanError::Io(error)
    }
}

/// Small enough to be cheap for one large batch, large enough to hold the headers of many small ones.
const HEADER_BUFFER: usize = 4096;

/// Reads one batch header after the other from `position` to `end`.
pub(crate) struct HeaderScan<'a> {
    file: &'a dyn DiskFile,
    position: u64,
    end: u64,
    buffer: [u8; HEADER_BUFFER],
    buffer_position: u64,
    buffer_len: usize,
}

impl<'a> HeaderScan<'a> {
    pub fn new(file: &'a dyn DiskFile, position: u64, end: u64) -> HeaderScan<'a> {
        HeaderScan { file, position, end, buffer: [0; HEADER_BUFFER], buffer_position: 0, buffer_len: 0 }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on from another position.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// The next batch and its position; `None` at the end. A batch that reaches beyond the end is an error.
    pub fn next(&mut self) -> Result<Option<(u64, BatchHeader)>, ScanError> {
        let position = self.position;
        if position >= self.end {
            return Ok(None);
        }
        let header = match self.buffered() {
            Some(bytes) => BatchHeader::parse(bytes),
            None => {
                let want = usize::try_from(self.end - position).unwrap_or(usize::MAX).min(HEADER_BUFFER);
                let target = self.buffer.get_mut(..want).unwrap_or_default();
                self.buffer_len = self.file.read_at(target, position)?;
                self.buffer_position = position;
                BatchHeader::parse(self.buffer.get(..self.buffer_len).unwrap_or_default())
            }
        };
        let header = header.map_err(|error| ScanError::Batch { position, error })?;
        let size = header.size_bytes() as u64;
        if size > self.end - position {
            let have_bytes = usize::try_from(self.end - position).unwrap_or(usize::MAX);
            let error = BatchError::Truncated { have_bytes, need_bytes: header.size_bytes() };
            return Err(ScanError::Batch { position, error });
        }
        self.position = position + size;
        Ok(Some((position, header)))
    }

    fn buffered(&self) -> Option<&[u8]> {
        let at = usize::try_from(self.position.checked_sub(self.buffer_position)?).ok()?;
        self.buffer.get(..self.buffer_len)?.get(at..).filter(|bytes| bytes.len() >= HEADER_LEN)
    }
}

const CHUNK: usize = 1 << 20;

/// Reads whole batches and checks their CRC.
pub(crate) struct BatchScan<'a> {
    file: &'a dyn DiskFile,
    position: u64,
    end: u64,
    chunk: usize,
    buffer: Vec<u8>,
    buffer_position: u64,
}

impl<'a> BatchScan<'a> {
    pub fn new(file: &'a dyn DiskFile, position: u64, end: u64) -> BatchScan<'a> {
        BatchScan::with_chunk(file, position, end, CHUNK)
    }

    /// A scan that reads `chunk` bytes at a time.
    pub fn with_chunk(file: &'a dyn DiskFile, position: u64, end: u64, chunk: usize) -> BatchScan<'a> {
        BatchScan { file, position, end, chunk, buffer: Vec::new(), buffer_position: 0 }
    }

    /// The bytes of the batch that [`BatchScan::next`] returned last.
    pub fn batch(&self, position: u64, header: &BatchHeader) -> &[u8] {
        let at = position.checked_sub(self.buffer_position).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.buffer.get(at..)?.get(..header.size_bytes())).unwrap_or_default()
    }

    /// Goes on from another position.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// The next batch and its position; `None` at the end. After an error the position is that of the bad batch.
    pub fn next(&mut self) -> Result<Option<(u64, BatchHeader)>, ScanError> {
        let position = self.position;
        if position >= self.end {
            return Ok(None);
        }
        let bad = |error| ScanError::Batch { position, error };
        self.fill(HEADER_LEN)?;
        let header = BatchHeader::parse(self.bytes()).map_err(bad)?;
        let size = header.size_bytes();
        if size as u64 > self.end - position {
            let have_bytes = usize::try_from(self.end - position).unwrap_or(usize::MAX);
            return Err(bad(BatchError::Truncated { have_bytes, need_bytes: size }));
        }
        self.fill(size)?;
        batch::check_crc(self.bytes()).map_err(bad)?;
        self.position = position + size as u64;
        Ok(Some((position, header)))
    }

    /// What is buffered from the current position on.
    pub fn bytes(&self) -> &[u8] {
        let at = self.position.checked_sub(self.buffer_position).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.buffer.get(at..)).unwrap_or_default()
    }

    /// Makes sure that `len` bytes from the current position on are buffered, as far as the file has them.
    pub fn fill(&mut self, len: usize) -> io::Result<()> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let len = len.min(left);
        if self.bytes().len() >= len {
            return Ok(());
        }
        let want = len.max(self.chunk).min(left);
        self.buffer.resize(want, 0);
        let read = self.file.read_at(&mut self.buffer, self.position)?;
        self.buffer.truncate(read);
        self.buffer_position = self.position;
        Ok(())
    }
}
