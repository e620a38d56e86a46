//! The checkpoint directory of a query, laid out as Spark's: `metadata`, `offsets/N`, `commits/N`, `sources/<index>`,
//! `state/<operator>/<partition>`. What is durable when is told in `docs/formats/checkpoint.md`.

mod log;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use log::{BatchLog, Torn, VERSION_LINE};

use crate::error::EngineError;
use crate::file_log::{create_dirs, io_error, sync_dir, write_whole};
use crate::source::SourceOffset;

const LOCK_FILE: &str = "_lock";

/// `metadata`.
#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    id: String,
}

/// The second line of `offsets/N`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OffsetMetadata {
    /// The watermark of the batch: groups that it has passed are emitted and evicted.
    pub batch_watermark_ms: i64,
    /// When the batch was planned; what `current_timestamp()` returns in it.
    pub batch_timestamp_ms: i64,
    /// Settings that must not change while the checkpoint lives.
    #[serde(default)]
    pub conf: BTreeMap<String, String>,
    /// Rows that this watermark has passed are dropped (not in Spark's file: Spark takes the watermark of batch N-1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_events_watermark_ms: Option<i64>,
}

/// `offsets/N`: what batch N is, written before it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct OffsetRecord {
    pub metadata: OffsetMetadata,
    /// The end (exclusive) of the batch in each source; `None` for one that has not given any yet.
    pub offsets: Vec<Option<SourceOffset>>,
}

/// `commits/N`: batch N is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitRecord {
    pub next_batch_watermark_ms: i64,
}

impl OffsetRecord {
    fn to_text(&self) -> Result<String, EngineError> {
        let mut text = format!("{VERSION_LINE}\n{}", to_json(&self.metadata)?);
        for offset in &self.offsets {
            text.push('\n');
            // The format has a line per offset; JSON may hold line breaks as white space only.
            text.push_str(&offset.as_ref().map_or_else(|| "-".to_owned(), |offset| offset.0.replace('\n', " ")));
        }
        Ok(text)
    }

    /// What follows the version line.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let metadata = serde_json::from_str(lines.next()?).ok()?;
        let offsets = lines.map(|line| (line != "-").then(|| SourceOffset(line.to_owned()))).collect();
        Some(Self { metadata, offsets })
    }
}

impl CommitRecord {
    fn to_text(&self) -> Result<String, EngineError> {
        Ok(format!("{VERSION_LINE}\n{}", to_json(self)?))
    }

    fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text.lines().next()?).ok()
    }
}

fn to_json(value: &impl Serialize) -> Result<String, EngineError> {
    serde_json::to_string(value).map_err(|error| EngineError::External {
        action: "write the checkpoint".to_owned(),
        message: error.to_string(),
    })
}

/// An open checkpoint, locked against other queries for as long as it lives.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    query_id: String,
    temporary: bool,
    offsets: BatchLog,
    commits: BatchLog,
    _lock: File,
}

