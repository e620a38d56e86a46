//! Streaming tables and streaming `SELECT`s: where their rows go, where their checkpoint lies, how they run.
//!
//! A streaming table writes Parquet below the warehouse unless `USING` says otherwise, and keeps its checkpoint in
//! `<warehouse>/_checkpoints/<table>`, so that the same script goes on where it stopped. What the statement does not
//! say is read from `TBLPROPERTIES`, then from the session's configuration:
//!
//! | property | configuration | meaning |
//! | --- | --- | --- |
//! | `checkpointLocation` | `spark.sql.streaming.checkpointLocation` (the table's name is added) | the checkpoint |
//! | `queryName` | | the query's name, else the table's |
//! | `outputMode` | `caudal.sql.outputMode` | `append`, `update` or `complete` |
//! | `trigger` | `caudal.sql.trigger` | `availableNow`, `once`, or an interval such as `1 second` |
//!
//! The first two may be `OPTIONS` as well, as they are in Spark's `DataStreamWriter`.
//!
//! Without an output mode: append for a query without aggregation, or with one over event time, or into files;
//! complete into memory; update otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::LogicalPlan;

use super::catalog::{Managed, Table, is_streaming};
use super::connect;
use super::error::SqlError;
use super::interval;
use super::session::{SqlSession, StatementResult};
use super::statement::{CreateTable, ParsedQuery};
use super::streaming_clauses::{
    QueryClauses, check_clauses, check_column_list, check_memory, property_warnings, sink_options,
};
use crate::file_log::{create_dirs, write_whole};
use crate::format::cell::utc;
use crate::function::ddl::type_name;
use crate::options::Options;
use crate::plan::nodes::watermark_delay_ms;
use crate::query::{StreamingQuery, StreamingQuerySpec, Trigger};
use crate::sink::console::ConsoleSink;
use crate::sink::file::FileFormat;
use crate::sink::kafka::KafkaSink;
use crate::sink::memory::{MemoryRows, MemorySink};
use crate::sink::noop::NoopSink;
use crate::sink::{OutputMode, Sink};

/// The key of the output mode of queries that name none.
pub(super) const OUTPUT_MODE: &str = "caudal.sql.outputMode";

/// A `SELECT` over streams: the caller says where its rows go and starts it with [`SqlSession::start`].
#[derive(Debug, Clone)]
pub struct StreamingSelect {
    pub plan: LogicalPlan,
    /// `caudal.sql.outputMode`, else what Spark would need for this query: update for an aggregation, append otherwise.
    pub output_mode: OutputMode,
}

impl StreamingSelect {
    /// The columns of the result.
    pub fn schema(&self) -> arrow::datatypes::SchemaRef {
        Arc::new(self.plan.schema().as_arrow().clone())
    }
}

/// Where the rows of a streaming table go.
struct Target {
    sink: Box<dyn Sink>,
    /// What the table's name means to later statements.
    table: Option<Table>,
    durable: bool,
    default_mode: OutputMode,
    /// The directory that was made for it.
    made: Option<PathBuf>,
    /// The directory that is the table's alone: the statement names no place.
    managed: Option<PathBuf>,
}

impl SqlSession {
    /// Starts a query over streams with the session's trigger and configuration. Without a checkpoint it starts anew
    /// each time.
    pub async fn start(
        &self,
        select: &StreamingSelect,
        sink: Box<dyn Sink>,
        output_mode: OutputMode,
        name: Option<String>,
        checkpoint: Option<PathBuf>,
    ) -> Result<StreamingQuery, SqlError> {
        let trigger = self.trigger(None)?;
        self.start_query(select.plan.clone(), sink, output_mode, trigger, name, checkpoint).await
    }

