//! Deleting old segments: by time, by size, and below the log start offset.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::recover::remove_segment_files;
use super::{Log, Writer};
use crate::error::{AppendError, ReadError, is_disk_full};
use crate::producer_state::snapshot_path;
use crate::segment::Segment;

impl Log {
    /// Moves the log start up to `offset` (DeleteRecords); segments wholly below it are deleted. Moving it down has no
    /// effect. Returns the log start offset. Refused above the durable end.
    pub fn delete_records_before(&self, offset: i64) -> Result<i64, ReadError> {
        let durable = self.durable_end_offset();
        if offset > durable {
            return Err(ReadError::OffsetOutOfRange {
                log: self.topic_partition.clone(),
                offset,
                start: self.log_start_offset(),
                end: durable,
            });
        }
        let _not_deleted = self.upkeep.lock();
        let mut writer = self.writer.lock();
        self.health.check()?;
        if self.deleted.load(Ordering::Acquire) {
            return Err(ReadError::Closed { log: self.topic_partition.clone() });
        }
        self.log_start_offset.fetch_max(offset, Ordering::AcqRel);
        let deleted = self.delete_oldest(&mut writer, |_, next| next <= offset);
        deleted.map_err(|source| ReadError::Io { log: self.topic_partition.clone(), source })?;
        Ok(self.log_start_offset())
    }

    /// Deletes segments that `retention.ms` and `retention.bytes` no longer keep; does nothing unless
    /// `cleanup.policy` contains `delete`. `now_ms` must come from a clock that does not leap, see
    /// [`LogDir::apply_retention`](crate::LogDir::apply_retention). Returns the number of segments deleted.
    pub fn apply_retention(&self, now_ms: i64) -> Result<usize, AppendError> {
        let config = self.config();
        if !config.cleanup_delete {
            return Ok(0);
        }
        let expired = |segment: &Segment| {
            let newest = match segment.max_timestamp_ms() {
                -1 => segment.created_ms,
                newest => newest,
            };
            config.retention_ms >= 0 && now_ms.saturating_sub(newest) > config.retention_ms
        };
        let _not_deleted = self.upkeep.lock();
        if self.deleted.load(Ordering::Acquire) {
            return Err(AppendError::Closed { log: self.topic_partition.clone() });
        }
        let segments = self.snapshot();
        // Only when nothing younger is left does the active segment go too.
        if segments.iter().all(|segment| segment.size() > 0 && expired(segment)) {
            match self.roll() {
                // The older segments may go all the same; where space is short that is what is needed.
                Err(AppendError::DiskFull { .. }) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        let mut writer = self.writer.lock();
        self.health.check()?;
        let durable = self.durable_end_offset();
        let mut excess = match u64::try_from(config.retention_bytes) {
            Ok(most) => self.size_bytes().saturating_sub(most),
            Err(_) => 0,
        };
        let deleted = self.delete_oldest(&mut writer, |segment, next| {
            let size = segment.size();
            let delete = next <= durable && (expired(segment) || (size > 0 && size <= excess));
            if delete {
                excess -= size.min(excess);
            }
            delete
        });
        deleted.map_err(|error| self.io_failed(error))
    }

    /// Deletes segments from the oldest on while `delete` says so for a segment and the offset behind it. The active
    /// segment stays, and those that are being replaced at this moment. The writer's lock is held by the caller.
    pub(super) fn delete_oldest(
        &self,
        writer: &mut Writer,
        mut delete: impl FnMut(&Segment, i64) -> bool,
    ) -> io::Result<usize> {
        let segments = self.snapshot();
        let followed = segments.iter().zip(segments.iter().skip(1));
        let count = followed
            .take_while(|(segment, next)| {
                !writer.is_replacing(segment.base_offset) && delete(segment, next.base_offset)
            })
            .count();
        if count == 0 {
            return Ok(0);
        }
        let (gone, kept) = segments.split_at(count);
        let start = kept.first().map_or(0, |segment| segment.base_offset);
        *self.segments.write() = Arc::new(kept.to_vec());
        self.log_start_offset.fetch_max(start, Ordering::AcqRel);
        writer.unindexed.retain(|transaction| transaction.last_offset >= start);
        self.forget_aborted_below(start);
        let _busy = self.busy();
        let snapshots: Vec<i64> = writer.snapshots.extract_if(.., |offset| *offset < start).collect();
        for segment in gone {
            tracing::info!(log = %self.topic_partition, base = segment.base_offset, bytes = segment.size(), "segment deleted");
            // Readers that hold the file go on reading it.
            remove_segment_files(self.disk.as_ref(), &self.dir, segment.base_offset)?;
        }
        // Checkpoints write snapshots between the segments' bases too.
        for offset in snapshots {
            match self.disk.remove_file(&snapshot_path(&self.dir, offset)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let mut epochs = self.epochs.lock().clone();
        if epochs.truncate_from_start(self.log_start_offset()) {
            // Who asks for epochs need not wait for the file: only who holds the writer changes them.
            *self.epochs.lock() = epochs.clone();
            // The segments are gone either way, and what the file says too much is corrected when it is next written.
            match epochs.write(self.disk.as_ref(), &self.dir).map_err(io::Error::from) {
                Err(error) if is_disk_full(&error) => {
                    tracing::warn!(log = %self.topic_partition, %error, "leader epochs not written");
                }
                written => written?,
            }
        }
        Ok(count)
    }
}
