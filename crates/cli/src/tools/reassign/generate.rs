//! `--generate`: spread the partitions of topics over brokers.

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::TopicPartition;

use super::plan::{self, Replica};
use super::{call_error, error, places, replicas};
use crate::tools::cluster::Cluster;
use crate::tools::json::{self, Json};
use crate::tools::{Stop, say};

/// The ids of `--broker-list`.
pub fn brokers(list: &str) -> Result<Vec<i32>, Stop> {
    let id = |text: &str| text.trim().parse::<i32>().map_err(|_| error(format!("For input string: \"{text}\"")));
    let ids = list.split(',').map(id).collect::<Result<Vec<_>, _>>()?;
    let twice = json::duplicates(&ids);
    if twice.is_empty() {
        return Ok(ids);
    }
    Err(error(format!("Broker list contains duplicate entries: {twice:?}")))
}

/// The topics of `--topics-to-move-json-file`.
pub fn topics(path: &str) -> Result<Vec<String>, Stop> {
    let wrap = |stop: Stop| error(stop);
    let value = json::read(path).map_err(wrap)?;
    let list = Json::root(&value, path).get("topics").and_then(|l| l.map_or(Ok(Vec::new()), |l| l.list()));
    let name = |item: &Json<'_>| item.text("topic").map(str::to_owned);
    let names = list.and_then(|l| l.iter().map(name).collect::<Result<Vec<_>, _>>()).map_err(wrap)?;
    let twice = json::duplicates(&names);
    if twice.is_empty() {
        return Ok(names);
    }
    Err(error(format!("List of topics to reassign contains duplicate entries: [{}]", twice.join(", "))))
}

pub async fn run(cluster: &Cluster, brokers: &[i32], topics: Vec<String>, by_rack: bool) -> Result<(), Stop> {
    let current = replicas(cluster, &topics).await?;
    let all = current.iter().flat_map(|(tp, ids)| ids.iter().map(|id| Replica { broker: *id, partition: tp.clone() }));
    let places = places(cluster, &all.collect::<Vec<_>>()).await?;
    let usable = usable(cluster, brokers, by_rack).await?;
    let proposed = spread(&current, &usable, |below| rand::random_range(0..below))?;
    let dir = |replica: &Replica| places.get(replica).and_then(|place| place.current.as_deref());
    say!("Current partition replica assignment\n{}\n", plan::text(&current, dir)?)?;
    say!("Proposed partition reassignment configuration\n{}", plan::text(&proposed, |_| None)?)
}

/// The brokers of the list that are up, with their racks.
async fn usable(cluster: &Cluster, wanted: &[i32], by_rack: bool) -> Result<Vec<(i32, Option<String>)>, Stop> {
    let described = cluster.admin.describe_cluster(false).await.map_err(call_error)?;
    let usable: Vec<(i32, Option<String>)> = described
        .brokers
        .into_iter()
        .filter(|b| wanted.contains(&b.broker_id))
        .map(|b| (b.broker_id, b.rack.filter(|_| by_rack)))
        .collect();
    let without = usable.iter().filter(|(_, rack)| rack.is_none()).count();
    if by_rack && without != 0 && without != usable.len() {
        return Err(error(
            "Not all brokers have rack information. Add --disable-rack-aware in command line to make replica assignment \
             without rack information.",
        ));
    }
    Ok(usable)
}

/// Spreads each topic's partitions: the first replicas over the racks in turn, the others over the racks that follow, and
/// within a rack over its brokers in turn, from places that `random` chooses.
fn spread(
    current: &BTreeMap<TopicPartition, Vec<i32>>,
    brokers: &[(i32, Option<String>)],
    random: impl Fn(usize) -> usize,
) -> Result<BTreeMap<TopicPartition, Vec<i32>>, Stop> {
    let mut by_rack: BTreeMap<&Option<String>, Vec<i32>> = BTreeMap::new();
    for (id, rack) in brokers {
        by_rack.entry(rack).or_default().push(*id);
    }
    let racks: Vec<Vec<i32>> = by_rack.into_values().collect();
    let names: BTreeSet<&String> = current.keys().map(|tp| &tp.topic).collect();
    let mut proposed = BTreeMap::new();
    for name in names {
        let partitions: Vec<(&TopicPartition, &Vec<i32>)> =
            current.iter().filter(|(tp, _)| tp.topic == **name).collect();
        let count = partitions.first().map_or(0, |(_, replicas)| replicas.len());
        if racks.is_empty() {
            return Err(error("All brokers are currently fenced, or have all their log directories cordoned."));
        }
        if count > brokers.len() {
            return Err(error(format!(
                "The target replication factor of {count} cannot be reached because only {} broker(s) are registered or \
                 some brokers have all their log directories cordoned.",
                brokers.len()
            )));
        }
        let start = random(racks.len());
        let mut next: Vec<usize> = racks.iter().map(|rack| random(rack.len())).collect();
        for (index, (tp, _)) in partitions.into_iter().enumerate() {
            proposed.insert(tp.clone(), place(&racks, start + index, &mut next, count));
        }
    }
    Ok(proposed)
}

/// The replicas of one partition; `next` is where each rack goes on.
fn place(racks: &[Vec<i32>], first: usize, next: &mut [usize], count: usize) -> Vec<i32> {
    let mut placed: Vec<i32> = Vec::new();
    let mut at = first;
    while placed.len() < count {
        let index = at % racks.len();
        at += 1;
        let (Some(rack), Some(next)) = (racks.get(index), next.get_mut(index)) else { continue };
        let free = (0..rack.len()).filter_map(|i| rack.get((*next + i) % rack.len())).find(|id| !placed.contains(id));
        if let Some(id) = free {
            placed.push(*id);
            *next += 1;
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread_over(partitions: i32, factor: usize, racks: &[Option<&str>]) -> Result<Vec<Vec<i32>>, String> {
        let current = (0..partitions).map(|p| (TopicPartition::new("t", p), vec![0; factor])).collect();
        let brokers: Vec<_> = (1..).zip(racks).map(|(id, rack)| (id, rack.map(str::to_owned))).collect();
        spread(&current, &brokers, |_| 0).map(|m| m.into_values().collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn partitions_are_spread_over_racks_and_brokers() {
        let found = spread_over(4, 2, &[None; 4]).unwrap();
        assert_eq!(found, [[1, 2], [3, 4], [1, 2], [3, 4]]);
        let found = spread_over(4, 2, &[Some("a"), Some("a"), Some("b"), Some("b")]).unwrap();
        assert_eq!(found, [[1, 3], [4, 2], [1, 3], [4, 2]]);
        let found = spread_over(1, 3, &[Some("a"), Some("a"), Some("b")]).unwrap();
        assert_eq!(found, [[1, 3, 2]]);
        let error = spread_over(1, 3, &[None]).unwrap_err();
        assert!(error.contains("factor of 3 cannot be reached because only 1 broker(s)"), "{error}");
        assert!(spread_over(1, 1, &[]).is_err());
    }

    #[test]
    fn broker_lists() {
        assert_eq!(brokers("1,2").unwrap(), [1, 2]);
        assert_eq!(brokers("1,1").unwrap_err().to_string(), "Error: Broker list contains duplicate entries: [1]");
        assert_eq!(brokers("x").unwrap_err().to_string(), "Error: For input string: \"x\"");
    }
}
