//! Connections: versions, pipelining, what closes them.

use std::io::Write;

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::api_versions_request::ApiVersionsRequest;
use caudal_protocol::messages::api_versions_response::ApiVersionsResponse;

use crate::raw::{TestBroker, frame};

fn api_versions() -> ApiVersionsRequest {
    ApiVersionsRequest { client_software_name: "raw".into(), client_software_version: "1.0".into() }
}

#[test]
fn every_version_of_api_versions_is_answered() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    for version in 0..=4 {
        let response: ApiVersionsResponse = client.ask(&api_versions(), version);
        assert_eq!(response.error_code, 0);
        assert!(response.api_keys.iter().any(|k| k.api_key == 18 && k.max_version == 4), "version {version}");
    }
}

#[test]
fn an_unknown_version_of_api_versions_is_answered_with_version_0() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let mut bytes = frame(&api_versions(), 4, 7);
    bytes[6..8].copy_from_slice(&99i16.to_be_bytes());
    client.stream.write_all(&bytes).unwrap();
    let (id, response) = client.receive::<ApiVersionsResponse>(0);
    assert_eq!((id, response.error_code), (7, ErrorCode::UnsupportedVersion.code()));
    assert_eq!(response.api_keys.len(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let many: Vec<u8> = (0..500).flat_map(|id| frame(&api_versions(), 3, id)).collect();
    let mut sender = client.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || sender.write_all(&many).unwrap());
    for expected in 0..500 {
        assert_eq!(client.receive::<ApiVersionsResponse>(3).0, expected);
    }
    writer.join().unwrap();
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    for byte in frame(&api_versions(), 3, 1) {
        client.stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(client.receive::<ApiVersionsResponse>(3).0, 1);
}
