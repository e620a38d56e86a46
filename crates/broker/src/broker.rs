//! Starting and stopping a broker.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use caudal_cluster::controller::Decision;
use caudal_cluster::format::{self, FormatError};
use caudal_cluster::log::{ACCEPT_LOSS, METADATA_TOPIC};
use caudal_cluster::{MetadataLog, MetadataLogError, SnapshotPolicy};
use caudal_protocol::Uuid;
use caudal_protocol::records::metadata::FeatureLevelRecord;
use caudal_storage::checkpoint::{CheckpointError, MetaProperties};
use caudal_storage::{Cleaner, Disk, OpenError, RealDisk, RecoveryReport};
use tokio::sync::{mpsc, watch};

use crate::background::Background;
use crate::cleaner;
use crate::config::{AUTHORIZER, BrokerConfig};
use crate::context::Context;
use crate::data_dir::DataDirError;
use crate::descriptors;
use crate::fetch::session::Sessions;
use crate::group::offsets_log::{OFFSETS_TOPIC, OffsetsTopic};
use crate::group::service::GroupService;
use crate::http::{self, HttpListener};
use crate::log_dirs::{self, LogDirs, OpenedDirs};
use crate::metadata::{Metadata, RegisterError};
use crate::metrics::{Metrics, Retired};
use crate::moves::Moves;
use crate::producer_ids::ProducerIds;
use crate::quota::Quotas;
use crate::registration::{self, Registrar};
use crate::replicas::Replicas;
use crate::server::{self, BindError, RequestMemory, Serving};
use crate::topics::Topics;
use crate::transaction::service::TransactionService;
use crate::transaction::{STATE_TOPIC, timers};
use crate::unfolding::Unfolding;
use crate::wanted_topics::WantedTopics;

/// How often recovery points are written: what lies behind them is scanned after a crash.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// How often a broker that was started on a full disk looks whether there is space.
const CATCH_UP_INTERVAL: Duration = Duration::from_secs(5);

/// How often overdue flushes (`flush.ms`) and removals (`file.delete.delay.ms`) are looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(
        "failed to open {dir}: it is not formatted; run `kafka-storage.sh format -t $(kafka-storage.sh random-uuid) -c FILE`, or `caudal up`, which formats a new directory"
    )]
    NotFormatted { dir: PathBuf },
    #[error(
        "failed to open {dir}: it belongs to node.id={found}, not to node.id={wanted}; correct node.id or log.dirs"
    )]
    OtherNode { dir: PathBuf, found: i32, wanted: i32 },
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    MetadataLog(#[from] MetadataLogError),
    #[error(
        "failed to open {dir}: it has {logs} logs, but its metadata log says nothing, not even which topics there are. Restore \
         __cluster_metadata-0 from a backup; or start once with {ACCEPT_LOSS}=true, which sets them all aside"
    )]
    NoMetadata { dir: PathBuf, logs: usize },
    #[error("failed to start: none of log.dirs can be used: {reasons}")]
    NoDirectory { reasons: String },
    #[error(
        "failed to open {dir}: it has the same directory.id as {other}, {id}: one is a copy of the other. Leave the copy out of \
         log.dirs, or remove it"
    )]
    SameId { dir: PathBuf, other: PathBuf, id: Uuid },
    #[error(
        "failed to start the quorum in {dir}: it was formatted to join another (--no-initial-controllers), and only a quorum of \
         this node alone is supported; format it with --standalone"
    )]
    NoVoters { dir: PathBuf },
    #[error(
        "failed to start with {AUTHORIZER}: the metadata log has ACLs ({0}), and no authorizer is served that heeds them"
    )]
    Acls(usize),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("{0}")]
    Metadata(String),
    #[error("{0}")]
    Groups(String),
    #[error("{0}")]
    Transactions(String),
    #[error("failed to start the log cleaner: {0}")]
    Cleaner(std::io::Error),
}

