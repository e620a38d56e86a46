//! The qualifiers of names: there is one catalog and one schema.

use super::error::SqlError;

pub(super) const CATALOG: &str = "spark_catalog";

pub(super) fn is_schema(name: &str) -> bool {
    ["default", "session", "global_temp"].iter().any(|schema| schema.eq_ignore_ascii_case(name))
}

/// The name itself, when its qualifiers are those of the one schema that there is.
pub(super) fn unqualified<S: AsRef<str>>(parts: &[S]) -> Option<&str> {
    match parts {
        [name] => Some(name.as_ref()),
        [schema, name] if is_schema(schema.as_ref()) => Some(name.as_ref()),
        [catalog, schema, name] if catalog.as_ref().eq_ignore_ascii_case(CATALOG) && is_schema(schema.as_ref()) => {
            Some(name.as_ref())
        }
        _ => None,
    }
}

pub(super) fn schema_missing(name: &str) -> SqlError {
    SqlError::new(
        "SCHEMA_NOT_FOUND",
        format!(
            "The schema `{CATALOG}`.`{name}` cannot be found. Verify the spelling and correctness of the schema and catalog. SQLSTATE: 42704"
        ),
    )
    .hint("Caudal has one schema: spark_catalog.default.")
}
