//! Apache Kafka's command-line tools: the same flags, output and exit codes, a module per tool.
//!
//! A tool is reached through a link of its name (`kafka-topics.sh`, `kafka-topics`) or as `caudal kafka-topics`. Where the
//! originals print a stack trace these print the sentence it begins with, and the exit code is the same.

mod argparse;
mod broker_api_versions;
mod client_metrics;
pub mod cluster;
mod cluster_tool;
mod configs;
pub mod consumer;
mod delete_records;
mod dump_log;
mod features;
mod get_offsets;
mod group_list;
pub mod groups;
pub mod java;
mod json;
mod leader_election;
mod log_dirs;
mod metadata_quorum;
pub mod options;
mod perf;
pub mod producer;
mod reassign;
mod server_start;
mod storage;
mod streams_reset;
mod topics;
mod transactions;
mod verifiable;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use caudal_client::ClientConfig;
use caudal_cluster::config::Properties;
use cluster::Cluster;
use options::{Opt, OptionError, Parsed};

/// What Ctrl-C does while a tool waits for a broker.
const INTERRUPT: &str = "Ctrl-C gives up";

/// How long the end of a tool may be held up by a broker that is gone.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(3);

/// One of Kafka's command-line tools.
#[derive(Debug)]
pub struct Tool {
    /// Name without `.sh`.
    pub name: &'static str,
    /// What `--help` begins with.
    pub about: &'static str,
    /// Options, for parsing, help and completion.
    pub options: &'static [Opt],
    pub run: fn(&Tool, Vec<String>) -> Result<(), Stop>,
}

/// All tools, in alphabetical order.
pub static TOOLS: &[&Tool] = &[
    &broker_api_versions::TOOL,
    &client_metrics::TOOL,
    &cluster_tool::TOOL,
    &configs::TOOL,
    &consumer::TOOL,
    &producer::TOOL,
    &perf::consumer::TOOL,
    &dump_log::TOOL,
    &perf::latency::TOOL,
    &groups::TOOL,
    &delete_records::TOOL,
    &features::TOOL,
    &get_offsets::TOOL,
    &group_list::TOOL,
    &leader_election::TOOL,
    &log_dirs::TOOL,
    &metadata_quorum::TOOL,
    &reassign::TOOL,
    &perf::producer::TOOL,
    &server_start::TOOL,
    &storage::TOOL,
    &streams_reset::TOOL,
    &topics::TOOL,
    &transactions::TOOL,
    &verifiable::consumer::TOOL,
    &verifiable::producer::TOOL,
];

/// Why a tool ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Everything is said; only the exit code is left.
    #[error("exit code {0}")]
    Exit(u8),
    /// A sentence for standard error; exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The command line makes no sense; the sentence and where to find help go to standard error; exit code 1.
    #[error("{0}")]
    Usage(String),
    /// The sentence and the table of options go to standard error; exit code 1, as with Kafka's tools.
    #[error("{0}")]
    Help(String),
    /// Standard output is gone or full.
    #[error("failed to write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl From<OptionError> for Stop {
    fn from(error: OptionError) -> Stop {
        Stop::Failed(error.to_string())
    }
}

/// Prints a line to standard output; a closed pipe ends the tool quietly.
macro_rules! say {
    ($($arg:tt)*) => {
        std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($arg)*)))
            .map_err($crate::tools::Stop::from)
    };
}

/// Prints a line to standard error; nobody is told when that fails.
macro_rules! tell {
    ($($arg:tt)*) => {
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($arg)*)));
    };
}

pub(crate) use {say, tell};

/// The tool of a program name such as `kafka-topics.sh`.
pub fn find(program: &str) -> Option<&'static Tool> {
    let name = program.strip_suffix(".sh").unwrap_or(program);
    TOOLS.iter().find(|t| t.name == name).copied()
}

