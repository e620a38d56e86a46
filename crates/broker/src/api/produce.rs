//! Produce (0), versions 3-13: appends a record batch per partition and answers when they are durable.
//!
//! Each partition fails by itself, but a request with a transactional batch and no transactional id is refused as a whole.
//! acks=1 and acks=all mean the same on a single broker: after fsync by default, after the append with
//! `caudal.flush.before.ack=false`, which is what Kafka does. acks=0 is not answered; as in Kafka an error then closes the
//! connection, the only way to tell. Versions 0-2 are advertised (see [`super::api_versions`]) but answered with
//! UNSUPPORTED_VERSION, where Kafka closes the connection.
//!
//! Records are checked one by one, those of compressed batches too, by `caudal_storage`: what was acknowledged can be read.
//!
//! The first batch of a transaction in a partition waits until the coordinator knows that the partition is part of it, see
//! [`crate::transaction::participation`]; meanwhile later requests of that connection that name a transactional id wait too,
//! so that batches keep their order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use caudal_protocol::batch::{BatchError, BatchHeader};
use caudal_protocol::compression::Codec;
use caudal_protocol::messages::produce_request::{PartitionProduceData, ProduceRequest};
use caudal_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, ProduceResponse, TopicProduceResponse,
};
use caudal_protocol::wire::{DecodeError, EncodeError, Reader, Records, Writer};
use caudal_protocol::{ErrorCode, TopicPartition};
use caudal_storage::{AppendCost, AppendError, AppendOrigin, Verification};

use super::header::HeaderStart;
use super::{Refused, RequestHeader, Work, encode, header};
use crate::context::Context;
use crate::partition::{Durable, Partition};
use crate::quota::{Kind, timed};
use crate::server::{Aside, Response};
use crate::topics::Topic;
use crate::transaction::participation::{Client, Participant};

/// The first version that is really served.
pub const MIN_VERSION: i16 = 3;
const UNKNOWN_OFFSET: i64 = -1;
const ACKS_ALL: i16 = -1;

/// Why a partition's records were not taken.
struct Rejection {
    error: ErrorCode,
    message: Option<String>,
    /// The records at fault, by their place in the batch.
    records: Vec<BatchIndexAndErrorMessage>,
}

impl Rejection {
    fn new(error: ErrorCode, message: impl Into<String>) -> Rejection {
        Rejection { error, message: Some(message.into()), records: Vec::new() }
    }
}

impl From<ErrorCode> for Rejection {
    fn from(error: ErrorCode) -> Rejection {
        Rejection { error, message: None, records: Vec::new() }
    }
}

/// Appends before its first suspension, or keeps the requests behind it from being started: those of a connection take effect
/// in the order they came. Those with a transactional id keep their order among themselves only.
pub async fn handle(
    ctx: &Arc<Context>,
    header: &RequestHeader,
    request: ProduceRequest,
) -> Result<Option<Response>, Refused> {
    let acks = request.acks;
    let work = append_in_order(ctx, header, request);
    let (Appended { mut response, waiting, unfolded_for }, busy) = timed(ctx.quotas.is_set(Kind::Request), work).await;
    response.throttle_time_ms = throttle(ctx, header, acks, busy + unfolded_for);
    if acks == 0 {
        return match first_error(&response) {
            None => Ok(None),
            Some(error) => Err(Refused::Unanswered(error)),
        };
    }
    for (topic, partition, durable) in waiting {
        let Err(error) = durable.wait().await else { continue };
        if let Some(error) = &error {
            tracing::error!("{error}");
        }
        let code = error.map_or(ErrorCode::KafkaStorageError, |error| error.error_code());
        let answer = response.responses.get_mut(topic).and_then(|t| t.partition_responses.get_mut(partition));
        if let Some(answer) = answer {
            *answer = rejected(answer.index, code.into());
        }
    }
    Ok(Some(Response::new(encode(header, &response)?)))
}

async fn append_in_order(ctx: &Arc<Context>, header: &RequestHeader, request: ProduceRequest) -> Appended {
    let version = header.version;
    if request.transactional_id.is_some() {
        let _in_order = header.connection.transactional.lock().await;
        let verdicts = verify(ctx, version, &request).await;
        let cost = cost_of(ctx, version, &request);
        append_at(cost, ctx, header, request, Some(verdicts)).await
    } else {
        let cost = cost_of(ctx, version, &request);
        let _others_wait = (cost != AppendCost::Quick).then(|| header.connection.hold());
        append_at(cost, ctx, header, request, None).await
    }
}

