//! Deleting by time, by size, on request.

use caudal_storage::{AppendOrigin, LogConfig, ReadError};

use crate::support::*;

#[test]
fn segments_go_by_time_and_the_active_one_too_when_all_is_old() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let config = LogConfig { retention_ms: 1000, ..small_segments() };
    let log = create(&dir, config.clone());
    append_records(&log, 200);
    log.flush().unwrap();
    let segments = log.segment_count();
    assert_eq!(log.apply_retention(BASE_TIME_MS + 1000).unwrap(), 0);
    // Records carry their offset as their time.
    assert!(log.apply_retention(BASE_TIME_MS + 1100).unwrap() > 0);
    let start = log.log_start_offset();
    assert!(start > 0 && start <= 101, "{start}");
    let slice = log.read(start, 1 << 20, i64::MAX, true).unwrap();
    let left = log.segment_count();
    assert!(left < segments);
    assert_eq!(log.apply_retention(BASE_TIME_MS + 2000).unwrap(), left, "all but the new active one");
    assert_eq!((log.log_start_offset(), log.log_end_offset(), log.size_bytes()), (200, 200, 0));
    assert!(!slice.to_bytes().unwrap().is_empty(), "a reader keeps its file");
    assert!(matches!(log.read(start, 1, i64::MAX, true), Err(ReadError::OffsetOutOfRange { start: 200, .. })));
    append_records(&log, 1);
    dir.close(-1).unwrap();
    drop((dir, log));
    let (dir, _) = open(temp.path());
    let log = dir.log(&tp()).unwrap();
    assert_eq!((log.log_start_offset(), log.log_end_offset()), (200, 201));
}

#[test]
fn segments_go_by_size() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig { retention_ms: -1, retention_bytes: 10_000, ..small_segments() });
    append_records(&log, 300);
    log.flush().unwrap();
    assert!(log.apply_retention(i64::MAX).unwrap() > 0);
    assert!((10_000..10_000 + 4096).contains(&log.size_bytes()), "{}", log.size_bytes());
    assert_eq!(log.apply_retention(i64::MAX).unwrap(), 0);
    log.set_config(LogConfig { cleanup_delete: false, cleanup_compact: true, retention_bytes: 0, ..small_segments() });
    assert_eq!(log.apply_retention(i64::MAX).unwrap(), 0, "compacted logs are not cut");
}

#[test]
fn the_wall_clock_does_not_delete() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let log = create(&dir, small_segments());
    for n in 0..100 {
        let mut builder = caudal_protocol::batch::BatchBuilder::new(caudal_protocol::compression::Codec::None);
        builder.append(now + n, None, Some(&[1; 100]), &[]);
        log.append(&builder.build().unwrap(), 0, caudal_storage::AppendOrigin::Client).unwrap();
    }
    log.flush().unwrap();
    assert_eq!(dir.apply_retention(), 0);
}

/// A clock that leapt while the broker was stopped.
#[test]
fn the_wall_clock_does_not_delete_after_a_restart_either() {
    const DAY_MS: i64 = 86_400_000;
    let temp = tempfile::tempdir().unwrap();
    let clock = temp.path().join("caudal-retention-clock");
    let (dir, _) = open(temp.path());
    let now_ms = caudal_storage::wall_clock_ms();
    let stored = std::fs::read_to_string(&clock).unwrap();
    let believed_ms: i64 = stored.lines().nth(1).unwrap().parse().unwrap();
    assert!((0..60_000).contains(&(now_ms - believed_ms)), "{stored}");
    let log = create(&dir, small_segments());
    for _ in 0..100 {
        let mut builder = caudal_protocol::batch::BatchBuilder::new(caudal_protocol::compression::Codec::None);
        builder.append(now_ms - 40 * DAY_MS, None, Some(&[1; 100]), &[]);
        log.append(&builder.build().unwrap(), 0, AppendOrigin::Client).unwrap();
    }
    dir.close(-1).unwrap();
    drop((dir, log));
    // As if the records were new when the directory was last in use.
    std::fs::write(&clock, format!("0\n{}\n0\n", now_ms - 40 * DAY_MS)).unwrap();
    let (dir, _) = open(temp.path());
    assert_eq!(dir.apply_retention(), 0);
    assert!(dir.now_ms() < now_ms - 39 * DAY_MS);
    drop(dir);
    // The leap has stood for a day.
    std::fs::write(&clock, format!("0\n{}\n{DAY_MS}\n", now_ms - 40 * DAY_MS)).unwrap();
    let (dir, _) = open(temp.path());
    assert!(dir.now_ms() >= now_ms);
    assert!(dir.apply_retention() > 0);
    drop(dir);
    // One that cannot be read is no reason not to start.
    std::fs::write(&clock, "nonsense").unwrap();
    assert!(open(temp.path()).0.now_ms() >= now_ms);
}

