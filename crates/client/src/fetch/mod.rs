//! Reading offset ranges as raw record batches, and waiting for data: the engine's way to a cluster.

pub(crate) mod request;
pub(crate) mod visible;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use caudal_protocol::batch::Batch;
use caudal_protocol::messages::FetchRequest;
use caudal_protocol::messages::fetch_response::PartitionData;
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::request::{Answered, Batched, Limits, Position};
use crate::client::{ANY_VERSION, Client, Lane};
use crate::error::{Error, Result};
use crate::metadata::TopicMetadata;
use crate::offsets::{Isolation, ListedOffset, OffsetSpec};
use crate::subscription::Topics;

/// Bytes per partition and answer where `max.partition.fetch.bytes` is left at its default, which is chosen for
/// consumers that poll 500 records at a time.
const PARTITION_BYTES: i32 = 4 * 1024 * 1024;
/// Bytes per answer where `fetch.max.bytes` is left at its default: bounds what is held ahead of the caller.
const ANSWER_BYTES: i32 = 16 * 1024 * 1024;
/// Chunks that are fetched ahead of the caller.
const CHUNKS_AHEAD: usize = 4;
/// From this many records on, ranges are read over several connections.
const PARALLEL_RECORDS: i64 = 20_000;
/// Connections over which ranges are read, at most.
const MOST_LANES: usize = 4;

/// Offsets `start..end` (end exclusive) of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetRange {
    pub partition: TopicPartition,
    pub start: i64,
    pub end: i64,
}

/// A piece of a range: whole batches, as they stand in the log.
#[derive(Debug, Clone)]
pub struct Chunk {
    pub partition: TopicPartition,
    /// Of the topic that these batches are from; zero where the broker answers by names only (Fetch before version 13).
    pub topic_id: Uuid,
    /// Ascending. The first may hold records before the range's start and the last some from its end on: skip those.
    /// Control batches and, for [`Isolation::ReadCommitted`], batches of aborted transactions are left out.
    pub batches: Vec<Batch>,
    /// The offset at which the next chunk of the partition continues.
    pub next_offset: i64,
    /// Whether the range is complete.
    pub is_last: bool,
}

/// The end of what can be read of a partition (exclusive).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Available {
    pub partition: TopicPartition,
    pub end_offset: i64,
}

/// What a wait brought along, kept for the read that follows it.
#[derive(Debug)]
struct Ahead {
    start: i64,
    topic_id: Uuid,
    batched: Batched,
}

/// Reads raw record batches. Clones share connections.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: Client,
    isolation: Isolation,
    limits: Limits,
    check_crcs: bool,
    ahead: Arc<Mutex<HashMap<TopicPartition, Ahead>>>,
}

