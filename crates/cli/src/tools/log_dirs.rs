//! `kafka-log-dirs`: the log directories of brokers, and the size of each partition in them.

use std::collections::BTreeSet;

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_log_dirs_response::DescribeLogDirsResult;
use serde::Serialize;

use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, gone, value};
use super::{Stop, Tool, connect, require, run_async, say};

pub static TOOL: Tool = Tool {
    name: "kafka-log-dirs",
    about: "This tool helps to query log directory usage on the specified brokers.",
    options: OPTIONS,
    run,
};

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    value("bootstrap-server", "The server(s) to use for bootstrapping", "REQUIRED: brokers to connect to first."),
    value("broker-list", "Broker list", "The brokers to ask, by id: \"0,1,2\". All when it is not given.").default(""),
    value("command-config", "Admin client property file", "Properties file for the admin client."),
    flag("describe", "Describe the log directories."),
    flag("help", "Print this."),
    value("topic-list", "Topic list", "Only these topics: \"topic1,topic2,topic3\". All when it is not given.").default(""),
    flag("version", "Print the version."),
    gone("zookeeper", true, NO_ZOOKEEPER),
];

// The keys in the order in which the original prints them.
#[derive(Serialize)]
struct Report {
    brokers: Vec<Broker>,
    version: i32,
}

#[derive(Serialize)]
struct Broker {
    broker: i32,
    #[serde(rename = "logDirs")]
    log_dirs: Vec<LogDir>,
}

#[derive(Serialize)]
struct LogDir {
    partitions: Vec<Replica>,
    error: Option<String>,
    #[serde(rename = "logDir")]
    log_dir: String,
}

#[derive(Serialize)]
struct Replica {
    partition: String,
    size: i64,
    #[serde(rename = "offsetLag")]
    offset_lag: i64,
    #[serde(rename = "isFuture")]
    is_future: bool,
}

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args)?;
    tool.help_or_version(&parsed)?;
    require(&parsed, &["bootstrap-server", "describe"])?;
    let wanted = brokers(&parsed)?;
    let topics = names(&parsed, "topic-list")?;
    run_async(async {
        let cluster = connect(&parsed, "command-config").await?;
        let known: BTreeSet<i32> = cluster.brokers().await?.into_iter().collect();
        let join = |ids: Vec<&i32>| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(",");
        let unknown: Vec<&i32> = wanted.difference(&known).collect();
        if !unknown.is_empty() {
            return Err(Stop::Failed(format!(
                "ERROR: The given brokers do not exist from --broker-list: {}. Current existent brokers: {}",
                join(unknown),
                join(known.iter().collect())
            )));
        }
        let asked = if wanted.is_empty() { &known } else { &wanted };
        say!("Querying brokers for log directories information")?;
        let ids: Vec<i32> = asked.iter().copied().collect();
        let found = cluster.admin.describe_log_dirs(&ids, None).await.map_err(super::cluster::CallError::from)?;
        say!("Received log directory information from brokers {}", join(asked.iter().collect()))?;
        let broker = |(broker, dirs): (i32, Vec<DescribeLogDirsResult>)| Broker {
            broker,
            log_dirs: dirs.into_iter().map(|dir| log_dir(dir, &topics)).collect(),
        };
        let report = Report { brokers: found.into_iter().map(broker).collect(), version: 1 };
        let text = serde_json::to_string(&report).map_err(|e| Stop::Failed(e.to_string()))?;
        say!("{text}")
    })
}

/// What stands between the commas of an option.
fn names(parsed: &Parsed, option: &str) -> Result<BTreeSet<String>, Stop> {
    let list = parsed.text(option)?.unwrap_or_default();
    Ok(list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn brokers(parsed: &Parsed) -> Result<BTreeSet<i32>, Stop> {
    let id = |name: &String| {
        let hint = if name.contains(':') { "; addresses go to --bootstrap-server" } else { "" };
        let wrong =
            |_| Stop::Failed(format!("For input string: \"{name}\" (--broker-list takes ids of brokers{hint})"));
        name.parse::<i32>().map_err(wrong)
    };
    names(parsed, "broker-list")?.iter().map(id).collect()
}

fn log_dir(dir: DescribeLogDirsResult, topics: &BTreeSet<String>) -> LogDir {
    let wanted = dir.topics.into_iter().filter(|t| topics.is_empty() || topics.contains(&t.name));
    let partitions = wanted.flat_map(|t| {
        let name = t.name;
        t.partitions.into_iter().map(move |p| Replica {
            partition: format!("{name}-{}", p.partition_index),
            size: p.partition_size,
            offset_lag: p.offset_lag,
            is_future: p.is_future_key,
        })
    });
    let error = match ErrorCode::from_code(dir.error_code) {
        ErrorCode::None => None,
        code => Some(format!("org.apache.kafka.common.errors.{}", code.exception())),
    };
    LogDir { partitions: partitions.collect(), error, log_dir: dir.log_dir }
}
