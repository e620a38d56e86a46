//! What becomes of batches: answers, errors, retries, splits, deadlines.

use std::time::{Duration, Instant};

use bytes::Bytes;
use caudal_protocol::batch::{Batch as RawBatch, BatchBuilder};
use caudal_protocol::messages::ProduceResponse;
use caudal_protocol::messages::produce_response::PartitionProduceResponse;
use caudal_protocol::{ErrorCode, Uuid};

use super::batch::{Batch, BatchState, Outcome};
use super::numbering::{Numbering, add_sequence, is_about_numbers, proves_refusal, restamp, unknown_fate};
use super::sender::Sender;
use crate::error::{Error, Result};
use crate::outage::WAITING_TARGET;

/// Decompressed size up to which a batch that the broker found too large is taken apart.
const SPLIT_LIMIT_BYTES: usize = 1 << 30;
/// How long a batch may be on its way before anything is said.
const PATIENCE: Duration = Duration::from_secs(3);

impl Sender {
    /// With `acks=0` nobody answers: what has gone to the socket counts as sent.
    pub(super) fn on_gone(&mut self, ids: Vec<u64>) {
        for id in ids {
            if let Some(batch) = self.take_in_flight(id) {
                self.finish(&batch, Outcome::Written { base_offset: None, log_append_time_ms: None });
            }
        }
    }

    /// No answer came. `left`: the request may have reached the broker, and what is in it may have been written.
    pub(super) fn on_unanswered(&mut self, ids: Vec<u64>, error: &Error, left: bool, now: Instant) {
        self.refresh_wanted = true;
        for id in ids {
            if let Some(mut batch) = self.take_in_flight(id) {
                batch.uncertain |= left;
                self.on_error(batch, error.clone(), now);
            }
        }
    }

    pub(super) fn on_answer(&mut self, ids: Vec<u64>, result: Result<ProduceResponse>, now: Instant) {
        let response = match result {
            Ok(response) => response,
            Err(error) => return self.on_unanswered(ids, &error, true, now),
        };
        for id in ids {
            let Some(mut batch) = self.take_in_flight(id) else { continue };
            let topic_id = self.shared.client.topic_id(&batch.state.topic);
            match answer_for(&response, &batch, topic_id) {
                Some(answer) => self.on_partition(batch, answer, now),
                None => {
                    batch.uncertain = true;
                    let what = format!("send records to {}-{}", batch.state.topic, batch.partition);
                    let code = ErrorCode::UnknownTopicOrPartition.code();
                    self.on_error(batch, Error::server(what, code, Some("the answer leaves the partition out")), now);
                }
            }
        }
    }

