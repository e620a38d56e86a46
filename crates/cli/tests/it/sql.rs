//! `caudal sql` from outside: signals, and brokers that are away.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::broker::{CAUDAL, signal, wait};

/// A statement that never yields ends with the signal all the same.
#[test]
fn a_signal_ends_a_heavy_statement() {
    let dir = tempfile::tempdir().unwrap();
    let heavy = "SELECT 1 AS begun; \
         SELECT sum(sqrt(a.n) * sqrt(b.n)) FROM range(100000000L) AS a(n) CROSS JOIN range(100000000L) AS b(n)";
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let mut child = Command::new(CAUDAL)
            .args(["sql", "--output", "csv", "-e", heavy])
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "begun");
        let start = Instant::now();
        signal(&child, name);
        assert_eq!(wait(&mut child), Some(code));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(said.contains("interrupted") || said.contains("Given up"), "{said}");
    }
}
