//! A log directory: its lock, its checkpoints, the logs in it.

mod checkpoints;
mod future;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use caudal_protocol::{TopicPartition, Uuid};
use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use crate::checkpoint::{self, CLEANED_OFFSETS, HIGH_WATERMARKS, LOG_START_OFFSETS, RECOVERY_POINTS, StoredClock};
use crate::config::LogConfig;
use crate::disk::{self, DirLock, Disk, OpenMode};
use crate::error::{Offline, OpenError, Unusable, is_unusable};
use crate::flusher::{FlushQueue, Flusher};
use crate::histogram::Histogram;
use crate::log::recover::{Checkpoints, Shared};
use crate::log::{DirHealth, Log, LogRecovery, wall_clock_ms};
use crate::segment::LOG_SUFFIX;
use checkpoints::{Absent, Written};

/// How a log directory works.
#[derive(Clone, Debug)]
pub struct LogDirConfig {
    /// Whether acknowledgements wait for fsync (`caudal.flush.before.ack`).
    pub flush_before_ack: bool,
    pub flush_threads: usize,
    /// Threads that open and recover logs (`num.recovery.threads.per.data.dir`).
    pub recovery_threads: usize,
    /// Producers that wrote nothing for so long are forgotten (`producer.id.expiration.ms`).
    pub producer_id_expiration_ms: i64,
    /// What a log obeys until the broker knows its topic's configuration.
    pub log: LogConfig,
    /// Where the times of fsyncs are noted; those of several directories together.
    pub flush_times: Arc<Histogram>,
}

impl Default for LogDirConfig {
    fn default() -> LogDirConfig {
        LogDirConfig {
            flush_before_ack: true,
            flush_threads: 4,
            recovery_threads: 2,
            producer_id_expiration_ms: 24 * 60 * 60 * 1000,
            log: LogConfig::default(),
            flush_times: Arc::default(),
        }
    }
}

/// What opening a directory found.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// Whether the last run ended in an orderly way.
    pub clean_shutdown: bool,
    /// The logs in which something was scanned, cut or rebuilt.
    pub logs: Vec<(TopicPartition, LogRecovery)>,
    /// Directories left alone because their names are no partition's.
    pub ignored: Vec<String>,
    /// Logs that are there and cannot be opened, all others can.
    pub unusable: Vec<Unusable>,
    pub elapsed: Duration,
}

impl RecoveryReport {
    pub fn bytes_cut(&self) -> u64 {
        self.logs.iter().map(|(_, log)| log.bytes_cut).sum()
    }
}

/// A partition with its topic's id, for creating logs.
#[derive(Clone, Debug)]
pub struct TopicLog {
    pub topic_partition: TopicPartition,
    pub topic_id: Option<Uuid>,
    pub config: LogConfig,
}

/// An open log directory. Dropping it without [`LogDir::close`] is a crash as far as the next start is concerned.
#[derive(Debug)]
pub struct LogDir {
    shared: Shared,
    config: LogDirConfig,
    logs: RwLock<HashMap<TopicPartition, Arc<Log>>>,
    /// Those that could not be opened, or created for what is in their place. They stay so until the next start: what an operator puts
    /// there meanwhile is not touched half done.
    unusable: RwLock<HashMap<TopicPartition, Unusable>>,
    /// Logs on their way here from another directory.
    futures: RwLock<HashMap<TopicPartition, Arc<Log>>>,
    /// Held while logs are created or deleted.
    changing: Mutex<()>,
    flusher: Flusher,
    /// Directories of deleted logs, each with the time to remove it.
    doomed: Mutex<Vec<(Instant, PathBuf)>>,
    clock: Mutex<RetentionClock>,
    producer_id_expiration_ms: AtomicI64,
    written: Mutex<Written>,
    absent: Mutex<Absent>,
    /// Up to where logs were compacted; what `cleaner-offset-checkpoint` holds.
    cleaned: Mutex<Offsets>,
    /// The last run ended in an orderly way.
    was_closed: bool,
    lock: Box<dyn DirLock>,
}

