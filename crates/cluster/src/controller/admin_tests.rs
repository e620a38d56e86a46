//! Reassignments, features, quotas and credentials.

use std::collections::BTreeSet;

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::alter_client_quotas_request::{EntityData, EntryData, OpData};
use caudal_protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use caudal_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use caudal_protocol::messages::update_features_request::FeatureUpdateKey;
use caudal_protocol::messages::*;
use caudal_protocol::records::metadata::{ConfigRecord, PartitionChangeRecord, RegisterBrokerRecord};

use super::tests::{apply, started, topic};
use super::*;
use crate::image::NO_LEADER;

fn reassign(image: &mut MetadataImage, target: Option<&[i32]>, allow: bool) -> i16 {
    let partitions = vec![ReassignablePartition { partition_index: 0, replicas: target.map(<[i32]>::to_vec) }];
    let request = AlterPartitionReassignmentsRequest {
        allow_replication_factor_change: allow,
        topics: vec![ReassignableTopic { name: "t".into(), partitions }],
        ..Default::default()
    };
    let Decision { records, response } = alter_partition_reassignments(image, &request);
    apply(image, &records);
    response.responses[0].partitions[0].error_code
}

fn with_topic() -> MetadataImage {
    let mut image = started();
    let config = StaticConfig::default();
    let request = CreateTopicsRequest { topics: vec![topic("t", 1, 1)], ..Default::default() };
    let created = create_topics(&image, &Node { node_id: 1, config: &config }, &request);
    apply(&mut image, &created.records);
    image
}

#[test]
fn one_node_keeps_its_replicas() {
    let mut image = with_topic();
    let before = image.topic("t").cloned();
    assert_eq!(reassign(&mut image, Some(&[1]), true), 0);
    assert_eq!(reassign(&mut image, Some(&[2]), true), ErrorCode::InvalidReplicaAssignment.code());
    assert_eq!(reassign(&mut image, Some(&[1, 1]), true), ErrorCode::InvalidReplicaAssignment.code());
    assert_eq!(reassign(&mut image, Some(&[]), true), ErrorCode::InvalidReplicaAssignment.code());
    assert_eq!(reassign(&mut image, None, true), ErrorCode::NoReassignmentInProgress.code());
    assert_eq!(image.topic("t").cloned(), before);
}

#[test]
fn replicas_of_a_broker_that_is_gone_can_be_given_up_and_asked_for_again() {
    let mut image = with_topic();
    let gone = RegisterBrokerRecord { broker_id: 2, fenced: true, ..Default::default() };
    let id = image.topic("t").unwrap().id;
    let replicas = Some(vec![2, 1]);
    let spread = PartitionChangeRecord { partition_id: 0, topic_id: id, replicas, ..Default::default() };
    apply(&mut image, &[gone.into(), spread.into()]);
    assert_eq!(reassign(&mut image, Some(&[1]), false), ErrorCode::InvalidReplicationFactor.code());
    assert_eq!(reassign(&mut image, Some(&[1]), true), 0);
    let replicas = |image: &MetadataImage| image.partition("t", 0).unwrap().replicas.clone();
    assert_eq!(replicas(&image), [1]);
    // The other way: it begins, and waits for a broker that does not come.
    assert_eq!(reassign(&mut image, Some(&[2]), true), 0);
    let partition = image.partition("t", 0).unwrap().clone();
    assert_eq!((partition.replicas, partition.adding_replicas), (vec![2, 1], vec![2]));
    assert_eq!((partition.removing_replicas, partition.isr, partition.leader), (vec![1], vec![1], 1));
    assert_eq!(reassign(&mut image, None, true), 0);
    let partition = image.partition("t", 0).unwrap().clone();
    assert_eq!((partition.replicas, partition.adding_replicas), (vec![1], vec![]));
    assert_eq!(reassign(&mut image, None, true), ErrorCode::NoReassignmentInProgress.code());
}

#[test]
fn a_broker_that_is_forgotten_leads_nothing() {
    let mut image = with_topic();
    let gone = RegisterBrokerRecord { broker_id: 2, ..Default::default() };
    let id = image.topic("t").unwrap().id;
    let led = |isr: &[i32]| PartitionChangeRecord {
        partition_id: 0,
        topic_id: id,
        replicas: Some(vec![2, 1]),
        isr: Some(isr.to_vec()),
        leader: 2,
        ..Default::default()
    };
    apply(&mut image, &[gone.clone().into(), led(&[2, 1]).into()]);
    let records = unregister_records(&image, 2).unwrap();
    apply(&mut image, &records);
    let partition = image.partition("t", 0).unwrap();
    assert_eq!((partition.leader, &partition.isr), (1, &vec![1]));
    assert_eq!(unregister_records(&image, 2), None);
    // Nobody else has all records: that is left to an unclean election.
    apply(&mut image, &[gone.into(), led(&[2]).into()]);
    let records = unregister_records(&image, 2).unwrap();
    apply(&mut image, &records);
    assert_eq!(image.partition("t", 0).unwrap().leader, NO_LEADER);
    assert_eq!(election(&mut image, 1, false, true), [ErrorCode::None]);
    assert_eq!(image.partition("t", 0).unwrap().leader, 1);
}

