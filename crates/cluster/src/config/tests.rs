use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::records::metadata::ConfigRecord;

use super::*;
use crate::image::{ConfigResource, MetadataImage};
use crate::record::MetadataRecord;

fn configs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn tables_are_sound() {
    let mut names = BTreeSet::new();
    for def in broker_configs() {
        assert!(names.insert(def.name), "{} is defined twice", def.name);
        if let Some(default) = def.default_value() {
            assert!(def.check(default).is_ok(), "default of {}", def.name);
        }
        assert!(!def.acts || !def.doc.is_empty(), "{} acts but says nothing", def.name);
    }
    for def in TOPIC_CONFIGS {
        for synonym in def.synonyms {
            assert!(names.contains(synonym.name), "{} of {}", synonym.name, def.name);
        }
        if let Some(default) = def.default_value() {
            assert_eq!(def.check(default).as_deref(), Ok(default), "{}", def.name);
        }
    }
    assert!(TOPIC_CONFIGS.is_sorted_by_key(|def| def.name));
}

#[test]
fn storage_knows_the_topic_configs_that_act_on_logs() {
    for def in TOPIC_CONFIGS.iter().filter(|def| def.acts && !def.is_internal()) {
        assert!(!def.doc.is_empty(), "{}", def.name);
    }
}

/// Sentences of Apache Kafka 4.3.1, as `kafka-topics.sh --create --config` prints them.
#[test]
fn bad_topic_configs_are_refused_in_kafkas_words() {
    for (name, value, sentence) in [
        ("retention.ms", "-5", "Invalid value -5 for configuration retention.ms: Value must be at least -1"),
        ("retention.ms", "abc", "Invalid value abc for configuration retention.ms: Not a number of type LONG"),
        ("segment.bytes", "10", "Invalid value 10 for configuration segment.bytes: Value must be at least 1048576"),
        (
            "segment.bytes",
            "99999999999",
            "Invalid value 99999999999 for configuration segment.bytes: Not a number of type INT",
        ),
        (
            "cleanup.policy",
            "foo",
            "Invalid value foo for configuration cleanup.policy: String must be one of: compact, delete",
        ),
        (
            "compression.type",
            "foo",
            "Invalid value foo for configuration compression.type: String must be one of: uncompressed, zstd, lz4, \
             snappy, gzip, producer",
        ),
        ("foo", "1", "Unknown topic config name: foo"),
        (
            "min.cleanable.dirty.ratio",
            "2",
            "Invalid value 2.0 for configuration min.cleanable.dirty.ratio: Value must be no more than 1",
        ),
        (
            "preallocate",
            "maybe",
            "Invalid value maybe for configuration preallocate: Expected value to be either true or false",
        ),
        (
            "compression.gzip.level",
            "0",
            "Invalid value 0 for configuration compression.gzip.level: Value must be between 1 and 9 or equal to -1",
        ),
        (
            "leader.replication.throttled.replicas",
            "abc",
            "Invalid value [abc] for configuration leader.replication.throttled.replicas: \
             leader.replication.throttled.replicas must be the literal '*' or a list of replicas in the following \
             format: [partitionId]:[brokerId],[partitionId]:[brokerId],...",
        ),
        (
            "remote.storage.enable",
            "true",
            "Tiered Storage functionality is disabled in the broker. Topic cannot be configured with remote log storage.",
        ),
    ] {
        let error = check_topic_configs(&configs(&[(name, value)]), |_| None).unwrap_err();
        assert_eq!(error.to_string(), sentence);
    }
    let lag = configs(&[("min.compaction.lag.ms", "5"), ("max.compaction.lag.ms", "4")]);
    assert_eq!(
        check_topic_configs(&lag, |_| None).unwrap_err().to_string(),
        "conflict topic config setting min.compaction.lag.ms (5) > max.compaction.lag.ms (4)"
    );
    let kept = configs(&[("remote.log.copy.disable", "true"), ("local.retention.ms", "5")]);
    assert_eq!(check_topic_configs(&kept, |_| None), Ok(()));
    let good =
        configs(&[("cleanup.policy", "compact, delete"), ("retention.ms", " 7 "), ("compression.type", "producer")]);
    assert_eq!(check_topic_configs(&good, |_| None), Ok(()));
}

#[test]
fn properties_are_read_as_java_does() {
    let text = "# comment\n! another\n\nnode.id=1\n log.dirs : /a,\\\n    /b\nkey value\\u0041\nempty\na\\=b=c\\\\\nnode.id=2\n";
    let properties = Properties::parse(text, "server.properties").unwrap();
    assert_eq!(properties.get("node.id"), Some("2"));
    assert_eq!(properties.get("log.dirs"), Some("/a,/b"));
    assert_eq!(properties.get("key"), Some("valueA"));
    assert_eq!(properties.get("empty"), Some(""));
    assert_eq!(properties.get("a=b"), Some("c\\"));
    assert_eq!(properties.entry("node.id").unwrap().origin, "server.properties line 10");
    assert_eq!(properties.entry("log.dirs").unwrap().origin, "server.properties line 5");
    assert_eq!(properties.iter().count(), 5);
    let broken = Properties::parse("a=\\u00g1", "f").unwrap_err();
    assert_eq!(broken.to_string(), "failed to read f line 1: malformed \\uXXXX encoding");
}

