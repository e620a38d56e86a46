//! Rows as Kafka records, exactly once without transactions (Spark's Kafka sink is at-least-once).
//!
//! The query is one idempotent producer for its whole life: its producer id and, per partition, the sequence number before
//! each batch stand in the sink's log in the checkpoint. After a crash the batch is sent again, and what of it arrived is
//! known exactly: the records in the topic that carry this producer id and the sequence numbers that are the batch's. They
//! are matched with the replayed rows by content, the rest is sent with the numbers that follow. A request of the dead
//! process that still arrives late collides with these numbers and is refused by the broker. See
//! `docs/decisions/2026-11-22-kafka-sink-exactly-once.md`.

pub mod cluster;
mod log;
mod readback;
mod rows;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use bytes::Bytes;
use caudal_client::{ClientConfig, Error, OffsetSpec};
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_protocol::{ErrorCode, TopicPartition};
use hashbrown::HashMap;

use super::{OutputMode, Sink, SinkStart};
use crate::blocking::block;
use crate::error::EngineError;
use crate::options::{Options, invalid};
use crate::source::kafka::options::client_config;
use cluster::{ClientCluster, Cluster};
use log::{Entry, Position, SinkLog, advance};
use readback::{Written, find_written};
use rows::{Rows, check_schema};

/// Bytes of rows without a key that go to one partition before the next one takes over.
const KEYLESS_BYTES: usize = 16 * 1024;

type Positions = BTreeMap<TopicPartition, Position>;
/// Which row of which rows, by partition, in order.
type Assigned = BTreeMap<TopicPartition, Vec<(usize, usize)>>;

/// Writes every batch's rows to topics.
pub struct KafkaSink {
    config: ClientConfig,
    topic: Option<String>,
    codec: Codec,
    max_batch_bytes: usize,
    delivery_timeout: Duration,
    /// `retries`: how often one round of records is sent again.
    retries: u32,
    cluster: Option<Arc<dyn Cluster>>,
    log: Option<SinkLog>,
    /// The newest entry of the log.
    last: Option<Entry>,
    /// Where the producer stands; `None` until the topics were looked at after a start or a failure.
    positions: Option<Positions>,
}

impl KafkaSink {
    /// Options: `kafka.*` and `topic`.
    pub fn new(options: &Options) -> Result<Self, EngineError> {
        options.check_known("kafka", &["topic", "includeHeaders"], &["kafka."])?;
        let config = client_config(options)?;
        if config.get("acks") == "0" {
            return Err(invalid(
                "option 'kafka.acks' is 0: without answers nothing can be written exactly once; use all",
            ));
        }
        Ok(KafkaSink {
            topic: options.get("topic").map(str::to_owned),
            codec: Codec::from_name(&config.get("compression.type").to_ascii_lowercase()).unwrap_or_default(),
            max_batch_bytes: config.get("max.request.size").parse().unwrap_or(1 << 20),
            delivery_timeout: Duration::from_millis(config.get("delivery.timeout.ms").parse().unwrap_or(120_000)),
            retries: config.get("retries").parse().unwrap_or(u32::MAX),
            config,
            cluster: None,
            log: None,
            last: None,
            positions: None,
        })
    }

    /// Over this cluster instead of the one that the options name.
    pub fn on(mut self, cluster: Arc<dyn Cluster>) -> Self {
        self.cluster = Some(cluster);
        self
    }

    async fn cluster(&mut self) -> Result<Arc<dyn Cluster>, EngineError> {
        if let Some(cluster) = &self.cluster {
            return Ok(Arc::clone(cluster));
        }
        let connected = ClientCluster::connect(self.config.clone()).await.map_err(|e| failed("connect to", &e))?;
        let cluster: Arc<dyn Cluster> = Arc::new(connected);
        self.cluster = Some(Arc::clone(&cluster));
        Ok(cluster)
    }

