//! `kafka-topics`: create, list, describe, alter and delete topics.

use std::collections::{BTreeMap, BTreeSet};

use caudal_client::admin::ConfigResourceType;
use caudal_protocol::messages::create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic};
use caudal_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use caudal_protocol::messages::describe_configs_response::DescribeConfigsResourceResult as ConfigEntry;
use caudal_protocol::messages::describe_topic_partitions_response::{
    DescribeTopicPartitionsResponsePartition as PartitionDescription,
    DescribeTopicPartitionsResponseTopic as TopicDescription,
};
use caudal_protocol::messages::list_partition_reassignments_response::OngoingPartitionReassignment as Reassignment;
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};

use super::cluster::{CallError, Cluster};
use super::java::{IncludeList, is_internal};
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, connect, exclude, require, run_async, say, tell};

const SEE_CONFIGS: &str = " (To alter topic configurations, the kafka-configs tool can be used.)";
const ACTIONS: &[&str] = &["create", "list", "alter", "describe", "delete"];
const REPLICATION_REPORTS: &[&str] =
    &["under-replicated-partitions", "under-min-isr-partitions", "at-min-isr-partitions", "unavailable-partitions"];

pub static TOOL: Tool = Tool {
    name: "kafka-topics",
    about: "This tool helps to create, delete, describe, or change a topic.",
    options: OPTIONS,
    run,
};

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    flag("alter", "Change the number of partitions or the replicas of a topic. Configurations: see kafka-configs."),
    flag("at-min-isr-partitions", "With --describe: only partitions that have exactly the minimum of in-sync replicas."),
    value("bootstrap-server", "server to connect to", "REQUIRED: brokers to connect to first, HOST:PORT[,HOST:PORT...]."),
    value("command-config", "command config property file", "Properties file for the admin client."),
    value("config", "name=value", "With --create: a configuration of the topic in place of the cluster's default, for example retention.ms=3600000. May be given several times. For topics that exist: kafka-configs."),
    flag("create", "Create a topic."),
    flag("delete", "Delete topics."),
    value("delete-config", "name", "No longer supported since 4.0: use kafka-configs."),
    flag("describe", "Show topics with their partitions."),
    flag("exclude-internal", "With --list or --describe: leave out the cluster's own topics."),
    flag("help", "Print this."),
    flag("if-exists", "With --alter, --delete or --describe: a topic that is missing is no error."),
    flag("if-not-exists", "With --create: a topic that is there already is no error."),
    flag("list", "List the topics."),
    value("partition-size-limit-per-response", "maximum number of partitions per response", "With --describe: how many partitions to ask for at a time.").int(),
    value("partitions", "# of partitions", "With --create: how many partitions, else the cluster's default. With --alter: how many from now on; keys may then map to other partitions than before.").int(),
    value("replica-assignment", "broker_id_for_part1_replica1 : broker_id_for_part1_replica2 , broker_id_for_part2_replica1 : broker_id_for_part2_replica2 , ...", "Which brokers hold which partition, in place of a placement by the cluster."),
    value("replication-factor", "replication factor", "With --create: how many replicas of each partition, else the cluster's default.").int(),
    value("topic", "topic", "The topic; except with --create also a regular expression."),
    value("topic-id", "topic-id", "The id of the topic to describe."),
    flag("topics-with-overrides", "With --describe: only topics that have configurations of their own."),
    flag("unavailable-partitions", "With --describe: only partitions without a leader."),
    flag("under-min-isr-partitions", "With --describe: only partitions with fewer in-sync replicas than the minimum."),
    flag("under-replicated-partitions", "With --describe: only partitions with replicas that are not in sync."),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
    gone("disable-rack-aware", false, "disable-rack-aware is not a recognized option: it went with ZooKeeper; place replicas with --replica-assignment"),
    gone("force", false, "force is not a recognized option: kafka-topics no longer asks before it acts"),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args)?;
    check(tool, &parsed)?;
    run_async(async {
        let acted = async {
            let cluster = connect(&parsed, "command-config").await?;
            act(&cluster, &parsed).await
        };
        match acted.await {
            Err(Stop::Failed(sentence)) => {
                say!("Error while executing topic command : {sentence}")?;
                Err(Stop::Exit(1))
            }
            done => done,
        }
    })
}

