//! State on disk: `state/<operator>/<partition>/<version>.delta|.snapshot`, a file per version and partition.
//!
//! Layout of a file (format version 1, integers little-endian), also in `docs/formats/checkpoint.md`:
//!
//! | bytes | field |
//! | --- | --- |
//! | 8 | magic `CDLSTATE` |
//! | 2 | format version |
//! | 1 | kind: 0 delta, 1 snapshot |
//! | 1 | flags: bit 0 = a watermark follows |
//! | 8 | state version |
//! | 8 | watermark in ms: after the rows, groups that it has passed are removed (0 without the flag) |
//! | 4 | length of the signature |
//! | 8 | length of the rows (0: none) |
//! | n | signature, UTF-8: the operator's keys and functions |
//! | m | rows: an Arrow IPC stream |
//! | 4 | CRC-32C of everything before |

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use crate::error::EngineError;

const MAGIC: &[u8; 8] = b"CDLSTATE";
const FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: usize = 8 + 2 + 1 + 1 + 8 + 8 + 4 + 8;
const FLAG_WATERMARK: u8 = 1;

/// What a state file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateKind {
    /// The groups that changed since the version before.
    Delta,
    /// All groups.
    Snapshot,
}

/// One version of one partition.
#[derive(Debug, Clone, PartialEq)]
pub struct StateFile {
    pub kind: StateKind,
    pub version: i64,
    pub evict_ms: Option<i64>,
    pub signature: String,
    pub rows: Option<RecordBatch>,
}

/// The directory of one partition of one operator.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    /// At least so many deltas lie between two snapshots.
    min_deltas: u32,
    deltas: u32,
    delta_bytes: u64,
    snapshot_bytes: u64,
}

impl StateDir {
    /// Makes the directory if it is missing.
    pub fn open(path: PathBuf, min_deltas: u32) -> Result<Self, EngineError> {
        fs::create_dir_all(&path).map_err(|source| io_error("create", &path, source))?;
        Ok(Self { path, min_deltas, deltas: 0, delta_bytes: 0, snapshot_bytes: 0 })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the next version should be a snapshot: there are enough deltas, and reading them would cost as much as
    /// the last snapshot (so that large state is not written again for the sake of small changes), or far too many.
    pub fn wants_snapshot(&self) -> bool {
        self.deltas >= self.min_deltas
            && (self.delta_bytes >= self.snapshot_bytes || self.deltas >= self.min_deltas.saturating_mul(100))
    }

    /// Writes a version without fsync and returns the file's path.
    pub fn write(&mut self, file: &StateFile) -> Result<PathBuf, EngineError> {
        let bytes = encode(file)?;
        let path = self.path.join(file_name(file.kind, file.version));
        File::create(&path)
            .and_then(|mut target| target.write_all(&bytes))
            .map_err(|source| io_error("write the state to", &path, source))?;
        match file.kind {
            StateKind::Delta => {
                // A snapshot of the same version, left by a run before a crash, would be preferred to this file.
                let stale = self.path.join(file_name(StateKind::Snapshot, file.version));
                remove_if_there(&stale)?;
                self.deltas += 1;
                self.delta_bytes += bytes.len() as u64;
            }
            StateKind::Snapshot => {
                self.deltas = 0;
                self.delta_bytes = 0;
                self.snapshot_bytes = bytes.len() as u64;
            }
        }
        Ok(path)
    }

    /// The files that make up `version`, oldest first: a snapshot (unless the chain begins at the first version) and
    /// the deltas after it. `None` when a file is missing or damaged.
    pub fn load(&mut self, version: i64) -> Result<Option<Vec<StateFile>>, EngineError> {
        (self.deltas, self.delta_bytes, self.snapshot_bytes) = (0, 0, 0);
        let mut files = Vec::new();
        let mut wanted = version;
        while wanted > 0 {
            let snapshot = self.path.join(file_name(StateKind::Snapshot, wanted));
            let delta = self.path.join(file_name(StateKind::Delta, wanted));
            let path = if snapshot.exists() { snapshot } else { delta };
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(io_error("read", &path, source)),
            };
            let file = match decode(&bytes) {
                Ok(file) if file.version == wanted => file,
                Ok(_) => return Ok(None),
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "state file is damaged");
                    return Ok(None);
                }
            };
            let kind = file.kind;
            files.push(file);
            if kind == StateKind::Snapshot {
                self.snapshot_bytes = bytes.len() as u64;
                break;
            }
            self.deltas += 1;
            self.delta_bytes += bytes.len() as u64;
            wanted -= 1;
        }
        files.reverse();
        Ok(Some(files))
    }

    /// Removes the files that no version from `oldest` on needs.
    pub fn clean(&self, oldest: i64) -> Result<(), EngineError> {
        let mut found: Vec<(i64, StateKind)> = Vec::new();
        let entries = fs::read_dir(&self.path).map_err(|source| io_error("list", &self.path, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| io_error("list", &self.path, source))?;
            found.extend(entry.file_name().to_str().and_then(parse_file_name));
        }
        let base = found
            .iter()
            .filter(|(version, kind)| *kind == StateKind::Snapshot && *version <= oldest)
            .map(|(version, _)| *version)
            .max();
        let Some(base) = base else { return Ok(()) };
        for (version, kind) in found {
            if version < base {
                remove_if_there(&self.path.join(file_name(kind, version)))?;
            }
        }
        Ok(())
    }
}

