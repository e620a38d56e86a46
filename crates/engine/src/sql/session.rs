//! A session: configuration, tables, and the running of statements.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider};
use datafusion::datasource::MemTable;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;
use parking_lot::{Mutex, RwLock};

use super::catalog::{Catalog, CatalogSchema, Details, Entry, Managed, OpenSource, Table, is_streaming};
use super::connect;
use super::ctas::conformed;
use super::duplicate;
use super::error::SqlError;
use super::memory::{self, MEMORY_LIMIT};
use super::objects::{describe, text_rows};
use super::planner::{SparkExpressions, SparkTypes};
use super::resolve;
use super::rows::RowStream;
use super::settings;
use super::statement::{self, CreateTable, Kind, ParsedQuery, Statement};
use super::streaming::StreamingSelect;
use super::token::substitute;
use crate::format::cell::utc;
use crate::function;
use crate::function::ddl::{column_comments, parse_columns};
use crate::plan::SourceFactory;
use crate::plan::guard::GuardedPlanner;
use crate::plan::recursion::SessionConf;
use crate::query::{QueryManager, StreamingQuery};
use crate::sink::file::FileFormat;

/// How a session starts.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// Spark configuration and script variables, as by `SET key=value`.
    pub conf: BTreeMap<String, String>,
    /// Where tables without a place of their own live; Spark's `spark-warehouse`.
    pub warehouse: PathBuf,
}

impl Default for SessionConfig {
    fn default() -> Self {
        SessionConfig { conf: BTreeMap::new(), warehouse: PathBuf::from("spark-warehouse") }
    }
}

/// What a statement led to.
pub enum StatementResult {
    /// A table of rows.
    Rows(RowStream),
    /// A query that runs on by itself: a streaming table.
    Streaming(StreamingQuery),
    /// A `SELECT` over streams; the caller chooses a sink and starts it with [`SqlSession::start`].
    StreamingSelect(StreamingSelect),
    /// Nothing to show but a message.
    Done(String),
}

/// Runs Spark SQL statements.
pub struct SqlSession {
    pub(super) catalog: Arc<Catalog>,
    pub(super) conf: Arc<RwLock<BTreeMap<String, String>>>,
    pub(super) warehouse: PathBuf,
    pub(super) queries: QueryManager,
    /// What `RESET` goes back to.
    initial: BTreeMap<String, String>,
    warnings: Mutex<Vec<String>>,
    context: SessionContext,
}

impl SqlSession {
    /// A session without tables. Fails when a key of the configuration has a value that Caudal cannot honour.
    pub fn new(config: SessionConfig) -> Result<Self, SqlError> {
        let mut warnings = Vec::new();
        for (key, value) in &config.conf {
            warnings.extend(settings::check(key, value)?);
        }
        let catalog = Arc::new(Catalog::default());
        let memory_bytes = memory::limit_bytes(config.conf.get(MEMORY_LIMIT).map(String::as_str));
        let conf = Arc::new(RwLock::new(config.conf.clone()));
        let state = session_state(&catalog, memory_bytes, &conf).map_err(|e| resolve::runtime_error(&e))?;
        let context = SessionContext::new_with_state(state);
        Ok(SqlSession {
            catalog,
            initial: config.conf,
            warnings: Mutex::new(warnings),
            conf,
            warehouse: config.warehouse,
            queries: QueryManager::new(),
            context,
        })
    }

    /// Splits a script at its `;` and parses each statement. Statements with `${name}` are parsed when they run.
    pub fn parse(&self, script: &str) -> Result<Vec<Statement>, SqlError> {
        statement::parse_script(script)
    }

    /// The value of a configuration key.
    pub fn conf(&self, key: &str) -> Option<String> {
        self.conf.read().get(key).cloned()
    }

    /// Sets a configuration key, as `SET key=value` does. Fails for a value that Caudal cannot honour; of a key that
    /// has no effect it warns.
    pub fn set(&self, key: &str, value: &str) -> Result<(), SqlError> {
        if key == MEMORY_LIMIT {
            let message = format!("Cannot modify the value of the static config: {key}. SQLSTATE: 46110");
            let error = SqlError::new("CANNOT_MODIFY_CONFIG", message);
            return Err(error.hint(format!("Start caudal sql with --set {key}={value}.")));
        }
        if let Some(warning) = settings::check(key, value)? {
            self.warn(warning);
        }
        self.conf.write().insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    /// What is to be told to the user beside results, each once.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock())
    }

