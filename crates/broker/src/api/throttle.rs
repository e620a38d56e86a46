//! The time for which a client has to pause, in the answers that have a place for it.

use caudal_protocol::messages::*;

/// An answer that tells a client how long to pause.
pub trait Throttled {
    /// Raises the time; an answer without a place for it stays as it is.
    fn throttle(&mut self, throttle_ms: i32);
}

macro_rules! throttled {
    (with: $($with:ident)*; without: $($without:ident)*;) => {
        $(impl Throttled for $with {
            fn throttle(&mut self, throttle_ms: i32) {
                self.throttle_time_ms = self.throttle_time_ms.max(throttle_ms);
            }
        })*
        $(impl Throttled for $without {
            fn throttle(&mut self, _throttle_ms: i32) {}
        })*
    };
}

throttled! {
    with:
    AddOffsetsToTxnResponse
    AddPartitionsToTxnResponse
    AlterClientQuotasResponse
    AlterConfigsResponse
    AlterPartitionReassignmentsResponse
    AlterReplicaLogDirsResponse
    AlterUserScramCredentialsResponse
    ApiVersionsResponse
    ConsumerGroupDescribeResponse
    ConsumerGroupHeartbeatResponse
    CreateAclsResponse
    CreateDelegationTokenResponse
    CreatePartitionsResponse
    CreateTopicsResponse
    DeleteAclsResponse
    DeleteGroupsResponse
    DeleteRecordsResponse
    DeleteTopicsResponse
    DescribeAclsResponse
    DescribeClientQuotasResponse
    DescribeClusterResponse
    DescribeConfigsResponse
    DescribeDelegationTokenResponse
    DescribeGroupsResponse
    DescribeLogDirsResponse
    DescribeProducersResponse
    DescribeTopicPartitionsResponse
    DescribeTransactionsResponse
    DescribeUserScramCredentialsResponse
    ElectLeadersResponse
    EndTxnResponse
    ExpireDelegationTokenResponse
    FindCoordinatorResponse
    HeartbeatResponse
    IncrementalAlterConfigsResponse
    InitProducerIdResponse
    JoinGroupResponse
    LeaveGroupResponse
    ListConfigResourcesResponse
    ListGroupsResponse
    ListOffsetsResponse
    ListPartitionReassignmentsResponse
    ListTransactionsResponse
    MetadataResponse
    OffsetCommitResponse
    OffsetDeleteResponse
    OffsetFetchResponse
    OffsetForLeaderEpochResponse
    RenewDelegationTokenResponse
    SyncGroupResponse
    TxnOffsetCommitResponse
    UnregisterBrokerResponse
    UpdateFeaturesResponse
    ;
    without:
    DescribeQuorumResponse
    SaslAuthenticateResponse
    SaslHandshakeResponse
    WriteTxnMarkersResponse
    ;
}
