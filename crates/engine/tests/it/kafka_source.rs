//! The Kafka source over a scripted cluster: offsets, limits, columns, loss of data.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type, SchemaRef, TimestampMicrosecondType};
use async_trait::async_trait;
use bytes::Bytes;
use caudal_client::{Available, Chunk, Error, OffsetRange, OffsetSpec, Topics};
use caudal_engine::error::EngineError;
use caudal_engine::options::Options;
use caudal_engine::plan::SourceFactory;
use caudal_engine::plan::nodes::StreamRelation;
use caudal_engine::query::{StreamingQuerySpec, Trigger, start};
use caudal_engine::sink::OutputMode;
use caudal_engine::sink::memory::{MemoryRows, MemorySink};
use caudal_engine::source::bounded::BoundedTable;
use caudal_engine::source::kafka::cluster::{Chunks, Cluster, TopicInfo};
use caudal_engine::source::kafka::{KafkaOffsets, KafkaSource, KafkaTable};
use caudal_engine::source::{ReadLimit, Source, SourceOffset};
use caudal_protocol::batch::{Batch, BatchBuilder};
use caudal_protocol::compression::Codec;
use caudal_protocol::{TopicPartition, Uuid};
use datafusion::prelude::SessionContext;
use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
struct Log {
    start: i64,
    batches: Vec<Batch>,
}

impl Log {
    fn end(&self) -> i64 {
        self.batches.last().map_or(self.start, |b| b.header.next_offset())
    }
}

/// A group and its offsets.
type Commit = (String, Vec<(TopicPartition, i64)>);

/// A cluster in memory.
#[derive(Default)]
struct Script {
    logs: Mutex<BTreeMap<TopicPartition, Log>>,
    ids: Mutex<BTreeMap<String, Uuid>>,
    appended: Notify,
    commits: Mutex<Vec<Commit>>,
    committed: Notify,
    /// Questions for offsets, and reads.
    listings: AtomicUsize,
    reads: AtomicUsize,
}

