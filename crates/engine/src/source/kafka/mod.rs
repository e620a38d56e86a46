//! Kafka topics as a stream and as a table: Spark's Kafka source, with its options, schema and offsets.
//!
//! A micro-batch reads exactly the offsets between two ends that stand in the query's log. Raw record batches go from the
//! client straight into Arrow columns ([`columns`]), only those that the plan uses. The ends come from the long poll that
//! woke the query where there was one, so that a small batch costs no request of its own for them. Without a limit of the
//! user's, a batch ends where its columns fill a budget of memory ([`read`]).

pub mod cluster;
mod columns;
mod group;
mod offsets;
pub(crate) mod options;
mod read;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use caudal_client::{Chunk, Error, OffsetSpec};
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};

use super::{NextOffset, ReadLimit, Source, SourceOffset};
use crate::error::EngineError;
use crate::options::Options;
use crate::plan::SourceFactory;
use cluster::{ClientCluster, Cluster};
use columns::Projection;
pub use columns::full_schema;
use group::GroupCommits;
pub use offsets::KafkaOffsets;
use options::{KafkaOptions, Limit, Subscription};
use read::{Prepared, ReadError, Rows};

/// How often the cluster is asked for new topics and partitions.
const METADATA_INTERVAL: Duration = Duration::from_secs(5);
/// How long the ends that a wait told are as good as new ones: what comes later makes the next batch.
const ENDS_AGE: Duration = Duration::from_millis(50);
/// The pause when a broker refuses an offset that it says it has: its metadata is about to change.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

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
        if self.options.min_partitions.is_some() {
            tracing::warn!("option 'minPartitions' has no effect: a batch is always shared evenly among all cores");
        }
        Ok(KafkaSource {
            projection: Projection::all(self.options.include_headers),
            topic_ids: start::read_topic_ids(checkpoint_dir)?,
            recreated: BTreeSet::new(),
            replaced: start::read_replaced(checkpoint_dir)?,
            options: Arc::clone(&self.options),
            cluster,
            bounded: self.bounded,
            checkpoint_dir: checkpoint_dir.map(Path::to_owned),
            partitions: Vec::new(),
            refreshed_at: None,
            ends: KafkaOffsets::default(),
            told_at: None,
            last: None,
            last_batch_at: None,
            record_bytes: None,
            prepared: None,
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
    /// Topics that were found to be other ones than those of the checkpoint, until the next batch begins.
    recreated: BTreeSet<String>,
    /// Positions that belong to topics that are no more: reading goes on at the first offset of the new ones.
    replaced: KafkaOffsets,
    partitions: Vec<TopicPartition>,
    refreshed_at: Option<Instant>,
    /// The newest ends known.
    ends: KafkaOffsets,
    /// When a long poll told them.
    told_at: Option<Instant>,
    /// Where a query over what there is now ends.
    last: Option<KafkaOffsets>,
    last_batch_at: Option<Instant>,
    /// Mean size of the records read last, as columns.
    record_bytes: Option<f64>,
    prepared: Option<Prepared>,
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
                self.recreated.insert(topic.name.clone());
            }
        }
        if ids != self.topic_ids {
            self.topic_ids = ids;
            // Which positions are those of the old topics is noted first, when it is known.
            if self.recreated.is_empty() {
                start::write_topic_ids(self.checkpoint_dir.as_deref(), &self.topic_ids)?;
            }
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

    /// Whether records are not of the topic that is known by this name.
    fn is_of_another_topic(&self, chunk: &Chunk) -> bool {
        let known = self.topic_ids.get(&chunk.partition.topic);
        known.is_some_and(|id| *id != chunk.topic_id && !id.is_zero() && !chunk.topic_id.is_zero())
    }

    /// Records of another topic were read instead of those at `start`: finds out which topics were made again.
    async fn look_again(&mut self, start: &KafkaOffsets) -> Result<(), EngineError> {
        self.refreshed_at = None;
        self.refresh().await?;
        if self.recreated.is_empty() {
            // Not all brokers know it yet, or a wait had brought the records.
            tokio::time::sleep(REFUSED_PAUSE).await;
            return Ok(());
        }
        self.refresh_ends().await?;
        if let Some(last) = &mut self.last {
            let new = self.ends.0.iter().filter(|(tp, _)| self.recreated.contains(&tp.topic));
            last.0.extend(new.map(|(tp, end)| (tp.clone(), *end)));
        }
        self.note_recreated(start)
    }

    /// Notes that the positions `start` in topics that were made again are not offsets of the new topics.
    fn note_recreated(&mut self, start: &KafkaOffsets) -> Result<(), EngineError> {
        if self.recreated.is_empty() {
            return Ok(());
        }
        let old = start.0.iter().filter(|(tp, _)| self.recreated.contains(&tp.topic));
        self.replaced.0.extend(old.map(|(tp, offset)| (tp.clone(), *offset)));
        start::write_replaced(self.checkpoint_dir.as_deref(), &self.replaced)?;
        start::write_topic_ids(self.checkpoint_dir.as_deref(), &self.topic_ids)?;
        self.recreated.clear();
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

    /// `start` for every partition there is now: partitions that appeared since, or were replaced, begin at their first
    /// offset, those that went are a loss of data, and so is an end before the start.
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
                Some(_) if self.replaced.get(tp) == Some(*offset) => shrunk.push(tp.clone()),
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

    /// The positions to wait behind.
    fn positions(&self, after: &KafkaOffsets) -> Vec<(TopicPartition, i64)> {
        self.partitions.iter().map(|tp| (tp.clone(), after.get(tp).unwrap_or(0))).collect()
    }

    /// Where a wait with `minOffsetsPerTrigger` gives up waiting for more.
    fn trigger_deadline(&self) -> Option<Instant> {
        let delay = Duration::from_millis(self.options.max_trigger_delay_ms);
        self.options.min_offsets.and(self.last_batch_at).map(|at| at + delay)
    }

    /// The begin and end of a batch, checked against what the log holds when its ends come from a checkpoint.
    async fn check_ends(
        &mut self,
        start: &KafkaOffsets,
        end: &KafkaOffsets,
    ) -> Result<(KafkaOffsets, KafkaOffsets), EngineError> {
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
        Ok((self.begin(start, &end).await?, end))
    }

    /// The end of the next batch; without a limit of the user's it is read for that.
    async fn decide(
        &mut self,
        start: &SourceOffset,
        given: &KafkaOffsets,
        limit: ReadLimit,
    ) -> Result<NextOffset, ReadError> {
        self.prepared = None;
        self.refresh().await?;
        self.note_recreated(given)?;
        let told_at = self.told_at.take();
        let ends = match &self.last {
            Some(last) => last.clone(),
            None => {
                if told_at.is_none_or(|at| at.elapsed() > ENDS_AGE) {
                    self.refresh_ends().await?;
                }
                self.ends.clone()
            }
        };
        let begin = self.begin(given, &ends).await?;
        let latest = ends.to_source_offset();
        let available = begin.distance(&ends);
        if available == 0 {
            // Partitions that came, went or are new ones are noted all the same, so as not to be found again and again.
            let end = if begin == *given { start.clone() } else { latest };
            return Ok(NextOffset { latest: end.clone(), end });
        }
        if limit == ReadLimit::Options && self.last.is_none() && !self.is_enough(available) {
            return Ok(NextOffset { end: start.clone(), latest });
        }
        self.last_batch_at = Some(Instant::now());
        let budget_bytes = match (limit, self.options.max_offsets) {
            (ReadLimit::Everything, _) => return Ok(NextOffset { end: latest.clone(), latest }),
            (ReadLimit::Options, Some(records)) => {
                let end = offsets::limit(&begin, &ends, records).to_source_offset();
                return Ok(NextOffset { end, latest });
            }
            (ReadLimit::Options, None) => read::BATCH_BYTES,
            (ReadLimit::Bytes(bytes), _) => bytes,
        };
        let (end, rows) = self.fill(begin, &ends, budget_bytes).await?;
        let end = end.to_source_offset();
        self.prepared = Some(Prepared { start: start.clone(), end: end.clone(), rows });
        Ok(NextOffset { end, latest })
    }

    /// A broker refuses a position: whether that is so for good, and [`Source::next_offset`] has to say what follows.
    async fn is_out_of_range(&self, partition: &TopicPartition, offset: i64) -> Result<bool, EngineError> {
        let partition = std::slice::from_ref(partition);
        let first = self.list(partition, OffsetSpec::Earliest).await?;
        let end = self.list(partition, OffsetSpec::Latest).await?;
        Ok(first.0.values().any(|first| offset < *first) || end.0.values().any(|end| offset > *end))
    }
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

    fn can_read_ahead(&self) -> bool {
        true
    }

    fn set_query_name(&mut self, name: Option<&str>, id: &str) {
        let group = match (&self.options.group_id, &self.options.group_id_prefix, name) {
            (Some(id), _, _) => id.clone(),
            (None, Some(prefix), name) => format!("{prefix}-{}", name.unwrap_or(id)),
            (None, None, Some(name)) => name.to_owned(),
            // Nobody would know the group again, and it would stay behind.
            (None, None, None) => return,
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

    async fn next_offset(&mut self, start: &SourceOffset, limit: ReadLimit) -> Result<NextOffset, EngineError> {
        let given = KafkaOffsets::from_source_offset(start)?;
        loop {
            match self.decide(start, &given, limit).await {
                Ok(next) => return Ok(next),
                Err(ReadError::AnotherTopic) => self.look_again(&given).await?,
                Err(ReadError::Other(error)) => return Err(error),
            }
        }
    }

    async fn prepare_available_now(&mut self) -> Result<(), EngineError> {
        self.refresh().await?;
        let last = if self.bounded && self.options.end != Limit::Latest {
            self.resolve(&self.options.end, false).await?
        } else {
            self.refresh_ends().await?;
            self.ends.clone()
        };
        self.last = Some(last);
        Ok(())
    }

    async fn wait_beyond(&mut self, after: &SourceOffset) -> Result<(), EngineError> {
        let after = KafkaOffsets::from_source_offset(after)?;
        let mut behind = after.clone();
        loop {
            self.refresh().await?;
            if !self.recreated.is_empty() {
                return Ok(());
            }
            let positions = self.positions(&behind);
            let refresh_at = self.refreshed_at.unwrap_or_else(Instant::now) + METADATA_INTERVAL;
            let wake_at = self.trigger_deadline().map_or(refresh_at, |deadline| deadline.min(refresh_at));
            let available = tokio::select! {
                available = self.cluster.wait_beyond(&positions), if !positions.is_empty() => {
                    match available {
                        Ok(available) => available,
                        Err(Error::OffsetOutOfRange { partition, offset }) => {
                            if self.is_out_of_range(&partition, offset).await? {
                                self.refreshed_at = None;
                                return Ok(());
                            }
                            tokio::time::sleep(REFUSED_PAUSE).await;
                            continue;
                        }
                        Err(error) => return Err(failed("wait for records from", &error)),
                    }
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
                self.told_at = Some(Instant::now());
                return Ok(());
            }
            // With `minOffsetsPerTrigger`: wait for more than there is.
            behind = ends;
        }
    }

    async fn read(&mut self, start: &SourceOffset, end: &SourceOffset) -> Result<Vec<Vec<RecordBatch>>, EngineError> {
        if let Some(prepared) = self.prepared.take().filter(|p| p.start == *start && p.end == *end) {
            return Ok(prepared.rows.into_parts());
        }
        let (start, end) = (KafkaOffsets::from_source_offset(start)?, KafkaOffsets::from_source_offset(end)?);
        loop {
            // Topics that were made again while the query was down are a loss of data now.
            self.refresh().await?;
            self.note_recreated(&start)?;
            let (mut at, end) = self.check_ends(&start, &end).await?;
            let mut rows = Rows::default();
            match self.read_into(&mut rows, &mut at, &end, usize::MAX).await {
                Ok(_) => return Ok(rows.into_parts()),
                Err(ReadError::AnotherTopic) => self.look_again(&start).await?,
                Err(ReadError::Other(error)) => return Err(error),
            }
        }
    }

    async fn commit(&mut self, end: &SourceOffset) -> Result<(), EngineError> {
        if self.commits.is_none() && self.replaced.0.is_empty() {
            return Ok(());
        }
        let end = KafkaOffsets::from_source_offset(end)?;
        if self.replaced.0.iter().any(|(tp, old)| end.get(tp) != Some(*old)) {
            self.replaced = KafkaOffsets::default();
            start::write_replaced(self.checkpoint_dir.as_deref(), &self.replaced)?;
        }
        if let Some(commits) = &self.commits {
            commits.commit(end);
        }
        Ok(())
    }
    async fn stop(&mut self) {
        if let Some(commits) = self.commits.take() {
            commits.finish().await;
        }
    }
}
