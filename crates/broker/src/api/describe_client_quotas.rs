//! DescribeClientQuotas (48), versions 0-1 (KIP-546).

use std::collections::{BTreeMap, BTreeSet};

use caudal_cluster::controller::{ApiError, CLIENT_ID, IP, USER};
use caudal_cluster::image::QuotaEntity;
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_client_quotas_request::ComponentData;
use caudal_protocol::messages::describe_client_quotas_response::{EntityData, EntryData, ValueData};
use caudal_protocol::messages::{DescribeClientQuotasRequest, DescribeClientQuotasResponse};

use super::RequestHeader;
use crate::context::Context;

/// `matchType`: this name, the default, any.
const EXACT: i8 = 0;
const DEFAULT: i8 = 1;
const ANY: i8 = 2;

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DescribeClientQuotasRequest,
    _version: i16,
) -> DescribeClientQuotasResponse {
    let filter = match Filter::of(&request.components) {
        Ok(filter) => filter,
        Err(error) => {
            return DescribeClientQuotasResponse {
                error_code: error.code.code(),
                error_message: Some(error.message),
                entries: None,
                ..DescribeClientQuotasResponse::default()
            };
        }
    };
    let image = ctx.metadata.image();
    let mut found: BTreeMap<&QuotaEntity, Vec<ValueData>> = BTreeMap::new();
    for ((entity, key), value) in image.quotas().iter() {
        if filter.takes(entity, request.strict) {
            found.entry(entity).or_default().push(ValueData { key: key.clone(), value: *value });
        }
    }
    let entries = found.into_iter().map(|(entity, values)| {
        let part = |(kind, name): (&String, &Option<String>)| EntityData {
            entity_type: kind.clone(),
            entity_name: name.clone(),
        };
        EntryData { entity: entity.iter().map(part).collect(), values }
    });
    DescribeClientQuotasResponse {
        error_message: None,
        entries: Some(entries.collect()),
        ..DescribeClientQuotasResponse::default()
    }
}

/// Which entities are asked for.
#[derive(Default)]
struct Filter {
    /// A name, or the default, by type.
    exact: QuotaEntity,
    /// The types of which there must be one, whoever it is.
    any: BTreeSet<String>,
}

impl Filter {
    fn of(components: &[ComponentData]) -> Result<Filter, ApiError> {
        let invalid = |message: String| Err(ApiError::new(ErrorCode::InvalidRequest, message));
        let mut filter = Filter::default();
        for component in components {
            let kind = &component.entity_type;
            if kind.is_empty() {
                return invalid("Invalid empty entity type.".to_owned());
            }
            if filter.has(kind) {
                return invalid(format!("Entity type {kind} cannot appear more than once in the filter."));
            }
            if ![USER, CLIENT_ID, IP].contains(&kind.as_str()) {
                let message = format!("Unsupported entity type {kind}");
                return Err(ApiError::new(ErrorCode::UnsupportedVersion, message));
            }
            match (component.match_type, &component.match_) {
                (EXACT, None) => {
                    return invalid("Request specified MATCH_TYPE_EXACT, but set match string to null.".to_owned());
                }
                (EXACT, name) => _ = filter.exact.insert(kind.clone(), name.clone()),
                (DEFAULT, None) => _ = filter.exact.insert(kind.clone(), None),
                (ANY, None) => _ = filter.any.insert(kind.clone()),
                (DEFAULT, Some(_)) => {
                    let message = "Request specified MATCH_TYPE_DEFAULT, but also specified a match string.";
                    return invalid(message.to_owned());
                }
                (ANY, Some(_)) => {
                    let message = "Request specified MATCH_TYPE_SPECIFIED, but also specified a match string.";
                    return invalid(message.to_owned());
                }
                (other, _) => return invalid(format!("Unknown match type {other}")),
            }
        }
        if filter.has(IP) && (filter.has(USER) || filter.has(CLIENT_ID)) {
            let message = "Invalid entity filter component combination. IP filter component should not be used with user \
                           or clientId filter component.";
            return invalid(message.to_owned());
        }
        Ok(filter)
    }

    fn has(&self, kind: &str) -> bool {
        self.exact.contains_key(kind) || self.any.contains(kind)
    }

    /// `strict`: nothing else may be part of the entity.
    fn takes(&self, entity: &QuotaEntity, strict: bool) -> bool {
        let named = self.exact.iter().all(|(kind, name)| entity.get(kind) == Some(name));
        let present = self.any.iter().all(|kind| entity.contains_key(kind));
        named && present && (!strict || entity.len() == self.exact.len() + self.any.len())
    }
}
