//! What Java's standard library decides in the originals: regular expressions over topic names, dates, durations,
//! numbers.

use std::fmt::Write as _;

use chrono::{DateTime, NaiveDateTime};
use regex::Regex;

use super::Stop;

/// Whether the topic is one of Kafka's own.
pub fn is_internal(topic: &str) -> bool {
    matches!(topic, "__consumer_offsets" | "__transaction_state" | "__share_group_state")
}

/// Topics by regular expression, as `--topic` and `--include` take it: commas separate alternatives, spaces and quotes
/// around it do not count, and it must match the whole name.
#[derive(Debug, Clone)]
pub struct IncludeList(Regex);

impl IncludeList {
    pub fn new(raw: &str) -> Result<IncludeList, Stop> {
        let pattern = raw.trim().replace(',', "|").replace(' ', "");
        let pattern = pattern.trim_start_matches(['"', '\'']).trim_end_matches(['"', '\'']);
        match whole(pattern) {
            Ok(regex) => Ok(IncludeList(regex)),
            Err(_) => Err(Stop::Failed(format!("{pattern} is an invalid regex."))),
        }
    }

    pub fn matches(&self, topic: &str) -> bool {
        self.0.is_match(topic)
    }
}

/// A regular expression that must match all of a text.
pub fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

/// Milliseconds since 1970 of an ISO date and time, UTC where it names no offset (`Utils.getDateTime`). Seconds and
/// milliseconds may be left out, which the original does not take.
pub fn date_time_ms(text: &str) -> Result<i64, String> {
    if !text.contains('T') {
        return Err("Error parsing timestamp. It does not contain a 'T' according to ISO8601 format".to_owned());
    }
    let with_offset = ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z"];
    let plain = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"];
    let zoned = text.replace('Z', "+00:00");
    let offset = with_offset.iter().find_map(|f| DateTime::parse_from_str(&zoned, f).ok());
    let utc = plain.iter().find_map(|f| NaiveDateTime::parse_from_str(text, f).ok());
    match (offset, utc) {
        (Some(time), _) => Ok(time.timestamp_millis()),
        (_, Some(time)) => Ok(time.and_utc().timestamp_millis()),
        _ => Err(format!("Unparseable date: \"{text}\"")),
    }
}

/// A time in milliseconds since 1970 as ISO text in UTC.
pub fn utc_text(time_ms: i64) -> Option<String> {
    let time = DateTime::from_timestamp_millis(time_ms).filter(|_| time_ms >= 0)?;
    Some(time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

/// Milliseconds of an ISO duration of days, hours, minutes and seconds, such as `P1DT2H30M` or `-PT0.5S`.
pub fn duration_ms(text: &str) -> Result<i64, String> {
    parse_duration(text).ok_or_else(|| "Text cannot be parsed to a Duration".to_owned())
}

fn parse_duration(text: &str) -> Option<i64> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let rest = rest.strip_prefix(['P', 'p'])?;
    let (days, time) = match rest.split_once(['T', 't']) {
        Some((days, time)) if !time.is_empty() => (days, time),
        Some(_) => return None,
        None => (rest, ""),
    };
    if days.is_empty() && time.is_empty() {
        return None;
    }
    let mut total = 0.0;
    for (part, units) in [(days, &[('D', 86_400e3)][..]), (time, &[('H', 3_600e3), ('M', 60e3), ('S', 1e3)][..])] {
        let mut left = part;
        let mut units = units.iter();
        while !left.is_empty() {
            let end = left.find(|c: char| c.is_ascii_alphabetic())?;
            let (number, tail) = left.split_at(end);
            let unit = tail.chars().next()?.to_ascii_uppercase();
            let (_, ms) = units.find(|(u, _)| *u == unit)?;
            total += number.parse::<f64>().ok().filter(|n| unit == 'S' || n.fract() == 0.0)? * ms;
            left = tail.get(1..)?;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "a duration of 292 million years is clamped")]
    Some((sign * total).round() as i64)
}

/// A number as `Double.toString` shows it.
pub fn double(value: f64) -> String {
    let magnitude = value.abs();
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity".to_owned() } else { "-Infinity".to_owned() }
    } else if value == 0.0 || (1e-3..1e7).contains(&magnitude) {
        format!("{value:?}")
    } else {
        let text = format!("{value:E}");
        match text.split_once('E') {
            Some((digits, exponent)) if !digits.contains('.') => format!("{digits}.0E{exponent}"),
            _ => text,
        }
    }
}

/// A number as `Float.toString` shows it.
pub fn float(value: f32) -> String {
    // The shortest digits that name the value among the floats, which are fewer than among the doubles.
    value.to_string().parse().map_or_else(|_| value.to_string(), double)
}

/// Left-aligned columns as `printf("%-15s ...")` lays them out: `widths` in order, the last column as it is.
pub fn columns(widths: &[usize], cells: &[&str]) -> String {
    let mut line = String::new();
    for (i, cell) in cells.iter().enumerate() {
        let separator = if i == 0 { "" } else { " " };
        let width = widths.get(i).copied().unwrap_or(0);
        let _ = write!(line, "{separator}{cell:width$}");
    }
    line
}

/// The lines of a table: every cell as wide as its column's widest, and a tab after it (`ToolsUtils.prettyPrintTable`).
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let headers: Vec<String> = headers.iter().map(|&h| h.to_owned()).collect();
    let cell = |row: &[String], i: usize| row.get(i).map_or(0, |c| c.chars().count());
    let widths: Vec<usize> = (0..headers.len())
        .map(|i| rows.iter().map(|r| cell(r, i)).chain([cell(&headers, i)]).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        row.iter().zip(&widths).fold(String::new(), |mut line, (cell, width)| {
            let _ = write!(line, "{cell:width$}\t");
            line
        })
    };
    std::iter::once(&headers).chain(rows).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn include_lists() {
        let list = IncludeList::new("'a.*, b'").unwrap();
        assert!(list.matches("abc") && list.matches("b") && !list.matches("cab") && !list.matches("bb"));
        assert_eq!(IncludeList::new("a[").unwrap_err().to_string(), "a[ is an invalid regex.");
    }

    #[test]
    fn dates() {
        assert_eq!(date_time_ms("1970-01-01T00:00:01.500"), Ok(1500));
        assert_eq!(date_time_ms("1970-01-01T00:00:01.500Z"), Ok(1500));
        assert_eq!(date_time_ms("1970-01-01T01:00:00.000+01:00"), Ok(0));
        assert_eq!(date_time_ms("1970-01-01T01:00:00.000+01"), Ok(0));
        assert_eq!(date_time_ms("1970-01-01T01:00"), Ok(3_600_000));
        assert!(date_time_ms("yesterday").is_err() && date_time_ms("1970-13-01T00:00:00.000").is_err());
    }

    #[test]
    fn durations() {
        let cases =
            [("PT0S", 0), ("P1D", 86_400_000), ("P1DT2H30M", 95_400_000), ("-PT1.5S", -1500), ("PT-2M", -120_000)];
        for (text, ms) in cases {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for text in ["", "P", "PT", "1D", "PT5", "P1H", "PT1S2M"] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn doubles() {
        let cases = [(1.0, "1.0"), (0.1, "0.1"), (1e7, "1.0E7"), (1.25e-5, "1.25E-5"), (-2.5, "-2.5"), (0.0, "0.0")];
        for (value, text) in cases {
            assert_eq!(double(value), text);
        }
    }
}
