//! A log line as an object: `timestamp`, `level`, `target`, `message`, and the event's own fields beside them.

use std::fmt;
use std::io::Write;

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Writes one object per line to standard error.
pub struct JsonLines;

impl<S: Subscriber> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = object(event);
        // One write, so that lines of several threads do not mix. Nobody is told when it fails.
        let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
    }
}

fn object(event: &Event<'_>) -> Value {
    let mut fields = Fields(Map::new());
    let metadata = event.metadata();
    let now = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
    fields.put("timestamp", now.into());
    fields.put("level", metadata.level().as_str().into());
    fields.put("target", metadata.target().into());
    event.record(&mut fields);
    Value::Object(fields.0)
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<Value>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().push(object(event));
        }
    }

    #[test]
    fn fields_keep_their_types() {
        let kept = Kept::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(kept.clone()), || {
            let none: Option<u64> = None;
            tracing::warn!(count = 3, none, client = "a\n\"b\"", dir = %"/d", "it is {}", "so");
        });
        let lines = kept.0.lock();
        let line = &lines[0];
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "it is so");
        assert_eq!((&line["count"], &line["client"], &line["dir"]), (&3.into(), &"a\n\"b\"".into(), &"/d".into()));
        assert!(line.get("none").is_none() && line["timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
