//! `kafka-consumer-perf-test`: reads records as fast as they come, and says how fast that was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use caudal_client::admin::OffsetAndMetadata;
use caudal_client::{Consumer, RebalanceListener, Topics};
use caudal_protocol::TopicPartition;
use parking_lot::Mutex;

use super::super::cluster::CallError;
use super::super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::super::{Stop, Tool, client_config, exclude, key_values, load_properties, require, say};
use super::date::DatePattern;
use super::{fixed, float, megabytes, now_ms, refuse_metrics, run_beside};

const OPTIONS: &[Opt] = &[
    value("bootstrap-server", "server to connect to", "REQUIRED: The server(s) to connect to."),
    value("topic", "topic", "The topic to consume from."),
    value("include", "Java regex (String)", "Regular expression specifying list of topics to include for consumption."),
    value("group", "gid", "The group id to consume on. (default: perf-consumer- and a random number)"),
    value("fetch-size", "size", "The maximum amount of data to fetch from a single partition per request.")
        .int()
        .default("1048576"),
    value(
        "command-property",
        "prop1=val1",
        "Kafka consumer related configuration properties like client.id. These configs take precedence over those passed via --command-config or --consumer.config.",
    ),
    flag(
        "from-latest",
        "If the consumer does not already have an established offset to consume from, start with the latest record present in the log rather than the earliest record.",
    ),
    value("socket-buffer-size", "size", "The size of the tcp RECV size.").int().default("2097152"),
    value(
        "consumer.config",
        "config file",
        "(DEPRECATED) Consumer config properties file. This option will be removed in a future version. Use --command-config instead.",
    ),
    value("command-config", "config file", "Config properties file."),
    flag("print-metrics", "Refused: metrics of the Java client."),
    flag(
        "show-detailed-stats",
        "If set, stats are reported for each reporting interval as configured by reporting-interval.",
    ),
    value("timeout", "milliseconds", "The maximum allowed time in milliseconds between returned records.")
        .optional()
        .long()
        .default("10000"),
    value(
        "messages",
        "count",
        "(DEPRECATED) The number of records to consume. This option will be removed in a future version. Use --num-records instead.",
    )
    .long(),
    value("num-records", "count", "REQUIRED: The number of records to consume.").long(),
    value("reporting-interval", "interval_ms", "Interval in milliseconds at which to print progress info.")
        .long()
        .default("5000"),
    value(
        "date-format",
        "date format",
        "The date format to use for formatting the time field. See java.text.SimpleDateFormat for options.",
    )
    .default("yyyy-MM-dd HH:mm:ss:SSS"),
    flag("hide-header", "If set, skips printing the header for the stats."),
    flag("help", "Print usage information."),
    flag("version", "Display Kafka version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
    gone("threads", true, "threads is not a recognized option: start the tool several times with one --group instead"),
    gone("num-fetch-threads", true, "num-fetch-threads is not a recognized option: leave it out"),
];

pub static TOOL: Tool = Tool {
    name: "kafka-consumer-perf-test",
    about: "This tool is used to verify the consumer performance.",
    options: OPTIONS,
    run,
};

const POLL: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Options {
    consumer: BTreeMap<String, String>,
    topics: Topics,
    records: i64,
    timeout_ms: i64,
    interval_ms: i64,
    is_detailed: bool,
    hides_header: bool,
    date: DatePattern,
}

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args).map_err(|e| Stop::Usage(e.to_string()))?;
    tool.help_or_version(&parsed)?;
    let options = options(&parsed)?;
    let config = client_config(&options.consumer)?;
    if !options.hides_header {
        let first = if options.is_detailed { "time, threadId" } else { "start.time, end.time" };
        say!(
            "{first}, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, rebalance.time.ms, fetch.time.ms, \
             fetch.MB.sec, fetch.nMsg.sec"
        )?;
    }
    run_beside(async {
        let mut consumer = Consumer::connect(config).await.map_err(CallError::from)?;
        let start_ms = now_ms();
        let joins = Arc::new(Mutex::new(Joins { start_ms, ..Joins::default() }));
        consumer.set_rebalance_listener(Box::new(JoinClock(Arc::clone(&joins))));
        consumer.subscribe(options.topics.clone()).map_err(CallError::from)?;
        let read = consume(&mut consumer, &options, &joins).await?;
        let end_ms = now_ms();
        if !options.is_detailed {
            print_total(&options, &read, (start_ms, end_ms), joins.lock().total_ms)?;
        }
        consumer.close().await.map_err(CallError::from)?;
        Ok(())
    })
}

