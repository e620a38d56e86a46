//! The native commands: what we would want to type ourselves.

mod completions;
mod consume;
mod group;
mod output;
mod produce;
mod server;
mod topic;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::logging::Logging;
use crate::tools::{Stop, run_async};
use crate::{install, logging};
pub use server::Server;
pub use up::{setting, start, up_properties};

/// Kafka broker and Spark Structured Streaming engine in one binary.
#[derive(Debug, Parser)]
#[command(name = "caudal", version, max_term_width = 100)]
#[command(after_help = "Kafka's own tools too: `caudal kafka-topics --help`; `caudal install-tools DIR` makes links.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logging: Logging,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Up),
    Broker(up::Broker),
    /// Create, list, describe, change and delete topics
    Topic {
        #[command(subcommand)]
        topic: topic::Topic,
        #[command(flatten)]
        server: Server,
    },
    /// Write the lines of the standard input as records
    Produce {
        #[command(flatten)]
        produce: produce::ProduceArgs,
        #[command(flatten)]
        server: Server,
    },
    /// Print records as they come
    Consume {
        #[command(flatten)]
        consume: consume::ConsumeArgs,
        #[command(flatten)]
        server: Server,
    },
    /// List, describe, reset and delete consumer groups
    Group {
        #[command(subcommand)]
        group: group::Group,
        #[command(flatten)]
        server: Server,
    },
    Doctor {
        #[command(flatten)]
        doctor: crate::doctor::DoctorArgs,
        #[command(flatten)]
        server: Server,
    },
    #[cfg(feature = "engine")]
    Sql(crate::sql::Sql),
    /// Show the whole of it at work
    #[cfg(feature = "engine")]
    Demo(crate::demo::Demo),
    #[cfg(not(feature = "engine"))]
    #[command(hide = true, disable_help_flag = true)]
    Sql(NotBuilt),
    #[cfg(not(feature = "engine"))]
    #[command(hide = true, disable_help_flag = true)]
    Demo(NotBuilt),
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

/// What is given to a command that this binary lacks.
#[cfg(not(feature = "engine"))]
#[derive(Debug, clap::Args)]
struct NotBuilt {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let Cli { command, logging } = Cli::parse();
    logging.heed();
    match command {
        Command::Up(up) => up.run(),
        Command::Broker(broker) => broker.run(),
        Command::Topic { topic, server } => client(topic::run(&server, topic), "Ctrl-C gives up"),
        Command::Produce { produce, server } => {
            client(produce::run(&server, produce), "Ctrl-C gives up the lines that are not written yet")
        }
        Command::Consume { consume, server } => client(consume::run(&server, consume), "Ctrl-C ends"),
        Command::Group { group, server } => client(group::run(&server, group), "Ctrl-C gives up"),
        Command::Doctor { doctor, server } => client(crate::doctor::run(&server, doctor), "Ctrl-C gives up"),
        Command::InstallTools { dir, relative } => match install::install(&dir, relative) {
            Ok(names) => {
                let count = names.len();
                let dir = std::path::absolute(&dir).unwrap_or(dir);
                println!(
                    "Linked {count} names in {}. To use them: export PATH=\"{}:$PATH\"",
                    dir.display(),
                    dir.display()
                );
                ExitCode::SUCCESS
            }
            Err(e) => fail(&e),
        },
        #[cfg(feature = "engine")]
        Command::Sql(sql) => {
            logging::start_waiting("warn", "Ctrl-C stops, and the same statement goes on from its checkpoint");
            crate::sql::run(sql)
        }
        #[cfg(feature = "engine")]
        Command::Demo(demo) => {
            logging::start("error");
            crate::demo::run(demo)
        }
        #[cfg(not(feature = "engine"))]
        Command::Sql(NotBuilt { .. }) | Command::Demo(NotBuilt { .. }) => {
            eprintln!(
                "caudal: this binary was built without the engine (--no-default-features), so it has no sql and no demo; \
                 build it without that flag"
            );
            ExitCode::from(2)
        }
        Command::Completions { shell } => completions::print(shell),
    }
}

/// Runs a command that talks to a cluster; `interrupt`: what Ctrl-C does while it waits for one.
fn client(command: impl Future<Output = Result<(), Stop>>, interrupt: &'static str) -> ExitCode {
    logging::start_waiting("off", interrupt);
    finish(run_async(command))
}

/// The exit code of a command that has ended, with what there is to say about it on standard error.
fn finish(done: Result<(), Stop>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Exit(code)) => ExitCode::from(code),
        Err(Stop::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(stop) => fail(&stop),
    }
}

/// One line on standard error, exit code 1.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("caudal: {error}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
