//! Logs on their way here from another directory of the node, as in Kafka: `TOPIC-PARTITION.UNIQUE-future` until they are
//! whole, then the log of that name. The one in the other directory goes afterwards: a crash in between leaves two with the
//! same records, never none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use caudal_protocol::TopicPartition;

use super::{FUTURE_SUFFIX, LogDir, TopicLog, parse_dir_name, unique_name};
use crate::error::OpenError;
use crate::log::recover::Checkpoints;
use crate::log::{Log, LogRecovery};

/// The partition of a directory that is named as a log on its way.
pub(super) fn parse_future(name: &str) -> Option<TopicPartition> {
    parse_dir_name(name.strip_suffix(FUTURE_SUFFIX)?.rsplit_once('.')?.0)
}

impl LogDir {
    /// Begins a log on its way here, empty, with its first offset.
    ///
    /// # Errors
    /// The directory is offline or cannot be written.
    pub fn create_future(&self, log: TopicLog, first_offset: i64) -> Result<Arc<Log>, OpenError> {
        let _changing = self.changing.lock();
        self.shared.health.check()?;
        let name = unique_name(&log.topic_partition, FUTURE_SUFFIX);
        let dir = self.path().join(name);
        let created =
            Log::create_in(&self.shared, dir, log.topic_partition.clone(), log.topic_id, log.config, first_offset)?;
        self.futures.write().insert(log.topic_partition, Arc::clone(&created));
        Ok(created)
    }

    /// The log of a partition that is on its way here.
    pub fn future(&self, topic_partition: &TopicPartition) -> Option<Arc<Log>> {
        self.futures.read().get(topic_partition).cloned()
    }

    /// All logs on their way here.
    pub fn futures(&self) -> Vec<Arc<Log>> {
        self.futures.read().values().cloned().collect()
    }

    /// Removes a log that was on its way here.
    pub fn abandon_future(&self, topic_partition: &TopicPartition) {
        let Some(log) = self.futures.write().remove(topic_partition) else { return };
        log.shut();
        self.remove_left(log.dir());
    }

    /// Makes a log on its way the log of its partition: durable, then renamed. `cleaned`: up to where it was compacted.
    ///
    /// # Errors
    /// The directory cannot be written; the log is still on its way.
    pub fn adopt_future(&self, topic_partition: &TopicPartition, cleaned: Option<i64>) -> Result<Arc<Log>, OpenError> {
        let _changing = self.changing.lock();
        self.shared.health.check()?;
        let missing = || OpenError::Layout {
            dir: self.path().to_owned(),
            reason: format!("no log of {topic_partition} is on its way there"),
        };
        let future = self.future(topic_partition).ok_or_else(missing)?;
        if self.log(topic_partition).is_some() {
            let reason = format!("there is a log of {topic_partition} already");
            return Err(OpenError::Layout { dir: self.path().to_owned(), reason });
        }
        let failed = |error: &dyn std::fmt::Display| OpenError::Layout {
            dir: future.dir().to_owned(),
            reason: format!("it cannot be completed: {error}"),
        };
        future.flush().map_err(|error| failed(&error))?;
        let end = future.close().map_err(|error| failed(&error))?;
        self.forget_cleaned_offset(topic_partition)?;
        let checkpoints = Checkpoints {
            clean_shutdown: true,
            recovery_point: Some(end),
            log_start_offset: Some(future.log_start_offset()),
            high_watermark: Some(end),
            compacted: cleaned.is_some(),
        };
        let (log, _) = self.take_in(topic_partition, future.dir(), &future.config(), checkpoints)?;
        future.shut();
        self.futures.write().remove(topic_partition);
        if let Some(cleaned) = cleaned {
            self.set_cleaned_offset(&log, cleaned)?;
        }
        self.write_checkpoints()?;
        Ok(log)
    }

    /// Logs on their way here that a former run left, with their directories.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn left_futures(&self) -> Result<Vec<(TopicPartition, PathBuf)>, OpenError> {
        let entries = self.disk().list(self.path());
        let entries = entries.map_err(|source| OpenError::Dir { dir: self.path().to_owned(), source })?;
        let own: Vec<PathBuf> = self.futures().iter().map(|log| log.dir().to_owned()).collect();
        let left = entries.into_iter().filter(|entry| entry.is_dir).filter_map(|entry| {
            let path = self.path().join(&entry.name);
            parse_future(&entry.name).filter(|_| !own.contains(&path)).map(|partition| (partition, path))
        });
        Ok(left.collect())
    }

    /// Removes what [`LogDir::left_futures`] told; failing that, the next start tries again.
    pub fn remove_left(&self, dir: &Path) {
        if let Err(error) = self.disk().remove_dir_all(dir) {
            tracing::error!(dir = %dir.display(), %error, "failed to remove a log that was being moved");
        }
    }

    /// Makes what [`LogDir::left_futures`] told the log of its partition: there is no other.
    ///
    /// # Errors
    /// It cannot be opened or renamed.
    pub fn adopt_left(&self, topic_partition: &TopicPartition, dir: &Path) -> Result<LogRecovery, OpenError> {
        let _changing = self.changing.lock();
        let config = self.config.log.clone();
        Ok(self.take_in(topic_partition, dir, &config, Checkpoints::default())?.1)
    }

    /// The caller holds `changing`.
    fn take_in(
        &self,
        topic_partition: &TopicPartition,
        dir: &Path,
        config: &crate::config::LogConfig,
        checkpoints: Checkpoints,
    ) -> Result<(Arc<Log>, LogRecovery), OpenError> {
        let place = self.path().join(topic_partition.to_string());
        let failed = |source| OpenError::Log { log: topic_partition.clone(), dir: place.clone(), source };
        self.clear_way(topic_partition)?;
        if self.disk().exists(&place).map_err(failed)? {
            self.disk().remove_dir_all(&place).map_err(failed)?;
        }
        self.disk().rename(dir, &place).map_err(failed)?;
        self.disk().sync_dir(self.path()).map_err(failed)?;
        let (log, recovery) = Log::open(&self.shared, topic_partition.clone(), config.clone(), checkpoints)?;
        self.logs.write().insert(topic_partition.clone(), Arc::clone(&log));
        Ok((log, recovery))
    }
}
