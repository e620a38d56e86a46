//! Appending and reading back, also after restarts.

use std::path::Path;
use std::sync::Arc;

use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{BatchBuilder, BatchHeader, TimestampType, check_crc};
use caudal_protocol::compression::Codec;
use caudal_storage::{
    AppendCost, AppendError, AppendOrigin, LogConfig, LogDir, LogDirConfig, OpenError, ReadError, RealDisk,
};

use crate::support::*;

fn expected(from: i64, to: i64) -> Vec<(i64, String)> {
    (from..to).map(|n| (n, format!("value {n}"))).collect()
}

#[test]
fn records_come_back_over_many_segments_and_a_clean_restart() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, small_segments());
    append_records(&log, 300);
    wait_durable(&dir, &log, 300);
    assert_eq!((log.durable_end_offset(), log.log_end_offset()), (300, 300));
    assert!(log.segment_count() > 5);
    for from in [0, 1, 57, 299] {
        assert_eq!(read_all(&log, from), expected(from, 300));
    }
    dir.close(-1).unwrap();
    drop((dir, log));
    let (dir, report) = open(temp.path());
    assert!(report.clean_shutdown && report.logs.is_empty(), "{report:?}");
    let log = dir.log(&tp()).unwrap();
    log.set_config(small_segments());
    assert_eq!(read_all(&log, 0), expected(0, 300));
    append_records(&log, 10);
    assert_eq!(read_all(&log, 295), expected(295, 310));
}

#[test]
fn after_a_crash_only_what_lies_behind_the_checkpoint_is_scanned() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, small_segments());
    append_records(&log, 200);
    dir.checkpoint().unwrap();
    append_records(&log, 5);
    drop((dir, log));
    let (dir, report) = open(temp.path());
    let log = dir.log(&tp()).unwrap();
    assert!(!report.clean_shutdown);
    assert_eq!(report.logs.len(), 1);
    assert!(report.logs[0].1.bytes_scanned < 2000, "{report:?}");
    assert_eq!(read_all(&log, 0), expected(0, 205));
}

#[test]
fn a_log_that_grows_fast_is_checkpointed_on_the_way() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig { max_message_bytes: 16 << 20, ..LogConfig::default() });
    let mut builder = BatchBuilder::new(Codec::None);
    builder.append(BASE_TIME_MS, None, Some(&vec![b'x'; 15 << 20]), &[]);
    let large = builder.build().unwrap();
    for _ in 0..8 {
        log.append(&large, 0, AppendOrigin::Client).unwrap();
        dir.checkpoint_grown().unwrap();
    }
    assert_eq!(checkpointed(temp.path()), None, "120 MiB are not much");
    log.append(&large, 0, AppendOrigin::Client).unwrap();
    dir.checkpoint_grown().unwrap();
    assert_eq!(checkpointed(temp.path()), Some(9));
    log.append(&large, 0, AppendOrigin::Client).unwrap();
    dir.checkpoint_grown().unwrap();
    assert_eq!(checkpointed(temp.path()), Some(9), "it grows anew");
    drop((dir, log));
    let (_dir, report) = open(temp.path());
    assert!(report.logs[0].1.bytes_scanned < 40 << 20, "{report:?}");
}

/// The log's recovery point as the next start reads it.
fn checkpointed(dir: &Path) -> Option<i64> {
    let text = std::fs::read_to_string(dir.join("recovery-point-offset-checkpoint")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("games 0 "))?.parse().ok()
}

#[test]
fn reads_obey_their_limits() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    let one = log.append(&batch(0, 10), 0, AppendOrigin::Client).unwrap();
    assert_eq!((one.base_offset, one.last_offset, one.duplicate), (0, 9, false));
    log.append(&batch(10, 10), 0, AppendOrigin::Client).unwrap();
    let size = batch(0, 10).len();
    let len = |offset, max, bound, min_one| log.read(offset, max, bound, min_one).unwrap().len;
    assert_eq!(len(0, usize::MAX, i64::MAX, true), log.size_bytes() as usize);
    assert_eq!(len(5, size, i64::MAX, false), size, "from the batch that holds the offset");
    assert_eq!(len(5, 1, i64::MAX, true), size);
    assert_eq!(len(5, 1, i64::MAX, false), 0);
    assert_eq!(len(0, usize::MAX, 10, true), size, "the bound is exclusive");
    assert_eq!(len(10, usize::MAX, 10, true), 0);
    assert_eq!(len(20, usize::MAX, i64::MAX, true), 0, "at the end");
    for offset in [-1, 21] {
        assert!(matches!(log.read(offset, 1, i64::MAX, true), Err(ReadError::OffsetOutOfRange { end: 20, .. })));
    }
}

