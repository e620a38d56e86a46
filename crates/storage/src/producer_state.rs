//! What a log remembers of idempotent producers: the last five batches of each, so that a retry gets its old offset
//! and a gap is noticed. Kept in `OFFSET.snapshot` files, rebuilt from batch headers behind the last of them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use caudal_protocol::batch::{BatchHeader, NO_PRODUCER_EPOCH, NO_SEQUENCE};
use caudal_protocol::records::producer::ProducerSnapshot;
use caudal_protocol::records::producer::producer_snapshot::ProducerEntry as SnapshotEntry;
use caudal_protocol::wire::{Message, Reader, Writer};

use crate::disk::{self, Disk};
use crate::error::AppendError;
use crate::log::{AbortedTransaction, AppendOrigin, EndMarker, TransactionMarker};

/// Kafka's clients have at most five requests in flight per connection.
const BATCHES_KEPT: usize = 5;
const SNAPSHOT_VERSION: i16 = 1;
/// Version and CRC come before the bytes that the CRC covers.
const SNAPSHOT_CRC_AT: usize = 2;
const SNAPSHOT_ENTRIES_AT: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchMetadata {
    pub last_sequence: i32,
    pub last_offset: i64,
    pub offset_delta: i32,
    pub timestamp_ms: i64,
}

/// Headers of batches by producer id, ascending by offset.
pub(crate) type EarlierBatches = HashMap<i64, Vec<BatchHeader>>;

impl BatchMetadata {
    fn of(header: &BatchHeader) -> BatchMetadata {
        BatchMetadata {
            last_sequence: header.last_sequence(),
            last_offset: header.last_offset(),
            offset_delta: header.last_offset_delta,
            timestamp_ms: header.max_timestamp_ms,
        }
    }

    pub fn first_sequence(&self) -> i32 {
        if self.last_sequence == NO_SEQUENCE {
            return NO_SEQUENCE;
        }
        let first = i64::from(self.last_sequence) - i64::from(self.offset_delta);
        i32::try_from(if first < 0 { first + i64::from(i32::MAX) + 1 } else { first }).unwrap_or(NO_SEQUENCE)
    }

    pub fn first_offset(&self) -> i64 {
        self.last_offset - i64::from(self.offset_delta)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProducerEntry {
    pub epoch: i16,
    pub coordinator_epoch: i32,
    pub last_timestamp_ms: i64,
    pub transaction_first_offset: Option<i64>,
    pub batches: VecDeque<BatchMetadata>,
}

impl ProducerEntry {
    fn new() -> ProducerEntry {
        ProducerEntry {
            epoch: NO_PRODUCER_EPOCH,
            coordinator_epoch: -1,
            last_timestamp_ms: -1,
            transaction_first_offset: None,
            batches: VecDeque::new(),
        }
    }

    fn last_sequence(&self) -> i32 {
        self.batches.back().map_or(NO_SEQUENCE, |batch| batch.last_sequence)
    }

    fn set_epoch(&mut self, epoch: i16) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.batches.clear();
        }
    }
}

/// A transaction whose marker was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
    /// Of the marker.
    pub last_offset: i64,
    /// With the transaction ended.
    pub last_stable_offset: i64,
    pub marker: TransactionMarker,
}

impl EndedTransaction {
    /// What the transaction index says of it.
    pub fn aborted(&self) -> Option<AbortedTransaction> {
        let EndedTransaction { producer_id, first_offset, last_offset, last_stable_offset, marker } = *self;
        let aborted = AbortedTransaction { producer_id, first_offset, last_offset, last_stable_offset };
        (marker == TransactionMarker::Abort).then_some(aborted)
    }
}

/// What whoever appends knows of the transaction that a batch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Nothing: the batch is taken when the transaction has batches here already.
    None,
    /// The coordinator said that the partition is part of it, after this guard was given out; good until the next marker.
    Guard(u64),
    /// Nobody has to know (`transaction.partition.verification.enable=false`).
    Off,
}

/// A producer whose transaction the coordinator is being asked about.
#[derive(Clone, Copy, Debug)]
struct Verifying {
    guard: u64,
    epoch: i16,
    /// Of the batches that wait: none that follows may come before it.
    lowest_sequence: i32,
    bumps_epoch: bool,
    since_ms: i64,
}

/// Which batch tells what is known of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastBatch {
    /// The last offset of its last batch of records; `None` where only markers are known.
    offset: Option<i64>,
    epoch: i16,
}

