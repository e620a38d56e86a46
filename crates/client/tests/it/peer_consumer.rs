//! The consumer against a real cluster, see [`crate::peer`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_client::admin::OffsetAndMetadata;
use caudal_client::{Consumer, ConsumerRecord, Error, OffsetSpec, RebalanceListener, Record, Topics};
use caudal_protocol::{TopicPartition, Uuid};
use parking_lot::Mutex;

use crate::peer::{admin, bootstrap, new_topic};
use crate::peer_producer::{config, cpu_seconds, producer};

const DEADLINE: Duration = Duration::from_secs(30);

async fn consumer(servers: &str, properties: &[(&str, &str)]) -> Consumer {
    Consumer::connect(config(servers, properties)).await.unwrap()
}

async fn send(servers: &str, topic: &str, partition: i32, values: std::ops::Range<u32>) {
    let producer = producer(servers, &[]).await;
    for i in values {
        let value = i.to_be_bytes();
        let record = Record {
            partition: Some(partition),
            timestamp_ms: Some(i64::from(i)),
            ..Record::new(topic, None, Some(&value))
        };
        drop(producer.send(record).await.unwrap());
    }
    producer.close().await;
}

fn number(record: &ConsumerRecord) -> u32 {
    u32::from_be_bytes(record.value.as_deref().unwrap().try_into().unwrap())
}

/// Polls until `count` records have come.
async fn take(consumer: &mut Consumer, count: usize) -> Vec<ConsumerRecord> {
    let mut all = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    while all.len() < count {
        assert!(Instant::now() < deadline, "only {} of {count} records came", all.len());
        all.extend(consumer.poll(Duration::from_millis(200)).await.unwrap());
    }
    all
}

#[tokio::test]
#[ignore = "needs Apache Kafka: conformance/run client"]
async fn assigned_partitions_are_read_sought_and_paused() {
    let servers = bootstrap();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "assign", 2).await;
    send(&servers, &topic, 0, 0..1000).await;
    send(&servers, &topic, 1, 0..10).await;
    let tps = [TopicPartition::new(&*topic, 0), TopicPartition::new(&*topic, 1)];
    let mut consumer = consumer(&servers, &[("auto.offset.reset", "earliest"), ("max.poll.records", "100")]).await;
    consumer.assign(&tps).await;
    let records = take(&mut consumer, 1010).await;
    let first: Vec<u32> = records.iter().filter(|r| r.partition == 0).map(number).collect();
    assert_eq!(first, (0..1000).collect::<Vec<_>>());
    assert_eq!(consumer.position(&tps[0]), Some(1000));
    assert_eq!(consumer.lag(&tps[0]), Some(0));

    consumer.seek(&tps[0], 990).unwrap();
    assert_eq!(take(&mut consumer, 10).await.iter().map(number).collect::<Vec<_>>(), (990..1000).collect::<Vec<_>>());
    let found = consumer.offsets_for_times(&[(tps[0].clone(), 500), (tps[1].clone(), 500)]).await.unwrap();
    assert_eq!(found[0].1.unwrap().offset, 500);
    assert!(found[1].1.is_none());
    consumer.pause(&tps[0]).unwrap();
    consumer.seek_to(&tps[0], OffsetSpec::Earliest).unwrap();
    consumer.seek_to(&tps[1], OffsetSpec::Earliest).unwrap();
    assert_eq!(take(&mut consumer, 10).await.len(), 10);
    consumer.resume(&tps[0]).unwrap();
    assert_eq!(take(&mut consumer, 1000).await.len(), 1000);
    // Beyond the end: reset to the beginning.
    consumer.seek(&tps[1], 5000).unwrap();
    assert_eq!(take(&mut consumer, 10).await.len(), 10);

    let mut strict = self::consumer(&servers, &[("auto.offset.reset", "none")]).await;
    strict.assign(&tps[..1]).await;
    strict.seek(&tps[0], 5000).unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        match strict.poll(Duration::from_millis(100)).await {
            Err(Error::OffsetOutOfRange { offset: 5000, .. }) => break,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
}

