//! What one client may take of the broker, and what the system allows the broker.

use std::io::Write;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::api_versions_request::ApiVersionsRequest;
use caudal_protocol::messages::api_versions_response::ApiVersionsResponse;
use caudal_protocol::messages::fetch_request::ForgottenTopic;
use caudal_protocol::messages::fetch_response::FetchResponse;
use caudal_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use caudal_protocol::messages::metadata_request::{MetadataRequest, MetadataRequestTopic};
use caudal_protocol::messages::metadata_response::MetadataResponse;
use caudal_protocol::messages::produce_response::ProduceResponse;
use caudal_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use crate::fetch::{offsets, request};
use crate::produce::{batch, produce};
use crate::raw::{RawClient, TestBroker, frame};

const MIB: usize = 1024 * 1024;

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn is_served(client: &mut RawClient) {
    let versions = ApiVersionsRequest { client_software_name: "raw".into(), client_software_version: "1".into() };
    let response: ApiVersionsResponse = client.ask(&versions, 3);
    assert_eq!(response.error_code, 0);
}

/// A produce request of two megabytes, which is answered with an error.
fn large() -> Vec<u8> {
    frame(&crate::produce::request("t", 0, batch(1, 2 * MIB).freeze()), 12, 7)
}

/// Two clients that have sent so many bytes of a large request.
fn two_begun(broker: &TestBroker, bytes: usize) -> Vec<RawClient> {
    let begin = |_| {
        let mut client = broker.connect();
        client.stream.write_all(&large()[..bytes]).unwrap();
        client
    };
    (0..2).map(begin).collect()
}

#[test]
fn large_requests_share_a_bounded_memory() {
    let broker = TestBroker::start_with(|config| {
        config.limits.request_max_bytes = 4 * MIB;
        config.limits.queued_max_bytes = 4 * MIB + MIB / 2;
        config.limits.max_slow = Duration::from_secs(300);
    });
    broker.create_topic("t", 1);
    let memory = broker.context().request_memory.clone();
    let mut begun = two_begun(&broker, 200_000);
    wait_until("two requests are claimed", || memory.claimed_bytes() >= 4 * MIB);
    let others: Vec<_> = (0..8)
        .map(|_| {
            let mut client = broker.connect();
            std::thread::spawn(move || {
                client.stream.write_all(&large()).unwrap();
                let (_, response) = client.receive::<ProduceResponse>(12);
                response.responses[0].partition_responses[0].error_code
            })
        })
        .collect();
    wait_until("the others wait", || memory.waiting() == 8);
    // Small requests do not.
    let mut bystander = broker.connect();
    is_served(&mut bystander);
    assert_eq!(produce(&mut bystander, "t", 0, batch(1, 50_000)).base_offset, 0);
    assert!(memory.claimed_bytes() <= 4 * MIB + MIB / 2);
    // One that was begun is finished, one goes away.
    let mut finished = begun.remove(0);
    finished.stream.write_all(&large()[200_000..]).unwrap();
    let (_, response) = finished.receive::<ProduceResponse>(12);
    assert_eq!(response.responses[0].partition_responses[0].error_code, ErrorCode::MessageTooLarge.code());
    drop(begun);
    for other in others {
        assert_eq!(other.join().unwrap(), ErrorCode::MessageTooLarge.code());
    }
    wait_until("all is given back", || memory.claimed_bytes() == 0 && memory.waiting() == 0);
}

/// Of whom announces much and sends little the memory is taken back for those that wait for it; who sends on keeps it.
#[test]
fn slow_requests_do_not_keep_memory_from_others() {
    let broker = TestBroker::start_with(|config| {
        config.limits.request_max_bytes = 4 * MIB;
        config.limits.queued_max_bytes = 4 * MIB + MIB / 2;
        config.limits.max_slow = Duration::from_millis(200);
        config.limits.max_stall = Duration::from_secs(3600);
    });
    broker.create_topic("t", 1);
    let memory = broker.context().request_memory.clone();
    let slow = two_begun(&broker, 70_000);
    wait_until("two requests are claimed", || memory.claimed_bytes() >= 4 * MIB);
    let (stop, stopped) = mpsc::channel::<()>();
    let mut stream = slow[0].stream.try_clone().unwrap();
    // A byte now and then is not enough.
    let trickle = move || {
        while stopped.recv_timeout(Duration::from_millis(50)) == Err(mpsc::RecvTimeoutError::Timeout) {
            if stream.write_all(&[0]).is_err() {
                break;
            }
        }
    };
    let trickling = std::thread::spawn(trickle);
    assert_eq!(produce(&mut broker.connect(), "t", 0, batch(1, 800_000)).base_offset, 0);
    drop(stop);
    trickling.join().unwrap();
    drop(slow);
    wait_until("all is given back", || memory.claimed_bytes() == 0 && memory.waiting() == 0);
}

