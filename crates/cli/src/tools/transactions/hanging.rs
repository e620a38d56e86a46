//! `find-hanging`: transactions that are open in a partition while no coordinator will end them.

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::messages::ListTransactionsRequest;
use caudal_protocol::messages::describe_producers_response::ProducerState;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::{call_failed, failed, now_ms, print, producers};
use crate::tools::cluster::{CallError, Cluster};
use crate::tools::options::Parsed;
use crate::tools::{Stop, connect};

/// Partitions per request.
const BATCH: usize = 500;

/// An open transaction.
struct Open {
    partition: TopicPartition,
    producer: ProducerState,
}

pub async fn run(parsed: &Parsed) -> Result<(), Stop> {
    let (topic, broker) = (parsed.text("topic")?, parsed.int("broker-id")?);
    if topic.is_none() && broker.is_none() {
        let sentence =
            "The `find-hanging` command requires either --topic or --broker-id to limit the scope of the search";
        return Err(Stop::Failed(sentence.to_owned()));
    }
    let partition = parsed.int("partition")?;
    if partition.is_some() && topic.is_none() {
        return Err(Stop::Failed("The --partition argument requires --topic to be provided".to_owned()));
    }
    let timeout_ms = i64::from(parsed.int("max-transaction-timeout")?.unwrap_or(15)) * 60_000;
    let cluster = connect(parsed, "command-config").await?;
    let partitions = match (topic, partition) {
        (Some(topic), Some(partition)) => vec![TopicPartition::new(topic, partition)],
        (Some(topic), None) => partitions(&cluster, &[topic.to_owned()], broker).await?,
        (None, _) => {
            let names = cluster.topic_names().await.map_err(|e| failed("Failed to list topics", &e.message))?;
            partitions(&cluster, &names, broker).await?
        }
    };
    let mut open = Vec::new();
    for batch in partitions.chunks(BATCH) {
        open.extend(old_transactions(&cluster, batch, broker, timeout_ms).await?);
    }
    if !open.is_empty() {
        let expected = expected(&cluster, &open).await?;
        open.retain(|o| !expected.contains(&(o.producer.producer_id, o.partition.clone())));
    }
    print_hanging(&open)
}

/// The partitions of topics, only those with a replica on `broker` when one is given.
async fn partitions(cluster: &Cluster, names: &[String], broker: Option<i32>) -> Result<Vec<TopicPartition>, Stop> {
    let failed = |e: CallError| failed(&format!("Failed to describe {} topics", names.len()), &e.message);
    let topics = cluster.describe_topics(names).await.map_err(failed)?;
    let all = topics.iter().flat_map(|t| {
        let name = t.name.clone().unwrap_or_default();
        let here = t.partitions.iter().filter(move |p| broker.is_none_or(|id| p.replica_nodes.contains(&id)));
        here.map(move |p| TopicPartition::new(name.clone(), p.partition_index))
    });
    Ok(all.collect())
}

/// Transactions without a record for longer than `timeout_ms`.
async fn old_transactions(
    cluster: &Cluster,
    partitions: &[TopicPartition],
    broker: Option<i32>,
    timeout_ms: i64,
) -> Result<Vec<Open>, Stop> {
    let on = broker.map_or_else(|| "their leaders".to_owned(), |id| format!("broker {id}"));
    let what = format!("Failed to describe producers for {} partitions on {on}", partitions.len());
    let found = cluster.admin.describe_producers(partitions, broker).await.map_err(call_failed(&what))?;
    let now = now_ms();
    let mut open = Vec::new();
    for (partition, response) in found {
        let states = producers(&partition, &response, &on).map_err(|e| failed(&what, &e))?;
        let is_old = |p: &ProducerState| p.current_txn_start_offset >= 0 && now - p.last_timestamp > timeout_ms;
        let states = states.into_iter().filter(is_old);
        open.extend(states.map(|producer| Open { partition: partition.clone(), producer }));
    }
    Ok(open)
}

/// Producers and partitions whose transactions a coordinator knows and will end.
async fn expected(cluster: &Cluster, open: &[Open]) -> Result<BTreeSet<(i64, TopicPartition)>, Stop> {
    let ids: BTreeSet<i64> = open.iter().map(|o| o.producer.producer_id).collect();
    let what = format!("Failed to list transactions for {} producers", ids.len());
    let request = ListTransactionsRequest {
        producer_id_filters: ids.iter().copied().collect(),
        duration_filter: -1,
        ..Default::default()
    };
    let listed = cluster.admin.list_transactions(&request).await.map_err(call_failed(&what))?;
    let names: BTreeMap<i64, String> =
        listed.into_iter().flat_map(|(_, all)| all).map(|t| (t.producer_id, t.transactional_id)).collect();
    let mut expected = BTreeSet::new();
    for (producer_id, name) in names.iter().filter(|(id, _)| ids.contains(id)) {
        let what = format!("Failed to describe {} transactions", names.len());
        let (_, state) = cluster.admin.describe_transaction(name).await.map_err(call_failed(&what))?;
        match ErrorCode::from_code(state.error_code) {
            ErrorCode::None => {}
            ErrorCode::TransactionalIdNotFound => continue,
            code => return Err(failed(&what, code.message())),
        }
        let partitions = state.topics.iter().flat_map(|t| t.partitions.iter().map(|p| (t.topic.clone(), *p)));
        expected.extend(partitions.map(|(topic, p)| (*producer_id, TopicPartition::new(topic, p))));
    }
    Ok(expected)
}

fn print_hanging(open: &[Open]) -> Result<(), Stop> {
    let now = now_ms();
    let row = |o: &Open| {
        let p = &o.producer;
        vec![
            o.partition.topic.clone(),
            o.partition.partition.to_string(),
            p.producer_id.to_string(),
            p.producer_epoch.to_string(),
            p.coordinator_epoch.max(-1).to_string(),
            p.current_txn_start_offset.to_string(),
            p.last_timestamp.to_string(),
            ((now - p.last_timestamp) / 60_000).to_string(),
        ]
    };
    let headers = [
        "Topic",
        "Partition",
        "ProducerId",
        "ProducerEpoch",
        "CoordinatorEpoch",
        "StartOffset",
        "LastTimestamp",
        "Duration(min)",
    ];
    print(&headers, &open.iter().map(row).collect::<Vec<_>>())
}
