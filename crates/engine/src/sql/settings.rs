//! The configuration keys of Spark and what Caudal does with each: one table, from which `SET` checks and warns, and
//! which `SET -v` shows.

use super::error::{SqlError, did_you_mean};
use super::interval;
use super::memory;
use crate::plan::recursion;

/// What a value must be.
#[derive(Debug, Clone, Copy)]
enum Allowed {
    Text,
    Flag,
    /// A whole number, at least this.
    Number(u64),
    OneOf(&'static [&'static str]),
    /// A whole number, or -1 for no limit.
    Limit,
    /// Bytes, with a unit such as `m` or `g`.
    Size,
    /// `default`, `once`, `availableNow` or an interval.
    Trigger,
}

/// What a key does.
#[derive(Debug, Clone, Copy)]
enum Effect {
    Acts(Allowed),
    /// Caudal works as these values say and cannot work otherwise.
    Fixed(&'static [&'static str]),
    /// Tunes a part of Spark that Caudal does not have; results do not depend on it.
    None,
}

struct Key {
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
    effect: Effect,
}

const fn acts(name: &'static str, default: &'static str, allowed: Allowed, meaning: &'static str) -> Key {
    Key { name, default, meaning, effect: Effect::Acts(allowed) }
}

const fn fixed(name: &'static str, values: &'static [&'static str], meaning: &'static str) -> Key {
    Key { name, default: "", meaning, effect: Effect::Fixed(values) }
}

const fn none(name: &'static str) -> Key {
    Key { name, default: "", meaning: "", effect: Effect::None }
}

const TRUE: &[&str] = &["true"];
const FALSE: &[&str] = &["false"];
const UTC: &[&str] = &["UTC", "Etc/UTC", "GMT", "Z", "+00:00", "UTC+0"];

const KEYS: &[Key] = &[
    acts(
        "spark.sql.shuffle.partitions",
        "one per CPU",
        Allowed::Number(1),
        "Partitions of a streaming query's state; fixed by its checkpoint.",
    ),
    acts(
        "spark.sql.streaming.checkpointLocation",
        "<warehouse>/_checkpoints",
        Allowed::Text,
        "Directory under which every streaming table has its checkpoint, by its name.",
    ),
    acts(
        "spark.sql.streaming.multipleWatermarkPolicy",
        "min",
        Allowed::OneOf(&["min", "max"]),
        "Which of several watermarks counts; fixed by the checkpoint.",
    ),
    acts(
        "spark.sql.streaming.noDataMicroBatches.enabled",
        "true",
        Allowed::Flag,
        "Whether a batch without rows runs when the watermark has moved.",
    ),
    acts(
        "spark.sql.streaming.minBatchesToRetain",
        "100",
        Allowed::Number(1),
        "Batches that stay in a checkpoint and can be replayed.",
    ),
    acts(
        "spark.sql.streaming.stateStore.minDeltasForSnapshot",
        "10",
        Allowed::Number(1),
        "Deltas of the state after which a snapshot is written.",
    ),
    acts("caudal.sql.trigger", "default", Allowed::Trigger, "When streaming queries run their batches."),
    acts(
        "caudal.sql.outputMode",
        "by the query",
        Allowed::OneOf(&["append", "update", "complete"]),
        "The output mode of streaming tables that name none, and of SELECTs over streams.",
    ),
    acts(recursion::LEVEL_LIMIT.0, "100", Allowed::Limit, "Levels of a recursive query after which it fails."),
    acts(recursion::ROW_LIMIT.0, "1000000", Allowed::Limit, "Rows of a recursive query after which it fails."),
    acts(
        memory::MEMORY_LIMIT,
        "half of the machine's",
        Allowed::Size,
        "Memory that sorts, joins and aggregations of the session share before they spill to files; set at start.",
    ),
    fixed("spark.sql.session.timeZone", UTC, "Times are read and shown in UTC."),
    fixed("spark.sql.ansi.enabled", TRUE, "Overflow, division by zero and malformed casts are errors."),
    fixed("spark.sql.caseSensitive", FALSE, "Names of columns and tables match in any case."),
    fixed("spark.sql.sources.default", &["parquet"], "The format of a table without USING."),
    fixed("spark.sql.parquet.compression.codec", &["snappy"], "Another codec: OPTIONS (compression 'zstd')."),
    fixed("spark.sql.parquet.outputTimestampType", &["TIMESTAMP_MICROS"], "How Parquet files hold timestamps."),
    fixed("spark.sql.legacy.timeParserPolicy", &["CORRECTED", "EXCEPTION"], "Spark 3's patterns of dates and times."),
    fixed("spark.sql.storeAssignmentPolicy", &["ANSI"], "How INSERT converts values."),
    fixed("spark.sql.crossJoin.enabled", TRUE, "Joins without a condition are allowed."),
    fixed("spark.sql.groupByOrdinal", TRUE, "GROUP BY 1 means the first column."),
    fixed("spark.sql.orderByOrdinal", TRUE, "ORDER BY 1 means the first column."),
    fixed("spark.sql.groupByAliases", TRUE, "GROUP BY may name a column of SELECT."),
    fixed("spark.sql.variable.substitute", TRUE, "${name} is replaced by the key's value."),
    fixed("spark.sql.streaming.statefulOperator.checkCorrectness.enabled", TRUE, "Wrong combinations are refused."),
    fixed("spark.sql.legacy.allowNegativeScaleOfDecimal", FALSE, "Decimals have no negative scale."),
    none("spark.app.name"),
    none("spark.master"),
    none("spark.cores.max"),
    none("spark.driver.memory"),
    none("spark.executor.cores"),
    none("spark.executor.instances"),
    none("spark.executor.memory"),
    none("spark.default.parallelism"),
    none("spark.serializer"),
    none("spark.ui.enabled"),
    none("spark.ui.port"),
    none("spark.jars"),
    none("spark.jars.packages"),
    none("spark.sql.adaptive.enabled"),
    none("spark.sql.adaptive.coalescePartitions.enabled"),
    none("spark.sql.adaptive.skewJoin.enabled"),
    none("spark.sql.autoBroadcastJoinThreshold"),
    none("spark.sql.broadcastTimeout"),
    none("spark.sql.cbo.enabled"),
    none("spark.sql.catalogImplementation"),
    none("spark.sql.codegen.wholeStage"),
    none("spark.sql.execution.arrow.pyspark.enabled"),
    none("spark.sql.execution.arrow.maxRecordsPerBatch"),
    none("spark.sql.files.maxPartitionBytes"),
    none("spark.sql.files.openCostInBytes"),
    none("spark.sql.inMemoryColumnarStorage.batchSize"),
    none("spark.sql.inMemoryColumnarStorage.compressed"),
    none("spark.sql.parquet.filterPushdown"),
    none("spark.sql.parquet.enableVectorizedReader"),
    none("spark.sql.repl.eagerEval.enabled"),
    none("spark.sql.streaming.forceDeleteTempCheckpointLocation"),
    none("spark.sql.streaming.metricsEnabled"),
    none("spark.sql.streaming.numRecentProgressUpdates"),
    none("spark.sql.streaming.pollingDelay"),
    none("spark.sql.streaming.schemaInference"),
    none("spark.sql.streaming.stateStore.providerClass"),
    none("spark.sql.streaming.stateStore.maintenanceInterval"),
    none("spark.sql.streaming.stopTimeout"),
    none("spark.sql.ui.retainedExecutions"),
];

fn find(key: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == key)
}

