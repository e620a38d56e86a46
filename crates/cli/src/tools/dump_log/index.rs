//! The files beside a segment: offset and time index, aborted transactions, states of producers.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use caudal_protocol::batch::{BatchHeader, NO_TIMESTAMP};
use caudal_protocol::records::producer::ProducerSnapshot;
use caudal_protocol::wire::{Message, Reader};

use super::super::{Stop, tell};
use super::log_file::LogFile;
use super::{Out, absolute, base_offset, unreadable};

/// `relative offset: i32, position: i32`
const OFFSET_ENTRY: usize = 8;
/// `timestamp: i64, relative offset: i32`
const TIME_ENTRY: usize = 12;
/// `version: i16, producer id: i64, first, last and last stable offset: i64`
const ABORTED_ENTRY: usize = 34;
/// Where the entries of a snapshot of producers begin: after version and CRC-32C of the rest.
const PRODUCERS_AT: usize = 6;
/// What a batch may decompress to.
const DECOMPRESSED_MAX_BYTES: usize = i32::MAX as usize;

/// What is done with an index.
pub struct IndexMode {
    pub checks_sanity: bool,
    pub verifies_only: bool,
    pub max_message_bytes: u64,
}

/// What indexes say that their segments do not; told at the end, by file.
#[derive(Default)]
pub struct IndexErrors {
    /// Indexed offset, and the last offset of the batch at its position.
    offsets: Vec<(String, BTreeMap<i64, i64>)>,
    timestamps: Vec<(String, Vec<(i64, i64)>)>,
    disorder: Vec<(String, Vec<(i64, i64)>)>,
    missing: Vec<(String, Vec<(i64, i64)>)>,
}

fn of_file<'a, T: Default>(errors: &'a mut Vec<(String, T)>, file: &Path) -> Option<&'a mut T> {
    let name = absolute(file);
    if !errors.iter().any(|(n, _)| *n == name) {
        errors.push((name.clone(), T::default()));
    }
    errors.iter_mut().find(|(n, _)| *n == name).map(|(_, found)| found)
}

fn add(errors: &mut Vec<(String, Vec<(i64, i64)>)>, file: &Path, pair: (i64, i64)) {
    if let Some(pairs) = of_file(errors, file) {
        pairs.push(pair);
    }
}

impl IndexErrors {
    pub fn tell(&self) {
        for (file, pairs) in &self.offsets {
            tell!("Mismatches in :{file}");
            for (index, log) in pairs.iter().rev() {
                tell!("  Index offset: {index}, log offset: {log}");
            }
        }
        for (file, pairs) in &self.timestamps {
            tell!("Found timestamp mismatch in :{file}");
            for (index, log) in pairs {
                tell!("  Index timestamp: {index}, log timestamp: {log}");
            }
        }
        for (file, pairs) in &self.disorder {
            tell!("Found out of order timestamp in :{file}");
            for (index, before) in pairs {
                tell!("  Index timestamp: {index}, Previously indexed timestamp: {before}");
            }
        }
        for (file, pairs) in &self.missing {
            tell!("The following indexed offsets are not found in :{file}");
            for (index, log) in pairs {
                tell!("Indexed offset: {index}, found log offset: {log}");
            }
        }
    }
}

fn int(entry: &[u8], at: usize) -> i32 {
    entry.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_be_bytes)
}

fn long(entry: &[u8], at: usize) -> i64 {
    entry.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, i64::from_be_bytes)
}

fn contents(file: &Path) -> Result<Vec<u8>, Stop> {
    std::fs::read(file).map_err(|e| unreadable(file, e))
}

/// Offsets and positions of an offset index; a rest that is no whole entry is left out.
fn offsets(bytes: &[u8], base: i64) -> Vec<(i64, i32)> {
    let entry = |e: &[u8]| (base + i64::from(int(e, 0)), int(e, 4));
    bytes.chunks_exact(OFFSET_ENTRY).map(entry).collect()
}

