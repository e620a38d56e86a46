//! The Kafka sink over a scripted cluster that dies between any two batches: every row is there exactly once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use caudal_client::{Error, OffsetRange, OffsetSpec};
use caudal_engine::error::EngineError;
use caudal_engine::options::Options;
use caudal_engine::sink::kafka::KafkaSink;
use caudal_engine::sink::kafka::cluster::{Cluster, Produced, Visit};
use caudal_engine::sink::{OutputMode, Sink, SinkStart};
use caudal_protocol::batch::{Batch, stamp_offset};
use caudal_protocol::{ErrorCode, TopicPartition};
use parking_lot::Mutex;

use crate::runtime::support::directory;

const PARTITIONS: usize = 2;

#[derive(Default)]
struct State {
    logs: BTreeMap<TopicPartition, Vec<Batch>>,
    next_producer: i64,
    /// Batches that still get through before the cluster is cut off.
    lives: Option<usize>,
    /// Batches whose answer is lost once, though they were written.
    lose_answers: usize,
    /// How often somebody looked for records.
    reads: usize,
    /// The sink's log, and how many lines it had at each request.
    log: Option<PathBuf>,
    log_lines: Vec<usize>,
}

/// A cluster in memory that checks sequence numbers as Kafka does.
#[derive(Default)]
struct Script(Mutex<State>);

impl State {
    fn end(&self, tp: &TopicPartition) -> i64 {
        self.logs.get(tp).and_then(|log| log.last()).map_or(0, |b| b.header.next_offset())
    }

    fn append(&mut self, tp: &TopicPartition, bytes: Bytes) -> Produced {
        if self.lives == Some(0) {
            return Err((ErrorCode::PolicyViolation, "cut off".to_owned()));
        }
        let new = Batch::parse(&bytes).unwrap().header;
        let same = |b: &&Batch| b.header.producer_id == new.producer_id;
        let earlier: Vec<&Batch> = self.logs.get(tp).into_iter().flatten().filter(same).collect();
        if let Some(duplicate) = earlier.iter().rev().take(5).find(|b| b.header.base_sequence == new.base_sequence) {
            assert_eq!(duplicate.header.record_count, new.record_count);
            return Ok(duplicate.header.base_offset);
        }
        let expected = earlier.last().map_or(0, |b| b.header.last_sequence() + 1);
        if new.base_sequence != expected {
            return Err((ErrorCode::OutOfOrderSequenceNumber, format!("{} is not {expected}", new.base_sequence)));
        }
        let base = self.end(tp);
        let mut stamped = BytesMut::from(&bytes[..]);
        stamp_offset(&mut stamped, base, 0);
        self.logs.entry(tp.clone()).or_default().push(Batch::parse(&stamped.freeze()).unwrap());
        self.lives = self.lives.map(|n| n - 1);
        if self.lose_answers > 0 {
            self.lose_answers -= 1;
            return Err((ErrorCode::NetworkException, "the answer was lost".to_owned()));
        }
        Ok(base)
    }
}

#[async_trait]
impl Cluster for Script {
    async fn partitions(&self, _topic: &str) -> Result<usize, Error> {
        Ok(PARTITIONS)
    }

    async fn producer_id(&self) -> Result<(i64, i16), Error> {
        let mut state = self.0.lock();
        state.next_producer += 1;
        Ok((state.next_producer, 0))
    }

    async fn offsets(
        &self,
        partitions: &[TopicPartition],
        spec: OffsetSpec,
    ) -> Result<Vec<(TopicPartition, i64)>, Error> {
        let state = self.0.lock();
        let offset = |tp: &TopicPartition| if spec == OffsetSpec::Earliest { 0 } else { state.end(tp) };
        Ok(partitions.iter().map(|tp| (tp.clone(), offset(tp))).collect())
    }

