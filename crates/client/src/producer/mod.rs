//! The producer: records gather into batches per partition, one task sends them, idempotently by default.

mod accumulator;
mod batch;
mod numbering;
mod outcome;
mod partitioner;
mod sender;
mod transaction;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use caudal_protocol::compression::Codec;
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::accumulator::{Accumulator, AccumulatorConfig, Added};
use self::sender::{Sender, SenderConfig};
use self::transaction::Transactions;
use crate::client::Client;
use crate::config::{ClientConfig, ConfigError};
use crate::error::{Error, Result};

pub use self::batch::{Delivery, RecordMetadata};
pub use self::partitioner::{murmur2, partition_of_key};

/// Upper bound of what a batch and a record add to a key and a value (Kafka's `estimateSizeInBytesUpperBound`).
const RECORD_OVERHEAD_BYTES: usize = 61 + 21;

/// A record to send. Everything is copied into its batch by [`Producer::send`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Record<'a> {
    pub topic: &'a str,
    /// `None`: by the key's hash, or, without a key, one partition per batch.
    pub partition: Option<i32>,
    /// Milliseconds since the epoch; `None`: now.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Names may repeat and keep their order.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
}

impl<'a> Record<'a> {
    pub fn new(topic: &'a str, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Record<'a> {
        Record { topic, key, value, ..Default::default() }
    }

    fn size_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(k, v)| k.len() + v.map_or(0, <[u8]>::len) + 10).sum();
        RECORD_OVERHEAD_BYTES + self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len) + headers
    }
}

/// Sends records. Clones share buffers and connections; when the last one is dropped, what it holds is still sent as
/// long as the runtime lives. Call [`Producer::close`] to wait for it.
#[derive(Debug, Clone)]
pub struct Producer {
    shared: Arc<Shared>,
    _last: Arc<CloseOnDrop>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    client: Client,
    transactions: Option<Transactions>,
    accumulator: Mutex<Accumulator>,
    /// For the sender: there is something new.
    wake: Notify,
    /// For sends that wait: memory was given back.
    memory_freed: Notify,
    max_block: Duration,
    max_request_bytes: usize,
    buffer_memory_bytes: usize,
}

#[derive(Debug)]
struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.accumulator.lock().closing = true;
        self.0.wake.notify_one();
    }
}

impl Producer {
    pub async fn connect(config: ClientConfig) -> Result<Producer> {
        Producer::new(Client::connect(config).await?)
    }

    /// Over the connections and with the configuration of a client. Needs a tokio runtime: it starts the sending task.
    pub fn new(client: Client) -> Result<Producer> {
        Producer::build(client, None)
    }

    fn build(client: Client, transactions: Option<Transactions>) -> Result<Producer> {
        let config = client.config();
        let sender_config = SenderConfig::from_config(config)?;
        if transactions.is_some() && !sender_config.idempotent {
            return Err(Error::Misuse {
                what: "make a transactional producer".to_owned(),
                reason: "it has to be idempotent (enable.idempotence, acks=all, retries, max.in.flight of at most 5)"
                    .to_owned(),
            });
        }
        let accumulator = AccumulatorConfig {
            codec: Codec::from_name(&config.get("compression.type").to_ascii_lowercase()).unwrap_or_default(),
            batch_size_bytes: config.size("batch.size"),
            buffer_memory_bytes: config.size("buffer.memory"),
            max_request_bytes: config.size("max.request.size"),
            linger: config.duration("linger.ms"),
            ignore_keys: config.flag("partitioner.ignore.keys"),
        };
        check_delivery_timeout(config)?;
        let shared = Arc::new(Shared {
            max_block: config.duration("max.block.ms"),
            max_request_bytes: config.size("max.request.size"),
            buffer_memory_bytes: config.size("buffer.memory"),
            accumulator: Mutex::new(Accumulator::new(accumulator)),
            wake: Notify::new(),
            memory_freed: Notify::new(),
            transactions,
            client,
        });
        tokio::spawn(Sender::new(Arc::clone(&shared), sender_config).run());
        Ok(Producer { _last: Arc::new(CloseOnDrop(Arc::clone(&shared))), shared })
    }

    pub fn client(&self) -> &Client {
        &self.shared.client
    }

