//! What danielqsj/kafka_exporter asks a cluster for, under its names and with its labels and values, so that dashboards and
//! alerts made for it go on without it. Groups of the consumer protocol have their members here; kafka_exporter, which asks
//! by the classic protocol, sees none.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_cluster::image::{NO_LEADER, Partition as Placed, Topic as PlacedTopic};
use tokio::io::AsyncWrite;

use super::exposition::{Exposition, Kind};
use crate::context::Context;
use crate::group::Coordinator;
use crate::partition::Partition;
use crate::topics::TopicsView;

/// A value of a partition as it is placed and as it is here; `None`: it has no such value now.
pub type OfPartition = fn(&Placed, Option<&Arc<Partition>>) -> Option<i64>;

/// The metrics of each partition.
const OF_PARTITIONS: [(&str, &str, OfPartition); 7] = [
    ("kafka_topic_partition_current_offset", "Current Offset of a Broker at Topic/Partition", |_, here| {
        here.map(|partition| partition.high_watermark())
    }),
    ("kafka_topic_partition_oldest_offset", "Oldest Offset of a Broker at Topic/Partition", |_, here| {
        here.map(|partition| partition.log.log_start_offset())
    }),
    ("kafka_topic_partition_leader", "Leader Broker ID of this Topic/Partition", |placed, _| {
        (placed.leader != NO_LEADER).then_some(placed.leader.into())
    }),
    ("kafka_topic_partition_leader_is_preferred", "1 if Topic/Partition is using the Preferred Broker", |placed, _| {
        Some((placed.replicas.first() == Some(&placed.leader)).into())
    }),
    ("kafka_topic_partition_replicas", "Number of Replicas for this Topic/Partition", |placed, _| {
        i64::try_from(placed.replicas.len()).ok()
    }),
    ("kafka_topic_partition_in_sync_replica", "Number of In-Sync Replicas for this Topic/Partition", |placed, _| {
        i64::try_from(placed.isr.len()).ok()
    }),
    ("kafka_topic_partition_under_replicated_partition", "1 if Topic/Partition is under Replicated", |placed, _| {
        Some((placed.isr.len() < placed.replicas.len()).into())
    }),
];

pub async fn write<W: AsyncWrite + Unpin>(ctx: &Context, page: &mut Exposition<'_, W>) -> io::Result<()> {
    let (image, view) = (ctx.metadata.image(), ctx.topics.view());
    write_brokers(&image, page);
    page.metric("kafka_topic_partitions", Kind::Gauge, "Number of partitions for this Topic");
    for topic in image.topics() {
        page.sample("kafka_topic_partitions", &[("topic", &topic.name)], topic.partitions.len());
        page.relieve().await?;
    }
    for metric in OF_PARTITIONS {
        write_partitions(&image, &view, metric, page).await?;
    }
    write_groups(ctx, &image, &view, page).await
}

/// Writes a gauge that each partition has.
pub async fn write_partitions<W: AsyncWrite + Unpin>(
    image: &MetadataImage,
    view: &TopicsView,
    (name, help, value): (&str, &str, OfPartition),
    page: &mut Exposition<'_, W>,
) -> io::Result<()> {
    page.metric(name, Kind::Gauge, help);
    for topic in image.topics() {
        let here = view.by_id(&topic.id);
        for (index, placed) in &topic.partitions {
            let here = here.and_then(|topic| topic.partition(*index));
            if let Some(value) = value(placed, here) {
                page.sample(name, &[("topic", &topic.name), ("partition", index)], value);
            }
        }
        page.relieve().await?;
    }
    Ok(())
}

fn write_brokers<W: AsyncWrite + Unpin>(image: &MetadataImage, page: &mut Exposition<'_, W>) {
    let active: Vec<_> = image.brokers().filter(|broker| image.is_active(broker.broker_id)).collect();
    page.single("kafka_brokers", Kind::Gauge, "Number of Brokers in the Kafka Cluster.", active.len());
    page.metric("kafka_broker_info", Kind::Gauge, "Information about the Kafka Broker.");
    for broker in active {
        if let Some(end) = broker.end_points.first() {
            let address = format!("{}:{}", end.host, end.port);
            page.sample("kafka_broker_info", &[("id", &broker.broker_id), ("address", &address)], 1);
        }
    }
}

