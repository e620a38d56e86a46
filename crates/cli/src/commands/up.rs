//! `caudal up` and `caudal broker`: what a broker is started with.

use std::path::PathBuf;
use std::process::ExitCode;

use caudal_broker::BrokerConfig;
use caudal_cluster::config::Properties;
use clap::Args;

use super::fail;
use crate::{logging, serve};

/// Run everything on loopback, with nothing to configure
#[derive(Debug, Args)]
pub struct Up {
    /// Where the data lies; a new directory is formatted
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
    /// The broker's port; 0: any that is free
    #[arg(long, value_name = "PORT", default_value_t = 9092)]
    port: u16,
    /// A broker property, for example num.partitions=3; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
}

/// Run a broker by a properties file, as Kafka has them
#[derive(Debug, Args)]
pub struct Broker {
    /// The properties file; its log directory must be formatted (`caudal kafka-storage format`)
    #[arg(value_name = "FILE.properties")]
    file: PathBuf,
    /// A broker property that goes before the file's; may be given several times
    #[arg(long = "set", visible_alias = "override", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
}

const DATA_DIR: &str = "caudal-data";

/// Where settings come from, in messages: the command line, or nobody.
const TYPED: &str = "--set";
const DEFAULT: &str = "the default";

const HTTP_LISTENERS: &str = "caudal.http.listeners";

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UnknownKey(String);

#[derive(Debug, thiserror::Error)]
#[error("--data-dir {} and --set log.dirs name the same thing: leave one of them out", .0.display())]
struct TwoDirectories(PathBuf);

pub fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("expected KEY=VALUE, for example num.partitions=3".to_owned()),
    }
}

/// What `caudal up` starts a broker with if it is told nothing.
pub fn up_properties() -> Properties {
    let mut properties = Properties::new();
    let mut set = |key: &str, value: &str| properties.set(key, value, DEFAULT);
    set("node.id", "1");
    // Nobody waits three seconds for members that do not come. Not 0, as in the properties file of Kafka's quickstart:
    // kafka-python asks for a topic's partitions only 100 ms after it connected, so its leader would share out nothing, join
    // again and, when a `poll` of 100 ms ends in the middle of that, never hear what it was given (seen on Apache Kafka too).
    set("group.initial.rebalance.delay.ms", "150");
    // Where kafka_exporter would be, so that whoever scrapes that finds this.
    set(HTTP_LISTENERS, "http://127.0.0.1:9308");
    set("log.dirs", DATA_DIR);
    properties
}

impl Up {
    pub fn run(self) -> ExitCode {
        let mut properties = up_properties();
        if self.port == 0 {
            properties.set(HTTP_LISTENERS, "http://127.0.0.1:0", DEFAULT);
        }
        properties.set("listeners", format!("PLAINTEXT://127.0.0.1:{}", self.port), "--port");
        properties.set("log.dirs", self.data_dir.display().to_string(), "--data-dir");
        let elsewhere = self.settings.iter().any(|(key, _)| matches!(key.as_str(), "log.dirs" | "log.dir"));
        if elsewhere && self.data_dir.as_os_str() != DATA_DIR {
            return fail(&TwoDirectories(self.data_dir));
        }
        add(&mut properties, self.settings);
        start(&properties, true, "")
    }
}

impl Broker {
    pub fn run(self) -> ExitCode {
        let mut properties = match Properties::read(&self.file) {
            Ok(properties) => properties,
            Err(e) => return fail(&e),
        };
        add(&mut properties, self.settings);
        start(&properties, false, "")
    }
}

fn add(properties: &mut Properties, settings: Vec<(String, String)>) {
    for (key, value) in settings {
        properties.set(key, value, TYPED);
    }
}

/// Runs a broker until it is told to stop. `announce` is printed beside the `ready` line.
pub fn start(properties: &Properties, formats: bool, announce: &str) -> ExitCode {
    logging::start("info");
    match BrokerConfig::from_properties(properties) {
        Ok((mut config, warnings)) => {
            // A file may serve other programs too; what is typed has a meaning.
            let is_typing_error = |w: &&String| w.starts_with(TYPED) && w.contains(": unknown key ");
            if let Some(typed) = warnings.iter().find(is_typing_error) {
                return fail(&UnknownKey(typed.replace(" is ignored", "")));
            }
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            config.format_if_empty = formats;
            config.http_optional = properties.entry(HTTP_LISTENERS).is_some_and(|property| property.origin == DEFAULT);
            serve::run(config, announce)
        }
        Err(e) => fail(&e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings() {
        assert_eq!(setting("a.b=c=d"), Ok(("a.b".to_owned(), "c=d".to_owned())));
        assert!(setting("a.b").is_err() && setting("=c").is_err());
    }
}
