//! Formatting log directories as Apache Kafka 4.3's `kafka-storage.sh` does, with its sentences.
//!
//! A formatted directory has `meta.properties` (version, cluster, node and directory id) and `bootstrap.checkpoint` (the
//! feature levels a new cluster starts with, in the form of a snapshot); the metadata directory of a dynamic quorum's
//! voter also has `__cluster_metadata-0/00000000000000000000-0000000000.checkpoint` with the voters.

mod features;
#[cfg(test)]
mod tests;
mod voters;

use std::path::{Path, PathBuf};

use caudal_protocol::Uuid;
use caudal_protocol::records::control::VotersRecord;
use caudal_protocol::records::metadata::FeatureLevelRecord;
use caudal_storage::Disk;
use caudal_storage::checkpoint::{CheckpointError, MetaProperties};
use caudal_storage::disk::{read_file, replace_file};
use caudal_storage::wall_clock_ms;

pub use features::{
    InitialFeatures, LATEST, MetadataVersion, default_levels, highest_level, initial_features, metadata_changes_between,
};
pub use voters::InitialController;

use crate::config::StaticConfig;
use crate::log::snapshot::{self, SnapshotContents, SnapshotId};
use crate::log::{METADATA_TOPIC, MetadataLogError};
use crate::record::MetadataRecord;

const BOOTSTRAP_FILE: &str = "bootstrap.checkpoint";

/// Why nothing was formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Kafka's own sentence.
    #[error("{0}")]
    Terse(String),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Metadata(#[from] MetadataLogError),
    #[error("failed to write {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Who the first controllers are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Quorum {
    /// No flag: `controller.quorum.voters` must say.
    #[default]
    Configured,
    /// `--standalone`
    Standalone,
    /// `--initial-controllers`
    Initial(Vec<InitialController>),
    /// `--no-initial-controllers`
    NoInitial,
}

/// The flags of `kafka-storage.sh format`.
#[derive(Debug, Clone, Default)]
pub struct FormatOptions {
    pub cluster_id: String,
    pub ignore_formatted: bool,
    pub release_version: Option<String>,
    /// `--feature NAME=LEVEL`
    pub features: Vec<(String, i16)>,
    pub quorum: Quorum,
}

/// Reads `NAME=LEVEL`.
pub fn parse_feature(text: &str) -> Result<(String, i16), FormatError> {
    let failed = |why: String| FormatError::Terse(format!("Can't parse feature=level string {text}: {why}"));
    let (name, level) = text.split_once('=').ok_or_else(|| failed("equals sign not found.".to_owned()))?;
    let level = level.trim();
    let number = level.parse().map_err(|_| failed(format!("unable to parse {level} as a short.")))?;
    Ok((name.trim().to_owned(), number))
}

/// What of a broker's settings formatting needs.
struct Layout {
    node_id: i32,
    controller: bool,
    dirs: Vec<String>,
    metadata_dir: String,
    static_voters: bool,
    controller_listener: String,
}

impl Layout {
    fn of(config: &StaticConfig) -> Layout {
        let list = |name: &str| -> Vec<String> {
            let text = config.value(name).unwrap_or_default();
            text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
        };
        let mut dirs = list("log.dirs");
        if dirs.is_empty() {
            dirs = list("log.dir");
        }
        let first = dirs.first().cloned().unwrap_or_default();
        let metadata_dir = config.get("metadata.log.dir").map_or(first, str::to_owned);
        dirs.push(metadata_dir.clone());
        dirs.sort();
        dirs.dedup();
        let roles = list("process.roles");
        Layout {
            node_id: i32::try_from(config.int("node.id")).unwrap_or(-1),
            // Without roles this is a broker of ours, which is its own controller.
            controller: roles.is_empty() || roles.iter().any(|r| r == "controller"),
            dirs,
            metadata_dir,
            static_voters: !list("controller.quorum.voters").is_empty(),
            controller_listener: list("controller.listener.names")
                .into_iter()
                .next()
                .unwrap_or_else(|| "CONTROLLER".to_owned()),
        }
    }

