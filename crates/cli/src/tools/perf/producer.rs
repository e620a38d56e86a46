//! `kafka-producer-perf-test`: sends records as fast as it may, and says how long they took.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use caudal_client::{Client, Delivery, Producer, Record};
use caudal_protocol::Uuid;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::cluster::CallError;
use super::super::options::{Opt, Parsed, flag, value};
use super::super::{Stop, Tool, client_config, load_properties, say, tell};
use super::stats::Stats;
use super::throttle::Throttle;
use super::{now_ms, refuse_metrics, run_beside};

const OPTIONS: &[Opt] = &[
    value(
        "bootstrap-server",
        "BOOTSTRAP-SERVER",
        "The server(s) to connect to. This config takes precedence over bootstrap.servers specified via --command-property or --command-config.",
    ),
    value("topic", "TOPIC", "REQUIRED: Produce records to this topic."),
    value("num-records", "NUM-RECORDS", "REQUIRED: Number of records to produce.").long(),
    value("record-size", "RECORD-SIZE", "Record size in bytes. Note that you must provide exactly one of --record-size, --payload-file or --payload-monotonic.").int(),
    value("payload-file", "PAYLOAD-FILE", "File to read the record payloads from. This works only for UTF-8 encoded text files. Payloads will be read from this file and a payload will be randomly selected when sending records. Note that you must provide exactly one of --record-size, --payload-file or --payload-monotonic."),
    flag("payload-monotonic", "Payload is a monotonically increasing integer. Note that you must provide exactly one of --record-size, --payload-file or --payload-monotonic."),
    value("payload-delimiter", "PAYLOAD-DELIMITER", "Provides the delimiter to be used when --payload-file is provided. Defaults to new line. Note that this parameter will be ignored if --payload-file is not provided.").default("\\n"),
    value("throughput", "THROUGHPUT", "REQUIRED: Throttle maximum record throughput to *approximately* THROUGHPUT records/sec. Set this to -1 to disable throttling."),
    value("command-property", "PROP-NAME=PROP-VALUE", "Kafka producer related configuration properties like client.id; several may follow. These configs take precedence over those passed via --command-config or --producer.config. Example: --command-property linger.ms=10 batch.size=32768"),
    value("producer-props", "PROP-NAME=PROP-VALUE", "(DEPRECATED) As --command-property. This option will be removed in a future version."),
    value("command-config", "CONFIG-FILE", "Producer config properties file."),
    value("producer.config", "CONFIG-FILE", "(DEPRECATED) As --command-config. This option will be removed in a future version."),
    flag("print-metrics", "Refused: metrics of the Java client."),
    value("transactional-id", "TRANSACTIONAL-ID", "The transactional id to use. This config takes precedence over the transactional.id specified via --command-property or --command-config. Note that if the transactional id is not specified while --transaction-duration-ms is provided, the default value for the transactional id will be performance-producer- followed by a random uuid."),
    value("transaction-duration-ms", "TRANSACTION-DURATION", "The maximum duration of each transaction. The commitTransaction will be called after this time has elapsed. The value should be greater than 0. If the transactional id is specified via --command-property, --command-config or --transactional-id but --transaction-duration-ms is not specified, the default value will be 3000.").long(),
    value("warmup-records", "WARMUP-RECORDS", "The number of records to treat as warmup. These initial records will not be included in steady-state statistics. An additional summary line will be printed describing the steady-state statistics.").long().default("0"),
    value("reporting-interval", "INTERVAL-MS", "Interval in milliseconds at which to print progress info.").long().default("5000"),
    flag("help", "Print this (-h)."),
    super::super::options::former("h", "help"),
];

pub static TOOL: Tool = Tool {
    name: "kafka-producer-perf-test",
    about: "This tool is used to verify the producer performance.",
    options: OPTIONS,
    run,
};

const DEFAULT_TRANSACTION_DURATION_MS: i64 = 3000;
const DEFAULT_TRANSACTION_TIMEOUT_MS: i32 = 60_000;

/// Records in transactions.
#[derive(Debug, PartialEq)]
struct Transactional {
    id: String,
    /// A transaction is committed behind the record that comes so long after its first one.
    duration_ms: i64,
    timeout_ms: i32,
}

