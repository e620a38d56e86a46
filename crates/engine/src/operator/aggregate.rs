//! The stateful aggregate: hash-partitioned state, updated, emitted, evicted and checkpointed once per micro-batch.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute;
use parking_lot::Mutex;

use super::bucket::{Bucket, BucketKey, BucketRows, Buckets};
use super::exchange::{Chunk, Exchange};
use super::groups::stable_hash;
use super::persist::{SaveAs, Saved, save, saved_watermark};
use crate::error::EngineError;
use crate::pool::{CpuPool, join_error};
use crate::sink::OutputMode;
use crate::state::{StateStore, Written};

/// What a batch tells its stateful operators.
#[derive(Debug, Clone, Copy)]
pub struct AggregationBatch {
    /// The state version that this batch makes; the batch with id `n` makes version `n + 1` from version `n`.
    pub version: i64,
    /// Groups that this watermark has passed are complete.
    pub evict_ms: Option<i64>,
}

/// What a batch did to an operator's state: Spark's `stateOperators[]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AggregationMetrics {
    pub rows_total: u64,
    pub rows_updated: u64,
    pub rows_removed: u64,
    pub rows_late: u64,
    pub memory_used_bytes: u64,
    pub update_ms: u64,
    pub removal_ms: u64,
    pub commit_ms: u64,
}

/// One aggregate of a query, with its state.
pub struct Aggregation {
    exchange: Arc<Exchange>,
    mode: OutputMode,
    pub(super) partitions: Vec<Arc<Mutex<PartitionState>>>,
    pub(super) store: Arc<Mutex<StateStore>>,
    pub(super) signature: Arc<str>,
}

pub(super) struct PartitionState {
    pub(super) exchange: Arc<Exchange>,
    pub(super) mode: OutputMode,
    pub(super) number: usize,
    /// The partition that holds the one group of an aggregate without keys.
    holds_global_group: bool,
    pub(super) buckets: Buckets,
    updates: u64,
    /// The directory of the operator's state files.
    pub(super) dir: PathBuf,
}

struct PartitionResult {
    output: Option<RecordBatch>,
    metrics: AggregationMetrics,
    saved: Saved,
}

impl Aggregation {
    /// An operator without state, which will be kept in `store`.
    pub fn new(exchange: Exchange, mode: OutputMode, store: StateStore) -> Self {
        let (exchange, dir) = (Arc::new(exchange), store.path().to_owned());
        let global = stable_hash(&[]) % exchange.partitions().max(1) as u64;
        let partitions = (0..exchange.partitions())
            .map(|number| {
                Arc::new(Mutex::new(PartitionState {
                    holds_global_group: exchange.is_global() && number as u64 == global,
                    exchange: Arc::clone(&exchange),
                    mode,
                    number,
                    buckets: Buckets::new(),
                    updates: 0,
                    dir: dir.clone(),
                }))
            })
            .collect();
        let signature = exchange.signature().into();
        Self { exchange, mode, partitions, store: Arc::new(Mutex::new(store)), signature }
    }

    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// Whether a batch without rows would emit or evict groups at this watermark.
    pub fn has_expired(&self, watermark_ms: i64) -> bool {
        if self.mode == OutputMode::Complete {
            return false;
        }
        let Some(passed) = self.exchange.passed(Some(watermark_ms)) else { return false };
        self.partitions
            .iter()
            .any(|partition| partition.lock().buckets.first_key_value().is_some_and(|(bucket, _)| bucket.end <= passed))
    }

