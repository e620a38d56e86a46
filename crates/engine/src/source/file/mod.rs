//! Files of a directory as a stream and as a table (Spark's `FileStreamSource`): each file is read once, whole, in the
//! order of its modification time. The log of files seen lies under the query's `sources/<n>`, so that a replayed batch
//! reads the same files.

mod backlog;
mod compressed;
mod json;
mod list;
pub mod path;
mod read;
mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::array::timezone::Tz;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::{NextOffset, ReadLimit, Source, SourceOffset};
use crate::blocking::{block, blocking};
use crate::error::EngineError;
use crate::file_log::{FileLog, io_error};
use crate::format::csv::CsvDialect;
use crate::options::{Options, invalid};
use crate::plan::SourceFactory;
pub use crate::sink::file::FileFormat;
use backlog::{Backlog, FileLimit};
use list::{FoundFile, Listing};
use read::FileReader;
use watch::Watch;

/// How many files are read at the same time.
const FILES_AT_ONCE: usize = 4;

/// A line of the log of files seen (Spark's `FileStreamSource.FileEntry`).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileEntry {
    path: String,
    timestamp: i64,
    batch_id: i64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileOffset {
    log_offset: i64,
}

/// A directory of files, described.
#[derive(Debug, Clone)]
pub struct FileTable {
    listing: Listing,
    reader: Arc<FileReader>,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    batch: FileLimit,
    latest_first: bool,
    /// Milliseconds that a file may be older than the newest one seen.
    max_age_ms: i64,
    /// Files of the same name in other directories are the same file.
    name_only: bool,
}

impl FileTable {
    /// A stream of files. Spark wants a schema for these, except for text.
    pub fn stream(
        format: FileFormat,
        options: &Options,
        schema: Option<SchemaRef>,
        zone: Tz,
    ) -> Result<Self, EngineError> {
        if schema.is_none() && format != FileFormat::Text {
            return Err(EngineError::Invalid {
                class: "STREAMING_SOURCE_SCHEMA_REQUIRED",
                message: "Schema must be specified when creating a streaming source DataFrame. \
                    Name the columns and their types in the table's definition."
                    .to_owned(),
            });
        }
        Self::new(format, options, schema, zone)
    }

    /// The files that are there, as a table; without a schema it is inferred.
    pub fn table(
        format: FileFormat,
        options: &Options,
        schema: Option<SchemaRef>,
        zone: Tz,
    ) -> Result<Self, EngineError> {
        Self::new(format, options, schema, zone)
    }

    fn new(format: FileFormat, options: &Options, schema: Option<SchemaRef>, zone: Tz) -> Result<Self, EngineError> {
        check_options(format, options)?;
        let text = options.get("path").ok_or_else(|| invalid("'path' is not specified."))?;
        let path = std::path::absolute(path::local_path(text)?).map_err(|e| io_error("resolve", Path::new(text), e))?;
        let listing = Listing {
            path,
            name_filter: options.get("pathGlobFilter").map(str::to_owned),
            recursive: options.bool("recursiveFileLookup")?.unwrap_or(false),
        };
        if !listing.base().exists() {
            return Err(EngineError::Invalid {
                class: "PATH_NOT_FOUND",
                message: format!("Path does not exist: {}.", listing.base().display()),
            });
        }
        let latest_first = options.bool("latestFirst")?.unwrap_or(false);
        let max_age_ms = options.duration_ms("maxFileAge")?.unwrap_or(7 * 86_400_000);
        let limits = Limits {
            batch: batch_limit(options)?,
            latest_first,
            name_only: options.bool("fileNameOnly")?.unwrap_or(false),
            // Old files come last on purpose then, so age must not drop them.
            max_age_ms: if latest_first { i64::MAX } else { i64::try_from(max_age_ms).unwrap_or(i64::MAX) },
        };
        let mut reader = FileReader::new(format, options, listing.base(), zone)?;
        match schema {
            Some(schema) => reader.set_schema(schema),
            None => {
                let paths: Vec<PathBuf> = listing.all()?.into_iter().map(|f| f.path).collect();
                reader.infer_schema(&paths)?;
            }
        }
        Ok(FileTable { listing, reader: Arc::new(reader), limits })
    }