/// What is sent.
#[derive(Debug)]
enum Payload {
    /// Random capital letters.
    Random(Vec<u8>),
    /// One of these.
    Lines(Vec<Vec<u8>>),
    /// The record's number.
    Monotonic,
}

#[derive(Debug)]
struct Options {
    topic: String,
    records: i64,
    warmup: i64,
    throughput: f64,
    interval_ms: i64,
    payload: Payload,
    producer: BTreeMap<String, String>,
    transactional: Option<Transactional>,
}

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&spread(args)).map_err(|e| Stop::Usage(e.to_string()))?;
    if parsed.count == 0 || parsed.has("help") {
        say!("{}\n{}", tool.about, super::super::options::help(OPTIONS).trim_end())?;
        return Ok(());
    }
    let options = options(&parsed)?;
    let config = client_config(&options.producer)?;
    run_beside(async {
        let client = Client::connect(config).await.map_err(CallError::from)?;
        let producer = match &options.transactional {
            Some(wanted) => Producer::transactional(client, &wanted.id, wanted.timeout_ms),
            None => Producer::new(client),
        };
        let producer = producer.map_err(CallError::from)?;
        if options.transactional.is_some() {
            producer.init_transactions().await.map_err(CallError::from)?;
        }
        if options.warmup > 0 {
            say!(
                "Warmup first {} records. Steady state results will print after the complete test summary.",
                options.warmup
            )?;
        }
        let run = Run::new(&options);
        let sent = send(&producer, options, &run).await;
        if sent.is_ok() {
            producer.close().await;
        }
        run.end(sent).await
    })
}

/// Each of the values that follow `--command-property` or `--producer-props` on its own.
fn spread(args: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(args.len());
    let mut many: Option<String> = None;
    let mut is_first = false;
    for arg in args {
        if arg.starts_with('-') {
            many = Some(arg.clone()).filter(|a| ["--command-property", "--producer-props"].contains(&a.as_str()));
            is_first = true;
        } else if let Some(option) = &many {
            if !is_first {
                out.push(option.clone());
            }
            is_first = false;
        }
        out.push(arg);
    }
    out
}

fn options(parsed: &Parsed) -> Result<Options, Stop> {
    let usage = |sentence: &str| Stop::Usage(sentence.to_owned());
    for name in ["topic", "num-records", "throughput"] {
        if !parsed.has(name) {
            return Err(Stop::Usage(format!("argument --{name} is required")));
        }
    }
    let payloads = ["record-size", "payload-file", "payload-monotonic"];
    let given: Vec<&&str> = payloads.iter().filter(|p| parsed.has(p)).collect();
    match given.as_slice() {
        [] => return Err(usage("one of the arguments --record-size --payload-file --payload-monotonic is required")),
        [_] => {}
        [one, two, ..] => return Err(Stop::Usage(format!("argument --{two}: not allowed with argument --{one}"))),
    }
    if let Some(extra) = parsed.rest.first() {
        return Err(Stop::Usage(format!("unrecognized arguments: '{extra}'")));
    }
    let records = parsed.long("num-records")?.unwrap_or(0);
    let warmup = parsed.long("warmup-records")?.unwrap_or(0).max(0);
    let throughput = parsed.text("throughput")?.unwrap_or_default();
    let options = Options {
        topic: parsed.text("topic")?.unwrap_or_default().to_owned(),
        records,
        warmup,
        throughput: throughput.parse().map_err(|_| {
            Stop::Usage(format!(
                "argument --throughput: could not convert '{throughput}' to Double (64 bit floating point)"
            ))
        })?,
        interval_ms: parsed.long("reporting-interval")?.unwrap_or(0),
        payload: Payload::Monotonic,
        producer: BTreeMap::new(),
        transactional: None,
    };
    if records <= 0 {
        return Err(usage("--num-records should be greater than zero."));
    }
    if warmup >= records {
        return Err(usage(
            "The value for --warmup-records must be strictly fewer than the number of records in the test, --num-records.",
        ));
    }
    if parsed.int("record-size")?.is_some_and(|size| size <= 0) {
        return Err(usage("--record-size should be greater than zero."));
    }
    let sources = ["bootstrap-server", "command-property", "producer-props", "producer.config", "command-config"];
    if !sources.iter().any(|s| parsed.has(s)) {
        return Err(usage(
            "At least one of --bootstrap-server, --command-property, --producer-props, --producer.config or --command-config \
             must be specified.",
        ));
    }
    for (today, before) in [("command-property", "producer-props"), ("command-config", "producer.config")] {
        if parsed.has(today) && parsed.has(before) {
            return Err(Stop::Usage(format!("--{today} and --{before} cannot be specified together.")));
        }
    }
    if options.interval_ms <= 0 {
        return Err(usage("--reporting-interval should be greater than zero."));
    }
    refuse_metrics(parsed.has("print-metrics"))?;
    if parsed.long("transaction-duration-ms")?.is_some_and(|duration| duration <= 0) {
        return Err(usage("--transaction-duration-ms should be greater than zero."));
    }
    let mut producer = properties(parsed)?;
    let transactional = transactional(parsed, &mut producer)?;
    Ok(Options { payload: payload(parsed)?, producer, transactional, ..options })
}

