//! Limits on the bytes per second that reassignments take: rates at brokers, and at topics which replicas they count for.

use std::collections::{BTreeMap, BTreeSet};

use caudal_client::admin::ConfigResourceType;
use caudal_protocol::TopicPartition;

use super::plan::Plan;
use super::{Ongoing, call_error, join};
use crate::tools::cluster::Cluster;
use crate::tools::{Stop, say};

const LEADER_RATE: &str = "leader.replication.throttled.rate";
const FOLLOWER_RATE: &str = "follower.replication.throttled.rate";
const LOG_DIRS_RATE: &str = "replica.alter.log.dirs.io.max.bytes.per.second";
const LEADER_REPLICAS: &str = "leader.replication.throttled.replicas";
const FOLLOWER_REPLICAS: &str = "follower.replication.throttled.replicas";

/// Removes all limits that a reassignment may have set.
pub async fn clear(cluster: &Cluster, plan: &Plan) -> Result<(), Stop> {
    let mut brokers: BTreeSet<i32> = cluster.brokers().await.map_err(call_error)?.into_iter().collect();
    brokers.extend(plan.brokers());
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    say!("Clearing broker-level throttles on broker{} {}", plural(brokers.len()), join(&brokers))?;
    let gone = |names: &[&str]| names.iter().map(|&n| (n.to_owned(), None)).collect::<Vec<_>>();
    for broker in &brokers {
        let rates = gone(&[LEADER_RATE, FOLLOWER_RATE, LOG_DIRS_RATE]);
        alter(cluster, ConfigResourceType::Broker, &broker.to_string(), &rates).await?;
    }
    let topics = plan.topics();
    say!("Clearing topic-level throttles on topic{} {}", plural(topics.len()), topics.join(","))?;
    for topic in &topics {
        alter(cluster, ConfigResourceType::Topic, topic, &gone(&[LEADER_REPLICAS, FOLLOWER_REPLICAS])).await?;
    }
    Ok(())
}

async fn alter(
    cluster: &Cluster,
    resource_type: ConfigResourceType,
    name: &str,
    changes: &[(String, Option<String>)],
) -> Result<(), Stop> {
    cluster.alter_configs(resource_type, name, changes).await.map_err(call_error)
}

/// From where to where a partition is moved.
#[derive(Debug, Default, PartialEq, Eq)]
struct Move {
    sources: BTreeSet<i32>,
    destinations: BTreeSet<i32>,
}

type Moves = BTreeMap<TopicPartition, Move>;

/// The moves under way, and those of a plan.
fn moves(ongoing: &Ongoing, plan: &Plan, current: &BTreeMap<TopicPartition, Vec<i32>>) -> Moves {
    let mut moves: Moves = ongoing
        .iter()
        .map(|(tp, r)| {
            let destinations: BTreeSet<i32> = r.adding_replicas.iter().copied().collect();
            let sources = r.replicas.iter().copied().filter(|id| !destinations.contains(id)).collect();
            (tp.clone(), Move { sources, destinations })
        })
        .collect();
    for (tp, replicas) in &plan.partitions {
        let here = || current.get(tp).map(|ids| ids.iter().copied().collect()).unwrap_or_default();
        let sources: BTreeSet<i32> = moves.remove(tp).map_or_else(here, |m| m.sources);
        let destinations = replicas.iter().copied().filter(|id| !sources.contains(id)).collect();
        moves.insert(tp.clone(), Move { sources, destinations });
    }
    moves
}

/// The replicas of each topic that are limited, as `partition:broker`, on one side of its moves.
fn throttled(moves: &Moves, side: impl Fn(&Move) -> &BTreeSet<i32>) -> BTreeMap<&str, String> {
    let mut topics: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (tp, moved) in moves {
        let replicas = side(moved).iter().map(|id| format!("{}:{id}", tp.partition));
        topics.entry(&tp.topic).or_default().extend(replicas);
    }
    topics.into_iter().map(|(topic, replicas)| (topic, join(replicas))).collect()
}

/// Limits what is moved between brokers.
pub async fn between_brokers(
    cluster: &Cluster,
    ongoing: &Ongoing,
    plan: &Plan,
    current: &BTreeMap<TopicPartition, Vec<i32>>,
    bytes_per_second: i64,
) -> Result<(), Stop> {
    let moves = moves(ongoing, plan, current);
    let followers = throttled(&moves, |m| &m.destinations);
    for (topic, leaders) in throttled(&moves, |m| &m.sources) {
        let followers = followers.get(topic).cloned().unwrap_or_default();
        let changes = [(LEADER_REPLICAS.to_owned(), Some(leaders)), (FOLLOWER_REPLICAS.to_owned(), Some(followers))];
        alter(cluster, ConfigResourceType::Topic, topic, &changes).await?;
    }
    let brokers: BTreeSet<i32> = moves.values().flat_map(|m| m.sources.union(&m.destinations)).copied().collect();
    let rate = Some(bytes_per_second.to_string());
    for broker in brokers {
        let changes = [(LEADER_RATE.to_owned(), rate.clone()), (FOLLOWER_RATE.to_owned(), rate.clone())];
        alter(cluster, ConfigResourceType::Broker, &broker.to_string(), &changes).await?;
    }
    say!("The inter-broker throttle limit was set to {bytes_per_second} B/s")
}

/// Limits what is moved between the log directories of brokers.
pub async fn between_log_dirs(cluster: &Cluster, plan: &Plan, bytes_per_second: i64) -> Result<(), Stop> {
    let brokers: BTreeSet<i32> = plan.dirs.keys().map(|r| r.broker).collect();
    for broker in brokers {
        let changes = [(LOG_DIRS_RATE.to_owned(), Some(bytes_per_second.to_string()))];
        alter(cluster, ConfigResourceType::Broker, &broker.to_string(), &changes).await?;
    }
    say!("The replica-alter-dir throttle limit was set to {bytes_per_second} B/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_a_move_are_limited() {
        let tp = TopicPartition::new("t", 3);
        let plan = Plan { partitions: vec![(tp.clone(), vec![2, 3])], ..Plan::default() };
        let moves = moves(&Ongoing::new(), &plan, &BTreeMap::from([(tp, vec![1, 2])]));
        assert_eq!(throttled(&moves, |m| &m.sources)["t"], "3:1,3:2");
        assert_eq!(throttled(&moves, |m| &m.destinations)["t"], "3:3");
    }
}
