//! Scripts of heartbeats against the pure coordinator, and any interleaving of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caudal_cluster::MetadataImage;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use caudal_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};
use proptest::prelude::*;

use super::super::coordinator::Committer;
use super::super::record::CommittedOffset;
use super::super::{Coordinator, GroupConfig, GroupRecord, Job, Outcome, Reply};
use super::heartbeat::{self, Client};
use super::testing::{grow, image, remove, topic_id};
use super::{Clock, ConsumerConfig, Partitions};

const SESSION_MS: i64 = 45_000;

/// A coordinator with a clock and metadata of its own.
pub struct World {
    pub coordinator: Coordinator,
    pub image: MetadataImage,
    pub now_ms: i64,
    pub records: Vec<GroupRecord>,
    pub jobs: Vec<Job>,
    pub next_waiter: u64,
    /// Answers that have come, by the number of the request.
    pub replies: BTreeMap<u64, Reply>,
}

impl World {
    pub fn new(topics: &[(&str, i32)]) -> World {
        World::with(topics, |_| {})
    }

    pub fn with(topics: &[(&str, i32)], change: impl FnOnce(&mut ConsumerConfig)) -> World {
        let mut config = GroupConfig { initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
        config.consumer.assignment_interval_ms = 0;
        change(&mut config.consumer);
        World {
            coordinator: Coordinator::new(config),
            image: image(topics),
            now_ms: 1_000_000,
            records: Vec::new(),
            jobs: Vec::new(),
            next_waiter: 0,
            replies: BTreeMap::new(),
        }
    }

    pub fn clock(&self) -> Clock {
        Clock { now_ms: self.now_ms, wall_ms: self.now_ms }
    }

    /// Stores at once what is to be stored.
    pub fn take(&mut self, outcome: Outcome) {
        outcome.records.iter().for_each(|record| self.coordinator.apply_stored(record.clone()));
        self.records.extend(outcome.records);
        self.jobs.extend(outcome.jobs);
        self.replies.extend(outcome.replies);
        if let Some(assigned) = outcome.assigned {
            let clock = self.clock();
            let after = self.coordinator.assignment_stored(clock.now_ms, clock.wall_ms, &assigned, ErrorCode::None);
            self.take(after);
        }
    }

    fn decide(&mut self, request: &ConsumerGroupHeartbeatRequest) -> (Outcome, ConsumerGroupHeartbeatResponse) {
        self.next_waiter += 1;
        self.coordinator.follow(Arc::new(self.image.clone()));
        let client = Client { id: "c", host: "/127.0.0.1", fresh_member_id: "fresh" };
        if let Err(refusal) = heartbeat::check(request, 1, &self.coordinator.config.consumer.assignors) {
            return (Outcome::default(), refusal.response());
        }
        let mut outcome = self.coordinator.consumer_heartbeat(self.clock(), request, client, self.next_waiter);
        let Some((_, Reply::Consumer(response))) = outcome.replies.pop() else { panic!("no answer") };
        (outcome, *response)
    }

    pub fn beat(&mut self, request: &ConsumerGroupHeartbeatRequest) -> ConsumerGroupHeartbeatResponse {
        let (outcome, response) = self.decide(request);
        self.take(outcome);
        response
    }

    /// Matches the regular expressions and computes the assignments that wait for it.
    pub fn resolve(&mut self) {
        for job in std::mem::take(&mut self.jobs) {
            let outcome = match job {
                Job::Regexes(job) => {
                    let found = job.run(&self.image, self.now_ms);
                    self.coordinator.regexes_resolved(self.clock(), &job, found)
                }
                Job::Assign(job) => self.coordinator.assigned(self.clock(), &job, job.run()),
            };
            self.take(outcome);
        }
    }

    /// What was decided cannot be stored: all is as before.
    fn take_back(&mut self, outcome: Outcome) {
        assert_eq!(outcome.records.is_empty(), outcome.undo.is_empty());
        self.jobs.extend(outcome.jobs);
        drop(self.coordinator.roll_back(self.clock(), "g", outcome.undo));
    }

    pub fn pass(&mut self, ms: i64) {
        let until = self.now_ms + ms;
        while let Some(next) = self.coordinator.next_deadline_ms().filter(|deadline| *deadline <= until) {
            self.now_ms = next.max(self.now_ms);
            for (_, outcome) in self.coordinator.tick(self.clock(), self.now_ms) {
                self.take(outcome);
            }
        }
        self.now_ms = until;
    }

    /// A broker that has read all that was stored, as it was written or as compaction left it.
    pub fn restart(&mut self) {
        let read = |records: &[GroupRecord]| {
            let mut coordinator = Coordinator::new(self.coordinator.config.clone());
            records.iter().for_each(|record| coordinator.replay(record.clone(), self.now_ms));
            coordinator.follow(Arc::new(self.image.clone()));
            coordinator.start_consumer_clocks(self.now_ms);
            coordinator
        };
        let compacted = read(&compacted(&self.records));
        self.coordinator = read(&self.records);
        assert_eq!(compacted.describe_consumer("g"), self.coordinator.describe_consumer("g"));
        assert_eq!(compacted.list(|_, _| true), self.coordinator.list(|_, _| true));
    }

    pub fn state(&self) -> String {
        self.coordinator.describe_consumer("g").map_or("gone".into(), |group| group.group_state)
    }

    pub fn epochs(&self) -> (i32, i32) {
        let group = self.coordinator.describe_consumer("g").unwrap();
        (group.group_epoch, group.assignment_epoch)
    }
}

/// The newest record of each key; none of what was deleted.
fn compacted(records: &[GroupRecord]) -> Vec<GroupRecord> {
    let stored: Vec<_> = records.iter().map(|record| record.encode().unwrap()).collect();
    let newest: BTreeMap<&[u8], usize> = stored.iter().enumerate().map(|(at, (key, _))| (&key[..], at)).collect();
    let stays = |at: &usize| stored[*at].1.is_some() && newest[&stored[*at].0[..]] == *at;
    (0..records.len()).filter(stays).map(|at| records[at].clone()).collect()
}

/// A consumer: what it knows, and what it reads.
#[derive(Debug, Clone, Default)]
pub struct Consumer {
    pub id: String,
    pub instance: Option<String>,
    pub epoch: i32,
    pub topics: Option<Vec<String>>,
    pub regex: Option<String>,
    pub owned: Partitions,
    /// What it has been told to read.
    pub told: Partitions,
}

impl Consumer {
    pub fn new(id: &str, topics: &[&str]) -> Consumer {
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        Consumer { id: id.into(), topics: Some(topics), ..Consumer::default() }
    }

