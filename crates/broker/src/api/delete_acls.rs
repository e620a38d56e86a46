//! DeleteAcls (31), versions 1-3: there is no authorizer, and the answer is that of a Kafka broker without one.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::delete_acls_response::DeleteAclsFilterResult;
use caudal_protocol::messages::{DeleteAclsRequest, DeleteAclsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    _ctx: &Context,
    _header: &RequestHeader,
    request: DeleteAclsRequest,
    _version: i16,
) -> DeleteAclsResponse {
    let refused = |_| DeleteAclsFilterResult {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some("No Authorizer is configured.".to_owned()),
        ..DeleteAclsFilterResult::default()
    };
    DeleteAclsResponse { throttle_time_ms: 0, filter_results: request.filters.iter().map(refused).collect() }
}
