//! The controllers' quorum, registered brokers, and features.

use caudal_protocol::messages as m;
use caudal_protocol::messages::describe_quorum_request::{PartitionData, TopicData};
use caudal_protocol::messages::describe_quorum_response::{Node as QuorumNode, PartitionData as Quorum};
use caudal_protocol::messages::update_features_request::FeatureUpdateKey;

use super::Admin;
use crate::error::{Error, Result, check};

/// The topic whose one partition the controllers replicate.
const METADATA_TOPIC: &str = "__cluster_metadata";

impl Admin {
    /// Leader, voters and observers of the metadata quorum, and where its nodes listen (from version 2 on).
    pub async fn describe_quorum(&self) -> Result<(Quorum, Vec<QuorumNode>)> {
        let topic =
            TopicData { topic_name: METADATA_TOPIC.to_owned(), partitions: vec![PartitionData { partition_index: 0 }] };
        let request = m::DescribeQuorumRequest { topics: vec![topic] };
        let what = || "describe the metadata quorum".to_owned();
        let response = self.client.send_any(&request).await?;
        check(response.error_code, response.error_message.as_deref(), what)?;
        let partition = response.topics.into_iter().flat_map(|t| t.partitions).next();
        let quorum = partition.ok_or_else(|| Error::Misuse {
            what: what(),
            reason: "the answer does not have the partition that was asked for".to_owned(),
        })?;
        check(quorum.error_code, quorum.error_message.as_deref(), what)?;
        Ok((quorum, response.nodes))
    }

    /// Removes the registration of a broker that is gone for good.
    pub async fn unregister_broker(&self, broker_id: i32) -> Result<()> {
        let request = m::UnregisterBrokerRequest { broker_id };
        let codes = |r: &m::UnregisterBrokerResponse| vec![r.error_code];
        let response = self.to_controller("unregister a broker", &request, codes).await?;
        check(response.error_code, response.error_message.as_deref(), || format!("unregister broker {broker_id}"))
    }

    /// Adds a controller to the voters of a dynamic quorum (KIP-853).
    pub async fn add_raft_voter(&self, request: &m::AddRaftVoterRequest) -> Result<()> {
        let codes = |r: &m::AddRaftVoterResponse| vec![r.error_code];
        let response = self.to_controller("add a controller", request, codes).await?;
        let what = || format!("add controller {}", request.voter_id);
        check(response.error_code, response.error_message.as_deref(), what)
    }

    /// Removes a controller from the voters of a dynamic quorum (KIP-853).
    pub async fn remove_raft_voter(&self, request: &m::RemoveRaftVoterRequest) -> Result<()> {
        let codes = |r: &m::RemoveRaftVoterResponse| vec![r.error_code];
        let response = self.to_controller("remove a controller", request, codes).await?;
        let what = || format!("remove controller {}", request.voter_id);
        check(response.error_code, response.error_message.as_deref(), what)
    }

    /// Sets the levels of features (KIP-584): all of them or, on an error, none. The answer of older brokers has a result
    /// per feature.
    pub async fn update_features(
        &self,
        updates: Vec<FeatureUpdateKey>,
        validate_only: bool,
    ) -> Result<m::UpdateFeaturesResponse> {
        let request =
            m::UpdateFeaturesRequest { timeout_ms: self.timeout_ms(), feature_updates: updates, validate_only };
        let codes = |r: &m::UpdateFeaturesResponse| vec![r.error_code];
        self.to_controller("update features", &request, codes).await
    }
}
