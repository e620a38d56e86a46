//! Typed columns for the functions that most queries use: `count`, `sum`, `avg`, `min` and `max` of numbers and times.
//! A vector of values per aggregate, indexed by group; everything else goes through the generic column.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, Int64Array, PrimitiveArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use datafusion::common::{DataFusionError, Result};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::column::{AggregateColumn, RowGroups};

/// The typed column for `function`, if there is one.
pub fn column_for(
    function: &Arc<AggregateFunctionExpr>,
    arguments: &[DataType],
) -> Result<Option<Box<dyn AggregateColumn>>> {
    if function.is_distinct() || !function.order_bys().is_empty() {
        return Ok(None);
    }
    let result = function.field().data_type().clone();
    // The checkpoint reads as many state columns as the function declares: a function of the same name with another
    // state is left to the generic column.
    let width = function.state_fields()?.len();
    Ok(match (function.fun().name(), arguments, &result, width) {
        ("count", [_, ..], DataType::Int64, 1) => Some(Box::new(Count::default())),
        ("sum", [DataType::Int64], DataType::Int64, 1) => Some(Box::new(Sum::<Int64Type>::default())),
        ("sum", [DataType::Float64], DataType::Float64, 1) => Some(Box::new(Sum::<Float64Type>::default())),
        ("avg", [DataType::Float64], DataType::Float64, 2) => Some(Box::new(Average::default())),
        ("min", [argument], result, 1) if argument == result => extreme(result, false),
        ("max", [argument], result, 1) if argument == result => extreme(result, true),
        _ => None,
    })
}

fn extreme(data_type: &DataType, max: bool) -> Option<Box<dyn AggregateColumn>> {
    fn column<T: ArrowPrimitiveType>(data_type: &DataType, max: bool) -> Option<Box<dyn AggregateColumn>>
    where
        T::Native: Comparable,
    {
        Some(Box::new(Extreme::<T> { values: Values::default(), data_type: data_type.clone(), max }))
    }
    match data_type {
        DataType::Int8 => column::<Int8Type>(data_type, max),
        DataType::Int16 => column::<Int16Type>(data_type, max),
        DataType::Int32 => column::<Int32Type>(data_type, max),
        DataType::Int64 => column::<Int64Type>(data_type, max),
        DataType::Float32 => column::<Float32Type>(data_type, max),
        DataType::Float64 => column::<Float64Type>(data_type, max),
        DataType::Date32 => column::<Date32Type>(data_type, max),
        DataType::Timestamp(TimeUnit::Second, _) => column::<TimestampSecondType>(data_type, max),
        DataType::Timestamp(TimeUnit::Millisecond, _) => column::<TimestampMillisecondType>(data_type, max),
        DataType::Timestamp(TimeUnit::Microsecond, _) => column::<TimestampMicrosecondType>(data_type, max),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => column::<TimestampNanosecondType>(data_type, max),
        _ => None,
    }
}

/// Calls `each(row)` for the rows that the filter lets through and where no argument is null.
fn for_each_row(args: &[ArrayRef], filter: Option<&BooleanArray>, rows: usize, mut each: impl FnMut(usize)) {
    let mut valid: Option<NullBuffer> = None;
    for arg in args {
        valid = NullBuffer::union(valid.as_ref(), arg.logical_nulls().as_ref());
    }
    let passes = |row: usize| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
    match (&valid, filter) {
        (None, None) => (0..rows).for_each(each),
        (valid, _) => (0..rows)
            .filter(|&row| valid.as_ref().is_none_or(|valid| valid.is_valid(row)) && passes(row))
            .for_each(&mut each),
    }
}

fn argument(args: &[ArrayRef]) -> Result<&ArrayRef> {
    args.first().ok_or_else(|| DataFusionError::Internal("an aggregate function without its argument".to_owned()))
}

fn state_column(state: &[ArrayRef], index: usize) -> Result<&ArrayRef> {
    state.get(index).ok_or_else(|| DataFusionError::Internal("a state file with too few columns".to_owned()))
}

/// `count`: rows where no argument is null.
#[derive(Default)]
struct Count {
    counts: Vec<i64>,
}

#[expect(clippy::indexing_slicing, reason = "groups are dense and the vector is resized to their number")]
impl AggregateColumn for Count {
    fn update(&mut self, args: &[ArrayRef], filter: Option<&BooleanArray>, rows: &RowGroups<'_>) -> Result<()> {
        self.counts.resize(rows.total, 0);
        for_each_row(args, filter, rows.groups.len(), |row| self.counts[rows.groups[row] as usize] += 1);
        Ok(())
    }

