//! DataFusion's planning hooks with Spark's meaning: marked relations, field access, division, types.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{
    Column, DFSchema, DataFusionError, Result, ScalarValue, TableReference, UnnestOptions, plan_err,
};
use datafusion::datasource::{TableProvider, provider_as_source};
use datafusion::logical_expr::planner::{
    ExprPlanner, PlannedRelation, PlannerResult, RawBinaryExpr, RawFieldAccessExpr, RelationPlanner,
    RelationPlannerContext, RelationPlanning, TypePlanner,
};
use datafusion::logical_expr::{Expr, ExprSchemable, GetFieldAccess, LogicalPlan, LogicalPlanBuilder, lit};
use sqlparser::ast::{self, BinaryOperator, ObjectNamePart, TableFactor};

use super::ast::{Generator, RelationSpec};
use super::catalog::Catalog;
use super::interval;
use super::number;
use super::qualifier::unqualified;
use super::token::unmark;
use crate::format::cell::utc;
use crate::function;
use crate::function::arithmetic::Operation;
use crate::options::Options;
use crate::plan::{EventTimeWatermark, nodes::WATERMARK_DELAY_KEY};
use crate::source::bounded::BoundedTable;
use crate::source::file::{FileFormat, FileTable};

/// Plans the relations that [`super::ast::rewrite`] marked.
#[derive(Debug)]
pub(crate) struct MarkedRelations {
    pub specs: Vec<RelationSpec>,
    pub catalog: Arc<Catalog>,
}

impl RelationPlanner for MarkedRelations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        match relation {
            TableFactor::Table { name, alias, .. } if mark_of_table(&name).is_some() => {
                self.table(&name, alias, context)
            }
            TableFactor::Table { name, alias, args: None, .. } if path_relation(&name).is_some() => {
                planned(path_scan(&name, &[])?, alias)
            }
            TableFactor::Table { name, alias, args: Some(args), .. } if is_range(&name, &args) => {
                range(name, alias, args, context)
            }
            TableFactor::Derived { lateral, subquery, alias: Some(alias), sample }
                if unmark(&alias.name.value).is_some() =>
            {
                let plan = context.plan(TableFactor::Derived { lateral, subquery, alias: None, sample })?;
                self.aliased(plan, alias, context)
            }
            TableFactor::NestedJoin { table_with_joins, alias: Some(alias) } if unmark(&alias.name.value).is_some() => {
                let plan = context.plan(TableFactor::NestedJoin { table_with_joins, alias: None })?;
                self.aliased(plan, alias, context)
            }
            other => Ok(RelationPlanning::Original(Box::new(other))),
        }
    }
}

fn mark_of_table(name: &ast::ObjectName) -> Option<(usize, String)> {
    let ident = name.0.last().and_then(ObjectNamePart::as_ident)?;
    unmark(&ident.value).map(|(index, name)| (index, name.to_owned()))
}

/// Formats that Spark reads by path alone: ``parquet.`dir` ``. Of these Caudal has the first four.
const PATH_FORMATS: [&str; 10] =
    ["parquet", "json", "csv", "text", "orc", "avro", "xml", "binaryfile", "delta", "kafka"];

/// The format and the path of a relation such as ``parquet.`dir` ``.
pub(crate) fn path_relation(name: &ast::ObjectName) -> Option<(String, String)> {
    let [format, path] = name.0.as_slice() else { return None };
    let format = format.as_ident()?.value.to_ascii_lowercase();
    let path = &path.as_ident()?.value;
    let path = unmark(path).map_or(path.as_str(), |(_, path)| path);
    PATH_FORMATS.contains(&format.as_str()).then(|| (format, path.to_owned()))
}

/// The files under a path, as a table with the schema that they have.
fn path_scan(name: &ast::ObjectName, options: &[(String, String)]) -> Result<LogicalPlan> {
    let Some((format, path)) = path_relation(name) else { return plan_err!("{name} is no path") };
    let Some(known) = FileFormat::from_name(&format) else {
        return plan_err!(
            "[UNSUPPORTED_DATASOURCE_FOR_DIRECT_QUERY] Unsupported data source type for direct query on files: {format}. Caudal has parquet, json, csv and text. SQLSTATE: 0A000"
        );
    };
    let mut options: Options = options.iter().map(|(name, value)| (name, value)).collect();
    options.set("path", path.as_str());
    let table = FileTable::table(known, &options, None, utc()).map_err(|e| DataFusionError::External(Box::new(e)))?;
    let provider = Arc::new(BoundedTable::new(Arc::new(table)));
    LogicalPlanBuilder::scan(TableReference::bare(path), provider_as_source(provider), None)?.build()
}