    /// Takes in one batch's rows, writes the new state version (without fsync: what was written is returned) and returns
    /// what the output mode lets out.
    pub async fn process(
        &self,
        chunks: Vec<Chunk>,
        batch: AggregationBatch,
        pool: &'static CpuPool,
    ) -> Result<(Vec<RecordBatch>, AggregationMetrics, Written), EngineError> {
        let rows: usize = chunks.iter().flat_map(|chunk| &chunk.runs).map(|run| run.len).sum();
        let late: u64 = chunks.iter().map(|chunk| chunk.late_rows).sum();
        let chunks = Arc::new(chunks);
        let save_as = self.save_as();
        let results = if rows < PARALLEL_ROWS {
            let partitions = self.partitions.clone();
            pool.run(async move {
                partitions
                    .iter()
                    .map(|partition| partition.lock().process(&chunks, batch, save_as))
                    .collect::<Result<Vec<_>, EngineError>>()
            })
            .await?
        } else {
            let tasks: Vec<_> = self
                .partitions
                .iter()
                .map(|partition| {
                    let (partition, chunks) = (Arc::clone(partition), Arc::clone(&chunks));
                    pool.spawn(async move { partition.lock().process(&chunks, batch, save_as) })
                })
                .collect();
            let mut results = Vec::with_capacity(tasks.len());
            for task in tasks {
                results.push(task.await.map_err(join_error)??);
            }
            results
        };
        let mut metrics = AggregationMetrics { rows_late: late, ..Default::default() };
        let (mut output, mut saved) = (Vec::new(), Vec::new());
        for result in results {
            metrics.add(&result.metrics);
            output.extend(result.output);
            saved.push(result.saved);
        }
        let started = Instant::now();
        let (store, signature) = (Arc::clone(&self.store), Arc::clone(&self.signature));
        let evict_ms = saved_watermark(self.mode, batch);
        let written = pool.run(async move { save(&mut store.lock(), batch, evict_ms, &signature, saved) }).await?;
        metrics.commit_ms += elapsed_ms(started);
        Ok((output, metrics, written))
    }
}

/// Below this many rows the partitions are worked on one after the other: waking threads would cost more.
pub const PARALLEL_ROWS: usize = 4_096;

impl AggregationMetrics {
    fn add(&mut self, other: &Self) {
        self.rows_total += other.rows_total;
        self.rows_updated += other.rows_updated;
        self.rows_removed += other.rows_removed;
        self.memory_used_bytes += other.memory_used_bytes;
        self.update_ms += other.update_ms;
        self.removal_ms += other.removal_ms;
        self.commit_ms += other.commit_ms;
    }
}

/// Groups to read, bucket by bucket.
pub(super) type Selection<'a> = Vec<(BucketKey, &'a Bucket, Vec<u32>)>;

impl PartitionState {
    fn process(
        &mut self,
        chunks: &[Chunk],
        batch: AggregationBatch,
        save_as: SaveAs,
    ) -> Result<PartitionResult, EngineError> {
        let started = Instant::now();
        let (mut touched, number) = (BTreeSet::new(), self.number);
        for chunk in chunks {
            for run in chunk.runs.iter().filter(|run| run.partition == number) {
                self.updates += 1;
                // Versions and updates start at 1: neither equals the 0 of a group that was never touched.
                let (update, version) = (self.updates, batch.version.unsigned_abs());
                let (args, filters) = (chunk.args(*run), chunk.filters(*run));
                let mut keys = chunk.keys(*run);
                let rows = BucketRows { keys: &mut keys, rows: run.len, args: &args, filters: &filters };
                self.bucket(run.bucket)?.update(rows, update, version)?;
                touched.insert(run.bucket);
            }
        }
        if self.holds_global_group {
            self.touch_global_group(batch.version)?;
            touched.insert(BucketKey::FOREVER);
        }
        let mut metrics = AggregationMetrics { update_ms: elapsed_ms(started), ..Default::default() };

        let started = Instant::now();
        let expired = self.take_expired(batch.evict_ms);
        metrics.removal_ms = elapsed_ms(started);

        let output = self.emit(&touched, &expired)?;
        metrics.rows_removed = expired.values().map(|bucket| bucket.keys.len() as u64).sum();
        drop(expired);

        let started = Instant::now();
        let saved = self.save(&touched, batch, save_as, &mut metrics)?;
        metrics.commit_ms = elapsed_ms(started);
        for key in &touched {
            if let Some(bucket) = self.buckets.get_mut(key) {
                bucket.clear_touched();
            }
        }
        metrics.rows_total = self.buckets.values().map(|bucket| bucket.keys.len() as u64).sum();
        metrics.memory_used_bytes = self.buckets.values().map(|bucket| bucket.size_bytes() as u64).sum();
        Ok(PartitionResult { output, metrics, saved })
    }