    async fn read(&self, range: OffsetRange, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        let mut state = self.0.lock();
        state.reads += 1;
        let log = state.logs.get(&range.partition).cloned().unwrap_or_default();
        log.into_iter().filter(|b| b.header.next_offset() > range.start).try_for_each(visit)
    }

    async fn produce(&self, batches: Vec<(TopicPartition, Bytes)>) -> Vec<(TopicPartition, Produced)> {
        let mut state = self.0.lock();
        if let Some(log) = &state.log {
            let lines = std::fs::read_to_string(log).unwrap().lines().count();
            state.log_lines.push(lines);
        }
        batches.into_iter().map(|(tp, bytes)| (tp.clone(), state.append(&tp, bytes))).collect()
    }
}

impl Script {
    /// Every value in the topic, sorted.
    fn values(&self) -> Vec<String> {
        let state = self.0.lock();
        let mut values = Vec::new();
        for batch in state.logs.values().flatten() {
            for record in batch.records(1 << 20).unwrap().iter() {
                values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
            }
        }
        values.sort();
        values
    }
}

/// Rows of batch `id`: keyed and keyless ones, two of them equal; `reversed` as a second run might order them.
fn rows(id: i64, reversed: bool) -> RecordBatch {
    let mut rows: Vec<(Option<String>, String)> =
        (0..12).map(|i| ((i % 3 != 0).then(|| format!("k{i}")), format!("{id:02}-{:02}", i / 2 * 2))).collect();
    if reversed {
        rows.reverse();
    }
    let schema = Schema::new(vec![Field::new("key", DataType::Utf8, true), Field::new("value", DataType::Utf8, true)]);
    let keys: StringArray = rows.iter().map(|(k, _)| k.clone()).collect();
    let values: StringArray = rows.iter().map(|(_, v)| Some(v.clone())).collect();
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(keys), Arc::new(values)]).unwrap()
}

fn expected(batches: i64) -> Vec<String> {
    (0..batches).flat_map(|id| (0..12).map(move |i| format!("{id:02}-{:02}", i / 2 * 2))).collect()
}

async fn open(script: &Arc<Script>, dir: &Path) -> KafkaSink {
    // Small requests: a micro-batch is several Kafka batches.
    let options: Options =
        [("kafka.bootstrap.servers", "127.0.0.1:1"), ("topic", "out"), ("kafka.max.request.size", "90")]
            .into_iter()
            .collect();
    let mut sink = KafkaSink::new(&options).unwrap().on(Arc::clone(script) as Arc<dyn Cluster>);
    let start = SinkStart { state_dir: dir, query_id: "q", committed: None, planned: None };
    sink.start(start).await.unwrap();
    sink
}

async fn add(sink: &mut KafkaSink, id: i64, reversed: bool) -> Result<u64, String> {
    let rows = rows(id, reversed);
    sink.add_batch(id, OutputMode::Append, rows.schema(), vec![rows]).await.map_err(|e| e.to_string())
}

/// Writes batches until the cluster is cut off or `end` is reached; the number of the first that is not done.
async fn run(script: &Arc<Script>, dir: &Path, first: i64, end: i64, reversed_to: i64) -> i64 {
    let mut sink = open(script, dir).await;
    for id in first..end {
        if add(&mut sink, id, id <= reversed_to).await.is_err() {
            return id;
        }
    }
    end
}

#[tokio::test]
async fn a_crash_after_any_request_neither_loses_nor_doubles_rows() {
    let mut crashes = 0;
    for lives in 0..40 {
        // `back`: power loss took the query's last commits as well, so that batches which are done run again.
        for (torn, back) in [(false, 0), (false, 1), (false, 2), (true, 0), (true, 1), (true, 2)] {
            let dir = directory();
            let dir = dir.path().join("sink");
            let script = Arc::new(Script::default());
            script.0.lock().lives = Some(lives);
            let mut done = run(&script, &dir, 0, 3, -1).await;
            crashes += usize::from(done < 3);
            if torn && done > 0 {
                // The entry of the batch was on its way to the disk when the power went; those before it are there.
                let path = dir.join("kafka-sink.log");
                let log = std::fs::read(&path).unwrap();
                std::fs::write(&path, &log[..log.len() - 2]).unwrap();
                if done == 3 {
                    done = 2;
                }
            }
            script.0.lock().lives = None;
            run(&script, &dir, (done - back).max(0), 4, done).await;
            assert_eq!(script.values(), expected(4), "cut off after {lives} requests, torn: {torn}, back: {back}");
        }
    }
    assert!(crashes > 60, "{crashes}");
}

