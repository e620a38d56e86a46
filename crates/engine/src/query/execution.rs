//! The loop of a running query: decide the next batch, run it, commit it, wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use chrono::Utc;
use futures::future::select_all;

use super::durability::{StateSync, commit};
use super::handle::Shared;
use super::progress::{
    SinkProgress, SourceProgress, StateOperatorProgress, StreamingQueryProgress, iso, offset_value, rate,
};
use super::spec::Trigger;
use crate::checkpoint::{Checkpoint, CommitRecord, OffsetMetadata, OffsetRecord};
use crate::error::EngineError;
use crate::operator::aggregate::PARALLEL_ROWS;
use crate::operator::{Aggregation, AggregationBatch, AggregationMetrics};
use crate::plan::batch_input::BatchSlot;
use crate::plan::fragment::Fragment;
use crate::plan::watermark::{EventTimeProbe, EventTimeStats, WatermarkTracker};
use crate::pool::{CpuPool, join_error};
use crate::sink::{OutputMode, Sink};
use crate::source::{NextOffset, ReadLimit, Source, SourceOffset};
use crate::state::Written;

/// A source with the place in it that the query has reached.
pub(super) struct SourceRun {
    pub source: Box<dyn Source>,
    pub slot: Arc<BatchSlot>,
    /// The end of the last batch.
    pub position: SourceOffset,
}

/// A stateful operator with the fragment that feeds it.
pub(super) struct StageRun {
    pub fragment: Fragment,
    pub aggregation: Arc<Aggregation>,
    pub slot: Arc<BatchSlot>,
}

/// A planned and restored query, ready to run.
pub(super) struct Execution {
    pub shared: Arc<Shared>,
    pub pool: &'static CpuPool,
    pub checkpoint: Arc<Checkpoint>,
    pub sources: Vec<SourceRun>,
    pub stages: Vec<StageRun>,
    pub output: Fragment,
    pub sink: Box<dyn Sink>,
    pub mode: OutputMode,
    pub trigger: Trigger,
    pub probes: Vec<Arc<EventTimeProbe>>,
    pub tracker: WatermarkTracker,
    /// What `current_timestamp()` returns in the running batch, in ms.
    pub batch_timestamp: Arc<std::sync::atomic::AtomicI64>,
    pub conf: BTreeMap<String, String>,
    /// Rows that this watermark has passed are late.
    pub late_ms: i64,
    /// The watermark of the last batch that ran.
    pub last_batch_watermark_ms: Option<i64>,
    pub next_batch_id: i64,
    /// Batches that were planned before a restart and have to run again as they were.
    pub replay: VecDeque<(i64, OffsetRecord)>,
    pub sync: StateSync,
    pub no_data_batches: bool,
    pub last_trigger: Option<Instant>,
    /// The batch after the running one, if it was read beside it.
    pub ahead: Option<Ahead>,
}

/// What one pass through the loop came to.
enum Outcome {
    Ran,
    /// Nothing to do before more data comes.
    Idle,
    Stopped,
}

/// How the time of a batch was spent, in milliseconds.
struct Clock {
    durations: BTreeMap<&'static str, u64>,
}

impl Clock {
    /// Spark plans every batch anew and reports how long that takes; here it has happened when the query started.
    fn new() -> Self {
        Self { durations: BTreeMap::from([("queryPlanning", 0)]) }
    }

