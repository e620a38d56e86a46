//! What the broker tells of itself: Kafka's meters under the names that the JMX exporter's usual configuration for Kafka
//! makes of them (`kafka.server:type=BrokerTopicMetrics,name=BytesInPerSec` is `kafka_server_brokertopicmetrics_bytesin_total`),
//! those of them that mean something here; and, under `caudal_`, what Kafka has no name for.

use std::io;
use std::time::Instant;

use caudal_storage::{CleanerStanding, Histogram};
use tokio::io::AsyncWrite;

use super::exporter::{OfPartition, write_partitions};
use super::exposition::{Exposition, Kind};
use super::requests::PHASES;
use super::traffic::{METERS, Sums};
use crate::context::Context;
use crate::group::Coordinator;
use crate::group::overview::GroupOverview;
use crate::transaction::State;

/// `BrokerState.RUNNING` and `BrokerState.STARTING`.
const RUNNING: u8 = 3;
const STARTING: u8 = 1;

const QUANTILES: [f64; 6] = [0.5, 0.75, 0.95, 0.98, 0.99, 0.999];
/// As the JMX exporter makes them of `50thPercentile` and so on.
const QUANTILE_LABELS: [&str; 6] = ["0.50", "0.75", "0.95", "0.98", "0.99", "0.999"];

const OF_PARTITIONS: [(&str, &str, OfPartition); 7] = [
    ("kafka_log_log_size", "Bytes of the segments of a partition", |_, here| {
        here.and_then(|partition| i64::try_from(partition.log.size_bytes()).ok())
    }),
    ("kafka_log_log_logstartoffset", "First offset of a partition", |_, here| {
        here.map(|partition| partition.log.log_start_offset())
    }),
    ("kafka_log_log_logendoffset", "Offset that the next record of a partition gets", |_, here| {
        here.map(|partition| partition.log.log_end_offset())
    }),
    ("kafka_log_log_numlogsegments", "Segments of a partition", |_, here| {
        here.and_then(|partition| i64::try_from(partition.log.segment_count()).ok())
    }),
    ("kafka_cluster_partition_laststableoffsetlag", "Records behind the first open transaction", |_, here| {
        here.map(|partition| {
            let high_watermark = partition.high_watermark();
            high_watermark - partition.log.last_stable_offset().min(high_watermark)
        })
    }),
    ("kafka_cluster_partition_underreplicated", "1 if replicas are not in sync", |placed, _| {
        Some((placed.isr.len() < placed.replicas.len()).into())
    }),
    ("kafka_cluster_partition_underminisr", "1 if acks=all is refused for want of replicas", |_, here| {
        here.map(|partition| partition.is_short_of_replicas().into())
    }),
];

