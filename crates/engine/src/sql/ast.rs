//! From Spark's AST to one that DataFusion plans with Spark's meaning: generators, time windows, struct literals,
//! casts, field access, Spark's function names and column names.

use std::ops::ControlFlow;

use sqlparser::ast::{
    AccessExpr, BinaryOperator, CastKind, CeilFloorKind, DataType, DuplicateTreatment, Expr, Function, FunctionArg,
    FunctionArgExpr, FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, LimitClause, NamedWindowDefinition,
    NamedWindowExpr, ObjectName, OrderBy, OrderByKind, Query, Select, SelectItem, SelectItemQualifiedWildcardKind,
    Subscript, TableAlias, TableFactor, TableWithJoins, TypedString, UnaryOperator, Value, ValueWithSpan, VisitMut,
    VisitorMut, WildcardAdditionalOptions, WindowFrameBound, WindowSpec, WindowType,
};

use super::balance::balance;
use super::calls;
use super::dialect::SHIFT_UNSIGNED;
use super::duplicate::{self, Duplicates};
use super::error::SqlError;
use super::naming::column_name;
use super::number;
use super::token::{RelationMark, marked};
use super::using;

/// What a marked relation stands for; the planner of relations looks it up by index.
#[derive(Debug, Clone)]
pub(crate) enum RelationSpec {
    Mark {
        mark: RelationMark,
        watermark_expression: Option<Expr>,
    },
    Generate(Generator),
    /// Adds a column `name` computed from `window(time, size, slide, start)`.
    TimeWindow {
        args: Vec<Expr>,
        name: String,
    },
    /// One row without columns: the `FROM` of a query that has none.
    OneRow,
}

/// `explode`, `posexplode`, `inline` and their `_outer` forms.
#[derive(Debug, Clone)]
pub(crate) struct Generator {
    pub kind: String,
    pub outer: bool,
    pub argument: Expr,
    /// Table alias of the generated columns.
    pub qualifier: String,
    pub columns: Vec<String>,
}

/// The column of a window whose time is the column `window` of another one.
const NESTED_WINDOW: &str = "__window";

const GENERATORS: [&str; 6] = ["explode", "explode_outer", "posexplode", "posexplode_outer", "inline", "inline_outer"];

/// Rewrites `query` in place and returns the relations that its marks stand for.
pub(crate) fn rewrite(
    query: &mut Query,
    mut specs: Vec<RelationSpec>,
    duplicates: Duplicates,
) -> Result<Vec<RelationSpec>, SqlError> {
    let mut rewriter = Rewriter { specs: &mut specs, lambdas: Vec::new(), columns_of_generators: 0, duplicates };
    if let ControlFlow::Break(error) = query.visit(&mut rewriter) {
        return Err(*error);
    }
    Ok(specs)
}

