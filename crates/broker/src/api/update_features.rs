//! UpdateFeatures (57), versions 0-2 (KIP-584, KIP-778): levels of features, written into the metadata log and in effect when
//! it is answered. Version 0 has `allowDowngrade`, which is taken as a safe downgrade; Kafka ignores it.

use caudal_cluster::controller;
use caudal_cluster::format::own_voters;
use caudal_protocol::messages::update_features_request::FeatureUpdateKey;
use caudal_protocol::messages::{UpdateFeaturesRequest, UpdateFeaturesResponse};

use super::RequestHeader;
use crate::context::Context;
use crate::metadata::ChangeError;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: UpdateFeaturesRequest,
    version: i16,
) -> UpdateFeaturesResponse {
    let (node, kraft_version) = (ctx.node(), ctx.metadata.kraft_version());
    let decide = |image: &_| controller::update_features(image, &node, kraft_version, &request, version);
    let response = match ctx.metadata.change(decide).await {
        Ok(response) => response,
        Err(error) => return failed(error),
    };
    let raises = |update: &FeatureUpdateKey| {
        update.feature == controller::KRAFT_VERSION && update.max_version_level > kraft_version
    };
    let is_accepted = response.error_code == 0 && !request.validate_only;
    if is_accepted && request.feature_updates.iter().any(raises) {
        let voters = own_voters(&ctx.config.properties, ctx.directory_id);
        if let Err(error) = ctx.metadata.raise_kraft_version(voters).await {
            return failed(error);
        }
    }
    response
}

fn failed(error: ChangeError) -> UpdateFeaturesResponse {
    UpdateFeaturesResponse {
        error_code: error.code.code(),
        error_message: Some(error.message),
        ..UpdateFeaturesResponse::default()
    }
}
