//! `kafka-server-start`: a broker by a properties file.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use caudal_cluster::config::Properties;

use super::options::{Opt, flag, parse, value};
use super::{Stop, Tool, say};
use crate::commands::start;

pub static TOOL: Tool = Tool {
    name: "kafka-server-start",
    about: "USAGE: kafka-server-start.sh [-daemon] server.properties [--override property=value]*",
    options: OPTIONS,
    run,
};

static OPTIONS: &[Opt] = &[
    flag("daemon", "Run in the background; what it prints goes to kafkaServer.out in $LOG_DIR or logs."),
    flag("help", "Print this."),
    value("name", "", "A name for the process; only with -daemon, without an effect here."),
    value(
        "override",
        "",
        "Optional property that should override values set in server.properties file (e.g. Key=value)",
    ),
    flag("version", "Print version information and exit."),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    if args.is_empty() {
        say!("{}", tool.about)?;
        return Err(Stop::Exit(1));
    }
    let parsed = parse(OPTIONS, &args).map_err(|e| Stop::Usage(e.to_string()))?;
    tool.help_or_version(&parsed)?;
    let [file] = parsed.rest.as_slice() else {
        let rest = parsed.rest.get(1..).unwrap_or_default().join(",");
        let sentence =
            if rest.is_empty() { tool.about.to_owned() } else { format!("Found non argument parameters: {rest}") };
        return Err(Stop::Usage(sentence));
    };
    if parsed.has("daemon") {
        return daemonize(&args);
    }
    let mut properties = Properties::read(Path::new(file)).map_err(|e| Stop::Failed(e.to_string()))?;
    for (key, value) in super::key_values(parsed.all("override")) {
        properties.set(key, value, "--override");
    }
    let node = properties.get("node.id").or_else(|| properties.get("broker.id")).unwrap_or("1").to_owned();
    let started = format!("[KafkaRaftServer nodeId={node}] Kafka Server started (kafka.server.KafkaRaftServer)");
    if start(&properties, false, &started) == ExitCode::SUCCESS { Ok(()) } else { Err(Stop::Exit(1)) }
}

/// Starts the same again without a terminal.
fn daemonize(args: &[String]) -> Result<(), Stop> {
    let dir = std::env::var_os("LOG_DIR").map_or_else(|| PathBuf::from("logs"), PathBuf::from);
    let path = dir.join("kafkaServer.out");
    let failed = |e: std::io::Error| Stop::Failed(format!("failed to write {}: {e}; set LOG_DIR", path.display()));
    std::fs::create_dir_all(&dir).map_err(failed)?;
    let log = File::create(&path).map_err(failed)?;
    let again = log.try_clone().map_err(failed)?;
    let program = std::env::current_exe()?;
    let rest = args.iter().filter(|a| a.trim_start_matches('-') != "daemon");
    Command::new(program)
        .arg(TOOL.name)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(again)
        .process_group(0)
        .spawn()
        .map_err(|e| Stop::Failed(format!("failed to start the broker: {e}")))?;
    Ok(())
}
