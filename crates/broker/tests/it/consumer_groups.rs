//! Consumer groups (KIP-848) over sockets: heartbeats, what the other APIs say of them, restarts, and changing over.

use std::time::{Duration, Instant};

use bytes::Bytes;
use caudal_broker::BrokerConfig;
use caudal_broker::group::record::partition_for;
use caudal_protocol::batch::Batches;
use caudal_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use caudal_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use caudal_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use caudal_protocol::messages::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
use caudal_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use caudal_protocol::messages::*;
use caudal_protocol::wire::Message;
use caudal_protocol::{ErrorCode, Uuid};

use crate::raw::{RawClient, TestBroker};

struct Member {
    client: RawClient,
    id: String,
    epoch: i32,
    topics: Vec<String>,
    regex: Option<String>,
    reads: Vec<(Uuid, Vec<i32>)>,
}

impl Member {
    fn new(broker: &TestBroker, id: &str, topics: &[&str]) -> Member {
        let topics = topics.iter().map(|t| (*t).to_owned()).collect();
        Member { client: broker.connect(), id: id.into(), epoch: 0, topics, regex: None, reads: Vec::new() }
    }

    fn request(&self) -> ConsumerGroupHeartbeatRequest {
        let owned =
            self.reads.iter().map(|(id, partitions)| TopicPartitions { topic_id: *id, partitions: partitions.clone() });
        ConsumerGroupHeartbeatRequest {
            group_id: "g".into(),
            member_id: self.id.clone(),
            member_epoch: self.epoch,
            rebalance_timeout_ms: 10_000,
            subscribed_topic_names: Some(self.topics.clone()),
            subscribed_topic_regex: self.regex.clone(),
            topic_partitions: Some(owned.collect()),
            ..Default::default()
        }
    }

    fn send(&mut self, request: &ConsumerGroupHeartbeatRequest) -> ConsumerGroupHeartbeatResponse {
        self.client.ask(request, 1)
    }

    fn beat(&mut self) -> ErrorCode {
        let request = self.request();
        let response = self.send(&request);
        if response.error_code == 0 {
            self.epoch = response.member_epoch;
            if let Some(told) = response.assignment {
                self.reads = told.topic_partitions.into_iter().map(|t| (t.topic_id, t.partitions)).collect();
            }
        }
        ErrorCode::from_code(response.error_code)
    }

    fn count(&self) -> usize {
        self.reads.iter().map(|(_, partitions)| partitions.len()).sum()
    }
}

/// Heartbeats until everybody has so many partitions.
fn settle(members: &mut [&mut Member], counts: &[usize]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while members.iter().map(|m| m.count()).ne(counts.iter().copied()) {
        assert!(Instant::now() < deadline, "{:?}", members.iter().map(|m| m.count()).collect::<Vec<_>>());
        for member in members.iter_mut() {
            assert_eq!(member.beat(), ErrorCode::None);
        }
        std::thread::yield_now();
    }
}

fn quick(config: &mut BrokerConfig) {
    config.groups.initial_rebalance_delay_ms = 0;
    config.groups.consumer.assignment_interval_ms = 0;
}

fn start() -> TestBroker {
    let broker = TestBroker::start_with(quick);
    broker.create_topic("t", 4);
    let request = FindCoordinatorRequest { coordinator_keys: vec!["g".into()], ..Default::default() };
    let found: FindCoordinatorResponse = broker.connect().ask(&request, 6);
    assert_eq!(found.coordinators[0].error_code, 0);
    broker
}

fn describe(broker: &TestBroker, group: &str) -> consumer_group_describe_response::DescribedGroup {
    let request = ConsumerGroupDescribeRequest { group_ids: vec![group.into()], ..Default::default() };
    let response: ConsumerGroupDescribeResponse = broker.connect().ask(&request, 1);
    response.groups.into_iter().next().unwrap()
}

fn list(broker: &TestBroker, types: &[&str]) -> Vec<String> {
    let types_filter = types.iter().map(|t| (*t).to_owned()).collect();
    let request = ListGroupsRequest { types_filter, ..Default::default() };
    let response: ListGroupsResponse = broker.connect().ask(&request, 5);
    let show = |g: list_groups_response::ListedGroup| format!("{} {} {}", g.group_id, g.group_type, g.group_state);
    response.groups.into_iter().map(show).collect()
}

fn commit(client: &mut RawClient, member: &str, epoch: i32, partition: i32, version: i16) -> ErrorCode {
    let partition =
        OffsetCommitRequestPartition { partition_index: partition, committed_offset: 5, ..Default::default() };
    let request = OffsetCommitRequest {
        group_id: "g".into(),
        generation_id_or_member_epoch: epoch,
        member_id: member.into(),
        topics: vec![OffsetCommitRequestTopic { name: "t".into(), partitions: vec![partition], ..Default::default() }],
        ..Default::default()
    };
    let response: OffsetCommitResponse = client.ask(&request, version);
    ErrorCode::from_code(response.topics[0].partitions[0].error_code)
}

