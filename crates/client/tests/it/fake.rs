//! A broker in this process, with one topic of which it keeps the log like a real one, and faults on demand.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use caudal_protocol::api::{APIS, ApiKey};
use caudal_protocol::batch::{Batch, BatchHeader, Batches, stamp_offset};
use caudal_protocol::messages as m;
use caudal_protocol::messages::api_versions_response::ApiVersion;
use caudal_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use caudal_protocol::messages::find_coordinator_response::Coordinator;
use caudal_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use caudal_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use caudal_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use caudal_protocol::messages::offset_fetch_response::OffsetFetchResponseGroup;
use caudal_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use caudal_protocol::messages::{RequestHeader, ResponseHeader};
use caudal_protocol::wire::{Message, Reader, Records, Writer};
use caudal_protocol::{ErrorCode, Uuid};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub const TOPIC: &str = "t";
pub const TOPIC_ID: Uuid = Uuid([5; 16]);

/// What happens to one produce request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The connection closes before anything is written.
    CloseBefore,
    /// The batches are written, the connection closes without an answer.
    CloseAfter,
    /// No answer ever.
    Silence,
    /// Nothing more is read from the connection.
    Stall,
    /// The batches are written, and no answer ever.
    SilenceAfter,
    /// An error for every partition, nothing written.
    Refuse(ErrorCode),
    /// The batches are written, and an error for every partition.
    RefuseAfter(ErrorCode),
}

#[derive(Debug, Default)]
pub struct PartitionLog {
    pub batches: Vec<Batch>,
    pub end: i64,
    /// The epoch and the last five batches of each producer.
    producers: HashMap<i64, (i16, VecDeque<Appended>)>,
}

/// First sequence number, count of records, base offset.
type Appended = (i32, i32, i64);

#[derive(Debug, Default)]
pub struct State {
    pub faults: VecDeque<Fault>,
    pub partitions: Vec<PartitionLog>,
    pub next_producer_id: i64,
    pub requests: HashMap<i16, usize>,
    /// Largest batch that is taken, in bytes.
    pub max_batch_bytes: usize,
    /// The versions that are served, when not all.
    pub versions: Option<Vec<(ApiKey, i16, i16)>>,
    pub corrupt_fetches: bool,
    /// As `faults`, for fetches.
    pub fetch_faults: VecDeque<Fault>,
    /// As `faults`, for commits of offsets.
    pub commit_faults: VecDeque<Fault>,
    /// The answers to come to heartbeats of the consumer group protocol; when there are none more, all is well.
    pub heartbeat_answers: VecDeque<m::ConsumerGroupHeartbeatResponse>,
    pub heartbeats: Vec<m::ConsumerGroupHeartbeatRequest>,
    /// Answers to come to fetches of committed offsets, of which there are none: an error for the group.
    pub offset_fetch_faults: VecDeque<ErrorCode>,
    /// By which epoch of their member offsets were asked for and committed.
    pub epochs: Vec<(ApiKey, i32)>,
    /// What was committed for partition 0, in the order of the commits.
    pub commits: Vec<i64>,
    /// Metadata is asked for in vain.
    pub silent_metadata: bool,
    /// The versions that produce requests came in.
    pub produce_versions: Vec<i16>,
}

pub struct FakeBroker {
    pub port: u16,
    pub state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl FakeBroker {
    pub async fn start(partitions: usize) -> FakeBroker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            partitions: std::iter::repeat_with(PartitionLog::default).take(partitions).collect(),
            max_batch_bytes: 1 << 20,
            ..Default::default()
        };
        let state = Arc::new(Mutex::new(state));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(socket, port, Arc::clone(&shared)));
            }
        });
        FakeBroker { port, state, _tasks: tasks }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().faults.extend(faults);
    }

    /// All values of a partition, as numbers.
    pub fn values(&self, partition: usize) -> Vec<u32> {
        let state = self.state.lock();
        let records = |b: &Batch| b.records(1 << 20).unwrap().to_records().unwrap();
        let value = |r: &caudal_protocol::record::Record| {
            u32::from_be_bytes(r.value.as_deref().unwrap()[..4].try_into().unwrap())
        };
        state.partitions[partition]
            .batches
            .iter()
            .flat_map(|b| records(b).iter().map(value).collect::<Vec<_>>())
            .collect()
    }

    pub fn count(&self, api: ApiKey) -> usize {
        self.state.lock().requests.get(&api.code()).copied().unwrap_or(0)
    }
}

