//! The small text files of a log directory: offset checkpoints, `partition.metadata`, `meta.properties` and the
//! marker of a clean shutdown. Layouts: docs/formats/log-directory.md.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use caudal_protocol::{TopicPartition, Uuid};

use crate::disk::{self, Disk, OpenMode};

pub const RECOVERY_POINTS: &str = "recovery-point-offset-checkpoint";
pub const LOG_START_OFFSETS: &str = "log-start-offset-checkpoint";
pub const HIGH_WATERMARKS: &str = "replication-offset-checkpoint";
/// Up to where each compacted log was cleaned.
pub const CLEANED_OFFSETS: &str = "cleaner-offset-checkpoint";
/// Ours: the time that retention last went by, so that a wall clock that leaps while the broker is stopped deletes nothing
/// either. Three lines: 0 (the version), that time in milliseconds since the epoch, and for how many milliseconds a leap ahead of it
/// has stood.
pub const RETENTION_CLOCK: &str = "caudal-retention-clock";
pub const META_PROPERTIES: &str = "meta.properties";
pub const PARTITION_METADATA: &str = "partition.metadata";
pub const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";

/// Why one of the small files could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("failed to access {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("failed to read {path}: line {line}: {reason}")]
    Malformed { path: PathBuf, line: usize, reason: String },
}

