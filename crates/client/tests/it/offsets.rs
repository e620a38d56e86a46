//! What a consumer makes of faults: its commits, and partitions that cannot be read.

use std::time::{Duration, Instant};

use caudal_client::Consumer;
use caudal_protocol::api::ApiKey;
use caudal_protocol::batch::{Batch, BatchBuilder, HEADER_LEN, stamp_producer};
use caudal_protocol::compression::Codec;
use caudal_protocol::{ErrorCode, TopicPartition};

use crate::delivery::{config, producer, send};
use crate::fake::{FakeBroker, Fault, TOPIC};

#[tokio::test]
async fn an_automatic_commit_does_not_overwrite_a_newer_one() {
    let broker = FakeBroker::start(1).await;
    let producer = producer(&broker, &[]).await;
    assert!(send(&producer, 1, 0..50).await.into_iter().all(|r| r.is_ok()));
    broker.state.lock().commit_faults.push_back(Fault::Refuse(ErrorCode::CoordinatorLoadInProgress));
    let properties = [
        ("group.id", "g"),
        ("auto.commit.interval.ms", "20"),
        ("retry.backoff.ms", "500"),
        ("retry.backoff.max.ms", "500"),
    ];
    let mut consumer = Consumer::connect(config(&broker, &properties)).await.unwrap();
    let tp = TopicPartition::new(TOPIC, 0);
    consumer.assign(std::slice::from_ref(&tp)).await;
    consumer.seek(&tp, 0).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let wait = Duration::from_millis(10);
    // The automatic commit of an early position fails and is to be made up for.
    consumer.pause(&tp).unwrap();
    while broker.count(ApiKey::OffsetCommit) == 0 {
        assert!(Instant::now() < deadline);
        consumer.poll(wait).await.unwrap();
    }
    consumer.resume(&tp).unwrap();
    while consumer.position(&tp) != Some(50) {
        assert!(Instant::now() < deadline);
        consumer.poll(wait).await.unwrap();
    }
    consumer.commit().await.unwrap();
    while broker.state.lock().commits.len() < 2 {
        assert!(Instant::now() < deadline);
        consumer.poll(wait).await.unwrap();
    }
    let commits = broker.state.lock().commits.clone();
    assert!(commits.is_sorted(), "{commits:?}");
}

#[tokio::test]
async fn a_partition_that_cannot_be_read_does_not_hold_up_the_others() {
    let broker = FakeBroker::start(2).await;
    let mut builder = BatchBuilder::new(Codec::Gzip);
    (0..100).for_each(|n: i64| builder.append(n, None, Some(&n.to_be_bytes()), &[]));
    let mut bytes = builder.build().unwrap();
    bytes[HEADER_LEN + 12] ^= 0xff;
    // Puts the CRC right.
    stamp_producer(&mut bytes, -1, -1, -1);
    {
        let log = &mut broker.state.lock().partitions[0];
        log.batches.push(Batch::parse(&bytes.freeze()).unwrap());
        log.end = 100;
    }
    let properties = [("max.partition.fetch.bytes", "100"), ("fetch.max.wait.ms", "10")];
    let mut consumer = Consumer::connect(config(&broker, &properties)).await.unwrap();
    let tps = [0, 1].map(|partition| TopicPartition::new(TOPIC, partition));
    consumer.assign(&tps).await;
    tps.iter().for_each(|tp| consumer.seek(tp, 0).unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    let wait = Duration::from_millis(10);
    while !consumer.poll(wait).await.is_err_and(|e| e.to_string().contains("t-0")) {
        assert!(Instant::now() < deadline);
    }
    let producer = producer(&broker, &[]).await;
    assert!(send(&producer, 2, 0..2).await[1].is_ok());
    while !consumer.poll(wait).await.is_ok_and(|records| records.iter().any(|r| r.partition == 1)) {
        assert!(Instant::now() < deadline, "partition 1 is not read");
    }
    assert_eq!(consumer.position(&tps[0]), Some(0));
}
