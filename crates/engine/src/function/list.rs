//! Functions of arrays, and of texts and arrays alike, where Spark differs from DataFusion or DataFusion has none.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, BooleanArray, Int32Array, Int64Array, ListArray, StringArray, UInt64Array,
    new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{interleave, take};
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::ScalarUDF;
use datafusion::logical_expr::type_coercion::binary::type_union_resolution;

use super::cast::convert;
use super::ddl::type_name;
use super::output::{TextOutput, check_bytes};
use super::string::texts;
use super::udf::{Arguments, Call, Coerce, Function};

type Returns = fn(&Arguments<'_>) -> Result<DataType>;

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let function = |name, arity, coerce: Coerce, returns: Returns, run| {
        Function { name, aliases: &[], arity, coerce: Some(coerce), returns, run }.udf()
    };
    let first: Returns = |args| Ok(list_of(item_of(args.ty(0)?)));
    let flag: Returns = |_| Ok(DataType::Boolean);
    vec![
        function("concat", (0, usize::MAX), concat_types, concat_type, run_concat),
        function("reverse", (1, 1), as_they_come, reverse_type, reverse),
        function("size", (1, 1), as_they_come, size_type, size),
        function("array_size", (1, 1), as_they_come, size_type, size),
        function("flatten", (1, 1), as_they_come, flatten_type, flatten),
        function("array_remove", (2, 2), list_and_element, first, array_remove),
        function("array_position", (2, 2), list_and_element, |_| Ok(DataType::Int64), array_position),
        function("array_append", (2, 2), list_and_any, first, |c| insert_at_end(c, false)),
        function("array_prepend", (2, 2), list_and_any, first, |c| insert_at_end(c, true)),
        function("array_insert", (3, 3), insert_types, first, array_insert),
        function("arrays_overlap", (2, 2), two_lists, flag, arrays_overlap),
        function("map_contains_key", (2, 2), as_they_come, flag, map_contains_key),
        function("get", (2, 2), as_they_come, get_type, get),
    ]
}

fn as_they_come(types: &[DataType]) -> Result<Vec<DataType>> {
    Ok(types.to_vec())
}

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

fn no_array<T>(ty: &DataType) -> Result<T> {
    plan_err!(
        "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve the call due to data type mismatch: the first parameter requires the \"ARRAY\" type, however it has the type \"{}\". SQLSTATE: 42K09",
        type_name(ty)
    )
}

/// The type in which a list's elements and another value are compared.
fn common(item: &DataType, other: &DataType) -> Option<DataType> {
    let comparable = item.is_numeric() == other.is_numeric() && item.is_string() == other.is_string();
    match (item, other) {
        (DataType::Null, other) => Some(other.clone()),
        (item, DataType::Null) => Some(item.clone()),
        (item, other) if item == other => Some(item.clone()),
        (item, other) if comparable => type_union_resolution(&[item.clone(), other.clone()]),
        _ => None,
    }
}

fn different<T>(what: &str, types: &[DataType]) -> Result<T> {
    let names: Vec<String> = types.iter().map(|t| format!("\"{}\"", type_name(t))).collect();
    plan_err!(
        "[DATATYPE_MISMATCH.{what}] Cannot resolve the call due to data type mismatch: the types of its arguments are {}. SQLSTATE: 42K09",
        names.join(" and ")
    )
}

fn list_and_element(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [DataType::List(item), element] => match common(item.data_type(), element) {
            Some(ty) => Ok(vec![list_of(ty.clone()), ty]),
            None => different("ARRAY_FUNCTION_DIFF_TYPES", types),
        },
        [_, _] => different("ARRAY_FUNCTION_DIFF_TYPES", types),
        _ => as_they_come(types),
    }
}

fn list_and_any(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [DataType::List(_), _] => list_and_element(types),
        [other, _] => no_array(other),
        _ => as_they_come(types),
    }
}

fn insert_types(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [list, position, element] if position.is_integer() => {
            match list_and_any(&[list.clone(), element.clone()])?.as_slice() {
                [list, element] => Ok(vec![list.clone(), DataType::Int64, element.clone()]),
                _ => as_they_come(types),
            }
        }
        [_, _, _] => different("UNEXPECTED_INPUT_TYPE", types),
        _ => as_they_come(types),
    }
}

