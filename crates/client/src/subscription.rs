//! Which topics are read: names or a pattern.

use crate::config::ConfigError;

/// A choice of topics.
#[derive(Debug, Clone)]
pub enum Topics {
    Names(Vec<String>),
    Pattern(TopicPattern),
}

impl Topics {
    pub fn names<I: IntoIterator<Item: Into<String>>>(names: I) -> Topics {
        Topics::Names(names.into_iter().map(Into::into).collect())
    }

    /// Topics whose whole name matches a regular expression. Internal topics never match.
    pub fn pattern(pattern: &str) -> Result<Topics, ConfigError> {
        Ok(Topics::Pattern(TopicPattern::new(pattern)?))
    }
}

/// A regular expression over whole topic names.
#[derive(Debug, Clone)]
pub struct TopicPattern(regex::Regex);

impl TopicPattern {
    pub fn new(pattern: &str) -> Result<TopicPattern, ConfigError> {
        let anchored = format!("^(?:{pattern})$");
        regex::Regex::new(&anchored).map(TopicPattern).map_err(|_| ConfigError::BadValue {
            name: "topic pattern".to_owned(),
            value: pattern.to_owned(),
            allowed: "write a regular expression, for example 'player-.*'".to_owned(),
        })
    }

    pub fn matches(&self, topic: &str) -> bool {
        self.0.is_match(topic)
    }
}
