//! One segment of a log: a file of batches with its two indexes.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use caudal_protocol::batch::BatchHeader;
use parking_lot::RwLock;

use crate::config::LogConfig;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::index::{IndexEntry, IndexFile, OffsetEntry, TimeEntry};
use crate::scan::{HeaderScan, ScanError};

/// Bytes of a segment that are known to be damaged, with valid batches behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorruptRange {
    pub start_position: u64,
    /// Exclusive: the position of the next valid batch.
    pub end_position: u64,
    /// The first offset that cannot be read.
    pub first_offset: i64,
    /// The base offset of the next valid batch.
    pub next_offset: i64,
}

/// Offsets that no segment holds although the log goes on behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingRange {
    pub first_offset: i64,
    /// Exclusive.
    pub next_offset: i64,
}

#[derive(Debug)]
pub(crate) struct SegmentIndex {
    pub offsets: IndexFile<OffsetEntry>,
    pub times: IndexFile<TimeEntry>,
    pub bytes_since_entry: u64,
    /// The largest timestamp of any batch, -1 when there is none.
    pub max_timestamp_ms: i64,
    /// The last offset of the first batch with that timestamp.
    pub max_timestamp_offset: i64,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub base_offset: i64,
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    /// Bytes that readers may see.
    size: AtomicU64,
    pub index: RwLock<SegmentIndex>,
    index_dirty: AtomicBool,
    corrupt: RwLock<Vec<CorruptRange>>,
    /// The max timestamp of the first batch, `UNKNOWN` until it is read; rolling by time counts from it.
    first_timestamp_ms: AtomicI64,
    /// When this process created or opened the segment.
    pub created_ms: i64,
}

/// The batch that a lookup found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub position: u64,
    pub header: BatchHeader,
}

/// Why a lookup in a segment failed.
#[derive(Debug)]
pub(crate) enum LookupError {
    Io(io::Error),
    Corrupt { position: u64 },
}

impl From<io::Error> for LookupError {
    fn from(error: io::Error) -> LookupError {
        LookupError::Io(error)
    }
}

impl From<ScanError> for LookupError {
    fn from(error: ScanError) -> LookupError {
        match error {
            ScanError::Io(error) => LookupError::Io(error),
            ScanError::Batch { position, .. } => LookupError::Corrupt { position },
        }
    }
}

const UNKNOWN: i64 = i64::MIN;

pub(crate) const LOG_SUFFIX: &str = "log";
pub(crate) const INDEX_SUFFIX: &str = "index";
pub(crate) const TIME_INDEX_SUFFIX: &str = "timeindex";
pub(crate) const TRANSACTION_INDEX_SUFFIX: &str = "txnindex";

/// `DIR/00000000000000000017.SUFFIX`
pub(crate) fn file_path(dir: &Path, base_offset: i64, suffix: &str) -> PathBuf {
    dir.join(format!("{base_offset:020}.{suffix}"))
}

impl Segment {
    /// Creates an empty segment. The caller syncs the directory before it acknowledges anything in it.
    pub fn create(disk: &Arc<dyn Disk>, dir: &Path, base_offset: i64, now_ms: i64) -> io::Result<Segment> {
        let path = file_path(dir, base_offset, LOG_SUFFIX);
        let file = disk.open(&path, OpenMode::Truncate)?;
        let offsets = IndexFile::create(Arc::clone(disk), file_path(dir, base_offset, INDEX_SUFFIX))?;
        let times = IndexFile::create(Arc::clone(disk), file_path(dir, base_offset, TIME_INDEX_SUFFIX))?;
        Ok(Segment::assemble(base_offset, path, file, 0, offsets, times, now_ms))
    }

    /// Sets space aside for as large as it may become (`preallocate`); goes on without where there is not as much.
    pub fn reserve(&self, config: &LogConfig) {
        if config.preallocate
            && let Err(error) = self.file.reserve(config.segment_bytes)
        {
            tracing::warn!(path = %self.path.display(), bytes = config.segment_bytes, "failed to set space aside: {error}");
        }
    }

