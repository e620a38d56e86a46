//! Members of both protocols in one group, and groups that change over.

use bytes::{BufMut, Bytes, BytesMut};
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::consumer_protocol_subscription::TopicPartition;
use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use caudal_protocol::messages::{
    ConsumerProtocolAssignment, ConsumerProtocolSubscription, JoinGroupRequest, JoinGroupResponse, SyncGroupRequest,
};
use caudal_protocol::wire::{Message, Reader};

use super::super::Reply;
use super::super::machine::Joiner;
use super::MigrationPolicy;
use super::tests::{Consumer, World, settle};

/// A consumer of the classic protocol. As the leader of a classic group it gives everybody a partition in turn.
#[derive(Debug, Default)]
struct Classic {
    id: String,
    instance: Option<String>,
    generation: i32,
    owned: Vec<(String, Vec<i32>)>,
    /// The join or sync that waits for its answer.
    joining: Option<u64>,
    syncing: Option<u64>,
    joined: bool,
}

fn versioned<M: Message>(message: &M, version: i16) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(version);
    out.put_slice(&message.to_bytes(version).unwrap());
    out.freeze()
}

fn assignment_of(partitions: &[i32]) -> Bytes {
    let topic = caudal_protocol::messages::consumer_protocol_assignment::TopicPartition {
        topic: "t".into(),
        partitions: partitions.to_vec(),
    };
    versioned(&ConsumerProtocolAssignment { assigned_partitions: vec![topic], user_data: None }, 1)
}

impl Classic {
    fn new(id: &str) -> Classic {
        Classic { id: id.into(), generation: -1, ..Classic::default() }
    }

