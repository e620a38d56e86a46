//! FindCoordinator (10), versions 0-6: this broker, for every group and every transactional id (key type 1). Creates
//! `__consumer_offsets` or `__transaction_state` when it is first asked.
//!
//! Share groups (2) are not served yet and say so.

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::find_coordinator_response::Coordinator;
use caudal_protocol::messages::{FindCoordinatorRequest, FindCoordinatorResponse};

use super::{RequestHeader, once};
use crate::context::Context;
use crate::group::offsets_log::OFFSETS_TOPIC;
use crate::transaction::STATE_TOPIC;

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;

pub async fn handle(
    ctx: &Context,
    header: &RequestHeader,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    if version >= 4 {
        let keys = once(request.coordinator_keys, String::clone);
        let mut coordinators = Vec::with_capacity(keys.len());
        for key in &keys {
            coordinators.push(find(ctx, header, key, request.key_type).await);
        }
        return FindCoordinatorResponse { coordinators, ..Default::default() };
    }
    let found = find(ctx, header, &request.key, request.key_type).await;
    FindCoordinatorResponse {
        error_code: found.error_code,
        error_message: found.error_message,
        node_id: found.node_id,
        host: found.host,
        port: found.port,
        ..Default::default()
    }
}

async fn find(ctx: &Context, header: &RequestHeader, key: &str, key_type: i8) -> Coordinator {
    let refuse = |error: ErrorCode, message: Option<&str>| Coordinator {
        key: key.to_owned(),
        node_id: -1,
        host: String::new(),
        port: -1,
        error_code: error.code(),
        error_message: Some(message.unwrap_or(error.message()).to_owned()),
    };
    let topic = match key_type {
        GROUP => OFFSETS_TOPIC,
        TRANSACTION => STATE_TOPIC,
        _ => {
            super::warn_not_served(header, "share groups", key);
            let message =
                "This broker coordinates groups of consumers and transactions: share groups are not served yet.";
            return refuse(ErrorCode::InvalidRequest, Some(message));
        }
    };
    let ready = ctx.ensure_internal_topic(topic).await;
    if ready.is_error() {
        return refuse(ready, None);
    }
    let (host, port) = ctx.advertised(header);
    Coordinator {
        key: key.to_owned(),
        node_id: ctx.node_id(),
        host,
        port: i32::from(port),
        error_code: 0,
        error_message: Some(ErrorCode::None.message().to_owned()),
    }
}
