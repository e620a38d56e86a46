//! Several log directories: where partitions go, moving them while they are written, kills meanwhile, one that fails.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use caudal_broker::StartError;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::alter_replica_log_dirs_request::{
    AlterReplicaLogDir, AlterReplicaLogDirTopic, AlterReplicaLogDirsRequest,
};
use caudal_protocol::messages::alter_replica_log_dirs_response::AlterReplicaLogDirsResponse;
use caudal_protocol::messages::describe_log_dirs_request::DescribeLogDirsRequest;
use caudal_protocol::messages::describe_log_dirs_response::DescribeLogDirsResponse;
use caudal_protocol::messages::fetch_response::FetchResponse;
use caudal_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use caudal_protocol::messages::metadata_request::MetadataRequest;
use caudal_protocol::messages::metadata_response::MetadataResponse;
use caudal_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};
use caudal_storage::crash::CrashDisk;
use caudal_storage::disk::{DirLock, DiskFile, Entry, OpenMode};
use caudal_storage::{Disk, RealDisk};

use crate::fetch::{offsets, request};
use crate::limits::wait_until;
use crate::produce::{batch, produce};
use crate::raw::{RawClient, TestBroker};

pub const DIRS: [&str; 3] = ["a", "b", "c"];

pub fn start(dir: tempfile::TempDir) -> TestBroker {
    start_in(Arc::new(RealDisk), &DIRS, dir).unwrap()
}

pub fn start_in(disk: Arc<dyn Disk>, names: &[&str], dir: tempfile::TempDir) -> Result<TestBroker, StartError> {
    let paths: Vec<PathBuf> = names.iter().map(|name| dir.path().join(name)).collect();
    TestBroker::start_on(disk, dir, |config| {
        config.log_dir = paths[0].clone();
        config.log_dirs = paths;
    })
}

pub fn alter(client: &mut RawClient, path: &Path, topic: &str, partition: i32) -> ErrorCode {
    let topic = AlterReplicaLogDirTopic { name: topic.into(), partitions: vec![partition] };
    let dir = AlterReplicaLogDir { path: path.display().to_string(), topics: vec![topic] };
    let response: AlterReplicaLogDirsResponse = client.ask(&AlterReplicaLogDirsRequest { dirs: vec![dir] }, 2);
    ErrorCode::from_code(response.results[0].partitions[0].error_code)
}

/// Where a partition is, by the last part of the path, with those on their way.
pub fn places(client: &mut RawClient, topic: &str, partition: i32) -> Vec<(String, bool)> {
    let response: DescribeLogDirsResponse = client.ask(&DescribeLogDirsRequest { topics: None }, 4);
    let mut places = Vec::new();
    for dir in response.results {
        let name = Path::new(&dir.log_dir).file_name().unwrap().to_str().unwrap().to_owned();
        for found in dir.topics.iter().filter(|found| found.name == topic) {
            let here = found.partitions.iter().filter(|p| p.partition_index == partition);
            places.extend(here.map(|p| (name.clone(), p.is_future_key)));
        }
    }
    places
}

/// Waits until the metadata says in which directories the partitions of `t` lie.
pub fn until_told(broker: &TestBroker, partitions: i32) {
    let context = broker.context();
    let ids = context.replicas.log_dirs.ids();
    wait_until("the metadata tells the directories", || {
        let image = context.metadata.image();
        (0..partitions).all(|p| image.partition("t", p).unwrap().directories.iter().all(|id| ids.contains(id)))
    });
}

fn is_in(client: &mut RawClient, topic: &str, dir: &str) -> bool {
    places(client, topic, 0) == [(dir.to_owned(), false)]
}

