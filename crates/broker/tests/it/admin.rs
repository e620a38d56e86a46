//! Topics, configs and cluster metadata: every version, and what the answers say.

use caudal_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use caudal_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use caudal_protocol::messages::delete_topics_request::DeleteTopicState;
use caudal_protocol::messages::describe_configs_request::DescribeConfigsResource;
use caudal_protocol::messages::describe_topic_partitions_request::TopicRequest;
use caudal_protocol::messages::metadata_request::MetadataRequestTopic;
use caudal_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use caudal_protocol::messages::*;
use caudal_protocol::{ErrorCode, Uuid};

use crate::limits::wait_until;
use crate::raw::{RawClient, TestBroker};

fn topic(name: &str) -> MetadataRequestTopic {
    MetadataRequestTopic { name: Some(name.into()), ..Default::default() }
}

fn metadata(client: &mut RawClient, names: &[&str], create: bool, version: i16) -> MetadataResponse {
    let topics = Some(names.iter().map(|name| topic(name)).collect());
    let request = MetadataRequest { topics, allow_auto_topic_creation: create, ..Default::default() };
    client.ask(&request, version)
}

fn new_topic(name: &str, configs: &[(&str, &str)]) -> CreatableTopic {
    let config =
        |(name, value): &(&str, &str)| CreatableTopicConfig { name: (*name).into(), value: Some((*value).into()) };
    let configs = configs.iter().map(config).collect();
    CreatableTopic { name: name.into(), num_partitions: 2, replication_factor: 1, configs, ..Default::default() }
}

#[test]
fn metadata_tells_topics_in_every_version() {
    let broker = TestBroker::start();
    broker.create_topic("t", 2);
    let mut client = broker.connect();
    for version in 0..=13 {
        let response = metadata(&mut client, &["t", "nope", "t"], version < 4, version);
        let names: Vec<(Option<&str>, i16)> =
            response.topics.iter().map(|t| (t.name.as_deref(), t.error_code)).collect();
        let unknown = ErrorCode::UnknownTopicOrPartition.code();
        assert_eq!(names, [(Some("t"), 0), (Some("nope"), unknown)], "version {version}");
        // Versions before 4 cannot ask not to create.
        if version < 4 {
            wait_until("the topic is made", || broker.context().has_partition("nope", 0));
            let request = DeleteTopicsRequest { topic_names: vec!["nope".into()], ..Default::default() };
            let deleted: DeleteTopicsResponse = client.ask(&request, 1);
            assert_eq!(deleted.responses[0].error_code, 0);
        }
        let t = &response.topics[0];
        assert_eq!(t.partitions.iter().map(|p| (p.partition_index, p.leader_id)).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
        assert_eq!((response.brokers.len(), response.brokers[0].port), (1, i32::from(broker.addr().port())));
        if version >= 10 {
            assert_eq!(t.topic_id, broker.topic_id("t"));
        }
    }
    for version in [0, 1, 9, 13] {
        let request = MetadataRequest { topics: (version == 0).then(Vec::new), ..Default::default() };
        let all: MetadataResponse = client.ask(&request, version);
        assert_eq!(all.topics.len(), 1, "version {version}");
    }
    let by_id = |topic_id: Uuid| MetadataRequestTopic { topic_id, name: None };
    let topics = Some(vec![by_id(broker.topic_id("t")), by_id(Uuid([5; 16]))]);
    let response: MetadataResponse = client.ask(&MetadataRequest { topics, ..Default::default() }, 12);
    assert_eq!(response.topics[0].name.as_deref(), Some("t"));
    assert_eq!(response.topics[1].error_code, ErrorCode::UnknownTopicId.code());
}

#[test]
fn using_a_topic_creates_it_unless_that_is_off() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let names = ["made", "bad name", "__consumer_offsets"];
    // As from Kafka, the first answer comes before the topics.
    let response = metadata(&mut client, &names, true, 12);
    let codes =
        [ErrorCode::UnknownTopicOrPartition, ErrorCode::InvalidTopicException, ErrorCode::UnknownTopicOrPartition];
    assert_eq!(response.topics.iter().map(|t| t.error_code).collect::<Vec<_>>(), codes.map(|code| code.code()));
    let made = |name, last| broker.context().has_partition(name, last);
    wait_until("the topics are made", || made("made", 0) && made("__consumer_offsets", 49));
    let response = metadata(&mut client, &names, true, 12);
    assert_eq!((response.topics[0].error_code, response.topics[0].partitions.len()), (0, 1));
    assert_eq!((response.topics[2].is_internal, response.topics[2].partitions.len()), (true, 50));
    let broker = TestBroker::start_with(|config| {
        std::sync::Arc::make_mut(&mut config.properties).set("auto.create.topics.enable", "false");
    });
    let response = metadata(&mut broker.connect(), &["made"], true, 12);
    assert_eq!(response.topics[0].error_code, ErrorCode::UnknownTopicOrPartition.code());
}

