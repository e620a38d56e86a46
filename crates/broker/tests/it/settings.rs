//! Settings of Apache Kafka's that this broker cannot honour, and directories that belong to other clusters.

use caudal_broker::{BrokerConfig, StartError};
use caudal_cluster::config::Properties;
use caudal_protocol::messages::metadata_request::MetadataRequest;
use caudal_protocol::messages::metadata_response::MetadataResponse;

use crate::produce::{batch, produce};
use crate::raw::{RawClient, TestBroker};

fn read(text: &str) -> Result<(BrokerConfig, Vec<String>), String> {
    let properties = Properties::parse(text, "server.properties").unwrap();
    BrokerConfig::from_properties(&properties).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    read(text).unwrap_err()
}

#[test]
fn a_node_of_another_quorum_is_refused() {
    let cases = [
        ("process.roles=broker", "line 1: process.roles=broker"),
        ("process.roles=controller", "line 1: process.roles=controller"),
        ("node.id=1\ncontroller.quorum.voters=1@a:9093,2@b:9093", "line 2: controller.quorum.voters=1@a:9093,2@b:9093"),
        ("node.id=1\ncontroller.quorum.voters=2@b:9093", "controller.quorum.voters=2@b:9093"),
        ("log.dirs=/data/a,/data/b,/data/a/", "it names /data/a/ twice"),
        ("log.retention.hours=0", "line 1: log.retention.hours=0 is not allowed: it must be at least 1"),
        ("log.retention.hours=4\nlog.retention.ms=0", "log.retention.ms=0 is not allowed"),
        ("log.roll.ms=0", "log.roll.ms=0 is not allowed"),
        (
            "log.cleaner.min.compaction.lag.ms=2\nlog.cleaner.max.compaction.lag.ms=1",
            "log.cleaner.min.compaction.lag.ms=2",
        ),
        ("max.connections.per.ip=0", "it can be 0 only if max.connections.per.ip.overrides is set"),
        ("create.topic.policy.class.name=a.B", "create.topic.policy.class.name=a.B"),
        ("alter.config.policy.class.name=a.B", "alter.config.policy.class.name=a.B"),
        ("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer", "no authorizer is served"),
        ("authorizer.class.name=a.B\nallow.everyone.if.no.acl.found=true", "no authorizer is served"),
    ];
    for (text, said) in cases {
        let error = refused(text);
        assert!(error.starts_with("failed to read server.properties line") && error.contains(said), "{text}: {error}");
    }
}

/// The keys of a broker that test suites are run against.
#[test]
fn a_node_that_is_all_by_itself_is_taken() {
    let text = "process.roles=broker,controller\nnode.id=3\ncontroller.quorum.voters=3@127.0.0.1:39093\n\
                listeners=PLAINTEXT://127.0.0.1:39092,CONTROLLER://127.0.0.1:39093\n\
                controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\n\
                log.dirs=/data/a\nmetadata.log.dir=/data/a/\n\
                authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                super.users=User:ANONYMOUS\nallow.everyone.if.no.acl.found=true\n";
    let (config, warnings) = read(text).unwrap();
    assert_eq!(config.node_id, 3);
    assert!(
        warnings.iter().any(|w| w.contains("authorizer.class.name=") && w.contains("has no effect")),
        "{warnings:?}"
    );
}

#[test]
fn log_directories_are_read() {
    let dirs = |text: &str| {
        let config = read(text).unwrap().0;
        let all = config.partition_dirs().iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" ");
        (config.log_dir.display().to_string(), all)
    };
    let pair = |metadata: &str, all: &str| (metadata.to_owned(), all.to_owned());
    assert_eq!(dirs("log.dirs=/data/a, /data/b"), pair("/data/a", "/data/a /data/b"));
    assert_eq!(dirs("log.dirs=/data/a,/data/b\nmetadata.log.dir=/data/b/"), pair("/data/b", "/data/a /data/b"));
    assert_eq!(dirs("log.dirs=/data/a\nmetadata.log.dir=/data/m"), pair("/data/m", "/data/a"));
}

#[test]
fn logs_without_their_metadata_stay_where_they_are() {
    let broker = TestBroker::start();
    broker.create_topic("t", 1);
    assert_eq!(produce(&mut broker.connect(), "t", 0, batch(3, 10)).error_code, 0);
    let dir = broker.end(true);
    std::fs::rename(dir.path().join("__cluster_metadata-0"), dir.path().join("elsewhere")).unwrap();
    let path = dir.path().to_owned();
    let mut config = BrokerConfig::new(&path);
    config.listen = vec![([127, 0, 0, 1], 0).into()];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime.block_on(caudal_broker::Broker::start(config)).unwrap_err();
    assert!(matches!(error, StartError::NoMetadata { logs: 1, .. }), "{error}");
    assert!(path.join("t-0").is_dir());
}

#[test]
fn each_listener_is_told_its_own_address() {
    let text = "listeners=INSIDE://127.0.0.1:0,OUTSIDE://127.0.0.1:0,CONTROLLER://127.0.0.1:9093\n\
                listener.security.protocol.map=INSIDE:PLAINTEXT,OUTSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
                advertised.listeners=CONTROLLER://c:1,OUTSIDE://outside.example:19092,INSIDE://inside.example:9092\n";
    let (read, _) = read(text).unwrap();
    let broker = TestBroker::start_with(|config| {
        config.listen = read.listen.clone();
        config.listener_names = read.listener_names.clone();
        config.advertised = read.advertised.clone();
    });
    let bound = broker.context().bound.clone();
    for (address, host) in bound.iter().zip(["inside.example", "outside.example"]) {
        let mut client = RawClient::connect(*address);
        let told: MetadataResponse = client.ask(&MetadataRequest { topics: None, ..Default::default() }, 12);
        assert_eq!(told.brokers[0].host, host);
    }
    let image = broker.context().metadata.image();
    let registered = &image.broker(1).unwrap().end_points;
    let registered: Vec<_> = registered.iter().map(|e| (e.name.as_str(), e.host.as_str(), e.port)).collect();
    assert_eq!(registered, [("INSIDE", "inside.example", 9092), ("OUTSIDE", "outside.example", 19092)]);
}

#[test]
fn addresses_that_lead_nowhere_are_not_advertised() {
    let listeners = "listeners=PLAINTEXT://127.0.0.1:9092\nadvertised.listeners=";
    for (advertised, said) in [
        ("OTHER://a:1", "listener OTHER is not in listeners"),
        ("PLAINTEXT://0.0.0.0:9092", "no host and port"),
        ("PLAINTEXT://a:0", "no host and port"),
        ("CONTROLLER://a:1", "names no listener for clients"),
    ] {
        let error = refused(&format!("{listeners}{advertised}"));
        assert!(error.contains(said), "{error}");
    }
}
