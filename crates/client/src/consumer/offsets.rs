//! Where to read from: committed offsets, resets, commits. Tasks without state of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use caudal_protocol::messages as m;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::group::{GroupConfig, GroupMember, Identity};
use crate::admin::{CommittedOffset, is_coordinator_error};
use crate::admin::{OFFSET_NAMES_VERSION, OffsetAndMetadata, commit_results, commit_topics, committed, offset_fetch};
use crate::client::{Attempts, Client, Lane};
use crate::error::{Error, Result, check};
use crate::offsets::{Isolation, ListedOffset, OffsetSpec};

/// `auto.offset.reset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResetPolicy {
    Earliest,
    Latest,
    None,
}

impl ResetPolicy {
    pub(super) fn from_name(name: &str) -> ResetPolicy {
        match name.to_ascii_lowercase().as_str() {
            "earliest" => ResetPolicy::Earliest,
            "none" => ResetPolicy::None,
            _ => ResetPolicy::Latest,
        }
    }

    pub(super) fn spec(self) -> Option<OffsetSpec> {
        match self {
            ResetPolicy::Earliest => Some(OffsetSpec::Earliest),
            ResetPolicy::Latest => Some(OffsetSpec::Latest),
            ResetPolicy::None => None,
        }
    }
}

/// A partition that needs a place to begin.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    pub partition: TopicPartition,
    /// Which version of the partition's state asks: an answer to an older one is void.
    pub epoch: u64,
    /// `None`: the committed offset, else what the policy says.
    pub spec: Option<OffsetSpec>,
}

/// The answer for a partition, with the epoch of its question.
pub(super) type Found = (TopicPartition, u64, Result<i64>);

/// Finds the place to begin for each partition; `found` hears of each as soon as it is known.
pub(super) async fn find_positions(
    client: Client,
    group: Option<(Arc<GroupConfig>, Identity)>,
    lookups: Vec<Lookup>,
    policy: ResetPolicy,
    isolation: Isolation,
    mut found: impl FnMut(Found),
) {
    let mut open: BTreeMap<TopicPartition, (u64, OffsetSpec)> = BTreeMap::new();
    let (by_group, direct): (Vec<Lookup>, Vec<Lookup>) = lookups.into_iter().partition(|l| l.spec.is_none());
    open.extend(direct.into_iter().filter_map(|l| l.spec.map(|spec| (l.partition, (l.epoch, spec)))));
    if let (Some((config, identity)), false) = (&group, by_group.is_empty()) {
        let partitions: Vec<TopicPartition> = by_group.iter().map(|l| l.partition.clone()).collect();
        let offsets = fetch_committed(&client, config, identity, Some(&partitions)).await;
        for lookup in by_group {
            let answer = match &offsets {
                Ok(offsets) => offsets.iter().find(|o| o.partition == lookup.partition).map(|o| o.committed.clone()),
                Err(error) => Some(Err(error.clone())),
            };
            match (answer, policy.spec()) {
                (Some(Ok(Some(offset))), _) => found((lookup.partition, lookup.epoch, Ok(offset.offset))),
                (Some(Err(error)), _) => found((lookup.partition, lookup.epoch, Err(error))),
                (_, Some(spec)) => drop(open.insert(lookup.partition, (lookup.epoch, spec))),
                (_, None) => {
                    let error = Error::NoOffset { partition: lookup.partition.clone(), group: config.group_id.clone() };
                    found((lookup.partition, lookup.epoch, Err(error)));
                }
            }
        }
    } else {
        for lookup in by_group {
            match policy.spec() {
                Some(spec) => drop(open.insert(lookup.partition, (lookup.epoch, spec))),
                None => {
                    let error = Error::NoOffset { partition: lookup.partition.clone(), group: String::new() };
                    found((lookup.partition, lookup.epoch, Err(error)));
                }
            }
        }
    }
    let wanted: Vec<(TopicPartition, OffsetSpec)> = open.iter().map(|(tp, (_, spec))| (tp.clone(), *spec)).collect();
    let listed = |tp: TopicPartition, offset: Result<ListedOffset>| {
        let epoch = open.get(&tp).map_or(0, |(epoch, _)| *epoch);
        found((tp, epoch, offset.map(|listed| listed.offset)));
    };
    client.list_offsets_in_turn(&wanted, isolation, listed).await;
}

