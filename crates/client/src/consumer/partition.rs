//! What the consumer knows of a partition that it reads, and the records it hands out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use caudal_protocol::batch::{Batch, TimestampType};
use caudal_protocol::record::{Header, Record};
use caudal_protocol::{ErrorCode, TopicPartition};

use super::offsets::Lookup;
use crate::error::{Error, Result};
use crate::offsets::OffsetSpec;

/// Decompressed size up to which a batch is read.
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
    records: VecDeque<Record>,
    timestamp_type: TimestampType,
    leader_epoch: i32,
    /// The position when all its records are handed out.
    next_offset: i64,
    size_bytes: usize,
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

    pub(super) fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    pub(super) fn has_records(&self) -> bool {
        !self.paused && !self.buffered.is_empty()
    }

    /// Takes fetched batches in; `next_offset` is where the next fetch goes on.
    pub(super) fn buffer(&mut self, batches: &[Batch], next_offset: i64) -> Result<()> {
        for batch in batches {
            let failed =
                |source| Error::Record { partition: TopicPartition::new(&*self.topic, self.partition), source };
            let records = batch.records(BATCH_LIMIT_BYTES).and_then(|r| r.to_records()).map_err(failed)?;
            self.buffered_bytes += batch.bytes.len();
            self.buffered.push_back(Buffered {
                records: records.into(),
                timestamp_type: batch.header.timestamp_type(),
                leader_epoch: batch.header.partition_leader_epoch,
                next_offset: batch.header.next_offset(),
                size_bytes: batch.bytes.len(),
            });
        }
        // Behind the last batch there may be some that nobody sees; the position passes them too.
        if batches.last().is_none_or(|b| b.header.next_offset() < next_offset) {
            self.buffered.push_back(Buffered {
                records: VecDeque::new(),
                timestamp_type: TimestampType::CreateTime,
                leader_epoch: -1,
                next_offset,
                size_bytes: 0,
            });
        }
        self.fetch_offset = next_offset;
        Ok(())
    }

    /// Hands out up to `max` records and moves the position behind them.
    pub(super) fn take(&mut self, max: usize, records: &mut Vec<ConsumerRecord>) {
        let position = self.position.unwrap_or(0);
        while let Some(first) = self.buffered.front_mut() {
            while records.len() < max {
                let Some(record) = first.records.pop_front() else { break };
                // The batch may begin before the position.
                if record.offset < position {
                    continue;
                }
                self.position = Some(record.offset + 1);
                self.leader_epoch = Some(first.leader_epoch).filter(|epoch| *epoch >= 0);
                records.push(ConsumerRecord {
                    topic: Arc::clone(&self.topic),
                    partition: self.partition,
                    offset: record.offset,
                    timestamp_ms: record.timestamp_ms,
                    timestamp_type: first.timestamp_type,
                    leader_epoch: first.leader_epoch,
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                });
            }
            if !first.records.is_empty() {
                return;
            }
            self.position = Some(first.next_offset.max(position));
            self.buffered_bytes -= first.size_bytes;
            self.buffered.pop_front();
        }
    }
}

/// What to do about an error that a fetch gave for a partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FetchFailure {
    /// Ask for the leader again and fetch again.
    Refresh,
    OffsetOutOfRange,
    Fatal,
}

impl FetchFailure {
    pub(super) fn of(code: ErrorCode) -> FetchFailure {
        match code {
            ErrorCode::OffsetOutOfRange => FetchFailure::OffsetOutOfRange,
            code if code.is_retriable() || code == ErrorCode::UnknownServerError => FetchFailure::Refresh,
            _ => FetchFailure::Fatal,
        }
    }
}
