//! What a config is: type, default, allowed values; and the checks with Kafka's own sentences.

use std::collections::BTreeSet;
use std::fmt;

/// Type of a config's value (`ConfigDef.Type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigType {
    Boolean,
    String,
    Int,
    Short,
    Long,
    Double,
    List,
    Class,
    Password,
}

impl ConfigType {
    /// The number in a DescribeConfigs response.
    pub fn code(self) -> i8 {
        match self {
            ConfigType::Boolean => 1,
            ConfigType::String => 2,
            ConfigType::Int => 3,
            ConfigType::Short => 4,
            ConfigType::Long => 5,
            ConfigType::Double => 6,
            ConfigType::List => 7,
            ConfigType::Class => 8,
            ConfigType::Password => 9,
        }
    }

    /// The name in Kafka's messages and documentation: `LONG`.
    pub fn name(self) -> &'static str {
        match self {
            ConfigType::Boolean => "BOOLEAN",
            ConfigType::String => "STRING",
            ConfigType::Int => "INT",
            ConfigType::Short => "SHORT",
            ConfigType::Long => "LONG",
            ConfigType::Double => "DOUBLE",
            ConfigType::List => "LIST",
            ConfigType::Class => "CLASS",
            ConfigType::Password => "PASSWORD",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Importance {
    High,
    Medium,
    Low,
}

/// When a config may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// At start only.
    Fixed,
    /// While the broker runs.
    Dynamic,
    /// At start, and not listed to clients.
    Internal,
}

/// What a config without a value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultValue {
    /// It must be set.
    Required,
    /// There is none.
    Null,
    Value(&'static str),
}

/// Which values are allowed, beyond those of the type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Validator {
    Any,
    NonEmpty,
    AtLeast(i64),
    /// Both inclusive.
    Between(i64, i64),
    /// Both inclusive.
    Ratio(f64, f64),
    /// A number above 0.
    Positive,
    OneOf(&'static [&'static str]),
    OneOfNoCase(&'static [&'static str]),
    /// A list of these.
    ListOf(&'static [&'static str]),
    /// 1 to 9, or -1.
    GzipLevel,
    /// A time to keep something for: at least 1, or below 0 for all time.
    Retention,
    /// `*`, or `partition:broker` pairs.
    Throttled,
}

impl fmt::Display for Validator {
    /// The allowed values in words, for our own messages and the reference.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Validator::Any => f.write_str("any value"),
            Validator::NonEmpty => f.write_str("a text that is not empty"),
            Validator::AtLeast(min) => write!(f, "at least {min}"),
            Validator::Between(min, max) => write!(f, "{min} to {max}"),
            Validator::Ratio(min, max) => write!(f, "{min} to {max}"),
            Validator::Positive => f.write_str("more than 0"),
            Validator::OneOf(values) | Validator::OneOfNoCase(values) => write!(f, "one of {}", values.join(", ")),
            Validator::ListOf(values) => write!(f, "a list of {}", values.join(", ")),
            Validator::GzipLevel => f.write_str("1 to 9, or -1"),
            Validator::Retention => f.write_str("at least 1, or -1 for unlimited"),
            Validator::Throttled => f.write_str("* or a list of partition:broker"),
        }
    }
}

/// A broker config from which a topic config takes its default, and the factor that brings it to the topic's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerSynonym {
    pub name: &'static str,
    pub factor: i64,
}

/// One config.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConfigDef {
    pub name: &'static str,
    pub kind: ConfigType,
    pub default: DefaultValue,
    pub validator: Validator,
    pub importance: Importance,
    pub update: Update,
    /// Whether setting it changes what Caudal does. The others are known, checked and listed.
    pub acts: bool,
    /// For topic configs: where the default comes from, the first that is set winning.
    pub synonyms: &'static [BrokerSynonym],
    pub doc: &'static str,
}

