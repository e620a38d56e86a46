//! The JSON files that tools read: what is wrong with one is said in one line that names the file.

use caudal_protocol::TopicPartition;
use serde_json::{Map, Value};

use super::Stop;

/// A value in a JSON file.
#[derive(Debug, Clone, Copy)]
pub struct Json<'a> {
    pub value: &'a Value,
    path: &'a str,
}

/// Reads a JSON file of version 1, the only one there is.
pub fn read(path: &str) -> Result<Value, Stop> {
    let text = std::fs::read_to_string(path).map_err(|e| Stop::Failed(format!("failed to read {path}: {e}")))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Stop::Failed(format!("The input string is not a valid JSON: {path}: {e}")))?;
    match value.get("version").map(|v| (v, v.as_i64())) {
        None | Some((_, Some(1))) => Ok(value),
        Some((other, _)) => Err(Stop::Failed(format!("Not supported version field value {other}"))),
    }
}

impl<'a> Json<'a> {
    /// The value that [`read`] found at `path`.
    pub fn root(value: &'a Value, path: &'a str) -> Json<'a> {
        Json { value, path }
    }

    fn wrong(&self, what: &str) -> Stop {
        Stop::Failed(format!("failed to read {}: {what} in {}", self.path, self.value))
    }

    fn object(&self) -> Result<&'a Map<String, Value>, Stop> {
        self.value
            .as_object()
            .ok_or_else(|| Stop::Failed(format!("{}: expected an object, not {}", self.path, self.value)))
    }

    /// The value of a key, if there is one.
    pub fn get(&self, key: &str) -> Result<Option<Json<'a>>, Stop> {
        Ok(self.object()?.get(key).map(|value| Json { value, path: self.path }))
    }

    fn field(&self, key: &str) -> Result<Json<'a>, Stop> {
        self.get(key)?.ok_or_else(|| self.wrong(&format!("there is no \"{key}\"")))
    }

    /// The elements of a list.
    pub fn list(&self) -> Result<Vec<Json<'a>>, Stop> {
        let list = self.value.as_array().ok_or_else(|| self.wrong("a list is expected"))?;
        Ok(list.iter().map(|value| Json { value, path: self.path }).collect())
    }

    pub fn text(&self, key: &str) -> Result<&'a str, Stop> {
        self.field(key)?.value.as_str().ok_or_else(|| self.wrong(&format!("\"{key}\" is not a text")))
    }

    pub fn long(&self, key: &str) -> Result<i64, Stop> {
        self.field(key)?.value.as_i64().ok_or_else(|| self.wrong(&format!("\"{key}\" is not a whole number")))
    }

    pub fn int(&self, key: &str) -> Result<i32, Stop> {
        i32::try_from(self.long(key)?).map_err(|_| self.wrong(&format!("\"{key}\" is too large")))
    }

    /// A list of whole numbers.
    pub fn ints(&self, key: &str) -> Result<Vec<i32>, Stop> {
        let list = self.field(key)?.list()?;
        let numbers = list.iter().map(|j| j.value.as_i64().and_then(|n| i32::try_from(n).ok()));
        numbers.collect::<Option<_>>().ok_or_else(|| self.wrong(&format!("\"{key}\" is not a list of ids")))
    }

    /// A list of texts, if there is one.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, Stop> {
        let Some(found) = self.get(key)? else { return Ok(None) };
        let texts = found.list()?.iter().map(|j| j.value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        texts.map(Some).ok_or_else(|| self.wrong(&format!("\"{key}\" is not a list of texts")))
    }

    /// The partition of `"topic"` and `"partition"`.
    pub fn partition(&self) -> Result<TopicPartition, Stop> {
        Ok(TopicPartition::new(self.text("topic")?, self.int("partition")?))
    }
}

/// What stands in a list more than once, in order.
pub fn duplicates<T: Ord + Clone>(list: &[T]) -> Vec<T> {
    let mut sorted: Vec<&T> = list.iter().collect();
    sorted.sort();
    let mut twice: Vec<T> = sorted
        .windows(2)
        .filter_map(|w| Some((w.first()?, w.get(1)?)))
        .filter(|(a, b)| a == b)
        .map(|(a, _)| (*a).clone())
        .collect();
    twice.dedup();
    twice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let path = path.to_str().unwrap();
        assert!(read(path).unwrap_err().to_string().starts_with(&format!("failed to read {path}: ")));
        let cases =
            [("{", "The input string is not a valid JSON"), ("{\"version\":2}", "Not supported version field value 2")];
        for (text, error) in cases {
            std::fs::write(path, text).unwrap();
            assert!(read(path).unwrap_err().to_string().starts_with(error), "{text}");
        }
        std::fs::write(path, "{\"version\":1,\"partitions\":[{\"topic\":\"t\",\"partition\":1,\"replicas\":[1,2]}]}")
            .unwrap();
        let value = read(path).unwrap();
        let first = Json::root(&value, path).get("partitions").unwrap().unwrap().list().unwrap()[0];
        assert_eq!(first.partition().unwrap(), TopicPartition::new("t", 1));
        assert_eq!(first.ints("replicas").unwrap(), [1, 2]);
        assert_eq!(first.texts("log_dirs").unwrap(), None);
        let error = first.long("offset").unwrap_err().to_string();
        assert!(error.contains("there is no \"offset\" in {"), "{error}");
    }

    #[test]
    fn what_is_there_twice() {
        assert_eq!(duplicates(&[3, 1, 3, 2, 1, 3]), [1, 3]);
        assert!(duplicates(&[1, 2]).is_empty());
    }
}