impl Checkpoint {
    /// Opens or makes the checkpoint at `root`; without one, a temporary directory.
    pub fn open(root: Option<PathBuf>) -> Result<Self, EngineError> {
        let temporary = root.is_none();
        let root =
            root.unwrap_or_else(|| std::env::temp_dir().join(format!("caudal-temporary-{}", uuid::Uuid::new_v4())));
        create_dirs(&root)?;
        let lock = lock(&root)?;
        let query_id = query_id(&root)?;
        let offsets = BatchLog::open(root.join("offsets"))?;
        let commits = BatchLog::open(root.join("commits"))?;
        Ok(Self { root, query_id, temporary, offsets, commits, _lock: lock })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn query_id(&self) -> &str {
        &self.query_id
    }

    /// The directory of a source's own log; made if it is missing. The names in it are durable then, also those that a
    /// process gave which died before it had synced them.
    pub fn source_dir(&self, index: usize) -> Result<PathBuf, EngineError> {
        let dir = self.root.join("sources").join(index.to_string());
        create_dirs(&dir)?;
        sync_dir(&dir)?;
        Ok(dir)
    }

    /// Where a sink keeps a log of its own.
    pub fn sink_dir(&self) -> PathBuf {
        self.root.join("sink")
    }

    pub fn state_dir(&self, operator: usize) -> PathBuf {
        self.root.join("state").join(operator.to_string())
    }

    /// The file of `commits/N`.
    pub fn commit_path(&self, batch_id: i64) -> PathBuf {
        self.commits.entry_path(batch_id)
    }

    /// Writes `offsets/N` so that it survives power loss.
    pub fn write_offsets(&self, batch_id: i64, record: &OffsetRecord) -> Result<(), EngineError> {
        self.offsets.write(batch_id, &record.to_text()?, true)
    }

    /// Writes `commits/N`. It survives the process, and power loss when it was synced behind the query's back. Should power
    /// loss take it, batch N runs again from the state before it, and the sink knows its id.
    pub fn write_commit(&self, batch_id: i64, record: &CommitRecord) -> Result<(), EngineError> {
        self.commits.write(batch_id, &record.to_text()?, false)
    }

    /// The newest `offsets/N`. If power loss left it torn it was never acted on and counts as absent.
    pub fn latest_offsets(&self) -> Result<Option<(i64, OffsetRecord)>, EngineError> {
        let latest = self.offsets.latest(Torn::Newest, OffsetRecord::parse)?;
        if latest.is_none() && !self.commits.is_empty()? {
            return Err(EngineError::Invalid {
                class: "MALFORMED_LOG_FILE",
                message: format!(
                    "{} has entries, but {} has none that can be read; restore it or use a new checkpoint location",
                    self.commits.path().display(),
                    self.offsets.path().display()
                ),
            });
        }
        Ok(latest)
    }

    /// The newest `commits/N` that can be read. Power loss takes those that were not durable yet, all that there are in the
    /// first half second: their batches run again, from batch 0 if need be, since nothing older goes before one is durable.
    pub fn latest_commit(&self) -> Result<Option<(i64, CommitRecord)>, EngineError> {
        self.commits.latest(Torn::Any, CommitRecord::parse)
    }

    pub fn offsets(&self, batch_id: i64) -> Result<Option<OffsetRecord>, EngineError> {
        self.offsets.read(batch_id, OffsetRecord::parse)
    }

    /// Forgets batches before `oldest`.
    pub fn remove_before(&self, oldest: i64) -> Result<(), EngineError> {
        self.offsets.remove_before(oldest)?;
        self.commits.remove_before(oldest)
    }

    /// Removes a temporary checkpoint.
    pub fn discard_if_temporary(&self) {
        if self.temporary
            && let Err(error) = fs::remove_dir_all(&self.root)
        {
            tracing::warn!(path = %self.root.display(), %error, "failed to remove the temporary checkpoint");
        }
    }
}

fn lock(root: &Path) -> Result<File, EngineError> {
    let path = root.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| io_error("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(EngineError::Invalid {
            class: "CONCURRENT_QUERY",
            message: format!(
                "Another instance of this query is running on the checkpoint {}; stop it first, or give this query a \
                 checkpoint location of its own",
                root.display()
            ),
        }),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path, source)),
    }
}

fn query_id(root: &Path) -> Result<String, EngineError> {
    let path = root.join("metadata");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let metadata: Metadata = serde_json::from_str(&text).map_err(|error| EngineError::External {
                action: format!("read the query's id from {}", path.display()),
                message: error.to_string(),
            })?;
            Ok(metadata.id)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let metadata = Metadata { id: uuid::Uuid::new_v4().to_string() };
            write_whole(&path, to_json(&metadata)?.as_bytes(), true)?;
            Ok(metadata.id)
        }
        Err(source) => Err(io_error("read", &path, source)),
    }
}