    /// Host and port of the first listener that is a controller's; `localhost:9093` where none is configured.
    fn controller_address(&self, config: &StaticConfig) -> (String, u16) {
        let prefix = format!("{}://", self.controller_listener);
        let address = ["advertised.listeners", "listeners"].iter().find_map(|key| {
            let text = config.get(key)?.split(',').map(str::trim).find_map(|l| l.strip_prefix(&prefix))?;
            let (host, port) = text.rsplit_once(':')?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some((if host.is_empty() { "localhost" } else { host }.to_owned(), port.parse().ok()?))
        });
        address.unwrap_or_else(|| ("localhost".to_owned(), 9093))
    }
}

/// `kafka-storage.sh format`: formats the directories of a broker's settings that are not formatted yet. Returns the
/// lines that the tool prints.
pub fn format(disk: &dyn Disk, config: &StaticConfig, options: &FormatOptions) -> Result<Vec<String>, FormatError> {
    let layout = Layout::of(config);
    let terse = |text: &str| Err(FormatError::Terse(text.to_owned()));
    if layout.node_id < 0 {
        return terse("You must specify a valid non-negative node ID.");
    }
    if let Some(release) = &options.release_version {
        MetadataVersion::of_release(release)?;
    }
    if layout.static_voters && matches!(options.quorum, Quorum::Standalone | Quorum::Initial(_)) {
        return terse(
            "You cannot specify controller.quorum.voters and format the node with --initial-controllers or \
             --standalone. If you want to use dynamic quorum, please remove controller.quorum.voters and specify \
             controller.quorum.bootstrap.servers instead.",
        );
    }
    if options.quorum == Quorum::Standalone && !layout.controller {
        return terse("You can only use --standalone on a controller.");
    }
    if options.quorum == Quorum::Configured && layout.controller && !layout.static_voters {
        return terse(
            "Because controller.quorum.voters is not set on this controller, you must specify one of the following: \
             --standalone, --initial-controllers, or --no-initial-controllers.",
        );
    }
    let initial = match &options.quorum {
        Quorum::Standalone => {
            let (host, port) = layout.controller_address(config);
            Some(vec![InitialController { id: layout.node_id, host, port, directory_id: Uuid::random() }])
        }
        Quorum::Initial(list) => Some(list.clone()),
        Quorum::Configured | Quorum::NoInitial => None,
    };
    let features = initial_features(options.release_version.as_deref(), &options.features, !layout.static_voters)?;
    let empty = unformatted(disk, &layout, options)?;
    if empty.is_empty() {
        return Ok(vec!["All of the log directories are already formatted.".to_owned()]);
    }
    let mut lines = vec![describe(&features)];
    for dir in empty {
        lines.push(format_directory(disk, &layout, options, &features, initial.as_deref(), &dir)?);
    }
    Ok(lines)
}

/// The directories to format, once those that are formatted were found to belong to this node.
fn unformatted(disk: &dyn Disk, layout: &Layout, options: &FormatOptions) -> Result<Vec<String>, FormatError> {
    let mut empty = Vec::new();
    let mut formatted = None;
    for dir in &layout.dirs {
        let path = Path::new(dir);
        let Some(meta) = MetaProperties::read(disk, path)? else {
            empty.push(dir.clone());
            continue;
        };
        let file = path.join("meta.properties");
        if meta.cluster_id != options.cluster_id {
            return Err(FormatError::Terse(format!(
                "Invalid cluster.id in: {}. Expected {}, but read {}",
                file.display(),
                options.cluster_id,
                meta.cluster_id
            )));
        }
        if meta.node_id != layout.node_id {
            return Err(FormatError::Terse(format!(
                "Stored node id {} doesn't match previous node id {} in {}. If you moved your data, make sure your \
                 configured node id matches. If you intend to create a new node, you should remove all data in your \
                 data directories.",
                meta.node_id,
                layout.node_id,
                file.display()
            )));
        }
        formatted.get_or_insert(dir);
    }
    match formatted {
        Some(dir) if !options.ignore_formatted => Err(FormatError::Terse(format!(
            "Log directory {dir} is already formatted. Use --ignore-formatted to ignore this directory and format the \
             others."
        ))),
        _ => Ok(empty),
    }
}

