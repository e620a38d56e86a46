//! `to_json`, `get_json_object` and `schema_of_json`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_err, plan_err};
use serde_json::Value;

use crate::format::cell::utc;
use crate::format::json::write_json;
use crate::function::ddl::type_name;
use crate::function::udf::{Arguments, Call};

pub(super) fn to_json_type(args: &Arguments<'_>) -> Result<DataType> {
    match args.ty(0)? {
        DataType::Struct(_) | DataType::List(_) | DataType::Map(_, _) => Ok(DataType::Utf8),
        other => plan_err!(
            "[DATATYPE_MISMATCH.INVALID_JSON_SCHEMA] to_json needs a STRUCT, an ARRAY or a MAP, not {}.",
            type_name(other)
        ),
    }
}

/// One JSON text for each value; null fields of structs are left out.
pub(super) fn to_json(call: &Call) -> Result<ArrayRef> {
    let values = call.arg(0)?;
    let mut builder = StringBuilder::with_capacity(values.len(), values.len() * 64);
    let mut text = String::new();
    let zone = utc();
    for row in 0..values.len() {
        if values.is_null(row) {
            builder.append_null();
            continue;
        }
        text.clear();
        write_json(&mut text, values.as_ref(), row, zone);
        builder.append_value(&text);
    }
    Ok(Arc::new(builder.finish()))
}

/// The schema of a JSON text, as `schema_of_json` prints it.
pub(super) fn schema_of_json(call: &Call) -> Result<ArrayRef> {
    let texts = call.arg(0)?.as_string::<i32>();
    let mut builder = StringBuilder::new();
    for text in texts {
        match text.map(serde_json::from_str::<Value>) {
            Some(Ok(value)) => builder.append_value(schema_of(&value)),
            Some(Err(_)) => {
                return exec_err!("[MALFORMED_RECORD_IN_PARSING.WITHOUT_SUGGESTION] schema_of_json needs a JSON text");
            }
            None => builder.append_null(),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn schema_of(value: &Value) -> String {
    match value {
        Value::Null | Value::String(_) => "STRING".to_owned(),
        Value::Bool(_) => "BOOLEAN".to_owned(),
        Value::Number(n) if n.is_i64() => "BIGINT".to_owned(),
        Value::Number(_) => "DOUBLE".to_owned(),
        Value::Array(items) => format!("ARRAY<{}>", items.first().map_or_else(|| "STRING".to_owned(), schema_of)),
        Value::Object(fields) => {
            let mut parts: Vec<String> = fields.iter().map(|(k, v)| format!("{k}: {}", schema_of(v))).collect();
            parts.sort();
            format!("STRUCT<{}>", parts.join(", "))
        }
    }
}
