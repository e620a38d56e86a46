//! `percentile_approx(value, percentage[, accuracy])`: a value of the group at a rank that is wrong by at most
//! `count / accuracy`, in bounded memory (Greenwald and Khanna's summary, as Spark's `QuantileSummaries` keeps it).
//! `percentile(value, percentage)`: exact, interpolated, from a summary without error, which holds every value.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type, Schema};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};
use datafusion::physical_plan::PhysicalExpr;

use super::ddl::type_name;

/// Spark's default accuracy.
const ACCURACY: i64 = 10_000;
/// Values that wait before they are merged into the summary.
const HEAD: usize = 50_000;

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<AggregateUDF>> {
    let function = |exact, aliases| {
        let signature = Signature::user_defined(Volatility::Immutable);
        Arc::new(AggregateUDF::new_from_impl(Percentile { exact, signature, aliases }))
    };
    vec![function(false, vec!["approx_percentile".to_owned()]), function(true, Vec::new())]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Percentile {
    exact: bool,
    signature: Signature,
    aliases: Vec<String>,
}

fn list_of(ty: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(ty, true)))
}

impl AggregateUDFImpl for Percentile {
    fn name(&self) -> &'static str {
        if self.exact { "percentile" } else { "percentile_approx" }
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [value, percentage, accuracy @ ..] = arg_types else {
            return plan_err!(
                "[WRONG_NUM_ARGS.WITHOUT_SUGGESTION] The `percentile_approx` requires 2 or 3 parameters but the actual number is {}.",
                arg_types.len()
            );
        };
        if self.exact && !accuracy.is_empty() {
            return plan_err!("[UNSUPPORTED_FEATURE] the frequency of percentile is not supported by Caudal yet");
        }
        let value = match value {
            _ if self.exact => DataType::Float64,
            ty if ty.is_numeric() || ty.is_temporal() => ty.clone(),
            ty if ty.is_string() || *ty == DataType::Null => DataType::Float64,
            other => {
                return plan_err!(
                    "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve percentile_approx: the first parameter requires the \"NUMERIC\", \"DATE\" or \"TIMESTAMP\" type, however it has the type \"{}\". SQLSTATE: 42K09",
                    type_name(other)
                );
            }
        };
        let percentage = if percentage.is_nested() { list_of(DataType::Float64) } else { DataType::Float64 };
        let mut types = vec![value, percentage];
        types.extend(accuracy.iter().map(|_| DataType::Int64));
        Ok(types)
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match self.coerce_types(arg_types)?.as_slice() {
            [value, DataType::List(_), ..] => Ok(list_of(value.clone())),
            [value, ..] => Ok(value.clone()),
            [] => plan_err!("percentile_approx needs arguments"),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[summary]", args.name), DataType::Binary, true))])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let Some(percentage) = args.exprs.get(1) else { return plan_err!("percentile_approx needs a percentage") };
        let percentage = constant(percentage)?;
        let percentages: Vec<f64> = match percentage.data_type() {
            DataType::List(_) => {
                let values = cast(&percentage.as_list::<i32>().value(0), &DataType::Float64)?;
                values.as_primitive::<Float64Type>().iter().flatten().collect()
            }
            _ => cast(&percentage, &DataType::Float64)?.as_primitive::<Float64Type>().iter().flatten().collect(),
        };
        if let Some(wrong) = percentages.iter().find(|p| !(0.0..=1.0).contains(*p)) {
            return plan_err!(
                "[DATATYPE_MISMATCH.VALUE_OUT_OF_RANGE] Cannot resolve percentile_approx due to data type mismatch: The percentage must be between [0.0, 1.0] (current value = {wrong}). SQLSTATE: 42K09"
            );
        }
        let accuracy = match args.exprs.get(2) {
            Some(accuracy) => {
                cast(&constant(accuracy)?, &DataType::Int64)?.as_primitive::<Int64Type>().iter().next().flatten()
            }
            None => Some(if self.exact { i64::MAX } else { ACCURACY }),
        };
        let Some(accuracy @ 1..) = accuracy else {
            return plan_err!(
                "[DATATYPE_MISMATCH.VALUE_OUT_OF_RANGE] Cannot resolve percentile_approx due to data type mismatch: The accuracy must be a positive number. SQLSTATE: 42K09"
            );
        };
        let error = if self.exact { 0.0 } else { 1.0 / accuracy as f64 };
        let listed = matches!(args.return_field.data_type(), DataType::List(_));
        let value = match args.return_field.data_type() {
            DataType::List(item) => item.data_type().clone(),
            other => other.clone(),
        };
        Ok(Box::new(Percentiles { percentages, listed, value, exact: self.exact, summary: Summary::new(error) }))
    }
}

