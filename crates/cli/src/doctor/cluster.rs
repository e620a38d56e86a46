//! A running broker, by what it tells every client.

use std::collections::{BTreeMap, BTreeSet};

use caudal_client::OffsetSpec;
use caudal_client::admin::ConfigResourceType;
use caudal_protocol::messages::ListTransactionsRequest;
use caudal_protocol::messages::describe_log_dirs_response::DescribeLogDirsResult;
use caudal_protocol::messages::describe_topic_partitions_response::DescribeTopicPartitionsResponseTopic as Topic;

use super::{Findings, health};
use crate::commands::Server;
use crate::tools::Stop;
use crate::tools::cluster::{CallError, Cluster, check as check_code};
use crate::tools::groups::consumer_groups;

const CHECK: &str = "broker";
const HEALTH: &str = "health";
const HTTP_LISTENERS: &str = "caudal.http.listeners";
const TOPICS: &str = "partitions";
const GROUPS: &str = "groups";
const TRANSACTIONS: &str = "transactions";
const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Longer than `transaction.max.timeout.ms` allows by default.
const TRANSACTION_LONG_MS: i64 = 15 * 60 * 1000;
/// As many of a kind are named.
const NAMED_MOST: usize = 5;

/// `named`: what is asked about is a file or a directory in the first place; then nothing need be running.
/// `of_dirs`: the id of the cluster that the directories belong to which were looked at.
pub async fn check(server: &Server, named: bool, of_dirs: Option<&str>, findings: &mut Findings) {
    let cluster = match server.connect(&[]).await {
        Ok(cluster) => cluster,
        Err(Stop::Failed(text)) => {
            let text = text.lines().next().unwrap_or_default().to_owned();
            let fix = "`caudal up` starts one; --server names another one; --offline leaves it out";
            if named {
                findings.note(CHECK, text, fix);
            } else {
                findings.problem(CHECK, text, fix);
            }
            return;
        }
        Err(other) => return findings.problem(CHECK, other.to_string(), "see to the client's settings"),
    };
    let checks = [
        (CHECK, check_brokers(&cluster, of_dirs, findings).await),
        (HEALTH, check_health(&cluster, findings).await),
        (TOPICS, check_partitions(&cluster, findings).await),
        (GROUPS, check_groups(&cluster, findings).await),
        (TRANSACTIONS, check_transactions(&cluster, findings).await),
    ];
    for (what, checked) in checks {
        if let Err(error) = checked {
            findings.problem(what, error.to_string(), "look at the broker's log");
        }
    }
}

/// Each broker says of itself where it serves its health; Apache Kafka's does not.
async fn check_health(cluster: &Cluster, findings: &mut Findings) -> Result<(), CallError> {
    let described = cluster.admin.describe_cluster(false).await?;
    for broker in &described.brokers {
        let configs = cluster.configs(ConfigResourceType::Broker, &broker.broker_id.to_string()).await?;
        if let Some(listeners) = configs.into_iter().find(|config| config.name == HTTP_LISTENERS) {
            health::check(&listeners.value.unwrap_or_default(), &described.cluster_id, findings);
        }
    }
    Ok(())
}

async fn check_brokers(cluster: &Cluster, of_dirs: Option<&str>, findings: &mut Findings) -> Result<(), CallError> {
    let described = cluster.admin.describe_cluster(false).await?;
    let addresses: Vec<String> = described.brokers.iter().map(|b| format!("{}:{}", b.host, b.port)).collect();
    let text = format!("cluster {} answers, with {}", described.cluster_id, addresses.join(", "));
    findings.ok(CHECK, text);
    if let Some(of_dirs) = of_dirs.filter(|of_dirs| *of_dirs != described.cluster_id) {
        let text = format!("it is another cluster than {of_dirs}, which the data directory belongs to");
        findings.note(CHECK, text, "--server and --data-dir say which are meant");
    }
    for (node, dirs) in cluster.admin.describe_log_dirs(&[], None).await? {
        check_moves(node, &dirs, findings);
        for dir in &dirs {
            if let Err(error) = check_code(dir.error_code, None) {
                findings.problem(
                    CHECK,
                    format!("log directory {} of broker {node} is out of use: {error}", dir.log_dir),
                    "its log says why; see to the disk, and restart the broker",
                );
            }
        }
    }
    Ok(())
}