    fn on_partition(&mut self, mut batch: Batch, answer: &PartitionProduceResponse, now: Instant) {
        let code = ErrorCode::from_code(answer.error_code);
        let base_offset = Some(answer.base_offset).filter(|offset| *offset >= 0);
        let log_append_time_ms = Some(answer.log_append_time_ms).filter(|time| *time >= 0);
        if code == ErrorCode::None {
            self.written(&batch, base_offset, log_append_time_ms);
            return;
        }
        batch.uncertain |= !proves_refusal(code);
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
            ErrorCode::DuplicateSequenceNumber if batch.uncertain => {
                self.written(&batch, None, None);
                return;
            }
            ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge if batch.count > 1 && !batch.told => {
                self.split(batch, &error, now);
                return;
            }
            // Another producer has the transactional id now.
            ErrorCode::InvalidProducerEpoch | ErrorCode::ProducerFenced if self.shared.transactions.is_some() => {
                self.fail(batch, error);
                return;
            }
            _ => {}
        }
        let about_numbers = is_about_numbers(code) && batch.sequence.is_some();
        if about_numbers && !self.has_predecessor(&batch) {
            // Nothing before it is missing, so broker and producer disagree for good.
            self.break_numbering(&batch);
            // A transaction is lost with it: only its producer's end remains.
            if batch.uncertain || self.shared.transactions.is_some() {
                let error = if batch.uncertain { unknown_fate(&batch) } else { error };
                self.fail(batch, error);
                return;
            }
        }
        let may_retry = (error.is_retriable() || about_numbers) && batch.attempts <= self.config.retries;
        if may_retry && now.duration_since(batch.created) < self.config.delivery_timeout {
            self.retry(batch, now, &error);
        } else {
            self.fail(batch, error);
        }
    }

    fn written(&mut self, batch: &Batch, base_offset: Option<i64>, log_append_time_ms: Option<i64>) {
        if let Some(state) = self.partitions.get_mut(&(batch.topic, batch.partition)) {
            state.acknowledged = true;
        }
        if std::mem::take(&mut self.told_waiting) {
            tracing::info!(target: WAITING_TARGET, "records are written again");
        }
        self.finish(batch, Outcome::Written { base_offset, log_append_time_ms });
    }

    /// Says what is waited for when a batch has not been written for a while although brokers answer; once, until one is.
    pub(super) fn tell_waiting(&mut self, now: Instant) {
        if self.told_waiting {
            return;
        }
        let oldest =
            self.partitions.values().filter_map(|state| state.retries.front()).min_by_key(|batch| batch.created);
        let is_late = |batch: &Batch| now.duration_since(batch.created) >= PATIENCE;
        let reason = match oldest.filter(|batch| is_late(batch)) {
            Some(batch) => self.reason(batch),
            None => {
                let accumulator = self.shared.accumulator.lock();
                let mut fronts = accumulator.active().iter().filter_map(|at| accumulator.front(at.0, at.1));
                fronts.find(|batch| is_late(batch)).and_then(|batch| self.reason(batch))
            }
        };
        // That none answers is told by who connects.
        if let Some(reason @ (Error::Server { .. } | Error::NoLeader { .. })) = reason {
            self.told_waiting = true;
            tracing::warn!(target: WAITING_TARGET, "{reason}");
        }
    }

    /// Why a batch is not written yet, as far as that is known.
    fn reason(&self, batch: &Batch) -> Option<Error> {
        let no_id = || self.id_error.clone().filter(|_| batch.sequence.is_none());
        let no_leader = || self.shared.client.leader(&batch.state.topic, batch.partition).err();
        batch.last_error.clone().or_else(no_id).or_else(no_leader)
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
        batch.last_error = Some(error.clone());
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

    /// Gives a batch up for good. Its numbers are not used again: whether something was written under them may not be
    /// known.
    fn fail(&mut self, batch: Batch, error: Error) {
        if batch.sequence.is_some()
            && let Some(state) = self.partitions.get_mut(&(batch.topic, batch.partition))
            && state.numbering == Numbering::Sound
        {
            state.numbering = Numbering::Unresolved;
        }
        self.finish(&batch, Outcome::Failed(error));
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
                let producer = self.partitions.get(&(batch.topic, batch.partition)).and_then(|state| state.producer);
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
                        uncertain: batch.uncertain,
                        told: false,
                        attempts: batch.attempts,
                        retry_at: now,
                        last_error: None,
                        full: true,
                    };
                    if let Some(producer) = producer {
                        restamp(&mut part, producer);
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
        if let (Some(transactions), Outcome::Failed(error)) = (&self.shared.transactions, &outcome) {
            _ = transactions.fail(error);
        }
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
        let error = |batch: &Batch, cause: Option<Error>| Error::Timeout {
            what: format!("send {} records to {}-{}", batch.count, batch.state.topic, batch.partition),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            cause: cause.map(Box::new),
        };
        for batch in gone {
            let error = error(&batch, self.reason(&batch));
            self.fail(batch, error);
        }
        // What is on the wire keeps its memory and its place until an answer comes or cannot come any more.
        for batch in self.in_flight.values_mut().filter(|b| !b.told && expired(b)) {
            batch.told = true;
            batch.state.complete(Outcome::Failed(error(batch, batch.last_error.clone())));
        }
    }

    /// When the next batch runs out of time.
    pub(super) fn deadlines(&self, sooner: &mut impl FnMut(Instant)) {
        for state in self.partitions.values() {
            if let Some(batch) = state.retries.front() {
                sooner(batch.created + self.config.delivery_timeout);
            }
        }
        for batch in self.in_flight.values().filter(|batch| !batch.told) {
            sooner(batch.created + self.config.delivery_timeout);
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
            self.fail(batch, error.clone());
        }
    }
}

fn answer_for<'a>(response: &'a ProduceResponse, batch: &Batch, id: Uuid) -> Option<&'a PartitionProduceResponse> {
    let by_name = |name: &str| name == &*batch.state.topic;
    let topics = response.responses.iter().filter(|t| by_name(&t.name) || (t.name.is_empty() && t.topic_id == id));
    topics.flat_map(|t| &t.partition_responses).find(|p| p.index == batch.partition)
}