/// Rewrites one expression in place.
pub(crate) fn rewrite_expression(expr: &mut Expr) -> Result<(), SqlError> {
    let mut specs = Vec::new();
    let duplicates = Duplicates::Refused;
    let mut rewriter = Rewriter { specs: &mut specs, lambdas: Vec::new(), columns_of_generators: 0, duplicates };
    match expr.visit(&mut rewriter) {
        ControlFlow::Break(error) => Err(*error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// Planning takes twice as long with each level.
const DEEPEST_LAMBDA: usize = 10;

struct Rewriter<'a> {
    specs: &'a mut Vec<RelationSpec>,
    /// Parameters of the lambdas that enclose the expression.
    lambdas: Vec<Vec<String>>,
    columns_of_generators: usize,
    duplicates: Duplicates,
}

impl VisitorMut for Rewriter<'_> {
    type Break = Box<SqlError>;

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Self::Break> {
        if let Err(error) = using::check(select) {
            return Self::fail(error);
        }
        let qualifiers = qualifiers(select);
        name_columns(select, &qualifiers);
        if self.duplicates == Duplicates::Marked {
            duplicate::mark(&mut select.projection, is_generator);
        }
        keep_ordinals(select);
        self.struct_wildcards(select, &qualifiers);
        self.time_window(select)?;
        self.lateral_views(select)?;
        self.generators(select)
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        if let Some(OrderBy { kind: OrderByKind::Expressions(list), .. }) = &mut query.order_by {
            list.iter_mut().for_each(|e| number::keep(&mut e.expr));
        }
        match &mut query.limit_clause {
            Some(LimitClause::LimitOffset { limit, offset, .. }) => {
                limit.iter_mut().for_each(number::keep);
                offset.iter_mut().for_each(|o| number::keep(&mut o.value));
            }
            Some(LimitClause::OffsetCommaLimit { offset, limit }) => {
                number::keep(offset);
                number::keep(limit);
            }
            None => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        balance(expr);
        if let Expr::Function(Function { over: Some(WindowType::WindowSpec(spec)), .. }) = expr {
            each_bound(spec, number::keep);
        }
        if let Expr::Lambda(lambda) = expr {
            self.lambdas.push(lambda.params.iter().map(|p| p.name.value.clone()).collect());
            if self.lambdas.len() > DEEPEST_LAMBDA {
                let message = format!(
                    "The statement is too complex to plan: lambdas are nested more than {DEEPEST_LAMBDA} levels deep."
                );
                return Self::fail(SqlError::new("FAILED_TO_PARSE_TOO_COMPLEX", message));
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<Self::Break> {
        each_named_bound(select, number::plain);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        if let Expr::Function(Function { over: Some(WindowType::WindowSpec(spec)), .. }) = expr {
            each_bound(spec, number::plain);
        }
        if matches!(expr, Expr::Lambda(_)) {
            self.lambdas.pop();
            return ControlFlow::Continue(());
        }
        self.rewrite_one(expr)
    }
}

impl Rewriter<'_> {
    fn fail(error: SqlError) -> ControlFlow<Box<SqlError>> {
        ControlFlow::Break(Box::new(error))
    }

    /// `GROUP BY window(ts, ...)`: the window becomes a column of the `FROM`, and its calls that column's name.
    fn time_window(&mut self, select: &mut Select) -> ControlFlow<Box<SqlError>> {
        let mut found: Vec<Function> = Vec::new();
        let mut session = false;
        let mut replace = |e: &mut Expr| {
            if let Expr::Function(f) = e
                && f.over.is_none()
            {
                let name = function_name(&f.name);
                session |= name == "session_window";
                if name == "window" {
                    // A window of windows stands beside the column `window` that it is made from.
                    let nested = matches!(arguments(f).first(), Some(Expr::Identifier(i)) if i.value == "window");
                    found.push(f.clone());
                    *e = Expr::Identifier(Ident::new(if nested { NESTED_WINDOW } else { "window" }));
                }
            }
            ControlFlow::<()>::Continue(())
        };
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(e) | SelectItem::ExprWithAlias { expr: e, .. } = item {
                let _ = sqlparser::ast::visit_expressions_mut(e, &mut replace);
            }
        }
        if let GroupByExpr::Expressions(list, _) = &mut select.group_by {
            for e in list {
                let _ = sqlparser::ast::visit_expressions_mut(e, &mut replace);
            }
        }
        for e in [&mut select.having, &mut select.selection].into_iter().flatten() {
            let _ = sqlparser::ast::visit_expressions_mut(e, &mut replace);
        }
        if session {
            return Self::fail(SqlError::unsupported("session_window"));
        }
        let Some(first) = found.first() else { return ControlFlow::Continue(()) };
        let mut args = arguments(first);
        if found.iter().any(|f| arguments(f) != args) {
            let message = "Multiple time/session window expressions would result in a cartesian product of rows, therefore they are currently not supported.";
            return Self::fail(SqlError::new("UNSUPPORTED_FEATURE.MULTIPLE_WINDOWS", message));
        }
        for arg in &mut args {
            arg.visit(self)?;
        }
        let nested = matches!(args.first(), Some(Expr::Identifier(i)) if i.value == "window");
        let name = if nested { NESTED_WINDOW } else { "window" }.to_owned();
        self.wrap_from(select, RelationSpec::TimeWindow { args, name });
        ControlFlow::Continue(())
    }

    /// `SELECT s.*` of a struct: its fields join the `FROM`, the item becomes their wildcard.
    fn struct_wildcards(&mut self, select: &mut Select, qualifiers: &[String]) {
        let mut projection = std::mem::take(&mut select.projection);
        for item in &mut projection {
            let SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) = item else {
                continue;
            };
            let parts: Vec<Ident> = name.0.iter().filter_map(|p| p.as_ident()).cloned().collect();
            let is_relation =
                matches!(parts.as_slice(), [one] if qualifiers.iter().any(|q| q.eq_ignore_ascii_case(&one.value)));
            let generated = matches!(parts.as_slice(), [one] if one.value.starts_with("__generated_"));
            if is_relation || generated || parts.is_empty() {
                continue;
            }
            let argument = match parts.as_slice() {
                [one] => Expr::Identifier(one.clone()),
                _ => Expr::CompoundIdentifier(parts),
            };
            self.columns_of_generators += 1;
            let qualifier = format!("__generated_{}", self.columns_of_generators);
            *name = ObjectName::from(vec![Ident::with_quote('`', &qualifier)]);
            let kind = "struct".to_owned();
            let generator = Generator { kind, outer: false, argument, qualifier, columns: Vec::new() };
            self.wrap_from(select, RelationSpec::Generate(generator));
        }
        select.projection = projection;
    }

    fn lateral_views(&mut self, select: &mut Select) -> ControlFlow<Box<SqlError>> {
        for view in std::mem::take(&mut select.lateral_views) {
            let Expr::Function(function) = &view.lateral_view else {
                return Self::fail(SqlError::parse("LATERAL VIEW needs a generator function such as explode."));
            };
            let mut generator = match self.generator(function) {
                Ok(Some(generator)) => generator,
                Ok(None) => {
                    return Self::fail(SqlError::unsupported(format!("LATERAL VIEW {}", function.name)));
                }
                Err(error) => return Self::fail(error),
            };
            generator.argument.visit(self)?;
            generator.outer |= view.outer;
            generator.qualifier = view.lateral_view_name.to_string();
            generator.columns = view.lateral_col_alias.iter().map(|c| c.value.clone()).collect();
            self.wrap_from(select, RelationSpec::Generate(generator));
        }
        ControlFlow::Continue(())
    }

    /// `SELECT explode(a)`: the generated columns join the `FROM`, the item becomes their wildcard.
    fn generators(&mut self, select: &mut Select) -> ControlFlow<Box<SqlError>> {
        let mut projection = std::mem::take(&mut select.projection);
        let mut excluded = Vec::new();
        for item in &mut projection {
            let (expr, columns) = match item {
                SelectItem::UnnamedExpr(expr) => (expr, Vec::new()),
                SelectItem::ExprWithAlias { expr, alias } if is_generator(expr) => {
                    let names = if generator_was_named(expr, alias) { vec![alias.value.clone()] } else { Vec::new() };
                    (expr, names)
                }
                SelectItem::ExprWithAliases { expr, aliases } => {
                    let names = aliases.iter().map(|a| a.value.clone()).collect();
                    (expr, names)
                }
                _ => continue,
            };
            let Expr::Function(function) = expr else { continue };
            let mut generator = match self.generator(function) {
                Ok(Some(generator)) => generator,
                Ok(None) => continue,
                Err(error) => return Self::fail(error),
            };
            generator.argument.visit(self)?;
            self.columns_of_generators += 1;
            generator.qualifier = format!("__generated_{}", self.columns_of_generators);
            excluded.extend(columns.iter().cloned());
            generator.columns = columns;
            let wildcard = ObjectName::from(vec![Ident::with_quote('`', &generator.qualifier)]);
            *item = SelectItem::QualifiedWildcard(
                SelectItemQualifiedWildcardKind::ObjectName(wildcard),
                WildcardAdditionalOptions::default(),
            );
            self.wrap_from(select, RelationSpec::Generate(generator));
        }
        exclude_from_wildcard(&mut projection, &excluded);
        select.projection = projection;
        ControlFlow::Continue(())
    }

    fn generator(&self, function: &Function) -> Result<Option<Generator>, SqlError> {
        let name = function_name(&function.name);
        if !GENERATORS.contains(&name.as_str()) {
            return Ok(None);
        }
        let mut args = arguments(function).into_iter();
        let (Some(argument), None) = (args.next(), args.next()) else {
            return Err(SqlError::new(
                "WRONG_NUM_ARGS.WITHOUT_SUGGESTION",
                format!("The `{name}` requires 1 parameter."),
            ));
        };
        let kind = name.strip_suffix("_outer").unwrap_or(&name).to_owned();
        let outer = name.ends_with("_outer");
        Ok(Some(Generator { kind, outer, argument, qualifier: String::new(), columns: Vec::new() }))
    }

    /// Puts the whole `FROM` behind a mark whose spec adds columns to it.
    fn wrap_from(&mut self, select: &mut Select, spec: RelationSpec) {
        let mut from = std::mem::take(&mut select.from).into_iter();
        let mut joined = from.next().unwrap_or_else(|| {
            self.specs.push(RelationSpec::OneRow);
            TableWithJoins { relation: marked_table(self.specs.len() - 1), joins: Vec::new() }
        });
        for other in from {
            joined.joins.push(sqlparser::ast::Join {
                relation: nested(other, None),
                global: false,
                join_operator: sqlparser::ast::JoinOperator::CrossJoin(sqlparser::ast::JoinConstraint::None),
            });
        }
        let alias = marked(self.specs.len(), "");
        self.specs.push(spec);
        select.from = vec![TableWithJoins { relation: nested(joined, Some(alias)), joins: Vec::new() }];
    }

    fn rewrite_one(&mut self, expr: &mut Expr) -> ControlFlow<Box<SqlError>> {
        let taken = std::mem::replace(expr, Expr::Value(Value::Null.into()));
        *expr = match taken {
            Expr::CompoundIdentifier(parts) => self.compound(parts),
            Expr::CompoundFieldAccess { root, access_chain } => match field_access(*root, access_chain) {
                Ok(access) => access,
                Err(error) => return Self::fail(error),
            },
            Expr::BinaryOp { left, op: BinaryOperator::MyIntegerDivide, right } => call("div", vec![*left, *right]),
            Expr::BinaryOp { left, op: BinaryOperator::PGBitwiseShiftLeft, right } => {
                call("shiftleft", vec![*left, *right])
            }
            Expr::BinaryOp { left, op: BinaryOperator::PGBitwiseShiftRight, right } => {
                call("shiftright", vec![*left, *right])
            }
            Expr::BinaryOp { left, op: BinaryOperator::Custom(op), right } if op == SHIFT_UNSIGNED => {
                call("shiftrightunsigned", vec![*left, *right])
            }
            Expr::UnaryOp { op: UnaryOperator::BitwiseNot, expr } => call("bitwise_not", vec![*expr]),
            Expr::Value(ValueWithSpan { value: Value::Number(text, false), .. }) => number::carry(&text),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match number::text_of(&expr) {
                Some(text) if !text.starts_with('-') => number::carry(&format!("-{text}")),
                _ if matches!(*expr, Expr::Interval(_)) => Expr::UnaryOp { op: UnaryOperator::Minus, expr },
                _ => call("negative", vec![*expr]),
            },
            Expr::BinaryOp { left, op: BinaryOperator::Spaceship, right } => Expr::IsNotDistinctFrom(left, right),
            Expr::RLike { negated, expr, pattern, .. } => {
                let matched = call("rlike", vec![*expr, *pattern]);
                if negated { not(matched) } else { matched }
            }
            Expr::Cast { kind, expr, data_type, array: false, format: None } => {
                let name = match kind {
                    CastKind::TryCast | CastKind::SafeCast => "__try_cast",
                    _ => "__cast",
                };
                call(name, vec![*expr, string(&data_type.to_string())])
            }
            Expr::TypedString(TypedString { data_type, value, .. }) => {
                call("__cast", vec![Expr::Value(value), string(&typed_literal(&data_type))])
            }
            Expr::Struct { values, .. } => named_struct(values),
            Expr::Floor { expr, field } => whole("floor", *expr, &field),
            Expr::Ceil { expr, field } => whole("ceil", *expr, &field),
            Expr::Position { expr, r#in } => call("__locate", vec![*expr, *r#in, number::carry("1")]),
            Expr::Extract { field, expr, .. } => call("date_part", vec![string(&field.to_string()), *expr]),
            Expr::Function(function) => match counted_rows(function) {
                Ok(function) => rewrite_function(function),
                Err(error) => return Self::fail(error),
            },
            other => other,
        };
        ControlFlow::Continue(())
    }

    /// `x.a` where `x` is a lambda's parameter; other compound names are resolved by the planner.
    fn compound(&self, parts: Vec<Ident>) -> Expr {
        let is_parameter = parts.first().is_some_and(|first| self.lambdas.iter().flatten().any(|p| *p == first.value));
        if !is_parameter {
            return Expr::CompoundIdentifier(parts);
        }
        let mut parts = parts.into_iter();
        let root = parts.next().map_or_else(|| string(""), Expr::Identifier);
        parts.fold(root, |e, field| call("__field", vec![e, string(&field.value)]))
    }
}

/// `ceil(x)`, `ceil(x, digits)`.
fn whole(name: &str, expr: Expr, kind: &CeilFloorKind) -> Expr {
    match kind {
        CeilFloorKind::Scale(ValueWithSpan { value: Value::Number(digits, _), .. }) => {
            call(name, vec![expr, number::carry(digits)])
        }
        _ => call(name, vec![expr]),
    }
}

fn is_generator(expr: &Expr) -> bool {
    matches!(expr, Expr::Function(f) if GENERATORS.contains(&function_name(&f.name).as_str()))
}

/// Whether the alias was written by the user, not made up from the call.
fn generator_was_named(expr: &Expr, alias: &Ident) -> bool {
    column_name(expr, &[]) != alias.value
}

fn marked_table(index: usize) -> TableFactor {
    table(&marked(index, "one_row"))
}

/// A table by its name.
pub(crate) fn table(name: &str) -> TableFactor {
    TableFactor::Table {
        name: ObjectName::from(vec![Ident::with_quote('`', name)]),
        alias: None,
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}

fn nested(table_with_joins: TableWithJoins, alias: Option<String>) -> TableFactor {
    let alias = alias.map(|name| TableAlias {
        explicit: true,
        name: Ident::with_quote('`', name),
        columns: Vec::new(),
        at: None,
    });
    TableFactor::NestedJoin { table_with_joins: Box::new(table_with_joins), alias }
}

/// The names by which the query's relations are called.
fn qualifiers(select: &Select) -> Vec<String> {
    let mut names = Vec::new();
    for from in &select.from {
        for relation in std::iter::once(&from.relation).chain(from.joins.iter().map(|j| &j.relation)) {
            match relation {
                TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
                    let name = &alias.name.value;
                    names.push(super::token::unmark(name).map_or(name.clone(), |(_, n)| n.to_owned()));
                }
                TableFactor::Table { name, .. } => {
                    let last = name.0.last().and_then(|p| p.as_ident()).map(|i| i.value.clone()).unwrap_or_default();
                    names.push(super::token::unmark(&last).map_or(last.clone(), |(_, n)| n.to_owned()));
                }
                _ => {}
            }
        }
    }
    names.extend(select.lateral_views.iter().map(|v| v.lateral_view_name.to_string()));
    names
}

/// Gives every expression without an alias the name that Spark gives it.
fn name_columns(select: &mut Select, qualifiers: &[String]) {
    for item in &mut select.projection {
        if let SelectItem::UnnamedExpr(expr) = item
            && !matches!(expr, Expr::Identifier(_))
        {
            let alias = Ident::with_quote('`', column_name(expr, qualifiers));
            let expr = std::mem::replace(expr, Expr::Value(Value::Null.into()));
            *item = SelectItem::ExprWithAlias { expr, alias };
        }
    }
}

/// The numbers of `GROUP BY 1` and of window frames are no literals of Spark's types.
fn keep_ordinals(select: &mut Select) {
    if let GroupByExpr::Expressions(list, _) = &mut select.group_by {
        list.iter_mut().for_each(number::keep);
    }
    each_named_bound(select, number::keep);
}

fn each_named_bound(select: &mut Select, change: fn(&mut Expr)) {
    for NamedWindowDefinition(_, definition) in &mut select.named_window {
        if let NamedWindowExpr::WindowSpec(spec) = definition {
            each_bound(spec, change);
        }
    }
}

fn each_bound(spec: &mut WindowSpec, change: fn(&mut Expr)) {
    let Some(frame) = &mut spec.window_frame else { return };
    for bound in std::iter::once(&mut frame.start_bound).chain(&mut frame.end_bound) {
        if let WindowFrameBound::Preceding(Some(e)) | WindowFrameBound::Following(Some(e)) = bound {
            change(e);
        }
    }
}

fn exclude_from_wildcard(projection: &mut [SelectItem], names: &[String]) {
    for item in projection {
        if let SelectItem::Wildcard(options) = item
            && let Some((first, rest)) = names.split_first()
            && options.opt_except.is_none()
        {
            options.opt_except = Some(sqlparser::ast::ExceptSelectItem {
                first_element: Ident::with_quote('`', first),
                additional_elements: rest.iter().map(|n| Ident::with_quote('`', n)).collect(),
            });
        }
    }
}

fn field_access(root: Expr, chain: Vec<AccessExpr>) -> Result<Expr, SqlError> {
    chain.into_iter().try_fold(root, |e, access| match access {
        AccessExpr::Dot(Expr::Identifier(name)) => Ok(call("__field", vec![e, string(&name.value)])),
        AccessExpr::Subscript(Subscript::Index { index }) => Ok(call("__item", vec![e, index])),
        other => Err(SqlError::unsupported(format!("the access {other}"))),
    })
}

fn typed_literal(data_type: &DataType) -> String {
    data_type.to_string()
}

/// `struct(a, b.c, d AS e, 1)` as `named_struct('a', a, 'c', b.c, 'e', d, 'col4', 1)`.
fn named_struct(values: Vec<Expr>) -> Expr {
    let mut args = Vec::with_capacity(values.len() * 2);
    for (i, value) in values.into_iter().enumerate() {
        let (name, value) = match value {
            Expr::Named { expr, name } => (name.value, *expr),
            Expr::Identifier(name) => (name.value.clone(), Expr::Identifier(name)),
            Expr::CompoundIdentifier(parts) => {
                let name = parts.last().map(|p| p.value.clone()).unwrap_or_default();
                (name, Expr::CompoundIdentifier(parts))
            }
            other => (field_name(&other).unwrap_or_else(|| format!("col{}", i + 1)), other),
        };
        args.push(string(&name));
        args.push(value);
    }
    call("named_struct", args)
}

/// The field that a rewritten access `__field(e, 'name')` ends in.
fn field_name(expr: &Expr) -> Option<String> {
    let Expr::Function(function) = expr else { return None };
    if function_name(&function.name) != "__field" {
        return None;
    }
    match arguments(function).pop()? {
        Expr::Value(value) => value.value.into_string(),
        _ => None,
    }
}

fn rewrite_function(mut function: Function) -> Expr {
    let name = function_name(&function.name);
    function.name = ObjectName::from(vec![ident_like(&function.name, &name)]);
    let args = arguments(&function);
    let plain = function.over.is_none() && function.filter.is_none();
    guard_filtered(&mut function);
    match (name.as_str(), args.as_slice()) {
        ("struct", _) => named_struct(args),
        ("count_if", [condition]) => {
            let case = case_when(condition.clone(), plain_number("1"));
            set_arguments(&mut function, vec![case]);
            rename(function, "count")
        }
        ("first" | "last" | "any_value", [e, Expr::Value(flag)]) if flag.value == Value::Boolean(true) => {
            set_arguments(&mut function, vec![e.clone()]);
            function.null_treatment = Some(sqlparser::ast::NullTreatment::IgnoreNulls);
            rename(function, if name == "last" { "last_value" } else { "first_value" })
        }
        ("approx_count_distinct", [_]) => rename(function, "approx_distinct"),
        ("row_number" | "rank" | "dense_rank" | "ntile", _) if function.over.is_some() => {
            call("__cast", vec![Expr::Function(function), string("INT")])
        }
        ("array_sort", [_, Expr::Lambda(_)]) => rename(function, "__array_sort_by"),
        ("median", [e]) => {
            set_arguments(
                &mut function,
                vec![call("__cast", vec![e.clone(), string("DOUBLE")]), number::carry("0.5D")],
            );
            rename(function, "percentile_cont")
        }
        _ => match (plain.then(|| calls::plain(&name, &args)).flatten(), calls::other_name(&name)) {
            (Some(expr), _) => expr,
            (None, Some(other)) => rename(function, other),
            (None, None) => Expr::Function(function),
        },
    }
}

/// `count(DISTINCT a, b)` counts the rows in which none of them is null: as structs of them.
fn counted_rows(mut function: Function) -> Result<Function, SqlError> {
    let FunctionArguments::List(list) = &function.args else { return Ok(function) };
    let distinct = matches!(list.duplicate_treatment, Some(DuplicateTreatment::Distinct));
    if !distinct || function_name(&function.name) != "count" {
        return Ok(function);
    }
    let args = arguments(&function);
    if args.len() < list.args.len() {
        return Err(SqlError::unsupported("count(DISTINCT *)").hint("Name the columns: count(DISTINCT a, b)."));
    }
    if args.len() < 2 {
        return Ok(function);
    }
    let whole = args.iter().map(|e| Expr::IsNotNull(Box::new(e.clone()))).reduce(|left, right| Expr::BinaryOp {
        left: Box::new(left),
        op: BinaryOperator::And,
        right: Box::new(right),
    });
    let fields = args.iter().enumerate().flat_map(|(i, e)| [string(&format!("c{i}")), e.clone()]).collect();
    if let Some(whole) = whole {
        set_arguments(&mut function, vec![case_when(whole, call("named_struct", fields))]);
    }
    Ok(function)
}

/// `sum(y / x) FILTER (WHERE x <> 0)` divides where the filter holds only: the argument becomes a `CASE` of it, which
/// is null, and so not counted, elsewhere.
fn guard_filtered(function: &mut Function) {
    let Some(filter) = function.filter.clone() else { return };
    let FunctionArguments::List(list) = &mut function.args else { return };
    for arg in &mut list.args {
        if let FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) = arg
            && matches!(e, Expr::Function(_) | Expr::Case { .. } | Expr::BinaryOp { .. })
        {
            let value = std::mem::replace(e, string(""));
            *e = case_when(filter.as_ref().clone(), value);
        }
    }
}

fn case_when(condition: Expr, result: Expr) -> Expr {
    Expr::Case {
        case_token: sqlparser::ast::helpers::attached_token::AttachedToken::empty(),
        end_token: sqlparser::ast::helpers::attached_token::AttachedToken::empty(),
        operand: None,
        conditions: vec![sqlparser::ast::CaseWhen { condition, result }],
        else_result: None,
    }
}

/// A function's name in lower case, without backticks.
pub(crate) fn function_name(name: &ObjectName) -> String {
    let parts = name.0.iter().filter_map(|p| p.as_ident()).map(|i| i.value.to_ascii_lowercase());
    parts.collect::<Vec<_>>().join(".")
}

/// The lower-cased name with the place of the original, so that errors can point at it.
fn ident_like(original: &ObjectName, name: &str) -> Ident {
    let mut ident = Ident::with_quote('`', name);
    if let Some(first) = original.0.first().and_then(|p| p.as_ident()) {
        ident.span = first.span;
    }
    ident
}

fn rename(mut function: Function, name: &str) -> Expr {
    function.name = ObjectName::from(vec![ident_like(&function.name, name)]);
    Expr::Function(function)
}

fn set_arguments(function: &mut Function, args: Vec<Expr>) {
    if let FunctionArguments::List(list) = &mut function.args {
        list.args = args.into_iter().map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e))).collect();
    }
}

/// The plain expression arguments of a call.
pub(crate) fn arguments(function: &Function) -> Vec<Expr> {
    let FunctionArguments::List(list) = &function.args else { return Vec::new() };
    list.args
        .iter()
        .filter_map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Some(e.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::with_quote('`', name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

pub(crate) fn string(text: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(text.to_owned()).into())
}

fn plain_number(text: &str) -> Expr {
    Expr::Value(Value::Number(text.to_owned(), false).into())
}

fn not(expr: Expr) -> Expr {
    Expr::UnaryOp { op: sqlparser::ast::UnaryOperator::Not, expr: Box::new(expr) }
}
