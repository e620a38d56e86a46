//! Compaction: what stays, what goes, when, and who is not disturbed by it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_protocol::batch::{BatchBuilder, BatchHeader};
use caudal_protocol::compression::Codec;
use caudal_storage::{
    AppendOrigin, CleanError, Cleaned, Cleaner, CleanerConfig, CleanerStanding, Log, LogConfig, LogDir, clean_due,
};

use crate::support::*;

const DAY_MS: i64 = 86_400_000;

fn put(log: &Arc<Log>, key: &str, value: Option<&str>) -> i64 {
    log.append(&keyed(key, value), 0, AppendOrigin::Client).unwrap().base_offset
}

fn clean(dir: &LogDir, now_ms: i64) -> Vec<Cleaned> {
    clean_due(dir, &CleanerConfig::default(), now_ms).unwrap()
}

/// Several segments in which a few keys get many values; then a new segment.
fn fill(log: &Arc<Log>, rounds: usize) {
    for n in 0..rounds {
        for key in ["a", "b", "c"] {
            put(log, key, Some(&format!("{key} {n} {}", "x".repeat(100))));
        }
    }
    log.roll().unwrap();
    log.flush().unwrap();
}

fn keys(log: &Log) -> Vec<(i64, String)> {
    read_records(log, 0).into_iter().map(|(offset, _, key, _)| (offset, key)).collect()
}

fn names(log: &Log) -> Vec<String> {
    let entries = std::fs::read_dir(log.dir()).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn checkpoint(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("cleaner-offset-checkpoint")).unwrap()
}

#[test]
fn only_the_newest_record_of_each_key_stays_and_offsets_do_not_change() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, compacted());
    fill(&log, 20);
    let (segments, size) = (log.segment_count(), log.size_bytes());
    assert!(segments > 5);
    log.pause_cleaning();
    assert!(clean(&dir, BASE_TIME_MS).is_empty(), "it is copied");
    log.resume_cleaning();
    let slice = log.read(0, 1 << 20, i64::MAX, true).unwrap();
    let before = slice.to_bytes().unwrap();
    let cleaned = clean(&dir, BASE_TIME_MS);
    assert_eq!(cleaned.iter().map(|c| (c.from_offset, c.end_offset)).collect::<Vec<_>>(), [(0, 60)]);
    assert_eq!((cleaned[0].records_read, cleaned[0].records_kept), (60, 3));
    assert_eq!(keys(&log), [(57, "a".to_owned()), (58, "b".to_owned()), (59, "c".to_owned())]);
    assert!(log.size_bytes() < size / 10);
    assert_eq!((log.log_start_offset(), log.log_end_offset()), (0, 60));
    assert_eq!(slice.to_bytes().unwrap(), before, "who reads the old segment goes on reading it");
    assert_eq!(checkpoint(temp.path()), "0\n1\ngames 0 60\n");
    assert!(
        names(&log).iter().all(|name| !name.contains("cleaned") && !name.contains("swap") && !name.contains("deleted"))
    );
    assert!(clean(&dir, BASE_TIME_MS).is_empty(), "nothing is dirty");
    let found = log.offset_for_timestamp(BASE_TIME_MS).unwrap().unwrap();
    assert_eq!(found.offset, 57);
    // Old values of new records go in the next round, also from the clean part.
    put(&log, "a", Some("new"));
    log.roll().unwrap();
    log.flush().unwrap();
    assert_eq!(clean(&dir, BASE_TIME_MS).len(), 1);
    assert_eq!(keys(&log), [(58, "b".to_owned()), (59, "c".to_owned()), (60, "a".to_owned())]);
    assert!(log.segment_count() < segments, "small neighbours become one");
    dir.close(-1).unwrap();
    drop((dir, log));
    let (dir, report) = open(temp.path());
    assert!(report.logs.is_empty(), "{report:?}");
    let log = create(&dir, compacted());
    assert_eq!(keys(&log), [(58, "b".to_owned()), (59, "c".to_owned()), (60, "a".to_owned())]);
    assert!(clean(&dir, BASE_TIME_MS).is_empty(), "the checkpoint is known");
    dir.delete_log(&tp()).unwrap();
    assert_eq!(checkpoint(temp.path()), "0\n0\n");
}