fn file_name(kind: StateKind, version: i64) -> String {
    match kind {
        StateKind::Delta => format!("{version}.delta"),
        StateKind::Snapshot => format!("{version}.snapshot"),
    }
}

fn parse_file_name(name: &str) -> Option<(i64, StateKind)> {
    let (version, suffix) = name.split_once('.')?;
    let kind = match suffix {
        "delta" => StateKind::Delta,
        "snapshot" => StateKind::Snapshot,
        _ => return None,
    };
    Some((version.parse().ok()?, kind))
}

fn remove_if_there(path: &Path) -> Result<(), EngineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", path, error)),
        _ => Ok(()),
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Io { action, path: path.display().to_string(), source }
}

fn encode(file: &StateFile) -> Result<Vec<u8>, EngineError> {
    let mut rows = Vec::new();
    if let Some(batch) = &file.rows {
        let mut writer = StreamWriter::try_new(&mut rows, &batch.schema())?;
        writer.write(batch)?;
        writer.finish()?;
    }
    let too_long = || EngineError::External {
        action: "write the state".to_owned(),
        message: "the operator's signature is longer than 4 GiB".to_owned(),
    };
    let signature_len = u32::try_from(file.signature.len()).map_err(|_| too_long())?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + file.signature.len() + rows.len() + 4);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.push(u8::from(file.kind == StateKind::Snapshot));
    bytes.push(if file.evict_ms.is_some() { FLAG_WATERMARK } else { 0 });
    bytes.extend_from_slice(&file.version.to_le_bytes());
    bytes.extend_from_slice(&file.evict_ms.unwrap_or(0).to_le_bytes());
    bytes.extend_from_slice(&signature_len.to_le_bytes());
    bytes.extend_from_slice(&(rows.len() as u64).to_le_bytes());
    bytes.extend_from_slice(file.signature.as_bytes());
    bytes.extend_from_slice(&rows);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// Cuts `N` bytes off the front.
fn split<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], String> {
    let (front, rest) = bytes.split_first_chunk::<N>().ok_or("it ends too early")?;
    *bytes = rest;
    Ok(*front)
}

