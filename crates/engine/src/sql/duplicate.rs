//! Columns of the same name. Spark's results may have them, DataFusion's may not: such a column is planned under a name
//! of its own, its name with a mark and its place, and shown under its name.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::{DataFusionError, SchemaError};
use sqlparser::ast::{Expr, Ident, SelectItem, Value};

use super::error::SqlError;
use super::resolve::{plain_message, schema_error};

/// Stands between a name and what tells it from others.
const MARK: char = '\u{2}';

/// What is done about columns of one `SELECT` that have the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicates {
    /// They are left to DataFusion, which refuses them.
    Refused,
    Marked,
}

/// Whether an error may come from names that are not unique.
pub(crate) fn is_of_duplicates(error: &DataFusionError) -> bool {
    let ambiguous = matches!(
        schema_error(error),
        Some(
            SchemaError::AmbiguousReference { .. }
                | SchemaError::DuplicateQualifiedField { .. }
                | SchemaError::DuplicateUnqualifiedField { .. }
        )
    );
    ambiguous || plain_message(error).contains("require unique expression names")
}

/// The name without its mark, if it has one.
pub(crate) fn stripped(name: &str) -> Option<&str> {
    name.split_once(MARK).map(|(name, _)| name)
}

/// Marks the items whose names are not the only ones of their kind. Next to `*`, whose names are not known yet, all
/// are marked.
pub(crate) fn mark(projection: &mut [SelectItem], is_generator: fn(&Expr) -> bool) {
    let named = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(Expr::Identifier(name)) => Some(name.value.clone()),
        SelectItem::ExprWithAlias { expr, alias } if !is_generator(expr) => Some(alias.value.clone()),
        _ => None,
    };
    let names: Vec<Option<String>> = projection.iter().map(named).collect();
    let wildcard =
        projection.iter().any(|i| matches!(i, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(_, _)));
    for (place, item) in projection.iter_mut().enumerate() {
        let Some(Some(name)) = names.get(place) else { continue };
        if !wildcard && names.iter().flatten().filter(|n| *n == name).count() < 2 {
            continue;
        }
        let expr = match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                std::mem::replace(expr, Expr::Value(Value::Null.into()))
            }
            _ => continue,
        };
        *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('`', format!("{name}{MARK}{place}")) };
    }
}

/// The schema with the names that are shown; none when it has them already.
pub(crate) fn shown_schema(schema: &Schema) -> Option<SchemaRef> {
    if schema.fields().iter().all(|f| stripped(f.name()).is_none()) {
        return None;
    }
    let shown = |field: &Arc<Field>| match stripped(field.name()) {
        Some(name) => Arc::new(field.as_ref().clone().with_name(name)),
        None => Arc::clone(field),
    };
    let fields: Vec<_> = schema.fields().iter().map(shown).collect();
    Some(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())))
}

/// What is kept under a name has columns that can be told apart.
pub(crate) fn check_unique(schema: &Schema) -> Result<(), SqlError> {
    let mut seen = HashSet::new();
    for field in schema.fields() {
        let name = stripped(field.name()).unwrap_or(field.name());
        if !seen.insert(name.to_lowercase()) {
            let message = format!(
                "The column `{}` already exists. Choose another name or rename the existing column. SQLSTATE: 42711",
                name.to_lowercase()
            );
            return Err(SqlError::new("COLUMN_ALREADY_EXISTS", message));
        }
    }
    Ok(())
}
