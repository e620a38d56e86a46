//! The coordinator at work: requests wait here for their answers, changes are stored before they are told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use caudal_cluster::MetadataImage;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::leave_group_response::MemberResponse;
use caudal_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};
use caudal_protocol::{ErrorCode, Uuid};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::Instant;

use super::consumer::heartbeat::{self, Client};
use super::coordinator::Committer;
use super::machine::Joiner;
use super::record::{CommittedOffset, partition_for};
use super::shard::{Inner, Sender, Shard, consumer_error};
pub use super::shard::{OffsetsLog, Stored};
use super::transactional::TransactionChange;
use super::{Coordinator, GroupConfig, GroupRecord, Job, Reply};
use crate::clock::wall_ms;

/// Nothing is due.
pub(super) const NOT_ARMED: i64 = i64::MAX;

/// The metadata of the cluster as it is now.
pub type Images = Arc<dyn Fn() -> Arc<MetadataImage> + Send + Sync>;

pub(super) struct Core {
    config: Arc<GroupConfig>,
    /// One for each partition of `__consumer_offsets`, as many as these were when it was first seen, as in Kafka.
    shards: OnceLock<Box<[Arc<Shard>]>>,
    loaded: AtomicBool,
    /// The partitions that could not be read.
    unreadable: OnceLock<BTreeSet<i32>>,
    /// When the timers will look again by themselves.
    pub(super) armed_ms: AtomicI64,
    pub(super) timers: Arc<Notify>,
    pub(super) started: Instant,
    /// What is computed beside the coordinator takes turns: `group.coordinator.background.threads`.
    background: Arc<Semaphore>,
}

/// The group coordinator of this broker.
#[derive(Clone)]
pub struct GroupService {
    pub(super) core: Arc<Core>,
    pub(super) log: Arc<dyn OffsetsLog>,
    images: Images,
}

impl GroupService {
    pub fn new(config: GroupConfig, log: Arc<dyn OffsetsLog>, images: Images) -> GroupService {
        let core = Core {
            background: Arc::new(Semaphore::new(config.background_threads)),
            config: Arc::new(config),
            shards: OnceLock::new(),
            loaded: AtomicBool::new(false),
            unreadable: OnceLock::new(),
            armed_ms: AtomicI64::new(NOT_ARMED),
            timers: Arc::default(),
            started: Instant::now(),
        };
        GroupService { core: Arc::new(core), log, images }
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.core.started.elapsed().as_millis() as i64
    }

    /// None while `__consumer_offsets` does not exist.
    pub(super) fn shards(&self) -> &[Arc<Shard>] {
        if let Some(shards) = self.core.shards.get() {
            return shards;
        }
        let Some(count) = self.log.partitions() else { return &[] };
        let core = &self.core;
        let shard = |partition| Arc::new(Shard::new(partition, core.config.clone(), core.timers.clone(), core.started));
        core.shards.get_or_init(|| (0..count).map(shard).collect())
    }

    fn shard(&self, group: &str) -> Option<&Arc<Shard>> {
        let shards = self.shards();
        let partition = partition_for(group, i32::try_from(shards.len()).unwrap_or(i32::MAX));
        shards.get(usize::try_from(partition).ok()?)
    }

    /// The partition of `__consumer_offsets` that holds a group; `None` while the topic does not exist.
    pub fn partition_of(&self, group: &str) -> Option<i32> {
        self.shard(group).map(|shard| shard.partition)
    }

    pub(super) fn shard_at(&self, partition: i32) -> Option<&Arc<Shard>> {
        self.shards().get(usize::try_from(partition).ok()?)
    }

