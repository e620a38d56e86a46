use caudal_protocol::messages::create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic};
use caudal_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use caudal_protocol::messages::delete_topics_request::DeleteTopicState;
use caudal_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use caudal_protocol::messages::*;
use caudal_protocol::records::metadata::FeatureLevelRecord;
use proptest::prelude::*;

use super::*;
use crate::image::{ConfigResource, NO_LEADER};

fn registration() -> Registration {
    Registration {
        node_id: 1,
        log_dirs: vec![Uuid([9; 16])],
        lacks_some: false,
        incarnation_id: Uuid([8; 16]),
        endpoints: vec![Endpoint { listener: "PLAINTEXT".into(), host: "h".into(), port: 9092, security_protocol: 0 }],
        controller_endpoints: Vec::new(),
        rack: None,
    }
}

pub(super) fn apply(image: &mut MetadataImage, records: &[MetadataRecord]) {
    for record in records {
        image.apply(record).unwrap();
        image.offset += 1;
    }
}

pub(super) fn started() -> MetadataImage {
    let mut image = MetadataImage::empty();
    let features = FEATURES.iter().filter_map(|f| {
        let level = f.initial?;
        Some(FeatureLevelRecord { name: f.name.into(), feature_level: level }.into())
    });
    apply(&mut image, &features.collect::<Vec<_>>());
    let records = start_records(&image, &registration(), true, image.offset + 1);
    apply(&mut image, &records);
    image
}

pub(super) fn topic(name: &str, num_partitions: i32, replication_factor: i16) -> CreatableTopic {
    CreatableTopic { name: name.into(), num_partitions, replication_factor, ..CreatableTopic::default() }
}

fn with_config(mut topic: CreatableTopic, name: &str, value: Option<&str>) -> CreatableTopic {
    topic.configs.push(CreatableTopicConfig { name: name.into(), value: value.map(str::to_owned) });
    topic
}

fn with_replicas(mut topic: CreatableTopic, replicas: &[(i32, &[i32])]) -> CreatableTopic {
    let assignment =
        |(p, b): &(i32, &[i32])| CreatableReplicaAssignment { partition_index: *p, broker_ids: b.to_vec() };
    topic.assignments = replicas.iter().map(assignment).collect();
    topic
}

fn create(image: &mut MetadataImage, topics: Vec<CreatableTopic>) -> Vec<(ErrorCode, Option<String>)> {
    let config = StaticConfig::default();
    let node = Node { node_id: 1, config: &config };
    let request = CreateTopicsRequest { topics, timeout_ms: 1000, validate_only: false };
    let decision = create_topics(image, &node, &request);
    apply(image, &decision.records);
    let answer = |t: &create_topics_response::CreatableTopicResult| {
        (ErrorCode::from_code(t.error_code), t.error_message.clone())
    };
    decision.response.topics.iter().map(answer).collect()
}

