//! `kafka-leader-election`: elect leaders of partitions.

use std::collections::BTreeSet;

use caudal_client::admin::ElectionType;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::cluster::{self, CallError, Cluster, check as check_code};
use super::json::{self, Json};
use super::options::{NO_ZOOKEEPER, Opt, OptionError, Parsed, flag, former, gone, value};
use super::{Stop, Tool, client_config, client_properties, exclude, run_async, say};

const CHOICES: [&str; 3] = ["topic", "all-topic-partitions", "path-to-json-file"];

pub static TOOL: Tool = Tool {
    name: "kafka-leader-election",
    about: "This tool attempts to elect a new leader for a set of topic partitions. The type of elections supported are \
            preferred replicas and unclean replicas.",
    options: OPTIONS,
    run,
};

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    value("admin.config", "config file", "(DEPRECATED) Properties file for the admin client; use --command-config."),
    flag("all-topic-partitions", "All partitions that need an election. Not together with --topic or --path-to-json-file."),
    value("bootstrap-server", "host:port", "REQUIRED: brokers to connect to first, separated by commas."),
    value("command-config", "Config file", "Properties file for the admin client."),
    value("election-type", "election type", "REQUIRED: \"preferred\", the first replica, where another one leads; or \"unclean\", any live replica, also one that lacks records, where none leads."),
    flag("help", "Print this."),
    value("partition", "partition id", "The partition. REQUIRED with --topic.").int(),
    value("path-to-json-file", "Path to JSON file", "A JSON file with partitions. Not together with --topic or --all-topic-partitions:\n{\"partitions\":\n  [{\"topic\": \"foo\", \"partition\": 1},\n   {\"topic\": \"foobar\", \"partition\": 2}]\n}"),
    value("topic", "topic name", "The topic. Not together with --path-to-json-file or --all-topic-partitions."),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args)?;
    tool.help_or_version(&parsed)?;
    check(&parsed)?;
    let election = election(&parsed)?;
    let partitions = match (parsed.text("path-to-json-file")?, parsed.text("topic")?) {
        (Some(path), _) => Some(partitions_of_file(path)?),
        (None, Some(topic)) => {
            let partition = parsed.int("partition")?.unwrap_or_default();
            Some(BTreeSet::from([TopicPartition::new(topic, partition)]))
        }
        (None, None) => None,
    };
    if parsed.has("admin.config") {
        say!(
            "Option --admin.config has been deprecated and will be removed in a future version. Use --command-config \
             instead."
        )?;
    }
    run_async(async {
        let file = if parsed.has("admin.config") { "admin.config" } else { "command-config" };
        let mut properties = client_properties(&parsed, file)?;
        properties.entry("default.api.timeout.ms".to_owned()).or_insert_with(|| "30000".to_owned());
        properties.entry("request.timeout.ms".to_owned()).or_insert_with(|| "15000".to_owned());
        let cluster = Cluster::connect(client_config(&properties)?, cluster::PATIENCE).await?;
        elect(&cluster, election, partitions).await
    })
}

fn check(parsed: &Parsed) -> Result<(), Stop> {
    let fail = |sentence: String| Err(Stop::Failed(sentence));
    let missing: Vec<&str> = ["bootstrap-server", "election-type"].into_iter().filter(|o| !parsed.has(o)).collect();
    if !missing.is_empty() {
        return fail(format!("Missing required option(s): {}", missing.join(", ")));
    }
    exclude(parsed, "admin.config", &["command-config"])?;
    if CHOICES.iter().filter(|o| parsed.has(o)).count() != 1 {
        return fail(format!("One and only one of the following options is required: {}", CHOICES.join(", ")));
    }
    match (parsed.has("topic"), parsed.has("partition")) {
        (true, false) => fail("Missing required option(s): partition".to_owned()),
        (false, true) => fail("Option partition is only allowed if topic is used".to_owned()),
        _ => Ok(()),
    }
}

fn election(parsed: &Parsed) -> Result<ElectionType, Stop> {
    let text = parsed.text("election-type")?.unwrap_or_default();
    match text.to_lowercase().as_str() {
        "preferred" => Ok(ElectionType::Preferred),
        "unclean" => Ok(ElectionType::Unclean),
        _ => Err(OptionError::Unparsable { name: "election-type", value: text.to_owned() }.into()),
    }
}

fn partitions_of_file(path: &str) -> Result<BTreeSet<TopicPartition>, Stop> {
    let value = json::read(path)?;
    let list = Json::root(&value, path).get("partitions")?;
    let list = list.ok_or_else(|| Stop::Failed("Replica election data is missing \"partitions\" field".to_owned()))?;
    let partitions = list.list()?.iter().map(Json::partition).collect::<Result<Vec<_>, _>>()?;
    let twice: Vec<String> = json::duplicates(&partitions).iter().map(ToString::to_string).collect();
    if twice.is_empty() {
        return Ok(partitions.into_iter().collect());
    }
    Err(Stop::Failed(format!("Replica election data contains duplicate partitions: [{}]", twice.join(", "))))
}

async fn elect(
    cluster: &Cluster,
    election: ElectionType,
    partitions: Option<BTreeSet<TopicPartition>>,
) -> Result<(), Stop> {
    let wanted: Option<Vec<TopicPartition>> = partitions.map(|p| p.into_iter().collect());
    let results = cluster.admin.elect_leaders(election, wanted.as_deref()).await.map_err(|error| {
        let error = CallError::from(error);
        match error.code {
            Some(ErrorCode::ClusterAuthorizationFailed) => {
                Stop::Failed("Not authorized to perform leader election".to_owned())
            }
            _ => Stop::Failed(error.java()),
        }
    })?;
    let name = match election {
        ElectionType::Preferred => "PREFERRED",
        ElectionType::Unclean => "UNCLEAN",
    };
    let (mut elected, mut kept, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (tp, result) in results {
        match check_code(result.error_code, result.error_message.as_deref()) {
            Ok(()) => elected.push(tp.to_string()),
            Err(e) if e.code == Some(ErrorCode::ElectionNotNeeded) => kept.push(tp.to_string()),
            Err(e) => failed.push((tp, e)),
        }
    }
    if !elected.is_empty() {
        say!("Successfully completed leader election ({name}) for partitions {}", elected.join(", "))?;
    }
    if !kept.is_empty() {
        say!("Valid replica already elected for partitions {}", kept.join(", "))?;
    }
    for (tp, error) in &failed {
        say!("Error completing leader election ({name}) for partition: {tp}: {}", error.java())?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Stop::Failed(format!("{} replica(s) could not be elected", failed.len())))
}