    /// Opens the source, with its log in `checkpoint_dir` or in memory.
    pub fn open_source(&self, checkpoint_dir: Option<&Path>) -> Result<FileSource, EngineError> {
        let log = checkpoint_dir.map(FileLog::open).transpose()?;
        let mut source = FileSource {
            table: self.clone(),
            columns: None,
            batches: Vec::new(),
            seen: SeenFiles {
                max_age_ms: self.limits.max_age_ms,
                name_only: self.limits.name_only,
                ..SeenFiles::default()
            },
            backlog: Backlog::default(),
            log,
            watch: Watch::default(),
        };
        source.restore()?;
        Ok(source)
    }
}

#[async_trait]
impl SourceFactory for FileTable {
    async fn open(&self, checkpoint_dir: Option<&Path>) -> Result<Box<dyn Source>, EngineError> {
        Ok(Box::new(self.open_source(checkpoint_dir)?))
    }

    fn schema(&self) -> SchemaRef {
        self.reader.schema()
    }

    fn description(&self) -> String {
        format!("FileStreamSource[file:{}]", self.listing.path.display())
    }
}

/// What a micro-batch may hold.
fn batch_limit(options: &Options) -> Result<FileLimit, EngineError> {
    match (options.positive("maxFilesPerTrigger")?, options.positive("maxBytesPerTrigger")?) {
        (Some(_), Some(_)) => {
            Err(invalid("Options 'maxFilesPerTrigger' and 'maxBytesPerTrigger' can't be both set at the same time"))
        }
        (Some(files), None) => Ok(FileLimit::Files(usize::try_from(files).unwrap_or(usize::MAX))),
        (None, Some(bytes)) => Ok(FileLimit::Bytes(bytes)),
        (None, None) => Ok(FileLimit::default()),
    }
}

fn check_options(format: FileFormat, options: &Options) -> Result<(), EngineError> {
    let mut known = vec![
        "path",
        "maxFilesPerTrigger",
        "maxBytesPerTrigger",
        "latestFirst",
        "maxFileAge",
        "fileNameOnly",
        "pathGlobFilter",
        "recursiveFileLookup",
    ];
    match format {
        FileFormat::Csv => {
            known.extend(CsvDialect::OPTIONS);
            known.extend(["inferSchema", "mode", "enforceSchema"]);
        }
        FileFormat::Json => {
            known.push("mode");
            known.extend(json::OPTIONS);
        }
        FileFormat::Text => known.push("wholetext"),
        FileFormat::Parquet => {}
    }
    options.check_known(format.name(), &known, &[])?;
    Ok(())
}

/// The files that were taken, as far back as their age matters (Spark's `SeenFilesMap`).
#[derive(Debug, Default)]
struct SeenFiles {
    max_age_ms: i64,
    name_only: bool,
    /// By [`Self::key`].
    by_key: HashMap<String, i64>,
    latest_ms: i64,
    purged_before_ms: i64,
}

impl SeenFiles {
    fn add(&mut self, url: String, timestamp_ms: i64) {
        self.latest_ms = self.latest_ms.max(timestamp_ms);
        let key = self.key(&url).to_owned();
        self.by_key.insert(key, timestamp_ms);
    }

    /// What tells one file from another.
    fn key<'a>(&self, url: &'a str) -> &'a str {
        if self.name_only { url.rsplit('/').next().unwrap_or(url) } else { url }
    }

    fn is_new(&self, file: &FoundFile) -> bool {
        file.modified_ms >= self.purged_before_ms && !self.by_key.contains_key(self.key(&file.url))
    }

    fn purge(&mut self) {
        self.purged_before_ms = self.latest_ms.saturating_sub(self.max_age_ms);
        let limit = self.purged_before_ms;
        self.by_key.retain(|_, timestamp| *timestamp >= limit);
    }
}

