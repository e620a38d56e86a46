//! Produce: every version, and each way to be refused.

use std::io::Write;

use bytes::{BufMut, Bytes, BytesMut};
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_protocol::messages::api_versions_request::ApiVersionsRequest;
use caudal_protocol::messages::api_versions_response::ApiVersionsResponse;
use caudal_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic,
};
use caudal_protocol::messages::delete_records_response::DeleteRecordsResponse;
use caudal_protocol::messages::produce_request::{PartitionProduceData, ProduceRequest, TopicProduceData};
use caudal_protocol::messages::produce_response::{PartitionProduceResponse, ProduceResponse};
use caudal_protocol::wire::Records;

use crate::raw::{RawClient, TestBroker};

/// A batch of `count` records of `size` bytes.
pub fn batch(count: usize, size: usize) -> BytesMut {
    batch_of(count, size, |builder| builder)
}

pub fn batch_of(count: usize, size: usize, change: impl FnOnce(BatchBuilder) -> BatchBuilder) -> BytesMut {
    let now_ms = caudal_broker::clock::wall_ms();
    let mut builder = change(BatchBuilder::new(Codec::None));
    for _ in 0..count {
        builder.append(now_ms, Some(b"key"), Some(&vec![b'v'; size]), &[]);
    }
    builder.build().unwrap()
}

pub fn request(topic: &str, partition: i32, records: Bytes) -> ProduceRequest {
    let data = PartitionProduceData { index: partition, records: Some(Records::Bytes(records)) };
    let topic = TopicProduceData { name: topic.into(), partition_data: vec![data], ..Default::default() };
    ProduceRequest { acks: -1, timeout_ms: 30_000, topic_data: vec![topic], ..Default::default() }
}

pub fn produce(client: &mut RawClient, topic: &str, partition: i32, records: BytesMut) -> PartitionProduceResponse {
    let mut response: ProduceResponse = client.ask(&request(topic, partition, records.freeze()), 12);
    response.responses.remove(0).partition_responses.remove(0)
}

#[test]
fn every_version_appends() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let mut next = 0;
    for version in 3..=12 {
        let response: ProduceResponse = client.ask(&request("t", 0, batch(3, 10).freeze()), version);
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (0, next), "version {version}");
        next += 3;
    }
    let mut by_id = request("", 0, batch(1, 10).freeze());
    by_id.topic_data[0].topic_id = broker.topic_id("t");
    let response: ProduceResponse = client.ask(&by_id, 13);
    assert_eq!(response.responses[0].partition_responses[0].base_offset, next);
    by_id.topic_data[0].topic_id = caudal_protocol::Uuid::METADATA_TOPIC;
    let response: ProduceResponse = client.ask(&by_id, 13);
    assert_eq!(response.responses[0].partition_responses[0].error_code, ErrorCode::UnknownTopicId.code());
}

#[test]
fn old_versions_are_told_that_they_are_too_old() {
    let broker = TestBroker::start();
    for version in 0..3i16 {
        let mut client = broker.connect();
        let mut body = BytesMut::new();
        body.put_i16(0);
        body.put_i16(version);
        body.put_i32(5);
        body.put_i16(-1);
        body.put_i16(1);
        body.put_i32(1000);
        body.put_i32(1);
        body.put_i16(1);
        body.put_slice(b"t");
        body.put_i32(1);
        body.put_i32(7);
        body.put_i32(0);
        let mut frame = BytesMut::new();
        frame.put_i32(body.len() as i32);
        frame.extend_from_slice(&body);
        client.stream.write_all(&frame).unwrap();
        let answer = client.receive_frame().unwrap();
        let mut expected = BytesMut::new();
        expected.put_i32(5);
        expected.put_i32(1);
        expected.put_i16(1);
        expected.put_slice(b"t");
        expected.put_i32(1);
        expected.put_i32(7);
        expected.put_i16(ErrorCode::UnsupportedVersion.code());
        expected.put_i64(-1);
        if version >= 2 {
            expected.put_i64(-1);
        }
        if version >= 1 {
            expected.put_i32(0);
        }
        assert_eq!(answer, expected.freeze(), "version {version}");
    }
}

