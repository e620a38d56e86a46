//! The producer against a real cluster, see [`crate::cluster`].

use std::time::Duration;

use caudal_client::{Client, ClientConfig, Error, Fetcher, Isolation, OffsetRange, OffsetSpec, Producer, Record};
use caudal_protocol::record::Record as Read;
use caudal_protocol::{ErrorCode, TopicPartition};

use crate::cluster::Cluster;
use crate::peer::{admin, new_topic};

pub fn config(servers: &str, properties: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new(servers);
    for (name, value) in properties {
        config.put(name, (*value).to_owned()).unwrap();
    }
    config
}

pub async fn producer(servers: &str, properties: &[(&str, &str)]) -> Producer {
    Producer::connect(config(servers, properties)).await.unwrap()
}

/// All records of a partition.
pub async fn read_all(client: &Client, topic: &str, partition: i32) -> Vec<Read> {
    let tp = TopicPartition::new(topic, partition);
    let fetcher = Fetcher::new(client.clone());
    let end =
        client.offsets(std::slice::from_ref(&tp), OffsetSpec::Latest, Isolation::default()).await.unwrap()[0].1.offset;
    let batches = fetcher.read_to_end(&[OffsetRange { partition: tp, start: 0, end }]).await.unwrap();
    batches[0].iter().flat_map(|b| b.records(1 << 30).unwrap().to_records().unwrap()).collect()
}

#[tokio::test]
async fn records_arrive_as_they_were_sent() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = new_topic(&admin, "produce", 1).await;
        let producer = producer(&servers, &[("compression.type", codec)]).await;
        let headers: [(&[u8], Option<&[u8]>); 3] = [(b"h", Some(b"1")), (b"h", Some(b"2")), (b"n", None)];
        let full = Record {
            topic: &topic,
            partition: Some(0),
            timestamp_ms: Some(1234),
            key: Some(b"k"),
            value: Some(b"v"),
            headers: &headers,
        };
        let first = producer.send(full).await.unwrap();
        let second = producer.send(Record::new(&topic, None, None)).await.unwrap();
        let empty = producer.send(Record::new(&topic, Some(b""), Some(b""))).await.unwrap();
        let first = first.await.unwrap();
        assert_eq!((first.offset, first.partition, first.timestamp_ms), (Some(0), 0, 1234));
        assert_eq!(second.await.unwrap().offset, Some(1));
        assert_eq!(empty.await.unwrap().offset, Some(2));
        let read = read_all(admin.client(), &topic, 0).await;
        assert_eq!(read[0].headers.iter().map(|h| (&h.key[..], h.value.as_deref())).collect::<Vec<_>>(), headers);
        assert_eq!((read[0].key.as_deref(), read[0].value.as_deref()), (Some(&b"k"[..]), Some(&b"v"[..])));
        assert_eq!((read[1].key.as_deref(), read[1].value.as_deref()), (None, None));
        assert_eq!((read[2].key.as_deref(), read[2].value.as_deref()), (Some(&b""[..]), Some(&b""[..])));
        producer.close().await;
        assert!(matches!(producer.send(full).await, Err(Error::Closed { .. })));
    }
}

#[tokio::test]
async fn many_records_keep_their_order() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "order", 3).await;
    let producer = producer(&servers, &[("linger.ms", "0"), ("batch.size", "1000")]).await;
    for i in 0..20_000u32 {
        let delivery = producer.send(Record::new(&topic, Some(&(i % 7).to_be_bytes()), Some(&i.to_be_bytes()))).await;
        drop(delivery.unwrap());
    }
    producer.flush().await;
    let mut seen = 0;
    for partition in 0..3 {
        let values: Vec<u32> = read_all(admin.client(), &topic, partition)
            .await
            .iter()
            .map(|r| u32::from_be_bytes(r.value.as_deref().unwrap().try_into().unwrap()))
            .collect();
        assert!(values.is_sorted(), "partition {partition} is out of order");
        seen += values.len();
    }
    assert_eq!(seen, 20_000);
}

#[tokio::test]
async fn records_that_are_too_large_are_refused_or_split() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "large", 1).await;
    let config = caudal_protocol::messages::incremental_alter_configs_request::AlterableConfig {
        name: "max.message.bytes".into(),
        config_operation: 0,
        value: Some("2000".into()),
    };
    let resource = caudal_protocol::messages::incremental_alter_configs_request::AlterConfigsResource {
        resource_type: 2,
        resource_name: topic.clone(),
        configs: vec![config],
    };
    assert_eq!(admin.incremental_alter_configs(vec![resource], false).await.unwrap()[0].error_code, 0);

    let producer = producer(&servers, &[("linger.ms", "200")]).await;
    let huge = vec![0u8; 2 << 20];
    let error = producer.send(Record::new(&topic, None, Some(&huge))).await.unwrap_err();
    assert!(error.to_string().contains("max.request.size is 1048576 bytes"), "{error}");
    // Kafka's broker obeys a change of a topic's configuration a moment after it is confirmed.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut taken = 0;
    let error = loop {
        let medium = producer.send(Record::new(&topic, None, Some(&huge[..3000]))).await.unwrap();
        producer.flush().await;
        match medium.await {
            Err(error) => break error,
            Ok(_) => taken += 1,
        }
        assert!(std::time::Instant::now() < deadline, "records of any size are taken");
    };
    assert_eq!(error.code(), Some(ErrorCode::MessageTooLarge), "{error}");
    eprintln!("{error}");
    // 100 records of 100 bytes in one batch are five times the limit.
    let mut deliveries = Vec::new();
    for i in 0..100u8 {
        deliveries.push(producer.send(Record::new(&topic, None, Some(&[i; 100]))).await.unwrap());
    }
    for (i, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(delivery.await.unwrap().offset, Some(taken + i as i64));
    }
    let read = read_all(admin.client(), &topic, 0).await;
    let read = read.get(taken as usize..).unwrap();
    assert_eq!(read.iter().map(|r| r.value.as_deref().unwrap()[0]).collect::<Vec<_>>(), (0..100).collect::<Vec<u8>>());
}

