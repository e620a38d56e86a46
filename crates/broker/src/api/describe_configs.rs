//! DescribeConfigs (32), versions 1-4: configs of topics, of groups and of this broker, with where each value comes from.

use std::collections::{BTreeMap, HashSet};

use caudal_cluster::MetadataImage;
use caudal_cluster::config::{
    self, CLIENT_METRICS_CONFIGS, ConfigDef, ConfigSource, GROUP_CONFIGS, Resolved, TOPIC_CONFIGS, Update,
};
use caudal_cluster::controller::{ApiError, check_topic_name};
use caudal_cluster::image::{ConfigResource, ConfigResourceType};
use caudal_protocol::ErrorCode;
use caudal_protocol::messages::describe_configs_request::DescribeConfigsResource;
use caudal_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use caudal_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};

use super::{RequestHeader, once};
use crate::context::Context;

/// What beside the values is asked for.
#[derive(Clone, Copy)]
struct Extras {
    synonyms: bool,
    documentation: bool,
}

pub async fn handle(
    ctx: &Context,
    _header: &RequestHeader,
    request: DescribeConfigsRequest,
    _version: i16,
) -> DescribeConfigsResponse {
    let image = ctx.metadata.image();
    let extras = Extras { synonyms: request.include_synonyms, documentation: request.include_documentation };
    let resources = once(request.resources, |resource| (resource.resource_type, resource.resource_name.clone()));
    let results = resources.into_iter().map(|resource| {
        let (error_code, error_message, mut configs) = match describe(ctx, &image, &resource, extras) {
            Ok(configs) => (ErrorCode::None.code(), None, configs),
            Err(error) => (error.code.code(), Some(error.message), Vec::new()),
        };
        if let Some(keys) = resource.configuration_keys.filter(|keys| !keys.is_empty()) {
            let keys: HashSet<String> = keys.into_iter().collect();
            configs.retain(|config| keys.contains(&config.name));
        }
        DescribeConfigsResult {
            error_code,
            error_message,
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
            configs,
        }
    });
    DescribeConfigsResponse { throttle_time_ms: 0, results: results.collect() }
}

fn describe(
    ctx: &Context,
    image: &MetadataImage,
    resource: &DescribeConfigsResource,
    extras: Extras,
) -> Result<Vec<DescribeConfigsResourceResult>, ApiError> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidRequest, message);
    let name = resource.resource_name.as_str();
    match ConfigResourceType::from_code(resource.resource_type) {
        Some(ConfigResourceType::Topic) => topic(ctx, image, name, extras),
        Some(ConfigResourceType::Broker) if name.is_empty() => Ok(broker_defaults(image, extras)),
        Some(ConfigResourceType::Broker) => {
            this_broker(ctx, name, "or empty string, but received")?;
            Ok(broker(ctx, image, extras))
        }
        Some(ConfigResourceType::BrokerLogger) if name.is_empty() => {
            Err(invalid("Broker id must not be empty".to_owned()))
        }
        Some(ConfigResourceType::BrokerLogger) => {
            this_broker(ctx, name, "but received")?;
            Ok(Vec::new())
        }
        Some(ConfigResourceType::ClientMetrics) if name.is_empty() => {
            Err(invalid("Client metrics subscription name must not be empty".to_owned()))
        }
        Some(ConfigResourceType::Group) if name.is_empty() => Err(invalid("Group name must not be empty".to_owned())),
        Some(ConfigResourceType::Group) => Ok(group(ctx, image, name, extras)),
        Some(ConfigResourceType::ClientMetrics) => Ok(client_metrics(ctx, image, name, extras)),
        None => Err(invalid(format!("Unsupported resource type: {}", resource.resource_type))),
    }
}

fn this_broker(ctx: &Context, name: &str, but: &str) -> Result<(), ApiError> {
    let message = match name.parse::<i32>() {
        Ok(id) if id == ctx.node_id() => return Ok(()),
        Ok(_) if but.starts_with("or") => {
            format!("Unexpected broker id, expected {} {but} {name}", ctx.node_id())
        }
        Ok(_) => format!("Unexpected broker id, expected {} {but} {name}", ctx.node_id()),
        Err(_) => format!("Broker id must be an integer, but it is: {name}"),
    };
    Err(ApiError::new(ErrorCode::InvalidRequest, message))
}

fn topic(
    ctx: &Context,
    image: &MetadataImage,
    name: &str,
    extras: Extras,
) -> Result<Vec<DescribeConfigsResourceResult>, ApiError> {
    check_topic_name(name)?;
    if image.topic(name).is_none() {
        return Err(ApiError::of(ErrorCode::UnknownTopicOrPartition));
    }
    let own = image.configs(&ConfigResource::topic(name));
    let listed = TOPIC_CONFIGS.iter().filter(|def| !def.is_internal());
    let resolve = |def: &'static ConfigDef| {
        let resolved = ctx.config.properties.resolve_topic(image, ctx.node_id(), own, def);
        entry(resolved, false, extras)
    };
    Ok(listed.map(resolve).collect())
}

