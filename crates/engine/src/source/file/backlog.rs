//! The files that were found and are still to be read, and how many of them make up a batch.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::list::FoundFile;
use crate::sink::file::FileFormat;

/// What a batch of files may hold when the user set no limit, in bytes of memory: about what its columns will take.
const BATCH_BYTES: u64 = 128 * 1024 * 1024;
/// How much larger the columns of a Parquet file are than the file: it is encoded and compressed.
const PARQUET_GROWTH: u64 = 4;

/// Where a batch of files ends. It has one file at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileLimit {
    /// `maxFilesPerTrigger`.
    Files(usize),
    /// `maxBytesPerTrigger`, by the files' sizes.
    Bytes(u64),
    /// By the memory that the rows will take.
    Memory(u64),
    None,
}

impl Default for FileLimit {
    fn default() -> Self {
        FileLimit::Memory(BATCH_BYTES)
    }
}

/// The last batch of a directory's `_spark_metadata` that was listed.
pub(super) type ListedLogs = HashMap<PathBuf, i64>;

/// Files in the order in which they will be read.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// The next file is the last one.
    files: Vec<FoundFile>,
    urls: HashSet<String>,
    bytes: u64,
    /// As [`FoundFile::text_bytes`].
    text_bytes: u64,
    /// Up to where the logs of directories that a sink wrote were listed: what they name is here or was taken.
    pub(super) listed: ListedLogs,
    /// Nothing is looked for any more.
    pub(super) closed: bool,
}

impl Backlog {
    /// Adds files, but for those that are here.
    pub(super) fn add(&mut self, found: Vec<FoundFile>, latest_first: bool) {
        let before = self.files.len();
        for file in found {
            if self.urls.insert(file.url.clone()) {
                self.bytes = self.bytes.saturating_add(file.bytes);
                self.text_bytes = self.text_bytes.saturating_add(file.text_bytes());
                self.files.push(file);
            }
        }
        if self.files.len() > before {
            self.files.sort_unstable_by(|a, b| {
                let order = (a.modified_ms, &a.url).cmp(&(b.modified_ms, &b.url));
                if latest_first { order } else { order.reverse() }
            });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The files of the next batch. Files that are gone by now are left out.
    pub(super) fn take(&mut self, limit: FileLimit, format: FileFormat) -> Vec<FoundFile> {
        let (mut taken, mut size) = (Vec::new(), 0_u64);
        while let Some(next) = self.files.last() {
            let next_bytes = weight(limit, format, next.bytes, next.text_bytes());
            let room = match limit {
                FileLimit::Files(max) => taken.len() < max,
                FileLimit::Bytes(max) | FileLimit::Memory(max) => size.saturating_add(next_bytes) <= max,
                FileLimit::None => true,
            };
            if !room && !taken.is_empty() {
                break;
            }
            let Some(file) = self.files.pop() else { break };
            self.urls.remove(&file.url);
            self.bytes = self.bytes.saturating_sub(file.bytes);
            self.text_bytes = self.text_bytes.saturating_sub(file.text_bytes());
            if file.path.exists() {
                size = size.saturating_add(next_bytes);
                taken.push(file);
            }
        }
        taken
    }

    /// About how many batches the files will make.
    pub(super) fn batches(&self, limit: FileLimit, format: FileFormat) -> u64 {
        let files = self.files.len() as u64;
        let batches = match limit {
            FileLimit::Files(max) => files.div_ceil(max.max(1) as u64),
            FileLimit::Bytes(max) | FileLimit::Memory(max) => {
                weight(limit, format, self.bytes, self.text_bytes).div_ceil(max.max(1))
            }
            FileLimit::None => 1,
        };
        batches.clamp(u64::from(files > 0), files)
    }
}

fn weight(limit: FileLimit, format: FileFormat, bytes: u64, text_bytes: u64) -> u64 {
    match (limit, format) {
        (FileLimit::Memory(_), FileFormat::Parquet) => bytes.saturating_mul(PARQUET_GROWTH),
        (FileLimit::Memory(_), _) => text_bytes,
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(sizes: &[u64]) -> (tempfile::TempDir, Backlog) {
        let dir = tempfile::tempdir().unwrap();
        let mut backlog = Backlog::default();
        let file = |(at, bytes): (usize, &u64)| {
            let path = dir.path().join(at.to_string());
            std::fs::write(&path, "").unwrap();
            FoundFile { url: at.to_string(), path, modified_ms: at as i64, bytes: *bytes }
        };
        backlog.add(sizes.iter().enumerate().map(file).collect(), false);
        (dir, backlog)
    }

    fn batches(backlog: &mut Backlog, limit: FileLimit, format: FileFormat) -> Vec<Vec<String>> {
        let next = || {
            let taken = backlog.take(limit, format);
            (!taken.is_empty()).then(|| taken.into_iter().map(|file| file.url).collect())
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_large_file_is_a_batch_of_its_own() {
        let (_dir, mut files) = backlog(&[4, 4, 100, 1, 9]);
        assert_eq!(
            batches(&mut files, FileLimit::Bytes(10), FileFormat::Json),
            [vec!["0", "1"], vec!["2"], vec!["3", "4"]]
        );
        let (_dir, mut files) = backlog(&[4, 4, 1]);
        assert_eq!(batches(&mut files, FileLimit::Memory(20), FileFormat::Parquet), [vec!["0"], vec!["1", "2"]]);
        assert_eq!(files.batches(FileLimit::default(), FileFormat::Json), 0);
    }

    #[test]
    fn files_that_are_gone_are_left_out() {
        let (dir, mut files) = backlog(&[1, 1, 1]);
        std::fs::remove_file(dir.path().join("0")).unwrap();
        assert_eq!(files.batches(FileLimit::Files(2), FileFormat::Text), 2);
        assert_eq!(batches(&mut files, FileLimit::Files(2), FileFormat::Text), [vec!["1", "2"]]);
    }
}
