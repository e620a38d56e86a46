//! Making appended records durable, checkpoints, closing.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Log;
use crate::checkpoint::PARTITION_METADATA;
use crate::config::LogConfig;
use crate::disk::{OpenMode, replace_file};
use crate::error::{AppendError, FlushError, is_exhausted};
use crate::producer_state::snapshot_path;

impl Log {
    /// Makes everything appended so far durable; returns the offset (exclusive) up to which it is. One fdatasync for
    /// all that was appended before it began. After a failure the log directory is offline.
    pub fn flush(&self) -> Result<i64, FlushError> {
        let _one_at_a_time = self.flushing.lock();
        self.health.check()?;
        let end = self.end();
        let synced = self.synced_offset();
        if self.deleted.load(Ordering::Acquire) {
            return Err(self.closed());
        }
        let fail = |what: &str, error: io::Error| {
            FlushError::from(self.health.fail(format!("fsync of {what} failed: {error}")))
        };
        if end.offset > synced {
            let began = Instant::now();
            let segments = self.snapshot();
            let first = segments.partition_point(|segment| segment.base_offset <= synced).saturating_sub(1);
            for segment in segments.get(first..).unwrap_or_default() {
                segment.file.sync().map_err(|error| fail(&segment.path.display().to_string(), error))?;
            }
            let now = Instant::now();
            self.queue.times.record(now - began, now);
        }
        if self.names_dirty.swap(false, Ordering::AcqRel) {
            self.sync_names().map_err(|(path, error)| {
                self.names_dirty.store(true, Ordering::Release);
                if is_exhausted(&error) {
                    // No file was opened, so nothing was lost either.
                    let reason = error.to_string();
                    return FlushError::Exhausted { log: self.topic_partition.clone(), reason };
                }
                fail(&path.display().to_string(), error)
            })?;
        }
        if end.offset > synced {
            self.synced_offset.store(end.offset, Ordering::Release);
        }
        if self.flush_before_ack {
            let mut durable = self.durable.lock();
            if end.offset > durable.offset {
                *durable = end;
                self.durable_end_offset.store(end.offset, Ordering::Release);
                self.settle_transactions(end.offset);
            }
        }
        *self.last_flush.lock() = Instant::now();
        Ok(self.synced_offset())
    }

    /// Makes the names of the log's files durable; where that failed, the path.
    fn sync_names(&self) -> Result<(), (PathBuf, io::Error)> {
        if self.topic_id().is_some() {
            let path = self.dir.join(PARTITION_METADATA);
            let synced = self.disk.open(&path, OpenMode::Read).and_then(|file| file.sync());
            synced.map_err(|error| (path, error))?;
        }
        for dir in [self.dir.as_path(), self.health.dir()] {
            self.disk.sync_dir(dir).map_err(|error| (dir.to_owned(), error))?;
        }
        Ok(())
    }

    /// Obeys `flush.ms` where acknowledgements do not wait for fsync anyway.
    pub(crate) fn flush_if_overdue(self: &Arc<Self>) {
        let flush_ms = self.config().flush_ms;
        if self.flush_before_ack || flush_ms == i64::MAX || self.log_end_offset() <= self.synced_offset() {
            return;
        }
        let waited_ms = self.last_flush.lock().elapsed().as_millis();
        if waited_ms >= u128::from(flush_ms.unsigned_abs()) {
            self.queue.request(self);
        }
    }

    pub(crate) fn closed(&self) -> FlushError {
        FlushError::Closed { log: self.topic_partition.clone() }
    }

    /// Obeys `flush.messages` where acknowledgements do not wait for fsync anyway.
    pub(super) fn flush_if_due(self: &Arc<Self>, config: &LogConfig, end_offset: i64) {
        if !self.flush_before_ack && end_offset.saturating_sub(self.synced_offset()) >= config.flush_messages {
            self.queue.request(self);
        }
    }

    /// Flushes, then makes indexes and producer state durable too, so that recovery may begin behind what is there
    /// now. Returns the new recovery point.
    pub(crate) fn checkpoint(&self) -> Result<i64, AppendError> {
        let _not_deleted = self.upkeep.lock();
        if self.deleted.load(Ordering::Acquire) {
            return Err(AppendError::Closed { log: self.topic_partition.clone() });
        }
        let grown = self.grown_bytes.load(Ordering::Relaxed);
        let end = self.end();
        if end.position == 0 && self.first_segment_base() == Some(end.offset) && end.offset <= self.synced_offset() {
            // Without records there is nothing to keep; the names become durable with the first flush.
            self.recovery_point.store(end.offset, Ordering::Release);
            return Ok(end.offset);
        }
        let unchanged = self.recovery_point() == self.log_end_offset();
        if unchanged && !self.names_dirty.load(Ordering::Acquire) && self.writer.lock().unindexed.is_empty() {
            return Ok(self.recovery_point());
        }
        let snapshot_offset = self.snapshot_producers().map_err(|error| self.io_failed(error))?;
        self.flush().map_err(|error| match error {
            FlushError::Offline(offline) => AppendError::Offline(offline),
            FlushError::Closed { log } => AppendError::Closed { log },
            FlushError::Exhausted { log, reason } => AppendError::Exhausted { log, reason },
        })?;
        for segment in self.snapshot().iter() {
            segment.sync_index().map_err(|error| self.io_failed(error))?;
        }
        // Damaged batches stay behind the recovery point, so that every start finds and marks them again.
        let corrupt = self.corrupt_ranges().iter().map(|range| range.first_offset).min();
        let point = snapshot_offset.min(corrupt.unwrap_or(i64::MAX));
        self.recovery_point.store(point, Ordering::Release);
        self.grown_bytes.fetch_sub(grown, Ordering::Relaxed);
        Ok(point)
    }