#[test]
fn topics_are_created_grown_and_deleted_in_every_version() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    for version in 2..=7 {
        let name = format!("t{version}");
        let topics = vec![new_topic(&name, &[("retention.ms", "1000")]), new_topic("bad name", &[])];
        let request = CreateTopicsRequest { topics, timeout_ms: 1000, validate_only: false };
        let response: CreateTopicsResponse = client.ask(&request, version);
        let codes: Vec<i16> = response.topics.iter().map(|t| t.error_code).collect();
        assert_eq!(codes, [0, ErrorCode::InvalidTopicException.code()], "version {version}");
        if version >= 5 {
            let configs = response.topics[0].configs.as_ref().unwrap();
            let retention = configs.iter().find(|c| c.name == "retention.ms").unwrap();
            assert_eq!((retention.value.as_deref(), retention.config_source), (Some("1000"), 1));
        }
        assert!(broker.path().join(format!("{name}-1/00000000000000000000.log")).exists());
    }
    for version in 0..=3 {
        let topics =
            vec![CreatePartitionsTopic { name: "t2".into(), count: 3 + i32::from(version), assignments: None }];
        let request = CreatePartitionsRequest { topics, timeout_ms: 1000, validate_only: false };
        let response: CreatePartitionsResponse = client.ask(&request, version);
        assert_eq!(response.results[0].error_code, 0, "version {version}");
    }
    assert!(broker.path().join("t2-5").exists());
    for version in 1..=6 {
        let name = format!("t{}", version + 1);
        let mut request = DeleteTopicsRequest { timeout_ms: 1000, ..Default::default() };
        match version {
            6 => request.topics = vec![DeleteTopicState { name: None, topic_id: broker.topic_id(&name) }],
            _ => request.topic_names = vec![name.clone(), "nope".into()],
        }
        let mut response: DeleteTopicsResponse = client.ask(&request, version);
        response.responses.retain(|r| r.name.as_deref() == Some(&name));
        assert_eq!(response.responses[0].error_code, 0, "version {version}");
        assert!(!broker.path().join(format!("{name}-0")).exists());
    }
    assert_eq!(metadata(&mut client, &["t2"], false, 12).topics[0].error_code, 3);
}

#[test]
fn metadata_survives_restarts_and_crashes() {
    let broker = TestBroker::start();
    let request =
        CreateTopicsRequest { topics: vec![new_topic("t", &[("retention.ms", "1000")])], ..Default::default() };
    let created: CreateTopicsResponse = broker.connect().ask(&request, 7);
    let id = created.topics[0].topic_id;
    let broker = broker.restart();
    assert_eq!(broker.topic_id("t"), id);
    let epoch = metadata(&mut broker.connect(), &["t"], false, 12).topics[0].partitions[0].leader_epoch;
    assert_eq!(epoch, 2, "without a leader, and led again, as in Kafka");
    let broker = broker.crash_and_restart();
    assert_eq!(broker.topic_id("t"), id);
    let epoch = metadata(&mut broker.connect(), &["t"], false, 12).topics[0].partitions[0].leader_epoch;
    assert_eq!(epoch, 3);
    let broker = broker.crash_and_restart();
    assert_eq!(broker.topic_id("t"), id);
}

fn describe(
    client: &mut RawClient,
    kind: i8,
    name: &str,
    version: i16,
) -> describe_configs_response::DescribeConfigsResult {
    let resource =
        DescribeConfigsResource { resource_type: kind, resource_name: name.into(), configuration_keys: None };
    let request = DescribeConfigsRequest {
        resources: vec![resource],
        include_synonyms: true,
        include_documentation: version >= 3,
    };
    let mut response: DescribeConfigsResponse = client.ask(&request, version);
    response.results.remove(0)
}

