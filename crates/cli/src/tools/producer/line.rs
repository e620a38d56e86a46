//! Kafka's `LineMessageReader`: a record from a line, by the properties of `--reader-property`. Works on bytes, so that
//! text in any encoding arrives as it was typed.

use std::collections::BTreeMap;

/// What a line is made of.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

/// Turns lines into records.
#[derive(Debug)]
pub struct LineReader {
    parses_key: bool,
    parses_headers: bool,
    ignores_errors: bool,
    key_separator: String,
    headers_delimiter: String,
    headers_separator: String,
    headers_key_separator: String,
    null_marker: Option<String>,
    number: u64,
}

impl LineReader {
    /// The properties that are not known are not looked at, as in the original.
    pub fn new(properties: &BTreeMap<String, String>) -> Result<LineReader, String> {
        let is_true = |name: &str| properties.get(name).is_some_and(|v| v.trim().eq_ignore_ascii_case("true"));
        let text = |name: &str, default: &str| properties.get(name).map_or(default, String::as_str).to_owned();
        let reader = LineReader {
            parses_key: is_true("parse.key"),
            parses_headers: is_true("parse.headers"),
            ignores_errors: is_true("ignore.error"),
            key_separator: text("key.separator", "\t"),
            headers_delimiter: text("headers.delimiter", "\t"),
            headers_separator: text("headers.separator", ","),
            headers_key_separator: text("headers.key.separator", ":"),
            null_marker: properties.get("null.marker").cloned(),
            number: 0,
        };
        let named = [
            ("headers.delimiter", Some(&reader.headers_delimiter)),
            ("headers.separator", Some(&reader.headers_separator)),
            ("headers.key.separator", Some(&reader.headers_key_separator)),
            ("key.separator", Some(&reader.key_separator)),
            ("null.marker", reader.null_marker.as_ref()),
        ];
        let apart = [
            ("headers.delimiter", "headers.separator"),
            ("headers.delimiter", "headers.key.separator"),
            ("headers.separator", "headers.key.separator"),
            ("null.marker", "key.separator"),
            ("null.marker", "headers.separator"),
            ("null.marker", "headers.delimiter"),
            ("null.marker", "headers.key.separator"),
        ];
        let of = |name: &str| named.iter().find(|(n, _)| *n == name).and_then(|(_, value)| *value);
        match apart.iter().find(|(a, b)| of(a).is_some() && of(a) == of(b)) {
            Some((a, b)) => Err(format!("{a} and {b} may not be equal")),
            None => Ok(reader),
        }
    }

    /// Takes the next line apart.
    pub fn read<'a>(&mut self, line: &'a [u8]) -> Result<Line<'a>, String> {
        self.number += 1;
        let mut rest = line;
        let mut headers = None;
        if self.parses_headers {
            headers = self.field(line, &mut rest, &self.headers_delimiter, "headers delimiter")?;
        }
        let mut key = None;
        if self.parses_key {
            key = self.field(line, &mut rest, &self.key_separator, "key separator")?;
        }
        let headers = match headers.filter(|h| !self.is_null(h)) {
            Some(headers) => self.headers(headers)?,
            None => Vec::new(),
        };
        Ok(Line { key: key.filter(|k| !self.is_null(k)), value: Some(rest).filter(|v| !self.is_null(v)), headers })
    }

    fn is_null(&self, field: &[u8]) -> bool {
        self.null_marker.as_ref().is_some_and(|marker| marker.as_bytes() == field)
    }

    /// What stands before the separator; moves `rest` behind it.
    fn field<'a>(
        &self,
        line: &[u8],
        rest: &mut &'a [u8],
        separator: &str,
        what: &str,
    ) -> Result<Option<&'a [u8]>, String> {
        match split_once(rest, separator.as_bytes()) {
            Some((field, tail)) => {
                *rest = tail;
                Ok(Some(field))
            }
            None if self.ignores_errors => Ok(None),
            None => {
                let line = String::from_utf8_lossy(line);
                Err(format!("No {what} found on line number {}: '{line}'", self.number))
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "names and values as records take them")]
    fn headers<'a>(&self, text: &'a [u8]) -> Result<Vec<(&'a [u8], Option<&'a [u8]>)>, String> {
        let mut headers = Vec::new();
        let mut rest = text;
        loop {
            let (pair, tail) = match split_once(rest, self.headers_separator.as_bytes()) {
                Some((pair, tail)) => (pair, Some(tail)),
                None => (rest, None),
            };
            match split_once(pair, self.headers_key_separator.as_bytes()) {
                Some((key, _)) if self.is_null(key) => {
                    let marker = self.null_marker.as_deref().unwrap_or_default();
                    return Err(format!(
                        "Header keys should not be equal to the null marker '{marker}' as they can't be null"
                    ));
                }
                Some((key, value)) => headers.push((key, Some(value).filter(|v| !self.is_null(v)))),
                None if self.ignores_errors => headers.push((pair, None)),
                None => {
                    let (pair, number) = (String::from_utf8_lossy(pair), self.number);
                    return Err(format!("No header key separator found in pair '{pair}' on line number {number}"));
                }
            }
            match tail {
                Some(tail) if !tail.is_empty() => rest = tail,
                _ => return Ok(headers),
            }
        }
    }
}

