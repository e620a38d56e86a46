//! Transactions: what readers of committed records may see, what is fenced, what a crash leaves of it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use caudal_protocol::ErrorCode;
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_storage::crash::{CrashDisk, Fate};
use caudal_storage::{
    AbortedTransaction, AppendCost, AppendError, AppendOrigin, EndMarker, Log, LogConfig, LogDir, LogDirConfig,
    TransactionMarker, Verification,
};

use crate::support::*;

const ABORT: u8 = 0;
const COMMIT: u8 = 1;

/// Copies from a leader are taken as they are, transactions included.
fn copy(log: &Arc<Log>, builder: BatchBuilder, key: Option<&[u8]>) -> i64 {
    let offset = log.log_end_offset();
    let mut builder = builder.base_offset(offset).leader_epoch(0).transactional(true);
    let value: &[u8] = if key.is_some() { &[0, 0, 0, 0, 0, 3] } else { b"value" };
    builder.append(BASE_TIME_MS, key, Some(value), &[]);
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
    let expected =
        AbortedTransaction { producer_id: 7, first_offset: first, last_offset: aborted, last_stable_offset: 1 };
    // Killed: what the index does not say is found behind the last snapshot, and written into it in time.
    let (dir, log) = reopen(temp.path(), dir);
    assert_eq!((log.last_stable_offset(), log.aborted_transactions(0, 100)), (open_one, vec![expected]));
    assert_eq!(log.aborted_transactions(aborted + 1, 100), []);
    dir.close(-1).unwrap();
    let index = fs::read(file_of(&log)).unwrap();
    let numbers = [7, first, aborted, 1i64];
    assert_eq!(index[2..], numbers.map(i64::to_be_bytes).concat());
    // Stopped: it stands in the index only.
    let (dir, log) = reopen(temp.path(), dir);
    assert_eq!((log.last_stable_offset(), log.aborted_transactions(0, 100)), (open_one, vec![expected]));
    drop(dir);
}

fn file_of(log: &Log) -> std::path::PathBuf {
    log.dir().join(format!("{:020}.txnindex", 0))
}

/// A batch of a transactional client.
fn transactional(producer_id: i64, epoch: i16, sequence: i32) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None).producer(producer_id, epoch, sequence).transactional(true);
    // Markers carry the time of now: an older batch would end its segment.
    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    builder.append(now_ms, None, Some(b"value"), &[]);
    builder.build().unwrap().to_vec()
}

/// Appends as the broker does: asks for a guard, and has the coordinator's word.
fn produce(log: &Arc<Log>, producer_id: i64, epoch: i16, sequence: i32) -> Result<i64, AppendError> {
    let guard = log.start_verification((producer_id, epoch), sequence, true).unwrap_or(Verification::None);
    let batch = transactional(producer_id, epoch, sequence);
    Ok(log.append_verified(&batch, 0, AppendOrigin::Client, guard)?.base_offset)
}

fn end(log: &Arc<Log>, producer_id: i64, epoch: i16, marker: TransactionMarker) -> Result<i64, AppendError> {
    let marker = EndMarker { marker, coordinator_epoch: 3 };
    Ok(log.append_marker((producer_id, epoch), marker, 2, 0)?.base_offset)
}

fn refused<T: std::fmt::Debug>(result: Result<T, AppendError>) -> ErrorCode {
    result.unwrap_err().error_code()
}

#[test]
fn what_is_stable_waits_for_durable_markers() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig { segment_ms: i64::MAX, ..LogConfig::default() });
    append_records(&log, 2);
    produce(&log, 7, 0, 0).unwrap();
    produce(&log, 8, 0, 0).unwrap();
    produce(&log, 7, 0, 1).unwrap();
    assert_eq!(log.last_stable_offset(), 0, "nothing is durable");
    log.flush().unwrap();
    assert_eq!(log.last_stable_offset(), 2);
    end(&log, 7, 1, TransactionMarker::Abort).unwrap();
    assert_eq!(log.last_stable_offset(), 2, "decided, but the marker may be lost");
    log.flush().unwrap();
    assert_eq!(log.last_stable_offset(), 3);
    let aborted = log.aborted_transactions(0, 100);
    let expected = AbortedTransaction { producer_id: 7, first_offset: 2, last_offset: 5, last_stable_offset: 3 };
    assert_eq!(aborted, [expected]);
    assert_eq!(log.aborted_in(&log.read(0, 80, 100, true).unwrap(), 0, 100), [], "the first batch is none of it");
    assert_eq!(log.aborted_in(&log.read(0, 1 << 20, 100, true).unwrap(), 0, 100), [expected]);
    end(&log, 8, 1, TransactionMarker::Commit).unwrap();
    log.flush().unwrap();
    assert_eq!((log.last_stable_offset(), log.aborted_transactions(0, 100)), (7, vec![expected]));
    // Deleted from the start, an open transaction holds back nothing that is left.
    produce(&log, 9, 0, 0).unwrap();
    append_records(&log, 3);
    log.flush().unwrap();
    assert_eq!(log.last_stable_offset(), 7);
    log.delete_records_before(9).unwrap();
    assert_eq!(log.last_stable_offset(), 9);
}

