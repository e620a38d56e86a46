//! Higher-order functions: `transform`, `filter`, `exists`, `forall`, `aggregate`, `zip_with`, `array_sort` with a
//! comparator. Each evaluates its lambda over the elements of all rows at once.

use std::cell::Cell;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int32Array, ListArray, UInt64Array, new_null_array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{cast, concat, filter, interleave, take, take_arrays};
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, HigherOrderFunctionArgs, HigherOrderReturnFieldArgs, HigherOrderSignature, HigherOrderUDF,
    HigherOrderUDFImpl, LambdaArgument, LambdaParametersProgress, ValueOrLambda, Volatility,
};

use super::name::call_name;
use super::output::{check_bytes, fitting_rows, rows_of};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Transform,
    Filter,
    Exists,
    ForAll,
    Aggregate,
    ZipWith,
    ArraySort,
}

/// All higher-order functions.
pub(crate) fn functions() -> Vec<Arc<HigherOrderUDF>> {
    use Kind::{Aggregate, ArraySort, Exists, Filter, ForAll, Transform, ZipWith};
    [
        (Transform, "transform"),
        (Filter, "filter"),
        (Exists, "exists"),
        (ForAll, "forall"),
        (Aggregate, "aggregate"),
        (ZipWith, "zip_with"),
        (ArraySort, "__array_sort_by"),
    ]
    .into_iter()
    .map(|(kind, name)| {
        let signature = HigherOrderSignature::variadic_any(Volatility::Immutable);
        Arc::new(HigherOrderUDF::new_from_impl(Lambda { kind, name, signature }))
    })
    .collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Lambda {
    kind: Kind,
    name: &'static str,
    signature: HigherOrderSignature,
}

type Argument<'a> = &'a ValueOrLambda<FieldRef, Option<FieldRef>>;

impl Lambda {
    fn element(&self, field: &FieldRef) -> Result<FieldRef> {
        match field.data_type() {
            DataType::List(item) => Ok(Arc::new(item.as_ref().clone().with_nullable(true))),
            DataType::Null => Ok(Arc::new(Field::new_list_field(DataType::Null, true))),
            other => plan_err!(
                "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve `{}`: the first parameter requires the \"ARRAY\" type, but has the type \"{}\".",
                self.name,
                super::ddl::type_name(other)
            ),
        }
    }

    fn wrong_arguments<T>(&self) -> Result<T> {
        let usage = match self.kind {
            Kind::Transform => "transform(array, x -> ...) or transform(array, (x, i) -> ...)",
            Kind::Filter => "filter(array, x -> condition)",
            Kind::Exists => "exists(array, x -> condition)",
            Kind::ForAll => "forall(array, x -> condition)",
            Kind::Aggregate => "aggregate(array, start, (acc, x) -> ...[, acc -> ...])",
            Kind::ZipWith => "zip_with(array, array, (x, y) -> ...)",
            Kind::ArraySort => "array_sort(array, (x, y) -> ...)",
        };
        plan_err!("[INVALID_LAMBDA_FUNCTION_CALL] usage: {usage}")
    }

    fn aggregate_parameters(
        &self,
        step: usize,
        fields: &[ValueOrLambda<FieldRef, Option<FieldRef>>],
    ) -> Result<LambdaParametersProgress> {
        let [ValueOrLambda::Value(list), ValueOrLambda::Value(start), ValueOrLambda::Lambda(merge), finish @ ..] =
            fields
        else {
            return self.wrong_arguments();
        };
        let element = self.element(list)?;
        let named = |f: &FieldRef| Arc::new(Field::new("acc", f.data_type().clone(), true));
        let accumulator = match merge {
            Some(merged) if merged.data_type() != &DataType::Null => named(merged),
            _ => named(start),
        };
        let merge_parameters = vec![Arc::clone(&accumulator), element];
        if step == 0 && merge.is_none() {
            let mut partial = vec![Some(merge_parameters)];
            partial.extend(finish.iter().map(|_| None));
            return Ok(LambdaParametersProgress::Partial(partial));
        }
        let mut complete = vec![merge_parameters];
        complete.extend(finish.iter().map(|_| vec![Arc::clone(&accumulator)]));
        Ok(LambdaParametersProgress::Complete(complete))
    }
}

fn index_field() -> FieldRef {
    Arc::new(Field::new("index", DataType::Int32, false))
}

impl HigherOrderUDFImpl for Lambda {
    fn name(&self) -> &str {
        self.name
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        call_name(self.name, args)
    }

    fn signature(&self) -> &HigherOrderSignature {
        &self.signature
    }

    fn lambda_parameters(
        &self,
        step: usize,
        fields: &[ValueOrLambda<FieldRef, Option<FieldRef>>],
    ) -> Result<LambdaParametersProgress> {
        let list = |argument: Option<Argument<'_>>| match argument {
            Some(ValueOrLambda::Value(field)) => self.element(field),
            _ => self.wrong_arguments(),
        };
        let lambdas = fields.iter().filter(|f| matches!(f, ValueOrLambda::Lambda(_))).count();
        let element = list(fields.first())?;
        let parameters = match (self.kind, fields.len()) {
            (Kind::Aggregate, 3 | 4) => return self.aggregate_parameters(step, fields),
            (Kind::Transform | Kind::Filter, 2) => vec![element, index_field()],
            (Kind::Exists | Kind::ForAll, 2) => vec![element],
            (Kind::ZipWith, 3) => vec![element, list(fields.get(1))?],
            (Kind::ArraySort, 2) => vec![Arc::clone(&element), element],
            _ => return self.wrong_arguments(),
        };
        if lambdas != 1 {
            return self.wrong_arguments();
        }
        Ok(LambdaParametersProgress::Complete(vec![parameters]))
    }

    fn return_field_from_args(&self, args: HigherOrderReturnFieldArgs<'_>) -> Result<FieldRef> {
        let ty = |index: usize| match args.arg_fields.get(index) {
            Some(ValueOrLambda::Value(f) | ValueOrLambda::Lambda(f)) => Ok(f.data_type().clone()),
            None => self.wrong_arguments(),
        };
        let list_of = |item: DataType| DataType::List(Arc::new(Field::new_list_field(item, true)));
        let result = match self.kind {
            Kind::Transform => list_of(ty(1)?),
            Kind::Filter | Kind::ArraySort => ty(0)?,
            Kind::Exists | Kind::ForAll => DataType::Boolean,
            Kind::Aggregate => ty(args.arg_fields.len().saturating_sub(1))?,
            Kind::ZipWith => list_of(ty(2)?),
        };
        Ok(Arc::new(Field::new(self.name, result, true)))
    }

    fn invoke_with_args(&self, args: HigherOrderFunctionArgs) -> Result<ColumnarValue> {
        let mut values = Vec::new();
        let mut lambdas = Vec::new();
        for arg in &args.args {
            match arg {
                ValueOrLambda::Value(value) => values.push(value),
                ValueOrLambda::Lambda(lambda) => lambdas.push(lambda),
            }
        }
        let at_once = rows_at_once(&values);
        let mut parts = Vec::new();
        let (mut first, mut bytes) = (0, 0usize);
        while first < args.number_rows || parts.is_empty() {
            let rows = at_once.min(args.number_rows - first);
            let values = values.iter().map(|value| match value {
                ColumnarValue::Array(array) => Ok(array.slice(first, rows)),
                constant => rows_of(self.name, constant, rows),
            });
            let part = self.apply(first, &values.collect::<Result<Vec<_>>>()?, &lambdas, &args)?;
            first += rows;
            if first < args.number_rows || !parts.is_empty() {
                bytes = bytes.saturating_add(part.get_array_memory_size());
                check_bytes(self.name, bytes)?;
            }
            parts.push(part);
        }
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        match parts.as_slice() {
            [whole] => Ok(ColumnarValue::Array(whole.slice(0, whole.len()))),
            parts => Ok(ColumnarValue::Array(concat(parts)?)),
        }
    }
}

