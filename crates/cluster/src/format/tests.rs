use caudal_storage::RealDisk;

use super::*;

const CLUSTER: &str = "f2roSzM5RQe0FMjtU7I2Zg";

fn config(dirs: &[&Path], more: &[(&str, &str)]) -> StaticConfig {
    let mut config = StaticConfig::default();
    let dirs: Vec<String> = dirs.iter().map(|d| d.display().to_string()).collect();
    config.set("log.dirs", dirs.join(","));
    for (key, value) in [
        ("node.id", "1"),
        ("process.roles", "broker,controller"),
        ("controller.listener.names", "CONTROLLER"),
        ("listeners", "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"),
    ]
    .iter()
    .chain(more)
    {
        config.set(*key, *value);
    }
    config
}

fn options(quorum: Quorum) -> FormatOptions {
    FormatOptions { cluster_id: CLUSTER.into(), quorum, ..FormatOptions::default() }
}

/// What `kafka-storage.sh` of Apache Kafka 4.3.1 prints.
#[test]
fn formatting_says_what_kafka_says() {
    let root = tempfile::tempdir().unwrap();
    let (d1, d2) = (root.path().join("d1"), root.path().join("d2"));
    let config = config(&[&d1, &d2], &[]);
    let (lines, well) = info(&RealDisk, &config);
    assert!(!well);
    assert_eq!(
        lines,
        [
            "Found problems:".to_owned(),
            format!("  {} does not exist", d1.display()),
            format!("  {} does not exist", d2.display()),
            String::new()
        ]
    );
    let refused = format(&RealDisk, &config, &options(Quorum::Configured)).unwrap_err().to_string();
    assert_eq!(
        refused,
        "Because controller.quorum.voters is not set on this controller, you must specify one of the following: \
         --standalone, --initial-controllers, or --no-initial-controllers."
    );
    let lines = format(&RealDisk, &config, &options(Quorum::Standalone)).unwrap();
    assert_eq!(
        lines,
        [
            "Bootstrap metadata: BootstrapMetadata(records=[ApiMessageAndVersion(FeatureLevelRecord(\
             name='metadata.version', featureLevel=30) at version 0), ApiMessageAndVersion(FeatureLevelRecord(\
             name='eligible.leader.replicas.version', featureLevel=1) at version 0), ApiMessageAndVersion(\
             FeatureLevelRecord(name='group.version', featureLevel=1) at version 0), ApiMessageAndVersion(\
             FeatureLevelRecord(name='share.version', featureLevel=1) at version 0), ApiMessageAndVersion(\
             FeatureLevelRecord(name='streams.version', featureLevel=1) at version 0), ApiMessageAndVersion(\
             FeatureLevelRecord(name='transaction.version', featureLevel=2) at version 0)], \
             metadataVersionLevel=30, source=format command)"
                .to_owned(),
            format!("Formatting dynamic metadata voter directory {} with metadata.version 4.3-IV0.", d1.display()),
            format!("Formatting data directory {} with metadata.version 4.3-IV0.", d2.display()),
        ]
    );
    let again = format(&RealDisk, &config, &options(Quorum::Standalone)).unwrap_err().to_string();
    assert_eq!(
        again,
        format!(
            "Log directory {} is already formatted. Use --ignore-formatted to ignore this directory and format the \
             others.",
            d1.display()
        )
    );
    let ignore = FormatOptions { ignore_formatted: true, ..options(Quorum::Standalone) };
    let lines = format(&RealDisk, &config, &ignore).unwrap();
    assert_eq!(lines, ["All of the log directories are already formatted."]);
    let (lines, well) = info(&RealDisk, &config);
    assert!(
        well && lines.iter().any(|l| l.starts_with(&format!("Found metadata: {{cluster.id={CLUSTER}, directory.id=")))
    );
    let other = FormatOptions { cluster_id: "otherU".into(), ..ignore };
    let message = format(&RealDisk, &config, &other).unwrap_err().to_string();
    let file = d1.join("meta.properties");
    assert_eq!(message, format!("Invalid cluster.id in: {}. Expected otherU, but read {CLUSTER}", file.display()));
}

