//! The coordinator at work: requests wait here for their answers, changes are stored before they are told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::leave_group_response::MemberResponse;
use caudal_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::coordinator::Committer;
use super::machine::Joiner;
use super::record::{CommittedOffset, partition_for};
use super::{Coordinator, GroupConfig, GroupRecord, Outcome, Reply, Waiter};

/// Told once the records are as durable as the broker promises, or with the reason why not.
pub type Stored = Box<dyn FnOnce(ErrorCode) + Send>;

/// `__consumer_offsets`, as far as groups need it.
pub trait OffsetsLog: Send + Sync {
    /// Number of partitions; `None` while the topic does not exist.
    fn partitions(&self) -> Option<i32>;

    /// Appends records in this order as one batch and calls `stored` once they are durable.
    fn append(&self, partition: i32, records: Vec<(Bytes, Option<Bytes>)>, stored: Stored);
}

enum Sender {
    Join(oneshot::Sender<JoinGroupResponse>),
    Sync(oneshot::Sender<SyncGroupResponse>),
}

impl Sender {
    /// A requester that went away meanwhile does not get its answer; its session runs out like any other.
    fn send(self, reply: Reply, error: ErrorCode) {
        match (self, reply) {
            (Sender::Join(tx), Reply::Join(mut r)) => {
                if error.is_error() {
                    r = JoinGroupResponse {
                        error_code: error.code(),
                        generation_id: -1,
                        member_id: r.member_id,
                        ..Default::default()
                    };
                }
                let _ = tx.send(r);
            }
            (Sender::Sync(tx), Reply::Sync(mut r)) => {
                if error.is_error() {
                    r = SyncGroupResponse { error_code: error.code(), ..Default::default() };
                }
                let _ = tx.send(r);
            }
            _ => tracing::error!("a group request was answered with the response of another kind"),
        }
    }
}

/// How long the coordinator listens before it takes a silent member for gone.
const LISTEN: Duration = Duration::from_millis(200);
/// With this the broker is not held up.
const LISTEN_LATE_MS: i64 = 300;
/// A machine that is too busy for that over so many tries in a row does not keep the dead in their groups for ever.
const LISTEN_MOST: u32 = 50;

struct Inner {
    coordinator: Coordinator,
    waiting: HashMap<Waiter, Sender>,
    next_waiter: Waiter,
    loaded: bool,
}

/// The group coordinator of this broker.
pub struct GroupService {
    inner: Mutex<Inner>,
    log: Arc<dyn OffsetsLog>,
    /// Wakes the timer when an earlier deadline may have come up.
    timer: Notify,
    started: Instant,
}

/// Milliseconds since 1970.
pub fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

impl GroupService {
    pub fn new(config: GroupConfig, log: Arc<dyn OffsetsLog>) -> GroupService {
        let inner =
            Inner { coordinator: Coordinator::new(config), waiting: HashMap::new(), next_waiter: 0, loaded: false };
        GroupService { inner: Mutex::new(inner), log, timer: Notify::new(), started: Instant::now() }
    }

    fn now_ms(&self) -> i64 {
        self.started.elapsed().as_millis() as i64
    }

    /// Replays what an earlier run stored. Until this was called requests are told that the coordinator is loading.
    pub fn load(&self, records: impl Iterator<Item = GroupRecord>) {
        let now_ms = self.now_ms();
        let mut inner = self.inner.lock();
        for record in records {
            inner.coordinator.replay(record, now_ms);
        }
        inner.loaded = true;
        drop(inner);
        self.timer.notify_one();
    }

    /// `COORDINATOR_LOAD_IN_PROGRESS` or `COORDINATOR_NOT_AVAILABLE` while groups cannot be served.
    pub fn readiness(&self) -> ErrorCode {
        if !self.inner.lock().loaded {
            ErrorCode::CoordinatorLoadInProgress
        } else if self.log.partitions().is_none() {
            ErrorCode::CoordinatorNotAvailable
        } else {
            ErrorCode::None
        }
    }

    /// As [`GroupService::readiness`], but a broker that never had a group can list that it has none.
    pub fn readiness_to_list(&self) -> ErrorCode {
        if self.inner.lock().loaded { ErrorCode::None } else { ErrorCode::CoordinatorLoadInProgress }
    }

    /// Stores an outcome's records, then hands out its replies. Called with the lock held, so that the log has the
    /// order of the decisions.
    fn settle(&self, inner: &mut Inner, outcome: Outcome) {
        let replies: Vec<(Sender, Reply)> =
            outcome.replies.into_iter().filter_map(|(w, r)| inner.waiting.remove(&w).map(|s| (s, r))).collect();
        let deliver = move |error: ErrorCode| replies.into_iter().for_each(|(sender, reply)| sender.send(reply, error));
        if outcome.records.is_empty() {
            deliver(ErrorCode::None)
        } else {
            self.store(outcome.records, Box::new(deliver))
        }
    }

