use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::broker::{Broker, CAUDAL, run, signal, wait};

#[test]
fn topics_records_and_groups() {
    let broker = Broker::start();
    assert_eq!(broker.caudal(&["topic", "create", "t", "-p", "2"], "").ok(), "Created t with 2 partition(s).\n");
    let produced = broker.caudal(&["produce", "t", "-k", ":"], "a:1\nb:2\n");
    assert_eq!(produced.err, "2 record(s) written to t\n");
    let listed = broker.caudal(&["topic", "list"], "").ok();
    assert_eq!(listed, "TOPIC  PARTITIONS  REPLICAS  RECORDS\nt               2         1        2\n");
    let json: serde_json::Value =
        serde_json::from_str(&broker.caudal(&["topic", "list", "-o", "json"], "").ok()).unwrap();
    assert_eq!(json, serde_json::json!([{"topic": "t", "partitions": 2, "replicas": 1, "records": 2}]));
    let shown = broker.caudal(&["consume", "t", "-b", "-n", "2", "-o", "json"], "").ok();
    let keys = shown.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["key"].clone());
    let mut keys: Vec<serde_json::Value> = keys.collect();
    keys.sort_by_key(ToString::to_string);
    assert_eq!(keys, ["a", "b"]);
    assert_eq!(broker.caudal(&["consume", "t", "-b", "-n", "2", "-g", "g"], "").ok().lines().count(), 2);
    assert!(broker.caudal(&["group", "list"], "").ok().contains("g      Empty"));
    assert!(broker.caudal(&["group", "describe", "g"], "").ok().starts_with("g: Empty, 0 member(s)\n"));
    broker.caudal(&["group", "reset", "g", "--earliest", "--execute"], "").ok();
    broker.caudal(&["group", "delete", "g"], "").ok();
    assert!(broker.caudal(&["topic", "config", "t", "--set", "retention.ms=5"], "").ok().contains("retention.ms"));
    broker.caudal(&["topic", "alter", "t", "-p", "3"], "").ok();
    assert_eq!(broker.caudal(&["topic", "delete", "t"], "").ok(), "Deleted t.\n");
    let json = |args: &[&str]| broker.caudal(&[args, &["-o", "json"]].concat(), "one\n").ok();
    assert_eq!(json(&["topic", "create", "t"]), "{\"topic\":\"t\",\"partitions\":1,\"replicas\":1}\n");
    assert_eq!(json(&["produce", "t"]), "{\"topic\":\"t\",\"records\":1}\n");
    assert_eq!(json(&["topic", "alter", "t", "-p", "2"]), "{\"topic\":\"t\",\"partitions\":2}\n");
    assert_eq!(json(&["topic", "describe"]).matches("\"topic\": \"t\"").count(), 2);
    assert_eq!(json(&["topic", "delete", "t"]), "{\"deleted\":\"t\"}\n");
    assert_eq!((json(&["topic", "list"]), json(&["group", "list"])), ("[]\n".to_owned(), "[]\n".to_owned()));
    assert_eq!(
        broker.caudal(&["topic", "list"], "").err,
        "There are no topics; `caudal topic create NAME` makes one.\n"
    );
}

/// `caudal consume t | head -1`, where no record comes after those that were shown.
#[test]
fn consume_ends_when_its_reader_goes() {
    let broker = Broker::start();
    broker.caudal(&["produce", "t"], "one\ntwo\n").ok();
    let mut consumer = Command::new(CAUDAL)
        .args(["consume", "t", "-b", "--server", &broker.address])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(consumer.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!((first.as_str(), wait(&mut consumer)), ("one\n", Some(0)));
}

#[test]
fn errors_say_what_to_do() {
    let broker = Broker::start();
    broker.caudal(&["topic", "create", "players"], "").ok();
    broker
        .caudal(&["topic", "describe", "playrs"], "")
        .fails(1, "topic 'playrs' does not exist; did you mean 'players'?");
    broker.caudal(&["consume", "playrs"], "").fails(1, "did you mean 'players'?");
    run(&["topic", "list", "--server", "127.0.0.1:1"], "").fails(1, "`caudal up` starts a broker");
    run(&["topic", "lst"], "").fails(2, "similar");
    if cfg!(not(feature = "engine")) {
        run(&["sql", "-e", "SELECT 1", "--any"], "").fails(2, "built without the engine");
    }
    run(&["kafka-topic.sh", "--list"], "").fails(1, "did you mean kafka-topics?");
    run(&["kafka-server-stop.sh"], "").fails(1, "`kill PID` (SIGTERM) stops a broker");
    run(&["up", "--set", "num.partitons=3"], "")
        .fails(1, "--set: unknown key num.partitons; did you mean num.partitions?");
}

#[test]
fn links_and_completions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bin");
    let said = run(&["install-tools", path.to_str().unwrap()], "").ok();
    assert!(said.contains("export PATH="), "{said}");
    let ran = Command::new(path.join("kafka-storage.sh")).arg("random-uuid").output().unwrap();
    assert_eq!(crate::broker::ran(&ran).ok().trim().len(), 22);
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell], "").ok();
        assert!(script.contains("under-replicated-partitions") && script.contains("install-tools"), "{shell}");
    }
}

#[test]
fn a_broker_that_goes_away_is_waited_for_aloud() {
    let broker = Broker::start();
    broker.caudal(&["topic", "create", "t"], "").ok();
    let mut child = Command::new(CAUDAL)
        .args(["consume", "t", "--group", "g", "--server", &broker.address])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !broker.caudal(&["group", "describe", "g"], "").out.contains("Stable") {
        assert!(Instant::now() < deadline, "the consumer does not join");
    }
    let address = broker.address.clone();
    broker.terminate();
    let mut said = || lines.next().unwrap().unwrap();
    assert!(said().starts_with(&format!("Waiting for a broker: broker {address} is not reachable")));
    assert_eq!(said(), "`caudal up` starts one; Ctrl-C ends.");
    signal(&child, "INT");
    assert_eq!(wait(&mut child), Some(130));
}