/// Asks for an election, of the first partition of `t` or of all, and carries it out; the codes.
fn election(image: &mut MetadataImage, kind: i8, is_all: bool, has_log: bool) -> Vec<ErrorCode> {
    let topic = elect_leaders_request::TopicPartitions { topic: "t".into(), partitions: vec![0] };
    let topic_partitions = (!is_all).then(|| vec![topic]);
    let request = ElectLeadersRequest { election_type: kind, topic_partitions, timeout_ms: 0 };
    let Decision { records, response } = elect_leaders(image, 1, request, |_, _| has_log);
    apply(image, &records);
    let results = response.replica_election_results.into_iter().flat_map(|topic| topic.partition_result);
    results.map(|p| ErrorCode::from_code(p.error_code)).collect()
}

#[test]
fn elections_that_somebody_asks_for() {
    use ErrorCode::{ElectionNotNeeded, EligibleLeadersNotAvailable, None as Elected, PreferredLeaderNotAvailable};
    let mut image = with_topic();
    let id = image.topic("t").unwrap().id;
    let set = |image: &mut MetadataImage, replicas: &[i32], isr: &[i32], leader: i32| {
        let change = PartitionChangeRecord {
            partition_id: 0,
            topic_id: id,
            replicas: Some(replicas.to_vec()),
            isr: Some(isr.to_vec()),
            leader,
            ..Default::default()
        };
        apply(image, &[change.into()]);
    };
    for kind in [0, 1] {
        assert_eq!(election(&mut image, kind, false, true), [ElectionNotNeeded]);
        assert_eq!(election(&mut image, kind, true, true), []);
    }
    // The other broker is gone, and this one leads in its place.
    set(&mut image, &[2, 1], &[1], 1);
    assert_eq!(election(&mut image, 0, false, true), [PreferredLeaderNotAvailable]);
    assert_eq!(election(&mut image, 1, false, true), [ElectionNotNeeded]);
    // It led, and would again if it had stayed away.
    set(&mut image, &[1, 2], &[2, 1], 2);
    assert_eq!(election(&mut image, 1, true, true), []);
    assert_eq!(election(&mut image, 0, true, true), [Elected]);
    assert_eq!(image.partition("t", 0).unwrap().leader, 1);
    // It alone has all records.
    set(&mut image, &[2, 1], &[2], NO_LEADER);
    assert_eq!(election(&mut image, 0, false, true), [PreferredLeaderNotAvailable]);
    assert_eq!(election(&mut image, 1, false, false), [EligibleLeadersNotAvailable]);
    let epoch = image.partition("t", 0).unwrap().leader_epoch;
    assert_eq!(election(&mut image, 1, false, true), [Elected]);
    let partition = image.partition("t", 0).unwrap();
    assert_eq!((partition.leader, partition.leader_epoch, &partition.isr), (1, epoch + 1, &vec![1]));
}

fn update(image: &mut MetadataImage, updates: &[(&str, i16, i8)], validate_only: bool) -> (i16, String) {
    let config = StaticConfig::default();
    let key = |(feature, level, upgrade_type): &(&str, i16, i8)| FeatureUpdateKey {
        feature: (*feature).to_owned(),
        max_version_level: *level,
        upgrade_type: *upgrade_type,
        ..Default::default()
    };
    let request = UpdateFeaturesRequest {
        feature_updates: updates.iter().map(key).collect(),
        validate_only,
        ..Default::default()
    };
    let decided = update_features(image, &Node { node_id: 1, config: &config }, 1, &request, 2);
    apply(image, &decided.records);
    (decided.response.error_code, decided.response.error_message.unwrap_or_default())
}

const UPGRADE: i8 = 1;
const SAFE: i8 = 2;
const UNSAFE: i8 = 3;

