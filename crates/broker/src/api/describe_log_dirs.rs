//! DescribeLogDirs (35), versions 1-5: the log directories with the sizes of their partitions, those on
//! their way there among them (KIP-113, KIP-827).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caudal_protocol::messages::describe_log_dirs_request::DescribeLogDirsRequest;
use caudal_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResponse, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use caudal_protocol::{ErrorCode, TopicPartition};

use caudal_storage::Log;

use super::RequestHeader;
use crate::context::Context;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DescribeLogDirsRequest,
    _version: i16,
) -> DescribeLogDirsResponse {
    // An empty list asks for none.
    let none = request.topics.as_ref().is_some_and(Vec::is_empty);
    let view = ctx.topics.view();
    let mut wanted: Option<BTreeMap<String, BTreeSet<i32>>> = None;
    for topic in request.topics.into_iter().flatten() {
        let topics = wanted.get_or_insert_default();
        topics.entry(topic.topic).or_default().extend(topic.partitions);
    }
    let is_wanted = |name: &TopicPartition| {
        let partitions = |topics: &BTreeMap<String, BTreeSet<i32>>| {
            topics.get(name.topic.as_str()).is_some_and(|partitions| partitions.contains(&name.partition))
        };
        wanted.as_ref().map_or(!none, partitions)
    };
    let results = ctx.replicas.log_dirs.iter().map(|dir| {
        let mut topics: BTreeMap<String, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
        let here = view.partitions().filter(|p| Arc::ptr_eq(&p.log_dir, &dir.log_dir) && is_wanted(&p.name));
        for partition in here {
            topics.entry(partition.name.topic.to_string()).or_default().push(describe(&partition.log, 0, false));
        }
        for future in dir.log_dir.futures().iter().filter(|log| is_wanted(log.topic_partition())) {
            let name = future.topic_partition();
            let end = view.partition(&name.topic, name.partition).map_or(0, |p| p.log.log_end_offset());
            let lag = end.saturating_sub(future.log_end_offset()).max(0);
            topics.entry(name.topic.to_string()).or_default().push(describe(future, lag, true));
        }
        let (total_bytes, usable_bytes) = space(&dir.path);
        let online = dir.log_dir.check_online().is_ok();
        let topic = |(name, mut partitions): (String, Vec<DescribeLogDirsPartition>)| {
            partitions.sort_by_key(|partition| partition.partition_index);
            DescribeLogDirsTopic { name, partitions }
        };
        DescribeLogDirsResult {
            error_code: if online { ErrorCode::None } else { ErrorCode::KafkaStorageError }.code(),
            log_dir: dir.path.display().to_string(),
            // As in Kafka nothing is told of one that is offline.
            topics: topics.into_iter().filter(|_| online).map(topic).collect(),
            total_bytes: if online { total_bytes } else { -1 },
            usable_bytes: if online { usable_bytes } else { -1 },
            ..DescribeLogDirsResult::default()
        }
    });
    DescribeLogDirsResponse { results: results.collect(), ..DescribeLogDirsResponse::default() }
}

fn describe(log: &Log, offset_lag: i64, is_future_key: bool) -> DescribeLogDirsPartition {
    DescribeLogDirsPartition {
        partition_index: log.topic_partition().partition,
        partition_size: i64::try_from(log.size_bytes()).unwrap_or(i64::MAX),
        offset_lag,
        is_future_key,
    }
}

/// Size of the volume and what is left of it; -1 where the system does not tell.
fn space(dir: &std::path::Path) -> (i64, i64) {
    match rustix::fs::statvfs(dir) {
        Ok(volume) => {
            let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(volume.f_frsize)).unwrap_or(i64::MAX);
            (bytes(volume.f_blocks), bytes(volume.f_bavail))
        }
        Err(_) => (-1, -1),
    }
}
