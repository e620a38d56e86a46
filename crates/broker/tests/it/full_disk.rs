//! A full disk: reads go on, writes are refused with the reason, also after a restart, and are taken again when there is
//! space.

use std::sync::Arc;

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::create_topics_request::CreatableTopic;
use caudal_protocol::messages::fetch_response::FetchResponse;
use caudal_protocol::messages::metadata_request::{MetadataRequest, MetadataRequestTopic};
use caudal_protocol::messages::metadata_response::MetadataResponse;
use caudal_protocol::messages::{CreateTopicsRequest, CreateTopicsResponse};
use caudal_storage::crash::CrashDisk;

use crate::fetch::{offsets, request};
use crate::produce::{batch, produce};
use crate::raw::{RawClient, TestBroker};

fn start(disk: &CrashDisk, dir: tempfile::TempDir) -> TestBroker {
    TestBroker::start_on(Arc::new(disk.clone()), dir, |_| {}).unwrap()
}

fn create(client: &mut RawClient, name: &str, num_partitions: i32) -> (ErrorCode, String) {
    let topic = CreatableTopic { name: name.into(), num_partitions, replication_factor: 1, ..Default::default() };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 1000, ..CreateTopicsRequest::default() };
    let mut response: CreateTopicsResponse = client.ask(&request, 7);
    let result = response.topics.remove(0);
    (ErrorCode::from_code(result.error_code), result.error_message.unwrap_or_default())
}

/// What is there is read, in the state that the metadata tells.
fn reads(client: &mut RawClient, records: i64) {
    let topics = vec![MetadataRequestTopic { name: Some("t".into()), ..MetadataRequestTopic::default() }];
    let request_metadata = MetadataRequest { topics: Some(topics), ..MetadataRequest::default() };
    let metadata: MetadataResponse = client.ask(&request_metadata, 12);
    let partition = &metadata.topics[0].partitions[0];
    assert_eq!((partition.error_code, partition.leader_id), (0, 1));
    assert_eq!(metadata.brokers.len(), 1);
    let response: FetchResponse = client.ask(&request("t", &[(0, 0)]), 12);
    let read = &response.responses[0].partitions[0];
    assert_eq!((read.error_code, read.high_watermark, offsets(read).first()), (0, records, Some(&0)));
}

fn refuses_writes(broker: &TestBroker, client: &mut RawClient) {
    let dir = broker.path().display().to_string();
    let answer = produce(client, "t", 0, batch(1, 5000));
    assert_eq!(ErrorCode::from_code(answer.error_code), ErrorCode::KafkaStorageError);
    let message = answer.error_message.unwrap();
    assert!(message.contains(&dir) && message.contains("full. Free space"), "{message}");
    let (code, message) = create(client, "another", 1);
    assert_eq!(code, ErrorCode::KafkaStorageError, "{message}");
    assert!(message.contains(&dir) && message.contains("full. Free space"), "{message}");
    let (code, _) = create(client, "t", 1);
    assert_eq!(code, if code == ErrorCode::KafkaStorageError { code } else { ErrorCode::TopicAlreadyExists });
}

#[test]
fn a_broker_on_a_full_disk_serves_and_recovers_by_itself() {
    let disk = CrashDisk::new();
    let mut broker = start(&disk, tempfile::tempdir().unwrap());
    broker.create_topic("t", 1);
    let mut records = 0;
    // The space ends in another place of the start each time.
    for (round, space) in [0, 60, 110, 170, 250, 330, 420, 600].into_iter().enumerate() {
        let mut client = broker.connect();
        assert_eq!(produce(&mut client, "t", 0, batch(2, 10)).base_offset, records);
        records += 2;
        disk.set_space_left(Some(0));
        refuses_writes(&broker, &mut client);
        reads(&mut client, records);

        let dir = broker.end(round % 2 == 0);
        disk.set_space_left(Some(space));
        broker = start(&disk, dir);
        let mut client = broker.connect();
        reads(&mut client, records);
        disk.set_space_left(Some(0));
        refuses_writes(&broker, &mut client);
        reads(&mut client, records);

        disk.set_space_left(None);
        let (code, message) = create(&mut client, &format!("new-{round}"), 1);
        assert_eq!(code, ErrorCode::None, "{message}");
        assert!(broker.block_on(broker.context().metadata.catch_up()));
        let end = produce(&mut client, "t", 0, batch(1, 10));
        assert_eq!((end.error_code, end.base_offset), (0, records));
        records += 1;
    }
    let dir = broker.end(true);
    let broker = start(&disk, dir);
    reads(&mut broker.connect(), records);
    assert_eq!(broker.context().metadata.image().topics().len(), 9);
}

#[test]
fn logs_that_found_no_space_are_created_later() {
    let disk = CrashDisk::new();
    let broker = start(&disk, tempfile::tempdir().unwrap());
    let context = broker.context();
    let mut client = broker.connect();
    let mut lacked = 0;
    for space in (2000..8000).step_by(500) {
        // In between it is enough for the records of the topic, but not for the files of all its partitions.
        disk.set_space_left(Some(space));
        let topic = format!("wide-{space}");
        let (created, _) = create(&mut client, &topic, 50);
        disk.set_space_left(None);
        let has_all = || (0..50).all(|partition| context.topics.view().partition(&topic, partition).is_some());
        if created == ErrorCode::None && !has_all() {
            lacked += 1;
            context.metadata.create_missing_logs();
            assert!(has_all());
            assert_eq!(produce(&mut client, &topic, 49, batch(1, 10)).base_offset, 0);
        }
    }
    assert!(lacked > 0);
}

#[test]
fn a_new_cluster_needs_space() {
    let disk = CrashDisk::new();
    disk.set_space_left(Some(300));
    let refused = TestBroker::start_on(Arc::new(disk), tempfile::tempdir().unwrap(), |_| {}).err().unwrap().to_string();
    assert!(refused.contains("full") || refused.contains("no storage space"), "{refused}");
}