    pub(super) fn warn(&self, warning: String) {
        self.warnings.lock().push(warning);
    }

    /// The session's state: functions, tables and planner, for running plans.
    pub fn state(&self) -> SessionState {
        self.context.state()
    }

    /// The running queries of this session.
    pub fn queries(&self) -> &QueryManager {
        &self.queries
    }

    pub fn queries_mut(&mut self) -> &mut QueryManager {
        &mut self.queries
    }

    /// Names that a shell may complete: tables and functions.
    pub fn completions(&self) -> Vec<String> {
        let mut names = self.catalog.names();
        names.extend(resolve::function_names());
        names
    }

    /// Registers a replayable source under a name, to be read as a stream or as a table.
    pub fn register_source(&self, name: &str, factory: Arc<dyn SourceFactory>) {
        let schema = factory.schema();
        let format = factory.description();
        let open: Arc<OpenSource> = Arc::new(move |_, _| Ok(Arc::clone(&factory)));
        let table = Table::External { format, options: BTreeMap::new(), schema, open };
        self.catalog.put(Entry { name: name.to_owned(), temporary: true, table, details: Details::default() });
    }

    /// Plans a query without running it.
    pub async fn plan(&self, text: &str) -> Result<LogicalPlan, SqlError> {
        match statement::parse_kind(text)? {
            Kind::Query(query) => self.plan_query(&query, text).await,
            _ => Err(SqlError::parse("only a query has a plan")),
        }
    }

    pub(super) async fn plan_query(&self, query: &ParsedQuery, text: &str) -> Result<LogicalPlan, SqlError> {
        for mark in &query.marks {
            connect::warnings("kafka", mark.options.iter().map(|(name, _)| name))
                .into_iter()
                .for_each(|w| self.warn(w));
        }
        let plan = resolve::plan(&self.state(), &self.catalog, query, text).await?;
        if is_streaming(&plan) {
            // What a stream writes is named by its columns.
            duplicate::check_unique(plan.schema().as_arrow())?;
        }
        Ok(plan)
    }

    /// Runs a plan to its end. Fails for a plan over streams.
    pub(super) async fn collect(&self, plan: LogicalPlan) -> Result<(SchemaRef, Vec<RecordBatch>), SqlError> {
        let schema = Arc::new(plan.schema().as_arrow().clone());
        let (_, batches) = self.stream(plan).await?.collect().await?;
        Ok((schema, batches))
    }

    /// Runs a plan while its rows are taken. Fails for a plan over streams.
    pub(super) async fn stream(&self, plan: LogicalPlan) -> Result<RowStream, SqlError> {
        let frame = self.context.execute_logical_plan(plan).await.map_err(|e| resolve::runtime_error(&e))?;
        frame.execute_stream().await.map(RowStream::new).map_err(|e| resolve::runtime_error(&e))
    }

    /// Runs one statement.
    pub async fn execute(&self, statement: &Statement) -> Result<StatementResult, SqlError> {
        match &statement.kind {
            Kind::Deferred => {
                let text = substitute(&statement.padded, |name| self.conf(name))?;
                let kind = statement::parse_kind(&text)?;
                self.run(&kind, &text).await
            }
            kind => self.run(kind, &statement.padded).await,
        }
    }

