//! Times in the patterns of Java's `SimpleDateFormat`, in the local time zone.

use chrono::{DateTime, Local};

/// A pattern, as the formats of its parts.
#[derive(Debug)]
pub struct DatePattern(Vec<Part>);

#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    /// A letter, and how often it stands.
    Field(char, usize),
}

impl DatePattern {
    /// Letters are fields, everything else stands for itself, also what is between single quotes.
    pub fn new(pattern: &str) -> Result<DatePattern, String> {
        let mut parts = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\'' if chars.next_if_eq(&'\'').is_some() => text(&mut parts, '\''),
                '\'' => loop {
                    match chars.next() {
                        Some('\'') if chars.next_if_eq(&'\'').is_some() => text(&mut parts, '\''),
                        Some('\'') => break,
                        Some(c) => text(&mut parts, c),
                        None => return Err("Unterminated quote".to_owned()),
                    }
                },
                c if c.is_ascii_alphabetic() => {
                    let mut count = 1;
                    while chars.next_if_eq(&c).is_some() {
                        count += 1;
                    }
                    if specifier(c, count).is_none() {
                        return Err(format!("Illegal pattern character '{c}'"));
                    }
                    parts.push(Part::Field(c, count));
                }
                c => text(&mut parts, c),
            }
        }
        Ok(DatePattern(parts))
    }

    pub fn format(&self, time_ms: i64) -> String {
        let time = DateTime::from_timestamp_millis(time_ms).unwrap_or_default().with_timezone(&Local);
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(c, count) => field(&time, *c, *count),
        };
        self.0.iter().map(part).collect()
    }
}

fn text(parts: &mut Vec<Part>, c: char) {
    match parts.last_mut() {
        Some(Part::Text(text)) => text.push(c),
        _ => parts.push(Part::Text(c.to_string())),
    }
}

/// How `chrono` calls a field.
fn specifier(c: char, count: usize) -> Option<&'static str> {
    Some(match (c, count) {
        ('y', 2) => "%y",
        ('y', _) => "%Y",
        ('M', 3) => "%b",
        ('M', 4..) => "%B",
        ('M', _) => "%m",
        ('d', _) => "%d",
        ('D', _) => "%j",
        ('H', _) => "%H",
        ('h', _) => "%I",
        ('m', _) => "%M",
        ('s', _) => "%S",
        ('S', _) => "%3f",
        ('a', _) => "%p",
        ('E', 4..) => "%A",
        ('E', _) => "%a",
        ('Z', _) => "%z",
        ('X', 3) => "%:z",
        _ => return None,
    })
}

fn field(time: &DateTime<Local>, c: char, count: usize) -> String {
    let text = time.format(specifier(c, count).unwrap_or_default()).to_string();
    // Numbers are as wide as their letter is often; names, zones and years of two digits are what they are.
    let is_number = text.chars().all(|c| c.is_ascii_digit()) && !(c == 'y' && count == 2);
    if !is_number {
        return text;
    }
    let bare = text.trim_start_matches('0');
    let bare = if bare.is_empty() { "0" } else { bare };
    format!("{bare:0>count$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let time = 1_700_000_000_007;
        let there = DateTime::from_timestamp_millis(time).unwrap().with_timezone(&Local);
        let cases = [
            ("yyyy-MM-dd HH:mm:ss:SSS", "%Y-%m-%d %H:%M:%S:007"),
            ("yy 'at' H''m", "%y at %-H'%-M"),
            ("S SSSS", "7 0007"),
            ("EEE, d MMM yyyy", "%a, %-d %b %Y"),
        ];
        for (pattern, expected) in cases {
            let expected = there.format(expected).to_string();
            assert_eq!(DatePattern::new(pattern).unwrap().format(time), expected, "{pattern}");
        }
        assert_eq!(DatePattern::new("yyyy-bb").unwrap_err(), "Illegal pattern character 'b'");
        assert!(DatePattern::new("'yyyy").is_err());
    }
}
