//! Starts `caudal up` and runs the tools against it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const CAUDAL: &str = env!("CARGO_BIN_EXE_caudal");

/// A running broker; stopped when dropped.
pub struct Broker {
    child: Child,
    pub address: String,
    _data: Option<tempfile::TempDir>,
}

/// What a program printed, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub out: String,
    pub err: String,
    pub code: Option<i32>,
}

impl Broker {
    /// A broker over a new directory.
    pub fn start() -> Broker {
        let data = tempfile::tempdir().unwrap();
        let mut broker =
            Broker::start_in(data.path(), &["up", "--port", "0", "--set", "group.initial.rebalance.delay.ms=0"]);
        broker._data = Some(data);
        broker
    }

    /// A broker by `args`, with `--data-dir` if they say `up`.
    pub fn start_in(data: &Path, args: &[&str]) -> Broker {
        let mut command = Command::new(CAUDAL);
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::null());
        if args.first() == Some(&"up") {
            command.arg("--data-dir").arg(data.join("data"));
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.next().expect("the broker ended before it was ready").unwrap();
        let address = ready.split("kafka=").nth(1).and_then(|rest| rest.split([' ', ',']).next());
        let address = address.unwrap_or_else(|| panic!("no address in {ready:?}")).to_owned();
        assert!(ready.starts_with("ready"), "{ready:?}");
        Broker { child, address, _data: None }
    }

    /// Runs a Kafka tool with the broker's address.
    pub fn tool(&self, name: &str, args: &[&str]) -> Ran {
        self.tool_with_input(name, args, "")
    }

    pub fn tool_with_input(&self, name: &str, args: &[&str], input: &str) -> Ran {
        let mut all = vec![name, "--bootstrap-server", &self.address];
        all.extend(args);
        run(&all, input)
    }

    /// Runs a native command with the broker's address.
    pub fn caudal(&self, args: &[&str], input: &str) -> Ran {
        let mut all = args.to_vec();
        all.extend(["--server", &self.address]);
        run(&all, input)
    }

    /// Memory of the process in KiB.
    #[cfg(target_os = "linux")]
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Sends SIGTERM and waits for the end; returns the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        signal(&self.child, "TERM");
        wait(&mut self.child)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Waits for the end of a process, at most ten seconds.
pub fn wait(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status.code(),
            None if Instant::now() > deadline => panic!("the process goes on"),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Runs the binary.
pub fn run(args: &[&str], input: &str) -> Ran {
    let mut child = Command::new(CAUDAL)
        .args(args)
        .env_remove("CAUDAL_SERVER")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    ran(&child.wait_with_output().unwrap())
}

pub fn ran(output: &Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { out: text(&output.stdout), err: text(&output.stderr), code: output.status.code() }
}

impl Ran {
    /// Standard output of a run that succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Asserts the exit code and a sentence in what was printed.
    pub fn fails(self, code: i32, sentence: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.out.contains(sentence) || self.err.contains(sentence), "{sentence:?} in {self:?}");
    }
}
