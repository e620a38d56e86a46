//! Spark's schema texts: `a INT, b STRUCT<c: STRING>`, `ARRAY<BIGINT>`; also the JSON form of `schema.json()`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

/// What is wrong with a schema text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("[INVALID_SCHEMA] cannot parse the schema '{text}' at character {at}: expected {expected}")]
pub struct SchemaError {
    text: String,
    at: usize,
    expected: String,
}

/// Spark's `TIMESTAMP`: microseconds, shown in the session's time zone.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Parses a list of columns: `a INT NOT NULL COMMENT 'x', b: STRING`, or a whole `STRUCT<...>`.
pub fn parse_columns(text: &str) -> Result<Fields, SchemaError> {
    if let Ok(DataType::Struct(fields)) = parse_type(text) {
        return Ok(fields);
    }
    let mut parser = Parser { text, at: 0, comments: Vec::new() };
    let fields = parser.columns(None)?;
    parser.end()?;
    Ok(fields)
}

/// The comments of a list of columns, by column.
pub fn column_comments(text: &str) -> Vec<(String, String)> {
    let mut parser = Parser { text, at: 0, comments: Vec::new() };
    // Inner fields come before the column that they are in: a column's own comment is the last of its name.
    match parser.columns(None) {
        Ok(fields) => parser.comments.into_iter().filter(|(name, _)| fields.find(name).is_some()).collect(),
        Err(_) => Vec::new(),
    }
}

/// Parses a type, or a list of columns, which is a struct.
pub fn parse_schema(text: &str) -> Result<DataType, SchemaError> {
    match parse_type(text) {
        Ok(ty) => Ok(ty),
        Err(_) => parse_columns(text).map(DataType::Struct),
    }
}

/// Parses one type.
pub fn parse_type(text: &str) -> Result<DataType, SchemaError> {
    let mut parser = Parser { text, at: 0, comments: Vec::new() };
    let ty = parser.ty()?;
    parser.end()?;
    Ok(ty)
}

/// The type as Spark's catalog writes it, e.g. `struct<a:bigint>`: what `typeof` says.
pub fn catalog_name(ty: &DataType) -> String {
    match ty {
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            format!("array<{}>", catalog_name(f.data_type()))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) => {
                let parts: Vec<String> = kv.iter().map(|f| catalog_name(f.data_type())).collect();
                format!("map<{}>", parts.join(","))
            }
            other => format!("map<{other}>"),
        },
        DataType::Struct(fields) => {
            let parts: Vec<String> =
                fields.iter().map(|f| format!("{}:{}", f.name(), catalog_name(f.data_type()))).collect();
            format!("struct<{}>", parts.join(","))
        }
        DataType::Interval(_) => "interval".to_owned(),
        DataType::Duration(TimeUnit::Second) => "interval day".to_owned(),
        DataType::Duration(_) => "interval day to second".to_owned(),
        other => type_name(other).to_lowercase(),
    }
}

/// The type as Spark's DDL writes it, e.g. `STRUCT<a: BIGINT>`.
pub fn type_name(ty: &DataType) -> String {
    match ty {
        DataType::Null => "VOID".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::Int16 | DataType::UInt8 => "SMALLINT".to_owned(),
        DataType::Int32 | DataType::UInt16 => "INT".to_owned(),
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => "BIGINT".to_owned(),
        DataType::Float16 | DataType::Float32 => "FLOAT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "STRING".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "BINARY".to_owned()
        }
        DataType::Date32 | DataType::Date64 => "DATE".to_owned(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP".to_owned(),
        DataType::Timestamp(_, None) => "TIMESTAMP_NTZ".to_owned(),
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => {
            format!("DECIMAL({p},{s})")
        }
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
            format!("ARRAY<{}>", type_name(f.data_type()))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) => {
                let parts: Vec<String> = kv.iter().map(|f| type_name(f.data_type())).collect();
                format!("MAP<{}>", parts.join(", "))
            }
            other => format!("MAP<{other}>"),
        },
        DataType::Struct(fields) => {
            let parts: Vec<String> =
                fields.iter().map(|f| format!("{}: {}", f.name(), type_name(f.data_type()))).collect();
            format!("STRUCT<{}>", parts.join(", "))
        }
        DataType::Interval(_) | DataType::Duration(_) => "INTERVAL".to_owned(),
        other => other.to_string(),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// Comments by column, in the order in which they were read.
    comments: Vec<(String, String)>,
}

