//! Topics: created and deleted.

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use caudal_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use caudal_protocol::messages::delete_topics_response::DeletableTopicResult;
use caudal_protocol::messages::{CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse};
use caudal_protocol::records::metadata::{ConfigRecord, RemoveTopicRecord, TopicRecord};
use caudal_protocol::{ErrorCode, Uuid};

use super::{ApiError, Decision, Node, new_topic_id, placement};
use crate::config::{TOPIC_CONFIGS, check_topic_configs};
use crate::image::{ConfigResourceType, MetadataImage};
use crate::log::METADATA_TOPIC;
use crate::record::MetadataRecord;

/// Longest name of a topic: with a partition number behind it, it must still be a file name.
const MAX_NAME_BYTES: usize = 249;

/// Most records that one request may cause, as Kafka bounds it.
const MAX_RECORDS: usize = 10_000;

/// Whether a topic may have this name.
///
/// # Errors
/// INVALID_TOPIC_EXCEPTION with Kafka's sentence.
pub fn check_topic_name(name: &str) -> Result<(), ApiError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let reason = if name.is_empty() {
        "the empty string is not allowed".to_owned()
    } else if name == "." || name == ".." {
        format!("'{name}' is not allowed")
    } else if name.len() > MAX_NAME_BYTES {
        format!("the length of '{name}' is longer than the max allowed length {MAX_NAME_BYTES}")
    } else if !name.chars().all(valid) {
        format!("'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'")
    } else {
        return Ok(());
    };
    Err(ApiError::new(ErrorCode::InvalidTopicException, format!("Topic name is invalid: {reason}")))
}

/// Decides a CreateTopics request, topic by topic: those that can be are created although others are refused.
pub fn create_topics(
    image: &MetadataImage,
    node: &Node<'_>,
    request: &CreateTopicsRequest,
) -> Decision<CreateTopicsResponse> {
    let mut records = Vec::new();
    let mut response = CreateTopicsResponse::default();
    let mut collisions: Option<BTreeMap<String, String>> = None;
    let mut seen = BTreeSet::new();
    let duplicates: BTreeSet<&str> =
        request.topics.iter().map(|t| t.name.as_str()).filter(|name| !seen.insert(*name)).collect();
    let mut answered = BTreeSet::new();
    for topic in &request.topics {
        let refuse = |error: ApiError| CreatableTopicResult {
            name: topic.name.clone(),
            error_code: error.code.code(),
            error_message: Some(error.message),
            ..CreatableTopicResult::default()
        };
        if duplicates.contains(topic.name.as_str()) {
            if answered.insert(topic.name.as_str()) {
                response.topics.push(refuse(ApiError::new(ErrorCode::InvalidRequest, "Duplicate topic name.")));
            }
            continue;
        }
        let created = check_new_name(image, &topic.name, &mut collisions)
            .and_then(|()| create_topic(image, node, topic))
            .and_then(|(topic_records, result)| match records.len() + topic_records.len() {
                n if n > MAX_RECORDS => Err(ApiError::new(
                    ErrorCode::PolicyViolation,
                    "Excessively large number of partitions per request.",
                )),
                _ => Ok((topic_records, result)),
            });
        match created {
            Ok((topic_records, result)) => {
                records.extend(topic_records);
                note_collision(&mut collisions, &topic.name);
                response.topics.push(result);
            }
            Err(error) => response.topics.push(refuse(error)),
        }
    }
    if request.validate_only {
        records.clear();
        // Nothing was created, so there is no id to tell.
        for topic in &mut response.topics {
            topic.topic_id = Uuid::ZERO;
        }
    }
    Decision { records, response }
}

/// Metric names make `.` of `_`, so names that differ in these only are refused.
fn unified(name: &str) -> Option<String> {
    name.contains(['.', '_']).then(|| name.replace('.', "_"))
}

fn note_collision(collisions: &mut Option<BTreeMap<String, String>>, name: &str) {
    if let (Some(collisions), Some(unified)) = (collisions, unified(name)) {
        collisions.insert(unified, name.to_owned());
    }
}

