//! The control records that end transactions: their bytes, and appending them.
//!
//! ```text
//! key    version i16 (0), type i16: 0 abort, 1 commit
//! value  version i16 (0), coordinatorEpoch i32
//! ```
//! Source: `EndTransactionMarker` and `ControlRecordType` of Kafka, KIP-98.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use caudal_protocol::batch::{Batch, BatchBuilder, BatchHeader, NO_SEQUENCE};
use caudal_protocol::compression::Codec;

use super::append::{AppendInfo, AppendOrigin};
use super::{AppendCost, Log, wall_clock_ms};
use crate::error::AppendError;
use crate::segment::Segment;

/// A marker is one record of a few bytes.
const MARKER_MOST: usize = 4096;
const VERSION: i16 = 0;
const ABORT: i16 = 0;
const COMMIT: i16 = 1;

/// What a control record says of a producer's open transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionMarker {
    Abort,
    Commit,
}

impl TransactionMarker {
    /// By the key of the control record: version i16, type i16. `None` for control records of another kind.
    pub fn from_key(key: &[u8]) -> Option<TransactionMarker> {
        match i16::from_be_bytes(key.get(2..4)?.try_into().ok()?) {
            ABORT => Some(TransactionMarker::Abort),
            COMMIT => Some(TransactionMarker::Commit),
            _ => None,
        }
    }

    fn kind(self) -> i16 {
        match self {
            TransactionMarker::Abort => ABORT,
            TransactionMarker::Commit => COMMIT,
        }
    }
}

/// A marker with who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndMarker {
    pub marker: TransactionMarker,
    /// The leader epoch of the coordinator's partition of `__transaction_state`.
    pub coordinator_epoch: i32,
}

impl EndMarker {
    /// The marker in a control batch; `None` when there is none, as compaction leaves it.
    pub fn of_batch(batch: &Batch) -> Option<EndMarker> {
        if !batch.header.is_control() {
            return None;
        }
        let records = batch.records(MARKER_MOST).ok()?;
        let record = records.iter().next()?.ok()?;
        let marker = TransactionMarker::from_key(record.key?)?;
        let epoch = record.value?.get(2..6)?;
        Some(EndMarker { marker, coordinator_epoch: i32::from_be_bytes(epoch.try_into().ok()?) })
    }

    /// As [`EndMarker::of_batch`], of a batch that begins at `bytes`.
    pub(super) fn of_bytes(header: &BatchHeader, bytes: &[u8]) -> Option<EndMarker> {
        if !header.is_control() || !header.has_producer_id() {
            return None;
        }
        let bytes = Bytes::copy_from_slice(bytes.get(..header.size_bytes())?);
        EndMarker::of_batch(&Batch { header: *header, bytes })
    }

    /// As [`EndMarker::of_batch`], of the batch at `position` of a segment.
    pub(super) fn read(segment: &Segment, position: u64, header: &BatchHeader) -> io::Result<Option<EndMarker>> {
        if !header.is_control() || !header.has_producer_id() {
            return Ok(None);
        }
        let mut bytes = BytesMut::zeroed(header.size_bytes().min(MARKER_MOST));
        let read = segment.file.read_at(&mut bytes, position)?;
        bytes.truncate(read);
        Ok(EndMarker::of_bytes(header, &bytes))
    }

    /// The control batch, without offsets.
    fn batch(&self, producer_id: i64, producer_epoch: i16) -> Result<BytesMut, AppendError> {
        let key = [VERSION.to_be_bytes(), self.marker.kind().to_be_bytes()].concat();
        let value = [&VERSION.to_be_bytes()[..], &self.coordinator_epoch.to_be_bytes()[..]].concat();
        let mut builder = BatchBuilder::new(Codec::None)
            .producer(producer_id, producer_epoch, NO_SEQUENCE)
            .transactional(true)
            .control(true);
        builder.append(wall_clock_ms(), Some(&key), Some(&value), &[]);
        builder.build().map_err(|error| AppendError::Marker { producer_id, reason: error.to_string() })
    }
}

impl Log {
    /// As [`Log::append_cost`], for [`Log::append_marker`] of the same.
    pub fn marker_cost(&self, (producer_id, epoch): (i64, i16), marker: EndMarker, leader_epoch: i32) -> AppendCost {
        let batch = marker.batch(producer_id, epoch);
        batch.map_or(AppendCost::Quick, |batch| self.append_cost(&batch, leader_epoch, AppendOrigin::Coordinator))
    }

    /// Ends the transaction that a producer has open here, if it has one; the marker is written in any case.
    ///
    /// `transaction_version` is the one that the transaction was made with: from 2 on each one has an epoch of its own, and
    /// a marker must be newer than what it ends (KIP-890, KIP-1228).
    ///
    /// # Errors
    /// `InvalidProducerEpoch`, `CoordinatorFenced`: the marker is late; or see [`AppendError`].
    pub fn append_marker(
        self: &Arc<Self>,
        (producer_id, producer_epoch): (i64, i16),
        marker: EndMarker,
        transaction_version: i16,
        leader_epoch: i32,
    ) -> Result<AppendInfo, AppendError> {
        let batch = marker.batch(producer_id, producer_epoch)?;
        let checked = self.check_batches(&batch, AppendOrigin::Coordinator, &self.config())?;
        let check = |writer: &super::Writer| {
            writer.producers.check_marker(
                (producer_id, producer_epoch),
                marker.coordinator_epoch,
                transaction_version,
            )?;
            Ok(None)
        };
        self.append_checked(&batch, &checked, leader_epoch, AppendOrigin::Coordinator, check)
    }
}
