//! Offsets that are committed within transactions: they wait for the marker that ends the transaction (KIP-98, KIP-447).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::{BatchBuilder, NO_SEQUENCE};
use caudal_protocol::compression::Codec;
use caudal_storage::{AppendOrigin, TransactionMarker, Verification};
use tokio::sync::oneshot;

use super::coordinator::{Committer, Coordinator};
use super::record::{CommittedOffset, GroupRecord};
use super::service::{GroupService, Stored};
use super::shard::{Writing, answered_as};
use crate::clock::wall_ms;
use crate::partition::Partition;
use crate::transaction::machine::Producer;
use crate::transaction::service::Marking;

/// A producer in one partition of `__consumer_offsets`: its markers there end what it wrote there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionalProducer {
    pub partition: i32,
    pub producer_id: i64,
}

/// What a transaction does to offsets.
#[derive(Debug, Clone, PartialEq)]
pub enum TransactionChange {
    /// An offset that counts once the transaction is committed.
    Offset {
        producer: TransactionalProducer,
        group: String,
        topic: String,
        partition: i32,
        value: CommittedOffset,
    },
    Over {
        producer: TransactionalProducer,
        committed: bool,
    },
}

impl TransactionalProducer {
    pub fn end(self, marker: TransactionMarker) -> TransactionChange {
        TransactionChange::Over { producer: self, committed: marker == TransactionMarker::Commit }
    }

    /// A record of a transactional batch. Only offsets are ever written so.
    pub fn pending(self, record: GroupRecord) -> GroupRecord {
        match record {
            GroupRecord::Offset { group, topic, partition, value: Some(value) } => {
                let change = TransactionChange::Offset { producer: self, group, topic, partition, value };
                GroupRecord::Transaction(change)
            }
            other => other,
        }
    }
}

/// Group, topic, partition.
type Place = (String, String, i32);

/// The offsets of open transactions.
#[derive(Debug, Default)]
pub struct PendingOffsets {
    /// `None` where a commit outside of the transaction came later: it counts, whatever the marker says.
    by_producer: HashMap<TransactionalProducer, BTreeMap<Place, Option<CommittedOffset>>>,
    /// How many open transactions have an offset for a place.
    open: BTreeMap<Place, usize>,
}

impl PendingOffsets {
    fn put(&mut self, producer: TransactionalProducer, place: Place, value: CommittedOffset) {
        let before = self.by_producer.entry(producer).or_default().insert(place.clone(), Some(value));
        if before.is_none() {
            *self.open.entry(place).or_default() += 1;
        }
    }

    fn end(&mut self, producer: TransactionalProducer) -> BTreeMap<Place, Option<CommittedOffset>> {
        let offsets = self.by_producer.remove(&producer).unwrap_or_default();
        for place in offsets.keys() {
            if let Some(count) = self.open.get_mut(place) {
                *count -= 1;
                if *count == 0 {
                    self.open.remove(place);
                }
            }
        }
        offsets
    }

    /// Whether an open transaction has an offset for a partition.
    pub fn contains(&self, group: &str, topic: &str, partition: i32) -> bool {
        !self.open.is_empty() && self.open.contains_key(&(group.to_owned(), topic.to_owned(), partition))
    }

    /// Whether an open transaction has an offset of a group.
    pub fn contains_group(&self, group: &str) -> bool {
        self.of_group(group).next().is_some()
    }

    /// The topics and partitions for which open transactions have an offset of a group.
    pub fn of_group(&self, group: &str) -> impl Iterator<Item = (&str, i32)> {
        let first = (group.to_owned(), String::new(), i32::MIN);
        let places = self.open.range(first..).take_while(move |(place, _)| place.0 == group);
        places.map(|(place, _)| (place.1.as_str(), place.2))
    }

    /// The groups and partitions for which open transactions have an offset of a topic.
    pub fn of_topic(&self, topic: &str) -> impl Iterator<Item = (&str, i32)> {
        let places = self.open.keys().filter(move |place| place.1 == topic);
        places.map(|place| (place.0.as_str(), place.2))
    }

    /// What was committed (`deleted`: removed) outside of transactions later than within counts.
    pub fn overtake(&mut self, group: &str, topic: &str, partition: i32, deleted: bool) {
        if !self.contains(group, topic, partition) {
            return;
        }
        let place = (group.to_owned(), topic.to_owned(), partition);
        for offsets in self.by_producer.values_mut() {
            if deleted {
                offsets.remove(&place);
            } else if let Some(value) = offsets.get_mut(&place) {
                *value = None;
            }
        }
        if deleted {
            self.open.remove(&place);
        }
    }