fn check_new_name(
    image: &MetadataImage,
    name: &str,
    collisions: &mut Option<BTreeMap<String, String>>,
) -> Result<(), ApiError> {
    // No topic may have the name of the metadata log.
    if name == METADATA_TOPIC {
        return Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("Creation of internal topic {METADATA_TOPIC} is prohibited."),
        ));
    }
    check_topic_name(name)?;
    if image.topic(name).is_some() {
        return Err(ApiError::new(ErrorCode::TopicAlreadyExists, format!("Topic '{name}' already exists.")));
    }
    let Some(unified_name) = unified(name) else { return Ok(()) };
    let collisions = collisions
        .get_or_insert_with(|| image.topics().filter_map(|t| Some((unified(&t.name)?, t.name.clone()))).collect());
    match collisions.get(&unified_name) {
        Some(existing) => Err(ApiError::new(
            ErrorCode::InvalidTopicException,
            format!("Topic '{name}' collides with existing topic: {existing}"),
        )),
        None => Ok(()),
    }
}

fn create_topic(
    image: &MetadataImage,
    node: &Node<'_>,
    topic: &CreatableTopic,
) -> Result<(Vec<MetadataRecord>, CreatableTopicResult), ApiError> {
    let configs = creation_configs(image, node, topic)?;
    let assignments = assignments(image, node, topic)?;
    let topic_id = new_topic_id(image);
    let partitions = i32::try_from(assignments.len()).unwrap_or(i32::MAX);
    let replication_factor = assignments.first().map_or(0, Vec::len);
    let result = CreatableTopicResult {
        name: topic.name.clone(),
        topic_id,
        num_partitions: partitions,
        replication_factor: i16::try_from(replication_factor).unwrap_or(i16::MAX),
        error_message: None,
        configs: Some(effective_configs(image, node, &configs)),
        ..CreatableTopicResult::default()
    };
    let mut records: Vec<MetadataRecord> = vec![TopicRecord { name: topic.name.clone(), topic_id }.into()];
    records.extend(configs.into_iter().map(|(name, value)| {
        MetadataRecord::Config(ConfigRecord {
            resource_type: ConfigResourceType::Topic.code(),
            resource_name: topic.name.clone(),
            name,
            value: Some(value),
        })
    }));
    for (partition, replicas) in (0..partitions).zip(assignments) {
        records.push(placement::new_partition(image, topic_id, partition, replicas).into());
    }
    Ok((records, result))
}

/// The topic's own configs, checked.
fn creation_configs(
    image: &MetadataImage,
    node: &Node<'_>,
    topic: &CreatableTopic,
) -> Result<BTreeMap<String, String>, ApiError> {
    let nulls: Vec<&str> = topic.configs.iter().filter(|c| c.value.is_none()).map(|c| c.name.as_str()).collect();
    if !nulls.is_empty() {
        let message = format!("Null value not supported for topic configs: {}", nulls.join(","));
        return Err(ApiError::new(ErrorCode::InvalidConfig, message));
    }
    let value = |c: &CreatableTopicConfig| Some((c.name.clone(), c.value.clone()?));
    let configs: BTreeMap<String, String> = topic.configs.iter().filter_map(value).collect();
    check_topic_configs(&configs, node.topic_default(image))
        .map_err(|e| ApiError::new(ErrorCode::InvalidConfig, e.to_string()))?;
    Ok(configs)
}

