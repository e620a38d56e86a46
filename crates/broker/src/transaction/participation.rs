//! How partitions get into a transaction when something is written to them: clients with an epoch for each transaction are
//! taken at their word and the partition is made part of it; of others it is verified that they said so before (KIP-890).

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::{ErrorCode, TopicPartition};
use caudal_storage::Verification;

use super::EPOCH_BUMPS_FROM;
use super::machine::Producer;
use crate::context::Context;
use crate::partition::Partition;

const VERIFICATION: &str = "transaction.partition.verification.enable";

/// What a client knows of, by the version of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Not even TRANSACTION_ABORTABLE.
    Old,
    KnowsAbortable,
    /// Each transaction has an epoch, and begins with a write.
    Joins,
}

impl Client {
    pub fn of_produce(version: i16) -> Client {
        match version {
            ..11 => Client::Old,
            11 => Client::KnowsAbortable,
            _ => Client::Joins,
        }
    }

    pub fn of_txn_offset_commit(version: i16) -> Client {
        match version {
            ..4 => Client::Old,
            4 => Client::KnowsAbortable,
            _ => Client::Joins,
        }
    }
}

/// Who writes within a transaction.
#[derive(Debug, Clone, Copy)]
pub struct Participant<'a> {
    pub id: &'a str,
    pub producer: Producer,
    pub client: Client,
}

impl Participant<'_> {
    /// What to append with once [`Participant::join`] allowed it; `None` where the transaction has batches already.
    pub fn begin(&self, ctx: &Context, partition: &Partition, sequence: i32) -> Option<Verification> {
        let joins = self.client == Client::Joins;
        let guard = partition.start_verification(self.producer, sequence, joins)?;
        Some(if joins || ctx.is_broker_flag_set(VERIFICATION) { guard } else { Verification::Off })
    }

    /// Makes partitions part of the transaction, or verifies that they are. Returns those that are not, each with the code for
    /// the client.
    pub async fn join(
        &self,
        ctx: &Context,
        partitions: &BTreeSet<TopicPartition>,
    ) -> BTreeMap<TopicPartition, ErrorCode> {
        if partitions.is_empty() {
            return BTreeMap::new();
        }
        let (id, producer) = (self.id, self.producer);
        let refused: Vec<(&TopicPartition, ErrorCode)> = if self.client == Client::Joins {
            let added = ctx.transactions.add_patiently(id, producer, partitions, EPOCH_BUMPS_FROM).await;
            added.err().into_iter().flat_map(|error| partitions.iter().map(move |p| (p, error))).collect()
        } else {
            let verify = |p| ctx.transactions.verify(id, producer, p).err().map(|error| (p, error));
            partitions.iter().filter_map(verify).collect()
        };
        refused.into_iter().map(|(partition, error)| (partition.clone(), self.answered_as(error))).collect()
    }

    fn answered_as(&self, error: ErrorCode) -> ErrorCode {
        match error {
            // Producers know what to do about this one.
            ErrorCode::ProducerFenced => ErrorCode::InvalidProducerEpoch,
            ErrorCode::TransactionAbortable if self.client == Client::Old => ErrorCode::InvalidTxnState,
            other => other,
        }
    }
}
