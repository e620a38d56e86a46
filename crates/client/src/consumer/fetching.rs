//! Fetches of the consumer: one at a time per broker, ahead of what poll has returned.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use caudal_protocol::messages::fetch_response::PartitionData;
use caudal_protocol::messages::{FetchRequest, FetchResponse};
use caudal_protocol::{ErrorCode, TopicPartition};

use super::offsets::ResetPolicy;
use super::partition::{FetchFailure, Wanted};
use super::session::FetchSession;
use super::{Consumer, Event};
use crate::client::{ANY_VERSION, Lane};
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::fetch::request::{Limits, Position, batches, flatten, position};
use crate::outage::Stall;

/// The state of fetching.
#[derive(Debug)]
pub(super) struct Fetching {
    limits: Limits,
    check_crcs: bool,
    rack_id: String,
    nodes: HashMap<i32, NodeState>,
    refreshing: bool,
    refresh_at: Option<Instant>,
    /// Partitions to read have no leader.
    leaderless: Stall,
}

#[derive(Debug, Default)]
struct NodeState {
    session: FetchSession,
    in_flight: bool,
    retry_at: Option<Instant>,
}

/// The answer of a broker.
#[derive(Debug)]
pub(super) struct Fetched {
    node: i32,
    /// What was asked: partition, epoch of its state, offset.
    asked: HashMap<TopicPartition, (u64, i64)>,
    result: Result<FetchResponse>,
}

impl Fetching {
    pub(super) fn from_config(config: &ClientConfig) -> Fetching {
        Fetching {
            limits: Limits {
                max_wait_ms: config.int32("fetch.max.wait.ms"),
                min_bytes: config.int32("fetch.min.bytes"),
                max_bytes: config.int32("fetch.max.bytes"),
                partition_max_bytes: config.int32("max.partition.fetch.bytes"),
            },
            check_crcs: config.flag("check.crcs"),
            rack_id: config.get("client.rack").to_owned(),
            nodes: HashMap::new(),
            refreshing: false,
            refresh_at: None,
            leaderless: Stall::default(),
        }
    }

    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        self.nodes.values().filter_map(|n| n.retry_at).chain(self.refresh_at).filter(|at| *at > now).min()
    }
}

impl Consumer {
    /// Sends a fetch to every broker that has none in flight and whose partitions all have room.
    pub(super) fn send_fetches(&mut self, now: Instant) {
        let bytes = |limit: i32| usize::try_from(limit).unwrap_or(0);
        // One answer is on its way while another is being taken.
        let (high, node_high) =
            (bytes(self.fetching.limits.partition_max_bytes), bytes(self.fetching.limits.max_bytes) / 2);
        let mut buffered: HashMap<i32, usize> = HashMap::new();
        let mut wanted: BTreeMap<i32, Vec<(Position, u64)>> = BTreeMap::new();
        let mut full: Vec<i32> = Vec::new();
        let mut leaderless = false;
        for (tp, state) in &self.partitions {
            let waits = state.retry_at.is_some_and(|at| at > now);
            if !state.is_fetchable() || waits {
                continue;
            }
            match position(&self.client, tp, state.fetch_offset) {
                Ok((leader, at)) => {
                    // While one partition's records are still to be taken, a fetch of the others could only wait.
                    // Many partitions with a little each are as much as one with a lot.
                    let of_node = buffered.entry(leader).or_default();
                    *of_node += state.buffered_bytes();
                    if state.buffered_bytes() > high || *of_node > node_high {
                        full.push(leader);
                    }
                    wanted.entry(leader).or_default().push((at, state.epoch));
                }
                Err(_) => leaderless = true,
            }
        }
        if leaderless {
            self.refresh_leaders(now);
        } else {
            self.fetching.leaderless.is_over("every partition has a leader again");
        }
        for (node, positions) in wanted {
            let state = self.fetching.nodes.entry(node).or_default();
            if state.in_flight || full.contains(&node) || state.retry_at.is_some_and(|at| at > now) {
                continue;
            }
            state.in_flight = true;
            let asked = positions.iter().map(|(p, epoch)| (p.partition.clone(), (*epoch, p.offset))).collect();
            let positions = positions.into_iter().map(|(p, _)| p).collect();
            let (limits, isolation) = (self.fetching.limits, self.settings.isolation);
            let request = state.session.request(positions, limits, isolation, &self.fetching.rack_id);
            self.spawn_fetch(node, request, asked);
        }
    }

    fn spawn_fetch(&mut self, node: i32, request: FetchRequest, asked: HashMap<TopicPartition, (u64, i64)>) {
        let client = self.client.clone();
        let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
        self.tasks.spawn(async move {
            let timeout = client.request_timeout() + wait;
            let result = client.send_on(node, Lane::Fetch, &request, ANY_VERSION, timeout).await;
            Event::Fetched(Fetched { node, asked, result })
        });
    }

    /// Asks for the metadata of the topics that are read, not more often than the backoff allows.
    fn refresh_leaders(&mut self, now: Instant) {
        if self.fetching.refreshing || self.fetching.refresh_at.is_some_and(|at| at > now) {
            return;
        }
        self.fetching.refreshing = true;
        let mut topics: Vec<String> = self.partitions.keys().map(|tp| tp.topic.clone()).collect();
        topics.dedup();
        let client = self.client.clone();
        let create = client.config().flag("allow.auto.create.topics");
        self.tasks.spawn(async move { Event::Leaders(client.refresh_metadata(Some(topics), create).await) });
    }

