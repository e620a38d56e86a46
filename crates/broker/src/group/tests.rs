//! Scripts of joins, syncs and deaths against the pure coordinator.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use caudal_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse};
use proptest::prelude::*;

use super::consumer::Clock;
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

    /// Stores at once what is to be stored.
    fn take(&mut self, outcome: Outcome) {
        self.take_unstored(outcome).into_iter().for_each(|assigned| self.stored(&assigned, ErrorCode::None));
    }

    fn stored(&mut self, assigned: &(String, i32), error: ErrorCode) {
        let outcome = self.coordinator.assignment_stored(self.now_ms, self.now_ms, assigned, error);
        self.take(outcome);
    }

    fn apply(&mut self, records: Vec<GroupRecord>) -> usize {
        records.iter().for_each(|record| self.coordinator.apply_stored(record.clone()));
        let count = records.len();
        self.records.extend(records);
        count
    }

    /// What the next start makes of what was stored.
    fn fold(&self) -> Coordinator {
        let mut loaded = Coordinator::new(GroupConfig::default());
        for record in &self.records {
            let (key, stored) = record.encode().unwrap();
            loaded.replay(GroupRecord::decode(key, stored).unwrap().unwrap(), 0);
        }
        loaded
    }

    fn expire(&mut self, wall_ms: i64) -> usize {
        let records = self.coordinator.expire_offsets(wall_ms);
        self.apply(records)
    }

    fn take_unstored(&mut self, outcome: Outcome) -> Option<(String, i32)> {
        self.records.extend(outcome.records);
        for (waiter, reply) in outcome.replies {
            assert!(self.asked.remove(&waiter), "answered twice, or never asked: {waiter}");
            match reply {
                Reply::Join(r) => drop(self.joins.insert(waiter, r)),
                Reply::Sync(r) => drop(self.syncs.insert(waiter, r)),
                Reply::Consumer(_) | Reply::Left => panic!("nobody asked that"),
            }
        }
        outcome.assigned
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
        let (waiter, assigned) = self.sync_unstored(member, generation, assignments);
        assigned.into_iter().for_each(|assigned| self.stored(&assigned, ErrorCode::None));
        waiter
    }

    fn sync_unstored(
        &mut self,
        member: &str,
        generation: i32,
        assignments: &[(&str, &str)],
    ) -> (u64, Option<(String, i32)>) {
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
        (waiter, self.take_unstored(outcome))
    }

    fn tick(&mut self, heard_ms: i64) {
        let clock = Clock { now_ms: self.now_ms, wall_ms: self.now_ms };
        for (_, outcome) in self.coordinator.tick(clock, heard_ms) {
            self.take(outcome);
        }
    }

    fn pass(&mut self, ms: i64) {
        let until = self.now_ms + ms;
        while let Some(next) = self.coordinator.next_deadline_ms().filter(|d| *d <= until) {
            self.now_ms = next.max(self.now_ms);
            self.tick(self.now_ms);
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
    w.tick(asleep);
    assert!(w.coordinator.next_deadline_ms().unwrap() < w.now_ms, "it is to be asked again");
    assert_eq!((w.state(), w.beat("m1", 1)), ("Stable".to_owned(), ErrorCode::None));
    let heard = w.now_ms;
    w.now_ms += 250;
    w.tick(heard);
    assert_eq!(w.state(), "PreparingRebalance");
    assert_eq!(w.beat("m1", 1), ErrorCode::RebalanceInProgress);
    assert_eq!(w.beat("m2", 1), ErrorCode::UnknownMemberId);
    // m1's join waits in the sockets meanwhile: the rebalance does not end without it.
    w.now_ms += 60_000;
    w.tick(heard);
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
    let value = CommittedOffset {
        offset: 5,
        leader_epoch: 0,
        metadata: "x".into(),
        commit_timestamp_ms: 1,
        expire_timestamp_ms: None,
    };
    let records = w.coordinator.commit("g", vec![("t".into(), 0, value.clone()), ("t".into(), 1, value.clone())]);
    assert_eq!(w.coordinator.offset("g", "t", 0), None, "not before it is stored");
    w.apply(records);
    let records = w.coordinator.delete_offsets("g", "t", 1);
    assert_eq!(w.coordinator.offset("g", "t", 1), Some(&value), "not before it is stored");
    w.apply(records);
    let loaded = w.fold();
    assert_eq!(loaded.offset("g", "t", 0), Some(&value));
    assert_eq!(loaded.offset("g", "t", 1), None);
    assert_eq!(loaded.describe("g"), w.coordinator.describe("g"));
    assert_eq!(loaded.live_records(), w.coordinator.live_records());
}

#[test]
fn offsets_expire_once_the_group_is_empty() {
    let mut w = World::pair();
    let value = CommittedOffset {
        offset: 5,
        leader_epoch: 0,
        metadata: String::new(),
        commit_timestamp_ms: 1,
        expire_timestamp_ms: None,
    };
    let records = w.coordinator.commit("g", vec![("t".into(), 0, value)]);
    w.apply(records);
    let week = w.coordinator.config.offsets_retention_ms;
    assert_eq!(w.expire(week * 2), 0, "members still use them");
    w.leave("m1");
    w.leave("m2");
    assert_eq!(w.expire(w.now_ms + week - 1), 0);
    assert_eq!(w.expire(w.now_ms + week), 2);
    assert!(!w.coordinator.exists("g"));
}

#[test]
fn offsets_that_an_administrator_committed_are_kept_as_long_as_any() {
    let mut world = World::new(0);
    let value = |at_ms| CommittedOffset {
        offset: 1,
        leader_epoch: 0,
        metadata: String::new(),
        commit_timestamp_ms: at_ms,
        expire_timestamp_ms: None,
    };
    let retention_ms = world.coordinator.config.offsets_retention_ms;
    let records = world.coordinator.commit("admin", vec![("t".into(), 0, value(1_000))]);
    world.apply(records);
    assert_eq!(world.expire(1_000 + retention_ms - 1), 0);
    assert!(world.coordinator.exists("admin"));
    assert_eq!(world.coordinator.list(|_, _| true).len(), 1);
    assert_eq!(world.expire(1_000 + retention_ms), 2);
    assert!(!world.coordinator.exists("admin"));
    assert_eq!(world.fold().live_records(), []);
}

#[test]
fn a_group_that_only_committed_outlives_its_offsets_until_the_next_look() {
    let mut world = World::new(0);
    let value = CommittedOffset {
        offset: 1,
        leader_epoch: 0,
        metadata: String::new(),
        commit_timestamp_ms: 1_000,
        expire_timestamp_ms: None,
    };
    for ends_by_request in [true, false] {
        let records = world.coordinator.commit("admin", vec![("t".into(), 0, value.clone())]);
        world.apply(records);
        let records = world.coordinator.delete_offsets("admin", "t", 0);
        assert_eq!(world.apply(records), 1);
        for coordinator in [&world.coordinator, &world.fold()] {
            assert_eq!(coordinator.describe("admin").unwrap().group_state, "Empty");
            assert_eq!(coordinator.list(|_, _| true).len(), 1);
            assert!(coordinator.check_offset_delete("admin") == ErrorCode::None);
        }
        if ends_by_request {
            let (error, records) = world.coordinator.delete("admin");
            assert_eq!((error, world.apply(records)), (ErrorCode::None, 1));
        } else {
            assert_eq!(world.expire(0), 1);
        }
        assert!(!world.coordinator.exists("admin") && !world.fold().exists("admin"));
    }
}

#[test]
fn groups_without_members_and_offsets_go_at_the_next_look() {
    let mut w = World::pair();
    w.leave("m1");
    assert_eq!(w.expire(w.now_ms), 0, "there is a member");
    w.leave("m2");
    assert_eq!(w.expire(w.now_ms), 1);
    assert!(!w.coordinator.exists("g"));
}

#[test]
fn a_static_member_that_returns_amid_a_rebalance_gets_its_part() {
    let mut w = World::new(3_000);
    let (a, b) = (w.join("", Some("i1")), w.join("", Some("i2")));
    w.pass(3_000);
    assert_eq!((w.joins[&a].generation_id, w.joins[&b].generation_id), (1, 1));
    // The leader computes for the ids that it knows; meanwhile the other one comes back under a new id.
    let again = w.join("", Some("i2"));
    assert_eq!(w.beat("m1", 1), ErrorCode::RebalanceInProgress);
    let late = w.sync("m1", 1, &[("m1", "p0"), ("m2", "p1")]);
    assert_eq!(w.syncs[&late].error_code, ErrorCode::RebalanceInProgress.code());
    let a = w.join("m1", Some("i1"));
    let id = w.joins[&again].member_id.clone();
    assert_eq!((w.joins[&a].generation_id, w.joins[&again].generation_id), (2, 2));
    w.sync("m1", 2, &[("m1", "p0"), (&id, "p1")]);
    let sync = w.sync(&id, 2, &[]);
    assert_eq!(w.syncs[&sync].assignment, "p1");
}

#[test]
fn an_assignment_counts_when_it_is_stored() {
    let mut w = World::new(0);
    let a = w.join("", None);
    assert_eq!(w.joins[&a].generation_id, 1);
    let (sync, assigned) = w.sync_unstored("m1", 1, &[("m1", "p0")]);
    assert_eq!(w.state(), "CompletingRebalance");
    w.stored(&assigned.unwrap(), ErrorCode::NotCoordinator);
    assert_eq!(w.syncs[&sync].error_code, ErrorCode::NotCoordinator.code());
    assert_eq!(w.beat("m1", 1), ErrorCode::RebalanceInProgress);
    let a = w.join("m1", None);
    assert_eq!(w.joins[&a].generation_id, 2);
    let (sync, assigned) = w.sync_unstored("m1", 2, &[("m1", "p1")]);
    // An answer about the generation before is none about this one.
    w.stored(&("g".into(), 1), ErrorCode::None);
    assert!(!w.syncs.contains_key(&sync));
    w.stored(&assigned.unwrap(), ErrorCode::None);
    assert_eq!((w.syncs[&sync].assignment.as_ref(), w.state().as_str()), (b"p1".as_slice(), "Stable"));
}

#[test]
fn a_refused_member_leaves_no_group_behind() {
    let mut w = World::new(0);
    let refused = w.join("stranger", None);
    assert_eq!(w.joins[&refused].error_code, ErrorCode::UnknownMemberId.code());
    assert!(!w.coordinator.exists("g"));
    let first = w.join_as("", None, "sub", true);
    assert_eq!(w.joins[&first].error_code, ErrorCode::MemberIdRequired.code());
    assert!(w.coordinator.exists("g"), "until the id lapses");
    w.pass(11_000);
    assert!(!w.coordinator.exists("g"));
    let config = GroupConfig { max_size: 0, ..GroupConfig::default() };
    w.coordinator = Coordinator::new(config);
    let refused = w.join("", None);
    assert_eq!(w.joins[&refused].error_code, ErrorCode::GroupMaxSizeReached.code());
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
    // Time enough for all to gather.
    let gather = Just(Act::Pass(3_000));
    prop_oneof![
        gather,
        (0..6usize, any::<bool>()).prop_map(|(m, s)| Act::Join(m, s)),
        (proptest::option::of(0..2u8), any::<bool>()).prop_map(|(i, k)| Act::New(i, k)),
        (0..6usize).prop_map(Act::Sync),
        (0..6usize).prop_map(Act::Beat),
        (0..6usize).prop_map(Act::Leave),
        (0..20_000u16).prop_map(Act::Pass),
    ]
}

/// What a member learnt from its last answer to JoinGroup.
#[derive(Debug, Clone, Default)]
struct Learnt {
    generation: i32,
    /// Not empty: it is the leader of these.
    members: Vec<String>,
}

/// Members that do as they were told.
#[derive(Debug, Default)]
struct Members {
    /// In the order they came; a static member that came back is another one.
    ids: Vec<String>,
    learnt: HashMap<String, Learnt>,
    instances: HashMap<String, String>,
    seen: HashSet<u64>,
    /// The generation of each SyncGroup.
    synced: HashMap<u64, i32>,
    newest: i32,
}

impl Members {
    fn id(&self, n: usize) -> String {
        self.ids.get(n).cloned().unwrap_or_else(|| "ghost".into())
    }

    /// Takes in what was answered since the last time: no generation before the newest, no assignment but of its own.
    fn learn(&mut self, w: &World) -> Result<(), TestCaseError> {
        let mut new: Vec<u64> = w.joins.keys().filter(|waiter| !self.seen.contains(*waiter)).copied().collect();
        new.sort_unstable();
        for waiter in new {
            self.seen.insert(waiter);
            let reply = &w.joins[&waiter];
            if reply.error_code == ErrorCode::None.code() {
                prop_assert!(reply.generation_id >= self.newest, "{} after {}", reply.generation_id, self.newest);
                self.newest = reply.generation_id;
                let members = reply.members.iter().map(|m| m.member_id.clone()).collect();
                self.learnt.insert(reply.member_id.clone(), Learnt { generation: reply.generation_id, members });
            }
        }
        for (waiter, generation) in &self.synced {
            let Some(reply) = w.syncs.get(waiter).filter(|reply| reply.error_code == 0) else { continue };
            let assignment = String::from_utf8(reply.assignment.to_vec()).unwrap();
            prop_assert_eq!(assignment, format!("part of generation {generation}"));
        }
        Ok(())
    }

    /// The leader hands in a part for everybody that it was shown.
    fn sync(&mut self, w: &mut World, id: &str) {
        let Learnt { generation, members } = self.learnt.get(id).cloned().unwrap_or_default();
        let part = format!("part of generation {generation}");
        let parts: Vec<(&str, &str)> = members.iter().map(|member| (member.as_str(), part.as_str())).collect();
        let waiter = w.sync(id, generation, &parts);
        self.synced.insert(waiter, generation);
    }
}

proptest! {
    /// Whatever members do, every request is answered exactly once within the timeouts, generations never go back, and who
    /// is told that it is in a generation has its part of it.
    #[test]
    fn every_request_is_answered_once(acts in proptest::collection::vec(act(), 1..60)) {
        let mut w = World::new(3_000);
        let mut members = Members::default();
        for act in acts {
            match act {
                Act::Join(n, same) => {
                    let id = members.id(n);
                    let instance = members.instances.get(&id).cloned();
                    w.join_as(&id, instance.as_deref(), if same { "sub" } else { "other" }, true);
                }
                Act::New(instance, requires) => {
                    let name = instance.map(|i| format!("i{i}"));
                    w.join_as("", name.as_deref(), "sub", requires);
                    let id = format!("m{}", w.next_waiter);
                    members.instances.extend(name.map(|name| (id.clone(), name)));
                    members.ids.push(id);
                }
                Act::Sync(n) => {
                    let id = members.id(n);
                    members.sync(&mut w, &id);
                }
                Act::Beat(n) => { w.beat(&members.id(n), members.newest); }
                Act::Leave(n) => { w.leave(&members.id(n)); }
                Act::Pass(ms) => w.pass(i64::from(ms)),
            }
            members.learn(&w)?;
        }
        // Nobody says anything any more: sessions and rebalances run out and all waiting requests are answered.
        w.pass(10 * 60_000);
        members.learn(&w)?;
        prop_assert!(w.asked.is_empty(), "never answered: {:?}", w.asked);
        prop_assert!(!w.coordinator.has_members("g"));
    }
}

#[test]
fn an_offset_with_an_expiry_of_its_own_keeps_and_obeys_it() {
    let value = CommittedOffset {
        offset: 5,
        leader_epoch: -1,
        metadata: "x".into(),
        commit_timestamp_ms: 1,
        expire_timestamp_ms: Some(500),
    };
    let mut w = World::new(0);
    let records = w.coordinator.commit("g", vec![("t".into(), 0, value)]);
    let (key, stored) = records[0].encode().unwrap();
    assert_eq!(GroupRecord::decode(key, stored).unwrap().as_ref(), Some(&records[0]));
    w.apply(records);
    assert_eq!((w.expire(499), w.expire(500)), (0, 2));
    assert_eq!(w.coordinator.offset("g", "t", 0), None);
}