impl From<CheckpointError> for io::Error {
    /// The cause keeps its kind, so that a full disk is still told apart.
    fn from(error: CheckpointError) -> io::Error {
        match error {
            CheckpointError::Io { source, .. } => source,
            malformed => io::Error::other(malformed),
        }
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io { path: path.to_owned(), source }
}

/// The text of a file, `None` when there is none.
fn read_text(disk: &dyn Disk, path: &Path) -> Result<Option<String>, CheckpointError> {
    match disk::read_file(disk, path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| CheckpointError::Malformed {
            path: path.to_owned(),
            line: 1,
            reason: "it is not UTF-8".to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(path)(error)),
    }
}

/// Reads a checkpoint file: version 0, the number of entries, an entry per line. `None` when there is no file.
pub(crate) fn read_entries<T>(
    disk: &dyn Disk,
    path: &Path,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<Vec<T>>, CheckpointError> {
    let Some(text) = read_text(disk, path)? else { return Ok(None) };
    let malformed =
        |line, reason: &str| CheckpointError::Malformed { path: path.to_owned(), line, reason: reason.to_owned() };
    let mut lines = text.lines();
    if lines.next().map(str::trim) != Some("0") {
        return Err(malformed(1, "version 0 is expected"));
    }
    let count = lines.next().and_then(|line| line.trim().parse::<usize>().ok());
    let count = count.ok_or_else(|| malformed(2, "the number of entries is expected"))?;
    let mut entries = Vec::new();
    for (index, line) in lines.filter(|line| !line.trim().is_empty()).enumerate() {
        entries.push(parse(line).ok_or_else(|| malformed(index + 3, line))?);
    }
    if entries.len() != count {
        return Err(malformed(2, &format!("{count} entries are announced, {} are there", entries.len())));
    }
    Ok(Some(entries))
}

/// Replaces a checkpoint file, durably.
pub(crate) fn write_entries(
    disk: &dyn Disk,
    path: &Path,
    lines: impl ExactSizeIterator<Item = String>,
) -> Result<(), CheckpointError> {
    let mut text = format!("0\n{}\n", lines.len());
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    disk::replace_file(disk, path, text.as_bytes()).map_err(io_error(path))
}

/// Offsets by partition, as in `recovery-point-offset-checkpoint`. A missing file has no entries.
pub fn read_offsets(disk: &dyn Disk, path: &Path) -> Result<BTreeMap<TopicPartition, i64>, CheckpointError> {
    let entries = read_entries(disk, path, |line| {
        let mut words = line.split_whitespace();
        let (topic, partition, offset) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        words.next().is_none().then(|| (TopicPartition::new(topic, partition), offset))
    })?;
    Ok(entries.unwrap_or_default().into_iter().collect())
}

/// Replaces a file of offsets by partition, durably.
pub fn write_offsets(
    disk: &dyn Disk,
    path: &Path,
    offsets: &BTreeMap<TopicPartition, i64>,
) -> Result<(), CheckpointError> {
    write_entries(disk, path, offsets.iter().map(|(tp, offset)| format!("{} {} {offset}", tp.topic, tp.partition)))
}

/// The topic id in a partition's `partition.metadata`.
pub fn read_partition_metadata(disk: &dyn Disk, dir: &Path) -> Result<Option<Uuid>, CheckpointError> {
    let path = dir.join(PARTITION_METADATA);
    let Some(text) = read_text(disk, &path)? else { return Ok(None) };
    let malformed =
        |line, reason: &str| CheckpointError::Malformed { path: path.clone(), line, reason: reason.to_owned() };
    let mut lines = text.lines();
    if lines.next().and_then(|line| line.strip_prefix("version:")).map(str::trim) != Some("0") {
        return Err(malformed(1, "'version: 0' is expected"));
    }
    let id = lines.next().and_then(|line| line.strip_prefix("topic_id:")).map(str::trim);
    let id = id.and_then(|id| id.parse::<Uuid>().ok()).filter(|id| !id.is_zero());
    id.map(Some).ok_or_else(|| malformed(2, "'topic_id: ID' is expected"))
}

/// Writes `partition.metadata`. The first flush of the log makes it durable, so that creating many partitions does not
/// cost an fsync each.
pub(crate) fn write_partition_metadata(disk: &dyn Disk, dir: &Path, topic_id: Uuid) -> io::Result<()> {
    let file = disk.open(&dir.join(PARTITION_METADATA), OpenMode::Truncate)?;
    let text = format!("version: 0\ntopic_id: {topic_id}");
    file.write_all_at(&mut [io::IoSlice::new(text.as_bytes())], 0)
}

/// What `kafka-storage.sh format` writes about a log directory (version 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaProperties {
    pub cluster_id: String,
    pub node_id: i32,
    /// Names this directory among those of the node; absent in files of Kafka before 3.7.
    pub directory_id: Option<Uuid>,
}

impl MetaProperties {
    /// Reads `meta.properties` of a log directory; `None` when it is not formatted.
    pub fn read(disk: &dyn Disk, log_dir: &Path) -> Result<Option<MetaProperties>, CheckpointError> {
        let path = log_dir.join(META_PROPERTIES);
        let Some(text) = read_text(disk, &path)? else { return Ok(None) };
        let mut values = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty()
                && !line.starts_with(['#', '!'])
                && let Some((name, value)) = line.split_once(['=', ':'])
            {
                values.insert(name.trim().to_owned(), (index + 1, value.trim().replace('\\', "")));
            }
        }
        let get = |name: &str| values.get(name).map(|(line, value)| (*line, value.as_str()));
        let malformed = |line, reason: &str| {
            let reason = format!(
                "{reason}. Restore the file from a backup, or write it anew with the three lines version=1, node.id=NODE and \
                 cluster.id=CLUSTER"
            );
            CheckpointError::Malformed { path: path.clone(), line, reason }
        };
        match get("version") {
            Some((_, "1")) => {}
            Some((line, other)) => {
                return Err(malformed(line, &format!("version {other} is not supported, only 1 (KRaft) is")));
            }
            None => return Err(malformed(1, "it has no version")),
        }
        let (line, node_id) = get("node.id").ok_or_else(|| malformed(1, "it has no node.id"))?;
        let node_id = node_id.parse().map_err(|_| malformed(line, "node.id is not an integer"))?;
        let (_, cluster_id) = get("cluster.id").ok_or_else(|| malformed(1, "it has no cluster.id"))?;
        let directory_id = match get("directory.id") {
            None => None,
            Some((line, id)) => Some(id.parse().map_err(|_| malformed(line, "directory.id is not a Kafka id"))?),
        };
        Ok(Some(MetaProperties { cluster_id: cluster_id.to_owned(), node_id, directory_id }))
    }

    pub fn write(&self, disk: &dyn Disk, log_dir: &Path) -> Result<(), CheckpointError> {
        let path = log_dir.join(META_PROPERTIES);
        let mut text = format!("#\ncluster.id={}\n", self.cluster_id);
        if let Some(id) = self.directory_id {
            text.push_str(&format!("directory.id={id}\n"));
        }
        text.push_str(&format!("node.id={}\nversion=1\n", self.node_id));
        disk::replace_file(disk, &path, text.as_bytes()).map_err(io_error(&path))
    }
}