fn fetch(client: &mut RawClient, member: Option<&str>, epoch: i32) -> (ErrorCode, i64) {
    let topics = vec![OffsetFetchRequestTopics { name: "t".into(), partition_indexes: vec![0], ..Default::default() }];
    let group = OffsetFetchRequestGroup {
        group_id: "g".into(),
        member_id: member.map(str::to_owned),
        member_epoch: epoch,
        topics: Some(topics),
    };
    let response: OffsetFetchResponse =
        client.ask(&OffsetFetchRequest { groups: vec![group], ..Default::default() }, 9);
    let offset = response.groups[0].topics.first().map_or(-1, |t| t.partitions[0].committed_offset);
    (ErrorCode::from_code(response.groups[0].error_code), offset)
}

fn members_share_and_find_themselves_again(restart: fn(TestBroker) -> TestBroker) {
    let broker = start();
    let (mut a, mut b) = (Member::new(&broker, "a", &["t"]), Member::new(&broker, "b", &["t"]));
    settle(&mut [&mut a], &[4]);
    assert_eq!(commit(&mut a.client, "a", a.epoch, 0, 9), ErrorCode::None);
    settle(&mut [&mut a, &mut b], &[2, 2]);
    let before = describe(&broker, "g");
    assert_eq!(
        (before.group_state.as_str(), before.assignor_name.as_str(), before.members.len()),
        ("Stable", "uniform", 2)
    );
    let broker = restart(broker);
    assert_eq!(describe(&broker, "g"), before);
    (a.client, b.client) = (broker.connect(), broker.connect());
    assert_eq!((a.beat(), b.beat()), (ErrorCode::None, ErrorCode::None));
    assert_eq!((a.count(), b.count()), (2, 2));
    assert_eq!(fetch(&mut a.client, Some("a"), a.epoch), (ErrorCode::None, 5));
    let gone = ConsumerGroupHeartbeatRequest { member_epoch: -1, ..b.request() };
    assert_eq!(b.send(&gone).error_code, 0);
    settle(&mut [&mut a], &[4]);
}

#[test]
fn groups_survive_a_stop() {
    members_share_and_find_themselves_again(TestBroker::restart);
}

#[test]
fn groups_survive_a_crash() {
    members_share_and_find_themselves_again(TestBroker::crash_and_restart);
}

#[test]
fn the_other_apis_know_of_them() {
    let broker = start();
    let mut a = Member::new(&broker, "a", &["t"]);
    settle(&mut [&mut a], &[4]);
    assert_eq!(list(&broker, &[]), ["g consumer Stable"]);
    assert_eq!(list(&broker, &["Consumer"]), ["g consumer Stable"]);
    assert!(list(&broker, &["classic"]).is_empty());
    let mut client = broker.connect();
    let classic: DescribeGroupsResponse =
        client.ask(&DescribeGroupsRequest { groups: vec!["g".into()], ..Default::default() }, 6);
    let described = &classic.groups[0];
    assert_eq!(ErrorCode::from_code(described.error_code), ErrorCode::GroupIdNotFound);
    assert_eq!(described.error_message.as_deref(), Some("Group g is not a classic group."));
    assert_eq!(ErrorCode::from_code(describe(&broker, "x").error_code), ErrorCode::GroupIdNotFound);
    assert_eq!(commit(&mut client, "a", a.epoch, 0, 8), ErrorCode::UnsupportedVersion);
    assert_eq!(commit(&mut client, "a", a.epoch + 1, 0, 9), ErrorCode::StaleMemberEpoch);
    assert_eq!(commit(&mut client, "x", a.epoch, 0, 9), ErrorCode::UnknownMemberId);
    assert_eq!(commit(&mut client, "", -1, 0, 9), ErrorCode::UnknownMemberId);
    assert_eq!(commit(&mut client, "a", a.epoch, 0, 9), ErrorCode::None);
    assert_eq!(fetch(&mut client, Some("a"), a.epoch - 1).0, ErrorCode::StaleMemberEpoch);
    assert_eq!(fetch(&mut client, Some("x"), a.epoch).0, ErrorCode::UnknownMemberId);
    assert_eq!(fetch(&mut client, None, -1), (ErrorCode::None, 5));
    let delete = DeleteGroupsRequest { groups_names: vec!["g".into()] };
    let refused: DeleteGroupsResponse = client.ask(&delete, 2);
    assert_eq!(ErrorCode::from_code(refused.results[0].error_code), ErrorCode::NonEmptyGroup);
    let one = OffsetDeleteRequestPartition { partition_index: 0 };
    let topic = OffsetDeleteRequestTopic { name: "t".into(), partitions: vec![one] };
    let offsets = OffsetDeleteRequest { group_id: "g".into(), topics: vec![topic] };
    let refused: OffsetDeleteResponse = client.ask(&offsets, 0);
    assert_eq!(ErrorCode::from_code(refused.topics[0].partitions[0].error_code), ErrorCode::GroupSubscribedToTopic);
    let leave = ConsumerGroupHeartbeatRequest { member_epoch: -1, ..a.request() };
    assert_eq!(a.send(&leave).error_code, 0);
    assert_eq!(describe(&broker, "g").group_state, "Empty");
    assert_eq!(commit(&mut client, "", -1, 1, 9), ErrorCode::None);
    let deleted: OffsetDeleteResponse = client.ask(&offsets, 0);
    assert_eq!(deleted.topics[0].partitions[0].error_code, 0);
    assert_eq!(fetch(&mut client, None, -1), (ErrorCode::None, -1));
    let deleted: DeleteGroupsResponse = client.ask(&delete, 2);
    assert_eq!(deleted.results[0].error_code, 0);
    assert!(list(&broker, &[]).is_empty());
    let broker = broker.crash_and_restart();
    assert!(list(&broker, &[]).is_empty());
}

