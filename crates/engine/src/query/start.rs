//! From a specification to a running query: checks, checkpoint, sources, plans, recovered state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;

use super::durability::StateSync;
use super::execution::{Execution, SourceRun, StageRun};
use super::handle::{Listeners, Shared, StreamingQuery};
use super::spec::StreamingQuerySpec;
use crate::checkpoint::{Checkpoint, OffsetRecord};
use crate::error::EngineError;
use crate::operator::Aggregation;
use crate::operator::exchange::Exchange;
use crate::plan::check::check_streaming;
use crate::plan::fragment::{Fragment, fragment_session};
use crate::plan::split::{SourceInput, SplitPlan, Stage, split};
use crate::plan::timestamp::pin_current_timestamp;
use crate::plan::watermark::{WatermarkPolicy, WatermarkTracker};
use crate::pool::{CpuPool, join_error};
use crate::sink::{OutputMode, SinkStart};
use crate::source::SourceOffset;
use crate::state::{StateIndex, StateStore};

const SHUFFLE_PARTITIONS: &str = "spark.sql.shuffle.partitions";
const WATERMARK_POLICY: &str = "spark.sql.streaming.multipleWatermarkPolicy";
const NO_DATA_BATCHES: &str = "spark.sql.streaming.noDataMicroBatches.enabled";
const MIN_BATCHES_TO_RETAIN: &str = "spark.sql.streaming.minBatchesToRetain";
const MIN_DELTAS_FOR_SNAPSHOT: &str = "spark.sql.streaming.stateStore.minDeltasForSnapshot";

/// Starts a query on the current tokio runtime. What can be refused is refused here: the plan, the output mode, the
/// checkpoint, sources that cannot be opened.
pub async fn start(spec: StreamingQuerySpec) -> Result<StreamingQuery, EngineError> {
    start_with(spec, Listeners::default()).await
}

/// As [`start`], with those who are told of every batch.
pub(super) async fn start_with(spec: StreamingQuerySpec, listeners: Listeners) -> Result<StreamingQuery, EngineError> {
    let pool = CpuPool::shared()?;
    let StreamingQuerySpec { name, plan, output_mode, mut sink, trigger, checkpoint, session, conf } = spec;
    let plan = analyse(&plan, &session)?;
    check_streaming(&plan, output_mode)?;
    sink.check_mode(output_mode)?;
    let checkpoint = Arc::new(pool.run_blocking(move || Checkpoint::open(checkpoint)).await?);
    let held = Arc::clone(&checkpoint);
    let history = pool.run_blocking(move || History::read(&held)).await?;
    let settings = Settings::new(&conf, history.conf(), pool.threads())?;

    let (committed, planned) = history.newest();
    let batch_timestamp = Arc::new(AtomicI64::new(0));
    let plan = pin_current_timestamp(plan, &batch_timestamp)?;
    let SplitPlan { sources, watermarks, stages, output } = split(plan, pool.threads())?;
    let session = fragment_session(&session);
    let output = Fragment::plan(&output, &session).await?;
    let mut stage_runs = Vec::with_capacity(stages.len());
    for (index, stage) in stages.into_iter().enumerate() {
        let (dir, partitions, min_deltas) = (checkpoint.state_dir(index), settings.partitions, settings.min_deltas);
        let store = pool.run_blocking(move || StateStore::open(dir, partitions, min_deltas)).await?;
        stage_runs.push(plan_stage(stage, output_mode, store, partitions, &session).await?);
    }
    let operators: Vec<Arc<Aggregation>> = stage_runs.iter().map(|stage| Arc::clone(&stage.aggregation)).collect();
    let (version, restored) = {
        let (operators, wanted) = (operators.clone(), history.next_batch_id());
        pool.run_blocking(move || restore(&operators, wanted)).await?
    };
    let (held, count) = (Arc::clone(&checkpoint), sources.len());
    let (resume, dirs) = pool.run_blocking(move || history.take_up(version, &held, count)).await?;
    let mut sources = open_sources(sources, &dirs, &resume).await?;
    for run in &mut sources {
        run.source.set_query_name(name.as_deref(), checkpoint.query_id());
    }

    let state_dir = checkpoint.sink_dir();
    sink.start(SinkStart { state_dir: &state_dir, query_id: checkpoint.query_id(), committed, planned }).await?;

    let mut tracker =
        WatermarkTracker::new(settings.policy, watermarks.iter().map(|watermark| watermark.delay_ms).collect());
    tracker.restore(resume.watermark_ms);
    let run_id = uuid::Uuid::new_v4().to_string();
    let shared = Shared::new(checkpoint.query_id().to_owned(), run_id, name, listeners);
    let execution = Execution {
        shared: Arc::clone(&shared),
        pool,
        sync: StateSync::new(pool, Arc::clone(&checkpoint), operators, restored, settings.retain),
        checkpoint,
        sources,
        stages: stage_runs,
        output,
        sink,
        mode: output_mode,
        trigger,
        probes: watermarks.into_iter().map(|watermark| watermark.probe).collect(),
        tracker,
        batch_timestamp,
        conf: settings.recorded,
        late_ms: resume.late_ms,
        last_batch_watermark_ms: resume.last_batch_watermark_ms,
        next_batch_id: version,
        replay: resume.replay,
        no_data_batches: settings.no_data_batches,
        last_trigger: None,
        ahead: None,
    };
    spawn(execution);
    Ok(StreamingQuery { shared })
}

