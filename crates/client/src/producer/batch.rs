//! A batch on its way, and the handles of those who wait for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use caudal_protocol::TopicPartition;
use caudal_protocol::batch::BatchBuilder;
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Where a record was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordMetadata {
    pub topic: Arc<str>,
    pub partition: i32,
    /// `None` with `acks=0`, and for a record that a retry found to be written already.
    pub offset: Option<i64>,
    /// Milliseconds since the epoch: the record's own, or the broker's for `LogAppendTime` topics.
    pub timestamp_ms: i64,
}

/// What became of a batch.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Written {
        base_offset: Option<i64>,
        log_append_time_ms: Option<i64>,
    },
    Failed(Error),
    /// It was too large and went on in parts: index of the first record of each part, ascending.
    Split(Vec<(u32, Arc<BatchState>)>),
}

/// Shared by a batch and the deliveries of its records.
#[derive(Debug)]
pub(super) struct BatchState {
    pub topic: Arc<str>,
    pub partition: i32,
    inner: Mutex<StateInner>,
}

#[derive(Debug, Default)]
struct StateInner {
    outcome: Option<Outcome>,
    waiting: Vec<Waker>,
}

impl BatchState {
    pub(super) fn new(topic: Arc<str>, partition: i32) -> Arc<BatchState> {
        Arc::new(BatchState { topic, partition, inner: Mutex::default() })
    }

    pub(super) fn complete(&self, outcome: Outcome) {
        let waiting = {
            let mut inner = self.inner.lock();
            inner.outcome.get_or_insert(outcome);
            std::mem::take(&mut inner.waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Outcome> {
        let mut inner = self.inner.lock();
        if let Some(outcome) = &inner.outcome {
            return Poll::Ready(outcome.clone());
        }
        // One task often waits for many records of the same batch.
        if !inner.waiting.last().is_some_and(|last| last.will_wake(cx.waker())) {
            inner.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until the batch, or all parts of it, are done; what became of it is not told.
    pub(super) async fn done(self: Arc<Self>) {
        let mut open = vec![self];
        while let Some(state) = open.pop() {
            if let Outcome::Split(parts) = std::future::poll_fn(|cx| state.poll(cx)).await {
                open.extend(parts.into_iter().map(|(_, part)| part));
            }
        }
    }
}

/// A record that was handed over: a future of where it was written. Dropping it does not take the record back.
#[derive(Debug)]
#[must_use = "the record may fail to be written, which only this future tells"]
pub struct Delivery {
    pub(super) state: Arc<BatchState>,
    pub(super) index: u32,
    pub(super) timestamp_ms: i64,
}

impl Delivery {
    /// The partition that the record goes to.
    pub fn partition(&self) -> TopicPartition {
        TopicPartition::new(&*self.state.topic, self.state.partition)
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match std::task::ready!(self.state.poll(cx)) {
                Outcome::Failed(error) => return Poll::Ready(Err(error)),
                Outcome::Written { base_offset, log_append_time_ms } => {
                    return Poll::Ready(Ok(RecordMetadata {
                        topic: Arc::clone(&self.state.topic),
                        partition: self.state.partition,
                        offset: base_offset.map(|base| base + i64::from(self.index)),
                        timestamp_ms: log_append_time_ms.unwrap_or(self.timestamp_ms),
                    }));
                }
                Outcome::Split(parts) => {
                    let part = parts.into_iter().rev().find(|(first, _)| *first <= self.index);
                    let Some((first, state)) = part else {
                        return Poll::Ready(Err(Error::Closed { what: "send a record" }));
                    };
                    self.index -= first;
                    self.state = state;
                }
            }
        }
    }
}

/// A batch with its way so far.
#[derive(Debug)]
pub(super) struct Batch {
    pub id: u64,
    /// Ascending in the order of the records of a partition: the id of the batch they were gathered in, and, where that
    /// was taken apart, the index of the first record.
    pub order: (u64, u32),
    pub state: Arc<BatchState>,
    /// Index of the topic in the accumulator.
    pub topic: usize,
    pub partition: i32,
    pub created: Instant,
    /// Until the first try.
    pub builder: Option<BatchBuilder>,
    /// From the first try on.
    pub bytes: Bytes,
    pub count: i32,
    /// What it holds of `buffer.memory`.
    pub memory_bytes: usize,
    /// First sequence number; given at the first try and kept over retries.
    pub sequence: Option<i32>,
    /// A try may have been written without the broker saying so.
    pub uncertain: bool,
    /// Its time ran out while it was on the wire, and those who wait were told.
    pub told: bool,
    pub attempts: u32,
    pub retry_at: Instant,
    /// Why it is sent again.
    pub last_error: Option<Error>,
    /// No further record fits, or shall be added.
    pub full: bool,
}

impl Batch {
    pub(super) fn size_bytes(&self) -> usize {
        self.builder.as_ref().map_or(self.bytes.len(), BatchBuilder::uncompressed_size_bytes)
    }
}
