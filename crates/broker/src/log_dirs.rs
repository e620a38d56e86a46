//! The log directories of this node (`log.dirs`, `metadata.log.dir`): where partitions lie, and where new ones go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use caudal_cluster::format::FormatError;
use caudal_cluster::log::METADATA_TOPIC;
use caudal_protocol::{TopicPartition, Uuid};
use caudal_storage::checkpoint::MetaProperties;
use caudal_storage::{Disk, Log, LogDir, LogDirConfig, Offline, OpenError, RecoveryReport, TopicLog};
use parking_lot::Mutex;

use crate::broker::StartError;
use crate::config::BrokerConfig;
use crate::data_dir;

/// Wishes that are remembered.
const MAX_WISHES: usize = 10_000;

/// One of `log.dirs`.
#[derive(Debug)]
pub struct Dir {
    /// `directory.id` in `meta.properties`.
    pub id: Uuid,
    /// Absolute.
    pub path: PathBuf,
    pub log_dir: Arc<LogDir>,
}

#[derive(Debug)]
pub struct LogDirs {
    /// The one of the metadata log; among `dirs` unless it is for that alone.
    metadata: Arc<LogDir>,
    dirs: Vec<Dir>,
    /// Where partitions are to be created, as AlterReplicaLogDirs asked for; places in `dirs`.
    wishes: Mutex<HashMap<TopicPartition, usize>>,
    /// A partition may lie elsewhere than the metadata says.
    moved: AtomicBool,
}

impl LogDirs {
    /// `dirs` must not be empty.
    pub fn new(metadata: Arc<LogDir>, dirs: Vec<Dir>) -> LogDirs {
        LogDirs { metadata, dirs, wishes: Mutex::default(), moved: AtomicBool::new(true) }
    }

    pub fn metadata(&self) -> &Arc<LogDir> {
        &self.metadata
    }

    pub fn iter(&self) -> impl Iterator<Item = &Dir> {
        self.dirs.iter()
    }

    pub fn ids(&self) -> Vec<Uuid> {
        self.dirs.iter().map(|dir| dir.id).collect()
    }

    /// Whether there is a choice.
    pub fn are_several(&self) -> bool {
        self.dirs.len() > 1
    }

    /// All directories, that of the metadata log included.
    fn all(&self) -> impl Iterator<Item = &Arc<LogDir>> {
        let alone = self.dirs.iter().all(|dir| !Arc::ptr_eq(&dir.log_dir, &self.metadata));
        self.dirs.iter().map(|dir| &dir.log_dir).chain(alone.then_some(&self.metadata))
    }

    /// The directory with this absolute path.
    pub fn find(&self, path: &str) -> Option<&Dir> {
        self.dirs.iter().find(|dir| dir.path == Path::new(path))
    }

    /// The id of the directory that a log lies in.
    pub fn id_of(&self, log_dir: &Arc<LogDir>) -> Option<Uuid> {
        self.dirs.iter().find(|dir| Arc::ptr_eq(&dir.log_dir, log_dir)).map(|dir| dir.id)
    }

    /// Remembers where a partition is to be created.
    pub fn wish(&self, partition: TopicPartition, path: &str) {
        if let Some(at) = self.dirs.iter().position(|dir| dir.path == Path::new(path)) {
            let mut wishes = self.wishes.lock();
            if wishes.len() < MAX_WISHES {
                wishes.insert(partition, at);
            }
        }
    }

    /// The log of a partition, created where there is none: where somebody wished it, or else in the directory that has the
    /// fewest, as in Kafka.
    ///
    /// # Errors
    /// See [`LogDir::create_log`].
    pub fn create_log(&self, log: TopicLog) -> Result<(Arc<Log>, Arc<LogDir>), OpenError> {
        let holds = |dir: &&Dir| dir.log_dir.log(&log.topic_partition).is_some();
        let wish = self.wishes.lock().remove(&log.topic_partition).and_then(|at| self.dirs.get(at));
        let online = |dir: &&Dir| dir.log_dir.check_online().is_ok();
        let partitions = |dir: &&Dir| {
            let logs = dir.log_dir.logs();
            logs.iter().filter(|log| log.topic_partition().topic != METADATA_TOPIC).count()
        };
        let chosen = self.dirs.iter().find(holds).or(wish.filter(online));
        let chosen = chosen.or_else(|| self.dirs.iter().filter(online).min_by_key(partitions));
        let dir = chosen.or(self.dirs.first()).map_or(&self.metadata, |dir| &dir.log_dir);
        let created = dir.create_log(log)?;
        self.moved.store(true, Ordering::Release);
        Ok((created, dir.clone()))
    }

