//! Kafka's client properties: names, kinds, defaults, and which of them this client heeds.

use std::collections::BTreeMap;
use std::time::Duration;

/// Why a property was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("failed to configure the client: {name}={value} is not allowed; {allowed}")]
    BadValue { name: String, value: String, allowed: String },
    #[error("failed to configure the client: unknown property '{name}'{}", nearest.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default())]
    Unknown { name: String, nearest: Option<&'static str> },
    #[error(
        "failed to configure the client: security.protocol={0} is not served; this client speaks PLAINTEXT only, without TLS and SASL"
    )]
    Security(String),
    #[error(
        "failed to configure the client: {names} cannot be set when group.protocol={protocol}{}",
        if *protocol == "consumer" { "; the broker decides (group.consumer.*)" } else { "; set group.protocol=consumer" }
    )]
    OtherProtocol { names: String, protocol: &'static str },
    #[error("failed to configure the client: {name} is not set; {hint}")]
    Missing { name: &'static str, hint: &'static str },
}

/// What values a property takes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Int {
        min: i64,
        max: i64,
    },
    Bool,
    Text,
    OneOf(&'static [&'static str]),
    /// Known to Kafka's clients, without a meaning here.
    Ignored,
    /// Known to Kafka's clients; to ignore it would break a promise.
    Unsupported,
}

/// One property.
#[derive(Debug, Clone, Copy)]
struct Property {
    name: &'static str,
    kind: Kind,
    default: &'static str,
}

const fn int(name: &'static str, min: i64, max: i64, default: &'static str) -> Property {
    Property { name, kind: Kind::Int { min, max }, default }
}

const fn text(name: &'static str, default: &'static str) -> Property {
    Property { name, kind: Kind::Text, default }
}

const fn flag(name: &'static str, default: &'static str) -> Property {
    Property { name, kind: Kind::Bool, default }
}