const LOCK_FILE: &str = ".lock";
const DELETE_SUFFIX: &str = "-delete";
const STRAY_SUFFIX: &str = "-stray";
/// Kafka's, of logs on their way to another directory.
const FUTURE_SUFFIX: &str = "-future";
const UNIQUE_DIGITS: usize = 32;
impl LogDir {
    /// Locks the directory (created when missing), recovers and opens all logs in it.
    pub fn open(path: &Path, config: LogDirConfig, disk: Arc<dyn Disk>) -> Result<(LogDir, RecoveryReport), OpenError> {
        let begin = Instant::now();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                OpenError::NotWritable { dir: path.to_owned(), source }
            }
            _ => OpenError::Dir { dir: path.to_owned(), source },
        };
        create_dir_durably(disk.as_ref(), path).map_err(failed)?;
        let lock = disk.lock(&path.join(LOCK_FILE)).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked { dir: path.to_owned() },
            _ => failed(source),
        })?;
        let queue = Arc::new(FlushQueue::new(Arc::clone(&config.flush_times)));
        let flusher = Flusher::start(Arc::clone(&queue), config.flush_threads).map_err(failed)?;
        let shared = Shared {
            health: Arc::new(DirHealth::new(path.to_owned())),
            queue,
            flush_before_ack: config.flush_before_ack,
            disk,
        };
        let (logs, mut report, mut read) = open_logs(&shared, path, &config)?;
        checkpoint::remove_clean_shutdown(shared.disk.as_ref(), path)?;
        report.elapsed = begin.elapsed();
        let absent = Absent::new(&read, |log| logs.contains_key(log));
        let cleaned = read.remove(CLEANED_OFFSETS).unwrap_or_default();
        let clock = checkpoint::read_retention_clock(shared.disk.as_ref(), path).unwrap_or_else(|error| {
            tracing::warn!(%error, "retention goes by the wall clock");
            None
        });
        let mut clock = RetentionClock::new(clock, wall_clock_ms(), Instant::now());
        if clock.stored.is_none()
            && let Some(first) = clock.unstored(wall_clock_ms(), Instant::now())
        {
            match checkpoint::write_retention_clock(shared.disk.as_ref(), path, first) {
                Ok(()) => clock.stored = Some(first),
                // A later checkpoint tries again.
                Err(error) => tracing::debug!(%error, "retention clock not stored"),
            }
        }
        let dir = LogDir {
            producer_id_expiration_ms: AtomicI64::new(config.producer_id_expiration_ms),
            shared,
            config,
            logs: RwLock::new(logs),
            unusable: RwLock::new(report.unusable.iter().map(|found| (found.log.clone(), found.clone())).collect()),
            futures: RwLock::default(),
            changing: Mutex::new(()),
            flusher,
            doomed: Mutex::default(),
            clock: Mutex::new(clock),
            written: Mutex::new(read),
            absent: Mutex::new(absent),
            cleaned: Mutex::new(cleaned),
            was_closed: report.clean_shutdown,
            lock,
        };
        dir.settle_damage(&report);
        Ok((dir, report))
    }

    pub fn path(&self) -> &Path {
        self.shared.health.dir()
    }

    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.shared.disk
    }

    /// Whether acknowledgements wait for fsync.
    pub fn flush_before_ack(&self) -> bool {
        self.config.flush_before_ack
    }

    /// Why the directory is out of use, if it is.
    pub fn check_online(&self) -> Result<(), Offline> {
        self.shared.health.check()
    }

    /// As [`LogDir::check_online`]; looks whether the directory is still there, and takes it out of use if it is not. To be called
    /// every second or so.
    pub fn check_place(&self) -> Result<(), Offline> {
        self.check_online()?;
        if self.lock.is_in_place() {
            return Ok(());
        }
        Err(self.shared.health.fail("it was removed or unmounted, or something was mounted over it".to_owned()))
    }

    /// When a write found the disk full, if none has succeeded since.
    pub fn found_full(&self) -> Option<Instant> {
        self.shared.health.found_full()
    }

    /// The group commit threads.
    pub fn flusher(&self) -> &Flusher {
        &self.flusher
    }

    /// The log of a partition, if there is one here.
    pub fn log(&self, topic_partition: &TopicPartition) -> Option<Arc<Log>> {
        self.logs.read().get(topic_partition).cloned()
    }

    /// Why the log of a partition that is here could not be opened.
    pub fn unusable(&self, topic_partition: &TopicPartition) -> Option<Unusable> {
        self.unusable.read().get(topic_partition).cloned()
    }

    /// All logs, in no particular order.
    pub fn logs(&self) -> Vec<Arc<Log>> {
        self.logs.read().values().cloned().collect()
    }

    /// The log of a partition, created when there is none. An existing log must have the same topic id. A new log's
    /// directory becomes durable with the first flush in it.
    pub fn create_log(&self, log: TopicLog) -> Result<Arc<Log>, OpenError> {
        let _changing = self.changing.lock();
        self.check_online()?;
        if let Some(existing) = self.log(&log.topic_partition) {
            return match (existing.topic_id(), log.topic_id) {
                (Some(found), Some(expected)) if found != expected => {
                    let file = existing.dir().join(checkpoint::PARTITION_METADATA);
                    Err(OpenError::TopicIdMismatch { file, log: log.topic_partition, found, expected })
                }
                (found, expected) => {
                    if let (None, Some(topic_id)) = (found, expected) {
                        let dir = existing.dir().to_owned();
                        let failed = |source| OpenError::Log { log: log.topic_partition.clone(), dir, source };
                        existing.adopt_topic_id(topic_id).map_err(failed)?;
                    }
                    existing.set_config(log.config);
                    Ok(existing)
                }
            };
        }
        self.check_place()?;
        if let Some(unusable) = self.unusable(&log.topic_partition) {
            return Err(unusable.into());
        }
        // First of all the way: where something is in it, what is known of the log is still of use.
        let cleared = self.clear_way(&log.topic_partition);
        let created = cleared.and_then(|()| {
            self.clear_checkpoints(&log.topic_partition)?;
            Log::create(&self.shared, log.topic_partition.clone(), log.topic_id, log.config)
        });
        let created = created.or_else(|error| {
            let unusable = unusable(self.disk().as_ref(), error)?;
            // Where nothing is, only the directory around it does not allow it yet.
            if std::fs::symlink_metadata(self.path().join(unusable.log.to_string())).is_ok() {
                self.unusable.write().insert(unusable.log.clone(), unusable.clone());
            }
            Err(OpenError::Unusable(unusable))
        })?;
        self.has_begun(&log.topic_partition);
        self.logs.write().insert(log.topic_partition, Arc::clone(&created));
        Ok(created)
    }

    /// Deletes the log of a partition: renamed first, so that a crash cannot bring half of it back, then removed after
    /// `file.delete.delay.ms`, see [`LogDir::remove_doomed`]. Readers that hold slices go on reading. False when there is none.
    pub fn delete_log(&self, topic_partition: &TopicPartition) -> Result<bool, OpenError> {
        let _changing = self.changing.lock();
        let Some(log) = self.logs.write().remove(topic_partition) else { return Ok(false) };
        log.shut();
        // First of all the name: where that fails, nothing has happened to what a new log of that name must not find.
        let doomed = self.rename_away(topic_partition, log.dir(), DELETE_SUFFIX)?;
        let delay_ms = log.config().file_delete_delay_ms.unsigned_abs();
        self.doomed.lock().push((Instant::now() + Duration::from_millis(delay_ms), doomed));
        self.remove_doomed();
        self.forget_cleaned_offset(topic_partition)?;
        Ok(true)
    }

    /// Removes the directories of deleted logs whose time has come (`file.delete.delay.ms`). To be called every second or
    /// so.
    pub fn remove_doomed(&self) {
        let now = Instant::now();
        let due: Vec<_> = self.doomed.lock().extract_if(.., |(due, _)| *due <= now).collect();
        for (_, dir) in due {
            if let Err(error) = self.disk().remove_dir_all(&dir) {
                tracing::error!(dir = %dir.display(), %error, "failed to remove a deleted log; the next start tries again");
            }
        }
    }

    /// Takes a log out of use and keeps its directory under another name, which is returned.
    pub fn set_aside(&self, topic_partition: &TopicPartition) -> Result<PathBuf, OpenError> {
        let _changing = self.changing.lock();
        let removed = self.logs.write().remove(topic_partition);
        let log = removed.ok_or_else(|| OpenError::Layout {
            dir: self.path().to_owned(),
            reason: format!("it holds no log of {topic_partition}"),
        })?;
        log.shut();
        let away = self.rename_away(topic_partition, log.dir(), STRAY_SUFFIX)?;
        self.forget_cleaned_offset(topic_partition)?;
        Ok(away)
    }

    /// Sets aside what bears the name of a log that is about to be created: a deletion failed, and its records must not become
    /// part of the new log at the next start.
    fn clear_way(&self, topic_partition: &TopicPartition) -> Result<(), OpenError> {
        let dir = self.path().join(topic_partition.to_string());
        let failed = |source| OpenError::Log { log: topic_partition.clone(), dir: dir.clone(), source };
        let disk = self.disk().as_ref();
        if !disk.exists(&dir).map_err(failed)? {
            let is_dangling = std::fs::read_link(&dir).is_ok();
            return if is_dangling { Err(failed(Errno::EXIST.into())) } else { Ok(()) };
        }
        let is_segment = |name: &str| Path::new(name).extension().is_some_and(|suffix| suffix == LOG_SUFFIX);
        for entry in disk.list(&dir).map_err(failed)?.iter().filter(|entry| is_segment(&entry.name)) {
            let opened = disk.open(&dir.join(&entry.name), OpenMode::Read);
            if opened.and_then(|file| file.size()).map_err(failed)? > 0 {
                let away = self.rename_away(topic_partition, &dir, STRAY_SUFFIX)?;
                tracing::warn!(
                    partition = %topic_partition, dir = %away.display(),
                    "a deleted log was still there: it was set aside and can be deleted"
                );
                return Ok(());
            }
        }
        Ok(())
    }

    /// Renames the directory of a log in Kafka's form.
    fn rename_away(&self, topic_partition: &TopicPartition, dir: &Path, suffix: &str) -> Result<PathBuf, OpenError> {
        let away = self.path().join(unique_name(topic_partition, suffix));
        let failed = |source| OpenError::Log { log: topic_partition.clone(), dir: dir.to_owned(), source };
        self.disk().rename(dir, &away).map_err(failed)?;
        self.disk().sync_dir(self.path()).map_err(failed)?;
        Ok(away)
    }

    /// Starts the flushes that `flush.ms` of topics asks for. To be called every second or so; without effect when
    /// acknowledgements wait for fsync.
    pub fn flush_overdue(&self) {
        if !self.config.flush_before_ack {
            self.logs().iter().for_each(Log::flush_if_overdue);
        }
    }

    /// `producer.id.expiration.ms` from now on.
    pub fn set_producer_id_expiration_ms(&self, after_ms: i64) {
        self.producer_id_expiration_ms.store(after_ms, Ordering::Relaxed);
    }

    /// The time by a clock that follows the wall clock but does not leap forward with it.
    pub fn now_ms(&self) -> i64 {
        self.clock.lock().now(wall_clock_ms(), Instant::now())
    }

    /// Applies retention to all logs and forgets producers that are gone for long, by a clock that follows the wall clock but does not leap forward with it.
    /// Returns the number of segments deleted.
    pub fn apply_retention(&self) -> usize {
        let now_ms = self.now_ms();
        let mut deleted = 0;
        for log in self.logs() {
            log.expire_producers(now_ms.saturating_sub(self.producer_id_expiration_ms.load(Ordering::Relaxed)));
            match log.apply_retention(now_ms) {
                Ok(count) => deleted += count,
                Err(error) => tracing::warn!(log = %log.topic_partition(), %error, "retention not applied"),
            }
        }
        deleted
    }

    /// Stops in an orderly way: everything durable, indexes trimmed, checkpoints and the clean-shutdown marker written.
    /// `broker_epoch` goes into the marker (KIP-966), -1 when unknown.
    pub fn close(&self, broker_epoch: i64) -> Result<(), OpenError> {
        self.flusher.stop();
        let _changing = self.changing.lock();
        let mut clean = true;
        for log in self.logs().into_iter().chain(self.futures()) {
            if let Err(error) = log.close() {
                clean = false;
                tracing::error!(log = %log.topic_partition(), %error, "log not closed cleanly");
            }
        }
        self.shared.health.check()?;
        self.write_checkpoints()?;
        if clean {
            checkpoint::write_clean_shutdown(self.disk().as_ref(), self.path(), broker_epoch)?;
        }
        Ok(())
    }
}

