//! UnregisterBroker (64), version 0: forgets a broker that is gone, which a directory that was part of a larger cluster may have
//! registered. This broker itself cannot be unregistered while it runs (Kafka lets it, and the broker fails).

use caudal_cluster::controller::{Decision, unregister_records};
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::{UnregisterBrokerRequest, UnregisterBrokerResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: UnregisterBrokerRequest,
    _version: i16,
) -> UnregisterBrokerResponse {
    let broker_id = request.broker_id;
    let answer = |error: ErrorCode, message: Option<String>| UnregisterBrokerResponse {
        error_code: error.code(),
        error_message: message,
        ..UnregisterBrokerResponse::default()
    };
    if broker_id == ctx.node_id() {
        let message = format!("Broker ID {broker_id} is this broker, which cannot be unregistered while it runs");
        return answer(ErrorCode::InvalidRequest, Some(message));
    }
    let decided = ctx.metadata.change(|image| match unregister_records(image, broker_id) {
        None => {
            let message = format!("Broker ID {broker_id} is not currently registered");
            Decision { records: Vec::new(), response: answer(ErrorCode::BrokerIdNotRegistered, Some(message)) }
        }
        Some(records) => Decision { records, response: answer(ErrorCode::None, None) },
    });
    decided.await.unwrap_or_else(|error| answer(error.code, Some(error.message)))
}