/// What [`RETENTION_CLOCK`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredClock {
    pub believed_ms: i64,
    pub leap_stood_ms: i64,
}

pub(crate) fn read_retention_clock(disk: &dyn Disk, log_dir: &Path) -> Result<Option<StoredClock>, CheckpointError> {
    let path = log_dir.join(RETENTION_CLOCK);
    let bytes = match disk::read_file(disk, &path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path)(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().map(|line| line.parse::<i64>().ok());
    match (lines.next(), lines.next(), lines.next()) {
        (Some(Some(0)), Some(Some(believed_ms)), Some(Some(leap_stood_ms))) => {
            Ok(Some(StoredClock { believed_ms, leap_stood_ms }))
        }
        _ => Err(io_error(&path)(io::Error::new(io::ErrorKind::InvalidData, "three numbers are expected, 0 first"))),
    }
}

pub(crate) fn write_retention_clock(
    disk: &dyn Disk,
    log_dir: &Path,
    clock: StoredClock,
) -> Result<(), CheckpointError> {
    let path = log_dir.join(RETENTION_CLOCK);
    let text = format!("0\n{}\n{}\n", clock.believed_ms, clock.leap_stood_ms);
    disk::replace_file(disk, &path, text.as_bytes()).map_err(io_error(&path))
}

/// Leaves the marker of a clean shutdown, with the broker epoch of that run (-1 when unknown).
pub fn write_clean_shutdown(disk: &dyn Disk, log_dir: &Path, broker_epoch: i64) -> Result<(), CheckpointError> {
    let path = log_dir.join(CLEAN_SHUTDOWN);
    let text = format!("{{\"version\":0,\"brokerEpoch\":{broker_epoch}}}");
    disk::replace_file(disk, &path, text.as_bytes()).map_err(io_error(&path))
}

/// Whether the marker is there.
pub fn is_clean_shutdown(disk: &dyn Disk, log_dir: &Path) -> Result<bool, CheckpointError> {
    let path = log_dir.join(CLEAN_SHUTDOWN);
    disk.exists(&path).map_err(io_error(&path))
}

/// Removes the marker, durably: from now on a crash must be noticed.
pub fn remove_clean_shutdown(disk: &dyn Disk, log_dir: &Path) -> Result<(), CheckpointError> {
    let path = log_dir.join(CLEAN_SHUTDOWN);
    match disk.remove_file(&path) {
        Ok(()) => disk.sync_dir(log_dir).map_err(io_error(log_dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error(&path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn files_give_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let id = Uuid::random();
        let meta = MetaProperties { cluster_id: "c-1".to_owned(), node_id: 3, directory_id: Some(id) };
        meta.write(&RealDisk, dir.path()).unwrap();
        assert_eq!(MetaProperties::read(&RealDisk, dir.path()).unwrap(), Some(meta));
        write_partition_metadata(&RealDisk, dir.path(), id).unwrap();
        assert_eq!(read_partition_metadata(&RealDisk, dir.path()).unwrap(), Some(id));
        let path = dir.path().join(RECOVERY_POINTS);
        let offsets = BTreeMap::from([(TopicPartition::new("a.b-c", 3), 17), (TopicPartition::new("z", 0), 0)]);
        assert!(read_offsets(&RealDisk, &path).unwrap().is_empty());
        write_offsets(&RealDisk, &path, &offsets).unwrap();
        assert_eq!(read_offsets(&RealDisk, &path).unwrap(), offsets);
    }

    #[test]
    fn damaged_files_are_refused_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECOVERY_POINTS);
        for (text, line) in [("1\n0\n", 1), ("0\nx\n", 2), ("0\n2\na 0 1\n", 2), ("0\n1\na 0\n", 3), ("", 1)] {
            std::fs::write(&path, text).unwrap();
            match read_offsets(&RealDisk, &path) {
                Err(CheckpointError::Malformed { line: at, .. }) => assert_eq!(at, line, "{text:?}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