fn two_lists(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [DataType::List(left), DataType::List(right)] => match common(left.data_type(), right.data_type()) {
            Some(ty) => Ok(vec![list_of(ty.clone()), list_of(ty)]),
            None => different("BINARY_ARRAY_DIFF_TYPES", types),
        },
        [_, _] => different("BINARY_ARRAY_DIFF_TYPES", types),
        _ => as_they_come(types),
    }
}

/// Texts, binaries or lists; all lists of the same elements.
fn concat_types(types: &[DataType]) -> Result<Vec<DataType>> {
    if !types.iter().any(|ty| matches!(ty, DataType::List(_))) {
        return as_they_come(types);
    }
    let items: Option<Vec<&DataType>> = types
        .iter()
        .map(|ty| match ty {
            DataType::List(item) => Some(item.data_type()),
            _ => None,
        })
        .collect();
    let item = items.and_then(|items| items.into_iter().try_fold(DataType::Null, |ty, item| common(&ty, item)));
    match item {
        Some(item) => Ok(vec![list_of(item); types.len()]),
        None => different("DATA_DIFF_TYPES", types),
    }
}

fn concat_type(args: &Arguments<'_>) -> Result<DataType> {
    let binary = !args.fields.is_empty() && args.fields.iter().all(|f| *f.data_type() == DataType::Binary);
    match args.fields.first().map(|f| f.data_type()) {
        Some(DataType::List(item)) => Ok(list_of(item.data_type().clone())),
        Some(DataType::Binary) if binary => Ok(DataType::Binary),
        _ => Ok(DataType::Utf8),
    }
}

fn run_concat(call: &Call) -> Result<ArrayRef> {
    match &call.return_type {
        DataType::List(_) => concat_lists(call),
        DataType::Binary => {
            let columns: Vec<_> = call.args.iter().map(|a| a.as_binary::<i32>()).collect();
            let rows = call.args.first().map_or(0, |a| a.len());
            let mut builder = BinaryBuilder::new();
            for row in 0..rows {
                let parts: Option<Vec<&[u8]>> = columns.iter().map(|c| c.is_valid(row).then(|| c.value(row))).collect();
                builder.append_option(parts.map(|parts| parts.concat()));
            }
            Ok(Arc::new(builder.finish()))
        }
        _ => concat_texts(call),
    }
}

fn concat_texts(call: &Call) -> Result<ArrayRef> {
    let columns = (0..call.args.len()).map(|i| texts(call, i)).collect::<Result<Vec<_>>>()?;
    let Some(rows) = columns.first().map(|c| c.len()) else {
        return Ok(Arc::new(StringArray::from(vec![""])));
    };
    let mut output = TextOutput::new(call.name, rows);
    let mut text = String::new();
    for row in 0..rows {
        if columns.iter().any(|c| c.is_null(row)) {
            output.push_null();
            continue;
        }
        text.clear();
        columns.iter().for_each(|c| text.push_str(c.value(row)));
        output.push(&text)?;
    }
    Ok(output.finish())
}

/// The places of a list's elements among its values.
fn range(list: &ListArray, row: usize) -> std::ops::Range<usize> {
    if list.is_null(row) {
        return 0..0;
    }
    let offsets = list.value_offsets();
    let at = |i: usize| offsets.get(i).and_then(|o| usize::try_from(*o).ok()).unwrap_or(0);
    at(row)..at(row + 1)
}

fn rebuild(item: &DataType, values: ArrayRef, lengths: Vec<usize>, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
    check_elements(lengths.iter().sum())?;
    let item = Arc::new(Field::new_list_field(item.clone(), true));
    Ok(Arc::new(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), values, nulls)?))
}

/// Arrow counts the elements of a batch with 32 bits.
fn check_elements(elements: usize) -> Result<()> {
    check_bytes("array", elements.saturating_mul(size_of::<i32>()))
}

fn item_of(ty: &DataType) -> DataType {
    match ty {
        DataType::List(item) => item.data_type().clone(),
        _ => DataType::Null,
    }
}

