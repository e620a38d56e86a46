//! What the clauses of a streaming table say about its query, and those that it cannot have: a clause acts, or it is
//! refused by name.

use std::path::{Path, PathBuf};

use arrow::datatypes::{Fields, Schema};

use super::error::{SqlError, did_you_mean};
use super::statement::CreateTable;
use crate::function::ddl::{parse_columns, type_name};
use crate::options::Options;
use crate::sink::OutputMode;
use crate::source::file::path::local_path;

/// What `TBLPROPERTIES` and `OPTIONS` say about the query.
#[derive(Debug, Default)]
pub(super) struct QueryClauses {
    pub checkpoint: Option<PathBuf>,
    pub name: Option<String>,
    pub output_mode: Option<String>,
    pub trigger: Option<String>,
}

/// Options that are the query's, not the sink's. They may also be properties of the table.
const CHECKPOINT: &str = "checkpointLocation";
const QUERY_NAME: &str = "queryName";
/// Properties only.
const OUTPUT_MODE: &str = "outputMode";
const TRIGGER: &str = "trigger";

impl QueryClauses {
    pub(super) fn of(table: &CreateTable) -> Result<Self, SqlError> {
        let options: Options = table.options.iter().map(|(name, value)| (name, value)).collect();
        let properties: Options = table.properties.iter().map(|(name, value)| (name, value)).collect();
        let either = |name: &str| match (properties.get(name), options.get(name)) {
            (Some(property), Some(option)) if property != option => Err(SqlError::new(
                "INVALID_OPTION",
                format!(
                    "The {name} of the streaming table `{}` is '{property}' in TBLPROPERTIES and '{option}' in OPTIONS.",
                    table.name
                ),
            )),
            (property, option) => Ok(property.or(option).map(str::to_owned)),
        };
        let checkpoint = either(CHECKPOINT)?.map(|path| local_path(&path)).transpose()?;
        let only = |name: &str| properties.get(name).map(str::to_owned);
        Ok(Self { checkpoint, name: either(QUERY_NAME)?, output_mode: only(OUTPUT_MODE), trigger: only(TRIGGER) })
    }
}

/// Properties of a table are free; one that is nearly the name of one that acts is told, since it does not.
pub(super) fn property_warnings(table: &CreateTable) -> Vec<String> {
    let acting = [CHECKPOINT, QUERY_NAME, OUTPUT_MODE, TRIGGER];
    let idle = table.properties.iter().filter(|(name, _)| !acting.iter().any(|a| a.eq_ignore_ascii_case(name)));
    let warning = |(name, _): &(String, String)| {
        let near = did_you_mean(name, acting)?;
        Some(format!("warning: the property {name} of `{}` has no effect; did you mean {near}?", table.name))
    };
    idle.filter_map(warning).collect()
}

/// The options that are left for the sink.
pub(super) fn sink_options(table: &CreateTable) -> impl Iterator<Item = &(String, String)> {
    let of_query = |name: &str| [CHECKPOINT, QUERY_NAME].iter().any(|known| known.eq_ignore_ascii_case(name));
    table.options.iter().filter(move |(name, _)| !of_query(name))
}

/// Refuses clauses that mean nothing for a streaming table, or for one into `format`.
pub(super) fn check_clauses(table: &CreateTable, format: &str, files: bool) -> Result<(), SqlError> {
    let refused = |what: &str| SqlError::unsupported(format!("{what} of a streaming table"));
    if table.or_replace {
        return Err(refused("OR REPLACE").hint(
            "CREATE OR REFRESH goes on where the table stopped; to begin anew, DROP TABLE it first or choose another name.",
        ));
    }
    if table.temporary {
        return Err(refused("TEMPORARY").hint("USING memory keeps the rows for as long as the session lives."));
    }
    if files {
        return Ok(());
    }
    let of = |what: &str| SqlError::unsupported(format!("{what} of a streaming table USING {format}"));
    if table.location.is_some() {
        return Err(of("LOCATION").hint(match format {
            "kafka" => "The rows go into the topic that the option 'topic' names.",
            _ => "Only files have a place: USING parquet, json, csv or text.",
        }));
    }
    if !table.partitioned_by.is_empty() {
        return Err(of("PARTITIONED BY").hint(match format {
            "kafka" => "Rows are spread by their column `key`, or by `partition`.",
            _ => "Only files are partitioned: USING parquet, json, csv or text.",
        }));
    }
    if ["noop", "memory"].contains(&format)
        && let Some((name, _)) = sink_options(table).next()
    {
        return Err(of(&format!("the option {name}")));
    }
    Ok(())
}

/// Holds the list of columns against those of the query, as Spark's pipelines do.
pub(super) fn check_column_list(table: &CreateTable, query: &Schema) -> Result<(), SqlError> {
    let Some(text) = &table.schema else { return Ok(()) };
    let columns = parse_columns(text).map_err(|e| SqlError::from_message(&e.to_string()))?;
    let same = columns.len() == query.fields().len()
        && columns.iter().zip(query.fields()).all(|(column, given)| {
            column.name().eq_ignore_ascii_case(given.name())
                && type_name(column.data_type()) == type_name(given.data_type())
                && (column.is_nullable() || !given.is_nullable())
        });
    if same {
        return Ok(());
    }
    let list = |fields: &Fields| {
        let shown = fields.iter().map(|field| {
            let null = if field.is_nullable() { "" } else { " NOT NULL" };
            format!("{} {}{null}", field.name(), type_name(field.data_type()))
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    let message = format!(
        "Table `{}` has a user-specified schema that is incompatible with the schema inferred from its query: it names ({}), the query gives ({}).",
        table.name,
        list(&columns),
        list(query.fields())
    );
    let error = SqlError::new("USER_SPECIFIED_AND_INFERRED_SCHEMA_NOT_COMPATIBLE", message)
        .hint("Leave the list out, or name and cast the columns in the SELECT.");
    Err(error)
}

/// Rows in memory are gone with the session: only a query that puts all of them out again can go on from a checkpoint.
pub(super) fn check_memory(checkpoint: &Path, mode: OutputMode) -> Result<(), SqlError> {
    let begun = std::fs::read_dir(checkpoint.join("offsets")).is_ok_and(|mut entries| entries.next().is_some());
    if !begun || mode == OutputMode::Complete {
        return Ok(());
    }
    let message = format!(
        "This query does not support recovering from checkpoint location. Delete {} to start over.",
        checkpoint.join("offsets").display()
    );
    Err(SqlError::new("UNSUPPORTED_STREAMING_OPERATION", message)
        .hint("Only outputMode complete puts all rows into memory again."))
}
