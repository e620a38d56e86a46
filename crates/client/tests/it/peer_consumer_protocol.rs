//! Members by the consumer group protocol (KIP-848) against a real cluster, see [`crate::cluster`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_client::admin::OffsetAndMetadata;
use caudal_client::{Admin, Consumer, Error, RebalanceListener, Topics};
use caudal_protocol::messages::ConsumerGroupHeartbeatRequest;
use caudal_protocol::messages::consumer_group_describe_response::DescribedGroup;
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};
use parking_lot::Mutex;

use crate::cluster::Cluster;
use crate::peer::{admin, new_topic};
use crate::peer_consumer::{DEADLINE, consumer, number, send, settle, take};
use crate::peer_producer::config;

/// A member of the group that is subscribed to the topics.
async fn member(servers: &str, group: &str, topics: Topics, properties: &[(&str, &str)]) -> Consumer {
    let mut all = vec![("group.protocol", "consumer"), ("group.id", group), ("auto.offset.reset", "earliest")];
    all.extend(properties);
    let mut member = consumer(servers, &all).await;
    member.subscribe(topics).unwrap();
    member
}

/// A group of its own for one test.
fn new_group() -> String {
    format!("g-{}", Uuid::random())
}

async fn described(admin: &Admin, group: &str) -> DescribedGroup {
    admin.describe_consumer_groups(&[group.to_owned()]).await.unwrap().remove(0)
}

/// What a listener was told: partitions given, taken and lost.
#[derive(Default, Clone)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn note(&self, what: char, partitions: &[TopicPartition]) {
        self.0.lock().push(format!("{what}{}", partitions.len()));
    }
}

impl RebalanceListener for Log {
    fn on_assigned(&mut self, partitions: &[TopicPartition]) {
        self.note('+', partitions);
    }

    fn on_revoked(&mut self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, OffsetAndMetadata)> {
        self.note('-', partitions);
        Vec::new()
    }

    fn on_lost(&mut self, partitions: &[TopicPartition]) {
        self.note('!', partitions);
    }
}

#[tokio::test]
async fn members_share_partitions_as_they_come_go_and_die() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    for assignor in ["uniform", "range"] {
        let (topic, group) = (new_topic(&admin, "next", 6).await, new_group());
        let log = Log::default();
        let mut members = Vec::new();
        for size in 1..=3 {
            let topics = Topics::names([&*topic]);
            let mut member = member(&servers, &group, topics, &[("group.remote.assignor", assignor)]).await;
            if size == 1 {
                member.set_rebalance_listener(Box::new(log.clone()));
            }
            members.push(member);
            settle(&mut members, 6).await;
        }
        // The first assignment may still be without partitions.
        let told = log.0.lock().join(" ");
        assert!(told.trim_start_matches("+0 ").starts_with("+6 -3 +0 -"), "{told}");
        let now = described(&admin, &group).await;
        assert_eq!((&*now.group_state, &*now.assignor_name, now.members.len()), ("Stable", assignor, 3));
        let first = members[0].group_member();
        assert!(now.members.iter().any(|m| m.member_id == first.member_id && m.member_epoch == first.generation));
        members.remove(1).close().await.unwrap();
        settle(&mut members, 6).await;
        // Without a goodbye: the group waits for the end of the session.
        drop(members.pop());
        settle(&mut members, 6).await;
        members.remove(0).close().await.unwrap();
        assert_eq!(described(&admin, &group).await.group_state, "Empty");
        assert_eq!(log.0.lock().last().map(|last| &**last), Some("-6"));
    }
}

