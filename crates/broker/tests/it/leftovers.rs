//! What a stop and a crash leave behind: answers that are due, logs of topics that are gone, records nobody can read.

use caudal_broker::group::record::partition_for;
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_protocol::messages::fetch_response::FetchResponse;
use caudal_protocol::messages::heartbeat_request::HeartbeatRequest;
use caudal_protocol::messages::heartbeat_response::HeartbeatResponse;
use caudal_protocol::messages::produce_response::ProduceResponse;
use caudal_protocol::wire::{Message, Reader};

use crate::fetch::{offsets, request};
use crate::produce::{batch, batch_of, produce};
use crate::raw::{RawClient, TestBroker};

/// Sends up to five batches ahead until the broker hangs up; the offsets that were acknowledged.
fn produce_until_the_end(mut client: RawClient, producer_id: i64) -> Vec<i64> {
    let mut acknowledged = Vec::new();
    let mut sequence = 0;
    let mut send = |client: &mut RawClient| {
        use std::io::Write;
        let records = batch_of(1, 2_000, |b| b.producer(producer_id, 0, sequence));
        sequence += 1;
        let frame = crate::raw::frame(&crate::produce::request("t", 0, records.freeze()), 12, sequence);
        client.stream.write_all(&frame).is_ok()
    };
    (0..5).for_each(|_| assert!(send(&mut client)));
    while let Some(frame) = client.receive_frame() {
        let mut reader = Reader::new(frame);
        reader.i32().unwrap();
        reader
            .tags(|_, r| {
                r.skip();
                Ok(())
            })
            .unwrap();
        let response = ProduceResponse::decode(&mut reader, 12).unwrap();
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!(partition.error_code, 0);
        acknowledged.push(partition.base_offset);
        send(&mut client);
    }
    acknowledged
}

#[test]
fn what_was_appended_before_a_stop_is_answered() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let producers: Vec<_> = (0..4)
        .map(|producer_id| {
            let client = broker.connect();
            std::thread::spawn(move || produce_until_the_end(client, producer_id))
        })
        .collect();
    let mut client = broker.connect();
    let written = |client: &mut RawClient| {
        let response: FetchResponse = client.ask(&request("t", &[(0, 0)]), 12);
        response.responses[0].partitions[0].high_watermark
    };
    while written(&mut client) < 200 {}
    drop(client);
    let broker = broker.restart();
    let mut acknowledged: Vec<i64> = producers.into_iter().flat_map(|producer| producer.join().unwrap()).collect();
    acknowledged.sort_unstable();
    let end = written(&mut broker.connect());
    assert_eq!(acknowledged, (0..end).collect::<Vec<_>>());
}

#[test]
fn logs_of_topics_that_are_gone_are_set_aside() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    produce(&mut broker.connect(), "t", 0, batch(1, 10));
    // As if a crash had come between the end of a topic and that of its log.
    let (kept, ghost) = (broker.path().join("t-0"), broker.path().join("ghost-0"));
    std::fs::create_dir(&ghost).unwrap();
    for entry in std::fs::read_dir(kept).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, ghost.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(ghost.join("partition.metadata"), "version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAACA").unwrap();
    let broker = broker.restart();
    let names = || {
        let names = std::fs::read_dir(broker.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("ghost-0")).collect::<Vec<_>>()
    };
    let strays = names();
    assert!(strays.len() == 1 && strays[0].ends_with("-stray"), "{strays:?}");
    broker.create_topic("ghost", 1);
    assert_eq!(produce(&mut broker.connect(), "ghost", 0, batch(1, 10)).base_offset, 0);
    let response: FetchResponse = broker.connect().ask(&request("t", &[(0, 0)]), 12);
    assert_eq!(offsets(&response.responses[0].partitions[0]), [0]);
}