#[derive(Default, Clone)]
struct Log(Arc<Mutex<Vec<String>>>);

impl RebalanceListener for Log {
    fn on_assigned(&mut self, partitions: &[TopicPartition]) {
        self.0.lock().push(format!("+{}", partitions.len()));
    }

    fn on_revoked(&mut self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, OffsetAndMetadata)> {
        self.0.lock().push(format!("-{}", partitions.len()));
        Vec::new()
    }
}

/// Polls all until their assignments cover `partitions` and nobody has none.
async fn settle(consumers: &mut [Consumer], partitions: usize) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        for consumer in consumers.iter_mut() {
            consumer.poll(Duration::from_millis(50)).await.unwrap();
        }
        let all: Vec<TopicPartition> = consumers.iter().flat_map(Consumer::assignment).collect();
        let distinct: BTreeSet<_> = all.iter().collect();
        let fair = consumers.iter().all(|c| !c.assignment().is_empty());
        if distinct.len() == partitions && all.len() == partitions && fair {
            return;
        }
        let held: Vec<usize> = consumers.iter().map(|c| c.assignment().len()).collect();
        assert!(Instant::now() < deadline, "the group did not settle: {held:?}");
    }
}

#[tokio::test]
#[ignore = "needs Apache Kafka: conformance/run client"]
async fn groups_share_partitions_as_members_come_and_go() {
    let servers = bootstrap();
    let admin = admin(&servers).await;
    for strategy in ["range", "roundrobin", "cooperative-sticky", "range,cooperative-sticky"] {
        let topic = new_topic(&admin, "group", 6).await;
        let group = format!("g-{}", Uuid::random());
        let properties = [
            ("group.id", &*group),
            ("partition.assignment.strategy", strategy),
            ("heartbeat.interval.ms", "200"),
            ("auto.offset.reset", "earliest"),
        ];
        let log = Log::default();
        let mut members = Vec::new();
        for size in 1..=3 {
            let mut member = consumer(&servers, &properties).await;
            member.subscribe(Topics::names([&*topic])).unwrap();
            if size == 1 {
                member.set_rebalance_listener(Box::new(log.clone()));
            }
            members.push(member);
            settle(&mut members, 6).await;
        }
        members.remove(1).close().await.unwrap();
        settle(&mut members, 6).await;
        eprintln!("{strategy}: the first member saw {}", log.0.lock().join(" "));
        let described = admin.describe_groups(std::slice::from_ref(&group)).await.unwrap();
        assert_eq!((&*described[0].group_state, described[0].members.len()), ("Stable", 2));
        for member in members {
            member.close().await.unwrap();
        }
        let described = admin.describe_groups(std::slice::from_ref(&group)).await.unwrap();
        assert_eq!(described[0].group_state, "Empty");
    }
}

#[tokio::test]
#[ignore = "needs Apache Kafka: conformance/run client"]
async fn committed_offsets_are_resumed() {
    let servers = bootstrap();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "resume", 1).await;
    let group = format!("g-{}", Uuid::random());
    send(&servers, &topic, 0, 0..100).await;
    let properties = |auto| {
        [
            ("group.id", &*group),
            ("enable.auto.commit", auto),
            ("auto.offset.reset", "earliest"),
            ("max.poll.records", "30"),
        ]
    };
    let tp = TopicPartition::new(&*topic, 0);
    // Manual commits, by a member.
    let mut first = consumer(&servers, &properties("false")).await;
    first.subscribe(Topics::pattern(&topic).unwrap()).unwrap();
    assert_eq!(take(&mut first, 30).await.len(), 30);
    first.commit().await.unwrap();
    assert_eq!(take(&mut first, 30).await.len(), 30);
    first.close().await.unwrap();
    // Auto commit on close.
    let mut second = consumer(&servers, &properties("true")).await;
    second.subscribe(Topics::names([&*topic])).unwrap();
    let records = take(&mut second, 30).await;
    assert_eq!(records.iter().map(number).collect::<Vec<_>>(), (30..60).collect::<Vec<_>>());
    second.close().await.unwrap();
    // Without a generation.
    let mut third = consumer(&servers, &properties("false")).await;
    third.assign(std::slice::from_ref(&tp)).await;
    assert_eq!(take(&mut third, 30).await.iter().map(number).collect::<Vec<_>>(), (60..90).collect::<Vec<_>>());
    third.commit_offsets(&[(tp.clone(), 95.into())]).await.unwrap();
    let committed = third.committed(std::slice::from_ref(&tp)).await.unwrap();
    assert_eq!(committed[0].committed.as_ref().unwrap().as_ref().unwrap().offset, 95);
}