fn concat_lists(call: &Call) -> Result<ArrayRef> {
    let lists: Vec<&ListArray> = call.args.iter().map(|a| a.as_list::<i32>()).collect();
    let values: Vec<&dyn Array> = lists.iter().map(|l| l.values().as_ref()).collect();
    let rows = lists.first().map_or(0, |l| l.len());
    let nulls = lists.iter().fold(None, |nulls, list| NullBuffer::union(nulls.as_ref(), list.nulls()));
    check_elements(values.iter().map(|v| v.len()).sum())?;
    let mut places = Vec::new();
    let mut lengths = Vec::with_capacity(rows);
    for row in 0..rows {
        let before = places.len();
        if nulls.as_ref().is_none_or(|n| n.is_valid(row)) {
            for (i, list) in lists.iter().enumerate() {
                places.extend(range(list, row).map(|at| (i, at)));
            }
        }
        lengths.push(places.len() - before);
    }
    rebuild(&item_of(&call.return_type), interleave(&values, &places)?, lengths, nulls)
}

fn reverse_type(args: &Arguments<'_>) -> Result<DataType> {
    match args.ty(0)? {
        DataType::List(item) => Ok(list_of(item.data_type().clone())),
        ty @ (DataType::Map(_, _) | DataType::Struct(_)) => no_array(ty),
        _ => Ok(DataType::Utf8),
    }
}

fn reverse(call: &Call) -> Result<ArrayRef> {
    let argument = call.arg(0)?;
    let Some(list) = argument.as_list_opt::<i32>() else {
        let reversed: StringArray =
            texts(call, 0)?.iter().map(|t| t.map(|t| t.chars().rev().collect::<String>())).collect();
        return Ok(Arc::new(reversed));
    };
    let mut places: Vec<u64> = Vec::with_capacity(list.values().len());
    let mut lengths = Vec::with_capacity(list.len());
    for row in 0..list.len() {
        let elements = range(list, row);
        lengths.push(elements.len());
        places.extend(elements.rev().map(|at| at as u64));
    }
    let values = take(list.values(), &UInt64Array::from(places), None)?;
    rebuild(&item_of(&call.return_type), values, lengths, list.nulls().cloned())
}

/// How many elements; null for null, as with ANSI on.
fn size(call: &Call) -> Result<ArrayRef> {
    let argument = call.arg(0)?;
    let count = |row: usize, length: i32| argument.is_valid(row).then_some(length);
    match argument.data_type() {
        DataType::List(_) => {
            let list = argument.as_list::<i32>();
            Ok(Arc::new((0..list.len()).map(|row| count(row, list.value_length(row))).collect::<Int32Array>()))
        }
        DataType::Map(_, _) => {
            let map = argument.as_map();
            Ok(Arc::new((0..map.len()).map(|row| count(row, map.value_length(row))).collect::<Int32Array>()))
        }
        _ => Ok(new_null_array(&DataType::Int32, argument.len())),
    }
}

fn size_type(args: &Arguments<'_>) -> Result<DataType> {
    match args.ty(0)? {
        DataType::List(_) | DataType::Null => Ok(DataType::Int32),
        DataType::Map(_, _) if args.name == "size" => Ok(DataType::Int32),
        other => plan_err!(
            "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve \"{}\" due to data type mismatch: the first parameter requires the \"ARRAY\" or \"MAP\" type, however it has the type \"{}\". SQLSTATE: 42K09",
            args.name,
            type_name(other)
        ),
    }
}

fn flatten_type(args: &Arguments<'_>) -> Result<DataType> {
    match args.ty(0)? {
        DataType::List(item) => match item.data_type() {
            DataType::List(inner) => Ok(list_of(inner.data_type().clone())),
            DataType::Null => Ok(list_of(DataType::Null)),
            other => no_array(other),
        },
        DataType::Null => Ok(list_of(DataType::Null)),
        other => no_array(other),
    }
}

/// The elements of the lists in a list; null when one of those is.
fn flatten(call: &Call) -> Result<ArrayRef> {
    let argument = call.arg(0)?;
    let nothing = || new_null_array(&call.return_type, argument.len());
    let Some(outer) = argument.as_list_opt::<i32>() else { return Ok(nothing()) };
    let Some(inner) = outer.values().as_list_opt::<i32>() else { return Ok(nothing()) };
    let mut places: Vec<u64> = Vec::new();
    let mut lengths = Vec::with_capacity(outer.len());
    let mut valid = Vec::with_capacity(outer.len());
    for row in 0..outer.len() {
        let known = outer.is_valid(row) && range(outer, row).all(|at| inner.is_valid(at));
        let before = places.len();
        if known {
            range(outer, row).for_each(|at| places.extend(range(inner, at).map(|i| i as u64)));
        }
        valid.push(known);
        lengths.push(places.len() - before);
    }
    let values = take(inner.values(), &UInt64Array::from(places), None)?;
    rebuild(&item_of(&call.return_type), values, lengths, Some(NullBuffer::from(valid)))
}

