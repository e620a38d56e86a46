//! What the producer makes of faults: nothing lost, nothing twice, everything in order.

use std::time::Duration;

use caudal_client::{Client, ClientConfig, Error, Fetcher, OffsetRange, Producer, Record};
use caudal_protocol::api::ApiKey;
use caudal_protocol::{ErrorCode, TopicPartition};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::fake::{FakeBroker, Fault, TOPIC};

pub fn config(broker: &FakeBroker, properties: &[(&str, &str)]) -> ClientConfig {
    let quick = [
        ("retry.backoff.ms", "1"),
        ("retry.backoff.max.ms", "2"),
        ("reconnect.backoff.ms", "1"),
        ("reconnect.backoff.max.ms", "2"),
        ("linger.ms", "0"),
        ("request.timeout.ms", "400"),
    ];
    let mut config = ClientConfig::new(&broker.address());
    for (name, value) in quick.iter().chain(properties) {
        config.put(name, (*value).to_owned()).unwrap();
    }
    config
}

pub async fn producer(broker: &FakeBroker, properties: &[(&str, &str)]) -> Producer {
    Producer::connect(config(broker, properties)).await.unwrap()
}

/// Sends numbers in small batches and returns what each send came to.
pub async fn send(
    producer: &Producer,
    partitions: i32,
    numbers: std::ops::Range<u32>,
) -> Vec<Result<Option<i64>, Error>> {
    let mut deliveries = Vec::new();
    for i in numbers {
        let value = i.to_be_bytes();
        let partition = i32::try_from(i).unwrap() % partitions;
        let record = Record { partition: Some(partition), ..Record::new(TOPIC, None, Some(&value)) };
        deliveries.push(producer.send(record).await.unwrap());
        if i % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut results = Vec::new();
    for delivery in deliveries {
        results.push(delivery.await.map(|m| m.offset));
    }
    results
}

#[tokio::test]
async fn random_faults_lose_double_and_reorder_nothing() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let broker = FakeBroker::start(2).await;
        broker.script((0..30).map(|_| match random.random_range(0..10) {
            0 => Fault::CloseBefore,
            1 => Fault::CloseAfter,
            2 => Fault::Refuse(ErrorCode::NotLeaderOrFollower),
            3 => Fault::Refuse(ErrorCode::RequestTimedOut),
            4 => Fault::Refuse(ErrorCode::UnknownTopicOrPartition),
            _ => Fault::None,
        }));
        let producer = producer(&broker, &[("batch.size", "150")]).await;
        let results = send(&producer, 2, 0..300).await;
        for (i, result) in results.iter().enumerate() {
            let offset = result.as_ref().unwrap_or_else(|e| panic!("seed {seed}, record {i}: {e}"));
            assert_eq!(*offset, Some(i as i64 / 2), "seed {seed}");
        }
        for partition in 0..2u32 {
            let expected: Vec<u32> = (0..300).filter(|i| i % 2 == partition).collect();
            assert_eq!(broker.values(partition as usize), expected, "seed {seed}");
        }
    }
}

#[tokio::test]
async fn a_silent_broker_is_asked_again_over_a_new_connection() {
    let broker = FakeBroker::start(1).await;
    broker.script([Fault::Silence, Fault::None]);
    let producer = producer(&broker, &[]).await;
    assert!(send(&producer, 1, 0..5).await.into_iter().all(|r| r.is_ok()));
    assert_eq!(broker.values(0), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_refused_batch_fails_alone_and_leaves_no_gap() {
    let broker = FakeBroker::start(1).await;
    broker.script([Fault::None, Fault::Refuse(ErrorCode::InvalidRecord)]);
    let producer = producer(&broker, &[("batch.size", "80")]).await;
    let results = send(&producer, 1, 0..60).await;
    let failed: Vec<u32> = (0..60).filter(|i| results[*i as usize].is_err()).collect();
    assert!(!failed.is_empty() && failed.len() < 60, "{failed:?}");
    let written: Vec<u32> = (0..60).filter(|i| !failed.contains(i)).collect();
    assert_eq!(broker.values(0), written);
    assert_eq!(broker.state.lock().next_producer_id, 1, "the numbering went on without a new producer id");
    let error = results[failed[0] as usize].as_ref().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRecord));
}

