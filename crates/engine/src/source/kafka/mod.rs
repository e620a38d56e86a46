//! Kafka topics as a stream and as a table: Spark's Kafka source, with its options, schema and offsets.
//!
//! A micro-batch reads exactly the offsets between two ends that stand in the query's log. Raw record batches go from the
//! client straight into Arrow columns ([`columns`]), only those that the plan uses. The ends come from the long poll that
//! woke the query where there was one, so that a small batch costs no request of its own for them.

pub mod cluster;
mod columns;
mod group;
mod offsets;
pub(crate) mod options;
mod start;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use caudal_client::{Chunk, Error, OffsetRange, OffsetSpec};
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};

use super::{Source, SourceOffset};
use crate::error::EngineError;
use crate::options::Options;
use crate::plan::SourceFactory;
use cluster::{ClientCluster, Cluster};
pub use columns::full_schema;
use columns::{Projection, to_columns};
use group::GroupCommits;
pub use offsets::KafkaOffsets;
use options::{KafkaOptions, Limit, Subscription};

/// How often the cluster is asked for new topics and partitions.
const METADATA_INTERVAL: Duration = Duration::from_secs(5);
/// What one micro-batch may hold when the user set no limit, in bytes as they lie in the log.
const BATCH_BYTES: f64 = 128.0 * 1024.0 * 1024.0;
/// The size of a record before the first were read.
const ASSUMED_RECORD_BYTES: f64 = 128.0;
/// Chunks from this size on are decoded on threads of their own.
const PARALLEL_BYTES: usize = 256 * 1024;

/// Topics, described.
#[derive(Debug, Clone)]
pub struct KafkaTable {
    options: Arc<KafkaOptions>,
    bounded: bool,
}

impl KafkaTable {
    /// A stream of records.
    pub fn stream(options: &Options) -> Result<Self, EngineError> {
        Ok(KafkaTable { options: Arc::new(KafkaOptions::new(options, false)?), bounded: false })
    }

    /// The records between two ends, as a table.
    pub fn table(options: &Options) -> Result<Self, EngineError> {
        Ok(KafkaTable { options: Arc::new(KafkaOptions::new(options, true)?), bounded: true })
    }

    /// A source over this cluster.
    pub fn open_on(
        &self,
        cluster: Arc<dyn Cluster>,
        checkpoint_dir: Option<&Path>,
    ) -> Result<KafkaSource, EngineError> {
        Ok(KafkaSource {
            projection: Projection::all(self.options.include_headers),
            topic_ids: start::read_topic_ids(checkpoint_dir)?,
            options: Arc::clone(&self.options),
            cluster,
            bounded: self.bounded,
            checkpoint_dir: checkpoint_dir.map(Path::to_owned),
            partitions: Vec::new(),
            refreshed_at: None,
            ends: KafkaOffsets::default(),
            ends_are_fresh: false,
            last_batch_at: None,
            record_bytes: ASSUMED_RECORD_BYTES,
            commits: None,
        })
    }
}

#[async_trait]
impl SourceFactory for KafkaTable {
    async fn open(&self, checkpoint_dir: Option<&Path>) -> Result<Box<dyn Source>, EngineError> {
        let cluster = ClientCluster::connect(self.options.client.clone()).await.map_err(|e| failed("connect", &e))?;
        Ok(Box::new(self.open_on(Arc::new(cluster), checkpoint_dir)?))
    }

    fn schema(&self) -> SchemaRef {
        full_schema(self.options.include_headers)
    }

    fn description(&self) -> String {
        self.options.description()
    }
}

/// A client's failure; `what` completes "failed to ... Kafka".
fn failed(what: &str, error: &Error) -> EngineError {
    let message = error.to_string();
    EngineError::External {
        action: format!("{what} Kafka"),
        message: message.strip_prefix("failed to ").map_or(message.clone(), |rest| format!("could not {rest}")),
    }
}

/// A stream of Kafka records.
pub struct KafkaSource {
    options: Arc<KafkaOptions>,
    cluster: Arc<dyn Cluster>,
    projection: Projection,
    bounded: bool,
    checkpoint_dir: Option<PathBuf>,
    /// By name, to notice a topic that was deleted and made again.
    topic_ids: BTreeMap<String, Uuid>,
    partitions: Vec<TopicPartition>,
    refreshed_at: Option<Instant>,
    /// The newest ends known.
    ends: KafkaOffsets,
    /// Whether a long poll has just told them.
    ends_are_fresh: bool,
    last_batch_at: Option<Instant>,
    /// Mean size of the records read last, with what a batch adds to them.
    record_bytes: f64,
    commits: Option<GroupCommits>,
}

