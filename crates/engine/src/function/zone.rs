//! Time zones as Spark names them, and `from_utc_timestamp`, `to_utc_timestamp`.

use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use chrono::{DateTime, Datelike, MappedLocalTime, NaiveDate, NaiveDateTime, Offset, TimeDelta, TimeZone};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ScalarUDF;

use super::cast::convert;
use super::ddl::timestamp;
use super::udf::{Call, Function};

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function = |name, run| {
        Function { name, aliases: &[], arity: (2, 2), coerce: None, returns: |_| Ok(timestamp()), run }.udf()
    };
    vec![
        function("from_utc_timestamp", |c| shift(c, Zone::to_local)),
        function("to_utc_timestamp", |c| shift(c, Zone::to_utc)),
    ]
}

fn shift(call: &Call, by: fn(Zone, i64) -> Option<i64>) -> Result<ArrayRef> {
    let times = convert(call.arg(0)?, &timestamp(), false)?;
    let names = convert(call.arg(1)?, &DataType::Utf8, false)?;
    let mut last: Option<(&str, Zone)> = None;
    let mut shifted = Vec::with_capacity(times.len());
    for (time, name) in times.as_primitive::<TimestampMicrosecondType>().iter().zip(names.as_string::<i32>()) {
        let (Some(time), Some(name)) = (time, name) else {
            shifted.push(None);
            continue;
        };
        let zone = match last.filter(|(known, _)| *known == name).map(|(_, zone)| zone).or_else(|| Zone::parse(name)) {
            Some(zone) => zone,
            None => {
                return exec_err!(
                    "[INVALID_TIMEZONE] The timezone: {name} is invalid. The timezone must be either a region-based zone ID or a zone offset. Region IDs must have the form 'area/city', such as 'America/Los_Angeles'. Zone offsets must be in the format '(+|-)HH', '(+|-)HH:mm' or '(+|-)HH:mm:ss', e.g '-08', '+01:00' or '-13:33:33', and must be in the range from -18:00 to +18:00. 'Z' and 'UTC' are accepted as synonyms for '+00:00'. SQLSTATE: 22009"
                );
            }
        };
        last = Some((name, zone));
        match by(zone, time) {
            Some(time) => shifted.push(Some(time)),
            None => return exec_err!("[ARITHMETIC_OVERFLOW] long overflow. SQLSTATE: 22003"),
        }
    }
    Ok(Arc::new(TimestampMicrosecondArray::from(shifted).with_timezone("UTC")))
}

/// A time zone: a fixed offset or a region.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Zone {
    /// Seconds east of Greenwich.
    Fixed(i64),
    Region(Tz),
}

/// Java's `ZoneId.SHORT_IDS`.
const SHORT_IDS: &[(&str, &str)] = &[
    ("EST", "-05:00"),
    ("HST", "-10:00"),
    ("MST", "-07:00"),
    ("ACT", "Australia/Darwin"),
    ("AET", "Australia/Sydney"),
    ("AGT", "America/Argentina/Buenos_Aires"),
    ("ART", "Africa/Cairo"),
    ("AST", "America/Anchorage"),
    ("BET", "America/Sao_Paulo"),
    ("BST", "Asia/Dhaka"),
    ("CAT", "Africa/Harare"),
    ("CNT", "America/St_Johns"),
    ("CST", "America/Chicago"),
    ("CTT", "Asia/Shanghai"),
    ("EAT", "Africa/Addis_Ababa"),
    ("ECT", "Europe/Paris"),
    ("IET", "America/Indiana/Indianapolis"),
    ("IST", "Asia/Kolkata"),
    ("JST", "Asia/Tokyo"),
    ("MIT", "Pacific/Apia"),
    ("NET", "Asia/Yerevan"),
    ("NST", "Pacific/Auckland"),
    ("PLT", "Asia/Karachi"),
    ("PNT", "America/Phoenix"),
    ("PRT", "America/Puerto_Rico"),
    ("PST", "America/Los_Angeles"),
    ("SST", "Pacific/Guadalcanal"),
    ("VST", "Asia/Ho_Chi_Minh"),
];