    async fn run(&self, kind: &Kind, text: &str) -> Result<StatementResult, SqlError> {
        match kind {
            Kind::Deferred => Err(SqlError::parse("a variable stands for another variable")),
            Kind::Query(query) => self.select(query, text).await,
            Kind::CreateTable(table) => self.create_table(table, text).await,
            Kind::CreateStreamingTable(table) => match &table.query {
                Some(query) => self.create_streaming_table(table, query, text).await,
                None => Err(SqlError::parse("a streaming table needs AS SELECT")),
            },
            Kind::CreateMaterializedView(table) => match &table.query {
                Some(query) => self.create_from_query("materialized view", table, query, text).await,
                None => Err(SqlError::parse("a materialized view needs AS SELECT")),
            },
            Kind::CreateView(table) => self.create_view(table, text).await,
            Kind::Insert { name, at, columns, overwrite, query } => {
                let missing = || resolve::table_missing(name, &self.catalog).at(text, *at, name.len());
                let entry = self.catalog.get(name).ok_or_else(missing)?;
                self.insert(&entry, columns, *overwrite, query, text).await
            }
            Kind::Drop { what, name, at, if_exists } => self.drop_object(what, name, *at, *if_exists, text),
            Kind::Show { listed, pattern } => self.show(*listed, pattern.as_deref()),
            Kind::Describe(what) => self.describe(what, text),
            Kind::Use => Ok(StatementResult::Done(String::new())),
            Kind::DescribeQuery(query) => {
                let plan = self.plan_query(query, text).await?;
                let schema = plan.schema().as_arrow();
                describe(duplicate::shown_schema(schema).as_deref().unwrap_or(schema))
            }
            Kind::Set { key, value } => self.set_statement(key.as_deref(), value.as_deref()),
            Kind::Reset { key } => {
                self.reset(key.as_deref());
                Ok(StatementResult::Done(String::new()))
            }
            Kind::Explain { extended, of } => self.explain(of, *extended, text).await,
        }
    }

    async fn select(&self, query: &ParsedQuery, text: &str) -> Result<StatementResult, SqlError> {
        let plan = self.plan_query(query, text).await?;
        if is_streaming(&plan) {
            return self.streaming_select(plan).map(StatementResult::StreamingSelect);
        }
        Ok(StatementResult::Rows(self.stream(plan).await?))
    }

    /// Appends to, or replaces, the rows of a table.
    async fn insert(
        &self,
        entry: &Entry,
        columns: &[String],
        overwrite: bool,
        query: &ParsedQuery,
        text: &str,
    ) -> Result<StatementResult, SqlError> {
        if matches!(entry.table, Table::View { .. }) {
            return Err(SqlError::unsupported("INSERT INTO a view"));
        }
        if !columns.is_empty() {
            return Err(SqlError::unsupported("INSERT INTO with a list of columns"));
        }
        let schema = entry.table.schema();
        let plan = self.plan_query(query, text).await?;
        let given = plan.schema().fields().len();
        if given != schema.fields().len() {
            return Err(SqlError::new(
                "INSERT_COLUMN_ARITY_MISMATCH",
                format!(
                    "Cannot write to `{}`: it has {} columns, the data {given}.",
                    entry.name,
                    schema.fields().len(),
                ),
            ));
        }
        let Table::Memory(provider) = &entry.table else {
            self.insert_files(entry, overwrite, &schema, self.stream(plan).await?).await?;
            return Ok(StatementResult::Done(String::new()));
        };
        let (_, batches) = self.collect(plan).await?;
        let mut rows = Vec::new();
        if !overwrite {
            let frame = self.context.read_table(Arc::clone(provider)).map_err(|e| resolve::runtime_error(&e))?;
            rows = frame.collect().await.map_err(|e| resolve::runtime_error(&e))?;
        }
        for batch in batches {
            rows.push(conformed(&batch, &schema)?);
        }
        let table = MemTable::try_new(schema, vec![rows]).map_err(|e| resolve::runtime_error(&e))?;
        self.catalog.put(Entry { table: Table::Memory(Arc::new(table)), ..entry.clone() });
        Ok(StatementResult::Done(String::new()))
    }

    /// Makes the statement's name stand for `made`.
    pub(super) fn register(
        &self,
        table: &CreateTable,
        made: Table,
        managed: Option<Managed>,
        query: Option<StreamingQuery>,
    ) {
        let comments = |text: &str| match (&table.query, statement::view_columns(text)) {
            (Some(_), Ok(columns)) => columns.into_iter().filter_map(|(name, c)| c.map(|c| (name, c))).collect(),
            _ => column_comments(text),
        };
        let details = Details {
            comment: table.comment.clone(),
            columns: table.schema.as_deref().map(comments).unwrap_or_default(),
            properties: table.properties.clone(),
            managed,
            query,
        };
        self.catalog.put(Entry { name: table.name.clone(), temporary: table.temporary, table: made, details });
    }