/// What constants may take that are written out for every row.
const CONSTANTS_BYTES: usize = 128 << 20;

/// How many rows are worked on together: as many as the constant lists among the arguments leave room for.
fn rows_at_once(values: &[&ColumnarValue]) -> usize {
    let bytes = values.iter().map(|value| match value {
        ColumnarValue::Scalar(scalar) if scalar.data_type().is_nested() => scalar.size(),
        _ => 0,
    });
    (CONSTANTS_BYTES / bytes.max().unwrap_or(0).max(1)).max(1)
}

impl Lambda {
    /// The results for the rows from `first` on, of which `values` has the arguments.
    fn apply(
        &self,
        first: usize,
        values: &[ArrayRef],
        lambdas: &[&LambdaArgument],
        args: &HigherOrderFunctionArgs,
    ) -> Result<ArrayRef> {
        let (Some(list), Some(lambda)) = (values.first(), lambdas.first()) else { return self.wrong_arguments() };
        if list.data_type() == &DataType::Null {
            return Ok(new_null_array(args.return_type(), list.len()));
        }
        let elements = Elements::of(list.as_list::<i32>(), first)?;
        match self.kind {
            Kind::Transform => transform(&elements, lambda, args.return_type()),
            Kind::Filter => filter_elements(&elements, lambda),
            Kind::Exists => quantify(&elements, lambda, true),
            Kind::ForAll => quantify(&elements, lambda, false),
            Kind::ZipWith => {
                let Some(other) = values.get(1) else { return self.wrong_arguments() };
                zip_with(list.as_list::<i32>(), other.as_list::<i32>(), first, lambda, args.return_type())
            }
            Kind::Aggregate => {
                let Some(start) = values.get(1) else { return self.wrong_arguments() };
                aggregate(&elements, start, lambda, lambdas.get(1).copied(), args)
            }
            Kind::ArraySort => sort_by(&elements, lambda),
        }
    }
}

