//! What is still there after a stop and after a crash, and directories that cannot be used.

use caudal_broker::StartError;
use caudal_protocol::messages::fetch_response::FetchResponse;
use caudal_protocol::messages::init_producer_id_request::InitProducerIdRequest;
use caudal_protocol::messages::init_producer_id_response::InitProducerIdResponse;

use crate::fetch::{offsets, request};
use crate::produce::{batch, batch_of, produce};
use crate::raw::{RawClient, TestBroker};

fn producer_id(client: &mut RawClient) -> i64 {
    let request = InitProducerIdRequest { transactional_id: None, ..Default::default() };
    let response: InitProducerIdResponse = client.ask(&request, 5);
    assert_eq!(response.error_code, 0);
    response.producer_id
}

fn records_offsets_groups_and_producers_survive(restart: fn(TestBroker) -> TestBroker) {
    let mut broker = TestBroker::start();
    broker.create_topic("t", 2);
    let mut ids = Vec::new();
    for round in 0..3i64 {
        let mut client = broker.connect();
        client.find_group("g");
        ids.push(producer_id(&mut client));
        if round > 0 {
            assert_eq!(client.committed(), round * 2);
        }
        let response: FetchResponse = client.ask(&request("t", &[(0, 0)]), 12);
        let expected: Vec<i64> = (0..round * 2).collect();
        assert_eq!(offsets(&response.responses[0].partitions[0]), expected);
        let sequence = i32::try_from(round).unwrap() * 2;
        for n in 0..2 {
            let records = batch_of(1, 100, |b| b.producer(1_000_000, 0, sequence + n));
            assert_eq!(produce(&mut client, "t", 0, records.clone()).base_offset, round * 2 + i64::from(n));
            // The state of producers survives with the records: a retry is no second record.
            assert_eq!(produce(&mut client, "t", 0, records).base_offset, round * 2 + i64::from(n));
        }
        assert_eq!(client.commit(round * 2 + 2, ""), 0);
        broker = restart(broker);
    }
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

#[test]
fn all_is_there_after_a_stop() {
    records_offsets_groups_and_producers_survive(TestBroker::restart);
}

#[test]
fn all_is_there_after_a_crash() {
    records_offsets_groups_and_producers_survive(TestBroker::crash_and_restart);
}

#[test]
fn after_a_crash_leaders_have_a_new_epoch() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    produce(&mut broker.connect(), "t", 0, batch(1, 10));
    let broker = broker.crash_and_restart();
    let mut old = request("t", &[(0, 0)]);
    old.topics[0].partitions[0].current_leader_epoch = 0;
    let response: FetchResponse = broker.connect().ask(&old, 12);
    let code = caudal_protocol::ErrorCode::FencedLeaderEpoch.code();
    assert_eq!(response.responses[0].partitions[0].error_code, code);
}

#[test]
fn a_directory_in_use_is_refused() {
    let broker = TestBroker::start();
    let path = broker.path().to_owned();
    let second = TestBroker::start_in(tempfile::tempdir().unwrap(), |config| config.log_dir = path);
    assert!(matches!(second, Err(StartError::Open(_))), "{:?}", second.err());
}

#[test]
fn a_port_in_use_and_an_open_address_are_refused() {
    let broker = TestBroker::start();
    let address = broker.addr();
    let taken = TestBroker::start_in(tempfile::tempdir().unwrap(), |config| config.listen = vec![address]).err();
    let text = taken.unwrap().to_string();
    assert!(text.contains(&address.to_string()) && text.contains("in use"), "{text}");
    let open = "0.0.0.0:0".parse().unwrap();
    let refused = TestBroker::start_in(tempfile::tempdir().unwrap(), |config| config.listen = vec![open]).err();
    assert!(refused.unwrap().to_string().contains("caudal.allow.insecure=true"));
}

#[test]
fn another_nodes_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    drop(TestBroker::start_in(dir, |config| config.log_dir = path.join("data")).map(|mut b| b.keep_dir()));
    let other = TestBroker::start_in(tempfile::tempdir().unwrap(), |config| {
        config.log_dir = path.join("data");
        config.node_id = 7;
    });
    assert!(matches!(other, Err(StartError::OtherNode { found: 1, wanted: 7, .. })), "{:?}", other.err());
    std::fs::remove_dir_all(path).unwrap();
}
