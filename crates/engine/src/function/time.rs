//! Times as text: the forms that Spark casts to `TIMESTAMP`, and its datetime patterns.

use super::zone::Zone;

/// Microseconds since 1970 of a text such as `2024-05-01T10:20:30.123456Z`: what Spark's cast and JSON reader accept
/// (`yyyy`, `yyyy-MM`, `yyyy-MM-dd`, then `T` or a blank and `HH[:mm[:ss[.fraction][zone]]]`, or the time alone, which is
/// of today). Without a zone: UTC.
#[inline]
pub(crate) fn parse_timestamp(text: &[u8]) -> Option<i64> {
    parse_usual(text).or_else(|| parse_any(text))
}

fn parse_any(text: &[u8]) -> Option<i64> {
    let parts = parse_parts(text)?;
    let zone = parts.zone.unwrap_or(Zone::Fixed(0));
    let midnight = match parts.days {
        Some(days) => days.checked_mul(DAY)?,
        None => today(zone)?,
    };
    zone.to_utc(midnight.checked_add(parts.micros)?)
}

/// As [`parse_timestamp`] for a timestamp without a zone: it needs a date, and a zone has no meaning.
pub(crate) fn parse_wall_clock(text: &[u8]) -> Option<i64> {
    let parts = parse_parts(text)?;
    parts.days?.checked_mul(DAY)?.checked_add(parts.micros)
}

/// As [`parse_wall_clock`], but a text with a zone is none.
pub(crate) fn parse_zoneless(text: &[u8]) -> Option<i64> {
    let parts = parse_parts(text).filter(|parts| parts.zone.is_none())?;
    parts.days?.checked_mul(DAY)?.checked_add(parts.micros)
}

/// Days since 1970 of a text such as `2024-05-01`, also without the day or the month; whatever comes behind a whole date and
/// a `T` or a blank does not matter.
pub(crate) fn parse_date(text: &[u8]) -> Option<i32> {
    let text = text.trim_ascii();
    let (date, used) = date(text, 7)?;
    let ended = match text.get(used) {
        None => true,
        Some(b'T' | b' ') => date.2.is_some(),
        Some(_) => false,
    };
    i32::try_from(ended.then(|| days_of(date)).flatten()?).ok()
}

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

struct Parts {
    /// Since 1970; none for a time without a date.
    days: Option<i64>,
    /// Since midnight.
    micros: i64,
    zone: Option<Zone>,
}

/// The midnight with which the day that it is now in a zone began, on that zone's clock.
fn today(zone: Zone) -> Option<i64> {
    let now = zone.to_local(chrono::Utc::now().timestamp_micros())?;
    Some(now - now.rem_euclid(DAY))
}

fn parse_parts(text: &[u8]) -> Option<Parts> {
    let text = text.trim_ascii();
    let (days, clock) = match text.split_first()? {
        (b'T', clock) => (None, clock),
        _ if matches!(text, [_, b':', ..] | [_, _, b':', ..]) => (None, text),
        _ => {
            let (date, used) = date(text, 6)?;
            let days = Some(days_of(date)?);
            match text.get(used..)?.split_first() {
                None => return Some(Parts { days, micros: 0, zone: None }),
                Some((b'T' | b' ', clock)) if date.2.is_some() => (days, clock),
                Some(_) => return None,
            }
        }
    };
    let (micros, used, seconds) = time_of_day(clock)?;
    let zone = clock.get(used..)?.trim_ascii();
    if zone.is_empty() {
        return Some(Parts { days, micros, zone: None });
    }
    // Only behind seconds is there a zone.
    let zone = Zone::parse(std::str::from_utf8(zone).ok().filter(|_| seconds)?)?;
    Some(Parts { days, micros, zone: Some(zone) })
}

/// A year, a month and a day, of which the text may lack the last ones.
type Date = (i64, Option<i64>, Option<i64>);

/// `[+-]yyyy[-MM[-dd]]` with years of up to `most` digits, and how long it is.
fn date(text: &[u8], most: usize) -> Option<(Date, usize)> {
    let sign = text.first().filter(|c| matches!(c, b'+' | b'-'));
    let mut at = usize::from(sign.is_some());
    let (year, used) = digits(text.get(at..)?, 4, most)?;
    at += used;
    let year = if sign == Some(&b'-') { -year } else { year };
    let mut part = || {
        let rest = text.get(at..)?.strip_prefix(b"-");
        rest.map(|rest| digits(rest, 1, 2).inspect(|(_, used)| at += 1 + used).map(|(value, _)| value))
    };
    let month = part().map_or(Some(None), |month| month.map(Some))?;
    let day = if month.is_some() { part().map_or(Some(None), |day| day.map(Some))? } else { None };
    Some(((year, month, day), at))
}

fn days_of((year, month, day): Date) -> Option<i64> {
    days_from_civil(year, month.unwrap_or(1), day.unwrap_or(1))
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

/// `HH[:mm[:ss[.fraction]]]` in microseconds, how long it is, and whether it goes down to seconds.
fn time_of_day(text: &[u8]) -> Option<(i64, usize, bool)> {
    let (hour, mut at) = digits(text, 1, 2)?;
    let (mut minute, mut second, mut fraction) = (0, 0, 0);
    let mut seconds = false;
    if text.get(at) == Some(&b':') {
        let (m, used) = digits(text.get(at + 1..)?, 1, 2)?;
        minute = m;
        at += 1 + used;
        if text.get(at) == Some(&b':') {
            let (s, used) = digits(text.get(at + 1..)?, 1, 2)?;
            second = s;
            seconds = true;
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
    (hour < 24 && minute < 60 && second < 60).then_some((
        (hour * 3600 + minute * 60 + second) * 1_000_000 + fraction,
        at,
        seconds,
    ))
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