/// TOPIC-PARTITION.UNIQUE-SUFFIX, at most 255 characters.
fn unique_name(topic_partition: &TopicPartition, suffix: &str) -> String {
    let mut name = topic_partition.to_string();
    let unique: String = Uuid::random().0.iter().map(|byte| format!("{byte:02x}")).collect();
    let suffix = format!(".{unique}{suffix}");
    let mut most = 255 - suffix.len();
    while !name.is_char_boundary(most.min(name.len())) {
        most -= 1;
    }
    name.truncate(most);
    name + &suffix
}

/// Creates a directory and what is missing above it so that a power loss does not take it away.
fn create_dir_durably(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    if disk.exists(dir)? {
        return Ok(());
    }
    let parent = dir.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    if let Some(parent) = parent {
        create_dir_durably(disk, parent)?;
    }
    disk.create_dir_all(dir)?;
    parent.map_or(Ok(()), |parent| disk.sync_dir(parent))
}

/// `TOPIC-PARTITION`
fn parse_dir_name(name: &str) -> Option<TopicPartition> {
    let (topic, partition) = name.rsplit_once('-')?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || topic.len() > 249 || !topic.chars().all(legal) || partition.starts_with('+') {
        return None;
    }
    Some(TopicPartition::new(topic, partition.parse::<u32>().ok().and_then(|p| i32::try_from(p).ok())?))
}

