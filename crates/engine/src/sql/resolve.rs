//! From a parsed query to a logical plan, and from DataFusion's errors to Spark's.

use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::execution::SessionState;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Subquery, lit};
use datafusion::sql::parser::Statement as DfStatement;
use sqlparser::ast::{self, Ident, ObjectName, Query, Visit, VisitMut, Visitor, VisitorMut};
use sqlparser::tokenizer::Span;

use super::ast::RelationSpec;
use super::catalog::Catalog;
use super::duplicate::{self, Duplicates, is_of_duplicates};
use super::error::{SqlError, did_you_mean, nearest};
use super::plain::plain;
use super::planner::{MarkedRelations, path_relation};
use super::statement::{ParsedQuery, parse_expression};
use super::token::unmark;
use crate::error::EngineError;
use crate::function::catalog;

/// Plans a query against the session's tables and functions. `text` is the statement, for errors.
pub(crate) async fn plan(
    state: &SessionState,
    catalog: &Arc<Catalog>,
    parsed: &ParsedQuery,
    text: &str,
) -> Result<LogicalPlan, SqlError> {
    check_calls(&parsed.query, &parsed.query, text)?;
    let mut query = parsed.query.clone();
    let mut duplicates = Duplicates::Refused;
    // Names are case-insensitive: a name that is not found as written is retried as the schema has it.
    for _ in 0..64 {
        match plan_once(state, catalog, &query, parsed, duplicates, text, false).await {
            Ok(plan) => return Ok(plan),
            Err(Failure::Sql(error)) => return Err(error),
            Err(Failure::DataFusion(error)) if duplicates == Duplicates::Refused && is_of_duplicates(&error) => {
                duplicates = Duplicates::Marked;
            }
            Err(Failure::DataFusion(error)) => {
                if !respell(&mut query, &error) {
                    // Once more, for the place of the name that failed: places cost, and most queries need none.
                    let again = plan_once(state, catalog, &query, parsed, duplicates, text, true).await;
                    let span = match &again {
                        Err(Failure::DataFusion(again)) => diagnostic_span(again),
                        _ => None,
                    };
                    return Err(explain(&error, &parsed.query, catalog, text, span));
                }
            }
        }
    }
    Err(SqlError::new("INTERNAL_ERROR", "the names of this query could not be resolved"))
}

enum Failure {
    Sql(SqlError),
    DataFusion(Box<DataFusionError>),
}

async fn plan_once(
    state: &SessionState,
    catalog: &Arc<Catalog>,
    query: &Query,
    parsed: &ParsedQuery,
    duplicates: Duplicates,
    text: &str,
    places: bool,
) -> Result<LogicalPlan, Failure> {
    let mut query = query.clone();
    let specs = relation_specs(parsed, text).map_err(Failure::Sql)?;
    let specs = super::ast::rewrite(&mut query, specs, duplicates).map_err(Failure::Sql)?;
    let mut state = state.clone();
    state.config_mut().options_mut().sql_parser.collect_spans = places;
    let failed = |e| Failure::DataFusion(Box::new(e));
    state
        .register_relation_planner(Arc::new(MarkedRelations { specs, catalog: Arc::clone(catalog) }))
        .map_err(failed)?;
    let statement = DfStatement::Statement(Box::new(ast::Statement::Query(Box::new(query))));
    let plan = state.statement_to_plan(statement).await.map_err(failed)?;
    let plan = plain_exists(plan).map_err(failed)?;
    // Type errors show up here rather than when the query runs.
    let options = state.config_options();
    state.analyzer().execute_and_check(plan.clone(), options, |_, _| {}).map_err(failed)?;
    Ok(plan)
}

/// `EXISTS` over a subquery that does not look at the query around it, which DataFusion cannot run, as a comparison of
/// the subquery's count, of one row at most, with 0.
fn plain_exists(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let rewritten = plan.transform_up_with_subqueries(|node| {
        node.map_expressions(|expr| {
            expr.transform_up(|e| match e {
                Expr::Exists(exists) if exists.subquery.outer_ref_columns.is_empty() => {
                    let plan = LogicalPlanBuilder::from(exists.subquery.subquery.as_ref().clone())
                        .limit(0, Some(1))?
                        .aggregate(Vec::<Expr>::new(), vec![count(lit(1)).alias("rows")])?
                        .build()?;
                    let rows = Expr::ScalarSubquery(Subquery { subquery: Arc::new(plan), ..exists.subquery });
                    Ok(Transformed::yes(if exists.negated { rows.eq(lit(0i64)) } else { rows.gt(lit(0i64)) }))
                }
                other => Ok(Transformed::no(other)),
            })
        })
    })?;
    Ok(rewritten.data)
}