/// Values that compare equal have equal rows.
fn comparable(arrays: [&ArrayRef; 2]) -> Result<[Rows; 2]> {
    let [left, right] = arrays;
    let converter = RowConverter::new(vec![SortField::new(left.data_type().clone())])?;
    let rows = |array: &ArrayRef| converter.convert_columns(&[Arc::clone(array)]);
    Ok([rows(left)?, rows(right)?])
}

/// Removes all elements that equal the second argument; nulls stay.
fn array_remove(call: &Call) -> Result<ArrayRef> {
    let (list, element) = (call.arg(0)?.as_list::<i32>(), call.arg(1)?);
    let [values, elements] = comparable([list.values(), element])?;
    let nulls = NullBuffer::union(list.nulls(), element.logical_nulls().as_ref());
    let mut places: Vec<u64> = Vec::new();
    let mut lengths = Vec::with_capacity(list.len());
    for row in 0..list.len() {
        let before = places.len();
        if nulls.as_ref().is_none_or(|n| n.is_valid(row)) {
            places.extend(range(list, row).filter(|at| values.row(*at) != elements.row(row)).map(|at| at as u64));
        }
        lengths.push(places.len() - before);
    }
    let kept = take(list.values(), &UInt64Array::from(places), None)?;
    rebuild(&item_of(&call.return_type), kept, lengths, nulls)
}

/// The place of the first equal element, counted from 1; 0 when there is none.
fn array_position(call: &Call) -> Result<ArrayRef> {
    let (list, element) = (call.arg(0)?.as_list::<i32>(), call.arg(1)?);
    let [values, elements] = comparable([list.values(), element])?;
    let nulls = NullBuffer::union(list.nulls(), element.logical_nulls().as_ref());
    let result: Int64Array = (0..list.len())
        .map(|row| {
            if nulls.as_ref().is_some_and(|n| n.is_null(row)) {
                return None;
            }
            let found = range(list, row).position(|at| values.row(at) == elements.row(row));
            Some(found.and_then(|at| i64::try_from(at + 1).ok()).unwrap_or(0))
        })
        .collect();
    Ok(Arc::new(result))
}

fn insert_at_end(call: &Call, front: bool) -> Result<ArrayRef> {
    let (list, element) = (call.arg(0)?.as_list::<i32>(), call.arg(1)?);
    let mut places = Vec::with_capacity(list.values().len() + list.len());
    let mut lengths = Vec::with_capacity(list.len());
    for row in 0..list.len() {
        let before = places.len();
        if list.is_valid(row) {
            if front {
                places.push((1, row));
            }
            places.extend(range(list, row).map(|at| (0, at)));
            if !front {
                places.push((1, row));
            }
        }
        lengths.push(places.len() - before);
    }
    let values = interleave(&[list.values().as_ref(), element.as_ref()], &places)?;
    rebuild(&item_of(&call.return_type), values, lengths, list.nulls().cloned())
}

/// `array_insert(array, place, element)`: nulls fill what lies between the array and a place beyond it.
fn array_insert(call: &Call) -> Result<ArrayRef> {
    let (list, at, element) = (call.arg(0)?.as_list::<i32>(), call.arg(1)?.as_primitive::<Int64Type>(), call.arg(2)?);
    let nulls = NullBuffer::union(list.nulls(), at.nulls());
    let absent = new_null_array(element.data_type(), 1);
    let mut places: Vec<(usize, usize)> = Vec::new();
    let mut lengths = Vec::with_capacity(list.len());
    for row in 0..list.len() {
        let before = places.len();
        if nulls.as_ref().is_none_or(|n| n.is_valid(row)) {
            let elements = range(list, row);
            let (at, count) = (at.value(row), elements.len());
            if at == 0 {
                return exec_err!(
                    "[INVALID_INDEX_OF_ZERO] The index 0 is invalid. An index shall be either < 0 or > 0 (the first element has index 1). SQLSTATE: 22003"
                );
            }
            let distance = usize::try_from(at.unsigned_abs() - 1).unwrap_or(usize::MAX);
            check_elements(places.len().saturating_add(distance).saturating_add(count))?;
            let filling = std::iter::repeat_n((2, 0), distance.saturating_sub(count));
            let own = elements.map(|i| (0, i));
            if at > 0 {
                places.extend(own.clone().take(distance).chain(filling));
                places.push((1, row));
                places.extend(own.skip(distance));
            } else {
                let front = count.saturating_sub(distance);
                places.extend(own.clone().take(front));
                places.push((1, row));
                places.extend(filling.chain(own.skip(front)));
            }
        }
        lengths.push(places.len() - before);
    }
    let values = interleave(&[list.values().as_ref(), element.as_ref(), absent.as_ref()], &places)?;
    rebuild(&item_of(&call.return_type), values, lengths, nulls)
}

