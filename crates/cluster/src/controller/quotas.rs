//! Quotas of users, clients and addresses (KIP-546).

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::ErrorCode;
use caudal_protocol::messages::alter_client_quotas_request::OpData;
use caudal_protocol::messages::alter_client_quotas_response::{EntityData, EntryData};
use caudal_protocol::messages::{AlterClientQuotasRequest, AlterClientQuotasResponse};
use caudal_protocol::records::metadata::{ClientQuotaRecord, client_quota_record};

use super::{ApiError, Decision, outcome};
use crate::image::{MetadataImage, QuotaEntity};
use crate::record::MetadataRecord;

pub const USER: &str = "user";
pub const CLIENT_ID: &str = "client-id";
pub const IP: &str = "ip";

/// The quotas of users and clients, and whether they are whole numbers.
const USER_AND_CLIENT_QUOTAS: &[(&str, bool)] = &[
    ("producer_byte_rate", true),
    ("consumer_byte_rate", true),
    ("request_percentage", false),
    ("controller_mutation_rate", false),
];
/// The quota of addresses.
const IP_QUOTA: &str = "connection_creation_rate";

/// Decides an AlterClientQuotas request, entity by entity. `unknown_hosts`: names among the addresses that no host has.
pub fn alter_client_quotas(
    image: &MetadataImage,
    request: &AlterClientQuotasRequest,
    unknown_hosts: &BTreeSet<String>,
) -> Decision<AlterClientQuotasResponse> {
    let mut records = Vec::new();
    let mut entries: Vec<EntryData> = Vec::new();
    let mut places: BTreeMap<QuotaEntity, usize> = BTreeMap::new();
    for entry in &request.entries {
        let entity: QuotaEntity = entry.entity.iter().map(|e| (e.entity_type.clone(), e.entity_name.clone())).collect();
        let result = if places.contains_key(&entity) {
            let message = format!("Ignoring duplicate entity {}", describe(&entity));
            Err(ApiError::new(ErrorCode::InvalidRequest, message))
        } else {
            alter(image, &entity, &entry.ops, unknown_hosts)
        };
        let (error_code, error_message) = outcome(&result.map(|new| records.extend(new)));
        let listed = |(kind, name): (&String, &Option<String>)| EntityData {
            entity_type: kind.clone(),
            entity_name: name.clone(),
        };
        let answer = EntryData { error_code, error_message, entity: entity.iter().map(listed).collect() };
        match places.get(&entity).and_then(|at| entries.get_mut(*at)) {
            Some(earlier) => *earlier = answer,
            None => {
                places.insert(entity, entries.len());
                entries.push(answer);
            }
        }
    }
    if request.validate_only {
        records.clear();
    }
    Decision { records, response: AlterClientQuotasResponse { throttle_time_ms: 0, entries } }
}

/// As Kafka prints an entity.
fn describe(entity: &QuotaEntity) -> String {
    let pairs: Vec<String> =
        entity.iter().map(|(kind, name)| format!("{kind}={}", name.as_deref().unwrap_or("null"))).collect();
    format!("ClientQuotaEntity(entries={{{}}})", pairs.join(", "))
}

fn alter(
    image: &MetadataImage,
    entity: &QuotaEntity,
    operations: &[OpData],
    unknown_hosts: &BTreeSet<String>,
) -> Result<Vec<MetadataRecord>, ApiError> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidRequest, message);
    let mut wanted: BTreeMap<&str, Option<f64>> = BTreeMap::new();
    for operation in operations {
        let value = (!operation.remove).then_some(operation.value);
        if wanted.insert(&operation.key, value).is_some() {
            return Err(invalid(format!(
                "Duplicate quota key {} not updating quota for this entity {}",
                operation.key,
                describe(entity)
            )));
        }
    }
    check_entity(entity, unknown_hosts)?;
    let mut records = Vec::new();
    for (key, value) in wanted {
        let current = image.quotas().get(&(entity.clone(), key.to_owned())).copied();
        if let Some(value) = value {
            check_value(entity.contains_key(IP), key, value)?;
        }
        if value == current {
            continue;
        }
        let part = |(kind, name): (&String, &Option<String>)| client_quota_record::EntityData {
            entity_type: kind.clone(),
            entity_name: name.clone(),
        };
        records.push(MetadataRecord::ClientQuota(ClientQuotaRecord {
            entity: entity.iter().map(part).collect(),
            key: key.to_owned(),
            value: value.unwrap_or(0.0),
            remove: value.is_none(),
        }));
    }
    Ok(records)
}

fn check_entity(entity: &QuotaEntity, unknown_hosts: &BTreeSet<String>) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::new(ErrorCode::InvalidRequest, message));
    if entity.is_empty() {
        return invalid("Invalid empty client quota entity".to_owned());
    }
    for (kind, name) in entity {
        if ![USER, CLIENT_ID, IP].contains(&kind.as_str()) {
            return invalid(format!("Unhandled client quota entity type: {kind}"));
        }
        if name.as_deref() == Some("") {
            return invalid(format!("Empty {kind} not supported"));
        }
    }
    let Some(ip) = entity.get(IP) else { return Ok(()) };
    if entity.len() > 1 {
        // Kafka's sentence, with the blank that it lacks.
        return invalid(
            "Invalid quota entity combination, IP entity should not be combined with User or ClientId".to_owned(),
        );
    }
    match ip {
        Some(name) if unknown_hosts.contains(name) => invalid(format!("{name} is not a valid IP or resolvable host.")),
        _ => Ok(()),
    }
}

fn check_value(of_ip: bool, key: &str, value: f64) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::new(ErrorCode::InvalidRequest, message));
    let known = USER_AND_CLIENT_QUOTAS.iter().find(|(name, _)| *name == key && !of_ip);
    let (whole, largest, kind) = match known {
        Some((_, whole)) => (*whole, i64::MAX as f64, "a LONG"),
        None if of_ip && key == IP_QUOTA => (true, f64::from(i32::MAX), "an INT"),
        None => return invalid(format!("Invalid configuration key {key}")),
    };
    if value <= 0.0 {
        return invalid(format!("Quota {key} must be greater than 0"));
    }
    if whole && value > largest {
        return invalid(format!("Proposed value for {key} is too large for {kind}."));
    }
    if whole && (value % 1.0).abs() > 1e-6 {
        return invalid(format!("{key} cannot be a fractional value."));
    }
    Ok(())
}
