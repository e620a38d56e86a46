//! A power loss at every moment of a compaction: the newest value of each key survives, and every record that is there is the
//! one that was written at its offset.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use caudal_storage::crash::{CrashDisk, Fate};
use caudal_storage::{AppendOrigin, CleanerConfig, Disk, Log, LogConfig, LogDir, LogDirConfig, clean_due};

use crate::support::*;

fn config() -> LogConfig {
    LogConfig { segment_bytes: 400, index_interval_bytes: 100, ..compacted() }
}

fn open_on(disk: &CrashDisk) -> LogDir {
    let config = LogDirConfig { flush_threads: 1, recovery_threads: 1, log: config(), ..LogDirConfig::default() };
    LogDir::open(Path::new("/data"), config, Arc::new(disk.clone())).unwrap().0
}

#[derive(Default)]
struct History {
    written: Vec<(String, Option<String>)>,
    /// Disk operations so far, and the end of what was acknowledged by then.
    acknowledged: Vec<(usize, i64)>,
}

impl History {
    /// The newest offset below `end` of each key.
    fn newest(&self, end: i64) -> BTreeMap<&str, i64> {
        (0..end).zip(&self.written).map(|(offset, (key, _))| (key.as_str(), offset)).collect()
    }
}

/// Values for a few keys, cleaned now and then; deletions stay.
fn workload(disk: &CrashDisk, rounds: usize) -> History {
    let dir = open_on(disk);
    let log = create(&dir, config());
    let mut history = History::default();
    for round in 0..rounds {
        for n in 0..6 {
            let key = format!("key {}", (round + n * n) % 5);
            let value = (n != 3).then(|| format!("value {round} {n}"));
            log.append(&keyed(&key, value.as_deref()), 0, AppendOrigin::Client).unwrap();
            history.written.push((key, value));
        }
        let end = log.flush().unwrap();
        history.acknowledged.push((disk.operations(), end));
        if round % 2 == 1 {
            assert!(!clean_due(&dir, &CleanerConfig::default(), 0).unwrap().is_empty());
        }
        if round == 2 {
            dir.checkpoint().unwrap();
        }
    }
    history
}

fn read(log: &Log, what: &dyn Fn() -> String) -> Vec<Seen> {
    try_read_records(log, log.log_start_offset()).unwrap_or_else(|error| panic!("{error}: {}", what()))
}

fn check(image: &CrashDisk, history: &History, acknowledged: i64, what: &dyn Fn() -> String) {
    let dir = open_on(image);
    let Some(log) = dir.log(&tp()) else {
        assert_eq!(acknowledged, 0, "the log is gone: {}", what());
        return;
    };
    log.set_config(config());
    assert!(log.corrupt_ranges().is_empty(), "{}", what());
    let end = log.log_end_offset();
    assert!(end >= acknowledged, "acknowledged to {acknowledged}, recovered to {end}: {}", what());
    let mut seen = BTreeMap::new();
    for (offset, _, key, value) in read(&log, what) {
        let index = usize::try_from(offset).unwrap();
        assert_eq!(history.written[index], (key, value), "offset {offset}: {}", what());
        seen.insert(history.written[index].0.as_str(), offset);
    }
    assert_eq!(seen, history.newest(end), "{}", what());
    // What was interrupted is done again, and the log goes on.
    clean_due(&dir, &CleanerConfig::default(), 0).unwrap();
    log.append(&keyed("last", None), 1, AppendOrigin::Client).unwrap();
    log.flush().unwrap();
    let after = read(&log, what);
    let seen: BTreeMap<&str, i64> = after.iter().map(|(offset, _, key, _)| (key.as_str(), *offset)).collect();
    let mut expected = history.newest(end);
    expected.insert("last", end);
    assert_eq!(seen, expected, "after another cleaning: {}", what());
}

/// All kept, all dropped, each alone dropped, each alone kept, all up to each.
fn fates(unsynced: usize) -> Vec<Vec<Fate>> {
    let mut fates = vec![vec![Fate::Kept; unsynced], vec![Fate::Dropped; unsynced]];
    for at in 0..unsynced {
        let only = |one: Fate, others: Fate| (0..unsynced).map(|n| if n == at { one } else { others }).collect();
        fates.push(only(Fate::Dropped, Fate::Kept));
        fates.push(only(Fate::Kept, Fate::Dropped));
        fates.push((0..unsynced).map(|n| if n < at { Fate::Kept } else { Fate::Dropped }).collect());
    }
    fates
}

#[test]
fn the_newest_values_survive_every_cut() {
    let disk = CrashDisk::new();
    let history = workload(&disk, 4);
    let mut images = 0;
    for cut in 0..=disk.operations() {
        let known = history.acknowledged.iter().rev().find(|(operations, _)| *operations <= cut);
        let acknowledged = known.map_or(0, |known| known.1);
        for fate in fates(disk.unsynced(cut)) {
            let image = disk.image(cut, |n| fate[n]);
            check(&image, &history, acknowledged, &|| format!("cut after {cut} operations, {fate:?}"));
            images += 1;
        }
    }
    assert!(images > 1000, "only {images} images");
}

#[test]
fn a_cut_while_a_replacement_is_finished_loses_nothing_either() {
    let disk = CrashDisk::new();
    let history = workload(&disk, 2);
    let acknowledged = history.acknowledged.last().unwrap();
    let mut images = 0;
    for cut in acknowledged.0..=disk.operations() {
        let first = disk.image(cut, |_| Fate::Kept);
        let names = first.list(Path::new("/data/games-0")).unwrap();
        if !names.iter().any(|entry| entry.name.ends_with(".swap")) {
            continue;
        }
        drop(open_on(&first));
        for second_cut in 0..=first.operations() {
            for fate in fates(first.unsynced(second_cut)) {
                let image = first.image(second_cut, |n| fate[n]);
                let what = || format!("cut after {cut} operations, then {second_cut}, {fate:?}");
                check(&image, &history, acknowledged.1, &what);
                images += 1;
            }
        }
    }
    assert!(images > 100, "only {images} images");
}

#[test]
fn a_full_disk_puts_compaction_off() {
    let disk = CrashDisk::new();
    let dir = open_on(&disk);
    let log = create(&dir, config());
    for n in 0..40 {
        log.append(&keyed("key", Some(&format!("value {n}"))), 0, AppendOrigin::Client).unwrap();
    }
    log.roll().unwrap();
    log.flush().unwrap();
    let before = read_records(&log, 0);
    for space in (0..90).step_by(7) {
        disk.set_space_left(Some(space));
        assert!(clean_due(&dir, &CleanerConfig::default(), 0).is_err());
        // What could be done was done; the rest is as it was.
        let seen = read_records(&log, 0);
        assert!(seen.iter().all(|record| before.contains(record)) && seen.last() == before.last());
    }
    disk.set_space_left(None);
    assert_eq!(clean_due(&dir, &CleanerConfig::default(), 0).unwrap().len(), 1);
    assert_eq!(read_records(&log, 0).len(), 1);
}