#[tokio::test]
async fn a_large_batch_is_split_until_it_fits() {
    let broker = FakeBroker::start(1).await;
    broker.state.lock().max_batch_bytes = 120;
    let producer = producer(&broker, &[("linger.ms", "50")]).await;
    let results = send(&producer, 1, 0..64).await;
    let offsets: Vec<_> = results.into_iter().map(|r| r.unwrap().unwrap()).collect();
    assert_eq!(offsets, (0..64).collect::<Vec<i64>>());
    assert_eq!(broker.values(0), (0..64).collect::<Vec<u32>>());
}

#[tokio::test]
async fn what_cannot_be_delivered_in_time_fails_and_the_rest_goes_on() {
    let broker = FakeBroker::start(1).await;
    broker.script(std::iter::repeat_n(Fault::Refuse(ErrorCode::NotEnoughReplicas), 100_000));
    let properties = [("delivery.timeout.ms", "300"), ("request.timeout.ms", "100")];
    let producer = producer(&broker, &properties).await;
    let results = send(&producer, 1, 0..3).await;
    let error = results[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("t-0"), "{error}");
    broker.state.lock().faults.clear();
    assert!(send(&producer, 1, 3..6).await.into_iter().all(|r| r.is_ok()));
    assert_eq!(broker.values(0), [3, 4, 5]);
}

