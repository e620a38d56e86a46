//! The `rdkafka` crate against a broker: BOOTSTRAP write RECORDS PREFIX | read (TOPIC RECORDS)...; see ../clients.py.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const WAIT: Duration = Duration::from_secs(60);

/// What a scenario ends with where it fails.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// As the driver writes it: bytes are base64, null is none.
#[derive(serde::Deserialize)]
struct Written {
    key: Option<String>,
    value: Option<String>,
    headers: Vec<WrittenHeader>,
    timestamp: i64,
}

#[derive(serde::Deserialize)]
struct WrittenHeader {
    key: String,
    value: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Record {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    timestamp: i64,
}

impl From<&OwnedMessage> for Record {
    fn from(m: &OwnedMessage) -> Self {
        let headers = m
            .headers()
            .into_iter()
            .flat_map(|h| h.iter())
            .map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec)))
            .collect();
        Record {
            key: m.key().map(<[u8]>::to_vec),
            value: m.payload().map(<[u8]>::to_vec),
            headers,
            timestamp: m.timestamp().to_millis().unwrap_or(-1),
        }
    }
}

fn load(path: &str) -> Result<Vec<Record>, Box<dyn std::error::Error>> {
    let bytes = |text: Option<String>| text.map(|t| BASE64_STANDARD.decode(t)).transpose();
    let written: Vec<Written> = serde_json::from_slice(&std::fs::read(path)?)?;
    written
        .into_iter()
        .map(|w| {
            let headers = w
                .headers
                .into_iter()
                .map(|h| Ok((h.key, bytes(h.value)?)))
                .collect::<Result<_, base64::DecodeError>>()?;
            Ok(Record { key: bytes(w.key)?, value: bytes(w.value)?, headers, timestamp: w.timestamp })
        })
        .collect()
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: found {:.600}, expected {:.600}", format!("{found:?}"), format!("{expected:?}")).into())
}

