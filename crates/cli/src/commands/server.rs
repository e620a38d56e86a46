//! Which cluster the native commands talk to.

use std::time::Duration;

use caudal_client::ClientConfig;
use clap::Args;

use super::output::Output;
use crate::tools::Stop;
use crate::tools::cluster::Cluster;

/// Where `caudal up` listens.
const DEFAULT: &str = "127.0.0.1:9092";

/// How long to wait for a broker before saying that there is none.
const PATIENCE: Duration = Duration::from_secs(3);

// Options of every native command. (A doc comment here would become the help text of the commands that take them.)
#[derive(Debug, Clone, Args)]
pub struct Server {
    #[arg(
        long,
        short,
        env = "CAUDAL_SERVER",
        hide_env_values = true,
        value_name = "HOST:PORT",
        help = format!("The brokers to connect to first [default: {DEFAULT}]"),
        global = true
    )]
    pub server: Option<String>,
    /// How to print; json: an array of rows, an object of what was done, of consume one object per record
    #[arg(long, short, value_enum, default_value_t, global = true)]
    pub output: Output,
    /// A property of Kafka's clients; may be given several times
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = super::up::setting, global = true)]
    pub properties: Vec<(String, String)>,
}

impl Server {
    pub fn is_json(&self) -> bool {
        self.output == Output::Json
    }

    /// The client's properties: `more`, then those of the command line.
    pub fn config(&self, more: &[(&str, &str)]) -> Result<ClientConfig, Stop> {
        let more = more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let all =
            [("bootstrap.servers".to_owned(), self.server.clone().unwrap_or_else(|| DEFAULT.to_owned()))].into_iter();
        let all = all.chain(more).chain(self.properties.iter().cloned());
        let config = ClientConfig::from_properties(all).map_err(|e| Stop::Failed(e.to_string()))?;
        config.warnings().iter().for_each(|warning| eprintln!("caudal: {warning}"));
        Ok(config)
    }

    pub async fn connect(&self, more: &[(&str, &str)]) -> Result<Cluster, Stop> {
        let config = self.config(more)?;
        Cluster::connect(config, PATIENCE).await.map_err(|e| {
            Stop::Failed(format!("{e}\n`caudal up` starts a broker; --server or CAUDAL_SERVER names another one"))
        })
    }
}
