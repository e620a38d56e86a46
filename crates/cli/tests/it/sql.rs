//! `caudal sql` from outside: signals, and brokers that are away.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::broker::{Broker, CAUDAL, run, signal, wait};

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

/// Runs `caudal sql` with this on its standard input: exit code, standard output and error.
fn piped(args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(CAUDAL)
        .args(["sql", "--output", "csv"])
        .args(args)
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_last_statement_of_a_pipe_needs_no_semicolon() {
    for args in [&[][..], &["-f", "-"]] {
        let (code, out, err) = piped(args, "SELECT 7 AS a;\n\n-- and\nSELECT\n 8 AS b");
        assert_eq!((code, out.as_str()), (Some(0), "a\n7\nb\n8\n"), "{err}");
    }
}

/// As with a file: what follows may rest on what has failed.
#[test]
fn a_pipe_ends_with_the_first_error() {
    let (code, out, err) = piped(&[], "SELECT 7 AS a;\nSELECT 1;\nSELEC 8;\nSELECT 9 AS c;\n");
    assert_eq!((code, out.as_str()), (Some(1), "a\n7\n1\n1\n"));
    assert!(err.contains("PARSE_SYNTAX_ERROR") && err.contains("(line 3, column 1)"), "{err}");
}

#[test]
fn an_error_without_a_place_names_its_statement() {
    let (code, out, err) = piped(&[], "SELECT 1 AS a; SELECT 1 / (a - a) AS d\nFROM VALUES (1) AS t(a);");
    assert_eq!((code, out.as_str()), (Some(1), "a\n1\n"));
    assert!(err.contains("DIVIDE_BY_ZERO") && err.contains("in the statement at line 1: SELECT 1 / (a - a)"), "{err}");
}

/// Each statement runs as it comes: a program can talk with the shell through two pipes.
#[test]
fn a_program_that_pipes_reads_each_answer_before_it_asks_on() {
    let mut child = Command::new(CAUDAL)
        .args(["sql", "--output", "csv"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for n in 0..3 {
        writeln!(stdin, "SELECT {n} AS n;").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "n");
        assert_eq!(lines.next().unwrap().unwrap(), n.to_string());
    }
    drop(stdin);
    assert_eq!(wait(&mut child), Some(0));
}

#[test]
fn a_topic_that_does_not_exist_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_in(dir.path(), &["up", "--port", "0", "--set", "auto.create.topics.enable=false"]);
    let table = format!(
        "CREATE TABLE t USING kafka OPTIONS ('kafka.bootstrap.servers' '{}', 'subscribe' 'nosuch');",
        broker.address
    );
    for from in ["STREAM t", "t"] {
        let ran = run(&["sql", "-e", &format!("{table} SELECT * FROM {from}")], "");
        assert!(ran.err.contains("`caudal topic create NAME` creates a topic"), "{ran:?}");
        ran.fails(1, "could not find topic 'nosuch': it does not exist; create it or check its name");
    }
}