fn format_directory(
    disk: &dyn Disk,
    layout: &Layout,
    options: &FormatOptions,
    features: &InitialFeatures,
    initial: Option<&[InitialController]>,
    dir: &str,
) -> Result<String, FormatError> {
    let path = Path::new(dir);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| FormatError::Io { path, source }
    };
    let metadata = dir == layout.metadata_dir;
    let me = initial.and_then(|list| list.iter().find(|c| c.id == layout.node_id));
    let kind = match (metadata, initial, me) {
        (false, _, _) => "data directory",
        (true, None, _) => "metadata directory",
        (true, Some(_), Some(_)) => "dynamic metadata voter directory",
        (true, Some(_), None) => "dynamic metadata directory",
    };
    let directory_id = me.filter(|_| metadata).map_or_else(Uuid::random, |c| c.directory_id);
    disk.create_dir_all(path).map_err(io(path))?;
    let now_ms = wall_clock_ms();
    let bootstrap = SnapshotContents {
        records: features.records.iter().cloned().map(MetadataRecord::from).collect(),
        ..SnapshotContents::default()
    };
    let file = path.join(BOOTSTRAP_FILE);
    replace_file(disk, &file, &snapshot::encode(&bootstrap, 0, 0, now_ms)?).map_err(io(&file))?;
    if let (true, Some(list)) = (metadata && layout.controller, initial) {
        let partition = path.join(format!("{METADATA_TOPIC}-0"));
        disk.create_dir_all(&partition).map_err(io(&partition))?;
        let voters = voters::record(list, &layout.controller_listener);
        let contents =
            SnapshotContents { records: Vec::new(), kraft_version: features.kraft_version, voters: Some(voters) };
        snapshot::write(disk, &partition, SnapshotId::BOOTSTRAP, &contents, now_ms, now_ms)?;
    }
    // Last: with it, the directory counts as formatted.
    let meta = MetaProperties {
        cluster_id: options.cluster_id.clone(),
        node_id: layout.node_id,
        directory_id: Some(directory_id),
    };
    meta.write(disk, path)?;
    Ok(format!("Formatting {kind} {dir} with metadata.version {}.", features.release.name))
}

/// The line by which Kafka tells what a new cluster starts with.
fn describe(features: &InitialFeatures) -> String {
    let record = |r: &FeatureLevelRecord| {
        format!(
            "ApiMessageAndVersion(FeatureLevelRecord(name='{}', featureLevel={}) at version 0)",
            r.name, r.feature_level
        )
    };
    let records: Vec<String> = features.records.iter().map(record).collect();
    format!(
        "Bootstrap metadata: BootstrapMetadata(records=[{}], metadataVersionLevel={}, source=format command)",
        records.join(", "),
        features.release.level
    )
}

/// Formats a new directory of a node that is everything itself, as `caudal up` does: a dynamic quorum of one.
pub fn format_standalone(disk: &dyn Disk, dir: &Path, node_id: i32) -> Result<MetaProperties, FormatError> {
    let mut config = StaticConfig::default();
    config.set("node.id", node_id.to_string());
    config.set("log.dirs", dir.display().to_string());
    let options = FormatOptions {
        cluster_id: Uuid::random().to_string(),
        quorum: Quorum::Standalone,
        ..FormatOptions::default()
    };
    let layout = Layout { dirs: Vec::new(), metadata_dir: dir.display().to_string(), ..Layout::of(&config) };
    let (host, port) = layout.controller_address(&config);
    let controller = InitialController { id: node_id, host, port, directory_id: Uuid::random() };
    let features = initial_features(None, &[], true)?;
    let list = [controller];
    format_directory(disk, &layout, &options, &features, Some(&list), &layout.metadata_dir)?;
    let missing = || FormatError::Terse(format!("{} was not formatted", dir.display()));
    MetaProperties::read(disk, dir)?.ok_or_else(missing)
}