/// Offsets of partitions that move are committed before others read them: each record is read once.
#[tokio::test]
async fn partitions_that_move_go_on_where_they_were() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let (topic, group) = (new_topic(&admin, "move", 4).await, new_group());
    let mut members = Vec::new();
    let mut seen: Vec<(i32, u32)> = Vec::new();
    for round in 0..3u32 {
        for partition in 0..4 {
            send(&servers, &topic, partition, round * 50..(round + 1) * 50).await;
        }
        // A few at a time: partitions move in the middle of what they hold.
        members.push(member(&servers, &group, Topics::names([&*topic]), &[("max.poll.records", "7")]).await);
        let deadline = Instant::now() + DEADLINE;
        let enough = 4 * 50 * (round as usize + 1);
        while seen.len() < enough || members.iter().any(|m| m.assignment().is_empty()) {
            assert!(Instant::now() < deadline, "{} of {enough} records came", seen.len());
            for member in &mut members {
                let records = member.poll(Duration::from_millis(20)).await.unwrap();
                seen.extend(records.iter().map(|r| (r.partition, number(r))));
            }
        }
    }
    for member in members {
        member.close().await.unwrap();
    }
    seen.sort_unstable();
    let expected: Vec<(i32, u32)> = (0..4).flat_map(|p| (0..150).map(move |n| (p, n))).collect();
    assert_eq!(seen, expected);
    let tps: Vec<TopicPartition> = (0..4).map(|p| TopicPartition::new(&*topic, p)).collect();
    for offset in admin.group_offsets(&group, Some(&tps)).await.unwrap() {
        assert_eq!(offset.committed.unwrap().unwrap().offset, 150);
    }
}

/// Makes the group forget a member, as the end of its session does.
async fn expel(admin: &Admin, group: &str, member_id: &str) {
    let coordinator = admin.find_coordinator(group, 0).await.unwrap().node_id;
    let request = ConsumerGroupHeartbeatRequest {
        group_id: group.to_owned(),
        member_id: member_id.to_owned(),
        member_epoch: -1,
        ..Default::default()
    };
    let response = admin.client().send(coordinator, &request).await.unwrap();
    assert_eq!(response.error_code, 0, "{response:?}");
}

#[tokio::test]
async fn a_member_that_was_given_up_joins_again_and_repeats_only_what_is_not_committed() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let (topic, group) = (new_topic(&admin, "fenced", 1).await, new_group());
    send(&servers, &topic, 0, 0..100).await;
    let properties = [("enable.auto.commit", "false"), ("max.poll.records", "30")];
    let mut member = member(&servers, &group, Topics::names([&*topic]), &properties).await;
    let log = Log::default();
    member.set_rebalance_listener(Box::new(log.clone()));
    assert_eq!(take(&mut member, 30).await.len(), 30);
    member.commit().await.unwrap();
    assert_eq!(take(&mut member, 30).await.len(), 30);
    let before = member.group_member();
    expel(&admin, &group, &before.member_id).await;
    let refused = member.commit().await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::UnknownMemberId), "{refused}");
    // What it has read ahead may be handed out until the heartbeat tells.
    let deadline = Instant::now() + DEADLINE;
    let again = loop {
        let records = member.poll(Duration::from_millis(100)).await.unwrap();
        let told = log.0.lock().join(" ");
        if told.starts_with("+1 !1") && told.ends_with("+1") && !records.is_empty() {
            break records;
        }
        assert!(Instant::now() < deadline, "{}", log.0.lock().join(" "));
    };
    assert_eq!(number(&again[0]), 30);
    assert_eq!(member.group_member().member_id, before.member_id, "an id is for life");
    member.commit().await.unwrap();
    member.close().await.unwrap();
}

#[tokio::test]
async fn static_members_come_back_to_what_they_had() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let (topic, group) = (new_topic(&admin, "next-static", 4).await, new_group());
    let topics = || Topics::names([&*topic]);
    let mut members = Vec::new();
    for id in ["a", "b"] {
        members.push(member(&servers, &group, topics(), &[("group.instance.id", id)]).await);
        settle(&mut members, 4).await;
    }
    let before = members[1].assignment();
    let epoch = members[0].group_member().generation;
    members.pop().unwrap().close().await.unwrap();
    members.push(member(&servers, &group, topics(), &[("group.instance.id", "b")]).await);
    settle(&mut members, 4).await;
    assert_eq!(members[1].assignment(), before);
    assert_eq!(members[0].group_member().generation, epoch, "no rebalance");
    // While its owner lives, the instance id is taken.
    let mut second = member(&servers, &group, topics(), &[("group.instance.id", "b")]).await;
    let refused = refusal(&mut second).await;
    assert_eq!(refused.code(), Some(ErrorCode::UnreleasedInstanceId), "{refused}");
    eprintln!("{refused}");
}

/// Why a consumer cannot be in its group.
async fn refusal(consumer: &mut Consumer) -> Error {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match consumer.poll(Duration::from_millis(100)).await {
            Err(error) => return error,
            Ok(_) => assert!(Instant::now() < deadline, "it was let in"),
        }
    }
}

