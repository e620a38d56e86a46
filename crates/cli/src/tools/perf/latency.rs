//! `kafka-e2e-latency`: one record after the other from a producer to a consumer, and how long each took.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use caudal_client::{Admin, Consumer, OffsetSpec, Producer, Record};
use caudal_protocol::TopicPartition;
use caudal_protocol::messages::create_topics_request::CreatableTopic;

use super::super::cluster::{CallError, Cluster, PATIENCE};
use super::super::options::{Opt, Parsed, flag, value};
use super::super::{Stop, Tool, client_config, java, load_properties, require, run_async, say};
use super::{fixed, float, now_ms};

const OPTIONS: &[Opt] = &[
    value(
        "bootstrap-server",
        "bootstrap-server",
        "REQUIRED: The Kafka broker list string in the form HOST1:PORT1,HOST2:PORT2.",
    ),
    value("topic", "topic-name", "REQUIRED: The topic to use for the test."),
    value("num-records", "count", "REQUIRED: The number of messages to send.").int(),
    value("producer-acks", "producer-acks", "REQUIRED: Producer acknowledgements. Must be '1' or 'all'."),
    value("record-size", "bytes", "REQUIRED: The size of each message payload in bytes.").int(),
    value(
        "record-key-size",
        "bytes",
        "Optional: The size of the message key in bytes. If not set, messages are sent without a key.",
    )
    .optional()
    .int()
    .default("0"),
    value(
        "record-header-key-size",
        "bytes",
        "Optional: The size of the message header key in bytes. Used together with record-header-size.",
    )
    .optional()
    .int()
    .default("0"),
    value(
        "record-header-size",
        "bytes",
        "Optional: The size of message header value in bytes. Use -1 for null header value.",
    )
    .optional()
    .int()
    .default("0"),
    value("num-headers", "count", "Optional: The number of headers to include in each message.")
        .optional()
        .int()
        .default("0"),
    value(
        "command-config",
        "config-file",
        "Optional: A property file for Kafka producer/consumer/admin client configuration.",
    )
    .optional(),
    flag("help", "Print usage information."),
    flag("version", "Display Kafka version."),
];

pub static TOOL: Tool = Tool {
    name: "kafka-e2e-latency",
    about: "This tool measures end-to-end latency in Kafka by sending messages and timing their reception.",
    options: OPTIONS,
    run,
};

/// How long a record is waited for.
const POLL: Duration = Duration::from_millis(60_000);
/// What the options were called when they had no names.
const POSITIONS: [&str; 6] =
    ["bootstrap-server", "topic", "num-records", "producer-acks", "record-size", "command-config"];

#[derive(Debug)]
struct Options {
    topic: String,
    records: i32,
    acks: String,
    value_bytes: usize,
    key_bytes: usize,
    headers: usize,
    header_key_bytes: usize,
    /// `None`: null.
    header_value_bytes: Option<usize>,
    properties: BTreeMap<String, String>,
}

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&named(args)?).map_err(|e| Stop::Usage(e.to_string()))?;
    tool.help_or_version(&parsed)?;
    let options = options(&parsed)?;
    run_async(async {
        let cluster = Cluster::connect(client_config(&options.properties)?, PATIENCE).await?;
        let partitions = partitions(&cluster.admin, &options.topic).await?;
        let mut consumer = consumer(&options, &partitions).await?;
        let mut producer = options.properties.clone();
        let sets = [("linger.ms", "0"), ("max.block.ms", "9223372036854775807"), ("acks", options.acks.as_str())];
        producer.extend(sets.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let producer = Producer::connect(client_config(&producer)?).await.map_err(CallError::from)?;
        let measured = measure(&options, &producer, &mut consumer).await;
        let committed = consumer.commit().await;
        measured?;
        committed.map_err(CallError::from)?;
        consumer.close().await.map_err(CallError::from)?;
        producer.close().await;
        Ok(())
    })
}

