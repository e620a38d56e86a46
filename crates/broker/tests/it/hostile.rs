//! The corpus in `tests/data/hostile`: what arrives, and what must come of it. Other clients must not notice.

use std::fs;
use std::io::Write;
use std::path::Path;

use caudal_protocol::messages::api_versions_request::ApiVersionsRequest;
use caudal_protocol::messages::api_versions_response::ApiVersionsResponse;

use crate::raw::TestBroker;

struct Case {
    name: String,
    expect: String,
    bytes: Vec<u8>,
}

fn corpus() -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hostile");
    let mut cases: Vec<Case> = fs::read_dir(dir).unwrap().map(|entry| parse(&entry.unwrap().path())).collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

fn parse(path: &Path) -> Case {
    let text = fs::read_to_string(path).unwrap();
    let mut expect = String::new();
    let mut digits = String::new();
    for line in text.lines() {
        match line.strip_prefix("expect:") {
            Some(value) => expect = value.trim().to_owned(),
            None if line.starts_with('#') => {}
            None => digits.push_str(line.trim()),
        }
    }
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    let bytes = (0..digits.len()).step_by(2).map(byte).collect();
    Case { name: path.file_stem().unwrap().to_string_lossy().into_owned(), expect, bytes }
}

#[test]
fn hostile_frames_close_their_own_connection_and_nothing_else() {
    let broker = TestBroker::start();
    let mut bystander = broker.connect();
    let cases = corpus();
    assert!(cases.len() >= 25, "only {} cases", cases.len());
    for case in cases {
        let mut client = broker.connect();
        client.stream.write_all(&case.bytes).unwrap();
        let answered = client.receive_frame();
        match case.expect.as_str() {
            "closed" => assert!(answered.is_none(), "{}: answered with {answered:02x?}", case.name),
            "answered" => assert!(answered.is_some(), "{}: closed", case.name),
            other => panic!("{}: unknown expectation {other}", case.name),
        }
        let request =
            ApiVersionsRequest { client_software_name: "bystander".into(), client_software_version: "1".into() };
        let response: ApiVersionsResponse = bystander.ask(&request, 3);
        assert_eq!(response.error_code, 0, "after {}", case.name);
    }
}

#[test]
fn a_claimed_length_takes_no_memory() {
    let broker = TestBroker::start();
    let before = resident_bytes();
    let mut claims = Vec::new();
    for _ in 0..200 {
        let mut client = broker.connect();
        // 100 MB are allowed, so the broker waits for them.
        client.stream.write_all(&(100 * 1024 * 1024i32).to_be_bytes()).unwrap();
        client.stream.write_all(&[0; 100]).unwrap();
        claims.push(client);
    }
    let request = ApiVersionsRequest { client_software_name: "bystander".into(), client_software_version: "1".into() };
    let response: ApiVersionsResponse = broker.connect().ask(&request, 3);
    assert_eq!(response.error_code, 0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 * 1024 * 1024, "200 claims of 100 MB took {grown} bytes");
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = status.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * 4096
}