/// What the columns of a query that a lambda uses may take, repeated for the elements that are evaluated together.
const CAPTURES_BYTES: usize = 64 << 20;

/// The lambda's values for `count` sets of parameters; `rows` are the rows that those from a place on belong to.
fn evaluate(
    lambda: &LambdaArgument,
    parameters: &[&dyn Fn() -> Result<ArrayRef>],
    count: usize,
    rows: &dyn Fn(usize, usize) -> UInt64Array,
) -> Result<ArrayRef> {
    let (mut parts, mut from, mut wanted) = (Vec::new(), 0, count);
    while from < count || parts.is_empty() {
        let fitting = Cell::new(wanted);
        let sliced: Vec<_> =
            parameters.iter().map(|p| move || -> Result<ArrayRef> { Ok(p()?.slice(from, wanted)) }).collect();
        let sliced: Vec<&dyn Fn() -> Result<ArrayRef>> =
            sliced.iter().map(|p| p as &dyn Fn() -> Result<ArrayRef>).collect();
        let value = lambda.evaluate(&sliced, |captures| {
            let rows = rows(from, wanted);
            fitting.set(fitting_rows(captures, &rows, CAPTURES_BYTES));
            if fitting.get() < wanted {
                return exec_err!("too many elements for one evaluation");
            }
            Ok(take_arrays(captures, &rows, None)?)
        });
        if fitting.get() < wanted {
            // Less at once.
            wanted = fitting.get();
            continue;
        }
        parts.push(value?.into_array(wanted)?);
        from += wanted;
        wanted = wanted.min(count - from);
    }
    let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
    match parts.as_slice() {
        [whole] => Ok(whole.slice(0, whole.len())),
        parts => Ok(concat(parts)?),
    }
}

/// The elements of a list column, without those behind nulls.
struct Elements {
    values: ArrayRef,
    offsets: OffsetBuffer<i32>,
    nulls: Option<NullBuffer>,
    /// The column's first row, counted in the batch.
    first: usize,
}

