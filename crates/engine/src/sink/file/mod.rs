//! Files in a directory, exactly once: a batch's files count only when the batch stands in `_spark_metadata`, as in
//! Spark's `FileStreamSink`. Spark reads what this writes, and the other way round.
//!
//! One batch costs two waits for the disk: the data files, their directories and the log entry's temporary file are
//! synced side by side; then the entry is renamed and the log directory synced. Files of a batch that crashed before the
//! rename are never listed, so no reader that knows the log sees them. The log's directory is there before the first data
//! file is: a reader that finds none takes every file.

mod owner;
mod writer;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use arrow::array::RecordBatch;
use arrow::array::timezone::Tz;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{OutputMode, Sink, SinkStart};
use crate::blocking::block;
use crate::error::EngineError;
use crate::file_log::{FileLog, PreparedEntry, create_dirs, io_error, sync_dir};
use crate::options::{Options, invalid};
use crate::source::file::path::{file_url, local_path};
pub use writer::FileFormat;
use writer::{FileWriter, split_by_partition};

/// Spark's name for the log inside the output directory.
pub const METADATA_DIR: &str = "_spark_metadata";

/// A line of `_spark_metadata` (Spark's `SinkFileStatus`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkFileStatus {
    /// A URL, percent-encoded: `file:///out/part-00000-....parquet`.
    pub path: String,
    pub size: u64,
    pub is_dir: bool,
    /// Milliseconds since the epoch.
    pub modification_time: u64,
    pub block_replication: u32,
    pub block_size: u64,
    /// `add`, or `delete` in logs of old Spark versions.
    pub action: String,
}

/// The files that a reader of `dir` may see by its log, or `None` when it has no log.
pub fn committed_files(dir: &Path) -> Result<Option<Vec<SinkFileStatus>>, EngineError> {
    Ok(committed_files_after(dir, None)?.map(|(files, _)| files))
}

/// Files in a sink's log, and the last batch in it.
pub(crate) type LoggedFiles = (Vec<SinkFileStatus>, Option<i64>);

/// As [`committed_files`], without most of those that were there at batch `after`; and the last batch in the log.
pub(crate) fn committed_files_after(dir: &Path, after: Option<i64>) -> Result<Option<LoggedFiles>, EngineError> {
    let log_dir = dir.join(METADATA_DIR);
    if !log_dir.is_dir() {
        return Ok(None);
    }
    let mut files: Vec<SinkFileStatus> = Vec::new();
    let log = FileLog::open(&log_dir)?;
    for line in log.entries_after(after)? {
        let status: SinkFileStatus = serde_json::from_str(&line).map_err(|error| EngineError::Invalid {
            class: "MALFORMED_LOG_FILE",
            message: format!("failed to read a line of {}: {error}: {line}", log_dir.display()),
        })?;
        if status.action == "delete" {
            files.retain(|f| f.path != status.path);
        } else {
            files.push(status);
        }
    }
    Ok(Some((files, log.latest())))
}

/// Writes every batch as new files below `path`.
#[derive(Debug)]
pub struct FileSink {
    dir: PathBuf,
    log: FileLog,
    writer: FileWriter,
    partition_by: Vec<String>,
    /// The query that was started on this sink.
    query_id: Option<String>,
    /// Directories known to exist durably.
    made_dirs: BTreeSet<PathBuf>,
    staged: Staged,
}

/// Files that the log does not name yet. They go when this is dropped.
#[derive(Debug, Default)]
struct Staged {
    paths: BTreeSet<PathBuf>,
    /// What the log will say of them.
    lines: Vec<String>,
    /// Those that are not durable yet.
    open: Vec<(File, PathBuf)>,
    dirs: BTreeSet<PathBuf>,
    rows: u64,
}

/// Files that are held open: fewer than a process may have.
const OPEN_FILES: usize = 128;

