//! A power loss at every moment: what was acknowledged is there, and what is there is a prefix of what was written.

use std::path::Path;
use std::sync::Arc;

use caudal_protocol::ErrorCode;
use caudal_storage::crash::{CrashDisk, Fate};
use caudal_storage::{AppendOrigin, Log, LogConfig, LogDir, LogDirConfig};

use crate::support::*;

fn open_on(disk: &CrashDisk, log: LogConfig) -> LogDir {
    let config = LogDirConfig { flush_threads: 1, recovery_threads: 1, log, ..LogDirConfig::default() };
    LogDir::open(Path::new("/data"), config, Arc::new(disk.clone())).unwrap().0
}

fn tiny_segments() -> LogConfig {
    LogConfig { segment_bytes: 700, index_interval_bytes: 100, ..LogConfig::default() }
}

/// What was known to the outside when so many disk operations had been done.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    operations: usize,
    end_offset: i64,
}

/// Appends groups of batches, each group made durable by one flush, with checkpoints now and then.
fn workload(disk: &CrashDisk, groups: &[usize]) -> (Vec<Acknowledged>, i64) {
    let dir = open_on(disk, tiny_segments());
    let log = create(&dir, tiny_segments());
    let mut acknowledged = Vec::new();
    for (n, &count) in groups.iter().enumerate() {
        for _ in 0..count {
            let next = i32::try_from(log.log_end_offset()).unwrap();
            let epoch = i32::try_from(n / 3).unwrap();
            log.append(&idempotent(5, 0, next, 1 + n % 2), epoch, AppendOrigin::Client).unwrap();
        }
        let end_offset = log.flush().unwrap();
        acknowledged.push(Acknowledged { operations: disk.operations(), end_offset });
        if n % 4 == 3 {
            dir.checkpoint().unwrap();
        }
    }
    (acknowledged, log.log_end_offset())
}

fn check_image(image: &CrashDisk, acknowledged: i64, written: i64, what: &dyn Fn() -> String) {
    let dir = open_on(image, tiny_segments());
    let Some(log) = dir.log(&tp()) else {
        assert_eq!(acknowledged, 0, "the log is gone: {}", what());
        return;
    };
    log.set_config(tiny_segments());
    assert!(acknowledged == 0 || log.topic_id() == Some(TOPIC_ID), "{}", what());
    let end = log.log_end_offset();
    assert!(end >= acknowledged, "acknowledged to {acknowledged}, recovered to {end}: {}", what());
    assert!(end <= written, "recovered {end} of {written}: {}", what());
    assert!(log.corrupt_ranges().is_empty(), "a power loss is no medium error: {}", what());
    let expected: Vec<_> = (0..end).map(|n| (n, format!("value {n}"))).collect();
    assert_eq!(read_all(&log, 0), expected, "{}", what());
    goes_on(&log, end, what);
    assert_eq!(create(&dir, tiny_segments()).topic_id(), Some(TOPIC_ID));
}

/// The producer's next batch is taken, its retry is recognised, a gap is not.
fn goes_on(log: &Arc<Log>, end: i64, what: &dyn Fn() -> String) {
    let sequence = i32::try_from(end).unwrap();
    for duplicate in [false, true] {
        let info = log.append(&idempotent(5, 0, sequence, 1), 99, AppendOrigin::Client);
        let info = info.unwrap_or_else(|error| panic!("{error}: {}", what()));
        assert_eq!((info.base_offset, info.duplicate), (end, duplicate), "{}", what());
    }
    let gap = log.append(&idempotent(5, 0, sequence + 2, 1), 99, AppendOrigin::Client).unwrap_err();
    assert_eq!(gap.error_code(), ErrorCode::OutOfOrderSequenceNumber);
    log.flush().unwrap();
}

/// All kept, all dropped, each alone dropped, each alone kept, each torn with the rest kept or dropped, and some mixed.
fn fates(unsynced: usize) -> Vec<Vec<Fate>> {
    let mut fates = vec![vec![Fate::Kept; unsynced], vec![Fate::Dropped; unsynced]];
    for at in 0..unsynced {
        for (one, others) in [
            (Fate::Dropped, Fate::Kept),
            (Fate::Kept, Fate::Dropped),
            (Fate::Torn(40), Fate::Kept),
            (Fate::Torn(70), Fate::Dropped),
        ] {
            let mut fate = vec![others; unsynced];
            fate[at] = one;
            fates.push(fate);
        }
        fates.push((0..unsynced).map(|n| if n < at { Fate::Kept } else { Fate::Dropped }).collect());
        let mixed = |n: usize| if (n * 7 + at * 3) % 5 < 2 { Fate::Kept } else { Fate::Dropped };
        fates.push((0..unsynced).map(mixed).collect());
    }
    fates
}

