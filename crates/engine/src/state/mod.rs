//! State on disk, of one operator: `state/<operator>/<first>.changes`, to which every batch appends what it changed, and
//! from time to time a snapshot of each partition, `state/<operator>/<partition>/<version>.snapshot`. The layouts stand in
//! [`file`] and in `docs/formats/checkpoint.md`.
//!
//! A version of a partition is its newest snapshot up to it and the changes after that. One file takes the changes of all
//! partitions and batches between two snapshots, so that making them durable costs one fsync however many batches there
//! were; and the files before a snapshot need none any more.

mod file;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;

use crate::error::EngineError;
pub(crate) use crate::file_log::io_error;
use crate::file_log::{create_dirs, sync_dir};
pub use file::{Change, encode_rows, write_snapshot};
use file::{FramePlace, read_rows};

const SNAPSHOT: &str = "snapshot";
/// What was written before there were files of changes: those of one partition and version.
const DELTA: &str = "delta";
const CHANGES: &str = "changes";

/// The files that a version was written to, none of them durable yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// They hold all of the state: no file from before is needed once these are durable.
    pub snapshot: bool,
    pub files: Vec<PathBuf>,
}

/// What [`StateStore::restore`] meets on its way, oldest first.
#[derive(Debug)]
pub enum Restored<'a> {
    /// A file of the partition, made by an operator with this signature.
    Begins { partition: usize, signature: &'a str, path: &'a Path },
    /// Groups to take over.
    Rows { partition: usize, rows: RecordBatch },
    /// Groups that this watermark (ms) has passed go.
    Ends { partition: usize, evict_ms: Option<i64> },
}

/// The state files of one operator.
#[derive(Debug)]
pub struct StateStore {
    path: PathBuf,
    partitions: usize,
    /// At least so many versions lie between two snapshots.
    min_deltas: u32,
    deltas: u32,
    delta_bytes: u64,
    snapshot_bytes: u64,
    /// Where the next changes go; none after a start or a snapshot.
    changes: Option<(PathBuf, File)>,
}