/// A long poll waits for producers: it must not have the memory that they need.
#[test]
fn large_long_polls_do_not_keep_producers_out() {
    let broker = TestBroker::start_with(|config| {
        config.limits.request_max_bytes = MIB;
        config.limits.queued_max_bytes = MIB;
    });
    broker.create_topic("t", 1);
    let mut poll = request("t", &[(0, 0)]);
    poll.max_wait_ms = 60_000;
    let forgotten = ForgottenTopic { topic: "t".into(), partitions: vec![7; 225_000], ..Default::default() };
    poll.forgotten_topics_data = vec![forgotten];
    let mut consumer = broker.connect();
    consumer.send(&poll, 12);
    let memory = broker.context().request_memory.clone();
    wait_until("the poll waits", || memory.parked_bytes() > 0 && memory.claimed_bytes() == 0);
    let began = Instant::now();
    assert_eq!(produce(&mut broker.connect(), "t", 0, batch(1, 800_000)).error_code, 0);
    let (_, response) = consumer.receive::<FetchResponse>(12);
    assert_eq!(offsets(&response.responses[0].partitions[0]), [0]);
    assert!(began.elapsed() < Duration::from_secs(20));
    wait_until("all is given back", || memory.claimed_bytes() == 0 && memory.parked_bytes() == 0);
}

#[test]
fn many_topics_are_created_in_one_change() {
    let broker = TestBroker::start();
    let topics = (0..1_200).map(|n| MetadataRequestTopic { name: Some(format!("topic-{n}")), ..Default::default() });
    let bad = MetadataRequestTopic { name: Some("no topic".into()), ..Default::default() };
    let wanted = MetadataRequest {
        topics: Some(std::iter::once(bad).chain(topics).collect()),
        allow_auto_topic_creation: true,
        ..Default::default()
    };
    let mut client = broker.connect();
    for (known, created) in [(0, 1_000), (1_000, 1_200)] {
        let response: MetadataResponse = client.ask(&wanted, 9);
        let count = |code: ErrorCode| response.topics.iter().filter(|t| t.error_code == code.code()).count();
        assert_eq!(count(ErrorCode::None), known);
        assert_eq!(count(ErrorCode::UnknownTopicOrPartition), 1_200 - known);
        assert_eq!(count(ErrorCode::InvalidTopicException), 1);
        wait_until("as many topics are made", || broker.context().metadata.image().topics().count() == created);
    }
}

/// Runs itself in a process of its own, whose files may not grow beyond half a megabyte.
#[test]
fn a_limit_of_file_sizes_is_like_a_full_disk() {
    const INSIDE: &str = "CAUDAL_TEST_WITHIN_THE_LIMIT";
    if std::env::var_os(INSIDE).is_some() {
        return within_the_limit_of_file_sizes();
    }
    let limited = Command::new("sh")
        .args(["-c", "ulimit -f 1024; exec \"$0\" --exact limits::a_limit_of_file_sizes_is_like_a_full_disk"])
        .env(INSIDE, "1")
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&limited.stdout);
    assert!(limited.status.success() && said.contains("1 passed"), "{:?}: {said}", limited.status);
}

fn within_the_limit_of_file_sizes() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let mut written = 0;
    let refused = loop {
        let answer = produce(&mut client, "t", 0, batch(1, 100_000));
        if answer.error_code != 0 {
            break answer;
        }
        written += 1;
        assert!(written < 20, "there is no limit");
    };
    assert_eq!(ErrorCode::from_code(refused.error_code), ErrorCode::KafkaStorageError, "{:?}", refused.error_message);
    let response: FetchResponse = client.ask(&request("t", &[(0, 0)]), 12);
    assert_eq!(offsets(&response.responses[0].partitions[0]).len(), written);
}

#[test]
fn limits_of_connections_change_while_it_runs() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    is_served(&mut client);
    let set = |client: &mut RawClient, name: &str, value: &str| {
        let config = AlterableConfig { name: name.into(), config_operation: 0, value: Some(value.into()) };
        let resource = AlterConfigsResource { resource_type: 4, resource_name: "1".into(), configs: vec![config] };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource], validate_only: false };
        let response: IncrementalAlterConfigsResponse = client.ask(&request, 1);
        assert_eq!(response.responses[0].error_code, 0, "{:?}", response.responses[0].error_message);
    };
    let is_refused = || {
        let mut client = broker.connect();
        client.send(&MetadataRequest { topics: Some(Vec::new()), ..Default::default() }, 12);
        client.receive_frame().is_none()
    };
    assert!(!is_refused());
    // This connection is the one that there may be.
    for name in ["max.connections", "max.connections.per.ip"] {
        set(&mut client, name, "1");
        wait_until(name, is_refused);
        set(&mut client, name, "100");
        wait_until(name, || !is_refused());
    }
    set(&mut client, "max.connections.per.ip.overrides", "127.0.0.1:1, 10.0.0.1:7");
    wait_until("an address of its own", is_refused);
}
