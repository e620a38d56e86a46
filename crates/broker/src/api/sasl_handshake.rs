//! SaslHandshake (17), versions 0-1: nobody authenticates on a PLAINTEXT listener; the answer is Kafka's.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{SaslHandshakeRequest, SaslHandshakeResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    _ctx: &Context,
    _header: &RequestHeader,
    _request: SaslHandshakeRequest,
    _version: i16,
) -> SaslHandshakeResponse {
    SaslHandshakeResponse { error_code: ErrorCode::IllegalSaslState.code(), ..SaslHandshakeResponse::default() }
}
