//! The functions that a query may call: those that mean here what they mean in Spark. What DataFusion registers beside
//! them is material for the planner and has no name in SQL.

/// Sorted.
#[rustfmt::skip]
pub(crate) const NAMES: &[&str] = &[
    "abs", "acos", "acosh", "add_months", "aggregate", "any", "any_value", "approx_count_distinct",
    "approx_percentile", "array", "array_agg", "array_append", "array_compact", "array_contains", "array_distinct",
    "array_except", "array_insert", "array_intersect", "array_join", "array_max", "array_min", "array_position",
    "array_prepend", "array_remove", "array_repeat", "array_size", "array_sort", "array_union", "arrays_overlap",
    "arrays_zip", "ascii", "asin", "asinh", "atan", "atan2", "atanh", "avg", "base64", "bigint", "bin", "binary",
    "bit_and", "bit_count", "bit_get", "bit_length", "bit_or", "bit_xor", "bitmap_bit_position",
    "bitmap_bucket_number", "bitmap_count", "bool_and", "bool_or", "boolean", "bround", "btrim", "cardinality",
    "cast", "cbrt", "ceil", "ceiling", "char", "char_length", "character_length", "chr", "coalesce", "collect_list",
    "collect_set", "concat", "concat_ws", "contains", "corr", "cos", "cosh", "cot", "count", "count_if", "covar_pop",
    "covar_samp", "crc32", "csc", "cume_dist", "curdate", "current_catalog", "current_database", "current_date",
    "current_schema", "current_timestamp", "date", "date_add", "date_diff", "date_format", "date_from_unix_date",
    "date_part", "date_sub", "date_trunc", "dateadd", "datediff", "datepart", "day", "dayname", "dayofmonth",
    "dayofweek", "dayofyear", "decode", "degrees", "dense_rank", "div", "double", "e", "element_at", "elt", "encode",
    "endswith", "equal_null", "every", "exists", "exp", "explode", "explode_outer", "expm1", "extract", "factorial",
    "filter", "find_in_set", "first", "first_value", "flatten", "float", "floor", "forall", "format_string",
    "from_json", "from_unixtime", "from_utc_timestamp", "get", "get_json_object", "getbit", "greatest", "grouping",
    "hex", "hour", "hypot", "if", "ifnull", "ilike", "initcap", "inline", "inline_outer", "instr", "int",
    "is_valid_utf8", "isnan", "isnotnull", "isnull", "lag", "last", "last_day", "last_value", "lcase", "lead",
    "least", "left", "len", "length", "levenshtein", "like", "listagg", "ln", "localtimestamp", "locate", "log",
    "log10", "log1p", "log2", "lower", "lpad", "ltrim", "luhn_check", "make_date", "make_dt_interval",
    "make_interval", "make_valid_utf8", "map", "map_contains_key", "map_entries", "map_from_arrays",
    "map_from_entries", "map_keys", "map_values", "max", "max_by", "mean", "median", "min", "min_by", "minute", "mod",
    "month", "monthname", "months_between", "named_struct", "nanvl", "negative", "next_day", "now", "nth_value",
    "ntile", "nullif", "nullifzero", "nvl", "nvl2", "octet_length", "overlay", "parse_url", "percent_rank",
    "percentile", "percentile_approx", "percentile_cont", "pi", "pmod", "posexplode", "posexplode_outer", "position",
    "positive", "pow", "power", "printf", "quarter", "quote", "radians", "rand", "random", "range", "rank", "reduce",
    "regexp", "regexp_count", "regexp_extract", "regexp_extract_all", "regexp_instr", "regexp_like", "regexp_replace",
    "regexp_substr", "regr_avgx", "regr_avgy", "regr_count", "regr_intercept", "regr_r2", "regr_slope", "regr_sxx",
    "regr_sxy", "regr_syy", "repeat", "replace", "reverse", "right", "rint", "rlike", "round", "row_number", "rpad",
    "rtrim", "schema_of_json", "sec", "second", "sequence", "sha", "sha1", "sha2", "shiftleft", "shiftright",
    "shiftrightunsigned", "shuffle", "sign", "signum", "sin", "sinh", "size", "slice", "some", "sort_array",
    "soundex", "space", "split", "split_part", "sqrt", "startswith", "std", "stddev", "stddev_pop", "stddev_samp",
    "str_to_map", "string", "string_agg", "struct", "substr", "substring", "substring_index", "sum", "tan", "tanh",
    "timestamp", "timestamp_micros", "timestamp_millis", "timestamp_seconds", "to_date", "to_json", "to_timestamp",
    "to_unix_timestamp", "to_utc_timestamp", "transform", "translate", "trim", "trunc", "try_add", "try_divide",
    "try_mod", "try_multiply", "try_parse_url", "try_subtract", "try_sum", "try_to_timestamp", "try_url_decode",
    "typeof", "ucase", "unbase64", "unhex", "unix_date", "unix_micros", "unix_millis", "unix_seconds",
    "unix_timestamp", "upper", "url_decode", "url_encode", "uuid", "var_pop", "var_samp", "variance", "weekday",
    "weekofyear", "width_bucket", "window", "window_time", "xxhash64", "year", "zeroifnull", "zip_with",
];

/// Whether a query may call `name`, in lower case. Of `session_window` the planner says itself that it is not there.
pub(crate) fn is_callable(name: &str) -> bool {
    NAMES.binary_search(&name).is_ok() || name == "session_window"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_of_spark() {
        // What SHOW SYSTEM FUNCTIONS lists in Apache Spark 4.2, without operators.
        let spark: Vec<&str> = include_str!("../../tests/it/data/spark_functions.txt").lines().collect();
        let unknown: Vec<_> = NAMES.iter().filter(|n| !spark.contains(n)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(NAMES.is_sorted());
        assert!(["to_hex", "strpos", "starts_with", "__cast", "epoch"].iter().all(|n| !is_callable(n)));
    }
}
