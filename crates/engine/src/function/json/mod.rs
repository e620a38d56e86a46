//! `from_json` and `to_json`.
//!
//! [`decode`] goes from texts to Arrow columns by a schema in one pass, without a value tree in between; [`scan`] reads
//! tokens, [`column`] collects them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::ScalarUDF;

use super::ddl::{parse_schema, type_name};
use super::udf::{Arguments, Call, Function};

mod column;
pub(crate) mod decode;
mod encode;
mod path;
mod scan;

use decode::{JsonOptions, decode};

/// The functions of this module.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Function {
            name: "from_json",
            aliases: &[],
            arity: (2, 3),
            coerce: None,
            returns: from_json_type,
            run: from_json,
        }
        .udf(),
        Function {
            name: "to_json",
            aliases: &[],
            arity: (1, 2),
            coerce: None,
            returns: encode::to_json_type,
            run: encode::to_json,
        }
        .udf(),
        Function {
            name: "get_json_object",
            aliases: &[],
            arity: (2, 2),
            coerce: None,
            returns: |_| Ok(DataType::Utf8),
            run: path::get_json_object,
        }
        .udf(),
        Function {
            name: "schema_of_json",
            aliases: &[],
            arity: (1, 1),
            coerce: None,
            returns: |_| Ok(DataType::Utf8),
            run: encode::schema_of_json,
        }
        .udf(),
    ]
}

fn from_json_type(args: &Arguments<'_>) -> Result<DataType> {
    if !matches!(args.ty(0)?, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null) {
        return plan_err!(
            "[DATATYPE_MISMATCH.UNEXPECTED_INPUT_TYPE] Cannot resolve from_json: the first parameter requires the \"STRING\" type, but has the type \"{}\". Use CAST(value AS STRING).",
            type_name(args.ty(0)?)
        );
    }
    let text = args.text(1)?;
    match parse_schema(&text) {
        Ok(ty @ (DataType::Struct(_) | DataType::List(_) | DataType::Map(_, _))) => {
            column::Column::new(&ty)?;
            Ok(nullable(&ty))
        }
        Ok(other) => plan_err!(
            "[INVALID_SCHEMA.NON_STRUCT_TYPE] The input expression of from_json must be a STRUCT, ARRAY or MAP, but got {}.",
            type_name(&other)
        ),
        // Spark reads a schema's text as SQL: what is wrong with it is a syntax error.
        Err(error) => plan_err!("[PARSE_SYNTAX_ERROR] {}", error.to_string().replace("[INVALID_SCHEMA] ", "")),
    }
}

/// JSON may lack any field, so every field of the result may be null (`NOT NULL` in the schema is not enforced).
fn nullable(ty: &DataType) -> DataType {
    match ty {
        DataType::Struct(fields) => DataType::Struct(
            fields.iter().map(|f| Arc::new(f.as_ref().clone().with_nullable(true))).collect::<Vec<_>>().into(),
        ),
        other => other.clone(),
    }
}

fn from_json(call: &Call) -> Result<ArrayRef> {
    let texts = arrow::compute::cast(call.arg(0)?, &DataType::Utf8)?;
    let options = match call.args.get(2) {
        Some(map) if !map.is_empty() => {
            let map = map.as_map();
            let entries = map.value(0);
            let (keys, values) = (entries.column(0), entries.column(1));
            let (keys, values) = (keys.as_string::<i32>(), values.as_string::<i32>());
            JsonOptions::parse((0..keys.len()).map(|i| (keys.value(i), values.value(i))))?
        }
        _ => JsonOptions::default(),
    };
    decode(texts.as_string::<i32>(), &call.return_type, &options)
}