/// Whether there are transactions, which takes one of three settings; the client is told of them apart from its properties.
fn transactional(parsed: &Parsed, producer: &mut BTreeMap<String, String>) -> Result<Option<Transactional>, Stop> {
    let id = producer.remove("transactional.id");
    let duration_ms = parsed.long("transaction-duration-ms")?;
    let id = parsed.text("transactional-id")?.map(str::to_owned).or(id);
    if id.is_none() && duration_ms.is_none() {
        return Ok(None);
    }
    let timeout_ms = match producer.remove("transaction.timeout.ms") {
        None => DEFAULT_TRANSACTION_TIMEOUT_MS,
        Some(text) => text.trim().parse().map_err(|_| {
            Stop::Failed(format!(
                "Invalid value {text} for configuration transaction.timeout.ms: Not a number of type INT"
            ))
        })?,
    };
    Ok(Some(Transactional {
        id: id.unwrap_or_else(|| format!("performance-producer-{}", Uuid::random())),
        duration_ms: duration_ms.unwrap_or(DEFAULT_TRANSACTION_DURATION_MS),
        timeout_ms,
    }))
}

fn payload(parsed: &Parsed) -> Result<Payload, Stop> {
    if let Some(size) = parsed.int("record-size")? {
        return Ok(Payload::Random(vec![0; usize::try_from(size).unwrap_or(0)]));
    }
    let Some(name) = parsed.text("payload-file")? else { return Ok(Payload::Monotonic) };
    let path = std::path::absolute(Path::new(name))?;
    say!("Reading payloads from: {}", path.display())?;
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    if text.is_empty() {
        return Err(Stop::Failed("File does not exist or empty file provided.".to_owned()));
    }
    let delimiter = parsed.text("payload-delimiter")?.unwrap_or_default();
    let delimiter = regex::Regex::new(if delimiter == "\\n" { "\n" } else { delimiter })
        .map_err(|_| Stop::Failed(format!("--payload-delimiter {delimiter} is an invalid regex.")))?;
    let mut lines: Vec<Vec<u8>> = delimiter.split(&text).map(|line| line.as_bytes().to_vec()).collect();
    // What ends with the delimiter has no empty payload behind it.
    lines.pop_if(|last| last.is_empty());
    say!("Number of records read: {}", lines.len())?;
    Ok(Payload::Lines(lines))
}

fn properties(parsed: &Parsed) -> Result<BTreeMap<String, String>, Stop> {
    let mut properties = BTreeMap::new();
    for (option, instead) in [("producer-props", "command-property"), ("producer.config", "command-config")] {
        if parsed.has(option) {
            say!(
                "Option --{option} has been deprecated and will be removed in a future version. Use --{instead} instead."
            )?;
        }
    }
    for option in ["producer.config", "command-config"] {
        if let Some(path) = parsed.text(option)? {
            properties = load_properties(path)?;
        }
    }
    for pair in parsed.all("producer-props").iter().chain(parsed.all("command-property")) {
        let (name, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.is_empty() && !value.contains('='))
            .ok_or_else(|| Stop::Failed(format!("Invalid property: {pair}")))?;
        properties.insert(name.to_owned(), value.to_owned());
    }
    properties.entry("client.id".to_owned()).or_insert_with(|| "perf-producer-client".to_owned());
    if let Some(servers) = parsed.text("bootstrap-server")? {
        properties.insert("bootstrap.servers".to_owned(), servers.to_owned());
    }
    Ok(properties)
}

