//! `--describe`: offsets and lag, members, or the state of groups.

use std::collections::{BTreeMap, BTreeSet};

use caudal_client::OffsetSpec;
use caudal_protocol::TopicPartition;

use super::model::{self, Group, Member};
use super::print_error;
use crate::tools::cluster::{Cluster, Offsets};
use crate::tools::java::columns;
use crate::tools::options::Parsed;
use crate::tools::{Stop, say, tell};

const MISSING: &str = "-";

/// Describes groups, sorted by name.
pub async fn run(cluster: &Cluster, parsed: &Parsed, ids: &[String]) -> Result<(), Stop> {
    let is_verbose = parsed.has("verbose");
    let mut groups = Vec::new();
    for id in ids.iter().collect::<BTreeSet<_>>() {
        let group = model::describe(cluster, id).await.map_err(|e| Stop::Failed(e.java()))?;
        groups.push(group);
    }
    if parsed.has("members") {
        groups.iter().try_for_each(|g| print_members(g, is_verbose))
    } else if parsed.has("state") {
        groups.iter().try_for_each(|g| print_state(g, is_verbose))
    } else {
        let mut tables = Vec::new();
        for group in &groups {
            tables.push(offset_rows(cluster, group).await?);
        }
        groups.iter().zip(&tables).try_for_each(|(g, rows)| print_offsets(g, rows, is_verbose))
    }
}

/// Says what the state of a group means for the table that follows; whether there is one.
fn announce(group: &Group, rows: usize) -> Result<bool, Stop> {
    let id = &group.id;
    match group.state.as_str() {
        "Dead" => {
            print_error(&format!("Consumer group '{id}' does not exist."))?;
            return Ok(false);
        }
        "Empty" => {
            tell!("\nConsumer group '{id}' has no active members.");
        }
        "PreparingRebalance" | "CompletingRebalance" | "Assigning" | "Reconciling" => {
            tell!("\nWarning: Consumer group '{id}' is rebalancing.");
        }
        "Stable" => {}
        other => {
            let sentence = format!("Expected a valid consumer group state, but found '{other}'.");
            return Err(Stop::Failed(sentence));
        }
    }
    Ok(rows > 0)
}

/// One line of the table of offsets.
#[derive(Debug, Clone)]
struct Row {
    partition: TopicPartition,
    epoch: Option<i32>,
    offset: Option<i64>,
    end: Option<i64>,
    consumer: String,
    host: String,
    client: String,
}

async fn offset_rows(cluster: &Cluster, group: &Group) -> Result<Vec<Row>, Stop> {
    let committed = cluster.committed(&group.id).await?;
    let mut members: Vec<&Member> = group.members.iter().filter(|m| !m.assignment.is_empty()).collect();
    members.sort_by_key(|m| std::cmp::Reverse(m.assignment.len()));
    let assigned: BTreeSet<&TopicPartition> = members.iter().flat_map(|m| &m.assignment).collect();
    let left: Vec<TopicPartition> = committed.keys().filter(|tp| !assigned.contains(tp)).cloned().collect();
    let all: Vec<TopicPartition> = assigned.iter().map(|tp| (*tp).clone()).chain(left.iter().cloned()).collect();
    let ends: BTreeMap<TopicPartition, Option<i64>> = cluster
        .list_offsets(&all, OffsetSpec::Latest)
        .await?
        .into_iter()
        .map(|(tp, listed)| (tp, listed.ok().map(|l| l.offset).filter(|o| *o >= 0)))
        .collect();
    let rows = |partitions: &[TopicPartition], consumer: &str, host: &str, client: &str| {
        let mut partitions = partitions.to_vec();
        partitions.sort();
        let row = |partition: TopicPartition| row(partition, &committed, &ends, [consumer, host, client]);
        partitions.into_iter().map(row).collect::<Vec<Row>>()
    };
    let owned = members.iter().flat_map(|m| rows(&m.assignment, &m.id, &m.host, &m.client_id));
    Ok(owned.chain(rows(&left, MISSING, MISSING, MISSING)).collect())
}

fn row(
    partition: TopicPartition,
    committed: &Offsets,
    ends: &BTreeMap<TopicPartition, Option<i64>>,
    [consumer, host, client]: [&str; 3],
) -> Row {
    let offset = committed.get(&partition);
    Row {
        epoch: offset.and_then(|o| o.leader_epoch),
        offset: offset.map(|o| o.offset),
        end: ends.get(&partition).copied().flatten(),
        consumer: consumer.to_owned(),
        host: host.to_owned(),
        client: client.to_owned(),
        partition,
    }
}

fn number<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| MISSING.to_owned(), |v| v.to_string())
}