/// All offsets of the first partition, read from the start.
fn read(client: &mut RawClient, topic: &str) -> Vec<i64> {
    let mut all = Vec::new();
    loop {
        let next = all.last().map_or(0, |last| last + 1);
        let response: FetchResponse = client.ask(&request(topic, &[(0, next)]), 12);
        let data = &response.responses[0].partitions[0];
        assert_eq!(data.error_code, 0);
        let found = offsets(data);
        if found.is_empty() {
            return all;
        }
        all.extend(found);
    }
}

#[test]
fn partitions_are_spread_and_stay_where_they_are() {
    let broker = start(tempfile::tempdir().unwrap());
    broker.create_topic("t", 9);
    let mut client = broker.connect();
    let by_dir = |client: &mut RawClient| -> Vec<Vec<i32>> {
        let response: DescribeLogDirsResponse = client.ask(&DescribeLogDirsRequest { topics: None }, 4);
        assert_eq!(response.results.len(), 3);
        let partitions = response.results.iter().map(|dir| {
            assert!(dir.total_bytes > 0);
            dir.topics.iter().flat_map(|topic| &topic.partitions).map(|p| p.partition_index).collect()
        });
        partitions.collect()
    };
    let before = by_dir(&mut client);
    assert!(before.iter().all(|partitions| partitions.len() == 3), "{before:?}");
    for partition in 0..9 {
        assert_eq!(produce(&mut client, "t", partition, batch(1, 10)).error_code, 0);
    }
    until_told(&broker, 9);
    let context = broker.context();
    assert_eq!(context.metadata.image().broker(1).unwrap().log_dirs, context.replicas.log_dirs.ids());
    let dir = broker.end(false);
    let broker = start(dir);
    let mut client = broker.connect();
    assert_eq!(by_dir(&mut client), before);
    assert_eq!(produce(&mut client, "t", 4, batch(1, 10)).base_offset, 1);
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_partition_moves_while_it_is_written() {
    let broker = start(tempfile::tempdir().unwrap());
    broker.create_topic("t", 1);
    let path = broker.path().to_owned();
    let mut client = broker.connect();
    assert_eq!(alter(&mut client, &path.join("x"), "t", 0), ErrorCode::LogDirNotFound);
    assert_eq!(alter(&mut client, &path.join("b"), "t", 7), ErrorCode::UnknownTopicOrPartition);
    // Several copies' worth, whose ends are not those of batches.
    let prior = 40;
    for _ in 0..prior {
        assert_eq!(produce(&mut client, "t", 0, batch(1, 150_000)).error_code, 0);
    }
    let stop = AtomicBool::new(false);
    let acknowledged = AtomicI64::new(0);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = broker.connect();
            let mut written = prior;
            let deadline = Instant::now() + Duration::from_secs(300);
            while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                let answer = produce(&mut client, "t", 0, batch(1, 1000));
                assert_eq!((answer.error_code, answer.base_offset), (0, written), "no write fails or gets lost");
                written += 1;
                acknowledged.store(written, Ordering::Relaxed);
            }
            written
        });
        for to in ["b", "c", "a", "b"] {
            let target = path.join(to);
            assert_eq!(alter(&mut client, &target, "t", 0), ErrorCode::None);
            wait_until("moved", || is_in(&mut client, "t", to));
            let before = acknowledged.load(Ordering::Relaxed);
            wait_until("written on", || acknowledged.load(Ordering::Relaxed) > before + 3);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    assert!(written > prior + 10);
    assert_eq!(read(&mut client, "t"), (0..written).collect::<Vec<_>>());
    assert!(path.join("b/t-0").exists() && !path.join("a/t-0").exists());
    let broker = start(broker.end(true));
    let mut client = broker.connect();
    assert!(is_in(&mut client, "t", "b"));
    assert_eq!(produce(&mut client, "t", 0, batch(1, 10)).base_offset, written);
    assert_eq!(read(&mut client, "t").len() as i64, written + 1);
}