/// One client must not keep the controller busy by naming many topics.
#[test]
fn many_names_take_no_time_each_for_all_others() {
    let start = std::time::Instant::now();
    let names = (0..60_000).map(|n| format!("none-{n}")).chain(["t".to_owned(), "t".to_owned()]);
    let topics = names.map(|name| CreatePartitionsTopic { name, count: 2, ..Default::default() }).collect();
    let request = CreatePartitionsRequest { topics, ..Default::default() };
    let response = create_partitions(&started(), &request).response;
    let codes: Vec<i16> = response.results.iter().rev().take(3).map(|result| result.error_code).collect();
    let twice = ErrorCode::InvalidRequest.code();
    assert_eq!(codes, [twice, twice, ErrorCode::UnknownTopicOrPartition.code()]);
    assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_started_node_is_registered_and_active() {
    let image = started();
    let broker = image.broker(1).unwrap();
    assert!(!broker.fenced && image.is_active(1));
    assert_eq!(broker.broker_epoch, 7, "the offset of its registration");
    assert_eq!(image.controllers().len(), 1);
}

/// Sentences of Apache Kafka 4.3.1 as its tools print them.
#[test]
fn topics_are_refused_in_kafkas_words() {
    use ErrorCode::*;
    let long = "x".repeat(250);
    let mut image = started();
    assert_eq!(
        create(&mut image, vec![topic("t", 1, 1), topic("a.b", 1, 1)]),
        [(None, Option::None), (None, Option::None)]
    );
    let rows: Vec<(CreatableTopic, ErrorCode, String)> = vec![
        (topic("t", 1, 1), TopicAlreadyExists, "Topic 't' already exists.".into()),
        (topic("a_b", 1, 1), InvalidTopicException, "Topic 'a_b' collides with existing topic: a.b".into()),
        (topic("", 1, 1), InvalidTopicException, "Topic name is invalid: the empty string is not allowed".into()),
        (topic("..", 1, 1), InvalidTopicException, "Topic name is invalid: '..' is not allowed".into()),
        (
            topic("../x", 1, 1),
            InvalidTopicException,
            "Topic name is invalid: '../x' contains one or more characters other than ASCII alphanumerics, '.', '_' \
             and '-'"
                .into(),
        ),
        (
            topic(&long, 1, 1),
            InvalidTopicException,
            format!("Topic name is invalid: the length of '{long}' is longer than the max allowed length 249"),
        ),
        (
            topic("__cluster_metadata", 1, 1),
            InvalidRequest,
            "Creation of internal topic __cluster_metadata is prohibited.".into(),
        ),
        (
            topic("x", 1, 3),
            InvalidReplicationFactor,
            "Unable to replicate the partition 3 time(s): The target replication factor of 3 cannot be reached \
             because only 1 broker(s) are registered or some brokers have all their log directories cordoned."
                .into(),
        ),
        (
            topic("x", 1, 0),
            InvalidReplicationFactor,
            "Replication factor must be larger than 0, or -1 to use the default value.".into(),
        ),
        (topic("x", 0, 1), InvalidPartitions, "Number of partitions was set to an invalid non-positive value.".into()),
        (topic("x", i32::MAX, 1), PolicyViolation, "Excessively large number of partitions per request.".into()),
        (
            with_replicas(topic("x", -1, -1), &[(0, &[2])]),
            InvalidReplicaAssignment,
            "The manual partition assignment includes broker 2, but no such broker is registered.".into(),
        ),
        (
            with_replicas(topic("x", -1, -1), &[(0, &[1, 1])]),
            InvalidReplicaAssignment,
            "The manual partition assignment includes the broker 1 more than once.".into(),
        ),
        (
            with_replicas(topic("x", -1, -1), &[(0, &[])]),
            InvalidReplicaAssignment,
            "The manual partition assignment includes an empty replica list.".into(),
        ),
        (
            with_replicas(topic("x", -1, -1), &[(0, &[1]), (2, &[1])]),
            InvalidReplicaAssignment,
            "partitions should be a consecutive 0-based integer sequence".into(),
        ),
        (
            with_replicas(topic("x", 2, -1), &[(0, &[1])]),
            InvalidRequest,
            "A manual partition assignment was specified, but numPartitions was not set to -1.".into(),
        ),
        (with_config(topic("x", 1, 1), "foo", Some("1")), InvalidConfig, "Unknown topic config name: foo".into()),
        (
            with_config(topic("x", 1, 1), "retention.ms", Option::None),
            InvalidConfig,
            "Null value not supported for topic configs: retention.ms".into(),
        ),
    ];
    for (topic, code, sentence) in rows {
        let before = image.clone();
        assert_eq!(create(&mut image, vec![topic]), [(code, Some(sentence))]);
        assert_eq!(image, before);
    }
    let twice = create(&mut image, vec![topic("d", 1, 1), topic("d", 1, 1), topic("e", -1, -1)]);
    assert_eq!(twice, [(InvalidRequest, Some("Duplicate topic name.".into())), (None, Option::None)]);
    assert!(image.topic("e").is_some() && image.topic("d").is_none());
}

#[test]
fn topics_get_their_configs_and_say_them() {
    let mut image = started();
    let config = StaticConfig::default();
    let node = Node { node_id: 1, config: &config };
    let mut request = auto_create_request(&config, "__consumer_offsets").unwrap();
    request.validate_only = true;
    assert!(create_topics(&image, &node, &request).records.is_empty());
    request.validate_only = false;
    let decision = create_topics(&image, &node, &request);
    apply(&mut image, &decision.records);
    let topic = image.topic("__consumer_offsets").unwrap();
    assert_eq!(topic.partition_count(), 50);
    assert_eq!(topic.partitions.get(&49).unwrap().directories, [Uuid([9; 16])]);
    assert_eq!(image.config(&ConfigResource::topic("__consumer_offsets"), "segment.bytes"), Some("104857600"));
    let answer = decision.response.topics.first().unwrap();
    let configs = answer.configs.as_ref().unwrap();
    let policy = configs.iter().find(|c| c.name == "cleanup.policy").unwrap();
    assert_eq!((policy.value.as_deref(), policy.config_source), (Some("compact"), 1));
    assert_eq!(configs.len(), 33, "as many as Kafka tells");
    assert_eq!(auto_create_request(&config, "a b"), None);
}

#[test]
fn topics_are_deleted_by_name_and_id() {
    use ErrorCode::*;
    let mut image = started();
    create(
        &mut image,
        vec![with_config(topic("a", 2, 1), "retention.ms", Some("5")), topic("b", 1, 1), topic("c", 1, 1)],
    );
    let id = |name: &str| image.topic(name).unwrap().id;
    let by = |name: Option<&str>, topic_id: Uuid| DeleteTopicState { name: name.map(str::to_owned), topic_id };
    let missing = Uuid([77; 16]);
    let request = DeleteTopicsRequest {
        topics: vec![
            by(Some("a"), Uuid::ZERO),
            by(Option::None, id("b")),
            by(Some("c"), id("c")),
            by(Option::None, Uuid::ZERO),
            by(Option::None, missing),
            by(Some("no"), Uuid::ZERO),
            by(Some("two"), Uuid::ZERO),
            by(Some("two"), Uuid::ZERO),
        ],
        ..DeleteTopicsRequest::default()
    };
    let decision = delete_topics(&image, &request);
    let mut answers: Vec<(Option<String>, ErrorCode)> = Vec::new();
    for r in &decision.response.responses {
        answers.push((r.name.clone(), ErrorCode::from_code(r.error_code)));
    }
    let row = |name: Option<&str>, code| (name.map(str::to_owned), code);
    answers.sort_by_key(|(name, code)| (name.clone(), code.code()));
    assert_eq!(
        answers,
        [
            row(Option::None, InvalidRequest),
            row(Option::None, UnknownTopicId),
            row(Some("a"), None),
            row(Some("b"), None),
            row(Some("c"), InvalidRequest),
            row(Some("no"), UnknownTopicOrPartition),
            row(Some("two"), InvalidRequest),
        ]
    );
    apply(&mut image, &decision.records);
    assert_eq!(image.topics().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["c"]);
    assert_eq!(image.configs(&ConfigResource::topic("a")), Option::None);
}

#[test]
fn partitions_only_grow() {
    use ErrorCode::*;
    let mut image = started();
    create(&mut image, vec![topic("t", 2, 1)]);
    let request = |count: i32, replicas: Option<Vec<Vec<i32>>>| CreatePartitionsRequest {
        topics: vec![CreatePartitionsTopic {
            name: "t".into(),
            count,
            assignments: replicas
                .map(|r| r.into_iter().map(|broker_ids| CreatePartitionsAssignment { broker_ids }).collect()),
        }],
        ..CreatePartitionsRequest::default()
    };
    for (count, replicas, code, sentence) in [
        (2, Option::None, InvalidPartitions, "Topic already has 2 partition(s)."),
        (1, Option::None, InvalidPartitions, "The topic t currently has 2 partition(s); 1 would not be an increase."),
        (
            4,
            Some(vec![vec![1]]),
            InvalidReplicaAssignment,
            "Attempted to add 2 additional partition(s), but only 1 assignment(s) were specified.",
        ),
        (
            3,
            Some(vec![vec![1, 2]]),
            InvalidReplicaAssignment,
            "The manual partition assignment includes broker 2, but no such broker is registered.",
        ),
    ] {
        let decision = create_partitions(&image, &request(count, replicas));
        let result = decision.response.results.first().unwrap();
        assert_eq!((ErrorCode::from_code(result.error_code), result.error_message.as_deref()), (code, Some(sentence)));
        assert!(decision.records.is_empty());
    }
    let decision = create_partitions(&image, &request(5, Option::None));
    apply(&mut image, &decision.records);
    assert_eq!(image.topic("t").unwrap().partition_count(), 5);
    assert_eq!(image.partition("t", 4).unwrap().leader, 1);
}

fn alter(
    image: &mut MetadataImage,
    kind: i8,
    name: &str,
    ops: &[(&str, i8, Option<&str>)],
) -> (ErrorCode, Option<String>) {
    let config = StaticConfig::default();
    let node = Node { node_id: 1, config: &config };
    let configs = ops.iter().map(|(name, config_operation, value)| AlterableConfig {
        name: (*name).into(),
        config_operation: *config_operation,
        value: value.map(str::to_owned),
    });
    let resource = AlterConfigsResource { resource_type: kind, resource_name: name.into(), configs: configs.collect() };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], validate_only: false };
    let decision = incremental_alter_configs(image, &node, &request);
    apply(image, &decision.records);
    let answer = decision.response.responses.first().unwrap();
    (ErrorCode::from_code(answer.error_code), answer.error_message.clone())
}

