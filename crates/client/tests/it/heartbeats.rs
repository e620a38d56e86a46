//! What a member of the consumer group protocol (KIP-848) says to its coordinator, and when.

use std::time::{Duration, Instant};

use caudal_client::{Consumer, Topics};
use caudal_protocol::ErrorCode;
use caudal_protocol::api::{APIS, ApiKey, ApiSchema};
use caudal_protocol::messages::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use caudal_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use crate::delivery::{config, producer, send};
use crate::fake::{FakeBroker, Fault, TOPIC, TOPIC_ID};

fn assigned(epoch: i32, partitions: &[i32]) -> ConsumerGroupHeartbeatResponse {
    let topic = TopicPartitions { topic_id: TOPIC_ID, partitions: partitions.to_vec() };
    let assignment = Some(Assignment { topic_partitions: vec![topic] });
    ConsumerGroupHeartbeatResponse { member_epoch: epoch, assignment, ..Default::default() }
}

fn refused(code: ErrorCode) -> ConsumerGroupHeartbeatResponse {
    ConsumerGroupHeartbeatResponse { error_code: code.code(), ..Default::default() }
}

fn same(epoch: i32) -> ConsumerGroupHeartbeatResponse {
    ConsumerGroupHeartbeatResponse { member_epoch: epoch, ..Default::default() }
}

/// The partitions that a heartbeat says its member has, if it does.
fn owned(request: &ConsumerGroupHeartbeatRequest) -> Option<Vec<i32>> {
    let topics = request.topic_partitions.as_ref()?;
    Some(topics.iter().flat_map(|t| t.partitions.iter().copied()).collect())
}

async fn member(broker: &FakeBroker, properties: &[(&str, &str)]) -> Consumer {
    let mut all =
        vec![("group.id", "g"), ("group.protocol", "consumer"), ("auto.offset.reset", "latest"), ("client.rack", "r")];
    all.extend(properties);
    let mut member = Consumer::connect(config(broker, &all)).await.unwrap();
    member.subscribe(Topics::names([TOPIC])).unwrap();
    member
}

async fn poll_until(consumer: &mut Consumer, what: impl Fn(&Consumer) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !what(consumer) {
        assert!(Instant::now() < deadline, "{consumer:?}");
        consumer.poll(Duration::from_millis(10)).await.unwrap();
    }
}

#[tokio::test]
async fn only_what_has_changed_is_said_and_everything_after_a_failure() {
    let broker = FakeBroker::start(2).await;
    broker.state.lock().heartbeat_answers.extend([
        assigned(1, &[0, 1]),
        same(1),
        refused(ErrorCode::CoordinatorLoadInProgress),
        assigned(2, &[0]),
        same(2),
        refused(ErrorCode::FencedMemberEpoch),
        assigned(4, &[1]),
    ]);
    let mut member = member(&broker, &[("group.remote.assignor", "range"), ("enable.auto.commit", "false")]).await;
    poll_until(&mut member, |_| broker.state.lock().heartbeats.len() > 8).await;
    let said = broker.state.lock().heartbeats.clone();
    let epochs: Vec<i32> = said[..9].iter().map(|r| r.member_epoch).collect();
    let owns: Vec<Option<Vec<i32>>> = said[..9].iter().map(owned).collect();
    let full: Vec<bool> = said[..9].iter().map(|r| r.subscribed_topic_names.is_some()).collect();
    // Joins, takes two, fails, says all again, gives one up, is fenced, joins with nothing, takes another one.
    assert_eq!(epochs, [0, 1, 1, 1, 2, 2, 0, 4, 4]);
    let (none, both) = (None, Some(vec![0, 1]));
    let some = |partitions: &[i32]| Some(partitions.to_vec());
    assert_eq!(
        owns,
        [some(&[]), both.clone(), none.clone(), both, some(&[0]), none.clone(), some(&[]), some(&[1]), none]
    );
    assert_eq!(full, [true, false, false, true, false, false, true, false, false]);
    for request in &said[..9] {
        assert_eq!(request.member_id, said[0].member_id);
        let is_full = request.subscribed_topic_names.is_some();
        assert_eq!(request.server_assignor.as_deref(), is_full.then_some("range"));
        assert_eq!(request.rebalance_timeout_ms, if is_full { 300_000 } else { -1 });
        assert_eq!(request.rack_id.as_deref(), (request.member_epoch == 0).then_some("r"));
    }
    member.close().await.unwrap();
    assert_eq!(broker.state.lock().heartbeats.last().unwrap().member_epoch, -1);
}

#[tokio::test]
async fn offsets_are_asked_for_and_committed_by_the_epoch_in_force() {
    let broker = FakeBroker::start(2).await;
    {
        let mut state = broker.state.lock();
        state.heartbeat_answers.extend([assigned(1, &[0, 1]), same(5)]);
        state.offset_fetch_faults.push_back(ErrorCode::StaleMemberEpoch);
    }
    let producer = producer(&broker, &[]).await;
    assert!(send(&producer, 1, 0..10).await.into_iter().all(|r| r.is_ok()));
    // Long enough for a heartbeat between two tries.
    let backoff = [("retry.backoff.ms", "200"), ("retry.backoff.max.ms", "200")];
    let properties = [&backoff[..], &[("auto.offset.reset", "earliest"), ("group.instance.id", "i")]].concat();
    let mut member = member(&broker, &properties).await;
    poll_until(&mut member, |m| !m.assignment().is_empty() && m.assignment().iter().all(|tp| m.position(tp).is_some()))
        .await;
    let asked = broker.state.lock().epochs.clone();
    assert_eq!(asked.last(), Some(&(ApiKey::OffsetFetch, 5)), "{asked:?}");
    // A partition goes while the epoch changes: the commit before it is tried again by the new one.
    {
        let mut state = broker.state.lock();
        state.epochs.clear();
        state.commit_faults.push_back(Fault::Refuse(ErrorCode::StaleMemberEpoch));
        state.heartbeat_answers.extend([assigned(6, &[0]), same(7)]);
    }
    let heard = |owns: &[i32]| {
        let said = broker.state.lock().heartbeats.clone();
        said.iter().any(|r| r.member_epoch == 7 && owned(r).as_deref() == Some(owns))
    };
    poll_until(&mut member, |_| heard(&[0])).await;
    let committed = broker.state.lock().epochs.clone();
    assert_eq!(committed, [(ApiKey::OffsetCommit, 6), (ApiKey::OffsetCommit, 7)]);
    member.close().await.unwrap();
    assert_eq!(broker.state.lock().heartbeats.last().unwrap().member_epoch, -2, "a static member comes back");
}

#[tokio::test]
async fn a_cluster_that_does_not_serve_the_protocol_is_told_of() {
    let broker = FakeBroker::start(1).await;
    let old = |api: &&ApiSchema| api.max_version >= 0 && api.key != ApiKey::ConsumerGroupHeartbeat;
    let served = APIS.iter().filter(old).map(|a| (a.key, a.min_version, a.max_version)).collect();
    broker.state.lock().versions = Some(served);
    let mut member = member(&broker, &[]).await;
    let error = loop {
        if let Err(error) = member.poll(Duration::from_secs(10)).await {
            break error.to_string();
        }
    };
    let expected = "failed to join group 'g': the cluster does not serve the consumer group protocol; \
                    set group.protocol=classic until it does (UNSUPPORTED_VERSION)";
    assert_eq!(error, expected);
}
