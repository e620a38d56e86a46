//! Options of sources and sinks: case-insensitive names, as in Spark, and errors that name the nearest one.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::error::EngineError;

/// The `OPTIONS (...)` of a table or the `.option(...)` calls of a reader or writer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// By lower-case name: the name as given, and the value.
    entries: BTreeMap<String, (String, String)>,
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Options {
    /// The last of several values for one name wins.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut options = Options::default();
        for (name, value) in pairs {
            options.set(name, value);
        }
        options
    }
}

impl Options {
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        self.entries.insert(name.to_lowercase(), (name, value.into()));
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.entries.get(&name.to_lowercase()).map(|(_, value)| value.as_str())
    }

    /// Name as given and value, in the order of the lower-case names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.values().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value parsed; `expected` completes "must be ...".
    pub fn parse<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, EngineError> {
        self.get(name)
            .map(|text| {
                text.trim()
                    .parse()
                    .map_err(|_| invalid(format!("Invalid value '{text}' for option '{name}', must be {expected}")))
            })
            .transpose()
    }

    pub fn positive(&self, name: &str) -> Result<Option<u64>, EngineError> {
        match self.parse::<u64>(name, "a positive integer")? {
            Some(0) => Err(invalid(format!("Invalid value '0' for option '{name}', must be a positive integer"))),
            other => Ok(other),
        }
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>, EngineError> {
        self.get(name)
            .map(|text| match text.trim().to_lowercase().as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(invalid(format!("Invalid value '{text}' for option '{name}', must be true or false"))),
            })
            .transpose()
    }

    /// A single character, as `sep` or `quote`; Spark's `\t` notation is understood. `Some(None)` for the empty string.
    pub fn character(&self, name: &str) -> Result<Option<Option<u8>>, EngineError> {
        self.get(name)
            .map(|text| match text.as_bytes() {
                [] => Ok(None),
                [one] => Ok(Some(*one)),
                b"\\t" => Ok(Some(b'\t')),
                b"\\\\" => Ok(Some(b'\\')),
                _ => Err(invalid(format!("Invalid value '{text}' for option '{name}', must be one ASCII character"))),
            })
            .transpose()
    }

    /// A duration in milliseconds, as `7d`, `15m`, `10 seconds`, `100ms`.
    pub fn duration_ms(&self, name: &str) -> Result<Option<u64>, EngineError> {
        self.get(name)
            .map(|text| {
                parse_duration_ms(text).ok_or_else(|| {
                    invalid(format!("Invalid value '{text}' for option '{name}', must be a duration such as 15m or 7d"))
                })
            })
            .transpose()
    }

    /// Refuses names that the source does not have. `prefixes` (lower case) are passed on to somebody else, as `kafka.`.
    pub fn check_known(&self, source: &str, known: &[&str], prefixes: &[&str]) -> Result<(), EngineError> {
        for (lower, (name, _)) in &self.entries {
            if known.iter().any(|k| k.eq_ignore_ascii_case(lower)) || prefixes.iter().any(|p| lower.starts_with(p)) {
                continue;
            }
            let hint = match nearest(lower, known) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("it has: {}", known.join(", ")),
            };
            return Err(invalid(format!("the {source} data source has no option '{name}'; {hint}")));
        }
        Ok(())
    }
}

/// An error in an option.
pub fn invalid(message: impl Into<String>) -> EngineError {
    EngineError::Invalid { class: "INVALID_OPTION", message: message.into() }
}

fn parse_duration_ms(text: &str) -> Option<u64> {
    let text = text.trim().to_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "" | "ms" | "millisecond" | "milliseconds" => 1,
        "s" | "second" | "seconds" => 1_000,
        "m" | "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// The candidate at the smallest edit distance, when it is near enough to be a typing error.
fn nearest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let (distance, best) =
        candidates.iter().map(|c| (edit_distance(name, &c.to_lowercase()), *c)).min_by_key(|(d, _)| *d)?;
    (distance <= 1 + name.len() / 3).then_some(best)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let mut last: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut row = Vec::with_capacity(last.len());
        let mut left = i + 1;
        row.push(left);
        for (y, pair) in b.chars().zip(last.windows(2)) {
            let [diagonal, above] = pair else { continue };
            left = (left + 1).min(above + 1).min(diagonal + usize::from(x != y));
            row.push(left);
        }
        last = row;
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_case_insensitive_and_typos_are_answered() {
        let options: Options = [("maxFilesPerTriger", "1"), ("PATH", "x")].into_iter().collect();
        assert_eq!(options.get("path"), Some("x"));
        let error = options.check_known("file", &["path", "maxFilesPerTrigger"], &[]).unwrap_err().to_string();
        assert!(error.contains("no option 'maxFilesPerTriger'; did you mean 'maxFilesPerTrigger'?"), "{error}");
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration_ms("15m"), Some(900_000));
        assert_eq!(parse_duration_ms("7 days"), Some(604_800_000));
        assert_eq!(parse_duration_ms("5 parsecs"), None);
    }
}
