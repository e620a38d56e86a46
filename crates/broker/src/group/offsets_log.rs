//! `__consumer_offsets` as the group service sees it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{Batch, BatchBuilder, Batches};
use caudal_protocol::compression::Codec;
use caudal_storage::{AppendCost, AppendOrigin, FlushError, TransactionMarker};
use tokio::runtime::RuntimeFlavor;

use super::GroupRecord;
use super::service::{OffsetsLog, Stored};
use crate::clock::wall_ms;
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

    /// Replays all that is stored, the oldest first within each group. Returns the partitions that cannot be read, with the
    /// reason: their groups are not to be served, those of the others are.
    pub fn read_all(&self, mut each: impl FnMut(GroupRecord)) -> BTreeMap<i32, String> {
        let view = self.topics.view();
        let Some(topic) = view.by_name(OFFSETS_TOPIC) else { return BTreeMap::new() };
        let read = |partition: &Arc<Partition>| {
            let failed = read_partition(partition, &mut each).err()?;
            Some((partition.name.partition, failed))
        };
        topic.partitions.iter().flatten().filter_map(read).collect()
    }
}

/// Offsets that transactions of Kafka wrote: they count once the transaction is committed.
#[derive(Debug, Default)]
struct Undecided(HashMap<i64, Vec<GroupRecord>>);

impl Undecided {
    fn add(&mut self, producer_id: i64, record: GroupRecord) {
        self.0.entry(producer_id).or_default().push(record);
    }

    /// What was committed outside of a transaction later than within counts, whenever the transaction ends.
    fn overtake(&mut self, newer: &GroupRecord) {
        let place = |record: &GroupRecord| match record {
            GroupRecord::Offset { group, topic, partition, .. } => Some((group.clone(), topic.clone(), *partition)),
            GroupRecord::Group { .. } | GroupRecord::Consumer { .. } => None,
        };
        if !self.0.is_empty() {
            let newer = place(newer);
            self.0.values_mut().for_each(|records| records.retain(|record| place(record) != newer));
        }
    }

    fn end(&mut self, producer_id: i64, committed: bool) -> Vec<GroupRecord> {
        let records = self.0.remove(&producer_id).unwrap_or_default();
        if committed { records } else { Vec::new() }
    }
}

fn read_partition(partition: &Partition, each: &mut impl FnMut(GroupRecord)) -> Result<(), String> {
    let log = &partition.log;
    let mut offset = log.log_start_offset();
    let end = log.log_end_offset();
    let mut undecided = Undecided::default();
    while offset < end {
        let slice = log.read(offset, READ_BYTES, end, true).map_err(|e| e.to_string())?;
        let bytes = slice.to_bytes().map_err(|e| e.to_string())?;
        let before = offset;
        for batch in Batches::new(bytes) {
            let batch = batch.map_err(|e| format!("offset {offset}: {e}"))?;
            let base_offset = batch.header.base_offset;
            offset = batch.header.next_offset();
            replay_batch(&batch, &mut undecided, each)
                .map_err(|e| format!("the batch at offset {base_offset}: {e}"))?;
        }
        if offset == before {
            return Err(format!("no whole batch at offset {offset}"));
        }
    }
    Ok(())
}

fn replay_batch(batch: &Batch, undecided: &mut Undecided, each: &mut impl FnMut(GroupRecord)) -> Result<(), String> {
    let producer_id = batch.header.producer_id;
    for record in batch.records(DECOMPRESSED_MAX_BYTES).map_err(|e| e.to_string())?.iter() {
        let record = record.map_err(|e| e.to_string())?;
        if batch.header.is_control() {
            if let Some(marker) = record.key.and_then(TransactionMarker::from_key) {
                undecided.end(producer_id, marker == TransactionMarker::Commit).into_iter().for_each(&mut *each);
            }
            continue;
        }
        let Some(key) = record.key.map(Bytes::copy_from_slice) else { continue };
        let value = record.value.map(Bytes::copy_from_slice);
        let Some(record) = GroupRecord::decode(key, value).map_err(|e| e.to_string())? else { continue };
        if batch.header.is_transactional() {
            undecided.add(producer_id, record);
        } else {
            undecided.overtake(&record);
            each(record);
        }
    }
    Ok(())
}

/// Does what blocks where it is called, for the sake of the order, and lets another thread carry the sockets meanwhile.
fn off_the_network<T>(work: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Handle::try_current();
    match runtime.map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // There is no other thread, or this is none of them.
        _ => work(),
    }
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
        let done = move |result: Result<(), FlushError>| {
            if let Some(stored) = on_durable.lock().take() {
                stored(result.map_or_else(|error| error.error_code(), |()| ErrorCode::None));
            }
        };
        let append = || partition.append(&batch, AppendOrigin::Coordinator, done);
        let appended = match partition.append_cost(&batch, AppendOrigin::Coordinator) {
            AppendCost::Quick => append(),
            AppendCost::Syncs | AppendCost::Unfolds => off_the_network(append),
        };
        if let Err(error) = appended {
            tracing::error!(partition = %partition.name, "failed to write group records: {error}");
            let stored = waiting.lock().take();
            if let Some(stored) = stored {
                stored(error.error_code());
            }
        }
    }
}
