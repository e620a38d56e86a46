//! The service over a log that stores when it is told to, or fails.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use caudal_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use caudal_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, JoinGroupRequest, SyncGroupRequest,
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::GroupConfig;
use super::consumer::testing::image;
use super::coordinator::Committer;
use super::record::CommittedOffset;
use super::service::{GroupService, OffsetsLog, Stored};

/// Keeps what is appended waiting.
#[derive(Default)]
struct SlowLog(Mutex<Vec<Stored>>);

impl OffsetsLog for SlowLog {
    fn partitions(&self) -> Option<i32> {
        Some(1)
    }

    fn append(&self, _partition: i32, _records: Vec<(Bytes, Option<Bytes>)>, stored: Stored) {
        self.0.lock().push(stored);
    }
}

impl SlowLog {
    async fn appended(&self, count: usize) {
        let all_there = async {
            while self.0.lock().len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all_there).await.unwrap();
    }

    /// The outcome of the append at `place` among those that wait.
    fn end(&self, place: usize, error: ErrorCode) {
        let stored = self.0.lock().remove(place);
        stored(error);
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Arc<GroupService>, Arc<SlowLog>) -> F) {
    let config = GroupConfig { initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
    run_with(config, test);
}

fn run_with<F: Future<Output = ()>>(config: GroupConfig, test: impl FnOnce(Arc<GroupService>, Arc<SlowLog>) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let log = Arc::new(SlowLog::default());
    let metadata = Arc::new(image(&[("t", 4)]));
    let service = Arc::new(GroupService::new(config, log.clone(), Arc::new(move || metadata.clone())));
    service.loaded(Default::default());
    runtime.block_on(test(service, log));
}

fn commit(service: &Arc<GroupService>, offset: i64) -> JoinHandle<ErrorCode> {
    let service = service.clone();
    tokio::spawn(async move {
        let who = Committer { group: "g", member_id: "", instance_id: None, generation: -1 };
        let value = CommittedOffset {
            offset,
            leader_epoch: 0,
            metadata: String::new(),
            commit_timestamp_ms: 1,
            expire_timestamp_ms: None,
        };
        service.commit(who, 8, vec![("t".into(), 0, value)]).await
    })
}

fn committed(service: &GroupService) -> Option<i64> {
    service.view("g", |coordinator| coordinator.offset("g", "t", 0).map(|value| value.offset))
}

#[test]
fn commits_take_effect_when_they_are_stored() {
    run(|service, log| async move {
        let first = commit(&service, 1);
        log.appended(1).await;
        assert_eq!(committed(&service), None);
        log.end(0, ErrorCode::None);
        assert_eq!((first.await.unwrap(), committed(&service)), (ErrorCode::None, Some(1)));
        let refused = commit(&service, 2);
        log.appended(1).await;
        log.end(0, ErrorCode::KafkaStorageError);
        assert_eq!((refused.await.unwrap(), committed(&service)), (ErrorCode::NotCoordinator, Some(1)));
    });
}

#[test]
fn what_is_told_out_of_order_takes_effect_in_order() {
    run(|service, log| async move {
        let first = commit(&service, 1);
        log.appended(1).await;
        let second = commit(&service, 2);
        log.appended(2).await;
        log.end(1, ErrorCode::None);
        assert_eq!((second.await.unwrap(), committed(&service)), (ErrorCode::None, Some(2)));
        log.end(0, ErrorCode::None);
        assert_eq!((first.await.unwrap(), committed(&service)), (ErrorCode::None, Some(2)));
        let deleted = {
            let service = service.clone();
            tokio::spawn(async move { service.change("g", |groups| groups.delete("g")).await })
        };
        log.appended(1).await;
        assert_eq!(committed(&service), Some(2));
        log.end(0, ErrorCode::None);
        assert_eq!(deleted.await.unwrap(), ErrorCode::None);
        assert!(!service.view("g", |groups| groups.exists("g")));
    });
}

/// Of a member of the group `g` of the classic protocol.
fn joining() -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol { name: "range".into(), metadata: Bytes::from_static(b"sub") };
    JoinGroupRequest {
        group_id: "g".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".into(),
        protocols: vec![protocol],
        ..JoinGroupRequest::default()
    }
}

#[test]
fn an_assignment_that_is_not_stored_begins_the_group_anew() {
    run(|service, log| async move {
        let join = joining();
        let joined = service.join(&join, "c", "/127.0.0.1", 3).await;
        assert_eq!((joined.error_code, joined.generation_id), (0, 1));
        for (generation, error) in [(1, ErrorCode::KafkaStorageError), (2, ErrorCode::None)] {
            let part = SyncGroupRequestAssignment {
                member_id: joined.member_id.clone(),
                assignment: Bytes::from_static(b"p0"),
            };
            let sync = SyncGroupRequest {
                group_id: "g".into(),
                generation_id: generation,
                member_id: joined.member_id.clone(),
                assignments: vec![part],
                ..SyncGroupRequest::default()
            };
            let syncing = {
                let service = service.clone();
                tokio::spawn(async move { service.sync(&sync).await })
            };
            log.appended(1).await;
            log.end(0, error);
            let synced = syncing.await.unwrap();
            if error == ErrorCode::None {
                assert_eq!((synced.error_code, synced.assignment.as_ref()), (0, b"p0".as_slice()));
                break;
            }
            assert_eq!(synced.error_code, ErrorCode::NotCoordinator.code());
            let beat = service.heartbeat("g", &joined.member_id, None, generation);
            assert_eq!(beat, ErrorCode::RebalanceInProgress);
            let again = JoinGroupRequest { member_id: joined.member_id.clone(), ..join.clone() };
            assert_eq!(service.join(&again, "c", "/127.0.0.1", 3).await.generation_id, generation + 1);
        }
    });
}

