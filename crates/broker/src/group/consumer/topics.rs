//! The topics that consumer groups subscribe to, as the metadata image has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_cluster::image::Topic;
use caudal_protocol::{ErrorCode, Uuid};
use regex::{Regex, RegexBuilder};
use twox_hash::XxHash3_64;

use super::{DESCRIPTION_MOST_BYTES, Refusal};

/// Version of the hash of a topic.
const HASH_VERSION: u8 = 0;
/// A compiled expression may take so much memory: it comes from anybody who can connect.
const REGEX_SIZE_BYTES: usize = 256 * 1024;

/// The hash that is stored with a group's epoch: it changes when a topic among those named comes, goes or grows. Kafka's
/// (`Utils.computeGroupHash` over XXH3), so that a group that moves between brokers does not rebalance for it.
pub fn metadata_hash<'t>(image: &MetadataImage, names: impl Iterator<Item = &'t String>) -> i64 {
    // Java orders names by their UTF-16 units; topic names are ASCII.
    let names: BTreeSet<&String> = names.collect();
    let mut bytes = Vec::new();
    for topic in names.iter().filter_map(|name| image.topic(name)) {
        bytes.extend(topic_hash(image, topic).to_le_bytes());
    }
    if bytes.is_empty() { 0 } else { XxHash3_64::oneshot(&bytes) as i64 }
}

/// Little-endian, as Kafka's hash function takes numbers; strings as UTF-16 with their length behind them.
fn topic_hash(image: &MetadataImage, topic: &Topic) -> u64 {
    let mut bytes = vec![HASH_VERSION];
    let id = u128::from_be_bytes(topic.id.0);
    bytes.extend(((id >> 64) as u64).to_le_bytes());
    bytes.extend((id as u64).to_le_bytes());
    put_string(&mut bytes, &topic.name);
    bytes.extend(topic.partition_count().to_le_bytes());
    for (index, partition) in &topic.partitions {
        bytes.extend(index.to_le_bytes());
        let rack = |id: &i32| image.broker(*id).and_then(|broker| broker.rack.clone());
        let mut racks: Vec<String> = partition.replicas.iter().filter_map(rack).collect();
        racks.sort();
        for rack in racks {
            bytes.extend((rack.encode_utf16().count() as i32).to_le_bytes());
            put_string(&mut bytes, &rack);
        }
    }
    XxHash3_64::oneshot(&bytes)
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    let mut units = 0i32;
    for unit in text.encode_utf16() {
        bytes.extend(unit.to_le_bytes());
        units += 1;
    }
    bytes.extend(units.to_le_bytes());
}

/// The ids of a member's topics that exist.
pub fn subscribed_ids(
    image: &MetadataImage,
    names: &BTreeSet<String>,
    matched: Option<&BTreeSet<String>>,
) -> BTreeSet<Uuid> {
    let names = names.iter().chain(matched.into_iter().flatten());
    names.filter_map(|name| image.topic(name).map(|topic| topic.id)).collect()
}

/// The topics that a regular expression stands for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedRegex {
    pub topics: Arc<BTreeSet<String>>,
    /// Offset of the metadata image it was matched with.
    pub version: i64,
    /// Wall clock of that moment.
    pub timestamp_ms: i64,
}

/// Expressions of a group that have to be matched with all topics; that takes its time and is done elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegexJob {
    pub group: String,
    pub regexes: BTreeSet<String>,
}

impl RegexJob {
    /// Matches all topics with the job's expressions. Nothing is found where that is more than can be stored, as it would
    /// be in vain in Kafka.
    pub fn run(&self, image: &MetadataImage, wall_ms: i64) -> BTreeMap<String, ResolvedRegex> {
        let mut bytes = 0;
        let mut resolve = |regex: &String| {
            let mut resolved = ResolvedRegex { version: image.offset, timestamp_ms: wall_ms, ..Default::default() };
            match compile(regex) {
                Ok(pattern) => {
                    let matching = image.topics().filter(|topic| pattern.is_match(&topic.name));
                    let fits = matching.map(|topic| topic.name.clone()).take_while(|name| {
                        bytes += name.len();
                        bytes <= DESCRIPTION_MOST_BYTES
                    });
                    resolved.topics = Arc::new(fits.collect());
                }
                Err(error) => {
                    tracing::warn!(group = self.group, regex, "ignoring a subscription that cannot be read: {error}");
                }
            }
            (regex.clone(), resolved)
        };
        let found = self.regexes.iter().map(&mut resolve).collect();
        if bytes <= DESCRIPTION_MOST_BYTES {
            return found;
        }
        let group = &self.group;
        tracing::warn!(
            group,
            "the expressions of the group stand for more than {DESCRIPTION_MOST_BYTES} bytes of names"
        );
        BTreeMap::new()
    }
}