    fn add(&mut self, phase: &'static str, since: Instant) {
        *self.durations.entry(phase).or_default() += millis(since.elapsed());
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A batch that has been decided on.
struct Planned {
    id: i64,
    record: OffsetRecord,
    /// The newest offset of each source at that time.
    latest: Vec<SourceOffset>,
    replayed: bool,
    /// Of each source, by its partitions, if they have been read already.
    rows: Option<SourceRows>,
}

type SourceRows = Vec<Vec<Vec<RecordBatch>>>;

/// Where a batch ends in each source, and its rows.
pub(super) struct Ahead {
    starts: Vec<SourceOffset>,
    ends: Vec<SourceOffset>,
    latest: Vec<SourceOffset>,
    rows: SourceRows,
}

impl Execution {
    /// Runs until the query is stopped, has nothing left to do, or fails.
    pub async fn run(mut self) {
        let result = self.drive().await;
        let synced = self.sync.flush(&mut self.sources).await;
        let mut result = result.and(synced);
        if result.is_ok() {
            result = self.sink.stop().await;
        }
        for source in &mut self.sources {
            source.source.stop().await;
        }
        if result.is_ok() {
            let checkpoint = Arc::clone(&self.checkpoint);
            let discarded = self.pool.run_blocking(move || {
                checkpoint.discard_if_temporary();
                Ok(())
            });
            // It warns of what fails.
            drop(discarded.await);
        }
        let shared = Arc::clone(&self.shared);
        // The checkpoint's lock is released before anyone can see that the query has ended.
        drop(self);
        shared.end(result);
    }

    async fn drive(&mut self) -> Result<(), EngineError> {
        if self.trigger == Trigger::AvailableNow {
            for source in &mut self.sources {
                source.source.prepare_available_now().await?;
            }
        }
        let mut stopping = self.shared.stopping.subscribe();
        loop {
            if *stopping.borrow_and_update() {
                return Ok(());
            }
            let request = self.shared.request();
            let mut started = Instant::now();
            match self.step().await? {
                Outcome::Stopped => return Ok(()),
                Outcome::Ran if self.trigger == Trigger::Once => return Ok(()),
                Outcome::Ran => {}
                Outcome::Idle => {
                    self.shared.answer(request);
                    if matches!(self.trigger, Trigger::Once | Trigger::AvailableNow) {
                        return Ok(());
                    }
                    self.wait_for_data(request).await?;
                    // The tick that was missed while there was nothing to do is gone, as in Spark.
                    started = Instant::now();
                }
            }
            if let Trigger::ProcessingTime(interval) = self.trigger {
                self.wait_for_tick(started, interval).await?;
            }
        }
    }

    /// Runs one batch, if there is one to run.
    async fn step(&mut self) -> Result<Outcome, EngineError> {
        let trigger_start = Instant::now();
        let mut clock = Clock::new();
        let planned = match self.replay.pop_front() {
            Some((id, record)) => {
                let latest = record.offsets.iter().flatten().cloned().collect();
                Planned { id, record, latest, replayed: true, rows: None }
            }
            None => {
                let mut stopping = self.shared.stopping.subscribe();
                let planned = tokio::select! {
                    planned = self.plan_batch(&mut clock) => planned?,
                    _ = stopping.wait_for(|stopping| *stopping) => return Ok(Outcome::Stopped),
                };
                match planned {
                    Some(planned) => planned,
                    None => return Ok(Outcome::Idle),
                }
            }
        };
        self.run_batch(planned, clock, trigger_start).await
    }

    /// Decides what the next batch is; `None` when there is nothing to do.
    async fn plan_batch(&mut self, clock: &mut Clock) -> Result<Option<Planned>, EngineError> {
        let phase = Instant::now();
        let limit = if self.trigger == Trigger::Once { ReadLimit::Everything } else { ReadLimit::Options };
        let (mut ends, mut latest, mut rows) = (Vec::new(), Vec::new(), None);
        let ahead = self.ahead.take();
        let follows = |ahead: &Ahead| self.sources.iter().map(|source| &source.position).eq(&ahead.starts);
        match ahead.filter(follows) {
            Some(ahead) => {
                ends = ahead.ends;
                latest = ahead.latest;
                rows = Some(ahead.rows);
            }
            None => {
                for source in &mut self.sources {
                    let next = source.source.next_offset(&source.position, limit).await?;
                    ends.push(next.end);
                    latest.push(next.latest);
                }
            }
        }
        let has_data = self.sources.iter().zip(&ends).any(|(source, end)| *end != source.position);
        clock.add("latestOffset", phase);
        let watermark_ms = self.tracker.current_ms();
        let advanced = self.last_batch_watermark_ms.is_some_and(|last| watermark_ms > last);
        if !has_data {
            let emits = advanced
                && self.no_data_batches
                && self.mode != OutputMode::Complete
                && self.stages.iter().any(|stage| stage.aggregation.has_expired(watermark_ms));
            if !emits {
                // Spark would run an empty batch here, after which rows behind the new watermark are late. An empty
                // batch that changes nothing is not run, but rows are late all the same.
                if advanced && self.no_data_batches && self.mode != OutputMode::Complete && !self.stages.is_empty() {
                    self.late_ms = watermark_ms;
                }
                return Ok(None);
            }
        }
        let metadata = OffsetMetadata {
            batch_watermark_ms: watermark_ms,
            batch_timestamp_ms: Utc::now().timestamp_millis(),
            conf: self.conf.clone(),
            late_events_watermark_ms: self.tracker.is_defined().then_some(self.late_ms),
        };
        let record = OffsetRecord { metadata, offsets: ends.into_iter().map(Some).collect() };
        Ok(Some(Planned { id: self.next_batch_id, record, latest, replayed: false, rows }))
    }

    async fn run_batch(
        &mut self,
        planned: Planned,
        mut clock: Clock,
        trigger_start: Instant,
    ) -> Result<Outcome, EngineError> {
        let shared = Arc::clone(&self.shared);
        shared.set_status("Processing new data", true, true);
        let Planned { id, record, latest, replayed, rows } = planned;
        // Made durable beside the reading and the computing: only the sink must not see a batch that is not on record.
        let logged = (!replayed).then(|| {
            let (checkpoint, record) = (Arc::clone(&self.checkpoint), record.clone());
            self.pool.spawn_blocking(move || checkpoint.write_offsets(id, &record))
        });
        let computed = self.compute(id, &record, rows, &mut clock).await;
        let phase = Instant::now();
        if let Some(logged) = logged {
            logged.await.map_err(join_error)??;
        }
        clock.add("walCommit", phase);
        let Some(Computed { read, metrics, written, results }) = computed? else { return Ok(Outcome::Stopped) };

        let phase = Instant::now();
        let schema = Arc::clone(self.output.schema());
        let output_rows = self.sink.add_batch(id, self.mode, schema, results).await?;
        clock.add("addBatch", phase);

        let seen: Vec<EventTimeStats> = self.probes.iter().map(|probe| probe.take()).collect();
        self.tracker.advance(&seen);

        let phase = Instant::now();
        let commit = CommitRecord { next_batch_watermark_ms: self.tracker.current_ms() };
        let checkpoint = Arc::clone(&self.checkpoint);
        self.pool.run_blocking(move || checkpoint.write_commit(id, &commit)).await?;
        let starts: Vec<SourceOffset> = self.sources.iter().map(|source| source.position.clone()).collect();
        for (source, end) in self.sources.iter_mut().zip(&record.offsets) {
            if let Some(end) = end {
                source.position = end.clone();
            }
        }
        self.sync.batch_done(id, written, &mut self.sources).await?;
        clock.add("commitOffsets", phase);
        clock.add("triggerExecution", trigger_start);

        let watermark_ms = record.metadata.batch_watermark_ms;
        self.late_ms = watermark_ms;
        self.last_batch_watermark_ms = Some(watermark_ms);
        self.next_batch_id = id + 1;
        let report = BatchReport { id, record, starts, latest, read, seen, metrics, output_rows, clock, trigger_start };
        shared.report(self.progress(report));
        Ok(Outcome::Ran)
    }

    /// Reads a batch and runs the plan over it, up to the rows for the sink; none when the query is to stop.
    async fn compute(
        &mut self,
        id: i64,
        record: &OffsetRecord,
        rows: Option<SourceRows>,
        clock: &mut Clock,
    ) -> Result<Option<Computed>, EngineError> {
        let phase = Instant::now();
        let shared = Arc::clone(&self.shared);
        let mut stopping = shared.stopping.subscribe();
        let rows = match rows {
            Some(rows) => rows,
            None => tokio::select! {
                rows = read_sources(&mut self.sources, &record.offsets) => rows?,
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(None),
            },
        };
        let mut read = Vec::with_capacity(rows.len());
        for (source, partitions) in self.sources.iter().zip(rows) {
            read.push(partitions.iter().flatten().map(|batch| batch.num_rows() as u64).sum());
            source.slot.fill(partitions.into_iter().flatten(), PARALLEL_ROWS);
        }
        clock.add("getBatch", phase);

        let phase = Instant::now();
        let watermark_ms = record.metadata.batch_watermark_ms;
        self.batch_timestamp.store(record.metadata.batch_timestamp_ms, std::sync::atomic::Ordering::Release);
        let rows: u64 = read.iter().sum();
        let drops = self.mode != OutputMode::Complete && self.tracker.is_defined();
        let late_ms = record.metadata.late_events_watermark_ms.unwrap_or(watermark_ms);
        let times = BatchTimes {
            version: id + 1,
            evict_ms: drops.then_some(watermark_ms),
            late_ms: drops.then_some(late_ms),
            parallel: rows >= PARALLEL_ROWS as u64,
        };
        let ahead = rows >= READ_AHEAD_ROWS
            && self.replay.is_empty()
            && matches!(self.trigger, Trigger::Default | Trigger::AvailableNow);
        let work = run_plan(self.pool, &self.stages, &self.output, times);
        let (done, next) = beside(work, read_ahead(&mut self.sources, &record.offsets, ahead), stopping).await;
        self.ahead = next;
        let (metrics, written, results) = done?;
        clock.add("addBatch", phase);
        Ok(Some(Computed { read, metrics, written, results }))
    }

    /// Returns when a source has more rows, the query is to stop, or somebody asks whether all is done.
    async fn wait_for_data(&mut self, answered: u64) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.shared);
        shared.set_status("Waiting for data to arrive", false, false);
        let mut stopping = shared.stopping.subscribe();
        loop {
            if shared.request() > answered {
                return Ok(());
            }
            let waits: Vec<_> =
                self.sources.iter_mut().map(|source| source.source.wait_beyond(&source.position)).collect();
            if waits.is_empty() {
                return Ok(());
            }
            let synced = tokio::select! {
                (ready, _, _) = select_all(waits) => return ready,
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
                () = shared.request_made.notified() => continue,
                synced = self.sync.synced() => synced?,
            };
            commit(&mut self.sources, &synced).await?;
        }
    }