    /// Changes something with the shard's lock held, then appends what was decided without it.
    pub(super) fn with<T>(&self, shard: &Arc<Shard>, work: impl FnOnce(&mut Inner) -> T) -> T {
        let image = (self.images)();
        let mut inner = shard.inner.lock();
        inner.coordinator.follow(image);
        let result = work(&mut inner);
        let jobs = std::mem::take(&mut inner.jobs);
        let next_ms = inner.coordinator.next_deadline_ms().unwrap_or(NOT_ARMED);
        drop(inner);
        if next_ms < self.core.armed_ms.load(Ordering::SeqCst) {
            self.core.timers.notify_one();
        }
        shard.append_outgoing(&*self.log);
        jobs.into_iter().for_each(|job| self.begin(shard, job));
        result
    }

    /// Carries out what takes its time, while the coordinator goes on.
    fn begin(&self, shard: &Arc<Shard>, job: Job) {
        let (service, shard) = (self.clone(), shard.clone());
        let run = move || match job {
            Job::Regexes(job) => {
                let found = job.run(&(service.images)(), wall_ms());
                service.with(&shard, |inner| {
                    let outcome = inner.coordinator.regexes_resolved(shard.clock(), &job, found);
                    shard.settle(inner, &job.group, outcome);
                });
            }
            Job::Assign(job) => {
                let found = job.run();
                service.with(&shard, |inner| {
                    let outcome = inner.coordinator.assigned(shard.clock(), &job, found);
                    shard.settle(inner, &job.group, outcome);
                });
            }
        };
        let background = self.core.background.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                // It is never closed.
                let _turn = background.acquire().await;
                if let Err(error) = tokio::task::spawn_blocking(run).await {
                    tracing::error!("failed to compute for a group: {error}");
                }
            })),
            Err(_) => run(),
        }
    }

    /// Replays what an earlier run stored. Until [`GroupService::loaded`] requests are told that the coordinator is loading.
    pub fn replay(&self, record: GroupRecord) {
        let shard = match &record {
            GroupRecord::Transaction(TransactionChange::Over { producer, .. }) => self.shard_at(producer.partition),
            other => self.shard(other.group()),
        };
        if let Some(shard) = shard {
            shard.inner.lock().coordinator.replay(record, self.now_ms());
        }
    }

    /// All is replayed but for the groups of some partitions, which are not served.
    pub fn loaded(&self, unreadable: BTreeSet<i32>) {
        for shard in self.shards() {
            let mut inner = shard.inner.lock();
            if unreadable.contains(&shard.partition) {
                inner.coordinator.forget(|_| true);
            }
            inner.coordinator.follow((self.images)());
            inner.coordinator.start_consumer_clocks(self.now_ms());
        }
        // Both are set once.
        let _ = self.core.unreadable.set(unreadable);
        self.core.loaded.store(true, Ordering::SeqCst);
        self.core.timers.notify_one();
    }

    /// The partitions of [`OFFSETS_TOPIC`] whose groups are not served.
    ///
    /// [`OFFSETS_TOPIC`]: super::offsets_log::OFFSETS_TOPIC
    pub fn unreadable(&self) -> BTreeSet<i32> {
        self.core.unreadable.get().cloned().unwrap_or_default()
    }

    /// `COORDINATOR_LOAD_IN_PROGRESS`, `COORDINATOR_NOT_AVAILABLE` or `NOT_COORDINATOR` while a group cannot be served.
    pub fn readiness(&self, group: &str) -> ErrorCode {
        let is_unreadable = |partition| self.core.unreadable.get().is_some_and(|all| all.contains(&partition));
        match self.partition_of(group) {
            _ if !self.core.loaded.load(Ordering::SeqCst) => ErrorCode::CoordinatorLoadInProgress,
            None => ErrorCode::CoordinatorNotAvailable,
            Some(partition) if is_unreadable(partition) => ErrorCode::NotCoordinator,
            Some(_) => ErrorCode::None,
        }
    }

    /// As [`GroupService::readiness`], but a broker that never had a group can list that it has none.
    pub fn readiness_to_list(&self) -> ErrorCode {
        match self.core.loaded.load(Ordering::SeqCst) {
            true => ErrorCode::None,
            false => ErrorCode::CoordinatorLoadInProgress,
        }
    }

    /// JoinGroup: answers when the rebalance is through.
    pub async fn join(
        &self,
        request: &JoinGroupRequest,
        client_id: &str,
        client_host: &str,
        version: i16,
    ) -> JoinGroupResponse {
        let (tx, rx) = oneshot::channel();
        let name = request.group_instance_id.as_deref().unwrap_or(client_id);
        let fresh_member_id = format!("{name}-{}", random_uuid_text());
        if let Some(shard) = self.shard(&request.group_id) {
            self.with(shard, |inner| {
                let joiner = Joiner {
                    waiter: inner.wait(Sender::Join(tx)),
                    client_id: client_id.to_owned(),
                    client_host: client_host.to_owned(),
                    fresh_member_id,
                    requires_known_id: version >= 4,
                    supports_skipping_assignment: version >= 9,
                };
                let outcome = inner.coordinator.join(self.now_ms(), wall_ms(), request, joiner);
                shard.settle(inner, &request.group_id, outcome);
            });
        }
        rx.await.unwrap_or_else(|_| JoinGroupResponse {
            error_code: ErrorCode::NotCoordinator.code(),
            ..Default::default()
        })
    }

    /// SyncGroup: answers when the leader's assignment is stored.
    pub async fn sync(&self, request: &SyncGroupRequest) -> SyncGroupResponse {
        let (tx, rx) = oneshot::channel();
        if let Some(shard) = self.shard(&request.group_id) {
            self.with(shard, |inner| {
                let waiter = inner.wait(Sender::Sync(tx));
                let outcome = inner.coordinator.sync(self.now_ms(), wall_ms(), request, waiter);
                shard.settle(inner, &request.group_id, outcome);
            });
        }
        rx.await.unwrap_or_else(|_| SyncGroupResponse {
            error_code: ErrorCode::NotCoordinator.code(),
            ..Default::default()
        })
    }

    pub fn heartbeat(&self, group: &str, member: &str, instance: Option<&str>, generation: i32) -> ErrorCode {
        let Some(shard) = self.shard(group) else { return ErrorCode::NotCoordinator };
        self.with(shard, |inner| inner.coordinator.heartbeat(self.now_ms(), group, member, instance, generation))
    }

    /// ConsumerGroupHeartbeat: answers when what it changed is stored.
    pub async fn consumer_heartbeat(
        &self,
        request: &ConsumerGroupHeartbeatRequest,
        client_id: &str,
        client_host: &str,
        version: i16,
    ) -> ConsumerGroupHeartbeatResponse {
        if let Err(refusal) = heartbeat::check(request, version, &self.core.config.consumer.assignors) {
            return refusal.response();
        }
        let (tx, rx) = oneshot::channel();
        if let Some(shard) = self.shard(&request.group_id) {
            self.with(shard, |inner| {
                let waiter = inner.wait(Sender::Consumer(tx));
                let fresh_member_id = Uuid::random().to_string();
                let client = Client { id: client_id, host: client_host, fresh_member_id: &fresh_member_id };
                let outcome = inner.coordinator.consumer_heartbeat(shard.clock(), request, client, waiter);
                shard.settle(inner, &request.group_id, outcome);
            });
        }
        rx.await.unwrap_or_else(|_| consumer_error(ErrorCode::NotCoordinator))
    }

    /// LeaveGroup: the error, or an answer for each member once that they left is stored where it has to be.
    pub async fn leave(&self, group: &str, members: &[MemberIdentity]) -> Result<Vec<MemberResponse>, ErrorCode> {
        let (tx, rx) = oneshot::channel();
        let shard = self.shard(group).ok_or(ErrorCode::NotCoordinator)?;
        let answers = self.with(shard, |inner| {
            let (answers, mut outcome) = inner.coordinator.leave(self.now_ms(), wall_ms(), group, members);
            let waiter = inner.wait(Sender::Left(tx));
            if outcome.undo.is_empty() {
                // Of the classic protocol: what its members do takes effect at once.
                let left = super::Outcome { replies: vec![(waiter, Reply::Left)], ..Default::default() };
                shard.settle(inner, group, left);
            } else {
                outcome.reply(waiter, Reply::Left);
            }
            shard.settle(inner, group, outcome);
            answers
        });
        match rx.await.unwrap_or(ErrorCode::NotCoordinator) {
            ErrorCode::None => Ok(answers),
            error => Err(error),
        }
    }

    /// Commits offsets, all or none: returns the error once they are durable. `version`: that of OffsetCommit.
    pub async fn commit(
        &self,
        who: Committer<'_>,
        version: i16,
        offsets: Vec<(String, i32, CommittedOffset)>,
    ) -> ErrorCode {
        let change = |coordinator: &mut Coordinator| {
            let error = coordinator.check_commit_of(self.now_ms(), who, version, &offsets);
            let records = if error.is_error() { Vec::new() } else { coordinator.commit(who.group, offsets) };
            (error, records)
        };
        self.change(who.group, change).await
    }

    /// Runs `change` on the coordinator of a group and waits until the records that it returns are durable and in effect;
    /// or says why it was refused, or could not be stored.
    pub async fn change(
        &self,
        group: &str,
        change: impl FnOnce(&mut Coordinator) -> (ErrorCode, Vec<GroupRecord>),
    ) -> ErrorCode {
        let Some(shard) = self.shard(group) else { return ErrorCode::CoordinatorNotAvailable };
        match self.change_in(shard, change).await {
            (ErrorCode::None, stored) => stored,
            (refused, _) => refused,
        }
    }

    async fn change_in<T>(
        &self,
        shard: &Arc<Shard>,
        change: impl FnOnce(&mut Coordinator) -> (T, Vec<GroupRecord>),
    ) -> (T, ErrorCode) {
        let (tx, rx) = oneshot::channel();
        let (result, unchanged) = self.with(shard, |inner| {
            let (result, records) = change(&mut inner.coordinator);
            let unchanged = records.is_empty();
            if !unchanged {
                shard.store(inner, records, None, Box::new(move |error| _ = tx.send(error)));
            }
            (result, unchanged)
        });
        if unchanged {
            return (result, ErrorCode::None);
        }
        (result, rx.await.unwrap_or(ErrorCode::CoordinatorNotAvailable))
    }

    /// Forgets the offsets of a topic that is gone, in all groups. The last error, if there was one.
    pub async fn topic_deleted(&self, topic: &str) -> ErrorCode {
        let mut last = ErrorCode::None;
        for shard in self.shards() {
            let ((), stored) = self.change_in(shard, |groups| ((), groups.topic_deleted(topic))).await;
            if stored.is_error() {
                last = stored;
            }
        }
        last
    }

    /// Looks at the coordinator of a group. While there is none the group does not exist.
    pub fn view<T>(&self, group: &str, look: impl FnOnce(&Coordinator) -> T) -> T {
        match self.shard(group) {
            Some(shard) => look(&shard.inner.lock().coordinator),
            None => look(&Coordinator::new(self.core.config.clone())),
        }
    }

    /// Looks at all groups, those of one partition after those of the other.
    pub fn all<T>(&self, look: impl Fn(&Coordinator) -> Vec<T>) -> Vec<T> {
        self.shards().iter().flat_map(|shard| look(&shard.inner.lock().coordinator)).collect()
    }
}

impl std::fmt::Debug for GroupService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupService").finish_non_exhaustive()
    }
}

/// A random UUID in its usual form, as it ends Kafka's member ids.
fn random_uuid_text() -> String {
    let n: u128 = rand::random::<u128>() & !(0xf << 76) | (0x4 << 76);
    let n = n & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{n:032x}");
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|r| hex.get(r).unwrap_or_default()).join("-")
}
