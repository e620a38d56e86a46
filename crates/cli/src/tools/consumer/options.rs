//! The console consumer's options, and what they come to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use caudal_protocol::TopicPartition;

use super::formatter::Formatter;
use super::source::Wanted;
use crate::tools::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use crate::tools::{Stop, Tool, key_values, load_properties, require, say, tell};

const FORMATTER_PROPERTIES: &str = "What is shown of a record, key=value:\n print.timestamp=true|false\n \
     print.key=true|false\n print.offset=true|false\n print.epoch=true|false\n print.partition=true|false\n \
     print.headers=true|false\n print.value=true|false\n key.separator=<key.separator>\n \
     line.separator=<line.separator>\n headers.separator=<headers.separator>\n null.literal=<null.literal>\n \
     key.deserializer=<key.deserializer>\n value.deserializer=<value.deserializer>\n \
     headers.deserializer=<headers.deserializer>";

#[rustfmt::skip]
pub static OPTIONS: &[Opt] = &[
    value("bootstrap-server", "server to connect to", "REQUIRED: brokers to connect to first, HOST:PORT[,HOST:PORT...]."),
    value("command-config", "config file", "Consumer config properties file; --command-property goes before it."),
    value("command-property", "consumer_prop", "Consumer config, key=value. May be given several times."),
    value("consumer-property", "consumer_prop", "(DEPRECATED) Use --command-property."),
    value("consumer.config", "config file", "(DEPRECATED) Use --command-config."),
    flag("enable-systest-events", "Also print when the consumer ends."),
    value("formatter", "class", "The class that shows records.").default("org.apache.kafka.tools.consumer.DefaultMessageFormatter"),
    value("formatter-config", "config file", "Properties file for the formatter; --formatter-property goes before it."),
    value("formatter-property", "prop", FORMATTER_PROPERTIES),
    flag("from-beginning", "Begin with the first record there is, unless the group has committed an offset."),
    value("group", "consumer group id", "The consumer group to read as a member of."),
    flag("help", "Print this."),
    value("include", "Java regex (String)", "Topics by regular expression."),
    value("isolation-level", "", "read_committed: only records of committed transactions. read_uncommitted: all records.").default("read_uncommitted"),
    value("key-deserializer", "deserializer for keys", "The class that reads keys, for example org.apache.kafka.common.serialization.LongDeserializer."),
    value("max-messages", "num_messages", "End after so many records.").int(),
    value("offset", "consume offset", "Where to begin in the partition: an offset, 'earliest' or 'latest'.").default("latest"),
    value("partition", "partition", "The partition to read; from its end unless --offset says otherwise.").int(),
    value("property", "prop", "(DEPRECATED) Use --formatter-property."),
    flag("skip-message-on-error", "Pass over a record that cannot be shown, in place of ending."),
    value("timeout-ms", "timeout_ms", "End when no record has come for so long.").long(),
    value("topic", "topic", "The topic to read."),
    value("value-deserializer", "deserializer for values", "The class that reads values."),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    former("whitelist", "include"),
    gone("zookeeper", true, NO_ZOOKEEPER),
    gone("blacklist", true, "blacklist is not a recognized option: name the topics to read with --include"),
    gone("new-consumer", false, "new-consumer is not a recognized option: there is no other consumer since Kafka 2.0; leave it out"),
    gone("delete-consumer-offsets", false, "delete-consumer-offsets is not a recognized option: use kafka-consumer-groups --delete-offsets"),
];

/// Where to begin in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
    Offset(i64),
}

/// What a command line comes to.
#[derive(Debug)]
pub struct Options {
    /// The client's properties.
    pub consumer: BTreeMap<String, String>,
    pub wanted: Wanted,
    pub formatter: Formatter,
    /// `None`: no limit.
    pub max_messages: Option<u64>,
    pub timeout: Duration,
    pub skips_errors: bool,
    pub logs_events: bool,
}

fn usage<T>(sentence: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Usage(sentence.into()))
}

