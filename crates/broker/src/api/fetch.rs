//! Fetch (1), versions 4-18: record batches as they lie in the log, by file range.
//!
//! Waits until `min_bytes` are there, `max_wait_ms` have passed, or a partition fails. The first batch of a response is
//! whole however large it is, so that a consumer always gets on. Nothing at or above the high watermark is served; with
//! fsync before acknowledgement (the default) that is what is durable. Sessions: KIP-227, see [`crate::fetch::session`].
//!
//! Readers of committed records get those below the last stable offset, with the aborted transactions among them. A fetch
//! that says it comes from a replica is refused, since this broker has none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{BatchHeader, HEADER_LEN};
use caudal_protocol::compression::Codec;
use caudal_protocol::messages::fetch_request::FetchRequest;
use caudal_protocol::messages::fetch_response::{
    AbortedTransaction, FetchResponse, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use caudal_protocol::wire::Records;
use tokio::time::{Instant, timeout_at};

use super::{READ_COMMITTED, Refused, RequestHeader, encode};
use crate::clock;
use crate::context::Context;
use crate::fetch::session::{FetchContext, PartitionKey, TopicKey, Wanted};
use crate::fetch::waiters::Registration;
use crate::metrics::Meter;
use crate::partition::Partition;
use crate::quota::{Kind, timed};
use crate::server::{FileRange, Response};
use crate::topics::TopicsView;

/// A response to a consumer on this machine that has so many bytes takes no further partition, unless `min_bytes` asks for
/// more. Megabytes of many partitions at once do not fit the client's caches: librdkafka reads responses of 1 to 2 MiB up to 1.3
/// times as fast as those of 6, and 1.5 times as fast as those of 50 (`bench/README.md`). Compressed records gain nothing by
/// it, the client moves what they unfold to, so those fill the response. Who is elsewhere gets what it asks for, since a
/// round trip is dear there.
const ENOUGH_NEARBY: usize = 1 << 20;

/// How many bytes a response may have.
#[derive(Debug, Clone, Copy)]
struct Budget {
    /// Of records, but for a first batch that is larger.
    max_bytes: usize,
    /// A partition of records that are not compressed is the last one when it brings the response to so many.
    enough: usize,
}

/// What one pass over the partitions found.
#[derive(Default)]
struct Pass {
    /// One for each partition, in the fetch's order.
    answers: Vec<PartitionData>,
    ranges: Vec<FileRange>,
    bytes: usize,
    /// A partition that is here could not be read: answered at once.
    failed: bool,
    /// Partitions that are here, whatever came of reading them.
    present: Vec<Arc<Partition>>,
    /// The bytes of records that are answered of each of those.
    sizes: Vec<usize>,
}

impl Pass {
    /// Takes note of what is answered.
    fn count(&self) {
        for (partition, size) in self.present.iter().zip(&self.sizes) {
            partition.traffic.add(Meter::FetchRequests, 1);
            if *size > 0 {
                partition.traffic.add(Meter::BytesOut, *size as u64);
            }
        }
    }
}

pub async fn handle(ctx: &Context, header: &RequestHeader, request: FetchRequest) -> Result<Response, Refused> {
    let version = header.version;
    let opened = ctx.fetch_sessions.open(&request, version, clock::monotonic_ms());
    let context = match opened {
        Ok(context) => context,
        Err(error) => {
            let response = FetchResponse { error_code: error.code(), ..FetchResponse::default() };
            return Ok(Response::new(encode(header, &response)?));
        }
    };
    let from_replica = request.replica_id >= 0 || request.replica_state.replica_id >= 0;
    if from_replica {
        return answer(ctx, header, &context, refuse_all(&context));
    }
    header.connection.note_wait(Duration::from_millis(request.max_wait_ms.max(0).unsigned_abs().into()));
    header.connection.note_named(context.partitions.len());
    let work = wait_for_data(ctx, header, &request, &context);
    let (pass, busy) = timed(ctx.quotas.is_set(Kind::Request), work).await;
    match throttle(ctx, header, pass.bytes, busy) {
        0 => {
            pass.count();
            answer(ctx, header, &context, pass)
        }
        throttle_time_ms => {
            // To be asked again after the pause.
            let response = FetchResponse { throttle_time_ms, session_id: context.session_id(), ..Default::default() };
            Ok(Response::new(encode(header, &response)?))
        }
    }
}

/// How long the consumer has to pause before it gets what was found; 0: it gets it now.
fn throttle(ctx: &Context, header: &RequestHeader, bytes: usize, busy: Duration) -> i32 {
    let for_bytes = ctx.quotas.record(Kind::Fetch, header, bytes as f64);
    let throttle_ms = for_bytes.max(ctx.quotas.record_time(header, busy));
    if throttle_ms > 0 {
        ctx.quotas.unrecord(Kind::Fetch, header, bytes as f64);
        header.connection.mute(throttle_ms);
    }
    throttle_ms
}

async fn wait_for_data(ctx: &Context, header: &RequestHeader, request: &FetchRequest, context: &FetchContext) -> Pass {
    let version = header.version;
    let max_bytes = usize::try_from(request.max_bytes).unwrap_or(0).min(ctx.config.fetch_max_bytes);
    let max_bytes = max_bytes.min(ctx.quotas.most_bytes(header));
    let min_bytes = usize::try_from(request.min_bytes).unwrap_or(0).min(max_bytes);
    let nearby = header.connection.peer.ip() == header.connection.local.ip();
    let budget = Budget { max_bytes, enough: if nearby { ENOUGH_NEARBY.max(min_bytes) } else { max_bytes } };
    let complete = |pass: &Pass| pass.failed || pass.present.is_empty() || pass.bytes >= min_bytes;
    let read = || read_all(ctx, version, request.isolation_level, context, budget);
    let pass = read();
    if request.max_wait_ms <= 0 || complete(&pass) {
        return pass;
    }
    let deadline = Instant::now() + Duration::from_millis(request.max_wait_ms.unsigned_abs().into());
    let registration = Registration::new(pass.present);
    loop {
        let pass = read();
        if complete(&pass) {
            return pass;
        }
        drop(pass);
        if timeout_at(deadline, registration.changed()).await.is_err() {
            return read();
        }
    }
}

fn resolve<'v>(view: &'v TopicsView, key: &PartitionKey) -> Result<&'v Arc<Partition>, ErrorCode> {
    let topic = match &key.topic {
        TopicKey::Name(name) => view.by_name(name).ok_or(ErrorCode::UnknownTopicOrPartition)?,
        TopicKey::Id(id) => view.by_id(id).ok_or(ErrorCode::UnknownTopicId)?,
    };
    topic.find(key.partition)
}

