//! Logs on their way here from another directory of the node, as in Kafka: `TOPIC-PARTITION.UNIQUE-future` until they are
//! whole, then the log of that name. The one in the other directory goes afterwards: a crash in between leaves two with the
//! same records, never none. A stop or a crash before leaves the part that is there, and the next run goes on with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use caudal_protocol::TopicPartition;

use super::{DELETE_SUFFIX, FUTURE_SUFFIX, LogDir, STRAY_SUFFIX, TopicLog, parse_dir_name, unique_name};
use crate::config::LogConfig;
use crate::error::OpenError;
use crate::log::Log;
use crate::log::recover::Checkpoints;

/// The partition of a directory that is named as a log on its way.
fn parse_future(name: &str) -> Option<TopicPartition> {
    parse_dir_name(name.strip_suffix(FUTURE_SUFFIX)?.rsplit_once('.')?.0)
}

impl LogDir {
    /// Begins a log on its way here, empty, with its first offset.
    ///
    /// # Errors
    /// The directory is offline or cannot be written.
    pub fn create_future(&self, log: TopicLog, first_offset: i64) -> Result<Arc<Log>, OpenError> {
        let _changing = self.changing.lock();
        self.check_place()?;
        let dir = self.path().join(unique_name(&log.topic_partition, FUTURE_SUFFIX));
        let TopicLog { topic_partition, topic_id, config } = log;
        let created = Log::create_in(&self.shared, dir.clone(), topic_partition, topic_id, config, first_offset);
        // The next start would take half of one for a move to go on with.
        let created = created.inspect_err(|_| self.remove_left(&dir))?;
        self.keep_future(&created);
        Ok(created)
    }

    /// Only one of a partition: whoever still fills another learns that it is over.
    fn keep_future(&self, log: &Arc<Log>) {
        let other = self.futures.write().insert(log.topic_partition().clone(), Arc::clone(log));
        if let Some(other) = other {
            self.end_future(&other);
        }
    }

    /// All logs on their way here.
    pub fn futures(&self) -> Vec<Arc<Log>> {
        self.futures.read().values().cloned().collect()
    }

    /// Takes a log that was on its way here out of use, unless it has arrived. A crash from here on does not bring it back; its
    /// space is free after the next [`LogDir::remove_doomed`].
    pub fn abandon_future(&self, log: &Arc<Log>) {
        let mut futures = self.futures.write();
        let is_known = futures.get(log.topic_partition()).is_some_and(|known| Arc::ptr_eq(known, log));
        if is_known {
            futures.remove(log.topic_partition());
            drop(futures);
            self.end_future(log);
        }
    }

    /// Takes a log that was on its way here out of use and keeps its directory under another name, which is returned: the log it is a
    /// part of is gone, and this may be all that is left of it.
    ///
    /// # Errors
    /// The directory cannot be written; the log is still on its way.
    pub fn set_aside_future(&self, log: &Arc<Log>) -> Result<PathBuf, OpenError> {
        self.check_place()?;
        let away = self.rename_away(log.topic_partition(), log.dir(), STRAY_SUFFIX)?;
        log.shut();
        self.futures.write().remove(log.topic_partition());
        Ok(away)
    }

    fn end_future(&self, log: &Log) {
        log.shut();
        match self.rename_away(log.topic_partition(), log.dir(), DELETE_SUFFIX) {
            Ok(doomed) => self.doomed.lock().push((Instant::now(), doomed)),
            Err(error) => {
                tracing::error!(
                    "a log that was being moved stays where it is: {error}. The next start goes on with the move"
                );
            }
        }
    }

