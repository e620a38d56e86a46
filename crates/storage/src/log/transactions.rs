//! Transactions that Apache Kafka wrote: which were aborted (`BASE.txnindex`), and where the first undecided one begins.
//!
//! An index lists the aborted transactions whose markers lie in its segment; entries of 34 bytes:
//! version i16 (0), producerId i64, firstOffset i64, lastOffset i64, lastStableOffset i64.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use caudal_protocol::batch::{Batch, BatchHeader, Batches};

use super::Log;
use crate::disk::{self, Disk, OpenMode};
use crate::producer_state::EndedTransaction;
use crate::segment::{Segment, TRANSACTION_INDEX_SUFFIX, file_path};

const ENTRY_LEN: usize = 34;
/// A marker is one record of a few bytes.
const MARKER_MOST: usize = 4096;

/// What a control record says of a producer's open transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionMarker {
    Abort,
    Commit,
}

impl TransactionMarker {
    /// By the key of the control record: version i16, type i16. `None` for control records of another kind.
    pub fn from_key(key: &[u8]) -> Option<TransactionMarker> {
        match key.get(2..4)? {
            [0, 0] => Some(TransactionMarker::Abort),
            [0, 1] => Some(TransactionMarker::Commit),
            _ => None,
        }
    }
}

/// A transaction whose records a reader of committed ones has to leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
    /// Of its marker.
    pub last_offset: i64,
}

impl AbortedTransaction {
    fn decode(entry: &[u8]) -> Option<AbortedTransaction> {
        let number = |at: usize| entry.get(at..)?.first_chunk().map(|bytes| i64::from_be_bytes(*bytes));
        Some(AbortedTransaction { producer_id: number(2)?, first_offset: number(10)?, last_offset: number(18)? })
    }

    fn encode(&self, last_stable_offset: i64) -> Vec<u8> {
        let mut entry = vec![0; 2];
        for number in [self.producer_id, self.first_offset, self.last_offset, last_stable_offset] {
            entry.extend_from_slice(&number.to_be_bytes());
        }
        entry
    }
}

impl Log {
    /// The aborted transactions with records at `offset` or later, by their first offset, up to `upper_bound_offset`.
    pub fn aborted_transactions(&self, offset: i64, upper_bound_offset: i64) -> Vec<AbortedTransaction> {
        let concerned = |t: &&AbortedTransaction| t.last_offset >= offset && t.first_offset < upper_bound_offset;
        self.aborted.iter().filter(concerned).copied().collect()
    }
}

/// The aborted transactions of a log, by their first offset: what the indexes say, and those that ended in `ended` without
/// being in an index, because Kafka was killed. They are added to it.
pub(super) fn load_aborted(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    (segments, end): (&[Arc<Segment>], i64),
    ended: Vec<(EndedTransaction, u64)>,
) -> io::Result<Vec<AbortedTransaction>> {
    let mut aborted = Vec::new();
    for segment in segments {
        let path = file_path(dir, segment.base_offset, TRANSACTION_INDEX_SUFFIX);
        let bytes = match disk::read_file(disk.as_ref(), &path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let entries = bytes.chunks_exact(ENTRY_LEN).filter_map(AbortedTransaction::decode);
        aborted.extend(entries.filter(|entry| (segment.base_offset..end).contains(&entry.last_offset)));
    }
    for (transaction, position) in ended {
        let at = segments.partition_point(|segment| segment.base_offset <= transaction.last_offset);
        let Some(segment) = at.checked_sub(1).and_then(|at| segments.get(at)) else { continue };
        let known = aborted.iter().any(|entry: &AbortedTransaction| entry.last_offset == transaction.last_offset);
        if known || read_marker(segment, position)? != Some(TransactionMarker::Abort) {
            continue;
        }
        let entry = AbortedTransaction {
            producer_id: transaction.producer_id,
            first_offset: transaction.first_offset,
            last_offset: transaction.last_offset,
        };
        let path = file_path(dir, segment.base_offset, TRANSACTION_INDEX_SUFFIX);
        let file = disk.open(&path, OpenMode::Create)?;
        let end = file.size()?;
        file.write_all_at(&mut [IoSlice::new(&entry.encode(transaction.last_stable_offset))], end)?;
        file.sync()?;
        aborted.push(entry);
    }
    aborted.sort_unstable_by_key(|entry| entry.first_offset);
    Ok(aborted)
}

/// The marker in the batch at `position`.
fn read_marker(segment: &Segment, position: u64) -> io::Result<Option<TransactionMarker>> {
    let mut bytes = BytesMut::zeroed(MARKER_MOST);
    let read = segment.file.read_at(&mut bytes, position)?;
    bytes.truncate(read);
    let bytes: Bytes = bytes.freeze();
    let size = BatchHeader::parse(&bytes).map_or(0, |header| header.size_bytes());
    let batch: Option<Batch> = Batches::new(bytes.slice(..size.min(read))).next().and_then(Result::ok);
    let Some(records) = batch.and_then(|batch| batch.records(MARKER_MOST).ok()) else { return Ok(None) };
    let key = records.iter().next().and_then(Result::ok).and_then(|record| record.key);
    Ok(key.and_then(TransactionMarker::from_key))
}