#[tokio::test]
async fn a_second_crash_while_the_first_is_mended_changes_nothing() {
    for first in (0..25).step_by(3) {
        for second in 0..9 {
            for back in 0..2 {
                let dir = directory();
                let script = Arc::new(Script::default());
                script.0.lock().lives = Some(first);
                let done = run(&script, dir.path(), 0, 3, -1).await;
                script.0.lock().lives = Some(second);
                let again = run(&script, dir.path(), (done - back).max(0), 4, done).await;
                script.0.lock().lives = None;
                run(&script, dir.path(), (again - back).max(0), 5, -1).await;
                assert_eq!(script.values(), expected(5), "cut off after {first} and {second} requests, back: {back}");
            }
        }
    }
}

/// What a second run sends may have numbers that the first run's entry does not name, so its own must be there first.
#[tokio::test]
async fn a_second_run_logs_before_it_sends() {
    let dir = directory();
    let script = Arc::new(Script::default());
    assert_eq!(run(&script, dir.path(), 0, 1, -1).await, 1);
    script.0.lock().lives = Some(2);
    assert_eq!(run(&script, dir.path(), 1, 2, -1).await, 1);
    {
        let mut state = script.0.lock();
        state.lives = None;
        state.log = Some(dir.path().join("kafka-sink.log"));
    }
    // Opening the log leaves one line in it.
    assert_eq!(run(&script, dir.path(), 1, 2, 1).await, 2);
    assert!(script.0.lock().log_lines.iter().all(|lines| *lines == 2), "{:?}", script.0.lock().log_lines);
    assert_eq!(script.values(), expected(2));
}

#[tokio::test]
async fn after_an_orderly_stop_nobody_looks_for_records() {
    let dir = directory();
    let script = Arc::new(Script::default());
    for round in 0..3 {
        let mut sink = open(&script, dir.path()).await;
        if round > 0 {
            assert_eq!(add(&mut sink, round * 2 - 1, false).await, Ok(0), "the last batch of the run before");
        }
        for id in [round * 2, round * 2 + 1] {
            assert_eq!(add(&mut sink, id, false).await, Ok(12));
        }
        sink.stop().await.unwrap();
    }
    assert_eq!(script.0.lock().reads, 0);
    assert_eq!(script.values(), expected(6));
    // A crash in the first batch after such a stop.
    for lives in 0..10 {
        script.0.lock().lives = Some(lives);
        run(&script, dir.path(), 6, 7, -1).await;
    }
    script.0.lock().lives = None;
    assert_eq!(run(&script, dir.path(), 6, 8, 6).await, 8);
    assert_eq!(script.values(), expected(8));
}

#[tokio::test]
async fn a_batch_that_is_complete_is_not_written_again() {
    let dir = directory();
    let script = Arc::new(Script::default());
    let mut sink = open(&script, dir.path()).await;
    assert_eq!(add(&mut sink, 0, false).await, Ok(12));
    assert_eq!(add(&mut sink, 1, false).await, Ok(12));
    drop(sink);
    // The query died before it wrote that batch 1 is done; other producers wrote meanwhile.
    let mut other = open(&script, &dir.path().join("other")).await;
    add(&mut other, 7, false).await.unwrap();
    let mut sink = open(&script, dir.path()).await;
    assert_eq!(add(&mut sink, 1, true).await, Ok(0));
    assert_eq!(add(&mut sink, 0, false).await, Ok(0));
    assert_eq!(add(&mut sink, 2, false).await, Ok(12));
    let mut all = expected(3);
    all.extend((0..12).map(|i| format!("07-{:02}", i / 2 * 2)));
    assert_eq!(script.values(), all);
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    let dir = directory();
    let script = Arc::new(Script::default());
    script.0.lock().lose_answers = 5;
    let mut sink = open(&script, dir.path()).await;
    assert_eq!(add(&mut sink, 0, false).await, Ok(12));
    assert_eq!(script.values(), expected(1));
}