const fn choice(name: &'static str, allowed: &'static [&'static str], default: &'static str) -> Property {
    Property { name, kind: Kind::OneOf(allowed), default }
}

const fn ignored(name: &'static str) -> Property {
    Property { name, kind: Kind::Ignored, default: "" }
}

const I32: i64 = i32::MAX as i64;
const I64: i64 = i64::MAX;

/// Every property that is heeded, with Apache Kafka 4.3's defaults.
const PROPERTIES: &[Property] = &[
    // All clients.
    text("bootstrap.servers", ""),
    text("bootstrap.controllers", ""),
    text("client.id", "caudal"),
    text("client.rack", ""),
    int("request.timeout.ms", 1, I32, "30000"),
    int("default.api.timeout.ms", 1, I32, "60000"),
    int("retries", 0, I32, "2147483647"),
    int("retry.backoff.ms", 0, I64, "100"),
    int("retry.backoff.max.ms", 0, I64, "1000"),
    int("reconnect.backoff.ms", 0, I64, "50"),
    int("reconnect.backoff.max.ms", 0, I64, "1000"),
    int("socket.connection.setup.timeout.ms", 1, I64, "10000"),
    int("metadata.max.age.ms", 0, I64, "300000"),
    // Heeded where they are set. The system sizes the buffers of sockets by itself, better than Kafka's fixed defaults do.
    int("send.buffer.bytes", -1, I32, "-1"),
    int("receive.buffer.bytes", -1, I32, "-1"),
    choice("security.protocol", &["PLAINTEXT"], "PLAINTEXT"),
    // Producer.
    choice("acks", &["all", "-1", "0", "1"], "all"),
    int("batch.size", 0, I32, "16384"),
    int("buffer.memory", 0, I64, "33554432"),
    choice("compression.type", &["none", "gzip", "snappy", "lz4", "zstd"], "none"),
    int("delivery.timeout.ms", 0, I32, "120000"),
    flag("enable.idempotence", "true"),
    int("linger.ms", 0, I64, "5"),
    int("max.block.ms", 0, I64, "60000"),
    int("max.in.flight.requests.per.connection", 1, I32, "5"),
    int("max.request.size", 0, I32, "1048576"),
    choice("partitioner.ignore.keys", &["true", "false"], "false"),
    // Consumer.
    flag("allow.auto.create.topics", "true"),
    int("auto.commit.interval.ms", 0, I32, "5000"),
    choice("auto.offset.reset", &["earliest", "latest", "none"], "latest"),
    flag("check.crcs", "true"),
    flag("enable.auto.commit", "true"),
    int("fetch.max.bytes", 0, I32, "52428800"),
    int("fetch.max.wait.ms", 0, I32, "500"),
    int("fetch.min.bytes", 0, I32, "1"),
    text("group.id", ""),
    text("group.instance.id", ""),
    choice("group.protocol", &["classic", "consumer"], "classic"),
    text("group.remote.assignor", ""),
    int("heartbeat.interval.ms", 1, I32, "3000"),
    choice("isolation.level", &["read_uncommitted", "read_committed"], "read_uncommitted"),
    int("max.partition.fetch.bytes", 0, I32, "1048576"),
    int("max.poll.interval.ms", 1, I32, "300000"),
    int("max.poll.records", 1, I32, "500"),
    text("partition.assignment.strategy", "range,cooperative-sticky"),
    int("session.timeout.ms", 1, I32, "45000"),
    // Promises that are not kept yet.
    Property { name: "transactional.id", kind: Kind::Unsupported, default: "" },
    // Known to the Java client; nothing here reads them.
    ignored("transaction.timeout.ms"),
    ignored("key.serializer"),
    ignored("value.serializer"),
    ignored("key.deserializer"),
    ignored("value.deserializer"),
    ignored("client.dns.lookup"),
    ignored("connections.max.idle.ms"),
    ignored("socket.connection.setup.timeout.max.ms"),
    ignored("metadata.max.idle.ms"),
    ignored("metadata.recovery.strategy"),
    ignored("metadata.recovery.rebootstrap.trigger.ms"),
    ignored("metric.reporters"),
    ignored("metrics.num.samples"),
    ignored("metrics.recording.level"),
    ignored("metrics.sample.window.ms"),
    ignored("enable.metrics.push"),
    ignored("interceptor.classes"),
    ignored("exclude.internal.topics"),
    ignored("partitioner.class"),
    ignored("partitioner.adaptive.partitioning.enable"),
    ignored("partitioner.availability.timeout.ms"),
    ignored("auto.include.jmx.reporter"),
    ignored("config.providers"),
];

fn property(name: &str) -> Option<&'static Property> {
    PROPERTIES.iter().find(|p| p.name == name)
}

/// Settings of a client, by Kafka's property names.
#[derive(Debug, Clone, Default)]
pub struct ClientConfig {
    values: BTreeMap<&'static str, String>,
    warnings: Vec<String>,
}

impl ClientConfig {
    /// Defaults, with the brokers to begin with: `host:port`, separated by commas.
    pub fn new(bootstrap_servers: &str) -> ClientConfig {
        let mut config = ClientConfig::default();
        config.values.insert("bootstrap.servers", bootstrap_servers.to_owned());
        config
    }

