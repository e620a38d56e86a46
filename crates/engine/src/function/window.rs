//! Event-time windows: `window(ts, size, slide, start)` and `window_time(window)`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StructArray, TimestampMicrosecondArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimestampMicrosecondType};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::ddl::timestamp;
use super::output::check_bytes;
use crate::plan::nodes::{TIME_WINDOW_KEY, WATERMARK_DELAY_KEY};

fn window_fields() -> Fields {
    Fields::from(vec![Field::new("start", timestamp(), true), Field::new("end", timestamp(), true)])
}

/// Rows are multiplied by the number of windows that they fall into; beyond this it is a mistake in the units.
const WINDOWS_PER_ROW_MAX: i64 = 100_000;

/// The windows of a time: one struct when they tumble, a list of structs when they slide. All in microseconds.
pub(crate) fn time_window(size: i64, slide: i64, start: i64) -> Result<ScalarUDF> {
    if size <= 0 || slide <= 0 {
        return plan_err!(
            "[DATATYPE_MISMATCH.VALUE_OUT_OF_RANGE] The window and slide durations of `window` must be positive."
        );
    }
    if slide > size {
        return plan_err!(
            "[DATATYPE_MISMATCH.PARAMETER_CONSTRAINT_VIOLATION] The slide duration ({slide} microseconds) must not exceed the window duration ({size} microseconds)."
        );
    }
    if size / slide > WINDOWS_PER_ROW_MAX {
        return plan_err!(
            "[INVALID_PARAMETER_VALUE.WINDOW] Each row would fall into {} windows: the slide duration ({slide} microseconds) is too short for the window duration ({size} microseconds). At most {WINDOWS_PER_ROW_MAX} windows for a row are allowed.",
            size / slide
        );
    }
    if start.abs() >= slide {
        return plan_err!(
            "[DATATYPE_MISMATCH.PARAMETER_CONSTRAINT_VIOLATION] The absolute value of the start time ({start} microseconds) must be less than the slide duration ({slide} microseconds)."
        );
    }
    Ok(ScalarUDF::new_from_impl(TimeWindow { size, slide, start, signature: Signature::any(1, Volatility::Immutable) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeWindow {
    size: i64,
    slide: i64,
    start: i64,
    signature: Signature,
}

impl TimeWindow {
    /// The latest window start at or before `time`.
    fn last_start(&self, time: i64) -> i64 {
        time.saturating_sub(time.saturating_sub(self.start).rem_euclid(self.slide))
    }
}

impl ScalarUDFImpl for TimeWindow {
    fn name(&self) -> &str {
        "window"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types {
            [DataType::Timestamp(_, _) | DataType::Date32 | DataType::Utf8] => {}
            [other] => {
                return plan_err!(
                    "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] The time of `window` must be a TIMESTAMP, not {}.",
                    super::ddl::type_name(other)
                );
            }
            _ => return plan_err!("window takes one time"),
        }
        let window = DataType::Struct(window_fields());
        if self.size == self.slide {
            return Ok(window);
        }
        Ok(DataType::List(Arc::new(Field::new_list_field(window, true))))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(time) = args.args.first() else { return exec_err!("window needs a time") };
        let time = cast(&time.to_array(args.number_rows)?, &timestamp())?;
        let time = time.as_primitive::<TimestampMicrosecondType>();
        if self.size == self.slide {
            let starts: Vec<i64> = time.values().iter().map(|t| self.last_start(*t)).collect();
            let windows = windows(starts, self.size, time.nulls().cloned())?;
            return Ok(ColumnarValue::Array(Arc::new(windows)));
        }
        let mut starts = Vec::with_capacity(time.len() * 2);
        let mut lengths = Vec::with_capacity(time.len());
        for row in 0..time.len() {
            let before = starts.len();
            if time.is_valid(row) {
                let t = time.value(row);
                let mut start = self.last_start(t);
                while start > t.saturating_sub(self.size) {
                    starts.push(start);
                    start = start.saturating_sub(self.slide);
                }
                check_bytes("window", starts.len().saturating_mul(2 * size_of::<i64>()))?;
            }
            lengths.push(starts.len() - before);
        }
        let windows = windows(starts, self.size, None)?;
        let item = Arc::new(Field::new_list_field(windows.data_type().clone(), true));
        let list = ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(windows), None)?;
        Ok(ColumnarValue::Array(Arc::new(list)))
    }
}

fn windows(starts: Vec<i64>, size: i64, nulls: Option<arrow::buffer::NullBuffer>) -> Result<StructArray> {
    let ends: Vec<i64> = starts.iter().map(|s| s.saturating_add(size)).collect();
    let column =
        |values: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) };
    Ok(StructArray::try_new(window_fields(), vec![column(starts), column(ends)], nulls)?)
}

/// Marks a struct as a time window (and carries the watermark's delay on), as the runtime looks for it.
pub(crate) fn tag_window(delay_ms: Option<String>) -> ScalarUDF {
    ScalarUDF::new_from_impl(TagWindow { delay_ms, signature: Signature::any(1, Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TagWindow {
    delay_ms: Option<String>,
    signature: Signature,
}

impl ScalarUDFImpl for TagWindow {
    fn name(&self) -> &str {
        "__time_window"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types {
            [ty] => Ok(ty.clone()),
            _ => plan_err!("one window is tagged at a time"),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let Some(field) = args.arg_fields.first() else { return plan_err!("no window to tag") };
        let mut metadata = std::collections::HashMap::from([(TIME_WINDOW_KEY.to_owned(), "true".to_owned())]);
        if let Some(delay) = &self.delay_ms {
            metadata.insert(WATERMARK_DELAY_KEY.to_owned(), delay.clone());
        }
        Ok(Arc::new(Field::new("window", field.data_type().clone(), false).with_metadata(metadata)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.into_iter().next() {
            Some(value) => Ok(value),
            None => exec_err!("no window to tag"),
        }
    }
}

/// `window_time(window)`: the window's end less one microsecond, the event time of an aggregated row.
pub(crate) fn window_time() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::new_from_impl(WindowTime { signature: Signature::any(1, Volatility::Immutable) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct WindowTime {
    signature: Signature,
}

impl ScalarUDFImpl for WindowTime {
    fn name(&self) -> &str {
        "window_time"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(timestamp())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let Some(field) = args.arg_fields.first() else { return plan_err!("window_time needs a window") };
        if !matches!(field.data_type(), DataType::Struct(fields) if fields.find("end").is_some()) {
            return plan_err!("[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] window_time needs the column of window(...).");
        }
        let delay = field.metadata().get(WATERMARK_DELAY_KEY).map(|d| (WATERMARK_DELAY_KEY.to_owned(), d.clone()));
        Ok(Arc::new(Field::new("window_time", timestamp(), true).with_metadata(delay.into_iter().collect())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(window) = args.args.first() else { return exec_err!("window_time needs a window") };
        let window = window.to_array(args.number_rows)?;
        let end = cast(&super::field::struct_field(&window, "end")?, &timestamp())?;
        let end = end.as_primitive::<TimestampMicrosecondType>();
        let time: TimestampMicrosecondArray = end.unary(|t| t - 1);
        Ok(ColumnarValue::Array(Arc::new(time.with_timezone("UTC"))))
    }
}
