//! `kafka-get-offsets`: the offsets of partitions by position or time.

use caudal_client::OffsetSpec;
use caudal_protocol::TopicPartition;

use super::java::{IncludeList, is_internal, whole};
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, check_servers, connect, require, run_async, say, tell};

const TIMES: &str = "-1 or latest / -2 or earliest / -3 or max-timestamp / -4 or earliest-local / -5 or latest-tiered / \
     -6 or earliest-pending-upload";
const RULE: &str = "([^:,]*)(?::(?:([0-9]*)|(?:([0-9]*)-([0-9]*))))?";

pub static TOOL: Tool = Tool {
    name: "kafka-get-offsets",
    about: "An interactive shell for getting topic-partition offsets.",
    options: OPTIONS,
    run,
};

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    value("bootstrap-server", "HOST1:PORT1,...,HOST3:PORT3", "REQUIRED: brokers to connect to first."),
    value("command-config", "config file", "Properties file for the admin client."),
    flag("exclude-internal-topics", "Leave out the cluster's own topics."),
    flag("help", "Print this."),
    value("partitions", "partition ids", "Only these partitions, separated by commas. Not together with --topic-partitions."),
    value("time", "<timestamp> / -1 or latest / -2 or earliest / -3 or max-timestamp / -4 or earliest-local / -5 or latest-tiered / -6 or earliest-pending-upload", "Which offset: a position, or that of the first record with at least this time in ms since 1970; no line for a partition that has none.").default("latest"),
    value("topic", "topic", "Topics by regular expression; all without it. Not together with --topic-partitions."),
    value("topic-partitions", "topic1:1,topic2:0-3,topic3,topic4:5-,topic5:-3", "Patterns separated by commas: a regular expression for the topic (all when empty), then after ':' a partition, or a range whose end is exclusive; either end may be left out."),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
    gone("offsets", true, "offsets is not a recognized option: there is one offset per partition since Kafka 3.0; leave it out"),
    gone("max-wait-ms", true, "max-wait-ms is not a recognized option: it has had no effect since Kafka 1.0; leave it out"),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let occurred = |stop: Stop| match stop {
        Stop::Failed(sentence) => Stop::Failed(format!("Error occurred: {sentence}")),
        other => other,
    };
    if args.is_empty() {
        return Err(Stop::Help(tool.about.to_owned()));
    }
    let parsed = tool.parse(&args).map_err(|e| occurred(e.into()))?;
    tool.help_or_version(&parsed)?;
    require(&parsed, &["bootstrap-server"])?;
    check_servers(&parsed)?;
    run_async(async { print_offsets(&parsed).await.map_err(occurred) })
}

async fn print_offsets(parsed: &Parsed) -> Result<(), Stop> {
    if parsed.has("topic-partitions") && (parsed.has("topic") || parsed.has("partitions")) {
        return Err(Stop::Failed("--topic-partitions cannot be used with --topic or --partitions".to_owned()));
    }
    let spec = offset_spec(parsed.text("time")?.unwrap_or("latest"))?;
    let rules = match parsed.text("topic-partitions")? {
        Some(list) => list.split(',').map(rule).collect::<Result<Vec<_>, Stop>>()?,
        None => vec![topic_rule(parsed)?],
    };
    let cluster = connect(parsed, "command-config").await?;
    let mut names = cluster.topic_names().await?;
    names.retain(|n| !(parsed.has("exclude-internal-topics") && is_internal(n)));
    names.retain(|n| rules.iter().any(|r| r.topics.matches(n)));
    let mut partitions = cluster.partitions(&names).await?;
    partitions.retain(|tp| rules.iter().any(|r| r.has(tp)));
    if partitions.is_empty() {
        return Err(Stop::Failed("Could not match any topic-partitions with the specified filters".to_owned()));
    }
    let mut lines = Vec::new();
    for (tp, listed) in cluster.list_offsets(&partitions, spec).await? {
        match listed {
            Ok(listed) if listed.offset >= 0 => lines.push((tp.to_string(), tp, listed.offset)),
            Ok(_) => {}
            Err(e) => {
                tell!("Skip getting offsets for topic-partition {tp} due to error: {}", e.java());
            }
        }
    }
    lines.sort();
    lines.into_iter().try_for_each(|(_, tp, offset)| say!("{}:{}:{offset}", tp.topic, tp.partition))
}

