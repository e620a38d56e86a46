//! A partition's directory as a crash or a failing disk left it: it is opened, read, written to, and opened again.
//!
//! Input: a byte of flags, then files: a byte that says which, two bytes for the base offset in its name, a part with its content.
//! With [`WRITTEN`] the segments follow each other and their batches, as far as they are whole, are numbered and have the CRC that
//! fits, as if a broker had written them; what is not whole stands behind the last segment, and only where the broker did not stop
//! in an orderly way. Then the log must not be another one after the next crash. Without the flag anything goes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use caudal_protocol::TopicPartition;
use caudal_protocol::batch::{BatchBuilder, BatchHeader, Batches, stamp_offset, stamp_producer};
use caudal_protocol::compression::Codec;
use caudal_storage::crash::CrashDisk;
use caudal_storage::disk::{Disk, OpenMode};
use caudal_storage::{AppendOrigin, Log, LogDir, LogDirConfig};

const WRITTEN: u8 = 1;
const CLEAN_SHUTDOWN: u8 = 2;
const KINDS: usize = SUFFIXES.len() + NAMED.len() + ABOVE.len();
const SUFFIXES: [&str; 5] = [".log", ".index", ".timeindex", ".txnindex", ".snapshot"];
/// Beside the segments of the partition, and in the directory above it.
const NAMED: [&str; 2] = ["leader-epoch-checkpoint", "partition.metadata"];
const ABOVE: [&str; 3] =
    ["recovery-point-offset-checkpoint", "log-start-offset-checkpoint", "cleaner-offset-checkpoint"];

pub fn run(data: &[u8]) {
    let Some((flags, mut rest)) = data.split_first() else { return };
    let disk = CrashDisk::new();
    let dir = Path::new("/d");
    let partition = TopicPartition::new("t", 0);
    disk.create_dir_all(&dir.join("t-0")).expect("a directory in memory");
    let (mut base, mut next, mut torn, mut last) = (0, 0, Vec::new(), None);
    while let Some((&[kind, high, low], tail)) = rest.split_first_chunk::<3>() {
        rest = tail;
        let Some(content) = super::take_part(&mut rest) else { break };
        let mut content = content.to_vec();
        let is_segment = usize::from(kind).is_multiple_of(KINDS);
        if flags & WRITTEN == 0 {
            base = i64::from(u16::from_be_bytes([high, low]));
        } else if is_segment {
            base = next;
            torn = write_batches(&mut content, &mut next);
        }
        put(&disk, &path_of(dir, kind, base), 0, &content);
        if is_segment && flags & (WRITTEN | CLEAN_SHUTDOWN) == WRITTEN {
            last = Some((path_of(dir, kind, base), content.len()));
        }
    }
    if let Some((path, end)) = last {
        put(&disk, &path, end, &torn);
    }
    if flags & CLEAN_SHUTDOWN != 0 {
        put(&disk, &dir.join(".kafka_cleanshutdown"), 0, b"{\"version\":0,\"brokerEpoch\":\"1\"}");
    }
    let Some(log_dir) = open(&disk) else { return };
    let Some(log) = log_dir.log(&partition) else { return };
    let end = log.log_end_offset();
    assert!(log.log_start_offset() <= end, "{log:?}");
    read_through(&log);
    let Some(offset) = append(&log_dir, &log) else { return };
    assert!(offset >= end);
    let (start, end) = (log.log_start_offset(), log.log_end_offset());
    drop((log, log_dir));
    // Whatever was there before: what was acknowledged now is there after a crash.
    let log_dir = open(&disk).expect("what was open is opened again");
    let log = log_dir.log(&partition).expect("the log that was acknowledged from");
    if flags & WRITTEN == 0 {
        return;
    }
    assert_eq!((log.log_start_offset(), log.log_end_offset()), (start, end));
    let slice = log.read(offset, 1 << 16, i64::MAX, true).expect("an acknowledged record is read");
    let batch = Batches::new(slice.to_bytes().expect("from memory")).next().expect("a batch").expect("a whole one");
    assert_eq!(batch.header.base_offset, offset);
}

/// Numbers the whole batches that a broker may have written, gives them the CRC that fits, and takes off what follows them.
fn write_batches(content: &mut Vec<u8>, next: &mut i64) -> Vec<u8> {
    let mut end = 0;
    while let Some(rest) = content.get_mut(end..)
        && let Ok(header) = BatchHeader::parse(rest)
    {
        let is_one = header.record_count > 0 && header.last_offset_delta == header.record_count - 1;
        let Some(batch) = rest.get_mut(..header.size_bytes()).filter(|_| is_one) else { break };
        stamp_offset(batch, *next, header.partition_leader_epoch);
        stamp_producer(batch, header.producer_id, header.producer_epoch, header.base_sequence);
        *next += i64::from(header.record_count);
        end += header.size_bytes();
    }
    content.split_off(end)
}

fn path_of(dir: &Path, kind: u8, base: i64) -> PathBuf {
    let kind = usize::from(kind) % KINDS;
    if let Some(suffix) = SUFFIXES.get(kind) {
        return dir.join("t-0").join(format!("{base:020}{suffix}"));
    }
    let kind = kind - SUFFIXES.len();
    NAMED.get(kind).map_or_else(|| dir.join(ABOVE[kind - NAMED.len()]), |name| dir.join("t-0").join(name))
}

fn put(disk: &CrashDisk, path: &Path, position: usize, content: &[u8]) {
    let file = disk.open(path, if position == 0 { OpenMode::Truncate } else { OpenMode::Create }).expect("in memory");
    file.write_all_at(&mut [std::io::IoSlice::new(content)], position as u64).expect("memory is not full");
}

fn open(disk: &CrashDisk) -> Option<LogDir> {
    let config = LogDirConfig { flush_threads: 1, recovery_threads: 1, ..LogDirConfig::default() };
    LogDir::open(Path::new("/d"), config, Arc::new(disk.clone())).ok().map(|(dir, _)| dir)
}

/// Reads from every place at which something begins, to the end.
fn read_through(log: &Log) {
    let mut next = log.log_start_offset();
    for _ in 0..1000 {
        if next >= log.log_end_offset() {
            return;
        }
        let Ok(slice) = log.read(next, 1 << 20, i64::MAX, true) else { return };
        let Ok(bytes) = slice.to_bytes() else { return };
        let before = next;
        for batch in Batches::new(bytes) {
            let Ok(batch) = batch else { return };
            assert!(batch.header.next_offset() > batch.header.base_offset, "{:?}", batch.header);
            next = next.max(batch.header.next_offset());
        }
        if next == before {
            return;
        }
    }
}

/// Appends a record and waits until it would be acknowledged; its offset, or `None` where it is refused.
fn append(dir: &LogDir, log: &Arc<Log>) -> Option<i64> {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.append(caudal_storage::wall_clock_ms(), None, Some(b"acknowledged"), &[]);
    let info = log.append(&builder.build().expect("nothing to compress"), 0, AppendOrigin::Client).ok()?;
    let (done, result) = mpsc::channel();
    let done = move |durable: Result<(), _>| _ = done.send(durable.is_ok());
    dir.flusher().notify_durable(log, info.last_offset + 1, Box::new(done));
    let durable = result.recv_timeout(Duration::from_secs(10)).expect("a flush ends");
    durable.then_some(info.base_offset)
}
