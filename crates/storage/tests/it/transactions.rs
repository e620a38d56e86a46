//! Transactions that Apache Kafka wrote, as a log of this broker shows them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_storage::{AbortedTransaction, AppendOrigin, Log, LogConfig, LogDir};

use crate::support::*;

const ABORT: u8 = 0;
const COMMIT: u8 = 1;

/// Copies from a leader are taken as they are, transactions included.
fn copy(log: &Arc<Log>, builder: BatchBuilder, key: Option<&[u8]>) -> i64 {
    let offset = log.log_end_offset();
    let mut builder = builder.base_offset(offset).leader_epoch(0).transactional(true);
    builder.append(BASE_TIME_MS, key, Some(b"value"), &[]);
    log.append(&builder.build().unwrap(), 0, AppendOrigin::Replication).unwrap();
    offset
}

fn record(log: &Arc<Log>, producer_id: i64, sequence: i32) -> i64 {
    copy(log, BatchBuilder::new(Codec::None).producer(producer_id, 0, sequence), None)
}

fn marker(log: &Arc<Log>, producer_id: i64, kind: u8) -> i64 {
    copy(log, BatchBuilder::new(Codec::None).producer(producer_id, 0, -1).control(true), Some(&[0, 0, 0, kind]))
}

fn reopen(path: &Path, dir: LogDir) -> (LogDir, Arc<Log>) {
    drop(dir);
    let (dir, _) = open(path);
    let log = create(&dir, LogConfig::default());
    (dir, log)
}

#[test]
fn aborted_and_open_transactions_are_known() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    let first = record(&log, 7, 0);
    record(&log, 8, 0);
    record(&log, 7, 1);
    let aborted = marker(&log, 7, ABORT);
    marker(&log, 8, COMMIT);
    let open_one = record(&log, 9, 0);
    log.flush().unwrap();
    assert_eq!(log.last_stable_offset(), open_one);
    let expected = AbortedTransaction { producer_id: 7, first_offset: first, last_offset: aborted };
    // Killed: what the index does not say is found behind the last snapshot, and written into it.
    let (dir, log) = reopen(temp.path(), dir);
    assert_eq!((log.last_stable_offset(), log.aborted_transactions(0, 100)), (open_one, vec![expected]));
    assert_eq!(log.aborted_transactions(aborted + 1, 100), []);
    let index = fs::read(file_of(&log)).unwrap();
    let numbers = [7, first, aborted, 1i64];
    assert_eq!(index[2..], numbers.map(i64::to_be_bytes).concat());
    dir.close(-1).unwrap();
    // Stopped: it stands in the index only.
    let (dir, log) = reopen(temp.path(), dir);
    assert_eq!((log.last_stable_offset(), log.aborted_transactions(0, 100)), (open_one, vec![expected]));
    drop(dir);
}

fn file_of(log: &Log) -> std::path::PathBuf {
    log.dir().join(format!("{:020}.txnindex", 0))
}
