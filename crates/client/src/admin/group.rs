//! Consumer groups and their offsets.

use std::collections::BTreeMap;

use caudal_protocol::TopicPartition;
use caudal_protocol::messages as m;
use caudal_protocol::messages::consumer_group_describe_response::DescribedGroup as DescribedConsumerGroup;
use caudal_protocol::messages::delete_groups_response::DeletableGroupResult;
use caudal_protocol::messages::describe_groups_response::DescribedGroup;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::leave_group_response::MemberResponse;
use caudal_protocol::messages::list_groups_response::ListedGroup;
use caudal_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use caudal_protocol::messages::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
use caudal_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};

use super::Admin;
use crate::client::ANY_VERSION;
use crate::error::{Result, check};

/// From version 10 offsets are addressed by topic id; with names a deleted topic's offsets can still be read.
pub(crate) const OFFSET_NAMES_VERSION: i16 = 9;

/// An offset to commit: the next one to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OffsetAndMetadata {
    pub offset: i64,
    /// `None` when not known.
    pub leader_epoch: Option<i32>,
    /// Free text that comes back with the offset.
    pub metadata: String,
}

impl From<i64> for OffsetAndMetadata {
    fn from(offset: i64) -> Self {
        OffsetAndMetadata { offset, leader_epoch: None, metadata: String::new() }
    }
}

/// A committed offset, with the partition's own error.
#[derive(Debug, Clone)]
pub struct CommittedOffset {
    pub partition: TopicPartition,
    /// `None` when nothing is committed.
    pub committed: Result<Option<OffsetAndMetadata>>,
}

impl Admin {
    /// Groups of all brokers. Empty filters take all; the filters need brokers of 2.6 (states) and 3.8 (types).
    pub async fn list_groups(&self, states: &[String], types: &[String]) -> Result<Vec<ListedGroup>> {
        let request = m::ListGroupsRequest { states_filter: states.to_vec(), types_filter: types.to_vec() };
        let mut groups = Vec::new();
        self.client.refresh_metadata(Some(Vec::new()), false).await?;
        for node in self.client.nodes() {
            let mut attempts = self.client.api_attempts(format!("list the groups of broker {}", node.id));
            loop {
                let response = self.to_node(node.id, "list groups", &request).await?;
                let what = || format!("list the groups of broker {}", node.id);
                match check(response.error_code, None, what) {
                    Ok(()) => {
                        groups.extend(response.groups);
                        break;
                    }
                    Err(error) => attempts.pause(error).await?,
                }
            }
        }
        Ok(groups)
    }

    /// Classic groups, each asked of its coordinator.
    pub async fn describe_groups(&self, groups: &[String]) -> Result<Vec<DescribedGroup>> {
        let mut described = Vec::new();
        for group in groups {
            let request = m::DescribeGroupsRequest { groups: vec![group.clone()], ..Default::default() };
            let what = format!("describe group '{group}'");
            let code = |r: &m::DescribeGroupsResponse| r.groups.first().map_or(0, |g| g.error_code);
            described.extend(self.to_coordinator(group, &what, &request, ANY_VERSION, code).await?.groups);
        }
        Ok(described)
    }

    /// Groups of the consumer protocol (KIP-848), each asked of its coordinator.
    pub async fn describe_consumer_groups(&self, groups: &[String]) -> Result<Vec<DescribedConsumerGroup>> {
        let mut described = Vec::new();
        for group in groups {
            let request = m::ConsumerGroupDescribeRequest { group_ids: vec![group.clone()], ..Default::default() };
            let what = format!("describe group '{group}'");
            let code = |r: &m::ConsumerGroupDescribeResponse| r.groups.first().map_or(0, |g| g.error_code);
            described.extend(self.to_coordinator(group, &what, &request, ANY_VERSION, code).await?.groups);
        }
        Ok(described)
    }

    pub async fn delete_groups(&self, groups: &[String]) -> Result<Vec<DeletableGroupResult>> {
        let mut results = Vec::new();
        for group in groups {
            let request = m::DeleteGroupsRequest { groups_names: vec![group.clone()] };
            let what = format!("delete group '{group}'");
            let code = |r: &m::DeleteGroupsResponse| r.results.first().map_or(0, |g| g.error_code);
            results.extend(self.to_coordinator(group, &what, &request, ANY_VERSION, code).await?.results);
        }
        Ok(results)
    }

