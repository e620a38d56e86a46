//! CSV as Spark writes and reads it: `\` escapes inside quotes, empty strings are `""`, nulls are empty.

use std::fmt::Write as _;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;

use super::cell::{CellStyle, write_value};
use super::json::write_timestamp;
use crate::error::EngineError;
use crate::options::Options;

/// The characters of a CSV dialect and the texts that stand for nulls and empty strings.
#[derive(Debug, Clone)]
pub struct CsvDialect {
    pub separator: u8,
    /// `None`: nothing is quoted.
    pub quote: Option<u8>,
    pub escape: Option<u8>,
    /// Lines that start with it are skipped when reading.
    pub comment: Option<u8>,
    pub header: bool,
    pub null_value: String,
    pub ignore_leading_space: bool,
    pub ignore_trailing_space: bool,
}

impl CsvDialect {
    /// The names of the options that [`CsvDialect::from_options`] reads.
    pub const OPTIONS: [&'static str; 9] = [
        "sep",
        "delimiter",
        "quote",
        "escape",
        "comment",
        "header",
        "nullValue",
        "ignoreLeadingWhiteSpace",
        "ignoreTrailingWhiteSpace",
    ];

    pub fn from_options(options: &Options) -> Result<Self, EngineError> {
        let separator = match options.character("sep")? {
            Some(given) => Some(given),
            None => options.character("delimiter")?,
        };
        Ok(CsvDialect {
            separator: separator.flatten().unwrap_or(b','),
            quote: options.character("quote")?.unwrap_or(Some(b'"')),
            escape: options.character("escape")?.unwrap_or(Some(b'\\')),
            comment: options.character("comment")?.flatten(),
            header: options.bool("header")?.unwrap_or(false),
            null_value: options.get("nullValue").unwrap_or_default().to_owned(),
            ignore_leading_space: options.bool("ignoreLeadingWhiteSpace")?.unwrap_or(false),
            ignore_trailing_space: options.bool("ignoreTrailingWhiteSpace")?.unwrap_or(false),
        })
    }

    /// Appends one field, quoted where it must be.
    pub fn write_field(&self, out: &mut String, text: &str) {
        let Some(quote) = self.quote else {
            out.push_str(text);
            return;
        };
        let special = |b: u8| b == self.separator || b == quote || b == b'\n' || b == b'\r';
        let quoted = text.is_empty()
            || text.bytes().any(special)
            || text.starts_with(' ')
            || text.ends_with(' ')
            || self.comment.is_some_and(|c| text.as_bytes().first() == Some(&c));
        if !quoted {
            out.push_str(text);
            return;
        }
        let escape = self.escape.unwrap_or(quote);
        out.push(char::from(quote));
        for c in text.chars() {
            if c == char::from(quote) || c == char::from(escape) {
                out.push(char::from(escape));
            }
            out.push(c);
        }
        out.push(char::from(quote));
    }

    /// Appends one row without an end of line.
    pub fn write_row(&self, out: &mut String, columns: &[ArrayRef], row: usize, zone: Tz) {
        let mut text = String::new();
        for (i, column) in columns.iter().enumerate() {
            if i > 0 {
                out.push(char::from(self.separator));
            }
            if column.is_null(row) || column.data_type() == &DataType::Null {
                out.push_str(&self.null_value);
                continue;
            }
            text.clear();
            if matches!(column.data_type(), DataType::Timestamp(_, _)) {
                write_timestamp(&mut text, column.as_ref(), row, zone);
            } else {
                write_value(&mut text, column.as_ref(), row, &CellStyle::cast(zone));
            }
            self.write_field(out, &text);
        }
    }

