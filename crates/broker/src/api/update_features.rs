//! UpdateFeatures (57), versions 0-2 (KIP-584, KIP-778): levels of features, written into the metadata log and in effect when
//! it is answered. Version 0 has `allowDowngrade`, which is taken as a safe downgrade; Kafka ignores it.

use caudal_cluster::controller;
use caudal_protocol::messages::{UpdateFeaturesRequest, UpdateFeaturesResponse};

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: UpdateFeaturesRequest,
    version: i16,
) -> UpdateFeaturesResponse {
    let (node, kraft_version) = (ctx.node(), ctx.metadata.kraft_version());
    let decide = |image: &_| controller::update_features(image, &node, kraft_version, &request, version);
    ctx.metadata.change(decide).await.unwrap_or_else(|error| UpdateFeaturesResponse {
        error_code: error.code.code(),
        error_message: Some(error.message),
        ..UpdateFeaturesResponse::default()
    })
}
