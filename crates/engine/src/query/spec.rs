//! What a streaming query is before it runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;

use crate::sink::{OutputMode, Sink};

/// When the next micro-batch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trigger {
    /// As soon as the last one is done and there is data.
    #[default]
    Default,
    /// At multiples of the interval.
    ProcessingTime(Duration),
    /// One batch with everything that is there, then stop.
    Once,
    /// Everything that is there now, in batches within the sources' limits, then stop.
    AvailableNow,
}

/// Everything needed to start a query.
pub struct StreamingQuerySpec {
    /// Unique among the active queries of a manager.
    pub name: Option<String>,
    /// The analysed plan over [`crate::plan::StreamRelation`] leaves.
    pub plan: LogicalPlan,
    pub output_mode: OutputMode,
    pub sink: Box<dyn Sink>,
    pub trigger: Trigger,
    /// The checkpoint directory; `None` for a temporary one, removed when the query ends without an error.
    pub checkpoint: Option<PathBuf>,
    /// The session whose functions, tables and configuration the plan uses.
    pub session: SessionState,
    /// Spark configuration (`spark.sql.shuffle.partitions`, ...).
    pub conf: BTreeMap<String, String>,
}