/// Whether a directory of this name is a log that was taken out of use: `TOPIC-PARTITION.UNIQUE-delete`, `-stray` or `-future`.
pub fn is_set_aside(name: &str) -> bool {
    let suffixes = [DELETE_SUFFIX, STRAY_SUFFIX, FUTURE_SUFFIX];
    let unique = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)?.rsplit_once('.'));
    unique.is_some_and(|(_, unique)| unique.len() == UNIQUE_DIGITS && unique.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// An error in opening or creating a log that concerns that log alone; the others are returned as errors.
fn unusable(disk: &dyn Disk, error: OpenError) -> Result<Unusable, OpenError> {
    match error {
        OpenError::Log { log, dir, source } if is_unusable(&source) => {
            // Nothing of a log is a directory.
            let within = disk.list(&dir).unwrap_or_default().into_iter().find(|entry| entry.is_dir);
            let path = within.map_or_else(|| dir.clone(), |entry| dir.join(entry.name));
            let reason = match std::fs::read_link(&path) {
                Ok(target) => format!("a link to {}: {source}", target.display()),
                Err(_) => source.to_string(),
            };
            Ok(Unusable { log, path, reason })
        }
        error => Err(error),
    }
}

/// Of logs, by their partitions.
type Offsets = BTreeMap<TopicPartition, i64>;
type OpenedLog = Result<(Arc<Log>, LogRecovery), Unusable>;
type Opened = (HashMap<TopicPartition, Arc<Log>>, RecoveryReport, HashMap<&'static str, Offsets>);

/// Checkpoints only save work: a damaged one costs a full scan, not the start.
fn read_offsets_or_none(disk: &dyn Disk, path: &Path) -> Offsets {
    checkpoint::read_offsets(disk, path).unwrap_or_else(|error| {
        // Kafka makes the cleaner's before it has anything to put into it.
        let no_news =
            path.ends_with(CLEANED_OFFSETS) && disk::read_file(disk, path).is_ok_and(|bytes| bytes.is_empty());
        if !no_news {
            tracing::warn!(%error, "checkpoint ignored");
        }
        BTreeMap::new()
    })
}

fn open_logs(shared: &Shared, path: &Path, config: &LogDirConfig) -> Result<Opened, OpenError> {
    let disk = shared.disk.as_ref();
    let dir_failed = |source| OpenError::Dir { dir: path.to_owned(), source };
    let clean_shutdown = checkpoint::is_clean_shutdown(disk, path)?;
    let files = [RECOVERY_POINTS, LOG_START_OFFSETS, HIGH_WATERMARKS, CLEANED_OFFSETS];
    let read = HashMap::from(files.map(|file| (file, read_offsets_or_none(disk, &path.join(file)))));
    let known = |file: &str, log: &TopicPartition| read.get(file)?.get(log).copied();
    let mut report = RecoveryReport { clean_shutdown, ..RecoveryReport::default() };
    let mut partitions = Vec::new();
    for entry in disk.list(path).map_err(dir_failed)?.into_iter().filter(|entry| entry.is_dir) {
        if is_set_aside(&entry.name) && entry.name.ends_with(DELETE_SUFFIX) {
            disk.remove_dir_all(&path.join(&entry.name)).map_err(dir_failed)?;
        } else if let Some(topic_partition) = parse_dir_name(&entry.name) {
            partitions.push(topic_partition);
        } else {
            report.ignored.push(entry.name);
        }
    }
    let next = AtomicUsize::new(0);
    let open_some = || -> Result<Vec<OpenedLog>, OpenError> {
        let mut opened = Vec::new();
        while let Some(topic_partition) = partitions.get(next.fetch_add(1, Ordering::Relaxed)) {
            let checkpoints = Checkpoints {
                clean_shutdown,
                recovery_point: known(RECOVERY_POINTS, topic_partition),
                log_start_offset: known(LOG_START_OFFSETS, topic_partition),
                high_watermark: known(HIGH_WATERMARKS, topic_partition),
                compacted: known(CLEANED_OFFSETS, topic_partition).is_some(),
            };
            let log = Log::open(shared, topic_partition.clone(), config.log.clone(), checkpoints);
            opened.push(log.map(Ok).or_else(|error| unusable(disk, error).map(Err))?);
        }
        Ok(opened)
    };
    let threads = config.recovery_threads.clamp(1, partitions.len().max(1));
    let opened: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (1..threads).map(|_| scope.spawn(open_some)).collect();
        let own = open_some();
        let joined = handles.into_iter().map(|handle| {
            handle.join().unwrap_or_else(|_| {
                Err(OpenError::Layout { dir: path.to_owned(), reason: "a recovery thread panicked".to_owned() })
            })
        });
        std::iter::once(own).chain(joined).collect()
    });
    let mut logs = HashMap::new();
    for opened in opened {
        for opened in opened? {
            match opened {
                Ok((log, recovery)) => {
                    if recovery != LogRecovery::default() {
                        report.logs.push((log.topic_partition().clone(), recovery));
                    }
                    logs.insert(log.topic_partition().clone(), log);
                }
                Err(unusable) => {
                    // Whoever wants to use it tells more loudly.
                    tracing::debug!("{unusable}");
                    report.unusable.push(unusable);
                }
            }
        }
    }
    Ok((logs, report, read))
}

