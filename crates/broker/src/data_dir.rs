//! Directories that are not formatted: those that hold other things, and those that have lost their `meta.properties`.

use std::io;
use std::path::{Path, PathBuf};

use caudal_cluster::log::METADATA_TOPIC;
use caudal_protocol::Uuid;
use caudal_storage::checkpoint::{CheckpointError, MetaProperties};
use caudal_storage::disk::Entry;
use caudal_storage::{Disk, LogDir, OpenError, is_set_aside};

/// Why a directory is not used. Nothing in it was touched.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error(
        "failed to use {dir} as a data directory: it is not empty and was none before, it holds {names}. Choose an empty or a \
         new directory (--data-dir of `caudal up`, log.dirs in a properties file)"
    )]
    Foreign { dir: PathBuf, names: String },
    #[error(
        "failed to open {dir}: it holds {logs} partitions but no meta.properties. Restore that file from a backup, or write it \
         anew with the three lines version=1, node.id={node_id} and cluster.id=CLUSTER"
    )]
    NoMetaProperties { dir: PathBuf, logs: usize, node_id: i32 },
    #[error(
        "failed to use {dir}: it is not formatted, and the directory with the id {directory}, in which partitions lie, is not there. \
         Mount the disk of that one, or correct log.dirs. If this is to be a new directory all the same, format it \
         (`caudal kafka-storage format --ignore-formatted`)"
    )]
    PerhapsNotMounted { dir: PathBuf, directory: Uuid },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Files of a log directory that do not begin with a dot, beside partitions.
const FILES: [&str; 8] = [
    "meta.properties",
    "bootstrap.checkpoint",
    "recovery-point-offset-checkpoint",
    "replication-offset-checkpoint",
    "log-start-offset-checkpoint",
    "cleaner-offset-checkpoint",
    caudal_storage::checkpoint::RETENTION_CLOCK,
    "lost+found",
];
/// Foreign names that are told.
const NAMED_MOST: usize = 3;

/// Reads `meta.properties`; `None` when the directory is not formatted.
pub fn read_meta(disk: &dyn Disk, dir: &Path) -> Result<Option<MetaProperties>, DataDirError> {
    MetaProperties::read(disk, dir).map_err(|error| match error {
        CheckpointError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            OpenError::NotWritable { dir: dir.to_owned(), source }.into()
        }
        error => error.into(),
    })
}

/// Refuses to make a data directory of one that somebody uses for other things.
pub fn check_unused(disk: &dyn Disk, dir: &Path) -> Result<(), DataDirError> {
    let entries = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            return Err(OpenError::NotWritable { dir: dir.to_owned(), source }.into());
        }
        entries => entries.map_err(|source| OpenError::Dir { dir: dir.to_owned(), source })?,
    };
    let mut foreign = Vec::new();
    for entry in &entries {
        let own = is_own(disk, dir, entry).map_err(|source| OpenError::Dir { dir: dir.to_owned(), source })?;
        if !own {
            foreign.push(entry.name.as_str());
        }
    }
    if foreign.is_empty() {
        return Ok(());
    }
    foreign.sort_unstable();
    let more = foreign.len().saturating_sub(NAMED_MOST);
    foreign.truncate(NAMED_MOST);
    let mut names = foreign.join(", ");
    if more > 0 {
        names.push_str(&format!(" and {more} more"));
    }
    Err(DataDirError::Foreign { dir: dir.to_owned(), names })
}

fn is_own(disk: &dyn Disk, dir: &Path, entry: &Entry) -> io::Result<bool> {
    let name = entry.name.as_str();
    let file = name.strip_suffix(".tmp").unwrap_or(name);
    if name.starts_with('.') || FILES.contains(&file) || (entry.is_dir && is_set_aside(name)) {
        return Ok(true);
    }
    // TOPIC-PARTITION; formatting that was interrupted may leave an empty one for the metadata log.
    let Some((topic, partition)) = name.rsplit_once('-') else { return Ok(false) };
    if !entry.is_dir || partition.is_empty() || !partition.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(false);
    }
    Ok(topic == METADATA_TOPIC || disk.list(&dir.join(name))?.iter().any(|file| file.name.ends_with(".log")))
}

/// Refuses to format a directory that has lost its `meta.properties`.
pub fn check_formattable(log_dir: &LogDir, node_id: i32) -> Result<(), DataDirError> {
    let logs = log_dir.logs();
    // Formatting that was interrupted leaves an empty metadata log.
    let logs =
        logs.iter().filter(|log| log.topic_partition().topic != METADATA_TOPIC || log.log_end_offset() > 0).count();
    if logs == 0 {
        return Ok(());
    }
    Err(DataDirError::NoMetaProperties { dir: log_dir.path().to_owned(), logs, node_id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_storage::RealDisk;

    #[test]
    fn directories_of_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        check_unused(&RealDisk, &path.join("new")).unwrap();
        let deleted = "t-0.0123456789abcdef0123456789abcdef-delete";
        for name in ["lost+found", "a-b-12", deleted, ".git"] {
            std::fs::create_dir(path.join(name)).unwrap();
        }
        for name in ["a-b-12/00000000000000000000.log", "meta.properties.tmp", "bootstrap.checkpoint", ".lock"] {
            std::fs::write(path.join(name), "").unwrap();
        }
        check_unused(&RealDisk, path).unwrap();
        for name in ["thesis.tex", "c-1"] {
            std::fs::write(path.join(name), "").unwrap();
        }
        // Names like those of logs, with something else in them.
        for name in ["a-2024", "b-never-delete", "photos"] {
            std::fs::create_dir(path.join(name)).unwrap();
            std::fs::write(path.join(name).join("notes.txt"), "").unwrap();
        }
        let refused = check_unused(&RealDisk, path).unwrap_err().to_string();
        assert!(
            refused.contains("a-2024, b-never-delete, c-1 and 2 more") && refused.contains("--data-dir"),
            "{refused}"
        );
    }
}