    fn state(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(groups)?])
    }

    fn load(&mut self, groups: &[u32], state: &[ArrayRef], total: usize) -> Result<()> {
        self.counts.resize(total, 0);
        let counts = state_column(state, 0)?.as_primitive::<Int64Type>();
        for (&group, count) in groups.iter().zip(counts.values()) {
            self.counts[group as usize] = *count;
        }
        Ok(())
    }

    fn evaluate(&self, groups: &[u32]) -> Result<ArrayRef> {
        Ok(Arc::new(Int64Array::from_iter_values(groups.iter().map(|&group| self.counts[group as usize]))))
    }

    fn size_bytes(&self) -> usize {
        self.counts.capacity() * size_of::<i64>()
    }
}

/// A value per group, null before its first row.
struct Values<N> {
    values: Vec<N>,
    seen: Vec<bool>,
}

impl<N> Default for Values<N> {
    fn default() -> Self {
        Self { values: Vec::new(), seen: Vec::new() }
    }
}

#[expect(clippy::indexing_slicing, reason = "groups are dense and the vectors are resized to their number")]
impl<N: Copy + Default> Values<N> {
    fn resize(&mut self, total: usize) {
        self.values.resize(total, N::default());
        self.seen.resize(total, false);
    }

    fn get(&self, group: u32) -> Option<N> {
        self.seen[group as usize].then(|| self.values[group as usize])
    }

    fn set(&mut self, group: u32, value: Option<N>) {
        self.seen[group as usize] = value.is_some();
        self.values[group as usize] = value.unwrap_or_default();
    }

    fn size_bytes(&self) -> usize {
        self.values.capacity() * size_of::<N>() + self.seen.capacity()
    }

    fn array<T: ArrowPrimitiveType<Native = N>>(&self, groups: &[u32]) -> PrimitiveArray<T> {
        groups.iter().map(|&group| self.get(group)).collect()
    }

    fn load<T: ArrowPrimitiveType<Native = N>>(&mut self, groups: &[u32], array: &ArrayRef, total: usize) {
        self.resize(total);
        for (&group, value) in groups.iter().zip(array.as_primitive::<T>()) {
            self.set(group, value);
        }
    }
}

/// Adding as Spark's ANSI mode does: integers refuse to overflow.
trait Addable: Copy + Default {
    fn add(self, other: Self) -> Option<Self>;
}

impl Addable for i64 {
    fn add(self, other: Self) -> Option<Self> {
        self.checked_add(other)
    }
}

impl Addable for f64 {
    fn add(self, other: Self) -> Option<Self> {
        Some(self + other)
    }
}

struct Sum<T: ArrowPrimitiveType> {
    sums: Values<T::Native>,
}

impl<T: ArrowPrimitiveType> Default for Sum<T> {
    fn default() -> Self {
        Self { sums: Values::default() }
    }
}