/// The offsets of a group in a topic: one for each partition, -1 where nothing is committed.
struct Reads<'i> {
    topic: &'i PlacedTopic,
    /// By partition: what is committed, and the lag.
    offsets: Vec<(i32, i64, i64)>,
}

impl Reads<'_> {
    /// As kafka_exporter adds up: what is not committed counts as -1 among the offsets, and as nothing in the lag.
    fn offset_sum(&self) -> i64 {
        self.offsets.iter().map(|(_, offset, _)| offset).sum()
    }

    fn lag_sum(&self) -> i64 {
        self.offsets.iter().filter(|(_, offset, _)| *offset >= 0).map(|(_, _, lag)| lag).sum()
    }
}

/// What a group has committed in topics that there still are. The coordinator is held up for one group at a time.
fn reads_of<'i>(ctx: &Context, group: &str, image: &'i MetadataImage, view: &TopicsView) -> Vec<Reads<'i>> {
    let committed: Vec<(String, BTreeMap<i32, i64>)> = ctx.groups.view(group, |coordinator| {
        let offsets = coordinator.offsets(group).map(|(topic, partitions)| {
            (topic.clone(), partitions.iter().map(|(partition, offset)| (*partition, offset.offset)).collect())
        });
        offsets.collect()
    });
    let reads = committed.into_iter().filter_map(|(name, committed)| {
        let topic: &PlacedTopic = image.topic(&name)?;
        let here = view.by_id(&topic.id);
        let offsets = topic.partitions.keys().filter_map(|index| {
            let Some(offset) = committed.get(index) else { return Some((*index, -1, -1)) };
            let end = here?.partition(*index)?.high_watermark();
            Some((*index, *offset, end - offset))
        });
        Some(Reads { topic, offsets: offsets.collect() })
    });
    reads.collect()
}

async fn write_groups<W: AsyncWrite + Unpin>(
    ctx: &Context,
    image: &MetadataImage,
    view: &TopicsView,
    page: &mut Exposition<'_, W>,
) -> io::Result<()> {
    let groups = ctx.groups.all(Coordinator::overview);
    page.metric("kafka_consumergroup_members", Kind::Gauge, "Amount of members in a consumer group");
    for group in &groups {
        page.sample("kafka_consumergroup_members", &[("consumergroup", &group.id)], group.members);
        page.relieve().await?;
    }
    type OfTopic = fn(&Reads<'_>) -> i64;
    type OfOffset = fn(i64, i64) -> i64;
    let of_partitions: [(&str, &str, OfOffset); 2] = [
        ("kafka_consumergroup_current_offset", "Current Offset of a ConsumerGroup at Topic/Partition", |offset, _| {
            offset
        }),
        ("kafka_consumergroup_lag", "Current Approximate Lag of a ConsumerGroup at Topic/Partition", |_, lag| lag),
    ];
    for (name, help, value) in of_partitions {
        page.metric(name, Kind::Gauge, help);
        for group in groups.iter().map(|group| &group.id) {
            for Reads { topic, offsets } in reads_of(ctx, group, image, view) {
                for (partition, offset, lag) in offsets {
                    let labels: [(&str, &dyn std::fmt::Display); 3] =
                        [("consumergroup", group), ("topic", &topic.name), ("partition", &partition)];
                    page.sample(name, &labels, value(offset, lag));
                }
            }
            page.relieve().await?;
        }
    }
    let of_topics: [(&str, &str, OfTopic); 2] = [
        (
            "kafka_consumergroup_current_offset_sum",
            "Current Offset of a ConsumerGroup at Topic for all partitions",
            |reads| reads.offset_sum(),
        ),
        (
            "kafka_consumergroup_lag_sum",
            "Current Approximate Lag of a ConsumerGroup at Topic for all partitions",
            |reads| reads.lag_sum(),
        ),
    ];
    for (name, help, value) in of_topics {
        page.metric(name, Kind::Gauge, help);
        for group in groups.iter().map(|group| &group.id) {
            for reads in reads_of(ctx, group, image, view) {
                page.sample(name, &[("consumergroup", group), ("topic", &reads.topic.name)], value(&reads));
            }
            page.relieve().await?;
        }
    }
    Ok(())
}
