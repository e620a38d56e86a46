//! ExpireDelegationToken (40), versions 1-2: delegation tokens are for clients that have proved who they are, which none of a PLAINTEXT listener
//! has; the answer is Kafka's.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{ExpireDelegationTokenRequest, ExpireDelegationTokenResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    _ctx: &Context,
    _header: &RequestHeader,
    _request: ExpireDelegationTokenRequest,
    _version: i16,
) -> ExpireDelegationTokenResponse {
    ExpireDelegationTokenResponse {
        error_code: ErrorCode::DelegationTokenRequestNotAllowed.code(),
        expiry_timestamp_ms: -1,
        ..ExpireDelegationTokenResponse::default()
    }
}