/// A stream of files. An offset counts the batches of files taken so far.
#[derive(Debug)]
pub struct FileSource {
    table: FileTable,
    columns: Option<Vec<usize>>,
    /// The files of every batch, by its number.
    batches: Vec<Vec<FileEntry>>,
    seen: SeenFiles,
    /// Files that were found and are not in a batch yet.
    backlog: Backlog,
    log: Option<FileLog>,
    watch: Watch,
}

impl FileSource {
    fn restore(&mut self) -> Result<(), EngineError> {
        let Some(log) = &self.log else { return Ok(()) };
        for line in log.all_entries()? {
            let entry: FileEntry = serde_json::from_str(&line).map_err(|error| EngineError::Invalid {
                class: "MALFORMED_LOG_FILE",
                message: format!("failed to read a line of {}: {error}: {line}", log.dir().display()),
            })?;
            let batch = usize::try_from(entry.batch_id).unwrap_or_default();
            if self.batches.len() <= batch {
                self.batches.resize_with(batch + 1, Vec::new);
            }
            self.seen.add(entry.path.clone(), entry.timestamp);
            if let Some(files) = self.batches.get_mut(batch) {
                files.push(entry);
            }
        }
        if let Some(latest) = log.latest().and_then(|id| usize::try_from(id).ok()) {
            self.batches.resize_with((latest + 1).max(self.batches.len()), Vec::new);
        }
        self.seen.purge();
        Ok(())
    }

    /// The last batch of files taken; -1 before the first.
    fn current(&self) -> i64 {
        i64::try_from(self.batches.len()).unwrap_or(i64::MAX) - 1
    }

