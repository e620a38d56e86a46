//! ListOffsets (2), versions 1-11: the first and the last offset, or the one of a timestamp.
//!
//! Special timestamps: -1 latest (the high watermark), -2 earliest, -3 the record with the largest timestamp (from
//! version 7), -4 the earliest on local disk (8), -5 the last in remote storage (9), -6 the earliest that is to be copied
//! there (11). Without remote storage -4 is -2, and -5 and -6 find nothing, as in Kafka.

use std::collections::HashSet;

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsRequest};
use caudal_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
};

use super::{READ_COMMITTED, RequestHeader};
use crate::context::Context;
use crate::partition::Partition;
use crate::topics::TopicsView;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;
const EARLIEST_PENDING_UPLOAD: i64 = -6;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: ListOffsetsRequest,
    version: i16,
) -> ListOffsetsResponse {
    let view = ctx.topics.view();
    let times = || request.topics.iter().flat_map(|topic| &topic.partitions).map(|wanted| wanted.timestamp);
    // A time is looked for within batches, which may be compressed.
    if times().any(|timestamp| timestamp >= 0 || timestamp == MAX_TIMESTAMP) {
        let turn = ctx.unfolding.lookup().await;
        return ctx.blocking(turn, move || find_all(&view, &request, version)).await;
    }
    find_all(&view, &request, version)
}

fn find_all(view: &TopicsView, request: &ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    let mut seen = HashSet::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            let found = if seen.insert((topic.name.as_str(), wanted.partition_index)) {
                view.find(&topic.name, wanted.partition_index)
                    .and_then(|partition| find(partition, wanted, version, request.isolation_level == READ_COMMITTED))
                    .map(|found| if version < 4 { without_epoch(found) } else { found })
            } else {
                Err(ErrorCode::InvalidRequest)
            };
            partitions.push(found.unwrap_or_else(|error| ListOffsetsPartitionResponse {
                partition_index: wanted.partition_index,
                error_code: error.code(),
                ..ListOffsetsPartitionResponse::default()
            }));
        }
        topics.push(ListOffsetsTopicResponse { name: topic.name.clone(), partitions });
    }
    ListOffsetsResponse { topics, ..ListOffsetsResponse::default() }
}

/// Versions before 4 do not carry the leader epoch.
fn without_epoch(found: ListOffsetsPartitionResponse) -> ListOffsetsPartitionResponse {
    ListOffsetsPartitionResponse { leader_epoch: -1, ..found }
}

/// The first version of the request that knows a special timestamp.
fn known_from(timestamp: i64) -> Option<i16> {
    match timestamp {
        LATEST | EARLIEST | 0.. => Some(1),
        MAX_TIMESTAMP => Some(7),
        EARLIEST_LOCAL => Some(8),
        LATEST_TIERED => Some(9),
        EARLIEST_PENDING_UPLOAD => Some(11),
        _ => None,
    }
}

fn find(
    partition: &Partition,
    wanted: &ListOffsetsPartition,
    version: i16,
    committed_only: bool,
) -> Result<ListOffsetsPartitionResponse, ErrorCode> {
    partition.check_leader_epoch(wanted.current_leader_epoch)?;
    if known_from(wanted.timestamp).is_none_or(|from| version < from) {
        return Err(ErrorCode::UnsupportedVersion);
    }
    let nothing = ListOffsetsPartitionResponse {
        partition_index: wanted.partition_index,
        ..ListOffsetsPartitionResponse::default()
    };
    let log = &partition.log;
    let high_watermark = partition.high_watermark();
    // What may be read: consumers of committed records are told nothing of what is undecided.
    let end = if committed_only { log.last_stable_offset().min(high_watermark) } else { high_watermark };
    let at = |offset: i64, leader_epoch: i32| ListOffsetsPartitionResponse { offset, leader_epoch, ..nothing.clone() };
    Ok(match wanted.timestamp {
        LATEST => at(end, partition.leader_epoch()),
        EARLIEST | EARLIEST_LOCAL => {
            let start = log.log_start_offset();
            at(start, log.epoch_for_offset(start).unwrap_or(-1))
        }
        LATEST_TIERED | EARLIEST_PENDING_UPLOAD => nothing,
        timestamp => {
            let found = if timestamp == MAX_TIMESTAMP {
                log.offset_of_max_timestamp()
            } else {
                log.offset_for_timestamp(timestamp)
            };
            let found = found.map_err(|error| {
                tracing::error!("{error}");
                error.error_code()
            })?;
            match found.filter(|f| f.offset < end) {
                Some(found) => ListOffsetsPartitionResponse {
                    timestamp: found.timestamp_ms,
                    ..at(found.offset, found.leader_epoch.unwrap_or(-1))
                },
                None => nothing,
            }
        }
    })
}
