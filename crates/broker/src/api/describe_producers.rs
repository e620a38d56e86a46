//! DescribeProducers (61), version 0: the producers whose state a partition keeps (KIP-664).

use caudal_protocol::messages::describe_producers_request::DescribeProducersRequest;
use caudal_protocol::messages::describe_producers_response::{
    DescribeProducersResponse, PartitionResponse, ProducerState, TopicResponse,
};
use caudal_storage::ActiveProducer;

use super::{RequestHeader, once};
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DescribeProducersRequest,
    _version: i16,
) -> DescribeProducersResponse {
    let view = ctx.topics.view();
    let topics = once(request.topics, |topic| topic.name.clone()).into_iter().map(|mut topic| {
        topic.partition_indexes = once(topic.partition_indexes, |index| *index);
        let partitions = topic.partition_indexes.iter().map(|&partition_index| {
            let partition = match view.find(&topic.name, partition_index) {
                Ok(partition) => partition,
                Err(error) => {
                    let error_code = error.code();
                    return PartitionResponse { partition_index, error_code, ..PartitionResponse::default() };
                }
            };
            let active_producers = partition.log.active_producers().into_iter().map(state).collect();
            PartitionResponse { partition_index, active_producers, ..PartitionResponse::default() }
        });
        let partitions = partitions.collect();
        TopicResponse { name: topic.name, partitions }
    });
    DescribeProducersResponse { topics: topics.collect(), ..DescribeProducersResponse::default() }
}

fn state(producer: ActiveProducer) -> ProducerState {
    ProducerState {
        producer_id: producer.producer_id,
        producer_epoch: producer.epoch.into(),
        last_sequence: producer.last_sequence,
        last_timestamp: producer.last_timestamp_ms,
        coordinator_epoch: producer.coordinator_epoch,
        current_txn_start_offset: producer.transaction_first_offset.unwrap_or(-1),
    }
}