    /// All that a member says of itself. What it reads it says as soon as it has done what it was told: before that it may
    /// come to read it at any time.
    pub fn full(&self) -> ConsumerGroupHeartbeatRequest {
        let settled = self.epoch == 0 || self.owned == self.told;
        let owned = |(topic_id, partitions): (&_, &BTreeSet<i32>)| TopicPartitions {
            topic_id: *topic_id,
            partitions: partitions.iter().copied().collect(),
        };
        ConsumerGroupHeartbeatRequest {
            group_id: "g".into(),
            member_id: self.id.clone(),
            member_epoch: self.epoch,
            instance_id: self.instance.clone(),
            rebalance_timeout_ms: 60_000,
            subscribed_topic_names: self.topics.clone(),
            subscribed_topic_regex: self.regex.clone(),
            topic_partitions: settled.then(|| self.owned.iter().map(owned).collect()),
            ..ConsumerGroupHeartbeatRequest::default()
        }
    }

    pub fn hear(&mut self, response: &ConsumerGroupHeartbeatResponse) -> i16 {
        match ErrorCode::from_code(response.error_code) {
            ErrorCode::None => {
                self.epoch = response.member_epoch;
                if let Some(assignment) = &response.assignment {
                    let topics = assignment.topic_partitions.iter();
                    self.told = topics.map(|t| (t.topic_id, t.partitions.iter().copied().collect())).collect();
                }
            }
            ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMemberId | ErrorCode::GroupIdNotFound => {
                self.epoch = 0;
                self.owned.clear();
                self.told.clear();
            }
            _ => {}
        }
        response.error_code
    }

