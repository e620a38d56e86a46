//! What operators use: log lines, the doctor, metrics of a broker that `caudal up` started.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::broker::{Broker, CAUDAL, run, signal, wait};

#[test]
fn log_lines_as_objects() {
    let data = tempfile::tempdir().unwrap();
    let mut child = Command::new(CAUDAL)
        .args(["up", "--port", "0", "--log-format", "json", "--set", "caudal.slow.request.ms=0", "--data-dir"])
        .arg(data.path().join("d"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut ready).unwrap();
    let of = |name: &str| ready.split(name).nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    let (kafka, http) = (of("kafka="), of("http="));
    run(&["topic", "create", "t", "--server", &kafka], "").ok();
    let mut page = String::new();
    let mut stream = TcpStream::connect(http).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.contains("kafka_topic_partitions{topic=\"t\"} 1\n"), "{page:.500}");
    signal(&child, "TERM");
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(wait(&mut child), Some(0));
    let first = &lines[0];
    assert_eq!((&first["level"], &first["target"]), (&"INFO".into(), &"caudal_broker::broker".into()), "{first}");
    let slow = lines.iter().find(|line| line["api"] == "CreateTopics").unwrap();
    assert_eq!((&slow["topics"], slow["local_ms"].is_u64()), (&1.into(), true), "{slow}");
    assert!(slow["message"].as_str().unwrap().contains("caudal.slow.request.ms=0"), "{slow}");
}

#[test]
fn levels_that_are_none_are_refused() {
    run(&["topic", "list", "--log", "verbose"], "")
        .fails(2, "'verbose' is none of off, error, warn, info, debug, trace");
}

fn doctor(args: &[&str]) -> (Option<i32>, Value) {
    let ran = run(&[&["doctor", "--json"], args].concat(), "");
    let found = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    (ran.code, found)
}

fn texts(found: &Value, level: &str) -> Vec<String> {
    let findings = found["findings"].as_array().unwrap().iter().filter(|f| f["level"] == level);
    findings.map(|f| format!("{}: {} -> {}", f["check"], f["text"], f["fix"])).collect()
}

#[test]
fn the_doctor_looks_at_a_broker() {
    let broker = Broker::start();
    broker.caudal(&["produce", "t"], "one\ntwo\n").ok();
    broker.caudal(&["consume", "t", "-b", "-n", "1", "-g", "left behind"], "").ok();
    // Beneath the sources, which are not in a directory that systems clear.
    let data = format!("{}/target-of-no-broker", env!("CARGO_MANIFEST_DIR"));
    let (_, found) = doctor(&["--server", &broker.address, "--data-dir", &data]);
    let (notes, ok) = (texts(&found, "note"), texts(&found, "ok"));
    assert!(notes.iter().any(|t| t.contains("left behind (1 records behind)")), "{notes:?}");
    for check in ["partitions", "transactions", "broker", "clock", "listeners"] {
        assert!(ok.iter().any(|t| t.starts_with(&format!("\"{check}\":"))), "{check}: {found:#}");
    }
    assert!(!std::path::Path::new(&data).exists(), "the doctor made a directory");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.properties");
    std::fs::write(&file, format!("node.id=1\nlisteners=PLAINTEXT://{}\nlog.dirs={data}\n", broker.address)).unwrap();
    let (_, found) = doctor(&[file.to_str().unwrap()]);
    assert!(
        texts(&found, "ok").iter().any(|t| t.starts_with("\"broker\":") && t.contains(&broker.address)),
        "{found:#}"
    );
}

/// Reads to the damaged record, and behind it.
fn reads_all_but_the_second(broker: &Broker, said: &str) {
    // Kafka's tool says so and ends with 0 all the same.
    for (read, code) in [
        (broker.caudal(&["consume", "t", "-b", "-n", "3"], ""), 1),
        (broker.tool("kafka-console-consumer", &["--topic", "t", "--from-beginning", "--max-messages", "3"]), 0),
    ] {
        assert_eq!(read.out, "one\n", "{read:?}");
        read.fails(code, said);
    }
    let behind = ["--topic", "t", "--partition", "0", "--offset", "2", "--max-messages", "1"];
    assert_eq!(broker.tool("kafka-console-consumer", &behind).ok(), "three\n");
}

