//! `kafka-verifiable-consumer`: reads as a member of a group and tells of rebalances, records and commits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use caudal_client::admin::OffsetAndMetadata;
use caudal_client::{Consumer, ConsumerRecord, RebalanceListener, Topics};
use caudal_protocol::TopicPartition;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::super::cluster::CallError;
use super::super::options::{self, Opt, Parsed, flag, former, value};
use super::super::{Stop, Tool, client_config, interrupted, run_async, say, tell};
use super::{event, file, require};

const OPTIONS: &[Opt] = &[
    value(
        "bootstrap-server",
        "HOST1:PORT1[,HOST2:PORT2[...]]",
        "REQUIRED: The server(s) to connect to. Comma-separated list of Kafka brokers in the form HOST1:PORT1,HOST2:PORT2,...",
    ),
    value("topic", "TOPIC", "REQUIRED: Consumes messages from this topic."),
    value("group-protocol", "GROUP-PROTOCOL", "Group protocol (must be one of CLASSIC, CONSUMER)").default("classic"),
    value(
        "group-remote-assignor",
        "GROUP-REMOTE-ASSIGNOR",
        "Group remote assignor; only used if the group protocol is CONSUMER",
    ),
    value("group-id", "GROUP-ID", "REQUIRED: The group id of the consumer group"),
    value("group-instance-id", "GROUP-INSTANCE-ID", "A unique identifier of the consumer instance"),
    value(
        "max-messages",
        "MAX-MESSAGES",
        "Consume this many messages. If -1 (the default), the consumer will consume until the process is killed externally",
    )
    .int()
    .default("-1"),
    value(
        "session-timeout",
        "TIMEOUT-MS",
        "Set the consumer's session timeout, note that this configuration is not supported when group protocol is consumer",
    )
    .int(),
    flag("verbose", "Enable to log individual consumed records"),
    flag("enable-autocommit", "Enable offset auto-commit on consumer"),
    value("reset-policy", "RESET-POLICY", "Set reset policy (must be either 'earliest', 'latest', or 'none')")
        .default("earliest"),
    value(
        "assignment-strategy",
        "ASSIGNMENT-STRATEGY",
        "Set assignment strategy (e.g. org.apache.kafka.clients.consumer.RoundRobinAssignor); only used if the group protocol is CLASSIC",
    )
    .default("org.apache.kafka.clients.consumer.RangeAssignor"),
    value(
        "consumer.config",
        "CONFIG-FILE",
        "(DEPRECATED) Consumer config properties file. This option will be removed in a future version. Use --command-config instead",
    ),
    value(
        "command-config",
        "CONFIG-FILE",
        "Config properties file (config options shared with command line parameters will be overridden).",
    ),
    flag("help", "Print this (-h)."),
    former("h", "help"),
];

pub static TOOL: Tool = Tool {
    name: "kafka-verifiable-consumer",
    about: "This tool consumes messages from a specific topic and emits consumer events (e.g. group rebalances, received messages, and offsets committed) as JSON objects to STDOUT.",
    options: OPTIONS,
    run,
};

/// The original waits without end; a poll that ends now and then changes nothing.
const POLL: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Options {
    topic: String,
    /// `None`: without end.
    messages: Option<usize>,
    is_verbose: bool,
    commits: bool,
    consumer: BTreeMap<String, String>,
}

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args).map_err(|e| Stop::Usage(e.to_string()))?;
    if parsed.count == 0 || parsed.has("help") {
        return say!("{}\n{}", tool.about, options::help(OPTIONS).trim_end());
    }
    let options = options(&parsed)?;
    let config = client_config(&options.consumer)?;
    run_async(async {
        let mut consumer = Consumer::connect(config).await.map_err(CallError::from)?;
        event("startup_complete", json!({}))?;
        let listener = Listener::default();
        let failure = Arc::clone(&listener.0);
        consumer.set_rebalance_listener(Box::new(listener));
        consumer.subscribe(Topics::names([&options.topic])).map_err(CallError::from)?;
        let (end, is_early) = tokio::select! {
            read = consume(&mut consumer, &options, &failure) => (read, false),
            code = interrupted() => (Err(Stop::Exit(code)), true),
        };
        if is_early {
            event("shutdown_requested", json!({}))?;
        }
        if let Err(error) = consumer.close().await {
            tell!("{}", CallError::from(error));
        }
        event("shutdown_complete", json!({}))?;
        // The original asks for its end also when it has come by itself.
        if !is_early {
            event("shutdown_requested", json!({}))?;
        }
        match end {
            // It says why it ends, and that it ended well.
            Err(Stop::Failed(sentence)) => {
                tell!("Error during processing, terminating consumer process: {sentence}");
                Ok(())
            }
            other => other,
        }
    })
}

