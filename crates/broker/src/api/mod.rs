//! The requests that are served, one file each, and the way from a frame to its handler.
//!
//! To serve another API: a file with `pub async fn handle(ctx, header, request, version) -> Response`, and a line in the
//! table below. What is not in the table is not advertised.

use std::any::Any;
use std::collections::HashSet;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use caudal_protocol::messages;
use caudal_protocol::messages::response_header::ResponseHeader;
use caudal_protocol::wire::{EncodeError, Frame, Message, Part, Reader, Writer};
use caudal_protocol::{ApiKey, ErrorCode};

use crate::clock;
use crate::context::Context;
use crate::metrics::Asked;
use crate::quota::{Kind, timed};
use crate::server::{ConnectionInfo, Response};

pub mod add_offsets_to_txn;
pub mod add_partitions_to_txn;
pub mod alter_client_quotas;
pub mod alter_configs;
pub mod alter_partition_reassignments;
pub mod alter_replica_log_dirs;
pub mod alter_user_scram_credentials;
pub mod api_versions;
pub mod consumer_group_describe;
pub mod consumer_group_heartbeat;
pub mod create_acls;
pub mod create_delegation_token;
pub mod create_partitions;
pub mod create_topics;
pub mod delete_acls;
pub mod delete_groups;
pub mod delete_records;
pub mod delete_topics;
pub mod describe_acls;
pub mod describe_client_quotas;
pub mod describe_cluster;
pub mod describe_configs;
pub mod describe_delegation_token;
pub mod describe_groups;
pub mod describe_log_dirs;
pub mod describe_producers;
pub mod describe_quorum;
pub mod describe_topic_partitions;
pub mod describe_transactions;
pub mod describe_user_scram_credentials;
pub mod elect_leaders;
pub mod end_txn;
pub mod expire_delegation_token;
pub mod fetch;
pub mod find_coordinator;
pub mod header;
pub mod heartbeat;
pub mod incremental_alter_configs;
pub mod init_producer_id;
pub mod join_group;
pub mod leave_group;
pub mod list_config_resources;
pub mod list_groups;
pub mod list_offsets;
pub mod list_partition_reassignments;
pub mod list_transactions;
pub mod metadata;
pub mod offset_commit;
pub mod offset_delete;
pub mod offset_fetch;
pub mod offset_for_leader_epoch;
pub mod produce;
pub mod renew_delegation_token;
pub mod sasl_authenticate;
pub mod sasl_handshake;
pub mod sync_group;
mod throttle;
pub mod txn_offset_commit;
pub mod unregister_broker;
pub mod update_features;
pub mod write_txn_markers;

pub use header::RequestHeader;
use throttle::Throttled;

const WARN_INTERVAL_MS: i64 = 60_000;
/// As many of a name are logged.
const MAX_NAME_CHARS: usize = 100;
/// The isolation level of consumers that leave out what is undecided or aborted.
const READ_COMMITTED: i8 = 1;

/// A request being worked on. `None`: it wants no answer (acks=0).
pub type Work = Pin<Box<dyn Future<Output = Result<Option<Response>, Refused>> + Send>>;

/// Why a connection is closed instead of answered, as Kafka does with what it cannot read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    #[error("failed to read a request header of {0} bytes")]
    Header(usize),
    #[error("failed to serve api key {api_key} version {version}: not served here")]
    NotServed { api_key: i16, version: i16 },
    #[error("failed to read a {api} request of version {version}: {reason}")]
    Body { api: &'static str, version: i16, reason: String },
    #[error("failed to write a {api} response of version {version}: {reason}")]
    Answer { api: &'static str, version: i16, reason: String },
    #[error("failed to append what was sent with acks=0, which is not answered: {}", .0.name())]
    Unanswered(ErrorCode),
}

/// An API in the table: the versions that Apache Kafka 4.3 serves of it.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    pub key: ApiKey,
    pub min_version: i16,
    pub max_version: i16,
}

/// One request on its way to its handler.
struct Call {
    ctx: Arc<Context>,
    header: RequestHeader,
    body: Bytes,
}

impl Call {
    fn decode<Q: Message + 'static>(&mut self) -> Result<Q, Refused> {
        let mut reader = Reader::new(std::mem::take(&mut self.body));
        let request = Q::decode(&mut reader, self.header.version).map_err(|e| Refused::Body {
            api: self.header.api.name(),
            version: self.header.version,
            reason: e.to_string(),
        })?;
        if let Some(topics) = topics_of(&request) {
            self.header.connection.note_named(topics);
        }
        Ok(request)
    }

    fn answer<S: Message>(&self, response: &S) -> Result<Option<Response>, Refused> {
        encode(&self.header, response).map(|frame| Some(Response::new(frame)))
    }
}

