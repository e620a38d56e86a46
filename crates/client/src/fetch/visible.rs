//! Which batches of a fetched range a reader sees: no control batches, and for `read_committed` none of an aborted
//! transaction.

use std::collections::{HashSet, VecDeque};

use caudal_protocol::batch::{Batch, HEADER_LEN};
use caudal_protocol::messages::fetch_response::AbortedTransaction;

/// Walks the batches of one answer in order.
#[derive(Debug, Default)]
pub(crate) struct Visibility {
    /// Ascending by first offset.
    aborted: VecDeque<AbortedTransaction>,
    /// Producers whose transaction, at the place of the walk, will turn out aborted.
    aborting: HashSet<i64>,
}

impl Visibility {
    /// `aborted` comes with the answer; brokers send it for `read_committed` only.
    pub(crate) fn new(aborted: Option<Vec<AbortedTransaction>>) -> Visibility {
        let mut aborted = aborted.unwrap_or_default();
        aborted.sort_by_key(|t| t.first_offset);
        Visibility { aborted: aborted.into(), aborting: HashSet::new() }
    }

    pub(crate) fn sees(&mut self, batch: &Batch) -> bool {
        let header = &batch.header;
        while self.aborted.front().is_some_and(|t| t.first_offset <= header.last_offset()) {
            if let Some(transaction) = self.aborted.pop_front() {
                self.aborting.insert(transaction.producer_id);
            }
        }
        if header.is_control() {
            if is_abort_marker(batch) {
                self.aborting.remove(&header.producer_id);
            }
            return false;
        }
        !(header.is_transactional() && self.aborting.contains(&header.producer_id))
    }
}

/// A control record's key is its version and type, two bytes each; type 0 is abort.
fn is_abort_marker(batch: &Batch) -> bool {
    let Ok(records) = batch.records(batch.bytes.len().max(HEADER_LEN) * 16) else { return false };
    let key = records.iter().next().and_then(Result::ok).and_then(|r| r.key);
    key.and_then(|k| k.get(2..4)) == Some(&[0, 0])
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use caudal_protocol::batch::BatchBuilder;
    use caudal_protocol::compression::Codec;

    use super::*;

    fn batch(base_offset: i64, producer_id: i64, control: Option<u8>) -> Batch {
        let mut builder = BatchBuilder::new(Codec::None)
            .base_offset(base_offset)
            .producer(producer_id, 0, 0)
            .transactional(true)
            .control(control.is_some());
        let key = control.map(|kind| [0, 0, 0, kind]);
        builder.append(0, key.as_ref().map(|k| k.as_slice()), Some(b"v"), &[]);
        let bytes: Bytes = builder.build().unwrap().freeze();
        Batch::parse(&bytes).unwrap()
    }

    #[test]
    fn aborted_transactions_end_at_their_marker() {
        let aborted = |producer_id, first_offset| AbortedTransaction { producer_id, first_offset };
        let mut visibility = Visibility::new(Some(vec![aborted(7, 10), aborted(7, 2)]));
        let walk = [
            (batch(0, 7, None), true),
            (batch(1, 7, Some(1)), false),
            (batch(2, 7, None), false),
            (batch(3, 8, None), true),
            (batch(4, 7, Some(0)), false),
            (batch(5, 7, None), true),
            (batch(10, 7, None), false),
        ];
        for (batch, seen) in walk {
            assert_eq!(visibility.sees(&batch), seen, "at {}", batch.header.base_offset);
        }
    }
}
