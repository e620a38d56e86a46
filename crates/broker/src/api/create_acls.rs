//! CreateAcls (30), versions 1-3: there is no authorizer, and the answer is that of a Kafka broker without one.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::create_acls_response::AclCreationResult;
use caudal_protocol::messages::{CreateAclsRequest, CreateAclsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    _ctx: &Context,
    _header: &RequestHeader,
    request: CreateAclsRequest,
    _version: i16,
) -> CreateAclsResponse {
    let refused = |_| AclCreationResult {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some("No Authorizer is configured.".to_owned()),
    };
    CreateAclsResponse { throttle_time_ms: 0, results: request.creations.iter().map(refused).collect() }
}
