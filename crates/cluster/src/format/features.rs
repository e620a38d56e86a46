//! Releases, the metadata versions they introduced, and the levels that the other features start with in them.

use caudal_protocol::records::metadata::FeatureLevelRecord;

use super::FormatError;

/// Feature level and name of each metadata version up to that of release 4.3.
const METADATA_VERSIONS: &[(i16, &str)] = &[
    (7, "3.3-IV3"),
    (8, "3.4-IV0"),
    (9, "3.5-IV0"),
    (10, "3.5-IV1"),
    (11, "3.5-IV2"),
    (12, "3.6-IV0"),
    (13, "3.6-IV1"),
    (14, "3.6-IV2"),
    (15, "3.7-IV0"),
    (16, "3.7-IV1"),
    (17, "3.7-IV2"),
    (18, "3.7-IV3"),
    (19, "3.7-IV4"),
    (20, "3.8-IV0"),
    (21, "3.9-IV0"),
    (22, "4.0-IV0"),
    (23, "4.0-IV1"),
    (24, "4.0-IV2"),
    (25, "4.0-IV3"),
    (26, "4.1-IV0"),
    (27, "4.1-IV1"),
    (28, "4.2-IV0"),
    (29, "4.2-IV1"),
    (30, "4.3-IV0"),
];

/// The levels that brought records that the levels before do not have: they cannot be left again.
const WITH_NEW_METADATA: &[i16] = &[8, 11, 13, 14, 15, 17, 23, 30];

/// Whether records may have been written at metadata version `to` that do not exist at `from`, which is lower.
pub fn metadata_changes_between(from: i16, to: i16) -> bool {
    WITH_NEW_METADATA.iter().any(|level| (from + 1..=to).contains(level))
}

/// A feature beside metadata.version: its highest level, and the metadata version from which on it is the default.
struct Feature {
    name: &'static str,
    max: i16,
    default_from: i16,
}

/// In the order of their names.
const FEATURES: &[Feature] = &[
    Feature { name: "eligible.leader.replicas.version", max: 1, default_from: 26 },
    Feature { name: "group.version", max: 1, default_from: 22 },
    Feature { name: "kraft.version", max: 1, default_from: 21 },
    Feature { name: "share.version", max: 1, default_from: 28 },
    Feature { name: "streams.version", max: 1, default_from: 29 },
    Feature { name: "transaction.version", max: 2, default_from: 24 },
];

/// The newest metadata version.
pub const LATEST: MetadataVersion = MetadataVersion { level: 30, name: "4.3-IV0" };

/// A metadata version, which decides what records may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataVersion {
    pub level: i16,
    pub name: &'static str,
}

impl MetadataVersion {
    /// The version of a release (`4.0`, `4.0.1`) or of its own name (`4.0-IV3`).
    pub fn of_release(text: &str) -> Result<MetadataVersion, FormatError> {
        let short: String = text.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        let matches = |name: &str| name == text || name.split_once('-').is_some_and(|(release, _)| release == short);
        let found = METADATA_VERSIONS.iter().rev().find(|(_, name)| matches(name));
        let (level, name) = found.ok_or_else(|| {
            let names: Vec<&str> = METADATA_VERSIONS.iter().map(|(_, name)| *name).collect();
            FormatError::Terse(format!(
                "Unknown metadata.version '{text}'. Supported metadata.version are: {}",
                names.join(", ")
            ))
        })?;
        Ok(MetadataVersion { level: *level, name })
    }

    /// The version of a feature level.
    pub fn of_level(level: i16) -> Result<MetadataVersion, FormatError> {
        let found = METADATA_VERSIONS.iter().find(|(l, _)| *l == level);
        let (level, name) = found.ok_or_else(|| {
            let [lowest, highest] = [METADATA_VERSIONS.first(), METADATA_VERSIONS.last()].map(|v| v.map_or(0, |v| v.0));
            FormatError::Terse(format!(
                "No MetadataVersion with feature level {level}. Valid feature levels are from {lowest} to {highest}."
            ))
        })?;
        Ok(MetadataVersion { level: *level, name })
    }
}