#[tokio::test]
async fn rows_that_are_no_records_are_refused_in_the_words_of_spark() {
    let servers = ("kafka.bootstrap.servers", "127.0.0.1:1");
    let text = || Arc::new(StringArray::from(vec![Some("x")])) as Arc<dyn Array>;
    let null = || Arc::new(StringArray::from(vec![None::<&str>])) as Arc<dyn Array>;
    let int = || Arc::new(Int32Array::from(vec![9])) as Arc<dyn Array>;
    let long = || Arc::new(Int64Array::from(vec![1])) as Arc<dyn Array>;
    type Columns = Vec<(&'static str, Arc<dyn Array>)>;
    let cases: Vec<(bool, Columns, &str)> = vec![
        (true, vec![("key", text())], "Required attribute 'value' not found"),
        (
            false,
            vec![("value", text())],
            "topic option required when no 'topic' attribute is present. Use the topic option for setting a topic.",
        ),
        (true, vec![("value", int())], "value attribute unsupported type Int32. value must be a(n) string or binary"),
        (true, vec![("value", text()), ("partition", long())], "partition must be a(n) int"),
        (
            true,
            vec![("value", text()), ("headers", text())],
            "headers must be a(n) array<struct<key:string,value:binary>>",
        ),
        (false, vec![("value", text()), ("topic", null())], "null topic present in the data."),
        (
            true,
            vec![("value", text()), ("partition", int())],
            "the row's partition 9 does not exist: topic 'out' has partitions 0 to 1",
        ),
    ];
    for (topic, columns, message) in cases {
        let mut options: Options = [servers].into_iter().collect();
        if topic {
            options.set("topic", "out");
        }
        let script = Arc::new(Script::default());
        let mut sink = KafkaSink::new(&options).unwrap().on(script as Arc<dyn Cluster>);
        let fields: Vec<Field> = columns.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), true)).collect();
        let arrays = columns.into_iter().map(|(_, a)| a).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
        let error = sink.add_batch(0, OutputMode::Append, batch.schema(), vec![batch]).await.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let refused: Options = [servers, ("topic", "t"), ("kafka.acks", "0")].into_iter().collect();
    assert!(KafkaSink::new(&refused).err().unwrap().to_string().contains("kafka.acks"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_as_many_as_the_option_allows() {
    for (retries, lost, fine) in [("0", 2, false), ("0", 0, true), ("1", 2, true)] {
        let (script, dir) = (Arc::new(Script::default()), directory());
        script.0.lock().lose_answers = lost;
        let options: Options = [("kafka.bootstrap.servers", "127.0.0.1:1"), ("topic", "t"), ("kafka.retries", retries)]
            .into_iter()
            .collect();
        let mut sink = KafkaSink::new(&options).unwrap().on(Arc::clone(&script) as Arc<dyn Cluster>);
        sink.start(SinkStart { state_dir: dir.path(), query_id: "q", committed: None, planned: None }).await.unwrap();
        let rows = rows(0, false);
        let done = sink.add_batch(0, OutputMode::Append, rows.schema(), vec![rows]).await;
        assert_eq!(done.is_ok(), fine, "{retries} retries, {lost} answers lost: {done:?}");
        if let Err(error) = done {
            assert!(error.to_string().contains("within kafka.retries"), "{error}");
        }
    }
}
