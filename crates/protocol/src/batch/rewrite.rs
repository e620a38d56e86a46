//! Writing a batch anew: with a part of its records, as compaction does, or with another codec (`compression.type`).

use super::{
    BatchHeader, CODEC_MASK, CONTROL, DELETE_HORIZON, HEADER_LEN, LOG_APPEND_TIME, LOG_OVERHEAD, MAGIC, NO_TIMESTAMP,
    TRANSACTIONAL, TimestampType, compute_crc, len_i32, put,
};
use crate::compression::{self, Codec, CompressionError};
use crate::record::{self, RecordError, RecordIter, RecordRef};

/// The batch of `header` with only `records` of it, compressed as it was. Offsets stay what they are, the last offset
/// and the producer's fields too, so that the batch still tells its producer's last sequence number.
///
/// `delete_horizon_ms` (or the one that the batch has already) takes the place of the base timestamp; times of
/// records are kept. Without records a header is left, not compressed and without a horizon.
///
/// Source: `MemoryRecords.filterTo` and KIP-534 for what is kept.
///
/// # Errors
/// The codec fails.
pub fn rewrite(
    header: &BatchHeader,
    records: &[RecordRef<'_>],
    delete_horizon_ms: Option<i64>,
) -> Result<Vec<u8>, CompressionError> {
    let kept_flags = header.attributes & (LOG_APPEND_TIME | TRANSACTIONAL | CONTROL);
    let horizon_ms = delete_horizon_ms.or_else(|| header.delete_horizon_ms());
    let Some(first) = records.first() else {
        return Ok(finish(header, vec![0; HEADER_LEN], kept_flags, (NO_TIMESTAMP, header.max_timestamp_ms), 0));
    };
    let base_timestamp_ms = horizon_ms.unwrap_or(first.timestamp_ms);
    let mut body = Vec::new();
    for record in records {
        put_record(&mut body, record, header.base_offset, base_timestamp_ms);
    }
    let codec = header.codec().unwrap_or_default();
    let mut batch = vec![0; HEADER_LEN];
    match codec {
        Codec::None => batch.append(&mut body),
        codec => compression::compress(codec, &body, &mut batch)?,
    }
    let max_timestamp_ms = match header.timestamp_type() {
        TimestampType::LogAppendTime => header.max_timestamp_ms,
        TimestampType::CreateTime => records.iter().map(|record| record.timestamp_ms).max().unwrap_or(NO_TIMESTAMP),
    };
    let horizon_flag = if horizon_ms.is_some() { DELETE_HORIZON } else { 0 };
    let flags = codec.id() | kept_flags | horizon_flag;
    Ok(finish(header, batch, flags, (base_timestamp_ms, max_timestamp_ms), len_i32(records.len())))
}

/// The batch of `header` around its records, `plain`, with another codec. A level is on the codec's own scale.
///
/// # Errors
/// The codec fails.
pub fn recompress(
    header: &BatchHeader,
    plain: &[u8],
    codec: Codec,
    level: Option<i32>,
) -> Result<Vec<u8>, CompressionError> {
    let mut batch = Vec::with_capacity(HEADER_LEN + plain.len() / if codec == Codec::None { 1 } else { 2 });
    batch.resize(HEADER_LEN, 0);
    compression::compress_at(codec, level, plain, &mut batch)?;
    let attributes = header.attributes & !CODEC_MASK | codec.id();
    let times = (header.base_timestamp_ms, header.max_timestamp_ms);
    Ok(finish(header, batch, attributes, times, header.record_count))
}

/// The records section `plain` with offset deltas that count up from 0.
///
/// # Errors
/// The first record that cannot be read.
pub fn renumber(header: &BatchHeader, plain: &[u8]) -> Result<Vec<u8>, RecordError> {
    let count = u32::try_from(header.record_count).unwrap_or(0);
    let mut out = Vec::with_capacity(plain.len());
    for (index, record) in (0..).zip(RecordIter::plain(plain, 0, header.base_timestamp_ms, count)) {
        put_record(&mut out, &RecordRef { offset: index, ..record? }, 0, header.base_timestamp_ms);
    }
    Ok(out)
}

/// Fills in the header at the beginning of `batch`.
fn finish(
    old: &BatchHeader,
    mut batch: Vec<u8>,
    attributes: i16,
    (base_timestamp_ms, max_timestamp_ms): (i64, i64),
    record_count: i32,
) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    header.extend_from_slice(&old.base_offset.to_be_bytes());
    header.extend_from_slice(&len_i32(batch.len() - LOG_OVERHEAD).to_be_bytes());
    header.extend_from_slice(&old.partition_leader_epoch.to_be_bytes());
    header.extend_from_slice(&MAGIC.to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&attributes.to_be_bytes());
    header.extend_from_slice(&old.last_offset_delta.to_be_bytes());
    header.extend_from_slice(&base_timestamp_ms.to_be_bytes());
    header.extend_from_slice(&max_timestamp_ms.to_be_bytes());
    header.extend_from_slice(&old.producer_id.to_be_bytes());
    header.extend_from_slice(&old.producer_epoch.to_be_bytes());
    header.extend_from_slice(&old.base_sequence.to_be_bytes());
    header.extend_from_slice(&record_count.to_be_bytes());
    put(&mut batch, 0, &header);
    let crc = compute_crc(&batch);
    put(&mut batch, super::CRC_AT, &crc.to_be_bytes());
    batch
}

