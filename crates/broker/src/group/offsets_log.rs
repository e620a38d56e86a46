//! `__consumer_offsets` as the group service sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{Batch, BatchBuilder};
use caudal_protocol::compression::Codec;
use caudal_storage::{AppendOrigin, EndMarker, Verification};

use super::GroupRecord;
use super::service::{OffsetsLog, Stored};
use super::transactional::{TransactionalProducer, TransactionalWrite};
use crate::clock::wall_ms;
use crate::coordinator_log::{DECOMPRESSED_MAX_BYTES, replay};
use crate::partition::Partition;
use crate::topics::Topics;

/// The topic that holds groups and their offsets.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// The topic's partitions on this broker.
#[derive(Debug)]
pub struct OffsetsTopic {
    topics: Arc<Topics>,
}

impl OffsetsTopic {
    pub fn new(topics: Arc<Topics>) -> OffsetsTopic {
        OffsetsTopic { topics }
    }

    /// Replays all that is stored, the oldest first within each group. Returns the partitions that cannot be read, with the
    /// reason: their groups are not to be served, those of the others are.
    pub fn read_all(&self, mut each: impl FnMut(GroupRecord)) -> BTreeMap<i32, String> {
        let view = self.topics.view();
        let Some(topic) = view.by_name(OFFSETS_TOPIC) else { return BTreeMap::new() };
        let read = |partition: &Arc<Partition>| {
            let index = partition.name.partition;
            let failed = replay(&partition.log, |batch| replay_batch(batch, index, &mut each)).err()?;
            Some((index, failed))
        };
        let mut unreadable: BTreeMap<i32, String> = topic.partitions.iter().flatten().filter_map(read).collect();
        unreadable.extend(topic.offline.clone());
        unreadable
    }
}

fn replay_batch(batch: &Batch, partition: i32, each: &mut impl FnMut(GroupRecord)) -> Result<(), String> {
    let producer = TransactionalProducer { partition, producer_id: batch.header.producer_id };
    if batch.header.is_control() {
        if let Some(EndMarker { marker, .. }) = EndMarker::of_batch(batch) {
            each(GroupRecord::Transaction(producer.end(marker)));
        }
        return Ok(());
    }
    for record in batch.records(DECOMPRESSED_MAX_BYTES).map_err(|e| e.to_string())?.iter() {
        let record = record.map_err(|e| e.to_string())?;
        let Some(key) = record.key.map(Bytes::copy_from_slice) else { continue };
        let value = record.value.map(Bytes::copy_from_slice);
        let Some(record) = GroupRecord::decode(key, value).map_err(|e| e.to_string())? else { continue };
        if batch.header.is_transactional() {
            each(producer.pending(record));
        } else {
            each(record);
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
        match builder.build() {
            Ok(batch) => partition.append_then(&batch, AppendOrigin::Coordinator, Verification::None, stored),
            Err(error) => {
                tracing::error!(partition = %partition.name, "failed to write group records: {error}");
                stored(ErrorCode::UnknownServerError);
            }
        }
    }

    fn append_in_transaction(&self, partition: i32, write: TransactionalWrite, stored: Stored) {
        let view = self.topics.view();
        let Some(partition) = view.partition(OFFSETS_TOPIC, partition) else {
            return stored(ErrorCode::NotCoordinator);
        };
        write.append(partition, stored);
    }
}
