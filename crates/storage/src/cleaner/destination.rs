//! The segment that a group of others is written into.

use std::io::{self, IoSlice};
use std::sync::Arc;

use caudal_protocol::batch::BatchHeader;

use crate::disk::{OpenMode, read_file};
use crate::log::Log;
use crate::log::replace::CLEANED;
use crate::log::transactions::kept_entries;
use crate::segment::{Segment, TRANSACTION_INDEX_SUFFIX, file_path};

pub(super) struct Destination {
    log: Arc<Log>,
    segment: Segment,
    index_interval_bytes: u64,
    buffer: Vec<u8>,
    buffer_bytes: usize,
}

impl Destination {
    /// Creates the files beside those of `group`; left-over ones are emptied.
    pub fn create(
        log: &Arc<Log>,
        group: &[Arc<Segment>],
        index_interval_bytes: u64,
        buffer_bytes: usize,
    ) -> io::Result<Destination> {
        let base_offset = group.first().map_or(0, |first| first.base_offset);
        // Where no record is left, or none has a time, retention counts from here.
        let age = |segment: &Arc<Segment>| match segment.max_timestamp_ms() {
            -1 => segment.created_ms,
            newest => newest,
        };
        let created_ms = group.iter().map(age).max().unwrap_or(0);
        let segment = Segment::create_aside(log.disk(), log.dir(), base_offset, CLEANED, created_ms)?;
        Ok(Destination { log: Arc::clone(log), segment, index_interval_bytes, buffer: Vec::new(), buffer_bytes })
    }

    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.segment.size() + self.buffer.len() as u64
    }

    pub fn write(&mut self, bytes: &[u8], header: &BatchHeader) -> io::Result<()> {
        let position = self.size();
        if position + bytes.len() as u64 > i32::MAX as u64 {
            return Err(io::Error::other("compaction would make a segment larger than 2 GiB; lower segment.bytes"));
        }
        self.segment.note(position, header, self.index_interval_bytes);
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= self.buffer_bytes {
            self.store()?;
        }
        Ok(())
    }

    fn store(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let len = self.buffer.len() as u64;
        self.segment.write(&mut [IoSlice::new(&self.buffer)], len).map_err(|error| error.source)?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left, and the transaction indexes of the group as one, as far as `keep` the marker at an offset.
    pub fn finish(mut self, group: &[Arc<Segment>], keep: impl Fn(i64) -> bool) -> io::Result<Segment> {
        self.store()?;
        let (disk, dir) = (self.log.disk(), self.log.dir());
        let mut transactions = Vec::new();
        for segment in group {
            match read_file(disk.as_ref(), &file_path(dir, segment.base_offset, TRANSACTION_INDEX_SUFFIX)) {
                Ok(entries) => transactions.extend(kept_entries(&entries, &keep)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if !transactions.is_empty() {
            let suffix = format!("{TRANSACTION_INDEX_SUFFIX}{CLEANED}");
            let file = disk.open(&file_path(dir, self.segment.base_offset, &suffix), OpenMode::Truncate)?;
            file.write_all_at(&mut [IoSlice::new(&transactions)], 0)?;
            file.sync()?;
        }
        Ok(self.segment)
    }
}