impl KafkaSource {
    /// Asks for topics and partitions when the last answer is old.
    async fn refresh(&mut self) -> Result<(), EngineError> {
        if self.refreshed_at.is_some_and(|at| at.elapsed() < METADATA_INTERVAL) {
            return Ok(());
        }
        let topics = match self.cluster.topics(&self.options.topics()).await {
            Ok(topics) => topics,
            // A topic that was read before is gone.
            Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) && !self.partitions.is_empty() => {
                self.data_loss(&format!("{error}."))?;
                Vec::new()
            }
            Err(error) => return Err(failed("read the topics from", &error)),
        };
        let mut ids = self.topic_ids.clone();
        for topic in &topics {
            let before = ids.insert(topic.name.clone(), topic.id);
            if before.is_some_and(|before| before != topic.id && !before.is_zero() && !topic.id.is_zero()) {
                self.data_loss(&format!(
                    "Topic {} was deleted and created again: its offsets are not those of the checkpoint, \
                     some data may have been missed.",
                    topic.name
                ))?;
            }
        }
        if ids != self.topic_ids {
            start::write_topic_ids(self.checkpoint_dir.as_deref(), &ids)?;
            self.topic_ids = ids;
        }
        self.partitions = match &self.options.subscription {
            Subscription::Assign(partitions) => partitions.clone(),
            _ => {
                let all = topics.iter();
                all.flat_map(|t| t.partitions.iter().map(|p| TopicPartition::new(t.name.clone(), *p))).collect()
            }
        };
        self.refreshed_at = Some(Instant::now());
        Ok(())
    }

    /// Fails, or warns with `failOnDataLoss=false`.
    fn data_loss(&self, what: &str) -> Result<(), EngineError> {
        if self.options.fail_on_data_loss {
            return Err(EngineError::Invalid {
                class: "KAFKA_DATA_LOSS",
                message: format!(
                    "{what} Some data may have been lost because they are not available in Kafka any more; either the \
                     data was aged out by Kafka or the topic may have been deleted before all the data in the topic was \
                     processed. If you do not want your streaming query to fail on such cases, set the source option \
                     \"failOnDataLoss\" to \"false\"."
                ),
            });
        }
        tracing::warn!("{what} Some data may have been lost because they are not available in Kafka any more.");
        Ok(())
    }

    async fn list(&self, partitions: &[TopicPartition], spec: OffsetSpec) -> Result<KafkaOffsets, EngineError> {
        let wanted: Vec<_> = partitions.iter().map(|tp| (tp.clone(), spec)).collect();
        let listed = self.cluster.offsets(&wanted).await.map_err(|e| failed("read offsets from", &e))?;
        Ok(KafkaOffsets(listed.into_iter().collect()))
    }

    /// The current ends of all partitions.
    async fn refresh_ends(&mut self) -> Result<(), EngineError> {
        let partitions = self.partitions.clone();
        self.ends = self.list(&partitions, OffsetSpec::Latest).await?;
        Ok(())
    }

    /// `start` for every partition there is now: partitions that appeared since begin at their first offset, those that
    /// went are a loss of data, and so is an end before the start.
    async fn begin(&self, start: &KafkaOffsets, ends: &KafkaOffsets) -> Result<KafkaOffsets, EngineError> {
        let new: Vec<TopicPartition> = ends.0.keys().filter(|tp| start.get(tp).is_none()).cloned().collect();
        let mut begin = if new.is_empty() {
            KafkaOffsets::default()
        } else {
            let first = self.list(&new, OffsetSpec::Earliest).await?;
            for (tp, offset) in first.0.iter().filter(|(_, offset)| **offset > 0) {
                self.data_loss(&format!("Added partition {tp} starts from {offset} instead of 0."))?;
            }
            first
        };
        let mut shrunk = Vec::new();
        for (tp, offset) in &start.0 {
            match ends.get(tp) {
                None => self.data_loss(&format!("{tp} is gone."))?,
                Some(end) if end < *offset => {
                    self.data_loss(&format!("Partition {tp}'s offset was changed from {offset} to {end}."))?;
                    shrunk.push(tp.clone());
                }
                Some(_) => drop(begin.0.insert(tp.clone(), *offset)),
            }
        }
        if !shrunk.is_empty() {
            begin.0.extend(self.list(&shrunk, OffsetSpec::Earliest).await?.0);
        }
        Ok(begin)
    }

    /// Whether `minOffsetsPerTrigger` lets a batch of this size start now.
    fn is_enough(&self, records: u64) -> bool {
        let delay = Duration::from_millis(self.options.max_trigger_delay_ms);
        self.options.min_offsets.is_none_or(|min| records >= min)
            || self.last_batch_at.is_none_or(|at| at.elapsed() >= delay)
    }

    /// What one batch may hold: the user's limit, else what fits into memory.
    fn max_records(&self) -> u64 {
        self.options.max_offsets.unwrap_or((BATCH_BYTES / self.record_bytes.max(1.0)) as u64).max(1)
    }

    /// The positions to wait behind.
    fn positions(&self, after: &KafkaOffsets) -> Vec<(TopicPartition, i64)> {
        self.partitions.iter().map(|tp| (tp.clone(), after.get(tp).unwrap_or(0))).collect()
    }

    /// Where a wait with `minOffsetsPerTrigger` gives up waiting for more.
    fn trigger_deadline(&self) -> Option<Instant> {
        let delay = Duration::from_millis(self.options.max_trigger_delay_ms);
        self.options.min_offsets.and(self.last_batch_at).map(|at| at + delay)
    }

    /// The ranges of a batch, checked against what the log holds when its ends come from a checkpoint.
    async fn ranges(&mut self, start: &KafkaOffsets, end: &KafkaOffsets) -> Result<Vec<OffsetRange>, EngineError> {
        let mut end = end.clone();
        if end.0.iter().any(|(tp, end)| self.ends.get(tp).is_none_or(|known| known < *end)) {
            let partitions: Vec<TopicPartition> = end.0.keys().cloned().collect();
            let latest = self.list(&partitions, OffsetSpec::Latest).await?;
            for (tp, end) in &mut end.0 {
                let last = latest.get(tp).unwrap_or(0);
                if last < *end {
                    self.data_loss(&format!("Partition {tp}'s offset was changed from {end} to {last}."))?;
                    *end = last;
                }
            }
            self.ends.0.extend(latest.0);
        }
        let begin = self.begin(start, &end).await?;
        let range = |(tp, end): (&TopicPartition, &i64)| OffsetRange {
            partition: tp.clone(),
            start: begin.get(tp).unwrap_or(*end),
            end: *end,
        };
        Ok(end.0.iter().map(range).filter(|r| r.start < r.end).collect())
    }

    /// Reads the ranges; columns in the order of the ranges. `Err(Ok(range's start is gone))` asks for another try.
    async fn read_ranges(&mut self, ranges: &[OffsetRange]) -> Result<Vec<Vec<RecordBatch>>, ReadError> {
        let mut parts: Vec<Vec<Decoding>> = ranges.iter().map(|_| Vec::new()).collect();
        let mut chunks = self.cluster.read(ranges.to_vec());
        let mut log_bytes = 0;
        let mut records = 0;
        loop {
            let chunk = match chunks.next().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(Error::OffsetOutOfRange { partition, offset }) => {
                    return Err(ReadError::OutOfRange { partition, offset });
                }
                Err(error) => return Err(ReadError::Other(failed("read records from", &error))),
            };
            let Some(at) = ranges.iter().position(|r| r.partition == chunk.partition) else { continue };
            let (Some(range), Some(part)) = (ranges.get(at), parts.get_mut(at)) else { continue };
            log_bytes += chunk.batches.iter().map(|b| b.bytes.len()).sum::<usize>();
            records += chunk.batches.iter().map(|b| i64::from(b.header.record_count)).sum::<i64>();
            part.push(Decoding::start(&self.projection, chunk, (range.start, range.end)));
        }
        if records > 0 {
            self.record_bytes = log_bytes as f64 / records as f64;
        }
        let mut decoded = Vec::with_capacity(parts.len());
        for part in parts {
            let mut batches = Vec::new();
            for decoding in part {
                batches.extend(decoding.finish().await.map_err(ReadError::Other)?);
            }
            decoded.push(batches);
        }
        Ok(decoded)
    }
}