fn options(parsed: &Parsed) -> Result<Options, Stop> {
    require(parsed, &["bootstrap-server"])?;
    for pair in [["topic", "include"], ["messages", "num-records"]] {
        if pair.iter().filter(|o| parsed.has(o)).count() != 1 {
            let [one, other] = pair;
            return Err(Stop::Usage(format!("Exactly one of the following arguments is required: [{one}], [{other}]")));
        }
    }
    exclude(parsed, "consumer.config", &["command-config"])?;
    if parsed.has("messages") {
        say!("Warning: --messages is deprecated. Use --num-records instead.")?;
    }
    if parsed.has("consumer.config") {
        say!("Warning: --consumer.config is deprecated. Use --command-config instead.")?;
    }
    refuse_metrics(parsed.has("print-metrics"))?;
    let topics = match (parsed.text("topic")?, parsed.text("include")?) {
        (Some(topic), _) => Topics::names([topic]),
        (None, pattern) => Topics::pattern(pattern.unwrap_or_default()).map_err(|e| Stop::Failed(e.to_string()))?,
    };
    let interval_ms = parsed.long("reporting-interval")?.unwrap_or(0);
    if interval_ms <= 0 {
        return Err(Stop::Failed("Reporting interval must be greater than 0.".to_owned()));
    }
    let records = if parsed.has("messages") { parsed.long("messages")? } else { parsed.long("num-records")? };
    Ok(Options {
        consumer: properties(parsed)?,
        topics,
        records: records.unwrap_or(0),
        timeout_ms: parsed.long("timeout")?.unwrap_or(0),
        interval_ms,
        is_detailed: parsed.has("show-detailed-stats"),
        hides_header: parsed.has("hide-header"),
        date: DatePattern::new(parsed.text("date-format")?.unwrap_or_default()).map_err(Stop::Failed)?,
    })
}

fn properties(parsed: &Parsed) -> Result<BTreeMap<String, String>, Stop> {
    let file = if parsed.has("consumer.config") { "consumer.config" } else { "command-config" };
    let mut properties = match parsed.text(file)? {
        Some(path) => load_properties(path)?,
        None => BTreeMap::new(),
    };
    properties.extend(key_values(parsed.all("command-property")));
    let group = match parsed.text("group")? {
        Some(group) => group.to_owned(),
        None => format!("perf-consumer-{}", rand::random_range(0..100_000)),
    };
    let mut set = |name: &str, value: &str| _ = properties.insert(name.to_owned(), value.to_owned());
    set("bootstrap.servers", parsed.text("bootstrap-server")?.unwrap_or_default());
    set("group.id", &group);
    set("receive.buffer.bytes", parsed.text("socket-buffer-size")?.unwrap_or_default());
    set("max.partition.fetch.bytes", parsed.text("fetch-size")?.unwrap_or_default());
    set("auto.offset.reset", if parsed.has("from-latest") { "latest" } else { "earliest" });
    set("check.crcs", "false");
    properties.entry("client.id".to_owned()).or_insert_with(|| "perf-consumer-client".to_owned());
    Ok(properties)
}

/// How long the consumer was without partitions.
#[derive(Debug, Default)]
struct Joins {
    start_ms: i64,
    total_ms: i64,
    round_ms: i64,
    assigned: Vec<TopicPartition>,
}

struct JoinClock(Arc<Mutex<Joins>>);