    fn request(&self) -> JoinGroupRequest {
        let owned = self.owned.iter();
        let subscription = ConsumerProtocolSubscription {
            topics: vec!["t".into()],
            owned_partitions: owned
                .map(|(topic, partitions)| TopicPartition { topic: topic.clone(), partitions: partitions.clone() })
                .collect(),
            generation_id: self.generation,
            ..ConsumerProtocolSubscription::default()
        };
        let protocol =
            JoinGroupRequestProtocol { name: "cooperative-sticky".into(), metadata: versioned(&subscription, 2) };
        JoinGroupRequest {
            group_id: "g".into(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 60_000,
            member_id: if self.joined { self.id.clone() } else { String::new() },
            group_instance_id: self.instance.clone(),
            protocol_type: "consumer".into(),
            protocols: vec![protocol],
            ..JoinGroupRequest::default()
        }
    }

    fn join(&mut self, world: &mut World) {
        self.send(world, &self.request());
    }

    fn send(&mut self, world: &mut World, request: &JoinGroupRequest) {
        world.next_waiter += 1;
        let waiter = world.next_waiter;
        let joiner = Joiner {
            waiter,
            client_id: "c".into(),
            client_host: "/127.0.0.1".into(),
            fresh_member_id: self.id.clone(),
            requires_known_id: false,
            supports_skipping_assignment: true,
        };
        world.coordinator.follow(std::sync::Arc::new(world.image.clone()));
        let outcome = world.coordinator.join(world.now_ms, world.now_ms, request, joiner);
        world.take(outcome);
        self.joining = Some(waiter);
    }

    fn sync(&mut self, world: &mut World, joined: &JoinGroupResponse) {
        world.next_waiter += 1;
        let members: Vec<&str> = joined.members.iter().map(|m| m.member_id.as_str()).collect();
        let part = |(i, member): (usize, &&str)| SyncGroupRequestAssignment {
            member_id: (*member).into(),
            assignment: assignment_of(&(0..4).filter(|p| *p as usize % members.len() == i).collect::<Vec<_>>()),
        };
        let request = SyncGroupRequest {
            group_id: "g".into(),
            generation_id: self.generation,
            member_id: self.id.clone(),
            group_instance_id: self.instance.clone(),
            protocol_type: Some("consumer".into()),
            protocol_name: Some("cooperative-sticky".into()),
            assignments: members.iter().enumerate().map(part).collect(),
        };
        let outcome = world.coordinator.sync(world.now_ms, world.now_ms, &request, world.next_waiter);
        world.take(outcome);
        self.syncing = Some(world.next_waiter);
    }

    /// Goes on with what was begun, or sends a heartbeat.
    fn step(&mut self, world: &mut World) {
        if let Some(waiter) = self.joining {
            let Some(Reply::Join(joined)) = world.replies.remove(&waiter) else { return };
            self.joining = None;
            if joined.error_code != 0 {
                return self.begin_anew(world, joined.error_code);
            }
            self.joined = true;
            self.generation = joined.generation_id;
            return self.sync(world, &joined);
        }
        if let Some(waiter) = self.syncing {
            let Some(Reply::Sync(synced)) = world.replies.remove(&waiter) else { return };
            self.syncing = None;
            if synced.error_code != 0 {
                return self.begin_anew(world, synced.error_code);
            }
            let mut reader = Reader::new(synced.assignment.clone());
            let version = reader.i16().unwrap();
            let told = ConsumerProtocolAssignment::decode(&mut reader, version).unwrap();
            let before = self.owned.len();
            self.owned = told.assigned_partitions.into_iter().map(|t| (t.topic, t.partitions)).collect();
            // Whoever gave something up joins again (KIP-429).
            if self.owned.len() < before {
                self.join(world);
            }
            return;
        }
        if !self.joined {
            return self.join(world);
        }
        let instance = self.instance.as_deref();
        let error = world.coordinator.heartbeat(world.now_ms, "g", &self.id, instance, self.generation);
        if error.is_error() {
            self.begin_anew(world, error.code());
        }
    }

    fn begin_anew(&mut self, world: &mut World, code: i16) {
        let error = ErrorCode::from_code(code);
        let is_known = matches!(error, ErrorCode::RebalanceInProgress | ErrorCode::IllegalGeneration);
        assert!(is_known || error == ErrorCode::UnknownMemberId, "{error:?}");
        if error == ErrorCode::UnknownMemberId {
            self.joined = false;
            self.owned.clear();
        }
        self.join(world);
    }

    fn reads(&self) -> Vec<i32> {
        self.owned.iter().flat_map(|(_, partitions)| partitions.iter().copied()).collect()
    }
}

fn run(world: &mut World, classics: &mut [&mut Classic], consumers: &mut [&mut Consumer]) {
    for _ in 0..30 {
        classics.iter_mut().for_each(|classic| classic.step(world));
        for consumer in consumers.iter_mut() {
            consumer.beat(world);
            consumer.reconcile();
        }
        world.pass(100);
        // Nobody reads what another one reads.
        let mut all: Vec<i32> = classics.iter().flat_map(|c| c.reads()).collect();
        all.extend(consumers.iter().flat_map(|c| c.reads("t")));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        if world.coordinator.is_consumer_group("g") {
            assert_eq!(all.len(), count, "{classics:?} {consumers:?}");
        }
    }
}

fn sizes(classics: &[&Classic], consumers: &[&Consumer]) -> Vec<usize> {
    classics.iter().map(|c| c.reads().len()).chain(consumers.iter().map(|c| c.reads("t").len())).collect()
}

fn types(world: &World) -> String {
    world.coordinator.list(|_, _| true).iter().map(|g| format!("{}:{}", g.group_type, g.group_state)).collect()
}

#[test]
fn a_group_changes_over_and_back_while_it_is_in_use() {
    let mut world = World::new(&[("t", 4)]);
    let (mut a, mut b, mut c) = (Classic::new("a"), Classic::new("b"), Consumer::new("c", &["t"]));
    run(&mut world, &mut [&mut a, &mut b], &mut []);
    assert_eq!((sizes(&[&a, &b], &[]), types(&world)), (vec![2, 2], "classic:Stable".into()));
    run(&mut world, &mut [&mut a, &mut b], &mut [&mut c]);
    assert_eq!(types(&world), "consumer:Stable");
    let mut shares = sizes(&[&a, &b], &[&c]);
    shares.sort_unstable();
    assert_eq!(shares, [1, 1, 2]);
    world.restart();
    run(&mut world, &mut [&mut a, &mut b], &mut [&mut c]);
    assert_eq!(types(&world), "consumer:Stable");
    assert_eq!(c.leave(&mut world, -1), 0);
    assert!(types(&world).starts_with("classic"), "{}", types(&world));
    run(&mut world, &mut [&mut a, &mut b], &mut []);
    assert_eq!((sizes(&[&a, &b], &[]), types(&world)), (vec![2, 2], "classic:Stable".into()));
    world.restart();
    run(&mut world, &mut [&mut a, &mut b], &mut []);
    assert_eq!(types(&world), "classic:Stable");
}

#[test]
fn classic_members_die_leave_and_return_in_a_consumer_group() {
    let mut world = World::new(&[("t", 4)]);
    let (mut a, mut b) = (Consumer::new("a", &["t"]), Classic::new("b"));
    settle(&mut world, &mut [&mut a]);
    run(&mut world, &mut [&mut b], &mut [&mut a]);
    assert_eq!((sizes(&[&b], &[&a]), types(&world)), (vec![2, 2], "consumer:Stable".into()));
    // Silent for longer than its own session, which is shorter than the group's.
    for _ in 0..4 {
        world.pass(5_000);
        a.beat(&mut world);
        a.reconcile();
    }
    settle(&mut world, &mut [&mut a]);
    assert_eq!(a.reads("t").len(), 4);
    run(&mut world, &mut [&mut b], &mut [&mut a]);
    assert_eq!(sizes(&[&b], &[&a]), [2, 2]);
    let who = [
        MemberIdentity { member_id: b.id.clone(), ..Default::default() },
        MemberIdentity { member_id: "x".into(), ..Default::default() },
    ];
    let (answers, outcome) = world.coordinator.leave(world.now_ms, world.now_ms, "g", &who);
    world.take(outcome);
    let codes: Vec<i16> = answers.iter().map(|answer| answer.error_code).collect();
    assert_eq!(codes, [0, ErrorCode::UnknownMemberId.code()]);
    settle(&mut world, &mut [&mut a]);
    assert_eq!((a.reads("t").len(), types(&world)), (4, "consumer:Stable".into()));
}

#[test]
fn a_static_member_comes_back_with_the_other_protocol() {
    let mut world = World::new(&[("t", 4)]);
    let (mut a, mut b) = (Classic::new("a"), Classic::new("b"));
    (a.instance, b.instance) = (Some("i".into()), Some("j".into()));
    run(&mut world, &mut [&mut a, &mut b], &mut []);
    // Rolled to the new protocol, one after the other.
    let mut a2 = Consumer::new("a2", &["t"]);
    a2.instance = Some("i".into());
    run(&mut world, &mut [&mut b], &mut [&mut a2]);
    assert_eq!((sizes(&[&b], &[&a2]), types(&world)), (vec![2, 2], "consumer:Stable".into()));
    // And back again: with the last one of the new protocol the group is a classic one.
    a2.leave(&mut world, -2);
    let mut a3 = Classic::new("a3");
    a3.instance = Some("i".into());
    a3.step(&mut world);
    assert!(types(&world).starts_with("classic"), "{}", types(&world));
    run(&mut world, &mut [&mut a3, &mut b], &mut []);
    assert_eq!((sizes(&[&a3, &b], &[]), types(&world)), (vec![2, 2], "classic:Stable".into()));
}

#[test]
fn empty_groups_give_way_to_the_other_protocol() {
    let mut world = World::with(&[("t", 4)], |config| {
        config.migration = MigrationPolicy::of("disabled");
    });
    let (mut a, mut b) = (Consumer::new("a", &["t"]), Classic::new("b"));
    settle(&mut world, &mut [&mut a]);
    b.join(&mut world);
    let Some(Reply::Join(refused)) = world.replies.remove(&b.joining.take().unwrap()) else { panic!() };
    assert_eq!(refused.error_code, ErrorCode::InconsistentGroupProtocol.code());
    a.leave(&mut world, -1);
    run(&mut world, &mut [&mut b], &mut []);
    assert_eq!((b.reads().len(), types(&world)), (4, "classic:Stable".into()));
    // In use it stays what it is, with this policy.
    assert_eq!(a.beat(&mut world), ErrorCode::GroupIdNotFound.code());
    let who = [MemberIdentity { member_id: b.id.clone(), ..Default::default() }];
    let (_, outcome) = world.coordinator.leave(world.now_ms, world.now_ms, "g", &who);
    world.take(outcome);
    settle(&mut world, &mut [&mut a]);
    assert_eq!((a.reads("t").len(), types(&world)), (4, "consumer:Stable".into()));
    world.restart();
    assert_eq!(types(&world), "consumer:Stable");
}

#[test]
fn members_offer_strategies_within_reason() {
    let mut world = World::new(&[("t", 4)]);
    let (mut a, mut b) = (Consumer::new("a", &["t"]), Classic::new("b"));
    settle(&mut world, &mut [&mut a]);
    let request = b.request();
    let many = JoinGroupRequest { protocols: vec![request.protocols[0].clone(); 101], ..request.clone() };
    let mut large = request.clone();
    large.protocols[0].metadata = vec![0; 2 << 20].into();
    for (request, expected) in [(many, ErrorCode::InvalidRequest), (large, ErrorCode::UnknownServerError)] {
        let stored = world.records.len();
        b.send(&mut world, &request);
        let Some(Reply::Join(refused)) = world.replies.remove(&b.joining.take().unwrap()) else { panic!() };
        assert_eq!((refused.error_code, world.records.len()), (expected.code(), stored));
    }
    run(&mut world, &mut [&mut b], &mut [&mut a]);
    assert_eq!(sizes(&[&b], &[&a]), [2, 2]);
}

#[test]
fn policies_are_read() {
    let policy = |upgrade, downgrade| MigrationPolicy { upgrade, downgrade };
    assert_eq!(MigrationPolicy::of("BIDIRECTIONAL"), policy(true, true));
    assert_eq!(MigrationPolicy::of("upgrade"), policy(true, false));
    assert_eq!(MigrationPolicy::of("Downgrade"), policy(false, true));
    assert!(MigrationPolicy::of("disabled").is_disabled());
}
