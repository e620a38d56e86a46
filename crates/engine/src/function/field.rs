//! Field access: `struct.field` (also over arrays of structs), `array[i]`, `map[key]`, `element_at`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, UInt64Array, new_null_array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::ScalarUDF;

use super::ddl::type_name;
use super::udf::{Arguments, Call, Function};

/// `__field(struct, 'name')`: a field by its name in any case; of an array of structs, the array of that field.
pub(crate) fn field() -> Arc<ScalarUDF> {
    Function { name: "__field", aliases: &[], arity: (2, 2), coerce: None, returns: field_type, run: run_field }.udf()
}

/// `__item(array, index from 0)` and `__item(map, key)`.
pub(crate) fn item() -> Arc<ScalarUDF> {
    Function { name: "__item", aliases: &[], arity: (2, 2), coerce: None, returns: item_type, run: |c| run_item(c, 0) }
        .udf()
}

/// `element_at(array, index from 1, negative from the end)` and `element_at(map, key)`.
pub(crate) fn element_at() -> Arc<ScalarUDF> {
    Function {
        name: "element_at",
        aliases: &[],
        arity: (2, 2),
        coerce: None,
        returns: item_type,
        run: |c| run_item(c, 1),
    }
    .udf()
}

fn find(fields: &arrow::datatypes::Fields, name: &str) -> Option<usize> {
    fields
        .iter()
        .position(|f| f.name() == name)
        .or_else(|| fields.iter().position(|f| f.name().eq_ignore_ascii_case(name)))
}

fn no_such_field(fields: &arrow::datatypes::Fields, name: &str) -> datafusion::error::DataFusionError {
    let names: Vec<String> = fields.iter().map(|f| format!("`{}`", f.name())).collect();
    datafusion::error::DataFusionError::Plan(format!(
        "[FIELD_NOT_FOUND] No such struct field `{name}` in {}.",
        names.join(", ")
    ))
}

fn field_type(args: &Arguments<'_>) -> Result<DataType> {
    let name = args.text(1)?;
    match args.ty(0)? {
        DataType::Struct(fields) => match find(fields, &name).and_then(|i| fields.get(i)) {
            Some(field) => Ok(field.data_type().clone()),
            None => Err(no_such_field(fields, &name)),
        },
        DataType::List(item) => match item.data_type() {
            DataType::Struct(fields) => match find(fields, &name).and_then(|i| fields.get(i)) {
                Some(field) => Ok(DataType::List(Arc::new(Field::new_list_field(field.data_type().clone(), true)))),
                None => Err(no_such_field(fields, &name)),
            },
            other => invalid_extraction(&name, other),
        },
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) => Ok(kv.get(1).map_or(DataType::Null, |v| v.data_type().clone())),
            other => invalid_extraction(&name, other),
        },
        other => invalid_extraction(&name, other),
    }
}

fn invalid_extraction<T>(name: &str, ty: &DataType) -> Result<T> {
    plan_err!(
        "[INVALID_EXTRACT_BASE_FIELD_TYPE] Can't extract a value from `{name}`. Need a complex type [STRUCT, ARRAY, MAP] but got {}.",
        type_name(ty)
    )
}

fn run_field(call: &Call) -> Result<ArrayRef> {
    let Some(name) = call.text(1) else { return plan_err!("a field's name is a constant") };
    let base = call.arg(0)?;
    match base.data_type() {
        DataType::Struct(_) => struct_field(base, &name),
        DataType::List(_) => {
            let list = base.as_list::<i32>();
            let values = struct_field(list.values(), &name)?;
            let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
            Ok(Arc::new(ListArray::try_new(item, list.offsets().clone(), values, list.nulls().cloned())?))
        }
        DataType::Map(_, _) => map_value(base, call.arg(1)?),
        other => invalid_extraction(&name, other),
    }
}

