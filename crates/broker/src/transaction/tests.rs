//! The state machine, step by step and at random.

use std::collections::BTreeSet;

use caudal_protocol::{ErrorCode, TopicPartition};
use proptest::prelude::*;

use super::machine::{End, Entry, Init, Producer, Step};
use super::record::{decode, encode};
use super::{NO_EPOCH, State, Transaction};

const FRESH: i64 = 1000;

fn partitions(numbers: &[i32]) -> BTreeSet<TopicPartition> {
    numbers.iter().map(|n| TopicPartition::new("t", *n)).collect()
}

fn init(version: i16, expected: Option<Producer>) -> Init {
    Init { timeout_ms: 60_000, expected, fresh_id: None, version, now_ms: 10 }
}

fn end(producer: Producer, commit: bool, version: i16) -> End {
    End { producer, commit, version, fresh_id: None, now_ms: 20 }
}

/// Stores what a step decided; the state it went to.
fn store(entry: &mut Entry, step: Step) -> State {
    let Step::Store(target) = step else { panic!("nothing to store: {step:?}") };
    entry.complete(target);
    entry.current.state
}

fn refused(step: Step) -> ErrorCode {
    match step {
        Step::Answer(Err(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

fn finish(entry: &mut Entry) -> State {
    let target = entry.finish(30).unwrap();
    entry.complete(target);
    entry.current.state
}

fn producer(entry: &Entry) -> Producer {
    (entry.current.producer_id, entry.current.producer_epoch)
}

/// An id whose producer has begun a transaction with partition 0.
fn ongoing(version: i16) -> Entry {
    let mut entry = Entry::unused(7, 60_000, 1);
    let step = entry.init(init(version, None));
    assert_eq!(store(&mut entry, step), State::Empty);
    assert_eq!(producer(&entry), (7, 0));
    let step = entry.add((7, 0), &partitions(&[0]), version, 15);
    assert_eq!(store(&mut entry, step), State::Ongoing);
    assert_eq!(entry.current.start_ms, 15);
    entry
}

#[test]
fn a_transaction_of_an_old_client_keeps_its_epoch() {
    let mut entry = ongoing(0);
    assert_eq!(entry.add((7, 0), &partitions(&[0]), 0, 16), Step::Answer(Ok((7, 0))), "nothing new");
    let step = entry.add((7, 0), &partitions(&[1]), 0, 16);
    store(&mut entry, step);
    assert_eq!((entry.current.partitions.len(), entry.current.start_ms), (2, 15));
    assert_eq!(refused(entry.end(end((8, 0), true, 0))), ErrorCode::InvalidProducerIdMapping);
    assert_eq!(refused(entry.end(end((7, 1), true, 0))), ErrorCode::ProducerFenced);
    let step = entry.end(end((7, 0), true, 0));
    assert_eq!(refused(entry.add((7, 0), &partitions(&[2]), 0, 16)), ErrorCode::ConcurrentTransactions, "pending");
    assert_eq!(store(&mut entry, step), State::PrepareCommit);
    assert_eq!(refused(entry.end(end((7, 0), true, 0))), ErrorCode::ConcurrentTransactions);
    assert_eq!(refused(entry.end(end((7, 0), false, 0))), ErrorCode::ConcurrentTransactions);
    assert_eq!(refused(entry.init(init(0, None))), ErrorCode::ConcurrentTransactions);
    assert_eq!(finish(&mut entry), State::CompleteCommit);
    assert_eq!((producer(&entry), entry.current.partitions.len()), ((7, 0), 0));
    assert!(matches!(entry.end(end((7, 0), true, 0)), Step::Answer(Ok(_))), "the answer was lost");
    assert_eq!(refused(entry.end(end((7, 0), false, 0))), ErrorCode::InvalidTxnState);
}

#[test]
fn each_transaction_of_a_new_client_has_an_epoch() {
    let mut entry = ongoing(2);
    let step = entry.end(end((7, 0), true, 2));
    assert_eq!(store(&mut entry, step), State::PrepareCommit);
    assert_eq!(producer(&entry), (7, 1), "markers carry the next epoch");
    // Who was told the next epoch may be here with it before the markers are written.
    for (producer, commit) in [((7, 1), true), ((7, 1), false), ((7, 0), true)] {
        assert_eq!(refused(entry.end(end(producer, commit, 2))), ErrorCode::ConcurrentTransactions);
    }
    assert_eq!(finish(&mut entry), State::CompleteCommit);
    assert_eq!(entry.end(end((7, 0), true, 2)), Step::Answer(Ok((7, 1))), "the answer was lost");
    assert_eq!(refused(entry.end(end((7, 0), false, 2))), ErrorCode::InvalidTxnState);
    assert_eq!(refused(entry.end(end((7, 1), true, 2))), ErrorCode::InvalidTxnState, "nothing to commit");
    // An abort of nothing is a way to be sure.
    let step = entry.end(end((7, 1), false, 2));
    assert_eq!(store(&mut entry, step), State::PrepareAbort);
    assert_eq!(finish(&mut entry), State::CompleteAbort);
    assert_eq!(producer(&entry), (7, 2));
    assert_eq!(refused(entry.add((7, 1), &partitions(&[0]), 2, 40)), ErrorCode::ProducerFenced);
}

#[test]
fn epochs_that_are_used_up_give_way_to_a_new_producer() {
    let mut entry = ongoing(2);
    entry.current.producer_epoch = i16::MAX - 1;
    let last = (7, i16::MAX - 1);
    assert_eq!(entry.end(end(last, true, 2)), Step::NeedsProducerId);
    assert!(entry.pending.is_none());
    let step = entry.end(End { fresh_id: Some(FRESH), ..end(last, true, 2) });
    assert_eq!(store(&mut entry, step), State::PrepareCommit);
    assert_eq!(producer(&entry), (7, i16::MAX), "the markers of the old one");
    assert_eq!(finish(&mut entry), State::CompleteCommit);
    assert_eq!((producer(&entry), entry.current.previous_producer_id), ((FRESH, 0), 7));
    assert_eq!(entry.end(end(last, true, 2)), Step::Answer(Ok((FRESH, 0))), "the answer was lost");
    // Without a transaction.
    entry.current.producer_epoch = i16::MAX - 1;
    assert_eq!(entry.init(init(2, None)), Step::NeedsProducerId);
    let step = entry.init(Init { fresh_id: Some(FRESH + 1), ..init(2, None) });
    store(&mut entry, step);
    assert_eq!(producer(&entry), (FRESH + 1, 0));
}

#[test]
fn a_new_producer_aborts_what_the_old_one_left_open() {
    for version in [0, 1, 2] {
        let mut entry = ongoing(version);
        let step = entry.init(init(version, None));
        assert_eq!(store(&mut entry, step), State::PrepareAbort, "version {version}");
        assert_eq!(producer(&entry), (7, 1), "the old one is fenced");
        assert_eq!(refused(entry.init(init(version, None))), ErrorCode::ConcurrentTransactions);
        assert_eq!(finish(&mut entry), State::CompleteAbort);
        let step = entry.init(init(version, None));
        store(&mut entry, step);
        assert_eq!(producer(&entry), (7, 2));
        assert_eq!(refused(entry.end(end((7, 0), true, version))), ErrorCode::ProducerFenced);
    }
}

#[test]
fn a_fence_that_could_not_be_stored_is_not_raised_twice() {
    let mut entry = ongoing(1);
    entry.fence(1, None, 50);
    entry.give_up();
    assert_eq!((entry.current.state, entry.current.producer_epoch), (State::Ongoing, 1));
    let step = entry.fence(1, None, 50);
    store(&mut entry, step);
    assert_eq!((entry.current.state, entry.current.producer_epoch), (State::PrepareAbort, 1));
    finish(&mut entry);
    assert!(!entry.failed_fence);
}

#[test]
fn a_producer_that_names_itself_is_held_to_it() {
    let mut entry = ongoing(2);
    let step = entry.end(end((7, 0), true, 2));
    store(&mut entry, step);
    finish(&mut entry);
    assert_eq!(refused(entry.init(init(2, Some((8, 1))))), ErrorCode::ProducerFenced);
    assert_eq!(refused(entry.init(init(2, Some((7, 5))))), ErrorCode::ProducerFenced);
    let step = entry.init(init(2, Some((7, 1))));
    store(&mut entry, step);
    assert_eq!(producer(&entry), (7, 2));
    let step = entry.init(init(2, Some((7, 1))));
    store(&mut entry, step);
    assert_eq!(producer(&entry), (7, 2), "the same again, whose answer was lost");
}

#[test]
fn partitions_are_verified() {
    let mut entry = ongoing(0);
    let partition = |n| TopicPartition::new("t", n);
    assert_eq!(entry.verify((7, 0), &partition(0)), Ok(()));
    assert_eq!(entry.verify((7, 0), &partition(1)), Err(ErrorCode::TransactionAbortable));
    assert_eq!(entry.verify((7, 1), &partition(0)), Err(ErrorCode::ProducerFenced));
    let step = entry.end(end((7, 0), false, 0));
    store(&mut entry, step);
    assert_eq!(entry.verify((7, 0), &partition(0)), Err(ErrorCode::ConcurrentTransactions));
}

#[test]
fn time_passes() {
    let mut entry = ongoing(2);
    assert!(!entry.is_timed_out(60_015) && entry.is_timed_out(60_016));
    entry.current.timeout_ms = i32::MAX;
    assert!(!entry.is_timed_out(i64::MAX), "two-phase commits end by themselves only");
    assert!(!entry.is_expired(i64::MAX));
    let step = entry.end(end((7, 0), true, 2));
    store(&mut entry, step);
    finish(&mut entry);
    assert!(entry.is_expired(30) && !entry.is_expired(29));
}

#[test]
fn values_are_kafkas() {
    let mut entry = ongoing(2);
    let (key, value) = encode("id", Some(&entry.current), 0).unwrap();
    assert_eq!(&key[..], b"\0\0\0\x02id");
    let mut expected = vec![0, 0];
    expected.extend(7i64.to_be_bytes());
    expected.extend([0, 0, 0, 0, 0xea, 0x60, 1, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 0]);
    expected.extend(15i64.to_be_bytes());
    expected.extend(15i64.to_be_bytes());
    assert_eq!(value.unwrap(), expected);
    entry.current.state = State::Empty;
    let (_, value) = encode("id", Some(&entry.current), 0).unwrap();
    assert_eq!(value.unwrap()[17..21], [0xff; 4], "no partitions");
    assert_eq!(encode("id", None, 2).unwrap().1, None);
    let unknown = decode(bytes::Bytes::from_static(&[0, 9]), None);
    assert_eq!(unknown.unwrap(), None);
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let ids = (0..i64::MAX, -1..i64::MAX, -1..i64::MAX, any::<i16>());
    let rest = (any::<i32>(), 0..8i8, any::<i64>(), any::<i64>(), 0..3i16);
    (ids, rest, proptest::collection::btree_set(("[a-z]{1,9}", 0..100), 0..5)).prop_map(
        |((producer_id, previous_producer_id, next_producer_id, producer_epoch), rest, partitions)| {
            let (timeout_ms, state, start_ms, last_update_ms, client_version) = rest;
            let state = State::from_id(state).unwrap();
            let partitions = partitions.into_iter().map(|(topic, n)| TopicPartition::new(topic, n));
            Transaction {
                producer_id,
                previous_producer_id,
                next_producer_id,
                producer_epoch,
                last_producer_epoch: NO_EPOCH,
                timeout_ms,
                state,
                partitions: if state == State::Empty { BTreeSet::new() } else { partitions.collect() },
                start_ms,
                last_update_ms,
                client_version,
            }
        },
    )
}

/// What may happen to a transactional id.
#[derive(Debug, Clone)]
enum Event {
    Init { expected: bool },
    Add(i32),
    End { commit: bool, stale: bool },
    TimeOut,
    Stored(bool),
    Marked,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        any::<bool>().prop_map(|expected| Event::Init { expected }),
        (0..3).prop_map(Event::Add),
        (any::<bool>(), any::<bool>()).prop_map(|(commit, stale)| Event::End { commit, stale }),
        Just(Event::TimeOut),
        proptest::bool::weighted(0.8).prop_map(Event::Stored),
        Just(Event::Stored(true)),
        Just(Event::Marked),
    ];
    proptest::collection::vec(event, 0..60)
}

/// Which states may follow one another.
fn may_follow(before: State, after: State) -> bool {
    match after {
        State::Empty => before.is_at_rest(),
        State::Ongoing => before == State::Ongoing || before.is_at_rest(),
        State::PrepareCommit => before == State::Ongoing,
        State::PrepareAbort => before == State::Ongoing || before.is_at_rest(),
        State::CompleteCommit => before == State::PrepareCommit,
        State::CompleteAbort => before == State::PrepareAbort,
        State::Dead | State::PrepareEpochFence => false,
    }
}

proptest! {
    #[test]
    fn records_round_trip(transaction in transaction(), id in "[a-z0-9.-]{0,20}") {
        let (key, value) = encode(&id, Some(&transaction), 2).unwrap();
        prop_assert_eq!(decode(key, value).unwrap(), Some((id, Some(transaction))));
    }

    /// Whatever happens: only allowed states follow, a decision is carried out and never turned around, epochs do not go back, and
    /// a producer that is not the current one changes nothing.
    #[test]
    fn decisions_stand(events in events(), version in 0..3i16, near_the_end in any::<bool>()) {
        let mut entry = Entry::unused(7, 60_000, 1);
        let mut fresh_id = FRESH;
        if near_the_end {
            entry.current.producer_epoch = i16::MAX - 3;
        }
        let mut pending: Option<Transaction> = None;
        let mut now_ms = 10;
        for event in events {
            now_ms += 1;
            let before = entry.clone();
            let who = producer(&entry);
            let mut step = None;
            for fresh in [None, Some(fresh_id)] {
                let decided = match &event {
                    Event::Init { expected } => {
                        let expected = expected.then_some(who).filter(|who| who.1 >= 0);
                        entry.init(Init { fresh_id: fresh, expected, now_ms, ..init(version, None) })
                    }
                    Event::Add(n) => entry.add(who, &partitions(&[*n]), version, now_ms),
                    Event::End { commit, stale } => {
                        let who = if *stale { (who.0, who.1.wrapping_sub(2)) } else { who };
                        let step = entry.end(End { fresh_id: fresh, now_ms, ..end(who, *commit, version) });
                        prop_assert!(!*stale || !matches!(step, Step::Store(_)), "{:?}", step);
                        step
                    }
                    Event::TimeOut => entry.fence(version, fresh, now_ms),
                    Event::Stored(true) => {
                        if let Some(target) = pending.take() {
                            entry.complete(target);
                        }
                        break;
                    }
                    Event::Stored(false) => {
                        if pending.take().is_some() {
                            entry.give_up();
                        }
                        break;
                    }
                    Event::Marked if pending.is_none() => match entry.finish(now_ms) {
                        Some(target) => Step::Store(target),
                        None => break,
                    },
                    Event::Marked => break,
                };
                if decided != Step::NeedsProducerId {
                    step = Some(decided);
                    break;
                }
                prop_assert_eq!(&entry, &before, "asking for an id changes nothing");
                fresh_id += 1;
            }
            if let Some(Step::Store(target)) = step {
                prop_assert!(pending.is_none(), "one change at a time");
                prop_assert!(may_follow(entry.current.state, target.state), "{:?} to {:?}", entry.current, target);
                prop_assert!(target.producer_epoch >= 0);
                prop_assert!(target.producer_id != entry.current.producer_id
                    || target.producer_epoch >= entry.current.producer_epoch);
                prop_assert!(!target.state.is_prepared() || target.partitions == entry.current.partitions);
                pending = Some(target);
            }
            prop_assert_eq!(entry.pending.is_some(), pending.is_some());
        }
    }
}
