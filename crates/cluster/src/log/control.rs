//! The batches of the metadata log: data batches, and the control batches by which the quorum keeps its own state.
//!
//! A control record's key is `version i16 (0), type i16`; its value a message of `caudal_protocol::records::control`.

use bytes::{Bytes, BytesMut};
use caudal_protocol::batch::{Batch, BatchBuilder};
use caudal_protocol::compression::Codec;
use caudal_protocol::records::control::{
    KRaftVersionRecord, LeaderChangeMessage, SnapshotFooterRecord, SnapshotHeaderRecord, VotersRecord,
};
use caudal_protocol::wire::{Message, Reader};

use super::MetadataLogError;
use crate::record::MetadataRecord;

/// Most records in a batch, as Kafka's controller bounds an atomic operation.
pub(super) const MAX_BATCH_RECORDS: usize = 10_000;
/// Size at which a further batch is begun (`KafkaRaftClient.MAX_BATCH_SIZE_BYTES`).
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// What a compressed batch may grow to.
const DECOMPRESSED_MAX_BYTES: usize = 64 * 1024 * 1024;

/// A control record.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Control {
    LeaderChange(LeaderChangeMessage),
    SnapshotHeader(SnapshotHeaderRecord),
    SnapshotFooter(SnapshotFooterRecord),
    KRaftVersion(KRaftVersionRecord),
    Voters(VotersRecord),
}

impl Control {
    fn kind(&self) -> i16 {
        match self {
            Control::LeaderChange(_) => 2,
            Control::SnapshotHeader(_) => 3,
            Control::SnapshotFooter(_) => 4,
            Control::KRaftVersion(_) => 5,
            Control::Voters(_) => 6,
        }
    }

    fn value(&self) -> Result<Bytes, MetadataLogError> {
        let value = match self {
            Control::LeaderChange(m) => m.to_bytes(0),
            Control::SnapshotHeader(m) => m.to_bytes(0),
            Control::SnapshotFooter(m) => m.to_bytes(0),
            Control::KRaftVersion(m) => m.to_bytes(0),
            Control::Voters(m) => m.to_bytes(0),
        };
        Ok(value?)
    }

    fn decode(key: &[u8], value: Bytes) -> Result<Option<Control>, MetadataLogError> {
        let &[_, _, high, low] = key else { return Ok(None) };
        let mut reader = Reader::new(value);
        Ok(Some(match i16::from_be_bytes([high, low]) {
            2 => Control::LeaderChange(decode_any(&mut reader)?),
            3 => Control::SnapshotHeader(decode_any(&mut reader)?),
            4 => Control::SnapshotFooter(decode_any(&mut reader)?),
            5 => Control::KRaftVersion(decode_any(&mut reader)?),
            6 => Control::Voters(decode_any(&mut reader)?),
            _ => return Ok(None),
        }))
    }
}

/// The version of these messages stands in their own first field.
fn decode_any<M: Message>(reader: &mut Reader) -> Result<M, MetadataLogError> {
    let version = reader.clone().i16()?;
    Ok(M::decode(reader, version)?)
}

/// One control batch.
pub(super) fn control_batch(
    records: &[Control],
    base_offset: i64,
    epoch: i32,
    now_ms: i64,
) -> Result<BytesMut, MetadataLogError> {
    let mut builder = BatchBuilder::new(Codec::None).base_offset(base_offset).leader_epoch(epoch).control(true);
    for record in records {
        let mut key = [0; 4];
        let [_, _, high, low] = &mut key;
        [*high, *low] = record.kind().to_be_bytes();
        builder.append(now_ms, Some(&key), Some(&record.value()?), &[]);
    }
    Ok(builder.build()?)
}

/// Data batches with consecutive offsets, appended to `out`; returns the offset behind the last record.
pub(super) fn data_batches(
    records: &[MetadataRecord],
    base_offset: i64,
    epoch: i32,
    now_ms: i64,
    out: &mut BytesMut,
) -> Result<i64, MetadataLogError> {
    let mut next = base_offset;
    let begin = |next: i64| BatchBuilder::new(Codec::None).base_offset(next).leader_epoch(epoch);
    let mut builder = begin(next);
    for record in records {
        let value = record.encode()?;
        let full =
            builder.len() >= MAX_BATCH_RECORDS || builder.size_with(now_ms, None, Some(&value), &[]) > MAX_BATCH_BYTES;
        if full && !builder.is_empty() {
            out.extend_from_slice(&std::mem::replace(&mut builder, begin(next)).build()?);
        }
        builder.append(now_ms, None, Some(&value), &[]);
        next += 1;
    }
    if !builder.is_empty() {
        out.extend_from_slice(&builder.build()?);
    }
    Ok(next)
}

/// What a batch of the metadata log holds.
#[derive(Debug)]
pub(super) enum Contents {
    Control(Vec<Control>),
    Data(Vec<MetadataRecord>),
}

/// Reads a batch, its records included. Control records of unknown types are passed over, as Kafka does; data records
/// are not.
pub(super) fn read_batch(batch: &Batch) -> Result<Contents, MetadataLogError> {
    let at = |offset: i64| move |error: String| MetadataLogError::Record { offset, error };
    let base = batch.header.base_offset;
    let records = batch.records(DECOMPRESSED_MAX_BYTES).map_err(|e| at(base)(e.to_string()))?;
    let (mut control, mut data) = (Vec::new(), Vec::new());
    for record in records.iter() {
        let record = record.map_err(|e| at(base)(e.to_string()))?;
        let failed = at(record.offset);
        let value = record.value.map(Bytes::copy_from_slice).unwrap_or_default();
        if batch.header.is_control() {
            let decoded = Control::decode(record.key.unwrap_or_default(), value).map_err(|e| failed(e.to_string()))?;
            control.extend(decoded);
        } else {
            data.push(MetadataRecord::decode(value).map_err(|e| failed(e.to_string()))?);
        }
    }
    Ok(if batch.header.is_control() { Contents::Control(control) } else { Contents::Data(data) })
}
