//! `caudal completions SHELL`: for the native commands, and for Kafka's tools from their tables of options.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::{Shell, generate};

use super::Cli;
use crate::tools::options;
use crate::tools::{TOOLS, Tool};

/// Prints the script.
pub fn print(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "caudal", &mut script);
    for tool in TOOLS {
        for name in [tool.name.to_owned(), format!("{}.sh", tool.name)] {
            generate(shell, &mut command(tool), name, &mut script);
        }
    }
    match io::stdout().write_all(&script) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("caudal: failed to write to standard output: {e}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// A tool's options in clap's terms; only used for completion.
fn command(tool: &Tool) -> Command {
    let options = tool.options.iter().filter(|o| o.is_shown()).map(|option| {
        let action = if option.arg == options::Arg::None { ArgAction::SetTrue } else { ArgAction::Append };
        let doc = option.doc.split(". ").next().unwrap_or_default();
        Arg::new(option.name).long(option.name).action(action).help(doc)
    });
    Command::new(tool.name).about(tool.about).disable_help_flag(true).disable_version_flag(true).args(options)
}
