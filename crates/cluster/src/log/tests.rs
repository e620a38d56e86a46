use std::sync::Arc;

use caudal_protocol::records::metadata::{ConfigRecord, NoOpRecord, TopicRecord};
use caudal_storage::crash::CrashDisk;
use caudal_storage::{LogDirConfig, RealDisk};

use super::*;

fn open(path: &std::path::Path) -> Arc<LogDir> {
    Arc::new(LogDir::open(path, LogDirConfig::default(), Arc::new(RealDisk)).unwrap().0)
}

fn load(path: &std::path::Path) -> MetadataLog {
    MetadataLog::load(open(path), 1, SnapshotPolicy::default()).unwrap()
}

fn topic(n: u8) -> MetadataRecord {
    TopicRecord { name: format!("topic-{n}"), topic_id: Uuid([n; 16]) }.into()
}

#[test]
fn changes_come_back_with_and_without_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = load(dir.path());
    assert_eq!(log.image().offset, -1);
    log.begin_epoch().unwrap();
    log.commit(&[topic(1), topic(2)]).unwrap();
    let image = log.commit(&[topic(3)]).unwrap();
    assert_eq!((image.offset, image.epoch, image.topics().len()), (3, 1, 3));
    drop(log);

    let mut log = load(dir.path());
    assert_eq!(log.image(), &image);
    log.begin_epoch().unwrap();
    assert_eq!(log.image().epoch, 2);
    let id = log.snapshot().unwrap();
    assert_eq!(id.file_name(), "00000000000000000005-0000000002.checkpoint");
    let image = log.commit(&[topic(4)]).unwrap();
    drop(log);

    let mut log = load(dir.path());
    assert_eq!(log.image(), &image);
    for _ in 0..3 {
        log.commit(&[NoOpRecord {}.into()]).unwrap();
        log.snapshot().unwrap();
    }
    let kept = snapshot::list(&RealDisk, log.log().dir()).unwrap();
    assert_eq!(kept.iter().map(|s| s.end_offset).collect::<Vec<_>>(), [8, 9]);
}

#[test]
fn a_record_that_does_not_fit_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = load(dir.path());
    log.begin_epoch().unwrap();
    let before = log.commit(&[topic(1)]).unwrap();
    assert!(matches!(log.commit(&[topic(2), topic(1)]), Err(MetadataLogError::Apply { offset: 3, .. })));
    assert_eq!((log.image(), log.log().log_end_offset()), (&before, 2));
    log.commit(&[topic(2)]).unwrap();
}

#[test]
fn a_full_disk_refuses_changes_and_takes_them_again() {
    let disk = CrashDisk::new();
    let path = std::path::Path::new("/data");
    let load = || {
        let dir = LogDir::open(path, LogDirConfig::default(), Arc::new(disk.clone())).unwrap().0;
        MetadataLog::load(Arc::new(dir), 1, SnapshotPolicy::default()).unwrap()
    };
    let mut log = load();
    log.begin_epoch().unwrap();
    let mut image = log.commit(&[topic(0), topic(1)]).unwrap();
    for n in 2..60 {
        disk.set_space_left(Some(u64::from(n) * 3));
        let full = loop {
            match log.commit(&[NoOpRecord {}.into()]) {
                Ok(changed) => image = changed,
                Err(error) => break error,
            }
        };
        assert!(full.is_disk_full() && full.to_string().contains("/data is full"), "{full}");
        assert!(log.snapshot().unwrap_err().is_disk_full());
        assert_eq!(log.image(), &image);
        drop(log);

        // It starts all the same, wherever the space ends, and says what it holds.
        log = load();
        assert_eq!((log.image(), log.leads()), (&image, false));
        if let Err(error) = log.begin_epoch() {
            assert!(error.is_disk_full() && !log.leads(), "{error}");
            disk.set_space_left(None);
            log.begin_epoch().unwrap();
        }
        disk.set_space_left(None);
        assert!(log.leads());
        image = log.commit(&[topic(n)]).unwrap();
    }
    drop(log);
    assert_eq!(load().image(), &image);
}

/// A log of five epochs of two topics, stopped cleanly; the image, and the length of its file.
fn stopped(path: &std::path::Path, snapshot: bool) -> (Arc<MetadataImage>, u64) {
    let dir = open(path);
    let mut log = MetadataLog::load(dir.clone(), 1, SnapshotPolicy::default()).unwrap();
    for n in 0..5 {
        log.begin_epoch().unwrap();
        log.commit(&[topic(2 * n), topic(2 * n + 1)]).unwrap();
    }
    if snapshot {
        log.snapshot().unwrap();
    }
    dir.close(-1).unwrap();
    (log.image().clone(), log.log().size_bytes())
}

