//! What an operator asks of the cluster: reassignments, features, quotas, credentials; and what is answered without security.

use std::sync::Arc;

use caudal_cluster::config::StaticConfig;
use caudal_cluster::format::{self, FormatOptions};
use caudal_protocol::messages::alter_client_quotas_request::{EntityData, EntryData, OpData};
use caudal_protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use caudal_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use caudal_protocol::messages::create_acls_request::AclCreation;
use caudal_protocol::messages::describe_client_quotas_request::ComponentData;
use caudal_protocol::messages::describe_configs_request::DescribeConfigsResource;
use caudal_protocol::messages::describe_user_scram_credentials_request::UserName;
use caudal_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use caudal_protocol::messages::update_features_request::FeatureUpdateKey;
use caudal_protocol::messages::*;
use caudal_protocol::{ApiKey, ErrorCode};
use caudal_storage::RealDisk;

use crate::raw::{RawClient, TestBroker};

#[test]
fn replicas_stay_where_they_are() {
    let broker = TestBroker::start();
    broker.create_topic("t", 2);
    let mut client = broker.connect();
    let mut ask = |partition_index: i32, replicas: Option<Vec<i32>>| {
        let partitions = vec![ReassignablePartition { partition_index, replicas }];
        let topics = vec![ReassignableTopic { name: "t".into(), partitions }];
        let request = AlterPartitionReassignmentsRequest { topics, ..Default::default() };
        let response: AlterPartitionReassignmentsResponse = client.ask(&request, 0);
        assert_eq!(response.error_code, 0);
        response.responses[0].partitions[0].error_code
    };
    assert_eq!(ask(0, Some(vec![1])), 0);
    assert_eq!(ask(0, Some(vec![2])), ErrorCode::InvalidReplicaAssignment.code());
    assert_eq!(ask(0, None), ErrorCode::NoReassignmentInProgress.code());
    assert_eq!(ask(7, Some(vec![1])), ErrorCode::UnknownTopicOrPartition.code());
    let request = ListPartitionReassignmentsRequest { topics: None, ..Default::default() };
    let listed: ListPartitionReassignmentsResponse = client.ask(&request, 0);
    assert_eq!((listed.error_code, listed.topics.len()), (0, 0));
}

fn finalized(client: &mut RawClient, feature: &str) -> i16 {
    let request = ApiVersionsRequest { client_software_name: "raw".into(), client_software_version: "1".into() };
    let response: ApiVersionsResponse = client.ask(&request, 4);
    let found = response.finalized_features.iter().find(|f| f.name == feature);
    found.map_or(0, |f| f.max_version_level)
}

fn update_feature(client: &mut RawClient, feature: &str, level: i16, upgrade_type: i8) -> i16 {
    let update =
        FeatureUpdateKey { feature: feature.into(), max_version_level: level, upgrade_type, ..Default::default() };
    let request = UpdateFeaturesRequest { feature_updates: vec![update], ..Default::default() };
    let response: UpdateFeaturesResponse = client.ask(&request, 1);
    response.error_code
}

#[test]
fn features_change_while_it_runs_and_stay_changed() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    assert_eq!(finalized(&mut client, "kraft.version"), 1);
    assert_eq!(update_feature(&mut client, "transaction.version", 1, 1), ErrorCode::InvalidUpdateVersion.code());
    assert_eq!(update_feature(&mut client, "transaction.version", 1, 2), 0);
    assert_eq!(finalized(&mut client, "transaction.version"), 1);
    assert_eq!(broker.context().transaction_version(), 1);
    assert_eq!(update_feature(&mut client, "group.version", 0, 2), 0);
    let heartbeat: ConsumerGroupHeartbeatResponse = client.ask(&ConsumerGroupHeartbeatRequest::default(), 1);
    assert_eq!(heartbeat.error_code, ErrorCode::UnsupportedVersion.code());
    let broker = broker.restart();
    let mut client = broker.connect();
    assert_eq!(finalized(&mut client, "transaction.version"), 1);
    assert_eq!(update_feature(&mut client, "transaction.version", 2, 1), 0);
    assert_eq!(finalized(&mut client, "transaction.version"), 2);
    // Version 0 knows only whether it may go down.
    let update = FeatureUpdateKey {
        feature: "transaction.version".into(),
        max_version_level: 0,
        allow_downgrade: true,
        ..Default::default()
    };
    let request = UpdateFeaturesRequest { feature_updates: vec![update], ..Default::default() };
    let response: UpdateFeaturesResponse = client.ask(&request, 0);
    assert_eq!((response.error_code, response.results.len()), (0, 1));
}