/// One wait for the disk, not one for each partition.
#[test]
fn many_offsets_are_deleted_at_once() {
    const PARTITIONS: i32 = 300;
    let broker = start();
    broker.create_topic("many", PARTITIONS);
    let mut client = broker.connect();
    let commit = |partition_index| OffsetCommitRequestPartition { partition_index, ..Default::default() };
    let partitions = (0..PARTITIONS).map(commit).collect();
    let topic = OffsetCommitRequestTopic { name: "many".into(), partitions, ..Default::default() };
    let request = OffsetCommitRequest {
        group_id: "g".into(),
        generation_id_or_member_epoch: -1,
        topics: vec![topic],
        ..Default::default()
    };
    let committed: OffsetCommitResponse = client.ask(&request, 8);
    assert!(committed.topics[0].partitions.iter().all(|p| p.error_code == 0));
    let view = broker.context().topics.view();
    let count = i32::try_from(view.by_name("__consumer_offsets").unwrap().partitions.len()).unwrap();
    let home = partition_for("g", count);
    let log = &view.find("__consumer_offsets", home).unwrap().log;
    let before = log.log_end_offset();
    let delete = |partition_index| OffsetDeleteRequestPartition { partition_index };
    // Each twice, and one that is not there.
    let partitions = (0..=PARTITIONS).chain(0..PARTITIONS).map(delete).collect();
    let topic = OffsetDeleteRequestTopic { name: "many".into(), partitions };
    let request = OffsetDeleteRequest { group_id: "g".into(), topics: vec![topic] };
    let deleted: OffsetDeleteResponse = client.ask(&request, 0);
    let (done, unknown): (Vec<_>, Vec<_>) =
        deleted.topics[0].partitions.iter().partition(|p| ErrorCode::from_code(p.error_code) == ErrorCode::None);
    assert_eq!((done.len(), unknown.len(), unknown[0].partition_index), (300, 1, PARTITIONS));
    let end = log.log_end_offset();
    assert_eq!(end - before, i64::from(PARTITIONS));
    let bytes = log.read(before, 1 << 20, end, true).unwrap().to_bytes().unwrap();
    assert_eq!(Batches::new(bytes).count(), 1);
}

#[test]
fn topics_and_expressions_are_followed() {
    let broker = start();
    let mut a = Member::new(&broker, "a", &["t"]);
    settle(&mut [&mut a], &[4]);
    let grow = create_partitions_request::CreatePartitionsTopic { name: "t".into(), count: 6, assignments: None };
    let request = CreatePartitionsRequest { topics: vec![grow], timeout_ms: 10_000, validate_only: false };
    let grown: CreatePartitionsResponse = broker.connect().ask(&request, 3);
    assert_eq!(grown.results[0].error_code, 0);
    settle(&mut [&mut a], &[6]);
    broker.create_topic("others-1", 1);
    broker.create_topic("x", 1);
    (a.topics, a.regex) = (Vec::new(), Some("others-.*".into()));
    settle(&mut [&mut a], &[1]);
    assert_eq!(a.reads[0].0, broker.topic_id("others-1"));
    let bad = ConsumerGroupHeartbeatRequest { subscribed_topic_regex: Some("*".into()), ..a.request() };
    assert_eq!(ErrorCode::from_code(a.send(&bad).error_code), ErrorCode::InvalidRegularExpression);
    let request =
        DeleteTopicsRequest { topic_names: vec!["others-1".into()], timeout_ms: 10_000, ..Default::default() };
    let deleted: DeleteTopicsResponse = broker.connect().ask(&request, 5);
    assert_eq!(deleted.responses[0].error_code, 0);
    settle(&mut [&mut a], &[0]);
}

