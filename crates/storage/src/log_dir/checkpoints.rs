//! The checkpoint files of a log directory: what of its logs is durable, where they start and end, up to where they were
//! compacted.
//!
//! They may know of logs that are not open, because they cannot be used, or were lost or moved away. What they know is kept: it is
//! needed when such a log is put right, and tells what was lost when it begins anew. It goes then, or when whoever knows where
//! logs belong says so ([`LogDir::forget_absent`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use caudal_protocol::TopicPartition;

use super::{LogDir, Offsets};
use crate::checkpoint::{self, CLEANED_OFFSETS, CheckpointError, HIGH_WATERMARKS, LOG_START_OFFSETS, RECOVERY_POINTS};
use crate::error::OpenError;
use crate::log::{Log, wall_clock_ms};
use crate::log_dir::RecoveryReport;

/// See [`LogDir::checkpoint_grown`]. A start scans about 1 GiB a second.
const GROWN_TOGETHER_BYTES: u64 = 128 << 20;
/// Smaller logs are not worth the fsyncs of their indexes.
const GROWN_BYTES: u64 = 16 << 20;

/// What the files hold, as far as this process read or wrote them; without `cleaner-offset-checkpoint`, which is written by itself.
pub(super) type Written = HashMap<&'static str, Offsets>;

/// Logs that are not open, with what the files said of them at the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Absent(BTreeMap<TopicPartition, Vec<(&'static str, i64)>>);

impl Absent {
    pub(super) fn new(read: &HashMap<&'static str, Offsets>, is_open: impl Fn(&TopicPartition) -> bool) -> Absent {
        let mut absent: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (file, offsets) in read {
            for (log, offset) in offsets.iter().filter(|(log, _)| !is_open(log)) {
                absent.entry(log.clone()).or_default().push((*file, *offset));
            }
        }
        Absent(absent)
    }

    fn offset(&self, file: &str, log: &TopicPartition) -> Option<i64> {
        let (_, offset) = self.0.get(log)?.iter().find(|(name, _)| *name == file)?;
        Some(*offset)
    }

    /// What a file said, but of one log.
    fn offsets(&self, file: &str, except: Option<&TopicPartition>) -> Offsets {
        let others = self.0.keys().filter(|log| Some(*log) != except);
        others.filter_map(|log| Some((log.clone(), self.offset(file, log)?))).collect()
    }
}

impl LogDir {
    /// The end of a log that is not there, as the last checkpoint before it was lost knew it.
    pub fn known_end(&self, topic_partition: &TopicPartition) -> Option<i64> {
        self.absent.lock().offset(HIGH_WATERMARKS, topic_partition)
    }

    /// Lets go of what the checkpoints know of logs that are not there, except where they belong here. Of what is there and cannot be used
    /// it is kept. The files follow with the next checkpoint.
    pub fn forget_absent(&self, belongs: impl Fn(&TopicPartition) -> bool) {
        // Nearly always: then nobody waits for a checkpoint that is being written.
        if self.absent.lock().0.is_empty() {
            return;
        }
        let _changing = self.changing.lock();
        let is_kept = |log: &TopicPartition| self.unusable(log).is_some() || belongs(log);
        let mut gone = Vec::new();
        self.absent.lock().0.retain(|log, _| {
            let is_kept = is_kept(log);
            gone.extend((!is_kept).then(|| log.clone()));
            is_kept
        });
        for log in gone {
            if let Err(error) = self.forget_cleaned_offset(&log) {
                tracing::warn!(dir = %self.path().display(), %error, "checkpoints not written");
            }
        }
    }

    /// Before a log begins: what the files say of one of that name is not about it. What is known of one that is not there is kept in
    /// memory until [`LogDir::has_begun`]. The caller holds `changing`.
    pub(super) fn clear_checkpoints(&self, topic_partition: &TopicPartition) -> Result<(), CheckpointError> {
        let is_known = self.written.lock().values().any(|offsets| offsets.contains_key(topic_partition));
        if is_known {
            self.write_checkpoints_without(Some(topic_partition))?;
        }
        self.forget_cleaned_offset(topic_partition)
    }

    /// There is a log of that name again.
    pub(super) fn has_begun(&self, topic_partition: &TopicPartition) {
        self.absent.lock().0.remove(topic_partition);
    }

