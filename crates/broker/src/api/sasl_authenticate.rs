//! SaslAuthenticate (36), versions 0-2: nobody authenticates on a PLAINTEXT listener; the answer is Kafka's.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{SaslAuthenticateRequest, SaslAuthenticateResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    _ctx: &Context,
    _header: &RequestHeader,
    _request: SaslAuthenticateRequest,
    _version: i16,
) -> SaslAuthenticateResponse {
    SaslAuthenticateResponse {
        error_code: ErrorCode::IllegalSaslState.code(),
        error_message: Some("SaslAuthenticate request received after successful authentication".to_owned()),
        ..SaslAuthenticateResponse::default()
    }
}