/// The table: each API with its versions and handler.
macro_rules! serve {
    ($($key:ident $min:literal..=$max:literal => $module:ident($messages:ident::$request:ident);)*) => {
        /// What is served and advertised.
        pub const SERVED: &[Served] = &[
            Served { key: ApiKey::Produce, min_version: produce::MIN_VERSION, max_version: 13 },
            Served { key: ApiKey::Fetch, min_version: 4, max_version: 18 },
            $(Served { key: ApiKey::$key, min_version: $min, max_version: $max },)*
        ];

        fn route(mut call: Call) -> Work {
            match call.header.api {
                ApiKey::Produce => Box::pin(async move {
                    let request = call.decode()?;
                    produce::handle(&call.ctx, &call.header, request).await
                }),
                ApiKey::Fetch => Box::pin(async move {
                    let request = call.decode()?;
                    fetch::handle(&call.ctx, &call.header, request).await.map(Some)
                }),
                $(ApiKey::$key => Box::pin(async move {
                    let request = call.decode::<messages::$messages::$request>()?;
                    let work = $module::handle(&call.ctx, &call.header, request, call.header.version);
                    let (mut response, busy) = timed(call.ctx.quotas.is_set(Kind::Request), work).await;
                    let throttle_ms = call.ctx.quotas.record_time(&call.header, busy);
                    if throttle_ms > 0 {
                        response.throttle(throttle_ms);
                        call.header.connection.mute(throttle_ms);
                    }
                    call.answer(&response)
                }),)*
                other => {
                    let refused = Refused::NotServed { api_key: other.code(), version: call.header.version };
                    Box::pin(std::future::ready(Err(refused)))
                }
            }
        }
    };
}

