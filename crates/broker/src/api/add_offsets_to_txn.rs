//! AddOffsetsToTxn (25), versions 0-4: makes the offsets of a group part of a transaction, ahead of TxnOffsetCommit. Clients with
//! an epoch for each transaction do not send it (KIP-890).

use std::collections::BTreeSet;

use caudal_protocol::messages::add_offsets_to_txn_request::AddOffsetsToTxnRequest;
use caudal_protocol::messages::add_offsets_to_txn_response::AddOffsetsToTxnResponse;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::RequestHeader;
use crate::context::Context;
use crate::group::offsets_log::OFFSETS_TOPIC;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: AddOffsetsToTxnRequest,
    version: i16,
) -> AddOffsetsToTxnResponse {
    let added = add(ctx, &request).await;
    let error = super::fenced_error(added.err().unwrap_or(ErrorCode::None), version < 2);
    AddOffsetsToTxnResponse { error_code: error.code(), ..AddOffsetsToTxnResponse::default() }
}

async fn add(ctx: &Context, request: &AddOffsetsToTxnRequest) -> Result<(), ErrorCode> {
    let ready = ctx.ensure_internal_topic(OFFSETS_TOPIC).await;
    if ready.is_error() {
        return Err(ready);
    }
    let partition = ctx.groups.partition_of(&request.group_id).ok_or(ErrorCode::CoordinatorNotAvailable)?;
    let partitions = BTreeSet::from([TopicPartition::new(OFFSETS_TOPIC, partition)]);
    let producer = (request.producer_id, request.producer_epoch);
    ctx.transactions.add(&request.transactional_id, producer, &partitions, 0).await
}
