mod serve;

use std::process::ExitCode;

use caudal_broker::BrokerConfig;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Kafka broker and Spark Structured Streaming engine in one binary.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on loopback.
    Up {
        /// Where the data lies.
        #[arg(long, default_value = "caudal-data")]
        data_dir: std::path::PathBuf,
        /// The broker's port; 0: any that is free.
        #[arg(long, default_value_t = 9092)]
        port: u16,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("CAUDAL_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Up { data_dir, port } => {
            let mut config = BrokerConfig::new(data_dir);
            for address in &mut config.listen {
                address.set_port(port);
            }
            serve::run(config)
        }
    }
}