async fn act(cluster: &Cluster, parsed: &Parsed) -> Result<(), Stop> {
    if parsed.has("create") {
        create(cluster, parsed).await
    } else if parsed.has("alter") {
        alter(cluster, parsed).await
    } else if parsed.has("list") {
        let names = topics(cluster, parsed).await?;
        say!("{}", names.join("\n"))
    } else if parsed.has("describe") {
        describe(cluster, parsed).await
    } else {
        let names = topics(cluster, parsed).await?;
        ensure_exists(&names, parsed)?;
        if !names.is_empty() {
            cluster.delete_topics(&names).await?;
        }
        Ok(())
    }
}

fn check(tool: &Tool, parsed: &Parsed) -> Result<(), Stop> {
    if parsed.count == 0 {
        return Err(Stop::Help("Create, delete, describe, or change a topic.".to_owned()));
    }
    tool.help_or_version(parsed)?;
    if ACTIONS.iter().filter(|a| parsed.has(a)).count() != 1 {
        let sentence = "Command must include exactly one action: --list, --describe, --create, --alter or --delete";
        return Err(Stop::Usage(sentence.to_owned()));
    }
    if parsed.has("delete-config") {
        tell!(
            "delete-config option is no longer supported and deprecated since version 4.0. The config will be fully \
             removed in future releases."
        );
    }
    if !parsed.has("bootstrap-server") {
        return Err(Stop::Failed("--bootstrap-server must be specified".to_owned()));
    }
    if parsed.has("describe") && parsed.has("if-exists") {
        match (parsed.has("topic"), parsed.has("topic-id")) {
            (false, false) => {
                return Err(Stop::Usage("--topic or --topic-id is required to describe a topic".to_owned()));
            }
            (true, true) => say!(
                "Only topic id will be used when both --topic and --topic-id are specified and topicId is not \
                 Uuid.ZERO_UUID"
            )?,
            _ => {}
        }
    }
    if !parsed.has("list") && !parsed.has("describe") {
        require(parsed, &["topic"])?;
    }
    if parsed.has("alter") {
        if parsed.has("config") {
            return Err(Stop::Usage(format!(
                "Option combination \"[[bootstrap-server], [config]]\" can't be used with option \"[alter]\"{SEE_CONFIGS}"
            )));
        }
        require(parsed, &["partitions"])?;
    }
    check_combinations(parsed)
}

fn check_combinations(parsed: &Parsed) -> Result<(), Stop> {
    let only_with = |used: &str, allowed: &[&str], also: &[&str]| {
        let others: Vec<&str> =
            ACTIONS.iter().filter(|a| !allowed.contains(a)).chain(also).filter(|o| **o != used).copied().collect();
        exclude(parsed, used, &others)
    };
    only_with("config", &["alter", "create"], &[])?;
    only_with("partitions", &["alter", "create"], &[])?;
    only_with("replication-factor", &["create"], &[])?;
    only_with("replica-assignment", &["alter", "create"], &[])?;
    if parsed.has("create") {
        exclude(parsed, "replica-assignment", &["partitions", "replication-factor"])?;
    }
    for report in REPLICATION_REPORTS {
        only_with(report, &["describe"], &["topics-with-overrides"])?;
    }
    only_with("topics-with-overrides", &["describe"], REPLICATION_REPORTS)?;
    only_with("if-exists", &["alter", "delete", "describe"], &[])?;
    only_with("if-not-exists", &["create"], &[])?;
    only_with("exclude-internal", &["list", "describe"], &[])
}

/// The topics that `--topic` selects, all of them without it; sorted.
async fn topics(cluster: &Cluster, parsed: &Parsed) -> Result<Vec<String>, Stop> {
    let excludes_internal = parsed.has("exclude-internal");
    let mut names = cluster.topic_names().await?;
    names.retain(|name| !(excludes_internal && is_internal(name)));
    if let Some(pattern) = parsed.text("topic")? {
        let included = IncludeList::new(pattern)?;
        names.retain(|name| included.matches(name));
    }
    Ok(names)
}

fn ensure_exists(found: &[String], parsed: &Parsed) -> Result<(), Stop> {
    match parsed.text("topic")? {
        Some(topic) if !topic.is_empty() && found.is_empty() && !parsed.has("if-exists") => {
            Err(Stop::Failed(format!("Topic '{topic}' does not exist as expected")))
        }
        _ => Ok(()),
    }
}

