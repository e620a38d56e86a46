//! Which files a path names.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use super::backlog::ListedLogs;
use super::path::{file_url, glob_match, is_glob, is_hidden, local_path};
use crate::error::EngineError;
use crate::file_log::io_error;
use crate::sink::file::{METADATA_DIR, committed_files_after};

/// How much larger compressed text is than its file.
const TEXT_GROWTH: u64 = 8;

/// A file that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundFile {
    pub(super) url: String,
    pub(super) path: PathBuf,
    /// Milliseconds since the epoch.
    pub(super) modified_ms: i64,
    /// Its size.
    pub(super) bytes: u64,
}

impl FoundFile {
    /// About how many bytes of text it holds, if it is text: compressed lines are some times as large as their file.
    pub(super) fn text_bytes(&self) -> u64 {
        let suffix = self.path.extension().unwrap_or_default();
        let compressed = suffix.eq_ignore_ascii_case("gz") || suffix.eq_ignore_ascii_case("zst");
        if compressed { self.bytes.saturating_mul(TEXT_GROWTH) } else { self.bytes }
    }
}

/// Where to look.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    /// Absolute; may have glob components.
    pub(super) path: PathBuf,
    pub(super) name_filter: Option<String>,
    pub(super) recursive: bool,
}

impl Listing {
    /// The directory that partition directories stand in: the path up to its first glob.
    pub(super) fn base(&self) -> PathBuf {
        self.path
            .components()
            .take_while(|c| !matches!(c, Component::Normal(part) if is_glob(&part.to_string_lossy())))
            .collect()
    }

    /// All readable files, oldest first (by name where the times are equal).
    pub(super) fn all(&self) -> Result<Vec<FoundFile>, EngineError> {
        let (mut files, _) = self.list(&mut ListedLogs::new())?;
        files.sort_by(|a, b| (a.modified_ms, &a.url).cmp(&(b.modified_ms, &b.url)));
        Ok(files)
    }

    /// The readable files and the directories that were looked into. Of directories with a sink's log: the files that
    /// came into the log since the last call with the same `listed`, and perhaps others.
    pub(super) fn list(&self, listed: &mut ListedLogs) -> Result<(Vec<FoundFile>, Vec<PathBuf>), EngineError> {
        let mut files = Vec::new();
        let mut dirs = Vec::new();
        for root in self.roots(&mut dirs)? {
            let meta = fs::metadata(&root).map_err(|e| io_error("look up", &root, e))?;
            if meta.is_file() {
                self.push(&mut files, root, &meta);
                continue;
            }
            if self.committed(&root, listed, &mut files, &mut dirs)? {
                continue;
            }
            let (known, looked) = (files.len(), dirs.len());
            self.walk(&root, &mut files, &mut dirs)?;
            // A sink that began meanwhile made its log before its first file: what the walk found may not be committed.
            if root.join(METADATA_DIR).is_dir() {
                files.truncate(known);
                dirs.truncate(looked);
                self.committed(&root, listed, &mut files, &mut dirs)?;
            }
        }
        Ok((files, dirs))
    }

    /// The files that came into the log of a sink since the last look; `false` when there is no such log.
    fn committed(
        &self,
        root: &Path,
        listed: &mut ListedLogs,
        files: &mut Vec<FoundFile>,
        dirs: &mut Vec<PathBuf>,
    ) -> Result<bool, EngineError> {
        let Some((committed, latest)) = committed_files_after(root, listed.get(root).copied())? else {
            return Ok(false);
        };
        dirs.push(root.join(METADATA_DIR));
        if let Some(latest) = latest {
            listed.insert(root.to_owned(), latest);
        }
        for status in committed {
            let path = local_path(&status.path)?;
            if self.wanted(&path) {
                let modified_ms = i64::try_from(status.modification_time).unwrap_or(i64::MAX);
                files.push(FoundFile { url: status.path, path, modified_ms, bytes: status.size });
            }
        }
        Ok(true)
    }

    /// The existing paths that the pattern matches.
    fn roots(&self, dirs: &mut Vec<PathBuf>) -> Result<Vec<PathBuf>, EngineError> {
        let mut found = vec![PathBuf::new()];
        for component in self.path.components() {
            let text = component.as_os_str().to_string_lossy();
            if !matches!(component, Component::Normal(_)) || !is_glob(&text) {
                for path in &mut found {
                    path.push(component);
                }
                continue;
            }
            let mut next = Vec::new();
            for dir in found.iter().filter(|d| d.is_dir()) {
                dirs.push(dir.clone());
                let entries = fs::read_dir(dir).map_err(|e| io_error("list the directory", dir, e))?;
                for entry in entries {
                    let name = entry.map_err(|e| io_error("list the directory", dir, e))?.file_name();
                    let name = name.to_string_lossy();
                    if !is_hidden(&name) && glob_match(&text, &name) {
                        next.push(dir.join(name.as_ref()));
                    }
                }
            }
            found = next;
        }
        found.retain(|p| p.exists());
        Ok(found)
    }

    /// Files of a directory; subdirectories only when they are partitions (`a=1`) or the lookup is recursive, as in Spark.
    fn walk(&self, dir: &Path, files: &mut Vec<FoundFile>, dirs: &mut Vec<PathBuf>) -> Result<(), EngineError> {
        dirs.push(dir.to_owned());
        for entry in fs::read_dir(dir).map_err(|e| io_error("list the directory", dir, e))? {
            let entry = entry.map_err(|e| io_error("list the directory", dir, e))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if is_hidden(&name) {
                continue;
            }
            let path = entry.path();
            // A file that vanishes between the listing and this is not there.
            let Ok(meta) = fs::metadata(&path) else { continue };
            if meta.is_file() {
                self.push(files, path, &meta);
            } else if meta.is_dir() && (self.recursive || name.contains('=')) {
                self.walk(&path, files, dirs)?;
            }
        }
        Ok(())
    }

    fn push(&self, files: &mut Vec<FoundFile>, path: PathBuf, meta: &fs::Metadata) {
        if !self.wanted(&path) {
            return;
        }
        let modified = meta.modified().ok().and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
        let modified_ms = modified.and_then(|d| i64::try_from(d.as_millis()).ok()).unwrap_or_default();
        files.push(FoundFile { url: file_url(&path), path, modified_ms, bytes: meta.len() });
    }

    fn wanted(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.name_filter.as_ref().is_none_or(|filter| glob_match(filter, &name))
    }
}
