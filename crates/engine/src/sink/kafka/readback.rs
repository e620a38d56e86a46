//! What of a batch a crashed attempt left in the topics.

use std::collections::{BTreeMap, BTreeSet};

use caudal_client::{Error, OffsetRange, OffsetSpec};
use caudal_protocol::TopicPartition;
use caudal_protocol::batch::Batch;
use hashbrown::HashMap;

use super::cluster::Cluster;
use super::log::{Position, advance, distance};
use super::rows::{Rows, fingerprint};
use super::{Positions, failed};
use crate::error::EngineError;

/// What a batch may grow to when it is decompressed.
const BATCH_LIMIT_BYTES: usize = 1 << 30;
pub(super) const READ_BACK: &str = "read what was written to";

/// Records of the batch that a crashed attempt wrote.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// By content, how many were not matched with a row yet.
    pub(super) left: HashMap<Vec<u8>, u64>,
    /// By partition.
    pub(super) counts: BTreeMap<TopicPartition, u64>,
    /// The offset behind them.
    ends: BTreeMap<TopicPartition, i64>,
    pub(super) records: u64,
    /// The batch is complete, and records of the batch after it are there too.
    pub(super) later: bool,
}

impl Written {
    /// Whether the row is there already; each record answers for one row.
    pub(super) fn take(&mut self, topic: &str, rows: &Rows, row: usize) -> bool {
        if self.left.is_empty() {
            return false;
        }
        let key = fingerprint(topic, rows.key(row), rows.value(row), &rows.headers(row));
        let Some(count) = self.left.get_mut(&key) else { return false };
        *count -= 1;
        if *count == 0 {
            self.left.remove(&key);
        }
        true
    }

    /// The positions behind what was written.
    pub(super) fn positions(&self, before: &Positions) -> Positions {
        let mut positions = before.clone();
        for (tp, position) in &mut positions {
            position.records = 0;
            position.sequence = advance(position.sequence, self.counts.get(tp).copied().unwrap_or(0));
            position.offset = self.ends.get(tp).copied().unwrap_or(position.offset);
        }
        positions
    }

    fn add(&mut self, tp: &TopicPartition, position: &Position, batch: &Batch) -> Result<(), EngineError> {
        let unreadable = |reason: String| EngineError::External {
            action: format!("read back the records of {tp}"),
            message: reason,
        };
        let records = batch.records(BATCH_LIMIT_BYTES).map_err(|e| unreadable(e.to_string()))?;
        for record in records.iter() {
            let record = record.map_err(|e| unreadable(e.to_string()))?;
            let mut headers = Vec::new();
            for header in record.headers {
                let header = header.map_err(|e| unreadable(e.to_owned()))?;
                headers.push((header.key, header.value));
            }
            *self.left.entry(fingerprint(&tp.topic, record.key, record.value, &headers)).or_default() += 1;
            self.records += 1;
        }
        // By the numbers, which stay when a compactor takes records away.
        let through = advance(batch.header.last_sequence(), 1);
        let count = distance(position.sequence, through).unwrap_or(0);
        let known = self.counts.entry(tp.clone()).or_default();
        *known = count.max(*known);
        self.ends.insert(tp.clone(), batch.header.next_offset());
        Ok(())
    }
}

/// Reads back the records of this producer with numbers from the positions on. `again`: those are the positions of a batch
/// that was logged, and say how many records it has.
pub(super) async fn find_written(
    cluster: &dyn Cluster,
    producer: (i64, i16),
    before: &Positions,
    again: bool,
) -> Result<Written, EngineError> {
    let (mut written, beyond) = read_back(cluster, producer, before, again).await?;
    if beyond.is_empty() {
        return Ok(written);
    }
    let complete = |tp: &TopicPartition, position: &Position| {
        beyond.contains(tp) || written.counts.get(tp).copied().unwrap_or(0) >= position.records
    };
    if before.iter().all(|(tp, position)| complete(tp, position)) {
        written.later = true;
        return Ok(written);
    }
    // Without all of this batch there is nothing of the next one: a request of its first run arrived after a second run
    // had planned otherwise.
    Ok(read_back(cluster, producer, before, false).await?.0)
}

/// The records with numbers from the positions on; `bounded`: as many as the positions say, and where there are more.
/// Batches of others are dropped as they arrive, by their headers.
async fn read_back(
    cluster: &dyn Cluster,
    producer: (i64, i16),
    before: &Positions,
    bounded: bool,
) -> Result<(Written, BTreeSet<TopicPartition>), EngineError> {
    let mut beyond = BTreeSet::new();
    let mut written = Written::default();
    let partitions: Vec<TopicPartition> = before.keys().cloned().collect();
    if partitions.is_empty() {
        return Ok((written, beyond));
    }
    let read = |e: Error| failed(READ_BACK, &e);
    let ends = cluster.offsets(&partitions, OffsetSpec::Latest).await.map_err(read)?;
    let starts: BTreeMap<_, _> =
        cluster.offsets(&partitions, OffsetSpec::Earliest).await.map_err(read)?.into_iter().collect();
    for (tp, end) in ends {
        let Some(position) = before.get(&tp) else { continue };
        let start = position.offset.max(starts.get(&tp).copied().unwrap_or(0));
        if start >= end {
            continue;
        }
        let range = OffsetRange { partition: tp.clone(), start, end };
        let mut visit = |batch: Batch| {
            let header = &batch.header;
            if (header.producer_id, header.producer_epoch) != producer {
                return Ok(());
            }
            match distance(position.sequence, header.base_sequence) {
                None => Ok(()),
                Some(ahead) if bounded && ahead >= position.records => {
                    beyond.insert(tp.clone());
                    Ok(())
                }
                Some(_) => written.add(&tp, position, &batch),
            }
        };
        cluster.read(range, &mut visit).await?;
    }
    Ok((written, beyond))
}