#[test]
fn configs_change_one_by_one() {
    use ErrorCode::*;
    const OK: (ErrorCode, Option<String>) = (None, Option::None);
    let mut image = started();
    create(&mut image, vec![topic("t", 1, 1)]);
    let t = ConfigResource::topic("t");
    assert_eq!(alter(&mut image, 2, "t", &[("retention.ms", 0, Some("5")), ("segment.ms", 0, Some("6"))]), OK);
    assert_eq!(image.config(&t, "retention.ms"), Some("5"));
    assert_eq!(alter(&mut image, 2, "t", &[("cleanup.policy", 2, Some("compact"))]), OK);
    assert_eq!(image.config(&t, "cleanup.policy"), Some("delete,compact"));
    assert_eq!(
        alter(&mut image, 2, "t", &[("cleanup.policy", 3, Some("delete")), ("segment.ms", 1, Option::None)]),
        OK
    );
    assert_eq!(image.config(&t, "cleanup.policy"), Some("compact"));
    assert_eq!(image.config(&t, "segment.ms"), Option::None);
    assert_eq!(alter(&mut image, 4, "", &[("log.retention.ms", 0, Some("7"))]), OK);
    assert_eq!(image.config(&ConfigResource::all_brokers(), "log.retention.ms"), Some("7"));
    assert_eq!(alter(&mut image, 4, "1", &[("log.cleaner.backoff.ms", 0, Some("14000"))]), OK);
    assert_eq!(image.config(&ConfigResource::broker(1), "log.cleaner.backoff.ms"), Some("14000"));
    // Kept and shown, as by a Kafka without what they stand for.
    for (name, value) in [
        ("background.threads", "5"),
        ("num.io.threads", "4"),
        ("sasl.kerberos.min.time.before.relogin", "58000"),
        ("remote.log.reader.threads", "11"),
        ("producer.id.expiration.ms", "9000"),
    ] {
        assert_eq!(alter(&mut image, 4, "1", &[(name, 0, Some(value))]), OK, "{name}");
        assert_eq!(image.config(&ConfigResource::broker(1), name), Some(value));
        assert_eq!(alter(&mut image, 4, "1", &[(name, 1, Option::None)]), OK);
    }
    for (kind, name, ops, code, sentence) in [
        (
            2,
            "t",
            vec![("retention.ms", 2, Some("1"))],
            InvalidConfig,
            "Can't APPEND to key retention.ms because its type is not LIST.",
        ),
        (2, "t", vec![("foo", 0, Some("1"))], InvalidConfig, "Unknown topic config name: foo"),
        (2, "nope", vec![("retention.ms", 0, Some("1"))], UnknownTopicOrPartition, "The topic 'nope' does not exist."),
        (
            2,
            "t",
            vec![("retention.ms", 0, Some("1")), ("retention.ms", 1, Option::None)],
            InvalidRequest,
            "Error due to duplicate config keys",
        ),
        (
            2,
            "t",
            vec![("retention.ms", 0, Option::None)],
            InvalidRequest,
            "Null value not supported for : retention.ms",
        ),
        (
            4,
            "1",
            vec![("num.partitions", 0, Some("3"))],
            InvalidRequest,
            "Cannot update these configs dynamically: [num.partitions]",
        ),
        (
            4,
            "",
            vec![("background.threads", 0, Some("3"))],
            InvalidRequest,
            "Dynamic thread count update validation failed for background.threads=3, value should be at least half the \
             current value 10",
        ),
        (
            4,
            "",
            vec![("sasl.kerberos.kinit.cmd", 0, Some("x"))],
            InvalidRequest,
            "Cannot update these configs at default cluster level, broker id must be specified: [sasl.kerberos.kinit.cmd]",
        ),
        (
            4,
            "1",
            vec![("ssl.keystore.type", 0, Some("PEM"))],
            InvalidRequest,
            "These security configs can be dynamically updated only per-listener using the listener prefix: \
             [ssl.keystore.type]",
        ),
        (
            4,
            "",
            vec![("log.cleaner.threads", 0, Some("3"))],
            InvalidRequest,
            "Log cleaner threads cannot be increased to more than double the current value 1",
        ),
        (
            4,
            "1",
            vec![("log.cleaner.dedupe.buffer.size", 0, Some("1048576"))],
            InvalidRequest,
            "log.cleaner.dedupe.buffer.size must be at least 1MB per cleaner thread.",
        ),
        (
            4,
            "1",
            vec![("metric.reporters", 0, Some("a.B"))],
            InvalidRequest,
            "Invalid value a.B for configuration metric.reporters: this broker does not act on metric.reporters and \
             takes only its present value",
        ),
        (
            4,
            "1",
            vec![("listener.name.plaintext.max.connections", 0, Some("5"))],
            InvalidRequest,
            "Listeners have no configs of their own on this broker: listener.name.plaintext.max.connections",
        ),
        (
            4,
            "1",
            vec![("max.connections.per.ip.overrides", 0, Some("::1:3,localhost:3"))],
            InvalidRequest,
            "Invalid value ::1:3,localhost:3 for configuration max.connections.per.ip.overrides: 'localhost' is not an \
             IP address",
        ),
        (
            4,
            "",
            vec![("group.consumer.assignment.interval.ms", 0, Some("15001"))],
            InvalidRequest,
            "group.consumer.assignment.interval.ms must be less than or equal to \
             group.consumer.max.assignment.interval.ms",
        ),
        (
            4,
            "",
            vec![("max.connections.per.ip", 0, Some("0"))],
            InvalidRequest,
            "max.connections.per.ip can be set to zero only if max.connections.per.ip.overrides property is set.",
        ),
        (
            4,
            "",
            vec![("log.retention.ms", 0, Some("0"))],
            InvalidRequest,
            "Invalid value 0 for configuration log.retention.ms: Value must be unlimited (-1) or at least 1",
        ),
        (4, "2", vec![], InvalidRequest, "Unexpected broker id, expected 1, but received 2"),
        (
            4,
            "",
            vec![("min.insync.replicas", 1, Option::None)],
            InvalidConfig,
            "Cluster-level min.insync.replicas cannot be removed while ELR is enabled.",
        ),
        (99, "x", vec![], InvalidRequest, "Unknown resource type 99"),
    ] {
        let before = image.clone();
        assert_eq!(alter(&mut image, kind, name, &ops), (code, Some(sentence.to_owned())));
        assert_eq!(image, before);
    }
}

