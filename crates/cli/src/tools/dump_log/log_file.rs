//! The batches of a file, read one after the other as Kafka's `FileLogInputStream` does.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use caudal_protocol::batch::{Batch, BatchHeader, HEADER_LEN, LOG_OVERHEAD};

use super::super::Stop;
use super::unreadable;

/// Up to the magic: what must be there before a batch is looked at.
const UP_TO_MAGIC: u64 = 17;
/// The least that a record of the oldest format takes.
const LEAST_RECORD: i32 = 14;

/// A segment or snapshot.
pub struct LogFile {
    file: File,
    path: PathBuf,
    /// Bytes in the file.
    pub size: u64,
}

impl LogFile {
    pub fn open(path: &Path) -> Result<LogFile, Stop> {
        let file = File::open(path).map_err(|e| unreadable(path, e))?;
        let size = file.metadata().map_err(|e| unreadable(path, e))?.len();
        Ok(LogFile { file, path: path.to_owned(), size })
    }

    fn bytes(&self, position: u64, len: usize) -> Result<Vec<u8>, Stop> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, position).map_err(|e| unreadable(&self.path, e))?;
        Ok(bytes)
    }

    /// The header of the batch at a position; `None` where no whole batch lies before `end`.
    pub fn header(&self, position: u64, end: u64) -> Result<Option<BatchHeader>, Stop> {
        if position + UP_TO_MAGIC >= end {
            return Ok(None);
        }
        let head = self.bytes(position, UP_TO_MAGIC as usize)?;
        let length = head.get(8..12).and_then(|b| b.try_into().ok()).map_or(0, i32::from_be_bytes);
        if length < LEAST_RECORD {
            return Err(Stop::Failed(format!(
                "Found record size {length} smaller than minimum record overhead ({LEAST_RECORD}) in file {}.",
                self.path.display()
            )));
        }
        let total = u64::from(length.unsigned_abs()) + LOG_OVERHEAD as u64;
        if position + total > end {
            return Ok(None);
        }
        let header = self.bytes(position, HEADER_LEN.min(total as usize))?;
        let header = BatchHeader::parse(&header);
        Ok(Some(header.map_err(|e| unreadable(&self.path, format!("at position {position}: {e}")))?))
    }

    /// The whole batch at a position.
    pub fn batch(&self, position: u64, end: u64) -> Result<Option<Batch>, Stop> {
        let Some(header) = self.header(position, end)? else { return Ok(None) };
        let bytes = self.bytes(position, header.size_bytes())?;
        Ok(Some(Batch { header, bytes: Bytes::from(bytes) }))
    }
}
