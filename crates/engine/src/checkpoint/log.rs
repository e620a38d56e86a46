//! A directory with one small text file per batch.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::EngineError;
use crate::state::io_error;

/// `offsets/` or `commits/`.
#[derive(Debug)]
pub struct BatchLog {
    path: PathBuf,
    directory: File,
}

impl BatchLog {
    pub fn open(path: PathBuf) -> Result<Self, EngineError> {
        fs::create_dir_all(&path).map_err(|source| io_error("create", &path, source))?;
        let directory = File::open(&path).map_err(|source| io_error("open", &path, source))?;
        Ok(Self { path, directory })
    }

    /// Writes an entry, whole or not at all. `durable`: it survives power loss when this returns.
    pub fn write(&self, batch_id: i64, text: &str, durable: bool) -> Result<(), EngineError> {
        let path = self.path.join(batch_id.to_string());
        let temporary = self.path.join(format!(".{batch_id}.tmp"));
        let fail = |source| io_error("write", &path, source);
        let mut file = File::create(&temporary).map_err(fail)?;
        file.write_all(text.as_bytes()).map_err(fail)?;
        if durable {
            file.sync_data().map_err(fail)?;
        }
        fs::rename(&temporary, &path).map_err(fail)?;
        if durable {
            self.directory.sync_all().map_err(fail)?;
        }
        Ok(())
    }

    pub fn read(&self, batch_id: i64) -> Result<Option<String>, EngineError> {
        let path = self.path.join(batch_id.to_string());
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error("read", &path, source)),
        }
    }

    /// The newest entry that `parse` understands.
    pub fn latest<T>(&self, parse: impl Fn(&str) -> Option<T>) -> Result<Option<(i64, T)>, EngineError> {
        let mut ids = self.ids()?;
        ids.sort_unstable();
        for id in ids.into_iter().rev() {
            if let Some(entry) = self.read(id)?.as_deref().and_then(&parse) {
                return Ok(Some((id, entry)));
            }
            tracing::warn!(path = %self.path.join(id.to_string()).display(), "torn checkpoint entry is ignored");
        }
        Ok(None)
    }

    pub fn remove_before(&self, oldest: i64) -> Result<(), EngineError> {
        for id in self.ids()? {
            if id < oldest {
                let path = self.path.join(id.to_string());
                fs::remove_file(&path).map_err(|source| io_error("remove", &path, source))?;
            }
        }
        Ok(())
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

/// Writes a file, whole or not at all, so that it survives power loss.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    let temporary = path.with_extension("tmp");
    let fail = |source| io_error("write", path, source);
    let mut file = File::create(&temporary).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.sync_data().map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(fail)?;
    }
    Ok(())
}
