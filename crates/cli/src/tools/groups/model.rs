//! A consumer group as its coordinator describes it, of the classic protocol or of KIP-848's.

use caudal_client::Error;
use caudal_protocol::messages::consumer_group_describe_response::{
    Assignment, DescribedGroup as ConsumerGroup, Member as ConsumerMember,
};
use caudal_protocol::messages::describe_groups_response::{DescribedGroup as ClassicGroup, DescribedGroupMember};
use caudal_protocol::messages::{ConsumerProtocolAssignment, find_coordinator_response::Coordinator};
use caudal_protocol::wire::{Message, Reader};
use caudal_protocol::{ErrorCode, TopicPartition};

use crate::tools::cluster::{CallError, Cluster, check};

/// A described group.
#[derive(Debug, Clone)]
pub struct Group {
    pub id: String,
    pub state: String,
    /// Name of the assignor; empty while there is none.
    pub assignor: String,
    pub members: Vec<Member>,
    /// Only of KIP-848's groups.
    pub epoch: Option<i32>,
    pub target_epoch: Option<i32>,
    pub coordinator: Coordinator,
}

/// A member of a described group.
#[derive(Debug, Clone, Default)]
pub struct Member {
    pub id: String,
    pub instance_id: String,
    pub client_id: String,
    pub host: String,
    pub assignment: Vec<TopicPartition>,
    pub target: Vec<TopicPartition>,
    pub epoch: Option<i32>,
    /// Whether a member uses KIP-848's protocol, where the group knows of both.
    pub is_upgraded: Option<bool>,
}

/// Describes a group; the coordinator's "not found" is an error.
pub async fn describe(cluster: &Cluster, id: &str) -> Result<Group, CallError> {
    let coordinator = cluster.admin.find_coordinator(id, 0).await?;
    let ids = [id.to_owned()];
    match cluster.admin.describe_consumer_groups(&ids).await {
        Ok(found) => {
            let group = found.into_iter().next().unwrap_or_default();
            let code = ErrorCode::from_code(group.error_code);
            if !matches!(code, ErrorCode::GroupIdNotFound | ErrorCode::UnsupportedVersion) {
                check(group.error_code, group.error_message.as_deref())?;
                return Ok(consumer(group, coordinator));
            }
        }
        Err(Error::UnsupportedApi { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let group = cluster.admin.describe_groups(&ids).await?.into_iter().next().unwrap_or_default();
    check(group.error_code, group.error_message.as_deref())?;
    classic(group, coordinator)
}

fn consumer(group: ConsumerGroup, coordinator: Coordinator) -> Group {
    Group {
        id: group.group_id,
        state: group.group_state,
        assignor: group.assignor_name,
        members: group.members.into_iter().map(consumer_member).collect(),
        epoch: Some(group.group_epoch),
        target_epoch: Some(group.assignment_epoch),
        coordinator,
    }
}

fn consumer_member(member: ConsumerMember) -> Member {
    Member {
        id: member.member_id,
        instance_id: member.instance_id.unwrap_or_default(),
        client_id: member.client_id,
        host: member.client_host,
        assignment: partitions(&member.assignment),
        target: partitions(&member.target_assignment),
        epoch: Some(member.member_epoch),
        is_upgraded: match member.member_type {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
    }
}

fn partitions(assignment: &Assignment) -> Vec<TopicPartition> {
    let topics = assignment.topic_partitions.iter();
    topics.flat_map(|t| t.partitions.iter().map(|p| TopicPartition::new(t.topic_name.clone(), *p))).collect()
}

fn classic(group: ClassicGroup, coordinator: Coordinator) -> Result<Group, CallError> {
    if !matches!(group.protocol_type.as_str(), "" | "consumer") {
        let message = format!("GroupId {} is not a consumer group ({}).", group.group_id, group.protocol_type);
        return Err(CallError { code: None, message });
    }
    let members = group.members.into_iter().map(classic_member).collect::<Result<_, _>>()?;
    Ok(Group {
        id: group.group_id,
        state: group.group_state,
        assignor: group.protocol_data,
        members,
        epoch: None,
        target_epoch: None,
        coordinator,
    })
}

fn classic_member(member: DescribedGroupMember) -> Result<Member, CallError> {
    let assignment = assignment(&member).map_err(|reason| CallError {
        code: None,
        message: format!("failed to read the assignment of member {}: {reason}", member.member_id),
    })?;
    Ok(Member {
        id: member.member_id,
        instance_id: member.group_instance_id.unwrap_or_default(),
        client_id: member.client_id,
        host: member.client_host,
        assignment,
        ..Member::default()
    })
}

/// The partitions in the bytes that the group's leader wrote: a version, then the assignment in that version.
fn assignment(member: &DescribedGroupMember) -> Result<Vec<TopicPartition>, String> {
    if member.member_assignment.is_empty() {
        return Ok(Vec::new());
    }
    let mut reader = Reader::new(member.member_assignment.clone());
    let version = reader.i16().map_err(|e| e.to_string())?.clamp(0, ConsumerProtocolAssignment::MAX_VERSION);
    let decoded = ConsumerProtocolAssignment::decode(&mut reader, version).map_err(|e| e.to_string())?;
    let topics = decoded.assigned_partitions.iter();
    Ok(topics.flat_map(|t| t.partitions.iter().map(|p| TopicPartition::new(t.topic.clone(), *p))).collect())
}
