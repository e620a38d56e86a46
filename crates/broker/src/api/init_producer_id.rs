//! InitProducerId (22), versions 0-5: an id and an epoch for a producer (KIP-98, KIP-360).
//!
//! Ids come from blocks of a thousand that are claimed in the metadata log, so that none is given out twice, also across
//! restarts. With a transactional id whoever had it before is fenced; a transaction that was left open is aborted first, and
//! the producer told to come again (CONCURRENT_TRANSACTIONS).

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::init_producer_id_request::InitProducerIdRequest;
use caudal_protocol::messages::init_producer_id_response::InitProducerIdResponse;

use super::RequestHeader;
use crate::clock::wall_ms;
use crate::context::Context;
use crate::transaction::machine::{Init, Producer};
use crate::transaction::service::Outcome;
use crate::transaction::{NO_EPOCH, NO_ID};

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: InitProducerIdRequest,
    version: i16,
) -> InitProducerIdResponse {
    match init(ctx, &request).await {
        Ok((producer_id, producer_epoch)) => {
            InitProducerIdResponse { producer_id, producer_epoch, ..InitProducerIdResponse::default() }
        }
        Err(error) => InitProducerIdResponse {
            error_code: super::fenced_error(error, version < 4).code(),
            producer_epoch: NO_EPOCH,
            ..InitProducerIdResponse::default()
        },
    }
}

async fn init(ctx: &Context, request: &InitProducerIdRequest) -> Result<Producer, ErrorCode> {
    let expected = match (request.producer_id, request.producer_epoch) {
        (NO_ID, NO_EPOCH) => None,
        (NO_ID, _) | (_, NO_EPOCH) => return Err(ErrorCode::InvalidRequest),
        expected => Some(expected),
    };
    let Some(id) = request.transactional_id.as_deref() else {
        return Ok((ctx.next_producer_id().await?, 0));
    };
    let timeout_ms = request.transaction_timeout_ms;
    if id.is_empty() {
        return Err(ErrorCode::InvalidRequest);
    }
    if timeout_ms <= 0 || i64::from(timeout_ms) > ctx.transactions.config.max_timeout_ms {
        return Err(ErrorCode::InvalidTransactionTimeout);
    }
    if !ctx.transactions.knows(id)? {
        let producer_id = ctx.next_producer_id().await?;
        ctx.transactions.introduce(id, producer_id, timeout_ms);
    }
    let version = ctx.transaction_version();
    let mut init = Init { timeout_ms, expected, fresh_id: None, version, now_ms: wall_ms() };
    loop {
        match ctx.transactions.init(id, init).await? {
            Outcome::Done(producer) => return Ok(producer),
            Outcome::NeedsProducerId => init.fresh_id = Some(ctx.next_producer_id().await?),
        }
    }
}
