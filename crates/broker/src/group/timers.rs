//! The clocks of groups: sessions and rebalances that are over, offsets that nobody uses any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use caudal_protocol::ErrorCode;
use tokio::time::Instant;

use super::service::{GroupService, NOT_ARMED};
use super::shard::{Inner, Shard};

/// How long the coordinator listens before it takes a silent member for gone.
const LISTEN: Duration = Duration::from_millis(200);
/// With this the broker is not held up.
const LISTEN_LATE_MS: i64 = 300;
/// How long before a deadline the timers get up to see whether the broker is held up; the rest over [`LISTEN`] is for waking.
const UP_BEFORE_MS: i64 = 400;
/// Who gets up later than this is held up.
const WAKE_LATE_MS: i64 = 100;
/// A machine that is too busy for that over so many tries in a row does not keep the dead in their groups for ever.
const LISTEN_MOST: u32 = 50;

/// Whether the timers have been up for long enough to know that requests had their turn. They rarely are when a deadline comes
/// by surprise, or the process was stopped; then the coordinator listens, which makes the end of a session late.
#[derive(Default)]
struct Awake {
    since_ms: i64,
}

impl Awake {
    /// Takes note of a sleep that was to end at `until_ms`.
    fn woke(&mut self, from_ms: i64, until_ms: i64, now_ms: i64) {
        if now_ms - until_ms > WAKE_LATE_MS || now_ms - from_ms > UP_BEFORE_MS + WAKE_LATE_MS {
            self.since_ms = now_ms;
        }
    }

    /// Whether every request that came before `now_ms` has been worked on.
    fn heard_all(&self, now_ms: i64) -> bool {
        u128::try_from(now_ms - self.since_ms).is_ok_and(|up_ms| up_ms >= LISTEN.as_millis())
    }
}

impl GroupService {
    /// Waits until the requests that had come when it was called have been worked on, and returns that moment: when a short
    /// sleep ends on time and nobody keeps the coordinator busy, neither the process nor the machine is held up, and
    /// connections had their turn.
    async fn listen(&self) -> i64 {
        let mut asked_ms = self.now_ms();
        for _ in 0..LISTEN_MOST {
            tokio::time::sleep(LISTEN).await;
            self.visit();
            let now_ms = self.now_ms();
            if now_ms - asked_ms <= LISTEN_LATE_MS {
                break;
            }
            tracing::debug!(late_ms = now_ms - asked_ms, "the broker is held up; sessions are not ended yet");
            asked_ms = now_ms;
        }
        asked_ms
    }

    /// Waits for everybody who works on groups just now.
    fn visit(&self) {
        self.shards().iter().for_each(|shard| drop(shard.inner.lock()));
    }

    /// The next moment at which something is due. A step that brings an earlier one wakes the timers from here on.
    fn arm(&self) -> Option<i64> {
        self.core.armed_ms.store(NOT_ARMED, Ordering::SeqCst);
        let due = |shard: &Arc<Shard>| shard.inner.lock().coordinator.next_deadline_ms();
        let next = self.shards().iter().filter_map(due).min();
        self.core.armed_ms.store(next.unwrap_or(NOT_ARMED), Ordering::SeqCst);
        next
    }

    /// Ends sessions and rebalances on time and expires offsets; runs until it is dropped. Sleeps while nothing is due.
    /// `retention_ms` is a clock as [`crate::clock::wall_ms`] that does not leap ahead.
    pub async fn run_timers(&self, offsets_check_interval: Duration, retention_ms: impl Fn() -> i64) {
        let mut next_expiry = Instant::now() + offsets_check_interval;
        let mut heard_ms = 0;
        let mut awake = Awake::default();
        loop {
            // What callbacks of the log decided.
            self.shards().iter().for_each(|shard| shard.append_outgoing(&*self.log));
            let deadline = self.arm();
            let from_ms = self.now_ms();
            let wake_ms = deadline.map(|ms| if ms - UP_BEFORE_MS > from_ms { ms - UP_BEFORE_MS } else { ms });
            let due = wake_ms.map(|ms| self.core.started + Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
            let until = due.map_or(next_expiry, |d| d.min(next_expiry));
            let slept = tokio::select! {
                () = tokio::time::sleep_until(until) => true,
                () = self.core.timers.notified() => false,
            };
            self.visit();
            let now_ms = self.now_ms();
            awake.woke(from_ms, until.duration_since(self.core.started).as_millis() as i64, now_ms);
            if !slept {
                continue;
            }
            if awake.heard_all(now_ms) {
                heard_ms = now_ms;
            }
            if self.end_what_is_due(heard_ms) {
                // Their heartbeat may be waiting, where the broker itself was held up.
                heard_ms = self.listen().await;
                continue;
            }
            if Instant::now() >= next_expiry {
                next_expiry = Instant::now() + offsets_check_interval;
                let now_ms = retention_ms();
                self.shards().iter().for_each(|shard| self.expire_offsets(shard, now_ms));
            }
        }
    }

    /// True when somebody is to be taken for gone who may have said something behind `heard_ms`.
    fn end_what_is_due(&self, heard_ms: i64) -> bool {
        let of_shard = |shard: &Arc<Shard>| {
            let is_due =
                |inner: &Inner| inner.coordinator.next_deadline_ms().is_some_and(|deadline| deadline <= self.now_ms());
            if !is_due(&shard.inner.lock()) {
                return false;
            }
            self.with(shard, |inner| {
                for (group, outcome) in inner.coordinator.tick(shard.clock(), heard_ms) {
                    shard.settle(inner, &group, outcome);
                }
                is_due(inner)
            })
        };
        self.shards().iter().map(of_shard).fold(false, |one, other| one | other)
    }

    fn expire_offsets(&self, shard: &Arc<Shard>, now_ms: i64) {
        self.with(shard, |inner| {
            let records = inner.coordinator.expire_offsets(now_ms);
            if records.is_empty() {
                return;
            }
            let partition = shard.partition;
            tracing::info!(partition, records = records.len(), "forgetting expired offsets and empty groups");
            let report = move |error: ErrorCode| {
                if error.is_error() {
                    tracing::warn!(partition, error = error.name(), "expired offsets could not be removed");
                }
            };
            shard.store(inner, records, None, Box::new(report));
        });
    }
}

#[cfg(test)]
mod tests {
    use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;