/// A running broker. Dropping it without [`Broker::shutdown`] is a crash.
#[derive(Debug)]
pub struct Broker {
    ctx: Arc<Context>,
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    serving: Serving,
}

struct Opened {
    log_dirs: LogDirs,
    meta: MetaProperties,
    metadata_log: MetadataLog,
    /// What a new cluster starts with.
    features: Vec<FeatureLevelRecord>,
    /// The last run stopped in an orderly way.
    clean: bool,
}

impl Broker {
    /// Opens the data, listens, and serves; must be called within a tokio runtime. Clients that connect meanwhile wait.
    ///
    /// # Errors
    /// The address or the data directory cannot be used.
    pub async fn start(config: BrokerConfig) -> Result<Broker, StartError> {
        Broker::start_on(config, Arc::new(RealDisk)).await
    }

    /// As [`Broker::start`], on a disk of the caller: tests decide when it is full.
    ///
    /// # Errors
    /// As of [`Broker::start`].
    pub async fn start_on(mut config: BrokerConfig, disk: Arc<dyn Disk>) -> Result<Broker, StartError> {
        outlive_file_size_limit();
        let listener = server::bind(&config)?;
        let http = HttpListener::bind(&config)?;
        let http_bound = http.bound.clone();
        let (stop, stopped) = watch::channel(false);
        let serving_http = http::Serving::default();
        http.serve(&serving_http, &stopped);
        complete(&mut config, &listener.bound);
        config.limits.open_files = descriptors::for_connections();
        let settings = config.clone();
        let opened = tokio::task::spawn_blocking(move || open(&settings, disk));
        let Opened { log_dirs, meta, metadata_log, features, clean } =
            opened.await.map_err(|e| StartError::Metadata(format!("failed to open the data: {e}")))??;
        let topics = Arc::new(Topics::default());
        let (deleted, deletions) = mpsc::unbounded_channel();
        let cleaners = cleaner::start(&log_dirs, &config.properties, metadata_log.image(), config.node_id);
        let replicas = Arc::new(Replicas {
            cleaners: cleaners.map_err(StartError::Cleaner)?,
            topics: topics.clone(),
            log_dirs,
            background: Background::default(),
            node_id: config.node_id,
            static_config: config.properties.clone(),
            retired: Retired::default(),
            deleted,
        });
        replicas.follow(None, metadata_log.image());
        let directory_id = meta.directory_id.unwrap_or(Uuid::ZERO);
        let registrar = Registrar::new(&config, &listener.bound, &replicas.log_dirs, features, clean);
        let quotas = Arc::new(Quotas::new(&config.properties));
        let metadata = Metadata::new(metadata_log, replicas.clone(), quotas.clone(), registrar);
        metadata.register().await?;
        let offsets = Arc::new(OffsetsTopic::new(topics.clone()));
        let images = metadata.images();
        let groups = Arc::new(GroupService::new(config.groups.clone(), offsets.clone(), Arc::new(images)));
        let features = metadata.features();
        let version = Box::new(move || features.level("transaction.version"));
        let transactions =
            TransactionService::new(config.transactions.clone(), topics.clone(), groups.clone(), version);
        let ctx = Arc::new(Context {
            metrics: Metrics::new(listener.bound.len(), config.properties.int("caudal.slow.request.ms")),
            http_bound,
            bound: listener.bound.clone(),
            cluster_id: meta.cluster_id,
            directory_id,
            metadata,
            topics,
            moves: Moves::new(moves_at_a_time(&config, &replicas.log_dirs)),
            replicas,
            groups,
            quotas,
            transactions: Arc::new(transactions),
            fetch_sessions: Sessions::new(config.fetch_sessions),
            request_memory: RequestMemory::new(config.limits.queued_max_bytes),
            producer_ids: ProducerIds::default(),
            wanted_topics: WantedTopics::default(),
            unfolding: Unfolding::default(),
            config,
        });
        load_groups(&ctx.groups, offsets).await?;
        load_transactions(&ctx.transactions).await?;
        ctx.moves.resume(&ctx);
        let tasks = background(&ctx, &stopped, deletions);
        let serving = listener.serve(&ctx, &stopped);
        // It is set once.
        let _ = serving_http.set(ctx.clone());
        Ok(Broker { ctx, stop, tasks, serving })
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    /// The first address it listens on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.ctx.bound.first().copied()
    }