    /// The producer of this query's life, and where it stood before the batch; looks for what a crashed attempt wrote.
    async fn begin(&mut self, batch_id: i64, cluster: &dyn Cluster) -> Result<Batch, EngineError> {
        let Some(last) = &self.last else {
            let producer = self.producer_id(cluster).await?;
            return Ok(Batch { producer, before: Positions::new(), written: Written::default() });
        };
        let producer = last.producer();
        if let Some(positions) = self.positions.take() {
            return Ok(Batch { producer, before: positions, written: Written::default() });
        }
        if last.finished {
            // The query stopped in order before this batch: nothing of it can be there.
            return Ok(Batch { producer, before: last.before(), written: Written::default() });
        }
        // The entry of a batch that runs again tells its numbers. Those behind the last entry are the next batch's: its
        // entry was lost, since it may become durable beside the sending.
        let again = last.batch_id == batch_id;
        let before = if again { last.before() } else { last.after() };
        let written = find_written(cluster, producer, &before, again).await?;
        Ok(Batch { producer, before, written })
    }

    /// A producer id; a broker that has just started may need a moment for one.
    async fn producer_id(&self, cluster: &dyn Cluster) -> Result<(i64, i16), EngineError> {
        let mut retry = Retry::new(self.delivery_timeout, self.retries);
        loop {
            match cluster.producer_id().await {
                Err(error) if error.is_retriable() => retry.pause(error.to_string()).await?,
                answer => return answer.map_err(|e| failed("get a producer id from", &e)),
            }
        }
    }

    /// Chooses a partition for every row that was not written yet.
    async fn assign(
        &self,
        batch_id: i64,
        rows: &[Rows],
        cluster: &dyn Cluster,
        written: &mut Written,
    ) -> Result<Assigned, EngineError> {
        let mut counts: HashMap<String, usize> = HashMap::new();
        let mut assigned = Assigned::new();
        let mut turn = usize::try_from(batch_id).unwrap_or_default();
        let mut keyless_bytes = 0;
        for (index, rows) in rows.iter().enumerate() {
            for row in 0..rows.len {
                let topic = rows.topic(row, self.topic.as_deref())?;
                if written.take(topic, rows, row) {
                    continue;
                }
                let count = match counts.get(topic) {
                    Some(count) => *count,
                    None => {
                        let count = cluster.partitions(topic).await.map_err(|e| failed("find the topic in", &e))?;
                        counts.insert(topic.to_owned(), count);
                        count
                    }
                };
                keyless_bytes += rows.value(row).map_or(0, <[u8]>::len);
                if keyless_bytes > KEYLESS_BYTES {
                    keyless_bytes = 0;
                    turn += 1;
                }
                let keyless = i32::try_from(turn % count.max(1)).unwrap_or_default();
                let tp = rows.partition(row, topic, count, keyless)?;
                assigned.entry(tp).or_default().push((index, row));
            }
        }
        Ok(assigned)
    }

    /// Sends the rows, one batch in flight per partition, and moves the positions behind them.
    async fn send(
        &self,
        cluster: &dyn Cluster,
        producer: (i64, i16),
        rows: &[Rows],
        assigned: Assigned,
        positions: &mut Positions,
    ) -> Result<(), EngineError> {
        let mut queues: BTreeMap<TopicPartition, VecDeque<(usize, usize)>> =
            assigned.into_iter().map(|(tp, rows)| (tp, rows.into())).collect();
        let mut sending: BTreeMap<TopicPartition, (Bytes, u64)> = BTreeMap::new();
        let mut retry = Retry::new(self.delivery_timeout, self.retries);
        loop {
            for (tp, queue) in queues.iter_mut().filter(|(_, queue)| !queue.is_empty()) {
                if !sending.contains_key(tp) {
                    let position = positions.entry(tp.clone()).or_default();
                    sending.insert(tp.clone(), self.fill(producer, position.sequence, rows, queue)?);
                }
            }
            if sending.is_empty() {
                return Ok(());
            }
            let batches = sending.iter().map(|(tp, (bytes, _))| (tp.clone(), bytes.clone())).collect();
            let mut failure = None;
            let mut progressed = false;
            for (tp, result) in cluster.produce(batches).await {
                let Some((_, records)) = sending.get(&tp) else { continue };
                let position = positions.entry(tp.clone()).or_default();
                match result {
                    Ok(base) => position.offset = position.offset.max(base.saturating_add(records.cast_signed())),
                    // Arrived with an earlier try whose answer was lost.
                    Err((ErrorCode::DuplicateSequenceNumber, _)) => {}
                    Err((code, message)) if code.is_retriable() => {
                        failure = Some(format!("{tp}: {message} ({})", code.name()));
                        continue;
                    }
                    Err((code, message)) => return Err(refused(&tp, code, &message)),
                }
                position.sequence = advance(position.sequence, *records);
                sending.remove(&tp);
                progressed = true;
            }
            if progressed {
                retry = Retry::new(self.delivery_timeout, self.retries);
            } else {
                retry.pause(failure.unwrap_or_else(|| "no answer".to_owned())).await?;
            }
        }
    }

