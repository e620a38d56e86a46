//! Scripts of joins, syncs and deaths against the pure coordinator.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use caudal_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse};
use proptest::prelude::*;

use super::coordinator::Committer;
use super::machine::Joiner;
use super::record::CommittedOffset;
use super::{Coordinator, GroupConfig, GroupRecord, Outcome, Reply};

/// A coordinator with a clock of its own that remembers every answer.
struct World {
    coordinator: Coordinator,
    now_ms: i64,
    next_waiter: u64,
    asked: HashSet<u64>,
    joins: HashMap<u64, JoinGroupResponse>,
    syncs: HashMap<u64, SyncGroupResponse>,
    records: Vec<GroupRecord>,
}

impl World {
    fn new(delay_ms: i64) -> World {
        let config = GroupConfig { initial_rebalance_delay_ms: delay_ms, ..GroupConfig::default() };
        World {
            coordinator: Coordinator::new(config),
            now_ms: 0,
            next_waiter: 0,
            asked: HashSet::new(),
            joins: HashMap::new(),
            syncs: HashMap::new(),
            records: Vec::new(),
        }
    }

    fn take(&mut self, outcome: Outcome) {
        self.records.extend(outcome.records);
        for (waiter, reply) in outcome.replies {
            assert!(self.asked.remove(&waiter), "answered twice, or never asked: {waiter}");
            match reply {
                Reply::Join(r) => drop(self.joins.insert(waiter, r)),
                Reply::Sync(r) => drop(self.syncs.insert(waiter, r)),
            }
        }
    }

    fn join(&mut self, member: &str, instance: Option<&str>) -> u64 {
        self.join_as(member, instance, "sub", false)
    }

