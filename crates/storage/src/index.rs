//! The sparse indexes of a segment. Entries are appended in ascending order; the last ones are kept in memory and
//! written to their file in lumps, since an index can always be rebuilt from its log.
//!
//! ```text
//! .index      { relativeOffset: u32  position: u32 }*                 last offset of the batch at that position
//! .timeindex  { timestamp: i64  relativeOffset: u32 }*                the largest timestamp up to that offset
//! ```
//! Offsets are relative to the segment's base offset; all integers are big endian.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, OpenMode};

/// An entry of a fixed size.
pub(crate) trait IndexEntry: Copy {
    const SIZE: usize;
    fn encode(&self, out: &mut Vec<u8>);
    fn decode(bytes: &[u8]) -> Option<Self>;
    /// Whether `next` may follow this entry.
    fn precedes(&self, next: &Self) -> bool;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetEntry {
    pub relative_offset: u32,
    pub position: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeEntry {
    pub timestamp_ms: i64,
    pub relative_offset: u32,
}

impl IndexEntry for OffsetEntry {
    const SIZE: usize = 8;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.relative_offset.to_be_bytes());
        out.extend_from_slice(&self.position.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<OffsetEntry> {
        let (offset, rest) = bytes.split_first_chunk::<4>()?;
        let position = rest.first_chunk::<4>()?;
        Some(OffsetEntry { relative_offset: u32::from_be_bytes(*offset), position: u32::from_be_bytes(*position) })
    }

    fn precedes(&self, next: &OffsetEntry) -> bool {
        self.relative_offset < next.relative_offset && self.position < next.position
    }
}

impl IndexEntry for TimeEntry {
    const SIZE: usize = 12;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.timestamp_ms.to_be_bytes());
        out.extend_from_slice(&self.relative_offset.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<TimeEntry> {
        let (timestamp, rest) = bytes.split_first_chunk::<8>()?;
        let offset = rest.first_chunk::<4>()?;
        Some(TimeEntry { timestamp_ms: i64::from_be_bytes(*timestamp), relative_offset: u32::from_be_bytes(*offset) })
    }

    fn precedes(&self, next: &TimeEntry) -> bool {
        self.timestamp_ms < next.timestamp_ms && self.relative_offset <= next.relative_offset
    }
}

/// Entries kept in memory when older ones are let go.
const RECENT_KEPT: usize = 512;
const RECENT_MOST: usize = 1024;

/// One index file.
#[derive(Debug)]
pub(crate) struct IndexFile<E> {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Opened when first needed, so that quiet partitions hold no descriptor.
    file: Option<Arc<dyn DiskFile>>,
    /// Entries before those in `recent`; all of them are in the file.
    older: u64,
    recent: Vec<E>,
    /// How many of `recent` are in the file.
    recent_stored: usize,
    last: Option<E>,
}

impl<E: IndexEntry> IndexFile<E> {
    /// A new, empty index. The file is emptied too: what is there belongs to no log any more.
    pub fn create(disk: Arc<dyn Disk>, path: PathBuf) -> io::Result<IndexFile<E>> {
        disk.open(&path, OpenMode::Truncate)?;
        Ok(IndexFile { disk, path, file: None, older: 0, recent: Vec::new(), recent_stored: 0, last: None })
    }

    /// Opens an index that was closed in an orderly way. `None` when it is missing or its size or order is wrong, and
    /// must be rebuilt.
    pub fn open(disk: Arc<dyn Disk>, path: PathBuf) -> io::Result<Option<IndexFile<E>>> {
        let file = match disk.open(&path, OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let len = file.size()?;
        if len % E::SIZE as u64 != 0 {
            return Ok(None);
        }
        let older = len / E::SIZE as u64;
        let index =
            IndexFile::<E> { disk, path, file: Some(file), older, recent: Vec::new(), recent_stored: 0, last: None };
        let first = index.get(0)?;
        let last = older.checked_sub(1).map_or(Ok(None), |at| index.get(at))?;
        let sane = match (first, last) {
            (Some(first), Some(last)) => older == 1 || first.precedes(&last),
            _ => true,
        };
        Ok(sane.then_some(IndexFile { file: None, last, ..index }))
    }

    /// Opens an index after a crash and keeps its leading entries that are in order and satisfy `trusted`.
    pub fn salvage(disk: Arc<dyn Disk>, path: PathBuf, trusted: impl Fn(&E) -> bool) -> io::Result<IndexFile<E>> {
        let file = disk.open(&path, OpenMode::Create)?;
        let bytes = crate::disk::read_file(disk.as_ref(), &path)?;
        let mut kept: Vec<E> = Vec::new();
        for entry in bytes.chunks_exact(E::SIZE).map_while(E::decode) {
            if !trusted(&entry) || kept.last().is_some_and(|last| !last.precedes(&entry)) {
                break;
            }
            kept.push(entry);
        }
        file.set_len((kept.len() * E::SIZE) as u64)?;
        let older = kept.len() as u64;
        let last = kept.last().copied();
        Ok(IndexFile { disk, path, file: None, older, recent: Vec::new(), recent_stored: 0, last })
    }

    pub fn len(&self) -> u64 {
        self.older + self.recent.len() as u64
    }

    pub fn last(&self) -> Option<E> {
        self.last
    }

    fn get(&self, at: u64) -> io::Result<Option<E>> {
        if let Some(at) = at.checked_sub(self.older) {
            return Ok(usize::try_from(at).ok().and_then(|at| self.recent.get(at)).copied());
        }
        let mut buffer = [0; 12];
        let buffer = buffer.get_mut(..E::SIZE).unwrap_or_default();
        let read = match &self.file {
            Some(file) => file.read_at(buffer, at * E::SIZE as u64)?,
            None => self.disk.open(&self.path, OpenMode::Read)?.read_at(buffer, at * E::SIZE as u64)?,
        };
        Ok(buffer.get(..read).and_then(E::decode))
    }

    /// Opens the file if it is not open, so that lookups need not.
    pub fn ensure_open(&mut self) -> io::Result<()> {
        if self.file.is_none() && self.older > 0 {
            self.file = Some(self.disk.open(&self.path, OpenMode::Create)?);
        }
        Ok(())
    }

    /// Opens the file and keeps it: from now on nothing goes by its name.
    pub fn pin(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(self.disk.open(&self.path, OpenMode::Create)?);
        }
        Ok(())
    }

    /// Takes note of the file's new name.
    pub fn renamed(self, path: PathBuf) -> IndexFile<E> {
        IndexFile { path, ..self }
    }

    /// Writes everything, makes it durable, lets go of the memory and keeps the file open.
    pub fn seal(&mut self) -> io::Result<()> {
        self.pin()?;
        self.sync()?;
        self.older += self.recent.len() as u64;
        self.recent = Vec::new();
        self.recent_stored = 0;
        Ok(())
    }

    /// Lets go of the descriptor of a sealed index; the file is opened again when it is needed.
    pub fn release(&mut self) {
        self.file = None;
    }

    /// Whether a lookup reads the file.
    pub fn needs_file(&self) -> bool {
        self.file.is_none() && self.older > 0
    }

    /// The last entry for which `below` holds. `below` must hold for a prefix of the entries.
    pub fn floor(&self, below: impl Fn(&E) -> bool) -> io::Result<Option<E>> {
        if self.recent.first().is_some_and(&below) {
            let at = self.recent.partition_point(below);
            return Ok(at.checked_sub(1).and_then(|at| self.recent.get(at)).copied());
        }
        let (mut low, mut high, mut found) = (0, self.older, None);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle)? {
                Some(entry) if below(&entry) => {
                    found = Some(entry);
                    low = middle + 1;
                }
                _ => high = middle,
            }
        }
        Ok(found)
    }

