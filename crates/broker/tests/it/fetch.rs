//! Fetch: limits, long polls, sessions.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{BatchBuilder, Batches};
use caudal_protocol::compression::Codec;
use caudal_protocol::messages::api_versions_request::ApiVersionsRequest;
use caudal_protocol::messages::api_versions_response::ApiVersionsResponse;
use caudal_protocol::messages::fetch_request::{FetchPartition, FetchRequest, FetchTopic};
use caudal_protocol::messages::fetch_response::{FetchResponse, PartitionData};
use caudal_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic};
use caudal_protocol::messages::list_offsets_response::ListOffsetsResponse;
use caudal_protocol::wire::Records;

use crate::produce::{batch, batch_of, produce};
use crate::raw::{RawClient, TestBroker};

pub fn request(topic: &str, wanted: &[(i32, i64)]) -> FetchRequest {
    let partition = |&(partition, fetch_offset): &(i32, i64)| FetchPartition {
        partition,
        fetch_offset,
        partition_max_bytes: 1 << 20,
        ..Default::default()
    };
    let topic =
        FetchTopic { topic: topic.into(), partitions: wanted.iter().map(partition).collect(), ..Default::default() };
    FetchRequest { max_wait_ms: 0, min_bytes: 1, max_bytes: 50 << 20, topics: vec![topic], ..Default::default() }
}

fn bytes(data: &PartitionData) -> Bytes {
    match &data.records {
        Some(Records::Bytes(bytes)) => bytes.clone(),
        other => panic!("no records: {other:?}"),
    }
}

pub fn offsets(data: &PartitionData) -> Vec<i64> {
    Batches::new(bytes(data)).map(|b| b.unwrap().header.base_offset).collect()
}

#[test]
fn every_version_gets_the_same_bytes() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    // Small ones are copied into the frame, large ones sent from the file.
    for size in [10, 100_000, 200] {
        produce(&mut client, "t", 0, batch(2, size));
    }
    let expected: FetchResponse = client.ask(&request("t", &[(0, 0)]), 4);
    let expected = bytes(&expected.responses[0].partitions[0]);
    assert!(expected.len() > 200_000);
    for version in 5..=18 {
        let mut wanted = request("t", &[(0, 0)]);
        if version >= 13 {
            wanted.topics[0].topic_id = broker.topic_id("t");
            wanted.topics[0].topic.clear();
        }
        let response: FetchResponse = client.ask(&wanted, version);
        let data = &response.responses[0].partitions[0];
        assert_eq!(data.error_code, 0);
        assert_eq!((data.high_watermark, data.log_start_offset), (6, 0), "version {version}");
        assert_eq!(bytes(data), expected, "version {version}");
    }
}

#[test]
fn the_first_batch_is_whole_and_the_rest_keeps_to_the_limits() {
    let broker = TestBroker::start();
    broker.create_topic("t", 2);
    let mut client = broker.connect();
    for partition in 0..2 {
        for _ in 0..3 {
            produce(&mut client, "t", partition, batch(1, 10_000));
        }
    }
    let mut small = request("t", &[(0, 0), (1, 0)]);
    small.max_bytes = 100;
    let response: FetchResponse = client.ask(&small, 12);
    let [first, second] = &response.responses[0].partitions[..] else { panic!("two partitions") };
    assert_eq!(offsets(first), [0], "one whole batch although it is larger than max_bytes");
    assert_eq!((offsets(second), second.high_watermark), (vec![], 3));
    let mut middle = request("t", &[(0, 1)]);
    middle.topics[0].partitions[0].partition_max_bytes = 21_000;
    let response: FetchResponse = client.ask(&middle, 12);
    assert_eq!(offsets(&response.responses[0].partitions[0]), [1, 2]);
}

/// The partitions that a response has records of.
fn served(response: &FetchResponse) -> Vec<i32> {
    let all = response.responses.iter().flat_map(|topic| &topic.partitions);
    all.filter(|data| !bytes(data).is_empty()).map(|data| data.partition_index).collect()
}

