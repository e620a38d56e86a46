//! What the consumer knows of a partition that it reads, and the records it hands out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use caudal_protocol::batch::{Batch, TimestampType};
use caudal_protocol::record::{BatchRecords, Header, RecordPosition};
use caudal_protocol::{ErrorCode, TopicPartition};

use super::offsets::Lookup;
use crate::error::{Error, Result};
use crate::offsets::OffsetSpec;

/// Decompressed size up to which a batch is read: what claims more is refused, so that a small batch cannot take all
/// memory. A partition has one batch decompressed at a time.
const BATCH_LIMIT_BYTES: usize = 1 << 30;

/// A record that was read. Key, value and headers are slices of the fetched batch: keeping one keeps the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerRecord {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since the epoch; -1 when the producer gave none.
    pub timestamp_ms: i64,
    pub timestamp_type: TimestampType,
    /// -1 when not known.
    pub leader_epoch: i32,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

/// A batch that was fetched and not yet handed out in full.
#[derive(Debug)]
struct Buffered {
    /// `None`: batches that nobody sees.
    batch: Option<Batch>,
    /// Decompressed when its turn comes.
    records: Option<BatchRecords>,
    at: RecordPosition,
    /// The position when all its records are handed out.
    next_offset: i64,
}

impl Buffered {
    fn size_bytes(&self) -> usize {
        self.batch.as_ref().map_or(0, |batch| batch.bytes.len())
    }
}

#[derive(Debug)]
pub(super) struct PartitionState {
    topic: Arc<str>,
    partition: i32,
    /// The next offset to hand out; `None` until it was looked up.
    pub position: Option<i64>,
    /// The next offset to fetch: ahead of the position by what is buffered.
    pub fetch_offset: i64,
    /// Grows with every seek: answers to older questions are void.
    pub epoch: u64,
    /// Where to begin, while that is to be looked up.
    pub wanted: Option<Wanted>,
    pub looking_up: bool,
    pub paused: bool,
    /// The next record cannot be read: nothing is fetched until a seek.
    stuck: bool,
    /// No fetch before this.
    pub retry_at: Option<Instant>,
    /// Of the last record handed out; for commits.
    pub leader_epoch: Option<i32>,
    pub high_watermark: Option<i64>,
    buffered: VecDeque<Buffered>,
    buffered_bytes: usize,
}

/// Where a partition is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// At the committed offset, else where the policy says.
    Committed,
    At(OffsetSpec),
}

impl PartitionState {
    pub(super) fn new(topic: Arc<str>, partition: i32, epoch: u64) -> PartitionState {
        PartitionState {
            topic,
            partition,
            position: None,
            fetch_offset: 0,
            epoch,
            wanted: Some(Wanted::Committed),
            looking_up: false,
            paused: false,
            stuck: false,
            retry_at: None,
            leader_epoch: None,
            high_watermark: None,
            buffered: VecDeque::new(),
            buffered_bytes: 0,
        }
    }

    /// Continues at an offset; drops what is buffered.
    pub(super) fn seek(&mut self, offset: i64) {
        self.restart();
        self.position = Some(offset);
        self.fetch_offset = offset;
        self.wanted = None;
    }

    /// Continues at a place that is to be looked up.
    pub(super) fn look_up(&mut self, wanted: Wanted) {
        self.restart();
        self.position = None;
        self.wanted = Some(wanted);
    }

    fn restart(&mut self) {
        self.epoch += 1;
        self.looking_up = false;
        self.stuck = false;
        self.retry_at = None;
        self.leader_epoch = None;
        self.buffered.clear();
        self.buffered_bytes = 0;
    }

    /// The question that is to be asked now.
    pub(super) fn lookup(&mut self, partition: &TopicPartition, now: Instant) -> Option<Lookup> {
        let wanted = self.wanted?;
        if self.looking_up || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        self.looking_up = true;
        let spec = match wanted {
            Wanted::Committed => None,
            Wanted::At(spec) => Some(spec),
        };
        Some(Lookup { partition: partition.clone(), epoch: self.epoch, spec })
    }