/// Wall-clock time for retention that does not jump ahead: between two looks it advances by at most what a monotonic
/// clock measured plus a tolerance. A leap is believed when it has stood for a day in which the broker ran. That goes over
/// restarts, see [`checkpoint::RETENTION_CLOCK`].
#[derive(Debug)]
struct RetentionClock {
    anchor_ms: i64,
    anchor: Instant,
    leap: Option<Leap>,
    /// What the file says.
    stored: Option<StoredClock>,
}

/// The wall clock is ahead.
#[derive(Clone, Copy, Debug)]
struct Leap {
    noticed: Instant,
    /// As long had it stood in earlier runs.
    stood_before: Duration,
}

const LEAP_TOLERANCE_MS: i64 = 5 * 60 * 1000;
const LEAP_BELIEVED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// A broker may have been stopped for so long.
const STOP_TOLERANCE_MS: i64 = 24 * 60 * 60 * 1000;

impl RetentionClock {
    /// `stored`: where an earlier run left it.
    fn new(stored: Option<StoredClock>, wall_ms: i64, now: Instant) -> RetentionClock {
        let mut clock = RetentionClock { anchor_ms: wall_ms, anchor: now, leap: None, stored };
        if let Some(stored) = stored
            && wall_ms.saturating_sub(stored.believed_ms) > STOP_TOLERANCE_MS
        {
            tracing::warn!(
                ahead_ms = wall_ms - stored.believed_ms,
                "the wall clock is more than a day ahead of where the last run left it; in case it leapt, retention goes by \
                 elapsed time until the broker has run for a day"
            );
            clock.anchor_ms = stored.believed_ms;
            let stood_before = Duration::from_millis(stored.leap_stood_ms.unsigned_abs());
            clock.leap = Some(Leap { noticed: now, stood_before });
        }
        clock
    }

