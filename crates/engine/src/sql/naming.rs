//! The names that Spark gives to columns without an alias: `sum(x)`, `(a + 1)`, `CAST(v AS STRING)`.

use sqlparser::ast::{
    AccessExpr, BinaryOperator, CastKind, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Subscript,
    UnaryOperator, Value,
};

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
        Expr::Substring { expr, substring_from, substring_for, .. } => {
            let from = substring_from.as_ref().map_or("1".to_owned(), |e| pretty(e, q));
            let length = substring_for.as_ref().map_or("2147483647".to_owned(), |e| pretty(e, q));
            format!("substring({}, {from}, {length})", pretty(expr, q))
        }
        Expr::Floor { expr, .. } => format!("FLOOR({})", pretty(expr, q)),
        Expr::Ceil { expr, .. } => format!("CEIL({})", pretty(expr, q)),
        Expr::Trim { expr, .. } => format!("trim({})", pretty(expr, q)),
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

/// Functions that Spark shows under another name than the one called.
fn shown_name(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "mean" => "avg".to_owned(),
        "len" | "char_length" | "character_length" => "length".to_owned(),
        "if" => "IF".to_owned(),
        "ceil" | "floor" => name.to_ascii_uppercase(),
        "sqrt" => "SQRT".to_owned(),
        "hypot" => "HYPOT".to_owned(),
        "sin" | "cos" | "tan" | "asin" | "acos" | "atan" | "exp" | "log10" | "log2" | "cbrt" => {
            name.to_ascii_uppercase()
        }
        "log" => "ln".to_owned(),
        lower => lower.to_owned(),
    }
}

fn function_name(function: &Function, q: &[String]) -> String {
    let name = shown_name(&super::ast::function_name(&function.name));
    let FunctionArguments::List(list) = &function.args else { return format!("{name}()") };
    if name == "count" && list.args.iter().all(|a| matches!(a, FunctionArg::Unnamed(FunctionArgExpr::Wildcard))) {
        return "count(1)".to_owned();
    }
    let args: Vec<String> = list
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
    let mut args = args;
    // Spark shows the arguments that have a default, too.
    let defaults: &[&str] = match (name.as_str(), args.len()) {
        ("percentile_approx" | "approx_percentile", 2) => &["10000"],
        ("percentile", 2) => &["1"],
        ("round" | "bround", 1) => &["0"],
        ("months_between", 2) => &["true"],
        _ => &[],
    };
    args.extend(defaults.iter().map(|d| (*d).to_owned()));
    let distinct = if list.duplicate_treatment.is_some() { "DISTINCT " } else { "" };
    format!("{name}({distinct}{})", args.join(", "))
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