fn heartbeat(group: &str, member: &str, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest {
        group_id: group.into(),
        member_id: member.into(),
        member_epoch: epoch,
        rebalance_timeout_ms: if epoch == 0 { 60_000 } else { -1 },
        subscribed_topic_names: (epoch == 0).then(|| vec!["t".into()]),
        topic_partitions: (epoch == 0).then(Vec::new),
        ..ConsumerGroupHeartbeatRequest::default()
    }
}

fn beat(
    service: &Arc<GroupService>,
    group: &str,
    member: &str,
    epoch: i32,
) -> JoinHandle<ConsumerGroupHeartbeatResponse> {
    let (service, request) = (service.clone(), heartbeat(group, member, epoch));
    tokio::spawn(async move { service.consumer_heartbeat(&request, "c", "/127.0.0.1", 1).await })
}

fn members(service: &GroupService, group: &str) -> Vec<(String, i32)> {
    let described = service.view(group, |groups| groups.describe_consumer(group));
    described.map_or_else(|_| Vec::new(), |g| g.members.into_iter().map(|m| (m.member_id, m.member_epoch)).collect())
}

#[test]
fn what_is_not_stored_never_happened_nor_what_was_decided_on_top_of_it() {
    run(|service, log| async move {
        let first = beat(&service, "g", "a", 0);
        log.appended(1).await;
        log.end(0, ErrorCode::None);
        assert_eq!(first.await.unwrap().member_epoch, 2);
        let before = members(&service, "g");
        let second = beat(&service, "g", "b", 0);
        log.appended(1).await;
        let third = beat(&service, "g", "c", 0);
        log.appended(2).await;
        // It adds nothing, and tells of what is on its way.
        let request = heartbeat("g", "c", 0);
        let mut told = Box::pin(service.consumer_heartbeat(&request, "c", "/127.0.0.1", 1));
        tokio::select! { biased; _ = &mut told => panic!("it is told before it is stored"), () = std::future::ready(()) => {} }
        assert_eq!(members(&service, "g").len(), 3);
        log.end(0, ErrorCode::KafkaStorageError);
        let refused = ErrorCode::NotCoordinator.code();
        assert_eq!(second.await.unwrap().error_code, refused);
        assert_eq!(members(&service, "g"), before);
        log.end(0, ErrorCode::None);
        assert_eq!(third.await.unwrap().error_code, refused);
        assert_eq!((members(&service, "g"), told.await.error_code), (before, refused));
        assert_eq!(beat(&service, "g", "a", 2).await.unwrap().error_code, 0);
    });
}

#[test]
fn a_group_that_is_busy_holds_up_nobody() {
    let mut config = GroupConfig { background_threads: 0, ..GroupConfig::default() };
    // What is computed beside the coordinator never ends here.
    config.consumer.assign_at_once_most = 4;
    config.consumer.assignment_interval_ms = 0;
    run_with(config, |service, log| async move {
        for (member, epoch) in [("a", 2), ("b", 2)] {
            let joining = beat(&service, "large", member, 0);
            log.appended(1).await;
            log.end(0, ErrorCode::None);
            assert_eq!(joining.await.unwrap().member_epoch, epoch, "{member}");
        }
        let small = beat(&service, "small", "c", 0);
        log.appended(1).await;
        log.end(0, ErrorCode::None);
        let small = small.await.unwrap();
        let partitions = small.assignment.unwrap().topic_partitions.pop().map(|topic| topic.partitions.len());
        assert_eq!((small.member_epoch, partitions), (2, Some(4)));
        assert_eq!(beat(&service, "large", "a", 2).await.unwrap().error_code, 0);
    });
}

#[test]
fn a_static_member_that_could_not_be_replaced_stays() {
    run(|service, log| async move {
        let join = JoinGroupRequest { group_instance_id: Some("i".into()), ..joining() };
        let first = service.join(&join, "c", "/127.0.0.1", 5).await;
        let sync = SyncGroupRequest {
            group_id: "g".into(),
            generation_id: 1,
            member_id: first.member_id.clone(),
            group_instance_id: Some("i".into()),
            ..SyncGroupRequest::default()
        };
        let syncing = {
            let service = service.clone();
            tokio::spawn(async move { service.sync(&sync).await })
        };
        log.appended(1).await;
        log.end(0, ErrorCode::None);
        assert_eq!(syncing.await.unwrap().error_code, 0);
        let again = {
            let service = service.clone();
            tokio::spawn(async move { service.join(&join, "c", "/127.0.0.1", 5).await })
        };
        log.appended(1).await;
        log.end(0, ErrorCode::KafkaStorageError);
        assert_eq!(again.await.unwrap().error_code, ErrorCode::NotCoordinator.code());
        assert_eq!(service.heartbeat("g", &first.member_id, Some("i"), 1), ErrorCode::None);
    });
}