/// Replicas of each partition, by the request or by the defaults.
fn assignments(image: &MetadataImage, node: &Node<'_>, topic: &CreatableTopic) -> Result<Vec<Vec<i32>>, ApiError> {
    if !topic.assignments.is_empty() {
        return manual_assignments(image, topic);
    }
    if topic.replication_factor < -1 || topic.replication_factor == 0 {
        return Err(ApiError::new(
            ErrorCode::InvalidReplicationFactor,
            "Replication factor must be larger than 0, or -1 to use the default value.",
        ));
    }
    if topic.num_partitions < -1 || topic.num_partitions == 0 {
        return Err(ApiError::new(
            ErrorCode::InvalidPartitions,
            "Number of partitions was set to an invalid non-positive value.",
        ));
    }
    let default = |name: &str| node.config.int(name);
    let partitions = match topic.num_partitions {
        -1 => i32::try_from(default("num.partitions")).unwrap_or(1),
        n => n,
    };
    let replication_factor = match topic.replication_factor {
        -1 => i16::try_from(default("default.replication.factor")).unwrap_or(1),
        n => n,
    };
    if usize::try_from(partitions).unwrap_or(usize::MAX) > MAX_RECORDS {
        return Err(ApiError::new(ErrorCode::PolicyViolation, "Excessively large number of partitions per request."));
    }
    placement::place(image, 0, partitions, replication_factor)
}

fn manual_assignments(image: &MetadataImage, topic: &CreatableTopic) -> Result<Vec<Vec<i32>>, ApiError> {
    let invalid = |message: &str| ApiError::new(ErrorCode::InvalidRequest, message);
    if topic.replication_factor != -1 {
        return Err(invalid("A manual partition assignment was specified, but replication factor was not set to -1."));
    }
    if topic.num_partitions != -1 {
        return Err(invalid("A manual partition assignment was specified, but numPartitions was not set to -1."));
    }
    let mut by_partition: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut expected = None;
    for assignment in &topic.assignments {
        let partition = assignment.partition_index;
        if by_partition.contains_key(&partition) {
            return Err(ApiError::new(
                ErrorCode::InvalidReplicaAssignment,
                format!("Found multiple manual partition assignments for partition {partition}"),
            ));
        }
        placement::check_manual(image, partition, &assignment.broker_ids, expected)?;
        expected = Some(assignment.broker_ids.len());
        by_partition.insert(partition, assignment.broker_ids.clone());
    }
    if !by_partition.keys().copied().eq(0..i32::try_from(by_partition.len()).unwrap_or(i32::MAX)) {
        return Err(ApiError::new(
            ErrorCode::InvalidReplicaAssignment,
            "partitions should be a consecutive 0-based integer sequence",
        ));
    }
    Ok(by_partition.into_values().collect())
}

/// All configs that the topic will have, as the response tells them (KIP-525).
fn effective_configs(
    image: &MetadataImage,
    node: &Node<'_>,
    own: &BTreeMap<String, String>,
) -> Vec<CreatableTopicConfigs> {
    let listed = TOPIC_CONFIGS.iter().filter(|def| !def.is_internal());
    listed
        .map(|def| {
            let resolved = node.config.resolve_topic(image, node.node_id, Some(own), def);
            CreatableTopicConfigs {
                name: def.name.to_owned(),
                value: resolved.value,
                read_only: false,
                config_source: resolved.source.code(),
                is_sensitive: def.is_sensitive(),
            }
        })
        .collect()
}

/// The request that creates a topic nobody created but somebody uses, as Kafka's `AutoTopicCreationManager` words it.
/// The internal topics have partitions and configs of their own. No request if the name is not one for a topic.
pub fn auto_create_request(config: &crate::config::StaticConfig, name: &str) -> Option<CreateTopicsRequest> {
    check_topic_name(name).ok()?;
    let int = |key: &str| i32::try_from(config.int(key)).unwrap_or(1);
    // Kafka's default of 3 replicas can only fail here; what was set is obeyed.
    let replicas = |key: &str| config.get(key).and_then(|n| n.parse().ok()).unwrap_or(-1);
    let text = |key: &str| config.value(key).unwrap_or_default().to_owned();
    let (num_partitions, replication_factor, configs) = match name {
        "__consumer_offsets" => (
            int("offsets.topic.num.partitions"),
            replicas("offsets.topic.replication.factor"),
            vec![
                ("cleanup.policy", "compact".to_owned()),
                ("segment.bytes", text("offsets.topic.segment.bytes")),
                ("compression.type", "producer".to_owned()),
            ],
        ),
        "__transaction_state" => (
            int("transaction.state.log.num.partitions"),
            replicas("transaction.state.log.replication.factor"),
            vec![
                ("unclean.leader.election.enable", "false".to_owned()),
                ("compression.type", "producer".to_owned()),
                ("cleanup.policy", "compact".to_owned()),
                ("min.insync.replicas", config.get("transaction.state.log.min.isr").unwrap_or("1").to_owned()),
                ("segment.bytes", text("transaction.state.log.segment.bytes")),
            ],
        ),
        _ => (-1, -1, Vec::new()),
    };
    let configs =
        configs.into_iter().map(|(name, value)| CreatableTopicConfig { name: name.to_owned(), value: Some(value) });
    let topic = CreatableTopic {
        name: name.to_owned(),
        num_partitions,
        replication_factor,
        configs: configs.collect(),
        ..CreatableTopic::default()
    };
    Some(CreateTopicsRequest { topics: vec![topic], timeout_ms: 30_000, validate_only: false })
}