#[tokio::test]
async fn without_acks_nothing_is_waited_for() {
    let broker = FakeBroker::start(1).await;
    let producer = producer(&broker, &[("acks", "0")]).await;
    let results = send(&producer, 1, 0..10).await;
    assert!(results.iter().all(|r| matches!(r, Ok(None))));
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while broker.values(0).len() < 10 {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    assert_eq!(broker.count(ApiKey::InitProducerId), 0);
}

#[tokio::test]
async fn a_full_buffer_makes_senders_wait() {
    let broker = FakeBroker::start(1).await;
    broker.script(std::iter::repeat_n(Fault::Silence, 100_000));
    let properties = [("buffer.memory", "1000"), ("max.block.ms", "50"), ("batch.size", "200")];
    let producer = producer(&broker, &properties).await;
    let mut refused = None;
    let mut deliveries = Vec::new();
    for _ in 0..20 {
        match producer.send(Record::new(TOPIC, None, Some(&[0; 100]))).await {
            Ok(delivery) => deliveries.push(delivery),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let error = refused.unwrap().to_string();
    assert!(error.contains("buffer.memory"), "{error}");
    assert!(deliveries.len() < 10);
    broker.state.lock().faults.clear();
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    producer.send(Record::new(TOPIC, None, Some(&[0; 100]))).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn without_acks_memory_is_bounded_as_well() {
    let broker = FakeBroker::start(1).await;
    broker.script(std::iter::repeat_n(Fault::Stall, 100_000));
    let properties = [("acks", "0"), ("buffer.memory", "1000000"), ("max.block.ms", "50")];
    let producer = producer(&broker, &properties).await;
    let value = vec![0; 60_000];
    let mut taken = 0;
    // The sockets between take some megabytes.
    while taken < 1000 && producer.send(Record::new(TOPIC, None, Some(&value))).await.map(drop).is_ok() {
        taken += 1;
    }
    assert!(taken < 1000, "{taken} records were taken and have gone nowhere");
}

#[tokio::test]
async fn a_broker_that_tells_nothing_blocks_for_max_block() {
    let broker = FakeBroker::start(1).await;
    let producer = producer(&broker, &[("max.block.ms", "50"), ("request.timeout.ms", "30000")]).await;
    broker.state.lock().silent_metadata = true;
    let send = producer.send(Record::new(TOPIC, None, None));
    let error = tokio::time::timeout(Duration::from_secs(15), send).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("find topic 't' within 50 ms"), "{error}");
}

#[tokio::test]
async fn a_broker_of_kafka_2_1_is_spoken_to_in_its_versions() {
    let broker = FakeBroker::start(1).await;
    broker.state.lock().versions = Some(vec![
        (ApiKey::Produce, 0, 7),
        (ApiKey::Fetch, 0, 10),
        (ApiKey::ListOffsets, 0, 4),
        (ApiKey::Metadata, 0, 7),
        (ApiKey::ApiVersions, 0, 2),
        (ApiKey::InitProducerId, 0, 1),
    ]);
    let producer = producer(&broker, &[]).await;
    assert!(send(&producer, 1, 0..10).await.into_iter().all(|r| r.is_ok()));
    assert_eq!(broker.state.lock().produce_versions[0], 7);
    let range = OffsetRange { partition: TopicPartition::new(TOPIC, 0), start: 0, end: 10 };
    let read = Fetcher::new(producer.client().clone()).read_to_end(&[range]).await.unwrap();
    assert_eq!(read[0].iter().map(|b| b.header.record_count).sum::<i32>(), 10);
    let error =
        producer.client().send(1, &caudal_protocol::messages::DescribeClusterRequest::default()).await.unwrap_err();
    assert!(error.to_string().contains("it serves no such request"), "{error}");
}

#[tokio::test]
async fn reads_go_on_through_faults() {
    let broker = FakeBroker::start(2).await;
    let producer = producer(&broker, &[("batch.size", "100")]).await;
    assert!(send(&producer, 2, 0..50).await.into_iter().all(|r| r.is_ok()));
    let faults = [
        Fault::CloseBefore,
        Fault::Refuse(ErrorCode::NotLeaderOrFollower),
        Fault::Silence,
        Fault::Refuse(ErrorCode::UnknownTopicId),
    ];
    broker.state.lock().fetch_faults.extend(faults);
    let fetcher = Fetcher::new(Client::connect(config(&broker, &[])).await.unwrap());
    let range = |partition| OffsetRange { partition: TopicPartition::new(TOPIC, partition), start: 3, end: 25 };
    let read = fetcher.read_to_end(&[range(0), range(1)]).await.unwrap();
    for batches in read {
        let offsets = batches.iter().flat_map(|b| b.header.base_offset..b.header.next_offset());
        assert_eq!(offsets.filter(|o| *o >= 3).collect::<Vec<_>>(), (3..25).collect::<Vec<_>>());
    }
    let twice = fetcher.read_to_end(&[range(0), range(0)]).await.unwrap_err();
    assert!(twice.to_string().contains("two ranges"), "{twice}");
    // A wait, too; and one that was dropped does not disturb the next.
    broker.state.lock().fetch_faults.extend(faults);
    let at = [(TopicPartition::new(TOPIC, 0), 20), (TopicPartition::new(TOPIC, 1), 25)];
    drop(tokio::time::timeout(Duration::from_millis(1), fetcher.wait_beyond(&at)).await);
    let available = fetcher.wait_beyond(&at).await.unwrap();
    assert_eq!((available[0].partition.partition, available[0].end_offset), (0, 25));
}

#[tokio::test]
async fn a_flipped_bit_is_an_error_and_no_record() {
    let broker = FakeBroker::start(1).await;
    let producer = producer(&broker, &[]).await;
    assert!(send(&producer, 1, 0..4).await.into_iter().all(|r| r.is_ok()));
    broker.state.lock().corrupt_fetches = true;
    let client = Client::connect(config(&broker, &[])).await.unwrap();
    let range = OffsetRange { partition: TopicPartition::new(TOPIC, 0), start: 0, end: 4 };
    let error = Fetcher::new(client).read_to_end(&[range]).await.unwrap_err();
    assert!(error.to_string().contains("t-0") && error.to_string().contains("CRC-32C"), "{error}");
}

#[tokio::test]
async fn what_is_no_kafka_broker_is_said_to_be_none() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 64];
        drop(socket.read(&mut request).await);
        drop(socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
    });
    let error = Client::connect(ClientConfig::new(&address)).await.unwrap_err().to_string();
    assert!(error.contains(&address) && error.ends_with("is it a Kafka broker's plaintext port?"), "{error}");
    server.await.unwrap();
}
