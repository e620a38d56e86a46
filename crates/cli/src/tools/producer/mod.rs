//! `kafka-console-producer`: a record for each line of standard input.

mod line;
mod stdin;

use std::collections::BTreeMap;

use caudal_client::{Delivery, Producer, Record};
use tokio::sync::mpsc;

pub use line::{LineReader, lines};
pub use stdin::{Blocks, blocks};

use super::cluster::{CallError, Cluster, PATIENCE};
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{
    Stop, Tool, briefly, check_servers, client_config, interrupted, key_values, load_properties, require, run_async,
    say, tell,
};

pub static TOOL: Tool = Tool {
    name: "kafka-console-producer",
    about: "This tool helps to read data from standard input and publish it to Kafka.",
    options: OPTIONS,
    run,
};

const READER_PROPERTIES: &str = "How a line becomes a record, key=value:\n parse.key=false\n parse.headers=false\n \
     ignore.error=false\n key.separator=\\t\n headers.delimiter=\\t\n headers.separator=,\n headers.key.separator=:\n \
     null.marker=   a key, value or header that equals this is null\nWith parse.headers and parse.key a line is\n \
     \"h1:v1,h2:v2...\\tkey\\tvalue\"";

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    value("batch-size", "size", "Bytes of a batch; producer config batch.size.").int().default("16384"),
    value("bootstrap-server", "server to connect to", "REQUIRED: brokers to connect to first, HOST1:PORT1,HOST2:PORT2."),
    value("command-config", "config file", "Producer config properties file; --command-property goes before it."),
    value("command-property", "producer_prop", "Producer config, key=value. May be given several times."),
    value("compression-codec", "compression-codec", "'none', 'gzip', 'snappy', 'lz4' or 'zstd'; without a value 'gzip'.").optional(),
    flag("help", "Print this."),
    value("line-reader", "reader_class", "What reads standard input.").default("org.apache.kafka.tools.LineMessageReader"),
    value("max-block-ms", "max block on send", "How long a send may wait for metadata or memory; max.block.ms.").long().default("60000"),
    value("max-memory-bytes", "total memory in bytes", "Memory for records that wait to be sent; buffer.memory.").long().default("33554432"),
    value("max-partition-memory-bytes", "memory in bytes per partition", "(Deprecated) Use --batch-size.").int().default("16384"),
    value("message-send-max-retries", "", "How often to try again; retries.").int().default("3"),
    value("metadata-expiry-ms", "metadata expiration interval", "How old metadata may get; metadata.max.age.ms.").long().default("300000"),
    value("producer-property", "producer_prop", "(DEPRECATED) Use --command-property."),
    value("producer.config", "config file", "(DEPRECATED) Use --command-config."),
    value("property", "prop", "(DEPRECATED) Use --reader-property."),
    value("reader-config", "config file", "Properties file for the line reader; --reader-property goes before it."),
    value("reader-property", "prop", READER_PROPERTIES),
    value("request-required-acks", "request required acks", "Which replicas must have a record before it counts as written: 0, 1 or -1 (all); acks.").default("-1"),
    value("request-timeout-ms", "request timeout ms", "How long to wait for an answer; request.timeout.ms.").int().default("1500"),
    value("retry-backoff-ms", "", "How long to wait before trying again; retry.backoff.ms.").long().default("100"),
    value("socket-buffer-size", "size", "Bytes of the socket's send buffer; send.buffer.bytes.").int().default("102400"),
    flag("sync", "Wait for each record to be written before the next is read."),
    value("timeout", "timeout_ms", "How long a record may wait for its batch to fill; linger.ms.").long().default("1000"),
    value("topic", "topic", "REQUIRED: the topic."),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
    gone("key-serializer", true, "key-serializer is not a recognized option: keys are sent as the bytes of the line"),
    gone("value-serializer", true, "value-serializer is not a recognized option: values are sent as the bytes of the line"),
    gone("queue-size", true, "queue-size is not a recognized option: use --max-memory-bytes"),
];

