//! `kafka-verifiable-producer` and `kafka-verifiable-consumer`: they say on standard output, as JSON, what became of each
//! record, for tests that compare. Events and the order of their fields are Kafka's.

pub mod consumer;
pub mod producer;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::options::Parsed;
use super::perf::now_ms;
use super::{Stop, load_properties, say};

/// Prints an event: the time, its name, and its fields in order.
fn event(name: &str, fields: Value) -> Result<(), Stop> {
    let mut all = json!({ "timestamp": now_ms(), "name": name });
    if let (Some(all), Value::Object(fields)) = (all.as_object_mut(), fields) {
        all.extend(fields);
    }
    say!("{all}")
}

/// The client's properties of the file that one of two options names, of which `before` is deprecated.
fn file(parsed: &Parsed, before: &str) -> Result<BTreeMap<String, String>, Stop> {
    if parsed.has(before) && parsed.has("command-config") {
        return Err(Stop::Usage(format!("Options --{before} and --command-config are mutually exclusive.")));
    }
    if parsed.has(before) {
        say!(
            "Option --{before} has been deprecated and will be removed in a future version. Use --command-config instead."
        )?;
    }
    match parsed.text(before)?.or(parsed.text("command-config")?) {
        Some(path) => load_properties(path).map_err(|e| Stop::Usage(e.to_string())),
        None => Ok(BTreeMap::new()),
    }
}

/// Refuses a command line without these options, or with more than options.
fn require(parsed: &Parsed, names: &[&str]) -> Result<(), Stop> {
    if let Some(name) = names.iter().find(|n| !parsed.has(n)) {
        return Err(Stop::Usage(format!("argument --{name} is required")));
    }
    match parsed.rest.first() {
        Some(extra) => Err(Stop::Usage(format!("unrecognized arguments: '{extra}'"))),
        None => Ok(()),
    }
}
