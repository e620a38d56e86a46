//! `caudal group`: consumer groups.

use caudal_client::OffsetSpec;
use caudal_client::admin::OffsetAndMetadata;
use caudal_protocol::TopicPartition;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output;
use super::server::Server;
use super::topic::missing;
use crate::tools::cluster::{Cluster, Offsets, check};
use crate::tools::groups::{consumer_groups, model};
use crate::tools::{Stop, java, say};

/// List, describe, reset and delete consumer groups
#[derive(Debug, Subcommand)]
pub enum Group {
    /// List the groups
    #[command(visible_alias = "ls")]
    List,
    /// Show a group's members, offsets and lag
    Describe {
        /// The group
        name: String,
    },
    /// Move the offsets of a group without members
    Reset {
        /// The group
        name: String,
        /// The topic; all topics of the group without it
        #[arg(long, short)]
        topic: Option<String>,
        #[command(flatten)]
        to: To,
        /// Do it; without this it is only shown
        #[arg(long)]
        execute: bool,
    },
    /// Delete groups with their offsets
    #[command(visible_alias = "rm")]
    Delete {
        /// The groups
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Where a group is to continue.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct To {
    /// With the first record
    #[arg(long)]
    earliest: bool,
    /// With what is yet to come
    #[arg(long)]
    latest: bool,
    /// With this offset
    #[arg(long, value_name = "N")]
    offset: Option<i64>,
    /// With the first record since then, for example 2026-11-22T14:30
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
}

pub async fn run(server: &Server, group: Group) -> Result<(), Stop> {
    let cluster = server.connect(&[]).await?;
    match group {
        Group::List => {
            let mut groups = consumer_groups(&cluster).await?;
            groups.sort_by(|a, b| a.group_id.cmp(&b.group_id));
            let row = |g: &caudal_protocol::messages::list_groups_response::ListedGroup| json!({"group": g.group_id, "state": g.group_state, "type": g.group_type});
            Ok(output::rows(server.output, &groups.iter().map(row).collect::<Vec<Value>>(), "There are no groups.")?)
        }
        Group::Describe { name } => describe(server, &cluster, &name).await,
        Group::Reset { name, topic, to, execute } => reset(server, &cluster, &name, topic, &to, execute).await,
        Group::Delete { names } => {
            for result in cluster.admin.delete_groups(&names).await.map_err(|e| Stop::Failed(e.to_string()))? {
                let name = &result.group_id;
                check(result.error_code, None)
                    .map_err(|e| Stop::Failed(format!("failed to delete group '{name}': {e}")))?;
                output::done(server.output, &json!({"deleted": name}), &format!("Deleted {name}."))?;
            }
            Ok(())
        }
    }
}

async fn describe(server: &Server, cluster: &Cluster, name: &str) -> Result<(), Stop> {
    let group = model::describe(cluster, name).await?;
    let committed = cluster.committed(name).await?;
    let mut partitions: Vec<TopicPartition> = committed.keys().cloned().collect();
    partitions.extend(group.members.iter().flat_map(|m| m.assignment.clone()));
    partitions.sort();
    partitions.dedup();
    let ends = cluster.list_offsets(&partitions, OffsetSpec::Latest).await?;
    let rows: Vec<Value> = partitions
        .iter()
        .map(|tp| {
            let offset = committed.get(tp).map(|o| o.offset);
            let end = ends.get(tp).and_then(|r| r.as_ref().ok()).map(|l| l.offset);
            let member = group.members.iter().find(|m| m.assignment.contains(tp));
            json!({
                "topic": tp.topic,
                "partition": tp.partition,
                "offset": offset,
                "end_offset": end,
                "lag": offset.zip(end).map(|(offset, end)| end - offset),
                "member": member.map(|m| &m.id),
                "client": member.map(|m| &m.client_id),
                "host": member.map(|m| &m.host),
            })
        })
        .collect();
    if server.output == output::Output::Table {
        say!("{name}: {}, {} member(s)", group.state, group.members.len())?;
    }
    Ok(output::rows(server.output, &rows, "It has no offsets.")?)
}

async fn reset(
    server: &Server,
    cluster: &Cluster,
    name: &str,
    topic: Option<String>,
    to: &To,
    execute: bool,
) -> Result<(), Stop> {
    if let Ok(group) = model::describe(cluster, name).await
        && !matches!(group.state.as_str(), "Empty" | "Dead")
    {
        let (state, count) = (group.state, group.members.len());
        return Err(Stop::Failed(format!(
            "failed to reset group '{name}': it is {state} with {count} member(s); stop its consumers first"
        )));
    }
    let partitions = match &topic {
        Some(topic) => match cluster.partitions(std::slice::from_ref(topic)).await {
            Ok(partitions) => partitions,
            Err(e) => return Err(missing(cluster, topic, e).await),
        },
        None => cluster.committed(name).await?.into_keys().collect(),
    };
    if partitions.is_empty() {
        return Err(Stop::Failed(format!("group '{name}' has no offsets; name a topic with --topic")));
    }
    let spec = match (&to.time, to.latest) {
        (Some(time), _) => OffsetSpec::Timestamp(java::date_time_ms(time).map_err(Stop::Failed)?),
        (None, true) => OffsetSpec::Latest,
        (None, false) => OffsetSpec::Earliest,
    };
    let found = cluster.list_offsets(&partitions, spec).await?;
    let ends = cluster.list_offsets(&partitions, OffsetSpec::Latest).await?;
    let mut plan = Offsets::new();
    for (tp, listed) in found {
        let first = listed?.offset;
        let end = ends.get(&tp).and_then(|r| r.as_ref().ok()).map_or(first, |l| l.offset);
        let offset = match to.offset {
            Some(offset) => offset.clamp(first, end.max(first)),
            None if first < 0 => end,
            None => first,
        };
        plan.insert(tp, OffsetAndMetadata::from(offset));
    }
    if execute {
        cluster.commit(name, &plan).await?;
    }
    let row = |(tp, o): (&TopicPartition, &OffsetAndMetadata)| json!({"topic": tp.topic, "partition": tp.partition, "offset": o.offset});
    output::rows(server.output, &plan.iter().map(row).collect::<Vec<Value>>(), "There is nothing to reset.")?;
    if !execute && server.output == output::Output::Table {
        say!("Nothing was changed; --execute does it.")?;
    }
    Ok(())
}