fn tp(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

impl Script {
    fn new(partitions: i32) -> Arc<Self> {
        let script = Arc::new(Script::default());
        script.ids.lock().insert("t".to_owned(), Uuid::random());
        for partition in 0..partitions {
            script.logs.lock().insert(tp(partition), Log::default());
        }
        script
    }

    /// Appends one batch of values `v<offset>`; the even ones have a key, the first a header.
    fn append(&self, partition: i32, count: i64, codec: Codec) {
        self.append_padded(partition, count, codec, 0);
    }

    /// As `append`, the values filled up with zeros.
    fn append_padded(&self, partition: i32, count: i64, codec: Codec, size: usize) {
        let mut logs = self.logs.lock();
        let log = logs.get_mut(&tp(partition)).unwrap();
        let base = log.end();
        let mut builder = BatchBuilder::new(codec).base_offset(base);
        for offset in base..base + count {
            let key = format!("k{offset}");
            let mut value = format!("v{offset}");
            while value.len() < size {
                value.push('0');
            }
            let headers: &[(&[u8], Option<&[u8]>)] =
                if offset == 0 { &[(b"h", Some(b"1")), (b"h", None)] } else { &[] };
            let key = (offset % 2 == 0).then_some(key.as_bytes());
            builder.append(1_600_000_000_000 + offset, key, Some(value.as_bytes()), headers);
        }
        let bytes = Bytes::from(builder.build().unwrap());
        log.batches.push(Batch::parse(&bytes).unwrap());
        self.appended.notify_waiters();
    }
}

struct Answers(Vec<Result<Chunk, Error>>);

#[async_trait]
impl Chunks for Answers {
    async fn next(&mut self) -> Result<Option<Chunk>, Error> {
        if self.0.is_empty() { Ok(None) } else { self.0.remove(0).map(Some) }
    }
}

#[async_trait]
impl Cluster for Script {
    async fn topics(&self, _topics: &Topics) -> Result<Vec<TopicInfo>, Error> {
        let partitions = self.logs.lock().keys().map(|tp| tp.partition).collect();
        Ok(vec![TopicInfo { name: "t".to_owned(), id: self.ids.lock()["t"], partitions }])
    }

    async fn offsets(&self, wanted: &[(TopicPartition, OffsetSpec)]) -> Result<Vec<(TopicPartition, i64)>, Error> {
        self.listings.fetch_add(1, Ordering::Relaxed);
        let logs = self.logs.lock();
        let answer = |(tp, spec): &(TopicPartition, OffsetSpec)| {
            let log = logs.get(tp).unwrap();
            let offset = match spec {
                OffsetSpec::Earliest => log.start,
                OffsetSpec::Timestamp(ms) => Some(ms - 1_600_000_000_000).filter(|o| *o < log.end()).unwrap_or(-1),
                _ => log.end(),
            };
            (tp.clone(), offset)
        };
        Ok(wanted.iter().map(answer).collect())
    }

    fn read(&self, ranges: Vec<OffsetRange>) -> Box<dyn Chunks> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let logs = self.logs.lock();
        let topic_id = self.ids.lock()["t"];
        let mut answers = Vec::new();
        for range in ranges {
            let log = &logs[&range.partition];
            if range.start < log.start {
                answers.push(Err(Error::OffsetOutOfRange { partition: range.partition, offset: range.start }));
                continue;
            }
            // Every batch as a chunk of its own.
            for batch in &log.batches {
                let header = &batch.header;
                if header.next_offset() > range.start && header.base_offset < range.end {
                    answers.push(Ok(Chunk {
                        partition: range.partition.clone(),
                        topic_id,
                        batches: vec![batch.clone()],
                        next_offset: header.next_offset(),
                        is_last: header.next_offset() >= range.end,
                    }));
                }
            }
        }
        Box::new(Answers(answers))
    }

    async fn wait_beyond(&self, offsets: &[(TopicPartition, i64)]) -> Result<Vec<Available>, Error> {
        loop {
            let notified = self.appended.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let found: Vec<Available> = {
                let logs = self.logs.lock();
                let refused = offsets.iter().find(|(tp, after)| *after < logs[tp].start || *after > logs[tp].end());
                if let Some((partition, offset)) = refused.cloned() {
                    return Err(Error::OffsetOutOfRange { partition, offset });
                }
                offsets
                    .iter()
                    .map(|(tp, after)| (tp, *after, logs[tp].end()))
                    .filter(|(_, after, end)| end > after)
                    .map(|(tp, _, end_offset)| Available { partition: tp.clone(), end_offset })
                    .collect()
            };
            if !found.is_empty() {
                return Ok(found);
            }
            notified.await;
        }
    }

    async fn commit(&self, group: &str, offsets: &[(TopicPartition, i64)]) -> Result<(), Error> {
        self.commits.lock().push((group.to_owned(), offsets.to_vec()));
        self.committed.notify_one();
        Ok(())
    }
}

fn options(extra: &[(&str, &str)]) -> Options {
    let base = [("kafka.bootstrap.servers", "127.0.0.1:1"), ("subscribe", "t"), ("startingOffsets", "earliest")];
    base.iter().chain(extra).copied().collect()
}

fn source(script: &Arc<Script>, extra: &[(&str, &str)], checkpoint: Option<&std::path::Path>) -> KafkaSource {
    let table = KafkaTable::stream(&options(extra)).unwrap();
    table.open_on(Arc::clone(script) as Arc<dyn Cluster>, checkpoint).unwrap()
}

async fn next(source: &mut KafkaSource, start: &SourceOffset) -> SourceOffset {
    source.next_offset(start, ReadLimit::Options).await.unwrap().end
}

fn values(parts: &[Vec<RecordBatch>]) -> Vec<Vec<String>> {
    let texts = |b: &RecordBatch| -> Vec<String> {
        let column = b["value"].as_binary::<i32>();
        column.iter().map(|v| String::from_utf8(v.unwrap().to_vec()).unwrap()).collect()
    };
    parts.iter().map(|part| part.iter().flat_map(texts).collect()).collect()
}

fn offset(json: &str) -> SourceOffset {
    SourceOffset(json.to_owned())
}