#[test]
fn a_static_quorum_of_one_becomes_a_dynamic_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = StaticConfig::default();
    for (key, value) in [
        ("node.id", "1"),
        ("process.roles", "broker,controller"),
        ("controller.listener.names", "CONTROLLER"),
        ("controller.quorum.voters", "1@127.0.0.1:9093"),
        ("log.dirs", dir.path().to_str().unwrap()),
    ] {
        config.set(key, value);
    }
    let options = FormatOptions { cluster_id: "5L6g3nShT-eMCtK--X86sw".into(), ..Default::default() };
    format::format(&RealDisk, &config, &options).unwrap();
    let properties = Arc::new(config);
    let given = properties.clone();
    let broker = TestBroker::start_in(dir, move |config| config.properties = given).unwrap();
    let mut client = broker.connect();
    assert_eq!(finalized(&mut client, "kraft.version"), 0);
    assert_eq!(update_feature(&mut client, "kraft.version", 1, 1), 0);
    assert_eq!(finalized(&mut client, "kraft.version"), 1);
    assert_eq!(update_feature(&mut client, "transaction.version", 1, 2), 0);
    let dir = broker.end(false);
    let broker = TestBroker::start_in(dir, move |config| config.properties = properties).unwrap();
    let mut client = broker.connect();
    assert_eq!((finalized(&mut client, "kraft.version"), finalized(&mut client, "transaction.version")), (1, 1));
}

type Name<'a> = (&'a str, Option<&'a str>);

