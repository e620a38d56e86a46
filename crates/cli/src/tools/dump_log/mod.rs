//! `kafka-dump-log`: what is in the files of a partition: batches and records of segments and snapshots, indexes, the
//! states of producers.
//!
//! The lines are Kafka's, byte for byte. Two things differ: a file that cannot be read any further ends the tool with one
//! sentence, and `DefaultDecoder` prints bytes as hexadecimal digits where the original prints the address of an array.

mod decode;
mod index;
pub mod json;
mod log_file;
mod remote;
mod segment;

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::options::{Opt, Parsed, flag, value};
use super::{Stop, Tool, require, tell};
use decode::Decoder;
use index::{IndexErrors, IndexMode};
use segment::{Gaps, SegmentOptions};

const OPTIONS: &[Opt] = &[
    flag(
        "print-data-log",
        "If set, printing the messages content when dumping data logs. Automatically set if any decoder option is specified.",
    ),
    flag("verify-index-only", "If set, just verify the index log without printing its content."),
    flag(
        "index-sanity-check",
        "If set, just checks the index sanity without printing its content. This is the same check that is executed on broker startup to determine if an index needs rebuilding or not.",
    ),
    value("files", "file1, file2, ...", "REQUIRED: The comma separated list of data and index log files to be dumped."),
    value("max-message-size", "size", "Size of largest message.").int().default("5242880"),
    value(
        "max-bytes",
        "size",
        "Limit the amount of total batches read in bytes avoiding reading the whole .log file(s).",
    )
    .int()
    .default("2147483647"),
    flag(
        "deep-iteration",
        "If set, uses deep instead of shallow iteration. Automatically set if print-data-log is enabled.",
    ),
    value("value-decoder-class", "", decode::VALUE_CLASSES).optional().default(decode::STRING_DECODER),
    value("key-decoder-class", "", decode::KEY_CLASSES).optional().default(decode::STRING_DECODER),
    flag("offsets-decoder", "If set, log data will be parsed as offset data from the __consumer_offsets topic."),
    flag(
        "transaction-log-decoder",
        "If set, log data will be parsed as transaction metadata from the __transaction_state topic.",
    ),
    flag("cluster-metadata-decoder", "If set, log data will be parsed as cluster metadata records."),
    flag(
        "remote-log-metadata-decoder",
        "If set, log data will be parsed as TopicBasedRemoteLogMetadataManager (RLMM) metadata records. Instead, the value-decoder-class option can be used if a custom RLMM implementation is configured.",
    ),
    flag(
        "share-group-state-decoder",
        "If set, log data will be parsed as share group state data from the __share_group_state topic.",
    ),
    flag("skip-record-metadata", "Skip metadata when printing records. This flag also skips control records."),
    flag("help", "Print usage information."),
    flag("version", "Display Kafka version."),
];

/// Any of these prints the records' contents.
const PRINTING: [&str; 8] = [
    "print-data-log",
    "offsets-decoder",
    "transaction-log-decoder",
    "cluster-metadata-decoder",
    "remote-log-metadata-decoder",
    "value-decoder-class",
    "key-decoder-class",
    "share-group-state-decoder",
];

pub static TOOL: Tool = Tool {
    name: "kafka-dump-log",
    about: "This tool helps to parse a log file and dump its contents to the console, useful for debugging a seemingly corrupt log segment.",
    options: OPTIONS,
    run,
};

/// Standard output, in large pieces.
type Out<'a> = BufWriter<std::io::StdoutLock<'a>>;

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args)?;
    tool.help_or_version(&parsed)?;
    require(&parsed, &["files"])?;
    let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let dumped = dump(&parsed, &mut out);
    // What was found up to a mistake is printed before it.
    out.flush()?;
    dumped
}

fn dump(parsed: &Parsed, out: &mut Out<'_>) -> Result<(), Stop> {
    let is_printing = PRINTING.iter().any(|o| parsed.has(o));
    let max_bytes = parsed.int("max-bytes")?.unwrap_or(i32::MAX);
    let segments = SegmentOptions {
        is_printing,
        is_deep: is_printing || parsed.has("deep-iteration"),
        skips_metadata: parsed.has("skip-record-metadata"),
        max_bytes: u64::try_from(max_bytes).map_err(|_| Stop::Failed(format!("Invalid size: {max_bytes}")))?,
        decoder: Decoder::choose(parsed)?,
    };
    let mode = IndexMode {
        checks_sanity: parsed.has("index-sanity-check"),
        verifies_only: parsed.has("verify-index-only"),
        max_message_bytes: parsed.int("max-message-size")?.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
    };
    let (mut gaps, mut errors) = (Gaps::default(), IndexErrors::default());
    for name in parsed.text("files")?.unwrap_or_default().split(',') {
        let file = normal(name);
        writeln!(out, "Dumping {}", file.display())?;
        match file.extension().and_then(|e| e.to_str()) {
            Some("log" | "checkpoint") => segment::dump(&file, &segments, &mut gaps, out)?,
            Some("index") => index::dump_offsets(&file, &mode, &mut errors, out)?,
            Some("timeindex") => index::dump_times(&file, &mode, &mut errors, out)?,
            Some("txnindex") => index::dump_aborted(&file, out)?,
            Some("snapshot") => index::dump_producers(&file, out)?,
            _ => {
                out.flush()?;
                tell!("Ignoring unknown file {}", file.display());
            }
        }
    }
    out.flush()?;
    errors.tell();
    gaps.tell();
    Ok(())
}

/// The path as `java.io.File` writes it: single slashes, none at the end.
fn normal(name: &str) -> PathBuf {
    let mut text = String::with_capacity(name.len());
    name.chars().filter(|c| *c != '\0').for_each(|c| {
        if c != '/' || !text.ends_with('/') {
            text.push(c);
        }
    });
    if text.len() > 1 && text.ends_with('/') {
        text.pop();
    }
    PathBuf::from(text)
}

/// The path from the root on, for the complaints at the end.
fn absolute(file: &Path) -> String {
    match std::env::current_dir() {
        Ok(dir) if file.is_relative() => dir.join(file).display().to_string(),
        _ => file.display().to_string(),
    }
}

/// The offset that a file's name begins with.
fn base_offset(file: &Path) -> Result<i64, Stop> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let digits = name.split('.').next().unwrap_or_default();
    digits.parse().map_err(|_| {
        Stop::Failed(format!("failed to read {}: its name does not begin with the offset of a segment", file.display()))
    })
}

/// Why a file cannot be read, in one sentence.
fn unreadable(file: &Path, reason: impl std::fmt::Display) -> Stop {
    Stop::Failed(format!("failed to read {}: {reason}", file.display()))
}