/// Apache Kafka's tools that are not here, and why.
#[rustfmt::skip]
static MISSING: &[(&[&str], &str)] = &[
    (&["kafka-acls"], "there are no ACLs here yet: whoever reaches the broker may do everything"),
    (&["kafka-delegation-tokens"], "there is no SASL here yet, and so no delegation tokens"),
    (&["kafka-share-groups", "kafka-console-share-consumer", "kafka-share-consumer-perf-test", "kafka-verifiable-share-consumer"],
        "there are no share groups (KIP-932) here yet"),
    (&["kafka-streams-groups"], "there are no groups of the streams protocol (KIP-1071) here yet; Kafka Streams runs with its classic one"),
    (&["kafka-server-stop"], "Ctrl-C or `kill PID` (SIGTERM) stops a broker cleanly"),
    (&["kafka-metadata-shell"], "`kafka-dump-log --cluster-metadata-decoder --files FILE` shows the cluster's metadata"),
    (&["kafka-replica-verification"], "there is one broker here, and so nothing to compare its replicas with"),
    (&["kafka-jmx"], "the broker's metrics are served over HTTP, at /metrics (`caudal.http.listeners`)"),
];

/// What to say of a name (without `.sh`) that no tool here has.
pub fn why_missing(name: &str) -> String {
    if let Some((_, why)) = MISSING.iter().find(|(names, _)| names.contains(&name)) {
        return (*why).to_owned();
    }
    let names = TOOLS.iter().map(|tool| tool.name);
    match options::nearest(name, names.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("there are {}", names.collect::<Vec<_>>().join(", ")),
    }
}

impl Tool {
    /// Runs the tool with the arguments after its name.
    pub fn run(&self, args: Vec<String>) -> ExitCode {
        // The server has a log, which it starts itself.
        if self.name != server_start::TOOL.name {
            crate::logging::start_waiting("off", INTERRUPT);
        }
        match (self.run)(self, args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(stop) => self.stop(stop),
        }
    }

    fn stop(&self, stop: Stop) -> ExitCode {
        match stop {
            Stop::Exit(code) => return ExitCode::from(code),
            Stop::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Stop::Help(sentence) => {
                tell!("{sentence}\n{}", options::help(self.options).trim_end());
            }
            Stop::Usage(sentence) => {
                tell!("{}\nRun '{} --help' for the options.", sentence.trim_end(), self.name);
            }
            Stop::Failed(_) | Stop::Output(_) => {
                tell!("{stop}");
            }
        }
        ExitCode::FAILURE
    }

    /// Parses the arguments by the tool's options and answers `--help`, no arguments at all, and `--version`.
    fn parse(&self, args: &[String]) -> Result<Parsed, OptionError> {
        options::parse(self.options, args)
    }

    /// Ends the tool when help or the version was asked for. Whoever asks for help gets exit code 0, which the originals
    /// give only to some.
    fn help_or_version(&self, parsed: &Parsed) -> Result<(), Stop> {
        if parsed.has("help") {
            say!("{}\n{}", self.about, options::help(self.options).trim_end())?;
            return Err(Stop::Exit(0));
        }
        if parsed.count == 0 {
            return Err(Stop::Help(self.about.to_owned()));
        }
        if parsed.has("version") {
            say!("{}", crate::version::KAFKA)?;
            return Err(Stop::Exit(0));
        }
        Ok(())
    }
}

/// `Missing required argument` for the first option of `names` that was not given.
fn require(parsed: &Parsed, names: &[&str]) -> Result<(), Stop> {
    match names.iter().find(|n| !parsed.has(n)) {
        Some(name) => Err(Stop::Usage(format!("Missing required argument \"[{name}]\""))),
        None => Ok(()),
    }
}

/// Refuses the options of `others` beside `used`.
fn exclude(parsed: &Parsed, used: &str, others: &[&str]) -> Result<(), Stop> {
    match others.iter().find(|o| parsed.has(used) && parsed.has(o)) {
        Some(other) => Err(Stop::Usage(format!("Option \"[{used}]\" can't be used with option \"[{other}]\""))),
        None => Ok(()),
    }
}

