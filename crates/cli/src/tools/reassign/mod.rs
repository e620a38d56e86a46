//! `kafka-reassign-partitions`: move partitions to other brokers, and replicas to other log directories.

mod execute;
mod generate;
mod plan;
mod throttle;
mod verify;

use std::collections::BTreeMap;

use caudal_client::Error;
use caudal_protocol::messages::list_partition_reassignments_response::OngoingPartitionReassignment;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::cluster::{CallError, Cluster};
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, gone, value};
use super::{Stop, Tool, client_config, client_properties, cluster, require, run_async, say};
use plan::Replica;

pub static TOOL: Tool = Tool {
    name: "kafka-reassign-partitions",
    about: "This tool helps to move topic partitions between replicas.",
    options: OPTIONS,
    run,
};

const ACTIONS: [&str; 5] = ["generate", "execute", "verify", "cancel", "list"];

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    flag("additional", "With --execute: beside reassignments that are under way; also to change their throttle."),
    value("bootstrap-controller", "bootstrap controller to connect to", "With --cancel and --list: the controllers to connect to first, in place of brokers.").optional(),
    value("bootstrap-server", "Server(s) to use for bootstrapping", "Brokers to connect to first.").optional(),
    value("broker-list", "brokerlist", "With --generate: the brokers that may have partitions, by id: \"0,1,2\"."),
    flag("cancel", "Cancel the reassignments of --reassignment-json-file that are under way."),
    value("command-config", "Admin client property file", "Properties file for the admin client."),
    flag("disable-rack-aware", "With --generate: pass over the brokers' racks."),
    flag("disallow-replication-factor-change", "With --execute: refuse reassignments to more or fewer replicas."),
    flag("execute", "Start the reassignments of --reassignment-json-file."),
    flag("generate", "Propose a reassignment for --execute, without doing anything."),
    flag("help", "Print this."),
    flag("list", "List the reassignments under way."),
    flag("preserve-throttles", "With --verify and --cancel: leave throttles as they are."),
    value("reassignment-json-file", "manual assignment json file path", "A JSON file with the replicas of partitions, the first of which is the preferred leader:\n{\"partitions\":\n  [{\"topic\": \"foo\",\n    \"partition\": 1,\n    \"replicas\": [1,2,3],\n    \"log_dirs\": [\"dir1\",\"dir2\",\"dir3\"] }],\n \"version\":1\n}\n\"log_dirs\" may be left out; else it has a directory of the broker per replica, by absolute path, or \"any\"."),
    value("replica-alter-log-dirs-throttle", "replicaAlterLogDirsThrottle", "With --execute: bytes per second between the log directories of a broker.").long().default("-1"),
    value("throttle", "throttle", "With --execute: bytes per second between brokers, for what is moved.").long().default("-1"),
    value("timeout", "timeout", "How long to wait for moves between log directories to begin, in ms.").long().default("10000"),
    value("topics-to-move-json-file", "topics to reassign json file path", "With --generate: a JSON file with topics:\n{\"topics\":\n  [{\"topic\": \"foo\"},{\"topic\": \"foo1\"}],\n \"version\":1\n}"),
    flag("verify", "Say how far the reassignments of --reassignment-json-file are; when all are done, remove throttles."),
    flag("version", "Print the version."),
    gone("zookeeper", true, NO_ZOOKEEPER),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args)?;
    tool.help_or_version(&parsed)?;
    check(&parsed)?;
    run_async(async {
        match act(&parsed).await {
            // The original tells of everything on standard output.
            Err(Stop::Failed(sentence)) => {
                say!("{sentence}")?;
                Err(Stop::Exit(1))
            }
            done => done,
        }
    })
}

/// An error that the original prints with `Error: `.
fn error(sentence: impl std::fmt::Display) -> Stop {
    Stop::Failed(format!("Error: {sentence}"))
}

/// As [`error`], for what a broker said.
fn call_error(error: impl Into<CallError>) -> Stop {
    self::error(error.into().java())
}

