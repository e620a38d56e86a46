//! `avg` of decimals with Spark's rounding: half up, at four digits more than the values have.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, ListArray, UInt64Array};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, UInt64Type};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};

/// From the scale of the values to the type of their average.
#[derive(Debug, Clone, Copy)]
struct Quotient {
    /// The values' scale.
    from: i8,
    precision: u8,
    scale: i8,
}

impl Quotient {
    fn of(input: Option<&DataType>, result: &DataType) -> Result<Self> {
        match (input, result) {
            (Some(DataType::Decimal128(_, from)), DataType::Decimal128(precision, scale)) => {
                Ok(Quotient { from: *from, precision: *precision, scale: *scale })
            }
            other => exec_err!("avg does not average {other:?} as decimals"),
        }
    }

    fn ty(self) -> DataType {
        DataType::Decimal128(self.precision, self.scale)
    }

    fn sum_type(self) -> DataType {
        DataType::Decimal128(38, self.from)
    }

    fn out_of_range<T>(self) -> Result<T> {
        exec_err!(
            "[NUMERIC_VALUE_OUT_OF_RANGE.WITH_SUGGESTION] The average cannot be represented as Decimal({}, {}). SQLSTATE: 22003",
            self.precision,
            self.scale
        )
    }

    /// `sum / count`, the last digit rounded half up.
    fn divide(self, sum: i128, count: u64) -> Result<i128> {
        let count = i128::from(count);
        let factor = 10i128.pow(u32::from(self.scale.abs_diff(self.from)));
        let (whole, rest) = (sum / count, sum % count);
        // The rest is less than the count of rows, so that four digits more fit.
        let rest = rest * factor;
        let away = i128::from((rest % count).abs() * 2 >= count) * rest.signum();
        let average = whole.checked_mul(factor).and_then(|w| w.checked_add(rest / count + away));
        let bound = 10i128.checked_pow(u32::from(self.precision)).unwrap_or(i128::MAX);
        match average {
            Some(average) if average.abs() < bound => Ok(average),
            _ => self.out_of_range(),
        }
    }

    fn add(self, sum: i128, value: i128) -> Result<i128> {
        match sum.checked_add(value) {
            Some(sum) if sum.abs() < MAX_SUM => Ok(sum),
            _ => self.out_of_range(),
        }
    }
}

/// What DECIMAL(38) cannot hold any more.
const MAX_SUM: i128 = 10i128.pow(38);

pub(super) fn state_fields(args: &StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
    let quotient = Quotient::of(args.input_fields.first().map(|f| f.data_type()), args.return_field.data_type())?;
    let named = |what: &str, ty| Arc::new(Field::new(format!("{}[{what}]", args.name), ty, true));
    if args.is_distinct {
        let item = Arc::new(Field::new_list_field(quotient.sum_type(), true));
        return Ok(vec![named("avg distinct", DataType::List(item))]);
    }
    Ok(vec![named("count", DataType::UInt64), named("sum", quotient.sum_type())])
}

fn quotient(args: &AccumulatorArgs<'_>) -> Result<Quotient> {
    Quotient::of(args.expr_fields.first().map(|f| f.data_type()), args.return_field.data_type())
}

pub(super) fn accumulator(args: &AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
    let quotient = quotient(args)?;
    if args.is_distinct {
        return Ok(Box::new(DistinctAverage { values: HashSet::new(), quotient }));
    }
    Ok(Box::new(OneAverage { sum: 0, count: 0, quotient }))
}

pub(super) fn groups_accumulator(args: &AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
    Ok(Box::new(Averages { sums: Vec::new(), counts: Vec::new(), quotient: quotient(args)? }))
}

fn argument(arrays: &[ArrayRef], index: usize) -> Result<&ArrayRef> {
    match arrays.get(index) {
        Some(array) => Ok(array),
        None => exec_err!("avg misses its argument {index}"),
    }
}

fn decimals(arrays: &[ArrayRef], index: usize) -> Result<&Decimal128Array> {
    let array = argument(arrays, index)?;
    match array.as_primitive_opt::<Decimal128Type>() {
        Some(decimals) => Ok(decimals),
        None => exec_err!("avg does not average {} as decimals", array.data_type()),
    }
}

fn counts(arrays: &[ArrayRef]) -> Result<&UInt64Array> {
    match argument(arrays, 0)?.as_primitive_opt::<UInt64Type>() {
        Some(counts) => Ok(counts),
        None => exec_err!("avg has counts of another type"),
    }
}

#[derive(Debug)]
struct OneAverage {
    sum: i128,
    count: u64,
    quotient: Quotient,
}