/// A struct's field, null where the struct is.
pub(crate) fn struct_field(base: &ArrayRef, name: &str) -> Result<ArrayRef> {
    let structs = base.as_struct();
    let index = match find(structs.fields(), name) {
        Some(index) => index,
        None => return Err(no_such_field(structs.fields(), name)),
    };
    let column = structs.column(index);
    let Some(nulls) = structs.nulls().filter(|n| n.null_count() > 0) else { return Ok(Arc::clone(column)) };
    if column.data_type() == &DataType::Null {
        return Ok(Arc::clone(column));
    }
    let nulls = arrow::buffer::NullBuffer::union(Some(nulls), column.nulls());
    let data = column.to_data().into_builder().nulls(nulls).build()?;
    Ok(arrow::array::make_array(data))
}

fn item_type(args: &Arguments<'_>) -> Result<DataType> {
    match args.ty(0)? {
        DataType::List(item) => Ok(item.data_type().clone()),
        DataType::Struct(_) => field_type(args),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) => Ok(kv.get(1).map_or(DataType::Null, |v| v.data_type().clone())),
            other => invalid_extraction("key", other),
        },
        other => invalid_extraction("index", other),
    }
}

fn run_item(call: &Call, first: i64) -> Result<ArrayRef> {
    let base = call.arg(0)?;
    let key = call.arg(1)?;
    match base.data_type() {
        DataType::Map(_, _) => map_value(base, key),
        DataType::Struct(_) => run_field(call),
        _ => list_item(base.as_list::<i32>(), key, first),
    }
}

fn list_item(list: &ListArray, index: &ArrayRef, first: i64) -> Result<ArrayRef> {
    let index = cast(index, &DataType::Int64)?;
    let index = index.as_primitive::<Int64Type>();
    let mut positions = Vec::with_capacity(list.len());
    for row in 0..list.len() {
        if list.is_null(row) || index.is_null(row) {
            positions.push(None);
            continue;
        }
        let (wanted, length) = (index.value(row), i64::from(list.value_length(row)));
        let position = match first {
            0 => wanted,
            _ if wanted == 0 => {
                return exec_err!(
                    "[INVALID_INDEX_OF_ZERO] The index 0 is invalid. An index shall be either < 0 or > 0 (the first element has index 1)."
                );
            }
            _ if wanted > 0 => wanted - 1,
            _ => length + wanted,
        };
        if position < 0 || position >= length {
            let class = if first == 0 { "INVALID_ARRAY_INDEX" } else { "INVALID_ARRAY_INDEX_IN_ELEMENT_AT" };
            return exec_err!(
                "[{class}] The index {wanted} is out of bounds. The array has {length} elements. Use try_element_at or a condition on size()."
            );
        }
        let start = list.value_offsets().get(row).copied().unwrap_or(0);
        positions.push(u64::try_from(i64::from(start) + position).ok());
    }
    Ok(take(list.values(), &UInt64Array::from(positions), None)?)
}

fn map_value(base: &ArrayRef, key: &ArrayRef) -> Result<ArrayRef> {
    let map = base.as_map();
    let keys = cast(key, map.keys().data_type())?;
    let mut positions: Vec<Option<u64>> = Vec::with_capacity(map.len());
    for row in 0..map.len() {
        let wanted = ScalarValue::try_from_array(&keys, row)?;
        let mut hit = None;
        if map.is_valid(row) && !wanted.is_null() {
            let start = map.value_offsets().get(row).copied().unwrap_or(0);
            for i in 0..map.value_length(row) {
                let at = usize::try_from(start + i).unwrap_or(0);
                if ScalarValue::try_from_array(map.keys(), at)? == wanted {
                    hit = u64::try_from(at).ok();
                    break;
                }
            }
        }
        positions.push(hit);
    }
    if map.values().is_empty() {
        return Ok(new_null_array(map.values().data_type(), map.len()));
    }
    Ok(take(map.values(), &UInt64Array::from(positions), None)?)
}
