//! Tables made from a query's rows: `CREATE TABLE ... AS SELECT` and `CREATE MATERIALIZED VIEW`.
//!
//! The query runs once, and its rows are written as files: Parquet unless `USING` says otherwise, below the warehouse
//! unless `LOCATION` does. Those of a temporary table stay in memory, and those of a materialized view that says nothing
//! about its files: it is computed anew by the statement that makes it.

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};

use super::catalog::{Details, Entry, Managed, Table, is_streaming};
use super::connect;
use super::duplicate;
use super::error::SqlError;
use super::resolve;
use super::rows::{RowStream, size_bytes};
use super::session::{SqlSession, StatementResult};
use super::statement::{CreateTable, ParsedQuery};
use crate::blocking::block;
use crate::format::cell::utc;
use crate::function::cast::convert;
use crate::sink::file::{FileFormat, FileSink, METADATA_DIR};

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

    async fn write_files(&self, table: &CreateTable, plan: LogicalPlan) -> Result<(Table, Option<Managed>), SqlError> {
        let format = table.format.as_deref().unwrap_or("parquet");
        let Some(file) = FileFormat::from_name(format) else {
            return Err(SqlError::unsupported(format!("AS SELECT into a table USING {format}")).hint(
                "Rows can be written as parquet, json, csv and text; CREATE STREAMING TABLE writes into topics.",
            ));
        };
        let directory = self.warehouse.join(table.name.to_lowercase());
        let mut options = connect::located(&table.options, table.location.as_ref())?;
        let placeless = !options.contains_key("path");
        let path = options.entry("path".to_owned()).or_insert_with(|| directory.display().to_string()).clone();
        let local = crate::source::file::path::local_path(&path)?;
        let old = self.catalog.get(&table.name).and_then(|old| old.details.managed).filter(|_| table.or_replace);
        let mut sink = connect::file_sink(file, &options, &table.partitioned_by, &directory, utc())?;
        let replaces = placeless && old.as_ref().is_some_and(|old| old.directory == directory);
        let anew = replaces || placeless && table.or_replace && is_of_earlier_run(&directory, &self.warehouse);
        if !anew {
            if old.as_ref().is_some_and(|old| is_within(&local, &old.directory)) {
                return Err(occupied(&table.name, &local));
            }
            check_empty(&table.name, &local)?;
        }
        let schema = Arc::new(plan.schema().as_arrow().clone());
        let existed = local.exists();
        let written = async {
            // What the table replaces may be what the query reads, and stays until all rows are there.
            stage(&mut sink, &schema, self.stream(plan).await?, Ok).await?;
            put(&mut sink, anew)
        }
        .await;
        if let Err(error) = written {
            drop(sink);
            if !anew {
                // Nothing else was there.
                let _ = std::fs::remove_dir_all(&local);
                let _ = existed.then(|| std::fs::create_dir(&local));
            }
            return Err(error);
        }
        if let Some(old) = old {
            old.remove_checkpoint(&table.name)?;
            if !replaces {
                old.remove_directory(&table.name)?;
            }
        }
        let managed = placeless.then(|| Managed {
            directory,
            checkpoint: None,
            options: options.clone(),
            partitioned_by: table.partitioned_by.clone(),
        });
        Ok((connect::table(format, connect::reading_options(options), Some(schema), utc())?, managed))
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
        schema: &SchemaRef,
        rows: RowStream,
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
        let mut sink =
            connect::file_sink(format, &managed.options, &managed.partitioned_by, &managed.directory, utc())?;
        stage(&mut sink, schema, rows, |batch| conformed(&batch, schema)).await?;
        put(&mut sink, overwrite)
    }
}

/// Rows that become a file, or some with partitions, in memory.
const STAGE_BYTES: usize = 128 << 20;

/// Writes rows as they come, to where no reader sees them yet.
async fn stage(
    sink: &mut FileSink,
    schema: &SchemaRef,
    mut rows: RowStream,
    each: impl Fn(RecordBatch) -> Result<RecordBatch, SqlError>,
) -> Result<(), SqlError> {
    loop {
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while bytes < STAGE_BYTES
            && let Some(batch) = rows.next().await?
        {
            let batch = each(batch)?;
            bytes += size_bytes(&batch);
            batches.push(batch);
        }
        block(|| sink.stage(schema, &batches))?;
        if bytes < STAGE_BYTES {
            return Ok(());
        }
    }
}

/// Lets readers see the rows, beside those that there are or in place of them.
fn put(sink: &mut FileSink, anew: bool) -> Result<(), SqlError> {
    Ok(block(|| if anew { sink.replace() } else { sink.append() })?)
}

/// The rows of an `INSERT` with the types that the table has.
pub(super) fn conformed(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, SqlError> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| convert(column, field.data_type(), false)).collect::<Result<_, _>>();
    let columns = columns.map_err(|e| resolve::runtime_error(&e))?;
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(|e| SqlError::from_message(&e.to_string()))
}

/// Whether an earlier run left a table there: files with the log of our own sink. Not those of a streaming table, whose
/// checkpoint goes with them.
fn is_of_earlier_run(directory: &Path, warehouse: &Path) -> bool {
    let streaming = directory.file_name().is_some_and(|name| warehouse.join("_checkpoints").join(name).exists());
    !streaming && directory.join(METADATA_DIR).is_dir()
}

/// Files of something else must neither be lost nor read as the table's.
fn check_empty(name: &str, directory: &Path) -> Result<(), SqlError> {
    let occupied =
        directory.is_file() || std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
    if occupied { Err(self::occupied(name, directory)) } else { Ok(()) }
}

fn occupied(name: &str, directory: &Path) -> SqlError {
    let message = format!(
        "Cannot name the managed table as `{name}`, as its associated location '{}' already exists. Please pick a different table name, or remove the existing location first. SQLSTATE: 42710",
        directory.display()
    );
    SqlError::new("LOCATION_ALREADY_EXISTS", message)
}

/// Whether one directory is another one or below it.
fn is_within(inner: &Path, outer: &Path) -> bool {
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    whole(inner).starts_with(whole(outer))
}
