//! Where a stream starts and ends, and what the source keeps in its own directory of the checkpoint: the resolved start
//! (`0`, as Spark writes it), the topics' ids (`topic-ids`) and, after a topic was deleted and made again, the positions in
//! the old one (`replaced-topics`).

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use caudal_client::OffsetSpec;
use caudal_protocol::{TopicPartition, Uuid};

use super::offsets::{EARLIEST, KafkaOffsets, LATEST};
use super::options::Limit;
use super::{KafkaSource, failed};
use crate::error::EngineError;
use crate::file_log::{create_dirs, io_error, write_whole};
use crate::options::invalid;

impl KafkaSource {
    /// The offsets that an option names, for every partition there is.
    pub(super) async fn resolve(&self, limit: &Limit, starting: bool) -> Result<KafkaOffsets, EngineError> {
        let every = |spec: OffsetSpec| self.partitions.iter().map(|tp| (tp.clone(), spec)).collect::<Vec<_>>();
        let wanted = match limit {
            Limit::Earliest => every(OffsetSpec::Earliest),
            Limit::Latest => every(OffsetSpec::Latest),
            Limit::Timestamp(ms) => every(OffsetSpec::Timestamp(*ms)),
            Limit::Timestamps(times) => {
                self.check_complete(times, starting)?;
                times.0.iter().map(|(tp, ms)| (tp.clone(), OffsetSpec::Timestamp(*ms))).collect()
            }
            Limit::Offsets(offsets) => {
                self.check_complete(offsets, starting)?;
                let relative = |(tp, offset): (&TopicPartition, &i64)| match *offset {
                    EARLIEST => Some((tp.clone(), OffsetSpec::Earliest)),
                    LATEST => Some((tp.clone(), OffsetSpec::Latest)),
                    _ => None,
                };
                offsets.0.iter().filter_map(relative).collect()
            }
        };
        let listed = self.cluster.offsets(&wanted).await.map_err(|e| failed("read offsets from", &e))?;
        let mut resolved = match limit {
            Limit::Offsets(offsets) => offsets.clone(),
            _ => KafkaOffsets::default(),
        };
        let mut unmatched = Vec::new();
        for ((tp, offset), (_, spec)) in listed.into_iter().zip(&wanted) {
            if offset < 0 {
                if starting && !self.options.late_start_is_latest {
                    return Err(invalid(format!(
                        "No offset matched from request of topic-partition {tp} and timestamp {}. \
                         Set startingOffsetsByTimestampStrategy to latest to start at the end then.",
                        spec.timestamp()
                    )));
                }
                unmatched.push(tp);
            } else {
                resolved.0.insert(tp, offset);
            }
        }
        if !unmatched.is_empty() {
            resolved.0.extend(self.list(&unmatched, OffsetSpec::Latest).await?.0);
        }
        Ok(resolved)
    }

    /// Offsets per partition must name every partition, no more and no less, as in Spark.
    fn check_complete(&self, given: &KafkaOffsets, starting: bool) -> Result<(), EngineError> {
        let assigned: Vec<String> = self.partitions.iter().map(ToString::to_string).collect();
        let specified: Vec<String> = given.0.keys().map(ToString::to_string).collect();
        let mut sorted = assigned.clone();
        sorted.sort();
        let mut wanted = specified.clone();
        wanted.sort();
        if sorted == wanted {
            return Ok(());
        }
        let name = if starting { "startingOffsets" } else { "endingOffsets" };
        Err(invalid(format!(
            "If {name} contains specific offsets, you must specify all TopicPartitions. \
             Use -1 for latest, -2 for earliest. Specified: {}; assigned: {}",
            specified.join(", "),
            assigned.join(", ")
        )))
    }
}

/// Writes a file of the source's own, which survives power loss then.
fn write_durably(dir: &Path, name: &str, content: &[u8]) -> Result<(), EngineError> {
    create_dirs(dir)?;
    write_whole(&dir.join(name), content, true)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path, error)),
    }
}

/// Spark begins this file with a zero byte, for the sake of its version 2.1.0.
pub(super) fn write_initial_offset(dir: Option<&Path>, offsets: &KafkaOffsets) -> Result<(), EngineError> {
    let Some(dir) = dir else { return Ok(()) };
    write_durably(dir, "0", format!("\0v1\n{}", offsets.to_json()).as_bytes())
}

pub(super) fn read_initial_offset(dir: Option<&Path>) -> Result<Option<KafkaOffsets>, EngineError> {
    let Some(path) = dir.map(|d| d.join("0")) else { return Ok(None) };
    let Some(content) = read_if_there(&path)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&content);
    let text = text.trim_start_matches('\0');
    let Some(json) = text.strip_prefix("v1\n") else {
        return Err(EngineError::Invalid {
            class: "MALFORMED_LOG_FILE",
            message: format!(
                "failed to read the start of the stream in {}: its first line must be v1; \
                 it was written by a newer version, is damaged, or belongs to another kind of source",
                path.display()
            ),
        });
    };
    KafkaOffsets::from_json(json.trim(), &path.display().to_string()).map(Some)
}

pub(super) fn write_topic_ids(dir: Option<&Path>, ids: &BTreeMap<String, Uuid>) -> Result<(), EngineError> {
    let Some(dir) = dir else { return Ok(()) };
    let texts: BTreeMap<&str, String> = ids.iter().map(|(name, id)| (name.as_str(), id.to_string())).collect();
    let json = serde_json::to_string(&texts).map_err(|e| invalid(e.to_string()))?;
    write_durably(dir, "topic-ids", json.as_bytes())
}

pub(super) fn read_topic_ids(dir: Option<&Path>) -> Result<BTreeMap<String, Uuid>, EngineError> {
    let Some(path) = dir.map(|d| d.join("topic-ids")) else { return Ok(BTreeMap::new()) };
    let Some(content) = read_if_there(&path)? else { return Ok(BTreeMap::new()) };
    let damaged = |reason: String| EngineError::Invalid {
        class: "MALFORMED_LOG_FILE",
        message: format!("failed to read the topics' ids in {}: {reason}", path.display()),
    };
    let texts: BTreeMap<String, String> = serde_json::from_slice(&content).map_err(|e| damaged(e.to_string()))?;
    texts
        .into_iter()
        .map(|(name, id)| id.parse().map(|id| (name, id)).map_err(|_| damaged(format!("'{id}' is no topic id"))))
        .collect()
}

pub(super) fn write_replaced(dir: Option<&Path>, old: &KafkaOffsets) -> Result<(), EngineError> {
    let Some(dir) = dir else { return Ok(()) };
    write_durably(dir, "replaced-topics", old.to_json().as_bytes())
}

pub(super) fn read_replaced(dir: Option<&Path>) -> Result<KafkaOffsets, EngineError> {
    let Some(path) = dir.map(|d| d.join("replaced-topics")) else { return Ok(KafkaOffsets::default()) };
    let Some(content) = read_if_there(&path)? else { return Ok(KafkaOffsets::default()) };
    KafkaOffsets::from_json(&String::from_utf8_lossy(&content), &path.display().to_string())
}
