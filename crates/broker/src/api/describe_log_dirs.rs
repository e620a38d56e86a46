//! DescribeLogDirs (35), versions 1-5: the log directory with the sizes of its partitions (KIP-113, KIP-827).

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_log_dirs_request::DescribeLogDirsRequest;
use caudal_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResponse, DescribeLogDirsResult, DescribeLogDirsTopic,
};

use super::{RequestHeader, once};
use crate::context::Context;
use crate::partition::Partition;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DescribeLogDirsRequest,
    _version: i16,
) -> DescribeLogDirsResponse {
    let view = ctx.topics.view();
    let mut topics: Vec<DescribeLogDirsTopic> = match request.topics {
        None => view
            .iter()
            .map(|topic| DescribeLogDirsTopic {
                name: topic.name.to_string(),
                partitions: topic.partitions.iter().flatten().map(|p| describe(p)).collect(),
            })
            .collect(),
        Some(wanted) => once(wanted, |topic| topic.topic.clone())
            .into_iter()
            .map(|topic| {
                let indexes = once(topic.partitions, |index| *index).into_iter();
                let known = indexes.filter_map(|index| view.partition(&topic.topic, index));
                let partitions = known.map(|p| describe(p)).collect();
                DescribeLogDirsTopic { name: topic.topic, partitions }
            })
            .collect(),
    };
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    let (total_bytes, usable_bytes) = space(&ctx.config.log_dir);
    let path = std::path::absolute(&ctx.config.log_dir).unwrap_or_else(|_| ctx.config.log_dir.clone());
    let online = view.partitions().all(|p| p.log.check_online().is_ok());
    let error = if online { ErrorCode::None } else { ErrorCode::KafkaStorageError };
    let result = DescribeLogDirsResult {
        error_code: error.code(),
        log_dir: path.display().to_string(),
        topics,
        total_bytes,
        usable_bytes,
        ..DescribeLogDirsResult::default()
    };
    DescribeLogDirsResponse { results: vec![result], ..DescribeLogDirsResponse::default() }
}

fn describe(partition: &Partition) -> DescribeLogDirsPartition {
    DescribeLogDirsPartition {
        partition_index: partition.name.partition,
        partition_size: i64::try_from(partition.log.size_bytes()).unwrap_or(i64::MAX),
        ..DescribeLogDirsPartition::default()
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
