//! `kafka-storage format`: `meta.properties`, the bootstrap checkpoint and, for a dynamic quorum, its first snapshot.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use caudal_cluster::log::{SnapshotContents, SnapshotId, single_voter, snapshot};
use caudal_protocol::Uuid;
use caudal_protocol::records::metadata::FeatureLevelRecord;
use caudal_storage::checkpoint::{META_PROPERTIES, MetaProperties};
use caudal_storage::disk::{RealDisk, replace_file};

use super::{Node, features, node};
use crate::tools::options::Parsed;
use crate::tools::{Stop, say};

/// The features that a new cluster begins with.
const BOOTSTRAP_CHECKPOINT: &str = "bootstrap.checkpoint";

fn fail<T>(sentence: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Failed(sentence.into()))
}

pub fn run(parsed: &Parsed) -> Result<(), Stop> {
    let node = node(parsed)?;
    let cluster_id = parsed.text("cluster-id")?.unwrap_or_default();
    check(parsed, &node)?;
    let (version, name) = features::release(parsed.text("release-version")?.unwrap_or(features::LATEST))?;
    let levels = levels(parsed, version)?;
    let mut unformatted = Vec::new();
    for dir in &node.dirs {
        let Some(found) = MetaProperties::read(&RealDisk, dir).map_err(|e| Stop::Failed(e.to_string()))? else {
            unformatted.push(dir);
            continue;
        };
        let file = dir.join(META_PROPERTIES).display().to_string();
        if found.cluster_id != cluster_id {
            return fail(format!(
                "Invalid cluster.id in: {file}. Expected {cluster_id}, but read {}",
                found.cluster_id
            ));
        }
        if found.node_id != node.id {
            return fail(format!(
                "Stored node id {} doesn't match previous node id {} in {file}",
                node.id, found.node_id
            ));
        }
        if !parsed.has("ignore-formatted") {
            return fail(format!(
                "Log directory {} is already formatted. Use --ignore-formatted to ignore this directory and format the others.",
                dir.display()
            ));
        }
    }
    if unformatted.is_empty() {
        return say!("All of the log directories are already formatted.");
    }
    say!("Bootstrap metadata: {}", bootstrap_text(&levels, version))?;
    for dir in unformatted {
        let directory_id = Uuid::random();
        let is_metadata = *dir == node.metadata_dir;
        let is_voter = is_metadata && parsed.has("standalone");
        let what = match (is_metadata, is_voter) {
            (false, _) => "data directory",
            (true, false) => "metadata directory",
            (true, true) => "dynamic metadata voter directory",
        };
        say!("Formatting {what} {} with metadata.version {name}.", dir.display())?;
        write_bootstrap(dir, &levels)?;
        if is_voter {
            write_voters(dir, &node, directory_id)?;
        }
        // Last: a directory counts as formatted once this is there.
        let meta =
            MetaProperties { cluster_id: cluster_id.to_owned(), node_id: node.id, directory_id: Some(directory_id) };
        meta.write(&RealDisk, dir).map_err(|e| Stop::Failed(e.to_string()))?;
    }
    Ok(())
}

fn check(parsed: &Parsed, node: &Node) -> Result<(), Stop> {
    let roles = node.properties.get("process.roles").unwrap_or_default();
    if roles.trim().is_empty() {
        return fail(
            "The kafka configuration file appears to be for a legacy cluster. Formatting is only supported for clusters in \
             KRaft mode.",
        );
    }
    if parsed.has("add-scram") {
        return fail("--add-scram is not supported yet: this version has no SCRAM credentials");
    }
    let exclusive = ["standalone", "no-initial-controllers", "initial-controllers"];
    if exclusive.iter().filter(|o| parsed.has(o)).count() > 1 {
        return fail("Only one of --standalone, --no-initial-controllers and --initial-controllers can be given");
    }
    let has_voters = node.properties.get("controller.quorum.voters").is_some_and(|v| !v.trim().is_empty());
    if has_voters && (parsed.has("standalone") || parsed.has("initial-controllers")) {
        return fail(
            "You cannot specify controller.quorum.voters and format the node with --initial-controllers or --standalone. If \
             you want to use dynamic quorum, please remove controller.quorum.voters and specify \
             controller.quorum.bootstrap.servers instead.",
        );
    }
    if parsed.has("initial-controllers") {
        return fail("--initial-controllers is not supported yet: this version runs one controller; use --standalone");
    }
    let is_controller = roles.split(',').any(|r| r.trim() == "controller");
    if parsed.has("standalone") && !is_controller {
        return fail("You can only use --standalone on a controller.");
    }
    if is_controller && !has_voters && !parsed.has("standalone") && !parsed.has("no-initial-controllers") {
        return fail(
            "Because controller.quorum.voters is not set on this controller, you must specify one of the following: \
             --standalone, --initial-controllers, or --no-initial-controllers.",
        );
    }
    if node.id < 0 {
        return fail("You must set node.id (a number from 0) in the properties file.");
    }
    Ok(())
}

