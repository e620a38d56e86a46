//! Opening the directories: which of them are used, which are offline.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_cluster::format::FormatError;
use caudal_protocol::Uuid;
use caudal_storage::checkpoint::MetaProperties;
use caudal_storage::{Disk, LogConfig, LogDir, LogDirConfig, Offline, OpenError, RecoveryReport};

use super::{Dir, LogDirs};
use crate::broker::StartError;
use crate::config::BrokerConfig;
use crate::data_dir::{self, DataDirError};

/// The directory of the metadata log, without which nothing is served.
#[derive(Debug)]
pub struct OpenedMetadataDir {
    pub log_dir: Arc<LogDir>,
    pub meta: MetaProperties,
    pub report: RecoveryReport,
    /// Those of the others.
    settings: LogDirConfig,
}

/// What opening the others found.
#[derive(Debug)]
pub struct OpenedDirs {
    pub dirs: LogDirs,
    /// Each with its path.
    pub reports: Vec<(PathBuf, RecoveryReport)>,
}

fn log_dir_config(config: &BrokerConfig) -> LogDirConfig {
    LogDirConfig {
        flush_before_ack: config.flush_before_ack,
        producer_id_expiration_ms: config.properties.int("producer.id.expiration.ms"),
        recovery_threads: usize::try_from(config.properties.int("num.recovery.threads.per.data.dir")).unwrap_or(1),
        // Nothing is deleted of a log that no partition claims.
        log: LogConfig { cleanup_delete: false, ..LogConfig::default() },
        ..LogDirConfig::default()
    }
}

/// Opens the directory of the metadata log; formats it if it is new and the settings say so.
///
/// # Errors
/// It cannot be used.
pub fn open_metadata_dir(config: &BrokerConfig, disk: &Arc<dyn Disk>) -> Result<OpenedMetadataDir, StartError> {
    let dir = &config.log_dir;
    let formatted = read_meta(config, disk, dir, None)?;
    if formatted.is_none() {
        if !config.format_if_empty {
            return Err(StartError::NotFormatted { dir: dir.clone() });
        }
        data_dir::check_unused(disk.as_ref(), dir)?;
    }
    let settings = log_dir_config(config);
    let (log_dir, report) = LogDir::open(dir, settings.clone(), disk.clone())?;
    // Under the directory's lock, so that two that start at once do not format it differently.
    let meta = match formatted {
        Some(meta) => with_id(meta, disk, dir)?,
        None => {
            data_dir::check_formattable(&log_dir, config.node_id)?;
            caudal_cluster::format::format_standalone(disk.as_ref(), dir, config.node_id)?
        }
    };
    Ok(OpenedMetadataDir { log_dir: Arc::new(log_dir), meta, report, settings })
}

/// Opens the directories of partitions. One that cannot be used is offline, as in Kafka. One that is not formatted is, unless a
/// directory is missing that partitions lie in: then it is taken for the place where the disk of that one is not mounted.
///
/// # Errors
/// None can be used; or one belongs to somebody else, or is one of the others once more: the settings are wrong.
pub fn open(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    metadata: OpenedMetadataDir,
    image: &MetadataImage,
) -> Result<OpenedDirs, StartError> {
    let OpenedMetadataDir { log_dir: metadata, meta, report, settings } = metadata;
    let mut reports = vec![(config.log_dir.clone(), report)];
    let others = config.partition_dirs().iter().filter(|dir| **dir != config.log_dir);
    let mut found: Vec<(&PathBuf, Result<Option<MetaProperties>, DataDirError>)> = Vec::new();
    for path in others {
        let read = match read_meta(config, disk, path, Some(&meta)) {
            Err(StartError::DataDir(error)) => Err(error),
            read => Ok(read?),
        };
        found.push((path, read));
    }
    let mut ids = vec![(&config.log_dir, meta.directory_id)];
    ids.extend(found.iter().filter_map(|(path, read)| Some((*path, read.as_ref().ok()?.as_ref()?.directory_id))));
    check_ids(&ids)?;
    let known: BTreeSet<Uuid> = ids.iter().filter_map(|(_, id)| *id).collect();
    let missing = missing_directory(image, config.node_id, &known);
    let mut places = Vec::new();
    for path in config.partition_dirs() {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        if *path == config.log_dir {
            let id = meta.directory_id.unwrap_or(Uuid::ZERO);
            places.push(Ok(Dir { id, path: absolute, log_dir: metadata.clone() }));
            continue;
        }
        let Some(at) = found.iter().position(|(other, _)| *other == path) else { continue };
        let (_, read) = found.swap_remove(at);
        let opened = read.and_then(|own| {
            if let (None, Some(directory)) = (&own, missing) {
                data_dir::check_unused(disk.as_ref(), path)?;
                return Err(DataDirError::PerhapsNotMounted { dir: path.to_owned(), directory });
            }
            open_one(disk, path, own, &meta, settings.clone())
        });
        places.push(match opened {
            Ok((id, log_dir, report)) => {
                reports.push((path.clone(), report));
                Ok(Dir { id, path: absolute, log_dir: Arc::new(log_dir) })
            }
            Err(error) if is_of_the_settings(&error) => return Err(error.into()),
            Err(error) => Err(started_without(absolute, &error)),
        });
    }
    if places.iter().all(Result::is_err) {
        let reasons: Vec<String> =
            places.iter().filter_map(|place| Some(place.as_ref().err()?.reason.clone())).collect();
        return Err(StartError::NoDirectory { reasons: reasons.join("; ") });
    }
    Ok(OpenedDirs { dirs: LogDirs::new(metadata, places), reports })
}

