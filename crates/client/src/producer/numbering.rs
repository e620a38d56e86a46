//! Sequence numbers: which batch bears which, and how a partition begins anew when one was given up.
//!
//! A broker tells a repeated batch from a new one by its producer id, epoch and sequence numbers alone. Hence two rules,
//! which Apache Kafka's producer has as well: numbers under which something may have been written are never given to
//! another batch, and a batch that may have been written is never sent under other numbers. When a batch is given up,
//! its partition goes on in a new epoch, from 0, as soon as every batch that was numbered before is done (KIP-360).

use std::collections::VecDeque;

use caudal_protocol::ErrorCode;
use caudal_protocol::batch as raw;

use super::batch::{Batch, Outcome};
use super::sender::{PartitionState, Sender};
use crate::error::Error;

/// The producer id and epoch that make sends idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProducerId {
    pub id: i64,
    pub epoch: i16,
}

/// Whether the numbers of a partition can be trusted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbering {
    /// New batches are numbered one behind the other.
    #[default]
    Sound,
    /// A batch was given up, and it may have been written or not. Those behind it are sent under the numbers that they
    /// have; new ones wait for the next epoch.
    Unresolved,
    /// The broker lacks a number: nothing that was numbered behind it can be written any more.
    Broken,
}

impl PartitionState {
    /// Whether a batch may be sent for the first time.
    pub(super) fn takes_new(&self, known: Option<ProducerId>) -> bool {
        let numbered = self.numbering == Numbering::Sound && self.producer.or(known).is_some();
        // A broker that knows nothing of a producer takes whatever number comes first: until it has taken one, a second
        // batch could overtake the first.
        numbered && (self.acknowledged || self.in_flight.is_empty())
    }

    fn begin_epoch(&mut self, producer: ProducerId) {
        tracing::debug!(id = producer.id, epoch = producer.epoch, "beginning a new sequence of batches");
        self.producer = Some(producer);
        self.numbering = Numbering::Sound;
        self.acknowledged = false;
        self.next_sequence = 0;
        for batch in &mut self.retries {
            batch.sequence = Some(self.next_sequence);
            self.next_sequence = add_sequence(self.next_sequence, batch.count);
            restamp(batch, producer);
        }
    }
}

impl Sender {
    /// Begins a new epoch wherever one is due and nothing is on the wire under the old one.
    pub(super) fn settle(&mut self) {
        // What a transactional producer cannot send ends it, and its coordinator gives out the epochs.
        if self.shared.transactions.is_some() {
            return;
        }
        let mut lost: Vec<Batch> = Vec::new();
        for state in self.partitions.values_mut() {
            let due = match state.numbering {
                Numbering::Sound => false,
                Numbering::Unresolved => !state.retries.iter().any(|batch| batch.uncertain),
                Numbering::Broken => true,
            };
            if !due || !state.in_flight.is_empty() {
                continue;
            }
            state.numbering = Numbering::Broken;
            let (uncertain, refused): (VecDeque<Batch>, _) = state.retries.drain(..).partition(|batch| batch.uncertain);
            state.retries = refused;
            lost.extend(uncertain);
            match successor(state.producer, self.producer_id) {
                Some(producer) => state.begin_epoch(producer),
                // Epochs are used up: ask for another id.
                None => self.producer_id = None,
            }
        }
        for batch in lost {
            let error = unknown_fate(&batch);
            self.finish(&batch, Outcome::Failed(error));
        }
    }

    /// The broker lacks a number before this batch's, or all of its producer's.
    pub(super) fn break_numbering(&mut self, batch: &Batch) {
        tracing::debug!(
            topic = &*batch.state.topic,
            batch.partition,
            "broker and producer disagree on sequence numbers"
        );
        let state = self.partitions.entry((batch.topic, batch.partition)).or_default();
        state.numbering = Numbering::Broken;
    }
}

/// What follows the producer id and epoch of a partition.
fn successor(old: Option<ProducerId>, known: Option<ProducerId>) -> Option<ProducerId> {
    match old {
        Some(old) if old.epoch < i16::MAX => Some(ProducerId { epoch: old.epoch + 1, ..old }),
        Some(old) => known.filter(|known| known.id != old.id),
        None => known,
    }
}

/// Why a batch that may have been written is not sent again.
pub(super) fn unknown_fate(batch: &Batch) -> Error {
    let what = format!("send {} records to {}-{}", batch.count, batch.state.topic, batch.partition);
    let message = "the broker knows nothing of it or of a batch before it; an earlier try may have been written, and \
                   another one under a new sequence number could write the records twice";
    Error::server(what, ErrorCode::OutOfOrderSequenceNumber.code(), Some(message))
}

/// Whether a broker that answers with this code has not appended the batch. Other codes may come from a leader that
/// appended it and was deposed, or waited in vain for its disk or for replicas.
pub(super) fn proves_refusal(code: ErrorCode) -> bool {
    use ErrorCode as E;
    matches!(
        code,
        E::CorruptMessage
            | E::MessageTooLarge
            | E::InvalidTopicException
            | E::RecordListTooLarge
            | E::NotEnoughReplicas
            | E::InvalidRequiredAcks
            | E::TopicAuthorizationFailed
            | E::ClusterAuthorizationFailed
            | E::InvalidTimestamp
            | E::UnsupportedVersion
            | E::InvalidRequest
            | E::UnsupportedForMessageFormat
            | E::PolicyViolation
            | E::OutOfOrderSequenceNumber
            | E::DuplicateSequenceNumber
            | E::InvalidProducerEpoch
            | E::ProducerFenced
            | E::InvalidTxnState
            | E::UnknownProducerId
            | E::UnsupportedCompressionType
            | E::InvalidRecord
            | E::ThrottlingQuotaExceeded
    )
}

/// Whether the broker refused a batch for its numbers.
pub(super) fn is_about_numbers(code: ErrorCode) -> bool {
    use ErrorCode as E;
    matches!(
        code,
        E::OutOfOrderSequenceNumber | E::DuplicateSequenceNumber | E::UnknownProducerId | E::InvalidProducerEpoch
    )
}

/// Sequence numbers wrap from `i32::MAX` to 0.
pub(super) fn add_sequence(sequence: i32, count: i32) -> i32 {
    sequence.wrapping_add(count) & i32::MAX
}

/// Writes the producer's fields into a batch that was built already.
pub(super) fn restamp(batch: &mut Batch, id: ProducerId) {
    if batch.bytes.is_empty() {
        return;
    }
    let bytes = std::mem::take(&mut batch.bytes);
    let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| shared.as_ref().into());
    raw::stamp_producer(&mut bytes, id.id, id.epoch, batch.sequence.unwrap_or(raw::NO_SEQUENCE));
    batch.bytes = bytes.freeze();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_follow_one_another_until_they_are_used_up() {
        let id = |id, epoch| ProducerId { id, epoch };
        assert_eq!(successor(Some(id(7, 0)), Some(id(9, 0))), Some(id(7, 1)));
        assert_eq!(successor(Some(id(7, i16::MAX)), Some(id(7, 0))), None);
        assert_eq!(successor(Some(id(7, i16::MAX)), Some(id(9, 0))), Some(id(9, 0)));
        assert_eq!(successor(None, None), None);
        assert_eq!(add_sequence(i32::MAX - 1, 4), 2);
    }
}