/// Checks a key and its value. A warning says that the key does nothing; an error, that the value cannot be had.
pub(super) fn check(key: &str, value: &str) -> Result<Option<String>, SqlError> {
    if key == "spark.sql.warehouse.dir" {
        let message = format!("Cannot modify the value of the static config: {key}. SQLSTATE: 46110");
        return Err(SqlError::new("CANNOT_MODIFY_CONFIG", message).hint("Start caudal sql with --warehouse DIR."));
    }
    let Some(known) = find(key) else {
        if !key.starts_with("spark.") && !key.starts_with("caudal.") {
            return Ok(None);
        }
        let near = did_you_mean(key, KEYS.iter().map(|k| k.name));
        let hint =
            near.map_or_else(|| "SET -v lists those that do.".to_owned(), |name| format!("Did you mean {name}?"));
        return Ok(Some(format!("warning: Caudal does not know {key}; it has no effect. {hint}")));
    };
    match known.effect {
        Effect::Acts(allowed) => match wrong(allowed, value) {
            None => Ok(None),
            Some(allowed) => {
                let message = format!(
                    "The value '{value}' in the config \"{key}\" is invalid: it must be {allowed}. SQLSTATE: 22022"
                );
                Err(SqlError::new("INVALID_CONF_VALUE", message))
            }
        },
        Effect::Fixed(values) if values.iter().any(|v| v.eq_ignore_ascii_case(value)) => Ok(None),
        Effect::Fixed(values) => {
            let allowed = values.first().copied().unwrap_or_default();
            Err(SqlError::unsupported(format!("{key}={value}"))
                .hint(format!("{} The only value is {allowed}.", known.meaning)))
        }
        Effect::None => Ok(Some(format!("warning: {key} tunes Spark; it has no effect in Caudal."))),
    }
}