/// The features to begin with: the release's, changed by `--feature`.
fn levels(parsed: &Parsed, version: i16) -> Result<Vec<(String, i16)>, Stop> {
    let mut levels = features::levels(version);
    for text in parsed.all("feature") {
        let (name, level) = features::name_and_level(text)?;
        let Some(max) = features::highest(name) else { return fail(format!("Unsupported feature: {name}")) };
        if !(0..=max).contains(&level) {
            return fail(format!("Unsupported {name} {level}; it can be 0 to {max}"));
        }
        levels.retain(|(n, _)| n != name);
        if level > 0 && name != "kraft.version" {
            levels.push((name.to_owned(), level));
        }
    }
    if let Some(rest) = levels.get_mut(1..) {
        rest.sort();
    }
    Ok(levels)
}

/// What the original prints: its records as Java shows them.
fn bootstrap_text(levels: &[(String, i16)], version: i16) -> String {
    let record = |(name, level): &(String, i16)| {
        format!("ApiMessageAndVersion(FeatureLevelRecord(name='{name}', featureLevel={level}) at version 0)")
    };
    let records = levels.iter().map(record).collect::<Vec<_>>().join(", ");
    format!("BootstrapMetadata(records=[{records}], metadataVersionLevel={version}, source=format command)")
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis()).unwrap_or_default();
    i64::try_from(now).unwrap_or(0)
}

fn write_bootstrap(dir: &Path, levels: &[(String, i16)]) -> Result<(), Stop> {
    let failed = |e: &dyn std::fmt::Display| {
        Stop::Failed(format!("Error while writing {}: {e}", dir.join(BOOTSTRAP_CHECKPOINT).display()))
    };
    std::fs::create_dir_all(dir).map_err(|e| failed(&e))?;
    let record = |(name, level): &(String, i16)| FeatureLevelRecord { name: name.clone(), feature_level: *level };
    let contents =
        SnapshotContents { records: levels.iter().map(|l| record(l).into()).collect(), kraft_version: 0, voters: None };
    let bytes = snapshot::encode(&contents, 0, 0, now_ms()).map_err(|e| failed(&e))?;
    replace_file(&RealDisk, &dir.join(BOOTSTRAP_CHECKPOINT), &bytes).map_err(|e| failed(&e))
}

/// The snapshot that names this node as the only voter.
fn write_voters(dir: &Path, node: &Node, directory_id: Uuid) -> Result<(), Stop> {
    let names = node.properties.get("controller.listener.names").unwrap_or("CONTROLLER");
    let listener = names.split(',').next().unwrap_or_default().trim();
    let all = ["advertised.listeners", "listeners"].iter().filter_map(|key| node.properties.get(key));
    let found = all.flat_map(|l| l.split(',')).map(str::trim).find_map(|l| l.strip_prefix(&format!("{listener}://")));
    let address =
        found.and_then(|a| a.rsplit_once(':')).and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = address else { return fail("No controller listeners found.") };
    let host = if host.is_empty() { "localhost" } else { host };
    let contents = SnapshotContents {
        records: Vec::new(),
        kraft_version: 1,
        voters: Some(single_voter(node.id, directory_id, listener, host, port)),
    };
    let log = dir.join("__cluster_metadata-0");
    let failed = |e: &dyn std::fmt::Display| Stop::Failed(format!("Error while writing into {}: {e}", log.display()));
    std::fs::create_dir_all(&log).map_err(|e| failed(&e))?;
    snapshot::write(&RealDisk, &log, SnapshotId::BOOTSTRAP, &contents, 0, now_ms()).map_err(|e| failed(&e))
}
