//! `kafka-dump-log` over what a broker of ours wrote, and over damaged copies. That its lines are Kafka's, byte for byte, is
//! shown by `conformance/files/dump.py`.

use std::path::{Path, PathBuf};

use crate::broker::{Broker, Ran, run};

/// A directory with ten records in `t`, and a group that read them.
fn written() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_in(dir.path(), &["up", "--port", "0", "--set", "group.initial.rebalance.delay.ms=0"]);
    let lines: String = (0..10).map(|n| format!("key {n}\tvälue {n}\n")).collect();
    let keyed = ["--topic", "t", "--reader-property", "parse.key=true", "--compression-codec", "zstd"];
    broker.tool_with_input("kafka-console-producer", &keyed, &lines).ok();
    let read = ["--topic", "t", "--from-beginning", "--max-messages", "10", "--group", "readers"];
    broker.tool("kafka-console-consumer", &read).ok();
    assert_eq!(broker.terminate(), Some(0));
    dir
}

fn dump(args: &[&str], files: &[&Path]) -> Ran {
    let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    let files = files.join(",");
    run(&[&["kafka-dump-log"][..], args, &["--files", &files]].concat(), "")
}

fn log(dir: &Path, partition: &str) -> PathBuf {
    dir.join("data").join(partition).join("00000000000000000000.log")
}

#[test]
fn segments_and_internal_topics() {
    let dir = written();
    let file = log(dir.path(), "t-0");
    let shallow = dump(&[], &[&file]).ok();
    let lines: Vec<&str> = shallow.lines().collect();
    assert_eq!(lines[..2], [format!("Dumping {}", file.display()).as_str(), "Log starting offset: 0"]);
    assert!(lines[2].starts_with("baseOffset: 0 lastOffset: 9 count: 10 baseSequence: 0 lastSequence: 9 producerId: "));
    assert!(lines[2].contains(" deleteHorizonMs: OptionalLong.empty position: 0 CreateTime: 1"), "{shallow}");
    assert!(lines[2].contains(" magic: 2 compresscodec: zstd crc: ") && lines[2].ends_with(" isvalid: true"));
    let deep = dump(&["--print-data-log"], &[&file]).ok();
    let last = deep.lines().last().unwrap();
    assert!(last.starts_with("| offset: 9 CreateTime: 1"), "{deep}");
    assert!(
        last.ends_with(" keySize: 5 valueSize: 8 sequence: 9 headerKeys: [] key: key 9 payload: välue 9"),
        "{deep}"
    );
    let bare = dump(&["--print-data-log", "--skip-record-metadata"], &[&file]).ok();
    assert_eq!(bare.lines().last(), Some("| key: key 9 payload: välue 9"));
    let hex = dump(&["--key-decoder-class", "DefaultDecoder", "--skip-record-metadata"], &[&file]).ok();
    assert_eq!(hex.lines().last(), Some("| key: 6b65792039 payload: välue 9"));
    let partitions = std::fs::read_dir(dir.path().join("data")).unwrap().map(|e| e.unwrap().path());
    let offsets: Vec<PathBuf> = partitions
        .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("__consumer_offsets-"))
        .map(|p| p.join("00000000000000000000.log"))
        .collect();
    let offsets: Vec<&Path> = offsets.iter().map(PathBuf::as_path).collect();
    let groups = dump(&["--offsets-decoder"], &offsets).ok();
    assert!(
        groups.contains(
            r#"key: {"type":"1","data":{"group":"readers","topic":"t","partition":0}} payload: {"version":""#
        )
    );
    assert!(groups.contains(r#""subscription":{"topics":["t"],"userData":null,"#), "{groups}");
    let metadata = dump(&["--cluster-metadata-decoder"], &[&log(dir.path(), "__cluster_metadata-0")]).ok();
    assert!(metadata.contains(r#" payload: {"type":"TOPIC_RECORD","version":0,"data":{"name":"t","topicId":""#));
    assert!(metadata.contains(r#"LeaderChange: {"version":0,"leaderId":1,"voters":[{"voterId":1}]"#), "{metadata}");
}

#[test]
fn damage_is_found() {
    let dir = written();
    let file = log(dir.path(), "t-0");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, [&good[..], &[0x7f; 40]].concat()).unwrap();
    let tail = dump(&["--deep-iteration"], &[&file]).ok();
    assert!(tail.ends_with("Found 40 invalid bytes at the end of 00000000000000000000.log\n"), "{tail}");
    std::fs::write(&file, [&good[..], &[0; 40]].concat()).unwrap();
    let zeros = dump(&["--deep-iteration"], &[&file]);
    assert!(zeros.out.contains("| offset: 9 "), "what came before is printed: {zeros:?}");
    zeros.fails(1, "Found record size 0 smaller than minimum record overhead (14) in file ");
    let mut flipped = good.clone();
    flipped[8 + 4 + 4 + 1] ^= 1;
    std::fs::write(&file, &flipped).unwrap();
    assert!(dump(&[], &[&file]).ok().ends_with(" isvalid: false\n"));
    std::fs::write(&file, &good).unwrap();
    let index = file.with_extension("index");
    std::fs::write(&index, [0, 0, 0, 3, 0, 0, 0, 0]).unwrap();
    let wrong = dump(&[], &[&index]);
    assert!(
        wrong.err.ends_with("  Index offset: 3, log offset: 9\n") && wrong.out.ends_with("offset: 3 position: 0\n")
    );
    std::fs::write(&index, [0, 0, 0, 9, 0, 0, 0, 0, 1]).unwrap();
    dump(&["--index-sanity-check"], &[&index]).fails(1, "9 bytes which is neither positive nor a multiple of 8");
    let times = file.with_extension("timeindex");
    std::fs::write(&times, [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 9]).unwrap();
    let wrong = dump(&["--verify-index-only"], &[&times]);
    assert!(
        wrong.err.contains("Found timestamp mismatch in :")
            && wrong.err.contains("  Index timestamp: 5, log timestamp: 1")
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let there = |name: &str| {
        std::fs::write(dir.path().join(name), b"").unwrap();
        dir.path().join(name)
    };
    dump(&[], &[&dir.path().join("00000000000000000000.log")]).fails(1, "failed to read ");
    dump(&[], &[&there("one.log")]).fails(1, "its name does not begin with the offset of a segment");
    let unknown = dump(&[], &[&there("partition.metadata")]);
    assert_eq!((unknown.code, unknown.err.starts_with("Ignoring unknown file ")), (Some(0), true), "{unknown:?}");
    let class = ["--value-decoder-class", "com.example.Decoder"];
    dump(&class, &[&there("00000000000000000000.log")]).fails(1, "com.example.Decoder cannot be loaded");
    let empty = dump(&[], &[&there("00000000000000000000.index")]).ok();
    assert!(empty.ends_with("00000000000000000000.index is empty.\n"), "{empty}");
    run(&["kafka-dump-log"], "").fails(1, "This tool helps to parse a log file");
    run(&["kafka-dump-log", "--print-data-log"], "").fails(1, "Missing required argument \"[files]\"");
}