#[test]
fn damaged_records_are_told_and_cost_no_others() {
    let data = tempfile::tempdir().unwrap();
    // The doctor is told of the port by the broker, which knows of no other than it was given.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listener = format!("caudal.http.listeners=http://127.0.0.1:{port}");
    let up = ["up", "--port", "0", "--set", &listener];
    let broker = Broker::start_in(data.path(), &up);
    for record in ["one\n", "two\n", "three\n"] {
        broker.caudal(&["produce", "t"], record).ok();
    }
    let dir = data.path().join("data");
    let health = |broker: &Broker| {
        let (_, found) = doctor(&["--server", &broker.address, "--data-dir", dir.to_str().unwrap()]);
        let of = |level| texts(&found, level).into_iter().filter(|t| t.contains("\"health\":")).collect::<Vec<_>>();
        (of("problem"), of("ok").len())
    };
    let (problems, well) = health(&broker);
    assert_eq!((problems.len(), well), (0, 1), "{problems:?}");
    assert_eq!(broker.terminate(), Some(0));
    let log = dir.join("t-0/00000000000000000000.log");
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    // After a stop in good order nothing is scanned, so clients find out by themselves.
    let broker = Broker::start_in(data.path(), &up);
    reads_all_but_the_second(&broker, "failed to read the record batch at offset 1: its CRC-32C is");
    drop(broker);
    // What a crash leaves that came before the first checkpoint.
    std::fs::remove_file(dir.join("recovery-point-offset-checkpoint")).unwrap();
    let broker = Broker::start_in(data.path(), &up);
    reads_all_but_the_second(
        &broker,
        "failed to read t-0 at offset 1: the broker says that its records there are damaged",
    );
    let (problems, well) = health(&broker);
    let is_told = problems.iter().any(|t| t.contains("partitions: t-0 has damaged records: offsets 1 to 1"));
    assert!(is_told && problems.len() == 1 && well == 0, "{problems:?} {well:?}");
    // Whoever needs them no more has an end of it.
    let deleted = format!("{}/deleted.json", data.path().display());
    std::fs::write(&deleted, r#"{"partitions": [{"topic": "t", "partition": 0, "offset": 2}], "version": 1}"#).unwrap();
    broker.tool("kafka-delete-records", &["--offset-json-file", &deleted]).ok();
    assert_eq!(health(&broker), (Vec::new(), 1));
}

#[test]
fn the_doctor_looks_at_settings() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.properties");
    let text = "node.id=1\nlisteners=PLAINTEXT://0.0.0.0:9092\nadvertised.listeners=PLAINTEXT://localhost:9092\n\
                num.partitons=3\nlog.dirs=/tmp/caudal-doctor-test\ncaudal.flush.before.ack=false\nnum.io.threads=3\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let (code, found) = doctor(&[file, "--offline"]);
    assert_eq!(code, Some(1));
    let (problems, notes) = (texts(&found, "problem"), texts(&found, "note"));
    for said in
        ["num.partitons", "0.0.0.0:9092 (Kafka clients) is refused", "their own machine", "/tmp/caudal-doctor-test"]
    {
        assert!(problems.iter().any(|t| t.contains(said)), "{said}: {problems:#?}");
    }
    for said in ["caudal.flush.before.ack=false", "num.io.threads"] {
        assert!(notes.iter().any(|t| t.contains(said)), "{said}: {notes:#?}");
    }
    let log_dir = dir.path().join("data");
    let segment = log_dir.join("t-1/00000000000000000000.log");
    std::fs::create_dir_all(&segment).unwrap();
    std::fs::write(log_dir.join("t-1/00000000000000000007.log"), "").unwrap();
    std::fs::write(log_dir.join("t-0"), "").unwrap();
    let (_, found) = doctor(&[file, "--offline", "--set", &format!("log.dirs={}", log_dir.display())]);
    let bearing: Vec<String> = texts(&found, "problem").into_iter().filter(|t| t.contains("bears the name")).collect();
    assert!(bearing.len() == 1 && bearing[0].contains("/t-0"), "{found:#}");
    let problems = texts(&found, "problem");
    let damaged: Vec<&String> = problems.iter().filter(|t| t.contains("in place of a segment")).collect();
    assert!(damaged.len() == 1 && damaged[0].contains(&segment.display().to_string()), "{found:#}");
    let (code, found) = doctor(&[file, "--offline", "--set", "num.partitions=many"]);
    assert_eq!(code, Some(1));
    assert!(texts(&found, "problem").iter().any(|t| t.contains("num.partitions=many")), "{found:#}");
    run(&["doctor", "--offline", file], "").fails(1, "problem(s), ");
}