#[test]
fn batches_are_stamped() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    append_records(&log, 3);
    log.append(&batch(3, 2), 7, AppendOrigin::Client).unwrap();
    let bytes = log.read(3, 1 << 20, i64::MAX, true).unwrap().to_bytes().unwrap();
    let header = check_crc(&bytes).unwrap();
    assert_eq!((header.base_offset, header.partition_leader_epoch), (3, 7));
    assert_eq!(
        (log.latest_epoch(), log.end_offset_for_epoch(0), log.end_offset_for_epoch(7)),
        (Some(7), (0, 3), (7, 5))
    );
    log.set_config(LogConfig { timestamp_type: TimestampType::LogAppendTime, ..LogConfig::default() });
    let info = log.append(&batch(5, 1), 7, AppendOrigin::Client).unwrap();
    let bytes = log.read(5, 1 << 20, i64::MAX, true).unwrap().to_bytes().unwrap();
    let header = check_crc(&bytes).unwrap();
    assert_eq!(
        (header.timestamp_type(), header.max_timestamp_ms),
        (TimestampType::LogAppendTime, info.log_append_time_ms)
    );
    let several = [batch(6, 2), batch(8, 3)].concat();
    let info = log.append(&several, 7, AppendOrigin::Coordinator).unwrap();
    assert_eq!((info.base_offset, info.last_offset), (6, 10));
}

#[test]
fn bad_batches_are_refused_and_leave_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig { max_message_bytes: 500, cleanup_compact: true, ..LogConfig::default() });
    let code = |bytes: &[u8]| log.append(bytes, 0, AppendOrigin::Client).unwrap_err().error_code();
    let mut flipped = batch(0, 1);
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(code(&flipped), ErrorCode::CorruptMessage);
    assert_eq!(code(&[]), ErrorCode::CorruptMessage);
    assert_eq!(code(&batch(0, 1)[..70]), ErrorCode::CorruptMessage);
    assert_eq!(code(&[batch(0, 1), vec![0; 10]].concat()), ErrorCode::CorruptMessage);
    assert_eq!(code(&batch(0, 100)), ErrorCode::MessageTooLarge);
    let build = |builder: BatchBuilder, timestamp, key: Option<&[u8]>| {
        let mut builder = builder;
        builder.append(timestamp, key, Some(b"v"), &[]);
        builder.build().unwrap()
    };
    assert_eq!(code(&build(BatchBuilder::new(Codec::None).control(true), 1, Some(b"k"))), ErrorCode::InvalidRecord);
    assert_eq!(
        code(&build(BatchBuilder::new(Codec::None).log_append_time(), 1, Some(b"k"))),
        ErrorCode::InvalidTimestamp
    );
    let future = i64::MAX / 2;
    assert_eq!(code(&build(BatchBuilder::new(Codec::None), future, Some(b"k"))), ErrorCode::InvalidTimestamp);
    for codec in Codec::ALL {
        assert_eq!(code(&build(BatchBuilder::new(codec), 1, None)), ErrorCode::InvalidRecord, "no key, {codec}");
        log.append(&build(BatchBuilder::new(codec), 1, Some(b"k")), 0, AppendOrigin::Client).unwrap();
    }
    let mut mixed = BatchBuilder::new(Codec::None);
    for key in [Some(&b"k"[..]), None, Some(b"k"), None] {
        mixed.append(1, key, Some(b"v"), &[]);
    }
    let refused = log.append(&mixed.build().unwrap(), 0, AppendOrigin::Client).unwrap_err();
    assert!(matches!(&refused, AppendError::KeyMissing { records, .. } if records == &[1, 3]), "{refused}");
    assert_eq!(log.log_end_offset(), Codec::ALL.len() as i64);
    assert_eq!(
        BatchHeader::parse(&log.read(4, 1000, i64::MAX, true).unwrap().to_bytes().unwrap()).unwrap().base_offset,
        4
    );
}