#[test]
fn a_wish_is_remembered_until_the_topic_is_there() {
    let broker = start(tempfile::tempdir().unwrap());
    let mut client = broker.connect();
    let target = broker.path().join("c");
    assert_eq!(alter(&mut client, &target, "later", 0), ErrorCode::UnknownTopicOrPartition);
    broker.create_topic("later", 1);
    assert!(is_in(&mut client, "later", "c"));
}

/// What a stop or a kill leaves: a copy on its way, or two directories of the same name between the renames.
#[test]
fn a_move_that_was_interrupted_is_gone_on_with() {
    let mut broker = start(tempfile::tempdir().unwrap());
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let write = |client: &mut RawClient| (0..10).for_each(|_| _ = produce(client, "t", 0, batch(1, 100)));
    write(&mut client);
    let mut home = places(&mut client, "t", 0)[0].0.clone();
    let unique = "0123456789abcdef0123456789abcdef";
    let future = format!("t-0.{unique}-future");
    let mut written = 10;
    let left = |dir: &Path, suffix: &str| {
        let names = DIRS.iter().flat_map(|name| std::fs::read_dir(dir.join(name)).unwrap());
        names.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().ends_with(suffix)).count()
    };
    for (clean, whole) in [(true, true), (true, false), (false, true), (false, false)] {
        until_told(&broker, 1);
        let dir = broker.end(clean);
        let other = DIRS.iter().find(|name| **name != home).unwrap();
        let part = dir.path().join("part");
        copy_dir(&dir.path().join(&home).join("t-0"), &part);
        broker = start(dir);
        let mut client = broker.connect();
        write(&mut client);
        written += 10;
        let dir = broker.end(clean);
        let place = dir.path().join(other).join(&future);
        std::fs::rename(&part, &place).unwrap();
        if !whole {
            std::fs::write(place.join("00000000000000000000.log"), [1, 2, 3]).unwrap();
        }
        broker = start(dir);
        let mut client = broker.connect();
        wait_until("the move goes on", || is_in(&mut client, "t", other));
        assert_eq!(read(&mut client, "t").len(), written);
        home = (*other).to_owned();
    }
    // Between the renames.
    let dir = broker.end(true);
    let other = DIRS.iter().find(|name| **name != home).unwrap();
    copy_dir(&dir.path().join(&home).join("t-0"), &dir.path().join(other).join("t-0"));
    let broker = start(dir);
    let mut client = broker.connect();
    assert_eq!(places(&mut client, "t", 0).len(), 1);
    assert_eq!(read(&mut client, "t").len(), written);
    until_told(&broker, 1);
    let now = places(&mut client, "t", 0)[0].0.clone();
    // As Kafka leaves it, which notes in the metadata where a partition goes before it exchanges the logs.
    let dir = broker.end(true);
    assert_eq!((left(dir.path(), "-stray"), left(dir.path(), "-future")), (0, 0));
    let path = dir.path().join(&now);
    std::fs::rename(path.join("t-0"), path.join(&future)).unwrap();
    let broker = start(dir);
    let mut client = broker.connect();
    assert_eq!(read(&mut client, "t").len(), written);
    assert_eq!(produce(&mut client, "t", 0, batch(1, 10)).base_offset, written as i64);
}