/// The voters of a quorum of one that becomes a dynamic one: this node, where `controller.quorum.voters` has it.
pub fn own_voters(config: &StaticConfig, directory_id: Uuid) -> VotersRecord {
    let layout = Layout::of(config);
    let listed = config.get("controller.quorum.voters").and_then(|text| {
        let (host, port) = text.split(',').next()?.split_once('@')?.1.rsplit_once(':')?;
        Some((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port.trim().parse().ok()?))
    });
    let (host, port) = listed.unwrap_or_else(|| layout.controller_address(config));
    let controller = InitialController { id: layout.node_id, host, port, directory_id };
    voters::record(&[controller], &layout.controller_listener)
}

/// The feature levels that formatting left for the first start; those of release 4.3 where there is no
/// `bootstrap.checkpoint`.
pub fn bootstrap_features(disk: &dyn Disk, dir: &Path) -> Result<Vec<FeatureLevelRecord>, FormatError> {
    let path = dir.join(BOOTSTRAP_FILE);
    let io = |source| FormatError::Io { path: path.clone(), source };
    if !disk.exists(&path).map_err(io)? {
        return Ok(initial_features(None, &[], false)?.records);
    }
    let contents = snapshot::decode(read_file(disk, &path).map_err(io)?.into(), &path)?;
    let level = |record| match record {
        MetadataRecord::FeatureLevel(level) => Some(level),
        _ => None,
    };
    Ok(contents.records.into_iter().filter_map(level).collect())
}

/// `kafka-storage.sh info`: the lines it prints, and whether all is well.
pub fn info(disk: &dyn Disk, config: &StaticConfig) -> (Vec<String>, bool) {
    let dirs = Layout::of(config).dirs;
    let (mut found, mut problems): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut first: Option<MetaProperties> = None;
    for dir in &dirs {
        let path = Path::new(dir);
        if disk.list(path).is_err() {
            let exists = disk.exists(path).unwrap_or(false);
            problems.push(format!("{dir} {}", if exists { "is not a directory" } else { "does not exist" }));
            continue;
        }
        found.push(dir.clone());
        match (MetaProperties::read(disk, path), &first) {
            (Err(error), _) => {
                problems.push(format!("Error loading {}: {error}", path.join("meta.properties").display()));
            }
            (Ok(None), _) => problems.push(format!("{dir} is not formatted.")),
            (Ok(Some(meta)), None) => first = Some(meta),
            (Ok(Some(meta)), Some(before)) if before.cluster_id != meta.cluster_id => {
                problems.push("Mismatched cluster IDs between storage directories.".to_owned());
            }
            (Ok(Some(meta)), Some(before)) if before.node_id != meta.node_id => {
                problems.push("Mismatched node IDs between storage directories.".to_owned());
            }
            _ => {}
        }
    }
    let mut lines = Vec::new();
    section(&mut lines, "Found log directory:", "Found log directories:", &found);
    if let Some(meta) = first {
        let directory = meta.directory_id.map(|id| format!("directory.id={id}, ")).unwrap_or_default();
        lines.push(format!(
            "Found metadata: {{cluster.id={}, {directory}node.id={}, version=1}}",
            meta.cluster_id, meta.node_id
        ));
        lines.push(String::new());
    }
    section(&mut lines, "Found problem:", "Found problems:", &problems);
    (lines, problems.is_empty())
}

/// A heading and the items below it, if there are any.
fn section(lines: &mut Vec<String>, one: &str, many: &str, items: &[String]) {
    if !items.is_empty() {
        lines.push(if items.len() == 1 { one } else { many }.to_owned());
        lines.extend(items.iter().map(|item| format!("  {item}")));
        lines.push(String::new());
    }
}
