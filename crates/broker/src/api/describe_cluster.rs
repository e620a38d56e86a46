//! DescribeCluster (60), versions 0-2: the brokers and their addresses (KIP-700, KIP-919).

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use caudal_protocol::messages::{DescribeClusterRequest, DescribeClusterResponse};

use super::RequestHeader;
use super::metadata::ALL_CLUSTER_OPERATIONS;
use crate::context::Context;

const BROKERS: i8 = 1;
const CONTROLLERS: i8 = 2;

pub async fn handle(
    ctx: &Context,
    header: &RequestHeader,
    request: DescribeClusterRequest,
    _version: i16,
) -> DescribeClusterResponse {
    let refuse = |error: ErrorCode, message: String| DescribeClusterResponse {
        error_code: error.code(),
        error_message: Some(message),
        endpoint_type: request.endpoint_type,
        ..DescribeClusterResponse::default()
    };
    match request.endpoint_type {
        BROKERS => {}
        CONTROLLERS => {
            return refuse(
                ErrorCode::MismatchedEndpointType,
                "The request was sent to an endpoint of type BROKER, but we wanted an endpoint of type CONTROLLER"
                    .to_owned(),
            );
        }
        other => return refuse(ErrorCode::UnsupportedEndpointType, format!("Unsupported endpoint type {other}")),
    }
    let (host, port) = ctx.advertised(header);
    let rack = ctx.config.properties.get("broker.rack").map(str::to_owned);
    let broker =
        DescribeClusterBroker { broker_id: ctx.node_id(), host, port: i32::from(port), rack, is_fenced: false };
    let mut response = DescribeClusterResponse {
        error_message: None,
        endpoint_type: BROKERS,
        cluster_id: ctx.cluster_id.clone(),
        controller_id: ctx.node_id(),
        brokers: vec![broker],
        ..DescribeClusterResponse::default()
    };
    if request.include_cluster_authorized_operations {
        response.cluster_authorized_operations = ALL_CLUSTER_OPERATIONS;
    }
    response
}