#[test]
fn compaction_lags_are_compared_with_those_of_the_brokers() {
    let mut image = started();
    create(&mut image, vec![topic("t", 1, 1)]);
    let max = [("max.compaction.lag.ms", 0, Some("500"))];
    assert_eq!(alter(&mut image, 2, "t", &max).0, ErrorCode::None);
    assert_eq!(alter(&mut image, 4, "", &[("log.cleaner.min.compaction.lag.ms", 0, Some("1000"))]).0, ErrorCode::None);
    let message = "conflict topic config setting min.compaction.lag.ms (1000) > max.compaction.lag.ms (500)";
    let (error, told) = alter(&mut image, 2, "t", &max);
    assert_eq!((error, told.as_deref()), (ErrorCode::InvalidConfig, Some(message)));
    let config = StaticConfig::default();
    let node = Node { node_id: 1, config: &config };
    let new = |max| with_config(topic("u", 1, 1), "max.compaction.lag.ms", Some(max));
    let request = CreateTopicsRequest { topics: vec![new("500")], ..Default::default() };
    let refused = create_topics(&image, &node, &request).response.topics.remove(0);
    assert_eq!((refused.error_code, refused.error_message.as_deref()), (error.code(), Some(message)));
    create(&mut image, vec![new("1000")]);
}