    use std::collections::BTreeSet;

    use bytes::Bytes;
    use caudal_protocol::messages::JoinGroupRequest;

    use super::super::GroupConfig;
    use super::super::shard::{OffsetsLog, Stored};
    use super::*;
    use crate::clock::wall_ms;

    struct NoLog;

    impl OffsetsLog for NoLog {
        fn partitions(&self) -> Option<i32> {
            Some(1)
        }

        fn append(&self, _: i32, _: Vec<(Bytes, Option<Bytes>)>, stored: Stored) {
            stored(ErrorCode::None);
        }
    }

    fn joining(session_timeout_ms: i32) -> JoinGroupRequest {
        JoinGroupRequest {
            group_id: "g".into(),
            session_timeout_ms,
            rebalance_timeout_ms: 60_000,
            protocol_type: "consumer".into(),
            protocols: vec![JoinGroupRequestProtocol { name: "range".into(), metadata: Bytes::new() }],
            ..JoinGroupRequest::default()
        }
    }

    /// The process is held up for longer than the session: timers and heartbeats are late alike.
    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_that_waits_while_the_process_is_held_up_counts() {
        let config =
            GroupConfig { session_timeout_ms: (1, 60_000), initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
        let service = Arc::new(GroupService::new(config, Arc::new(NoLog), Arc::new(Default::default)));
        service.loaded(BTreeSet::new());
        let timers = service.clone();
        let timers = tokio::spawn(async move { timers.run_timers(Duration::from_secs(3600), wall_ms).await });
        let joined = service.join(&joining(100), "c", "/127.0.0.1", 3).await;
        assert_eq!(joined.error_code, 0);
        // The timer comes first: it is due, the heartbeat has yet to be read.
        tokio::time::advance(Duration::from_millis(400)).await;
        let member = joined.member_id.as_str();
        let code = service.heartbeat("g", member, None, joined.generation_id);
        assert_ne!(code, ErrorCode::UnknownMemberId);
        // Who says nothing more is out in the end.
        let deadline = Instant::now() + Duration::from_secs(20);
        while service.view("g", |coordinator| coordinator.has_members("g")) {
            assert!(Instant::now() < deadline, "a silent member stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        timers.abort();
    }

    /// While nothing holds the process up, a session ends when it is over, and not later.
    #[tokio::test(start_paused = true)]
    async fn a_silent_member_is_out_on_time() {
        let config = GroupConfig { initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
        let service = Arc::new(GroupService::new(config, Arc::new(NoLog), Arc::new(Default::default)));
        service.loaded(BTreeSet::new());
        let timers = service.clone();
        let timers = tokio::spawn(async move { timers.run_timers(Duration::from_secs(3600), wall_ms).await });
        let joined = service.join(&joining(6000), "c", "/127.0.0.1", 3).await;
        assert_eq!(joined.error_code, 0);
        let last_heard_ms = service.now_ms();
        while service.view("g", |coordinator| coordinator.has_members("g")) {
            assert!(service.now_ms() < last_heard_ms + 20_000, "a silent member stays");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let late_ms = service.now_ms() - last_heard_ms - 6000;
        assert!((0..5).contains(&late_ms), "{late_ms} ms late");
        timers.abort();
    }
}