async fn until(what: &str, mut done: impl FnMut() -> bool) -> Outcome {
    let end = Instant::now() + WAIT;
    while !done() {
        if Instant::now() > end {
            return Err(format!("{what}: not within {} s", WAIT.as_secs()).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn fresh(name: &str) -> String {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

fn config(more: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    // Without the last one librdkafka may not find its only broker again after that was away for a moment.
    config
        .set("bootstrap.servers", std::env::args().nth(1).unwrap_or_default())
        .set("reconnect.backoff.max.ms", "200")
        .set("metadata.recovery.strategy", "none");
    for (key, value) in more {
        config.set(*key, *value);
    }
    config
}

fn admin() -> Result<AdminClient<DefaultClientContext>, KafkaError> {
    config(&[]).create()
}

fn one<T: Clone, E: std::fmt::Debug>(results: &[Result<T, E>]) -> Result<T, String> {
    results.first().ok_or("no answer")?.as_ref().map(T::clone).map_err(|e| format!("{e:?}"))
}

async fn create(
    name: String,
    partitions: i32,
    settings: &[(&str, &str)],
) -> Result<String, Box<dyn std::error::Error>> {
    let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    one(&admin()?.create_topics(&[topic], &AdminOptions::new()).await?)?;
    Ok(name)
}

/// All of a topic up to its end now.
fn everything(topic: &str, level: &str) -> Result<Vec<OwnedMessage>, Box<dyn std::error::Error>> {
    let consumer: BaseConsumer = config(&[
        ("group.id", "everything"),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("auto.offset.reset", "earliest"),
        ("isolation.level", level),
        ("check.crcs", "true"),
    ])
    .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), WAIT)?;
    let mut open: BTreeSet<i32> = metadata.topics().iter().flat_map(|t| t.partitions()).map(|p| p.id()).collect();
    let mut list = TopicPartitionList::new();
    for p in &open {
        list.add_partition_offset(topic, *p, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let (mut found, end) = (Vec::new(), Instant::now() + WAIT);
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(m)) => found.push(m.detach()),
            Some(Err(KafkaError::PartitionEOF(p))) => _ = open.remove(&p),
            Some(Err(e)) => return Err(e.into()),
            None if Instant::now() > end => return Err(format!("no end of {topic}").into()),
            None => {}
        }
    }
    Ok(found)
}

fn values(messages: &[OwnedMessage]) -> Vec<String> {
    messages.iter().map(|m| String::from_utf8_lossy(m.payload().unwrap_or_default()).into_owned()).collect()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

fn read(topic: &str, records: &[Record]) -> Outcome {
    let found = everything(topic, "read_uncommitted")?;
    equal("records", found.len(), records.len())?;
    for (i, (m, r)) in found.iter().zip(records).enumerate() {
        equal(&format!("offset of record {i} of {topic}"), m.offset(), i as i64)?;
        equal(&format!("record {i} of {topic}"), &Record::from(m), r)?;
    }
    Ok(())
}

async fn round_trips(records: &[Record], prefix: &str) -> Outcome {
    for codec in CODECS {
        let topic = create(format!("{prefix}{codec}"), 1, &[]).await?;
        let producer: FutureProducer = config(&[("compression.type", codec), ("linger.ms", "20")]).create()?;
        let mut sent = Vec::new();
        for r in records {
            let mut headers = OwnedHeaders::new();
            for (key, value) in &r.headers {
                headers = headers.insert(Header { key, value: value.as_deref() });
            }
            let mut record: FutureRecord<[u8], [u8]> = FutureRecord::to(&topic).timestamp(r.timestamp).headers(headers);
            record.key = r.key.as_deref();
            record.payload = r.value.as_deref();
            sent.push(producer.send_result(record).map_err(|(e, _)| e)?);
        }
        for (i, delivery) in sent.into_iter().enumerate() {
            equal("offset", delivery.await?.map_err(|(e, _)| e)?.offset, i as i64)?;
        }
        read(&topic, records)?;
    }
    Ok(())
}

/// Reads until it is stopped, and commits then.
struct Member {
    consumer: Arc<StreamConsumer>,
    seen: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Member {
    fn join(topic: &str, group: &str, options: &[(&str, &str)]) -> Result<Self, KafkaError> {
        // Auto commit stores what was handed out, and commits before partitions go to another member.
        let base = [("group.id", group), ("auto.offset.reset", "earliest"), ("enable.auto.commit", "true")];
        let consumer: Arc<StreamConsumer> = Arc::new(config(&[&base, options].concat()).create()?);
        consumer.subscribe(&[topic])?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (reader, records) = (consumer.clone(), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok(m) = reader.recv().await {
                let value = String::from_utf8_lossy(m.payload().unwrap_or_default()).into_owned();
                records.lock().expect("no holder panics").push(value);
            }
        });
        Ok(Member { consumer, seen, task })
    }

    fn has(&self, n: usize) -> bool {
        self.consumer.assignment().is_ok_and(|a| a.count() == n)
    }

    /// Closes the consumer, which commits; what it has read.
    async fn stop(self) -> Result<Vec<String>, KafkaError> {
        self.task.abort();
        let _ = self.task.await;
        self.consumer.commit_consumer_state(CommitMode::Sync).or_else(|e| match e {
            KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset) => Ok(()),
            e => Err(e),
        })?;
        let seen = self.seen.lock().expect("no holder panics").clone();
        Ok(seen)
    }
}

/// Whether exactly these were read, by all of them together.
fn all(expected: &[String], seen: &[&[String]]) -> bool {
    let mut found: Vec<&String> = seen.iter().flat_map(|s| s.iter()).collect();
    let mut wanted: Vec<&String> = expected.iter().collect();
    found.sort();
    wanted.sort();
    found == wanted
}

fn seen(m: &Member) -> Vec<String> {
    m.seen.lock().expect("no holder panics").clone()
}

/// Two members: one joins, one leaves; nothing is missed or read twice; a third goes on where they committed.
async fn group_of(options: &[(&str, &str)]) -> Outcome {
    let (topic, group) = (create(fresh("rdkafka"), 4, &[]).await?, fresh("rdkafka"));
    let producer: FutureProducer = config(&[]).create()?;
    let write = async |range: std::ops::Range<usize>| -> Outcome {
        for i in range {
            let value = i.to_string();
            let record: FutureRecord<str, str> = FutureRecord::to(&topic).partition((i % 4) as i32).payload(&value);
            producer.send(record, WAIT).await.map_err(|(e, _)| e)?;
        }
        Ok(())
    };
    write(0..100).await?;
    let first = Member::join(&topic, &group, options)?;
    until("the first member has all", || first.has(4) && all(&numbers(0..100), &[&seen(&first)])).await?;
    let second = Member::join(&topic, &group, options)?;
    until("two members share", || first.has(2) && second.has(2)).await?;
    write(100..200).await?;
    until("two members read all once", || all(&numbers(0..200), &[&seen(&first), &seen(&second)])).await?;
    let before = first.stop().await?;
    until("the second member has all", || second.has(4)).await?;
    write(200..240).await?;
    until("the second member reads all once", || all(&numbers(0..240), &[&before, &seen(&second)])).await?;
    second.stop().await?;
    let look: BaseConsumer = config(&[("group.id", &group)]).create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_range(&topic, 0, 3);
    let committed: BTreeMap<i32, Offset> =
        look.committed_offsets(list, WAIT)?.elements().iter().map(|e| (e.partition(), e.offset())).collect();
    equal("committed offsets", committed, (0..4).map(|p| (p, Offset::Offset(60))).collect())?;
    write(240..250).await?;
    let third = Member::join(&topic, &group, options)?;
    until("the third member goes on", || all(&numbers(240..250), &[&seen(&third)])).await?;
    third.stop().await?;
    let listed = look.fetch_group_list(Some(&group), WAIT)?;
    equal("groups with this name", listed.groups().len(), 1)?;
    one(&admin()?.delete_groups(&[&group], &AdminOptions::new()).await?)?;
    Ok(())
}

async fn classic_groups() -> Outcome {
    for strategy in ["range", "roundrobin", "cooperative-sticky"] {
        group_of(&[
            ("partition.assignment.strategy", strategy),
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "500"),
        ])
        .await?;
    }
    Ok(())
}

async fn consumer_groups() -> Outcome {
    group_of(&[("group.protocol", "consumer")]).await
}

async fn transactions() -> Outcome {
    let (topic, source, group, identity) = (
        create(fresh("rdkafka"), 1, &[]).await?,
        create(fresh("rdkafka"), 1, &[]).await?,
        fresh("rdkafka"),
        fresh("rdkafka"),
    );
    let start = || -> Result<FutureProducer, KafkaError> {
        let producer: FutureProducer = config(&[("transactional.id", &identity)]).create()?;
        producer.init_transactions(WAIT)?;
        Ok(producer)
    };
    let send = async |producer: &FutureProducer, value: &str| -> Result<(), KafkaError> {
        let record: FutureRecord<str, str> = FutureRecord::to(&topic).payload(value);
        producer.send(record, WAIT).await.map(|_| ()).map_err(|(e, _)| e)
    };
    let consumer: BaseConsumer = config(&[("group.id", &group)]).create()?;
    let metadata = consumer.group_metadata().ok_or("no metadata of the group")?;
    let (producer, mut expected) = (start()?, Vec::new());
    for (round, commit) in [true, false, true, false, true].into_iter().enumerate() {
        producer.begin_transaction()?;
        for i in 0..10 {
            let value = format!("{round}-{i}");
            send(&producer, &value).await?;
            if commit {
                expected.push(value);
            }
        }
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&source, 0, Offset::Offset(round as i64 + 1))?;
        producer.send_offsets_to_transaction(&offsets, &metadata, WAIT)?;
        if commit { producer.commit_transaction(WAIT)? } else { producer.abort_transaction(WAIT)? }
    }
    equal("committed", values(&everything(&topic, "read_committed")?), expected.clone())?;
    equal("all", everything(&topic, "read_uncommitted")?.len(), 50)?;
    let mut list = TopicPartitionList::new();
    list.add_partition(&source, 0);
    let committed = consumer.committed_offsets(list, WAIT)?;
    equal("offset of the transactions", committed.elements().first().map(|e| e.offset()), Some(Offset::Offset(5)))?;
    producer.begin_transaction()?;
    send(&producer, "lost").await?;
    let successor = start()?;
    let fenced = match send(&producer, "zombie").await {
        Err(e) => Err(e),
        Ok(()) => producer.commit_transaction(WAIT),
    };
    equal("a fenced producer writes", fenced.is_ok(), false)?;
    successor.begin_transaction()?;
    send(&successor, "successor").await?;
    successor.commit_transaction(WAIT)?;
    expected.push("successor".into());
    equal("committed after fencing", values(&everything(&topic, "read_committed")?), expected)
}

