//! `caudal topic`: topics.

use caudal_client::OffsetSpec;
use caudal_client::admin::ConfigResourceType;
use caudal_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use caudal_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use caudal_protocol::{ErrorCode, TopicPartition};
use clap::Subcommand;
use serde_json::{Value, json};

use super::output;
use super::server::Server;
use super::up::setting;
use crate::tools::cluster::{CallError, Cluster};
use crate::tools::{Stop, java, options};

const NO_TOPICS: &str = "There are no topics; `caudal topic create NAME` makes one.";

/// Create, list, describe, change and delete topics
#[derive(Debug, Subcommand)]
pub enum Topic {
    /// Create topics
    Create {
        /// The names of the new topics
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// How many partitions; the broker's default without it
        #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        partitions: Option<i32>,
        /// How many replicas of each partition; the broker's default without it
        #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(i16).range(1..))]
        replicas: Option<i16>,
        /// A configuration, for example retention.ms=3600000; may be given several times
        #[arg(long = "config", short, value_name = "KEY=VALUE", value_parser = setting)]
        configs: Vec<(String, String)>,
        /// A topic that is there already is no error
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List the topics
    #[command(visible_alias = "ls")]
    List {
        /// The cluster's own topics too
        #[arg(long, short)]
        all: bool,
    },
    /// Show the partitions of topics
    Describe {
        /// The topics; all of them without it
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Delete topics with their records
    #[command(visible_alias = "rm")]
    Delete {
        /// The topics
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// A topic that is missing is no error
        #[arg(long)]
        if_exists: bool,
    },
    /// Give a topic more partitions; keys may then map to other partitions than before
    Alter {
        /// The topic
        name: String,
        /// How many partitions it is to have in all
        #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        partitions: i32,
    },
    /// Show or change the configuration of a topic
    Config {
        /// The topic
        name: String,
        /// Set a configuration; may be given several times
        #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
        set: Vec<(String, String)>,
        /// Return a configuration to its default; may be given several times
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        /// Show the defaults too
        #[arg(long, short)]
        all: bool,
    },
}

pub async fn run(server: &Server, topic: Topic) -> Result<(), Stop> {
    let cluster = server.connect(&[]).await?;
    match topic {
        Topic::Create { names, partitions, replicas, configs, if_not_exists } => {
            for name in names {
                let configs = configs.iter().cloned();
                let topic = CreatableTopic {
                    name: name.clone(),
                    num_partitions: partitions.unwrap_or(-1),
                    replication_factor: replicas.unwrap_or(-1),
                    configs: configs.map(|(k, v)| CreatableTopicConfig { name: k, value: Some(v) }).collect(),
                    ..Default::default()
                };
                match cluster.create_topic(topic).await {
                    Ok(made) => {
                        let (partitions, replicas) = (made.num_partitions, made.replication_factor);
                        let row = json!({"topic": name, "partitions": partitions, "replicas": replicas});
                        output::done(server.output, &row, &format!("Created {name} with {partitions} partition(s)."))?;
                    }
                    Err(e) if if_not_exists && e.code == Some(ErrorCode::TopicAlreadyExists) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(())
        }
        Topic::List { all } => list(server, &cluster, all).await,
        Topic::Describe { names } => describe(server, &cluster, names).await,
        Topic::Delete { names, if_exists } => {
            for name in names {
                match cluster.delete_topics(std::slice::from_ref(&name)).await {
                    Ok(()) => output::done(server.output, &json!({"deleted": name}), &format!("Deleted {name}."))?,
                    Err(e) if if_exists && e.code == Some(ErrorCode::UnknownTopicOrPartition) => {}
                    Err(e) => return Err(missing(&cluster, &name, e).await),
                }
            }
            Ok(())
        }
        Topic::Alter { name, partitions } => {
            let change = CreatePartitionsTopic { name: name.clone(), count: partitions, assignments: None };
            match cluster.create_partitions(vec![change]).await {
                Ok(()) => output::done(
                    server.output,
                    &json!({"topic": name, "partitions": partitions}),
                    &format!("{name} has {partitions} partitions now."),
                ),
                Err(e) => Err(missing(&cluster, &name, e).await),
            }
        }
        Topic::Config { name, set, unset, all } => config(server, &cluster, &name, set, unset, all).await,
    }
}

/// The error of a topic; one that does not exist comes with the nearest name there is.
pub async fn missing(cluster: &Cluster, name: &str, error: CallError) -> Stop {
    if error.code != Some(ErrorCode::UnknownTopicOrPartition) {
        return error.into();
    }
    let names = cluster.topic_names().await.unwrap_or_default();
    let hint = options::nearest(name, names.iter().map(String::as_str));
    let hint = hint.map(|h| format!("; did you mean '{h}'?")).unwrap_or_default();
    Stop::Failed(format!("topic '{name}' does not exist{hint}"))
}

async fn list(server: &Server, cluster: &Cluster, all: bool) -> Result<(), Stop> {
    let mut names = cluster.topic_names().await?;
    names.retain(|name| all || !java::is_internal(name));
    let topics = cluster.describe_topics(&names).await?;
    let partitions: Vec<TopicPartition> = topics
        .iter()
        .flat_map(|t| {
            t.partitions.iter().map(|p| TopicPartition::new(t.name.as_deref().unwrap_or_default(), p.partition_index))
        })
        .collect();
    let starts = cluster.list_offsets(&partitions, OffsetSpec::Earliest).await?;
    let ends = cluster.list_offsets(&partitions, OffsetSpec::Latest).await?;
    let rows: Vec<Value> = topics
        .iter()
        .map(|topic| {
            let name = topic.name.as_deref().unwrap_or_default();
            let count =
                |tp: &TopicPartition| Some(ends.get(tp)?.as_ref().ok()?.offset - starts.get(tp)?.as_ref().ok()?.offset);
            let records: i64 = partitions.iter().filter(|tp| tp.topic == name).filter_map(count).sum();
            let replicas = topic.partitions.first().map_or(0, |p| p.replica_nodes.len());
            json!({"topic": name, "partitions": topic.partitions.len(), "replicas": replicas, "records": records})
        })
        .collect();
    Ok(output::rows(server.output, &rows, NO_TOPICS)?)
}

async fn describe(server: &Server, cluster: &Cluster, names: Vec<String>) -> Result<(), Stop> {
    let mut names = names;
    if names.is_empty() {
        names = cluster.topic_names().await?;
        names.retain(|name| !java::is_internal(name));
    }
    let mut rows = Vec::new();
    for name in &names {
        let topics = match cluster.describe_topics(std::slice::from_ref(name)).await {
            Ok(topics) => topics,
            Err(e) => return Err(missing(cluster, name, e).await),
        };
        let partitions = cluster.partitions(std::slice::from_ref(name)).await?;
        let starts = cluster.list_offsets(&partitions, OffsetSpec::Earliest).await?;
        let ends = cluster.list_offsets(&partitions, OffsetSpec::Latest).await?;
        for p in topics.iter().flat_map(|t| &t.partitions) {
            let tp = TopicPartition::new(name.clone(), p.partition_index);
            let offset = |found: Option<&Result<caudal_client::ListedOffset, CallError>>| {
                found.and_then(|r| r.as_ref().ok()).map(|l| l.offset)
            };
            rows.push(json!({
                "topic": name,
                "partition": p.partition_index,
                "leader": Some(p.leader_id).filter(|l| *l >= 0),
                "replicas": p.replica_nodes,
                "isr": p.isr_nodes,
                "first_offset": offset(starts.get(&tp)),
                "end_offset": offset(ends.get(&tp)),
            }));
        }
    }
    Ok(output::rows(server.output, &rows, NO_TOPICS)?)
}

async fn config(
    server: &Server,
    cluster: &Cluster,
    name: &str,
    set: Vec<(String, String)>,
    unset: Vec<String>,
    all: bool,
) -> Result<(), Stop> {
    const OWN: i8 = 1;
    const DEFAULT: i8 = 5;
    let mut changes: Vec<(String, Option<String>)> = unset.into_iter().map(|k| (k, None)).collect();
    changes.extend(set.into_iter().map(|(k, v)| (k, Some(v))));
    if !changes.is_empty()
        && let Err(e) = cluster.alter_configs(ConfigResourceType::Topic, name, &changes).await
    {
        return Err(missing(cluster, name, e).await);
    }
    let mut entries = match cluster.configs(ConfigResourceType::Topic, name).await {
        Ok(entries) => entries,
        Err(e) => return Err(missing(cluster, name, e).await),
    };
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let source = |source: i8| match source {
        OWN => "topic",
        DEFAULT => "default",
        _ => "broker",
    };
    let rows: Vec<Value> = entries
        .iter()
        .filter(|e| all || e.config_source != DEFAULT)
        .map(|e| json!({"name": e.name, "value": e.value, "set_by": source(e.config_source)}))
        .collect();
    Ok(output::rows(server.output, &rows, "Nothing is set; --all shows the defaults.")?)
}