/// The client's properties: those of the file that the option `file_option` names, then the brokers or controllers.
fn client_properties(parsed: &Parsed, file_option: &str) -> Result<BTreeMap<String, String>, Stop> {
    let mut properties = match parsed.text(file_option)? {
        Some(path) => load_properties(path)?,
        None => BTreeMap::new(),
    };
    if let Some(servers) = parsed.text("bootstrap-server")? {
        properties.insert("bootstrap.servers".to_owned(), servers.to_owned());
    }
    if let Some(controllers) = parsed.text("bootstrap-controller")? {
        properties.insert("bootstrap.controllers".to_owned(), controllers.to_owned());
    }
    Ok(properties)
}

/// Reads a `.properties` file.
fn load_properties(path: &str) -> Result<BTreeMap<String, String>, Stop> {
    let properties = Properties::read(Path::new(path)).map_err(|e| Stop::Failed(e.to_string()))?;
    Ok(properties.iter().map(|p| (p.key.clone(), p.value.clone())).collect())
}

/// Checks client properties; what is odd about them goes to standard error.
fn client_config(properties: &BTreeMap<String, String>) -> Result<ClientConfig, Stop> {
    let config = ClientConfig::from_properties(properties).map_err(|e| Stop::Failed(e.to_string()))?;
    config.warnings().iter().for_each(|warning| eprintln!("WARN {warning}"));
    Ok(config)
}

/// Connects an admin tool to the brokers of `--bootstrap-server`.
async fn connect(parsed: &Parsed, file_option: &str) -> Result<Cluster, Stop> {
    let config = client_config(&client_properties(parsed, file_option)?)?;
    Ok(Cluster::connect(config, cluster::PATIENCE).await?)
}

/// Runs a tool's asynchronous part.
pub fn run_async(tool: impl Future<Output = Result<(), Stop>>) -> Result<(), Stop> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(tool);
    // A thread that waits for standard input would hold the end up.
    runtime.shutdown_background();
    done
}

/// Refuses a `--bootstrap-server` that is no list of `host:port` (`ToolsUtils.validateBootstrapServer`).
fn check_servers(parsed: &Parsed) -> Result<(), Stop> {
    let servers = parsed.text("bootstrap-server")?.unwrap_or_default();
    if servers.trim().is_empty() {
        return Err(Stop::Usage("Error while validating the bootstrap address".to_owned()));
    }
    let has_port =
        |s: &str| s.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if servers.split(',').all(has_port) {
        return Ok(());
    }
    Err(Stop::Usage("Please provide valid host:port like host1:9091,host2:9092".to_owned()))
}

/// `key=value` arguments; what has no `=` has an empty value.
fn key_values(args: &[String]) -> impl Iterator<Item = (String, String)> {
    args.iter().map(|arg| {
        let (key, value) = arg.split_once('=').unwrap_or((arg, ""));
        (key.to_owned(), value.to_owned())
    })
}

/// Waits for SIGINT or SIGTERM; returns the exit code that goes with it.
pub async fn interrupted() -> u8 {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind: SignalKind, code: u8| async move {
        match signal(kind) {
            Ok(mut signals) => _ = signals.recv().await,
            Err(_) => std::future::pending().await,
        }
        code
    };
    tokio::select! {
        code = wait(SignalKind::interrupt(), 130) => code,
        code = wait(SignalKind::terminate(), 143) => code,
    }
}

/// Waits for a goodbye to the cluster: not for long, and not when the user insists. `None`: it did not come through.
pub async fn briefly<T>(goodbye: impl Future<Output = T>) -> Option<T> {
    let insists = async {
        // One Ctrl-C may arrive twice: from the terminal, and from a program that runs this one.
        tokio::time::sleep(GOODBYE / 10).await;
        interrupted().await
    };
    tokio::select! {
        done = goodbye => Some(done),
        _ = insists => None,
        () = tokio::time::sleep(GOODBYE) => None,
    }
}
