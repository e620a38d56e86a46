//! What the tests share.

use std::path::Path;
use std::sync::{Arc, mpsc};

use caudal_protocol::batch::{Batch, BatchBuilder, Batches};
use caudal_protocol::compression::Codec;
use caudal_protocol::{TopicPartition, Uuid};
use caudal_storage::{AppendOrigin, Log, LogConfig, LogDir, LogDirConfig, RealDisk, RecoveryReport, TopicLog};

pub const BASE_TIME_MS: i64 = 1_700_000_000_000;

pub const TOPIC_ID: Uuid = Uuid([7; 16]);

pub fn tp() -> TopicPartition {
    TopicPartition::new("games", 0)
}

pub fn open(path: &Path) -> (LogDir, RecoveryReport) {
    LogDir::open(path, LogDirConfig::default(), Arc::new(RealDisk)).unwrap()
}

pub fn create(dir: &LogDir, config: LogConfig) -> Arc<Log> {
    dir.create_log(TopicLog { topic_partition: tp(), topic_id: Some(TOPIC_ID), config }).unwrap()
}

/// Segments of a few kilobytes, an index entry every few hundred bytes.
pub fn small_segments() -> LogConfig {
    LogConfig { segment_bytes: 4096, index_interval_bytes: 256, ..LogConfig::default() }
}

/// A batch of `count` records whose values name themselves.
pub fn batch(first: i64, count: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    fill(&mut builder, first, count);
    builder.build().unwrap().to_vec()
}

pub fn idempotent(producer_id: i64, epoch: i16, sequence: i32, count: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None).producer(producer_id, epoch, sequence);
    fill(&mut builder, i64::from(sequence), count);
    builder.build().unwrap().to_vec()
}

fn fill(builder: &mut BatchBuilder, first: i64, count: usize) {
    for n in first..first + count as i64 {
        builder.append(BASE_TIME_MS + n, Some(b"key"), Some(format!("value {n}").as_bytes()), &[]);
    }
}

/// Appends batches of one record each, numbered from the log end.
pub fn append_records(log: &Arc<Log>, count: usize) {
    for _ in 0..count {
        log.append(&batch(log.log_end_offset(), 1), 0, AppendOrigin::Client).unwrap();
    }
}

/// All values from `offset` to the log end, with their offsets.
pub fn read_all(log: &Log, offset: i64) -> Vec<(i64, String)> {
    let mut values = Vec::new();
    let mut next = offset;
    while next < log.log_end_offset() {
        let slice = log.read(next, 1 << 20, i64::MAX, true).unwrap();
        let batches: Vec<Batch> = Batches::new(slice.to_bytes().unwrap()).map(Result::unwrap).collect();
        assert!(!batches.is_empty(), "nothing at {next}");
        for batch in batches {
            caudal_protocol::batch::check_crc(&batch.bytes).unwrap();
            for record in batch.records(1 << 20).unwrap().to_records().unwrap() {
                if record.offset >= next {
                    values.push((record.offset, String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
                }
            }
            next = batch.header.next_offset();
        }
    }
    values
}

/// Waits until everything below `end` is durable.
pub fn wait_durable(dir: &LogDir, log: &Arc<Log>, end: i64) {
    let (sender, receiver) = mpsc::channel();
    dir.flusher().notify_durable(log, end, Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv_timeout(std::time::Duration::from_secs(20)).unwrap().unwrap();
}

/// Compacted, with segments of a kilobyte.
pub fn compacted() -> LogConfig {
    LogConfig {
        segment_bytes: 1024,
        index_interval_bytes: 200,
        cleanup_delete: false,
        cleanup_compact: true,
        min_cleanable_dirty_ratio: 0.0,
        ..LogConfig::default()
    }
}

/// A batch of one record.
pub fn keyed(key: &str, value: Option<&str>) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.append(BASE_TIME_MS, Some(key.as_bytes()), value.map(str::as_bytes), &[]);
    builder.build().unwrap().to_vec()
}

/// A record as a reader sees it: offset, time, key, value.
pub type Seen = (i64, i64, String, Option<String>);

/// All records from `offset` to the log end, gaps allowed; checks that offsets ascend and every batch is whole.
pub fn read_records(log: &Log, offset: i64) -> Vec<Seen> {
    try_read_records(log, offset).unwrap()
}

/// As [`read_records`], with an error where something is missing.
pub fn try_read_records(log: &Log, offset: i64) -> Result<Vec<Seen>, String> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut next = offset;
    while next < log.log_end_offset() {
        let slice = log.read(next, 1 << 20, i64::MAX, true).map_err(|error| error.to_string())?;
        let batches: Vec<Batch> = Batches::new(slice.to_bytes().unwrap()).map(Result::unwrap).collect();
        if batches.is_empty() {
            return Err(format!("nothing from {next} on, the end is {}", log.log_end_offset()));
        }
        for batch in batches {
            caudal_protocol::batch::check_crc(&batch.bytes).unwrap();
            assert!(batch.header.next_offset() > next, "offsets ascend");
            for record in batch.records(1 << 20).unwrap().to_records().unwrap() {
                assert!(seen.last().is_none_or(|last| last.0 < record.offset));
                if record.offset >= offset {
                    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                    seen.push((record.offset, record.timestamp_ms, text(record.key.unwrap()), record.value.map(text)));
                }
            }
            next = batch.header.next_offset();
        }
    }
    Ok(seen)
}
