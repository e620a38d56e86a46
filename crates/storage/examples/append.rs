//! What an append costs beside a bare loop that checks and writes the same bytes:
//! `cargo run --release -p caudal-storage --example append -- DIR [MEGABYTES] [BATCH_BYTES] [CODEC]`

use std::error::Error;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use caudal_protocol::TopicPartition;
use caudal_protocol::batch::{self, BatchBuilder};
use caudal_protocol::compression::Codec;
use caudal_storage::disk::{Disk, OpenMode};
use caudal_storage::{AppendOrigin, LogConfig, LogDir, LogDirConfig, RealDisk, TopicLog};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("a directory is needed")?;
    let megabytes: usize = args.next().map_or(Ok(1024), |arg| arg.parse())?;
    let batch_bytes: usize = args.next().map_or(Ok(16 << 10), |arg| arg.parse())?;
    let codec = args.next().and_then(|name| Codec::from_name(&name)).unwrap_or_default();
    // Words, so that codecs find about what they find in text.
    let value = |n: i64| -> Vec<u8> {
        let word =
            |at: i64| format!("{:x} ", (n * 131 + at).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed()) >> 52);
        (0..).flat_map(|at| word(at).into_bytes()).take(1024).collect()
    };
    let mut builder = BatchBuilder::new(codec);
    let mut n = 0;
    while builder.uncompressed_size_bytes() < batch_bytes {
        builder.append(1_700_000_000_000 + n, Some(format!("key-{n}").as_bytes()), Some(&value(n)), &[(b"h", None)]);
        n += 1;
    }
    let uncompressed = builder.uncompressed_size_bytes();
    let bytes = builder.build()?;
    let count = (megabytes << 20) / bytes.len();
    println!("{count} batches of {} bytes, {uncompressed} uncompressed", bytes.len());

    std::fs::create_dir_all(&dir)?;
    // In turns, since neighbours on the machine and its page cache disturb both alike.
    for _ in 0..3 {
        bare_loop(Path::new(&dir), &bytes, count)?;
        log(Path::new(&dir), &bytes, count)?;
    }
    Ok(())
}

fn bare_loop(dir: &Path, bytes: &[u8], count: usize) -> Result<(), Box<dyn Error>> {
    let path = dir.join("bare");
    let file = RealDisk.open(&path, OpenMode::Truncate)?;
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    for n in 0..count {
        batch::check_crc(bytes)?;
        file.write_all_at(&mut [IoSlice::new(bytes)], (n * bytes.len()) as u64)?;
    }
    report("bare loop", count * bytes.len(), begin, cpu);
    Ok(RealDisk.remove_file(&path)?)
}

fn log(dir: &Path, bytes: &[u8], count: usize) -> Result<(), Box<dyn Error>> {
    let config = LogDirConfig { flush_before_ack: false, ..LogDirConfig::default() };
    let (logs, _) = LogDir::open(&dir.join("logs"), config, Arc::new(RealDisk))?;
    let topic_partition = TopicPartition::new("bench", 0);
    let log = logs.create_log(TopicLog {
        topic_partition: topic_partition.clone(),
        topic_id: None,
        config: LogConfig::default(),
    })?;
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    for _ in 0..count {
        log.append(bytes, 0, AppendOrigin::Client)?;
    }
    report("log", count * bytes.len(), begin, cpu);
    logs.delete_log(&topic_partition)?;
    Ok(())
}

fn report(what: &str, bytes: usize, begin: Instant, cpu_before: f64) {
    let gigabytes = bytes as f64 / 1e9;
    let cpu = cpu_seconds() - cpu_before;
    println!("{what}: {:.2} GB/s, {:.3} CPU s/GB", gigabytes / begin.elapsed().as_secs_f64(), cpu / gigabytes);
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
