//! Functions whose results are longer than their arguments: `repeat`, `lpad`, `rpad`, `space`. What they may make of
//! one batch of rows is limited (see [`super::output`]).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::ScalarUDF;

use super::output::TextOutput;
use super::string::{numbers, texts};
use super::udf::{Call, Function};

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function = |name, arity, run| {
        Function { name, aliases: &[], arity, coerce: None, returns: |_| Ok(DataType::Utf8), run }.udf()
    };
    vec![
        function("repeat", (2, 2), repeat),
        function("lpad", (2, 3), |c| pad(c, true)),
        function("rpad", (2, 3), |c| pad(c, false)),
        function("space", (1, 1), space),
    ]
}

fn repeat(call: &Call) -> Result<ArrayRef> {
    let (text, times) = (texts(call, 0)?, numbers(call, 1)?);
    let mut output = TextOutput::new(call.name, text.len());
    for (text, times) in text.iter().zip(&times) {
        let (Some(text), Some(times)) = (text, times) else {
            output.push_null();
            continue;
        };
        let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
        output.check(text.len().saturating_mul(times))?;
        output.push(&if text.is_empty() { String::new() } else { text.repeat(times) })?;
    }
    Ok(output.finish())
}

fn space(call: &Call) -> Result<ArrayRef> {
    let times = numbers(call, 0)?;
    let mut output = TextOutput::new(call.name, times.len());
    for times in &times {
        let Some(times) = times else {
            output.push_null();
            continue;
        };
        let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
        output.check(times)?;
        output.push(&" ".repeat(times))?;
    }
    Ok(output.finish())
}

/// Cuts or fills a text to a number of characters.
fn pad(call: &Call, left: bool) -> Result<ArrayRef> {
    let (text, length) = (texts(call, 0)?, numbers(call, 1)?);
    let fill = if call.args.len() > 2 { Some(texts(call, 2)?) } else { None };
    let mut output = TextOutput::new(call.name, text.len());
    for row in 0..text.len() {
        let filled_with_null = fill.as_ref().is_some_and(|f| f.is_null(row));
        if text.is_null(row) || length.is_null(row) || filled_with_null {
            output.push_null();
            continue;
        }
        let (text, fill) = (text.value(row), fill.as_ref().map_or(" ", |f| f.value(row)));
        let length = usize::try_from(length.value(row).max(0)).unwrap_or(usize::MAX);
        let own = text.chars().count();
        if length <= own || fill.is_empty() {
            let end = text.char_indices().nth(length).map_or(text.len(), |(i, _)| i);
            let cut = text.get(..end).unwrap_or(text);
            output.push(cut)?;
            continue;
        }
        let missing = length - own;
        let widest = fill.chars().map(char::len_utf8).max().unwrap_or(1);
        output.check(text.len().saturating_add(missing.saturating_mul(widest)))?;
        let padding: String = fill.chars().cycle().take(missing).collect();
        output.push(&if left { format!("{padding}{text}") } else { format!("{text}{padding}") })?;
    }
    Ok(output.finish())
}