fn relation_specs(parsed: &ParsedQuery, text: &str) -> Result<Vec<RelationSpec>, SqlError> {
    parsed
        .marks
        .iter()
        .map(|mark| {
            let watermark_expression = match &mark.watermark {
                Some(watermark) => {
                    let mut expr = parse_expression(text, &watermark.expression)?;
                    check_calls(&expr, &parsed.query, text)?;
                    super::ast::rewrite_expression(&mut expr)?;
                    Some(expr)
                }
                None => None,
            };
            Ok(RelationSpec::Mark { mark: mark.clone(), watermark_expression })
        })
        .collect()
}

/// Where DataFusion says that an error is.
fn diagnostic_span(error: &DataFusionError) -> Option<datafusion::common::Span> {
    match error {
        DataFusionError::Diagnostic(diagnostic, inner) => diagnostic.span.or_else(|| diagnostic_span(inner)),
        DataFusionError::Context(_, inner) => diagnostic_span(inner),
        DataFusionError::Collection(list) => list.iter().find_map(diagnostic_span),
        DataFusionError::Shared(inner) => diagnostic_span(inner),
        _ => None,
    }
}

/// Puts an error at `span`, if `name` stands there, also behind a qualifier; else where the query has it first.
fn place_at(
    error: SqlError,
    span: Option<datafusion::common::Span>,
    query: &Query,
    name: &str,
    text: &str,
    bare: bool,
) -> SqlError {
    let column = |column: u64| usize::try_from(column.saturating_sub(1)).unwrap_or(usize::MAX);
    let named = span.filter(|span| {
        let line = usize::try_from(span.start.line.saturating_sub(1)).unwrap_or(usize::MAX);
        let line = text.lines().nth(line).unwrap_or_default();
        let width = column(span.end.column).saturating_sub(column(span.start.column));
        let there: String = line.chars().skip(column(span.start.column)).take(width).filter(|c| *c != '`').collect();
        span.start.line > 0 && there.rsplit('.').next().is_some_and(|last| last.trim().eq_ignore_ascii_case(name))
    });
    match named {
        Some(span) => {
            let start = sqlparser::tokenizer::Location { line: span.start.line, column: span.start.column };
            error.at(text, start, column(span.end.column).saturating_sub(column(span.start.column)))
        }
        None => place_of(error, query, name, text, bare),
    }
}

/// The schema error inside an error, if there is one.
pub(crate) fn schema_error(error: &DataFusionError) -> Option<&SchemaError> {
    match error {
        DataFusionError::SchemaError(error, _) => Some(error),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => schema_error(inner),
        DataFusionError::Collection(list) => list.iter().find_map(schema_error),
        _ => None,
    }
}

/// Rewrites the name that was not found as a known column spells it; false when none is spelt like it.
fn respell(query: &mut Query, error: &DataFusionError) -> bool {
    let Some(SchemaError::FieldNotFound { field, valid_fields }) = schema_error(error) else { return false };
    let mut changes: Vec<(String, String)> = Vec::new();
    let same = |a: &str, b: &str| a != b && a.eq_ignore_ascii_case(b);
    for valid in valid_fields {
        if same(&valid.name, &field.name) {
            changes.push((field.name.clone(), valid.name.clone()));
        }
        if let (Some(wanted), Some(known)) = (&field.relation, &valid.relation)
            && same(wanted.table(), known.table())
        {
            changes.push((wanted.table().to_owned(), known.table().to_owned()));
        }
        // `P.x` where `p` is a column.
        if let Some(wanted) = &field.relation
            && same(wanted.table(), &valid.name)
        {
            changes.push((wanted.table().to_owned(), valid.name.clone()));
        }
    }
    let Some((from, to)) = changes.into_iter().next() else { return false };
    let mut respeller = Respeller { from, to, changed: false };
    let _ = query.visit(&mut respeller);
    respeller.changed
}

