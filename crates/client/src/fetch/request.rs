//! Fetch requests to one broker and what comes back per partition.

use caudal_protocol::batch::{Batch, BatchError, Batches, check_crc};
use caudal_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use caudal_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use caudal_protocol::wire::Records;
use caudal_protocol::{TopicPartition, Uuid};

use super::visible::Visibility;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::offsets::Isolation;

/// A partition to read from an offset.
#[derive(Debug, Clone)]
pub(crate) struct Position {
    pub partition: TopicPartition,
    pub topic_id: Uuid,
    pub leader_epoch: i32,
    pub offset: i64,
}

/// How much an answer may hold and how long a broker waits for it to fill.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub max_wait_ms: i32,
    pub min_bytes: i32,
    pub max_bytes: i32,
    pub partition_max_bytes: i32,
}

/// Groups positions into the topics of a request, keeping their order.
pub(crate) fn topics(positions: &[Position], partition_max_bytes: i32) -> Vec<FetchTopic> {
    let mut topics: Vec<FetchTopic> = Vec::new();
    for position in positions {
        let partition = FetchPartition {
            partition: position.partition.partition,
            current_leader_epoch: position.leader_epoch,
            fetch_offset: position.offset,
            partition_max_bytes,
            ..Default::default()
        };
        match topics.last_mut().filter(|t| t.topic == position.partition.topic) {
            Some(topic) => topic.partitions.push(partition),
            None => topics.push(FetchTopic {
                topic: position.partition.topic.clone(),
                topic_id: position.topic_id,
                partitions: vec![partition],
            }),
        }
    }
    topics
}

/// Where a partition stands now: its leader must be known to the cache.
pub(crate) fn position(client: &Client, partition: &TopicPartition, offset: i64) -> Result<(i32, Position)> {
    let (leader, leader_epoch) = client.leader(&partition.topic, partition.partition)?;
    let topic_id = client.topic_id(&partition.topic);
    Ok((leader, Position { partition: partition.clone(), topic_id, leader_epoch, offset }))
}

/// The answer for a partition, with the id of its topic as the broker gives it.
pub(crate) type Answered = (TopicPartition, Uuid, PartitionData);

/// Pairs the partitions of an answer with the names of their topics; from version 13 on there are only ids.
pub(crate) fn flatten(
    responses: Vec<FetchableTopicResponse>,
    name_of: impl Fn(&Uuid) -> Option<String>,
) -> Vec<Answered> {
    let mut flat = Vec::new();
    for topic in responses {
        let name = if topic.topic.is_empty() { name_of(&topic.topic_id) } else { Some(topic.topic) };
        let Some(name) = name else { continue };
        for data in topic.partitions {
            flat.push((TopicPartition::new(name.clone(), data.partition_index), topic.topic_id, data));
        }
    }
    flat
}

/// The batches of one partition's answer that a reader from `offset` on may see.
#[derive(Debug, Clone)]
pub(crate) struct Batched {
    pub batches: Vec<Batch>,
    /// Where the next fetch continues.
    pub next_offset: i64,
}

/// Cuts an answer into batches. A broker may return a batch that begins before `offset`, and a last one that is cut
/// off.
pub(crate) fn batches(
    partition: &TopicPartition,
    offset: i64,
    data: &mut PartitionData,
    isolation: Isolation,
    check_crcs: bool,
) -> Result<Batched> {
    let failed = |source| Error::Batch { partition: partition.clone(), source };
    let aborted = match isolation {
        Isolation::ReadCommitted => data.aborted_transactions.take(),
        Isolation::ReadUncommitted => None,
    };
    let mut visibility = Visibility::new(aborted);
    let mut result = Batched { batches: Vec::new(), next_offset: offset };
    let Some(Records::Bytes(bytes)) = data.records.take() else { return Ok(result) };
    let mut all = Batches::new(bytes).peekable();
    while let Some(batch) = all.next() {
        let following = all.peek().and_then(|next| Some(next.as_ref().ok()?.header.base_offset));
        let checked = batch.and_then(|batch| {
            if check_crcs {
                check_crc(&batch.bytes)?;
            }
            check_order(&batch, following, result.next_offset, offset).map(|()| batch)
        });
        let batch = match checked {
            Ok(batch) => batch,
            // What lies in front of it is good; the next fetch begins with it.
            Err(_) if result.next_offset > offset => break,
            Err(source) => return Err(failed(source)),
        };
        if batch.header.next_offset() <= offset {
            continue;
        }
        result.next_offset = batch.header.next_offset();
        if visibility.sees(&batch) {
            result.batches.push(batch);
        }
    }
    Ok(result)
}

