//! Sequence numbers when batches are given up: none is used twice for different records, no record is written twice.

use std::time::{Duration, Instant};

use caudal_client::{Delivery, Error, Producer, Record};
use caudal_protocol::ErrorCode;
use caudal_protocol::api::ApiKey;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::delivery::{producer, send};
use crate::fake::{FakeBroker, Fault, TOPIC};

/// Hands one record over, in a batch of its own once it is on the wire.
async fn put(producer: &Producer, broker: &FakeBroker, number: u32) -> Delivery {
    let before = broker.count(ApiKey::Produce);
    let delivery = producer.send(Record::new(TOPIC, None, Some(&number.to_be_bytes()))).await.unwrap();
    until(|| broker.count(ApiKey::Produce) > before).await;
    delivery
}

async fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        tokio::task::yield_now().await;
    }
}

/// Each number once or not at all; those that were acknowledged once.
fn check(results: &[Result<Option<i64>, Error>], values: &[u32], context: &str) {
    for (number, result) in (0u32..).zip(results) {
        let times = values.iter().filter(|value| **value == number).count();
        assert!(times <= 1, "{context}: {number} was written {times} times: {values:?}");
        assert!(result.is_err() || times == 1, "{context}: {number} was acknowledged and is lost: {values:?}");
    }
}

#[tokio::test]
async fn numbers_of_a_batch_that_may_be_written_are_not_used_again() {
    let codes = [
        ErrorCode::NotEnoughReplicasAfterAppend,
        ErrorCode::RequestTimedOut,
        ErrorCode::KafkaStorageError,
        ErrorCode::UnknownServerError,
        ErrorCode::NotLeaderOrFollower,
    ];
    for code in codes {
        let broker = FakeBroker::start(1).await;
        let producer = producer(&broker, &[("retries", "1")]).await;
        put(&producer, &broker, 0).await.await.unwrap();
        broker.script([Fault::RefuseAfter(code), Fault::RefuseAfter(code)]);
        let given_up = put(&producer, &broker, 1).await.await.unwrap_err();
        assert_eq!(given_up.code(), Some(code));
        broker.state.lock().faults.clear();
        put(&producer, &broker, 2).await.await.unwrap();
        assert_eq!(broker.values(0), [0, 1, 2], "{code:?}");
        assert_eq!(broker.state.lock().next_producer_id, 1, "a new epoch needs no new producer id");
    }
}

#[tokio::test]
async fn a_batch_that_may_be_written_is_not_sent_under_other_numbers() {
    for code in [ErrorCode::OutOfOrderSequenceNumber, ErrorCode::UnknownProducerId] {
        let broker = FakeBroker::start(1).await;
        let producer = producer(&broker, &[]).await;
        put(&producer, &broker, 0).await.await.unwrap();
        broker.script([Fault::CloseAfter, Fault::Refuse(code)]);
        let error = put(&producer, &broker, 1).await.await.unwrap_err().to_string();
        assert!(error.contains("t-0") && error.contains("may have been written"), "{error}");
        put(&producer, &broker, 2).await.await.unwrap();
        assert_eq!(broker.values(0), [0, 1, 2]);
    }
}

#[tokio::test]
async fn a_batch_that_was_refused_is_sent_under_other_numbers() {
    let broker = FakeBroker::start(1).await;
    let producer = producer(&broker, &[]).await;
    put(&producer, &broker, 0).await.await.unwrap();
    broker.script([Fault::Refuse(ErrorCode::NotEnoughReplicas), Fault::Refuse(ErrorCode::OutOfOrderSequenceNumber)]);
    assert_eq!(put(&producer, &broker, 1).await.await.unwrap().offset, Some(1));
    assert_eq!(broker.values(0), [0, 1]);
}

#[tokio::test]
async fn what_is_behind_a_batch_that_was_given_up_keeps_its_numbers() {
    let broker = FakeBroker::start(1).await;
    let producer = producer(&broker, &[("retries", "1")]).await;
    put(&producer, &broker, 0).await.await.unwrap();
    // Both are written, neither is answered; the first runs out of tries.
    broker.script([Fault::SilenceAfter, Fault::SilenceAfter, Fault::CloseBefore]);
    let first = put(&producer, &broker, 1).await;
    let second = put(&producer, &broker, 2).await;
    first.await.unwrap_err();
    second.await.unwrap();
    put(&producer, &broker, 3).await.await.unwrap();
    assert_eq!(broker.values(0), [0, 1, 2, 3]);
}

#[tokio::test]
async fn no_batch_overtakes_the_first_one() {
    let broker = FakeBroker::start(1).await;
    broker.script([Fault::Refuse(ErrorCode::NotEnoughReplicas)]);
    let producer = producer(&broker, &[("batch.size", "80")]).await;
    assert!(send(&producer, 1, 0..40).await.into_iter().all(|r| r.is_ok()));
    assert_eq!(broker.values(0), (0..40).collect::<Vec<u32>>());
}

#[tokio::test]
async fn time_runs_out_on_the_wire_too() {
    let broker = FakeBroker::start(1).await;
    let producer = producer(&broker, &[("request.timeout.ms", "150"), ("delivery.timeout.ms", "200")]).await;
    // The time ends while the second try waits for its answer.
    broker.script([Fault::Silence, Fault::Silence]);
    let error = put(&producer, &broker, 0).await.await.unwrap_err().to_string();
    assert!(error.contains("failed to send 1 records to t-0 within 200 ms"), "{error}");
    broker.state.lock().faults.clear();
    put(&producer, &broker, 1).await.await.unwrap();
    assert_eq!(broker.values(0), [1]);
}

#[tokio::test]
async fn random_faults_with_few_tries_double_nothing_and_lose_nothing_acknowledged() {
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let broker = FakeBroker::start(1).await;
        broker.script((0..40).map(|_| match random.random_range(0..14) {
            0 => Fault::CloseBefore,
            1 => Fault::CloseAfter,
            2 => Fault::Refuse(ErrorCode::NotLeaderOrFollower),
            3 => Fault::Refuse(ErrorCode::InvalidRecord),
            4 => Fault::RefuseAfter(ErrorCode::NotEnoughReplicasAfterAppend),
            5 => Fault::RefuseAfter(ErrorCode::KafkaStorageError),
            6 => Fault::Refuse(ErrorCode::OutOfOrderSequenceNumber),
            _ => Fault::None,
        }));
        let retries = if seed % 2 == 0 { "1" } else { "3" };
        let producer = producer(&broker, &[("batch.size", "80"), ("retries", retries)]).await;
        let results = send(&producer, 1, 0..120).await;
        let values = broker.values(0);
        check(&results, &values, &format!("seed {seed}"));
        assert!(values.is_sorted(), "seed {seed}: {values:?}");
        // The way is clear again.
        broker.state.lock().faults.clear();
        assert!(send(&producer, 1, 120..125).await.iter().all(Result::is_ok), "seed {seed}");
    }
}