#[tokio::test]
#[ignore = "needs Apache Kafka: conformance/run client"]
async fn topics_that_appear_later_are_taken_in() {
    let servers = bootstrap();
    let admin = admin(&servers).await;
    let group = format!("g-{}", Uuid::random());
    let topic = format!("later-{}", Uuid::random()).replace("--", "-");
    let present = new_topic(&admin, "present", 1).await;
    let mut members = Vec::new();
    for names in [vec![&*present], vec![&*present, &*topic]] {
        let properties =
            [("group.id", &*group), ("heartbeat.interval.ms", "200"), ("allow.auto.create.topics", "false")];
        let mut member = consumer(&servers, &properties).await;
        member.subscribe(Topics::names(names)).unwrap();
        member.poll(Duration::from_millis(100)).await.unwrap();
        members.push(member);
    }
    let deadline = Instant::now() + DEADLINE;
    let mut created = false;
    while members[1].assignment().iter().filter(|tp| tp.topic == topic).count() < 2 {
        for member in &mut members {
            member.poll(Duration::from_millis(50)).await.unwrap();
        }
        if !created && members.iter().any(|m| !m.assignment().is_empty()) {
            admin.create_topic(&topic, Some(2)).await.unwrap();
            created = true;
        }
        assert!(Instant::now() < deadline);
    }
}

#[tokio::test]
#[ignore = "needs Apache Kafka: conformance/run client"]
async fn static_members_keep_their_partitions_over_a_restart() {
    let servers = bootstrap();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "static", 4).await;
    let group = format!("g-{}", Uuid::random());
    let properties = |id: &'static str| {
        [("group.id", group.clone()), ("group.instance.id", id.to_owned()), ("heartbeat.interval.ms", "200".to_owned())]
    };
    let mut members = Vec::new();
    for id in ["a", "b"] {
        let mut config = caudal_client::ClientConfig::new(&servers);
        for (name, value) in properties(id) {
            config.put(name, value).unwrap();
        }
        let mut member = Consumer::connect(config).await.unwrap();
        member.subscribe(Topics::names([&*topic])).unwrap();
        members.push(member);
        settle(&mut members, 4).await;
    }
    let before = members[1].assignment();
    let generation = members[0].group_member().generation;
    members.pop().unwrap().close().await.unwrap();
    let mut config = caudal_client::ClientConfig::new(&servers);
    for (name, value) in properties("b") {
        config.put(name, value).unwrap();
    }
    let mut again = Consumer::connect(config).await.unwrap();
    again.subscribe(Topics::names([&*topic])).unwrap();
    members.push(again);
    settle(&mut members, 4).await;
    assert_eq!(members[1].assignment(), before);
    assert_eq!(members[0].group_member().generation, generation, "no rebalance");
}

