//! AlterReplicaLogDirs (34), versions 1-2: moves partitions to other log directories of this node (KIP-113), see
//! [`crate::moves`]. The answer comes when the move has begun; DescribeLogDirs tells how far it is. For a partition that is
//! not here the wish is remembered until it is created, and UNKNOWN_TOPIC_OR_PARTITION answered, as in Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;

use caudal_protocol::messages::alter_replica_log_dirs_request::AlterReplicaLogDirsRequest;
use caudal_protocol::messages::alter_replica_log_dirs_response::{
    AlterReplicaLogDirPartitionResult, AlterReplicaLogDirTopicResult, AlterReplicaLogDirsResponse,
};
use caudal_protocol::{ErrorCode, TopicPartition};

use super::{RequestHeader, once};
use crate::context::Context;
use crate::partition::off_the_network;

pub async fn handle(
    ctx: &Arc<Context>,
    _header: &RequestHeader,
    request: AlterReplicaLogDirsRequest,
    _version: i16,
) -> AlterReplicaLogDirsResponse {
    let mut results: BTreeMap<String, Vec<AlterReplicaLogDirPartitionResult>> = BTreeMap::new();
    for dir in once(request.dirs, |dir| dir.path.clone()) {
        for topic in once(dir.topics, |topic| topic.name.clone()) {
            let partitions = once(topic.partitions, |index| *index).into_iter().map(|partition_index| {
                let error = alter(ctx, &dir.path, TopicPartition::new(topic.name.as_str(), partition_index));
                AlterReplicaLogDirPartitionResult { partition_index, error_code: error.code() }
            });
            let partitions: Vec<_> = partitions.collect();
            results.entry(topic.name).or_default().extend(partitions);
        }
    }
    let topic = |(topic_name, partitions)| AlterReplicaLogDirTopicResult { topic_name, partitions };
    let results = results.into_iter().map(topic).collect();
    AlterReplicaLogDirsResponse { results, ..AlterReplicaLogDirsResponse::default() }
}

fn alter(ctx: &Arc<Context>, path: &str, name: TopicPartition) -> ErrorCode {
    let dir = match ctx.replicas.log_dirs.find(path) {
        Some(Ok(dir)) => dir,
        Some(Err(_)) => return ErrorCode::KafkaStorageError,
        None => return ErrorCode::LogDirNotFound,
    };
    match ctx.topics.view().find(&name.topic, name.partition) {
        Ok(partition) => match off_the_network(|| ctx.moves.begin(ctx, partition, &dir.log_dir)) {
            Ok(()) => ErrorCode::None,
            Err(error) => {
                tracing::error!(partition = %name, to = path, "the move does not begin: {error}");
                ErrorCode::KafkaStorageError
            }
        },
        Err(error) => {
            if error == ErrorCode::UnknownTopicOrPartition
                && caudal_cluster::controller::check_topic_name(&name.topic).is_ok()
            {
                ctx.replicas.log_dirs.wish(name, dir);
            }
            error
        }
    }
}
