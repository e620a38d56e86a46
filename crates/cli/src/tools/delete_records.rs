//! `kafka-delete-records`: delete the records of partitions up to an offset.

use std::collections::BTreeMap;

use caudal_protocol::TopicPartition;

use super::cluster::{CallError, Cluster};
use super::json::{self, Json};
use super::options::{NO_ZOOKEEPER, Opt, flag, former, gone, value};
use super::{Stop, Tool, connect, require, run_async, say};

pub static TOOL: Tool = Tool {
    name: "kafka-delete-records",
    about: "This tool helps to delete records of the given partitions down to the specified offset.",
    options: OPTIONS,
    run,
};

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    value("bootstrap-server", "server(s) to use for bootstrapping", "REQUIRED: brokers to connect to first."),
    value("command-config", "command config property file path", "Properties file for the admin client."),
    flag("help", "Print this."),
    value("offset-json-file", "Offset json file path", "REQUIRED: a JSON file with an offset per partition; records before it are deleted, all when it is -1:\n{\"partitions\":\n  [{\"topic\": \"foo\", \"partition\": 1, \"offset\": 1}],\n \"version\":1\n}"),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args)?;
    tool.help_or_version(&parsed)?;
    require(&parsed, &["bootstrap-server", "offset-json-file"])?;
    let before = offsets(parsed.text("offset-json-file")?.unwrap_or_default())?;
    run_async(async {
        let cluster = connect(&parsed, "command-config").await?;
        say!("Executing records delete operation")?;
        let results = delete(&cluster, before.into_iter().collect()).await;
        say!("Records delete operation completed:")?;
        results.into_iter().try_for_each(|(tp, result)| match result {
            Ok(low) => say!("partition: {tp}\tlow_watermark: {low}"),
            Err(error) => say!("partition: {tp}\terror: {}", CallError::from(error).java()),
        })
    })
}

/// What becomes of each partition: all in one go, or one by one when some cannot be found.
async fn delete(
    cluster: &Cluster,
    before: Vec<(TopicPartition, i64)>,
) -> Vec<(TopicPartition, caudal_client::Result<i64>)> {
    if let Ok(results) = cluster.admin.delete_records(&before).await {
        return results;
    }
    let mut results = Vec::new();
    for (tp, offset) in before {
        match cluster.admin.delete_records(&[(tp.clone(), offset)]).await {
            Ok(found) => results.extend(found),
            Err(error) => results.push((tp, Err(error))),
        }
    }
    results
}

/// The offset per partition in the file.
fn offsets(path: &str) -> Result<BTreeMap<TopicPartition, i64>, Stop> {
    let value = json::read(path)?;
    let partitions = Json::root(&value, path).get("partitions")?;
    let partitions = partitions.ok_or_else(|| Stop::Failed("Missing partitions field".to_owned()))?;
    let mut offsets = Vec::new();
    for partition in partitions.list()? {
        offsets.push((partition.partition()?, partition.long("offset")?));
    }
    let names: Vec<TopicPartition> = offsets.iter().map(|(tp, _)| tp.clone()).collect();
    let twice: Vec<String> = json::duplicates(&names).iter().map(ToString::to_string).collect();
    if twice.is_empty() {
        return Ok(offsets.into_iter().collect());
    }
    Err(Stop::Failed(format!("Offset json file contains duplicate topic partitions: {}", twice.join(","))))
}
