//! A directory that Apache Kafka 4.3.1 wrote: a topic `t1` of two partitions with 50 keyed records in each codec, recorded in
//! `data`. `conformance/run client` names a fresh one in `CAUDAL_KAFKA_LOG_DIR`, dumps with Kafka's tool what this leaves
//! of it and starts Kafka on that.

use std::path::{Path, PathBuf};

use caudal_protocol::TopicPartition;
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_storage::{AppendOrigin, LogConfig};

use crate::support::*;

#[test]
fn a_directory_of_kafka_opens_and_can_be_appended_to() {
    let copy = tempfile::tempdir().unwrap();
    let path = std::env::var_os("CAUDAL_KAFKA_LOG_DIR").map_or_else(
        || {
            copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data/kafka-4.3.1"), copy.path());
            copy.path().to_owned()
        },
        PathBuf::from,
    );
    let (dir, report) = open(&path);
    assert!(report.bytes_cut() == 0, "{report:?}");
    for log in dir.logs() {
        assert!(log.topic_id().is_some() || log.topic_partition().topic == "__cluster_metadata", "{log:?}");
        let records = count_records(&log);
        if log.topic_partition().topic == "t1" {
            assert_eq!((records, log.log_end_offset()), (125, 125), "{log:?}");
            assert_eq!(log.active_producers().len(), 5, "{log:?}");
        }
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

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target)
        } else {
            drop(std::fs::copy(entry.path(), target))
        }
    }
}