fn alter(
    client: &mut RawClient,
    kind: i8,
    name: &str,
    key: &str,
    value: Option<&str>,
    version: i16,
) -> (i16, Option<String>) {
    use incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let config_operation = i8::from(value.is_none());
    let config = AlterableConfig { name: key.into(), config_operation, value: value.map(str::to_owned) };
    let resource = AlterConfigsResource { resource_type: kind, resource_name: name.into(), configs: vec![config] };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], validate_only: false };
    let response: IncrementalAlterConfigsResponse = client.ask(&request, version);
    (response.responses[0].error_code, response.responses[0].error_message.clone())
}

#[test]
fn configs_are_described_and_altered_in_every_version() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let value = |client: &mut RawClient, version: i16| {
        let configs = describe(client, 2, "t", version).configs;
        let config = configs.into_iter().find(|c| c.name == "max.message.bytes").unwrap();
        (config.value.unwrap(), config.config_source)
    };
    for version in 1..=4 {
        let broker_configs = describe(&mut client, 4, "1", version).configs;
        assert_eq!(broker_configs.len(), 345, "Kafka's 340 and five of ours");
        assert_eq!(describe(&mut client, 2, "t", version).configs.len(), 33);
        assert_eq!(value(&mut client, version), ("1048588".into(), 5));
    }
    assert_eq!(describe(&mut client, 2, "nope", 4).error_code, ErrorCode::UnknownTopicOrPartition.code());
    assert_eq!(describe(&mut client, 4, "7", 4).error_code, ErrorCode::InvalidRequest.code());
    for version in 0..=1 {
        assert_eq!(alter(&mut client, 2, "t", "max.message.bytes", Some("500"), version), (0, None));
        assert_eq!(value(&mut client, 4), ("500".into(), 1));
        let produced = crate::produce::produce(&mut client, "t", 0, crate::produce::batch(1, 1000));
        assert_eq!(produced.error_code, ErrorCode::MessageTooLarge.code());
        assert_eq!(alter(&mut client, 2, "t", "max.message.bytes", None, version), (0, None));
        assert_eq!(alter(&mut client, 4, "", "message.max.bytes", Some("600"), version), (0, None));
        assert_eq!(value(&mut client, 4), ("600".into(), 3));
        let produced = crate::produce::produce(&mut client, "t", 0, crate::produce::batch(1, 1000));
        assert_eq!(produced.error_code, ErrorCode::MessageTooLarge.code());
        assert_eq!(alter(&mut client, 4, "", "message.max.bytes", None, version), (0, None));
        let produced = crate::produce::produce(&mut client, "t", 0, crate::produce::batch(1, 1000));
        assert_eq!(produced.error_code, 0);
    }
    let (code, message) = alter(&mut client, 2, "t", "remote.storage.enable", Some("true"), 1);
    assert_eq!(code, ErrorCode::InvalidConfig.code());
    assert!(message.unwrap().contains("Tiered Storage functionality is disabled"));
    for version in 0..=2 {
        let config = alter_configs_request::AlterableConfig { name: "segment.ms".into(), value: Some("7".into()) };
        let resource = alter_configs_request::AlterConfigsResource {
            resource_type: 2,
            resource_name: "t".into(),
            configs: vec![config],
        };
        let request = AlterConfigsRequest { resources: vec![resource], validate_only: false };
        let response: AlterConfigsResponse = client.ask(&request, version);
        assert_eq!(response.responses[0].error_code, 0);
    }
}

