//! The log directories of this node (`log.dirs`, `metadata.log.dir`): where partitions lie, and where new ones go.
//!
//! As in Kafka one that cannot be used is offline, and the node serves with the others; that of the metadata log has to be
//! there. A partition lies in the directory that the metadata names: while that is not there, it is offline too, and does not
//! begin anew elsewhere.

mod open;
mod settle;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use caudal_cluster::MetadataImage;
use caudal_cluster::log::METADATA_TOPIC;
use caudal_protocol::{TopicPartition, Uuid};
use caudal_storage::{Log, LogDir, Offline, OpenError, TopicLog, Unusable};
use parking_lot::Mutex;

use open::started_without;
pub use open::{OpenedDirs, OpenedMetadataDir, open, open_metadata_dir};

/// Wishes that are remembered.
const MAX_WISHES: usize = 10_000;
/// A disk that was found full is taken for full for so long, whatever it says of its space: a quota may be in the way.
const FULL_FOR: Duration = Duration::from_secs(30);
const SPACE_LEAST_BYTES: i64 = 1 << 20;

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
    /// The one of the metadata log; among `places` unless it is for that alone.
    metadata: Arc<LogDir>,
    /// `log.dirs` in their order: those that were opened, and why others were not, with absolute paths.
    places: Vec<Result<Dir, Offline>>,
    /// Where partitions are to be created, as AlterReplicaLogDirs asked for: ids of directories.
    wishes: Mutex<HashMap<TopicPartition, Uuid>>,
    /// A partition may lie elsewhere than the metadata says.
    moved: AtomicBool,
}

impl LogDirs {
    /// At least one of `places`, or that of the metadata, is open.
    pub fn new(metadata: Arc<LogDir>, places: Vec<Result<Dir, Offline>>) -> LogDirs {
        LogDirs { metadata, places, wishes: Mutex::default(), moved: AtomicBool::new(true) }
    }

    pub fn metadata(&self) -> &Arc<LogDir> {
        &self.metadata
    }

    /// Those that were opened.
    pub fn iter(&self) -> impl Iterator<Item = &Dir> {
        self.places.iter().filter_map(|place| place.as_ref().ok())
    }

    /// All of them, in the order of the settings.
    pub fn places(&self) -> impl Iterator<Item = &Result<Dir, Offline>> {
        self.places.iter()
    }

    /// Those that could not be opened.
    pub fn unopened(&self) -> impl Iterator<Item = &Offline> {
        self.places.iter().filter_map(|place| place.as_ref().err())
    }

    /// The ids of those that are in use.
    pub fn ids(&self) -> Vec<Uuid> {
        self.iter().filter(|dir| dir.log_dir.check_online().is_ok()).map(|dir| dir.id).collect()
    }

    /// All directories that were opened, that of the metadata log included.
    fn all(&self) -> impl Iterator<Item = &Arc<LogDir>> {
        let alone = self.iter().all(|dir| !Arc::ptr_eq(&dir.log_dir, &self.metadata));
        self.iter().map(|dir| &dir.log_dir).chain(alone.then_some(&self.metadata))
    }

    /// The directory with this absolute path, or why it is not in use.
    pub fn find(&self, path: &str) -> Option<Result<&Dir, Offline>> {
        let path = Path::new(path);
        self.places.iter().find_map(|place| match place {
            Ok(dir) => (dir.path == path).then(|| dir.log_dir.check_online().map(|()| dir)),
            Err(offline) => (offline.dir == path).then(|| Err(offline.clone())),
        })
    }

    /// The id of the directory that a log lies in.
    pub fn id_of(&self, log_dir: &Arc<LogDir>) -> Option<Uuid> {
        self.iter().find(|dir| Arc::ptr_eq(&dir.log_dir, log_dir)).map(|dir| dir.id)
    }

    /// Remembers where a partition is to be created.
    pub fn wish(&self, partition: TopicPartition, to: &Dir) {
        let mut wishes = self.wishes.lock();
        if wishes.len() < MAX_WISHES {
            wishes.insert(partition, to.id);
        }
    }

    /// Whether a partition that is not new has to wait for a directory that is not there. `directory`: where the metadata says
    /// that it lies.
    pub fn lies_elsewhere(&self, partition: &TopicPartition, directory: Option<Uuid>) -> bool {
        let is_held = self.iter().any(|dir| dir.log_dir.log(partition).is_some());
        let is_one_missing = self.unopened().next().is_some();
        let is_away = directory.is_some_and(|id| self.iter().all(|dir| dir.id != id));
        // What lies in another directory may be older than what is away, unless that was dropped from the settings and its
        // partitions were moved by hand.
        if is_held { is_away && is_one_missing } else { is_away || is_one_missing }
    }