/// A measurement: `cargo test --release -p caudal-client -- --ignored --nocapture consume_rate`
#[tokio::test]
#[ignore = "a measurement, by hand"]
async fn by_hand_consume_rate() {
    let servers = bootstrap();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "rate", 6).await;
    let count = 2_000_000;
    let producer = producer(&servers, &[]).await;
    for _ in 0..count {
        drop(producer.send(Record::new(&topic, None, Some(&[7; 100]))).await.unwrap());
    }
    producer.close().await;
    let mut consumer = consumer(&servers, &[("auto.offset.reset", "earliest"), ("max.poll.records", "10000")]).await;
    consumer.assign(&(0..6).map(|p| TopicPartition::new(&*topic, p)).collect::<Vec<_>>()).await;
    let (started, cpu, mut seen) = (Instant::now(), cpu_seconds(), 0);
    while seen < count {
        seen += consumer.poll(Duration::from_secs(1)).await.unwrap().len();
    }
    let (wall, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    eprintln!("{:.0} records/s; {:.0} records per CPU second", seen as f64 / wall, seen as f64 / cpu);
}

/// `cargo test -p caudal-client -- --ignored --nocapture through_restarts`, and kill and restart the broker
/// within its 30 seconds.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs somebody who restarts the broker, by hand"]
async fn by_hand_records_pass_through_restarts_in_order_and_once() {
    let servers = bootstrap();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "restart", 1).await;
    let group = format!("g-{}", Uuid::random());
    let sender = tokio::spawn({
        let (servers, topic) = (servers.clone(), topic.clone());
        async move {
            let producer = producer(&servers, &[]).await;
            let (started, mut deliveries, mut next) = (Instant::now(), Vec::new(), 0u32);
            while started.elapsed() < Duration::from_secs(30) {
                for _ in 0..100 {
                    let value = next.to_be_bytes();
                    deliveries.push(producer.send(Record::new(&topic, None, Some(&value))).await.unwrap());
                    next += 1;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for (i, delivery) in deliveries.into_iter().enumerate() {
                assert_eq!(delivery.await.unwrap().offset, Some(i as i64));
            }
            next
        }
    });
    let properties = [("group.id", &*group), ("auto.offset.reset", "earliest"), ("heartbeat.interval.ms", "500")];
    let mut consumer = consumer(&servers, &properties).await;
    consumer.subscribe(Topics::names([&*topic])).unwrap();
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !sender.is_finished() || seen.len() < 1000 || consumer.lag(&TopicPartition::new(&*topic, 0)) != Some(0) {
        match consumer.poll(Duration::from_millis(500)).await {
            Ok(records) => seen.extend(records.iter().map(number)),
            Err(error) => eprintln!("poll: {error}"),
        }
        assert!(Instant::now() < deadline);
    }
    let sent = sender.await.unwrap();
    while seen.len() < sent as usize {
        seen.extend(consumer.poll(Duration::from_millis(500)).await.unwrap().iter().map(number));
        assert!(Instant::now() < deadline, "{} of {sent}", seen.len());
    }
    let mut distinct = seen.clone();
    distinct.sort_unstable();
    distinct.dedup();
    eprintln!("{sent} sent, {} read, {} distinct", seen.len(), distinct.len());
    assert_eq!(distinct, (0..sent).collect::<Vec<_>>());
}

/// A measurement as `consume_rate`: one record at a time, from send to poll.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, by hand"]
async fn by_hand_end_to_end_latency() {
    let servers = bootstrap();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "latency", 1).await;
    let producer = producer(&servers, &[("linger.ms", "0")]).await;
    let mut consumer = consumer(&servers, &[("auto.offset.reset", "earliest")]).await;
    consumer.assign(&[TopicPartition::new(&*topic, 0)]).await;
    let mut micros = Vec::new();
    for i in 0..3000u32 {
        let started = Instant::now();
        let delivery = producer.send(Record::new(&topic, None, Some(&i.to_be_bytes()))).await.unwrap();
        let records = take(&mut consumer, 1).await;
        assert_eq!(records.iter().map(number).collect::<Vec<_>>(), [i]);
        micros.push(started.elapsed().as_micros());
        delivery.await.unwrap();
    }
    micros.drain(..200);
    micros.sort_unstable();
    let at = |share: f64| micros[(micros.len() as f64 * share) as usize];
    eprintln!("end to end: p50 {} us, p99 {} us, p99.9 {} us", at(0.5), at(0.99), at(0.999));
}