    /// Sleeps until the next multiple of the interval, as Spark does.
    async fn wait_for_tick(&mut self, started: Instant, interval: Duration) -> Result<(), EngineError> {
        let interval_ms = millis(interval).max(1);
        let now_ms = Utc::now().timestamp_millis().unsigned_abs();
        let started_ms = now_ms.saturating_sub(millis(started.elapsed()));
        let next_ms = (started_ms / interval_ms + 1) * interval_ms;
        let tick = tokio::time::sleep(Duration::from_millis(next_ms.saturating_sub(now_ms)));
        tokio::pin!(tick);
        let mut stopping = self.shared.stopping.subscribe();
        loop {
            let synced = tokio::select! {
                () = &mut tick => return Ok(()),
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
                synced = self.sync.synced() => synced?,
            };
            commit(&mut self.sources, &synced).await?;
        }
    }

    fn progress(&mut self, report: BatchReport) -> StreamingQueryProgress {
        let now = Instant::now();
        let duration_ms = millis(now.duration_since(report.trigger_start));
        let since_last_ms = self.last_trigger.map(|last| millis(report.trigger_start.duration_since(last)));
        self.last_trigger = Some(report.trigger_start);
        let input_rate = |rows: u64| since_last_ms.and_then(|elapsed| rate(rows, elapsed));
        let rows: u64 = report.read.iter().sum();
        let sources = self
            .sources
            .iter()
            .enumerate()
            .map(|(index, source)| {
                let rows = report.read.get(index).copied().unwrap_or(0);
                SourceProgress {
                    description: source.source.description(),
                    start_offset: offset_value(report.starts.get(index)),
                    end_offset: offset_value(report.record.offsets.get(index).and_then(Option::as_ref)),
                    latest_offset: offset_value(report.latest.get(index)),
                    num_input_rows: rows,
                    input_rows_per_second: input_rate(rows),
                    processed_rows_per_second: rate(rows, duration_ms),
                }
            })
            .collect();
        let state_operators = self
            .stages
            .iter()
            .zip(&report.metrics)
            .map(|(stage, metrics)| StateOperatorProgress {
                operator_name: "stateStoreSave",
                num_rows_total: metrics.rows_total,
                num_rows_updated: metrics.rows_updated,
                all_updates_time_ms: metrics.update_ms,
                num_rows_removed: metrics.rows_removed,
                all_removals_time_ms: metrics.removal_ms,
                commit_time_ms: metrics.commit_ms,
                memory_used_bytes: metrics.memory_used_bytes,
                num_rows_dropped_by_watermark: metrics.rows_late,
                num_shuffle_partitions: stage.aggregation.partitions() as u64,
                num_state_store_instances: stage.aggregation.partitions() as u64,
                custom_metrics: BTreeMap::new(),
            })
            .collect();
        let started_ms = Utc::now().timestamp_millis().saturating_sub_unsigned(duration_ms);
        StreamingQueryProgress {
            id: self.shared.id.clone(),
            run_id: self.shared.run_id.clone(),
            name: self.shared.name.clone(),
            timestamp: iso(started_ms),
            batch_id: report.id,
            batch_duration: duration_ms,
            num_input_rows: rows,
            input_rows_per_second: input_rate(rows),
            processed_rows_per_second: rate(rows, duration_ms),
            duration_ms: report.clock.durations,
            event_time: self.event_time(&report.seen, report.record.metadata.batch_watermark_ms),
            state_operators,
            sources,
            sink: SinkProgress { description: self.sink.description(), num_output_rows: report.output_rows },
            observed_metrics: BTreeMap::new(),
        }
    }

