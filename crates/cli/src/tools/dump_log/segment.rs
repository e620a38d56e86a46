//! Segments and snapshots: a line per batch, and with deep iteration a line per record.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use caudal_protocol::batch::{self, Batch, BatchHeader, NO_SEQUENCE, TimestampType};
use caudal_protocol::record::RecordRef;
use caudal_protocol::schema::{self, CONTROL, Value};
use caudal_protocol::wire::Reader;

use super::super::{Stop, tell};
use super::decode::Decoder;
use super::log_file::LogFile;
use super::{Out, absolute, base_offset, json, unreadable};

/// What a batch may decompress to: what an array of Java can hold.
const DECOMPRESSED_MAX_BYTES: usize = i32::MAX as usize;
/// The snapshot that `kafka-storage format` leaves.
const BOOTSTRAP: &str = "bootstrap.checkpoint";

/// What is printed of a segment.
pub struct SegmentOptions {
    pub is_printing: bool,
    pub is_deep: bool,
    pub skips_metadata: bool,
    pub max_bytes: u64,
    pub decoder: Decoder,
}

/// Offsets that do not follow one another: by file, the offset before the gap and the one after it.
#[derive(Default)]
pub struct Gaps(Vec<(String, BTreeMap<i64, i64>)>);

impl Gaps {
    fn add(&mut self, file: &Path, before: i64, after: i64) {
        let name = absolute(file);
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, pairs)) => _ = pairs.insert(before, after),
            None => self.0.push((name, BTreeMap::from([(before, after)]))),
        }
    }

    pub fn tell(&self) {
        for (file, pairs) in &self.0 {
            tell!("Non-consecutive offsets in {file}");
            for (before, after) in pairs {
                tell!("  {before} is followed by {after}");
            }
        }
    }
}

/// Prints a `.log` or `.checkpoint` file.
pub fn dump(file: &Path, options: &SegmentOptions, gaps: &mut Gaps, out: &mut Out<'_>) -> Result<(), Stop> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".log") {
        writeln!(out, "Log starting offset: {}", base_offset(file)?)?;
    } else if name == BOOTSTRAP {
        writeln!(out, "KRaft bootstrap snapshot")?;
    } else {
        let (offset, epoch) = snapshot_id(&name).ok_or_else(|| {
            unreadable(file, "its name is not that of a snapshot: END_OFFSET-EPOCH.checkpoint, 20 and 10 digits")
        })?;
        writeln!(out, "Snapshot end offset: {offset}, epoch: {epoch}")?;
    }
    let log = LogFile::open(file)?;
    let end = log.size.min(options.max_bytes);
    let (mut position, mut last_offset) = (0, -1);
    while let Some(batch) = log.batch(position, end)? {
        put_batch(out, &batch, position)?;
        if options.is_deep {
            put_records(out, &batch, options, file, gaps, &mut last_offset)?;
        }
        position += batch.bytes.len() as u64;
    }
    if end > position && options.max_bytes == i32::MAX as u64 {
        writeln!(out, "Found {} invalid bytes at the end of {name}", end - position)?;
    }
    Ok(())
}

fn snapshot_id(name: &str) -> Option<(i64, i32)> {
    Some((name.get(..20)?.parse().ok()?, name.get(21..31)?.parse().ok()?))
}

fn timestamp_type(header: &BatchHeader) -> &'static str {
    match header.timestamp_type() {
        TimestampType::CreateTime => "CreateTime",
        TimestampType::LogAppendTime => "LogAppendTime",
    }
}

fn put_batch(out: &mut Out<'_>, batch: &Batch, position: u64) -> Result<(), Stop> {
    let h = &batch.header;
    let codec = h.codec().ok_or_else(|| Stop::Failed(format!("Unknown compression type id: {}", h.codec_id())))?;
    let horizon = h.delete_horizon_ms().map_or("OptionalLong.empty".to_owned(), |ms| format!("OptionalLong[{ms}]"));
    writeln!(
        out,
        "baseOffset: {} lastOffset: {} count: {} baseSequence: {} lastSequence: {} producerId: {} producerEpoch: {} \
         partitionLeaderEpoch: {} isTransactional: {} isControl: {} deleteHorizonMs: {horizon} position: {position} {}: {} \
         size: {} magic: {} compresscodec: {} crc: {} isvalid: {}",
        h.base_offset,
        h.last_offset(),
        h.record_count,
        h.base_sequence,
        h.last_sequence(),
        h.producer_id,
        h.producer_epoch,
        h.partition_leader_epoch,
        h.is_transactional(),
        h.is_control(),
        timestamp_type(h),
        h.max_timestamp_ms,
        h.size_bytes(),
        h.magic,
        codec.name(),
        h.crc,
        batch::check_crc(&batch.bytes).is_ok(),
    )?;
    Ok(())
}

