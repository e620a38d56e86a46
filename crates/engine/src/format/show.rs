//! The tables of Spark's `Dataset.show()`, byte for byte.

use arrow::array::RecordBatch;
use arrow::array::timezone::Tz;
use arrow::datatypes::Schema;

use super::cell::{CellStyle, utc, write_value};

/// How [`show_string`] renders.
#[derive(Debug, Clone, Copy)]
pub struct ShowOptions {
    /// Rows shown; more are announced below the table.
    pub num_rows: usize,
    /// UTF-16 units (Java characters) after which a cell is cut and ends in `...`; 0 shows everything, left-aligned.
    pub truncate: usize,
    /// `spark.sql.session.timeZone`.
    pub zone: Tz,
}

impl Default for ShowOptions {
    fn default() -> Self {
        ShowOptions { num_rows: 20, truncate: 20, zone: utc() }
    }
}

/// What `Dataset.show()` prints, without the line end that its `println` adds.
pub fn show_string(schema: &Schema, batches: &[RecordBatch], options: &ShowOptions) -> String {
    let mut rows: Vec<Vec<String>> = vec![schema.fields().iter().map(|f| escape(f.name())).collect()];
    let style = CellStyle::show(options.zone);
    let available: usize = batches.iter().map(RecordBatch::num_rows).sum();
    for batch in batches {
        for row in 0..batch.num_rows() {
            if rows.len() > options.num_rows {
                break;
            }
            rows.push(
                batch
                    .columns()
                    .iter()
                    .map(|column| {
                        let mut text = String::new();
                        write_value(&mut text, column.as_ref(), row, &style);
                        cut(escape(&text), options.truncate)
                    })
                    .collect(),
            );
        }
    }
    let mut out = String::new();
    write_table(&mut out, schema.fields().len(), &rows, options.truncate > 0);
    if available > options.num_rows {
        let noun = if options.num_rows == 1 { "row" } else { "rows" };
        out.push_str(&format!("only showing top {} {noun}", options.num_rows));
    }
    out
}

fn write_table(out: &mut String, columns: usize, rows: &[Vec<String>], right_aligned: bool) {
    const MINIMUM_WIDTH: usize = 3;
    let mut widths = vec![MINIMUM_WIDTH; columns];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(half_width(cell));
        }
    }
    let mut separator = String::from("+");
    for (i, width) in widths.iter().enumerate() {
        if i > 0 {
            separator.push('+');
        }
        separator.extend(std::iter::repeat_n('-', *width));
    }
    separator.push_str("+\n");
    out.push_str(&separator);
    for (i, row) in rows.iter().enumerate() {
        out.push('|');
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column > 0 {
                out.push('|');
            }
            let padding = std::iter::repeat_n(' ', width - half_width(cell));
            if right_aligned {
                out.extend(padding);
                out.push_str(cell);
            } else {
                out.push_str(cell);
                out.extend(padding);
            }
        }
        out.push_str("|\n");
        if i == 0 {
            out.push_str(&separator);
        }
    }
    out.push_str(&separator);
}

/// Control characters that would break the table (Spark's `SchemaUtils.escapeMetaCharacters`).
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{c}' => out.push_str("\\f"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{7}' => out.push_str("\\a"),
            other => out.push(other),
        }
    }
    out
}

/// Cuts to `truncate` UTF-16 units; the last three are dots when there is room for more than them.
fn cut(text: String, truncate: usize) -> String {
    if truncate == 0 || text.len() <= truncate || text.encode_utf16().count() <= truncate {
        return text;
    }
    let kept = if truncate < 4 { truncate } else { truncate - 3 };
    let units: Vec<u16> = text.encode_utf16().take(kept).collect();
    let mut cut = String::from_utf16_lossy(&units);
    if truncate >= 4 {
        cut.push_str("...");
    }
    cut
}

/// Columns on a terminal as Spark counts them: UTF-16 units, full-width East Asian characters twice
/// (`Utils.stringHalfWidth`).
fn half_width(text: &str) -> usize {
    text.chars().map(|c| c.len_utf16() + usize::from(is_full_width(c))).sum()
}

fn is_full_width(c: char) -> bool {
    matches!(c,
        '\u{1100}'..='\u{115F}' | '\u{2E80}'..='\u{A4CF}' | '\u{AC00}'..='\u{D7A3}' | '\u{F900}'..='\u{FAFF}'
        | '\u{FE10}'..='\u{FE19}' | '\u{FE30}'..='\u{FE6F}' | '\u{FF00}'..='\u{FF60}' | '\u{FFE0}'..='\u{FFE6}')
}