/// Whether it is Spark's `range` with literals as arguments; planned as such, it comes back with plain numbers.
fn is_range(name: &ast::ObjectName, args: &ast::TableFunctionArgs) -> bool {
    let carried = |arg: &ast::FunctionArg| match arg {
        ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(e)) => number::text_of(e).is_some(),
        _ => false,
    };
    matches!(name.0.as_slice(), [part] if part.as_ident().is_some_and(|i| i.value.eq_ignore_ascii_case("range")))
        && args.args.iter().any(carried)
}

/// `range([start, ]end[, step[, partitions]])`: its column is `id`.
fn range(
    mut name: ast::ObjectName,
    alias: Option<ast::TableAlias>,
    mut args: ast::TableFunctionArgs,
    context: &mut dyn RelationPlannerContext,
) -> Result<RelationPlanning> {
    // How many partitions there are does not show in the rows.
    args.args.truncate(3);
    for arg in &mut args.args {
        if let ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(e)) = arg
            && let Some(text) = number::text_of(e)
        {
            *e = ast::Expr::Value(ast::Value::Number(text.trim_end_matches(['L', 'l']).to_owned(), true).into());
        }
    }
    if let Some(ObjectNamePart::Identifier(ident)) = name.0.first_mut() {
        *ident = ast::Ident::new("range");
    }
    let mut factor = super::ast::table("range");
    if let TableFactor::Table { name: own, args: own_args, .. } = &mut factor {
        *own = name;
        *own_args = Some(args);
    }
    let plan = context.plan(factor)?;
    let columns: Vec<Expr> = plan.schema().columns().into_iter().map(|c| Expr::Column(c).alias("id")).collect();
    planned(LogicalPlanBuilder::from(plan).project(columns)?.build()?, alias)
}

fn planned(plan: LogicalPlan, alias: Option<ast::TableAlias>) -> Result<RelationPlanning> {
    Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
}

impl MarkedRelations {
    fn spec(&self, index: usize) -> Result<&RelationSpec> {
        match self.specs.get(index) {
            Some(spec) => Ok(spec),
            None => plan_err!("no relation has the mark {index}"),
        }
    }

    fn table(
        &self,
        relation: &ast::ObjectName,
        alias: Option<ast::TableAlias>,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let Some((index, name)) = mark_of_table(relation) else { return plan_err!("not a marked table") };
        let parts: Vec<&str> = relation.0.iter().filter_map(|p| p.as_ident()).map(|i| i.value.as_str()).collect();
        if unqualified(&parts).is_none() && path_relation(relation).is_none() {
            return plan_err!("table '{name}' not found");
        }
        let plan = match self.spec(index)? {
            RelationSpec::OneRow => return planned(LogicalPlanBuilder::empty(true).build()?, alias),
            RelationSpec::Mark { mark, watermark_expression } => {
                let plan = match (path_relation(relation), mark.stream) {
                    (None, _) => self.scan(&name, mark, context)?,
                    (Some(_), false) => path_scan(relation, &mark.options)?,
                    (Some((format, path)), true) => {
                        return plan_err!(
                            "[UNSUPPORTED_STREAMING_TABLE] {format}.`{path}` is read as a table only. Name it to read it as a stream: CREATE TABLE t USING {format} OPTIONS (path '{path}')"
                        );
                    }
                };
                watermarked(plan, watermark_expression.as_ref(), mark, context)?
            }
            _ => return plan_err!("the mark {index} is not a table's"),
        };
        planned(plan, alias)
    }