#[test]
fn what_is_wrong_with_a_batch_is_said() {
    let broker = TestBroker::start();
    broker.create_topic_with("t", 1, &[("max.message.bytes", "2000")]);
    let mut client = broker.connect();
    let fits = batch(1, 2000 - batch(1, 1000).len() + 1000);
    assert_eq!(fits.len(), 2000);
    let too_large = batch(1, 2000 - batch(1, 1000).len() + 1001);
    let mut bad_crc = batch(2, 10);
    bad_crc[70] ^= 1;
    let mut two = batch(1, 10);
    two.extend_from_slice(&batch(1, 10));
    let mut codec = batch(1, 10);
    codec[22] = 7;
    let crc = crc32c::crc32c(&codec[21..]);
    codec[17..21].copy_from_slice(&crc.to_be_bytes());
    let mut magic = batch(1, 10);
    magic[16] = 1;
    let cut = BytesMut::from(&batch(1, 10)[..65]);
    let resealed = |at: usize, byte: u8| {
        let mut records = batch(2, 10);
        records[at] = byte;
        let crc = crc32c::crc32c(&records[21..]);
        records[17..21].copy_from_slice(&crc.to_be_bytes());
        records
    };
    let cases: [(&str, BytesMut, ErrorCode); 14] = [
        ("a record that is too long", resealed(61, 90), ErrorCode::InvalidRecord),
        ("a record that is too short", resealed(61, 2), ErrorCode::InvalidRecord),
        ("an offset that is not its place", resealed(64, 2), ErrorCode::InvalidRecord),
        ("more records than counted", resealed(60, 1), ErrorCode::InvalidRecord),
        ("fits", fits, ErrorCode::None),
        ("too large", too_large, ErrorCode::MessageTooLarge),
        ("bad crc", bad_crc, ErrorCode::CorruptMessage),
        ("two batches", two, ErrorCode::InvalidRecord),
        ("unknown codec", codec, ErrorCode::UnsupportedCompressionType),
        ("old magic", magic, ErrorCode::InvalidRecord),
        ("cut off", cut, ErrorCode::InvalidRecord),
        ("empty", BytesMut::new(), ErrorCode::InvalidRecord),
        ("control", batch_of(1, 10, |b| b.control(true)), ErrorCode::InvalidRecord),
        (
            "transactional, without an id",
            batch_of(1, 10, |b| b.producer(5, 0, 0).transactional(true)),
            ErrorCode::TransactionalIdAuthorizationFailed,
        ),
    ];
    for (name, records, expected) in cases {
        let answer = produce(&mut client, "t", 0, records);
        assert_eq!(ErrorCode::from_code(answer.error_code), expected, "{name}: {:?}", answer.error_message);
        assert_eq!(answer.base_offset, if expected == ErrorCode::None { 0 } else { -1 }, "{name}");
    }
    assert_eq!(produce(&mut client, "t", 9, batch(1, 1)).error_code, ErrorCode::UnknownTopicOrPartition.code());
    assert_eq!(produce(&mut client, "u", 0, batch(1, 1)).error_code, ErrorCode::UnknownTopicOrPartition.code());
    let mut acks = request("t", 0, batch(1, 1).freeze());
    acks.acks = 2;
    let response: ProduceResponse = client.ask(&acks, 12);
    assert_eq!(response.responses[0].partition_responses[0].error_code, ErrorCode::InvalidRequiredAcks.code());
}

#[test]
fn a_transactional_batch_without_an_id_refuses_the_request() {
    let broker = TestBroker::start();
    broker.create_topic("t", 2);
    let mut client = broker.connect();
    let mut both = request("t", 0, batch(1, 10).freeze());
    let transactional = batch_of(1, 10, |b| b.producer(5, 0, 0).transactional(true)).freeze();
    both.topic_data[0]
        .partition_data
        .push(PartitionProduceData { index: 1, records: Some(Records::Bytes(transactional)) });
    let response: ProduceResponse = client.ask(&both, 12);
    let answers = response.responses[0].partition_responses.iter();
    let refused = ErrorCode::TransactionalIdAuthorizationFailed.code();
    assert_eq!(answers.map(|p| (p.index, p.error_code)).collect::<Vec<_>>(), [(0, refused), (1, refused)]);
    assert_eq!(produce(&mut client, "t", 0, batch(1, 10)).base_offset, 0, "nothing of it was appended");
}

