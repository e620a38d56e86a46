//! Times as text: the forms that Spark casts to `TIMESTAMP`, and its datetime patterns.

/// Microseconds since 1970 of a text such as `2024-05-01T10:20:30.123456Z`: what Spark's cast and JSON reader accept
/// (`yyyy`, `yyyy-MM`, `yyyy-MM-dd`, then `T` or a blank and `HH:mm[:ss[.fraction]]`, then a zone). Without a zone: UTC.
#[inline]
pub(crate) fn parse_timestamp(text: &[u8]) -> Option<i64> {
    parse_usual(text).or_else(|| parse_any(text))
}

#[expect(clippy::indexing_slicing, reason = "every index is checked against the length just before")]
fn parse_any(text: &[u8]) -> Option<i64> {
    let (negative, mut at) = match text.first()? {
        b'-' => (true, 1),
        b'+' => (false, 1),
        _ => (false, 0),
    };
    let (year, used) = digits(&text[at..], 4, 6)?;
    at += used;
    let year = if negative { -year } else { year };
    let (mut month, mut day) = (1, 1);
    if text.get(at) == Some(&b'-') {
        let (m, used) = digits(&text[at + 1..], 1, 2)?;
        month = m;
        at += 1 + used;
        if text.get(at) == Some(&b'-') {
            let (d, used) = digits(&text[at + 1..], 1, 2)?;
            day = d;
            at += 1 + used;
        }
    }
    let days = days_from_civil(year, month, day)?;
    let mut micros = 0;
    let mut offset = 0;
    if at < text.len() {
        if !matches!(text[at], b'T' | b' ' | b't') {
            return None;
        }
        let (time, used) = time_of_day(&text[at + 1..])?;
        micros = time;
        at += 1 + used;
        offset = zone_offset_micros(&text[at..])?;
    }
    days.checked_mul(86_400_000_000)?.checked_add(micros)?.checked_sub(offset)
}

/// `yyyy-MM-ddTHH:mm:ss[.fraction]Z`, the form that most producers write, with all digits at their places; none for any
/// other form, which may be right all the same.
#[inline]
fn parse_usual(text: &[u8]) -> Option<i64> {
    let (head, rest) = text.split_first_chunk::<19>()?;
    let fraction = match rest {
        [b'Z'] => 0,
        [b'.', fraction @ .., b'Z'] if fraction.len() <= 6 => {
            let mut value = 0;
            for c in fraction {
                value = value * 10 + i64::from(digit(*c)?);
            }
            value * [1_000_000, 100_000, 10_000, 1_000, 100, 10, 1].get(fraction.len())?
        }
        _ => return None,
    };
    let two = |at: usize| Some(i64::from(digit(*head.get(at)?)?) * 10 + i64::from(digit(*head.get(at + 1)?)?));
    let [_, _, _, _, b'-', _, _, b'-', _, _, b'T', _, _, b':', _, _, b':', _, _] = head else { return None };
    let (hour, minute, second) = (two(11)?, two(14)?, two(17)?);
    if hour >= 24 || minute >= 60 || second >= 60 {
        return None;
    }
    let days = days_from_civil(two(0)? * 100 + two(2)?, two(5)?, two(8)?)?;
    Some(days * 86_400_000_000 + (hour * 3600 + minute * 60 + second) * 1_000_000 + fraction)
}

#[inline]
fn digit(c: u8) -> Option<u8> {
    Some(c.wrapping_sub(b'0')).filter(|d| *d < 10)
}

/// Between `least` and `most` digits, and how many there were.
fn digits(text: &[u8], least: usize, most: usize) -> Option<(i64, usize)> {
    let mut value = 0i64;
    let mut used = 0;
    while used < most {
        match text.get(used) {
            Some(c) if c.is_ascii_digit() => value = value * 10 + i64::from(c - b'0'),
            _ => break,
        }
        used += 1;
    }
    (used >= least).then_some((value, used))
}

/// `HH[:mm[:ss[.fraction]]]` in microseconds.
fn time_of_day(text: &[u8]) -> Option<(i64, usize)> {
    let (hour, mut at) = digits(text, 1, 2)?;
    let (mut minute, mut second, mut fraction) = (0, 0, 0);
    if text.get(at) == Some(&b':') {
        let (m, used) = digits(text.get(at + 1..)?, 1, 2)?;
        minute = m;
        at += 1 + used;
        if text.get(at) == Some(&b':') {
            let (s, used) = digits(text.get(at + 1..)?, 1, 2)?;
            second = s;
            at += 1 + used;
            if text.get(at) == Some(&b'.') {
                let rest = text.get(at + 1..)?;
                let mut unit = 100_000;
                let used = rest.iter().take_while(|c| c.is_ascii_digit()).count();
                for c in rest.iter().take(used.min(6)) {
                    fraction += i64::from(c - b'0') * unit;
                    unit /= 10;
                }
                at += 1 + used;
            }
        }
    }
    (hour < 24 && minute < 60 && second < 60)
        .then_some(((hour * 3600 + minute * 60 + second) * 1_000_000 + fraction, at))
}

