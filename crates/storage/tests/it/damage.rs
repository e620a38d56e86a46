//! Damaged files: what is cut, what is kept, what is rebuilt.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use caudal_protocol::batch::Batches;
use caudal_protocol::{ErrorCode, TopicPartition};
use caudal_storage::crash::CrashDisk;
use caudal_storage::disk::{Disk, OpenMode};
use caudal_storage::{AppendOrigin, LogConfig, LogDir, LogDirConfig, OpenError, RecoveryReport, TopicLog};
use proptest::prelude::*;

use crate::support::*;

fn expected(from: i64, to: i64) -> Vec<(i64, String)> {
    (from..to).map(|n| (n, format!("value {n}"))).collect()
}

/// A log of `count` records after a crash.
fn crashed(path: &Path, config: LogConfig, count: usize, checkpoint: bool) {
    let (dir, _) = open(path);
    let log = create(&dir, config);
    append_records(&log, count);
    log.flush().unwrap();
    if checkpoint {
        dir.checkpoint().unwrap();
    }
}

fn file(path: &Path, base: i64, suffix: &str) -> PathBuf {
    path.join("games-0").join(format!("{base:020}.{suffix}"))
}

fn cut_and_rebuilt(report: &RecoveryReport) -> (u64, usize) {
    report.logs.iter().fold((0, 0), |(cut, rebuilt), (_, log)| (cut + log.bytes_cut, rebuilt + log.indexes_rebuilt))
}

#[test]
fn a_torn_tail_is_cut_and_counted() {
    let record = batch(0, 1).len() as u64;
    for missing in [1, 20, record - 1] {
        let temp = tempfile::tempdir().unwrap();
        crashed(temp.path(), LogConfig::default(), 50, false);
        let path = file(temp.path(), 0, "log");
        let len = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len - missing).unwrap();
        let (dir, report) = open(temp.path());
        let log = dir.log(&tp()).unwrap();
        assert_eq!(read_all(&log, 0), expected(0, 49));
        let last = batch(49, 1).len() as u64;
        assert_eq!(cut_and_rebuilt(&report).0, last - missing);
        append_records(&log, 1);
        assert_eq!(read_all(&log, 0), expected(0, 50));
    }
}

#[test]
fn garbage_behind_the_end_is_cut() {
    let temp = tempfile::tempdir().unwrap();
    crashed(temp.path(), LogConfig::default(), 20, true);
    let path = file(temp.path(), 0, "log");
    let len = fs::metadata(&path).unwrap().len();
    let garbage: Vec<u8> = (0..3000u32).map(|n| (n * n % 251) as u8).collect();
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&garbage, len).unwrap();
    let (dir, report) = open(temp.path());
    assert_eq!(cut_and_rebuilt(&report).0, 3000);
    assert_eq!(read_all(&dir.log(&tp()).unwrap(), 0), expected(0, 20));
}

#[test]
fn a_flipped_bit_in_the_middle_cuts_nothing_and_is_never_served() {
    let temp = tempfile::tempdir().unwrap();
    crashed(temp.path(), small_segments(), 120, false);
    let path = file(temp.path(), 0, "log");
    // Into the value of the eleventh record.
    let position = (0..10).map(|n| batch(n, 1).len() as u64).sum::<u64>() + 75;
    let disk = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    disk.read_exact_at(&mut byte, position).unwrap();
    disk.write_all_at(&[byte[0] ^ 1], position).unwrap();
    for start in 0..3 {
        let (dir, report) = open(temp.path());
        let log = dir.log(&tp()).unwrap();
        assert_eq!(cut_and_rebuilt(&report).0, 0);
        assert_eq!(log.log_end_offset(), 120, "start {start}");
        let ranges = log.corrupt_ranges();
        assert_eq!((ranges.len(), ranges[0].first_offset, ranges[0].next_offset), (1, 10, 11));
        assert_eq!(read_all(&log, 11), expected(11, 120));
        let refused = log.read(10, 1000, i64::MAX, true).unwrap_err();
        assert_eq!(refused.error_code(), ErrorCode::CorruptMessage);
        assert!(refused.to_string().contains("games-0") && refused.to_string().contains(".log"), "{refused}");
        let before = log.read(0, 1 << 20, i64::MAX, true).unwrap();
        assert_eq!(before.len as u64, ranges[0].start_position, "what is served ends before the damage");
        assert_eq!(log.offset_for_timestamp(BASE_TIME_MS + 10).unwrap().map(|found| found.offset), Some(11));
        // However the run ends, the next start finds the damage again.
        match start {
            0 => dir.close(-1).unwrap(),
            1 => dir.checkpoint().unwrap(),
            _ => {}
        }
    }
}

