//! Transactions of a producer (KIP-98), as clients before `transaction.version` 2 do them, which brokers of every version take:
//! each partition is added before the first batch to it, and the epoch stays from one transaction to the next.

use std::collections::BTreeSet;
use std::sync::Arc;

use caudal_protocol::messages as m;
use caudal_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use caudal_protocol::{ErrorCode, TopicPartition};
use parking_lot::Mutex;

use super::numbering::ProducerId;
use super::{Producer, Shared};
use crate::Request;
use crate::admin::Admin;
use crate::client::{ANY_VERSION, Client};
use crate::error::{Error, Result, check};

/// The kind of coordinator.
const TRANSACTION: i8 = 1;
/// The last versions that are not of `transaction.version` 2.
const INIT_VERSION: i16 = 4;
const ADD_VERSION: i16 = 3;
const END_VERSION: i16 = 4;
const PRODUCE_VERSION: i16 = 11;

/// The last version of Produce that a producer speaks.
pub(super) fn produce_version(transactional: bool) -> i16 {
    if transactional { PRODUCE_VERSION } else { ANY_VERSION }
}

/// The transactions of a producer, one after the other.
#[derive(Debug)]
pub(crate) struct Transactions {
    id: String,
    timeout_ms: i32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    producer: Option<ProducerId>,
    is_open: bool,
    /// Partitions of the transaction.
    added: BTreeSet<TopicPartition>,
    /// Partitions that are to be added, or are being.
    wanted: BTreeSet<TopicPartition>,
    is_adding: bool,
    /// Why the producer cannot go on.
    failure: Option<Error>,
}