    /// What was kept of damaged logs counts as durable from here on, and the next start has to know: by the damaged bytes alone it
    /// might take them for a torn tail, and cut what was acknowledged behind them.
    pub(super) fn settle_damage(&self, report: &RecoveryReport) {
        if report.logs.iter().any(|(_, found)| !found.corrupt.is_empty())
            && let Err(error) = self.write_checkpoints()
        {
            tracing::warn!(dir = %self.path().display(), %error, "checkpoints not written");
        }
    }

    /// Makes everything durable, indexes and producer state included, and writes the checkpoint files, so that a
    /// crash from here on has little to recover. To be called every minute or so.
    pub fn checkpoint(&self) -> Result<(), OpenError> {
        self.checkpoint_of(&self.logs())
    }

    fn checkpoint_of(&self, logs: &[Arc<Log>]) -> Result<(), OpenError> {
        for log in logs {
            if let Err(error) = log.checkpoint() {
                self.shared.health.check()?;
                tracing::warn!(log = %log.topic_partition(), %error, "not checkpointed");
            }
        }
        let _changing = self.changing.lock();
        Ok(self.write_checkpoints()?)
    }

    /// Checkpoints the logs that have grown most once all together have grown much, so that a crash leaves little to scan however
    /// fast they are written. To be called every second or so. Without effect where acknowledgements do not wait for fsync:
    /// there a checkpoint would write what the system may still hold back.
    pub fn checkpoint_grown(&self) -> Result<(), OpenError> {
        if !self.config.flush_before_ack {
            return Ok(());
        }
        let mut grown = self.logs();
        grown.retain(|log| log.grown_bytes() >= GROWN_BYTES);
        if grown.iter().map(|log| log.grown_bytes()).sum::<u64>() < GROWN_TOGETHER_BYTES {
            return Ok(());
        }
        self.checkpoint_of(&grown)
    }

    /// The caller holds `changing`.
    pub(super) fn write_checkpoints(&self) -> Result<(), CheckpointError> {
        self.write_checkpoints_without(None)
    }

    /// `begins`: a log that is not there and whose name is about to be another's.
    fn write_checkpoints_without(&self, begins: Option<&TopicPartition>) -> Result<(), CheckpointError> {
        let logs = self.logs();
        let disk = self.disk().as_ref();
        let absent = self.absent.lock().clone();
        let mut written = self.written.lock();
        let mut write = |name: &'static str, offset: &dyn Fn(&Log) -> Option<i64>| {
            let mut offsets = absent.offsets(name, begins);
            offsets.extend(logs.iter().filter_map(|log| Some((log.topic_partition().clone(), offset(log)?))));
            if written.get(name) != Some(&offsets) {
                checkpoint::write_offsets(disk, &self.path().join(name), &offsets)?;
                written.insert(name, offsets);
            }
            Ok::<(), CheckpointError>(())
        };
        write(RECOVERY_POINTS, &|log| Some(log.recovery_point().max(0)))?;
        // As in Kafka: only where the start is not simply that of the first segment.
        write(LOG_START_OFFSETS, &|log| {
            let start = log.log_start_offset();
            (log.first_segment_base() != Some(start)).then_some(start)
        })?;
        // Recovery counts on it: what is only in the page cache stays out.
        write(HIGH_WATERMARKS, &|log| Some(log.durable_end_offset().min(log.synced_offset())))?;
        let unstored = self.clock.lock().unstored(wall_clock_ms(), Instant::now());
        if let Some(clock) = unstored {
            checkpoint::write_retention_clock(disk, self.path(), clock)?;
            self.clock.lock().stored = Some(clock);
        }
        Ok(())
    }

    /// Up to where a log was compacted.
    pub fn cleaned_offset(&self, topic_partition: &TopicPartition) -> Option<i64> {
        self.cleaned.lock().get(topic_partition).copied()
    }

    /// Notes, durably, up to where a log was compacted.
    pub(crate) fn set_cleaned_offset(&self, log: &Log, offset: i64) -> Result<(), CheckpointError> {
        let mut cleaned = self.cleaned.lock();
        cleaned.insert(log.topic_partition().clone(), offset);
        checkpoint::write_offsets(self.disk().as_ref(), &self.path().join(CLEANED_OFFSETS), &cleaned)
    }

    /// Another log of that name begins anew.
    pub(super) fn forget_cleaned_offset(&self, topic_partition: &TopicPartition) -> Result<(), CheckpointError> {
        let mut cleaned = self.cleaned.lock();
        match cleaned.remove(topic_partition) {
            None => Ok(()),
            Some(_) => checkpoint::write_offsets(self.disk().as_ref(), &self.path().join(CLEANED_OFFSETS), &cleaned),
        }
    }
}
