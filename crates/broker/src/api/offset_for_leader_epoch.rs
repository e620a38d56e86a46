//! OffsetForLeaderEpoch (23), versions 2-4: where a leader epoch ended, so that a client notices that what it read has
//! been cut off (KIP-320).

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderEpochRequest, OffsetForLeaderPartition,
};
use caudal_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderEpochResponse, OffsetForLeaderTopicResult,
};

use super::RequestHeader;
use crate::context::Context;
use crate::topics::TopicsView;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: OffsetForLeaderEpochRequest,
    _version: i16,
) -> OffsetForLeaderEpochResponse {
    let view = ctx.topics.view();
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|wanted| {
            find(&view, &topic.topic, wanted).unwrap_or_else(|error| EpochEndOffset {
                error_code: error.code(),
                partition: wanted.partition,
                ..EpochEndOffset::default()
            })
        });
        let partitions = partitions.collect();
        OffsetForLeaderTopicResult { topic: topic.topic, partitions }
    });
    OffsetForLeaderEpochResponse { topics: topics.collect(), ..OffsetForLeaderEpochResponse::default() }
}

fn find(view: &TopicsView, topic: &str, wanted: &OffsetForLeaderPartition) -> Result<EpochEndOffset, ErrorCode> {
    let partition = view.find(topic, wanted.partition)?;
    partition.check_leader_epoch(wanted.current_leader_epoch)?;
    let (leader_epoch, end_offset) = partition.log.end_offset_for_epoch(wanted.leader_epoch);
    Ok(EpochEndOffset { partition: wanted.partition, leader_epoch, end_offset, ..EpochEndOffset::default() })
}