serve! {
    ListOffsets 1..=11 => list_offsets(list_offsets_request::ListOffsetsRequest);
    OffsetCommit 2..=10 => offset_commit(offset_commit_request::OffsetCommitRequest);
    OffsetFetch 1..=10 => offset_fetch(offset_fetch_request::OffsetFetchRequest);
    FindCoordinator 0..=6 => find_coordinator(find_coordinator_request::FindCoordinatorRequest);
    JoinGroup 0..=9 => join_group(join_group_request::JoinGroupRequest);
    Heartbeat 0..=4 => heartbeat(heartbeat_request::HeartbeatRequest);
    LeaveGroup 0..=5 => leave_group(leave_group_request::LeaveGroupRequest);
    SyncGroup 0..=5 => sync_group(sync_group_request::SyncGroupRequest);
    DescribeGroups 0..=6 => describe_groups(describe_groups_request::DescribeGroupsRequest);
    ListGroups 0..=5 => list_groups(list_groups_request::ListGroupsRequest);
    ApiVersions 0..=4 => api_versions(api_versions_request::ApiVersionsRequest);
    DeleteRecords 0..=2 => delete_records(delete_records_request::DeleteRecordsRequest);
    InitProducerId 0..=5 => init_producer_id(init_producer_id_request::InitProducerIdRequest);
    OffsetForLeaderEpoch 2..=4 => offset_for_leader_epoch(offset_for_leader_epoch_request::OffsetForLeaderEpochRequest);
    AlterReplicaLogDirs 1..=2 => alter_replica_log_dirs(alter_replica_log_dirs_request::AlterReplicaLogDirsRequest);
    DescribeLogDirs 1..=5 => describe_log_dirs(describe_log_dirs_request::DescribeLogDirsRequest);
    DeleteGroups 0..=2 => delete_groups(delete_groups_request::DeleteGroupsRequest);
    OffsetDelete 0..=0 => offset_delete(offset_delete_request::OffsetDeleteRequest);
    DescribeQuorum 0..=2 => describe_quorum(describe_quorum_request::DescribeQuorumRequest);
    Metadata 0..=13 => metadata(metadata_request::MetadataRequest);
    CreateTopics 2..=7 => create_topics(create_topics_request::CreateTopicsRequest);
    DeleteTopics 1..=6 => delete_topics(delete_topics_request::DeleteTopicsRequest);
    DescribeAcls 1..=3 => describe_acls(describe_acls_request::DescribeAclsRequest);
    DescribeConfigs 1..=4 => describe_configs(describe_configs_request::DescribeConfigsRequest);
    CreateAcls 1..=3 => create_acls(create_acls_request::CreateAclsRequest);
    DeleteAcls 1..=3 => delete_acls(delete_acls_request::DeleteAclsRequest);
    AlterConfigs 0..=2 => alter_configs(alter_configs_request::AlterConfigsRequest);
    CreatePartitions 0..=3 => create_partitions(create_partitions_request::CreatePartitionsRequest);
    ElectLeaders 0..=2 => elect_leaders(elect_leaders_request::ElectLeadersRequest);
    IncrementalAlterConfigs 0..=1 => incremental_alter_configs(incremental_alter_configs_request::IncrementalAlterConfigsRequest);
    AlterPartitionReassignments 0..=1 => alter_partition_reassignments(alter_partition_reassignments_request::AlterPartitionReassignmentsRequest);
    ListPartitionReassignments 0..=0 => list_partition_reassignments(list_partition_reassignments_request::ListPartitionReassignmentsRequest);
    DescribeCluster 0..=2 => describe_cluster(describe_cluster_request::DescribeClusterRequest);
    ListConfigResources 0..=1 => list_config_resources(list_config_resources_request::ListConfigResourcesRequest);
    DescribeTopicPartitions 0..=0 => describe_topic_partitions(describe_topic_partitions_request::DescribeTopicPartitionsRequest);
    ConsumerGroupHeartbeat 0..=1 => consumer_group_heartbeat(consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest);
    ConsumerGroupDescribe 0..=1 => consumer_group_describe(consumer_group_describe_request::ConsumerGroupDescribeRequest);
    DescribeProducers 0..=0 => describe_producers(describe_producers_request::DescribeProducersRequest);
    AddPartitionsToTxn 0..=5 => add_partitions_to_txn(add_partitions_to_txn_request::AddPartitionsToTxnRequest);
    AddOffsetsToTxn 0..=4 => add_offsets_to_txn(add_offsets_to_txn_request::AddOffsetsToTxnRequest);
    EndTxn 0..=5 => end_txn(end_txn_request::EndTxnRequest);
    WriteTxnMarkers 1..=2 => write_txn_markers(write_txn_markers_request::WriteTxnMarkersRequest);
    TxnOffsetCommit 0..=5 => txn_offset_commit(txn_offset_commit_request::TxnOffsetCommitRequest);
    DescribeTransactions 0..=0 => describe_transactions(describe_transactions_request::DescribeTransactionsRequest);
    ListTransactions 0..=2 => list_transactions(list_transactions_request::ListTransactionsRequest);
    DescribeClientQuotas 0..=1 => describe_client_quotas(describe_client_quotas_request::DescribeClientQuotasRequest);
    AlterClientQuotas 0..=1 => alter_client_quotas(alter_client_quotas_request::AlterClientQuotasRequest);
    DescribeUserScramCredentials 0..=0 => describe_user_scram_credentials(describe_user_scram_credentials_request::DescribeUserScramCredentialsRequest);
    AlterUserScramCredentials 0..=0 => alter_user_scram_credentials(alter_user_scram_credentials_request::AlterUserScramCredentialsRequest);
    UpdateFeatures 0..=2 => update_features(update_features_request::UpdateFeaturesRequest);
    UnregisterBroker 0..=0 => unregister_broker(unregister_broker_request::UnregisterBrokerRequest);
    SaslHandshake 0..=1 => sasl_handshake(sasl_handshake_request::SaslHandshakeRequest);
    SaslAuthenticate 0..=2 => sasl_authenticate(sasl_authenticate_request::SaslAuthenticateRequest);
    CreateDelegationToken 1..=3 => create_delegation_token(create_delegation_token_request::CreateDelegationTokenRequest);
    RenewDelegationToken 1..=2 => renew_delegation_token(renew_delegation_token_request::RenewDelegationTokenRequest);
    ExpireDelegationToken 1..=2 => expire_delegation_token(expire_delegation_token_request::ExpireDelegationTokenRequest);
    DescribeDelegationToken 1..=3 => describe_delegation_token(describe_delegation_token_request::DescribeDelegationTokenRequest);
}

/// How many topics a request names; `None` where it names none.
fn topics_of(request: &dyn Any) -> Option<usize> {
    macro_rules! count {
        ($($message:ident.$topics:ident)*) => {
            $(if let Some(request) = request.downcast_ref::<messages::$message>() {
                return Some(request.$topics.len());
            })*
        };
    }
    count! {
        ProduceRequest.topic_data
        ListOffsetsRequest.topics
        OffsetCommitRequest.topics
        TxnOffsetCommitRequest.topics
        CreateTopicsRequest.topics
        DeleteTopicsRequest.topics
        DeleteRecordsRequest.topics
        CreatePartitionsRequest.topics
        OffsetForLeaderEpochRequest.topics
        DescribeTopicPartitionsRequest.topics
        AddPartitionsToTxnRequest.v3_and_below_topics
    }
    let metadata = request.downcast_ref::<messages::MetadataRequest>();
    metadata.and_then(|request| request.topics.as_ref()).map(Vec::len)
}