/// As Apache Kafka 4.3.1 does.
#[test]
fn configs_are_kept_as_they_were_given_and_shown_as_they_count() {
    let broker = TestBroker::start();
    broker.create_topic_with("t", 1, &[("cleanup.policy", "delete, compact,delete")]);
    broker.create_topic("u", 1);
    let mut client = broker.connect();
    assert_eq!(alter(&mut client, 4, "", "log.cleanup.policy", Some("delete,delete"), 1), (0, None));
    for (topic, expected) in [("t", "delete,compact"), ("u", "delete")] {
        let configs = describe(&mut client, 2, topic, 4).configs;
        let policy = configs.into_iter().find(|c| c.name == "cleanup.policy").unwrap();
        let values: Vec<_> = policy.synonyms.into_iter().map(|s| s.value.unwrap()).collect();
        let (own, others) = values.split_at(usize::from(topic == "t"));
        assert_eq!(
            (policy.value.as_deref(), others),
            (Some(expected), ["delete,delete", "delete"].map(String::from).as_slice())
        );
        assert!(own.iter().all(|own| own == expected));
    }
    for (place, source) in [("", 3), ("1", 2)] {
        assert_eq!(alter(&mut client, 4, place, "plugin.password", Some("secret"), 1), (0, None));
        let configs = describe(&mut client, 4, place, 4).configs;
        let unknown = configs.into_iter().find(|c| c.name == "plugin.password").unwrap();
        assert_eq!((unknown.value, unknown.config_source, unknown.config_type), (None, source, 0));
        assert!(unknown.is_sensitive && unknown.read_only && unknown.synonyms.iter().all(|s| s.value.is_none()));
        assert_eq!(unknown.synonyms.len(), if place.is_empty() { 1 } else { 2 });
    }
    for place in ["", "1"] {
        assert_eq!(alter(&mut client, 4, place, "plugin.password", None, 1), (0, None));
        assert!(describe(&mut client, 4, place, 4).configs.iter().all(|c| c.name != "plugin.password"));
    }
}

#[test]
fn topics_are_described_page_by_page() {
    let broker = TestBroker::start();
    ["a", "b", "c"].iter().for_each(|name| broker.create_topic(name, 3));
    let mut client = broker.connect();
    let mut seen = Vec::new();
    let mut request = DescribeTopicPartitionsRequest { response_partition_limit: 4, ..Default::default() };
    for _ in 0..4 {
        let page: DescribeTopicPartitionsResponse = client.ask(&request, 0);
        for topic in &page.topics {
            let name = topic.name.clone().unwrap();
            seen.extend(topic.partitions.iter().map(|p| format!("{name}{}", p.partition_index)));
        }
        let Some(next) = page.next_cursor else { break };
        request.cursor = Some(describe_topic_partitions_request::Cursor {
            topic_name: next.topic_name,
            partition_index: next.partition_index,
        });
    }
    assert_eq!(seen, ["a0", "a1", "a2", "b0", "b1", "b2", "c0", "c1", "c2"]);
    let topics = ["c", "nope"].map(|name| TopicRequest { name: name.into() }).to_vec();
    let request = DescribeTopicPartitionsRequest { topics, response_partition_limit: 2000, cursor: None };
    let page: DescribeTopicPartitionsResponse = client.ask(&request, 0);
    let codes: Vec<i16> = page.topics.iter().map(|t| t.error_code).collect();
    assert_eq!((codes, page.next_cursor.is_none()), (vec![0, 3], true));
}

#[test]
fn the_cluster_says_what_it_is() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    for version in 0..=2 {
        let request = DescribeClusterRequest { endpoint_type: 1, ..Default::default() };
        let cluster: DescribeClusterResponse = client.ask(&request, version);
        assert_eq!((cluster.error_code, cluster.brokers.len(), cluster.cluster_id.len()), (0, 1, 22));
    }
    let request = DescribeClusterRequest { endpoint_type: 2, ..Default::default() };
    let refused: DescribeClusterResponse = client.ask(&request, 2);
    assert_eq!(refused.error_code, ErrorCode::MismatchedEndpointType.code());
    for version in 0..=2 {
        let partitions = elect_leaders_request::TopicPartitions { topic: "t".into(), partitions: vec![0, 1] };
        let request =
            ElectLeadersRequest { election_type: 0, topic_partitions: Some(vec![partitions]), timeout_ms: 1000 };
        let response: ElectLeadersResponse = client.ask(&request, version);
        let codes: Vec<i16> =
            response.replica_election_results[0].partition_result.iter().map(|p| p.error_code).collect();
        assert_eq!(codes, [ErrorCode::ElectionNotNeeded.code(), ErrorCode::UnknownTopicOrPartition.code()]);
    }
    let none: ListPartitionReassignmentsResponse = client.ask(&ListPartitionReassignmentsRequest::default(), 0);
    assert_eq!((none.error_code, none.topics.len()), (0, 0));
    let resources: ListConfigResourcesResponse = client.ask(&ListConfigResourcesRequest::default(), 1);
    assert!(resources.config_resources.iter().any(|r| r.resource_name == "t" && r.resource_type == 2));
    for version in 1..=3 {
        let request = DescribeAclsRequest {
            pattern_type_filter: 1,
            resource_type_filter: 1,
            operation: 1,
            permission_type: 1,
            ..Default::default()
        };
        let acls: DescribeAclsResponse = client.ask(&request, version);
        assert_eq!(acls.error_code, ErrorCode::SecurityDisabled.code());
    }
}