/// The offset of `Z`, `UTC`, `+01:00`, `+0100`, `+01`, ` GMT+1` or nothing, in microseconds.
fn zone_offset_micros(text: &[u8]) -> Option<i64> {
    let text = text.trim_ascii();
    if text.is_empty() || text.eq_ignore_ascii_case(b"z") || text == b"UTC" || text == b"GMT" {
        return Some(0);
    }
    let text = text.strip_prefix(b"UTC").or_else(|| text.strip_prefix(b"GMT")).unwrap_or(text);
    let (sign, rest) = match text.split_first()? {
        (b'+', rest) => (1, rest),
        (b'-', rest) => (-1, rest),
        _ => return None,
    };
    let (hours, used) = digits(rest, 1, 2)?;
    let rest = rest.get(used..)?;
    let rest = rest.strip_prefix(b":").unwrap_or(rest);
    let minutes = if rest.is_empty() { 0 } else { digits(rest, 2, 2).filter(|(_, n)| *n == rest.len())?.0 };
    (hours <= 18 && minutes < 60).then_some(sign * (hours * 60 + minutes) * 60_000_000)
}

/// Days since 1970 of a date of the proleptic Gregorian calendar.
pub(crate) fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

/// A datetime pattern of Spark (a subset of Java's) as one of `chrono`; none for letters that are not built.
pub(crate) fn chrono_pattern(pattern: &str) -> Option<String> {
    let mut result = String::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\'' {
            let mut any = false;
            for quoted in chars.by_ref() {
                if quoted == '\'' {
                    break;
                }
                any = true;
                result.push(quoted);
            }
            if !any {
                result.push('\'');
            }
            continue;
        }
        if !c.is_ascii_alphabetic() {
            if c == '%' {
                result.push('%');
            }
            if c != '[' && c != ']' {
                result.push(c);
            }
            continue;
        }
        let mut count = 1;
        while chars.next_if_eq(&c).is_some() {
            count += 1;
        }
        result.push_str(match (c, count) {
            ('y' | 'u', 2) => "%y",
            ('y' | 'u', _) => "%Y",
            ('M' | 'L', 1) => "%-m",
            ('M' | 'L', 2) => "%m",
            ('M' | 'L', 3) => "%b",
            ('M' | 'L', _) => "%B",
            ('d', 1) => "%-d",
            ('d', _) => "%d",
            ('D', 1) => "%-j",
            ('D', _) => "%j",
            ('H', 1) => "%-H",
            ('H', _) => "%H",
            ('h', 1) => "%-I",
            ('h', _) => "%I",
            ('m', 1) => "%-M",
            ('m', _) => "%M",
            ('s', 1) => "%-S",
            ('s', _) => "%S",
            ('S', 3) => "%3f",
            ('S', 6) => "%6f",
            ('S', 9) => "%9f",
            ('a', _) => "%p",
            ('E', 4) => "%A",
            ('E', _) => "%a",
            ('X' | 'x', 3) => "%:z",
            ('Z' | 'X' | 'x', _) => "%z",
            _ => return None,
        });
    }
    Some(result)
}

/// Microseconds since 1970 of a text in a pattern of [`chrono_pattern`]; missing parts are the first ones.
pub(crate) fn parse_with_format(text: &[u8], format: &str) -> Option<i64> {
    use chrono::format::{Parsed, StrftimeItems, parse};
    let mut parsed = Parsed::new();
    parse(&mut parsed, std::str::from_utf8(text).ok()?, StrftimeItems::new(format)).ok()?;
    if parsed.hour_mod_12().is_none() {
        parsed.set_hour(if parsed.hour_div_12() == Some(1) { 12 } else { 0 }).ok()?;
    } else if parsed.hour_div_12().is_none() {
        parsed.set_ampm(false).ok()?;
    }
    if parsed.minute().is_none() {
        parsed.set_minute(0).ok()?;
    }
    if parsed.year().is_none() && parsed.year_mod_100().is_none() {
        parsed.set_year(1970).ok()?;
    }
    if parsed.ordinal().is_none() {
        if parsed.month().is_none() {
            parsed.set_month(1).ok()?;
        }
        if parsed.day().is_none() {
            parsed.set_day(1).ok()?;
        }
    }
    let local = parsed.to_naive_date().ok()?.and_time(parsed.to_naive_time().ok()?);
    let offset_micros = i64::from(parsed.offset().unwrap_or(0)) * 1_000_000;
    local.and_utc().timestamp_micros().checked_sub(offset_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_usual_form_is_read_as_any_other(
            text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9x]{0,7})?Z?"
        ) {
            if let Some(micros) = parse_usual(text.as_bytes()) {
                prop_assert_eq!(Some(micros), parse_any(text.as_bytes()), "{}", text);
            }
        }
    }

    #[test]
    fn timestamps_in_all_forms() {
        for (text, micros) in [
            ("1970-01-01", Some(0)),
            ("2024-05-01T10:20:30.123456Z", Some(1_714_558_830_123_456)),
            ("2024-05-01 10:20:30.5+02:00", Some(1_714_551_630_500_000)),
            ("2024-05-01 10:20", Some(1_714_558_800_000_000)),
            ("2024", Some(1_704_067_200_000_000)),
            ("1969-12-31 23:59:59.999999", Some(-1)),
            ("2023-02-29", None),
            ("2024-05-01x", None),
            ("hello", None),
            ("", None),
        ] {
            assert_eq!(parse_timestamp(text.as_bytes()), micros, "{text}");
        }
    }
}