impl Zone {
    /// A zone by what Spark takes for one: `Z`, `+1`, `+01:30`, `UTC+1`, `PST`, `Europe/Berlin`.
    pub(crate) fn parse(name: &str) -> Option<Zone> {
        let short = SHORT_IDS.iter().find(|(short, _)| *short == name);
        let name = short.map_or(name, |(_, long)| long);
        if matches!(name, "Z" | "UTC" | "GMT" | "UT") {
            return Some(Zone::Fixed(0));
        }
        let offset = ["UTC", "GMT", "UT", ""]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix).filter(|rest| rest.starts_with(['+', '-'])));
        match offset {
            Some(offset) => offset_seconds(offset.as_bytes()).map(Zone::Fixed),
            None => name.parse().ok().map(Zone::Region),
        }
    }

    /// Seconds east of Greenwich at an instant.
    fn offset_at(self, clock: &NaiveDateTime) -> i64 {
        match self {
            Zone::Fixed(seconds) => seconds,
            Zone::Region(zone) => i64::from(zone.offset_from_utc_datetime(clock).fix().local_minus_utc()),
        }
    }

    /// The wall clock that an instant shows, both in microseconds since 1970; none when out of range.
    pub(crate) fn to_local(self, micros: i64) -> Option<i64> {
        micros.checked_add(self.offset_at(&clock(micros)).checked_mul(1_000_000)?)
    }

    /// The instant at which a wall clock shows `micros`. What it shows twice is the earlier instant, and what it skips is
    /// taken by the offset before, as in `java.time`.
    pub(crate) fn to_utc(self, micros: i64) -> Option<i64> {
        let local = clock(micros);
        let seconds = match self {
            Zone::Fixed(seconds) => seconds,
            Zone::Region(zone) => match zone.offset_from_local_datetime(&local) {
                MappedLocalTime::Single(offset) | MappedLocalTime::Ambiguous(offset, _) => {
                    i64::from(offset.fix().local_minus_utc())
                }
                // A day before, by any offset, lies before the change, and behind the last one.
                MappedLocalTime::None => self.offset_at(&local.checked_sub_signed(TimeDelta::days(1)).unwrap_or(local)),
            },
        };
        micros.checked_sub(seconds.checked_mul(1_000_000)?)
    }
}

/// A date and time of `chrono`, whose years end before ours do, to look up a zone's rules with. The table of zones ends
/// with 2099: a later year is one with the same days before.
fn clock(micros: i64) -> NaiveDateTime {
    let farthest = if micros < 0 { DateTime::<chrono::Utc>::MIN_UTC } else { DateTime::<chrono::Utc>::MAX_UTC };
    let clock = DateTime::from_timestamp_micros(micros).unwrap_or(farthest).naive_utc();
    let first = |year| NaiveDate::from_ymd_opt(year, 1, 1).map(|day| (day.weekday(), day.leap_year()));
    if clock.year() < 2100 {
        return clock;
    }
    let like = (2060..2088).find(|year| first(*year) == first(clock.year()));
    like.and_then(|year| clock.with_year(year)).unwrap_or(clock)
}

/// The seconds of `+h`, `+hh`, `+h:mm`, `+hh:m`, `+hh:mm`, `+hhmm`, `+hh:mm:ss` and `+hhmmss`, at most 18 hours.
fn offset_seconds(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text.split_first()? {
        (b'+', rest) => (1, rest),
        (b'-', rest) => (-1, rest),
        _ => return None,
    };
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0, |value, d| d.is_ascii_digit().then(|| value * 10 + i64::from(d - b'0')))
    };
    let (hours, minutes, seconds) = match rest {
        [h] => (number(&[*h])?, 0, 0),
        [h1, h2] => (number(&[*h1, *h2])?, 0, 0),
        [h, b':', minutes @ ..] if minutes.len() == 1 || minutes.len() == 2 => (number(&[*h])?, number(minutes)?, 0),
        [h1, h2, b':', minutes @ ..] if minutes.len() == 1 || minutes.len() == 2 => {
            (number(&[*h1, *h2])?, number(minutes)?, 0)
        }
        [h1, h2, m1, m2] => (number(&[*h1, *h2])?, number(&[*m1, *m2])?, 0),
        [h1, h2, b':', m1, m2, b':', s1, s2] | [h1, h2, m1, m2, s1, s2] => {
            (number(&[*h1, *h2])?, number(&[*m1, *m2])?, number(&[*s1, *s2])?)
        }
        _ => return None,
    };
    let total = hours * 3_600 + minutes * 60 + seconds;
    (minutes < 60 && seconds < 60 && total <= 18 * 3_600).then_some(sign * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_in_all_forms() {
        for (text, seconds) in [
            ("+1", Some(3_600)),
            ("-01", Some(-3_600)),
            ("+1:5", Some(3_900)),
            ("+01:30", Some(5_400)),
            ("+0130", Some(5_400)),
            ("-02:30:15", Some(-9_015)),
            ("+013015", Some(5_415)),
            ("+18:00", Some(64_800)),
            ("+18:01", None),
            ("+01:60", None),
            ("+", None),
            ("+x", None),
            ("1", None),
        ] {
            assert_eq!(offset_seconds(text.as_bytes()), seconds, "{text}");
        }
    }
}