/// The CRC does not cover where a batch begins. `following`: where the next one does; `expected`: what lies between it and
/// this batch, if anything, was compacted away; a reader from `offset` on is given the whole of the first batch.
fn check_order(
    batch: &Batch,
    following: Option<i64>,
    expected: i64,
    offset: i64,
) -> std::result::Result<(), BatchError> {
    let (base_offset, next_offset) = (batch.header.base_offset, batch.header.next_offset());
    let is_behind = base_offset < expected && expected > offset;
    let is_ahead = base_offset > expected && following.is_some_and(|following| following < next_offset);
    if is_behind || is_ahead { Err(BatchError::Misplaced { base_offset, expected }) } else { Ok(()) }
}

/// The offset up to which (exclusive) a reader may see.
pub(crate) fn visible_end(data: &PartitionData, isolation: Isolation) -> i64 {
    match isolation {
        Isolation::ReadCommitted if data.last_stable_offset >= 0 => data.last_stable_offset,
        _ => data.high_watermark,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use caudal_protocol::batch::BatchBuilder;
    use caudal_protocol::compression::Codec;

    use super::*;

    /// What a reader from `offset` on is given of batches of two records each; the error's base offset.
    fn read(offset: i64, bases: &[i64], damaged: Option<usize>) -> std::result::Result<(Vec<i64>, i64), i64> {
        let mut bytes = BytesMut::new();
        for (at, base) in bases.iter().enumerate() {
            let mut builder = BatchBuilder::new(Codec::None).base_offset(*base);
            (0..2).for_each(|_| builder.append(0, None, Some(b"value"), &[]));
            let mut batch = builder.build().unwrap();
            if damaged == Some(at) {
                *batch.last_mut().unwrap() ^= 1;
            }
            bytes.extend_from_slice(&batch);
        }
        let mut data = PartitionData { records: Some(Records::Bytes(bytes.freeze())), ..Default::default() };
        match batches(&TopicPartition::new("t", 0), offset, &mut data, Isolation::ReadUncommitted, true) {
            Ok(read) => Ok((read.batches.iter().map(|batch| batch.header.base_offset).collect(), read.next_offset)),
            Err(Error::Batch { source: BatchError::BadCrc { base_offset, .. }, .. }) => Err(base_offset),
            Err(Error::Batch { source: BatchError::Misplaced { base_offset, .. }, .. }) => Err(base_offset),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn what_lies_in_front_of_a_damaged_batch_is_read() {
        assert_eq!(read(4, &[4, 6, 8], None), Ok((vec![4, 6, 8], 10)));
        assert_eq!(read(4, &[4, 6, 8], Some(2)), Ok((vec![4, 6], 8)));
        assert_eq!(read(8, &[8], Some(0)), Err(8));
    }

    #[test]
    fn batches_are_in_order() {
        // From the middle of a batch on, and where others were compacted away.
        assert_eq!(read(5, &[4, 8, 12], None), Ok((vec![4, 8, 12], 14)));
        assert_eq!(read(5, &[20, 24], None), Ok((vec![20, 24], 26)));
        // One that was put behind others, and one in front of them.
        assert_eq!(read(4, &[4, 262, 8], None), Ok((vec![4], 6)));
        assert_eq!(read(6, &[262, 8], None), Err(262));
        assert_eq!(read(4, &[4, 6, 2], None), Ok((vec![4, 6], 8)));
    }
}