fn read_all(ctx: &Context, version: i16, isolation_level: i8, context: &FetchContext, budget: Budget) -> Pass {
    let view = ctx.topics.view();
    let committed_only = isolation_level == READ_COMMITTED;
    let count = context.partitions.len();
    let mut pass = Pass { answers: Vec::with_capacity(count), ..Pass::default() };
    // A client names its partitions in the order in which it wants them where its own limit may leave some out. Of
    // this limit it knows nothing, and without a session nobody else remembers whose turn it is.
    let unaware = budget.enough < budget.max_bytes && context.session_id() == 0;
    let first = if unaware && count > 1 { rand::random_range(0..count) } else { 0 };
    let mut has_enough = false;
    for (key, wanted) in context.partitions.iter().cycle().skip(first).take(count) {
        let partition = match resolve(&view, key) {
            Ok(partition) => partition,
            Err(error) => {
                pass.failed |= error == ErrorCode::KafkaStorageError;
                pass.answers.push(failed(key.partition, storage_error_for(version, error)));
                continue;
            }
        };
        let left = if has_enough { 0 } else { budget.max_bytes.saturating_sub(pass.bytes) };
        // KIP-110: clients before version 10 do not know the codec.
        let read = if version < 10 && partition.log.config().compression == Some(Codec::Zstd) {
            Err(ErrorCode::UnsupportedCompressionType)
        } else {
            read_one(partition, wanted, committed_only, (left, pass.bytes == 0), &mut pass.ranges)
        };
        let mut data = read.unwrap_or_else(|error| {
            pass.failed = true;
            failed(key.partition, storage_error_for(version, error))
        });
        if data.error_code == ErrorCode::FencedLeaderEpoch.code() {
            data.current_leader = LeaderIdAndEpoch { leader_id: ctx.node_id(), leader_epoch: partition.leader_epoch() };
        }
        if !committed_only {
            data.aborted_transactions = None;
        }
        let size = data.records.as_ref().map_or(0, Records::len);
        pass.present.push(partition.clone());
        pass.sizes.push(size);
        pass.bytes += size;
        has_enough |= size > 0 && pass.bytes >= budget.enough && !pass.ranges.last().is_some_and(begins_compressed);
        pass.answers.push(data);
    }
    pass.answers.rotate_right(first);
    pass
}

/// Whether the first batch of the range is compressed; one whose header cannot be read counts as not.
fn begins_compressed(range: &FileRange) -> bool {
    let mut header = [0; HEADER_LEN];
    let read = range.file.read_at(&mut header, range.position);
    read.is_ok() && BatchHeader::parse(&header).is_ok_and(|header| header.codec() != Some(Codec::None))
}