#[test]
fn a_move_keeps_to_the_rate_that_is_set_for_it() {
    let broker = start(tempfile::tempdir().unwrap());
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    (0..4).for_each(|_| _ = produce(&mut client, "t", 0, batch(1, 800_000)));
    let home = places(&mut client, "t", 0)[0].0.clone();
    let other = DIRS.iter().find(|name| **name != home).unwrap();
    let limit = |value: Option<&str>| {
        let name = "replica.alter.log.dirs.io.max.bytes.per.second".to_owned();
        let config_operation = i8::from(value.is_none());
        let config = AlterableConfig { name, config_operation, value: value.map(str::to_owned) };
        let resource = AlterConfigsResource { resource_type: 4, resource_name: "1".into(), configs: vec![config] };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource], validate_only: false };
        let response: IncrementalAlterConfigsResponse = broker.connect().ask(&request, 1);
        assert_eq!(response.responses[0].error_code, 0, "{:?}", response.responses[0].error_message);
    };
    // Four records would take a quarter of an hour.
    limit(Some("3500"));
    let begun = Instant::now();
    assert_eq!(alter(&mut client, &broker.path().join(other), "t", 0), ErrorCode::None);
    wait_until("it is on its way", || places(&mut client, "t", 0).contains(&((*other).to_owned(), true)));
    while begun.elapsed() < Duration::from_secs(2) {
        assert!(places(&mut client, "t", 0).contains(&((*other).to_owned(), true)));
    }
    limit(None);
    wait_until("moved", || is_in(&mut client, "t", other));
    assert_eq!(read(&mut client, "t").len(), 4);
}

/// Each wish ends the one before, wherever that is; the last one is carried out.
#[test]
fn the_last_of_many_wishes_counts() {
    let broker = start(tempfile::tempdir().unwrap());
    broker.create_topic("t", 1);
    let path = broker.path().to_owned();
    let mut client = broker.connect();
    let written = 20;
    for _ in 0..written {
        assert_eq!(produce(&mut client, "t", 0, batch(1, 100_000)).error_code, 0);
    }
    for round in 0..30 {
        for to in ["a", "b", "c", "b", "a", "c"] {
            assert_eq!(alter(&mut client, &path.join(to), "t", 0), ErrorCode::None);
        }
        wait_until("moved", || is_in(&mut client, "t", "c"));
        assert_eq!(read(&mut client, "t").len(), written, "round {round}");
        let target = if round % 2 == 0 { "a" } else { "b" };
        assert_eq!(alter(&mut client, &path.join(target), "t", 0), ErrorCode::None);
        wait_until("moved back", || is_in(&mut client, "t", target));
    }
    let dir = broker.end(true);
    for name in DIRS {
        let names =
            std::fs::read_dir(dir.path().join(name)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let strange: Vec<_> = names.filter(|name| name.ends_with("-future") || name.ends_with("-stray")).collect();
        assert!(strange.is_empty(), "{strange:?}");
    }
}

/// Lets one file not be opened, when the test says so.
#[derive(Debug, Default)]
struct Gate(Mutex<Option<Failure>>);

#[derive(Debug)]
struct Failure {
    /// A log in it.
    dir: PathBuf,
    reached: Sender<()>,
    goes_on: Receiver<()>,
}

impl Disk for Gate {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let is_log = path.extension().is_some_and(|suffix| suffix == "log");
        let failure = self.0.lock().unwrap().take_if(|failure| is_log && path.parent() == Some(&failure.dir));
        if let Some(failure) = failure {
            failure.reached.send(()).unwrap();
            failure.goes_on.recv_timeout(Duration::from_secs(60)).unwrap();
            let too_many_open_files = 24;
            return Err(io::Error::from_raw_os_error(too_many_open_files));
        }
        RealDisk.open(path, mode)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        RealDisk.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealDisk.exists(path)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        RealDisk.lock(path)
    }
}