#[expect(clippy::indexing_slicing, reason = "groups are dense and the vectors are resized to their number")]
impl<T: ArrowPrimitiveType> AggregateColumn for Sum<T>
where
    T::Native: Addable,
{
    fn update(&mut self, args: &[ArrayRef], filter: Option<&BooleanArray>, rows: &RowGroups<'_>) -> Result<()> {
        self.sums.resize(rows.total);
        let values = argument(args)?.as_primitive::<T>().values();
        let mut overflow = false;
        for_each_row(args, filter, rows.groups.len(), |row| {
            let group = rows.groups[row] as usize;
            self.sums.seen[group] = true;
            match self.sums.values[group].add(values[row]) {
                Some(sum) => self.sums.values[group] = sum,
                None => overflow = true,
            }
        });
        if overflow {
            return Err(DataFusionError::Execution(
                "[ARITHMETIC_OVERFLOW] long overflow in sum. Use 'try_sum' to tolerate overflow and return NULL instead. \
                 SQLSTATE: 22003"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn state(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(groups)?])
    }

    fn load(&mut self, groups: &[u32], state: &[ArrayRef], total: usize) -> Result<()> {
        self.sums.load::<T>(groups, state_column(state, 0)?, total);
        Ok(())
    }

    fn evaluate(&self, groups: &[u32]) -> Result<ArrayRef> {
        Ok(Arc::new(self.sums.array::<T>(groups)))
    }

    fn size_bytes(&self) -> usize {
        self.sums.size_bytes()
    }
}

/// `avg` of doubles. State: sum, count.
#[derive(Default)]
struct Average {
    sums: Vec<f64>,
    counts: Vec<i64>,
}

#[expect(clippy::indexing_slicing, reason = "groups are dense and the vectors are resized to their number")]
impl AggregateColumn for Average {
    fn update(&mut self, args: &[ArrayRef], filter: Option<&BooleanArray>, rows: &RowGroups<'_>) -> Result<()> {
        self.sums.resize(rows.total, 0.0);
        self.counts.resize(rows.total, 0);
        let values = argument(args)?.as_primitive::<Float64Type>().values();
        for_each_row(args, filter, rows.groups.len(), |row| {
            let group = rows.groups[row] as usize;
            self.sums[group] += values[row];
            self.counts[group] += 1;
        });
        Ok(())
    }

    fn state(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let sums: PrimitiveArray<Float64Type> =
            PrimitiveArray::from_iter_values(groups.iter().map(|&group| self.sums[group as usize]));
        let counts = Int64Array::from_iter_values(groups.iter().map(|&group| self.counts[group as usize]));
        Ok(vec![Arc::new(sums), Arc::new(counts)])
    }

    fn load(&mut self, groups: &[u32], state: &[ArrayRef], total: usize) -> Result<()> {
        self.sums.resize(total, 0.0);
        self.counts.resize(total, 0);
        let sums = state_column(state, 0)?.as_primitive::<Float64Type>();
        let counts = state_column(state, 1)?.as_primitive::<Int64Type>();
        for (index, &group) in groups.iter().enumerate() {
            self.sums[group as usize] = sums.value(index);
            self.counts[group as usize] = counts.value(index);
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "the mean of doubles")]
    fn evaluate(&self, groups: &[u32]) -> Result<ArrayRef> {
        let means: PrimitiveArray<Float64Type> = groups
            .iter()
            .map(|&group| {
                let count = self.counts[group as usize];
                (count > 0).then(|| self.sums[group as usize] / count as f64)
            })
            .collect();
        Ok(Arc::new(means))
    }

    fn size_bytes(&self) -> usize {
        self.sums.capacity() * size_of::<f64>() + self.counts.capacity() * size_of::<i64>()
    }
}

/// Spark's order: NaN is above every other number.
trait Comparable: Copy + Default {
    fn above(self, other: Self) -> bool;
}

macro_rules! comparable_integer {
    ($($native:ty),*) => {
        $(impl Comparable for $native {
            fn above(self, other: Self) -> bool {
                self > other
            }
        })*
    };
}

comparable_integer!(i8, i16, i32, i64);

impl Comparable for f32 {
    fn above(self, other: Self) -> bool {
        self > other || (self.is_nan() && !other.is_nan())
    }
}

impl Comparable for f64 {
    fn above(self, other: Self) -> bool {
        self > other || (self.is_nan() && !other.is_nan())
    }
}

/// `min` and `max`.
struct Extreme<T: ArrowPrimitiveType> {
    values: Values<T::Native>,
    data_type: DataType,
    max: bool,
}

#[expect(clippy::indexing_slicing, reason = "groups are dense and the vectors are resized to their number")]
impl<T: ArrowPrimitiveType> AggregateColumn for Extreme<T>
where
    T::Native: Comparable,
{
    fn update(&mut self, args: &[ArrayRef], filter: Option<&BooleanArray>, rows: &RowGroups<'_>) -> Result<()> {
        self.values.resize(rows.total);
        let values = argument(args)?.as_primitive::<T>().values();
        let max = self.max;
        for_each_row(args, filter, rows.groups.len(), |row| {
            let group = rows.groups[row] as usize;
            let (new, old) = (values[row], self.values.values[group]);
            let better = if max { new.above(old) } else { old.above(new) };
            if better || !self.values.seen[group] {
                self.values.values[group] = new;
                self.values.seen[group] = true;
            }
        });
        Ok(())
    }

    fn state(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(groups)?])
    }

    fn load(&mut self, groups: &[u32], state: &[ArrayRef], total: usize) -> Result<()> {
        self.values.load::<T>(groups, state_column(state, 0)?, total);
        Ok(())
    }

    fn evaluate(&self, groups: &[u32]) -> Result<ArrayRef> {
        Ok(Arc::new(self.values.array::<T>(groups).with_data_type(self.data_type.clone())))
    }

    fn size_bytes(&self) -> usize {
        self.values.size_bytes()
    }
}