#[expect(clippy::indexing_slicing, reason = "offsets have one entry more than there are rows")]
impl Elements {
    fn of(list: &ListArray, first: usize) -> Result<Self> {
        let length = |row| if list.is_null(row) { 0 } else { usize::try_from(list.value_length(row)).unwrap_or(0) };
        let offsets = OffsetBuffer::from_lengths((0..list.len()).map(length));
        let nulls = list.nulls().cloned();
        let place = |offset: i32| usize::try_from(offset).unwrap_or(0);
        let (start, end) = match list.value_offsets() {
            [start, .., end] => (place(*start), place(*end)),
            _ => (0, 0),
        };
        let used: usize = (0..list.len()).map(length).sum();
        let values = if used == end - start {
            list.values().slice(start, used)
        } else {
            let places = (0..list.len()).flat_map(|row| {
                let start = place(list.value_offsets()[row]);
                (start..start + length(row)).map(|at| at as u64)
            });
            take(list.values(), &UInt64Array::from_iter_values(places), None)?
        };
        Ok(Elements { values, offsets, nulls, first })
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        usize::try_from(self.offsets[row]).unwrap_or(0)..usize::try_from(self.offsets[row + 1]).unwrap_or(0)
    }

    /// The position of each element in its list, from 0.
    fn indices(&self) -> ArrayRef {
        let indices: Vec<i32> =
            (0..self.len()).flat_map(|row| 0..i32::try_from(self.range(row).len()).unwrap_or(0)).collect();
        Arc::new(Int32Array::from(indices))
    }

    /// The rows of the batch that `count` elements from `from` on belong to.
    fn rows(&self, from: usize, count: usize) -> UInt64Array {
        let mut row = self.offsets.partition_point(|end| usize::try_from(*end).unwrap_or(0) <= from).saturating_sub(1);
        let mut rows = Vec::with_capacity(count);
        while rows.len() < count {
            let left = self.range(row).end.saturating_sub(from + rows.len());
            rows.extend(std::iter::repeat_n((self.first + row) as u64, left.min(count - rows.len())));
            row += 1;
        }
        rows.into()
    }

    /// The lambda's value for each element.
    fn evaluate(&self, lambda: &LambdaArgument) -> Result<ArrayRef> {
        let value = || Ok(Arc::clone(&self.values));
        let index = || Ok(self.indices());
        evaluate(lambda, &[&value, &index], self.values.len(), &|from, count| self.rows(from, count))
    }
}

fn list_item(ty: &DataType) -> Result<FieldRef> {
    match ty {
        DataType::List(item) => Ok(Arc::clone(item)),
        other => exec_err!("{other} is not an array"),
    }
}

fn transform(elements: &Elements, lambda: &LambdaArgument, return_type: &DataType) -> Result<ArrayRef> {
    let item = list_item(return_type)?;
    let values = cast(&elements.evaluate(lambda)?, item.data_type())?;
    Ok(Arc::new(ListArray::try_new(item, elements.offsets.clone(), values, elements.nulls.clone())?))
}

fn conditions(values: &ArrayRef) -> Result<BooleanArray> {
    Ok(cast(values, &DataType::Boolean)?.as_boolean().clone())
}

fn filter_elements(elements: &Elements, lambda: &LambdaArgument) -> Result<ArrayRef> {
    let keep = conditions(&elements.evaluate(lambda)?)?;
    let kept = |i: usize| keep.is_valid(i) && keep.value(i);
    let lengths = (0..elements.len()).map(|row| elements.range(row).filter(|i| kept(*i)).count());
    let offsets = OffsetBuffer::from_lengths(lengths);
    let values = filter(&elements.values, &keep)?;
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Ok(Arc::new(ListArray::try_new(item, offsets, values, elements.nulls.clone())?))
}

/// `exists` (any is true) and `forall` (none is false), with nulls as SQL's three-valued logic has them.
fn quantify(elements: &Elements, lambda: &LambdaArgument, decisive: bool) -> Result<ArrayRef> {
    let holds = conditions(&elements.evaluate(lambda)?)?;
    let result: BooleanArray = (0..elements.len())
        .map(|row| {
            if elements.nulls.as_ref().is_some_and(|n| n.is_null(row)) {
                return None;
            }
            let mut unknown = false;
            for i in elements.range(row) {
                if holds.is_null(i) {
                    unknown = true;
                } else if holds.value(i) == decisive {
                    return Some(decisive);
                }
            }
            (!unknown).then_some(!decisive)
        })
        .collect();
    Ok(Arc::new(result))
}

