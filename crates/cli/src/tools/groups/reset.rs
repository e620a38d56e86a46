//! `--reset-offsets`: plan new offsets for a group without members and, with `--execute`, commit them.

use std::collections::BTreeMap;

use caudal_client::OffsetSpec;
use caudal_client::admin::OffsetAndMetadata;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::{SCENARIOS, model, print_error};
use crate::tools::cluster::{CallError, Cluster, Offsets};
use crate::tools::java::{columns, date_time_ms, duration_ms};
use crate::tools::options::Parsed;
use crate::tools::{Stop, say, tell};

type Plan = BTreeMap<TopicPartition, i64>;

/// Plans and perhaps executes the reset of each group, and prints the new offsets.
pub async fn run(cluster: &Cluster, parsed: &Parsed, groups: &[String]) -> Result<(), Stop> {
    let mut plans: BTreeMap<String, Plan> = BTreeMap::new();
    for group in groups {
        let plan = match model::describe(cluster, group).await {
            Ok(described) if !matches!(described.state.as_str(), "Empty" | "Dead") => {
                print_error(&format!(
                    "Assignments can only be reset if the group '{group}' is inactive, but the current state is {}.",
                    described.state
                ))?;
                Plan::new()
            }
            Err(e) if e.code != Some(ErrorCode::GroupIdNotFound) => return Err(Stop::Failed(e.java())),
            _ => reset(cluster, parsed, group).await?,
        };
        plans.insert(group.clone(), plan);
    }
    if parsed.has("export") { export(parsed, &plans) } else { print(&plans) }
}

fn print(plans: &BTreeMap<String, Plan>) -> Result<(), Stop> {
    let group_width = plans.keys().map(String::len).max().unwrap_or(0).max(15);
    let topics = plans.values().flat_map(Plan::keys).map(|tp| tp.topic.len());
    let widths = [group_width, topics.max().unwrap_or(0).max(15), 10];
    say!("")?;
    if plans.is_empty() {
        return Ok(());
    }
    say!("{}", columns(&widths, &["GROUP", "TOPIC", "PARTITION", "NEW-OFFSET"]))?;
    plans.iter().flat_map(|(g, plan)| plan.iter().map(move |entry| (g, entry))).try_for_each(|(g, (tp, offset))| {
        say!("{}", columns(&widths, &[g, &tp.topic, &tp.partition.to_string(), &offset.to_string()]))
    })
}

fn export(parsed: &Parsed, plans: &BTreeMap<String, Plan>) -> Result<(), Stop> {
    let has_one_group = parsed.all("group").len() == 1;
    for (group, plan) in plans {
        for (tp, offset) in plan {
            let row = format!("{},{},{offset}", tp.topic, tp.partition);
            if has_one_group { say!("{row}")? } else { say!("{},{row}", quote(group))? }
        }
    }
    say!("")
}

/// A CSV field, quoted where it must be.
fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', ' ']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.to_owned() }
}

async fn reset(cluster: &Cluster, parsed: &Parsed, group: &str) -> Result<Plan, Stop> {
    let partitions = scope(cluster, parsed, group).await?;
    check_partitions(cluster, &partitions).await?;
    let plan = scenario(cluster, parsed, group, &partitions).await?;
    if parsed.has("execute") {
        let offsets: Offsets = plan.iter().map(|(tp, o)| (tp.clone(), OffsetAndMetadata::from(*o))).collect();
        cluster.commit(group, &offsets).await?;
    }
    Ok(plan)
}

/// The partitions of `--all-topics` or `--topic`.
async fn scope(cluster: &Cluster, parsed: &Parsed, group: &str) -> Result<Vec<TopicPartition>, Stop> {
    if parsed.has("all-topics") {
        return Ok(cluster.committed(group).await?.into_keys().collect());
    }
    if !parsed.has("topic") {
        if parsed.has("from-file") {
            return Ok(Vec::new());
        }
        let sentence = "One of the reset scopes should be defined: --all-topics, --topic.";
        return Err(Stop::Usage(sentence.to_owned()));
    }
    let (with, without): (Vec<&String>, Vec<&String>) = parsed.all("topic").iter().partition(|t| t.contains(':'));
    let mut partitions = Vec::new();
    for topic in with {
        partitions.extend(topic_partitions(topic)?);
    }
    let names: Vec<String> = without.into_iter().cloned().collect();
    partitions.extend(cluster.partitions(&names).await?);
    Ok(partitions)
}

/// `topic:0,1,2`
pub fn topic_partitions(text: &str) -> Result<Vec<TopicPartition>, Stop> {
    let parts: Vec<&str> = text.trim_end_matches(':').split(':').collect();
    let [topic, ids] = parts.as_slice() else {
        let sentence = format!("Invalid topic arg '{text}', expected topic name and partitions");
        return Err(Stop::Usage(sentence));
    };
    let partition = |id: &str| {
        let invalid = |_| Stop::Usage(format!("Invalid partition '{id}' specified in topic arg '{text}''"));
        id.parse::<i32>().map(|p| TopicPartition::new(*topic, p)).map_err(invalid)
    };
    ids.split(',').map(partition).collect()
}