    /// Appends records to the partitions of their groups; `done` is called once, with the first error if there was one.
    fn store(&self, records: Vec<GroupRecord>, done: Stored) {
        let Some(partitions) = self.log.partitions() else { return done(ErrorCode::CoordinatorNotAvailable) };
        let mut by_partition: BTreeMap<i32, Vec<(Bytes, Option<Bytes>)>> = BTreeMap::new();
        for record in &records {
            match record.encode() {
                Ok(pair) => by_partition.entry(partition_for(record.group(), partitions)).or_default().push(pair),
                Err(error) => {
                    tracing::error!(group = record.group(), %error, "a group's record cannot be stored");
                    return done(ErrorCode::UnknownServerError);
                }
            }
        }
        let pending = Arc::new(Mutex::new((by_partition.len(), ErrorCode::None, Some(done))));
        for (partition, pairs) in by_partition {
            let pending = pending.clone();
            let stored = move |error: ErrorCode| {
                let mut state = pending.lock();
                state.0 -= 1;
                if error.is_error() {
                    state.1 = error;
                }
                if state.0 == 0
                    && let Some(done) = state.2.take()
                {
                    let outcome = state.1;
                    drop(state);
                    done(outcome);
                }
            };
            self.log.append(partition, pairs, Box::new(stored));
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
        {
            let mut inner = self.inner.lock();
            inner.next_waiter += 1;
            let waiter = inner.next_waiter;
            inner.waiting.insert(waiter, Sender::Join(tx));
            let name = request.group_instance_id.as_deref().unwrap_or(client_id);
            let joiner = Joiner {
                waiter,
                client_id: client_id.to_owned(),
                client_host: client_host.to_owned(),
                fresh_member_id: format!("{name}-{}", random_uuid_text()),
                requires_known_id: version >= 4,
                supports_skipping_assignment: version >= 9,
            };
            let outcome = inner.coordinator.join(self.now_ms(), wall_ms(), request, joiner);
            self.settle(&mut inner, outcome);
        }
        self.timer.notify_one();
        rx.await.unwrap_or_else(|_| JoinGroupResponse {
            error_code: ErrorCode::NotCoordinator.code(),
            ..Default::default()
        })
    }

    /// SyncGroup: answers when the leader's assignment is stored.
    pub async fn sync(&self, request: &SyncGroupRequest) -> SyncGroupResponse {
        let (tx, rx) = oneshot::channel();
        {
            let mut inner = self.inner.lock();
            inner.next_waiter += 1;
            let waiter = inner.next_waiter;
            inner.waiting.insert(waiter, Sender::Sync(tx));
            let outcome = inner.coordinator.sync(self.now_ms(), wall_ms(), request, waiter);
            self.settle(&mut inner, outcome);
        }
        self.timer.notify_one();
        rx.await.unwrap_or_else(|_| SyncGroupResponse {
            error_code: ErrorCode::NotCoordinator.code(),
            ..Default::default()
        })
    }

    pub fn heartbeat(&self, group: &str, member: &str, instance: Option<&str>, generation: i32) -> ErrorCode {
        self.inner.lock().coordinator.heartbeat(self.now_ms(), group, member, instance, generation)
    }

    pub fn leave(&self, group: &str, members: &[MemberIdentity]) -> Vec<MemberResponse> {
        let mut inner = self.inner.lock();
        let (answers, outcome) = inner.coordinator.leave(self.now_ms(), wall_ms(), group, members);
        self.settle(&mut inner, outcome);
        drop(inner);
        self.timer.notify_one();
        answers
    }

    /// Commits offsets, all or none: returns the error once they are durable.
    pub async fn commit(&self, who: Committer<'_>, offsets: Vec<(String, i32, CommittedOffset)>) -> ErrorCode {
        let (tx, rx) = oneshot::channel();
        {
            let mut inner = self.inner.lock();
            let error = inner.coordinator.check_commit(self.now_ms(), who);
            if error.is_error() || offsets.is_empty() {
                return error;
            }
            let records = inner.coordinator.commit(who.group, offsets);
            self.store(records, Box::new(move |error| _ = tx.send(error)));
        }
        rx.await.unwrap_or(ErrorCode::CoordinatorNotAvailable)
    }

    /// Runs `change` on the coordinator and waits until the records that it returns are durable.
    pub async fn change<T>(&self, change: impl FnOnce(&mut Coordinator) -> (T, Vec<GroupRecord>)) -> (T, ErrorCode) {
        let (tx, rx) = oneshot::channel();
        let result = {
            let mut inner = self.inner.lock();
            let (result, records) = change(&mut inner.coordinator);
            if records.is_empty() {
                return (result, ErrorCode::None);
            }
            self.store(records, Box::new(move |error| _ = tx.send(error)));
            result
        };
        (result, rx.await.unwrap_or(ErrorCode::CoordinatorNotAvailable))
    }

    /// Looks at the coordinator.
    pub fn view<T>(&self, look: impl FnOnce(&Coordinator) -> T) -> T {
        look(&self.inner.lock().coordinator)
    }

    /// Waits until the requests that had come when it was called have been worked on, and returns that moment: when a short
    /// sleep ends on time and nobody keeps the coordinator busy, neither the process nor the machine is held up, and
    /// connections had their turn.
    async fn listen(&self) -> i64 {
        let mut asked_ms = self.now_ms();
        for _ in 0..LISTEN_MOST {
            tokio::time::sleep(LISTEN).await;
            drop(self.inner.lock());
            let now_ms = self.now_ms();
            if now_ms - asked_ms <= LISTEN_LATE_MS {
                break;
            }
            tracing::debug!(late_ms = now_ms - asked_ms, "the broker is held up; sessions are not ended yet");
            asked_ms = now_ms;
        }
        asked_ms
    }

    /// Ends sessions and rebalances on time and expires offsets; runs until it is dropped. Sleeps while nothing is due.
    pub async fn run_timers(&self, offsets_check_interval: Duration) {
        let mut next_expiry = Instant::now() + offsets_check_interval;
        let mut heard_ms = 0;
        loop {
            let deadline = self.inner.lock().coordinator.next_deadline_ms();
            let due = deadline.map(|ms| self.started + Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
            let until = due.map_or(next_expiry, |d| d.min(next_expiry));
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = self.timer.notified() => continue,
            }
            if self.end_what_is_due(heard_ms) {
                // Their heartbeat may be waiting, where the broker itself was held up.
                heard_ms = self.listen().await;
                continue;
            }
            if Instant::now() >= next_expiry {
                next_expiry = Instant::now() + offsets_check_interval;
                self.expire_offsets();
            }
        }
    }

    /// True when somebody is to be taken for gone who may have said something behind `heard_ms`.
    fn end_what_is_due(&self, heard_ms: i64) -> bool {
        let mut inner = self.inner.lock();
        let now_ms = self.now_ms();
        let outcome = inner.coordinator.tick(now_ms, heard_ms, wall_ms());
        self.settle(&mut inner, outcome);
        inner.coordinator.next_deadline_ms().is_some_and(|deadline| deadline <= now_ms)
    }

    fn expire_offsets(&self) {
        let mut inner = self.inner.lock();
        let records = inner.coordinator.expire_offsets(wall_ms());
        if records.is_empty() {
            return;
        }
        tracing::info!(records = records.len(), "forgot expired offsets and empty groups");
        let report = |error: ErrorCode| {
            if error.is_error() {
                tracing::warn!(error = error.name(), "expired offsets could not be removed");
            }
        };
        self.store(records, Box::new(report));
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

#[cfg(test)]
mod tests {
    use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;

    use super::*;

    struct NoLog;

    impl OffsetsLog for NoLog {
        fn partitions(&self) -> Option<i32> {
            Some(1)
        }

        fn append(&self, _: i32, _: Vec<(Bytes, Option<Bytes>)>, stored: Stored) {
            stored(ErrorCode::None);
        }
    }

    /// The only thread of the runtime is held up for longer than the session: timers and heartbeats are late alike.
    #[tokio::test]
    async fn a_heartbeat_that_waits_while_the_process_is_held_up_counts() {
        let config =
            GroupConfig { session_timeout_ms: (1, 60_000), initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
        let service = Arc::new(GroupService::new(config, Arc::new(NoLog)));
        service.load(std::iter::empty());
        let timers = service.clone();
        let timers = tokio::spawn(async move { timers.run_timers(Duration::from_secs(3600)).await });
        let request = JoinGroupRequest {
            group_id: "g".into(),
            session_timeout_ms: 100,
            rebalance_timeout_ms: 60_000,
            protocol_type: "consumer".into(),
            protocols: vec![JoinGroupRequestProtocol { name: "range".into(), metadata: Bytes::new() }],
            ..JoinGroupRequest::default()
        };
        let joined = service.join(&request, "c", "/127.0.0.1", 3).await;
        assert_eq!(joined.error_code, 0);
        std::thread::sleep(Duration::from_millis(400));
        // The timer comes first: it is due, the heartbeat has yet to be read.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let member = joined.member_id.as_str();
        let code = service.heartbeat("g", member, None, joined.generation_id);
        assert_ne!(code, ErrorCode::UnknownMemberId);
        // Who says nothing more is out in the end.
        let deadline = Instant::now() + Duration::from_secs(20);
        while service.view(|coordinator| coordinator.has_members("g")) {
            assert!(Instant::now() < deadline, "a silent member stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        timers.abort();
    }
}
