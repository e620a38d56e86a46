//! Records gather here, batch by batch and partition by partition, until the sender takes them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use hashbrown::HashMap;

use super::Record;
use super::batch::{Batch, BatchState, Delivery};
use super::partitioner::partition_of_key;
use crate::metadata::TopicMetadata;

/// Settings that matter while records gather.
#[derive(Debug, Clone, Copy)]
pub(super) struct AccumulatorConfig {
    pub codec: Codec,
    pub batch_size_bytes: usize,
    pub buffer_memory_bytes: usize,
    pub max_request_bytes: usize,
    pub linger: Duration,
    pub ignore_keys: bool,
}

impl AccumulatorConfig {
    /// Bytes before compression that make a full batch.
    fn fill_limit(&self, ratio: f64) -> usize {
        if self.codec == Codec::None {
            return self.batch_size_bytes;
        }
        let uncompressed = self.batch_size_bytes as f64 / (ratio * RATIO_MARGIN);
        (uncompressed as usize).clamp(self.batch_size_bytes, self.max_request_bytes.max(self.batch_size_bytes))
    }
}

#[derive(Debug)]
pub(super) struct Accumulator {
    config: AccumulatorConfig,
    topics: Vec<TopicQueue>,
    by_name: HashMap<String, usize>,
    /// Partitions that hold batches.
    active: Vec<(usize, i32)>,
    used_bytes: usize,
    /// Batches that are not done yet, here or with the sender.
    incomplete: HashMap<u64, Arc<BatchState>>,
    next_id: u64,
    /// Calls that want everything sent at once.
    pub flushing: usize,
    /// Sends that wait for memory.
    pub starved: usize,
    pub closing: bool,
}

#[derive(Debug)]
struct TopicQueue {
    name: Arc<str>,
    partitions: Vec<VecDeque<Batch>>,
    /// Where records without a key may go: the partitions that have a leader, or all if none has.
    keyless: Vec<i32>,
    /// Where they go at present.
    sticky: i32,
    /// Compressed bytes per byte, as far as known: `batch.size` counts what is sent, not what was handed over.
    ratio: f64,
}

/// By how much the estimate follows a better, and at least a worse, batch; as the Java client has it.
const RATIO_IMPROVING: f64 = 0.005;
const RATIO_DETERIORATING: f64 = 0.05;
/// Batches are filled as if they compressed a little worse than they do.
const RATIO_MARGIN: f64 = 1.05;

/// What came of an attempt to add a record.
pub(super) enum Added {
    /// `wake`: the sender has something new to look at.
    Done {
        delivery: Delivery,
        wake: bool,
    },
    /// The topic is not known yet.
    NoTopic,
    NoPartition {
        partitions: usize,
    },
    NoMemory,
    Closed,
}

impl Accumulator {
    pub(super) fn new(config: AccumulatorConfig) -> Accumulator {
        Accumulator {
            config,
            topics: Vec::new(),
            by_name: HashMap::new(),
            active: Vec::new(),
            used_bytes: 0,
            incomplete: HashMap::new(),
            next_id: 0,
            flushing: 0,
            starved: 0,
            closing: false,
        }
    }

    /// Takes a topic in, or notes that it has more partitions or other leaders now.
    pub(super) fn set_topic(&mut self, found: &TopicMetadata) {
        let (name, count) = (found.name.as_str(), found.partitions.len());
        let led = found.partitions.iter().filter(|p| p.leader.is_some());
        let mut keyless: Vec<i32> = led.map(|p| p.partition).collect();
        if keyless.is_empty() {
            keyless.extend(found.partitions.iter().map(|p| p.partition));
        }
        let at = *self.by_name.entry(name.to_owned()).or_insert(self.topics.len());
        if at == self.topics.len() {
            let (partitions, keyless) = (Vec::new(), Vec::new());
            self.topics.push(TopicQueue { name: name.into(), partitions, keyless, sticky: -1, ratio: 1.0 });
        }
        let Some(topic) = self.topics.get_mut(at) else { return };
        if topic.partitions.len() < count {
            topic.partitions.resize_with(count, VecDeque::new);
        }
        topic.keyless = keyless;
        if !topic.keyless.contains(&topic.sticky) {
            topic.sticky = pick_sticky(&topic.keyless, -1);
        }
    }

    pub(super) fn topic_names(&self) -> Vec<String> {
        self.by_name.keys().cloned().collect()
    }

    pub(super) fn topic_name(&self, topic: usize) -> Option<&Arc<str>> {
        self.topics.get(topic).map(|t| &t.name)
    }

    pub(super) fn partition_count(&self, topic: &str) -> Option<usize> {
        self.by_name.get(topic).and_then(|at| self.topics.get(*at)).map(|t| t.partitions.len())
    }