    /// Whether there is a place to read at, and a use for what is there.
    pub(super) fn is_fetchable(&self) -> bool {
        self.position.is_some() && !self.paused && !self.stuck
    }

    pub(super) fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    pub(super) fn has_records(&self) -> bool {
        !self.paused && !self.buffered.is_empty()
    }

    /// Takes fetched batches in; `next_offset` is where the next fetch goes on.
    pub(super) fn buffer(&mut self, batches: Vec<Batch>, next_offset: i64) {
        let seen = batches.last().map(|batch| batch.header.next_offset());
        let mut push = |batch: Option<Batch>, next_offset| {
            let buffered = Buffered { batch, records: None, at: RecordPosition::default(), next_offset };
            self.buffered_bytes += buffered.size_bytes();
            self.buffered.push_back(buffered);
        };
        for batch in batches {
            let next_offset = batch.header.next_offset();
            push(Some(batch), next_offset);
        }
        // Behind the last batch there may be some that nobody sees; the position passes them too.
        if seen.is_none_or(|seen| seen < next_offset) {
            push(None, next_offset);
        }
        self.fetch_offset = next_offset;
    }

    /// Hands out records until there are `max`, and moves the position behind them.
    ///
    /// # Errors
    /// The next record cannot be read; those before it were handed out. The position stays before it: whoever wants to go
    /// on seeks behind its batch.
    pub(super) fn take(&mut self, max: usize, records: &mut Vec<ConsumerRecord>) -> Result<()> {
        let taken = self.take_buffered(max, records);
        self.stuck = taken.is_err();
        taken
    }

    fn take_buffered(&mut self, max: usize, records: &mut Vec<ConsumerRecord>) -> Result<()> {
        while let Some(first) = self.buffered.front_mut() {
            let position = self.position.unwrap_or(0);
            if let Some(batch) = &first.batch {
                let failed =
                    |source| Error::Record { partition: TopicPartition::new(&*self.topic, self.partition), source };
                let decoded = match &mut first.records {
                    Some(decoded) => decoded,
                    none => none.insert(batch.records(BATCH_LIMIT_BYTES).map_err(failed)?),
                };
                let mut iter = decoded.iter_from(first.at);
                while records.len() < max {
                    let Some(record) = iter.next() else { break };
                    let record = record.map_err(failed)?;
                    // The batch may begin before the position.
                    if record.offset >= position {
                        let record = decoded.share_record(&record).map_err(failed)?;
                        self.position = Some(record.offset + 1);
                        self.leader_epoch = Some(batch.header.partition_leader_epoch).filter(|epoch| *epoch >= 0);
                        records.push(ConsumerRecord {
                            topic: Arc::clone(&self.topic),
                            partition: self.partition,
                            offset: record.offset,
                            timestamp_ms: record.timestamp_ms,
                            timestamp_type: batch.header.timestamp_type(),
                            leader_epoch: batch.header.partition_leader_epoch,
                            key: record.key,
                            value: record.value,
                            headers: record.headers,
                        });
                    }
                    first.at = decoded.position(&iter);
                }
                if iter.next().is_some() {
                    return Ok(());
                }
            }
            self.position = Some(first.next_offset.max(self.position.unwrap_or(0)));
            self.buffered_bytes -= first.size_bytes();
            self.buffered.pop_front();
        }
        Ok(())
    }
}

/// What to do about an error that a fetch gave for a partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FetchFailure {
    /// Ask for the leader again and fetch again.
    Refresh,
    OffsetOutOfRange,
    /// The records there are damaged; they will not get better.
    Damaged,
    Fatal,
}

