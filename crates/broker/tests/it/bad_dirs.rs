//! Log directories that cannot be used, at start and later: the others are served, and nothing begins anew elsewhere.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use caudal_broker::{BrokerConfig, StartError};
use caudal_protocol::messages::describe_log_dirs_request::DescribeLogDirsRequest;
use caudal_protocol::messages::describe_log_dirs_response::DescribeLogDirsResponse;
use caudal_protocol::messages::elect_leaders_request::{ElectLeadersRequest, TopicPartitions};
use caudal_protocol::messages::elect_leaders_response::ElectLeadersResponse;
use caudal_protocol::messages::fetch_response::FetchResponse;
use caudal_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic};
use caudal_protocol::messages::list_offsets_response::ListOffsetsResponse;
use caudal_protocol::messages::metadata_request::MetadataRequest;
use caudal_protocol::messages::metadata_response::MetadataResponse;
use caudal_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse};
use caudal_protocol::{ErrorCode, TopicPartition};
use caudal_storage::crash::CrashDisk;
use caudal_storage::{Disk, RealDisk};

use crate::fetch::{offsets, request};
use crate::limits::wait_until;
use crate::log_dirs::{DIRS, alter, copy_dir, places, start, start_in, until_told};
use crate::metrics::ask;
use crate::produce::{batch, produce};
use crate::raw::{RawClient, TestBroker};

fn fetch(client: &mut RawClient, partition: i32) -> (ErrorCode, Vec<i64>) {
    let response: FetchResponse = client.ask(&request("t", &[(partition, 0)]), 12);
    let data = &response.responses[0].partitions[0];
    (ErrorCode::from_code(data.error_code), offsets(data))
}

fn latest(client: &mut RawClient, partition: i32) -> ErrorCode {
    let wanted = ListOffsetsPartition { partition_index: partition, timestamp: -1, ..Default::default() };
    let topic = ListOffsetsTopic { name: "t".into(), partitions: vec![wanted] };
    let response: ListOffsetsResponse =
        client.ask(&ListOffsetsRequest { replica_id: -1, topics: vec![topic], ..Default::default() }, 7);
    ErrorCode::from_code(response.topics[0].partitions[0].error_code)
}

/// The partitions without a leader.
fn leaderless(client: &mut RawClient) -> Vec<i32> {
    let metadata: MetadataResponse = client.ask(&MetadataRequest { topics: None, ..Default::default() }, 12);
    let topic = metadata.topics.iter().find(|topic| topic.name.as_deref() == Some("t")).unwrap();
    let mut found = Vec::new();
    for partition in &topic.partitions {
        let is_offline = partition.leader_id == -1;
        let expected = if is_offline { ErrorCode::LeaderNotAvailable } else { ErrorCode::None };
        assert_eq!((partition.error_code, partition.offline_replicas == [1]), (expected.code(), is_offline));
        found.extend(is_offline.then_some(partition.partition_index));
    }
    found.sort_unstable();
    found
}

fn dir_errors(client: &mut RawClient) -> Vec<ErrorCode> {
    let response: DescribeLogDirsResponse = client.ask(&DescribeLogDirsRequest { topics: None }, 4);
    response.results.iter().map(|dir| ErrorCode::from_code(dir.error_code)).collect()
}

/// A broker with a record in each of three partitions, one in each directory; returns the partition in `c`.
fn filled() -> (TestBroker, i32) {
    let broker = start(tempfile::tempdir().unwrap());
    broker.create_topic("t", 3);
    let mut client = broker.connect();
    for partition in 0..3 {
        assert_eq!(produce(&mut client, "t", partition, batch(1, 10)).error_code, 0);
    }
    until_told(&broker, 3);
    let in_c = (0..3).find(|partition| places(&mut client, "t", *partition)[0].0 == "c").unwrap();
    (broker, in_c)
}

const STORAGE: ErrorCode = ErrorCode::KafkaStorageError;