    /// Adds a record to the last batch of its partition, or begins one.
    pub(super) fn add(&mut self, record: &Record<'_>, timestamp_ms: i64) -> Added {
        if self.closing {
            return Added::Closed;
        }
        let Some(&at) = self.by_name.get(record.topic) else { return Added::NoTopic };
        let Some(topic) = self.topics.get_mut(at) else { return Added::NoTopic };
        let count = topic.partitions.len();
        let (partition, sticky) = match (record.partition, record.key) {
            (Some(partition), _) => (partition, false),
            (None, Some(key)) if !self.config.ignore_keys => (partition_of_key(key, count), false),
            _ => (topic.sticky, true),
        };
        let queue = usize::try_from(partition).ok().and_then(|at| topic.partitions.get_mut(at));
        let Some(queue) = queue else { return Added::NoPartition { partitions: count } };
        let size = record.size_bytes();
        // A single record larger than the memory is refused before it comes here.
        if self.used_bytes + size > self.config.buffer_memory_bytes && self.used_bytes > 0 {
            return Added::NoMemory;
        }
        let mut wake = false;
        let batch_size = self.config.fill_limit(topic.ratio);
        let fits = queue.back().is_some_and(|b| {
            !b.full
                && b.builder.as_ref().is_some_and(|builder| {
                    let with = builder.size_with(timestamp_ms, record.key, record.value, record.headers);
                    with <= batch_size
                })
        });
        if !fits {
            if let Some(full) = queue.back_mut() {
                full.full = true;
                if sticky {
                    topic.sticky = pick_sticky(&topic.keyless, partition);
                }
            } else {
                self.active.push((at, partition));
            }
            wake = true;
            let state = BatchState::new(Arc::clone(&topic.name), partition);
            self.incomplete.insert(self.next_id, Arc::clone(&state));
            queue.push_back(new_batch(self.next_id, state, at, partition, self.config.codec));
            self.next_id += 1;
        }
        let Some(batch) = queue.back_mut() else { return Added::NoTopic };
        let Some(builder) = batch.builder.as_mut() else { return Added::NoTopic };
        builder.append(timestamp_ms, record.key, record.value, record.headers);
        let index = batch.count.unsigned_abs();
        batch.count += 1;
        batch.memory_bytes += size;
        if builder.uncompressed_size_bytes() >= batch_size {
            batch.full = true;
            wake = true;
        }
        self.used_bytes += size;
        Added::Done { delivery: Delivery { state: Arc::clone(&batch.state), index, timestamp_ms }, wake }
    }

    pub(super) fn active(&self) -> &[(usize, i32)] {
        &self.active
    }

    /// Whether the first batch of a partition is to be sent now; else when.
    pub(super) fn ready_at(&self, topic: usize, partition: i32, now: Instant) -> Option<Instant> {
        let queue = self.queue(topic, partition)?;
        let first = queue.front()?;
        let at_once = first.full || queue.len() > 1 || self.flushing > 0 || self.closing || self.starved > 0;
        Some(if at_once { now } else { first.created + self.config.linger })
    }

    pub(super) fn front(&self, topic: usize, partition: i32) -> Option<&Batch> {
        self.queue(topic, partition)?.front()
    }

    fn queue(&self, topic: usize, partition: i32) -> Option<&VecDeque<Batch>> {
        self.topics.get(topic)?.partitions.get(usize::try_from(partition).ok()?)
    }

    /// Takes the first batch of a partition.
    pub(super) fn take(&mut self, topic: usize, partition: i32) -> Option<Batch> {
        let queue = self.topics.get_mut(topic)?.partitions.get_mut(usize::try_from(partition).ok()?)?;
        let batch = queue.pop_front();
        if queue.is_empty() {
            self.active.retain(|active| *active != (topic, partition));
        }
        let topic = self.topics.get_mut(topic)?;
        if topic.sticky == partition {
            topic.sticky = pick_sticky(&topic.keyless, partition);
        }
        batch
    }

    /// Learns from a batch how well a topic's records compress.
    pub(super) fn compressed(&mut self, topic: usize, before_bytes: usize, after_bytes: usize) {
        let Some(topic) = self.topics.get_mut(topic).filter(|_| before_bytes > 0) else { return };
        let observed = after_bytes as f64 / before_bytes as f64;
        topic.ratio = if observed > topic.ratio {
            observed.max(topic.ratio + RATIO_DETERIORATING).min(1.0)
        } else {
            observed.max(topic.ratio - RATIO_IMPROVING)
        };
    }

    /// A batch of the topic was too large: begin to learn anew.
    pub(super) fn too_large(&mut self, topic: usize) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.ratio = 1.0;
        }
    }

    /// A batch that was cut out of another.
    pub(super) fn register_part(&mut self, state: &Arc<BatchState>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.incomplete.insert(id, Arc::clone(state));
        id
    }

    /// Gives back what a batch held.
    pub(super) fn release(&mut self, id: u64, memory_bytes: usize) {
        self.used_bytes = self.used_bytes.saturating_sub(memory_bytes);
        self.incomplete.remove(&id);
    }

    pub(super) fn incomplete(&self) -> Vec<Arc<BatchState>> {
        self.incomplete.values().cloned().collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.incomplete.is_empty()
    }
}

fn new_batch(id: u64, state: Arc<BatchState>, topic: usize, partition: i32, codec: Codec) -> Batch {
    let now = Instant::now();
    Batch {
        id,
        order: (id, 0),
        state,
        topic,
        partition,
        created: now,
        builder: Some(BatchBuilder::new(codec)),
        bytes: Bytes::new(),
        count: 0,
        memory_bytes: 0,
        sequence: None,
        uncertain: false,
        told: false,
        attempts: 0,
        retry_at: now,
        last_error: None,
        full: false,
    }
}

/// Any of the partitions, but not the last one if there are others.
fn pick_sticky(partitions: &[i32], last: i32) -> i32 {
    if partitions.len() <= 1 {
        return partitions.first().copied().unwrap_or(0);
    }
    let pick = rand::random_range(0..partitions.len());
    let picked = |at: usize| partitions.get(at % partitions.len()).copied().unwrap_or(0);
    if picked(pick) == last { picked(pick + 1) } else { picked(pick) }
}
