//! The admin client, the fetcher and the metadata against a real cluster, see [`crate::cluster`].

use std::time::{Duration, Instant};

use caudal_client::admin::{ConfigResourceType, OffsetAndMetadata};
use caudal_client::{
    Admin, Client, ClientConfig, Error, Fetcher, Isolation, OffsetRange, OffsetSpec, Producer, Record, Topics,
};
use caudal_protocol::messages::create_topics_request::CreatableTopic;
use caudal_protocol::messages::describe_configs_request::DescribeConfigsResource;
use caudal_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};

use crate::cluster::Cluster;

pub async fn admin(servers: &str) -> Admin {
    Admin::connect(ClientConfig::new(servers)).await.unwrap()
}

/// A topic of its own for one test.
pub async fn new_topic(admin: &Admin, prefix: &str, partitions: i32) -> String {
    let name = format!("{prefix}-{}", Uuid::random()).replace("--", "-");
    admin.create_topic(&name, Some(partitions)).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match admin.client().topic(&name).await {
            Ok(topic) if topic.partitions.iter().all(|p| p.leader.is_some()) => return name,
            _ if Instant::now() > deadline => panic!("{name} got no leader"),
            _ => tokio::task::yield_now().await,
        }
    }
}

/// Writes one batch; returns its first offset.
async fn produce(client: &Client, topic: &str, partition: i32, values: &[&str]) -> i64 {
    let config = ClientConfig::new(client.config().get("bootstrap.servers")).set("linger.ms", "1000").unwrap();
    let producer = Producer::connect(config).await.unwrap();
    let mut deliveries = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let record = Record {
            partition: Some(partition),
            timestamp_ms: Some(1_000 + i as i64),
            ..Record::new(topic, None, Some(value.as_bytes()))
        };
        deliveries.push(producer.send(record).await.unwrap());
    }
    producer.close().await;
    deliveries.remove(0).await.unwrap().offset.unwrap()
}

#[tokio::test]
async fn topics_are_created_described_altered_and_deleted() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let name = new_topic(&admin, "admin", 2).await;
    let again = admin.create_topic(&name, Some(1)).await.unwrap_err();
    assert_eq!(again.code(), Some(ErrorCode::TopicAlreadyExists), "{again}");

    let bad =
        CreatableTopic { name: "bad name!".into(), num_partitions: 1, replication_factor: 1, ..Default::default() };
    let results = admin.create_topics(vec![bad], true).await.unwrap();
    assert_eq!(results[0].error_code, ErrorCode::InvalidTopicException.code());

    let described = admin.describe_topics(Some(&[name.clone(), "no-such-topic".into()])).await.unwrap();
    let mine = described.iter().find(|t| t.name.as_deref() == Some(&name)).unwrap();
    assert_eq!(mine.partitions.len(), 2);
    assert!(described.iter().any(|t| t.error_code == ErrorCode::UnknownTopicOrPartition.code()));
    assert!(admin.list_topics().await.unwrap().iter().any(|t| t.name == name));

    let resource = || ConfigResourceType::Topic.id();
    let config = AlterableConfig { name: "retention.ms".into(), config_operation: 0, value: Some("12345".into()) };
    let altered = admin
        .incremental_alter_configs(
            vec![AlterConfigsResource {
                resource_type: resource(),
                resource_name: name.clone(),
                configs: vec![config],
            }],
            false,
        )
        .await
        .unwrap();
    assert_eq!(altered[0].error_code, 0);
    // A change takes a moment from the controller to the broker that is asked.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let wanted =
            DescribeConfigsResource { resource_type: resource(), resource_name: name.clone(), ..Default::default() };
        let configs = admin.describe_configs(vec![wanted], true, false).await.unwrap();
        if configs[0].configs.iter().any(|c| c.name == "retention.ms" && c.value.as_deref() == Some("12345")) {
            break;
        }
        assert!(Instant::now() < deadline, "{configs:?}");
    }

    let deleted = admin.delete_topics(std::slice::from_ref(&name)).await.unwrap();
    assert_eq!(deleted[0].error_code, 0);
    let cluster = admin.describe_cluster(false).await.unwrap();
    assert!(!cluster.brokers.is_empty());
    assert!(!admin.api_versions().await.unwrap().is_empty());
    assert!(!admin.describe_log_dirs(&[], None).await.unwrap().is_empty());
    assert!(admin.list_partition_reassignments(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn group_offsets_are_committed_read_and_deleted() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "offsets", 1).await;
    let group = format!("g-{}", Uuid::random());
    let tp = TopicPartition::new(topic, 0);
    let offset = OffsetAndMetadata { offset: 7, leader_epoch: Some(0), metadata: "note".into() };
    let results = admin.commit_group_offsets(&group, &[(tp.clone(), offset.clone())]).await.unwrap();
    results[0].1.as_ref().unwrap();
    for asked in [None, Some(std::slice::from_ref(&tp))] {
        let found = admin.group_offsets(&group, asked).await.unwrap();
        assert_eq!(found[0].partition, tp);
        assert_eq!(found[0].committed.as_ref().unwrap().as_ref(), Some(&offset));
    }
    assert!(admin.list_groups(&[], &[]).await.unwrap().iter().any(|g| g.group_id == group));
    let described = admin.describe_groups(std::slice::from_ref(&group)).await.unwrap();
    assert_eq!(described[0].group_state, "Empty");
    admin.delete_group_offsets(&group, std::slice::from_ref(&tp)).await.unwrap()[0].1.as_ref().unwrap();
    let found = admin.group_offsets(&group, None).await.unwrap();
    assert!(found.is_empty() || found[0].committed.as_ref().unwrap().is_none());
    let deleted = admin.delete_groups(std::slice::from_ref(&group)).await.unwrap();
    assert!(deleted[0].error_code == 0 || deleted[0].error_code == ErrorCode::GroupIdNotFound.code());
}