#[test]
fn only_what_the_coordinator_knows_of_is_taken() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    let bare = |sequence| log.append(&transactional(7, 0, sequence), 0, AppendOrigin::Client);
    assert_eq!(refused(bare(0)), ErrorCode::InvalidTxnState);
    let guard = log.start_verification((7, 0), 0, true).unwrap();
    // A marker came between the coordinator's word and the batch.
    end(&log, 7, 0, TransactionMarker::Abort).unwrap();
    let late = log.append_verified(&transactional(7, 0, 0), 0, AppendOrigin::Client, guard);
    late.unwrap();
    // With epochs of their own the guard of the next transaction outlives the marker of the one before; without, it does not.
    let guard = log.start_verification((8, 0), 0, false).unwrap();
    end(&log, 8, 0, TransactionMarker::Abort).unwrap();
    let late = log.append_verified(&transactional(8, 0, 0), 0, AppendOrigin::Client, guard);
    assert_eq!(refused(late), ErrorCode::InvalidTxnState);
    log.append_verified(&transactional(9, 0, 0), 0, AppendOrigin::Client, Verification::Off).unwrap();
}

#[test]
fn markers_and_epochs_fence() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    let marker = EndMarker { marker: TransactionMarker::Commit, coordinator_epoch: 3 };
    assert_eq!(log.marker_cost((7, 5), marker, 0), AppendCost::Syncs, "the first of its epoch");
    produce(&log, 7, 4, 0).unwrap();
    assert_eq!(log.marker_cost((7, 5), marker, 0), AppendCost::Quick);
    assert!(log.start_verification((7, 4), 1, true).is_none(), "it is open");
    assert_eq!(refused(end(&log, 7, 4, TransactionMarker::Commit)), ErrorCode::InvalidProducerEpoch, "not newer");
    end(&log, 7, 5, TransactionMarker::Commit).unwrap();
    end(&log, 7, 5, TransactionMarker::Commit).unwrap();
    assert_eq!(refused(produce(&log, 7, 4, 1)), ErrorCode::InvalidProducerEpoch);
    assert_eq!(refused(produce(&log, 7, 5, 1)), ErrorCode::OutOfOrderSequenceNumber, "a new epoch begins at 0");
    produce(&log, 7, 5, 0).unwrap();
    let plain = log.append(&idempotent(7, 5, 1, 1), 0, AppendOrigin::Client);
    assert_eq!(refused(plain), ErrorCode::InvalidTxnState);
    let zombie = EndMarker { marker: TransactionMarker::Abort, coordinator_epoch: 2 };
    assert_eq!(refused(log.append_marker((7, 6), zombie, 2, 0)), ErrorCode::TransactionCoordinatorFenced);
    // Older clients end a transaction in its own epoch.
    let marker = EndMarker { marker: TransactionMarker::Abort, coordinator_epoch: 3 };
    log.append_marker((7, 5), marker, 0, 0).unwrap();
    let states = log.active_producers();
    assert_eq!((states[0].epoch, states[0].coordinator_epoch, states[0].transaction_first_offset), (5, 3, None));
}

#[test]
fn sequences_that_overtake_a_waiting_one_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    let first = log.start_verification((7, 0), 0, true).unwrap();
    let second = log.start_verification((7, 0), 1, true).unwrap();
    assert_eq!(first, second);
    let append = |sequence| log.append_verified(&transactional(7, 0, sequence), 0, AppendOrigin::Client, first);
    assert_eq!(refused(append(1)), ErrorCode::OutOfOrderSequenceNumber);
    append(0).unwrap();
    append(1).unwrap();
}