fn offset_spec(time: &str) -> Result<OffsetSpec, Stop> {
    Ok(match time {
        "latest" | "-1" => OffsetSpec::Latest,
        "earliest" | "-2" => OffsetSpec::Earliest,
        "max-timestamp" | "-3" => OffsetSpec::MaxTimestamp,
        "earliest-local" | "-4" => OffsetSpec::EarliestLocal,
        "latest-tiered" | "-5" => OffsetSpec::LatestTiered,
        "earliest-pending-upload" | "-6" => OffsetSpec::EarliestPendingUpload,
        _ => match time.parse() {
            Ok(ms) => OffsetSpec::Timestamp(ms),
            Err(_) => {
                let allowed = format!("Please use {TIMES}, or a specified long format timestamp");
                return Err(Stop::Failed(format!("Malformed time argument {time}. {allowed}")));
            }
        },
    })
}

/// Which partitions of which topics.
#[derive(Debug)]
struct Rule {
    topics: IncludeList,
    partitions: Partitions,
}

#[derive(Debug)]
enum Partitions {
    /// These, all when empty.
    Set(Vec<i32>),
    /// From, inclusive, to, exclusive.
    Range(i32, i32),
}

impl Rule {
    fn has(&self, tp: &TopicPartition) -> bool {
        let has_partition = match &self.partitions {
            Partitions::Set(ids) => ids.is_empty() || ids.contains(&tp.partition),
            Partitions::Range(from, to) => (*from..*to).contains(&tp.partition),
        };
        has_partition && self.topics.matches(&tp.topic)
    }
}

/// One pattern of `--topic-partitions`.
fn rule(text: &str) -> Result<Rule, Stop> {
    let invalid = || Stop::Failed(format!("Invalid rule specification: {text}"));
    let captures = whole(RULE).ok().and_then(|r| r.captures(text)).ok_or_else(invalid)?;
    let group = |i: usize| captures.get(i).map(|m| m.as_str()).filter(|s| !s.is_empty());
    let number = |i: usize| group(i).map(|s| s.parse::<i32>().map_err(|_| invalid())).transpose();
    let partitions = match number(2)? {
        Some(id) => Partitions::Set(vec![id]),
        None => Partitions::Range(number(3)?.unwrap_or(0), number(4)?.unwrap_or(i32::MAX)),
    };
    Ok(Rule { topics: IncludeList::new(group(1).unwrap_or(".*"))?, partitions })
}

/// `--topic` and `--partitions`.
fn topic_rule(parsed: &Parsed) -> Result<Rule, Stop> {
    let topics = IncludeList::new(parsed.text("topic")?.unwrap_or(".*"))?;
    let list = parsed.text("partitions")?.unwrap_or_default();
    let ids = list.split(',').filter(|_| !list.is_empty()).map(str::parse).collect::<Result<Vec<i32>, _>>();
    let sentence = "--partitions expects a comma separated list of numeric partition ids, but received";
    let ids = ids.map_err(|_| Stop::Failed(format!("{sentence}: {list}")))?;
    Ok(Rule { topics, partitions: Partitions::Set(ids) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let all: Vec<TopicPartition> =
            ["a", "ab", "b"].iter().flat_map(|t| (0..4).map(|p| TopicPartition::new(*t, p))).collect();
        let cases = [
            ("a", "a-0 a-1 a-2 a-3"),
            (":0", "a-0 ab-0 b-0"),
            ("a.*:1-3", "a-1 a-2 ab-1 ab-2"),
            ("b:2-", "b-2 b-3"),
            ("b:-1", "b-0"),
            ("b:", "b-0 b-1 b-2 b-3"),
        ];
        for (text, expected) in cases {
            let rule = rule(text).unwrap();
            let found: Vec<String> = all.iter().filter(|tp| rule.has(tp)).map(ToString::to_string).collect();
            assert_eq!(found.join(" "), expected, "{text}");
        }
        assert_eq!(rule("a:x").unwrap_err().to_string(), "Invalid rule specification: a:x");
    }

    #[test]
    fn times() {
        assert_eq!(offset_spec("-2").unwrap(), OffsetSpec::Earliest);
        assert_eq!(offset_spec("1700000000000").unwrap(), OffsetSpec::Timestamp(1_700_000_000_000));
        assert!(
            offset_spec("soon").unwrap_err().to_string().starts_with("Malformed time argument soon. Please use -1")
        );
    }
}