#[test]
fn a_deletion_stays_for_its_time_and_then_goes() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig { delete_retention_ms: DAY_MS, ..compacted() });
    let mut builder = BatchBuilder::new(Codec::Lz4);
    for (key, value) in [("gone", Some("1")), ("stays", Some("2")), ("gone", None)] {
        builder.append(BASE_TIME_MS, Some(key.as_bytes()), value.map(str::as_bytes), &[(b"h", None)]);
    }
    log.append(&builder.build().unwrap(), 0, AppendOrigin::Client).unwrap();
    log.roll().unwrap();
    log.flush().unwrap();
    let tell = |log: &Log| read_records(log, 0).into_iter().map(|(n, time, _, _)| (n, time)).collect::<Vec<_>>();
    let header = |log: &Log| BatchHeader::parse(&log.read(0, 1 << 20, i64::MAX, true).unwrap().to_bytes().unwrap());
    let rounds = |now_ms: i64| {
        put(&log, "other", Some("x"));
        log.roll().unwrap();
        log.flush().unwrap();
        clean(&dir, now_ms);
        (tell(&log).into_iter().filter(|(n, _)| *n < 3).collect::<Vec<_>>(), header(&log).unwrap().delete_horizon_ms())
    };
    let now_ms = BASE_TIME_MS + 1000;
    let kept = vec![(1, BASE_TIME_MS), (2, BASE_TIME_MS)];
    assert_eq!(rounds(now_ms), (kept.clone(), Some(now_ms + DAY_MS)), "times of records stay what they were");
    assert_eq!(rounds(now_ms + DAY_MS - 1), (kept, Some(now_ms + DAY_MS)), "the horizon is set once");
    assert_eq!(rounds(now_ms + DAY_MS).0, vec![(1, BASE_TIME_MS)]);
}

#[test]
fn what_is_active_young_or_clean_enough_waits() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let config = LogConfig { min_compaction_lag_ms: 1000, min_cleanable_dirty_ratio: 0.5, ..compacted() };
    let log = create(&dir, config.clone());
    put(&log, "a", Some("1"));
    put(&log, "a", Some("2"));
    log.flush().unwrap();
    assert!(clean(&dir, i64::MAX).is_empty(), "the active segment");
    log.roll().unwrap();
    assert!(clean(&dir, BASE_TIME_MS + 999).is_empty(), "min.compaction.lag.ms");
    assert_eq!(clean(&dir, BASE_TIME_MS + 1000).len(), 1);
    for n in 0..20 {
        put(&log, &format!("key {n}"), Some(&"x".repeat(100)));
    }
    log.roll().unwrap();
    log.flush().unwrap();
    assert!(CleanerStanding::of(&dir).max_dirty_ratio > 0.5);
    assert_eq!(clean(&dir, i64::MAX).len(), 1);
    assert_eq!(CleanerStanding::of(&dir).max_dirty_ratio, 0.0);
    put(&log, "a", Some("3"));
    log.roll().unwrap();
    log.flush().unwrap();
    assert!(clean(&dir, i64::MAX).is_empty(), "min.cleanable.dirty.ratio");
    log.set_config(LogConfig { max_compaction_lag_ms: 2000, ..config.clone() });
    assert!(clean(&dir, BASE_TIME_MS + 2000).is_empty());
    assert_eq!(clean(&dir, BASE_TIME_MS + 2001).len(), 1, "max.compaction.lag.ms");
    log.set_config(LogConfig { cleanup_compact: false, cleanup_delete: true, ..config });
    fill(&log, 10);
    assert!(clean(&dir, i64::MAX).is_empty(), "not compacted");
}

#[test]
fn what_is_not_durable_is_not_cleaned() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, compacted());
    for n in 0..30 {
        put(&log, "a", Some(&format!("{n} {}", "x".repeat(100))));
    }
    assert!(clean(&dir, i64::MAX).is_empty());
    log.flush().unwrap();
    assert_eq!(clean(&dir, i64::MAX).len(), 1);
}