#[test]
fn a_damaged_transaction_index_is_made_anew() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    for n in 0..4 {
        produce(&log, 7, n, 0).unwrap();
        end(&log, 7, n + 1, TransactionMarker::Abort).unwrap();
    }
    log.flush().unwrap();
    let expected = log.aborted_transactions(0, 100);
    assert_eq!(expected.len(), 4);
    dir.close(-1).unwrap();
    let sound = fs::read(file_of(&log)).unwrap();
    assert_eq!(sound.len(), 4 * 34);
    drop((dir, log));
    for damaged in [sound[..40].to_vec(), [&sound[..34], &[0; 34]].concat(), vec![9; 34]] {
        let path = temp.path().join(tp().to_string()).join(format!("{:020}.txnindex", 0));
        fs::write(&path, damaged).unwrap();
        let (dir, _) = open(temp.path());
        let log = create(&dir, LogConfig::default());
        assert_eq!(log.aborted_transactions(0, 100), expected);
        dir.close(-1).unwrap();
        assert_eq!(fs::read(&path).unwrap(), sound);
    }
}

fn open_on(disk: &CrashDisk) -> (LogDir, Arc<Log>) {
    let log = LogConfig { segment_bytes: 500, index_interval_bytes: 100, ..LogConfig::default() };
    let config = LogDirConfig { flush_threads: 1, recovery_threads: 1, log: log.clone(), ..LogDirConfig::default() };
    let dir = LogDir::open(Path::new("/data"), config, Arc::new(disk.clone())).unwrap().0;
    let log = create(&dir, log);
    (dir, log)
}

/// What readers of committed records get: offsets of transactional batches that are not aborted, below the stable end.
fn committed(log: &Log) -> Vec<i64> {
    let end = log.last_stable_offset();
    let mut offsets = Vec::new();
    let mut next = 0;
    while next < end {
        let slice = log.read(next, 1 << 20, end, true).unwrap();
        let aborted = log.aborted_in(&slice, next, end);
        for batch in caudal_protocol::batch::Batches::new(slice.to_bytes().unwrap()).map(Result::unwrap) {
            let header = batch.header;
            let is_aborted = aborted.iter().any(|t| {
                t.producer_id == header.producer_id && (t.first_offset..t.last_offset).contains(&header.base_offset)
            });
            if header.is_transactional() && !header.is_control() && !is_aborted {
                offsets.push(header.base_offset);
            }
            next = header.next_offset();
        }
    }
    offsets
}

/// A power loss at any moment: committed records whose marker was durable are read, and never an aborted one.
#[test]
fn a_power_loss_shows_no_aborted_record_and_hides_no_committed_one() {
    let disk = CrashDisk::new();
    let (dir, log) = open_on(&disk);
    let (mut good, mut known) = (Vec::new(), vec![(0, 0)]);
    for n in 0..12i16 {
        let producer = 1 + i64::from(n % 3);
        let mut offsets = vec![produce(&log, producer, n, 0).unwrap()];
        log.flush().unwrap();
        offsets.push(produce(&log, producer, n, 1).unwrap());
        let commit = n % 2 == 0;
        let marker = if commit { TransactionMarker::Commit } else { TransactionMarker::Abort };
        end(&log, producer, n + 1, marker).unwrap();
        if commit {
            good.extend(offsets);
        }
        log.flush().unwrap();
        known.push((disk.operations(), good.len()));
        if n == 7 {
            dir.checkpoint().unwrap();
        }
    }
    drop((dir, log));
    for cut in 0..=disk.operations() {
        let durable = known.iter().rev().find(|known| known.0 <= cut).map_or(0, |known| known.1);
        let unsynced = disk.unsynced(cut);
        for fate in [Fate::Kept, Fate::Dropped, Fate::Torn(40)] {
            for odd in 0..=unsynced {
                let other = if fate == Fate::Kept { Fate::Dropped } else { Fate::Kept };
                let image = disk.image(cut, |n| if n == odd { other } else { fate });
                let (dir, log) = open_on(&image);
                for again in [false, true] {
                    let seen = committed(&log);
                    let what = || format!("cut {cut}, {fate:?} but {odd}, again {again}: {seen:?}");
                    assert!(seen.len() >= durable, "{durable} were durable, {}", what());
                    assert_eq!(seen, good[..seen.len()], "{}", what());
                    if !again {
                        // What is appended now must not be taken for what was lost.
                        append_records(&log, 3);
                        log.flush().unwrap();
                        dir.checkpoint().unwrap();
                    }
                }
                drop((dir, log));
                let (_dir, log) = open_on(&image);
                let seen = committed(&log);
                assert_eq!(seen, good[..seen.len()], "after a restart: cut {cut}, {fate:?} but {odd}");
            }
        }
    }
}
