//! Where rows come from: replayable inputs addressed by offsets.

pub mod bounded;
pub mod file;
pub mod kafka;
pub mod memory;
pub mod rate;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use crate::error::EngineError;

/// A position in one source: the JSON text that stands on its line of `offsets/N`, as Spark writes it
/// (Kafka: `{"topic":{"0":42}}`; file: `{"logOffset":3}`; rate: `12`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceOffset(pub String);

/// How much one batch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadLimit {
    /// What the source's options say (`maxOffsetsPerTrigger`, `maxFilesPerTrigger`), else what fits into memory well.
    Options,
    /// No limit: all that there is (`trigger = once`).
    Everything,
    /// About so many bytes of memory, whatever the options say.
    Bytes(usize),
}

/// Where a batch ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextOffset {
    pub end: SourceOffset,
    /// The newest offset there is, whatever the limits (`sources[].latestOffset` in the progress): never before `end`.
    pub latest: SourceOffset,
}

/// A replayable input. Reading the same range twice yields the same rows in the same order.
#[async_trait]
pub trait Source: Send {
    /// The schema of every batch that [`Source::read`] returns.
    fn schema(&self) -> SchemaRef;

    /// Narrows [`Source::schema`] and every later [`Source::read`] to these columns of the full schema, in this order.
    /// Called at most once, before the first read. `false` when the source cannot: it then goes on yielding all columns.
    fn project(&mut self, _columns: &[usize]) -> bool {
        false
    }

    /// Whether the next batch may be asked for and read before the last one is in the sink, and be thrown away.
    fn can_read_ahead(&self) -> bool {
        false
    }

    /// Tells the source the query's name, if it has one, and its id; called once, before the first read, on a runtime.
    /// Sources that make the query's progress visible elsewhere (Kafka: as a consumer group) use them.
    fn set_query_name(&mut self, _name: Option<&str>, _id: &str) {}

    /// What `StreamingQueryProgress.sources[].description` shows, e.g. `KafkaV2[Subscribe[t]]`.
    fn description(&self) -> String;

    /// The offset from which a query without a checkpoint starts.
    async fn initial_offset(&mut self) -> Result<SourceOffset, EngineError>;

    /// The end (exclusive) of the next batch that starts at `start`: everything available, within `limit`. Equal to
    /// `start` when there is nothing. A source may read the rows already, for [`Source::read`] to hand out.
    async fn next_offset(&mut self, start: &SourceOffset, limit: ReadLimit) -> Result<NextOffset, EngineError>;

    /// Called once, before the first batch of a query that reads what there is now (`availableNow`, a table): from then
    /// on [`Source::next_offset`] ends there, so that the query comes to an end while more rows arrive.
    async fn prepare_available_now(&mut self) -> Result<(), EngineError>;

    /// Returns as soon as rows beyond `after` can be read (a long poll, never a sleep loop). Cancel safe.
    async fn wait_beyond(&mut self, after: &SourceOffset) -> Result<(), EngineError>;

    /// The rows in `start..end` (end exclusive), one inner list per input partition.
    async fn read(&mut self, start: &SourceOffset, end: &SourceOffset) -> Result<Vec<Vec<RecordBatch>>, EngineError>;

    /// Tells the source that everything before `end` has reached the sink for good.
    async fn commit(&mut self, end: &SourceOffset) -> Result<(), EngineError>;

    /// Called once when the query ends, after the last commit.
    async fn stop(&mut self) {}
}