    /// Gives back what was set aside and is not needed: the segment is complete.
    pub fn release(&self, config: &LogConfig) {
        if config.preallocate
            && let Err(error) = self.file.set_len(self.size())
        {
            tracing::warn!(path = %self.path.display(), "failed to give space back that was set aside: {error}");
        }
    }

    /// As [`Segment::create`], with `ending` behind the names of all files, for a segment that is no part of the log yet.
    pub fn create_aside(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        base_offset: i64,
        ending: &str,
        now_ms: i64,
    ) -> io::Result<Segment> {
        let aside = |suffix: &str| file_path(dir, base_offset, &format!("{suffix}{ending}"));
        let path = aside(LOG_SUFFIX);
        let file = disk.open(&path, OpenMode::Truncate)?;
        let offsets = IndexFile::create(Arc::clone(disk), aside(INDEX_SUFFIX))?;
        let times = IndexFile::create(Arc::clone(disk), aside(TIME_INDEX_SUFFIX))?;
        Ok(Segment::assemble(base_offset, path, file, 0, offsets, times, now_ms))
    }

    /// The segment under its lasting names.
    pub fn settle(mut self, dir: &Path) -> Segment {
        let place = |suffix: &str| file_path(dir, self.base_offset, suffix);
        let (path, offsets, times) = (place(LOG_SUFFIX), place(INDEX_SUFFIX), place(TIME_INDEX_SUFFIX));
        self.path = path;
        let index = self.index.into_inner();
        let (offsets, times) = (index.offsets.renamed(offsets), index.times.renamed(times));
        self.index = RwLock::new(SegmentIndex { offsets, times, ..index });
        self
    }

    pub fn assemble(
        base_offset: i64,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        size: u64,
        offsets: IndexFile<OffsetEntry>,
        times: IndexFile<TimeEntry>,
        now_ms: i64,
    ) -> Segment {
        let index = SegmentIndex {
            offsets,
            times,
            bytes_since_entry: 0,
            max_timestamp_ms: -1,
            max_timestamp_offset: base_offset,
        };
        Segment {
            base_offset,
            path,
            file,
            size: AtomicU64::new(size),
            index: RwLock::new(index),
            index_dirty: AtomicBool::new(false),
            corrupt: RwLock::new(Vec::new()),
            first_timestamp_ms: AtomicI64::new(UNKNOWN),
            created_ms: now_ms,
        }
    }

    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// The largest timestamp of a record, -1 when none has one.
    pub fn max_timestamp_ms(&self) -> i64 {
        self.index.read().max_timestamp_ms
    }

    /// Whether the offset can be told from the base in the 31 bits that Kafka's indexes have.
    pub fn can_hold(&self, offset: i64) -> bool {
        (0..=i64::from(i32::MAX)).contains(&(offset - self.base_offset))
    }

    pub fn relative(&self, offset: i64) -> u32 {
        u32::try_from(offset.saturating_sub(self.base_offset).max(0)).unwrap_or(u32::MAX)
    }