fn check(parsed: &Parsed) -> Result<(), Stop> {
    let usage = |sentence: String| Err(Stop::Usage(sentence));
    let given: Vec<&str> = ACTIONS.into_iter().filter(|a| parsed.has(a)).collect();
    let [action] = given.as_slice() else {
        return usage(format!("Command must include exactly one action: --{}", ACTIONS.join(", --")));
    };
    match (parsed.has("bootstrap-server"), parsed.has("bootstrap-controller")) {
        (true, true) => {
            return usage("Please don't specify both --bootstrap-server and --bootstrap-controller".to_owned());
        }
        (false, false) => {
            return usage("Please specify either --bootstrap-server or --bootstrap-controller".to_owned());
        }
        _ => {}
    }
    let bootstrap = if parsed.has("bootstrap-server") { "bootstrap-server" } else { "bootstrap-controller" };
    if parsed.text(bootstrap)?.is_none() {
        return usage(format!("Option {bootstrap} requires an argument"));
    }
    let required: &[&str] = match *action {
        "generate" => &["topics-to-move-json-file", "broker-list"],
        "list" => &[],
        _ => &["reassignment-json-file"],
    };
    require(parsed, required)?;
    let permitted: &[&str] = match *action {
        "generate" => &["disable-rack-aware"],
        "execute" => &[
            "additional",
            "throttle",
            "replica-alter-log-dirs-throttle",
            "timeout",
            "disallow-replication-factor-change",
        ],
        "verify" => &["preserve-throttles"],
        "cancel" => &["preserve-throttles", "timeout"],
        _ => &[],
    };
    let takes_controllers = matches!(*action, "cancel" | "list");
    let bootstrap = if takes_controllers { bootstrap } else { "bootstrap-server" };
    let common = [bootstrap, "command-config", action];
    let is_wrong = |o: &&&str| !common.contains(*o) && !required.contains(*o) && !permitted.contains(*o);
    match parsed.order.iter().find(is_wrong) {
        Some(option) => usage(format!("Option \"[{option}]\" can't be used with action \"[{action}]\"")),
        None => Ok(()),
    }
}

async fn act(parsed: &Parsed) -> Result<(), Stop> {
    let file = parsed.text("reassignment-json-file")?.unwrap_or_default();
    let mut properties = client_properties(parsed, "command-config")?;
    properties.entry("client.id".to_owned()).or_insert_with(|| "reassign-partitions-tool".to_owned());
    let connect =
        || async { Cluster::connect(client_config(&properties)?, cluster::PATIENCE).await.map_err(Stop::from) };
    if parsed.has("generate") {
        let brokers = parsed.text("broker-list")?.unwrap_or_default();
        let brokers = generate::brokers(brokers)?;
        let topics = generate::topics(parsed.text("topics-to-move-json-file")?.unwrap_or_default())?;
        return generate::run(&connect().await?, &brokers, topics, !parsed.has("disable-rack-aware")).await;
    }
    if parsed.has("list") {
        return list(&connect().await?).await;
    }
    let plan = plan::read(file)?;
    if parsed.has("verify") {
        verify::run(&connect().await?, &plan, parsed.has("preserve-throttles")).await
    } else if parsed.has("cancel") {
        execute::cancel(&connect().await?, parsed, &plan).await
    } else {
        plan.check()?;
        execute::run(&connect().await?, parsed, &plan).await
    }
}

type Ongoing = BTreeMap<TopicPartition, OngoingPartitionReassignment>;

/// The reassignments under way; `None`: all.
async fn ongoing(cluster: &Cluster, partitions: Option<&[TopicPartition]>) -> Result<Ongoing, Stop> {
    let topics = cluster.admin.list_partition_reassignments(partitions).await.map_err(call_error)?;
    let partitions = topics.into_iter().flat_map(|t| {
        let name = t.name;
        t.partitions.into_iter().map(move |p| (TopicPartition::new(name.clone(), p.partition_index), p))
    });
    Ok(partitions.collect())
}