    /// Makes a log on its way the log of its partition: durable, then renamed. `cleaned`: up to where it was compacted.
    ///
    /// # Errors
    /// The directory cannot be written; the log is still on its way.
    pub fn adopt_future(&self, future: &Arc<Log>, cleaned: Option<i64>) -> Result<Arc<Log>, OpenError> {
        let _changing = self.changing.lock();
        self.check_place()?;
        let topic_partition = future.topic_partition();
        let failed = |reason: String| OpenError::Layout { dir: future.dir().to_owned(), reason };
        if self.log(topic_partition).is_some() {
            return Err(failed(format!("there is a log of {topic_partition} already")));
        }
        let incomplete = |error: &dyn std::fmt::Display| failed(format!("it cannot be completed: {error}"));
        // Also of an empty one: its names.
        future.flush().map_err(|error| incomplete(&error))?;
        let end = future.close().map_err(|error| incomplete(&error))?;
        self.forget_cleaned_offset(topic_partition)?;
        let checkpoints = Checkpoints {
            clean_shutdown: true,
            recovery_point: Some(end),
            log_start_offset: Some(future.log_start_offset()),
            high_watermark: Some(end),
            compacted: cleaned.is_some(),
        };
        let log = self.take_in(topic_partition, future.dir(), &future.config(), checkpoints)?;
        self.has_begun(topic_partition);
        future.shut();
        self.futures.write().remove(topic_partition);
        // It has arrived, whatever becomes of these: they only save work.
        let noted = cleaned.map_or(Ok(()), |cleaned| self.set_cleaned_offset(&log, cleaned).map_err(OpenError::from));
        if let Err(error) = noted.and_then(|()| Ok(self.write_checkpoints()?)) {
            tracing::warn!(dir = %self.path().display(), %error, "checkpoints not written");
        }
        Ok(log)
    }

    /// Logs on their way here that a former run left, with their directories.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn left_futures(&self) -> Result<Vec<(TopicPartition, PathBuf)>, OpenError> {
        let entries = self.disk().list(self.path());
        let entries = entries.map_err(|source| OpenError::Dir { dir: self.path().to_owned(), source })?;
        let left = entries.into_iter().filter(|entry| entry.is_dir).filter_map(|entry| {
            let path = self.path().join(&entry.name);
            parse_future(&entry.name).map(|partition| (partition, path))
        });
        Ok(left.collect())
    }

    /// Opens what [`LogDir::left_futures`] told, to go on with it.
    ///
    /// # Errors
    /// It is no log, or cannot be read.
    pub fn open_left(&self, topic_partition: TopicPartition, dir: &Path) -> Result<Arc<Log>, OpenError> {
        let checkpoints = Checkpoints { clean_shutdown: self.was_closed, ..Checkpoints::default() };
        let config = self.config.log.clone();
        // Of a copy nothing is lost: what a recovery has to say would only frighten.
        let silent = tracing::subscriber::NoSubscriber::default();
        let open = || Log::open_in(&self.shared, dir.to_owned(), topic_partition, config, checkpoints);
        let (log, _) = tracing::subscriber::with_default(silent, open)?;
        self.keep_future(&log);
        Ok(log)
    }

    /// Removes what [`LogDir::left_futures`] told; failing that, the next start tries again.
    pub fn remove_left(&self, dir: &Path) {
        if let Err(error) = self.disk().remove_dir_all(dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(dir = %dir.display(), %error, "failed to remove a log that was being moved");
        }
    }

    /// Renames a log into its place and opens it there; back again, where that fails. The caller holds `changing`.
    fn take_in(
        &self,
        topic_partition: &TopicPartition,
        dir: &Path,
        config: &LogConfig,
        checkpoints: Checkpoints,
    ) -> Result<Arc<Log>, OpenError> {
        let place = self.path().join(topic_partition.to_string());
        let failed = |source| OpenError::Log { log: topic_partition.clone(), dir: place.clone(), source };
        self.clear_way(topic_partition)?;
        if self.disk().exists(&place).map_err(failed)? {
            self.disk().remove_dir_all(&place).map_err(failed)?;
        }
        self.disk().rename(dir, &place).map_err(failed)?;
        let synced = self.disk().sync_dir(self.path()).map_err(failed);
        let opened = synced
            .and_then(|()| Log::open(&self.shared, topic_partition.clone(), config.clone(), checkpoints))
            .map(|(log, _)| log);
        match opened {
            Ok(log) => {
                self.logs.write().insert(topic_partition.clone(), Arc::clone(&log));
                Ok(log)
            }
            Err(error) => {
                if let Err(source) = self.disk().rename(&place, dir) {
                    // Two logs of the partition would go on from here.
                    self.shared.health.fail(format!("{} cannot be renamed back: {source}", place.display()));
                }
                Err(error)
            }
        }
    }
}
