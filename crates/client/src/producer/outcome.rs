//! What becomes of batches: answers, errors, retries, splits, deadlines.

use std::time::Instant;

use bytes::Bytes;
use caudal_protocol::batch::{Batch as RawBatch, BatchBuilder};
use caudal_protocol::messages::ProduceResponse;
use caudal_protocol::messages::produce_response::PartitionProduceResponse;
use caudal_protocol::{ErrorCode, Uuid};

use super::batch::{Batch, BatchState, Outcome};
use super::sender::{Sender, add_sequence, restamp};
use crate::error::{Error, Result};

/// Decompressed size up to which a batch that the broker found too large is taken apart.
const SPLIT_LIMIT_BYTES: usize = 1 << 30;

impl Sender {
    /// With `acks=0` nobody answers: what is on the wire counts as sent.
    pub(super) fn on_sent_without_acks(&mut self, ids: Vec<u64>, sent: Result<()>) {
        for id in ids {
            let Some(batch) = self.take_in_flight(id) else { continue };
            let outcome = match &sent {
                Ok(()) => Outcome::Written { base_offset: None, log_append_time_ms: None },
                Err(error) => Outcome::Failed(error.clone()),
            };
            self.finish(&batch, outcome);
        }
    }

    pub(super) fn on_answer(&mut self, ids: Vec<u64>, result: Result<ProduceResponse>, now: Instant) {
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                self.refresh_wanted = true;
                for id in ids {
                    if let Some(batch) = self.take_in_flight(id) {
                        self.on_error(batch, error.clone(), now);
                    }
                }
                return;
            }
        };
        for id in ids {
            let Some(batch) = self.take_in_flight(id) else { continue };
            let topic_id = self.shared.client.topic_id(&batch.state.topic);
            match answer_for(&response, &batch, topic_id) {
                Some(answer) => self.on_partition(batch, answer, now),
                None => {
                    let what = format!("send records to {}-{}", batch.state.topic, batch.partition);
                    let code = ErrorCode::UnknownTopicOrPartition.code();
                    self.on_error(batch, Error::server(what, code, Some("the answer leaves the partition out")), now);
                }
            }
        }
    }

    fn on_partition(&mut self, batch: Batch, answer: &PartitionProduceResponse, now: Instant) {
        let code = ErrorCode::from_code(answer.error_code);
        let base_offset = Some(answer.base_offset).filter(|offset| *offset >= 0);
        let log_append_time_ms = Some(answer.log_append_time_ms).filter(|time| *time >= 0);
        if code == ErrorCode::None {
            self.finish(&batch, Outcome::Written { base_offset, log_append_time_ms });
            return;
        }
        let leader = &answer.current_leader;
        if leader.leader_id >= 0 {
            let (topic, partition) = (&batch.state.topic, batch.partition);
            self.shared.client.set_leader(topic, partition, leader.leader_id, leader.leader_epoch);
        }
        let what = format!("send records to {}-{}", batch.state.topic, batch.partition);
        let message = answer
            .record_errors
            .first()
            .and_then(|r| r.batch_index_error_message.as_deref())
            .or(answer.error_message.as_deref());
        self.on_error(batch, Error::server(what, answer.error_code, message), now);
    }

    fn on_error(&mut self, batch: Batch, error: Error, now: Instant) {
        let code = error.code().unwrap_or(ErrorCode::None);
        match code {
            // A retry of what had been written: its offset is not known any more.
            ErrorCode::DuplicateSequenceNumber => {
                self.finish(&batch, Outcome::Written { base_offset: None, log_append_time_ms: None });
                return;
            }
            ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge if batch.count > 1 => {
                self.split(batch, &error, now);
                return;
            }
            _ => {}
        }
        let sequencing = matches!(
            code,
            ErrorCode::OutOfOrderSequenceNumber | ErrorCode::UnknownProducerId | ErrorCode::InvalidProducerEpoch
        ) && self.config.idempotent;
        if sequencing && !batch.renumbered && !self.has_predecessor(&batch) {
            // Nothing before it is missing, so broker and producer disagree for good: number anew.
            tracing::debug!(%error, "beginning a new sequence of batches");
            self.reset = true;
        }
        let may_retry = (error.is_retriable() || sequencing) && batch.attempts <= self.config.retries;
        if may_retry && now.duration_since(batch.created) < self.config.delivery_timeout {
            self.retry(batch, now, &error);
        } else {
            self.fail(batch, error);
        }
    }

    /// Whether a batch before this one in its partition is still to be sent again.
    fn has_predecessor(&self, batch: &Batch) -> bool {
        let Some(state) = self.partitions.get(&(batch.topic, batch.partition)) else { return false };
        let in_flight = state.in_flight.iter().filter_map(|id| self.in_flight.get(id));
        state.retries.front().into_iter().chain(in_flight).any(|other| other.order < batch.order)
    }

    fn retry(&mut self, mut batch: Batch, now: Instant, error: &Error) {
        tracing::debug!(%error, attempts = batch.attempts, "sending a batch again");
        batch.retry_at = now + self.backoff.wait(batch.attempts);
        if error.code().is_none_or(|code| code.is_retriable()) {
            self.refresh_wanted = true;
        }
        self.queue_retry(batch);
    }

    fn queue_retry(&mut self, batch: Batch) {
        let state = self.partitions.entry((batch.topic, batch.partition)).or_default();
        let at = state.retries.partition_point(|other| other.order < batch.order);
        state.retries.insert(at, batch);
    }

    /// Gives a batch up for good.
    fn fail(&mut self, batch: Batch, error: Error) {
        if self.config.idempotent && batch.sequence.is_some() {
            if error.is_network() || matches!(error, Error::Timeout { .. }) {
                // It may have been written or not; its number cannot be used or skipped safely.
                self.reset = true;
            } else {
                self.close_gap(&batch);
            }
        }
        self.finish(&batch, Outcome::Failed(error));
    }

    /// The broker refused a batch: those behind it move up by its sequence numbers.
    fn close_gap(&mut self, failed: &Batch) {
        let (Some(id), Some(from)) = (self.producer_id, failed.sequence) else { return };
        let Some(state) = self.partitions.get_mut(&(failed.topic, failed.partition)) else { return };
        let behind = |batch: &Batch| batch.order > failed.order && batch.sequence.is_some_and(|s| s != from);
        let move_up = |batch: &mut Batch| {
            batch.sequence = batch.sequence.map(|s| add_sequence(s, failed.count.wrapping_neg()));
            restamp(batch, id);
        };
        state.next_sequence = add_sequence(state.next_sequence, failed.count.wrapping_neg());
        state.retries.iter_mut().filter(|b| behind(b)).for_each(move_up);
        for in_flight in &state.in_flight {
            if let Some(batch) = self.in_flight.get_mut(in_flight).filter(|b| behind(b)) {
                move_up(batch);
                batch.renumbered = true;
            }
        }
    }

    /// Takes a batch apart that was too large for the broker, as the Java client does.
    fn split(&mut self, batch: Batch, error: &Error, now: Instant) {
        self.shared.accumulator.lock().too_large(batch.topic);
        match self.parts(&batch) {
            Ok(parts) => {
                tracing::debug!(%error, parts = parts.len(), "splitting a batch");
                let mut first = 0;
                let mut states = Vec::with_capacity(parts.len());
                let mut memory_left = batch.memory_bytes;
                let mut sequence = batch.sequence;
                let last = parts.len() - 1;
                for (i, (bytes, count)) in parts.into_iter().enumerate() {
                    let state = BatchState::new(batch.state.topic.clone(), batch.partition);
                    let share = if i == last { memory_left } else { memory_left / 2 };
                    memory_left -= share;
                    let mut part = Batch {
                        id: self.shared.accumulator.lock().register_part(&state),
                        order: (batch.order.0, batch.order.1 + first),
                        state: state.clone(),
                        topic: batch.topic,
                        partition: batch.partition,
                        created: batch.created,
                        builder: None,
                        bytes,
                        count,
                        memory_bytes: share,
                        sequence,
                        renumbered: false,
                        attempts: batch.attempts,
                        retry_at: now,
                        full: true,
                    };
                    if let Some(id) = self.producer_id {
                        restamp(&mut part, id);
                    }
                    sequence = sequence.map(|s| add_sequence(s, count));
                    states.push((first, state));
                    first += count.unsigned_abs();
                    self.queue_retry(part);
                }
                batch.state.complete(Outcome::Split(states));
                self.shared.accumulator.lock().release(batch.id, 0);
            }
            Err(broken) => self.fail(batch, broken),
        }
    }

    /// The two halves of a batch.
    fn parts(&self, batch: &Batch) -> Result<Vec<(Bytes, i32)>> {
        let failed = |reason: String| Error::Misuse {
            what: format!("split a batch for {}-{}", batch.state.topic, batch.partition),
            reason,
        };
        let raw = RawBatch::parse(&batch.bytes).map_err(|e| failed(e.to_string()))?;
        let records = raw.records(SPLIT_LIMIT_BYTES).map_err(|e| failed(e.to_string()))?;
        let records = records.to_records().map_err(|e| failed(e.to_string()))?;
        let half = records.len().div_ceil(2).max(1);
        records
            .chunks(half)
            .map(|chunk| {
                let mut builder = BatchBuilder::new(self.config.codec);
                for record in chunk {
                    let headers: Vec<(&[u8], Option<&[u8]>)> =
                        record.headers.iter().map(|h| (h.key.as_ref(), h.value.as_deref())).collect();
                    builder.append(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), &headers);
                }
                let bytes = builder.build().map_err(|e| failed(e.to_string()))?.freeze();
                Ok((bytes, i32::try_from(chunk.len()).unwrap_or(i32::MAX)))
            })
            .collect()
    }

    /// Tells those who wait, and gives the memory back.
    pub(super) fn finish(&mut self, batch: &Batch, outcome: Outcome) {
        batch.state.complete(outcome);
        self.shared.accumulator.lock().release(batch.id, batch.memory_bytes);
        self.shared.memory_freed.notify_waiters();
    }

    fn take_in_flight(&mut self, id: u64) -> Option<Batch> {
        let batch = self.in_flight.remove(&id)?;
        if let Some(state) = self.partitions.get_mut(&(batch.topic, batch.partition)) {
            state.in_flight.retain(|other| *other != id);
        }
        Some(batch)
    }

    /// Fails the batches whose `delivery.timeout.ms` has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        let timeout = self.config.delivery_timeout;
        let expired = |batch: &Batch| now.duration_since(batch.created) >= timeout;
        let mut gone: Vec<Batch> = Vec::new();
        for state in self.partitions.values_mut() {
            while let Some(batch) = state.retries.pop_front_if(|b| expired(b)) {
                gone.push(batch);
            }
        }
        {
            let mut accumulator = self.shared.accumulator.lock();
            for (topic, partition) in accumulator.active().to_vec() {
                while accumulator.front(topic, partition).is_some_and(expired) {
                    gone.extend(accumulator.take(topic, partition));
                }
            }
        }
        for batch in gone {
            let error = Error::Timeout {
                what: format!("send {} records to {}-{}", batch.count, batch.state.topic, batch.partition),
                timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
                cause: None,
            };
            self.fail(batch, error);
        }
    }

    /// When the next batch runs out of time.
    pub(super) fn deadlines(&self, sooner: &mut impl FnMut(Instant)) {
        for state in self.partitions.values() {
            if let Some(batch) = state.retries.front() {
                sooner(batch.created + self.config.delivery_timeout);
            }
        }
        let accumulator = self.shared.accumulator.lock();
        for (topic, partition) in accumulator.active() {
            if let Some(batch) = accumulator.front(*topic, *partition) {
                sooner(batch.created + self.config.delivery_timeout);
            }
        }
    }

    /// Fails everything that waits, for a reason that will not pass.
    pub(super) fn fail_waiting(&mut self, error: &Error) {
        let mut gone: Vec<Batch> = Vec::new();
        for state in self.partitions.values_mut() {
            gone.extend(state.retries.drain(..));
        }
        {
            let mut accumulator = self.shared.accumulator.lock();
            for (topic, partition) in accumulator.active().to_vec() {
                while let Some(batch) = accumulator.take(topic, partition) {
                    gone.push(batch);
                }
            }
        }
        for batch in gone {
            self.finish(&batch, Outcome::Failed(error.clone()));
        }
    }
}

fn answer_for<'a>(response: &'a ProduceResponse, batch: &Batch, id: Uuid) -> Option<&'a PartitionProduceResponse> {
    let by_name = |name: &str| name == &*batch.state.topic;
    let topics = response.responses.iter().filter(|t| by_name(&t.name) || (t.name.is_empty() && t.topic_id == id));
    topics.flat_map(|t| &t.partition_responses).find(|p| p.index == batch.partition)
}
