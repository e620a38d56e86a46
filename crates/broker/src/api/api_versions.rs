//! ApiVersions (18), versions 0-4: what this broker serves, and the feature levels of the cluster (KIP-35, KIP-511,
//! KIP-584).
//!
//! Produce is advertised from version 0 on although versions 0-2 are answered with an error: librdkafka up to 2.8 turns
//! off features otherwise (KAFKA-18659). Kafka does the same.

use caudal_cluster::controller::FEATURES;
use caudal_protocol::messages::api_versions_request::ApiVersionsRequest;
use caudal_protocol::messages::api_versions_response::{
    ApiVersion, ApiVersionsResponse, FinalizedFeatureKey, SupportedFeatureKey,
};
use caudal_protocol::wire::{Message, Writer};
use caudal_protocol::{ApiKey, ErrorCode};

use super::{Refused, RequestHeader, SERVED, Served, Work, with_length};
use crate::context::Context;
use crate::server::Response;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: ApiVersionsRequest,
    version: i16,
) -> ApiVersionsResponse {
    if version >= 3 && !(is_name(&request.client_software_name) && is_name(&request.client_software_version)) {
        return ApiVersionsResponse { error_code: ErrorCode::InvalidRequest.code(), ..Default::default() };
    }
    let image = ctx.metadata.image();
    // Clients before version 4 stumble over a minimum of 0 (KAFKA-17492).
    let supported = FEATURES.iter().filter(|f| version >= 4 || f.min > 0).map(|f| SupportedFeatureKey {
        name: f.name.to_owned(),
        min_version: f.min,
        max_version: f.max,
    });
    let kraft_version = ("kraft.version", ctx.metadata.kraft_version());
    let levels = image.features().iter().map(|(name, level)| (name.as_str(), *level)).chain([kraft_version]);
    let finalized = levels.filter(|(_, level)| *level > 0).map(|(name, level)| FinalizedFeatureKey {
        name: name.to_owned(),
        min_version_level: level,
        max_version_level: level,
    });
    ApiVersionsResponse {
        api_keys: SERVED.iter().map(advertised).collect(),
        supported_features: supported.collect(),
        finalized_features_epoch: image.offset,
        finalized_features: finalized.collect(),
        ..Default::default()
    }
}

fn advertised(served: &Served) -> ApiVersion {
    let min_version = if served.key == ApiKey::Produce { 0 } else { served.min_version };
    ApiVersion { api_key: served.key.code(), min_version, max_version: served.max_version }
}

/// KIP-511: letters and digits with dots and dashes between them.
fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|c| c.is_some_and(u8::is_ascii_alphanumeric))
        && bytes.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-' || *c == b'.')
}

/// The answer to a version that is not known here: version 0 of the response, naming the versions of ApiVersions, from
/// which the client picks one and asks again (KIP-511).
pub fn unknown_version(correlation_id: i32) -> Result<Work, Refused> {
    let response = ApiVersionsResponse {
        error_code: ErrorCode::UnsupportedVersion.code(),
        api_keys: SERVED.iter().filter(|s| s.key == ApiKey::ApiVersions).map(advertised).collect(),
        ..Default::default()
    };
    let mut writer = Writer::new();
    writer.i32(0);
    writer.i32(correlation_id);
    response.encode(&mut writer, 0).map_err(|e| Refused::Answer {
        api: "ApiVersions",
        version: 0,
        reason: e.to_string(),
    })?;
    let answer = Response::new(with_length(writer.finish()));
    Ok(Box::pin(std::future::ready(Ok(Some(answer)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_names_follow_kip_511() {
        assert!(is_name("apache-kafka-java") && is_name("3.0.12") && is_name("a"));
        for bad in ["", "-a", "a.", "a b", "ä", "a_b"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
