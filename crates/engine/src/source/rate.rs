//! The rate source: rows `(timestamp, value)` at a given pace, as Spark's `rate` format. Its offset is in seconds since
//! the start; the rows of a second become available when it is over.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use chrono::Utc;

use super::{NextOffset, ReadLimit, Source, SourceOffset};
use crate::error::EngineError;
use crate::file_log::write_whole;
use crate::plan::SourceFactory;
use crate::state::io_error;

/// A time and a number.
const ROW_BYTES: usize = 16;
/// What a batch may hold, should the query be behind: after a pause of hours, or when it is slower than the pace.
const BATCH_ROWS: u64 = 8 * 1024 * 1024;

/// The options of a rate table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateOptions {
    /// `rowsPerSecond`, 1 by default.
    pub rows_per_second: u64,
    /// `rampUpTime` in seconds: how long the pace grows until it is `rows_per_second`. 0 by default.
    pub ramp_up_seconds: u64,
    /// `numPartitions`; `None` for as many as there are cores.
    pub num_partitions: Option<usize>,
}

impl Default for RateOptions {
    fn default() -> Self {
        Self { rows_per_second: 1, ramp_up_seconds: 0, num_partitions: None }
    }
}

impl RateOptions {
    /// Reads table options; their names do not mind case.
    pub fn parse<'a>(options: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, EngineError> {
        let mut parsed = Self::default();
        for (name, value) in options {
            match name.to_ascii_lowercase().as_str() {
                "rowspersecond" => parsed.rows_per_second = positive(name, value)?,
                "rampuptime" => parsed.ramp_up_seconds = seconds(name, value)?,
                "numpartitions" => {
                    let partitions = positive(name, value)?;
                    parsed.num_partitions = usize::try_from(partitions).ok();
                }
                _ => {
                    return Err(EngineError::Invalid {
                        class: "UNKNOWN_OPTION",
                        message: format!(
                            "the rate source has no option '{name}'; it knows rowsPerSecond, rampUpTime, numPartitions"
                        ),
                    });
                }
            }
        }
        Ok(parsed)
    }

    /// How many rows there are in the first `seconds` seconds.
    fn rows_until(&self, seconds: u64) -> u64 {
        let ramp = self.ramp_up_seconds;
        if ramp == 0 {
            return seconds.saturating_mul(self.rows_per_second);
        }
        // While ramping up, second i (from 0) brings i * delta rows, as in Spark.
        let delta = self.rows_per_second / (ramp + 1);
        if seconds <= ramp {
            // The sum 0 + 1 + ... + (seconds - 1), odd or even.
            return if seconds % 2 == 1 {
                delta.saturating_mul((seconds - 1) / 2).saturating_mul(seconds)
            } else {
                delta.saturating_mul(seconds / 2).saturating_mul(seconds.saturating_sub(1))
            };
        }
        let ramped = self.rows_until(ramp);
        ramped.saturating_add((seconds - ramp).saturating_mul(self.rows_per_second))
    }

    /// The last second up to `latest` with at most `rows` rows since `start`; one second at least.
    fn end_within(&self, start: u64, latest: u64, rows: u64) -> u64 {
        let most = self.rows_until(start).saturating_add(rows);
        let (mut fits, mut beyond) = (start, latest.saturating_add(1));
        while beyond - fits > 1 {
            let middle = fits + (beyond - fits) / 2;
            if self.rows_until(middle) <= most { fits = middle } else { beyond = middle }
        }
        fits.max(latest.min(start.saturating_add(1)))
    }
}

fn positive(name: &str, value: &str) -> Result<u64, EngineError> {
    match value.trim().parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(EngineError::Invalid {
            class: "INVALID_OPTION",
            message: format!("Invalid value '{value}'. The option '{name}' must be positive"),
        }),
    }
}