    /// Takes out what belongs to the groups that `which` names.
    pub fn forget(&mut self, which: impl Fn(&str) -> bool) {
        self.open.retain(|place, _| !which(&place.0));
        self.by_producer.values_mut().for_each(|offsets| offsets.retain(|place, _| !which(&place.0)));
    }
}

impl Coordinator {
    /// Takes note of a stored change.
    pub(super) fn apply_transaction(&mut self, change: TransactionChange) {
        match change {
            TransactionChange::Offset { producer, group, topic, partition, value } => {
                self.offsets.entry(group.clone()).or_default();
                self.pending.put(producer, (group, topic, partition), value);
            }
            TransactionChange::Over { producer, committed } => {
                for ((group, topic, partition), value) in self.pending.end(producer) {
                    if let Some(value) = value.filter(|_| committed) {
                        self.put_offset(&group, &topic, partition, Some(value));
                    }
                }
            }
        }
    }

    /// Whether a commit within a transaction is allowed. Kafka's rules: as outside of one, but older clients do not say who they
    /// are, and a rebalance that completes is not waited for.
    pub(super) fn check_transactional_commit(
        &mut self,
        now_ms: i64,
        who: Committer<'_>,
        offsets: &[(String, i32, CommittedOffset)],
    ) -> ErrorCode {
        if who.generation < 0 && who.member_id.is_empty() && who.instance_id.is_none() {
            return ErrorCode::None;
        }
        let error = match self.check_commit(now_ms, who) {
            ErrorCode::None | ErrorCode::RebalanceInProgress => self.check_commit_epochs(who, offsets),
            other => other,
        };
        if error == ErrorCode::StaleMemberEpoch { ErrorCode::IllegalGeneration } else { error }
    }
}

/// What a transaction writes into a partition of `__consumer_offsets`.
pub enum TransactionalWrite {
    Offsets { producer: Producer, pairs: Vec<(Bytes, Option<Bytes>)>, verification: Verification },
    Marker(Marking),
}

impl TransactionalWrite {
    pub fn append(self, partition: &Partition, stored: Stored) {
        let (producer, pairs, verification) = match self {
            TransactionalWrite::Marker(marking) => return partition.append_marker(marking, stored),
            TransactionalWrite::Offsets { producer, pairs, verification } => (producer, pairs, verification),
        };
        let mut builder =
            BatchBuilder::new(Codec::None).producer(producer.0, producer.1, NO_SEQUENCE).transactional(true);
        let now_ms = wall_ms();
        for (key, value) in &pairs {
            builder.append(now_ms, Some(key), value.as_deref(), &[]);
        }
        match builder.build() {
            Ok(batch) => partition.append_then(&batch, AppendOrigin::Coordinator, verification, stored),
            Err(error) => {
                tracing::error!(partition = %partition.name, "failed to write group records: {error}");
                stored(ErrorCode::UnknownServerError);
            }
        }
    }
}

impl GroupService {
    /// Commits offsets within a transaction, all or none: they count when it is committed. Returns the error once they are
    /// durable.
    pub async fn commit_in_transaction(
        &self,
        who: Committer<'_>,
        producer: Producer,
        verification: Verification,
        offsets: Vec<(String, i32, CommittedOffset)>,
    ) -> ErrorCode {
        let Some(shard) = self.partition_of(who.group).and_then(|partition| self.shard_at(partition)) else {
            return ErrorCode::CoordinatorNotAvailable;
        };
        let partition = shard.partition;
        let (done, stored) = oneshot::channel();
        let refused = self.with(shard, |inner| {
            let error = inner.coordinator.check_transactional_commit(self.now_ms(), who, &offsets);
            if error.is_error() || offsets.is_empty() {
                return Some(error);
            }
            let records = inner.coordinator.commit(who.group, offsets);
            let pairs = records.iter().map(GroupRecord::encode).collect::<Result<Vec<_>, _>>();
            let pairs = match pairs {
                Ok(pairs) => pairs,
                Err(error) => {
                    tracing::error!(partition, %error, "the offsets of a transaction cannot be stored");
                    return Some(ErrorCode::UnknownServerError);
                }
            };
            let writing = Writing::InTransaction(TransactionalWrite::Offsets { producer, pairs, verification });
            let place = TransactionalProducer { partition, producer_id: producer.0 };
            let records = records.into_iter().map(|record| place.pending(record)).collect();
            let told = move |error: ErrorCode| _ = done.send(answered_as(error));
            shard.send(inner, (Arc::new(records), None), writing, Box::new(told));
            None
        });
        match refused {
            Some(error) => error,
            None => stored.await.unwrap_or(ErrorCode::CoordinatorNotAvailable),
        }
    }

