//! Snapshots of the metadata log: `<end offset>-<epoch>.checkpoint`, the offset in 20 digits and exclusive, the epoch
//! in 10. The batches number their records from 0: a control batch with the header (and, with kraft.version 1, the
//! voters), the records of the image, a control batch with the footer.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use caudal_protocol::batch::{Batches, check_crc};
use caudal_protocol::records::control::{KRaftVersionRecord, SnapshotFooterRecord, SnapshotHeaderRecord, VotersRecord};
use caudal_storage::Disk;
use caudal_storage::disk::{read_file, replace_file};

use super::MetadataLogError;
use super::control::{Contents, Control, control_batch, data_batches, read_batch};
use crate::record::MetadataRecord;

/// Which snapshot: everything below `end_offset`, the last of it written in `epoch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// Exclusive.
    pub end_offset: i64,
    pub epoch: i32,
}

impl SnapshotId {
    /// The snapshot that formatting leaves for a quorum's first voters.
    pub const BOOTSTRAP: SnapshotId = SnapshotId { end_offset: 0, epoch: 0 };

    pub fn file_name(self) -> String {
        format!("{:020}-{:010}.checkpoint", self.end_offset, self.epoch)
    }

    /// The snapshot of a file name; `None` for other files.
    pub fn parse(name: &str) -> Option<SnapshotId> {
        let (offset, epoch) = name.strip_suffix(".checkpoint")?.split_once('-')?;
        if offset.len() != 20 || epoch.len() != 10 {
            return None;
        }
        Some(SnapshotId { end_offset: offset.parse().ok()?, epoch: epoch.parse().ok()? })
    }
}

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SnapshotContents {
    pub records: Vec<MetadataRecord>,
    pub kraft_version: i16,
    pub voters: Option<VotersRecord>,
}

/// A snapshot's bytes. `last_timestamp_ms`: that of the last record contained.
pub fn encode(
    contents: &SnapshotContents,
    epoch: i32,
    last_timestamp_ms: i64,
    now_ms: i64,
) -> Result<Bytes, MetadataLogError> {
    let header = SnapshotHeaderRecord { version: 0, last_contained_log_timestamp: last_timestamp_ms };
    let mut first = vec![Control::SnapshotHeader(header)];
    if contents.kraft_version > 0 {
        let version = KRaftVersionRecord { version: 0, k_raft_version: contents.kraft_version };
        first.push(Control::KRaftVersion(version));
        first.extend(contents.voters.clone().map(Control::Voters));
    }
    let mut out: BytesMut = control_batch(&first, 0, epoch, now_ms)?;
    let next = data_batches(&contents.records, first.len() as i64, epoch, now_ms, &mut out)?;
    let footer = Control::SnapshotFooter(SnapshotFooterRecord { version: 0 });
    out.extend_from_slice(&control_batch(&[footer], next, epoch, now_ms)?);
    Ok(out.freeze())
}

/// Reads a snapshot's bytes; every batch must be whole, and the footer the last.
pub fn decode(bytes: Bytes, path: &Path) -> Result<SnapshotContents, MetadataLogError> {
    let damaged = |reason: String| MetadataLogError::Snapshot { path: path.to_owned(), reason };
    let mut contents = SnapshotContents::default();
    let (mut header, mut footer) = (false, false);
    let mut batches = Batches::new(bytes);
    for batch in batches.by_ref() {
        let batch = batch.map_err(|e| damaged(e.to_string()))?;
        check_crc(&batch.bytes).map_err(|e| damaged(e.to_string()))?;
        match read_batch(&batch).map_err(|e| damaged(e.to_string()))? {
            Contents::Data(records) => contents.records.extend(records),
            Contents::Control(records) => {
                for record in records {
                    match record {
                        Control::SnapshotHeader(_) => header = true,
                        Control::SnapshotFooter(_) => footer = true,
                        Control::KRaftVersion(v) => contents.kraft_version = v.k_raft_version,
                        Control::Voters(voters) => contents.voters = Some(voters),
                        Control::LeaderChange(_) => {}
                    }
                }
            }
        }
    }
    if !header || !footer || !batches.remaining().is_empty() {
        return Err(damaged("it is cut off".to_owned()));
    }
    Ok(contents)
}

/// Writes a snapshot so that a crash leaves all of it or nothing.
pub fn write(
    disk: &dyn Disk,
    dir: &Path,
    id: SnapshotId,
    contents: &SnapshotContents,
    last_timestamp_ms: i64,
    now_ms: i64,
) -> Result<(), MetadataLogError> {
    let path = dir.join(id.file_name());
    let bytes = encode(contents, id.epoch, last_timestamp_ms, now_ms)?;
    replace_file(disk, &path, &bytes).map_err(|source| MetadataLogError::write(path, source))
}

/// Reads a snapshot.
pub fn read(disk: &dyn Disk, dir: &Path, id: SnapshotId) -> Result<SnapshotContents, MetadataLogError> {
    let path = dir.join(id.file_name());
    let bytes = read_file(disk, &path).map_err(|source| MetadataLogError::Io { path: path.clone(), source })?;
    decode(bytes.into(), &path)
}

/// The snapshots in a directory, oldest first.
pub fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<SnapshotId>, MetadataLogError> {
    let entries = disk.list(dir).map_err(|source| MetadataLogError::Io { path: dir.to_owned(), source })?;
    let mut ids: Vec<SnapshotId> = entries.iter().filter_map(|e| SnapshotId::parse(&e.name)).collect();
    ids.sort_unstable();
    Ok(ids)
}
