//! Quotas of users, clients and addresses, and users' SCRAM credentials.

use std::collections::BTreeMap;

use caudal_protocol::messages::alter_client_quotas_request::{EntityData, EntryData, OpData};
use caudal_protocol::messages::describe_client_quotas_request::ComponentData;
use caudal_protocol::messages::describe_client_quotas_response::EntryData as Quotas;
use caudal_protocol::messages::describe_user_scram_credentials_response::CredentialInfo;

use super::Entities;
use super::scram::{self, MECHANISMS};
use crate::tools::cluster::{CallError, Cluster, check};
use crate::tools::java::double;
use crate::tools::{Stop, say, tell};

const USER_QUOTAS: [&str; 4] =
    ["consumer_byte_rate", "controller_mutation_rate", "producer_byte_rate", "request_percentage"];
const IP_QUOTA: &str = "connection_creation_rate";
/// How an entity's name is matched: by that name, as the default, or any.
const EXACT: i8 = 0;
const DEFAULT: i8 = 1;
const ANY: i8 = 2;

/// What `--add-config` sets and `--delete-config` deletes (`None`).
type Changes = [(String, Option<String>)];

fn is_scram(name: &str) -> bool {
    MECHANISMS.iter().any(|m| m.name == name)
}

fn is_user_quota(name: &str) -> bool {
    USER_QUOTAS.contains(&name)
}

/// Refuses what an entity does not have.
pub fn check_changes(changes: &Changes, entities: &Entities) -> Result<(), Stop> {
    let fail = |sentence: String| Err(Stop::Failed(sentence));
    let names = |is_odd: &dyn Fn(&str) -> bool, is_added: bool| {
        let odd = changes.iter().filter(|(name, value)| value.is_some() == is_added && is_odd(name));
        odd.map(|(name, _)| name.as_str()).collect::<Vec<_>>()
    };
    let kind = entities.types.first().map_or("", String::as_str);
    if kind == "ips" {
        let odd: Vec<&str> = changes.iter().map(|(name, _)| name.as_str()).filter(|n| *n != IP_QUOTA).collect();
        if odd.is_empty() {
            return Ok(());
        }
        let sentence = "Only connection quota configs can be added for 'ips' using --bootstrap-server.";
        return fail(format!("{sentence} Unexpected config names: {}", odd.join(", ")));
    }
    let has_clients = entities.types.iter().any(|t| t == "clients");
    let is_odd = |name: &str| !is_user_quota(name) && (has_clients || !is_scram(name));
    let (of, what) = if has_clients { ("clients", "quota") } else { ("users", "quota and SCRAM credential") };
    for (is_added, verb) in [(true, "added"), (false, "deleted")] {
        let odd = names(&is_odd, is_added);
        if !odd.is_empty() {
            let sentence = format!("Only {what} configs can be {verb} for '{of}' using --bootstrap-server.");
            return fail(format!("{sentence} Unexpected config names: {}", odd.join(",")));
        }
    }
    if changes.iter().any(|(name, _)| is_scram(name)) {
        if entities.names.iter().any(String::is_empty) {
            let sentence = "The use of --entity-default or --user-defaults is not allowed with User SCRAM Credentials using \
                            --bootstrap-server.";
            return fail(sentence.to_owned());
        }
        if changes.iter().any(|(name, _)| is_user_quota(name)) {
            let sentence = "Cannot alter both quota and SCRAM credential configs simultaneously for 'users' using \
                            --bootstrap-server.";
            return fail(sentence.to_owned());
        }
    }
    Ok(())
}

/// For a change that makes no sense: the sentence is all there is to say.
fn refused(sentence: impl std::fmt::Display) -> Stop {
    tell!("{sentence}");
    Stop::Exit(1)
}

/// `users` -> `user`, as requests name it.
fn wire_type(entity_type: &str) -> &'static str {
    match entity_type {
        "users" => "user",
        "clients" => "client-id",
        _ => "ip",
    }
}