/// The value of an expression without columns.
fn constant(expression: &Arc<dyn PhysicalExpr>) -> Result<ArrayRef> {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
    match expression.evaluate(&row) {
        Ok(value) => value.into_array(1),
        Err(_) => plan_err!(
            "[DATATYPE_MISMATCH.NON_FOLDABLE_INPUT] the percentage and the accuracy of percentile_approx must be constants. SQLSTATE: 42K09"
        ),
    }
}

#[derive(Debug)]
struct Percentiles {
    percentages: Vec<f64>,
    listed: bool,
    value: DataType,
    exact: bool,
    summary: Summary,
}

impl Accumulator for Percentiles {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(values) = values.first() else { return Ok(()) };
        // Times count in their own unit.
        let numbers = match values.data_type() {
            DataType::Date32 => cast(&cast(values, &DataType::Int32)?, &DataType::Float64)?,
            ty if ty.is_temporal() => cast(&cast(values, &DataType::Int64)?, &DataType::Float64)?,
            _ => cast(values, &DataType::Float64)?,
        };
        for number in numbers.as_primitive::<Float64Type>().iter().flatten() {
            self.summary.insert(number);
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.summary.flush();
        let query = |p: &f64| if self.exact { self.summary.interpolate(*p) } else { self.summary.query(*p) };
        let found: Vec<Option<f64>> = self.percentages.iter().map(query).collect();
        if found.iter().all(Option::is_none) {
            let ty = if self.listed { list_of(self.value.clone()) } else { self.value.clone() };
            return ScalarValue::try_from(&ty);
        }
        let numbers: ArrayRef = Arc::new(arrow::array::Float64Array::from(found));
        let values = match &self.value {
            DataType::Date32 => cast(&cast(&numbers, &DataType::Int32)?, &self.value)?,
            ty if ty.is_temporal() => cast(&cast(&numbers, &DataType::Int64)?, ty)?,
            ty => cast(&numbers, ty)?,
        };
        if self.listed {
            return Ok(SingleRowListArrayBuilder::new(values).with_nullable(true).build_list_scalar());
        }
        ScalarValue::try_from_array(&values, 0)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.summary.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.summary.flush();
        Ok(vec![ScalarValue::Binary(Some(self.summary.to_bytes()))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let Some(states) = states.first() else { return Ok(()) };
        for state in states.as_binary::<i32>().iter().flatten() {
            self.summary.merge(state)?;
        }
        Ok(())
    }
}

/// A value of the group, the least number of values up to it since the last one, and the doubt about that number.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    value: f64,
    gap: u64,
    doubt: u64,
}

#[derive(Debug)]
struct Summary {
    error: f64,
    /// By value.
    samples: Vec<Sample>,
    /// Values that are not yet in `samples`.
    head: Vec<f64>,
    count: u64,
}

impl Summary {
    fn new(error: f64) -> Self {
        Summary { error, samples: Vec::new(), head: Vec::new(), count: 0 }
    }

