//! ElectLeaders (43), versions 0-2: the only replica leads already, whichever kind of election is asked for.

use caudal_cluster::MetadataImage;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use caudal_protocol::messages::{ElectLeadersRequest, ElectLeadersResponse};

use super::{RequestHeader, once};
use crate::context::Context;

const UNCLEAN: i8 = 1;
/// The sentences of one answer; beyond that the code says it. Each is much larger than what asks for it.
const MAX_SENTENCES_BYTES: usize = 1024 * 1024;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: ElectLeadersRequest,
    _version: i16,
) -> ElectLeadersResponse {
    if !(0..=UNCLEAN).contains(&request.election_type) {
        return ElectLeadersResponse {
            error_code: ErrorCode::InvalidRequest.code(),
            ..ElectLeadersResponse::default()
        };
    }
    let image = ctx.metadata.image();
    // Asked for all partitions, Kafka tells of those only for which there was something to do.
    let topics = once(request.topic_partitions.unwrap_or_default(), |topic| topic.topic.clone());
    let mut sentences_bytes = 0;
    let results = topics.into_iter().map(|topic| {
        let indexes = once(topic.partitions, |index| *index).into_iter();
        let elected = indexes.map(|index| {
            let mut result = elect(&image, &topic.topic, index);
            sentences_bytes += result.error_message.as_ref().map_or(0, String::len);
            if sentences_bytes > MAX_SENTENCES_BYTES {
                result.error_message = None;
            }
            result
        });
        let partition_result = elected.collect();
        ReplicaElectionResult { topic: topic.topic, partition_result }
    });
    ElectLeadersResponse { replica_election_results: results.collect(), ..ElectLeadersResponse::default() }
}

fn elect(image: &MetadataImage, topic: &str, partition_id: i32) -> PartitionResult {
    let (error, message) = match (image.topic(topic), image.partition(topic, partition_id)) {
        (None, _) => (ErrorCode::UnknownTopicOrPartition, format!("No such topic as {topic}")),
        (Some(_), None) => (ErrorCode::UnknownTopicOrPartition, format!("No such partition as {topic}-{partition_id}")),
        (Some(_), Some(_)) => (ErrorCode::ElectionNotNeeded, ErrorCode::ElectionNotNeeded.message().to_owned()),
    };
    PartitionResult { partition_id, error_code: error.code(), error_message: Some(message) }
}
