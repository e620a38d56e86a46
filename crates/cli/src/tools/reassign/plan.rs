//! The JSON in which reassignments are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use caudal_protocol::TopicPartition;
use serde::Serialize;

use super::{error, join};
use crate::tools::Stop;
use crate::tools::json::{self, Json};

/// Stands for whichever log directory the broker chooses.
const ANY: &str = "any";

/// A replica of a partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    pub broker: i32,
    pub partition: TopicPartition,
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.partition, self.broker)
    }
}

/// What `--reassignment-json-file` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of the file.
    pub partitions: Vec<(TopicPartition, Vec<i32>)>,
    /// Log directories that replicas are to be in.
    pub dirs: BTreeMap<Replica, String>,
}

pub fn read(path: &str) -> Result<Plan, Stop> {
    let wrap = |stop: Stop| error(stop);
    let value = json::read(path).map_err(wrap)?;
    parse(Json::root(&value, path)).map_err(wrap)
}

fn parse(root: Json<'_>) -> Result<Plan, Stop> {
    let mut plan = Plan::default();
    let Some(list) = root.get("partitions")? else { return Ok(plan) };
    for item in list.list()? {
        let partition = item.partition()?;
        let replicas = item.ints("replicas")?;
        let dirs = item.texts("log_dirs")?.unwrap_or_else(|| vec![ANY.to_owned(); replicas.len()]);
        if dirs.len() != replicas.len() {
            let ids = replicas.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
            return Err(Stop::Failed(format!(
                "Size of replicas list [{ids}] is different from size of log dirs list [{}] for partition {partition}",
                dirs.join(", ")
            )));
        }
        let named = replicas.iter().zip(dirs).filter(|(_, dir)| dir != ANY);
        plan.dirs.extend(named.map(|(broker, dir)| (Replica { broker: *broker, partition: partition.clone() }, dir)));
        plan.partitions.push((partition, replicas));
    }
    Ok(plan)
}

impl Plan {
    /// Refuses what cannot be executed.
    pub fn check(&self) -> Result<(), Stop> {
        if self.partitions.is_empty() {
            return Err(error("Partition reassignment list cannot be empty"));
        }
        if self.partitions.iter().any(|(_, replicas)| replicas.is_empty()) {
            return Err(error("Partition replica list cannot be empty"));
        }
        let names: Vec<TopicPartition> = self.partitions.iter().map(|(tp, _)| tp.clone()).collect();
        let twice = json::duplicates(&names);
        if !twice.is_empty() {
            return Err(error(format!("Partition reassignment contains duplicate topic partitions: {}", join(&twice))));
        }
        let twice = |(tp, replicas): &(TopicPartition, Vec<i32>)| {
            let twice = json::duplicates(replicas);
            (!twice.is_empty()).then(|| format!("{tp} contains multiple entries for {}", join(&twice)))
        };
        let twice: Vec<String> = self.partitions.iter().filter_map(twice).collect();
        if twice.is_empty() {
            return Ok(());
        }
        Err(error(format!("Partition replica lists may not contain duplicate entries: {}", twice.join(". "))))
    }

    /// The names of the topics, each once.
    pub fn topics(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.partitions.iter().map(|(tp, _)| &tp.topic).collect();
        names.into_iter().cloned().collect()
    }

    /// The brokers that are to have replicas.
    pub fn brokers(&self) -> BTreeSet<i32> {
        self.partitions.iter().flat_map(|(_, replicas)| replicas).copied().collect()
    }
}

// The keys in the order in which the original prints them.
#[derive(Serialize)]
struct File<'a> {
    version: i32,
    partitions: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    partition: i32,
    replicas: &'a [i32],
    log_dirs: Vec<&'a str>,
}

/// Replicas as such a file has them; `dir` knows the log directory of one.
pub fn text<'a>(
    replicas: &'a BTreeMap<TopicPartition, Vec<i32>>,
    dir: impl Fn(&Replica) -> Option<&'a str>,
) -> Result<String, Stop> {
    let line = |(tp, replicas): (&'a TopicPartition, &'a Vec<i32>)| {
        let dir = |id: &i32| dir(&Replica { broker: *id, partition: tp.clone() }).unwrap_or(ANY);
        Line { topic: &tp.topic, partition: tp.partition, replicas, log_dirs: replicas.iter().map(dir).collect() }
    };
    let file = File { version: 1, partitions: replicas.iter().map(line).collect() };
    serde_json::to_string(&file).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<Plan, String> {
        let value = serde_json::from_str(text).unwrap();
        let plan = parse(Json::root(&value, "f")).map_err(|e| e.to_string())?;
        plan.check().map_err(|e| e.to_string())?;
        Ok(plan)
    }

    #[test]
    fn files() {
        let text =
            r#"{"version":1,"partitions":[{"topic":"t","partition":0,"replicas":[1,2],"log_dirs":["any","/d"]}]}"#;
        let found = plan(text).unwrap();
        let tp = TopicPartition::new("t", 0);
        assert_eq!(found.partitions, [(tp.clone(), vec![1, 2])]);
        assert_eq!(found.dirs, BTreeMap::from([(Replica { broker: 2, partition: tp.clone() }, "/d".to_owned())]));
        let back = super::text(&BTreeMap::from([(tp, vec![1, 2])]), |r| (r.broker == 2).then_some("/d")).unwrap();
        assert_eq!(back, text);
    }

    #[test]
    fn what_makes_no_sense() {
        let cases = [
            (r#"{"partitions":[]}"#, "Error: Partition reassignment list cannot be empty"),
            (
                r#"{"partitions":[{"topic":"t","partition":0,"replicas":[]}]}"#,
                "Error: Partition replica list cannot be empty",
            ),
            (
                r#"{"partitions":[{"topic":"t","partition":0,"replicas":[1]},{"topic":"t","partition":0,"replicas":[1]}]}"#,
                "Error: Partition reassignment contains duplicate topic partitions: t-0",
            ),
            (
                r#"{"partitions":[{"topic":"t","partition":0,"replicas":[1,1]}]}"#,
                "Error: Partition replica lists may not contain duplicate entries: t-0 contains multiple entries for 1",
            ),
            (
                r#"{"partitions":[{"topic":"t","partition":0,"replicas":[1,2],"log_dirs":["/d"]}]}"#,
                "Size of replicas list [1, 2] is different from size of log dirs list [/d] for partition t-0",
            ),
        ];
        for (text, error) in cases {
            assert_eq!(plan(text).unwrap_err(), error);
        }
    }
}