/// The arguments with names, which they have since Kafka 4.2.
fn named(args: Vec<String>) -> Result<Vec<String>, Stop> {
    let required = POSITIONS.iter().take(5).any(|name| args.iter().any(|arg| *arg == format!("--{name}")));
    let asks = args.iter().any(|arg| ["--help", "--version"].contains(&arg.as_str()));
    if args.is_empty() || required || asks {
        return Ok(args);
    }
    if !(5..=6).contains(&args.len()) {
        return Err(Stop::Failed(format!(
            "Invalid number of arguments. Expected 5 or 6 positional arguments, but got {}. Usage: bootstrap-server topic \
             num-records producer-acks record-size [optional] command-config",
            args.len()
        )));
    }
    say!(
        "WARNING: Positional argument usage is deprecated and will be removed in Apache Kafka 5.0. Please use named arguments \
         instead: --bootstrap-server, --topic, --num-records, --producer-acks, --record-size, --command-config"
    )?;
    Ok(POSITIONS.iter().zip(args).flat_map(|(name, value)| [format!("--{name}"), value]).collect())
}

fn options(parsed: &Parsed) -> Result<Options, Stop> {
    require(parsed, &POSITIONS[..5])?;
    let acks = parsed.text("producer-acks")?.unwrap_or_default();
    if !["1", "all"].contains(&acks) {
        return Err(Stop::Usage(
            "Invalid value for --producer-acks. Latency testing requires synchronous acknowledgement. Please use '1' or 'all'."
                .to_owned(),
        ));
    }
    let records = parsed.int("num-records")?.unwrap_or(0);
    if records <= 0 {
        return Err(Stop::Usage("Value for --num-records must be a positive integer.".to_owned()));
    }
    let size = |name: &str| {
        let n = parsed.int(name)?.unwrap_or(0);
        usize::try_from(n).map_err(|_| Stop::Usage(format!("Value for --{name} must be a non-negative integer.")))
    };
    let header_value_bytes = match parsed.int("record-header-size")?.unwrap_or(0) {
        -1 => None,
        n => Some(usize::try_from(n).map_err(|_| {
            Stop::Usage(
                "Value for --record-header-size must be a non-negative integer or -1 for null header value.".to_owned(),
            )
        })?),
    };
    let mut properties = match parsed.text("command-config")? {
        Some(path) => load_properties(path)?,
        None => BTreeMap::new(),
    };
    let servers = parsed.text("bootstrap-server")?.unwrap_or_default();
    properties.insert("bootstrap.servers".to_owned(), servers.to_owned());
    Ok(Options {
        topic: parsed.text("topic")?.unwrap_or_default().to_owned(),
        records,
        acks: acks.to_owned(),
        value_bytes: size("record-size")?,
        key_bytes: size("record-key-size")?,
        headers: size("num-headers")?,
        header_key_bytes: size("record-header-key-size")?,
        header_value_bytes,
        properties,
    })
}

/// The topic's partitions; it is made where it is not there.
async fn partitions(admin: &Admin, topic: &str) -> Result<Vec<TopicPartition>, Stop> {
    let all = admin.client().all_topics().await.map_err(CallError::from)?;
    if !all.iter().any(|t| &*t.name == topic) {
        say!("Topic \"{topic}\" does not exist. Will create topic with 1 partition(s) and replication factor = 1")?;
        let new =
            CreatableTopic { name: topic.to_owned(), num_partitions: 1, replication_factor: 1, ..Default::default() };
        let made = admin.create_topics(vec![new], false).await.map_err(CallError::from)?;
        if let Some(refused) = made.iter().find(|t| t.error_code != 0) {
            say!("Creation of topic {topic} failed")?;
            return Err(Stop::Failed(refused.error_message.clone().unwrap_or_default()));
        }
    }
    let found = admin.client().topic(topic).await.map_err(CallError::from)?;
    let ids = 0..i32::try_from(found.partitions.len()).unwrap_or(0);
    Ok(ids.map(|id| TopicPartition::new(topic, id)).collect())
}