    fn join_as(&mut self, member: &str, instance: Option<&str>, subscription: &str, requires_known_id: bool) -> u64 {
        self.next_waiter += 1;
        let waiter = self.next_waiter;
        self.asked.insert(waiter);
        let request = JoinGroupRequest {
            group_id: "g".into(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 60_000,
            member_id: member.into(),
            group_instance_id: instance.map(str::to_owned),
            protocol_type: "consumer".into(),
            protocols: vec![JoinGroupRequestProtocol {
                name: "range".into(),
                metadata: Bytes::copy_from_slice(subscription.as_bytes()),
            }],
            ..JoinGroupRequest::default()
        };
        let joiner = Joiner {
            waiter,
            client_id: "c".into(),
            client_host: "/127.0.0.1".into(),
            fresh_member_id: format!("m{waiter}"),
            requires_known_id,
            supports_skipping_assignment: true,
        };
        let outcome = self.coordinator.join(self.now_ms, self.now_ms, &request, joiner);
        self.take(outcome);
        waiter
    }

    fn sync(&mut self, member: &str, generation: i32, assignments: &[(&str, &str)]) -> u64 {
        self.next_waiter += 1;
        let waiter = self.next_waiter;
        self.asked.insert(waiter);
        let request = SyncGroupRequest {
            group_id: "g".into(),
            generation_id: generation,
            member_id: member.into(),
            assignments: assignments
                .iter()
                .map(|(m, a)| SyncGroupRequestAssignment {
                    member_id: (*m).into(),
                    assignment: Bytes::copy_from_slice(a.as_bytes()),
                })
                .collect(),
            ..SyncGroupRequest::default()
        };
        let outcome = self.coordinator.sync(self.now_ms, self.now_ms, &request, waiter);
        self.take(outcome);
        waiter
    }

    fn pass(&mut self, ms: i64) {
        let until = self.now_ms + ms;
        while let Some(next) = self.coordinator.next_deadline_ms().filter(|d| *d <= until) {
            self.now_ms = next.max(self.now_ms);
            let outcome = self.coordinator.tick(self.now_ms, self.now_ms, self.now_ms);
            self.take(outcome);
        }
        self.now_ms = until;
    }

    fn leave(&mut self, member: &str) -> i16 {
        let who = MemberIdentity { member_id: member.into(), ..MemberIdentity::default() };
        let (answers, outcome) = self.coordinator.leave(self.now_ms, self.now_ms, "g", &[who]);
        self.take(outcome);
        answers[0].error_code
    }

    fn beat(&mut self, member: &str, generation: i32) -> ErrorCode {
        self.coordinator.heartbeat(self.now_ms, "g", member, None, generation)
    }

    fn state(&self) -> String {
        self.coordinator.describe("g").map(|g| g.group_state).unwrap_or_default()
    }

    /// Two members m1 (leader) and m2, stable in generation 1.
    fn pair() -> World {
        let mut w = World::new(3_000);
        let (a, b) = (w.join("", None), w.join("", None));
        w.pass(3_000);
        assert_eq!(w.joins[&a].generation_id, 1);
        assert_eq!(w.joins[&a].leader, "m1");
        assert_eq!(w.joins[&a].members.len(), 2);
        assert!(w.joins[&b].members.is_empty());
        let s2 = w.sync("m2", 1, &[]);
        assert!(!w.syncs.contains_key(&s2), "must wait for the leader");
        let s1 = w.sync("m1", 1, &[("m1", "p0"), ("m2", "p1")]);
        assert_eq!(w.syncs[&s1].assignment, "p0");
        assert_eq!(w.syncs[&s2].assignment, "p1");
        assert_eq!(w.state(), "Stable");
        w
    }
}

/// The broker stands still for a minute, as in a virtual machine that was paused, with a heartbeat in its sockets.
#[test]
fn a_stall_of_the_broker_expels_only_who_is_silent_behind_it() {
    let mut w = World::pair();
    let asleep = w.now_ms;
    w.now_ms += 60_000;
    let outcome = w.coordinator.tick(w.now_ms, asleep, w.now_ms);
    w.take(outcome);
    assert!(w.coordinator.next_deadline_ms().unwrap() < w.now_ms, "it is to be asked again");
    assert_eq!((w.state(), w.beat("m1", 1)), ("Stable".to_owned(), ErrorCode::None));
    let heard = w.now_ms;
    w.now_ms += 250;
    let outcome = w.coordinator.tick(w.now_ms, heard, w.now_ms);
    w.take(outcome);
    assert_eq!(w.state(), "PreparingRebalance");
    assert_eq!(w.beat("m1", 1), ErrorCode::RebalanceInProgress);
    assert_eq!(w.beat("m2", 1), ErrorCode::UnknownMemberId);
    // m1's join waits in the sockets meanwhile: the rebalance does not end without it.
    w.now_ms += 60_000;
    let outcome = w.coordinator.tick(w.now_ms, heard, w.now_ms);
    w.take(outcome);
    let joined = w.join("m1", None);
    assert_eq!(w.joins[&joined].error_code, 0);
    assert_eq!(w.joins[&joined].members.len(), 1);
}

#[test]
fn members_gather_sync_and_stay() {
    let mut w = World::pair();
    assert_eq!(w.beat("m1", 1), ErrorCode::None);
    assert_eq!(w.beat("m1", 0), ErrorCode::IllegalGeneration);
    assert_eq!(w.beat("nobody", 1), ErrorCode::UnknownMemberId);
    assert!(matches!(w.records.last(), Some(GroupRecord::Group { value: Some(v), .. }) if v.members.len() == 2));
}

#[test]
fn unknown_dynamic_members_get_an_id_first() {
    let mut w = World::new(0);
    let first = w.join_as("", None, "sub", true);
    assert_eq!(w.joins[&first].error_code, ErrorCode::MemberIdRequired.code());
    let id = w.joins[&first].member_id.clone();
    let second = w.join_as(&id, None, "sub", true);
    assert_eq!((w.joins[&second].error_code, w.joins[&second].member_id.as_str()), (0, id.as_str()));
}

#[test]
fn a_newcomer_makes_the_others_join_again() {
    let mut w = World::pair();
    let c = w.join("", None);
    assert_eq!(w.beat("m1", 1), ErrorCode::RebalanceInProgress);
    let (a, b) = (w.join("m1", None), w.join("m2", None));
    for waiter in [a, b, c] {
        assert_eq!((w.joins[&waiter].error_code, w.joins[&waiter].generation_id), (0, 2));
    }
    assert_eq!(w.state(), "CompletingRebalance");
}

#[test]
fn a_member_that_dies_is_dropped_after_its_session() {
    let mut w = World::pair();
    w.pass(9_000);
    assert_eq!(w.beat("m1", 1), ErrorCode::None);
    w.pass(2_000);
    assert_eq!(w.beat("m1", 1), ErrorCode::RebalanceInProgress);
    let a = w.join("m1", None);
    assert_eq!((w.joins[&a].generation_id, w.joins[&a].members.len()), (2, 1));
}

#[test]
fn a_member_that_does_not_come_back_is_dropped_after_the_rebalance_timeout() {
    let mut w = World::pair();
    let c = w.join("", None);
    let a = w.join("m1", None);
    for _ in 0..12 {
        w.pass(5_000);
        w.beat("m2", 1);
    }
    w.pass(1_000);
    assert_eq!(w.joins[&a].generation_id, 2);
    assert_eq!(w.joins[&c].generation_id, 2);
    assert_eq!(w.beat("m2", 1), ErrorCode::UnknownMemberId);
}

#[test]
fn leaving_empties_the_group_and_stores_that() {
    let mut w = World::pair();
    assert_eq!(w.leave("m2"), 0);
    assert_eq!(w.leave("m1"), 0);
    assert_eq!(w.state(), "Empty");
    assert_eq!(w.leave("m1"), ErrorCode::UnknownMemberId.code());
    assert!(
        matches!(w.records.last(), Some(GroupRecord::Group { value: Some(v), .. }) if v.members.is_empty() && v.generation == 2)
    );
}

#[test]
fn a_static_member_returns_without_a_rebalance() {
    let mut w = World::new(0);
    let a = w.join("", Some("i1"));
    assert_eq!(w.joins[&a].generation_id, 1);
    w.sync("m1", 1, &[("m1", "p0")]);
    let again = w.join("", Some("i1"));
    let reply = &w.joins[&again];
    assert_eq!((reply.error_code, reply.generation_id, reply.skip_assignment), (0, 1, true));
    let id = reply.member_id.clone();
    assert_ne!(id, "m1");
    let sync = w.sync(&id, 1, &[]);
    assert_eq!(w.syncs[&sync].assignment, "p0");
    let fenced = w.coordinator.heartbeat(w.now_ms, "g", "m1", Some("i1"), 1);
    assert_eq!(fenced, ErrorCode::FencedInstanceId);
}

#[test]
fn a_leader_that_never_syncs_is_dropped() {
    let mut w = World::new(0);
    let a = w.join("", None);
    assert_eq!(w.joins[&a].generation_id, 1);
    for _ in 0..13 {
        w.pass(5_000);
        w.beat("m1", 1);
    }
    assert_eq!(w.state(), "Empty");
}

#[test]
fn commits_are_fenced_by_generation() {
    let mut w = World::pair();
    let mut check = |member: &str, generation| {
        w.coordinator.check_commit(0, Committer { group: "g", member_id: member, instance_id: None, generation })
    };
    assert_eq!(check("m1", 1), ErrorCode::None);
    assert_eq!(check("m1", 0), ErrorCode::IllegalGeneration);
    assert_eq!(check("", -1), ErrorCode::UnknownMemberId);
    assert_eq!(check("zombie", 1), ErrorCode::UnknownMemberId);
    let outsider = Committer { group: "new", member_id: "", instance_id: None, generation: -1 };
    assert_eq!(w.coordinator.check_commit(0, outsider), ErrorCode::None);
}

#[test]
fn state_is_the_fold_of_its_records() {
    let mut w = World::pair();
    let value = CommittedOffset { offset: 5, leader_epoch: 0, metadata: "x".into(), commit_timestamp_ms: 1 };
    let stored = w.coordinator.commit("g", vec![("t".into(), 0, value.clone()), ("t".into(), 1, value.clone())]);
    w.records.extend(stored);
    w.records.extend(w.coordinator.delete_offsets("g", "t", 1));
    let mut loaded = Coordinator::new(GroupConfig::default());
    for record in &w.records {
        let (key, stored) = record.encode().unwrap();
        loaded.replay(GroupRecord::decode(key, stored).unwrap().unwrap(), 0);
    }
    assert_eq!(loaded.offset("g", "t", 0), Some(&value));
    assert_eq!(loaded.offset("g", "t", 1), None);
    assert_eq!(loaded.describe("g"), w.coordinator.describe("g"));
    assert_eq!(loaded.live_records(), w.coordinator.live_records());
}

#[test]
fn offsets_expire_once_the_group_is_empty() {
    let mut w = World::pair();
    let value = CommittedOffset { offset: 5, leader_epoch: 0, metadata: String::new(), commit_timestamp_ms: 1 };
    w.coordinator.commit("g", vec![("t".into(), 0, value)]);
    let week = w.coordinator.config.offsets_retention_ms;
    assert!(w.coordinator.expire_offsets(week * 2).is_empty(), "members still use them");
    w.leave("m1");
    w.leave("m2");
    assert!(w.coordinator.expire_offsets(w.now_ms + week - 1).is_empty());
    assert_eq!(w.coordinator.expire_offsets(w.now_ms + week).len(), 2);
    assert!(!w.coordinator.exists("g"));
}

#[test]
fn groups_without_members_and_offsets_go_at_the_next_look() {
    let mut w = World::pair();
    w.leave("m1");
    assert!(w.coordinator.expire_offsets(w.now_ms).is_empty(), "there is a member");
    w.leave("m2");
    assert_eq!(w.coordinator.expire_offsets(w.now_ms).len(), 1);
    assert!(!w.coordinator.exists("g"));
}

#[derive(Debug, Clone)]
enum Act {
    Join(usize, bool),
    New(Option<u8>, bool),
    Sync(usize),
    Beat(usize),
    Leave(usize),
    Pass(u16),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0..6usize, any::<bool>()).prop_map(|(m, s)| Act::Join(m, s)),
        (proptest::option::of(0..2u8), any::<bool>()).prop_map(|(i, k)| Act::New(i, k)),
        (0..6usize).prop_map(Act::Sync),
        (0..6usize).prop_map(Act::Beat),
        (0..6usize).prop_map(Act::Leave),
        (0..20_000u16).prop_map(Act::Pass),
    ]
}