/// How long the producer has to pause; from now on nothing of it is read for so long. What is not answered takes no thread's
/// time in Kafka's book-keeping.
fn throttle(ctx: &Context, header: &RequestHeader, acks: i16, busy: Duration) -> i32 {
    let for_bytes = ctx.quotas.record(Kind::Produce, header, header.size_bytes as f64);
    let for_time = if acks == 0 { 0 } else { ctx.quotas.record_time(header, busy) };
    let throttle_ms = for_bytes.max(for_time);
    header.connection.mute(throttle_ms);
    throttle_ms
}

fn first_error(response: &ProduceResponse) -> Option<ErrorCode> {
    let mut all = response.responses.iter().flat_map(|t| &t.partition_responses);
    all.find(|p| p.error_code != 0).map(|p| ErrorCode::from_code(p.error_code))
}

/// The places of answers that wait until the records are durable.
type Waiting = Vec<(usize, usize, Durable)>;

struct Appended {
    response: ProduceResponse,
    waiting: Waiting,
    /// For how long a thread was busy with batches that it decompressed.
    unfolded_for: Duration,
}

/// Whether transactional batches may be appended, by partition; those that are not listed are in the transaction already.
type Verdicts = BTreeMap<TopicPartition, Result<Verification, ErrorCode>>;

/// Has the partitions of transactional batches join the transaction.
async fn verify(ctx: &Context, version: i16, request: &ProduceRequest) -> Verdicts {
    let Some(id) = request.transactional_id.as_deref() else { return Verdicts::new() };
    let view = ctx.topics.view();
    let mut verdicts = Verdicts::new();
    let mut wanted = BTreeSet::new();
    let mut who: Option<Participant<'_>> = None;
    for topic in &request.topic_data {
        let found = if version >= 13 { view.by_id(&topic.topic_id) } else { view.by_name(&topic.name) };
        for part in &topic.partition_data {
            let (Some(partition), Some(Records::Bytes(records))) =
                (found.and_then(|topic| topic.partition(part.index)), &part.records)
            else {
                continue;
            };
            let header = match BatchHeader::parse(records) {
                Ok(header) if header.is_transactional() && header.has_producer_id() => header,
                _ => continue,
            };
            let producer = (header.producer_id, header.producer_epoch);
            let participant = *who.get_or_insert(Participant { id, producer, client: Client::of_produce(version) });
            if participant.producer != producer {
                verdicts.insert(partition.name.clone(), Err(ErrorCode::InvalidProducerIdMapping));
            } else if let Some(guard) = participant.begin(ctx, partition, header.base_sequence) {
                verdicts.insert(partition.name.clone(), Ok(guard));
                if guard != Verification::Off {
                    wanted.insert(partition.name.clone());
                }
            }
        }
    }
    if let Some(participant) = who {
        let refused = participant.join(ctx, &wanted).await;
        let code = |error| verification_error(error, participant.client);
        verdicts.extend(refused.into_iter().map(|(partition, error)| (partition, Err(code(error)))));
    }
    verdicts
}

/// What producers retry without asking for metadata first.
fn verification_error(error: ErrorCode, client: Client) -> ErrorCode {
    match error {
        ErrorCode::CoordinatorLoadInProgress | ErrorCode::CoordinatorNotAvailable | ErrorCode::NotCoordinator => {
            ErrorCode::NotEnoughReplicas
        }
        ErrorCode::ConcurrentTransactions if client != Client::Joins => ErrorCode::NotEnoughReplicas,
        other => other,
    }
}

/// Appends where that does not hold up the network.
async fn append_at(
    cost: AppendCost,
    ctx: &Arc<Context>,
    header: &RequestHeader,
    request: ProduceRequest,
    verdicts: Option<Verdicts>,
) -> Appended {
    let version = header.version;
    if cost == AppendCost::Quick {
        let (response, waiting) = append_all(ctx, version, request, verdicts.as_ref());
        return Appended { response, waiting, unfolded_for: Duration::ZERO };
    }
    let asked = Instant::now();
    let (turn, unfolds) = match cost {
        AppendCost::Unfolds { bytes } => (ctx.unfolding.turn(bytes).await, true),
        _ => (None, false),
    };
    let waited = asked.elapsed();
    let on = ctx.clone();
    let work = move || {
        let start = Instant::now();
        (append_all(&on, version, request, verdicts.as_ref()), start.elapsed())
    };
    let ((response, waiting), worked) = ctx.blocking(turn, work).await;
    let unfolded_for = if unfolds { worked } else { Duration::ZERO };
    header.connection.note_aside(Aside { waited, worked, unfolded_for });
    Appended { response, waiting, unfolded_for }
}