fn cut(path: &std::path::Path, len: u64) {
    let file = path.join("__cluster_metadata-0/00000000000000000000.log");
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(len).unwrap();
}

fn goes_on(mut log: MetadataLog, dir: &Arc<LogDir>, path: &std::path::Path) {
    log.begin_epoch().unwrap();
    let image = log.commit(&[topic(99)]).unwrap();
    dir.close(-1).unwrap();
    drop((log, Arc::clone(dir)));
    // The caller's directory is closed but locked until it is dropped.
    let copy = tempfile::tempdir().unwrap();
    for name in std::fs::read_dir(path).unwrap() {
        let name = name.unwrap();
        if name.file_type().unwrap().is_dir() {
            std::fs::create_dir(copy.path().join(name.file_name())).unwrap();
            for file in std::fs::read_dir(name.path()).unwrap() {
                let file = file.unwrap().path();
                let to = copy.path().join(name.file_name()).join(file.file_name().unwrap());
                std::fs::copy(file, to).unwrap();
            }
        } else {
            std::fs::copy(name.path(), copy.path().join(name.file_name())).unwrap();
        }
    }
    assert_eq!(load(copy.path()).image(), &image);
}

#[test]
fn a_tail_that_is_missing_is_refused_unless_its_loss_is_accepted() {
    for share in 0..12 {
        let temp = tempfile::tempdir().unwrap();
        let (whole, len) = stopped(temp.path(), false);
        cut(temp.path(), len * share / 12);
        let refused = MetadataLog::load(open(temp.path()), 1, SnapshotPolicy::default()).unwrap_err().to_string();
        let named = ["__cluster_metadata-0", "to 15 (exclusive)", "from a backup", "caudal.metadata.accept.loss=true"];
        assert!(named.iter().all(|part| refused.contains(part)), "{share}: {refused}");

        let dir = open(temp.path());
        let policy = SnapshotPolicy { accept_loss: true, ..SnapshotPolicy::default() };
        let log = MetadataLog::load(dir.clone(), 1, policy).unwrap();
        let kept = log.image().topics().count();
        assert!(kept < 10 && (kept > 0) == (share > 2), "{share}: {kept}");
        for n in 0..kept {
            let name = format!("topic-{n}");
            assert_eq!(log.image().topic(&name), whole.topic(&name));
        }
        assert_eq!(log.log().log_end_offset(), 15, "offsets are not given out again");
        goes_on(log, &dir, temp.path());
    }
}

/// Behind a bit that is turned over there may still be records, of topics with another name and of other settings.
#[test]
fn a_log_with_a_damaged_batch_is_refused_unless_its_loss_is_accepted() {
    let mut refusals = 0;
    for turn in 0..60 {
        let temp = tempfile::tempdir().unwrap();
        let (whole, len) = stopped(temp.path(), false);
        let file = temp.path().join("__cluster_metadata-0/00000000000000000000.log");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[len as usize * turn / 60] ^= 1 << (turn % 8);
        std::fs::write(&file, bytes).unwrap();
        match MetadataLog::load(open(temp.path()), 1, SnapshotPolicy::default()) {
            // An epoch is all that no CRC covers and nothing else shows.
            Ok(log) => assert!(log.image().topics().eq(whole.topics()), "{turn}"),
            Err(refused) => {
                refusals += 1;
                assert!(refused.to_string().contains("caudal.metadata.accept.loss=true"), "{turn}: {refused}");
                let policy = SnapshotPolicy { accept_loss: true, ..SnapshotPolicy::default() };
                let dir = open(temp.path());
                let log = MetadataLog::load(dir.clone(), 1, policy).unwrap();
                assert!(log.image().topics().all(|topic| whole.topic(&topic.name) == Some(topic)), "{turn}");
                goes_on(log, &dir, temp.path());
            }
        }
    }
    assert!(refusals > 40, "{refusals}");
}

#[test]
fn a_tail_that_a_snapshot_covers_is_not_missed() {
    for share in 0..12 {
        for known_end in [true, false] {
            let temp = tempfile::tempdir().unwrap();
            let (whole, len) = stopped(temp.path(), true);
            cut(temp.path(), len * share / 12);
            if !known_end {
                for name in [".kafka_cleanshutdown", "recovery-point-offset-checkpoint"] {
                    std::fs::remove_file(temp.path().join(name)).unwrap();
                }
            }
            let dir = open(temp.path());
            let log = MetadataLog::load(dir.clone(), 1, SnapshotPolicy::default()).unwrap();
            assert_eq!((log.image(), log.log().log_end_offset()), (&whole, 15), "{share} {known_end}");
            goes_on(log, &dir, temp.path());
        }
    }
}

