//! `__consumer_offsets` is compacted, by configs that change while the broker runs, and the group finds its offset.

use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use caudal_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use caudal_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use caudal_protocol::messages::*;

use crate::raw::{RawClient, TestBroker};

fn commit(client: &mut RawClient, offset: i64, metadata: &str) {
    let partition = OffsetCommitRequestPartition {
        committed_offset: offset,
        committed_metadata: Some(metadata.to_owned()),
        ..Default::default()
    };
    let topic = OffsetCommitRequestTopic { name: "t".into(), partitions: vec![partition], ..Default::default() };
    let request = OffsetCommitRequest {
        group_id: "g".into(),
        generation_id_or_member_epoch: -1,
        topics: vec![topic],
        ..Default::default()
    };
    let response: OffsetCommitResponse = client.ask(&request, 8);
    assert_eq!(response.topics[0].partitions[0].error_code, 0);
}

fn committed(client: &mut RawClient) -> i64 {
    let topic = OffsetFetchRequestTopic { name: "t".into(), partition_indexes: vec![0] };
    let request = OffsetFetchRequest { group_id: "g".into(), topics: Some(vec![topic]), ..Default::default() };
    let response: OffsetFetchResponse = client.ask(&request, 7);
    response.topics[0].partitions[0].committed_offset
}

fn set(client: &mut RawClient, name: &str, value: &str) -> i16 {
    let config = AlterableConfig { name: name.into(), value: Some(value.into()), ..Default::default() };
    let resource = AlterConfigsResource { resource_type: 4, resource_name: "1".into(), configs: vec![config] };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
    let response: IncrementalAlterConfigsResponse = client.ask(&request, 1);
    response.responses[0].error_code
}

fn offsets_bytes(broker: &TestBroker) -> u64 {
    let view = broker.context().topics.view();
    view.partition("__consumer_offsets", 0).map_or(0, |partition| partition.log.size_bytes())
}

#[test]
fn committed_offsets_shrink_and_are_found_again() {
    let mut broker = TestBroker::start_with(|config| {
        let properties = Arc::make_mut(&mut config.properties);
        properties.set("log.cleaner.backoff.ms", "3600000");
        properties.set("offsets.topic.num.partitions", "1");
        properties.set("offsets.topic.segment.bytes", "1048576");
        config.flush_before_ack = false;
    });
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let find: FindCoordinatorResponse =
        client.ask(&FindCoordinatorRequest { key: "g".into(), ..Default::default() }, 3);
    assert_eq!(find.error_code, 0);
    let metadata = "m".repeat(4000);
    for offset in 0..900 {
        commit(&mut client, offset, &metadata);
    }
    assert!(offsets_bytes(&broker) > 3_600_000, "{}", offsets_bytes(&broker));
    assert_eq!(set(&mut client, "log.cleaner.backoff.ms", "20"), 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while offsets_bytes(&broker) > 1_100_000 {
        assert!(Instant::now() < deadline, "{} bytes", offsets_bytes(&broker));
        assert_eq!(committed(&mut client), 899);
    }
    commit(&mut client, 900, "");
    for crash in [false, true] {
        broker = if crash { broker.crash_and_restart() } else { broker.restart() };
        let mut client = broker.connect();
        assert_eq!(committed(&mut client), 900);
    }
}