/// The disk has failed the move already when it is asked for again, and the broker does not know yet.
#[test]
fn a_move_that_is_asked_for_while_it_fails_is_made() {
    let gate = Arc::new(Gate::default());
    let broker = start_in(gate.clone(), &DIRS, tempfile::tempdir().unwrap()).unwrap();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    (0..3).for_each(|_| _ = produce(&mut client, "t", 0, batch(1, 10)));
    let home = places(&mut client, "t", 0)[0].0.clone();
    let other = DIRS.iter().find(|name| **name != home).unwrap();
    let target = broker.path().join(other);
    let fail = || {
        let ((reached, has_reached), (go_on, goes_on)) = (channel(), channel());
        *gate.0.lock().unwrap() = Some(Failure { dir: target.join("t-0"), reached, goes_on });
        (has_reached, go_on)
    };
    let (has_reached, go_on) = fail();
    assert_eq!(alter(&mut client, &target, "t", 0), ErrorCode::None);
    has_reached.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(alter(&mut client, &target, "t", 0), ErrorCode::None);
    go_on.send(()).unwrap();
    wait_until("moved", || is_in(&mut client, "t", other));
    assert_eq!(read(&mut client, "t"), [0, 1, 2]);
    // Asked for once, it fails once, and the next one is another.
    assert_eq!(alter(&mut client, &broker.path().join(&home), "t", 0), ErrorCode::None);
    wait_until("moved back", || is_in(&mut client, "t", &home));
    let (has_reached, go_on) = fail();
    assert_eq!(alter(&mut client, &target, "t", 0), ErrorCode::None);
    has_reached.recv_timeout(Duration::from_secs(60)).unwrap();
    go_on.send(()).unwrap();
    wait_until("it is given up", || is_in(&mut client, "t", &home));
    assert_eq!(alter(&mut client, &target, "t", 0), ErrorCode::None);
    wait_until("moved", || is_in(&mut client, "t", other));
    assert_eq!(read(&mut client, "t"), [0, 1, 2]);
}

#[test]
fn the_last_wish_outlives_a_crash() {
    let mut broker = start(tempfile::tempdir().unwrap());
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let written = 8;
    for _ in 0..written {
        assert_eq!(produce(&mut client, "t", 0, batch(1, 400_000)).error_code, 0);
    }
    let mut home = places(&mut client, "t", 0)[0].0.clone();
    for round in 0..12 {
        let [one, other] = DIRS.into_iter().filter(|name| *name != home).collect::<Vec<_>>().try_into().unwrap();
        let path = broker.path().to_owned();
        let mut wishes = vec![one, other, home.as_str()];
        wishes.rotate_left(round % 3);
        for wish in &wishes {
            assert_eq!(alter(&mut client, &path.join(wish), "t", 0), ErrorCode::None);
        }
        let last = wishes[2].to_owned();
        broker = start(broker.end(false));
        client = broker.connect();
        let found = places(&mut client, "t", 0);
        assert!(found.iter().all(|(dir, is_future)| *dir == last || !is_future), "round {round}: {last}, {found:?}");
        wait_until("it is where it was last asked for", || is_in(&mut client, "t", &last));
        assert_eq!(read(&mut client, "t").len(), written, "round {round}");
        home = last;
    }
}

#[test]
fn a_move_waits_for_space() {
    let disk = CrashDisk::new();
    let on_disk = |dir: tempfile::TempDir| start_in(Arc::new(disk.clone()), &DIRS, dir).unwrap();
    let mut broker = on_disk(tempfile::tempdir().unwrap());
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let home = places(&mut client, "t", 0).remove(0);
    let other = DIRS.iter().find(|name| **name != home.0).unwrap();
    for _ in 0..20 {
        assert_eq!(produce(&mut client, "t", 0, batch(1, 20_000)).error_code, 0);
    }
    let begin = |broker: &TestBroker, client: &mut RawClient| {
        disk.set_space_left(Some(100_000));
        assert_eq!(alter(client, &broker.path().join(other), "t", 0), ErrorCode::None);
        wait_until("there is no space", || !broker.context().replicas.log_dirs.full().is_empty());
        // Enough for the name of the partition.
        disk.set_space_left(Some(5000));
        wait_until("the move is told of", || {
            disk.set_space_left(Some(5000));
            places(client, "t", 0).contains(&((*other).to_owned(), true))
        });
    };
    begin(&broker, &mut client);
    assert_eq!(read(&mut client, "t").len(), 20);
    // Given up, which a crash does not change.
    assert_eq!(alter(&mut client, &broker.path().join(&home.0), "t", 0), ErrorCode::None);
    disk.set_space_left(None);
    broker = on_disk(broker.end(false));
    client = broker.connect();
    assert_eq!(places(&mut client, "t", 0), std::slice::from_ref(&home));
    begin(&broker, &mut client);
    disk.set_space_left(None);
    wait_until("moved", || is_in(&mut client, "t", other));
    assert_eq!(read(&mut client, "t").len(), 20);
    assert_eq!(alter(&mut client, &broker.path().join(&home.0), "t", 0), ErrorCode::None);
    wait_until("moved back", || is_in(&mut client, "t", &home.0));
    // The next run goes on.
    for is_clean in [true, false] {
        begin(&broker, &mut client);
        disk.set_space_left(None);
        broker = on_disk(broker.end(is_clean));
        client = broker.connect();
        wait_until("moved by the next run", || is_in(&mut client, "t", other));
        assert_eq!(read(&mut client, "t").len(), 20);
        assert_eq!(alter(&mut client, &broker.path().join(&home.0), "t", 0), ErrorCode::None);
        wait_until("moved back", || is_in(&mut client, "t", &home.0));
    }
}