fn put_record(out: &mut Vec<u8>, record: &RecordRef<'_>, base_offset: i64, base_timestamp_ms: i64) {
    let (header_count, headers) = record.headers.encoded();
    let timestamp_delta = record.timestamp_ms.wrapping_sub(base_timestamp_ms);
    let offset_delta = i32::try_from(record.offset.wrapping_sub(base_offset)).unwrap_or(i32::MAX);
    let count_len = record::varlong_len(i64::from(header_count));
    let body_len = 1
        + record::varlong_len(timestamp_delta)
        + record::varlong_len(i64::from(offset_delta))
        + super::nullable_len(record.key)
        + super::nullable_len(record.value)
        + count_len
        + headers.len();
    record::put_varint(out, len_i32(body_len));
    out.push(0);
    record::put_varlong(out, timestamp_delta);
    record::put_varint(out, offset_delta);
    super::put_nullable(out, record.key);
    super::put_nullable(out, record.value);
    record::put_varint(out, i32::try_from(header_count).unwrap_or(i32::MAX));
    out.extend_from_slice(headers);
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, BatchBuilder, check_crc, stamp_log_append_time_parts};
    use super::*;
    use bytes::Bytes;

    fn batch(codec: Codec) -> Batch {
        let mut builder = BatchBuilder::new(codec).producer(7, 2, 40).base_offset(100).leader_epoch(3);
        for n in 0..5_i64 {
            let key = format!("key {n}");
            let value = format!("value {n}").repeat(20);
            let value = (n != 3).then_some(value.as_bytes());
            builder.append(1000 + n, Some(key.as_bytes()), value, &[(b"h", Some(b"1")), (b"h", None)]);
        }
        Batch::parse(&builder.build().unwrap().freeze()).unwrap()
    }

    fn kept(batch: &Batch, keep: &[usize], horizon_ms: Option<i64>) -> Batch {
        let records = batch.records(1 << 20).unwrap();
        let all: Vec<_> = records.iter().map(Result::unwrap).collect();
        let some: Vec<_> = keep.iter().map(|&at| all[at]).collect();
        let bytes = Bytes::from(rewrite(&batch.header, &some, horizon_ms).unwrap());
        check_crc(&bytes).unwrap();
        let rewritten = Batch::parse(&bytes).unwrap();
        let expected: Vec<_> = some.iter().map(|record| records.share_record(record).unwrap()).collect();
        assert_eq!(rewritten.records(1 << 20).unwrap().to_records().unwrap(), expected);
        let (new, old) = (&rewritten.header, &batch.header);
        assert_eq!((new.base_offset, new.last_offset()), (old.base_offset, old.last_offset()));
        assert_eq!((new.producer_id, new.producer_epoch), (old.producer_id, old.producer_epoch));
        assert_eq!(new.last_sequence(), old.last_sequence());
        assert_eq!(new.partition_leader_epoch, old.partition_leader_epoch);
        rewritten
    }

    #[test]
    fn records_keep_offsets_times_and_headers() {
        for codec in Codec::ALL {
            let batch = batch(codec);
            let some = kept(&batch, &[1, 3], None);
            assert_eq!(some.header.codec(), Some(codec));
            assert_eq!((some.header.base_timestamp_ms, some.header.max_timestamp_ms), (1001, 1003));
            assert_eq!((some.header.record_count, some.header.delete_horizon_ms()), (2, None));
            let marked = kept(&batch, &[3, 4], Some(77_000));
            assert_eq!(marked.header.delete_horizon_ms(), Some(77_000));
            assert_eq!(kept(&marked, &[1], None).header.delete_horizon_ms(), Some(77_000), "a horizon stays");
            let none = kept(&batch, &[], None);
            assert_eq!((none.header.codec(), none.bytes.len()), (Some(Codec::None), HEADER_LEN));
            assert_eq!((none.header.base_timestamp_ms, none.header.max_timestamp_ms), (-1, 1004));
        }
    }

    #[test]
    fn another_codec_changes_nothing_else() {
        for from in Codec::ALL {
            let batch = batch(from);
            let records = batch.records(1 << 20).unwrap();
            for to in Codec::ALL {
                let bytes = Bytes::from(recompress(&batch.header, records.data(), to, None).unwrap());
                check_crc(&bytes).unwrap();
                let new = Batch::parse(&bytes).unwrap();
                assert_eq!(new.header.codec(), Some(to));
                assert_eq!(new.records(1 << 20).unwrap().to_records(), records.to_records());
                let back = recompress(&new.header, records.data(), from, None).unwrap();
                assert_eq!(Batch::parse(&back.into()).unwrap().header, batch.header);
            }
        }
    }

    #[test]
    fn records_are_numbered_anew() {
        let batch = batch(Codec::None);
        let records = batch.records(1 << 20).unwrap();
        let (mut odd, mut first) = (Vec::new(), None);
        for record in records.iter() {
            let record = record.unwrap();
            put_record(&mut odd, &RecordRef { offset: *first.get_or_insert(record.offset), ..record }, 100, 1000);
        }
        let refused = crate::record::check_records(&odd, 5, 100, 1000, |_| {}).unwrap_err();
        assert!(refused.is_misnumbered());
        assert_eq!(renumber(&batch.header, &odd).unwrap(), records.data().as_ref());
        assert!(renumber(&batch.header, &odd[..odd.len() - 1]).is_err());
    }

    #[test]
    fn the_brokers_time_stays() {
        let mut bytes = batch(Codec::None).bytes.to_vec();
        stamp_log_append_time_parts(&mut bytes, &[], 5000);
        let stamped = Batch::parse(&Bytes::from(bytes)).unwrap();
        for horizon_ms in [None, Some(9000)] {
            let some = kept(&stamped, &[0, 2], horizon_ms);
            assert_eq!(
                (some.header.timestamp_type(), some.header.max_timestamp_ms),
                (TimestampType::LogAppendTime, 5000)
            );
        }
    }
}