/// Without the directory `c`: its partition is offline, and all others are served.
fn serves_the_others(broker: &TestBroker, in_c: i32, new_topic: &str) {
    let mut client = broker.connect();
    wait_until("the partition has no leader", || leaderless(&mut client) == [in_c]);
    for partition in 0..3 {
        let expected = if partition == in_c { STORAGE } else { ErrorCode::None };
        let answer = produce(&mut client, "t", partition, batch(1, 10));
        assert_eq!(ErrorCode::from_code(answer.error_code), expected, "{:?}", answer.error_message);
        assert_eq!(fetch(&mut client, partition).0, expected);
        assert_eq!(latest(&mut client, partition), expected);
    }
    let elected = |client: &mut RawClient, election_type| {
        let topic = TopicPartitions { topic: "t".into(), partitions: vec![in_c, (in_c + 1) % 3] };
        let named = ElectLeadersRequest { election_type, topic_partitions: Some(vec![topic]), timeout_ms: 1000 };
        let all = ElectLeadersRequest { election_type, topic_partitions: None, timeout_ms: 1000 };
        [named, all].map(|request| {
            let response: ElectLeadersResponse = client.ask(&request, 2);
            let results = response.replica_election_results.into_iter().filter(|result| result.topic == "t");
            let partitions = results.flat_map(|result| result.partition_result);
            partitions.map(|p| (p.partition_id, ErrorCode::from_code(p.error_code))).collect::<Vec<_>>()
        })
    };
    for (election_type, none) in
        [(0, ErrorCode::PreferredLeaderNotAvailable), (1, ErrorCode::EligibleLeadersNotAvailable)]
    {
        let [named, all] = elected(&mut client, election_type);
        assert_eq!(named, [(in_c, none), ((in_c + 1) % 3, ErrorCode::ElectionNotNeeded)]);
        assert_eq!(all, [(in_c, none)]);
    }
    let path = broker.path().to_owned();
    assert_eq!(alter(&mut client, &path.join("a"), "t", in_c), STORAGE);
    broker.create_topic(new_topic, 4);
    for partition in 0..4 {
        assert_eq!(produce(&mut client, new_topic, partition, batch(1, 10)).error_code, 0);
    }
}

#[test]
fn a_broker_starts_without_one_of_its_directories() {
    let (mut broker, in_c) = filled();
    let dropped: fn(&Path) = |_| {};
    let missing: fn(&Path) = |dir| std::fs::remove_dir_all(dir).unwrap();
    let empty: fn(&Path) = |dir| {
        std::fs::remove_dir_all(dir).unwrap();
        std::fs::create_dir(dir).unwrap();
    };
    let file: fn(&Path) = |dir| {
        std::fs::remove_dir_all(dir).unwrap();
        std::fs::write(dir, "").unwrap();
    };
    let no_properties: fn(&Path) = |dir| std::fs::remove_file(dir.join("meta.properties")).unwrap();
    let damaged: fn(&Path) = |dir| std::fs::write(dir.join("meta.properties"), "nothing").unwrap();
    let all = [dropped, missing, empty, file, no_properties, damaged];
    for (round, spoil) in all.into_iter().enumerate() {
        let dir = broker.end(round % 2 == 0);
        let (c, kept) = (dir.path().join("c"), dir.path().join("kept"));
        copy_dir(&c, &kept);
        spoil(&c);
        let is_dropped = round == 0;
        let names = if is_dropped { &DIRS[..2] } else { &DIRS[..] };
        broker = start_in(Arc::new(RealDisk), names, dir).unwrap();
        let mut client = broker.connect();
        let errors = dir_errors(&mut client);
        let expected = [ErrorCode::None, ErrorCode::None, STORAGE];
        assert_eq!(errors, expected[..names.len()], "round {round}");
        if !is_dropped {
            assert_eq!(alter(&mut client, &broker.path().join("c"), "t", (in_c + 1) % 3), STORAGE);
        }
        serves_the_others(&broker, in_c, &format!("new-{round}"));
        // A second start does as the first.
        let dir = broker.end(round % 2 == 1);
        let broker_again = start_in(Arc::new(RealDisk), names, dir).unwrap();
        serves_the_others(&broker_again, in_c, &format!("new-{round}-again"));
        // When it is back, all is there.
        let dir = broker_again.end(true);
        if c.is_dir() {
            std::fs::remove_dir_all(&c).unwrap();
        } else if c.exists() {
            std::fs::remove_file(&c).unwrap();
        }
        std::fs::rename(&kept, &c).unwrap();
        broker = start(dir);
        let mut client = broker.connect();
        wait_until("all have leaders", || leaderless(&mut client).is_empty());
        assert_eq!(dir_errors(&mut client), [ErrorCode::None; 3]);
        assert_eq!(fetch(&mut client, in_c).1.first(), Some(&0));
        assert_eq!(produce(&mut client, "t", in_c, batch(1, 10)).base_offset, round as i64 + 1);
        until_told(&broker, 3);
    }
}