#[test]
fn retries_get_their_old_offsets_also_after_a_restart() {
    for clean in [true, false] {
        let temp = tempfile::tempdir().unwrap();
        let (dir, _) = open(temp.path());
        let log = create(&dir, LogConfig::default());
        for n in 0..6 {
            log.append(&idempotent(9, 0, n * 2, 2), 0, AppendOrigin::Client).unwrap();
        }
        let retry = |log: &Arc<caudal_storage::Log>| {
            let info = log.append(&idempotent(9, 0, 10, 2), 0, AppendOrigin::Client).unwrap();
            assert_eq!((info.base_offset, info.last_offset, info.duplicate), (10, 11, true));
            let gap = log.append(&idempotent(9, 0, 14, 2), 0, AppendOrigin::Client).unwrap_err();
            assert_eq!(gap.error_code(), ErrorCode::OutOfOrderSequenceNumber);
        };
        retry(&log);
        if clean {
            dir.close(-1).unwrap();
        }
        drop((dir, log));
        let (dir, _) = open(temp.path());
        let log = dir.log(&tp()).unwrap();
        retry(&log);
        log.append(&idempotent(9, 1, 0, 2), 0, AppendOrigin::Client).unwrap();
        let old = log.append(&idempotent(9, 0, 12, 2), 0, AppendOrigin::Client).unwrap_err();
        assert_eq!(old.error_code(), ErrorCode::InvalidProducerEpoch);
        assert_eq!(log.log_end_offset(), 14);
    }
}

#[test]
fn a_directory_has_one_owner() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let second = LogDir::open(temp.path(), LogDirConfig::default(), Arc::new(RealDisk));
    assert!(matches!(second, Err(OpenError::Locked { .. })), "{second:?}");
    drop(dir);
    open(temp.path());
}

#[test]
fn what_an_append_would_block_for_is_told_beforehand() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, small_segments());
    let cost = |records: &[u8], epoch: i32| log.append_cost(records, epoch, AppendOrigin::Client);
    assert_eq!(cost(&batch(0, 1), 0), AppendCost::Syncs, "the first of its epoch");
    append_records(&log, 1);
    let mut rolled = 0;
    for n in 1..200 {
        let records = batch(n, 1);
        let (told, before) = (cost(&records, 0), log.segment_count());
        log.append(&records, 0, AppendOrigin::Client).unwrap();
        assert_eq!(told == AppendCost::Syncs, log.segment_count() > before, "record {n}");
        rolled += usize::from(told == AppendCost::Syncs);
    }
    assert!(rolled > 2);
    assert_eq!(cost(&batch(0, 1), 1), AppendCost::Syncs);
    let mut builder = BatchBuilder::new(Codec::Lz4);
    builder.append(BASE_TIME_MS, Some(b"key"), Some(b"value"), &[]);
    let compressed = builder.build().unwrap();
    let looked_at = cost(&compressed, 0);
    assert!(matches!(looked_at, AppendCost::Unfolds { bytes: 10..100_000 }), "its records are: {looked_at:?}");
    assert_eq!(looked_at.and(AppendCost::Syncs), looked_at);
    let AppendCost::Unfolds { bytes } = looked_at else { return };
    assert_eq!(looked_at.and(looked_at), AppendCost::Unfolds { bytes: 2 * bytes });
    assert_eq!(cost(&[1; 8], 0), AppendCost::Quick, "it is refused");
}

/// `preallocate`: the file stays as long as its records, and what was not needed is given back.
#[test]
fn space_is_set_aside_for_a_segment() {
    use std::os::unix::fs::MetadataExt;
    let root = tempfile::tempdir().unwrap();
    let (dir, _) = open(root.path());
    let log = create(&dir, LogConfig { preallocate: true, segment_bytes: 8 << 20, ..LogConfig::default() });
    let file = |base: i64| std::fs::metadata(root.path().join(format!("games-0/{base:020}.log"))).unwrap();
    append_records(&log, 3);
    let (begun, end) = (file(0), log.log_end_offset());
    assert!(begun.len() < 1 << 20);
    if begun.blocks() * 512 < 8 << 20 {
        // The file system sets nothing aside.
        return;
    }
    log.roll().unwrap();
    assert_eq!(file(0).len(), begun.len());
    assert!(file(0).blocks() * 512 < 1 << 20, "{} blocks", file(0).blocks());
    assert!(file(end).len() == 0 && file(end).blocks() * 512 >= 8 << 20);
}