#[test]
fn settings_are_checked_and_typing_errors_named() {
    let properties = Properties::parse("node.id=3\nnum.partitons=4\nlistener.name.x=1\n", "f").unwrap();
    let (config, warnings) = StaticConfig::from_properties(&properties).unwrap();
    assert_eq!((config.int("node.id"), config.int("broker.id"), config.int("num.partitions")), (3, 3, 1));
    assert_eq!(
        warnings,
        [
            "f line 2: unknown key num.partitons is ignored; did you mean num.partitions?",
            "f line 3: unknown key listener.name.x is ignored"
        ]
    );
    let properties = Properties::parse("\nnum.partitions=0\n", "f").unwrap();
    assert_eq!(
        StaticConfig::from_properties(&properties).unwrap_err().to_string(),
        "failed to read f line 2: num.partitions=0 is not allowed: Value must be at least 1 (a INT of at least 1)"
    );
}

#[test]
fn keys_without_effect_are_named() {
    let text = "log.local.retention.ms=5\nnum.io.threads=8\nnum.network.threads=4\nssl.keystore.password=secret\nauthorizer.class.name=\n";
    let properties = Properties::parse(text, "f").unwrap();
    let (_, warnings) = StaticConfig::from_properties(&properties).unwrap();
    assert_eq!(
        warnings,
        [
            "f line 1: log.local.retention.ms=5 has no effect: this broker does not act on it and goes by its default, -2",
            "f line 3: num.network.threads=4 has no effect: this broker does not act on it and goes by its default, 3",
            "f line 4: ssl.keystore.password has no effect: this broker does not act on it",
        ]
    );
}

#[test]
fn numbers_that_are_none_are_refused() {
    for (name, value) in [
        ("log.cleaner.io.buffer.load.factor", "1.5"),
        ("log.cleaner.io.buffer.load.factor", "NaN"),
        ("log.cleaner.io.max.bytes.per.second", "-1"),
        ("log.cleaner.io.max.bytes.per.second", "0"),
        ("log.cleaner.io.max.bytes.per.second", "NaN"),
    ] {
        let refused = broker_config(name).unwrap().check(value);
        assert!(refused.is_err(), "{name}={value}");
    }
}

#[test]
fn environment_variables_map_to_keys() {
    let variables = [("KAFKA_LOG_DIRS", "/d"), ("KAFKA_HEAP_OPTS", "x"), ("HOME", "/"), ("KAFKA_A__B___C", "1")];
    let properties = env_properties(variables.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let found: Vec<(&str, &str)> = properties.iter().map(|p| (p.key.as_str(), p.value.as_str())).collect();
    assert_eq!(found, [("a_b-c", "1"), ("log.dirs", "/d")]);
}

fn set(image: &mut MetadataImage, resource: &ConfigResource, name: &str, value: &str) {
    let record: MetadataRecord = ConfigRecord {
        resource_type: resource.kind.code(),
        resource_name: resource.name.clone(),
        name: name.to_owned(),
        value: Some(value.to_owned()),
    }
    .into();
    image.apply(&record).unwrap();
}

/// As `kafka-configs.sh --describe --all` of Apache Kafka 4.3.1 shows them.
#[test]
fn values_come_from_where_kafka_takes_them() {
    let mut config = StaticConfig::default();
    let mut image = MetadataImage::empty();
    let resolve = |config: &StaticConfig, image: &MetadataImage, name: &str| {
        let own = image.configs(&ConfigResource::topic("t")).cloned();
        let resolved = config.resolve_topic(image, 1, own.as_ref(), topic_config(name).unwrap());
        let synonyms = resolved.synonyms.iter().map(|s| format!("{:?}:{}={}", s.source, s.name, s.value));
        (resolved.value.unwrap(), resolved.source, synonyms.collect::<Vec<_>>())
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(resolve(&config, &image, "segment.ms"), ("604800000".into(), ConfigSource::Default, none.clone()));
    assert_eq!(resolve(&config, &image, "retention.ms"), ("604800000".into(), ConfigSource::Default, none));
    config.set("log.retention.hours", "1");
    assert_eq!(resolve(&config, &image, "retention.ms").0, "3600000");
    config.set("log.retention.minutes", "-1");
    assert_eq!(resolve(&config, &image, "retention.ms").0, "-1");
    set(&mut image, &ConfigResource::all_brokers(), "log.retention.ms", "5000");
    assert_eq!(
        resolve(&config, &image, "retention.ms"),
        (
            "5000".into(),
            ConfigSource::DynamicDefaultBroker,
            vec![
                "DynamicDefaultBroker:log.retention.ms=5000".into(),
                "StaticBroker:log.retention.minutes=-1".into(),
                "StaticBroker:log.retention.hours=1".into(),
                "Default:log.retention.hours=168".into(),
            ]
        )
    );
    set(&mut image, &ConfigResource::topic("t"), "retention.ms", "100000");
    let (value, source, synonyms) = resolve(&config, &image, "retention.ms");
    assert_eq!((value.as_str(), source, synonyms.len()), ("100000", ConfigSource::Topic, 5));
    assert_eq!(
        resolve(&config, &image, "cleanup.policy"),
        ("delete".into(), ConfigSource::Default, vec!["Default:log.cleanup.policy=delete".into()])
    );
    assert_eq!(config.topic_values(&image, 1, "t").get("retention.ms").map(String::as_str), Some("100000"));
}