/// Partitions on their way to each directory, and whether there is room for them.
fn check_moves(node: i32, dirs: &[DescribeLogDirsResult], findings: &mut Findings) {
    let partitions = |dir: &DescribeLogDirsResult| {
        let topics = dir.topics.iter();
        let all = topics
            .flat_map(|topic| topic.partitions.iter().map(|p| ((topic.name.clone(), p.partition_index), p.clone())));
        all.collect::<Vec<_>>()
    };
    let here = dirs.iter().flat_map(partitions).filter(|(_, p)| !p.is_future_key);
    let sizes: BTreeMap<(String, i32), i64> = here.map(|(name, p)| (name, p.partition_size)).collect();
    for to in dirs {
        let (mut names, mut wanted_bytes) = (Vec::new(), 0);
        for (name, coming) in partitions(to).into_iter().filter(|(_, p)| p.is_future_key) {
            wanted_bytes += sizes.get(&name).map_or(0, |size| (size - coming.partition_size).max(0));
            names.push(format!("{}-{}", name.0, name.1));
        }
        if names.is_empty() {
            continue;
        }
        let (count, dir, free_bytes) = (names.len(), &to.log_dir, to.usable_bytes);
        let what = if count == 1 { "partition is on its" } else { "partitions are on their" };
        let text = format!("{count} {what} way to {dir} of broker {node}: {}", briefly(&names));
        if free_bytes >= 0 && free_bytes < wanted_bytes {
            findings.problem(
                CHECK,
                format!("{text}; {wanted_bytes} bytes are wanted, and {free_bytes} are free"),
                "free space there, or end the moves: ask for the directories that the partitions are in",
            );
        } else {
            findings.note(CHECK, text, "`kafka-log-dirs --describe` tells how far");
        }
    }
}

async fn check_partitions(cluster: &Cluster, findings: &mut Findings) -> Result<(), CallError> {
    let topics = match cluster.admin.describe_topics(None).await {
        Ok(topics) => topics,
        Err(error) => return Err(error.into()),
    };
    let count: usize = topics.iter().map(|topic| topic.partitions.len()).sum();
    let mut bad = false;
    let mut tell = |names: Vec<String>, what: &str, fix: &str| {
        if !names.is_empty() {
            bad = true;
            findings.problem(TOPICS, format!("{} {what}: {}", names.len(), briefly(&names)), fix);
        }
    };
    let fix = "the broker that has them is away, or its disk or their own directories cannot be used: see its log";
    tell(named(&topics, |p| p.leader_id < 0), "without a leader", fix);
    tell(named(&topics, |p| !p.offline_replicas.is_empty() && p.leader_id >= 0), "with replicas that are away", fix);
    let short = |p: &Partition| p.isr_nodes.len() < p.replica_nodes.len() && p.leader_id >= 0;
    tell(named(&topics, short), "with replicas that are not in sync", "see whether all brokers run and keep up");
    for topic in topics.iter().filter(|topic| topic.partitions.iter().any(short)) {
        let name = topic.name.as_deref().unwrap_or_default();
        let configs = cluster.configs(ConfigResourceType::Topic, name).await?;
        let least = configs.iter().find(|c| c.name == "min.insync.replicas").and_then(|c| c.value.as_deref());
        let least: usize = least.and_then(|value| value.parse().ok()).unwrap_or(1);
        if topic.partitions.iter().any(|p| short(p) && p.isr_nodes.len() < least) {
            let what = format!("topic refuses acks=all: fewer replicas than min.insync.replicas={least} are in sync");
            tell(vec![name.to_owned()], &what, "bring the missing brokers back");
        }
    }
    if !bad {
        findings.ok(TOPICS, format!("each of {count} has a leader and all its replicas"));
    }
    Ok(())
}

type Partition =
    caudal_protocol::messages::describe_topic_partitions_response::DescribeTopicPartitionsResponsePartition;

/// The partitions of which something is true.
fn named(topics: &[Topic], which: impl Fn(&Partition) -> bool) -> Vec<String> {
    let of_topic = |topic: &Topic| {
        let name = topic.name.clone().unwrap_or_default();
        let found = topic.partitions.iter().filter(|partition| which(partition));
        found.map(|partition| format!("{name}-{}", partition.partition_index)).collect::<Vec<_>>()
    };
    topics.iter().flat_map(of_topic).collect()
}

