//! Limits of what a function may make of one batch of rows, so that a number in a query cannot ask for all memory.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringBuilder};
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
