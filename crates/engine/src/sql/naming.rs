//! The names that Spark gives to columns without an alias: `sum(x)`, `(a + 1)`, `CAST(v AS STRING)`.

use sqlparser::ast::{
    AccessExpr, BinaryOperator, CastKind, CeilFloorKind, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArguments, Subscript, TrimWhereField, UnaryOperator, Value,
};

use super::calls;

/// Spark's name for a projected expression. `qualifiers` are the tables of the query, which names leave out.
pub(crate) fn column_name(expr: &Expr, qualifiers: &[String]) -> String {
    match expr {
        Expr::Identifier(name) if name.value == "__window" => "window".to_owned(),
        Expr::CompoundIdentifier(parts) => parts.last().map(|p| p.value.clone()).unwrap_or_default(),
        // A cast column keeps its name.
        Expr::Cast { expr, .. } if matches!(expr.as_ref(), Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => {
            column_name(expr, qualifiers)
        }
        Expr::CompoundFieldAccess { access_chain, .. } => match access_chain.last() {
            Some(AccessExpr::Dot(Expr::Identifier(name))) => name.value.clone(),
            _ => pretty(expr, qualifiers),
        },
        _ => pretty(expr, qualifiers),
    }
}

fn pretty(expr: &Expr, q: &[String]) -> String {
    match expr {
        Expr::Identifier(name) => name.value.clone(),
        Expr::CompoundIdentifier(parts) => {
            let names: Vec<&str> = parts.iter().map(|p| p.value.as_str()).collect();
            match names.split_first() {
                Some((first, rest)) if q.iter().any(|t| t.eq_ignore_ascii_case(first)) => rest.join("."),
                _ => names.join("."),
            }
        }
        Expr::CompoundFieldAccess { root, access_chain } => {
            let chain: String = access_chain
                .iter()
                .map(|access| match access {
                    AccessExpr::Dot(e) => format!(".{}", pretty(e, q)),
                    AccessExpr::Subscript(Subscript::Index { index }) => format!("[{}]", pretty(index, q)),
                    AccessExpr::Subscript(other) => other.to_string(),
                })
                .collect();
            format!("{}{chain}", pretty(root, q))
        }
        Expr::Nested(inner) => pretty(inner, q),
        Expr::Value(value) => literal(&value.value),
        Expr::Function(function) => function_name(function, q),
        Expr::Cast { kind, expr, data_type, .. } => {
            let name = if matches!(kind, CastKind::TryCast | CastKind::SafeCast) { "TRY_CAST" } else { "CAST" };
            format!("{name}({} AS {})", pretty(expr, q), data_type.to_string().to_uppercase())
        }
        Expr::BinaryOp { left, op, right } => {
            let op = match op {
                BinaryOperator::NotEq => {
                    return format!("(NOT ({} = {}))", pretty(left, q), pretty(right, q));
                }
                BinaryOperator::StringConcat => {
                    return format!("concat({}, {})", pretty(left, q), pretty(right, q));
                }
                BinaryOperator::MyIntegerDivide => "div".to_owned(),
                other => other.to_string(),
            };
            format!("({} {op} {})", pretty(left, q), pretty(right, q))
        }
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match expr.as_ref() {
            Expr::Value(value) => format!("-{}", literal(&value.value)),
            other => format!("(- {})", pretty(other, q)),
        },
        Expr::UnaryOp { op: UnaryOperator::Not | UnaryOperator::BangNot, expr } => format!("(NOT {})", pretty(expr, q)),
        _ => pretty_predicate(expr, q),
    }
}

fn pretty_predicate(expr: &Expr, q: &[String]) -> String {
    match expr {
        Expr::IsNull(e) => format!("({} IS NULL)", pretty(e, q)),
        Expr::IsNotNull(e) => format!("({} IS NOT NULL)", pretty(e, q)),
        Expr::InList { expr, list, negated } => {
            let list: Vec<String> = list.iter().map(|e| pretty(e, q)).collect();
            let text = format!("({} IN ({}))", pretty(expr, q), list.join(", "));
            if *negated { format!("(NOT {text})") } else { text }
        }
        Expr::Between { expr, negated, low, high } => {
            let e = pretty(expr, q);
            let text = format!("(({e} >= {}) AND ({e} <= {}))", pretty(low, q), pretty(high, q));
            if *negated { format!("(NOT {text})") } else { text }
        }
        Expr::Like { expr, pattern, negated, .. } => {
            let text = format!("{} LIKE {}", pretty(expr, q), pretty(pattern, q));
            if *negated { format!("(NOT {text})") } else { text }
        }
        Expr::Case { operand, conditions, else_result, .. } => {
            let mut text = "CASE".to_owned();
            let operand = operand.as_ref().map(|o| pretty(o, q));
            for when in conditions {
                let condition = match &operand {
                    Some(operand) => format!("({operand} = {})", pretty(&when.condition, q)),
                    None => pretty(&when.condition, q),
                };
                text.push_str(&format!(" WHEN {condition} THEN {}", pretty(&when.result, q)));
            }
            if let Some(e) = else_result {
                text.push_str(&format!(" ELSE {}", pretty(e, q)));
            }
            text + " END"
        }
        Expr::Substring { expr, substring_from, substring_for, shorthand, .. } => {
            let from = substring_from.as_ref().map_or("1".to_owned(), |e| pretty(e, q));
            let length = substring_for.as_ref().map_or("2147483647".to_owned(), |e| pretty(e, q));
            let name = if *shorthand { "substr" } else { "substring" };
            format!("{name}({}, {from}, {length})", pretty(expr, q))
        }
        Expr::Floor { expr, field } => rounded("floor", pretty(expr, q), field),
        Expr::Ceil { expr, field } => rounded("ceil", pretty(expr, q), field),
        Expr::Position { expr, r#in } => format!("locate({}, {}, 1)", pretty(expr, q), pretty(r#in, q)),
        Expr::Extract { field, expr, .. } => format!("extract({field} FROM {})", pretty(expr, q)),
        Expr::ILike { expr, pattern, negated: false, .. } => {
            format!("ilike({}, {})", pretty(expr, q), pretty(pattern, q))
        }
        Expr::RLike { expr, pattern, negated: false, .. } => {
            format!("RLIKE({}, {})", pretty(expr, q), pretty(pattern, q))
        }
        Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } => {
            let length = overlay_for.as_ref().map_or("-1".to_owned(), |e| pretty(e, q));
            format!("overlay({}, {}, {}, {length})", pretty(expr, q), pretty(overlay_what, q), pretty(overlay_from, q))
        }
        Expr::Trim { expr, trim_where, trim_what, .. } => {
            let what = trim_what.as_ref().map(|e| pretty(e, q));
            calls::shown_trim(*trim_where, what, &pretty(expr, q))
        }
        Expr::Struct { values, .. } => {
            let values: Vec<String> = values.iter().map(|v| pretty(v, q)).collect();
            format!("struct({})", values.join(", "))
        }
        Expr::Named { expr, name } => format!("{} AS {}", pretty(expr, q), name.value),
        Expr::Subquery(_) => "scalarsubquery()".to_owned(),
        other => other.to_string(),
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::SingleQuotedString(s) | Value::DoubleQuotedString(s) => s.clone(),
        Value::Null => "NULL".to_owned(),
        Value::Boolean(b) => b.to_string(),
        Value::Number(n, _) => super::number::shown(n),
        other => other.to_string(),
    }
}

fn rounded(name: &str, argument: String, kind: &CeilFloorKind) -> String {
    match kind {
        CeilFloorKind::Scale(digits) => format!("{name}({argument}, {})", literal(&digits.value)),
        CeilFloorKind::DateTimeField(_) => format!("{}({argument})", name.to_uppercase()),
    }
}

/// Functions whose names Spark shows in capitals.
const CAPITALS: [&str; 33] = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "cos",
    "cosh",
    "cot",
    "csc",
    "degrees",
    "e",
    "exp",
    "expm1",
    "hypot",
    "log",
    "log10",
    "log1p",
    "log2",
    "pi",
    "power",
    "radians",
    "regexp",
    "regexp_like",
    "rlike",
    "sec",
    "signum",
    "sin",
    "sinh",
    "sqrt",
    "tan",
];