/// Tells of a directory that cannot be used.
pub(super) fn started_without(dir: PathBuf, error: &dyn std::error::Error) -> Offline {
    let offline = Offline { dir, reason: error.to_string() };
    tracing::error!("{offline}. The broker starts without it: partitions that lie there are not served");
    offline
}

type Opened = (Uuid, LogDir, RecoveryReport);

/// `own`: what `meta.properties` says, of an unformatted one nothing; with that of the metadata directory.
fn open_one(
    disk: &Arc<dyn Disk>,
    path: &Path,
    own: Option<MetaProperties>,
    meta: &MetaProperties,
    settings: LogDirConfig,
) -> Result<Opened, DataDirError> {
    if own.is_none() {
        data_dir::check_unused(disk.as_ref(), path)?;
    }
    let (log_dir, report) = LogDir::open(path, settings, disk.clone())?;
    let own = match own {
        Some(own) => with_id(own, disk, path)?,
        None => {
            data_dir::check_formattable(&log_dir, meta.node_id)?;
            let own = MetaProperties { directory_id: Some(Uuid::random()), ..meta.clone() };
            own.write(disk.as_ref(), path)?;
            tracing::info!(dir = %path.display(), "formatted a new log directory");
            own
        }
    };
    Ok((own.directory_id.unwrap_or(Uuid::ZERO), log_dir, report))
}

/// A directory that another process uses, or that is somebody's home, is not one that failed.
fn is_of_the_settings(error: &DataDirError) -> bool {
    match error {
        DataDirError::Foreign { .. } => true,
        DataDirError::Open(error) => matches!(error, OpenError::Locked { .. }) || error.is_exhausted(),
        _ => false,
    }
}

/// Directories of older versions have no id: they get one, as in Kafka.
fn with_id(meta: MetaProperties, disk: &Arc<dyn Disk>, dir: &Path) -> Result<MetaProperties, DataDirError> {
    if meta.directory_id.is_some() {
        return Ok(meta);
    }
    let meta = MetaProperties { directory_id: Some(Uuid::random()), ..meta };
    meta.write(disk.as_ref(), dir)?;
    Ok(meta)
}

/// Two directories with one id are copies of each other.
fn check_ids(ids: &[(&PathBuf, Option<Uuid>)]) -> Result<(), StartError> {
    for (at, (dir, id)) in ids.iter().enumerate() {
        let twin = ids.iter().take(at).find(|(_, other)| id.is_some() && other == id);
        if let (Some((other, _)), Some(id)) = (twin, id) {
            let (dir, other) = ((*dir).clone(), (*other).clone());
            return Err(StartError::SameId { dir, other, id: *id });
        }
    }
    Ok(())
}

/// A directory that partitions of this node lie in, or that it had at its last start, and that is not among `known`.
fn missing_directory(image: &MetadataImage, node_id: i32, known: &BTreeSet<Uuid>) -> Option<Uuid> {
    let partitions = image.topics().flat_map(|topic| topic.partitions.values());
    let registered = image.broker(node_id).map(|broker| broker.log_dirs.clone()).unwrap_or_default();
    let mut named = partitions.filter_map(|partition| partition.directory_of(node_id)).chain(registered);
    named.find(|id| !id.is_zero() && !known.contains(id))
}

/// Reads `meta.properties` of a directory and whether it belongs here; `None`: it is not formatted.
fn read_meta(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    dir: &Path,
    cluster: Option<&MetaProperties>,
) -> Result<Option<MetaProperties>, StartError> {
    let Some(meta) = data_dir::read_meta(disk.as_ref(), dir)? else { return Ok(None) };
    if meta.node_id != config.node_id {
        return Err(StartError::OtherNode { dir: dir.to_owned(), found: meta.node_id, wanted: config.node_id });
    }
    if let Some(cluster) = cluster.filter(|cluster| cluster.cluster_id != meta.cluster_id) {
        let reason = format!(
            "failed to open {}: it belongs to the cluster {}, and {} to {}; correct log.dirs",
            dir.display(),
            meta.cluster_id,
            config.log_dir.display(),
            cluster.cluster_id
        );
        return Err(StartError::Format(FormatError::Terse(reason)));
    }
    Ok(Some(meta))
}
