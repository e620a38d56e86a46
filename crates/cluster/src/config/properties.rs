//! Java properties files, with the line of each key, and `KAFKA_*` environment variables.

use std::path::{Path, PathBuf};

/// One setting and where it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    pub key: String,
    pub value: String,
    /// Where it stands, for messages: `FILE line N`, `--set`, or the variable's name.
    pub origin: String,
}

/// Settings in the order they were made; of a key that is set twice, the later counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    entries: Vec<Property>,
}

#[derive(Debug, thiserror::Error)]
pub enum PropertiesError {
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("failed to read {origin}: malformed \\uXXXX encoding")]
    Unicode { origin: String },
}

impl Properties {
    pub fn new() -> Properties {
        Properties::default()
    }

    /// Reads a file in the format of `java.util.Properties`.
    pub fn read(path: &Path) -> Result<Properties, PropertiesError> {
        let bytes = std::fs::read(path).map_err(|source| PropertiesError::Read { path: path.to_owned(), source })?;
        // Java reads Latin-1 here; people write UTF-8, so that is tried first.
        let text = String::from_utf8(bytes).unwrap_or_else(|e| e.into_bytes().into_iter().map(char::from).collect());
        Properties::parse(&text, &path.display().to_string())
    }

    /// Reads text in that format: comments (`#`, `!`), `key=value`, `key: value` or `key value`, lines continued by a
    /// backslash, escapes. `file` is named in messages.
    pub fn parse(text: &str, file: &str) -> Result<Properties, PropertiesError> {
        let mut properties = Properties::new();
        let mut lines = text.lines().enumerate();
        while let Some((number, first)) = lines.next() {
            let mut logical = first.trim_start().to_owned();
            if logical.is_empty() || logical.starts_with(['#', '!']) {
                continue;
            }
            while ends_with_open_backslash(&logical) {
                logical.pop();
                let Some((_, next)) = lines.next() else { break };
                logical.push_str(next.trim_start());
            }
            let origin = format!("{file} line {}", number + 1);
            let (key, value) = split(&logical);
            let broken = || PropertiesError::Unicode { origin: origin.clone() };
            let key = unescape(key).ok_or_else(broken)?;
            let value = unescape(value).ok_or_else(broken)?;
            properties.set(key, value, origin);
        }
        Ok(properties)
    }

    /// Adds a setting after all others.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>, origin: impl Into<String>) {
        self.entries.push(Property { key: key.into(), value: value.into(), origin: origin.into() });
    }

    /// Adds all settings of `later` after these.
    pub fn extend(&mut self, later: Properties) {
        self.entries.extend(later.entries);
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.entry(key).map(|p| p.value.as_str())
    }

    pub fn entry(&self, key: &str) -> Option<&Property> {
        self.entries.iter().rev().find(|p| p.key == key)
    }

    /// The settings that count, each key once.
    pub fn iter(&self) -> impl Iterator<Item = &Property> {
        let counts = |(i, p): &(usize, &Property)| !self.entries.iter().skip(i + 1).any(|later| later.key == p.key);
        self.entries.iter().enumerate().filter(counts).map(|(_, p)| p)
    }
}

/// Settings from environment variables as Kafka's container images take them: `KAFKA_LOG_DIRS` is `log.dirs`; two
/// underscores are one, three are a dash.
pub fn env_properties(variables: impl IntoIterator<Item = (String, String)>) -> Properties {
    const NOT_CONFIGS: &[&str] = &[
        "KAFKA_VERSION",
        "KAFKA_HEAP_OPTS",
        "KAFKA_LOG4J_OPTS",
        "KAFKA_OPTS",
        "KAFKA_JMX_OPTS",
        "KAFKA_HOME",
        "KAFKA_JVM_PERFORMANCE_OPTS",
        "KAFKA_GC_LOG_OPTS",
        "KAFKA_LOG4J_ROOT_LOGLEVEL",
        "KAFKA_LOG4J_LOGGERS",
        "KAFKA_TOOLS_LOG4J_LOGLEVEL",
        "KAFKA_URI",
        "KAFKA_LOG4J",
    ];
    let mut found: Vec<(String, String)> = variables
        .into_iter()
        .filter(|(name, _)| name.starts_with("KAFKA_") && !NOT_CONFIGS.contains(&name.as_str()))
        .collect();
    found.sort();
    let mut properties = Properties::new();
    for (name, value) in found {
        let rest = name.trim_start_matches("KAFKA_").to_ascii_lowercase();
        let key = rest.replace("___", "-").replace("__", "\u{0}").replace('_', ".").replace('\u{0}', "_");
        properties.set(key, value, name);
    }
    properties
}

fn ends_with_open_backslash(line: &str) -> bool {
    line.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1
}

/// Splits a logical line at the first `=`, `:` or blank that is not escaped.
fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = line.char_indices().find(|(_, c)| {
        let separates = !escaped && (matches!(c, '=' | ':') || c.is_whitespace());
        escaped = !escaped && *c == '\\';
        separates
    });
    let Some((at, _)) = end else { return (line, "") };
    let (key, rest) = line.split_at(at);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (key, rest.trim_start())
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\u{c}'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                if digits.len() != 4 {
                    return None;
                }
                let unit = u32::from_str_radix(&digits, 16).ok()?;
                out.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    Some(out)
}