async fn check_partitions(cluster: &Cluster, partitions: &[TopicPartition]) -> Result<(), Stop> {
    let mut names: Vec<String> = partitions.iter().map(|tp| tp.topic.clone()).collect();
    names.sort();
    names.dedup();
    let topics = cluster.describe_topics(&names).await?;
    let leader = |tp: &TopicPartition| {
        let topic = topics.iter().find(|t| t.name.as_deref() == Some(&tp.topic))?;
        topic.partitions.iter().find(|p| p.partition_index == tp.partition).map(|p| p.leader_id)
    };
    let join = |found: Vec<&TopicPartition>| found.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let missing = join(partitions.iter().filter(|tp| leader(tp).is_none()).collect());
    if !missing.is_empty() {
        return Err(Stop::Failed(format!("The partitions \"{missing}\" do not exist")));
    }
    let headless = join(partitions.iter().filter(|tp| leader(tp).is_some_and(|l| l < 0)).collect());
    if !headless.is_empty() {
        return Err(Stop::Failed(format!("The partitions \"{headless}\" have no leader")));
    }
    Ok(())
}

async fn scenario(
    cluster: &Cluster,
    parsed: &Parsed,
    group: &str,
    partitions: &[TopicPartition],
) -> Result<Plan, Stop> {
    if let Some(offset) = parsed.long("to-offset")? {
        return in_range(cluster, partitions.iter().map(|tp| (tp.clone(), offset)).collect()).await;
    }
    if parsed.has("to-earliest") {
        return listed(cluster, partitions, OffsetSpec::Earliest).await;
    }
    if parsed.has("to-latest") {
        return listed(cluster, partitions, OffsetSpec::Latest).await;
    }
    if let Some(shift) = parsed.long("shift-by")? {
        let committed = cluster.committed(group).await?;
        let shifted = |tp: &TopicPartition| match committed.get(tp) {
            Some(current) => Ok((tp.clone(), current.offset.saturating_add(shift))),
            None => Err(Stop::Usage(format!(
                "Cannot shift offset for partition {tp} since there is no current committed offset"
            ))),
        };
        return in_range(cluster, partitions.iter().map(shifted).collect::<Result<Plan, Stop>>()?).await;
    }
    if let Some(text) = parsed.text("to-datetime")? {
        let time = date_time_ms(text).map_err(|e| Stop::Failed(format!("java.text.ParseException: {e}")))?;
        return at_time(cluster, partitions, time).await;
    }
    if let Some(text) = parsed.text("by-duration")? {
        let back = duration_ms(text).map_err(Stop::Failed)?;
        return at_time(cluster, partitions, chrono::Utc::now().timestamp_millis().saturating_sub(back)).await;
    }
    if let Some(path) = parsed.text("from-file")? {
        let mut plans = plan_from_file(path, parsed.all("group"))?;
        let Some(plan) = plans.remove(group) else {
            print_error(&format!("No reset plan for group {group} found"))?;
            return Ok(Plan::new());
        };
        return in_range(cluster, plan).await;
    }
    if parsed.has("to-current") {
        let committed = cluster.committed(group).await?;
        let (with, without): (Vec<_>, Vec<_>) = partitions.iter().cloned().partition(|tp| committed.contains_key(tp));
        let mut plan = listed(cluster, &without, OffsetSpec::Latest).await?;
        plan.extend(with.into_iter().filter_map(|tp| committed.get(&tp).map(|o| (tp, o.offset))));
        return Ok(plan);
    }
    let scenarios: Vec<String> = SCENARIOS.iter().map(|s| format!("[{s}]")).collect();
    let sentence = "Option '[reset-offsets]' requires one of the following scenarios";
    Err(Stop::Usage(format!("{sentence}: [{}]", scenarios.join(", "))))
}

/// The offsets of partitions by position or time, -1 where there is none.
async fn listed(cluster: &Cluster, partitions: &[TopicPartition], spec: OffsetSpec) -> Result<Plan, Stop> {
    let found = cluster.list_offsets(partitions, spec).await?;
    let offset = |(tp, listed): (TopicPartition, Result<caudal_client::ListedOffset, CallError>)| match listed {
        Ok(listed) => Ok((tp, listed.offset)),
        Err(e) if e.code == Some(ErrorCode::UnknownTopicOrPartition) => {
            Err(Stop::Failed(format!("{} ({tp})", e.java())))
        }
        Err(e) => Err(Stop::Failed(e.java())),
    };
    found.into_iter().map(offset).collect()
}