#[test]
fn a_log_whose_topic_id_is_damaged_stays_where_it_is() {
    let mut broker = TestBroker::start();
    broker.create_topic("t", 2);
    produce(&mut broker.connect(), "t", 0, batch(3, 10));
    produce(&mut broker.connect(), "t", 1, batch(1, 10));
    let file = broker.path().join("t-0/partition.metadata");
    let whole = std::fs::read_to_string(&file).unwrap();
    let damaged = whole.replacen("topic_id: ", "topic_id: A", 1);
    std::fs::write(&file, &damaged[..damaged.len() - 1]).unwrap();
    for clean in [true, false] {
        broker = if clean { broker.restart() } else { broker.crash_and_restart() };
        let response: FetchResponse = broker.connect().ask(&request("t", &[(0, 0), (1, 0)]), 12);
        let answers = &response.responses[0].partitions;
        assert_eq!(ErrorCode::from_code(answers[0].error_code), ErrorCode::KafkaStorageError);
        assert_eq!(offsets(&answers[1]), [0]);
        let names = std::fs::read_dir(broker.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.ends_with("-stray")).count(), 0);
    }
    std::fs::write(&file, whole).unwrap();
    let broker = broker.restart();
    let response: FetchResponse = broker.connect().ask(&request("t", &[(0, 0)]), 12);
    assert_eq!(response.responses[0].partitions[0].high_watermark, 3);
}

#[test]
fn partitions_without_their_metadata_are_left_alone() {
    for damage in ["remove", "remove, checkpointed", "fill", "meta.properties"] {
        let broker = TestBroker::start();
        broker.create_topic("t", 1);
        produce(&mut broker.connect(), "t", 0, batch(3, 10));
        let dir = broker.end(false);
        let log = dir.path().join("__cluster_metadata-0/00000000000000000000.log");
        match damage {
            "remove" => std::fs::remove_file(&log).unwrap(),
            "remove, checkpointed" => {
                std::fs::remove_file(&log).unwrap();
                let text = "0\n1\n__cluster_metadata 0 9\n";
                std::fs::write(dir.path().join("replication-offset-checkpoint"), text).unwrap();
            }
            "fill" => std::fs::write(&log, vec![0xff; std::fs::metadata(&log).unwrap().len() as usize]).unwrap(),
            _ => std::fs::remove_file(dir.path().join("meta.properties")).unwrap(),
        }
        let path = dir.path().to_owned();
        let kept = tempfile::tempdir().unwrap();
        copy(&path, kept.path());
        let refused = TestBroker::start_in(dir, |_| {}).err().unwrap().to_string();
        assert!(refused.contains("backup") && refused.contains(path.to_str().unwrap()), "{damage}: {refused}");
        assert!(
            refused.contains(if damage == "meta.properties" { "cluster.id=" } else { "accept.loss=true" }),
            "{refused}"
        );
        if damage != "meta.properties" {
            let accept = |config: &mut caudal_broker::BrokerConfig| {
                std::sync::Arc::make_mut(&mut config.properties).set("caudal.metadata.accept.loss", "true");
            };
            let broker = TestBroker::start_in(kept, accept).unwrap();
            let names =
                std::fs::read_dir(broker.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            assert_eq!(names.filter(|name| name.ends_with("-stray")).count(), 1, "{damage}");
            broker.create_topic("t", 1);
            assert_eq!(produce(&mut broker.restart().connect(), "t", 0, batch(1, 10)).base_offset, 0);
        }
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

#[test]
fn one_unreadable_record_costs_the_groups_of_its_partition() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    client.find_group("g");
    let partition = partition_for("g", 50);
    let mut damaged = BatchBuilder::new(Codec::None);
    damaged.append(0, Some(&[0, 1]), Some(b"v"), &[]);
    assert_eq!(produce(&mut client, "__consumer_offsets", partition, damaged.build().unwrap()).error_code, 0);
    drop(client);
    let broker = broker.restart();
    let mut client = broker.connect();
    let mut beat = |group: &str| {
        let request = HeartbeatRequest { group_id: group.into(), member_id: "m".into(), ..Default::default() };
        let response: HeartbeatResponse = client.ask(&request, 4);
        ErrorCode::from_code(response.error_code)
    };
    assert_eq!(beat("g"), ErrorCode::NotCoordinator);
    let other = (0..).map(|n| format!("g{n}")).find(|id| partition_for(id, 50) != partition).unwrap();
    assert_eq!(beat(&other), ErrorCode::UnknownMemberId);
}
