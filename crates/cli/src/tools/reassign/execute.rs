//! `--execute` and `--cancel`: start reassignments, and end them before their end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use caudal_protocol::{ErrorCode, TopicPartition};

use super::plan::{self, Plan, Replica};
use super::{call_error, error, join, ongoing, places, replicas, throttle};
use crate::tools::cluster::{CallError, Cluster, check};
use crate::tools::options::Parsed;
use crate::tools::{Stop, say};

const EXISTING: &str = "Cannot execute because there is an existing partition assignment.  Use --additional to override \
     this and create a new partition assignment in addition to the existing one. The --additional flag can also be used to \
     change the throttle by resubmitting the current reassignment.";

pub async fn run(cluster: &Cluster, parsed: &Parsed, plan: &Plan) -> Result<(), Stop> {
    let ongoing = ongoing(cluster, None).await?;
    if !parsed.has("additional") && !ongoing.is_empty() {
        return Err(Stop::Failed(EXISTING.to_owned()));
    }
    let known = cluster.brokers().await.map_err(call_error)?;
    if let Some(unknown) = plan.brokers().into_iter().find(|id| !known.contains(id)) {
        return Err(error(format!("Unknown broker id {unknown}")));
    }
    let current = current(cluster, plan).await?;
    print_current(cluster, &current).await?;
    let between_brokers = parsed.long("throttle")?.filter(|rate| *rate >= 0);
    let between_log_dirs = parsed.long("replica-alter-log-dirs-throttle")?.filter(|rate| *rate >= 0);
    if between_brokers.is_some() || between_log_dirs.is_some() {
        say!(
            "Warning: You must run --verify periodically, until the reassignment completes, to ensure the throttle is \
             removed."
        )?;
    }
    if let Some(rate) = between_brokers {
        throttle::between_brokers(cluster, &ongoing, plan, &current, rate).await?;
    }
    if let Some(rate) = between_log_dirs {
        throttle::between_log_dirs(cluster, plan, rate).await?;
    }
    let wanted: BTreeMap<TopicPartition, Option<Vec<i32>>> =
        plan.partitions.iter().map(|(tp, replicas)| (tp.clone(), Some(replicas.clone()))).collect();
    let errors = alter(cluster, &wanted, !parsed.has("disallow-replication-factor-change")).await?;
    if !errors.is_empty() {
        return Err(Stop::Failed(format!("Error reassigning partition(s):\n{}", errors.join("\n"))));
    }
    let plural = if wanted.len() == 1 { "" } else { "s" };
    say!("Successfully started partition reassignment{plural} for {}", join(wanted.keys()))?;
    move_replicas(cluster, plan.dirs.clone(), patience(parsed)?).await
}

fn patience(parsed: &Parsed) -> Result<Duration, Stop> {
    let timeout_ms = parsed.long("timeout")?.unwrap_or(10_000);
    Ok(Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0)))
}

/// The replicas of the plan's partitions, all of which must be there.
async fn current(cluster: &Cluster, plan: &Plan) -> Result<BTreeMap<TopicPartition, Vec<i32>>, Stop> {
    let mut found = replicas(cluster, &plan.topics()).await?;
    let missing = plan.partitions.iter().map(|(tp, _)| tp).filter(|tp| !found.contains_key(tp));
    let missing: Vec<String> = missing.map(ToString::to_string).collect();
    if !missing.is_empty() {
        let message = format!("Unable to find partition: {}", missing.join(", "));
        return Err(call_error(CallError::new(ErrorCode::UnknownTopicOrPartition, message)));
    }
    found.retain(|tp, _| plan.partitions.iter().any(|(wanted, _)| wanted == tp));
    Ok(found)
}

async fn print_current(cluster: &Cluster, current: &BTreeMap<TopicPartition, Vec<i32>>) -> Result<(), Stop> {
    let all = current.iter().flat_map(|(tp, ids)| ids.iter().map(|id| Replica { broker: *id, partition: tp.clone() }));
    let places = places(cluster, &all.collect::<Vec<_>>()).await?;
    let dir = |replica: &Replica| places.get(replica).and_then(|place| place.current.as_deref());
    say!("Current partition replica assignment\n\n{}\n", plan::text(current, dir)?)?;
    say!("Save this to use as the --reassignment-json-file option during rollback")
}