/// The levels that the features beside metadata.version have by default in a metadata version, in the order in which
/// `kafka-storage.sh version-mapping` lists them.
pub fn default_levels(metadata_version: i16) -> Vec<(&'static str, i16)> {
    const LISTED: [&str; 6] = [
        "kraft.version",
        "transaction.version",
        "group.version",
        "eligible.leader.replicas.version",
        "share.version",
        "streams.version",
    ];
    let level = |f: &Feature| if metadata_version >= f.default_from { f.max } else { 0 };
    let find = |name| FEATURES.iter().find(|f| f.name == name).map(|f| (f.name, level(f)));
    LISTED.into_iter().filter_map(find).collect()
}

/// The highest level of a feature beside metadata.version; `None`: there is no such feature.
pub fn highest_level(name: &str) -> Option<i16> {
    FEATURES.iter().find(|f| f.name == name).map(|f| f.max)
}

/// The features a cluster starts with, those at level 0 left out; and its `kraft.version`.
#[derive(Debug, Clone, PartialEq)]
pub struct InitialFeatures {
    pub release: MetadataVersion,
    pub records: Vec<FeatureLevelRecord>,
    pub kraft_version: i16,
}

/// Settles the levels from what was asked for.
pub fn initial_features(
    release: Option<&str>,
    asked: &[(String, i16)],
    dynamic_quorum: bool,
) -> Result<InitialFeatures, FormatError> {
    let level_of = |name: &str| asked.iter().rev().find(|(n, _)| n == name).map(|(_, level)| *level);
    let release = match (release, level_of("metadata.version")) {
        (Some(_), Some(_)) => {
            return Err(FormatError::Terse(
                "Use --release-version instead of --feature metadata.version=X to avoid ambiguity.".to_owned(),
            ));
        }
        (Some(text), None) => MetadataVersion::of_release(text)?,
        (None, Some(level)) => MetadataVersion::of_level(level)?,
        (None, None) => LATEST,
    };
    for (name, level) in asked.iter().filter(|(name, _)| name != "metadata.version") {
        let Some(feature) = FEATURES.iter().find(|f| f.name == name) else {
            let known: Vec<&str> = FEATURES.iter().map(|f| f.name).collect();
            let message = format!("Unsupported feature: {name}. Supported features are: {}", known.join(", "));
            return Err(FormatError::Terse(message));
        };
        if !(0..=feature.max).contains(level) {
            return Err(FormatError::Terse(format!("No feature:{name} with feature level {level}")));
        }
    }
    let kraft_version = kraft_version(level_of("kraft.version"), dynamic_quorum)?;
    let record = |name: &str, feature_level: i16| FeatureLevelRecord { name: name.to_owned(), feature_level };
    let mut records = vec![record("metadata.version", release.level)];
    for feature in FEATURES.iter().filter(|f| f.name != "kraft.version") {
        let default = if release.level >= feature.default_from { feature.max } else { 0 };
        let level = level_of(feature.name).unwrap_or(default);
        if level > 0 {
            records.push(record(feature.name, level));
        }
    }
    Ok(InitialFeatures { release, records, kraft_version })
}

fn kraft_version(asked: Option<i16>, dynamic_quorum: bool) -> Result<i16, FormatError> {
    match (asked, dynamic_quorum) {
        (Some(0), true) => Err(FormatError::Terse(
            "Cannot set kraft.version to 0 if controller.quorum.voters is empty and one of the flags --standalone, \
             --initial-controllers, or --no-initial-controllers is used. For dynamic controllers support, try \
             removing the --feature flag for kraft.version."
                .to_owned(),
        )),
        (Some(level), false) if level > 0 => Err(FormatError::Terse(format!(
            "Cannot set kraft.version to {level} unless controller.quorum.voters is empty and one of the flags \
             --standalone, --initial-controllers, or --no-initial-controllers is used. For dynamic controllers \
             support, try using one of --standalone, --initial-controllers, or --no-initial-controllers and removing \
             controller.quorum.voters."
        ))),
        (Some(level), _) => Ok(level),
        (None, dynamic) => Ok(i16::from(dynamic)),
    }
}