/// A record on its way.
struct Sent {
    delivery: Delivery,
    start_ms: i64,
    bytes: i64,
    /// After the warm-up.
    is_steady: bool,
}

/// The figures of a run: all records, and those after the warm-up.
struct Figures {
    all: Stats,
    steady: Option<Stats>,
    failed: i64,
}

/// Who waits for the records of a partition.
struct Watcher {
    records: mpsc::UnboundedSender<Sent>,
    task: JoinHandle<Result<(), Stop>>,
}

/// One watcher for each partition, so that no record waits behind another partition's.
struct Run {
    figures: Arc<Mutex<Figures>>,
    watchers: Mutex<HashMap<i32, Watcher>>,
}

impl Run {
    fn new(options: &Options) -> Run {
        let all = Stats::new(options.records, options.interval_ms, false);
        let figures = Figures { all, steady: None, failed: 0 };
        Run { figures: Arc::new(Mutex::new(figures)), watchers: Mutex::default() }
    }

    fn watch(&self, sent: Sent) {
        let mut watchers = self.watchers.lock();
        let watcher = watchers.entry(sent.delivery.partition().partition).or_insert_with(|| {
            let (records, receiver) = mpsc::unbounded_channel();
            Watcher { records, task: tokio::spawn(watch(receiver, Arc::clone(&self.figures))) }
        });
        // A watcher ends early when standard output is gone, which the end tells.
        let _ = watcher.records.send(sent);
    }

    fn fail(&self, error: caudal_client::Error) {
        fail(&mut self.figures.lock(), error);
    }

    /// Waits for the watchers, and prints the last lines unless sending came to an end before.
    async fn end(self, sent: Result<(), Stop>) -> Result<(), Stop> {
        for Watcher { records, task } in self.watchers.into_inner().into_values() {
            drop(records);
            task.await.unwrap_or(Ok(()))?;
        }
        let mut figures = self.figures.lock();
        if figures.failed > 1 {
            tell!("{} records were not written", figures.failed);
        }
        sent?;
        figures.all.print_total()?;
        match &mut figures.steady {
            Some(steady) => steady.print_total(),
            None => Ok(()),
        }
    }
}

/// The first failure is told, further ones are counted.
fn fail(figures: &mut Figures, error: caudal_client::Error) {
    if figures.failed == 0 {
        tell!("{}", CallError::from(error).java());
    }
    figures.failed += 1;
}

async fn watch(mut sent: mpsc::UnboundedReceiver<Sent>, figures: Arc<Mutex<Figures>>) -> Result<(), Stop> {
    while let Some(Sent { delivery, start_ms, bytes, is_steady }) = sent.recv().await {
        let written = delivery.await;
        let mut figures = figures.lock();
        match written {
            Ok(_) => {
                let now = now_ms();
                figures.all.record(now - start_ms, bytes, now)?;
                if let Some(steady) = figures.steady.as_mut().filter(|_| is_steady) {
                    steady.record(now - start_ms, bytes, now)?;
                }
            }
            Err(error) => fail(&mut figures, error),
        }
    }
    Ok(())
}

/// What a transactional producer ends with, as Java names what it throws.
fn by_class(error: caudal_client::Error) -> Stop {
    Stop::Failed(CallError::from(error).java())
}

