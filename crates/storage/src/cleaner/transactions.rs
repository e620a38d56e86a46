//! Which transactions were aborted: their records are no values of their keys, and go. And which markers end a transaction
//! that is all gone: they go too, when readers have had the time to see them.
//!
//! The cleaner never comes beyond the last stable offset, so the end of each transaction that it meets is known. Its marker may
//! lie behind what is cleaned.

use std::collections::{HashMap, HashSet};

use caudal_protocol::batch::BatchHeader;

use crate::log::Log;

/// Offsets of aborted transactions by producer, both ends inclusive, ascending.
#[derive(Debug, Default)]
pub(super) struct Aborted(HashMap<i64, Vec<(i64, i64)>>);

impl Aborted {
    /// Those that begin below `end`, wherever they end.
    pub fn below(log: &Log, end: i64) -> Aborted {
        let mut aborted = Aborted::default();
        for transaction in log.aborted_transactions(log.log_start_offset(), end) {
            let of_producer = aborted.0.entry(transaction.producer_id).or_default();
            of_producer.push((transaction.first_offset, transaction.last_offset));
        }
        aborted
    }

    pub fn contains(&self, header: &BatchHeader) -> bool {
        header.is_transactional()
            && !header.is_control()
            && self.0.get(&header.producer_id).is_some_and(|ranges| {
                let at = ranges.partition_point(|(_, last)| *last < header.base_offset);
                ranges.get(at).is_some_and(|(first, _)| *first <= header.base_offset)
            })
    }
}

/// What becomes of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MarkerFate {
    /// There are batches of its transaction.
    Kept,
    /// There are none any more: from now on it has a horizon.
    BeginsHorizon,
    /// Its time has come.
    Gone,
}

/// The transactions that have batches, as a walk from the beginning of the log meets them.
///
/// Source: `CleanedTransactionMetadata` of Kafka, KIP-534.
#[derive(Debug, Default)]
pub(super) struct Observed {
    producers: HashSet<i64>,
    /// Markers of transactions without batches.
    superfluous: HashSet<i64>,
}

impl Observed {
    pub fn batch(&mut self, header: &BatchHeader) {
        if header.is_transactional() {
            self.producers.insert(header.producer_id);
        }
    }

    pub fn marker(&mut self, header: &BatchHeader, now_ms: i64) -> MarkerFate {
        let is_emptied = header.record_count == 0;
        if !is_emptied && self.producers.remove(&header.producer_id) {
            return MarkerFate::Kept;
        }
        self.superfluous.insert(header.last_offset());
        match header.delete_horizon_ms() {
            None if is_emptied => MarkerFate::Gone,
            None => MarkerFate::BeginsHorizon,
            Some(horizon_ms) if horizon_ms <= now_ms => MarkerFate::Gone,
            Some(_) => MarkerFate::Kept,
        }
    }

    /// Whether the transaction that the marker at an offset ended has no batches left.
    pub fn is_superfluous(&self, marker_offset: i64) -> bool {
        self.superfluous.contains(&marker_offset)
    }
}
