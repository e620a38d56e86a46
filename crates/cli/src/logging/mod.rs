//! What goes to standard error beside a command's own words: log lines, and, once, that a broker is waited for.

mod json;

use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::sync::OnceLock;

use caudal_client::{OUTAGE_TARGET, SILENT, WAITING_TARGET};
use clap::{Args, ValueEnum};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::json::JsonLines;
use crate::tools::tell;

/// The variables that say which lines are logged, the first one that is set; and how they look.
const LEVELS_FROM: [&str; 2] = ["CAUDAL_LOG", "RUST_LOG"];
const FORMAT_FROM: &str = "CAUDAL_LOG_FORMAT";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    // For people.
    #[default]
    Text,
    // An object per line, for programs.
    Json,
}

// What is logged and how, for every native command. (A doc comment here would become the help text of the commands.)
#[derive(Debug, Clone, Default, Args)]
pub struct Logging {
    /// What to log to standard error: off, error, warn, info, debug, trace, or TARGET=LEVEL,...; CAUDAL_LOG and RUST_LOG say
    /// it too
    #[arg(long, value_name = "LEVEL", value_parser = check, global = true)]
    log: Option<String>,
    /// How log lines look; CAUDAL_LOG_FORMAT says it too
    #[arg(long, value_enum, value_name = "FORMAT", global = true)]
    log_format: Option<Format>,
}

/// What the command line said.
static ASKED: OnceLock<Logging> = OnceLock::new();

impl Logging {
    /// To be called before anything is logged.
    pub fn heed(self) {
        // The command line is read once.
        let _ = ASKED.set(self);
    }
}

/// Finds words that would log nothing at all, as a mistyped level would.
fn check(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map_err(|e| e.to_string())?;
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    let is_target = |word: &str| word.contains(['=', '[']) || word.starts_with("caudal");
    match text.split(',').map(str::trim).find(|word| !is_level(word) && !is_target(word)) {
        Some(word) => Err(format!("'{word}' is none of {}, and not TARGET=LEVEL", LEVELS.join(", "))),
        None => Ok(text.to_owned()),
    }
}

/// What is logged: the command line, or the environment, says it.
fn asked_levels() -> Option<String> {
    if let Some(levels) = ASKED.get().and_then(|asked| asked.log.clone()) {
        return Some(levels);
    }
    let (name, text) = LEVELS_FROM.iter().find_map(|name| Some((name, std::env::var(name).ok()?)))?;
    match check(&text) {
        Ok(levels) => Some(levels),
        Err(error) => {
            tell!("caudal: {name}={text} is not heeded: {error}");
            None
        }
    }
}

fn asked_format() -> Format {
    if let Some(format) = ASKED.get().and_then(|asked| asked.log_format) {
        return format;
    }
    let Ok(text) = std::env::var(FORMAT_FROM) else { return Format::Text };
    Format::from_str(&text, true).unwrap_or_else(|_| {
        tell!("caudal: {FORMAT_FROM}={text} is not heeded: it is neither text nor json");
        Format::Text
    })
}

/// Logs to standard error, as asked or else at `level`.
pub fn start(level: &str) {
    let levels = asked_levels().unwrap_or_else(|| level.to_owned());
    tracing_subscriber::registry().with(lines(&levels)).try_init().unwrap_or_default();
}

/// As [`start`]; also tells what has been waited for for a while, a broker or what it does not have yet, and with
/// `interrupt` what Ctrl-C does then.
pub fn start_waiting(level: &str, interrupt: &'static str) {
    let levels = asked_levels().unwrap_or_else(|| level.to_owned());
    let quiet = Targets::new().with_default(LevelFilter::TRACE).with_target(OUTAGE_TARGET, LevelFilter::OFF);
    let waiting = Targets::new().with_target(OUTAGE_TARGET, Level::INFO);
    let waiting = Waiting { interrupt, told: parking_lot::Mutex::default() }.with_filter(waiting);
    tracing_subscriber::registry().with(lines(&levels).with_filter(quiet)).with(waiting).try_init().unwrap_or_default();
}

fn lines<S>(levels: &str) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = EnvFilter::new(levels);
    if asked_format() == Format::Json {
        return JsonLines.with_filter(filter).boxed();
    }
    let stderr = std::io::stderr;
    let text = tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
    text.with_filter(filter).boxed()
}

/// Prints the client's outages, one at a time however many connections notice, and what else it waits for.
struct Waiting {
    interrupt: &'static str,
    told: parking_lot::Mutex<Told>,
}

/// What was told and is not over.
#[derive(Default)]
struct Told {
    outage: bool,
    /// What brokers that answer do not have yet. Each call finds it out by itself, and a later one may say the same.
    reason: Option<String>,
}

impl Told {
    /// Takes an event in; whether it is news.
    fn is_news(&mut self, starts: bool, target: &str, message: &str) -> bool {
        match (target == WAITING_TARGET, starts) {
            (false, _) => std::mem::replace(&mut self.outage, starts) != starts,
            (true, true) => self.reason.replace(message.to_owned()).is_none_or(|told| told != message),
            (true, false) => self.reason.take().is_some(),
        }
    }
}

impl<S: Subscriber> Layer<S> for Waiting {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (starts, target) = (*event.metadata().level() == Level::WARN, event.metadata().target());
        let mut message = Message(String::new());
        event.record(&mut message);
        if !self.told.lock().is_news(starts, target, &message.0) {
            return;
        }
        match (starts, target == WAITING_TARGET) {
            (true, false) => {
                let hint = if message.0.contains(SILENT) {
                    "Something listens there: a broker that hangs, or no broker"
                } else {
                    "`caudal up` starts one"
                };
                tell!("Waiting for a broker: {}\n{hint}; {}.", message.0, self.interrupt);
            }
            (true, true) => {
                tell!("Still trying: {}\n{}.", message.0, capitalized(self.interrupt));
            }
            (false, _) => {
                tell!("{}.", capitalized(&message.0));
            }
        }
    }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_told_once() {
        let mut told = Told::default();
        let mut is_news = |starts, target, message| told.is_news(starts, target, message);
        assert!(is_news(true, OUTAGE_TARGET, "broker 1 is away"));
        assert!(!is_news(true, OUTAGE_TARGET, "broker 2 is away"), "one outage at a time");
        assert!(is_news(true, WAITING_TARGET, "t-0 has no leader"));
        assert!(!is_news(true, WAITING_TARGET, "t-0 has no leader"));
        assert!(is_news(true, WAITING_TARGET, "group g has no coordinator"));
        assert!(
            is_news(false, OUTAGE_TARGET, "a broker answers") && !is_news(false, OUTAGE_TARGET, "a broker answers")
        );
        assert!(is_news(false, WAITING_TARGET, "all is well") && !is_news(false, WAITING_TARGET, "all is well"));
        assert!(is_news(true, WAITING_TARGET, "group g has no coordinator"), "it is so anew");
    }

    #[test]
    fn mistyped_levels_are_refused() {
        for good in ["info", "WARN", "warn,caudal_broker=debug", "caudal_broker::metrics", "off", "tokio=trace,info"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["verbose", "info,debg", "caudal_broker=loud"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