    /// Takes properties as they stand in a `.properties` file. An unknown name is a warning ([`ClientConfig::warnings`]),
    /// as with Kafka's clients, and so is a known one that has no effect here; a value that is not allowed is an error.
    pub fn from_properties<I, K, V>(properties: I) -> Result<ClientConfig, ConfigError>
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<str>,
        V: Into<String>,
    {
        let mut config = ClientConfig::default();
        for (name, value) in properties {
            match config.put(name.as_ref(), value.into()) {
                Err(ConfigError::Unknown { name, nearest }) => {
                    let hint = nearest.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
                    config.warnings.push(format!("unknown client property '{name}' has no effect{hint}"));
                }
                other => other?,
            }
            let name = name.as_ref();
            if is_security(name) {
                config.warnings.push(format!(
                    "client property '{name}' has no effect: this client speaks PLAINTEXT only, without TLS and SASL"
                ));
            } else if property(name).is_some_and(|known| matches!(known.kind, Kind::Ignored)) {
                config.warnings.push(format!("client property '{name}' has no effect: this client does not act on it"));
            }
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        Ok(config)
    }

    /// Sets one property; unlike in a file, an unknown name is an error here.
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Result<ClientConfig, ConfigError> {
        self.put(name, value.into())?;
        Ok(self)
    }

    /// As [`ClientConfig::set`], in place.
    pub fn put(&mut self, name: &str, value: String) -> Result<(), ConfigError> {
        let Some(known) = property(name) else {
            if is_security(name) {
                return Ok(());
            }
            return Err(ConfigError::Unknown { name: name.to_owned(), nearest: nearest(name) });
        };
        let value = value.trim().to_owned();
        if known.name == "security.protocol" && !value.eq_ignore_ascii_case("PLAINTEXT") {
            return Err(ConfigError::Security(value));
        }
        let allowed =
            match known.kind {
                Kind::Int { min, max } if !value.parse::<i64>().is_ok_and(|n| (min..=max).contains(&n)) => {
                    if max == I64 { format!("a number from {min}") } else { format!("a number from {min} to {max}") }
                }
                Kind::Bool if !value.eq_ignore_ascii_case("true") && !value.eq_ignore_ascii_case("false") => {
                    "true or false".to_owned()
                }
                Kind::OneOf(values) if !values.iter().any(|v| v.eq_ignore_ascii_case(&value)) => {
                    format!("one of {}", values.join(", "))
                }
                _ => String::new(),
            };
        if !allowed.is_empty() {
            return Err(ConfigError::BadValue { name: name.to_owned(), value, allowed });
        }
        self.values.insert(known.name, value);
        Ok(())
    }

    /// What was odd about the properties, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether the property was set, rather than left at its default.
    pub fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value or the default; empty for a name that is not known.
    pub fn get(&self, name: &str) -> &str {
        debug_assert!(property(name).is_some(), "no property {name}");
        match self.values.get(name) {
            Some(value) => value,
            None => property(name).map_or("", |p| p.default),
        }
    }

    /// The text value, `None` when empty.
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        Some(self.get(name)).filter(|value| !value.is_empty())
    }

    pub(crate) fn int(&self, name: &str) -> i64 {
        self.get(name).parse().unwrap_or_default()
    }

    pub(crate) fn int32(&self, name: &str) -> i32 {
        i32::try_from(self.int(name)).unwrap_or(i32::MAX)
    }

    pub(crate) fn size(&self, name: &str) -> usize {
        usize::try_from(self.int(name)).unwrap_or(0)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).eq_ignore_ascii_case("true")
    }

    pub(crate) fn duration(&self, name: &str) -> Duration {
        Duration::from_millis(u64::try_from(self.int(name)).unwrap_or(0))
    }

    /// Whether the client speaks to the controllers of a KRaft cluster in place of its brokers: only for administration.
    pub(crate) fn is_to_controllers(&self) -> bool {
        !self.get("bootstrap.controllers").is_empty()
    }

    /// The addresses of `bootstrap.servers` or `bootstrap.controllers`, checked.
    pub(crate) fn bootstrap_servers(&self) -> Result<Vec<(String, u16)>, ConfigError> {
        let name = if self.is_to_controllers() { "bootstrap.controllers" } else { "bootstrap.servers" };
        let value = self.get(name);
        if value.is_empty() {
            return Err(ConfigError::Missing { name: "bootstrap.servers", hint: "for example 127.0.0.1:9092" });
        }
        value.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse_address).collect()
    }
}

/// `host:port`, `[v6]:port`, or with a listener's name before it (`PLAINTEXT://host:port`).
fn parse_address(address: &str) -> Result<(String, u16), ConfigError> {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    let parsed = bare.rsplit_once(':').and_then(|(host, port)| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some((host.to_owned(), port.parse::<u16>().ok()?)).filter(|(host, _)| !host.is_empty())
    });
    parsed.ok_or_else(|| ConfigError::BadValue {
        name: "bootstrap.servers".to_owned(),
        value: address.to_owned(),
        allowed: "write host:port, for example 127.0.0.1:9092; several are separated by commas".to_owned(),
    })
}

