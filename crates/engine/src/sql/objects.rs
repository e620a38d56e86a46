//! `SHOW`, `DESCRIBE`, `DROP`, `EXPLAIN`: statements about tables, views and functions.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::physical_plan::displayable;
use sqlparser::tokenizer::Location;

use super::catalog::{Entry, Table, is_streaming};
use super::error::SqlError;
use super::resolve;
use super::rows::RowStream;
use super::session::{SqlSession, StatementResult};
use super::statement::{CreateTable, Described, Kind, Listed};
use crate::function::ddl::catalog_name;

/// The key in a column's metadata that says: print its texts as they are, without a table around them.
pub const PLAIN_TEXT: &str = "caudal.plain";

impl SqlSession {
    pub(super) fn show(&self, listed: Listed, pattern: Option<&str>) -> Result<StatementResult, SqlError> {
        let wanted = |name: &str| pattern.is_none_or(|p| matches(p, name));
        let column = match listed {
            Listed::Functions { system } => {
                let mut names = if system { resolve::function_names() } else { Vec::new() };
                names.retain(|name| wanted(name));
                return text_rows(&[("function", names)]);
            }
            Listed::Tables => "tableName",
            Listed::Views => "viewName",
        };
        let mut entries = self.catalog.entries();
        let is_listed = |e: &Entry| listed == Listed::Tables || matches!(e.table, Table::View { .. });
        entries.retain(|e| is_listed(e) && wanted(&e.name));
        entries.sort_by_key(|e| e.temporary);
        let namespace = |e: &Entry| if e.temporary { String::new() } else { "default".to_owned() };
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(entries.iter().map(|e| e.name.clone())));
        let spaces: ArrayRef = Arc::new(StringArray::from_iter_values(entries.iter().map(namespace)));
        let temporary: ArrayRef = Arc::new(BooleanArray::from_iter(entries.iter().map(|e| Some(e.temporary))));
        let schema = Arc::new(Schema::new(vec![
            Field::new("namespace", DataType::Utf8, false),
            Field::new(column, DataType::Utf8, false),
            Field::new("isTemporary", DataType::Boolean, false),
        ]));
        rows(schema, vec![spaces, names, temporary])
    }

    pub(super) fn describe(&self, what: &Described, text: &str) -> Result<StatementResult, SqlError> {
        let Described { name, at, extended, column } = what;
        let entry = self
            .catalog
            .get(name)
            .ok_or_else(|| resolve::table_missing(name, &self.catalog).at(text, *at, name.chars().count()))?;
        let schema = entry.table.schema();
        let comment = |column: &str| {
            let mut own = entry.details.columns.iter().rev();
            own.find(|(name, _)| name.eq_ignore_ascii_case(column)).map(|(_, comment)| comment.clone())
        };
        if let Some(column) = column {
            let Some(field) = schema.fields().iter().find(|f| f.name().eq_ignore_ascii_case(column)) else {
                let message = format!("Cannot find the column `{column}` of the table `{name}`. SQLSTATE: 42703");
                return Err(SqlError::new("COLUMN_NOT_FOUND", message));
            };
            let names = ["col_name", "data_type", "comment"].map(str::to_owned).to_vec();
            let comment = comment(column).unwrap_or_else(|| "NULL".to_owned());
            let values = vec![field.name().clone(), catalog_name(field.data_type()), comment];
            return text_rows(&[("info_name", names), ("info_value", values)]);
        }
        let mut lines: Vec<[Option<String>; 3]> = schema
            .fields()
            .iter()
            .map(|f| [Some(f.name().clone()), Some(catalog_name(f.data_type())), comment(f.name())])
            .collect();
        if *extended {
            let blank = || Some(String::new());
            lines.push([blank(), blank(), blank()]);
            lines.push([Some("# Detailed Table Information".to_owned()), blank(), blank()]);
            lines.extend(details(&entry).into_iter().map(|(key, value)| [Some(key.to_owned()), Some(value), blank()]));
        }
        described(lines)
    }

    pub(super) fn drop_object(
        &self,
        what: &str,
        name: &str,
        at: Location,
        if_exists: bool,
        text: &str,
    ) -> Result<StatementResult, SqlError> {
        let kind = what.to_lowercase();
        let Some(entry) = self.catalog.get(name) else {
            if if_exists {
                return Ok(StatementResult::Done(format!("there is no {kind} {name}")));
            }
            return Err(resolve::table_missing(name, &self.catalog).at(text, at, name.chars().count()));
        };
        if what == "VIEW" && !matches!(entry.table, Table::View { .. }) && !entry.temporary {
            let message = format!(
                "The operation DROP VIEW requires a VIEW. But spark_catalog.default.{name} is a table. Use DROP TABLE instead. SQLSTATE: 42809"
            );
            return Err(SqlError::new("WRONG_COMMAND_FOR_OBJECT_TYPE", message).at(text, at, name.chars().count()));
        }
        entry.check_idle("dropped").map_err(|error| error.at(text, at, name.chars().count()))?;
        entry.remove_files()?;
        self.catalog.remove(name);
        Ok(StatementResult::Done(format!("dropped {kind} {name}")))
    }

    pub(super) async fn explain(&self, kind: &Kind, extended: bool, text: &str) -> Result<StatementResult, SqlError> {
        let query = match kind {
            Kind::Query(query) => query,
            Kind::CreateStreamingTable(CreateTable { query: Some(query), .. })
            | Kind::CreateMaterializedView(CreateTable { query: Some(query), .. })
            | Kind::CreateTable(CreateTable { query: Some(query), .. })
            | Kind::CreateView(CreateTable { query: Some(query), .. }) => query,
            _ => return Err(SqlError::unsupported("EXPLAIN of this statement")),
        };
        let plan = self.plan_query(query, text).await?;
        let failed = |e: datafusion::error::DataFusionError| resolve::runtime_error(&e);
        let optimised = self.state().optimize(&plan).map_err(failed)?;
        let mut shown = String::new();
        if extended {
            shown.push_str(&format!("== Analyzed Logical Plan ==\n{}\n\n", plan.display_indent()));
        }
        // A stream is planned when it starts, piece by piece.
        let streams = is_streaming(&plan);
        if extended || streams {
            shown.push_str(&format!("== Optimized Logical Plan ==\n{}\n\n", optimised.display_indent()));
        }
        if !streams {
            let physical = self.state().create_physical_plan(&plan).await.map_err(failed)?;
            shown.push_str(&format!("== Physical Plan ==\n{}", displayable(physical.as_ref()).indent(false)));
        }
        let plain = [(PLAIN_TEXT.to_owned(), String::new())].into();
        let field = Field::new("plan", DataType::Utf8, false).with_metadata(plain);
        rows(Arc::new(Schema::new(vec![field])), vec![Arc::new(StringArray::from(vec![shown.trim_end().to_owned()]))])
    }
}

