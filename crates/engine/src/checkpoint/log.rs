//! A directory with one small text file per batch.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::EngineError;
use crate::file_log::{create_dirs, io_error, sync_dir, write_whole};

/// The first line of every entry.
pub const VERSION_LINE: &str = "v1";

/// `offsets/` or `commits/`.
#[derive(Debug)]
pub struct BatchLog {
    path: PathBuf,
}

/// Which entries power loss may have torn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    /// The newest: every one is durable before the next is begun.
    Newest,
    /// All behind the last that was made durable.
    Any,
}

/// An entry that was read.
enum Entry<T> {
    Whole(T),
    /// A part of an entry, or nothing: what power loss leaves.
    Torn,
}

impl BatchLog {
    pub fn open(path: PathBuf) -> Result<Self, EngineError> {
        create_dirs(&path)?;
        // A process that died after it had renamed an entry may not have come to this.
        sync_dir(&path)?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn entry_path(&self, batch_id: i64) -> PathBuf {
        self.path.join(batch_id.to_string())
    }

    /// Writes an entry, whole or not at all. `durable`: it survives power loss when this returns.
    pub fn write(&self, batch_id: i64, text: &str, durable: bool) -> Result<(), EngineError> {
        write_whole(&self.entry_path(batch_id), text.as_bytes(), durable)
    }

    /// The entry of a batch; `None` when there is none.
    pub fn read<T>(&self, batch_id: i64, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, EngineError> {
        match self.read_entry(batch_id, &parse)? {
            Some(Entry::Whole(entry)) => Ok(Some(entry)),
            Some(Entry::Torn) => Err(self.unreadable(batch_id, "it is cut off")),
            None => Ok(None),
        }
    }

    fn read_entry<T>(&self, batch_id: i64, parse: impl Fn(&str) -> Option<T>) -> Result<Option<Entry<T>>, EngineError> {
        let path = self.entry_path(batch_id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("read", &path, source)),
        };
        let text = String::from_utf8_lossy(&bytes);
        // A file system that made a file's length durable before its content fills it with zeros.
        let text = text.trim_end_matches('\0');
        let (version, body) = text.split_once('\n').map_or((text, None), |(version, body)| (version, Some(body)));
        if version == VERSION_LINE {
            return Ok(Some(body.and_then(parse).map_or(Entry::Torn, Entry::Whole)));
        }
        if body.is_none() && VERSION_LINE.starts_with(version) {
            return Ok(Some(Entry::Torn));
        }
        Err(self.unreadable(batch_id, &format!("its first line must be {VERSION_LINE}, not {version:?}")))
    }

    fn unreadable(&self, batch_id: i64, reason: &str) -> EngineError {
        EngineError::Invalid {
            class: "MALFORMED_LOG_FILE",
            message: format!(
                "failed to read the checkpoint's {}: {reason}; it was written by a newer version or is damaged. Go on with \
                 the program that wrote it, restore the file, or use a new checkpoint location",
                self.entry_path(batch_id).display()
            ),
        }
    }

    /// The newest entry that is whole; those behind it must be such that `torn` allows them. `None` when there is none, in
    /// which case nothing but torn entries can be there: for [`Torn::Newest`] that of the first batch, which then never ran.
    pub fn latest<T>(&self, torn: Torn, parse: impl Fn(&str) -> Option<T>) -> Result<Option<(i64, T)>, EngineError> {
        let mut ids = self.ids()?;
        ids.sort_unstable();
        for (age, id) in ids.into_iter().rev().enumerate() {
            match self.read_entry(id, &parse)? {
                Some(Entry::Whole(entry)) => return Ok(Some((id, entry))),
                Some(Entry::Torn) if torn == Torn::Newest && (age > 0 || id > 0 && self.ids()?.len() == 1) => {
                    return Err(self.unreadable(id, "it is cut off"));
                }
                Some(Entry::Torn) => {
                    tracing::warn!(path = %self.entry_path(id).display(), "torn checkpoint entry is ignored");
                }
                None => {}
            }
        }
        Ok(None)
    }

    pub fn remove_before(&self, oldest: i64) -> Result<(), EngineError> {
        for id in self.ids()? {
            if id < oldest {
                let path = self.entry_path(id);
                fs::remove_file(&path).map_err(|source| io_error("remove", &path, source))?;
            }
        }
        Ok(())
    }

    pub fn is_empty(&self) -> Result<bool, EngineError> {
        Ok(self.ids()?.is_empty())
    }

    fn ids(&self) -> Result<Vec<i64>, EngineError> {
        let fail = |source| io_error("list", &self.path, source);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(fail)? {
            ids.extend(entry.map_err(fail)?.file_name().to_str().and_then(|name| name.parse::<i64>().ok()));
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<i64> {
        text.parse().ok()
    }

    fn log(entries: &[(i64, &str)]) -> (tempfile::TempDir, BatchLog) {
        let dir = tempfile::tempdir().unwrap();
        let log = BatchLog::open(dir.path().join("log")).unwrap();
        for (id, text) in entries {
            fs::write(log.entry_path(*id), text).unwrap();
        }
        (dir, log)
    }

    #[test]
    fn torn_entries_are_told_from_foreign_ones() {
        for torn in ["", "v", "v1", "v1\n", "v1\n12x", "\0\0\0\0\0", "v1\0\0\0"] {
            let (_dir, log) = log(&[(7, "v1\n70"), (8, torn)]);
            assert_eq!(log.latest(Torn::Newest, parse).unwrap(), Some((7, 70)), "{torn:?}");
            assert_eq!(log.latest(Torn::Any, parse).unwrap(), Some((7, 70)), "{torn:?}");
            let error = log.read(8, parse).unwrap_err().to_string();
            assert!(error.contains("log/8") && error.contains("new checkpoint location"), "{error}");
        }
        for foreign in ["v2\n70", "v10", "{\"a\":1}", "\u{fffd}\n"] {
            let (_dir, log) = log(&[(7, "v1\n70"), (8, foreign)]);
            for torn in [Torn::Newest, Torn::Any] {
                let error = log.latest(torn, parse).unwrap_err().to_string();
                assert!(error.contains("log/8") && error.contains("first line must be v1"), "{error}");
            }
        }
    }

    #[test]
    fn only_what_was_not_durable_may_be_torn() {
        let (_dir, two) = log(&[(6, "v1\n60"), (7, ""), (8, "")]);
        assert!(two.latest(Torn::Newest, parse).unwrap_err().to_string().contains("log/7"));
        assert_eq!(two.latest(Torn::Any, parse).unwrap(), Some((6, 60)));
        let (_dir, none) = log(&[(0, ""), (1, "v1")]);
        assert!(none.latest(Torn::Newest, parse).is_err());
        assert_eq!(none.latest(Torn::Any, parse).unwrap(), None);
        let (_dir, first) = log(&[(0, "v1\n")]);
        assert_eq!(first.latest(Torn::Newest, parse).unwrap(), None, "the first batch was never run");
        let (_dir, later) = log(&[(5, "v1\n")]);
        assert!(later.latest(Torn::Newest, parse).is_err(), "the batches before it are gone");
    }
}
