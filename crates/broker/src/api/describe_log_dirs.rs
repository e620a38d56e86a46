//! DescribeLogDirs (35), versions 1-5: the log directories with the sizes of their partitions, those on
//! their way there among them (KIP-113, KIP-827).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use caudal_protocol::messages::describe_log_dirs_request::DescribeLogDirsRequest;
use caudal_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResponse, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use caudal_protocol::{ErrorCode, TopicPartition};

use caudal_storage::Log;

use super::RequestHeader;
use crate::context::Context;
use crate::log_dirs::space;

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
    let offline = |path: &Path| DescribeLogDirsResult {
        error_code: ErrorCode::KafkaStorageError.code(),
        log_dir: path.display().to_string(),
        total_bytes: -1,
        usable_bytes: -1,
        ..DescribeLogDirsResult::default()
    };
    let results = ctx.replicas.log_dirs.places().map(|place| {
        // As in Kafka nothing is told of one that is offline.
        let dir = match place {
            Ok(dir) if dir.log_dir.check_online().is_ok() => dir,
            Ok(dir) => return offline(&dir.path),
            Err(unopened) => return offline(&unopened.dir),
        };
        let mut topics: BTreeMap<String, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
        let here = view.partitions().filter(|p| Arc::ptr_eq(&p.log_dir, &dir.log_dir) && is_wanted(&p.name));
        for partition in here {
            topics.entry(partition.name.topic.to_string()).or_default().push(describe(&partition.log, 0, false));
        }
        for future in dir.log_dir.futures().iter().filter(|log| is_wanted(log.topic_partition())) {
            let name = future.topic_partition();
            // -1: the log that is moved is offline.
            let lag = view
                .find(&name.topic, name.partition)
                .map_or(-1, |p| p.log.log_end_offset().saturating_sub(future.log_end_offset()).max(0));
            topics.entry(name.topic.to_string()).or_default().push(describe(future, lag, true));
        }
        let (total_bytes, usable_bytes) = space(&dir.path);
        let topic = |(name, mut partitions): (String, Vec<DescribeLogDirsPartition>)| {
            partitions.sort_by_key(|partition| partition.partition_index);
            DescribeLogDirsTopic { name, partitions }
        };
        DescribeLogDirsResult {
            log_dir: dir.path.display().to_string(),
            topics: topics.into_iter().map(topic).collect(),
            total_bytes,
            usable_bytes,
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