/// Pairs the elements of two lists; the shorter one is filled up with nulls.
#[expect(clippy::indexing_slicing, reason = "offsets have one entry more than there are rows")]
fn zip_with(
    left: &ListArray,
    right: &ListArray,
    first_row: usize,
    lambda: &LambdaArgument,
    return_type: &DataType,
) -> Result<ArrayRef> {
    let nulls = NullBuffer::union(left.nulls(), right.nulls());
    let (mut rows, mut lefts, mut rights, mut lengths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for row in 0..left.len() {
        let absent = nulls.as_ref().is_some_and(|n| n.is_null(row));
        let (a, b) = if absent { (0, 0) } else { (left.value_length(row), right.value_length(row)) };
        lengths.push(usize::try_from(a.max(b)).unwrap_or(0));
        for i in 0..a.max(b) {
            rows.push((first_row + row) as u64);
            lefts.push((i < a).then(|| u64::try_from(left.value_offsets()[row] + i).unwrap_or(0)));
            rights.push((i < b).then(|| u64::try_from(right.value_offsets()[row] + i).unwrap_or(0)));
        }
    }
    let count = rows.len();
    let rows = UInt64Array::from(rows);
    let first = take(left.values(), &UInt64Array::from(lefts), None)?;
    let second = take(right.values(), &UInt64Array::from(rights), None)?;
    let (first, second) = (|| Ok(Arc::clone(&first)), || Ok(Arc::clone(&second)));
    let values = evaluate(lambda, &[&first, &second], count, &|from, count| rows.slice(from, count))?;
    let item = list_item(return_type)?;
    let values = cast(&values, item.data_type())?;
    Ok(Arc::new(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), values, nulls)?))
}

/// Folds all lists in step: pass `k` merges the `k`-th element of every list that has one.
fn aggregate(
    elements: &Elements,
    start: &ArrayRef,
    merge: &LambdaArgument,
    finish: Option<&LambdaArgument>,
    args: &HigherOrderFunctionArgs,
) -> Result<ArrayRef> {
    let merged_type = match args.arg_fields.get(2) {
        Some(ValueOrLambda::Lambda(field)) => field.data_type().clone(),
        _ => start.data_type().clone(),
    };
    let mut accumulator = cast(start, &merged_type)?;
    let mut active: Vec<usize> = (0..elements.len()).filter(|row| !elements.range(*row).is_empty()).collect();
    let mut pass = 0;
    while !active.is_empty() {
        let all = active.len() == accumulator.len();
        let rows: UInt64Array = active.iter().map(|r| *r as u64).collect::<Vec<_>>().into();
        let at: UInt64Array =
            active.iter().map(|r| (elements.range(*r).start + pass) as u64).collect::<Vec<_>>().into();
        let state = if all { Arc::clone(&accumulator) } else { take(&accumulator, &rows, None)? };
        let (state, element) = (|| Ok(Arc::clone(&state)), || Ok(take(&elements.values, &at, None)?));
        let of_batch: UInt64Array = rows.unary(|row| row + elements.first as u64);
        let merged = evaluate(merge, &[&state, &element], active.len(), &|from, count| of_batch.slice(from, count))?;
        let merged = cast(&merged, &merged_type)?;
        accumulator = if all {
            merged
        } else {
            let mut picks: Vec<(usize, usize)> = (0..accumulator.len()).map(|row| (0, row)).collect();
            for (i, row) in active.iter().enumerate() {
                if let Some(pick) = picks.get_mut(*row) {
                    *pick = (1, i);
                }
            }
            interleave(&[accumulator.as_ref(), merged.as_ref()], &picks)?
        };
        pass += 1;
        active.retain(|row| elements.range(*row).len() > pass);
    }
    let result = match finish {
        Some(finish) => {
            let state = || Ok(Arc::clone(&accumulator));
            let own =
                |captures: &[ArrayRef]| captures.iter().map(|c| c.slice(elements.first, elements.len())).collect();
            finish.evaluate(&[&state], |captures| Ok(own(captures)))?.into_array(elements.len())?
        }
        None => accumulator,
    };
    let result = cast(&result, args.return_type())?;
    match &elements.nulls {
        Some(nulls) if nulls.null_count() > 0 => {
            let absent = BooleanArray::new(!nulls.inner(), None);
            Ok(arrow::compute::nullif(&result, &absent)?)
        }
        _ => Ok(result),
    }
}