impl LastBatch {
    pub fn is(&self, header: &BatchHeader) -> bool {
        match self.offset {
            Some(offset) => header.last_offset() == offset,
            None => header.is_control() && header.producer_epoch == self.epoch,
        }
    }
}

/// A producer as DescribeProducers shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveProducer {
    pub producer_id: i64,
    pub epoch: i16,
    pub last_sequence: i32,
    pub last_timestamp_ms: i64,
    pub coordinator_epoch: i32,
    pub transaction_first_offset: Option<i64>,
}

#[derive(Debug, Default)]
pub(crate) struct ProducerState {
    producers: HashMap<i64, ProducerEntry>,
    /// First offsets of open transactions.
    open_transactions: BTreeSet<i64>,
    verifying: HashMap<i64, Verifying>,
    next_guard: u64,
}

impl ProducerState {
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    pub fn active(&self) -> Vec<ActiveProducer> {
        let describe = |(&producer_id, entry): (&i64, &ProducerEntry)| ActiveProducer {
            producer_id,
            epoch: entry.epoch,
            last_sequence: entry.last_sequence(),
            last_timestamp_ms: entry.last_timestamp_ms,
            coordinator_epoch: entry.coordinator_epoch,
            transaction_first_offset: entry.transaction_first_offset,
        };
        self.producers.iter().map(describe).collect()
    }

    /// The last batch of each producer.
    pub fn last_batches(&self) -> HashMap<i64, LastBatch> {
        let last = |entry: &ProducerEntry| LastBatch {
            offset: entry.batches.back().map(|batch| batch.last_offset),
            epoch: entry.epoch,
        };
        self.producers.iter().map(|(&producer_id, entry)| (producer_id, last(entry))).collect()
    }

    /// The offset of the oldest record whose transaction is undecided.
    pub fn first_unstable_offset(&self) -> Option<i64> {
        self.open_transactions.first().copied()
    }

    /// The batch that this one repeats, if it is among the last five of its producer.
    pub fn duplicate_of(&self, header: &BatchHeader) -> Option<BatchMetadata> {
        let entry = self.producers.get(&header.producer_id).filter(|entry| entry.epoch == header.producer_epoch)?;
        let last_sequence = header.last_sequence();
        entry
            .batches
            .iter()
            .find(|batch| batch.last_sequence == last_sequence && batch.first_sequence() == header.base_sequence)
            .copied()
    }

    /// See [`Log::start_verification`](crate::Log::start_verification).
    pub fn start_verification(
        &mut self,
        (producer_id, epoch): (i64, i16),
        sequence: i32,
        bumps_epoch: bool,
        now_ms: i64,
    ) -> Option<Verification> {
        if self.has_open_transaction(producer_id, epoch) {
            return None;
        }
        let guard = self.next_guard;
        let begun = Verifying { guard, epoch, lowest_sequence: sequence, bumps_epoch, since_ms: now_ms };
        let known = self.verifying.entry(producer_id).or_insert_with(|| {
            self.next_guard += 1;
            begun
        });
        if epoch > known.epoch {
            (known.epoch, known.lowest_sequence) = (epoch, sequence);
        } else if epoch == known.epoch {
            known.lowest_sequence = known.lowest_sequence.min(sequence);
        }
        Some(Verification::Guard(known.guard))
    }

    fn has_open_transaction(&self, producer_id: i64, epoch: i16) -> bool {
        let entry = self.producers.get(&producer_id);
        entry.is_some_and(|entry| entry.transaction_first_offset.is_some() && entry.epoch == epoch)
    }

    /// Whether the batch may follow what its producer wrote before.
    pub fn check(
        &self,
        header: &BatchHeader,
        origin: AppendOrigin,
        verification: Verification,
    ) -> Result<(), AppendError> {
        let (producer_id, epoch) = (header.producer_id, header.producer_epoch);
        let entry = self.producers.get(&producer_id);
        let current_epoch = entry.map_or(NO_PRODUCER_EPOCH, |entry| entry.epoch);
        if epoch < current_epoch {
            return Err(AppendError::InvalidProducerEpoch { producer_id, epoch, current_epoch });
        }
        if header.is_control() {
            return Ok(());
        }
        let verifying = self.verifying.get(&producer_id);
        if header.is_transactional() && !self.has_open_transaction(producer_id, epoch) {
            let verified = match verification {
                Verification::Off => true,
                Verification::None => false,
                Verification::Guard(guard) => verifying.is_some_and(|verifying| verifying.guard == guard),
            };
            if !verified {
                return Err(AppendError::NotInTransaction { producer_id });
            }
        }
        if origin == AppendOrigin::Client {
            self.check_sequence(header, verifying)?;
        }
        if entry.is_some_and(|entry| entry.transaction_first_offset.is_some()) && !header.is_transactional() {
            return Err(AppendError::InvalidTransactionState { producer_id });
        }
        Ok(())
    }

