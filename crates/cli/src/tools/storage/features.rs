//! What `kafka-storage` tells about the features of Kafka's releases.

use caudal_cluster::format::{FormatError, LATEST, MetadataVersion, default_levels, highest_level};

use crate::tools::options::Parsed;
use crate::tools::{Stop, say};

fn failed(error: FormatError) -> Stop {
    Stop::Failed(error.to_string())
}

pub fn version_mapping(parsed: &Parsed) -> Result<(), Stop> {
    let wanted = parsed.text("release-version")?.unwrap_or(LATEST.name);
    let version = MetadataVersion::of_release(wanted).map_err(failed)?;
    say!("metadata.version={} ({wanted})", version.level)?;
    default_levels(version.level).into_iter().try_for_each(|(name, level)| say!("{name}={level}"))
}

/// `name=level`
fn name_and_level(text: &str) -> Result<(&str, i16), Stop> {
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

pub fn dependencies(parsed: &Parsed) -> Result<(), Stop> {
    parsed.all("feature").iter().try_for_each(|feature| {
        let (name, level) = name_and_level(feature)?;
        print_dependencies(name, level)
    })
}

/// Prints which levels of other features a level of a feature needs.
pub fn print_dependencies(name: &str, level: i16) -> Result<(), Stop> {
    if name == "metadata.version" {
        let unknown = |_| Stop::Failed(format!("Unknown metadata.version {level}"));
        let version = MetadataVersion::of_level(level).map_err(unknown)?;
        return say!("{name}={level} ({}) has no dependencies.", version.name);
    }
    let Some(max) = highest_level(name) else { return Err(Stop::Failed(format!("Unknown feature: {name}"))) };
    if !(0..=max).contains(&level) {
        return Err(Stop::Failed(format!("Feature level {level} is not supported for feature {name}")));
    }
    if name == "eligible.leader.replicas.version" && level == 1 {
        say!("{name}={level} requires:\n    metadata.version=23 (4.0-IV1)")
    } else {
        say!("{name}={level} has no dependencies.")
    }
}