fn append_all(
    ctx: &Context,
    version: i16,
    request: ProduceRequest,
    verdicts: Option<&Verdicts>,
) -> (ProduceResponse, Waiting) {
    let view = ctx.topics.view();
    let refuse_all = check_request(&request);
    let mut waiting = Vec::new();
    let mut responses = Vec::with_capacity(request.topic_data.len());
    for wanted in request.topic_data {
        let topic = if version >= 13 { view.by_id(&wanted.topic_id) } else { view.by_name(&wanted.name) };
        let unknown = if version >= 13 { ErrorCode::UnknownTopicId } else { ErrorCode::UnknownTopicOrPartition };
        let mut answers = Vec::with_capacity(wanted.partition_data.len());
        for part in wanted.partition_data {
            let index = part.index;
            let appended = match &refuse_all {
                Some(refusal) => Err(refusal()),
                None => find(topic, index, unknown)
                    .and_then(|partition| append(partition, part, (version, request.acks), verdicts)),
            };
            answers.push(match appended {
                Ok((answer, durable)) => {
                    waiting.push((responses.len(), answers.len(), durable));
                    answer
                }
                Err(rejection) => rejected(index, rejection),
            });
        }
        responses.push(TopicProduceResponse {
            name: wanted.name,
            topic_id: wanted.topic_id,
            partition_responses: answers,
        });
    }
    (ProduceResponse { responses, ..ProduceResponse::default() }, waiting)
}

/// What the appends cost together.
fn cost_of(ctx: &Context, version: i16, request: &ProduceRequest) -> AppendCost {
    let view = ctx.topics.view();
    let costs = request.topic_data.iter().flat_map(|wanted| {
        let topic = if version >= 13 { view.by_id(&wanted.topic_id) } else { view.by_name(&wanted.name) };
        wanted.partition_data.iter().filter_map(move |part| match (topic?.partition(part.index)?, &part.records) {
            (partition, Some(Records::Bytes(records))) => Some(partition.append_cost(records, AppendOrigin::Client)),
            _ => None,
        })
    });
    costs.fold(AppendCost::Quick, AppendCost::and)
}

/// What is wrong with the request as a whole.
fn check_request(request: &ProduceRequest) -> Option<fn() -> Rejection> {
    if request.transactional_id.is_none() && has_transactional_batch(request) {
        return Some(|| Rejection::from(ErrorCode::TransactionalIdAuthorizationFailed));
    }
    if !(-1..=1).contains(&request.acks) {
        return Some(|| Rejection::from(ErrorCode::InvalidRequiredAcks));
    }
    None
}

fn has_transactional_batch(request: &ProduceRequest) -> bool {
    let mut partitions = request.topic_data.iter().flat_map(|topic| &topic.partition_data);
    partitions.any(|part| match &part.records {
        Some(Records::Bytes(records)) => BatchHeader::parse(records).is_ok_and(|header| header.is_transactional()),
        _ => false,
    })
}

fn find(topic: Option<&Arc<Topic>>, index: i32, unknown: ErrorCode) -> Result<&Arc<Partition>, Rejection> {
    let topic = topic.ok_or(unknown)?;
    topic.find(index).map_err(|error| match error {
        ErrorCode::KafkaStorageError => Rejection::new(error, "the partition is in a log directory that is offline"),
        error => error.into(),
    })
}

fn append(
    partition: &Arc<Partition>,
    part: PartitionProduceData,
    (version, acks): (i16, i16),
    verdicts: Option<&Verdicts>,
) -> Result<(PartitionProduceResponse, Durable), Rejection> {
    if acks == ACKS_ALL && partition.is_short_of_replicas() {
        return Err(ErrorCode::NotEnoughReplicas.into());
    }
    let records = match part.records {
        Some(Records::Bytes(records)) => records,
        _ => Bytes::new(),
    };
    check_records(&records, version)?;
    let verification = match verdicts.and_then(|verdicts| verdicts.get(&partition.name)) {
        Some(verdict) => verdict.map_err(not_in_transaction)?,
        None => Verification::None,
    };
    let (info, durable) = partition.append_client(&records, verification).map_err(|e| rejection_of(partition, &e))?;
    let answer = PartitionProduceResponse {
        index: part.index,
        base_offset: info.base_offset,
        log_append_time_ms: info.log_append_time_ms,
        log_start_offset: info.log_start_offset,
        ..PartitionProduceResponse::default()
    };
    Ok((answer, durable))
}

fn not_in_transaction(error: ErrorCode) -> Rejection {
    match error {
        ErrorCode::InvalidTxnState => Rejection::new(error, "Partition was not added to the transaction"),
        ErrorCode::NotEnoughReplicas => {
            Rejection::new(error, "Unable to verify the partition has been added to the transaction.")
        }
        other => other.into(),
    }
}