    fn check_sequence(&self, header: &BatchHeader, verifying: Option<&Verifying>) -> Result<(), AppendError> {
        let (producer_id, sequence) = (header.producer_id, header.base_sequence);
        let entry = self.producers.get(&producer_id);
        let last_sequence = entry.map_or(NO_SEQUENCE, ProducerEntry::last_sequence);
        let out_of_order = Err(AppendError::OutOfOrderSequence { producer_id, sequence, last_sequence });
        if let Some(verifying) = verifying {
            let knows_none = entry.is_none_or(|entry| entry.batches.is_empty());
            if (verifying.bumps_epoch && sequence != 0 && knows_none) || sequence > verifying.lowest_sequence {
                return out_of_order;
            }
        }
        let Some(entry) = entry else { return Ok(()) };
        let in_order = if header.producer_epoch != entry.epoch {
            sequence == 0
        } else {
            // Where only markers are known, the last is -1 and the producer begins at 0, as in Kafka.
            i64::from(sequence) == i64::from(last_sequence) + 1 || (sequence == 0 && last_sequence == i32::MAX)
        };
        if in_order { Ok(()) } else { out_of_order }
    }

    /// Whether a marker may be written: see [`Log::append_marker`](crate::Log::append_marker).
    pub fn check_marker(
        &self,
        (producer_id, epoch): (i64, i16),
        coordinator_epoch: i32,
        transaction_version: i16,
    ) -> Result<(), AppendError> {
        let Some(entry) = self.producers.get(&producer_id) else { return Ok(()) };
        let (current_epoch, current) = (entry.epoch, entry.coordinator_epoch);
        let is_new = if transaction_version >= 2 {
            // The same marker again, after a restart of the coordinator or a lost answer; and epochs that cannot grow.
            let again = epoch == current_epoch && (entry.transaction_first_offset.is_none() || epoch == i16::MAX);
            epoch > current_epoch || again
        } else {
            epoch >= current_epoch
        };
        if !is_new {
            return Err(AppendError::InvalidProducerEpoch { producer_id, epoch, current_epoch });
        }
        if current > coordinator_epoch {
            let current_epoch = current;
            return Err(AppendError::CoordinatorFenced { producer_id, epoch: coordinator_epoch, current_epoch });
        }
        Ok(())
    }

    /// Takes note of a batch that was appended. `header` carries its final offsets; `marker` is what a control batch holds.
    /// Returns the transaction that it ended.
    pub fn update(&mut self, header: &BatchHeader, marker: Option<EndMarker>) -> Option<EndedTransaction> {
        // A control batch without its record is what compaction left of a transaction.
        if !header.has_producer_id() || (header.is_control() && marker.is_none()) {
            return None;
        }
        if header.is_transactional() && !self.verifying.is_empty() {
            self.end_verification(header);
        }
        let entry = self.producers.entry(header.producer_id).or_insert_with(ProducerEntry::new);
        entry.set_epoch(header.producer_epoch);
        entry.last_timestamp_ms = header.max_timestamp_ms;
        if let Some(EndMarker { marker, coordinator_epoch }) = marker {
            entry.coordinator_epoch = coordinator_epoch;
            let first_offset = entry.transaction_first_offset.take()?;
            self.open_transactions.remove(&first_offset);
            let last_offset = header.last_offset();
            return Some(EndedTransaction {
                producer_id: header.producer_id,
                first_offset,
                last_offset,
                last_stable_offset: self.first_unstable_offset().unwrap_or(last_offset + 1),
                marker,
            });
        }
        if entry.batches.len() == BATCHES_KEPT {
            entry.batches.pop_front();
        }
        entry.batches.push_back(BatchMetadata::of(header));
        if header.is_transactional() && entry.transaction_first_offset.is_none() {
            entry.transaction_first_offset = Some(header.base_offset);
            self.open_transactions.insert(header.base_offset);
        }
        None
    }

    /// The transaction has begun here, or is over. The guard of the next one stays where the marker of the one before comes
    /// late (with epochs of their own).
    fn end_verification(&mut self, header: &BatchHeader) {
        let next_begins = |verifying: &Verifying| {
            verifying.bumps_epoch && header.is_control() && verifying.epoch == header.producer_epoch
        };
        if self.verifying.get(&header.producer_id).is_some_and(|verifying| !next_begins(verifying)) {
            self.verifying.remove(&header.producer_id);
        }
    }