    /// Makes members leave a group: those with an instance id by that, others by their member id. Each has a result.
    pub async fn remove_group_members(
        &self,
        group: &str,
        members: Vec<MemberIdentity>,
    ) -> Result<Vec<(String, Result<()>)>> {
        let request = m::LeaveGroupRequest { group_id: group.to_owned(), members, ..Default::default() };
        let what = format!("remove members from group '{group}'");
        let code = |r: &m::LeaveGroupResponse| r.error_code;
        let response = self.to_coordinator(group, &what, &request, ANY_VERSION, code).await?;
        check(response.error_code, None, || what)?;
        let result = |member: MemberResponse| {
            let id = member.group_instance_id.unwrap_or(member.member_id);
            let result = check(member.error_code, None, || format!("remove member {id} from group '{group}'"));
            (id, result)
        };
        Ok(response.members.into_iter().map(result).collect())
    }

    /// Committed offsets of a group; `None`: of all partitions it has any for.
    pub async fn group_offsets(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<Vec<CommittedOffset>> {
        let what = format!("read the offsets of group '{group}'");
        let mut attempts = self.client.api_attempts(&what);
        let batched = loop {
            let version = match self.client.coordinator(group, 0).await {
                Ok(node) => self.client.version_of::<m::OffsetFetchRequest>(node).await,
                Err(error) => Err(error),
            };
            match version {
                Ok(version) => break version >= 8,
                Err(error) => {
                    self.client.forget_coordinator(group, 0);
                    attempts.pause(error).await?;
                }
            }
        };
        let request = offset_fetch(group, partitions, batched);
        let code = |r: &m::OffsetFetchResponse| r.groups.first().map_or(r.error_code, |g| g.error_code);
        let response = self.to_coordinator(group, &what, &request, OFFSET_NAMES_VERSION, code).await?;
        check(code(&response), None, || what.clone())?;
        Ok(committed(response))
    }

    /// Commits offsets on behalf of a group without active members. Each partition has its own result.
    pub async fn commit_group_offsets(
        &self,
        group: &str,
        offsets: &[(TopicPartition, OffsetAndMetadata)],
    ) -> Result<Vec<(TopicPartition, Result<()>)>> {
        let request = m::OffsetCommitRequest {
            group_id: group.to_owned(),
            generation_id_or_member_epoch: -1,
            topics: commit_topics(offsets.iter().map(|(tp, offset)| (tp, offset))),
            ..Default::default()
        };
        let what = format!("commit offsets of group '{group}'");
        let first = |r: &m::OffsetCommitResponse| {
            r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code).find(|c| *c != 0).unwrap_or(0)
        };
        let response = self.to_coordinator(group, &what, &request, OFFSET_NAMES_VERSION, first).await?;
        Ok(commit_results(group, &response))
    }

    /// Deletes the committed offsets of a group for partitions of topics that no member is subscribed to.
    pub async fn delete_group_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<(TopicPartition, Result<()>)>> {
        let mut topics: Vec<OffsetDeleteRequestTopic> = Vec::new();
        for tp in partitions {
            let partition = OffsetDeleteRequestPartition { partition_index: tp.partition };
            match topics.iter_mut().find(|t| t.name == tp.topic) {
                Some(topic) => topic.partitions.push(partition),
                None => topics.push(OffsetDeleteRequestTopic { name: tp.topic.clone(), partitions: vec![partition] }),
            }
        }
        let request = m::OffsetDeleteRequest { group_id: group.to_owned(), topics };
        let what = format!("delete offsets of group '{group}'");
        let code = |r: &m::OffsetDeleteResponse| r.error_code;
        let response = self.to_coordinator(group, &what, &request, ANY_VERSION, code).await?;
        check(response.error_code, None, || what)?;
        let mut results = Vec::new();
        for topic in &response.topics {
            for p in &topic.partitions {
                let tp = TopicPartition::new(topic.name.clone(), p.partition_index);
                let result = check(p.error_code, None, || format!("delete the offset of group '{group}' for {tp}"));
                results.push((tp, result));
            }
        }
        Ok(results)
    }
}

