//! The tools that measure and those that verify: their lines are those that programs around Kafka read.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use regex::Regex;
use serde_json::Value;

use crate::broker::{Broker, CAUDAL, ran, run, signal};

fn assert_matches(pattern: &str, text: &str) {
    assert!(Regex::new(&format!("^{pattern}\n$")).unwrap().is_match(text), "{pattern} in {text}");
}

const TOTAL: &str = r"\d+ records sent, \d+\.\d{6} records/sec \(\d+\.\d\d MB/sec\), \d+\.\d\d ms avg latency, \d+\.\d\d ms max latency, \d+ ms 50th, \d+ ms 95th, \d+ ms 99th, \d+ ms 99\.9th\.";

#[test]
fn producer_and_consumer() {
    let broker = Broker::start();
    let base = ["--topic", "t", "--num-records", "5000", "--throughput", "-1"];
    let sent = broker.tool("kafka-producer-perf-test", &[&base[..], &["--record-size", "100"]].concat()).ok();
    assert_matches(TOTAL, &sent);
    assert!(sent.starts_with("5000 records sent"), "{sent}");
    let warm = ["--payload-monotonic", "--warmup-records", "1000", "--producer-props", "acks=1", "linger.ms=1"];
    let sent = broker.tool("kafka-producer-perf-test", &[&base[..], &warm].concat()).ok();
    let mut lines = sent.lines();
    assert!(lines.next().unwrap().starts_with("Option --producer-props has been deprecated"), "{sent}");
    assert!(lines.next().unwrap().starts_with("Warmup first 1000 records."), "{sent}");
    assert_matches(TOTAL, &format!("{}\n", lines.next().unwrap()));
    assert!(lines.next().unwrap().starts_with("4000 steady state records sent, "), "{sent}");
    assert_eq!(broker.tool("kafka-get-offsets", &["--topic", "t"]).ok(), "t:0:10000\n");
    let base = ["--topic", "t", "--num-records", "10000"];
    let read = broker.tool("kafka-consumer-perf-test", &base).ok();
    let (header, line) = read.split_once('\n').unwrap();
    assert_eq!(
        header,
        "start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, rebalance.time.ms, fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec"
    );
    let time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d:\d{3}";
    assert_matches(
        &format!(r"{time}, {time}, 0\.49\d\d, \d+\.\d{{4}}, 10000, \d+\.\d{{4}}, \d+, \d+, \d+\.\d{{4}}, \d+\.\d{{4}}"),
        line,
    );
    let some = ["--hide-header", "--timeout", "300", "--topic", "t", "--messages", "20000", "--date-format", "HH"];
    let read = broker.tool("kafka-consumer-perf-test", &some).ok();
    assert!(
        read.starts_with("Warning: --messages is deprecated. Use --num-records instead.\nWARNING: Exiting before ")
    );
    broker.tool("kafka-consumer-perf-test", &["--topic", "t"]).fails(1, "[messages], [num-records]");
    broker
        .tool("kafka-consumer-perf-test", &[&base[..], &["--threads", "2"]].concat())
        .fails(1, "start the tool several times");
    broker.tool("kafka-consumer-perf-test", &[&base[..], &["--print-metrics"]].concat()).fails(1, "leave it out");
    let base = ["--topic", "tt", "--num-records", "300", "--throughput", "3000", "--record-size", "9"];
    let transactions = ["--transactional-id", "perf", "--transaction-duration-ms", "20"];
    assert_matches(TOTAL, &broker.tool("kafka-producer-perf-test", &[&base[..], &transactions].concat()).ok());
    let end = broker.tool("kafka-get-offsets", &["--topic", "tt"]).ok();
    let end: i64 = end.trim().trim_start_matches("tt:0:").parse().unwrap();
    assert!(end > 301, "there are markers of several transactions: {end}");
    let described = broker.tool("kafka-transactions", &["describe", "--transactional-id", "perf"]).ok();
    assert!(described.contains("CompleteCommit"), "{described}");
    run(&["kafka-producer-perf-test", "--help"], "").ok();
}

#[test]
fn a_producer_whose_id_another_one_takes_ends_with_that() {
    let broker = Broker::start();
    let args =
        ["--topic", "t", "--record-size", "9", "--transactional-id", "perf", "--transaction-duration-ms", "60000"];
    let first = ["--num-records", "1600", "--throughput", "400", "--reporting-interval", "200"];
    let mut first = Command::new(CAUDAL)
        .args(["kafka-producer-perf-test", "--bootstrap-server", &broker.address])
        .args([&args[..], &first].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains(" records sent, "));
    let second = ["--num-records", "5", "--throughput", "-1"];
    broker.tool("kafka-producer-perf-test", &[&args[..], &second].concat()).ok();
    assert!(lines.all(|line| line.unwrap().contains(" max latency.")), "there is no total");
    let end = ran(&first.wait_with_output().unwrap());
    let class = "org.apache.kafka.common.errors.InvalidProducerEpochException: Producer";
    let told = format!(r"{class} attempted to produce with an old epoch\.\n\d+ records were not written\n");
    let last = format!(
        r"{class} with transactionalId 'perf' and \(producerId=\d+, epoch=\d+\) attempted to produce with an old epoch"
    );
    assert_matches(&(told + &last), &end.err);
    assert_eq!(end.code, Some(1));
}