#[test]
fn a_partition_whose_directory_cannot_be_used_is_offline_alone() {
    let (mut broker, in_c) = filled();
    let remove: fn(&Path) = |dir| match dir.is_dir() && !dir.is_symlink() {
        true => std::fs::remove_dir_all(dir).unwrap(),
        false => std::fs::remove_file(dir).unwrap(),
    };
    let file: fn(&Path) = |dir| std::fs::write(dir, "").unwrap();
    let dangling: fn(&Path) = |dir| std::os::unix::fs::symlink("nowhere", dir).unwrap();
    let itself: fn(&Path) = |dir| std::os::unix::fs::symlink(dir, dir).unwrap();
    let segment: fn(&Path) = |dir| std::fs::create_dir_all(dir.join("00000000000000000000.log")).unwrap();
    for (round, spoil) in [file, dangling, itself, segment].into_iter().enumerate() {
        let dir = broker.end(round % 2 == 0);
        let (place, kept) = (dir.path().join(format!("c/t-{in_c}")), dir.path().join("kept"));
        std::fs::rename(&place, &kept).unwrap();
        spoil(&place);
        let mut broker_without = start(dir);
        for again in ["", "-again"] {
            assert_eq!(dir_errors(&mut broker_without.connect()), [ErrorCode::None; 3], "round {round}");
            serves_the_others(&broker_without, in_c, &format!("new-{round}{again}"));
            assert_eq!(places(&mut broker_without.connect(), "t", in_c), []);
            broker_without = start(broker_without.end(round % 2 == 1));
        }
        let dir = broker_without.end(true);
        remove(&place);
        // A link to where it lies is as good.
        match round {
            0 => std::os::unix::fs::symlink(&kept, &place).unwrap(),
            _ => std::fs::rename(&kept, &place).unwrap(),
        }
        broker = start(dir);
        let mut client = broker.connect();
        wait_until("all have leaders", || leaderless(&mut client).is_empty());
        assert_eq!(fetch(&mut client, in_c).1, (0..=round as i64).collect::<Vec<_>>());
        assert_eq!(produce(&mut client, "t", in_c, batch(1, 10)).base_offset, round as i64 + 1);
        if round == 0 {
            let dir = broker.end(true);
            remove(&place);
            std::fs::rename(&kept, &place).unwrap();
            broker = start(dir);
        }
    }
    // What was removed begins anew where it was.
    let dir = broker.end(true);
    remove(&dir.path().join(format!("c/t-{in_c}")));
    let broker = start(dir);
    let mut client = broker.connect();
    assert_eq!(produce(&mut client, "t", in_c, batch(1, 10)).base_offset, 0);
    assert_eq!(places(&mut client, "t", in_c), [("c".to_owned(), false)]);
}

/// The log was lost while the directory of others was not there, so that it does not begin anew.
#[test]
fn what_was_known_of_a_lost_log_is_known_until_its_topic_is_gone() {
    let (broker, in_c) = filled();
    let log = TopicPartition::new("t", in_c);
    let known_end = |broker: &TestBroker| {
        let path = broker.path().join("c");
        let dir = broker.context().replicas.log_dirs.iter().find(|dir| dir.path == path).unwrap();
        dir.log_dir.known_end(&log)
    };
    let dir = broker.end(true);
    let (b, b_kept) = (dir.path().join("b"), dir.path().join("b-kept"));
    std::fs::rename(&b, &b_kept).unwrap();
    std::fs::remove_dir_all(dir.path().join("c").join(log.to_string())).unwrap();
    let mut broker = start(dir);
    for round in 0..3 {
        broker.create_topic(&format!("new-{round}"), 2);
        assert_eq!(known_end(&broker), Some(1), "round {round}");
        let refused = produce(&mut broker.connect(), "t", in_c, batch(1, 10));
        assert_eq!(refused.error_code, STORAGE.code());
        broker = start(broker.end(round % 2 == 0));
    }
    let request = DeleteTopicsRequest { topic_names: vec!["t".into()], timeout_ms: 10_000, ..Default::default() };
    let deleted: DeleteTopicsResponse = broker.connect().ask(&request, 5);
    assert_eq!((deleted.responses[0].error_code, known_end(&broker)), (0, None));
}