#[test]
fn a_full_map_ends_the_round_early_and_the_next_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, compacted());
    for n in 0..200 {
        put(&log, &format!("key {}", n % 40), Some(&format!("{n}")));
    }
    log.roll().unwrap();
    log.flush().unwrap();
    // Room for 18 of the 40 keys.
    let config = CleanerConfig { dedupe_buffer_bytes: 20 * 24, ..CleanerConfig::default() };
    let rounds = clean_due(&dir, &config, i64::MAX).unwrap();
    assert!(rounds.len() > 5, "{}", rounds.len());
    assert!(rounds.windows(2).all(|pair| pair[0].end_offset == pair[1].from_offset));
    let offsets: Vec<i64> = keys(&log).into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(offsets, (160..200).collect::<Vec<_>>());
}

#[test]
fn producers_keep_their_sequence_through_compaction_and_restart() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, compacted());
    // Producer 5 writes a few values that are all replaced by producer 6.
    for n in 0..6 {
        log.append(&idempotent(5, 0, n, 1), 0, AppendOrigin::Client).unwrap();
    }
    for n in 0..20 {
        log.append(&idempotent(6, 0, n, 1), 0, AppendOrigin::Client).unwrap();
    }
    log.roll().unwrap();
    log.flush().unwrap();
    clean(&dir, BASE_TIME_MS);
    assert_eq!(keys(&log), [(25, "key".to_owned())]);
    let five = log.read(0, 61, i64::MAX, true).unwrap();
    let header = BatchHeader::parse(&five.to_bytes().unwrap()).unwrap();
    assert_eq!((header.record_count, header.producer_id, header.last_sequence()), (0, 5, 5), "an empty batch stays");
    dir.close(-1).unwrap();
    drop((dir, log));
    // Without the snapshots all there is to know comes from the batches.
    for entry in std::fs::read_dir(temp.path().join("games-0")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "snapshot") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let (dir, _) = open(temp.path());
    let log = create(&dir, compacted());
    assert!(log.append(&idempotent(5, 0, 7, 1), 0, AppendOrigin::Client).is_err(), "a gap");
    log.append(&idempotent(5, 0, 6, 1), 0, AppendOrigin::Client).unwrap();
    log.append(&idempotent(6, 0, 20, 1), 0, AppendOrigin::Client).unwrap();
    log.roll().unwrap();
    log.flush().unwrap();
    clean(&dir, BASE_TIME_MS);
    assert!(log.read(0, 61, i64::MAX, true).unwrap().base_offset > 25, "now it may go");
}

#[test]
fn records_of_aborted_transactions_are_no_values() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig { delete_retention_ms: DAY_MS, ..compacted() });
    let data = |sequence: i32, value: &str| {
        let mut builder = BatchBuilder::new(Codec::None).producer(9, 0, sequence).transactional(true);
        builder.append(BASE_TIME_MS, Some(b"k"), Some(value.as_bytes()), &[]);
        builder.build().unwrap()
    };
    let marker = |kind: i16| {
        let mut builder = BatchBuilder::new(Codec::None).producer(9, 0, -1).transactional(true).control(true);
        let key = [0_i16.to_be_bytes(), kind.to_be_bytes()].concat();
        builder.append(BASE_TIME_MS, Some(&key), Some(&[0; 6]), &[]);
        builder.build().unwrap()
    };
    let append = |batch: &[u8]| {
        log.append_verified(batch, 0, AppendOrigin::Coordinator, caudal_storage::Verification::Off).unwrap()
    };
    append(&data(0, "committed"));
    append(&marker(1));
    append(&data(1, "aborted"));
    append(&marker(0));
    put(&log, "other", Some("x"));
    let undecided = append(&data(2, "undecided")).base_offset;
    log.roll().unwrap();
    log.flush().unwrap();
    assert!(clean(&dir, BASE_TIME_MS).is_empty(), "the last stable offset is in the first segment");
    append(&marker(1));
    log.roll().unwrap();
    log.flush().unwrap();
    assert_eq!(clean(&dir, BASE_TIME_MS).len(), 1);
    let left = || -> Vec<(i64, bool, i32)> {
        let bytes = log.read(0, 1 << 20, i64::MAX, true).unwrap().to_bytes().unwrap();
        caudal_protocol::batch::Batches::new(bytes)
            .map(|batch| batch.unwrap().header)
            .map(|header| (header.base_offset, header.is_control(), header.record_count))
            .collect()
    };
    // Markers stay; the undecided record was committed and is the newest.
    let markers_stay = [(1, true, 1), (3, true, 1), (4, false, 1), (undecided, false, 1), (6, true, 1)];
    assert_eq!(left(), markers_stay);
    let again = |now_ms| {
        put(&log, "more", Some("x"));
        log.roll().unwrap();
        log.flush().unwrap();
        assert_eq!(clean(&dir, now_ms).len(), 1);
    };
    // Those whose transaction is gone have a day left, then they go.
    again(BASE_TIME_MS);
    assert_eq!(left()[..5], markers_stay);
    assert_eq!(log.aborted_transactions(0, i64::MAX), [], "there is nothing to leave out");
    again(BASE_TIME_MS + DAY_MS - 1);
    assert_eq!(left()[..5], markers_stay);
    again(BASE_TIME_MS + DAY_MS);
    assert_eq!(left()[..3], [(4, false, 1), (undecided, false, 1), (6, true, 1)]);
}

