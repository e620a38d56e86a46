//! DescribeAcls (29), versions 1-3: there is no authorizer, and the answer is that of a Kafka broker without one.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{DescribeAclsRequest, DescribeAclsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    _ctx: &Context,
    _header: &RequestHeader,
    _request: DescribeAclsRequest,
    _version: i16,
) -> DescribeAclsResponse {
    DescribeAclsResponse {
        error_code: ErrorCode::SecurityDisabled.code(),
        error_message: Some("No Authorizer is configured on the broker".to_owned()),
        ..DescribeAclsResponse::default()
    }
}