pub fn set_quota(client: &mut RawClient, entity: &[Name<'_>], key: &str, value: Option<f64>) -> i16 {
    let part =
        |(kind, name): &Name<'_>| EntityData { entity_type: (*kind).to_owned(), entity_name: name.map(str::to_owned) };
    let op = OpData { key: key.into(), value: value.unwrap_or_default(), remove: value.is_none() };
    let entry = EntryData { entity: entity.iter().map(part).collect(), ops: vec![op] };
    let request = AlterClientQuotasRequest { entries: vec![entry], validate_only: false };
    let response: AlterClientQuotasResponse = client.ask(&request, 1);
    response.entries[0].error_code
}

/// The values found, or the error.
fn quotas(client: &mut RawClient, filter: &[(&str, i8, Option<&str>)], strict: bool) -> Result<Vec<f64>, i16> {
    let component = |(kind, match_type, name): &(&str, i8, Option<&str>)| ComponentData {
        entity_type: (*kind).to_owned(),
        match_type: *match_type,
        match_: name.map(str::to_owned),
    };
    let request = DescribeClientQuotasRequest { components: filter.iter().map(component).collect(), strict };
    let response: DescribeClientQuotasResponse = client.ask(&request, 1);
    let entries = response.entries.ok_or(response.error_code)?;
    Ok(entries.iter().flat_map(|entry| &entry.values).map(|value| value.value).collect())
}

#[test]
fn quotas_are_found_by_what_is_asked_for() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let key = "producer_byte_rate";
    let set: [(&[Name<'_>], f64); 5] = [
        (&[("user", Some("u"))], 1.0),
        (&[("user", None)], 2.0),
        (&[("user", Some("u")), ("client-id", Some("c"))], 3.0),
        (&[("client-id", None)], 4.0),
        (&[("user", None), ("client-id", Some("c"))], 5.0),
    ];
    for (entity, value) in set {
        assert_eq!(set_quota(&mut client, entity, key, Some(value)), 0);
    }
    let broker = broker.crash_and_restart();
    let mut client = broker.connect();
    let found = |client: &mut RawClient, filter: &[(&str, i8, Option<&str>)], strict| {
        let mut values = quotas(client, filter, strict).unwrap();
        values.sort_by(f64::total_cmp);
        values
    };
    assert_eq!(found(&mut client, &[], false), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert!(found(&mut client, &[], true).is_empty());
    assert_eq!(found(&mut client, &[("user", 0, Some("u"))], false), [1.0, 3.0]);
    assert_eq!(found(&mut client, &[("user", 0, Some("u"))], true), [1.0]);
    assert_eq!(found(&mut client, &[("user", 1, None)], false), [2.0, 5.0]);
    assert_eq!(found(&mut client, &[("user", 2, None), ("client-id", 2, None)], true), [3.0, 5.0]);
    assert_eq!(found(&mut client, &[("client-id", 2, None)], false), [3.0, 4.0, 5.0]);
    assert_eq!(quotas(&mut client, &[("group", 2, None)], false), Err(ErrorCode::UnsupportedVersion.code()));
    assert_eq!(quotas(&mut client, &[("user", 0, None)], false), Err(ErrorCode::InvalidRequest.code()));
    let with_ip = [("user", 2, None), ("ip", 2, None)];
    assert_eq!(quotas(&mut client, &with_ip, false), Err(ErrorCode::InvalidRequest.code()));
    assert_eq!(set_quota(&mut client, &[("user", Some("u"))], key, None), 0);
    assert_eq!(found(&mut client, &[("user", 0, Some("u"))], true), [0.0; 0]);
}

#[test]
fn credentials_are_kept_and_never_shown() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let upsertion = ScramCredentialUpsertion {
        name: "u".into(),
        mechanism: 1,
        iterations: 8192,
        salt: bytes::Bytes::from_static(b"salt"),
        salted_password: bytes::Bytes::from_static(b"salted"),
    };
    let request = AlterUserScramCredentialsRequest { upsertions: vec![upsertion], ..Default::default() };
    let response: AlterUserScramCredentialsResponse = client.ask(&request, 0);
    assert_eq!((response.results[0].user.as_str(), response.results[0].error_code), ("u", 0));
    let broker = broker.restart();
    let mut client = broker.connect();
    let all: DescribeUserScramCredentialsResponse = client.ask(&DescribeUserScramCredentialsRequest { users: None }, 0);
    assert_eq!(all.results.len(), 1);
    assert_eq!(
        (all.results[0].credential_infos[0].mechanism, all.results[0].credential_infos[0].iterations),
        (1, 8192)
    );
    let name = |name: &str| UserName { name: name.into() };
    let request = DescribeUserScramCredentialsRequest { users: Some(vec![name("v"), name("u"), name("u")]) };
    let some: DescribeUserScramCredentialsResponse = client.ask(&request, 0);
    let codes: Vec<i16> = some.results.iter().map(|result| result.error_code).collect();
    assert_eq!(codes, [ErrorCode::DuplicateResource.code(), ErrorCode::ResourceNotFound.code()]);
    let deletion = ScramCredentialDeletion { name: "u".into(), mechanism: 1 };
    let request = AlterUserScramCredentialsRequest { deletions: vec![deletion], ..Default::default() };
    let response: AlterUserScramCredentialsResponse = client.ask(&request, 0);
    assert_eq!(response.results[0].error_code, 0);
}

#[test]
fn without_security_its_calls_are_refused_as_kafka_does() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let request = CreateAclsRequest { creations: vec![AclCreation::default()] };
    let created: CreateAclsResponse = client.ask(&request, 3);
    assert_eq!(created.results[0].error_code, ErrorCode::SecurityDisabled.code());
    let deleted: DeleteAclsResponse = client.ask(&DeleteAclsRequest { filters: vec![Default::default()] }, 3);
    assert_eq!(deleted.filter_results[0].error_code, ErrorCode::SecurityDisabled.code());
    let not_allowed = ErrorCode::DelegationTokenRequestNotAllowed.code();
    let created: CreateDelegationTokenResponse = client.ask(&CreateDelegationTokenRequest::default(), 3);
    assert_eq!((created.error_code, created.principal_name.as_str()), (not_allowed, "ANONYMOUS"));
    let renewed: RenewDelegationTokenResponse = client.ask(&RenewDelegationTokenRequest::default(), 2);
    let expired: ExpireDelegationTokenResponse = client.ask(&ExpireDelegationTokenRequest::default(), 2);
    let described: DescribeDelegationTokenResponse = client.ask(&DescribeDelegationTokenRequest::default(), 3);
    assert_eq!((renewed.error_code, expired.error_code, described.error_code), (not_allowed, not_allowed, not_allowed));
    let shaken: SaslHandshakeResponse = client.ask(&SaslHandshakeRequest::default(), 1);
    let authenticated: SaslAuthenticateResponse = client.ask(&SaslAuthenticateRequest::default(), 2);
    let state = ErrorCode::IllegalSaslState.code();
    assert_eq!((shaken.error_code, authenticated.error_code), (state, state));
}

#[test]
fn a_broker_that_is_not_there_cannot_be_unregistered_nor_one_that_runs() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let mut unregister = |broker_id| {
        let response: UnregisterBrokerResponse = client.ask(&UnregisterBrokerRequest { broker_id }, 0);
        response.error_code
    };
    assert_eq!(unregister(7), ErrorCode::BrokerIdNotRegistered.code());
    assert_eq!(unregister(1), ErrorCode::InvalidRequest.code());
}

