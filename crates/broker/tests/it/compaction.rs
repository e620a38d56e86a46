//! `__consumer_offsets` is compacted, by configs that change while the broker runs, and the group finds its offset.

use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use caudal_protocol::messages::*;

use crate::raw::{RawClient, TestBroker};

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
    client.find_group("g");
    let metadata = "m".repeat(4000);
    for offset in 0..900 {
        assert_eq!(client.commit(offset, &metadata), 0);
    }
    assert!(offsets_bytes(&broker) > 3_600_000, "{}", offsets_bytes(&broker));
    assert_eq!(set(&mut client, "log.cleaner.backoff.ms", "20"), 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while offsets_bytes(&broker) > 1_100_000 {
        assert!(Instant::now() < deadline, "{} bytes", offsets_bytes(&broker));
        assert_eq!(client.committed(), 899);
    }
    assert_eq!(client.commit(900, ""), 0);
    for crash in [false, true] {
        broker = if crash { broker.crash_and_restart() } else { broker.restart() };
        let mut client = broker.connect();
        assert_eq!(client.committed(), 900);
    }
}
