//! What becomes of compressed batches: checked as uncompressed ones are, stored with the codec that the topic wants.

use std::sync::Arc;

use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{Batch, BatchBuilder, Batches, HEADER_LEN};
use caudal_protocol::compression::{self, Codec};
use caudal_storage::{AppendCost, AppendError, AppendInfo, AppendOrigin, Log, LogConfig};
use proptest::prelude::*;

use crate::support::*;

const NAMES: [(&str, Codec); 5] = [
    ("uncompressed", Codec::None),
    ("gzip", Codec::Gzip),
    ("snappy", Codec::Snappy),
    ("lz4", Codec::Lz4),
    ("zstd", Codec::Zstd),
];

fn config(settings: &[(&str, &str)]) -> LogConfig {
    let mut config = LogConfig::default();
    settings.iter().for_each(|(name, value)| assert!(config.set(name, value).unwrap()));
    config
}

fn batch_with(codec: Codec, values: &[Vec<u8>]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec).producer(9, 1, 0).transactional(false);
    for (n, value) in (0..).zip(values) {
        builder.append(BASE_TIME_MS + n, Some(b"key"), Some(value), &[(b"h", Some(b"1")), (b"h", None)]);
    }
    builder.build().unwrap().to_vec()
}

fn texts() -> Vec<Vec<u8>> {
    (0..200).map(|n| format!("the value of record {n}, {}", n * n).into_bytes()).collect()
}

fn stored(log: &Log) -> Vec<Batch> {
    let slice = log.read(log.log_start_offset(), 64 << 20, i64::MAX, true).unwrap();
    Batches::new(slice.to_bytes().unwrap()).map(Result::unwrap).collect()
}

/// Writes a batch around a records section of the caller.
fn forged(codec: Codec, count: i32, section: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    (0..count).for_each(|n| builder.append(BASE_TIME_MS + i64::from(n), Some(b"key"), Some(b"a value"), &[]));
    let plain = Batch::parse(&builder.build().unwrap().freeze()).unwrap();
    caudal_protocol::batch::recompress(&plain.header, section, codec, None).unwrap()
}

#[test]
fn batches_are_stored_with_the_codec_of_the_topic() {
    for (name, target) in NAMES {
        for source in Codec::ALL {
            let dir = tempfile::tempdir().unwrap();
            let (logs, _) = open(dir.path());
            let log = create(&logs, config(&[("compression.type", name)]));
            let sent = batch_with(source, &texts());
            let folds = source != Codec::None || target != Codec::None;
            match log.append_cost(&sent, 0, AppendOrigin::Client) {
                AppendCost::Unfolds { bytes } => assert!(folds && (5_000..150_000).contains(&bytes), "{bytes}"),
                cost => assert!(!folds && cost == AppendCost::Syncs),
            }
            let info = log.append(&sent, 0, AppendOrigin::Client).unwrap();
            assert_eq!((info.base_offset, info.last_offset, info.duplicate), (0, 199, false));
            assert!(log.append(&sent, 0, AppendOrigin::Client).unwrap().duplicate);
            // What coordinators write stays as it is.
            log.append(&batch(0, 1), 0, AppendOrigin::Coordinator).unwrap();
            let batches = stored(&log);
            assert_eq!(batches[0].header.codec(), Some(target), "{source} to {name}");
            assert_eq!(batches[1].header.codec(), Some(Codec::None));
            let expected = Batch::parse(&sent.clone().into()).unwrap();
            let same = |batch: &Batch| batch.records(1 << 20).unwrap().to_records().unwrap();
            assert_eq!(same(&batches[0]), same(&expected));
            assert_eq!(batches[0].header.max_timestamp_ms, expected.header.max_timestamp_ms);
            assert_eq!((batches[0].header.producer_id, batches[0].header.base_sequence), (9, 0));
            if source == target {
                assert_eq!(batches[0].bytes[17..], sent[17..], "it is stored as it came");
            }
            logs.close(-1).unwrap();
            drop((log, logs));
            let (logs, report) = open(dir.path());
            assert_eq!(report.bytes_cut(), 0);
            assert_eq!(logs.log(&tp()).unwrap().log_end_offset(), 201);
        }
    }
}

#[test]
fn levels_of_topics_are_heard() {
    let values: Vec<Vec<u8>> = (0..400_u32).map(|n| format!("{}", n * n * n % 7919).repeat(20).into_bytes()).collect();
    for (name, low, high) in [("gzip", "1", "9"), ("lz4", "9", "17"), ("zstd", "-1000", "19")] {
        let size = |level: &str| {
            let dir = tempfile::tempdir().unwrap();
            let (logs, _) = open(dir.path());
            let level_name = format!("compression.{name}.level");
            let log = create(&logs, config(&[("compression.type", name), (&level_name, level)]));
            log.append(&batch_with(Codec::Snappy, &values), 0, AppendOrigin::Client).unwrap();
            assert_eq!(stored(&log)[0].records(1 << 20).unwrap().to_records().unwrap().len(), 400);
            log.size_bytes()
        };
        assert!(size(high) < size(low), "{name}");
    }
}