impl Options {
    pub fn new(tool: &Tool, parsed: &Parsed) -> Result<Options, Stop> {
        tool.help_or_version(parsed)?;
        check(parsed)?;
        let pairs = [("command-property", "consumer-property"), ("command-config", "consumer.config")];
        for (today, deprecated) in pairs {
            if parsed.has(today) && parsed.has(deprecated) {
                return usage(format!("Options --{deprecated} and --{today} cannot be specified together."));
            }
        }
        for (today, deprecated) in pairs {
            note_deprecated(parsed, today, deprecated)?;
        }
        let (consumer, has_group) = consumer_properties(parsed)?;
        let start = start(parsed)?;
        let topic = parsed.text("topic")?.map(str::to_owned);
        let wanted = match (topic, parsed.int("partition")?, parsed.text("include")?) {
            (Some(topic), Some(partition), _) => Wanted::Partition(TopicPartition::new(topic, partition), start),
            (Some(name), None, _) => Wanted::Topic { name, has_group },
            (None, _, pattern) => Wanted::Pattern { pattern: pattern.unwrap_or_default().to_owned(), has_group },
        };
        let timeout = parsed.long("timeout-ms")?.and_then(|ms| u64::try_from(ms).ok());
        Ok(Options {
            consumer,
            wanted,
            formatter: formatter(parsed)?,
            max_messages: parsed.int("max-messages")?.and_then(|n| u64::try_from(n).ok()),
            timeout: Duration::from_millis(timeout.unwrap_or(u64::MAX)),
            skips_errors: parsed.has("skip-message-on-error"),
            logs_events: parsed.has("enable-systest-events"),
        })
    }
}

fn note_deprecated(parsed: &Parsed, today: &str, deprecated: &str) -> Result<(), Stop> {
    if !parsed.has(deprecated) {
        return Ok(());
    }
    say!("Option --{deprecated} is deprecated and will be removed in a future version. Use --{today} instead.")
}

fn check(parsed: &Parsed) -> Result<(), Stop> {
    if parsed.has("topic") == parsed.has("include") {
        return usage("Exactly one of the following arguments is required: [topic], [include]");
    }
    if parsed.has("partition") {
        if !parsed.has("topic") {
            return usage("The topic is required when partition is specified.");
        }
        if parsed.has("from-beginning") && parsed.has("offset") {
            return usage("Options from-beginning and offset cannot be specified together.");
        }
    } else if parsed.has("offset") {
        return usage("The partition is required when offset is specified.");
    }
    require(parsed, &["bootstrap-server"])
}

/// The values of an option or of the deprecated one in its place.
fn either<'a>(parsed: &'a Parsed, today: &str, deprecated: &str) -> &'a [String] {
    if parsed.has(deprecated) { parsed.all(deprecated) } else { parsed.all(today) }
}

/// The client's properties, and whether the consumer is a member of a group.
fn consumer_properties(parsed: &Parsed) -> Result<(BTreeMap<String, String>, bool), Stop> {
    let mut properties = match either(parsed, "command-config", "consumer.config").last() {
        Some(path) => load_properties(path)?,
        None => BTreeMap::new(),
    };
    let mut groups: BTreeSet<String> = properties.get("group.id").cloned().into_iter().collect();
    for (name, value) in key_values(either(parsed, "command-property", "consumer-property")) {
        if name == "group.id" {
            groups.insert(value.clone());
        }
        properties.insert(name, value);
    }
    groups.extend(parsed.text("group")?.map(str::to_owned));
    if groups.len() > 1 {
        let groups: Vec<String> = groups.iter().map(|g| format!("'{g}'")).collect();
        return usage(format!(
            "The group ids provided in different places (directly using '--group', via '--consumer-property', or via \
             '--consumer.config') do not match. Detected group ids: {}",
            groups.join(", ")
        ));
    }
    if !groups.is_empty() && parsed.has("partition") {
        return usage("Options group and partition cannot be specified together.");
    }
    let begins = if parsed.has("from-beginning") { "earliest" } else { "latest" };
    match properties.get("auto.offset.reset") {
        Some(reset) if parsed.has("from-beginning") && reset != "earliest" => {
            tell!(
                "Can't simultaneously specify --from-beginning and 'auto.offset.reset={reset}', please remove one option"
            );
            return Err(Stop::Exit(1));
        }
        Some(_) => {}
        None => _ = properties.insert("auto.offset.reset".to_owned(), begins.to_owned()),
    }
    let mut default = |name: &str, value: &str| {
        properties.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    };
    default("client.id", "console-consumer");
    default("isolation.level", "read_uncommitted");
    if let Some(servers) = parsed.text("bootstrap-server")? {
        properties.insert("bootstrap.servers".to_owned(), servers.to_owned());
    }
    if parsed.has("isolation-level") {
        let level = parsed.text("isolation-level")?.unwrap_or_default();
        properties.insert("isolation.level".to_owned(), level.to_owned());
    }
    let has_group = !groups.is_empty();
    match groups.pop_first() {
        Some(group) => _ = properties.insert("group.id".to_owned(), group),
        None => _ = properties.insert("enable.auto.commit".to_owned(), "false".to_owned()),
    }
    Ok((properties, has_group))
}

