//! The consumer against a real cluster, see [`crate::cluster`].

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use caudal_client::admin::OffsetAndMetadata;
use caudal_client::{Consumer, ConsumerRecord, Error, OffsetSpec, RebalanceListener, Record, Topics};
use caudal_protocol::{TopicPartition, Uuid};
use parking_lot::Mutex;

use crate::cluster::{Cluster, OwnBroker};
use crate::peer::{admin, new_topic};
use crate::peer_producer::{config, producer};

pub const DEADLINE: Duration = Duration::from_secs(30);

pub async fn consumer(servers: &str, properties: &[(&str, &str)]) -> Consumer {
    Consumer::connect(config(servers, properties)).await.unwrap()
}

pub async fn send(servers: &str, topic: &str, partition: i32, values: std::ops::Range<u32>) {
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

pub fn number(record: &ConsumerRecord) -> u32 {
    u32::from_be_bytes(record.value.as_deref().unwrap().try_into().unwrap())
}

/// Polls until `count` records have come.
pub async fn take(consumer: &mut Consumer, count: usize) -> Vec<ConsumerRecord> {
    let mut all = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    while all.len() < count {
        assert!(Instant::now() < deadline, "only {} of {count} records came", all.len());
        all.extend(consumer.poll(Duration::from_millis(200)).await.unwrap());
    }
    all
}

#[tokio::test]
async fn assigned_partitions_are_read_sought_and_paused() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
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
pub async fn settle(consumers: &mut [Consumer], partitions: usize) {
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
async fn groups_share_partitions_as_members_come_and_go() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
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
async fn committed_offsets_are_resumed() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
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
async fn topics_that_appear_later_are_taken_in() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
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
async fn static_members_keep_their_partitions_over_a_restart() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
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

/// Sends numbers until there are `enough`, up to 1,000 of them under way; their count, each at the offset of its number.
async fn send_numbers(servers: String, topic: String, enough: Arc<AtomicBool>) -> u32 {
    let producer = producer(&servers, &[]).await;
    let (mut under_way, mut sent, mut written) = (VecDeque::new(), 0u32, 0);
    while !enough.load(Ordering::Relaxed) || !under_way.is_empty() {
        while under_way.len() < 1000 && !enough.load(Ordering::Relaxed) {
            under_way.push_back(producer.send(Record::new(&topic, None, Some(&sent.to_be_bytes()))).await.unwrap());
            sent += 1;
        }
        let Some(delivery) = under_way.pop_front() else { break };
        assert_eq!(delivery.await.unwrap().offset, Some(written));
        written += 1;
    }
    sent
}

/// The broker stops and starts again between a producer and a member of a group: nothing is lost, doubled or reordered.
#[tokio::test(flavor = "multi_thread")]
async fn records_pass_through_restarts_in_order_and_once() {
    for protocol in [("heartbeat.interval.ms", "500"), ("group.protocol", "consumer")] {
        pass_through_restarts(protocol).await;
    }
}

async fn pass_through_restarts(protocol: (&str, &str)) {
    let mut broker = OwnBroker::start().await;
    let servers = broker.addr().to_string();
    let topic = new_topic(&admin(&servers).await, "restart", 1).await;
    let enough = Arc::new(AtomicBool::new(false));
    let sender = tokio::spawn(send_numbers(servers.clone(), topic.clone(), enough.clone()));
    let properties = [("group.id", "g"), ("auto.offset.reset", "earliest"), protocol];
    let mut consumer = consumer(&servers, &properties).await;
    consumer.subscribe(Topics::names([&*topic])).unwrap();
    let mut seen = Vec::new();
    let deadline = Instant::now() + 4 * DEADLINE;
    for _ in 0..2 {
        let mark = seen.len() + 3000;
        while seen.len() < mark {
            assert!(Instant::now() < deadline, "{} records came", seen.len());
            seen.extend(consumer.poll(Duration::from_millis(200)).await.unwrap().iter().map(number));
        }
        broker = broker.restart().await;
    }
    let mark = seen.len() + 3000;
    let mut sent = None;
    let mut sender = Some(sender);
    while sent != Some(seen.len() as u32) {
        assert!(Instant::now() < deadline, "{} of {sent:?} records came", seen.len());
        seen.extend(consumer.poll(Duration::from_millis(200)).await.unwrap().iter().map(number));
        if seen.len() >= mark
            && let Some(sender) = sender.take()
        {
            enough.store(true, Ordering::Relaxed);
            sent = Some(sender.await.unwrap());
        }
    }
    assert_eq!(seen, (0..seen.len() as u32).collect::<Vec<_>>());
    consumer.close().await.unwrap();
    drop(broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_offline_keeps_nobody_from_the_others() {
    let broker = OwnBroker::start().await;
    let servers = broker.addr().to_string();
    let topic = new_topic(&admin(&servers).await, "offline", 3).await;
    for partition in 0..3 {
        send(&servers, &topic, partition, 0..10).await;
    }
    let file_in_its_place = |dir: &Path| {
        let place = dir.join(format!("{topic}-0"));
        std::fs::rename(&place, dir.join("away")).unwrap();
        std::fs::write(&place, "").unwrap();
    };
    let broker = broker.restart_after(file_in_its_place).await;
    for protocol in ["classic", "consumer"] {
        let properties = [("group.id", protocol), ("group.protocol", protocol), ("auto.offset.reset", "earliest")];
        let mut consumer = consumer(&servers, &properties).await;
        consumer.subscribe(Topics::names([&*topic])).unwrap();
        let read = take(&mut consumer, 20).await;
        assert!(read.iter().all(|record| record.partition != 0));
    }
    // Without a key a record goes where it can.
    let producer = producer(&servers, &[]).await;
    for _ in 0..30 {
        let sent = producer.send(Record::new(&topic, None, Some(b"x"))).await.unwrap();
        tokio::time::timeout(DEADLINE, sent).await.unwrap().unwrap();
    }
    drop(broker);
}

#[tokio::test]
async fn a_topic_that_is_made_anew_with_more_partitions_is_read_in_full() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    for protocol in ["classic", "consumer"] {
        let topic = new_topic(&admin, "anew", 2).await;
        for partition in 0..2 {
            send(&servers, &topic, partition, 0..100).await;
        }
        let group = format!("g-{}", Uuid::random());
        let mut properties = vec![
            ("group.id", &*group),
            ("group.protocol", protocol),
            ("allow.auto.create.topics", "false"),
            ("auto.offset.reset", "earliest"),
        ];
        if protocol == "classic" {
            properties.push(("heartbeat.interval.ms", "200"));
        }
        let mut reader = consumer(&servers, &properties).await;
        reader.subscribe(Topics::names([&*topic])).unwrap();
        take(&mut reader, 200).await;
        let deleted = admin.delete_topics(std::slice::from_ref(&topic)).await.unwrap();
        assert_eq!(deleted[0].error_code, 0);
        // A topic may go on being there for a moment.
        while admin.create_topic(&topic, Some(6)).await.is_err() {
            reader.poll(Duration::from_millis(20)).await.unwrap();
        }
        for partition in 0..6 {
            send(&servers, &topic, partition, 0..10).await;
        }
        let records = take(&mut reader, 60).await;
        let partitions: BTreeSet<i32> = records.iter().map(|record| record.partition).collect();
        assert_eq!((records.len(), partitions), (60, (0..6).collect()), "{protocol}");
        reader.close().await.unwrap();
    }
}
