//! `format_string`: that of `datafusion-spark`, with a limit of what one batch of rows may take.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, Field};
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};

use super::cast::convert;
use super::output::check_bytes;
use super::string::texts;
use super::udf::{Call, Function};

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let format = Function {
        name: "format_string",
        aliases: &["printf"],
        arity: (1, usize::MAX),
        coerce: None,
        returns: |_| Ok(DataType::Utf8),
        run: format_string,
    };
    vec![format.udf()]
}

fn format_string(call: &Call) -> Result<ArrayRef> {
    let formats = texts(call, 0)?;
    let bytes = formats.iter().flatten().fold(0usize, |sum, format| sum.saturating_add(widths(format)));
    check_bytes(call.name, bytes)?;
    let mut args = vec![ColumnarValue::Array(Arc::new(formats))];
    args.extend(call.args.iter().skip(1).map(|a| ColumnarValue::Array(Arc::clone(a))));
    let fields = args.iter().map(|a| Arc::new(Field::new("argument", a.data_type(), true))).collect();
    let rows = call.arg(0)?.len();
    let formatted = datafusion_spark::function::string::format_string().invoke_with_args(ScalarFunctionArgs {
        args,
        arg_fields: fields,
        number_rows: rows,
        return_field: Arc::new(Field::new(call.name, DataType::Utf8, true)),
        config_options: Arc::new(ConfigOptions::default()),
    })?;
    convert(&formatted.into_array(rows)?, &DataType::Utf8, false)
}

/// The sum of the widths and precisions that a format asks for.
fn widths(format: &str) -> usize {
    let mut sum = 0usize;
    for rest in format.split('%').skip(1) {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || "-#+ 0,(.$<".contains(c))).unwrap_or(rest.len());
        for digits in rest.get(..end).unwrap_or_default().split(|c: char| !c.is_ascii_digit()) {
            if !digits.is_empty() {
                sum = sum.saturating_add(digits.parse().unwrap_or(usize::MAX));
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_read_from_the_format() {
        assert_eq!(widths("%d %5.2f|%-7s 100"), 14);
        assert_eq!(widths("%999999999d"), 999_999_999);
        assert_eq!(widths("%99999999999999999999999d"), usize::MAX);
    }
}
