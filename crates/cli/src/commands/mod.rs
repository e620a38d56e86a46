//! The native commands: what we would want to type ourselves.

mod completions;

use std::path::PathBuf;
use std::process::ExitCode;

use caudal_broker::BrokerConfig;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{install, serve};

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
    /// Run everything on loopback, with nothing to configure
    Up(Up),
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

#[derive(Debug, Args)]
struct Up {
    /// Where the data lies
    #[arg(long, value_name = "D", default_value = "caudal-data")]
    data_dir: PathBuf,
    /// The broker's port; 0: any that is free
    #[arg(long, value_name = "P", default_value_t = 9092)]
    port: u16,
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Up(up) => run_up(up),
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

fn run_up(up: Up) -> ExitCode {
    log("info");
    let mut config = BrokerConfig::new(up.data_dir);
    for address in &mut config.listen {
        address.set_port(up.port);
    }
    serve::run(config)
}

/// Logs to standard error, at `CAUDAL_LOG` or else `level`.
fn log(level: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("CAUDAL_LOG").unwrap_or_else(|_| EnvFilter::new(level)))
        .with_writer(std::io::stderr)
        .init();
}

/// One line on standard error, exit code 1.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("caudal: {error}");
    ExitCode::FAILURE
}