/// Options that set a producer config, in the order in which the original applies them.
const CONFIGS: &[(&str, &str)] = &[
    ("linger.ms", "timeout"),
    ("acks", "request-required-acks"),
    ("request.timeout.ms", "request-timeout-ms"),
    ("retries", "message-send-max-retries"),
    ("retry.backoff.ms", "retry-backoff-ms"),
    ("send.buffer.bytes", "socket-buffer-size"),
    ("buffer.memory", "max-memory-bytes"),
    ("batch.size", "batch-size"),
    ("batch.size", "max-partition-memory-bytes"),
    ("metadata.max.age.ms", "metadata-expiry-ms"),
    ("max.block.ms", "max-block-ms"),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args).map_err(|e| Stop::Usage(e.to_string()))?;
    let options = options(tool, &parsed)?;
    let config = client_config(&options.producer)?;
    let reader = LineReader::new(&options.reader).map_err(Stop::Failed)?;
    run_async(async {
        let cluster = Cluster::connect(config, PATIENCE).await?;
        let producer = Producer::new(cluster.admin.client().clone()).map_err(CallError::from)?;
        let code = tokio::select! {
            sent = send_lines(&producer, reader, &options.topic, options.is_sync) => {
                producer.close().await;
                return sent;
            }
            code = interrupted() => code,
        };
        // What was typed is still sent, if the cluster takes it at once.
        briefly(producer.close()).await;
        Err(Stop::Exit(code))
    })
}

/// What the command line says.
#[derive(Debug)]
struct Options {
    topic: String,
    is_sync: bool,
    producer: BTreeMap<String, String>,
    reader: BTreeMap<String, String>,
}

fn options(tool: &Tool, parsed: &Parsed) -> Result<Options, Stop> {
    tool.help_or_version(parsed)?;
    require(parsed, &["topic"])?;
    let pairs = [
        ("command-config", "producer.config"),
        ("command-property", "producer-property"),
        ("reader-property", "property"),
    ];
    for (today, deprecated) in pairs {
        if parsed.has(today) && parsed.has(deprecated) {
            return Err(Stop::Usage(format!("Options --{today} and --{deprecated} cannot be specified together.")));
        }
    }
    for (today, deprecated) in [pairs[1], pairs[0], pairs[2]] {
        if parsed.has(deprecated) {
            say!(
                "Warning: --{deprecated} is deprecated and will be removed in a future version. Use --{today} instead."
            )?;
        }
    }
    if parsed.has("max-partition-memory-bytes") {
        say!(
            "Warning: --max-partition-memory-bytes is deprecated and will be removed in Apache Kafka 5.0. Use --batch-size \
             instead."
        )?;
    }
    check_servers(parsed)?;
    let class = parsed.text("line-reader")?.unwrap_or_default();
    if !class.ends_with("LineMessageReader") {
        return Err(Stop::Failed(format!(
            "{class}: only org.apache.kafka.tools.LineMessageReader can read lines here; leave --line-reader out"
        )));
    }
    Ok(Options {
        topic: parsed.text("topic")?.unwrap_or_default().to_owned(),
        is_sync: parsed.has("sync"),
        producer: producer_properties(parsed)?,
        reader: reader_properties(parsed)?,
    })
}

/// The values of two options of which one is the former name of the other.
fn either<'a>(parsed: &'a Parsed, today: &str, deprecated: &str) -> &'a [String] {
    if parsed.has(deprecated) { parsed.all(deprecated) } else { parsed.all(today) }
}

fn producer_properties(parsed: &Parsed) -> Result<BTreeMap<String, String>, Stop> {
    let mut properties = BTreeMap::new();
    if let Some(path) = either(parsed, "command-config", "producer.config").last() {
        properties = load_properties(path)?;
    }
    properties.extend(key_values(either(parsed, "command-property", "producer-property")));
    let servers = parsed.text("bootstrap-server")?.unwrap_or_default();
    properties.insert("bootstrap.servers".to_owned(), servers.to_owned());
    let codec = match (parsed.has("compression-codec"), parsed.text("compression-codec")?) {
        (false, _) => "none",
        (true, None) => "gzip",
        (true, Some(codec)) => codec,
    };
    properties.insert("compression.type".to_owned(), codec.to_owned());
    properties.entry("client.id".to_owned()).or_insert_with(|| "console-producer".to_owned());
    for (name, option) in CONFIGS {
        if let Some(value) = parsed.text(option)?
            && (parsed.has(option) || !properties.contains_key(*name))
        {
            properties.insert((*name).to_owned(), value.to_owned());
        }
    }
    Ok(properties)
}