/// What the request's version asks of the records; the batch itself is checked by the log.
fn check_records(records: &[u8], version: i16) -> Result<(), Rejection> {
    let invalid = |message: String| Err(Rejection::new(ErrorCode::InvalidRecord, message));
    let header = match BatchHeader::parse(records) {
        Ok(header) => header,
        Err(BatchError::BadMagic { magic, .. }) => {
            return invalid(format!("the record batch has magic {magic}; Produce version {version} takes magic 2"));
        }
        Err(_) => return invalid("a partition of a produce request must hold a record batch".to_owned()),
    };
    if header.size_bytes() != records.len() {
        return invalid(format!(
            "a partition of a produce request must hold exactly one record batch: it has {} bytes, its first batch {}",
            records.len(),
            header.size_bytes()
        ));
    }
    if header.codec() == Some(Codec::Zstd) && version < 7 {
        return Err(ErrorCode::UnsupportedCompressionType.into());
    }
    if header.is_control() {
        return invalid("a client must not write control records".to_owned());
    }
    Ok(())
}

fn rejected(index: i32, rejection: Rejection) -> PartitionProduceResponse {
    PartitionProduceResponse {
        index,
        error_code: rejection.error.code(),
        base_offset: UNKNOWN_OFFSET,
        record_errors: rejection.records,
        error_message: rejection.message,
        ..PartitionProduceResponse::default()
    }
}

/// Maps a failed append; faults of the disk are logged, those of the client are its own business.
fn rejection_of(partition: &Partition, error: &AppendError) -> Rejection {
    let code = error.error_code();
    // That the disk is full, or out of use, was logged once when it was noticed.
    let is_known = matches!(error, AppendError::DiskFull { .. } | AppendError::Offline(_));
    if code == ErrorCode::KafkaStorageError && !is_known {
        tracing::error!(partition = %partition.name, "{error}");
    } else {
        tracing::debug!(partition = %partition.name, "{error}");
    }
    let mut rejection = Rejection::new(code, error.to_string());
    // Clients fail these records by name and the others of the batch because of them (KIP-467).
    let (records, message) = match error {
        AppendError::KeyMissing { log, records } => {
            (records, format!("Compacted topic cannot accept message without key in topic partition {log}."))
        }
        AppendError::InvalidTimestamp { records, .. } => (records, error.to_string()),
        _ => return rejection,
    };
    let at_fault = |&batch_index: &i32| BatchIndexAndErrorMessage {
        batch_index,
        batch_index_error_message: Some(message.clone()),
    };
    rejection.records = records.iter().map(at_fault).collect();
    rejection
}

/// Answers a request of version 0 to 2: the topics and partitions it names, each with an error.
///
/// ```text
/// request:  acks i16, timeoutMs i32, topics [name, partitions [index i32, records bytes]]
/// response: topics [name, partitions [index i32, error i16, baseOffset i64, (2) logAppendTimeMs i64]], (1-2) throttle i32
/// ```
pub fn answer_old(start: HeaderStart, mut frame: BytesMut) -> Result<Work, Refused> {
    let version = start.version;
    let frame_bytes = frame.len();
    header::take_client_id(&mut frame, 1).ok_or(Refused::Header(frame_bytes))?;
    let mut reader = Reader::new(frame.freeze());
    let (acks, topics) =
        read_old(&mut reader).map_err(|e| Refused::Body { api: "Produce", version, reason: e.to_string() })?;
    if acks == 0 {
        return Err(Refused::Unanswered(ErrorCode::UnsupportedVersion));
    }
    let mut writer = Writer::new();
    writer.i32(0);
    writer.i32(start.correlation_id);
    write_old(&mut writer, version, &topics).map_err(|e| Refused::Answer {
        api: "Produce",
        version,
        reason: e.to_string(),
    })?;
    let frame = super::with_length(writer.finish());
    Ok(Box::pin(std::future::ready(Ok(Some(Response::new(frame))))))
}

type OldTopics = Vec<(String, Vec<i32>)>;

fn read_old(reader: &mut Reader) -> Result<(i16, OldTopics), DecodeError> {
    let acks = reader.i16()?;
    reader.i32()?;
    let topics = reader.array(false, |r| {
        let name = r.string(false)?;
        let partitions = r.array(false, |r| {
            let index = r.i32()?;
            r.nullable_bytes(false)?;
            Ok(index)
        })?;
        Ok((name, partitions))
    })?;
    Ok((acks, topics))
}

fn write_old(writer: &mut Writer, version: i16, topics: &OldTopics) -> Result<(), EncodeError> {
    writer.array(false, topics, |w, (name, partitions)| {
        w.string(false, name)?;
        w.array(false, partitions, |w, index| {
            w.i32(*index);
            w.i16(ErrorCode::UnsupportedVersion.code());
            w.i64(UNKNOWN_OFFSET);
            if version >= 2 {
                w.i64(-1);
            }
            Ok(())
        })
    })?;
    if version >= 1 {
        writer.i32(0);
    }
    Ok(())
}
