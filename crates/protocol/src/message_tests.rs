//! Every generated message, in every version.

use bytes::Bytes;
use proptest::prelude::*;

use crate::generated::for_each_message;
use crate::messages::metadata_response::{MetadataResponsePartition, MetadataResponseTopic};
use crate::messages::{MetadataResponse, ProduceRequest};
use crate::wire::{DecodeError, EncodeError, Message, Reader, Writer};

fn defaults_round_trip<M: Message + PartialEq + std::fmt::Debug>() {
    for version in M::MIN_VERSION..=M::MAX_VERSION {
        let message = M::default();
        match message.to_bytes(version) {
            // A field whose default is null, in a version that does not know null.
            Err(EncodeError::Null { .. }) => continue,
            Err(other) => panic!("{} {version}: {other}", M::NAME),
            Ok(bytes) => {
                let mut r = Reader::new(bytes.clone());
                let back = M::decode(&mut r, version).unwrap_or_else(|e| panic!("{} {version}: {e}", M::NAME));
                assert_eq!(r.remaining(), 0, "{} {version}", M::NAME);
                assert_eq!(back.to_bytes(version).unwrap(), bytes, "{} {version}", M::NAME);
            }
        }
    }
    assert!(M::decode(&mut Reader::new(Bytes::new()), M::MAX_VERSION + 1).is_err());
}

#[test]
fn defaults_round_trip_in_every_version() {
    for_each_message!(defaults_round_trip);
}

#[test]
fn bytes_are_kafkas() {
    // MetadataResponse version 13 as Apache Kafka 4.3.1's own serializer writes it.
    let topic = MetadataResponseTopic {
        name: Some("t".into()),
        partitions: vec![MetadataResponsePartition { leader_id: 1, replica_nodes: vec![1], ..Default::default() }],
        ..Default::default()
    };
    let message =
        MetadataResponse { topics: vec![topic], controller_id: 1, cluster_id: Some("c".into()), ..Default::default() };
    let expected = concat!(
        "00000000",
        "01",
        "0263",
        "00000001",
        "02",
        "0000",
        "0274",
        "00000000000000000000000000000000",
        "00",
        "02",
        "0000",
        "00000000",
        "00000001",
        "ffffffff",
        "0200000001",
        "01",
        "01",
        "00",
        "80000000",
        "00",
        "0000",
        "00"
    );
    let hex: String = message.to_bytes(13).unwrap().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, expected);
}

#[test]
fn counts_beyond_the_frame_are_refused() {
    // acks and timeout, then an array that claims two billion topics.
    let mut w = Writer::new();
    w.null_string(false);
    w.i16(-1);
    w.i32(1000);
    w.i32(i32::MAX);
    let frame = w.finish().into_bytes().unwrap();
    let error = ProduceRequest::decode(&mut Reader::new(frame), 3).unwrap_err();
    assert!(matches!(error, DecodeError::Length { .. }), "{error}");
}

#[test]
fn strings_are_as_long_as_in_kafka_at_most() {
    for flexible in [false, true] {
        let mut w = Writer::new();
        w.string(flexible, &"x".repeat(32_767)).unwrap();
        let mut r = Reader::new(w.finish().into_bytes().unwrap());
        assert_eq!(r.string(flexible).unwrap().len(), 32_767);
        let error = Writer::new().string(flexible, &"x".repeat(32_768)).unwrap_err();
        assert_eq!(error, EncodeError::StringTooLong(32_768));
    }
    let mut w = Writer::new();
    w.uvarint(32_769);
    w.raw(&Bytes::from(vec![b'x'; 32_768]));
    let error = Reader::new(w.finish().into_bytes().unwrap()).string(true).unwrap_err();
    assert_eq!(error, DecodeError::StringTooLong(32_768));
}

#[test]
fn frames_cannot_multiply_in_memory() {
    // Ten million empty strings of one byte each would take 240 MB; the budget stops at 32 times the frame.
    let mut w = Writer::new();
    w.uvarint(10_000_001);
    let mut frame = bytes::BytesMut::from(&w.finish().into_bytes().unwrap()[..]);
    frame.resize(frame.len() + 10_000_000, 1);
    let mut r = Reader::new(frame.freeze());
    let strings = r.array(true, |r| r.array(true, |r| r.string(true)));
    assert!(strings.is_ok(), "one level of arrays stays within the budget");
    let mut w = Writer::new();
    w.uvarint(1_000_001);
    let mut frame = bytes::BytesMut::from(&w.finish().into_bytes().unwrap()[..]);
    frame.resize(frame.len() + 1_000_000, 1);
    let wide = Reader::new(frame.freeze()).array(true, |r| r.string(true).map(|_| [0u8; 4096]));
    assert!(matches!(wide, Err(DecodeError::Budget { .. })));
}

fn survives<M: Message>(bytes: &Bytes) {
    for version in M::MIN_VERSION..=M::MAX_VERSION {
        let _ = M::decode(&mut Reader::new(bytes.clone()), version);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        INPUT.set(bytes);
        for_each_message!(survives_input);
    }

    #[test]
    fn varints_round_trip(value in any::<u32>()) {
        let mut w = Writer::new();
        w.uvarint(value);
        prop_assert_eq!(Reader::new(w.finish().into_bytes().unwrap()).uvarint(), Ok(value));
    }
}

thread_local! {
    static INPUT: std::cell::RefCell<Bytes> = const { std::cell::RefCell::new(Bytes::new()) };
}

fn survives_input<M: Message>() {
    let bytes = INPUT.with_borrow(Bytes::clone);
    survives::<M>(&bytes);
}