async fn administration() -> Outcome {
    let topic = create(fresh("rdkafka"), 2, &[("retention.ms", "3600000"), ("cleanup.policy", "compact")]).await?;
    let (admin, options) = (admin()?, AdminOptions::new());
    equal(
        "a topic is created twice",
        create(topic.clone(), 1, &[]).await.map_err(|e| e.to_string().contains("TopicAlreadyExists")).err(),
        Some(true),
    )?;
    let resource = ResourceSpecifier::Topic(&topic);
    let settings = async || -> Result<Vec<Option<String>>, Box<dyn std::error::Error>> {
        let answer = admin.describe_configs([&resource], &options).await?;
        let found = answer.into_iter().next().ok_or("no answer")??;
        let entries: HashMap<String, Option<String>> = found.entries.into_iter().map(|e| (e.name, e.value)).collect();
        Ok(["retention.ms", "cleanup.policy"].iter().map(|n| entries.get(*n).cloned().flatten()).collect())
    };
    equal("config", settings().await?, vec![Some("3600000".into()), Some("compact".into())])?;
    one(&admin
        .alter_configs([&AlterConfig::new(resource.clone()).set("retention.ms", "60000")], &options)
        .await?
        .into_iter()
        .map(|r| r.map(|_| ()))
        .collect::<Vec<_>>())?;
    equal("altered config", settings().await?, vec![Some("60000".into()), Some("delete".into())])?;
    one(&admin.create_partitions([&NewPartitions::new(&topic, 5)], &options).await?)?;
    let metadata = admin.inner().fetch_metadata(Some(&topic), WAIT)?;
    equal("partitions after growing", metadata.topics().first().map(|t| t.partitions().len()), Some(5))?;
    let producer: FutureProducer = config(&[]).create()?;
    for value in numbers(0..10) {
        producer
            .send(FutureRecord::<str, str>::to(&topic).partition(0).payload(&value), WAIT)
            .await
            .map_err(|(e, _)| e)?;
    }
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic, 0, Offset::Offset(7))?;
    admin.delete_records(&before, &options).await?;
    equal("records after a deletion", values(&everything(&topic, "read_uncommitted")?), numbers(7..10))?;
    one(&admin.delete_topics(&[&topic], &options).await?)?;
    equal("a topic is deleted twice", one(&admin.delete_topics(&[&topic], &options).await?).is_ok(), false)
}

