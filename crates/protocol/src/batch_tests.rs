use super::*;
use proptest::prelude::*;

type OwnedRecord = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..max)
}

fn records() -> impl Strategy<Value = Vec<OwnedRecord>> {
    let header = (bytes(6), proptest::option::of(bytes(10)));
    let record = (
        -1i64..2_000_000_000_000,
        proptest::option::of(bytes(20)),
        proptest::option::of(bytes(300)),
        proptest::collection::vec(header, 0..4),
    );
    proptest::collection::vec(record, 1..30)
}

fn codec() -> impl Strategy<Value = Codec> {
    proptest::sample::select(Codec::ALL.to_vec())
}

fn build(codec: Codec, records: &[OwnedRecord]) -> BytesMut {
    let mut builder = BatchBuilder::new(codec).base_offset(100).producer(7, 1, 5);
    for (timestamp, key, value, headers) in records {
        let headers: Vec<(&[u8], Option<&[u8]>)> = headers.iter().map(|(k, v)| (&k[..], v.as_deref())).collect();
        let expected = builder.size_with(*timestamp, key.as_deref(), value.as_deref(), &headers);
        builder.append(*timestamp, key.as_deref(), value.as_deref(), &headers);
        assert_eq!(builder.uncompressed_size_bytes(), expected);
    }
    builder.build().unwrap()
}

proptest! {
    #[test]
    fn a_built_batch_is_valid_and_gives_back_its_records(codec in codec(), records in records()) {
        let built = build(codec, &records).freeze();
        let header = validate(&built).unwrap();
        prop_assert_eq!(header.codec(), Some(codec));
        prop_assert_eq!(header.size_bytes(), built.len());
        prop_assert_eq!(header.max_timestamp_ms, records.iter().map(|r| r.0).max().unwrap());
        let batch = Batch::parse(&built).unwrap();
        let read = batch.records(1 << 20).unwrap().to_records().unwrap();
        prop_assert_eq!(read.len(), records.len());
        for (index, (got, (timestamp, key, value, headers))) in read.iter().zip(&records).enumerate() {
            prop_assert_eq!(got.offset, 100 + index as i64);
            prop_assert_eq!(got.timestamp_ms, *timestamp);
            prop_assert_eq!(got.key.as_deref(), key.as_deref());
            prop_assert_eq!(got.value.as_deref(), value.as_deref());
            let got: Vec<_> = got.headers.iter().map(|h| (h.key.to_vec(), h.value.as_ref().map(|v| v.to_vec()))).collect();
            prop_assert_eq!(&got, headers);
        }
    }

    #[test]
    fn a_flipped_bit_under_the_crc_is_noticed(codec in codec(), records in records(), at: usize, bit in 0u8..8) {
        let mut built = build(codec, &records);
        let at = ATTRIBUTES_AT + at % (built.len() - ATTRIBUTES_AT);
        built[at] ^= 1 << bit;
        let noticed = matches!(validate(&built), Err(BatchError::BadCrc { .. }));
        prop_assert!(noticed);
    }

    #[test]
    fn mutated_batches_never_panic(
        codec in codec(), records in records(), mutations in proptest::collection::vec(any::<(usize, u8)>(), 1..6), cut: usize,
    ) {
        let mut built = build(codec, &records);
        for (at, byte) in mutations {
            let at = at % built.len();
            built[at] = byte;
        }
        built.truncate(built.len() - cut % 20);
        let _ = validate(&built);
        for batch in Batches::new(built.freeze()).flatten() {
            if let Ok(records) = batch.records(1 << 20) {
                let _ = records.to_records();
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(data in bytes(200)) {
        let _ = validate(&data);
        for batch in Batches::new(data.into()).flatten() {
            let _ = batch.records(1 << 16).map(|records| records.to_records());
        }
    }

    #[test]
    fn stamping_keeps_a_batch_valid(codec in codec(), records in records(), offset in 0i64..i64::MAX / 2, epoch in 0i32.., now in 0i64..) {
        let mut built = build(codec, &records);
        stamp_offset(&mut built, offset, epoch);
        let header = validate(&built).unwrap();
        prop_assert_eq!((header.base_offset, header.partition_leader_epoch), (offset, epoch));
        stamp_log_append_time_parts(&mut built, &[], now);
        let header = validate(&built).unwrap();
        prop_assert_eq!((header.timestamp_type(), header.max_timestamp_ms), (TimestampType::LogAppendTime, now));
        let read = Batch::parse(&built.freeze()).unwrap().records(1 << 20).unwrap().to_records().unwrap();
        prop_assert!(read.iter().all(|record| record.timestamp_ms == now));
    }
}

#[test]
fn several_batches_and_a_cut_one_are_iterated_over() {
    let one = build(Codec::None, &[(1, None, Some(b"v".to_vec()), vec![])]);
    let mut all = one.clone();
    all.extend_from_slice(&one);
    all.extend_from_slice(&one[..30]);
    let mut batches = Batches::new(all.freeze());
    assert_eq!(batches.by_ref().filter(Result::is_ok).count(), 2);
    assert_eq!(batches.remaining().len(), 30);
}

#[test]
fn what_the_header_claims_wrongly_is_refused() {
    let reseal = |mut batch: BytesMut, at: usize, value: &[u8]| {
        put(&mut batch, at, value);
        let crc = compute_crc(&batch);
        put(&mut batch, CRC_AT, &crc.to_be_bytes());
        validate(&batch)
    };
    let one = || build(Codec::None, &[(1, None, Some(b"v".to_vec()), vec![])]);
    assert!(matches!(reseal(one(), ATTRIBUTES_AT, &5i16.to_be_bytes()), Err(BatchError::UnknownCodec { id: 5, .. })));
    assert!(matches!(reseal(one(), 57, &2i32.to_be_bytes()), Err(BatchError::BadCount { .. })));
    assert!(matches!(reseal(one(), 57, &(-1i32).to_be_bytes()), Err(BatchError::BadCount { .. })));
    assert!(matches!(reseal(one(), 16, &[1]), Err(BatchError::BadMagic { magic: 1, .. })));
    assert!(matches!(reseal(one(), 53, &(-1i32).to_be_bytes()), Err(BatchError::Invalid { .. })));
    assert!(matches!(reseal(one(), 35, &(-2i64).to_be_bytes()), Err(BatchError::Invalid { .. })));
    let mut short = one();
    put(&mut short, 8, &10i32.to_be_bytes());
    assert!(matches!(validate(&short), Err(BatchError::BadLength { batch_length: 10, .. })));
    put(&mut short, 8, &i32::MAX.to_be_bytes());
    assert!(matches!(validate(&short), Err(BatchError::Truncated { .. })));
}

#[test]
fn sequences_wrap_after_the_largest_integer() {
    let mut header = BatchHeader::parse(&build(Codec::None, &[(1, None, None, vec![])])).unwrap();
    header.base_sequence = i32::MAX;
    header.last_offset_delta = 1;
    assert_eq!(header.last_sequence(), 0);
}