#[test]
fn of_a_file_that_is_cut_under_a_running_log_the_rest_is_served() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    append_records(&log, 50);
    log.flush().unwrap();
    let whole: u64 = (0..20).map(|n| batch(n, 1).len() as u64).sum();
    let path = file(temp.path(), 0, "log");
    let cut = |to: u64| fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(to).unwrap();
    // Within a batch, and within a header; then between two.
    for to in [whole + 70, whole + 20, whole] {
        cut(to);
        let left = log.read(0, 1 << 20, i64::MAX, true).unwrap();
        assert_eq!(left.len as u64, to);
        let offsets: Vec<_> =
            Batches::new(left.to_bytes().unwrap()).map_while(|b| Some(b.ok()?.header.base_offset)).collect();
        assert_eq!(offsets, (0..20).collect::<Vec<_>>());
        for gone in [20, 30, 49] {
            let refused = log.read(gone, 1 << 20, i64::MAX, true).unwrap_err();
            assert_eq!(refused.error_code(), ErrorCode::CorruptMessage, "offset {gone} of a file of {to}: {refused}");
        }
    }
}

/// The CRC does not cover it. The last batch has an index entry of its own, or one before it has the last one.
#[test]
fn a_flipped_bit_in_the_last_base_offset_takes_no_other_records_along() {
    for index_interval_bytes in [1, 4096] {
        let temp = tempfile::tempdir().unwrap();
        let (dir, _) = open(temp.path());
        let log = create(&dir, LogConfig { index_interval_bytes, ..LogConfig::default() });
        append_records(&log, 120);
        log.flush().unwrap();
        dir.close(-1).unwrap();
        drop((log, dir));
        let path = file(temp.path(), 0, "log");
        let position = fs::metadata(&path).unwrap().len() - batch(119, 1).len() as u64 + 7;
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[119 ^ 32], position).unwrap();
        for end in 120..123 {
            let (dir, _) = open(temp.path());
            let log = dir.log(&tp()).unwrap();
            let damaged: Vec<_> = log.corrupt_ranges().iter().map(|r| (r.first_offset, r.next_offset)).collect();
            assert_eq!((damaged, log.log_end_offset()), (vec![(119, 120)], end), "{index_interval_bytes}");
            assert_eq!(log.read(0, 1 << 20, i64::MAX, true).unwrap().len as u64, position - 7);
            append_records(&log, 1);
            assert_eq!(read_all(&log, 120), expected(120, end + 1));
            dir.close(-1).unwrap();
        }
    }
}

/// Sectors that read as zeros look like writes that a power loss took. They are not, where they were durable.
#[test]
fn zeroed_sectors_in_the_middle_cut_nothing_however_often_it_is_started() {
    for ends in [["close", "close", "close"], ["checkpoint", "crash", "close"], ["close", "checkpoint", "crash"]] {
        let temp = tempfile::tempdir().unwrap();
        crashed(temp.path(), LogConfig::default(), 120, true);
        let path = file(temp.path(), 0, "log");
        let zeroed = fs::OpenOptions::new().write(true).open(&path).unwrap();
        // Behind the last index entry, where the start looks, from a batch's beginning on.
        let position = (0..100).map(|n| batch(n, 1).len() as u64).sum();
        zeroed.write_all_at(&[0; 1024], position).unwrap();
        let damaged = |offset: i64| (100..120).contains(&offset);
        let mut end = 120;
        for how in ends {
            let (dir, report) = open(temp.path());
            let log = dir.log(&tp()).unwrap();
            assert_eq!((cut_and_rebuilt(&report).0, log.log_end_offset()), (0, end), "{ends:?} {how}");
            let range = log.corrupt_ranges()[0];
            assert!(damaged(range.first_offset) && damaged(range.next_offset), "{range:?}");
            assert_eq!(read_all(&log, range.next_offset), expected(range.next_offset, end));
            append_records(&log, 5);
            log.flush().unwrap();
            end += 5;
            match how {
                "close" => dir.close(-1).unwrap(),
                "checkpoint" => dir.checkpoint().unwrap(),
                _ => {}
            }
        }
        let (dir, _) = open(temp.path());
        assert_eq!(dir.log(&tp()).unwrap().log_end_offset(), end);
    }
}