    pub fn note_moved(&self) {
        self.moved.store(true, Ordering::Release);
    }

    /// Whether a partition was created or moved since this was last asked.
    pub fn take_moved(&self) -> bool {
        self.moved.swap(false, Ordering::AcqRel)
    }

    /// Whether all directories are in use, and if not, why.
    ///
    /// # Errors
    /// Of the first one that is out of use.
    pub fn check_online(&self) -> Result<(), Offline> {
        self.all().try_for_each(|dir| dir.check_online())
    }

    /// The time by a clock that does not leap, see [`LogDir::now_ms`].
    pub fn now_ms(&self) -> i64 {
        self.metadata.now_ms()
    }

    /// See [`LogDir::apply_retention`].
    pub fn apply_retention(&self) -> usize {
        self.all().map(|dir| dir.apply_retention()).sum()
    }

    /// See [`LogDir::checkpoint`].
    pub fn checkpoint(&self) {
        self.write_recovery_points(LogDir::checkpoint);
    }

    fn write_recovery_points(&self, write: fn(&LogDir) -> Result<(), OpenError>) {
        for dir in self.all().filter(|dir| dir.check_online().is_ok()) {
            if let Err(error) = write(dir) {
                tracing::warn!("failed to write recovery points: {error}");
            }
        }
    }

    /// See [`LogDir::flush_overdue`], [`LogDir::checkpoint_grown`] and [`LogDir::remove_doomed`].
    pub fn upkeep(&self) {
        self.write_recovery_points(LogDir::checkpoint_grown);
        self.all().for_each(|dir| {
            dir.flush_overdue();
            dir.remove_doomed();
        });
    }

    /// See [`LogDir::close`]. A directory that fails does not keep the others from it.
    ///
    /// # Errors
    /// That of the last directory that could not be closed cleanly.
    pub fn close(&self, broker_epoch: i64) -> Result<(), OpenError> {
        let mut closed = Ok(());
        for dir in self.all() {
            closed = dir.close(broker_epoch).and(closed);
        }
        closed
    }
}

/// What opening the directories found.
#[derive(Debug)]
pub struct OpenedDirs {
    pub dirs: LogDirs,
    pub meta: MetaProperties,
    /// Each with its path.
    pub reports: Vec<(PathBuf, RecoveryReport)>,
}

