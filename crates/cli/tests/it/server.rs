#[cfg(target_os = "linux")]
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::broker::{Broker, CAUDAL, run, signal, wait};

fn properties(dir: &Path, more: &str) -> String {
    let path = dir.join("server.properties");
    let text = format!(
        "process.roles=broker,controller\nnode.id=7\ncontroller.quorum.voters=7@127.0.0.1:1\n\
         listeners=PLAINTEXT://127.0.0.1:0,CONTROLLER://127.0.0.1:1\ncontroller.listener.names=CONTROLLER\nlog.dirs={}\n{more}",
        dir.join("logs").display()
    );
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn formatted_then_started() {
    let dir = tempfile::tempdir().unwrap();
    let file = properties(dir.path(), "");
    run(&["kafka-storage", "info", "-c", &file], "").fails(1, "does not exist");
    run(&["kafka-server-start", &file], "").fails(1, "not formatted");
    let id = run(&["kafka-storage.sh", "random-uuid"], "").ok();
    let format = ["kafka-storage", "format", "-t", id.trim(), "-c", &file];
    assert!(run(&format, "").ok().contains("Formatting metadata directory "));
    run(&format, "").fails(1, "is already formatted. Use --ignore-formatted");
    let again = [&format[..], &["--ignore-formatted"]].concat();
    assert_eq!(run(&again, "").ok(), "All of the log directories are already formatted.\n");
    assert!(run(&["kafka-storage", "info", "-c", &file], "").ok().contains("node.id=7, version=1}"));
    let broker = Broker::start_in(dir.path(), &["kafka-server-start", &file, "--override", "num.partitions=3"]);
    broker.tool("kafka-topics", &["--create", "--topic", "t"]).ok();
    assert!(broker.tool("kafka-topics", &["--describe"]).ok().contains("PartitionCount: 3"));
    assert_eq!(broker.terminate(), Some(0));
    let broker = Broker::start_in(dir.path(), &["broker", &file]);
    assert_eq!(broker.tool("kafka-topics", &["--list"]).ok(), "t\n");
    assert_eq!(broker.terminate(), Some(0));
}

/// A start that stands still, as one does that has much to read, ends when it is told to.
#[test]
fn a_start_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_in(dir.path(), &["up", "--port", "0"]);
    assert_eq!(broker.terminate(), Some(0));
    let pipe = dir.path().join("data/recovery-point-offset-checkpoint");
    std::fs::remove_file(&pipe).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut command = Command::new(CAUDAL);
    command.args(["up", "--port", "0", "--data-dir"]).arg(dir.path().join("data"));
    let mut starting = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Opened as soon as the broker reads it, which then waits for what is never written.
    let held = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    signal(&starting, "TERM");
    assert_eq!(wait(&mut starting), Some(0));
    drop(held);
    std::fs::remove_file(&pipe).unwrap();
    let broker = Broker::start_in(dir.path(), &["up", "--port", "0"]);
    assert_eq!(broker.terminate(), Some(0));
}

#[test]
fn bad_settings_are_refused_where_they_stand() {
    let dir = tempfile::tempdir().unwrap();
    let file = properties(dir.path(), "num.partitions=many\n");
    run(&["broker", &file], "").fails(1, "server.properties line 7");
    run(&["up", "--set", "nonsense"], "").fails(2, "expected KEY=VALUE");
    run(&["kafka-server-start"], "").fails(1, "USAGE: kafka-server-start.sh [-daemon] server.properties");
    run(&["broker", "no-such-file"], "").fails(1, "failed to read no-such-file");
}

#[test]
fn an_id_and_the_features_of_releases() {
    assert!(
        run(&["kafka-storage", "version-mapping"], "")
            .ok()
            .starts_with("metadata.version=30 (4.3-IV0)\nkraft.version=1\n")
    );
    assert_eq!(
        run(&["kafka-storage", "feature-dependencies", "-f", "group.version=1"], "").ok(),
        "group.version=1 has no dependencies.\n"
    );
    run(&["kafka-storage", "fromat"], "").fails(1, "Did you mean:\n\tformat");
}

/// Not even root makes directories there.
#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let ran = run(&["up", "--port", "0", "--data-dir", "/sys/caudal"], "");
    assert!(ran.err.contains("Check its owner and permissions"), "{ran:?}");
    // Which reason the system gives depends on the user and on how it is mounted.
    ran.fails(1, "failed to open log directory /sys/caudal: it cannot be written to (");
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_idle_connections_harm_nobody() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // The broker's and the other tests' descriptors too.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let broker = Broker::start();
    broker.caudal(&["produce", "t"], "before\n").ok();
    let before = broker.resident_kib();
    let idle: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(&broker.address).unwrap()).collect();
    broker.caudal(&["produce", "t"], "after\n").ok();
    assert_eq!(broker.caudal(&["consume", "t", "-b", "-n", "2"], "").ok(), "before\nafter\n");
    let grown = broker.resident_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more");
    drop(idle);
    assert_eq!(broker.terminate(), Some(0));
}
