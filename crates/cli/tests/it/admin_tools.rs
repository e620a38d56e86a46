//! The administrative tools against a broker of ours.

use std::path::Path;

use crate::broker::{Broker, Ran, run};

fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A broker with topic `t` of two partitions, ten records in the first.
fn filled() -> Broker {
    let broker = Broker::start();
    broker.tool("kafka-topics", &["--create", "--topic", "t", "--partitions", "1"]).ok();
    let lines: String = (0..10).map(|n| format!("{n}\n")).collect();
    broker.tool_with_input("kafka-console-producer", &["--topic", "t"], &lines).ok();
    broker.tool("kafka-topics", &["--alter", "--topic", "t", "--partitions", "2"]).ok();
    broker
}

#[test]
fn records_are_deleted_up_to_an_offset() {
    let broker = filled();
    let dir = tempfile::tempdir().unwrap();
    let delete = |text: &str| -> Ran {
        let path = file(dir.path(), "offsets.json", text);
        broker.tool("kafka-delete-records", &["--offset-json-file", &path])
    };
    let said = delete(r#"{"partitions":[{"topic":"t","partition":0,"offset":3}],"version":1}"#).ok();
    let begin = "Executing records delete operation\nRecords delete operation completed:\n";
    assert_eq!(said, format!("{begin}partition: t-0\tlow_watermark: 3\n"));
    assert_eq!(broker.tool("kafka-get-offsets", &["--topic", "t", "--time", "earliest"]).ok(), "t:0:3\nt:1:0\n");
    // What can be done is done, also beside what cannot.
    let both = r#"{"partitions":[{"topic":"t","partition":0,"offset":4},{"topic":"none","partition":0,"offset":1}]}"#;
    let said = delete(both).ok();
    assert!(said.contains("partition: t-0\tlow_watermark: 4\n"), "{said}");
    assert!(said.contains("partition: none-0\terror: org.apache.kafka.common.errors.UnknownTopic"), "{said}");
    delete(r#"{"partitions":[{"topic":"t","partition":0,"offset":100}]}"#).fails(0, "OffsetOutOfRangeException");
    delete(r#"{"partitions":[{"topic":"t"}]}"#).fails(1, "there is no \"partition\" in {\"topic\":\"t\"}");
    delete("nonsense").fails(1, "The input string is not a valid JSON: ");
}

#[test]
fn log_directories_and_their_partitions() {
    let broker = filled();
    let dirs = |args: &[&str]| broker.tool("kafka-log-dirs", args);
    let said = dirs(&["--describe", "--topic-list", "t"]).ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[1], "Received log directory information from brokers 1");
    let partition = "\"partitions\":[{\"partition\":\"t-0\",\"size\":";
    assert!(lines[2].starts_with(&format!("{{\"brokers\":[{{\"broker\":1,\"logDirs\":[{{{partition}")), "{said}");
    assert!(lines[2].ends_with("\"version\":1}"), "{said}");
    dirs(&["--describe", "--broker-list", "1,7"])
        .fails(1, "do not exist from --broker-list: 7. Current existent brokers: 1");
    dirs(&["--describe", "--broker-list", "localhost:9092"]).fails(1, "addresses go to --bootstrap-server");
}

#[test]
fn leaders_are_elected() {
    let broker = filled();
    let elect = |args: &[&str]| broker.tool("kafka-leader-election", args);
    let one = ["--election-type", "preferred", "--topic", "t", "--partition"];
    assert_eq!(elect(&[&one[..], &["0"]].concat()).ok(), "Valid replica already elected for partitions t-0\n");
    elect(&[&one[..], &["9"]].concat()).fails(1, "1 replica(s) could not be elected");
    assert_eq!(elect(&["--election-type", "unclean", "--all-topic-partitions"]).ok(), "");
    elect(&["--election-type", "any", "--all-topic-partitions"])
        .fails(1, "Cannot parse argument 'any' of option election-type");
}

#[test]
fn partitions_are_reassigned_to_where_they_are() {
    let broker = filled();
    let dir = tempfile::tempdir().unwrap();
    let reassign = |args: &[&str]| broker.tool("kafka-reassign-partitions", args);
    let topics = file(dir.path(), "topics.json", r#"{"topics":[{"topic":"t"}],"version":1}"#);
    let said = reassign(&["--generate", "--topics-to-move-json-file", &topics, "--broker-list", "1"]).ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        (lines[0], lines[3]),
        ("Current partition replica assignment", "Proposed partition reassignment configuration")
    );
    let proposed = "{\"version\":1,\"partitions\":[{\"topic\":\"t\",\"partition\":0,\"replicas\":[1],\"log_dirs\":[\"any\"]},\
                    {\"topic\":\"t\",\"partition\":1,\"replicas\":[1],\"log_dirs\":[\"any\"]}]}";
    assert_eq!(lines[4], proposed);
    // The rollback that it prints names the directories, and is itself a plan.
    let plan = file(dir.path(), "plan.json", lines[1]);
    let plan = ["--reassignment-json-file", &plan];
    let verified = reassign(&[&["--verify"], &plan[..]].concat()).ok();
    let lines: Vec<&str> = verified.lines().collect();
    assert_eq!(lines[1], "Reassignment of partition t-0 is completed.");
    assert_eq!(lines[3], "Reassignment of replica t-0-1 completed successfully.");
    assert_eq!(
        &lines[5..],
        ["Clearing broker-level throttles on broker 1", "Clearing topic-level throttles on topic t"]
    );
    assert_eq!(reassign(&["--list"]).ok(), "No partition reassignments found.\n");
    let cancelled = reassign(&[&["--cancel", "--preserve-throttles"], &plan[..]].concat()).ok();
    assert!(cancelled.starts_with("None of the specified partition reassignments are active.\n"), "{cancelled}");
    let away = file(dir.path(), "away.json", r#"{"partitions":[{"topic":"t","partition":0,"replicas":[7]}]}"#);
    reassign(&["--execute", "--reassignment-json-file", &away]).fails(1, "Error: Unknown broker id 7");
}

#[test]
fn the_cluster_and_its_quorum() {
    let broker = Broker::start();
    let cluster = |args: &[&str]| broker.tool("kafka-cluster", args);
    let id = run(&["kafka-cluster", "cluster-id", "-b", &broker.address], "").ok();
    assert!(id.starts_with("Cluster ID: ") && id.trim().len() == 34, "{id}");
    assert_eq!(cluster(&["cluster-id"]).ok(), id);
    let endpoints = cluster(&["list-endpoints"]).ok();
    let (host, port) = broker.address.rsplit_once(':').unwrap();
    let expected = format!("{:10} {host} {port:10} {:10} {:10} {:15}", "1", "null", "unfenced", "broker");
    assert_eq!(endpoints.lines().nth(1), Some(expected.as_str()));
    let quorum = |args: &[&str]| broker.tool("kafka-metadata-quorum", args);
    let status = quorum(&["describe", "--status"]).ok();
    let id = id.trim().trim_start_matches("Cluster ID: ");
    assert!(status.starts_with(&format!("ClusterId:              {id}\nLeaderId:               1\n")), "{status}");
    assert!(status.contains("\nCurrentVoters:          [{\"id\": 1"), "{status}");
    let table = quorum(&["describe", "--replication", "--human-readable"]).ok();
    assert!(
        table.starts_with("NodeId\tDirectoryId") && table.contains(" ms ago") && table.ends_with("\tLeader\t\n"),
        "{table}"
    );
    quorum(&["describe"]).fails(1, "One of --status or --replication must be specified with describe sub-command");
    run(&["kafka-metadata-quorum", "--bootstrap-controller", &broker.address, "describe", "--status"], "")
        .fails(1, "sent to an endpoint of type BROKER, but we wanted an endpoint of type CONTROLLER");
    let features = broker.tool("kafka-features", &["describe"]).ok();
    assert!(
        features.contains("Feature: metadata.version                          SupportedMinVersion: 3.3-IV3"),
        "{features}"
    );
    run(&["kafka-features", "describe"], "")
        .fails(1, "You must specify either --bootstrap-controller or --bootstrap-server");
    assert!(run(&["kafka-features", "version-mapping"], "").ok().starts_with("metadata.version=30 (4.3-IV0)\n"));
}

#[test]
fn transactions_that_are_not_there() {
    let broker = filled();
    let transactions = |args: &[&str]| broker.tool("kafka-transactions", args);
    assert_eq!(transactions(&["list"]).ok(), "TransactionalId\tCoordinator\tProducerId\tTransactionState\t\n");
    transactions(&["describe", "--transactional-id", "x"]).fails(
        1,
        "Failed to describe transaction state of transactional-id `x`: DescribeTransactions request for transactionalId \
         `x` failed because the ID could not be found. Enable debug logging for additional detail.\n",
    );
    let producers = transactions(&["describe-producers", "--topic", "t", "--partition", "0"]).ok();
    let row: Vec<&str> = producers.lines().nth(1).unwrap().split('\t').map(str::trim).collect();
    assert_eq!((row[1], row[2], row[5]), ("0", "-1", "None"), "{producers}");
    let abort = ["abort", "--topic", "t", "--partition", "0", "--start-offset", "3"];
    transactions(&abort).fails(1, "Could not find any open transactions starting at offset 3 on partition t-0");
    assert!(transactions(&["find-hanging", "--broker-id", "1"]).ok().starts_with("Topic\tPartition\tProducerId"));
    // A producer's id and epoch are made, which then have a state.
    transactions(&["forceTerminateTransaction", "--transactionalId", "x"]).ok();
    let state = transactions(&["describe", "--transactional-id", "x"]).ok();
    assert!(state.contains("\tEmpty           \t"), "{state}");
}

#[test]
fn a_streams_application_begins_anew() {
    let broker = filled();
    let app = ["--application-id", "app", "--input-topics", "t"];
    let reset = |args: &[&str]| broker.tool("kafka-streams-application-reset", &[&app[..], args].concat());
    broker.tool("kafka-topics", &["--create", "--topic", "app-store-changelog"]).ok();
    broker.tool("kafka-topics", &["--create", "--topic", "app-output"]).ok();
    let said = reset(&["--to-offset", "4", "--dry-run"]).ok();
    assert!(said.contains("\nDeleting inferred internal topics [app-store-changelog]\nDone.\n"), "{said}");
    assert_eq!(
        broker.tool("kafka-topics", &["--list"]).ok(),
        "__consumer_offsets\napp-output\napp-store-changelog\nt\n"
    );
    let said = reset(&["--to-offset", "4"]).ok();
    assert!(said.contains("\nTopic: t Partition: 0 Offset: 4\n"), "{said}");
    // The second partition is empty.
    assert!(said.contains("\nNew offset (4) is higher than latest offset. Value will be set to 0\n"), "{said}");
    assert_eq!(broker.tool("kafka-topics", &["--list"]).ok(), "__consumer_offsets\napp-output\nt\n");
    assert!(reset(&["--shift-by", "-1"]).ok().contains("\nTopic: t Partition: 0 Offset: 3\n"));
    reset(&["--intermediate-topics", "none"]).fails(1, "Following intermediate topics are not found, skipping them");
    let member = Member::start(&broker);
    reset(&[]).fails(1, "Consumer group 'app' is still active and has following members: [");
    let said = reset(&["--force"]).ok();
    assert!(said.starts_with("Force deleting all active members in the group: app\n"), "{said}");
    drop(member);
}

/// A consumer of group `app`, started and in it.
struct Member(std::process::Child);

impl Member {
    fn start(broker: &Broker) -> Member {
        let child = std::process::Command::new(crate::broker::CAUDAL)
            .args(["kafka-console-consumer", "--bootstrap-server", &broker.address, "--topic", "t", "--group", "app"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let member = Member(child);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let shown = broker.tool("kafka-consumer-groups", &["--describe", "--group", "app", "--state"]);
            if shown.out.contains(" Stable ") {
                return member;
            }
            assert!(std::time::Instant::now() < deadline, "{shown:?}");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn groups_of_all_types() {
    let broker = filled();
    let groups = |args: &[&str]| broker.tool("kafka-groups", args);
    let header = format!("{:20} {:20} {:20}\n", "GROUP", "TYPE", "PROTOCOL");
    assert_eq!(groups(&["--list"]).ok(), header);
    let member = Member::start(&broker);
    let row = format!("{:20} {:20} {:20} \n", "app", "Classic", "consumer");
    assert_eq!(groups(&["--list", "--consumer"]).ok(), format!("{header}{row}"));
    assert_eq!(groups(&["--list", "--share"]).ok(), header);
    groups(&["--list", "--group-type", "odd"]).fails(1, "--group-type must be a valid group type.");
    drop(member);
}

#[test]
fn subscriptions_of_client_metrics() {
    let broker = Broker::start();
    let metrics = |args: &[&str]| broker.tool("kafka-client-metrics", args);
    let said = metrics(&["--alter", "--name", "m", "--metrics", "a.,b.", "--interval", "1000"]).ok();
    assert_eq!(said, "Altered client metrics config for m.\n");
    assert_eq!(metrics(&["--list"]).ok(), "m\n");
    let said = metrics(&["--describe", "--name", "m"]).ok();
    assert!(said.contains("\n  interval.ms=1000\n") && said.contains("\n  metrics=a.,b.\n"), "{said}");
    assert_eq!(metrics(&["--delete", "--name", "m"]).ok(), "Deleted client metrics config for m.\n");
    metrics(&["--alter", "--name", "m", "--generate-name"])
        .fails(1, "One of --name or --generate-name must be specified with --alter.");
}

#[test]
fn help_is_no_failure_and_old_flags_have_a_name() {
    let tools = [
        "kafka-transactions",
        "kafka-delete-records",
        "kafka-log-dirs",
        "kafka-features",
        "kafka-metadata-quorum",
        "kafka-leader-election",
        "kafka-reassign-partitions",
        "kafka-cluster",
        "kafka-groups",
        "kafka-client-metrics",
        "kafka-streams-application-reset.sh",
        "kafka-topics",
        "kafka-consumer-groups",
        "kafka-configs",
    ];
    for tool in tools {
        let help = run(&[tool, "--help"], "").ok();
        assert!(help.contains("--help") || help.contains("[-h]"), "{tool}: {help}");
        assert!(!help.contains("zookeeper"), "{tool}: {help}");
    }
    for args in [
        &["kafka-reassign-partitions", "--zookeeper", "h:2181", "--list"][..],
        &["kafka-transactions", "list", "--zookeeper", "h:2181"],
    ] {
        let ran = run(args, "");
        assert!(ran.err.contains("use --bootstrap-server") || ran.out.contains("use --bootstrap-server"), "{ran:?}");
        assert_eq!(ran.code, Some(1), "{ran:?}");
    }
}

#[test]
fn quotas_and_credentials() {
    let broker = Broker::start();
    let configs = |args: &[&str]| broker.tool("kafka-configs", args);
    let set = ["--alter", "--user", "u", "--add-config", "producer_byte_rate=1024"];
    assert_eq!(configs(&set).ok(), "Completed updating config for user u.\n");
    assert_eq!(
        configs(&["--describe", "--user", "u"]).ok(),
        "Quota configs for user-principal 'u' are producer_byte_rate=1024.0\n"
    );
    configs(&["--alter", "--user", "u", "--delete-config", "producer_byte_rate"]).ok();
    assert_eq!(configs(&["--describe", "--user", "u"]).ok(), "");
    let scram = "SCRAM-SHA-256=[iterations=8192,password=secret]";
    configs(&["--alter", "--user", "u", "--add-config", scram]).ok();
    assert_eq!(
        configs(&["--describe", "--user", "u"]).ok(),
        "SCRAM credential configs for user-principal 'u' are SCRAM-SHA-256=iterations=8192\n"
    );
    configs(&["--alter", "--client", "c", "--add-config", scram])
        .fails(1, "Only quota configs can be added for 'clients'");
}

#[test]
fn features_are_changed_and_refused() {
    let broker = Broker::start();
    let features = |args: &[&str]| broker.tool("kafka-features", args);
    let said = features(&["upgrade", "--feature", "group.version=1", "--dry-run"]).ok();
    assert_eq!(said, "group.version can be upgraded to 1.\n");
    features(&["upgrade", "--feature", "nope=1"]).fails(1, "Could not upgrade nope to 1. ");
}