fn options(parsed: &Parsed) -> Result<Options, Stop> {
    require(parsed, &["topic", "group-id", "bootstrap-server"])?;
    let protocol = parsed.text("group-protocol")?.unwrap_or_default();
    let mut consumer = file(parsed, "consumer.config")?;
    let mut set = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            consumer.insert(name.to_owned(), value.to_owned());
        }
    };
    set("group.protocol", Some(protocol));
    // Each protocol has a choice of its own, and takes no notice of the other's.
    if protocol.eq_ignore_ascii_case("consumer") {
        set("group.remote.assignor", parsed.text("group-remote-assignor")?);
    } else {
        set("partition.assignment.strategy", parsed.text("assignment-strategy")?);
    }
    set("session.timeout.ms", parsed.text("session-timeout")?);
    set("group.id", parsed.text("group-id")?);
    set("group.instance.id", parsed.text("group-instance-id")?);
    set("bootstrap.servers", parsed.text("bootstrap-server")?);
    set("enable.auto.commit", Some(if parsed.has("enable-autocommit") { "true" } else { "false" }));
    set("auto.offset.reset", parsed.text("reset-policy")?);
    let messages = parsed.int("max-messages").map_err(|e| Stop::Usage(e.to_string()))?;
    Ok(Options {
        topic: parsed.text("topic")?.unwrap_or_default().to_owned(),
        messages: messages.and_then(|n| usize::try_from(n).ok()),
        is_verbose: parsed.has("verbose"),
        commits: !parsed.has("enable-autocommit"),
        consumer,
    })
}

/// Tells of rebalances; keeps what went wrong with that.
#[derive(Default)]
struct Listener(Arc<Mutex<Option<Stop>>>);

impl Listener {
    fn tell(&self, name: &str, partitions: &[TopicPartition]) {
        let partition = |tp: &TopicPartition| json!({ "topic": tp.topic, "partition": tp.partition });
        let partitions: Vec<Value> = partitions.iter().map(partition).collect();
        if let Err(stop) = event(name, json!({ "partitions": partitions })) {
            self.0.lock().get_or_insert(stop);
        }
    }
}

impl RebalanceListener for Listener {
    fn on_assigned(&mut self, partitions: &[TopicPartition]) {
        self.tell("partitions_assigned", partitions);
    }

    fn on_revoked(&mut self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, OffsetAndMetadata)> {
        self.tell("partitions_revoked", partitions);
        Vec::new()
    }
}

async fn consume(consumer: &mut Consumer, options: &Options, failure: &Mutex<Option<Stop>>) -> Result<(), Stop> {
    let mut left = options.messages.unwrap_or(usize::MAX);
    while left > 0 {
        let records = consumer.poll(POLL).await.map_err(CallError::from)?;
        if let Some(stop) = failure.lock().take() {
            return Err(stop);
        }
        if records.is_empty() {
            continue;
        }
        let (offsets, summaries) = summarize(&records, options, &mut left)?;
        event("records_consumed", json!({ "count": records.len(), "partitions": summaries }))?;
        if options.commits {
            commit(consumer, &offsets).await?;
        }
    }
    Ok(())
}

type Offsets = Vec<(TopicPartition, OffsetAndMetadata)>;

/// Tells of the records that still count, and returns what is to be committed and what is to be said of each partition.
fn summarize(records: &[ConsumerRecord], options: &Options, left: &mut usize) -> Result<(Offsets, Vec<Value>), Stop> {
    let (mut offsets, mut summaries) = (Vec::new(), Vec::new());
    // The records of a partition stand together.
    for part in records.chunk_by(|a, b| (&a.topic, a.partition) == (&b.topic, b.partition)) {
        let part = part.get(..part.len().min(*left)).unwrap_or_default();
        let (Some(first), Some(last)) = (part.first(), part.last()) else { break };
        *left -= part.len();
        let (topic, partition) = (&*first.topic, first.partition);
        if options.is_verbose {
            let text = |bytes: &Option<bytes::Bytes>| bytes.as_deref().map(|b| String::from_utf8_lossy(b).into_owned());
            for record in part {
                let (key, value, offset) = (text(&record.key), text(&record.value), record.offset);
                event(
                    "record_data",
                    json!({ "key": key, "value": value, "topic": topic, "partition": partition, "offset": offset }),
                )?;
            }
        }
        let next = OffsetAndMetadata { offset: last.offset + 1, leader_epoch: None, metadata: String::new() };
        offsets.push((TopicPartition::new(topic, partition), next));
        summaries.push(json!({
            "topic": topic, "partition": partition, "count": part.len(), "minOffset": first.offset, "maxOffset": last.offset,
        }));
    }
    Ok((offsets, summaries))
}

async fn commit(consumer: &mut Consumer, offsets: &Offsets) -> Result<(), Stop> {
    let done = consumer.commit_offsets(offsets).await;
    let offset = |(tp, at): &(TopicPartition, OffsetAndMetadata)| json!({ "topic": tp.topic, "partition": tp.partition, "offset": at.offset });
    let offsets: Vec<Value> = offsets.iter().map(offset).collect();
    match done.map_err(CallError::from) {
        Ok(()) => event("offsets_committed", json!({ "offsets": offsets, "success": true })),
        Err(error) => {
            event("offsets_committed", json!({ "offsets": offsets, "error": error.message, "success": false }))
        }
    }
}
