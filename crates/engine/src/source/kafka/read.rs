//! Reading offsets as columns, within a budget of memory.
//!
//! How large records are is known only when they are there: compressed they say little. So a batch that the user did not
//! limit is read before its end is decided: in steps, each of a size that the last one suggests and each shared among the
//! partitions by what they have, until the columns fill the budget.

use std::collections::{BTreeMap, VecDeque};

use arrow::array::RecordBatch;
use caudal_client::{Chunk, Error, OffsetRange, OffsetSpec};
use caudal_protocol::TopicPartition;

use super::columns::{Projection, to_columns};
use super::offsets::{KafkaOffsets, limit};
use super::{KafkaSource, failed};
use crate::error::EngineError;
use crate::source::SourceOffset;

/// What one micro-batch may hold when the user set no limit, in bytes of columns.
pub(super) const BATCH_BYTES: usize = 64 * 1024 * 1024;
/// The records of the first step, while their size is not known.
const FIRST_RECORDS: u64 = 4_096;
/// How many times the records read so far a step may have.
const GROWTH: u64 = 16;
/// Chunks from this size on are decoded on threads of their own.
const PARALLEL_BYTES: usize = 256 * 1024;
/// Chunks that are decoded at the same time: what is not decoded yet stays in the log.
const DECODING: usize = 4;

/// Columns by partition, in the order of the offsets.
#[derive(Debug, Default)]
pub(super) struct Rows {
    parts: BTreeMap<TopicPartition, Vec<RecordBatch>>,
    /// Of the columns, in memory.
    bytes: usize,
    records: u64,
}

impl Rows {
    fn add(&mut self, partition: TopicPartition, batches: Vec<RecordBatch>) {
        for batch in &batches {
            self.bytes = self.bytes.saturating_add(batch.get_array_memory_size());
            self.records += batch.num_rows() as u64;
        }
        self.parts.entry(partition).or_default().extend(batches);
    }

    pub(super) fn into_parts(self) -> Vec<Vec<RecordBatch>> {
        self.parts.into_values().collect()
    }
}

/// A batch that was read when its end was decided.
pub(super) struct Prepared {
    pub(super) start: SourceOffset,
    pub(super) end: SourceOffset,
    pub(super) rows: Rows,
}

impl KafkaSource {
    /// Reads from `begin` on, at most to `ends`, until the columns take about `budget_bytes`. Returns the end reached.
    pub(super) async fn fill(
        &mut self,
        begin: KafkaOffsets,
        ends: &KafkaOffsets,
        budget_bytes: usize,
    ) -> Result<(KafkaOffsets, Rows), ReadError> {
        let (mut at, mut rows) = (begin, Rows::default());
        let mut steps = 0;
        loop {
            let records = self.step_records(&rows, steps, budget_bytes);
            let target = limit(&at, ends, records);
            let complete = self.read_into(&mut rows, &mut at, &target, budget_bytes.saturating_mul(2)).await?;
            if rows.records > 0 {
                self.record_bytes = Some(rows.bytes as f64 / rows.records as f64);
            }
            steps += 1;
            if !complete || at.distance(ends) == 0 || rows.bytes >= budget_bytes / 4 * 3 {
                return Ok((at, rows));
            }
        }
    }

    fn step_records(&self, rows: &Rows, steps: u32, budget_bytes: usize) -> u64 {
        let room = budget_bytes.saturating_sub(rows.bytes) as f64;
        let fitting = self.record_bytes.map_or(FIRST_RECORDS, |bytes| (room / bytes.max(1.0)) as u64);
        let most = if steps == 0 { u64::MAX } else { rows.records.max(FIRST_RECORDS).saturating_mul(GROWTH) };
        fitting.min(most).max(1)
    }