    /// Takes rows from the queue for one Kafka batch. Returns it and the number of its records.
    fn fill(
        &self,
        producer: (i64, i16),
        sequence: i32,
        rows: &[Rows],
        queue: &mut VecDeque<(usize, usize)>,
    ) -> Result<(Bytes, u64), EngineError> {
        let mut builder = BatchBuilder::new(self.codec).producer(producer.0, producer.1, sequence);
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        while let Some((index, row)) = queue.front().copied() {
            let Some(source) = rows.get(index) else { break };
            let headers = source.headers(row);
            let (key, value) = (source.key(row), source.value(row));
            let size = builder.size_with(now_ms, key, value, &headers);
            if size > self.max_batch_bytes {
                if builder.is_empty() {
                    return Err(EngineError::Invalid {
                        class: "KAFKA_SINK",
                        message: format!(
                            "a record of {size} bytes is larger than kafka.max.request.size, which is {} bytes; raise \
                             it (and the topic's max.message.bytes) or write less",
                            self.max_batch_bytes
                        ),
                    });
                }
                break;
            }
            builder.append(now_ms, key, value, &headers);
            queue.pop_front();
        }
        let records = builder.len() as u64;
        let bytes = builder.build().map_err(|e| EngineError::External {
            action: "compress records for Kafka".to_owned(),
            message: e.to_string(),
        })?;
        Ok((bytes.freeze(), records))
    }

    async fn write(&mut self, batch_id: i64, batches: &[RecordBatch]) -> Result<u64, EngineError> {
        if batches.iter().all(|b| b.num_rows() == 0) {
            return Ok(0);
        }
        let cluster = self.cluster().await?;
        let rows: Vec<Rows> = batches.iter().map(Rows::new).collect::<Result<_, _>>()?;
        let Batch { producer, before, mut written } = self.begin(batch_id, cluster.as_ref()).await?;
        if written.later {
            // The batch after this one was begun, so this one is complete. The next batch looks for what it has sent.
            return Ok(0);
        }
        let found = written.records;
        let assigned = self.assign(batch_id, &rows, cluster.as_ref(), &mut written).await?;
        if !written.left.is_empty() {
            tracing::warn!(
                batch_id,
                records = written.left.values().sum::<u64>(),
                "the batch gave other rows when it was run again after a crash; records of the first run stay in the topic"
            );
        }
        let mut planned = before.clone();
        let mut positions = written.positions(&before);
        let finished = self.last.as_ref().is_some_and(|last| last.finished);
        let new: Vec<TopicPartition> =
            assigned.keys().filter(|tp| finished || !planned.contains_key(*tp)).cloned().collect();
        if !new.is_empty() {
            let ends = cluster.offsets(&new, OffsetSpec::Latest).await.map_err(|e| failed("read offsets from", &e))?;
            for (tp, offset) in ends {
                for positions in [&mut planned, &mut positions] {
                    let position = positions.entry(tp.clone()).or_default();
                    position.offset = position.offset.max(offset);
                }
            }
        }
        for (tp, position) in &mut planned {
            let sent = assigned.get(tp).map_or(0, |rows| rows.len() as u64);
            position.records = sent + written.counts.get(tp).copied().unwrap_or(0);
        }
        let entry = Entry::new(batch_id, producer, &planned);
        // Nothing may go out that the log could not account for. Without this entry the one before it does, for the
        // partitions that it knows: everything behind it is this batch's. That holds for a batch's first run only: what a
        // second one sends may lie behind the numbers of the first one's entry.
        let beside =
            new.is_empty() && self.last.as_ref().is_some_and(|last| !last.finished && last.batch_id < batch_id);
        let mut log = self.log.take();
        let append = entry.clone();
        let mut logging = tokio::task::spawn_blocking(move || -> Result<Option<SinkLog>, EngineError> {
            if let Some(log) = &mut log {
                log.append(&append)?;
            }
            Ok(log)
        });
        let joined = |r: Result<Result<Option<SinkLog>, EngineError>, tokio::task::JoinError>| {
            r.map_err(|e| EngineError::External { action: "write the sink's log".to_owned(), message: e.to_string() })?
        };
        if beside {
            let sent = self.send(cluster.as_ref(), producer, &rows, assigned, &mut positions).await;
            self.log = joined((&mut logging).await)?;
            self.last = Some(entry);
            sent?;
        } else {
            self.log = joined((&mut logging).await)?;
            self.last = Some(entry);
            self.send(cluster.as_ref(), producer, &rows, assigned, &mut positions).await?;
        }
        self.positions = Some(positions);
        let rows = rows.iter().map(|r| r.len as u64).sum::<u64>();
        Ok(rows.saturating_sub(found.min(rows)))
    }
}