/// A new partition has nothing to lose.
#[test]
fn what_bears_the_name_of_a_new_partition_is_left_alone() {
    let broker = start(tempfile::tempdir().unwrap());
    let mut client = broker.connect();
    for name in ["a", "b"] {
        std::fs::write(broker.path().join(name).join("t-0"), name).unwrap();
    }
    broker.create_topic("t", 1);
    assert_eq!(produce(&mut client, "t", 0, batch(1, 10)).error_code, 0);
    until_told(&broker, 1);
    let broker = start(broker.end(false));
    let mut client = broker.connect();
    assert_eq!(produce(&mut client, "t", 0, batch(1, 10)).base_offset, 1);
    assert_eq!(places(&mut client, "t", 0), [("c".to_owned(), false)]);
    assert_eq!(std::fs::read(broker.path().join("a/t-0")).unwrap(), b"a");
    std::fs::write(broker.path().join("c/u-0"), "c").unwrap();
    ["a", "b"].iter().for_each(|name| std::fs::write(broker.path().join(name).join("u-0"), "").unwrap());
    broker.create_topic("u", 2);
    let answers = [0, 1].map(|p| ErrorCode::from_code(produce(&mut client, "u", p, batch(1, 10)).error_code));
    assert_eq!(answers, [STORAGE, ErrorCode::None]);
}

/// Killed at once, before anybody could tell the metadata later where they lie.
#[test]
fn new_and_moved_partitions_are_not_begun_anew_after_a_kill() {
    let broker = start(tempfile::tempdir().unwrap());
    let mut client = broker.connect();
    let is_told = |broker: &TestBroker, client: &mut RawClient| {
        let image = broker.context().metadata.image();
        let dirs = &broker.context().replicas.log_dirs;
        (0..3).all(|partition| {
            let path = broker.path().join(&places(client, "t", partition)[0].0);
            let id = dirs.iter().find(|dir| dir.path == path).unwrap().id;
            image.partition("t", partition).unwrap().directories == [id]
        })
    };
    assert_eq!(alter(&mut client, &broker.path().join("b"), "t", 0), ErrorCode::UnknownTopicOrPartition);
    broker.create_topic("t", 3);
    assert!(is_told(&broker, &mut client));
    for partition in 0..3 {
        assert_eq!(produce(&mut client, "t", partition, batch(1, 10)).error_code, 0);
    }
    let held =
        |client: &mut RawClient, name| (0..3).filter(|p| places(client, "t", *p)[0].0 == name).collect::<Vec<_>>();
    assert_eq!(held(&mut client, "b")[0], 0, "the wish");
    let [in_c] = held(&mut client, "c")[..] else { panic!() };
    let broker = start_in(Arc::new(RealDisk), &["a", "b"], broker.end(false)).unwrap();
    serves_the_others(&broker, in_c, "u");
    let broker = start(broker.end(false));
    let mut client = broker.connect();
    wait_until("all have leaders", || leaderless(&mut client).is_empty());
    assert_eq!(fetch(&mut client, in_c), (ErrorCode::None, vec![0]));
    assert_eq!(alter(&mut client, &broker.path().join("c"), "t", 0), ErrorCode::None);
    wait_until("moved", || places(&mut client, "t", 0) == [("c".to_owned(), false)]);
    assert!(is_told(&broker, &mut client));
    let end = produce(&mut client, "t", 0, batch(1, 10)).base_offset;
    let broker = start_in(Arc::new(RealDisk), &["a", "b"], broker.end(false)).unwrap();
    let mut client = broker.connect();
    wait_until("both are offline", || leaderless(&mut client) == [0, in_c]);
    let broker = start(broker.end(false));
    let mut client = broker.connect();
    wait_until("all have leaders", || leaderless(&mut client).is_empty());
    assert_eq!(fetch(&mut client, 0).1.last(), Some(&end));
}

#[test]
fn a_directory_that_is_a_copy_or_belongs_to_others_is_refused() {
    let (broker, _) = filled();
    let dir = broker.end(true);
    copy_dir(&dir.path().join("c"), &dir.path().join("d"));
    let kept = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), kept.path());
    let refused = start_in(Arc::new(RealDisk), &["a", "b", "c", "d"], dir).err().unwrap();
    assert!(matches!(&refused, StartError::SameId { .. }) && refused.to_string().contains("copy"), "{refused}");
    let copy = tempfile::tempdir().unwrap();
    copy_dir(kept.path(), copy.path());
    let properties = copy.path().join("c/meta.properties");
    let text = std::fs::read_to_string(&properties).unwrap().replace("node.id=1", "node.id=2");
    std::fs::write(properties, text).unwrap();
    let refused = start_in(Arc::new(RealDisk), &DIRS, copy).err().unwrap();
    assert!(matches!(&refused, StartError::OtherNode { .. }), "{refused}");
    let _locked = RealDisk.lock(&kept.path().join("c/.lock")).unwrap();
    let refused = start_in(Arc::new(RealDisk), &DIRS, kept).err().unwrap();
    assert!(refused.to_string().contains("another broker is using it"), "{refused}");
}

