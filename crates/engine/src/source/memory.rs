//! A source that is fed by hand, for tests and measurements. Its offset is the number of batches added.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{NextOffset, ReadLimit, Source, SourceOffset};
use crate::error::EngineError;
use crate::plan::SourceFactory;

/// What was added so far; clones share it. It outlives the queries that read it, like a topic.
#[derive(Clone)]
pub struct MemoryStream {
    schema: SchemaRef,
    batches: Arc<Mutex<Vec<RecordBatch>>>,
    len: Arc<watch::Sender<usize>>,
    /// At most so many added batches make up a micro-batch.
    max_batches_per_trigger: usize,
}

impl fmt::Debug for MemoryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStream[{} batches]", self.batches.lock().len())
    }
}

impl MemoryStream {
    pub fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            batches: Arc::default(),
            len: Arc::new(watch::channel(0).0),
            max_batches_per_trigger: usize::MAX,
        }
    }

    /// The same stream, of which a query takes at most `batches` added batches at a time.
    #[must_use]
    pub fn with_max_batches_per_trigger(mut self, batches: usize) -> Self {
        self.max_batches_per_trigger = batches.max(1);
        self
    }

    /// Adds a batch for the queries to read.
    pub fn add(&self, batch: RecordBatch) {
        let mut batches = self.batches.lock();
        batches.push(batch);
        self.len.send_replace(batches.len());
    }
}

#[async_trait]
impl SourceFactory for MemoryStream {
    async fn open(&self, _: Option<&Path>) -> Result<Box<dyn Source>, EngineError> {
        Ok(Box::new(MemorySource { stream: self.clone(), end: None, len: self.len.subscribe() }))
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn description(&self) -> String {
        "MemoryStream".to_owned()
    }
}

struct MemorySource {
    stream: MemoryStream,
    /// Where an `availableNow` query ends.
    end: Option<usize>,
    len: watch::Receiver<usize>,
}

impl MemorySource {
    fn end(&self) -> usize {
        let len = *self.len.borrow();
        self.end.map_or(len, |end| end.min(len))
    }
}

fn position(offset: &SourceOffset) -> Result<usize, EngineError> {
    offset.0.parse().map_err(|_| EngineError::External {
        action: "read a memory stream".to_owned(),
        message: format!("'{}' is no offset of it", offset.0),
    })
}

fn offset(position: usize) -> SourceOffset {
    SourceOffset(position.to_string())
}

#[async_trait]
impl Source for MemorySource {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.stream.schema)
    }

    fn description(&self) -> String {
        "MemoryStream".to_owned()
    }

    async fn initial_offset(&mut self) -> Result<SourceOffset, EngineError> {
        Ok(offset(0))
    }

    async fn next_offset(&mut self, start: &SourceOffset, limit: ReadLimit) -> Result<NextOffset, EngineError> {
        let start = position(start)?;
        let most = match limit {
            ReadLimit::Options => self.stream.max_batches_per_trigger,
            ReadLimit::Everything | ReadLimit::Bytes(_) => usize::MAX,
        };
        let latest = self.end().max(start);
        Ok(NextOffset { end: offset(latest.min(start.saturating_add(most))), latest: offset(latest) })
    }

    async fn prepare_available_now(&mut self) -> Result<(), EngineError> {
        self.end = Some(*self.len.borrow());
        Ok(())
    }

    async fn wait_beyond(&mut self, after: &SourceOffset) -> Result<(), EngineError> {
        let after = position(after)?;
        // The sender lives in the stream that this source holds, so waiting cannot fail.
        let _ = self.len.wait_for(|len| *len > after).await;
        Ok(())
    }

    async fn read(&mut self, start: &SourceOffset, end: &SourceOffset) -> Result<Vec<Vec<RecordBatch>>, EngineError> {
        let (start, end) = (position(start)?, position(end)?);
        let batches = self.stream.batches.lock();
        let rows = batches.get(start..end).ok_or_else(|| EngineError::External {
            action: "read a memory stream".to_owned(),
            message: format!("batches {start}..{end} are wanted, it has {}", batches.len()),
        })?;
        Ok(vec![rows.to_vec()])
    }

    async fn commit(&mut self, _: &SourceOffset) -> Result<(), EngineError> {
        Ok(())
    }
}
