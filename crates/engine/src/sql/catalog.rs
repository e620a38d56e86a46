//! The tables and views that statements name. Names are case-insensitive.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::{Result, plan_err};
use datafusion::datasource::ViewTable;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use parking_lot::RwLock;

use super::error::SqlError;
use crate::plan::{SourceFactory, StreamRelation};
use crate::query::StreamingQuery;
use crate::source::bounded::BoundedTable;

/// Builds the source of a table, for a stream or for a bounded read, from the table's options.
pub(crate) type OpenSource = dyn Fn(&BTreeMap<String, String>, Reading) -> Result<Arc<dyn SourceFactory>, crate::error::EngineError>
    + Send
    + Sync;

/// How a table is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    Stream,
    Batch,
}

/// What a name stands for.
#[derive(Clone)]
pub(crate) enum Table {
    /// Something outside: a topic, files, a generator of rows.
    External { format: String, options: BTreeMap<String, String>, schema: SchemaRef, open: Arc<OpenSource> },
    /// A query under a name; it may be over streams.
    View { plan: Box<LogicalPlan>, text: String },
    /// Rows in memory.
    Memory(Arc<dyn TableProvider>),
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl Table {
    pub(crate) fn schema(&self) -> SchemaRef {
        match self {
            Table::External { schema, .. } => Arc::clone(schema),
            Table::View { plan, .. } => Arc::new(plan.schema().as_arrow().clone()),
            Table::Memory(provider) => provider.schema(),
        }
    }

    pub(crate) fn kind(&self) -> &str {
        match self {
            Table::External { format, .. } => format,
            Table::View { .. } => "view",
            Table::Memory(_) => "memory",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The name as it was written.
    pub name: String,
    pub temporary: bool,
    pub table: Table,
    pub details: Details,
}

/// What `DESCRIBE EXTENDED` shows beside the columns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Details {
    pub comment: Option<String>,
    /// Comments by column.
    pub columns: Vec<(String, String)>,
    pub properties: Vec<(String, String)>,
    /// What goes when the table is dropped: it has no place of its own.
    pub managed: Option<Managed>,
    /// The query that writes the table.
    pub query: Option<StreamingQuery>,
}

impl Entry {
    /// Refuses to touch a table that a query writes. `what` completes "it cannot be ...".
    pub(crate) fn check_idle(&self, what: &str) -> Result<(), SqlError> {
        if !self.details.query.as_ref().is_some_and(StreamingQuery::is_active) {
            return Ok(());
        }
        let message =
            format!("The streaming table `{}` is running; it cannot be {what} before it has ended.", self.name);
        Err(SqlError::new("CONCURRENT_QUERY", message)
            .hint("With the trigger availableNow it ends when it has read what is there."))
    }

    /// Removes the files of a table without a place of its own.
    pub(crate) fn remove_files(&self) -> Result<(), SqlError> {
        let Some(managed) = &self.details.managed else { return Ok(()) };
        // The checkpoint first: with it and without the rows, a table of this name would never read its input again.
        managed.remove_checkpoint(&self.name)?;
        managed.remove_directory(&self.name)
    }
}

/// The files of a table without a place of its own.
#[derive(Debug, Clone)]
pub(crate) struct Managed {
    pub directory: PathBuf,
    /// That of a streaming table, where its statement does not name one. It goes with the rows: without them it would
    /// only keep the next table of that name from reading its input again.
    pub checkpoint: Option<PathBuf>,
    /// How further rows are written.
    pub options: BTreeMap<String, String>,
    pub partitioned_by: Vec<String>,
}

impl Managed {
    /// Removes the checkpoint of the table `name`, if it has one.
    pub(crate) fn remove_checkpoint(&self, name: &str) -> Result<(), SqlError> {
        self.checkpoint.as_deref().map_or(Ok(()), |path| remove(name, path))
    }

    /// Removes the rows of the table `name`.
    pub(crate) fn remove_directory(&self, name: &str) -> Result<(), SqlError> {
        remove(name, &self.directory)
    }
}

fn remove(name: &str, path: &Path) -> Result<(), SqlError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let message = format!("failed to remove the files of {name} in {}: {error}", path.display());
            Err(SqlError::new("CANNOT_DROP_TABLE", message))
        }
        _ => Ok(()),
    }
}

