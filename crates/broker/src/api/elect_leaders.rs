//! ElectLeaders (43), versions 0-2: see [`controller::elect_leaders`].

use caudal_cluster::controller;
use caudal_protocol::messages::{ElectLeadersRequest, ElectLeadersResponse};

use super::{RequestHeader, once};
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    mut request: ElectLeadersRequest,
    _version: i16,
) -> ElectLeadersResponse {
    request.topic_partitions = request.topic_partitions.map(|topics| {
        let mut topics = once(topics, |topic| topic.topic.clone());
        topics.iter_mut().for_each(|t| t.partitions = once(std::mem::take(&mut t.partitions), |index| *index));
        topics
    });
    let view = ctx.topics.view();
    let has_log = |topic: &str, index| view.find(topic, index).is_ok();
    let decided = ctx.metadata.change(|image| controller::elect_leaders(image, ctx.node_id(), request, has_log)).await;
    decided.unwrap_or_else(|error| ElectLeadersResponse {
        error_code: error.code.code(),
        ..ElectLeadersResponse::default()
    })
}