    pub(super) fn bucket(&mut self, key: BucketKey) -> Result<&mut Bucket, EngineError> {
        use std::collections::btree_map::Entry;
        match self.buckets.entry(key) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                Ok(entry.insert(Bucket::new(self.exchange.functions(), self.exchange.empty_args())?))
            }
        }
    }

    /// An aggregate without keys has its one group from the start, and every batch counts as a change of it.
    fn touch_global_group(&mut self, version: i64) -> Result<(), EngineError> {
        self.updates += 1;
        let update = self.updates;
        let exchange = Arc::clone(&self.exchange);
        let bucket = self.bucket(BucketKey::FOREVER)?;
        bucket.touch((stable_hash(&[]), &[]), exchange.empty_args(), update, version.unsigned_abs())?;
        Ok(())
    }

    fn take_expired(&mut self, evict_ms: Option<i64>) -> Buckets {
        let passed = match (self.mode, self.exchange.passed(evict_ms)) {
            (OutputMode::Append | OutputMode::Update, Some(passed)) => passed,
            _ => return Buckets::new(),
        };
        // Everything below the first bucket that stays.
        let keep = self.buckets.split_off(&BucketKey { end: passed.saturating_add(1), start: i64::MIN });
        std::mem::replace(&mut self.buckets, keep)
    }

    fn emit(&self, touched: &BTreeSet<BucketKey>, expired: &Buckets) -> Result<Option<RecordBatch>, EngineError> {
        let selection: Selection<'_> = match self.mode {
            OutputMode::Append => expired.iter().map(|(key, bucket)| (*key, bucket, bucket.all_groups())).collect(),
            OutputMode::Update => touched
                .iter()
                .filter_map(|key| {
                    let bucket = self.buckets.get(key).or_else(|| expired.get(key))?;
                    Some((*key, bucket, bucket.touched().to_vec()))
                })
                .collect(),
            OutputMode::Complete => {
                self.buckets.iter().map(|(key, bucket)| (*key, bucket, bucket.all_groups())).collect()
            }
        };
        let functions = self.exchange.functions().len();
        let results = |bucket: &Bucket, groups: &[u32]| -> Result<Vec<ArrayRef>, EngineError> {
            Ok(bucket.columns().iter().map(|column| column.evaluate(groups)).collect::<Result<_, _>>()?)
        };
        let Some((columns, buckets)) = self.collect(&selection, functions, results)? else { return Ok(None) };
        let (keys, values) = split_columns(columns, self.exchange.encoded_len());
        let mut columns = self.exchange.group_columns(keys, &buckets)?;
        columns.extend(values);
        let rows = buckets.iter().map(|(_, rows)| rows).sum();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(self.exchange.schema()), columns, &options)?;
        Ok(Some(batch))
    }

    /// Concatenates the key columns and `width` more columns per bucket over a selection.
    #[expect(clippy::type_complexity, reason = "columns, and how many rows of which bucket they hold")]
    pub(super) fn collect(
        &self,
        selection: &Selection<'_>,
        width: usize,
        read: impl Fn(&Bucket, &[u32]) -> Result<Vec<ArrayRef>, EngineError>,
    ) -> Result<Option<(Vec<ArrayRef>, Vec<(BucketKey, usize)>)>, EngineError> {
        let mut parts: Vec<Vec<ArrayRef>> = vec![Vec::new(); self.exchange.encoded_len() + width];
        let mut buckets = Vec::new();
        for (key, bucket, groups) in selection {
            if groups.is_empty() {
                continue;
            }
            let keys = self.exchange.decode_keys(groups.iter().map(|&group| bucket.keys.key(group)))?;
            for (part, column) in parts.iter_mut().zip(keys.into_iter().chain(read(bucket, groups)?)) {
                part.push(column);
            }
            buckets.push((*key, groups.len()));
        }
        if buckets.is_empty() {
            return Ok(None);
        }
        let columns = parts
            .into_iter()
            .map(|part| {
                let refs: Vec<&dyn arrow::array::Array> = part.iter().map(AsRef::as_ref).collect();
                compute::concat(&refs)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Some((columns, buckets)))
    }
}

fn split_columns(mut columns: Vec<ArrayRef>, at: usize) -> (Vec<ArrayRef>, Vec<ArrayRef>) {
    let rest = columns.split_off(at.min(columns.len()));
    (columns, rest)
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
