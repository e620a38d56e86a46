//! What Kafka's tools say while they wait for a broker, or for a partition's leader, and that they go on.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::broker::{Broker, CAUDAL, run, signal, wait};

const CTRL_C: &str = "`caudal up` starts one; Ctrl-C gives up.";

/// A tool that runs; killed when dropped.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(tool: &str, address: &str, args: &[&str]) -> Running {
        let mut child = Command::new(CAUDAL)
            .args([tool, "--bootstrap-server", address])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, out, err) = (child.stdin.take(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Running { child, stdin, out: BufReader::new(out).lines(), err: BufReader::new(err).lines() }
    }

    /// The next line of standard error.
    fn told(&mut self) -> String {
        self.err.next().expect("standard error has ended").unwrap()
    }

    /// The rest of standard output and of standard error, and the exit code.
    fn end(mut self) -> (Vec<String>, Vec<String>, Option<i32>) {
        drop(self.stdin.take());
        let code = wait(&mut self.child);
        (self.out.by_ref().map(Result::unwrap).collect(), self.err.by_ref().map(Result::unwrap).collect(), code)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address on which nobody listens.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn start_on(data: &Path, address: &str) -> Broker {
    let port = address.rsplit(':').next().unwrap();
    Broker::start_in(data, &["up", "--port", port, "--set", "group.initial.rebalance.delay.ms=0"])
}

#[test]
fn tools_that_are_started_before_the_broker_say_so_and_go_on() {
    let (data, address) = (tempfile::tempdir().unwrap(), free_address());
    let mut topics = Running::start("kafka-topics", &address, &["--list", "--exclude-internal"]);
    let mut producer = Running::start("kafka-console-producer", &address, &["--topic", "t"]);
    let consume = ["--topic", "t", "--from-beginning", "--max-messages", "1"];
    let mut consumer = Running::start("kafka-console-consumer", &address, &consume);
    producer.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    for tool in [&mut topics, &mut producer, &mut consumer] {
        let sentence = format!("Waiting for a broker: broker {address} is not reachable: connection refused");
        let told = tool.told();
        assert!(told.starts_with(&sentence) && told.ends_with("(60 seconds at most)"), "{told}");
        assert_eq!(tool.told(), CTRL_C);
    }
    let _broker = start_on(data.path(), &address);
    let answers = || vec!["The broker answers.".to_owned()];
    let (_, err, code) = topics.end();
    assert_eq!((err, code), (answers(), Some(0)));
    let (_, err, code) = producer.end();
    assert_eq!((err, code), (answers(), Some(0)));
    assert_eq!(consumer.told(), "The broker answers.");
    let (out, _, code) = consumer.end();
    assert_eq!((out, code), (vec!["hello".to_owned()], Some(0)));
    let again = run(&["kafka-topics", "--bootstrap-server", &address, "--list"], "");
    assert_eq!((again.out.as_str(), again.err.as_str()), ("t\n", ""), "who is answered at once says nothing");
}

#[test]
fn a_broker_that_keeps_silent_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut tool = Running::start("kafka-broker-api-versions", &address, &[]);
    assert_eq!(tool.told(), format!("Waiting for a broker: broker {address} is not reachable: it does not answer"));
    let hint = tool.told();
    assert!(hint.starts_with("Something listens there") && !hint.contains("caudal up"), "{hint}");
    // Not INT: who runs the tests in the background of a script has it ignored, and all that it starts.
    signal(&tool.child, "TERM");
    assert_eq!(tool.end(), (vec![], vec![], None));
}

#[test]
fn no_broker_is_waited_for_longer_than_was_asked_for() {
    let address = free_address();
    let start = Instant::now();
    let read =
        run(&["kafka-console-consumer", "--bootstrap-server", &address, "--topic", "t", "--timeout-ms", "1000"], "");
    assert_eq!((read.out.as_str(), read.code), ("", Some(0)));
    let told: Vec<_> = read.err.lines().collect();
    assert!(matches!(told[..], [why, "Processed a total of 0 messages"] if why.contains(&address)), "{told:?}");
    let listed = run(&["kafka-consumer-groups", "--bootstrap-server", &address, "--list", "--timeout", "1000"], "");
    assert!(listed.out.contains(&address), "{listed:?}");
    assert!(start.elapsed() < Duration::from_secs(30), "a minute is waited for else");
    let unknown =
        ["kafka-console-consumer", "--bootstrap-server", "nobody.invalid:1", "--topic", "t", "--timeout-ms", "0"];
    assert_eq!(run(&unknown, "").code, Some(1), "an address that is none is no end of the records");
}

#[test]
fn a_consumer_whose_broker_goes_away_says_so_and_goes_on() {
    let (data, address) = (tempfile::tempdir().unwrap(), free_address());
    let broker = start_on(data.path(), &address);
    broker.tool_with_input("kafka-console-producer", &["--topic", "t"], "1\n").ok();
    let consume = ["--topic", "t", "--from-beginning", "--max-messages", "2"];
    let mut consumer = Running::start("kafka-console-consumer", &address, &consume);
    assert_eq!(consumer.out.next().unwrap().unwrap(), "1");
    broker.terminate();
    let told = consumer.told();
    assert!(told.starts_with(&format!("Waiting for a broker: broker {address} is not reachable")), "{told}");
    assert_eq!(consumer.told(), CTRL_C);
    let broker = start_on(data.path(), &address);
    assert_eq!(consumer.told(), format!("Broker {address} answers."));
    broker.tool_with_input("kafka-console-producer", &["--topic", "t"], "2\n").ok();
    let (out, err, code) = consumer.end();
    assert_eq!((out, code), (vec!["2".to_owned()], Some(0)));
    assert_eq!(err, ["Processed a total of 2 messages"]);
}

/// The directories `a` and `b` of a broker that has one partition of `t` in each, with a record.
struct TwoDirs {
    data: tempfile::TempDir,
    file: String,
    /// The partition in `b`.
    in_b: usize,
}

impl TwoDirs {
    fn filled() -> TwoDirs {
        let (data, address) = (tempfile::tempdir().unwrap(), free_address());
        let dir = data.path().display().to_string();
        let file = format!("{dir}/server.properties");
        let text = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:1\n\
             listeners=PLAINTEXT://{address},CONTROLLER://127.0.0.1:1\ncontroller.listener.names=CONTROLLER\n\
             log.dirs={dir}/a,{dir}/b\n"
        );
        std::fs::write(&file, text).unwrap();
        let id = run(&["kafka-storage", "random-uuid"], "").ok();
        run(&["kafka-storage", "format", "-t", id.trim(), "-c", &file], "").ok();
        let mut dirs = TwoDirs { data, file, in_b: 0 };
        let broker = dirs.start();
        broker.tool("kafka-topics", &["--create", "--topic", "t", "--partitions", "2"]).ok();
        let keyed = ["--topic", "t", "--reader-property", "parse.key=true", "--reader-property", "key.separator=:"];
        broker.tool_with_input("kafka-console-producer", &keyed, "k1:a\nk2:b\nk3:c\nk4:d\n").ok();
        broker.terminate();
        dirs.in_b = usize::from(dirs.data.path().join("b/t-1").exists());
        dirs
    }

    fn start(&self) -> Broker {
        Broker::start_in(self.data.path(), &["broker", &self.file])
    }

    /// Puts a file in the place of `b`.
    fn take_away(&self) {
        std::fs::rename(self.data.path().join("b"), self.data.path().join("away")).unwrap();
        std::fs::write(self.data.path().join("b"), "").unwrap();
    }

    fn bring_back(&self) {
        std::fs::remove_file(self.data.path().join("b")).unwrap();
        std::fs::rename(self.data.path().join("away"), self.data.path().join("b")).unwrap();
    }
}

