//! AlterPartitionReassignments (45), versions 0-1 (KIP-455, KIP-860). A single node has what it has: the present replicas are
//! accepted, broker ids that are not registered are not. Replicas on brokers that went away (the directory was part of a
//! larger cluster) can be given up.

use caudal_cluster::controller;
use caudal_protocol::messages::{AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: AlterPartitionReassignmentsRequest,
    _version: i16,
) -> AlterPartitionReassignmentsResponse {
    let decided = ctx.metadata.change(|image| controller::alter_partition_reassignments(image, &request)).await;
    decided.unwrap_or_else(|error| AlterPartitionReassignmentsResponse {
        allow_replication_factor_change: request.allow_replication_factor_change,
        error_code: error.code.code(),
        error_message: Some(error.message),
        ..AlterPartitionReassignmentsResponse::default()
    })
}
