//! What the native commands print: tables for people, JSON for scripts.

use std::io::Write;

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::Value;

use crate::tools::{Stop, say, tell};

/// `--output`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    // Not doc comments: clap would spread the help of every command over two screens for them.
    // Text for people.
    #[default]
    Table,
    // For scripts: an array of rows, or one object.
    Json,
}

/// Prints rows of equal objects; their keys are the columns. To people `none` says that there are no rows.
pub fn rows(output: Output, rows: &[Value], none: &str) -> std::io::Result<()> {
    let text = match output {
        Output::Json => serde_json::to_string_pretty(rows).unwrap_or_default(),
        Output::Table if rows.is_empty() => {
            tell!("{none}");
            return Ok(());
        }
        Output::Table => table(rows),
    };
    std::io::stdout().write_all(format!("{text}\n").as_bytes())
}

/// Tells what was done: a sentence, or an object.
pub fn done(output: Output, row: &Value, sentence: &str) -> Result<(), Stop> {
    match output {
        Output::Json => say!("{row}"),
        Output::Table => say!("{sentence}"),
    }
}

fn table(rows: &[Value]) -> String {
    let Some(first) = rows.first().and_then(Value::as_object) else { return String::new() };
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(first.keys().map(|k| k.to_uppercase().replace('_', " ")));
    for row in rows.iter().filter_map(Value::as_object) {
        table.add_row(row.values().map(cell));
    }
    for (index, value) in first.values().enumerate() {
        let Some(column) = table.column_mut(index) else { continue };
        column.set_padding((0, 2));
        if value.is_number() {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(map) => map.iter().map(|(k, v)| format!("{k}={}", cell(v))).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables() {
        let rows = [json!({"name": "a", "lag": 10, "isr": [1, 2]}), json!({"name": "bcd", "lag": null, "isr": []})];
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["NAME", "LAG", "ISR"]);
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["a", "10", "1,2"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["bcd", "-"]);
    }
}