#[test]
fn a_partition_without_a_leader_is_named_and_waited_for() {
    let dirs = TwoDirs::filled();
    dirs.take_away();
    let broker = dirs.start();
    let (offline, served) = (dirs.in_b, 1 - dirs.in_b);
    let why = format!(
        "failed to find a leader for t-{offline}: its broker, or the log directory it lies in, is away; the partition is \
         offline until that is back"
    );
    let sentences = [format!("Still trying: {why}"), "Ctrl-C gives up.".to_owned()];

    let short = dirs.data.path().join("client.properties").display().to_string();
    std::fs::write(&short, "default.api.timeout.ms=4000\n").unwrap();
    let listed = broker.tool("kafka-get-offsets", &["--topic", "t", "--command-config", &short]);
    let skipped = format!("Skip getting offsets for topic-partition t-{offline} due to error: failed to list offsets");
    let skipped = format!("{skipped} within 4000 ms: {why}");
    assert_eq!(listed.err.lines().collect::<Vec<_>>(), [&sentences[0], &sentences[1], &skipped]);
    assert_eq!((listed.out, listed.code), (format!("t:{served}:2\n"), Some(0)));

    let partition = offline.to_string();
    // One asks where the partition begins, one knows; one has nowhere to write.
    let from_start = ["--topic", "t", "--from-beginning", "--max-messages", "8"];
    let from_one = ["--topic", "t", "--partition", &partition, "--offset", "1", "--max-messages", "1"];
    let mut readers =
        [&from_start[..], &from_one[..]].map(|args| Running::start("kafka-console-consumer", &broker.address, args));
    let keyed = ["--topic", "t", "--reader-property", "parse.key=true", "--reader-property", "key.separator=:"];
    let mut writer = Running::start("kafka-console-producer", &broker.address, &keyed);
    writer.stdin.as_mut().unwrap().write_all(b"k1:e\nk2:f\nk3:g\nk4:h\n").unwrap();
    for tool in readers.iter_mut().chain([&mut writer]) {
        assert_eq!([tool.told(), tool.told()], sentences);
    }
    broker.terminate();
    dirs.bring_back();
    let broker = dirs.start();
    let [all, last] = readers.map(Running::end);
    assert_eq!((all.0.len(), all.2), (8, Some(0)));
    assert_eq!((last.0.len(), last.2), (1, Some(0)));
    assert!(last.1.contains(&"Every partition has a leader again.".to_owned()), "{:?}", last.1);
    let (_, err, code) = writer.end();
    assert!(err.contains(&"Records are written again.".to_owned()), "{err:?}");
    assert_eq!(code, Some(0));
    let listed = broker.tool("kafka-get-offsets", &["--topic", "t"]);
    assert_eq!((listed.out.as_str(), listed.err.as_str()), ("t:0:4\nt:1:4\n", ""));
}

