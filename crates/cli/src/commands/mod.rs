//! The native commands: what we would want to type ourselves.

mod completions;
mod up;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::install;
pub use up::start;

/// Kafka broker and Spark Structured Streaming engine in one binary.
#[derive(Debug, Parser)]
#[command(name = "caudal", version, max_term_width = 100)]
#[command(
    after_help = "Kafka's own tools are here too: `caudal kafka-topics --help`, or `caudal install-tools DIR` for links."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Up),
    Broker(up::Broker),
    /// Link Kafka's tools (kafka-topics.sh and the others) to this program
    InstallTools {
        /// Where the links go; created if need be
        dir: PathBuf,
        /// Make links that hold a relative path, so that they and the program may move together
        #[arg(long)]
        relative: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Up(up) => up.run(),
        Command::Broker(broker) => broker.run(),
        Command::InstallTools { dir, relative } => match install::install(&dir, relative) {
            Ok(names) => {
                let count = names.len();
                println!(
                    "Linked {count} names in {}. To use them: export PATH=\"{}:$PATH\"",
                    dir.display(),
                    dir.display()
                );
                ExitCode::SUCCESS
            }
            Err(e) => fail(&e),
        },
        Command::Completions { shell } => completions::print(shell),
    }
}

/// Logs to standard error, at `CAUDAL_LOG` or else `level`.
fn log(level: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("CAUDAL_LOG").unwrap_or_else(|_| EnvFilter::new(level)))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// One line on standard error, exit code 1.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("caudal: {error}");
    ExitCode::FAILURE
}