#[tokio::test]
async fn ranges_are_read_and_waits_end_when_data_comes() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "fetch", 2).await;
    let client = admin.client().clone();
    let fetcher = Fetcher::new(client.clone());
    assert_eq!(produce(&client, &topic, 0, &["a", "b", "c"]).await, 0);
    assert_eq!(produce(&client, &topic, 0, &["d"]).await, 3);
    produce(&client, &topic, 1, &["x"]).await;
    let tps = [TopicPartition::new(&*topic, 0), TopicPartition::new(&*topic, 1)];
    let latest = fetcher.offsets(&tps, OffsetSpec::Latest).await.unwrap();
    assert_eq!(latest.iter().map(|(_, o)| o.offset).collect::<Vec<_>>(), [4, 1]);
    let at = fetcher.offsets(&tps[..1], OffsetSpec::Timestamp(1_001)).await.unwrap();
    assert_eq!((at[0].1.offset, at[0].1.timestamp_ms), (1, 1_001));

    let range = |tp: &TopicPartition, start, end| OffsetRange { partition: tp.clone(), start, end };
    let read = fetcher.read_to_end(&[range(&tps[0], 1, 4), range(&tps[1], 0, 1)]).await.unwrap();
    assert_eq!(read[0].iter().map(|b| b.header.base_offset).collect::<Vec<_>>(), [0, 3]);
    assert_eq!(read[1].len(), 1);
    let records = read[0][0].records(1 << 20).unwrap();
    assert_eq!(records.iter().map(|r| r.unwrap().value.unwrap().to_vec()).collect::<Vec<_>>(), [b"a", b"b", b"c"]);

    let at_end = [(tps[0].clone(), 4), (tps[1].clone(), 1)];
    let early = tokio::time::timeout(Duration::from_millis(700), fetcher.wait_beyond(&at_end)).await;
    assert!(early.is_err(), "nothing has come: {early:?}");
    let waiting = tokio::spawn({
        let (fetcher, at_end) = (fetcher.clone(), at_end.clone());
        async move { fetcher.wait_beyond(&at_end).await }
    });
    tokio::task::yield_now().await;
    let sent = Instant::now();
    produce(&client, &topic, 1, &["y"]).await;
    let available = waiting.await.unwrap().unwrap();
    eprintln!("woke {:?} after the produce was sent", sent.elapsed());
    assert_eq!(available[0].partition, tps[1]);
    assert_eq!(available[0].end_offset, 2);
    let read = fetcher.read_to_end(&[range(&tps[1], 1, 2)]).await.unwrap();
    assert_eq!(read[0].len(), 1);

    let lost = fetcher.read_to_end(&[range(&tps[1], 77, 78)]).await.unwrap_err();
    assert!(matches!(lost, Error::OffsetOutOfRange { offset: 77, .. }), "{lost}");
    let pattern = Topics::pattern(&format!("{}.*", &topic[..8])).unwrap();
    assert!(fetcher.topics(&pattern).await.unwrap().iter().any(|t| t.name == topic));
    let unknown = fetcher.topics(&Topics::names(["no-such-topic"])).await.unwrap_err();
    eprintln!("{unknown}");
    let deleted = admin.delete_records(&[(tps[0].clone(), 2)]).await.unwrap();
    assert_eq!(*deleted[0].1.as_ref().unwrap(), 2);
    let unknown = [(TopicPartition::new("no-such-topic", 0), OffsetSpec::Latest)];
    assert!(admin.list_offsets(&unknown, Isolation::default()).await.unwrap()[0].1.is_err());
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named() {
    let started = Instant::now();
    let error = Client::connect(ClientConfig::new("127.0.0.1:1")).await.unwrap_err();
    assert_eq!(error.to_string(), "broker 127.0.0.1:1 is not reachable: connection refused; is it running?");
    assert!(started.elapsed() < Duration::from_secs(5));
}