/// Whether two arrays share an element; null when they do not, but one has a null.
fn arrays_overlap(call: &Call) -> Result<ArrayRef> {
    let (left, right) = (call.arg(0)?.as_list::<i32>(), call.arg(1)?.as_list::<i32>());
    let [left_rows, right_rows] = comparable([left.values(), right.values()])?;
    let (left_nulls, right_nulls) = (left.values().logical_nulls(), right.values().logical_nulls());
    let valid = |nulls: &Option<NullBuffer>, at: usize| nulls.as_ref().is_none_or(|n| n.is_valid(at));
    let overlap = |row: usize| {
        if left.is_null(row) || right.is_null(row) {
            return None;
        }
        let known: std::collections::HashSet<_> =
            range(left, row).filter(|at| valid(&left_nulls, *at)).map(|at| left_rows.row(at)).collect();
        let shared = range(right, row).any(|at| valid(&right_nulls, at) && known.contains(&right_rows.row(at)));
        let unknown =
            range(left, row).any(|at| !valid(&left_nulls, at)) || range(right, row).any(|at| !valid(&right_nulls, at));
        let both = !range(left, row).is_empty() && !range(right, row).is_empty();
        if shared {
            Some(true)
        } else if unknown && both {
            None
        } else {
            Some(false)
        }
    };
    Ok(Arc::new((0..left.len()).map(overlap).collect::<BooleanArray>()))
}

fn map_contains_key(call: &Call) -> Result<ArrayRef> {
    let argument = call.arg(0)?;
    let Some(map) = argument.as_map_opt() else {
        return different("UNEXPECTED_INPUT_TYPE", &[argument.data_type().clone()]);
    };
    let key = convert(call.arg(1)?, map.key_type(), false)?;
    let [keys, wanted] = comparable([map.keys(), &key])?;
    let offsets = map.value_offsets();
    let at = |i: usize| offsets.get(i).and_then(|o| usize::try_from(*o).ok()).unwrap_or(0);
    let contains = |row: usize| {
        let known = map.is_valid(row) && key.is_valid(row);
        known.then(|| (at(row)..at(row + 1)).any(|i| keys.row(i) == wanted.row(row)))
    };
    Ok(Arc::new((0..map.len()).map(contains).collect::<BooleanArray>()))
}

fn get_type(args: &Arguments<'_>) -> Result<DataType> {
    match args.ty(0)? {
        DataType::List(item) => Ok(item.data_type().clone()),
        other => no_array(other),
    }
}

/// `get(array, index)`: counted from 0; null for an index that the array does not have.
fn get(call: &Call) -> Result<ArrayRef> {
    let (list, index) = (call.arg(0)?.as_list::<i32>(), convert(call.arg(1)?, &DataType::Int64, false)?);
    let index = index.as_primitive::<Int64Type>();
    let places: UInt64Array = (0..list.len())
        .map(|row| {
            let wanted = index.is_valid(row).then(|| usize::try_from(index.value(row)).ok())??;
            range(list, row).nth(wanted).map(|at| at as u64)
        })
        .collect();
    Ok(take(list.values(), &places, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_types_that_go_together_are_compared() {
        assert_eq!(common(&DataType::Int32, &DataType::Int64), Some(DataType::Int64));
        assert_eq!(common(&DataType::Null, &DataType::Utf8), Some(DataType::Utf8));
        assert_eq!(common(&DataType::Int32, &DataType::Utf8), None);
    }

    #[test]
    fn more_elements_than_a_batch_can_have_are_refused() {
        assert!(check_elements(10).is_ok());
        assert!(check_elements(1 << 40).is_err());
    }
}
