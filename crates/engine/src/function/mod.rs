//! Spark's functions on Arrow columns: DataFusion's, then `datafusion-spark`'s, then ours where Spark differs.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{AggregateUDF, HigherOrderUDF, ScalarUDF};

pub(crate) mod arithmetic;
pub(crate) mod array;
pub(crate) mod array_repeat;
mod average;
pub(crate) mod calendar;
pub(crate) mod cast;
pub(crate) mod catalog;
pub(crate) mod constant;
pub(crate) mod datetime;
pub mod ddl;
pub(crate) mod extremum;
pub(crate) mod field;
mod format;
pub(crate) mod generator;
pub(crate) mod json;
pub(crate) mod lambda;
pub(crate) mod list;
pub(crate) mod math;
pub(crate) mod misc;
pub(crate) mod name;
pub(crate) mod output;
pub(crate) mod pad;
pub(crate) mod percentile;
pub(crate) mod rounding;
mod sequence;
pub(crate) mod string;
pub(crate) mod sum;
pub(crate) mod text;
pub(crate) mod time;
pub(crate) mod udf;
pub(crate) mod window;
pub(crate) mod zone;

/// Registers everything, later ones in place of earlier ones of the same name.
pub fn register_all(registry: &mut dyn FunctionRegistry) -> Result<()> {
    datafusion_spark::register_all(registry)?;
    for function in scalar_functions() {
        registry.register_udf(function)?;
    }
    for function in aggregate_functions() {
        registry.register_udaf(function)?;
    }
    for function in higher_order_functions() {
        registry.register_higher_order_function(function)?;
    }
    Ok(())
}

fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    let mut functions =
        vec![cast::cast(), cast::try_cast(), field::field(), field::item(), field::element_at(), window::window_time()];
    functions.extend(arithmetic::functions());
    functions.extend(array::functions());
    functions.push(array_repeat::array_repeat());
    functions.extend(calendar::functions());
    functions.extend(datetime::functions());
    functions.extend(format::functions());
    functions.extend(json::functions());
    functions.extend(list::functions());
    functions.extend(math::functions());
    functions.extend(misc::functions());
    functions.extend(pad::functions());
    functions.extend(rounding::functions());
    functions.extend(string::functions());
    functions.extend(text::functions());
    functions.extend(zone::functions());
    functions
}

/// Functions that fail for some values, beside those of [`arithmetic`].
const FALLIBLE: &[&str] = &[
    "__cast",
    "__item",
    "element_at",
    "to_timestamp",
    "to_timestamp_ltz",
    "to_timestamp_ntz",
    "to_date",
    "to_unix_timestamp",
    "unix_timestamp",
    "to_number",
    "make_date",
    "make_timestamp",
    "make_interval",
    "make_dt_interval",
    "raise_error",
    "assert_true",
    "round",
    "bround",
    "ceil",
    "floor",
    "date_add",
    "date_sub",
    "add_months",
    "next_day",
    "sequence",
    "parse_url",
    "elt",
    "map",
    "map_from_arrays",
    "repeat",
    "array_repeat",
    "lpad",
    "rpad",
    "space",
    "array_insert",
    "concat",
    "date_part",
    "from_utc_timestamp",
    "to_utc_timestamp",
    "decode",
    "encode",
    "format_string",
    "regexp_replace",
    "replace",
    "split_part",
    "slice",
    "bit_get",
    "getbit",
    "url_decode",
    "unbase64",
    "str_to_map",
    "map_from_entries",
    "from_json",
    "from_utc_timestamp",
    "to_utc_timestamp",
    "__date_field",
];

/// Whether the function of this name has no value for some rows, but an error.
pub(crate) fn can_fail(name: &str) -> bool {
    arithmetic::is_fallible(name) || FALLIBLE.contains(&name)
}

fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    let mut functions = extremum::functions();
    functions.extend(percentile::functions());
    functions.extend(sum::functions());
    functions
}

fn higher_order_functions() -> Vec<Arc<HigherOrderUDF>> {
    lambda::functions()
}