    /// Writes the producers down as they are at the log end, which is returned. Appends go on while the file is written:
    /// `upkeep`, which the caller holds, keeps away what else removes or writes snapshots, but for a roll at the same offset,
    /// and that writes the same.
    fn snapshot_producers(&self) -> io::Result<i64> {
        let (offset, contents) = {
            let mut writer = self.writer.lock();
            // What lies in front of a snapshot is not looked at again.
            self.write_transaction_indexes(&mut writer)?;
            let offset = self.end().offset;
            let wanted = self.wants_snapshot(&writer, offset);
            (offset, wanted.then(|| writer.producers.encode_snapshot()).transpose()?)
        };
        if let Some(contents) = &contents {
            replace_file(self.disk.as_ref(), &snapshot_path(&self.dir, offset), contents)?;
        }
        let stray = {
            let mut writer = self.writer.lock();
            let snapshots = &mut writer.snapshots;
            if contents.is_some()
                && let Err(place) = snapshots.binary_search(&offset)
            {
                snapshots.insert(place, offset);
            }
            self.take_stray_snapshots(snapshots)
        };
        for offset in stray {
            if let Err(error) = self.disk.remove_file(&snapshot_path(&self.dir, offset)) {
                tracing::warn!(log = %self.topic_partition, offset, %error, "stray producer snapshot not removed");
            }
        }
        Ok(offset)
    }

    /// Snapshots that belong to no segment, but for the newest two: the newest may lie above what a crash leaves, then the
    /// one before it serves.
    fn take_stray_snapshots(&self, snapshots: &mut Vec<i64>) -> Vec<i64> {
        let bases: BTreeSet<i64> = self.snapshot().iter().map(|segment| segment.base_offset).collect();
        let newest = snapshots.len().saturating_sub(2);
        let mut at = 0;
        let is_stray = |offset: &mut i64| {
            at += 1;
            at <= newest && !bases.contains(offset)
        };
        snapshots.extract_if(.., is_stray).collect()
    }

    /// Closes the log: everything durable, indexes trimmed and complete, producer state saved. Appends are refused
    /// from now on. Returns the recovery point.
    pub(crate) fn close(&self) -> Result<i64, AppendError> {
        self.refuse_changes();
        if let Some(active) = self.snapshot().last() {
            active.retire_index().map_err(|error| self.io_failed(error))?;
        }
        self.checkpoint()
    }

    /// Refuses appends while the log is exchanged for a copy, until [`Log::resume`]. All that was appended is durable when
    /// this returns, and whoever waited for it was told; returns the log end.
    ///
    /// # Errors
    /// The log cannot be flushed. Appends go on.
    pub fn pause(self: &Arc<Self>) -> Result<i64, FlushError> {
        self.refuse_changes();
        let flushed = self.flush();
        if let Err(error) = flushed {
            self.resume();
            return Err(error);
        }
        let end = self.log_end_offset();
        let waiting = std::mem::take(&mut self.waiters.lock().waiting);
        for (_, callback) in waiting {
            callback(Ok(()));
        }
        Ok(end)
    }

    /// Takes appends again.
    pub fn resume(&self) {
        self.closing.store(false, Ordering::Release);
        self.writer.lock().closed = false;
    }

    /// Ends appends, and waits for the end of a cleaning.
    fn refuse_changes(&self) {
        self.writer.lock().closed = true;
        self.closing.store(true, Ordering::Release);
        let _none_under_way = self.cleaning.lock();
    }

    /// Ends a cleaning, and lets none begin until [`Log::resume_cleaning`] is called as often as this. Of a log that is copied a
    /// tombstone must not go when what it deletes was copied already.
    pub fn pause_cleaning(&self) {
        self.copiers.fetch_add(1, Ordering::AcqRel);
        let _none_under_way = self.cleaning.lock();
    }

    pub fn resume_cleaning(&self) {
        self.copiers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Refuses appends from now on: the log is being deleted.
    pub(crate) fn shut(&self) {
        self.refuse_changes();
        // A checkpoint, a deletion or a flush that is under way ends before the directory goes; none begins behind it.
        let _no_upkeep = self.upkeep.lock();
        let _none_under_way = self.flushing.lock();
        self.deleted.store(true, Ordering::Release);
    }
}