/// Functions that Spark shows under another name than the one called.
fn shown_name(name: &str, args: usize) -> String {
    match name {
        "array_agg" => "collect_list".to_owned(),
        "curdate" => "current_date".to_owned(),
        "current_database" => "current_schema".to_owned(),
        "dateadd" => "date_add".to_owned(),
        "random" => "rand".to_owned(),
        "tanh" => "TANH".to_owned(),
        "ceil" | "floor" if args == 1 => name.to_ascii_uppercase(),
        name if CAPITALS.contains(&name) => name.to_ascii_uppercase(),
        lower => lower.to_owned(),
    }
}

/// The comparator of `array_sort` without one.
const NATURAL_ORDER: &str = "lambdafunction((IF(((namedlambdavariable() IS NULL) AND (namedlambdavariable() IS NULL)), 0, (IF((namedlambdavariable() IS NULL), 1, (IF((namedlambdavariable() IS NULL), -1, (IF((namedlambdavariable() < namedlambdavariable()), -1, (IF((namedlambdavariable() > namedlambdavariable()), 1, 0)))))))))), namedlambdavariable(), namedlambdavariable())";

const INTERVAL_PARTS: &[&str] = &["0", "0", "0", "0", "0", "0", "0.000000"];

/// The arguments that have a default; Spark shows them, too.
fn defaults(name: &str, args: usize) -> &'static [&'static str] {
    match (name, args) {
        ("percentile_approx" | "approx_percentile", 2) => &["10000"],
        ("percentile" | "position" | "locate" | "regexp_extract" | "regexp_extract_all", 2) => &["1"],
        ("regexp_replace", 3) => &["1"],
        ("round" | "bround", 1) | ("regexp_instr", 2) => &["0"],
        ("months_between", 2) | ("sort_array", 1) => &["true"],
        ("lpad" | "rpad", 2) => &[" "],
        ("replace", 2) => &[""],
        ("split", 2) | ("overlay", 3) => &["-1"],
        ("str_to_map", 1) => &[",", ":"],
        ("str_to_map", 2) => &[":"],
        ("from_unixtime" | "unix_timestamp" | "to_unix_timestamp", 1) => &["yyyy-MM-dd HH:mm:ss"],
        ("substr" | "substring", 2) => &["2147483647"],
        ("make_interval", given) => INTERVAL_PARTS.get(given..).unwrap_or_default(),
        ("make_dt_interval", given) => INTERVAL_PARTS.get(given + 3..).unwrap_or_default(),
        ("aggregate" | "reduce", 3) => &["lambdafunction(namedlambdavariable(), namedlambdavariable())"],
        ("array_sort", 1) => &[NATURAL_ORDER],
        _ => &[],
    }
}

