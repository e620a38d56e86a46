//! `__consumer_offsets` as the group service sees it.

use std::sync::Arc;

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{BatchBuilder, Batches};
use caudal_protocol::compression::Codec;
use caudal_storage::AppendOrigin;

use super::GroupRecord;
use super::service::{OffsetsLog, Stored, wall_ms};
use crate::partition::Partition;
use crate::topics::Topics;

/// The topic that holds groups and their offsets.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
const READ_BYTES: usize = 1024 * 1024;
/// Bounds what a compressed batch of the topic may unfold to.
const DECOMPRESSED_MAX_BYTES: usize = 64 * 1024 * 1024;

/// The topic's partitions on this broker.
#[derive(Debug)]
pub struct OffsetsTopic {
    topics: Arc<Topics>,
}

impl OffsetsTopic {
    pub fn new(topics: Arc<Topics>) -> OffsetsTopic {
        OffsetsTopic { topics }
    }

    /// Replays all that is stored, the oldest first within each group.
    ///
    /// # Errors
    /// A partition cannot be read or a record not understood.
    pub fn read_all(&self, mut each: impl FnMut(GroupRecord)) -> Result<(), String> {
        let view = self.topics.view();
        let Some(topic) = view.by_name(OFFSETS_TOPIC) else { return Ok(()) };
        for partition in topic.partitions.iter().flatten() {
            read_partition(partition, &mut each)
                .map_err(|error| format!("failed to load groups from {}: {error}", partition.name))?;
        }
        Ok(())
    }
}

fn read_partition(partition: &Partition, each: &mut impl FnMut(GroupRecord)) -> Result<(), String> {
    let log = &partition.log;
    let mut offset = log.log_start_offset();
    let end = log.log_end_offset();
    while offset < end {
        let slice = log.read(offset, READ_BYTES, end, true).map_err(|e| e.to_string())?;
        let bytes = slice.to_bytes().map_err(|e| e.to_string())?;
        let before = offset;
        for batch in Batches::new(bytes) {
            let batch = batch.map_err(|e| e.to_string())?;
            offset = batch.header.next_offset();
            if batch.header.is_control() {
                continue;
            }
            for record in batch.records(DECOMPRESSED_MAX_BYTES).map_err(|e| e.to_string())?.iter() {
                let record = record.map_err(|e| e.to_string())?;
                let Some(key) = record.key.map(Bytes::copy_from_slice) else { continue };
                let value = record.value.map(Bytes::copy_from_slice);
                if let Some(record) = GroupRecord::decode(key, value).map_err(|e| e.to_string())? {
                    each(record);
                }
            }
        }
        if offset == before {
            return Err(format!("no whole batch at offset {offset}"));
        }
    }
    Ok(())
}

impl OffsetsLog for OffsetsTopic {
    fn partitions(&self) -> Option<i32> {
        let view = self.topics.view();
        let count = view.by_name(OFFSETS_TOPIC)?.partitions.len();
        i32::try_from(count).ok()
    }

    fn append(&self, partition: i32, records: Vec<(Bytes, Option<Bytes>)>, stored: Stored) {
        let view = self.topics.view();
        let Some(partition) = view.partition(OFFSETS_TOPIC, partition) else {
            return stored(ErrorCode::NotCoordinator);
        };
        let mut builder = BatchBuilder::new(Codec::None);
        let now_ms = wall_ms();
        for (key, value) in &records {
            builder.append(now_ms, Some(key), value.as_deref(), &[]);
        }
        let batch = match builder.build() {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(partition = %partition.name, "failed to write group records: {error}");
                return stored(ErrorCode::UnknownServerError);
            }
        };
        let waiting = Arc::new(parking_lot::Mutex::new(Some(stored)));
        let on_durable = waiting.clone();
        let appended = partition.append(&batch, AppendOrigin::Coordinator, move |result| {
            if let Some(stored) = on_durable.lock().take() {
                stored(if result.is_ok() { ErrorCode::None } else { ErrorCode::KafkaStorageError });
            }
        });
        if let Err(error) = appended {
            tracing::error!(partition = %partition.name, "failed to write group records: {error}");
            let stored = waiting.lock().take();
            if let Some(stored) = stored {
                stored(error.error_code());
            }
        }
    }
}