/// `.index`
pub fn dump_offsets(file: &Path, mode: &IndexMode, errors: &mut IndexErrors, out: &mut Out<'_>) -> Result<(), Stop> {
    let base = base_offset(file)?;
    let log = LogFile::open(&file.with_extension("log"))?;
    let bytes = contents(file)?;
    let entries = offsets(&bytes, base);
    if entries.is_empty() {
        writeln!(out, "{} is empty.", file.display())?;
        return Ok(());
    }
    if mode.checks_sanity {
        return check_offsets(file, base, &entries, bytes.len(), out);
    }
    for (i, (offset, position)) in entries.into_iter().enumerate() {
        // The file is sparse: after a crash zeros may follow.
        if offset == base && i > 0 {
            return Ok(());
        }
        let at = u64::try_from(position).ok().filter(|at| *at <= log.size);
        let at = at.ok_or_else(|| {
            unreadable(file, format!("its entry of offset {offset} points to position {position}, beyond the segment"))
        })?;
        let end = log.size.min(at.saturating_add(mode.max_message_bytes));
        let Some(header) = log.header(at, end)? else {
            let bytes = mode.max_message_bytes;
            return Err(unreadable(
                file,
                format!(
                    "no batch of at most {bytes} bytes (--max-message-size) is at position {position} of the segment, \
                     where its entry of offset {offset} points to"
                ),
            ));
        };
        if header.last_offset() != offset
            && let Some(pairs) = of_file(&mut errors.offsets, file)
        {
            pairs.insert(offset, header.last_offset());
        }
        if !mode.verifies_only {
            writeln!(out, "offset: {offset} position: {position}")?;
        }
    }
    Ok(())
}

fn check_offsets(
    file: &Path,
    base: i64,
    entries: &[(i64, i32)],
    file_bytes: usize,
    out: &mut Out<'_>,
) -> Result<(), Stop> {
    if let Some((last, _)) = entries.last()
        && *last < base
    {
        return Err(Stop::Failed(format!(
            "Corrupt index found, index file {} has non-zero size but the last offset is {last} which is less than the \
             base offset {base}",
            absolute(file)
        )));
    }
    if !file_bytes.is_multiple_of(OFFSET_ENTRY) {
        return Err(Stop::Failed(format!(
            "Index file {} is corrupt, found {file_bytes} bytes which is neither positive nor a multiple of {OFFSET_ENTRY}",
            absolute(file)
        )));
    }
    Ok(writeln!(out, "{} passed sanity check.", file.display())?)
}

/// `.timeindex`
pub fn dump_times(file: &Path, mode: &IndexMode, errors: &mut IndexErrors, out: &mut Out<'_>) -> Result<(), Stop> {
    let base = base_offset(file)?;
    let log = LogFile::open(&file.with_extension("log"))?;
    let index = offsets(&contents(&file.with_extension("index"))?, base);
    let bytes = contents(file)?;
    let entry = |e: &[u8]| (long(e, 0), base + i64::from(int(e, 8)));
    let entries: Vec<(i64, i64)> = bytes.chunks_exact(TIME_ENTRY).map(entry).collect();
    if mode.checks_sanity {
        return check_times(file, base, &entries, bytes.len(), out);
    }
    let mut previous = NO_TIMESTAMP;
    for (i, (timestamp, offset)) in entries.into_iter().enumerate() {
        // The file is sparse: after a crash zeros may follow.
        if offset == base && i > 0 {
            return Ok(());
        }
        // Later entries of a damaged index may be out of order; the last one below is what a search would find.
        let at = index.partition_point(|(o, _)| *o <= offset).checked_sub(1).and_then(|at| index.get(at));
        let position = at.map_or(0, |(_, position)| u64::try_from(*position).unwrap_or(u64::MAX));
        if position > log.size {
            let index = file.with_extension("index");
            return Err(unreadable(&index, format!("it points to position {position}, beyond the segment")));
        }
        match holding(&log, position, offset)? {
            None => add(&mut errors.missing, file, (offset, -1)),
            Some((_, header)) if header.last_offset() != offset => {
                add(&mut errors.missing, file, (offset, header.last_offset()));
            }
            Some((position, _)) => {
                let newest = newest_record(&log, position, file)?;
                if newest != timestamp {
                    add(&mut errors.timestamps, file, (timestamp, newest));
                }
                if previous >= timestamp {
                    add(&mut errors.disorder, file, (timestamp, previous));
                }
            }
        }
        if !mode.verifies_only {
            writeln!(out, "timestamp: {timestamp} offset: {offset}")?;
        }
        previous = timestamp;
    }
    Ok(())
}

fn check_times(
    file: &Path,
    base: i64,
    entries: &[(i64, i64)],
    file_bytes: usize,
    out: &mut Out<'_>,
) -> Result<(), Stop> {
    let corrupt = |what: String| {
        Stop::Failed(format!(
            "Corrupt time index found, time index file ({}) has non-zero size but the last {what}",
            absolute(file)
        ))
    };
    if let (Some((first, _)), Some((last, offset))) = (entries.first(), entries.last()) {
        if last < first {
            return Err(corrupt(format!("timestamp is {last} which is less than the first timestamp {first}")));
        }
        if *offset < base {
            return Err(corrupt(format!("offset is {offset} which is less than the first offset {base}")));
        }
    }
    if !file_bytes.is_multiple_of(TIME_ENTRY) {
        return Err(Stop::Failed(format!(
            "Time index file {} is corrupt, found {file_bytes} bytes which is neither positive nor a multiple of {TIME_ENTRY}.",
            absolute(file)
        )));
    }
    Ok(writeln!(out, "{} passed sanity check.", file.display())?)
}

