//! The corpus in `tests/data/hostile`: what arrives, and what must come of it. Other clients must not notice.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_protocol::messages::api_versions_request::ApiVersionsRequest;
use caudal_protocol::messages::api_versions_response::ApiVersionsResponse;
use caudal_protocol::messages::produce_response::ProduceResponse;
use caudal_protocol::wire::{Message, Reader};

use crate::produce::{batch, produce, request};
use crate::raw::{RawClient, TestBroker, frame};

/// Held by the tests that measure the memory of the process, which is that of all tests.
static MEASURING: Mutex<()> = Mutex::new(());

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
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
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

/// A few kilobytes that become gigabytes: of all that arrive at once, few are decompressed at a time, and none beyond the limit.
#[test]
fn decompression_bombs_are_refused_in_bounded_memory() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    const BOMBS: usize = 6;
    let broker = TestBroker::start();
    broker.create_topic_with("t", 1, &[("cleanup.policy", "compact")]);
    let before = resident_bytes();
    for codec in [Codec::Zstd, Codec::Gzip] {
        let bomb = bomb(codec, 300 << 20);
        assert!(bomb.len() < 600_000, "{} bytes in {}", bomb.len(), codec.name());
        let mut clients: Vec<RawClient> = (0..BOMBS).map(|_| broker.connect()).collect();
        for client in &mut clients {
            client.stream.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
            client.send(&request("t", 0, bomb.clone()), 12);
        }
        let done = AtomicBool::new(false);
        let most = std::thread::scope(|scope| {
            let most = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(resident_bytes());
                    std::thread::yield_now();
                }
                most
            });
            let answers = clients.iter_mut().map(RawClient::receive_frame).collect::<Vec<_>>();
            done.store(true, Ordering::Relaxed);
            for answer in answers {
                // Behind the correlation id and the tags of the header.
                let mut body = Reader::new(answer.unwrap().slice(5..));
                let response = ProduceResponse::decode(&mut body, 12).unwrap();
                let answer = &response.responses[0].partition_responses[0];
                assert_eq!(answer.error_code, ErrorCode::MessageTooLarge.code(), "{}", codec.name());
            }
            most.join().unwrap()
        });
        let grown = most.saturating_sub(before);
        // One up to the limit; all at once would take 1.5 GiB.
        assert!(grown < 600 << 20, "{BOMBS} bombs of {} took {grown} bytes", codec.name());
    }
    assert_eq!(produce(&mut broker.connect(), "t", 0, batch(1, 10)).base_offset, 0);
}

/// However many there are whose check takes long.
#[test]
fn small_batches_do_not_wait_for_bombs() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut bombers: Vec<RawClient> = (0..8).map(|_| broker.connect()).collect();
    let turn = broker.block_on(broker.context().unfolding.turn(100 << 20));
    for bomber in &mut bombers {
        bomber.send(&request("t", 0, bomb(Codec::Gzip, 17 << 20)), 12);
    }
    let mut client = broker.connect();
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        assert_eq!(produce(&mut client, "t", 0, bomb(codec, 100_000).into()).error_code, 0, "{}", codec.name());
    }
    drop(turn);
    for mut bomber in bombers {
        assert!(bomber.receive_frame().is_some());
    }
}

/// One record whose value is so many zeros.
fn bomb(codec: Codec, bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(codec);
    builder.append(caudal_broker::clock::wall_ms(), Some(b"key"), Some(&vec![0; bytes]), &[]);
    builder.build().unwrap().freeze()
}

/// Who asks and never reads is not read from any more.
#[test]
fn answers_that_nobody_reads_take_no_memory() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let broker = TestBroker::start();
    let request = ApiVersionsRequest { client_software_name: "deaf".into(), client_software_version: "1".into() };
    let many = frame(&request, 3, 0).repeat(1000);
    let before = resident_bytes();
    let mut deaf = Vec::new();
    for _ in 0..100 {
        let mut client = broker.connect();
        client.stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut sent = 0;
        while client.stream.write_all(&many).is_ok() {
            sent += many.len();
            assert!(sent < 256 << 20, "the broker goes on reading");
        }
        deaf.push(client);
    }
    let response: ApiVersionsResponse = broker.connect().ask(&request, 3);
    assert_eq!(response.error_code, 0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "100 connections that do not read took {grown} bytes");
}

/// As much of a request as needs no claim, on many connections, and nothing more.
#[test]
fn half_sent_requests_take_a_bounded_part_each() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let broker = TestBroker::start();
    let before = resident_bytes();
    let mut begun = Vec::new();
    for _ in 0..500 {
        let mut client = broker.connect();
        client.stream.write_all(&(64 * 1024i32).to_be_bytes()).unwrap();
        client.stream.write_all(&[0; 60 * 1024]).unwrap();
        begun.push(client);
    }
    let request = ApiVersionsRequest { client_software_name: "bystander".into(), client_software_version: "1".into() };
    let response: ApiVersionsResponse = broker.connect().ask(&request, 3);
    assert_eq!(response.error_code, 0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 500 * 192 * 1024, "500 half-sent requests took {grown} bytes");
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = status.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * 4096
}