/// A merge of two sorted runs of a list, given by their places among all elements.
struct Merge {
    row: usize,
    left: std::ops::Range<usize>,
    right: std::ops::Range<usize>,
    /// Where its next element goes.
    at: usize,
}

/// Sorts each list by the lambda's sign: runs that double in length are merged, in all lists at once, so that one evaluation
/// compares a pair of each merge.
#[expect(clippy::indexing_slicing, reason = "runs lie within the elements")]
fn sort_by(elements: &Elements, lambda: &LambdaArgument) -> Result<ArrayRef> {
    let mut order: Vec<u64> = (0..elements.values.len() as u64).collect();
    let longest = (0..elements.len()).map(|row| elements.range(row).len()).max().unwrap_or(0);
    let mut width = 1;
    while width < longest {
        let of_row = |row: usize| {
            let end = elements.range(row).end;
            elements.range(row).step_by(2 * width).map(move |start| {
                let middle = (start + width).min(end);
                Merge { row, left: start..middle, right: middle..(middle + width).min(end), at: start }
            })
        };
        let mut merges: Vec<Merge> =
            (0..elements.len()).flat_map(of_row).filter(|merge| !merge.right.is_empty()).collect();
        let mut merged = order.clone();
        while !merges.is_empty() {
            let signs = compare(elements, lambda, &merges, &order)?;
            for (merge, sign) in merges.iter_mut().zip(signs.values()) {
                let side = if *sign > 0 { &mut merge.right } else { &mut merge.left };
                merged[merge.at] = order[side.start];
                side.start += 1;
                merge.at += 1;
            }
            merges.retain(|merge| {
                if merge.right.is_empty() {
                    merged[merge.at..merge.at + merge.left.len()].copy_from_slice(&order[merge.left.clone()]);
                }
                // What is left of the right run is in its place.
                !merge.left.is_empty() && !merge.right.is_empty()
            });
        }
        order = merged;
        width *= 2;
    }
    let values = take(&elements.values, &UInt64Array::from(order), None)?;
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Ok(Arc::new(ListArray::try_new(item, elements.offsets.clone(), values, elements.nulls.clone())?))
}

/// The signs of the pairs that the merges are about to choose from.
#[expect(clippy::indexing_slicing, reason = "runs lie within the elements")]
fn compare(elements: &Elements, lambda: &LambdaArgument, merges: &[Merge], order: &[u64]) -> Result<Int32Array> {
    let side = |place: fn(&Merge) -> usize| -> Result<ArrayRef> {
        let places = merges.iter().map(|merge| order[place(merge)]);
        Ok(take(&elements.values, &UInt64Array::from_iter_values(places), None)?)
    };
    let (first, second) = (|| side(|merge| merge.left.start), || side(|merge| merge.right.start));
    let rows = |from: usize, count: usize| {
        let merges = merges.iter().skip(from).take(count);
        UInt64Array::from_iter_values(merges.map(|merge| (elements.first + merge.row) as u64))
    };
    let signs = cast(&evaluate(lambda, &[&first, &second], merges.len(), &rows)?, &DataType::Int32)?;
    if signs.null_count() > 0 {
        return exec_err!("[COMPARATOR_RETURNS_NULL] The comparator of array_sort has returned a NULL.");
    }
    Ok(signs.as_primitive::<Int32Type>().clone())
}
