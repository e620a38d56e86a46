//! Text functions with regular expressions: `split`, `rlike`, `regexp_extract`, `regexp_extract_all`, `regexp_substr`,
//! `regexp_replace`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, ListBuilder, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ScalarUDF;
use regex::{Captures, Regex};

use super::output::TextOutput;
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
        Function {
            name: "regexp_extract_all",
            aliases: &[],
            arity: (2, 3),
            coerce: None,
            returns: |_| Ok(DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)))),
            run: regexp_extract_all,
        }
        .udf(),
        Function {
            name: "regexp_substr",
            aliases: &[],
            arity: (2, 2),
            coerce: None,
            returns: |_| Ok(DataType::Utf8),
            run: regexp_substr,
        }
        .udf(),
        Function {
            name: "regexp_replace",
            aliases: &[],
            arity: (3, 4),
            coerce: None,
            returns: |_| Ok(DataType::Utf8),
            run: regexp_replace,
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
    let characters = call.text(1).is_some_and(|pattern| pattern.is_empty());
    let limit = usize::try_from(limit).unwrap_or(0);
    let mut builder = ListBuilder::new(StringBuilder::new());
    for text in &texts {
        let Some(text) = text else {
            builder.append_null();
            continue;
        };
        let parts =
            if characters && !text.is_empty() { characters_of(text, limit) } else { parts(text, &regex, limit) };
        parts.into_iter().for_each(|part| builder.values().append_value(part));
        builder.append(true);
    }
    Ok(Arc::new(builder.finish()))
}

/// The characters; with a positive limit, the last part is the rest.
fn characters_of(text: &str, limit: usize) -> Vec<&str> {
    let mut starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    if limit > 0 {
        starts.truncate(limit);
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).filter_map(|(start, end)| text.get(*start..end)).collect()
}

/// What stands between the matches, as Java splits: an empty match at the beginning does not count.
fn parts<'a>(text: &'a str, regex: &Regex, limit: usize) -> Vec<&'a str> {
    let (mut parts, mut from) = (Vec::new(), 0);
    for found in regex.find_iter(text) {
        if limit > 0 && parts.len() + 1 == limit {
            break;
        }
        if found.end() > 0 {
            parts.extend(text.get(from..found.start()));
            from = found.end();
        }
    }
    parts.extend(text.get(from..));
    parts
}

fn rlike(call: &Call) -> Result<ArrayRef> {
    let (texts, regex) = (texts(call, 0)?, pattern(call)?);
    let result: BooleanArray = texts.iter().map(|t| t.map(|t| regex.is_match(t))).collect();
    Ok(Arc::new(result))
}

/// The group that the third argument asks for; the first one without it.
fn group(call: &Call, regex: &Regex) -> Result<usize> {
    let group = usize::try_from(constant_int(call, 2, 1)?).unwrap_or(usize::MAX);
    if group >= regex.captures_len() {
        return exec_err!("[INVALID_PARAMETER_VALUE.REGEX_GROUP_INDEX] The regular expression has no group {group}.");
    }
    Ok(group)
}

/// The group of every match.
fn regexp_extract_all(call: &Call) -> Result<ArrayRef> {
    let (texts, regex) = (texts(call, 0)?, pattern(call)?);
    let group = group(call, &regex)?;
    let mut builder = ListBuilder::new(StringBuilder::new());
    for text in &texts {
        let Some(text) = text else {
            builder.append_null();
            continue;
        };
        for found in regex.captures_iter(text) {
            builder.values().append_value(found.get(group).map_or("", |m| m.as_str()));
        }
        builder.append(true);
    }
    Ok(Arc::new(builder.finish()))
}

/// The first match, null without one.
fn regexp_substr(call: &Call) -> Result<ArrayRef> {
    let (texts, regex) = (texts(call, 0)?, pattern(call)?);
    let result: StringArray = texts.iter().map(|text| regex.find(text?).map(|m| m.as_str().to_owned())).collect();
    Ok(Arc::new(result))
}

