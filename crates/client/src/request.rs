//! Which response answers which request.

use caudal_protocol::messages as m;
use caudal_protocol::wire::Message;

/// A request and the response that answers it.
pub trait Request: Message {
    type Response: Message;
}

macro_rules! requests {
    ($($request:ident => $response:ident,)*) => {
        $(impl Request for m::$request { type Response = m::$response; })*
    };
}

requests! {
    ProduceRequest => ProduceResponse,
    FetchRequest => FetchResponse,
    ListOffsetsRequest => ListOffsetsResponse,
    MetadataRequest => MetadataResponse,
    OffsetCommitRequest => OffsetCommitResponse,
    OffsetFetchRequest => OffsetFetchResponse,
    FindCoordinatorRequest => FindCoordinatorResponse,
    JoinGroupRequest => JoinGroupResponse,
    HeartbeatRequest => HeartbeatResponse,
    LeaveGroupRequest => LeaveGroupResponse,
    SyncGroupRequest => SyncGroupResponse,
    DescribeGroupsRequest => DescribeGroupsResponse,
    ListGroupsRequest => ListGroupsResponse,
    ApiVersionsRequest => ApiVersionsResponse,
    CreateTopicsRequest => CreateTopicsResponse,
    DeleteTopicsRequest => DeleteTopicsResponse,
    DeleteRecordsRequest => DeleteRecordsResponse,
    InitProducerIdRequest => InitProducerIdResponse,
    AddPartitionsToTxnRequest => AddPartitionsToTxnResponse,
    EndTxnRequest => EndTxnResponse,
    OffsetForLeaderEpochRequest => OffsetForLeaderEpochResponse,
    DescribeConfigsRequest => DescribeConfigsResponse,
    AlterConfigsRequest => AlterConfigsResponse,
    DescribeLogDirsRequest => DescribeLogDirsResponse,
    CreatePartitionsRequest => CreatePartitionsResponse,
    DeleteGroupsRequest => DeleteGroupsResponse,
    ElectLeadersRequest => ElectLeadersResponse,
    IncrementalAlterConfigsRequest => IncrementalAlterConfigsResponse,
    ListPartitionReassignmentsRequest => ListPartitionReassignmentsResponse,
    OffsetDeleteRequest => OffsetDeleteResponse,
    DescribeQuorumRequest => DescribeQuorumResponse,
    DescribeClusterRequest => DescribeClusterResponse,
    DescribeProducersRequest => DescribeProducersResponse,
    DescribeTopicPartitionsRequest => DescribeTopicPartitionsResponse,
    ListTransactionsRequest => ListTransactionsResponse,
    ListConfigResourcesRequest => ListConfigResourcesResponse,
    DescribeAclsRequest => DescribeAclsResponse,
    ConsumerGroupHeartbeatRequest => ConsumerGroupHeartbeatResponse,
    ConsumerGroupDescribeRequest => ConsumerGroupDescribeResponse,
    WriteTxnMarkersRequest => WriteTxnMarkersResponse,
    DescribeTransactionsRequest => DescribeTransactionsResponse,
    AlterReplicaLogDirsRequest => AlterReplicaLogDirsResponse,
    AlterPartitionReassignmentsRequest => AlterPartitionReassignmentsResponse,
    DescribeClientQuotasRequest => DescribeClientQuotasResponse,
    AlterClientQuotasRequest => AlterClientQuotasResponse,
    DescribeUserScramCredentialsRequest => DescribeUserScramCredentialsResponse,
    AlterUserScramCredentialsRequest => AlterUserScramCredentialsResponse,
    UpdateFeaturesRequest => UpdateFeaturesResponse,
    UnregisterBrokerRequest => UnregisterBrokerResponse,
    AddRaftVoterRequest => AddRaftVoterResponse,
    RemoveRaftVoterRequest => RemoveRaftVoterResponse,
}