fn put_records(
    out: &mut Out<'_>,
    batch: &Batch,
    options: &SegmentOptions,
    file: &Path,
    gaps: &mut Gaps,
    last_offset: &mut i64,
) -> Result<(), Stop> {
    let failed = |e: caudal_protocol::record::RecordError| unreadable(file, e);
    let records = batch.records(DECOMPRESSED_MAX_BYTES).map_err(failed)?;
    for record in records.iter() {
        let record = record.map_err(failed)?;
        if record.offset != *last_offset + 1 {
            gaps.add(file, *last_offset, record.offset);
        }
        *last_offset = record.offset;
        if !options.skips_metadata {
            put_metadata(out, &batch.header, &record, file)?;
        }
        if options.is_printing && !batch.header.is_control() {
            let lead = if options.skips_metadata { "| " } else { " " };
            options.decoder.put(out, &record, lead)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn put_metadata(out: &mut Out<'_>, header: &BatchHeader, record: &RecordRef<'_>, file: &Path) -> Result<(), Stop> {
    let size = |part: Option<&[u8]>| part.map_or(-1, |p| p.len() as i64);
    let delta = record.offset.wrapping_sub(header.base_offset);
    let sequence = match header.base_sequence {
        NO_SEQUENCE => NO_SEQUENCE,
        base => ((i64::from(base) + delta) & i64::from(i32::MAX)) as i32,
    };
    write!(
        out,
        "| offset: {} {}: {} keySize: {} valueSize: {} sequence: {sequence} headerKeys: [",
        record.offset,
        timestamp_type(header),
        record.timestamp_ms,
        size(record.key),
        size(record.value),
    )?;
    for (i, head) in record.headers.iter().enumerate() {
        let head = head.map_err(|e| unreadable(file, format!("record {}: {e}", record.offset)))?;
        write!(out, "{}{}", if i == 0 { "" } else { "," }, String::from_utf8_lossy(head.key))?;
    }
    write!(out, "]")?;
    if header.is_control() {
        put_control(out, record).map_err(|stop| match stop {
            Stop::Failed(reason) => unreadable(file, format!("control record {}: {reason}", record.offset)),
            other => other,
        })?;
    }
    Ok(())
}

/// What a control record says. The version of its key and value is not looked at: later ones must stay readable.
fn put_control(out: &mut Out<'_>, record: &RecordRef<'_>) -> Result<(), Stop> {
    let short = |bytes: Option<&[u8]>, at: usize| {
        bytes.and_then(|b| b.get(at..at + 2)?.try_into().ok()).map(i16::from_be_bytes)
    };
    let kind = short(record.key, 2).ok_or_else(|| Stop::Failed("its key is shorter than 4 bytes".to_owned()))?;
    let (label, name) = match kind {
        0 | 1 => {
            let epoch = record.value.and_then(|v| v.get(2..6)?.try_into().ok()).map(i32::from_be_bytes);
            let epoch = epoch.ok_or_else(|| Stop::Failed("its value is shorter than 6 bytes".to_owned()))?;
            let name = if kind == 0 { "ABORT" } else { "COMMIT" };
            write!(out, " endTxnMarker: {name} coordinatorEpoch: {epoch}")?;
            return Ok(());
        }
        2 => ("LeaderChange:", "LeaderChangeMessage"),
        3 => ("SnapshotHeader", "SnapshotHeaderRecord"),
        4 => ("SnapshotFooter", "SnapshotFooterRecord"),
        5 => ("KRaftVersion", "KRaftVersionRecord"),
        6 => ("KRaftVoters", "VotersRecord"),
        _ => {
            write!(out, " controlType: UNKNOWN({kind})")?;
            return Ok(());
        }
    };
    let mut reader = Reader::new(record.value.unwrap_or_default().to_vec().into());
    let read = schema::named(CONTROL, name).map(|s| s.read(&mut reader, 0));
    let read = read.transpose().map_err(|e| Stop::Failed(e.to_string()))?.unwrap_or_default();
    write!(out, " {label} {}", json::text(&Value::Struct(read)))?;
    Ok(())
}