    /// Puts batches that were appended in front of those that are known, as far as they are of the same epoch. False when
    /// a producer that wrote at `first_offset` or later may have written more of the five before that.
    pub fn add_earlier(&mut self, earlier: &EarlierBatches, first_offset: i64) -> bool {
        let mut complete = true;
        for (producer_id, entry) in &mut self.producers {
            // Without a batch of this epoch there is nothing to put others in front of.
            let Some(last) = entry.batches.back().copied() else { continue };
            let headers = earlier.get(producer_id).map(Vec::as_slice).unwrap_or_default();
            let same_epoch = headers.iter().filter(|header| header.producer_epoch == entry.epoch);
            let mut batches: VecDeque<BatchMetadata> =
                same_epoch.filter(|header| header.last_offset() < last.last_offset).map(BatchMetadata::of).collect();
            batches.push_back(last);
            batches.drain(..batches.len().saturating_sub(BATCHES_KEPT));
            let begins = batches.front().is_some_and(|first| first.first_sequence() == 0);
            complete &= begins || batches.len() == BATCHES_KEPT || last.last_offset < first_offset;
            entry.batches = batches;
        }
        complete || first_offset == i64::MIN
    }

    /// Forgets producers that wrote nothing since `expired_before_ms` and have no open transaction.
    pub fn expire(&mut self, expired_before_ms: i64) {
        self.producers.retain(|_, entry| {
            entry.transaction_first_offset.is_some() || entry.last_timestamp_ms >= expired_before_ms
        });
        self.verifying.retain(|_, verifying| verifying.since_ms >= expired_before_ms);
    }

    /// Reads a snapshot. `InvalidData` when its CRC or its version does not fit.
    pub fn read_snapshot(disk: &dyn Disk, path: &Path) -> io::Result<ProducerState> {
        let bytes = disk::read_file(disk, path)?;
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let version = bytes.first_chunk::<2>().map(|b| i16::from_be_bytes(*b));
        if version != Some(SNAPSHOT_VERSION) {
            return Err(invalid(format!("snapshot version {version:?} is not supported")));
        }
        let covered = bytes.get(SNAPSHOT_ENTRIES_AT..).unwrap_or_default();
        let computed = crc32c::crc32c(covered);
        let mut reader = Reader::new(Bytes::from(bytes).slice(SNAPSHOT_CRC_AT..));
        let snapshot = ProducerSnapshot::decode(&mut reader, SNAPSHOT_VERSION).map_err(|e| invalid(e.to_string()))?;
        if snapshot.crc != computed {
            return Err(invalid(format!("its CRC is {:#010x}, its contents give {computed:#010x}", snapshot.crc)));
        }
        let mut state = ProducerState::default();
        for entry in snapshot.producer_entries {
            let mut batches = VecDeque::new();
            if entry.last_offset >= 0 {
                batches.push_back(BatchMetadata {
                    last_sequence: entry.last_sequence,
                    last_offset: entry.last_offset,
                    offset_delta: entry.offset_delta,
                    timestamp_ms: entry.timestamp,
                });
            }
            let transaction_first_offset =
                (entry.current_txn_first_offset >= 0).then_some(entry.current_txn_first_offset);
            state.open_transactions.extend(transaction_first_offset);
            let producer = ProducerEntry {
                epoch: entry.epoch,
                coordinator_epoch: entry.coordinator_epoch,
                last_timestamp_ms: entry.timestamp,
                transaction_first_offset,
                batches,
            };
            state.producers.insert(entry.producer_id, producer);
        }
        Ok(state)
    }

    /// What a snapshot's file holds.
    pub fn encode_snapshot(&self) -> io::Result<Bytes> {
        let mut entries: Vec<SnapshotEntry> = self.producers.iter().map(snapshot_entry).collect();
        entries.sort_unstable_by_key(|entry| entry.producer_id);
        let encode = |crc: u32, entries: Vec<SnapshotEntry>| -> io::Result<(Bytes, Vec<SnapshotEntry>)> {
            let snapshot = ProducerSnapshot { crc, producer_entries: entries };
            let mut writer = Writer::new();
            writer.i16(SNAPSHOT_VERSION);
            snapshot.encode(&mut writer, SNAPSHOT_VERSION).map_err(io::Error::other)?;
            Ok((writer.finish().into_bytes().map_err(io::Error::other)?, snapshot.producer_entries))
        };
        let (bytes, entries) = encode(0, entries)?;
        let crc = crc32c::crc32c(bytes.get(SNAPSHOT_ENTRIES_AT..).unwrap_or_default());
        Ok(encode(crc, entries)?.0)
    }