    fn insert(&mut self, value: f64) {
        self.head.push(value);
        if self.head.len() >= HEAD {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.head.is_empty() {
            return;
        }
        let mut head = std::mem::take(&mut self.head);
        head.sort_by(f64::total_cmp);
        let mut merged = Vec::with_capacity(self.samples.len() + head.len());
        let mut old = std::mem::take(&mut self.samples).into_iter().peekable();
        let last = head.len() - 1;
        for (i, value) in head.into_iter().enumerate() {
            while let Some(sample) = old.next_if(|s| s.value.total_cmp(&value).is_le()) {
                merged.push(sample);
            }
            self.count += 1;
            let outermost = merged.is_empty() || (i == last && old.peek().is_none());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
            let doubt = if outermost { 0 } else { (2.0 * self.error * self.count as f64).floor() as u64 };
            merged.push(Sample { value, gap: 1, doubt });
        }
        merged.extend(old);
        self.samples = merged;
        self.compress();
    }

    /// Joins neighbours as long as the error stays within bounds.
    fn compress(&mut self) {
        if self.error == 0.0 {
            return;
        }
        let threshold = 2.0 * self.error * self.count as f64;
        let mut kept: Vec<Sample> = Vec::new();
        let Some(mut head) = self.samples.pop() else { return };
        while let Some(sample) = self.samples.pop() {
            let first = self.samples.is_empty();
            if !first && (sample.gap + head.gap + head.doubt) as f64 <= threshold - 1.0 {
                head.gap += sample.gap;
            } else {
                kept.push(std::mem::replace(&mut head, sample));
            }
        }
        kept.push(head);
        kept.reverse();
        self.samples = kept;
    }

    fn query(&self, percentage: f64) -> Option<f64> {
        let (first, last) = (self.samples.first()?, self.samples.last()?);
        if percentage <= self.error {
            return Some(first.value);
        }
        if percentage >= 1.0 - self.error {
            return Some(last.value);
        }
        let target = self.samples.iter().map(|s| s.gap + s.doubt).max().unwrap_or(0) as f64 / 2.0;
        let rank = (percentage * self.count as f64).ceil();
        let mut least = 0u64;
        for sample in &self.samples {
            least += sample.gap;
            let most = (least + sample.doubt) as f64;
            if most - target <= rank && rank <= least as f64 + target {
                return Some(sample.value);
            }
        }
        Some(last.value)
    }

    /// Between the two values around a rank. Every sample is one value.
    fn interpolate(&self, percentage: f64) -> Option<f64> {
        let position = percentage * self.samples.len().checked_sub(1)? as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
        let (lower, upper) = (position.floor() as usize, position.ceil() as usize);
        let (a, b) = (self.samples.get(lower)?.value, self.samples.get(upper)?.value);
        if lower == upper || a == b {
            return Some(a);
        }
        Some((upper as f64 - position) * a + (position - lower as f64) * b)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + self.samples.len() * 24);
        bytes.extend(self.count.to_le_bytes());
        for sample in &self.samples {
            bytes.extend(sample.value.to_le_bytes());
            bytes.extend(sample.gap.to_le_bytes());
            bytes.extend(sample.doubt.to_le_bytes());
        }
        bytes
    }

    fn merge(&mut self, bytes: &[u8]) -> Result<()> {
        self.flush();
        let (words, rest) = bytes.as_chunks::<8>();
        let [count, samples @ ..] = words else { return exec_err!("a summary of percentile_approx is cut short") };
        let (samples, left) = samples.as_chunks::<3>();
        if !rest.is_empty() || !left.is_empty() {
            return exec_err!("a summary of percentile_approx is cut short");
        }
        self.count = self.count.saturating_add(u64::from_le_bytes(*count));
        self.samples.extend(samples.iter().map(|[value, gap, doubt]| Sample {
            value: f64::from_le_bytes(*value),
            gap: u64::from_le_bytes(*gap),
            doubt: u64::from_le_bytes(*doubt),
        }));
        self.samples.sort_by(|a, b| a.value.total_cmp(&b.value));
        self.compress();
        Ok(())
    }

    fn size(&self) -> usize {
        self.samples.capacity() * size_of::<Sample>() + self.head.capacity() * size_of::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_stay_within_the_error_however_much_comes_in() {
        let mut parts: Vec<Summary> = (0..2).map(|_| Summary::new(0.001)).collect();
        for i in 0..300_000u64 {
            let at = usize::from(i % 3 == 0);
            parts[at].insert((i.wrapping_mul(7_919) % 300_000) as f64);
        }
        let mut all = Summary::new(0.001);
        for part in &mut parts {
            part.flush();
            all.merge(&part.to_bytes()).unwrap();
        }
        assert!(all.samples.len() < 20_000, "{}", all.samples.len());
        for p in [0.0, 0.1, 0.5, 0.9, 0.999, 1.0] {
            let found = all.query(p).unwrap();
            assert!((found - p * 300_000.0).abs() < 0.004 * 300_000.0, "{p}: {found}");
        }
    }
}
