//! Transactions as readers of committed records see them: up to where all is decided, and which were aborted
//! (`BASE.txnindex`).
//!
//! An index lists the aborted transactions whose markers lie in its segment; entries of 34 bytes:
//! version i16 (0), producerId i64, firstOffset i64, lastOffset i64, lastStableOffset i64.
//!
//! All of it is kept in memory. The files are written before a producer snapshot is, so that what lies in front of a
//! snapshot is in them; what lies behind is found again by the markers in the log.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use super::read::LogSlice;
use super::{Log, Writer};
use crate::disk::{self, Disk, OpenMode};
use crate::producer_state::EndedTransaction;
use crate::segment::{Segment, TRANSACTION_INDEX_SUFFIX, file_path};

const ENTRY_LEN: usize = 34;
const VERSION: i16 = 0;
/// No transaction.
const NONE: i64 = i64::MAX;

/// A transaction whose records a reader of committed ones has to leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
    /// Of its marker.
    pub last_offset: i64,
    /// With this transaction ended: none that ends later begins before it.
    pub last_stable_offset: i64,
}

impl AbortedTransaction {
    /// `None` for bytes that no transaction has.
    fn decode(entry: &[u8]) -> Option<AbortedTransaction> {
        let number = |at: usize| entry.get(at..)?.first_chunk().map(|bytes| i64::from_be_bytes(*bytes));
        let decoded = AbortedTransaction {
            producer_id: number(2)?,
            first_offset: number(10)?,
            last_offset: number(18)?,
            last_stable_offset: number(26)?,
        };
        let sound = entry.starts_with(&VERSION.to_be_bytes())
            && decoded.producer_id >= 0
            && (0..decoded.last_offset).contains(&decoded.first_offset);
        sound.then_some(decoded)
    }

    fn encode(&self) -> Vec<u8> {
        let mut entry = VERSION.to_be_bytes().to_vec();
        for number in [self.producer_id, self.first_offset, self.last_offset, self.last_stable_offset] {
            entry.extend_from_slice(&number.to_be_bytes());
        }
        entry
    }
}

/// The entries of an index file whose markers `keep` names.
pub(crate) fn kept_entries(bytes: &[u8], keep: impl Fn(i64) -> bool) -> Vec<u8> {
    let wanted = |entry: &&[u8]| AbortedTransaction::decode(entry).is_some_and(|entry| keep(entry.last_offset));
    bytes.chunks(ENTRY_LEN).filter(wanted).flatten().copied().collect()
}

/// Where the transactions are that are not over.
#[derive(Debug)]
pub(super) struct Unstable {
    /// The first offset of the oldest undecided transaction.
    undecided: AtomicI64,
    /// The first offset of the oldest transaction whose marker is not durable.
    undurable: AtomicI64,
    /// First offsets, each with the offset of the marker.
    markers: Mutex<BTreeMap<i64, i64>>,
}

impl Unstable {
    pub fn new(undecided: Option<i64>) -> Unstable {
        let undecided = AtomicI64::new(undecided.unwrap_or(NONE));
        Unstable { undecided, undurable: AtomicI64::new(NONE), markers: Mutex::default() }
    }

    /// The first offset that is unstable. To be asked after the end of what is durable: what lies in front of that is known here.
    fn first(&self) -> i64 {
        // A transaction enters the second before it leaves the first.
        let undecided = self.undecided.load(Ordering::Acquire);
        undecided.min(self.undurable.load(Ordering::Acquire))
    }

    fn ended(&self, ended: &EndedTransaction) {
        let mut markers = self.markers.lock();
        markers.insert(ended.first_offset, ended.last_offset);
        self.note_markers(&markers);
    }

    fn note_markers(&self, markers: &BTreeMap<i64, i64>) {
        let first = markers.first_key_value().map_or(NONE, |(first, _)| *first);
        self.undurable.store(first, Ordering::Release);
    }

    /// Markers below `durable` (exclusive) stand.
    fn made_durable(&self, durable: i64) {
        if self.undurable.load(Ordering::Acquire) == NONE {
            return;
        }
        let mut markers = self.markers.lock();
        markers.retain(|_, marker| *marker >= durable);
        self.note_markers(&markers);
    }
}

impl Log {
    /// The offset behind which a transaction is undecided, or decided by a marker that is not durable; the durable end when
    /// there is none.
    pub fn last_stable_offset(&self) -> i64 {
        let durable = self.durable_end_offset();
        durable.min(self.unstable.first()).max(self.log_start_offset().min(durable))
    }

    /// The aborted transactions with records at `offset` or later, up to `upper_bound_offset` (exclusive), in the order of
    /// their markers.
    pub fn aborted_transactions(&self, offset: i64, upper_bound_offset: i64) -> Vec<AbortedTransaction> {
        let aborted = self.aborted.read();
        let from = aborted.partition_point(|t| t.last_offset < offset);
        let mut found = Vec::new();
        for transaction in aborted.get(from..).unwrap_or_default() {
            if transaction.first_offset < upper_bound_offset {
                found.push(*transaction);
            }
            if transaction.last_stable_offset >= upper_bound_offset {
                break;
            }
        }
        found
    }

