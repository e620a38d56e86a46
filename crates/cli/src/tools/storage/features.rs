//! The features of Kafka's releases: which level each has by default.

use crate::tools::options::Parsed;
use crate::tools::{Stop, say};

/// Metadata versions: level and name. The first is the oldest that Kafka 4.3 can be formatted with.
const RELEASES: &[(i16, &str)] = &[
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

/// Features beside `metadata.version`: name, highest level, and from which metadata version that is the default.
const FEATURES: &[(&str, i16, i16)] = &[
    ("kraft.version", 1, 21),
    ("transaction.version", 2, 24),
    ("group.version", 1, 22),
    ("eligible.leader.replicas.version", 1, 26),
    ("share.version", 1, 28),
    ("streams.version", 1, 29),
];

/// The metadata version of a release name: `4.3-IV0`, or `4.3` for the newest of that release.
pub fn release(name: &str) -> Result<(i16, &'static str), Stop> {
    let newest = RELEASES.iter().rev();
    let mut matching =
        newest.filter(|(_, n)| *n == name || n.split_once('-').is_some_and(|(release, _)| release == name));
    matching.next().copied().ok_or_else(|| {
        Stop::Failed(format!("Unknown metadata.version '{name}'. Supported metadata.version are: 3.3-IV3 to 4.3-IV0"))
    })
}

/// The newest release.
pub const LATEST: &str = "4.3-IV0";

/// All features of a metadata version with their default levels, as `format` writes them: those above 0, by name, without
/// `kraft.version`, which is not a record of the metadata.
pub fn levels(metadata_version: i16) -> Vec<(String, i16)> {
    let mut levels = defaults(metadata_version);
    levels.retain(|(name, level)| *name != "kraft.version" && *level > 0);
    levels.sort();
    let rest = levels.into_iter().map(|(name, level)| (name.to_owned(), level));
    std::iter::once(("metadata.version".to_owned(), metadata_version)).chain(rest).collect()
}

fn defaults(metadata_version: i16) -> Vec<(&'static str, i16)> {
    FEATURES.iter().map(|(name, level, from)| (*name, if metadata_version >= *from { *level } else { 0 })).collect()
}

pub fn version_mapping(parsed: &Parsed) -> Result<(), Stop> {
    let wanted = parsed.text("release-version")?.unwrap_or(LATEST);
    let (level, _) = release(wanted)?;
    say!("metadata.version={level} ({wanted})")?;
    defaults(level).into_iter().try_for_each(|(name, level)| say!("{name}={level}"))
}

/// `name=level`
pub fn name_and_level(text: &str) -> Result<(&str, i16), Stop> {
    let Some((name, level)) = text.split_once('=') else {
        return Err(Stop::Failed(format!(
            "Invalid feature format: {text}. Expected format: 'feature=version' (e.g. 'group.version=1')"
        )));
    };
    let (name, level) = (name.trim(), level.trim());
    let level =
        level.parse().map_err(|_| Stop::Failed(format!("Invalid version format: {level} for feature {name}")))?;
    Ok((name, level))
}

/// The highest level of a feature.
pub fn highest(name: &str) -> Option<i16> {
    FEATURES.iter().find(|(n, ..)| *n == name).map(|(_, level, _)| *level)
}

pub fn dependencies(parsed: &Parsed) -> Result<(), Stop> {
    for feature in parsed.all("feature") {
        let (name, level) = name_and_level(feature)?;
        if name == "metadata.version" {
            let release = RELEASES.iter().find(|(l, _)| *l == level).map(|(_, n)| n);
            let unknown = || Stop::Failed(format!("Unknown metadata.version {level}"));
            say!("{name}={level} ({}) has no dependencies.", release.ok_or_else(unknown)?)?;
            continue;
        }
        let Some(max) = highest(name) else { return Err(Stop::Failed(format!("Unknown feature: {name}"))) };
        if !(0..=max).contains(&level) {
            return Err(Stop::Failed(format!("Feature level {level} is not supported for feature {name}")));
        }
        if name == "eligible.leader.replicas.version" && level == 1 {
            say!("{name}={level} requires:\n    metadata.version=23 (4.0-IV1)")?;
        } else {
            say!("{name}={level} has no dependencies.")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_kafkas() {
        let names: Vec<String> = levels(30).iter().map(|(n, l)| format!("{n}={l}")).collect();
        assert_eq!(
            names.join(" "),
            "metadata.version=30 eligible.leader.replicas.version=1 group.version=1 share.version=1 streams.version=1 \
             transaction.version=2"
        );
        assert_eq!(levels(21), [("metadata.version".to_owned(), 21)]);
        assert_eq!(release("3.7").unwrap(), (19, "3.7-IV4"));
        assert!(release("2.8").is_err());
    }
}