    /// Stops accepting, answers what was begun, ends the connections, closes the data cleanly.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        // What is appended is answered: a producer that got no answer would have to send it again.
        self.serving.ended().await;
        for task in self.tasks {
            task.abort();
        }
        self.ctx.moves.stop();
        if let Err(error) = registration::stop(&self.ctx.metadata, self.ctx.node_id()).await {
            tracing::error!("{error}");
        }
        let replicas = self.ctx.replicas.clone();
        let broker_epoch = self.ctx.metadata.image().broker(self.ctx.node_id()).map_or(-1, |b| b.broker_epoch);
        let closed = tokio::task::spawn_blocking(move || {
            replicas.cleaners.iter().for_each(Cleaner::stop);
            replicas.log_dirs.close(broker_epoch)
        });
        let closed = closed.await;
        match closed {
            Ok(Ok(())) => tracing::info!("stopped cleanly"),
            Ok(Err(error)) => tracing::error!("failed to stop cleanly: {error}"),
            Err(error) => tracing::error!("failed to stop cleanly: {error}"),
        }
    }
}

/// A write beyond `ulimit -f` ends a process that does not handle SIGXFSZ. Handled, it fails like one on a full disk. The
/// handler stays when its receiver goes.
fn outlive_file_size_limit() {
    use tokio::signal::unix::{SignalKind, signal};
    if let Err(error) = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())) {
        tracing::warn!("failed to handle SIGXFSZ: {error}. A limit of file sizes (ulimit -f) would end the broker");
    }
}

/// Puts what was settled otherwise than by a properties file among the properties, for those who ask for them.
fn complete(config: &mut BrokerConfig, bound: &[SocketAddr]) {
    let listeners: Vec<String> = bound.iter().map(|address| format!("PLAINTEXT://{address}")).collect();
    let node_id = config.node_id.to_string();
    let settled = [
        ("node.id", node_id.clone()),
        ("broker.id", node_id),
        ("log.dirs", config.partition_dirs().iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(",")),
        ("listeners", listeners.join(",")),
    ];
    let properties = Arc::make_mut(&mut config.properties);
    for (key, value) in settled {
        if properties.get(key).is_none() {
            properties.set(key, value);
        }
    }
}

fn open(config: &BrokerConfig, disk: Arc<dyn Disk>) -> Result<Opened, StartError> {
    let metadata_dir = log_dirs::open_metadata_dir(config, &disk)?;
    let meta = metadata_dir.meta.clone();
    let features = format::bootstrap_features(disk.as_ref(), &config.log_dir)?;
    let metadata_log = MetadataLog::load(metadata_dir.log_dir.clone(), config.node_id, snapshot_policy(config))?;
    let OpenedDirs { dirs: mut log_dirs, reports } = log_dirs::open(config, &disk, metadata_dir, metadata_log.image())?;
    reports.iter().for_each(|(dir, report)| tell(dir, report, config));
    check_metadata(config, &log_dirs, &metadata_log)?;
    log_dirs.settle_moves(metadata_log.image(), config.node_id)?;
    let clean = reports.iter().all(|(_, report)| report.clean_shutdown);
    Ok(Opened { log_dirs, meta, metadata_log, features, clean })
}

/// `num.replica.alter.log.dirs.threads`; as many as there are directories where it is not set.
fn moves_at_a_time(config: &BrokerConfig, log_dirs: &LogDirs) -> usize {
    let set = config.properties.get("num.replica.alter.log.dirs.threads").and_then(|threads| threads.parse().ok());
    set.unwrap_or_else(|| log_dirs.iter().count())
}

