//! Many that wait for the disk at once, and readers beside a writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use caudal_protocol::TopicPartition;
use caudal_storage::{AppendOrigin, FlushError, LogConfig, LogDir, LogDirConfig, RealDisk, TopicLog};

use crate::support::*;

#[test]
fn everyone_who_waits_hears_and_only_when_it_is_durable() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let logs: Vec<_> = (0..3)
        .map(|partition| {
            let topic_partition = TopicPartition::new("games", partition);
            dir.create_log(TopicLog { topic_partition, topic_id: None, config: small_segments() }).unwrap()
        })
        .collect();
    let heard = Arc::new(AtomicUsize::new(0));
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for producer in 0..6 {
            let (dir, log, heard, sender) = (&dir, &logs[producer % 3], &heard, sender.clone());
            scope.spawn(move || {
                for _ in 0..50 {
                    let info = log.append(&batch(0, 2), 0, AppendOrigin::Client).unwrap();
                    let (heard, sender, end) = (Arc::clone(heard), sender.clone(), info.last_offset + 1);
                    let durable = Arc::clone(log);
                    dir.flusher().notify_durable(
                        log,
                        end,
                        Box::new(move |result| {
                            result.unwrap();
                            assert!(durable.durable_end_offset() >= end);
                            heard.fetch_add(1, Ordering::Relaxed);
                            sender.send(()).unwrap();
                        }),
                    );
                }
            });
        }
    });
    for _ in 0..300 {
        receiver.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    assert_eq!(heard.load(Ordering::Relaxed), 300);
    assert!(logs.iter().all(|log| log.durable_end_offset() == 200));
}

#[test]
fn waiting_for_a_deleted_log_ends() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    append_records(&log, 1);
    dir.delete_log(&tp()).unwrap();
    let (sender, receiver) = mpsc::channel();
    dir.flusher().notify_durable(&log, 1, Box::new(move |result| sender.send(result).unwrap()));
    let result = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(matches!(result, Err(FlushError::Closed { .. })), "{result:?}");
    assert!(log.append(&batch(0, 1), 0, AppendOrigin::Client).is_err());
    dir.check_online().unwrap();
    let again = create(&dir, LogConfig::default());
    assert_eq!(again.log_end_offset(), 0);
}

#[test]
fn without_waiting_for_fsync_records_count_at_once_and_flush_messages_still_flushes() {
    let temp = tempfile::tempdir().unwrap();
    let config = LogDirConfig { flush_before_ack: false, ..LogDirConfig::default() };
    let dir = LogDir::open(temp.path(), config, Arc::new(RealDisk)).unwrap().0;
    let log = create(&dir, LogConfig { flush_messages: 10, ..LogConfig::default() });
    append_records(&log, 5);
    assert_eq!((log.durable_end_offset(), log.synced_offset()), (5, 0));
    wait_durable(&dir, &log, 5);
    assert_eq!(log.synced_offset(), 0, "nobody had to wait");
    append_records(&log, 5);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while log.synced_offset() < 10 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    log.set_config(LogConfig { flush_ms: 0, ..LogConfig::default() });
    append_records(&log, 1);
    dir.flush_overdue();
    while log.synced_offset() < 11 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn readers_see_only_whole_records_beside_a_writer_that_rolls_and_deletes() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, small_segments());
    let written = AtomicI64::new(0);
    const COUNT: i64 = 3000;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut next = 0;
                while next < COUNT {
                    let end = written.load(Ordering::Acquire);
                    if next >= end {
                        std::thread::yield_now();
                        continue;
                    }
                    next = next.max(log.log_start_offset());
                    let Ok(slice) = log.read(next, 900, end, true) else { continue };
                    let batches = caudal_protocol::batch::Batches::new(slice.to_bytes().unwrap());
                    for batch in batches.map(Result::unwrap) {
                        caudal_protocol::batch::check_crc(&batch.bytes).unwrap();
                        assert!(batch.header.next_offset() <= end && batch.header.last_offset() >= next);
                        for record in batch.records(1000).unwrap().to_records().unwrap() {
                            assert_eq!(record.value.unwrap(), format!("value {}", record.offset));
                        }
                        next = batch.header.next_offset();
                    }
                }
            });
        }
        for n in 0..COUNT {
            append_records(&log, 1);
            written.store(n + 1, Ordering::Release);
            if n % 500 == 499 {
                log.flush().unwrap();
                log.delete_records_before(n / 2).unwrap();
            }
        }
    });
}