#[test]
fn indexes_are_rebuilt() {
    for clean in [true, false] {
        for damage in ["remove", "empty", "garbage", "odd"] {
            let temp = tempfile::tempdir().unwrap();
            let (dir, _) = open(temp.path());
            let log = create(&dir, small_segments());
            append_records(&log, 200);
            dir.checkpoint().unwrap();
            if clean {
                dir.close(-1).unwrap();
            }
            drop((dir, log));
            for entry in fs::read_dir(temp.path().join("games-0")).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|suffix| suffix == "index" || suffix == "timeindex") {
                    match damage {
                        "remove" => fs::remove_file(&path).unwrap(),
                        "empty" => fs::write(&path, b"").unwrap(),
                        "garbage" => fs::write(&path, [0xff; 240]).unwrap(),
                        _ => fs::write(&path, [7; 13]).unwrap(),
                    }
                }
            }
            let (dir, report) = open(temp.path());
            let log = dir.log(&tp()).unwrap();
            for from in [0, 33, 150] {
                assert_eq!(read_all(&log, from), expected(from, 200), "{damage}");
            }
            assert_eq!(log.offset_for_timestamp(BASE_TIME_MS + 77).unwrap().map(|found| found.offset), Some(77));
            if damage != "empty" {
                assert!(cut_and_rebuilt(&report).1 > 1, "clean {clean}, {damage}: {report:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever the files hold, opening ends with a log that works or with an error, and what is read has a right CRC.
    #[test]
    fn arbitrary_damage_never_panics_nor_serves_bad_bytes(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u16>(), 1u8..), 1..12),
        clean: bool,
    ) {
        let disk = CrashDisk::new();
        let open = || LogDir::open(Path::new("/data"), LogDirConfig::default(), Arc::new(disk.clone()));
        let (dir, _) = open().unwrap();
        let log = create(&dir, LogConfig { segment_bytes: 1000, index_interval_bytes: 150, ..LogConfig::default() });
        append_records(&log, 60);
        dir.checkpoint().unwrap();
        append_records(&log, 20);
        if clean {
            dir.close(-1).unwrap();
        }
        drop((dir, log));
        let partition = Path::new("/data/games-0");
        let mut files: Vec<PathBuf> = disk.list(partition).unwrap().iter().map(|entry| partition.join(&entry.name)).collect();
        files.sort();
        for (file, position, mask) in &damage {
            let file = file.get(&files);
            let len = disk.open(file, OpenMode::Read).unwrap().size().unwrap();
            disk.flip(file, u64::from(*position) % len.max(1), *mask);
        }
        let Ok((dir, _)) = open() else { return Ok(()) };
        let log = dir.log(&tp()).unwrap();
        let mut next = log.log_start_offset();
        while next < log.log_end_offset() {
            let slice = log.read(next, 700, i64::MAX, true);
            let batches = slice.map(|slice| Batches::new(slice.to_bytes().unwrap()));
            next += 1;
            // Bytes below the recovery point are trusted, as in Kafka: clients check the CRC.
            for batch in batches.into_iter().flatten().map_while(Result::ok) {
                next = next.max(batch.header.next_offset());
            }
        }
        let end = log.log_end_offset();
        prop_assert!(end >= 60, "durable offsets are not given out again: {}", end);
        prop_assert_eq!(log.append(&batch(0, 1), 0, AppendOrigin::Client).unwrap().base_offset, end);
    }
}

#[test]
fn missing_durable_records_do_not_lend_their_offsets() {
    let temp = tempfile::tempdir().unwrap();
    crashed(temp.path(), LogConfig::default(), 20, true);
    fs::OpenOptions::new().write(true).open(file(temp.path(), 0, "log")).unwrap().set_len(0).unwrap();
    for start in 0..2 {
        let (dir, _) = open(temp.path());
        let log = dir.log(&tp()).unwrap();
        assert_eq!(log.log_end_offset(), 20 + start);
        append_records(&log, 1);
        assert_eq!(read_all(&log, 0), expected(20, 21 + start));
        dir.close(-1).unwrap();
    }
}

#[test]
fn a_topic_of_the_same_name_does_not_inherit_checkpoints() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    append_records(&log, 30);
    dir.checkpoint().unwrap();
    log.delete_records_before(20).unwrap();
    dir.checkpoint().unwrap();
    dir.delete_log(&tp()).unwrap();
    let log = create(&dir, LogConfig::default());
    append_records(&log, 5);
    log.flush().unwrap();
    drop((dir, log));
    let (dir, report) = open(temp.path());
    let log = dir.log(&tp()).unwrap();
    assert_eq!((log.log_start_offset(), log.log_end_offset()), (0, 5), "{report:?}");
    assert_eq!(read_all(&log, 0), expected(0, 5));
}