/// What is known when a batch begins.
struct Batch {
    producer: (i64, i16),
    before: Positions,
    written: Written,
}

fn failed(what: &str, error: &Error) -> EngineError {
    EngineError::External { action: format!("{what} Kafka"), message: error.to_string() }
}

fn refused(tp: &TopicPartition, code: ErrorCode, message: &str) -> EngineError {
    let advice = match code {
        ErrorCode::OutOfOrderSequenceNumber => {
            "; records of an earlier attempt may have arrived just now, or another query uses this checkpoint: \
             start the query again, it then looks at what is there"
        }
        ErrorCode::MessageTooLarge => "; raise the topic's max.message.bytes or lower kafka.max.request.size",
        _ => "",
    };
    EngineError::External {
        action: format!("write records to {tp}"),
        message: format!("{message} ({}){advice}", code.name()),
    }
}

/// Waits between tries until a deadline.
struct Retry {
    deadline: Instant,
    wait: Duration,
    left: u32,
}

impl Retry {
    fn new(timeout: Duration, retries: u32) -> Self {
        Retry { deadline: Instant::now() + timeout, wait: Duration::from_millis(20), left: retries }
    }

    async fn pause(&mut self, failure: String) -> Result<(), EngineError> {
        let late = Instant::now() + self.wait >= self.deadline;
        if late || self.left == 0 {
            let limit = if late { "kafka.delivery.timeout.ms" } else { "kafka.retries" };
            return Err(EngineError::External {
                action: format!("write records to Kafka within {limit}"),
                message: failure,
            });
        }
        self.left -= 1;
        tracing::debug!(failure, "trying again to write records");
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(Duration::from_secs(1));
        Ok(())
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn description(&self) -> String {
        "org.apache.spark.sql.kafka010.KafkaSourceProvider$KafkaTable".to_owned()
    }

    fn check_mode(&self, _mode: OutputMode) -> Result<(), EngineError> {
        Ok(())
    }

    async fn start(&mut self, start: SinkStart<'_>) -> Result<(), EngineError> {
        let (log, last) = block(|| SinkLog::open(start.state_dir))?;
        self.log = Some(log);
        self.last = last;
        self.positions = None;
        Ok(())
    }

    async fn add_batch(
        &mut self,
        batch_id: i64,
        _mode: OutputMode,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<u64, EngineError> {
        check_schema(&schema, self.topic.as_deref())?;
        let taken = |last: &Entry| batch_id < last.batch_id || last.finished && batch_id == last.batch_id;
        if self.last.as_ref().is_some_and(taken) {
            return Ok(0);
        }
        // After a failure it is not known what arrived: `positions` stays empty then, and the next attempt looks.
        self.write(batch_id, &batches).await
    }

    async fn stop(&mut self) -> Result<(), EngineError> {
        let (Some(last), Some(positions), Some(log)) = (&self.last, &self.positions, &mut self.log) else {
            return Ok(());
        };
        if last.finished {
            return Ok(());
        }
        let mut entry = Entry::new(last.batch_id, last.producer(), positions);
        entry.finished = true;
        block(|| log.append(&entry))?;
        self.last = Some(entry);
        Ok(())
    }
}
