//! One transactional id as a pure state machine: what a request does to it, by Kafka's rules.
//!
//! A step that changes something sets [`Entry::pending`] and hands out the state to store; until [`Entry::complete`] or
//! [`Entry::give_up`] is called with it, other requests are told to come again.

use std::collections::BTreeSet;

use caudal_protocol::{ErrorCode, TopicPartition};

use super::{EPOCH_BUMPS_FROM, NO_EPOCH, NO_ID, State, Transaction};

/// A transactional id at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub current: Transaction,
    /// Where it is going; stored but not known to be durable.
    pub pending: Option<State>,
    /// An epoch was raised to fence a producer and could not be stored; nobody was told of it.
    pub failed_fence: bool,
}

/// What a request comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing to store.
    Answer(Result<Producer, ErrorCode>),
    /// Nothing happened: to be asked again with a new producer id.
    NeedsProducerId,
    /// To be stored, then answered.
    Store(Transaction),
}

/// A producer id with its epoch.
pub type Producer = (i64, i16);

const NOBODY: Producer = (NO_ID, NO_EPOCH);

fn refuse(error: ErrorCode) -> Step {
    Step::Answer(Err(error))
}

/// No client gets the largest epoch: the coordinator must always be able to fence.
fn is_exhausted(epoch: i16) -> bool {
    epoch >= i16::MAX - 1
}

fn prepared(commit: bool) -> State {
    if commit { State::PrepareCommit } else { State::PrepareAbort }
}

/// InitProducerId with a transactional id.
#[derive(Debug, Clone, Copy)]
pub struct Init {
    pub timeout_ms: i32,
    /// Who the producer believes to be.
    pub expected: Option<Producer>,
    /// A producer id that nobody has yet.
    pub fresh_id: Option<i64>,
    /// The cluster's `transaction.version`.
    pub version: i16,
    pub now_ms: i64,
}

/// EndTxn.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub producer: Producer,
    pub commit: bool,
    /// The `transaction.version` that the client speaks.
    pub version: i16,
    pub fresh_id: Option<i64>,
    pub now_ms: i64,
}

impl Entry {
    pub fn new(current: Transaction) -> Entry {
        Entry { current, pending: None, failed_fence: false }
    }

    /// An id that was never seen.
    pub fn unused(producer_id: i64, timeout_ms: i32, now_ms: i64) -> Entry {
        Entry::new(Transaction {
            producer_id,
            previous_producer_id: NO_ID,
            next_producer_id: NO_ID,
            producer_epoch: NO_EPOCH,
            last_producer_epoch: NO_EPOCH,
            timeout_ms,
            state: State::Empty,
            partitions: BTreeSet::new(),
            start_ms: -1,
            last_update_ms: now_ms,
            client_version: 0,
        })
    }

    fn producer(&self) -> Producer {
        (self.current.producer_id, self.current.producer_epoch)
    }

    /// A change of the current state, which it remembers where it came from.
    fn change(&mut self, state: State, now_ms: i64, change: impl FnOnce(&mut Transaction)) -> Step {
        self.pending = Some(state);
        let mut target = Transaction {
            state,
            previous_producer_id: self.current.producer_id,
            last_update_ms: now_ms,
            ..self.current.clone()
        };
        change(&mut target);
        Step::Store(target)
    }

    /// The state is stored.
    pub fn complete(&mut self, target: Transaction) {
        self.pending = None;
        self.current = target;
    }

    /// The state could not be stored.
    pub fn give_up(&mut self) {
        self.pending = None;
    }

    /// Whether something has to end before anything else may happen: it is being stored, or a decision is being carried out.
    fn is_busy(&self) -> bool {
        self.pending.is_some() || self.current.state.is_prepared()
    }

    /// InitProducerId. An open transaction is aborted first; the producer is to come again.
    pub fn init(&mut self, init: Init) -> Step {
        if self.is_busy() {
            return refuse(ErrorCode::ConcurrentTransactions);
        }
        let current = &self.current;
        let is_valid = |(id, epoch): Producer| {
            current.producer_epoch == NO_EPOCH
                || id == current.producer_id
                || (id == current.previous_producer_id && is_exhausted(epoch))
        };
        if !init.expected.is_none_or(is_valid) {
            return refuse(ErrorCode::ProducerFenced);
        }
        match current.state {
            State::Ongoing => self.fence(init.version, init.fresh_id, init.now_ms),
            State::Empty | State::CompleteCommit | State::CompleteAbort => self.renew(init),
            _ => refuse(ErrorCode::UnknownServerError),
        }
    }