    pub fn beat(&mut self, world: &mut World) -> i16 {
        let response = world.beat(&self.full());
        self.hear(&response)
    }

    /// Gives up and takes up what it was told to.
    pub fn reconcile(&mut self) {
        self.owned = self.told.clone();
    }

    pub fn leave(&mut self, world: &mut World, epoch: i32) -> i16 {
        let request = ConsumerGroupHeartbeatRequest { member_epoch: epoch, ..self.full() };
        let code = world.beat(&request).error_code;
        self.epoch = 0;
        self.owned.clear();
        self.told.clear();
        code
    }

    pub fn reads(&self, topic: &str) -> Vec<i32> {
        self.owned.get(&topic_id(topic)).into_iter().flatten().copied().collect()
    }
}

pub fn settle(world: &mut World, consumers: &mut [&mut Consumer]) {
    for _ in 0..6 {
        for consumer in consumers.iter_mut() {
            consumer.beat(world);
            consumer.reconcile();
        }
    }
}

#[test]
fn members_come_and_go() {
    let mut world = World::new(&[("t", 6)]);
    let (mut a, mut b, mut c) = (Consumer::new("a", &["t"]), Consumer::new("b", &["t"]), Consumer::new("c", &["t"]));
    assert_eq!(a.beat(&mut world), 0);
    assert_eq!((a.epoch, a.told.len(), world.state().as_str(), world.epochs()), (2, 1, "Stable", (2, 2)));
    a.reconcile();
    assert_eq!(b.beat(&mut world), 0);
    // Nothing is free yet; the first one is told to give up what it is to lose, and keeps the rest.
    assert_eq!((b.epoch, b.told.len(), world.state().as_str()), (3, 0, "Reconciling"));
    a.beat(&mut world);
    assert_eq!((a.epoch, a.told[&topic_id("t")].len()), (2, 3));
    b.beat(&mut world);
    assert!(b.told.is_empty());
    a.reconcile();
    a.beat(&mut world);
    assert_eq!(a.epoch, 3);
    b.beat(&mut world);
    b.reconcile();
    assert_eq!((a.reads("t").len(), b.reads("t").len(), world.state().as_str()), (3, 3, "Stable"));
    settle(&mut world, &mut [&mut a, &mut b, &mut c]);
    assert_eq!([&a, &b, &c].map(|x| x.reads("t").len()), [2, 2, 2]);
    assert_eq!(b.leave(&mut world, -1), 0);
    // Who dies is out after the session.
    world.pass(SESSION_MS - 1);
    c.beat(&mut world);
    world.pass(2);
    settle(&mut world, &mut [&mut c]);
    assert_eq!((c.reads("t").len(), world.state().as_str()), (6, "Stable"));
    assert_eq!(a.beat(&mut world), ErrorCode::UnknownMemberId.code());
    c.leave(&mut world, -1);
    assert_eq!(world.state(), "Empty");
}

#[test]
fn epochs_fence() {
    let mut world = World::new(&[("t", 2)]);
    let mut a = Consumer::new("a", &["t"]);
    a.epoch = 7;
    assert_eq!(a.beat(&mut world), ErrorCode::GroupIdNotFound.code());
    a.beat(&mut world);
    a.reconcile();
    // The answer is lost: the member comes again with what it knows.
    let mut b = Consumer::new("b", &["t"]);
    b.beat(&mut world);
    let lost = world.beat(&a.full());
    assert_eq!((lost.error_code, lost.member_epoch), (0, 2));
    a.reconcile();
    assert_eq!(a.beat(&mut world), 0);
    for epoch in [1, 9] {
        let request = ConsumerGroupHeartbeatRequest { member_epoch: epoch, ..a.full() };
        let response = world.beat(&request);
        assert_eq!(response.error_code, ErrorCode::FencedMemberEpoch.code());
        assert!(response.error_message.unwrap().contains("must abandon all its partitions"));
    }
    // It begins anew, and has lost nothing meanwhile.
    a.epoch = 0;
    a.owned.clear();
    assert_eq!(a.beat(&mut world), 0);
}

#[test]
fn who_does_not_give_up_is_removed() {
    let mut world = World::new(&[("t", 2)]);
    let (mut a, mut b) = (Consumer::new("a", &["t"]), Consumer::new("b", &["t"]));
    settle(&mut world, &mut [&mut a]);
    b.beat(&mut world);
    a.beat(&mut world);
    for _ in 0..6 {
        world.pass(10_000);
        b.beat(&mut world);
        // It is heard of, but keeps what it is to give up.
        let code = a.beat(&mut world);
        if code == ErrorCode::UnknownMemberId.code() {
            break;
        }
    }
    assert_eq!(a.epoch, 0);
    settle(&mut world, &mut [&mut b]);
    assert_eq!(b.reads("t").len(), 2);
}

#[test]
fn static_members_keep_their_places() {
    let mut world = World::new(&[("t", 4)]);
    let (mut a, mut b) = (Consumer::new("a", &["t"]), Consumer::new("b", &["t"]));
    a.instance = Some("i".into());
    settle(&mut world, &mut [&mut a, &mut b]);
    let (had, epoch) = (a.reads("t"), world.epochs());
    let mut again = Consumer { id: "a2".into(), epoch: 0, ..Consumer::new("a2", &["t"]) };
    again.instance = Some("i".into());
    assert_eq!(again.beat(&mut world), ErrorCode::UnreleasedInstanceId.code());
    assert_eq!(a.leave(&mut world, -2), 0);
    world.restart();
    assert_eq!(again.beat(&mut world), 0);
    again.reconcile();
    assert_eq!((again.reads("t"), world.epochs()), (had, epoch));
    // Its former self is fenced.
    a.epoch = epoch.0;
    assert_eq!(a.beat(&mut world), ErrorCode::FencedInstanceId.code());
    // It leaves for a while and does not come back: the others take over when its session is over.
    again.leave(&mut world, -2);
    world.pass(SESSION_MS - 10);
    b.beat(&mut world);
    world.pass(20);
    settle(&mut world, &mut [&mut b]);
    assert_eq!(b.reads("t").len(), 4);
}

#[test]
fn topics_come_grow_and_go() {
    let mut world = World::new(&[("t", 2)]);
    let mut a = Consumer::new("a", &["t", "later"]);
    settle(&mut world, &mut [&mut a]);
    assert_eq!(a.reads("t").len(), 2);
    let before = world.epochs().0;
    settle(&mut world, &mut [&mut a]);
    assert_eq!(world.epochs().0, before);
    grow(&mut world.image, "t", 5);
    grow(&mut world.image, "later", 1);
    grow(&mut world.image, "other", 1);
    settle(&mut world, &mut [&mut a]);
    assert_eq!((a.reads("t").len(), a.reads("later").len(), world.epochs().0), (5, 1, before + 1));
    remove(&mut world.image, "t");
    settle(&mut world, &mut [&mut a]);
    assert_eq!((a.reads("t").len(), world.state().as_str()), (0, "Stable"));
}

#[test]
fn subscriptions_by_expression_follow_the_topics() {
    let mut world = World::new(&[("foo1", 1), ("bar", 1)]);
    let mut a = Consumer { id: "a".into(), regex: Some("foo.*".into()), ..Consumer::default() };
    a.beat(&mut world);
    assert!(a.told.is_empty());
    world.resolve();
    settle(&mut world, &mut [&mut a]);
    assert_eq!((a.reads("foo1").len(), a.reads("bar").len()), (1, 0));
    grow(&mut world.image, "foo2", 2);
    world.pass(5_000);
    settle(&mut world, &mut [&mut a]);
    assert!(world.jobs.is_empty(), "not more often than every ten seconds");
    world.pass(6_000);
    settle(&mut world, &mut [&mut a]);
    world.resolve();
    world.restart();
    settle(&mut world, &mut [&mut a]);
    assert_eq!(a.reads("foo2").len(), 2);
    let request = ConsumerGroupHeartbeatRequest { subscribed_topic_regex: Some("(".into()), ..a.full() };
    assert_eq!(world.beat(&request).error_code, ErrorCode::InvalidRegularExpression.code());
    // Names instead: what the expression stood for is forgotten.
    (a.regex, a.topics) = (Some(String::new()), Some(vec!["bar".into()]));
    settle(&mut world, &mut [&mut a]);
    assert_eq!((a.reads("foo2").len(), a.reads("bar").len()), (0, 1));
    assert!(!world.coordinator.is_subscribed("g", "foo1"));
}

type Request = ConsumerGroupHeartbeatRequest;
type Spoil = &'static dyn Fn(&mut Request);

#[test]
fn requests_are_checked() {
    let mut world = World::with(&[("t", 1)], |config| config.max_size = 1);
    let first = Consumer::new("a", &["t"]).full();
    let cases: [(Spoil, ErrorCode); 10] = [
        (&|r: &mut Request| r.member_id = String::new(), ErrorCode::InvalidRequest),
        (&|r: &mut Request| r.group_id = String::new(), ErrorCode::InvalidRequest),
        (&|r: &mut Request| r.instance_id = Some(String::new()), ErrorCode::InvalidRequest),
        (&|r: &mut Request| r.rebalance_timeout_ms = -1, ErrorCode::InvalidRequest),
        (&|r: &mut Request| r.topic_partitions = None, ErrorCode::InvalidRequest),
        (&|r: &mut Request| r.subscribed_topic_names = None, ErrorCode::InvalidRequest),
        (&|r: &mut Request| r.member_epoch = -2, ErrorCode::InvalidRequest),
        (&|r: &mut Request| r.member_epoch = -3, ErrorCode::InvalidRequest),
        (&|r: &mut Request| r.server_assignor = Some("mine".into()), ErrorCode::UnsupportedAssignor),
        (
            &|r: &mut Request| r.subscribed_topic_names = Some(vec!["t".repeat(200); 6_000]),
            ErrorCode::UnknownServerError,
        ),
    ];
    for (i, (spoil, expected)) in cases.iter().enumerate() {
        let mut request = first.clone();
        spoil(&mut request);
        let response = world.beat(&request);
        assert_eq!(ErrorCode::from_code(response.error_code), *expected, "case {i}");
        assert!(response.error_message.is_some_and(|message| !message.is_empty()));
        assert!(world.records.is_empty());
    }
    assert_eq!(world.beat(&first).error_code, 0);
    let second = Consumer::new("b", &["t"]).full();
    assert_eq!(world.beat(&second).error_code, ErrorCode::GroupMaxSizeReached.code());
}

#[test]
fn members_that_come_together_are_assigned_together() {
    let mut world = World::with(&[("t", 4)], |config| config.assignment_interval_ms = 1_000);
    let (mut a, mut b, mut c) = (Consumer::new("a", &["t"]), Consumer::new("b", &["t"]), Consumer::new("c", &["t"]));
    settle(&mut world, &mut [&mut a, &mut b, &mut c]);
    assert_eq!((a.reads("t").len(), world.state().as_str(), world.epochs()), (4, "Assigning", (4, 2)));
    world.pass(1_000);
    settle(&mut world, &mut [&mut a, &mut b, &mut c]);
    assert_eq!((world.state().as_str(), world.epochs()), ("Stable", (4, 4)));
}

fn one_offset(world: &World, partition: i32) -> Vec<(String, i32, CommittedOffset)> {
    let value = CommittedOffset {
        offset: 1,
        leader_epoch: 0,
        metadata: String::new(),
        commit_timestamp_ms: world.now_ms,
        expire_timestamp_ms: None,
    };
    vec![("t".to_owned(), partition, value)]
}

fn commit(world: &mut World, member: &str, epoch: i32, partition: i32, version: i16) -> ErrorCode {
    let who = Committer { group: "g", member_id: member, instance_id: None, generation: epoch };
    let offsets = one_offset(world, partition);
    let error = world.coordinator.check_commit_of(world.now_ms, who, version, &offsets);
    if !error.is_error() {
        let records = world.coordinator.commit("g", offsets);
        world.take(Outcome { records, ..Outcome::default() });
    }
    error
}

#[test]
fn commits_and_fetches_are_fenced_by_epoch() {
    let mut world = World::new(&[("t", 4)]);
    assert_eq!(commit(&mut world, "a", 3, 0, 9), ErrorCode::GroupIdNotFound);
    assert_eq!(commit(&mut world, "a", 3, 0, 8), ErrorCode::IllegalGeneration);
    let (mut a, mut b) = (Consumer::new("a", &["t"]), Consumer::new("b", &["t"]));
    settle(&mut world, &mut [&mut a]);
    let old = a.epoch;
    assert_eq!(commit(&mut world, "a", old, 0, 9), ErrorCode::None);
    assert_eq!(commit(&mut world, "a", old, 0, 8), ErrorCode::UnsupportedVersion);
    assert_eq!(commit(&mut world, "", -1, 0, 9), ErrorCode::UnknownMemberId);
    settle(&mut world, &mut [&mut a, &mut b]);
    let (kept, lost) = (a.reads("t")[0], b.reads("t")[0]);
    // Of an earlier epoch: as long as the partition is still the member's.
    assert_eq!(commit(&mut world, "a", old, kept, 9), ErrorCode::None);
    assert_eq!(commit(&mut world, "a", old, lost, 9), ErrorCode::StaleMemberEpoch);
    assert_eq!(commit(&mut world, "b", old, lost, 9), ErrorCode::StaleMemberEpoch);
    assert_eq!(commit(&mut world, "a", a.epoch + 1, kept, 9), ErrorCode::StaleMemberEpoch);
    let c = &world.coordinator;
    assert_eq!(c.check_fetch("g", Some("a"), a.epoch), ErrorCode::None);
    assert_eq!(c.check_fetch("g", Some("a"), a.epoch - 1), ErrorCode::StaleMemberEpoch);
    assert_eq!(c.check_fetch("g", Some("x"), a.epoch), ErrorCode::UnknownMemberId);
    assert_eq!(c.check_fetch("g", None, -1), ErrorCode::None);
    // With members in it the group stays, and its offsets of topics that they read.
    assert_eq!(c.delete("g").0, ErrorCode::NonEmptyGroup);
    world.pass(1_000);
    let much_later = world.now_ms + 30 * 24 * 3_600_000;
    assert!(world.coordinator.expire_offsets(much_later).is_empty());
    a.leave(&mut world, -1);
    b.leave(&mut world, -1);
    let records = world.coordinator.expire_offsets(much_later);
    world.take(Outcome { records, ..Outcome::default() });
    assert!(!world.coordinator.exists("g"));
    world.restart();
    assert!(!world.coordinator.exists("g"));
}

#[test]
fn commits_in_transactions_are_fenced_by_epoch() {
    let mut world = World::new(&[("t", 4)]);
    let (mut a, mut b) = (Consumer::new("a", &["t"]), Consumer::new("b", &["t"]));
    settle(&mut world, &mut [&mut a]);
    let old = a.epoch;
    settle(&mut world, &mut [&mut a, &mut b]);
    let (kept, lost) = (a.reads("t")[0], b.reads("t")[0]);
    let mut check = |member_id: &str, generation: i32, partition: i32| {
        let who = Committer { group: "g", member_id, instance_id: None, generation };
        let offsets = one_offset(&world, partition);
        world.coordinator.check_transactional_commit(world.now_ms, who, &offsets)
    };
    assert_eq!(check("a", a.epoch, kept), ErrorCode::None);
    // Clients that do not say who they are.
    assert_eq!(check("", -1, lost), ErrorCode::None);
    assert_eq!(check("x", a.epoch, kept), ErrorCode::UnknownMemberId);
    assert_eq!(check("a", a.epoch + 1, kept), ErrorCode::IllegalGeneration);
    // Of an earlier epoch: as long as the partition is still the member's.
    assert_eq!(check("a", old, kept), ErrorCode::None);
    assert_eq!(check("a", old, lost), ErrorCode::IllegalGeneration);
    assert_eq!(check("b", old, lost), ErrorCode::IllegalGeneration);
}

#[test]
fn what_could_not_be_stored_is_taken_back() {
    let mut world = World::new(&[("t", 4)]);
    let (mut a, mut b, c) = (Consumer::new("a", &["t"]), Consumer::new("b", &["t"]), Consumer::new("c", &["t"]));
    settle(&mut world, &mut [&mut a, &mut b]);
    let before = world.coordinator.describe_consumer("g");
    // The one leaves, another joins and reads by an expression, and the log knows nothing of it.
    let mut by_regex = Consumer { id: "d".into(), regex: Some("t.*".into()), ..Consumer::default() };
    for request in [ConsumerGroupHeartbeatRequest { member_epoch: -1, ..b.full() }, c.full(), by_regex.full()] {
        let (outcome, _) = world.decide(&request);
        world.take_back(outcome);
        assert_eq!(world.coordinator.describe_consumer("g"), before);
    }
    settle(&mut world, &mut [&mut a, &mut b]);
    assert_eq!(world.coordinator.describe_consumer("g"), before);
    world.pass(20_000);
    by_regex.beat(&mut world);
    let live = world.coordinator.describe_consumer("g");
    world.restart();
    assert_eq!(world.coordinator.describe_consumer("g"), live);
}

#[test]
fn a_group_that_could_not_be_stored_never_was() {
    let mut world = World::new(&[("t", 4)]);
    let (outcome, _) = world.decide(&Consumer::new("a", &["t"]).full());
    world.take_back(outcome);
    assert!(!world.coordinator.exists("g"));
    assert_eq!(world.coordinator.next_deadline_ms(), None);
}

#[test]
fn the_target_of_a_large_group_is_computed_elsewhere() {
    let mut world = World::with(&[("t", 6)], |config| config.assign_at_once_most = 11);
    let (mut a, mut b) = (Consumer::new("a", &["t"]), Consumer::new("b", &["t"]));
    settle(&mut world, &mut [&mut a]);
    assert_eq!((a.reads("t").len(), world.jobs.len()), (6, 0));
    settle(&mut world, &mut [&mut a, &mut b]);
    // Everybody goes on with what they have, and it is computed once.
    assert_eq!((a.reads("t").len(), b.reads("t").len(), world.jobs.len()), (6, 0, 1));
    assert_eq!(world.state(), "Assigning");
    world.resolve();
    settle(&mut world, &mut [&mut a, &mut b]);
    assert_eq!((a.reads("t").len(), b.reads("t").len(), world.state().as_str()), (3, 3, "Stable"));
}

#[derive(Debug, Clone)]
enum Step {
    Beat(usize),
    /// The answer is lost.
    Lost(usize),
    /// What it changes cannot be stored.
    Unstored(usize),
    Reconcile(usize),
    Leave(usize),
    /// Leaves for a while, if it is a static member.
    Away(usize),
    Pause(usize),
    Subscribe(usize, u8),
    Pass(i64),
    Grow(u8),
    Remove(u8),
    Resolve,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..4).prop_map(Step::Beat),
        2 => (0usize..4).prop_map(Step::Lost),
        1 => (0usize..4).prop_map(Step::Unstored),
        6 => (0usize..4).prop_map(Step::Reconcile),
        1 => (0usize..4).prop_map(Step::Leave),
        1 => (2usize..4).prop_map(Step::Away),
        1 => (0usize..4).prop_map(Step::Pause),
        2 => (0usize..4, 0u8..5).prop_map(|(i, what)| Step::Subscribe(i, what)),
        2 => (0i64..30_000).prop_map(Step::Pass),
        1 => (0u8..3).prop_map(Step::Grow),
        1 => (0u8..3).prop_map(Step::Remove),
        1 => Just(Step::Resolve),
        1 => Just(Step::Restart),
    ]
}