async fn send(producer: &Producer, mut options: Options, run: &Run) -> Result<(), Stop> {
    let mut random = Random::new();
    let mut throttle = Throttle::new(options.throughput);
    let mut number;
    // When the transaction that is open was begun.
    let mut begun_ms = None;
    for i in 0..options.records {
        if options.transactional.is_some() && begun_ms.is_none() {
            producer.begin_transaction().map_err(by_class)?;
            begun_ms = Some(now_ms());
        }
        let value: &[u8] = match &mut options.payload {
            Payload::Random(bytes) => {
                random.letters(bytes);
                bytes
            }
            Payload::Lines(lines) => lines.get(random.below(lines.len())).map_or(&[], Vec::as_slice),
            Payload::Monotonic => {
                number = i.to_string();
                number.as_bytes()
            }
        };
        let start_ms = now_ms();
        let is_steady = options.warmup > 0 && i >= options.warmup;
        if is_steady && i == options.warmup {
            let mut figures = run.figures.lock();
            figures.steady = Some(Stats::new(options.records - options.warmup, options.interval_ms, true));
            figures.all.is_quiet = true;
        }
        match producer.send(Record::new(&options.topic, None, Some(value))).await {
            Ok(delivery) => {
                let bytes = i64::try_from(value.len()).unwrap_or(i64::MAX);
                run.watch(Sent { delivery, start_ms, bytes, is_steady });
            }
            Err(error) => run.fail(error),
        }
        if let Some(wanted) = &options.transactional
            && begun_ms.is_some_and(|begun_ms| wanted.duration_ms <= start_ms - begun_ms)
        {
            producer.commit_transaction().await.map_err(by_class)?;
            begun_ms = None;
        }
        if let Some(pause) = throttle.pause(i) {
            tokio::time::sleep(pause).await;
        }
    }
    if begun_ms.is_some() {
        producer.commit_transaction().await.map_err(by_class)?;
    }
    Ok(())
}

/// Random enough that records do not compress better than the original's; xorshift64*, seeded alike in each run.
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Capital letters, eight from each random word.
    fn letters(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            for (byte, random) in chunk.iter_mut().zip(self.next().to_le_bytes()) {
                *byte = b'A' + ((u16::from(random) * 26) >> 8) as u8;
            }
        }
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 11).unwrap_or(0).checked_rem(n).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, Stop> {
        let args = line.split_whitespace().map(str::to_owned).collect();
        options(&TOOL.parse(&spread(args))?)
    }

    #[test]
    fn properties_may_follow_one_another() {
        let line = "--topic t --num-records 5 --record-size 9 --producer-props acks=1 linger.ms=7 --throughput -1 \
             --bootstrap-server h:1";
        let options = parsed(line).unwrap();
        let found = ["acks", "linger.ms", "bootstrap.servers"].map(|name| options.producer[name].as_str());
        assert_eq!((found, options.throughput), (["1", "7", "h:1"], -1.0));
    }

    #[test]
    fn mistakes() {
        let full = "--bootstrap-server h:1 --topic t --num-records 5 --throughput 1";
        let cases = [
            ("--topic t", "argument --num-records is required"),
            (full, "one of the arguments --record-size --payload-file --payload-monotonic is required"),
            (&format!("{full} --record-size 1 --payload-monotonic"), "not allowed with argument --record-size"),
            (&format!("{full} --record-size 0"), "--record-size should be greater than zero."),
            (&format!("{full} --record-size 1 --warmup-records 5"), "must be strictly fewer"),
            (&format!("{full} --record-size 1 --command-property a"), "Invalid property: a"),
            (&format!("{full} --record-size 1 --transaction-duration-ms 0"), "should be greater than zero"),
            (&format!("{full} --record-size 1 --print-metrics"), "leave it out"),
        ];
        for (line, sentence) in cases {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains(sentence), "{line}: {error}");
        }
    }

    #[test]
    fn transactions_are_asked_for_in_three_ways() {
        let of = |more: &str| {
            let full = "--bootstrap-server h:1 --topic t --num-records 5 --throughput 1 --record-size 1";
            let options = parsed(&format!("{full} {more}")).unwrap();
            assert!(!options.producer.contains_key("transactional.id"));
            options.transactional.map(|wanted| (wanted.id, wanted.duration_ms))
        };
        assert_eq!(of(""), None);
        assert_eq!(of("--transactional-id a"), Some(("a".to_owned(), 3000)));
        let both = of("--command-property transactional.id=b --transaction-duration-ms 7");
        assert_eq!(both, Some(("b".to_owned(), 7)));
        assert_eq!(of("--command-property transactional.id=b --transactional-id a"), Some(("a".to_owned(), 3000)));
        assert!(of("--transaction-duration-ms 7").unwrap().0.starts_with("performance-producer-"));
    }

    #[test]
    fn letters_are_capital_ones() {
        let mut bytes = [0; 1001];
        Random::new().letters(&mut bytes);
        assert!(bytes.iter().all(u8::is_ascii_uppercase));
        assert!((b'A'..=b'Z').all(|letter| bytes.contains(&letter)));
    }
}
