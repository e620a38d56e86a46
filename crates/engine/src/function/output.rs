//! Limits of what a function may make of one batch of rows, so that a number in a query cannot ask for all memory.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder, UInt64Array};
use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ColumnarValue;

/// Bytes that one call may make of one batch.
pub(crate) const MAX_BYTES: usize = 1 << 30;

/// Fails when a call would make more than [`MAX_BYTES`].
pub(crate) fn check_bytes(function: &str, bytes: usize) -> Result<()> {
    if bytes > MAX_BYTES {
        return exec_err!(
            "[EXCEED_LIMIT_LENGTH] Exceeds the length limitation: the values of `{function}` for one batch of rows would take {bytes} bytes or more; at most {MAX_BYTES} are allowed. SQLSTATE: 54006"
        );
    }
    Ok(())
}

/// An argument as an array; a constant is written out for every row, as long as it fits.
pub(crate) fn rows_of(function: &str, value: &ColumnarValue, rows: usize) -> Result<ArrayRef> {
    if let ColumnarValue::Scalar(scalar) = value
        && (scalar.data_type().is_nested() || matches!(scalar.data_type(), DataType::Utf8 | DataType::Binary))
    {
        check_bytes(function, scalar.size().saturating_mul(rows))?;
    }
    value.to_array(rows)
}

/// How many of `rows` can be taken from the columns together, one at least, when those may have about so many bytes.
pub(crate) fn fitting_rows(columns: &[ArrayRef], rows: &UInt64Array, bytes: usize) -> usize {
    let widths: Vec<usize> = match columns.first() {
        Some(first) => (0..first.len()).map(|row| columns.iter().map(|c| value_bytes(c.as_ref(), row)).sum()).collect(),
        None => return rows.len(),
    };
    let mut left = bytes;
    for (count, row) in rows.values().iter().enumerate() {
        let width = usize::try_from(*row).ok().and_then(|row| widths.get(row)).copied().unwrap_or(0);
        if width > left && count > 0 {
            return count;
        }
        left = left.saturating_sub(width);
    }
    rows.len()
}

/// About what a value takes in a column.
fn value_bytes(array: &dyn Array, row: usize) -> usize {
    if let Some(width) = array.data_type().primitive_width() {
        return width;
    }
    let length = |length: i32| usize::try_from(length).unwrap_or(0);
    let items = |values: &ArrayRef, start: i32, count: i32| match values.data_type().primitive_width() {
        Some(width) => length(count).saturating_mul(width),
        None => (length(start)..length(start) + length(count)).map(|item| value_bytes(values.as_ref(), item)).sum(),
    };
    let own = match array.data_type() {
        DataType::Utf8 => length(array.as_string::<i32>().value_length(row)),
        DataType::Binary => length(array.as_binary::<i32>().value_length(row)),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            items(list.values(), list.value_offsets().get(row).copied().unwrap_or(0), list.value_length(row))
        }
        DataType::Map(_, _) => {
            let map = array.as_map();
            let start = map.value_offsets().get(row).copied().unwrap_or(0);
            items(map.keys(), start, map.value_length(row)) + items(map.values(), start, map.value_length(row))
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(|field| value_bytes(field.as_ref(), row)).sum(),
        _ => 16,
    };
    own + size_of::<i32>()
}

/// Texts that a function writes, limited in all.
pub(crate) struct TextOutput {
    builder: StringBuilder,
    bytes: usize,
    function: &'static str,
}

impl TextOutput {
    pub(crate) fn new(function: &'static str, rows: usize) -> Self {
        TextOutput { builder: StringBuilder::with_capacity(rows, 0), bytes: 0, function }
    }

    /// Fails when `more` bytes would be too many.
    pub(crate) fn check(&self, more: usize) -> Result<()> {
        check_bytes(self.function, self.bytes.saturating_add(more))
    }

    pub(crate) fn push(&mut self, text: &str) -> Result<()> {
        self.check(text.len())?;
        self.bytes += text.len();
        self.builder.append_value(text);
        Ok(())
    }

    pub(crate) fn push_null(&mut self) {
        self.builder.append_null();
    }

    pub(crate) fn finish(mut self) -> ArrayRef {
        Arc::new(self.builder.finish())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, ListArray, StringArray, StructArray};
    use arrow::datatypes::{Field, Int64Type};

    use super::*;

    #[test]
    fn rows_fit_by_what_is_in_them() {
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([
            Some(vec![Some(1); 10]),
            None,
            Some(vec![Some(1); 1_000]),
        ]);
        let texts = StringArray::from(vec!["", "ab", "abcdef"]);
        let fields = vec![Field::new("l", list.data_type().clone(), true)];
        let nested = StructArray::new(fields.into(), vec![Arc::new(list)], None);
        let columns: Vec<ArrayRef> = vec![Arc::new(nested), Arc::new(texts), Arc::new(Int64Array::from(vec![1, 2, 3]))];
        let fitting = |rows: Vec<u64>, bytes| fitting_rows(&columns, &rows.into(), bytes);
        assert_eq!([fitting(vec![0; 100], 1_000), fitting(vec![1; 100], 1_000)], [10, 45]);
        assert_eq!([fitting(vec![2; 5], 1_000), fitting(vec![0, 0, 2], 9_000), fitting(vec![], 0)], [1, 3, 0]);
        assert_eq!(fitting_rows(&[], &vec![0; 7].into(), 0), 7);
    }
}
