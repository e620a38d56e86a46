//! DescribeDelegationToken (41), versions 1-3: delegation tokens are for clients that have proved who they are, which none of a PLAINTEXT listener
//! has; the answer is Kafka's.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{DescribeDelegationTokenRequest, DescribeDelegationTokenResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    _ctx: &Context,
    _header: &RequestHeader,
    _request: DescribeDelegationTokenRequest,
    _version: i16,
) -> DescribeDelegationTokenResponse {
    DescribeDelegationTokenResponse {
        error_code: ErrorCode::DelegationTokenRequestNotAllowed.code(),
        ..DescribeDelegationTokenResponse::default()
    }
}
