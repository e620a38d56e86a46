//! `get_json_object`: the value at a path such as `$.a[*].b`, as text.

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_err};
use serde_json::Value;

use crate::function::udf::Call;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(usize),
    /// `[*]`: every element.
    Every,
}

/// The value at the path; null when there is none.
pub(super) fn get_json_object(call: &Call) -> Result<ArrayRef> {
    let texts = arrow::compute::cast(call.arg(0)?, &DataType::Utf8)?;
    let Some(path) = call.text(1) else {
        if call.arg(1)?.null_count() == call.arg(1)?.len() {
            return Ok(arrow::array::new_null_array(&DataType::Utf8, texts.len()));
        }
        return exec_err!("the path of get_json_object must be a constant");
    };
    let steps = parse(&path);
    let found = |text: Option<&str>| lookup(text?, steps.as_deref()?);
    Ok(std::sync::Arc::new(texts.as_string::<i32>().iter().map(found).collect::<StringArray>()))
}

fn lookup(text: &str, steps: &[Step]) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    let mut found = Vec::new();
    collect(&value, steps, false, &mut found);
    let many = steps.contains(&Step::Every);
    match found.as_slice() {
        [] => None,
        [one] if !many => match one {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        },
        [one] => Some(one.to_string()),
        _ => Some(Value::Array(found).to_string()),
    }
}

/// What lies below `value`. As in Hive and Spark, a second `[*]` behind others takes its array as it is, unless it
/// follows the first one at once.
fn collect(value: &Value, steps: &[Step], nested: bool, found: &mut Vec<Value>) {
    match (steps.split_first(), value) {
        (None, value) => found.push(value.clone()),
        (Some((Step::Field(name), rest)), Value::Object(fields)) => {
            if let Some(inner) = fields.get(name) {
                collect(inner, rest, nested, found);
            }
        }
        (Some((Step::Index(index), rest)), Value::Array(items)) => {
            if let Some(inner) = items.get(*index) {
                collect(inner, rest, nested, found);
            }
        }
        (Some((Step::Every, rest)), Value::Array(items)) => {
            let twice = rest.first() == Some(&Step::Every);
            let rest = if twice { rest.get(1..).unwrap_or_default() } else { rest };
            let mut inner = Vec::new();
            for item in items {
                match item {
                    Value::Array(parts) if twice => parts.iter().for_each(|p| collect(p, rest, true, &mut inner)),
                    item => collect(item, rest, true, &mut inner),
                }
            }
            if nested {
                found.push(Value::Array(inner));
            } else {
                found.append(&mut inner);
            }
        }
        _ => {}
    }
}

fn parse(path: &str) -> Option<Vec<Step>> {
    let mut rest = path.strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(named) = rest.strip_prefix('.') {
            let end = named.find(['.', '[']).unwrap_or(named.len());
            let (name, after) = named.split_at(end);
            if name.is_empty() {
                return None;
            }
            steps.push(Step::Field(name.to_owned()));
            rest = after;
            continue;
        }
        let inner = rest.strip_prefix('[')?;
        if let Some(quoted) = inner.strip_prefix('\'') {
            let (name, after) = quoted.split_once("']")?;
            steps.push(Step::Field(name.to_owned()));
            rest = after;
            continue;
        }
        let (index, after) = inner.split_once(']')?;
        steps.push(if index == "*" { Step::Every } else { Step::Index(index.parse().ok()?) });
        rest = after;
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, path: &str) -> Option<String> {
        lookup(text, &parse(path)?)
    }

    #[test]
    fn values_are_found_as_in_spark() {
        let text = r#"{"a":[{"b":[1,2]},{"b":[3]}],"c":{"d e":"x"}}"#;
        assert_eq!(at(text, "$.a[*].b").as_deref(), Some("[[1,2],[3]]"));
        assert_eq!(at(text, "$.a[*].b[*]").as_deref(), Some("[[1,2],[3]]"));
        assert_eq!(at(text, "$.a[1].b[0]").as_deref(), Some("3"));
        assert_eq!(at(text, "$.c['d e']").as_deref(), Some("x"));
        assert_eq!(at(text, "$.x"), None);
        assert_eq!(at(text, "a"), None);
    }
}