enum Reply {
    Answer(Bytes),
    Nothing,
    Stall,
    Close,
}

async fn serve(mut socket: TcpStream, port: u16, state: Arc<Mutex<State>>) {
    let mut buffer = BytesMut::new();
    loop {
        while buffer.len() < 4 || buffer.len() < 4 + u32::from_be_bytes(buffer[..4].try_into().unwrap()) as usize {
            match socket.read_buf(&mut buffer).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        }
        let length = buffer.get_u32() as usize;
        let frame = buffer.split_to(length).freeze();
        let reply = answer(frame, port, &mut state.lock());
        match reply {
            Reply::Answer(bytes) => {
                if socket.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Reply::Nothing => {}
            Reply::Stall => std::future::pending().await,
            Reply::Close => return,
        }
    }
}

fn answer(frame: Bytes, port: u16, state: &mut State) -> Reply {
    let raw = &frame[..4];
    let api = ApiKey::from_code(i16::from_be_bytes([raw[0], raw[1]])).unwrap();
    let version = i16::from_be_bytes([raw[2], raw[3]]);
    let mut r = Reader::new(frame);
    let header = RequestHeader::decode(&mut r, api.request_header_version(version)).unwrap();
    let id = header.correlation_id;
    *state.requests.entry(api.code()).or_default() += 1;
    match api {
        ApiKey::ApiVersions => {
            let (response, version) = api_versions(state, version);
            reply(api, version, id, &response)
        }
        ApiKey::Metadata if state.silent_metadata => Reply::Nothing,
        ApiKey::Metadata => reply(api, version, id, &metadata(port, version, state)),
        ApiKey::InitProducerId => {
            state.next_producer_id += 1;
            let response = m::InitProducerIdResponse { producer_id: state.next_producer_id, ..Default::default() };
            reply(api, version, id, &response)
        }
        ApiKey::Produce => {
            state.produce_versions.push(version);
            let request = m::ProduceRequest::decode(&mut r, version).unwrap();
            produce(request, version, id, state)
        }
        ApiKey::Fetch => {
            let request = m::FetchRequest::decode(&mut r, version).unwrap();
            match state.fetch_faults.pop_front().unwrap_or(Fault::None) {
                Fault::CloseBefore | Fault::CloseAfter => Reply::Close,
                Fault::Silence | Fault::SilenceAfter | Fault::Stall => Reply::Nothing,
                Fault::Refuse(code) | Fault::RefuseAfter(code) => {
                    reply(api, version, id, &fetch(&request, state, code))
                }
                Fault::None => reply(api, version, id, &fetch(&request, state, ErrorCode::None)),
            }
        }
        ApiKey::ListOffsets => {
            let partitions = state.partitions.iter().enumerate().map(|(i, p)| ListOffsetsPartitionResponse {
                partition_index: i as i32,
                offset: p.end,
                ..Default::default()
            });
            let topics = vec![ListOffsetsTopicResponse { name: TOPIC.into(), partitions: partitions.collect() }];
            reply(api, version, id, &m::ListOffsetsResponse { topics, ..Default::default() })
        }
        ApiKey::FindCoordinator => {
            let request = m::FindCoordinatorRequest::decode(&mut r, version).unwrap();
            let key = request.coordinator_keys[0].clone();
            let coordinator =
                Coordinator { key, node_id: 1, host: "127.0.0.1".into(), port: port.into(), ..Default::default() };
            reply(
                api,
                version,
                id,
                &m::FindCoordinatorResponse { coordinators: vec![coordinator], ..Default::default() },
            )
        }
        ApiKey::ConsumerGroupHeartbeat => {
            let request = m::ConsumerGroupHeartbeatRequest::decode(&mut r, version).unwrap();
            let well = || m::ConsumerGroupHeartbeatResponse {
                member_epoch: request.member_epoch.max(1),
                ..Default::default()
            };
            let answer = state.heartbeat_answers.pop_front().unwrap_or_else(well);
            state.heartbeats.push(request);
            reply(api, version, id, &m::ConsumerGroupHeartbeatResponse { heartbeat_interval_ms: 20, ..answer })
        }
        ApiKey::OffsetFetch => {
            let request = m::OffsetFetchRequest::decode(&mut r, version).unwrap();
            state.epochs.push((api, request.groups[0].member_epoch));
            let error_code = state.offset_fetch_faults.pop_front().unwrap_or(ErrorCode::None).code();
            let group = OffsetFetchResponseGroup { group_id: "g".into(), error_code, ..Default::default() };
            reply(api, version, id, &m::OffsetFetchResponse { groups: vec![group], ..Default::default() })
        }
        ApiKey::OffsetCommit => {
            let request = m::OffsetCommitRequest::decode(&mut r, version).unwrap();
            state.epochs.push((api, request.generation_id_or_member_epoch));
            reply(api, version, id, &commit(&request, state))
        }
        other => panic!("the fake broker does not serve {other:?}"),
    }
}

fn reply<M: Message>(api: ApiKey, version: i16, correlation_id: i32, message: &M) -> Reply {
    let mut w = Writer::new();
    ResponseHeader { correlation_id }.encode(&mut w, api.response_header_version(version)).unwrap();
    message.encode(&mut w, version).unwrap();
    let body = w.finish().into_bytes().unwrap();
    let mut frame = BytesMut::new();
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(&body);
    Reply::Answer(frame.freeze())
}

fn api_versions(state: &State, version: i16) -> (m::ApiVersionsResponse, i16) {
    let all = || APIS.iter().filter(|a| a.max_version >= 0).map(|a| (a.key, a.min_version, a.max_version)).collect();
    let served: Vec<(ApiKey, i16, i16)> = state.versions.clone().unwrap_or_else(all);
    let known = served.iter().any(|(k, min, max)| *k == ApiKey::ApiVersions && (*min..=*max).contains(&version));
    let api = |(key, min_version, max_version): (ApiKey, i16, i16)| ApiVersion {
        api_key: key.code(),
        min_version,
        max_version,
    };
    let api_keys = served.into_iter().map(api).collect();
    if known {
        (m::ApiVersionsResponse { api_keys, ..Default::default() }, version)
    } else {
        let error_code = ErrorCode::UnsupportedVersion.code();
        (m::ApiVersionsResponse { error_code, api_keys, ..Default::default() }, 0)
    }
}

fn metadata(port: u16, version: i16, state: &State) -> m::MetadataResponse {
    let partition = |i: usize| MetadataResponsePartition {
        partition_index: i as i32,
        leader_id: 1,
        leader_epoch: if version >= 7 { 0 } else { -1 },
        replica_nodes: vec![1],
        isr_nodes: vec![1],
        ..Default::default()
    };
    m::MetadataResponse {
        brokers: vec![MetadataResponseBroker { node_id: 1, host: "127.0.0.1".into(), port: port.into(), rack: None }],
        cluster_id: Some("fake".into()),
        controller_id: 1,
        topics: vec![MetadataResponseTopic {
            name: Some(TOPIC.into()),
            topic_id: if version >= 10 { TOPIC_ID } else { Uuid::ZERO },
            partitions: (0..state.partitions.len()).map(partition).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn produce(request: m::ProduceRequest, version: i16, id: i32, state: &mut State) -> Reply {
    let fault = state.faults.pop_front().unwrap_or(Fault::None);
    match fault {
        Fault::CloseBefore => return Reply::Close,
        Fault::Stall => return Reply::Stall,
        _ => {}
    }
    let mut responses = Vec::new();
    for topic in request.topic_data {
        let mut partition_responses = Vec::new();
        for data in topic.partition_data {
            let Some(Records::Bytes(bytes)) = data.records else { panic!("no records") };
            let written = match fault {
                Fault::Refuse(code) => Err(code),
                Fault::Silence => Err(ErrorCode::RequestTimedOut),
                Fault::RefuseAfter(code) => append(state, data.index as usize, bytes).and(Err(code)),
                _ => append(state, data.index as usize, bytes),
            };
            partition_responses.push(PartitionProduceResponse {
                index: data.index,
                error_code: written.err().map_or(0, ErrorCode::code),
                base_offset: written.unwrap_or(-1),
                ..Default::default()
            });
        }
        responses.push(TopicProduceResponse { name: topic.name, topic_id: topic.topic_id, partition_responses });
    }
    match fault {
        Fault::CloseAfter => Reply::Close,
        Fault::Silence | Fault::SilenceAfter => Reply::Nothing,
        _ => reply(ApiKey::Produce, version, id, &m::ProduceResponse { responses, ..Default::default() }),
    }
}

/// Appends one batch under the rules of idempotence.
fn append(state: &mut State, partition: usize, bytes: Bytes) -> Result<i64, ErrorCode> {
    let header: BatchHeader = caudal_protocol::batch::validate(&bytes).unwrap();
    assert_eq!(header.size_bytes(), bytes.len(), "one batch per partition and request");
    if bytes.len() > state.max_batch_bytes {
        return Err(ErrorCode::MessageTooLarge);
    }
    let log = &mut state.partitions[partition];
    if header.has_producer_id() {
        // As with Kafka, a producer that nothing is known of may begin anywhere, a new epoch only at 0.
        let known = log.producers.contains_key(&header.producer_id);
        let (epoch, recent) =
            log.producers.entry(header.producer_id).or_insert((header.producer_epoch, VecDeque::new()));
        if header.producer_epoch < *epoch {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        if header.producer_epoch > *epoch && header.base_sequence == 0 {
            (*epoch, *recent) = (header.producer_epoch, VecDeque::new());
        }
        if let Some((_, _, base)) =
            recent.iter().find(|(s, n, _)| (*s, *n) == (header.base_sequence, header.record_count))
        {
            return Ok(*base);
        }
        let expected = recent.back().map_or(0, |(s, n, _)| s + n);
        if known && (header.base_sequence != expected || header.producer_epoch != *epoch) {
            return Err(ErrorCode::OutOfOrderSequenceNumber);
        }
        recent.push_back((header.base_sequence, header.record_count, log.end));
        if recent.len() > 5 {
            recent.pop_front();
        }
    }
    let base = log.end;
    let mut bytes = BytesMut::from(&bytes[..]);
    stamp_offset(&mut bytes, base, 0);
    log.end += i64::from(header.record_count);
    log.batches.push(Batch::parse(&bytes.freeze()).unwrap());
    Ok(base)
}

fn commit(request: &m::OffsetCommitRequest, state: &mut State) -> m::OffsetCommitResponse {
    let error_code = match state.commit_faults.pop_front() {
        Some(Fault::Refuse(code)) => code.code(),
        _ => 0,
    };
    let mut topics = Vec::new();
    for topic in &request.topics {
        let mut partitions = Vec::new();
        for p in &topic.partitions {
            if error_code == 0 && p.partition_index == 0 {
                state.commits.push(p.committed_offset);
            }
            partitions.push(OffsetCommitResponsePartition { partition_index: p.partition_index, error_code });
        }
        topics.push(OffsetCommitResponseTopic { name: topic.name.clone(), topic_id: topic.topic_id, partitions });
    }
    m::OffsetCommitResponse { topics, ..Default::default() }
}

fn fetch(request: &m::FetchRequest, state: &State, code: ErrorCode) -> m::FetchResponse {
    let mut responses = Vec::new();
    for topic in &request.topics {
        let mut partitions = Vec::new();
        for p in &topic.partitions {
            let log = &state.partitions[p.partition as usize];
            let mut bytes = BytesMut::new();
            for batch in
                log.batches.iter().filter(|b| code == ErrorCode::None && b.header.next_offset() > p.fetch_offset)
            {
                bytes.extend_from_slice(&batch.bytes);
            }
            if state.corrupt_fetches && !bytes.is_empty() {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
            }
            let bytes = bytes.freeze();
            assert!(Batches::new(bytes.clone()).all(|b| b.is_ok()));
            partitions.push(PartitionData {
                partition_index: p.partition,
                error_code: code.code(),
                high_watermark: log.end,
                last_stable_offset: log.end,
                records: Some(Records::Bytes(bytes)),
                ..Default::default()
            });
        }
        responses.push(FetchableTopicResponse { topic: topic.topic.clone(), topic_id: topic.topic_id, partitions });
    }
    m::FetchResponse { responses, ..Default::default() }
}
