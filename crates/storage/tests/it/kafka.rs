//! A directory that Apache Kafka wrote and reads again: `conformance/run client` stops a Kafka that has a topic `t1`, names its
//! directory in `CAUDAL_KAFKA_LOG_DIR`, runs this, dumps the segments with Kafka's tool and starts Kafka on them.

use std::path::PathBuf;

use caudal_protocol::TopicPartition;
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_storage::{AppendOrigin, LogConfig};

use crate::support::*;

#[test]
#[ignore = "needs a log directory that Apache Kafka wrote: conformance/run client"]
fn a_directory_of_kafka_opens_and_can_be_appended_to() {
    let path = PathBuf::from(std::env::var_os("CAUDAL_KAFKA_LOG_DIR").unwrap());
    let (dir, report) = open(&path);
    println!("{report:?}");
    assert!(report.bytes_cut() == 0, "{report:?}");
    for log in dir.logs() {
        assert!(log.topic_id().is_some() || log.topic_partition().topic == "__cluster_metadata", "{log:?}");
        println!("{log:?}: {} records, {:?}", count_records(&log), log.active_producers());
    }
    for partition in 0..2 {
        let log = dir.log(&TopicPartition::new("t1", partition)).unwrap();
        log.set_config(LogConfig { segment_bytes: 8192, index_interval_bytes: 500, ..LogConfig::default() });
        let producer_id = 1000 + log.log_end_offset();
        for n in 0..100 {
            let mut builder = BatchBuilder::new(Codec::ALL[n % 5]).producer(producer_id, 0, n as i32);
            let headers: &[(&[u8], Option<&[u8]>)] = &[(b"name", Some(b"one")), (b"name", None)];
            builder.append(BASE_TIME_MS + n as i64, Some(b"key"), Some(format!("appended {n}").as_bytes()), headers);
            log.append(&builder.build().unwrap(), 1, AppendOrigin::Client).unwrap();
        }
        assert!(log.segment_count() > 1);
    }
    dir.close(-1).unwrap();
}

fn count_records(log: &caudal_storage::Log) -> i64 {
    let (mut next, mut count) = (log.log_start_offset(), 0);
    while next < log.log_end_offset() {
        let bytes = log.read(next, 1 << 20, i64::MAX, true).unwrap().to_bytes().unwrap();
        for batch in caudal_protocol::batch::Batches::new(bytes).map(Result::unwrap) {
            caudal_protocol::batch::check_crc(&batch.bytes).unwrap();
            count += batch.records(64 << 20).unwrap().to_records().unwrap().len() as i64;
            next = batch.header.next_offset();
        }
    }
    count
}
