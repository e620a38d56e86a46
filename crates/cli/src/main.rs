//! The one binary. Called by the name of one of Kafka's tools it is that tool ([`tools`]); else it is `caudal` with the
//! commands of [`commands`].

mod commands;
#[cfg(feature = "engine")]
mod demo;
mod doctor;
mod install;
mod logging;
mod serve;
#[cfg(feature = "engine")]
mod sql;
mod tools;
mod version;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().map(|a| a.to_string_lossy().into_owned());
    let program = args.next().unwrap_or_default();
    let program = Path::new(&program).file_name().map_or(program.clone(), |n| n.to_string_lossy().into_owned());
    let args: Vec<String> = args.collect();
    if let Some(tool) = tools::find(&program) {
        return tool.run(args);
    }
    if let Some((name, rest)) = args.split_first()
        && let Some(tool) = tools::find(name)
    {
        return tool.run(rest.to_vec());
    }
    let asked = [Some(&program), args.first()].into_iter().flatten().find(|name| name.starts_with("kafka-"));
    if let Some(name) = asked {
        let tip = tools::why_missing(name.trim_end_matches(".sh"));
        eprintln!("{name}: caudal has no such tool; {tip}");
        return ExitCode::FAILURE;
    }
    commands::run()
}