    pub(super) fn check_new(&self, table: &CreateTable, text: &str) -> Result<bool, SqlError> {
        let Some(old) = self.catalog.get(&table.name) else { return Ok(true) };
        if table.or_replace || table.or_refresh {
            return old.check_idle(if table.or_replace { "replaced" } else { "refreshed" }).map(|()| true);
        }
        if table.if_not_exists {
            return Ok(false);
        }
        let error = SqlError::new(
            "TABLE_OR_VIEW_ALREADY_EXISTS",
            format!(
                "Cannot create table or view `{}` because it already exists. Choose a different name, drop or replace the existing object, or add IF NOT EXISTS. SQLSTATE: 42P07",
                table.name
            ),
        );
        Err(match table.name_at {
            Some(at) => error.at(text, at, table.name.len()),
            None => error,
        })
    }

    async fn create_table(&self, table: &CreateTable, text: &str) -> Result<StatementResult, SqlError> {
        if let Some(query) = &table.query {
            return self.create_from_query("table", table, query, text).await;
        }
        if !self.check_new(table, text)? {
            return Ok(StatementResult::Done(format!("table {} exists already", table.name)));
        }
        let options = connect::located(&table.options, table.location.as_ref())?;
        let format = table.format.as_deref();
        let files = format.is_some_and(|format| FileFormat::from_name(format).is_some());
        if let Some(columns) = &table.schema
            && (format.is_none() || files && !table.temporary && !options.contains_key("path"))
        {
            let clauses = table.location.is_some() || !table.partitioned_by.is_empty() || !table.options.is_empty();
            if clauses && !files {
                return Err(SqlError::unsupported("LOCATION, PARTITIONED BY or OPTIONS without USING")
                    .hint("Say what the files are: USING parquet, json, csv or text."));
            }
            let fields = parse_columns(columns).map_err(|e| SqlError::from_message(&e.to_string()))?;
            let schema = Arc::new(Schema::new(fields));
            if table.temporary {
                let rows = MemTable::try_new(schema, vec![Vec::new()]).map_err(|e| resolve::runtime_error(&e))?;
                self.register(table, Table::Memory(Arc::new(rows)), None, None);
            } else {
                self.create_empty(table, schema).await?;
            }
            return Ok(StatementResult::Done(format!("created table {}", table.name)));
        }
        let schema = match &table.schema {
            Some(columns) => {
                let fields = parse_columns(columns).map_err(|e| SqlError::from_message(&e.to_string()))?;
                Some(Arc::new(Schema::new(fields)))
            }
            None => None,
        };
        let format = format.unwrap_or("parquet");
        for warning in connect::warnings(format, options.keys()) {
            self.warn(warning);
        }
        let external = connect::table(format, options, schema, utc())?;
        self.register(table, external, None, None);
        Ok(StatementResult::Done(format!("created table {}", table.name)))
    }

    async fn create_view(&self, table: &CreateTable, text: &str) -> Result<StatementResult, SqlError> {
        if !self.check_new(table, text)? {
            return Ok(StatementResult::Done(format!("view {} exists already", table.name)));
        }
        let Some(query) = &table.query else { return Err(SqlError::parse("a view needs AS SELECT")) };
        if table.location.is_some() || !table.options.is_empty() || !table.partitioned_by.is_empty() {
            return Err(SqlError::unsupported("LOCATION, OPTIONS or PARTITIONED BY of a view with AS SELECT"));
        }
        let mut plan = self.plan_query(query, text).await?;
        if let Some(columns) = &table.schema {
            plan = renamed(plan, &table.name, columns)?;
        }
        duplicate::check_unique(plan.schema().as_arrow())?;
        let shown = query.query.to_string();
        let view = Table::View { plan: Box::new(plan), text: shown };
        self.register(table, view, None, None);
        Ok(StatementResult::Done(format!("created view {}", table.name)))
    }