/// `regexp_replace(text, regex, replacement[, from])`: every match from the `from`-th character on.
fn regexp_replace(call: &Call) -> Result<ArrayRef> {
    let (texts, regex, from) = (texts(call, 0)?, pattern(call)?, constant_int(call, 3, 1)?);
    let replacements = self::texts(call, 2)?;
    let Some(skipped) = usize::try_from(from).ok().and_then(|f| f.checked_sub(1)) else {
        return exec_err!(
            "[DATATYPE_MISMATCH.VALUE_OUT_OF_RANGE] The position of regexp_replace must be between 1 and 2147483647, but is {from}. SQLSTATE: 42K09"
        );
    };
    let mut output = TextOutput::new(call.name, texts.len());
    let mut written = String::new();
    for (text, replacement) in texts.iter().zip(&replacements) {
        let (Some(text), Some(replacement)) = (text, replacement) else {
            output.push_null();
            continue;
        };
        let start = text.char_indices().nth(skipped).map_or(text.len(), |(at, _)| at);
        let (before, rest) = text.split_at(start);
        written.clear();
        written.push_str(before);
        let mut last = 0;
        for found in regex.captures_iter(rest) {
            let Some(whole) = found.get(0) else { continue };
            written.push_str(rest.get(last..whole.start()).unwrap_or_default());
            if !expand(&found, replacement, &mut written) {
                return exec_err!(
                    "[INVALID_REGEXP_REPLACE] Could not perform regexp_replace for source = \"{text}\", pattern = \"{regex}\", replacement = \"{replacement}\" and position = {from}. SQLSTATE: 22023"
                );
            }
            last = whole.end();
            output.check(written.len())?;
        }
        written.push_str(rest.get(last..).unwrap_or_default());
        output.push(&written)?;
    }
    Ok(output.finish())
}

/// Java's replacement: `$1` and `${name}` are groups, `\\` takes the next character as it is. False for one that has
/// no meaning.
fn expand(found: &Captures<'_>, replacement: &str, out: &mut String) -> bool {
    let mut rest = replacement.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                Some(escaped) => out.push(escaped),
                None => return false,
            },
            '$' if rest.peek() == Some(&'{') => {
                rest.next();
                let name: String = rest.by_ref().take_while(|c| *c != '}').collect();
                match found.name(&name) {
                    Some(group) => out.push_str(group.as_str()),
                    None => return false,
                }
            }
            '$' => {
                let digit = |c: Option<&char>| c.and_then(|c| c.to_digit(10)).map(|d| d as usize);
                let Some(mut group) = digit(rest.peek()).filter(|g| *g < found.len()) else { return false };
                rest.next();
                while let Some(longer) = digit(rest.peek()).map(|d| group * 10 + d).filter(|g| *g < found.len()) {
                    group = longer;
                    rest.next();
                }
                out.push_str(found.get(group).map_or("", |m| m.as_str()));
            }
            other => out.push(other),
        }
    }
    true
}

/// `regexp_extract(text, regex[, group])`: the group of the first match, empty without a match.
fn regexp_extract(call: &Call) -> Result<ArrayRef> {
    let (texts, regex) = (texts(call, 0)?, pattern(call)?);
    let group = group(call, &regex)?;
    let result: StringArray = texts
        .iter()
        .map(|text| {
            let found = regex.captures(text?).and_then(|c| c.get(group));
            Some(found.map_or("", |m| m.as_str()).to_owned())
        })
        .collect();
    Ok(Arc::new(result))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_split_as_in_java() {
        let split = |text, pattern: &str, limit| parts(text, &Regex::new(pattern).unwrap(), limit).join("|");
        assert_eq!([split("abc", "x*", 0), split("abc", "x*", 2), split("a,b,c", ",", 2)], ["a|b|c|", "a|bc", "a|b,c"]);
        assert_eq!([split("", ",", 0), split(",a,", ",", 0), split("ab", ",", 1)], ["", "|a|", "ab"]);
        assert_eq!([characters_of("abc", 0), characters_of("abc", 2)], [vec!["a", "b", "c"], vec!["a", "bc"]]);
    }

    #[test]
    fn replacements_are_those_of_java() {
        let regex = Regex::new("(b)(?<n>c)").unwrap();
        let replaced = |replacement: &str| {
            let mut out = String::new();
            expand(&regex.captures("abc").unwrap(), replacement, &mut out).then_some(out)
        };
        assert_eq!(replaced("<$1${n}$0>").as_deref(), Some("<bcbc>"));
        assert_eq!(replaced("$12").as_deref(), Some("b2"));
        assert_eq!(replaced(r"\$1\\").as_deref(), Some(r"$1\"));
        assert_eq!([replaced("$"), replaced("$3"), replaced(r"\")], [None, None, None]);
    }
}