    /// Reads from `at` to `target`, moving `at`. Stops on the way, and returns `false`, when the columns take `most_bytes`.
    pub(super) async fn read_into(
        &self,
        rows: &mut Rows,
        at: &mut KafkaOffsets,
        target: &KafkaOffsets,
        most_bytes: usize,
    ) -> Result<bool, ReadError> {
        loop {
            let range = |(tp, end): (&TopicPartition, &i64)| OffsetRange {
                partition: tp.clone(),
                start: at.get(tp).unwrap_or(*end),
                end: *end,
            };
            let ranges: Vec<OffsetRange> = target.0.iter().map(range).filter(|r| r.start < r.end).collect();
            if ranges.is_empty() {
                return Ok(true);
            }
            match self.read_ranges(&ranges, rows, at, most_bytes).await {
                Err(RangeError::OutOfRange { partition, offset }) => {
                    self.data_loss(&format!("Offset {offset} of {partition} is out of range."))?;
                    let first = self.list(std::slice::from_ref(&partition), OffsetSpec::Earliest).await?;
                    // Always ahead, or this would not end.
                    let next = first.get(&partition).unwrap_or(0).max(offset.saturating_add(1));
                    at.0.insert(partition, next);
                }
                Err(RangeError::Other(error)) => return Err(error),
                Ok(complete) => return Ok(complete),
            }
        }
    }

    async fn read_ranges(
        &self,
        ranges: &[OffsetRange],
        rows: &mut Rows,
        at: &mut KafkaOffsets,
        most_bytes: usize,
    ) -> Result<bool, RangeError> {
        let mut chunks = self.cluster.read(ranges.to_vec());
        let mut decoding: VecDeque<(TopicPartition, Decoding)> = VecDeque::new();
        let mut result = Ok(true);
        loop {
            let chunk = match chunks.next().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(Error::OffsetOutOfRange { partition, offset }) => {
                    result = Err(RangeError::OutOfRange { partition, offset });
                    break;
                }
                Err(error) => return Err(failed("read records from", &error).into()),
            };
            if self.is_of_another_topic(&chunk) {
                return Err(ReadError::AnotherTopic.into());
            }
            let Some(range) = ranges.iter().find(|r| r.partition == chunk.partition) else { continue };
            at.0.insert(chunk.partition.clone(), chunk.next_offset.min(range.end));
            let partition = chunk.partition.clone();
            // What lies before the place reached was read by the step before.
            decoding.push_back((partition, Decoding::start(&self.projection, chunk, (range.start, range.end))));
            if decoding.len() >= DECODING
                && let Some((partition, oldest)) = decoding.pop_front()
            {
                rows.add(partition, oldest.finish().await?);
            }
            if rows.bytes >= most_bytes {
                result = Ok(ranges.iter().all(|range| at.get(&range.partition) == Some(range.end)));
                break;
            }
        }
        drop(chunks);
        for (partition, rest) in decoding {
            rows.add(partition, rest.finish().await?);
        }
        result
    }
}

pub(super) enum ReadError {
    /// The records are of a topic that was made since the offsets to read were decided.
    AnotherTopic,
    Other(EngineError),
}

impl From<EngineError> for ReadError {
    fn from(error: EngineError) -> Self {
        ReadError::Other(error)
    }
}

/// Why ranges were not read.
enum RangeError {
    OutOfRange { partition: TopicPartition, offset: i64 },
    Other(ReadError),
}

impl<E: Into<ReadError>> From<E> for RangeError {
    fn from(error: E) -> Self {
        RangeError::Other(error.into())
    }
}

/// A chunk on its way to columns: large ones on another thread, beside the fetch of the next.
enum Decoding {
    Done(Result<Vec<RecordBatch>, EngineError>),
    Running(tokio::task::JoinHandle<Result<Vec<RecordBatch>, EngineError>>),
}

impl Decoding {
    fn start(projection: &Projection, chunk: Chunk, range: (i64, i64)) -> Self {
        let Chunk { partition: tp, batches, .. } = chunk;
        let bytes: usize = batches.iter().map(|b| b.bytes.len()).sum();
        if bytes < PARALLEL_BYTES {
            return Decoding::Done(to_columns(projection, &tp.topic, tp.partition, &batches, range));
        }
        let projection = projection.clone();
        Decoding::Running(tokio::task::spawn_blocking(move || {
            to_columns(&projection, &tp.topic, tp.partition, &batches, range)
        }))
    }

    async fn finish(self) -> Result<Vec<RecordBatch>, EngineError> {
        match self {
            Decoding::Done(result) => result,
            Decoding::Running(handle) => handle.await.map_err(|error| EngineError::External {
                action: "decode records".to_owned(),
                message: error.to_string(),
            })?,
        }
    }
}