/// Opens all directories; formats those that are new, if the settings say so, or if the metadata directory is formatted.
///
/// # Errors
/// One cannot be used.
pub fn open(config: &BrokerConfig, disk: &Arc<dyn Disk>) -> Result<OpenedDirs, StartError> {
    let settings = LogDirConfig {
        flush_before_ack: config.flush_before_ack,
        producer_id_expiration_ms: config.properties.int("producer.id.expiration.ms"),
        recovery_threads: usize::try_from(config.properties.int("num.recovery.threads.per.data.dir")).unwrap_or(1),
        ..LogDirConfig::default()
    };
    let mut reports = Vec::new();
    let mut open_one = |path: &Path| {
        let (log_dir, report) = LogDir::open(path, settings.clone(), disk.clone())?;
        reports.push((path.to_owned(), report));
        Ok::<_, OpenError>(Arc::new(log_dir))
    };
    let formatted = read_meta(config, disk, &config.log_dir, None)?;
    if formatted.is_none() {
        if !config.format_if_empty {
            return Err(StartError::NotFormatted { dir: config.log_dir.clone() });
        }
        data_dir::check_unused(disk.as_ref(), &config.log_dir)?;
    }
    let metadata = open_one(&config.log_dir)?;
    // Under the directory's lock, so that two that start at once do not format it differently.
    let meta = match formatted {
        Some(meta) => meta,
        None => {
            data_dir::check_formattable(&metadata, config.node_id)?;
            caudal_cluster::format::format_standalone(disk.as_ref(), &config.log_dir, config.node_id)?
        }
    };
    let mut dirs = Vec::new();
    for path in config.partition_dirs() {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        if *path == config.log_dir {
            let id = meta.directory_id.unwrap_or(Uuid::ZERO);
            dirs.push(Dir { id, path: absolute, log_dir: metadata.clone() });
            continue;
        }
        let found = read_meta(config, disk, path, Some(&meta))?;
        if found.is_none() {
            data_dir::check_unused(disk.as_ref(), path)?;
        }
        let log_dir = open_one(path)?;
        let own = match found {
            Some(own) => own,
            None => {
                data_dir::check_formattable(&log_dir, config.node_id)?;
                let own = MetaProperties { directory_id: Some(Uuid::random()), ..meta.clone() };
                own.write(disk.as_ref(), path)?;
                tracing::info!(dir = %path.display(), "formatted a new log directory");
                own
            }
        };
        dirs.push(Dir { id: own.directory_id.unwrap_or(Uuid::ZERO), path: absolute, log_dir });
    }
    let dirs = LogDirs::new(metadata, dirs);
    finish_moves(&dirs)?;
    Ok(OpenedDirs { dirs, meta, reports })
}

/// Reads `meta.properties` of a directory and whether it belongs here; `None`: it is not formatted.
fn read_meta(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    dir: &Path,
    cluster: Option<&MetaProperties>,
) -> Result<Option<MetaProperties>, StartError> {
    let Some(meta) = data_dir::read_meta(disk.as_ref(), dir)? else { return Ok(None) };
    if meta.node_id != config.node_id {
        return Err(StartError::OtherNode { dir: dir.to_owned(), found: meta.node_id, wanted: config.node_id });
    }
    if let Some(cluster) = cluster.filter(|cluster| cluster.cluster_id != meta.cluster_id) {
        let reason = format!(
            "failed to open {}: it belongs to the cluster {}, and {} to {}; correct log.dirs",
            dir.display(),
            meta.cluster_id,
            config.log_dir.display(),
            cluster.cluster_id
        );
        return Err(StartError::Format(FormatError::Terse(reason)));
    }
    Ok(Some(meta))
}

/// A kill may come while a partition is moved. Before the exchange the old log is the whole one; between the renames of the
/// exchange there are two that hold the same, and the longer one is kept in any case. One on its way that has no other
/// was left by a move that another broker ended.
fn finish_moves(dirs: &LogDirs) -> Result<(), OpenError> {
    for dir in dirs.iter() {
        for (partition, left) in dir.log_dir.left_futures()? {
            if dirs.iter().any(|dir| dir.log_dir.log(&partition).is_some()) {
                tracing::info!(%partition, to = %dir.path.display(), "a move was interrupted; the partition is where it was");
                dir.log_dir.remove_left(&left);
            } else {
                dir.log_dir.adopt_left(&partition, &left)?;
                tracing::info!(%partition, to = %dir.path.display(), "finished a move that was interrupted");
            }
        }
    }
    let mut kept: HashMap<TopicPartition, (&Dir, i64)> = HashMap::new();
    for dir in dirs.iter() {
        for log in dir.log_dir.logs() {
            let name = log.topic_partition().clone();
            if name.topic == METADATA_TOPIC {
                continue;
            }
            let end = log.log_end_offset();
            match kept.get(&name).copied() {
                Some((other, longer)) if longer > end => set_aside(dir, &name, other)?,
                Some((other, _)) => {
                    set_aside(other, &name, dir)?;
                    kept.insert(name, (dir, end));
                }
                None => _ = kept.insert(name, (dir, end)),
            }
        }
    }
    Ok(())
}

