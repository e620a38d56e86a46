//! Text functions with regular expressions: `split`, `rlike`, `regexp_extract`.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, ListBuilder, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ScalarUDF;
use regex::Regex;

use super::udf::{Call, Function};

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function {
            name: "split",
            aliases: &[],
            arity: (2, 3),
            coerce: None,
            returns: |_| Ok(DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)))),
            run: split,
        }
        .udf(),
        Function {
            name: "rlike",
            aliases: &[],
            arity: (2, 2),
            coerce: None,
            returns: |_| Ok(DataType::Boolean),
            run: rlike,
        }
        .udf(),
        Function {
            name: "regexp_extract",
            aliases: &[],
            arity: (2, 3),
            coerce: None,
            returns: |_| Ok(DataType::Utf8),
            run: regexp_extract,
        }
        .udf(),
    ]
}

fn texts(call: &Call, index: usize) -> Result<StringArray> {
    Ok(arrow::compute::cast(call.arg(index)?, &DataType::Utf8)?.as_string::<i32>().clone())
}

fn pattern(call: &Call) -> Result<Regex> {
    let Some(text) = call.text(1) else { return exec_err!("the regular expression must be a constant") };
    match Regex::new(&text) {
        Ok(regex) => Ok(regex),
        Err(error) => {
            exec_err!("[INVALID_PARAMETER_VALUE.PATTERN] The regular expression '{text}' is invalid: {error}")
        }
    }
}

fn constant_int(call: &Call, index: usize, default: i64) -> Result<i64> {
    match call.args.get(index) {
        Some(array) if !array.is_empty() => {
            Ok(arrow::compute::cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().value(0))
        }
        _ => Ok(default),
    }
}

/// `split(text, regex[, limit])`: with a positive limit, at most so many parts.
fn split(call: &Call) -> Result<ArrayRef> {
    let (texts, regex, limit) = (texts(call, 0)?, pattern(call)?, constant_int(call, 2, -1)?);
    let mut builder = ListBuilder::new(StringBuilder::new());
    for text in &texts {
        let Some(text) = text else {
            builder.append_null();
            continue;
        };
        let mut parts: Vec<&str> = match usize::try_from(limit) {
            Ok(limit @ 1..) => regex.splitn(text, limit).collect(),
            _ => regex.split(text).collect(),
        };
        // As in Java, an empty match at the beginning makes no empty first part.
        if parts.len() > 1 && parts.first() == Some(&"") && regex.find(text).is_some_and(|m| m.is_empty()) {
            parts.remove(0);
        }
        parts.into_iter().for_each(|part| builder.values().append_value(part));
        builder.append(true);
    }
    Ok(Arc::new(builder.finish()))
}

fn rlike(call: &Call) -> Result<ArrayRef> {
    let (texts, regex) = (texts(call, 0)?, pattern(call)?);
    let result: BooleanArray = texts.iter().map(|t| t.map(|t| regex.is_match(t))).collect();
    Ok(Arc::new(result))
}

/// `regexp_extract(text, regex[, group])`: the group of the first match, empty without a match.
fn regexp_extract(call: &Call) -> Result<ArrayRef> {
    let (texts, regex, group) = (texts(call, 0)?, pattern(call)?, constant_int(call, 2, 1)?);
    let group = usize::try_from(group).unwrap_or(usize::MAX);
    if group >= regex.captures_len() {
        return exec_err!("[INVALID_PARAMETER_VALUE.REGEX_GROUP_INDEX] The regular expression has no group {group}.");
    }
    let result: StringArray = texts
        .iter()
        .map(|text| {
            let found = regex.captures(text?).and_then(|c| c.get(group));
            Some(found.map_or("", |m| m.as_str()).to_owned())
        })
        .collect();
    Ok(Arc::new(result))
}