#[test]
fn the_doctor_looks_at_all_log_directories() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let properties =
        |cluster: &str, id: &str| format!("version=1\nnode.id=1\ncluster.id={cluster}\ndirectory.id={id}\n");
    for (name, cluster, id) in [
        ("a", "one", "AAAAAAAAAAAAAAAAAAAAZA"),
        ("b", "one", "AAAAAAAAAAAAAAAAAAAAZA"),
        ("c", "two", "AAAAAAAAAAAAAAAAAAAAZQ"),
    ] {
        std::fs::create_dir(path(name)).unwrap();
        std::fs::write(format!("{}/meta.properties", path(name)), properties(cluster, id)).unwrap();
    }
    let dirs = ["a", "b", "c", "d"].map(path);
    let file = path("server.properties");
    std::fs::write(&file, format!("node.id=1\nlisteners=PLAINTEXT://127.0.0.1:9092\nlog.dirs={}\n", dirs.join(",")))
        .unwrap();
    let (code, found) = doctor(&[&file, "--offline"]);
    let problems = texts(&found, "problem");
    assert_eq!(code, Some(1));
    let [a, b, c, d] = dirs;
    for said in [
        format!("{a} and {b} have the same directory.id"),
        format!("{a} and {c} belong to different nodes or clusters"),
        format!("{d} is not there"),
    ] {
        assert!(problems.iter().any(|t| t.contains(&said)), "{said}: {problems:#?}");
    }
    assert!(!problems.iter().any(|t| t.contains(&format!("{a} and {b} belong"))), "{problems:#?}");
}

#[test]
fn a_topic_that_is_missing_is_told_at_once() {
    let broker = Broker::start();
    let produced = broker.caudal(&["produce", "new"], "one\n");
    assert!(produced.err.starts_with("There is no topic new: the broker makes it"), "{produced:?}");
    assert!(produced.err.ends_with("1 record(s) written to new\n"), "{produced:?}");
    drop(broker);
    let data = tempfile::tempdir().unwrap();
    let broker = Broker::start_in(data.path(), &["up", "--port", "0", "--set", "auto.create.topics.enable=false"]);
    broker.caudal(&["topic", "create", "score"], "").ok();
    let refused = broker.caudal(&["produce", "scores"], "one\n");
    assert!(refused.err.contains("`caudal topic create scores` makes it"), "{refused:?}");
    refused.fails(1, "topic 'scores' does not exist; did you mean 'score'?");
    // Kafka's tool waits for it.
    for (group, told) in [
        (&["--timeout-ms", "4000"][..], "topic 'scores' does not exist"),
        (&["--timeout-ms", "4000", "--group", "g"], "failed to read topic 'scores': it does not exist"),
    ] {
        let waited = broker.tool("kafka-console-consumer", &[&["--topic", "scores"], group].concat());
        assert!(waited.err.contains(&format!("Still trying: {told}")), "{waited:?}");
    }
}
