//! Whose log `_spark_metadata` is, and whether it and the query's checkpoint tell the same story.
//!
//! A batch is skipped when its id is in the log already, which is right for a batch that ran before a crash and wrong for
//! another batch of the same number: that of a query whose checkpoint was lost. So the log names the query whose batches
//! it has, in a file of its own (`_spark_metadata/query`, `{"id":"<uuid>"}` as in the checkpoint's `metadata`) that Spark's
//! readers pass over, since its name is no number. A log without it is Spark's or of an older version.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::SinkStart;
use super::METADATA_DIR;
use crate::error::EngineError;
use crate::file_log::{FileLog, io_error, write_whole};

const OWNER_FILE: &str = "query";

#[derive(Serialize, Deserialize)]
struct Owner {
    id: String,
}

/// Refuses a log that belongs to another query, has batches that the checkpoint does not know, or lacks some that the
/// checkpoint has as done.
pub(super) fn check(dir: &Path, log: &FileLog, start: &SinkStart<'_>) -> Result<(), EngineError> {
    let owner = owner(log)?.filter(|id| id != start.query_id);
    if let (Some(owner), Some(latest)) = (owner, log.latest()) {
        return Err(mismatch(
            dir,
            format!(
                "it has the batches 0 to {latest} of the query {owner}, and this query, by its checkpoint {}, is {}",
                checkpoint(start),
                start.query_id
            ),
        ));
    }
    let (latest, planned) = (log.latest().unwrap_or(-1), start.planned.unwrap_or(-1));
    if latest > planned {
        let knows = start.planned.map_or("no batch".to_owned(), |planned| format!("only batches up to {planned}"));
        return Err(mismatch(
            dir,
            format!("it has batches up to {latest}, and the checkpoint {} knows {knows}", checkpoint(start)),
        ));
    }
    let missing = match start.committed.filter(|committed| *committed > latest) {
        Some(_) => Some(latest + 1),
        None => log.first_missing()?,
    };
    match missing {
        Some(batch_id) => Err(entries_missing(dir, batch_id)),
        None => Ok(()),
    }
}

/// Puts the query's name on the log, which [`check`] found to be the query's or without batches.
pub(super) fn claim(log: &FileLog, query_id: &str) -> Result<(), EngineError> {
    if owner(log)?.is_some_and(|id| id == query_id) {
        return Ok(());
    }
    let path = log.dir().join(OWNER_FILE);
    let owner = serde_json::to_vec(&Owner { id: query_id.to_owned() })
        .map_err(|e| io_error("write", &path, std::io::Error::other(e)))?;
    write_whole(&path, &owner, true)
}

/// Takes the query's name off the log: what is in it is not the query's any more.
pub(super) fn forget(log: &FileLog) -> Result<(), EngineError> {
    let path = log.dir().join(OWNER_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", &path, error)),
        _ => Ok(()),
    }
}

/// Before batch `batch_id`: the log is as the query left it.
pub(super) fn check_still(dir: &Path, log: &FileLog, query_id: &str, batch_id: i64) -> Result<(), EngineError> {
    match owner(log)? {
        Some(id) if id == query_id => log.check_latest().map_err(|_| log_removed(dir, batch_id)),
        Some(id) => Err(mismatch(dir, format!("the query {id} writes there now, and this query is {query_id}"))),
        None => Err(log_removed(dir, batch_id)),
    }
}

/// The query that the log names; none that can be read when its first start was cut short.
fn owner(log: &FileLog) -> Result<Option<String>, EngineError> {
    let path = log.dir().join(OWNER_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(serde_json::from_str::<Owner>(&text).ok().map(|owner| owner.id)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", &path, error)),
    }
}

fn checkpoint(start: &SinkStart<'_>) -> String {
    start.state_dir.parent().unwrap_or(start.state_dir).display().to_string()
}

fn mismatch(dir: &Path, what: String) -> EngineError {
    EngineError::Invalid {
        class: "STREAMING_SINK_MISMATCH",
        message: format!(
            "The log of the files in {}, {METADATA_DIR}, does not belong to this query's checkpoint: {what}. The checkpoint \
             was removed or replaced, or another query wrote there. Going on would leave out the rows of batches whose \
             numbers are taken. Restore the checkpoint that belongs to the files, write to another path, or remove both \
             {0} and the checkpoint to have the rows written anew.",
            dir.display()
        ),
    }
}

fn entries_missing(dir: &Path, batch_id: i64) -> EngineError {
    EngineError::Invalid {
        class: "STREAMING_SINK_LOG_INCOMPLETE",
        message: format!(
            "The log of the files in {0}, {METADATA_DIR}, lacks batch {batch_id}, which the query has written: the directory \
             or entries of its log were removed. No reader could read the table. Restore {0}/{METADATA_DIR}, or remove both \
             {0} and the query's checkpoint to have the rows written anew.",
            dir.display()
        ),
    }
}

/// The log was there when the query started and is gone now, before batch `batch_id`.
fn log_removed(dir: &Path, batch_id: i64) -> EngineError {
    EngineError::Invalid {
        class: "STREAMING_SINK_LOG_INCOMPLETE",
        message: format!(
            "The log of the files in {0}, {METADATA_DIR}, was removed while the query ran; batch {batch_id} is not written, \
             since no reader could read the table. Restore {0}/{METADATA_DIR}, or remove both {0} and the query's \
             checkpoint to have the rows written anew.",
            dir.display()
        ),
    }
}
