//! Batches whose CRC is right and whose records are not: refused whole, with a reason, and nothing stored.

use bytes::{BufMut, BytesMut};
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{BatchBuilder, HEADER_LEN, check_crc};
use caudal_protocol::compression::{Codec, compress};
use caudal_storage::{AppendError, AppendOrigin, LogConfig};

use crate::support::{BASE_TIME_MS, create, open};

/// Three records, each of a one-byte key and a one-byte value: `len 8, attributes 0, time 0, offset n, key, value, 0`.
fn three() -> Vec<Vec<u8>> {
    (0..3u8).map(|n| vec![16, 0, 0, 2 * n, 2, b'k', 2, b'v', 0]).collect()
}

/// A batch around `records`, its CRC right.
fn batch(codec: Codec, records: &[u8], count: i32, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut section = Vec::new();
    compress(codec, records, &mut section).unwrap();
    let mut bytes = BytesMut::new();
    bytes.put_i64(0);
    bytes.put_i32((HEADER_LEN - 12 + section.len()) as i32);
    bytes.put_i32(-1);
    bytes.put_i8(2);
    bytes.put_u32(0);
    bytes.put_i16(codec.id());
    bytes.put_i32(count - 1);
    bytes.put_i64(BASE_TIME_MS);
    bytes.put_i64(BASE_TIME_MS);
    bytes.put_i64(-1);
    bytes.put_i16(-1);
    bytes.put_i32(-1);
    bytes.put_i32(count);
    bytes.extend_from_slice(&section);
    change(&mut bytes);
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.to_vec()
}

fn set<const N: usize>(at: usize, value: [u8; N]) -> impl FnOnce(&mut [u8]) {
    move |bytes| bytes[at..at + N].copy_from_slice(&value)
}

/// Name, the records, their count in the header, and a part of the reason.
fn nonsense() -> Vec<(&'static str, Vec<u8>, i32, &'static str)> {
    let changed = |record: usize, at: usize, byte: u8| {
        let mut records = three();
        records[record][at] = byte;
        records.concat()
    };
    let with_last = |last: &[u8]| [three()[..2].concat(), last.to_vec()].concat();
    vec![
        ("a record longer than the batch", changed(2, 0, 100), 3, "record 2"),
        ("a record longer than its contents", with_last(&[18, 0, 0, 4, 2, b'k', 2, b'v', 0, 0]), 3, "record 2"),
        ("a record that ends in its value", changed(1, 0, 12), 3, "record 1"),
        ("a negative length", changed(1, 0, 1), 3, "record 1"),
        ("an empty record", with_last(&[0; 9]), 3, "record 2"),
        ("a key beyond the record", changed(0, 4, 60), 3, "record 0"),
        ("a value beyond the record", changed(0, 6, 60), 3, "record 0"),
        ("headers that are not there", changed(1, 8, 2), 3, "record 1"),
        ("a negative header count", changed(1, 8, 1), 3, "header count"),
        ("a header without a name", with_last(&[18, 0, 0, 4, 2, b'k', 1, 2, 1, 1]), 3, "record 2"),
        ("a header beyond the record", with_last(&[18, 0, 0, 4, 2, b'k', 1, 2, 40, 1]), 3, "record 2"),
        ("a varint cut off", with_last(&[0x80, 0x80, 0x80]), 3, "record 2"),
        ("a varint that never ends", with_last(&[0x80; 12]), 3, "record 2"),
        (
            "a time that never ends",
            with_last(&[30, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]),
            3,
            "record 2",
        ),
        ("more records than counted", three().concat(), 2, "follow its last record"),
        ("fewer records than counted", [three().concat(), vec![0; 9]].concat(), 4, "record 3"),
        ("bytes behind the records", [three().concat(), vec![0]].concat(), 3, "follow its last record"),
        ("an offset twice", changed(1, 3, 0), 3, "offset delta"),
        ("an offset left out", changed(2, 3, 6), 3, "offset delta"),
        ("a negative offset", changed(0, 3, 1), 3, "offset delta"),
    ]
}