/// Runs a query. A bug that panics ends it, with an error, for those who wait for it.
fn spawn(execution: Execution) {
    let shared = Arc::clone(&execution.shared);
    let task = tokio::spawn(execution.run());
    tokio::spawn(async move {
        if let Err(error) = task.await {
            shared.end(Err(join_error(error)));
        }
    });
}

fn analyse(plan: &LogicalPlan, session: &SessionState) -> Result<LogicalPlan, EngineError> {
    Ok(session.analyzer().execute_and_check(plan.clone(), session.config_options(), |_, _| {})?)
}

async fn plan_stage(
    stage: Stage,
    mode: OutputMode,
    store: StateStore,
    partitions: usize,
    session: &SessionState,
) -> Result<StageRun, EngineError> {
    let fragment = Fragment::plan(&stage.input, session).await?;
    let exchange = Exchange::try_new(&stage.aggregate, stage.input.schema(), session, partitions)?;
    let aggregation = Arc::new(Aggregation::new(exchange, mode, store));
    Ok(StageRun { fragment, aggregation, slot: stage.slot })
}

/// Loads the newest state version, `wanted` or an older one, that is whole in all operators. Returns it with, by operator,
/// the files that it is in.
fn restore(operators: &[Arc<Aggregation>], wanted: i64) -> Result<(i64, Vec<BTreeSet<PathBuf>>), EngineError> {
    let mut indexes: Vec<StateIndex> = operators.iter().map(|operator| operator.look()).collect::<Result<_, _>>()?;
    let mut version = wanted;
    loop {
        let mut whole = version;
        for index in &mut indexes {
            whole = index.newest_whole(whole)?;
        }
        if whole == version {
            break;
        }
        // One operator reaches back further than another, which may not have that version either.
        version = whole;
    }
    if version < wanted {
        tracing::warn!(version, wanted, "state is restored from an older version; its batches run again");
    }
    let files = operators.iter().zip(&mut indexes).map(|(operator, index)| operator.restore(version, index));
    Ok((version, files.collect::<Result<_, _>>()?))
}

async fn open_sources(
    inputs: Vec<SourceInput>,
    dirs: &[PathBuf],
    resume: &Resume,
) -> Result<Vec<SourceRun>, EngineError> {
    let mut sources = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        let mut source = input.factory.open(dirs.get(index).map(PathBuf::as_path)).await?;
        let columns = input.slot.used_columns();
        if columns.len() < input.factory.schema().fields().len() && source.project(&columns) {
            input.slot.narrow(columns);
        }
        let position = match resume.positions.get(index).cloned().flatten() {
            Some(position) => position,
            None => source.initial_offset().await?,
        };
        sources.push(SourceRun { source, slot: input.slot, position });
    }
    Ok(sources)
}

/// The configuration that the runtime itself reads.
struct Settings {
    partitions: usize,
    policy: WatermarkPolicy,
    no_data_batches: bool,
    retain: i64,
    min_deltas: u32,
    /// What goes into every `offsets/N`, and wins over the session's after a restart.
    recorded: BTreeMap<String, String>,
}

impl Settings {
    fn new(
        conf: &BTreeMap<String, String>,
        recorded: Option<&BTreeMap<String, String>>,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let fixed = |key: &str| recorded.and_then(|recorded| recorded.get(key)).or_else(|| conf.get(key));
        let partitions: usize = match fixed(SHUFFLE_PARTITIONS) {
            Some(value) => parse(SHUFFLE_PARTITIONS, value)?,
            None => threads,
        };
        if partitions == 0 {
            return Err(invalid(SHUFFLE_PARTITIONS, "0", "a number above 0"));
        }
        let policy = match fixed(WATERMARK_POLICY).map(String::as_str) {
            None | Some("min") => WatermarkPolicy::Min,
            Some("max") => WatermarkPolicy::Max,
            Some(other) => return Err(invalid(WATERMARK_POLICY, other, "min or max")),
        };
        let number = |key: &str, default: u32| conf.get(key).map_or(Ok(default), |value| parse(key, value));
        let policy_name = if policy == WatermarkPolicy::Min { "min" } else { "max" };
        Ok(Self {
            partitions,
            policy,
            no_data_batches: conf.get(NO_DATA_BATCHES).map_or(Ok(true), |value| parse(NO_DATA_BATCHES, value))?,
            retain: i64::from(number(MIN_BATCHES_TO_RETAIN, 100)?),
            min_deltas: number(MIN_DELTAS_FOR_SNAPSHOT, 10)?,
            recorded: BTreeMap::from([
                (SHUFFLE_PARTITIONS.to_owned(), partitions.to_string()),
                (WATERMARK_POLICY.to_owned(), policy_name.to_owned()),
            ]),
        })
    }
}