    fn now(&mut self, wall_ms: i64, now: Instant) -> i64 {
        let elapsed = now.saturating_duration_since(self.anchor).as_millis();
        let expected_ms = self.anchor_ms.saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX));
        if wall_ms <= expected_ms.saturating_add(LEAP_TOLERANCE_MS) {
            return self.follow(wall_ms, now);
        }
        let leap = *self.leap.get_or_insert_with(|| {
            tracing::warn!(
                ahead_ms = wall_ms - expected_ms,
                "the wall clock leapt ahead; retention goes by elapsed time until the leap has stood for a day"
            );
            Leap { noticed: now, stood_before: Duration::ZERO }
        });
        if leap.stood(now) >= LEAP_BELIEVED_AFTER {
            return self.follow(wall_ms, now);
        }
        expected_ms
    }

    fn follow(&mut self, wall_ms: i64, now: Instant) -> i64 {
        (self.anchor_ms, self.anchor, self.leap) = (wall_ms, now, None);
        wall_ms
    }

    /// What is to be stored, unless that differs little from what is.
    fn unstored(&mut self, wall_ms: i64, now: Instant) -> Option<StoredClock> {
        let believed_ms = self.now(wall_ms, now);
        let stood = self.leap.map_or(0, |leap| leap.stood(now).as_millis());
        let clock = StoredClock { believed_ms, leap_stood_ms: i64::try_from(stood).unwrap_or(i64::MAX) };
        let is_close = |stored: StoredClock| {
            believed_ms.abs_diff(stored.believed_ms) < LEAP_TOLERANCE_MS.unsigned_abs()
                && clock.leap_stood_ms.abs_diff(stored.leap_stood_ms) < LEAP_TOLERANCE_MS.unsigned_abs()
        };
        (!self.stored.is_some_and(is_close)).then_some(clock)
    }
}