struct Respeller {
    from: String,
    to: String,
    changed: bool,
}

impl VisitorMut for Respeller {
    type Break = ();

    /// A column keeps the name by which it was asked for.
    fn pre_visit_select(&mut self, select: &mut ast::Select) -> ControlFlow<()> {
        for item in &mut select.projection {
            let ast::SelectItem::UnnamedExpr(expr) = item else { continue };
            let name = match expr {
                ast::Expr::Identifier(ident) => ident,
                ast::Expr::CompoundIdentifier(parts) => match parts.last() {
                    Some(ident) => ident,
                    None => continue,
                },
                _ => continue,
            };
            if name.value == self.from {
                let alias = Ident { quote_style: Some('`'), ..name.clone() };
                let expr = std::mem::replace(expr, ast::Expr::Value(ast::Value::Null.into()));
                *item = ast::SelectItem::ExprWithAlias { expr, alias };
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
        let mut fix = |ident: &mut Ident| {
            if ident.value == self.from {
                ident.value.clone_from(&self.to);
                self.changed = true;
            }
        };
        match expr {
            ast::Expr::Identifier(ident) => fix(ident),
            ast::Expr::CompoundIdentifier(parts) => parts.iter_mut().for_each(fix),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Finds where a name stands in the query.
struct Finder<'a> {
    name: &'a str,
    /// Only where the name stands without a qualifier.
    bare: bool,
    found: Option<Span>,
}

impl Visitor for Finder<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        let parts: &[Ident] = match expr {
            ast::Expr::Identifier(ident) => std::slice::from_ref(ident),
            ast::Expr::CompoundIdentifier(parts) if !self.bare => parts,
            ast::Expr::Function(function) if !self.bare => match function.name.0.first().and_then(|p| p.as_ident()) {
                Some(ident) => std::slice::from_ref(ident),
                None => &[],
            },
            _ => &[],
        };
        for part in parts {
            if part.value.eq_ignore_ascii_case(self.name) && part.span.start.line > 0 {
                self.found = Some(part.span);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        for part in relation.0.iter().filter_map(|p| p.as_ident()) {
            let name = unmark(&part.value).map_or(part.value.as_str(), |(_, name)| name);
            if name.eq_ignore_ascii_case(self.name) && part.span.start.line > 0 {
                self.found = Some(part.span);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }
}

fn place(error: SqlError, query: &Query, name: &str, text: &str) -> SqlError {
    place_of(error, query, name, text, false)
}

fn place_of(error: SqlError, query: &Query, name: &str, text: &str, bare: bool) -> SqlError {
    let mut finder = Finder { name, bare, found: None };
    let _ = query.visit(&mut finder);
    match finder.found {
        Some(span) => {
            let width = usize::try_from(span.end.column.saturating_sub(span.start.column)).unwrap_or(1);
            error.at(text, span.start, width)
        }
        None => error,
    }
}

/// Puts an error where the query has `qualifier.name` first, if it has it.
fn place_qualified(error: SqlError, query: &Query, qualifier: &str, name: &str, text: &str) -> SqlError {
    let mut found = None;
    let _ = ast::visit_expressions(query, |expr: &ast::Expr| {
        if let ast::Expr::CompoundIdentifier(parts) = expr
            && let [.., before, last] = parts.as_slice()
            && before.value.eq_ignore_ascii_case(qualifier)
            && last.value.eq_ignore_ascii_case(name)
            && before.span.start.line > 0
        {
            found = Some((before.span.start, last.span.end));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    match found {
        Some((start, end)) => {
            error.at(text, start, usize::try_from(end.column.saturating_sub(start.column)).unwrap_or(1))
        }
        None => error,
    }
}

/// Turns DataFusion's error into Spark's, with its place in the text.
fn explain(
    error: &DataFusionError,
    query: &Query,
    catalog: &Catalog,
    text: &str,
    span: Option<datafusion::common::Span>,
) -> SqlError {
    match schema_error(error) {
        Some(SchemaError::FieldNotFound { field, valid_fields }) => {
            let error = unresolved_column(field.flat_name(), &field.name, valid_fields);
            // A qualified name is another one than the same name without, or with another qualifier.
            let error = match &field.relation {
                Some(relation) => place_qualified(error, query, relation.table(), &field.name, text),
                None => error,
            };
            return place_at(error, span, query, &field.name, text, false);
        }
        Some(SchemaError::AmbiguousReference { field }) => {
            let message = format!("Reference `{}` is ambiguous, could be more than one column.", field.flat_name());
            let error = SqlError::new("AMBIGUOUS_REFERENCE", message);
            return place_at(error, span, query, &field.name, text, field.relation.is_none());
        }
        _ => {}
    }
    if let Some(engine) = engine_error(error) {
        return place_path(engine.into(), query, text);
    }
    let message = plain_message(error);
    if let Some(name) = between(&message, "table '", "' not found") {
        let name = name.rsplit('.').next().unwrap_or(name).to_owned();
        let name = unmark(&name).map_or(name.clone(), |(_, n)| n.to_owned());
        return table_not_found(&name, query, catalog, text);
    }
    if let Some(name) = between(&message, "Invalid function '", "'") {
        return unresolved_routine(name, query, text);
    }
    if message.contains("must appear in the GROUP BY clause")
        && let Some(shown) = between(&message, "column \"", "\"")
    {
        let name = shown.rsplit('.').next().unwrap_or(shown);
        let message = format!(
            "The non-aggregating expression \"{name}\" is based on columns which are not participating in the GROUP BY clause. Add the columns or the expression to the GROUP BY, aggregate the expression, or use \"any_value({name})\" if you do not care which of the values within a group is returned. SQLSTATE: 42803"
        );
        return place(SqlError::new("MISSING_AGGREGATION", message), query, name, text);
    }
    let error = SqlError::from_message(&message);
    match between(&message, "No such struct field `", "`") {
        Some(field) => {
            let known = message.split_once("` in ").map_or("", |(_, rest)| rest);
            let names: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
            let error = match did_you_mean(field, names.iter().copied()) {
                Some(name) => error.hint(format!("Did you mean `{name}`?")),
                None => error,
            };
            place(error, query, field, text)
        }
        None => {
            let called = between(&message, "function '", "'").or_else(|| between(&message, "The `", "`"));
            match called {
                Some(name) => place(error, query, name, text),
                None => error,
            }
        }
    }
}

/// The engine's own error inside an error, if there is one.
fn engine_error(error: &DataFusionError) -> Option<&EngineError> {
    match error {
        DataFusionError::External(inner) => inner.downcast_ref(),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => engine_error(inner),
        DataFusionError::Collection(list) => list.iter().find_map(engine_error),
        DataFusionError::Shared(inner) => engine_error(inner),
        _ => None,
    }
}

/// Puts the error of a path relation at its path.
fn place_path(error: SqlError, query: &Query, text: &str) -> SqlError {
    let mut path = None;
    let _ = ast::visit_relations(query, |relation| match path_relation(relation) {
        Some((_, named)) if error.message.contains(named.trim_start_matches("./")) => {
            path = Some(named);
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    match path {
        Some(path) => place(error, query, &path, text),
        None => error,
    }
}

fn unresolved_column(shown: String, name: &str, valid: &[datafusion::common::Column]) -> SqlError {
    if valid.iter().any(|c| duplicate::stripped(&c.name).is_some_and(|n| n.eq_ignore_ascii_case(name))) {
        let message = format!("Reference `{name}` is ambiguous, could be more than one column.");
        return SqlError::new("AMBIGUOUS_REFERENCE", message);
    }
    let shown = shown.split('.').map(|p| format!("`{p}`")).collect::<Vec<_>>().join(".");
    let names: Vec<String> = valid.iter().map(|c| c.name.clone()).filter(|n| !n.contains(super::token::MARK)).collect();
    let near = nearest(name, names.iter().map(String::as_str));
    let mut message = format!("A column, variable, or function parameter with name {shown} cannot be resolved.");
    let class = if near.is_empty() {
        "UNRESOLVED_COLUMN.WITHOUT_SUGGESTION"
    } else {
        let list: Vec<String> = near.iter().map(|n| format!("`{n}`")).collect();
        message.push_str(&format!(" Did you mean one of the following? [{}].", list.join(", ")));
        "UNRESOLVED_COLUMN.WITH_SUGGESTION"
    };
    SqlError::new(class, format!("{message} SQLSTATE: 42703"))
}

pub(crate) fn table_missing(name: &str, catalog: &Catalog) -> SqlError {
    let error = SqlError::new(
        "TABLE_OR_VIEW_NOT_FOUND",
        format!(
            "The table or view `{name}` cannot be found. Verify the spelling and correctness of the schema and catalog. SQLSTATE: 42P01"
        ),
    );
    let names = catalog.names();
    match did_you_mean(name, names.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("Did you mean `{near}`?")),
        None => error,
    }
}

fn table_not_found(name: &str, query: &Query, catalog: &Catalog, text: &str) -> SqlError {
    place(table_missing(name, catalog), query, name, text)
}

fn unresolved_routine(name: &str, query: &Query, text: &str) -> SqlError {
    let message = format!(
        "Cannot resolve routine `{name}` on search path [`system`.`builtin`, `system`.`session`, `spark_catalog`.`default`]. SQLSTATE: 42883"
    );
    let error = SqlError::new("UNRESOLVED_ROUTINE", message);
    let error = match did_you_mean(name, catalog::NAMES.iter().copied().filter(|n| *n != name)) {
        Some(near) => error.hint(format!("Did you mean {near}?")),
        None => error,
    };
    place(error, query, name, text)
}

/// All functions that a query may call.
pub fn function_names() -> Vec<String> {
    catalog::NAMES.iter().map(|n| (*n).to_owned()).collect()
}

/// Fails for a call of what is no function of Spark, or none that Caudal has.
fn check_calls(called: &impl Visit, query: &Query, text: &str) -> Result<(), SqlError> {
    let mut unknown = None;
    let _ = ast::visit_expressions(called, |expr| {
        if let ast::Expr::Function(function) = expr {
            let name = super::ast::function_name(&function.name);
            if !catalog::is_callable(&name) {
                unknown = Some(name);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    });
    match unknown {
        Some(name) => Err(unresolved_routine(&name, query, text)),
        None => Ok(()),
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(name, _)| name)
}

/// The message without DataFusion's wrappings.
pub(crate) fn plain_message(error: &DataFusionError) -> String {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => plain_message(inner),
        DataFusionError::Collection(list) => list.first().map_or_else(String::new, plain_message),
        DataFusionError::Shared(inner) => plain_message(inner),
        DataFusionError::Plan(message)
        | DataFusionError::Execution(message)
        | DataFusionError::NotImplemented(message)
        | DataFusionError::Internal(message) => {
            plain(message.split("\n\nbacktrace:").next().unwrap_or(message).to_owned())
        }
        DataFusionError::ArrowError(error, _) => match error.as_ref() {
            arrow::error::ArrowError::DivideByZero => "[DIVIDE_BY_ZERO] Division by zero. SQLSTATE: 22012".to_owned(),
            arrow::error::ArrowError::ArithmeticOverflow(message) if !message.starts_with('[') => {
                format!("[ARITHMETIC_OVERFLOW] {message}. SQLSTATE: 22003")
            }
            arrow::error::ArrowError::ArithmeticOverflow(message) => message.clone(),
            arrow::error::ArrowError::CastError(message) if message.starts_with("Cannot cast string") => {
                format!(
                    "[CAST_INVALID_INPUT] {message}. Use `try_cast` to tolerate malformed input and return NULL instead. SQLSTATE: 22018"
                )
            }
            other => other.to_string(),
        },
        other => plain(other.to_string()),
    }
}

/// An error of a running plan.
pub(crate) fn runtime_error(error: &DataFusionError) -> SqlError {
    if let Some(engine) = engine_error(error) {
        return engine.into();
    }
    if let DataFusionError::ResourcesExhausted(message) = error.find_root() {
        return super::memory::exhausted(message);
    }
    let message = plain_message(error);
    SqlError::from_message(&message)
}

impl SqlError {
    /// Takes `[CLASS]` off a message that begins with one.
    pub(crate) fn from_message(message: &str) -> SqlError {
        if let Some(start) = message.find('[')
            && let Some((class, rest)) = message.get(start + 1..).and_then(|m| m.split_once(']'))
            && !class.is_empty()
            && class.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_' || c == '.')
        {
            return SqlError::new(class, rest.trim());
        }
        SqlError::new("UNSUPPORTED_FEATURE", message.trim())
    }
}
