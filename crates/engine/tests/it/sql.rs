//! Runs the case files under `tests/it/sql/`: each holds statements and the table, or the error class, that
//! Apache Spark 4.2 answers (see `conformance/spark-sql/`).

use std::fmt::Write as _;
use std::path::Path;

use caudal_engine::format::show::{ShowOptions, show_string};
use caudal_engine::sql::{SessionConfig, SqlSession, StatementResult};

/// One case of a file: `query` or `statement`, its text, and what is expected below `----`.
struct Case {
    line: usize,
    sql: String,
    expected: Option<String>,
}

fn cases(text: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        if line != "query" && line != "statement" {
            assert!(line.is_empty() || line.starts_with('#'), "line {}: {line}", number + 1);
            continue;
        }
        let mut sql = String::new();
        let mut expected = None;
        for (_, line) in lines.by_ref() {
            match (&mut expected, line) {
                (_, "") => break,
                (None, "----") => expected = Some(String::new()),
                (None, line) => writeln!(sql, "{line}").unwrap(),
                (Some(table), line) => writeln!(table, "{line}").unwrap(),
            }
        }
        cases.push(Case { line: number + 1, sql, expected });
    }
    cases
}

async fn answer(session: &SqlSession, sql: &str) -> String {
    let mut shown = String::new();
    let statements = match session.parse(sql) {
        Ok(statements) => statements,
        Err(error) => return format!("error {}\n", error.class),
    };
    for statement in statements {
        let done = match session.execute(&statement).await {
            Ok(StatementResult::Rows(rows)) => rows.collect().await.map(Some),
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        };
        match done {
            Ok(Some((schema, batches))) => {
                let options = ShowOptions { num_rows: 1000, truncate: 0, ..ShowOptions::default() };
                shown.push_str(show_string(&schema, &batches, &options).trim_end());
                shown.push('\n');
            }
            Ok(None) => {}
            Err(error) => {
                if std::env::var_os("SQL_ERRORS").is_some() {
                    eprintln!("{sql}{error}\n");
                }
                return format!("error {}\n", error.class);
            }
        }
    }
    shown
}

async fn run_file(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let session = SqlSession::new(SessionConfig::default()).unwrap();
    let mut failures = Vec::new();
    for case in cases(&text) {
        let got = answer(&session, &case.sql).await;
        match case.expected {
            Some(expected) if expected.trim_end() != got.trim_end() => failures.push(format!(
                "{}:{}\n{}expected:\n{expected}got:\n{got}",
                path.file_name().unwrap().to_string_lossy(),
                case.line,
                case.sql
            )),
            None if got.starts_with("error") => {
                failures.push(format!("{}:{}\n{}{got}", path.display(), case.line, case.sql));
            }
            _ => {}
        }
    }
    failures
}

/// Statements that are nested deeply need a deeper stack to be planned than a test's thread has.
const STACK_BYTES: usize = 64 << 20;

#[test]
fn spark_answers_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || runtime.block_on(run_all()));
    let failures = all.unwrap().join().unwrap();
    assert!(failures.is_empty(), "{} cases differ from Spark's answer:\n\n{}", failures.len(), failures.join("\n"));
}

async fn run_all() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sql");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut failures = Vec::new();
    for file in files {
        failures.extend(run_file(&file).await);
    }
    failures
}