/// Starts and cancels reassignments; returns a line per partition that was refused.
async fn alter(
    cluster: &Cluster,
    wanted: &BTreeMap<TopicPartition, Option<Vec<i32>>>,
    may_change_count: bool,
) -> Result<Vec<String>, Stop> {
    let results = match cluster.admin.alter_partition_reassignments(wanted, may_change_count).await {
        Ok(results) => results,
        Err(error) => {
            let error = CallError::from(error);
            return Ok(wanted.keys().map(|tp| format!("{tp}: {}", error.message)).collect());
        }
    };
    let mut lines: Vec<(TopicPartition, String)> = results
        .into_iter()
        .filter_map(|(tp, r)| Some((tp, check(r.error_code, r.error_message.as_deref()).err()?.message)))
        .collect();
    lines.sort();
    Ok(lines.into_iter().map(|(tp, message)| format!("{tp}: {message}")).collect())
}

/// Starts moves between log directories, of which those to a broker that has no replica yet must wait for it.
async fn move_replicas(
    cluster: &Cluster,
    mut pending: BTreeMap<Replica, String>,
    patience: Duration,
) -> Result<(), Stop> {
    let deadline = Instant::now() + patience;
    while !pending.is_empty() {
        for replica in start_moves(cluster, &pending).await? {
            let Some(dir) = pending.remove(&replica) else { continue };
            let Replica { broker, partition } = replica;
            say!("Successfully started moving log directory to {dir} for replica {partition} with broker {broker} ")?;
        }
        if !pending.is_empty() && Instant::now() >= deadline {
            let plural = if pending.len() == 1 { "" } else { "s" };
            let left = join(pending.keys());
            return Err(Stop::Failed(format!(
                "Timed out before log directory move{plural} could be started for: {left}"
            )));
        }
        if !pending.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

/// The replicas whose moves have begun.
async fn start_moves(cluster: &Cluster, pending: &BTreeMap<Replica, String>) -> Result<Vec<Replica>, Stop> {
    let mut by_broker: BTreeMap<i32, BTreeMap<TopicPartition, String>> = BTreeMap::new();
    for (replica, dir) in pending {
        by_broker.entry(replica.broker).or_default().insert(replica.partition.clone(), dir.clone());
    }
    let mut started = Vec::new();
    for (broker, moves) in by_broker {
        let results = cluster.admin.alter_replica_log_dirs(broker, &moves).await.map_err(|e| {
            let names = join(moves.keys().map(|tp| format!("{tp}-{broker}")));
            error(format!("Failed to alter dir for {names}: {}", CallError::from(e).java()))
        })?;
        for (partition, code) in results {
            let replica = Replica { broker, partition };
            match code {
                ErrorCode::None => started.push(replica),
                ErrorCode::ReplicaNotAvailable => {}
                code => {
                    let cause = CallError::new(code, code.message()).java();
                    return Err(error(format!("Failed to alter dir for {replica}: {cause}")));
                }
            }
        }
    }
    started.sort();
    Ok(started)
}

pub async fn cancel(cluster: &Cluster, parsed: &Parsed, plan: &Plan) -> Result<(), Stop> {
    let targets: Vec<TopicPartition> = plan.partitions.iter().map(|(tp, _)| tp.clone()).collect();
    let mut active = ongoing(cluster, Some(&targets)).await?;
    active.retain(|_, r| !r.adding_replicas.is_empty() || !r.removing_replicas.is_empty());
    if active.is_empty() {
        say!("None of the specified partition reassignments are active.")?;
    } else {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let wanted = active.keys().map(|tp| (tp.clone(), None)).collect();
        let errors = alter(cluster, &wanted, true).await?;
        if !errors.is_empty() {
            let what = format!("Error cancelling partition reassignment{} for:", plural(errors.len()));
            return Err(Stop::Failed(format!("{what}\n{}", errors.join("\n"))));
        }
        let names = join(active.keys());
        say!("Successfully cancelled partition reassignment{} for: {names}", plural(active.len()))?;
    }
    let wanted: Vec<Replica> = plan.dirs.keys().cloned().collect();
    let moving: BTreeMap<Replica, String> = places(cluster, &wanted)
        .await?
        .into_iter()
        .filter_map(|(replica, place)| place.future.and(place.current).map(|dir| (replica, dir)))
        .collect();
    if moving.is_empty() {
        say!("None of the specified partition moves are active.")?;
    } else {
        // Back to where they are.
        move_replicas(cluster, moving, patience(parsed)?).await?;
    }
    if parsed.has("preserve-throttles") { Ok(()) } else { throttle::clear(cluster, plan).await }
}