fn function_name(function: &Function, q: &[String]) -> String {
    let called = super::ast::function_name(&function.name);
    let FunctionArguments::List(list) = &function.args else { return format!("{}()", shown_name(&called, 0)) };
    if called == "count" && list.args.iter().all(|a| matches!(a, FunctionArg::Unnamed(FunctionArgExpr::Wildcard))) {
        return "count(1)".to_owned();
    }
    let mut args: Vec<String> = list
        .args
        .iter()
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Lambda(lambda))) => {
                let params: Vec<String> = lambda.params.iter().map(|p| p.name.value.clone()).collect();
                let variables = vec!["namedlambdavariable()"; params.len()].join(", ");
                format!("lambdafunction({}, {variables})", pretty_lambda(&lambda.body, &params, q))
            }
            FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => pretty(e, q),
            other => other.to_string(),
        })
        .collect();
    if let Some(shown) = as_operator(&called, &args) {
        return shown;
    }
    let name = shown_name(&called, args.len());
    args.extend(defaults(&called, args.len()).iter().map(|d| (*d).to_owned()));
    let distinct = if list.duplicate_treatment.is_some() { "DISTINCT " } else { "" };
    format!("{name}({distinct}{})", args.join(", "))
}

/// Calls that Spark does not show as calls of their name.
fn as_operator(name: &str, args: &[String]) -> Option<String> {
    match (name, args) {
        ("if", [..]) => Some(format!("(IF({}))", args.join(", "))),
        ("log", [x]) => Some(format!("LOG(E(), {x})")),
        ("isnull", [x]) => Some(format!("({x} IS NULL)")),
        ("isnotnull", [x]) => Some(format!("({x} IS NOT NULL)")),
        ("like", [text, pattern]) => Some(format!("{text} LIKE {pattern}")),
        ("positive", [x]) => Some(format!("(+ {x})")),
        ("datepart", [field, x]) => Some(format!("datepart({field} FROM {x})")),
        ("trim", [what, text]) => Some(calls::shown_trim(None, Some(what.clone()), text)),
        ("ltrim", [what, text]) => Some(calls::shown_trim(Some(TrimWhereField::Leading), Some(what.clone()), text)),
        ("rtrim", [what, text]) => Some(calls::shown_trim(Some(TrimWhereField::Trailing), Some(what.clone()), text)),
        _ => None,
    }
}

fn pretty_lambda(body: &Expr, params: &[String], q: &[String]) -> String {
    let mut body = body.clone();
    let _ = sqlparser::ast::visit_expressions_mut(&mut body, |e: &mut Expr| {
        if let Expr::Identifier(name) = e
            && params.contains(&name.value)
        {
            name.value = "namedlambdavariable()".to_owned();
        }
        std::ops::ControlFlow::<()>::Continue(())
    });
    pretty(&body, q)
}
