//! CreateDelegationToken (38), versions 1-3: delegation tokens are for clients that have proved who they are, which none of a
//! PLAINTEXT listener has; the answer is Kafka's.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{CreateDelegationTokenRequest, CreateDelegationTokenResponse};

use super::RequestHeader;
use crate::context::{ANONYMOUS, Context};

const USER: &str = "User";

pub async fn handle(
    _ctx: &Context,
    _header: &RequestHeader,
    request: CreateDelegationTokenRequest,
    version: i16,
) -> CreateDelegationTokenResponse {
    let owner = request.owner_principal_name.filter(|name| !name.is_empty());
    let (principal_type, principal_name) = match owner {
        Some(name) => (request.owner_principal_type.unwrap_or_default(), name),
        None => (USER.to_owned(), ANONYMOUS.to_owned()),
    };
    let requester = |text: &str| if version > 2 { text.to_owned() } else { String::new() };
    CreateDelegationTokenResponse {
        error_code: ErrorCode::DelegationTokenRequestNotAllowed.code(),
        principal_type,
        principal_name,
        token_requester_principal_type: requester(USER),
        token_requester_principal_name: requester(ANONYMOUS),
        issue_timestamp_ms: -1,
        expiry_timestamp_ms: -1,
        max_timestamp_ms: -1,
        ..CreateDelegationTokenResponse::default()
    }
}