fn group(ctx: &Context, image: &MetadataImage, name: &str, extras: Extras) -> Vec<DescribeConfigsResourceResult> {
    let resource = ConfigResource { kind: ConfigResourceType::Group, name: name.to_owned() };
    let own = image.configs(&resource);
    let resolve = |def: &'static ConfigDef| {
        entry(ctx.config.properties.resolve_group(image, ctx.node_id(), own, def), false, extras)
    };
    GROUP_CONFIGS.iter().map(resolve).collect()
}

fn client_metrics(
    ctx: &Context,
    image: &MetadataImage,
    name: &str,
    extras: Extras,
) -> Vec<DescribeConfigsResourceResult> {
    let resource = ConfigResource { kind: ConfigResourceType::ClientMetrics, name: name.to_owned() };
    let own = image.configs(&resource);
    let resolve = |def: &'static ConfigDef| {
        entry(ctx.config.properties.resolve_client_metrics(image, ctx.node_id(), own, def), false, extras)
    };
    CLIENT_METRICS_CONFIGS.iter().map(resolve).collect()
}

fn broker(ctx: &Context, image: &MetadataImage, extras: Extras) -> Vec<DescribeConfigsResourceResult> {
    let listed = config::broker_configs().filter(|def| !def.is_internal());
    let is_set = |def: &&'static ConfigDef| {
        [ConfigResource::broker(ctx.node_id()), ConfigResource::all_brokers()]
            .iter()
            .any(|resource| image.config(resource, def.name).is_some())
    };
    let known = listed.chain(config::unlisted_broker_configs().iter().filter(is_set)).map(|def| {
        let read_only = def.update != Update::Dynamic;
        entry(ctx.config.properties.resolve_broker(image, ctx.node_id(), def), read_only, extras)
    });
    let mut unknown: BTreeMap<&str, Vec<ConfigSource>> = BTreeMap::new();
    for (resource, source) in [
        (ConfigResource::broker(ctx.node_id()), ConfigSource::DynamicBroker),
        (ConfigResource::all_brokers(), ConfigSource::DynamicDefaultBroker),
    ] {
        let set = image.configs(&resource).into_iter().flatten();
        for (name, _) in set.filter(|(name, _)| config::broker_config(name).is_none()) {
            unknown.entry(name).or_default().push(source);
        }
    }
    known.chain(unknown.into_iter().map(|(name, sources)| unknown_entry(name, &sources, extras))).collect()
}

/// What is set for all brokers; nothing else is listed there.
fn broker_defaults(image: &MetadataImage, extras: Extras) -> Vec<DescribeConfigsResourceResult> {
    let set = image.configs(&ConfigResource::all_brokers()).into_iter().flatten();
    set.map(|(name, value)| {
        let source = ConfigSource::DynamicDefaultBroker;
        let Some(def) = config::broker_config(name) else { return unknown_entry(name, &[source], extras) };
        let synonym = config::Synonym { name: name.clone(), value: value.clone(), source };
        let resolved = Resolved { def, value: Some(value.clone()), source, synonyms: vec![synonym] };
        entry(resolved, def.update != Update::Dynamic, extras)
    })
    .collect()
}

/// Of a name that nobody here knows: its value might be a secret.
fn unknown_entry(name: &str, sources: &[ConfigSource], extras: Extras) -> DescribeConfigsResourceResult {
    let synonym =
        |source: &ConfigSource| DescribeConfigsSynonym { name: name.to_owned(), value: None, source: source.code() };
    DescribeConfigsResourceResult {
        name: name.to_owned(),
        value: None,
        synonyms: sources.iter().filter(|_| extras.synonyms).map(synonym).collect(),
        read_only: true,
        config_source: sources.first().map_or(ConfigSource::Default, |source| *source).code(),
        is_sensitive: true,
        ..DescribeConfigsResourceResult::default()
    }
}

fn entry(resolved: Resolved, read_only: bool, extras: Extras) -> DescribeConfigsResourceResult {
    let def = resolved.def;
    let shown = |value: String| (!def.is_sensitive()).then_some(value);
    let synonyms = resolved.synonyms.into_iter().filter(|_| extras.synonyms).map(|s| DescribeConfigsSynonym {
        name: s.name,
        value: shown(s.value),
        source: s.source.code(),
    });
    DescribeConfigsResourceResult {
        name: def.name.to_owned(),
        synonyms: synonyms.collect(),
        value: resolved.value.and_then(shown),
        read_only,
        config_source: resolved.source.code(),
        is_sensitive: def.is_sensitive(),
        config_type: def.kind.code(),
        documentation: extras.documentation.then(|| def.doc.to_owned()),
    }
}