proptest! {
    /// Whatever members do, every request is answered exactly once within the timeouts, and generations never go back.
    #[test]
    fn every_request_is_answered_once(acts in proptest::collection::vec(act(), 1..60)) {
        let mut w = World::new(3_000);
        let mut known: Vec<String> = Vec::new();
        let mut generation = 0;
        for act in acts {
            let id = |n: usize| known.get(n).cloned().unwrap_or_else(|| "ghost".into());
            match act {
                Act::Join(n, same) => { w.join_as(&id(n), None, if same { "sub" } else { "other" }, true); }
                Act::New(instance, requires) => {
                    let name = instance.map(|i| format!("i{i}"));
                    w.join_as("", name.as_deref(), "sub", requires);
                    known.push(format!("m{}", w.next_waiter));
                }
                Act::Sync(n) => { w.sync(&id(n), generation, &[]); }
                Act::Beat(n) => { w.beat(&id(n), generation); }
                Act::Leave(n) => { w.leave(&id(n)); }
                Act::Pass(ms) => w.pass(i64::from(ms)),
            }
            let newest = w.joins.values().map(|r| r.generation_id).max().unwrap_or(0).max(generation);
            prop_assert!(newest >= generation);
            generation = newest;
        }
        // Nobody says anything any more: sessions and rebalances run out and all waiting requests are answered.
        w.pass(10 * 60_000);
        prop_assert!(w.asked.is_empty(), "never answered: {:?}", w.asked);
        prop_assert!(!w.coordinator.has_members("g"));
    }
}