    /// As [`Log::aborted_transactions`], for what was read from `offset` on and lies below `upper_bound_offset`.
    pub fn aborted_in(&self, slice: &LogSlice, offset: i64, upper_bound_offset: i64) -> Vec<AbortedTransaction> {
        if self.aborted.read().last().is_none_or(|last| last.last_offset < offset) {
            return Vec::new();
        }
        let end = slice.end_offset().unwrap_or(upper_bound_offset).min(upper_bound_offset);
        self.aborted_transactions(offset, end)
    }

    /// Takes note of transactions that ended, and of those that began. The writer's lock is held by the caller; nothing of it
    /// is published yet.
    pub(super) fn note_transactions(&self, writer: &mut Writer, ended: &[EndedTransaction]) {
        for ended in ended {
            self.unstable.ended(ended);
            if let Some(aborted) = ended.aborted() {
                self.aborted.write().push(aborted);
                writer.unindexed.push(aborted);
            }
        }
        let undecided = writer.producers.first_unstable_offset().unwrap_or(NONE);
        self.unstable.undecided.store(undecided, Ordering::Release);
    }

    pub(super) fn settle_transactions(&self, durable: i64) {
        self.unstable.made_durable(durable);
    }

    /// Forgets aborted transactions that end below the first segment.
    pub(super) fn forget_aborted_below(&self, offset: i64) {
        let mut aborted = self.aborted.write();
        let gone = aborted.partition_point(|t| t.last_offset < offset);
        aborted.drain(..gone);
    }

    /// Forgets aborted transactions of which nothing is left, by the offsets of their markers.
    pub(crate) fn forget_aborted(&self, is_gone: impl Fn(i64) -> bool) {
        self.writer.lock().unindexed.retain(|transaction| !is_gone(transaction.last_offset));
        self.aborted.write().retain(|transaction| !is_gone(transaction.last_offset));
    }

    /// Writes what the index files lack, durably.
    pub(super) fn write_transaction_indexes(&self, writer: &mut Writer) -> io::Result<()> {
        if writer.unindexed.is_empty() {
            return Ok(());
        }
        let _busy = self.busy();
        let segments = self.snapshot();
        let mut by_segment: BTreeMap<i64, Vec<u8>> = BTreeMap::new();
        for transaction in &writer.unindexed {
            let at = segments.partition_point(|segment| segment.base_offset <= transaction.last_offset);
            if let Some(segment) = at.checked_sub(1).and_then(|at| segments.get(at)) {
                by_segment.entry(segment.base_offset).or_default().extend(transaction.encode());
            }
        }
        let mut created = false;
        for (base, entries) in by_segment {
            let path = file_path(&self.dir, base, TRANSACTION_INDEX_SUFFIX);
            created |= !self.disk.exists(&path)?;
            let file = self.disk.open(&path, OpenMode::Create)?;
            let end = file.size()?;
            let written = file.write_all_at(&mut [IoSlice::new(&entries)], end).and_then(|()| file.sync());
            if let Err(error) = written {
                // The next try begins where this one did.
                file.set_len(end)?;
                return Err(error);
            }
        }
        if created {
            self.disk.sync_dir(&self.dir)?;
        }
        writer.unindexed.clear();
        Ok(())
    }
}

/// What the index files say of transactions that ended before a producer snapshot.
#[derive(Debug, Default)]
pub(super) struct IndexFiles {
    /// By the base offset of the segment, with the length of the file in bytes.
    files: BTreeMap<i64, (Vec<AbortedTransaction>, usize)>,
    /// Nothing in the files from this offset on is to be relied on: one is damaged there.
    pub damaged_from: i64,
}

impl IndexFiles {
    pub fn read(disk: &Arc<dyn Disk>, dir: &Path, segments: &[Arc<Segment>]) -> io::Result<IndexFiles> {
        let mut indexes = IndexFiles { files: BTreeMap::new(), damaged_from: i64::MAX };
        for segment in segments {
            let path = file_path(dir, segment.base_offset, TRANSACTION_INDEX_SUFFIX);
            let bytes = match disk::read_file(disk.as_ref(), &path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let mut entries: Vec<AbortedTransaction> = Vec::new();
            for entry in bytes.chunks(ENTRY_LEN) {
                let entry = AbortedTransaction::decode(entry).filter(|entry| {
                    let before = entries.last().map_or(segment.base_offset - 1, |before| before.last_offset);
                    entry.last_offset > before
                });
                let Some(entry) = entry else {
                    tracing::warn!(path = %path.display(), "a damaged transaction index is made anew");
                    indexes.damaged_from = indexes.damaged_from.min(segment.base_offset);
                    break;
                };
                entries.push(entry);
            }
            indexes.files.insert(segment.base_offset, (entries, bytes.len()));
        }
        Ok(indexes)
    }

    /// The entries for markers below `offset`; the files are cut to them.
    pub fn keep_below(self, disk: &Arc<dyn Disk>, dir: &Path, offset: i64) -> io::Result<Vec<AbortedTransaction>> {
        let mut kept = Vec::new();
        for (base, (entries, len)) in self.files {
            let count = entries.partition_point(|entry| entry.last_offset < offset);
            kept.extend(entries.into_iter().take(count));
            if count * ENTRY_LEN != len {
                let file = disk.open(&file_path(dir, base, TRANSACTION_INDEX_SUFFIX), OpenMode::Create)?;
                file.set_len((count * ENTRY_LEN) as u64)?;
                file.sync()?;
            }
        }
        Ok(kept)
    }
}
