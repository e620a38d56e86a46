//! `sequence(start, stop[, step])` of whole numbers, dates and timestamps, both ends included.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, TimestampMicrosecondArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, DurationMicrosecondType, Field, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use chrono::{DateTime, Months};
use datafusion::common::{Result, exec_err};

use super::array::rebuild;
use super::ddl::timestamp;
use super::output::check_bytes;
use super::udf::{Arguments, Call};

const DAY_MICROS: i64 = 86_400_000_000;

/// Spark's `MAX_ROUNDED_ARRAY_LENGTH`.
const MAX_LENGTH: i128 = 2_147_483_647 - 15;

pub(super) fn returns(args: &Arguments<'_>) -> Result<DataType> {
    let item = match (args.ty(0)?, args.ty(1)?) {
        (DataType::Timestamp(_, _), _) => timestamp(),
        (DataType::Date32, _) => DataType::Date32,
        (a, b) if a.is_integer() && a == b => a.clone(),
        _ => DataType::Int64,
    };
    Ok(DataType::List(Arc::new(Field::new_list_field(item, true))))
}

/// A step: whole numbers, or calendar months, days and microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    months: i64,
    units: i64,
}

impl Step {
    /// Its least size; Spark takes a month as 28 days to know where a sequence goes.
    fn least(self) -> i128 {
        i128::from(self.units) + i128::from(self.months) * 28 * i128::from(DAY_MICROS)
    }

    /// What is `n` steps behind `start`. Months are counted from the start, not from the step before.
    fn apply(self, start: i64, n: i64) -> Option<i64> {
        let moved = match self.months.checked_mul(n)? {
            0 => start,
            months => {
                let time = DateTime::from_timestamp_micros(start)?;
                let count = Months::new(u32::try_from(months.unsigned_abs()).ok()?);
                let time = if months > 0 { time.checked_add_months(count) } else { time.checked_sub_months(count) };
                time?.timestamp_micros()
            }
        };
        moved.checked_add(self.units.checked_mul(n)?)
    }
}

/// The column's values; of dates, the microseconds.
fn numbers(array: &ArrayRef) -> Result<Int64Array> {
    let array = match array.data_type() {
        DataType::Timestamp(_, _) | DataType::Date32 => cast(array, &timestamp())?,
        _ => Arc::clone(array),
    };
    Ok(cast(&array, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

fn steps(array: &ArrayRef) -> Result<Vec<Option<Step>>> {
    match array.data_type() {
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let intervals = array.as_primitive::<IntervalMonthDayNanoType>().iter();
            let step = |i: arrow::datatypes::IntervalMonthDayNano| Step {
                months: i64::from(i.months),
                units: i64::from(i.days).saturating_mul(DAY_MICROS).saturating_add(i.nanoseconds / 1_000),
            };
            Ok(intervals.map(|i| i.map(step)).collect())
        }
        DataType::Duration(_) => {
            let micros = cast(array, &DataType::Duration(TimeUnit::Microsecond))?;
            let micros = micros.as_primitive::<DurationMicrosecondType>();
            Ok(micros.iter().map(|units| units.map(|units| Step { months: 0, units })).collect())
        }
        _ => Ok(numbers(array)?.iter().map(|units| units.map(|units| Step { months: 0, units })).collect()),
    }
}

/// Appends one sequence. Fails before it takes more memory than a batch may.
fn fill(start: i64, stop: i64, step: Step, values: &mut Vec<i64>) -> Result<()> {
    let (least, way) = (step.least(), i128::from(stop) - i128::from(start));
    if (least == 0 && way != 0) || (least > 0 && way < 0) || (least < 0 && way > 0) {
        return exec_err!(
            "[INVALID_PARAMETER_VALUE.SEQUENCE] Illegal sequence boundaries: {start} to {stop} by {}.",
            step.units
        );
    }
    if least == 0 {
        values.push(start);
        return Ok(());
    }
    let length = way / least + 1;
    if length > MAX_LENGTH {
        return exec_err!(
            "[COLLECTION_SIZE_LIMIT_EXCEEDED.PARAMETER] Can't create array with {length} elements which exceeding the array size limit {MAX_LENGTH}, the value returned by the function `sequence` exceeds it. SQLSTATE: 54000"
        );
    }
    let total = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(values.len());
    check_bytes("sequence", total.saturating_mul(size_of::<i64>()))?;
    for n in 0.. {
        match step.apply(start, n) {
            Some(value) if (least > 0 && value <= stop) || (least < 0 && value >= stop) => values.push(value),
            _ => return Ok(()),
        }
    }
    Ok(())
}

pub(super) fn sequence(call: &Call) -> Result<ArrayRef> {
    let DataType::List(item) = &call.return_type else { return exec_err!("sequence returns an array") };
    let item = item.data_type();
    let (starts, stops) = (numbers(call.arg(0)?)?, numbers(call.arg(1)?)?);
    let given = call.args.get(2).map(steps).transpose()?;
    let default = if item.is_temporal() { DAY_MICROS } else { 1 };
    let mut values: Vec<i64> = Vec::new();
    let mut lengths = Vec::with_capacity(starts.len());
    let mut valid = Vec::with_capacity(starts.len());
    for row in 0..starts.len() {
        let before = values.len();
        let ends = starts.is_valid(row) && stops.is_valid(row);
        let (start, stop) = (starts.value(row), stops.value(row));
        let step = match &given {
            Some(steps) => steps.get(row).copied().flatten(),
            None => Some(Step { months: 0, units: if start <= stop { default } else { -default } }),
        };
        valid.push(ends && step.is_some());
        if let (true, Some(step)) = (ends, step) {
            fill(start, stop, step, &mut values)?;
        }
        lengths.push(values.len() - before);
    }
    let values: ArrayRef = match item {
        DataType::Timestamp(_, _) | DataType::Date32 => {
            let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"));
            cast(&times, item)?
        }
        other => cast(&(Arc::new(Int64Array::from(values)) as ArrayRef), other)?,
    };
    rebuild(values, OffsetBuffer::from_lengths(lengths), Some(NullBuffer::from(valid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_counted_from_the_start() {
        let day = |text: &str| text.parse::<DateTime<chrono::Utc>>().unwrap().timestamp_micros();
        let (start, stop) = (day("2018-01-31T00:00:00Z"), day("2018-03-31T00:00:00Z"));
        let mut values = Vec::new();
        fill(start, stop, Step { months: 1, units: 0 }, &mut values).unwrap();
        assert_eq!(values, [start, day("2018-02-28T00:00:00Z"), stop]);
    }

    #[test]
    fn what_would_take_too_much_memory_is_refused() {
        let one = Step { months: 0, units: 1 };
        let too_many = fill(0, i64::MAX, one, &mut Vec::new()).unwrap_err().to_string();
        assert!(too_many.contains("COLLECTION_SIZE_LIMIT_EXCEEDED.PARAMETER"), "{too_many}");
        let too_large = fill(0, 1 << 28, one, &mut Vec::new()).unwrap_err().to_string();
        assert!(too_large.contains("`sequence`") && too_large.contains("bytes"), "{too_large}");
    }
}