    /// The marked table itself. Without `STREAM` and options it may be a query of `WITH`.
    fn scan(
        &self,
        name: &str,
        mark: &super::token::RelationMark,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<LogicalPlan> {
        if !mark.stream
            && mark.options.is_empty()
            && let Ok(plan) = context.plan(super::ast::table(name))
        {
            return Ok(plan);
        }
        let provider: Arc<dyn TableProvider> = if mark.stream {
            self.catalog.stream(name, &mark.options)?
        } else {
            self.catalog.batch(name, &mark.options)?
        };
        LogicalPlanBuilder::scan(TableReference::bare(name), provider_as_source(provider), None)?.build()
    }

    fn aliased(
        &self,
        plan: LogicalPlan,
        mut alias: ast::TableAlias,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let Some((index, name)) = unmark(&alias.name.value).map(|(i, n)| (i, n.to_owned())) else {
            return plan_err!("not a marked alias");
        };
        let plan = match self.spec(index)? {
            RelationSpec::Mark { mark, watermark_expression } => {
                watermarked(plan, watermark_expression.as_ref(), mark, context)?
            }
            RelationSpec::Generate(generator) => generate(plan, generator, context)?,
            RelationSpec::TimeWindow { args, name } => time_window(plan, args, name, context)?,
            RelationSpec::OneRow => plan,
        };
        alias.name.value = name;
        let alias = Some(alias).filter(|a| !a.name.value.is_empty());
        planned(plan, alias)
    }
}

/// `WATERMARK ts DELAY OF ...`; an expression other than a column becomes a column of its own first.
fn watermarked(
    plan: LogicalPlan,
    expression: Option<&ast::Expr>,
    mark: &super::token::RelationMark,
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan> {
    let (Some(watermark), Some(expression)) = (&mark.watermark, expression) else { return Ok(plan) };
    let schema = Arc::clone(plan.schema());
    let expr = context.sql_to_expr(expression.clone(), &schema)?;
    let (plan, column) = match (expr, &watermark.alias) {
        (Expr::Column(column), None) => (plan, column),
        (expr, Some(alias)) => {
            let mut columns = all_columns(&schema);
            columns.push(expr.alias(alias));
            (LogicalPlanBuilder::from(plan).project(columns)?.build()?, Column::new_unqualified(alias))
        }
        (expr, None) => {
            return plan_err!(
                "[REQUIRED_EXPRESSION_ALIAS] The expression {expr} of WATERMARK needs an alias: WATERMARK ... AS name DELAY OF ..."
            );
        }
    };
    Ok(EventTimeWatermark::try_new(plan, column, watermark.delay_ms)?.into_plan())
}

fn all_columns(schema: &DFSchema) -> Vec<Expr> {
    schema.columns().into_iter().map(Expr::Column).collect()
}

/// Adds the generated columns, qualified by the generator's table alias.
fn generate(plan: LogicalPlan, generator: &Generator, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    let schema = Arc::clone(plan.schema());
    let argument = context.sql_to_expr(generator.argument.clone(), &schema)?;
    if generator.kind == "struct" {
        return struct_fields(plan, argument, generator);
    }
    let udf = function::generator::generator(&generator.kind, generator.outer);
    let rows = format!("{}\u{1}rows", generator.qualifier);
    let mut columns = all_columns(&schema);
    columns.push(udf.call(vec![argument]).alias(&rows));
    let unnested = LogicalPlanBuilder::from(plan)
        .project(columns)?
        .unnest_column_with_options(Column::new_unqualified(&rows), UnnestOptions::new().with_preserve_nulls(false))?
        .build()?;
    let index = unnested.schema().index_of_column(&Column::new_unqualified(&rows))?;
    let DataType::Struct(fields) = unnested.schema().field(index).data_type().clone() else {
        return plan_err!("{} did not generate rows", generator.kind);
    };
    if !generator.columns.is_empty() && generator.columns.len() != fields.len() {
        return plan_err!(
            "[NUM_COLUMNS_MISMATCH] {} generates {} columns, but {} aliases were given",
            generator.kind,
            fields.len(),
            generator.columns.len()
        );
    }
    let mut columns = all_columns(&schema);
    for (i, field) in fields.iter().enumerate() {
        let name = generator.columns.get(i).unwrap_or(field.name());
        let value = function::field::field()
            .call(vec![Expr::Column(Column::new_unqualified(&rows)), lit(field.name().as_str())]);
        columns.push(value.alias_qualified(Some(TableReference::bare(generator.qualifier.as_str())), name));
    }
    LogicalPlanBuilder::from(unnested).project(columns)?.build()
}

/// Adds the fields of a struct as columns.
fn struct_fields(plan: LogicalPlan, argument: Expr, generator: &Generator) -> Result<LogicalPlan> {
    let schema = Arc::clone(plan.schema());
    let DataType::Struct(fields) = ExprSchemable::get_type(&argument, &schema)? else {
        return plan_err!(
            "[CANNOT_RESOLVE_STAR_EXPAND] Cannot resolve {argument}.*: it is neither a table nor a struct. SQLSTATE: 42704"
        );
    };
    let mut columns = all_columns(&schema);
    let qualifier = TableReference::bare(generator.qualifier.as_str());
    for field in &fields {
        let value = function::field::field().call(vec![argument.clone(), lit(field.name().as_str())]);
        columns.push(value.alias_qualified(Some(qualifier.clone()), field.name()));
    }
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

/// Adds the column `window`; a sliding window repeats the row for each window it falls into.
fn time_window(
    plan: LogicalPlan,
    args: &[ast::Expr],
    name: &str,
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan> {
    let schema = Arc::clone(plan.schema());
    let [time, rest @ ..] = args else { return plan_err!("window needs a time column and a duration") };
    let mut micros = Vec::new();
    for arg in rest {
        micros.push(duration_micros(arg)?);
    }
    let (size, slide, start) = match micros.as_slice() {
        [size] => (*size, *size, 0),
        [size, slide] => (*size, *slide, 0),
        [size, slide, start] => (*size, *slide, *start),
        _ => return plan_err!("window takes (time, windowDuration[, slideDuration[, startTime]])"),
    };
    let mut time = context.sql_to_expr(time.clone(), &schema)?;
    let (_, field) = datafusion::logical_expr::ExprSchemable::to_field(&time, &schema)?;
    let delay = field.metadata().get(WATERMARK_DELAY_KEY).cloned();
    if matches!(field.data_type(), DataType::Struct(_)) {
        time = function::window::window_time().call(vec![time]);
    }
    let window = function::window::time_window(size, slide, start)?;
    let tag = function::window::tag_window(delay);
    let mut columns = all_columns(&schema);
    let builder = LogicalPlanBuilder::from(plan).filter(time.clone().is_not_null())?;
    if size == slide {
        columns.push(tag.call(vec![window.call(vec![time])]).alias(name));
        return builder.project(columns)?.build();
    }
    let rows = "\u{1}windows";
    let mut with_list = columns.clone();
    with_list.push(window.call(vec![time]).alias(rows));
    columns.push(tag.call(vec![Expr::Column(Column::new_unqualified(rows))]).alias(name));
    builder
        .project(with_list)?
        .unnest_column_with_options(Column::new_unqualified(rows), UnnestOptions::new().with_preserve_nulls(false))?
        .project(columns)?
        .build()
}

fn duration_micros(arg: &ast::Expr) -> Result<i64> {
    let parsed = match arg {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::SingleQuotedString(s) | ast::Value::DoubleQuotedString(s) => interval::parse_text(s),
            _ => None,
        },
        ast::Expr::Array(_) => {
            let micros = number::text_of(arg).and_then(|n| n.parse().ok());
            micros.map(|micros| interval::Interval { micros, ..Default::default() })
        }
        ast::Expr::Interval(interval) => match interval.value.as_ref() {
            ast::Expr::Value(value) => match &value.value {
                ast::Value::SingleQuotedString(s) => interval::parse_text(s),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    match parsed.map(interval::Interval::fixed_micros) {
        Some(Some(micros)) => Ok(micros),
        Some(None) => plan_err!("[INVALID_INTERVAL] Intervals greater than a month are not supported in window: {arg}"),
        None => plan_err!("[INVALID_INTERVAL_FORMAT] Cannot parse {arg} as an interval such as '10 minutes'"),
    }
}

/// Field access, division and literals with Spark's meaning.
#[derive(Debug)]
pub(crate) struct SparkExpressions;

impl ExprPlanner for SparkExpressions {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let operation = match expr.op {
            BinaryOperator::Plus => Operation::Add,
            BinaryOperator::Minus => Operation::Subtract,
            BinaryOperator::Multiply => Operation::Multiply,
            BinaryOperator::Divide => Operation::Divide,
            BinaryOperator::Modulo => Operation::Remainder,
            BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq => return Ok(PlannerResult::Original(comparison(expr, schema)?)),
            _ => return Ok(PlannerResult::Original(expr)),
        };
        arithmetic(operation, expr, schema)
    }

    /// Number literals arrive as arrays of one text (see [`super::number`]).
    fn plan_array_literal(&self, exprs: Vec<Expr>, _schema: &DFSchema) -> Result<PlannerResult<Vec<Expr>>> {
        match exprs.as_slice() {
            [Expr::Literal(ScalarValue::Utf8(Some(text)), _)] => match number::value(text) {
                Ok(value) => Ok(PlannerResult::Planned(Expr::Literal(value, None))),
                Err(error) => plan_err!("[{}] {}", error.class, error.message),
            },
            _ => Ok(PlannerResult::Original(exprs)),
        }
    }

    fn plan_field_access(
        &self,
        expr: RawFieldAccessExpr,
        _schema: &DFSchema,
    ) -> Result<PlannerResult<RawFieldAccessExpr>> {
        let RawFieldAccessExpr { field_access, expr } = expr;
        match field_access {
            GetFieldAccess::NamedStructField { name } => {
                Ok(PlannerResult::Planned(function::field::field().call(vec![expr, lit(name)])))
            }
            GetFieldAccess::ListIndex { key } => {
                Ok(PlannerResult::Planned(function::field::item().call(vec![expr, *key])))
            }
            other => Ok(PlannerResult::Original(RawFieldAccessExpr { field_access: other, expr })),
        }
    }

    fn plan_compound_identifier(
        &self,
        field: &Field,
        qualifier: Option<&TableReference>,
        nested_names: &[String],
    ) -> Result<PlannerResult<Vec<Expr>>> {
        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        let access =
            nested_names.iter().fold(column, |e, name| function::field::field().call(vec![e, lit(name.as_str())]));
        Ok(PlannerResult::Planned(access))
    }
}

/// A FLOAT beside a decimal: both are compared as DOUBLE, so that `cast(0.1 as float) = 0.1` is false.
fn comparison(mut expr: RawBinaryExpr, schema: &DFSchema) -> Result<RawBinaryExpr> {
    let types = [&expr.left, &expr.right].map(|side| match function::arithmetic::chain_type(side) {
        Some(known) => Some(known.clone()),
        None => ExprSchemable::get_type(side, schema).ok(),
    });
    if let [Some(DataType::Float32), Some(DataType::Decimal128(_, _))]
    | [Some(DataType::Decimal128(_, _)), Some(DataType::Float32)] = types
    {
        let as_double = |e| function::cast::cast().call(vec![e, lit("DOUBLE")]);
        expr.left = as_double(expr.left);
        expr.right = as_double(expr.right);
    }
    Ok(expr)
}

/// Arithmetic of numbers has Spark's types; that of dates and times is left to DataFusion, but for whole days.
fn arithmetic(
    operation: Operation,
    mut expr: RawBinaryExpr,
    schema: &DFSchema,
) -> Result<PlannerResult<RawBinaryExpr>> {
    let types = |e: &Expr| match function::arithmetic::chain_type(e) {
        Some(known) => Ok(known.clone()),
        None => ExprSchemable::get_type(e, schema),
    };
    let (left, right) = (types(&expr.left)?, types(&expr.right)?);
    let temporal = |ty: &DataType| ty.is_temporal() || matches!(ty, DataType::Interval(_));
    match (&left, &right, operation) {
        (DataType::Date32, days, Operation::Add | Operation::Subtract) if days.is_integer() => {
            let add = operation == Operation::Add;
            let udf = if add {
                datafusion_spark::function::datetime::date_add()
            } else {
                datafusion_spark::function::datetime::date_sub()
            };
            return Ok(PlannerResult::Planned(udf.call(vec![expr.left, expr.right])));
        }
        (days, DataType::Date32, Operation::Add) if days.is_integer() => {
            return Ok(PlannerResult::Planned(
                datafusion_spark::function::datetime::date_add().call(vec![expr.right, expr.left]),
            ));
        }
        (DataType::Date32, DataType::Date32 | DataType::Null, Operation::Subtract) => {
            return Ok(PlannerResult::Planned(function::calendar::days_between().call(vec![expr.left, expr.right])));
        }
        (l, r, _) if temporal(l) || temporal(r) => return Ok(PlannerResult::Original(expr)),
        _ => {}
    }
    // What is wrong with the types is told with the operator's sides.
    function::arithmetic::operands(operation, operation.symbol(), &[left.clone(), right.clone()])?;
    for (side, own, other) in [(&mut expr.left, &left, &right), (&mut expr.right, &right, &left)] {
        if let Expr::Literal(value, _) = side
            && matches!(other, DataType::Decimal128(_, _))
            && let Some(narrow) = number::narrow_decimal(value)
        {
            *side = Expr::Literal(narrow, None);
        }
        if own.is_string() && *other != DataType::Null {
            let to = function::ddl::type_name(&function::arithmetic::text_operand(other));
            *side = function::cast::cast().call(vec![side.clone(), lit(to)]);
        }
    }
    let joined = function::arithmetic::join(operation, expr.left, expr.right, &[left, right])?;
    Ok(PlannerResult::Planned(joined))
}

/// SQL types that are left after casts became functions (`CREATE TABLE` schemas go through the DDL parser).
#[derive(Debug)]
pub(crate) struct SparkTypes;

impl TypePlanner for SparkTypes {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> Result<Option<FieldRef>> {
        let data_type = function::ddl::parse_type(&sql_type.to_string())
            .map_err(|e| datafusion::common::DataFusionError::Plan(e.to_string()))?;
        Ok(Some(Arc::new(Field::new("", data_type, true))))
    }
}
