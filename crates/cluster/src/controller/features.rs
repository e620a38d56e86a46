//! Levels of features, changed while the cluster runs (KIP-584, KIP-778).

use std::collections::BTreeMap;

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::update_features_request::FeatureUpdateKey;
use caudal_protocol::messages::update_features_response::UpdatableFeatureResult;
use caudal_protocol::messages::{UpdateFeaturesRequest, UpdateFeaturesResponse};
use caudal_protocol::records::metadata::{ConfigRecord, FeatureLevelRecord, NoOpRecord};

use super::{ApiError, Decision, FEATURES, Node};
use crate::format::{MetadataVersion, metadata_changes_between};
use crate::image::{ConfigResource, ConfigResourceType, MetadataImage};
use crate::record::MetadataRecord;

const METADATA_VERSION: &str = "metadata.version";
pub const KRAFT_VERSION: &str = "kraft.version";
pub(super) const ELR_VERSION: &str = "eligible.leader.replicas.version";
/// The metadata version that `eligible.leader.replicas.version` needs.
const ELR_NEEDS_METADATA_VERSION: i16 = 23;
const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";

/// Which way a level may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Upgrade,
    SafeDowngrade,
    UnsafeDowngrade,
}

impl Direction {
    fn of(update: &FeatureUpdateKey, version: i16) -> Option<Direction> {
        if version == 0 {
            return Some(if update.allow_downgrade { Direction::SafeDowngrade } else { Direction::Upgrade });
        }
        match update.upgrade_type {
            1 => Some(Direction::Upgrade),
            2 => Some(Direction::SafeDowngrade),
            3 => Some(Direction::UnsafeDowngrade),
            _ => None,
        }
    }
}

/// Decides an UpdateFeatures request: all of it or nothing. `kraft_version`: the one that the quorum runs with; that it is raised
/// is the caller's to write.
pub fn update_features(
    image: &MetadataImage,
    node: &Node<'_>,
    kraft_version: i16,
    request: &UpdateFeaturesRequest,
    version: i16,
) -> Decision<UpdateFeaturesResponse> {
    // Of one that is listed twice the last counts.
    let updates: BTreeMap<&str, &FeatureUpdateKey> =
        request.feature_updates.iter().map(|update| (update.feature.as_str(), update)).collect();
    let mut proposed = image.features().clone();
    proposed.extend(updates.iter().map(|(name, update)| ((*name).to_owned(), update.max_version_level)));
    let change = Change { image, node, kraft_version, proposed: &proposed, version };
    let mut records = Vec::new();
    for update in updates.values() {
        if let Err(error) = change.decide(update).map(|new| records.extend(new)) {
            let message = format!(
                "The update failed for all features since the following feature had an error: {}",
                error.message
            );
            let response = UpdateFeaturesResponse {
                error_code: error.code.code(),
                error_message: Some(message),
                ..UpdateFeaturesResponse::default()
            };
            return Decision { records: Vec::new(), response };
        }
    }
    if updates.get(ELR_VERSION).is_some_and(|update| update.max_version_level > 0) {
        let mut safety = elr_safety_records(image, node);
        safety.append(&mut records);
        records = safety;
    }
    if request.validate_only {
        records.clear();
    }
    let result = |update: &FeatureUpdateKey| UpdatableFeatureResult {
        feature: update.feature.clone(),
        ..UpdatableFeatureResult::default()
    };
    let results = if version <= 1 { request.feature_updates.iter().map(result).collect() } else { Vec::new() };
    Decision { records, response: UpdateFeaturesResponse { results, ..UpdateFeaturesResponse::default() } }
}

struct Change<'a> {
    image: &'a MetadataImage,
    node: &'a Node<'a>,
    kraft_version: i16,
    /// The levels that there would be.
    proposed: &'a BTreeMap<String, i16>,
    /// Of the request.
    version: i16,
}