/// Partitions that were moved by hand, and the directory they lay in left out.
#[test]
fn partitions_may_be_moved_by_hand() {
    let (broker, in_c) = filled();
    let dir = broker.end(true);
    let name = format!("t-{in_c}");
    std::fs::rename(dir.path().join("c").join(&name), dir.path().join("a").join(&name)).unwrap();
    let broker = start_in(Arc::new(RealDisk), &["a", "b"], dir).unwrap();
    let mut client = broker.connect();
    wait_until("all have leaders", || leaderless(&mut client).is_empty());
    assert_eq!(produce(&mut client, "t", in_c, batch(1, 10)).base_offset, 1);
    until_told(&broker, 3);
}

#[test]
fn what_is_given_up_begins_anew() {
    let (broker, in_c) = filled();
    let dir = broker.end(true);
    std::fs::remove_dir_all(dir.path().join("c")).unwrap();
    let paths: Vec<PathBuf> = DIRS.iter().map(|name| dir.path().join(name)).collect();
    let broker = TestBroker::start_in(dir, |config| {
        Arc::make_mut(&mut config.properties).set("caudal.metadata.accept.loss", "true");
        config.log_dir = paths[0].clone();
        config.log_dirs = paths;
    })
    .unwrap();
    let mut client = broker.connect();
    wait_until("all have leaders", || leaderless(&mut client).is_empty());
    assert_eq!(produce(&mut client, "t", in_c, batch(1, 10)).base_offset, 0);
    until_told(&broker, 3);
    // Now no partition lies in it, so that it is taken for a new one.
    let broker = start(broker.end(true));
    let mut client = broker.connect();
    assert_eq!(dir_errors(&mut client), [ErrorCode::None; 3]);
    assert_eq!(produce(&mut client, "t", in_c, batch(1, 10)).base_offset, 1);
}

#[test]
fn groups_whose_offsets_are_away_are_not_served_and_not_forgotten() {
    let broker = start(tempfile::tempdir().unwrap());
    broker.create_topic("t", 1);
    broker.create_topic_with("__consumer_offsets", 3, &[("cleanup.policy", "compact")]);
    let mut client = broker.connect();
    let at = caudal_broker::group::record::partition_for("g", 3);
    let home = places(&mut client, "__consumer_offsets", at)[0].0.clone();
    let target = broker.path().join("c");
    if home != "c" {
        assert_eq!(alter(&mut client, &target, "__consumer_offsets", at), ErrorCode::None);
        wait_until("moved", || places(&mut client, "__consumer_offsets", at) == [("c".to_owned(), false)]);
    }
    assert_eq!(client.commit(7, ""), 0);
    let context = broker.context();
    let id = context.replicas.log_dirs.iter().find(|dir| dir.path == target).unwrap().id;
    wait_until("told", || {
        let image = context.metadata.image();
        image.partition("__consumer_offsets", at).unwrap().directory_of(1) == Some(id)
    });
    let dir = broker.end(true);
    let (c, kept) = (dir.path().join("c"), dir.path().join("kept"));
    std::fs::rename(&c, &kept).unwrap();
    let broker = start(dir);
    let mut client = broker.connect();
    assert_eq!(client.commit(8, ""), ErrorCode::NotCoordinator.code());
    let dir = broker.end(true);
    std::fs::rename(&kept, &c).unwrap();
    let broker = start(dir);
    assert_eq!(broker.connect().committed(), 7);
}

#[test]
fn a_directory_that_vanishes_is_not_made_again() {
    let (broker, in_c) = filled();
    let (c, kept) = (broker.path().join("c"), broker.path().join("kept"));
    std::fs::rename(&c, &kept).unwrap();
    broker.create_topic("at-once", 6);
    let mut client = broker.connect();
    for partition in 0..6 {
        assert_eq!(produce(&mut client, "at-once", partition, batch(1, 10)).error_code, 0);
    }
    wait_until("it is offline", || dir_errors(&mut client) == [ErrorCode::None, ErrorCode::None, STORAGE]);
    serves_the_others(&broker, in_c, "later");
    let dir = broker.end(true);
    assert!(!c.exists());
    std::fs::rename(&kept, &c).unwrap();
    let broker = start(dir);
    let mut client = broker.connect();
    wait_until("all have leaders", || leaderless(&mut client).is_empty());
    assert_eq!(fetch(&mut client, in_c).1, [0]);
}