/// The first batch from a position on that reaches an offset.
fn holding(log: &LogFile, mut position: u64, offset: i64) -> Result<Option<(u64, BatchHeader)>, Stop> {
    while let Some(header) = log.header(position, log.size)? {
        if header.last_offset() >= offset {
            return Ok(Some((position, header)));
        }
        position += header.size_bytes() as u64;
    }
    Ok(None)
}

/// The greatest timestamp among the records of the batch at a position.
fn newest_record(log: &LogFile, position: u64, file: &Path) -> Result<i64, Stop> {
    let Some(batch) = log.batch(position, log.size)? else { return Ok(NO_TIMESTAMP) };
    let records = batch.records(DECOMPRESSED_MAX_BYTES).map_err(|e| unreadable(file, e))?;
    let mut newest = NO_TIMESTAMP;
    for record in records.iter() {
        newest = newest.max(record.map_err(|e| unreadable(file, e))?.timestamp_ms);
    }
    Ok(newest)
}

/// `.txnindex`; one that is not there has no aborted transactions.
pub fn dump_aborted(file: &Path, out: &mut Out<'_>) -> Result<(), Stop> {
    base_offset(file)?;
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(unreadable(file, e)),
    };
    for entry in bytes.chunks_exact(ABORTED_ENTRY) {
        // Kafka looks at the upper byte of the version only.
        let version = entry.first().copied().unwrap_or(0).cast_signed();
        if version > 0 {
            return Err(Stop::Failed(format!(
                "Unexpected aborted transaction version {version} in transaction index {}, current version is 0",
                absolute(file)
            )));
        }
        writeln!(
            out,
            "version: {version} producerId: {} firstOffset: {} lastOffset: {} lastStableOffset: {}",
            long(entry, 2),
            long(entry, 10),
            long(entry, 18),
            long(entry, 26)
        )?;
    }
    Ok(())
}

/// `.snapshot`
pub fn dump_producers(file: &Path, out: &mut Out<'_>) -> Result<(), Stop> {
    let bytes = contents(file)?;
    let snapshot = match read_producers(&bytes) {
        Ok(snapshot) => snapshot,
        Err(sentence) => {
            out.flush()?;
            tell!("{sentence}");
            return Ok(());
        }
    };
    for e in snapshot.producer_entries {
        let first = match e.current_txn_first_offset {
            offset if offset >= 0 => format!("OptionalLong[{offset}]"),
            _ => "OptionalLong.empty".to_owned(),
        };
        write!(
            out,
            "producerId: {} producerEpoch: {} coordinatorEpoch: {} currentTxnFirstOffset: {first} lastTimestamp: {}",
            e.producer_id, e.epoch, e.coordinator_epoch, e.timestamp
        )?;
        if e.last_offset >= 0 {
            let first = (i64::from(e.last_sequence) - i64::from(e.offset_delta)) & i64::from(i32::MAX);
            write!(
                out,
                " firstSequence: {first} lastSequence: {} lastOffset: {} offsetDelta: {} timestamp: {}",
                e.last_sequence, e.last_offset, e.offset_delta, e.timestamp
            )?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn read_producers(bytes: &[u8]) -> Result<ProducerSnapshot, String> {
    let unfit = |reason: String| format!("Snapshot failed schema validation: {reason}");
    let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
    let version = reader.i16().map_err(|e| unfit(e.to_string()))?;
    if !(ProducerSnapshot::MIN_VERSION..=ProducerSnapshot::MAX_VERSION).contains(&version) {
        return Err(unfit(format!("Snapshot contained an unknown file version {version}")));
    }
    let snapshot = ProducerSnapshot::decode(&mut reader, version).map_err(|e| unfit(e.to_string()))?;
    let computed = crc32c::crc32c(bytes.get(PRODUCERS_AT..).unwrap_or_default());
    if snapshot.crc != computed {
        let stored = snapshot.crc;
        return Err(format!(
            "Snapshot is corrupt (CRC is no longer valid). Stored crc: {stored}. Computed crc: {computed}"
        ));
    }
    Ok(snapshot)
}