fn start(parsed: &Parsed) -> Result<Start, Stop> {
    if !parsed.has("offset") {
        return Ok(if parsed.has("from-beginning") { Start::Earliest } else { Start::Latest });
    }
    let text = parsed.text("offset")?.unwrap_or_default();
    match (text.to_ascii_lowercase().as_str(), text.parse::<i64>()) {
        ("earliest", _) => Ok(Start::Earliest),
        ("latest", _) => Ok(Start::Latest),
        (_, Ok(offset @ 0..)) => Ok(Start::Offset(offset)),
        _ => usage(format!(
            "The provided offset value '{text}' is incorrect. Valid values are 'earliest', 'latest', or a non-negative long."
        )),
    }
}

fn formatter(parsed: &Parsed) -> Result<Formatter, Stop> {
    if parsed.has("formatter-property") && parsed.has("property") {
        return usage("Options --property and --formatter-property cannot be specified together.");
    }
    note_deprecated(parsed, "formatter-property", "property")?;
    let mut properties = match parsed.text("formatter-config")? {
        Some(path) => load_properties(path)?,
        None => BTreeMap::new(),
    };
    for (option, name) in [("key-deserializer", "key.deserializer"), ("value-deserializer", "value.deserializer")] {
        if let Some(class) = parsed.text(option)?.filter(|c| !c.is_empty()) {
            properties.insert(name.to_owned(), class.to_owned());
        }
    }
    properties.extend(key_values(either(parsed, "formatter-property", "property")));
    let class = parsed.text("formatter")?.unwrap_or_default();
    Formatter::by_class(class, &properties).map_err(Stop::Usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, Stop> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::new(&super::super::TOOL, &super::super::TOOL.parse(&args)?)
    }

    #[test]
    fn refusals() {
        let server = "--bootstrap-server a:1";
        let cases = [
            ("", "Exactly one of the following arguments is required: [topic], [include]"),
            ("--topic t --offset 1", "The partition is required when offset is specified."),
            ("--include t --partition 1", "The topic is required when partition is specified."),
            ("--topic t --partition 0 --group g", "Options group and partition cannot be specified together."),
            (
                "--topic t --partition 0 --offset -1",
                "The provided offset value '-1' is incorrect. Valid values are 'earliest', 'latest', or a non-negative long.",
            ),
            (
                "--topic t --group g --command-property group.id=h",
                "The group ids provided in different places (directly using '--group', via '--consumer-property', or via \
                 '--consumer.config') do not match. Detected group ids: 'g', 'h'",
            ),
            (
                "--topic t --property a=b --formatter-property a=b",
                "Options --property and --formatter-property cannot be specified together.",
            ),
        ];
        for (line, sentence) in cases {
            assert_eq!(parsed(&format!("{server} {line}")).unwrap_err().to_string(), sentence, "{line}");
        }
        assert_eq!(parsed("--topic t").unwrap_err().to_string(), "Missing required argument \"[bootstrap-server]\"");
    }

    #[test]
    fn properties_and_places() {
        let options = parsed("--bootstrap-server a:1 --topic t --from-beginning --max-messages 3").unwrap();
        assert_eq!(options.consumer["auto.offset.reset"], "earliest");
        assert_eq!(options.consumer["enable.auto.commit"], "false");
        assert!(matches!(options.wanted, Wanted::Topic { has_group: false, .. }));
        assert_eq!(options.max_messages, Some(3));
        let options = parsed("--bootstrap-server a:1 --include t.* --group g --timeout-ms 50").unwrap();
        assert_eq!(options.consumer["group.id"], "g");
        assert!(matches!(options.wanted, Wanted::Pattern { has_group: true, .. }));
        assert_eq!(options.timeout, Duration::from_millis(50));
        let options = parsed("--bootstrap-server a:1 --topic t --partition 2 --offset Earliest").unwrap();
        assert!(matches!(options.wanted, Wanted::Partition(_, Start::Earliest)));
    }
}