#[test]
fn every_cut_recovers_to_a_prefix_with_all_that_was_acknowledged() {
    let disk = CrashDisk::new();
    let (acknowledged, written) = workload(&disk, &[1, 3, 2, 4, 1, 3, 5, 2, 1]);
    let mut images = 0;
    for cut in 0..=disk.operations() {
        let known = acknowledged.iter().rev().find(|known| known.operations <= cut).map_or(0, |known| known.end_offset);
        for fate in fates(disk.unsynced(cut)) {
            let image = disk.image(cut, |n| fate[n]);
            check_image(&image, known, written, &|| format!("cut after {cut} operations, {fate:?}"));
            images += 1;
        }
    }
    assert!(images > 1000, "only {images} images");
}

#[test]
fn a_cut_during_recovery_loses_nothing_either() {
    let disk = CrashDisk::new();
    let (acknowledged, written) = workload(&disk, &[2, 3, 4]);
    let known = acknowledged.last().unwrap().end_offset;
    // Leave a torn tail behind, recover from it, append, and cut again anywhere.
    let dir = open_on(&disk, tiny_segments());
    let log = dir.log(&tp()).unwrap();
    for _ in 0..3 {
        let sequence = i32::try_from(log.log_end_offset()).unwrap();
        log.append(&idempotent(5, 0, sequence, 1), 9, AppendOrigin::Client).unwrap();
    }
    let written = written.max(log.log_end_offset());
    let cut = disk.operations();
    let unsynced = disk.unsynced(cut);
    for torn in 0..unsynced {
        let first = disk.image(cut, |n| if n == torn { Fate::Torn(50) } else { Fate::Kept });
        let second = open_on(&first, tiny_segments());
        let log = second.log(&tp()).unwrap();
        let end = log.log_end_offset();
        let sequence = i32::try_from(end).unwrap();
        log.append(&idempotent(5, 0, sequence, 1), 9, AppendOrigin::Client).unwrap();
        let before = first.operations();
        log.flush().unwrap();
        for cut in 0..=first.operations() {
            let known = if cut > before { end + 1 } else { known };
            for fate in fates(first.unsynced(cut)) {
                let image = first.image(cut, |n| fate[n]);
                check_image(&image, known, written + 1, &|| format!("torn {torn}, cut {cut}, {fate:?}"));
            }
        }
    }
}

#[test]
fn a_failed_fsync_is_never_retried_into_an_acknowledgement() {
    let disk = CrashDisk::new();
    let dir = open_on(&disk, LogConfig::default());
    let log = create(&dir, LogConfig::default());
    append_records(&log, 2);
    wait_durable(&dir, &log, 2);
    disk.set_sync_fails(true);
    append_records(&log, 1);
    let wait = |end| {
        let (sender, receiver) = std::sync::mpsc::channel();
        dir.flusher().notify_durable(&log, end, Box::new(move |result| sender.send(result).unwrap()));
        receiver.recv_timeout(std::time::Duration::from_secs(20)).unwrap()
    };
    assert!(wait(3).is_err());
    disk.set_sync_fails(false);
    assert!(wait(3).is_err(), "the kernel may have dropped the pages");
    assert_eq!(log.durable_end_offset(), 2);
    let refused = log.append(&batch(3, 1), 0, AppendOrigin::Client).unwrap_err();
    assert_eq!(refused.error_code(), ErrorCode::KafkaStorageError);
    assert!(dir.check_online().is_err() && dir.close(-1).is_err());
    drop((dir, log));
    let dir = open_on(&disk, LogConfig::default());
    assert_eq!(dir.log(&tp()).unwrap().log_end_offset(), 3, "the restart finds what is on the disk");
}

#[test]
fn a_full_disk_refuses_and_recovers_by_itself() {
    let disk = CrashDisk::new();
    let dir = open_on(&disk, tiny_segments());
    let log = create(&dir, tiny_segments());
    append_records(&log, 3);
    log.flush().unwrap();
    for space in 0..200 {
        disk.set_space_left(Some(space));
        while log.append(&batch(log.log_end_offset(), 1), 0, AppendOrigin::Client).is_ok() {}
        let refused = log.append(&batch(log.log_end_offset(), 1), 0, AppendOrigin::Client).unwrap_err();
        assert_eq!(refused.error_code(), ErrorCode::KafkaStorageError, "{refused}");
        assert_eq!(read_all(&log, 0).len() as i64, log.log_end_offset());
        disk.set_space_left(None);
        append_records(&log, 1);
    }
    let end = log.log_end_offset();
    log.flush().unwrap();
    drop((dir, log));
    check_image(&disk.image(disk.operations(), |_| Fate::Dropped), 0, end, &|| "after a full disk".to_owned());
}
