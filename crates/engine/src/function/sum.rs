//! `sum` with Spark's types and its error on overflow, and `avg` with Spark's types.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Int64Array, PrimitiveArray, new_empty_array,
};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::functions_aggregate::sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};

use super::average;
use super::ddl::type_name;

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<AggregateUDF>> {
    let signature = || Signature::user_defined(Volatility::Immutable);
    vec![
        Arc::new(AggregateUDF::new_from_impl(Sum { signature: signature(), other: sum::sum_udaf() })),
        Arc::new(AggregateUDF::new_from_impl(Average {
            signature: signature(),
            doubles: datafusion_spark::function::aggregate::avg(),
        })),
    ]
}

/// The type as which a number is summed.
fn summed(name: &str, ty: &DataType) -> Result<DataType> {
    match ty {
        ty if ty.is_integer() => Ok(DataType::Int64),
        DataType::Decimal128(_, _) | DataType::Interval(_) | DataType::Duration(_) => Ok(ty.clone()),
        ty if ty.is_floating() || ty.is_string() || *ty == DataType::Null => Ok(DataType::Float64),
        other => plan_err!(
            "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve \"{name}\" due to data type mismatch: the first parameter requires the \"NUMERIC\" or \"ANSI INTERVAL\" type, however it has the type \"{}\". SQLSTATE: 42K09",
            type_name(other)
        ),
    }
}

