//! InitProducerId (22), versions 0-5: an id for an idempotent producer (KIP-98).
//!
//! Ids come from blocks of a thousand that are claimed in the metadata log, so that none is given out twice, also across
//! restarts. Transactional producers are told that this broker does not serve them yet: TRANSACTIONAL_ID_NOT_FOUND would
//! be retried for ever, UNSUPPORTED_VERSION ends the producer with its reason.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::init_producer_id_request::InitProducerIdRequest;
use caudal_protocol::messages::init_producer_id_response::InitProducerIdResponse;

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    header: &RequestHeader,
    request: InitProducerIdRequest,
    _version: i16,
) -> InitProducerIdResponse {
    let failed = |error: ErrorCode| InitProducerIdResponse {
        error_code: error.code(),
        producer_epoch: -1,
        ..InitProducerIdResponse::default()
    };
    match request.transactional_id.as_deref() {
        Some("") => return failed(ErrorCode::InvalidRequest),
        Some(id) => {
            super::warn_not_served(header, "a transactional.id", id);
            return failed(ErrorCode::UnsupportedVersion);
        }
        None => {}
    }
    match ctx.next_producer_id().await {
        Ok(producer_id) => InitProducerIdResponse { producer_id, ..InitProducerIdResponse::default() },
        Err(error) => failed(error),
    }
}
