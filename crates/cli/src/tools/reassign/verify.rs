//! `--verify`: how far reassignments are.

use std::collections::BTreeMap;

use caudal_protocol::{ErrorCode, TopicPartition};

use super::plan::{Plan, Replica};
use super::{Ongoing, Place, call_error, join, ongoing, places, throttle};
use crate::tools::cluster::{Cluster, check};
use crate::tools::{Stop, say};

pub async fn run(cluster: &Cluster, plan: &Plan, keep_throttles: bool) -> Result<(), Stop> {
    let ongoing = ongoing(cluster, None).await?;
    let current = current(cluster, plan, &ongoing).await?;
    say!("Status of partition reassignment:")?;
    let targets: BTreeMap<&TopicPartition, &Vec<i32>> = plan.partitions.iter().map(|(tp, r)| (tp, r)).collect();
    for (tp, target) in targets {
        say!("{}", partition_line(tp, target, current.get(tp)))?;
    }
    let wanted: Vec<Replica> = plan.dirs.keys().cloned().collect();
    let places = places(cluster, &wanted).await?;
    let is_moving = places.values().any(|place| place.future.is_some());
    let lines: Vec<String> =
        plan.dirs.iter().filter_map(|(r, dir)| Some(replica_line(r, dir, places.get(r)?))).collect();
    say!("{}", lines.join("\n"))?;
    if ongoing.is_empty() && !is_moving && !keep_throttles {
        throttle::clear(cluster, plan).await?;
    }
    Ok(())
}

/// The replicas of the plan's partitions that are not being reassigned; none of one that is not there.
async fn current(
    cluster: &Cluster,
    plan: &Plan,
    ongoing: &Ongoing,
) -> Result<BTreeMap<TopicPartition, Vec<i32>>, Stop> {
    let settled: Vec<&TopicPartition> =
        plan.partitions.iter().map(|(tp, _)| tp).filter(|tp| !ongoing.contains_key(tp)).collect();
    let mut names: Vec<String> = settled.iter().map(|tp| tp.topic.clone()).collect();
    names.sort();
    names.dedup();
    let mut current: BTreeMap<TopicPartition, Vec<i32>> =
        settled.into_iter().map(|tp| (tp.clone(), Vec::new())).collect();
    for topic in cluster.admin.describe_topics(Some(&names)).await.map_err(call_error)? {
        if topic.error_code == ErrorCode::UnknownTopicOrPartition.code() {
            continue;
        }
        check(topic.error_code, None).map_err(call_error)?;
        let name = topic.name.unwrap_or_default();
        for p in topic.partitions {
            if let Some(replicas) = current.get_mut(&TopicPartition::new(name.clone(), p.partition_index)) {
                *replicas = p.replica_nodes;
            }
        }
    }
    Ok(current)
}

/// `current` of `None`: it is being reassigned.
fn partition_line(tp: &TopicPartition, target: &[i32], current: Option<&Vec<i32>>) -> String {
    match current {
        None => format!("Reassignment of partition {tp} is still in progress."),
        Some(current) if current == target => format!("Reassignment of partition {tp} is completed."),
        Some(current) => format!(
            "There is no active reassignment of partition {tp}, but replica set is {} rather than {}.",
            join(current),
            join(target)
        ),
    }
}

fn replica_line(replica: &Replica, target: &str, place: &Place) -> String {
    let Replica { broker, partition } = replica;
    match (&place.current, &place.future) {
        (None, _) => format!(
            "Partition {partition} is not found in any live log dir on broker {broker}. There is likely an offline log \
             directory on the broker."
        ),
        (Some(current), None) if current == target => {
            format!("Reassignment of replica {replica} completed successfully.")
        }
        (Some(current), None) => {
            format!("Partition {partition} on broker {broker} is not being moved from log dir {current} to {target}.")
        }
        (Some(_), Some(future)) if future == target => {
            format!("Reassignment of replica {replica} is still in progress.")
        }
        (Some(_), Some(future)) => {
            format!("Partition {partition} on broker {broker} is being moved to log dir {future} instead of {target}.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_in_words() {
        let tp = TopicPartition::new("t", 0);
        let line = |current: Option<&[i32]>| partition_line(&tp, &[1, 2], current.map(<[i32]>::to_vec).as_ref());
        assert_eq!(line(None), "Reassignment of partition t-0 is still in progress.");
        assert_eq!(line(Some(&[1, 2])), "Reassignment of partition t-0 is completed.");
        assert_eq!(
            line(Some(&[2])),
            "There is no active reassignment of partition t-0, but replica set is 2 rather than 1,2."
        );
        let replica = Replica { broker: 1, partition: tp };
        let place = |current: Option<&str>, future: Option<&str>| Place {
            current: current.map(str::to_owned),
            future: future.map(str::to_owned),
        };
        let cases = [
            (place(None, None), "Partition t-0 is not found in any live log dir on broker 1. There is likely"),
            (place(Some("/b"), None), "Reassignment of replica t-0-1 completed successfully."),
            (place(Some("/a"), None), "Partition t-0 on broker 1 is not being moved from log dir /a to /b."),
            (place(Some("/a"), Some("/b")), "Reassignment of replica t-0-1 is still in progress."),
            (place(Some("/a"), Some("/c")), "Partition t-0 on broker 1 is being moved to log dir /c instead of /b."),
        ];
        for (place, sentence) in cases {
            assert!(replica_line(&replica, "/b", &place).starts_with(sentence), "{sentence}");
        }
    }
}
