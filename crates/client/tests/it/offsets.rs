//! Commits of a consumer under faults.

use std::time::{Duration, Instant};

use caudal_client::Consumer;
use caudal_protocol::api::ApiKey;
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