    fn event_time(&self, seen: &[EventTimeStats], watermark_ms: i64) -> BTreeMap<&'static str, String> {
        if !self.tracker.is_defined() {
            return BTreeMap::new();
        }
        let mut all = EventTimeStats::default();
        seen.iter().for_each(|stats| all.merge(stats));
        let mut times = BTreeMap::from([("watermark", iso(watermark_ms))]);
        if all.count > 0 {
            times.extend([("avg", iso(all.avg_ms())), ("max", iso(all.max_ms)), ("min", iso(all.min_ms))]);
        }
        times
    }
}

/// A batch of this many rows is followed by another soon: that is read while this one is computed.
const READ_AHEAD_ROWS: u64 = 50_000;
/// How long a batch that is computed waits for the next one to be read.
const READ_AHEAD_GRACE: Duration = Duration::from_secs(1);

/// The rows up to these ends, by source and partition.
async fn read_sources(sources: &mut [SourceRun], ends: &[Option<SourceOffset>]) -> Result<SourceRows, EngineError> {
    let mut rows = Vec::with_capacity(sources.len());
    for (source, end) in sources.iter_mut().zip(ends) {
        rows.push(match end {
            Some(end) if *end != source.position => source.source.read(&source.position, end).await?,
            _ => Vec::new(),
        });
    }
    Ok(rows)
}