    /// Writes a snapshot, durably but for its name: the caller syncs the directory.
    pub fn write_snapshot(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        let bytes = self.encode_snapshot()?;
        let file = disk.open(path, disk::OpenMode::Truncate)?;
        file.write_all_at(&mut [io::IoSlice::new(&bytes)], 0)?;
        file.sync()
    }
}

fn snapshot_entry((&producer_id, entry): (&i64, &ProducerEntry)) -> SnapshotEntry {
    let last = entry.batches.back();
    SnapshotEntry {
        producer_id,
        epoch: entry.epoch,
        last_sequence: last.map_or(NO_SEQUENCE, |batch| batch.last_sequence),
        last_offset: last.map_or(-1, |batch| batch.last_offset),
        offset_delta: last.map_or(0, |batch| batch.offset_delta),
        timestamp: entry.last_timestamp_ms,
        coordinator_epoch: entry.coordinator_epoch,
        current_txn_first_offset: entry.transaction_first_offset.unwrap_or(-1),
    }
}

/// The path of the snapshot at `offset`.
pub(crate) fn snapshot_path(dir: &Path, offset: i64) -> PathBuf {
    dir.join(format!("{offset:020}.snapshot"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_protocol::batch::BatchBuilder;
    use caudal_protocol::compression::Codec;

    fn header(producer_id: i64, epoch: i16, sequence: i32, count: usize, base_offset: i64) -> BatchHeader {
        let mut builder =
            BatchBuilder::new(Codec::None).producer(producer_id, epoch, sequence).base_offset(base_offset);
        (0..count).for_each(|_| builder.append(5, None, Some(b"v"), &[]));
        BatchHeader::parse(&builder.build().unwrap()).unwrap()
    }

    #[test]
    fn retries_find_their_batch_and_gaps_are_refused() {
        let mut state = ProducerState::default();
        for n in 0..7 {
            let batch = header(1, 0, n * 2, 2, i64::from(n) * 2);
            assert_eq!(state.duplicate_of(&batch), None);
            state.check(&batch, AppendOrigin::Client, Verification::None).unwrap();
            state.update(&batch, None);
        }
        assert_eq!(state.duplicate_of(&header(1, 0, 8, 2, 99)).map(|batch| batch.first_offset()), Some(8));
        assert_eq!(state.duplicate_of(&header(1, 0, 2, 2, 99)), None, "only the last five are kept");
        let gap = state.check(&header(1, 0, 15, 1, 99), AppendOrigin::Client, Verification::None);
        assert!(matches!(gap, Err(AppendError::OutOfOrderSequence { sequence: 15, last_sequence: 13, .. })), "{gap:?}");
        state.check(&header(1, 0, 15, 1, 99), AppendOrigin::Replication, Verification::None).unwrap();
        assert!(
            state.check(&header(1, 1, 3, 1, 99), AppendOrigin::Client, Verification::None).is_err(),
            "a new epoch begins at 0"
        );
        state.update(&header(1, 1, 0, 1, 99), None);
        let old = state.check(&header(1, 0, 14, 1, 99), AppendOrigin::Client, Verification::None);
        assert!(matches!(old, Err(AppendError::InvalidProducerEpoch { .. })), "{old:?}");
    }

    #[test]
    fn sequences_wrap() {
        let mut state = ProducerState::default();
        state.update(&header(1, 0, i32::MAX - 1, 2, 0), None);
        let wrapped = header(1, 0, 0, 3, 2);
        state.check(&wrapped, AppendOrigin::Client, Verification::None).unwrap();
        let over = header(2, 0, i32::MAX, 2, 5);
        state.update(&over, None);
        assert_eq!(state.duplicate_of(&over).map(|batch| batch.first_sequence()), Some(i32::MAX));
    }

    #[test]
    fn snapshots_round_trip_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = snapshot_path(dir.path(), 7);
        let mut state = ProducerState::default();
        state.update(&header(1, 0, 0, 2, 0), None);
        state.update(&header(9, 3, 0, 1, 2), None);
        state.write_snapshot(&disk::RealDisk, &path).unwrap();
        let read = ProducerState::read_snapshot(&disk::RealDisk, &path).unwrap();
        assert_eq!(read.producers, state.producers);
        let mut bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
            assert!(ProducerState::read_snapshot(&disk::RealDisk, &path).is_err(), "byte {at}");
            bytes[at] ^= 4;
        }
    }
}
