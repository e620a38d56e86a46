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
    assert_eq!(log.epoch(), 2);
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
    assert_eq!((log.image().offset, log.epoch(), log.kraft_version()), (3, 2, 1));
    drop(log);
    let other = MetadataLog::load(open(dir.path()), 2, SnapshotPolicy::default()).unwrap_err();
    assert!(other.to_string().contains("voters are [1]"), "{other}");
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