#[test]
fn leftovers_of_interrupted_deletions_go() {
    let temp = tempfile::tempdir().unwrap();
    crashed(temp.path(), LogConfig::default(), 3, false);
    let doomed = temp.path().join("old-0.0123456789abcdef0123456789abcdef-delete");
    fs::create_dir(&doomed).unwrap();
    fs::create_dir(temp.path().join("lost+found")).unwrap();
    let orphan = file(temp.path(), 1, "index");
    fs::write(&orphan, b"12345678").unwrap();
    let deleted = temp.path().join("games-0").join("00000000000000000000.log.deleted");
    fs::write(&deleted, b"x").unwrap();
    let (dir, report) = open(temp.path());
    assert!(!doomed.exists() && !orphan.exists() && !deleted.exists());
    assert_eq!(report.ignored, ["lost+found"]);
    dir.log(&tp()).unwrap().set_config(LogConfig { file_delete_delay_ms: 0, ..LogConfig::default() });
    assert!(dir.delete_log(&tp()).unwrap() && !dir.delete_log(&tp()).unwrap());
    let left: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("games")), "{left:?}");
}

#[test]
fn deleted_logs_stay_for_a_while_and_strays_for_good() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let named = |part: &str| {
        let names = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("games-0") && name.ends_with(part)).count()
    };
    append_records(&create(&dir, LogConfig { file_delete_delay_ms: 60_000, ..LogConfig::default() }), 1);
    dir.delete_log(&tp()).unwrap();
    dir.remove_doomed();
    assert_eq!((named("-0"), named("-delete")), (0, 1));
    append_records(&create(&dir, LogConfig::default()), 2);
    let away = dir.set_aside(&tp()).unwrap();
    assert!(away.exists() && dir.log(&tp()).is_none() && dir.set_aside(&tp()).is_err());
    drop(dir);
    let (dir, _) = open(temp.path());
    assert_eq!((named("-0"), named("-delete"), named("-stray")), (0, 0, 1));
    assert_eq!(create(&dir, LogConfig::default()).log_end_offset(), 0);
}

/// What is damaged in form concerns one log; a fault of the disk concerns them all.
#[test]
fn a_log_that_cannot_be_used_is_left_out() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    append_records(&create(&dir, LogConfig::default()), 3);
    let named = |name: &str| TopicLog {
        topic_partition: TopicPartition::new(name, 0),
        topic_id: Some(TOPIC_ID),
        config: LogConfig::default(),
    };
    for name in ["third", "lost"] {
        append_records(&dir.create_log(named(name)).unwrap(), 3);
    }
    dir.close(-1).unwrap();
    drop(dir);
    ["third-0", "lost-0"].iter().for_each(|name| fs::remove_dir_all(temp.path().join(name)).unwrap());
    let segment = temp.path().join("other-0/00000000000000000000.log");
    fs::create_dir_all(&segment).unwrap();
    fs::write(temp.path().join("third-0"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", temp.path().join("fourth-0")).unwrap();
    let (dir, report) = open(temp.path());
    assert_eq!(read_all(&dir.log(&tp()).unwrap(), 0), expected(0, 3));
    assert_eq!(report.unusable.iter().map(|found| &found.path).collect::<Vec<_>>(), [&segment]);
    for (name, path) in [("other", "other-0/00000000000000000000.log"), ("third", "third-0"), ("fourth", "fourth-0")] {
        let refused = dir.create_log(named(name)).unwrap_err();
        assert!(matches!(&refused, OpenError::Unusable(found) if found.path == temp.path().join(path)), "{refused}");
    }
    let known_end = |name: &str| dir.known_end(&TopicPartition::new(name, 0));
    assert_eq!((known_end("lost"), known_end("third"), known_end("other")), (Some(3), Some(3), None));
    // What is known of a log is known when it is put right.
    dir.log(&tp()).unwrap().delete_records_before(2).unwrap();
    dir.close(-1).unwrap();
    drop(dir);
    let block = file(temp.path(), 0, "log");
    let kept = temp.path().join("kept");
    fs::rename(&block, &kept).unwrap();
    fs::create_dir(&block).unwrap();
    let (dir, report) = open(temp.path());
    assert_eq!(report.unusable.len(), 2);
    dir.close(-1).unwrap();
    drop(dir);
    fs::remove_dir(&block).unwrap();
    fs::rename(&kept, &block).unwrap();
    let (dir, _) = open(temp.path());
    let log = dir.log(&tp()).unwrap();
    assert_eq!((log.log_start_offset(), log.log_end_offset()), (2, 3));
}
