//! Quotas: who uses more than his share is told to pause, and is not read meanwhile.

use std::time::{Duration, Instant};

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::create_topics_request::CreatableTopic;
use caudal_protocol::messages::*;

use crate::administration::set_quota;
use crate::fetch;
use crate::produce::{batch, produce, request};
use crate::raw::{RawClient, TestBroker};

/// How long the broker takes to answer something small.
fn answered_after(client: &mut RawClient) -> Duration {
    let start = Instant::now();
    let _: MetadataResponse = client.ask(&MetadataRequest { topics: Some(Vec::new()), ..Default::default() }, 12);
    start.elapsed()
}

/// The tests' client calls itself so.
const ME: (&str, Option<&str>) = ("client-id", Some("raw"));

#[test]
fn a_producer_pauses_for_what_it_sent_too_much() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    assert_eq!(set_quota(&mut client, &[("client-id", Some("other"))], "producer_byte_rate", Some(1.0)), 0);
    let send = |client: &mut RawClient, acks: i16| {
        let mut request = request("t", 0, batch(1, 103_000).freeze());
        request.acks = acks;
        if acks == 0 {
            client.send(&request, 12);
            return 0;
        }
        let response: ProduceResponse = client.ask(&request, 12);
        assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
        response.throttle_time_ms
    };
    assert_eq!(send(&mut client, 1), 0, "the quota is somebody else's");
    // Over the ten seconds that a burst counts for, 103 KB are 10.3 KB per second.
    assert_eq!(set_quota(&mut client, &[ME], "producer_byte_rate", Some(10_000.0)), 0);
    let mut client = broker.connect();
    let throttle_ms = send(&mut client, 1);
    assert!((200..=500).contains(&throttle_ms), "{throttle_ms}");
    let paused = answered_after(&mut client);
    assert!(paused >= Duration::from_millis(u64::try_from(throttle_ms - 100).unwrap()), "{paused:?}");
    // Who asks for no answer is not read all the same.
    let start = Instant::now();
    send(&mut client, 0);
    answered_after(&mut client);
    assert!(start.elapsed() > Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(set_quota(&mut broker.connect(), &[ME], "producer_byte_rate", None), 0);
    assert_eq!(send(&mut broker.connect(), 1), 0);
}

#[test]
fn a_consumer_gets_nothing_until_it_has_paused() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    for _ in 0..10 {
        produce(&mut client, "t", 0, batch(1, 50_000));
    }
    // By default for all clients.
    assert_eq!(set_quota(&mut client, &[("client-id", None)], "consumer_byte_rate", Some(20_000.0)), 0);
    let mut wanted = fetch::request("t", &[(0, 0)]);
    let first: FetchResponse = client.ask(&wanted, 12);
    let bytes = |response: &FetchResponse| {
        let partitions = response.responses.iter().flat_map(|topic| &topic.partitions);
        partitions.map(|p| p.records.as_ref().map_or(0, |records| records.len())).sum::<usize>()
    };
    // No more at once than the quota allows in its windows.
    assert!(first.throttle_time_ms == 0 && (100_000..=200_000).contains(&bytes(&first)), "{}", bytes(&first));
    wanted.topics[0].partitions[0].fetch_offset = 4;
    let second: FetchResponse = client.ask(&wanted, 12);
    assert!(second.throttle_time_ms > 1000 && bytes(&second) == 0, "{}", second.throttle_time_ms);
    assert!(second.responses.is_empty() && second.session_id == 0);
    assert_eq!(set_quota(&mut broker.connect(), &[("client-id", None)], "consumer_byte_rate", None), 0);
    let all: FetchResponse = broker.connect().ask(&wanted, 12);
    assert_eq!((all.throttle_time_ms, bytes(&all) > 250_000), (0, true));
}

#[test]
fn a_client_pauses_for_the_time_it_takes() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    assert_eq!(set_quota(&mut client, &[("user", None)], "request_percentage", Some(0.000_001)), 0);
    let request = MetadataRequest { topics: Some(Vec::new()), ..Default::default() };
    let response: MetadataResponse = client.ask(&request, 12);
    assert_eq!(response.throttle_time_ms, 1000, "never longer than a window");
    assert!(answered_after(&mut client) > Duration::from_millis(800));
}

#[test]
fn quotas_outlive_a_restart() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    assert_eq!(set_quota(&mut client, &[("user", Some("ANONYMOUS")), ME], "producer_byte_rate", Some(10_000.0)), 0);
    let broker = broker.restart();
    let response: ProduceResponse = broker.connect().ask(&request("t", 0, batch(1, 103_000).freeze()), 12);
    assert!(response.throttle_time_ms > 0);
}

#[test]
fn an_address_makes_so_many_connections_a_second() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    answered_after(&mut client);
    assert_eq!(set_quota(&mut client, &[("ip", Some("127.0.0.1"))], "connection_creation_rate", Some(1.0)), 0);
    // Ten seconds' worth at once, then no more than one a second.
    let is_refused = || {
        let mut client = broker.connect();
        client.send(&MetadataRequest { topics: Some(Vec::new()), ..Default::default() }, 12);
        client.receive_frame().is_none()
    };
    assert!(!is_refused());
    assert!((0..200).any(|_| is_refused()));
    assert_eq!(set_quota(&mut client, &[("ip", Some("127.0.0.1"))], "connection_creation_rate", None), 0);
    answered_after(&mut broker.connect());
}

#[test]
fn partitions_are_created_at_the_rate_of_the_quota() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let new = |name: &str, num_partitions: i32| CreatableTopic {
        name: name.into(),
        num_partitions,
        replication_factor: 1,
        ..Default::default()
    };
    let create = |client: &mut RawClient, topics: Vec<CreatableTopic>, version: i16| {
        let response: CreateTopicsResponse =
            client.ask(&CreateTopicsRequest { topics, timeout_ms: 1000, ..Default::default() }, version);
        let codes: Vec<i16> = response.topics.iter().map(|topic| topic.error_code).collect();
        (codes, response.throttle_time_ms)
    };
    assert_eq!(set_quota(&mut client, &[("user", None)], "controller_mutation_rate", Some(1.0)), 0);
    // Eleven at once, and one topic may be beyond that.
    let exceeded = ErrorCode::ThrottlingQuotaExceeded.code();
    let (codes, throttle_ms) = create(&mut client, vec![new("a", 10), new("b", 2), new("c", 1)], 7);
    assert_eq!(codes, [0, 0, exceeded]);
    assert!((1..=1000).contains(&throttle_ms), "{throttle_ms}");
    // Who does not know the error has his way and pauses.
    let (codes, throttle_ms) = create(&mut client, vec![new("d", 3)], 5);
    assert_eq!(codes, [0]);
    assert!(throttle_ms > 1000, "{throttle_ms}");
    let mut client = broker.connect();
    let request = DeleteTopicsRequest { topic_names: vec!["d".into(), "no such".into()], ..Default::default() };
    let deleted: DeleteTopicsResponse = client.ask(&request, 5);
    let codes: Vec<i16> = deleted.responses.iter().map(|topic| topic.error_code).collect();
    assert_eq!(codes, [ErrorCode::UnknownTopicOrPartition.code(), exceeded]);
}
