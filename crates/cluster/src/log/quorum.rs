//! The quorum's own state: `quorum-state`, and the voters.
//!
//! `quorum-state` is one JSON object. Version 1 (kraft.version 1): `leaderId`, `leaderEpoch`, `votedId`,
//! `votedDirectoryId`, `data_version`. Version 0 has `clusterId`, `appliedOffset` and `currentVoters` instead of the
//! directory id.

use std::path::Path;

use caudal_protocol::Uuid;
use caudal_protocol::records::control::voters_record::{Endpoint, KRaftVersionFeature, Voter};
use caudal_protocol::records::control::{LeaderChangeMessage, VotersRecord, leader_change_message};
use caudal_storage::Disk;
use caudal_storage::disk::{read_file, replace_file};

use super::MetadataLogError;

const FILE: &str = "quorum-state";

/// What `quorum-state` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct QuorumState {
    /// The epoch of the last election that this node knows of; 0 when there was none.
    pub epoch: i32,
    /// The voters of a static quorum, and who led: none where the file does not say.
    pub nodes: Vec<i32>,
}

pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<QuorumState, MetadataLogError> {
    let path = dir.join(FILE);
    let failed = |source| MetadataLogError::Io { path: path.clone(), source };
    if !disk.exists(&path).map_err(failed)? {
        return Ok(QuorumState::default());
    }
    let bytes = read_file(disk, &path).map_err(failed)?;
    let malformed = |reason: String| MetadataLogError::QuorumState { path: path.clone(), reason };
    let state: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    let id = |value: &serde_json::Value| value.as_i64().and_then(|n| i32::try_from(n).ok());
    let epoch = state.get("leaderEpoch").and_then(id);
    let epoch = epoch.ok_or_else(|| malformed("it has no leaderEpoch".to_owned()))?;
    let voters = state.get("currentVoters").and_then(serde_json::Value::as_array).into_iter().flatten();
    let mut nodes: Vec<i32> = voters.filter_map(|voter| voter.get("voterId").and_then(id)).collect();
    nodes.extend(state.get("leaderId").and_then(id).filter(|leader| *leader >= 0));
    nodes.sort_unstable();
    nodes.dedup();
    Ok(QuorumState { epoch, nodes })
}

/// Records that this node leads `epoch`, durably.
pub(super) fn write(
    disk: &dyn Disk,
    dir: &Path,
    node_id: i32,
    epoch: i32,
    kraft_version: i16,
) -> Result<(), MetadataLogError> {
    let path = dir.join(FILE);
    let text = match kraft_version {
        0 => format!(
            "{{\"clusterId\":\"\",\"leaderId\":{node_id},\"leaderEpoch\":{epoch},\"votedId\":-1,\"appliedOffset\":0,\
             \"currentVoters\":[{{\"voterId\":{node_id}}}],\"data_version\":0}}"
        ),
        _ => format!(
            "{{\"leaderId\":{node_id},\"leaderEpoch\":{epoch},\"votedId\":-1,\"votedDirectoryId\":\"{}\",\
             \"data_version\":1}}",
            Uuid::ZERO
        ),
    };
    replace_file(disk, &path, text.as_bytes()).map_err(|source| MetadataLogError::write(path, source))
}

/// "This node won the election", with the voters that let it.
pub(super) fn leader_change(node_id: i32) -> LeaderChangeMessage {
    let voter = || leader_change_message::Voter { voter_id: node_id, ..leader_change_message::Voter::default() };
    LeaderChangeMessage { version: 0, leader_id: node_id, voters: vec![voter()], granting_voters: vec![voter()] }
}

/// The voter set of a quorum that begins with one controller (KIP-853).
pub fn single_voter(node_id: i32, directory_id: Uuid, listener: &str, host: &str, port: u16) -> VotersRecord {
    VotersRecord {
        version: 0,
        voters: vec![Voter {
            voter_id: node_id,
            voter_directory_id: directory_id,
            endpoints: vec![Endpoint { name: listener.to_owned(), host: host.to_owned(), port }],
            k_raft_version_feature: KRaftVersionFeature { min_supported_version: 0, max_supported_version: 1 },
        }],
    }
}
