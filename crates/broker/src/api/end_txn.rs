//! EndTxn (26), versions 0-5: commits or aborts the transaction of a transactional id. Answered once that is decided for good;
//! the markers follow. From version 5 on the answer names the epoch, and at times the id, for the next transaction (KIP-890).

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::end_txn_request::EndTxnRequest;
use caudal_protocol::messages::end_txn_response::EndTxnResponse;

use super::RequestHeader;
use crate::clock::wall_ms;
use crate::context::Context;
use crate::transaction::machine::End;
use crate::transaction::service::Outcome;
use crate::transaction::{EPOCH_BUMPS_FROM, NO_EPOCH, NO_ID};

/// From this version on clients give each transaction an epoch of its own.
const EPOCH_BUMPS: i16 = 5;

pub async fn handle(ctx: &Context, _header: &RequestHeader, request: EndTxnRequest, version: i16) -> EndTxnResponse {
    let mut end = End {
        producer: (request.producer_id, request.producer_epoch),
        commit: request.committed,
        version: if version >= EPOCH_BUMPS { EPOCH_BUMPS_FROM } else { 0 },
        fresh_id: None,
        now_ms: wall_ms(),
    };
    let ended = loop {
        match ctx.transactions.end(&request.transactional_id, end).await {
            Ok(Outcome::NeedsProducerId) => match ctx.next_producer_id().await {
                Ok(fresh_id) => end.fresh_id = Some(fresh_id),
                Err(error) => break Err(error),
            },
            Ok(Outcome::Done(producer)) => break Ok(producer),
            Err(error) => break Err(error),
        }
    };
    let (error, (producer_id, producer_epoch)) = match ended {
        Ok(producer) => (ErrorCode::None, producer),
        Err(error) => (super::fenced_error(error, version < 2), (NO_ID, NO_EPOCH)),
    };
    EndTxnResponse { error_code: error.code(), producer_id, producer_epoch, ..EndTxnResponse::default() }
}
