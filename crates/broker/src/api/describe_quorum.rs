//! DescribeQuorum (55), versions 0-2: the state of the metadata quorum, which is this node alone (KIP-595, KIP-853).

use caudal_cluster::log::METADATA_TOPIC;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_quorum_request::DescribeQuorumRequest;
use caudal_protocol::messages::describe_quorum_response::{
    DescribeQuorumResponse, Listener, Node, PartitionData, ReplicaState, TopicData,
};

use super::{RequestHeader, once};
use crate::clock;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    header: &RequestHeader,
    request: DescribeQuorumRequest,
    version: i16,
) -> DescribeQuorumResponse {
    let topics = once(request.topics, |topic| topic.topic_name.clone()).into_iter().map(|topic| {
        let known = topic.topic_name == METADATA_TOPIC;
        let partitions = once(topic.partitions, |p| p.partition_index).into_iter().map(|p| {
            if known && p.partition_index == 0 {
                return quorum(ctx);
            }
            PartitionData {
                partition_index: p.partition_index,
                error_code: ErrorCode::UnknownTopicOrPartition.code(),
                ..PartitionData::default()
            }
        });
        let partitions = partitions.collect();
        TopicData { topic_name: topic.topic_name, partitions }
    });
    let topics = topics.collect();
    let nodes = if version >= 2 { vec![node(ctx, header)] } else { Vec::new() };
    DescribeQuorumResponse { topics, nodes, ..DescribeQuorumResponse::default() }
}

fn quorum(ctx: &Context) -> PartitionData {
    let image = ctx.metadata.image();
    let end_offset = image.offset + 1;
    let now_ms = clock::wall_ms();
    let voter = ReplicaState {
        replica_id: ctx.node_id(),
        replica_directory_id: ctx.directory_id,
        log_end_offset: end_offset,
        last_fetch_timestamp: now_ms,
        last_caught_up_timestamp: now_ms,
    };
    PartitionData {
        leader_id: ctx.node_id(),
        leader_epoch: image.epoch,
        high_watermark: end_offset,
        current_voters: vec![voter],
        ..PartitionData::default()
    }
}

fn node(ctx: &Context, header: &RequestHeader) -> Node {
    let (host, port) = ctx.advertised(header);
    Node { node_id: ctx.node_id(), listeners: vec![Listener { name: ctx.listener(header).to_owned(), host, port }] }
}