#[test]
fn in_sync_replicas_are_a_matter_of_each_broker_without_elr() {
    let mut image = started();
    let set = [("min.insync.replicas", 0, Some("2"))];
    let message = "Broker-level min.insync.replicas cannot be altered while ELR is enabled.";
    assert_eq!(alter(&mut image, 4, "1", &set), (ErrorCode::InvalidConfig, Some(message.to_owned())));
    let off = FeatureLevelRecord { name: "eligible.leader.replicas.version".into(), feature_level: 0 };
    apply(&mut image, &[off.into()]);
    assert_eq!(alter(&mut image, 4, "1", &set), (ErrorCode::None, None));
    for (name, value) in [("", Some("1")), ("1", None), ("", None)] {
        let operation = i8::from(value.is_none());
        let changed = alter(&mut image, 4, name, &[("min.insync.replicas", operation, value)]);
        assert_eq!(changed, (ErrorCode::None, None));
    }
}

#[test]
fn legacy_alter_configs_replaces_all() {
    let mut image = started();
    create(&mut image, vec![with_config(topic("t", 1, 1), "retention.ms", Some("5"))]);
    let config = StaticConfig::default();
    let node = Node { node_id: 1, config: &config };
    let value = Some("6".to_owned());
    let resource = alter_configs_request::AlterConfigsResource {
        resource_type: 2,
        resource_name: "t".into(),
        configs: vec![alter_configs_request::AlterableConfig { name: "segment.ms".into(), value }],
    };
    let request = AlterConfigsRequest { resources: vec![resource], validate_only: false };
    let decision = alter_configs(&image, &node, &request);
    apply(&mut image, &decision.records);
    let t = ConfigResource::topic("t");
    assert_eq!((image.config(&t, "retention.ms"), image.config(&t, "segment.ms")), (None, Some("6")));
}