#[test]
fn long_changes_are_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = load(dir.path());
    log.begin_epoch().unwrap();
    let config = |n: usize| {
        MetadataRecord::Config(ConfigRecord {
            resource_type: 4,
            resource_name: String::new(),
            name: n.to_string(),
            value: Some(String::new()),
        })
    };
    let records: Vec<MetadataRecord> = (0..MAX_BATCH_RECORDS + 5).map(config).collect();
    let image = log.commit(&records).unwrap();
    assert_eq!(image.offset as usize, records.len() + 2);
    // A transaction that was begun and never ended, as a crash leaves it.
    let open: Vec<MetadataRecord> = vec![BeginTransactionRecord::default().into(), topic(9)];
    let image = log.commit(&open).unwrap();
    drop(log);
    let mut log = load(dir.path());
    assert_eq!(log.image(), &image);
    assert!(log.image().topic("topic-9").is_none());
    log.begin_epoch().unwrap();
    let image = log.commit(&[topic(10)]).unwrap();
    drop(log);
    let log = load(dir.path());
    assert_eq!(log.image(), &image);
    assert!(log.image().topic("topic-9").is_none() && log.image().topic("topic-10").is_some());
}

#[test]
fn voters_of_the_bootstrap_snapshot_go_into_the_log_once() {
    let dir = tempfile::tempdir().unwrap();
    let partition = dir.path().join("__cluster_metadata-0");
    std::fs::create_dir(&partition).unwrap();
    let contents = SnapshotContents {
        records: Vec::new(),
        kraft_version: 1,
        voters: Some(single_voter(1, Uuid([3; 16]), "CONTROLLER", "localhost", 9093)),
    };
    snapshot::write(&RealDisk, &partition, SnapshotId::BOOTSTRAP, &contents, 5, 6).unwrap();
    let mut log = load(dir.path());
    log.begin_epoch().unwrap();
    assert_eq!(log.image().offset, 2);
    drop(log);
    let mut log = load(dir.path());
    log.begin_epoch().unwrap();
    assert_eq!((log.image().offset, log.image().epoch, log.has_voters()), (3, 2, true));
    drop(log);
    let other = MetadataLog::load(open(dir.path()), 2, SnapshotPolicy::default()).unwrap_err();
    assert!(other.to_string().contains("voters are [1]"), "{other}");
}

/// As Apache Kafka leaves it with `controller.quorum.voters`, where no record names the voters.
#[test]
fn the_voters_of_a_static_quorum_are_heeded() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = load(dir.path());
    assert!(log.is_new());
    log.begin_epoch().unwrap();
    log.commit(&[topic(1)]).unwrap();
    assert!(!log.is_new());
    let state = log.log().dir().join("quorum-state");
    drop(log);
    assert!(!load(dir.path()).is_new());
    for (text, voters) in [
        (r#"{"leaderId":-1,"leaderEpoch":1,"currentVoters":[{"voterId":1},{"voterId":2}],"data_version":0}"#, "[1, 2]"),
        (r#"{"leaderId":2,"leaderEpoch":1,"votedId":-1,"data_version":1}"#, "[2]"),
    ] {
        std::fs::write(&state, text).unwrap();
        let error = MetadataLog::load(open(dir.path()), 1, SnapshotPolicy::default()).unwrap_err();
        assert!(error.to_string().contains(&format!("voters are {voters}")), "{error}");
    }
    std::fs::write(&state, r#"{"leaderId":1,"leaderEpoch":5,"currentVoters":[{"voterId":1}],"data_version":0}"#)
        .unwrap();
    load(dir.path());
}

#[test]
fn a_damaged_snapshot_is_refused_by_name() {
    let contents = SnapshotContents { records: vec![topic(1)], ..SnapshotContents::default() };
    let bytes = snapshot::encode(&contents, 1, 2, 3).unwrap();
    let path = std::path::Path::new("x.checkpoint");
    assert_eq!(snapshot::decode(bytes.clone(), path).unwrap(), contents);
    for cut in 0..bytes.len() {
        assert!(snapshot::decode(bytes.slice(..cut), path).is_err(), "cut at {cut}");
    }
    for at in 16..bytes.len() {
        let mut damaged = bytes.to_vec();
        *damaged.get_mut(at).unwrap() ^= 0x10;
        let read = snapshot::decode(damaged.into(), path);
        assert!(read.as_ref().is_err() || read.unwrap() == contents, "flipped at {at}");
    }
}
