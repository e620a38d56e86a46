//! `INTERVAL` literals and interval texts such as `'1100 milliseconds'`.

use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::token::is_word;

/// Months, days and microseconds: Spark's `CalendarInterval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Interval {
    pub months: i64,
    pub days: i64,
    pub micros: i64,
}

impl Interval {
    /// The length in microseconds, or none when it has months, whose length varies.
    pub(crate) fn fixed_micros(self) -> Option<i64> {
        let days = self.days.checked_mul(86_400_000_000)?;
        (self.months == 0).then(|| days.checked_add(self.micros))?
    }

    /// The text that DataFusion reads back.
    pub(crate) fn text(self) -> String {
        let sign = if self.micros < 0 { "-" } else { "" };
        let micros = self.micros.unsigned_abs();
        let seconds = format!("{sign}{}.{:06} seconds", micros / 1_000_000, micros % 1_000_000);
        format!("{} months {} days {seconds}", self.months, self.days)
    }

    fn add(&mut self, amount: &str, unit: &str) -> Option<()> {
        let unit = unit.to_ascii_lowercase();
        let unit = unit.strip_suffix('s').unwrap_or(&unit);
        let whole = || amount.parse::<i64>().ok();
        match unit {
            "year" => self.months = self.months.checked_add(whole()?.checked_mul(12)?)?,
            "month" => self.months = self.months.checked_add(whole()?)?,
            "week" => self.days = self.days.checked_add(whole()?.checked_mul(7)?)?,
            "day" => self.days = self.days.checked_add(whole()?)?,
            "hour" => self.add_micros(amount, 3_600_000_000)?,
            "minute" => self.add_micros(amount, 60_000_000)?,
            "second" => self.add_micros(amount, 1_000_000)?,
            "millisecond" => self.add_micros(amount, 1_000)?,
            "microsecond" => self.add_micros(amount, 1)?,
            "nanosecond" => self.micros = self.micros.checked_add(whole()? / 1_000)?,
            _ => return None,
        }
        Some(())
    }

    fn add_micros(&mut self, amount: &str, micros: i64) -> Option<()> {
        let (sign, digits) = match amount.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, amount.strip_prefix('+').unwrap_or(amount)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let mut total = whole.parse::<i64>().ok()?.checked_mul(micros)?;
        let mut unit = micros;
        for digit in fraction.bytes() {
            unit /= 10;
            total += i64::from(digit.checked_sub(b'0').filter(|d| *d < 10)?) * unit;
        }
        self.micros = self.micros.checked_add(sign * total)?;
        Some(())
    }
}

/// Reads `10 seconds`, `1 minute 30 seconds`, `interval 5 days`: what Spark accepts as an interval's text.
pub(crate) fn parse_text(text: &str) -> Option<Interval> {
    let mut words = text.split_whitespace().peekable();
    if words.peek().is_some_and(|w| w.eq_ignore_ascii_case("interval")) {
        words.next();
    }
    let mut interval = Interval::default();
    let mut any = false;
    while let Some(amount) = words.next() {
        interval.add(amount, words.next()?)?;
        any = true;
    }
    any.then_some(interval)
}

/// Reads an interval literal after the word `INTERVAL`: `10 SECONDS`, `'10' SECOND`, `'1 day'`, `1 DAY 2 HOURS`,
/// `'1:30' MINUTE TO SECOND`. Returns it with the number of tokens read; none when this is no literal.
pub(crate) fn parse_tokens(tokens: &[TokenWithSpan]) -> Option<(Interval, usize)> {
    let mut interval = Interval::default();
    let mut at = 0;
    while let Some((amount, unit, used)) = amount_and_unit(tokens.get(at..)?) {
        let unit_end = at + used;
        if is_word(tokens.get(unit_end), "TO") {
            let to = word_text(tokens.get(unit_end + 1)?)?;
            let ranged = unit_to_unit(&amount, &unit, &to)?;
            return Some((ranged, unit_end + 2));
        }
        interval.add(&amount, &unit)?;
        at = unit_end;
    }
    if at > 0 {
        return Some((interval, at));
    }
    match &tokens.first()?.token {
        Token::SingleQuotedString(text) | Token::DoubleQuotedString(text) => Some((parse_text(text)?, 1)),
        _ => None,
    }
}

fn amount_and_unit(tokens: &[TokenWithSpan]) -> Option<(String, String, usize)> {
    let (sign, signed) = match tokens.first()?.token {
        Token::Minus => ("-", 1),
        Token::Plus => ("", 1),
        _ => ("", 0),
    };
    let amount = match &tokens.get(signed)?.token {
        Token::Number(text, _) => text.clone(),
        Token::SingleQuotedString(text) | Token::DoubleQuotedString(text) => text.trim().to_owned(),
        _ => return None,
    };
    let unit = word_text(tokens.get(signed + 1)?)?;
    let known =
        ["year", "month", "week", "day", "hour", "minute", "second", "millisecond", "microsecond", "nanosecond"];
    let lower = unit.to_ascii_lowercase();
    known.contains(&lower.strip_suffix('s').unwrap_or(&lower)).then(|| (format!("{sign}{amount}"), unit, signed + 2))
}

fn word_text(token: &TokenWithSpan) -> Option<String> {
    match &token.token {
        Token::Word(w) if w.quote_style.is_none() => Some(w.value.clone()),
        _ => None,
    }
}

/// `'1-2' YEAR TO MONTH`, `'1 02:03:04.5' DAY TO SECOND` and the shorter ranges.
fn unit_to_unit(text: &str, from: &str, to: &str) -> Option<Interval> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let units = ["year", "month", "day", "hour", "minute", "second"];
    let index = |unit: &str| units.iter().position(|u| unit.eq_ignore_ascii_case(u));
    let range = units.get(index(from)?..=index(to)?)?;
    let parts: Vec<&str> = text.split(['-', ' ', ':']).filter(|p| !p.is_empty()).collect();
    if parts.len() != range.len() {
        return None;
    }
    let mut interval = Interval::default();
    for (part, unit) in parts.iter().zip(range) {
        interval.add(part, unit)?;
    }
    if negative {
        interval = Interval { months: -interval.months, days: -interval.days, micros: -interval.micros };
    }
    Some(interval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::token::tokens;

    #[test]
    fn texts_and_literals() {
        assert_eq!(parse_text("1100 milliseconds").unwrap().fixed_micros(), Some(1_100_000));
        assert_eq!(parse_text("interval 1 minute 0.5 seconds").unwrap().fixed_micros(), Some(60_500_000));
        assert_eq!(parse_text("10"), None);
        for (text, micros, used) in [
            ("10 SECONDS", 10_000_000, 2),
            ("'10' second AS x", 10_000_000, 2),
            ("'2 days'", 172_800_000_000, 1),
            ("1 MINUTE 30 SECONDS)", 90_000_000, 4),
            ("'1:30' MINUTE TO SECOND", 90_000_000, 4),
            ("- 5 seconds", -5_000_000, 3),
        ] {
            let (interval, n) = parse_tokens(&tokens(text).unwrap()).unwrap();
            assert_eq!((interval.fixed_micros(), n), (Some(micros), used), "{text}");
        }
    }
}