/// What the value must be instead, if it is wrong.
fn wrong(allowed: Allowed, value: &str) -> Option<String> {
    let value = value.trim();
    match allowed {
        Allowed::Text => value.is_empty().then(|| "a path".to_owned()),
        Allowed::Flag => (!["true", "false"].contains(&value)).then(|| "true or false".to_owned()),
        Allowed::Number(least) => {
            let number = value.parse::<u32>().ok().filter(|n| u64::from(*n) >= least);
            number.is_none().then(|| format!("a whole number from {least} on"))
        }
        Allowed::OneOf(list) => {
            (!list.iter().any(|v| v.eq_ignore_ascii_case(value))).then(|| format!("one of {}", list.join(", ")))
        }
        Allowed::Limit => value
            .parse::<i64>()
            .ok()
            .filter(|n| *n >= -1)
            .is_none()
            .then(|| "a whole number, or -1 for no limit".to_owned()),
        Allowed::Size => {
            memory::parse_bytes(value).is_none().then(|| "a number of bytes such as 512m or 4g".to_owned())
        }
        Allowed::Trigger => {
            let named = ["default", "once", "availablenow"].contains(&value.to_ascii_lowercase().as_str());
            let timed =
                || interval::parse_text(value).and_then(interval::Interval::fixed_micros).is_some_and(|m| m >= 0);
            (!named && !timed()).then(|| "default, once, availableNow, or an interval such as '1 second'".to_owned())
        }
    }
}

/// The value that a key has when nobody set it.
pub(super) fn default_of(key: &str) -> Option<&'static str> {
    let known = find(key)?;
    match known.effect {
        Effect::Acts(_) => Some(known.default),
        Effect::Fixed(values) => values.first().copied(),
        Effect::None => None,
    }
}

/// The keys that act or are fixed: name, default, meaning.
pub(super) fn listed() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    KEYS.iter().filter_map(|k| default_of(k.name).map(|default| (k.name, default, k.meaning)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_acts_or_says_that_it_does_not() {
        assert_eq!(check("spark.sql.shuffle.partitions", "4").unwrap(), None);
        assert_eq!(check("my.variable", "x").unwrap(), None);
        assert_eq!(check("spark.sql.shuffle.partitions", "0").unwrap_err().class, "INVALID_CONF_VALUE");
        let warning = check("spark.sql.shufle.partitions", "4").unwrap().unwrap();
        assert!(warning.ends_with("Did you mean spark.sql.shuffle.partitions?"), "{warning}");
        assert!(check("spark.sql.adaptive.enabled", "true").unwrap().is_some());
    }

    #[test]
    fn a_value_that_cannot_be_had_is_refused() {
        assert_eq!(check("spark.sql.session.timeZone", "Etc/UTC").unwrap(), None);
        let error = check("spark.sql.session.timeZone", "Europe/Berlin").unwrap_err();
        assert_eq!(error.class, "UNSUPPORTED_FEATURE");
        assert!(error.to_string().contains("The only value is UTC."), "{error}");
    }
}