fn health(broker: &TestBroker) -> String {
    ask(broker, "GET /health HTTP/1.1\r\n\r\n")
}

#[test]
fn health_tells_of_a_partition_that_is_offline_alone() {
    let (broker, in_c) = filled();
    let dir = broker.end(true);
    let (place, kept) = (dir.path().join(format!("c/t-{in_c}")), dir.path().join("kept"));
    let start_with_http = |dir: tempfile::TempDir| {
        let paths: Vec<PathBuf> = DIRS.iter().map(|name| dir.path().join(name)).collect();
        let change = |config: &mut BrokerConfig| {
            config.http_listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
            config.log_dir = paths[0].clone();
            config.log_dirs = paths;
        };
        TestBroker::start_in(dir, change).unwrap()
    };
    let segment = place.join("00000000000000000000.log");
    std::fs::rename(&place, &kept).unwrap();
    let file: fn(&Path) = |place| std::fs::write(place, "").unwrap();
    let dangling: fn(&Path) = |place| std::os::unix::fs::symlink("nowhere", place).unwrap();
    let damaged: fn(&Path) = |place| std::fs::create_dir_all(place.join("00000000000000000000.log")).unwrap();
    let mut dir = dir;
    for (spoil, path) in [(file, &place), (dangling, &place), (damaged, &segment)] {
        spoil(&place);
        let broker = start_with_http(dir);
        let told = health(&broker);
        assert!(told.starts_with("HTTP/1.1 200") && told.contains("\"status\":\"degraded\""), "{told}");
        assert!(told.contains("\"log_dir\":\"ok\"") && told.contains(&format!("t-{in_c} is offline: ")), "{told}");
        assert!(told.contains(&path.display().to_string()) && told.contains("Then restart"), "{told}");
        let live = ask(&broker, "GET /health/live HTTP/1.1\r\n\r\n");
        assert!(live.starts_with("HTTP/1.1 200") && live.contains("\"status\":\"ok\""), "{live}");
        dir = broker.end(true);
        match place.is_dir() {
            true => std::fs::remove_dir_all(&place).unwrap(),
            false => std::fs::remove_file(&place).unwrap(),
        }
    }
    std::fs::rename(&kept, &place).unwrap();
    let told = health(&start_with_http(dir));
    assert!(told.contains("\"status\":\"ok\"") && told.contains("\"partitions\":\"ok\""), "{told}");
}

#[test]
fn health_tells_what_a_part_lacks() {
    let disk = CrashDisk::new();
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = DIRS.iter().map(|name| dir.path().join(name)).collect();
    let (log_dir, log_dirs) = (paths[0].clone(), paths.clone());
    let broker = TestBroker::start_on(Arc::new(disk.clone()), dir, |config| {
        config.http_listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        config.log_dir = log_dir;
        config.log_dirs = log_dirs;
    })
    .unwrap();
    broker.create_topic("t", 3);
    let mut client = broker.connect();
    assert_eq!(produce(&mut client, "t", 0, batch(1, 10)).error_code, 0);
    assert!(health(&broker).contains("\"status\":\"ok\""));
    disk.set_space_left(Some(0));
    assert_eq!(produce(&mut client, "t", 0, batch(1, 10)).error_code, STORAGE.code());
    let told = health(&broker);
    assert!(told.starts_with("HTTP/1.1 200") && told.contains("degraded") && told.contains("is full"), "{told}");
    disk.set_space_left(None);
    assert_eq!(produce(&mut client, "t", 0, batch(1, 10)).error_code, 0);
    assert!(health(&broker).contains("\"status\":\"ok\""));
    disk.set_dir_sync_fails(Some(&paths[2]));
    let errors: Vec<i16> = (0..3).map(|p| produce(&mut client, "t", p, batch(1, 10)).error_code).collect();
    assert_eq!(errors.iter().filter(|error| **error == STORAGE.code()).count(), 1);
    let told = health(&broker);
    let path = paths[2].display().to_string();
    assert!(told.starts_with("HTTP/1.1 200") && told.contains("degraded") && told.contains(&path), "{told}");
    disk.set_sync_fails(true);
    broker.block_on(broker.context().ensure_internal_topic("__consumer_offsets"));
    wait_until("the metadata's directory is out of use", || health(&broker).starts_with("HTTP/1.1 503"));
}
