//! Tables made from a query's rows: `CREATE TABLE ... AS SELECT` and `CREATE MATERIALIZED VIEW`.
//!
//! The query runs once, and its rows are written as files: Parquet unless `USING` says otherwise, below the warehouse
//! unless `LOCATION` does. Those of a temporary table stay in memory, and those of a materialized view that says nothing
//! about its files: it is computed anew by the statement that makes it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::LogicalPlanBuilder;

use super::catalog::{Details, Entry, Managed, Table, is_streaming};
use super::connect;
use super::duplicate;
use super::error::SqlError;
use super::resolve;
use super::session::{SqlSession, StatementResult};
use super::statement::{CreateTable, ParsedQuery};
use crate::format::cell::utc;
use crate::sink::file::{FileFormat, METADATA_DIR};
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
        duplicate::check_unique(plan.schema().as_arrow())?;
        if is_streaming(&plan) {
            let message = format!("The query of the {what} `{}` reads a stream, which has no end.", table.name);
            let error = SqlError::new("INVALID_FLOW_QUERY_TYPE.STREAMING_RELATION_FOR_MATERIALIZED_VIEW", message);
            return Err(
                at(error).hint("CREATE STREAMING TABLE follows a stream; FROM t without STREAM reads what is there.")
            );
        }
        let in_memory = (table.temporary || what == "materialized view")
            && table.format.is_none()
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
        self.register(table, made.0, made.1, None);
        Ok(StatementResult::Done(format!("created {what} {}", table.name)))
    }

    async fn write_files(
        &self,
        table: &CreateTable,
        plan: datafusion::logical_expr::LogicalPlan,
    ) -> Result<(Table, Option<Managed>), SqlError> {
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
        // What the table replaces may be what the query reads: it goes after that.
        let (schema, batches) = self.collect(plan).await?;
        if let Some(old) = self.catalog.get(&table.name).filter(|_| table.or_replace) {
            old.remove_files()?;
        }
        if table.or_replace && placeless {
            remove_earlier(&directory, &self.warehouse)?;
        }
        check_empty(&table.name, &local)?;
        let mut sink = connect::file_sink(file, &options, &table.partitioned_by, &directory, utc())?;
        sink.add_batch(0, OutputMode::Append, Arc::clone(&schema), batches).await?;
        let managed = placeless.then(|| Managed {
            directory,
            checkpoint: None,
            options: options.clone(),
            partitioned_by: table.partitioned_by.clone(),
        });
        // How files are compressed stands in them.
        options.retain(|name, _| !name.eq_ignore_ascii_case("compression"));
        Ok((connect::table(format, options, Some(schema), utc())?, managed))
    }

    /// An empty table of these columns, in files below the warehouse.
    pub(super) async fn create_empty(&self, table: &CreateTable, schema: SchemaRef) -> Result<(), SqlError> {
        let none = MemTable::try_new(schema, vec![Vec::new()]).map_err(|e| resolve::runtime_error(&e))?;
        let plan = LogicalPlanBuilder::scan(&table.name, provider_as_source(Arc::new(none)), None)
            .and_then(LogicalPlanBuilder::build)
            .map_err(|e| resolve::runtime_error(&e))?;
        let (made, managed) = self.write_files(table, plan).await?;
        self.register(table, made, managed, None);
        Ok(())
    }

    /// Appends to, or replaces, the files of a table below the warehouse.
    pub(super) async fn insert_files(
        &self,
        entry: &Entry,
        overwrite: bool,
        schema: SchemaRef,
        rows: Vec<RecordBatch>,
    ) -> Result<(), SqlError> {
        let target = match (&entry.table, &entry.details) {
            (Table::External { format, .. }, Details { managed: Some(managed), query: None, .. }) => {
                FileFormat::from_name(format).map(|format| (format, managed))
            }
            _ => None,
        };
        let Some((format, managed)) = target else {
            let kind = entry.table.kind();
            return Err(SqlError::unsupported(format!("INSERT INTO a table of {kind} that names a place of its own"))
                .hint("CREATE STREAMING TABLE writes there."));
        };
        if overwrite {
            entry.remove_files()?;
        }
        let mut sink =
            connect::file_sink(format, &managed.options, &managed.partitioned_by, &managed.directory, utc())?;
        let id = sink.next_batch_id();
        sink.add_batch(id, OutputMode::Append, schema, rows).await?;
        Ok(())
    }
}

/// Removes the table of this name that an earlier run left: files with the log of our own sink. Those of a streaming table
/// stay, its checkpoint goes with them.
fn remove_earlier(directory: &Path, warehouse: &Path) -> Result<(), SqlError> {
    let streaming = directory.file_name().is_some_and(|name| warehouse.join("_checkpoints").join(name).exists());
    if streaming || !directory.join(METADATA_DIR).is_dir() {
        return Ok(());
    }
    std::fs::remove_dir_all(directory).map_err(|error| {
        SqlError::new("CANNOT_REPLACE_TABLE", format!("failed to remove {}: {error}", directory.display()))
    })
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