#[test]
fn features_go_up_and_down_within_what_is_supported() {
    let mut image = started();
    let invalid = ErrorCode::InvalidUpdateVersion.code();
    let (code, message) = update(&mut image, &[("transaction.version", 1, UPGRADE)], false);
    assert_eq!(code, invalid);
    assert_eq!(
        message,
        "The update failed for all features since the following feature had an error: Invalid update version 1 for \
         feature transaction.version. Can't downgrade the version of this feature without setting the upgrade type to \
         either safe or unsafe downgrade."
    );
    assert_eq!(update(&mut image, &[("transaction.version", 1, SAFE)], true).0, 0);
    assert_eq!(image.feature("transaction.version"), 2, "only validated");
    assert_eq!(update(&mut image, &[("transaction.version", 0, SAFE), ("group.version", 0, UNSAFE)], false).0, 0);
    assert_eq!((image.feature("transaction.version"), image.feature("group.version")), (0, 0));
    let (code, message) =
        update(&mut image, &[("transaction.version", 3, UPGRADE), ("group.version", 1, UPGRADE)], false);
    assert_eq!((code, image.feature("group.version")), (invalid, 0), "all or nothing");
    assert!(message.ends_with("Local controller 1 only supports versions 0-2"), "{message}");
    assert_eq!(update(&mut image, &[("transaction.version", 2, SAFE)], false).0, invalid);
    assert_eq!(update(&mut image, &[("transaction.version", 2, 0)], false).0, invalid);
    assert_eq!(update(&mut image, &[("no.such", 1, UPGRADE)], false).0, invalid);
    let (code, message) = update(&mut image, &[("no.such", 0, SAFE)], false);
    assert!(code == invalid && message.ends_with("Feature no.such not found."), "{message}");
    assert_eq!(update(&mut image, &[("transaction.version", 2, UPGRADE)], false).0, 0);
    assert_eq!(image.feature("transaction.version"), 2);
    assert_eq!(update(&mut image, &[("kraft.version", 1, UPGRADE)], false).0, 0);
    assert_eq!(update(&mut image, &[("kraft.version", 0, SAFE)], false).0, invalid);
}

#[test]
fn a_metadata_version_is_left_only_where_nothing_is_lost() {
    let mut image = started();
    let (code, message) = update(&mut image, &[("metadata.version", 29, SAFE)], false);
    assert_eq!(code, ErrorCode::InvalidUpdateVersion.code());
    assert!(message.contains("Refusing to perform the requested downgrade"), "{message}");
    let older = |level| caudal_protocol::records::metadata::FeatureLevelRecord {
        name: "metadata.version".into(),
        feature_level: level,
    };
    apply(&mut image, &[older(29).into()]);
    assert_eq!(update(&mut image, &[("metadata.version", 24, SAFE)], false).0, 0);
    assert_eq!(update(&mut image, &[("metadata.version", 22, SAFE)], false).0, ErrorCode::InvalidUpdateVersion.code());
    assert_eq!(update(&mut image, &[("metadata.version", 30, UPGRADE)], false).0, 0);
    assert_eq!(image.feature("metadata.version"), 30);
}

#[test]
fn eligible_leader_replicas_move_the_minimum_to_the_cluster() {
    let mut image = started();
    let own = ConfigRecord {
        resource_type: 4,
        resource_name: "1".into(),
        name: "min.insync.replicas".into(),
        value: Some("1".into()),
    };
    let elr = "eligible.leader.replicas.version";
    assert_eq!(update(&mut image, &[(elr, 0, SAFE)], false).0, 0);
    apply(&mut image, &[own.into()]);
    assert_eq!(update(&mut image, &[(elr, 1, UPGRADE)], false).0, 0);
    let config = |resource: &crate::image::ConfigResource| image.config(resource, "min.insync.replicas");
    assert_eq!(config(&crate::image::ConfigResource::all_brokers()), Some("1"));
    assert_eq!(config(&crate::image::ConfigResource::broker(1)), None);
}

fn quota(image: &mut MetadataImage, entity: &[(&str, Option<&str>)], ops: &[(&str, Option<f64>)]) -> (i16, String) {
    let part = |(kind, name): &(&str, Option<&str>)| EntityData {
        entity_type: (*kind).to_owned(),
        entity_name: name.map(str::to_owned),
    };
    let op = |(key, value): &(&str, Option<f64>)| OpData {
        key: (*key).to_owned(),
        value: value.unwrap_or(0.0),
        remove: value.is_none(),
    };
    let entries = vec![EntryData { entity: entity.iter().map(part).collect(), ops: ops.iter().map(op).collect() }];
    let request = AlterClientQuotasRequest { entries, validate_only: false };
    let unknown = BTreeSet::from(["no such host".to_owned()]);
    let Decision { records, response } = alter_client_quotas(image, &request, &unknown);
    apply(image, &records);
    (response.entries[0].error_code, response.entries[0].error_message.clone().unwrap_or_default())
}

#[test]
fn quotas_are_set_and_removed() {
    let mut image = started();
    let both = [("user", Some("u")), ("client-id", None)];
    assert_eq!(quota(&mut image, &both, &[("producer_byte_rate", Some(5.0)), ("request_percentage", Some(0.5))]).0, 0);
    assert_eq!(image.quotas().len(), 2);
    let entity = both.iter().map(|(k, n)| ((*k).to_owned(), n.map(str::to_owned))).collect();
    assert_eq!(image.quotas().get(&(entity, "producer_byte_rate".to_owned())), Some(&5.0));
    // The order in which an entity is written does not matter.
    let turned = [("client-id", None), ("user", Some("u"))];
    assert_eq!(quota(&mut image, &turned, &[("producer_byte_rate", None), ("consumer_byte_rate", None)]).0, 0);
    assert_eq!(image.quotas().len(), 1);
}