#[test]
fn records_are_deleted_unless_the_topic_is_only_compacted() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let cases = [
        ("delete", ErrorCode::None),
        ("compact,delete", ErrorCode::None),
        ("", ErrorCode::None),
        ("compact", ErrorCode::PolicyViolation),
    ];
    for (n, (policy, expected)) in cases.into_iter().enumerate() {
        let topic = format!("t{n}");
        broker.create_topic_with(&topic, 1, &[("cleanup.policy", policy)]);
        assert_eq!(produce(&mut client, &topic, 0, batch(3, 10)).error_code, 0);
        let partitions = vec![DeleteRecordsPartition { partition_index: 0, offset: 2 }];
        let topics = vec![DeleteRecordsTopic { name: topic, partitions }];
        let request = DeleteRecordsRequest { topics, timeout_ms: 10_000 };
        let response: DeleteRecordsResponse = client.ask(&request, 2);
        let answer = &response.topics[0].partitions[0];
        let low_watermark = if expected == ErrorCode::None { 2 } else { -1 };
        assert_eq!((answer.error_code, answer.low_watermark), (expected.code(), low_watermark), "{policy:?}");
    }
}

#[test]
fn records_at_fault_are_named() {
    let broker = TestBroker::start();
    broker.create_topic_with("times", 1, &[("message.timestamp.after.max.ms", "1000")]);
    broker.create_topic_with("keys", 1, &[("cleanup.policy", "compact")]);
    let mut client = broker.connect();
    let now_ms = caudal_broker::clock::wall_ms();
    let mut builder = BatchBuilder::new(Codec::None);
    for n in 0..300 {
        builder.append(if n > 1 { now_ms + 100_000 } else { now_ms }, None, Some(b"v"), &[]);
    }
    let records = builder.build().unwrap();
    for (topic, code, first) in [("times", ErrorCode::InvalidTimestamp, 2), ("keys", ErrorCode::InvalidRecord, 0)] {
        let answer = produce(&mut client, topic, 0, records.clone());
        assert_eq!(ErrorCode::from_code(answer.error_code), code, "{:?}", answer.error_message);
        let named: Vec<i32> = answer.record_errors.iter().map(|record| record.batch_index).collect();
        assert_eq!(named, (first..first + 100).collect::<Vec<_>>(), "the first hundred are enough");
    }
}

#[test]
fn idempotent_producers_are_held_to_their_sequence() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let first = batch_of(3, 10, |b| b.producer(9, 0, 0));
    assert_eq!(produce(&mut client, "t", 0, first.clone()).base_offset, 0);
    assert_eq!(produce(&mut client, "t", 0, batch_of(1, 10, |b| b.producer(9, 0, 3))).base_offset, 3);
    let again = produce(&mut client, "t", 0, first);
    assert_eq!((again.error_code, again.base_offset), (0, 0), "a retry is answered with its first offset");
    let gap = produce(&mut client, "t", 0, batch_of(1, 10, |b| b.producer(9, 0, 7)));
    assert_eq!(gap.error_code, ErrorCode::OutOfOrderSequenceNumber.code());
}

#[test]
fn acks_0_is_not_answered_and_an_error_closes_the_connection() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let mut fire = request("t", 0, batch(2, 10).freeze());
    fire.acks = 0;
    client.send(&fire, 12);
    let versions = ApiVersionsRequest { client_software_name: "raw".into(), client_software_version: "1".into() };
    let response: ApiVersionsResponse = client.ask(&versions, 3);
    assert_eq!(response.error_code, 0);
    assert_eq!(produce(&mut client, "t", 0, batch(1, 1)).base_offset, 2);
    fire.topic_data[0].name = "missing".into();
    client.send(&fire, 12);
    assert!(client.receive_frame().is_none());
}

/// Batches that are decompressed (for their keys) are appended elsewhere than on the connection's thread, and in order all the
/// same.
#[test]
fn batches_sent_ahead_to_a_compacted_topic_keep_their_order() {
    let broker = TestBroker::start();
    broker.create_topic_with("t", 1, &[("cleanup.policy", "compact")]);
    let mut client = broker.connect();
    let compressed = |sequence: i32| {
        let mut builder = BatchBuilder::new(if sequence % 3 == 0 { Codec::None } else { Codec::Zstd });
        builder = builder.producer(7, 0, sequence);
        builder.append(caudal_broker::clock::wall_ms(), Some(b"key"), Some(&[b'v'; 5000]), &[]);
        builder.build().unwrap().freeze()
    };
    for sequence in 0..200 {
        client.send(&request("t", 0, compressed(sequence)), 12);
    }
    for sequence in 0..200 {
        let (id, response): (i32, ProduceResponse) = client.receive(12);
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((id, partition.error_code, partition.base_offset), (sequence, 0, i64::from(sequence)));
    }
}