    fn reset(&self, key: Option<&str>) {
        let mut conf = self.conf.write();
        match key {
            None => conf.clone_from(&self.initial),
            Some(key) => {
                let _ = match self.initial.get(key) {
                    Some(value) => conf.insert(key.to_owned(), value.clone()),
                    None => conf.remove(key),
                };
            }
        }
    }

    fn set_statement(&self, key: Option<&str>, value: Option<&str>) -> Result<StatementResult, SqlError> {
        let pairs = match (key, value) {
            (Some("-v"), None) => {
                let mut columns = [const { Vec::new() }; 3];
                for (name, default, meaning) in settings::listed() {
                    let [keys, values, meanings] = &mut columns;
                    keys.push(name.to_owned());
                    values.push(self.conf(name).unwrap_or_else(|| default.to_owned()));
                    meanings.push(meaning.to_owned());
                }
                let [keys, values, meanings] = columns;
                return text_rows(&[("key", keys), ("value", values), ("meaning", meanings)]);
            }
            (Some(key), Some(value)) => {
                self.set(key, value)?;
                vec![(key.to_owned(), value.to_owned())]
            }
            (Some(key), None) => {
                let default = || settings::default_of(key).unwrap_or("<undefined>").to_owned();
                vec![(key.to_owned(), self.conf(key).unwrap_or_else(default))]
            }
            (None, _) => self.conf.read().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        };
        let (keys, values) = pairs.into_iter().unzip();
        text_rows(&[("key", keys), ("value", values)])
    }
}

/// A view's query with the columns that the view names: `CREATE VIEW v (a, b COMMENT 'x') AS ...`.
fn renamed(plan: LogicalPlan, view: &str, columns: &str) -> Result<LogicalPlan, SqlError> {
    let names = statement::view_columns(columns)?;
    let given = plan.schema().columns();
    if names.len() != given.len() {
        let what = if names.len() > given.len() { "NOT_ENOUGH_DATA_COLUMNS" } else { "TOO_MANY_DATA_COLUMNS" };
        let message = format!(
            "Cannot create view `{view}`: it names {} columns, its query has {}. SQLSTATE: 21S01",
            names.len(),
            given.len()
        );
        return Err(SqlError::new(format!("CREATE_VIEW_COLUMN_ARITY_MISMATCH.{what}"), message));
    }
    let columns = given.into_iter().zip(names).map(|(column, (name, _))| Expr::Column(column).alias(name));
    LogicalPlanBuilder::from(plan)
        .project(columns)
        .and_then(LogicalPlanBuilder::build)
        .map_err(|e| resolve::runtime_error(&e))
}

fn session_state(
    catalog: &Arc<Catalog>,
    memory_bytes: usize,
    conf: &Arc<RwLock<BTreeMap<String, String>>>,
) -> Result<SessionState, datafusion::error::DataFusionError> {
    let mut config = datafusion::prelude::SessionConfig::new()
        .with_default_catalog_and_schema("spark_catalog", "default")
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(false)
        .with_target_partitions(std::thread::available_parallelism().map_or(2, std::num::NonZero::get));
    config.set_extension(Arc::new(SessionConf(Arc::clone(conf))));
    let options = config.options_mut();
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.default_null_ordering = "nulls_min".to_owned();
    options.execution.enable_ansi_mode = true;
    let spark = MemoryCatalogProvider::new();
    for schema in ["default", "session", "global_temp"] {
        spark.register_schema(schema, Arc::new(CatalogSchema(Arc::clone(catalog))))?;
    }
    let mut builder = SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .with_runtime_env(memory::runtime(memory_bytes)?)
        .with_query_planner(Arc::new(GuardedPlanner))
        .with_type_planner(Arc::new(SparkTypes));
    let planners = builder.expr_planners().get_or_insert_default();
    planners.insert(0, Arc::new(datafusion_spark::planner::SparkFunctionPlanner));
    planners.insert(0, Arc::new(SparkExpressions));
    if let Some(functions) = builder.table_functions() {
        functions.retain(|name, _| name == "range");
    }
    let mut state = builder.build();
    state.catalog_list().register_catalog("spark_catalog".to_owned(), Arc::new(spark));
    function::register_all(&mut state)?;
    Ok(state)
}