/// An entry of a few bytes must not be answered with kilobytes as often as it is repeated.
#[test]
fn what_is_asked_for_twice_is_told_once() {
    let broker = TestBroker::start();
    broker.create_topic("t", 3);
    let mut client = broker.connect();
    let resource =
        DescribeConfigsResource { resource_type: 4, resource_name: "1".into(), ..DescribeConfigsResource::default() };
    let request = DescribeConfigsRequest { resources: vec![resource; 5000], ..DescribeConfigsRequest::default() };
    let response: DescribeConfigsResponse = client.ask(&request, 4);
    assert_eq!(response.results.len(), 1);
    let request = MetadataRequest {
        topics: Some(vec![MetadataRequestTopic { topic_id: broker.topic_id("t"), name: None }; 5000]),
        ..MetadataRequest::default()
    };
    let response: MetadataResponse = client.ask(&request, 12);
    assert_eq!((response.topics.len(), response.topics[0].partitions.len()), (1, 3));
}

#[test]
fn a_commit_tells_an_unknown_partition_from_an_unknown_topic() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let find: FindCoordinatorResponse =
        client.ask(&FindCoordinatorRequest { key: "g".into(), ..Default::default() }, 3);
    assert_eq!(find.error_code, 0);
    let mut commit = |topic_id: caudal_protocol::Uuid| -> Vec<i16> {
        let partition = |partition_index: i32| OffsetCommitRequestPartition {
            partition_index,
            ..OffsetCommitRequestPartition::default()
        };
        let topic = OffsetCommitRequestTopic {
            topic_id,
            partitions: vec![partition(0), partition(1)],
            ..OffsetCommitRequestTopic::default()
        };
        let request = OffsetCommitRequest {
            group_id: "g".into(),
            generation_id_or_member_epoch: -1,
            topics: vec![topic],
            ..OffsetCommitRequest::default()
        };
        let response: OffsetCommitResponse = client.ask(&request, 10);
        response.topics[0].partitions.iter().map(|p| p.error_code).collect()
    };
    assert_eq!(commit(broker.topic_id("t")), [0, ErrorCode::UnknownTopicOrPartition.code()]);
    assert_eq!(commit(caudal_protocol::Uuid([9; 16])), [ErrorCode::UnknownTopicId.code(); 2]);
}

#[test]
fn what_is_listed_again_and_again_is_answered_once() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let keys = vec!["g".to_owned(); 1000];
    let found: FindCoordinatorResponse =
        client.ask(&FindCoordinatorRequest { coordinator_keys: keys, ..Default::default() }, 4);
    assert_eq!(found.coordinators.len(), 1);
    let topic = describe_log_dirs_request::DescribableLogDirTopic { topic: "t".into(), partitions: vec![0; 1000] };
    let dirs: DescribeLogDirsResponse =
        client.ask(&DescribeLogDirsRequest { topics: Some(vec![topic.clone(), topic]) }, 4);
    assert_eq!(dirs.results[0].topics.iter().map(|t| t.partitions.len()).collect::<Vec<_>>(), [1]);
    let topic = elect_leaders_request::TopicPartitions { topic: "t".into(), partitions: vec![0; 1000] };
    let request = ElectLeadersRequest { topic_partitions: Some(vec![topic]), timeout_ms: 1000, ..Default::default() };
    let elected: ElectLeadersResponse = client.ask(&request, 2);
    assert_eq!(elected.replica_election_results[0].partition_result.len(), 1);
    let partition = describe_quorum_request::PartitionData::default();
    let topic = describe_quorum_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![partition; 1000],
    };
    let quorum: DescribeQuorumResponse = client.ask(&DescribeQuorumRequest { topics: vec![topic] }, 2);
    assert_eq!(quorum.topics[0].partitions.len(), 1);
}
