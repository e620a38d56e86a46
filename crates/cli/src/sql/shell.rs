//! The interactive shell: lines until a `;`, history, Ctrl-C stops what runs.

use std::io::{self, BufRead};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::runtime::Runtime;

use super::{Failure, Runner, advice};

const HELP: &str = "\
A statement ends with ; and may have several lines. Some to begin with:
  SHOW TABLES;  SHOW FUNCTIONS;  DESCRIBE t;  SET -v;  EXPLAIN SELECT ...;
  CREATE TABLE t USING kafka OPTIONS (kafka.bootstrap.servers '127.0.0.1:9092', subscribe 'topic');
  SELECT CAST(value AS STRING) FROM t LIMIT 5;               what is in the topic now
  SELECT CAST(value AS STRING) FROM STREAM t;                what comes, until Ctrl-C
  CREATE STREAMING TABLE s USING parquet AS SELECT ...;      a query that writes a table and goes on from where it was
exit or Ctrl-D leaves.";

/// Splits what is piped in into texts that end with `;` at the end of a line, the last one without it perhaps. Hands over
/// each with the count of lines before it, until `take` says no.
pub fn read_statements(input: impl BufRead, mut take: impl FnMut(io::Result<(String, usize)>) -> bool) {
    let (mut text, mut first_line) = (String::new(), 0);
    for (number, line) in input.lines().enumerate() {
        match line {
            Ok(line) => {
                text.push_str(&line);
                text.push('\n');
                if line.trim_end().ends_with(';') {
                    if !take(Ok((std::mem::take(&mut text), first_line))) {
                        return;
                    }
                    first_line = number + 1;
                }
            }
            Err(e) => {
                take(Err(e));
                return;
            }
        }
    }
    if !text.trim().is_empty() {
        take(Ok((text, first_line)));
    }
}

fn history() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state")))?;
    Some(state.join("caudal/sql_history"))
}

/// Reads statements until the end of input, `quit` or `exit`.
pub fn run(runtime: &Runtime, runner: &mut Runner) -> Result<(), Failure> {
    let mut editor = DefaultEditor::new()?;
    let history = history();
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    println!("Spark SQL on Caudal. Statements end with ;  Ctrl-C stops a running query, Ctrl-D or exit leaves.");
    let mut text = String::new();
    loop {
        match editor.readline(if text.is_empty() { "sql> " } else { "  -> " }) {
            Ok(line) => {
                if text.is_empty() && matches!(line.trim().trim_end_matches(';').trim_end(), "quit" | "exit") {
                    break;
                }
                if text.is_empty() && matches!(line.trim().trim_end_matches(';').trim_end(), "help" | "?" | "\\?") {
                    println!("{HELP}");
                    continue;
                }
                text.push_str(&line);
                text.push('\n');
                if line.trim_end().ends_with(';') {
                    let whole = std::mem::take(&mut text);
                    editor.add_history_entry(whole.trim())?;
                    if let Err(e) = runtime.block_on(runner.run_script(&whole)) {
                        eprintln!("{e}{}", advice(&e.to_string()));
                    }
                    runner.queries.clear();
                }
                if text.trim().is_empty() {
                    text.clear();
                }
            }
            Err(ReadlineError::Interrupted) => text.clear(),
            Err(ReadlineError::Eof) => break,
            Err(e) => return Err(e.into()),
        }
    }
    if let Some(path) = &history
        && let Some(parent) = path.parent()
    {
        std::fs::create_dir_all(parent)?;
        editor.save_history(path)?;
    }
    Ok(())
}
