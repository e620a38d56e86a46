//! `kafka-verifiable-producer`: writes ascending numbers and tells of each whether it was written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use caudal_client::{Delivery, Error, Producer, Record};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::cluster::CallError;
use super::super::options::{self, Opt, Parsed, flag, former, value};
use super::super::perf::throttle::Throttle;
use super::super::perf::{float, now_ms};
use super::super::{Stop, Tool, client_config, interrupted, run_async, say};
use super::{event, file, require};

const OPTIONS: &[Opt] = &[
    value("topic", "TOPIC", "REQUIRED: Produce messages to this topic."),
    value(
        "bootstrap-server",
        "HOST1:PORT1[,HOST2:PORT2[...]]",
        "REQUIRED: The server(s) to connect to. Comma-separated list of Kafka brokers in the form HOST1:PORT1,HOST2:PORT2,...",
    ),
    value(
        "max-messages",
        "MAX-MESSAGES",
        "Produce this many messages. If -1, produce messages until the process is killed externally.",
    )
    .int()
    .default("-1"),
    value(
        "throughput",
        "THROUGHPUT",
        "If set >= 0, throttle maximum message throughput to *approximately* THROUGHPUT messages/sec.",
    )
    .int()
    .default("-1"),
    value("acks", "ACKS", "Acks required on each produced message (0, 1 or -1). See Kafka docs on acks for details.")
        .int()
        .default("-1"),
    value(
        "producer.config",
        "CONFIG-FILE",
        "(DEPRECATED) Producer config properties file. This option will be removed in a future version. Use --command-config instead.",
    ),
    value(
        "message-create-time",
        "CREATE-TIME",
        "Send messages with creation time starting at the arguments value, in milliseconds since epoch",
    )
    .long()
    .default("-1"),
    value(
        "value-prefix",
        "VALUE-PREFIX",
        "If specified, each produced value will have this prefix with a dot separator",
    )
    .int(),
    value(
        "repeating-keys",
        "REPEATING-KEYS",
        "If specified, each produced record will have a key starting at 0 increment by 1 up to the number specified (exclusive), then the key is set to 0 again",
    )
    .int(),
    value(
        "command-config",
        "CONFIG-FILE",
        "Config properties file (config options shared with command line parameters will be overridden).",
    ),
    flag("help", "Print this (-h)."),
    former("h", "help"),
];

pub static TOOL: Tool = Tool {
    name: "kafka-verifiable-producer",
    about: "This tool produces increasing integers to the specified topic and prints JSON metadata to stdout on each \"send\" request, making externally visible which messages have been acked and which have not.",
    options: OPTIONS,
    run,
};

#[derive(Debug)]
struct Options {
    topic: String,
    /// `None`: without end.
    messages: Option<i64>,
    throughput: i32,
    create_time_ms: Option<i64>,
    prefix: Option<i32>,
    keys: Option<i32>,
    producer: BTreeMap<String, String>,
}

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args).map_err(|e| Stop::Usage(e.to_string()))?;
    if parsed.count == 0 || parsed.has("help") {
        return say!("{}\n{}", tool.about, options::help(OPTIONS).trim_end());
    }
    let options = options(&parsed)?;
    let config = client_config(&options.producer)?;
    run_async(async {
        let start_ms = now_ms();
        let producer = Producer::connect(config).await.map_err(CallError::from)?;
        event("startup_complete", json!({}))?;
        let mut told = Told::default();
        let end = tokio::select! {
            sent = send(&producer, &options, &mut told) => sent,
            code = interrupted() => Err(Stop::Exit(code)),
        };
        producer.close().await;
        told.end().await?;
        event("shutdown_complete", json!({}))?;
        let (sent, acked) = (told.sent, told.acked.load(Ordering::Relaxed));
        let average = 1000.0 * (float(acked) / float(now_ms() - start_ms));
        let throughput = options.throughput;
        event(
            "tool_data",
            json!({ "sent": sent, "acked": acked, "target_throughput": throughput, "avg_throughput": average }),
        )?;
        end
    })
}

