//! The interactive shell: lines until a `;`, history, Ctrl-C stops what runs.

use std::io::IsTerminal;
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::runtime::Runtime;

use super::{Failure, Runner, advice};

fn history() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state")))?;
    Some(state.join("caudal/sql_history"))
}

/// Reads statements until the end of input, `quit` or `exit`.
pub fn run(runtime: &Runtime, runner: &mut Runner) -> Result<(), Failure> {
    let mut editor = DefaultEditor::new()?;
    // What a script pipes in is nobody's history.
    let history = if std::io::stdin().is_terminal() { history() } else { None };
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    let typed = std::io::stdin().is_terminal();
    if typed {
        println!("Spark SQL on Caudal. Statements end with ;  Ctrl-C stops a running query, Ctrl-D or exit leaves.");
    }
    let mut text = String::new();
    loop {
        match editor.readline(if text.is_empty() { "sql> " } else { "  -> " }) {
            Ok(line) => {
                if text.is_empty() && matches!(line.trim().trim_end_matches(';').trim_end(), "quit" | "exit") {
                    break;
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