    /// Adds a record to its batch. Waits, up to `max.block.ms`, for the topic's metadata the first time and for memory
    /// (`buffer.memory`) when the cluster is slower than the caller. The result is a future of where it was written.
    pub async fn send(&self, record: Record<'_>) -> Result<Delivery> {
        match self.add(&record) {
            Ok(Some(delivery)) => Ok(delivery),
            Ok(None) => self.send_slowly(record).await,
            // The topic may have more partitions by now.
            Err(Error::Misuse { .. }) if record.partition.is_some_and(|p| p >= 0) => {
                self.shared.client.forget_topic(record.topic);
                self.send_slowly(record).await
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Producer::send`] when nothing has to be waited for, else `None`.
    pub fn try_send(&self, record: Record<'_>) -> Result<Option<Delivery>> {
        self.add(&record)
    }

    fn add(&self, record: &Record<'_>) -> Result<Option<Delivery>> {
        if let Some(transactions) = &self.shared.transactions {
            transactions.check_open()?;
        }
        let size = record.size_bytes();
        let limits =
            [("max.request.size", self.shared.max_request_bytes), ("buffer.memory", self.shared.buffer_memory_bytes)];
        for (property, limit_bytes) in limits {
            if size > limit_bytes {
                let topic = record.topic.to_owned();
                return Err(Error::RecordTooLarge { topic, size_bytes: size, property, limit_bytes });
            }
        }
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
        if timestamp_ms < 0 {
            return Err(Error::Misuse {
                what: format!("send a record to '{}'", record.topic),
                reason: format!("its timestamp {timestamp_ms} is negative"),
            });
        }
        let added = self.shared.accumulator.lock().add(record, timestamp_ms);
        match added {
            Added::Done { delivery, wake } => {
                if wake {
                    self.shared.wake.notify_one();
                }
                Ok(Some(delivery))
            }
            Added::NoTopic | Added::NoMemory => Ok(None),
            Added::NoPartition { partitions } => Err(Error::Misuse {
                what: format!("send a record to partition {} of '{}'", record.partition.unwrap_or(-1), record.topic),
                reason: format!("the topic has partitions 0 to {}", partitions.saturating_sub(1)),
            }),
            Added::Closed => Err(Error::Closed { what: "send a record with a producer" }),
        }
    }

    async fn send_slowly(&self, record: Record<'_>) -> Result<Delivery> {
        let deadline = Instant::now() + self.shared.max_block;
        loop {
            self.know_topic(record.topic, deadline).await?;
            let freed = self.shared.memory_freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(delivery) = self.add(&record)? {
                return Ok(delivery);
            }
            let starving = Starving::new(&self.shared);
            let waited = tokio::time::timeout_at(deadline.into(), freed).await;
            drop(starving);
            if waited.is_err() {
                return Err(Error::Timeout {
                    what: format!("find {} bytes of buffer.memory for a record", record.size_bytes()),
                    timeout_ms: u64::try_from(self.shared.max_block.as_millis()).unwrap_or(u64::MAX),
                    cause: None,
                });
            }
        }
    }

    /// Sees to it that the accumulator knows the topic; the broker may create it.
    async fn know_topic(&self, topic: &str, deadline: Instant) -> Result<()> {
        if self.shared.accumulator.lock().partition_count(topic).is_some()
            && self.shared.client.cached_topic(topic).is_some()
        {
            return Ok(());
        }
        // Also while a broker keeps its answer back.
        let found = tokio::time::timeout_at(deadline.into(), self.find_topic(topic, deadline)).await;
        found.unwrap_or_else(|_| {
            Err(Error::Timeout {
                what: format!("find topic '{topic}'"),
                timeout_ms: u64::try_from(self.shared.max_block.as_millis()).unwrap_or(u64::MAX),
                cause: None,
            })
        })
    }

    async fn find_topic(&self, topic: &str, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        // As in the Java client `retries` is about records: a topic that is only being made is waited for.
        let mut attempts = self.shared.client.attempts(format!("find topic '{topic}'"), left).unlimited();
        loop {
            match self.shared.client.fresh_topic(topic, true).await {
                Ok(found) if !found.partitions.is_empty() => {
                    self.shared.accumulator.lock().set_topic(&found);
                    return Ok(());
                }
                Ok(_) => attempts.pause(Error::server(format!("describe topic '{topic}'"), 5, None)).await?,
                Err(error) => attempts.pause(error).await?,
            }
        }
    }

    /// Waits until every record that was handed over before is written or has failed; sends at once what lingers.
    pub async fn flush(&self) {
        let flushing = Flushing::new(&self.shared);
        let incomplete = self.shared.accumulator.lock().incomplete();
        self.shared.wake.notify_one();
        for state in incomplete {
            state.done().await;
        }
        drop(flushing);
    }

    /// Takes no more records, and waits until those handed over are written or have failed.
    pub async fn close(&self) {
        self.shared.accumulator.lock().closing = true;
        self.flush().await;
    }

    /// The partitions of a topic, as the producer knows them.
    pub async fn partitions(&self, topic: &str) -> Result<usize> {
        self.know_topic(topic, Instant::now() + self.shared.max_block).await?;
        Ok(self.shared.accumulator.lock().partition_count(topic).unwrap_or(0))
    }
}

/// While it lives, everything is sent without lingering.
struct Flushing<'a>(&'a Shared);

impl<'a> Flushing<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.accumulator.lock().flushing += 1;
        Flushing(shared)
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        self.0.accumulator.lock().flushing -= 1;
    }
}

/// While it lives, some send waits for memory: batches are not kept back to fill.
struct Starving<'a>(&'a Shared);

impl<'a> Starving<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.accumulator.lock().starved += 1;
        shared.wake.notify_one();
        Starving(shared)
    }
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.0.accumulator.lock().starved -= 1;
    }
}

/// As the Java client demands: `delivery.timeout.ms` leaves room for lingering and one request.
fn check_delivery_timeout(config: &ClientConfig) -> Result<(), ConfigError> {
    let needed = config.int("linger.ms").saturating_add(config.int("request.timeout.ms"));
    if config.is_set("delivery.timeout.ms") && config.int("delivery.timeout.ms") < needed {
        return Err(ConfigError::BadValue {
            name: "delivery.timeout.ms".to_owned(),
            value: config.get("delivery.timeout.ms").to_owned(),
            allowed: format!("at least linger.ms + request.timeout.ms, which is {needed}"),
        });
    }
    Ok(())
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