    async fn start_query(
        &self,
        plan: LogicalPlan,
        sink: Box<dyn Sink>,
        output_mode: OutputMode,
        trigger: Trigger,
        name: Option<String>,
        checkpoint: Option<PathBuf>,
    ) -> Result<StreamingQuery, SqlError> {
        let conf = self.conf.read().clone();
        let spec =
            StreamingQuerySpec { name, plan, output_mode, sink, trigger, checkpoint, session: self.state(), conf };
        Ok(self.queries.start(spec).await?)
    }

    pub(super) async fn create_streaming_table(
        &self,
        table: &CreateTable,
        query: &ParsedQuery,
        text: &str,
    ) -> Result<StatementResult, SqlError> {
        if !self.check_new(table, text)? {
            return Ok(StatementResult::Done(format!("table {} exists already", table.name)));
        }
        let plan = self.plan_query(query, text).await?;
        if !is_streaming(&plan) {
            let error = SqlError::new(
                "INVALID_FLOW_QUERY_TYPE.BATCH_RELATION_FOR_STREAMING_TABLE",
                format!("The query of the streaming table `{}` reads no stream.", table.name),
            )
            .hint("Read a source as a stream: FROM STREAM t.");
            return Err(match table.name_at {
                Some(at) => error.at(text, at, table.name.len()),
                None => error,
            });
        }
        let at = |error: SqlError| match table.name_at {
            Some(place) => error.at(text, place, table.name.len()),
            None => error,
        };
        check_column_list(table, plan.schema().as_arrow()).map_err(at)?;
        let clauses = QueryClauses::of(table).map_err(at)?;
        let target = self.target(table, &plan)?;
        let made = target.made.clone();
        let started = self.start_table(table, target, plan, clauses).await;
        if let (Err(_), Some(directory)) = (&started, made) {
            // Made for this table and still empty: what is not empty stays.
            let _ = std::fs::remove_dir(directory);
        }
        started
    }

    async fn start_table(
        &self,
        table: &CreateTable,
        target: Target,
        plan: LogicalPlan,
        clauses: QueryClauses,
    ) -> Result<StatementResult, SqlError> {
        let wanted = clauses.output_mode.or_else(|| self.conf(OUTPUT_MODE));
        let mode = match wanted {
            Some(name) => output_mode(&name)?,
            None => target.default_mode,
        };
        let trigger = self.trigger(clauses.trigger.as_deref())?;
        let own_place = clauses.checkpoint.is_none();
        let checkpoint = clauses.checkpoint.or_else(|| self.checkpoint(&table.name, target.durable));
        if let (Some(directory), Some(Table::Memory(_))) = (&checkpoint, &target.table) {
            check_memory(directory, mode)?;
        }
        let mut noted = None;
        if let Some(directory) = &checkpoint
            && check_columns(&table.name, directory, &plan)?
        {
            noted = Some(directory.clone());
        }
        let name = clauses.name.unwrap_or_else(|| table.name.clone());
        let started = self.start_query(plan, target.sink, mode, trigger, Some(name), checkpoint.clone()).await;
        let started = started.inspect_err(|_| {
            // A query that never ran binds nobody to its columns.
            if let Some(directory) = noted {
                let _ = std::fs::remove_file(directory.join("columns"));
                let _ = std::fs::remove_dir(directory);
            }
        })?;
        if let Some(registered) = target.table {
            let checkpoint = checkpoint.filter(|_| own_place);
            let managed = target.managed.map(|directory| Managed {
                directory,
                checkpoint,
                options: BTreeMap::new(),
                partitioned_by: Vec::new(),
            });
            self.register(table, registered, managed, Some(started.clone()));
        }
        Ok(StatementResult::Streaming(started))
    }