#[test]
fn a_formatted_directory_holds_what_kafka_leaves_there() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("d");
    format(&RealDisk, &config(&[&dir], &[]), &options(Quorum::Standalone)).unwrap();
    let meta = MetaProperties::read(&RealDisk, &dir).unwrap().unwrap();
    let size = |name: &str| std::fs::metadata(dir.join(name)).unwrap().len();
    assert_eq!(size(BOOTSTRAP_FILE), 411, "the size that Kafka 4.3.1 writes");
    let partition = dir.join("__cluster_metadata-0");
    let contents = snapshot::read(&RealDisk, &partition, SnapshotId::BOOTSTRAP).unwrap();
    let voters = contents.voters.unwrap().voters;
    let [voter] = voters.as_slice() else { panic!("one voter, not {voters:?}") };
    assert_eq!((voter.voter_id, Some(voter.voter_directory_id)), (1, meta.directory_id));
    assert_eq!(voter.endpoints.first().map(|e| (e.host.as_str(), e.port)), Some(("127.0.0.1", 9093)));
    assert_eq!(bootstrap_features(&RealDisk, &dir).unwrap(), initial_features(None, &[], true).unwrap().records);

    let fixed = root.path().join("static");
    let config = config(&[&fixed], &[("controller.quorum.voters", "1@localhost:9093")]);
    let refused = format(&RealDisk, &config, &options(Quorum::Standalone)).unwrap_err().to_string();
    assert!(refused.starts_with("You cannot specify controller.quorum.voters and format the node with"), "{refused}");
    let lines = format(&RealDisk, &config, &options(Quorum::Configured)).unwrap();
    assert!(lines.iter().any(|l| l.starts_with("Formatting metadata directory ")), "{lines:?}");
    assert!(!fixed.join("__cluster_metadata-0").exists());

    let up = root.path().join("up");
    let meta = format_standalone(&RealDisk, &up, 7).unwrap();
    assert_eq!(meta.node_id, 7);
    assert!(up.join("__cluster_metadata-0/00000000000000000000-0000000000.checkpoint").exists());
}

#[test]
fn features_are_settled_as_kafka_does() {
    let levels = |release: Option<&str>, asked: &[(&str, i16)]| {
        let asked: Vec<(String, i16)> = asked.iter().map(|(n, l)| ((*n).to_owned(), *l)).collect();
        let features = initial_features(release, &asked, true).map_err(|e| e.to_string())?;
        Ok::<_, String>(features.records.iter().map(|r| format!("{}={}", r.name, r.feature_level)).collect::<Vec<_>>())
    };
    let old = levels(Some("4.0"), &[]).unwrap();
    assert_eq!(old, ["metadata.version=25", "group.version=1", "transaction.version=2"]);
    assert_eq!(levels(Some("3.9-IV0"), &[("group.version", 1)]).unwrap(), ["metadata.version=21", "group.version=1"]);
    for (release, asked, sentence) in [
        (
            None,
            ("foo", 1),
            "Unsupported feature: foo. Supported features are: eligible.leader.replicas.version, group.version, \
             kraft.version, share.version, streams.version, transaction.version",
        ),
        (None, ("group.version", 9), "No feature:group.version with feature level 9"),
        (
            Some("4.0"),
            ("metadata.version", 25),
            "Use --release-version instead of --feature metadata.version=X to avoid ambiguity.",
        ),
    ] {
        assert_eq!(levels(release, &[asked]).unwrap_err(), sentence);
    }
    assert!(levels(Some("9.9"), &[]).unwrap_err().starts_with("Unknown metadata.version '9.9'. Supported"));
    assert!(levels(None, &[("kraft.version", 0)]).unwrap_err().starts_with("Cannot set kraft.version to 0 if"));
    let parse = |text: &str| parse_feature(text).map_err(|e| e.to_string());
    assert_eq!(parse("group.version=1"), Ok(("group.version".to_owned(), 1)));
    assert_eq!(
        parse("group.version"),
        Err("Can't parse feature=level string group.version: equals sign not found.".to_owned())
    );
}

#[test]
fn initial_controllers_are_read() {
    let good = "1@localhost:9093:JEXY6aqzQY-32P5TStzaFg,2@[::1]:9094:MvDxzVmcRsaTz33bUuRU6A";
    let list = InitialController::parse_list(good).unwrap();
    assert_eq!(
        list.iter().map(|c| (c.id, c.host.as_str(), c.port)).collect::<Vec<_>>(),
        [(1, "localhost", 9093), (2, "::1", 9094)]
    );
    for (text, sentence) in [
        ("", "No voters given."),
        ("1", "No @ found in dynamic voter string."),
        ("@x", "Invalid @ at beginning of dynamic voter string."),
        ("a@x", "Failed to parse node id in dynamic voter string."),
        ("1@localhost", "No colon following hostname could be found."),
        ("1@localhost:9093", "No colon following port could be found."),
        ("1@localhost:99999:x", "Invalid port 99999 in dynamic voter string."),
        ("1@localhost:9093:x", "Failed to parse directory ID in dynamic voter string."),
    ] {
        assert_eq!(InitialController::parse_list(text).unwrap_err().to_string(), sentence);
    }
}