fn parse<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, EngineError> {
    value.trim().parse().map_err(|_| invalid(key, value, std::any::type_name::<T>()))
}

fn invalid(key: &str, value: &str, allowed: &str) -> EngineError {
    EngineError::Invalid {
        class: "INVALID_CONF_VALUE",
        message: format!("The value '{value}' in the config \"{key}\" is invalid. Allowed: {allowed}"),
    }
}

/// What the checkpoint says about earlier runs.
struct History {
    offsets: Option<(i64, OffsetRecord)>,
    committed: Option<(i64, i64)>,
}

/// Where a run takes up.
struct Resume {
    /// The end of the last batch in each source.
    positions: Vec<Option<SourceOffset>>,
    watermark_ms: i64,
    late_ms: i64,
    last_batch_watermark_ms: Option<i64>,
    replay: VecDeque<(i64, OffsetRecord)>,
}

impl History {
    fn read(checkpoint: &Checkpoint) -> Result<Self, EngineError> {
        let committed = checkpoint.latest_commit()?.map(|(id, record)| (id, record.next_batch_watermark_ms));
        Ok(Self { offsets: checkpoint.latest_offsets()?, committed })
    }

    fn conf(&self) -> Option<&BTreeMap<String, String>> {
        self.offsets.as_ref().map(|(_, record)| &record.metadata.conf)
    }

    /// The newest batches that are committed and planned.
    fn newest(&self) -> (Option<i64>, Option<i64>) {
        (self.committed.map(|(id, _)| id), self.offsets.as_ref().map(|(id, _)| *id))
    }

    /// The batch after the last committed one, which is also the version of the state that it needs.
    fn next_batch_id(&self) -> i64 {
        self.committed.map_or(0, |(id, _)| id + 1)
    }

    /// As [`History::resume`]; with the directories of the sources.
    fn take_up(
        &self,
        next: i64,
        checkpoint: &Checkpoint,
        sources: usize,
    ) -> Result<(Resume, Vec<PathBuf>), EngineError> {
        let resume = self.resume(next, checkpoint, sources)?;
        let dirs = (0..sources).map(|index| checkpoint.source_dir(index)).collect::<Result<_, _>>()?;
        Ok((resume, dirs))
    }

    /// Takes up at batch `next`, for which the state is there: batches from it on that were planned run again.
    fn resume(&self, next: i64, checkpoint: &Checkpoint, sources: usize) -> Result<Resume, EngineError> {
        let missing = |id: i64| EngineError::External {
            action: format!("resume from the checkpoint {}", checkpoint.root().display()),
            message: format!("offsets/{id} is missing or unreadable; restore it or use a new checkpoint location"),
        };
        let last = self.offsets.as_ref().map_or(-1, |(id, _)| *id);
        if last < next - 1 {
            return Err(missing(next - 1));
        }
        let mut replay = VecDeque::new();
        for id in next..=last {
            replay.push_back((id, checkpoint.offsets(id)?.ok_or_else(|| missing(id))?));
        }
        let before = match next {
            0 => None,
            _ => Some(checkpoint.offsets(next - 1)?.ok_or_else(|| missing(next - 1))?),
        };
        for record in before.iter().chain(replay.iter().map(|(_, record)| record)) {
            if record.offsets.len() != sources {
                return Err(EngineError::Invalid {
                    class: "STREAMING_CHECKPOINT_MISMATCH",
                    message: format!(
                        "There are [{}] sources in the checkpoint offsets and now there are [{sources}] sources requested \
                         by the query. Cannot continue. The checkpoint {} belongs to another query; use a new \
                         checkpoint location",
                        record.offsets.len(),
                        checkpoint.root().display()
                    ),
                });
            }
        }
        let last_batch_watermark_ms = before.as_ref().map(|record| record.metadata.batch_watermark_ms);
        let watermark_ms = match (replay.front(), self.committed) {
            (Some((_, record)), _) => record.metadata.batch_watermark_ms,
            (None, Some((_, next_watermark_ms))) => next_watermark_ms,
            (None, None) => 0,
        };
        Ok(Resume {
            positions: before.map(|record| record.offsets).unwrap_or_else(|| vec![None; sources]),
            watermark_ms,
            late_ms: last_batch_watermark_ms.unwrap_or(0),
            last_batch_watermark_ms,
            replay,
        })
    }
}