#[tokio::test]
async fn a_batch_is_exactly_the_offsets_between_two_ends() {
    let script = Script::new(2);
    script.append(0, 4, Codec::None);
    script.append(0, 3, Codec::Lz4);
    script.append(1, 2, Codec::Zstd);
    let mut source = source(&script, &[], None);
    let start = source.initial_offset().await.unwrap();
    assert_eq!(start.0, r#"{"t":{"0":0,"1":0}}"#);
    let end = next(&mut source, &start).await;
    assert_eq!(end.0, r#"{"t":{"0":7,"1":2}}"#);
    assert_eq!(source.description(), "KafkaV2[Subscribe[t]]");
    // Ends that cut batches.
    let read = source.read(&offset(r#"{"t":{"0":2,"1":0}}"#), &offset(r#"{"t":{"0":6,"1":1}}"#)).await.unwrap();
    assert_eq!(values(&read), [vec!["v2", "v3", "v4", "v5"], vec!["v0"]]);
    assert_eq!(next(&mut source, &end).await, end);
}

#[tokio::test]
async fn columns_are_those_of_spark_and_only_those_asked_for() {
    let script = Script::new(1);
    script.append(0, 3, Codec::Snappy);
    let mut source = source(&script, &[("includeHeaders", "true")], None);
    let names: Vec<String> = source.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["key", "value", "topic", "partition", "offset", "timestamp", "timestampType", "headers"]);
    let (start, end) = (offset(r#"{"t":{"0":0}}"#), offset(r#"{"t":{"0":3}}"#));
    let read = source.read(&start, &end).await.unwrap();
    let batch = &read[0][0];
    assert_eq!(batch["key"].as_binary::<i32>().iter().collect::<Vec<_>>(), [Some(&b"k0"[..]), None, Some(b"k2")]);
    assert_eq!(batch["topic"].as_string::<i32>().value(2), "t");
    assert_eq!(batch["partition"].as_primitive::<Int32Type>().values(), &[0, 0, 0]);
    assert_eq!(batch["offset"].as_primitive::<Int64Type>().values(), &[0, 1, 2]);
    let times = batch["timestamp"].as_primitive::<TimestampMicrosecondType>();
    assert_eq!(times.value(1), 1_600_000_000_001_000);
    assert_eq!(batch["timestampType"].as_primitive::<Int32Type>().values(), &[0, 0, 0]);
    let headers = batch["headers"].as_list::<i32>();
    assert!(headers.is_null(1));
    assert_eq!(headers.value(0).as_struct().column(0).as_string::<i32>().value(1), "h");
    assert!(headers.value(0).as_struct().column(1).is_null(1));

    let mut narrow = self::source(&script, &[], None);
    assert!(narrow.project(&[4, 1]));
    let read = narrow.read(&start, &end).await.unwrap();
    assert_eq!(read[0][0].schema(), narrow.schema());
    assert_eq!(narrow.schema().field(1).data_type(), &DataType::Binary);
    let mut none = self::source(&script, &[], None);
    assert!(none.project(&[]));
    let read = none.read(&start, &end).await.unwrap();
    assert_eq!(read[0][0].num_rows(), 3);
}

#[tokio::test]
async fn limits_share_a_batch_among_partitions() {
    let script = Script::new(2);
    script.append(0, 90, Codec::None);
    script.append(1, 10, Codec::None);
    let mut limited = source(&script, &[("maxOffsetsPerTrigger", "20")], None);
    let start = limited.initial_offset().await.unwrap();
    assert_eq!(next(&mut limited, &start).await.0, r#"{"t":{"0":18,"1":2}}"#);
    let latest = limited.next_offset(&start, ReadLimit::Options).await.unwrap().latest;
    assert_eq!(latest.0, r#"{"t":{"0":90,"1":10}}"#);

    let mut patient = source(&script, &[("minOffsetsPerTrigger", "50")], None);
    // The first batch does not wait, as in Spark.
    let end = next(&mut patient, &start).await;
    assert_eq!(end.0, r#"{"t":{"0":90,"1":10}}"#);
    script.append(0, 49, Codec::None);
    assert_eq!(next(&mut patient, &end).await, end);
    {
        let waiting = patient.wait_beyond(&end);
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        script.append(1, 1, Codec::None);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    }
    assert_eq!(next(&mut patient, &end).await.0, r#"{"t":{"0":139,"1":11}}"#);
}

#[tokio::test]
async fn a_restart_keeps_its_start_and_sees_new_partitions() {
    let checkpoint = tempfile::tempdir().unwrap();
    let dir = checkpoint.path().join("sources/0");
    let script = Script::new(1);
    script.append(0, 5, Codec::None);
    let latest = [("startingOffsets", "latest")];
    let mut first = source(&script, &latest, Some(&dir));
    let start = first.initial_offset().await.unwrap();
    assert_eq!(start.0, r#"{"t":{"0":5}}"#);
    assert_eq!(std::fs::read(dir.join("0")).unwrap(), b"\0v1\n{\"t\":{\"0\":5}}");
    script.append(0, 5, Codec::None);
    script.logs.lock().insert(tp(1), Log::default());
    script.append(1, 2, Codec::None);
    let mut second = source(&script, &latest, Some(&dir));
    assert_eq!(second.initial_offset().await.unwrap(), start);
    let end = next(&mut second, &start).await;
    assert_eq!(end.0, r#"{"t":{"0":10,"1":2}}"#);
    let read = second.read(&start, &end).await.unwrap();
    assert_eq!(values(&read), [vec!["v5", "v6", "v7", "v8", "v9"], vec!["v0", "v1"]]);
    script.ids.lock().insert("t".to_owned(), Uuid::random());
    let mut third = source(&script, &latest, Some(&dir));
    let error = third.next_offset(&end, ReadLimit::Options).await.unwrap_err().to_string();
    assert!(error.contains("Topic t was deleted and created again"), "{error}");
}

#[tokio::test]
async fn lost_records_fail_the_query_unless_told_otherwise() {
    let script = Script::new(1);
    script.append(0, 5, Codec::None);
    script.append(0, 5, Codec::None);
    {
        let mut logs = script.logs.lock();
        let log = logs.get_mut(&tp(0)).unwrap();
        log.batches.remove(0);
        log.start = 5;
    }
    let (start, end) = (offset(r#"{"t":{"0":2}}"#), offset(r#"{"t":{"0":8}}"#));
    let error = source(&script, &[], None).read(&start, &end).await.unwrap_err().to_string();
    assert!(error.contains("Offset 2 of t-0 is out of range.") && error.contains("failOnDataLoss"), "{error}");
    let lenient = [("failOnDataLoss", "false")];
    let read = source(&script, &lenient, None).read(&start, &end).await.unwrap();
    assert_eq!(values(&read), [vec!["v5", "v6", "v7"]]);
    // A checkpoint that is ahead of the log.
    let ahead = offset(r#"{"t":{"0":40}}"#);
    let error = source(&script, &[], None).next_offset(&ahead, ReadLimit::Options).await.unwrap_err().to_string();
    assert!(error.contains("Partition t-0's offset was changed from 40 to 10"), "{error}");
    let error = source(&script, &[], None).read(&start, &ahead).await.unwrap_err().to_string();
    assert!(error.contains("changed from 40 to 10"), "{error}");
}

#[tokio::test]
async fn waiting_ends_with_the_first_record() {
    let script = Script::new(2);
    let mut source = source(&script, &[], None);
    let start = source.initial_offset().await.unwrap();
    {
        let waiting = source.wait_beyond(&start);
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        script.append(1, 1, Codec::None);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    }
    assert_eq!(next(&mut source, &start).await.0, r#"{"t":{"0":0,"1":1}}"#);
}

#[tokio::test]
async fn available_now_ends_at_what_was_there() {
    let script = Script::new(2);
    script.append(0, 10, Codec::None);
    for options in [&[][..], &[("maxOffsetsPerTrigger", "4")], &[("minOffsetsPerTrigger", "100")]] {
        let mut source = source(&script, options, None);
        let mut at = source.initial_offset().await.unwrap();
        source.prepare_available_now().await.unwrap();
        let end = script.logs.lock()[&tp(0)].end();
        loop {
            // A producer that never rests.
            script.append(0, 5, Codec::None);
            script.append(1, 5, Codec::None);
            let next = next(&mut source, &at).await;
            if next == at {
                break;
            }
            at = next;
        }
        let offsets = KafkaOffsets::from_source_offset(&at).unwrap();
        assert_eq!(offsets.get(&tp(0)), Some(end), "{options:?}");
    }
}

#[tokio::test]
async fn a_batch_is_bounded_by_its_size_in_memory() {
    const BUDGET: usize = 4 << 20;
    // Small records, large ones that compress well, and first the ones, then the others.
    let cases = [(0..0, 60_000), (0..1_000, 0), (1_000..1_400, 60_000)];
    for (large, small) in cases {
        let script = Script::new(2);
        for _ in 0..small / 1_000 {
            script.append_padded(0, 500, Codec::Zstd, 110);
            script.append_padded(1, 500, Codec::None, 110);
        }
        for _ in large.clone() {
            script.append_padded(0, 2, Codec::Zstd, 10_000);
        }
        let mut source = source(&script, &[], None);
        let mut at = source.initial_offset().await.unwrap();
        let (mut sizes, mut seen) = (Vec::new(), 0);
        loop {
            let next = source.next_offset(&at, ReadLimit::Bytes(BUDGET)).await.unwrap().end;
            if next == at {
                break;
            }
            let read = source.read(&at, &next).await.unwrap();
            sizes.push(read.iter().flatten().map(RecordBatch::get_array_memory_size).sum::<usize>());
            seen += read.iter().flatten().map(RecordBatch::num_rows).sum::<usize>();
            at = next;
        }
        assert_eq!(seen, small + 2 * large.len());
        // A step that the last size misled stops at twice the budget, and what is being decoded is added.
        assert!(sizes.iter().all(|size| *size <= 5 * BUDGET / 2), "{sizes:?}");
        let total: usize = sizes.iter().sum();
        assert!(sizes.len() <= 2 + 2 * total / BUDGET, "{} batches of {total} bytes", sizes.len());
    }
}

#[tokio::test]
async fn a_trigger_asks_for_the_ends_once_or_not_at_all() {
    let script = Script::new(2);
    script.append(0, 10, Codec::None);
    let mut source = source(&script, &[], None);
    let start = source.initial_offset().await.unwrap();
    let listings = || script.listings.load(Ordering::Relaxed);
    let before = listings();
    source.wait_beyond(&start).await.unwrap();
    let end = next(&mut source, &start).await;
    assert_eq!(listings(), before);
    assert_eq!(next(&mut source, &end).await, end);
    assert_eq!(listings(), before + 1);
}

#[tokio::test]
async fn a_position_out_of_range_ends_the_waiting() {
    let script = Script::new(1);
    script.append(0, 5, Codec::None);
    // Retention has taken everything that was to come, and there is nothing new.
    script.logs.lock().insert(tp(0), Log { start: 9, batches: Vec::new() });
    let old = offset(r#"{"t":{"0":5}}"#);
    let mut lenient = source(&script, &[("failOnDataLoss", "false")], None);
    let wait = async |source: &mut KafkaSource, at: &SourceOffset| {
        tokio::time::timeout(Duration::from_secs(10), source.wait_beyond(at)).await.unwrap().unwrap();
    };
    wait(&mut lenient, &old).await;
    let end = next(&mut lenient, &old).await;
    assert_eq!(end.0, r#"{"t":{"0":9}}"#);
    assert_eq!(values(&lenient.read(&old, &end).await.unwrap()).concat(), Vec::<String>::new());
    // The log was cut off behind the position.
    let ahead = offset(r#"{"t":{"0":40}}"#);
    wait(&mut lenient, &ahead).await;
    assert_eq!(next(&mut lenient, &ahead).await.0, r#"{"t":{"0":9}}"#);
    let mut strict = source(&script, &[], None);
    wait(&mut strict, &ahead).await;
    let error = strict.next_offset(&ahead, ReadLimit::Options).await.unwrap_err().to_string();
    assert!(error.contains("changed from 40 to 9"), "{error}");
}

#[tokio::test]
async fn a_topic_that_was_made_again_is_read_from_its_first_record() {
    let checkpoint = tempfile::tempdir().unwrap();
    let dir = checkpoint.path().join("sources/0");
    let script = Script::new(1);
    script.append(0, 5, Codec::None);
    let lenient = [("failOnDataLoss", "false")];
    let mut first = source(&script, &lenient, Some(&dir));
    let start = first.initial_offset().await.unwrap();
    let end = next(&mut first, &start).await;
    drop(first);
    script.ids.lock().insert("t".to_owned(), Uuid::random());
    script.logs.lock().insert(tp(0), Log::default());
    script.append(0, 8, Codec::None);
    let all: Vec<String> = (0..8).map(|n| format!("v{n}")).collect();
    let mut second = source(&script, &lenient, Some(&dir));
    tokio::time::timeout(Duration::from_secs(10), second.wait_beyond(&end)).await.unwrap().unwrap();
    let new = next(&mut second, &end).await;
    assert_eq!(values(&second.read(&end, &new).await.unwrap()).concat(), all);
    drop(second);
    // Died before the batch was done: it is run again.
    let mut third = source(&script, &lenient, Some(&dir));
    assert_eq!(values(&third.read(&end, &new).await.unwrap()).concat(), all);
    // The commit of the batch before, which may come late, changes nothing.
    third.commit(&end).await.unwrap();
    assert_eq!(values(&third.read(&end, &new).await.unwrap()).concat(), all);
    third.commit(&new).await.unwrap();
    script.append(0, 1, Codec::None);
    let mut fourth = source(&script, &lenient, Some(&dir));
    let last = next(&mut fourth, &new).await;
    assert_eq!(values(&fourth.read(&new, &last).await.unwrap()).concat(), ["v8"]);
}

/// No time passes in which the source would ask for the topics again.
#[tokio::test]
async fn a_topic_that_is_made_again_while_a_query_runs_is_read_from_its_first_record() {
    for limit in [None, Some(("maxOffsetsPerTrigger", "1000"))] {
        let checkpoint = tempfile::tempdir().unwrap();
        let script = Script::new(1);
        script.append(0, 5, Codec::None);
        let options: Vec<_> = [("failOnDataLoss", "false")].into_iter().chain(limit).collect();
        let mut lenient = source(&script, &options, Some(checkpoint.path()));
        let mut strict = source(&script, &[], None);
        let start = lenient.initial_offset().await.unwrap();
        let end = next(&mut lenient, &start).await;
        assert_eq!(values(&lenient.read(&start, &end).await.unwrap()).concat().len(), 5);
        assert_eq!(next(&mut strict, &start).await, end);

        script.ids.lock().insert("t".to_owned(), Uuid::random());
        script.logs.lock().insert(tp(0), Log::default());
        script.append(0, 8, Codec::None);
        let new = next(&mut lenient, &end).await;
        let all: Vec<String> = (0..8).map(|n| format!("v{n}")).collect();
        assert_eq!(values(&lenient.read(&end, &new).await.unwrap()).concat(), all);
        lenient.commit(&new).await.unwrap();
        assert_eq!(next(&mut lenient, &new).await, new);
        // Nothing of the new topic is taken for the rest of the old one.
        let refused = strict.next_offset(&end, ReadLimit::Options).await.unwrap_err().to_string();
        assert!(refused.contains("Topic t was deleted and created again"), "{refused}");
    }
}

/// The scripted topic as a table.
#[derive(Debug)]
struct ScriptTable(KafkaTable, Arc<Script>);

#[async_trait]
impl SourceFactory for ScriptTable {
    async fn open(&self, checkpoint: Option<&std::path::Path>) -> Result<Box<dyn Source>, EngineError> {
        Ok(Box::new(self.0.open_on(Arc::clone(&self.1) as Arc<dyn Cluster>, checkpoint)?))
    }

    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn description(&self) -> String {
        self.0.description()
    }
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_read_in_pieces_when_it_is_executed() {
    let script = Script::new(2);
    for _ in 0..500 {
        script.append_padded(0, 10, Codec::Zstd, 10_000);
        script.append_padded(1, 10, Codec::Zstd, 10_000);
    }
    let table = KafkaTable::table(&options(&[])).unwrap();
    let context = SessionContext::new();
    let table = BoundedTable::new(Arc::new(ScriptTable(table, Arc::clone(&script))));
    context.register_table("t", Arc::new(table)).unwrap();
    let run = async |sql: &str| context.sql(sql).await.unwrap().collect().await.unwrap();
    let reads = || script.reads.swap(0, Ordering::Relaxed);
    run("explain select * from t").await;
    assert_eq!(reads(), 0);
    let few = run("select value from t limit 10").await;
    assert_eq!(few.iter().map(RecordBatch::num_rows).sum::<usize>(), 10);
    let for_few = reads();
    let sum = run("select count(*), sum(length(cast(value as string))), min(\"offset\") from t").await;
    let column = |index: usize| sum[0].column(index).as_primitive::<Int64Type>().value(0);
    assert_eq!((column(0), column(1), column(2)), (10_000, 100_000_000, 0));
    let for_all = reads();
    assert!(for_few <= 3 && for_all > 2 * for_few, "{for_few} of {for_all} reads");
    let counted = run("select count(*) from t where partition = 1").await;
    assert_eq!(counted[0].column(0).as_primitive::<Int64Type>().value(0), 5_000);
}

#[tokio::test]
async fn progress_is_committed_to_a_group_named_after_the_query() {
    let script = Script::new(1);
    let mut source = source(&script, &[], None);
    source.set_query_name(Some("totals"), "id");
    source.commit(&offset(r#"{"t":{"0":3}}"#)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), script.committed.notified()).await.unwrap();
    assert_eq!(script.commits.lock()[0], ("totals".to_owned(), vec![(tp(0), 3)]));
    // The last offsets are not lost when the query ends between two commits.
    source.commit(&offset(r#"{"t":{"0":4}}"#)).await.unwrap();
    source.stop().await;
    assert_eq!(script.commits.lock()[1].1, vec![(tp(0), 4)]);
}

#[tokio::test]
async fn times_and_explicit_offsets_start_a_stream() {
    let script = Script::new(1);
    script.append(0, 10, Codec::None);
    let by_time = [("startingTimestamp", "1600000000004")];
    assert_eq!(source(&script, &by_time, None).initial_offset().await.unwrap().0, r#"{"t":{"0":4}}"#);
    let late = [("startingTimestamp", "1700000000000")];
    let error = source(&script, &late, None).initial_offset().await.unwrap_err().to_string();
    assert!(
        error.contains("No offset matched from request of topic-partition t-0 and timestamp 1700000000000"),
        "{error}"
    );
    let tolerant = [late[0], ("startingOffsetsByTimestampStrategy", "latest")];
    assert_eq!(source(&script, &tolerant, None).initial_offset().await.unwrap().0, r#"{"t":{"0":10}}"#);
    let partial = [("startingOffsets", r#"{"t":{"1":0}}"#)];
    let error = source(&script, &partial, None).initial_offset().await.unwrap_err().to_string();
    assert!(error.contains("you must specify all TopicPartitions") && error.contains("assigned: t-0"), "{error}");
    let bounded = options(&[("startingOffsets", r#"{"t":{"0":-2}}"#), ("endingOffsets", r#"{"t":{"0":7}}"#)]);
    let mut batch =
        KafkaTable::table(&bounded).unwrap().open_on(Arc::clone(&script) as Arc<dyn Cluster>, None).unwrap();
    let start = batch.initial_offset().await.unwrap();
    batch.prepare_available_now().await.unwrap();
    let end = next(&mut batch, &start).await;
    assert_eq!(values(&batch.read(&start, &end).await.unwrap())[0].len(), 7);
}

#[test]
fn wrong_options_are_refused_as_spark_refuses_them() {
    let error =
        |options: &[(&str, &str)]| KafkaTable::stream(&options.iter().copied().collect()).unwrap_err().to_string();
    let servers = ("kafka.bootstrap.servers", "127.0.0.1:1");
    let cases: [(&[(&str, &str)], &str); 9] = [
        (
            &[servers],
            "One of the following options must be specified for Kafka source: subscribe, subscribepattern, assign.",
        ),
        (&[("subscribe", "a")], "Option 'kafka.bootstrap.servers' must be specified for configuring Kafka consumer"),
        (&[servers, ("subscribe", ",")], "No topics to subscribe to as specified value for option 'subscribe' is ','"),
        (&[servers, ("assign", "xx")], "No topicpartitions to assign as specified value for option 'assign' is 'xx'"),
        (&[servers, ("subscribe", "a"), ("endingOffsets", "latest")], "ending offset not valid in streaming queries"),
        (&[servers, ("subscribe", "a"), ("minPartitions", "0")], "minPartitions must be positive"),
        (
            &[servers, ("subscribe", "a"), ("startingOffset", "x")],
            "no option 'startingOffset'; did you mean 'startingOffsets'?",
        ),
        (
            &[servers, ("subscribe", "a"), ("kafka.auto.offset.reset", "latest")],
            "Kafka option 'auto.offset.reset' is not supported.",
        ),
        (&[servers, ("subscribe", "a"), ("kafka.fetch.min.byte", "1")], "did you mean 'fetch.min.bytes'?"),
    ];
    for (options, expected) in cases {
        let found = error(options);
        assert!(found.contains(expected), "{found}");
    }
}

/// Runs `select` over the script until it has read what is there; the rows of each batch, and the offsets in the sink.
async fn drain(script: &Arc<Script>, checkpoint: &std::path::Path) -> (Vec<u64>, Vec<i64>) {
    let table = KafkaTable::stream(&options(&[("maxOffsetsPerTrigger", "60000")])).unwrap();
    let context = SessionContext::new();
    let relation = StreamRelation::new("t", Arc::new(ScriptTable(table, Arc::clone(script))));
    context.register_table("t", Arc::new(relation)).unwrap();
    let plan = context.sql("select \"offset\", value from t").await.unwrap().into_unoptimized_plan();
    let rows = MemoryRows::new(Arc::new(plan.schema().as_arrow().clone()));
    let spec = StreamingQuerySpec {
        name: None,
        plan,
        output_mode: OutputMode::Append,
        sink: Box::new(MemorySink::new(rows.clone())),
        trigger: Trigger::AvailableNow,
        checkpoint: Some(checkpoint.to_owned()),
        session: context.state(),
        conf: BTreeMap::new(),
    };
    let query = start(spec).await.unwrap();
    query.await_termination().await.unwrap();
    let batches = query.recent_progress().iter().map(|progress| progress.num_input_rows).collect();
    let mut offsets = Vec::new();
    for batch in rows.snapshot() {
        let values = batch.column(1).as_binary::<i32>();
        for (offset, value) in batch.column(0).as_primitive::<Int64Type>().iter().zip(values) {
            assert_eq!(value.unwrap(), format!("v{}", offset.unwrap()).as_bytes());
            offsets.push(offset.unwrap());
        }
    }
    offsets.sort_unstable();
    (batches, offsets)
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_are_read_ahead_hold_every_record_once() {
    let script = Script::new(1);
    for _ in 0..20 {
        script.append(0, 10_000, Codec::None);
    }
    let temp = tempfile::tempdir().unwrap();
    let (batches, offsets) = drain(&script, temp.path()).await;
    assert_eq!(batches, [60_000, 60_000, 60_000, 20_000]);
    assert_eq!(offsets, (0..200_000).collect::<Vec<_>>());

    // The last commits are lost: what was planned runs again as it was, then what has come since.
    for id in 2..4 {
        std::fs::remove_file(temp.path().join("commits").join(id.to_string())).unwrap();
    }
    for _ in 0..7 {
        script.append(0, 10_000, Codec::None);
    }
    let (batches, offsets) = drain(&script, temp.path()).await;
    assert_eq!(batches, [60_000, 20_000, 60_000, 10_000]);
    assert_eq!(offsets, (120_000..270_000).collect::<Vec<_>>());
}
