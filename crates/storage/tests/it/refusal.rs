//! What fails and must leave everything else as it was: a roll half-way, a log deleted under a checkpoint, no descriptors.

use std::path::Path;
use std::sync::Arc;

use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{BatchBuilder, stamp_offset};
use caudal_protocol::compression::Codec;
use caudal_storage::crash::{CrashDisk, Fate};
use caudal_storage::{AppendError, AppendOrigin, Disk, FlushError, Log, LogConfig, LogDir, LogDirConfig};

use crate::support::*;

const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;

fn open_on(disk: &CrashDisk) -> (LogDir, Arc<Log>) {
    let dir = LogDir::open(Path::new("/data"), LogDirConfig::default(), Arc::new(disk.clone())).unwrap().0;
    let log = create(&dir, LogConfig { segment_bytes: 1_000, index_interval_bytes: 100, ..LogConfig::default() });
    (dir, log)
}

fn values(count: i64) -> Vec<(i64, String)> {
    (0..count).map(|n| (n, format!("value {n}"))).collect()
}

/// Appends until a new segment is begun, and fails in that; returns the end.
fn fail_to_roll(log: &Arc<Log>, disk: &CrashDisk, ending: &str, errno: i32) -> (i64, AppendError) {
    disk.set_open_fails(Some((ending, errno)));
    loop {
        let end = log.log_end_offset();
        if let Err(error) = log.append(&batch(end, 4), 0, AppendOrigin::Client) {
            disk.set_open_fails(None);
            return (end, error);
        }
    }
}

#[test]
fn a_roll_that_fails_half_way_leaves_no_segment() {
    for ending in [".log", ".index", ".timeindex"] {
        for left_behind in [false, true] {
            for stop in [false, true] {
                let disk = CrashDisk::new();
                let (dir, log) = open_on(&disk);
                let (end, error) = fail_to_roll(&log, &disk, ending, ENOSPC);
                assert!(matches!(error, AppendError::DiskFull { .. }), "{error}");
                let path = log.dir().join(format!("{end:020}.log"));
                assert!(!disk.exists(&path).unwrap(), "{ending}");
                if left_behind {
                    // As a version did that did not clean up.
                    disk.open(&path, caudal_storage::disk::OpenMode::Create).unwrap();
                }
                log.append(&batch(end, 1), 0, AppendOrigin::Client).unwrap();
                assert_eq!(log.segment_count(), 1, "a smaller batch fits in the old segment");
                let end = log.flush().unwrap();
                if stop {
                    dir.close(-1).unwrap();
                }
                let image = disk.image(disk.operations(), |_| Fate::Kept);
                let (_dir, log) = open_on(&image);
                assert_eq!(read_all(&log, 0), values(end), "{ending} {left_behind} {stop}");
                log.append(&batch(end, 4), 0, AppendOrigin::Client).unwrap();
                assert_eq!(read_all(&log, 0), values(end + 4));
            }
        }
    }
}

#[test]
fn an_empty_active_segment_stays() {
    let disk = CrashDisk::new();
    let (dir, log) = open_on(&disk);
    append_records(&log, 5);
    log.roll().unwrap();
    dir.close(-1).unwrap();
    drop((dir, log));
    let (_dir, log) = open_on(&disk);
    assert_eq!((log.segment_count(), log.log_end_offset()), (2, 5));
}

#[test]
fn a_log_may_be_deleted_at_any_moment() {
    let disk = CrashDisk::new();
    let dir = LogDir::open(Path::new("/data"), LogDirConfig::default(), Arc::new(disk.clone())).unwrap().0;
    for _ in 0..200 {
        let log = create(&dir, LogConfig { retention_ms: 1, ..LogConfig::default() });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for sequence in 0.. {
                    if log.append(&idempotent(5, 0, sequence, 1), 0, AppendOrigin::Client).is_err() {
                        break;
                    }
                    dir.checkpoint().unwrap();
                }
            });
            scope.spawn(|| while dir.log(&tp()).is_some() && dir.apply_retention() < 100 {});
            while log.log_end_offset() < 3 {
                std::thread::yield_now();
            }
            dir.delete_log(&tp()).unwrap();
        });
        dir.check_online().unwrap();
        assert_eq!(log.delete_records_before(0).unwrap_err().error_code(), ErrorCode::NotLeaderOrFollower);
    }
}

#[test]
fn without_descriptors_requests_are_refused_and_nothing_else() {
    let disk = CrashDisk::new();
    let (dir, log) = open_on(&disk);
    for (producer_id, ending) in (5..).zip([".log", ".index", ".timeindex", ".snapshot"]) {
        let sequence = i32::try_from(log.log_end_offset()).unwrap();
        log.append(&idempotent(producer_id, 0, sequence, 1), 0, AppendOrigin::Client).unwrap();
        let (_, error) = fail_to_roll(&log, &disk, ending, EMFILE);
        assert!(matches!(error, AppendError::Exhausted { .. }), "{error}");
        assert_eq!(error.error_code(), ErrorCode::KafkaStorageError);
        dir.check_online().unwrap();
        append_records(&log, 1);
    }
    disk.set_open_fails(Some(("partition.metadata", EMFILE)));
    while !matches!(log.flush(), Err(FlushError::Exhausted { .. })) {
        append_records(&log, 10);
    }
    assert!(log.durable_end_offset() < log.log_end_offset());
    disk.set_open_fails(None);
    assert_eq!(log.flush().unwrap(), log.log_end_offset());
    let end = log.log_end_offset();
    let image = disk.image(disk.operations(), |_| Fate::Dropped);
    assert_eq!(read_all(&open_on(&image).1, 0), values(end));
}

/// Batches as values, as whoever copies logs writes them.
#[test]
fn a_torn_batch_that_holds_batches_is_cut() {
    let mut builder = BatchBuilder::new(Codec::None);
    for n in 0..3 {
        let mut inner = batch(40 + n, 1);
        stamp_offset(&mut inner, 40 + n, 0);
        builder.append(BASE_TIME_MS, None, Some(&inner), &[]);
    }
    let outer = builder.build().unwrap().to_vec();
    for torn in [70, outer.len() / 2, outer.len() - 1] {
        let disk = CrashDisk::new();
        let (_dir, log) = open_on(&disk);
        append_records(&log, 3);
        log.flush().unwrap();
        let before = disk.operations();
        log.append(&outer, 0, AppendOrigin::Client).unwrap();
        assert_eq!(disk.operations(), before + 1);
        let image = disk.image(disk.operations(), |_| Fate::Torn(torn));
        let (_dir, log) = open_on(&image);
        assert_eq!(log.corrupt_ranges(), []);
        assert_eq!(read_all(&log, 0), values(3), "torn at {torn}");
    }
}

/// A length that is damaged is not a torn tail: acknowledged batches follow.
#[test]
fn a_damaged_length_is_no_torn_tail() {
    let disk = CrashDisk::new();
    let (_dir, log) = open_on(&disk);
    let first = batch(0, 1);
    append_records(&log, 5);
    log.flush().unwrap();
    let path = log.dir().join(format!("{:020}.log", 0));
    disk.flip(&path, first.len() as u64 + 9, 0x10);
    let image = disk.image(disk.operations(), |_| Fate::Kept);
    let (_dir, log) = open_on(&image);
    assert_eq!(log.log_end_offset(), 5);
    assert_eq!(log.corrupt_ranges().len(), 1);
    assert_eq!(read_all(&log, 2), values(5)[2..].to_vec());
}