async fn at_time(cluster: &Cluster, partitions: &[TopicPartition], time_ms: i64) -> Result<Plan, Stop> {
    let mut plan = listed(cluster, partitions, OffsetSpec::Timestamp(time_ms)).await?;
    let late: Vec<TopicPartition> = plan.iter().filter(|(_, o)| **o < 0).map(|(tp, _)| tp.clone()).collect();
    for tp in &late {
        let (topic, partition) = (&tp.topic, tp.partition);
        say!("\nWarn: Partition {partition} from topic {topic} is empty. Falling back to latest known offset.")?;
    }
    plan.extend(listed(cluster, &late, OffsetSpec::Latest).await?);
    Ok(plan)
}

/// Moves offsets that are not in the log to its nearest end.
async fn in_range(cluster: &Cluster, mut plan: Plan) -> Result<Plan, Stop> {
    let partitions: Vec<TopicPartition> = plan.keys().cloned().collect();
    let starts = listed(cluster, &partitions, OffsetSpec::Earliest).await?;
    let ends = listed(cluster, &partitions, OffsetSpec::Latest).await?;
    for (tp, offset) in &mut plan {
        let start = starts.get(tp).copied().unwrap_or(0);
        let end = ends.get(tp).copied().unwrap_or(i64::MAX);
        let (limit, what) = if *offset > end { (end, "higher than latest") } else { (start, "lower than earliest") };
        if *offset > end || *offset < start {
            tell!("WARN New offset ({offset}) is {what} offset for topic partition {tp}. Value will be set to {limit}");
            *offset = limit;
        }
    }
    Ok(plan)
}

/// Reads `topic,partition,offset` (for the one group of the command line) or `group,topic,partition,offset`.
fn plan_from_file(path: &str, groups: &[String]) -> Result<BTreeMap<String, Plan>, Stop> {
    let text = std::fs::read_to_string(path).map_err(|e| Stop::Failed(format!("failed to read {path}: {e}")))?;
    let mut plans: BTreeMap<String, Plan> = BTreeMap::new();
    for (index, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let fields: Vec<String> = line.split(',').map(|f| f.trim().trim_matches('"').to_owned()).collect();
        let entry = match (fields.as_slice(), groups) {
            ([topic, partition, offset], [group]) => Some((group, topic, partition, offset)),
            ([group, topic, partition, offset], _) => Some((group, topic, partition, offset)),
            _ => None,
        };
        let numbers = entry.and_then(|(g, t, p, o)| Some((g, t, p.parse::<i32>().ok()?, o.parse::<i64>().ok()?)));
        let Some((group, topic, partition, offset)) = numbers else {
            let layout = if groups.len() == 1 { "topic,partition,offset" } else { "group,topic,partition,offset" };
            let sentence = format!("failed to read {path}, line {}: '{line}' is not {layout}", index + 1);
            return Err(Stop::Failed(sentence));
        };
        if offset < 0 {
            return Err(Stop::Usage("Invalid negative offset".to_owned()));
        }
        plans.entry(group.clone()).or_default().insert(TopicPartition::new(topic.clone(), partition), offset);
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_with_partitions() {
        let found = topic_partitions("t:0,2").unwrap();
        assert_eq!(found, [TopicPartition::new("t", 0), TopicPartition::new("t", 2)]);
        assert_eq!(
            topic_partitions("t:x").unwrap_err().to_string(),
            "Invalid partition 'x' specified in topic arg 't:x''"
        );
        assert_eq!(
            topic_partitions("t:1:2").unwrap_err().to_string(),
            "Invalid topic arg 't:1:2', expected topic name and partitions"
        );
    }

    #[test]
    fn plans_in_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.csv");
        let path = path.to_str().unwrap();
        std::fs::write(path, "t,0,5\nt,1,7\n\n").unwrap();
        let plans = plan_from_file(path, &["g".to_owned()]).unwrap();
        assert_eq!(plans["g"], Plan::from([(TopicPartition::new("t", 0), 5), (TopicPartition::new("t", 1), 7)]));
        assert!(plan_from_file(path, &["g".to_owned(), "h".to_owned()]).is_err());
        std::fs::write(path, "g,t,0,5\n\"h\",t,1,7\n").unwrap();
        let plans = plan_from_file(path, &["g".to_owned()]).unwrap();
        assert_eq!(plans["h"], Plan::from([(TopicPartition::new("t", 1), 7)]));
        std::fs::write(path, "t,0,5\nt,1,-7\n").unwrap();
        let error = plan_from_file(path, &["g".to_owned()]).unwrap_err();
        assert!(matches!(&error, Stop::Usage(sentence) if sentence == "Invalid negative offset"), "{error}");
        std::fs::write(path, "t,0,5\nt,one,7\n").unwrap();
        let error = plan_from_file(path, &["g".to_owned()]).unwrap_err().to_string();
        assert!(error.ends_with("line 2: 't,one,7' is not topic,partition,offset"), "{error}");
    }
}
