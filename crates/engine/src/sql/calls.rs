//! Spark's functions that are other functions, operators or constants here.

use sqlparser::ast::{Expr, TrimWhereField};

use super::ast::{call, string};
use super::number;

/// What a call of `name` stands for, when it is not a function of its own.
pub(super) fn plain(name: &str, args: &[Expr]) -> Option<Expr> {
    let cast = |e: Expr, ty: &str| call("__cast", vec![e, string(ty)]);
    let one = || number::carry("1");
    let made = match (name, args) {
        ("string" | "int" | "bigint" | "double" | "float" | "boolean" | "date" | "timestamp" | "binary", [e]) => {
            cast(e.clone(), name)
        }
        ("isnull", [e]) => Expr::IsNull(Box::new(e.clone())),
        ("isnotnull", [e]) => Expr::IsNotNull(Box::new(e.clone())),
        ("equal_null", [a, b]) => Expr::IsNotDistinctFrom(Box::new(a.clone()), Box::new(b.clone())),
        ("nullifzero", [e]) => call("nullif", vec![e.clone(), number::carry("0")]),
        ("zeroifnull", [e]) => call("coalesce", vec![e.clone(), number::carry("0")]),
        ("positive", [e]) => e.clone(),
        ("e", []) => number::carry(&format!("{}D", std::f64::consts::E)),
        ("year" | "quarter" | "month" | "day" | "hour" | "minute" | "second", [e]) => field(name, e),
        ("dayofmonth", [e]) => field("day", e),
        ("dayofyear", [e]) => field("doy", e),
        ("weekofyear", [e]) => field("week", e),
        ("dayofweek", [e]) => field("dayofweek", e),
        ("dayname", [e]) => call("date_format", vec![e.clone(), string("EEE")]),
        ("datepart", [field, e]) => call("date_part", vec![field.clone(), e.clone()]),
        ("date_from_unix_date", [days]) => call("date_add", vec![cast(string("1970-01-01"), "DATE"), days.clone()]),
        ("now" | "current_timestamp", []) => cast(call("current_timestamp", Vec::new()), "TIMESTAMP"),
        ("localtimestamp", []) => cast(call("current_timestamp", Vec::new()), "TIMESTAMP_NTZ"),
        ("curdate", []) => call("current_date", Vec::new()),
        ("current_catalog", []) => string("spark_catalog"),
        ("current_schema" | "current_database", []) => string("default"),
        ("position" | "locate", [part, whole]) => call("__locate", vec![part.clone(), whole.clone(), one()]),
        ("position" | "locate", [part, whole, from]) => {
            call("__locate", vec![part.clone(), whole.clone(), from.clone()])
        }
        ("instr", [whole, part]) => call("__locate", vec![part.clone(), whole.clone(), one()]),
        // What is trimmed comes first.
        ("trim", [text]) => call("btrim", vec![text.clone()]),
        ("trim", [what, text]) => call("btrim", vec![text.clone(), what.clone()]),
        ("ltrim" | "rtrim", [what, text]) => call(name, vec![text.clone(), what.clone()]),
        _ => return None,
    };
    Some(made)
}

fn field(name: &str, of: &Expr) -> Expr {
    call("__date_field", vec![string(name), of.clone()])
}

/// The function that Spark's other name of it stands for.
pub(super) fn other_name(name: &str) -> Option<&'static str> {
    Some(match name {
        "first" | "any_value" => "first_value",
        "last" => "last_value",
        "nvl" | "ifnull" => "coalesce",
        "mean" => "avg",
        "std" => "stddev",
        "variance" => "var_samp",
        "every" => "bool_and",
        "some" | "any" => "bool_or",
        "ucase" => "upper",
        "lcase" => "lower",
        "sign" => "signum",
        "char" => "chr",
        "reduce" => "aggregate",
        "cardinality" => "size",
        "regexp" | "regexp_like" => "rlike",
        "ceiling" => "ceil",
        "array_agg" => "collect_list",
        "listagg" => "string_agg",
        "to_unix_timestamp" => "unix_timestamp",
        _ => return None,
    })
}

/// `TRIM(BOTH x FROM y)` and its like, as Spark shows it.
pub(super) fn shown_trim(which: Option<TrimWhereField>, what: Option<String>, text: &str) -> String {
    let (side, function) = match which {
        Some(TrimWhereField::Leading) => ("LEADING", "ltrim"),
        Some(TrimWhereField::Trailing) => ("TRAILING", "rtrim"),
        _ => ("BOTH", "trim"),
    };
    match what {
        Some(what) => format!("TRIM({side} {what} FROM {text})"),
        None => format!("{function}({text})"),
    }
}