    /// What came of a look for leaders: the topics that could not be described.
    pub(super) fn on_leaders(&mut self, described: Result<Vec<(String, i16)>>) {
        self.fetching.refreshing = false;
        self.fetching.refresh_at = Some(Instant::now() + self.client.retry_backoff().wait(1));
        match described {
            Ok(failed) => {
                let Some(error) = self.leaderless(&failed) else { return };
                if error.code() == Some(ErrorCode::UnknownTopicOrPartition) {
                    self.look_again();
                }
                if error.is_retriable() {
                    self.fetching.leaderless.failed(&error);
                } else {
                    self.failure = Some(error);
                }
            }
            Err(error) => tracing::warn!(%error, "cannot find the leaders of the partitions to read"),
        }
    }

    /// Why the first of the partitions to read that have no leader has none.
    fn leaderless(&self, failed: &[(String, i16)]) -> Option<Error> {
        let mut wanted = self.partitions.iter().filter(|(_, state)| state.is_fetchable());
        wanted.find_map(|(tp, _)| {
            let error = self.client.leader(&tp.topic, tp.partition).err()?;
            if let Some((name, code)) = failed.iter().find(|(name, _)| *name == tp.topic) {
                return Some(Error::of_topic(name, ErrorCode::from_code(*code)));
            }
            match self.client.cached_topic(&tp.topic) {
                Some(topic) if topic.partition(tp.partition).is_none() => {
                    Some(Error::no_partition(tp, topic.partitions.len()))
                }
                _ => Some(error),
            }
        })
    }

    pub(super) fn on_fetched(&mut self, fetched: Fetched) {
        let now = Instant::now();
        let backoff = self.client.retry_backoff();
        let state = self.fetching.nodes.entry(fetched.node).or_default();
        state.in_flight = false;
        state.retry_at = None;
        let response = match fetched.result {
            Ok(response) => response,
            Err(error) => {
                state.session.reset();
                state.retry_at = Some(now + backoff.wait(1));
                if error.is_retriable() {
                    tracing::debug!(%error, "a fetch failed");
                    self.forget_leaders(fetched.asked.keys());
                } else {
                    self.failure = Some(error);
                }
                return;
            }
        };
        // Names must be looked up before the session forgets them.
        let flat = {
            let session = &state.session;
            flatten(response.responses, |id| session.topic_name(id))
        };
        state.session.answered(response.error_code, response.session_id);
        if response.error_code != 0 {
            tracing::debug!(code = ErrorCode::from_code(response.error_code).name(), "beginning a new fetch session");
            return;
        }
        for (tp, _, data) in flat {
            if let Some((epoch, offset)) = fetched.asked.get(&tp)
                && let Err(error) = self.on_partition(&tp, *epoch, *offset, data, now)
            {
                self.failure = Some(error);
            }
        }
    }

    fn forget_leaders<'a>(&self, partitions: impl Iterator<Item = &'a TopicPartition>) {
        for tp in partitions {
            self.client.forget_topic(&tp.topic);
        }
    }

    fn on_partition(
        &mut self,
        tp: &TopicPartition,
        epoch: u64,
        offset: i64,
        mut data: PartitionData,
        now: Instant,
    ) -> Result<()> {
        let (isolation, check_crcs, reset) = (self.settings.isolation, self.fetching.check_crcs, self.settings.reset);
        let backoff = self.client.retry_backoff().wait(1);
        let Some(state) = self.partitions.get_mut(tp).filter(|p| p.epoch == epoch && p.fetch_offset == offset) else {
            return Ok(());
        };
        let code = ErrorCode::from_code(data.error_code);
        if code == ErrorCode::None {
            state.high_watermark = Some(crate::fetch::request::visible_end(&data, isolation));
            let batched = batches(tp, offset, &mut data, isolation, check_crcs)?;
            if batched.next_offset > offset {
                state.buffer(batched.batches, batched.next_offset);
            }
            return Ok(());
        }
        match FetchFailure::of(code) {
            FetchFailure::Refresh => {
                state.retry_at = Some(now + backoff);
                self.client.forget_topic(&tp.topic);
                if matches!(code, ErrorCode::UnknownTopicOrPartition | ErrorCode::UnknownTopicId) {
                    self.look_again();
                }
                Ok(())
            }
            FetchFailure::OffsetOutOfRange => match (reset, reset.spec()) {
                (ResetPolicy::None, _) | (_, None) => Err(Error::OffsetOutOfRange { partition: tp.clone(), offset }),
                (_, Some(spec)) => {
                    tracing::info!(
                        "offset {offset} of {tp} is not in its log any more; resetting by auto.offset.reset"
                    );
                    state.look_up(Wanted::At(spec));
                    Ok(())
                }
            },
            FetchFailure::Damaged => Err(Error::Damaged { partition: tp.clone(), offset }),
            FetchFailure::Fatal => Err(Error::server(format!("read {tp} at offset {offset}"), data.error_code, None)),
        }
    }
}