/// Clients before version 6 do not know KAFKA_STORAGE_ERROR and would give up; this makes them look for the leader again.
fn storage_error_for(version: i16, error: ErrorCode) -> ErrorCode {
    if error == ErrorCode::KafkaStorageError && version <= 5 { ErrorCode::NotLeaderOrFollower } else { error }
}

fn read_one(
    partition: &Arc<Partition>,
    wanted: &Wanted,
    committed_only: bool,
    (left, first): (usize, bool),
    ranges: &mut Vec<FileRange>,
) -> Result<PartitionData, ErrorCode> {
    partition.check_leader_epoch(wanted.current_leader_epoch)?;
    let high_watermark = partition.high_watermark();
    let max_bytes = usize::try_from(wanted.max_bytes).unwrap_or(0).min(left);
    let log_start_offset = partition.log.log_start_offset();
    if wanted.offset < log_start_offset || wanted.offset > partition.log.log_end_offset() {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    let last_stable_offset = partition.log.last_stable_offset().min(high_watermark);
    let end_offset = if committed_only { last_stable_offset } else { high_watermark };
    let aborted = |t: caudal_storage::AbortedTransaction| AbortedTransaction {
        producer_id: t.producer_id,
        first_offset: t.first_offset,
    };
    let mut aborted_transactions = committed_only.then(Vec::new);
    let mut records = Records::Bytes(Bytes::new());
    if wanted.offset < end_offset && (max_bytes > 0 || first) {
        let slice = partition.read(wanted.offset, max_bytes, end_offset, first)?;
        if slice.len > 0 {
            if let Some(aborted_transactions) = &mut aborted_transactions {
                let among = partition.log.aborted_in(&slice, wanted.offset, end_offset);
                aborted_transactions.extend(among.into_iter().map(aborted));
            }
            records = Records::External { id: ranges.len(), len: slice.len };
            ranges.push(FileRange { file: slice.file, position: slice.position, len: slice.len });
        }
    }
    Ok(PartitionData {
        partition_index: partition.name.partition,
        high_watermark,
        last_stable_offset,
        aborted_transactions,
        log_start_offset,
        records: Some(records),
        ..PartitionData::default()
    })
}

fn failed(index: i32, error: ErrorCode) -> PartitionData {
    PartitionData {
        partition_index: index,
        error_code: error.code(),
        high_watermark: -1,
        records: Some(Records::Bytes(Bytes::new())),
        ..PartitionData::default()
    }
}

fn refuse_all(context: &FetchContext) -> Pass {
    let refused = |(key, _): &(PartitionKey, Wanted)| failed(key.partition, ErrorCode::TopicAuthorizationFailed);
    Pass { answers: context.partitions.iter().map(refused).collect(), ..Pass::default() }
}

fn answer(ctx: &Context, header: &RequestHeader, context: &FetchContext, pass: Pass) -> Result<Response, Refused> {
    let keys = context.partitions.iter().map(|(key, _)| key);
    let answers: Vec<_> = keys.clone().zip(&pass.answers).collect();
    let new_id = || rand::random::<i32>() & i32::MAX;
    let closed = ctx.fetch_sessions.close(context, answers.into_iter(), clock::monotonic_ms(), new_id);
    let (session_id, included) = match closed {
        Ok(closed) => closed,
        Err(error) => {
            let response = FetchResponse { error_code: error.code(), ..FetchResponse::default() };
            return Ok(Response::new(encode(header, &response)?));
        }
    };
    let mut response = FetchResponse { session_id, ..FetchResponse::default() };
    let mut last_topic = None;
    for ((key, data), included) in keys.zip(pass.answers).zip(included) {
        if !included {
            continue;
        }
        if data.current_leader.leader_id >= 0 && header.version >= 16 && response.node_endpoints.is_empty() {
            let (host, port) = ctx.advertised(header);
            response.node_endpoints.push(NodeEndpoint { node_id: ctx.node_id(), host, port: port.into(), rack: None });
        }
        if last_topic != Some(&key.topic) {
            last_topic = Some(&key.topic);
            let mut topic = FetchableTopicResponse::default();
            match &key.topic {
                TopicKey::Name(name) => topic.topic = name.to_string(),
                TopicKey::Id(id) => topic.topic_id = *id,
            }
            response.responses.push(topic);
        }
        if let Some(topic) = response.responses.last_mut() {
            topic.partitions.push(data);
        }
    }
    Ok(Response::with_ranges(encode(header, &response)?, pass.ranges))
}
