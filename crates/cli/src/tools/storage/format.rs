//! `kafka-storage format`: flags in, sentences out; what is written is decided in `caudal_cluster::format`.

use caudal_cluster::format::{self, FormatError, FormatOptions, InitialController, Quorum};
use caudal_storage::disk::RealDisk;

use super::settings;
use crate::tools::options::Parsed;
use crate::tools::{Stop, say};

fn failed(error: FormatError) -> Stop {
    Stop::Failed(error.to_string())
}

pub fn run(parsed: &Parsed) -> Result<(), Stop> {
    let config = settings(parsed)?;
    if config.get("process.roles").is_none_or(|roles| roles.trim().is_empty()) {
        return Err(Stop::Failed(
            "The kafka configuration file appears to be for a legacy cluster. Formatting is only supported for clusters \
             in KRaft mode."
                .to_owned(),
        ));
    }
    if parsed.has("add-scram") {
        let refused = "--add-scram is not supported yet: add credentials with kafka-configs when the broker runs";
        return Err(Stop::Failed(refused.to_owned()));
    }
    let features = parsed.all("feature").iter().map(|text| format::parse_feature(text));
    let options = FormatOptions {
        cluster_id: parsed.text("cluster-id")?.unwrap_or_default().to_owned(),
        ignore_formatted: parsed.has("ignore-formatted"),
        release_version: parsed.text("release-version")?.map(str::to_owned),
        features: features.collect::<Result<_, _>>().map_err(failed)?,
        quorum: quorum(parsed)?,
    };
    let lines = format::format(&RealDisk, &config, &options).map_err(failed)?;
    lines.iter().try_for_each(|line| say!("{line}"))
}

/// What the command line says of the controllers; at most one of the three options is given.
fn quorum(parsed: &Parsed) -> Result<Quorum, Stop> {
    if parsed.has("standalone") {
        return Ok(Quorum::Standalone);
    }
    if parsed.has("no-initial-controllers") {
        return Ok(Quorum::NoInitial);
    }
    match parsed.text("initial-controllers")? {
        Some(list) => InitialController::parse_list(list).map(Quorum::Initial).map_err(failed),
        None => Ok(Quorum::Configured),
    }
}
