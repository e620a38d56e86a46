//! The batch log of file sources (`sources/0`) and file sinks (`_spark_metadata`), in Spark's format
//! (`CompactibleFileStreamLog`): one file per batch named by its id, `v1` and one JSON object per line; every tenth is
//! `N.compact` and repeats all entries before it, so that older files can go.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::EngineError;

/// The batches between two compactions (`spark.sql.streaming.fileSink.log.compactInterval`).
const COMPACT_INTERVAL: i64 = 10;
/// How long files that a compaction made superfluous stay, for readers that are about to open them
/// (`spark.sql.streaming.fileSink.log.cleanupDelay`).
const CLEANUP_DELAY: Duration = Duration::from_secs(600);
const VERSION: &str = "v1";

/// A log directory. One writer at a time; readers need no lock since files appear whole, by a rename.
#[derive(Debug)]
pub struct FileLog {
    dir: PathBuf,
    latest: Option<i64>,
}

/// An entry that is written but not yet in the log.
#[derive(Debug)]
pub struct PreparedEntry {
    pub file: File,
    temporary: PathBuf,
    target: PathBuf,
    batch_id: i64,
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> EngineError {
    EngineError::Io { action, path: path.display().to_string(), source }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), EngineError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| io_error("sync the directory", dir, e))
}

/// Creates a directory with all that is missing above it, and makes their names durable.
pub(crate) fn create_dirs(dir: &Path) -> Result<(), EngineError> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    fs::create_dir_all(dir).map_err(|e| io_error("create the directory", dir, e))?;
    for path in missing {
        // The parent of a relative name is where the process runs.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_dir(parent.unwrap_or_else(|| Path::new(".")))?;
    }
    Ok(())
}

/// Writes a file, whole or not at all, in a directory that is there. `durable`: it survives power loss when this returns.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], durable: bool) -> Result<(), EngineError> {
    let fail = |source| io_error("write", path, source);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    let mut file = File::create(&temporary).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    if durable {
        file.sync_data().map_err(fail)?;
    }
    fs::rename(&temporary, path).map_err(fail)?;
    match path.parent() {
        Some(parent) if durable => sync_dir(parent),
        _ => Ok(()),
    }
}

impl FileLog {
    /// Opens the log in `dir`, which need not exist.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, EngineError> {
        let dir = dir.into();
        let latest = batch_ids(&dir)?.into_iter().map(|(id, _)| id).max();
        Ok(FileLog { dir, latest })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The newest batch in the log.
    pub fn latest(&self) -> Option<i64> {
        self.latest
    }

    /// Whether the newest entry, as this log knows it, is still there.
    pub fn check_latest(&self) -> Result<(), EngineError> {
        let Some(latest) = self.latest else { return Ok(()) };
        // Spark may have compacted elsewhere.
        let (path, compacted) = (self.dir.join(latest.to_string()), self.dir.join(format!("{latest}.compact")));
        if compacted.exists() {
            return Ok(());
        }
        fs::metadata(&path).map(|_| ()).map_err(|e| io_error("look up the log entry", &path, e))
    }

    /// The first batch whose entry is missing although readers need it: none of those before the last compaction are.
    pub fn first_missing(&self) -> Result<Option<i64>, EngineError> {
        let Some(latest) = self.latest else { return Ok(None) };
        let ids = batch_ids(&self.dir)?;
        let compacted = ids.iter().filter(|(_, compact)| *compact).map(|(id, _)| *id).max();
        let there: HashSet<i64> = ids.into_iter().map(|(id, _)| id).collect();
        Ok((compacted.unwrap_or(0)..=latest).find(|id| !there.contains(id)))
    }

    /// The next batch that is a compaction: as it repeats what was before it, it can leave that out.
    pub fn next_compaction(&self) -> i64 {
        let next = self.latest.map_or(0, |latest| latest + 1);
        (next / COMPACT_INTERVAL + 1) * COMPACT_INTERVAL - 1
    }

