//! `caudal demo football`: a match through the broker and the engine, with the figures the bench wants, live.

mod board;
mod feed;
mod files;
mod play;
mod simulator;
mod stage;
mod text;
mod view;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct Demo {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A football match: positions in, distance, speed and sprints out, live
    Football(Football),
}

/// What a match is made of and how it is shown.
#[derive(Debug, Clone, Args)]
pub struct Football {
    /// Real tracking frames (PFF, JSON lines) instead of a simulated half
    #[arg(long, value_name = "FILE")]
    pub tracking: Option<PathBuf>,
    /// Ball events (Metrica, CSV): passes, shots, recoveries
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// How many times faster than real time the match runs; 0: as fast as it goes
    #[arg(long, value_name = "TIMES", default_value_t = 90.0)]
    pub speed: f64,
    /// Length of the simulated half, in minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 45, conflicts_with = "tracking",
        value_parser = clap::value_parser!(u64).range(1..=120))]
    pub minutes: u64,
    /// Another half, the same each time for the same number
    #[arg(long, value_name = "NUMBER", default_value_t = 1, conflicts_with = "tracking")]
    pub seed: u64,
    /// Where the match is kept: the broker's data, unless --server names one, and the Parquet files; a folder for each run
    #[arg(long, value_name = "DIR", default_value = "caudal-demo")]
    pub data_dir: PathBuf,
    /// A broker to play on, in place of one inside of this program; topics that are missing are created
    #[arg(long, value_name = "HOST:PORT", visible_alias = "bootstrap-server")]
    pub server: Option<String>,
    /// Only send the match to the broker of --server; the queries run elsewhere
    #[arg(long, requires = "server")]
    pub send_only: bool,
    /// What is printed: a picture for people, or one JSON object at the end for scripts
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// Runs the demo that the arguments name.
pub fn run(demo: Demo) -> ExitCode {
    let What::Football(options) = demo.what;
    if !options.speed.is_finite() || options.speed < 0.0 {
        eprintln!("caudal: --speed {}: a number of times real time, or 0 for as fast as it goes", options.speed);
        return ExitCode::from(2);
    }
    match play::play(&options) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads it has had enough.
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("caudal: {e}");
            // What a shell reports of a program that SIGINT ended.
            if e.is::<play::Interrupted>() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}
