//! What somebody can make happen as often as he likes is told a few times, then counted.

use std::fmt;

use parking_lot::Mutex;

use crate::clock::monotonic_ms;

/// As many are told in each time of [`PERIOD_MS`].
const TOLD_MOST: u64 = 10;
const PERIOD_MS: i64 = 60_000;

/// Events of one kind.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Period>);

#[derive(Debug, Default)]
struct Period {
    /// On the monotonic clock; `None` before the first event.
    until_ms: Option<i64>,
    told: u64,
    left_out: u64,
}

/// How many were left out before this one; says so, or nothing when none was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} more like this were not logged)"),
        }
    }
}

impl Seldom {
    /// Whether the event of now is to be told.
    pub fn now(&self) -> Option<LeftOut> {
        self.at(monotonic_ms())
    }

    fn at(&self, now_ms: i64) -> Option<LeftOut> {
        let mut period = self.0.lock();
        let left_out = LeftOut(period.left_out);
        if period.until_ms.is_none_or(|until_ms| now_ms >= until_ms) {
            *period = Period { until_ms: Some(now_ms + PERIOD_MS), told: 1, left_out: 0 };
            return Some(left_out);
        }
        if period.told == TOLD_MOST {
            period.left_out += 1;
            return None;
        }
        period.told += 1;
        Some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_period_are_told_and_the_others_counted() {
        let seldom = Seldom::default();
        let told = |now_ms| seldom.at(now_ms).map(|left_out| left_out.to_string());
        for now_ms in -5..5 {
            assert_eq!(told(now_ms).as_deref(), Some(""));
        }
        for now_ms in [5, 6, PERIOD_MS - 6] {
            assert_eq!(told(now_ms), None);
        }
        assert_eq!(told(PERIOD_MS - 5).as_deref(), Some(" (3 more like this were not logged)"));
        assert_eq!(told(PERIOD_MS - 4).as_deref(), Some(""));
    }
}