#[tokio::test]
async fn wrong_targets_are_named() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "target", 2).await;
    let producer = producer(&servers, &[("max.block.ms", "1500")]).await;
    let record = Record { partition: Some(7), ..Record::new(&topic, None, None) };
    let error = producer.send(record).await.unwrap_err().to_string();
    assert!(error.ends_with("the topic has partitions 0 to 1"), "{error}");
    let error = producer.send(Record::new("bad name!", None, None)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidTopicException), "{error}");
}

#[tokio::test]
async fn transactions_are_committed_and_a_successor_fences() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let topic = new_topic(&admin, "transactions", 1).await;
    let connect = || async {
        let client = Client::connect(config(&servers, &[])).await.unwrap();
        let producer = Producer::transactional(client, &topic, 60_000).unwrap();
        producer.init_transactions().await.unwrap();
        producer
    };
    let end = || async {
        let tp = TopicPartition::new(&topic, 0);
        let spec = (OffsetSpec::Latest, Isolation::ReadCommitted);
        admin.client().offsets(std::slice::from_ref(&tp), spec.0, spec.1).await.unwrap()[0].1.offset
    };
    // The markers come after the answer.
    let reaches = async |expected: i64| {
        let all_there = async { while end().await < expected {} };
        tokio::time::timeout(Duration::from_secs(20), all_there).await.unwrap();
        assert_eq!(end().await, expected);
    };
    let first = connect().await;
    assert!(matches!(first.send(Record::new(&topic, None, None)).await, Err(Error::Misuse { .. })));
    for expected in [3, 6] {
        first.begin_transaction().unwrap();
        assert!(matches!(first.begin_transaction(), Err(Error::Misuse { .. })));
        let sent = [
            first.send(Record::new(&topic, None, Some(b"a"))).await,
            first.send(Record::new(&topic, None, None)).await,
        ];
        first.commit_transaction().await.unwrap();
        for delivery in sent {
            delivery.unwrap().await.unwrap();
        }
        // Two records, and the marker.
        reaches(expected).await;
    }
    first.begin_transaction().unwrap();
    let lost = first.send(Record::new(&topic, None, Some(b"lost"))).await.unwrap();
    first.flush().await;
    lost.await.unwrap();
    assert_eq!(end().await, 6);
    let second = connect().await;
    let fenced = first.commit_transaction().await.unwrap_err();
    assert_eq!(fenced.code(), Some(ErrorCode::ProducerFenced), "{fenced}");
    assert!(
        fenced.to_string().contains("has been fenced by another producer with the same transactionalId"),
        "{fenced}"
    );
    assert_eq!(first.begin_transaction().unwrap_err().to_string(), fenced.to_string());
    second.begin_transaction().unwrap();
    let sent = second.send(Record::new(&topic, None, Some(b"b"))).await.unwrap();
    second.commit_transaction().await.unwrap();
    assert_eq!(sent.await.unwrap().offset, Some(8));
    reaches(10).await;
    // Fenced between two records: a partition's leader tells first.
    second.begin_transaction().unwrap();
    second.send(Record::new(&topic, None, Some(b"lost"))).await.unwrap().await.unwrap();
    connect().await;
    let mut records = Vec::new();
    for _ in 0..3 {
        records.extend(second.send(Record::new(&topic, None, Some(b"late"))).await);
    }
    let ended = tokio::time::timeout(Duration::from_secs(20), second.commit_transaction()).await;
    let old = ended.expect("the records are not waited for").unwrap_err();
    assert_eq!(old.code(), Some(ErrorCode::InvalidProducerEpoch), "{old}");
    let sentence = format!("Producer with transactionalId '{topic}' and (producerId=");
    assert!(old.to_string().contains(&sentence) && old.to_string().contains("an old epoch"), "{old}");
    for record in records {
        assert_eq!(record.await.unwrap_err().code(), Some(ErrorCode::InvalidProducerEpoch));
    }
    assert!(matches!(second.send(Record::new(&topic, None, None)).await, Err(error) if error.code() == old.code()));
}