/// Whether a frame (without its length) asks for something that waits for others: for records, or for the other members of a
/// group.
pub fn is_open_ended(frame: &[u8]) -> bool {
    let key = frame.first_chunk().map(|key| i16::from_be_bytes(*key));
    [ApiKey::Fetch, ApiKey::JoinGroup, ApiKey::SyncGroup].iter().any(|open_ended| key == Some(open_ended.code()))
}

/// Starts the work that a frame (without its length) asks for.
pub fn dispatch(
    ctx: &Arc<Context>,
    connection: &Arc<ConnectionInfo>,
    mut frame: BytesMut,
) -> Result<(Work, Asked), Refused> {
    let frame_bytes = frame.len();
    let start = header::take_start(&mut frame).ok_or(Refused::Header(frame_bytes))?;
    let not_served = Refused::NotServed { api_key: start.api_key, version: start.version };
    let found = SERVED.iter().enumerate().find(|(_, s)| s.key.code() == start.api_key);
    let (at, served) = found.ok_or(not_served.clone())?;
    let asked = Asked { api: at, version: start.version };
    if !(served.min_version..=served.max_version).contains(&start.version) {
        if served.key == ApiKey::ApiVersions {
            return Ok((api_versions::unknown_version(start.correlation_id)?, asked));
        }
        if served.key == ApiKey::Produce && (0..produce::MIN_VERSION).contains(&start.version) {
            return Ok((produce::answer_old(start, frame)?, asked));
        }
        return Err(not_served);
    }
    let header_version = served.key.request_header_version(start.version);
    let client_id = header::take_client_id(&mut frame, header_version).ok_or(Refused::Header(frame_bytes))?;
    if let Some(client_id) = &client_id {
        connection.note_client(client_id);
    }
    let header = RequestHeader {
        api: served.key,
        version: start.version,
        correlation_id: start.correlation_id,
        client_id,
        size_bytes: frame_bytes,
        connection: connection.clone(),
    };
    Ok((route(Call { ctx: ctx.clone(), header, body: frame.freeze() }), asked))
}

/// A complete response frame: length, header, body.
pub fn encode<S: Message>(header: &RequestHeader, response: &S) -> Result<Frame, Refused> {
    let refused =
        |e: EncodeError| Refused::Answer { api: header.api.name(), version: header.version, reason: e.to_string() };
    let mut writer = Writer::new();
    writer.i32(0);
    let response_header = ResponseHeader { correlation_id: header.correlation_id };
    let header_version = header.api.response_header_version(header.version);
    response_header.encode(&mut writer, header_version).map_err(refused)?;
    response.encode(&mut writer, header.version).map_err(refused)?;
    Ok(with_length(writer.finish()))
}

/// Tells the operator what a client asks for in vain, at most once in a while: clients ask again and again.
fn warn_not_served(header: &RequestHeader, what: &str, name: &str) {
    static NEXT_MS: AtomicI64 = AtomicI64::new(0);
    let (now_ms, next_ms) = (clock::monotonic_ms(), NEXT_MS.load(Ordering::Relaxed));
    let after_ms = now_ms.saturating_add(WARN_INTERVAL_MS);
    if now_ms >= next_ms && NEXT_MS.compare_exchange(next_ms, after_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        let name: String = name.chars().take(MAX_NAME_CHARS).collect();
        let client = header.client_id.as_deref().unwrap_or_default();
        let peer = header.connection.peer;
        tracing::warn!(client, %peer, "refused {name:?}: {what} are not served yet");
    }
}

/// Clients of old versions know that they are fenced by another code.
fn fenced_error(error: ErrorCode, is_old: bool) -> ErrorCode {
    if error == ErrorCode::ProducerFenced && is_old { ErrorCode::InvalidProducerEpoch } else { error }
}

/// What a request lists, each thing once. Where the answer to an entry is much larger than the entry, one that is repeated all
/// over a large request would take all memory.
fn once<T, K: Eq + Hash>(mut items: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut seen = HashSet::new();
    items.retain(|item| seen.insert(key(item)));
    items
}

/// Puts a frame's length into its first four bytes, which were left free for it.
fn with_length(mut frame: Frame) -> Frame {
    let length = u32::try_from(frame.len().saturating_sub(4)).unwrap_or(u32::MAX);
    if let Some(Part::Bytes(first)) = frame.parts.first_mut() {
        let mut head = match std::mem::take(first).try_into_mut() {
            Ok(unique) => unique,
            Err(shared) => BytesMut::from(shared.chunk()),
        };
        if let Some(mut place) = head.get_mut(..4) {
            place.put_u32(length);
        }
        *first = head.freeze();
    }
    frame
}