fn name(n: u8) -> String {
    format!("t{n}")
}

fn subscribe(consumer: &mut Consumer, what: u8) {
    (consumer.topics, consumer.regex) = match what {
        0 => (Some(vec!["t0".into()]), Some(String::new())),
        1 => (Some(vec!["t0".into(), "t1".into()]), Some(String::new())),
        2 => (Some(vec![]), Some("t[12]".into())),
        3 => (Some(vec!["t2".into()]), Some("t.".into())),
        _ => (Some(vec![]), Some(String::new())),
    };
}

/// Nobody reads what another one reads, as long as the coordinator knows of both.
fn check_exclusive(world: &World, consumers: &[Consumer]) {
    let mut owners: BTreeMap<(String, i32), &str> = BTreeMap::new();
    let group = world.coordinator.describe_consumer("g");
    let known: BTreeSet<String> = group.into_iter().flat_map(|g| g.members).map(|m| m.member_id).collect();
    for consumer in consumers.iter().filter(|consumer| known.contains(&consumer.id)) {
        for (topic, partition) in consumer.owned.iter().flat_map(|(t, ps)| ps.iter().map(move |p| (t, *p))) {
            let before = owners.insert((topic.to_string(), partition), &consumer.id);
            assert_eq!(before, None, "{topic}-{partition} is also read by {}", consumer.id);
        }
    }
}