    /// The next epoch, or a new producer id where there is none left.
    fn renew(&mut self, init: Init) -> Step {
        let (current_epoch, last_epoch) = (self.current.producer_epoch, self.current.last_producer_epoch);
        let expected_epoch = init.expected.map(|(_, epoch)| epoch);
        let begin = |target: &mut Transaction| {
            target.timeout_ms = init.timeout_ms;
            target.partitions.clear();
            target.start_ms = -1;
        };
        if is_exhausted(current_epoch) && expected_epoch.is_none_or(|epoch| epoch == current_epoch) {
            let Some(fresh_id) = init.fresh_id else { return Step::NeedsProducerId };
            return self.change(State::Empty, init.now_ms, |target| {
                begin(target);
                target.producer_id = fresh_id;
                target.producer_epoch = 0;
                target.last_producer_epoch = if expected_epoch.is_some() { current_epoch } else { NO_EPOCH };
            });
        }
        let epochs = match expected_epoch {
            _ if is_exhausted(current_epoch) && expected_epoch != Some(last_epoch) => None,
            None => Some((current_epoch + 1, NO_EPOCH)),
            Some(epoch) if current_epoch == NO_EPOCH || epoch == current_epoch => {
                Some((current_epoch + 1, current_epoch))
            }
            // The same again, whose answer was lost.
            Some(epoch) if epoch == last_epoch => Some((current_epoch, last_epoch)),
            Some(_) => None,
        };
        let Some((epoch, last)) = epochs else { return refuse(ErrorCode::ProducerFenced) };
        self.change(State::Empty, init.now_ms, |target| {
            begin(target);
            target.producer_epoch = epoch;
            target.last_producer_epoch = last;
        })
    }

    /// Aborts an open transaction and raises the epoch, so that whoever had it open is told. `version` is the cluster's.
    pub fn fence(&mut self, version: i16, fresh_id: Option<i64>, now_ms: i64) -> Step {
        if self.pending.is_some() || self.current.state != State::Ongoing {
            return refuse(ErrorCode::ConcurrentTransactions);
        }
        if version >= EPOCH_BUMPS_FROM {
            return self.end_bumping(State::PrepareAbort, version, fresh_id, now_ms);
        }
        let epoch = self.current.producer_epoch;
        if !self.failed_fence && epoch < i16::MAX {
            self.current.producer_epoch = epoch + 1;
        }
        self.current.last_producer_epoch = NO_EPOCH;
        self.failed_fence = true;
        self.change(State::PrepareAbort, now_ms, |target| {
            target.next_producer_id = NO_ID;
            target.client_version = 0;
        })
    }

    /// AddPartitionsToTxn, also on behalf of Produce and TxnOffsetCommit.
    pub fn add(
        &mut self,
        producer: Producer,
        partitions: &BTreeSet<TopicPartition>,
        version: i16,
        now_ms: i64,
    ) -> Step {
        let current = &self.current;
        // Asked first: who goes on under a new id does so before the old one's last transaction is over.
        if self.is_busy() {
            return refuse(ErrorCode::ConcurrentTransactions);
        }
        if let Err(error) = self.check(producer) {
            return refuse(error);
        }
        if current.state == State::Ongoing && current.partitions.is_superset(partitions) {
            return Step::Answer(Ok(producer));
        }
        let begins = current.state != State::Ongoing;
        self.change(State::Ongoing, now_ms, |target| {
            if begins {
                target.start_ms = now_ms;
            }
            target.partitions.extend(partitions.iter().cloned());
            target.client_version = version;
        })
    }

    fn check(&self, (id, epoch): Producer) -> Result<(), ErrorCode> {
        let current = &self.current;
        if current.producer_id != id || current.producer_epoch == NO_EPOCH {
            Err(ErrorCode::InvalidProducerIdMapping)
        } else if current.producer_epoch != epoch {
            Err(ErrorCode::ProducerFenced)
        } else if current.state.is_prepared() {
            Err(ErrorCode::ConcurrentTransactions)
        } else {
            Ok(())
        }
    }

    /// Whether a partition is part of the open transaction.
    ///
    /// # Errors
    /// TRANSACTION_ABORTABLE: it is not; or the producer is not the one that it should be.
    pub fn verify(&self, producer: Producer, partition: &TopicPartition) -> Result<(), ErrorCode> {
        self.check(producer)?;
        if self.current.partitions.contains(partition) { Ok(()) } else { Err(ErrorCode::TransactionAbortable) }
    }

    /// EndTxn of a client.
    pub fn end(&mut self, end: End) -> Step {
        if self.current.producer_epoch == NO_EPOCH {
            // Nobody was told of this producer yet.
            return refuse(ErrorCode::InvalidProducerIdMapping);
        }
        if end.version >= EPOCH_BUMPS_FROM { self.end_v2(end) } else { self.end_v1(end) }
    }