/// What is known before the broker serves, too.
pub fn write_state<W: AsyncWrite + Unpin>(ctx: Option<&Context>, page: &mut Exposition<'_, W>) {
    page.metric("caudal_build_info", Kind::Gauge, "The program that this page is of");
    page.sample("caudal_build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    let state = if ctx.is_some() { RUNNING } else { STARTING };
    page.single("kafka_server_kafkaserver_brokerstate", Kind::Gauge, "1: starting, 3: running", state);
}

pub async fn write<W: AsyncWrite + Unpin>(ctx: &Context, page: &mut Exposition<'_, W>) -> io::Result<()> {
    write_traffic(ctx, page).await?;
    write_requests(ctx, page).await?;
    let flushes = ctx.replicas.log_dirs.metadata().flusher().times();
    let name = "kafka_log_logflushstats_logflushrateandtimems";
    page.metric(name, Kind::Summary, "Milliseconds that an fsync of a log takes");
    write_times(page, name, None, flushes);
    write_compaction(ctx, page);
    write_connections(ctx, page);
    write_cluster(ctx, page);
    write_groups(&ctx.groups.all(Coordinator::overview), page);
    write_transactions(ctx, page);
    let (image, view) = (ctx.metadata.image(), ctx.topics.view());
    for metric in OF_PARTITIONS {
        write_partitions(&image, &view, metric, page).await?;
    }
    Ok(())
}

/// A sample for each topic that anything happened in, and, as in Kafka, one without a topic for all together.
async fn write_traffic<W: AsyncWrite + Unpin>(ctx: &Context, page: &mut Exposition<'_, W>) -> io::Result<()> {
    let (mut all, topics) = {
        let retired = ctx.replicas.retired.lock();
        let view = ctx.topics.view();
        let mut topics: Vec<_> = view.iter().map(|topic| (topic.clone(), Sums::default())).collect();
        for (topic, sums) in &mut topics {
            topic.partitions.iter().flatten().for_each(|partition| partition.traffic.add_to(sums));
        }
        (*retired, topics)
    };
    let mut topics: Vec<_> = topics.into_iter().filter(|(_, sums)| sums.iter().any(|sum| *sum > 0)).collect();
    topics.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    for (_, sums) in &topics {
        all.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
    }
    for ((meter, name, help), all) in METERS.into_iter().zip(all) {
        let name = format!("kafka_server_brokertopicmetrics_{name}_total");
        page.metric(&name, Kind::Counter, help);
        page.sample(&name, &[], all);
        for (topic, sums) in &topics {
            page.sample(&name, &[("topic", &topic.name)], sums.get(meter as usize).copied().unwrap_or_default());
        }
        page.relieve().await?;
    }
    Ok(())
}

async fn write_requests<W: AsyncWrite + Unpin>(ctx: &Context, page: &mut Exposition<'_, W>) -> io::Result<()> {
    let name = "kafka_network_requestmetrics_requests_total";
    page.metric(name, Kind::Counter, "Requests that were answered");
    for (served, of_api) in ctx.metrics.requests.all() {
        for (version, count) in of_api.versions() {
            page.sample(name, &[("request", &served.key.name()), ("version", &version)], count);
        }
    }
    for (phase, name, help) in PHASES {
        let name = format!("kafka_network_requestmetrics_{name}");
        page.metric(&name, Kind::Summary, help);
        for (served, of_api) in ctx.metrics.requests.all() {
            if let Some(times) = of_api.times(phase) {
                write_times(page, &name, Some(served.key.name()), times);
            }
        }
        page.relieve().await?;
    }
    let help = "Requests that took longer than caudal.slow.request.ms without what they meant to wait";
    page.single("caudal_slow_requests_total", Kind::Counter, help, ctx.metrics.slow.count());
    Ok(())
}

/// A summary's samples; the quantiles are of the last minutes.
fn write_times<W: AsyncWrite + Unpin>(
    page: &mut Exposition<'_, W>,
    name: &str,
    request: Option<&'static str>,
    times: &Histogram,
) {
    let quantiles = times.quantiles_ms(QUANTILES, Instant::now());
    let (sum, count) = (times.sum().as_secs_f64() * 1000.0, times.count());
    let (sum_name, count_name) = (format!("{name}_sum"), format!("{name}_count"));
    match request {
        Some(request) => {
            for (label, value) in QUANTILE_LABELS.iter().zip(quantiles) {
                page.sample(name, &[("request", &request), ("quantile", label)], value);
            }
            page.sample(&sum_name, &[("request", &request)], sum);
            page.sample(&count_name, &[("request", &request)], count);
        }
        None => {
            for (label, value) in QUANTILE_LABELS.iter().zip(quantiles) {
                page.sample(name, &[("quantile", label)], value);
            }
            page.sample(&sum_name, &[], sum);
            page.sample(&count_name, &[], count);
        }
    }
}

fn write_connections<W: AsyncWrite + Unpin>(ctx: &Context, page: &mut Exposition<'_, W>) {
    let listeners = || ctx.metrics.connections.iter().enumerate().map(|(at, c)| (ctx.config.listener_name(at), c));
    let name = "kafka_server_socket_server_metrics_connection_count";
    page.metric(name, Kind::Gauge, "Connections that are open");
    for (listener, connections) in listeners() {
        page.sample(name, &[("listener", &listener)], connections.open());
    }
    let name = "kafka_server_socket_server_metrics_connection_creation_total";
    page.metric(name, Kind::Counter, "Connections that were accepted");
    for (listener, connections) in listeners() {
        page.sample(name, &[("listener", &listener)], connections.accepted());
    }
    let help = "Bytes of large requests that are in memory, of queued.max.request.bytes";
    page.single("caudal_request_memory_bytes", Kind::Gauge, help, ctx.request_memory.claimed_bytes());
    let help = "Bytes of large requests that wait for others: long polls, joins";
    page.single("caudal_request_memory_parked_bytes", Kind::Gauge, help, ctx.request_memory.parked_bytes());
    let help = "Connections that wait until their large request may be in memory";
    page.single("caudal_request_memory_waiting", Kind::Gauge, help, ctx.request_memory.waiting());
    let (sessions, partitions) = ctx.fetch_sessions.sizes();
    let name = "kafka_server_fetchsessioncache_numincrementalfetchsessions";
    page.single(name, Kind::Gauge, "Fetch sessions", sessions);
    let name = "kafka_server_fetchsessioncache_numincrementalfetchpartitionscached";
    page.single(name, Kind::Gauge, "Partitions of all fetch sessions", partitions);
}

fn write_compaction<W: AsyncWrite + Unpin>(ctx: &Context, page: &mut Exposition<'_, W>) {
    let dirs = ctx.replicas.log_dirs.iter().map(|dir| (dir.path.display(), CleanerStanding::of(&dir.log_dir)));
    let dirs: Vec<_> = dirs.collect();
    let name = "kafka_log_logcleanermanager_uncleanable_partitions_count";
    page.metric(name, Kind::Gauge, "Partitions that are not compacted before a restart: they are damaged");
    for (dir, standing) in &dirs {
        page.sample(name, &[("logDirectory", dir)], standing.uncleanable);
    }
    let dirtiest = dirs.iter().map(|(_, standing)| standing.max_dirty_ratio).fold(0.0, f64::max);
    let name = "kafka_log_logcleanermanager_max_dirty_percent";
    page.single(name, Kind::Gauge, "Share of the dirtiest log that was not compacted yet", (dirtiest * 100.0) as u8);
}

fn write_cluster<W: AsyncWrite + Unpin>(ctx: &Context, page: &mut Exposition<'_, W>) {
    let (image, view) = (ctx.metadata.image(), ctx.topics.view());
    let partitions = || image.topics().flat_map(|topic| topic.partitions.values());
    let led = || partitions().filter(|partition| partition.leader == ctx.node_id());
    let placed_here = partitions().filter(|partition| partition.replicas.contains(&ctx.node_id())).count();
    let here = view.partitions().count();
    let out_of_use = ctx.replicas.log_dirs.offline().len();
    let in_use = view.partitions().filter(|partition| partition.log.check_online().is_ok()).count();
    let offline_replicas = placed_here.saturating_sub(in_use);
    let has_no_leader = partitions().filter(|partition| !image.is_active(partition.leader)).count();
    let brokers = image.brokers().len();
    let active = image.brokers().filter(|broker| image.is_active(broker.broker_id)).count();
    let gauges: [(&str, &str, usize); 14] = [
        ("kafka_server_replicamanager_leadercount", "Partitions that this broker leads", led().count()),
        ("kafka_server_replicamanager_partitioncount", "Partitions on this broker", here),
        ("kafka_server_replicamanager_offlinereplicacount", "Partitions whose log is out of use", offline_replicas),
        (
            "kafka_server_replicamanager_underreplicatedpartitions",
            "Partitions led here with replicas that are not in sync",
            led().filter(|partition| partition.isr.len() < partition.replicas.len()).count(),
        ),
        (
            "kafka_server_replicamanager_underminisrpartitioncount",
            "Partitions led here that refuse acks=all for want of replicas",
            view.partitions().filter(|partition| partition.is_short_of_replicas()).count(),
        ),
        (
            "kafka_server_replicamanager_reassigningpartitions",
            "Partitions led here that are being moved",
            led()
                .filter(|partition| !partition.adding_replicas.is_empty() || !partition.removing_replicas.is_empty())
                .count(),
        ),
        ("kafka_controller_kafkacontroller_activecontrollercount", "1 on the broker that is the controller", 1),
        ("kafka_controller_kafkacontroller_activebrokercount", "Brokers that serve", active),
        (
            "kafka_controller_kafkacontroller_fencedbrokercount",
            "Brokers that are registered and do not serve",
            brokers - active,
        ),
        ("kafka_controller_kafkacontroller_globaltopiccount", "Topics of the cluster", image.topics().len()),
        ("kafka_controller_kafkacontroller_globalpartitioncount", "Partitions of the cluster", image.partition_count()),
        ("kafka_controller_kafkacontroller_offlinepartitionscount", "Partitions without a leader", has_no_leader),
        (
            "kafka_controller_kafkacontroller_preferredreplicaimbalancecount",
            "Partitions that another than their first replica leads",
            partitions().filter(|partition| partition.replicas.first() != Some(&partition.leader)).count(),
        ),
        ("kafka_log_logmanager_offlinelogdirectorycount", "Log directories that are out of use", out_of_use),
    ];
    for (name, help, value) in gauges {
        page.single(name, Kind::Gauge, help, value);
    }
    let name = "kafka_controller_kafkacontroller_lastappliedrecordoffset";
    page.single(name, Kind::Gauge, "Offset of the last metadata record in effect", image.offset);
    let name = "kafka_server_raft_metrics_current_epoch";
    page.single(name, Kind::Gauge, "Epoch of the metadata quorum", image.epoch);
}

fn write_groups<W: AsyncWrite + Unpin>(groups: &[GroupOverview], page: &mut Exposition<'_, W>) {
    let classic = |state: &str| groups.iter().filter(|group| !group.is_consumer && group.state == state).count();
    let prefix = "kafka_coordinator_group_groupmetadatamanager";
    let offsets: usize = groups.iter().map(|group| group.offsets).sum();
    page.single(&format!("{prefix}_numoffsets"), Kind::Gauge, "Offsets that are committed", offsets);
    let all = groups.iter().filter(|group| !group.is_consumer).count();
    page.single(&format!("{prefix}_numgroups"), Kind::Gauge, "Groups of the classic protocol", all);
    for state in ["PreparingRebalance", "CompletingRebalance", "Stable", "Empty"] {
        let name = format!("{prefix}_numgroups{}", state.to_lowercase());
        page.single(&name, Kind::Gauge, "Groups of the classic protocol in this state", classic(state));
    }
    let name = "kafka_server_group_coordinator_metrics_group_count";
    page.metric(name, Kind::Gauge, "Groups by protocol");
    page.sample(name, &[("protocol", &"classic")], all);
    page.sample(name, &[("protocol", &"consumer")], groups.len() - all);
    let name = "kafka_server_group_coordinator_metrics_consumer_group_count";
    page.metric(name, Kind::Gauge, "Groups of the consumer protocol by state");
    for state in ["empty", "assigning", "reconciling", "stable"] {
        let of_state = groups.iter().filter(|g| g.is_consumer && g.state.eq_ignore_ascii_case(state)).count();
        page.sample(name, &[("state", &state)], of_state);
    }
}

fn write_transactions<W: AsyncWrite + Unpin>(ctx: &Context, page: &mut Exposition<'_, W>) {
    let states = [State::Ongoing, State::PrepareCommit, State::PrepareAbort];
    let counts = ctx.transactions.view(|entries| {
        let mut counts = [0_u64; 3];
        for (_, entry) in entries {
            let at = states.iter().position(|state| *state == entry.current.state);
            if let Some(count) = at.and_then(|at| counts.get_mut(at)) {
                *count += 1;
            }
        }
        counts
    });
    let name = "caudal_transactions_open";
    page.metric(name, Kind::Gauge, "Transactions that are not over, by the coordinator's state");
    for (state, count) in states.iter().zip(counts.unwrap_or_default()) {
        page.sample(name, &[("state", &state.name())], count);
    }
}
