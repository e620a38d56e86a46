//! What the checkpoints know of logs that are not there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use caudal_protocol::TopicPartition;
use caudal_storage::checkpoint::{CLEANED_OFFSETS, read_offsets, write_offsets};
use caudal_storage::{LogConfig, LogDir, OpenError, RealDisk, TopicLog};

use crate::support::*;

fn named(topic: &str) -> TopicPartition {
    TopicPartition::new(topic, 0)
}

fn wanted(topic: &str) -> TopicLog {
    TopicLog { topic_partition: named(topic), topic_id: Some(TOPIC_ID), config: LogConfig::default() }
}

/// Three logs of five records, of which three are left; all of them compacted up to the fourth.
fn filled(path: &Path) {
    let (dir, _) = open(path);
    for topic in ["a", "b", "c"] {
        let log = dir.create_log(wanted(topic)).unwrap();
        append_records(&log, 5);
        log.flush().unwrap();
        log.delete_records_before(2).unwrap();
    }
    dir.close(-1).unwrap();
    drop(dir);
    let cleaned = ["a", "b", "c"].into_iter().map(|topic| (named(topic), 4)).collect();
    write_offsets(&RealDisk, &path.join(CLEANED_OFFSETS), &cleaned).unwrap();
}

/// Ends and offset of the compaction of the three, where they are known of what is not there.
fn known(dir: &LogDir) -> [(Option<i64>, Option<i64>); 3] {
    ["a", "b", "c"].map(|topic| (dir.known_end(&named(topic)), dir.cleaned_offset(&named(topic))))
}

const KNOWN: (Option<i64>, Option<i64>) = (Some(5), Some(4));
const NOTHING: (Option<i64>, Option<i64>) = (None, None);

#[test]
fn what_is_known_of_logs_outlives_their_absence() {
    let temp = tempfile::tempdir().unwrap();
    filled(temp.path());
    let away = tempfile::tempdir().unwrap();
    ["a-0", "b-0", "c-0"].iter().for_each(|name| fs::rename(temp.path().join(name), away.path().join(name)).unwrap());
    let (dir, _) = open(temp.path());
    assert_eq!(known(&dir), [KNOWN; 3]);
    // One begins anew, which says nothing of the others; after that, a crash.
    let log = dir.create_log(wanted("a")).unwrap();
    append_records(&log, 1);
    log.flush().unwrap();
    assert_eq!(known(&dir), [NOTHING, KNOWN, KNOWN]);
    drop(dir);
    for is_clean in [true, false] {
        let (dir, _) = open(temp.path());
        assert_eq!(known(&dir), [NOTHING, KNOWN, KNOWN]);
        dir.checkpoint().unwrap();
        if is_clean {
            dir.close(-1).unwrap();
        }
    }
    fs::rename(away.path().join("b-0"), temp.path().join("b-0")).unwrap();
    let (dir, _) = open(temp.path());
    let ends = |topic: &str| dir.log(&named(topic)).map(|log| (log.log_start_offset(), log.log_end_offset()));
    assert_eq!((ends("a"), ends("b"), ends("c")), (Some((0, 1)), Some((2, 5)), None));
    assert_eq!(known(&dir), [NOTHING, (None, Some(4)), KNOWN]);
}

#[test]
fn what_is_in_the_way_of_a_log_does_not_cost_what_is_known_of_it() {
    let temp = tempfile::tempdir().unwrap();
    filled(temp.path());
    let (place, away) = (["a-0", "b-0"].map(|name| temp.path().join(name)), tempfile::tempdir().unwrap());
    fs::rename(&place[0], away.path().join("a-0")).unwrap();
    fs::rename(&place[1], away.path().join("b-0")).unwrap();
    fs::write(&place[0], "").unwrap();
    symlink("nowhere", &place[1]).unwrap();
    for _ in 0..2 {
        let (dir, _) = open(temp.path());
        for topic in ["a", "b"] {
            let refused = dir.create_log(wanted(topic)).unwrap_err();
            assert!(matches!(refused, OpenError::Unusable(_)), "{refused}");
        }
        dir.create_log(wanted("d")).unwrap();
        dir.checkpoint().unwrap();
        assert_eq!(known(&dir), [KNOWN, KNOWN, (None, Some(4))]);
    }
    let (dir, _) = open(temp.path());
    ["a", "b"].iter().for_each(|topic| _ = dir.create_log(wanted(topic)).unwrap_err());
    for (place, name) in place.iter().zip(["a-0", "b-0"]) {
        fs::remove_file(place).unwrap();
        fs::rename(away.path().join(name), place).unwrap();
    }
    // What was put back is not taken for what a deletion left.
    ["a", "b"].iter().for_each(|topic| _ = dir.create_log(wanted(topic)).unwrap_err());
    drop(dir);
    let (dir, _) = open(temp.path());
    for topic in ["a", "b"] {
        let log = dir.log(&named(topic)).unwrap();
        assert_eq!((log.log_start_offset(), log.log_end_offset()), (2, 5), "{topic}");
    }
}

#[test]
fn what_belongs_nowhere_is_forgotten() {
    let temp = tempfile::tempdir().unwrap();
    filled(temp.path());
    ["a-0", "b-0"].iter().for_each(|name| fs::remove_dir_all(temp.path().join(name)).unwrap());
    // It is there, and cannot be used.
    fs::create_dir(temp.path().join("c-0/00000000000000000005.log")).unwrap();
    let (dir, report) = open(temp.path());
    assert_eq!((report.unusable.len(), known(&dir)), (1, [KNOWN; 3]));
    dir.forget_absent(|name| *name == named("b"));
    assert_eq!(known(&dir), [NOTHING, KNOWN, KNOWN]);
    // What is forgotten of compaction is forgotten at once: a new log of that name must not be taken for compacted.
    let cleaned = read_offsets(&RealDisk, &temp.path().join(CLEANED_OFFSETS)).unwrap();
    assert_eq!(cleaned.into_keys().collect::<Vec<_>>(), [named("b"), named("c")]);
    dir.checkpoint().unwrap();
    drop(dir);
    assert_eq!(known(&open(temp.path()).0), [NOTHING, KNOWN, KNOWN]);
}