fn reader_properties(parsed: &Parsed) -> Result<BTreeMap<String, String>, Stop> {
    let mut properties = match parsed.text("reader-config")? {
        Some(path) => load_properties(path)?,
        None => BTreeMap::new(),
    };
    properties.extend(key_values(either(parsed, "reader-property", "property")));
    Ok(properties)
}

/// A record on its way, with what is said about it should it fail.
struct Sent {
    delivery: Delivery,
    key_bytes: Option<usize>,
    value_bytes: Option<usize>,
}

async fn send_lines(producer: &Producer, mut reader: LineReader, topic: &str, is_sync: bool) -> Result<(), Stop> {
    let (watched, watcher) = watch(topic);
    let mut input = blocks();
    let done = send_blocks(producer, &mut reader, &mut input, topic, is_sync, &watched).await;
    producer.flush().await;
    drop(watched);
    let _ = watcher.await;
    done
}

/// Says on standard error which records failed, as the original does; it goes on all the same.
fn watch(topic: &str) -> (mpsc::UnboundedSender<Sent>, tokio::task::JoinHandle<()>) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<Sent>();
    let topic = topic.to_owned();
    let size = |bytes: Option<usize>| bytes.map_or_else(|| "null".to_owned(), |n| format!("{n} bytes"));
    let task = tokio::spawn(async move {
        while let Some(sent) = receiver.recv().await {
            if let Err(error) = sent.delivery.await {
                let (key, value) = (size(sent.key_bytes), size(sent.value_bytes));
                let error = CallError::from(error).java();
                tell!(
                    "ERROR Error when sending message to topic {topic} with key: {key}, value: {value} with error: {error}"
                );
            }
        }
    });
    (sender, task)
}

async fn send_blocks(
    producer: &Producer,
    reader: &mut LineReader,
    input: &mut Blocks,
    topic: &str,
    is_sync: bool,
    watched: &mpsc::UnboundedSender<Sent>,
) -> Result<(), Stop> {
    while let Some(block) = input.recv().await {
        let block = block.map_err(|e| Stop::Failed(format!("failed to read standard input: {e}")))?;
        for line in lines(&block) {
            let line = reader.read(line).map_err(Stop::Failed)?;
            let record = Record { headers: &line.headers, ..Record::new(topic, line.key, line.value) };
            let delivery = producer.send(record).await.map_err(CallError::from)?;
            if is_sync {
                delivery.await.map_err(|e| Stop::Failed(CallError::from(e).java()))?;
                continue;
            }
            let sent =
                Sent { delivery, key_bytes: line.key.map(<[u8]>::len), value_bytes: line.value.map(<[u8]>::len) };
            let _ = watched.send(sent);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, Stop> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        options(&TOOL, &TOOL.parse(&args)?)
    }

    #[test]
    fn properties_by_precedence() {
        let properties = parsed("--topic t --bootstrap-server a:1").unwrap().producer;
        let expected = [
            ("acks", "-1"),
            ("batch.size", "16384"),
            ("bootstrap.servers", "a:1"),
            ("buffer.memory", "33554432"),
            ("client.id", "console-producer"),
            ("compression.type", "none"),
            ("linger.ms", "1000"),
            ("max.block.ms", "60000"),
            ("metadata.max.age.ms", "300000"),
            ("request.timeout.ms", "1500"),
            ("retries", "3"),
            ("retry.backoff.ms", "100"),
            ("send.buffer.bytes", "102400"),
        ];
        assert_eq!(properties, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let line = "--topic t --broker-list a:1 --compression-codec --command-property acks=1 --command-property linger.ms=7 \
                    --timeout 9";
        let properties = parsed(line).unwrap().producer;
        assert_eq!(properties["compression.type"], "gzip");
        assert_eq!((&*properties["acks"], &*properties["linger.ms"]), ("1", "9"));
    }

    #[test]
    fn refusals() {
        let cases = [
            ("--bootstrap-server a:1", "Missing required argument \"[topic]\""),
            ("--topic t --bootstrap-server a", "Please provide valid host:port like host1:9091,host2:9092"),
            (
                "--topic t --bootstrap-server a:1 --property x=1 --reader-property x=2",
                "Options --reader-property and --property cannot be specified together.",
            ),
            ("--topic t --zookeeper a:1", NO_ZOOKEEPER),
        ];
        for (line, sentence) in cases {
            assert_eq!(parsed(line).unwrap_err().to_string(), sentence, "{line}");
        }
    }
}
