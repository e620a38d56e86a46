//! Tables made from a query's rows: `CREATE TABLE ... AS SELECT` and `CREATE MATERIALIZED VIEW`.
//!
//! The query runs once. Without `USING`, `LOCATION`, `PARTITIONED BY` or `OPTIONS` the rows stay in memory; otherwise
//! they are written as files, Parquet unless `USING` says otherwise, below the warehouse unless `LOCATION` does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::datasource::MemTable;

use super::catalog::{Table, is_streaming};
use super::connect;
use super::error::SqlError;
use super::resolve;
use super::session::{SqlSession, StatementResult};
use super::statement::{CreateTable, ParsedQuery};
use crate::format::cell::utc;
use crate::sink::file::FileFormat;
use crate::sink::{OutputMode, Sink};

impl SqlSession {
    /// Runs the query and keeps its rows under the table's name; `what` is `table` or `materialized view`.
    pub(super) async fn create_from_query(
        &self,
        what: &str,
        table: &CreateTable,
        query: &ParsedQuery,
        text: &str,
    ) -> Result<StatementResult, SqlError> {
        let at = |error: SqlError| match table.name_at {
            Some(place) => error.at(text, place, table.name.len()),
            None => error,
        };
        if !self.check_new(table, text)? {
            return Ok(StatementResult::Done(format!("{what} {} exists already", table.name)));
        }
        if table.schema.is_some() {
            let message = "Schema may not be specified in a Create Table As Select (CTAS) statement.";
            return Err(at(SqlError::parse(message)).hint("Name and cast the columns in the SELECT."));
        }
        let plan = self.plan_query(query, text).await?;
        if is_streaming(&plan) {
            let message = format!("The query of the {what} `{}` reads a stream, which has no end.", table.name);
            let error = SqlError::new("INVALID_FLOW_QUERY_TYPE.STREAMING_RELATION_FOR_MATERIALIZED_VIEW", message);
            return Err(
                at(error).hint("CREATE STREAMING TABLE follows a stream; FROM t without STREAM reads what is there.")
            );
        }
        let in_memory = table.format.is_none()
            && table.location.is_none()
            && table.partitioned_by.is_empty()
            && table.options.is_empty();
        let made = if in_memory {
            let (schema, batches) = self.collect(plan).await?;
            let rows = MemTable::try_new(schema, vec![batches]).map_err(|e| resolve::runtime_error(&e))?;
            (Table::Memory(Arc::new(rows)), None)
        } else {
            self.write_files(table, plan).await.map_err(at)?
        };
        self.register(table, made.0, made.1);
        Ok(StatementResult::Done(format!("created {what} {}", table.name)))
    }

    async fn write_files(
        &self,
        table: &CreateTable,
        plan: datafusion::logical_expr::LogicalPlan,
    ) -> Result<(Table, Option<PathBuf>), SqlError> {
        let format = table.format.as_deref().unwrap_or("parquet");
        let Some(file) = FileFormat::from_name(format) else {
            return Err(SqlError::unsupported(format!("AS SELECT into a table USING {format}")).hint(
                "Rows can be written as parquet, json, csv and text; CREATE STREAMING TABLE writes into topics.",
            ));
        };
        let mut options: BTreeMap<String, String> = table.options.iter().cloned().collect();
        let directory = self.warehouse.join(table.name.to_lowercase());
        if let Some(location) = &table.location {
            options.insert("path".to_owned(), location.clone());
        }
        let placeless = !options.contains_key("path");
        let path = options.entry("path".to_owned()).or_insert_with(|| directory.display().to_string()).clone();
        let local = crate::source::file::path::local_path(&path)?;
        let managed = placeless.then(|| directory.clone());
        // What the table replaces may be what the query reads: it goes after that.
        let (schema, batches) = self.collect(plan).await?;
        let replaced = self.catalog.get(&table.name).and_then(|old| old.details.managed);
        if let Some(old) = replaced.filter(|_| table.or_replace) {
            let failed = |e| SqlError::new("CANNOT_REPLACE_TABLE", format!("failed to remove {}: {e}", old.display()));
            std::fs::remove_dir_all(&old).map_err(failed)?;
        }
        check_empty(&table.name, &local)?;
        let mut sink = connect::file_sink(file, &options, &table.partitioned_by, &directory, utc())?;
        sink.add_batch(0, OutputMode::Append, Arc::clone(&schema), batches).await?;
        // How files are compressed stands in them.
        options.retain(|name, _| !name.eq_ignore_ascii_case("compression"));
        Ok((connect::table(format, options, Some(schema), utc())?, managed))
    }
}

/// Files of something else must neither be lost nor read as the table's.
fn check_empty(name: &str, directory: &Path) -> Result<(), SqlError> {
    let occupied =
        directory.is_file() || std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
    if !occupied {
        return Ok(());
    }
    let message = format!(
        "Cannot name the managed table as `{name}`, as its associated location '{}' already exists. Please pick a different table name, or remove the existing location first. SQLSTATE: 42710",
        directory.display()
    );
    Err(SqlError::new("LOCATION_ALREADY_EXISTS", message))
}