#[test]
fn delete_records_moves_the_start_and_survives_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, small_segments());
    append_records(&log, 100);
    assert!(log.delete_records_before(50).is_err(), "not above the durable end");
    log.flush().unwrap();
    assert_eq!(log.delete_records_before(55).unwrap(), 55);
    assert_eq!(log.delete_records_before(10).unwrap(), 55, "never backwards");
    assert!(log.read(54, 1, i64::MAX, true).is_err());
    dir.checkpoint().unwrap();
    drop((dir, log));
    let (dir, _) = open(temp.path());
    let log = dir.log(&tp()).unwrap();
    assert_eq!(log.log_start_offset(), 55);
    assert_eq!(read_all(&log, 55).len(), 45);
    assert_eq!(log.delete_records_before(100).unwrap(), 100);
    append_records(&log, 1);
    assert_eq!(read_all(&log, 100), [(100, "value 100".to_owned())]);
}

#[test]
fn segments_roll_by_the_time_of_their_records() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig { segment_ms: 10, ..LogConfig::default() });
    append_records(&log, 34);
    assert_eq!(log.segment_count(), 4);
    log.set_config(LogConfig { segment_index_bytes: 24, index_interval_bytes: 1, ..LogConfig::default() });
    let before = log.segment_count();
    append_records(&log, 20);
    assert!(log.segment_count() > before + 3, "a full index rolls");
}

#[test]
fn snapshots_of_producers_go_with_the_records() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, small_segments());
    for sequence in 0..120 {
        log.append(&idempotent(1, 0, sequence, 1), 0, AppendOrigin::Client).unwrap();
        if sequence % 7 == 0 {
            dir.checkpoint().unwrap();
        }
    }
    log.flush().unwrap();
    let snapshots = || {
        let names =
            std::fs::read_dir(log.dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let offsets =
            names.filter_map(|name| name.strip_suffix(".snapshot").map(|offset| offset.parse::<i64>().unwrap()));
        offsets.collect::<Vec<_>>()
    };
    assert!(snapshots().iter().any(|offset| *offset < 60));
    log.delete_records_before(119).unwrap();
    let first = std::fs::read_dir(log.dir()).unwrap().filter_map(|entry| {
        entry.unwrap().file_name().into_string().unwrap().strip_suffix(".log").and_then(|base| base.parse::<i64>().ok())
    });
    let first = first.min().unwrap();
    assert!(first > 0 && snapshots().iter().all(|offset| *offset >= first), "{:?} below {first}", snapshots());
    // What is left is enough: a retry is known after a crash.
    drop((dir, log));
    let (dir, _) = open(temp.path());
    let log = dir.log(&tp()).unwrap();
    let retried = log.append(&idempotent(1, 0, 119, 1), 0, AppendOrigin::Client).unwrap();
    assert!(retried.duplicate && retried.base_offset == 119, "{retried:?}");
}

/// As after a deletion that failed: the directory is still there, its log is not.
#[test]
fn a_new_log_takes_nothing_over_from_one_that_could_not_be_deleted() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let other = temp.path().join("old");
    {
        let (old, _) = open(&other);
        let log = create(&old, small_segments());
        append_records(&log, 200);
        old.close(-1).unwrap();
    }
    std::fs::rename(other.join("games-0"), temp.path().join("games-0")).unwrap();
    let log = create(&dir, small_segments());
    assert_eq!(log.log_end_offset(), 0);
    append_records(&log, 3);
    dir.close(-1).unwrap();
    drop((dir, log));
    let (dir, _) = open(temp.path());
    let log = dir.log(&tp()).unwrap();
    assert_eq!((log.log_start_offset(), log.log_end_offset(), log.segment_count()), (0, 3, 1));
    let strays = std::fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let strays: Vec<_> = strays.filter(|name| name.ends_with("-stray")).collect();
    assert!(strays.len() == 1 && strays[0].starts_with("games-0."), "{strays:?}");
}