#[test]
fn a_failed_directory_takes_only_its_partitions_along() {
    let disk = CrashDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = DIRS.iter().map(|name| dir.path().join(name)).collect();
    let start = |dir: tempfile::TempDir| start_in(Arc::new(disk.clone()), &DIRS, dir).unwrap();
    let broker = start(dir);
    broker.create_topic("t", 6);
    let mut client = broker.connect();
    let failing: Vec<i32> = (0..6).filter(|p| places(&mut client, "t", *p)[0].0 == "b").collect();
    assert_eq!(failing.len(), 2);
    disk.set_dir_sync_fails(Some(&paths[1]));
    for partition in 0..6 {
        let answer = produce(&mut client, "t", partition, batch(1, 10));
        let expected = if failing.contains(&partition) { ErrorCode::KafkaStorageError } else { ErrorCode::None };
        assert_eq!(answer.error_code, expected.code(), "partition {partition}");
    }
    wait_until("partitions of the failed directory have no leader", || {
        let metadata: MetadataResponse = client.ask(&MetadataRequest { topics: None, ..Default::default() }, 12);
        metadata.topics[0].partitions.iter().all(|partition| {
            let offline = failing.contains(&partition.partition_index);
            (partition.leader_id == -1) == offline && (partition.offline_replicas == [1]) == offline
        })
    });
    // Not that replicas are missing: there is only this one.
    for partition in &failing {
        let answer = produce(&mut client, "t", *partition, batch(1, 10));
        assert_eq!(answer.error_code, ErrorCode::KafkaStorageError.code());
    }
    let context = broker.context();
    assert_eq!(context.metadata.image().broker(1).unwrap().log_dirs, context.replicas.log_dirs.ids());
    assert_eq!(context.replicas.log_dirs.ids().len(), 2);
    assert_eq!(
        alter(&mut client, &paths[1], "t", (0..6).find(|p| !failing.contains(p)).unwrap()),
        ErrorCode::KafkaStorageError
    );
    assert_eq!(alter(&mut client, &paths[2], "t", failing[0]), ErrorCode::KafkaStorageError);
    let response: DescribeLogDirsResponse = client.ask(&DescribeLogDirsRequest { topics: None }, 4);
    let errors: Vec<i16> = response.results.iter().map(|dir| dir.error_code).collect();
    assert_eq!(errors, [0, ErrorCode::KafkaStorageError.code(), 0]);
    // New partitions go elsewhere.
    broker.create_topic("u", 4);
    assert!((0..4).all(|p| places(&mut client, "u", p)[0].0 != "b"));
    disk.set_dir_sync_fails(None);
    let broker = start(broker.end(true));
    let mut client = broker.connect();
    for partition in 0..6 {
        assert_eq!(produce(&mut client, "t", partition, batch(1, 10)).error_code, 0, "{partition}");
    }
}