fn briefly(names: &[String]) -> String {
    let shown = names.get(..NAMED_MOST.min(names.len())).unwrap_or_default().join(", ");
    match names.len().saturating_sub(NAMED_MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

async fn check_groups(cluster: &Cluster, findings: &mut Findings) -> Result<(), CallError> {
    let groups = consumer_groups(cluster).await?;
    let topics: BTreeSet<String> = cluster.topic_names().await?.into_iter().collect();
    if !topics.contains(OFFSETS_TOPIC) {
        findings.ok(GROUPS, format!("there is no {OFFSETS_TOPIC} yet: it is made with the first group"));
    }
    let (mut lagging, mut idle) = (Vec::new(), Vec::new());
    for group in &groups {
        let committed = cluster.committed(&group.group_id).await?;
        let partitions: Vec<_> = committed.keys().filter(|tp| topics.contains(&tp.topic)).cloned().collect();
        let ends = cluster.list_offsets(&partitions, OffsetSpec::Latest).await?;
        let lag_of = |(tp, listed): (_, &Result<caudal_client::ListedOffset, CallError>)| {
            let end = listed.as_ref().ok()?.offset;
            Some((end - committed.get(tp)?.offset).max(0))
        };
        let lag: i64 = ends.iter().filter_map(lag_of).sum();
        if lag > 0 && group.group_state.eq_ignore_ascii_case("Empty") {
            idle.push(format!("{} ({lag} records behind)", group.group_id));
        } else if lag > 0 {
            lagging.push(format!("{} ({lag} records behind)", group.group_id));
        }
    }
    if !idle.is_empty() {
        findings.note(
            GROUPS,
            format!("{} with records to read and nobody to read them: {}", idle.len(), briefly(&idle)),
            "start their consumers, or `caudal group delete NAME` if nobody needs them any more",
        );
    }
    if !lagging.is_empty() {
        findings.note(
            GROUPS,
            format!("{} behind: {}", lagging.len(), briefly(&lagging)),
            "`caudal group describe NAME` shows where; more members (up to one per partition) or quicker ones help",
        );
    }
    if idle.is_empty() && lagging.is_empty() {
        findings.ok(GROUPS, format!("none of {} is behind", groups.len()));
    }
    Ok(())
}

async fn check_transactions(cluster: &Cluster, findings: &mut Findings) -> Result<(), CallError> {
    let client = cluster.admin.client();
    let request = ListTransactionsRequest {
        state_filters: ["Ongoing", "PrepareCommit", "PrepareAbort"].map(str::to_owned).to_vec(),
        duration_filter: TRANSACTION_LONG_MS,
        ..Default::default()
    };
    let mut open = Vec::new();
    for node in client.nodes() {
        let answer = match client.send(node.id, &request).await {
            Err(caudal_client::Error::UnsupportedApi { .. }) => continue,
            answer => answer?,
        };
        check_code(answer.error_code, None)?;
        open.extend(
            answer.transaction_states.into_iter().map(|t| format!("{} ({})", t.transactional_id, t.transaction_state)),
        );
    }
    if open.is_empty() {
        findings.ok(TRANSACTIONS, "none has been open for longer than 15 minutes");
    } else {
        findings.problem(
            TRANSACTIONS,
            format!("{} open for longer than 15 minutes: {}", open.len(), briefly(&open)),
            "consumers of committed records wait for them; end the producer, or abort them with kafka-transactions.sh",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use caudal_protocol::messages::describe_log_dirs_response::{DescribeLogDirsPartition, DescribeLogDirsTopic};

    use super::super::Level;
    use super::*;

    #[test]
    fn moves_are_told_for_each_directory() {
        let dir = |log_dir: &str, is_future_key, bytes: &[i64]| {
            let partition = |(at, bytes): (usize, &i64)| DescribeLogDirsPartition {
                partition_index: i32::try_from(at).unwrap(),
                partition_size: *bytes,
                is_future_key,
                ..Default::default()
            };
            let partitions = bytes.iter().enumerate().map(partition).collect();
            let topics = vec![DescribeLogDirsTopic { name: "t".into(), partitions }];
            DescribeLogDirsResult { log_dir: log_dir.into(), topics, usable_bytes: 150, ..Default::default() }
        };
        let dirs = [dir("a", false, &[100, 100]), dir("b", true, &[20]), dir("c", true, &[20, 20])];
        let mut findings = Findings::default();
        check_moves(1, &dirs, &mut findings);
        let found: Vec<_> = findings.0.iter().map(|found| (found.level, found.text.as_str())).collect();
        assert_eq!(
            found,
            [
                (Level::Note, "1 partition is on its way to b of broker 1: t-0"),
                (
                    Level::Problem,
                    "2 partitions are on their way to c of broker 1: t-0, t-1; 160 bytes are wanted, and 150 are free"
                ),
            ]
        );
    }
}