impl Leap {
    fn stood(self, now: Instant) -> Duration {
        self.stood_before + now.saturating_duration_since(self.noticed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_retention_clock_does_not_leap() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut clock = RetentionClock::new(None, 1_000_000, begin);
        assert_eq!(clock.now(1_060_000, after(60)), 1_060_000);
        let year_ms = 365 * 86_400_000;
        assert_eq!(clock.now(1_060_000 + year_ms, after(61)), 1_061_000);
        assert_eq!(clock.now(1_060_000 + year_ms, after(3_600)), 4_600_000);
        assert_eq!(clock.now(year_ms, after(90_000)), year_ms, "a leap that stands is believed");
        assert_eq!(clock.now(5, after(90_001)), 5, "backwards is harmless");
    }

    #[test]
    fn the_retention_clock_does_not_leap_over_a_restart() {
        let begin = Instant::now();
        let after = |hours: u64| begin + Duration::from_secs(hours * 3600);
        let hour_ms = 3_600_000;
        let mut clock = RetentionClock::new(None, hour_ms, begin);
        let stored = clock.unstored(2 * hour_ms, after(1)).unwrap();
        assert_eq!(stored, StoredClock { believed_ms: 2 * hour_ms, leap_stood_ms: 0 });
        clock.stored = Some(stored);
        assert_eq!(clock.unstored(2 * hour_ms + 1000, after(1)), None);
        // Stopped over night.
        let wall_ms = 20 * hour_ms;
        assert_eq!(RetentionClock::new(Some(stored), wall_ms, begin).now(wall_ms, begin), wall_ms);
        // Started by a clock that is weeks ahead, three times in a day.
        let ahead_ms = 1000 * hour_ms;
        let mut stored = stored;
        for run in 1..=3_i64 {
            let mut clock = RetentionClock::new(Some(stored), ahead_ms, begin);
            assert_eq!(clock.now(ahead_ms + 7 * hour_ms, after(7)), stored.believed_ms + 7 * hour_ms);
            stored = clock.unstored(ahead_ms + 7 * hour_ms, after(7)).unwrap();
            assert_eq!(stored.leap_stood_ms, run * 7 * hour_ms);
        }
        let mut clock = RetentionClock::new(Some(stored), ahead_ms, begin);
        assert_eq!(clock.now(ahead_ms + 4 * hour_ms, after(4)), ahead_ms + 4 * hour_ms, "it stood for a day");
        let back = RetentionClock::new(Some(stored), hour_ms, begin).now(hour_ms, begin);
        assert_eq!(back, hour_ms, "backwards is harmless");
    }

    #[test]
    fn directory_names() {
        assert_eq!(parse_dir_name("a-b.c_d-12"), Some(TopicPartition::new("a-b.c_d", 12)));
        for name in ["a", "-1", "a-", "a-b", "a-0-future", "a b-0", "a--1x", "a-+1"] {
            assert_eq!(parse_dir_name(name), None, "{name}");
        }
    }
}
