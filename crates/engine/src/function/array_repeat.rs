//! `array_repeat`, within limits: a number in a query cannot ask for all memory.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, UInt64Array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ScalarUDF;

use super::cast::convert;
use super::udf::{Arguments, Call, Function};

/// Bytes and elements that one call may make of one batch.
const MAX_BYTES: usize = 512 << 20;
const MAX_ELEMENTS: usize = 64 << 20;

/// `array_repeat(element, count)`.
pub(crate) fn array_repeat() -> Arc<ScalarUDF> {
    Function { name: "array_repeat", aliases: &[], arity: (2, 2), coerce: None, returns, run }.udf()
}

fn returns(args: &Arguments<'_>) -> Result<DataType> {
    Ok(DataType::List(Arc::new(Field::new_list_field(args.ty(0)?.clone(), true))))
}

fn run(call: &Call) -> Result<ArrayRef> {
    let values = call.arg(0)?;
    let counts = convert(call.arg(1)?, &DataType::Int64, false)?;
    let counts = counts.as_primitive::<Int64Type>();
    let count = |row: usize| if counts.is_null(row) { 0 } else { usize::try_from(counts.value(row)).unwrap_or(0) };
    let elements = (0..counts.len()).map(count).fold(0usize, usize::saturating_add);
    let each = values.get_array_memory_size().div_ceil(values.len().max(1));
    if elements > MAX_ELEMENTS || elements.saturating_mul(each) > MAX_BYTES.max(values.get_array_memory_size()) {
        return exec_err!(
            "[EXCEED_LIMIT_LENGTH] Exceeds the length limitation: the arrays of one batch of rows would have {elements} elements; at most {MAX_ELEMENTS}, in at most {MAX_BYTES} bytes, are allowed. SQLSTATE: 54006"
        );
    }
    let rows: UInt64Array =
        (0..counts.len()).flat_map(|row| std::iter::repeat_n(row as u64, count(row))).collect::<Vec<u64>>().into();
    let offsets = OffsetBuffer::from_lengths((0..counts.len()).map(count));
    let nulls: Option<NullBuffer> = counts.nulls().cloned();
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Ok(Arc::new(ListArray::try_new(item, offsets, take(values, &rows, None)?, nulls)?))
}