/// What `DESCRIBE EXTENDED` shows below the columns.
fn details(entry: &Entry) -> Vec<(&'static str, String)> {
    let (kind, location) = match (&entry.table, &entry.details.managed) {
        (Table::View { .. }, _) => ("VIEW", None),
        (Table::Memory(_), _) => ("MANAGED", None),
        (Table::External { options, .. }, managed) => {
            (if managed.is_some() { "MANAGED" } else { "EXTERNAL" }, options.get("path").cloned())
        }
    };
    let mut list = vec![
        ("Catalog", "spark_catalog".to_owned()),
        ("Database", if entry.temporary { String::new() } else { "default".to_owned() }),
        ("Table", entry.name.clone()),
        ("Type", kind.to_owned()),
    ];
    if !matches!(entry.table, Table::View { .. }) {
        list.push(("Provider", entry.table.kind().to_owned()));
    }
    list.extend(entry.details.comment.clone().map(|comment| ("Comment", comment)));
    if let Table::View { text, .. } = &entry.table {
        list.push(("View Text", text.clone()));
    }
    let pairs = |pairs: &mut dyn Iterator<Item = (&String, &String)>| {
        let pairs: Vec<String> = pairs.map(|(k, v)| format!("{k}={v}")).collect();
        format!("[{}]", pairs.join(", "))
    };
    if !entry.details.properties.is_empty() {
        list.push(("Table Properties", pairs(&mut entry.details.properties.iter().map(|(k, v)| (k, v)))));
    }
    list.extend(location.map(|path| ("Location", path)));
    if let Table::External { options, .. } = &entry.table {
        // Who may describe a table need not know how it logs in.
        let secret = |name: &str| ["password", "jaas", "secret"].iter().any(|s| name.to_lowercase().contains(s));
        let mut rest = options.iter().filter(|(name, _)| *name != "path" && !secret(name));
        let shown = pairs(&mut rest);
        if shown != "[]" {
            list.push(("Storage Properties", shown));
        }
    }
    list
}

