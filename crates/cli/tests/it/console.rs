use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::broker::{Broker, CAUDAL, ran, signal, wait};

#[test]
fn lines_go_in_and_come_out() {
    let broker = Broker::start();
    let lines: String = (0..1000).map(|n| format!("línea {n} äöü\n")).collect();
    let produced = broker.tool_with_input("kafka-console-producer", &["--topic", "t"], &lines);
    assert_eq!(produced.ok(), "");
    let ran = broker.tool("kafka-console-consumer", &["--topic", "t", "--from-beginning", "--max-messages", "1000"]);
    assert_eq!(ran.err, "Processed a total of 1000 messages\n");
    assert_eq!(ran.ok(), lines);
    assert_eq!(broker.tool("kafka-get-offsets", &["--topic", "t"]).ok(), "t:0:1000\n");
    assert_eq!(broker.tool("kafka-get-offsets", &["--topic", "t", "--time", "earliest"]).ok(), "t:0:0\n");
    broker.tool("kafka-get-offsets", &["--topic", "nope"]).fails(1, "Could not match any topic-partitions");
}

#[test]
fn keys_headers_and_nulls() {
    let broker = Broker::start();
    let reader = ["--topic", "t", "--reader-property", "parse.key=true", "--reader-property", "parse.headers=true"];
    let reader = [&reader[..], &["--reader-property", "null.marker=NULL"]].concat();
    broker.tool_with_input("kafka-console-producer", &reader, "h1:v1,h1:v2\tk1\tone\nNULL\tk2\tNULL\n").ok();
    let print = ["headers", "key", "partition", "offset", "timestamp"].map(|p| format!("print.{p}=true"));
    let mut args = vec!["--topic", "t", "--from-beginning", "--timeout-ms", "500"];
    args.extend(print.iter().flat_map(|p| ["--formatter-property", p.as_str()]));
    let shown = broker.tool("kafka-console-consumer", &args).ok();
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("CreateTime:1"), "{shown}");
    assert!(lines[0].ends_with("\tPartition:0\tOffset:0\th1:v1,h1:v2\tk1\tone"), "{shown}");
    assert!(lines[1].ends_with("\tPartition:0\tOffset:1\tNO_HEADERS\tk2\tnull"), "{shown}");
    broker
        .tool_with_input("kafka-console-producer", &reader, "no tab\n")
        .fails(1, "No headers delimiter found on line number 1");
    let long = ["--topic", "t", "--partition", "0", "--offset", "0", "--timeout-ms", "500", "--value-deserializer"];
    let long = [&long[..], &["org.apache.kafka.common.serialization.LongDeserializer"]].concat();
    broker.tool("kafka-console-consumer", &long).fails(1, "Size of data received by LongDeserializer is not 8");
}

#[test]
fn codecs_and_old_names() {
    let broker = Broker::start();
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let args = ["--topic", codec, "--compression-codec", codec, "--sync"];
        broker.tool_with_input("kafka-console-producer", &args, "one\ntwo\n").ok();
        let args = ["--topic", codec, "--from-beginning", "--max-messages", "2", "--formatter"];
        let args = [&args[..], &["kafka.tools.DefaultMessageFormatter"]].concat();
        assert_eq!(broker.tool("kafka-console-consumer", &args).ok(), "one\ntwo\n", "{codec}");
    }
    let args = ["--include", "gz.*|lz4", "--from-beginning", "--max-messages", "4"];
    assert_eq!(broker.tool("kafka-console-consumer", &args).ok().lines().count(), 4);
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let broker = Broker::start();
    let lines: String = (0..20_000).map(|n| format!("{n}\n")).collect();
    broker.tool_with_input("kafka-console-producer", &["--topic", "t"], &lines).ok();
    let mut child = Command::new(CAUDAL)
        .args(["kafka-console-consumer", "--bootstrap-server", &broker.address, "--topic", "t", "--from-beginning"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "0\n");
    drop(out);
    // What comes next finds nobody reading.
    broker.tool_with_input("kafka-console-producer", &["--topic", "t"], &lines).ok();
    let ran = ran(&child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.starts_with("Processed a total of"), "{ran:?}");
}

#[test]
fn an_interrupt_ends_at_once_with_one_line() {
    let broker = Broker::start();
    broker.tool_with_input("kafka-console-producer", &["--topic", "t"], "one\n").ok();
    let mut child = Command::new(CAUDAL)
        .args(["kafka-console-consumer", "--bootstrap-server", &broker.address, "--topic", "t", "--from-beginning"])
        .args(["--group", "g"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    signal(&child, "INT");
    assert_eq!(wait(&mut child), Some(130));
    let ran = ran(&child.wait_with_output().unwrap());
    assert_eq!(ran.err, "Processed a total of 1 messages\n");
    let described = broker.tool("kafka-consumer-groups", &["--describe", "--group", "g"]).ok();
    assert!(described.contains(" 1               1               0 "), "{described}");
}

#[test]
fn an_interrupted_producer_sends_what_was_typed() {
    let broker = Broker::start();
    let mut child = Command::new(CAUDAL)
        .args(["kafka-console-producer", "--bootstrap-server", &broker.address, "--topic", "t", "--timeout", "60000"])
        .args(["--command-property", "delivery.timeout.ms=120000"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    broker.tool("kafka-topics", &["--create", "--topic", "t", "--if-not-exists"]).ok();
    // The first line fills a batch and is sent at once; the second is read with it and lingers.
    input.write_all(format!("{}\ntyped\n", "x".repeat(20_000)).as_bytes()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while broker.tool("kafka-get-offsets", &["--topic", "t"]).ok() != "t:0:1\n" {
        assert!(Instant::now() < deadline, "the first line did not arrive");
    }
    signal(&child, "INT");
    assert_eq!(wait(&mut child), Some(130));
    let args = ["--topic", "t", "--from-beginning", "--max-messages", "2", "--timeout-ms", "5000"];
    assert!(broker.tool("kafka-console-consumer", &args).ok().ends_with("\ntyped\n"));
}

#[test]
fn a_topic_that_cannot_be_is_told_at_once() {
    let data = tempfile::tempdir().unwrap();
    let broker = Broker::start_in(data.path(), &["up", "--port", "0", "--set", "auto.create.topics.enable=false"]);
    for more in [&[][..], &["--partition", "0"], &["--partition", "0", "--offset", "5"], &["--group", "g"]] {
        let args = [&["--topic", "no/name", "--timeout-ms", "60000"], more].concat();
        let ran = broker.tool("kafka-console-consumer", &args);
        let (error, rest) = ran.err.split_once('\n').unwrap();
        let expected = "ERROR Error processing message, terminating consumer process: \
                        org.apache.kafka.common.errors.InvalidTopicException: Invalid topics: [no/name]";
        assert_eq!(error, expected);
        // Exit code 0, as of the original.
        assert_eq!((ran.out.as_str(), rest, ran.code), ("", "Processed a total of 0 messages\n", Some(0)));
    }
    let ran = broker.tool_with_input("kafka-console-producer", &["--topic", "nope", "--max-block-ms", "300"], "x\n");
    let why = " ms: it does not exist; create it or check its name (UNKNOWN_TOPIC_OR_PARTITION)\n";
    assert!(ran.err.starts_with("failed to find topic 'nope' within ") && ran.err.ends_with(why), "{}", ran.err);
    assert_eq!(ran.code, Some(1));
}