#[test]
fn a_response_to_a_neighbour_that_has_a_mebibyte_takes_no_further_partition_and_all_have_their_turn() {
    let broker = TestBroker::start();
    broker.create_topic("t", 4);
    let mut client = broker.connect();
    for partition in 0..4 {
        for _ in 0..3 {
            produce(&mut client, "t", partition, batch(1, 400_000));
        }
    }
    let mut wanted = request("t", &[(0, 0), (1, 0), (2, 0), (3, 0)]);
    wanted.topics[0].partitions.iter_mut().for_each(|p| p.partition_max_bytes = 2 << 20);
    // Without a session: who names the same order each time is not kept waiting for its later partitions.
    let mut seen = BTreeSet::new();
    for _ in 0..1000 {
        let response: FetchResponse = client.ask(&FetchRequest { session_epoch: -1, ..wanted.clone() }, 12);
        let in_order: Vec<_> = response.responses[0].partitions.iter().map(|data| data.partition_index).collect();
        assert_eq!(in_order, [0, 1, 2, 3], "answered in the order of the request");
        let served = served(&response);
        assert_eq!(served.len(), 1);
        seen.extend(served);
        if seen.len() == 4 {
            break;
        }
    }
    assert_eq!(seen.len(), 4, "only these had a turn: {seen:?}");
    // A session remembers whose turn it is.
    let response: FetchResponse = client.ask(&FetchRequest { session_epoch: 0, ..wanted.clone() }, 12);
    let (session_id, mut seen) = (response.session_id, served(&response));
    assert!(session_id > 0);
    for session_epoch in 1..4 {
        let more = FetchRequest { session_id, session_epoch, topics: vec![], ..wanted.clone() };
        let response: FetchResponse = client.ask(&more, 12);
        seen.extend(served(&response));
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3]);
    // Who waits for more gets more, and so does who is elsewhere.
    let response: FetchResponse = client.ask(&FetchRequest { min_bytes: 3 << 20, ..wanted.clone() }, 12);
    assert_eq!(served(&response).len(), 3);
    if cfg!(target_os = "linux") {
        let response: FetchResponse = RawClient::connect_from([127, 0, 0, 2], broker.addr()).ask(&wanted, 12);
        assert_eq!(served(&response), [0, 1, 2, 3]);
    }
}

#[test]
fn compressed_records_fill_the_response_to_a_neighbour() {
    let broker = TestBroker::start();
    broker.create_topic("t", 4);
    let mut client = broker.connect();
    // Bytes that no codec makes smaller.
    let noise: Vec<u8> = (0..600_000).map(|_| rand::random()).collect();
    for partition in 0..4 {
        for _ in 0..2 {
            let mut builder = BatchBuilder::new(if partition < 3 { Codec::Lz4 } else { Codec::None });
            builder.append(caudal_broker::clock::wall_ms(), None, Some(&noise), &[]);
            produce(&mut client, "t", partition, builder.build().unwrap());
        }
    }
    let ask = |client: &mut RawClient, partitions: &[(i32, i64)]| {
        let mut wanted = request("t", partitions);
        wanted.topics[0].partitions.iter_mut().for_each(|p| p.partition_max_bytes = 2 << 20);
        let response: FetchResponse = client.ask(&FetchRequest { session_epoch: 0, ..wanted }, 12);
        served(&response)
    };
    assert_eq!(ask(&mut client, &[(0, 0), (1, 0), (2, 0)]), [0, 1, 2]);
    for _ in 0..8 {
        // Plain records end the response, compressed ones do not, whichever are looked at first.
        let served = ask(&mut client, &[(3, 0), (0, 0)]);
        assert!(served == [3] || served == [3, 0], "{served:?}");
    }
}

#[test]
fn a_long_poll_ends_when_records_come_and_holds_up_nobody() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut consumer = broker.connect();
    let mut wait = request("t", &[(0, 0)]);
    wait.max_wait_ms = 15_000;
    let begin = Instant::now();
    let fetch = consumer.send(&wait, 12);
    let versions = ApiVersionsRequest { client_software_name: "raw".into(), client_software_version: "1".into() };
    let behind = consumer.send(&versions, 3);
    produce(&mut broker.connect(), "t", 0, batch(1, 10));
    let (id, response) = consumer.receive::<FetchResponse>(12);
    assert_eq!(id, fetch);
    assert_eq!(offsets(&response.responses[0].partitions[0]), [0]);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(consumer.receive::<ApiVersionsResponse>(3).0, behind);
}

#[test]
fn a_produce_behind_a_long_poll_of_its_own_connection_wakes_it() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let mut wait = request("t", &[(0, 0)]);
    wait.max_wait_ms = 15_000;
    let begin = Instant::now();
    let fetch = client.send(&wait, 12);
    let records = batch(1, 10).freeze();
    client.send(&crate::produce::request("t", 0, records), 12);
    let (id, response) = client.receive::<FetchResponse>(12);
    assert_eq!((id, offsets(&response.responses[0].partitions[0])), (fetch, vec![0]));
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_long_poll_without_records_ends_on_time() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let mut wait = request("t", &[(0, 0)]);
    wait.max_wait_ms = 100;
    let begin = Instant::now();
    let response: FetchResponse = client.ask(&wait, 12);
    assert!(begin.elapsed() >= Duration::from_millis(99));
    assert_eq!(offsets(&response.responses[0].partitions[0]), [0i64; 0]);
}

#[test]
fn min_bytes_is_waited_for() {
    let broker = TestBroker::start();
    broker.create_topic("t", 2);
    let mut consumer = broker.connect();
    let mut wait = request("t", &[(0, 0), (1, 0)]);
    wait.max_wait_ms = 15_000;
    wait.min_bytes = 5_000;
    consumer.send(&wait, 12);
    let mut producer = broker.connect();
    for partition in [0, 1, 0] {
        produce(&mut producer, "t", partition, batch(1, 2_000));
    }
    let (_, response) = consumer.receive::<FetchResponse>(12);
    let all: usize = response.responses[0].partitions.iter().map(|p| bytes(p).len()).sum();
    assert!(all >= 5_000, "{all} bytes");
}