#[tokio::test]
async fn what_the_group_refuses_is_said() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let topic = new_topic(&admin(&servers).await, "refused", 1).await;
    let topics = Topics::names([&*topic]);
    let mut odd = member(&servers, &new_group(), topics, &[("group.remote.assignor", "oracle")]).await;
    let refused = refusal(&mut odd).await;
    assert_eq!(refused.code(), Some(ErrorCode::UnsupportedAssignor), "{refused}");
    assert!(refused.to_string().contains("uniform"), "{refused}");
    for (name, value, protocol) in [
        ("session.timeout.ms", "6000", "consumer"),
        ("heartbeat.interval.ms", "500", "consumer"),
        ("partition.assignment.strategy", "range", "consumer"),
        ("group.remote.assignor", "uniform", "classic"),
    ] {
        let config = config(&servers, &[("group.id", "g"), ("group.protocol", protocol), (name, value)]);
        let refused = Consumer::connect(config).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("{name} cannot be set when group.protocol={protocol}")), "{refused}");
    }
}

#[tokio::test]
async fn subscriptions_follow_topics_and_change() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let first = new_topic(&admin, "pattern", 2).await;
    let pattern = Topics::pattern(&format!("{first}.*")).unwrap();
    let properties = [("metadata.max.age.ms", "200"), ("allow.auto.create.topics", "false")];
    let mut members = vec![member(&servers, &new_group(), pattern, &properties).await];
    settle(&mut members, 2).await;
    // Another topic that matches comes into being.
    let second = format!("{first}-2");
    admin.create_topic(&second, Some(3)).await.unwrap();
    settle(&mut members, 5).await;
    // The choice changes.
    members[0].subscribe(Topics::names([&*second])).unwrap();
    settle(&mut members, 3).await;
    assert!(members[0].assignment().iter().all(|tp| tp.topic == second));
    // None, and again one, of a group that was left.
    members[0].unsubscribe().await;
    assert!(members[0].assignment().is_empty());
    members[0].subscribe(Topics::names([&*first])).unwrap();
    settle(&mut members, 2).await;
    // A topic that does not exist yet.
    let third = format!("{first}-3");
    members[0].subscribe(Topics::names([&*first, &*third])).unwrap();
    settle(&mut members, 2).await;
    admin.create_topic(&third, Some(1)).await.unwrap();
    settle(&mut members, 3).await;
}

/// A member that is not polled leaves what it has to others and comes back with the next poll.
#[tokio::test]
async fn a_member_that_is_not_polled_gives_up_its_partitions() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let (topic, group) = (new_topic(&admin, "idle", 4).await, new_group());
    let mut members = Vec::new();
    for max_poll in ["2000", "300000"] {
        let properties = [("max.poll.interval.ms", max_poll)];
        members.push(member(&servers, &group, Topics::names([&*topic]), &properties).await);
        settle(&mut members, 4).await;
    }
    settle(&mut members[1..], 4).await;
    settle(&mut members, 4).await;
}

/// A group of the classic protocol is taken over by members of the other one, one after the other.
#[tokio::test]
async fn a_classic_group_migrates() {
    let cluster = Cluster::open().await;
    let servers = cluster.servers();
    let admin = admin(&servers).await;
    let (topic, group) = (new_topic(&admin, "migrate", 4).await, new_group());
    send(&servers, &topic, 0, 0..10).await;
    let classic = [
        ("group.id", &*group),
        ("heartbeat.interval.ms", "200"),
        ("auto.offset.reset", "earliest"),
        ("partition.assignment.strategy", "cooperative-sticky"),
    ];
    let mut members = Vec::new();
    for _ in 0..2 {
        let mut member = consumer(&servers, &classic).await;
        member.subscribe(Topics::names([&*topic])).unwrap();
        members.push(member);
        settle(&mut members, 4).await;
    }
    members.push(member(&servers, &group, Topics::names([&*topic]), &[]).await);
    settle(&mut members, 4).await;
    assert_eq!(described(&admin, &group).await.members.len(), 3);
    for _ in 0..2 {
        members.remove(0).close().await.unwrap();
        settle(&mut members, 4).await;
    }
    send(&servers, &topic, 0, 10..20).await;
    members.remove(0).close().await.unwrap();
    let committed = admin.group_offsets(&group, Some(&[TopicPartition::new(&*topic, 0)])).await.unwrap();
    assert!(committed[0].committed.as_ref().unwrap().as_ref().unwrap().offset >= 10);
}