/// All tables of a session.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    entries: RwLock<BTreeMap<String, Entry>>,
}

impl Catalog {
    pub(crate) fn get(&self, name: &str) -> Option<Entry> {
        self.entries.read().get(&name.to_lowercase()).cloned()
    }

    pub(crate) fn put(&self, entry: Entry) {
        self.entries.write().insert(entry.name.to_lowercase(), entry);
    }

    pub(crate) fn remove(&self, name: &str) -> Option<Entry> {
        self.entries.write().remove(&name.to_lowercase())
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.read().values().cloned().collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.entries.read().values().map(|e| e.name.clone()).collect()
    }

    fn find(&self, name: &str) -> Result<Entry> {
        self.get(name).ok_or_else(|| DataFusionError::Plan(format!("table '{name}' not found")))
    }

    /// The table as a stream: `FROM STREAM name`, with further options of the reading.
    pub(crate) fn stream(&self, name: &str, more: &[(String, String)]) -> Result<Arc<dyn TableProvider>> {
        let entry = self.find(name)?;
        match entry.table {
            Table::External { options, open, .. } => {
                let factory = open(&with_options(options, more), Reading::Stream).map_err(external)?;
                Ok(Arc::new(StreamRelation::new(entry.name, factory)))
            }
            _ if !more.is_empty() => without_options(&entry.name),
            Table::View { plan, .. } if is_streaming(&plan) => Ok(Arc::new(ViewTable::new(*plan, None))),
            Table::View { .. } | Table::Memory(_) => plan_err!(
                "[UNSUPPORTED_STREAMING_TABLE] `{}` is not a stream: STREAM needs a table over kafka, files or rate",
                entry.name
            ),
        }
    }

    /// The table as it is now: `FROM name`, with further options of the reading.
    pub(crate) fn batch(&self, name: &str, more: &[(String, String)]) -> Result<Arc<dyn TableProvider>> {
        let entry = self.find(name)?;
        match entry.table {
            Table::External { options, open, .. } => {
                let factory = open(&with_options(options, more), Reading::Batch).map_err(external)?;
                Ok(Arc::new(BoundedTable::new(factory)))
            }
            _ if !more.is_empty() => without_options(&entry.name),
            Table::View { plan, text } => Ok(Arc::new(ViewTable::new(*plan, Some(text)))),
            Table::Memory(provider) => Ok(provider),
        }
    }
}

/// Options by name. Of those whose names differ in case only the last counts, whatever its case.
pub(crate) fn with_options<'a>(
    mut options: BTreeMap<String, String>,
    more: impl IntoIterator<Item = &'a (String, String)>,
) -> BTreeMap<String, String> {
    for (name, value) in more {
        options.retain(|known, _| !known.eq_ignore_ascii_case(name));
        let name = if name.eq_ignore_ascii_case("path") { "path" } else { name };
        options.insert(name.to_owned(), value.clone());
    }
    options
}

fn without_options<T>(name: &str) -> Result<T> {
    plan_err!("[UNSUPPORTED_FEATURE] `{name}` takes no options: WITH (...) is for tables over kafka, files or rate")
}

fn external(error: crate::error::EngineError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Whether a plan reads a stream.
pub(crate) fn is_streaming(plan: &LogicalPlan) -> bool {
    use datafusion::common::tree_node::TreeNodeRecursion;
    let mut streaming = false;
    let visited = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = datafusion::datasource::source_as_provider(&scan.source)
            && provider.downcast_ref::<StreamRelation>().is_some()
        {
            streaming = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    visited.is_ok() && streaming
}

/// The catalog as DataFusion's planner sees it.
#[derive(Debug)]
pub(crate) struct CatalogSchema(pub Arc<Catalog>);

#[async_trait]
impl SchemaProvider for CatalogSchema {
    fn table_names(&self) -> Vec<String> {
        self.0.names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if self.0.get(name).is_none() {
            return Ok(None);
        }
        self.0.batch(name, &[]).map(Some)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}