impl Transactions {
    pub(super) fn new(id: &str, timeout_ms: i32) -> Transactions {
        Transactions { id: id.to_owned(), timeout_ms, state: Mutex::default() }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn producer(&self) -> Option<ProducerId> {
        self.state.lock().producer
    }

    /// Whether a record may be sent.
    pub(super) fn check_open(&self) -> Result<()> {
        let state = self.state.lock();
        match &state.failure {
            Some(error) => Err(error.clone()),
            None if !state.is_open => Err(Error::Misuse {
                what: "send a record with a transactional producer".to_owned(),
                reason: "no transaction was begun".to_owned(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.state.lock().failure.clone()
    }

    /// The producer cannot go on, for the first reason of all; returned. That another one has its id is said in the Java
    /// producer's words.
    pub(super) fn fail(&self, error: &Error) -> Error {
        let sentence = match error.code() {
            Some(ErrorCode::InvalidProducerEpoch) => Some("attempted to produce with an old epoch"),
            Some(ErrorCode::ProducerFenced) => {
                Some("has been fenced by another producer with the same transactionalId")
            }
            _ => None,
        };
        let mut state = self.state.lock();
        let failure = match (sentence, error.code(), state.producer) {
            (Some(sentence), Some(code), Some(ProducerId { id, epoch })) => {
                let producer =
                    format!("Producer with transactionalId '{}' and (producerId={id}, epoch={epoch})", self.id);
                Error::server("go on with its transactions", code.code(), Some(&format!("{producer} {sentence}")))
            }
            _ => error.clone(),
        };
        state.failure.get_or_insert(failure).clone()
    }

    /// Whether batches may be sent to a partition; notes it as one to be added otherwise.
    pub(super) fn admits(&self, topic: &str, partition: i32) -> bool {
        let place = TopicPartition::new(topic, partition);
        let mut state = self.state.lock();
        let is_added = state.added.contains(&place);
        if !is_added {
            state.wanted.insert(place);
        }
        is_added
    }

    /// The partitions to add now, unless some are being added.
    pub(super) fn take_wanted(&self) -> Vec<TopicPartition> {
        let mut state = self.state.lock();
        if state.is_adding || state.wanted.is_empty() || state.failure.is_some() {
            return Vec::new();
        }
        state.is_adding = true;
        state.wanted.iter().cloned().collect()
    }

    /// Partitions were added, or could not be.
    pub(super) fn added(&self, partitions: Vec<TopicPartition>, result: &Result<()>) {
        if let Err(error) = result {
            self.fail(error);
            return;
        }
        let mut state = self.state.lock();
        state.is_adding = false;
        for partition in partitions {
            state.wanted.remove(&partition);
            state.added.insert(partition);
        }
    }

    fn known(&self) -> Result<ProducerId> {
        self.producer().ok_or_else(|| Error::Misuse {
            what: format!("work on a transaction of '{}'", self.id),
            reason: "the producer has not been initialized".to_owned(),
        })
    }

    /// Adds partitions to the transaction.
    pub(super) async fn add(&self, client: Client, partitions: &[TopicPartition]) -> Result<()> {
        let producer = self.known()?;
        let mut topics: Vec<AddPartitionsToTxnTopic> = Vec::new();
        for place in partitions {
            match topics.iter_mut().find(|topic| topic.name == place.topic) {
                Some(topic) => topic.partitions.push(place.partition),
                None => topics
                    .push(AddPartitionsToTxnTopic { name: place.topic.clone(), partitions: vec![place.partition] }),
            }
        }
        let request = m::AddPartitionsToTxnRequest {
            v3_and_below_transactional_id: self.id.clone(),
            v3_and_below_producer_id: producer.id,
            v3_and_below_producer_epoch: producer.epoch,
            v3_and_below_topics: topics,
            ..Default::default()
        };
        let code = |response: &m::AddPartitionsToTxnResponse| {
            let topics = response.results_by_topic_v3_and_below.iter();
            let codes = topics.flat_map(|topic| &topic.results_by_partition).map(|p| p.partition_error_code);
            codes.chain([response.error_code]).find(|code| *code != 0).unwrap_or(0)
        };
        self.ask(client, "add partitions to the transaction", &request, ADD_VERSION, code).await.map(drop)
    }

    async fn ask<R: Request>(
        &self,
        client: Client,
        what: &str,
        request: &R,
        version: i16,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response> {
        let what = format!("{what} of '{}'", self.id);
        let mut attempts = client.api_attempts(&what);
        let admin = Admin::new(client);
        loop {
            let response = admin.to_coordinator_of((&self.id, TRANSACTION), &what, request, version, &code).await?;
            // Coordinators before 2.7 have the partitions' code for it.
            let code = Some(code(&response)).filter(|code| *code != ErrorCode::InvalidProducerEpoch.code());
            // The one before may not be over yet.
            match check(code.unwrap_or(ErrorCode::ProducerFenced.code()), None, || what.clone()) {
                Ok(()) => return Ok(response),
                Err(error) => attempts.pause(error).await?,
            }
        }
    }
}

impl Producer {
    /// A producer whose records belong to transactions: [`Producer::init_transactions`] comes first. Whoever had the id
    /// before is fenced, and what they left open aborted.
    pub fn transactional(client: Client, id: &str, timeout_ms: i32) -> Result<Producer> {
        Producer::build(client, Some(Transactions::new(id, timeout_ms)))
    }

    fn transactions(&self) -> Result<(&Arc<Shared>, &Transactions)> {
        let transactions = self.shared.transactions.as_ref().ok_or_else(|| Error::Misuse {
            what: "work on a transaction".to_owned(),
            reason: "the producer is none with a transactional id".to_owned(),
        })?;
        Ok((&self.shared, transactions))
    }

    pub async fn init_transactions(&self) -> Result<()> {
        let (shared, transactions) = self.transactions()?;
        let request = m::InitProducerIdRequest {
            transactional_id: Some(transactions.id.clone()),
            transaction_timeout_ms: transactions.timeout_ms,
            ..Default::default()
        };
        let code = |response: &m::InitProducerIdResponse| response.error_code;
        let what = "initialize the transactions";
        let found = transactions.ask(shared.client.clone(), what, &request, INIT_VERSION, code).await?;
        transactions.state.lock().producer = Some(ProducerId { id: found.producer_id, epoch: found.producer_epoch });
        Ok(())
    }

    /// # Errors
    /// One is open, or the producer cannot go on.
    pub fn begin_transaction(&self) -> Result<()> {
        let (_, transactions) = self.transactions()?;
        transactions.known()?;
        let mut state = transactions.state.lock();
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        if std::mem::replace(&mut state.is_open, true) {
            return Err(Error::Misuse {
                what: "begin a transaction".to_owned(),
                reason: "the one before has not ended".to_owned(),
            });
        }
        Ok(())
    }

    /// Sends what is left, and commits it.
    ///
    /// # Errors
    /// Something could not be written; the transaction is to be aborted, which its coordinator does in the end.
    pub async fn commit_transaction(&self) -> Result<()> {
        let (shared, transactions) = self.transactions()?;
        self.flush().await;
        transactions.check_open()?;
        let producer = transactions.known()?;
        if !transactions.state.lock().added.is_empty() {
            let request = m::EndTxnRequest {
                transactional_id: transactions.id.clone(),
                producer_id: producer.id,
                producer_epoch: producer.epoch,
                committed: true,
            };
            let code = |response: &m::EndTxnResponse| response.error_code;
            let what = "commit a transaction";
            let ended = transactions.ask(shared.client.clone(), what, &request, END_VERSION, code).await;
            ended.map_err(|error| transactions.fail(&error))?;
        }
        let mut state = transactions.state.lock();
        state.added.clear();
        state.is_open = false;
        Ok(())
    }
}