#[test]
fn quotas_that_make_no_sense_are_refused() {
    let mut image = started();
    let user = [("user", Some("u"))];
    type Entity<'a> = &'a [(&'a str, Option<&'a str>)];
    let cases: &[(Entity<'_>, &str, f64, &str)] = &[
        (&[], "producer_byte_rate", 1.0, "Invalid empty client quota entity"),
        (&[("group", None)], "producer_byte_rate", 1.0, "Unhandled client quota entity type: group"),
        (&[("user", Some(""))], "producer_byte_rate", 1.0, "Empty user not supported"),
        (&user, "no_such", 1.0, "Invalid configuration key no_such"),
        (&user, "connection_creation_rate", 1.0, "Invalid configuration key connection_creation_rate"),
        (&user, "producer_byte_rate", 0.0, "Quota producer_byte_rate must be greater than 0"),
        (&user, "producer_byte_rate", 1.5, "producer_byte_rate cannot be a fractional value."),
        (&user, "producer_byte_rate", 1e30, "Proposed value for producer_byte_rate is too large for a LONG."),
        (&[("ip", None)], "producer_byte_rate", 1.0, "Invalid configuration key producer_byte_rate"),
        (
            &[("ip", Some("no such host"))],
            "connection_creation_rate",
            1.0,
            "no such host is not a valid IP or resolvable host.",
        ),
    ];
    for (entity, key, value, expected) in cases {
        let (code, message) = quota(&mut image, entity, &[(key, Some(*value))]);
        assert_eq!((code, message.as_str()), (ErrorCode::InvalidRequest.code(), *expected));
    }
    let twice = [("producer_byte_rate", Some(1.0)), ("producer_byte_rate", Some(2.0))];
    assert_eq!(quota(&mut image, &user, &twice).0, ErrorCode::InvalidRequest.code());
    assert_eq!(quota(&mut image, &[("ip", Some("127.0.0.1"))], &[("connection_creation_rate", Some(9.0))]).0, 0);
    assert_eq!(image.quotas().len(), 1);
}

#[test]
fn credentials_are_stored_as_keys_and_removed() {
    let mut image = started();
    let mut alter = |deletions: &[(&str, i8)], upsertions: &[(&str, i8, i32)]| {
        let request = AlterUserScramCredentialsRequest {
            deletions: deletions
                .iter()
                .map(|(name, mechanism)| ScramCredentialDeletion { name: (*name).into(), mechanism: *mechanism })
                .collect(),
            upsertions: upsertions
                .iter()
                .map(|(name, mechanism, iterations)| ScramCredentialUpsertion {
                    name: (*name).into(),
                    mechanism: *mechanism,
                    iterations: *iterations,
                    salt: bytes::Bytes::from_static(b"salt"),
                    salted_password: bytes::Bytes::from_static(b"salted"),
                })
                .collect(),
        };
        let Decision { records, response } = alter_user_scram_credentials(&image, &request);
        apply(&mut image, &records);
        let codes: Vec<i16> = response.results.iter().map(|result| result.error_code).collect();
        (codes, image.scram_credentials().len())
    };
    assert_eq!(alter(&[], &[("a", 1, 4096), ("b", 2, 8192)]), (vec![0, 0], 2));
    assert_eq!(alter(&[], &[("c", 1, 4095)]), (vec![ErrorCode::UnacceptableCredential.code()], 2));
    assert_eq!(alter(&[], &[("c", 1, 16385)]), (vec![ErrorCode::UnacceptableCredential.code()], 2));
    assert_eq!(alter(&[], &[("", 1, 4096)]), (vec![ErrorCode::UnacceptableCredential.code()], 2));
    assert_eq!(alter(&[], &[("c", 3, 4096)]), (vec![ErrorCode::UnsupportedSaslMechanism.code()], 2));
    assert_eq!(alter(&[("a", 2)], &[]), (vec![ErrorCode::ResourceNotFound.code()], 2));
    assert_eq!(alter(&[("a", 1)], &[("a", 1, 4096)]), (vec![ErrorCode::DuplicateResource.code()], 2));
    assert_eq!(alter(&[("a", 1)], &[("b", 2, 4096)]), (vec![0, 0], 1));
    let key = ("b".to_owned(), 2);
    let stored = image.scram_credentials().get(&key).unwrap();
    assert_eq!((stored.iterations, stored.stored_key.len(), stored.server_key.len()), (4096, 64, 64));
}
