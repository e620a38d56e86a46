//! Kafka source and sink against the cluster that `CAUDAL_TEST_BOOTSTRAP_SERVERS` names (Apache Kafka in
//! `conformance/run client`), otherwise a broker of ours in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use caudal_broker::{Broker, BrokerConfig};
use caudal_client::{Admin, ClientConfig};
use caudal_engine::options::Options;
use caudal_engine::plan::SourceFactory;
use caudal_engine::sink::kafka::KafkaSink;
use caudal_engine::sink::{OutputMode, Sink, SinkStart};
use caudal_engine::source::ReadLimit;
use caudal_engine::source::kafka::KafkaTable;
use caudal_protocol::{TopicPartition, Uuid};

fn rows(first: i64, count: i64) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("key", DataType::Utf8, true), Field::new("value", DataType::Utf8, true)]);
    let numbers = Int64Array::from_iter_values(first..first + count);
    let keys: StringArray = numbers.iter().map(|n| n.map(|n| format!("player-{}", n % 23))).collect();
    let values: StringArray =
        numbers.iter().map(|n| n.map(|n| format!("{{\"n\":{n},\"x\":12.5,\"y\":30.25,\"team\":\"home\"}}"))).collect();
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(keys), Arc::new(values)]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_to_a_topic_and_come_back_exactly_once() {
    let data = tempfile::tempdir().unwrap();
    let (servers, broker) = match std::env::var("CAUDAL_TEST_BOOTSTRAP_SERVERS") {
        Ok(servers) => (servers, None),
        Err(_) => {
            let mut config = BrokerConfig::new(data.path());
            config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
            let broker = Broker::start(config).await.unwrap();
            (broker.local_addr().unwrap().to_string(), Some(broker))
        }
    };
    let topic = format!("engine-{}", Uuid::random()).replace("--", "-");
    let admin = Admin::connect(ClientConfig::new(&servers)).await.unwrap();
    admin.create_topic(&topic, Some(2)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let base = [("kafka.bootstrap.servers", servers.as_str())];
    let open = async || {
        let options: Options =
            base.iter().copied().chain([("topic", topic.as_str()), ("kafka.compression.type", "lz4")]).collect();
        let mut sink = KafkaSink::new(&options).unwrap();
        let state_dir = dir.path().join("sink");
        let start = SinkStart { state_dir: &state_dir, query_id: "q", committed: None, planned: None };
        sink.start(start).await.unwrap();
        sink
    };
    let mut sink = open().await;
    let total = 3 * 50_000;
    for id in 0..3 {
        let rows = rows(id * 50_000, 50_000);
        assert_eq!(sink.add_batch(id, OutputMode::Append, rows.schema(), vec![rows]).await.unwrap(), 50_000);
    }
    // Died before the query noted batch 2.
    let mut sink = open().await;
    let again = rows(100_000, 50_000);
    assert_eq!(sink.add_batch(2, OutputMode::Append, again.schema(), vec![again]).await.unwrap(), 0);

    let options: Options =
        base.iter().copied().chain([("subscribe", topic.as_str()), ("startingOffsets", "earliest")]).collect();
    let table = KafkaTable::stream(&options).unwrap();
    let mut source = table.open(None).await.unwrap();
    source.set_query_name(Some(&format!("{topic}-query")), "id");
    source.project(&[1]);
    let start = source.initial_offset().await.unwrap();
    source.wait_beyond(&start).await.unwrap();
    let end = source.next_offset(&start, ReadLimit::Everything).await.unwrap().end;
    let read = source.read(&start, &end).await.unwrap();
    let mut values: Vec<Vec<u8>> = Vec::new();
    for batch in read.iter().flatten() {
        values.extend(batch.column(0).as_binary::<i32>().iter().map(|v| v.unwrap().to_vec()));
    }
    assert_eq!(values.len(), total);
    values.sort();
    values.dedup();
    assert_eq!(values.len(), total);
    source.commit(&end).await.unwrap();

    // From the sink to the source that waits for it, one row at a time.
    let mut at = end;
    for id in 3..53 {
        let one = rows(total as i64 + id, 1);
        sink.add_batch(id, OutputMode::Append, one.schema(), vec![one]).await.unwrap();
        source.wait_beyond(&at).await.unwrap();
        let next = source.next_offset(&at, ReadLimit::Options).await.unwrap().end;
        let read = source.read(&at, &next).await.unwrap();
        assert_eq!(read.iter().flatten().map(RecordBatch::num_rows).sum::<usize>(), 1);
        at = next;
    }

    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let partitions = [TopicPartition::new(topic.clone(), 0), TopicPartition::new(topic.clone(), 1)];
        let committed = admin.group_offsets(&format!("{topic}-query"), Some(&partitions)).await.unwrap();
        let offsets: Vec<_> =
            committed.into_iter().filter_map(|c| c.committed.ok().flatten()).map(|c| c.offset).collect();
        if offsets.len() == 2 && offsets.iter().sum::<i64>() >= total as i64 {
            break;
        }
        assert!(Instant::now() < deadline, "{offsets:?}");
        tokio::task::yield_now().await;
    }
    admin.delete_topics(&[topic]).await.unwrap();
    if let Some(broker) = broker {
        broker.shutdown().await;
    }
}