fn run(steps: Vec<Step>, assignor: usize, at_once: bool) {
    let mut world = World::with(&[("t0", 3), ("t1", 2)], |config| {
        config.assignors.rotate_left(assignor);
        if !at_once {
            config.assign_at_once_most = 0;
        }
    });
    let mut consumers: Vec<Consumer> = (0..4).map(|i| Consumer::new(&format!("m{i}"), &["t0"])).collect();
    for consumer in &mut consumers[2..] {
        consumer.instance = Some(consumer.id.clone());
    }
    for step in steps {
        match step {
            Step::Beat(i) => drop(consumers[i].beat(&mut world)),
            Step::Lost(i) => drop(world.beat(&consumers[i].full())),
            Step::Unstored(i) => {
                world.coordinator.follow(Arc::new(world.image.clone()));
                let before = world.coordinator.describe_consumer("g");
                let (outcome, response) = world.decide(&consumers[i].full());
                if outcome.records.is_empty() {
                    world.jobs.extend(outcome.jobs);
                    consumers[i].hear(&response);
                } else {
                    world.take_back(outcome);
                    assert_eq!(world.coordinator.describe_consumer("g"), before);
                }
            }
            Step::Reconcile(i) => consumers[i].reconcile(),
            Step::Away(i) => drop(consumers[i].leave(&mut world, -2)),
            Step::Leave(i) => drop(consumers[i].leave(&mut world, -1)),
            // Fenced from here on: a client notices by its own clock.
            Step::Pause(i) => {
                for other in (0..4).filter(|other| *other != i) {
                    consumers[other].beat(&mut world);
                }
                world.pass(SESSION_MS + 1);
            }
            Step::Subscribe(i, what) => subscribe(&mut consumers[i], what),
            Step::Pass(ms) => world.pass(ms),
            Step::Grow(n) => {
                let partitions = world.image.topic(&name(n)).map_or(0, |t| t.partition_count());
                if partitions < 6 {
                    grow(&mut world.image, &name(n), partitions + 1);
                }
            }
            Step::Remove(n) => {
                if world.image.topic(&name(n)).is_some() {
                    remove(&mut world.image, &name(n));
                }
            }
            Step::Resolve => world.resolve(),
            Step::Restart => world.restart(),
        }
        check_exclusive(&world, &consumers);
    }
    // Left alone they all come to rest, with every partition of their topics; also who comes again without having left.
    for _ in 0..24 {
        world.pass(3_000);
        world.resolve();
        for consumer in &mut consumers {
            consumer.beat(&mut world);
            consumer.reconcile();
        }
        check_exclusive(&world, &consumers);
    }
    assert_eq!(world.state(), "Stable", "{:?}", world.coordinator.describe_consumer("g"));
    let read: usize = consumers.iter().flat_map(|c| c.owned.values()).map(BTreeSet::len).sum();
    let names = ["t0", "t1", "t2"].iter().filter(|topic| world.coordinator.is_subscribed("g", topic));
    let wanted: i32 = names.filter_map(|topic| world.image.topic(topic)).map(|t| t.partition_count()).sum();
    assert_eq!(i32::try_from(read).unwrap(), wanted, "{consumers:?}");
    let live = world.coordinator.describe_consumer("g");
    world.restart();
    assert_eq!(world.coordinator.describe_consumer("g"), live);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// In any interleaving no partition is read by two, and all come to rest once they are left alone.
    #[test]
    fn any_interleaving_converges(
        steps in proptest::collection::vec(step(), 0..60), assignor in 0usize..2, at_once in any::<bool>(),
    ) {
        run(steps, assignor, at_once);
    }
}