fn components(entities: &Entities) -> Vec<ComponentData> {
    let component = |(i, entity_type): (usize, &String)| {
        let (match_type, name) = match entities.names.get(i) {
            None => (ANY, None),
            Some(name) if name.is_empty() => (DEFAULT, None),
            Some(name) => (EXACT, Some(name.clone())),
        };
        ComponentData { entity_type: wire_type(entity_type).to_owned(), match_type, match_: name }
    };
    entities.types.iter().enumerate().map(component).collect()
}

async fn quotas(cluster: &Cluster, entities: &Entities) -> Result<Vec<Quotas>, Stop> {
    let found = cluster.admin.describe_client_quotas(components(entities), true).await;
    found.map_err(|e| Stop::Failed(CallError::from(e).java()))
}

pub async fn alter(cluster: &Cluster, changes: &Changes, entities: &Entities) -> Result<(), Stop> {
    if changes.iter().any(|(name, _)| is_scram(name)) {
        let user = entities.names.first().map_or("", String::as_str);
        return alter_scram(cluster, user, changes).await;
    }
    let known = quotas(cluster, entities).await?;
    let is_set = |name: &str| known.first().is_some_and(|e| e.values.iter().any(|v| v.key == name));
    let unset: Vec<&str> = changes.iter().filter(|(n, v)| v.is_none() && !is_set(n)).map(|(n, _)| n.as_str()).collect();
    if !unset.is_empty() {
        return Err(refused(format!("Invalid config(s): {}", unset.join(","))));
    }
    let op = |(key, value): &(String, Option<String>)| match value {
        None => Ok(OpData { key: key.clone(), remove: true, ..Default::default() }),
        Some(text) => {
            let wrong = |_| refused(format!("Cannot parse quota configuration value for {key}: {text}"));
            Ok(OpData { key: key.clone(), value: text.trim().parse().map_err(wrong)?, ..Default::default() })
        }
    };
    let ops = changes.iter().map(op).collect::<Result<Vec<_>, Stop>>()?;
    let entity = |(entity_type, name): (&String, &String)| EntityData {
        entity_type: wire_type(entity_type).to_owned(),
        entity_name: Some(name.clone()).filter(|n| !n.is_empty()),
    };
    let entity = entities.types.iter().zip(&entities.names).map(entity).collect();
    let results = cluster.admin.alter_client_quotas(vec![EntryData { entity, ops }]).await;
    let results = results.map_err(|e| Stop::Failed(CallError::from(e).java()))?;
    let failed = |e: CallError| Stop::Failed(e.java());
    results.iter().try_for_each(|r| check(r.error_code, r.error_message.as_deref()).map_err(failed))
}

async fn alter_scram(cluster: &Cluster, user: &str, changes: &Changes) -> Result<(), Stop> {
    let request = scram::request(user, changes).map_err(refused)?;
    let results = cluster.admin.alter_scram_credentials(&request).await;
    let results = results.map_err(|e| Stop::Failed(CallError::from(e).java()))?;
    let failed = |e: CallError| Stop::Failed(e.java());
    results.iter().try_for_each(|r| check(r.error_code, r.error_message.as_deref()).map_err(failed))
}

pub async fn describe(cluster: &Cluster, entities: &Entities) -> Result<(), Stop> {
    let mut lines: Vec<String> = quotas(cluster, entities).await?.iter().map(line).collect();
    lines.sort();
    lines.iter().try_for_each(|line| say!("{line}"))?;
    let is_about_users = entities.types.iter().all(|t| t == "users");
    if is_about_users && !entities.names.iter().any(String::is_empty) {
        describe_scram(cluster, &entities.names).await?;
    }
    Ok(())
}

fn line(quotas: &Quotas) -> String {
    let names: BTreeMap<&str, Option<&str>> =
        quotas.entity.iter().map(|e| (e.entity_type.as_str(), e.entity_name.as_deref())).collect();
    let kinds = [("user", "user-principal"), ("client-id", "client-id"), ("ip", "ip")];
    let text = |(key, kind): (&str, &str)| {
        let name = names.get(key)?.filter(|n| !n.is_empty());
        Some(name.map_or_else(|| format!("the default {kind}"), |name| format!("{kind} '{name}'")))
    };
    let entity: Vec<String> = kinds.into_iter().filter_map(text).collect();
    let mut values: Vec<String> = quotas.values.iter().map(|v| format!("{}={}", v.key, double(v.value))).collect();
    values.sort();
    format!("Quota configs for {} are {}", entity.join(", "), values.join(", "))
}