#[test]
fn retention_applies_to_compacted_logs_too_when_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig { cleanup_delete: true, retention_ms: 1000, ..compacted() });
    fill(&log, 20);
    clean(&dir, BASE_TIME_MS);
    assert_eq!(keys(&log).len(), 3);
    assert!(log.apply_retention(BASE_TIME_MS + 1000).unwrap() == 0);
    assert!(log.apply_retention(BASE_TIME_MS + 1001).unwrap() > 0);
    assert_eq!((log.log_start_offset(), log.log_end_offset()), (60, 60));
    fill(&log, 5);
    log.delete_records_before(70).unwrap();
    clean(&dir, BASE_TIME_MS);
    let left: Vec<i64> = read_records(&log, log.log_start_offset()).into_iter().map(|(offset, ..)| offset).collect();
    assert_eq!(left, [72, 73, 74]);
}

#[test]
fn damage_is_not_copied() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, compacted());
    fill(&log, 10);
    let path = log.dir().join("00000000000000000000.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let before = names(&log);
    match clean_due(&dir, &CleanerConfig::default(), BASE_TIME_MS) {
        Err(CleanError::Damaged { position: 0, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(names(&log), before);
    assert!(clean(&dir, BASE_TIME_MS).is_empty(), "it is left alone until a restart");
    assert_eq!(CleanerStanding::of(&dir).uncleanable, 1);
    log.append(&keyed("a", Some("still works")), 0, AppendOrigin::Client).unwrap();
}

#[test]
fn threads_clean_beside_producers_and_deletions() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let dir = Arc::new(dir);
    let quick = CleanerConfig { threads: 2, backoff: Duration::from_millis(1), ..CleanerConfig::default() };
    let cleaner = Cleaner::start(&dir, quick.clone()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for generation in 0..3 {
        let log = create(&dir, LogConfig { segment_bytes: 4096, ..compacted() });
        let mut n = 0;
        while n < 400 {
            for _ in 0..50 {
                n += 1;
                put(&log, &format!("key {}", n % 7), Some(&format!("{n} {}", "x".repeat(50))));
            }
            log.flush().unwrap();
            // Every key's newest value is there at all times, until the cleaner came by and longer.
            loop {
                let seen = read_records(&log, 0);
                for key in n - 6..=n {
                    let newest = seen.iter().rev().find(|(_, _, k, _)| *k == format!("key {}", key % 7)).unwrap();
                    assert!(newest.3.as_ref().unwrap().starts_with(&format!("{key} ")), "generation {generation}");
                }
                if log.size_bytes() < 3 * 4096 {
                    break;
                }
                assert!(Instant::now() < deadline, "{} bytes", log.size_bytes());
            }
        }
        assert!(log.corrupt_ranges().is_empty());
        if generation == 1 {
            let slow = CleanerConfig { threads: 1, io_max_bytes_per_second: 1.0, ..quick.clone() };
            cleaner.reconfigure(slow).unwrap();
        }
        // Also while a round is under way; a throttled one gives up.
        assert!(dir.delete_log(&tp()).unwrap());
        if generation == 1 {
            cleaner.reconfigure(quick.clone()).unwrap();
        }
    }
    drop(cleaner);
    dir.close(-1).unwrap();
}
