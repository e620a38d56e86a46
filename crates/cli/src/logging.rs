//! What goes to standard error beside a command's own words: log lines, and, once, that a broker is waited for.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;

use caudal_client::OUTAGE_TARGET;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::tools::tell;

/// Logs if `CAUDAL_LOG` asks for it: for tools and commands, which otherwise print what they have to say.
pub fn start_if_asked() {
    if std::env::var_os("CAUDAL_LOG").is_some() {
        start("off");
    }
}

/// Logs to standard error, at `CAUDAL_LOG` or else `level`.
pub fn start(level: &str) {
    tracing_subscriber::registry().with(lines(level)).try_init().unwrap_or_default();
}

/// As [`start`]; also tells when a broker has been away for a while, and with `interrupt` what Ctrl-C does then.
pub fn start_waiting(level: &str, interrupt: &'static str) {
    let quiet = Targets::new().with_default(LevelFilter::TRACE).with_target(OUTAGE_TARGET, LevelFilter::OFF);
    let waiting = Targets::new().with_target(OUTAGE_TARGET, Level::INFO);
    let waiting = Waiting { interrupt, told: parking_lot::Mutex::new(false) }.with_filter(waiting);
    tracing_subscriber::registry().with(lines(level).with_filter(quiet)).with(waiting).try_init().unwrap_or_default();
}

fn lines<S>(level: &str) -> impl Layer<S>
where
    S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(EnvFilter::try_from_env("CAUDAL_LOG").unwrap_or_else(|_| EnvFilter::new(level)))
}

/// Prints the client's outages, one at a time however many connections notice.
struct Waiting {
    interrupt: &'static str,
    told: parking_lot::Mutex<bool>,
}

impl<S: Subscriber> Layer<S> for Waiting {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let is_outage = *event.metadata().level() == Level::WARN;
        if std::mem::replace(&mut *self.told.lock(), is_outage) == is_outage {
            return;
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        if is_outage {
            tell!("Waiting for a broker: {}\n`caudal up` starts one; {}.", message.0, self.interrupt);
        } else {
            tell!("The broker answers again.");
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}