#[test]
fn a_partition_that_does_not_exist_yet_is_told_and_read_when_it_comes() {
    let data = tempfile::tempdir().unwrap();
    let broker = Broker::start_in(data.path(), &["up", "--port", "0", "--set", "auto.create.topics.enable=false"]);
    broker.tool("kafka-topics", &["--create", "--topic", "small"]).ok();
    let no_topic = "failed to find topic 'late': it does not exist; create it or check its name";
    let no_partition =
        "failed to find small-1: topic 'small' has 1 partition: This server does not host this topic-partition";
    let mut readers = Vec::new();
    for (topic, partition, missing) in [("late", "0", no_topic), ("small", "1", no_partition)] {
        // One asks where the partition begins, one knows.
        for from in [["--offset", "earliest"], ["--offset", "0"]] {
            let args = [&["--topic", topic, "--partition", partition, "--max-messages", "1"][..], &from].concat();
            let mut reader = Running::start("kafka-console-consumer", &broker.address, &args);
            let told = format!("Still trying: {missing} (UNKNOWN_TOPIC_OR_PARTITION)");
            assert_eq!([reader.told(), reader.told()], [&*told, "Ctrl-C gives up."]);
            readers.push(reader);
        }
    }
    broker.tool("kafka-topics", &["--create", "--topic", "late"]).ok();
    broker.tool("kafka-topics", &["--alter", "--topic", "small", "--partitions", "2"]).ok();
    for (topic, lines) in [("late", "hello\n".to_owned()), ("small", "hello\n".repeat(100))] {
        broker.tool_with_input("kafka-console-producer", &["--topic", topic, "--batch-size", "1"], &lines).ok();
    }
    for reader in readers {
        let (out, err, code) = reader.end();
        assert_eq!((out, code), (vec!["hello".to_owned()], Some(0)));
        assert_eq!(err.len(), 2, "it is over, and so many were read: {err:?}");
    }
}
