//! The tables of Spark's `Dataset.show()`, byte for byte.

use std::io::Write;

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
    let mut out = Vec::new();
    // Writing into memory does not fail.
    let _ = show(&mut out, schema, batches, options);
    String::from_utf8_lossy(&out).into_owned()
}

/// Writes what [`show_string`] returns. The cells are made twice, for their widths and to be written, so that the text
/// of a large result is never in memory as a whole.
pub fn show(
    out: &mut impl Write,
    schema: &Schema,
    batches: &[RecordBatch],
    options: &ShowOptions,
) -> std::io::Result<()> {
    const MINIMUM_WIDTH: usize = 3;
    let names: Vec<String> = schema.fields().iter().map(|field| escape(field.name())).collect();
    let mut widths: Vec<usize> = names.iter().map(|name| half_width(name).max(MINIMUM_WIDTH)).collect();
    let mut cells = names.clone();
    let rows = || {
        let all = batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row)));
        all.take(options.num_rows)
    };
    for (batch, row) in rows() {
        fill(&mut cells, batch, row, options);
        for (width, cell) in widths.iter_mut().zip(&cells) {
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
    let right_aligned = options.truncate > 0;
    out.write_all(separator.as_bytes())?;
    write_row(out, &names, &widths, right_aligned)?;
    out.write_all(separator.as_bytes())?;
    for (batch, row) in rows() {
        fill(&mut cells, batch, row, options);
        write_row(out, &cells, &widths, right_aligned)?;
    }
    out.write_all(separator.as_bytes())?;
    if batches.iter().map(RecordBatch::num_rows).sum::<usize>() > options.num_rows {
        let noun = if options.num_rows == 1 { "row" } else { "rows" };
        write!(out, "only showing top {} {noun}", options.num_rows)?;
    }
    Ok(())
}

/// The texts of a row's cells.
fn fill(cells: &mut [String], batch: &RecordBatch, row: usize, options: &ShowOptions) {
    let style = CellStyle::show(options.zone);
    for (cell, column) in cells.iter_mut().zip(batch.columns()) {
        let mut text = String::new();
        write_value(&mut text, column.as_ref(), row, &style);
        *cell = cut(escape(&text), options.truncate);
    }
}

fn write_row(out: &mut impl Write, cells: &[String], widths: &[usize], right_aligned: bool) -> std::io::Result<()> {
    let mut line = String::from("|");
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        if column > 0 {
            line.push('|');
        }
        let padding = std::iter::repeat_n(' ', width.saturating_sub(half_width(cell)));
        if right_aligned {
            line.extend(padding);
            line.push_str(cell);
        } else {
            line.push_str(cell);
            line.extend(padding);
        }
    }
    line.push_str("|\n");
    out.write_all(line.as_bytes())
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