/// Declares a table of [`ConfigDef`]:
/// `"name" Type default Validator Importance update acts|idle ["synonym" * factor, ...] "doc";`
macro_rules! config_table {
    (@default required) => { $crate::config::DefaultValue::Required };
    (@default null) => { $crate::config::DefaultValue::Null };
    (@default $value:literal) => { $crate::config::DefaultValue::Value($value) };
    (@update fixed) => { $crate::config::Update::Fixed };
    (@update dynamic) => { $crate::config::Update::Dynamic };
    (@update internal) => { $crate::config::Update::Internal };
    (@acts acts) => { true };
    (@acts idle) => { false };
    ($(#[$meta:meta])* $table:ident:
     $($name:literal $kind:ident $default:tt $validator:ident $(($($argument:expr),*))? $importance:ident $update:ident
       $acts:ident $([$($synonym:literal * $factor:literal),*])? $doc:literal;)*) => {
        $(#[$meta])*
        pub static $table: &[ConfigDef] = &[$(ConfigDef {
            name: $name,
            kind: $crate::config::ConfigType::$kind,
            default: config_table!(@default $default),
            validator: $crate::config::Validator::$validator $(($($argument),*))?,
            importance: $crate::config::Importance::$importance,
            update: config_table!(@update $update),
            acts: config_table!(@acts $acts),
            synonyms: &[$($($crate::config::BrokerSynonym { name: $synonym, factor: $factor }),*)?],
            doc: $doc,
        },)*];
    };
}
pub(super) use config_table;

/// A value that a config does not take; prints Kafka's sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid value {value} for configuration {name}: {reason}")]
pub struct InvalidValue {
    pub name: String,
    pub value: String,
    pub reason: String,
}

impl ConfigDef {
    /// Whether the value is never shown.
    pub fn is_sensitive(&self) -> bool {
        self.kind == ConfigType::Password
    }

    pub fn is_internal(&self) -> bool {
        self.update == Update::Internal
    }

    /// The default as text; `None` when there is none.
    pub fn default_value(&self) -> Option<&'static str> {
        match self.default {
            DefaultValue::Value(value) => Some(value),
            DefaultValue::Required | DefaultValue::Null => None,
        }
    }

    /// The default in the form that [`ConfigDef::check`] gives it.
    pub fn default_form(&self) -> Option<String> {
        let default = self.default_value()?;
        Some(self.check(default).unwrap_or_else(|_| default.to_owned()))
    }

    /// Checks a value and gives it the form in which Kafka shows it (trimmed, list items joined by commas, none of the items that
    /// a list chooses from more than once).
    ///
    /// # Errors
    /// The value is not of the type, or not allowed; in the words of Kafka's `ConfigDef`.
    pub fn check(&self, value: &str) -> Result<String, InvalidValue> {
        let invalid =
            |value: &str, reason: String| InvalidValue { name: self.name.to_owned(), value: value.to_owned(), reason };
        let trimmed = value.trim();
        let number = |min: i64, max: i64| match trimmed.parse::<i64>() {
            Ok(n) if (min..=max).contains(&n) => Ok(n),
            _ => Err(invalid(value, format!("Not a number of type {}", self.kind.name()))),
        };
        match self.kind {
            ConfigType::Boolean => match trimmed.to_ascii_lowercase().as_str() {
                text @ ("true" | "false") => Ok(text.to_owned()),
                _ => Err(invalid(value, "Expected value to be either true or false".to_owned())),
            },
            ConfigType::Int => self.check_integer(number(i32::MIN.into(), i32::MAX.into())?),
            ConfigType::Short => self.check_integer(number(i16::MIN.into(), i16::MAX.into())?),
            ConfigType::Long => self.check_integer(number(i64::MIN, i64::MAX)?),
            ConfigType::Double => {
                let n: f64 = trimmed.parse().map_err(|_| invalid(value, "Not a number of type DOUBLE".to_owned()))?;
                let reason = match self.validator {
                    _ if n.is_nan() => Some("Not a number of type DOUBLE".to_owned()),
                    Validator::Ratio(min, _) if n < min => Some(format!("Value must be at least {min}")),
                    Validator::Ratio(_, max) if n > max => Some(format!("Value must be no more than {max}")),
                    Validator::Positive if n <= 0.0 => Some("Value must be more than 0".to_owned()),
                    _ => None,
                };
                if let Some(reason) = reason {
                    return Err(invalid(&format!("{n:?}"), reason));
                }
                // Java writes the exponent large.
                Ok(format!("{n:?}").replace('e', "E"))
            }
            ConfigType::List => self.check_list(trimmed),
            ConfigType::String | ConfigType::Class => self.check_text(trimmed),
            ConfigType::Password => Ok(value.to_owned()),
        }
    }

    fn check_integer(&self, n: i64) -> Result<String, InvalidValue> {
        let reason = match self.validator {
            Validator::AtLeast(min) | Validator::Between(min, _) if n < min => {
                format!("Value must be at least {min}")
            }
            Validator::Between(_, max) if n > max => format!("Value must be no more than {max}"),
            Validator::Retention if n == 0 => "Value must be unlimited (-1) or at least 1".to_owned(),
            Validator::GzipLevel if n != -1 && !(1..=9).contains(&n) => {
                "Value must be between 1 and 9 or equal to -1".to_owned()
            }
            _ => return Ok(n.to_string()),
        };
        Err(InvalidValue { name: self.name.to_owned(), value: n.to_string(), reason })
    }

    fn check_list(&self, text: &str) -> Result<String, InvalidValue> {
        let mut items: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split(',').map(str::trim).collect() };
        let invalid = |value: String, reason: String| InvalidValue { name: self.name.to_owned(), value, reason };
        match self.validator {
            Validator::ListOf(allowed) => {
                if let Some(bad) = items.iter().find(|item| !allowed.contains(item)) {
                    let reason = format!("String must be one of: {}", allowed.join(", "));
                    return Err(invalid((*bad).to_owned(), reason));
                }
                let mut seen = BTreeSet::new();
                items.retain(|item| seen.insert(*item));
            }
            Validator::Throttled => {
                let pair = |item: &&str| {
                    item.split_once(':').is_some_and(|(p, b)| p.parse::<u32>().is_ok() && b.parse::<u32>().is_ok())
                };
                if items != ["*"] && !items.iter().all(pair) {
                    let reason = format!(
                        "{} must be the literal '*' or a list of replicas in the following format: \
                         [partitionId]:[brokerId],[partitionId]:[brokerId],...",
                        self.name
                    );
                    return Err(invalid(format!("[{}]", items.join(", ")), reason));
                }
            }
            _ => {}
        }
        Ok(items.join(","))
    }

    fn check_text(&self, text: &str) -> Result<String, InvalidValue> {
        let reason = match self.validator {
            Validator::OneOf(allowed) if !allowed.contains(&text) => {
                format!("String must be one of: {}", allowed.join(", "))
            }
            Validator::OneOfNoCase(allowed) if !allowed.iter().any(|a| a.eq_ignore_ascii_case(text)) => {
                format!("String must be one of (case insensitive): {}", allowed.join(", "))
            }
            Validator::NonEmpty if text.is_empty() => "String must be non-empty".to_owned(),
            _ => return Ok(text.to_owned()),
        };
        Err(InvalidValue { name: self.name.to_owned(), value: text.to_owned(), reason })
    }
}