impl RebalanceListener for JoinClock {
    fn on_assigned(&mut self, partitions: &[TopicPartition]) {
        let mut joins = self.0.lock();
        if joins.assigned.is_empty() {
            let elapsed = now_ms() - joins.start_ms;
            joins.total_ms += elapsed;
            joins.round_ms += elapsed;
        }
        joins.assigned.extend_from_slice(partitions);
    }

    fn on_revoked(&mut self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, OffsetAndMetadata)> {
        let mut joins = self.0.lock();
        joins.assigned.retain(|tp| !partitions.contains(tp));
        if joins.assigned.is_empty() {
            joins.start_ms = now_ms();
        }
        Vec::new()
    }
}

/// Records and bytes of their keys and values.
#[derive(Debug, Default, Clone, Copy)]
struct Read {
    records: i64,
    bytes: i64,
}

async fn consume(consumer: &mut Consumer, options: &Options, joins: &Mutex<Joins>) -> Result<Read, Stop> {
    let (mut read, mut reported) = (Read::default(), Read::default());
    let mut now = now_ms();
    let (mut reported_ms, mut consumed_ms) = (now, now);
    while read.records < options.records && now - consumed_ms <= options.timeout_ms {
        let records = consumer.poll(POLL).await.map_err(CallError::from)?;
        now = now_ms();
        if !records.is_empty() {
            consumed_ms = now;
        }
        for record in records {
            let bytes = record.key.map_or(0, |k| k.len()) + record.value.map_or(0, |v| v.len());
            read.bytes += i64::try_from(bytes).unwrap_or(0);
            read.records += 1;
            if now - reported_ms >= options.interval_ms {
                let round_ms = std::mem::take(&mut joins.lock().round_ms);
                if options.is_detailed {
                    print_progress(options, &read, &reported, (reported_ms, now), round_ms)?;
                }
                (reported_ms, reported) = (now, read);
            }
        }
    }
    if read.records < options.records {
        say!(
            "WARNING: Exiting before consuming the expected number of records: timeout ({} ms) exceeded. You can use the \
             --timeout option to increase the timeout.",
            options.timeout_ms
        )?;
    }
    Ok(read)
}

fn print_progress(
    options: &Options,
    read: &Read,
    before: &Read,
    (start_ms, end_ms): (i64, i64),
    join_ms: i64,
) -> Result<(), Stop> {
    let elapsed_ms = float(end_ms - start_ms);
    let fetch_ms = end_ms - start_ms - join_ms;
    let (mb, records) = (megabytes(read.bytes - before.bytes), float(read.records - before.records));
    let per_fetch = |amount: f64| if fetch_ms <= 0 { 0.0 } else { 1000.0 * amount / float(fetch_ms) };
    say!(
        "{}, 0, {}, {}, {}, {}, {join_ms}, {fetch_ms}, {}, {}",
        options.date.format(end_ms),
        fixed(megabytes(read.bytes), 4),
        fixed(1000.0 * mb / elapsed_ms, 4),
        read.records,
        fixed(records / elapsed_ms * 1000.0, 4),
        fixed(per_fetch(mb), 4),
        fixed(per_fetch(records), 4)
    )
}

fn print_total(options: &Options, read: &Read, (start_ms, end_ms): (i64, i64), join_ms: i64) -> Result<(), Stop> {
    let fetch_ms = end_ms - start_ms - join_ms;
    let (elapsed, fetching) = (float(end_ms - start_ms) / 1000.0, float(fetch_ms) / 1000.0);
    let (mb, records) = (megabytes(read.bytes), float(read.records));
    say!(
        "{}, {}, {}, {}, {}, {}, {join_ms}, {fetch_ms}, {}, {}",
        options.date.format(start_ms),
        options.date.format(end_ms),
        fixed(mb, 4),
        fixed(mb / elapsed, 4),
        read.records,
        fixed(records / elapsed, 4),
        fixed(mb / fetching, 4),
        fixed(records / fetching, 4)
    )
}
