//! A bit turned over in what the broker wrote, while it was stopped: never taken for what was written.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use caudal_broker::group::record::partition_for;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages as m;
use caudal_protocol::messages::fetch_response::FetchResponse;
use caudal_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};

use crate::fetch::{offsets, request};
use crate::metrics::ask;
use crate::produce::{batch, produce};
use crate::raw::{RawClient, TestBroker};
use crate::transactions::{describe, init_with};

fn start_in(dir: tempfile::TempDir) -> TestBroker {
    TestBroker::start_in(dir, |config| config.http_listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))]).unwrap()
}

fn health(broker: &TestBroker) -> String {
    ask(broker, "GET /health HTTP/1.0\r\n\r\n")
}

/// Turns over the last bit of `wanted` in the log of one partition of `topic`, which holds it once; returns the name of
/// that partition.
fn damage(data: &Path, topic: &str, wanted: &[u8]) -> String {
    let dirs = std::fs::read_dir(data).unwrap().map(|dir| dir.unwrap().path());
    let logs = dirs.filter(|dir| dir.file_name().unwrap().to_str().unwrap().starts_with(topic));
    let mut found: Vec<(PathBuf, usize)> = Vec::new();
    for dir in logs {
        let bytes = std::fs::read(dir.join("00000000000000000000.log")).unwrap();
        let places = bytes.windows(wanted.len()).enumerate().filter(|(_, at)| *at == wanted);
        found.extend(places.map(|(at, _)| (dir.clone(), at)));
    }
    let [(dir, at)] = found.as_slice() else { panic!("{wanted:?} is in {topic} {} times", found.len()) };
    let file = dir.join("00000000000000000000.log");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at + wanted.len() - 1] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    dir.file_name().unwrap().to_str().unwrap().to_owned()
}

fn committed(client: &mut RawClient, group: &str) -> Result<i64, ErrorCode> {
    let topics = vec![OffsetFetchRequestTopics { name: "t".into(), partition_indexes: vec![0], ..Default::default() }];
    let wanted = OffsetFetchRequestGroup { group_id: group.into(), topics: Some(topics), ..Default::default() };
    let response: m::OffsetFetchResponse =
        client.ask(&m::OffsetFetchRequest { groups: vec![wanted], ..Default::default() }, 8);
    match ErrorCode::from_code(response.groups[0].error_code) {
        ErrorCode::None => Ok(response.groups[0].topics[0].partitions[0].committed_offset),
        error => Err(error),
    }
}

#[test]
fn a_groups_offset_that_became_another_is_not_served() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    for (group, offset) in [("g", 0x1234_5678_9abc), ("h", 0x2345_6789_abcd)] {
        client.find_group(group);
        assert_eq!(client.commit_as(group, offset, ""), 0);
    }
    let dir = broker.end(true);
    let partition = damage(dir.path(), "__consumer_offsets", &0x1234_5678_9abc_u64.to_be_bytes());
    let broker = start_in(dir);
    let mut client = broker.connect();
    assert_eq!(committed(&mut client, "g"), Err(ErrorCode::NotCoordinator));
    assert_eq!(committed(&mut client, "h"), Ok(0x2345_6789_abcd));
    let told = health(&broker);
    assert!(told.contains("\"status\":\"degraded\"") && told.contains(&format!("what is in {partition}")), "{told}");
    let dir = broker.end(true);
    damage(dir.path(), "__consumer_offsets", &0x1234_5678_9abd_u64.to_be_bytes());
    let broker = start_in(dir);
    assert_eq!(committed(&mut broker.connect(), "g"), Ok(0x1234_5678_9abc));
    assert!(health(&broker).contains("\"status\":\"ok\""), "{}", health(&broker));
}

/// The CRC does not cover where a batch begins.
#[test]
fn a_groups_offset_that_became_an_earlier_or_later_one_is_not_served() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    client.find_group("g");
    // More than is read at once.
    let metadata = "m".repeat(4000);
    for offset in 0..300 {
        assert_eq!(client.commit(offset, &metadata), 0);
    }
    let mut dir = broker.end(true);
    let log = dir.path().join(format!("__consumer_offsets-{}/00000000000000000000.log", partition_for("g", 50)));
    let good = std::fs::read(&log).unwrap();
    let size = good.len() / 300;
    for (batch, byte, bit) in [(127, 5, 0), (10, 6, 0), (299, 6, 0), (150, 7, 4)] {
        let mut bytes = good.clone();
        bytes[batch * size + byte] ^= 1 << bit;
        std::fs::write(&log, bytes).unwrap();
        let broker = start_in(dir);
        assert_eq!(committed(&mut broker.connect(), "g"), Err(ErrorCode::NotCoordinator), "batch {batch}");
        assert!(health(&broker).contains("\"status\":\"degraded\""), "batch {batch}");
        dir = broker.end(true);
    }
    std::fs::write(&log, good).unwrap();
    let broker = start_in(dir);
    assert_eq!(committed(&mut broker.connect(), "g"), Ok(299));
}

#[test]
fn a_transactions_state_that_became_another_is_not_served() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    for (id, timeout_ms) in [("id", 0x0001_2345), ("other", 0x0002_3456)] {
        init_with(&mut client, id, timeout_ms).unwrap();
    }
    let dir = broker.end(true);
    let partition = damage(dir.path(), "__transaction_state", &0x0001_2345_u32.to_be_bytes());
    let broker = start_in(dir);
    let mut client = broker.connect();
    assert_eq!(ErrorCode::from_code(describe(&mut client, "id").error_code), ErrorCode::NotCoordinator);
    assert_eq!(init_with(&mut client, "id", 1000), Err(ErrorCode::NotCoordinator));
    assert_eq!(describe(&mut client, "other").transaction_timeout_ms, 0x0002_3456);
    let told = health(&broker);
    assert!(told.contains("\"status\":\"degraded\"") && told.contains(&format!("what is in {partition}")), "{told}");
    let dir = broker.end(true);
    damage(dir.path(), "__transaction_state", &0x0001_2344_u32.to_be_bytes());
    let broker = start_in(dir);
    assert_eq!(describe(&mut broker.connect(), "id").transaction_timeout_ms, 0x0001_2345);
}

#[test]
fn records_that_a_crash_left_damaged_are_told() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    for _ in 0..3 {
        assert_eq!(produce(&mut client, "t", 0, batch(2, 10)).error_code, 0);
    }
    let dir = broker.end(false);
    let log = dir.path().join("t-0/00000000000000000000.log");
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let broker = start_in(dir);
    let response: FetchResponse = broker.connect().ask(&request("t", &[(0, 4)]), 12);
    assert_eq!(offsets(&response.responses[0].partitions[0]), [4]);
    let told = health(&broker);
    assert!(told.contains("t-0 has damaged records: offsets 2 to 3") && told.contains("degraded"), "{told}");
}
