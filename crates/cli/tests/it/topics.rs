use crate::broker::{Broker, run};

#[test]
fn a_topic_from_its_creation_to_its_end() {
    let broker = Broker::start();
    let topics = |args: &[&str]| broker.tool("kafka-topics", args);
    let create = ["--create", "--topic", "a.b", "--partitions", "2", "--config", "retention.ms=3600000"];
    let made = topics(&create).ok();
    assert!(made.starts_with("WARNING: Due to limitations in metric names"), "{made}");
    assert!(made.ends_with("\nCreated topic a.b.\n"), "{made}");
    topics(&create).fails(1, "Error while executing topic command : Topic 'a.b' already exists.");
    topics(&["--create", "--topic", "a.b", "--if-not-exists"]).ok();
    let described = topics(&["--describe", "--topic", "a.b"]).ok();
    let lines: Vec<&str> = described.lines().collect();
    assert!(lines[0].starts_with("Topic: a.b\tTopicId: "), "{described}");
    assert!(lines[0].contains("\tPartitionCount: 2\tReplicationFactor: 1\tConfigs: "), "{described}");
    assert!(lines[0].contains("retention.ms=3600000"), "{described}");
    assert_eq!(
        lines[2], "\tTopic: a.b\tPartition: 1\tLeader: 1\tReplicas: 1\tIsr: 1\tElr: \tLastKnownElr: ",
        "{described}"
    );
    assert_eq!(topics(&["--list"]).ok(), "a.b\n");
    assert_eq!(topics(&["--describe", "--under-replicated-partitions"]).ok(), "");
    topics(&["--alter", "--topic", "a.b", "--partitions", "3"]).ok();
    topics(&["--alter", "--topic", "a.b", "--partitions", "2"]).fails(1, "would not be an increase");
    topics(&["--delete", "--topic", "a.b"]).ok();
    topics(&["--delete", "--topic", "a.b"]).fails(1, "Topic 'a.b' does not exist as expected");
    topics(&["--delete", "--topic", "a.b", "--if-exists"]).ok();
    assert_eq!(topics(&["--list"]).ok(), "\n");
}

#[test]
fn what_cannot_be_is_said_in_one_sentence() {
    let broker = Broker::start();
    let cases = [
        (&["--create", "--topic", "x y"][..], "Topic name is invalid: 'x y'"),
        (&["--create", "--topic", "x", "--config", "foo=1"], "Unknown topic config name: foo"),
        (
            &["--create", "--topic", "x", "--config", "retention.ms=soon"],
            "Invalid value soon for configuration retention.ms",
        ),
        (&["--create", "--topic", "x", "--partitions", "0"], "The partitions must be greater than 0"),
        (&["--create", "--topic", "x", "--replication-factor", "3"], "only 1 broker(s) are registered"),
        (&["--create"], "Missing required argument \"[topic]\""),
        (&["--list", "--topix", "x"], "topix is not a recognized option (did you mean --topic?)"),
    ];
    for (args, sentence) in cases {
        let ran = broker.tool("kafka-topics.sh", args);
        assert!(ran.err.lines().count() + ran.out.lines().count() <= 2, "{ran:?}");
        ran.fails(1, sentence);
    }
}

#[test]
fn flags_of_other_times_and_documents() {
    let broker = Broker::start();
    let address = broker.address.as_str();
    run(&["kafka-topics", "--broker-list", address, "--list"], "").ok();
    run(&["kafka-topics", "–bootstrap-server", address, "—list"], "").ok();
    run(&["kafka-topics", "--zookeeper", "localhost:2181", "--list"], "").fails(1, "use --bootstrap-server");
    let help = run(&["kafka-topics", "--help"], "").ok();
    assert!(help.contains("--under-min-isr-partitions"), "{help}");
    run(&["kafka-topics"], "").fails(1, "--under-min-isr-partitions");
    assert!(run(&["kafka-topics", "--version"], "").ok().starts_with("4.3.1 "));
}

#[test]
fn configurations_of_topics_and_brokers() {
    let broker = Broker::start();
    broker.tool("kafka-topics", &["--create", "--topic", "t"]).ok();
    let configs = |args: &[&str]| broker.tool("kafka-configs", args);
    let set = ["--alter", "--topic", "t", "--add-config", "retention.ms=5000,cleanup.policy=[compact,delete]"];
    assert_eq!(configs(&set).ok(), "Completed updating config for topic t.\n");
    let shown = configs(&["--describe", "--entity-type", "topics", "--entity-name", "t"]).ok();
    assert!(
        shown.starts_with("Dynamic configs for topic t are:\n  cleanup.policy=compact,delete sensitive=false"),
        "{shown}"
    );
    assert!(
        shown.contains("retention.ms=5000 sensitive=false synonyms={DYNAMIC_TOPIC_CONFIG:retention.ms=5000"),
        "{shown}"
    );
    configs(&["--alter", "--topic", "t", "--delete-config", "retention.ms"]).ok();
    assert!(!configs(&["--describe", "--topic", "t"]).ok().contains("retention.ms"));
    assert!(configs(&["--describe", "--all", "--topic", "t"]).ok().contains("\n  segment.bytes="));
    assert!(configs(&["--describe", "--all", "--broker", "1"]).ok().contains("\n  num.partitions="));
    configs(&["--alter", "--topic", "t", "--add-config", "foo=1"])
        .fails(1, "InvalidConfigurationException: Unknown topic");
    assert_eq!(
        configs(&["--describe", "--topic", "nope"]).ok(),
        "The topic 'nope' doesn't exist and doesn't have dynamic config.\n"
    );
}

#[test]
fn what_the_broker_serves() {
    let broker = Broker::start();
    let shown = broker.tool("kafka-broker-api-versions", &[]).ok();
    assert!(
        shown.starts_with(&format!("{} (id: 1 rack: null isFenced: false) -> (\n\tProduce(0): ", broker.address)),
        "{shown}"
    );
    assert!(shown.contains("Fetch(1): 4 to 18 [usable: 18],\n"), "{shown}");
}