fn decode(bytes: &[u8]) -> Result<StateFile, String> {
    let (body, checksum) = bytes.split_last_chunk::<4>().ok_or("it ends too early")?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err("its checksum does not match".to_owned());
    }
    let mut rest = body;
    if &split::<8>(&mut rest)? != MAGIC {
        return Err("it is no state file".to_owned());
    }
    let format = u16::from_le_bytes(split(&mut rest)?);
    if format != FORMAT_VERSION {
        return Err(format!("its format version is {format}, this program reads {FORMAT_VERSION}"));
    }
    let [kind] = split(&mut rest)?;
    let [flags] = split(&mut rest)?;
    let version = i64::from_le_bytes(split(&mut rest)?);
    let watermark_ms = i64::from_le_bytes(split(&mut rest)?);
    let signature_len = u32::from_le_bytes(split(&mut rest)?) as usize;
    let rows_len = usize::try_from(u64::from_le_bytes(split(&mut rest)?)).map_err(|error| error.to_string())?;
    let (signature, rows) = rest.split_at_checked(signature_len).ok_or("its signature is cut off")?;
    if rows.len() != rows_len {
        return Err("its rows are cut off".to_owned());
    }
    let rows = if rows.is_empty() {
        None
    } else {
        let mut reader = StreamReader::try_new(Cursor::new(rows), None).map_err(|error| error.to_string())?;
        reader.next().transpose().map_err(|error| error.to_string())?
    };
    Ok(StateFile {
        kind: if kind == 1 { StateKind::Snapshot } else { StateKind::Delta },
        version,
        evict_ms: (flags & FLAG_WATERMARK != 0).then_some(watermark_ms),
        signature: String::from_utf8(signature.to_vec()).map_err(|error| error.to_string())?,
        rows,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use proptest::prelude::*;

    use super::*;

    fn file(version: i64, evict_ms: Option<i64>, values: &[i64]) -> StateFile {
        let names: Vec<String> = values.iter().map(|value| format!("key {value}")).collect();
        let rows = RecordBatch::try_from_iter([
            ("c0", Arc::new(Int64Array::from(values.to_vec())) as _),
            ("c1", Arc::new(StringArray::from(names)) as _),
        ])
        .unwrap();
        let rows = (!values.is_empty()).then_some(rows);
        StateFile { kind: StateKind::Delta, version, evict_ms, signature: "group by [k]".to_owned(), rows }
    }

    proptest! {
        #[test]
        fn files_round_trip(version in 1i64.., evict in any::<Option<i64>>(), values in prop::collection::vec(any::<i64>(), 0..50)) {
            let file = file(version, evict, &values);
            prop_assert_eq!(decode(&encode(&file).unwrap()).unwrap(), file);
        }

        #[test]
        fn damage_is_noticed(position in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
            let bytes = encode(&file(7, Some(3), &[1, 2, 3])).unwrap();
            let mut damaged = bytes.clone();
            damaged[position.index(bytes.len())] ^= 1 << bit;
            prop_assert!(decode(&damaged).is_err());
            prop_assert!(decode(&bytes[..cut.index(bytes.len())]).is_err());
        }
    }

    #[test]
    fn chain_is_loaded_and_cleaned() {
        let temp = tempfile::tempdir().unwrap();
        let mut dir = StateDir::open(temp.path().join("0"), 2).unwrap();
        for version in 1..=7 {
            let kind = if dir.wants_snapshot() { StateKind::Snapshot } else { StateKind::Delta };
            dir.write(&StateFile { kind, ..file(version, None, &[version]) }).unwrap();
        }
        let versions = |files: Vec<StateFile>| files.iter().map(|file| file.version).collect::<Vec<_>>();
        // Snapshots at 3 and 6.
        assert_eq!(versions(dir.load(2).unwrap().unwrap()), [1, 2]);
        assert_eq!(versions(dir.load(7).unwrap().unwrap()), [6, 7]);
        dir.clean(5).unwrap();
        assert_eq!(dir.load(2).unwrap(), None);
        assert_eq!(versions(dir.load(5).unwrap().unwrap()), [3, 4, 5]);
        fs::write(temp.path().join("0/7.delta"), b"torn").unwrap();
        assert_eq!(dir.load(7).unwrap(), None);
    }
}