    fn end_v1(&mut self, End { producer: (id, epoch), commit, now_ms, .. }: End) -> Step {
        let current = &self.current;
        if current.producer_id != id {
            return refuse(ErrorCode::InvalidProducerIdMapping);
        }
        if current.producer_epoch != epoch {
            return refuse(ErrorCode::ProducerFenced);
        }
        if self.is_busy() {
            return refuse(ErrorCode::ConcurrentTransactions);
        }
        match (current.state, commit) {
            (State::Ongoing, _) => self.change(prepared(commit), now_ms, |target| {
                target.next_producer_id = NO_ID;
                target.client_version = 0;
            }),
            (State::CompleteCommit, true) | (State::CompleteAbort, false) => Step::Answer(Ok(NOBODY)),
            (State::Dead | State::PrepareEpochFence, _) => refuse(ErrorCode::UnknownServerError),
            _ => refuse(ErrorCode::InvalidTxnState),
        }
    }

    /// ```text
    ///                 abort, again  abort, current   commit, again  commit, current
    /// Empty           fenced        next epoch       fenced         INVALID_TXN_STATE
    /// CompleteAbort   as before     next epoch       INVALID_...    INVALID_TXN_STATE
    /// CompleteCommit  INVALID_...   next epoch       as before      INVALID_TXN_STATE
    /// ```
    /// Again: with the epoch that the transaction had, whose answer was lost.
    fn end_v2(&mut self, end: End) -> Step {
        if self.is_busy() {
            return refuse(ErrorCode::ConcurrentTransactions);
        }
        let End { producer: (id, epoch), commit, version, fresh_id, now_ms } = end;
        let current = &self.current;
        let again_overflown =
            current.previous_producer_id == id && epoch == i16::MAX - 1 && current.producer_epoch == 0;
        let again_bumped = epoch.checked_add(1) == Some(current.producer_epoch);
        let again = again_bumped || again_overflown;
        if current.producer_id != id && !again_overflown {
            return refuse(ErrorCode::InvalidProducerIdMapping);
        }
        let is_valid = match current.state {
            State::CompleteCommit | State::CompleteAbort => again || epoch == current.producer_epoch,
            _ => epoch == current.producer_epoch,
        };
        if !is_valid {
            return refuse(ErrorCode::ProducerFenced);
        }
        match (current.state, commit) {
            (State::Ongoing, _) => self.end_bumping(prepared(commit), version, fresh_id, now_ms),
            (State::CompleteCommit, true) | (State::CompleteAbort, false) if again => Step::Answer(Ok(self.producer())),
            (State::Empty, false) | (State::CompleteCommit | State::CompleteAbort, false) if !again => {
                self.end_bumping(State::PrepareAbort, version, fresh_id, now_ms)
            }
            (State::Dead | State::PrepareEpochFence, _) => refuse(ErrorCode::UnknownServerError),
            _ => refuse(ErrorCode::InvalidTxnState),
        }
    }

    /// Ends a transaction, or none, with the next epoch for what follows.
    fn end_bumping(&mut self, state: State, version: i16, fresh_id: Option<i64>, now_ms: i64) -> Step {
        let next_id = match (is_exhausted(self.current.producer_epoch), fresh_id) {
            (true, None) => return Step::NeedsProducerId,
            (true, Some(fresh_id)) => fresh_id,
            (false, _) => NO_ID,
        };
        let begun = self.current.state == State::Ongoing;
        self.change(state, now_ms, |target| {
            target.last_producer_epoch = target.producer_epoch;
            // At the largest one only after a fault; the abort goes through all the same.
            target.producer_epoch = target.producer_epoch.saturating_add(1);
            target.next_producer_id = next_id;
            target.client_version = version;
            if !begun {
                target.start_ms = now_ms;
            }
        })
    }

    /// What follows a decision, once all markers are written; the markers are those of the current state. `None`: nothing was
    /// decided.
    pub fn finish(&mut self, now_ms: i64) -> Option<Transaction> {
        let state = match self.current.state {
            State::PrepareCommit => State::CompleteCommit,
            State::PrepareAbort => State::CompleteAbort,
            _ => return None,
        };
        self.failed_fence = false;
        let Step::Store(target) = self.change(state, now_ms, |target| {
            if target.client_version >= EPOCH_BUMPS_FROM && target.next_producer_id != NO_ID {
                target.producer_id = target.next_producer_id;
                target.producer_epoch = 0;
            }
            target.next_producer_id = NO_ID;
            target.partitions.clear();
        }) else {
            return None;
        };
        Some(target)
    }

    /// Whether an open transaction took too long.
    pub fn is_timed_out(&self, now_ms: i64) -> bool {
        let current = &self.current;
        self.pending.is_none()
            && current.state == State::Ongoing
            && current.timeout_ms != i32::MAX
            && current.start_ms.saturating_add(current.timeout_ms.into()) < now_ms
    }

    /// Whether nobody used the id since `before_ms`.
    pub fn is_expired(&self, before_ms: i64) -> bool {
        self.pending.is_none() && self.current.state.is_at_rest() && self.current.last_update_ms <= before_ms
    }
}
