//! Putting a cleaned segment in the place of those it was made from, so that a crash at any moment leaves either the
//! old ones or the new one. The names are Apache Kafka's, and so is what a start makes of them:
//!
//! ```text
//! BASE.log.cleaned   being written; removed at the next start
//! BASE.log.swap      complete and durable; the next start removes the segments it stands for and takes it
//! BASE.log.deleted   replaced; removed at the next start
//! ```
//! Indexes go with their segment. Between steps that build on one another the directory is synced.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Log, LogEnd, Segments, Writer};
use crate::disk::{Disk, OpenMode};
use crate::error::Offline;
use crate::scan::HeaderScan;
use crate::segment::{INDEX_SUFFIX, LOG_SUFFIX, Segment, TIME_INDEX_SUFFIX, TRANSACTION_INDEX_SUFFIX, file_path};

pub(crate) const CLEANED: &str = ".cleaned";
const SWAP: &str = ".swap";
const DELETED: &str = ".deleted";

/// The log comes last: as long as it has its old name, the step counts as not taken.
const SUFFIXES: [&str; 4] = [INDEX_SUFFIX, TIME_INDEX_SUFFIX, TRANSACTION_INDEX_SUFFIX, LOG_SUFFIX];

/// Why segments were not replaced. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplaceError {
    /// Retention was quicker, or the log is being closed or deleted.
    #[error("the segments are gone")]
    Gone,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Offline(#[from] Offline),
}

/// Segments by their base offsets, both inclusive, that are being replaced: nothing else may touch their files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replacing {
    first: i64,
    last: i64,
}

impl Writer {
    pub(super) fn is_replacing(&self, base_offset: i64) -> bool {
        self.replacing.is_some_and(|busy| (busy.first..=busy.last).contains(&base_offset))
    }
}

impl Log {
    /// Takes `cleaned` into the log in the place of `old`, which are neighbours and do not include the active segment.
    /// `cleaned` has the base offset of the first and lies in `.cleaned` files; they are left alone on an error. Appends
    /// and reads go on meanwhile.
    pub(crate) fn replace_segments(&self, old: &[Arc<Segment>], cleaned: Segment) -> Result<(), ReplaceError> {
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(()) };
        let bases = Replacing { first: first.base_offset, last: last.base_offset };
        cleaned.file.sync()?;
        cleaned.seal_index()?;
        self.disk.sync_dir(&self.dir)?;
        {
            let mut writer = self.writer.lock();
            self.health.check()?;
            if writer.closed || place_of(&self.snapshot(), old).is_none() {
                return Err(ReplaceError::Gone);
            }
            // Lookups that go on in the old segments must not open the new ones' files.
            for segment in old {
                segment.pin_index()?;
            }
            writer.replacing = Some(bases);
        }
        let replaced = self.swap(old, cleaned);
        self.writer.lock().replacing = None;
        if let Err(error) = replaced {
            // Some files may have new names and some not: only a start sorts that out.
            let reason = format!("replacing segments of {} by compacted ones failed: {error}", self.dir.display());
            return Err(self.health.fail(reason).into());
        }
        Ok(())
    }

    fn swap(&self, old: &[Arc<Segment>], cleaned: Segment) -> io::Result<()> {
        let disk = self.disk.as_ref();
        rename_files(disk, &self.dir, cleaned.base_offset, CLEANED, SWAP)?;
        disk.sync_dir(&self.dir)?;
        let new = Arc::new(cleaned.settle(&self.dir));
        self.list_replaced(old, &new)?;
        for segment in old {
            rename_files(disk, &self.dir, segment.base_offset, "", DELETED)?;
        }
        disk.sync_dir(&self.dir)?;
        rename_files(disk, &self.dir, new.base_offset, SWAP, "")?;
        disk.sync_dir(&self.dir)?;
        new.release_index();
        for segment in old {
            for suffix in SUFFIXES {
                // Readers that hold the file go on reading it. What cannot be removed goes at the next start.
                let _ = disk.remove_file(&file_path(&self.dir, segment.base_offset, &format!("{suffix}{DELETED}")));
            }
        }
        Ok(())
    }

    /// The moment at which readers get the new segment.
    fn list_replaced(&self, old: &[Arc<Segment>], new: &Arc<Segment>) -> io::Result<()> {
        let _writer = self.writer.lock();
        let segments = self.snapshot();
        let Some(at) = place_of(&segments, old) else {
            return Err(io::Error::other("a segment that was being replaced is gone"));
        };
        let (before, rest) = segments.split_at(at);
        let behind = rest.get(old.len()..).unwrap_or_default();
        if let Some(next) = behind.first() {
            let mut durable = self.durable.lock();
            if (new.base_offset..next.base_offset).contains(&durable.segment_base) {
                // Everything that was cleaned is durable, and its positions are no more.
                *durable = LogEnd { offset: durable.offset, segment_base: next.base_offset, position: 0 };
            }
        }
        let mut list = before.to_vec();
        list.push(Arc::clone(new));
        list.extend_from_slice(behind);
        *self.segments.write() = Arc::new(list);
        Ok(())
    }

    /// Deletes segments below the log start that were in use when it moved.
    pub(crate) fn delete_below_start(&self) -> io::Result<usize> {
        let start = self.log_start_offset();
        self.delete_oldest(&mut self.writer.lock(), |_, next| next <= start)
    }

    /// Whether the log is being closed or deleted: whoever works on it should end.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire) || self.copiers.load(Ordering::Acquire) > 0
    }

    /// Removes what an interrupted cleaning left.
    pub(crate) fn remove_cleaned_files(&self, base_offset: i64) {
        for suffix in SUFFIXES {
            let path = file_path(&self.dir, base_offset, &format!("{suffix}{CLEANED}"));
            match self.disk.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "not removed");
                }
                _ => {}
            }
        }
    }
}