#[test]
fn nonsense_under_a_right_crc_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    let append = |bytes: &[u8]| log.append(bytes, 0, AppendOrigin::Client);
    append(&batch(Codec::None, &three().concat(), 3, |_| {})).unwrap();
    for (name, records, count, reason) in nonsense() {
        let refused = append(&batch(Codec::None, &records, count, |_| {})).expect_err(name);
        assert_eq!(refused.error_code(), ErrorCode::InvalidRecord, "{name}: {refused}");
        assert!(refused.to_string().contains(reason), "{name}: {refused}");
        assert!(refused.to_string().contains("games-0"), "{name}: {refused}");
    }
    let header: [(&str, Vec<u8>); 8] = [
        ("last offset delta", batch(Codec::None, &three().concat(), 3, set(23, 5i32.to_be_bytes()))),
        ("negative last offset delta", batch(Codec::None, &three().concat(), 3, set(23, (-1i32).to_be_bytes()))),
        ("no records", batch(Codec::None, &[], 0, |_| {})),
        ("records by the billion", batch(Codec::None, &three().concat(), i32::MAX, |_| {})),
        ("producer id -2", batch(Codec::None, &three().concat(), 3, set(43, (-2i64).to_be_bytes()))),
        ("no sequence", batch(Codec::None, &three().concat(), 3, set(43, 7i64.to_be_bytes()))),
        (
            "no epoch",
            batch(Codec::None, &three().concat(), 3, |b| {
                set(43, 7i64.to_be_bytes())(b);
                set(53, 0i32.to_be_bytes())(b);
            }),
        ),
        ("two batches", batch(Codec::None, &three().concat(), 3, |_| {}).repeat(2)),
    ];
    for (name, bytes) in header {
        let refused = append(&bytes).expect_err(name);
        assert_eq!(refused.error_code(), ErrorCode::InvalidRecord, "{name}: {refused}");
    }
    assert_eq!(log.log_end_offset(), 3, "nothing was stored");
    // What sarama sends without idempotence: no producer, and yet a sequence. Kafka takes it.
    append(&batch(Codec::None, &three().concat(), 3, set(53, 0i32.to_be_bytes()))).unwrap();
}

/// What is numbered anew in compressed batches, as Kafka does.
const REPAIRED: [&str; 3] = ["an offset twice", "an offset left out", "a negative offset"];

#[test]
fn compressed_nonsense_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig { cleanup_compact: true, ..LogConfig::default() });
    for codec in Codec::ALL {
        let append = |bytes: &[u8]| log.append(bytes, 0, AppendOrigin::Client);
        append(&batch(codec, &three().concat(), 3, |_| {})).unwrap();
        for (name, records, count, _) in nonsense() {
            let appended = append(&batch(codec, &records, count, |_| {}));
            if codec != Codec::None && REPAIRED.contains(&name) {
                appended.unwrap();
                continue;
            }
            let refused = appended.expect_err(name);
            assert_eq!(refused.error_code(), ErrorCode::InvalidRecord, "{name}, {codec}: {refused}");
        }
        let mut cut = batch(codec, &three().concat(), 3, |_| {});
        if codec != Codec::None {
            let middle = HEADER_LEN + 3;
            cut.truncate(middle);
            set(8, ((middle - 12) as i32).to_be_bytes())(&mut cut);
            let crc = crc32c::crc32c(&cut[21..]);
            set(17, crc.to_be_bytes())(&mut cut);
            assert_eq!(append(&cut).unwrap_err().error_code(), ErrorCode::InvalidRecord, "cut {codec}");
        }
    }
}

#[test]
fn times_are_those_of_the_records() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    let newest = BASE_TIME_MS + 60;
    let mut records = three();
    records[1][2] = 120;
    let understated = batch(Codec::None, &records.concat(), 3, |_| {});
    log.append(&understated, 0, AppendOrigin::Client).unwrap();
    let stored = log.read(0, 1 << 20, i64::MAX, true).unwrap().to_bytes().unwrap();
    let header = check_crc(&stored).unwrap();
    assert_eq!((header.base_timestamp_ms, header.max_timestamp_ms), (BASE_TIME_MS, newest));
    assert_eq!(log.offset_for_timestamp(newest).unwrap().map(|found| found.offset), Some(1));

    log.set_config(LogConfig { timestamp_after_max_ms: 1000, ..LogConfig::default() });
    let mut builder = BatchBuilder::new(Codec::None);
    for timestamp_ms in [BASE_TIME_MS, i64::MAX / 2, BASE_TIME_MS] {
        builder.append(timestamp_ms, None, Some(b"v"), &[]);
    }
    let mut hidden = builder.build().unwrap();
    set(35, BASE_TIME_MS.to_be_bytes())(&mut hidden);
    let crc = crc32c::crc32c(&hidden[21..]);
    set(17, crc.to_be_bytes())(&mut hidden);
    let refused = log.append(&hidden, 0, AppendOrigin::Client).unwrap_err();
    assert!(matches!(&refused, AppendError::InvalidTimestamp { records, .. } if records == &[1]), "{refused}");
}
