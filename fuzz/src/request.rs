//! Request bodies in every version that is served: what is read is written back and read again as the same.
//!
//! Input: the bytes of a frame behind its length, header included, as a client sends it.

use bytes::{Bytes, BytesMut};
use caudal_broker::api::{SERVED, header};
use caudal_protocol::ApiKey;
use caudal_protocol::messages;
use caudal_protocol::wire::{Message, Reader};

pub fn run(data: &[u8]) {
    let mut frame = BytesMut::from(data);
    let Some(start) = header::take_start(&mut frame) else { return };
    let Some(served) = SERVED.iter().find(|s| s.key.code() == start.api_key) else { return };
    if !(served.min_version..=served.max_version).contains(&start.version) {
        return;
    }
    let header_version = served.key.request_header_version(start.version);
    if header::take_client_id(&mut frame, header_version).is_some() {
        read(served.key, start.version, frame.freeze());
    }
}

fn round_trip<Q: Message + PartialEq + std::fmt::Debug>(version: i16, body: Bytes) {
    let Ok(read) = Q::decode(&mut Reader::new(body), version) else { return };
    // What a version does not carry has its default, so everything that was read can be written.
    let written = read.to_bytes(version).unwrap_or_else(|e| panic!("{read:?} is not written back: {e}"));
    let again =
        Q::decode(&mut Reader::new(written), version).unwrap_or_else(|e| panic!("{read:?} is not read back: {e}"));
    // Formatted, since a NaN is not equal to itself.
    assert!(again == read || format!("{again:?}") == format!("{read:?}"), "{read:?} became {again:?}");
}

macro_rules! requests {
    ($($key:ident => $module:ident::$request:ident;)*) => {
        fn read(key: ApiKey, version: i16, body: Bytes) {
            match key {
                $(ApiKey::$key => round_trip::<messages::$module::$request>(version, body),)*
                _ => panic!("{} is served, but not read here: add it to the table in fuzz/src/request.rs", key.name()),
            }
        }

        /// What is in the table above.
        #[cfg(test)]
        pub const READ: &[ApiKey] = &[$(ApiKey::$key),*];
    };
}

requests! {
    Produce => produce_request::ProduceRequest;
    Fetch => fetch_request::FetchRequest;
    ListOffsets => list_offsets_request::ListOffsetsRequest;
    OffsetCommit => offset_commit_request::OffsetCommitRequest;
    OffsetFetch => offset_fetch_request::OffsetFetchRequest;
    FindCoordinator => find_coordinator_request::FindCoordinatorRequest;
    JoinGroup => join_group_request::JoinGroupRequest;
    Heartbeat => heartbeat_request::HeartbeatRequest;
    LeaveGroup => leave_group_request::LeaveGroupRequest;
    SyncGroup => sync_group_request::SyncGroupRequest;
    DescribeGroups => describe_groups_request::DescribeGroupsRequest;
    ListGroups => list_groups_request::ListGroupsRequest;
    ApiVersions => api_versions_request::ApiVersionsRequest;
    DeleteRecords => delete_records_request::DeleteRecordsRequest;
    InitProducerId => init_producer_id_request::InitProducerIdRequest;
    OffsetForLeaderEpoch => offset_for_leader_epoch_request::OffsetForLeaderEpochRequest;
    AlterReplicaLogDirs => alter_replica_log_dirs_request::AlterReplicaLogDirsRequest;
    DescribeLogDirs => describe_log_dirs_request::DescribeLogDirsRequest;
    DeleteGroups => delete_groups_request::DeleteGroupsRequest;
    OffsetDelete => offset_delete_request::OffsetDeleteRequest;
    DescribeQuorum => describe_quorum_request::DescribeQuorumRequest;
    Metadata => metadata_request::MetadataRequest;
    CreateTopics => create_topics_request::CreateTopicsRequest;
    DeleteTopics => delete_topics_request::DeleteTopicsRequest;
    DescribeAcls => describe_acls_request::DescribeAclsRequest;
    DescribeConfigs => describe_configs_request::DescribeConfigsRequest;
    CreateAcls => create_acls_request::CreateAclsRequest;
    DeleteAcls => delete_acls_request::DeleteAclsRequest;
    AlterConfigs => alter_configs_request::AlterConfigsRequest;
    CreatePartitions => create_partitions_request::CreatePartitionsRequest;
    ElectLeaders => elect_leaders_request::ElectLeadersRequest;
    IncrementalAlterConfigs => incremental_alter_configs_request::IncrementalAlterConfigsRequest;
    AlterPartitionReassignments => alter_partition_reassignments_request::AlterPartitionReassignmentsRequest;
    ListPartitionReassignments => list_partition_reassignments_request::ListPartitionReassignmentsRequest;
    DescribeCluster => describe_cluster_request::DescribeClusterRequest;
    ListConfigResources => list_config_resources_request::ListConfigResourcesRequest;
    DescribeTopicPartitions => describe_topic_partitions_request::DescribeTopicPartitionsRequest;
    ConsumerGroupHeartbeat => consumer_group_heartbeat_request::ConsumerGroupHeartbeatRequest;
    ConsumerGroupDescribe => consumer_group_describe_request::ConsumerGroupDescribeRequest;
    DescribeProducers => describe_producers_request::DescribeProducersRequest;
    AddPartitionsToTxn => add_partitions_to_txn_request::AddPartitionsToTxnRequest;
    AddOffsetsToTxn => add_offsets_to_txn_request::AddOffsetsToTxnRequest;
    EndTxn => end_txn_request::EndTxnRequest;
    WriteTxnMarkers => write_txn_markers_request::WriteTxnMarkersRequest;
    TxnOffsetCommit => txn_offset_commit_request::TxnOffsetCommitRequest;
    DescribeTransactions => describe_transactions_request::DescribeTransactionsRequest;
    ListTransactions => list_transactions_request::ListTransactionsRequest;
    DescribeClientQuotas => describe_client_quotas_request::DescribeClientQuotasRequest;
    AlterClientQuotas => alter_client_quotas_request::AlterClientQuotasRequest;
    DescribeUserScramCredentials => describe_user_scram_credentials_request::DescribeUserScramCredentialsRequest;
    AlterUserScramCredentials => alter_user_scram_credentials_request::AlterUserScramCredentialsRequest;
    UpdateFeatures => update_features_request::UpdateFeaturesRequest;
    UnregisterBroker => unregister_broker_request::UnregisterBrokerRequest;
    SaslHandshake => sasl_handshake_request::SaslHandshakeRequest;
    SaslAuthenticate => sasl_authenticate_request::SaslAuthenticateRequest;
    CreateDelegationToken => create_delegation_token_request::CreateDelegationTokenRequest;
    RenewDelegationToken => renew_delegation_token_request::RenewDelegationTokenRequest;
    ExpireDelegationToken => expire_delegation_token_request::ExpireDelegationTokenRequest;
    DescribeDelegationToken => describe_delegation_token_request::DescribeDelegationTokenRequest;
}

#[cfg(test)]
#[test]
fn every_request_that_is_served_is_read() {
    for served in SERVED {
        assert!(READ.contains(&served.key), "{} is missing in the table of fuzz/src/request.rs", served.key.name());
    }
}