fn options(parsed: &Parsed) -> Result<Options, Stop> {
    require(parsed, &["topic", "bootstrap-server"])?;
    let number = |name: &str| parsed.int(name).map_err(|e| Stop::Usage(e.to_string()));
    let acks = number("acks")?.unwrap_or(-1);
    if ![0, 1, -1].contains(&acks) {
        return Err(Stop::Usage(format!("argument --acks: invalid choice: '{acks}' (choose from 0, 1, -1)")));
    }
    let mut producer: BTreeMap<String, String> = [
        ("bootstrap.servers", parsed.text("bootstrap-server")?.unwrap_or_default().to_owned()),
        ("acks", acks.to_string()),
        // Every record is tried once: what failed is told.
        ("retries", "0".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    producer.extend(file(parsed, "producer.config")?);
    // As the Java client: without retries nothing is idempotent unless that is asked for.
    if producer.get("retries").is_some_and(|r| r == "0") || acks != -1 {
        producer.entry("enable.idempotence".to_owned()).or_insert_with(|| "false".to_owned());
    }
    Ok(Options {
        topic: parsed.text("topic")?.unwrap_or_default().to_owned(),
        messages: number("max-messages")?.filter(|n| *n >= 0).map(i64::from),
        throughput: number("throughput")?.unwrap_or(-1),
        create_time_ms: parsed.long("message-create-time")?.filter(|ms| *ms != -1),
        prefix: number("value-prefix")?,
        keys: number("repeating-keys")?.filter(|n| *n > 0),
        producer,
    })
}

/// A record on its way.
struct Sent {
    delivery: Delivery,
    key: Option<String>,
    value: String,
}

/// Those who tell of records: one for each partition, whose records are written in order.
#[derive(Default)]
struct Told {
    tellers: HashMap<i32, mpsc::UnboundedSender<Sent>>,
    tasks: JoinSet<Result<(), Stop>>,
    sent: i64,
    acked: Arc<AtomicI64>,
}

impl Told {
    fn tell(&mut self, topic: &str, sent: Sent) {
        let tasks = &mut self.tasks;
        let teller = self.tellers.entry(sent.delivery.partition().partition).or_insert_with(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tasks.spawn(tell(receiver, topic.to_owned(), Arc::clone(&self.acked)));
            sender
        });
        // A teller that is gone has failed, which the end says.
        let _ = teller.send(sent);
    }

    async fn end(&mut self) -> Result<(), Stop> {
        self.tellers.clear();
        while let Some(told) = self.tasks.join_next().await {
            told.unwrap_or(Ok(()))?;
        }
        Ok(())
    }
}

async fn tell(mut records: mpsc::UnboundedReceiver<Sent>, topic: String, acked: Arc<AtomicI64>) -> Result<(), Stop> {
    while let Some(Sent { delivery, key, value }) = records.recv().await {
        match delivery.await {
            Ok(written) => {
                acked.fetch_add(1, Ordering::Relaxed);
                let (offset, partition) = (written.offset.unwrap_or(-1), written.partition);
                event(
                    "producer_send_success",
                    json!({ "key": key, "value": value, "offset": offset, "topic": topic, "partition": partition }),
                )?;
            }
            Err(error) => tell_failure(&topic, key.as_deref(), &value, error)?,
        }
    }
    Ok(())
}

fn tell_failure(topic: &str, key: Option<&str>, value: &str, error: Error) -> Result<(), Stop> {
    let error = CallError::from(error);
    let java = error.java();
    let class = java.split(": ").next().filter(|c| c.starts_with("org.apache.")).unwrap_or("java.lang.Exception");
    let (class, message) = (format!("class {class}"), &error.message);
    event(
        "producer_send_error",
        json!({ "topic": topic, "key": key, "value": value, "exception": class, "message": message }),
    )
}

async fn send(producer: &Producer, options: &Options, told: &mut Told) -> Result<(), Stop> {
    let mut throttle = Throttle::new(f64::from(options.throughput));
    let start_ms = now_ms();
    let mut create_time_ms = options.create_time_ms;
    for i in 0..options.messages.unwrap_or(i64::MAX) {
        let key = options.keys.map(|keys| (i % i64::from(keys)).to_string());
        let value = options.prefix.map_or_else(|| i.to_string(), |prefix| format!("{prefix}.{i}"));
        let record = Record::new(&options.topic, key.as_deref().map(str::as_bytes), Some(value.as_bytes()));
        let record = Record { timestamp_ms: create_time_ms, ..record };
        create_time_ms = create_time_ms.map(|ms| ms + now_ms() - start_ms);
        told.sent += 1;
        match producer.send(record).await {
            Ok(delivery) => told.tell(&options.topic, Sent { delivery, key, value }),
            Err(error) => tell_failure(&options.topic, key.as_deref(), &value, error)?,
        }
        match throttle.pause(i) {
            Some(pause) => tokio::time::sleep(pause).await,
            // What was written meanwhile is told, and a signal is heard.
            None if i % 64 == 0 => tokio::task::yield_now().await,
            None => {}
        }
    }
    Ok(())
}