#[test]
fn from_end_to_end() {
    let broker = Broker::start();
    let args = ["--topic", "t", "--num-records", "50", "--producer-acks", "all", "--record-size", "20"];
    let args = [&args[..], &["--record-key-size", "3", "--num-headers", "2", "--record-header-size", "-1"]].concat();
    let measured = broker.tool("kafka-e2e-latency", &args).ok();
    assert_matches(
        r#"Topic "t" does not exist. Will create topic with 1 partition\(s\) and replication factor = 1
0\t\d+\.\d+
Avg latency: \d+\.\d{4} ms
Percentiles: 50th = \d+, 99th = \d+, 99.9th = \d+"#,
        &measured,
    );
    let old = run(&["kafka-e2e-latency", &broker.address, "t", "3", "1", "10"], "").ok();
    assert!(old.starts_with("WARNING: Positional argument usage is deprecated"), "{old}");
    run(&["kafka-e2e-latency", "h:1", "t"], "").fails(1, "Expected 5 or 6 positional arguments, but got 2.");
    let zero = ["--topic", "t", "--num-records", "50", "--producer-acks", "0", "--record-size", "20"];
    broker.tool("kafka-e2e-latency", &zero).fails(1, "Please use '1' or 'all'.");
}

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["name"].as_str().unwrap()).collect()
}

#[test]
fn what_is_written_is_told_and_so_is_what_is_read() {
    let broker = Broker::start();
    let args = ["--topic", "t", "--max-messages", "3", "--repeating-keys", "2", "--value-prefix", "7"];
    let written = broker.tool("kafka-verifiable-producer", &args).ok();
    let told = events(&written);
    let sent = "producer_send_success";
    assert_eq!(names(&told), ["startup_complete", sent, sent, sent, "shutdown_complete", "tool_data"]);
    let line = written.lines().nth(3).unwrap();
    assert!(
        line.ends_with(
            r#""name":"producer_send_success","key":"0","value":"7.2","offset":2,"topic":"t","partition":0}"#
        ),
        "{line}"
    );
    assert_eq!((&told[5]["sent"], &told[5]["acked"]), (&Value::from(3), &Value::from(3)));
    let args = ["--topic", "t", "--group-id", "g", "--max-messages", "2", "--verbose"];
    let read = broker.tool("kafka-verifiable-consumer", &args).ok();
    let expected = [
        "startup_complete",
        "partitions_assigned",
        "record_data",
        "record_data",
        "records_consumed",
        "offsets_committed",
        "partitions_revoked",
        "shutdown_complete",
        "shutdown_requested",
    ];
    assert_eq!(names(&events(&read)), expected, "{read}");
    assert!(read.contains(
        r#""name":"records_consumed","count":3,"partitions":[{"topic":"t","partition":0,"count":2,"minOffset":0,"maxOffset":1}]}"#
    ));
    assert!(read.contains(r#""offsets":[{"topic":"t","partition":0,"offset":2}],"success":true}"#), "{read}");
    let consumer = ["--topic", "t", "--group-id", "next", "--group-protocol", "consumer", "--max-messages", "3"];
    let read =
        broker.tool("kafka-verifiable-consumer", &[&consumer[..], &["--group-remote-assignor", "range"]].concat());
    assert!(names(&events(&read.ok())).contains(&"offsets_committed"));
    let mixed = [&consumer[..], &["--session-timeout", "6000"]].concat();
    let refused = "session.timeout.ms cannot be set when group.protocol=consumer";
    broker.tool("kafka-verifiable-consumer", &mixed).fails(1, refused);
    broker.tool("kafka-verifiable-producer", &["--topic", "t", "--acks", "2"]).fails(1, "choose from 0, 1, -1");
}

#[test]
fn a_verifiable_producer_that_is_stopped_says_what_became_of_its_records() {
    let broker = Broker::start();
    let mut producer = Command::new(CAUDAL)
        .args(["kafka-verifiable-producer", "--bootstrap-server", &broker.address, "--topic", "t"])
        .args(["--throughput", "1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(producer.stdout.take().unwrap()).lines();
    // The line of the start is one too many, that of 20 is left out.
    let mut acked = lines.by_ref().take_while(|line| !line.as_ref().unwrap().contains("\"value\":\"20\"")).count();
    signal(&producer, "TERM");
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    acked += rest.iter().filter(|line| line.contains("producer_send_success")).count();
    let last = events(rest.last().unwrap()).remove(0);
    assert_eq!((last["name"].as_str(), last["acked"].as_u64()), (Some("tool_data"), u64::try_from(acked).ok()));
    let end = producer.wait_with_output().unwrap();
    assert_eq!(ran(&end).code, Some(143));
    assert_eq!(broker.tool("kafka-get-offsets", &["--topic", "t"]).ok(), format!("t:0:{acked}\n"));
}