/// Decides a DeleteTopics request; topics are named, or given by id.
pub fn delete_topics(image: &MetadataImage, request: &DeleteTopicsRequest) -> Decision<DeleteTopicsResponse> {
    let mut responses = Vec::new();
    let mut answer = |name: Option<String>, topic_id: Uuid, result: Result<(), ApiError>| {
        let (error_code, error_message) = super::outcome(&result);
        responses.push(DeletableTopicResult { name, topic_id, error_code, error_message });
    };
    let invalid = |message: &str| Err(ApiError::new(ErrorCode::InvalidRequest, message));
    let (mut names, mut ids): (Vec<&str>, Vec<Uuid>) = (Vec::new(), Vec::new());
    names.extend(request.topic_names.iter().map(String::as_str));
    for topic in &request.topics {
        match (&topic.name, topic.topic_id.is_zero()) {
            (None, true) => answer(None, Uuid::ZERO, invalid("Neither topic name nor id were specified.")),
            (None, false) => ids.push(topic.topic_id),
            (Some(name), true) => names.push(name),
            (Some(name), false) => {
                let refused = invalid("You may not specify both topic name and topic id.");
                answer(Some(name.clone()), topic.topic_id, refused);
            }
        }
    }
    let (names, twice_named) = unique(names);
    let (ids, twice_given) = unique(ids);
    for name in twice_named {
        answer(Some(name.to_owned()), Uuid::ZERO, invalid("Duplicate topic name."));
    }
    for id in twice_given {
        answer(None, id, invalid("Duplicate topic id."));
    }
    let mut found = BTreeSet::new();
    for id in ids {
        match image.topic_by_id(&id) {
            Some(topic) => drop(found.insert((topic.name.clone(), id))),
            None => answer(None, id, Err(ApiError::of(ErrorCode::UnknownTopicId))),
        }
    }
    for name in names {
        match image.topic(name) {
            None => {
                let unknown = ApiError::of(ErrorCode::UnknownTopicOrPartition);
                answer(Some(name.to_owned()), Uuid::ZERO, Err(unknown));
            }
            Some(topic) if !found.insert((topic.name.clone(), topic.id)) => {
                found.remove(&(topic.name.clone(), topic.id));
                let refused = invalid("The provided topic name maps to an ID that was already supplied.");
                answer(Some(name.to_owned()), topic.id, refused);
            }
            Some(_) => {}
        }
    }
    let mut records: Vec<MetadataRecord> = Vec::new();
    for (name, id) in found {
        records.push(RemoveTopicRecord { topic_id: id }.into());
        answer(Some(name), id, Ok(()));
    }
    Decision { records, response: DeleteTopicsResponse { throttle_time_ms: 0, responses } }
}

/// The items that occur once, and those that occur more often.
fn unique<T: Ord + Copy>(items: Vec<T>) -> (Vec<T>, BTreeSet<T>) {
    let mut seen = BTreeSet::new();
    let twice: BTreeSet<T> = items.iter().copied().filter(|item| !seen.insert(*item)).collect();
    (items.into_iter().filter(|item| !twice.contains(item)).collect(), twice)
}