    /// Looks for files that were not taken yet.
    fn discover(&mut self) -> Result<(), EngineError> {
        if self.backlog.closed {
            return Ok(());
        }
        let dirs = self.list()?;
        // A directory that is watched from now on may have got files before: look again.
        if self.watch.add(&dirs) {
            self.list()?;
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<PathBuf>, EngineError> {
        let (mut files, dirs) = self.table.listing.list(&mut self.backlog.listed)?;
        files.retain(|file| self.seen.is_new(file));
        self.backlog.add(files, self.table.limits.latest_first);
        Ok(dirs)
    }

    /// Takes the next files, within `limit`, as a batch of their own and logs them.
    fn take(&mut self, limit: FileLimit) -> Result<(), EngineError> {
        // One listing lasts until its files are taken, but for newer ones that are to come first.
        if self.backlog.is_empty() || self.table.limits.latest_first {
            self.discover()?;
        }
        let files = self.backlog.take(limit, self.table.reader.format());
        if files.is_empty() {
            return Ok(());
        }
        let batch_id = self.current() + 1;
        let entries: Vec<FileEntry> =
            files.into_iter().map(|f| FileEntry { path: f.url, timestamp: f.modified_ms, batch_id }).collect();
        if let Some(log) = &mut self.log {
            let lines: Vec<String> = entries
                .iter()
                .map(serde_json::to_string)
                .collect::<Result<_, _>>()
                .map_err(|e| invalid(e.to_string()))?;
            log.add(batch_id, &lines)?;
        }
        for entry in &entries {
            self.seen.add(entry.path.clone(), entry.timestamp);
        }
        self.seen.purge();
        self.batches.push(entries);
        Ok(())
    }

    /// The files of the batches after `start`, up to `end`.
    fn files(&self, start: i64, end: i64) -> Result<Vec<PathBuf>, EngineError> {
        let mut paths = Vec::new();
        for id in start + 1..=end {
            let files = usize::try_from(id).ok().and_then(|id| self.batches.get(id)).ok_or_else(|| {
                invalid(format!(
                    "batch {id} of files is not in the source's log; the checkpoint belongs to another query or is damaged"
                ))
            })?;
            for entry in files {
                paths.push(path::local_path(&entry.path)?);
            }
        }
        Ok(paths)
    }
}

fn offset(log_offset: i64) -> SourceOffset {
    SourceOffset(format!("{{\"logOffset\":{log_offset}}}"))
}

fn parse_offset(text: &SourceOffset) -> Result<i64, EngineError> {
    // Spark also accepts the bare number that its first versions wrote.
    if let Ok(number) = text.0.trim().parse() {
        return Ok(number);
    }
    serde_json::from_str::<FileOffset>(&text.0)
        .map(|o| o.log_offset)
        .map_err(|e| invalid(format!("failed to read the file source's offset {:?} in the checkpoint: {e}", text.0)))
}

#[async_trait]
impl Source for FileSource {
    fn schema(&self) -> SchemaRef {
        let schema = self.table.reader.schema();
        match &self.columns {
            Some(columns) => schema.project(columns).map_or(schema, Arc::new),
            None => schema,
        }
    }

    fn description(&self) -> String {
        SourceFactory::description(&self.table)
    }

    fn project(&mut self, columns: &[usize]) -> bool {
        self.columns = Some(columns.to_vec());
        true
    }

    async fn initial_offset(&mut self) -> Result<SourceOffset, EngineError> {
        Ok(offset(-1))
    }

    async fn next_offset(&mut self, start: &SourceOffset, limit: ReadLimit) -> Result<NextOffset, EngineError> {
        let own = self.table.limits.batch;
        let limit = match limit {
            ReadLimit::Options => own,
            ReadLimit::Everything => FileLimit::None,
            ReadLimit::Bytes(bytes) => FileLimit::Memory(bytes as u64),
        };
        // A batch in the source's log that the query's log does not know comes from a crash between the two: take it
        // as it stands.
        if self.current() <= parse_offset(start)? || limit == FileLimit::None {
            block(|| self.take(limit))?;
        }
        let more = self.backlog.batches(limit, self.table.reader.format());
        Ok(NextOffset { end: offset(self.current()), latest: offset(self.current().saturating_add_unsigned(more)) })
    }

    async fn prepare_available_now(&mut self) -> Result<(), EngineError> {
        block(|| self.discover())?;
        self.backlog.closed = true;
        Ok(())
    }

    async fn wait_beyond(&mut self, after: &SourceOffset) -> Result<(), EngineError> {
        let after = parse_offset(after)?;
        loop {
            if self.current() <= after && self.backlog.is_empty() {
                block(|| self.discover())?;
            }
            if self.current() > after || !self.backlog.is_empty() {
                return Ok(());
            }
            self.watch.changed().await;
        }
    }

    async fn read(&mut self, start: &SourceOffset, end: &SourceOffset) -> Result<Vec<Vec<RecordBatch>>, EngineError> {
        let (start, end) = (parse_offset(start)?, parse_offset(end)?);
        let reads = self.files(start, end)?.into_iter().map(|path| {
            let (reader, columns) = (Arc::clone(&self.table.reader), self.columns.clone());
            async move { blocking(move || reader.read(&path, columns.as_deref())).await }
        });
        // Some files side by side, their rows in the order of the files.
        futures::stream::iter(reads).buffered(FILES_AT_ONCE).try_collect().await
    }

    async fn commit(&mut self, end: &SourceOffset) -> Result<(), EngineError> {
        // What is committed is not read again: forget its files' names (`seen` keeps what is needed to skip them).
        let end = usize::try_from(parse_offset(end)?.saturating_add(1)).unwrap_or_default();
        self.batches.iter_mut().take(end).for_each(|files| *files = Vec::new());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_name_alone_when_asked_so() {
        let seen = |name_only| SeenFiles { name_only, ..SeenFiles::default() };
        assert_eq!(seen(true).key("file:///a/x.json"), "x.json");
        assert_eq!(seen(false).key("file:///a/x.json"), "file:///a/x.json");
    }
}