/// Whether a client's regular expression can be served.
///
/// # Errors
/// INVALID_REGULAR_EXPRESSION.
pub fn check_regex(regex: &str) -> Result<(), Refusal> {
    compile(regex).map(|_| ()).map_err(|reason| {
        let message = format!("SubscribedTopicRegex `{regex}` is not a valid regular expression: {reason}.");
        Refusal::new(ErrorCode::InvalidRegularExpression, message)
    })
}

/// Kafka takes RE2's language, and so does the `regex` crate but for `\Q...\E` and `\pN`-like classes of Unicode. The whole
/// name has to match.
fn compile(regex: &str) -> Result<Regex, String> {
    // On its own first: `a)|(b` must not become whole by what is put around it.
    let build = |text: &str| RegexBuilder::new(text).size_limit(REGEX_SIZE_BYTES).build();
    let regex = unquoted(regex);
    let checked = build(&regex).and_then(|_| build(&format!("^(?:{regex})$")));
    checked.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
        other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    })
}

/// Replaces RE2's `\Q...\E` by what it quotes.
fn unquoted(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut rest = regex;
    while let Some((before, from)) = split_at_quote(rest) {
        let (quoted, after) = from.split_once("\\E").unwrap_or((from, ""));
        out.push_str(before);
        out.push_str(&regex::escape(quoted));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The text before and behind the first `\Q` whose backslash is not itself escaped.
fn split_at_quote(text: &str) -> Option<(&str, &str)> {
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == '\\'
            && let Some((_, 'Q')) = chars.next()
        {
            return Some((text.get(..at)?, text.get(at + 2..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use caudal_protocol::records::metadata::{PartitionRecord, TopicRecord};

    use super::super::testing::image;
    use super::*;

    /// The topic and the hash that Apache Kafka 4.3.1 stored with a group that read it.
    #[test]
    fn the_hash_is_kafkas() {
        let mut image = MetadataImage::empty();
        let topic_id = "eDs8dqFEQjypgjoN7D9p8w".parse().unwrap();
        image.apply(&TopicRecord { name: "tt".into(), topic_id }.into()).unwrap();
        for partition_id in 0..6 {
            let record = PartitionRecord { partition_id, topic_id, replicas: vec![1], ..Default::default() };
            image.apply(&record.into()).unwrap();
        }
        let hash =
            |names: &[&str]| metadata_hash(&image, names.iter().map(|n| n.to_string()).collect::<Vec<_>>().iter());
        assert_eq!(hash(&["tt"]), -7_253_337_966_131_904_113);
        assert_eq!(hash(&["tt", "missing"]), hash(&["tt"]));
        assert_eq!(hash(&["missing"]), 0);
    }

    #[test]
    fn whole_names_match() {
        let image = image(&[("foo", 1), ("foobar", 2), ("bar", 1), ("a.b", 1)]);
        let matched = |regex: &str| {
            let job = RegexJob { group: "g".into(), regexes: BTreeSet::from([regex.to_owned()]) };
            job.run(&image, 7).remove(regex).unwrap().topics.iter().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(matched("foo"), "foo");
        assert_eq!(matched("foo.*"), "foo foobar");
        assert_eq!(matched("foo|bar"), "bar foo");
        assert_eq!(matched("(?i)FOO"), "foo");
        assert_eq!(matched("\\Qa.b\\E|f\\w+"), "a.b foo foobar");
        assert_eq!(matched("\\Qa.b"), "a.b");
        assert_eq!(matched(""), "");
    }

    #[test]
    fn what_is_no_regular_expression_is_refused() {
        for bad in ["[", "a)|(b", "(?=a)", "\\1", "(((a{100}){100}){100})"] {
            let refusal = check_regex(bad).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::InvalidRegularExpression, "{bad}");
            assert!(refusal.message.contains(bad), "{}", refusal.message);
        }
        assert_eq!(check_regex("^foo.*$"), Ok(()));
    }
}