    fn target(&self, table: &CreateTable, plan: &LogicalPlan) -> Result<Target, SqlError> {
        let format = table.format.as_deref().unwrap_or("parquet");
        let files = FileFormat::from_name(format);
        check_clauses(table, format, files.is_some())?;
        let mut options = connect::located(sink_options(table), table.location.as_ref())?;
        connect::sink_warnings(format, options.keys()).into_iter().for_each(|warning| self.warn(warning));
        property_warnings(table).into_iter().for_each(|warning| self.warn(warning));
        let aggregates = has_aggregate(plan);
        let timely = aggregates && has_event_time(plan);
        let free_mode = if aggregates && !timely { OutputMode::Update } else { OutputMode::Append };
        let schema = Arc::new(plan.schema().as_arrow().clone());
        if let Some(file) = files {
            let directory = self.warehouse.join(table.name.to_lowercase());
            let managed = (!options.contains_key("path")).then(|| directory.clone());
            let path = options.entry("path".to_owned()).or_insert_with(|| directory.display().to_string()).clone();
            let local = crate::source::file::path::local_path(&path)?;
            let made = (!local.exists()).then(|| local.clone());
            std::fs::create_dir_all(&local)
                .map_err(|e| SqlError::new("CANNOT_CREATE_DIRECTORY", format!("failed to create {path}: {e}")))?;
            let sink = connect::file_sink(file, &options, &table.partitioned_by, &directory, utc());
            let readable = connect::table(format, connect::reading_options(options), Some(schema), utc());
            return match (sink, readable) {
                (Ok(sink), Ok(readable)) => Ok(Target {
                    sink: Box::new(sink),
                    table: Some(readable),
                    durable: true,
                    default_mode: OutputMode::Append,
                    made,
                    managed,
                }),
                (Err(error), _) | (_, Err(error)) => {
                    made.into_iter().for_each(|directory| drop(std::fs::remove_dir(directory)));
                    Err(error)
                }
            };
        }
        let (sink, registered, durable, default_mode): (Box<dyn Sink>, _, _, _) = match format {
            "console" => {
                let options: Options = options.iter().collect();
                (Box::new(ConsoleSink::new(std::io::stdout(), &options, utc())?), None, false, free_mode)
            }
            "kafka" => {
                let readable = topic_table(&options)?;
                let options: Options = options.iter().collect();
                (Box::new(KafkaSink::new(&options)?), readable, true, free_mode)
            }
            "noop" => (Box::new(NoopSink), None, false, free_mode),
            "memory" => {
                let rows = MemoryRows::new(schema);
                let mode = if free_mode == OutputMode::Update { OutputMode::Complete } else { free_mode };
                (Box::new(MemorySink::new(rows.clone())), Some(Table::Memory(Arc::new(rows))), false, mode)
            }
            other => {
                let message = format!(
                    "Failed to find the data source: {other}. A streaming table is USING parquet, json, csv, text, kafka, console, memory or noop."
                );
                return Err(SqlError::new("DATA_SOURCE_NOT_FOUND", message));
            }
        };
        Ok(Target { sink, table: registered, durable, default_mode, made: None, managed: None })
    }

    fn checkpoint(&self, name: &str, durable: bool) -> Option<PathBuf> {
        if let Some(root) = self.conf("spark.sql.streaming.checkpointLocation") {
            return Some(PathBuf::from(root).join(name.to_lowercase()));
        }
        durable.then(|| self.warehouse.join("_checkpoints").join(name.to_lowercase()))
    }

    fn trigger(&self, property: Option<&str>) -> Result<Trigger, SqlError> {
        let Some(text) = property.map(str::to_owned).or_else(|| self.conf("caudal.sql.trigger")) else {
            return Ok(Trigger::Default);
        };
        match text.to_ascii_lowercase().as_str() {
            "default" => Ok(Trigger::Default),
            "availablenow" => Ok(Trigger::AvailableNow),
            "once" => Ok(Trigger::Once),
            other => match interval::parse_text(other).and_then(interval::Interval::fixed_micros) {
                Some(micros @ 0..) => Ok(Trigger::ProcessingTime(Duration::from_micros(micros.unsigned_abs()))),
                _ => Err(SqlError::new(
                    "INVALID_TRIGGER",
                    format!("'{text}' is no trigger; use availableNow, once, or an interval such as '1 second'."),
                )),
            },
        }
    }