#[test]
fn errors_are_those_of_kafka() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    produce(&mut client, "t", 0, batch(1, 10));
    let mut error = |change: &dyn Fn(&mut FetchRequest), version: i16| {
        let mut wanted = request("t", &[(0, 0)]);
        change(&mut wanted);
        let response: FetchResponse = client.ask(&wanted, version);
        let first = response.responses.first().map(|t| t.partitions[0].error_code);
        ErrorCode::from_code(first.unwrap_or(response.error_code))
    };
    assert_eq!(error(&|r| r.topics[0].partitions[0].fetch_offset = 2, 12), ErrorCode::OffsetOutOfRange);
    assert_eq!(error(&|r| r.topics[0].partitions[0].fetch_offset = 1, 12), ErrorCode::None);
    assert_eq!(error(&|r| r.topics[0].partitions[0].current_leader_epoch = 99, 12), ErrorCode::UnknownLeaderEpoch);
    assert_eq!(error(&|r| r.topics[0].partitions[0].partition = 5, 12), ErrorCode::UnknownTopicOrPartition);
    assert_eq!(error(&|r| r.topics[0].topic_id = caudal_protocol::Uuid::METADATA_TOPIC, 13), ErrorCode::UnknownTopicId);
    assert_eq!(error(&|r| r.replica_id = 3, 12), ErrorCode::TopicAuthorizationFailed);
    assert_eq!(error(&|r| (r.session_id, r.session_epoch) = (77, 5), 12), ErrorCode::FetchSessionIdNotFound);
}

#[test]
fn a_session_names_only_what_changed() {
    let broker = TestBroker::start();
    broker.create_topic("t", 3);
    let mut client = broker.connect();
    let mut full = request("t", &[(0, 0), (1, 0), (2, 0)]);
    full.session_epoch = 0;
    let response: FetchResponse = client.ask(&full, 12);
    assert!(response.session_id > 0);
    assert_eq!(response.responses[0].partitions.len(), 3);
    produce(&mut client, "t", 1, batch(1, 10));
    let next =
        FetchRequest { session_id: response.session_id, session_epoch: 1, topics: Vec::new(), ..request("t", &[]) };
    let response: FetchResponse = client.ask(&next, 12);
    assert_eq!(response.session_id, next.session_id);
    let changed: Vec<i32> = response.responses[0].partitions.iter().map(|p| p.partition_index).collect();
    assert_eq!(changed, [1]);
    let again: FetchResponse = client.ask(&next, 12);
    assert_eq!(again.error_code, ErrorCode::InvalidFetchSessionEpoch.code());
}

#[test]
fn offsets_are_listed_by_position_and_time() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    produce(&mut client, "t", 0, batch(3, 10));
    for version in 1..=11 {
        let mut list = |timestamp: i64| {
            let partition = ListOffsetsPartition { timestamp, ..Default::default() };
            let topic = ListOffsetsTopic { name: "t".into(), partitions: vec![partition] };
            let request = ListOffsetsRequest { replica_id: -1, topics: vec![topic], ..Default::default() };
            let response: ListOffsetsResponse = client.ask(&request, version);
            let found = &response.topics[0].partitions[0];
            (ErrorCode::from_code(found.error_code), found.offset)
        };
        assert_eq!(list(-1), (ErrorCode::None, 3));
        assert_eq!(list(-2), (ErrorCode::None, 0));
        assert_eq!(list(0), (ErrorCode::None, 0));
        assert_eq!(list(i64::MAX), (ErrorCode::None, -1));
        let max = if version >= 7 { (ErrorCode::None, 0) } else { (ErrorCode::UnsupportedVersion, -1) };
        assert_eq!(list(-3), max, "version {version}");
    }
}

/// KIP-110: who does not know the codec is told, not fed.
#[test]
fn old_clients_are_told_of_zstd() {
    let broker = TestBroker::start();
    broker.create_topic_with("t", 1, &[("compression.type", "zstd")]);
    let mut client = broker.connect();
    let sent = batch_of(20, 100, |_| BatchBuilder::new(Codec::Gzip));
    assert_eq!(produce(&mut client, "t", 0, sent).error_code, 0);
    for version in [4, 9, 10, 12] {
        let response: FetchResponse = client.ask(&request("t", &[(0, 0)]), version);
        let answer = &response.responses[0].partitions[0];
        let expected = if version < 10 { ErrorCode::UnsupportedCompressionType } else { ErrorCode::None };
        assert_eq!(answer.error_code, expected.code(), "version {version}");
        if version >= 10 {
            let stored = Batches::new(bytes(answer)).next().unwrap().unwrap();
            assert_eq!(stored.header.codec(), Some(Codec::Zstd));
            assert_eq!(stored.records(1 << 20).unwrap().to_records().unwrap().len(), 20);
        }
    }
}
