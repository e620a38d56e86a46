//! Segments that somebody removed or cut: what the start says of them, and which offsets are given out again.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use caudal_protocol::ErrorCode;
use caudal_storage::{LogConfig, RecoveryReport};

use crate::support::*;

/// A log of 200 records in several segments; the segments' base offsets.
fn written(path: &Path, config: LogConfig, clean: bool) -> Vec<i64> {
    let (dir, _) = open(path);
    let log = create(&dir, config);
    append_records(&log, 200);
    log.flush().unwrap();
    if clean {
        dir.close(-1).unwrap();
    }
    drop((dir, log));
    let bases = bases(path);
    assert!(bases.len() > 3, "{bases:?}");
    bases
}

fn bases(path: &Path) -> Vec<i64> {
    let names = fs::read_dir(path.join("games-0")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut bases: Vec<i64> = names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
    bases.sort_unstable();
    bases
}

fn file(path: &Path, base: i64, suffix: &str) -> PathBuf {
    path.join("games-0").join(format!("{base:020}.{suffix}"))
}

fn missing(report: &RecoveryReport) -> Vec<(i64, i64)> {
    report.logs.iter().flat_map(|(_, log)| &log.missing).map(|range| (range.first_offset, range.next_offset)).collect()
}

/// Offsets of all that can be read from `offset` on; `None` where reading fails.
fn readable(log: &caudal_storage::Log, offset: i64) -> Option<Vec<i64>> {
    log.read(offset, 1 << 20, i64::MAX, true).ok()?;
    Some(read_all(log, offset).into_iter().map(|(offset, _)| offset).collect())
}

#[test]
fn an_older_segment_that_is_gone_is_told_and_skipped() {
    for clean in [true, false] {
        for how in ["remove", "remove all", "empty"] {
            let temp = tempfile::tempdir().unwrap();
            let bases = written(temp.path(), small_segments(), clean);
            let (from, to) = (bases[1], bases[2]);
            match how {
                "empty" => fs::write(file(temp.path(), from, "log"), b"").unwrap(),
                _ => fs::remove_file(file(temp.path(), from, "log")).unwrap(),
            }
            if how == "remove all" {
                ["index", "timeindex"]
                    .iter()
                    .for_each(|suffix| fs::remove_file(file(temp.path(), from, suffix)).unwrap());
            }
            for start in 0..2 {
                let (dir, report) = open(temp.path());
                assert_eq!(missing(&report), [(from, to)], "clean {clean}, {how}, start {start}");
                let log = dir.log(&tp()).unwrap();
                assert_eq!(log.log_end_offset(), 200);
                let expected: Vec<i64> = (0..from).chain(to..200).collect();
                assert_eq!(readable(&log, 0), Some(expected));
                dir.close(-1).unwrap();
            }
        }
    }
}

#[test]
fn an_older_segment_that_was_cut_is_told() {
    for clean in [true, false] {
        let temp = tempfile::tempdir().unwrap();
        let bases = written(temp.path(), small_segments(), clean);
        let path = file(temp.path(), bases[1], "log");
        let cut = fs::OpenOptions::new().write(true).open(&path).unwrap();
        // Between two batches: what is left is sound.
        cut.set_len((bases[1]..bases[1] + 3).map(|n| batch(n, 1).len() as u64).sum()).unwrap();
        let (dir, report) = open(temp.path());
        assert_eq!(missing(&report), [(bases[1] + 3, bases[2])], "clean {clean}");
        assert_eq!(readable(&dir.log(&tp()).unwrap(), 0).unwrap().len() as i64, 200 - (bases[2] - bases[1] - 3));
        drop(dir);
        // Within a batch: reading there fails.
        cut.set_len(batch(0, 1).len() as u64 / 2).unwrap();
        let (dir, _) = open(temp.path());
        let log = dir.log(&tp()).unwrap();
        let range = log.corrupt_ranges()[0];
        assert_eq!((range.first_offset, range.next_offset), (bases[1], bases[2]));
        let refused = log.read(bases[1], 1000, i64::MAX, true).unwrap_err();
        assert_eq!(refused.error_code(), ErrorCode::CorruptMessage);
        assert_eq!(readable(&log, bases[2]).unwrap().len() as i64, 200 - bases[2]);
    }
}

#[test]
fn a_first_batch_that_names_other_offsets_is_not_served() {
    for (clean, byte, mask) in [(true, 6, 1), (false, 6, 1), (true, 0, 0x80), (false, 3, 1)] {
        let temp = tempfile::tempdir().unwrap();
        let bases = written(temp.path(), small_segments(), clean);
        let disk = fs::OpenOptions::new().read(true).write(true).open(file(temp.path(), bases[1], "log")).unwrap();
        let mut bits = [0];
        disk.read_exact_at(&mut bits, byte).unwrap();
        disk.write_all_at(&[bits[0] ^ mask], byte).unwrap();
        for start in 0..2 {
            let (dir, report) = open(temp.path());
            let log = dir.log(&tp()).unwrap();
            let ranges: Vec<_> = log.corrupt_ranges().iter().map(|r| (r.first_offset, r.next_offset)).collect();
            assert_eq!(ranges, [(bases[1], bases[1] + 1)], "clean {clean}, byte {byte}, start {start}: {report:?}");
            assert!(log.read(bases[1], 1000, i64::MAX, true).is_err());
            assert_eq!(readable(&log, bases[1] + 1).unwrap().len() as i64, 200 - bases[1] - 1);
            assert_eq!(log.log_end_offset(), 200);
            dir.close(-1).unwrap();
        }
    }
}

#[test]
fn offsets_of_last_segments_that_are_gone_are_not_given_out_again() {
    for knows in ["checkpoint", "index"] {
        let temp = tempfile::tempdir().unwrap();
        let (dir, _) = open(temp.path());
        let log = create(&dir, small_segments());
        append_records(&log, 200);
        match knows {
            "checkpoint" => dir.checkpoint().unwrap(),
            _ => assert_eq!(log.flush().unwrap(), 200),
        }
        drop((dir, log));
        let bases = bases(temp.path());
        let [.., first_gone, last] = bases[..] else { panic!("{bases:?}") };
        // Without a checkpoint, names are all that is left.
        [first_gone, last].iter().for_each(|&base| fs::remove_file(file(temp.path(), base, "log")).unwrap());
        let end = if knows == "index" { last } else { 200 };
        for start in 0..3 {
            let (dir, report) = open(temp.path());
            let log = dir.log(&tp()).unwrap();
            if start > 0 && knows == "index" {
                assert_eq!(missing(&report), [(first_gone, end)]);
            }
            assert_eq!(log.log_end_offset(), end + start, "{knows}, start {start}");
            append_records(&log, 1);
            assert_eq!(readable(&log, end), Some((end..=end + start).collect()));
            assert_eq!(readable(&log, first_gone), readable(&log, end));
            log.flush().unwrap();
        }
    }
}

#[test]
fn what_lies_below_the_log_start_is_not_missing() {
    let temp = tempfile::tempdir().unwrap();
    let bases = written(temp.path(), small_segments(), true);
    let (dir, _) = open(temp.path());
    dir.log(&tp()).unwrap().delete_records_before(bases[2] + 1).unwrap();
    dir.close(-1).unwrap();
    drop(dir);
    let (_, report) = open(temp.path());
    assert_eq!(missing(&report), []);
}

#[test]
fn gaps_of_compacted_logs_are_not_missing() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, compacted());
    for n in 0..300 {
        log.append(&keyed(&format!("key {}", n % 3), Some("some value")), 0, caudal_storage::AppendOrigin::Client)
            .unwrap();
    }
    log.flush().unwrap();
    let config = caudal_storage::CleanerConfig::default();
    assert!(!caudal_storage::clean_due(&dir, &config, BASE_TIME_MS).unwrap().is_empty());
    dir.close(-1).unwrap();
    drop((dir, log));
    let (dir, report) = open(temp.path());
    assert_eq!(missing(&report), []);
    assert!(!read_records(&dir.log(&tp()).unwrap(), 0).is_empty());
}