#[test]
fn what_kafka_does_not_advertise_without_a_receiver_of_telemetry_is_not_advertised() {
    let broker = TestBroker::start();
    let request = ApiVersionsRequest { client_software_name: "raw".into(), client_software_version: "1".into() };
    let response: ApiVersionsResponse = broker.connect().ask(&request, 4);
    let telemetry = [ApiKey::GetTelemetrySubscriptions, ApiKey::PushTelemetry].map(ApiKey::code);
    assert!(response.api_keys.iter().all(|key| !telemetry.contains(&key.api_key)));
}

const CLIENT_METRICS: i8 = 16;

#[test]
fn subscriptions_of_client_metrics_are_kept() {
    let broker = TestBroker::start();
    let mut client = broker.connect();
    let alter = |client: &mut RawClient, name: &str, configs: &[(&str, Option<&str>)]| {
        let config = |(name, value): &(&str, Option<&str>)| AlterableConfig {
            name: (*name).to_owned(),
            config_operation: i8::from(value.is_none()),
            value: value.map(str::to_owned),
        };
        let resource = AlterConfigsResource {
            resource_type: CLIENT_METRICS,
            resource_name: name.to_owned(),
            configs: configs.iter().map(config).collect(),
        };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource], validate_only: false };
        let response: IncrementalAlterConfigsResponse = client.ask(&request, 1);
        response.responses[0].error_code
    };
    let (invalid_request, invalid_config) = (ErrorCode::InvalidRequest.code(), ErrorCode::InvalidConfig.code());
    assert_eq!(alter(&mut client, "", &[("metrics", Some("a"))]), invalid_request);
    assert_eq!(alter(&mut client, "s", &[("no.such", Some("a"))]), invalid_request);
    assert_eq!(alter(&mut client, "s", &[("interval.ms", Some("99"))]), invalid_request);
    assert_eq!(alter(&mut client, "s", &[("interval.ms", Some("soon"))]), invalid_config);
    assert_eq!(alter(&mut client, "s", &[("match", Some("client_id"))]), invalid_config);
    assert_eq!(alter(&mut client, "s", &[("match", Some("client_id=["))]), invalid_config);
    assert_eq!(alter(&mut client, "s", &[("metrics", Some("a,a"))]), invalid_config);
    let good = [
        ("metrics", Some("a.,b.")),
        ("match", Some("client_id=x.*,client_source_port=9.")),
        ("interval.ms", Some("1000")),
    ];
    assert_eq!(alter(&mut client, "s", &good), 0);
    let broker = broker.restart();
    let mut client = broker.connect();
    let listed: ListConfigResourcesResponse = client.ask(&ListConfigResourcesRequest::default(), 0);
    assert_eq!(listed.config_resources.iter().map(|r| r.resource_name.as_str()).collect::<Vec<_>>(), ["s"]);
    let described = |client: &mut RawClient, name: &str| {
        let resource =
            DescribeConfigsResource { resource_type: CLIENT_METRICS, resource_name: name.into(), ..Default::default() };
        let request = DescribeConfigsRequest { resources: vec![resource], ..Default::default() };
        let response: DescribeConfigsResponse = client.ask(&request, 4);
        let configs = response.results[0].configs.iter();
        configs.map(|c| (c.name.clone(), c.value.clone().unwrap(), c.config_source)).collect::<Vec<_>>()
    };
    let config = |name: &str, value: &str, source: i8| (name.to_owned(), value.to_owned(), source);
    assert_eq!(described(&mut client, "s")[0], config("interval.ms", "1000", 7));
    assert_eq!(described(&mut client, "s")[2], config("metrics", "a.,b.", 7));
    assert_eq!(described(&mut client, "other")[0], config("interval.ms", "300000", 5));
    assert_eq!(alter(&mut client, "s", &[("metrics", None), ("match", None), ("interval.ms", None)]), 0);
    let listed: ListConfigResourcesResponse = client.ask(&ListConfigResourcesRequest::default(), 0);
    assert!(listed.config_resources.is_empty());
}