    /// Appends the names as a header line, with its end.
    pub fn write_header<'a>(&self, out: &mut String, names: impl IntoIterator<Item = &'a str>) {
        for (i, name) in names.into_iter().enumerate() {
            if i > 0 {
                out.push(char::from(self.separator));
            }
            self.write_field(out, name);
        }
        let _ = writeln!(out);
    }

    /// Reads the next record of `text` into `fields` (`None`: an unquoted empty or null field) and returns the rest;
    /// `None` at the end. Empty lines and comments are skipped; quoted fields may hold line ends.
    pub fn read_record<'a>(&self, mut text: &'a [u8], fields: &mut Vec<Option<Vec<u8>>>) -> Option<&'a [u8]> {
        fields.clear();
        loop {
            match text.first()? {
                b'\n' | b'\r' => text = text.get(1..)?,
                first if Some(*first) == self.comment => {
                    text = memchr::memchr(b'\n', text).and_then(|end| text.get(end + 1..))?;
                }
                _ => break,
            }
        }
        loop {
            let (field, rest) = self.read_field(text);
            fields.push(field);
            match rest.split_first() {
                Some((first, after)) if *first == self.separator => text = after,
                Some((b'\r', after)) => return Some(after.strip_prefix(b"\n").unwrap_or(after)),
                Some((_, after)) => return Some(after),
                None => return Some(rest),
            }
        }
    }

    /// One field and what follows it (beginning with a separator or a line end).
    fn read_field<'a>(&self, text: &'a [u8]) -> (Option<Vec<u8>>, &'a [u8]) {
        let trimmed = if self.ignore_leading_space { trim_start(text) } else { text };
        if self.quote.is_some() && trimmed.first() == self.quote.as_ref() {
            return self.read_quoted(trimmed.get(1..).unwrap_or_default());
        }
        let end =
            trimmed.iter().position(|b| *b == self.separator || *b == b'\n' || *b == b'\r').unwrap_or(trimmed.len());
        let (field, rest) = trimmed.split_at(end);
        let field = if self.ignore_trailing_space { field.trim_ascii_end() } else { field };
        let null = field.is_empty() || (!self.null_value.is_empty() && field == self.null_value.as_bytes());
        ((!null).then(|| field.to_vec()), rest)
    }

    fn read_quoted<'a>(&self, text: &'a [u8]) -> (Option<Vec<u8>>, &'a [u8]) {
        let quote = self.quote.unwrap_or(b'"');
        let mut field = Vec::new();
        let mut bytes = text.iter().enumerate().peekable();
        while let Some((i, byte)) = bytes.next() {
            let next = bytes.peek().map(|(_, b)| **b);
            let escapes = Some(*byte) == self.escape && (next == Some(quote) || next == self.escape);
            if escapes || (*byte == quote && next == Some(quote)) {
                field.extend(next);
                bytes.next();
            } else if *byte == quote {
                let rest = text.get(i + 1..).unwrap_or_default();
                let end =
                    rest.iter().position(|b| *b == self.separator || *b == b'\n' || *b == b'\r').unwrap_or(rest.len());
                return (Some(field), rest.get(end..).unwrap_or_default());
            } else {
                field.push(*byte);
            }
        }
        (Some(field), &[])
    }
}

fn trim_start(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|b| *b != b' ' && *b != b'\t').unwrap_or(text.len());
    text.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(options: &[(&str, &str)]) -> CsvDialect {
        CsvDialect::from_options(&options.iter().copied().collect()).unwrap()
    }

    #[test]
    fn fields_are_quoted_as_spark_quotes_them() {
        let mut out = String::new();
        for text in ["plain", "", "q\"u,o\\te", "back\\slash", " x"] {
            dialect(&[]).write_field(&mut out, text);
            out.push('|');
        }
        assert_eq!(out, "plain|\"\"|\"q\\\"u,o\\\\te\"|back\\slash|\" x\"|");
    }

    #[test]
    fn records_come_back() {
        let mut text = String::new();
        let fields = ["a", "", "q\"u,o\\te", "two\nlines", "x"];
        for (i, field) in fields.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            dialect(&[]).write_field(&mut text, field);
        }
        text.push_str("\r\n\n1,,3\n");
        let mut read = Vec::new();
        let rest = dialect(&[]).read_record(text.as_bytes(), &mut read).unwrap();
        let expected: Vec<_> = fields.iter().map(|f| Some(f.as_bytes().to_vec())).collect();
        assert_eq!(read, expected);
        let rest = dialect(&[]).read_record(rest, &mut read).unwrap();
        assert_eq!(read, vec![Some(b"1".to_vec()), None, Some(b"3".to_vec())]);
        assert!(dialect(&[]).read_record(rest, &mut read).is_none());
    }
}