/// Where `old` begin in the list; `None` when they are not in it, one behind the other.
fn place_of(segments: &Segments, old: &[Arc<Segment>]) -> Option<usize> {
    let first = old.first()?;
    let at = segments.iter().position(|segment| Arc::ptr_eq(segment, first))?;
    let found = segments.get(at..at + old.len())?;
    let same = found.iter().zip(old).all(|(a, b)| Arc::ptr_eq(a, b));
    (same && at + old.len() < segments.len()).then_some(at)
}

fn rename_files(disk: &dyn Disk, dir: &Path, base: i64, from: &str, to: &str) -> io::Result<()> {
    for suffix in SUFFIXES {
        let old = file_path(dir, base, &format!("{suffix}{from}"));
        match disk.rename(&old, &file_path(dir, base, &format!("{suffix}{to}"))) {
            // Not every segment has a transaction index.
            Err(error) if error.kind() == io::ErrorKind::NotFound && suffix != LOG_SUFFIX => {}
            result => result?,
        }
    }
    Ok(())
}

/// Finishes or undoes replacements that a crash interrupted; to be called before the segments are listed.
pub(super) fn finish_interrupted(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let entries = disk.list(dir)?;
    let names: Vec<&str> = entries.iter().filter(|entry| !entry.is_dir).map(|entry| entry.name.as_str()).collect();
    let offset_of = |name: &str| name.split('.').next().and_then(|offset| offset.parse::<i64>().ok());
    let cleaned: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(CLEANED)).collect();
    let swaps: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(SWAP)).collect();
    if cleaned.is_empty() && swaps.is_empty() {
        return Ok(());
    }
    // A swap file beside a cleaned one is part of a step that was not taken to its end.
    let undone_from = cleaned.iter().filter_map(|name| offset_of(name)).min().unwrap_or(i64::MAX);
    let (valid, invalid): (Vec<&str>, Vec<&str>) =
        swaps.into_iter().partition(|name| offset_of(name).is_some_and(|offset| offset < undone_from));
    for name in invalid {
        disk.remove_file(&dir.join(name))?;
    }
    disk.sync_dir(dir)?;
    for name in cleaned {
        disk.remove_file(&dir.join(name))?;
    }
    let mut replaced = Vec::new();
    for name in valid.iter().filter(|name| name.strip_suffix(SWAP).is_some_and(|name| name.ends_with(LOG_SUFFIX))) {
        let Some(base) = offset_of(name) else { continue };
        let end = next_offset(disk, &dir.join(name), base)?;
        tracing::info!(dir = %dir.display(), base, end, "a compacted segment takes its place");
        replaced.push(base..end.max(base + 1));
    }
    for name in &names {
        let is_segment =
            SUFFIXES.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.')));
        let gone = offset_of(name).is_some_and(|offset| replaced.iter().any(|range| range.contains(&offset)));
        if is_segment && gone {
            disk.remove_file(&dir.join(name))?;
        }
    }
    disk.sync_dir(dir)?;
    for name in valid {
        if let Some(settled) = name.strip_suffix(SWAP) {
            disk.rename(&dir.join(name), &dir.join(settled))?;
        }
    }
    disk.sync_dir(dir)
}

/// The offset behind the last batch of a file that was synced before it got its name.
fn next_offset(disk: &dyn Disk, path: &Path, base: i64) -> io::Result<i64> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut scan = HeaderScan::new(file.as_ref(), 0, file.size()?);
    let mut next = base;
    while let Ok(Some((_, header))) = scan.next() {
        next = header.next_offset();
    }
    Ok(next)
}