    /// Writes the marker that ends a transaction into a partition of `__consumer_offsets`; its offsets count or are forgotten
    /// when it is durable.
    pub fn end_transaction(&self, partition: i32, marking: Marking, done: Stored) {
        let producer = TransactionalProducer { partition, producer_id: marking.producer.0 };
        let change = GroupRecord::Transaction(producer.end(marking.marker.marker));
        let writing = Writing::InTransaction(TransactionalWrite::Marker(marking));
        match self.shard_at(partition) {
            Some(shard) => {
                self.with(shard, |inner| shard.send(inner, (Arc::new(vec![change]), None), writing, done));
            }
            None => done(ErrorCode::NotCoordinator),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::GroupConfig;
    use super::*;

    fn offset(offset: i64) -> CommittedOffset {
        CommittedOffset {
            offset,
            leader_epoch: 0,
            metadata: String::new(),
            commit_timestamp_ms: 1,
            expire_timestamp_ms: None,
        }
    }

    fn plain(value: Option<i64>) -> GroupRecord {
        GroupRecord::Offset { group: "g".into(), topic: "t".into(), partition: 0, value: value.map(offset) }
    }

    const ONE: TransactionalProducer = TransactionalProducer { partition: 3, producer_id: 1 };
    const TWO: TransactionalProducer = TransactionalProducer { partition: 3, producer_id: 2 };

    #[test]
    fn offsets_wait_for_their_marker() {
        let mut coordinator = Coordinator::new(GroupConfig::default());
        let mut apply = |record: GroupRecord| coordinator.apply_stored(record);
        let end = |producer: TransactionalProducer, marker| GroupRecord::Transaction(producer.end(marker));
        apply(ONE.pending(plain(Some(5))));
        apply(TWO.pending(plain(Some(6))));
        apply(end(TransactionalProducer { partition: 4, ..ONE }, TransactionMarker::Commit));
        assert!(coordinator.pending.contains("g", "t", 0) && coordinator.pending.contains_group("g"));
        assert!(coordinator.offset("g", "t", 0).is_none() && !coordinator.pending.contains_group("f"));
        let mut apply = |record: GroupRecord| coordinator.apply_stored(record);
        apply(end(ONE, TransactionMarker::Commit));
        apply(end(TWO, TransactionMarker::Abort));
        assert_eq!(coordinator.offset("g", "t", 0).map(|o| o.offset), Some(5));
        assert!(!coordinator.pending.contains("g", "t", 0) && !coordinator.pending.contains_group("g"));
    }

    #[test]
    fn what_came_later_outside_counts() {
        let mut coordinator = Coordinator::new(GroupConfig::default());
        let end = |producer: TransactionalProducer| GroupRecord::Transaction(producer.end(TransactionMarker::Commit));
        coordinator.apply_stored(ONE.pending(plain(Some(5))));
        coordinator.apply_stored(plain(Some(9)));
        assert!(coordinator.pending.contains("g", "t", 0), "undecided all the same");
        coordinator.apply_stored(end(ONE));
        assert_eq!(coordinator.offset("g", "t", 0).map(|o| o.offset), Some(9));
        coordinator.apply_stored(ONE.pending(plain(Some(10))));
        coordinator.apply_stored(plain(None));
        assert!(!coordinator.pending.contains("g", "t", 0));
        coordinator.apply_stored(end(ONE));
        assert!(coordinator.offset("g", "t", 0).is_none());
    }

    /// By OffsetDelete, DeleteGroups, or with the topic.
    #[test]
    fn what_is_deleted_meanwhile_does_not_come_with_the_marker() {
        let delete_offsets: fn(&Coordinator) -> Vec<GroupRecord> = |c| c.delete_offsets("g", "t", 0);
        let delete_group: fn(&Coordinator) -> Vec<GroupRecord> = |c| c.delete("g").1;
        let topic_deleted: fn(&Coordinator) -> Vec<GroupRecord> = |c| c.topic_deleted("t");
        for delete in [delete_offsets, delete_group, topic_deleted] {
            for committed_before in [false, true] {
                let mut coordinator = Coordinator::new(GroupConfig::default());
                if committed_before {
                    coordinator.apply_stored(plain(Some(4)));
                }
                coordinator.apply_stored(ONE.pending(plain(Some(5))));
                let records = delete(&coordinator);
                assert_eq!(records.iter().filter(|record| **record == plain(None)).count(), 1);
                records.into_iter().for_each(|record| coordinator.apply_stored(record));
                coordinator.apply_stored(GroupRecord::Transaction(ONE.end(TransactionMarker::Commit)));
                assert!(coordinator.offset("g", "t", 0).is_none());
            }
        }
    }
}
