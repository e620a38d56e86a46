//! Array functions where Spark differs from DataFusion, or DataFusion has none.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, UInt64Array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{SortOptions, cast, take};
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::ScalarUDF;

use super::ddl::type_name;
use super::sequence;
use super::udf::{Arguments, Call, Function};

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function {
            name: "array_sort",
            aliases: &[],
            arity: (1, 1),
            coerce: None,
            returns: same_list,
            run: |c| sort_lists(c.arg(0)?, false, false),
        }
        .udf(),
        Function {
            name: "sort_array",
            aliases: &[],
            arity: (1, 2),
            coerce: None,
            returns: same_list,
            run: |c| {
                let ascending = c.scalars.get(1).and_then(|s| s.as_ref());
                let descending = ascending.is_some_and(|s| *s == datafusion::common::ScalarValue::Boolean(Some(false)));
                sort_lists(c.arg(0)?, descending, !descending)
            },
        }
        .udf(),
        Function { name: "slice", aliases: &[], arity: (3, 3), coerce: None, returns: same_list, run: slice }.udf(),
        Function {
            name: "sequence",
            aliases: &[],
            arity: (2, 3),
            coerce: None,
            returns: sequence::returns,
            run: sequence::sequence,
        }
        .udf(),
        Function {
            name: "isnan",
            aliases: &[],
            arity: (1, 1),
            coerce: None,
            returns: |_| Ok(DataType::Boolean),
            run: |c| {
                let values = cast(c.arg(0)?, &DataType::Float64)?;
                let values = values.as_primitive::<arrow::datatypes::Float64Type>();
                let nan: BooleanArray = values.iter().map(|v| Some(v.is_some_and(f64::is_nan))).collect();
                Ok(Arc::new(nan))
            },
        }
        .udf(),
    ]
}

fn same_list(args: &Arguments<'_>) -> Result<DataType> {
    match args.ty(0)? {
        DataType::List(item) => Ok(DataType::List(Arc::new(Field::new_list_field(item.data_type().clone(), true)))),
        DataType::Null => Ok(DataType::List(Arc::new(Field::new_list_field(DataType::Null, true)))),
        other => plan_err!(
            "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve `{}`: the first parameter requires the \"ARRAY\" type, but has the type \"{}\".",
            args.name,
            type_name(other)
        ),
    }
}

pub(super) fn rebuild(
    values: ArrayRef,
    offsets: OffsetBuffer<i32>,
    nulls: Option<arrow::buffer::NullBuffer>,
) -> Result<ArrayRef> {
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Ok(Arc::new(ListArray::try_new(item, offsets, values, nulls)?))
}

/// Sorts each list by the natural order of its elements: structs field by field, nulls inside structs first.
#[expect(clippy::indexing_slicing, reason = "offsets have one entry more than there are rows; indices are elements")]
fn sort_lists(array: &ArrayRef, descending: bool, nulls_first: bool) -> Result<ArrayRef> {
    if array.data_type() == &DataType::Null {
        return Ok(Arc::clone(array));
    }
    let list = array.as_list::<i32>();
    let options = SortOptions { descending, nulls_first: !descending };
    let field = SortField::new_with_options(list.values().data_type().clone(), options);
    let rows = RowConverter::new(vec![field])?.convert_columns(&[Arc::clone(list.values())])?;
    let absent = list.values().nulls();
    let mut order: Vec<u64> = Vec::with_capacity(list.values().len());
    let mut lengths = Vec::with_capacity(list.len());
    for row in 0..list.len() {
        let length = if list.is_null(row) { 0 } else { usize::try_from(list.value_length(row)).unwrap_or(0) };
        let start = usize::try_from(list.value_offsets()[row]).unwrap_or(0);
        let from = order.len();
        order.extend((start..start + length).map(|i| i as u64));
        let is_null = |i: u64| absent.is_some_and(|n| n.is_null(i as usize));
        order[from..].sort_by(|a, b| match (is_null(*a), is_null(*b)) {
            (false, false) => rows.row(*a as usize).cmp(&rows.row(*b as usize)),
            (x, y) if nulls_first => y.cmp(&x),
            (x, y) => x.cmp(&y),
        });
        lengths.push(length);
    }
    let values = take(list.values(), &UInt64Array::from(order), None)?;
    rebuild(values, OffsetBuffer::from_lengths(lengths), list.nulls().cloned())
}

/// `slice(array, start from 1 or negative from the end, length)`.
#[expect(clippy::indexing_slicing, reason = "offsets have one entry more than there are rows")]
fn slice(call: &Call) -> Result<ArrayRef> {
    let list = call.arg(0)?.as_list::<i32>();
    let ints = |i: usize| -> Result<Int64Array> {
        Ok(cast(call.arg(i)?, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
    };
    let (starts, counts) = (ints(1)?, ints(2)?);
    let nulls = arrow::buffer::NullBuffer::union(list.nulls(), starts.nulls());
    let nulls = arrow::buffer::NullBuffer::union(nulls.as_ref(), counts.nulls());
    let mut picked: Vec<u64> = Vec::new();
    let mut lengths = Vec::with_capacity(list.len());
    for row in 0..list.len() {
        if nulls.as_ref().is_some_and(|n| n.is_null(row)) {
            lengths.push(0);
            continue;
        }
        let (start, count, length) = (starts.value(row), counts.value(row), i64::from(list.value_length(row)));
        if start == 0 {
            return exec_err!(
                "[INVALID_PARAMETER_VALUE.START] The value of parameter(s) `start` in `slice` is invalid: Expects a positive or a negative value for `start`, but got 0."
            );
        }
        if count < 0 {
            return exec_err!(
                "[INVALID_PARAMETER_VALUE.LENGTH] The value of parameter(s) `length` in `slice` is invalid: Expects `length` greater than or equal to 0, but got {count}."
            );
        }
        let first = if start > 0 { start - 1 } else { length + start };
        let range = if first < 0 { 0..0 } else { first..(first + count).min(length).max(first) };
        let base = i64::from(list.value_offsets()[row]);
        let before = picked.len();
        picked.extend(range.filter_map(|i| u64::try_from(base + i).ok()));
        lengths.push(picked.len() - before);
    }
    let values = take(list.values(), &UInt64Array::from(picked), None)?;
    rebuild(values, OffsetBuffer::from_lengths(lengths), nulls)
}