/// The batch behind one that ends at `starts`, if there is more. An error is left to the attempt that follows.
async fn read_ahead(sources: &mut [SourceRun], starts: &[Option<SourceOffset>], wanted: bool) -> Option<Ahead> {
    if !wanted || !sources.iter().all(|source| source.source.can_read_ahead()) {
        return None;
    }
    let mut ahead = Ahead { starts: Vec::new(), ends: Vec::new(), latest: Vec::new(), rows: Vec::new() };
    let mut has_data = false;
    for (source, start) in sources.iter_mut().zip(starts) {
        let start = start.as_ref().unwrap_or(&source.position);
        let NextOffset { end, latest } = source.source.next_offset(start, ReadLimit::Options).await.ok()?;
        has_data |= end != *start;
        ahead.rows.push(if end == *start { Vec::new() } else { source.source.read(start, &end).await.ok()? });
        ahead.starts.push(start.clone());
        ahead.ends.push(end);
        ahead.latest.push(latest);
    }
    has_data.then_some(ahead)
}

/// Runs `work` and, beside it, `next`, which is given up when it takes much longer or the query is to stop.
async fn beside<T, N>(
    work: impl Future<Output = T>,
    next: impl Future<Output = Option<N>>,
    mut stopping: tokio::sync::watch::Receiver<bool>,
) -> (T, Option<N>) {
    let (mut work, mut next) = (std::pin::pin!(work), std::pin::pin!(next));
    tokio::select! {
        done = &mut work => {
            let found = tokio::select! {
                found = next => found,
                () = tokio::time::sleep(READ_AHEAD_GRACE) => None,
                _ = stopping.wait_for(|stopping| *stopping) => None,
            };
            (done, found)
        }
        found = &mut next => (work.await, found),
    }
}

/// What the running batch tells its operators.
#[derive(Clone, Copy)]
struct BatchTimes {
    version: i64,
    evict_ms: Option<i64>,
    late_ms: Option<i64>,
    parallel: bool,
}

type PlanResult = (Vec<AggregationMetrics>, Vec<Written>, Vec<RecordBatch>);

/// Runs the stages over what is in the slots, then the output fragment.
async fn run_plan(
    pool: &'static CpuPool,
    stages: &[StageRun],
    output: &Fragment,
    times: BatchTimes,
) -> Result<PlanResult, EngineError> {
    let (mut all_metrics, mut written) = (Vec::new(), Vec::new());
    for stage in stages {
        let exchange = Arc::clone(stage.aggregation.exchange());
        let late_ms = times.late_ms;
        let chunks = stage.fragment.run(pool, times.parallel, move |batch| exchange.chunk(&batch, late_ms)).await?;
        let batch = AggregationBatch { version: times.version, evict_ms: times.evict_ms };
        let (output, metrics, files) = stage.aggregation.process(chunks, batch, pool).await?;
        stage.slot.fill(output, PARALLEL_ROWS);
        all_metrics.push(metrics);
        written.push(files);
    }
    let results = output.run(pool, times.parallel, Ok).await?;
    Ok((all_metrics, written, results))
}

/// What a batch came to before the sink has it.
struct Computed {
    /// Rows of each source.
    read: Vec<u64>,
    metrics: Vec<AggregationMetrics>,
    /// By operator, the state files, not yet durable.
    written: Vec<Written>,
    results: Vec<RecordBatch>,
}

struct BatchReport {
    id: i64,
    record: OffsetRecord,
    starts: Vec<SourceOffset>,
    latest: Vec<SourceOffset>,
    read: Vec<u64>,
    seen: Vec<EventTimeStats>,
    metrics: Vec<AggregationMetrics>,
    output_rows: u64,
    clock: Clock,
    trigger_start: Instant,
}