impl Change<'_> {
    fn decide(&self, update: &FeatureUpdateKey) -> Result<Option<MetadataRecord>, ApiError> {
        let (name, level) = (update.feature.as_str(), update.max_version_level);
        let invalid = |why: String| {
            let message = format!("Invalid update version {level} for feature {name}. {why}");
            Err(ApiError::new(ErrorCode::InvalidUpdateVersion, message))
        };
        let Some(direction) = Direction::of(update, self.version) else {
            return invalid("The controller does not support the given upgrade type.".to_owned());
        };
        let current = if name == KRAFT_VERSION { self.kraft_version } else { self.image.feature(name) };
        if level < 0 {
            return invalid("A feature version cannot be less than 0.".to_owned());
        }
        if let Some(why) = self.not_supported(name, level) {
            return invalid(why);
        }
        if level < current && direction == Direction::Upgrade {
            return invalid(
                "Can't downgrade the version of this feature without setting the upgrade type to either safe or unsafe \
                 downgrade."
                    .to_owned(),
            );
        }
        if level > current && direction != Direction::Upgrade {
            return invalid("Can't downgrade to a newer version.".to_owned());
        }
        if name == METADATA_VERSION {
            check_metadata_version(current, level, direction)?;
        } else if name == KRAFT_VERSION {
            if level < current {
                return invalid("Can't downgrade the version of this feature.".to_owned());
            }
            // The quorum keeps it, not a record; something to wait for all the same, as in Kafka.
            return Ok((level > current).then(|| NoOpRecord::default().into()));
        } else if let Some(why) = self.lacks(name, level) {
            return invalid(why);
        }
        Ok(Some(FeatureLevelRecord { name: name.to_owned(), feature_level: level }.into()))
    }

    fn not_supported(&self, name: &str, level: i16) -> Option<String> {
        let node = self.node.node_id;
        let Some(feature) = FEATURES.iter().find(|feature| feature.name == name) else {
            return Some(match level {
                0 => format!("Feature {name} not found."),
                _ => format!("Local controller {node} does not support this feature."),
            });
        };
        let range = feature.min..=feature.max;
        (!range.contains(&level))
            .then(|| format!("Local controller {node} only supports versions {}-{}", feature.min, feature.max))
    }

    /// What a feature would need that there would not be.
    fn lacks(&self, name: &str, level: i16) -> Option<String> {
        let metadata_version = self.proposed.get(METADATA_VERSION).copied().unwrap_or(0);
        let lacks = name == ELR_VERSION && level >= 1 && metadata_version < ELR_NEEDS_METADATA_VERSION;
        lacks.then(|| {
            format!(
                "{name} could not be set to {level} because it depends on {METADATA_VERSION} level \
                 {ELR_NEEDS_METADATA_VERSION}"
            )
        })
    }
}

/// A metadata version may be lowered only as long as nothing is lost by it.
fn check_metadata_version(current: i16, level: i16, direction: Direction) -> Result<(), ApiError> {
    let refuse = |message: String| Err(ApiError::new(ErrorCode::InvalidUpdateVersion, message));
    if let Err(error) = MetadataVersion::of_level(level) {
        return refuse(format!("Invalid metadata.version {level}. {error}"));
    }
    if level >= current || !metadata_changes_between(level, current) {
        return Ok(());
    }
    let why = match direction {
        Direction::UnsafeDowngrade => "Unsafe metadata downgrade is not supported in this version.",
        _ => "Refusing to perform the requested downgrade because it might delete metadata information.",
    };
    refuse(format!("Unsupported metadata.version downgrade from {current} to {level}. {why}"))
}

/// With eligible leader replicas `min.insync.replicas` is a matter of the whole cluster (KIP-966).
fn elr_safety_records(image: &MetadataImage, node: &Node<'_>) -> Vec<MetadataRecord> {
    let record = |resource_name: &str, value: Option<String>| {
        MetadataRecord::Config(ConfigRecord {
            resource_type: ConfigResourceType::Broker.code(),
            resource_name: resource_name.to_owned(),
            name: MIN_INSYNC_REPLICAS.to_owned(),
            value,
        })
    };
    let mut records = Vec::new();
    if image.config(&ConfigResource::all_brokers(), MIN_INSYNC_REPLICAS).is_none() {
        let value = node.config.value(MIN_INSYNC_REPLICAS).unwrap_or("1").to_owned();
        records.push(record("", Some(value)));
    }
    for resource in image.config_resources().filter(|r| r.kind == ConfigResourceType::Broker && !r.name.is_empty()) {
        if image.config(resource, MIN_INSYNC_REPLICAS).is_some() {
            records.push(record(&resource.name, None));
        }
    }
    records
}