impl StateStore {
    /// Makes the directory if it is missing.
    pub fn open(path: PathBuf, partitions: usize, min_deltas: u32) -> Result<Self, EngineError> {
        create_dirs(&path)?;
        Ok(Self { path, partitions, min_deltas, deltas: 0, delta_bytes: 0, snapshot_bytes: 0, changes: None })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the next version should be a snapshot: there are enough changes, and reading them would cost as much as
    /// the last snapshot (so that large state is not written again for the sake of small changes), or far too many.
    pub fn wants_snapshot(&self) -> bool {
        self.deltas >= self.min_deltas
            && (self.delta_bytes >= self.snapshot_bytes || self.deltas >= self.min_deltas.saturating_mul(100))
    }

    /// Where the snapshot of a partition goes, below the directory of the operator; its own directory exists then.
    pub fn snapshot_path(path: &Path, partition: usize, version: i64) -> Result<PathBuf, EngineError> {
        let dir = path.join(partition.to_string());
        fs::create_dir_all(&dir).map_err(|source| io_error("create", &dir, source))?;
        Ok(dir.join(format!("{version}.{SNAPSHOT}")))
    }

    /// Notes that the snapshots of all partitions were written, with the bytes of each.
    pub fn snapshot_written(&mut self, files: Vec<(PathBuf, u64)>) -> Written {
        self.deltas = 0;
        self.delta_bytes = 0;
        self.snapshot_bytes = files.iter().map(|(_, bytes)| bytes).sum();
        self.changes = None;
        Written { snapshot: true, files: files.into_iter().map(|(path, _)| path).collect() }
    }

    /// Appends what a version changed.
    pub fn append(&mut self, change: &Change) -> Result<Written, EngineError> {
        let bytes = change.encode()?;
        let (path, file) = match &mut self.changes {
            Some(open) => open,
            closed => {
                let path = self.path.join(format!("{}.{CHANGES}", change.version));
                let file = File::create(&path).map_err(|source| io_error("create", &path, source))?;
                closed.insert((path, file))
            }
        };
        file.write_all(&bytes).map_err(|source| io_error("append the state to", path, source))?;
        self.deltas += 1;
        self.delta_bytes += bytes.len() as u64;
        Ok(Written { snapshot: false, files: vec![path.clone()] })
    }

    /// What the directory holds.
    pub fn look(&self) -> Result<StateIndex, EngineError> {
        StateIndex::read(&self.path, self.partitions)
    }

    /// Hands `version`, for which [`StateIndex::newest_whole`] was asked, to `visit`. What is newer goes: the batches since
    /// run again. Returns the files that were read: the process that wrote them may have died before they were durable.
    pub fn restore(
        &mut self,
        version: i64,
        index: &mut StateIndex,
        visit: &mut dyn FnMut(Restored<'_>) -> Result<(), EngineError>,
    ) -> Result<BTreeSet<PathBuf>, EngineError> {
        (self.deltas, self.delta_bytes, self.snapshot_bytes, self.changes) = (0, 0, 0, None);
        let steps = index.steps(version)?;
        let mut read = BTreeSet::new();
        for step in steps.values() {
            for (partition, path) in &step.files {
                let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
                if is_snapshot(path) {
                    self.snapshot_bytes += bytes;
                } else {
                    self.delta_bytes += bytes;
                }
                read_rows(path, *partition, visit)?;
                read.insert(path.clone());
            }
            let Some((place, partitions)) = &step.frame else { continue };
            self.delta_bytes += place.len;
            read.insert(place.path.clone());
            place.read()?.visit(place, partitions, visit)?;
        }
        let deltas = steps.values().filter(|step| step.changes()).count();
        self.deltas = u32::try_from(deltas).unwrap_or(u32::MAX);
        index.remove_after(version)?;
        Ok(read)
    }

    /// Removes the files that no version from `oldest` on needs. `path` and `partitions` as in [`StateStore::open`]: this
    /// runs beside the batches.
    pub fn clean(path: &Path, partitions: usize, oldest: i64) -> Result<(), EngineError> {
        let mut needed_from = i64::MAX;
        for partition in 0..partitions {
            let files = list_partition(&path.join(partition.to_string()))?;
            let base =
                files.iter().filter(|file| file.snapshot && file.version <= oldest).map(|file| file.version).max();
            needed_from = needed_from.min(base.unwrap_or(0));
            for file in files.iter().filter(|file| base.is_some_and(|base| file.version < base)) {
                remove_if_there(&file.path)?;
            }
        }
        let segments = list_changes(path)?;
        for ((_, path), (next, _)) in segments.iter().zip(segments.iter().skip(1)) {
            if *next <= needed_from.saturating_add(1) {
                remove_if_there(path)?;
            }
        }
        Ok(())
    }
}

/// See [`StateIndex::chain`].
type Chain = Result<Vec<(i64, Option<PathBuf>)>, i64>;

/// A file of one partition.
#[derive(Debug, Clone)]
struct PartitionFile {
    version: i64,
    snapshot: bool,
    path: PathBuf,
}

/// What to read for one version.
#[derive(Debug, Default)]
struct Step {
    files: Vec<(usize, PathBuf)>,
    frame: Option<(FramePlace, BTreeSet<usize>)>,
}

impl Step {
    fn changes(&self) -> bool {
        self.frame.is_some() || self.files.iter().any(|(_, path)| !is_snapshot(path))
    }
}

/// The versions that an operator's files hold.
#[derive(Debug)]
pub struct StateIndex {
    path: PathBuf,
    frames: BTreeMap<i64, FramePlace>,
    /// By partition; a snapshot before a delta of the same version.
    files: Vec<BTreeMap<i64, Vec<PartitionFile>>>,
    /// Whether files are whole, of those that were looked at.
    whole: HashMap<PathBuf, bool>,
}

impl StateIndex {
    fn read(path: &Path, partitions: usize) -> Result<Self, EngineError> {
        let segments = list_changes(path)?;
        let mut frames = BTreeMap::new();
        for (first, segment) in &segments {
            // Where a file begins, what the ones before it have beyond is from before a restart.
            frames.split_off(first);
            for place in file::frames(segment, *first)? {
                frames.insert(place.version, place);
            }
        }
        let mut files = Vec::with_capacity(partitions);
        for partition in 0..partitions {
            let mut versions: BTreeMap<i64, Vec<PartitionFile>> = BTreeMap::new();
            for file in list_partition(&path.join(partition.to_string()))? {
                versions.entry(file.version).or_default().push(file);
            }
            versions.values_mut().for_each(|files| files.sort_by_key(|file| !file.snapshot));
            files.push(versions);
        }
        Ok(Self { path: path.to_owned(), frames, files, whole: HashMap::new() })
    }

    /// The newest version up to `wanted` that is there for all partitions; 0, the empty state, always is.
    pub fn newest_whole(&mut self, wanted: i64) -> Result<i64, EngineError> {
        let mut version = wanted.max(0);
        'versions: while version > 0 {
            for partition in 0..self.files.len() {
                if let Err(missing) = self.chain(partition, version)? {
                    // No snapshot lies behind the version that is missing, so nothing from it on can be loaded.
                    version = missing - 1;
                    continue 'versions;
                }
            }
            return Ok(version);
        }
        Ok(0)
    }

    fn steps(&mut self, version: i64) -> Result<BTreeMap<i64, Step>, EngineError> {
        let mut steps: BTreeMap<i64, Step> = BTreeMap::new();
        for partition in 0..self.files.len() {
            let chain = self.chain(partition, version)?.map_err(|missing| EngineError::External {
                action: format!("load version {version} of the state in {}", self.path.display()),
                message: format!("version {missing} of partition {partition} is missing"),
            })?;
            for (version, piece) in chain {
                let step = steps.entry(version).or_default();
                match piece {
                    Some(path) => step.files.push((partition, path)),
                    None => {
                        let Some(place) = self.frames.get(&version) else { continue };
                        let frame = step.frame.get_or_insert_with(|| (place.clone(), BTreeSet::new()));
                        frame.1.insert(partition);
                    }
                }
            }
        }
        Ok(steps)
    }

    /// The pieces of a version, newest first: a file of the partition, or `None` for the frame of that version. Or the
    /// version that is missing.
    fn chain(&mut self, partition: usize, version: i64) -> Result<Chain, EngineError> {
        let mut pieces = Vec::new();
        let mut wanted = version;
        while wanted > 0 {
            let files = self.files.get(partition).and_then(|files| files.get(&wanted)).cloned().unwrap_or_default();
            let mut found = None;
            for file in files {
                // A snapshot stands for all that came before. A frame is newer than a delta, which older programs wrote.
                if (file.snapshot || !self.frames.contains_key(&wanted)) && self.is_whole(&file.path, wanted)? {
                    found = Some(file);
                    break;
                }
            }
            match found {
                Some(file) => {
                    pieces.push((wanted, Some(file.path)));
                    if file.snapshot {
                        break;
                    }
                }
                None if self.frames.contains_key(&wanted) => pieces.push((wanted, None)),
                None => return Ok(Err(wanted)),
            }
            wanted -= 1;
        }
        Ok(Ok(pieces))
    }

    fn is_whole(&mut self, path: &Path, version: i64) -> Result<bool, EngineError> {
        if let Some(whole) = self.whole.get(path) {
            return Ok(*whole);
        }
        let whole = file::is_whole(path, version)?;
        self.whole.insert(path.to_owned(), whole);
        Ok(whole)
    }

    /// Removes what is newer than `version`, for good: it would be taken for what the batches after it write now, which
    /// need not be the same, for those that were not on record when the query died.
    fn remove_after(&self, version: i64) -> Result<(), EngineError> {
        let mut dirs = BTreeSet::new();
        let newer = version.saturating_add(1);
        let files = self.files.iter().flat_map(|files| files.range(newer..)).flat_map(|(_, files)| files);
        let segments = list_changes(&self.path)?;
        let segments = segments.iter().filter(|(first, _)| *first >= newer).map(|(_, path)| path);
        for path in files.map(|file| &file.path).chain(segments) {
            remove_if_there(path)?;
            dirs.extend(path.parent());
        }
        dirs.into_iter().try_for_each(sync_dir)?;
        match self.frames.get(&newer) {
            Some(place) if place.path.exists() => place.cut(),
            _ => Ok(()),
        }
    }
}

fn is_snapshot(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == SNAPSHOT)
}

/// The numbers and suffixes of the files in a directory, which need not exist.
fn list(dir: &Path) -> Result<Vec<(i64, String, PathBuf)>, EngineError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io_error("list", dir, source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|source| io_error("list", dir, source))?.file_name();
        let Some((number, suffix)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
        if let Ok(number) = number.parse() {
            found.push((number, suffix.to_owned(), dir.join(&name)));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn list_partition(dir: &Path) -> Result<Vec<PartitionFile>, EngineError> {
    let files = list(dir)?.into_iter().filter(|(_, suffix, _)| suffix == SNAPSHOT || suffix == DELTA);
    Ok(files.map(|(version, suffix, path)| PartitionFile { version, snapshot: suffix == SNAPSHOT, path }).collect())
}

/// The files of changes by the first version in them.
fn list_changes(dir: &Path) -> Result<Vec<(i64, PathBuf)>, EngineError> {
    let files = list(dir)?.into_iter().filter(|(_, suffix, _)| suffix == CHANGES);
    Ok(files.map(|(first, _, path)| (first, path)).collect())
}

fn remove_if_there(path: &Path) -> Result<(), EngineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