async fn describe_scram(cluster: &Cluster, users: &[String]) -> Result<(), Stop> {
    let wanted = if users.is_empty() { None } else { Some(users) };
    let found = cluster.admin.describe_scram_credentials(wanted).await;
    for user in found.map_err(|e| Stop::Failed(CallError::from(e).java()))? {
        let name = &user.user;
        // A user without credentials is no error to the original either.
        if user.error_code == caudal_protocol::ErrorCode::ResourceNotFound.code() {
            continue;
        }
        match check(user.error_code, user.error_message.as_deref()) {
            Ok(()) => {
                let infos = user.credential_infos.iter().map(info).collect::<Vec<_>>().join(", ");
                say!("SCRAM credential configs for user-principal '{name}' are {infos}")?;
            }
            Err(e) => {
                let what = format!("Error retrieving SCRAM credential configs for user-principal '{name}'");
                let kind = e.code.map_or("", caudal_protocol::ErrorCode::exception);
                say!("{what}: {kind}: {}", e.message)?;
            }
        }
    }
    Ok(())
}

fn info(info: &CredentialInfo) -> String {
    let name = MECHANISMS.iter().find(|m| m.id == info.mechanism).map_or("UNKNOWN", |m| m.name);
    format!("{name}=iterations={}", info.iterations)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = (&'static str, Option<&'static str>);
    /// Types and names of entities, a change, and how the refusal begins.
    type Case = (&'static [&'static str], &'static [&'static str], [Change; 1], &'static str);

    fn checked(types: &[&str], names: &[&str], changes: &[Change]) -> Result<(), String> {
        let own = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
        let changes: Vec<_> = changes.iter().map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned))).collect();
        check_changes(&changes, &Entities { types: own(types), names: own(names) }).map_err(|e| e.to_string())
    }

    #[test]
    fn what_entities_do_not_have() {
        let cases: [Case; 5] = [
            (&["clients"], &["c"], [("x", Some("1"))], "Only quota configs can be added for 'clients'"),
            (&["clients"], &["c"], [("SCRAM-SHA-256", None)], "Only quota configs can be deleted for 'clients'"),
            (&["users"], &["u"], [("x", None)], "Only quota and SCRAM credential configs can be deleted for 'users'"),
            (&["users"], &[""], [("SCRAM-SHA-256", Some("[password=x]"))], "The use of --entity-default or"),
            (&["ips"], &["::1"], [("producer_byte_rate", Some("1"))], "Only connection quota configs can be added"),
        ];
        for (types, names, changes, sentence) in cases {
            let error = checked(types, names, &changes).unwrap_err();
            assert!(error.starts_with(sentence), "{error}");
        }
        assert!(checked(&["users", "clients"], &["u", "c"], &[("producer_byte_rate", Some("1"))]).is_ok());
        assert!(checked(&["ips"], &["::1"], &[("connection_creation_rate", None)]).is_ok());
    }

    #[test]
    fn entities_in_words() {
        use caudal_protocol::messages::describe_client_quotas_response::{EntityData, ValueData};
        let entity = |kind: &str, name: Option<&str>| EntityData {
            entity_type: kind.to_owned(),
            entity_name: name.map(str::to_owned),
        };
        let value = |key: &str, value: f64| ValueData { key: key.to_owned(), value };
        let quotas = Quotas {
            entity: vec![entity("client-id", None), entity("user", Some("u"))],
            values: vec![value("producer_byte_rate", 1024.0), value("consumer_byte_rate", 2e7)],
        };
        assert_eq!(
            line(&quotas),
            "Quota configs for user-principal 'u', the default client-id are consumer_byte_rate=2.0E7, \
             producer_byte_rate=1024.0"
        );
    }
}
