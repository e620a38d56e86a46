//! WriteTxnMarkers (27), versions 1-2: ends transactions in partitions of this broker. Coordinators of other brokers send it, and
//! `kafka-transactions.sh abort` for a transaction that hangs; answered once the markers are durable. Version 2 says with which
//! `transaction.version` the transaction was made (KIP-1228).

use caudal_protocol::messages::write_txn_markers_request::{WritableTxnMarker, WriteTxnMarkersRequest};
use caudal_protocol::messages::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult, WriteTxnMarkersResponse,
};
use caudal_protocol::{ErrorCode, TopicPartition};
use caudal_storage::{EndMarker, TransactionMarker};

use super::{RequestHeader, once};
use crate::context::Context;
use crate::transaction::service::Marking;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: WriteTxnMarkersRequest,
    _version: i16,
) -> WriteTxnMarkersResponse {
    let mut markers = Vec::with_capacity(request.markers.len());
    for marker in request.markers {
        markers.push(write(ctx, marker).await);
    }
    WriteTxnMarkersResponse { markers }
}

async fn write(ctx: &Context, wanted: WritableTxnMarker) -> WritableTxnMarkerResult {
    let marker = if wanted.transaction_result { TransactionMarker::Commit } else { TransactionMarker::Abort };
    let marking = Marking {
        producer: (wanted.producer_id, wanted.producer_epoch),
        marker: EndMarker { marker, coordinator_epoch: wanted.coordinator_epoch },
        version: wanted.transaction_version.into(),
    };
    let mut topics = Vec::with_capacity(wanted.topics.len());
    for topic in once(wanted.topics, |topic| topic.name.clone()) {
        let (known, unknown): (Vec<i32>, Vec<i32>) =
            once(topic.partition_indexes, |p| *p).into_iter().partition(|p| ctx.has_partition(&topic.name, *p));
        let mark = |p: i32| (p, ctx.transactions.mark(&TopicPartition::new(topic.name.as_str(), p), marking));
        let appended: Vec<_> = known.into_iter().map(mark).collect();
        let result = |partition_index, error: ErrorCode| WritableTxnMarkerPartitionResult {
            partition_index,
            error_code: error.code(),
        };
        let mut partitions = Vec::with_capacity(appended.len() + unknown.len());
        for (p, marked) in appended {
            partitions.push(result(p, marked.await.unwrap_or(ErrorCode::NotLeaderOrFollower)));
        }
        partitions.extend(unknown.into_iter().map(|p| result(p, ErrorCode::UnknownTopicOrPartition)));
        topics.push(WritableTxnMarkerTopicResult { name: topic.name, partitions });
    }
    WritableTxnMarkerResult { producer_id: wanted.producer_id, topics }
}