async fn list(cluster: &Cluster) -> Result<(), Stop> {
    let ongoing = ongoing(cluster, None).await?;
    if ongoing.is_empty() {
        return say!("No partition reassignments found.");
    }
    say!("Current partition reassignments:")?;
    ongoing.iter().try_for_each(|(tp, r)| {
        let part = |what: &str, ids: &[i32]| {
            if ids.is_empty() { String::new() } else { format!(" {what}: {}.", join(ids)) }
        };
        let (adding, removing) = (part("adding", &r.adding_replicas), part("removing", &r.removing_replicas));
        say!("{tp}: replicas: {}.{adding}{removing}", join(&r.replicas))
    })
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

/// The replicas of all partitions of topics; a topic that is not there is an error.
async fn replicas(cluster: &Cluster, topics: &[String]) -> Result<BTreeMap<TopicPartition, Vec<i32>>, Stop> {
    let described = cluster.admin.describe_topics(Some(topics)).await.map_err(call_error)?;
    let mut replicas = BTreeMap::new();
    for topic in described {
        let name = topic.name.unwrap_or_default();
        match ErrorCode::from_code(topic.error_code) {
            ErrorCode::None => {}
            code @ ErrorCode::UnknownTopicOrPartition => {
                return Err(call_error(CallError::new(code, format!("Topic {name} not found."))));
            }
            code => return Err(call_error(CallError::new(code, code.message()))),
        }
        let partitions = topic.partitions.into_iter();
        replicas.extend(partitions.map(|p| (TopicPartition::new(name.clone(), p.partition_index), p.replica_nodes)));
    }
    Ok(replicas)
}

/// Where replicas are on their brokers: now, and where they are being moved to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    current: Option<String>,
    future: Option<String>,
}

/// The log directories of replicas; none of a broker that is not there.
async fn places(cluster: &Cluster, wanted: &[Replica]) -> Result<BTreeMap<Replica, Place>, Stop> {
    let mut places: BTreeMap<Replica, Place> = wanted.iter().map(|r| (r.clone(), Place::default())).collect();
    let mut brokers: Vec<i32> = wanted.iter().map(|r| r.broker).collect();
    brokers.sort_unstable();
    brokers.dedup();
    for broker in brokers {
        let found = match cluster.admin.describe_log_dirs(&[broker], None).await {
            Err(Error::UnknownNode { .. }) => continue,
            found => found.map_err(call_error)?,
        };
        for dir in found.into_iter().flat_map(|(_, dirs)| dirs) {
            for topic in dir.topics {
                for p in topic.partitions {
                    let partition = TopicPartition::new(topic.name.clone(), p.partition_index);
                    let Some(place) = places.get_mut(&Replica { broker, partition }) else { continue };
                    let side = if p.is_future_key { &mut place.future } else { &mut place.current };
                    *side = Some(dir.log_dir.clone());
                }
            }
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let cases = [
            ("", "Command must include exactly one action: --generate, --execute, --verify, --cancel, --list"),
            (
                "--list --verify",
                "Command must include exactly one action: --generate, --execute, --verify, --cancel, --list",
            ),
            ("--verify", "Missing required argument \"[reassignment-json-file]\""),
            ("--generate --broker-list 1", "Missing required argument \"[topics-to-move-json-file]\""),
            ("--list --throttle 1", "Option \"[throttle]\" can't be used with action \"[list]\""),
            (
                "--verify --reassignment-json-file f --additional",
                "Option \"[additional]\" can't be used with action \"[verify]\"",
            ),
            (
                "--list --bootstrap-controller a:1",
                "Please don't specify both --bootstrap-server and --bootstrap-controller",
            ),
        ];
        let checked = |line: &str| -> Result<(), Stop> {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            check(&TOOL.parse(&args)?)
        };
        for (line, sentence) in cases {
            let error = checked(&format!("--bootstrap-server a:1 {line}")).unwrap_err();
            assert_eq!(error.to_string(), sentence, "{line}");
        }
        assert!(checked("--bootstrap-server a:1 --execute --reassignment-json-file f --throttle 5").is_ok());
        let error = checked("--list").unwrap_err().to_string();
        assert_eq!(error, "Please specify either --bootstrap-server or --bootstrap-controller");
    }
}