fn subscription() -> Bytes {
    let subscription = ConsumerProtocolSubscription { topics: vec!["t".into()], ..Default::default() };
    [&0i16.to_be_bytes()[..], &subscription.to_bytes(0).unwrap()].concat().into()
}

#[test]
fn a_classic_group_becomes_a_consumer_group_and_back() {
    let broker = start();
    let mut classic = broker.connect();
    let mut join = JoinGroupRequest {
        group_id: "g".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 10_000,
        protocol_type: "consumer".into(),
        protocols: vec![JoinGroupRequestProtocol { name: "range".into(), metadata: subscription() }],
        ..Default::default()
    };
    let first: JoinGroupResponse = classic.ask(&join, 3);
    assert_eq!(first.error_code, 0);
    join.member_id = first.member_id.clone();
    let mut a = Member::new(&broker, "a", &["t"]);
    assert_eq!(a.beat(), ErrorCode::None);
    assert_eq!(list(&broker, &[]), ["g consumer Reconciling"]);
    let mut generation = first.generation_id;
    let deadline = Instant::now() + Duration::from_secs(20);
    let assigned = loop {
        assert!(Instant::now() < deadline);
        assert_eq!(a.beat(), ErrorCode::None);
        let beat = HeartbeatRequest {
            group_id: "g".into(),
            generation_id: generation,
            member_id: join.member_id.clone(),
            ..Default::default()
        };
        let beat: HeartbeatResponse = classic.ask(&beat, 3);
        if beat.error_code == 0 && a.count() == 2 {
            let sync = SyncGroupRequest {
                group_id: "g".into(),
                generation_id: generation,
                member_id: join.member_id.clone(),
                ..Default::default()
            };
            let synced: SyncGroupResponse = classic.ask(&sync, 3);
            assert_eq!(synced.error_code, 0);
            break synced.assignment;
        }
        let again: JoinGroupResponse = classic.ask(&join, 3);
        assert_eq!(again.error_code, 0);
        generation = again.generation_id;
    };
    // Version, one topic, "t", two partitions.
    assert_eq!(&assigned[..13], b"\0\0\0\0\0\x01\0\x01t\0\0\0\x02");
    assert_eq!(list(&broker, &[]), ["g consumer Stable"]);
    let leave = ConsumerGroupHeartbeatRequest { member_epoch: -1, ..a.request() };
    assert_eq!(a.send(&leave).error_code, 0);
    assert_eq!(list(&broker, &[]), ["g classic PreparingRebalance"]);
    let broker = broker.crash_and_restart();
    assert!(list(&broker, &["classic"])[0].starts_with("g classic"));
}

#[test]
fn groups_have_configs_of_their_own() {
    let broker = start();
    let mut a = Member::new(&broker, "a", &["t"]);
    let alter = |name: &str, value: &str| {
        let config = AlterableConfig { name: name.into(), config_operation: 0, value: Some(value.into()) };
        let resource = AlterConfigsResource { resource_type: 32, resource_name: "g".into(), configs: vec![config] };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource], validate_only: false };
        let response: IncrementalAlterConfigsResponse = broker.connect().ask(&request, 1);
        ErrorCode::from_code(response.responses[0].error_code)
    };
    let request = a.request();
    assert_eq!(a.send(&request).heartbeat_interval_ms, 5_000);
    assert_eq!(alter("consumer.heartbeat.interval.ms", "7000"), ErrorCode::None);
    assert_eq!(a.send(&request).heartbeat_interval_ms, 7_000);
    assert_eq!(alter("consumer.heartbeat.interval.ms", "1"), ErrorCode::InvalidConfig);
    assert_eq!(alter("no.such.config", "1"), ErrorCode::InvalidConfig);
    let resource = describe_configs_request::DescribeConfigsResource {
        resource_type: 32,
        resource_name: "g".into(),
        configuration_keys: None,
    };
    let request = DescribeConfigsRequest { resources: vec![resource], ..Default::default() };
    let described: DescribeConfigsResponse = broker.connect().ask(&request, 4);
    let config = described.results[0].configs.iter().find(|c| c.name == "consumer.heartbeat.interval.ms").unwrap();
    assert_eq!((config.value.as_deref(), config.config_source), (Some("7000"), 8));
}

#[test]
fn they_can_be_switched_off() {
    let broker = TestBroker::start_with(|config| config.groups.consumer.enabled = false);
    let mut a = Member::new(&broker, "a", &["t"]);
    assert_eq!(a.beat(), ErrorCode::UnsupportedVersion);
    assert_eq!(ErrorCode::from_code(describe(&broker, "g").error_code), ErrorCode::UnsupportedVersion);
}