    /// Adds an entry when it may follow the last one. Writes to the file only now and then; when that fails (a full
    /// disk), the entries stay in memory until it works.
    pub fn push(&mut self, entry: E) {
        if self.last.is_some_and(|last| !last.precedes(&entry)) {
            return;
        }
        if self.recent.len() >= RECENT_MOST && self.recent.len().is_multiple_of(RECENT_KEPT) && self.store().is_ok() {
            let gone = self.recent.len() - RECENT_KEPT;
            self.recent.drain(..gone);
            self.recent_stored -= gone;
            self.older += gone as u64;
        }
        self.recent.push(entry);
        self.last = Some(entry);
    }

    /// Writes what the file does not have yet.
    pub fn store(&mut self) -> io::Result<()> {
        let pending = self.recent.get(self.recent_stored..).unwrap_or_default();
        if pending.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(pending.len() * E::SIZE);
        pending.iter().for_each(|entry| entry.encode(&mut bytes));
        let position = (self.older + self.recent_stored as u64) * E::SIZE as u64;
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => self.disk.open(&self.path, OpenMode::Create)?,
        };
        file.write_all_at(&mut [IoSlice::new(&bytes)], position)?;
        self.file = Some(file);
        self.recent_stored = self.recent.len();
        Ok(())
    }

    /// Writes what is missing and makes it durable.
    pub fn sync(&mut self) -> io::Result<()> {
        self.store()?;
        match &self.file {
            Some(file) => file.sync(),
            None => self.disk.open(&self.path, OpenMode::Create)?.sync(),
        }
    }

    /// Stores everything and lets go of memory and descriptor: the segment is not written to any more.
    pub fn retire(&mut self) -> io::Result<()> {
        self.store()?;
        self.older += self.recent.len() as u64;
        self.recent = Vec::new();
        self.recent_stored = 0;
        self.file = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn entry(n: u32) -> OffsetEntry {
        OffsetEntry { relative_offset: n * 10, position: n * 100 }
    }

    #[test]
    fn lookups_find_the_floor_in_memory_and_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.index");
        let mut index = IndexFile::create(Arc::new(RealDisk), path.clone()).unwrap();
        (1..=3000).for_each(|n| index.push(entry(n)));
        index.push(entry(7));
        let check = |index: &IndexFile<OffsetEntry>| {
            assert_eq!(index.len(), 3000);
            for n in 1..=3000 {
                for offset in [n * 10, n * 10 + 9] {
                    assert_eq!(index.floor(|e| e.relative_offset <= offset).unwrap(), Some(entry(n)));
                }
            }
            assert_eq!(index.floor(|e| e.relative_offset <= 9).unwrap(), None);
        };
        check(&index);
        index.retire().unwrap();
        assert!(index.needs_file());
        index.ensure_open().unwrap();
        check(&index);
        let mut reopened = IndexFile::<OffsetEntry>::open(Arc::new(RealDisk), path.clone()).unwrap().unwrap();
        reopened.ensure_open().unwrap();
        check(&reopened);
        assert_eq!(reopened.last(), Some(entry(3000)));
    }

    #[test]
    fn damaged_indexes_are_noticed_and_salvaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.index");
        let mut index = IndexFile::create(Arc::new(RealDisk), path.clone()).unwrap();
        (1..=10).for_each(|n| index.push(entry(n)));
        index.retire().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&[0; 40]);
        std::fs::write(&path, &bytes).unwrap();
        assert!(IndexFile::<OffsetEntry>::open(Arc::new(RealDisk), path.clone()).unwrap().is_none());
        let salvaged =
            IndexFile::<OffsetEntry>::salvage(Arc::new(RealDisk), path.clone(), |e| e.position <= 500).unwrap();
        assert_eq!(salvaged.last(), Some(entry(5)));
        std::fs::write(&path, &bytes[..77]).unwrap();
        assert!(IndexFile::<OffsetEntry>::open(Arc::new(RealDisk), path).unwrap().is_none());
    }
}