#[test]
fn sizes_are_those_of_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, _) = open(dir.path());
    let log = create(&logs, config(&[("compression.type", "uncompressed"), ("max.message.bytes", "20000")]));
    let append = |value: usize| -> Result<AppendInfo, AppendError> {
        log.append(&batch_with(Codec::Gzip, &[vec![b'a'; value]]), 0, AppendOrigin::Client)
    };
    for too_large in [19_950, 1 << 20, 300 << 20] {
        let error = append(too_large).unwrap_err();
        assert_eq!(error.error_code(), ErrorCode::MessageTooLarge, "{error}");
    }
    append(19_900).unwrap();
    log.set_config(config(&[("segment.bytes", "1048576")]));
    let bomb = batch_with(Codec::Zstd, &[vec![0; 260 << 20]]);
    assert!(bomb.len() < 100_000);
    let error = log.append(&bomb, 0, AppendOrigin::Client).unwrap_err();
    assert!(error.to_string().contains("268435456"), "{error}");
    log.append(&batch_with(Codec::Zstd, &[vec![0; 30 << 20]]), 0, AppendOrigin::Client).unwrap();
}

#[test]
fn compressed_batches_that_cannot_be_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, _) = open(dir.path());
    let log = create(&logs, LogConfig::default());
    let whole = batch_with(Codec::None, &texts());
    let section = &whole[HEADER_LEN..];
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let refused = |batch: &[u8], what: &str| {
            let error = log.append(batch, 0, AppendOrigin::Client).unwrap_err();
            assert_eq!(error.error_code(), ErrorCode::InvalidRecord, "{codec} {what}: {error}");
        };
        refused(&forged(codec, 199, section), "a record more");
        refused(&forged(codec, 201, section), "a record less");
        refused(&forged(codec, 200, &section[..section.len() - 1]), "cut off");
        refused(&forged(codec, 200, b"no records"), "other bytes");
        // The beginning is the codec's, what follows is not.
        let mut out = Vec::new();
        compression::compress(codec, section, &mut out).unwrap();
        let empty_block = [&out[..out.len() - 4], &[0, 0, 0, 0x80], &out[out.len() - 4..]].concat();
        let half = out.len() / 2;
        out[half..].fill(0x55);
        let around = |compressed: &[u8]| {
            let mut batch = forged(codec, 200, section);
            batch.truncate(HEADER_LEN);
            batch.extend_from_slice(compressed);
            let len = (batch.len() - 12) as u32;
            batch[8..12].copy_from_slice(&len.to_be_bytes());
            let crc = crc32c::crc32c(&batch[21..]);
            batch[17..21].copy_from_slice(&crc.to_be_bytes());
            batch
        };
        if codec == Codec::Lz4 {
            refused(&around(&empty_block), "good for liblz4, and the end for Kafka's consumers");
        }
        refused(&around(&out), "damaged");
    }
    assert_eq!(log.log_end_offset(), 0);
}

/// As Kafka does for clients that count wrong.
#[test]
fn compressed_records_are_numbered_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, _) = open(dir.path());
    for (name, source, target) in [("producer", Codec::Lz4, Codec::Lz4), ("gzip", Codec::Lz4, Codec::Gzip)] {
        let log = create(&logs, config(&[("compression.type", name)]));
        let mut section = batch(0, 3)[HEADER_LEN..].to_vec();
        let record_len = section.len() / 3;
        for record in section.chunks_mut(record_len).skip(1) {
            record[3] = 0; // the offset delta, behind length, attributes and a small time
        }
        let base = log.log_end_offset();
        log.append(&forged(source, 3, &section), 0, AppendOrigin::Client).unwrap();
        let batches = stored(&log);
        let last = batches.last().unwrap();
        assert_eq!(last.header.codec(), Some(target));
        let offsets: Vec<i64> = last.records(1000).unwrap().iter().map(|record| record.unwrap().offset).collect();
        assert_eq!(offsets, [base, base + 1, base + 2]);
        let error = log.append(&forged(Codec::None, 3, &section), 0, AppendOrigin::Client).unwrap_err();
        assert_eq!(error.error_code(), ErrorCode::InvalidRecord, "{error}");
    }
}

#[test]
fn times_of_compressed_records_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, _) = open(dir.path());
    let log: Arc<Log> = create(&logs, config(&[("message.timestamp.before.max.ms", "1000")]));
    let error = log.append(&batch_with(Codec::Zstd, &texts()), 0, AppendOrigin::Client).unwrap_err();
    assert!(matches!(&error, AppendError::InvalidTimestamp { records, .. } if records.len() == 100), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_records_survive_any_conversion(
        values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..50),
        source in 0usize..5, target in 0usize..5, level in 1i32..=9,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (logs, _) = open(dir.path());
        let (name, codec) = NAMES[target];
        let level = level.to_string();
        let levels = [("compression.gzip.level", level.as_str()), ("compression.lz4.level", &level)];
        let log = create(&logs, config(&[("compression.type", name), levels[0], levels[1]]));
        let sent = batch_with(Codec::ALL[source], &values);
        log.append(&sent, 0, AppendOrigin::Client).unwrap();
        let batches = stored(&log);
        prop_assert_eq!(batches[0].header.codec(), Some(codec));
        caudal_protocol::batch::check_crc(&batches[0].bytes).unwrap();
        let read = batches[0].records(1 << 20).unwrap().to_records().unwrap();
        let read: Vec<Vec<u8>> = read.into_iter().map(|record| record.value.unwrap().to_vec()).collect();
        prop_assert_eq!(read, values);
    }
}
