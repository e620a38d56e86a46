//! `caudal doctor`: what is open, unsafe or misconfigured, each with the way out.

mod cluster;
mod data_dir;
mod health;
mod settings;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use caudal_broker::BrokerConfig;
use caudal_cluster::config::Properties;
use clap::Args;
use serde_json::{Value, json};

use crate::commands::Server;
use crate::commands::setting;
use crate::tools::{Stop, say};

/// Look for what is open, unsafe or misconfigured; exit code 1 if there is a problem
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The broker's properties file; without it, what `caudal up` would do
    #[arg(value_name = "FILE.properties")]
    file: Option<PathBuf>,
    /// Where the data lies, if not where the properties say
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A broker property that goes before the file's; may be given several times
    #[arg(long = "set", visible_alias = "override", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Leave a running broker alone
    #[arg(long)]
    offline: bool,
    /// The same as --output json
    #[arg(long)]
    json: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Ok,
    /// Worth knowing, and possibly meant.
    Note,
    Problem,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Problem => "problem",
        }
    }
}

/// What was found, and what to do about it.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    pub level: Level,
    pub text: String,
    pub fix: Option<String>,
}

/// All findings, in the order of the checks.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    pub fn ok(&mut self, check: &'static str, text: impl Into<String>) {
        self.0.push(Finding { check, level: Level::Ok, text: text.into(), fix: None });
    }

    pub fn note(&mut self, check: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { check, level: Level::Note, text: text.into(), fix: Some(fix.into()) });
    }

    pub fn problem(&mut self, check: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { check, level: Level::Problem, text: text.into(), fix: Some(fix.into()) });
    }

    fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|finding| finding.level == level).count()
    }

    fn to_json(&self) -> Value {
        let finding = |f: &Finding| json!({"check": f.check, "level": f.level.name(), "text": f.text, "fix": f.fix});
        json!({
            "problems": self.count(Level::Problem),
            "notes": self.count(Level::Note),
            "findings": self.0.iter().map(finding).collect::<Vec<_>>(),
        })
    }

    fn print(&self) -> Result<(), Stop> {
        for Finding { check, level, text, fix } in &self.0 {
            say!("{:8} {check}: {text}", level.name())?;
            if let Some(fix) = fix {
                say!("         -> {fix}")?;
            }
        }
        let (problems, notes) = (self.count(Level::Problem), self.count(Level::Note));
        say!("{problems} problem(s), {notes} note(s), {} check(s) in order", self.count(Level::Ok))
    }
}

/// Looks at everything.
pub async fn run(server: &Server, doctor: DoctorArgs) -> Result<(), Stop> {
    let mut findings = Findings::default();
    let named = doctor.file.is_some() || doctor.data_dir.is_some();
    let mut properties = match &doctor.file {
        Some(file) => Properties::read(file).map_err(|e| Stop::Failed(e.to_string()))?,
        None => crate::commands::up_properties(),
    };
    for (key, value) in doctor.settings {
        properties.set(key, value, "--set");
    }
    let config = settings::check(&properties, &mut findings);
    let dirs = match (doctor.data_dir, &config) {
        (Some(dir), _) => vec![dir],
        (None, Some(config)) => all_dirs(config),
        (None, None) => Vec::new(),
    };
    let of_dirs = if dirs.is_empty() { None } else { data_dir::check(&dirs, &mut findings) };
    check_limits(&dirs, &mut findings);
    if !doctor.offline {
        let mut server = server.clone();
        if let (None, true, Some(config)) = (&server.server, doctor.file.is_some(), &config) {
            server.server = config.listen.iter().find_map(|listener| local(*listener)).map(|it| it.to_string());
        }
        cluster::check(&server, named, of_dirs.as_deref(), &mut findings).await;
    }
    if doctor.json || server.is_json() {
        say!("{}", serde_json::to_string_pretty(&findings.to_json()).unwrap_or_default())?;
    } else {
        findings.print()?;
    }
    if findings.count(Level::Problem) > 0 { Err(Stop::Exit(1)) } else { Ok(()) }
}

/// Where a broker of this machine is reached that listens there; nobody knows the port that stands for any.
fn local(mut listener: SocketAddr) -> Option<SocketAddr> {
    if listener.ip().is_unspecified() {
        listener.set_ip(if listener.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    (listener.port() != 0).then_some(listener)
}

/// `log.dirs`, and that of the metadata log where it is none of them.
fn all_dirs(config: &BrokerConfig) -> Vec<PathBuf> {
    let mut dirs = config.partition_dirs().to_vec();
    if !dirs.contains(&config.log_dir) {
        dirs.push(config.log_dir.clone());
    }
    dirs
}

/// What the system allows a process that is started from here.
fn check_limits(dirs: &[PathBuf], findings: &mut Findings) {
    use rustix::process::{Resource, getrlimit};
    /// Enough for some hundred partitions and connections.
    const FILES_LEAST: u64 = 4096;
    // The broker raises it as far as it may.
    let files = getrlimit(Resource::Nofile).maximum;
    let wanted = dirs.iter().map(|dir| data_dir::partitions(dir) as u64 * 2).sum();
    match files {
        Some(files) if files < FILES_LEAST.max(wanted) => findings.problem(
            "limits",
            format!("{files} files may be open; half are for connections, and each segment needs one"),
            format!(
                "raise the hard limit to at least {}: `ulimit -Hn`, LimitNOFILE= of systemd",
                FILES_LEAST.max(wanted)
            ),
        ),
        Some(files) => findings.ok("limits", format!("{files} files may be open")),
        None => findings.ok("limits", "any number of files may be open"),
    }
    if let Some(bytes) = getrlimit(Resource::Fsize).current {
        findings.problem(
            "limits",
            format!("no file may be larger than {bytes} bytes"),
            "lift it (`ulimit -f unlimited`): a write beyond it fails as on a full disk",
        );
    }
}