/// The topics of an OffsetCommit request.
pub(crate) fn commit_topics<'a>(
    offsets: impl IntoIterator<Item = (&'a TopicPartition, &'a OffsetAndMetadata)>,
) -> Vec<OffsetCommitRequestTopic> {
    let mut topics: Vec<OffsetCommitRequestTopic> = Vec::new();
    for (tp, offset) in offsets {
        let partition = OffsetCommitRequestPartition {
            partition_index: tp.partition,
            committed_offset: offset.offset,
            committed_leader_epoch: offset.leader_epoch.unwrap_or(-1),
            committed_metadata: Some(offset.metadata.clone()),
        };
        match topics.iter_mut().find(|t| t.name == tp.topic) {
            Some(topic) => topic.partitions.push(partition),
            None => topics.push(OffsetCommitRequestTopic {
                name: tp.topic.clone(),
                partitions: vec![partition],
                ..Default::default()
            }),
        }
    }
    topics
}

/// The result of each partition of an OffsetCommit.
pub(crate) fn commit_results(group: &str, response: &m::OffsetCommitResponse) -> Vec<(TopicPartition, Result<()>)> {
    let mut results = Vec::new();
    for topic in &response.topics {
        for p in &topic.partitions {
            let tp = TopicPartition::new(topic.name.clone(), p.partition_index);
            let result = check(p.error_code, None, || format!("commit the offset of group '{group}' for {tp}"));
            results.push((tp, result));
        }
    }
    results
}

/// An OffsetFetch request; `batched` from version 8 on, which can ask for several groups.
pub(crate) fn offset_fetch(group: &str, partitions: Option<&[TopicPartition]>, batched: bool) -> m::OffsetFetchRequest {
    let by_topic = partitions.map(|partitions| {
        let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for tp in partitions {
            topics.entry(tp.topic.clone()).or_default().push(tp.partition);
        }
        topics
    });
    if batched {
        let topic =
            |(name, partition_indexes)| OffsetFetchRequestTopics { name, partition_indexes, ..Default::default() };
        let group = OffsetFetchRequestGroup {
            group_id: group.to_owned(),
            topics: by_topic.map(|topics| topics.into_iter().map(topic).collect()),
            ..Default::default()
        };
        return m::OffsetFetchRequest { groups: vec![group], ..Default::default() };
    }
    let topic = |(name, partition_indexes)| OffsetFetchRequestTopic { name, partition_indexes };
    m::OffsetFetchRequest {
        group_id: group.to_owned(),
        topics: by_topic.map(|topics| topics.into_iter().map(topic).collect()),
        ..Default::default()
    }
}

/// The offsets in an answer of either form.
pub(crate) fn committed(response: m::OffsetFetchResponse) -> Vec<CommittedOffset> {
    let mut offsets = Vec::new();
    let mut take = |topic: &str, index: i32, offset: i64, epoch: i32, metadata: Option<String>, code: i16| {
        let partition = TopicPartition::new(topic, index);
        let what = || format!("read the committed offset for {partition}");
        let committed = check(code, None, what).map(|()| {
            (offset >= 0).then(|| OffsetAndMetadata {
                offset,
                leader_epoch: Some(epoch).filter(|e| *e >= 0),
                metadata: metadata.unwrap_or_default(),
            })
        });
        offsets.push(CommittedOffset { partition, committed });
    };
    for topic in response.topics {
        for p in topic.partitions {
            let (offset, epoch) = (p.committed_offset, p.committed_leader_epoch);
            take(&topic.name, p.partition_index, offset, epoch, p.metadata, p.error_code);
        }
    }
    for topic in response.groups.into_iter().flat_map(|g| g.topics) {
        for p in topic.partitions {
            let (offset, epoch) = (p.committed_offset, p.committed_leader_epoch);
            take(&topic.name, p.partition_index, offset, epoch, p.metadata, p.error_code);
        }
    }
    offsets
}