impl Accumulator for OneAverage {
    fn update_batch(&mut self, batch: &[ArrayRef]) -> Result<()> {
        for value in decimals(batch, 0)?.iter().flatten() {
            self.sum = self.quotient.add(self.sum, value)?;
            self.count += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, batch: &[ArrayRef]) -> Result<()> {
        for value in decimals(batch, 0)?.iter().flatten() {
            self.sum = self.quotient.add(self.sum, -value)?;
            self.count = self.count.saturating_sub(1);
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let average = if self.count == 0 { None } else { Some(self.quotient.divide(self.sum, self.count)?) };
        Ok(ScalarValue::Decimal128(average, self.quotient.precision, self.quotient.scale))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let sum = (self.count > 0).then_some(self.sum);
        Ok(vec![ScalarValue::UInt64(Some(self.count)), ScalarValue::Decimal128(sum, 38, self.quotient.from)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for (count, sum) in counts(states)?.iter().zip(decimals(states, 1)?) {
            if let (Some(count), Some(sum)) = (count, sum) {
                self.sum = self.quotient.add(self.sum, sum)?;
                self.count += count;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct DistinctAverage {
    values: HashSet<i128>,
    quotient: Quotient,
}

impl Accumulator for DistinctAverage {
    fn update_batch(&mut self, batch: &[ArrayRef]) -> Result<()> {
        self.values.extend(decimals(batch, 0)?.iter().flatten());
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = self.values.iter().try_fold(0, |sum, value| self.quotient.add(sum, *value))?;
        let count = self.values.len() as u64;
        let average = if count == 0 { None } else { Some(self.quotient.divide(sum, count)?) };
        Ok(ScalarValue::Decimal128(average, self.quotient.precision, self.quotient.scale))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<i128>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values: Decimal128Array = self.values.iter().copied().map(Some).collect();
        let values = Arc::new(values.with_data_type(self.quotient.sum_type()));
        Ok(vec![SingleRowListArrayBuilder::new(values).build_list_scalar()])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let lists: &ListArray = argument(states, 0)?.as_list();
        for list in lists.iter().flatten() {
            self.values.extend(decimals(&[list], 0)?.iter().flatten());
        }
        Ok(())
    }
}

/// An average per group.
#[derive(Debug)]
struct Averages {
    sums: Vec<i128>,
    counts: Vec<u64>,
    quotient: Quotient,
}

impl Averages {
    fn add(&mut self, group: usize, value: i128, count: u64) -> Result<()> {
        if let (Some(sum), Some(rows)) = (self.sums.get_mut(group), self.counts.get_mut(group)) {
            *sum = self.quotient.add(*sum, value)?;
            *rows += count;
        }
        Ok(())
    }

    fn resize(&mut self, groups: usize) {
        self.sums.resize(groups, 0);
        self.counts.resize(groups, 0);
    }

    fn sums(&self, sums: impl Iterator<Item = Option<i128>>) -> ArrayRef {
        Arc::new(Decimal128Array::from_iter(sums).with_data_type(self.quotient.sum_type()))
    }
}

impl GroupsAccumulator for Averages {
    fn update_batch(
        &mut self,
        batch: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.resize(total_num_groups);
        for (row, (value, group)) in decimals(batch, 0)?.iter().zip(group_indices).enumerate() {
            let wanted = opt_filter.is_none_or(|f| f.is_valid(row) && f.value(row));
            if let (Some(value), true) = (value, wanted) {
                self.add(*group, value, 1)?;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (sums, counts) = (emit_to.take_needed(&mut self.sums), emit_to.take_needed(&mut self.counts));
        let averages = sums.into_iter().zip(counts).map(|(sum, count)| match count {
            0 => Ok(None),
            count => self.quotient.divide(sum, count).map(Some),
        });
        let averages: Decimal128Array = averages.collect::<Result<_>>()?;
        Ok(Arc::new(averages.with_data_type(self.quotient.ty())))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, counts) = (emit_to.take_needed(&mut self.sums), emit_to.take_needed(&mut self.counts));
        let sums = self.sums(sums.iter().zip(&counts).map(|(sum, count)| (*count > 0).then_some(*sum)));
        Ok(vec![Arc::new(UInt64Array::from(counts)), sums])
    }

    fn merge_batch(&mut self, states: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.resize(total_num_groups);
        for ((count, sum), group) in counts(states)?.iter().zip(decimals(states, 1)?).zip(group_indices) {
            if let (Some(count), Some(sum)) = (count, sum) {
                self.add(*group, sum, count)?;
            }
        }
        Ok(())
    }

    fn convert_to_state(&self, batch: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = decimals(batch, 0)?;
        let wanted = |row| opt_filter.is_none_or(|f| f.is_valid(row) && f.value(row));
        let values: Vec<Option<i128>> =
            values.iter().enumerate().map(|(row, value)| value.filter(|_| wanted(row))).collect();
        let counts: UInt64Array = values.iter().map(|v| Some(u64::from(v.is_some()))).collect();
        Ok(vec![Arc::new(counts), self.sums(values.into_iter())])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<i128>() + self.counts.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_rounded_half_up() {
        let quotient = Quotient { from: 2, precision: 9, scale: 6 };
        assert_eq!(quotient.divide(500, 3).unwrap(), 1_666_667);
        assert_eq!(quotient.divide(-500, 3).unwrap(), -1_666_667);
        assert_eq!(quotient.divide(1, 80_000).unwrap(), 0, "0.000000125 is less than half of the last digit");
        assert_eq!(quotient.divide(1, 20_000).unwrap(), 1, "half of the last digit goes up");
        assert_eq!(quotient.divide(-1, 20_000).unwrap(), -1);
        assert!(quotient.divide(99_999_999, 1).is_err());
    }
}
