//! Offsets per topic and partition, in the JSON that Spark keeps in `offsets/N` and takes in its options.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::marker::PhantomData;

use caudal_protocol::TopicPartition;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::EngineError;
use crate::options::invalid;
use crate::source::SourceOffset;

/// In `startingOffsets`: from the first offset there is.
pub(super) const EARLIEST: i64 = -2;
/// In `startingOffsets`: from the end.
pub(super) const LATEST: i64 = -1;

/// A JSON object whose keys come once: of two offsets for one partition, which one is meant is anybody's guess.
struct Unique<K, V>(BTreeMap<K, V>);

impl<'de, K: Deserialize<'de> + Ord + Display, V: Deserialize<'de>> Deserialize<'de> for Unique<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<K, V>(PhantomData<(K, V)>);
        impl<'de, K: Deserialize<'de> + Ord + Display, V: Deserialize<'de>> Visitor<'de> for Entries<K, V> {
            type Value = Unique<K, V>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<K, V>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format!("{key} is there twice")));
                    }
                    entries.insert(key, value);
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// An offset for each partition; as an end it is exclusive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KafkaOffsets(pub BTreeMap<TopicPartition, i64>);

impl KafkaOffsets {
    /// `{"topic":{"0":42,"1":7}}`.
    pub fn to_json(&self) -> String {
        let mut topics: BTreeMap<&str, serde_json::Map<String, serde_json::Value>> = BTreeMap::new();
        for (tp, offset) in &self.0 {
            topics.entry(&tp.topic).or_default().insert(tp.partition.to_string(), (*offset).into());
        }
        serde_json::to_string(&topics).unwrap_or_default()
    }

    /// The reverse; `what` names the text in an error.
    pub fn from_json(text: &str, what: &str) -> Result<Self, EngineError> {
        let parsed: Result<Unique<String, Unique<i32, i64>>, _> = serde_json::from_str(text);
        let Unique(topics) = parsed.map_err(|error| {
            invalid(format!(
                "failed to read {what}: expected e.g. {{\"topicA\":{{\"0\":23,\"1\":-1}}}}, got {text}: {error}"
            ))
        })?;
        let flat = topics.into_iter().flat_map(|(topic, partitions)| {
            partitions
                .0
                .into_iter()
                .map(move |(partition, offset)| (TopicPartition::new(topic.clone(), partition), offset))
        });
        Ok(KafkaOffsets(flat.collect()))
    }

    pub fn from_source_offset(offset: &SourceOffset) -> Result<Self, EngineError> {
        Self::from_json(&offset.0, "the Kafka source's offsets in the checkpoint")
    }

    pub fn to_source_offset(&self) -> SourceOffset {
        SourceOffset(self.to_json())
    }

    pub fn get(&self, tp: &TopicPartition) -> Option<i64> {
        self.0.get(tp).copied()
    }

    /// The records between `self` and `end`, by the distance of the offsets.
    pub fn distance(&self, end: &KafkaOffsets) -> u64 {
        end.0.iter().map(|(tp, end)| end.saturating_sub(self.get(tp).unwrap_or(*end)).max(0).cast_unsigned()).sum()
    }
}

/// Shares `limit` records among the partitions in proportion to what each has (Spark's `rateLimit`); none with data is
/// left without any.
pub(super) fn limit(start: &KafkaOffsets, end: &KafkaOffsets, limit: u64) -> KafkaOffsets {
    let total = start.distance(end);
    if total <= limit {
        return end.clone();
    }
    let share = |(tp, end): (&TopicPartition, &i64)| {
        let begin = start.get(tp).unwrap_or(*end);
        let size = end.saturating_sub(begin).max(0);
        let part = limit as f64 * (size as f64 / total as f64);
        let part = if part < 1.0 { part.ceil() } else { part.floor() };
        (tp.clone(), begin.saturating_add(part as i64).min(*end).max(begin.min(*end)))
    };
    KafkaOffsets(end.0.iter().map(share).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_that_of_spark() {
        let offsets = KafkaOffsets::from_json(r#"{"b":{"10":1,"2":7},"a":{"0":-1}}"#, "x").unwrap();
        assert_eq!(offsets.to_json(), r#"{"a":{"0":-1},"b":{"2":7,"10":1}}"#);
        let error = KafkaOffsets::from_json("latest!", "startingOffsets").unwrap_err().to_string();
        assert!(error.contains("failed to read startingOffsets: expected e.g."), "{error}");
        for twice in [r#"{"a":{"0":5,"0":7}}"#, r#"{"a":{"0":5},"a":{"1":7}}"#] {
            let error = KafkaOffsets::from_json(twice, "startingOffsets").unwrap_err().to_string();
            assert!(error.contains("is there twice"), "{error}");
        }
    }

    #[test]
    fn a_limit_is_shared_by_size() {
        let start = KafkaOffsets::from_json(r#"{"t":{"0":0,"1":0,"2":5}}"#, "x").unwrap();
        let end = KafkaOffsets::from_json(r#"{"t":{"0":900,"1":1,"2":104}}"#, "x").unwrap();
        assert_eq!(limit(&start, &end, 100).to_json(), r#"{"t":{"0":90,"1":1,"2":14}}"#);
        assert_eq!(limit(&start, &end, 1000), end);
    }
}