fn seconds(name: &str, value: &str) -> Result<u64, EngineError> {
    let text = value.trim().to_ascii_lowercase();
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let number: Option<u64> = digits.parse().ok();
    let factor = match text.trim_start_matches(|c: char| c.is_ascii_digit()).trim() {
        "" | "s" | "sec" | "second" | "seconds" => Some(1),
        "m" | "min" | "minute" | "minutes" => Some(60),
        "h" | "hour" | "hours" => Some(3_600),
        _ => None,
    };
    number.zip(factor).map(|(number, factor)| number * factor).ok_or_else(|| EngineError::Invalid {
        class: "INVALID_OPTION",
        message: format!("Invalid value '{value}'. The option '{name}' must be a time such as '10s' or '1m'"),
    })
}

/// Opens rate sources.
#[derive(Debug, Clone)]
pub struct RateFactory {
    options: RateOptions,
    schema: SchemaRef,
}

impl RateFactory {
    pub fn new(options: RateOptions) -> Self {
        let schema = Schema::new(vec![
            Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("value", DataType::Int64, true),
        ]);
        Self { options, schema: Arc::new(schema) }
    }
}

#[async_trait]
impl SourceFactory for RateFactory {
    async fn open(&self, checkpoint_dir: Option<&Path>) -> Result<Box<dyn Source>, EngineError> {
        if self.options.num_partitions.is_some() {
            tracing::warn!("option 'numPartitions' has no effect: a batch is always shared evenly among all cores");
        }
        let start_ms = match checkpoint_dir {
            Some(dir) => start_of_time(&dir.join("0"))?,
            None => Utc::now().timestamp_millis(),
        };
        Ok(Box::new(RateSource {
            options: self.options.clone(),
            schema: Arc::clone(&self.schema),
            start_ms,
            end: None,
            last_seconds: 0,
        }))
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn description(&self) -> String {
        describe(&self.options)
    }
}

fn describe(options: &RateOptions) -> String {
    let partitions = options.num_partitions.map_or_else(|| "default".to_owned(), |number| number.to_string());
    format!(
        "RateStreamV2[rowsPerSecond={}, rampUpTimeSeconds={}, numPartitions={partitions}",
        options.rows_per_second, options.ramp_up_seconds
    )
}

/// The moment at which the source's first second began; kept in the checkpoint so that a restart goes on.
fn start_of_time(path: &PathBuf) -> Result<i64, EngineError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            text.lines().nth(1).and_then(|line| line.trim().parse().ok()).ok_or_else(|| EngineError::External {
                action: format!("read the start time of the rate source from {}", path.display()),
                message: "its second line is no time in milliseconds".to_owned(),
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let now_ms = Utc::now().timestamp_millis();
            write_whole(path, format!("v1\n{now_ms}").as_bytes(), true)?;
            Ok(now_ms)
        }
        Err(source) => Err(io_error("read", path, source)),
    }
}

struct RateSource {
    options: RateOptions,
    schema: SchemaRef,
    start_ms: i64,
    /// Where an `availableNow` query ends.
    end: Option<u64>,
    /// Time never goes back, even if the clock does.
    last_seconds: u64,
}

impl RateSource {
    fn seconds(&mut self) -> u64 {
        let elapsed_ms = Utc::now().timestamp_millis().saturating_sub(self.start_ms);
        self.last_seconds = self.last_seconds.max(u64::try_from(elapsed_ms / 1_000).unwrap_or(0));
        self.end.map_or(self.last_seconds, |end| end.min(self.last_seconds))
    }
}

fn parse_seconds(offset: &SourceOffset) -> Result<u64, EngineError> {
    offset.0.parse().map_err(|_| EngineError::External {
        action: "read the rate source".to_owned(),
        message: format!("'{}' is no offset of it", offset.0),
    })
}

#[async_trait]
impl Source for RateSource {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn description(&self) -> String {
        describe(&self.options)
    }