/// A consumer at the end of all partitions.
async fn consumer(options: &Options, partitions: &[TopicPartition]) -> Result<Consumer, Stop> {
    let mut properties = options.properties.clone();
    let group = format!("test-group-{}", now_ms());
    let sets = [
        ("group.id", group.as_str()),
        ("enable.auto.commit", "false"),
        ("auto.offset.reset", "latest"),
        ("fetch.max.wait.ms", "0"),
    ];
    properties.extend(sets.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let mut consumer = Consumer::connect(client_config(&properties)?).await.map_err(CallError::from)?;
    let ends = consumer.offsets(partitions, OffsetSpec::Latest).await.map_err(CallError::from)?;
    consumer.assign(partitions).await;
    for (tp, end) in ends {
        consumer.seek(&tp, end.offset).map_err(CallError::from)?;
    }
    Ok(consumer)
}

async fn measure(options: &Options, producer: &Producer, consumer: &mut Consumer) -> Result<(), Stop> {
    let mut latencies: Vec<Duration> = Vec::new();
    for i in 0..options.records {
        let bytes = |n: usize| vec![rand::random_range(b'A'..=b'Z'); n];
        let (key, value) = (bytes(options.key_bytes), bytes(options.value_bytes));
        let headers: Vec<(Vec<u8>, Option<Vec<u8>>)> = (0..options.headers)
            .map(|_| (bytes(options.header_key_bytes), options.header_value_bytes.map(bytes)))
            .collect();
        let borrowed: Vec<(&[u8], Option<&[u8]>)> =
            headers.iter().map(|(key, value)| (key.as_slice(), value.as_deref())).collect();
        let record = Record { headers: &borrowed, ..Record::new(&options.topic, Some(&key), Some(&value)) };
        let begin = Instant::now();
        producer.send(record).await.map_err(CallError::from)?.await.map_err(CallError::from)?;
        let read = consumer.poll(POLL).await.map_err(CallError::from)?;
        let elapsed = begin.elapsed();
        check(&read, &key, &value, &borrowed)?;
        if i % 1000 == 0 {
            say!("{i}\t{}", java::double(elapsed.as_secs_f64() * 1000.0))?;
        }
        latencies.push(elapsed);
    }
    print_results(latencies)
}

/// The record that came must be the one that was sent, and the only one.
fn check(
    read: &[caudal_client::ConsumerRecord],
    key: &[u8],
    value: &[u8],
    headers: &[(&[u8], Option<&[u8]>)],
) -> Result<(), Stop> {
    let failed = |sentence: String| Err(Stop::Failed(sentence));
    let text = |bytes: Option<&[u8]>| bytes.map_or("null".into(), String::from_utf8_lossy).into_owned();
    let Some(record) = read.first() else {
        return failed(format!("poll() timed out before finding a result (timeout:[{}ms])", POLL.as_millis()));
    };
    for (part, found, sent) in [("value", &record.value, value), ("key", &record.key, key)] {
        if found.as_deref() != Some(sent) {
            let (found, sent) = (text(found.as_deref()), text(Some(sent)));
            return failed(format!("The message {part} read [{found}] did not match the message {part} sent [{sent}]"));
        }
    }
    let found: Vec<(&[u8], Option<&[u8]>)> = record.headers.iter().map(|h| (&*h.key, h.value.as_deref())).collect();
    if found != headers {
        return failed("The message headers read did not match the message headers sent".to_owned());
    }
    if read.len() != 1 {
        return failed(format!("Only one result was expected during this test. We found [{}]", read.len()));
    }
    Ok(())
}

/// Percentiles as the original takes them: the element at that share of the sorted whole milliseconds.
fn print_results(mut latencies: Vec<Duration>) -> Result<(), Stop> {
    let total: Duration = latencies.iter().sum();
    let count = i64::try_from(latencies.len()).unwrap_or(i64::MAX);
    say!("Avg latency: {} ms", fixed(total.as_secs_f64() * 1000.0 / float(count), 4))?;
    latencies.sort_unstable();
    let at = |thousandths: usize| latencies.get(latencies.len() * thousandths / 1000).map_or(0, Duration::as_millis);
    say!("Percentiles: 50th = {}, 99th = {}, 99.9th = {}", at(500), at(990), at(999))
}