async fn broker_killed() -> Outcome {
    let topic = create(fresh("rdkafka"), 1, &[]).await?;
    let producer: FutureProducer = config(&[("enable.idempotence", "true"), ("retry.backoff.ms", "50")]).create()?;
    let mut sent = Vec::new();
    for i in 0..3000 {
        if i == 1000 {
            println!("kill");
        }
        let value = i.to_string();
        sent.push(producer.send_result(FutureRecord::<str, str>::to(&topic).payload(&value)).map_err(|(e, _)| e)?);
        if i % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for (i, delivery) in sent.into_iter().enumerate() {
        equal("offset", delivery.await?.map_err(|(e, _)| e)?.offset, i as i64)?;
    }
    equal("records", values(&everything(&topic, "read_uncommitted")?), numbers(0..3000))
}

/// Prints how a scenario ended; whether it failed.
fn report(name: &str, outcome: Outcome) -> bool {
    match &outcome {
        Ok(()) => println!("ok {name}"),
        Err(e) => println!("FAIL {name}: {}", e.to_string().replace('\n', " ")),
    }
    outcome.is_err()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let mut failed = false;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["read", rest @ ..] => {
            for pair in rest.chunks_exact(2) {
                failed |=
                    report(&format!("read {}", pair[0]), load(pair[1]).and_then(|records| read(pair[0], &records)));
            }
        }
        ["write", file, prefix] => {
            failed |= report("round trips", round_trips(&load(file)?, prefix).await);
            failed |= report("classic groups", classic_groups().await);
            failed |= report("consumer groups", consumer_groups().await);
            failed |= report("transactions", transactions().await);
            failed |= report("administration", administration().await);
            failed |= report("broker killed", broker_killed().await);
        }
        _ => return Err("usage: rdkafka-client BOOTSTRAP write RECORDS PREFIX | read (TOPIC RECORDS)...".into()),
    }
    std::process::exit(i32::from(failed))
}