/// Whether the metadata log is the one that the logs beside it need, and this node's to lead.
fn check_metadata(config: &BrokerConfig, log_dirs: &LogDirs, metadata_log: &MetadataLog) -> Result<(), StartError> {
    let dir = || config.log_dir.clone();
    let properties = &config.properties;
    if metadata_log.is_new() {
        let all = log_dirs.iter().flat_map(|dir| dir.log_dir.logs());
        let logs = all.filter(|log| log.topic_partition().topic != METADATA_TOPIC).count();
        if logs > 0 && !properties.bool(ACCEPT_LOSS) {
            return Err(StartError::NoMetadata { dir: dir(), logs });
        }
        if !metadata_log.has_voters() && properties.get("controller.quorum.voters").is_none_or(str::is_empty) {
            return Err(StartError::NoVoters { dir: dir() });
        }
    }
    let acls = metadata_log.image().acls().len();
    if acls > 0 && properties.get(AUTHORIZER).is_some_and(|class| !class.is_empty()) {
        return Err(StartError::Acls(acls));
    }
    Ok(())
}

fn snapshot_policy(config: &BrokerConfig) -> SnapshotPolicy {
    let number = |name: &str| u64::try_from(config.properties.int(name)).unwrap_or(u64::MAX);
    SnapshotPolicy {
        max_bytes: number("metadata.log.max.record.bytes.between.snapshots"),
        max_interval: Duration::from_millis(number("metadata.log.max.snapshot.interval.ms")),
        retention_bytes: number("metadata.max.retention.bytes"),
        accept_loss: config.properties.bool(ACCEPT_LOSS),
    }
}

fn tell(dir: &Path, report: &RecoveryReport, config: &BrokerConfig) {
    let mode = if config.flush_before_ack {
        "writes are acknowledged when they are on disk (caudal.flush.before.ack=true)"
    } else {
        "writes are acknowledged before they are on disk, as in Kafka (caudal.flush.before.ack=false)"
    };
    tracing::info!(dir = %dir.display(), "{mode}");
    if !report.clean_shutdown && !report.logs.is_empty() {
        tracing::info!(logs = report.logs.len(), bytes_cut = report.bytes_cut(), elapsed = ?report.elapsed, "recovered");
    }
    for (log, recovery) in &report.logs {
        tracing::debug!(%log, ?recovery, "recovered");
    }
}

async fn load_groups(groups: &Arc<GroupService>, offsets: Arc<OffsetsTopic>) -> Result<(), StartError> {
    let groups = groups.clone();
    let loaded = tokio::task::spawn_blocking(move || {
        let unreadable = offsets.read_all(|record| groups.replay(record));
        for (partition, reason) in &unreadable {
            tracing::error!(
                "the groups in {OFFSETS_TOPIC}-{partition} are not served, as it cannot be read: {reason}. Stop the broker, \
                 bring its directory back, from a backup if need be, or delete it to let these groups begin anew, and start it"
            );
        }
        groups.loaded(unreadable.into_keys().collect());
    });
    loaded.await.map_err(|e| StartError::Groups(format!("failed to load the groups: {e}")))
}

async fn load_transactions(transactions: &Arc<TransactionService>) -> Result<(), StartError> {
    let transactions = transactions.clone();
    let loaded = tokio::task::spawn_blocking(move || {
        for (partition, reason) in transactions.load() {
            tracing::error!(
                "the transactional ids in {STATE_TOPIC}-{partition} are not served, as it cannot be read: {reason}. Stop \
                 the broker, bring its directory back, from a backup if need be, and start it"
            );
        }
    });
    loaded.await.map_err(|e| StartError::Transactions(format!("failed to load the transactions: {e}")))
}