    /// Why the log of a partition that is not new cannot be opened, where it is the one that the metadata means.
    pub fn unusable(&self, partition: &TopicPartition, directory: Option<Uuid>) -> Option<Unusable> {
        let (id, found) = self.iter().find_map(|dir| Some((dir.id, dir.log_dir.unusable(partition)?)))?;
        let is_held = self.iter().any(|dir| dir.log_dir.log(partition).is_some());
        (!is_held || directory == Some(id)).then_some(found)
    }

    /// The log of a partition, created where there is none: where somebody wished it, where the metadata says (`directory`), or
    /// else in the directory that has the fewest, as in Kafka. The next one is tried where that fails, but not for one that is
    /// not new (`is_new`) where something else bears its name.
    ///
    /// # Errors
    /// See [`LogDir::create_log`].
    pub fn create_log(
        &self,
        log: TopicLog,
        directory: Option<Uuid>,
        is_new: bool,
    ) -> Result<(Arc<Log>, Arc<LogDir>), OpenError> {
        if let Some(holder) = self.iter().find(|dir| dir.log_dir.log(&log.topic_partition).is_some()) {
            return Ok((holder.log_dir.create_log(log)?, holder.log_dir.clone()));
        }
        self.set_copies_aside(&log.topic_partition)?;
        let wish = self.wishes.lock().remove(&log.topic_partition);
        let mut dirs = self.candidates();
        dirs.sort_by_key(|(dir, rank)| {
            let named = [wish, directory].iter().position(|id| *id == Some(dir.id)).unwrap_or(2);
            (named, *rank)
        });
        let mut failed = None;
        for (dir, _) in dirs {
            let known_end = dir.log_dir.known_end(&log.topic_partition);
            match dir.log_dir.create_log(log.clone()) {
                Ok(created) => {
                    if let Some(error) = failed {
                        tracing::warn!(partition = %log.topic_partition, instead = %dir.path.display(), "{error}");
                    }
                    if !is_new {
                        tell_begun_anew(&created, known_end);
                    }
                    self.note_moved();
                    return Ok((created, dir.log_dir.clone()));
                }
                Err(error @ OpenError::Unusable(_)) if !is_new => return Err(error),
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        let none = || self.check_online().err().map_or_else(|| self.metadata.path().to_owned(), |offline| offline.dir);
        Err(failed.unwrap_or_else(|| {
            OpenError::Offline(Offline { dir: none(), reason: "no log directory is in use".to_owned() })
        }))
    }

    /// Before a log begins: what was copied of one of that name, to move it, is no part of it, and would take its place.
    fn set_copies_aside(&self, name: &TopicPartition) -> Result<(), OpenError> {
        for dir in self.iter().filter(|dir| dir.log_dir.check_online().is_ok()) {
            for copy in dir.log_dir.futures().iter().filter(|copy| copy.topic_partition() == name) {
                let kept = dir.log_dir.set_aside_future(copy)?;
                tracing::error!(
                    partition = %name, dir = %kept.display(), to = copy.log_end_offset(),
                    "a partition was being moved to another log directory, and the log it was copied from is gone. What had been copied, up \
                     to the offset `to`, was set aside"
                );
            }
        }
        Ok(())
    }

    /// The directories in which new partitions may lie, with what ranks them: whether they are full, and how many they have.
    fn candidates(&self) -> Vec<(&Dir, (bool, usize))> {
        let partitions = |dir: &Dir| {
            let logs = dir.log_dir.logs();
            logs.iter().filter(|log| log.topic_partition().topic != METADATA_TOPIC).count()
        };
        let in_use = self.iter().filter(|dir| dir.log_dir.check_online().is_ok());
        in_use.map(|dir| (dir, (is_full(dir), partitions(dir)))).collect()
    }

    /// Where new partitions are to lie, as [`LogDirs::create_log`] would choose; nothing where no directory is in use.
    pub fn choose(&self, partitions: &[TopicPartition]) -> Vec<Uuid> {
        let mut dirs = self.candidates();
        let wishes = self.wishes.lock();
        let chosen = partitions.iter().filter_map(|partition| {
            let wish = wishes.get(partition);
            let best = dirs.iter_mut().min_by_key(|(dir, rank)| (wish != Some(&dir.id), *rank));
            best.map(|(dir, (_, count))| {
                *count += 1;
                dir.id
            })
        });
        chosen.collect()
    }

    pub fn note_moved(&self) {
        self.moved.store(true, Ordering::Release);
    }

    /// Whether a partition was created or moved since this was last asked.
    pub fn take_moved(&self) -> bool {
        self.moved.swap(false, Ordering::AcqRel)
    }

    /// Lets go of what the checkpoints of directories know of logs that are not there, except where the metadata says that they
    /// belong there, or does not say where.
    pub fn forget_absent(&self, image: &MetadataImage, node_id: i32) {
        for dir in self.all() {
            let id = self.id_of(dir);
            dir.forget_absent(|name| {
                let partition = image.partition(&name.topic, name.partition);
                let partition = partition.filter(|partition| id.is_some() && partition.replicas.contains(&node_id));
                partition.is_some_and(|partition| partition.directory_of(node_id).is_none_or(|at| Some(at) == id))
            });
        }
    }

    /// The directories that are out of use, and why.
    pub fn offline(&self) -> Vec<Offline> {
        let failed = self.all().filter_map(|dir| dir.check_online().err());
        self.unopened().cloned().chain(failed).collect()
    }

    /// Whether any directory is there to hold partitions.
    pub fn is_any_in_use(&self) -> bool {
        self.iter().any(|dir| dir.log_dir.check_online().is_ok())
    }

    /// Those whose disk is full.
    pub fn full(&self) -> Vec<PathBuf> {
        let full = self.iter().filter(|dir| is_full(dir));
        full.map(|dir| dir.path.clone()).collect()
    }

    /// Whether all directories are in use, and if not, why.
    ///
    /// # Errors
    /// Of the first one that is out of use.
    pub fn check_online(&self) -> Result<(), Offline> {
        self.offline().into_iter().next().map_or(Ok(()), Err)
    }

    /// The time by a clock that does not leap, see [`LogDir::now_ms`].
    pub fn now_ms(&self) -> i64 {
        self.metadata.now_ms()
    }

    /// See [`LogDir::apply_retention`].
    pub fn apply_retention(&self) -> usize {
        self.all().filter(|dir| dir.check_online().is_ok()).map(|dir| dir.apply_retention()).sum()
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

    /// See [`LogDir::check_place`], [`LogDir::checkpoint_grown`], [`LogDir::flush_overdue`] and [`LogDir::remove_doomed`].
    pub fn upkeep(&self) {
        self.all().for_each(|dir| _ = dir.check_place());
        self.write_recovery_points(LogDir::checkpoint_grown);
        for dir in self.all().filter(|dir| dir.check_online().is_ok()) {
            dir.flush_overdue();
            dir.remove_doomed();
        }
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

/// The directory of a partition was removed, or the broker was stopped before it was there. `known_end`: that of what it held.
fn tell_begun_anew(log: &Log, known_end: Option<i64>) {
    let (partition, dir) = (log.topic_partition(), log.dir().display());
    match known_end {
        Some(end) if end > 0 => tracing::error!(
            %partition, %dir, end,
            "the log of a partition is gone: it begins anew, empty. Records up to the offset `end` had been written. If they are \
             needed, stop the broker and restore the directory from a backup"
        ),
        _ => tracing::warn!(
            %partition, %dir,
            "there was no log of a partition: it begins empty. Nothing is wrong if the broker was stopped, or the disk full, \
             when the partition was made"
        ),
    }
}

/// Whether writes found no space there and there is none yet.
fn is_full(dir: &Dir) -> bool {
    let found = dir.log_dir.found_full();
    found.is_some_and(|found| found.elapsed() < FULL_FOR || (0..SPACE_LEAST_BYTES).contains(&space(&dir.path).1))
}

/// Whether so much can be written there, as far as the system tells.
pub fn has_room(dir: &Path, bytes: u64) -> bool {
    let (_, free_bytes) = space(dir);
    free_bytes < 0 || u64::try_from(free_bytes - SPACE_LEAST_BYTES).is_ok_and(|free_bytes| bytes <= free_bytes)
}

/// Size of the volume and what is left of it; -1 where the system does not tell.
pub fn space(dir: &Path) -> (i64, i64) {
    match rustix::fs::statvfs(dir) {
        Ok(volume) => {
            let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(volume.f_frsize)).unwrap_or(i64::MAX);
            (bytes(volume.f_blocks), bytes(volume.f_bavail))
        }
        Err(_) => (-1, -1),
    }
}

#[cfg(test)]
mod tests;