impl FetchFailure {
    pub(super) fn of(code: ErrorCode) -> FetchFailure {
        match code {
            ErrorCode::OffsetOutOfRange => FetchFailure::OffsetOutOfRange,
            // Retriable for who writes.
            ErrorCode::CorruptMessage => FetchFailure::Damaged,
            code if code.is_retriable() || code == ErrorCode::UnknownServerError => FetchFailure::Refresh,
            _ => FetchFailure::Fatal,
        }
    }
}

#[cfg(test)]
mod tests {
    use caudal_protocol::batch::{BatchBuilder, HEADER_LEN, stamp_producer};
    use caudal_protocol::compression::Codec;

    use super::*;

    /// `count` records of a value each, from `base_offset` on.
    fn batch(codec: Codec, base_offset: i64, count: usize, change: impl FnOnce(&mut [u8])) -> Batch {
        let mut builder = BatchBuilder::new(codec).base_offset(base_offset);
        (0..count).for_each(|n| builder.append(n as i64, None, Some(b"value"), &[]));
        let mut bytes = builder.build().unwrap();
        change(&mut bytes);
        // Puts the CRC right.
        stamp_producer(&mut bytes, -1, -1, -1);
        Batch::parse(&bytes.freeze()).unwrap()
    }

    fn state(batches: Vec<Batch>, next_offset: i64) -> PartitionState {
        let mut state = PartitionState::new("games".into(), 3, 0);
        state.seek(0);
        state.buffer(batches, next_offset);
        state
    }

    fn offsets(state: &mut PartitionState, max: usize) -> Vec<i64> {
        let mut records = Vec::new();
        state.take(max, &mut records).unwrap();
        records.iter().map(|record| record.offset).collect()
    }

    #[test]
    fn records_are_handed_out_piece_by_piece() {
        for codec in Codec::ALL {
            let mut state = state(vec![batch(codec, 0, 5, |_| {}), batch(codec, 5, 3, |_| {})], 10);
            assert_eq!(offsets(&mut state, 2), [0, 1]);
            assert_eq!((offsets(&mut state, 4), state.position), (vec![2, 3, 4, 5], Some(6)));
            assert!(state.has_records());
            assert_eq!((offsets(&mut state, 9), state.position), (vec![6, 7], Some(10)));
            assert_eq!((state.has_records(), state.buffered_bytes()), (false, 0));
        }
    }

    /// What a broker that does not look into compressed batches may pass on.
    #[test]
    fn a_batch_of_nonsense_is_named_and_can_be_passed() {
        type Change = fn(&mut [u8]);
        let count: Change = |bytes| bytes[57..61].copy_from_slice(&9i32.to_be_bytes());
        let cases: [(Codec, Change); 5] = [
            (Codec::None, |bytes| bytes[HEADER_LEN] = 100),
            (Codec::Gzip, |bytes| bytes[HEADER_LEN + 12] ^= 0xff),
            (Codec::Snappy, |bytes| bytes[HEADER_LEN + 16] ^= 0xff),
            (Codec::Lz4, count),
            (Codec::Zstd, count),
        ];
        for (codec, change) in cases {
            let batches = vec![batch(codec, 0, 5, |_| {}), batch(codec, 5, 3, change), batch(codec, 8, 2, |_| {})];
            let mut state = state(batches, 10);
            let mut records = Vec::new();
            let error = loop {
                if let Err(error) = state.take(100, &mut records) {
                    break error.to_string();
                }
            };
            assert!(error.contains("games-3") && error.contains("offset 5"), "{codec}: {error}");
            assert!(records.len() >= 5 && records.iter().zip(0..).all(|(r, n)| r.offset == n), "{codec}: {records:?}");
            let stuck = state.position;
            let again = state.take(100, &mut records).unwrap_err().to_string();
            assert_eq!((again, state.position), (error, stuck), "{codec}");
            state.seek(8);
            state.buffer(vec![batch(codec, 8, 2, |_| {})], 10);
            assert_eq!(offsets(&mut state, 100), [8, 9], "{codec}");
        }
    }
}