impl Fetcher {
    /// Heeds `isolation.level`, `fetch.max.bytes`, `max.partition.fetch.bytes`, `fetch.max.wait.ms`, `fetch.min.bytes`
    /// and `check.crcs` of the client's configuration.
    pub fn new(client: Client) -> Fetcher {
        let config = client.config();
        let bytes = |name, default| if config.is_set(name) { config.int32(name) } else { default };
        let limits = Limits {
            max_wait_ms: config.int32("fetch.max.wait.ms"),
            min_bytes: config.int32("fetch.min.bytes"),
            max_bytes: bytes("fetch.max.bytes", ANSWER_BYTES),
            partition_max_bytes: bytes("max.partition.fetch.bytes", PARTITION_BYTES),
        };
        let isolation = Isolation::from_name(config.get("isolation.level"));
        let check_crcs = config.flag("check.crcs");
        Fetcher { client, isolation, limits, check_crcs, ahead: Arc::default() }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// The topics of a subscription that exist, with ids and partitions, freshly asked for. For a list of names, one
    /// that does not exist is an error.
    pub async fn topics(&self, topics: &Topics) -> Result<Vec<Arc<TopicMetadata>>> {
        match topics {
            Topics::Names(names) => {
                let mut found = Vec::with_capacity(names.len());
                for name in names {
                    self.client.forget_topic(name);
                    found.push(self.client.topic(name).await?);
                }
                Ok(found)
            }
            Topics::Pattern(pattern) => {
                let all = self.client.all_topics().await?;
                Ok(all.into_iter().filter(|t| !t.is_internal && pattern.matches(&t.name)).collect())
            }
        }
    }

    /// One offset per partition; the first failure fails the call.
    pub async fn offsets(
        &self,
        partitions: &[TopicPartition],
        spec: OffsetSpec,
    ) -> Result<Vec<(TopicPartition, ListedOffset)>> {
        self.client.offsets(partitions, spec, self.isolation).await
    }

    /// Reads ranges, at most one of each partition, partitions in parallel, while the caller works on what has come already. Chunks of one partition
    /// come in order.
    pub fn read(&self, ranges: Vec<OffsetRange>) -> ChunkStream {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let mut tasks = JoinSet::new();
        for (lane, ranges) in into_lanes(ranges).into_iter().enumerate() {
            let (fetcher, sender) = (self.clone(), sender.clone());
            tasks.spawn(async move {
                if let Err(error) = fetcher.read_all(ranges, Lane::Read(lane), &sender).await {
                    // The receiver may have gone: then nobody wants to know.
                    drop(sender.send(Err(error)).await);
                }
            });
        }
        ChunkStream { receiver, _tasks: tasks }
    }

    /// As [`Fetcher::read`], collected: all batches of each range, in the order of the ranges.
    pub async fn read_to_end(&self, ranges: &[OffsetRange]) -> Result<Vec<Vec<Batch>>> {
        let mut all: Vec<Vec<Batch>> = vec![Vec::new(); ranges.len()];
        let mut chunks = self.read(ranges.to_vec());
        while let Some(chunk) = chunks.next().await? {
            let at = ranges.iter().position(|r| r.partition == chunk.partition);
            if let Some(batches) = at.and_then(|at| all.get_mut(at)) {
                batches.extend(chunk.batches);
            }
        }
        Ok(all)
    }

    async fn read_all(&self, ranges: Vec<OffsetRange>, lane: Lane, sender: &mpsc::Sender<Result<Chunk>>) -> Result<()> {
        let mut open: BTreeMap<TopicPartition, OffsetRange> = BTreeMap::new();
        for mut range in ranges {
            if let Some(chunk) = self.take_ahead(&mut range)
                && sender.send(Ok(chunk)).await.is_err()
            {
                return Ok(());
            }
            if open.contains_key(&range.partition) {
                return Err(Error::Misuse {
                    what: format!("read {}", range.partition),
                    reason: "two ranges of it were asked for at once; read one after the other".to_owned(),
                });
            }
            if range.start < range.end {
                open.insert(range.partition.clone(), range);
            }
        }
        let mut attempts = self.client.api_attempts("read records");
        while !open.is_empty() {
            let before: i64 = open.values().map(|r| r.start).sum::<i64>();
            let (chunks, failure) = self.read_round(&mut open, lane).await?;
            let progressed = !chunks.is_empty() || open.values().map(|r| r.start).sum::<i64>() != before;
            for chunk in chunks {
                if sender.send(Ok(chunk)).await.is_err() {
                    return Ok(());
                }
            }
            if progressed {
                attempts = self.client.api_attempts("read records");
            } else {
                attempts.pause(failure.unwrap_or_else(|| still_missing(&open))).await?;
            }
        }
        Ok(())
    }

    /// The part of a range that the last wait brought along; moves the range's start behind it.
    fn take_ahead(&self, range: &mut OffsetRange) -> Option<Chunk> {
        let ahead = self.ahead.lock().remove(&range.partition)?;
        if ahead.start != range.start || range.start >= range.end {
            return None;
        }
        Some(chunk(range, ahead.topic_id, ahead.batched))
    }

    /// One fetch per leader, all at once.
    async fn read_round(
        &self,
        open: &mut BTreeMap<TopicPartition, OffsetRange>,
        lane: Lane,
    ) -> Result<(Vec<Chunk>, Option<Error>)> {
        let wanted: Vec<(TopicPartition, i64)> = open.values().map(|r| (r.partition.clone(), r.start)).collect();
        let (mut answers, mut failure) = self.ask_leaders(&wanted, lane).await;
        let mut chunks = Vec::new();
        while let Some(answer) = answers.join_next().await {
            let answer = match answer.map_err(|_| Error::Closed { what: "read records" })? {
                Ok(answer) => answer,
                Err(error) if error.is_retriable() => {
                    failure = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (tp, topic_id, mut data) in answer {
                let Some(range) = open.get_mut(&tp) else { continue };
                if let Some(error) = self.partition_error(&tp, range.start, &data)? {
                    failure = Some(error);
                    continue;
                }
                let batched = request::batches(&tp, range.start, &mut data, self.isolation, self.check_crcs)?;
                if batched.next_offset > range.start {
                    let chunk = chunk(range, topic_id, batched);
                    if chunk.is_last {
                        open.remove(&tp);
                    }
                    chunks.push(chunk);
                }
            }
        }
        Ok((chunks, failure))
    }

    /// Sends one fetch to each leader of the partitions.
    async fn ask_leaders(
        &self,
        wanted: &[(TopicPartition, i64)],
        lane: Lane,
    ) -> (JoinSet<Result<Vec<Answered>>>, Option<Error>) {
        let mut failure = None;
        let mut by_leader: BTreeMap<i32, Vec<Position>> = BTreeMap::new();
        for (tp, offset) in wanted {
            let known = self.client.by_leader([tp]).await;
            match known.and_then(|_| request::position(&self.client, tp, *offset)) {
                Ok((leader, position)) => by_leader.entry(leader).or_default().push(position),
                Err(error) => failure = Some(error),
            }
        }
        let mut answers = JoinSet::new();
        for (leader, positions) in by_leader {
            answers.spawn(fetch(self.client.clone(), leader, lane, positions, self.limits, self.isolation));
        }
        (answers, failure)
    }

    /// The error of a partition: `Ok(Some)` when the fetch is worth another try.
    fn partition_error(&self, tp: &TopicPartition, offset: i64, data: &PartitionData) -> Result<Option<Error>> {
        let code = ErrorCode::from_code(data.error_code);
        if code == ErrorCode::None {
            return Ok(None);
        }
        self.client.forget_topic(&tp.topic);
        if code == ErrorCode::OffsetOutOfRange {
            return Err(Error::OffsetOutOfRange { partition: tp.clone(), offset });
        }
        let error = Error::server(format!("read {tp} at offset {offset}"), data.error_code, None);
        if error.is_retriable() { Ok(Some(error)) } else { Err(error) }
    }

    /// Returns as soon as some partition has data at or beyond the offset given for it (the next one to read): a long
    /// poll, no loop of sleeps. What came with the answer is kept for the next [`Fetcher::read`] that starts there.
    /// Cancel safe: when dropped, nothing is lost.
    pub async fn wait_beyond(&self, offsets: &[(TopicPartition, i64)]) -> Result<Vec<Available>> {
        let mut attempts = self.client.api_attempts("wait for records");
        loop {
            let (mut answers, mut failure) = self.ask_leaders(offsets, Lane::Wait).await;
            while let Some(answer) = answers.join_next().await {
                match answer.map_err(|_| Error::Closed { what: "wait for records" })? {
                    Ok(answer) => match self.take_available(offsets, answer)? {
                        (found, _) if !found.is_empty() => return Ok(found),
                        (_, Some(error)) => failure = Some(error),
                        _ => {}
                    },
                    Err(error) => failure = Some(error),
                }
            }
            match failure {
                Some(error) => {
                    self.forget_topics(offsets);
                    attempts.pause(error).await?;
                }
                None => attempts = self.client.api_attempts("wait for records"),
            }
        }
    }

    fn forget_topics(&self, offsets: &[(TopicPartition, i64)]) {
        for (tp, _) in offsets {
            self.client.forget_topic(&tp.topic);
        }
    }

    fn take_available(
        &self,
        offsets: &[(TopicPartition, i64)],
        answer: Vec<Answered>,
    ) -> Result<(Vec<Available>, Option<Error>)> {
        let mut found = Vec::new();
        let mut failure = None;
        for (tp, topic_id, mut data) in answer {
            let Some((_, offset)) = offsets.iter().find(|(wanted, _)| *wanted == tp) else { continue };
            if let Some(error) = self.partition_error(&tp, *offset, &data)? {
                failure = Some(error);
                continue;
            }
            let end_offset = request::visible_end(&data, self.isolation);
            if end_offset > *offset {
                let batched = request::batches(&tp, *offset, &mut data, self.isolation, self.check_crcs)?;
                if batched.next_offset > *offset {
                    self.ahead.lock().insert(tp.clone(), Ahead { start: *offset, topic_id, batched });
                }
                found.push(Available { partition: tp, end_offset });
            }
        }
        Ok((found, failure))
    }
}

/// Shares ranges out over connections when there is much to read; ranges of one partition stay together.
fn into_lanes(ranges: Vec<OffsetRange>) -> Vec<Vec<OffsetRange>> {
    let records: i64 = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let lanes = if records < PARALLEL_RECORDS { 1 } else { cores.min(MOST_LANES).min(ranges.len()).max(1) };
    let mut shared: Vec<Vec<OffsetRange>> = vec![Vec::new(); lanes];
    for range in ranges {
        let lane = usize::try_from(range.partition.partition).unwrap_or(0) % lanes;
        if let Some(ranges) = shared.get_mut(lane) {
            ranges.push(range);
        }
    }
    shared.retain(|ranges| !ranges.is_empty());
    shared
}

/// Cuts what was read to the range and moves the range's start.
fn chunk(range: &mut OffsetRange, topic_id: Uuid, batched: Batched) -> Chunk {
    let mut batches = batched.batches;
    batches.retain(|b| b.header.base_offset < range.end);
    range.start = batched.next_offset.min(range.end);
    let (partition, next_offset) = (range.partition.clone(), range.start);
    Chunk { partition, topic_id, batches, next_offset, is_last: next_offset >= range.end }
}

fn still_missing(open: &BTreeMap<TopicPartition, OffsetRange>) -> Error {
    match open.values().next() {
        Some(r) => {
            let what = format!("read {} from offset {} to {}", r.partition, r.start, r.end);
            Error::server(what, ErrorCode::OffsetNotAvailable.code(), Some("the log does not reach that far yet"))
        }
        None => Error::Closed { what: "read records" },
    }
}

async fn fetch(
    client: Client,
    leader: i32,
    lane: Lane,
    positions: Vec<Position>,
    limits: Limits,
    isolation: Isolation,
) -> Result<Vec<Answered>> {
    let request = FetchRequest {
        max_wait_ms: limits.max_wait_ms,
        min_bytes: limits.min_bytes,
        max_bytes: limits.max_bytes,
        isolation_level: isolation.level(),
        topics: request::topics(&positions, limits.partition_max_bytes),
        rack_id: client.config().get("client.rack").to_owned(),
        ..Default::default()
    };
    let wait = Duration::from_millis(u64::try_from(limits.max_wait_ms).unwrap_or(0));
    let timeout = client.request_timeout() + wait;
    let answer = client.send_on(leader, lane, &request, ANY_VERSION, timeout).await;
    let response = answer.inspect_err(|_| {
        // The leader may have moved while its broker was away.
        for position in &positions {
            client.forget_topic(&position.partition.topic);
        }
    })?;
    crate::error::check(response.error_code, None, || format!("fetch from broker {leader}"))?;
    let name_of = |id: &Uuid| positions.iter().find(|p| p.topic_id == *id).map(|p| p.partition.topic.clone());
    Ok(request::flatten(response.responses, name_of))
}

/// Chunks as they arrive. Dropping it stops the reading.
#[derive(Debug)]
pub struct ChunkStream {
    receiver: mpsc::Receiver<Result<Chunk>>,
    _tasks: JoinSet<()>,
}

impl ChunkStream {
    /// The next chunk; `None` when all ranges are complete. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Chunk>> {
        self.receiver.recv().await.transpose()
    }
}