enum ReadError {
    OutOfRange { partition: TopicPartition, offset: i64 },
    Other(EngineError),
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

/// Cuts the lists of batches so that there are about `wanted` of them (`minPartitions`).
fn split(parts: Vec<Vec<RecordBatch>>, wanted: usize) -> Vec<Vec<RecordBatch>> {
    let rows: usize = parts.iter().flatten().map(RecordBatch::num_rows).sum();
    if parts.len() >= wanted || rows == 0 {
        return parts;
    }
    let target = rows.div_ceil(wanted).max(1);
    let mut pieces = Vec::new();
    for part in parts {
        let mut piece = Vec::new();
        let mut room = target;
        for batch in part {
            let mut batch = batch;
            while batch.num_rows() > room {
                piece.push(batch.slice(0, room));
                batch = batch.slice(room, batch.num_rows() - room);
                pieces.push(std::mem::take(&mut piece));
                room = target;
            }
            room -= batch.num_rows();
            piece.push(batch);
        }
        if !piece.is_empty() {
            pieces.push(piece);
        }
    }
    pieces
}

#[async_trait]
impl Source for KafkaSource {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.projection.schema)
    }

    fn description(&self) -> String {
        self.options.description()
    }

    fn project(&mut self, columns: &[usize]) -> bool {
        match self.projection.narrow(columns) {
            Some(projection) => {
                self.projection = projection;
                true
            }
            None => false,
        }
    }

    fn set_query_name(&mut self, name: &str) {
        let group = match (&self.options.group_id, &self.options.group_id_prefix) {
            (Some(id), _) => id.clone(),
            (None, Some(prefix)) => format!("{prefix}-{name}"),
            (None, None) => name.to_owned(),
        };
        self.commits = Some(GroupCommits::start(Arc::clone(&self.cluster), group));
    }

    async fn initial_offset(&mut self) -> Result<SourceOffset, EngineError> {
        if let Some(stored) = start::read_initial_offset(self.checkpoint_dir.as_deref())? {
            return Ok(stored.to_source_offset());
        }
        self.refresh().await?;
        let start = self.resolve(&self.options.start, true).await?;
        start::write_initial_offset(self.checkpoint_dir.as_deref(), &start)?;
        Ok(start.to_source_offset())
    }

    async fn next_offset(&mut self, start: &SourceOffset) -> Result<SourceOffset, EngineError> {
        let given = KafkaOffsets::from_source_offset(start)?;
        self.refresh().await?;
        if !std::mem::take(&mut self.ends_are_fresh) {
            self.refresh_ends().await?;
        }
        let begin = self.begin(&given, &self.ends).await?;
        let available = begin.distance(&self.ends);
        if available == 0 || !self.is_enough(available) {
            return Ok(start.clone());
        }
        self.last_batch_at = Some(Instant::now());
        Ok(offsets::limit(&begin, &self.ends, self.max_records()).to_source_offset())
    }

    async fn latest_offset(&mut self) -> Result<SourceOffset, EngineError> {
        self.refresh().await?;
        if self.bounded && self.options.end != Limit::Latest {
            return Ok(self.resolve(&self.options.end, false).await?.to_source_offset());
        }
        self.refresh_ends().await?;
        Ok(self.ends.to_source_offset())
    }

    async fn wait_beyond(&mut self, after: &SourceOffset) -> Result<(), EngineError> {
        let after = KafkaOffsets::from_source_offset(after)?;
        let mut behind = after.clone();
        loop {
            self.refresh().await?;
            let positions = self.positions(&behind);
            let refresh_at = self.refreshed_at.unwrap_or_else(Instant::now) + METADATA_INTERVAL;
            let wake_at = self.trigger_deadline().map_or(refresh_at, |deadline| deadline.min(refresh_at));
            let available = tokio::select! {
                available = self.cluster.wait_beyond(&positions), if !positions.is_empty() => {
                    available.map_err(|e| failed("wait for records from", &e))?
                }
                () = tokio::time::sleep_until(wake_at.into()) => Vec::new(),
            };
            for (tp, offset) in &positions {
                let end = self.ends.get(tp).unwrap_or(*offset).max(*offset);
                self.ends.0.insert(tp.clone(), end);
            }
            for found in available {
                self.ends.0.insert(found.partition.clone(), found.end_offset);
            }
            let ends =
                KafkaOffsets(positions.iter().filter_map(|(tp, _)| Some((tp.clone(), self.ends.get(tp)?))).collect());
            let records: u64 = ends
                .0
                .iter()
                .map(|(tp, end)| end.saturating_sub(after.get(tp).unwrap_or(0)).max(0).cast_unsigned())
                .sum();
            if records > 0 && self.is_enough(records) {
                self.ends = ends;
                self.ends_are_fresh = true;
                return Ok(());
            }
            // With `minOffsetsPerTrigger`: wait for more than there is.
            behind = ends;
        }
    }

    async fn read(&mut self, start: &SourceOffset, end: &SourceOffset) -> Result<Vec<Vec<RecordBatch>>, EngineError> {
        let start = KafkaOffsets::from_source_offset(start)?;
        let end = KafkaOffsets::from_source_offset(end)?;
        let mut ranges = self.ranges(&start, &end).await?;
        loop {
            let (tp, offset) = match self.read_ranges(&ranges).await {
                Ok(parts) => return Ok(split(parts, self.options.min_partitions)),
                Err(ReadError::Other(error)) => return Err(error),
                Err(ReadError::OutOfRange { partition, offset }) => (partition, offset),
            };
            self.data_loss(&format!("Offset {offset} of {tp} is out of range."))?;
            let first = self.list(std::slice::from_ref(&tp), OffsetSpec::Earliest).await?.get(&tp).unwrap_or(0);
            for range in ranges.iter_mut().filter(|r| r.partition == tp) {
                // Always ahead, or this would not end.
                range.start = first.max(offset.saturating_add(1));
            }
            ranges.retain(|r| r.start < r.end);
        }
    }

    async fn commit(&mut self, end: &SourceOffset) -> Result<(), EngineError> {
        if let Some(commits) = &self.commits {
            commits.commit(KafkaOffsets::from_source_offset(end)?);
        }
        Ok(())
    }
}