impl Staged {
    fn take(&mut self, file: File, path: PathBuf, dir: PathBuf) -> Result<(), EngineError> {
        self.lines.push(status_line(&file, &path)?);
        self.dirs.insert(dir);
        self.open.push((file, path));
        if self.open.len() >= OPEN_FILES {
            sync_files(&self.open)?;
            self.open.clear();
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Nobody would read them, and the disk may be full.
        self.paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

/// Files that are in the log.
struct Put {
    paths: BTreeSet<PathBuf>,
    rows: u64,
}

impl FileSink {
    /// `options` needs `path`; the rest are the format's (`compression`, `header`, `sep`, ...).
    pub fn new(format: FileFormat, options: &Options, partition_by: &[String], zone: Tz) -> Result<Self, EngineError> {
        let writer = FileWriter::new(format, options, zone)?;
        let path = options.get("path").ok_or_else(|| invalid("'path' is not specified."))?;
        let dir = std::path::absolute(local_path(path)?).map_err(|e| io_error("resolve", Path::new(path), e))?;
        let log = FileLog::open(dir.join(METADATA_DIR))?;
        Ok(FileSink {
            dir,
            log,
            writer,
            partition_by: partition_by.to_vec(),
            query_id: None,
            made_dirs: BTreeSet::new(),
            staged: Staged::default(),
        })
    }

    fn write(&mut self, batch_id: i64, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<u64, EngineError> {
        if let Some(query_id) = &self.query_id {
            owner::check_still(&self.dir, &self.log, query_id, batch_id)?;
        }
        if self.log.latest().is_some_and(|latest| batch_id <= latest) {
            tracing::info!(batch_id, dir = %self.dir.display(), "batch is in the sink's log already, skipped");
            return Ok(0);
        }
        self.staged = Staged::default();
        self.stage(schema, batches)?;
        Ok(self.put(|log, lines| log.prepare(batch_id, lines))?.rows)
    }

    /// Writes rows that no reader sees before [`FileSink::append`] or [`FileSink::replace`]. Without one of those they go
    /// with this.
    pub fn stage(&mut self, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<(), EngineError> {
        self.writer.check_schema(schema, &self.partition_by)?;
        self.make_log_dir()?;
        let id = uuid::Uuid::new_v4();
        for part in split_by_partition(schema, batches, &self.partition_by, self.writer.zone)? {
            let dir = self.dir.join(&part.directory);
            self.make_dir(&dir)?;
            let separator = if self.partition_by.is_empty() { '-' } else { '.' };
            let path = dir.join(format!("part-00000-{id}{separator}c000{}", self.writer.suffix()));
            self.staged.paths.insert(path.clone());
            let file = self.writer.write(&path, &part)?;
            self.staged.rows += part.batches.iter().map(|b| b.num_rows() as u64).sum::<u64>();
            self.staged.take(file, path, dir)?;
        }
        Ok(())
    }

    /// Adds the staged rows to the table.
    pub fn append(&mut self) -> Result<(), EngineError> {
        let batch_id = self.log.latest().map_or(0, |latest| latest + 1);
        self.put(|log, lines| log.prepare(batch_id, lines)).map(drop)
    }

    /// Puts the staged rows in place of all that the table has: until they are there readers see the old ones, and after
    /// that only these. Other files below the directory go, and what binds the log to a streaming query.
    pub fn replace(&mut self) -> Result<(), EngineError> {
        let put = self.put(|log, lines| log.prepare_anew(log.next_compaction(), lines))?;
        owner::forget(&self.log)?;
        remove_others(&self.dir, &put.paths);
        Ok(())
    }

    /// Logs the staged files with the entry that `prepare` makes of their lines.
    fn put(
        &mut self,
        prepare: impl Fn(&FileLog, &[String]) -> Result<PreparedEntry, EngineError>,
    ) -> Result<Put, EngineError> {
        let mut staged = std::mem::take(&mut self.staged);
        let entry = prepare(&self.log, &staged.lines)?;
        sync_all(&staged.open, &staged.dirs, &entry.file)?;
        // From here on they may be in the log.
        let put = Put { rows: staged.rows, paths: std::mem::take(&mut staged.paths) };
        self.log.commit(entry)?;
        Ok(put)
    }

    /// A full disk is no reason to give up what was written before.
    fn full(&self, batch_id: i64, error: EngineError) -> EngineError {
        match error {
            EngineError::Io { path, source, .. } if source.kind() == ErrorKind::StorageFull => EngineError::External {
                action: format!("write batch {batch_id} to {}", self.dir.display()),
                message: format!(
                    "{source} ({path}). No reader sees any of this batch. Make space and start the query again: it goes on \
                     with this batch"
                ),
            },
            other => other,
        }
    }

    fn make_log_dir(&mut self) -> Result<(), EngineError> {
        let dir = self.log.dir().to_owned();
        self.make_dir(&dir)
    }

    /// Creates a directory and makes its name durable.
    fn make_dir(&mut self, dir: &Path) -> Result<(), EngineError> {
        if !self.made_dirs.contains(dir) {
            create_dirs(dir)?;
            self.made_dirs.insert(dir.to_owned());
        }
        Ok(())
    }
}

/// Removes all files below a table's directory but its log and these, and the directories that are empty then. What cannot
/// be removed is in nobody's way: the log does not name it.
fn remove_others(dir: &Path, kept: &BTreeSet<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != METADATA_DIR) {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_others(&path, kept);
            let _ = std::fs::remove_dir(&path);
        } else if !kept.contains(&path) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Syncs everything that must be durable before the log entry is, side by side: the file system joins the waits.
fn sync_all(files: &[(File, PathBuf)], dirs: &BTreeSet<PathBuf>, entry: &File) -> Result<(), EngineError> {
    let dirs: Vec<&PathBuf> = dirs.iter().collect();
    std::thread::scope(|scope| {
        let files = scope.spawn(|| sync_files(files));
        let dirs = scope.spawn(|| side_by_side(&dirs, |dir| sync_dir(dir)));
        let own = entry.sync_all().map_err(|e| io_error("sync the log entry in", Path::new(METADATA_DIR), e));
        joined(files.join())?;
        joined(dirs.join())?;
        own
    })
}

fn sync_files(files: &[(File, PathBuf)]) -> Result<(), EngineError> {
    side_by_side(files, |(file, path)| file.sync_all().map_err(|e| io_error("sync", path, e)))
}

/// Does it for all, some at a time.
fn side_by_side<T: Sync>(items: &[T], each: impl Fn(&T) -> Result<(), EngineError> + Sync) -> Result<(), EngineError> {
    const AT_ONCE: usize = 16;
    if items.len() <= 1 {
        return items.iter().try_for_each(each);
    }
    let each = &each;
    std::thread::scope(|scope| {
        let chunks = items.chunks(items.len().div_ceil(AT_ONCE));
        let waits: Vec<_> = chunks.map(|chunk| scope.spawn(move || chunk.iter().try_for_each(each))).collect();
        waits.into_iter().try_for_each(|wait| joined(wait.join()))
    })
}

fn joined(result: std::thread::Result<Result<(), EngineError>>) -> Result<(), EngineError> {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn status_line(file: &File, path: &Path) -> Result<String, EngineError> {
    let metadata = file.metadata().map_err(|e| io_error("read the size of", path, e))?;
    let modified = metadata.modified().unwrap_or_else(|_| SystemTime::now());
    let millis = modified.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let status = SinkFileStatus {
        path: file_url(path),
        size: metadata.len(),
        is_dir: false,
        modification_time: u64::try_from(millis).unwrap_or_default(),
        block_replication: 1,
        block_size: 32 * 1024 * 1024,
        action: "add".to_owned(),
    };
    serde_json::to_string(&status).map_err(|e| invalid(format!("failed to describe {}: {e}", path.display())))
}

#[async_trait]
impl Sink for FileSink {
    fn description(&self) -> String {
        format!("FileSink[file:{}]", self.dir.display())
    }

    fn check_mode(&self, mode: OutputMode) -> Result<(), EngineError> {
        let name = match mode {
            OutputMode::Append => return Ok(()),
            OutputMode::Update => "update",
            OutputMode::Complete => "complete",
        };
        Err(EngineError::Invalid {
            class: "STREAMING_OUTPUT_MODE.UNSUPPORTED_DATASOURCE",
            message: format!(
                "Invalid streaming output mode: {name}. This output mode is not supported in Data Source {}.",
                self.writer.format.name()
            ),
        })
    }

    async fn start(&mut self, start: SinkStart<'_>) -> Result<(), EngineError> {
        block(|| {
            owner::check(&self.dir, &self.log, &start)?;
            self.make_log_dir()?;
            owner::claim(&self.log, start.query_id)?;
            self.query_id = Some(start.query_id.to_owned());
            // A process that died after it had renamed its last entry may not have come to this, and the batch counts as
            // written.
            sync_dir(self.log.dir())
        })
    }

    async fn add_batch(
        &mut self,
        batch_id: i64,
        _mode: OutputMode,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<u64, EngineError> {
        block(|| self.write(batch_id, &schema, &batches)).map_err(|error| self.full(batch_id, error))
    }
}