async fn create(cluster: &Cluster, parsed: &Parsed) -> Result<(), Stop> {
    let name = parsed.text("topic")?.unwrap_or_default().to_owned();
    let partitions = parsed.int("partitions")?;
    let replication = parsed.int("replication-factor")?;
    let assignment = assignment(parsed)?;
    let configs = configs(parsed)?;
    if name.contains(['.', '_']) {
        say!(
            "WARNING: Due to limitations in metric names, topics with a period ('.') or underscore ('_') could collide. \
             To avoid issues it is best to use either, but not both."
        )?;
    }
    let replication = match replication {
        Some(factor) => match i16::try_from(factor) {
            Ok(factor @ 1..) => factor,
            _ => {
                let sentence = "The replication factor must be between 1 and 32767 inclusive";
                return Err(Stop::Failed(sentence.to_owned()));
            }
        },
        None => -1,
    };
    if partitions.is_some_and(|p| p < 1) {
        return Err(Stop::Failed("The partitions must be greater than 0".to_owned()));
    }
    let replicas =
        |(partition, brokers)| CreatableReplicaAssignment { partition_index: partition, broker_ids: brokers };
    let topic = CreatableTopic {
        name: name.clone(),
        num_partitions: if assignment.is_empty() { partitions.unwrap_or(-1) } else { -1 },
        replication_factor: replication,
        assignments: (0..).zip(assignment).map(replicas).collect(),
        configs: configs.into_iter().map(|(name, value)| CreatableTopicConfig { name, value: Some(value) }).collect(),
    };
    match cluster.create_topic(topic).await {
        Ok(_) => say!("Created topic {name}."),
        Err(e) if e.code == Some(ErrorCode::TopicAlreadyExists) && parsed.has("if-not-exists") => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// `--config` options, the last of a name counts.
fn configs(parsed: &Parsed) -> Result<BTreeMap<String, String>, Stop> {
    let pair = |text: &String| {
        let mut parts = text.trim_end_matches('=').split('=').map(str::trim);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), Some(value), None) => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Stop::Failed(
                "requirement failed: Invalid topic config: all configs to be added must be in the format \"key=val\"."
                    .to_owned(),
            )),
        }
    };
    parsed.all("config").iter().map(pair).collect()
}

/// `--replica-assignment`: the brokers of each partition.
fn assignment(parsed: &Parsed) -> Result<Vec<Vec<i32>>, Stop> {
    let Some(text) = parsed.text("replica-assignment")?.filter(|t| !t.is_empty()) else { return Ok(Vec::new()) };
    let broker = |id: &str| {
        let id = id.trim();
        id.parse::<i32>().map_err(|_| Stop::Failed(format!("For input string: \"{id}\"")))
    };
    let mut partitions: Vec<Vec<i32>> = Vec::new();
    for (index, list) in text.split(',').enumerate() {
        let brokers = list.split(':').map(broker).collect::<Result<Vec<i32>, Stop>>()?;
        let mut seen = BTreeSet::new();
        let twice: BTreeSet<String> = brokers.iter().filter(|b| !seen.insert(**b)).map(i32::to_string).collect();
        if !twice.is_empty() {
            let twice: Vec<String> = twice.into_iter().collect();
            let sentence = "Partition replica lists may not contain duplicate entries";
            return Err(Stop::Failed(format!("{sentence}: {}", twice.join(","))));
        }
        if partitions.first().is_some_and(|first| first.len() != brokers.len()) {
            return Err(Stop::Failed(format!("Partition {index} has different replication factor: {brokers:?}")));
        }
        partitions.push(brokers);
    }
    Ok(partitions)
}

async fn alter(cluster: &Cluster, parsed: &Parsed) -> Result<(), Stop> {
    let assignment = assignment(parsed)?;
    let count = parsed.int("partitions")?.unwrap_or_default();
    let names = topics(cluster, parsed).await?;
    ensure_exists(&names, parsed)?;
    if names.is_empty() {
        return Ok(());
    }
    let mut changes = Vec::new();
    for topic in cluster.describe_topics(&names).await? {
        let added = assignment.iter().skip(topic.partitions.len()).cloned();
        let added = added.map(|broker_ids| CreatePartitionsAssignment { broker_ids }).collect();
        changes.push(CreatePartitionsTopic {
            name: topic.name.unwrap_or_default(),
            count,
            assignments: if assignment.is_empty() { None } else { Some(added) },
        });
    }
    Ok(cluster.create_partitions(changes).await?)
}

/// What `--describe` shows of a topic beside its description.
struct Details<'a> {
    configs: &'a [ConfigEntry],
    reassignments: &'a BTreeMap<TopicPartition, Reassignment>,
    brokers: &'a [i32],
}