fn set_aside(dir: &Dir, partition: &TopicPartition, kept: &Dir) -> Result<(), OpenError> {
    let away = dir.log_dir.set_aside(partition)?;
    tracing::warn!(
        %partition, kept = %kept.path.display(), dir = %away.display(),
        "two directories held the partition: the shorter log was set aside. After a move that was interrupted the other has \
         all of it; after a start without this directory it has not: look before you delete it"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use caudal_protocol::batch::BatchBuilder;
    use caudal_protocol::compression::Codec;
    use caudal_storage::crash::{CrashDisk, Fate};
    use caudal_storage::{AppendOrigin, LogConfig};

    use super::*;
    use crate::moves;

    const RECORDS: i64 = 30;

    fn open_both(disk: &CrashDisk) -> LogDirs {
        let dir = |path: &str| {
            let disk = Arc::new(disk.clone());
            let log_dir = Arc::new(LogDir::open(Path::new(path), LogDirConfig::default(), disk).unwrap().0);
            Dir { id: Uuid::random(), path: PathBuf::from(path), log_dir }
        };
        let dirs = vec![dir("/a"), dir("/b")];
        let dirs = LogDirs::new(dirs[0].log_dir.clone(), dirs);
        finish_moves(&dirs).unwrap();
        dirs
    }

    /// Moves the only partition as [`crate::replicas::Replicas::exchange`] does.
    fn carry_over(dirs: &LogDirs) {
        let (from, to) = (&dirs.dirs[0].log_dir, &dirs.dirs[1].log_dir);
        let source = from.logs().remove(0);
        let name = source.topic_partition().clone();
        let config = LogConfig::clone(&source.config());
        let wanted = TopicLog { topic_partition: name.clone(), topic_id: source.topic_id(), config };
        let future = to.create_future(wanted, 0).unwrap();
        moves::copy(&source, &future, source.durable_end_offset(), &|| false).unwrap();
        let end = source.pause().unwrap();
        moves::copy(&source, &future, end, &|| false).unwrap();
        to.adopt_future(&name, None).unwrap();
        from.delete_log(&name).unwrap();
        from.remove_doomed();
    }

    #[test]
    fn a_move_may_be_cut_off_anywhere() {
        let disk = CrashDisk::new();
        let dirs = open_both(&disk);
        let name = TopicPartition::new("t", 0);
        let config = LogConfig { segment_bytes: 1000, file_delete_delay_ms: 0, ..LogConfig::default() };
        let wanted = TopicLog { topic_partition: name.clone(), topic_id: Some(Uuid::random()), config };
        let log = dirs.create_log(wanted).unwrap().0;
        for n in 0..RECORDS {
            let mut batch = BatchBuilder::new(Codec::None).producer(7, 0, i32::try_from(n).unwrap());
            batch.append(n, Some(b"key"), Some(&[b'v'; 50]), &[]);
            log.append(&batch.build().unwrap(), i32::try_from(n / 10).unwrap(), AppendOrigin::Client).unwrap();
        }
        log.flush().unwrap();
        let begin = disk.operations();
        carry_over(&dirs);
        let holders = |dirs: &LogDirs| dirs.iter().filter(|dir| dir.log_dir.log(&name).is_some()).count();
        assert!(holders(&dirs) == 1 && dirs.dirs[1].log_dir.log(&name).is_some());
        let fates = [Fate::Kept, Fate::Dropped];
        for cut in begin..=disk.operations() {
            for fate in fates {
                let image = disk.image(cut, |_| fate);
                let dirs = open_both(&image);
                assert_eq!(holders(&dirs), 1, "cut at {cut}, {fate:?}");
                let log = dirs.iter().find_map(|dir| dir.log_dir.log(&name)).unwrap();
                assert_eq!((log.log_start_offset(), log.log_end_offset()), (0, RECORDS), "cut at {cut}, {fate:?}");
                assert_eq!((log.latest_epoch(), log.end_offset_for_epoch(1)), (Some(2), (1, 20)), "cut at {cut}");
                assert_eq!(log.active_producers().len(), 1);
                for offset in 0..RECORDS {
                    log.read(offset, 1, RECORDS, true).unwrap();
                }
                assert!(dirs.iter().all(|dir| dir.log_dir.left_futures().unwrap().is_empty()));
            }
        }
    }
}