    /// Writes at the end. On an error the file is cut back to what it was, and if that fails too, `Err` tells both.
    pub fn write(&self, buffers: &mut [IoSlice<'_>], len: u64) -> Result<(), WriteError> {
        let position = self.size();
        match self.file.write_all_at(buffers, position) {
            Ok(()) => {
                self.set_size(position + len);
                Ok(())
            }
            Err(source) => match self.file.set_len(position) {
                Ok(()) => Err(WriteError { source, cut_back: true }),
                Err(_) => Err(WriteError { source, cut_back: false }),
            },
        }
    }

    /// Takes note of a batch in the indexes. `header` carries its final offset and time.
    pub fn note(&self, position: u64, header: &BatchHeader, index_interval_bytes: u64) {
        let mut index = self.index.write();
        if position == 0 {
            self.first_timestamp_ms.store(header.max_timestamp_ms, Ordering::Relaxed);
        }
        if header.max_timestamp_ms > index.max_timestamp_ms {
            index.max_timestamp_ms = header.max_timestamp_ms;
            index.max_timestamp_offset = header.last_offset();
        }
        if index.bytes_since_entry > index_interval_bytes {
            let relative_offset = self.relative(header.last_offset());
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            index.offsets.push(OffsetEntry { relative_offset, position });
            self.index_dirty.store(true, Ordering::Relaxed);
            self.push_time(&mut index);
            index.bytes_since_entry = 0;
        }
        index.bytes_since_entry += header.size_bytes() as u64;
    }

    fn push_time(&self, index: &mut SegmentIndex) {
        if index.max_timestamp_ms > index.times.last().map_or(-1, |last| last.timestamp_ms) {
            self.index_dirty.store(true, Ordering::Relaxed);
            let relative_offset = self.relative(index.max_timestamp_offset);
            index.times.push(TimeEntry { timestamp_ms: index.max_timestamp_ms, relative_offset });
        }
    }

    /// Adds the largest timestamp to the time index and writes both indexes out: what Kafka does when a segment is
    /// closed or another one becomes active.
    pub fn retire_index(&self) -> io::Result<()> {
        let mut index = self.index.write();
        self.push_time(&mut index);
        index.offsets.retire()?;
        index.times.retire()
    }

    /// Completes the indexes, makes them durable and keeps their files open; to be ended by [`Segment::release_index`].
    pub fn seal_index(&self) -> io::Result<()> {
        let mut index = self.index.write();
        self.push_time(&mut index);
        self.index_dirty.store(false, Ordering::Relaxed);
        index.offsets.seal()?;
        index.times.seal()
    }

    /// Keeps the index files open, so that their names may go.
    pub fn pin_index(&self) -> io::Result<()> {
        let mut index = self.index.write();
        index.offsets.pin()?;
        index.times.pin()
    }

    /// Lets go of the index files.
    pub fn release_index(&self) {
        let mut index = self.index.write();
        index.offsets.release();
        index.times.release();
    }

    /// Makes the indexes durable if they changed.
    pub fn sync_index(&self) -> io::Result<()> {
        if self.index_dirty.swap(false, Ordering::Relaxed) {
            let mut index = self.index.write();
            let synced = index.offsets.sync().and_then(|()| index.times.sync());
            if synced.is_err() {
                self.index_dirty.store(true, Ordering::Relaxed);
            }
            return synced;
        }
        Ok(())
    }

    pub fn mark_index_dirty(&self) {
        self.index_dirty.store(true, Ordering::Relaxed);
    }

    /// Whether an index has no room for another entry.
    pub fn is_index_full(&self, index_bytes: u64) -> bool {
        let index = self.index.read();
        index.offsets.len() >= index_bytes / 8 || index.times.len() + 1 >= index_bytes / 12
    }

    /// The sizes of the offset index and of the time index, in bytes.
    pub fn index_sizes(&self) -> (u64, u64) {
        let index = self.index.read();
        (index.offsets.len() * OffsetEntry::SIZE as u64, index.times.len() * TimeEntry::SIZE as u64)
    }

    pub fn corrupt_ranges(&self) -> Vec<CorruptRange> {
        self.corrupt.read().clone()
    }

    pub fn add_corrupt_range(&self, range: CorruptRange) {
        self.corrupt.write().push(range);
    }

    fn corrupt_range_at(&self, position: u64) -> Option<CorruptRange> {
        let corrupt = self.corrupt.read();
        corrupt.iter().find(|range| (range.start_position..range.end_position).contains(&position)).copied()
    }

    /// Where the next damaged bytes behind `position` begin.
    pub fn next_corrupt_position(&self, position: u64) -> Option<u64> {
        let corrupt = self.corrupt.read();
        corrupt.iter().map(|range| range.start_position).filter(|&start| start >= position).min()
    }

    fn with_index<T>(&self, lookup: impl Fn(&SegmentIndex) -> io::Result<T>) -> io::Result<T> {
        {
            let index = self.index.read();
            if !index.offsets.needs_file() && !index.times.needs_file() {
                return lookup(&index);
            }
        }
        let mut index = self.index.write();
        index.offsets.ensure_open()?;
        index.times.ensure_open()?;
        lookup(&index)
    }

    /// The position of a batch at or before the one that holds `offset`.
    fn floor_position(&self, offset: i64) -> io::Result<u64> {
        let relative = self.relative(offset);
        let entry = self.with_index(|index| index.offsets.floor(|entry| entry.relative_offset <= relative))?;
        Ok(entry.map_or(0, |entry| u64::from(entry.position)))
    }

    /// The start of a batch at `position` or before it.
    pub fn floor_of_position(&self, position: u64) -> io::Result<u64> {
        // Not kept open: this is asked once, when the log is opened.
        let entry = self.index.read().offsets.floor(|entry| u64::from(entry.position) <= position)?;
        Ok(entry.map_or(0, |entry| u64::from(entry.position)))
    }

    /// The first batch whose last offset is `offset` or more, below `end_position`.
    pub fn find(&self, offset: i64, end_position: u64) -> Result<Option<Found>, LookupError> {
        let start = self.floor_position(offset)?;
        let mut scan = HeaderScan::new(self.file.as_ref(), start, end_position);
        loop {
            if let Some(range) = self.corrupt_range_at(scan.position()) {
                if offset < range.next_offset {
                    return Err(LookupError::Corrupt { position: range.start_position });
                }
                scan.seek(range.end_position);
            }
            match scan.next()? {
                None => return Ok(None),
                Some((position, header)) if header.last_offset() >= offset => {
                    return Ok(Some(Found { position, header }));
                }
                Some(_) => {}
            }
        }
    }

    /// The first batch at `from_offset` or later with a timestamp of at least `timestamp_ms`.
    pub fn find_by_time(
        &self,
        timestamp_ms: i64,
        from_offset: i64,
        end_position: u64,
    ) -> Result<Option<Found>, LookupError> {
        let below = self.with_index(|index| index.times.floor(|entry| entry.timestamp_ms < timestamp_ms))?;
        let offset = below.map_or(self.base_offset, |entry| self.base_offset + i64::from(entry.relative_offset));
        let start = self.floor_position(offset.max(from_offset))?;
        let mut scan = HeaderScan::new(self.file.as_ref(), start, end_position);
        loop {
            if let Some(range) = self.corrupt_range_at(scan.position()) {
                scan.seek(range.end_position);
            }
            match scan.next()? {
                None => return Ok(None),
                Some((position, header))
                    if header.max_timestamp_ms >= timestamp_ms && header.last_offset() >= from_offset =>
                {
                    return Ok(Some(Found { position, header }));
                }
                Some(_) => {}
            }
        }
    }

    /// The max timestamp of the first batch, -1 when the segment is empty.
    pub fn first_timestamp_ms(&self) -> i64 {
        let known = self.first_timestamp_ms.load(Ordering::Relaxed);
        if known != UNKNOWN {
            return known;
        }
        if self.size() == 0 {
            return -1;
        }
        let first = HeaderScan::new(self.file.as_ref(), 0, self.size()).next();
        let timestamp = first.ok().flatten().map_or(-1, |(_, header)| header.max_timestamp_ms);
        self.first_timestamp_ms.store(timestamp, Ordering::Relaxed);
        timestamp
    }
}

/// A write that failed. `cut_back` tells whether the file is again as it was before.
#[derive(Debug)]
pub(crate) struct WriteError {
    pub source: io::Error,
    pub cut_back: bool,
}