/// Spark's patterns of names: `*` stands for anything, `|` for or; case does not matter.
fn matches(pattern: &str, name: &str) -> bool {
    let name = name.to_lowercase();
    pattern.to_lowercase().split('|').any(|one| {
        let mut parts = one.trim().split('*');
        let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let mut last = None;
        for part in parts {
            if let Some(part) = last.replace(part) {
                let Some(at) = rest.find(part) else { return false };
                rest = rest.get(at + part.len()..).unwrap_or_default();
            }
        }
        last.map_or(rest.is_empty(), |last| rest.ends_with(last))
    })
}

pub(super) fn rows(schema: SchemaRef, columns: Vec<ArrayRef>) -> Result<StatementResult, SqlError> {
    let batch = RecordBatch::try_new(schema, columns).map_err(|e| SqlError::from_message(&e.to_string()))?;
    Ok(StatementResult::Rows(RowStream::ready(batch)))
}

pub(super) fn text_rows(columns: &[(&str, Vec<String>)]) -> Result<StatementResult, SqlError> {
    let fields: Vec<Field> = columns.iter().map(|(name, _)| Field::new(*name, DataType::Utf8, false)).collect();
    let arrays =
        columns.iter().map(|(_, values)| Arc::new(StringArray::from_iter_values(values)) as ArrayRef).collect();
    rows(Arc::new(Schema::new(fields)), arrays)
}

/// The columns of a schema.
pub(super) fn describe(schema: &Schema) -> Result<StatementResult, SqlError> {
    let fields = schema.fields().iter();
    described(fields.map(|f| [Some(f.name().clone()), Some(catalog_name(f.data_type())), None]).collect())
}

fn described(lines: Vec<[Option<String>; 3]>) -> Result<StatementResult, SqlError> {
    let shown = Arc::new(Schema::new(vec![
        Field::new("col_name", DataType::Utf8, false),
        Field::new("data_type", DataType::Utf8, false),
        Field::new("comment", DataType::Utf8, true),
    ]));
    let (mut names, mut types, mut comments) = (Vec::new(), Vec::new(), Vec::new());
    for [name, ty, comment] in lines {
        names.push(name);
        types.push(ty);
        comments.push(comment);
    }
    let column = |texts: Vec<Option<String>>| Arc::new(StringArray::from(texts)) as ArrayRef;
    rows(shown, vec![column(names), column(types), column(comments)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_spark() {
        let all = |pattern: &str| ["abs", "array_append", "array_compact"].map(|n| matches(pattern, n));
        assert_eq!(all("abs|array_app*"), [true, true, false]);
        assert_eq!(all("*"), [true, true, true]);
        assert_eq!(all("ARRAY_*"), [false, true, true]);
        assert_eq!(all("a*a*t"), [false, false, true]);
        assert_eq!(all("array"), [false, false, false]);
    }
}