fn split_once<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    if separator.is_empty() {
        return Some((text.get(..0)?, text));
    }
    let at = text.windows(separator.len()).position(|w| w == separator)?;
    Some((text.get(..at)?, text.get(at + separator.len()..)?))
}

/// The lines of a block of text that ends with a line: `\n`, `\r\n` and `\r` end one.
pub fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let block = block.strip_suffix(b"\n").unwrap_or(block);
    block.split(|b| *b == b'\n').flat_map(|line| line.strip_suffix(b"\r").unwrap_or(line).split(|b| *b == b'\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(properties: Properties) -> Result<LineReader, String> {
        LineReader::new(&properties.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn shown(line: &Line) -> String {
        let text = |b: Option<&[u8]>| b.map_or("-".to_owned(), |b| String::from_utf8_lossy(b).into_owned());
        let headers: Vec<String> =
            line.headers.iter().map(|(k, v)| format!("{}={}", text(Some(*k)), text(*v))).collect();
        format!("{}|{}|{}", headers.join(","), text(line.key), text(line.value))
    }

    type Properties<'a> = &'a [(&'a str, &'a str)];

    #[test]
    fn lines_by_properties() {
        let key = ("parse.key", "true");
        let headers = ("parse.headers", "true");
        let null = ("null.marker", "NULL");
        let lenient = ("ignore.error", "true");
        let cases: &[(Properties, &str, &str)] = &[
            (&[], "a\tb", "|-|a\tb"),
            (&[], "", "|-|"),
            (&[key], "k\tv\tw", "|k|v\tw"),
            (&[key, ("key.separator", "::")], "k::v", "|k|v"),
            (&[key, headers], "h1:v1,h2:v:2\tk\tv", "h1=v1,h2=v:2|k|v"),
            (&[headers], "h1:v1,h1:v2,\tv", "h1=v1,h1=v2|-|v"),
            (&[key, headers, null], "NULL\tNULL\tNULL", "|-|-"),
            (&[key, headers, null], "h:NULL\tk\tv", "h=-|k|v"),
            (&[key, lenient], "v", "|-|v"),
            (&[headers, lenient], "h\tv", "h=-|-|v"),
            (&[key], "k\t", "|k|"),
        ];
        for (properties, line, expected) in cases {
            let mut reader = reader(properties).unwrap();
            assert_eq!(shown(&reader.read(line.as_bytes()).unwrap()), *expected, "{line:?}");
        }
    }

    #[test]
    fn errors_are_the_originals() {
        let mut keyed = reader(&[("parse.key", "true")]).unwrap();
        keyed.read(b"k\tv").unwrap();
        assert_eq!(keyed.read(b"v").unwrap_err(), "No key separator found on line number 2: 'v'");
        let mut headed = reader(&[("parse.headers", "true")]).unwrap();
        assert_eq!(headed.read(b"v").unwrap_err(), "No headers delimiter found on line number 1: 'v'");
        assert_eq!(headed.read(b"h\tv").unwrap_err(), "No header key separator found in pair 'h' on line number 2");
        assert_eq!(
            reader(&[("headers.delimiter", ",")]).unwrap_err(),
            "headers.delimiter and headers.separator may not be equal"
        );
        assert_eq!(
            reader(&[("null.marker", ":")]).unwrap_err(),
            "null.marker and headers.key.separator may not be equal"
        );
    }

    #[test]
    fn line_ends() {
        let found = |block: &[u8]| lines(block).map(|l| String::from_utf8_lossy(l).into_owned()).collect::<Vec<_>>();
        assert_eq!(found(b"a\nb\r\nc\rd\n"), ["a", "b", "c", "d"]);
        assert_eq!(found(b"a\n\n"), ["a", ""]);
        assert_eq!(found(b"a"), ["a"]);
        assert_eq!(found("ñandú\n".as_bytes()), ["ñandú"]);
    }
}