/// Committed offsets, asked of the coordinator until it answers; open transactions are waited for (KIP-447).
pub(super) async fn fetch_committed(
    client: &Client,
    config: &GroupConfig,
    identity: &Identity,
    partitions: Option<&[TopicPartition]>,
) -> Result<Vec<CommittedOffset>> {
    let group = &config.group_id;
    let what = format!("read the committed offsets of group '{group}'");
    let mut attempts = client.api_attempts(&what);
    loop {
        let answer = async {
            let node = client.coordinator(group, 0).await?;
            let connection = client.connection(node, Lane::Group).await?;
            let batched = connection.version_of::<m::OffsetFetchRequest>(OFFSET_NAMES_VERSION)? >= 8;
            let mut request = offset_fetch(group, partitions, batched);
            request.require_stable = true;
            let member = identity.lock().clone();
            if let Some(group) =
                request.groups.first_mut().filter(|_| config.is_next_generation && member.generation > 0)
            {
                group.member_id = Some(member.member_id);
                group.member_epoch = member.generation;
            }
            let answer = connection.submit(&request, OFFSET_NAMES_VERSION)?.answer(client.request_timeout()).await;
            let response = client.note(&connection, answer)?;
            let code = response.groups.first().map_or(response.error_code, |g| g.error_code);
            check(code, None, || what.clone())?;
            Ok(committed(response))
        };
        let error = match answer.await {
            Ok(offsets) => {
                let unstable = |o: &&CommittedOffset| {
                    o.committed.as_ref().err().and_then(Error::code) == Some(ErrorCode::UnstableOffsetCommit)
                };
                match offsets.iter().find(unstable).and_then(|o| o.committed.clone().err()) {
                    None => return Ok(offsets),
                    Some(unstable) => unstable,
                }
            }
            Err(error) => {
                client.forget_coordinator(group, 0);
                error
            }
        };
        pause(&mut attempts, error, identity).await?;
    }
}

/// Waits for another try. The epoch of a member by the consumer protocol may have changed on the way: as long as it is in
/// the group, the next try goes by the new one.
async fn pause(attempts: &mut Attempts, error: Error, identity: &Identity) -> Result<()> {
    if error.code() == Some(ErrorCode::StaleMemberEpoch) && identity.lock().generation > 0 {
        return attempts.wait(error).await;
    }
    attempts.pause(error).await
}

/// Commits as a member of the group's present generation, or as nobody in particular outside of one. The first error of
/// a partition fails the call.
pub(super) async fn commit(
    client: &Client,
    config: &GroupConfig,
    identity: &Identity,
    offsets: &[(TopicPartition, OffsetAndMetadata)],
) -> Result<()> {
    let mut attempts = client.api_attempts(format!("commit offsets of group '{}'", config.group_id));
    let mut member = identity.lock().clone();
    let is_member = member.generation >= 0;
    while let Err(error) = commit_once(client, config, &member, offsets).await {
        pause(&mut attempts, error.clone(), identity).await?;
        member = identity.lock().clone();
        if is_member && member.generation < 0 {
            // Given up by its group meanwhile: these offsets are for others to commit now.
            return Err(error);
        }
    }
    Ok(())
}

/// As [`commit`], in one try: for offsets that newer ones may have replaced by the time of a second.
pub(super) async fn commit_once(
    client: &Client,
    config: &GroupConfig,
    member: &GroupMember,
    offsets: &[(TopicPartition, OffsetAndMetadata)],
) -> Result<()> {
    let group = &config.group_id;
    let request = m::OffsetCommitRequest {
        group_id: group.clone(),
        generation_id_or_member_epoch: member.generation,
        member_id: if member.generation < 0 { String::new() } else { member.member_id.clone() },
        group_instance_id: config.instance_id.clone().filter(|_| member.generation >= 0),
        topics: commit_topics(offsets.iter().map(|(tp, offset)| (tp, offset))),
        ..Default::default()
    };
    let answer = async {
        let node = client.coordinator(group, 0).await?;
        client.send_on(node, Lane::Group, &request, OFFSET_NAMES_VERSION, client.request_timeout()).await
    };
    let result = answer.await.and_then(|response| {
        let failed = commit_results(group, &response).into_iter().find_map(|(_, result)| result.err());
        failed.map_or(Ok(()), Err)
    });
    if let Err(error) = &result
        && (error.is_network() || error.code().is_some_and(|code| is_coordinator_error(code.code())))
    {
        client.forget_coordinator(group, 0);
    }
    result
}