async fn describe(cluster: &Cluster, parsed: &Parsed) -> Result<(), Stop> {
    let descriptions = describe_selected(cluster, parsed).await?;
    if descriptions.is_empty() {
        return Ok(());
    }
    let brokers = cluster.brokers().await?;
    let reassignments = cluster.reassignments().await?;
    for topic in descriptions {
        let name = topic.name.clone().unwrap_or_default();
        let configs = cluster.configs(ConfigResourceType::Topic, &name).await?;
        let details = Details { configs: &configs, reassignments: &reassignments, brokers: &brokers };
        print_topic(parsed, &name, &topic, &details)?;
    }
    Ok(())
}

async fn describe_selected(cluster: &Cluster, parsed: &Parsed) -> Result<Vec<TopicDescription>, Stop> {
    // Only checked: how many partitions come per answer shows nowhere.
    parsed.int("partition-size-limit-per-response")?;
    if let Some(text) = parsed.text("topic-id")? {
        let id: Uuid = text.parse().map_err(|e| Stop::Failed(format!("{e}")))?;
        if !id.is_zero() {
            return match cluster.topic_with_id(id).await? {
                Some(name) => Ok(cluster.describe_topics(&[name]).await?),
                None if parsed.has("if-exists") => Ok(Vec::new()),
                None => Err(Stop::Failed(format!("TopicId '{id}' does not exist as expected"))),
            };
        }
    }
    let names = topics(cluster, parsed).await?;
    ensure_exists(&names, parsed)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    Ok(cluster.describe_topics(&names).await?)
}

fn print_topic(parsed: &Parsed, name: &str, topic: &TopicDescription, details: &Details) -> Result<(), Stop> {
    const DEFAULT_CONFIG: i8 = 5;
    let reports_partitions = REPLICATION_REPORTS.iter().any(|r| parsed.has(r));
    let own: Vec<String> = details
        .configs
        .iter()
        .filter(|c| c.config_source != DEFAULT_CONFIG)
        .map(|c| format!("{}={}", c.name, c.value.as_deref().unwrap_or("null")))
        .collect();
    if !reports_partitions && (!parsed.has("topics-with-overrides") || !own.is_empty()) {
        let first = topic.partitions.first();
        let factor = first.map_or(0, |p| replication_factor(p, reassignment(name, p, details)));
        let id = if topic.topic_id.is_zero() { String::new() } else { format!("\tTopicId: {}", topic.topic_id) };
        say!(
            "Topic: {name}{id}\tPartitionCount: {}\tReplicationFactor: {factor}\tConfigs: {}",
            topic.partitions.len(),
            own.join(",")
        )?;
    }
    if parsed.has("topics-with-overrides") {
        return Ok(());
    }
    let min_isr = details.configs.iter().find(|c| c.name == "min.insync.replicas");
    let min_isr = min_isr.and_then(|c| c.value.as_ref()?.parse().ok()).unwrap_or(1);
    for partition in &topic.partitions {
        let reassignment = reassignment(name, partition, details);
        if !reports_partitions || is_reported(parsed, partition, reassignment, min_isr, details.brokers) {
            say!("{}", partition_line(name, partition, reassignment))?;
        }
    }
    Ok(())
}

fn reassignment<'a>(name: &str, partition: &PartitionDescription, details: &'a Details) -> Option<&'a Reassignment> {
    details.reassignments.get(&TopicPartition::new(name, partition.partition_index))
}

fn replication_factor(partition: &PartitionDescription, reassignment: Option<&Reassignment>) -> usize {
    let moving = |r: &&Reassignment| {
        partition.replica_nodes.iter().any(|id| r.adding_replicas.contains(id) || r.removing_replicas.contains(id))
    };
    match reassignment.filter(moving) {
        Some(r) => r.replicas.len().saturating_sub(r.adding_replicas.len()),
        None => partition.replica_nodes.len(),
    }
}

fn is_reported(
    parsed: &Parsed,
    partition: &PartitionDescription,
    reassignment: Option<&Reassignment>,
    min_isr: usize,
    brokers: &[i32],
) -> bool {
    let isr = partition.isr_nodes.len();
    let has_leader = partition.leader_id >= 0;
    (parsed.has("under-replicated-partitions") && replication_factor(partition, reassignment) > isr)
        || (parsed.has("unavailable-partitions") && !(has_leader && brokers.contains(&partition.leader_id)))
        || (parsed.has("under-min-isr-partitions") && (!has_leader || isr < min_isr))
        || (parsed.has("at-min-isr-partitions") && isr == min_isr)
}