    /// Writes the entry of `batch_id` under a temporary name; nothing is synced. [`FileLog::commit`] puts it in place.
    pub fn prepare(&self, batch_id: i64, lines: &[String]) -> Result<PreparedEntry, EngineError> {
        let before = if is_compaction(batch_id) { self.entries_before(batch_id)? } else { Vec::new() };
        self.write_entry(batch_id, before.iter().chain(lines))
    }

    /// As [`FileLog::prepare`], for an entry in place of all that is in the log. `batch_id` is that of
    /// [`FileLog::next_compaction`].
    pub fn prepare_anew(&self, batch_id: i64, lines: &[String]) -> Result<PreparedEntry, EngineError> {
        self.write_entry(batch_id, lines.iter())
    }

    fn write_entry<'a>(
        &self,
        batch_id: i64,
        lines: impl Iterator<Item = &'a String>,
    ) -> Result<PreparedEntry, EngineError> {
        create_dirs(&self.dir)?;
        let compact = is_compaction(batch_id);
        let mut text = String::from(VERSION);
        for line in lines {
            text.push('\n');
            text.push_str(line);
        }
        let name = if compact { format!("{batch_id}.compact") } else { batch_id.to_string() };
        let temporary = self.dir.join(format!(".{name}.{}.tmp", uuid::Uuid::new_v4()));
        let file = File::create_new(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()).map(|()| file))
            .map_err(|e| io_error("write the log entry", &temporary, e))?;
        Ok(PreparedEntry { file, temporary, target: self.dir.join(name), batch_id })
    }

    /// Gives a prepared entry, whose file was synced, its name. When this returns the batch is in the log for good.
    pub fn commit(&mut self, entry: PreparedEntry) -> Result<(), EngineError> {
        fs::rename(&entry.temporary, &entry.target).map_err(|e| io_error("commit the log entry", &entry.target, e))?;
        sync_dir(&self.dir)?;
        self.latest = Some(entry.batch_id);
        if is_compaction(entry.batch_id) {
            self.remove_compacted(entry.batch_id);
        }
        Ok(())
    }

    /// Writes, syncs and commits one entry.
    pub fn add(&mut self, batch_id: i64, lines: &[String]) -> Result<(), EngineError> {
        let entry = self.prepare(batch_id, lines)?;
        entry.file.sync_all().map_err(|e| io_error("sync the log entry", &entry.temporary, e))?;
        self.commit(entry)
    }

    /// Every entry in the log, oldest first.
    pub fn all_entries(&self) -> Result<Vec<String>, EngineError> {
        match self.latest {
            Some(latest) => self.entries_before(latest + 1),
            None => Ok(Vec::new()),
        }
    }

    /// The entries of the batches after `after`, and perhaps others before them: a compaction repeats them all.
    pub fn entries_after(&self, after: Option<i64>) -> Result<Vec<String>, EngineError> {
        let (Some(after), Some(latest)) = (after, self.latest) else { return self.all_entries() };
        let mut lines = Vec::new();
        for id in after + 1..=latest {
            let path = self.dir.join(id.to_string());
            if !path.exists() {
                // A compaction, or a log that was begun anew.
                return self.all_entries();
            }
            lines.extend(read_entry(&path)?);
        }
        if latest < after { self.all_entries() } else { Ok(lines) }
    }

    /// The entries of the batches before `end`: those of the last compaction and of every batch after it.
    fn entries_before(&self, end: i64) -> Result<Vec<String>, EngineError> {
        let ids = batch_ids(&self.dir)?;
        let compacted = ids.iter().filter(|(id, compact)| *compact && *id < end).map(|(id, _)| *id).max();
        let mut lines = Vec::new();
        for id in compacted.unwrap_or(0)..end {
            let name = if Some(id) == compacted { format!("{id}.compact") } else { id.to_string() };
            lines.extend(read_entry(&self.dir.join(name))?);
        }
        Ok(lines)
    }

    /// Failing to delete is harmless: the next compaction tries again.
    fn remove_compacted(&self, compacted: i64) {
        let Ok(ids) = batch_ids(&self.dir) else { return };
        for (id, compact) in ids {
            let name = if compact { format!("{id}.compact") } else { id.to_string() };
            let path = self.dir.join(name);
            let age = fs::metadata(&path)
                .and_then(|m| m.modified())
                .ok()
                .and_then(|t| SystemTime::now().duration_since(t).ok());
            if id < compacted && age.is_some_and(|age| age > CLEANUP_DELAY) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn is_compaction(batch_id: i64) -> bool {
    (batch_id + 1) % COMPACT_INTERVAL == 0
}

/// The batches in `dir` and whether each is a compaction; none when the directory does not exist.
fn batch_ids(dir: &Path) -> Result<Vec<(i64, bool)>, EngineError> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("list the log directory", dir, error)),
    };
    let mut ids = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|e| io_error("list the log directory", dir, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let (number, compact) = name.strip_suffix(".compact").map_or((name.as_ref(), false), |n| (n, true));
        if let Ok(id) = number.parse::<i64>() {
            ids.push((id, compact));
        }
    }
    Ok(ids)
}