impl Parser<'_> {
    fn fail<T>(&self, expected: &str) -> Result<T, SchemaError> {
        Err(SchemaError { text: self.text.trim().to_owned(), at: self.at + 1, expected: expected.to_owned() })
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn end(&mut self) -> Result<(), SchemaError> {
        self.blanks();
        if self.rest().is_empty() { Ok(()) } else { self.fail("the end") }
    }

    fn eat(&mut self, c: char) -> bool {
        self.blanks();
        let hit = self.rest().starts_with(c);
        if hit {
            self.at += c.len_utf8();
        }
        hit
    }

    fn expect(&mut self, c: char) -> Result<(), SchemaError> {
        if self.eat(c) { Ok(()) } else { self.fail(&format!("'{c}'")) }
    }

    /// A word, or a name in backticks.
    fn word(&mut self) -> Result<String, SchemaError> {
        self.blanks();
        if let Some(quoted) = self.rest().strip_prefix('`') {
            let Some(end) = quoted.find('`') else { return self.fail("'`'") };
            let name = quoted.get(..end).unwrap_or("").to_owned();
            self.at += end + 2;
            return Ok(name);
        }
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or("").to_owned();
        if word.is_empty() {
            return self.fail("a name");
        }
        self.at += end;
        Ok(word)
    }

    fn eat_word(&mut self, expected: &str) -> bool {
        let before = self.at;
        if self.word().is_ok_and(|w| w.eq_ignore_ascii_case(expected)) {
            return true;
        }
        self.at = before;
        false
    }

    fn string(&mut self) -> Result<String, SchemaError> {
        self.blanks();
        let quote = self.rest().chars().next().filter(|c| *c == '\'' || *c == '"');
        let Some(quote) = quote else { return self.fail("a string") };
        let Some(end) = self.rest().get(1..).and_then(|r| r.find(quote)) else { return self.fail("the string's end") };
        let text = self.rest().get(1..=end).unwrap_or_default().to_owned();
        self.at += end + 2;
        Ok(text)
    }

    fn columns(&mut self, close: Option<char>) -> Result<Fields, SchemaError> {
        let mut fields = Vec::new();
        self.blanks();
        if close.is_some_and(|c| self.rest().starts_with(c)) {
            return Ok(Fields::empty());
        }
        loop {
            let name = self.word()?;
            self.eat(':');
            let ty = self.ty()?;
            let mut nullable = true;
            loop {
                if self.eat_word("NOT") {
                    if !self.eat_word("NULL") {
                        return self.fail("NULL");
                    }
                    nullable = false;
                } else if self.eat_word("COMMENT") {
                    let comment = self.string()?;
                    self.comments.push((name.clone(), comment));
                } else {
                    break;
                }
            }
            fields.push(Arc::new(Field::new(name, ty, nullable)));
            if !self.eat(',') {
                return Ok(fields.into());
            }
        }
    }

    fn ty(&mut self) -> Result<DataType, SchemaError> {
        let start = self.at;
        let word = self.word()?.to_ascii_uppercase();
        Ok(match word.as_str() {
            "BOOLEAN" | "BOOL" => DataType::Boolean,
            "BYTE" | "TINYINT" => DataType::Int8,
            "SHORT" | "SMALLINT" => DataType::Int16,
            "INT" | "INTEGER" => DataType::Int32,
            "LONG" | "BIGINT" => DataType::Int64,
            "FLOAT" | "REAL" => DataType::Float32,
            "DOUBLE" => {
                self.eat_word("PRECISION");
                DataType::Float64
            }
            "STRING" | "TEXT" => DataType::Utf8,
            "VARCHAR" | "CHAR" | "CHARACTER" => {
                self.numbers()?;
                DataType::Utf8
            }
            "BINARY" => DataType::Binary,
            "DATE" => DataType::Date32,
            "TIMESTAMP" | "TIMESTAMP_LTZ" => timestamp(),
            "TIMESTAMP_NTZ" => DataType::Timestamp(TimeUnit::Microsecond, None),
            "VOID" | "NULL" => DataType::Null,
            "DECIMAL" | "DEC" | "NUMERIC" => {
                let numbers = self.numbers()?;
                let precision = numbers.first().copied().unwrap_or(10);
                let scale = numbers.get(1).copied().unwrap_or(0);
                match (u8::try_from(precision), i8::try_from(scale)) {
                    (Ok(p @ 1..=38), Ok(s)) if s >= 0 && s.unsigned_abs() <= p => DataType::Decimal128(p, s),
                    _ => return self.fail("a precision of at most 38 and a scale of at most the precision"),
                }
            }
            "ARRAY" => {
                self.expect('<')?;
                let item = self.ty()?;
                self.expect('>')?;
                DataType::List(Arc::new(Field::new_list_field(item, true)))
            }
            "MAP" => {
                self.expect('<')?;
                let key = self.ty()?;
                self.expect(',')?;
                let value = self.ty()?;
                self.expect('>')?;
                map_type(key, value)
            }
            "STRUCT" => {
                self.expect('<')?;
                let fields = self.columns(Some('>'))?;
                self.expect('>')?;
                DataType::Struct(fields)
            }
            _ => {
                self.at = start;
                return self.fail("a type such as INT, STRING, DOUBLE, TIMESTAMP, ARRAY<...>, MAP<...>, STRUCT<...>");
            }
        })
    }

    /// `(10)`, `(10, 2)` or nothing.
    fn numbers(&mut self) -> Result<Vec<u64>, SchemaError> {
        let mut numbers = Vec::new();
        if !self.eat('(') {
            return Ok(numbers);
        }
        loop {
            match self.word()?.parse() {
                Ok(n) => numbers.push(n),
                Err(_) => return self.fail("a number"),
            }
            if !self.eat(',') {
                self.expect(')')?;
                return Ok(numbers);
            }
        }
    }
}

/// A map's Arrow type.
pub fn map_type(key: DataType, value: DataType) -> DataType {
    let entries = Fields::from(vec![Field::new("key", key, false), Field::new("value", value, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_round_trip() {
        for (text, shown) in [
            ("a INT, b string", "STRUCT<a: INT, b: STRING>"),
            ("struct<a:int,b:array<struct<c:double>>>", "STRUCT<a: INT, b: ARRAY<STRUCT<c: DOUBLE>>>"),
            ("`x y` TIMESTAMP NOT NULL COMMENT 'it''s', m MAP<STRING, DECIMAL(10, 2)>", ""),
            ("array<long>", "ARRAY<BIGINT>"),
        ] {
            match parse_schema(text) {
                Ok(ty) if !shown.is_empty() => assert_eq!(type_name(&ty), shown),
                Ok(_) => {}
                Err(e) => assert!(shown.is_empty(), "{e}"),
            }
        }
        let error = parse_schema("a INTT").unwrap_err().to_string();
        assert!(error.contains("at character 3"), "{error}");
    }
}