fn partition_line(name: &str, partition: &PartitionDescription, reassignment: Option<&Reassignment>) -> String {
    let list = |ids: &[i32]| ids.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    let maybe = |ids: &Option<Vec<i32>>| ids.as_deref().map_or_else(|| "N/A".to_owned(), list);
    let leader = if partition.leader_id < 0 { "none".to_owned() } else { partition.leader_id.to_string() };
    let moving = reassignment.map_or(String::new(), |r| {
        let (adding, removing) = (list(&r.adding_replicas), list(&r.removing_replicas));
        format!("\tAdding Replicas: {adding}\tRemoving Replicas: {removing}")
    });
    format!(
        "\tTopic: {name}\tPartition: {}\tLeader: {leader}\tReplicas: {}\tIsr: {}{moving}\tElr: {}\tLastKnownElr: {}",
        partition.partition_index,
        list(&partition.replica_nodes),
        list(&partition.isr_nodes),
        maybe(&partition.eligible_leader_replicas),
        maybe(&partition.last_known_elr),
    )
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Stop {
        Stop::Failed(error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(line: &str) -> Result<(), Stop> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        check(&TOOL, &TOOL.parse(&args)?)
    }

    #[test]
    fn command_lines() {
        let cases = [
            ("--list", "--bootstrap-server must be specified"),
            (
                "--bootstrap-server a:1",
                "Command must include exactly one action: --list, --describe, --create, --alter or --delete",
            ),
            ("--bootstrap-server a:1 --create", "Missing required argument \"[topic]\""),
            ("--bootstrap-server a:1 --alter --topic t", "Missing required argument \"[partitions]\""),
            (
                "--bootstrap-server a:1 --create --topic t --partitions 1 --replica-assignment 0:1",
                "Option \"[replica-assignment]\" can't be used with option \"[partitions]\"",
            ),
            (
                "--bootstrap-server a:1 --list --partitions 3",
                "Option \"[partitions]\" can't be used with option \"[list]\"",
            ),
            (
                "--bootstrap-server a:1 --create --topic t --if-exists",
                "Option \"[if-exists]\" can't be used with option \"[create]\"",
            ),
            (
                "--bootstrap-server a:1 --describe --topics-with-overrides --under-replicated-partitions",
                "Option \"[under-replicated-partitions]\" can't be used with option \"[topics-with-overrides]\"",
            ),
            ("--zookeeper h:2181 --list", NO_ZOOKEEPER),
        ];
        for (line, sentence) in cases {
            assert_eq!(checked(line).unwrap_err().to_string(), sentence, "{line}");
        }
        for line in [
            "--broker-list a:1 --list",
            "–-bootstrap-server a:1 –list",
            "--bootstrap-server=a:1 --describe --under-replicated-partitions --unavailable-partitions",
            "--bootstrap-server a:1 --create --topic t --partitions 1 --replication-factor 1",
        ] {
            assert!(checked(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn replica_assignments() {
        let parse = |text: &str| {
            let args = vec!["--replica-assignment".to_owned(), text.to_owned()];
            assignment(&TOOL.parse(&args).unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(parse("0:1,1 : 2").unwrap(), [[0, 1], [1, 2]]);
        assert_eq!(parse("0:0").unwrap_err(), "Partition replica lists may not contain duplicate entries: 0");
        assert_eq!(parse("0:1,2").unwrap_err(), "Partition 1 has different replication factor: [2]");
    }

    #[test]
    fn lines_are_kafkas() {
        let partition = PartitionDescription {
            partition_index: 1,
            leader_id: 2,
            replica_nodes: vec![2, 3],
            isr_nodes: vec![2],
            eligible_leader_replicas: Some(vec![]),
            last_known_elr: None,
            ..PartitionDescription::default()
        };
        assert_eq!(
            partition_line("t", &partition, None),
            "\tTopic: t\tPartition: 1\tLeader: 2\tReplicas: 2,3\tIsr: 2\tElr: \tLastKnownElr: N/A"
        );
    }

    #[test]
    fn numbers_complain_as_jopt_does() {
        let args = ["--partitions", "abc"].map(str::to_owned);
        let error = TOOL.parse(&args).unwrap().int("partitions").unwrap_err();
        assert_eq!(
            error,
            crate::tools::options::OptionError::Unparsable { name: "partitions", value: "abc".to_owned() }
        );
    }
}