fn print_offsets(group: &Group, rows: &[Row], is_verbose: bool) -> Result<(), Stop> {
    if !announce(group, rows.len())? {
        return Ok(());
    }
    let longest = |text: fn(&Row) -> &str| rows.iter().map(|r| text(r).len()).max().unwrap_or(0).max(15);
    let mut widths = vec![group.id.len().max(15), longest(|r| &r.partition.topic), 10];
    widths.extend(vec![15; if is_verbose { 4 } else { 3 }]);
    widths.extend([longest(|r| &r.consumer), longest(|r| &r.host), 0]);
    let line = |mut cells: Vec<String>| {
        if !is_verbose {
            cells.remove(3);
        }
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        say!("{}", columns(&widths, &cells))
    };
    say!("")?;
    let titles = [
        "GROUP",
        "TOPIC",
        "PARTITION",
        "LEADER-EPOCH",
        "CURRENT-OFFSET",
        "LOG-END-OFFSET",
        "LAG",
        "CONSUMER-ID",
        "HOST",
        "CLIENT-ID",
    ];
    line(titles.map(str::to_owned).to_vec())?;
    rows.iter().try_for_each(|r| {
        let lag = r.offset.filter(|o| *o != -1).and_then(|offset| r.end.map(|end| end - offset));
        line(vec![
            group.id.clone(),
            r.partition.topic.clone(),
            r.partition.partition.to_string(),
            number(r.epoch),
            number(r.offset),
            number(r.end),
            number(lag),
            r.consumer.clone(),
            r.host.clone(),
            r.client.clone(),
        ])
    })
}

/// `topic:0,1;other:2`
fn assignment_text(partitions: &[TopicPartition]) -> String {
    let mut topics: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
    for tp in partitions {
        topics.entry(&tp.topic).or_default().insert(tp.partition);
    }
    let topic = |(name, ids): (&&str, &BTreeSet<i32>)| {
        format!("{name}:{}", ids.iter().map(i32::to_string).collect::<Vec<_>>().join(","))
    };
    let text = topics.iter().map(topic).collect::<Vec<_>>().join(";");
    if text.is_empty() { MISSING.to_owned() } else { text }
}

const MEMBER_TITLES: [&str; 11] = [
    "GROUP",
    "CONSUMER-ID",
    "GROUP-INSTANCE-ID",
    "HOST",
    "CLIENT-ID",
    "#PARTITIONS",
    "CURRENT-EPOCH",
    "CURRENT-ASSIGNMENT",
    "TARGET-EPOCH",
    "TARGET-ASSIGNMENT",
    "UPGRADED",
];

fn print_members(group: &Group, is_verbose: bool) -> Result<(), Stop> {
    let members = &group.members;
    let has_table = announce(group, members.len())?;
    let width = |least: usize, text: &dyn Fn(&Member) -> usize| {
        let longest = members.iter().map(text).max().filter(|_| has_table).unwrap_or(0);
        longest.max(least)
    };
    let has_instances = has_table && members.iter().any(|m| !m.instance_id.is_empty());
    let is_mixed =
        members.iter().any(|m| m.is_upgraded == Some(true)) && members.iter().any(|m| m.is_upgraded == Some(false));
    let mut widths = vec![
        if has_table { group.id.len().max(15) } else { 15 },
        width(15, &|m| m.id.len()),
        width(17, &|m| m.instance_id.len()),
        width(15, &|m| m.host.len()),
        width(15, &|m| m.client_id.len()),
        15,
        15,
        width(20, &|m| assignment_text(&m.assignment).len()),
        15,
        width(20, &|m| assignment_text(&m.target).len()),
        0,
    ];
    if !has_instances {
        widths.remove(2);
    }
    // Every line ends in a space unless the columns of --verbose follow.
    let line = |mut cells: Vec<String>| {
        cells.truncate(if is_mixed { 11 } else { 10 });
        if !is_verbose {
            cells.truncate(6);
            cells.push(String::new());
        }
        if !has_instances {
            cells.remove(2);
        }
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        let widths: Vec<usize> = widths.iter().take(cells.len() - usize::from(!is_verbose)).copied().collect();
        say!("{}", columns(&widths, &cells))
    };
    say!("")?;
    line(MEMBER_TITLES.map(str::to_owned).to_vec())?;
    members.iter().try_for_each(|m| {
        line(vec![
            group.id.clone(),
            m.id.clone(),
            m.instance_id.clone(),
            m.host.clone(),
            m.client_id.clone(),
            m.assignment.len().to_string(),
            number(m.epoch),
            assignment_text(&m.assignment),
            number(group.target_epoch),
            assignment_text(&m.target),
            number(m.is_upgraded),
        ])
    })
}

fn print_state(group: &Group, is_verbose: bool) -> Result<(), Stop> {
    if !announce(group, 1)? {
        return Ok(());
    }
    let node = &group.coordinator;
    let coordinator = format!("{}:{}  ({})", node.host, node.port, node.node_id);
    let mut widths = vec![group.id.len().max(15), coordinator.len().max(25), 20, 20];
    if is_verbose {
        widths.extend([15, 25]);
    }
    widths.push(0);
    let line = |mut cells: Vec<String>| {
        if !is_verbose {
            cells.drain(4..6);
        }
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        say!("{}", columns(&widths, &cells))
    };
    say!("")?;
    let titles = [
        "GROUP",
        "COORDINATOR (ID)",
        "ASSIGNMENT-STRATEGY",
        "STATE",
        "GROUP-EPOCH",
        "TARGET-ASSIGNMENT-EPOCH",
        "#MEMBERS",
    ];
    line(titles.map(str::to_owned).to_vec())?;
    let assignor = if group.assignor.is_empty() { MISSING.to_owned() } else { group.assignor.clone() };
    line(vec![
        group.id.clone(),
        coordinator,
        assignor,
        group.state.clone(),
        number(group.epoch),
        number(group.target_epoch),
        group.members.len().to_string(),
    ])
}