    /// What a streaming `SELECT` is to its caller.
    pub(super) fn streaming_select(&self, plan: LogicalPlan) -> Result<StreamingSelect, SqlError> {
        let output_mode = match self.conf(OUTPUT_MODE) {
            Some(name) => output_mode(&name)?,
            None if has_aggregate(&plan) => OutputMode::Update,
            None => OutputMode::Append,
        };
        Ok(StreamingSelect { plan, output_mode })
    }
}

/// A table goes on only with the columns that it began with: `columns` in its checkpoint holds them, a name and a type on
/// each line. Rows of other columns beside the old ones would be read as nulls. True when the table is new.
fn check_columns(table: &str, checkpoint: &Path, plan: &LogicalPlan) -> Result<bool, SqlError> {
    let file = checkpoint.join("columns");
    let fields = plan.schema().as_arrow().fields();
    let now: String = fields.iter().map(|f| format!("{} {}\n", f.name(), type_name(f.data_type()))).collect();
    let failed = |e: std::io::Error| SqlError::new("CHECKPOINT_IO", format!("failed to use {}: {e}", file.display()));
    match std::fs::read_to_string(&file) {
        Ok(before) if before == now => Ok(false),
        Ok(before) => {
            let list = |text: &str| text.trim_end().replace('\n', ", ");
            let message = format!(
                "The streaming table `{table}` has the columns ({}), the query gives ({}).",
                list(&before),
                list(&now)
            );
            let hint =
                format!("Choose another name, or remove the table's files and {} to begin anew.", checkpoint.display());
            Err(SqlError::new("INCOMPATIBLE_STREAMING_TABLE", message).hint(hint))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            create_dirs(checkpoint)?;
            write_whole(&file, now.as_bytes(), true)?;
            Ok(true)
        }
        Err(e) => Err(failed(e)),
    }
}

/// What `STREAM x` reads after `CREATE STREAMING TABLE x USING kafka`: the topic, from its beginning. Without the option
/// `topic` each row names its own, and there is nothing to read by that name.
fn topic_table(options: &BTreeMap<String, String>) -> Result<Option<Table>, SqlError> {
    let Some((_, topic)) = options.iter().find(|(name, _)| name.eq_ignore_ascii_case("topic")) else {
        return Ok(None);
    };
    let connection = options.iter().filter(|(name, _)| name.to_ascii_lowercase().starts_with("kafka."));
    let mut reading: BTreeMap<String, String> = connection.map(|(k, v)| (k.clone(), v.clone())).collect();
    reading.insert("subscribe".to_owned(), topic.clone());
    reading.insert("startingOffsets".to_owned(), "earliest".to_owned());
    connect::table("kafka", reading, None, utc()).map(Some)
}

fn output_mode(name: &str) -> Result<OutputMode, SqlError> {
    match name.to_ascii_lowercase().as_str() {
        "append" => Ok(OutputMode::Append),
        "update" => Ok(OutputMode::Update),
        "complete" => Ok(OutputMode::Complete),
        other => Err(SqlError::new(
            "STREAMING_OUTPUT_MODE.INVALID",
            format!("Invalid streaming output mode: {other}. Use append, update or complete."),
        )),
    }
}

fn any_node(plan: &LogicalPlan, holds: impl Fn(&LogicalPlan) -> bool) -> bool {
    let mut found = false;
    let visited = plan.apply(|node| {
        found |= holds(node);
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    visited.is_ok() && found
}

fn has_aggregate(plan: &LogicalPlan) -> bool {
    any_node(plan, |node| matches!(node, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_)))
}

/// Whether an aggregation groups by an event-time column that has a watermark.
fn has_event_time(plan: &LogicalPlan) -> bool {
    any_node(plan, |node| match node {
        LogicalPlan::Aggregate(aggregate) => aggregate
            .schema
            .fields()
            .iter()
            .take(aggregate.group_expr.len())
            .any(|field| watermark_delay_ms(field).is_some()),
        _ => false,
    })
}