fn one<'a, T>(name: &str, list: &'a [T]) -> Result<&'a T> {
    match list {
        [one] => Ok(one),
        _ => plan_err!(
            "[WRONG_NUM_ARGS.WITHOUT_SUGGESTION] The `{name}` requires 1 parameters but the actual number is {}.",
            list.len()
        ),
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Sum {
    signature: Signature,
    /// Sums what cannot overflow, and distinct values.
    other: Arc<AggregateUDF>,
}

impl Sum {
    fn is_exact(args: &AccumulatorArgs<'_>) -> bool {
        !args.is_distinct && matches!(args.return_field.data_type(), DataType::Int64 | DataType::Decimal128(_, _))
    }
}

impl AggregateUDFImpl for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(vec![summed("sum", one("sum", arg_types)?)?])
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match summed("sum", one("sum", arg_types)?)? {
            DataType::Decimal128(p, s) => Ok(DataType::Decimal128(p.saturating_add(10).min(38), s)),
            other => Ok(other),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        if args.is_distinct {
            return self.other.state_fields(args);
        }
        let name = format!("{}[sum]", args.name);
        Ok(vec![Arc::new(Field::new(name, args.return_field.data_type().clone(), true))])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if !Self::is_exact(&args) {
            return self.other.accumulator(args);
        }
        Ok(Box::new(Total { total: 0, rows: 0, ty: args.return_field.data_type().clone() }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if Self::is_exact(&args) { self.accumulator(args) } else { self.other.create_sliding_accumulator(args) }
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        Self::is_exact(&args) || self.other.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        if !Self::is_exact(&args) {
            return self.other.create_groups_accumulator(args);
        }
        Ok(Box::new(Totals { totals: Vec::new(), ty: args.return_field.data_type().clone() }))
    }
}

fn overflow<T>(ty: &DataType) -> Result<T> {
    let what = if *ty == DataType::Int64 { "long overflow in sum" } else { "Overflow in sum of decimals" };
    exec_err!(
        "[ARITHMETIC_OVERFLOW] {what}. Use 'try_sum' to tolerate overflow and return NULL instead. SQLSTATE: 22003"
    )
}

/// The array's values, of either of the types that are summed exactly.
fn values(array: &ArrayRef) -> Result<impl Iterator<Item = Option<i128>> + '_> {
    let (longs, decimals) = (array.as_primitive_opt::<Int64Type>(), array.as_primitive_opt::<Decimal128Type>());
    if longs.is_none() && decimals.is_none() {
        return exec_err!("sum does not add {}", array.data_type());
    }
    let value = move |row| match (longs, decimals) {
        (Some(longs), _) => i128::from(longs.value(row)),
        (_, Some(decimals)) => decimals.value(row),
        _ => 0,
    };
    Ok((0..array.len()).map(move |row| array.is_valid(row).then(|| value(row))))
}

/// Totals as an array of the result's type; fails when one does not fit.
fn result(totals: impl Iterator<Item = Option<i128>>, ty: &DataType) -> Result<ArrayRef> {
    match ty {
        DataType::Decimal128(precision, _) => {
            let bound = 10i128.checked_pow(u32::from(*precision)).unwrap_or(i128::MAX);
            let checked = totals.map(|t| match t {
                Some(t) if t.checked_abs().is_none_or(|t| t >= bound) => overflow(ty),
                other => Ok(other),
            });
            let array: Decimal128Array = checked.collect::<Result<_>>()?;
            Ok(Arc::new(array.with_data_type(ty.clone())))
        }
        _ => {
            let checked = totals.map(|t| match t.map(i64::try_from) {
                Some(Err(_)) => overflow(ty),
                Some(Ok(t)) => Ok(Some(t)),
                None => Ok(None),
            });
            let array: Int64Array = checked.collect::<Result<PrimitiveArray<Int64Type>>>()?;
            Ok(Arc::new(array))
        }
    }
}

fn first(values: &[ArrayRef]) -> Result<&ArrayRef> {
    match values.first() {
        Some(array) => Ok(array),
        None => exec_err!("sum needs an argument"),
    }
}

/// One total. It may leave the result's type on the way, as long as it comes back.
#[derive(Debug)]
struct Total {
    total: i128,
    rows: u64,
    ty: DataType,
}

impl Total {
    fn current(&self) -> Option<i128> {
        (self.rows > 0).then_some(self.total)
    }
}

impl Accumulator for Total {
    fn update_batch(&mut self, batch: &[ArrayRef]) -> Result<()> {
        for value in values(first(batch)?)?.flatten() {
            let Some(total) = self.total.checked_add(value) else { return overflow(&self.ty) };
            self.total = total;
            self.rows += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, batch: &[ArrayRef]) -> Result<()> {
        for value in values(first(batch)?)?.flatten() {
            let Some(total) = self.total.checked_sub(value) else { return overflow(&self.ty) };
            self.total = total;
            self.rows = self.rows.saturating_sub(1);
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::try_from_array(&result(std::iter::once(self.current()), &self.ty)?, 0)
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }
}

/// A total per group.
#[derive(Debug)]
struct Totals {
    totals: Vec<Option<i128>>,
    ty: DataType,
}

impl GroupsAccumulator for Totals {
    fn update_batch(
        &mut self,
        batch: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.totals.resize(total_num_groups, None);
        for (row, (value, group)) in values(first(batch)?)?.zip(group_indices).enumerate() {
            let wanted = opt_filter.is_none_or(|f| f.is_valid(row) && f.value(row));
            let (Some(value), true, Some(total)) = (value, wanted, self.totals.get_mut(*group)) else { continue };
            let Some(sum) = total.unwrap_or(0).checked_add(value) else { return overflow(&self.ty) };
            *total = Some(sum);
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        result(emit_to.take_needed(&mut self.totals).into_iter(), &self.ty)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit_to)?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.update_batch(states, group_indices, None, total_num_groups)
    }

    fn convert_to_state(&self, batch: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let array = first(batch)?;
        if array.is_empty() {
            return Ok(vec![new_empty_array(&self.ty)]);
        }
        let wanted = |row| opt_filter.is_none_or(|f| f.is_valid(row) && f.value(row));
        let totals = values(array)?.enumerate().map(|(row, value)| value.filter(|_| wanted(row)));
        Ok(vec![result(totals, &self.ty)?])
    }

    fn size(&self) -> usize {
        self.totals.capacity() * size_of::<Option<i128>>()
    }
}

/// `avg`: decimals stay decimals, everything else becomes a double.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Average {
    signature: Signature,
    doubles: Arc<AggregateUDF>,
}

fn of_decimals(fields: &[FieldRef]) -> bool {
    matches!(fields.first().map(|f| f.data_type()), Some(DataType::Decimal128(_, _)))
}

impl AggregateUDFImpl for Average {
    fn name(&self) -> &'static str {
        "avg"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match summed("avg", one("avg", arg_types)?)? {
            DataType::Int64 => Ok(vec![DataType::Float64]),
            other => Ok(vec![other]),
        }
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match self.coerce_types(arg_types)?.first() {
            Some(DataType::Decimal128(p, s)) => {
                Ok(DataType::Decimal128(p.saturating_add(4).min(38), s.saturating_add(4).min(38)))
            }
            _ => Ok(DataType::Float64),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        if of_decimals(args.input_fields) { average::state_fields(&args) } else { self.doubles.state_fields(args) }
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if of_decimals(args.expr_fields) { average::accumulator(&args) } else { self.doubles.accumulator(args) }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if of_decimals(args.expr_fields) {
            return average::accumulator(&args);
        }
        self.doubles.create_sliding_accumulator(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        if of_decimals(args.expr_fields) {
            return !args.is_distinct;
        }
        self.doubles.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        if of_decimals(args.expr_fields) {
            return average::groups_accumulator(&args);
        }
        self.doubles.create_groups_accumulator(args)
    }
}
