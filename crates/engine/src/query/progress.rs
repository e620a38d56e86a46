//! `StreamingQueryProgress`, field for field as Spark's JSON has it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::source::SourceOffset;

/// What one batch did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamingQueryProgress {
    pub id: String,
    pub run_id: String,
    pub name: Option<String>,
    /// Start of the trigger, ISO 8601 in UTC with milliseconds.
    pub timestamp: String,
    pub batch_id: i64,
    /// In milliseconds.
    pub batch_duration: u64,
    pub num_input_rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_rows_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processed_rows_per_second: Option<f64>,
    pub duration_ms: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub event_time: BTreeMap<&'static str, String>,
    pub state_operators: Vec<StateOperatorProgress>,
    pub sources: Vec<SourceProgress>,
    pub sink: SinkProgress,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub observed_metrics: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateOperatorProgress {
    pub operator_name: &'static str,
    pub num_rows_total: u64,
    pub num_rows_updated: u64,
    pub all_updates_time_ms: u64,
    pub num_rows_removed: u64,
    pub all_removals_time_ms: u64,
    pub commit_time_ms: u64,
    pub memory_used_bytes: u64,
    pub num_rows_dropped_by_watermark: u64,
    pub num_shuffle_partitions: u64,
    pub num_state_store_instances: u64,
    pub custom_metrics: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceProgress {
    pub description: String,
    pub start_offset: Value,
    pub end_offset: Value,
    pub latest_offset: Value,
    pub num_input_rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_rows_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processed_rows_per_second: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkProgress {
    pub description: String,
    pub num_output_rows: u64,
}

/// What a query is doing (Spark's `StreamingQueryStatus`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamingQueryStatus {
    pub message: String,
    pub is_data_available: bool,
    pub is_trigger_active: bool,
}

/// An offset as it stands in progress JSON: the JSON value that it is, else its text.
pub fn offset_value(offset: Option<&SourceOffset>) -> Value {
    match offset {
        Some(SourceOffset(text)) => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone())),
        None => Value::Null,
    }
}

/// Rows per second to one decimal, as Spark prints it; none over no time at all.
#[expect(clippy::cast_precision_loss, reason = "a rate for display")]
pub fn rate(rows: u64, duration_ms: u64) -> Option<f64> {
    (duration_ms > 0).then(|| (rows as f64 * 10_000.0 / duration_ms as f64).round() / 10.0)
}

/// ISO 8601 in UTC with milliseconds.
pub fn iso(epoch_ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(epoch_ms)
        .map_or_else(|| epoch_ms.to_string(), |time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}