/// What runs beside the requests. Nothing here ticks faster than once a second.
fn background(
    ctx: &Arc<Context>,
    stopped: &watch::Receiver<bool>,
    mut deletions: mpsc::UnboundedReceiver<String>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let millis = |name: &str| u64::try_from(ctx.config.properties.int(name)).unwrap_or(u64::MAX);
    let timers = ctx.groups.clone();
    let offsets_check = Duration::from_millis(millis("offsets.retention.check.interval.ms"));
    let replicas = ctx.replicas.clone();
    let group_timers =
        tokio::spawn(async move { timers.run_timers(offsets_check, || replicas.log_dirs.now_ms()).await });
    let groups = ctx.groups.clone();
    let forget_topics = tokio::spawn(async move {
        while let Some(topic) = deletions.recv().await {
            let error = groups.topic_deleted(&topic).await;
            if error.is_error() {
                tracing::warn!(topic, error = error.name(), "failed to forget the offsets of a deleted topic");
            }
        }
    });
    let retention = every(ctx.config.retention_check_interval, stopped.clone(), ctx.clone(), move |ctx| {
        let segments = ctx.replicas.log_dirs.apply_retention();
        if segments > 0 {
            tracing::info!(segments, "deleted by retention");
            ctx.topics.view().partitions().for_each(|partition| partition.wake());
        }
    });
    let checkpoints = every(CHECKPOINT_INTERVAL, stopped.clone(), ctx.clone(), |ctx| {
        ctx.replicas.log_dirs.checkpoint();
        ctx.metadata.create_missing_logs();
    });
    let late = ctx.clone();
    let catch_up = tokio::spawn(async move {
        while !late.metadata.catch_up().await {
            tokio::time::sleep(CATCH_UP_INTERVAL).await;
        }
    });
    let upkeep = every(UPKEEP_INTERVAL, stopped.clone(), ctx.clone(), |ctx| {
        ctx.replicas.log_dirs.upkeep();
    });
    let whereabouts = tokio::spawn(tell_whereabouts(ctx.clone()));
    let markers = tokio::spawn(ctx.transactions.clone().carry_out());
    let transaction_timers = tokio::spawn(timers::run(ctx.clone()));
    let wanted_topics = tokio::spawn(WantedTopics::create(ctx.clone()));
    vec![
        group_timers,
        forget_topics,
        retention,
        checkpoints,
        catch_up,
        upkeep,
        markers,
        transaction_timers,
        wanted_topics,
        whereabouts,
    ]
}

/// Writes into the metadata where partitions lie when that changed, and that those of a failed directory have no leader.
async fn tell_whereabouts(ctx: Arc<Context>) {
    let log_dirs = &ctx.replicas.log_dirs;
    let mut told = None;
    loop {
        let in_use = log_dirs.ids();
        let changed = log_dirs.take_moved() || told.as_ref() != Some(&in_use);
        if changed && log_dirs.metadata().check_online().is_ok() {
            let replicas = ctx.replicas.clone();
            let written =
                ctx.metadata.change(|image| Decision { records: replicas.whereabouts(image), response: () }).await;
            match written {
                Ok(()) => told = Some(in_use),
                Err(error) => {
                    log_dirs.note_moved();
                    tracing::debug!("failed to tell where partitions lie: {error}");
                }
            }
        }
        tokio::time::sleep(UPKEEP_INTERVAL).await;
    }
}

/// Runs blocking work again and again, the first time after one interval.
fn every(
    interval: Duration,
    mut stopped: watch::Receiver<bool>,
    ctx: Arc<Context>,
    work: impl Fn(&Context) + Clone + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = stopped.changed() => return,
            }
            let (here, work) = (ctx.clone(), work.clone());
            let _turn = ctx.replicas.background.turn().await;
            if let Err(error) = tokio::task::spawn_blocking(move || work(&here)).await {
                tracing::error!("background work failed: {error}");
            }
        }
    })
}