fn read_entry(path: &Path) -> Result<Vec<String>, EngineError> {
    let text = fs::read_to_string(path).map_err(|e| io_error("read the log entry", path, e))?;
    let mut lines = text.lines();
    match lines.next() {
        Some(VERSION) => Ok(lines.filter(|l| !l.is_empty()).map(str::to_owned).collect()),
        other => Err(EngineError::Invalid {
            class: "MALFORMED_LOG_FILE",
            message: format!(
                "failed to read the log entry {}: its first line must be {VERSION}, not {:?}; \
                 it was written by a newer version or is damaged",
                path.display(),
                other.unwrap_or_default()
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_entry_repeats_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = FileLog::open(dir.path().join("log")).unwrap();
        for id in 0..12 {
            log.add(id, &[format!("{{\"n\":{id}}}")]).unwrap();
        }
        let compact = fs::read_to_string(dir.path().join("log/9.compact")).unwrap();
        assert_eq!(compact.lines().count(), 11);
        let log = FileLog::open(dir.path().join("log")).unwrap();
        assert_eq!(log.latest(), Some(11));
        let all = log.all_entries().unwrap();
        assert_eq!(all, (0..12).map(|id| format!("{{\"n\":{id}}}")).collect::<Vec<_>>());
        assert_eq!(log.entries_after(Some(10)).unwrap(), ["{\"n\":11}"]);
        assert_eq!(log.entries_after(Some(11)).unwrap(), Vec::<String>::new());
        assert_eq!(log.entries_after(Some(5)).unwrap(), all);
    }

    #[test]
    fn a_log_can_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        for batches in [0, 1, 9, 10, 11, 25] {
            let place = dir.path().join(batches.to_string());
            let mut log = FileLog::open(&place).unwrap();
            (0..batches).for_each(|id| log.add(id, &["old".to_owned()]).unwrap());
            let entry = log.prepare_anew(log.next_compaction(), &["new".to_owned()]).unwrap();
            assert_eq!(FileLog::open(&place).unwrap().all_entries().unwrap().len(), usize::try_from(batches).unwrap());
            log.commit(entry).unwrap();
            log.add(log.latest().unwrap() + 1, &["newer".to_owned()]).unwrap();
            let again = FileLog::open(&place).unwrap();
            assert_eq!(again.all_entries().unwrap(), ["new", "newer"], "{batches}");
            assert_eq!(again.entries_after(Some(batches - 1)).unwrap(), ["new", "newer"], "{batches}");
            assert_eq!(again.first_missing().unwrap(), None);
        }
    }

    #[test]
    fn a_foreign_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0"), "v2\n{}").unwrap();
        let error = FileLog::open(dir.path()).unwrap().all_entries().unwrap_err().to_string();
        assert!(error.contains("first line must be v1"), "{error}");
    }
}
