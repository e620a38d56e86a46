//! The engine's error type.

/// Why a streaming query or a statement failed. Messages name the table, column, option or file at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The user's query, option or data is wrong. `class` is Spark's error class where Spark has one
    /// (e.g. `UNRESOLVED_COLUMN.WITH_SUGGESTION`).
    #[error("[{class}] {message}")]
    Invalid { class: &'static str, message: String },
    #[error("failed to run the plan: {0}")]
    DataFusion(#[from] datafusion::error::DataFusionError),
    #[error("failed to convert columns: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    #[error("failed to {action} {path}: {source}")]
    Io { action: &'static str, path: String, source: std::io::Error },
    /// A peer (broker, store) refused or could not be reached.
    #[error("failed to {action}: {message}")]
    External { action: String, message: String },
}