    async fn initial_offset(&mut self) -> Result<SourceOffset, EngineError> {
        Ok(SourceOffset("0".to_owned()))
    }

    async fn next_offset(&mut self, start: &SourceOffset, limit: ReadLimit) -> Result<NextOffset, EngineError> {
        let start = parse_seconds(start)?;
        let latest = self.seconds().max(start);
        let end = match limit {
            ReadLimit::Everything => latest,
            ReadLimit::Options => self.options.end_within(start, latest, BATCH_ROWS),
            ReadLimit::Bytes(bytes) => self.options.end_within(start, latest, (bytes / ROW_BYTES) as u64),
        };
        Ok(NextOffset { end: SourceOffset(end.to_string()), latest: SourceOffset(latest.to_string()) })
    }

    async fn prepare_available_now(&mut self) -> Result<(), EngineError> {
        self.end = Some(self.seconds());
        Ok(())
    }

    async fn wait_beyond(&mut self, after: &SourceOffset) -> Result<(), EngineError> {
        let after = parse_seconds(after)?;
        loop {
            let now = self.seconds();
            if now > after {
                return Ok(());
            }
            let next_ms = self.start_ms.saturating_add_unsigned((after + 1).saturating_mul(1_000));
            let wait_ms = next_ms.saturating_sub(Utc::now().timestamp_millis()).max(1);
            tokio::time::sleep(Duration::from_millis(wait_ms.unsigned_abs())).await;
        }
    }

    async fn read(&mut self, start: &SourceOffset, end: &SourceOffset) -> Result<Vec<Vec<RecordBatch>>, EngineError> {
        let (start, end) = (parse_seconds(start)?, parse_seconds(end)?);
        let (first, last) = (self.options.rows_until(start), self.options.rows_until(end));
        let count = last.saturating_sub(first).max(1);
        let from_us = self.start_ms.saturating_mul(1_000).saturating_add_unsigned(start.saturating_mul(1_000_000));
        let span_us = u128::from(end.saturating_sub(start)) * 1_000_000;
        let times = (first..last).map(|value| {
            // Spread evenly over the range, as Spark does.
            let into_us = span_us * u128::from(value - first) / u128::from(count);
            from_us.saturating_add_unsigned(u64::try_from(into_us).unwrap_or(u64::MAX))
        });
        let times = TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC");
        let values = Int64Array::from_iter_values((first..last).map(|value| i64::try_from(value).unwrap_or(i64::MAX)));
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), vec![Arc::new(times), Arc::new(values)])?;
        Ok(vec![vec![batch]])
    }

    async fn commit(&mut self, _: &SourceOffset) -> Result<(), EngineError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramp_up_grows_by_the_second() {
        let options = RateOptions { rows_per_second: 12, ramp_up_seconds: 3, num_partitions: None };
        let totals: Vec<u64> = (0..=6).map(|second| options.rows_until(second)).collect();
        assert_eq!(totals, [0, 0, 3, 9, 21, 33, 45]);
    }

    #[test]
    fn a_long_pause_is_made_up_in_bounded_batches() {
        let options = RateOptions { rows_per_second: 100, ramp_up_seconds: 0, num_partitions: None };
        assert_eq!(options.end_within(0, 3_600, 1_000), 10);
        assert_eq!(options.end_within(5, 9, 1_000), 9);
        assert_eq!(options.end_within(5, 9, 10), 6);
        assert_eq!(options.end_within(9, 9, 10), 9);
    }

    #[test]
    fn options_are_read_without_regard_to_case() {
        let options = RateOptions::parse([("rowsPerSecond", "100"), ("RAMPUPTIME", "1m")]).unwrap();
        assert_eq!(options, RateOptions { rows_per_second: 100, ramp_up_seconds: 60, num_partitions: None });
        assert!(RateOptions::parse([("rowsPerSecond", "0")]).is_err());
        assert!(RateOptions::parse([("rows", "1")]).is_err());
    }
}
