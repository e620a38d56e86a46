//! The sink's own log in the checkpoint (`kafka-sink.log`): for each batch the producer id and, per partition, the
//! sequence number and the offset before it and the number of its records. One JSON object per line; a line that a crash
//! tore is the last one and counts as absent.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use caudal_protocol::TopicPartition;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::file_log::{create_dirs, io_error, sync_dir};
use crate::options::invalid;

const FILE: &str = "kafka-sink.log";
/// The file is rewritten, with its last line only, when it has grown to this.
const ROTATE_BYTES: u64 = 1 << 20;

/// Where this producer stands in a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The sequence number of the next record.
    pub(super) sequence: i32,
    /// No record from that number on lies before this offset.
    pub(super) offset: i64,
    /// The records of the batch.
    #[serde(default)]
    pub(super) records: u64,
}

/// What was known before a batch was sent, and how much it sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub(super) batch_id: i64,
    pub(super) producer_id: i64,
    pub(super) producer_epoch: i16,
    /// Written when the query stopped in order: the batch is complete, nothing is on its way, and the positions are those
    /// behind the batch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) finished: bool,
    /// By topic and partition: every partition that this producer ever wrote to.
    partitions: BTreeMap<String, BTreeMap<i32, Position>>,
}

impl Entry {
    pub(super) fn new(batch_id: i64, producer: (i64, i16), positions: &BTreeMap<TopicPartition, Position>) -> Self {
        let mut partitions: BTreeMap<String, BTreeMap<i32, Position>> = BTreeMap::new();
        for (tp, position) in positions {
            partitions.entry(tp.topic.clone()).or_default().insert(tp.partition, *position);
        }
        Entry { batch_id, producer_id: producer.0, producer_epoch: producer.1, finished: false, partitions }
    }

    pub(super) fn producer(&self) -> (i64, i16) {
        (self.producer_id, self.producer_epoch)
    }

    /// The positions before the batch.
    pub(super) fn before(&self) -> BTreeMap<TopicPartition, Position> {
        let flat = self.partitions.iter().flat_map(|(topic, partitions)| {
            partitions.iter().map(move |(id, position)| (TopicPartition::new(topic.clone(), *id), *position))
        });
        flat.collect()
    }

    /// The positions after the batch; the offsets stay lower bounds.
    pub(super) fn after(&self) -> BTreeMap<TopicPartition, Position> {
        let mut positions = self.before();
        for position in positions.values_mut() {
            position.sequence = advance(position.sequence, position.records);
            position.records = 0;
        }
        positions
    }
}

/// Sequence numbers wrap from `i32::MAX` to 0.
pub(super) fn advance(sequence: i32, records: u64) -> i32 {
    let sum = u64::from(sequence.unsigned_abs()).wrapping_add(records) & 0x7fff_ffff;
    i32::try_from(sum).unwrap_or_default()
}

/// How far `to` lies after `from`; `None` when it lies before it.
pub(super) fn distance(from: i32, to: i32) -> Option<u64> {
    let ahead = u64::from(to.unsigned_abs()).wrapping_sub(u64::from(from.unsigned_abs())) & 0x7fff_ffff;
    (ahead < 1 << 30).then_some(ahead)
}

/// The log file, open for appending.
#[derive(Debug)]
pub(super) struct SinkLog {
    path: PathBuf,
    file: File,
}

impl SinkLog {
    /// Opens or creates the log in `dir` and returns its last entry.
    pub(super) fn open(dir: &Path) -> Result<(Self, Option<Entry>), EngineError> {
        create_dirs(dir)?;
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io_error("read", &path, error)),
        };
        let mut last: Option<Entry> = None;
        let lines: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').collect();
        for (i, line) in lines.iter().enumerate() {
            match serde_json::from_slice(line).ok().filter(|_| line.ends_with(b"\n")) {
                Some(entry) => last = Some(entry),
                None if i + 1 == lines.len() => {}
                None => {
                    return Err(invalid(format!("failed to read line {} of {}: it is damaged", i + 1, path.display())));
                }
            }
        }
        let log = Self::rewrite(path, last.as_ref())?;
        Ok((log, last))
    }

    /// Replaces the file by one that holds only `entry`: also gets rid of a torn line.
    fn rewrite(path: PathBuf, entry: Option<&Entry>) -> Result<Self, EngineError> {
        let temporary = path.with_extension("tmp");
        let failed = |e| io_error("write", &temporary, e);
        let mut file = File::create(&temporary).map_err(failed)?;
        if let Some(entry) = entry {
            file.write_all(line(entry)?.as_bytes()).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        fs::rename(&temporary, &path).map_err(|e| io_error("rename", &temporary, e))?;
        if let Some(dir) = path.parent() {
            sync_dir(dir)?;
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| io_error("open", &path, e))?;
        Ok(SinkLog { path, file })
    }

    /// Appends an entry; durable when this returns.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<(), EngineError> {
        let failed = |e| io_error("append to", &self.path, e);
        if self.file.metadata().map_err(failed)?.len() >= ROTATE_BYTES {
            *self = Self::rewrite(self.path.clone(), Some(entry))?;
            return Ok(());
        }
        self.file.write_all(line(entry)?.as_bytes()).map_err(failed)?;
        self.file.sync_data().map_err(failed)
    }
}

fn line(entry: &Entry) -> Result<String, EngineError> {
    let mut text = serde_json::to_string(entry).map_err(|e| invalid(e.to_string()))?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(batch_id: i64) -> Entry {
        let position = Position { sequence: i32::MAX - 1, offset: 7, records: 5 };
        Entry::new(batch_id, (1, 0), &[(TopicPartition::new("t", 0), position)].into_iter().collect())
    }

    #[test]
    fn a_torn_line_is_absent_and_sequences_wrap() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, last) = SinkLog::open(dir.path()).unwrap();
        assert_eq!(last, None);
        log.append(&entry(0)).unwrap();
        log.append(&entry(1)).unwrap();
        let path = dir.path().join(FILE);
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 3]).unwrap();
        let (_, last) = SinkLog::open(dir.path()).unwrap();
        assert_eq!(last, Some(entry(0)));
        let after = last.unwrap().after();
        assert_eq!(after[&TopicPartition::new("t", 0)], Position { sequence: 3, offset: 7, records: 0 });
        assert_eq!(distance(i32::MAX - 1, 3), Some(5));
        assert_eq!(distance(3, i32::MAX - 1), None);
    }
}