#[test]
fn producer_id_blocks_follow_each_other() {
    let mut image = started();
    for block in 0..3 {
        let decision = allocate_producer_ids(&image, 1);
        assert_eq!(decision.response, (block * 1000, 1000));
        apply(&mut image, &decision.records);
    }
}

#[test]
fn a_clean_stop_and_start_writes_what_kafka_writes() {
    let mut image = started();
    create(&mut image, vec![topic("t", 1, 1)]);
    let stop = stop_records(&image, 1);
    apply(&mut image, &stop);
    let stopped = image.partition("t", 0).unwrap();
    assert_eq!((stopped.leader, stopped.leader_epoch, stopped.partition_epoch), (NO_LEADER, 1, 1));
    assert_eq!((stopped.isr.as_slice(), stopped.eligible_leader_replicas.as_slice()), (&[][..], &[1][..]));
    assert!(image.broker(1).unwrap().fenced);
    let start = start_records(&image, &registration(), true, image.offset + 1);
    apply(&mut image, &start);
    let led = image.partition("t", 0).unwrap();
    assert_eq!((led.leader, led.leader_epoch, led.partition_epoch), (1, 2, 2));
    assert_eq!((led.isr.as_slice(), led.eligible_leader_replicas.len(), led.last_known_elr.len()), (&[1][..], 0, 0));
    // Killed instead: it still leads, with a new epoch.
    let start = start_records(&image, &registration(), false, image.offset + 1);
    apply(&mut image, &start);
    let led = image.partition("t", 0).unwrap();
    assert_eq!((led.leader, led.leader_epoch, image.is_active(1)), (1, 3, true));
}

proptest! {
    /// Whatever is asked, the records of the decision fit the image, and no partition is without its replicas.
    #[test]
    fn decisions_always_apply(
        names in prop::collection::vec("[a-c._]{0,3}", 0..8),
        partitions in -2i32..6,
        replication in -2i16..3,
        counts in prop::collection::vec((0usize..8, -1i32..9), 0..8),
    ) {
        let mut image = started();
        let topics = names.iter().map(|n| topic(n, partitions, replication)).collect();
        let answers = create(&mut image, topics);
        let created = answers.iter().filter(|(code, _)| *code == ErrorCode::None).count();
        prop_assert_eq!(created, image.topics().len());
        for (at, count) in counts {
            let Some(name) = names.get(at) else { continue };
            let topics = vec![CreatePartitionsTopic { name: name.clone(), count, assignments: None }];
            let decision = create_partitions(&image, &CreatePartitionsRequest { topics, ..Default::default() });
            apply(&mut image, &decision.records);
        }
        for topic in image.topics() {
            prop_assert!(topic.partitions.keys().copied().eq(0..topic.partition_count()));
            prop_assert!(topic.partitions.values().all(|p| p.leader == 1 && p.isr == [1] && p.replicas == [1]));
        }
        let mut again = MetadataImage::empty();
        apply(&mut again, &image.to_records());
        again.offset = image.offset;
        prop_assert_eq!(again, image);
    }
}
