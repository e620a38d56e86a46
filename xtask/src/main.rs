//! Maintenance commands: `cargo xtask protocol [--check] LIBS_DIR` regenerates the Kafka messages from the schemas
//! in Apache Kafka's jars.

use std::path::PathBuf;
use std::process::ExitCode;

use xtask::protocol;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["protocol", "--check", libs] => protocol::run(&PathBuf::from(libs), true),
        ["protocol", libs] => protocol::run(&PathBuf::from(libs), false),
        _ => {
            Err("usage: cargo xtask protocol [--check] LIBS_DIR (the libs folder of an installed Apache Kafka)".into())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