/// What only means something to a client with TLS or SASL.
fn is_security(name: &str) -> bool {
    name.starts_with("ssl.") || name.starts_with("sasl.")
}

/// The known name with the smallest edit distance, if it is close enough to be a typo. Its beginning may stand for it.
fn nearest(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase().replace('_', ".");
    let words = lower.split('.').count();
    let beginning = |known: &'static str| match known.match_indices('.').nth(words - 1) {
        Some((end, _)) => known.get(..end).unwrap_or(known),
        None => known,
    };
    let distance = |known| edit_distance(&lower, known).min(edit_distance(&lower, beginning(known)) + 1);
    // Of names that are as near the first of the table counts: the usual one.
    let scored = PROPERTIES.iter().map(|p| (distance(p.name), p.name));
    scored
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= 2 + name.len() / 6)
        .map(|(_, name)| name)
}

/// Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let value = (diagonal + usize::from(x != y)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, value);
            left = value;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_allowed() {
        for p in PROPERTIES.iter().filter(|p| !p.default.is_empty()) {
            let set = ClientConfig::default().set(p.name, p.default);
            assert!(set.is_ok(), "{set:?}");
        }
    }

    #[test]
    fn a_typo_is_answered_with_the_nearest_name() {
        let error = ClientConfig::default().set("bootstrap.server", "x:1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to configure the client: unknown property 'bootstrap.server'; did you mean 'bootstrap.servers'?"
        );
        let error = ClientConfig::default().set("lingerms", "1").unwrap_err();
        assert!(error.to_string().ends_with("did you mean 'linger.ms'?"), "{error}");
        let config = ClientConfig::from_properties([("compresion.type", "lz4")]).unwrap();
        assert_eq!(
            config.warnings(),
            ["unknown client property 'compresion.type' has no effect; did you mean 'compression.type'?"]
        );
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let config = ClientConfig::from_properties([
            ("bootstap", "a:1"),
            ("auto.offset.rest", "earliest"),
            ("ssl.truststore.location", "/x"),
            ("connections.max.idle.ms", "5"),
            ("linger.ms", "5"),
        ])
        .unwrap();
        let plaintext = "has no effect: this client speaks PLAINTEXT only, without TLS and SASL";
        assert_eq!(
            config.warnings(),
            [
                "unknown client property 'bootstap' has no effect; did you mean 'bootstrap.servers'?",
                "unknown client property 'auto.offset.rest' has no effect; did you mean 'auto.offset.reset'?",
                &format!("client property 'ssl.truststore.location' {plaintext}"),
                "client property 'connections.max.idle.ms' has no effect: this client does not act on it",
            ]
        );
        let error = ClientConfig::from_properties([("security.protocol", "SASL_SSL")]).unwrap_err();
        assert!(error.to_string().contains("security.protocol=SASL_SSL is not served"), "{error}");
    }

    #[test]
    fn bad_values_name_what_is_allowed() {
        let error = ClientConfig::default().set("acks", "2").unwrap_err();
        assert_eq!(error.to_string(), "failed to configure the client: acks=2 is not allowed; one of all, -1, 0, 1");
        assert!(ClientConfig::default().set("linger.ms", "-1").is_err());
        assert!(ClientConfig::default().set("security.protocol", "SSL").is_err());
        assert!(ClientConfig::new("nonsense").bootstrap_servers().is_err());
        assert!(ClientConfig::new("").bootstrap_servers().is_err());
    }

    #[test]
    fn addresses() {
        let config = ClientConfig::new("a:1, [::1]:2,PLAINTEXT://b:3");
        let expected = [("a", 1), ("::1", 2), ("b", 3)].map(|(h, p)| (h.to_owned(), p));
        assert_eq!(config.bootstrap_servers().unwrap(), expected);
    }

    #[test]
    fn distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
